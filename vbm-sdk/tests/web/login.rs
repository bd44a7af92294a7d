//! Links, sessions, and their ends.

use crate::{house::House, raw::Ask, site::Site};
use std::time::Duration;
use vbm_core::ErrorKind;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_link_logs_in_once_and_leads_to_the_page() {
    let site = Site::open().await;
    let link = site.link();
    let answer = site.ask("GET", &link).send(site.address).await;
    assert_eq!((answer.status(), answer.header("location")), (303, Some("/")));
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    for part in ["Path=/", "HttpOnly", "SameSite=Strict", "Max-Age=86400"] {
        assert!(cookie.split("; ").any(|p| p == part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap();
    let session = site.get_as(cookie, "/v1/session").await.json();
    assert_eq!(session["instance"], site.server.instance());
    assert!(
        session["user"].is_string() && session["expires_at"].is_string(),
        "{session}"
    );

    let again = site.ask("GET", &link).send(site.address).await;
    assert_eq!(again.status(), 403);
    assert!(
        again.body.contains("used before") && again.body.contains("vbm web login"),
        "{again:?}"
    );
    assert!(again.header("set-cookie").is_none());
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_link_that_comes_late_says_what_to_do() {
    let site = Site::open().await;
    let link = site.link();
    site.later(10 * MINUTE);
    let answer = site.ask("GET", &link).send(site.address).await;
    assert_eq!(answer.status(), 403);
    assert!(
        answer.body.contains("too old") && answer.body.contains("vbm web login"),
        "{answer:?}"
    );
    site.log_in().await;
    site.server.shutdown().await;
}

#[tokio::test]
async fn looking_whether_a_link_is_good_does_not_use_it_up() {
    let site = Site::open().await;
    let link = site.link();
    let looked = site.ask("HEAD", &link).send(site.address).await;
    assert_eq!(looked.status(), 400);
    let answer = site.ask("GET", &link).send(site.address).await;
    assert_eq!(answer.status(), 303);
    site.server.shutdown().await;
}

#[tokio::test]
async fn tokens_that_are_nonsense_are_refused_and_nothing_of_them_is_shown() {
    let site = Site::open().await;
    for query in [
        "",
        "?token=",
        "?token=%3Cscript%3Ealert(1)%3C/script%3E",
        "?token=<script>alert('x')</script>",
        "?token=%E7%BD%91%E7%BB%9C",
        "?token=\"'&token=b",
    ] {
        let answer = site
            .ask("GET", &format!("/login{query}"))
            .send(site.address)
            .await;
        assert!(matches!(answer.status(), 400 | 403), "{query}: {answer:?}");
        assert!(
            !answer.body.contains("<script") && !answer.body.contains("alert"),
            "{query}: {answer:?}"
        );
    }
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_session_ends_when_nobody_uses_it_and_after_a_day_in_any_case() {
    let site = Site::open().await;
    let (idle, busy) = (site.log_in().await, site.log_in().await);
    for _ in 0..3 {
        site.later(7 * HOUR);
        assert_eq!(site.get_as(&busy, "/v1/session").await.status(), 200);
    }
    assert_eq!(site.get_as(&idle, "/v1/session").await.status(), 401);
    site.later(3 * HOUR);
    assert_eq!(site.get_as(&busy, "/v1/session").await.status(), 401);
    site.server.shutdown().await;
}

#[tokio::test]
async fn logging_out_ends_the_session_and_no_other() {
    let site = Site::open().await;
    let (one, other) = (site.log_in().await, site.log_in().await);
    let answer = site.ask_as(&one, "POST", "/logout").send(site.address).await;
    assert_eq!(answer.status(), 204);
    assert!(answer.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(site.get_as(&one, "/v1/session").await.status(), 401);
    assert_eq!(site.get_as(&other, "/v1/session").await.status(), 200);
    let again = site.ask_as(&one, "POST", "/logout").send(site.address).await;
    assert_eq!(again.status(), 204);
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_session_makes_no_login_links_but_the_client_beside_the_daemon_does() {
    let site = Site::open().await;
    let cookie = site.log_in().await;
    let answer = site
        .ask_as(&cookie, "POST", "/v1/web/links")
        .send(site.address)
        .await;
    assert_eq!(answer.status(), 403);
    assert!(
        answer.json()["error"]["fix"]
            .as_str()
            .unwrap()
            .contains("vbm web login")
    );
    let link = site.client.web().login_link().await.unwrap();
    let path = link.url.split_once(&site.address.to_string()).unwrap().1;
    assert_eq!(site.ask("GET", path).send(site.address).await.status(), 303);
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_secret_is_made_anew_for_each_request_and_never_written_down() {
    use vbm_sdk::store::Store;
    let site = Site::open().await;
    let first = site.client.web().login_link().key("k").await.unwrap();
    let second = site.client.web().login_link().key("k").await.unwrap();
    assert_ne!(first.url, second.url);
    let kept = site.house.store.list("answer/", None, 100).await.unwrap();
    assert!(kept.entries.is_empty(), "{kept:?}");
    site.server.shutdown().await;
}

#[tokio::test]
async fn without_a_page_there_are_no_links_and_the_error_says_how_to_have_one() {
    let house = House::new();
    let server = house.serve().await;
    let error = server.client().unwrap().web().login_link().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.fix().contains("vbmd --web"), "{error}");
    server.shutdown().await;
}

#[tokio::test]
async fn only_loopback_is_served_and_nothing_is_left_of_what_was_refused() {
    let house = House::new();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let builder = house.builder().web(address.parse().unwrap());
        let error = builder.start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.why().contains("TLS"), "{error}");
    }
    assert!(!house.dir.path().join("data").exists());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let builder = house.builder().web(taken.local_addr().unwrap());
    let error = builder.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    // The data is free again.
    house.serve().await.shutdown().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_keeps_nobody_out() {
    let site = Site::open().await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(tokio::net::TcpStream::connect(site.address).await.unwrap());
    }
    let cookie = site.log_in().await;
    assert_eq!(site.get_as(&cookie, "/v1/session").await.status(), 200);
    let garbage = Ask::new("\u{1}\u{2}", "/").open(site.address).await;
    assert_eq!(garbage.status(), 400);
    site.server.shutdown().await;
}
