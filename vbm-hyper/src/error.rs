//! What can fail when a VM is run, and what to do about it.
//!
//! Inside the crate an [`Error`] keeps its source; at a border it becomes [`vbm_core::Error`], three lines that a
//! newcomer understands: what, why, what to do.

use std::{io, path::PathBuf, time::Duration};
use vbm_core::{Digest, DriverKind, ErrorKind, Outcome, SnapshotId, VmId};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a VM, a disk or an image could not be handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver knows no such VM.
    #[error("there is no VM {0} on this host")]
    NoSuchVm(VmId),
    /// The VM has no such snapshot.
    #[error("VM {vm} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The VM.
        vm: VmId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The power state does not allow it; the core's table says which states do.
    #[error("{}", .0.inline())]
    Refused(vbm_core::Error),
    /// The VM's actor does something else at the moment.
    #[error("VM {vm} is busy: {job}")]
    Busy {
        /// The VM.
        vm: VmId,
        /// What it is busy with.
        job: &'static str,
    },
    /// Who asked for it called it off.
    #[error("{what} was called off")]
    CalledOff {
        /// What was being done.
        what: &'static str,
    },
    /// The time that it was given is over.
    #[error("{what} was not done in time")]
    OutOfTime {
        /// What was being done.
        what: &'static str,
    },
    /// A force-off ended the job.
    #[error("{job} of VM {vm} was ended by a force-off")]
    Preempted {
        /// The VM.
        vm: VmId,
        /// The job that was ended.
        job: &'static str,
    },
    /// What was asked makes no sense.
    #[error("{what}: {why}")]
    Invalid {
        /// What is not valid.
        what: String,
        /// Why.
        why: String,
        /// What would be.
        fix: String,
    },
    /// The driver cannot do it.
    #[error("the {driver} driver cannot {what}: {why}")]
    Unsupported {
        /// The driver.
        driver: DriverKind,
        /// What it cannot do.
        what: String,
        /// Why.
        why: String,
    },
    /// A program is not installed.
    #[error("the program {program} is not installed")]
    MissingProgram {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The hypervisor's process ended before it could be talked to.
    #[error("the hypervisor did not start: {why}")]
    StartFailed {
        /// The last lines of its log, or what went wrong.
        why: String,
    },
    /// The hypervisor refused a command.
    #[error("the hypervisor refused {command}: {why}")]
    Hypervisor {
        /// The QMP command or its like.
        command: String,
        /// Its words.
        why: String,
    },
    /// The guest did not let go of a device: it said no.
    #[error("the guest does not let go of {what}")]
    GuestRefused {
        /// The device.
        what: String,
        /// What is known of it.
        why: String,
    },
    /// The guest said nothing when it was asked to let go of a device. It still may.
    #[error("the guest did not let go of {what} within {after:?}")]
    GuestSilent {
        /// The device.
        what: String,
        /// How long we waited.
        after: Duration,
    },
    /// The hypervisor did not answer in time. The command may still take effect.
    #[error("the hypervisor did not answer {command} within {after:?}")]
    Timeout {
        /// What it was asked.
        command: String,
        /// How long we waited.
        after: Duration,
    },
    /// The connection to the hypervisor ended.
    #[error("the connection to the hypervisor ended during {command}")]
    Disconnected {
        /// What it was asked.
        command: String,
    },
    /// Another process owns the directory.
    #[error("{dir} is in use by another process")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A file or stream could not be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A stream that the caller gave could not be read.
    #[error("the content to import could not be read")]
    Source(#[source] io::Error),
    /// There is no room left.
    #[error("the disk is full: cannot {what} {path}")]
    DiskFull {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The content has another digest than the one that was promised.
    #[error("the content has SHA-256 {found}, expected was {expected}")]
    WrongDigest {
        /// The promised one.
        expected: Digest,
        /// The one it has.
        found: Digest,
    },
    /// The content is not a disk that may be used.
    #[error("this is not a usable {format} disk: {why}")]
    BadDisk {
        /// The format it should have.
        format: &'static str,
        /// Why it may not be used.
        why: String,
    },
    /// No such image content.
    #[error("there is no image with SHA-256 {0} on this host")]
    NoSuchImage(Digest),
    /// The image is the base of disks.
    #[error("image {digest} is the base of {users} disks")]
    ImageInUse {
        /// The image.
        digest: Digest,
        /// How many hold it.
        users: usize,
    },
    /// A volume of that id exists already.
    #[error("volume {0} exists already")]
    VolumeExists(vbm_core::VolumeId),
    /// There is no such volume in the pool.
    #[error("there is no volume {0} in this pool")]
    NoSuchVolume(vbm_core::VolumeId),
    /// Somebody uses the disk.
    #[error("{path} is in use by {holder}")]
    DiskInUse {
        /// The disk.
        path: PathBuf,
        /// Who has it: a VM, a process, or that it cannot be told.
        holder: String,
    },
    /// The disk would take more than its directory may.
    #[error("{wanted_bytes} more bytes are over the quota of {dir}")]
    OverQuota {
        /// The directory.
        dir: PathBuf,
        /// What was asked for.
        wanted_bytes: u64,
        /// What is taken and promised.
        used_bytes: u64,
        /// What may be taken.
        quota_bytes: u64,
    },
    /// The file system has not enough room left for it.
    #[error("{dir} has no room for {needed_bytes} bytes")]
    NoRoom {
        /// The directory.
        dir: PathBuf,
        /// What would be written.
        needed_bytes: u64,
        /// What is free.
        free_bytes: u64,
        /// What must stay free.
        reserve_bytes: u64,
    },
    /// A source of an image sent nothing for too long.
    #[error("{source_name} sent nothing for {after:?}")]
    Stalled {
        /// The source.
        source_name: String,
        /// How long nothing came.
        after: Duration,
        /// What had come until then, in bytes; it is kept for the next time.
        had_bytes: u64,
    },
    /// The content has another length than the one that was promised.
    #[error("the content has {found_bytes} bytes, expected were {expected_bytes}")]
    WrongLength {
        /// The promised one.
        expected_bytes: u64,
        /// The one it has.
        found_bytes: u64,
    },
    /// Stored data cannot be read.
    #[error("{path} cannot be understood: {why}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The part that was asked has ended.
    #[error("{0} has been shut down")]
    ShutDown(&'static str),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { what, path },
            _ => Self::Io { what, path, source },
        }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Invalid {
            what: what.into(),
            why: why.into(),
            fix: fix.into(),
        }
    }

    /// The sort of failure, as [`vbm_core::Error`] will tell it.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchVm(_)
            | Self::NoSuchSnapshot { .. }
            | Self::NoSuchImage(_)
            | Self::NoSuchVolume(_) => ErrorKind::NotFound,
            Self::Refused(error) => error.kind(),
            Self::GuestRefused { .. } => ErrorKind::Conflict,
            Self::GuestSilent { .. } => ErrorKind::DeadlineExceeded,
            Self::Busy { .. } | Self::InUse { .. } | Self::ImageInUse { .. } | Self::DiskInUse { .. } => {
                ErrorKind::Conflict
            }
            Self::Preempted { .. } | Self::CalledOff { .. } => ErrorKind::Cancelled,
            Self::OutOfTime { .. } => ErrorKind::DeadlineExceeded,
            Self::Invalid { .. }
            | Self::BadDisk { .. }
            | Self::WrongDigest { .. }
            | Self::WrongLength { .. } => ErrorKind::InvalidInput,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::MissingProgram { .. } => ErrorKind::MissingDependency,
            Self::Hypervisor { .. } | Self::StartFailed { .. } | Self::Io { .. } => ErrorKind::Internal,
            Self::Timeout { .. } | Self::Stalled { .. } => ErrorKind::DeadlineExceeded,
            Self::Disconnected { .. } | Self::ShutDown(_) | Self::Source(_) => ErrorKind::Unavailable,
            Self::DiskFull { .. } | Self::OverQuota { .. } | Self::NoRoom { .. } => ErrorKind::Exhausted,
            Self::VolumeExists(_) => ErrorKind::AlreadyExists,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
        }
    }

    /// Whether the effect took place.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Timeout { .. }
            | Self::GuestSilent { .. }
            | Self::Disconnected { .. }
            | Self::Preempted { .. }
            | Self::CalledOff { .. }
            | Self::OutOfTime { .. } => Outcome::Unknown,
            Self::StartFailed { .. } => Outcome::RolledBack,
            _ => Outcome::NotApplied,
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Io { source, .. } | Self::Source(source) => source.to_string(),
            Self::NoSuchVm(_) => "it was never started here, or was removed".into(),
            Self::Busy { .. } => "a VM does one thing at a time; only force-off and queries go past".into(),
            Self::CalledOff { .. } => "whoever asked for it wants it no more".into(),
            Self::OutOfTime { .. } => "the time that it was given is over".into(),
            Self::Preempted { .. } => "somebody forced the VM off while it ran".into(),
            Self::MissingProgram { program, .. } => format!("{program} was not found in the search path"),
            Self::DiskFull { path, .. } => format!("the file system of {} has no room left", path.display()),
            Self::WrongDigest { .. } => "it was damaged on its way, or is another content".into(),
            Self::NoSuchSnapshot { .. } => "it was never taken, or was deleted".into(),
            Self::NoSuchImage(_) => "it was never imported here, or was removed".into(),
            Self::ImageInUse { .. } => "a linked clone cannot be read without its base".into(),
            Self::VolumeExists(_) => "ids of volumes are never used twice".into(),
            Self::NoSuchVolume(_) => "it was never made here, or was removed".into(),
            Self::DiskInUse { .. } => "what is to be done needs a disk that nobody writes to".into(),
            Self::OverQuota {
                used_bytes,
                quota_bytes,
                ..
            } => format!("{used_bytes} of {quota_bytes} bytes are spoken for"),
            Self::NoRoom {
                free_bytes,
                reserve_bytes,
                ..
            } => format!("{free_bytes} bytes are free, and {reserve_bytes} must stay so"),
            Self::Stalled { had_bytes, .. } => {
                format!("{had_bytes} bytes had come until then; they are kept for the next time")
            }
            Self::WrongLength { .. } => "it was cut short on its way, or is another content".into(),
            Self::InUse { .. } => "two owners would fight over the same VMs".into(),
            Self::Timeout { .. } => {
                "the host is overloaded, or the hypervisor hangs; it may still obey".into()
            }
            Self::Disconnected { .. } => "the hypervisor closed its monitor, or ended".into(),
            Self::GuestSilent { .. } => {
                "no system runs in it that hears of it, or it is busy; it has the device until it lets go"
                    .into()
            }
            Self::Invalid { why, .. }
            | Self::GuestRefused { why, .. }
            | Self::Unsupported { why, .. }
            | Self::StartFailed { why }
            | Self::Hypervisor { why, .. }
            | Self::BadDisk { why, .. }
            | Self::Corrupt { why, .. } => why.clone(),
            Self::Refused(_) | Self::ShutDown(_) => "it takes no more work".into(),
        }
    }

    fn what(&self) -> String {
        match self {
            Self::Invalid { what, .. } => what.clone(),
            Self::Unsupported { driver, what, .. } => format!("the {driver} driver cannot {what}"),
            Self::StartFailed { .. } => "the hypervisor did not start".into(),
            Self::Hypervisor { command, .. } => format!("the hypervisor refused {command}"),
            Self::BadDisk { format, .. } => format!("this is not a usable {format} disk"),
            Self::Corrupt { path, .. } => format!("{} cannot be understood", path.display()),
            other => other.to_string(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Invalid { fix, .. } => fix.clone(),
            Self::NoSuchVm(_) => "list the VMs with `vbm list`".into(),
            Self::Busy { .. } => "wait until it is done, or force the VM off with `vbm stop --force`".into(),
            Self::OutOfTime { .. } => "look at the VM with `vbm info`, and give it more time".into(),
            Self::Preempted { .. } | Self::CalledOff { .. } => {
                "look at the VM with `vbm info` before trying again".into()
            }
            Self::Unsupported { .. } => "use another driver or leave it out".into(),
            Self::MissingProgram { package, .. } => {
                format!("install it with `apt-get install --no-install-recommends {package}`")
            }
            Self::StartFailed { .. } => "repair what the reason names, then start the VM again".into(),
            Self::Hypervisor { .. } => "look at qemu.log in the run directory of the VM".into(),
            Self::Timeout { .. } | Self::Disconnected { .. } => {
                "look at the VM with `vbm info`; force it off if it stays silent".into()
            }
            Self::GuestRefused { .. } => "stop what uses it in the guest (unmount it), then try again".into(),
            Self::GuestSilent { .. } => {
                "look at the VM with `vbm info`; try again when its system is up, or stop it first".into()
            }
            Self::InUse { .. } => "stop the other vbmd, or give this one a directory of its own".into(),
            Self::Io { .. } => "check that the path exists and may be read and written".into(),
            Self::Source(_) => "start the import again".into(),
            Self::DiskFull { .. } => "remove images and VMs that nobody needs, or enlarge the disk".into(),
            Self::WrongDigest { .. } => "fetch the file again and compare it with `sha256sum`".into(),
            Self::BadDisk { .. } => {
                "check it with `qemu-img check`; flatten it with `qemu-img convert -O qcow2 OLD NEW`".into()
            }
            Self::NoSuchSnapshot { .. } => "list them with `vbm snapshot list VM`".into(),
            Self::NoSuchImage(_) => "import it with `vbm image import`".into(),
            Self::ImageInUse { .. } => "delete the VMs that were made from it first".into(),
            Self::VolumeExists(_) => "remove the old volume, or choose a new id".into(),
            Self::NoSuchVolume(_) => "list them with `vbm volume list`".into(),
            Self::DiskInUse { .. } => "stop the VM, or wait until the other work is done".into(),
            Self::OverQuota { .. } => "remove disks that nobody needs, or raise the quota".into(),
            Self::NoRoom { .. } => "remove disks that nobody needs, or enlarge the file system".into(),
            Self::Stalled { .. } => "start the import again: it goes on from there".into(),
            Self::WrongLength { .. } => "fetch the file again and compare its size".into(),
            Self::Corrupt { .. } => "move the file away; `vbm doctor` tells what is lost by it".into(),
            Self::ShutDown(_) => "start vbmd again".into(),
            Self::Refused(error) => error.fix().to_owned(),
        }
    }
}

impl From<Error> for vbm_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(error) => error,
            error => {
                Self::new(error.kind(), error.what(), error.why(), error.fix()).with_outcome(error.outcome())
            }
        }
    }
}

impl From<vbm_core::Error> for Error {
    fn from(error: vbm_core::Error) -> Self {
        Self::Refused(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unanswered_command_may_have_taken_effect() {
        let error = Error::Timeout {
            command: "stop".into(),
            after: Duration::from_secs(1),
        };
        assert_eq!(vbm_core::Error::from(error).outcome(), Outcome::Unknown);
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = vbm_core::Error::from(Error::MissingProgram {
            program: "qemu-system-x86_64".into(),
            package: "qemu-system-x86",
        });
        assert_eq!(error.kind(), ErrorKind::MissingDependency);
        assert!(error.fix().contains("apt-get install") && error.fix().contains("qemu-system-x86"));
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = Error::io("write", "/x")(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.kind(), ErrorKind::Exhausted);
        let denied = Error::io("write", "/x")(io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(vbm_core::Error::from(denied).why().contains("denied"));
    }
}
