//! The stories of `ns_soak.rs` on the simulated twin: cheap, so many of them. Where there a process is killed, here a call fails.

#![allow(clippy::unwrap_used, reason = "a helper of a test that cannot go on panics")]

mod soak;

use soak::{Op, World};
use std::{collections::BTreeSet, sync::Arc};
use vbm_core::{Clock, NetworkId, PortId, Timestamp};
use vbm_net::{NetError, NetworkBackend, Nic, SimNetwork};

/// Stories, and operations of each.
const SEEDS: u64 = 20;
const OPS: usize = 500;

struct Still;
impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_700_000_000_000_000)
    }
}

struct Soak {
    seed: u64,
    net: SimNetwork,
    world: World,
    held: Vec<((NetworkId, PortId), Nic)>,
}

impl Soak {
    /// A call fails, and what it left is made good by the next.
    fn fail_next(&self) {
        self.net.fail_next(NetError::Stopped);
    }

    async fn ensure(&self, id: NetworkId) {
        let wanted = self.world.networks[&id].wanted.clone();
        let foreseen = self.net.plan(wanted.clone()).await.unwrap();
        let seen = self.net.ensure(wanted).await.unwrap();
        assert_eq!(foreseen, seen.changed, "seed {}", self.seed);
        assert!(seen.ready);
    }

    async fn step(&mut self, at: usize) {
        let op = self.world.step();
        let (world, net) = (&self.world, &self.net);
        match op {
            Op::Ensure(id, _, kill) => {
                if kill.is_some() {
                    self.fail_next();
                    net.ensure(world.networks[&id].wanted.clone()).await.unwrap_err();
                }
                self.ensure(id).await;
            }
            Op::Remove(id, kill) => {
                if kill.is_some() {
                    self.fail_next();
                    net.remove(id).await.unwrap_err();
                }
                net.remove(id).await.unwrap();
            }
            Op::Open(id, port, kind) => {
                let nic = net.open_nic(id, port, kind).await.unwrap();
                self.held.push(((id, port), nic));
            }
            Op::Close(id, port) => net.close_nic(id, port).await.unwrap(),
            Op::Restart => {
                // A host that lost power has nothing, and VMs are off.
                net.power_cycle();
                let all: Vec<NetworkId> = self.world.networks.keys().copied().collect();
                for one in self.world.networks.values_mut() {
                    one.open.clear();
                }
                for id in all {
                    self.ensure(id).await;
                }
            }
            Op::Harm(..) => panic!("seed {}, operation {at}: nothing is broken here", self.seed),
        }
        self.held.retain(|((id, port), _)| {
            self.world
                .networks
                .get(id)
                .is_some_and(|one| one.open.contains_key(port))
        });
        self.look(at).await;
    }

    async fn look(&self, at: usize) {
        let seen = self.net.inventory().await.unwrap();
        let ids: BTreeSet<NetworkId> = seen.iter().map(|one| one.id).collect();
        assert_eq!(
            ids,
            self.world.networks.keys().copied().collect(),
            "seed {}, operation {at}",
            self.seed
        );
        for one in &seen {
            let wanted = &self.world.networks[&one.id];
            assert_eq!(
                self.net.plan(wanted.wanted.clone()).await.unwrap(),
                Vec::<String>::new()
            );
            let ports: BTreeSet<(PortId, bool)> = one.ports.iter().map(|p| (p.id, p.open)).collect();
            let expected = wanted
                .wanted
                .ports
                .iter()
                .map(|p| (p.id, wanted.open.contains_key(&p.id)));
            assert_eq!(ports, expected.collect(), "seed {}, operation {at}", self.seed);
        }
    }
}

#[tokio::test]
async fn after_each_of_many_random_operations_the_twin_is_as_wanted() {
    let ops = std::env::var("VBM_SOAK_OPS").map_or(OPS, |text| text.parse().unwrap());
    let first = std::env::var("VBM_SOAK_SEED").map_or(1, |text| text.parse().unwrap());
    for seed in first..first + SEEDS {
        let mut world = World::new(seed, 7);
        world.breaks = false;
        let net = SimNetwork::without_leases(Arc::new(Still));
        net.add_interface(soak::INTERFACE);
        let mut soak = Soak {
            seed,
            net,
            world,
            held: Vec::new(),
        };
        for at in 0..ops {
            soak.step(at).await;
        }
        soak.net.sweep(&BTreeSet::new()).await.unwrap();
        assert_eq!(soak.net.inventory().await.unwrap().len(), 0);
    }
}
