//! The rows of a run, as they come.

use super::{
    fault::{Fault, Outcome},
    row::Row,
    table::figure,
};
use std::time::Duration;
use tokio::time::timeout;

/// The longest that one bench may take, all its rounds included.
const BENCH_MAX: Duration = Duration::from_secs(600);

/// Collects rows, tells of them on standard error as they come.
pub(crate) struct Rows {
    area: &'static str,
    bench_max: Duration,
    pub(crate) rows: Vec<Row>,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            area: "",
            bench_max: BENCH_MAX,
            rows: Vec::new(),
        }
    }
}

impl Rows {
    /// What comes from now on is of this area.
    pub(crate) fn enter(&mut self, area: &'static str) {
        self.area = area;
    }

    /// Takes one row; when the bench fails, the row says why.
    pub(crate) async fn measure(
        &mut self,
        name: &str,
        unit: &'static str,
        bench: impl Future<Output = Outcome<Row>>,
    ) {
        self.measure_all(&[(name, unit)], async { Ok(vec![bench.await?]) })
            .await;
    }

    /// Takes the rows of a bench that gives several; `planned` are the names and units of those that fail with it.
    pub(crate) async fn measure_all(
        &mut self,
        planned: &[(&str, &'static str)],
        bench: impl Future<Output = Outcome<Vec<Row>>>,
    ) {
        say(&format!(
            "{}: {} ...",
            self.area,
            planned
                .iter()
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(", ")
        ));
        let max = self.bench_max;
        let late = || Fault::new(format!("it took longer than {} s", max.as_secs()));
        match timeout(max, bench).await.unwrap_or_else(|_| Err(late())) {
            Ok(rows) => rows.into_iter().for_each(|row| self.put(row)),
            Err(fault) => planned
                .iter()
                .for_each(|(name, unit)| self.put(Row::failed(*name, unit, &fault))),
        }
    }

    pub(crate) fn put(&mut self, mut row: Row) {
        row.area = self.area.to_owned();
        let ours = row.ours.map_or_else(|| "-".into(), figure);
        let beside = row
            .peer
            .map(|peer| format!(", peer {}", figure(peer)))
            .unwrap_or_default();
        let why = row
            .note
            .as_ref()
            .filter(|_| row.failed)
            .map(|note| format!(": {note}"))
            .unwrap_or_default();
        say(&format!("  {}: {ours} {}{beside}{why}", row.name, row.unit));
        self.rows.push(row);
    }

    pub(crate) fn all_ran(&self) -> bool {
        self.rows.iter().all(|row| !row.failed)
    }
}

/// A line of progress. Standard output is the table's.
pub(crate) fn say(line: &str) {
    use std::io::Write as _;
    // Nobody is left to be told when standard error is gone.
    drop(writeln!(std::io::stderr(), "{line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bench_that_fails_gives_failed_rows_and_the_others_go_on() {
        let mut rows = Rows::default();
        rows.enter("x");
        rows.measure_all(&[("a", "ms"), ("b", "s")], async { Err(Fault::new("no root")) })
            .await;
        rows.measure("c", "ms", async { Ok(Row::new("c", "ms", vec![1.0])) })
            .await;
        assert_eq!(
            rows.rows.iter().map(|row| row.failed).collect::<Vec<_>>(),
            [true, true, false]
        );
        assert!(!rows.all_ran() && rows.rows[0].area == "x");
    }

    #[tokio::test]
    async fn a_bench_that_hangs_is_ended() {
        let mut rows = Rows {
            bench_max: Duration::from_millis(1),
            ..Rows::default()
        };
        rows.measure("a", "ms", std::future::pending()).await;
        assert!(rows.rows[0].failed);
    }
}
