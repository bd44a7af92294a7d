//! `cargo xtask demo`: the whole of VBM on this machine, from nothing, in a few minutes.
//!
//! ```text
//!   prepare: programs that are missing, build, guest
//!      |
//!   story (chapters as data) --acts--> stage --sh -c--> vbm, curl, ping     claim: addresses and port of this run
//!      |                                 |----------->  vbmd (daemon)       world: the outside, one more namespace
//!      |                                 \-- clear: at the end, on a fault, on ^C
//!      v
//!   table of what was done and how long it took, and what to type next
//! ```
//!
//! Every command that is shown is the one that is run. Runs at the same time do not meet. When the demo is killed,
//! the kernel ends `vbmd`, the command in hand and the outside world; `vbm doctor --fix` removes VM and network.

pub(crate) mod build;
mod claim;
mod daemon;
pub(crate) mod facts;
mod interrupt;
mod nodes;
mod stage;
mod story;
pub(crate) mod typed;
mod world;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
pub(crate) use interrupt::{Interrupts, Watch};
use stage::Stage;
use story::{Chapter, STORY};

use crate::fault::{Done, Fault};
use crate::setup::{self, Need};
use crate::{guest, place, say, web};

/// What the story uses; the bus is in memory, so Redis is not among it.
const NEEDS: [Need; 13] = [
    Need::Qemu,
    Need::QemuImg,
    Need::Iptables,
    Need::Nft,
    Need::Ipset,
    Need::Conntrack,
    Need::Ip,
    Need::Ping,
    Need::Busybox,
    Need::Curl,
    Need::Node,
    Need::Npm,
    Need::Chromium,
];
const LOG_LINES: usize = 20;

/// Prepares, tells the story, clears up.
pub(crate) fn command(nodes: u8) -> Done {
    if !setup::is_root() {
        return Err(Fault::new(
            "the demo needs root",
            "it makes network namespaces, taps and firewall rules, all of its own, and removes them",
            "run `sudo env \"PATH=$PATH\" cargo xtask demo`",
        ));
    }
    let mut rows = Vec::new();
    let mut prepared = |name: &str, proof: String, since: Instant| {
        rows.push(Row {
            title: name.to_owned(),
            proof,
            took: since.elapsed(),
        });
    };
    say::title("prepare");
    let since = Instant::now();
    setup::ensure(&NEEDS)?;
    if nodes > 1 {
        setup::ensure(&[Need::Redis])?;
    }
    prepared(
        "find or install programs",
        "qemu, iptables, nft, ...".to_owned(),
        since,
    );
    let since = Instant::now();
    say::line("   building the page of the web console");
    let how = if web::ensure_built()? {
        "from its sources"
    } else {
        "was there"
    };
    prepared("build the page", how.to_owned(), since);
    let since = Instant::now();
    say::line("   building vbmd and vbm (profile dev: sooner built than an optimised one)");
    let programs = build::programs()?;
    prepared("build vbmd and vbm", "profile dev".to_owned(), since);
    let since = Instant::now();
    let guest = guest::ensure(None)?;
    let how = if guest.made {
        "made from Debian packages"
    } else {
        "was there"
    };
    prepared("make the guest", how.to_owned(), since);

    if nodes > 1 {
        let took = nodes::tell(&programs, guest.dir, nodes, &mut rows)?;
        say::title("what was done");
        table(&rows);
        say::line(&format!("\neach step checked, in {:.1} s", took.as_secs_f64()));
        say::title("what to type next, as root");
        say::line(&format!("   export PATH={}:$PATH", programs.display()));
        say::line(
            "   vbm dev up --nodes 3      # your own cluster; `vbm dev --help` shows what can be done to it",
        );
        return Ok(());
    }
    let told = tell(&programs, guest.dir, &mut rows)?;
    say::title("what was done");
    table(&rows);
    say::line(&format!(
        "\n{} chapters, each checked, in {:.1} s. The VM's screen: {}\nThe page in a browser: {}",
        STORY.len(),
        told.took.as_secs_f64(),
        told.picture.display(),
        told.page.display()
    ));
    next(&programs);
    Ok(())
}

struct Told {
    took: Duration,
    picture: PathBuf,
    page: PathBuf,
}

/// Sets the stage, plays, clears.
fn tell(programs: &Path, guest: PathBuf, rows: &mut Vec<Row>) -> Done<Told> {
    let kept = place::target().join("demo");
    sweep(&kept);
    let keep = kept.join(std::process::id().to_string());
    let interrupts = Interrupts::default();
    // Before anything is made, and until all is cleared.
    let _watch = Watch::new(&interrupts)?;
    let bar = say::bar(STORY.len() as u64, "");
    let since = Instant::now();
    let mut stage = Stage::set(programs, guest, keep, interrupts.clone(), bar.clone())?;
    let played = play(&STORY, &mut stage, |news| show(news, &bar, STORY.len(), rows));
    bar.finish_and_clear();
    if played.is_err() && !interrupts.came() {
        blame(&stage.recipe.log);
    }
    let faults = stage.clear();
    faults.iter().for_each(say::fault);
    played?;
    match faults.into_iter().next() {
        Some(_) => Err(Fault::new(
            "the demo could not clear up after itself",
            "the reasons are above",
            "run `vbm doctor --fix`",
        )),
        None => Ok(Told {
            took: since.elapsed(),
            picture: stage.keep.join("web.png"),
            page: stage.keep.join(story::PAGE),
        }),
    }
}

enum News<'a, S> {
    Begins(usize, &'a Chapter<S>),
    Done(Row),
}

/// Tells of a chapter that begins, and of one that is done.
fn show<S>(news: News<'_, S>, bar: &ProgressBar, chapters: usize, rows: &mut Vec<Row>) {
    match news {
        News::Begins(n, chapter) => {
            bar.set_message(chapter.title);
            bar.suspend(|| say::title(&format!("{n}/{chapters} {}: {}", chapter.title, chapter.about)));
        }
        News::Done(row) => {
            bar.inc(1);
            bar.suspend(|| say::line(&format!("   ok: {} ({:.1} s)", row.proof, row.took.as_secs_f64())));
            rows.push(row);
        }
    }
}

/// Plays chapters in order until one fails.
fn play<S>(chapters: &[Chapter<S>], stage: &mut S, mut tell: impl FnMut(News<'_, S>)) -> Done {
    for (n, chapter) in (1..).zip(chapters) {
        tell(News::Begins(n, chapter));
        let since = Instant::now();
        let proof = (chapter.act)(stage).map_err(|fault| Fault {
            what: format!("chapter {n}, {}: {}", chapter.title, fault.what),
            ..fault
        })?;
        tell(News::Done(Row {
            title: chapter.title.to_owned(),
            proof,
            took: since.elapsed(),
        }));
    }
    Ok(())
}

/// The end of the daemon's log, for whoever looks for the cause.
fn blame(log: &Path) {
    let lines = daemon::log_tail(log, LOG_LINES);
    say::note(&format!("the end of {}:", log.display()));
    for line in lines {
        say::note(&format!("| {line}"));
    }
}

/// A line of the closing table.
struct Row {
    title: String,
    proof: String,
    took: Duration,
}

fn table(rows: &[Row]) {
    let width = |cell: fn(&Row) -> &str| {
        rows.iter()
            .map(|row| cell(row).chars().count())
            .max()
            .unwrap_or(0)
    };
    let titles = width(|row| &row.title);
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let what = format!("{:<titles$}  {}", row.title, row.proof);
            vec![what, format!("{:.1}", row.took.as_secs_f64())]
        })
        .collect();
    say::table(&["step", "seconds"], &cells);
}

/// What somebody who liked it types next.
fn next(programs: &Path) {
    let guest = place::guest();
    say::title("what to type next, as root");
    say::line(&format!("   export PATH={}:$PATH", programs.display()));
    for line in [
        "vbmd &                                         # your own; it keeps what you make".to_owned(),
        format!("vbm image import tiny --guest {}", guest.display()),
        "vbm network create lan 10.0.0.0/24".to_owned(),
        "vbm launch tiny web --network lan              # vbm launch --help: CPUs, memory, addresses"
            .to_owned(),
        "vbm console web                                # Ctrl-] leaves it".to_owned(),
        "vbm web login                                  # the same in a browser, where vbmd was started with --web 127.0.0.1:8480"
            .to_owned(),
        "vbm delete web --force && vbm network delete lan".to_owned(),
    ] {
        say::line(&format!("   {line}"));
    }
    say::line(
        "   cargo xtask test                               # every test, on real namespaces, Redis and QEMU",
    );
}

/// Removes what runs that have ended kept; the last one's picture stays until the next run.
fn sweep(kept: &Path) {
    sweep_by(kept, "", |_| true);
    // What is left of a killed run; with data in it, it is the doctor's.
    let temporary = std::env::temp_dir();
    sweep_by(&temporary, claim::DIR_PREFIX, |dir| !dir.join("data").exists());
}

fn sweep_by(parent: &Path, prefix: &str, may_go: impl Fn(&Path) -> bool) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(prefix).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) && may_go(&entry.path()) {
            // A directory that cannot be removed is in nobody's way.
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chapters() -> [Chapter<Vec<&'static str>>; 3] {
        let chapter = |title, act| Chapter {
            title,
            about: "a test",
            act,
        };
        [
            chapter("one", |seen| {
                seen.push("one");
                Ok("seen".to_owned())
            }),
            chapter("two", |seen| {
                seen.push("two");
                Err(Fault::new("it is false", "because", "nothing"))
            }),
            chapter("three", |seen| {
                seen.push("three");
                Ok(String::new())
            }),
        ]
    }

    #[test]
    fn a_story_ends_at_the_first_claim_that_is_not_true() {
        let (mut seen, mut begun, mut rows) = (Vec::new(), 0, Vec::new());
        let fault = play(&chapters(), &mut seen, |news| match news {
            News::Begins(..) => begun += 1,
            News::Done(row) => rows.push(row),
        })
        .unwrap_err();
        assert_eq!(fault.what, "chapter 2, two: it is false");
        assert_eq!((seen, begun), (vec!["one", "two"], 2));
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].title.as_str(), rows[0].proof.as_str()), ("one", "seen"));
    }

    #[test]
    fn only_what_ended_runs_kept_is_swept() {
        let dir = std::env::temp_dir().join(format!("vbm-xtask-sweep-{}", std::process::id()));
        let alive = dir.join(std::process::id().to_string());
        for path in [
            dir.join("4194399"),
            dir.join("4194398/data"),
            dir.join("other"),
            alive.clone(),
        ] {
            std::fs::create_dir_all(path).unwrap();
        }
        sweep_by(&dir, "", |path| !path.join("data").exists());
        assert!(!dir.join("4194399").exists() && dir.join("4194398").exists());
        assert!(dir.join("other").exists() && alive.exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
