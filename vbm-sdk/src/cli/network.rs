//! `vbm network`.

use super::{
    args::{Belonging, Network, NetworkCreate},
    forms, human,
    info::Lines,
    port,
    session::Session,
    table::Table,
};
use crate::api::{CreateNetwork, NetworkView};
use vbm_core::{Error, Timestamp};

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

fn request(args: &NetworkCreate) -> Result<CreateNetwork, Error> {
    let pool = args.pool.as_deref().map(forms::pool).transpose()?;
    let lease = args.lease.as_deref().map(human::parse_span).transpose()?;
    Ok(CreateNetwork {
        mode: args.mode.parse()?,
        gateway: args.gateway.as_deref().map(forms::address).transpose()?,
        pool_first: pool.map(|(first, _)| first),
        pool_last: pool.map(|(_, last)| last),
        dns: args
            .dns
            .iter()
            .map(|text| forms::address(text))
            .collect::<Result<_, _>>()?,
        domain: args.domain.clone(),
        mtu: args.mtu,
        // A span is a year at most: that fits.
        lease_seconds: lease.map(|span| u32::try_from(span.as_secs()).unwrap_or(u32::MAX)),
        serve_dns: args.no_dns.then_some(false),
        dns_upstreams: args
            .dns_upstreams
            .iter()
            .map(|text| forms::server(text))
            .collect::<Result<_, _>>()?,
        metadata: args.metadata.parse()?,
        ..CreateNetwork::new(args.name.parse()?, &*args.cidr)
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
            format!("{}-{}", spec.pool_first, spec.pool_last),
            spec.mtu.to_string(),
            view.network.status.namespace.clone().unwrap_or_default(),
        ]);
    }
    table
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
    lines.put("CIDR", spec.cidr.to_string());
    lines.put("Gateway", spec.gateway.to_string());
    lines.put("Pool", format!("{} to {}", spec.pool_first, spec.pool_last));
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
    }
}
