//! `cargo xtask lab virtualbox`: real VirtualBox on a machine that can neither load its driver nor virtualise.
//!
//! ```text
//!  root     debootstrap sid + virtualbox, kernel, headers, dkms    target/lab/virtualbox/root      (root.rs)
//!     |         \-- vboxmanage: a wrapper that runs it from there; everything but running VMs      (manage.rs)
//!  image    ext4 made from that folder without a mount, kernel, initramfs    .../image             (image.rs)
//!     |
//!  machine  QEMU without KVM, whose processor has AMD-V; VirtualBox's modules; a channel           (machine.rs)
//!     |\-- suite   the driver's conformance suite, on VMs that run                                (suite.rs)
//!      \-- story   our agent in it, a controller outside: one VM's life                           (story.rs)
//! ```
//!
//! Root and image are kept, each with a stamp that is written last (stamp.rs): what was half made, damaged or made by
//! another recipe is made again. A machine never changes them: its disk is an overlay that goes when it ends.
//!
//! Where Debian's archive cannot provide what is needed, nothing has failed and nothing has passed: [`Unable`].

mod archive;
mod image;
mod inside;
mod machine;
mod manage;
mod picture;
mod prove;
mod root;
mod script;
mod servant;
mod space;
mod stage;
mod stamp;
mod story;
mod suite;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::demo::{Interrupts, Watch};
use crate::fault::{Done, Fault};
use crate::setup::{self, Need};
use crate::{place, say};

/// What the lab can be asked for; root and image are always seen to first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Debian with VirtualBox in a folder, and the wrapper that runs VBoxManage from it.
    Root,
    /// The disk, kernel and initramfs of the machine.
    Image,
    /// The machine boots, VirtualBox works in it, and it ends.
    Machine,
    /// The conformance suite of the driver, in the machine.
    Suite,
    /// Our agent in the machine runs a VM for a controller outside of it.
    Story,
}

/// Which lab.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// VirtualBox 7.2 inside an emulated machine.
    #[default]
    Virtualbox,
}

/// Why the lab has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unable {
    /// The package archive does not give what is needed: not run, which is neither passed nor failed.
    NotProvided(Fault),
    /// It was provided, and something is wrong.
    Failed(Fault),
}

impl From<Fault> for Unable {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// The result of what needs the archive.
pub(crate) type Provided<T = ()> = Result<T, Unable>;

/// What the lab uses of this machine.
const NEEDS: [Need; 7] = [
    Need::Debootstrap,
    Need::Mkfs,
    Need::Qemu,
    Need::QemuImg,
    Need::Redis,
    Need::Busybox,
    Need::Curl,
];

/// Where the lab is kept.
pub(crate) fn dir() -> PathBuf {
    place::target().join("lab/virtualbox")
}

/// What was done, whether it was well, and how long it took; printed as a table at the end, whatever the end is.
#[derive(Default)]
pub(crate) struct Times(Vec<Row>);

struct Row {
    step: String,
    proof: String,
    took: Duration,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Well,
    LeftOut,
    NotRun,
    Failed,
}

impl Times {
    fn note(&mut self, step: &str, proof: impl Into<String>, since: Instant) {
        self.add(step, proof.into(), since.elapsed(), How::Well);
    }

    /// The same, of something that timed itself.
    fn took(&mut self, step: &str, proof: &str, took: Duration) {
        self.add(step, proof.to_owned(), took, How::Well);
    }

    fn failed(&mut self, step: &str, why: &str, took: Duration) {
        self.add(step, format!("FAILED: {why}"), took, How::Failed);
    }

    /// Neither well nor failed, for a reason that was declared.
    fn left_out(&mut self, step: &str, why: &str, took: Duration) {
        self.add(step, format!("LEFT OUT: {why}"), took, How::LeftOut);
    }

    /// Neither well nor failed, because what it needs gave up by itself each time: nobody knows how it would have ended.
    fn not_run(&mut self, step: &str, why: &str, took: Duration) {
        self.add(step, format!("NOT RUN: {why}"), took, How::NotRun);
    }

    fn add(&mut self, step: &str, proof: String, took: Duration, how: How) {
        let mark = if how == How::Well { "ok: " } else { "" };
        say::line(&format!(
            "   {mark}{}: {proof} ({:.1} s)",
            step.trim(),
            took.as_secs_f64()
        ));
        self.0.push(Row {
            step: step.to_owned(),
            proof,
            took,
            how,
        });
    }

    /// How much was well, and how much was not.
    fn count(&self) -> (u64, u64) {
        let of = |how| self.0.iter().filter(|row| row.how == how).count() as u64;
        (of(How::Well), of(How::Failed))
    }

    /// The steps that nobody knows the end of, each with its reason.
    fn unknown(&self) -> Vec<String> {
        let unknown = self.0.iter().filter(|row| row.how == How::NotRun);
        unknown
            .map(|row| format!("{}: {}", row.step.trim(), row.proof))
            .collect()
    }

    fn print(&self) {
        let width = self
            .0
            .iter()
            .map(|row| row.step.chars().count())
            .max()
            .unwrap_or(0);
        let rows: Vec<Vec<String>> = self
            .0
            .iter()
            .map(|row| {
                let what = format!("{:<width$}  {}", row.step, row.proof);
                vec![what, format!("{:.1}", row.took.as_secs_f64())]
            })
            .collect();
        say::title("the lab: what was done");
        say::table(&["step", "seconds"], &rows);
    }
}

/// What somebody asks of the lab.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Which lab.
    #[arg(value_enum)]
    which: Which,
    /// Only this, instead of suite and story.
    #[arg(long, value_enum, value_name = "STEP")]
    only: Option<Step>,
    /// Make all of it anew, whatever is there.
    #[arg(long)]
    fresh: bool,
    /// Of the suite, only the core that `cargo xtask test` runs.
    #[arg(long)]
    core: bool,
    /// Instead of all that: run each line of this file in the machine, and show what it says.
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    script: Option<PathBuf>,
    /// A file to bring into the machine for the script, into /lab/brought.
    #[arg(long, value_name = "FILE", requires = "script")]
    bring: Vec<PathBuf>,
}

/// Runs what is asked for; all of it when nobody says.
pub(crate) fn command(args: &Args) -> Provided {
    let Which::Virtualbox = args.which;
    needs_root()?;
    setup::ensure(&NEEDS)?;
    let dir = dir();
    if args.fresh {
        forget(&dir)?;
    }
    let mut times = Times::default();
    let done = run(&dir, args, &mut times);
    times.print();
    done
}

fn run(dir: &Path, args: &Args, times: &mut Times) -> Provided {
    let interrupts = Interrupts::default();
    let _watch = Watch::new(&interrupts)?;
    let _lock = lock(dir)?;
    let root = root::ensure(dir, &interrupts, times)?;
    if args.only == Some(Step::Root) {
        return Ok(());
    }
    let image = image::ensure(dir, &root, &interrupts, times)?;
    match (&args.script, args.only) {
        (Some(script), _) => script::play(dir, &image, script, &args.bring, &interrupts, times)?,
        (None, Some(Step::Root | Step::Image)) => {}
        (None, Some(Step::Machine)) => prove::prove(dir, &image, &interrupts, times)?,
        (None, Some(Step::Suite)) => suite::run(dir, &image, args.core, &interrupts, times)?,
        (None, Some(Step::Story)) => story::tell(dir, &image, &interrupts, times)?,
        (None, None) => {
            // Whatever the one says of the driver, the other says more.
            let suite = suite::run(dir, &image, args.core, &interrupts, times);
            let story = match &suite {
                Err(fault) if interrupts.came() => Err(fault.clone()),
                _ => story::tell(dir, &image, &interrupts, times),
            };
            suite.and(story)?;
        }
    }
    match times.count() {
        (_, 0) => Ok(()),
        (well, failed) => Err(Unable::Failed(Fault::new(
            format!("{failed} of {} steps of the lab failed", well + failed),
            "the table above names them",
            "look for the step in the output above, and in log/ of target/lab/virtualbox",
        ))),
    }
}

/// What the tests of the driver need to drive the real VBoxManage on VMs that do not run.
pub(crate) struct ForTests {
    dir: PathBuf,
}

impl ForTests {
    /// Makes the folder where it is missing.
    pub(crate) fn ensure() -> Provided<Self> {
        setup::ensure(&NEEDS)?;
        let dir = dir();
        let _lock = lock(&dir)?;
        root::ensure(&dir, &Interrupts::default(), &mut Times::default())?;
        Ok(Self { dir })
    }

    /// Variables by which the tests find it.
    pub(crate) fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("VBM_VBOXMANAGE", manage::wrapper(&self.dir)),
            ("VBM_VBOX_WORK", manage::work(&self.dir)),
        ]
    }
}

impl Drop for ForTests {
    fn drop(&mut self) {
        manage::end_servers(&self.dir);
    }
}

/// What the lab came to as a level of the tests.
pub(crate) struct Level {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What VirtualBox itself gave up on each time, with the reason.
    pub(crate) not_run: Vec<String>,
}

/// The lab as a level of the tests: how many claims were found true and how many not, with the table of times.
///
/// # Errors
/// What [`command`] gives before the story begins; a claim that is not true is a count.
pub(crate) fn as_level() -> Provided<Level> {
    setup::ensure(&NEEDS)?;
    let mut times = Times::default();
    let args = Args {
        core: !suite::all_wanted(),
        ..Args::default()
    };
    let done = run(&dir(), &args, &mut times);
    times.print();
    let (passed, mut failed) = times.count();
    match done {
        Err(Unable::Failed(fault)) => {
            say::fault(&fault);
            failed = failed.max(1);
        }
        Ok(()) => {}
        Err(not_provided) => return Err(not_provided),
    }
    Ok(Level {
        passed,
        failed,
        not_run: times.unknown(),
    })
}

fn needs_root() -> Done {
    if setup::is_root() {
        return Ok(());
    }
    Err(Fault::new(
        "the lab needs root",
        "it unpacks a Debian system in a folder and enters it",
        "run `sudo env \"PATH=$PATH\" cargo xtask lab virtualbox`",
    ))
}

/// One run at a time; the second waits, and then finds what the first has made.
fn lock(dir: &Path) -> Done<std::fs::File> {
    std::fs::create_dir_all(dir).map_err(|error| Fault::file("create", dir, &error))?;
    let path = dir.join("lock");
    let locked = std::fs::File::create(&path).and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| Fault::file("lock", &path, &error))
}

/// The stamps go, so that everything is made anew.
fn forget(dir: &Path) -> Done {
    for stamp in [root::STAMP, image::STAMP] {
        stamp::remove(&dir.join(stamp))?;
    }
    Ok(())
}
