//! Controller and agent as two, over a real Redis.

use crate::{
    house::{PATIENCE, import, lan, launch, through, unlist, until},
    redis_server::{DURABLE, Redis},
};
use futures::{SinkExt, StreamExt};
use std::{sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};
use vbm_core::{ErrorKind, PowerState};
use vbm_hyper::{SimDriver, SimWorld};
use vbm_net::SimNetwork;
use vbm_sdk::{
    api::PowerAction,
    server::{Role, Server},
    source::SystemClock,
};

async fn controller(redis: &Redis, dir: &std::path::Path) -> Server {
    let builder = Server::builder(dir.join("controller"))
        .run_dir(dir.join("run-c"))
        .role(Role::Controller)
        .web("127.0.0.1:0".parse().unwrap())
        .ephemeral(true);
    builder.redis(redis.url()).start().await.unwrap()
}

async fn agent(redis: &Redis, dir: &std::path::Path, world: &SimWorld) -> Server {
    Server::builder(dir.join("agent"))
        .run_dir(dir.join("run-a"))
        .role(Role::Agent)
        .ephemeral(true)
        .redis(redis.url())
        .node("lab/rack1/n1".parse().unwrap())
        .with_drivers(vec![Arc::new(SimDriver::open(world.clone()).unwrap())])
        .with_networks(Arc::new(SimNetwork::new(Arc::new(SystemClock))))
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_controller_and_an_agent_do_the_same_over_redis() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::instant();
    let brain = controller(&redis, dir.path()).await;
    let hand = agent(&redis, dir.path(), &world).await;
    let client = brain.client().unwrap();
    import(&client, dir.path()).await;
    lan(&client, "lan", "10.0.0.0/24").await;
    let vm = launch(&client, "web").await;
    assert_eq!(vm.vm.spec.node, Some("lab/rack1/n1".parse().unwrap()));

    hand.shutdown().await;
    let hand = agent(&redis, dir.path(), &world).await;
    until(&client, "web", |v| v.vm.status.power == PowerState::Running).await;
    through(&client, client.vms().power("web", PowerAction::Stop).await)
        .await
        .unwrap();
    through(&client, client.vms().delete("web").await).await.unwrap();
    hand.shutdown().await;
    brain.shutdown().await;
    unlist(&dir.path().join("agent"));
}

/// Opens a console of the VM `web` as the page does.
async fn console(brain: &Server, kind: &str) -> WebSocketStream<tokio::net::TcpStream> {
    let address = brain.web().unwrap();
    let ask = |request: String| async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("Host: {address}\r\nOrigin: http://{address}\r\nConnection: close\r\n");
        let request = request.replacen("\r\n", &format!(" HTTP/1.1\r\n{head}"), 1);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let part = |text: &str, from: &str, to: char| {
        let rest = text
            .split_once(from)
            .unwrap_or_else(|| panic!("no {from} in {text}"))
            .1;
        rest.split(to).next().unwrap().to_owned()
    };
    let link = brain.login_link().unwrap().url;
    let login = ask(format!("GET /login?{}\r\n\r\n", link.split_once('?').unwrap().1)).await;
    let cookie = part(&login, "set-cookie: ", ';');
    let body = format!("{{\"kind\":\"{kind}\"}}");
    let token = ask(format!(
        "POST /v1/vms/web/console-tokens\r\nCookie: {cookie}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await;
    let url = format!("ws://{address}{}", part(&token, "\"url\":\"", '"'));
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("origin", format!("http://{address}").parse().unwrap());
    headers.insert("cookie", cookie.parse().unwrap());
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

#[tokio::test]
async fn consoles_of_a_browser_reach_the_node_over_redis_and_close_with_it() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::instant();
    let brain = controller(&redis, dir.path()).await;
    let hand = agent(&redis, dir.path(), &world).await;
    let client = brain.client().unwrap();
    import(&client, dir.path()).await;
    lan(&client, "lan", "10.0.0.0/24").await;
    let vm = launch(&client, "web").await.vm.meta.id;
    for (kind, typed, expected) in [
        ("vnc", "RFB 003.008\n", "it has no screen"),
        ("serial", "echo hello\n", "hello\r\n/ # "),
    ] {
        let mut socket = console(&brain, kind).await;
        socket.send(Message::Binary(typed.into())).await.unwrap();
        let mut heard = Vec::new();
        let hear = async {
            while !heard.ends_with(expected.as_bytes()) {
                match socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => heard.extend_from_slice(&bytes),
                    Some(Ok(Message::Ping(_))) => {}
                    other => panic!("{kind}: {other:?}"),
                }
            }
        };
        assert!(
            tokio::time::timeout(PATIENCE, hear).await.is_ok(),
            "{kind}: {heard:?}"
        );
        drop(socket);
        let gone = async {
            while world.viewers(vm) != (0, 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }
    brain.shutdown().await;
    hand.shutdown().await;
    unlist(&dir.path().join("agent"));
}

#[tokio::test]
async fn a_console_outlives_a_redis_that_is_killed_and_started_again() {
    let Some(mut redis) = Redis::with(DURABLE) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::instant();
    let brain = controller(&redis, dir.path()).await;
    let hand = agent(&redis, dir.path(), &world).await;
    let client = brain.client().unwrap();
    import(&client, dir.path()).await;
    lan(&client, "lan", "10.0.0.0/24").await;
    launch(&client, "web").await;
    let mut socket = console(&brain, "serial").await;
    let mut heard = Vec::new();
    for word in ["before", "after"] {
        if word == "after" {
            redis.kill();
            redis.restart();
        }
        let typed = format!("echo {word}\n");
        socket.send(Message::Binary(typed.into())).await.unwrap();
        let answer = format!("\r\n{word}\r\n/ # ");
        let hear = async {
            while !heard.ends_with(answer.as_bytes()) {
                match socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => heard.extend_from_slice(&bytes),
                    Some(Ok(Message::Ping(_))) => {}
                    other => panic!("{word}: {other:?}"),
                }
            }
        };
        let there = tokio::time::timeout(2 * PATIENCE, hear).await.is_ok();
        assert!(there, "{word}: {:?}", String::from_utf8_lossy(&heard));
    }
    // All that the guest said, nothing missing and nothing twice.
    let said = client.vms().console_log("web", None).await.unwrap();
    assert_eq!(heard, said);
    drop(socket);
    brain.shutdown().await;
    hand.shutdown().await;
    unlist(&dir.path().join("agent"));
}

#[tokio::test]
async fn a_controller_without_redis_says_so_in_three_lines() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Server::builder(dir.path().join("c"))
        .run_dir(dir.path().join("r"))
        .role(Role::Controller)
        .ephemeral(true);
    let error = builder
        .redis(format!("redis+unix://{}", dir.path().join("none").display()))
        .start()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(error.to_string().lines().count(), 3, "{error}");
}
