//! `vbm bus dlq`: dead letters.

use crate::cli::{
    args::{BusDlq, BusDlqSome},
    human,
    info::Lines,
    session::Session,
    table::Table,
};
use vbm_core::{Error, Timestamp};
use vbm_rpc::admin::DeadLetter;

const NONE: &str = "no dead letters: every request was handled, refused or ended at its deadline";

pub(super) async fn run(on: &Session<'_>, verb: BusDlq) -> Result<(), Error> {
    match verb {
        BusDlq::List(args) => {
            let scope = args.scope.parse()?;
            let letters = super::admin(&args.place).await?.dead_letters(&scope).await?;
            on.out
                .list(&letters, |l| l.id.clone(), &table(&letters, on.now()), NONE)
        }
        BusDlq::Show(args) => {
            let (letter, _frame) = super::admin(&args.place).await?.dead_letter(&args.letter).await?;
            on.out.item(&letter, &letter.id, &detail(&letter, on.now()))
        }
        BusDlq::Replay(args) => {
            let ttl = args.ttl.as_deref().map(human::parse_span).transpose()?;
            let BusDlqSome { place, letters } = &args.some;
            let keys = args.bus_key.as_deref().zip(args.bus_trust.as_deref());
            let admin = super::admin_with(place, keys).await?;
            let act = |letter: String| {
                let admin = admin.clone();
                async move { admin.replay(&letter, ttl).await }
            };
            on.each_at_once(letters, act, |letter| format!("{letter} is in its queue again"))
                .await
        }
        BusDlq::Drop(args) => {
            let admin = super::admin(&args.place).await?;
            let act = |letter: String| {
                let admin = admin.clone();
                async move { admin.drop_letter(&letter).await }
            };
            on.each_at_once(&args.letters, act, |letter| format!("{letter} is gone"))
                .await
        }
    }
}

fn table(letters: &[DeadLetter], now: Timestamp) -> Table {
    let mut table = Table::new(
        &["LETTER", "TO", "METHOD", "DELIVERED", "AGE", "REASON"],
        &["REQUEST", "CALLER", "LAST WORKER", "BYTES"],
    );
    for letter in letters {
        table.row([
            letter.id.clone(),
            letter.to.clone(),
            letter.method.clone(),
            letter.deliveries.to_string(),
            age(letter.buried_at_ms, now),
            letter.reason.clone(),
            letter.request_id.map(|id| id.to_string()).unwrap_or_default(),
            letter.caller.clone(),
            letter.worker.clone().unwrap_or_default(),
            letter.bytes.to_string(),
        ]);
    }
    table
}

fn detail(letter: &DeadLetter, now: Timestamp) -> String {
    let mut lines = Lines::default();
    lines.put("Letter", &*letter.id);
    lines.put("To", &*letter.to);
    lines.put("Reason", &*letter.reason);
    lines.put("Delivered", format!("{} times", letter.deliveries));
    lines.put("Last worker", letter.worker.clone().unwrap_or_default());
    lines.put(
        "Request",
        letter.request_id.map(|id| id.to_string()).unwrap_or_default(),
    );
    lines.put("Method", &*letter.method);
    lines.put("Caller", &*letter.caller);
    lines.put(
        "Sent",
        letter.sent_at_ms.map_or_else(String::new, |ms| age(ms, now)),
    );
    lines.put("Buried", age(letter.buried_at_ms, now));
    lines.put("Time to live", format!("{} ms", letter.ttl_ms));
    lines.put("Size", format!("{} bytes", letter.bytes));
    lines.text()
}

/// How long ago, by the clock of Redis against that of this machine.
fn age(at_ms: u64, now: Timestamp) -> String {
    let micros = i64::try_from(at_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
    human::age(now, Timestamp::from_micros(micros))
}
