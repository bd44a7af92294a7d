//! Consoles through WebSockets, and their one-time tokens.

use crate::{
    house::{PATIENCE, launch, through},
    site::Site,
};
use std::time::Duration;
use tokio_tungstenite::tungstenite;
use vbm_core::VmId;
use vbm_sdk::api::PowerAction;

/// Waits until so many look at the serial line and at the screen.
async fn viewers(site: &Site, vm: VmId, expected: (usize, usize)) {
    let look = async {
        while site.house.world.viewers(vm) != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, look).await;
    assert!(
        done.is_ok(),
        "{:?} instead of {expected:?}",
        site.house.world.viewers(vm)
    );
}

#[tokio::test]
async fn a_desktop_speaks_rfb_through_the_bus_and_several_may_look() {
    let site = Site::furnished().await;
    let vm = launch(&site.client, "web").await.vm.meta.id;
    let cookie = site.log_in().await;
    let mut first = site.console(&cookie, "web", "vnc").await;
    let mut second = site.console(&cookie, "web", "vnc").await;
    first.hear(b"RFB 003.008\n").await;
    second.hear(b"RFB 003.008\n").await;
    viewers(&site, vm, (0, 2)).await;
    first.say(b"RFB 003.008\n").await;
    let refusal = first.hear(b"it has no screen").await;
    assert_eq!(
        refusal[..5],
        [0, 0, 0, 0, 38],
        "no security type, then a reason of so many bytes"
    );
    let end = first.closed().await;
    assert_eq!(u16::from(end.code), 1000);
    assert_eq!(end.reason.as_str(), "the VM closed its screen");
    viewers(&site, vm, (0, 1)).await;
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_serial_line_takes_what_is_typed_and_shows_what_comes_of_it() {
    let site = Site::furnished().await;
    launch(&site.client, "web").await;
    let cookie = site.log_in().await;
    let mut console = site.console(&cookie, "web", "serial").await;
    console.say("echo 网络 <script>\n".as_bytes()).await;
    console.hear("\r\n网络 <script>\r\n/ # ".as_bytes()).await;
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_token_works_once_and_soon_and_says_which_was_missed() {
    let site = Site::furnished().await;
    let vm = launch(&site.client, "web").await.vm.meta.id;
    let cookie = site.log_in().await;
    let used = site.token(&cookie, "web", "serial").await;
    let _first = site.socket(&cookie, &used).await.unwrap();
    viewers(&site, vm, (1, 0)).await;
    let late = site.token(&cookie, "web", "serial").await;
    site.later(Duration::from_secs(30));
    for (path, why) in [
        (used.as_str(), "it was used before"),
        (late.as_str(), "it is too old"),
        ("/v1/console?token=abc", "it was not given by this vbmd"),
    ] {
        let end = site.socket(&cookie, path).await.unwrap().closed().await;
        assert_eq!(u16::from(end.code), 4403, "{end:?}");
        assert!(end.reason.as_str().contains(why), "{end:?}");
    }
    assert_eq!(site.house.world.viewers(vm), (1, 0));
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_token_is_worth_nothing_without_the_session_or_from_another_page() {
    let site = Site::furnished().await;
    launch(&site.client, "web").await;
    let cookie = site.log_in().await;
    let path = site.token(&cookie, "web", "serial").await;
    match site.socket("a=b", &path).await.err() {
        Some(tungstenite::Error::Http(answer)) => assert_eq!(answer.status(), 401),
        other => panic!("{other:?}"),
    }
    let foreign = site
        .ask("GET", &path)
        .header("cookie", &cookie)
        .header("origin", "http://example.org")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(foreign.open(site.address).await.status(), 403);
    let plain = site.get_as(&cookie, &path).await;
    assert_eq!(plain.status(), 400, "{plain:?}");
    // None of them has used it up.
    site.socket(&cookie, &path).await.unwrap().say(b"x").await;
    site.server.shutdown().await;
}

#[tokio::test]
async fn no_token_is_given_for_what_is_not_there_and_a_vm_that_is_off_says_so() {
    let site = Site::furnished().await;
    launch(&site.client, "web").await;
    let cookie = site.log_in().await;
    for (vm, body, status) in [
        ("none", serde_json::json!({"kind": "serial"}), 404),
        ("web", serde_json::json!({"kind": "telnet"}), 400),
        ("web", serde_json::json!({}), 400),
    ] {
        let ask = site.ask_as(&cookie, "POST", &format!("/v1/vms/{vm}/console-tokens"));
        assert_eq!(ask.json(body).send(site.address).await.status(), status);
    }
    through(
        &site.client,
        site.client.vms().power("web", PowerAction::ForceOff).await,
    )
    .await
    .unwrap();
    for kind in ["serial", "vnc"] {
        let end = site.console(&cookie, "web", kind).await.closed().await;
        assert_eq!(u16::from(end.code), 4409, "{end:?}");
        assert!(
            end.reason
                .as_str()
                .contains(&format!("cannot open the {kind} console of web")),
            "{end:?}"
        );
    }
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_browser_that_goes_away_in_the_middle_closes_its_consoles_down_to_the_hypervisor() {
    let site = Site::furnished().await;
    let vm = launch(&site.client, "web").await.vm.meta.id;
    let cookie = site.log_in().await;
    let mut serial = site.console(&cookie, "web", "serial").await;
    let mut vnc = site.console(&cookie, "web", "vnc").await;
    let mut other = site.console(&cookie, "web", "serial").await;
    serial.say(b"echo a\n").await;
    serial.hear(b"/ # ").await;
    vnc.hear(b"RFB 003.008\n").await;
    viewers(&site, vm, (2, 1)).await;
    let gone = tokio::time::Instant::now();
    // Without a close frame, as when a browser is killed.
    drop((serial, vnc));
    viewers(&site, vm, (1, 0)).await;
    let took = gone.elapsed();
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    other.say(b"echo b\n").await;
    other.hear(b"b\r\n/ # ").await;
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_vm_that_ends_and_a_session_that_ends_close_consoles_with_the_reason() {
    let site = Site::furnished().await;
    let vm = launch(&site.client, "web").await.vm.meta.id;
    let (one, other) = (site.log_in().await, site.log_in().await);
    let mut closed = site.console(&one, "web", "serial").await;
    let mut kept = site.console(&other, "web", "serial").await;
    viewers(&site, vm, (2, 0)).await;
    site.ask_as(&one, "POST", "/logout").send(site.address).await;
    let end = closed.closed().await;
    assert_eq!(u16::from(end.code), 4403);
    assert!(end.reason.as_str().contains("your session is over"), "{end:?}");
    viewers(&site, vm, (1, 0)).await;
    let mut screen = site.console(&other, "web", "vnc").await;
    screen.hear(b"RFB 003.008\n").await;
    site.house.world.guest_shuts_down(vm);
    let end = kept.closed().await;
    assert_eq!(u16::from(end.code), 1000);
    assert_eq!(end.reason.as_str(), "the VM is not running any more");
    assert_eq!(u16::from(screen.closed().await.code), 1000);
    site.server.shutdown().await;
}

#[tokio::test]
async fn a_daemon_that_ends_closes_consoles_and_does_not_wait_for_browsers() {
    let site = Site::furnished().await;
    launch(&site.client, "web").await;
    let cookie = site.log_in().await;
    let mut console = site.console(&cookie, "web", "serial").await;
    console.say(b"echo a\n").await;
    console.hear(b"/ # ").await;
    let mut watch = site.ask_as(&cookie, "GET", "/v1/watch").open(site.address).await;
    watch.line().await.unwrap();
    let begun = tokio::time::Instant::now();
    let (end, ()) = tokio::join!(console.closed(), site.server.shutdown());
    assert_eq!(u16::from(end.code), 1001, "{end:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "it took {:?}",
        begun.elapsed()
    );
}
