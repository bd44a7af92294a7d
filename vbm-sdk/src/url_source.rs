//! Images that lie on a web server: read in one go, or from the byte at which an earlier try broke off.
//!
//! ```text
//!   GET /disk.qcow2                  200  ETag: "a"           all of it
//!   Range: bytes=N-, If-Range: "a"   206  Content-Range: ...  what follows N
//!                                    200                      other content now: all of it
//!                                    416  bytes */N           nothing follows: all of it was here
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, Uri, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::io::StreamReader;
use vbm_core::{Error, ErrorKind};
use vbm_hyper::{ImageSource, SourceAnswer};

/// How long a server may take to be connected to.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How often an address may lead to another one.
const REDIRECTS_MAX: usize = 5;

/// An image on a web server.
#[derive(Debug)]
pub(crate) struct UrlSource {
    uri: Uri,
}

impl UrlSource {
    /// Whether a text is the address of something on the web, and not the name of a file.
    pub(crate) fn is_one(text: &str) -> bool {
        text.starts_with("http://") || text.starts_with("https://")
    }

    /// # Errors
    /// It is no address of http or https, or it bears a password.
    pub(crate) fn new(text: &str) -> Result<Self, Error> {
        let refuse = |why: String| {
            Err(Error::new(
                ErrorKind::InvalidInput,
                "this address cannot be imported from",
                why,
                "give an address as https://HOST/PATH",
            ))
        };
        let uri: Uri = match text.parse() {
            Ok(uri) => uri,
            Err(error) => return refuse(format!("it is not understood: {error}")),
        };
        match check(&uri) {
            Ok(()) => Ok(Self { uri }),
            Err(why) => refuse(why),
        }
    }
}

fn check(uri: &Uri) -> Result<(), String> {
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("it is neither of http nor of https".into());
    }
    let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
        return Err("it names no host".into());
    };
    if authority.as_str().contains('@') {
        return Err("it bears a user or a password, which would be seen in lists of processes".into());
    }
    match authority.as_str() != authority.host() && authority.port_u16().is_none() {
        true => Err("its port is no number up to 65,535".into()),
        false => Ok(()),
    }
}

/// An address for people: what follows `?` may be a secret.
fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let host = uri.authority().map_or("", |authority| authority.as_str());
    format!("{scheme}://{host}{}", uri.path())
}

fn broken(uri: &Uri, why: impl std::fmt::Display) -> vbm_hyper::Error {
    vbm_hyper::Error::Source(io::Error::other(format!("{}: {why}", shown(uri))))
}

fn refused(uri: &Uri, kind: ErrorKind, why: impl Into<String>) -> vbm_hyper::Error {
    vbm_hyper::Error::Refused(Error::new(
        kind,
        format!("{} cannot be imported", shown(uri)),
        why,
        "open the address in a browser, and compare",
    ))
}

#[async_trait]
impl ImageSource for UrlSource {
    fn name(&self) -> String {
        shown(&self.uri)
    }

    fn key(&self) -> String {
        self.uri.to_string()
    }

    async fn open(&self, from_byte: u64, validator: Option<&str>) -> vbm_hyper::Result<SourceAnswer> {
        let mut uri = self.uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let (response, driver) = ask(&uri, from_byte, validator).await?;
            if response.status().is_redirection() {
                uri = elsewhere(&uri, &response)?;
                continue;
            }
            return answer(&uri, from_byte, response, driver);
        }
        let why = format!("it leads on more than {REDIRECTS_MAX} times");
        Err(refused(&self.uri, ErrorKind::InvalidInput, why))
    }
}

fn elsewhere(from: &Uri, response: &Response<Incoming>) -> vbm_hyper::Result<Uri> {
    let bad = |why: &str| refused(from, ErrorKind::InvalidInput, why);
    let to = word(response, header::LOCATION).ok_or_else(|| bad("it leads on without saying where"))?;
    let to: Uri = to
        .parse()
        .map_err(|_| bad("it leads on to something that is no address"))?;
    let mut parts = to.into_parts();
    parts.scheme = parts.scheme.or_else(|| from.scheme().cloned());
    parts.authority = parts.authority.or_else(|| from.authority().cloned());
    let to = Uri::from_parts(parts).map_err(|_| bad("it leads on to something that is no address"))?;
    check(&to).map_err(|why| bad(&format!("it leads on to an address that is not taken: {why}")))?;
    match (from.scheme_str(), to.scheme_str()) {
        (Some("https"), Some("http")) => Err(bad("it leads on from https to http")),
        _ => Ok(to),
    }
}

/// Moves the bytes of a connection; ended when dropped.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn connect(uri: &Uri) -> io::Result<Box<dyn Io>> {
    let host = uri.host().unwrap_or_default();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let plain_host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((plain_host.as_str(), port)).await?;
    if !secure {
        return Ok(Box::new(stream));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(plain_host).map_err(io::Error::other)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(Box::new(connector.connect(name, stream).await?))
}

async fn ask(
    uri: &Uri,
    from_byte: u64,
    validator: Option<&str>,
) -> vbm_hyper::Result<(Response<Incoming>, Driver)> {
    let stream = timeout(CONNECT_DEADLINE, connect(uri))
        .await
        .map_err(|_| broken(uri, "it does not take a connection"))?
        .map_err(|error| broken(uri, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(uri, error))?;
    let driver = Driver(tokio::spawn(async move {
        // Whoever reads the answer gets the same failure.
        let _ended: Result<(), hyper::Error> = connection.await;
    }));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("vbm/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT_ENCODING, "identity");
    if from_byte > 0 {
        request = request.header(header::RANGE, format!("bytes={from_byte}-"));
        if let Some(validator) = validator {
            request = request.header(header::IF_RANGE, validator);
        }
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| refused(uri, ErrorKind::InvalidInput, error.to_string()))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(uri, error))?;
    Ok((response, driver))
}

fn word(response: &Response<Incoming>, name: header::HeaderName) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

/// What `Content-Range` says: the first byte, if any, and how many there are in all.
fn range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (part, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let first = match part {
        "*" => None,
        part => Some(part.split_once('-')?.0.parse().ok()?),
    };
    Some((first, total.parse().ok()))
}

fn answer(
    uri: &Uri,
    from_byte: u64,
    response: Response<Incoming>,
    driver: Driver,
) -> vbm_hyper::Result<SourceAnswer> {
    // A weak ETag says that content is as good as the same, which is not enough here.
    let tag = word(&response, header::ETAG).filter(|tag| !tag.starts_with("W/"));
    let validator = tag.or_else(|| word(&response, header::LAST_MODIFIED));
    let told = word(&response, header::CONTENT_RANGE).and_then(|text| range(&text));
    let (from, total) = match (response.status(), told) {
        (StatusCode::OK, _) => {
            let length = word(&response, header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
            (0, length)
        }
        (StatusCode::PARTIAL_CONTENT, Some((Some(first), total))) => (first, total),
        (StatusCode::RANGE_NOT_SATISFIABLE, Some((None, Some(total)))) if total == from_byte => {
            let nothing = Box::new(tokio::io::empty());
            return Ok(SourceAnswer::new(from_byte, Some(total), validator, nothing));
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, _) => {
            return Err(refused(
                uri,
                ErrorKind::Conflict,
                "it is shorter now than what came of it before",
            ));
        }
        (StatusCode::NOT_FOUND | StatusCode::GONE, _) => {
            return Err(refused(
                uri,
                ErrorKind::NotFound,
                "there is nothing at that address",
            ));
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            return Err(refused(
                uri,
                ErrorKind::PermissionDenied,
                "the server does not give it to everybody",
            ));
        }
        (status, _) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(broken(uri, format!("the server answers with {status}")));
        }
        (status, _) => {
            let why = format!("the server answers with {status}");
            return Err(refused(uri, ErrorKind::InvalidInput, why));
        }
    };
    let body = BodyExt::map_err(response.into_body(), io::Error::other).into_data_stream();
    let body = Box::new(Body {
        reader: StreamReader::new(body),
        _driver: driver,
    });
    Ok(SourceAnswer::new(from, total, validator, body))
}

/// A body, and what moves its bytes.
struct Body<R> {
    reader: R,
    _driver: Driver,
}

impl<R: AsyncRead + Unpin> AsyncRead for Body<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, into)
    }
}

#[cfg(test)]
mod tests;
