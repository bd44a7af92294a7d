//! A child writes and tells what was acknowledged, until it is killed.
use super::*;

const PATH_OF_CHILD: &str = "VBM_TEST_STORE_CHILD";
const WRITERS: u64 = 16;

/// Killed and waited for, also when the test fails.
struct Killed(Child);
impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn spawn(path: &Path) -> Killed {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "killed::the_child_writes_until_it_is_killed",
            "--nocapture",
        ])
        .env(PATH_OF_CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    Killed(child)
}

/// Only the tests below give it something to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(PATH_OF_CHILD) else {
        return;
    };
    let store = Arc::new(RedbStore::open(path).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for n in 0.. {
                // Two keys, so that a transaction that was kept by half would show.
                let write = ["a", "b"].map(|twin| {
                    Write::Put(
                        format!("{twin}/{}/{writer}/{n}", std::process::id()),
                        vec![7; 300].into(),
                    )
                });
                let revision = done(
                    &*store,
                    Txn {
                        compare: vec![],
                        write: write.to_vec(),
                    },
                )
                .await;
                let line = format!("acknowledged {} {writer}/{n} {revision}\n", std::process::id());
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        });
    }
    writers.join_all().await;
}

/// What complete lines of the child acknowledge: name and revision.
fn acknowledged(line: &str) -> Option<(String, u64)> {
    let mut words = line.split_once("acknowledged ")?.1.split(' ');
    let name = format!("{}/{}", words.next()?, words.next()?);
    Some((name, words.next()?.parse().unwrap()))
}

async fn assert_kept(path: &Path, acknowledged: &BTreeMap<String, u64>) {
    let store = RedbStore::open(path).unwrap();
    let newest = store.revision().await.unwrap();
    let mut found = BTreeMap::<String, Vec<u64>>::new();
    let mut after = None;
    loop {
        let page = store.list("", after.as_deref(), usize::MAX).await.unwrap();
        for entry in &page.entries {
            assert_eq!(&entry.value[..], [7; 300]);
            found
                .entry(entry.key[2..].to_owned())
                .or_default()
                .push(entry.revision.0);
        }
        after = page.entries.last().map(|entry| entry.key.clone());
        if !page.more {
            break;
        }
    }
    for (name, revisions) in &found {
        assert!(
            revisions.len() == 2 && revisions[0] == revisions[1],
            "{name} is half there: {revisions:?}"
        );
        assert!(revisions[0] <= newest.0);
    }
    for (name, revision) in acknowledged {
        assert_eq!(
            found.get(name).map(|revisions| revisions[0]),
            Some(*revision),
            "{name} was lost"
        );
    }
    assert_eq!(found.len() as u64, newest.0, "each revision is one transaction");
    store.close().await;
}

#[tokio::test]
async fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    let (directory, path) = place();
    let mut all = BTreeMap::new();
    for kill_after in [1, 10, 57, 200, 3, 1_000] {
        let mut child = spawn(&path);
        let (mut told, mut kill_after) = (BufReader::new(child.0.stdout.take().unwrap()), kill_after);
        let mut line = String::new();
        // To the end: what was in the pipe when it was killed was acknowledged, too.
        while told.read_line(&mut line).unwrap() > 0 {
            if line.ends_with('\n')
                && let Some((name, revision)) = acknowledged(line.trim_end())
            {
                all.insert(name, revision);
                kill_after -= 1;
                if kill_after == 0 {
                    child.0.kill().unwrap();
                }
            }
            line.clear();
        }
        assert!(kill_after <= 0, "the child ended by itself");
        drop(child);
        assert_kept(&path, &all).await;
    }
    assert!(all.len() > 1_200);
    assert_eq!(names(directory.path()), ["store"]);
}

#[tokio::test]
async fn a_process_killed_while_it_makes_a_store_leaves_nothing_in_the_way() {
    for spins in [0, 1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let (directory, path) = place();
        let mut child = spawn(&path);
        while names(directory.path()).is_empty() {
            assert!(child.0.try_wait().unwrap().is_none(), "the child ended by itself");
        }
        for _ in 0..spins {
            std::thread::yield_now();
        }
        drop(child);
        let store = RedbStore::open(&path).unwrap();
        done(&store, put("a", "1")).await;
        store.close().await;
        assert_eq!(names(directory.path()), ["store"], "after {spins} spins");
    }
}
