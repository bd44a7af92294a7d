//! Who may answer.

use super::*;
use crate::{
    BadInput,
    codec::Codec,
    envelope::{Envelope, Kind},
    transport::{Destination, Inbound},
};
use tokio::sync::mpsc;
use uuid::Uuid;
use vbm_core::Epoch;

/// An answer to a call counts only from who was asked: the node, or a member below the scope. Somebody else who knows
/// the id of the call, and may write to the caller's inbox, ends nothing, and is counted.
pub async fn an_answer_of_somebody_who_was_not_asked_is_dropped(transport: Arc<dyn Transport>) {
    let (tell, mut told) = mpsc::unbounded_channel();
    let at = path("eu/n1");
    let router = Router::new().method::<Echo, _, _>(move |context: Context, ask: Ask| {
        let (tell, at) = (tell.clone(), at.clone());
        async move {
            assert!(tell.send(context.request_id).is_ok(), "the test waits for it");
            sleep(Duration::from_millis(ask.wait_ms)).await;
            Ok((at, ask.text))
        }
    });
    let member = Member::new(path("eu/n1"), boot()).service(worker());
    let n1 = Bus::attach(transport.clone(), member, router)
        .await
        .expect("a worker attaches");
    let c1 = client(&transport, "eu/c1").await;
    let stranger = Member::new(path("us/x"), boot())
        .into_info(Vec::new())
        .expect("a member");
    let (requests, _ignored) = mpsc::channel(1);
    let link = transport
        .attach(stranger, Inbound::new(requests, Arc::new(|_frame| {})))
        .await
        .expect("it attaches")
        .link;
    let inbox = Destination::Inbox {
        path: path("eu/c1"),
        boot_id: c1.member().boot_id.clone(),
    };
    for route in [Route::node(path("eu/n1")), Route::any(path("eu"), worker())] {
        let call = c1.call::<Echo>(&route, &slow(SHORT), within(PATIENCE));
        let call = tokio::spawn(call);
        let id = soon("the request", told.recv()).await.expect("an id");
        for kind in [Kind::Reply, Kind::End, Kind::Accepted] {
            link.send(&inbox, forged(kind, id), PATIENCE)
                .await
                .expect("the inbox is there");
        }
        let reply = soon("the call", call).await.expect("no panic");
        assert_eq!(reply, Ok((path("eu/n1"), "slow".to_owned())), "{route}");
    }
    assert!(c1.stats().bad_input.of(BadInput::NotAsked) > 0, "it is counted");
    link.close().await;
    end([c1, n1]).await;
}

fn forged(kind: Kind, id: Uuid) -> bytes::Bytes {
    let lie = (path("us/x"), "forged".to_owned());
    let body = match kind {
        Kind::Reply => Codec::MessagePack.encode(&lie).expect("a body"),
        Kind::End => bytes::Bytes::from_static(&[4]),
        _ => bytes::Bytes::new(),
    };
    Envelope {
        kind,
        codec: Codec::MessagePack,
        attempt: 1,
        id,
        ttl_ms: 0,
        epoch: Epoch::default(),
        method: String::new(),
        caller: path("us/x"),
        boot_id: String::new(),
        traceparent: None,
        idempotency_key: None,
        body,
    }
    .encode()
}
