//! Tickets as commands of a batch, and their answers.

use super::{DUE_TTL, FIELD_BEGUN, FIELD_END, FIELD_OPENED, StoreOp, TicketOp, ms};
use crate::{
    limits,
    transport::{
        TicketRecord,
        redis::{Core, connect::Answer, pack, scripts},
    },
};
use bytes::Bytes;
use redis::{Pipeline, Value};

/// Adds what is no record: tickets, and the list of those that are due.
pub(super) fn add_other(
    core: &Core,
    batch: &mut Pipeline,
    (op, sealed): (&StoreOp, Option<&Bytes>),
    now: u64,
) {
    match op {
        StoreOp::Ticket { key, what, .. } => add_ticket(batch, key, what, sealed),
        StoreOp::Due { key, name, at_ms } => {
            match at_ms {
                Some(at) => batch.cmd("ZADD").arg(key).arg(*at).arg(name),
                None => batch.cmd("ZREM").arg(key).arg(name),
            };
            batch.cmd("PEXPIRE").arg(key).arg(ms(DUE_TTL));
        }
        StoreOp::Overdue { keys, .. } => {
            for key in keys {
                let list = batch.cmd("ZRANGEBYSCORE").arg(key).arg("-inf").arg(now);
                list.arg("LIMIT").arg(0).arg(limits::TICKET_SWEEP_MAX);
            }
        }
        StoreOp::Keep { .. } | StoreOp::Find { .. } => {
            tracing::error!(server = core.server, "a record strayed among other operations");
        }
    }
}

fn add_ticket(batch: &mut Pipeline, key: &str, what: &TicketOp, sealed: Option<&Bytes>) {
    let with_seal = |value| sealed.map_or(value, |sealed: &Bytes| &sealed[..]);
    let (command, field, value, life) = match what {
        TicketOp::Open(value, life) => ("HSET", FIELD_OPENED, value, life),
        TicketOp::Begun(value, life) => ("HSET", FIELD_BEGUN, value, life),
        TicketOp::End(value, life) | TicketOp::Settle(value, life, _) => ("HSETNX", FIELD_END, value, life),
        TicketOp::Mend(forged, value, life, _) => {
            let mend = batch.cmd("EVAL").arg(scripts::MEND_TICKET).arg(1).arg(key);
            mend.arg(FIELD_END)
                .arg(&forged[..])
                .arg(with_seal(&value[..]))
                .arg(ms(*life));
            return;
        }
        TicketOp::Look(_) => {
            let get = batch.cmd("HMGET").arg(key);
            get.arg(FIELD_OPENED).arg(FIELD_BEGUN).arg(FIELD_END);
            return;
        }
        TicketOp::Forget(_) => {
            batch.cmd("DEL").arg(key);
            return;
        }
    };
    let write = batch.cmd(command).arg(key).arg(field);
    write.arg(with_seal(&value[..]));
    batch.cmd("PEXPIRE").arg(key).arg(ms(*life));
    if let TicketOp::Settle(..) = what {
        batch.cmd("HGET").arg(key).arg(FIELD_END);
    }
}

/// Reads its answers, and tells who asked.
pub(super) fn settle_other(op: StoreOp, answers: &mut impl Iterator<Item = Answer>) {
    let mut next = || answers.next().unwrap_or_else(|| Err("no answer".into()));
    let quiet = |answer: Answer| {
        if let Err(why) = answer {
            tracing::warn!(why, "a ticket was not written");
        }
    };
    // Where somebody is told: an error means that nobody waits any more.
    match op {
        StoreOp::Ticket { what, .. } => match what {
            TicketOp::Open(..) | TicketOp::Begun(..) | TicketOp::End(..) => {
                quiet(next());
                quiet(next());
            }
            TicketOp::Settle(_, _, done) => {
                let (set, _life, got) = (next(), next(), next());
                drop(done.send(set.and(got).and_then(|value| match value {
                    Value::BulkString(end) => Ok(end.into()),
                    _ => Err("the end of a ticket is not there after it was written".into()),
                })));
            }
            TicketOp::Mend(.., done) => drop(done.send(next().and_then(|value| match value {
                Value::BulkString(end) => Ok(end.into()),
                _ => Err("the ticket was forgotten while its end was mended".into()),
            }))),
            TicketOp::Look(done) => drop(done.send(next().map(record))),
            TicketOp::Forget(done) => drop(done.send(next().map(drop))),
        },
        StoreOp::Due { .. } => {
            quiet(next());
            quiet(next());
        }
        StoreOp::Overdue { keys, done } => {
            let mut names = Vec::new();
            let mut failed = None;
            for _ in keys {
                match next() {
                    Ok(list) => names.extend(pack::texts(&list).into_iter().map(str::to_owned)),
                    Err(why) => failed = Some(why),
                }
            }
            drop(done.send(match failed {
                Some(why) => Err(why),
                None => Ok(names),
            }));
        }
        StoreOp::Keep { .. } | StoreOp::Find { .. } => {}
    }
}

/// The three parts of a ticket; nothing when there is none of them.
fn record(value: Value) -> Option<TicketRecord> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter().map(|part| match part {
        Value::BulkString(bytes) => Some(Bytes::from(bytes)),
        _ => None,
    });
    let mut part = || parts.next().flatten();
    let record = TicketRecord {
        opened: part(),
        begun: part(),
        end: part(),
    };
    (record != TicketRecord::default()).then_some(record)
}
