//! Orphans: processes and run directories that no daemon looks after.
//!
//! ```text
//!   /proc: "-uuid ID", open file ROOT/ID/*.log       --.
//!   ROOT/ID: manifest, starting                      ----> judge, purely --> Unwatched | Stray | Dead | Unreadable
//!   ROOT/lock: held by a daemon that lives?          --'
//! ```
//!
//! Looking changes nothing, takes no lock and talks to no monitor. What lives is only ended when somebody names it, after it was looked at
//! again and pinned by its pidfd; what is dead and ours is cleared away by [`clear`]. A process that only resembles ours, or is another
//! user's, is nobody's business here.

use super::{
    QemuDriver, adopt,
    process::{self, Proc},
    record::{Ended, Manifest, VmDir},
};
use crate::{Adopted, Driver, Error, Result, disk, files, limits::KILL_DEADLINE};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use tokio::time::timeout;
use vbm_core::{Clock, CrashCause, ErrorKind, PowerState, VmId};

/// Why something counts as an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OrphanKind {
    /// A VM runs, its manifest is sound, and no daemon has its run directory.
    Unwatched,
    /// A process of QEMU runs that its run directory does not know: half-started, or of a directory that is gone.
    Stray,
    /// Nothing runs any more, and the run directory still says that something does.
    Dead,
    /// The manifest cannot be understood.
    Unreadable,
}

impl OrphanKind {
    /// The kind for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unwatched => "unwatched",
            Self::Stray => "stray",
            Self::Dead => "dead",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A process or a run directory that no daemon looks after.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// The VM.
    pub vm: VmId,
    /// Its name, where it is written down.
    pub name: Option<String>,
    /// The run directory that it is of.
    pub root: PathBuf,
    /// Its process, if one lives.
    pub pid: Option<u32>,
    /// Why it is an orphan.
    pub kind: OrphanKind,
    /// The same in words.
    pub why: String,
}

/// A process, as its command line shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Running {
    pid: u32,
    start_ticks: u64,
}

/// All that is seen of one VM of one run directory.
#[derive(Debug, Default)]
struct Sight {
    processes: Vec<Running>,
    starting: bool,
    manifest: Option<Result<Manifest, String>>,
    /// A daemon has the run directory.
    served: bool,
    /// The host was booted since the manifest was written.
    other_boot: bool,
}

/// What is not looked after, below these run directories and below those of any process of QEMU that was started as one of ours.
///
/// # Errors
/// [`Error::Io`]: the processes or a run directory cannot be listed.
pub fn find(roots: &[PathBuf]) -> Result<Vec<Orphan>> {
    find_where(roots, is_served)
}

fn find_where(roots: &[PathBuf], is_served: impl Fn(&Path) -> bool) -> Result<Vec<Orphan>> {
    let boot_id = files::boot_id()?;
    let processes = processes()?;
    let mut wanted: BTreeSet<PathBuf> = roots.iter().cloned().collect();
    wanted.extend(processes.iter().map(|(root, ..)| root.clone()));
    let mut sights: BTreeMap<(PathBuf, VmId), Sight> = BTreeMap::new();
    for root in &wanted {
        let served = is_served(root);
        for id in listed(root)? {
            let dir = VmDir::new(root, id);
            let manifest = dir.manifest().transpose();
            let manifest = manifest.map(|read| read.map_err(|error| error.to_string()));
            let other_boot = matches!(&manifest, Some(Ok(manifest)) if manifest.boot_id != boot_id);
            let sight = Sight {
                starting: dir.file("starting").exists(),
                served,
                manifest,
                other_boot,
                processes: Vec::new(),
            };
            sights.insert((root.clone(), id), sight);
        }
    }
    for (root, id, running) in processes {
        let served = is_served(&root);
        let sight = sights.entry((root, id)).or_insert_with(|| Sight {
            served,
            ..Sight::default()
        });
        sight.processes.push(running);
    }
    Ok(sights
        .into_iter()
        .flat_map(|((root, id), sight)| judge(&root, id, &sight))
        .collect())
}

/// What a sight means: pure.
fn judge(root: &Path, vm: VmId, sight: &Sight) -> Vec<Orphan> {
    let (name, known) = match &sight.manifest {
        Some(Ok(manifest)) => (
            Some(manifest.definition.name.to_string()),
            Some((manifest.pid, manifest.start_ticks)).filter(|_| !sight.other_boot),
        ),
        _ => (None, None),
    };
    let orphan = |kind, pid, why: &str| Orphan {
        vm,
        name: name.clone(),
        root: root.to_owned(),
        pid,
        kind,
        why: why.to_owned(),
    };
    if let Some(Err(why)) = &sight.manifest {
        let pid = sight.processes.first().map(|running| running.pid);
        return vec![orphan(OrphanKind::Unreadable, pid, why)];
    }
    let mut orphans = Vec::new();
    let mut lives = false;
    for running in &sight.processes {
        if known == Some((running.pid, running.start_ticks)) {
            lives = true;
            if !sight.served {
                let why = "it runs, and no daemon has its run directory: start that daemon again, or adopt it by hand";
                orphans.push(orphan(OrphanKind::Unwatched, Some(running.pid), why));
            }
        } else if sight.served && sight.starting {
            // A start that goes on: its manifest is written when its monitor has answered.
        } else {
            let why = "a process of QEMU that its run directory does not know: its start was never finished, or its directory is gone";
            orphans.push(orphan(OrphanKind::Stray, Some(running.pid), why));
        }
    }
    let says_it_runs = sight.manifest.is_some() || sight.starting;
    if says_it_runs && !lives && !sight.served && orphans.is_empty() {
        let why = "nothing of it runs any more, and nobody has written down how it ended";
        orphans.push(orphan(OrphanKind::Dead, None, why));
    }
    orphans
}

/// Processes that were started as ours: by their command line, with the run directory and the VM that it names.
fn processes() -> Result<Vec<(PathBuf, VmId, Running)>> {
    let entries = fs::read_dir("/proc").map_err(Error::io("list", "/proc"))?;
    let mut found = Vec::new();
    for entry in entries.filter_map(io::Result::ok) {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Some((named, id)) = process::cmdline(pid).ok().and_then(|args| names(&args)) else {
            continue;
        };
        let root = stands(pid, id).unwrap_or(named);
        // It may have ended in between.
        if let Some(start_ticks) = process::started(pid) {
            found.push((root, id, Running { pid, start_ticks }));
        }
    }
    Ok(found)
}

/// The run directory in which the files of a process lie by now: it may have been moved since its command line was written.
fn stands(pid: u32, vm: VmId) -> Option<PathBuf> {
    let name = vm.to_string();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut files = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    files.find_map(|file| {
        let dir = file.parent()?;
        let of_vm = dir.file_name()?.to_str()? == name && file.file_name()?.to_str()?.ends_with(".log");
        of_vm.then(|| dir.parent().map(Path::to_owned))?
    })
}

/// The run directory and the VM that a command line of ours names.
fn names(args: &[Vec<u8>]) -> Option<(PathBuf, VmId)> {
    let texts: Vec<&str> = args
        .iter()
        .filter_map(|arg| std::str::from_utf8(arg).ok())
        .collect();
    let id: VmId = texts
        .windows(2)
        .find(|pair| pair[0] == "-uuid")
        .and_then(|pair| pair[1].parse().ok())?;
    let log = texts
        .iter()
        .find_map(|arg| arg.split_once(",logfile=").map(|(_, rest)| rest))?;
    // A comma within the path is doubled (QEMU's option syntax).
    let log = log.replace(",,", "\0");
    let log = log.split(',').next()?.replace('\0', ",");
    let dir = Path::new(&log).parent()?;
    let of_vm = dir.file_name()?.to_str()? == id.to_string();
    Some((dir.parent()?.to_owned(), id)).filter(|_| of_vm)
}

fn listed(root: &Path) -> Result<Vec<VmId>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", root))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// Whether a daemon has a run directory: whether anybody holds its lock, by the kernel's own list (proc_locks(5)).
fn is_served(root: &Path) -> bool {
    let Ok(meta) = fs::metadata(root.join(disk::LOCK)) else {
        return false;
    };
    let device = meta.dev();
    let wanted = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device),
        meta.ino()
    );
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks
        .lines()
        .filter(|line| line.contains("FLOCK"))
        .any(|line| line.split_ascii_whitespace().any(|word| word == wanted))
}

/// Clears away what a dead one left. With `asked`, because somebody named it, also ends one that lives.
///
/// # Errors
/// [`Error::InUse`]: its daemon has come back. [`Error::Refused`]: it lives, and nobody asked for its end; or it is no orphan any
/// more. [`Error::Timeout`]: the kernel does not end it.
pub async fn clear(orphan: &Orphan, asked: bool) -> Result<()> {
    let refused = |why: &str| {
        Err(Error::Refused(vbm_core::Error::new(
            ErrorKind::Conflict,
            format!("VM {} of {} is left alone", orphan.vm, orphan.root.display()),
            why,
            "look again with `vbm orphans list`; name it to end it: `vbm orphans gc --vm ID`",
        )))
    };
    let dir = VmDir::new(&orphan.root, orphan.vm);
    let owner = match dir.path().exists().then(|| disk::own(&orphan.root)).transpose() {
        // A daemon lives there, beside a process that it does not know.
        Err(Error::InUse { .. }) if orphan.kind == OrphanKind::Stray => None,
        owner => owner?,
    };
    // Looked at again now that no daemon can come; our own lock is none.
    let ours = owner.is_some();
    let served = |root: &Path| !(ours && root == orphan.root) && is_served(root);
    let mine = |other: &Orphan| (other.vm, &other.root, other.kind) == (orphan.vm, &orphan.root, orphan.kind);
    let found = find_where(std::slice::from_ref(&orphan.root), served)?;
    let Some(now) = found.into_iter().find(mine) else {
        return refused("it is no orphan any more");
    };
    if now.kind != OrphanKind::Dead && !asked {
        return refused(
            "it may be needed: what lives, or cannot be understood, is ended only when it is named",
        );
    }
    if let Some(pid) = now.pid {
        end(pid, orphan.vm).await?;
    }
    if ours && now.kind != OrphanKind::Stray {
        let crashed = Ended {
            power: PowerState::Crashed(CrashCause::Hypervisor),
            at: crate::SystemClock.now(),
        };
        let ended = Some(&crashed).filter(|_| now.kind == OrphanKind::Dead);
        dir.end_run(ended)?;
    }
    drop(owner);
    Ok(())
}

/// Ends a process that is surely this VM's.
async fn end(pid: u32, vm: VmId) -> Result<()> {
    let Ok(process) = Proc::open(pid) else {
        return Ok(());
    };
    if process.runs(vm) {
        process.kill();
        let over = timeout(KILL_DEADLINE, process.exited()).await;
        over.map_err(|_| Error::Timeout {
            command: "the end of the process".into(),
            after: KILL_DEADLINE,
        })?;
    }
    Ok(())
}

/// Moves a VM from one run directory to another, and from one state directory to another, so that whoever has those adopts it. It goes on
/// running: its sockets and logs go with it. Neither run directory may be in use; what was moved halfway is moved the rest of the way
/// by a second call.
///
/// # Errors
/// [`Error::InUse`]; [`Error::NoSuchVm`]: it is not there; [`Error::Refused`]: there is one of that id at the destination.
/// [`Error::Io`]: the directories are on different file systems.
pub fn move_run(from: (&Path, &Path), to: (&Path, &Path), vm: VmId) -> Result<()> {
    let _from = disk::own(from.0)?;
    let _to = disk::own(to.0)?;
    rename(from, to, vm)
}

fn rename(from: (&Path, &Path), to: (&Path, &Path), vm: VmId) -> Result<()> {
    let name = vm.to_string();
    let mut pairs = vec![(from.1.join(&name), to.1.join(&name))];
    if (from.0, to.0) != (from.1, to.1) {
        // What says that it runs goes last: until then it is the old place's.
        pairs.push((from.0.join(&name), to.0.join(&name)));
    }
    if !pairs.iter().any(|(from, _)| from.exists()) {
        return Err(Error::NoSuchVm(vm));
    }
    for (from, to) in &pairs {
        if from.exists() && to.exists() {
            return Err(Error::Refused(vbm_core::Error::new(
                ErrorKind::AlreadyExists,
                format!("VM {vm} cannot be taken over"),
                format!("{} is there already", to.display()),
                "forget that one first, with `vbm delete`",
            )));
        }
    }
    for (from, to) in pairs.iter().filter(|(from, _)| from.exists()) {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        fs::rename(from, to).map_err(Error::io("move", from))?;
    }
    Ok(())
}

impl QemuDriver {
    /// Adopts a VM of another run directory, whose daemon never comes back: its run directory and what is kept of it become ours, and it
    /// goes on running. Its disks stay where they are.
    ///
    /// # Errors
    /// [`Error::InUse`]: that daemon lives. [`Error::NoSuchVm`]: it is not there. [`Error::Refused`]: a VM of that id is known here.
    /// [`Error::Io`]: the directories are on different file systems.
    pub async fn adopt_from(&self, root: &Path, state: Option<&Path>, vm: VmId) -> Result<Adopted> {
        self.shared.open()?;
        let _owner = disk::own(root)?;
        if self.shared.lock().contains_key(&vm) {
            return Err(Error::Refused(vbm_core::Error::new(
                ErrorKind::AlreadyExists,
                format!("VM {vm} cannot be adopted"),
                "a VM of that id is known here",
                "forget that one first, with `vbm delete`",
            )));
        }
        let from = (root, state.unwrap_or(root));
        rename(from, (&self.shared.root, &self.shared.state), vm)?;
        adopt::meet_new(&self.shared, vm)?;
        let adopted = self.adopt().await?;
        adopted
            .into_iter()
            .find(|adopted| adopted.id == vm)
            .ok_or(Error::NoSuchVm(vm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> VmId {
        VmId::from_uuid(uuid::Uuid::from_u128(n))
    }

    fn args(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|arg| arg.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_command_line_of_ours_names_its_vm_and_its_run_directory() {
        let vm = id(5).to_string();
        let log = |root: &str| format!("socket,id=tty,fd=7,logfile={root}/{vm}/serial.log,logappend=on");
        let found = names(&args(&["qemu", "-uuid", &vm, "-chardev", &log("/run/vbm/x")]));
        assert_eq!(found, Some(("/run/vbm/x".into(), id(5))));
        let found = names(&args(&["qemu", "-uuid", &vm, "-chardev", &log("/run/a,,b")]));
        assert_eq!(found, Some(("/run/a,b".into(), id(5))));
        for strange in [
            args(&["qemu", "-uuid", &vm]),
            args(&["qemu", "-uuid", "7", "-chardev", &log("/run")]),
            args(&["qemu", "-uuid", &id(6).to_string(), "-chardev", &log("/run")]),
            args(&["grep", &log("/run")]),
            args(&[]),
        ] {
            assert_eq!(names(&strange), None);
        }
    }

    fn manifest(pid: u32) -> Manifest {
        let definition = serde_json::json!({
            "id": id(1), "name": "web-1", "vcpus": 1, "memory_mib": 32, "root_disk": "/x", "boot": { "from": "disk" }, "nics": []
        });
        serde_json::from_value(serde_json::json!({
            "format": 1, "definition": definition, "pid": pid, "start_ticks": 9, "boot_id": "b", "started_at": vbm_core::Timestamp::default(),
            "accelerator": { "name": "tcg", "reason": "" }, "qemu_version": "", "argv": []
        }))
        .unwrap()
    }

    #[test]
    fn what_is_an_orphan_and_what_is_none() {
        let process = |pid| Running { pid, start_ticks: 9 };
        let sight = |processes: &[u32], starting, manifest, served| Sight {
            processes: processes.iter().map(|pid| process(*pid)).collect(),
            starting,
            manifest,
            served,
            other_boot: false,
        };
        let sound = || Some(Ok(manifest(7)));
        let other_boot = Sight {
            other_boot: true,
            ..sight(&[], true, sound(), false)
        };
        for (sight, kinds) in [
            (sight(&[7], true, sound(), true), vec![]),
            (sight(&[7], true, sound(), false), vec![OrphanKind::Unwatched]),
            (sight(&[8], true, None, true), vec![]),
            (sight(&[8], true, None, false), vec![OrphanKind::Stray]),
            (sight(&[8], false, None, true), vec![OrphanKind::Stray]),
            (
                sight(&[7, 8], false, sound(), false),
                vec![OrphanKind::Unwatched, OrphanKind::Stray],
            ),
            (sight(&[], true, sound(), true), vec![]),
            (sight(&[], true, sound(), false), vec![OrphanKind::Dead]),
            (sight(&[], true, None, false), vec![OrphanKind::Dead]),
            (sight(&[], false, None, false), vec![]),
            (sight(&[8], true, sound(), false), vec![OrphanKind::Stray]),
            (other_boot, vec![OrphanKind::Dead]),
            (
                sight(&[8], true, Some(Err("bad".into())), true),
                vec![OrphanKind::Unreadable],
            ),
        ] {
            let found = judge(Path::new("/run/x"), id(1), &sight);
            let found: Vec<_> = found.iter().map(|orphan| orphan.kind).collect();
            assert_eq!(found, kinds, "{sight:?}");
        }
    }

    #[test]
    fn a_run_directory_is_served_as_long_as_its_lock_is_held() {
        let root = tempfile::tempdir().unwrap();
        assert!(!is_served(root.path()));
        let owner = disk::own(root.path()).unwrap();
        assert!(is_served(root.path()));
        drop(owner);
        assert!(!is_served(root.path()));
    }

    #[tokio::test]
    async fn what_is_dead_is_cleared_without_asking_and_what_cannot_be_read_only_by_name() {
        let root = tempfile::tempdir().unwrap();
        let put = |n: u128, name: &str, text: &str| {
            let dir = VmDir::new(root.path(), id(n));
            dir.create().unwrap();
            fs::write(dir.file(name), text).unwrap();
        };
        put(1, "manifest", &serde_json::to_string(&manifest(7)).unwrap());
        put(2, "manifest", "{");
        put(3, "ended", "{}");
        let roots = [root.path().to_owned()];
        let all = || -> Vec<_> {
            let found = find(&roots).unwrap().into_iter();
            // Other processes of this machine are not this test's.
            found.filter(|orphan| orphan.root == roots[0]).collect()
        };
        let found = all();
        let kinds: Vec<_> = found.iter().map(|orphan| (orphan.vm, orphan.kind)).collect();
        assert_eq!(
            kinds,
            [(id(1), OrphanKind::Dead), (id(2), OrphanKind::Unreadable)]
        );
        clear(&found[0], false).await.unwrap();
        let refused = clear(&found[1], false).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert_eq!(all().len(), 1);
        clear(&found[1], true).await.unwrap();
        assert_eq!(all(), []);
        let gone = clear(&found[0], true).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::Conflict, "it is no orphan any more");
    }

    #[test]
    fn a_run_moves_whole_and_only_where_nobody_is() {
        let place = tempfile::tempdir().unwrap();
        let dir = |name: &str| place.path().join(name);
        let (from, to) = ((dir("a"), dir("as")), (dir("b"), dir("bs")));
        let run = |vm| {
            let (from, to) = ((&*from.0, &*from.1), (&*to.0, &*to.1));
            move_run(from, to, vm)
        };
        assert!(matches!(run(id(1)).unwrap_err(), Error::NoSuchVm(_)));
        for part in ["a", "as"] {
            fs::create_dir_all(dir(part).join(id(1).to_string())).unwrap();
        }
        let owner = disk::own(&to.0).unwrap();
        assert!(matches!(run(id(1)).unwrap_err(), Error::InUse { .. }));
        drop(owner);
        run(id(1)).unwrap();
        assert!(dir("b").join(id(1).to_string()).exists() && dir("bs").join(id(1).to_string()).exists());
        fs::create_dir_all(dir("a").join(id(1).to_string())).unwrap();
        assert_eq!(run(id(1)).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
}
