//! `vbm bus trace`: the way of one call.

use crate::cli::{args::BusTrace, session::Session, table::Table};
use vbm_core::{Error, ErrorKind};
use vbm_rpc::admin::Hop;

const NONE: &str = "nothing is known of that call: hops are recorded for calls that ask for it \
                    (CallOptions::traced) and are kept for ten minutes";

pub(super) async fn run(on: &Session<'_>, args: &BusTrace) -> Result<(), Error> {
    let id = args.id.parse().map_err(|why: uuid::Error| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("'{}' is no id of a call", args.id),
            why.to_string(),
            "give the request id as the log or `vbm bus dlq show` tells it",
        )
    })?;
    let hops = super::admin(&args.place).await?.trace(id).await?;
    on.out
        .list(&hops, |hop| hop.stage.to_string(), &table(&hops), NONE)
}

pub(super) fn table(hops: &[Hop]) -> Table {
    let mut table = Table::new(&["AFTER", "HOP", "AT", "DETAIL"], &["TIME MS"]);
    let first = hops.first().map_or(0, |hop| hop.at_ms);
    for hop in hops {
        table.row([
            format!("{} ms", hop.at_ms.saturating_sub(first)),
            hop.stage.to_string(),
            hop.by.clone(),
            hop.detail.clone(),
            hop.at_ms.to_string(),
        ]);
    }
    table
}
