//! HTTP/1.1 as text: nothing is added, nothing is corrected.

use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A request in the making.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    line: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Ask {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self {
            line: format!("{method} {path} HTTP/1.1"),
            headers: Vec::new(),
            body: String::new(),
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn json(mut self, body: serde_json::Value) -> Self {
        self.body = body.to_string();
        self.header("content-type", "application/json")
    }

    /// Sends it, and reads the head of the answer.
    pub(crate) async fn open(&self, address: SocketAddr) -> Stream {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            text.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        text.push_str("\r\n");
        text.push_str(&self.body);
        let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
        stream.write_all(text.as_bytes()).await.unwrap();
        let head = async {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                let count = stream.read_line(&mut head).await.unwrap();
                assert!(count > 0, "the connection ended within the head: {head:?}");
            }
            head
        };
        let head = tokio::time::timeout(ANSWER_MAX, head).await.unwrap();
        Stream { head, stream }
    }

    /// Sends it, and reads the whole answer.
    pub(crate) async fn send(&self, address: SocketAddr) -> Answer {
        let ask = self.clone().header("connection", "close");
        let mut open = ask.open(address).await;
        let mut body = Vec::new();
        tokio::time::timeout(ANSWER_MAX, open.stream.read_to_end(&mut body))
            .await
            .unwrap()
            .unwrap();
        Answer {
            body: String::from_utf8_lossy(&body).into_owned(),
            head: open.head,
        }
    }
}

/// An answer whose body is still coming.
pub(crate) struct Stream {
    pub(crate) head: String,
    pub(crate) stream: BufReader<TcpStream>,
}

impl Stream {
    pub(crate) fn status(&self) -> u16 {
        status(&self.head)
    }

    /// The next line; `None` at the end.
    pub(crate) async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = tokio::time::timeout(ANSWER_MAX, self.stream.read_line(&mut line))
            .await
            .expect("no line came")
            .unwrap_or(0);
        (count > 0).then_some(line)
    }
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        status(&self.head)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}
