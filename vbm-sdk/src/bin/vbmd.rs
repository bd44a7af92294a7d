//! `vbmd`: the daemon. A thin main around [`vbm_sdk::server`].

use clap::{Parser, Subcommand, ValueEnum};
use std::{
    io::{IsTerminal, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};
use vbm_core::{Error, NodePath, Result};
use vbm_sdk::{
    cli::exit_code,
    server::{DriverChoice, NetworkChoice, Role, Server, StoreChoice},
};

/// The daemon of VBM: virtual machines, networks, and what belongs to them.
///
/// `vbmd` alone is one machine: controller, agent, a bus and a store in one process. `vbmd controller` and
/// `vbmd agent` are the two halves as processes of their own, over Redis.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    role: Option<RoleArg>,
    /// Where the data is: records, images, disks.
    #[arg(long, global = true, env = "VBM_DATA_DIR", default_value = "/var/lib/vbm")]
    data_dir: PathBuf,
    /// Where sockets and manifests of VMs are; must be short. [default: /run/vbm/INSTANCE]
    #[arg(long, global = true)]
    run_dir: Option<PathBuf>,
    /// The unix socket of the API.
    #[arg(long, global = true, env = "VBM_SOCKET", default_value = vbm_sdk::client::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Serves the web console to browsers on this machine, such as 127.0.0.1:8480; prints a link to log in with.
    #[arg(long, global = true, env = "VBM_WEB", value_name = "ADDRESS:PORT", value_parser = web_address)]
    web: Option<SocketAddr>,
    /// The bus, for `controller` and `agent`: redis://HOST:PORT or redis+unix:///PATH.
    #[arg(long, global = true, env = "VBM_REDIS")]
    redis: Option<String>,
    /// Whom this daemon believes on the bus: a list of nodes and their keys. With it, what is not sealed is refused.
    #[arg(
        long,
        global = true,
        env = "VBM_BUS_TRUST",
        value_name = "FILE",
        requires = "redis"
    )]
    bus_trust: Option<PathBuf>,
    /// The keys that this daemon seals with; made by `vbm bus key new`. [default: DATA_DIR/bus.key]
    #[arg(
        long,
        global = true,
        env = "VBM_BUS_KEY",
        value_name = "FILE",
        requires = "bus_trust"
    )]
    bus_key: Option<PathBuf>,
    /// Where a controller keeps its records. [default: redis where --redis is given, else redb]
    #[arg(long, global = true, value_enum)]
    store: Option<StoreArg>,
    /// What the controller is called, in events and by `vbm version`. [default: HOST-INSTANCE]
    #[arg(long, global = true)]
    name: Option<String>,
    /// Where this node stands, such as zone/cluster/node.
    #[arg(long, global = true, env = "VBM_NODE", default_value = "local")]
    node: NodePath,
    /// Which hypervisor the node drives; may be given several times.
    #[arg(long, global = true, value_enum, default_value = "qemu")]
    driver: Vec<DriverArg>,
    /// Where the node makes networks.
    #[arg(long, global = true, value_enum, default_value = "host")]
    network: NetworkArg,
    /// What finds the rules for a packet on this node: `iptables` (a tree of chains) or `nft` (verdict maps).
    #[arg(
        long,
        global = true,
        env = "VBM_DISPATCH",
        default_value_t,
        value_name = "WAY"
    )]
    dispatch: vbm_net::Dispatch,
    /// This host's address among the nodes: networks span nodes by it, and running VMs move by it.
    #[arg(long, global = true, env = "VBM_UNDERLAY", value_name = "ADDRESS")]
    underlay: Option<std::net::Ipv4Addr>,
    /// Where images and disks are, when other nodes work in the same directory: VMs can move between them.
    #[arg(long, global = true, env = "VBM_SHARED_STORAGE", value_name = "DIR")]
    shared_storage: Option<PathBuf>,
    /// Nothing of this instance is worth keeping: once it is gone, `vbm doctor --fix` removes it, VMs included.
    #[arg(long, global = true)]
    ephemeral: bool,
    /// What is logged, such as `info` or `vbm_net=debug`.
    #[arg(long, global = true, env = "VBM_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum RoleArg {
    /// The brain alone: API, records, decisions. Needs --redis.
    Controller,
    /// The hand alone: runs VMs and networks on this host. Needs --redis.
    Agent,
    /// Prints the OpenAPI document of the HTTP API.
    Openapi,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StoreArg {
    /// In a file of the data directory: the only controller.
    Redb,
    /// On the Redis of --redis, with any number of other controllers.
    Redis,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DriverArg {
    /// QEMU, with KVM where it works.
    Qemu,
    /// VirtualBox, by VBoxManage.
    #[value(name = "virtualbox", alias = "virtual-box")]
    VirtualBox,
    /// Simulated VMs.
    Sim,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NetworkArg {
    /// Namespaces, bridges and rules on this host.
    Host,
    /// Simulated networks.
    Sim,
}

impl DriverArg {
    const fn choice(self) -> DriverChoice {
        match self {
            Self::Qemu => DriverChoice::Qemu,
            Self::VirtualBox => DriverChoice::VirtualBox,
            Self::Sim => DriverChoice::Sim,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(std::io::stderr)
        .init();
    if matches!(args.role, Some(RoleArg::Openapi)) {
        drop(std::io::stdout().write_all(vbm_sdk::http::document().as_bytes()));
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&Error::internal("the runtime cannot be started", e.to_string())),
    };
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn fail(error: &Error) -> ExitCode {
    // Nobody is left to be told when standard error is gone.
    drop(writeln!(std::io::stderr(), "error: {error}"));
    ExitCode::from(exit_code(error.kind()))
}

async fn run(args: Args) -> Result<()> {
    let on_signal =
        |kind| signal(kind).map_err(|e| Error::internal("signals cannot be received", e.to_string()));
    let (mut terminate, mut interrupt) = (
        on_signal(SignalKind::terminate())?,
        on_signal(SignalKind::interrupt())?,
    );
    let role = match args.role {
        None | Some(RoleArg::Openapi) => Role::All,
        Some(RoleArg::Controller) => Role::Controller,
        Some(RoleArg::Agent) => Role::Agent,
    };
    let bus_key = args.bus_key.unwrap_or_else(|| args.data_dir.join("bus.key"));
    let mut builder = Server::builder(args.data_dir)
        .role(role)
        .node(args.node)
        .ephemeral(args.ephemeral)
        .drivers(args.driver.into_iter().map(DriverArg::choice).collect())
        .network(match args.network {
            NetworkArg::Host => NetworkChoice::Host,
            NetworkArg::Sim => NetworkChoice::Sim,
        })
        .dispatch(args.dispatch);
    if role != Role::Agent {
        builder = builder.socket(args.socket);
    }
    if let Some(run_dir) = args.run_dir {
        builder = builder.run_dir(run_dir);
    }
    if let Some(address) = args.underlay {
        builder = builder.underlay(address);
    }
    if let Some(dir) = args.shared_storage {
        builder = builder.shared_storage(dir);
    }
    if let Some(web) = args.web {
        builder = builder.web(web);
    }
    if let Some(redis) = args.redis {
        builder = builder.redis(redis);
    }
    if let Some(trust) = args.bus_trust {
        builder = builder.bus_security(bus_key, trust);
    }
    if let Some(store) = args.store {
        builder = builder.store(match store {
            StoreArg::Redb => StoreChoice::Redb,
            StoreArg::Redis => StoreChoice::Redis,
        });
    }
    if let Some(name) = args.name {
        builder = builder.name(name);
    }
    let server = builder.start().await?;
    say_ready(&server)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("ending: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("ending: SIGINT"),
    }
    server.shutdown().await;
    Ok(())
}

/// An address and a port; `localhost` is 127.0.0.1.
fn web_address(text: &str) -> std::result::Result<SocketAddr, String> {
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    match local {
        Some(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        None => text.parse().map_err(|_| {
            "write an address and a port, such as 127.0.0.1:8480; port 0 is one that is free".into()
        }),
    }
}

/// One line on standard output, and one with a login link where browsers are served, for whoever started the daemon and waits.
fn say_ready(server: &Server) -> Result<()> {
    let place = server
        .socket()
        .map_or_else(|| "none".to_owned(), |s| s.display().to_string());
    let mute = |e: std::io::Error| Error::internal("standard output cannot be written", e.to_string());
    let mut out = std::io::stdout().lock();
    writeln!(out, "vbmd ready socket={place} instance={}", server.instance())
        .and_then(|()| out.flush())
        .map_err(mute)?;
    if server.web().is_some() {
        let link = server.login_link()?;
        writeln!(out, "vbmd web {}", link.url)
            .and_then(|()| out.flush())
            .map_err(mute)?;
    }
    Ok(())
}
