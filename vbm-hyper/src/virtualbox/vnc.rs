//! The display's password is the driver's business: whoever gets the stream has been let in by the caller.
//!
//! ```text
//!   VirtualBox --3.8, "VNC authentication", challenge--> us --3.8, "none"--> reader
//!              <------------- response (DES) -----------    <--- choice ---
//!              ============== from here on bytes go through ===============
//! ```
//!
//! The server listens on 127.0.0.1, where every user of the host can connect: hence the password. RFC 6143, section 7.

use crate::{ByteStream, Error, Result, limits::VNC_GREETING_DEADLINE};
use des::{
    Des,
    cipher::{Block, BlockCipherEncrypt, KeyInit},
};
use std::{future::Future, io};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// Security types.
const NONE: u8 = 1;
const VNC: u8 = 2;
/// The longest reason for a refusal that is read.
const REASON_MAX_BYTES: u32 = 4 * 1024;
/// What a session holds back in each direction.
const BUFFER_BYTES: usize = 256 * 1024;

/// Lets us in at `server`, and gives a stream at whose other end nobody asks for a password. It ends with `end`.
pub(super) async fn open<S>(
    mut server: S,
    password: &str,
    end: CancellationToken,
    tasks: &TaskTracker,
) -> Result<ByteStream>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    in_time(enter(&mut server, password)).await?;
    let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
    tasks.spawn(async move {
        // Cancel safe: what is under way is over with the run.
        tokio::select! {
            () = end.cancelled() => {}
            done = relay(theirs, server) => {
                if let Err(error) = done {
                    tracing::debug!(%error, "a session of a screen was left");
                }
            }
        }
    });
    Ok(Box::new(ours))
}

async fn in_time(greeting: impl Future<Output = io::Result<()>>) -> Result<()> {
    match timeout(VNC_GREETING_DEADLINE, greeting).await {
        Ok(done) => done.map_err(Error::io("enter", "the display of the VM")),
        Err(_) => Err(Error::Timeout {
            command: "the greeting of its display".into(),
            after: VNC_GREETING_DEADLINE,
        }),
    }
}

fn strange(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The client's half of the handshake.
async fn enter(server: &mut (impl AsyncRead + AsyncWrite + Unpin), password: &str) -> io::Result<()> {
    let mut version = [0; 12];
    server.read_exact(&mut version).await?;
    if !version.starts_with(b"RFB 003.") {
        return Err(strange("it does not speak RFB 3"));
    }
    if version != *VERSION {
        return Err(strange("it speaks an RFB older than 3.8"));
    }
    server.write_all(VERSION).await?;
    let mut types = vec![0; usize::from(server.read_u8().await?)];
    server.read_exact(&mut types).await?;
    if types.is_empty() {
        return Err(strange(format!("it refuses: {}", reason(server).await?)));
    }
    if types.contains(&NONE) {
        server.write_u8(NONE).await?;
    } else if types.contains(&VNC) {
        server.write_u8(VNC).await?;
        let mut challenge = [0; 16];
        server.read_exact(&mut challenge).await?;
        server.write_all(&response(&challenge, password)).await?;
    } else {
        return Err(strange(format!(
            "it asks for a proof of a kind that is not known: {types:?}"
        )));
    }
    match server.read_u32().await? {
        0 => Ok(()),
        _ => Err(strange(format!(
            "it does not let us in: {}",
            reason(server).await?
        ))),
    }
}

async fn reason(server: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let bytes = server.read_u32().await?.min(REASON_MAX_BYTES);
    let mut text = vec![0; usize::try_from(bytes).unwrap_or(0)];
    server.read_exact(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// DES of the challenge under the password, whose bytes VNC turns round bit by bit: pure.
fn response(challenge: &[u8; 16], password: &str) -> [u8; 16] {
    let mut key = [0_u8; 8];
    for (to, from) in key.iter_mut().zip(password.bytes()) {
        *to = from.reverse_bits();
    }
    let cipher = Des::new(&key.into());
    let mut answer = *challenge;
    for half in answer.chunks_exact_mut(8) {
        let mut block = Block::<Des>::try_from(&*half).unwrap_or_default();
        cipher.encrypt_block(&mut block);
        half.copy_from_slice(&block);
    }
    answer
}

/// The server's half of the handshake, towards the reader; then everything goes through.
async fn relay(mut reader: DuplexStream, mut server: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    reader.write_all(VERSION).await?;
    let mut version = [0; 12];
    reader.read_exact(&mut version).await?;
    match &version {
        // A list of types, a choice; a result only from 3.8 on.
        b"RFB 003.008\n" | b"RFB 003.007\n" => {
            reader.write_all(&[1, NONE]).await?;
            if reader.read_u8().await? != NONE {
                return Err(strange("it chose what was not offered"));
            }
            if version == *VERSION {
                reader.write_u32(0).await?;
            }
        }
        // The server decides.
        b"RFB 003.003\n" => reader.write_u32(u32::from(NONE)).await?,
        _ => return Err(strange("it does not speak RFB 3")),
    }
    tokio::io::copy_bidirectional(&mut reader, &mut server)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHALLENGE: [u8; 16] = *b"0123456789abcdef";

    /// A server that asks for a password, then sends back what it is sent.
    async fn server(mut stream: DuplexStream, password: &'static str) -> io::Result<()> {
        stream.write_all(VERSION).await?;
        let mut version = [0; 12];
        stream.read_exact(&mut version).await?;
        stream.write_all(&[1, VNC]).await?;
        assert_eq!(stream.read_u8().await?, VNC);
        stream.write_all(&CHALLENGE).await?;
        let mut answer = [0; 16];
        stream.read_exact(&mut answer).await?;
        if answer != response(&CHALLENGE, password) {
            stream.write_u32(1).await?;
            stream.write_u32(5).await?;
            return stream.write_all(b"wrong").await;
        }
        stream.write_u32(0).await?;
        let (mut from, mut to) = tokio::io::split(stream);
        tokio::io::copy(&mut from, &mut to).await.map(drop)
    }

    async fn opened(asked: &'static str, given: &str) -> Result<ByteStream> {
        let (ours, theirs) = tokio::io::duplex(1024);
        let tasks = TaskTracker::new();
        tasks.spawn(server(theirs, asked));
        open(ours, given, CancellationToken::new(), &tasks).await
    }

    #[test]
    fn the_key_is_turned_round_bit_by_bit() {
        // The classical vector of DES: key 0x0123456789abcdef, "Now is t" -> 3fa40e8a984d4815; the password is its key turned round.
        let key: Vec<u8> = [0x01_u8, 0x23, 0x45, 0x67]
            .iter()
            .map(|b| b.reverse_bits())
            .collect();
        assert!(key.iter().any(|b| *b >= 0x80), "such a key is no text");
        let cipher = Des::new(&[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].into());
        let mut block = Block::<Des>::try_from(&b"Now is t"[..]).unwrap();
        cipher.encrypt_block(&mut block);
        assert_eq!(block[..], [0x3f, 0xa4, 0x0e, 0x8a, 0x98, 0x4d, 0x48, 0x15]);
    }

    #[tokio::test]
    async fn a_reader_gets_in_without_a_password_and_bytes_go_through() {
        let mut stream = opened("secret12", "secret12").await.unwrap();
        let mut version = [0; 12];
        stream.read_exact(&mut version).await.unwrap();
        assert_eq!(&version, VERSION);
        stream.write_all(VERSION).await.unwrap();
        assert_eq!(
            (stream.read_u8().await.unwrap(), stream.read_u8().await.unwrap()),
            (1, NONE)
        );
        stream.write_u8(NONE).await.unwrap();
        assert_eq!(stream.read_u32().await.unwrap(), 0);
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
    }

    #[tokio::test]
    async fn a_wrong_password_is_told_with_the_reason() {
        let Err(error) = opened("secret12", "secret13").await else {
            panic!("it let us in")
        };
        assert!(vbm_core::Error::from(error).why().contains("wrong"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
        let (ours, _theirs) = tokio::io::duplex(1024);
        let opened = open(ours, "x", CancellationToken::new(), &TaskTracker::new()).await;
        assert!(matches!(opened.map(drop), Err(Error::Timeout { .. })));
    }

    proptest! {
        #[test]
        fn a_server_of_garbage_is_refused_without_a_panic(said in proptest::collection::vec(any::<u8>(), 0..200), polite: bool) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut ours, mut theirs) = tokio::io::duplex(1024);
                if polite { theirs.write_all(VERSION).await.unwrap(); }
                theirs.write_all(&said).await.unwrap();
                theirs.shutdown().await.unwrap();
                drop(enter(&mut ours, "x").await);
            });
        }
    }
}
