//! A bus with a Redis user and keys of its own for each path.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use super::common::{RedisServer, words::path};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, RwLock},
};
use vbm_core::{Name, NodePath};
use vbm_rpc::{
    BusError, MemberInfo, Service, Transport,
    admin::Admin,
    auth::{Epochs, KeyPair, Keys, Ring, Security, Trust, TrustSource, Trusted},
    redis::{
        RedisConfig, RedisTransport,
        acl::{self, Login, Reach},
    },
    transport::{Attached, Inbound},
};

fn namespace() -> Name {
    "vbm".parse().unwrap()
}

/// A ring that the test changes.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<RwLock<Arc<Ring>>>);

impl TrustSource for Shared {
    fn ring(&self) -> Arc<Ring> {
        self.0.read().unwrap().clone()
    }
}

impl Shared {
    pub(crate) fn set(&self, ring: Ring) {
        *self.0.write().unwrap() = Arc::new(ring);
    }
    pub(crate) fn add(&self, path: &NodePath, trusted: Trusted) {
        let mut ring = (*self.ring()).clone();
        ring.add(path.clone(), trusted).unwrap();
        self.set(ring);
    }
}

/// Each attachment is a Redis user with the rights of its path, and seals with the keys of its path.
pub(crate) struct Guarded {
    url: String,
    pub(crate) ring: Shared,
    keys: Mutex<HashMap<NodePath, Keys>>,
    transports: Mutex<Vec<Arc<RedisTransport>>>,
    /// The operator's way in: no member, and a user of all rights.
    operator: Option<RedisTransport>,
}

impl Guarded {
    pub(crate) fn new(server: &RedisServer) -> Self {
        Self {
            url: server.url(),
            ring: Shared::default(),
            keys: Mutex::default(),
            transports: Mutex::default(),
            operator: None,
        }
    }

    /// The same with an operator, who sees queues, dead letters and hops, and may replay.
    pub(crate) async fn with_operator(server: &RedisServer) -> Self {
        let mut guarded = Self::new(server);
        let keys = Keys::generate().unwrap();
        let line = Trusted::new(*keys.active().public()).relays();
        guarded.ring.add(&path("operator"), line);
        let security = Security::On(keys, guarded.trust());
        let config = RedisConfig::from_url(&server.url()).unwrap().security(security);
        guarded.operator = Some(RedisTransport::connect(config).await.unwrap());
        guarded
    }

    /// How many letters the operator refused, by reason.
    pub(crate) fn operator_refused(&self) -> BTreeMap<&'static str, u64> {
        self.operator.as_ref().unwrap().entries().refused()
    }

    /// The keys of a path, made and trusted when they are first asked for.
    pub(crate) fn keys(&self, at: &NodePath) -> Keys {
        let mut keys = self.keys.lock().unwrap();
        let made = || {
            let made = Keys::generate().unwrap();
            self.ring
                .add(at, Trusted::new(*made.active().public()).commands(Epochs::ANY));
            made
        };
        keys.entry(at.clone()).or_insert_with(made).clone()
    }

    /// Gives a path other keys, without telling the ring.
    pub(crate) fn set_keys(&self, at: &NodePath, pairs: Vec<KeyPair>) {
        self.keys
            .lock()
            .unwrap()
            .insert(at.clone(), Keys::new(pairs).unwrap());
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::new(self.ring.clone())
    }

    /// Makes the user of a path and gives the way in.
    pub(crate) async fn login(&self, at: &NodePath, services: &[Service], reach: &Reach) -> String {
        let rule = acl::for_node(&namespace(), at, services, reach, &Login::Nothing);
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER");
        rule.words().for_each(|word| {
            command.arg(word);
        });
        let client = redis::Client::open(self.url.as_str()).unwrap();
        let mut admin = client.get_multiplexed_async_connection().await.unwrap();
        let _: redis::Value = command
            .query_async(&mut admin)
            .await
            .expect("Redis takes the line");
        format!("{}?user={}&pass=any", self.url, rule.user())
    }

    /// How many entries were refused by all attachments, by reason.
    pub(crate) fn refused(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::new();
        for transport in self.transports.lock().unwrap().iter() {
            for (name, count) in transport.entries().refused() {
                *all.entry(name).or_default() += count;
            }
        }
        all
    }

    /// How many entries were refused for one reason.
    pub(crate) fn refused_for(&self, name: &str) -> u64 {
        self.refused().get(name).copied().unwrap_or_default()
    }
}

#[async_trait]
impl Transport for Guarded {
    async fn attach(&self, member: MemberInfo, inbound: Inbound) -> Result<Attached, BusError> {
        let login = self
            .login(&member.path, &member.services, &Reach::Everybody)
            .await;
        let security = Security::On(self.keys(&member.path), self.trust());
        let config = RedisConfig::from_url(&login)?.security(security);
        let transport = Arc::new(RedisTransport::connect(config).await?);
        self.transports.lock().unwrap().push(transport.clone());
        transport.attach(member, inbound).await
    }

    fn admin(&self) -> Option<Arc<dyn Admin>> {
        self.operator.as_ref()?.admin()
    }
}
