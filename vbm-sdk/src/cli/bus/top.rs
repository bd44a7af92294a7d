//! `vbm bus top`: who is alive, how deep the queues are, how fast they move.

use crate::cli::{
    args::{BusTop, Format},
    human,
    output::Output,
    session::Session,
    table::Table,
};
use serde::Serialize;
use std::{collections::BTreeMap, io::IsTerminal, time::Duration};
use tokio::time::{Instant, sleep_until};
use vbm_core::{Error, NodePath};
use vbm_rpc::{
    MemberInfo,
    admin::{Admin, Queue, QueueKind},
};

/// Clears a terminal and goes to its first place (ECMA-48: ED, CUP).
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";

/// One look at the bus.
#[derive(Serialize)]
struct Look {
    members: Vec<MemberInfo>,
    queues: Vec<Line>,
    #[serde(skip)]
    at: Option<Instant>,
}

/// One queue with its rate.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    queue: Queue,
    /// Entries a second that were put into it since the last look.
    added_per_second: f64,
}

pub(super) async fn run(on: &Session<'_>, args: &BusTop) -> Result<(), Error> {
    let scope: NodePath = args.scope.parse()?;
    let every = human::parse_span(&args.every)?;
    let admin = super::admin(&args.place).await?;
    let redraws = !args.once && !on.out.is_for_programs() && std::io::stdout().is_terminal();
    let mut before = look(&*admin, &scope, None).await?;
    loop {
        if let Some(at) = before.at {
            sleep_until(at + every).await;
        }
        let now = look(&*admin, &scope, Some(&before)).await?;
        if redraws {
            on.out.bytes(CLEAR)?;
        }
        show(on.out, &now, args.once)?;
        if args.once || on.out.is_closed() {
            return Ok(());
        }
        before = now;
    }
}

async fn look(admin: &dyn Admin, scope: &NodePath, before: Option<&Look>) -> Result<Look, Error> {
    let at = Instant::now();
    let members = admin.members(scope).await?;
    let queues = admin.queues(scope).await?;
    let span = before
        .and_then(|before| before.at)
        .map(|then| at.duration_since(then));
    let known: BTreeMap<(QueueKind, &str), u64> = before
        .into_iter()
        .flat_map(|before| &before.queues)
        .map(|line| ((line.queue.kind, line.queue.name.as_str()), line.queue.added))
        .collect();
    let queues = queues
        .into_iter()
        .map(|queue| Line {
            added_per_second: rate(
                known.get(&(queue.kind, queue.name.as_str())).copied(),
                queue.added,
                span,
            ),
            queue,
        })
        .collect();
    Ok(Look {
        members,
        queues,
        at: Some(at),
    })
}

/// A queue that was made anew counts from nothing; one that is seen for the first time has no rate yet.
fn rate(before: Option<u64>, now: u64, span: Option<Duration>) -> f64 {
    let (Some(before), Some(span)) = (before, span) else {
        return 0.0;
    };
    let added = if now >= before { now - before } else { now };
    let added = f64::from(u32::try_from(added).unwrap_or(u32::MAX));
    if span.is_zero() {
        return 0.0;
    }
    added / span.as_secs_f64()
}

fn show(out: &Output, look: &Look, once: bool) -> Result<(), Error> {
    let text = || {
        let wide = out.format() == Format::Wide;
        let width = Output::width();
        format!(
            "{} members\n{}\n\n{}\n",
            look.members.len(),
            members(&look.members).render(wide, width),
            queues(&look.queues).render(wide, width)
        )
    };
    match once {
        true => out.item(look, "", text().trim_end()),
        false => out.streamed(look, "", &text()),
    }
}

fn members(members: &[MemberInfo]) -> Table {
    let mut table = Table::new(&["MEMBER", "SERVICES", "EPOCH", "METHODS"], &["BOOT", "VERSIONS"]);
    for member in members {
        let services: Vec<_> = member.services.iter().map(|service| service.as_str()).collect();
        // Only those that say something: every method begins with version 1.
        let raised = member.versions.iter().filter(|(_, version)| **version != 1);
        let versions: Vec<_> = raised
            .map(|(name, version)| format!("{name}={version}"))
            .collect();
        table.row([
            member.path.to_string(),
            services.join(","),
            member.epoch.to_string(),
            member.methods.len().to_string(),
            member.boot_id.clone(),
            versions.join(","),
        ]);
    }
    table
}

fn queues(lines: &[Line]) -> Table {
    let mut table = Table::new(
        &["QUEUE", "NAME", "DEPTH", "ADDED/S", "TAKEN"],
        &["ADDED", "TAKERS"],
    );
    for Line {
        queue,
        added_per_second,
    } in lines
    {
        let taken: u64 = queue.takers.iter().map(|taker| taker.pending).sum();
        let any = queue.kind == QueueKind::Any;
        table.row([
            kind(queue.kind).to_owned(),
            queue.name.clone(),
            queue.depth.to_string(),
            format!("{added_per_second:.1}"),
            if any { taken.to_string() } else { String::new() },
            queue.added.to_string(),
            if any {
                queue.takers.len().to_string()
            } else {
                String::new()
            },
        ]);
    }
    table
}

const fn kind(kind: QueueKind) -> &'static str {
    match kind {
        QueueKind::Node => "node",
        QueueKind::Control => "control",
        QueueKind::Any => "any",
        QueueKind::Inbox => "inbox",
        QueueKind::Broadcast => "broadcast",
        QueueKind::DeadLetters => "dead letters",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_known_from_the_second_look_on_and_a_new_queue_counts_from_nothing() {
        let span = Some(Duration::from_secs(2));
        assert!(rate(None, 10, span).abs() < f64::EPSILON);
        assert!(rate(Some(10), 30, None).abs() < f64::EPSILON);
        assert!((rate(Some(10), 30, span) - 10.0).abs() < f64::EPSILON);
        assert!((rate(Some(100), 4, span) - 2.0).abs() < f64::EPSILON);
    }
}
