//! Bandwidth limits of one namespace, over netlink: [`crate::limits`] says which.

use super::link::{Link, Links, failed, is_absent};
use crate::{
    NetError,
    limits::{self, AllSeen, Entrance, Root, Seen, Shape, Step, Wanted, wire},
    names,
};
use futures::TryStreamExt;
use rtnetlink::{
    packet_core::{DefaultNla, Nla},
    packet_route::tc::{
        TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute, TcFilterU32Option, TcHandle,
        TcMessage, TcMirrorActionType, TcOption, TcStats2,
    },
};
use std::collections::BTreeMap;

/// `ETH_P_ALL`, in the order of the wire.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
/// What stands behind a link's way in.
const INGRESS: &str = "ingress";

/// What a bucket dropped, by the index of its link.
pub(crate) type Dropped = BTreeMap<u32, u64>;

/// Makes the limits of these ports stand, and no others among `links`: those of the namespace, or all that one port has. Reads back
/// what was changed.
pub(crate) async fn apply(
    links: &Links,
    alias: &str,
    wanted: &[Wanted],
    all: &[Link],
) -> Result<Vec<String>, NetError> {
    let steps = foresee(links, wanted, all).await?;
    for step in &steps {
        links.take_limit_step(alias, step).await?;
    }
    if !steps.is_empty() {
        let mut now = Vec::new();
        for name in concerned_names(wanted) {
            now.extend(links.get(&name).await?);
        }
        if let Some(left) = limits::plan(wanted, &links.limits_of(&now).await?).first() {
            return Err(NetError::NotVerified {
                what: "a bandwidth limit".into(),
                detail: format!("missing: {left}"),
            });
        }
    }
    Ok(steps.iter().map(ToString::to_string).collect())
}

/// What [`apply`] would do.
pub(crate) async fn foresee(links: &Links, wanted: &[Wanted], all: &[Link]) -> Result<Vec<Step>, NetError> {
    let names = all.iter().map(|l| (l.name.as_str(), l.queue.as_deref()));
    if !limits::concerned(wanted, names) {
        return Ok(Vec::new());
    }
    Ok(limits::plan(wanted, &links.limits_of(all).await?))
}

/// The limits of one port, whose NIC was just made.
pub(crate) async fn apply_one(links: &Links, alias: &str, wanted: Wanted) -> Result<(), NetError> {
    let wanted = [wanted];
    let mut all = Vec::new();
    if limits::concerned(&wanted, std::iter::empty()) {
        for name in concerned_names(&wanted) {
            all.extend(links.get(&name).await?);
        }
    }
    apply(links, alias, &wanted, &all).await.map(drop)
}

fn concerned_names(wanted: &[Wanted]) -> Vec<String> {
    wanted
        .iter()
        .flat_map(|w| [names::tap(w.port), names::limit(w.port)])
        .collect()
}

impl Links {
    async fn queues(&self) -> Result<Vec<TcMessage>, NetError> {
        let all = self.handle().qdisc().get().execute().try_collect().await;
        all.map_err(failed("listing queues"))
    }

    /// What stands of limits on these links.
    async fn limits_of(&self, all: &[Link]) -> Result<AllSeen, NetError> {
        let queues = self.queues().await?;
        let mut seen = AllSeen::new();
        let ours =
            |l: &&Link| l.name.starts_with(names::TAP_PREFIX) || l.name.starts_with(names::LIMIT_PREFIX);
        for link in all.iter().filter(ours) {
            let mut one = Seen {
                index: link.index,
                up: link.up,
                ..Seen::default()
            };
            for queue in queues.iter().filter(|q| index(q) == Some(link.index)) {
                if kind(queue) == Some(INGRESS) {
                    one.entrance = self.entrance(link).await?;
                } else if queue.header.parent == TcHandle::ROOT
                    && let Some(shape) = shape(queue)
                {
                    one.root = Root::Shaped(shape);
                }
            }
            seen.insert(link.name.clone(), one);
        }
        Ok(seen)
    }

    /// Where what a link receives goes.
    async fn entrance(&self, link: &Link) -> Result<Entrance, NetError> {
        let all: Vec<TcMessage> = self
            .handle()
            .traffic_filter(signed(link.index))
            .get()
            .ingress()
            .execute()
            .try_collect()
            .await
            .map_err(failed(format!("listing the filters of {}", link.name)))?;
        let mut targets: Vec<u32> = all.iter().filter_map(redirected).collect();
        Ok(match (targets.pop(), targets.is_empty()) {
            (Some(target), true) => Entrance::LeadsTo(target),
            _ => Entrance::Broken,
        })
    }

    async fn must_get(&self, name: &str) -> Result<Link, NetError> {
        self.get(name).await?.ok_or_else(|| NetError::NotVerified {
            what: format!("link {name}"),
            detail: "it vanished while its limit was set".into(),
        })
    }

    async fn take_limit_step(&self, alias: &str, step: &Step) -> Result<(), NetError> {
        match step {
            Step::Make(gate) => {
                self.add_ifb(gate).await?;
                let link = self.must_get(gate).await?;
                self.set_alias(&link, alias).await
            }
            Step::Raise(gate) => self.set_up(&self.must_get(gate).await?).await,
            Step::Shape(name, shape) => self.shape(&self.must_get(name).await?, *shape).await,
            Step::Lead(tap, gate) => {
                let (tap, gate) = (self.must_get(tap).await?, self.must_get(gate).await?);
                self.unlead(&tap).await?;
                self.lead(&tap, &gate).await
            }
            Step::Unshape(name) => {
                let mut gone = self
                    .handle()
                    .qdisc()
                    .del(signed(self.must_get(name).await?.index));
                gone.message_mut().header.parent = TcHandle::ROOT;
                absent_is_fine(gone.execute().await, || format!("removing the limit of {name}"))
            }
            Step::Unlead(tap) => self.unlead(&self.must_get(tap).await?).await,
            Step::Remove(gate) => self.delete(gate).await.map(drop),
        }
    }

    /// Another bucket on the same link changes in place, and keeps what waits.
    async fn shape(&self, link: &Link, shape: Shape) -> Result<(), NetError> {
        let mut message = TcMessage::with_index(signed(link.index));
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind(wire::KIND.to_owned()));
        let options = wire::encode(shape).map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)));
        message.attributes.push(TcAttribute::Options(options.into()));
        self.put_queue(message)
            .await
            .map_err(failed(format!("limiting {}", link.name)))
    }

    async fn put_queue(&self, message: TcMessage) -> Result<(), rtnetlink::Error> {
        use futures::StreamExt;
        use rtnetlink::{
            packet_core::{
                NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
            },
            packet_route::RouteNetlinkMessage,
        };
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let mut answers = self.handle().clone().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }

    async fn lead(&self, tap: &Link, gate: &Link) -> Result<(), NetError> {
        let doing = || format!("leading {} to {}", tap.name, gate.name);
        let ingress = self.handle().qdisc().add(signed(tap.index)).ingress();
        ingress.execute().await.map_err(failed(doing()))?;
        let filter = self
            .handle()
            .traffic_filter(signed(tap.index))
            .add()
            .ingress()
            .priority(1)
            .protocol(ALL_PROTOCOLS)
            .redirect(gate.index)
            .map_err(failed(doing()))?;
        filter.execute().await.map_err(failed(doing()))
    }

    async fn unlead(&self, tap: &Link) -> Result<(), NetError> {
        let mut gone = self.handle().qdisc().del(signed(tap.index));
        gone.message_mut().header.parent = TcHandle::INGRESS;
        absent_is_fine(gone.execute().await, || format!("what {} receives", tap.name))
    }

    /// What each bucket dropped.
    pub(crate) async fn dropped(&self) -> Result<Dropped, NetError> {
        let queues = self.queues().await?;
        let of = |q: &TcMessage| {
            (kind(q) == Some(wire::KIND) && q.header.parent == TcHandle::ROOT)
                .then(|| Some((index(q)?, drops(q))))
                .flatten()
        };
        Ok(queues.iter().filter_map(of).collect())
    }
}

/// One that is not there is reported as `EINVAL` too.
fn absent_is_fine(
    result: Result<(), rtnetlink::Error>,
    doing: impl FnOnce() -> String,
) -> Result<(), NetError> {
    let invalid = |error: &rtnetlink::Error| match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error() == Some(nix::libc::EINVAL),
        _ => false,
    };
    match result {
        Err(error) if is_absent(&error) || invalid(&error) => Ok(()),
        other => other.map_err(failed(doing())),
    }
}

/// The kernel counts links in signed numbers here, and from 1.
fn signed(index: u32) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn index(message: &TcMessage) -> Option<u32> {
    u32::try_from(message.header.index).ok()
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn options(message: &TcMessage) -> &[TcOption] {
    let found = message.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options.as_slice()),
        _ => None,
    });
    found.unwrap_or_default()
}

fn shape(message: &TcMessage) -> Option<Shape> {
    if kind(message) != Some(wire::KIND) {
        return None;
    }
    options(message).iter().find_map(|option| match option {
        TcOption::Other(nla) => {
            let mut value = vec![0; nla.value_len()];
            nla.emit_value(&mut value);
            wire::decode(&value)
        }
        _ => None,
    })
}

fn drops(message: &TcMessage) -> u64 {
    let stats = message.attributes.iter().find_map(|a| match a {
        TcAttribute::Stats2(stats) => Some(stats.as_slice()),
        _ => None,
    });
    let queue = stats.unwrap_or_default().iter().find_map(|s| match s {
        TcStats2::Queue(queue) => Some(queue.drops),
        _ => None,
    });
    queue.unwrap_or(0).into()
}

/// The link that a filter sends everything to.
fn redirected(message: &TcMessage) -> Option<u32> {
    let actions = options(message).iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    let attributes = actions.iter().flat_map(|action| &action.attributes);
    let options = attributes.filter_map(|a| match a {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
    })
}
