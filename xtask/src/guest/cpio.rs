//! A small `newc` cpio writer.
//!
//! The initramfs must come out the same byte for byte wherever it is built, so nothing is taken from the file
//! system: entries are sorted by path, owned by root, dated at the epoch and numbered in order.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;
/// The kernel wants the archive's end; a whole number of sectors keeps boot loaders content.
const BLOCK_BYTES: usize = 512;

enum Node {
    Directory,
    File { mode: u32, data: Vec<u8> },
    Symlink { to: String },
    Character { major: u32, minor: u32 },
}

/// An archive being put together; the order of insertion does not matter.
#[derive(Default)]
pub(crate) struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    pub(crate) fn directory(&mut self, path: &str) {
        self.insert(path, Node::Directory);
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) {
        self.insert(
            path,
            Node::File {
                mode,
                data: data.into(),
            },
        );
    }

    pub(crate) fn symlink(&mut self, path: &str, to: &str) {
        self.insert(path, Node::Symlink { to: to.to_owned() });
    }

    pub(crate) fn character(&mut self, path: &str, major: u32, minor: u32) {
        self.insert(path, Node::Character { major, minor });
    }

    /// Adds the node and whatever directories it needs.
    fn insert(&mut self, path: &str, node: Node) {
        for (at, _) in path.match_indices('/') {
            if let Some(parent) = path.get(..at) {
                self.nodes.entry(parent.to_owned()).or_insert(Node::Directory);
            }
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// The finished archive.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (inode, (path, node)) in (1..).zip(&self.nodes) {
            match node {
                Node::Directory => entry(&mut out, inode, path, DIRECTORY | 0o755, (0, 0), &[]),
                Node::File { mode, data } => entry(&mut out, inode, path, FILE | mode, (0, 0), data),
                Node::Symlink { to } => entry(&mut out, inode, path, SYMLINK | 0o777, (0, 0), to.as_bytes()),
                Node::Character { major, minor } => {
                    entry(&mut out, inode, path, CHARACTER | 0o600, (*major, *minor), &[]);
                }
            }
        }
        entry(&mut out, 0, "TRAILER!!!", 0, (0, 0), &[]);
        pad(&mut out, BLOCK_BYTES);
        out
    }
}

fn entry(out: &mut Vec<u8>, inode: u32, path: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    const LINKS: u32 = 1;
    let size = u32::try_from(data.len()).expect("an initramfs file is far below 4 GiB");
    let name_size = u32::try_from(path.len() + 1).expect("a path is far below 4 GiB");
    // inode, mode, uid, gid, links, mtime, size, device, rdevice, name size, checksum
    let fields = [
        inode, mode, 0, 0, LINKS, 0, size, 0, 0, device.0, device.1, name_size, 0,
    ];
    let mut header = String::from("070701");
    for field in fields {
        write!(header, "{field:08x}").expect("writing to a string cannot fail");
    }
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out, 4);
    out.extend_from_slice(data);
    pad(out, 4);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_what_they_hold() {
        let mut archive = Archive::default();
        archive.file("etc/rc/start", 0o755, *b"go");
        assert_eq!(
            archive.nodes.keys().collect::<Vec<_>>(),
            ["etc", "etc/rc", "etc/rc/start"]
        );
    }

    #[test]
    fn order_of_insertion_does_not_show() {
        let (mut one, mut two) = (Archive::default(), Archive::default());
        one.file("b", 0o644, *b"1");
        one.symlink("a", "b");
        two.symlink("a", "b");
        two.file("b", 0o644, *b"1");
        assert_eq!(one.bytes(), two.bytes());
    }

    #[test]
    fn a_header_has_the_fields_of_newc() {
        let mut archive = Archive::default();
        archive.character("console", 5, 1);
        let bytes = archive.bytes();
        let header = std::str::from_utf8(&bytes[..110]).unwrap();
        assert!(header.starts_with("0707010000000100002180"), "{header}");
        assert!(header.ends_with("00000005000000010000000800000000"), "{header}");
        assert_eq!(&bytes[110..118], b"console\0");
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
    }
}
