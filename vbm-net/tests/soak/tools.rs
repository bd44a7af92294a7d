//! What the tools of an administrator say in a namespace: one run of each, all at once, without a shell.
//!
//! Most of what the soak does is reading, so each program must be worth its start: `ip` tells links, addresses, neighbours and routes in one
//! run, and `ip6tables-save` and `bridge` are asked only where there is something to tell.

use crate::common::run_in;
use std::{
    collections::BTreeMap,
    io::Write,
    process::{Child, Command, Stdio},
};

/// What is asked of a place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// The namespace of a network.
    Inside { six: bool, spans: bool },
    /// The host.
    Host,
}

const OF_NETWORK: &str = "link show\naddr show\n";
const OF_HOST: &str = "link show\naddr show\nneigh show proxy\nroute show proto 86\n";
const FORWARDING: &str = "net/ipv4/ip_forward";
const SETTINGS_INSIDE: [&str; 3] = [
    FORWARDING,
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_tcp_loose",
];

/// What was read, by its heading.
pub(crate) struct Read(BTreeMap<&'static str, Vec<String>>);

impl Read {
    pub(crate) fn of(namespace: &str, ask: Ask) -> Self {
        run_in(namespace, move || Self::here(ask))
    }

    /// In the namespace of this thread.
    fn here(ask: Ask) -> Self {
        let mut running = vec![
            (
                "ip",
                start(
                    "ip",
                    &["-o", "-batch", "-"],
                    match ask {
                        Ask::Inside { .. } => OF_NETWORK,
                        Ask::Host => OF_HOST,
                    },
                ),
            ),
            ("rules", start("iptables-save", &[], "")),
        ];
        let mut settings = vec![FORWARDING];
        if let Ask::Inside { six, spans } = ask {
            settings = SETTINGS_INSIDE.to_vec();
            running.push(("guard", start("nft", &["list", "table", "bridge", "vbm"], "")));
            running.push(("sets", start("ipset", &["save"], "")));
            if six {
                running.push(("rules6", start("ip6tables-save", &[], "")));
            }
            if spans {
                running.push(("fdb", start("bridge", &["fdb", "show", "dev", "vx0"], "")));
            }
        }
        let mut all = BTreeMap::<&'static str, Vec<String>>::new();
        all.insert("set", settings.into_iter().map(setting).collect());
        for (heading, child) in running {
            let out = child.wait_with_output().unwrap();
            for line in String::from_utf8_lossy(&out.stdout).lines() {
                let heading = if heading == "ip" { said_of(line) } else { heading };
                all.entry(heading).or_default().push(line.to_owned());
            }
        }
        Self(all)
    }

    pub(crate) fn lines(&self, heading: &str) -> &[String] {
        self.0.get(heading).map_or(&[], Vec::as_slice)
    }

    /// Names of links, each with its line.
    pub(crate) fn links(&self) -> BTreeMap<&str, &str> {
        let name = |line: &'_ String| -> Option<(usize, usize)> {
            let start = line.find(": ")? + 2;
            let end = start + line[start..].find([':', '@'])?;
            Some((start, end))
        };
        let lines = self.lines("link").iter();
        lines
            .filter_map(|l| name(l).map(|(a, b)| (&l[a..b], l.as_str())))
            .collect()
    }
}

fn start(program: &str, args: &[&str], input: &str) -> Child {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    child
}

/// A setting of this thread's namespace; nothing where there is none.
fn setting(name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    text.trim().to_owned()
}

/// What a line of `ip -o` is about.
fn said_of(line: &str) -> &'static str {
    if line.contains(": <") {
        "link"
    } else if line.contains(" inet ") {
        "addr"
    } else if line.contains(" inet6 ") {
        "addr6"
    } else if line.contains(" proxy") {
        "proxy"
    } else {
        "routes"
    }
}
