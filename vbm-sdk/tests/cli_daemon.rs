//! Daemons that cannot start say why in three lines, exit with the code of the kind, and leave nothing behind.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod cli;

use cli::Daemon;
use std::{
    io::Read,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use wait_timeout::ChildExt;

/// How long a daemon that cannot start may take to say so.
const REFUSAL_MAX: Duration = Duration::from_secs(60);

/// Starts a daemon that shall be refused; gives its exit code and what it said on standard error.
fn refused(command: &mut Command) -> (i32, String) {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = child.wait_timeout(REFUSAL_MAX).unwrap();
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("{command:?} was not refused");
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let error = said
        .find("error: ")
        .map(|at| said[at..].to_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = error.lines().collect();
    assert!(
        lines.len() == 3 && lines[1].starts_with("  why: ") && lines[2].starts_with("  fix: "),
        "not three lines:\n{said}"
    );
    (status.unwrap().code().unwrap(), error)
}

fn vbmd(dir: &Path) -> Command {
    vbmd_at(dir, &dir.join("s"))
}

fn vbmd_at(dir: &Path, socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vbmd"));
    command
        .args([
            "--driver",
            "sim",
            "--network",
            "sim",
            "--ephemeral",
            "--log",
            "warn",
            "--data-dir",
        ])
        .arg(dir.join("data"));
    command
        .arg("--run-dir")
        .arg(dir.join("run"))
        .arg("--socket")
        .arg(socket);
    command
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused_and_the_first_serves_on() {
    let daemon = Daemon::start();
    let other = tempfile::tempdir().unwrap();
    let (code, error) = refused(&mut vbmd_at(other.path(), &daemon.socket()));
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("another vbmd answers there"), "{error}");
    daemon.ok(&["version"]);
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused_and_the_first_serves_on() {
    let daemon = Daemon::start();
    let (code, error) = refused(&mut vbmd_at(daemon.place.path(), &daemon.path("other.sock")));
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("is in use"), "{error}");
    assert!(!daemon.path("other.sock").exists());
    daemon.ok(&["version"]);
}

#[test]
fn a_store_that_was_cut_off_is_called_corrupt_and_left_as_it_is() {
    let mut daemon = Daemon::start();
    daemon.furnish();
    daemon.kill();
    let store = daemon.path("data/store.redb");
    let whole = std::fs::read(&store).unwrap();
    let half = &whole[..whole.len() / 2];
    std::fs::write(&store, half).unwrap();
    let (code, error) = refused(&mut vbmd(daemon.place.path()));
    assert_eq!(code, 10, "{error}");
    assert_eq!(
        std::fs::read(&store).unwrap(),
        half,
        "the damaged file was changed"
    );
    std::fs::write(&store, whole).unwrap();
    daemon.go();
    assert_eq!(daemon.json(&["network", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_redis_that_cannot_be_reached_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for role in ["controller", "agent"] {
        let mut command = vbmd(dir.path());
        let (code, error) = refused(command.arg(role).args(["--redis", "redis://127.0.0.1:1"]));
        assert_eq!(code, 8, "{error}");
        assert!(error.contains("127.0.0.1:1"), "{error}");
    }
    assert!(!dir.path().join("s").exists());
}

#[test]
fn a_controller_without_a_bus_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (code, error) = refused(vbmd(dir.path()).arg("controller"));
    assert_eq!(code, 2, "{error}");
}

#[test]
fn a_store_on_redis_without_redis_and_a_name_that_is_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (code, error) = refused(vbmd(dir.path()).args(["--store", "redis"]));
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("--redis redis://HOST:PORT"), "{error}");
    for name in ["", "two\nlines", &"x".repeat(200)] {
        let (code, error) = refused(vbmd(dir.path()).args(["--name", name]));
        assert_eq!(code, 2, "{error}");
    }
}

#[test]
fn a_daemon_alone_leads_from_the_start_and_says_so() {
    let daemon = Daemon::start();
    let version = &daemon.json(&["version"])["vbmd"];
    assert_eq!(version["leader"]["name"], version["controller"], "{version}");
    assert_eq!(version["leader"]["epoch"], 1, "{version}");
    assert!(daemon.ok(&["version"]).contains("this one, in epoch 1"));
}

#[test]
fn networks_on_the_host_need_root_and_say_so() {
    if std::env::var("VBM_LEAVE_OUT").is_ok_and(|v| v.split(',').any(|w| w == "root")) {
        return;
    }
    let dir = tempfile::Builder::new().prefix("vbm-nobody-").tempdir().unwrap();
    // The copy lies where everybody may run it.
    let program = dir.path().join("vbmd");
    std::fs::copy(env!("CARGO_BIN_EXE_vbmd"), &program).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
    let mut command = Command::new(&program);
    command
        .args([
            "--driver",
            "sim",
            "--network",
            "host",
            "--ephemeral",
            "--log",
            "warn",
            "--data-dir",
        ])
        .arg(dir.path().join("data"));
    command
        .arg("--socket")
        .arg(dir.path().join("s"))
        .uid(65_534)
        .gid(65_534);
    let (code, error) = refused(&mut command);
    assert_eq!(code, 5, "{error}");
    assert!(!dir.path().join("s").exists());
}

#[test]
fn without_qemu_the_daemon_serves_and_a_launch_says_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut daemon = Daemon::without_start();
    daemon.go_with(&["--driver", "qemu"], Some(&empty));
    daemon.furnish();
    let before = daemon.inventory();
    let said = daemon.vbm(&["launch", "tiny", "web"]);
    assert_eq!(said.code, 7, "{}", said.err);
    assert!(said.err.contains("qemu-system-x86"), "{}", said.err);
    assert_eq!(daemon.inventory(), before, "something half-made is left");
}

#[test]
fn the_web_page_is_for_loopback_and_for_daemons_with_an_api() {
    let dir = tempfile::tempdir().unwrap();
    let (code, error) = refused(vbmd(dir.path()).args(["--web", "0.0.0.0:0"]));
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("TLS") && error.contains("ssh -L"), "{error}");
    let agent = ["agent", "--redis", "redis://127.0.0.1:1", "--web", "127.0.0.1:0"];
    let (code, error) = refused(vbmd(dir.path()).args(agent));
    assert_eq!(code, 2, "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, error) = refused(vbmd(dir.path()).args(["--web", &address]));
    assert_eq!(code, 4, "{error}");
    assert!(!dir.path().join("s").exists());
}

#[test]
fn a_daemon_with_a_page_prints_a_login_link_and_gives_more_on_demand() {
    let mut daemon = Daemon::without_start();
    daemon.go_with(&["--driver", "sim", "--web", "localhost:0"], None);
    let link = daemon.ok(&["web", "login"]);
    let path = link.trim().split_once("/login?token=").unwrap();
    assert!(path.0.starts_with("http://127.0.0.1:"), "{link}");
    assert_eq!(path.1.len(), 43);
    let json = daemon.json(&["web", "login"]);
    assert!(
        json["url"] != link.trim() && json["expires_at"].is_string(),
        "{json}"
    );
    assert!(!daemon.log().contains("token="), "a secret was logged");
    let plain = Daemon::start();
    let said = plain.vbm(&["web", "login"]);
    assert_eq!(said.code, 7, "{}", said.err);
    assert!(said.err.contains("vbmd --web"), "{}", said.err);
}

#[test]
fn of_two_drivers_one_may_lack_its_program_and_a_launch_on_it_says_what_to_install() {
    let mut daemon = Daemon::without_start();
    let nothing = daemon.path("no-programs");
    std::fs::create_dir(&nothing).unwrap();
    daemon.go_with(&["--driver", "sim", "--driver", "virtualbox"], Some(&nothing));
    daemon.furnish();
    let said = daemon.vbm(&["launch", "tiny", "vb-1", "--driver", "virtualbox"]);
    assert_eq!(said.code, 7, "{}", said.err);
    assert!(
        said.err.contains("VBoxManage") && said.err.contains("install"),
        "{}",
        said.err
    );
    daemon.ok(&["launch", "tiny", "sim-1", "--driver", "sim"]);
}
