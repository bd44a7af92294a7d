//! What is served at the paths that are not the API's.

use crate::site::Site;

#[tokio::test]
async fn the_page_is_served_to_everybody_and_holds_no_secret() {
    let site = Site::open().await;
    for path in ["/", "/vms/web", "/index.html"] {
        let answer = site.ask("GET", path).send(site.address).await;
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert!(answer.header("content-type").unwrap().starts_with("text/html"));
        assert!(answer.header("set-cookie").is_none());
        if cfg!(not(feature = "web")) {
            assert!(answer.body.contains("cargo xtask web"), "{answer:?}");
        }
    }
    let answer = site
        .ask("POST", "/")
        .header("origin", format!("http://{}", site.address))
        .send(site.address)
        .await;
    assert_eq!(answer.status(), 400, "{answer:?}");
    site.server.shutdown().await;
}

#[cfg(feature = "web")]
#[tokio::test]
async fn files_of_the_page_are_kept_by_browsers_as_long_as_they_are_right() {
    let site = Site::open().await;
    let index = site.ask("GET", "/").send(site.address).await;
    assert_eq!(index.header("cache-control"), Some("no-cache"));
    let etag = index.header("etag").unwrap();
    let again = site.ask("GET", "/").header("if-none-match", etag);
    assert_eq!(again.send(site.address).await.status(), 304);
    let script = index
        .body
        .split('"')
        .find(|part| part.starts_with("/assets/"))
        .unwrap();
    let answer = site.ask("GET", script).send(site.address).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.header("cache-control").unwrap().contains("immutable"));
    let missing = site.ask("GET", "/assets/none.js").send(site.address).await;
    assert_eq!(missing.status(), 404);
    site.server.shutdown().await;
}
