use super::*;
use crate::api::{Blob, CreateGroup, List, Version};
use crate::client::IDEMPOTENCY_KEY;
use crate::store::Revision;
use axum::{
    body::Bytes,
    extract::{Path, Query},
    http::HeaderMap,
    routing::{delete, get, post},
};
use futures::StreamExt;
use std::{collections::HashMap, sync::Mutex, time::Duration};
use vbm_core::{Group, GroupId, GroupSpec, IdSource, Meta, Outcome, SeededIds};

fn version() -> Version {
    Version {
        version: "0.1.0".into(),
        api: "v1".into(),
        instance: "test".into(),
        controller: "test".into(),
        leader: None,
    }
}

fn group(n: u64) -> Group {
    Group {
        meta: Meta::new(
            GroupId::from_uuid(uuid::Uuid::from_u128(n.into())),
            format!("g{n}").parse().unwrap(),
            Timestamp::from_micros(0),
        ),
        spec: GroupSpec::default(),
    }
}

#[test]
fn a_client_can_be_shared_by_everything() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn sent<T: Send>() {}
    shared::<Client>();
    shared::<Endpoint>();
    sent::<crate::client::Call<Version>>();
    sent::<crate::client::Console>();
    sent::<crate::client::EventStream>();
}

#[tokio::test]
async fn the_same_client_talks_over_a_unix_socket_and_in_process() {
    let routes = Router::new().route("/v1/version", get(async || Json(version())));
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("vbmd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(axum::serve(listener, routes.clone()).into_future());
    let client = Client::connect(Endpoint::unix(&socket)).await.unwrap();
    assert_eq!(client.version().await.unwrap(), version());
    server.abort();

    let fake = serve(routes);
    assert_eq!(fake.client.version().await.unwrap(), version());
}

#[tokio::test]
async fn a_server_of_another_version_is_refused_at_once() {
    let fake = serve(Router::new().route(
        "/v1/version",
        get(async || {
            Json(Version {
                api: "v2".into(),
                ..version()
            })
        }),
    ));
    let error = Client::connect(fake.client.endpoint().clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_refusal_arrives_as_the_error_that_the_server_made() {
    let fake = serve(Router::new().route("/v1/vms/{vm}", get(async || no_vm()).delete(async || no_vm())));
    assert_eq!(
        fake.client.vms().get("web1").await.unwrap_err(),
        Error::not_found("vm", "web1")
    );
    assert_eq!(fake.client.vms().get_opt("web1").await.unwrap(), None);
    assert!(
        fake.client
            .vms()
            .delete("web1")
            .force(true)
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn names_and_flags_arrive_as_they_were_given() {
    let seen = Arc::new(Mutex::new(None));
    let sink = seen.clone();
    let handler = async move |Path(vm): Path<String>, Query(query): Query<HashMap<String, String>>| {
        *sink.lock().unwrap() = Some((vm, query));
        no_vm()
    };
    let fake = serve(Router::new().route("/v1/vms/{vm}", delete(handler)));
    let delete = fake.client.vms().delete("a/b ?ä").force(true).await;
    assert!(delete.is_err());
    let (vm, query) = seen.lock().unwrap().take().unwrap();
    assert_eq!(vm, "a/b ?ä");
    assert_eq!(query["force"], "true");
}

#[tokio::test]
async fn what_changes_something_carries_a_key_and_what_reads_carries_none() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let sink = keys.clone();
    let note = async move |headers: HeaderMap| {
        sink.lock().unwrap().push(
            headers
                .get(IDEMPOTENCY_KEY)
                .map(|key| key.to_str().unwrap().to_owned()),
        );
        Json(group(1))
    };
    let fake = serve(
        Router::new()
            .route("/v1/groups", post(note.clone()))
            .route("/v1/groups/{group}", get(note.clone()).delete(note)),
    );
    let client = fake.client.clone().with_ids(Arc::new(SeededIds::new(1)));
    let request = CreateGroup {
        name: "web".parse().unwrap(),
        rules: Vec::new(),
        egress_closed: false,
    };
    client.groups().create(request.clone()).await.unwrap();
    client.groups().create(request).key("mine").await.unwrap();
    client.groups().get("web").await.unwrap();
    client.groups().delete("web").await.unwrap();
    let ids = SeededIds::new(1);
    // A call makes its own key before another is named.
    let made: Vec<_> = (0..3).map(|_| Some(ids.next().to_string())).collect();
    assert_eq!(
        *keys.lock().unwrap(),
        [made[0].clone(), Some("mine".into()), None, made[2].clone()]
    );
}

#[tokio::test(start_paused = true)]
async fn a_passed_deadline_leaves_the_outcome_open_only_for_what_changes_something() {
    let never = async || std::future::pending::<StatusCode>().await;
    let fake = serve(Router::new().route("/v1/groups/{group}", get(never).delete(never)));
    let groups = fake.client.groups();
    let read = groups
        .get("a")
        .deadline(Duration::from_secs(1))
        .await
        .unwrap_err();
    assert_eq!(
        (read.kind(), read.outcome()),
        (ErrorKind::DeadlineExceeded, Outcome::NotApplied)
    );
    let changed = groups
        .delete("a")
        .deadline(Duration::from_secs(1))
        .await
        .unwrap_err();
    assert_eq!(
        (changed.kind(), changed.outcome()),
        (ErrorKind::DeadlineExceeded, Outcome::Unknown)
    );
}

fn page(query: &HashMap<String, String>) -> List<Group> {
    let after: u64 = query.get("after").map_or(0, |text| text.parse().unwrap());
    let items = (after + 1..=(after + 2).min(5)).map(group).collect();
    List {
        items,
        next: (after + 2 < 5).then(|| (after + 2).to_string()),
        revision: Revision(9),
    }
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let handler = async |Query(query): Query<HashMap<String, String>>| Json(page(&query));
    let fake = serve(Router::new().route("/v1/groups", get(handler)));
    let names = |groups: Vec<Group>| groups.iter().map(|g| g.meta.name.to_string()).collect::<Vec<_>>();
    let all = ["g1", "g2", "g3", "g4", "g5"];
    assert_eq!(names(fake.client.groups().list().all().await.unwrap()), all);
    let streamed: Vec<_> = fake.client.groups().list().stream().collect().await;
    assert_eq!(names(streamed.into_iter().map(Result::unwrap).collect()), all);
    let page = fake.client.groups().list().after("2").page().await.unwrap();
    assert_eq!(
        (names(page.items), page.next.as_deref(), page.revision),
        (vec!["g3".into(), "g4".into()], Some("4"), Revision(9))
    );
}

#[tokio::test]
async fn a_list_that_does_not_end_is_a_failure_and_no_endless_loop() {
    let handler = async || {
        Json(List {
            items: vec![group(1)],
            next: Some("x".into()),
            revision: Revision(1),
        })
    };
    let fake = serve(Router::new().route("/v1/groups", get(handler)));
    assert_eq!(
        fake.client.groups().list().all().await.unwrap_err().kind(),
        ErrorKind::Internal
    );
    let streamed: Vec<_> = fake.client.groups().list().stream().collect().await;
    assert!(streamed.last().unwrap().is_err());
}

#[tokio::test]
async fn a_file_is_sent_whole_and_its_progress_is_told() {
    let handler = async |headers: HeaderMap, body: Bytes| {
        assert_eq!(headers["content-length"], body.len().to_string());
        Json(Blob {
            digest: vbm_core::Digest::new([body[0]; 32]),
            bytes: body.len() as u64,
        })
    };
    let routes = Router::new()
        .route("/v1/blobs", post(handler))
        .layer(axum::extract::DefaultBodyLimit::disable());
    let fake = serve(routes);
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("disk");
    std::fs::write(&file, vec![7; 3 << 20]).unwrap();
    let mut last = None;
    let blob = fake
        .client
        .images()
        .upload(&file)
        .on_progress(|sent, total| last = Some((sent, total)))
        .await
        .unwrap();
    assert_eq!(
        (blob.bytes, blob.digest),
        (3 << 20, vbm_core::Digest::new([7; 32]))
    );
    assert_eq!(last, Some((3 << 20, 3 << 20)));
}

#[tokio::test]
async fn a_file_that_is_none_is_told_before_anything_is_sent() {
    let fake = serve(Router::new());
    let place = tempfile::tempdir().unwrap();
    let missing = fake
        .client
        .images()
        .upload(place.path().join("none"))
        .await
        .unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let directory = fake.client.images().upload(place.path()).await.unwrap_err();
    assert_eq!(directory.kind(), ErrorKind::InvalidInput);
}
