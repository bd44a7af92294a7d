//! A small proxy between processes and Redis, which can cut and stall the connections through it.

use std::path::{Path, PathBuf};
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
}

pub(crate) struct Proxy {
    port: u16,
    orders: watch::Sender<Order>,
    /// Ends the proxy with its handle.
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// To a Redis on a unix socket.
    pub(crate) async fn to(socket: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let orders = watch::Sender::new(Order::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, socket.to_owned(), orders.subscribe()));
        Self {
            port,
            orders,
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
}

async fn accept(listener: TcpListener, socket: PathBuf, orders: watch::Receiver<Order>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (socket, mut orders) = (socket.clone(), orders.clone());
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
                () = copy(&mut from_client, &mut to_server, up) => {}
                () = copy(&mut from_server, &mut to_client, down) => {}
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
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
