//! A small proxy between processes and Redis, which can cut and stall the connections through it, and hold up what goes
//! to Redis at a word.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

#[derive(Clone, Copy, Default)]
struct Order {
    /// Connections made before the last cut end.
    cuts: u64,
    stalled: bool,
    /// What comes to Redis with this word in it waits.
    held: Option<&'static str>,
}

pub(crate) struct Proxy {
    port: u16,
    orders: watch::Sender<Order>,
    /// How often something was held up.
    caught: Arc<AtomicUsize>,
    /// Ends the proxy with its handle.
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// To a Redis on a unix socket.
    pub(crate) async fn to(socket: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let orders = watch::Sender::new(Order::default());
        let mut tasks = JoinSet::new();
        let caught = Arc::new(AtomicUsize::new(0));
        tasks.spawn(accept(
            listener,
            socket.to_owned(),
            orders.subscribe(),
            caught.clone(),
        ));
        Self {
            port,
            orders,
            caught,
            _tasks: tasks,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Closes every connection that there is.
    pub(crate) fn cut(&self) {
        self.orders.send_modify(|order| order.cuts += 1);
    }

    /// Bytes do not move while this is so; connections stay.
    pub(crate) fn stall(&self, stalled: bool) {
        self.orders.send_modify(|order| order.stalled = stalled);
    }

    /// What goes to Redis with this word in it stands still, and all behind it on its connection, until there is no such
    /// word any more.
    pub(crate) fn hold(&self, word: Option<&'static str>) {
        self.orders.send_modify(|order| order.held = word);
    }

    /// How often something was held up so far.
    pub(crate) fn caught(&self) -> usize {
        self.caught.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: TcpListener,
    socket: PathBuf,
    orders: watch::Receiver<Order>,
    caught: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (socket, mut orders, caught) = (socket.clone(), orders.clone(), caught.clone());
        let born = orders.borrow_and_update().cuts;
        connections.spawn(async move {
            let Ok(server) = UnixStream::connect(&socket).await else {
                return;
            };
            client.set_nodelay(true).ok();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let (up, down) = (orders.clone(), orders.clone());
            // Whatever ends first ends both directions: the halves are dropped with this task.
            tokio::select! {
                () = copy(&mut from_client, &mut to_server, up, Some(&caught)) => {}
                () = copy(&mut from_server, &mut to_client, down, None) => {}
                _cut = orders.wait_for(|order| order.cuts > born) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut orders: watch::Receiver<Order>,
    // Of the way to Redis.
    caught: Option<&AtomicUsize>,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        if orders.wait_for(|order| !order.stalled).await.is_err() {
            return;
        }
        if let Some(caught) = caught {
            let has = |word: &str| {
                bytes[..count]
                    .windows(word.len())
                    .any(|part| part == word.as_bytes())
            };
            let held = orders.borrow_and_update().held;
            if held.is_some_and(has) {
                caught.fetch_add(1, Ordering::SeqCst);
                if orders
                    .wait_for(|order| !order.held.is_some_and(has))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
