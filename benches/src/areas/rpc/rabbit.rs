//! RabbitMQ, as Debian has it: a broker of the bench's own on loopback, and RPC over it with `lapin`, as its users write
//! it: a queue with manual acknowledgement, answers by direct reply-to.

use crate::harness::{
    child::{Talker, command},
    fault::{During, Outcome},
};
use std::{net::TcpListener, path::Path, time::Duration};
use tempfile::TempDir;

const START_WITHIN: Duration = Duration::from_secs(90);
/// Debian's path: the one on the search path wants the system's own user and folders.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// A broker with its port mapper, gone with its handle.
pub(super) struct Broker {
    // In this order: the broker, its mapper, its folder.
    _broker: Talker,
    _epmd: Talker,
    _dir: TempDir,
    port: u16,
}

/// Why there is none.
pub(super) fn missing() -> Option<String> {
    (!Path::new(SERVER).exists()).then(|| "rabbitmq-server is missing (Debian: rabbitmq-server)".into())
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Broker {
    pub(super) async fn start() -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("vbm-bench-").tempdir()?;
        let (port, mapper, distribution) = (free_port()?, free_port()?, free_port()?);
        let mut epmd = command("epmd");
        epmd.args(["-address", "127.0.0.1", "-port", &mapper.to_string()]);
        let epmd = Talker::start(&mut epmd)?;
        let at = |name: &str| dir.path().join(name);
        let mut server = command(SERVER);
        server
            .env("HOME", dir.path())
            .env("ERL_EPMD_PORT", mapper.to_string())
            .env("RABBITMQ_NODENAME", "bench@localhost")
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env("RABBITMQ_CONFIG_FILE", at("none"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_PID_FILE", at("pid"))
            // The script then becomes the broker, instead of waiting for it: it ends with our handle.
            .env("RUNNING_UNDER_SYSTEMD", "true");
        let mut broker = Talker::start(&mut server)?;
        broker
            .hear("erver startup complete", START_WITHIN)
            .await
            .during("rabbitmq-server")?;
        Ok(Self {
            _broker: broker,
            _epmd: epmd,
            _dir: dir,
            port,
        })
    }

    /// Where it is, for AMQP clients.
    pub(super) fn address(&self) -> String {
        format!("guest:guest@127.0.0.1:{}", self.port)
    }
}

#[cfg(feature = "rabbitmq")]
pub(super) mod over_lapin {
    use super::{
        super::load::{Measured, Shape, measure},
        Broker,
    };
    use crate::harness::{
        fault::{Fault, Outcome},
        ground::Ground,
    };
    use futures::StreamExt;
    use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, options::*, types::FieldTable};
    use std::{
        collections::HashMap,
        sync::{
            Arc, Mutex, PoisonError,
            atomic::{AtomicU64, Ordering},
        },
    };
    use tokio::{sync::oneshot, task::JoinSet};

    const REQUESTS: &str = "requests";
    /// The broker's own shortcut for answers: no queue is made for them.
    const REPLY_TO: &str = "amq.rabbitmq.reply-to";
    const PREFETCH: u16 = 1_024;

    type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<usize>>>>;

    pub(crate) async fn round(ground: &Ground, shape: Shape) -> Outcome<Measured> {
        let broker = Broker::start().await?;
        let url = format!("amqp://{}/%2f", broker.address());
        let connect = || Connection::connect(&url, ConnectionProperties::default());
        let (serving, calling) = (connect().await?, connect().await?);
        // Dropped at the end: then worker and listener end.
        let mut tasks = JoinSet::new();
        let channel = serving.create_channel().await?;
        channel
            .queue_declare(
                REQUESTS.into(),
                QueueDeclareOptions::default(),
                FieldTable::default(),
            )
            .await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(
                REQUESTS.into(),
                "worker".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        tasks.spawn(work(channel, consumer));
        let caller = calling.create_channel().await?;
        let no_ack = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let mut replies = caller
            .basic_consume(REPLY_TO.into(), "caller".into(), no_ack, FieldTable::default())
            .await?;
        let waiting = Waiting::default();
        let listening = Arc::clone(&waiting);
        tasks.spawn(async move {
            while let Some(Ok(reply)) = replies.next().await {
                let Some(id) = reply.properties.correlation_id() else {
                    continue;
                };
                let asker = lock(&listening).remove(id.as_str());
                // Whoever asked may have gone at the end of the round.
                if asker.is_some_and(|asker| asker.send(reply.data.len()).is_err()) {
                    continue;
                }
            }
        });
        let body: Arc<[u8]> = vec![b'x'; shape.payload].into();
        let next = Arc::new(AtomicU64::new(0));
        let measured = measure(ground, None, shape.flights, move |_lane| {
            let (caller, body, waiting, next) = (caller.clone(), body.clone(), waiting.clone(), next.clone());
            async move {
                let id = next.fetch_add(1, Ordering::Relaxed).to_string();
                let (asker, reply) = oneshot::channel();
                lock(&waiting).insert(id.clone(), asker);
                let properties = BasicProperties::default()
                    .with_reply_to(REPLY_TO.into())
                    .with_correlation_id(id.into());
                caller
                    .basic_publish(
                        "".into(),
                        REQUESTS.into(),
                        BasicPublishOptions::default(),
                        &body,
                        properties,
                    )
                    .await?;
                match reply.await? == body.len() {
                    true => Ok(()),
                    false => Err(Fault::new("RabbitMQ answered something else")),
                }
            }
        })
        .await;
        drop(broker);
        measured
    }

    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers until the broker goes.
    async fn work(channel: Channel, mut requests: lapin::Consumer) {
        while let Some(Ok(request)) = requests.next().await {
            let (Some(to), Some(id)) = (
                request.properties.reply_to().clone(),
                request.properties.correlation_id().clone(),
            ) else {
                continue;
            };
            let properties = BasicProperties::default().with_correlation_id(id);
            let replied = channel
                .basic_publish(
                    "".into(),
                    to,
                    BasicPublishOptions::default(),
                    &request.data,
                    properties,
                )
                .await;
            if replied.is_err() || request.ack(BasicAckOptions::default()).await.is_err() {
                return;
            }
        }
    }
}
