//! Talking to a guest over its serial line: what it remembers, what its disk holds, how far it has counted.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

/// Lines that a guest obeys, with `{}` for a word.
///
/// Answers stand on a line of their own, and nothing that is typed looks like one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestWords {
    /// Remembers the word in memory; answers `kept=<word>`.
    pub remember: String,
    /// Answers `memory=<what it remembers>#<word>`.
    pub recall: String,
    /// Writes the word to the disk, for good; answers `written=<word>`.
    pub write: String,
    /// Answers `disk=<what is written>#<word>`.
    pub read: String,
    /// Counts from now on: says `counted=<number>` again and again. The second time it does nothing.
    pub count: String,
    /// As `write`, to its first data disk.
    pub write_data: String,
    /// As `read`, from its first data disk.
    pub read_data: String,
}

impl GuestWords {
    /// For a guest with a POSIX shell that may write to `disk` at byte 51,200, and whose data disk is called the next in
    /// the alphabet.
    pub fn of_shell(disk: &str) -> Self {
        let block = "bs=512 count=1 2>/dev/null";
        let data = match disk.strip_suffix('a') {
            Some(stem) => format!("{stem}b"),
            None => disk.to_owned(),
        };
        let write = |disk: &str| {
            format!(
                "echo {{}} | dd of={disk} seek=100 conv=notrunc,sync,fsync {block}; echo \"written\"={{}}"
            )
        };
        let read = |disk: &str| format!("echo \"disk\"=$(dd if={disk} skip=100 {block} | head -n1)\"#\"{{}}");
        Self {
            remember: "M={}; echo \"kept\"={}".into(),
            recall: "echo \"memory\"=$M\"#\"{}".into(),
            write: write(disk),
            read: read(disk),
            count:
                "[ \"$C\" ] || { C=1; (i=0; while :; do i=$((i+1)); echo \"counted\"=$i; sleep 1; done) & }"
                    .into(),
            write_data: write(&data),
            read_data: read(&data),
        }
    }
}

/// Tells one question from another: old answers stay on the line.
fn nonce() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(10_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A guest that is talked to.
pub(super) struct Guest<'a> {
    pub(super) ground: &'a Ground<'a>,
    pub(super) driver: &'a dyn Driver,
    pub(super) id: VmId,
    pub(super) words: &'a GuestWords,
}

impl Guest<'_> {
    pub(super) async fn remember(&self, word: &str) {
        self.ask(
            &self.words.remember.replace("{}", word),
            &format!("kept={word}"),
            |_| true,
        )
        .await;
    }

    pub(super) async fn write(&self, word: &str) {
        self.writes(&self.words.write, word).await;
    }

    pub(super) async fn write_data(&self, word: &str) {
        self.writes(&self.words.write_data, word).await;
    }

    async fn writes(&self, line: &str, word: &str) {
        self.ask(&line.replace("{}", word), &format!("written={word}"), |_| true)
            .await;
    }

    pub(super) async fn remembers(&self, word: &str) {
        let nonce = nonce().to_string();
        let said = self
            .ask(
                &self.words.recall.replace("{}", &nonce),
                &format!("#{nonce}"),
                |_| true,
            )
            .await;
        assert!(
            said.contains(&format!("memory={word}#{nonce}")),
            "it should remember {word}: {said}"
        );
    }

    pub(super) async fn has_written(&self, word: &str) {
        self.holds(&self.words.read, word).await;
    }

    pub(super) async fn has_written_data(&self, word: &str) {
        self.holds(&self.words.read_data, word).await;
    }

    async fn holds(&self, line: &str, word: &str) {
        let nonce = nonce().to_string();
        let said = self
            .ask(&line.replace("{}", &nonce), &format!("#{nonce}"), |_| true)
            .await;
        assert!(
            said.contains(&format!("disk={word}#{nonce}")),
            "its disk should hold {word}: {said}"
        );
    }

    /// Lets it count, and waits for a number.
    pub(super) async fn count(&self) -> u64 {
        self.ask(&self.words.count, "counted=", |_| true).await;
        self.next_count().await
    }

    /// The next number that it says.
    pub(super) async fn next_count(&self) -> u64 {
        let nonce = format!("#{}", nonce());
        let line = self.words.recall.replace("{}", &nonce[1..]);
        let said = self.ask(&line, &nonce, |rest| number(rest).is_some()).await;
        let rest = said.split_once(&nonce).map_or("", |(_, rest)| rest);
        number(rest).expect("it was waited for")
    }

    /// Types a line until the answer comes, and what is wanted after it. Returns all that was on the line.
    async fn ask(&self, line: &str, answer: &str, enough: impl Fn(&str) -> bool) -> String {
        let consoles = self.driver.consoles().expect("it has consoles");
        let serial = consoles.serial(self.id).await.expect("it runs");
        let (mut reader, mut writer) = tokio::io::split(serial);
        let mut text = Vec::new();
        let read = async {
            loop {
                let so_far = String::from_utf8_lossy(&text);
                if so_far.split_once(answer).is_some_and(|(_, rest)| enough(rest)) {
                    return;
                }
                let read = reader.read_buf(&mut text).await.expect("it can be read");
                assert!(read > 0, "the line ended: {}", String::from_utf8_lossy(&text));
            }
        };
        let type_again = async {
            // A shell that still starts throws away what was typed before.
            loop {
                let typed = format!("\n{line}\n");
                writer.write_all(typed.as_bytes()).await.expect("it can be typed");
                sleep(TYPE_AGAIN).await;
            }
        };
        let patience = self.ground.bench.patience();
        let in_time = tokio::select! {
            read = timeout(patience, read) => read.is_ok(),
            () = type_again => unreachable!("it types for ever"),
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(in_time, "'{answer}' did not come to '{line}', but: {text}");
        text
    }
}

/// The first whole number that a guest has counted to.
fn number(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("counted=")?;
    let (digits, _) = rest.split_once(['\r', '\n'])?;
    digits.parse().ok()
}
