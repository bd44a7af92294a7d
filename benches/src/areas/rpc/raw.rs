//! What Redis itself can do on this machine: `redis-benchmark`, as Debian has it.

use super::server::RedisServer;
use crate::harness::{
    child::{command, run as run_program},
    fault::{Fault, Outcome},
    ground::{Ground, which},
    row::Row,
    rows::Rows,
};
use std::time::Duration;

const REQUESTS: usize = 400_000;
const QUICK_REQUESTS: usize = 100_000;
const ENDS_WITHIN: Duration = Duration::from_secs(120);
/// The commands, each 32 at once on a connection.
const COMMANDS: [(&str, &[&str]); 2] = [
    ("PING", &["PING"]),
    (
        "XADD",
        &["XADD", "s", "MAXLEN", "~", "10000", "*", "f", "__128__"],
    ),
];

pub(super) async fn run(ground: &Ground, rows: &mut Rows) {
    for (name, words) in COMMANDS {
        let name = format!("redis-benchmark -P 32, {name}");
        if !ground.wants(&name) {
            continue;
        }
        rows.measure(&name, "commands/s", one(ground, &name, words)).await;
    }
}

async fn one(ground: &Ground, name: &str, words: &[&str]) -> Outcome<Row> {
    if which("redis-benchmark").is_none() {
        return Err(Fault::new("redis-benchmark is missing (Debian: redis-tools)"));
    }
    let payload = "x".repeat(super::PAYLOAD_BYTES);
    let mut samples = Vec::new();
    for _ in 0..ground.rounds() {
        let server = RedisServer::start().await?;
        let mut program = command("redis-benchmark");
        program.args(["-s", &server.socket(), "-P", "32", "--csv", "-n"]);
        program.arg(ground.size(REQUESTS, QUICK_REQUESTS).to_string());
        program.args(words.iter().map(|word| word.replace("__128__", &payload)));
        samples.push(rate(&run_program(&mut program, ENDS_WITHIN).await?)?);
    }
    Ok(Row::new(name, "commands/s", samples))
}

/// The second column of the last line.
fn rate(csv: &str) -> Outcome<f64> {
    let cell = csv.lines().last().and_then(|line| line.split("\",\"").nth(1));
    cell.and_then(|cell| cell.trim_matches('"').parse().ok())
        .ok_or_else(|| Fault::new("redis-benchmark said no rate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read() {
        let csv = "\"test\",\"rps\",\"avg\"\n\"PING a,b\",\"1234.50\",\"0.1\"\n";
        assert_eq!(rate(csv).unwrap(), 1234.5);
        assert!(rate("").is_err());
    }
}
