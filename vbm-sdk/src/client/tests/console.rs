use super::*;
use axum::{
    extract::ws::{CloseFrame, Message, WebSocketUpgrade, close_code},
    routing::get,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn echoing() -> Fake {
    let handler = async |upgrade: WebSocketUpgrade| {
        upgrade.on_upgrade(async |mut socket| {
            socket.send(Message::Binary("hello\r\n".into())).await.unwrap();
            while let Some(Ok(message)) = socket.recv().await {
                match message {
                    Message::Binary(bytes) if bytes.starts_with(b"bye") => break,
                    Message::Binary(bytes) => socket.send(Message::Binary(bytes)).await.unwrap(),
                    _ => {}
                }
            }
        })
    };
    serve(Router::new().route("/v1/vms/{vm}/console", get(handler)))
}

#[tokio::test]
async fn a_console_carries_bytes_both_ways_until_the_guest_ends() {
    let fake = echoing();
    let mut console = fake.client.vms().console("web1").await.unwrap();
    let mut greeting = [0; 7];
    console.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello\r\n");
    console.write_all(b"\x00\xffls\n").await.unwrap();
    console.flush().await.unwrap();
    let mut echo = [0; 5];
    console.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"\x00\xffls\n");
    console.write_all(b"bye").await.unwrap();
    console.flush().await.unwrap();
    assert_eq!(
        console.read(&mut echo).await.unwrap(),
        0,
        "the end of the console is the end of the stream"
    );
    assert_eq!(console.read(&mut echo).await.unwrap(), 0, "and stays it");
}

#[tokio::test]
async fn large_input_passes_in_messages_that_the_server_takes() {
    let fake = echoing();
    let console = fake.client.vms().console("web1").await.unwrap();
    let (mut from, mut to) = tokio::io::split(console);
    let sent: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let expected = sent.clone();
    let send = async move {
        to.write_all(&sent).await.unwrap();
        to.flush().await.unwrap();
        to
    };
    let mut greeting = [0; 7];
    from.read_exact(&mut greeting).await.unwrap();
    let mut echo = vec![0; expected.len()];
    let (_to, read) = tokio::join!(send, from.read_exact(&mut echo));
    read.unwrap();
    assert!(echo == expected);
}

#[tokio::test]
async fn a_console_that_breaks_off_says_why() {
    let handler = async |upgrade: WebSocketUpgrade| {
        upgrade.on_upgrade(async |mut socket| {
            let frame = CloseFrame {
                code: close_code::ERROR,
                reason: "the node is lost".into(),
            };
            socket.send(Message::Close(Some(frame))).await.unwrap();
        })
    };
    let fake = serve(Router::new().route("/v1/vms/{vm}/console", get(handler)));
    let mut console = fake.client.vms().console("web1").await.unwrap();
    let error = console.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.to_string(), "the node is lost");
    assert_eq!(console.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_console_that_is_refused_says_why() {
    let off = Error::new(
        ErrorKind::Conflict,
        "web1 is off",
        "a console needs a VM that runs",
        "start it",
    );
    let handler = async move || refuse(409, off.clone());
    let fake = serve(Router::new().route("/v1/vms/{vm}/console", get(handler)));
    let error = fake.client.vms().console("web1").await.unwrap_err();
    assert_eq!((error.kind(), error.what()), (ErrorKind::Conflict, "web1 is off"));
}

#[tokio::test]
async fn a_server_that_speaks_no_websocket_is_unsupported() {
    let fake = serve(Router::new().route("/v1/vms/{vm}/console", get(async || "hello")));
    let error = fake.client.vms().console("web1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
