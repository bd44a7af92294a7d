//! `vbm forward`.

use super::{
    args::{Belonging, Forward, ForwardCreate},
    forms, human,
    session::Session,
    table::Table,
};
use crate::api::{CreateForward, ForwardView};
use vbm_core::{Error, Protocol, Timestamp};

const NONE_YET: &str = "no forwards yet: make one with `vbm forward create VM 8080:80`";

pub(super) async fn run(on: &Session<'_>, verb: Forward) -> Result<(), Error> {
    let forwards = on.client.forwards();
    match verb {
        Forward::Create(args) => create(on, &args).await,
        Forward::List(of) => list(on, &of).await,
        Forward::Delete(args) => {
            let begin = |name: String| {
                let call = forwards.delete(name);
                async move { Ok(call.await?.operation) }
            };
            on.each(&args.forwards, begin, |operation| {
                format!("{} is gone", operation.target.name)
            })
            .await
        }
    }
}

async fn create(on: &Session<'_>, args: &ForwardCreate) -> Result<(), Error> {
    let form = forms::forward(&args.ports)?;
    let request = CreateForward {
        name: args.name.as_deref().map(str::parse).transpose()?,
        protocol: form.protocol,
        listen_address: form.address,
        count: form.count,
        network: args.network.clone(),
        ..CreateForward::new(&*args.vm, form.listen, form.target)
    };
    let made = on.client.forwards().create(request).await?;
    if on.finish(&made.operation).await? {
        on.out.done(
            &made.item,
            made.item.forward.meta.name.as_str(),
            &told(&made.item),
        )?;
        on.out
            .hint("the VM's groups still decide what may come in: see `vbm group --help`");
    }
    Ok(())
}

async fn list(on: &Session<'_>, of: &Belonging) -> Result<(), Error> {
    let mut listing = on.client.forwards().list();
    if let Some(network) = &of.network {
        listing = listing.network(network);
    }
    if let Some(vm) = &of.vm {
        listing = listing.vm(vm);
    }
    let all = listing.all().await?;
    on.out.list(
        &all,
        |f| f.forward.meta.name.to_string(),
        &table(&all, on.now()),
        NONE_YET,
    )
}

/// One port, or the first and the last.
fn ports_text(first: u16, count: u16) -> String {
    match count {
        0 | 1 => first.to_string(),
        _ => format!("{first}-{}", first.saturating_add(count - 1)),
    }
}

fn listen(view: &ForwardView) -> String {
    let spec = &view.forward.spec;
    let address = spec.listen_address.map_or_else(|| "*".into(), |a| a.to_string());
    format!("{address}:{}", ports_text(spec.listen_port, spec.count))
}

fn told(view: &ForwardView) -> String {
    let spec = &view.forward.spec;
    let protocol = if spec.protocol == Protocol::Tcp {
        String::new()
    } else {
        format!(" ({})", spec.protocol)
    };
    format!(
        "{}: {}{protocol} leads to {} at {}:{}",
        view.forward.meta.name,
        listen(view),
        view.vm_name,
        view.target_address,
        ports_text(spec.target_port, spec.count)
    )
}

fn table(forwards: &[ForwardView], now: Timestamp) -> Table {
    let mut table = Table::new(
        &["NAME", "PROTOCOL", "LISTEN", "TARGET", "VM", "NETWORK", "AGE"],
        &["ID"],
    );
    for view in forwards {
        let (meta, spec) = (&view.forward.meta, &view.forward.spec);
        table.row([
            meta.name.to_string(),
            spec.protocol.to_string(),
            listen(view),
            format!(
                "{}:{}",
                view.target_address,
                ports_text(spec.target_port, spec.count)
            ),
            view.vm_name.clone(),
            view.network_name.clone(),
            human::age(now, meta.created_at),
            meta.id.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;
    use vbm_core::{ForwardId, ForwardSpec, Meta, NetworkId, PortId};

    #[test]
    fn a_forward_says_from_where_to_where() {
        let id = Uuid::from_u128(7);
        let view = ForwardView {
            forward: vbm_core::Forward {
                meta: Meta::new(
                    ForwardId::from_uuid(id),
                    "f1".parse().unwrap(),
                    Timestamp::from_micros(0),
                ),
                spec: ForwardSpec {
                    network: NetworkId::from_uuid(id),
                    protocol: Protocol::Udp,
                    listen_address: None,
                    listen_port: 5353,
                    count: 1,
                    target: PortId::from_uuid(id),
                    target_port: 53,
                },
            },
            network_name: "lan".into(),
            vm_name: "dns1".into(),
            target_address: "10.0.0.2".parse().unwrap(),
        };
        assert_eq!(told(&view), "f1: *:5353 (udp) leads to dns1 at 10.0.0.2:53");
        assert_eq!(
            table(&[view], Timestamp::from_micros(0)).render(false, Some(80)),
            "NAME  PROTOCOL  LISTEN  TARGET       VM    NETWORK  AGE\n\
             f1    udp       *:5353  10.0.0.2:53  dns1  lan      0s"
        );
    }
}
