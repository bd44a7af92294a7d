//! The metadata service, asked over HTTP by guests in real namespaces; its documents read by python's yaml.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]
#![allow(clippy::cast_possible_truncation, reason = "test values are small")]

mod common;

use common::{DEADLINE, Guest, Lab, eventually, network};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};
use vbm_core::{MetadataMode, NetworkMode};
use vbm_net::{
    DesiredNetwork, NetError, NetworkBackend,
    metadata::{Instance, MetadataSeen},
};

const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 254), 80);

fn told(mode: MetadataMode, ports: u8) -> DesiredNetwork {
    let mut wanted = network(NetworkMode::Nat, ports);
    wanted.spec.metadata = mode;
    wanted
}

fn instance(id: &str) -> Instance {
    Instance {
        id: id.into(),
        user_data: Some(format!("#cloud-config\n# of {id}\nhostname: '{id}: \"x\"'\n").into_bytes()),
        ssh_keys: vec![format!("ssh-ed25519 AAAA {id}@home")],
        ..Instance::default()
    }
}

/// Says of all ports that there is no more to say of them.
async fn describe_all(lab: &Lab, wanted: &DesiredNetwork) {
    for port in &wanted.ports {
        lab.net.describe(wanted.id, port.id, None).await.unwrap();
    }
}

/// What comes back for these bytes, to the end of the connection.
fn exchange(guest: &Guest, request: impl Into<Vec<u8>>) -> String {
    let request = request.into();
    guest.ns.run(move || {
        let Ok(mut stream) = TcpStream::connect_timeout(&SERVICE.into(), Duration::from_secs(2)) else {
            return "no connection".to_owned();
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let _sent = stream.write_all(&request);
        let mut text = Vec::new();
        let _end = stream.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Status and body.
fn ask(guest: &Guest, method: &str, path: &str, field: &str) -> (u16, String) {
    let text = exchange(
        guest,
        format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n{field}\r\n\r\n")
            .replace("\r\n\r\n\r\n", "\r\n\r\n"),
    );
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or_default();
    (status, body.to_owned())
}

fn token(guest: &Guest) -> String {
    let (status, token) = ask(
        guest,
        "PUT",
        "/latest/api/token",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
    );
    assert_eq!(status, 200, "{token}");
    token
}

fn get(guest: &Guest, path: &str) -> (u16, String) {
    let field = format!("X-aws-ec2-metadata-token: {}", token(guest));
    ask(guest, "GET", path, &field)
}

async fn seen(lab: &Lab) -> MetadataSeen {
    lab.net.inventory().await.unwrap()[0].services.metadata.unwrap()
}

/// A YAML document through python's reader, as an expression over it in python.
fn yaml(document: &str, expression: &str) -> String {
    let program = format!("import sys, yaml\nd = yaml.safe_load(sys.stdin)\nprint({expression})");
    let mut python = Command::new("python3")
        .args(["-c", &program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs python3 with yaml (Debian: python3-yaml), or VBM_LEAVE_OUT=namespaces");
    python
        .stdin
        .take()
        .unwrap()
        .write_all(document.as_bytes())
        .unwrap();
    let out = python.wait_with_output().unwrap();
    assert!(
        out.status.success(),
        "{}\n{document}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_guest_reads_its_own_data_and_never_anothers() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = told(MetadataMode::Token, 2);
    lab.ensure(&wanted).await;
    let (a, b) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    a.dhcp();
    b.dhcp();
    lab.net
        .describe(wanted.id, wanted.ports[0].id, Some(instance("i-a")))
        .await
        .unwrap();
    lab.net
        .describe(wanted.id, wanted.ports[1].id, Some(instance("i-b")))
        .await
        .unwrap();
    for (guest, id, host) in [(&a, "i-a", "guest-0"), (&b, "i-b", "guest-1")] {
        assert_eq!(get(guest, "/latest/meta-data/instance-id"), (200, id.to_owned()));
        assert_eq!(
            get(guest, "/latest/meta-data/local-hostname"),
            (200, format!("{host}.lab.example"))
        );
        let (status, data) = get(guest, "/latest/user-data");
        assert!(status == 200 && data.contains(&format!("# of {id}")), "{data}");
        let (_, key) = get(guest, "/latest/meta-data/public-keys/0/openssh-key");
        assert!(key.ends_with(&format!("{id}@home")), "{key}");
    }
    // A's token does not open anything for B, and no field of B's can name A.
    let stolen = format!("X-aws-ec2-metadata-token: {}", token(&a));
    assert_eq!(ask(&b, "GET", "/latest/user-data", &stolen).0, 401);
    assert_eq!(
        ask(&b, "GET", "/latest/user-data", "X-Forwarded-For: 10.9.0.10").0,
        403
    );
    // B in A's address: the guard lets nothing of it through.
    b.ns.ip("addr add 10.9.0.10/24 dev eth0");
    let posing = b.ns.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&std::net::SocketAddrV4::new([10, 9, 0, 10].into(), 0).into())
            .unwrap();
        let to = std::net::SocketAddrV4::new(SERVICE.0, SERVICE.1);
        socket.connect_timeout(&to.into(), Duration::from_secs(1)).is_ok()
    });
    assert!(!posing, "nobody speaks from another's address");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_network_serves_the_form_of_nocloud_and_another_reader_reads_it() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = told(MetadataMode::Open, 2);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let mut both = instance("i-0123");
    both.macs = vec![wanted.ports[0].mac, vbm_core::Mac::local(0x77)];
    lab.net
        .describe(wanted.id, wanted.ports[0].id, Some(both))
        .await
        .unwrap();
    let read = |path: &str| {
        let (status, body) = ask(&guest, "GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    };
    let meta = read("/nocloud/meta-data");
    assert_eq!(
        yaml(&meta, "d['instance-id'], d['local-hostname']"),
        "i-0123 guest-0.lab.example"
    );
    assert_eq!(yaml(&meta, "d['public-keys'][0]"), "ssh-ed25519 AAAA i-0123@home");
    let config = read("/nocloud/network-config");
    assert_eq!(
        yaml(&config, "d['version'], d['ethernets']['eth0']['dhcp4']"),
        "2 True"
    );
    assert_eq!(
        yaml(&config, "d['ethernets']['eth0']['match']['macaddress']"),
        wanted.ports[0].mac.to_string()
    );
    assert_eq!(
        yaml(&config, "d['ethernets']['eth1']['dhcp4-overrides']"),
        "{'use-routes': False}"
    );
    assert_eq!(
        yaml(&read("/nocloud/user-data"), "d['hostname']"),
        "i-0123: \"x\""
    );
    assert_eq!(read("/nocloud/vendor-data"), "");
    // Without a token it is shut again by one setting.
    wanted.spec.metadata = MetadataMode::Token;
    assert_eq!(lab.ensure(&wanted).await.changed, ["metadata"]);
    assert_eq!(ask(&guest, "GET", "/nocloud/meta-data", "").0, 401);
    wanted.spec.metadata = MetadataMode::Off;
    lab.ensure(&wanted).await;
    assert_eq!(exchange(&guest, "GET / HTTP/1.0\r\n\r\n"), "no connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_a_way_out_is_told_the_way_to_its_metadata() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let mut wanted = network(NetworkMode::Isolated, 2);
    wanted.ports[1].metadata_route = false;
    lab.ensure(&wanted).await;
    let (a, other) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    for guest in [&a, &other] {
        guest.ns.sh(&guest.udhcpc("-n -q -O staticroutes"));
    }
    let told = |guest: &Guest| {
        let all = guest.told("bound").unwrap();
        let mut lines = all.lines().filter_map(|l| l.strip_prefix("staticroutes="));
        lines.next().map(str::to_owned)
    };
    assert_eq!(told(&a).as_deref(), Some("'169.254.169.254/32 10.9.0.1'"));
    assert_eq!(told(&other), None, "a NIC that is not to tell");
    a.ns.ip("route add 169.254.169.254/32 via 10.9.0.1");
    lab.net
        .describe(wanted.id, wanted.ports[0].id, Some(instance("i-a")))
        .await
        .unwrap();
    assert_eq!(get(&a, "/latest/meta-data/instance-id"), (200, "i-a".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_that_bears_a_token_cannot_leave_the_guest() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = told(MetadataMode::Token, 1);
    lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    // The guest's kernel tells how far what it received may still travel.
    let hops = guest.ns.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::from(nix::libc::SOCK_RAW), Some(socket2::Protocol::TCP)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut stream = TcpStream::connect(SERVICE).unwrap();
        stream
            .write_all(b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 9\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let mut hops = Vec::new();
        let mut socket: std::fs::File = std::os::fd::OwnedFd::from(socket).into();
        let mut buffer = [0; 2_000];
        while let Ok(length) = socket.read(&mut buffer) {
            let header = usize::from(buffer[0] & 0xf) * 4;
            let data = header + usize::from(buffer[header + 12] >> 4) * 4;
            // The segments that carry data.
            if length > data && buffer[12..16] == SERVICE.0.octets() {
                hops.push(buffer[8]);
            }
        }
        hops
    });
    assert_eq!(hops, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_large_or_many_is_cut_off_and_others_are_served() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = told(MetadataMode::Open, 2);
    lab.ensure(&wanted).await;
    describe_all(&lab, &wanted).await;
    let (a, b) = (lab.guest(&wanted, 0).await, lab.guest(&wanted, 1).await);
    a.dhcp();
    b.dhcp();
    assert!(exchange(&a, format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(5_000))).contains(" 414 "));
    assert!(exchange(&a, format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(20_000))).contains(" 431 "));
    assert!(exchange(&a, "PUT / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n").contains(" 413 "));
    assert!(exchange(&a, "POST / HTTP/1.0\r\n\r\n").contains(" 405 "));
    // Sixteen that say nothing more: a seventeenth of the same port finds no room, the neighbour does.
    let slow = a.ns.run(|| {
        let half = |_| {
            let mut stream = TcpStream::connect(SERVICE).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nA: ").unwrap();
            stream
        };
        (0..16).map(half).collect::<Vec<_>>()
    });
    eventually("all of them to be counted", || {
        exchange(&a, "GET / HTTP/1.0\r\n\r\n").is_empty()
    })
    .await;
    assert_eq!(
        ask(&b, "GET", "/latest/meta-data/local-ipv4", ""),
        (200, "10.9.0.11".to_owned())
    );
    for mut stream in slow {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    }
    assert_eq!(
        ask(&a, "GET", "/latest/meta-data/local-ipv4", ""),
        (200, "10.9.0.10".to_owned())
    );
    // More than the bucket holds.
    let refused = a.ns.run(|| {
        let mut refused = 0;
        for _ in 0..20 {
            let mut stream = TcpStream::connect(SERVICE).unwrap();
            let _sent = stream.write_all(&b"GET / HTTP/1.1\r\n\r\n".repeat(40));
            let _shut = stream.shutdown(std::net::Shutdown::Write);
            let mut text = Vec::new();
            let _end = stream.read_to_end(&mut text);
            refused += usize::from(String::from_utf8_lossy(&text).contains(" 429 "));
        }
        refused
    });
    assert!(refused > 0, "{:?}", seen(&lab).await);
    assert_eq!(ask(&b, "GET", "/latest/meta-data/local-ipv4", "").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_counted_and_the_service_goes_on() {
    needs_namespaces!();
    let lab = Lab::new().await;
    let wanted = told(MetadataMode::Open, 1);
    lab.ensure(&wanted).await;
    describe_all(&lab, &wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    let corpus = common::garbage(80);
    let sent = corpus.len() as u64;
    guest.ns.run(move || {
        for bytes in corpus {
            let mut stream = TcpStream::connect(SERVICE).unwrap();
            let _sent = stream.write_all(&bytes);
            let _shut = stream.shutdown(std::net::Shutdown::Write);
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let _end = stream.read_to_end(&mut Vec::new());
        }
    });
    let counts = seen(&lab).await;
    assert!(
        counts.malformed + counts.broken > sent / 2,
        "{counts:?} of {sent}"
    );
    assert_eq!(ask(&guest, "GET", "/latest/meta-data/local-ipv4", "").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_guests_of_the_network_reach_it_and_it_answers_again_after_a_restart() {
    needs_namespaces!();
    let mut lab = Lab::new().await;
    let wanted = told(MetadataMode::Open, 1);
    let first = lab.ensure(&wanted).await;
    let guest = lab.guest(&wanted, 0).await;
    guest.dhcp();
    lab.net
        .describe(wanted.id, wanted.ports[0].id, Some(instance("i-a")))
        .await
        .unwrap();
    assert_eq!(get(&guest, "/latest/meta-data/instance-id").1, "i-a");
    let inner = Ipv4Addr::from(u32::from(first.transit.unwrap().network()) + 1);
    lab.host.ip(&format!("route add 169.254.169.254/32 via {inner}"));
    let reached = lab
        .host
        .run(|| TcpStream::connect_timeout(&SERVICE.into(), Duration::from_secs(1)).is_ok());
    assert!(!reached, "not from the host");
    lab.reopen().await;
    let stranger = lab.net.describe(wanted.id, wanted.ports[0].id, None).await;
    assert!(matches!(stranger, Err(NetError::NotHere { .. })), "{stranger:?}");
    lab.ensure(&wanted).await;
    let (status, said) = get(&guest, "/latest/meta-data/instance-id");
    assert_eq!(status, 503, "until it is said again it is nobody else: {said}");
    assert_eq!(get(&guest, "/latest/user-data").0, 503);
    lab.net
        .describe(wanted.id, wanted.ports[0].id, Some(instance("i-a")))
        .await
        .unwrap();
    assert_eq!(get(&guest, "/latest/meta-data/instance-id").1, "i-a");
    let large = Instance {
        user_data: Some(vec![0; 1 << 20]),
        ..instance("i-a")
    };
    let refused = lab.net.describe(wanted.id, wanted.ports[0].id, Some(large)).await;
    assert!(matches!(refused, Err(NetError::Invalid(_))), "{refused:?}");
}
