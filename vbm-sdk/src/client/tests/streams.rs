use super::*;
use crate::{
    api::{EventView, List, VmView},
    store::Revision,
};
use axum::{
    body::{Body, Bytes},
    extract::Query,
    routing::get,
};
use futures::StreamExt;
use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use vbm_core::{Event, EventId, EventKind, Kind, ObjectRef, PowerState};

/// A server whose operation answers in this order; the last answer stays.
fn operations(answers: Vec<fn() -> axum::response::Response>) -> (Fake, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let handler = async move || {
        let n = count.fetch_add(1, Ordering::SeqCst);
        answers[n.min(answers.len() - 1)]()
    };
    (
        serve(Router::new().route("/v1/operations/{id}", get(handler))),
        asked,
    )
}

fn running() -> axum::response::Response {
    Json(operation(1, OperationState::Running)).into_response()
}
fn done() -> axum::response::Response {
    Json(operation(2, OperationState::Done)).into_response()
}
fn failed() -> axum::response::Response {
    let mut failed = operation(1, OperationState::Failed);
    failed.error = Some(Error::new(
        ErrorKind::Exhausted,
        "no memory",
        "the node is full",
        "add one",
    ));
    Json(failed).into_response()
}

#[tokio::test(start_paused = true)]
async fn a_wait_shows_each_step_and_survives_a_restart_of_the_server() {
    let (fake, asked) = operations(vec![running, busy, busy, done]);
    let id = operation(0, OperationState::Running).id;
    let mut seen = Vec::new();
    let operation = fake
        .client
        .operations()
        .wait(id)
        .on_progress(|o| seen.push(o.steps.len()))
        .await
        .unwrap();
    assert_eq!((operation.state, seen), (OperationState::Done, vec![1, 2]));
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn an_operation_that_failed_gives_its_own_error() {
    let (fake, _) = operations(vec![running, failed]);
    let id = operation(0, OperationState::Running).id;
    let error = fake.client.operations().wait(id).await.unwrap_err();
    assert_eq!((error.kind(), error.what()), (ErrorKind::Exhausted, "no memory"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stays_away_is_not_waited_for_until_the_deadline() {
    let (fake, _) = operations(vec![running, busy]);
    let id = operation(0, OperationState::Running).id;
    let before = tokio::time::Instant::now();
    let error = fake
        .client
        .operations()
        .wait(id)
        .deadline(Duration::from_secs(3_600))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(before.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_not_over_in_time_goes_on() {
    let handler = async |Query(query): Query<HashMap<String, String>>| {
        tokio::time::sleep(Duration::from_secs(query["wait_seconds"].parse().unwrap())).await;
        running()
    };
    let fake = serve(Router::new().route("/v1/operations/{id}", get(handler)));
    let id = operation(0, OperationState::Running).id;
    let error = fake
        .client
        .operations()
        .wait(id)
        .deadline(Duration::from_secs(90))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::DeadlineExceeded, vbm_core::Outcome::Unknown)
    );
    assert!(
        error.fix().contains(&format!("vbm operation wait {id}")),
        "{}",
        error.fix()
    );
}

fn event(revision: u64, id: u128) -> EventView {
    EventView {
        revision: Revision(revision),
        event: Event {
            id: EventId::from_uuid(uuid::Uuid::from_u128(id)),
            at: Timestamp::from_micros(0),
            kind: EventKind::VmStarted,
            object: ObjectRef::new(Kind::Vm, 1, "web1"),
            message: String::new(),
        },
    }
}

fn lines(events: &[EventView]) -> Vec<u8> {
    let line = |event| serde_json::to_string(event).unwrap() + "\n";
    events.iter().map(line).collect::<String>().into_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_events_goes_on_after_each_cut_without_a_loss_and_without_a_double() {
    // Revision 2 holds two events. Each connection gives one and a half events, then breaks.
    let all = [event(1, 1), event(2, 2), event(2, 3), event(4, 4), event(9, 5)];
    let expected: Vec<EventId> = all.iter().map(|e| e.event.id).collect();
    let handler = async move |Query(query): Query<HashMap<String, String>>| {
        assert_eq!(query["follow"], "true");
        let from = query.get("from").map_or(0, |text| text.parse().unwrap());
        let rest: Vec<EventView> = all.iter().filter(|e| e.revision.0 > from).cloned().collect();
        // A whole revision and one more event, at least: else nothing would ever come.
        let upto = rest.iter().take_while(|e| e.revision == rest[0].revision).count() + 1;
        let mut text = b"\n\n".to_vec();
        text.extend(lines(&rest[..upto.min(rest.len())]));
        text.extend(&lines(&rest)[..20.min(lines(&rest).len())]);
        // The cut comes after the text went out, as when a server is killed.
        let cut = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
        };
        Body::from_stream(futures::stream::iter([Ok(Bytes::from(text))]).chain(futures::stream::once(cut)))
    };
    let fake = serve(Router::new().route("/v1/events", get(handler)));
    let seen: Vec<EventId> = fake
        .client
        .events()
        .follow()
        .stream()
        .take(5)
        .map(|event| event.unwrap().event.id)
        .collect()
        .await;
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn events_that_are_not_followed_end() {
    let handler = async || Body::from(lines(&[event(1, 1), event(3, 2)]));
    let fake = serve(Router::new().route("/v1/events", get(handler)));
    let seen: Vec<_> = fake.client.events().stream().collect().await;
    assert_eq!(
        seen.into_iter()
            .map(|e| e.unwrap().revision.0)
            .collect::<Vec<_>>(),
        [1, 3]
    );
}

#[tokio::test]
async fn events_that_are_no_longer_kept_end_the_stream_with_the_reason() {
    let gone = Error::new(
        ErrorKind::NotFound,
        "revision 1 is no longer kept",
        "the log begins later",
        "read from there",
    );
    let handler = async move || refuse(404, gone.clone());
    let fake = serve(Router::new().route("/v1/events", get(handler)));
    let seen: Vec<_> = fake
        .client
        .events()
        .from(Revision(1))
        .follow()
        .stream()
        .collect()
        .await;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].as_ref().unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_never_there_is_told_at_once_and_one_that_went_away_after_a_minute() {
    let before = tokio::time::Instant::now();
    let never = Client::new(Endpoint::unix("/nonexistent/vbmd.sock"))
        .events()
        .follow()
        .open()
        .next()
        .await;
    assert_eq!(never.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(before.elapsed(), Duration::ZERO);

    let answers = Arc::new(AtomicUsize::new(0));
    let handler = async move || match answers.fetch_add(1, Ordering::SeqCst) {
        0 => Body::from(lines(&[event(1, 1)])).into_response(),
        _ => busy(),
    };
    let fake = serve(Router::new().route("/v1/events", get(handler)));
    let seen: Vec<_> = fake.client.events().follow().stream().collect().await;
    assert_eq!(seen.len(), 2);
    assert!(seen[0].is_ok() && seen[1].is_err());
    assert!((60..70).contains(&before.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_vm_looks_again_with_each_event() {
    let looks = Arc::new(AtomicUsize::new(0));
    let counter = looks.clone();
    let look = async move || {
        let mut vm = crate::cli::sample_vm();
        if counter.fetch_add(1, Ordering::SeqCst) < 2 {
            vm.vm.status.power = PowerState::Starting;
        }
        Json(vm)
    };
    let list = async || {
        Json(List::<VmView> {
            items: Vec::new(),
            next: None,
            revision: Revision(5),
        })
    };
    let events = async |Query(query): Query<HashMap<String, String>>| {
        assert_eq!(query["from"], "5");
        let first = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from(lines(&[
            event(6, 1),
            event(7, 2),
        ])))]);
        Body::from_stream(first.chain(futures::stream::pending()))
    };
    let fake = serve(
        Router::new()
            .route("/v1/vms", get(list))
            .route("/v1/vms/{vm}", get(look))
            .route("/v1/events", get(events)),
    );
    let before = tokio::time::Instant::now();
    let running = |vm: &VmView| vm.vm.status.power == PowerState::Running;
    fake.client.vms().wait_for("web1", running).await.unwrap();
    assert_eq!(looks.load(Ordering::SeqCst), 3);
    assert!(
        before.elapsed() < Duration::from_secs(1),
        "events wake it, not its timer"
    );
    let never = fake
        .client
        .vms()
        .wait_for("web1", |_| false)
        .deadline(Duration::from_secs(10))
        .await;
    assert_eq!(never.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
}
