//! Servers that answer with nonsense, or not to the end.

use super::*;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vbm_core::Outcome;

/// A server that reads a little, answers with these bytes and hangs up.
struct Nonsense(Vec<u8>);

#[async_trait]
impl Connect for Nonsense {
    async fn connect(&self) -> io::Result<BoxedIo> {
        let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
        let answer = self.0.clone();
        tokio::spawn(async move {
            let mut request = [0; 1024];
            if theirs.read(&mut request).await.is_ok() {
                let _sent = theirs.write_all(&answer).await;
            }
        });
        Ok(Box::new(ours))
    }
    fn place(&self) -> String {
        "nonsense".into()
    }
}

fn answering(bytes: impl Into<Vec<u8>>) -> Client {
    Client::new(Endpoint::in_process(Arc::new(Nonsense(bytes.into()))))
}

#[tokio::test]
async fn a_server_that_hangs_up_leaves_the_outcome_open_only_for_what_changes_something() {
    for cut in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"id\"",
        "HTTP/1.1 20",
    ] {
        let client = answering(cut);
        let read = client.groups().get("web").await.unwrap_err();
        assert_eq!(
            (read.kind(), read.outcome()),
            (ErrorKind::Unavailable, Outcome::NotApplied),
            "{cut}"
        );
        let change = client.groups().delete("web").await.unwrap_err();
        assert_eq!(
            (change.kind(), change.outcome()),
            (ErrorKind::Unavailable, Outcome::Unknown),
            "{cut}"
        );
    }
}

#[tokio::test]
async fn an_answer_of_another_form_is_corrupt() {
    let client = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    assert_eq!(
        client.vms().get("web1").await.unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let gateway = answering("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>");
    assert_eq!(
        gateway.vms().get("web1").await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_answer_makes_the_client_panic_or_hang(answer: Vec<u8>, honest in any::<bool>()) {
        let mut bytes = if honest { format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len()).into_bytes() } else { Vec::new() };
        bytes.extend(&answer);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = answering(bytes);
            assert!(client.vms().get("web1").await.is_err());
            assert!(client.vms().console("web1").await.is_err());
            let _events = client.events().open().next().await;
        });
    }
}
