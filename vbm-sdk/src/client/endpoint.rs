//! Where a server is, and how a connection to it is opened.

use async_trait::async_trait;
use std::{fmt, io, path::PathBuf, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};
use vbm_core::{Error, ErrorKind};

/// Where `vbmd` listens when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/vbm/vbmd.sock";

/// What a connection must be able to do: carry bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, whatever is beneath it.
pub type BoxedIo = Box<dyn Io>;

/// Opens connections to a server. The server at the other end speaks HTTP/1.1 on each of them.
///
/// A unix socket is one ([`Endpoint::unix`]); an embedded server gives another, whose connections are
/// [`tokio::io::DuplexStream`]s that never leave the process ([`Endpoint::in_process`]).
#[async_trait]
pub trait Connect: Send + Sync {
    /// Opens one connection.
    ///
    /// # Errors
    /// Whatever keeps it from being opened.
    ///
    /// # Cancel safety
    /// Dropping the future must leave no connection behind.
    async fn connect(&self) -> io::Result<BoxedIo>;

    /// Where the server is, for people: it stands in `cannot reach vbmd at ...`.
    fn place(&self) -> String;
}

/// Where a server is.
#[derive(Clone)]
pub struct Endpoint {
    connector: Arc<dyn Connect>,
}

impl Endpoint {
    /// The server that listens on the unix socket at `path`.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::unix_any([path])
    }

    /// A server that listens on several unix sockets, as the controllers of a cluster do: each connection goes to the first
    /// that takes it.
    pub fn unix_any(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let paths = paths.into_iter().map(Into::into).collect();
        Self::in_process(Arc::new(UnixSockets { paths }))
    }

    /// The server that `connector` reaches: one embedded in this process, or one behind a transport of your own.
    pub fn in_process(connector: Arc<dyn Connect>) -> Self {
        Self { connector }
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        self.connector.place()
    }

    /// Opens a connection; a failure says how to repair it.
    pub(super) async fn open(&self) -> Result<BoxedIo, Error> {
        self.connector
            .connect()
            .await
            .map_err(|error| unreachable(&self.place(), &error))
    }
}

impl Default for Endpoint {
    /// The unix socket at [`DEFAULT_SOCKET`].
    fn default() -> Self {
        Self::unix(DEFAULT_SOCKET)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.place()).finish()
    }
}

#[derive(Debug)]
struct UnixSockets {
    paths: Vec<PathBuf>,
}

#[async_trait]
impl Connect for UnixSockets {
    async fn connect(&self) -> io::Result<BoxedIo> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for path in &self.paths {
            match UnixStream::connect(path).await {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(e) => failure = e,
            }
        }
        Err(failure)
    }

    fn place(&self) -> String {
        let paths = self.paths.iter().map(|p| p.display().to_string());
        paths.collect::<Vec<_>>().join(" or ")
    }
}

/// Nothing was sent yet, so nothing was applied: the outcome is certain.
fn unreachable(place: &str, error: &io::Error) -> Error {
    let (kind, why, fix) = match error.kind() {
        io::ErrorKind::NotFound => (
            ErrorKind::Unavailable,
            "there is no such socket: vbmd does not run, or listens elsewhere".to_owned(),
            "start it with `vbmd`, or name its socket with --socket or VBM_SOCKET",
        ),
        io::ErrorKind::ConnectionRefused => (
            ErrorKind::Unavailable,
            "the socket is there, but nobody listens on it: vbmd has ended".to_owned(),
            "start it with `vbmd`, or name its socket with --socket or VBM_SOCKET",
        ),
        io::ErrorKind::PermissionDenied => (
            ErrorKind::PermissionDenied,
            "the socket's permissions do not let you in".to_owned(),
            "run the command as the user that vbmd runs as, for example with sudo",
        ),
        _ => (
            ErrorKind::Unavailable,
            error.to_string(),
            "start it with `vbmd`, or name its socket with --socket or VBM_SOCKET",
        ),
    };
    Error::new(kind, format!("cannot reach vbmd at {place}"), why, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_socket_is_unavailable_and_says_how_to_start_the_daemon() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("none.sock");
        let error = Endpoint::unix(&socket).open().await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.what(), format!("cannot reach vbmd at {}", socket.display()));
        assert!(error.fix().contains("start it with `vbmd`") && error.fix().contains("VBM_SOCKET"));
    }

    #[tokio::test]
    async fn a_connection_goes_to_the_first_socket_that_takes_it() {
        let place = tempfile::tempdir().unwrap();
        let paths = ["gone", "dead", "alive"].map(|name| place.path().join(name));
        drop(std::os::unix::net::UnixListener::bind(&paths[1]).unwrap());
        let _alive = tokio::net::UnixListener::bind(&paths[2]).unwrap();
        assert!(Endpoint::unix_any(&paths).open().await.is_ok());
        let error = Endpoint::unix_any(&paths[..2]).open().await.err().unwrap();
        assert!(error.what().contains("gone or "), "{error}");
    }

    #[tokio::test]
    async fn a_socket_nobody_listens_on_is_unavailable() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let error = Endpoint::unix(&socket).open().await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.why().contains("nobody listens"), "{}", error.why());
    }

    #[test]
    fn a_closed_door_is_permission_denied() {
        let error = unreachable("x", &io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
}
