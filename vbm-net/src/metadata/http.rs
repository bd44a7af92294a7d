//! The little of HTTP/1 that is spoken here: heads read, answers written. Pure.

use super::{BODY_MAX_BYTES, HEAD_MAX_BYTES, HEAD_MAX_FIELDS, PATH_MAX_BYTES};

/// A method that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the name of a method")]
pub enum Method {
    Get,
    Head,
    Put,
    /// Any other.
    Other,
}

/// A request without its body, as far as anything here looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What is to be done.
    pub method: Method,
    /// With what: the path, without a query.
    pub path: String,
    /// Which host it thinks it asks.
    pub host: Option<String>,
    /// The token it shows.
    pub token: Option<Vec<u8>>,
    /// How long a new token shall live, as it was written.
    pub token_ttl: Option<String>,
    /// Whether a proxy says that it passed the request on.
    pub proxied: bool,
    /// The bytes that follow as its body.
    pub body_bytes: usize,
    /// Whether the connection may go on.
    pub keep_alive: bool,
}

/// What came of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// A request, and how many bytes its head has.
    Asked(Box<Asked>, usize),
    /// More is to come.
    Partial,
    /// No request that is served, with the status that says why. The connection ends.
    Bad(u16),
}

/// Reads the head of a request. Whatever the bytes are, nothing panics.
pub fn read(bytes: &[u8]) -> Read {
    let mut fields = [httparse::EMPTY_HEADER; HEAD_MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX_BYTES => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX_BYTES => return Read::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Read::Bad(431),
        Err(_) => return Read::Bad(400),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Read::Bad(400);
    };
    if target.len() > PATH_MAX_BYTES {
        return Read::Bad(414);
    }
    // What is served needs no escapes, so a path with one is no path of ours.
    let path = target.split('?').next().unwrap_or_default();
    if !path.starts_with('/') || path.contains('%') {
        return Read::Bad(400);
    }
    let mut asked = Asked {
        method: match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "PUT" => Method::Put,
            _ => Method::Other,
        },
        path: path.to_owned(),
        host: None,
        token: None,
        token_ttl: None,
        proxied: false,
        body_bytes: 0,
        keep_alive: version == 1,
    };
    match request
        .headers
        .iter()
        .try_for_each(|field| note(&mut asked, field))
    {
        Ok(()) => Read::Asked(Box::new(asked), length),
        Err(status) => Read::Bad(status),
    }
}

fn note(asked: &mut Asked, field: &httparse::Header<'_>) -> Result<(), u16> {
    let text = || {
        std::str::from_utf8(field.value)
            .map(|t| t.trim().to_owned())
            .map_err(|_| 400u16)
    };
    // Twice the same field means that two readers may see two requests.
    let once = |there: bool| if there { Err(400_u16) } else { Ok(()) };
    match field.name.to_ascii_lowercase().as_str() {
        "host" => {
            once(asked.host.is_some())?;
            asked.host = Some(text()?);
        }
        "x-aws-ec2-metadata-token" => {
            once(asked.token.is_some())?;
            asked.token = Some(field.value.to_vec());
        }
        "x-aws-ec2-metadata-token-ttl-seconds" => {
            once(asked.token_ttl.is_some())?;
            asked.token_ttl = Some(text()?);
        }
        "x-forwarded-for" | "forwarded" | "via" => asked.proxied = true,
        "transfer-encoding" => return Err(501),
        "content-length" => {
            let digits = text()?;
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(400);
            }
            let bytes = digits.parse().unwrap_or(usize::MAX);
            once(asked.body_bytes != 0 && asked.body_bytes != bytes)?;
            if bytes > BODY_MAX_BYTES {
                return Err(413);
            }
            asked.body_bytes = bytes;
        }
        "connection" => {
            let text = text()?.to_ascii_lowercase();
            if text.split(',').any(|word| word.trim() == "close") {
                asked.keep_alive = false;
            }
        }
        _ => {}
    }
    Ok(())
}

/// What a status is called.
const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Error",
    }
}

/// The bytes of an answer. `body` is left out of one to HEAD, its length is not.
pub fn write(
    status: u16,
    kind: &str,
    more: &[(&str, String)],
    body: &[u8],
    head_only: bool,
    keep_alive: bool,
) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut head = format!(
        "HTTP/1.1 {status} {}\r\nServer: vbm\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: {connection}\r\n",
        reason(status),
        body.len()
    );
    for (name, value) in more {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let mut bytes = head.into_bytes();
    if !head_only {
        bytes.extend_from_slice(body);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status(text: &str) -> String {
        match read(text.as_bytes()) {
            Read::Asked(asked, length) => format!("{:?} {} {length}", asked.method, asked.path),
            Read::Partial => "partial".into(),
            Read::Bad(status) => status.to_string(),
        }
    }

    #[test]
    fn a_request_is_read_and_what_is_none_is_told_why() {
        assert_eq!(
            status("GET /latest/?a=b HTTP/1.1\r\nHost: x\r\n\r\nrest"),
            "Get /latest/ 38"
        );
        assert_eq!(status("GET /latest/ HTTP/1.1\r\nHost:"), "partial");
        assert_eq!(status("POST /x HTTP/1.0\r\n\r\n"), "Other /x 20");
        for (text, why) in [
            ("GET http://a/ HTTP/1.1\r\n\r\n", "400"),
            ("GET /%2e%2e/ HTTP/1.1\r\n\r\n", "400"),
            ("\0\0\0\0", "400"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
            (
                "PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                "400",
            ),
            ("PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400"),
            ("PUT / HTTP/1.1\r\nContent-Length: 1025\r\n\r\n", "413"),
            (
                "PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                "413",
            ),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "501"),
        ] {
            assert_eq!(status(text), why, "{text:?}");
        }
        assert_eq!(
            status(&format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(600))),
            "414"
        );
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(40))),
            "431"
        );
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(9_000))),
            "431"
        );
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(9_000))),
            "431"
        );
    }

    #[test]
    fn fields_are_found_whatever_their_case() {
        let text = "PUT /latest/api/token HTTP/1.1\r\nHOST: 169.254.169.254\r\nx-AWS-ec2-metadata-token-TTL-seconds: 60\r\nX-Forwarded-For: a\r\nConnection: Close\r\ncontent-length: 3\r\n\r\n";
        let Read::Asked(asked, _) = read(text.as_bytes()) else {
            panic!("no request")
        };
        assert_eq!(asked.token_ttl.as_deref(), Some("60"));
        assert!(asked.proxied && !asked.keep_alive && asked.body_bytes == 3);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            read(&bytes);
        }

        #[test]
        fn no_bytes_behind_a_good_line_make_it_panic(rest in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = b"GET /latest/ HTTP/1.1\r\n".to_vec();
            bytes.extend(rest);
            read(&bytes);
        }
    }
}
