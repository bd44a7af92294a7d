//! `vbm network`.

use super::{
    args::{AddressPlan, Belonging, Network, NetworkCreate, NetworkUpdate},
    forms, human,
    info::Lines,
    port,
    session::Session,
    table::Table,
};
use crate::api::{AddressUsage, CreateIpv6, CreateNetwork, NetworkView, UpdateIpv6, UpdateNetwork};
use vbm_core::{
    DhcpSpec, Error, ErrorKind, Ipv4Range, Ipv6Range, Reservation, Reservation6, Timestamp,
    dhcp::{NetBootSpec, RouteSpec},
};

const NONE_YET: &str = "no networks yet: make one with `vbm network create lan 10.0.0.0/24`";

pub(super) async fn run(on: &Session<'_>, verb: Network) -> Result<(), Error> {
    let networks = on.client.networks();
    match verb {
        Network::Create(args) => create(on, &args).await,
        Network::List => {
            let all = networks.list().all().await?;
            on.out.list(
                &all,
                |n| n.network.meta.name.to_string(),
                &table(&all, on.now()),
                NONE_YET,
            )
        }
        Network::Info(args) => {
            let network = networks.get(&args.network).await?;
            on.out.item(
                &network,
                network.network.meta.name.as_str(),
                &detail(&network, on.now()),
            )
        }
        Network::Update(args) => update(on, &args).await,
        Network::Delete(args) => {
            let begin = |name: String| {
                let call = networks.delete(name);
                async move { Ok(call.await?.operation) }
            };
            on.each(&args.networks, begin, |operation| {
                format!("{} is gone", operation.target.name)
            })
            .await
        }
        Network::Leases(args) => {
            // A name that is none shall not look like a network without ports.
            let network = networks.get(&args.network).await?;
            let of = Belonging {
                network: Some(network.network.meta.id.to_string()),
                vm: None,
            };
            port::list(on, &of).await
        }
    }
}

async fn create(on: &Session<'_>, args: &NetworkCreate) -> Result<(), Error> {
    let made = on.client.networks().create(request(args)?).await?;
    if !on.finish(&made.operation).await? {
        return Ok(());
    }
    let network = on
        .client
        .networks()
        .get(made.item.network.meta.id.to_string())
        .await?;
    let (name, spec) = (network.network.meta.name.to_string(), &network.network.spec);
    let text = format!(
        "{name} is up: {} by {}, gateway {}",
        spec.cidr, spec.mode, spec.gateway
    );
    on.out.done(&network, &name, &text)?;
    on.out.hint(&format!(
        "put a VM on it with `vbm launch IMAGE NAME --network {name}`"
    ));
    Ok(())
}

async fn update(on: &Session<'_>, args: &NetworkUpdate) -> Result<(), Error> {
    let mut wanted = plan(&args.plan)?;
    if wanted == UpdateNetwork::default() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "nothing is to be changed",
            "no option says what",
            "name --pool, --exclude, --reserve or --quarantine; `vbm network info` shows what is",
        ));
    }
    // `none` speaks of both families, where there are two.
    if !args.plan.speaks_of_ipv6()
        && on
            .client
            .networks()
            .get(&args.network)
            .await?
            .network
            .spec
            .ipv6
            .is_none()
    {
        wanted.ipv6 = None;
    }
    let made = on.client.networks().update(&args.network, wanted).await?;
    if !on.finish(&made.operation).await? {
        return Ok(());
    }
    let network = on
        .client
        .networks()
        .get(made.item.network.meta.id.to_string())
        .await?;
    let name = network.network.meta.name.to_string();
    let text = format!("{name} gives {}", pools(&network));
    on.out.done(&network, &name, &text)
}

fn request(args: &NetworkCreate) -> Result<CreateNetwork, Error> {
    let lease = args.lease.as_deref().map(human::parse_span).transpose()?;
    let plan = plan(&args.plan)?;
    let six = plan.ipv6.unwrap_or_default();
    let ipv6 = match &args.ipv6 {
        Some(cidr) => Some(CreateIpv6 {
            cidr: cidr.clone(),
            gateway: args.gateway6.as_deref().map(forms::address6).transpose()?,
            stateless: args.stateless6,
            dns: args
                .dns6
                .iter()
                .map(|text| forms::address6(text))
                .collect::<Result<_, _>>()?,
            pools: six.pools.unwrap_or_default(),
            excluded: six.excluded.unwrap_or_default(),
            reservations: six.reservations.unwrap_or_default(),
        }),
        None if args.plan.speaks_of_ipv6() => {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "an IPv6 range does not fit",
                "the network has no IPv6",
                "give it IPv6 with --ipv6 CIDR, or leave the range out",
            ));
        }
        None => None,
    };
    Ok(CreateNetwork {
        mode: args.mode.parse()?,
        gateway: args.gateway.as_deref().map(forms::address).transpose()?,
        pools: plan.pools.unwrap_or_default(),
        excluded: plan.excluded.unwrap_or_default(),
        reservations: plan.reservations.unwrap_or_default(),
        quarantine_seconds: plan.quarantine_seconds,
        ipv6,
        dns: args
            .dns
            .iter()
            .map(|text| forms::address(text))
            .collect::<Result<_, _>>()?,
        domain: args.domain.clone(),
        mtu: args.mtu,
        // A span is a year at most: that fits.
        lease_seconds: lease.map(|span| u32::try_from(span.as_secs()).unwrap_or(u32::MAX)),
        dhcp: dhcp(args)?,
        serve_dns: args.no_dns.then_some(false),
        dns_upstreams: args
            .dns_upstreams
            .iter()
            .map(|text| forms::server(text))
            .collect::<Result<_, _>>()?,
        metadata: args.metadata.as_deref().map(str::parse).transpose()?,
        uplink: args.uplink.as_deref().map(str::parse).transpose()?,
        serve_dhcp: args.serve_dhcp.then_some(true),
        ..CreateNetwork::new(args.name.parse()?, &*args.cidr)
    })
}

/// What was typed of who gets which address. What was not spoken of is absent.
fn plan(args: &AddressPlan) -> Result<UpdateNetwork, Error> {
    args.pools.iter().try_for_each(|text| forms::is_pool(text))?;
    let (pools, pools6) = forms::of_both::<Ipv4Range, Ipv6Range>(&args.pools)?;
    let (excluded, excluded6) = forms::of_both::<Ipv4Range, Ipv6Range>(&args.excluded)?;
    let (reservations, reservations6) = forms::of_both::<Reservation, Reservation6>(&args.reservations)?;
    let rest = args.quarantine.as_deref().map(human::parse_span).transpose()?;
    let ipv6 = UpdateIpv6 {
        pools: pools6,
        excluded: excluded6,
        reservations: reservations6,
    };
    Ok(UpdateNetwork {
        pools,
        excluded,
        reservations,
        quarantine_seconds: rest.map(|span| u32::try_from(span.as_secs()).unwrap_or(u32::MAX)),
        ipv6: (ipv6 != UpdateIpv6::default()).then_some(ipv6),
        generation: None,
    })
}

impl AddressPlan {
    fn speaks_of_ipv6(&self) -> bool {
        let all = [&self.pools, &self.excluded, &self.reservations];
        let mut texts = all.into_iter().flatten();
        texts.any(|text| text.split('=').next().unwrap_or_default().contains(':'))
    }
}

fn pools(view: &NetworkView) -> String {
    let spec = &view.network.spec;
    let four = spec.pools().map(|range| range.to_string());
    let six = spec
        .ipv6
        .iter()
        .flat_map(|s| s.pools.iter().map(ToString::to_string));
    four.chain(six).collect::<Vec<_>>().join(", ")
}

pub(super) fn joined<T: ToString>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn used(usage: &AddressUsage) -> String {
    let mut text = format!("{} of {} given, {} free", usage.taken, usage.pool, usage.free);
    if usage.resting > 0 {
        text.push_str(&format!(", {} at rest", usage.resting));
    }
    if usage.outside > 0 {
        text.push_str(&format!(", {} outside the pools", usage.outside));
    }
    text
}

fn dhcp(args: &NetworkCreate) -> Result<DhcpSpec, Error> {
    let server = args.boot_server.as_deref().map(forms::address).transpose()?;
    let boot = (server.is_some() || args.boot_file.is_some()).then(|| NetBootSpec {
        server,
        file: args.boot_file.clone(),
        ..NetBootSpec::default()
    });
    Ok(DhcpSpec {
        ntp: args
            .ntp
            .iter()
            .map(|text| forms::address(text))
            .collect::<Result<_, _>>()?,
        search: args.search.clone(),
        routes: args
            .routes
            .iter()
            .map(|text| forms::route(text))
            .collect::<Result<_, _>>()?,
        boot,
        ..DhcpSpec::default()
    })
}

fn state(view: &NetworkView) -> &'static str {
    match (&view.network.status.problem, view.network.status.ready) {
        _ if view.network.meta.deleting => "deleting",
        (Some(_), _) => "failing",
        (None, true) => "ready",
        (None, false) => "pending",
    }
}

fn table(networks: &[NetworkView], now: Timestamp) -> Table {
    let mut table = Table::new(
        &["NAME", "CIDR", "MODE", "STATE", "GATEWAY", "PORTS", "AGE"],
        &["ID", "POOL", "MTU", "NAMESPACE"],
    );
    for view in networks {
        let (meta, spec) = (&view.network.meta, &view.network.spec);
        table.row([
            meta.name.to_string(),
            spec.cidr.to_string(),
            spec.mode.to_string(),
            state(view).to_owned(),
            spec.gateway.to_string(),
            view.ports.to_string(),
            human::age(now, meta.created_at),
            meta.id.to_string(),
            joined(&spec.pools().collect::<Vec<_>>()),
            spec.mtu.to_string(),
            view.network.status.namespace.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// What VMs are told besides what every network tells; a line for each that is.
fn told(lines: &mut Lines, spec: &DhcpSpec) {
    let joined = |all: Vec<String>| all.join(", ");
    let route = |r: &RouteSpec| format!("{} by {}", r.to, r.via);
    for (name, text) in [
        ("NTP", joined(spec.ntp.iter().map(ToString::to_string).collect())),
        ("Search", joined(spec.search.clone())),
        ("Routes", joined(spec.routes.iter().map(route).collect())),
        (
            "Boots",
            spec.boot
                .as_ref()
                .and_then(|b| b.file.clone())
                .unwrap_or_default(),
        ),
    ] {
        lines.put(name, text);
    }
}

/// Who answers DNS, and whom it asks.
fn names(spec: &vbm_core::NetworkSpec) -> String {
    let asked: Vec<_> = spec.dns_upstreams.iter().map(ToString::to_string).collect();
    match (spec.serve_dns, spec.forwards_dns(), asked.is_empty()) {
        (false, ..) => "not served".into(),
        (true, false, _) => "of its VMs".into(),
        (true, true, true) => "of its VMs, and the world's by the host's servers".into(),
        (true, true, false) => format!("of its VMs, and the world's by {}", asked.join(", ")),
    }
}

fn detail(view: &NetworkView, now: Timestamp) -> String {
    let (spec, status) = (&view.network.spec, &view.network.status);
    let mut lines = Lines::default();
    lines.meta(&view.network.meta, now);
    lines.put("State", state(view));
    lines.problem(status.problem.as_ref());
    lines.put("Mode", spec.mode.to_string());
    lines.put(
        "Uplink",
        spec.uplink.as_ref().map(ToString::to_string).unwrap_or_default(),
    );
    lines.put("CIDR", spec.cidr.to_string());
    lines.put("Gateway", spec.gateway.to_string());
    if !spec.serve_dhcp {
        lines.put(
            "Addresses",
            "told by the LAN's own DHCP server; those of VBM are set aside for who sets them by hand",
        );
    }
    lines.put("Pool", format!("{} to {}", spec.pool_first, spec.pool_last));
    lines.put("Also", joined(&spec.more_pools));
    lines.put("Excluded", joined(&spec.excluded));
    lines.put("Reserved", joined(&spec.reservations));
    if spec.quarantine_seconds > 0 {
        let rest = std::time::Duration::from_secs(spec.quarantine_seconds.into());
        lines.put("Rest", format!("{} after a VM is deleted", human::span(rest)));
    }
    if let Some(usage) = &view.usage {
        lines.put("Used", used(&usage.ipv4));
    }
    if let Some(ipv6) = &spec.ipv6 {
        lines.put("IPv6", ipv6.cidr.to_string());
        lines.put("Gateway6", ipv6.gateway.to_string());
        let by = if ipv6.stateless {
            "made by the VMs, of their MACs"
        } else {
            "told by DHCPv6"
        };
        lines.put("Addresses6", by.to_owned());
        lines.put("DNS6", joined(&ipv6.dns));
        lines.put("Pool6", joined(&ipv6.pools));
        lines.put("Excluded6", joined(&ipv6.excluded));
        lines.put("Reserved6", joined(&ipv6.reservations));
    }
    if let Some(usage) = view.usage.as_ref().and_then(|u| u.ipv6.as_ref()) {
        lines.put("Used6", used(usage));
    }
    lines.put(
        "DNS",
        spec.dns
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    );
    lines.put("Names", names(spec));
    lines.put("Metadata", spec.metadata.to_string());
    lines.put("Domain", spec.domain().unwrap_or_default().to_owned());
    told(&mut lines, &spec.dhcp);
    lines.put("MTU", format!("{} bytes", spec.mtu));
    lines.put(
        "Leases",
        format!(
            "for {}",
            human::span(std::time::Duration::from_secs(spec.lease_seconds.into()))
        ),
    );
    lines.put("Ports", view.ports.to_string());
    lines.put("Namespace", status.namespace.clone().unwrap_or_default());
    lines.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vbm_core::{Meta, NetworkId, NetworkMode, NetworkSpec, NetworkStatus, network::parse_cidr};

    fn sample() -> NetworkView {
        let id = NetworkId::from_uuid(uuid::Uuid::from_u128(7));
        NetworkView {
            network: vbm_core::Network {
                meta: Meta::new(id, "lan".parse().unwrap(), Timestamp::from_micros(0)),
                spec: NetworkSpec::new(NetworkMode::Nat, parse_cidr("10.0.0.0/24").unwrap()).unwrap(),
                status: NetworkStatus {
                    ready: true,
                    ..NetworkStatus::default()
                },
            },
            ports: 2,
            usage: Some(crate::api::NetworkUsage {
                ipv4: AddressUsage {
                    pool: 253,
                    taken: 2,
                    resting: 1,
                    free: 250,
                    outside: 0,
                },
                ipv6: None,
            }),
        }
    }

    #[test]
    fn networks_are_listed_with_their_addresses() {
        assert_eq!(
            table(&[sample()], Timestamp::from_micros(0)).render(false, Some(80)),
            "NAME  CIDR         MODE  STATE  GATEWAY   PORTS  AGE\n\
             lan   10.0.0.0/24  nat   ready  10.0.0.1  2      0s"
        );
    }

    #[test]
    fn the_detail_of_a_network_says_what_vms_are_told() {
        let text = detail(&sample(), Timestamp::from_micros(0));
        assert!(
            text.contains("Pool:      10.0.0.2 to 10.0.0.254") && text.contains("Leases:    for 60m"),
            "{text}"
        );
        assert!(text.contains("2 of 253 given, 250 free, 1 at rest"), "{text}");
    }

    fn typed(words: &str) -> Result<CreateNetwork, Error> {
        use super::super::args::{Cli, Command};
        use clap::Parser;
        let cli = Cli::try_parse_from(format!("vbm network create {words}").split(' ')).unwrap();
        let Command::Network(Network::Create(args)) = cli.command else {
            panic!("{words}")
        };
        request(&args)
    }

    #[test]
    fn a_mode_is_typed_with_its_uplink() {
        let made = typed("office 10.0.0.0/24 --mode bridged --uplink br-lan").unwrap();
        assert_eq!(made.uplink.unwrap().as_str(), "br-lan");
        assert_eq!(
            (made.mode, made.serve_dhcp, made.metadata),
            (NetworkMode::Bridged, None, None)
        );
        let made = typed("dmz 10.0.0.0/24 --mode routed --metadata open").unwrap();
        assert_eq!((made.mode, made.uplink), (NetworkMode::Routed, None));
        assert_eq!(made.metadata, Some(vbm_core::MetadataMode::Open));
        for bad in [
            "a 10.0.0.0/24 --mode bridge",
            "a 10.0.0.0/24 --mode routed --uplink eth+",
        ] {
            assert_eq!(typed(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn who_gets_which_address_is_typed_in_one_way_for_both_families() {
        let made = typed(
            "lan 10.0.0.0/24 --pool 10.0.0.2-10.0.0.9 --pool 10.0.0.20-10.0.0.29 --exclude 10.0.0.5 \
             --reserve 10.0.0.40=52:54:00:00:00:01 --quarantine 5m --ipv6 fd00::/64 --gateway6 fd00::9 --pool fd00::10-fd00::ff",
        )
        .unwrap();
        assert_eq!(
            (made.pools.len(), made.excluded.len(), made.quarantine_seconds),
            (2, 1, Some(300))
        );
        assert!(made.reservations[0].mac.is_some());
        let ipv6 = made.ipv6.unwrap();
        assert_eq!(
            (&*ipv6.cidr, ipv6.pools[0].to_string()),
            ("fd00::/64", "fd00::10-fd00::ff".to_owned())
        );
        assert!(!ipv6.stateless && ipv6.dns.is_empty());
        let made = typed("lan 10.0.0.0/24 --ipv6 fd00::/64 --stateless6 --dns6 fd00::53 --dns6 fd00::54");
        let ipv6 = made.unwrap().ipv6.unwrap();
        assert!(ipv6.stateless && ipv6.dns.len() == 2);
        for bad in [
            "lan 10.0.0.0/24 --ipv6 fd00::/64 --dns6 10.0.0.53",
            "lan 10.0.0.0/24 --pool fd00::1-fd00::2",
            "lan 10.0.0.0/24 --pool 10.0.0.9-10.0.0.2",
            "lan 10.0.0.0/24 --reserve 10.0.0.9=x",
            "lan 10.0.0.0/24 --quarantine x",
            "lan 10.0.0.0/24 --ipv6 fd00::/64 --gateway6 10.0.0.1",
        ] {
            assert_eq!(typed(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }
}
