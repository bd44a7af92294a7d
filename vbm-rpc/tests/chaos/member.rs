//! A worker or a caller of the chaos test: a process of its own, so that it can be killed and stopped as one.
//!
//! Everything that happens is one line in a file of this process, written with one system call: what was written
//! before a SIGKILL is there after it. The test reads the files; the bus knows nothing of them.
//!
//! | line | who | means |
//! |---|---|---|
//! | `R <tag> <key> <ms>` | worker | a handler began |
//! | `B <tag> <key> <deadline ms> <ms>` | caller | a call was made |
//! | `E <tag> <fate> <took ms>` | caller | its end; `taken` of a replicated cast that the bus took |
//! | `END` | caller | all its calls have ended |
//!
//! The effect of a request is a file named by its key, created once: the record of the key and the effect are one
//! step, as the documentation asks of handlers that must act once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a program of the tests: it panics and prints as they do"
)]

use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use vbm_core::NodePath;
use vbm_rpc::{
    Bus, CallOptions, Context, Durability, Fate, Member, Method, Route, Router, Service,
    redis::{RedisConfig, RedisTransport},
};

/// How often one call is tried, with the same key, while its fate allows it.
const TRIES_MAX: u32 = 3;
/// Of so many calls of a caller that may cast, one is a replicated cast.
const CAST_ONE_IN: u64 = 4;
/// A cast that was taken is delivered while this lasts: longer than a seed.
const CAST_DEADLINE: Duration = Duration::from_secs(120);
/// How long a process tries to reach Redis when it starts.
const START_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Serialize, Deserialize)]
struct Work {
    key: String,
    slow_ms: u64,
}

struct Put;
impl Method for Put {
    const NAME: &'static str = "chaos.put";
    type Request = Work;
    type Reply = String;
}

/// A file that lines are added to.
struct Log(File);

impl Log {
    fn new(path: PathBuf) -> Arc<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Arc::new(Self(file.expect("a ledger")))
    }

    fn line(&self, text: &str) {
        let line = format!("{text}\n");
        let written = (&self.0).write(line.as_bytes()).expect("a ledger");
        assert_eq!(written, line.len(), "a line in one piece");
    }
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

/// What the test says to this process, as words of the command line.
struct Arguments {
    url: String,
    dir: PathBuf,
    path: NodePath,
    boot: String,
    rest: Vec<u64>,
}

async fn attach(arguments: &Arguments, router: Router, service: Option<Service>) -> Bus {
    let begin = Instant::now();
    loop {
        let config = RedisConfig::from_url(&arguments.url).unwrap();
        let mut member = Member::new(arguments.path.clone(), arguments.boot.clone());
        if let Some(service) = &service {
            member = member.service(service.clone());
        }
        let attached = async {
            let transport = RedisTransport::connect(config).await?;
            Bus::attach(transport, member, router.clone()).await
        };
        match attached.await {
            Ok(bus) => return bus,
            Err(error) if begin.elapsed() > START_PATIENCE => panic!("{error}"),
            Err(_error) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn work(arguments: Arguments) {
    let log = Log::new(arguments.dir.join(format!("worker-{}.log", arguments.boot)));
    let (effects, boot) = (arguments.dir.join("effects"), arguments.boot.clone());
    let router = Router::new().method::<Put, _, _>(move |context: Context, work: Work| {
        let (log, effects, boot) = (log.clone(), effects.clone(), boot.clone());
        async move {
            let tag = context.traceparent.unwrap();
            log.line(&format!("R {tag} {} {}", work.key, now_ms()));
            match File::create_new(effects.join(&work.key)) {
                Ok(mut effect) => effect.write_all(boot.as_bytes()).unwrap(),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{error}"),
            }
            sleep(Duration::from_millis(work.slow_ms)).await;
            Ok(work.key)
        }
    });
    let bus = attach(&arguments, router, Some(Service::new("worker").unwrap())).await;
    bus.closed().await;
    eprintln!("{} ends: {:?}", arguments.boot, bus.health());
}

const fn fate(fate: &Fate) -> &'static str {
    match fate {
        Fate::Refused(_) => "refused",
        Fate::NoRoute { .. } => "no-route",
        Fate::Overloaded { .. } => "overloaded",
        Fate::Expired { .. } => "expired",
        Fate::Lost { started: true, .. } => "lost-started",
        Fate::Lost { started: false, .. } => "lost",
        Fate::Cancelled => "cancelled",
        _ => "unknown",
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014) of a seed and a place.
const fn chance(seed: u64, at: u64) -> u64 {
    let mut z = seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

async fn call(arguments: Arguments) {
    let [seed, calls, span_ms, deadline_ms, casts] = arguments.rest[..] else {
        panic!("a caller wants: seed, calls, span in ms, deadline in ms, whether it casts (0 or 1)");
    };
    let log = Log::new(arguments.dir.join(format!("caller-{}.log", arguments.boot)));
    let bus = attach(&arguments, Router::new(), None).await;
    let (begin, mut flying) = (Instant::now(), JoinSet::new());
    for n in 0..calls {
        let (bus, log, boot) = (bus.clone(), log.clone(), arguments.boot.clone());
        let dice = move |at: u64| chance(seed, n * 16 + at);
        let at = begin + Duration::from_millis(dice(1) % span_ms.max(1));
        let any = Route::any(NodePath::root(), Service::new("worker").unwrap());
        let route = match dice(2) % 5 {
            0 | 1 => any,
            2 => Route::node("eu/n1".parse().unwrap()),
            3 => Route::node("eu/n2".parse().unwrap()),
            _ => Route::node("us/n3".parse().unwrap()),
        };
        let slow_ms = if dice(3).is_multiple_of(4) {
            dice(4) % 500
        } else {
            0
        };
        let cast = casts == 1 && dice(5).is_multiple_of(CAST_ONE_IN);
        let deadline = match cast {
            true => CAST_DEADLINE,
            false => Duration::from_millis(deadline_ms),
        };
        flying.spawn(async move {
            sleep_until(at).await;
            let key = format!("{boot}-{n}");
            let work = Work {
                key: key.clone(),
                slow_ms,
            };
            for attempt in 0..TRIES_MAX {
                let tag = format!("{key}.{attempt}");
                log.line(&format!("B {tag} {key} {} {}", deadline.as_millis(), now_ms()));
                let options = CallOptions::default()
                    .deadline(deadline)
                    .idempotency_key(key.clone())
                    .traceparent(tag.clone());
                let begun = Instant::now();
                let ended = match cast {
                    true => {
                        let safe = options.durability(Durability::Replicated);
                        bus.cast::<Put>(&route, &work, safe).await.map(|()| None)
                    }
                    false => bus.call::<Put>(&route, &work, options).await.map(Some),
                };
                let took = begun.elapsed().as_millis();
                let word = match &ended {
                    Ok(None) => "taken",
                    Ok(Some(reply)) if *reply == key => "done",
                    Ok(Some(_other)) => "wrong-reply",
                    Err(end) => fate(end),
                };
                log.line(&format!("E {tag} {word} {took}"));
                match ended {
                    Err(end) if end.is_retryable() => sleep(Duration::from_millis(50)).await,
                    _ => return,
                }
            }
        });
    }
    while let Some(ended) = flying.join_next().await {
        ended.unwrap();
    }
    log.line("END");
    bus.shutdown().await;
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [role, url, dir, path, boot, rest @ ..] = &words[..] else {
        panic!("usage: chaos-member ROLE URL DIR PATH BOOT [NUMBERS]");
    };
    let arguments = Arguments {
        url: url.clone(),
        dir: dir.into(),
        path: path.parse().unwrap(),
        boot: boot.clone(),
        rest: rest.iter().map(|word| word.parse().unwrap()).collect(),
    };
    match role.as_str() {
        "worker" => work(arguments).await,
        "caller" => call(arguments).await,
        other => panic!("no such role: {other}"),
    }
}
