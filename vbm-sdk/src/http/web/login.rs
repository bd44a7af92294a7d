//! From a one-time link to a session, and out again.

use super::{ApiState, cookie_name, html, visitor, wrong_method};
use crate::http::session::SESSION_MAX;
use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use vbm_core::Error;

/// What somebody does who has no link that works.
const NEW_LINK: &str = "Run `vbm web login` on the machine that vbmd runs on, and open the link that it prints. Each link \
                        works once, for ten minutes.";

/// Uses a login link: sets the cookie and leads to the page.
pub(super) async fn login(
    State(api): State<ApiState>,
    method: Method,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    // A program that only looks whether a link is good must not use it up.
    if method != Method::GET {
        return wrong_method();
    }
    let now = api.controller.now();
    let Some(secret) = token_of(query.as_deref().unwrap_or_default()) else {
        return html::message(StatusCode::BAD_REQUEST, "Log in with a link", &[NEW_LINK]);
    };
    if let Err(spent) = api.doors.use_link(secret, now) {
        let title = "This login link does not work";
        let why = format!("Why: {}.", spent.why());
        let lines = [why.as_str(), NEW_LINK];
        return match visitor(&api, &headers) {
            Some(_) => html::message_with_link(
                StatusCode::FORBIDDEN,
                title,
                &lines,
                ("/", "You are logged in already: go on to the console"),
            ),
            None => html::message(StatusCode::FORBIDDEN, title, &lines),
        };
    }
    match api.doors.sessions.open(now) {
        Ok(cookie) => {
            tracing::info!("a browser logged in");
            let cookie = set_cookie(&api, cookie.text(), SESSION_MAX.as_secs());
            let lead = [(header::SET_COOKIE, cookie), (header::LOCATION, "/".to_owned())];
            (StatusCode::SEE_OTHER, lead).into_response()
        }
        Err(e) => failed(&e),
    }
}

/// Ends the session and what it has open.
pub(super) async fn logout(State(api): State<ApiState>, headers: HeaderMap) -> Response {
    if let Some(visitor) = visitor(&api, &headers) {
        api.doors.sessions.end(&visitor.session, api.controller.now());
        tracing::info!("a browser logged out");
    }
    let cookie = set_cookie(&api, "", 0);
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response()
}

/// Without `Secure`: loopback is served without TLS, and browsers would not send it back to 127.0.0.1 then.
fn set_cookie(api: &ApiState, value: &str, seconds: u64) -> String {
    let name = cookie_name(api);
    format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}")
}

fn failed(error: &Error) -> Response {
    let lines = [error.why(), error.fix()];
    html::message(StatusCode::INTERNAL_SERVER_ERROR, error.what(), &lines)
}

/// The token of a query; tokens need no decoding.
fn token_of(query: &str) -> Option<&str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("token="))
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_in_the_query() {
        assert_eq!(token_of("token=abc"), Some("abc"));
        assert_eq!(token_of("x=1&token=abc&y"), Some("abc"));
        assert_eq!(token_of(""), None);
        assert_eq!(token_of("token="), None);
        assert_eq!(token_of("mytoken=abc"), None);
    }
}
