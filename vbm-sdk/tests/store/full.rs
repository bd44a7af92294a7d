//! A small disk of its own, which needs root.
use super::*;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Unmounted also when the test fails.
struct Disk(tempfile::TempDir);
impl Disk {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        mount(
            Some("vbm-test"),
            directory.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        Self(directory)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    /// Takes all the space that is left.
    fn fill(&self) {
        let mut file = fs::File::create(self.path("filler")).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }
    fn empty(&self) {
        fs::remove_file(self.path("filler")).unwrap();
    }
}
impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.0.path().display());
        }
    }
}

/// Whether the test has to be left out; panics when it could not run and nobody said so.
fn left_out() -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    let names = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
    assert!(
        names.split(',').any(|name| name == "root"),
        "needs root to mount a small tmpfs"
    );
    println!("LEFT OUT: mounting a small tmpfs needs root");
    true
}

#[tokio::test]
async fn a_full_disk_fails_and_the_store_goes_on_when_there_is_space() {
    if left_out() {
        return;
    }
    let disk = Disk::new("6M");
    let store = RedbStore::open(disk.path("store")).unwrap();
    let mut kept = BTreeMap::new();
    for round in 0..3 {
        let revision = done(&store, put(format!("before/{round}"), "1")).await;
        kept.insert(format!("before/{round}"), revision.0);
        disk.fill();
        let mut failure = None;
        for n in 0..2_000 {
            let key = format!("during/{round}/{n}");
            match store.txn(put(key.clone(), vec![7; 20_000])).await {
                Ok(TxnOutcome::Done(revision)) => drop(kept.insert(key, revision.0)),
                other => {
                    failure = Some(other);
                    break;
                }
            }
        }
        assert!(matches!(failure, Some(Err(StoreError::Failed(_)))), "{failure:?}");
        // The disk is still full: reading works, and all that was acknowledged is there.
        let found = content(&store).await;
        for (key, revision) in &kept {
            assert_eq!(found.get(key).map(|found| found.0), Some(*revision), "{key}");
        }
        disk.empty();
        let revision = done(&store, put(format!("after/{round}"), "1")).await;
        kept.insert(format!("after/{round}"), revision.0);
        for key in kept
            .keys()
            .filter(|key| key.starts_with("during"))
            .cloned()
            .collect::<Vec<_>>()
        {
            done(
                &store,
                Txn {
                    compare: vec![],
                    write: vec![Write::Delete(key.clone())],
                },
            )
            .await;
            kept.remove(&key);
        }
    }
    store.close().await;
    let store = RedbStore::open(disk.path("store")).unwrap();
    for (key, revision) in &kept {
        assert_eq!(store.get(key).await.unwrap().unwrap().revision.0, *revision);
    }
    store.close().await;
}

#[tokio::test]
async fn a_store_on_a_full_disk_can_be_opened_and_read() {
    if left_out() {
        return;
    }
    let disk = Disk::new("6M");
    let path = disk.path("store");
    let store = RedbStore::open(&path).unwrap();
    done(&store, put("a", "1")).await;
    store.close().await;
    disk.fill();
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(content(&store).await.len(), 1);
    store.close().await;
    let other = RedbStore::open(disk.path("another"));
    assert!(matches!(other, Err(StoreError::Failed(_))), "{other:?}");
    assert!(!disk.path("another").exists());
}
