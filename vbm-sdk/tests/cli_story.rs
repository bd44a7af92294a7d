//! The story of a newcomer, typed at the real `vbm` against a real `vbmd` with simulated VMs.

mod cli;

use cli::{Beside, Daemon};

#[test]
fn a_newcomer_gets_from_nothing_to_a_vm_and_back() {
    let daemon = Daemon::start();
    let empty = daemon.vbm(&["list"]);
    assert_eq!((empty.code, empty.out.as_str()), (0, ""));
    assert!(
        empty.err.contains("vbm launch"),
        "an empty list says what to type next: {}",
        empty.err
    );
    daemon.furnish();
    let launched = daemon.ok(&[
        "launch",
        "tiny",
        "web1",
        "--network",
        "lan",
        "--group",
        "web",
        "--label",
        "tier=front",
    ]);
    assert_eq!(launched, "web1 is running: 10.0.0.2 on lan\n");

    let list = daemon.ok(&["list"]);
    let lines: Vec<&str> = list.lines().collect();
    assert!(
        lines[0].starts_with("NAME  STATE    ADDRESS   CPUS  MEMORY  IMAGE  NODE"),
        "{list}"
    );
    assert!(
        lines[1].starts_with("web1  running  10.0.0.2  1     256M    tiny   local"),
        "{list}"
    );
    assert!(daemon.ok(&["info", "web1"]).contains("tier=front"));
    assert_eq!(daemon.ok(&["list", "-o", "name"]), "web1\n");

    assert_eq!(daemon.ok(&["stop", "web1"]), "web1 is off\n");
    assert_eq!(daemon.ok(&["start", "web1"]), "web1 is running\n");
    assert_eq!(daemon.ok(&["pause", "web1"]), "web1 is paused\n");
    assert_eq!(daemon.ok(&["resume", "web1"]), "web1 is running\n");
    assert_eq!(daemon.ok(&["restart", "web1"]), "web1 was restarted\n");
    assert_eq!(
        daemon.ok(&["wait", "web1", "--for", "running"]),
        "web1 is running\n"
    );

    let forward = daemon.ok(&[
        "forward",
        "create",
        "web1",
        "127.0.0.1:18080:80",
        "--name",
        "front",
    ]);
    assert_eq!(forward, "front: 127.0.0.1:18080 leads to web1 at 10.0.0.2:80\n");
    assert_eq!(daemon.ok(&["delete", "web1", "--force"]), "web1 is gone\n");
    for list in ["list", "port list", "forward list", "volume list"] {
        assert_eq!(
            daemon.json(&list.split(' ').collect::<Vec<_>>()),
            serde_json::json!([]),
            "{list}"
        );
    }
    assert_eq!(daemon.ok(&["network", "delete", "lan"]), "lan is gone\n");
    assert_eq!(daemon.ok(&["group", "delete", "web"]), "web is gone\n");
    assert_eq!(daemon.ok(&["image", "delete", "tiny"]), "tiny is gone\n");
}

#[test]
fn a_group_is_opened_and_closed_and_moved_while_a_vm_runs() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1", "--network", "lan"]);
    let groups = || daemon.json(&["info", "web1"])["nics"][0]["group_names"].clone();
    assert_eq!(daemon.ok(&["group", "attach", "web", "web1"]), "web1 is in web\n");
    assert_eq!(daemon.ok(&["group", "attach", "web", "web1"]), "web1 is in web\n");
    assert_eq!(groups(), serde_json::json!(["web"]));
    daemon.ok(&["group", "allow", "web", "tcp/443@10.0.0.0/8", "icmp"]);
    let rules = daemon.ok(&["group", "info", "web"]);
    assert!(
        rules.contains("tcp/443@10.0.0.0/8") && rules.matches("icmp").count() == 1,
        "{rules}"
    );
    daemon.ok(&["group", "deny", "web", "icmp", "tcp/80"]);
    assert!(daemon.ok(&["group", "list"]).contains("web   tcp/443@10.0.0.0/8"));
    assert_eq!(
        daemon.ok(&["group", "detach", "web", "web1"]),
        "web1 is out of web\n"
    );
    assert_eq!(groups(), serde_json::json!([]));
}

#[test]
fn a_port_is_limited_floats_and_is_counted_while_its_vm_runs() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1", "--network", "lan", "--group", "web"]);
    assert_eq!(
        daemon.ok(&["port", "limit", "web1", "--in", "100mbit", "--out", "20mbit"]),
        "web1 on lan: in 100mbit, out 20mbit, connections unlimited\n"
    );
    assert_eq!(
        daemon.ok(&["port", "limit", "web1", "--out", "none", "--connections", "500"]),
        "web1 on lan: in 100mbit, out unlimited, connections 500\n"
    );
    assert_eq!(
        daemon.ok(&["floating-ip", "attach", "192.0.2.50", "web1"]),
        "192.0.2.50 leads to web1\n"
    );
    assert!(
        daemon
            .ok(&["floating-ip", "list"])
            .contains("192.0.2.50   attached, not kept  10.0.0.2  web1  lan")
    );
    let port = &daemon.json(&["port", "list"])[0]["spec"];
    assert_eq!(port["limits"]["connections"], 500);
    assert_eq!(port["floating_ip"], "192.0.2.50");
    assert_eq!(daemon.ok(&["net", "plan", "lan"]), "local: all is as wanted\n");
    let counted = daemon.ok(&["net", "counters", "lan"]);
    assert!(
        counted.contains("10.0.0.2  web1") && counted.contains("tcp/80"),
        "{counted}"
    );
    assert!(daemon.ok(&["net", "check"]).starts_with("local: "));
    assert_eq!(
        daemon.ok(&["floating-ip", "detach", "web1"]),
        "192.0.2.50 is free\n"
    );
    assert_eq!(daemon.json(&["floating-ip", "list"]), serde_json::json!([]));
    let range = daemon.ok(&[
        "forward",
        "create",
        "web1",
        "18000-18009:8000-8009",
        "--name",
        "r",
    ]);
    assert_eq!(range, "r: *:18000-18009 leads to web1 at 10.0.0.2:8000-8009\n");
}

#[test]
fn a_vm_is_kept_and_brought_back() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1", "--network", "lan"]);
    let empty = daemon.vbm(&["snapshot", "list", "web1"]);
    assert_eq!((empty.code, empty.out.as_str()), (0, ""));
    assert!(empty.err.contains("vbm snapshot create web1"), "{}", empty.err);
    let typed = |line: &str, answer: &str| {
        let said = daemon.vbm_typed(&["console", "web1", "--until", answer, "--timeout", "20"], line);
        assert_eq!(said.code, 0, "{said:?}");
    };
    typed("write before\n", "written=before");
    let taken = daemon.ok(&["snapshot", "create", "web1", "base", "--label", "why=upgrade"]);
    assert!(
        taken.starts_with("web1/base was taken: disk and memory"),
        "{taken}"
    );
    typed("write after\n", "written=after");
    daemon.ok(&["snapshot", "create", "web1"]);
    let list = daemon.ok(&["snapshot", "list", "web1"]);
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines[0].starts_with("NAME      STATE  HOLDS"), "{list}");
    assert!(lines[1].starts_with("base      ready  disk and memory"), "{list}");
    assert!(
        lines[2].starts_with("└─ snap0  ready") && lines[2].ends_with("yes"),
        "{list}"
    );
    assert_eq!(
        daemon.ok(&["snapshot", "ls", "web1", "-o", "name"]),
        "base\nsnap0\n"
    );
    let info = daemon.ok(&["snapshot", "info", "web1", "base"]);
    assert!(info.contains("why=upgrade") && info.contains("Holds:"), "{info}");

    let back = daemon.ok(&["snapshot", "revert", "web1", "base"]);
    assert_eq!(back, "web1 is as it was at base, and running\n");
    typed("read one\n", "disk=before#one");
    let frozen = daemon.ok(&["snapshot", "create", "web1", "frozen", "--no-memory", "--freeze"]);
    assert_eq!(frozen, "web1/frozen was taken: disk, frozen\n");
    let alone = daemon.ok(&["snapshot", "create", "web1", "alone", "--no-memory"]);
    assert_eq!(alone, "web1/alone was taken: disk, as after a power cut\n");
    daemon.ok(&["snapshot", "delete", "web1", "frozen", "alone"]);
    let gone = daemon.ok(&["snapshot", "delete", "web1", "base", "snap0"]);
    assert_eq!(gone, "web1/base is gone\nweb1/snap0 is gone\n");
    assert_eq!(daemon.json(&["snapshot", "list", "web1"]), serde_json::json!([]));

    assert_eq!(daemon.ok(&["save", "web1"]), "web1 is saved\n");
    assert!(daemon.ok(&["list"]).contains("saved"));
    assert_eq!(daemon.ok(&["start", "web1"]), "web1 is running\n");
    assert_eq!(daemon.ok(&["save", "web1"]), "web1 is saved\n");
    assert_eq!(
        daemon.ok(&["discard", "web1"]),
        "web1 is off, its memory is gone\n"
    );
    let operation = daemon.json(&["snapshot", "create", "web1", "off", "--async"]);
    daemon.ok(&["operation", "wait", operation["id"].as_str().unwrap()]);
    let back = daemon.ok(&["snapshot", "revert", "web1", "off"]);
    assert_eq!(back, "web1 is as it was at off, and off\n");
    assert_eq!(daemon.ok(&["delete", "web1"]), "web1 is gone\n");
}

#[test]
fn a_console_serves_scripts() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1"]);
    let found = daemon.ok(&[
        "console",
        "web1",
        "--until",
        "ready hostname=web1",
        "--timeout",
        "20",
    ]);
    assert!(found.contains("ready hostname=web1"), "{found}");
    assert!(
        daemon
            .ok(&["console", "web1", "--log"])
            .contains("ready hostname=web1")
    );
    let typed = daemon.vbm_typed(&["console", "web1"], "echo hello there\n");
    assert!(
        typed.code == 0 && typed.out.contains("\nhello there"),
        "{typed:?}"
    );
    assert!(
        !typed.out.contains("ready hostname"),
        "only what comes of the input: {}",
        typed.out
    );
    let until = daemon.vbm_typed(
        &["console", "web1", "--until", "\nagain", "--timeout", "20"],
        "echo again\n",
    );
    assert_eq!(until.code, 0, "{until:?}");
    // What was said before is not taken for the answer.
    let never = daemon.vbm_typed(
        &["console", "web1", "--until", "\nagain", "--timeout", "3"],
        "echo other\n",
    );
    assert_eq!(never.code, 9, "{never:?}");
    let png = daemon.path("screen.png");
    daemon.ok(&["screenshot", "web1", png.to_str().unwrap()]);
    assert!(std::fs::read(png).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
}

#[test]
fn what_is_not_waited_for_can_be_waited_for_later() {
    let daemon = Daemon::start();
    daemon.furnish();
    let operation = daemon.json(&["launch", "tiny", "web1", "--async"]);
    let id = operation["id"].as_str().unwrap();
    let done = daemon.json(&["operation", "wait", id]);
    assert_eq!(
        (done["state"].as_str(), done["verb"].as_str()),
        (Some("done"), Some("launch"))
    );
    assert!(daemon.ok(&["operation", "info", id]).contains("vm web1"));
    let several = daemon.json(&["stop", "web1", "--async"]);
    daemon.ok(&["operation", "wait", several[0]["id"].as_str().unwrap()]);
    let named = daemon.ok(&["start", "web1", "--async", "-o", "name"]);
    daemon.ok(&["operation", "wait", named.trim()]);
}

#[test]
fn every_list_has_every_form() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1", "--network", "lan"]);
    daemon.ok(&["forward", "create", "web1", "18080:80"]);
    for list in [
        "list",
        "network list",
        "port list",
        "group list",
        "forward list",
        "volume list",
        "image list",
        "node list",
        "operation list",
    ] {
        let words: Vec<&str> = list.split(' ').collect();
        let json = daemon.json(&words);
        let count = json.as_array().unwrap().len();
        assert!(count > 0, "{list}");
        let yaml: serde_json::Value =
            serde_yaml_ng::from_str(&daemon.ok(&[&words[..], &["-o", "yaml"]].concat())).unwrap();
        assert_eq!(yaml, json, "{list}");
        assert_eq!(
            daemon.ok(&[&words[..], &["-o", "name"]].concat()).lines().count(),
            count,
            "{list}"
        );
        assert_eq!(daemon.ok(&words).lines().count(), count + 1, "{list}");
        let (plain, wide) = (
            daemon.ok(&words),
            daemon.ok(&[&words[..], &["-o", "wide"]].concat()),
        );
        assert!(
            wide.lines().next().unwrap().len() > plain.lines().next().unwrap().len(),
            "{list}"
        );
    }
}

#[test]
fn things_are_named_by_the_beginning_of_their_id() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1"]);
    let id = daemon.json(&["info", "web1"])["id"].as_str().unwrap().to_owned();
    for name in [&id[..], &id[..20]] {
        assert_eq!(daemon.json(&["info", name])["name"], "web1", "{name}");
    }
}

#[test]
fn events_are_followed_across_a_restart_of_the_daemon() {
    let mut daemon = Daemon::start();
    daemon.furnish();
    let mut follower = Beside::start(&daemon, &["events", "--follow", "-o", "json"]);
    let mut lines = follower.lines();
    let mut until = |last: &str| {
        let mut seen = Vec::new();
        for line in lines.by_ref() {
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let told = format!("{} {}", word(&event["kind"]), word(&event["object"]["name"]));
            seen.push((event["revision"].as_u64().unwrap(), told.clone()));
            if told == last {
                return seen;
            }
        }
        panic!("the events ended before {last}: {seen:?}");
    };
    let before = until("GroupCreated web");
    daemon.kill();
    daemon.go();
    daemon.ok(&["network", "create", "other", "10.9.0.0/24"]);
    let after = until("NetworkReady other");
    let all: Vec<_> = before.iter().chain(&after).collect();
    assert!(all.is_sorted_by_key(|(revision, _)| revision), "{all:?}");
    for once in [
        "NetworkCreated lan",
        "GroupCreated web",
        "NetworkCreated other",
        "NetworkReady other",
    ] {
        assert_eq!(
            all.iter().filter(|(_, told)| told == once).count(),
            1,
            "{once}: {all:?}"
        );
    }
}

#[test]
fn help_completions_and_versions_need_no_daemon() {
    let place = tempfile::tempdir().unwrap();
    let vbm = |words: &[&str]| cli::vbm_at(&place.path().join("none.sock"), words, "");
    let alone = vbm(&[]);
    assert!(
        alone.code == 0 && alone.out.contains("The first minutes:"),
        "{alone:?}"
    );
    assert!(vbm(&["launch", "--help"]).out.contains("Examples:"));
    for shell in ["bash", "zsh", "fish"] {
        let script = vbm(&["completions", shell]);
        assert!(
            script.code == 0 && script.out.contains("launch"),
            "{shell}: {}",
            script.err
        );
    }
    let version = vbm(&["version"]);
    assert!(
        version.code == 8 && version.out.contains(env!("CARGO_PKG_VERSION")),
        "{version:?}"
    );
    assert_eq!(vbm(&["network"]).code, 2);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let daemon = Daemon::start();
    daemon.furnish();
    let mut follower = Beside::start(&daemon, &["events"]);
    let first = follower.lines().next().unwrap();
    assert!(first.contains("Ready") || first.contains("Imported"), "{first}");
}
