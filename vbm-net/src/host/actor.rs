//! The actor of one network: the only one that changes it. It takes one command at a time from a bounded queue.

use super::{
    HostShared,
    apply::{Over, Run},
    carry, counting, foresee,
    hooks::{self, AtHost},
    leg, limits,
    link::Links,
    netns::NetNs,
    nic::Place,
    overlay,
    record::{self, Record},
    routed,
    rules::{self, Standing},
    services::Services,
    sysctl, teardown,
};
use crate::{
    DesiredNetwork, DesiredPort, NetError, NetworkSeen, Nic, NicKind, PortFlow, PortSeen, Validated,
    check::Known,
    dhcp::{
        Leases, ServerConfig,
        server::{Beginning, Context, Place as Bound, Server},
        store::Forgetful,
    },
    dhcp6,
    limits::counters::NetworkCounters,
    metadata::Instance,
    model::gateway_mac,
    names,
    plan::{Transit, filter::Family, host as host_plan, routed::on_host6},
    sim::{nic_in_use, not_here},
};
use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use vbm_core::{NetworkId, PortId};

/// The most commands that wait for one network.
pub(crate) const COMMANDS_MAX_PENDING: usize = 64;

/// The longest that opening a NIC waits for the kernel to notice that the bridge carries traffic: it does so about once a second.
const NIC_READY_MAX: Duration = Duration::from_secs(3);
/// How often to look.
const NIC_READY_POLL: Duration = Duration::from_millis(5);

pub(crate) type Answer<T> = oneshot::Sender<Result<T, NetError>>;

/// Everything one can ask of a network's actor.
pub(crate) enum Command {
    Ensure(Box<Validated<DesiredNetwork>>, Answer<NetworkSeen>),
    Remove(Answer<Vec<String>>),
    OpenNic(PortId, NicKind, Answer<Nic>),
    CloseNic(PortId, Answer<()>),
    Describe(PortId, Option<Box<Instance>>, Answer<()>),
    Look(Answer<Option<NetworkSeen>>),
    Count(Answer<NetworkCounters>),
    Tell(Answer<Option<Known>>),
    FlowsOf(PortId, Answer<Vec<PortFlow>>),
    TakeFlows(PortId, Vec<PortFlow>, Answer<usize>),
    Foresee(Box<Validated<DesiredNetwork>>, Answer<Vec<String>>),
}

pub(crate) struct Actor {
    shared: Arc<HostShared>,
    id: NetworkId,
    ns: NetNs,
    wanted: Option<Validated<DesiredNetwork>>,
    transit: Option<Transit>,
    /// The link that leads to other hosts.
    underlay: Option<String>,
    /// The host's own addresses on the LAN of a bridged network.
    host: Vec<Ipv4Addr>,
    /// Guard and rules as they were read back last.
    standing: Option<Standing>,
    /// Its rules on the host, the same.
    at_host: AtHost,
    /// Whether the last `ensure` went well.
    ready: bool,
    server: Option<Server>,
    services: Services,
    leases: Leases,
    server6: Option<dhcp6::server::Server>,
    leases6: dhcp6::Leases,
}

impl Actor {
    /// Starts the actor; it ends when the backend stops or its queue is closed.
    pub(crate) fn start(shared: Arc<HostShared>, id: NetworkId) -> mpsc::Sender<Command> {
        let (queue, commands) = mpsc::channel(COMMANDS_MAX_PENDING);
        let actor = Self {
            ns: NetNs::named(&shared.namespace(id)),
            id,
            wanted: None,
            transit: None,
            underlay: None,
            host: Vec::new(),
            standing: None,
            at_host: AtHost::default(),
            ready: false,
            server: None,
            services: Services::default(),
            leases: Leases::new(),
            server6: None,
            leases6: dhcp6::Leases::new(),
            shared: Arc::clone(&shared),
        };
        shared.tracker.spawn(actor.run(commands));
        queue
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                // Cancel safe: a command not received stays in the queue, and is answered `Stopped` when that is dropped.
                () = self.shared.stop.cancelled() => return,
                command = commands.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => return,
                },
            }
        }
    }

    /// A caller who left does not hear the answer; the work is done all the same.
    async fn handle(&mut self, command: Command) {
        match command {
            Command::Ensure(wanted, answer) => drop(answer.send(self.ensure(*wanted).await)),
            Command::Remove(answer) => drop(answer.send(self.remove().await)),
            Command::OpenNic(port, kind, answer) => drop(answer.send(self.open_nic(port, kind).await)),
            Command::CloseNic(port, answer) => drop(answer.send(self.close_nic(port).await)),
            Command::Describe(port, instance, answer) => {
                drop(answer.send(self.describe(port, instance.map(|i| *i))));
            }
            Command::Look(answer) => drop(answer.send(self.look().await)),
            Command::FlowsOf(port, answer) => drop(answer.send(self.flows_of(port).await)),
            Command::TakeFlows(port, flows, answer) => {
                drop(answer.send(self.take_flows(port, &flows).await));
            }
            Command::Tell(answer) => drop(answer.send(Ok(self.tell()))),
            Command::Count(answer) => drop(answer.send(self.count().await)),
            Command::Foresee(wanted, answer) => drop(answer.send(self.foresee(*wanted).await)),
        }
    }

    async fn ensure(&mut self, wanted: Validated<DesiredNetwork>) -> Result<NetworkSeen, NetError> {
        let first = !self.ready;
        // Only what was held is a ground to stand on.
        let before = self.wanted.take();
        self.ready = false;
        let (wanted, over) = match self.fit(wanted).await {
            Ok(fits) => fits,
            Err(error) => {
                self.wanted = before;
                return Err(error);
            }
        };
        // From here on NICs open by what is wanted now, and only if the kernel holds it.
        self.host = over.host().to_vec();
        let wanted = self.wanted.insert(wanted);
        let applied = Run::new(&self.shared, wanted, &over, first)
            .after(before.as_ref().filter(|_| !first))
            .apply(&mut self.standing, &mut self.at_host)
            .await?;
        self.transit = applied.transit;
        self.underlay = over.underlay.as_ref().map(|u| u.name().to_owned());
        let mut changed = applied.changed;
        self.serve(applied.bridge, &mut changed).await?;
        self.serve6(applied.bridge, &mut changed).await?;
        self.shared.step("dhcp");
        if let Some(wanted) = &self.wanted {
            self.services
                .serve(&self.shared, &self.ns, applied.bridge, wanted, &mut changed)
                .await?;
        }
        self.shared.step("services");
        self.ready = true;
        if !changed.is_empty() {
            tracing::info!(network = %self.id, changes = changed.len(), "the network is as wanted");
            tracing::debug!(network = %self.id, ?changed, "what was changed");
        }
        let mut seen = self.seen(&applied.taps);
        seen.changed = changed;
        Ok(seen)
    }

    /// What is wanted, with the MTU that fits between the hosts or on the LAN: all that follows, and what VMs are told, goes by it. Refuses
    /// what this host cannot have, before anything of it is made.
    async fn fit(
        &self,
        wanted: Validated<DesiredNetwork>,
    ) -> Result<(Validated<DesiredNetwork>, Over), NetError> {
        routed::check(&self.shared, &wanted).await?;
        let mut over = Over {
            uplink: leg::uplink(&self.shared, &self.ns, &wanted).await?,
            underlay: None,
        };
        let mut mtu = wanted.spec.mtu;
        if let Some(uplink) = &over.uplink {
            mtu = uplink.fits(&wanted.spec)?;
        }
        if let Some(local) = wanted.overlay.as_ref().map(|o| o.local) {
            let underlay = overlay::underlay(&self.shared.host, local).await?;
            mtu = underlay.fits(&wanted.spec, local)?;
            over.underlay = Some(underlay);
        }
        Ok((wanted.with_mtu(mtu), over))
    }

    /// Makes the DHCP server run on the bridge that stands now.
    async fn serve(&mut self, bridge: u32, changed: &mut Vec<String>) -> Result<(), NetError> {
        self.keep_leases();
        let Some(wanted) = &self.wanted else { return Ok(()) };
        if !wanted.spec.serve_dhcp {
            if let Some(server) = self.server.take() {
                server.stop().await;
                changed.push("no more DHCP server".into());
            }
            self.leases.clear();
            return Ok(());
        }
        let addresses: HashMap<PortId, Ipv4Addr> = wanted.ports.iter().map(|p| (p.id, p.address)).collect();
        self.leases
            .retain(|port, lease| addresses.get(port) == Some(&lease.address));
        let config = ServerConfig::from(wanted);
        let place = Bound {
            namespace: self.ns.identity(),
            interface: bridge,
        };
        if let Some(server) = self.server.as_ref().filter(|s| s.serves(place)) {
            if server.reconfigure(config) {
                changed.push("DHCP settings".into());
            }
            return Ok(());
        }
        if let Some(gone) = self.server.take() {
            gone.stop().await;
        }
        let failed = |e| NetError::kernel("starting the DHCP server", e);
        let socket = self
            .ns
            .run(move || crate::dhcp::open_socket(bridge))
            .await?
            .map_err(failed)?;
        let context = Context {
            network: self.id,
            clock: Arc::clone(&self.shared.clock),
            events: self.shared.events.clone(),
            tracker: self.shared.tracker.clone(),
        };
        let begin = Beginning {
            socket,
            place,
            config,
            leases: self.leases.clone(),
            store: Box::new(Forgetful),
            kept: Vec::new(),
        };
        let server = Server::start(begin, context).map_err(failed)?;
        self.server = Some(server);
        changed.push("DHCP server".into());
        Ok(())
    }

    /// Makes the DHCPv6 server and the router's voice run on the bridge, where the network has IPv6.
    async fn serve6(&mut self, bridge: u32, changed: &mut Vec<String>) -> Result<(), NetError> {
        self.keep_leases();
        let Some(wanted) = &self.wanted else { return Ok(()) };
        let Some(config) = dhcp6::ServerConfig::of(wanted) else {
            if let Some(server) = self.server6.take() {
                server.stop().await;
                changed.push("no more DHCPv6 server".into());
            }
            self.leases6.clear();
            return Ok(());
        };
        let holds = |p: &DesiredPort| Some((p.id, p.address6?));
        let addresses: HashMap<PortId, Ipv6Addr> = wanted.ports.iter().filter_map(holds).collect();
        self.leases6
            .retain(|port, lease| addresses.get(port) == Some(&lease.address));
        let place = Bound {
            namespace: self.ns.identity(),
            interface: bridge,
        };
        if let Some(server) = self.server6.as_ref().filter(|s| s.serves(place)) {
            if server.reconfigure(config) {
                changed.push("DHCPv6 settings".into());
            }
            return Ok(());
        }
        if let Some(gone) = self.server6.take() {
            gone.stop().await;
        }
        let failed = |e| NetError::kernel("starting the DHCPv6 server", e);
        let socket = self
            .ns
            .run(move || dhcp6::open_socket(bridge))
            .await?
            .map_err(failed)?;
        let context = Context {
            network: self.id,
            clock: Arc::clone(&self.shared.clock),
            events: self.shared.events.clone(),
            tracker: self.shared.tracker.clone(),
        };
        let begin = dhcp6::server::Beginning {
            socket,
            place,
            config,
            leases: self.leases6.clone(),
        };
        self.server6 = Some(dhcp6::server::Server::start(begin, context).map_err(failed)?);
        changed.push("DHCPv6 server".into());
        Ok(())
    }

    fn keep_leases(&mut self) {
        if let Some(server) = &self.server {
            self.leases = server.leases();
        }
        if let Some(server) = &self.server6 {
            self.leases6 = server.leases();
        }
    }

    fn seen(&mut self, taps: &[String]) -> NetworkSeen {
        self.keep_leases();
        let taps: HashSet<&String> = taps.iter().collect();
        let ports = self.wanted.iter().flat_map(|w| &w.ports).map(|p| {
            let tap = names::tap(p.id);
            PortSeen {
                id: p.id,
                open: taps.contains(&tap),
                described: self.services.describes(p.id),
                tap,
                guarded: self.ready,
                lease: self.leases.get(&p.id).copied().filter(|l| l.address == p.address),
                lease6: self
                    .leases6
                    .get(&p.id)
                    .copied()
                    .filter(|l| Some(l.address) == p.address6),
            }
        });
        NetworkSeen {
            id: self.id,
            namespace: self.shared.namespace(self.id),
            gateway_mac: gateway_mac(self.id),
            transit: self.transit.map(Transit::net),
            ready: self.ready,
            mtu: self.wanted.as_ref().map_or(0, |w| w.spec.mtu),
            ports: ports.collect(),
            services: self.services.seen(),
            changed: Vec::new(),
        }
    }

    async fn look(&mut self) -> Result<Option<NetworkSeen>, NetError> {
        let Some(record) = self.our_record()? else {
            return Ok(None);
        };
        let by_host = |w: &Validated<DesiredNetwork>| w.spec.mode.goes_by_host();
        let goes = self.wanted.as_ref().is_none_or(by_host);
        self.transit = record.transit().filter(|_| goes);
        let mut taps = Vec::new();
        if self.ns.exists() {
            let links = Links::open(&self.ns).await?.list().await?;
            taps.extend(
                links
                    .into_iter()
                    .map(|l| l.name)
                    .filter(|n| n.starts_with(names::TAP_PREFIX)),
            );
        }
        Ok(Some(self.seen(&taps)))
    }

    fn our_record(&self) -> Result<Option<Record>, NetError> {
        Ok(Record::load(&self.shared.namespace(self.id))?
            .filter(|r| r.network == self.id && r.owner == self.shared.owner))
    }

    async fn remove(&mut self) -> Result<Vec<String>, NetError> {
        // The sockets hold the namespace.
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
        if let Some(server) = self.server6.take() {
            server.stop().await;
        }
        self.services.stop().await;
        self.wanted = None;
        self.standing = None;
        self.at_host = AtHost::default();
        self.leases.clear();
        self.leases6.clear();
        self.ready = false;
        self.transit = None;
        let Some(record) = self.our_record()? else {
            return Ok(Vec::new());
        };
        let torn = {
            let _one_at_a_time = self.shared.host_rules.lock().await;
            teardown::network(&record).await
        };
        let mut errors = torn.errors;
        if errors.is_empty() {
            errors.extend(record::forget(&self.shared.state_dir, self.id).err());
        }
        tracing::info!(network = %self.id, removed = torn.removed.len(), failed = errors.len(), "the network is removed");
        NetError::join(errors).map(|()| torn.removed)
    }

    async fn foresee(&self, wanted: Validated<DesiredNetwork>) -> Result<Vec<String>, NetError> {
        let (wanted, over) = self.fit(wanted).await?;
        let look = foresee::Look {
            shared: &self.shared,
            net: &wanted,
            over: &over,
            before: self.wanted.as_ref().filter(|_| self.ready),
        };
        let mut lines = look.lines().await?;
        lines.extend(self.foresee_services(&wanted));
        Ok(lines)
    }

    /// What is served is this process' own: it is asked of nobody else.
    fn foresee_services(&self, wanted: &Validated<DesiredNetwork>) -> Vec<String> {
        let Some(before) = self.wanted.as_ref().filter(|_| self.ready) else {
            return vec!["DHCP and what else the network serves".into()];
        };
        let differs = [
            (
                "DHCP settings",
                ServerConfig::from(before) != ServerConfig::from(wanted),
            ),
            (
                "DNS names",
                crate::dns::Zone::from(before) != crate::dns::Zone::from(wanted),
            ),
            (
                "services",
                (before.spec.serve_dns, before.spec.serves_metadata())
                    != (wanted.spec.serve_dns, wanted.spec.serves_metadata()),
            ),
        ];
        let lines = differs.into_iter().filter(|(_, is)| *is);
        lines.map(|(line, _)| line.to_owned()).collect()
    }

    /// What is wanted here, where it stands.
    fn tell(&self) -> Option<Known> {
        let net = self.wanted.clone().filter(|_| self.ready)?;
        Some(Known {
            net,
            transit: self.transit,
        })
    }

    async fn count(&self) -> Result<NetworkCounters, NetError> {
        let wanted = self.wanted.as_ref().ok_or_else(|| not_here("network", self.id))?;
        counting::read(&self.ns, wanted, self.shared.dispatch).await
    }

    /// What is wanted here, with one of its ports.
    fn with(&self, port: PortId) -> Result<(&Validated<DesiredNetwork>, &DesiredPort), NetError> {
        let wanted = self.wanted.as_ref().ok_or_else(|| not_here("network", self.id))?;
        let found = wanted.ports.iter().find(|p| p.id == port);
        Ok((wanted, found.ok_or_else(|| not_here("port", port))?))
    }

    async fn flows_of(&self, port: PortId) -> Result<Vec<PortFlow>, NetError> {
        let (wanted, port) = self.with(port)?;
        carry::read(&self.ns, wanted, port).await
    }

    async fn take_flows(&self, port: PortId, flows: &[PortFlow]) -> Result<usize, NetError> {
        let (wanted, port) = self.with(port)?;
        if !self.ready {
            return Err(NetError::NotVerified {
                what: format!("network {}", self.id),
                detail:
                    "the last attempt to make it what is wanted failed on the way, so no flows are taken in"
                        .into(),
            });
        }
        carry::write(&self.ns, wanted, self.transit, port, flows).await
    }

    async fn open_nic(&mut self, port: PortId, kind: NicKind) -> Result<Nic, NetError> {
        let wanted = self.wanted.as_ref().ok_or_else(|| not_here("network", self.id))?;
        let found = wanted.ports.iter().find(|p| p.id == port);
        let found = found.ok_or_else(|| not_here("port", port))?;
        // What was left undone may be what is not read back here: links, routes, settings of the host.
        if !self.ready {
            return Err(NetError::NotVerified {
                what: format!("network {}", self.id),
                detail:
                    "the last attempt to make it what is wanted failed on the way, so no NIC is opened on it"
                        .into(),
            });
        }
        let name = names::tap(port);
        let links = Links::open(&self.ns).await?;
        if links.get(&name).await?.is_some() {
            return Err(nic_in_use(port));
        }
        self.verify(wanted).await?;
        let bridge = links
            .get(names::BRIDGE)
            .await?
            .ok_or_else(|| not_here("network", self.id))?;
        let place = Place {
            ns: &self.ns,
            links: &links,
            host: &self.shared.host,
            alias: &names::alias(&self.shared.owner, self.id),
            bridge: bridge.index,
            mtu: wanted.spec.mtu.into(),
        };
        let nic = match kind {
            NicKind::Tap => Nic::Tap {
                fd: place.tap(port).await?,
                vnet_hdr: true,
            },
            NicKind::Interface => {
                if let Err(error) = place.interface(port).await {
                    // The first failure is the one to tell; what is left is removed by the next close or ensure.
                    drop(links.delete(&name).await);
                    return Err(error);
                }
                Nic::Interface {
                    name: names::interface(port),
                }
            }
        };
        // Nobody holds it yet: it carries nothing before its limits stand.
        let limits = crate::limits::Wanted::of(found);
        if let Err(error) = limits::apply_one(&links, place.alias, limits).await {
            drop(links.delete(&name));
            return Err(error);
        }
        // It works without, but the guest's first frames would be lost.
        if tokio::time::timeout(NIC_READY_MAX, carries(&links, &name))
            .await
            .is_err()
        {
            tracing::warn!(network = %self.id, tap = name, "the bridge takes its time to forward for a new tap");
        }
        Ok(nic)
    }

    /// Fail closed: what a NIC rests on is read back from the kernel each time one is opened, unless the kernel says that nobody
    /// changed it since it was read back last.
    async fn verify(&self, wanted: &Validated<DesiredNetwork>) -> Result<(), NetError> {
        let want = rules::Wanted::new(wanted, self.transit, &self.host, self.shared.dispatch);
        rules::check(&self.ns, want, self.standing.as_ref(), &self.shared.forms).await?;
        if let Some(transit) = self.transit {
            let owner = &self.shared.owner;
            let want = host_plan::render(owner, wanted, transit, self.underlay.as_deref());
            hooks::verify(Family::V4, &self.shared, self.id, &want, &self.at_host).await?;
            if let Some(want) = on_host6(owner, wanted) {
                hooks::verify(Family::V6, &self.shared, self.id, &want, &self.at_host).await?;
            }
        }
        match sysctl::check(&self.ns, sysctl::groups()).await? {
            None => Ok(()),
            Some(detail) => Err(NetError::NotVerified {
                what: "a kernel setting".into(),
                detail,
            }),
        }
    }

    fn describe(&mut self, port: PortId, instance: Option<Instance>) -> Result<(), NetError> {
        let wanted = self.wanted.as_ref().ok_or_else(|| not_here("network", self.id))?;
        if !wanted.ports.iter().any(|p| p.id == port) {
            return Err(not_here("port", port));
        }
        self.services.describe(wanted, port, instance);
        Ok(())
    }

    async fn close_nic(&mut self, port: PortId) -> Result<(), NetError> {
        if self.our_record()?.is_none() || !self.ns.exists() {
            return Ok(());
        }
        Links::open(&self.ns)
            .await?
            .delete(&names::tap(port))
            .await
            .map(drop)
    }
}

/// Waits until the bridge forwards for a tap and itself has a carrier.
async fn carries(links: &Links, tap: &str) {
    let ready = async |name, is: fn(&crate::host::link::Link) -> bool| matches!(links.get(name).await, Ok(Some(link)) if is(&link));
    while !(ready(tap, |l| l.forwarding).await && ready(names::BRIDGE, |l| l.running).await) {
        tokio::time::sleep(NIC_READY_POLL).await;
    }
}
