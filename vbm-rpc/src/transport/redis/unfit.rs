//! A server that is not fit to carry the bus: which way, by what redis-rs, the system or the server says.
//!
//! At the start that is an error for who connects ([`start`]), counted for the process. Later it is an outage: calls end in their
//! fates, connections are tried again, and here it is counted as bad input and said once.

use super::{
    Core,
    connect::{Commands, Down},
    start,
};
use crate::{BadCounts, BadInput, BusError, bad_input::BadInputs, transport::SendError};
use std::sync::LazyLock;

/// Why a server cannot carry the bus, and what to do.
#[derive(Debug)]
pub(super) struct Unfit {
    pub(super) what: BadInput,
    pub(super) why: String,
    pub(super) fix: &'static str,
}

/// Of servers that were refused at the start, when there is no attachment yet.
static AT_START: LazyLock<BadInputs> = LazyLock::new(BadInputs::default);

/// How often this process was refused by, or refused, a server at the start, by what was wrong with it.
pub(super) fn refused_at_start() -> BadCounts {
    AT_START.counts()
}

impl Unfit {
    /// Counts it and says it once for this server; gives what who connects is told.
    pub(super) fn at_start(self, server: &str) -> BusError {
        AT_START.note(self.what, server, format_args!("{}; {}", self.why, self.fix));
        self.into_error(server)
    }

    /// It is one of several servers behind one address.
    pub(super) fn of(mut self, host: &str) -> Self {
        if !host.is_empty() {
            self.why = format!("{host}: {}", self.why);
        }
        self
    }

    pub(super) fn into_error(self, server: &str) -> BusError {
        BusError::Unsuitable {
            server: server.to_owned(),
            why: self.why,
            fix: self.fix.to_owned(),
        }
    }
}

/// A server without memory left.
pub(super) fn full(why: &str) -> Unfit {
    Unfit {
        what: BadInput::ServerFull,
        why: format!("its memory is full: {why}"),
        fix: "raise maxmemory, or find out with `redis-cli --bigkeys` what fills it",
    }
}

/// A refusal of one command by a server that works otherwise: nothing was written.
pub(super) fn refusal(why: &str) -> SendError {
    if why.contains("OOM") {
        return SendError::Overloaded(format!("the memory of Redis is full: {why}"));
    }
    SendError::NoRoute(format!("Redis refused it: {why}"))
}

fn says(why: &str, words: &[&str]) -> bool {
    words.iter().any(|word| why.contains(word))
}

pub(super) fn wants_login(why: &str) -> bool {
    let words = [
        "NOAUTH",
        "WRONGPASS",
        "NOPERM",
        "AuthenticationFailed",
        "authentication",
    ];
    says(why, &words)
}

pub(super) fn hung_up(why: &str) -> bool {
    let words = [
        "broken pipe",
        "Broken pipe",
        "unexpected end of file",
        "reset by peer",
    ];
    says(why, &words)
}

pub(super) fn is_another_program(why: &str) -> bool {
    let words = [
        "ResponseError",
        "Response was of incompatible type",
        "Parse",
        "parse",
        "invalid response",
        "expected",
    ];
    !hung_up(why) && says(why, &words)
}

/// What is wrong with a server that carried the bus before; nothing when it is just away.
fn fault(why: &str) -> Option<BadInput> {
    if says(why, &["READONLY", "ReadOnly"]) {
        Some(BadInput::ServerReplica)
    } else if wants_login(why) {
        Some(BadInput::ServerPassword)
    } else if says(why, &["OOM", "MISCONF"]) {
        Some(BadInput::ServerFull)
    } else if is_another_program(why) {
        Some(BadInput::ServerOther)
    } else {
        None
    }
}

impl Core {
    /// The server cannot be connected to, or not be used over a connection that it had.
    #[cold]
    pub(super) fn server_failed(&self, why: &str) {
        if let Some(what) = fault(why) {
            self.inbound.bad_input(what, &self.server, why);
        }
    }

    /// The server answered a command with an error: it is Redis, whatever else is wrong with it. Whether the error says
    /// that it is not fit.
    #[cold]
    pub(super) fn server_refused(&self, why: &str) -> bool {
        let what = fault(why).filter(|what| *what != BadInput::ServerOther);
        if let Some(what) = what {
            self.inbound.bad_input(what, &self.server, why);
        }
        what.is_some()
    }

    /// The same, for an error that somebody should read: warns of it, unless that the server is not fit was said.
    #[cold]
    pub(super) fn server_refused_to(&self, what: &str, why: &str) {
        if !self.server_refused(why) {
            tracing::warn!(why, "Redis refused {what}");
        }
    }

    /// Looks whether a server that came back is as fit as it was at the start. One that is not is used all the same: who is
    /// attached already is served as well as it can be.
    pub(super) async fn look_again(&self, commands: &mut Commands) -> Result<(), Down> {
        if let Err(Unfit { what, why, fix }) = start::look_again(self, commands).await? {
            let detail = format_args!("{why}; {fix}");
            self.inbound.bad_input(what, &self.server, detail);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_told_from_one_that_is_away() {
        for (why, what) in [
            (
                "ReadOnly: You can't write against a read only replica.",
                Some(BadInput::ServerReplica),
            ),
            (
                "\"NOAUTH\": Authentication required.",
                Some(BadInput::ServerPassword),
            ),
            (
                "\"OOM\": command not allowed when used memory > 'maxmemory'.",
                Some(BadInput::ServerFull),
            ),
            (
                "\"MISCONF\": Errors writing to the AOF file: No space left",
                Some(BadInput::ServerFull),
            ),
            ("Parse Error: Could not parse", Some(BadInput::ServerOther)),
            ("Connection refused (os error 111)", None),
            ("unexpected end of file", None),
            ("BusyLoading: Redis is loading the dataset in memory", None),
            ("no connection within 3 s", None),
            ("the master has moved", None),
        ] {
            assert_eq!(fault(why), what, "{why}");
        }
    }
}
