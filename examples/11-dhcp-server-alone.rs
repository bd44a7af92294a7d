//! A DHCP server alone, on an interface that is there already: no network of ours, no daemon. Its leases outlive it. Needs root.
//!
//! ```text
//!   namespace "server": lan 10.30.0.1 ==== lan: namespace "client" with udhcpc
//! ```
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

#[path = "support/lab.rs"]
mod lab;

use lab::{Done, Namespace};
use std::{net::Ipv4Addr, path::Path, sync::Arc, time::Duration};
use vbm_core::{Mac, NetworkId};
use vbm_net::dhcp::{DhcpServer, ServerConfig, Subnet, store::AppendLog};
use vbm_sdk::source::SystemClock;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 30, 0, 1);

fn main() -> Done {
    let (server, client) = (Namespace::new("server")?, Namespace::new("client")?);
    server.join("lan", "10.30.0.1/24", &client, "0.0.0.0/0")?;
    let log = tempfile::tempdir()?;
    for round in ["a first time", "by a server that was started anew"] {
        let (namespace, log) = (server.path(), log.path().join("leases"));
        // A thread of its own enters the namespace and ends: no other code ever runs in it.
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, began) = std::sync::mpsc::channel();
        let serving = std::thread::spawn(move || serve(&namespace, &log, &ready, stopped));
        if began.recv().is_ok() {
            let said = client.run("udhcpc -i lan -n -q -f -t 10 -T 1 -s /bin/true")?;
            let address = said.split("lease of ").nth(1).and_then(|s| s.split(' ').next());
            println!(
                "leased {round}: {}",
                address.unwrap_or_default().trim_end_matches(',')
            );
        }
        drop(stop);
        serving.join().map_err(|_| "the server's thread failed")??;
    }
    Ok(())
}

/// Serves until `stop` is dropped.
fn serve(
    namespace: &Path,
    log: &Path,
    ready: &std::sync::mpsc::Sender<()>,
    stop: tokio::sync::oneshot::Receiver<()>,
) -> Done {
    nix::sched::setns(
        std::fs::File::open(namespace)?,
        nix::sched::CloneFlags::CLONE_NEWNET,
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut lan = Subnet::new("10.30.0.0/24".parse()?, Duration::from_secs(600));
        lan.settings.router = Some(SERVER);
        lan.pool = Some(Ipv4Addr::new(10, 30, 0, 100)..=Ipv4Addr::new(10, 30, 0, 199));
        let config = ServerConfig::new(SERVER, Mac::local(1), lan);
        let id = NetworkId::from_uuid(uuid::Uuid::now_v7());
        let store = AppendLog::open(log)?;
        let server = DhcpServer::start("lan", id, config, store, Arc::new(SystemClock)).await?;
        println!("leases that were kept: {}", server.clients().await.len());
        ready.send(())?;
        drop(stop.await);
        server.shutdown().await;
        Ok(())
    })
}
