//! The forms that people type, read into requests. Pure; each error has its three lines.

use crate::api::NicRequest;
use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
};
use vbm_core::{
    Error, ErrorKind, GuestData, Protocol, Rule, UserData, dhcp::RouteSpec, group::parse_port, limits,
};

/// `[ADDRESS:]HOSTPORT[-LAST]:VMPORT[-LAST][/tcp|/udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForwardForm {
    pub(super) address: Option<Ipv4Addr>,
    pub(super) listen: u16,
    pub(super) target: u16,
    /// How many ports.
    pub(super) count: u16,
    pub(super) protocol: Protocol,
}

fn invalid(what: String, why: impl Into<String>, fix: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, what, why, fix)
}

/// Reads a forward.
///
/// # Errors
/// Anything but the form above with ports of 1 to 65535.
pub(super) fn forward(text: &str) -> Result<ForwardForm, Error> {
    let refuse = |why: String| {
        invalid(
            format!("'{text}' is not a forward"),
            why,
            "write HOSTPORT:VMPORT such as 8080:80, 127.0.0.1:8080:80, 5353:53/udp or 8000-8009:9000-9009",
        )
    };
    let (ports, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some((_, other)) => {
            return Err(refuse(format!(
                "'{other}' cannot be forwarded, only tcp and udp can"
            )));
        }
    };
    let parts: Vec<&str> = ports.split(':').collect();
    let (address, listen, target) = match parts[..] {
        [listen, target] => (None, listen, target),
        [address, listen, target] => {
            let address = address
                .parse()
                .map_err(|_| refuse(format!("'{address}' is not an IPv4 address")))?;
            (Some(address), listen, target)
        }
        _ => return Err(refuse("it is not two ports joined by ':'".into())),
    };
    let port = |text: &str| parse_port(text).map_err(|e| refuse(format!("port '{text}': {}", e.why())));
    let ports = |text: &str| -> Result<(u16, Option<u16>), Error> {
        let Some((first, last)) = text.split_once('-') else {
            return Ok((port(text)?, None));
        };
        let (first, last) = (port(first)?, port(last)?);
        let step = last.checked_sub(first);
        let count = step.and_then(|s| s.checked_add(1));
        match count {
            Some(count) => Ok((first, Some(count))),
            None => Err(refuse(format!("the range '{text}' ends before it begins"))),
        }
    };
    let ((listen, of_host), (target, of_vm)) = (ports(listen)?, ports(target)?);
    // Where one side is a range, the other may name its first port only.
    if of_host.is_some() && of_vm.is_some() && of_host != of_vm || of_host.is_none() && of_vm.is_some() {
        return Err(refuse("its two ranges are not of the same length".into()));
    }
    Ok(ForwardForm {
        address,
        listen,
        target,
        count: of_host.unwrap_or(1),
        protocol,
    })
}

/// Reads a route, `CIDR=IP`.
///
/// # Errors
/// Anything but a network, '=' and an address.
pub(super) fn route(text: &str) -> Result<RouteSpec, Error> {
    let read = text.split_once('=').and_then(|(to, via)| {
        Some(RouteSpec {
            to: to.parse().ok()?,
            via: via.parse().ok()?,
        })
    });
    read.ok_or_else(|| {
        invalid(
            format!("'{text}' is not a route"),
            "it is not an IPv4 network, '=' and an IPv4 address",
            "write it as 10.9.0.0/16=10.0.0.7",
        )
    })
}

/// Reads `NET[,address=IP][,address6=IP][,mac=MAC][,group=GROUP]`.
///
/// # Errors
/// A word that is not one of these, or a value that is not what its word says.
pub(super) fn nic(text: &str) -> Result<NicRequest, Error> {
    let refuse = |why: String| {
        invalid(
            format!("'{text}' is not a NIC"),
            why,
            "write NET[,address=IP][,address6=IP][,mac=MAC][,group=GROUP], for example lan,address=10.0.0.5,group=web",
        )
    };
    let mut parts = text.split(',');
    let network = parts.next().unwrap_or_default();
    if network.is_empty() || network.contains('=') {
        return Err(refuse("it does not begin with the name of a network".into()));
    }
    let mut nic = NicRequest::on(network);
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| refuse(format!("'{part}' has no '='")))?;
        let twice = match key {
            "address" => nic.address.replace(address(value)?).is_some(),
            "address6" => nic.address6.replace(address6(value)?).is_some(),
            "mac" => nic.mac.replace(value.parse()?).is_some(),
            "group" if !value.is_empty() => {
                nic.groups.push(value.to_owned());
                false
            }
            _ => {
                return Err(refuse(format!(
                    "'{part}' is not one of address, address6, mac and group with a value"
                )));
            }
        };
        if twice {
            return Err(refuse(format!("{key} stands there twice")));
        }
    }
    Ok(nic)
}

/// Reads an address.
///
/// # Errors
/// Anything but an IPv4 address.
pub(super) fn address(text: &str) -> Result<Ipv4Addr, Error> {
    text.parse().map_err(|_| {
        invalid(
            format!("'{text}' is not an IPv4 address"),
            "it is not four numbers of 0 to 255 joined by '.'",
            "write it as 10.0.0.5",
        )
    })
}

/// Reads the address of a server.
///
/// # Errors
/// Text that is none.
pub(super) fn server(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| {
        invalid(
            format!("'{text}' is not an IP address"),
            "it is neither IPv4 nor IPv6",
            "write it as 192.0.2.53 or 2001:db8::53",
        )
    })
}

/// The most bytes of a file of keys: as many as a VM may have, and comments.
const KEYS_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// What a guest is given to read: `--user-data FILE`, `--ssh-key FILE`.
///
/// # Errors
/// A file that cannot be read, is too large or holds no key.
pub(super) fn guest(user_data: Option<&Path>, ssh_keys: &[PathBuf]) -> Result<GuestData, Error> {
    let mut guest = GuestData::default();
    if let Some(path) = user_data {
        // One byte more than may be, so that what is too large is told as such.
        let most = u64::try_from(limits::USER_DATA_MAX_BYTES).unwrap_or(u64::MAX);
        guest.user_data = Some(UserData::new(&read(path, most + 1)?));
    }
    for path in ssh_keys {
        let text = String::from_utf8_lossy(&read(path, KEYS_FILE_MAX_BYTES)?).into_owned();
        let lines = text.lines().map(str::trim);
        let keys: Vec<_> = lines
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
            .map(str::to_owned)
            .collect();
        if keys.is_empty() {
            return Err(invalid(
                format!("{} holds no SSH key", path.display()),
                "it has no line that is not empty or a comment",
                "name a public key's file, such as ~/.ssh/id_ed25519.pub",
            ));
        }
        guest.ssh_keys.extend(keys);
    }
    guest.check()?;
    Ok(guest)
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let done = File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    match done {
        Ok(_) => Ok(bytes),
        Err(e) => Err(invalid(
            format!("{} cannot be read", path.display()),
            e.to_string(),
            "check the path and its rights",
        )),
    }
}

/// All NICs of a VM: `--network`, with the conveniences `--group`, `--address` and `--mac`.
///
/// # Errors
/// A convenience without the NIC that it speaks of.
pub(super) fn nics(
    networks: &[String],
    groups: &[String],
    wanted_address: Option<&str>,
    wanted_mac: Option<&str>,
) -> Result<Vec<NicRequest>, Error> {
    let mut nics = networks
        .iter()
        .map(|text| nic(text))
        .collect::<Result<Vec<_>, _>>()?;
    if nics.is_empty() && !groups.is_empty() {
        return Err(lonely("--group", "a NIC that is in the group"));
    }
    for nic in &mut nics {
        for group in groups {
            if !nic.groups.contains(group) {
                nic.groups.push(group.clone());
            }
        }
    }
    let only = |nics: &mut Vec<NicRequest>, flag: &str| match &mut nics[..] {
        [nic] => Ok(std::mem::replace(nic, NicRequest::on(""))),
        _ => Err(lonely(flag, "exactly one NIC")),
    };
    if let Some(text) = wanted_address {
        let nic = only(&mut nics, "--address")?;
        nics = vec![nic.address(address(text)?)];
    }
    if let Some(text) = wanted_mac {
        let nic = only(&mut nics, "--mac")?;
        nics = vec![nic.mac(text.parse()?)];
    }
    Ok(nics)
}

fn lonely(flag: &str, needs: &str) -> Error {
    invalid(
        format!("{flag} does not fit to the NICs"),
        format!("it needs {needs}"),
        "name the network with --network NET; of several, write --network NET,address=IP,mac=MAC,group=GROUP",
    )
}

/// Reads an IPv6 address.
///
/// # Errors
/// Anything but one.
pub(super) fn address6(text: &str) -> Result<Ipv6Addr, Error> {
    text.parse().map_err(|_| {
        invalid(
            format!("'{text:.100}' is not an IPv6 address"),
            "it is not groups of hex digits joined by ':'",
            "write it as fd00:1::5",
        )
    })
}

/// A pool of one address is written as a range, so that it is not one by mistake.
///
/// # Errors
/// A lone address.
pub(super) fn is_pool(text: &str) -> Result<(), Error> {
    if text == NOTHING || text.contains(['-', '/']) {
        return Ok(());
    }
    Err(invalid(
        format!("'{text:.100}' is not a pool"),
        "it is not two addresses joined by '-', nor a prefix",
        "write it as 10.0.0.100-10.0.0.200 or 10.0.0.128/25",
    ))
}

/// What people type to say that nothing of a list shall be left.
const NOTHING: &str = "none";

/// What was typed of IPv4 and of IPv6; `None`: not spoken of.
type Both<F, S> = (Option<Vec<F>>, Option<Vec<S>>);

/// Reads a list whose items are of either family: those of IPv4 and those of IPv6. `None`: not spoken of.
///
/// # Errors
/// An item that is of neither, or `none` beside others.
pub(super) fn of_both<F, S>(texts: &[String]) -> Result<Both<F, S>, Error>
where
    F: FromStr<Err = Error>,
    S: FromStr<Err = Error>,
{
    if texts.iter().any(|text| text == NOTHING) {
        return match texts {
            [_] => Ok((Some(Vec::new()), Some(Vec::new()))),
            _ => Err(invalid(
                format!("'{NOTHING}' stands beside others"),
                "it means that nothing shall be left",
                "write it alone, or leave it out",
            )),
        };
    }
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for text in texts {
        // A MAC behind '=' has colons too.
        if text.split('=').next().unwrap_or_default().contains(':') {
            six.push(text.parse()?);
        } else {
            four.push(text.parse()?);
        }
    }
    Ok((
        (!four.is_empty()).then_some(four),
        (!six.is_empty()).then_some(six),
    ))
}

/// Reads `KEY=VALUE`s.
///
/// # Errors
/// One without `=` or without a key, or a key that stands there twice.
pub(super) fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, Error> {
    let mut labels = BTreeMap::new();
    for text in texts {
        let refuse = |why: &str| invalid(format!("'{text}' is not a label"), why, "write it as KEY=VALUE");
        match text.split_once('=') {
            None => return Err(refuse("it has no '='")),
            Some(("", _)) => return Err(refuse("its key is empty")),
            Some((key, value)) => {
                if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                    return Err(refuse("its key stands there twice"));
                }
            }
        }
    }
    Ok(labels)
}

/// Reads rules; each once.
///
/// # Errors
/// Those of [`Rule`].
pub(super) fn rules(texts: &[String]) -> Result<Vec<Rule>, Error> {
    let mut rules = Vec::new();
    for text in texts {
        let rule: Rule = text.parse().map_err(|e: Error| in_rule(text, e))?;
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// The headline names the rule as it was typed, where the error speaks of a part of it.
fn in_rule(text: &str, error: Error) -> Error {
    if error.what().contains(&format!("'{text}'")) {
        error
    } else {
        error.context(format!("'{text}' is not a rule"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vbm_core::{Ipv4Range, Ipv6Range, Reservation, Reservation6};

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&t| t.to_owned()).collect()
    }

    #[test]
    fn forwards_are_read_as_they_are_written() {
        let tcp = ForwardForm {
            address: None,
            listen: 8080,
            target: 80,
            count: 1,
            protocol: Protocol::Tcp,
        };
        for range in ["8080-8089:80-89", "8080-8089:80"] {
            assert_eq!(forward(range).unwrap(), ForwardForm { count: 10, ..tcp });
        }
        assert_eq!(forward("8080:80").unwrap(), tcp);
        assert_eq!(forward("8080:80/tcp").unwrap(), tcp);
        let local = Some(Ipv4Addr::LOCALHOST);
        assert_eq!(
            forward("127.0.0.1:8080:80").unwrap(),
            ForwardForm {
                address: local,
                ..tcp
            }
        );
        let udp = forward("5353:53/udp").unwrap();
        assert_eq!((udp.listen, udp.target, udp.protocol), (5353, 53, Protocol::Udp));
    }

    #[test]
    fn forwards_that_make_no_sense_are_refused_with_their_reason() {
        for (bad, why) in [
            ("8089-8080:80", "ends before it begins"),
            ("8080-8089:80-81", "not of the same length"),
            ("8080:80-89", "not of the same length"),
            ("8080-:80", "not a number"),
            ("0:80", "port 0 does not exist"),
            ("80:0", "port 0 does not exist"),
            ("70000:80", "ports end at 65535"),
            ("80:70000", "ports end at 65535"),
            ("80", "two ports"),
            ("", "two ports"),
            ("a:b", "not a number"),
            ("80:80/icmp", "only tcp and udp"),
            ("1.2.3:80:80", "not an IPv4 address"),
            ("1.2.3.4:1:2:3", "two ports"),
            ("8080:80/", "only tcp and udp"),
            ("-1:80", "not a number"),
        ] {
            let error = forward(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.why().contains(why), "{bad}: {}", error.why());
            assert!(error.what().contains(&format!("'{bad}'")));
        }
    }

    #[test]
    fn a_nic_is_its_network_and_what_is_asked_of_it() {
        let nic = nic("lan,address=10.0.0.5,mac=52:54:00:00:00:01,group=web,group=ssh").unwrap();
        assert_eq!(nic.network, "lan");
        assert_eq!(nic.address, Some(Ipv4Addr::new(10, 0, 0, 5)));
        assert_eq!(nic.mac.unwrap().to_string(), "52:54:00:00:00:01");
        assert_eq!(nic.groups, ["web", "ssh"]);
    }

    #[test]
    fn nics_that_make_no_sense_are_refused() {
        for bad in [
            "",
            ",address=10.0.0.5",
            "address=10.0.0.5",
            "lan,",
            "lan,10.0.0.5",
            "lan,address=10.0.0",
            "lan,mac=52:54",
            "lan,group=",
            "lan,ip=10.0.0.5",
            "lan,address=10.0.0.5,address=10.0.0.6",
            "lan,address6=10.0.0.5",
            "lan,address6=fd00::5,address6=fd00::6",
        ] {
            assert_eq!(nic(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn conveniences_reach_the_nics_that_they_speak_of() {
        let made = nics(
            &list(&["lan"]),
            &list(&["web"]),
            Some("10.0.0.5"),
            Some("52:54:00:00:00:01"),
        )
        .unwrap();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].groups, ["web"]);
        assert_eq!(made[0].address, Some(Ipv4Addr::new(10, 0, 0, 5)));
        assert_eq!(made[0].mac.unwrap().to_string(), "52:54:00:00:00:01");
        let both = nics(&list(&["a,group=x", "b"]), &list(&["x"]), None, None).unwrap();
        assert!(
            both.iter().all(|n| n.groups == ["x"]),
            "each NIC is in it, and in it once"
        );
    }

    #[test]
    fn conveniences_without_their_nic_are_refused() {
        assert!(nics(&[], &list(&["web"]), None, None).is_err());
        assert!(nics(&[], &[], Some("10.0.0.5"), None).is_err());
        assert!(nics(&list(&["a", "b"]), &[], Some("10.0.0.5"), None).is_err());
        assert!(nics(&list(&["a", "b"]), &[], None, Some("52:54:00:00:00:01")).is_err());
    }

    #[test]
    fn a_rule_that_is_refused_is_named_as_it_was_typed() {
        for bad in [
            "443:80",
            "tcp/0",
            "tcp/70000",
            "tcp/80-",
            "icmp/8",
            "tcp/80@10.0.0.0",
            "sctp",
            "",
        ] {
            let error = rules(&list(&[bad])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
            assert!(
                error.what().contains(&format!("'{bad}'")),
                "{bad}: {}",
                error.what()
            );
        }
        assert_eq!(rules(&list(&["tcp/80", "icmp", "tcp/80"])).unwrap().len(), 2);
    }

    #[test]
    fn labels_and_ranges_are_read_as_they_are_written() {
        assert_eq!(labels(&list(&["a=1", "b=x=y"])).unwrap()["b"], "x=y");
        for bad in [&["a"][..], &["=1"], &["a=1", "a=2"]] {
            assert!(labels(&list(bad)).is_err(), "{bad:?}");
        }
        let both = |texts: &[&str]| of_both::<Ipv4Range, Ipv6Range>(&list(texts));
        let (four, six) = both(&["10.0.0.2-10.0.0.9", "fd00::2", "10.0.0.20"]).unwrap();
        assert_eq!((four.unwrap().len(), six.unwrap().len()), (2, 1));
        assert_eq!(both(&[]).unwrap(), (None, None));
        assert_eq!(both(&["none"]).unwrap(), (Some(vec![]), Some(vec![])));
        assert_eq!(
            both(&["10.0.0.2"]).unwrap().1,
            None,
            "the other family stays as it is"
        );
        for bad in [
            &["10.0.0.2-x"][..],
            &["10.0.0.2", "none"],
            &["fd00::2-10.0.0.2"],
            &["10.0.0.2-fd00::2"],
        ] {
            assert!(both(bad).is_err(), "{bad:?}");
        }
        let (four, six) =
            of_both::<Reservation, Reservation6>(&list(&["10.0.0.9=52:54:00:00:00:01"])).unwrap();
        assert!(four.unwrap()[0].mac.is_some() && six.is_none());
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,40}") {
            drop((forward(&text), nic(&text), of_both::<Ipv4Range, Ipv6Range>(std::slice::from_ref(&text))));
            let texts = vec![text];
            drop((labels(&texts), rules(&texts)));
        }
        #[test]
        fn every_forward_survives_its_text(listen in 1u16.., target in 1u16..) {
            let form = forward(&format!("{listen}:{target}")).unwrap();
            prop_assert_eq!((form.listen, form.target), (listen, target));
        }
    }
}
