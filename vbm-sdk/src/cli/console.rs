//! `vbm console`: a person's terminal, or the pipes of a script, joined to a VM's serial line.
//!
//! ```text
//!   stdin  --(Ctrl-] ends it)--> Console --> guest
//!   stdout <--(--until ends it)-- Console <-- guest
//! ```
//!
//! | started with | prints | ends |
//! |---|---|---|
//! | a terminal | what was said, and what is said | at Ctrl-], or when the VM ends |
//! | input in a pipe | what comes of the input | once the guest has been quiet for a second after the input's end |
//! | no input | what was said, and what is said | once the guest has been quiet for a second |
//! | `--until TEXT` | as above | when TEXT is among it; exit code 9 when it is not within `--timeout` |
//! | `--log` | what was said | at once |

mod relay;
mod terminal;

use super::{args, session::Session};
use relay::{End, Finder, Plan};
use std::{io::IsTerminal, time::Duration};
use vbm_core::{Error, ErrorKind};

/// How long a guest must say nothing until its answer is taken to be over.
const QUIET: Duration = Duration::from_secs(1);

pub(super) async fn run(on: &Session<'_>, args: &args::Console) -> Result<(), Error> {
    if let Some(bytes) = args.log {
        let log = on.client.vms().console_log(&args.vm, bytes).await?;
        return on.out.bytes(&log);
    }
    if args.until.is_none() && std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        return terminal::attach(on, &args.vm).await;
    }
    script(on, &args.vm, args.until.as_deref()).await
}

async fn script(on: &Session<'_>, vm: &str, until: Option<&str>) -> Result<(), Error> {
    let plan = Plan {
        finder: until.map(Finder::new).transpose()?,
        quiet: QUIET,
    };
    let console = on.client.vms().console(vm).await?;
    let print = |bytes: &[u8]| on.out.bytes(bytes).map(|()| !on.out.is_closed());
    let relay = async {
        // A person at a terminal who waits for a text types nothing: only what is piped in is sent.
        if std::io::stdin().is_terminal() {
            relay::run(console, tokio::io::empty(), print, plan).await
        } else {
            relay::run(console, relay::stdin()?, print, plan).await
        }
    };
    let end = match (tokio::time::timeout(on.left(), relay).await, until) {
        (Ok(end), _) => end?,
        (Err(_passed), None) => End::Quiet,
        (Err(_passed), Some(text)) => return Err(not_said(vm, text)),
    };
    match (end, until) {
        (End::Closed, Some(text)) => Err(ended(vm, text)),
        _ => Ok(()),
    }
}

fn not_said(vm: &str, text: &str) -> Error {
    Error::new(
        ErrorKind::DeadlineExceeded,
        format!("vm '{vm}' did not say '{text}'"),
        "it did not come on the serial line in time",
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
