//! Which options a client is told, in which order, with which data. Pure.

use super::{
    Boot, Reservation, Route, Settings, Subnet,
    options::{addresses, code, routes, search_list, wire_name},
    request::Request,
};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use vbm_core::network::METADATA_ADDRESS;

/// What a client that asks for nothing in particular is told, after the mask.
const USUAL: [u8; 6] = [
    code::ROUTER,
    code::DNS,
    code::HOST_NAME,
    code::DOMAIN,
    code::MTU,
    code::BROADCAST,
];
/// How machines without a disk say what they are (PXE 2.1, UEFI 2.5 section 24.7).
const PXE: &[u8] = b"PXEClient";
const HTTP: &[u8] = b"HTTPClient";
const IPXE: &[u8] = b"iPXE";
/// Option 43 for PXE: discovery control, with the bit that says "take the file, ask nobody else"; its end.
const PXE_TAKE_THE_FILE: [u8; 4] = [6, 1, 8, 255];
/// Flags of option 81 (RFC 4702 section 2.1).
const FQDN_S: u8 = 1;
const FQDN_O: u8 = 2;
const FQDN_E: u8 = 4;
const FQDN_N: u8 = 8;
/// What the two codes of option 81 that are no longer used say (RFC 4702 section 2.2).
const FQDN_RCODE: u8 = 255;

/// What one reply is made from.
pub(super) struct Told<'a> {
    settings: &'a Settings,
    net: Ipv4Net,
    port: Option<&'a Reservation>,
    request: &'a Request,
    /// What it starts, if it asks for that.
    pub(super) boot: Option<&'a Boot>,
    /// The file of that.
    pub(super) boot_file: Option<&'a str>,
    routes: Vec<Route>,
}

impl<'a> Told<'a> {
    pub(super) fn new(
        gateway: Ipv4Addr,
        subnet: &'a Subnet,
        port: Option<&'a Reservation>,
        request: &'a Request,
    ) -> Self {
        let settings = &subnet.settings;
        let boot = port
            .and_then(|p| p.boot.as_ref())
            .or(settings.boot.as_ref())
            .filter(|_| boots(request));
        Self {
            net: subnet.net,
            port,
            request,
            boot,
            boot_file: boot.and_then(|b| file(b, request)),
            routes: all_routes(gateway, settings, port),
            settings,
        }
    }

    fn hostname(&self) -> Option<&str> {
        self.port.map(|p| p.hostname.as_str())
    }
}

/// Whether it asks for something to start.
fn boots(request: &Request) -> bool {
    let class = request.vendor_class.as_deref().unwrap_or_default();
    class.starts_with(PXE)
        || class.starts_with(HTTP)
        || request.asks_for(code::BOOT_FILE)
        || request.asks_for(code::BOOT_SERVER)
}

fn file<'a>(boot: &'a Boot, request: &Request) -> Option<&'a str> {
    let is_ipxe = request
        .user_class
        .as_deref()
        .is_some_and(|c| c.windows(IPXE.len()).any(|w| w == IPXE));
    let ipxe = boot.ipxe.as_deref().filter(|_| is_ipxe);
    let by_arch = || {
        let fits = |(arch, _): &&(u16, String)| Some(*arch) == request.architecture;
        boot.by_arch.iter().find(fits).map(|(_, file)| file.as_str())
    };
    ipxe.or_else(by_arch).or(boot.file.as_deref())
}

/// Those of the network, and the way to the metadata service where this port is told it.
fn all_routes(gateway: Ipv4Addr, settings: &Settings, port: Option<&Reservation>) -> Vec<Route> {
    let mut all = settings.routes.clone();
    let to = Ipv4Net::from(METADATA_ADDRESS);
    if port.is_some_and(|p| p.metadata) && all.iter().all(|r| r.to != to) {
        all.push(Route {
            to,
            via: settings.router.unwrap_or(gateway),
        });
    }
    all
}

/// The client's order, each code once; the mask always, the usual ones where it asks for nothing.
pub(super) fn order(told: &Told<'_>) -> Vec<u8> {
    let mut seen = [false; 256];
    let mut codes = Vec::with_capacity(16);
    let wish = told.request.parameters.as_deref().unwrap_or(&USUAL);
    let mask: &[u8] = if wish.contains(&code::SUBNET_MASK) {
        &[]
    } else {
        &[code::SUBNET_MASK]
    };
    for code in mask.iter().chain(wish) {
        if let Some(seen) = seen.get_mut(usize::from(*code))
            && !std::mem::replace(seen, true)
        {
            codes.push(*code);
        }
    }
    if told.boot.is_some() {
        // A ROM may ask for nothing, and still needs these.
        for code in [code::VENDOR_SPECIFIC, code::BOOT_SERVER, code::BOOT_FILE] {
            if !codes.contains(&code) {
                codes.push(code);
            }
        }
    }
    codes
}

/// The data of an option that a client may ask for; `None`: there is nothing to tell.
pub(super) fn parameter(told: &Told<'_>, code: u8) -> Option<Vec<u8>> {
    let settings = told.settings;
    let some = |all: &[Ipv4Addr]| (!all.is_empty()).then(|| addresses(all));
    match code {
        code::SUBNET_MASK => Some(told.net.netmask().octets().to_vec()),
        // RFC 3442: who asks for 121 gets all routes there, the default one too, and no 3.
        code::ROUTER if told.request.asks_for(code::CLASSLESS_ROUTES) && !told.routes.is_empty() => None,
        code::ROUTER => settings.router.map(|r| r.octets().to_vec()),
        code::CLASSLESS_ROUTES if told.routes.is_empty() => None,
        code::CLASSLESS_ROUTES => {
            let default = settings.router.map(|via| Route {
                to: Ipv4Net::default(),
                via,
            });
            Some(routes(told.routes.iter().chain(&default)))
        }
        code::DNS => some(&settings.dns),
        code::NTP => some(&settings.ntp),
        code::HOST_NAME => told.hostname().map(|n| n.as_bytes().to_vec()),
        code::DOMAIN => settings.domain.as_ref().map(|d| d.as_bytes().to_vec()),
        code::SEARCH => {
            let data = search_list(settings.search.iter().map(String::as_str));
            (!data.is_empty()).then_some(data)
        }
        code::MTU => (settings.mtu != 0).then(|| settings.mtu.to_be_bytes().to_vec()),
        code::BROADCAST => Some(told.net.broadcast().octets().to_vec()),
        code::V6_ONLY => settings.v6_only_wait_seconds.map(|s| s.to_be_bytes().to_vec()),
        code::VENDOR_SPECIFIC if is_pxe(told.request) && told.boot_file.is_some() => {
            Some(PXE_TAKE_THE_FILE.to_vec())
        }
        code::BOOT_SERVER => told.boot.and_then(boot_server),
        code::BOOT_FILE => told.boot_file.map(|f| f.as_bytes().to_vec()),
        _ => None,
    }
}

fn boot_server(boot: &Boot) -> Option<Vec<u8>> {
    let address = || boot.server.map(|a| a.to_string());
    boot.server_name.clone().or_else(address).map(String::into_bytes)
}

fn is_pxe(request: &Request) -> bool {
    let class = request.vendor_class.as_deref().unwrap_or_default();
    class.starts_with(PXE)
}

/// What a client is told because of what it said, not because it asked.
pub(super) fn unasked(told: &Told<'_>, nak: bool) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    if nak {
        return all;
    }
    if let Some(data) = told.request.fqdn.as_deref().and_then(|asked| fqdn(told, asked)) {
        all.push((code::FQDN, data));
    }
    if told.boot.is_some() {
        if let Some(id) = &told.request.machine_id {
            all.push((code::MACHINE_ID, id.clone()));
        }
        let class = told.request.vendor_class.as_deref().unwrap_or_default();
        if let Some(class) = [PXE, HTTP].into_iter().find(|c| class.starts_with(c)) {
            all.push((code::VENDOR_CLASS, class.to_vec()));
        }
    }
    all
}

/// RFC 4702 section 3: the name is ours to give; the flags say who tells the DNS of it.
fn fqdn(told: &Told<'_>, asked: &[u8]) -> Option<Vec<u8>> {
    let &[flags, _, _, ..] = asked else { return None };
    let hostname = told.hostname()?;
    let name = match &told.settings.domain {
        Some(domain) => format!("{hostname}.{domain}"),
        None => hostname.to_owned(),
    };
    let ours = if told.settings.names_are_served {
        FQDN_S
    } else {
        FQDN_N
    };
    let overridden = (flags & FQDN_S != 0) != (ours == FQDN_S);
    let mut data = vec![
        ours | (flags & FQDN_E) | if overridden { FQDN_O } else { 0 },
        FQDN_RCODE,
        FQDN_RCODE,
    ];
    if flags & FQDN_E != 0 {
        let mut wire = wire_name(&name)?;
        if told.settings.domain.is_none() {
            // A name without its domain has no root.
            wire.pop();
        }
        data.append(&mut wire);
    } else {
        data.extend(name.bytes());
    }
    Some(data)
}
