//! Images, and the files that they are made of.

use super::{
    Client,
    call::{Call, Listing, bad_request, json, nothing, too_late},
    nouns::readable,
    path::ApiPath,
    transport,
};
use crate::api::{Blob, CreateImage};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use hyper::{Method, Request, header};
use std::{
    fmt,
    future::IntoFuture,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::fs::File;
use tokio_util::io::ReaderStream;
use vbm_core::{Error, ErrorKind, Image};

/// How long an upload may take when nobody says otherwise.
pub const UPLOAD_DEADLINE: Duration = Duration::from_secs(3_600);
/// How much of a file is read at once, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// Images.
#[derive(Clone, Debug)]
pub struct Images(pub(super) Client);

readable!(Images, "images", "image", Image);

impl Images {
    /// Sends a file; the answer names its content, for [`create`](Self::create). Sending what is there already does no harm.
    pub fn upload<'a>(&self, file: impl AsRef<Path>) -> Upload<'a> {
        Upload {
            client: self.0.clone(),
            file: file.as_ref().to_owned(),
            deadline: UPLOAD_DEADLINE,
            progress: Box::new(|_, _| {}),
        }
    }

    /// Makes an image of files that were uploaded.
    pub fn create(&self, request: CreateImage) -> Call<Image> {
        Call::new(&self.0, Method::POST, Ok(ApiPath::of("images")), json).with_json(&request)
    }

    /// Deletes one that no VM uses.
    pub fn delete(&self, image: impl AsRef<str>) -> Call<()> {
        Call::new(
            &self.0,
            Method::DELETE,
            ApiPath::one("images", "image", image.as_ref()),
            nothing,
        )
    }
}

/// An upload that was described: `.await` begins it.
///
/// # Errors
/// [`ErrorKind::NotFound`] and others when the file cannot be read; those of [`Call`].
///
/// # Cancel safety
/// Dropping the future cuts the upload off; the server throws away what came of it.
#[must_use = "an upload begins when it is awaited"]
pub struct Upload<'a> {
    client: Client,
    file: PathBuf,
    deadline: Duration,
    progress: Box<dyn FnMut(u64, u64) + Send + 'a>,
}

impl<'a> Upload<'a> {
    /// How long it may take. [`UPLOAD_DEADLINE`] when not said.
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Calls `progress` with the bytes sent and the bytes in all, some times a second.
    pub fn on_progress(mut self, progress: impl FnMut(u64, u64) + Send + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    async fn send(mut self) -> Result<Blob, Error> {
        let (file, total) = open(&self.file).await?;
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let chunks =
            ReaderStream::with_capacity(file, CHUNK_BYTES).inspect(move |chunk: &io::Result<Bytes>| {
                if let Ok(bytes) = chunk {
                    counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
            });
        let request = Request::builder()
            .method(Method::POST)
            .uri(ApiPath::of("blobs").into_text())
            .header(header::HOST, "vbmd")
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, total)
            .header(super::IDEMPOTENCY_KEY, self.client.new_key())
            .body(transport::streamed(chunks))
            .map_err(|e| bad_request(&e))?;
        let endpoint = self.client.endpoint();
        let exchange = async {
            let answer = transport::send(endpoint, request).await?;
            json(answer.bytes(&endpoint.place(), false).await?)
        };
        let mut exchange = std::pin::pin!(exchange);
        let mut tick = tokio::time::interval(PROGRESS_EVERY);
        loop {
            // The exchange is pinned outside and goes on; a dropped tick is no loss.
            tokio::select! {
                done = &mut exchange => {
                    (self.progress)(sent.load(Ordering::Relaxed), total);
                    return done;
                }
                _ = tick.tick() => (self.progress)(sent.load(Ordering::Relaxed), total),
            }
        }
    }
}

/// How often an upload tells how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

async fn open(path: &Path) -> Result<(File, u64), Error> {
    let refuse = |error: io::Error| cannot_read(path, &error);
    let file = File::open(path).await.map_err(refuse)?;
    let about = file.metadata().await.map_err(refuse)?;
    if about.is_dir() {
        return Err(cannot_read(path, &io::ErrorKind::IsADirectory.into()));
    }
    Ok((file, about.len()))
}

/// A file that cannot be read, in three lines.
pub(crate) fn cannot_read(path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::InvalidInput,
    };
    Error::new(
        kind,
        format!("cannot read {}", path.display()),
        error.to_string(),
        "name a file that exists and that you may read",
    )
}

impl<'a> IntoFuture for Upload<'a> {
    type Output = Result<Blob, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let deadline = self.deadline;
        async move {
            tokio::time::timeout(deadline, self.send())
                .await
                .unwrap_or_else(|_passed| Err(too_late(false, deadline)))
        }
        .boxed()
    }
}

impl fmt::Debug for Upload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}
