//! The tasks that serve one network's metadata: one accepts, one for each connection. All of them end when the server is dropped.

use super::{
    CONNECTION_MAX_REQUESTS, CONNECTIONS_MAX, Config, EXCHANGE_MAX, HEAD_MAX_BYTES, IDLE_MAX, MetadataSeen,
    PORT_CONNECTIONS_MAX, PORT_REQUESTS_BURST, PORT_REQUESTS_PER_SECOND, TOKEN_HOP_LIMIT, TokenKey,
    http::{self, Asked, Method, Read},
    respond::{Answer, respond},
};
use crate::{
    rate::Buckets,
    service::{self, Host, Leash, Tasks, counts, lock},
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use vbm_core::{Clock, NetworkId};

const MICROS_PER_SECOND: u64 = 1_000_000;

/// What a server needs from outside.
pub(crate) struct Context {
    pub(crate) network: NetworkId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tracker: TaskTracker,
    pub(crate) key: TokenKey,
}

/// A running server. Dropping it stops it.
pub(crate) struct Server {
    desk: Arc<Desk>,
    leash: Leash,
}

impl Server {
    /// Starts to serve on a socket that was opened in the network's namespace.
    pub(crate) fn start(
        listener: std::net::TcpListener,
        config: Config,
        context: Context,
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let tracker = context.tracker.clone();
        let desk = Arc::new(Desk {
            config: Mutex::new(Arc::new(config)),
            buckets: Mutex::new(Buckets::new(PORT_REQUESTS_PER_SECOND, PORT_REQUESTS_BURST)),
            counts: Counts::default(),
            began: Instant::now(),
            tasks: Tasks::default(),
            context,
        });
        let stop = desk.tasks.stop.clone();
        let leash = Leash::on(&tracker, stop, Arc::clone(&desk).run(listener));
        Ok(Self { desk, leash })
    }

    /// Whether it runs.
    pub(crate) fn is_running(&self) -> bool {
        self.leash.holds()
    }

    /// Stops, and waits until its socket is closed.
    pub(crate) async fn end(self) {
        self.leash.end().await;
    }

    /// From the next request on, this holds. Returns whether it differs from before.
    pub(crate) fn reconfigure(&self, config: Config) -> bool {
        let mut held = lock(&self.desk.config);
        if **held == config {
            return false;
        }
        lock(&self.desk.buckets).retain(|who| config.is_asker(*who));
        *held = Arc::new(config);
        true
    }

    /// What it has done.
    pub(crate) fn seen(&self) -> MetadataSeen {
        self.desk.counts.seen()
    }
}

counts!(MetadataSeen: requests, refused, malformed, limited, strangers, broken);

struct Desk {
    config: Mutex<Arc<Config>>,
    buckets: Mutex<Buckets>,
    counts: Counts,
    began: Instant,
    /// One for each connection.
    tasks: Tasks,
    context: Context,
}

/// How a connection went on after a request.
enum Next {
    /// Another may follow.
    Again,
    /// That was the last.
    Close,
}

impl Host for Desk {
    const CONNECTIONS_MAX: (usize, usize) = (CONNECTIONS_MAX, PORT_CONNECTIONS_MAX);

    fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    fn admits(&self, who: Ipv4Addr) -> bool {
        let may = lock(&self.config).is_asker(who);
        if !may {
            self.counts.strangers.add();
        }
        may
    }

    fn crowded(&self) {
        self.counts.limited.add();
    }

    async fn converse(self: Arc<Self>, stream: TcpStream, from: SocketAddrV4) {
        if self.requests(stream, from).await.is_err() {
            self.counts.broken.add();
        }
    }
}

impl Desk {
    /// Serves until it is stopped or its socket fails, and ends when all its tasks have.
    async fn run(self: Arc<Self>, listener: TcpListener) {
        if !service::receive(&self, listener).await {
            tracing::error!(network = %self.context.network, "the metadata service stops: its socket failed");
        }
        self.tasks.end().await;
    }

    async fn requests(&self, mut stream: TcpStream, from: SocketAddrV4) -> io::Result<()> {
        let mut buffer = Vec::new();
        for served in 0..CONNECTION_MAX_REQUESTS {
            let idle = if served == 0 { EXCHANGE_MAX } else { IDLE_MAX };
            let Some(read) = self.head(&mut stream, &mut buffer, idle).await? else {
                return Ok(());
            };
            let next = match read {
                Ok(asked) => {
                    let body = asked.body_bytes;
                    let fill = fill(&mut stream, &mut buffer, body);
                    timeout(EXCHANGE_MAX, fill).await??;
                    buffer.drain(..body);
                    let last = served + 1 == CONNECTION_MAX_REQUESTS;
                    self.answer(&mut stream, *from.ip(), &asked, last).await?
                }
                Err(status) => {
                    self.counts.malformed.add();
                    let answer = Answer::no(status, "this is no request that is served here");
                    send(&mut stream, &answer, false, false).await?;
                    Next::Close
                }
            };
            if matches!(next, Next::Close) {
                break;
            }
        }
        stream.shutdown().await
    }

    /// The head of the next request, or the status that says why it is none; `None` when the peer is done. `buffer` holds what
    /// follows it.
    async fn head(
        &self,
        stream: &mut TcpStream,
        buffer: &mut Vec<u8>,
        idle: std::time::Duration,
    ) -> io::Result<Option<Result<Box<Asked>, u16>>> {
        let mut until = Instant::now() + idle;
        if !buffer.is_empty() {
            until = Instant::now() + EXCHANGE_MAX;
        }
        loop {
            match http::read(buffer) {
                Read::Asked(asked, length) => {
                    buffer.drain(..length);
                    return Ok(Some(Ok(asked)));
                }
                Read::Bad(status) => return Ok(Some(Err(status))),
                Read::Partial => {}
            }
            let begun = !buffer.is_empty();
            let read = tokio::time::timeout_at(until, stream.read_buf(buffer)).await;
            match read {
                Ok(Ok(0)) if begun => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(0)) => return Ok(None),
                Ok(Ok(_)) if !begun => until = until.min(Instant::now() + EXCHANGE_MAX),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                // Slow on purpose, or gone: told so, once it had begun.
                Err(_) if begun => return Ok(Some(Err(408))),
                Err(_) => return Ok(None),
            }
        }
    }

    async fn answer(
        &self,
        stream: &mut TcpStream,
        from: Ipv4Addr,
        asked: &Asked,
        last: bool,
    ) -> io::Result<Next> {
        let config = Arc::clone(&lock(&self.config));
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let may = lock(&self.buckets).take(from, now_ms);
        let now_seconds =
            u64::try_from(self.context.clock.now().micros()).unwrap_or_default() / MICROS_PER_SECOND;
        let answer = if may {
            respond(&config, &self.context.key, from, asked, now_seconds)
        } else {
            Some(Answer {
                fields: vec![("Retry-After", "1".to_owned())],
                ..Answer::no(429, "too many requests")
            })
        };
        // The port left while it was connected.
        let Some(answer) = answer else {
            self.counts.strangers.add();
            return Ok(Next::Close);
        };
        let counted = match answer.status {
            429 => &self.counts.limited,
            401 | 403 => &self.counts.refused,
            _ => &self.counts.requests,
        };
        counted.add();
        if answer.is_token {
            stream.set_ttl(TOKEN_HOP_LIMIT)?;
        }
        let go_on = asked.keep_alive && may && !last;
        send(stream, &answer, asked.method == Method::Head, go_on).await?;
        Ok(if go_on { Next::Again } else { Next::Close })
    }
}

/// Reads until the buffer holds so many bytes.
async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, bytes: usize) -> io::Result<()> {
    while buffer.len() < bytes {
        let mut rest = stream.take(u64::try_from(HEAD_MAX_BYTES).unwrap_or(u64::MAX));
        if rest.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

async fn send(stream: &mut TcpStream, answer: &Answer, head_only: bool, keep_alive: bool) -> io::Result<()> {
    let bytes = http::write(
        answer.status,
        answer.kind,
        &answer.fields,
        &answer.body,
        head_only,
        keep_alive,
    );
    timeout(EXCHANGE_MAX, stream.write_all(&bytes)).await?
}
