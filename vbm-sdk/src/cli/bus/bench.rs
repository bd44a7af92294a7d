//! `vbm bus bench`: how fast the bus is on this Redis, from this host.
//!
//! ```text
//!   vbm-bench-ID/caller --calls--> Redis --> vbm-bench-ID/echo        both in this process, nobody else's
//!        |   for each number in flight: warm up, count, next
//!        `-- the end, a failed call, ^C, SIGTERM: both leave the bus, and take their keys with them
//! ```

mod load;

use crate::cli::{args::BusBench, human, session::Session, table::Table};
use load::Measured;
use serde::Serialize;
use std::time::Duration;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use uuid::Uuid;
use vbm_core::{Error, ErrorKind, NodePath, Outcome};
use vbm_rpc::{
    Bus, CallOptions, Member, Method, Route, Router,
    admin::Admin,
    auth::{Keys, Ring, Security, Trust, Trusted},
    limits::{INFLIGHT_MAX_PER_DESTINATION, PAYLOAD_MAX_BYTES},
    redis::{RedisConfig, RedisTransport},
};

/// The longest that one number is measured for.
const TIME_MAX: Duration = Duration::from_secs(60);
/// The most numbers of one run.
const NUMBERS_MAX: usize = 8;
/// The most calls in flight.
const FLIGHTS_MAX: usize = INFLIGHT_MAX_PER_DESTINATION / 2;
/// The largest body, in bytes: what the bus carries, less room for how it is written.
const BODY_MAX_BYTES: usize = PAYLOAD_MAX_BYTES - 64;
/// How long it is looked what others do on this server, before the first call.
const OTHERS: Duration = Duration::from_millis(500);

/// Bytes, and the same bytes back.
pub(super) struct Echo;
impl Method for Echo {
    const NAME: &'static str = "bench.echo";
    const FENCED: bool = false;
    // Nothing that is measured is worth keeping.
    const KEPT: bool = false;
    type Request = crate::methods::Bytes;
    type Reply = crate::methods::Bytes;
}

/// What was asked for, and found.
#[derive(Serialize)]
struct Report {
    payload_bytes: usize,
    /// Whether what was written was sealed.
    seals: bool,
    seconds: u64,
    /// What others did on the server just before; taken off what was counted.
    others_commands_per_second: Option<f64>,
    rows: Vec<Measured>,
}

/// What is asked for, within its limits.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    flights: Vec<usize>,
    payload: usize,
    time: Duration,
    seals: bool,
}

impl Wish {
    fn of(args: &BusBench) -> Result<Self, Error> {
        let refuse =
            |what: String, why: String, fix: &str| Err(Error::new(ErrorKind::InvalidInput, what, why, fix));
        let time = human::parse_span(&args.time)?;
        if time > TIME_MAX {
            let why = format!("at most {} s are allowed for each number", TIME_MAX.as_secs());
            return refuse(
                format!("{} is too long", args.time),
                why,
                "measure for a shorter time",
            );
        }
        if args.in_flight.is_empty() || args.in_flight.len() > NUMBERS_MAX {
            let why = format!(
                "{} numbers were given; 1 to {NUMBERS_MAX} are allowed",
                args.in_flight.len()
            );
            return refuse(
                "it cannot be measured so".into(),
                why,
                "give numbers such as --in-flight 1,64,512",
            );
        }
        if let Some(bad) = args.in_flight.iter().find(|n| !(1..=FLIGHTS_MAX).contains(*n)) {
            let why = format!("1 to {FLIGHTS_MAX} calls can be in flight");
            return refuse(
                format!("{bad} calls in flight cannot be measured"),
                why,
                "give another number",
            );
        }
        if args.payload > BODY_MAX_BYTES {
            let why = format!("a call carries at most {BODY_MAX_BYTES} bytes");
            return refuse(
                format!("a payload of {} bytes is too large", args.payload),
                why,
                "give a smaller one",
            );
        }
        Ok(Self {
            flights: args.in_flight.clone(),
            payload: args.payload,
            time,
            seals: args.seals,
        })
    }
}

/// Both ends, on the bus for as long as this runs.
struct Stage {
    echo: Bus,
    caller: Bus,
}

impl Stage {
    async fn set(args: &BusBench) -> Result<(Self, std::sync::Arc<dyn Admin>), Error> {
        // A shard of its own: none of its keys is anybody else's.
        let name = Uuid::now_v7().simple().to_string();
        let path = |end: &str| format!("vbm-bench-{name}/{end}").parse::<NodePath>();
        let mut config = RedisConfig::from_url(&args.place.redis)?;
        if args.seals {
            config = config.security(security([path("echo")?, path("caller")?])?);
        }
        let transport = RedisTransport::connect(config).await?;
        let admin = super::of(&transport)?;
        let router = Router::new().method::<Echo, _, _>(|_context, bytes| async move { Ok(bytes) });
        let echo = Bus::attach(
            transport.clone(),
            Member::new(path("echo")?, name.clone()),
            router,
        )
        .await?;
        let caller = Bus::attach(
            transport,
            Member::new(path("caller")?, name.clone()),
            Router::new(),
        )
        .await;
        match caller {
            Ok(caller) => Ok((Self { echo, caller }, admin)),
            Err(error) => {
                echo.shutdown().await;
                Err(error.into())
            }
        }
    }

    async fn clear(self) {
        self.caller.shutdown().await;
        self.echo.shutdown().await;
    }
}

/// Keys that both ends believe, and nobody else.
fn security(ends: [NodePath; 2]) -> Result<Security, Error> {
    let keys = Keys::generate()?;
    let mut ring = Ring::new();
    for end in ends {
        ring.add(end, Trusted::new(*keys.active().public()))?;
    }
    Ok(Security::On(keys, Trust::fixed(ring)))
}

pub(super) async fn run(on: &Session<'_>, args: &BusBench) -> Result<(), Error> {
    let wish = Wish::of(args)?;
    // From here on a signal ends the measuring and not the process: what it has made is taken back first.
    let mut signals = Signals::listen()?;
    let (stage, admin) = Stage::set(args).await?;
    let measured = tokio::select! {
        // Dropping it ends its loops; the calls in flight are given up.
        measured = measure(on, &stage, &*admin, &wish) => measured,
        () = signals.came() => Err(interrupted()),
    };
    stage.clear().await;
    let report = measured?;
    on.out.item(&report, "", &text(&report))
}

async fn measure(on: &Session<'_>, stage: &Stage, admin: &dyn Admin, wish: &Wish) -> Result<Report, Error> {
    let before = admin.commands_processed().await?;
    sleep(OTHERS).await;
    let after = admin.commands_processed().await?;
    let others = before.zip(after).map(|(before, after)| {
        let count = u32::try_from(after.saturating_sub(before)).unwrap_or(u32::MAX);
        f64::from(count) / OTHERS.as_secs_f64()
    });
    let route = Route::node(stage.echo.member().path.clone());
    let body = crate::methods::Bytes(vec![b'x'; wish.payload]);
    let mut rows = Vec::new();
    for &flights in &wish.flights {
        on.out.hint(&format!(
            "measuring {flights} in flight for {} s ...",
            wish.time.as_secs()
        ));
        let (bus, route, body) = (stage.caller.clone(), route.clone(), body.clone());
        let call = move || {
            let call = bus.call::<Echo>(&route, &body, CallOptions::default());
            async move { call.await.map(drop).map_err(Error::from) }
        };
        rows.push(load::measure(admin, flights, wish.time, others, call).await?);
    }
    Ok(Report {
        payload_bytes: wish.payload,
        seals: wish.seals,
        seconds: wish.time.as_secs(),
        others_commands_per_second: others,
        rows,
    })
}

fn text(report: &Report) -> String {
    let mut table = Table::new(
        &[
            "IN FLIGHT",
            "CALLS/S",
            "P50 MS",
            "P99 MS",
            "P99.9 MS",
            "COMMANDS/CALL",
        ],
        &["CALLS", "MAX MS"],
    );
    let millis = |micros: u32| format!("{}.{:03}", micros / 1_000, micros % 1_000);
    for row in &report.rows {
        table.row([
            row.in_flight.to_string(),
            format!("{:.0}", row.calls_per_second),
            millis(row.p50_micros),
            millis(row.p99_micros),
            millis(row.p999_micros),
            row.commands_per_call
                .map(|count| format!("{count:.2}"))
                .unwrap_or_default(),
            row.calls.to_string(),
            millis(row.max_micros),
        ]);
    }
    let others = match report.others_commands_per_second {
        Some(count) => format!("others on this server: {count:.0} commands/s, taken off"),
        None => "this server does not tell how many commands it ran".into(),
    };
    format!(
        "{} bytes there and back, seals {}, {} s each; {others}\n{}",
        report.payload_bytes,
        if report.seals { "on" } else { "off" },
        report.seconds,
        table.render(false, None)
    )
}

/// What ends a measurement early.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let of =
            |kind| signal(kind).map_err(|e| Error::internal("signals cannot be received", e.to_string()));
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
        })
    }

    /// Cancel safe.
    async fn came(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn interrupted() -> Error {
    Error::new(
        ErrorKind::Cancelled,
        "the measurement was interrupted",
        "Ctrl-C was pressed, or the process was told to end; nothing of it is left on the bus",
        "run it again",
    )
    .with_outcome(Outcome::NotApplied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::BusPlace;

    fn args() -> BusBench {
        BusBench {
            place: BusPlace { redis: String::new() },
            in_flight: vec![1, 64],
            payload: 128,
            time: "2s".into(),
            seals: false,
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_with_the_limit() {
        assert!(Wish::of(&args()).is_ok());
        for (bad, limit) in [
            (
                BusBench {
                    time: "61s".into(),
                    ..args()
                },
                "60 s",
            ),
            (
                BusBench {
                    in_flight: vec![],
                    ..args()
                },
                "1 to 8",
            ),
            (
                BusBench {
                    in_flight: vec![1; 9],
                    ..args()
                },
                "1 to 8",
            ),
            (
                BusBench {
                    in_flight: vec![0],
                    ..args()
                },
                "1 to 4096",
            ),
            (
                BusBench {
                    in_flight: vec![4097],
                    ..args()
                },
                "1 to 4096",
            ),
            (
                BusBench {
                    payload: PAYLOAD_MAX_BYTES,
                    ..args()
                },
                "at most",
            ),
        ] {
            let error = Wish::of(&bad).unwrap_err();
            assert!(error.why().contains(limit), "{error}");
        }
    }
}
