//! Who asks for what, and whether it gets it: a pure function.

use super::{
    Instance, TOKEN_MAX_SECONDS, TokenKey, documents,
    http::{Asked, Method},
};
use crate::{DesiredNetwork, Validated};
use ipnet::Ipv4Net;
use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};
use vbm_core::{Mac, MetadataMode, Name, PortId, network::METADATA_ADDRESS};

/// Where a token is made.
const TOKEN_PATH: &str = "/latest/api/token";
/// After how many seconds one asks again who asked before it was said what a VM is told.
const RETRY_SECONDS: u32 = 1;
const PLAIN: &str = "text/plain; charset=utf-8";

/// What VMs are told of themselves, by port; `None`: what their port tells.
pub(crate) type Instances = BTreeMap<PortId, Option<Arc<Instance>>>;

/// What the service of one network knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    mode: MetadataMode,
    subjects: HashMap<Ipv4Addr, Arc<Subject>>,
}

/// A port, and the VM behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) port: PortId,
    pub(super) mac: Mac,
    pub(super) address: Ipv4Addr,
    pub(super) cidr: Ipv4Net,
    pub(super) hostname: Name,
    pub(super) domain: Option<String>,
    pub(super) instance: Option<Arc<Instance>>,
    /// Whether anybody has said since the start what it is, be it that there is no more to say.
    pub(super) is_described: bool,
}

/// An answer, before it is bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status of HTTP.
    pub status: u16,
    /// What the body is.
    pub kind: &'static str,
    /// Header fields beyond the usual ones.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Whether it bears a token, which must not leave the VM.
    pub is_token: bool,
}

impl Answer {
    /// One that says no.
    pub(super) fn no(status: u16, why: &str) -> Self {
        Self {
            status,
            kind: PLAIN,
            fields: Vec::new(),
            body: format!("{why}\n").into_bytes(),
            is_token: false,
        }
    }
}

impl Config {
    /// What is to be told to the VMs of a network: ports of `None` what their port tells, those that are not here to ask again later.
    pub fn new(net: &Validated<DesiredNetwork>, instances: &Instances) -> Self {
        let subject = |port: &crate::DesiredPort| Subject {
            port: port.id,
            mac: port.mac,
            address: port.address,
            cidr: net.spec.cidr,
            hostname: port.hostname.clone(),
            domain: net.spec.domain().map(str::to_owned),
            instance: instances.get(&port.id).cloned().flatten(),
            is_described: instances.contains_key(&port.id),
        };
        Self {
            mode: net.spec.metadata,
            subjects: net
                .ports
                .iter()
                .map(|p| (p.address, Arc::new(subject(p))))
                .collect(),
        }
    }

    /// Whether this address is a port's of this host, which alone are answered.
    pub fn is_asker(&self, address: Ipv4Addr) -> bool {
        self.subjects.contains_key(&address)
    }
}

/// Decides. `from` is the source address of the connection; `now_seconds` since the epoch. `None`: it is no port's.
pub fn respond(
    config: &Config,
    key: &TokenKey,
    from: Ipv4Addr,
    asked: &Asked,
    now_seconds: u64,
) -> Option<Answer> {
    let subject = config.subjects.get(&from)?;
    if let Some(refusal) = passed_on(asked) {
        return Some(refusal);
    }
    if asked.path == TOKEN_PATH {
        return Some(match asked.method {
            Method::Put => token(subject, key, asked, now_seconds),
            _ => method_not_allowed("PUT"),
        });
    }
    if !matches!(asked.method, Method::Get | Method::Head) {
        return Some(method_not_allowed("GET, HEAD"));
    }
    let token = asked
        .token
        .as_ref()
        .map(|t| key.is_good(t, subject.port, now_seconds));
    match token {
        Some(true) => {}
        Some(false) => {
            return Some(Answer::no(
                401,
                "this token is not good; get one by PUT /latest/api/token",
            ));
        }
        None if config.mode == MetadataMode::Open => {}
        None => {
            return Some(Answer::no(
                401,
                "a token is needed; get one by PUT /latest/api/token",
            ));
        }
    }
    if !subject.is_described {
        // Another id than before would make cloud-init do its first boot's work again.
        return Some(Answer {
            fields: vec![("Retry-After", RETRY_SECONDS.to_string())],
            ..Answer::no(503, "it is not known yet what this VM is told; ask again")
        });
    }
    Some(match documents::at(subject, &asked.path) {
        Some(document) => Answer {
            status: 200,
            kind: document.kind,
            fields: Vec::new(),
            body: document.body,
            is_token: false,
        },
        None => Answer::no(404, "there is nothing of that name"),
    })
}

/// What a proxy passed on, or what was meant for another host, is how strangers ask through a guest.
fn passed_on(asked: &Asked) -> Option<Answer> {
    if asked.proxied {
        return Some(Answer::no(403, "requests that a proxy passed on are refused"));
    }
    let ours = |host: &str| {
        let name = host.strip_suffix(":80").unwrap_or(host);
        name.parse() == Ok(METADATA_ADDRESS)
    };
    let foreign = asked.host.as_deref().is_some_and(|host| !ours(host));
    foreign.then(|| Answer::no(403, "requests for another host are refused"))
}

fn method_not_allowed(allow: &'static str) -> Answer {
    Answer {
        fields: vec![("Allow", allow.to_owned())],
        ..Answer::no(405, "this is not done here")
    }
}

fn token(subject: &Subject, key: &TokenKey, asked: &Asked, now_seconds: u64) -> Answer {
    let seconds = asked
        .token_ttl
        .as_deref()
        .and_then(|text| text.parse::<u32>().ok());
    let Some(seconds) = seconds.filter(|s| (1..=TOKEN_MAX_SECONDS).contains(s)) else {
        return Answer::no(400, "X-aws-ec2-metadata-token-ttl-seconds must be 1 to 21600");
    };
    let token = key.token(subject.port, now_seconds.saturating_add(seconds.into()));
    Answer {
        status: 200,
        kind: PLAIN,
        fields: vec![("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", seconds.to_string())],
        body: token.into_bytes(),
        is_token: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metadata::http::{self, Read},
        plan::fixture::lab,
    };
    use vbm_core::NetworkMode;

    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
    const SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
    const NOW: u64 = 1_000_000;

    struct Desk {
        config: Config,
        key: TokenKey,
    }

    impl Desk {
        fn new(mode: MetadataMode) -> Self {
            let mut net = lab(NetworkMode::Nat).into_inner();
            net.spec.metadata = mode;
            net.spec.domain = Some("lab.example".into());
            net.ports[0].hostname = "web1".parse().unwrap();
            let instance = Instance {
                id: "i-web1".into(),
                user_data: Some(b"#cloud-config\n".to_vec()),
                ssh_keys: vec!["ssh-ed25519 AAAA a@b".into(), "ssh-rsa BBBB".into()],
                macs: vec![net.ports[0].mac, Mac::local(77)],
                ..Instance::default()
            };
            let instances = BTreeMap::from([
                (net.ports[0].id, Some(Arc::new(instance))),
                (net.ports[1].id, None),
            ]);
            let net = Validated::<DesiredNetwork>::new(net).unwrap();
            Self {
                config: Config::new(&net, &instances),
                key: TokenKey::random().unwrap(),
            }
        }

        fn say(&self, from: Ipv4Addr, request: &str) -> (u16, String) {
            let text = request.replace('|', "\r\n") + "\r\n\r\n";
            let Read::Asked(asked, _) = http::read(text.as_bytes()) else {
                panic!("no request: {text}")
            };
            let answer = respond(&self.config, &self.key, from, &asked, NOW).unwrap();
            (answer.status, String::from_utf8(answer.body).unwrap())
        }

        fn token(&self, from: Ipv4Addr) -> String {
            let (status, token) = self.say(
                from,
                "PUT /latest/api/token HTTP/1.1|X-aws-ec2-metadata-token-ttl-seconds: 60",
            );
            assert_eq!(status, 200);
            token
        }

        fn get(&self, from: Ipv4Addr, path: &str) -> (u16, String) {
            let token = self.token(from);
            self.say(
                from,
                &format!("GET {path} HTTP/1.1|X-aws-ec2-metadata-token: {token}"),
            )
        }
    }

    #[test]
    fn until_it_is_said_what_a_vm_is_told_it_is_told_nothing_and_asks_again() {
        let mut desk = Desk::new(MetadataMode::Token);
        let net = Validated::<DesiredNetwork>::new(lab(NetworkMode::Nat).into_inner()).unwrap();
        desk.config.subjects = Config::new(&net, &Instances::new()).subjects;
        for path in [
            "/latest/meta-data/instance-id",
            "/latest/user-data",
            "/nocloud/meta-data",
            "/latest/meta-data/local-ipv4",
            "/nothing",
        ] {
            assert_eq!(desk.get(FIRST, path).0, 503, "{path}");
        }
        let (status, _) = desk.say(FIRST, "GET /latest/meta-data/instance-id HTTP/1.1");
        assert_eq!(status, 401, "who has no token learns nothing");
    }

    #[test]
    fn the_tree_of_ec2_is_walked_as_its_readers_walk_it() {
        let desk = Desk::new(MetadataMode::Token);
        for (path, body) in [
            ("/latest/", "dynamic\nmeta-data\nuser-data"),
            ("/2009-04-04/meta-data/instance-id", "i-web1"),
            ("/latest/meta-data/local-hostname", "web1.lab.example"),
            ("/latest/meta-data/local-ipv4", "10.77.0.10"),
            ("/latest/meta-data/public-keys/", "0=key-0\n1=key-1"),
            ("/latest/meta-data/public-keys/0/", "openssh-key"),
            ("/latest/meta-data/public-keys/1/openssh-key", "ssh-rsa BBBB"),
            ("/latest/user-data", "#cloud-config\n"),
            ("/latest/dynamic/instance-identity", "document"),
        ] {
            assert_eq!(desk.get(FIRST, path), (200, body.to_owned()), "{path}");
        }
        let (_, list) = desk.get(FIRST, "/latest/meta-data/");
        for line in ["instance-id", "network/", "public-keys/", "local-ipv4"] {
            assert!(list.lines().any(|l| l == line), "{line} in {list}");
        }
        for absent in [
            "/latest/meta-data/iam/",
            "/2999-01-01/meta-data/",
            "/etc/passwd",
            "/latest/meta-data/../user-data",
        ] {
            assert_eq!(desk.get(FIRST, absent).0, 404, "{absent}");
        }
    }

    #[test]
    fn each_is_told_of_itself_whatever_it_asks() {
        let desk = Desk::new(MetadataMode::Open);
        let (status, id) = desk.get(SECOND, "/latest/meta-data/instance-id");
        assert!(status == 200 && id != "i-web1");
        assert_eq!(desk.get(SECOND, "/latest/user-data").0, 404);
        assert_eq!(desk.get(SECOND, "/latest/meta-data/public-keys/").0, 404);
        let stolen = desk.token(FIRST);
        let with = |token: &str| {
            desk.say(
                SECOND,
                &format!("GET /latest/user-data HTTP/1.1|X-aws-ec2-metadata-token: {token}"),
            )
        };
        assert_eq!(with(&stolen).0, 401, "another's token");
        let Read::Asked(asked, _) = http::read(b"GET / HTTP/1.1\r\n\r\n") else {
            panic!("no request")
        };
        assert!(
            respond(&desk.config, &desk.key, [10, 77, 0, 99].into(), &asked, NOW).is_none(),
            "a stranger"
        );
    }

    #[test]
    fn without_a_token_only_an_open_network_answers() {
        for (mode, status) in [(MetadataMode::Token, 401), (MetadataMode::Open, 200)] {
            let desk = Desk::new(mode);
            for path in ["/latest/meta-data/instance-id", "/nocloud/meta-data", "/"] {
                assert_eq!(
                    desk.say(FIRST, &format!("GET {path} HTTP/1.1")).0,
                    status,
                    "{path}"
                );
            }
        }
        let desk = Desk::new(MetadataMode::Open);
        assert_eq!(
            desk.say(FIRST, "GET / HTTP/1.1|X-aws-ec2-metadata-token: bad").0,
            401,
            "a bad one is worse than none"
        );
    }

    #[test]
    fn tokens_have_the_life_that_was_asked_for() {
        let desk = Desk::new(MetadataMode::Token);
        for (ttl, status) in [
            ("1", 200),
            ("21600", 200),
            ("0", 400),
            ("21601", 400),
            ("-1", 400),
            ("x", 400),
        ] {
            let request =
                format!("PUT /latest/api/token HTTP/1.1|X-aws-ec2-metadata-token-ttl-seconds: {ttl}");
            assert_eq!(desk.say(FIRST, &request).0, status, "{ttl}");
        }
        assert_eq!(desk.say(FIRST, "PUT /latest/api/token HTTP/1.1").0, 400);
        assert_eq!(desk.say(FIRST, "GET /latest/api/token HTTP/1.1").0, 405);
        assert_eq!(desk.say(FIRST, "PUT /latest/user-data HTTP/1.1").0, 405);
    }

    #[test]
    fn what_a_stranger_makes_a_guest_fetch_is_refused() {
        let desk = Desk::new(MetadataMode::Open);
        for (fields, status) in [
            ("X-Forwarded-For: 192.0.2.9", 403),
            ("Via: proxy", 403),
            ("Host: evil.example", 403),
            ("Host: 169.254.169.254", 200),
            ("Host: 169.254.169.254:80", 200),
        ] {
            assert_eq!(
                desk.say(FIRST, &format!("GET / HTTP/1.1|{fields}")).0,
                status,
                "{fields}"
            );
        }
    }

    #[test]
    fn the_form_of_nocloud_is_there_even_with_nothing_to_say() {
        let desk = Desk::new(MetadataMode::Open);
        let (_, meta) = desk.get(FIRST, "/nocloud/meta-data");
        let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
        assert_eq!(meta["instance-id"], "i-web1");
        assert_eq!(meta["public-keys"][1], "ssh-rsa BBBB");
        let (_, network) = desk.get(FIRST, "/nocloud/network-config");
        let network: serde_json::Value = serde_json::from_str(&network).unwrap();
        assert_eq!(network["ethernets"]["eth0"]["dhcp4"], true);
        assert_eq!(
            network["ethernets"]["eth1"]["dhcp4-overrides"]["use-routes"],
            false
        );
        assert_eq!(desk.get(SECOND, "/nocloud/user-data"), (200, String::new()));
        assert_eq!(desk.get(SECOND, "/nocloud/vendor-data"), (200, String::new()));
    }
}
