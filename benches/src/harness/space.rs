//! Namespaces that a bench makes by hand, and programs inside them.
//!
//! A program is started by a thread that has entered the namespace and waits there for its end: so a peer does not pay for an `ip netns
//! exec` that nobody would type a thousand times.

use super::{
    child::{command, run},
    fault::{During, Fault, Outcome},
    rows::say,
};
use nix::sched::{CloneFlags, setns};
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The longest that one `ip` call may take.
const IP_WITHIN: Duration = Duration::from_secs(10);

/// A namespace made by `ip`; deleted when dropped. A link whose other end is in it goes with it, a moment later.
pub(crate) struct Space(pub(crate) String);

impl Space {
    /// One of a name that nobody has.
    pub(crate) async fn make(what: &str) -> Outcome<Self> {
        let space = Self(format!("bench-{what}-{}", std::process::id()));
        ip(&format!("netns add {}", space.0)).await?;
        ip(&format!("-n {} link set lo up", space.0)).await?;
        Ok(space)
    }

    /// `ip -n` in it.
    pub(crate) async fn ip(&self, line: &str) -> Outcome<()> {
        ip(&format!("-n {} {line}", self.0)).await
    }

    /// See [`inside`].
    pub(crate) fn run(&self, program: &str, args: &[&str], input: &str) -> Outcome<String> {
        inside(&self.0, program, args, input)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let done = Command::new("ip").args(["netns", "delete", &self.0]).output();
        if !done.is_ok_and(|output| output.status.success()) {
            say(&format!("warning: the namespace {} was not deleted", self.0));
        }
    }
}

/// `ip` with these words.
pub(crate) async fn ip(line: &str) -> Outcome<()> {
    run(command("ip").args(line.split(' ')), IP_WITHIN)
        .await
        .map(drop)
}

/// Runs a program in a namespace to its end; what it printed. The caller's thread waits.
pub(crate) fn inside(space: &str, program: &str, args: &[&str], input: &str) -> Outcome<String> {
    within(space, || once(program, args, input))?
}

/// Does something in a namespace, on a thread that ends with it. The caller's thread waits.
pub(crate) fn within<T: Send>(space: &str, work: impl FnOnce() -> T + Send) -> Outcome<T> {
    let path: PathBuf = Path::new("/run/netns").join(space);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| -> Outcome<T> {
            let file = File::open(&path).during(path.display())?;
            setns(file, CloneFlags::CLONE_NEWNET).during("entering a namespace")?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|_| Err(Fault::new("it panicked")))
    })
}

fn once(program: &str, args: &[&str], input: &str) -> Outcome<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .during(program)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).during(program)?;
    }
    let output = child.wait_with_output().during(program)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Fault::new(format!(
            "{program} {}: {}",
            args.join(" "),
            said.trim()
        )))
    }
}
