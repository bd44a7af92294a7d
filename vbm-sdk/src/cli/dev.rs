//! `vbm dev`: a cluster on this machine.

use super::{args::Dev, session::Session, table::Table};
use crate::dev::{Cluster, Kind, MemberStatus, Options};
use std::path::{Path, PathBuf};
use vbm_core::{Error, ErrorKind};

pub(super) async fn run(on: &Session<'_>, verb: Dev) -> Result<(), Error> {
    match verb {
        Dev::Up(args) => {
            let options = Options {
                dir: args.place.dir,
                nodes: args.nodes,
                controllers: args.controllers,
                agent_args: choices(args.driver.as_deref(), args.network.as_deref()),
                vbmd: beside_us("vbmd")?,
            };
            let cluster = Cluster::up(&options).await?;
            shown(on, &cluster)?;
            on.out.hint(&format!(
                "export VBM_SOCKET={}    # then use vbm as always",
                cluster.sockets()
            ));
            Ok(())
        }
        Dev::Status(args) => shown(on, &Cluster::open(&args.dir)?),
        Dev::Down(args) => {
            Cluster::open(&args.place.dir)?.down(args.keep).await?;
            on.out.done(&"down", "down", "the cluster is gone")
        }
        Dev::Start(args) => {
            Cluster::open(&args.place.dir)?.start(&args.member).await?;
            told(on, &args.member, "runs")
        }
        Dev::Stop(args) => {
            Cluster::open(&args.place.dir)?.stop(&args.member, false).await?;
            told(on, &args.member, "has ended")
        }
        Dev::Kill(args) => {
            Cluster::open(&args.place.dir)?.stop(&args.member, true).await?;
            told(on, &args.member, "was killed")
        }
        Dev::Cut(args) => {
            Cluster::open(&args.place.dir)?.cut(&args.member, true).await?;
            told(on, &args.member, "is cut off")
        }
        Dev::Mend(args) => {
            Cluster::open(&args.place.dir)?.cut(&args.member, false).await?;
            told(on, &args.member, "is joined again")
        }
    }
}

fn told(on: &Session<'_>, member: &str, now: &str) -> Result<(), Error> {
    on.out.done(&member, member, &format!("{member} {now}"))
}

fn shown(on: &Session<'_>, cluster: &Cluster) -> Result<(), Error> {
    let members = cluster.status();
    on.out
        .list(&members, |m| m.name.clone(), &table(&members), "no members")
}

fn table(members: &[MemberStatus]) -> Table {
    let mut table = Table::new(&["MEMBER", "IS", "STATE", "ADDRESS", "PID"], &["SOCKET", "LOG"]);
    for member in members {
        let state = match (member.pid, member.cut) {
            (Some(_), false) => "runs",
            (Some(_), true) => "runs, cut off",
            (None, _) => "ended",
        };
        let socket = member.socket.as_ref().map(|s| s.display().to_string());
        table.row([
            member.name.clone(),
            match member.kind {
                Kind::Redis => "redis",
                Kind::Controller => "controller",
                Kind::Agent => "node",
            }
            .to_owned(),
            state.to_owned(),
            member.address.clone(),
            member.pid.map(|p| p.to_string()).unwrap_or_default(),
            socket.unwrap_or_default(),
            member.log.display().to_string(),
        ]);
    }
    table
}

fn choices(driver: Option<&str>, network: Option<&str>) -> Vec<String> {
    let named = [("--driver", driver), ("--network", network)];
    named
        .into_iter()
        .filter_map(|(flag, value)| Some([flag.to_owned(), value?.to_owned()]))
        .flatten()
        .collect()
}

/// A program that was built or installed with this one.
fn beside_us(name: &str) -> Result<PathBuf, Error> {
    let here = std::env::current_exe().ok();
    let beside = here.as_deref().and_then(Path::parent).map(|dir| dir.join(name));
    beside.filter(|path| path.is_file()).ok_or_else(|| {
        Error::new(
            ErrorKind::MissingDependency,
            format!("{name} was not found"),
            "it is not in the directory of vbm",
            "build or install both together",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_is_cut_off_says_so() {
        let member = MemberStatus {
            name: "n1".into(),
            kind: Kind::Agent,
            address: "10.77.0.11".into(),
            pid: Some(7),
            cut: true,
            socket: None,
            log: "/x/n1.log".into(),
        };
        assert_eq!(
            table(&[member]).render(false, Some(80)),
            "MEMBER  IS    STATE          ADDRESS     PID\n\
             n1      node  runs, cut off  10.77.0.11  7"
        );
    }
}
