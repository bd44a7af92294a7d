//! When a server is woken, and what it reads then.
//!
//! A frame wakes the server at once, as long as few come. A wake-up costs more than what is done about a frame (two switches of tasks, an
//! event, the caches), and what must be kept costs a sync each time. So a link that is [busy](BUSY) is served in beats: the socket is not
//! listened to for a while, then all that came is read in one go. The while is such that [some](BEAT_FRAMES) frames come in it, and
//! never more than [`REST_MAX`]: nobody waits for longer, and nobody is sent more at once than its own queue holds.
//!
//! ```text
//!            frame                 all read, few came
//!   listens ------> reads ---------------------------------> listens
//!                   ^   |  all read, busy: not listened to
//!                   |   +--------> rests --------+
//!                   +----------------------------+
//!                   ^   |  more is there: others first
//!                   +---+
//! ```

use crate::dhcp::{Rate, rate::Bucket, socket::FRAME_MAX_BYTES};
use nix::sys::socket::{MsgFlags, recv, send};
use std::{
    io,
    ops::RangeInclusive,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};
use vbm_core::Timestamp;

/// The most frames that are read before others get their turn: commits, questions, the end.
const BATCH_MAX_FRAMES: usize = 64;
/// Frames above which a link is busy: a boot of some machines at once is not, a farm that starts is.
const BUSY: Rate = Rate {
    burst: 64,
    per_second: 100,
};
/// How long the frames of a busy link wait at most, and at least. Clients ask again after seconds (RFC 2131 section 4.1, RFC 8415
/// section 15).
const REST_MAX: Duration = Duration::from_millis(20);
const REST_MIN: Duration = Duration::from_millis(1);
/// The frames of a beat: with more the rests become shorter, with fewer longer.
const BEAT_FRAMES: RangeInclusive<usize> = 8..=20;

/// Says of frames whether they are too many to be woken by each.
#[derive(Debug)]
struct Pace {
    bucket: Option<Bucket>,
    rest: Duration,
}

impl Pace {
    const fn new() -> Self {
        Self {
            bucket: None,
            rest: REST_MAX,
        }
    }

    /// So many were read now. How long to rest, if the link is busy.
    fn heard(&mut self, frames: usize, now: Timestamp) -> Option<Duration> {
        let bucket = self.bucket.get_or_insert(Bucket::full(BUSY, now));
        let busy = (0..frames).fold(false, |busy, _| !bucket.take(BUSY, now) || busy);
        if frames > *BEAT_FRAMES.end() {
            self.rest = (self.rest / 2).max(REST_MIN);
        } else if frames < *BEAT_FRAMES.start() {
            self.rest = (self.rest * 2).min(REST_MAX);
        }
        busy.then_some(self.rest)
    }
}

/// What comes next.
enum Next {
    /// A frame, whenever it comes.
    Listen(AsyncFd<Arc<OwnedFd>>),
    /// What came meanwhile, then.
    Rest(Instant),
    /// What is there already.
    GoOn,
}

/// The side of a packet socket that hears.
pub(crate) struct Ear {
    socket: Arc<OwnedFd>,
    buffer: Vec<u8>,
    pace: Pace,
    next: Next,
}

/// The side that speaks.
#[derive(Clone)]
pub(crate) struct Voice(Arc<OwnedFd>);

/// The two sides of a socket that does not block.
pub(crate) fn open(socket: OwnedFd) -> io::Result<(Ear, Voice)> {
    let socket = Arc::new(socket);
    let voice = Voice(Arc::clone(&socket));
    let ear = Ear {
        next: listen(&socket)?,
        socket,
        buffer: vec![0; FRAME_MAX_BYTES],
        pace: Pace::new(),
    };
    Ok((ear, voice))
}

#[expect(
    unsafe_code,
    reason = "registering wants a promise that the descriptor stays open"
)]
fn listen(socket: &Arc<OwnedFd>) -> io::Result<Next> {
    // SAFETY: an OwnedFd is open until it is dropped and always names the same descriptor; the AsyncFd owns a share of it.
    let listening = unsafe { AsyncFd::register_with_interest(Arc::clone(socket), Interest::READABLE) }?;
    Ok(Next::Listen(listening))
}

impl Ear {
    /// Waits until it is time to read.
    ///
    /// # Errors
    /// The runtime is ending.
    ///
    /// # Cancel safety
    /// A frame not read stays in the socket, and a rest that has begun goes on.
    pub(crate) async fn ready(&mut self) -> io::Result<()> {
        match &self.next {
            Next::Listen(socket) => socket.readable().await?.clear_ready(),
            Next::Rest(until) => sleep_until(*until).await,
            Next::GoOn => tokio::task::yield_now().await,
        }
        Ok(())
    }

    /// Reads what is there, up to a batch. Must be called when it is time, before the next time is waited for.
    ///
    /// # Errors
    /// The socket is broken.
    pub(crate) fn read(&mut self, now: Timestamp, mut heard: impl FnMut(&[u8])) -> io::Result<()> {
        let begun = Instant::now();
        let (mut frames, mut all) = (0, false);
        for _ in 0..BATCH_MAX_FRAMES {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    frames += 1;
                    heard(self.buffer.get(..length).unwrap_or_default());
                }
                Err(nix::Error::EAGAIN) => {
                    all = true;
                    break;
                }
                // The bridge went down and comes up again: go on.
                Err(nix::Error::EINTR | nix::Error::ENETDOWN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let rest = self.pace.heard(frames, now);
        self.next = match (rest, &self.next) {
            _ if !all => Next::GoOn,
            (Some(rest), _) => Next::Rest(begun + rest),
            // It is listened to already, and all was read after it was said that there is something.
            (None, Next::Listen(_)) => return Ok(()),
            (None, Next::Rest(_) | Next::GoOn) => listen(&self.socket)?,
        };
        Ok(())
    }
}

impl Voice {
    /// Sends a frame. A full queue loses it; who waits for it asks again.
    pub(crate) fn say(&self, frame: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::time::SystemTime;

    fn now() -> Timestamp {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap())
    }

    /// What came until nothing comes any more for some beats, and in how many readings.
    async fn heard(ear: &mut Ear) -> (Vec<Vec<u8>>, usize) {
        let (mut frames, mut readings) = (Vec::new(), 0);
        while tokio::time::timeout(10 * REST_MAX, ear.ready()).await.is_ok() {
            readings += 1;
            ear.read(now(), |frame| frames.push(frame.to_vec())).unwrap();
        }
        (frames, readings)
    }

    fn pair() -> (Ear, Voice, OwnedFd) {
        let (here, there) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let (ear, voice) = open(here).unwrap();
        (ear, voice, there)
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(0).plus(Duration::from_millis(ms))
    }

    #[test]
    fn a_link_is_busy_while_more_come_than_it_says() {
        let mut pace = Pace::new();
        let mut busy = |frames, ms| pace.heard(frames, at(ms)).is_some();
        assert!((0..64).all(|_| !busy(1, 0)), "a burst");
        assert!(busy(1, 1));
        assert!((1..20).all(|n| busy(3, 20 * n)), "150 a second");
        assert!(!busy(0, 400), "nothing came");
        assert!((1..50).all(|n| !busy(1, 400 + 20 * n)), "50 a second");
    }

    #[test]
    fn the_more_come_the_shorter_are_the_rests() {
        for (frames_a_second, shortest, longest) in [(400, 20, 20), (4_000, 2, 5), (100_000, 1, 1)] {
            let mut pace = Pace::new();
            let (mut now, mut rest) = (0, REST_MAX);
            for _ in 0..50 {
                let ms = u64::try_from(rest.as_millis()).unwrap();
                now += ms;
                let frames = usize::try_from(frames_a_second * ms / 1_000).unwrap();
                rest = pace.heard(frames, at(now)).unwrap_or(rest);
            }
            let bounds = Duration::from_millis(shortest)..=Duration::from_millis(longest);
            assert!(bounds.contains(&rest), "{frames_a_second}: {rest:?}");
        }
    }

    #[tokio::test]
    async fn every_frame_is_heard_once_in_order_and_many_are_read_together() {
        let (mut ear, voice, there) = pair();
        let all: Vec<Vec<u8>> = (0..200_u8).map(|n| vec![n; 3]).collect();
        for frame in &all {
            send(there.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        }
        let (frames, readings) = heard(&mut ear).await;
        assert_eq!(frames, all);
        assert!(readings < 10, "{readings} readings");
        voice.say(b"an answer").unwrap();
        let mut answer = [0; 16];
        assert_eq!(recv(there.as_raw_fd(), &mut answer, MsgFlags::empty()), Ok(9));
    }

    #[tokio::test]
    async fn a_busy_link_rests_between_readings_and_is_listened_to_when_it_is_quiet_again() {
        let (mut ear, _voice, there) = pair();
        for _ in 0..100 {
            send(there.as_raw_fd(), b"one", MsgFlags::empty()).unwrap();
        }
        while !matches!(ear.next, Next::Rest(_)) {
            ear.ready().await.unwrap();
            ear.read(now(), |_| {}).unwrap();
        }
        // It is dropped while it rests, as by a select, and rests on.
        send(there.as_raw_fd(), b"late", MsgFlags::empty()).unwrap();
        ear.next = Next::Rest(Instant::now() + Duration::from_secs(3_600));
        for _ in 0..2 {
            let dropped = tokio::time::timeout(Duration::from_millis(1), ear.ready()).await;
            assert!(dropped.is_err(), "it rests");
        }
        ear.next = Next::Rest(Instant::now());
        let (frames, _) = heard(&mut ear).await;
        assert_eq!(frames, [b"late"]);
        assert!(matches!(ear.next, Next::Listen(_)));
        send(there.as_raw_fd(), b"again", MsgFlags::empty()).unwrap();
        assert_eq!(heard(&mut ear).await.0, [b"again"]);
    }
}
