//! Who is let in, and with what.
//!
//! ```text
//!   vbmd, `vbm web login` --> login link --once, 10 min--> session cookie --idle, absolute limit--> the API over TCP
//!   POST .../console-tokens --> console token --once, 30 s--> one WebSocket
//! ```
//!
//! All of it is in memory and kept as hashes. The unix socket needs none of it: its peers are known by their user id.

use super::{
    once::{Once, Spent},
    session::{Session, Sessions},
};
use crate::api::{ConsoleKind, ConsoleToken, LoginLink};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use vbm_core::{Error, ErrorKind, Result, Timestamp, VmId};

/// How long a login link works.
pub(super) const LOGIN_LINK_LIFETIME: Duration = Duration::from_secs(600);
/// How long a console token works.
pub(super) const CONSOLE_TOKEN_LIFETIME: Duration = Duration::from_secs(30);
/// How often what is open is looked at: a session that ran out ends it at the latest then.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What a console token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) vm: VmId,
    pub(super) kind: ConsoleKind,
}

/// Everything that lets somebody in.
#[derive(Debug)]
pub(super) struct Doors {
    /// The name of the daemon's user: in its name everything is done.
    pub(super) user: String,
    /// Where browsers are served, once they are.
    address: OnceLock<SocketAddr>,
    links: Mutex<Once<()>>,
    consoles: Mutex<Once<Grant>>,
    pub(super) sessions: Sessions,
}

impl Default for Doors {
    fn default() -> Self {
        Self {
            user: user(),
            address: OnceLock::new(),
            links: Mutex::new(Once::new(LOGIN_LINK_LIFETIME)),
            consoles: Mutex::new(Once::new(CONSOLE_TOKEN_LIFETIME)),
            sessions: Sessions::default(),
        }
    }
}

fn user() -> String {
    let uid = nix::unistd::geteuid();
    match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

impl Doors {
    /// Browsers are served here from now on.
    pub(super) fn opened_at(&self, address: SocketAddr) -> Result<()> {
        self.address
            .set(address)
            .map_err(|_| Error::internal("the web page was opened twice", "once is enough"))
    }

    /// A link for one login.
    pub(super) fn login_link(&self, now: Timestamp) -> Result<LoginLink> {
        let address = self.address.get().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "there is no web page to log in to",
                "vbmd was started without --web",
                "start it with `vbmd --web 127.0.0.1:8480`",
            )
        })?;
        let (secret, expires_at) = lock(&self.links).put((), now)?;
        let url = format!("http://{address}/login?token={}", secret.text());
        Ok(LoginLink { url, expires_at })
    }

    /// Uses a login link.
    pub(super) fn use_link(&self, secret: &str, now: Timestamp) -> Result<(), Spent> {
        lock(&self.links).take(secret, now)
    }

    /// A token for one connection to a console.
    pub(super) fn console_token(&self, vm: VmId, kind: ConsoleKind, now: Timestamp) -> Result<ConsoleToken> {
        let (secret, expires_at) = lock(&self.consoles).put(Grant { vm, kind }, now)?;
        Ok(ConsoleToken {
            token: secret.text().to_owned(),
            url: format!("/v1/console?token={}", secret.text()),
            expires_at,
            vm,
            kind,
        })
    }

    /// Uses a console token.
    pub(super) fn use_console_token(&self, secret: &str, now: Timestamp) -> Result<Grant> {
        lock(&self.consoles).take(secret, now).map_err(|spent| {
            Error::new(
                ErrorKind::PermissionDenied,
                "the console's token is refused",
                spent.why(),
                "open the console again",
            )
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who came over TCP with a session. Requests that carry none came through the unix socket or from inside the process.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    pub(super) session: Session,
    pub(super) doors: Arc<Doors>,
    pub(super) controller: crate::controller::Controller,
}

impl Visitor {
    /// The visitor is doing something.
    pub(super) fn is_here(&self) {
        self.doors.sessions.touch(&self.session, self.controller.now());
    }

    /// Waits until the session is over.
    ///
    /// # Cancel safety
    /// Only waits.
    pub(super) async fn leaves(&self) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = self.session.ended.cancelled() => return,
                _ = look.tick() => self.doors.sessions.sweep(self.controller.now()),
            }
        }
    }
}
