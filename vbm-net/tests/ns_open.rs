//! A host that cannot do it says so before anything is made: what, why, what to do.

#![allow(clippy::print_stdout, reason = "the child tells its parent")]
#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod common;

use common::SystemClock;
use std::{process::Command, sync::Arc};
use vbm_net::{HostConfig, HostNetwork};

const LACKING: &str = "VBM_TEST_LACKING";

/// Opens the host in this process, which was spoiled, and prints the error.
async fn open_and_tell() {
    let dir = tempfile::tempdir().unwrap();
    let config = HostConfig::new(common::fresh("test-"), dir.path(), Arc::new(SystemClock));
    let error = HostNetwork::open(config).await.map(drop).unwrap_err();
    println!("kind {}\n{}", error.kind(), vbm_core::Error::from(error));
}

/// Not a test of its own: the child, which spoils itself first. It is this program, run with an environment that says how.
#[tokio::test]
async fn child_that_lacks_something() {
    use nix::mount::{MsFlags, mount};
    let Ok(lacking) = std::env::var(LACKING) else {
        return;
    };
    if lacking == "root" {
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).unwrap();
    } else {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_PRIVATE | MsFlags::MS_REC,
            None::<&str>,
        )
        .unwrap();
        mount(
            Some("none"),
            "/usr/sbin",
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        for program in [
            "iptables",
            "iptables-save",
            "iptables-restore",
            "ip6tables-save",
            "ip6tables-restore",
            "ipset",
            "nft",
            "conntrack",
        ] {
            if program != lacking {
                std::os::unix::fs::symlink("/bin/true", format!("/usr/sbin/{program}")).unwrap();
            }
        }
    }
    open_and_tell().await;
}

fn told_without(lacking: &str) -> String {
    let out = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_lacks_something",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(LACKING, lacking)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

#[test]
fn without_root_it_says_so() {
    needs_namespaces!();
    let told = told_without("root");
    for line in [
        "kind permission-denied",
        "needs root",
        "  why: ",
        "  fix: run it as root",
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    needs_namespaces!();
    for (program, package) in [
        ("iptables", "iptables"),
        ("iptables-save", "iptables"),
        ("iptables-restore", "iptables"),
        ("ip6tables-save", "iptables"),
        ("ip6tables-restore", "iptables"),
        ("ipset", "ipset"),
        ("nft", "nftables"),
        ("conntrack", "conntrack"),
    ] {
        let told = told_without(program);
        for line in [
            "kind missing-dependency".into(),
            format!("'{program}' is missing"),
            format!("apt-get install {package}"),
        ] {
            assert!(told.contains(&line), "{line} in {told}");
        }
    }
}

#[tokio::test]
async fn a_bad_owner_tag_or_pool_is_refused() {
    needs_namespaces!();
    let dir = tempfile::tempdir().unwrap();
    for owner in ["", "a b", "a\"b", "../up"] {
        let error = HostNetwork::open(HostConfig::new(owner, dir.path(), Arc::new(SystemClock)))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), vbm_core::ErrorKind::InvalidInput);
    }
    let config = HostConfig::new("x", dir.path(), Arc::new(SystemClock));
    let config = config.with_transit_pool("10.0.0.0/32".parse().unwrap());
    assert_eq!(
        HostNetwork::open(config).await.unwrap_err().kind(),
        vbm_core::ErrorKind::InvalidInput
    );
}
