//! What can go wrong here, and what a newcomer is told about it.

use std::{fmt, io, net::Ipv4Addr, path::PathBuf, time::Duration};
use vbm_core::ErrorKind;

/// The result of this crate.
pub type Result<T, E = NetError> = std::result::Result<T, E>;

/// A failure of a network backend. Converts into [`vbm_core::Error`], which says what, why and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// What is wanted contradicts itself.
    #[error("what is wanted of the network makes no sense")]
    Invalid(#[source] vbm_core::Error),
    /// A network or port is not on this host.
    #[error("there is no {noun} '{name}' on this host")]
    NotHere {
        /// `network` or `port`.
        noun: &'static str,
        /// Its id.
        name: String,
    },
    /// The state of the host does not allow it now.
    #[error("{what}")]
    Conflict {
        /// What was refused.
        what: String,
        /// Why.
        why: String,
        /// What to do.
        fix: String,
    },
    /// A program that is needed is not installed.
    #[error("the program '{program}' is missing")]
    MissingProgram {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The process lacks the rights.
    #[error("{doing} needs root")]
    NotRoot {
        /// What was attempted.
        doing: String,
    },
    /// The host's firewall cannot be used as it is.
    #[error("the host's firewall cannot be used")]
    Firewall {
        /// Why.
        why: String,
        /// What to do.
        fix: String,
    },
    /// A facility of the kernel is missing.
    #[error("the kernel lacks {facility}")]
    MissingFacility {
        /// What is missing.
        facility: &'static str,
        /// How it showed.
        why: String,
    },
    /// A program failed.
    #[error("'{program}' failed while {doing}")]
    Command {
        /// Its name.
        program: &'static str,
        /// What it was to do.
        doing: String,
        /// What it said, shortened.
        said: String,
    },
    /// A system call or a netlink request failed.
    #[error("{doing} failed")]
    Kernel {
        /// What was attempted.
        doing: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The kernel does not hold what was written; nothing was opened.
    #[error("{what} is not in the kernel as it was written")]
    NotVerified {
        /// What was read back.
        what: String,
        /// The first difference.
        detail: String,
    },
    /// No free transit pair is left.
    #[error("no free address pair for the transit of a network is left in {pool}")]
    TransitExhausted {
        /// The pool.
        pool: String,
    },
    /// This host cannot be reached by others, as the overlay of a network needs.
    #[error("the network cannot reach other hosts by {address}")]
    NoUnderlay {
        /// The address that this host was said to have among the hosts.
        address: Ipv4Addr,
        /// Why not.
        why: String,
    },
    /// A step took too long.
    #[error("{doing} took longer than {} s", limit.as_secs())]
    TimedOut {
        /// What was attempted.
        doing: String,
        /// The limit.
        limit: Duration,
    },
    /// A record on disk cannot be read.
    #[error("the record {} cannot be read", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The backend was shut down.
    #[error("the network backend is shut down")]
    Stopped,
    /// Several failures of one teardown, which went past each.
    #[error("{}", Joined(.0))]
    Several(Vec<NetError>),
}

struct Joined<'a>(&'a [NetError]);
impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} steps failed: ", self.0.len())?;
        for (i, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl NetError {
    /// The sort of failure, in the words of the API.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(inner) => inner.kind(),
            Self::NotHere { .. } => ErrorKind::NotFound,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::MissingProgram { .. } | Self::MissingFacility { .. } => ErrorKind::MissingDependency,
            Self::NotRoot { .. } => ErrorKind::PermissionDenied,
            Self::Firewall { .. } => ErrorKind::Unsupported,
            Self::TransitExhausted { .. } => ErrorKind::Exhausted,
            Self::TimedOut { .. } => ErrorKind::DeadlineExceeded,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::NoUnderlay { .. }
            | Self::Stopped
            | Self::Kernel { .. }
            | Self::Command { .. }
            | Self::NotVerified { .. } => ErrorKind::Unavailable,
            Self::Several(inner) => inner.first().map_or(ErrorKind::Internal, Self::kind),
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Invalid(inner) => inner.inline(),
            Self::NotHere { .. } => "it was not made here, or was removed".into(),
            Self::Conflict { why, .. } | Self::Firewall { why, .. } => why.clone(),
            Self::MissingProgram { .. } => "it is not in any directory of PATH or the usual sbin ones".into(),
            Self::NoUnderlay { why, .. } | Self::MissingFacility { why, .. } | Self::Corrupt { why, .. } => {
                why.clone()
            }
            Self::NotRoot { .. } => "namespaces, bridges and firewall rules belong to root".into(),
            Self::Command { said, .. } => said.clone(),
            Self::Kernel { source, .. } => source.to_string(),
            Self::NotVerified { detail, .. } => detail.clone(),
            Self::TransitExhausted { .. } => {
                "each network with NAT takes two addresses, and all are taken or overlap the host's own"
                    .into()
            }
            Self::TimedOut { .. } => "the host is overloaded, or a program hangs".into(),
            Self::Stopped => "vbmd is going down".into(),
            Self::Several(inner) => inner
                .iter()
                .map(|e| format!("{e}: {}", e.why()))
                .collect::<Vec<_>>()
                .join("; "),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Invalid(inner) => inner.fix().to_owned(),
            Self::NotHere { .. } => "make the network first; `vbm network list` shows what exists".into(),
            Self::Conflict { fix, .. } | Self::Firewall { fix, .. } => fix.clone(),
            Self::MissingProgram { package, .. } => format!("install it: apt-get install {package}"),
            Self::MissingFacility { facility, .. } => {
                format!("load or build the kernel module for {facility}")
            }
            Self::NotRoot { .. } => "run it as root, for example with sudo".into(),
            Self::Command { .. } | Self::Kernel { .. } | Self::NotVerified { .. } | Self::TimedOut { .. } => {
                "it is tried again by itself; if it stays, look at the log and at `vbm doctor`".into()
            }
            Self::NoUnderlay { .. } => {
                "give the agent an address of this host that the other hosts reach, or bring its interface up; \
                 it is tried again by itself"
                    .into()
            }
            Self::TransitExhausted { .. } => "give a larger transit pool, or delete networks".into(),
            Self::Corrupt { path, .. } => {
                format!(
                    "remove {} if its network is gone, then run `vbm doctor --fix`",
                    path.display()
                )
            }
            Self::Stopped => "ask again when it is up".into(),
            Self::Several(inner) => inner.first().map_or_else(String::new, Self::fix),
        }
    }

    pub(crate) fn kernel(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.raw_os_error() {
            Some(code) if code == nix::errno::Errno::EPERM as i32 => Self::NotRoot { doing },
            _ => Self::Kernel { doing, source },
        }
    }

    /// One result out of many failures: none is fine, one is itself.
    pub(crate) fn join(mut errors: Vec<Self>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

impl From<NetError> for vbm_core::Error {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Invalid(inner) => inner,
            other => Self::new(other.kind(), other.to_string(), other.why(), other.fix()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_reads_as_three_lines_none_of_them_empty() {
        let all = [
            NetError::NotHere {
                noun: "network",
                name: "a".into(),
            },
            NetError::MissingProgram {
                program: "nft",
                package: "nftables",
            },
            NetError::NotRoot {
                doing: "making a namespace".into(),
            },
            NetError::Stopped,
            NetError::NoUnderlay {
                address: Ipv4Addr::LOCALHOST,
                why: "it is nowhere".into(),
            },
            NetError::TransitExhausted {
                pool: "10.0.0.0/31".into(),
            },
            NetError::Several(vec![NetError::Stopped, NetError::Stopped]),
            NetError::TimedOut {
                doing: "x".into(),
                limit: Duration::from_secs(1),
            },
        ];
        for error in all {
            let error = vbm_core::Error::from(error);
            assert_eq!(error.to_string().lines().count(), 3, "{error}");
            assert!(!error.what().is_empty() && !error.why().is_empty() && !error.fix().is_empty());
        }
    }

    #[test]
    fn a_refusal_by_the_kernel_for_lack_of_rights_says_root() {
        let error = NetError::kernel("making a tap", io::Error::from_raw_os_error(1));
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
}
