//! The unix socket that the API is served on: who may connect, and one daemon per socket.
//!
//! The socket's file is open to its owner only (0600), and each peer's user id is checked besides
//! (`SO_PEERCRED`): root and the daemon's own user may do everything, nobody else anything.

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Error, ErrorKind, Result};

/// The longest path of a unix socket, in bytes (unix(7): 108 with the final zero).
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// The longest that a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After the kernel refused a connection (no file descriptors left).
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// How long requests that are under way may take when the daemon ends.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// A bound socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Binds the socket. A file left by a daemon that is gone is replaced; one that answers is left alone.
    pub(crate) async fn bind(path: &Path) -> Result<Self> {
        let refuse = |kind, why: String, fix: &str| {
            Error::new(kind, format!("cannot serve on {}", path.display()), why, fix)
        };
        if path.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
            return Err(refuse(
                ErrorKind::InvalidInput,
                format!("the path is longer than {SOCKET_PATH_MAX_BYTES} bytes"),
                "choose a shorter --socket",
            ));
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(|e| {
                refuse(
                    kind_of(&e),
                    format!("{}: {e}", dir.display()),
                    "choose a --socket in a directory you may write",
                )
            })?;
        }
        match UnixStream::connect(path).await {
            Ok(_) => {
                return Err(refuse(
                    ErrorKind::Conflict,
                    "another vbmd answers there".into(),
                    "stop that one, or give this one another --socket and --data-dir",
                ));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => remove_stale(path).map_err(|e| {
                refuse(
                    kind_of(&e),
                    e.to_string(),
                    "remove the file, or choose another --socket",
                )
            })?,
        }
        let bind = || {
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            Ok::<_, io::Error>((listener, inode(path)?))
        };
        let (listener, inode) = bind().map_err(|e| {
            refuse(
                kind_of(&e),
                e.to_string(),
                "choose a --socket in a directory you may write",
            )
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode,
        })
    }

    /// Serves until `stop`, then lets requests under way end.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(e) => {
                        tracing::warn!(error = %e, "a connection could not be accepted");
                        tokio::select! {
                            () = tokio::time::sleep(ACCEPT_RETRY) => continue,
                            () = stop.cancelled() => break,
                        }
                    }
                },
                () = stop.cancelled() => break,
            };
            match stream.peer_cred() {
                Ok(peer) if may_connect(peer.uid()) => {
                    connections.spawn(serve_stream(stream, router.clone(), stop.clone()));
                }
                Ok(peer) => tracing::warn!(uid = peer.uid(), "a user who may not was refused"),
                Err(e) => tracing::warn!(error = %e, "a client could not be recognised and was refused"),
            }
        }
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
            tracing::warn!(left = connections.len(), "requests under way were broken off");
        }
    }
}

impl Drop for Socket {
    /// Removes the file, unless somebody else has replaced it.
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|now| now == self.inode)
            && let Err(e) = fs::remove_file(&self.path)
        {
            tracing::warn!(error = %e, path = %self.path.display(), "the socket's file stays");
        }
    }
}

/// Serves HTTP on one stream; also for clients inside the process.
pub(crate) async fn serve_stream(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    stop: CancellationToken,
) {
    let mut builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, connection).await {
                Ok(done) => done,
                Err(_) => return tracing::warn!("a request under way was broken off"),
            }
        }
    };
    if let Err(e) = done {
        tracing::debug!(error = %e, "a client went away");
    }
}

fn may_connect(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

fn inode(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map(|m| m.ino())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket",
        ));
    }
    fs::remove_file(path)
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::AlreadyExists => ErrorKind::Conflict,
        _ => ErrorKind::Unavailable,
    }
}
