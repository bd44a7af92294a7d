//! Who is refused.

use crate::{raw::Ask, site::Site};
use serde_json::Value;

/// Every method and path of the API document, with names in the place of parameters.
fn routes() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&vbm_sdk::http::document()).unwrap();
    let mut routes = vec![
        ("GET".to_owned(), "/openapi.json".to_owned()),
        ("GET".to_owned(), "/metrics".to_owned()),
    ];
    for (path, verbs) in document["paths"].as_object().unwrap() {
        let path: String = path
            .split('/')
            .map(|part| if part.starts_with('{') { "x" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        for verb in verbs.as_object().unwrap().keys() {
            routes.push((verb.to_uppercase(), path.clone()));
        }
    }
    assert!(routes.len() > 30, "{routes:?}");
    routes
}

#[tokio::test]
async fn every_route_of_the_api_refuses_who_has_no_session() {
    let site = Site::open().await;
    let name = format!("vbm-session-{}", site.server.instance());
    let real = site.log_in().await;
    let cut = real[..real.len() - 1].to_owned();
    let cookies = [
        String::new(),
        format!("{name}="),
        format!("{name}=AAAA"),
        cut,
        real.replace("vbm-session", "VBM-session"),
    ];
    for (method, path) in routes() {
        for cookie in &cookies {
            let answer = site.ask_as(cookie, &method, &path).send(site.address).await;
            assert_eq!(answer.status(), 401, "{method} {path} with '{cookie}'");
            let problem = answer.json();
            assert_eq!(problem["status"], 401);
            assert!(
                problem["error"]["fix"]
                    .as_str()
                    .unwrap()
                    .contains("vbm web login")
            );
            assert!(answer.header("www-authenticate").is_some());
        }
        // Only the head: some answers have no end.
        let known = site.ask_as(&real, &method, &path).open(site.address).await;
        assert_ne!(known.status(), 401, "{method} {path} with a session");
    }
    site.server.shutdown().await;
}

#[tokio::test]
async fn every_route_refuses_other_hosts_and_acts_only_for_its_own_page() {
    let site = Site::open().await;
    let cookie = site.log_in().await;
    let host = site.address.to_string();
    for (method, path) in routes() {
        let foreign = Ask::new(&method, &path)
            .header("host", "vbm.example.org")
            .header("origin", "http://vbm.example.org")
            .header("cookie", &cookie);
        let answer = foreign.send(site.address).await;
        assert_eq!(answer.status(), 403, "{method} {path}");
        assert!(answer.json()["detail"].as_str().unwrap().contains("loopback"));

        let elsewhere = [
            Some("http://example.org"),
            Some("http://127.0.0.1:1"),
            Some("null"),
        ];
        let missing = (method != "GET").then_some(None);
        for origin in elsewhere.into_iter().chain(missing) {
            let mut ask = Ask::new(&method, &path)
                .header("host", &host)
                .header("cookie", &cookie);
            if let Some(origin) = origin {
                ask = ask.header("origin", origin);
            }
            let answer = ask.send(site.address).await;
            assert_eq!(answer.status(), 403, "{method} {path} from {origin:?}");
            assert!(answer.json()["detail"].as_str().unwrap().contains("Origin"));
        }
        let by_another_site = site
            .ask_as(&cookie, &method, &path)
            .header("sec-fetch-site", "same-site");
        assert_eq!(by_another_site.send(site.address).await.status(), 403);
    }
    site.server.shutdown().await;
}

#[tokio::test]
async fn no_spelling_of_a_path_leads_past_the_session() {
    let site = Site::open().await;
    for path in [
        "//v1/vms",
        "/./v1/vms",
        "/x/../v1/vms",
        "/V1/vms",
        "/%76%31/vms",
        "/v1%2fvms",
        "/v1",
        "/v1/",
        "/v1//vms",
        "/v1/nothing",
        "/v1;x/vms",
        "/login/../v1/vms",
    ] {
        let answer = site.ask("GET", path).send(site.address).await;
        let is_page = answer.header("content-type").unwrap().starts_with("text/html");
        assert!(answer.status() == 401 || is_page, "{path}: {answer:?}");
        assert!(!answer.body.contains("\"items\""), "{path}: {answer:?}");
    }
    let absolute = site
        .ask("GET", "http://example.org/v1/vms")
        .send(site.address)
        .await;
    assert_eq!(absolute.status(), 403, "{absolute:?}");
    site.server.shutdown().await;
}

#[tokio::test]
async fn every_answer_carries_what_protects_a_browser() {
    let site = Site::open().await;
    let cookie = site.log_in().await;
    let asks = [
        site.ask("GET", "/"),
        site.ask("GET", "/login"),
        site.ask("GET", "/v1/vms"),
        site.ask("POST", "/"),
        site.ask_as(&cookie, "GET", "/v1/vms"),
        site.ask_as(&cookie, "GET", "/v1/vms/none"),
        site.ask_as(&cookie, "POST", "/logout"),
        Ask::new("GET", "/").header("host", "example.org"),
    ];
    for ask in asks {
        let answer = ask.send(site.address).await;
        let policy = answer.header("content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self';",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{ask:?}");
        }
        assert!(answer.header("cache-control").is_some(), "{ask:?}");
    }
    let list = site.get_as(&cookie, "/v1/vms").await;
    assert_eq!(list.header("cache-control"), Some("no-store"));
    site.server.shutdown().await;
}

#[tokio::test]
async fn what_somebody_sends_comes_back_as_text_and_never_as_a_page() {
    let site = Site::open().await;
    let cookie = site.log_in().await;
    for name in [
        "%3Cscript%3Ealert(1)%3C%2Fscript%3E",
        "%22%27%3E",
        "%E7%BD%91%E7%BB%9C",
    ] {
        let answer = site.get_as(&cookie, &format!("/v1/vms/{name}")).await;
        assert_eq!(answer.status(), 404);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        answer.json();
        let page = site.ask("GET", &format!("/vms/{name}")).send(site.address).await;
        assert!(!page.body.contains("alert(1)"), "{page:?}");
    }
    for body in [
        serde_json::json!({"name": "<script>alert(1)</script>", "cidr": "10.0.0.0/24"}),
        serde_json::json!({"name": "\"'", "cidr": "10.0.0.0/24"}),
        serde_json::json!({"name": "网络", "cidr": "10.0.0.0/24"}),
    ] {
        let ask = site.ask_as(&cookie, "POST", "/v1/networks").json(body);
        let answer = ask.send(site.address).await;
        assert_eq!(answer.status(), 400, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    let host = Ask::new("GET", "/").header("host", "<script>alert(1)</script>");
    let answer = host.send(site.address).await;
    assert!(
        answer.status() >= 400 && !answer.body.contains("<script>"),
        "{answer:?}"
    );
    site.server.shutdown().await;
}

/// Prometheus finds what the node was asked to do, and how many are on the bus, in its own format.
#[tokio::test]
async fn the_metrics_of_the_bus_are_served_to_who_has_a_session() {
    let site = Site::furnished().await;
    let cookie = site.log_in().await;
    // Each side counts the same command.
    let counted = |text: &str| {
        ["client", "server"].iter().all(|side| {
            let begin = format!("vbm_bus_calls_total{{side=\"{side}\",method=\"network.ensure\"");
            let mut lines = text.lines();
            lines.any(|line| line.starts_with(&begin) && line.contains("fate=\"done\""))
        })
    };
    let scrape = async {
        loop {
            let answer = site.ask_as(&cookie, "GET", "/metrics").send(site.address).await;
            assert_eq!(answer.status(), 200);
            let kind = answer.header("content-type").unwrap().to_owned();
            assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
            let text = answer.body.clone();
            if counted(&text) {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let text = tokio::time::timeout(crate::house::PATIENCE, scrape)
        .await
        .expect("the node is told of its network");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let members = text
        .lines()
        .filter(|line| line.starts_with("vbm_bus_unanswered{"));
    assert_eq!(members.count(), 2, "the controller and the agent:\n{text}");
    site.server.shutdown().await;
}
