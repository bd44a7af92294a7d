//! A server that carried the bus and is not fit any more: calls have their fates, it is counted by its kind, and when it is
//! fit again all goes on. What a server says at the start is in `start.rs`; frames that cannot be used are sentences of the
//! conformance suite.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    left_out,
    proofs::{Proofs, document},
    sets::{REDIS, Server},
    words::{PATIENCE, path, until, within},
};
use std::time::Duration;
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    time::{sleep, timeout},
};
use vbm_rpc::{BadInput, Bus, Context, Fate, Member, Method, Route, Router, redis::RedisTransport};

/// A deadline that is not always met here.
const SHORT: Duration = Duration::from_secs(2);

struct Same;
impl Method for Same {
    const NAME: &'static str = "test.same";
    type Request = usize;
    type Reply = usize;
}

struct World {
    server: Server,
    n1: Bus,
    c1: Bus,
}

impl World {
    async fn new() -> Self {
        let server = Server::start(REDIS, "").await;
        let transport = RedisTransport::connect(server.config()).await.unwrap();
        let router = Router::new().method::<Same, _, _>(|_context: Context, n: usize| async move { Ok(n) });
        let attach = |at, router| Bus::attach(transport.clone(), Member::new(path(at), "boot"), router);
        let (n1, c1) = (attach("n1", router), attach("c1", Router::new()));
        let world = Self {
            n1: n1.await.unwrap(),
            c1: c1.await.unwrap(),
            server,
        };
        assert_eq!(world.call().await, Ok(7));
        world
    }

    async fn call(&self) -> Result<usize, Fate> {
        let call = self.c1.call::<Same>(&Route::node(path("n1")), &7, within(SHORT));
        timeout(PATIENCE, call).await.expect("no call hangs")
    }

    /// All that the bus has are cut; ours are not among them.
    async fn cut_connections(&self) {
        self.server
            .ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
            .await;
    }

    async fn is_counted(&self, what: BadInput) {
        for bus in [&self.n1, &self.c1] {
            until(what.name(), async || bus.stats().bad_input.of(what) > 0).await;
        }
    }

    async fn goes_on(&self) {
        until("calls go on", async || self.call().await == Ok(7)).await;
    }

    async fn end(self) {
        self.c1.shutdown().await;
        self.n1.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_becomes_a_replica_is_counted_and_used_again_when_it_is_a_master() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    let [nobody] = common::sets::free_ports();
    world
        .server
        .ask(&["REPLICAOF", "127.0.0.1", &nobody.to_string()])
        .await;
    let fate = world.call().await;
    assert!(fate.is_err(), "{fate:?}");
    world.is_counted(BadInput::ServerReplica).await;
    world.server.ask(&["REPLICAOF", "NO", "ONE"]).await;
    world.goes_on().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wants_a_password_from_now_on_is_counted() {
    if left_out() {
        return;
    }
    let mut world = World::new().await;
    world.server.want_password("secret").await;
    world.cut_connections().await;
    world.is_counted(BadInput::ServerPassword).await;
    let fate = world.call().await;
    assert!(fate.is_err(), "{fate:?}");
    world.server.ask(&["CONFIG", "SET", "requirepass", ""]).await;
    world.goes_on().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_came_back_and_evicts_is_counted_and_used() {
    if left_out() {
        return;
    }
    let world = World::new().await;
    world.server.ask(&["CONFIG", "SET", "maxmemory", "1gb"]).await;
    world
        .server
        .ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])
        .await;
    world.cut_connections().await;
    world.goes_on().await;
    world.is_counted(BadInput::ServerEvicts).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_in_the_place_of_the_server_is_counted() {
    if left_out() {
        return;
    }
    let mut world = World::new().await;
    world.server.kill();
    let listener = TcpListener::bind(world.server.address()).await.unwrap();
    let program = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let greeting = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
            // Who hung up already is none of its business.
            drop(stream.write_all(greeting).await);
            sleep(Duration::from_millis(50)).await;
        }
    });
    world.is_counted(BadInput::ServerOther).await;
    let fate = world.call().await;
    assert!(fate.is_err(), "{fate:?}");
    program.abort();
    // Its port is free when it is over.
    drop(program.await);
    world.server.restart().await;
    world.goes_on().await;
    world.end().await;
}

#[test]
fn every_kind_of_bad_input_has_a_row_in_the_document_and_a_test() {
    let (proofs, text) = (Proofs::find(), document("rpc/bad-input.md"));
    for what in BadInput::all() {
        let start = format!("| `{}` |", what.name());
        let mut rows = text.lines().filter(|line| line.starts_with(&start));
        let row = rows.next().unwrap_or_else(|| panic!("{what:?} has no row"));
        assert!(rows.next().is_none(), "{what:?} has two rows");
        let tests = row.trim_end_matches('|').rsplit(" | ").next().unwrap();
        proofs.check(tests, row);
    }
    let (_, at_the_start) = text.split_once("## At the start").expect("the section");
    let rows = at_the_start
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("::"));
    for row in rows {
        proofs.check(row, row);
    }
}
