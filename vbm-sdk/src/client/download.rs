//! Images that are fetched as files.

use super::{
    Client,
    call::{bad_request, too_late},
    images::Images,
    path::ApiPath,
    transport,
};
use futures::{FutureExt, future::BoxFuture};
use http_body_util::BodyExt;
use hyper::{Method, Request, header};
use std::{
    fmt,
    future::IntoFuture,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{fs::File, io::AsyncWriteExt};
use vbm_core::{Error, ErrorKind};

/// How long a download may take when nobody says otherwise.
pub const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(3_600);

impl Images {
    /// Writes the disk of an image into a new file, in the format that it is kept in.
    pub fn download<'a>(&self, image: impl AsRef<str>, file: impl AsRef<Path>) -> Download<'a> {
        Download {
            client: self.0.clone(),
            image: image.as_ref().to_owned(),
            format: None,
            file: file.as_ref().to_owned(),
            deadline: DOWNLOAD_DEADLINE,
            progress: Box::new(|_| {}),
        }
    }
}

/// A download that was described: `.await` begins it and gives the number of bytes.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] and others when the file cannot be written; those of [`super::Call`]. Nothing is left of the file.
///
/// # Cancel safety
/// Dropping the future cuts the download off; nothing is left of the file.
#[must_use = "a download begins when it is awaited"]
pub struct Download<'a> {
    client: Client,
    image: String,
    format: Option<String>,
    file: PathBuf,
    deadline: Duration,
    progress: Box<dyn FnMut(u64) + Send + 'a>,
}

impl<'a> Download<'a> {
    /// In another format: `qcow2`, `raw` or `vdi`.
    pub fn format(mut self, format: Option<impl Into<String>>) -> Self {
        self.format = format.map(Into::into);
        self
    }

    /// How long it may take. [`DOWNLOAD_DEADLINE`] when not said.
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Calls `progress` with the bytes that came, for each piece.
    pub fn on_progress(mut self, progress: impl FnMut(u64) + Send + 'a) -> Self {
        self.progress = Box::new(progress);
        self
    }

    async fn fetch(mut self) -> Result<u64, Error> {
        let path = ApiPath::one("images", "image", &self.image)?
            .sub("disk")
            .query("format", self.format.as_ref());
        let request = Request::builder()
            .method(Method::GET)
            .uri(path.into_text())
            .header(header::HOST, "vbmd")
            .body(transport::empty())
            .map_err(|e| bad_request(&e))?;
        let mut part = Part::new(&self.file).await?;
        let endpoint = self.client.endpoint();
        let transport::Answer { response, driver } = transport::send(endpoint, request).await?;
        let (mut body, mut bytes) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| transport::cut_off(&endpoint.place(), true, &e))?;
            if let Ok(piece) = frame.into_data() {
                part.write(&piece).await?;
                bytes += piece.len() as u64;
                (self.progress)(bytes);
            }
        }
        drop(driver);
        part.keep().await?;
        Ok(bytes)
    }
}

/// The file while it is not whole; it goes unless it is kept.
struct Part {
    to: PathBuf,
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Part {
    async fn new(to: &Path) -> Result<Self, Error> {
        if to.symlink_metadata().is_ok() {
            return Err(cannot_write(to, &io::ErrorKind::AlreadyExists.into()));
        }
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        let path = to.with_file_name(name);
        let file = File::create_new(&path)
            .await
            .map_err(|e| cannot_write(&path, &e))?;
        Ok(Self {
            to: to.to_owned(),
            path,
            file,
            kept: false,
        })
    }

    async fn write(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.file
            .write_all(piece)
            .await
            .map_err(|e| cannot_write(&self.path, &e))
    }

    async fn keep(mut self) -> Result<(), Error> {
        let kept = async {
            self.file.flush().await?;
            self.file.sync_all().await?;
            // A hard link does not replace what came there meanwhile, as a rename would.
            tokio::fs::hard_link(&self.path, &self.to).await?;
            tokio::fs::remove_file(&self.path).await
        };
        kept.await.map_err(|e| cannot_write(&self.to, &e))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a part of a download stays behind");
        }
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::InvalidInput,
    };
    Error::new(
        kind,
        format!("cannot write {}", path.display()),
        error.to_string(),
        "name a new file in a directory that you may write",
    )
}

impl<'a> IntoFuture for Download<'a> {
    type Output = Result<u64, Error>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let deadline = self.deadline;
        async move {
            tokio::time::timeout(deadline, self.fetch())
                .await
                .unwrap_or_else(|_passed| Err(too_late(true, deadline)))
        }
        .boxed()
    }
}

impl fmt::Debug for Download<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("image", &self.image)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}
