//! A web server of the test, which breaks off, changes its mind and lies.

use super::*;
use std::sync::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use vbm_hyper::{Expected, ImageStore, OpCx};

/// Answers each request with what `answer` makes of its head; ended when dropped.
struct Server {
    address: String,
    task: JoinHandle<()>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn server(answer: impl Fn(usize, &str) -> Vec<u8> + Send + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = String::new();
            let mut lines = BufReader::new(&mut stream);
            while lines.read_line(&mut head).await.unwrap() > 2 {}
            let number = seen.lock().unwrap().len();
            let bytes = answer(number, &head);
            seen.lock().unwrap().push(head.to_ascii_lowercase());
            // Whoever has heard enough may hang up.
            drop(stream.write_all(&bytes).await);
        }
    });
    Server { address, task, heads }
}

fn content() -> Vec<u8> {
    (0..300_000_u32 / 512 * 512)
        .map(|n| n.to_le_bytes()[1] | 1)
        .collect()
}

fn whole(extra: &str, bytes: &[u8], sent: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{extra}\r\n",
        bytes.len()
    );
    [head.as_bytes(), &bytes[..sent]].concat()
}

async fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).await.unwrap();
    (dir, store)
}

#[tokio::test]
async fn an_import_that_broke_goes_on_with_range_and_if_range() {
    let bytes = content();
    let web = server(move |number, head| match number {
        0 => whole("ETag: \"v1\"\r\n", &content(), 100_000),
        _ => {
            assert!(head.contains("bytes=100000-"), "{head}");
            let (bytes, rest) = (content(), content().split_off(100_000));
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nETag: \"v1\"\r\nContent-Range: bytes 100000-{}/{}\r\n\r\n",
                rest.len(),
                bytes.len() - 1,
                bytes.len()
            );
            [head.into_bytes(), rest].concat()
        }
    })
    .await;
    let (_dir, store) = store().await;
    let source = UrlSource::new(&format!("{}/disk.raw?token=secret", web.address)).unwrap();
    assert!(!source.name().contains("secret"));
    let found = store
        .import_from(&OpCx::new(), &source, &Expected::default())
        .await
        .unwrap();
    assert_eq!(
        std::fs::read(store.path(found.kept.digest).unwrap()).unwrap(),
        bytes
    );
    let heads = web.heads.lock().unwrap().clone();
    assert_eq!(heads.len(), 2);
    assert!(heads[0].starts_with("get /disk.raw?token=secret") && !heads[0].contains("range"));
    assert!(heads[1].contains("if-range: \"v1\""), "{}", heads[1]);
}

#[tokio::test]
async fn content_that_changed_meanwhile_is_fetched_anew() {
    let web = server(move |number, _| match number {
        0 => whole("ETag: \"v1\"\r\n", &[7; 51_200], 10_000),
        _ => whole("ETag: \"v2\"\r\n", &content(), content().len()),
    })
    .await;
    let (_dir, store) = store().await;
    let source = UrlSource::new(&web.address).unwrap();
    let found = store
        .import_from(&OpCx::new(), &source, &Expected::default())
        .await
        .unwrap();
    assert_eq!(
        std::fs::read(store.path(found.kept.digest).unwrap()).unwrap(),
        content()
    );
}

#[tokio::test]
async fn redirects_are_followed_and_refusals_are_final() {
    let web = server(move |_, head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path {
            "/here" => b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "/there" => whole("", &content(), content().len()),
            "/round" => b"HTTP/1.1 301 Moved\r\nLocation: /round\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "/file" => {
                b"HTTP/1.1 301 Moved\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n".to_vec()
            }
            "/secret" => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_vec(),
            _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        }
    })
    .await;
    let (_dir, store) = store().await;
    let (store, web) = (&store, &web);
    let bring = |path: &'static str| async move {
        let source = UrlSource::new(&format!("{}{path}", web.address)).unwrap();
        store
            .import_from(&OpCx::new(), &source, &Expected::default())
            .await
    };
    bring("/here").await.unwrap();
    for (path, kind, word) in [
        ("/round", ErrorKind::InvalidInput, "5 times"),
        ("/file", ErrorKind::InvalidInput, "leads on"),
        ("/secret", ErrorKind::PermissionDenied, "everybody"),
        ("/none", ErrorKind::NotFound, "nothing"),
    ] {
        let asked = web.heads.lock().unwrap().len();
        let error = Error::from(bring(path).await.unwrap_err());
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.why().contains(word), "{error}");
        let again = web.heads.lock().unwrap().len() - asked;
        assert!(
            again <= 6,
            "{path}: what is refused is not asked for again and again"
        );
    }
}

#[test]
fn an_address_that_is_none_is_refused() {
    for text in [
        "ftp://host/disk",
        "http://",
        "https://user:password@host/disk",
        "disk.raw",
        "http://host:x/",
    ] {
        assert_eq!(
            UrlSource::new(text).unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{text}"
        );
    }
    assert_eq!(range("bytes 5-9/10"), Some((Some(5), Some(10))));
    assert_eq!(range("bytes */10"), Some((None, Some(10))));
    assert_eq!(range("bytes 5-9/*"), Some((Some(5), None)));
    assert_eq!(range("lines 5"), None);
}

#[tokio::test]
async fn what_was_all_here_is_not_fetched_again() {
    let web =
        server(|_, _| b"HTTP/1.1 416 No\r\nContent-Range: bytes */512\r\nContent-Length: 0\r\n\r\n".to_vec())
            .await;
    let source = UrlSource::new(&web.address).unwrap();
    let mut answer = source.open(512, Some("\"v1\"")).await.unwrap();
    let mut rest = Vec::new();
    answer.body.read_to_end(&mut rest).await.unwrap();
    assert_eq!(
        (answer.from_byte, answer.total_bytes, rest.len()),
        (512, Some(512), 0)
    );
    assert!(source.open(511, None).await.is_err());
}
