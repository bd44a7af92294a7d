//! A server with a page, a clock that the test moves, and a browser that is logged in or not.

use crate::{
    house::{House, PATIENCE, import, lan},
    raw::{Answer, Ask},
};
use futures::{SinkExt, StreamExt};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, tungstenite};
use tungstenite::{Message, client::IntoClientRequest, protocol::CloseFrame};
use vbm_core::{Clock, Timestamp};
use vbm_sdk::{
    client::Client,
    server::{Builder, Server},
    source::SystemClock,
};

/// The real time, and what the test adds to it.
#[derive(Debug, Default)]
pub(crate) struct MovedClock {
    ahead_seconds: AtomicU64,
}

impl Clock for MovedClock {
    fn now(&self) -> Timestamp {
        let ahead = self.ahead_seconds.load(Ordering::SeqCst);
        SystemClock.now().plus(Duration::from_secs(ahead))
    }
}

pub(crate) struct Site {
    pub(crate) house: House,
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    clock: Arc<MovedClock>,
}

impl Site {
    pub(crate) async fn open() -> Self {
        let house = House::new();
        let builder = house.builder();
        Self::open_on(house, builder).await
    }

    /// With drivers and networks of the test's own.
    pub(crate) async fn open_on(house: House, builder: Builder) -> Self {
        let clock = Arc::new(MovedClock::default());
        let builder = builder.clock(clock.clone());
        let server = builder.web("127.0.0.1:0".parse().unwrap()).start().await.unwrap();
        Self {
            client: server.client().unwrap(),
            address: server.web().unwrap(),
            house,
            server,
            clock,
        }
    }

    /// The same, with an image `tiny` and a network `lan`.
    pub(crate) async fn furnished() -> Self {
        let site = Self::open().await;
        site.furnish().await;
        site
    }

    pub(crate) async fn furnish(&self) {
        import(&self.client, self.house.dir.path()).await;
        lan(&self.client, "lan", "10.0.0.0/24").await;
    }

    pub(crate) fn later(&self, by: Duration) {
        self.clock.ahead_seconds.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    /// The path of a new login link.
    pub(crate) fn link(&self) -> String {
        let url = self.server.login_link().unwrap().url;
        let base = format!("http://{}", self.address);
        url.strip_prefix(&base).unwrap().to_owned()
    }

    /// A request with the right host.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Ask {
        Ask::new(method, path).header("host", self.address.to_string())
    }

    /// The cookie of a browser that logged in.
    pub(crate) async fn log_in(&self) -> String {
        let answer = self.ask("GET", &self.link()).send(self.address).await;
        assert_eq!(answer.status(), 303, "{answer:?}");
        let cookie = answer.header("set-cookie").unwrap();
        cookie.split(';').next().unwrap().to_owned()
    }

    /// A request as the page makes it.
    pub(crate) fn ask_as(&self, cookie: &str, method: &str, path: &str) -> Ask {
        self.ask(method, path)
            .header("origin", format!("http://{}", self.address))
            .header("cookie", cookie)
    }

    pub(crate) async fn get_as(&self, cookie: &str, path: &str) -> Answer {
        self.ask_as(cookie, "GET", path).send(self.address).await
    }

    /// A console token.
    pub(crate) async fn token(&self, cookie: &str, vm: &str, kind: &str) -> String {
        let ask = self.ask_as(cookie, "POST", &format!("/v1/vms/{vm}/console-tokens"));
        let answer = ask
            .json(serde_json::json!({ "kind": kind }))
            .send(self.address)
            .await;
        assert_eq!(answer.status(), 201, "{answer:?}");
        let token = answer.json();
        assert_eq!(token["kind"], kind);
        let url = token["url"].as_str().unwrap();
        assert_eq!(
            url,
            format!("/v1/console?token={}", token["token"].as_str().unwrap())
        );
        url.to_owned()
    }

    /// Opens a WebSocket as the page does.
    pub(crate) async fn socket(&self, cookie: &str, path: &str) -> Result<Socket, tungstenite::Error> {
        let mut request = format!("ws://{}{path}", self.address)
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        headers.insert("origin", format!("http://{}", self.address).parse().unwrap());
        headers.insert("cookie", cookie.parse().unwrap());
        headers.insert("sec-websocket-protocol", "binary".parse().unwrap());
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (socket, answer) = tokio_tungstenite::client_async(request, stream).await?;
        assert_eq!(answer.headers()["sec-websocket-protocol"], "binary");
        Ok(Socket { socket })
    }

    /// A console of a VM.
    pub(crate) async fn console(&self, cookie: &str, vm: &str, kind: &str) -> Socket {
        let path = self.token(cookie, vm, kind).await;
        self.socket(cookie, &path).await.unwrap()
    }
}

/// An open WebSocket.
pub(crate) struct Socket {
    socket: WebSocketStream<TcpStream>,
}

impl Socket {
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        self.socket
            .send(Message::Binary(bytes.to_vec().into()))
            .await
            .unwrap();
    }

    /// Reads bytes until they end with this.
    pub(crate) async fn hear(&mut self, end: &[u8]) -> Vec<u8> {
        self.hear_until(|heard| heard.ends_with(end)).await
    }

    /// Reads so many bytes.
    pub(crate) async fn hear_at_least(&mut self, count: usize) -> Vec<u8> {
        self.hear_until(|heard| heard.len() >= count).await
    }

    async fn hear_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut heard = Vec::new();
        let hear = async {
            while !enough(&heard) {
                match self.socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => heard.extend_from_slice(&bytes),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        let done = tokio::time::timeout(PATIENCE, hear).await;
        assert!(done.is_ok(), "heard only {:?}", String::from_utf8_lossy(&heard));
        heard
    }

    /// Reads to the end: why it was closed.
    pub(crate) async fn closed(&mut self) -> CloseFrame {
        let end = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => return frame,
                    Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, end).await.expect("it stays open")
    }
}
