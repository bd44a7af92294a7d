//! `vbm console`: a person's terminal, or the pipes of a script, joined to a VM's serial line.
//!
//! ```text
//!   stdin  --(Ctrl-] ends it)--> Console --> guest
//!   stdout <--(--until ends it)-- Console <-- guest
//! ```
//!
//! | started with | ends |
//! |---|---|
//! | a terminal | at Ctrl-], or when the VM ends |
//! | a pipe | once stdin has ended and the guest has been quiet for a second |
//! | `--until TEXT` | when the guest has said it; exit code 9 when it does not within `--timeout` |
//! | `--log` | at once, after what was said so far; with `--until` goes on from there |

mod relay;
mod terminal;

use super::{args, session::Session};
use relay::{End, Finder, Plan};
use std::{io::IsTerminal, time::Duration};
use vbm_core::{Error, ErrorKind};

/// How long a guest must say nothing until its answer is taken to be over.
const QUIET: Duration = Duration::from_secs(1);

pub(super) async fn run(on: &Session<'_>, args: &args::Console) -> Result<(), Error> {
    match (&args.log, &args.until) {
        (None, None) if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() => {
            terminal::attach(on, &args.vm).await
        }
        (Some(bytes), None) => {
            let log = on.client.vms().console_log(&args.vm, *bytes).await?;
            on.out.bytes(&log)
        }
        (log, until) => script(on, args, *log, until.as_deref()).await,
    }
}

async fn script(
    on: &Session<'_>,
    args: &args::Console,
    log: Option<Option<u64>>,
    until: Option<&str>,
) -> Result<(), Error> {
    let mut finder = until.map(Finder::new).transpose()?;
    let vms = on.client.vms();
    // The console first, then the log: what is said in between is in both rather than in neither.
    let console = vms.console(&args.vm).await?;
    if let Some(bytes) = log {
        let log = vms.console_log(&args.vm, bytes).await?;
        on.out.bytes(&log)?;
        if finder.as_mut().is_some_and(|finder| finder.feed(&log)) {
            return Ok(());
        }
    }
    let plan = Plan {
        finder,
        quiet: QUIET,
    };
    // A person who waits for a text types nothing: only what is piped in is sent.
    let print = |bytes: &[u8]| on.out.bytes(bytes).map(|()| !on.out.is_closed());
    let relay = async {
        if std::io::stdin().is_terminal() {
            relay::run(console, tokio::io::empty(), print, plan).await
        } else {
            relay::run(console, relay::stdin()?, print, plan).await
        }
    };
    let end = match (tokio::time::timeout(on.left(), relay).await, until) {
        (Ok(end), _) => end?,
        (Err(_passed), None) => End::Quiet,
        (Err(_passed), Some(text)) => return Err(not_said(&args.vm, text, on.timeout)),
    };
    match (end, until) {
        (End::Closed, Some(text)) => Err(ended(&args.vm, text)),
        _ => Ok(()),
    }
}

fn not_said(vm: &str, text: &str, timeout: Option<Duration>) -> Error {
    let within = timeout.map_or_else(|| "in time".to_owned(), |span| format!("within {span:?}"));
    Error::new(
        ErrorKind::DeadlineExceeded,
        format!("vm '{vm}' did not say '{text}'"),
        format!("it did not come on the serial line {within}; what was said before this command began is not looked at without --log"),
        format!("see what it said with `vbm console {vm} --log`, or wait longer with --timeout"),
    )
}

fn ended(vm: &str, text: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the console of vm '{vm}' ended before it said '{text}'"),
        "the VM or vbmd has ended",
        format!("see its state with `vbm info {vm}`, and what it said with `vbm console {vm} --log`"),
    )
}
