//! The desktop of a real QEMU. Its firmware has a screen before any guest runs.
#![expect(clippy::print_stdout, reason = "a test that is left out says so")]

use crate::{
    house::{House, PATIENCE, done, name},
    site::Site,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::time::Duration;
use vbm_sdk::{
    api::LaunchRequest,
    server::{DriverChoice, NetworkChoice, Server},
};

/// QEMU outlives its daemon: this ends it also when the test fails.
struct Ended(Pid);

impl Drop for Ended {
    fn drop(&mut self) {
        // It is gone already when the test went well.
        if let Err(e) = kill(self.0, Signal::SIGKILL) {
            println!("QEMU has ended before: {e}");
        }
    }
}

/// How many sockets a process has open.
fn sockets(pid: Pid) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

#[tokio::test]
async fn the_desktop_of_a_real_qemu_is_shown_and_its_side_closes_with_the_browser() {
    if std::env::var("VBM_LEAVE_OUT").is_ok_and(|v| v.split(',').any(|w| w == "qemu")) {
        println!("LEFT OUT: VBM_LEAVE_OUT names qemu");
        return;
    }
    let house = House::new();
    let builder = Server::builder(house.dir.path().join("data"))
        .run_dir(house.dir.path().join("run"))
        .ephemeral(true)
        .driver(DriverChoice::Qemu)
        .network(NetworkChoice::Sim);
    let site = Site::open_on(house, builder).await;
    site.furnish().await;
    let made = site
        .client
        .vms()
        .launch(LaunchRequest::new("tiny").name(name("web")))
        .await
        .unwrap_or_else(|e| {
            panic!("this test needs QEMU ({e}): install qemu-system-x86, or set VBM_LEAVE_OUT=qemu")
        });
    done(&site.client, &made.operation).await.unwrap();
    let vm = site.client.vms().get("web").await.unwrap();
    let pid = Pid::from_raw(vm.vm.status.pid.unwrap().try_into().unwrap());
    let _ended = Ended(pid);
    let cookie = site.log_in().await;
    let mut desktop = site.console(&cookie, "web", "vnc").await;
    let mut other = site.console(&cookie, "web", "vnc").await;
    for screen in [&mut desktop, &mut other] {
        // RFC 6143 sections 7.1 to 7.3: the version, no password, shared with others, the size and the name.
        screen.hear(b"RFB 003.008\n").await;
        screen.say(b"RFB 003.008\n").await;
        screen.hear(&[1, 1]).await;
        screen.say(&[1]).await;
        screen.hear(&[0, 0, 0, 0]).await;
        screen.say(&[1]).await;
        screen.hear(b"QEMU (web)").await;
    }
    let both = sockets(pid);
    drop(desktop);
    let closed = async {
        while sockets(pid) != both - 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let closed = tokio::time::timeout(PATIENCE, closed).await;
    assert!(closed.is_ok(), "QEMU's side stays open");
    // The other one still gets its picture (section 7.6.1): an update of some rectangles, whatever was asked for.
    other.say(&[3, 0, 0, 0, 0, 0, 0, 1, 0, 1]).await;
    let picture = other.hear_at_least(4).await;
    assert_eq!(picture[..2], [0, 0], "{picture:?}");
    assert_ne!(picture[2..4], [0, 0], "{picture:?}");
    let made = site.client.vms().delete("web").force(true).await.unwrap();
    done(&site.client, &made.operation).await.unwrap();
    assert_eq!(u16::from(other.closed().await.code), 1000);
    site.server.shutdown().await;
}
