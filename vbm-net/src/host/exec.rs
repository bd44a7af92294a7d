//! The few programs that are run, each inside a namespace, with a time limit, its input on stdin.

use super::netns::NetNs;
use crate::NetError;
use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncWriteExt, process::Command};

/// The longest that one program may take: a full rule set of thousands of ports takes seconds.
pub(crate) const EXEC_MAX: Duration = Duration::from_secs(30);
/// How long iptables waits for another's lock, in seconds, as its argument.
const LOCK_WAIT_SECONDS: &str = "10";
/// Where nothing can be kept.
const NO_HOME: &str = "/dev/null";
/// The most of a program's complaint that is shown.
const SAID_MAX_CHARS: usize = 600;

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Iptables,
    IptablesSave,
    IptablesLegacySave,
    IptablesRestore,
    Ip6tablesSave,
    Ip6tablesRestore,
    Ipset,
    Nft,
    Conntrack,
}

impl Program {
    /// Those that must be there.
    pub(crate) const NEEDED: [Self; 8] = [
        Self::Iptables,
        Self::IptablesSave,
        Self::IptablesRestore,
        Self::Ip6tablesSave,
        Self::Ip6tablesRestore,
        Self::Ipset,
        Self::Nft,
        Self::Conntrack,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::IptablesSave => "iptables-save",
            Self::IptablesLegacySave => "iptables-legacy-save",
            Self::IptablesRestore => "iptables-restore",
            Self::Ip6tablesSave => "ip6tables-save",
            Self::Ip6tablesRestore => "ip6tables-restore",
            Self::Ipset => "ipset",
            Self::Nft => "nft",
            Self::Conntrack => "conntrack",
        }
    }
    const fn package(self) -> &'static str {
        match self {
            Self::Nft => "nftables",
            Self::Conntrack => "conntrack",
            Self::Ipset => "ipset",
            _ => "iptables",
        }
    }

    /// Where it is.
    pub(crate) fn find(self) -> Result<PathBuf, NetError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
            .map(|dir| dir.join(self.name()))
            .find(|file| is_program(file))
            .ok_or(NetError::MissingProgram {
                program: self.name(),
                package: self.package(),
            })
    }
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// What a program said.
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a program in a namespace.
///
/// # Cancel safety
/// Dropping the future kills the program.
pub(crate) async fn run(ns: &NetNs, program: Program, args: &[&str], input: &str) -> Result<Said, NetError> {
    let path = program.find()?;
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let spawn = move || -> io::Result<_> {
        Command::new(path)
            .args(args)
            .env("LC_ALL", "C")
            // nft keeps what it was asked in a file there.
            .env("HOME", NO_HOME)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    };
    let doing = || format!("running {}", program.name());
    let mut child = ns.run(spawn).await?.map_err(|e| NetError::kernel(doing(), e))?;
    let mut stdin = child.stdin.take();
    let feed = async {
        if let Some(pipe) = &mut stdin {
            // A program that stops reading says why on stderr.
            drop(pipe.write_all(input.as_bytes()).await);
        }
        drop(stdin);
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(EXEC_MAX, both)
        .await
        .map_err(|_| NetError::TimedOut {
            doing: doing(),
            limit: EXEC_MAX,
        })?
        .map_err(|e| NetError::kernel(doing(), e))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said {
        ok: output.status.success(),
        out: text(output.stdout),
        err: text(output.stderr),
    })
}

/// Runs a program that must succeed; returns what it printed.
pub(crate) async fn must(
    ns: &NetNs,
    program: Program,
    args: &[&str],
    input: &str,
    doing: &str,
) -> Result<String, NetError> {
    let said = run(ns, program, args, input).await?;
    if said.ok {
        return Ok(said.out);
    }
    let complaint = said.err.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = complaint.chars().take(SAID_MAX_CHARS).collect();
    Err(NetError::Command {
        program: program.name(),
        doing: doing.to_owned(),
        said,
    })
}

/// The tables that rules of ours stand in. What another keeps in any further one is not read.
const OUR_TABLES: [&str; 2] = ["filter", "nat"];

/// What cannot be read is an error: taken for empty, all that stands there would be written over.
async fn tables_read(
    ns: &NetNs,
    program: Program,
    doing: &str,
) -> Result<crate::plan::tables::Tables, NetError> {
    let text = must(ns, program, &[], "", doing).await?;
    if let Some(table) = crate::plan::tables::unread(&text).find(|t| OUR_TABLES.contains(t)) {
        let family = if program == Program::Ip6tablesSave {
            "ip6"
        } else {
            "ip"
        };
        return Err(NetError::Conflict {
            what: format!("the firewall's table '{family} {table}' cannot be read"),
            why: format!(
                "it holds a rule or a set that another wrote with nft, and '{}' does not print the table then; \
                 written blindly, the rules of every network could be lost",
                program.name()
            ),
            fix: format!(
                "find it with `nft list table {family} {table}`, and move it to a table of its own; \
                 what stands stays as it is until then"
            ),
        });
    }
    Ok(crate::plan::tables::parse(&text))
}

/// All tables of a namespace, as they stand.
pub(crate) async fn iptables_read(ns: &NetNs) -> Result<crate::plan::tables::Tables, NetError> {
    tables_read(ns, Program::IptablesSave, "reading the rules").await
}

/// The counters of all rules of a family, as `iptables-save -c` prints them.
pub(crate) async fn counted(ns: &NetNs, save: Program) -> Result<String, NetError> {
    must(ns, save, &["-c"], "", "reading counters").await
}

/// Applies a script as one transaction a table, by the program of a family.
pub(crate) async fn rules_write(ns: &NetNs, restore: Program, script: &str) -> Result<(), NetError> {
    let args = ["--noflush", "-w", LOCK_WAIT_SECONDS];
    must(ns, restore, &args, script, "writing rules").await.map(drop)
}

/// All tables of IPv6 of a namespace, as they stand.
pub(crate) async fn ip6tables_read(ns: &NetNs) -> Result<crate::plan::tables::Tables, NetError> {
    tables_read(ns, Program::Ip6tablesSave, "reading the rules of IPv6").await
}

/// Applies a script as one transaction a table, and says how the kernel holds the chains that are asked for then. The same run is asked:
/// behind a `COMMIT` it reads anew.
pub(crate) async fn tables_write(
    ns: &NetNs,
    restore: Program,
    script: &str,
    asked: &crate::plan::tables::Tables,
) -> Result<crate::plan::tables::Tables, NetError> {
    use crate::plan::tables::{asking, parse_asked_all};
    let args = ["--noflush", "-w", LOCK_WAIT_SECONDS];
    let both = script.to_owned() + &asking(asked);
    let said = must(ns, restore, &args, &both, "writing rules").await?;
    match parse_asked_all(&said, asked) {
        Some(told) => Ok(told),
        None => iptables_read_some(ns, restore, asked).await,
    }
}

/// Some chains, as they stand: a call for each table, whatever else stands in it.
async fn iptables_read_some(
    ns: &NetNs,
    restore: Program,
    some: &crate::plan::tables::Tables,
) -> Result<crate::plan::tables::Tables, NetError> {
    use crate::plan::tables::{Tables, asking, parse_asked};
    let mut all = Tables::new();
    for (name, table) in some {
        let script = asking(&Tables::from([(name.clone(), table.clone())]));
        let args = ["--noflush", "-w", LOCK_WAIT_SECONDS];
        let text = must(ns, restore, &args, &script, "reading rules back").await?;
        all.insert(name.clone(), parse_asked(&text));
    }
    Ok(all)
}

/// Our sets, as they stand.
pub(crate) async fn ipset_read(ns: &NetNs) -> Result<crate::plan::sets::Sets, NetError> {
    let text = must(ns, Program::Ipset, &["save"], "", "reading the members of groups").await?;
    Ok(crate::plan::sets::parse(&text))
}

/// Makes, fills, swaps and destroys sets.
pub(crate) async fn ipset_write(ns: &NetNs, script: &str) -> Result<(), NetError> {
    must(
        ns,
        Program::Ipset,
        &["restore"],
        script,
        "writing the members of groups",
    )
    .await
    .map(drop)
}

/// What nft says to several questions, each a command, asked one after the other of one program; nothing to one that it cannot answer.
pub(crate) async fn nft_ask_in_turn(ns: &NetNs, questions: &[String]) -> Result<String, NetError> {
    let lines = questions.join("\n") + "\nquit\n";
    Ok(run(ns, Program::Nft, &["-s", "-nn", "-i"], &lines).await?.out)
}

/// The same, with a program for each question. All must be answered.
pub(crate) async fn nft_ask_singly(ns: &NetNs, questions: &[String]) -> Result<String, NetError> {
    let args = ["-s", "-nn", "-f", "-"];
    let mut all = String::new();
    for question in questions {
        let line = format!("{question}\n");
        all += &must(
            ns,
            Program::Nft,
            &args,
            &line,
            "reading the guard and the rules back",
        )
        .await?;
    }
    Ok(all)
}

/// The tables with which nft dispatches, as they stand; empty where they are not there. They come and go together.
pub(crate) async fn nft_read(ns: &NetNs) -> Result<crate::plan::dispatch::Nft, NetError> {
    use crate::plan::{dispatch::Nft, verdict};
    let filter = nft_read_one(ns, &verdict::FILTER).await?;
    let slots = if filter.is_empty() {
        Default::default()
    } else {
        nft_read_one(ns, &verdict::SLOTS).await?
    };
    Ok(Nft { slots, filter })
}

async fn nft_read_one(
    ns: &NetNs,
    shape: &crate::plan::nft_table::Shape,
) -> Result<crate::plan::nft_table::NftTable, NetError> {
    let text = table_text(ns, shape.family, shape.name, &["-s", "-nn"]).await?;
    Ok(crate::plan::nft_table::parse(&text.unwrap_or_default()))
}

/// The rules of nft with their counters.
pub(crate) async fn nft_counted(ns: &NetNs) -> Result<String, NetError> {
    let shape = &crate::plan::verdict::FILTER;
    let text = table_text(ns, shape.family, shape.name, &["-nn"]).await?;
    Ok(text.unwrap_or_default())
}

/// A table as nft prints it; `None` where there is none.
async fn table_text(ns: &NetNs, family: &str, name: &str, form: &[&str]) -> Result<Option<String>, NetError> {
    let args: Vec<&str> = form
        .iter()
        .copied()
        .chain(["list", "table", family, name])
        .collect();
    let said = run(ns, Program::Nft, &args, "").await?;
    if said.ok {
        return Ok(Some(said.out));
    }
    if said.err.contains("No such file") {
        return Ok(None);
    }
    let said = said.err.chars().take(SAID_MAX_CHARS).collect();
    Err(NetError::Command {
        program: "nft",
        doing: format!("reading the table {family} {name}"),
        said,
    })
}

/// The guard of a namespace, as it stands; empty when there is none.
pub(crate) async fn guard_read(ns: &NetNs) -> Result<crate::plan::guard::Guard, NetError> {
    let text = table_text(ns, "bridge", crate::names::GUARD_TABLE, &["-s", "-nn"]).await?;
    Ok(crate::plan::guard::parse(&text.unwrap_or_default()))
}

/// Applies a script as one transaction.
pub(crate) async fn guard_write(ns: &NetNs, script: &str) -> Result<(), NetError> {
    must(ns, Program::Nft, &["-f", "-"], script, "writing the guard")
        .await
        .map(drop)
}
