//! What a network tells its VMs by DHCP, besides addresses, DNS and MTU.

use crate::{Error, error::invalid, limits, network::check_domain};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// What VMs are told by DHCP, besides what every network tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DhcpSpec {
    /// Time servers (option 42).
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub ntp: Vec<Ipv4Addr>,
    /// Domains in which VMs search names (option 119).
    pub search: Vec<String>,
    /// Routes besides the default one (option 121).
    pub routes: Vec<RouteSpec>,
    /// What a VM starts that boots from the network; only who asks is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<NetBootSpec>,
    /// For how many seconds a VM that can do without IPv4 shall not ask for it again (option 108); `None`: not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub v6_only_wait_seconds: Option<u32>,
    /// Whether a VM that asks for it gets its address with one question (option 80).
    pub rapid_commit: bool,
}

/// A route that VMs are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// Where to.
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "10.9.0.0/16"))]
    pub to: Ipv4Net,
    /// By which address of the network.
    #[cfg_attr(feature = "schema", schema(value_type = String, example = "10.0.0.7"))]
    pub via: Ipv4Addr,
}

/// What a VM starts that boots from the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetBootSpec {
    /// The server's address (`siaddr`, and option 66 where it has no name).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub server: Option<Ipv4Addr>,
    /// The server's name (option 66).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The file (option 67) where no other fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Files by what the VM says that it is.
    pub files: Vec<NetBootFile>,
    /// The file for one that is iPXE already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipxe: Option<String>,
}

/// A file for one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetBootFile {
    /// As option 93 says it (RFC 4578): 0 is BIOS, 7 is x64 UEFI, 11 is 64-bit ARM UEFI, 16 is x64 UEFI by HTTP.
    pub architecture: u16,
    /// The file.
    pub file: String,
}

impl DhcpSpec {
    /// Whether nothing is told.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// Checks it for a network with these addresses.
    ///
    /// # Errors
    /// What contradicts itself, the network or a limit of [`crate::limits`].
    pub fn check(&self, cidr: Ipv4Net) -> Result<(), Error> {
        at_most("time servers", self.ntp.len(), limits::NETWORK_MAX_NTP_SERVERS)?;
        at_most(
            "search domains",
            self.search.len(),
            limits::NETWORK_MAX_SEARCH_DOMAINS,
        )?;
        at_most("routes", self.routes.len(), limits::NETWORK_MAX_ROUTES)?;
        if let Some(server) = self.ntp.iter().find(|a| !is_host(**a)) {
            return Err(invalid(
                format!("{server} cannot be a time server"),
                "it is no address of a host",
                "name an address that VMs reach",
            ));
        }
        self.search.iter().try_for_each(|d| check_domain(d))?;
        for (i, route) in self.routes.iter().enumerate() {
            let twice = self.routes.iter().take(i).any(|r| r.to == route.to);
            route.check(cidr, twice)?;
        }
        if let Some(seconds) = self.v6_only_wait_seconds
            && seconds < limits::V6_ONLY_WAIT_MIN_SECONDS
        {
            return Err(invalid(
                format!("a wait of {seconds} s for IPv6-only VMs does not work"),
                "300 s is the least (RFC 8925 section 3.4)",
                "leave it out, or say 300 or more",
            ));
        }
        self.boot.as_ref().map_or(Ok(()), NetBootSpec::check)
    }
}

impl RouteSpec {
    fn check(&self, cidr: Ipv4Net, twice: bool) -> Result<(), Error> {
        let why = if self.to.addr() != self.to.network() {
            "bits are set behind the prefix".to_owned()
        } else if self.to.prefix_len() == 0 {
            "the default route is the network's own".to_owned()
        } else if self.to == cidr {
            "it is the network itself".to_owned()
        } else if !cidr.contains(&self.via) || self.via == cidr.network() || self.via == cidr.broadcast() {
            format!("{} is no usable address of {cidr}", self.via)
        } else if twice {
            "there is another route to the same place".to_owned()
        } else {
            return Ok(());
        };
        Err(invalid(
            format!("the route to {} by {} cannot be told", self.to, self.via),
            why,
            "write it as 10.9.0.0/16=10.0.0.7, by an address of the network",
        ))
    }
}

impl NetBootSpec {
    fn check(&self) -> Result<(), Error> {
        at_most("boot files", self.files.len(), limits::NETWORK_MAX_BOOT_FILES)?;
        let files = self.files.iter().map(|f| &f.file);
        let words = [&self.server_name, &self.file, &self.ipxe].into_iter().flatten();
        for text in words.chain(files) {
            let printable = text.bytes().all(|b| b.is_ascii_graphic());
            if text.is_empty() || text.len() > limits::BOOT_FILE_MAX_BYTES || !printable {
                return Err(invalid(
                    format!("'{}' is no file or server to boot from", text.escape_default()),
                    "1 to 255 printable characters without blanks are allowed",
                    "write a path such as pxelinux.0, or a URL",
                ));
            }
        }
        match self.server {
            Some(server) if !is_host(server) => Err(invalid(
                format!("{server} cannot be a boot server"),
                "it is no address of a host",
                "name an address that VMs reach",
            )),
            _ => Ok(()),
        }
    }
}

fn is_host(a: Ipv4Addr) -> bool {
    !(a.is_unspecified() || a.is_multicast() || a.is_broadcast() || a.is_loopback())
}

fn at_most(noun: &str, is: usize, most: usize) -> Result<(), Error> {
    if is <= most {
        return Ok(());
    }
    Err(invalid(
        format!("too many {noun}"),
        format!("{is} were given, {most} are allowed"),
        "name fewer",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(to: &str, via: &str) -> RouteSpec {
        RouteSpec {
            to: to.parse().unwrap(),
            via: via.parse().unwrap(),
        }
    }

    fn check(spec: &DhcpSpec) -> Result<(), Error> {
        spec.check("10.0.0.0/24".parse().unwrap())
    }

    #[test]
    fn what_can_be_told_is_taken() {
        let spec = DhcpSpec {
            ntp: vec![[10, 0, 0, 3].into()],
            search: vec!["lab.example".into(), "example".into()],
            routes: vec![
                route("10.9.0.0/16", "10.0.0.7"),
                route("192.0.2.1/32", "10.0.0.7"),
            ],
            boot: Some(NetBootSpec {
                file: Some("pxelinux.0".into()),
                ..NetBootSpec::default()
            }),
            v6_only_wait_seconds: Some(300),
            rapid_commit: true,
        };
        check(&spec).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<DhcpSpec>(&text).unwrap(), spec);
        assert!(DhcpSpec::default().is_usual() && !spec.is_usual());
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        let usual = DhcpSpec::default;
        for (to, via) in [
            ("10.9.0.1/16", "10.0.0.7"),
            ("0.0.0.0/0", "10.0.0.7"),
            ("10.0.0.0/24", "10.0.0.7"),
            ("10.9.0.0/16", "10.0.1.7"),
            ("10.9.0.0/16", "10.0.0.255"),
            ("10.9.0.0/16", "0.0.0.0"),
        ] {
            let routes = vec![route(to, via)];
            assert!(check(&DhcpSpec { routes, ..usual() }).is_err(), "{to} {via}");
        }
        let routes = vec![route("10.9.0.0/16", "10.0.0.7"); 2];
        assert!(check(&DhcpSpec { routes, ..usual() }).is_err(), "twice");
        let routes = (0..33).map(|n| route(&format!("10.{n}.0.0/16"), "10.0.0.7"));
        let routes: Vec<_> = routes
            .skip(1)
            .chain([route("192.0.2.0/24", "10.0.0.7")])
            .collect();
        assert_eq!(routes.len(), 33);
        assert!(check(&DhcpSpec { routes, ..usual() }).is_err());
        let ntp = vec![Ipv4Addr::UNSPECIFIED];
        assert!(check(&DhcpSpec { ntp, ..usual() }).is_err());
        for bad in ["", "a..b", "ü.example", &"x".repeat(300)] {
            let search = vec![bad.to_owned()];
            assert!(check(&DhcpSpec { search, ..usual() }).is_err(), "{bad}");
        }
        let v6_only_wait_seconds = Some(299);
        assert!(
            check(&DhcpSpec {
                v6_only_wait_seconds,
                ..usual()
            })
            .is_err()
        );
        for file in ["", "two words", "new\nline", &"x".repeat(256), "naïve"] {
            let boot = Some(NetBootSpec {
                file: Some(file.into()),
                ..NetBootSpec::default()
            });
            assert!(check(&DhcpSpec { boot, ..usual() }).is_err(), "{file}");
        }
    }

    #[test]
    fn a_word_that_is_not_known_is_refused() {
        assert!(serde_json::from_str::<DhcpSpec>(r#"{"ntp":[],"time":[]}"#).is_err());
        assert!(serde_json::from_str::<DhcpSpec>("{}").unwrap().is_usual());
    }
}
