//! Which requests are looked at at all. Pure.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, header},
};
use std::net::{IpAddr, Ipv6Addr};
use vbm_core::{Error, ErrorKind};

/// How the asking page and the answering server are related (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets a request in that was sent to a name of this machine and, where it could do something, by our own page.
pub(super) fn admit(request: &Request, is_api: bool) -> Result<(), Error> {
    let headers = request.headers();
    let host = only(headers, &header::HOST).filter(|host| is_loopback(host));
    let authority = request.uri().authority().map(|a| a.as_str());
    let Some(host) = host.filter(|host| authority.is_none_or(|a| a.eq_ignore_ascii_case(host))) else {
        return Err(refused(
            "it was sent to a name that is not one of this machine's loopback interface",
            "open the page as http://127.0.0.1:PORT or http://localhost:PORT",
        ));
    };
    let acts = !request.method().is_safe() || headers.contains_key(header::UPGRADE);
    if (acts || headers.contains_key(header::ORIGIN)) && !is_own(headers, host) {
        return Err(refused(
            "it does not come from a page of this server: its Origin is missing or another",
            "send `Origin: http://HOST:PORT` as in the page's address, or use the unix socket",
        ));
    }
    let site = headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes());
    if is_api && !matches!(site, None | Some(b"same-origin" | b"none")) {
        return Err(refused(
            "it was made by another web site",
            "use the API from its own page, or through the unix socket",
        ));
    }
    Ok(())
}

fn refused(why: &str, fix: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, "the request is refused", why, fix)
}

fn is_own(headers: &HeaderMap, host: &str) -> bool {
    let origin = only(headers, &header::ORIGIN).and_then(|origin| origin.strip_prefix("http://"));
    origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
}

/// The text of a header that comes exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(first)
}

/// Whether a `Host` is a name of the loopback interface, whatever its port: a tunnel may have another at its end.
fn is_loopback(host: &str) -> bool {
    let (name, rest) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, rest)) => (v6.parse().ok().map(IpAddr::V6), rest),
        None => {
            let (name, rest) = host.split_at(host.find(':').unwrap_or(host.len()));
            let localhost = name.eq_ignore_ascii_case("localhost");
            let address = name.parse().ok().filter(IpAddr::is_ipv4);
            (address.or(localhost.then_some(Ipv6Addr::LOCALHOST.into())), rest)
        }
    };
    let port_fits = rest.is_empty() || rest.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    name.is_some_and(|name| name.is_loopback()) && port_fits
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn admits(method: &str, is_api: bool, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().method(method).uri("/v1/vms");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        admit(&request.body(Body::empty()).unwrap(), is_api).is_ok()
    }

    #[test]
    fn only_names_of_the_loopback_interface_are_answered() {
        for host in [
            "127.0.0.1:8480",
            "localhost:8480",
            "LocalHost",
            "[::1]:1",
            "127.3.2.1",
        ] {
            assert!(admits("GET", true, &[("host", host)]), "{host}");
        }
        for host in [
            "",
            "example.org",
            "example.org:8480",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "192.0.2.1",
            "0.0.0.0",
            "[::]",
            "[::1",
            "[::1]x",
            "::1",
            "localhost:http",
            "localhost:1:2",
            "127.0.0.1@example.org",
            "网络",
        ] {
            assert!(!admits("GET", true, &[("host", host)]), "{host}");
        }
        assert!(!admits("GET", true, &[]));
        assert!(!admits(
            "GET",
            true,
            &[("host", "localhost"), ("host", "localhost")]
        ));
    }

    #[test]
    fn what_acts_must_come_from_the_page_itself() {
        let host = ("host", "127.0.0.1:8480");
        let own = ("origin", "http://127.0.0.1:8480");
        let socket = ("upgrade", "websocket");
        assert!(admits("POST", true, &[host, own]));
        assert!(admits("GET", true, &[host, own, socket]));
        assert!(admits("GET", true, &[host]));
        for origin in [
            "null",
            "http://127.0.0.1:8481",
            "http://localhost:8480",
            "https://127.0.0.1:8480",
            "http://example.org",
            "",
        ] {
            for request in [
                vec![host, ("origin", origin)],
                vec![host, ("origin", origin), socket],
            ] {
                assert!(!admits("POST", true, &request), "{origin}");
                assert!(!admits("GET", true, &request), "{origin}");
            }
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let allowed = admits(method, true, &[host]);
            assert_eq!(allowed, method == "OPTIONS", "{method} without an origin");
        }
        assert!(!admits("GET", true, &[host, socket]));
    }

    #[test]
    fn another_site_may_lead_to_the_page_but_not_ask_the_api() {
        let host = ("host", "localhost:1");
        for (site, asks) in [
            ("same-origin", true),
            ("none", true),
            ("same-site", false),
            ("cross-site", false),
        ] {
            assert_eq!(admits("GET", true, &[host, ("sec-fetch-site", site)]), asks);
            assert!(admits("GET", false, &[host, ("sec-fetch-site", site)]));
        }
    }

    #[test]
    fn a_cookie_is_found_among_others_by_its_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=1; vbm-session-ab=x=y".parse().unwrap());
        headers.append(header::COOKIE, "b=2".parse().unwrap());
        assert_eq!(cookie(&headers, "vbm-session-ab"), Some("x=y"));
        assert_eq!(cookie(&headers, "b"), Some("2"));
        assert_eq!(cookie(&headers, "vbm-session-a"), None);
    }
}
