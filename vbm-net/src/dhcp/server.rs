//! The task that serves one network: reads frames, asks [`super::respond`], writes frames. It owns what guests were told.

use super::{
    Leases, ServerConfig, frame, request,
    respond::{Decision, Outcome, respond},
    socket::FRAME_MAX_BYTES,
    wire,
};
use crate::NetEvent;
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{broadcast, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vbm_core::{Clock, NetworkId};

/// What a server needs from outside.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) network: NetworkId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: broadcast::Sender<NetEvent>,
    pub(crate) tracker: TaskTracker,
}

/// A running server. Dropping it stops it.
pub(crate) struct Server {
    interface: u32,
    config: watch::Sender<Arc<ServerConfig>>,
    leases: watch::Receiver<Leases>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    /// Starts to serve. `socket` is one of [`super::socket::open`] on `interface`.
    pub(crate) fn start(
        socket: OwnedFd,
        interface: u32,
        config: ServerConfig,
        known: Leases,
        context: Context,
    ) -> io::Result<Self> {
        let socket = register(socket)?;
        let (config, config_seen) = watch::channel(Arc::new(config));
        let (leases_out, leases) = watch::channel(known);
        let stop = CancellationToken::new();
        let tracker = context.tracker.clone();
        let shell = Shell {
            socket,
            config: config_seen,
            leases: leases_out,
            context,
        };
        let task = tracker.spawn(shell.run(stop.clone()));
        Ok(Self {
            interface,
            config,
            leases,
            stop,
            task,
        })
    }

    /// Whether it runs, on this interface.
    pub(crate) fn serves(&self, interface: u32) -> bool {
        self.interface == interface && !self.task.is_finished()
    }

    /// From the next request on, this holds. Returns whether it differs from before.
    pub(crate) fn reconfigure(&self, config: ServerConfig) -> bool {
        self.config.send_if_modified(|old| {
            let differs = **old != config;
            if differs {
                *old = Arc::new(config);
            }
            differs
        })
    }

    /// What guests were told.
    pub(crate) fn leases(&self) -> Leases {
        self.leases.borrow().clone()
    }
}

#[expect(
    unsafe_code,
    reason = "registering wants a promise that the descriptor stays open"
)]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open until it is dropped and always names the same descriptor; the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

struct Shell {
    socket: AsyncFd<OwnedFd>,
    config: watch::Receiver<Arc<ServerConfig>>,
    leases: watch::Sender<Leases>,
    context: Context,
}

impl Shell {
    async fn run(self, stop: CancellationToken) {
        let mut buffer = vec![0; FRAME_MAX_BYTES];
        loop {
            tokio::select! {
                // Cancel safe: a frame not yet read stays in the socket.
                () = stop.cancelled() => return,
                read = self.read(&mut buffer) => match read {
                    Ok(length) => self.serve(buffer.get(..length).unwrap_or_default()),
                    // The bridge went down and comes up again, or a guest's route vanished: go on.
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => {}
                    Err(error) => {
                        tracing::error!(network = %self.context.network, %error, "the DHCP server stops: its socket failed");
                        return;
                    }
                },
            }
        }
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket
            .async_io(Interest::READABLE, |fd| {
                nix::sys::socket::recv(fd.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT)
                    .map_err(io::Error::from)
            })
            .await
    }

    /// One frame. Nothing in it can make this fail: what is no request is passed over.
    fn serve(&self, bytes: &[u8]) {
        let Some(datagram) = frame::parse(bytes) else {
            return;
        };
        let network = self.context.network;
        let request = match request::parse(datagram.payload) {
            Ok(request) => request,
            Err(why) => {
                tracing::debug!(%network, from = %datagram.source, why, "not a DHCP request");
                return;
            }
        };
        let config = Arc::clone(&self.config.borrow());
        let now = self.context.clock.now();
        let decision = respond(&config, &self.leases.borrow(), &request, datagram.source, now);
        tracing::debug!(%network, mac = %request.mac, kind = ?request.kind, reply = ?decision.reply, why = decision.why, "DHCP");
        self.reply(&config, &request, &decision);
        if let Some(outcome) = decision.outcome {
            self.remember(outcome);
        }
    }

    fn reply(&self, config: &ServerConfig, request: &request::Request, decision: &Decision) {
        let (Some(reply), Some(port)) = (&decision.reply, config.ports.get(&request.mac)) else {
            return;
        };
        let frame = match wire::encode(config, port, request, reply) {
            Ok(payload) => frame::build(config.mac, config.address, reply.to_mac, reply.to, &payload),
            Err(error) => {
                tracing::error!(network = %self.context.network, %error, "a DHCP reply cannot be encoded");
                None
            }
        };
        let Some(frame) = frame else { return };
        // A full queue loses the reply; the client asks again (RFC 2131 section 4.1).
        let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        if let Err(error) = nix::sys::socket::send(self.socket.get_ref().as_raw_fd(), &frame, flags) {
            tracing::warn!(network = %self.context.network, %error, "a DHCP reply was not sent");
        }
    }

    fn remember(&self, outcome: Outcome) {
        let network = self.context.network;
        let event = match outcome {
            Outcome::Leased(port, lease) => {
                self.leases.send_modify(|leases| {
                    leases.insert(port, lease);
                });
                let crate::LeaseSeen {
                    address,
                    since,
                    until,
                } = lease;
                NetEvent::PortLeased {
                    network,
                    port,
                    address,
                    since,
                    until,
                }
            }
            Outcome::Released(port, address) => {
                self.leases.send_modify(|leases| {
                    leases.remove(&port);
                });
                NetEvent::PortReleased {
                    network,
                    port,
                    address,
                }
            }
            Outcome::Declined(port, address) => {
                tracing::warn!(%network, %port, %address, "a guest says that its address is used by another");
                self.leases.send_modify(|leases| {
                    leases.remove(&port);
                });
                NetEvent::PortDeclined {
                    network,
                    port,
                    address,
                }
            }
        };
        // No listener is fine: events are news, not state.
        drop(self.context.events.send(event));
    }
}
