//! Which key speaks for whom: the ring, and where it comes from.
//!
//! A ring is text, one line a key; `#` begins a remark:
//!
//! ```text
//! # path            public key              what else it may
//! eu/r1/n1          vbm-public-1:4f...
//! eu/r1/n1          vbm-public-1:90...                        # the next one: accepted already
//! control/c1        vbm-public-1:1b...      commands relays
//! control/old       vbm-public-1:77...      commands=..6      # its last epoch was 6
//! ```
//!
//! - A key speaks for the paths of its lines only. Several lines of one path: all are accepted, and entries for that path
//!   are sealed for the first.
//! - `commands`: its requests may carry an epoch, any or one of a range `FROM..TO` (both may be left out, both count).
//!   Without it only epoch 0, which commands nothing: a node cannot raise the epoch of another.
//! - `relays`: its entries may hold requests of other callers that are trusted still, in the epochs in which those may
//!   command. For who puts dead letters back.

use super::keys::{KeyId, PublicKey};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::SystemTime,
};
use vbm_core::{Epoch, Error, ErrorKind, NodePath};

/// The most keys of one path.
const KEYS_MAX_PER_PATH: usize = 8;
/// The most lines of a ring.
const LINES_MAX: usize = 100_000;
/// The largest file of a ring, in bytes.
const FILE_MAX_BYTES: u64 = 32 * 1024 * 1024;

/// In which epochs a key may command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epochs {
    /// In none: its requests carry epoch 0.
    None,
    /// From the first to the second, both included. Epoch 0 too, which commands nothing.
    Between(Epoch, Epoch),
}

impl Epochs {
    /// In all.
    pub const ANY: Self = Self::Between(Epoch(0), Epoch(u64::MAX));

    /// Whether a request of that epoch is allowed.
    pub const fn allow(self, epoch: Epoch) -> bool {
        match self {
            _ if epoch.0 == 0 => true,
            Self::None => false,
            Self::Between(from, to) => from.0 <= epoch.0 && epoch.0 <= to.0,
        }
    }
}

/// A key, and what it may say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// Its name.
    pub id: KeyId,
    /// The key.
    pub key: PublicKey,
    /// In which epochs it may command.
    pub epochs: Epochs,
    /// Whether its entries may hold requests of other callers.
    pub relays: bool,
}

impl Trusted {
    /// A key that speaks for its path and commands in no epoch.
    pub fn new(key: PublicKey) -> Self {
        Self {
            id: key.id(),
            key,
            epochs: Epochs::None,
            relays: false,
        }
    }

    /// The same, commanding in these epochs.
    #[must_use]
    pub const fn commands(mut self, epochs: Epochs) -> Self {
        self.epochs = epochs;
        self
    }

    /// The same, putting back what others sent.
    #[must_use]
    pub const fn relays(mut self) -> Self {
        self.relays = true;
        self
    }
}

/// Which keys speak for which paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring(BTreeMap<NodePath, Vec<Trusted>>);

impl Ring {
    /// Trusts nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts a key to speak for `path`, after those that already do.
    ///
    /// # Errors
    /// Invalid input, when that path has too many keys or this one already.
    pub fn add(&mut self, path: NodePath, trusted: Trusted) -> Result<(), Error> {
        let refuse = |why: String| {
            Err(Error::new(
                ErrorKind::InvalidInput,
                format!("the key {} cannot be trusted for {path}", trusted.id),
                why,
                "remove the lines of keys that are not used any more",
            ))
        };
        let known = self.0.get(&path).map_or(&[][..], Vec::as_slice);
        if known.iter().any(|other| other.id == trusted.id) {
            return refuse("it is there twice".into());
        }
        if known.len() >= KEYS_MAX_PER_PATH {
            return refuse(format!("{KEYS_MAX_PER_PATH} keys are trusted for it already"));
        }
        self.0.entry(path).or_default().push(trusted);
        Ok(())
    }

    /// The key of that name, if it may speak for `path`.
    pub fn find(&self, path: &NodePath, id: KeyId) -> Option<&Trusted> {
        self.0.get(path)?.iter().find(|trusted| trusted.id == id)
    }

    /// The key that entries for `path` are sealed for.
    pub fn first(&self, path: &NodePath) -> Option<&Trusted> {
        self.0.get(path)?.first()
    }

    /// All keys of a path, that which entries for it are sealed for first.
    pub fn keys(&self, path: &NodePath) -> &[Trusted] {
        self.0.get(path).map_or(&[], Vec::as_slice)
    }

    /// Who a key speaks for, in the order of the paths.
    pub fn paths_of(&self, id: KeyId) -> impl Iterator<Item = (&NodePath, &Trusted)> {
        self.0
            .iter()
            .flat_map(|(path, keys)| keys.iter().map(move |key| (path, key)))
            .filter(move |(_, key)| key.id == id)
    }

    /// How many paths have a key.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Ring {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut ring = Self::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let refuse = |why: String| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!("line {} of the trust list is not one", number + 1),
                    why,
                    "write: PATH PUBLIC-KEY [commands[=FROM..TO]] [relays]",
                )
            };
            if number >= LINES_MAX {
                return Err(refuse(format!("{LINES_MAX} lines are allowed")));
            }
            let (path, trusted) = parse_line(line).map_err(refuse)?;
            ring.add(path, trusted).map_err(|e| refuse(e.why().to_owned()))?;
        }
        Ok(ring)
    }
}

fn parse_line(line: &str) -> Result<(NodePath, Trusted), String> {
    let mut words = line.split_whitespace();
    let path = words.next().unwrap_or_default();
    let path = path.parse::<NodePath>().map_err(|e| e.why().to_owned())?;
    let key = words.next().ok_or("it has no key")?;
    let mut trusted = Trusted::new(key.parse::<PublicKey>().map_err(|e| e.why().to_owned())?);
    for word in words {
        trusted = match word {
            "relays" => trusted.relays(),
            "commands" => trusted.commands(Epochs::ANY),
            _ => match word.strip_prefix("commands=").and_then(parse_epochs) {
                Some(epochs) => trusted.commands(epochs),
                None => return Err(format!("'{word}' is not known")),
            },
        };
    }
    Ok((path, trusted))
}

fn parse_epochs(text: &str) -> Option<Epochs> {
    let (from, to) = text.split_once("..")?;
    let number = |text: &str, absent: u64| match text {
        "" => Some(absent),
        digits => digits.parse().ok(),
    };
    let (from, to) = (number(from, 0)?, number(to, u64::MAX)?);
    (from <= to).then_some(Epochs::Between(Epoch(from), Epoch(to)))
}

impl fmt::Display for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        match self.epochs {
            Epochs::None => {}
            Epochs::ANY => f.write_str(" commands")?,
            Epochs::Between(from, Epoch(u64::MAX)) => write!(f, " commands={from}..")?,
            Epochs::Between(from, to) => write!(f, " commands={from}..{to}")?,
        }
        if self.relays {
            f.write_str(" relays")?;
        }
        Ok(())
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, keys) in &self.0 {
            for trusted in keys {
                writeln!(f, "{path} {trusted}")?;
            }
        }
        Ok(())
    }
}

/// Where a ring comes from. It is asked for each entry: a change counts from the next entry on.
pub trait TrustSource: Send + Sync + 'static {
    /// The ring as it is now. Must not block.
    fn ring(&self) -> Arc<Ring>;

    /// Looks whether there is a newer ring. Called from time to time (at each heartbeat) where blocking is allowed.
    ///
    /// # Errors
    /// When it cannot be had; the old one stays.
    fn refresh(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// Whom this process trusts. Cheap to clone.
#[derive(Clone)]
pub struct Trust(Arc<dyn TrustSource>);

impl Trust {
    /// A ring that stays as it is.
    pub fn fixed(ring: Ring) -> Self {
        Self::new(Fixed(Arc::new(ring)))
    }

    /// A ring of somebody else's.
    pub fn new(source: impl TrustSource) -> Self {
        Self(Arc::new(source))
    }

    /// A ring in a file, read again when the file changes.
    ///
    /// # Errors
    /// When it cannot be read, or is none. Later changes to such a file are logged, and the last good ring stays.
    pub fn file(path: impl Into<PathBuf>) -> Result<Self, Error> {
        RingFile::open(path.into()).map(Self::new)
    }

    /// The ring as it is now.
    pub fn ring(&self) -> Arc<Ring> {
        self.0.ring()
    }

    /// Looks whether there is a newer ring. Blocks.
    ///
    /// # Errors
    /// When it cannot be had; the old one stays.
    pub fn refresh(&self) -> Result<(), Error> {
        self.0.refresh()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust({} paths)", self.ring().len())
    }
}

struct Fixed(Arc<Ring>);

impl TrustSource for Fixed {
    fn ring(&self) -> Arc<Ring> {
        self.0.clone()
    }
}

/// How a file looked when it was read.
type Stamp = (SystemTime, u64);

struct RingFile {
    path: PathBuf,
    ring: RwLock<Arc<Ring>>,
    stamp: Mutex<Stamp>,
}

impl RingFile {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let stamp = stamp(&path)?;
        let ring = read(&path)?;
        Ok(Self {
            path,
            ring: RwLock::new(Arc::new(ring)),
            stamp: Mutex::new(stamp),
        })
    }

    fn stamp(&self) -> MutexGuard<'_, Stamp> {
        self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TrustSource for RingFile {
    fn ring(&self) -> Arc<Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refresh(&self) -> Result<(), Error> {
        let now = stamp(&self.path)?;
        if *self.stamp() == now {
            return Ok(());
        }
        let ring = read(&self.path)?;
        tracing::info!(file = %self.path.display(), paths = ring.len(), "the trust list was read again");
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        *self.stamp() = now;
        Ok(())
    }
}

fn unreadable(path: &Path, why: String) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("the trust list {} cannot be read", path.display()),
        why,
        "give a file of lines PATH PUBLIC-KEY; `vbm bus key show` prints the line of a node",
    )
}

fn stamp(path: &Path) -> Result<Stamp, Error> {
    let meta = std::fs::metadata(path).map_err(|e| unreadable(path, e.to_string()))?;
    if meta.len() > FILE_MAX_BYTES {
        return Err(unreadable(
            path,
            format!("it has more than {FILE_MAX_BYTES} bytes"),
        ));
    }
    Ok((
        meta.modified().map_err(|e| unreadable(path, e.to_string()))?,
        meta.len(),
    ))
}

fn read(path: &Path) -> Result<Ring, Error> {
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(path, e.to_string()))?;
    text.parse::<Ring>()
        .map_err(|e| unreadable(path, format!("{}: {}", e.what(), e.why())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::KeyPair;

    fn path(text: &str) -> NodePath {
        text.parse().unwrap()
    }
    fn public() -> PublicKey {
        *KeyPair::generate().unwrap().public()
    }

    #[test]
    fn a_ring_survives_its_text() {
        let mut ring = Ring::new();
        ring.add(path("eu/n1"), Trusted::new(public())).unwrap();
        ring.add(path("eu/n1"), Trusted::new(public())).unwrap();
        for epochs in [
            Epochs::ANY,
            Epochs::Between(Epoch(3), Epoch(9)),
            Epochs::Between(Epoch(4), Epoch(u64::MAX)),
        ] {
            ring.add(
                path("control/c1"),
                Trusted::new(public()).commands(epochs).relays(),
            )
            .unwrap();
        }
        assert_eq!(ring.to_string().parse::<Ring>().unwrap(), ring);
    }

    #[test]
    fn a_key_speaks_for_its_path_only_and_the_first_is_sealed_for() {
        let (first, second) = (public(), public());
        let text = format!("# all\neu/n1 {first} # now\neu/n1 {second}\n\neu/n2 {second}\n");
        let ring: Ring = text.parse().unwrap();
        assert_eq!(ring.first(&path("eu/n1")).unwrap().key, first);
        assert!(ring.find(&path("eu/n1"), second.id()).is_some());
        assert!(ring.find(&path("eu/n2"), first.id()).is_none());
        assert!(ring.find(&path("eu"), first.id()).is_none());
    }

    #[test]
    fn a_line_that_is_none_is_refused_by_its_number() {
        let key = public();
        for bad in [
            "eu/n1".to_owned(),
            format!("UP {key}"),
            "eu/n1 key".to_owned(),
            format!("eu/n1 {key} root"),
            format!("eu/n1 {key} commands=9..3"),
            format!("eu/n1 {key} commands=x.."),
            format!("a {key}\na {key}"),
        ] {
            let error = format!("# one\n{bad}").parse::<Ring>().unwrap_err();
            assert!(
                error.what().contains("line 2") || error.what().contains("line 3"),
                "{error}"
            );
        }
    }

    #[test]
    fn epochs_allow_what_they_name_and_always_zero() {
        let range = parse_epochs("3..5").unwrap();
        let allowed: Vec<_> = (0..8).filter(|&n| range.allow(Epoch(n))).collect();
        assert_eq!(allowed, [0, 3, 4, 5]);
        assert!(Epochs::None.allow(Epoch(0)) && !Epochs::None.allow(Epoch(1)));
    }

    #[test]
    fn a_file_is_read_again_when_it_changes_and_a_broken_one_leaves_the_old_ring() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("trust");
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        write(&format!("a {}\n", public()));
        let trust = Trust::file(&file).unwrap();
        write(&format!("a {}\nb {}\n", public(), public()));
        trust.refresh().unwrap();
        assert_eq!(trust.ring().len(), 2);
        write("nonsense, of another length\n");
        assert!(trust.refresh().is_err());
        assert_eq!(trust.ring().len(), 2);
        std::fs::remove_file(&file).unwrap();
        assert!(trust.refresh().is_err());
        assert_eq!(trust.ring().len(), 2);
    }
}
