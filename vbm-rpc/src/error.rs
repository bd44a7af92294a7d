//! What can go wrong with the bus itself, as against with one call ([`Fate`](crate::Fate)).

use vbm_core::{Error, ErrorKind};

/// The bus cannot be attached to, or is no longer there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The configuration makes no sense.
    #[error("'{given}' is not a Redis address: {why}")]
    InvalidConfig {
        /// What was given, without its password.
        given: String,
        /// What is wrong with it.
        why: String,
    },
    /// The member breaks a limit.
    #[error("this member cannot join the bus: {why}")]
    InvalidMember {
        /// Which one.
        why: String,
    },
    /// The server behind the transport does not answer.
    #[error("cannot reach {server}: {why}")]
    Unreachable {
        /// Which server, without its password.
        server: String,
        /// How it failed.
        why: String,
    },
    /// The server behind the transport cannot be used.
    #[error("{server} cannot carry the bus: {why}")]
    Unsuitable {
        /// Which server, without its password.
        server: String,
        /// What it lacks.
        why: String,
        /// What to do.
        fix: String,
    },
    /// Security is on, and nobody would believe this member.
    #[error("{path} is not trusted on the bus: {why}")]
    Untrusted {
        /// Its path.
        path: String,
        /// What is missing.
        why: String,
    },
    /// Another process attached with the same path after this one.
    #[error("{path} is served by another process now (boot {by})")]
    Displaced {
        /// The path both claim.
        path: String,
        /// The boot id of the other.
        by: String,
    },
    /// The bus was shut down.
    #[error("the bus is shut down")]
    Closed,
}

impl BusError {
    /// The sort of failure.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidConfig { .. } | Self::InvalidMember { .. } => ErrorKind::InvalidInput,
            Self::Unreachable { .. } => ErrorKind::Unavailable,
            Self::Unsuitable { .. } => ErrorKind::Unsupported,
            Self::Untrusted { .. } => ErrorKind::PermissionDenied,
            Self::Displaced { .. } => ErrorKind::Conflict,
            Self::Closed => ErrorKind::Cancelled,
        }
    }

    /// Whether trying again later may help.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

impl From<BusError> for Error {
    fn from(error: BusError) -> Self {
        let kind = error.kind();
        let what = error.to_string();
        match error {
            BusError::InvalidConfig { given, why } => Self::new(
                kind,
                format!("'{given}' is not a Redis address"),
                why,
                "write it as redis://[user:password@]host[:port][/db], redis+unix:///path/to/socket, \
                 redis+sentinel://host:port,host:port/master-name or redis+cluster://host:port,host:port; with \
                 rediss over TLS",
            ),
            BusError::InvalidMember { why } => Self::new(
                kind,
                "this process cannot join the bus",
                why,
                "give it a boot id of letters and digits and fewer services",
            ),
            BusError::Unreachable { server, why } => Self::new(
                kind,
                format!("cannot reach {server}"),
                why,
                "start Redis there (`redis-server`), or give the right address with --redis URL",
            ),
            BusError::Unsuitable { server, why, fix } => {
                Self::new(kind, format!("{server} cannot carry the bus"), why, fix)
            }
            BusError::Untrusted { path, why } => Self::new(
                kind,
                format!("{path} is not trusted on the bus"),
                why,
                "add the line that `vbm bus key show` prints to the trust list of every node",
            ),
            BusError::Displaced { .. } => Self::new(
                kind,
                what,
                "two processes were started with one node path; the one that came last is reached",
                "stop one of them, or give it a path of its own",
            ),
            BusError::Closed => Self::new(
                kind,
                what,
                "this process is ending, or its bus was closed",
                "start the process again",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_redis_reads_as_what_why_and_what_to_do() {
        let error = Error::from(BusError::Unreachable {
            server: "redis at localhost:1".into(),
            why: "connection refused".into(),
        });
        assert_eq!(error.to_string().lines().count(), 3);
        assert!(error.to_string().contains("localhost:1") && error.fix().contains("redis-server"));
    }
}
