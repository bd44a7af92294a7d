//! What is asked before anything is written: a clear message for each server that cannot carry the bus. Sentinels and
//! clusters that do not fit are in their own files.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    RedisServer, left_out,
    sets::{REDIS, Server},
};
use std::time::Duration;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep, timeout},
};
use vbm_rpc::{
    BadInput, Bus, BusError, CallOptions, Context, Fate, Member, Method, Route, Router,
    redis::{RedisConfig, RedisTransport},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The error for who connects; and that it was counted for what it is.
async fn refused(url: &str, what: BadInput) -> vbm_core::Error {
    let config = RedisConfig::from_url(url).unwrap();
    let before = RedisTransport::refused_at_start().of(what);
    let error = timeout(PATIENCE, RedisTransport::connect(config))
        .await
        .expect("it does not hang")
        .unwrap_err();
    assert!(matches!(error, BusError::Unsuitable { .. }), "{error:?}");
    assert!(
        RedisTransport::refused_at_start().of(what) > before,
        "{}",
        what.name()
    );
    let error = vbm_core::Error::from(error);
    assert!(!error.to_string().contains("secret"), "{error}");
    error
}

#[tokio::test]
async fn an_unreachable_server_is_told_in_three_lines() {
    // A port that was free a moment ago, and a socket that is not there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("redis+unix://{}", dir.path().join("none.sock").display());
    for url in [format!("redis://:secret@127.0.0.1:{port}"), socket] {
        let begin = Instant::now();
        let error = RedisTransport::connect(RedisConfig::from_url(&url).unwrap())
            .await
            .unwrap_err();
        assert!(
            matches!(error, BusError::Unreachable { .. }) && error.is_retryable(),
            "{error:?}"
        );
        let text = vbm_core::Error::from(error).to_string();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.contains("redis-server") && !text.contains("secret"),
            "{text}"
        );
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn something_that_is_not_redis_is_refused_and_does_not_hang() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    // Accepts and never answers.
    let mute = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let connecting = RedisTransport::connect(RedisConfig::from_url(&url).unwrap());
    let error = timeout(Duration::from_secs(20), connecting)
        .await
        .expect("it does not hang")
        .unwrap_err();
    assert!(matches!(error, BusError::Unreachable { .. }), "{error:?}");
    mute.abort();
}

#[tokio::test]
async fn a_server_that_wants_a_password_says_so() {
    if left_out() {
        return;
    }
    let server = RedisServer::with(&["--requirepass", "secret"]).await;
    let error = RedisTransport::connect(server.config()).await.unwrap_err();
    assert!(
        matches!(&error, BusError::Unsuitable { fix, .. } if fix.contains("password")),
        "{error:?}"
    );
    let url = format!("{}?pass=secret", server.url());
    RedisTransport::connect(RedisConfig::from_url(&url).unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_that_evicts_is_refused_and_one_without_a_disk_is_warned_of() {
    if left_out() {
        return;
    }
    let server = RedisServer::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let error = RedisTransport::connect(server.config()).await.unwrap_err();
    assert!(
        matches!(&error, BusError::Unsuitable { fix, .. } if fix.contains("noeviction")),
        "{error:?}"
    );
    assert!(RedisServer::start().await.transport().await.warnings()[0].contains("appendonly"));
    let keeping = RedisServer::with(&["--appendonly", "yes"]).await;
    assert!(keeping.transport().await.warnings().is_empty());
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_one_are_told() {
    if left_out() {
        return;
    }
    let server = Server::start(REDIS, "").await;
    server
        .ask(&["ACL", "SETUSER", "bus", "on", ">right", "~*", "+@all"])
        .await;
    for login in ["bus:secret", "nobody:secret"] {
        let error = refused(
            &format!("redis://{login}@{}", server.address()),
            BadInput::ServerPassword,
        )
        .await;
        assert!(
            error.why().contains("let this user in") && error.fix().contains("password"),
            "{error}"
        );
    }
    let url = format!("redis://bus:right@{}", server.address());
    RedisTransport::connect(RedisConfig::from_url(&url).unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_full_server_is_refused() {
    if left_out() {
        return;
    }
    let server = Server::start(REDIS, "maxmemory 100kb\nmaxmemory-policy noeviction").await;
    let error = refused(&format!("redis://{}", server.address()), BadInput::ServerFull).await;
    assert!(
        error.why().contains("memory is full") && error.fix().contains("maxmemory"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_without_a_place_for_another_client_is_refused() {
    if left_out() {
        return;
    }
    let server = Server::start(REDIS, "").await;
    server.ask(&["CONFIG", "SET", "maxclients", "1"]).await;
    let client = redis::Client::open(format!("redis://{}", server.address())).unwrap();
    let taken = common::sets::retry(async || client.get_multiplexed_async_connection().await.ok()).await;
    let error = refused(&format!("redis://{}", server.address()), BadInput::ServerFull).await;
    assert!(
        error.why().contains("no place") && error.fix().contains("maxclients"),
        "{error}"
    );
    drop(taken);
}

#[tokio::test]
async fn few_places_for_clients_are_warned_of() {
    if left_out() {
        return;
    }
    let server = Server::start(REDIS, "maxclients 20\nappendonly yes").await;
    let transport = RedisTransport::connect(server.config()).await.unwrap();
    assert!(transport.warnings().len() == 1 && transport.warnings()[0].contains("maxclients"));
}

#[tokio::test]
async fn a_replica_is_refused() {
    if left_out() {
        return;
    }
    let master = Server::start(REDIS, "").await;
    let replica = Server::start(REDIS, &format!("replicaof 127.0.0.1 {}", master.port)).await;
    let error = refused(&format!("redis://{}", replica.address()), BadInput::ServerReplica).await;
    assert!(error.why().contains("replica"), "{error}");
}

#[tokio::test]
async fn another_program_on_the_port_is_named_as_such() {
    for (what, greeting) in [
        (
            "a web server",
            "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        ),
        ("a login server", "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
        ("a mail server", "220 mail ESMTP\r\n"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let greeting = greeting.to_owned();
        let program = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(greeting.as_bytes()).await.unwrap();
                sleep(Duration::from_millis(200)).await;
            }
        });
        let error = refused(&url, BadInput::ServerOther).await;
        assert!(error.why().contains("another program"), "{what}: {error}");
        program.abort();
    }
}

struct Same;
impl Method for Same {
    const NAME: &'static str = "test.same";
    type Request = usize;
    type Reply = usize;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_fills_up_overloads_calls_until_there_is_room_again() {
    if left_out() {
        return;
    }
    let server = Server::start(REDIS, "maxmemory-policy noeviction").await;
    let transport = RedisTransport::connect(server.config()).await.unwrap();
    let router = Router::new().method::<Same, _, _>(|_context: Context, n: usize| async move { Ok(n) });
    let n1 = Bus::attach(transport.clone(), Member::new("n1".parse().unwrap(), "b"), router)
        .await
        .unwrap();
    let bus = Bus::attach(
        transport.clone(),
        Member::new("c1".parse().unwrap(), "b"),
        Router::new(),
    )
    .await
    .unwrap();
    let node = Route::node("n1".parse().unwrap());
    let call = || bus.call::<Same>(&node, &1, CallOptions::default().deadline(Duration::from_secs(5)));
    assert_eq!(call().await, Ok(1));
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let fate = call().await;
    assert!(
        matches!(&fate, Err(Fate::Overloaded { why, .. }) if why.contains("memory")),
        "{fate:?}"
    );
    assert!(bus.stats().bad_input.of(BadInput::ServerFull) > 0);
    let late = Bus::attach(
        transport.clone(),
        Member::new("c2".parse().unwrap(), "b"),
        Router::new(),
    )
    .await;
    assert!(late.unwrap_err().to_string().contains("memory is full"));
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(call().await, Ok(1));
    bus.shutdown().await;
    n1.shutdown().await;
}
