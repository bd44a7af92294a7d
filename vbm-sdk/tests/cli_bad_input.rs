//! Bad input, typed at the real `vbm` against a real `vbmd` with simulated VMs: three lines, the documented exit
//! code, and nothing half-made.

mod cli;

use cli::{Daemon, vbm_at};

/// Each is refused with this exit code, its headline has this word, and nothing of it is left.
fn refuse_all(daemon: &Daemon, cases: &[(&[&str], i32, &str)]) {
    let before = daemon.inventory();
    let mut wrong = Vec::new();
    for (words, code, word) in cases {
        let said = daemon.vbm(words);
        if let Err(why) = said.refusal(*code) {
            wrong.push(format!("vbm {}: {why}", words.join(" ")));
        } else if !said.err.contains(word) {
            wrong.push(format!(
                "vbm {}: '{word}' is not in\n{}",
                words.join(" "),
                said.err
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert_eq!(daemon.inventory(), before, "something half-made is left");
}

#[test]
fn launches_that_make_no_sense_are_refused() {
    let daemon = Daemon::start();
    daemon.furnish();
    let first = [
        "launch",
        "tiny",
        "first",
        "--network",
        "lan,address=10.0.0.9,mac=52:54:00:00:00:09",
    ];
    daemon.ok(&first);
    refuse_all(
        &daemon,
        &[
            (&["launch", "nope", "web1"], 3, "'nope'"),
            (&["launch", "tiny", "Web_1"], 2, "'Web_1'"),
            (&["launch", "tiny", "-"], 2, "'-'"),
            (&["launch", "tiny", "first"], 4, "first"),
            (&["launch", "tiny", "web1", "--network", "nope"], 3, "'nope'"),
            (
                &["launch", "tiny", "web1", "--network", "lan,group=nope"],
                3,
                "'nope'",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,address=10.0.1.5"],
                2,
                "10.0.1.5",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,address=10.0.0.1"],
                2,
                "10.0.0.1",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,address=10.0.0.255"],
                2,
                "10.0.0.255",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,address=10.0.0"],
                2,
                "'10.0.0'",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,address=10.0.0.9"],
                4,
                "10.0.0.9",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,mac=52:54:00:00:00:09"],
                4,
                "52:54:00:00:00:09",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,mac=ff:ff:ff:ff:ff:ff"],
                2,
                "ff:ff:ff:ff:ff:ff",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,mac=52:54"],
                2,
                "'52:54'",
            ),
            (
                &["launch", "tiny", "web1", "--network", "lan,colour=red"],
                2,
                "colour",
            ),
            (
                &["launch", "tiny", "web1", "--address", "10.0.0.5"],
                2,
                "--address",
            ),
            (&["launch", "tiny", "web1", "--cpus", "0"], 2, "0 CPUs"),
            (&["launch", "tiny", "web1", "--cpus", "70000"], 2, "70000"),
            (&["launch", "tiny", "web1", "--memory", "1"], 2, "memory"),
            (&["launch", "tiny", "web1", "--memory", "lots"], 2, "'lots'"),
            (&["launch", "tiny", "web1", "--disk", "0"], 2, "'0'"),
            (
                &["launch", "tiny", "web1", "--node", "eu/nowhere"],
                3,
                "eu/nowhere",
            ),
            (&["launch", "tiny", "web1", "--driver", "xen"], 2, "'xen'"),
            (&["launch", "tiny", "web1", "--label", "x"], 2, "'x'"),
            (&["launch"], 2, "<IMAGE>"),
        ],
    );
}

#[test]
fn a_launch_of_several_nics_that_fails_at_the_last_leaves_nothing_of_the_first() {
    let daemon = Daemon::start();
    daemon.furnish();
    refuse_all(
        &daemon,
        &[(
            &[
                "launch",
                "tiny",
                "web1",
                "--network",
                "lan,address=10.0.0.5",
                "--network",
                "lan,address=10.0.0.5",
            ],
            4,
            "10.0.0.5",
        )],
    );
    // The address that was refused with its VM is free.
    daemon.ok(&["launch", "tiny", "web1", "--network", "lan,address=10.0.0.5"]);
}

#[test]
fn networks_that_make_no_sense_are_refused() {
    let daemon = Daemon::start();
    daemon.furnish();
    refuse_all(
        &daemon,
        &[
            (&["network", "create", "lan", "10.1.0.0/24"], 4, "lan"),
            (&["network", "create", "Lan", "10.1.0.0/24"], 2, "'Lan'"),
            (&["network", "create", "n", "10.1.0.0"], 2, "'10.1.0.0'"),
            (&["network", "create", "n", "10.1.0.0/33"], 2, "10.1.0.0/33"),
            (&["network", "create", "n", "10.1.0.1/24"], 2, "10.1.0.1/24"),
            (&["network", "create", "n", "10.1.0.0/31"], 2, "10.1.0.0/31"),
            (&["network", "create", "n", "127.0.0.0/24"], 2, "127.0.0.0/24"),
            (
                &["network", "create", "n", "10.1.0.0/24", "--gateway", "10.2.0.1"],
                2,
                "10.2.0.1",
            ),
            (
                &[
                    "network",
                    "create",
                    "n",
                    "10.1.0.0/24",
                    "--pool",
                    "10.1.0.9-10.1.0.2",
                ],
                2,
                "10.1.0.9-10.1.0.2",
            ),
            (
                &["network", "create", "n", "10.1.0.0/24", "--pool", "10.1.0.9"],
                2,
                "'10.1.0.9'",
            ),
            (
                &["network", "create", "n", "10.1.0.0/24", "--mode", "bridge"],
                2,
                "'bridge'",
            ),
            (
                &["network", "create", "n", "10.1.0.0/24", "--mode", "bridged"],
                2,
                "uplink: none",
            ),
            (
                &["network", "create", "n", "10.1.0.0/24", "--uplink", "eth0"],
                2,
                "uplink: it cannot be used",
            ),
            (
                &[
                    "network",
                    "create",
                    "n",
                    "10.1.0.0/24",
                    "--mode",
                    "routed",
                    "--uplink",
                    "eth0/x",
                ],
                2,
                "'eth0/x'",
            ),
            (
                &[
                    "network",
                    "create",
                    "n",
                    "10.1.0.0/24",
                    "--mode",
                    "bridged",
                    "--uplink",
                    "br0",
                    "--ipv6",
                    "fd00:7::/64",
                ],
                2,
                "ipv6: it cannot be given",
            ),
            (
                &[
                    "network",
                    "create",
                    "n",
                    "10.1.0.0/24",
                    "--mode",
                    "routed",
                    "--no-such",
                ],
                2,
                "--no-such",
            ),
            (
                &["network", "create", "n", "10.1.0.0/24", "--mtu", "100"],
                2,
                "100",
            ),
            (
                &["network", "create", "n", "10.1.0.0/24", "--lease", "1s"],
                2,
                "lease",
            ),
            (
                &["network", "create", "n", "10.1.0.0/24", "--domain", "-x"],
                2,
                "-x",
            ),
            (&["network", "create", "n"], 2, "<CIDR>"),
            (&["network", "info", "nope"], 3, "'nope'"),
            (&["network", "delete", "nope"], 3, "'nope'"),
            (&["network", "leases", "nope"], 3, "'nope'"),
        ],
    );
}

#[test]
fn rules_and_forwards_that_make_no_sense_are_refused() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1", "--network", "lan"]);
    daemon.ok(&["launch", "tiny", "lonely"]);
    daemon.ok(&["forward", "create", "web1", "18080:80", "--name", "front"]);
    refuse_all(
        &daemon,
        &[
            (&["group", "create", "web"], 4, "web"),
            (&["group", "create", "g", "443:80"], 2, "'443:80'"),
            (&["group", "create", "g", "tcp/443:80"], 2, "'tcp/443:80'"),
            (&["group", "create", "g", "tcp/0"], 2, "'tcp/0'"),
            (&["group", "allow", "web", "tcp/70000"], 2, "'tcp/70000'"),
            (&["group", "allow", "web", "icmp/8"], 2, "'icmp/8'"),
            (&["group", "allow", "nope", "tcp/80"], 3, "'nope'"),
            (&["group", "deny", "web", "tcp/81"], 3, "'tcp/81'"),
            (&["group", "attach", "nope", "web1"], 3, "'nope'"),
            (&["group", "attach", "web", "nope"], 3, "'nope'"),
            (&["group", "attach", "web", "lonely"], 3, "'lonely'"),
            (&["group", "detach", "web", "web1"], 3, "'web1'"),
            (&["forward", "create", "web1", "0:80"], 2, "'0:80'"),
            (&["forward", "create", "web1", "70000:80"], 2, "'70000:80'"),
            (&["forward", "create", "web1", "80:70000"], 2, "'80:70000'"),
            (&["forward", "create", "web1", "80"], 2, "'80'"),
            (&["forward", "create", "web1", "18081:80/icmp"], 2, "icmp"),
            (&["forward", "create", "web1", "18080:81"], 4, "18080"),
            (&["forward", "create", "web1", "127.0.0.1:18080:81"], 4, "18080"),
            (
                &["forward", "create", "web1", "18081:80", "--name", "front"],
                4,
                "front",
            ),
            (&["forward", "create", "nope", "18081:80"], 3, "'nope'"),
            (&["forward", "delete", "nope"], 3, "'nope'"),
        ],
    );
    // `lonely` has no NIC that a forward could lead to.
    let said = daemon.vbm(&["forward", "create", "lonely", "18081:80"]);
    assert!([2, 4].contains(&said.code), "{said:?}");
    said.refused(said.code);
}

#[test]
fn limits_and_floating_ips_that_make_no_sense_are_refused() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1", "--network", "lan"]);
    daemon.ok(&["launch", "tiny", "web2", "--network", "lan"]);
    daemon.ok(&["launch", "tiny", "lonely"]);
    daemon.ok(&["floating-ip", "attach", "192.0.2.50", "web1"]);
    daemon.ok(&["forward", "create", "web1", "18000-18009:80", "--name", "range"]);
    refuse_all(
        &daemon,
        &[
            (&["port", "limit", "web1"], 2, "nothing is to be limited"),
            (&["port", "limit", "web1", "--in", "fast"], 2, "'fast'"),
            (&["port", "limit", "web1", "--in", "0kbit"], 2, "0kbit"),
            (&["port", "limit", "web1", "--out", "33gbit"], 2, "33gbit"),
            (
                &["port", "limit", "web1", "--connections", "0"],
                2,
                "0 connections",
            ),
            (&["port", "limit", "web1", "--connections", "many"], 2, "'many'"),
            (&["port", "limit", "nope", "--in", "1mbit"], 3, "'nope'"),
            (&["port", "limit", "lonely", "--in", "1mbit"], 3, "'lonely'"),
            (&["floating-ip", "attach", "here", "web2"], 3, "'here'"),
            (&["floating-ip", "attach", "fd00::1", "web2"], 2, "'fd00::1'"),
            (&["floating-ip", "attach", "10.0.0.77", "web2"], 2, "10.0.0.77"),
            (&["floating-ip", "attach", "127.0.0.1", "web2"], 2, "127.0.0.1"),
            (&["floating-ip", "attach", "192.0.2.50", "web2"], 4, "web1"),
            (&["floating-ip", "attach", "192.0.2.51", "nope"], 3, "'nope'"),
            (&["floating-ip", "detach", "web2"], 3, "'web2'"),
            (&["net", "plan", "nope"], 3, "'nope'"),
            (&["net", "counters", "nope"], 3, "'nope'"),
            (&["forward", "create", "web1", "18009-18000:80"], 2, "18009-18000"),
            (
                &["forward", "create", "web1", "18100-18109:80-81"],
                2,
                "18100-18109",
            ),
            (&["forward", "create", "web1", "18100-18700:80"], 2, "601 ports"),
            (&["forward", "create", "web1", "65530-65535:65531"], 2, "65531"),
            (&["forward", "create", "web1", "18005:80"], 4, "18000-18009"),
            (&["forward", "create", "web1", "17990-18000:80"], 4, "range"),
        ],
    );
}

#[test]
fn images_that_are_none_are_refused() {
    let daemon = Daemon::start();
    daemon.furnish();
    let path = |name: &str| daemon.path(name).to_str().unwrap().to_owned();
    std::fs::write(daemon.path("fake.qcow2"), b"this is no disk").unwrap();
    std::fs::write(daemon.path("short.qcow2"), b"QFI\xfb\0\0\0\x03").unwrap();
    std::fs::create_dir(daemon.path("guest")).unwrap();
    std::fs::write(daemon.path("guest/guest.json"), b"{}").unwrap();
    refuse_all_quietly(
        &daemon,
        &[
            (
                &["image", "import", "x", "--disk", &path("fake.qcow2")],
                2,
                "qcow2",
            ),
            (
                &["image", "import", "x", "--disk", &path("short.qcow2")],
                2,
                "qcow2",
            ),
            (
                &["image", "import", "tiny", "--disk", &path("disk.raw")],
                4,
                "tiny",
            ),
            (
                &["image", "import", "Tiny", "--disk", &path("disk.raw")],
                2,
                "'Tiny'",
            ),
            (&["image", "import", "x", "--disk", &path("none")], 3, "none"),
            (&["image", "import", "x", "--disk", &path("guest")], 2, "guest"),
            (
                &["image", "import", "x", "--guest", &path("guest")],
                2,
                "guest.json",
            ),
            (
                &["image", "import", "x", "--guest", &path("none")],
                3,
                "guest.json",
            ),
            (&["image", "import", "x"], 2, "--disk"),
            (
                &[
                    "image",
                    "import",
                    "x",
                    "--disk",
                    &path("disk.raw"),
                    "--kernel",
                    &path("disk.raw"),
                ],
                2,
                "--initrd",
            ),
            (&["image", "delete", "nope"], 3, "'nope'"),
        ],
    );
}

#[test]
fn snapshots_that_make_no_sense_are_refused() {
    let daemon = Daemon::start();
    daemon.furnish();
    for vm in ["web1", "db1"] {
        daemon.ok(&["launch", "tiny", vm]);
    }
    daemon.ok(&["launch", "tiny", "off1", "--stopped"]);
    daemon.ok(&["snapshot", "create", "web1", "base"]);
    let before = daemon.json(&["snapshot", "list", "web1"]);
    let id = before[0]["id"].as_str().unwrap();
    let long = "a".repeat(64);
    refuse_all(
        &daemon,
        &[
            (&["snapshot", "create"], 2, "VM"),
            (&["snapshot", "create", "nope"], 3, "'nope'"),
            (&["snapshot", "create", "web1", "base"], 4, "'base'"),
            (&["snapshot", "create", "web1", "<script>"], 2, "<script>"),
            (&["snapshot", "create", "web1", "it's"], 2, "it's"),
            (&["snapshot", "create", "web1", "a\"b"], 2, "a\"b"),
            (&["snapshot", "create", "web1", "快照"], 2, "快照"),
            (&["snapshot", "create", "web1", "../base"], 2, "../base"),
            (&["snapshot", "create", "web1", &long], 2, "63"),
            (&["snapshot", "create", "web1", "x", "--label", "y"], 2, "'y'"),
            (&["snapshot", "create", "web1", "x", "--freeze"], 2, "--no-memory"),
            (
                &[
                    "snapshot",
                    "create",
                    "web1",
                    "x",
                    "--no-memory",
                    "--freeze=perhaps",
                ],
                2,
                "if-possible",
            ),
            (&["snapshot", "list", "nope"], 3, "'nope'"),
            (&["snapshot", "info", "web1", ""], 2, "snapshot"),
            (&["snapshot", "revert", "web1", "nope"], 3, "'nope'"),
            (&["snapshot", "revert", "web1", "../base"], 3, "'../base'"),
            (&["snapshot", "revert", "db1", "base"], 3, "'base'"),
            (&["snapshot", "revert", "db1", id], 3, "db1"),
            (&["snapshot", "delete", "db1", "base"], 3, "'base'"),
            (&["snapshot", "delete", "web1"], 2, "SNAPSHOT"),
            (&["save", "nope"], 3, "'nope'"),
            (&["save", "off1"], 4, "off1"),
            (&["discard", "web1"], 4, "web1"),
            (&["discard", "off1"], 4, "off1"),
        ],
    );
    assert_eq!(daemon.json(&["snapshot", "list", "web1"]), before);
}

/// The same where files are sent first, of which a line tells.
fn refuse_all_quietly(daemon: &Daemon, cases: &[(&[&str], i32, &str)]) {
    let quiet: Vec<Vec<&str>> = cases
        .iter()
        .map(|(words, ..)| [&["-q"], *words].concat())
        .collect();
    let cases: Vec<(&[&str], i32, &str)> = quiet
        .iter()
        .zip(cases)
        .map(|(q, (_, code, word))| (&q[..], *code, *word))
        .collect();
    refuse_all(daemon, &cases);
}

#[test]
fn what_the_state_does_not_allow_is_refused() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1", "--network", "lan", "--group", "web"]);
    daemon.ok(&["launch", "tiny", "idle", "--stopped"]);
    refuse_all(
        &daemon,
        &[
            (&["delete", "web1"], 4, "web1"),
            (&["network", "delete", "lan"], 4, "lan"),
            (&["group", "delete", "web"], 4, "web"),
            (&["image", "delete", "tiny"], 4, "tiny"),
            (&["console", "idle"], 4, "start it"),
            (&["screenshot", "idle", "/dev/null"], 4, "idle"),
            (&["pause", "idle"], 4, "off"),
            (&["restart", "idle"], 4, "off"),
            (&["info", "nope"], 3, "'nope'"),
            (&["info", ""], 2, "''"),
            (&["start", "nope"], 3, "'nope'"),
            (&["stop", "nope"], 3, "'nope'"),
            (&["console", "nope"], 3, "'nope'"),
            (&["console", "web1", "--until", ""], 2, "empty"),
            (&["operation", "wait", "nope"], 3, "'nope'"),
            (&["node", "info", "nope"], 3, "'nope'"),
            (&["wait", "web1", "--for", "off", "--timeout", "1"], 9, "web1"),
            (&["list", "--timeout", "soon"], 2, "'soon'"),
            (&["lunch"], 2, "'launch'"),
        ],
    );
}

#[test]
fn several_failures_are_all_told_and_what_can_be_done_is_done() {
    let daemon = Daemon::start();
    daemon.furnish();
    daemon.ok(&["launch", "tiny", "web1"]);
    let said = daemon.vbm(&["-q", "stop", "nope", "web1", "none"]);
    assert_eq!((said.code, said.out.as_str()), (3, "web1\n"), "{said:?}");
    assert_eq!(said.err.lines().count(), 6, "{}", said.err);
    assert_eq!(daemon.json(&["info", "web1"])["status"]["power"]["state"], "off");
}

#[test]
fn programs_get_problem_json() {
    let daemon = Daemon::start();
    for words in [&["info", "nope", "-o", "json"][..], &["lunch", "-o", "json"]] {
        let said = daemon.vbm(words);
        let problem: serde_json::Value =
            serde_json::from_str(&said.err).unwrap_or_else(|e| panic!("{e}: {}", said.err));
        let kind = problem["error"]["kind"].as_str().unwrap();
        assert_eq!(problem["type"], format!("urn:vbm:problem:{kind}"));
        assert!(
            problem["error"]["fix"]
                .as_str()
                .is_some_and(|fix| !fix.is_empty())
        );
        assert_eq!(said.code, if kind == "not-found" { 3 } else { 2 });
    }
}

#[test]
fn without_a_daemon_each_command_says_how_to_start_it() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("none.sock");
    for words in [
        "list",
        "launch tiny",
        "events --follow",
        "network list",
        "console web1",
        "wait web1 --for off",
        "node list",
    ] {
        let said = vbm_at(&socket, &words.split(' ').collect::<Vec<_>>(), "");
        let headline = said.refused(8);
        assert!(
            headline.contains("none.sock") && said.err.contains("start it with `vbmd`"),
            "{words}: {}",
            said.err
        );
    }
}
