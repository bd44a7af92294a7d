//! TLS to Redis, one-sided and mutual, with certificates made here.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

mod common;

use common::{
    left_out,
    papers::Papers,
    sets::{MASTER, REDIS, Server, free_ports},
};
use std::{path::Path, time::Duration};
use tokio::time::timeout;
use vbm_rpc::{
    Bus, BusError, CallOptions, Context, Member, Method, Route, Router,
    redis::{RedisConfig, RedisTransport},
};

const PATIENCE: Duration = Duration::from_secs(30);

struct Same;
impl Method for Same {
    const NAME: &'static str = "test.same";
    type Request = usize;
    type Reply = usize;
}

/// A server with a TLS port besides the plain one.
async fn server(papers: &Papers, clients: &str) -> (Server, String) {
    let [tls] = free_ports();
    let server = Server::start(REDIS, &papers.configuration(tls, clients)).await;
    (server, format!("127.0.0.1:{tls}"))
}

async fn carries_a_call(config: RedisConfig) {
    let transport = RedisTransport::connect(config).await.unwrap();
    let router = Router::new().method::<Same, _, _>(|_context: Context, n: usize| async move { Ok(n) });
    let n1 = Bus::attach(transport.clone(), Member::new("n1".parse().unwrap(), "b"), router)
        .await
        .unwrap();
    let bus = Bus::attach(transport, Member::new("c1".parse().unwrap(), "b"), Router::new())
        .await
        .unwrap();
    let node = Route::node("n1".parse().unwrap());
    for n in 0..20 {
        assert_eq!(bus.call::<Same>(&node, &n, CallOptions::default()).await, Ok(n));
    }
    bus.shutdown().await;
    n1.shutdown().await;
}

async fn refused(config: RedisConfig) -> vbm_core::Error {
    let error = timeout(PATIENCE, RedisTransport::connect(config))
        .await
        .expect("it does not hang")
        .unwrap_err();
    assert!(
        matches!(
            error,
            BusError::Unsuitable { .. } | BusError::InvalidConfig { .. }
        ),
        "{error:?}"
    );
    error.into()
}

fn secure(address: &str) -> RedisConfig {
    RedisConfig::from_url(&format!("rediss://{address}")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_runs_over_tls_to_a_server_whose_authority_is_trusted() {
    if left_out() {
        return;
    }
    let papers = Papers::make();
    let (_server, address) = server(&papers, "no").await;
    carries_a_call(secure(&address).ca_file(papers.path("ca.pem"))).await;
    for config in [
        secure(&address),
        secure(&address).ca_file(papers.path("other-ca.pem")),
    ] {
        let error = refused(config).await;
        assert!(error.why().contains("trust"), "{error}");
    }
    // A name that is not in the certificate.
    let port = address.split_once(':').unwrap().1;
    let error = refused(secure(&format!("localhost:{port}")).ca_file(papers.path("ca.pem"))).await;
    assert!(error.why().contains("trust"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_a_certificate_gets_it() {
    if left_out() {
        return;
    }
    let papers = Papers::make();
    let (_server, address) = server(&papers, "yes").await;
    let config = || secure(&address).ca_file(papers.path("ca.pem"));
    carries_a_call(config().client_certificate(papers.path("client.pem"), papers.path("client.key"))).await;
    let error = refused(config()).await;
    assert!(error.why().contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_and_ports_that_do_not_fit_are_told() {
    if left_out() {
        return;
    }
    let papers = Papers::make();
    let (plain, address) = server(&papers, "no").await;
    let config = || secure(&address);
    let none = Path::new("/nonexistent/ca.pem");
    for (config, word) in [
        (config().ca_file(none), "/nonexistent/ca.pem cannot be read"),
        (
            config().ca_file(papers.path("server.key")),
            "holds no CERTIFICATE",
        ),
        (
            config().client_certificate(papers.path("client.key"), papers.path("client.pem")),
            "holds no CERTIFICATE",
        ),
        (
            config().client_certificate(papers.path("client.pem"), papers.path("client.pem")),
            "holds no PRIVATE KEY",
        ),
    ] {
        let error = refused(config).await;
        assert!(error.why().contains(word), "{error}");
    }
    let error = refused(plain.config().ca_file(papers.path("ca.pem"))).await;
    assert!(error.why().contains("rediss"), "{error}");
    // TLS to a plain port and the other way round: the server does not say why it is silent, so the message guesses.
    for (config, word) in [
        (
            secure(&plain.address()).ca_file(papers.path("ca.pem")),
            "write redis://",
        ),
        (
            RedisConfig::from_url(&format!("redis://{address}")).unwrap(),
            "write rediss://",
        ),
    ] {
        let error = timeout(PATIENCE, RedisTransport::connect(config))
            .await
            .unwrap()
            .unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_their_master_are_reached_over_tls() {
    if left_out() {
        return;
    }
    let papers = Papers::make();
    let [master_tls, sentinel_tls, sentinel_port] = free_ports();
    let _master = Server::start(REDIS, &papers.configuration(master_tls, "yes")).await;
    let client = format!(
        "tls-client-cert-file {}\ntls-client-key-file {}\ntls-replication yes\n",
        papers.path("client.pem").display(),
        papers.path("client.key").display()
    );
    let watch = format!("{client}sentinel monitor {MASTER} 127.0.0.1 {master_tls} 1\n");
    let configuration = papers.configuration(sentinel_tls, "yes") + &watch;
    let mut sentinel = Server::launch(REDIS, sentinel_port, true, &configuration);
    sentinel.ready().await;
    let config =
        RedisConfig::from_url(&format!("rediss+sentinel://127.0.0.1:{sentinel_tls}/{MASTER}")).unwrap();
    carries_a_call(
        config
            .ca_file(papers.path("ca.pem"))
            .client_certificate(papers.path("client.pem"), papers.path("client.key")),
    )
    .await;
}
