//! Bytes both ways, for scripts.
//!
//! A console begins with a replay of what was said before. To somebody who waits for a text that is welcome; in
//! the answer to a command it would be noise, and might hold the text that is waited for. So where input is piped
//! in, the replay is let pass first: the input is typed once the line is quiet.

use std::{io, os::fd::AsFd, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};
use vbm_core::{Error, ErrorKind};

/// How much is read at once, in bytes.
const READ_BYTES: usize = 16 << 10;

/// When to end.
#[derive(Debug)]
pub(super) struct Plan {
    /// When this text was said; without it, when the guest is quiet after the input has ended.
    pub(super) finder: Option<Finder>,
    /// How long it must say nothing to be quiet.
    pub(super) quiet: Duration,
}

/// Why a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The text was said.
    Found,
    /// The input has ended and the guest says nothing more.
    Quiet,
    /// The console ended.
    Closed,
    /// Nobody reads what is printed any more.
    Unread,
}

/// How long to wait for input before taking it that there is none yet.
const INPUT_WAIT: Duration = Duration::from_millis(200);
/// How long the line must say nothing until the replay is taken to be over.
const REPLAY_QUIET: Duration = Duration::from_millis(300);
/// How long the replay may take: a guest that talks all the time is typed to all the same.
const REPLAY_MAX: Duration = Duration::from_secs(3);

/// Sends `input` to the console and gives to `print` what comes from it. `print` tells whether somebody still reads.
pub(super) async fn run(
    console: impl AsyncRead + AsyncWrite,
    mut input: impl AsyncRead + Unpin,
    mut print: impl FnMut(&[u8]) -> Result<bool, Error>,
    plan: Plan,
) -> Result<End, Error> {
    let Plan { mut finder, quiet } = plan;
    let (mut from, mut to) = tokio::io::split(console);
    let mut first = vec![0; READ_BYTES];
    // An input that has nothing yet is left alone: what a dropped read would have read, the copy below reads.
    let count = match tokio::time::timeout(INPUT_WAIT, input.read(&mut first)).await {
        Ok(count) => count.map_err(|e| broken(&e))?,
        Err(_none_yet) => 0,
    };
    first.truncate(count);
    if !first.is_empty() && let_pass(&mut from).await? == End::Closed {
        return Ok(End::Closed);
    }
    // Both directions at once: a guest that answers slowly must not keep the other side from being read.
    let (input_ended, mut has_input_ended) = tokio::sync::watch::channel(false);
    let send = async {
        tokio::io::copy(&mut (&*first).chain(input), &mut to).await?;
        to.flush().await?;
        input_ended.send_replace(true);
        std::future::pending::<io::Result<()>>().await
    };
    let receive = async {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let over = finder.is_none() && *has_input_ended.borrow_and_update();
            // Reads are cancel safe: what a dropped arm has not read, the next one reads.
            let count = tokio::select! {
                count = from.read(&mut buffer) => count.map_err(|e| broken(&e))?,
                () = tokio::time::sleep(quiet), if over => return Ok(End::Quiet),
                Ok(()) = has_input_ended.changed(), if !over => continue,
            };
            let said = buffer.get(..count).unwrap_or_default();
            if said.is_empty() {
                return Ok(End::Closed);
            }
            if !print(said)? {
                return Ok(End::Unread);
            }
            if finder.as_mut().is_some_and(|finder| finder.feed(said)) {
                return Ok(End::Found);
            }
        }
    };
    tokio::select! {
        end = receive => end,
        Err(error) = send => Err(broken(&error)),
    }
}

/// Reads until the line is quiet.
async fn let_pass(mut from: impl AsyncRead + Unpin) -> Result<End, Error> {
    let end = Instant::now() + REPLAY_MAX;
    let mut buffer = vec![0; READ_BYTES];
    while Instant::now() < end {
        match tokio::time::timeout(REPLAY_QUIET, from.read(&mut buffer)).await {
            Err(_quiet) => break,
            Ok(Ok(0)) => return Ok(End::Closed),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(broken(&error)),
        }
    }
    Ok(End::Quiet)
}

/// What is typed or piped in. A read that is under way when this is dropped goes on in its thread.
pub(super) fn stdin() -> Result<tokio::fs::File, Error> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(|e| broken(&e))?;
    Ok(tokio::fs::File::from_std(stdin.into()))
}

pub(super) fn broken(error: &io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the console broke off",
        error.to_string(),
        "look whether the VM and vbmd run, then open it again",
    )
}

/// Looks for a text in bytes that come in pieces.
#[derive(Clone, Debug)]
pub(super) struct Finder {
    text: Vec<u8>,
    /// The end of what came, one byte shorter than the text.
    tail: Vec<u8>,
}

impl Finder {
    /// # Errors
    /// An empty text.
    pub(super) fn new(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "an empty text cannot be waited for",
                "it is there from the beginning",
                "name what the guest shall say with --until TEXT",
            ));
        }
        Ok(Self {
            text: text.as_bytes().to_vec(),
            tail: Vec::new(),
        })
    }

    /// Whether the text is complete with these bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let found = self
            .tail
            .windows(self.text.len())
            .any(|window| window == self.text);
        let keep = self.text.len() - 1;
        self.tail.drain(..self.tail.len().saturating_sub(keep));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(until: Option<&str>) -> Plan {
        Plan {
            finder: until.map(|text| Finder::new(text).unwrap()),
            quiet: Duration::from_secs(1),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_piped_in_is_typed_and_only_what_comes_of_it_is_printed() {
        let (ours, mut guest) = tokio::io::duplex(64);
        let guest = async move {
            guest.write_all(b"said long before: web1\r\n").await.unwrap();
            let mut line = [0; 9];
            guest.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"hostname\n");
            guest.write_all(b"web1\r\n").await.unwrap();
            guest
        };
        let mut printed = Vec::new();
        let print = |bytes: &[u8]| {
            printed.extend_from_slice(bytes);
            Ok(true)
        };
        let (end, _guest) = tokio::join!(run(ours, &b"hostname\n"[..], print, plan(None)), guest);
        assert_eq!(end.unwrap(), End::Quiet);
        assert_eq!(printed, b"web1\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_text_that_comes_in_pieces_ends_the_wait() {
        let (ours, mut guest) = tokio::io::duplex(64);
        let guest = async move {
            guest.write_all(b"boot... guest re").await.unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
            guest.write_all(b"ady\n").await.unwrap();
            guest
        };
        let (end, _guest) = tokio::join!(
            run(ours, tokio::io::empty(), |_| Ok(true), plan(Some("guest ready"))),
            guest
        );
        assert_eq!(
            end.unwrap(),
            End::Found,
            "an input that has ended does not end the wait"
        );
    }

    #[tokio::test]
    async fn a_console_that_ends_ends_the_relay() {
        let (ours, guest) = tokio::io::duplex(64);
        drop(guest);
        assert_eq!(
            run(ours, tokio::io::empty(), |_| Ok(true), plan(Some("x")))
                .await
                .unwrap(),
            End::Closed
        );
    }

    #[tokio::test(start_paused = true)]
    async fn without_input_what_was_said_before_counts() {
        let (ours, mut guest) = tokio::io::duplex(64);
        guest.write_all(b"guest ready\n").await.unwrap();
        let (input, _never_written) = tokio::io::duplex(8);
        let end = run(ours, input, |_| Ok(true), plan(Some("ready"))).await;
        assert_eq!(
            end.unwrap(),
            End::Found,
            "a pipe that stays open and empty does not hold it up"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_talks_all_the_time_is_typed_to_all_the_same() {
        let (ours, guest) = tokio::io::duplex(64);
        let (mut from, mut to) = tokio::io::split(guest);
        let talk = async {
            loop {
                to.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut key = [0];
        let typed = async { from.read_exact(&mut key).await.unwrap() };
        tokio::select! {
            _ = typed => {}
            _ = run(ours, &b"k"[..], |_| Ok(true), plan(Some("never"))) => panic!("the relay ended"),
            () = talk => {}
        }
        assert_eq!(&key, b"k");
    }

    #[tokio::test]
    async fn output_that_nobody_reads_ends_the_relay() {
        let (ours, mut guest) = tokio::io::duplex(64);
        guest.write_all(b"x").await.unwrap();
        assert_eq!(
            run(ours, tokio::io::empty(), |_| Ok(false), plan(None))
                .await
                .unwrap(),
            End::Unread
        );
    }

    #[tokio::test]
    async fn input_that_is_larger_than_every_buffer_does_not_block_the_answer() {
        let (ours, guest) = tokio::io::duplex(64);
        let input = vec![b'x'; 100_000];
        let (mut from, mut to) = tokio::io::split(guest);
        let echo = async move { tokio::io::copy(&mut from, &mut to).await };
        let mut count = 0;
        let print = |bytes: &[u8]| {
            count += bytes.len();
            Ok(count < 100_000)
        };
        let relay = run(ours, &input[..], print, plan(None));
        let end = tokio::select! { end = relay => end.unwrap(), _ = echo => panic!("the echo ended") };
        assert_eq!((end, count), (End::Unread, 100_000));
    }

    proptest! {
        #[test]
        fn a_text_is_found_however_it_is_cut(before in ".{0,20}", text in ".{1,8}", cut in 1usize..7) {
            let mut finder = Finder::new(&text).unwrap();
            let all = format!("{before}{text}");
            let found = all.as_bytes().chunks(cut).any(|piece| finder.feed(piece));
            prop_assert!(found);
        }
        #[test]
        fn a_text_that_is_not_there_is_not_found(said in "[a-m]{0,40}") {
            prop_assert!(!Finder::new("z").unwrap().feed(said.as_bytes()));
        }
    }
}
