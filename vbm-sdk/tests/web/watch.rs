//! Live state.

use crate::{
    house::{PATIENCE, group, launch},
    raw::Stream,
    site::Site,
};
use serde_json::Value;
use vbm_sdk::store::{LOG_MAX_BYTES, Store, Txn, VALUE_MAX_BYTES, Write};

/// A message.
#[derive(Debug)]
struct Message {
    event: String,
    id: Option<u64>,
    data: Value,
}

/// An open stream of messages.
struct Watch {
    stream: Stream,
}

impl Watch {
    async fn open(site: &Site, cookie: &str, last: Option<&str>) -> Self {
        let mut ask = site
            .ask_as(cookie, "GET", "/v1/watch")
            .header("connection", "close");
        if let Some(last) = last {
            ask = ask.header("last-event-id", last);
        }
        let stream = ask.open(site.address).await;
        assert_eq!(stream.status(), 200, "{}", stream.head);
        assert!(stream.head.contains("text/event-stream") && stream.head.contains("no-store"));
        Self { stream }
    }

    async fn try_next(&mut self) -> Option<Message> {
        let (mut event, mut id, mut data) = (String::new(), None, String::new());
        loop {
            let line = self.stream.line().await?;
            let line = line.trim_end_matches(['\r', '\n']);
            // Lines without a colon are the sizes of chunks.
            match line.split_once(": ") {
                Some(("event", name)) => event = name.to_owned(),
                Some(("id", text)) => id = Some(text.parse().unwrap()),
                Some(("data", text)) => data = text.to_owned(),
                _ if line.is_empty() && !data.is_empty() => {
                    let data = serde_json::from_str(&data).unwrap();
                    return Some(Message { event, id, data });
                }
                _ => {}
            }
        }
    }

    async fn next(&mut self) -> Message {
        self.try_next().await.expect("the stream ended")
    }

    /// Reads until a message fits; gives all that were read.
    async fn until(&mut self, fits: impl Fn(&Message) -> bool) -> Vec<Message> {
        let mut read = Vec::new();
        let reading = async {
            while !read.last().is_some_and(&fits) {
                read.push(self.next().await);
            }
        };
        let done = tokio::time::timeout(PATIENCE, reading).await;
        assert!(done.is_ok(), "{read:?}");
        read
    }
}

fn shows(message: &Message, kind: &str, name: &str) -> bool {
    message.data["kind"] == kind && message.data["view"]["name"] == name
}

#[tokio::test]
async fn a_change_is_told_with_the_record_as_lists_show_it() {
    let site = Site::furnished().await;
    let cookie = site.log_in().await;
    let mut watch = Watch::open(&site, &cookie, None).await;
    let first = watch.next().await;
    assert_eq!(first.event, "ready");
    assert_eq!(first.id, first.data["revision"].as_u64());
    let vm = launch(&site.client, "web").await;
    let told = watch
        .until(|m| shows(m, "vm", "web") && m.data["view"]["status"]["power"]["state"] == "running")
        .await;
    let listed = serde_json::to_value(site.client.vms().get("web").await.unwrap()).unwrap();
    let shown = &told.last().unwrap().data["view"];
    assert_eq!(shown["nics"][0]["network_name"], "lan");
    assert_eq!(shown["id"], vm.vm.meta.id.to_string());
    assert_eq!(shown["image_name"], listed["image_name"]);
    for kind in ["port", "volume", "operation", "event", "network"] {
        assert!(told.iter().any(|m| m.data["kind"] == kind), "no {kind}: {told:?}");
    }
    assert!(
        told.iter()
            .any(|m| m.data["kind"] == "network" && m.data["view"]["ports"] == 1),
        "the network was not told again: {told:?}"
    );
    site.client.vms().delete("web").force(true).await.unwrap();
    let told = watch
        .until(|m| m.data["kind"] == "vm" && m.data["deleted"] == true)
        .await;
    let gone = told.last().unwrap();
    assert_eq!(gone.data["id"], vm.vm.meta.id.to_string());
    assert!(gone.data.get("view").is_none());
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_browser_that_comes_back_misses_nothing() {
    let site = Site::furnished().await;
    let cookie = site.log_in().await;
    let mut watch = Watch::open(&site, &cookie, None).await;
    group(&site.client, "before", &[]).await;
    let told = watch.until(|m| m.id.is_some() && m.event == "change").await;
    let last = told.last().unwrap().id.unwrap();
    drop(watch);
    for n in 0..5 {
        group(&site.client, &format!("meanwhile{n}"), &["tcp/80"]).await;
    }
    let mut watch = Watch::open(&site, &cookie, Some(&last.to_string())).await;
    let first = watch.next().await;
    assert_eq!((first.event.as_str(), first.id), ("ready", Some(last)));
    let told = watch.until(|m| shows(m, "group", "meanwhile4")).await;
    let names: Vec<&str> = told
        .iter()
        .filter(|m| m.data["kind"] == "group")
        .map(|m| m.data["view"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "meanwhile0",
            "meanwhile1",
            "meanwhile2",
            "meanwhile3",
            "meanwhile4"
        ]
    );
    site.server.shutdown().await;
}

#[tokio::test]
async fn who_comes_back_to_a_log_that_has_forgotten_is_told_to_list_again() {
    let site = Site::furnished().await;
    let cookie = site.log_in().await;
    // As many bytes as the log keeps.
    for _ in 0..=LOG_MAX_BYTES / VALUE_MAX_BYTES {
        let write = vec![Write::Put("filler".into(), vec![0; VALUE_MAX_BYTES].into())];
        let txn = Txn {
            compare: Vec::new(),
            write,
        };
        drop(site.house.store.txn(txn).await.unwrap());
    }
    // Too old, from a store that is gone, and no revision at all.
    for (n, last) in ["1", "99999999", "<script>", "网络"].iter().enumerate() {
        let mut watch = Watch::open(&site, &cookie, Some(last)).await;
        let first = watch.next().await;
        assert_eq!(first.event, "reset", "{last}: {first:?}");
        assert_eq!(first.id, first.data["revision"].as_u64());
        assert!(first.id.unwrap() > 64);
        let name = format!("after{n}");
        group(&site.client, &name, &[]).await;
        watch.until(|m| shows(m, "group", &name)).await;
    }
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_browser_that_reads_nothing_holds_nobody_up() {
    let site = Site::furnished().await;
    let cookie = site.log_in().await;
    let _deaf = Watch::open(&site, &cookie, None).await;
    let rules: Vec<String> = (1..200).map(|n| format!("tcp/{n}@10.{n}.0.0/16")).collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    for n in 0..30 {
        group(&site.client, &format!("g{n}"), &rules).await;
    }
    let mut watch = Watch::open(&site, &cookie, None).await;
    watch.next().await;
    group(&site.client, "last", &[]).await;
    watch.until(|m| shows(m, "group", "last")).await;
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_watch_ends_with_its_session() {
    let site = Site::open().await;
    let cookie = site.log_in().await;
    let mut watch = Watch::open(&site, &cookie, None).await;
    watch.next().await;
    site.ask_as(&cookie, "POST", "/logout").send(site.address).await;
    while watch.try_next().await.is_some() {}
    site.server.shutdown().await;
}
