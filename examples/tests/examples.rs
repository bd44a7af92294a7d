//! Every example is run, and says what it should.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says what is left out, and panics when it cannot go on"
)]

use std::{path::Path, process::Command};

fn left_out(what: &[&str]) -> bool {
    let named = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
    let hit = what.iter().find(|w| named.split(',').any(|n| n.trim() == **w));
    if let Some(hit) = hit {
        println!("LEFT OUT: this example needs {hit}, and VBM_LEAVE_OUT names it");
    }
    hit.is_some()
}

/// The tiny guest; `cargo xtask test` makes it and says where it is.
fn guest() -> std::path::PathBuf {
    let dir = std::env::var("VBM_GUEST_DIR").expect("VBM_GUEST_DIR names no tiny guest: run `cargo xtask guest` and name its directory, or set VBM_LEAVE_OUT=qemu");
    Path::new(&dir).to_owned()
}

fn run(program: &str, args: &[&Path], expected: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} failed:\n{said}");
    for text in expected {
        assert!(said.contains(text), "{program} did not say '{text}':\n{said}");
    }
}

#[test]
fn launch_a_vm() {
    if !left_out(&["root", "namespaces", "qemu"]) {
        run(
            env!("CARGO_BIN_EXE_01-launch-a-vm"),
            &[&guest().join("guest.qcow2")],
            &["web runs and took 10.0.0.2 by DHCP"],
        );
    }
}

#[test]
fn rpc_alone() {
    let expected = [
        "one node answers: 10",
        "any below a scope: 20",
        "eu/rack2/b says 20",
        "nobody there, known at once",
    ];
    run(env!("CARGO_BIN_EXE_02-rpc-alone"), &[], &expected);
}

#[test]
fn network_with_dhcp() {
    if !left_out(&["root", "namespaces"]) {
        run(
            env!("CARGO_BIN_EXE_03-network-with-dhcp"),
            &[],
            &["leased: 10.20.0.2"],
        );
    }
}

#[test]
fn driver_alone() {
    if !left_out(&["qemu"]) {
        run(
            env!("CARGO_BIN_EXE_04-driver-alone"),
            &[&guest()],
            &["the guest says: vbm-guest ready", "asked to shut down: Off"],
        );
    }
}
