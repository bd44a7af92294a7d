//! A damaged file is refused, or is read right; nothing panics.
use super::*;

async fn make(path: &Path) -> BTreeMap<String, (u64, Bytes)> {
    let store = RedbStore::open(path).unwrap();
    for n in 0..40u8 {
        done(&store, put(format!("k/{n}"), vec![n; 3_000])).await;
    }
    let content = content(&store).await;
    store.close().await;
    content
}

fn is_corrupt(path: &Path) -> bool {
    matches!(RedbStore::open(path), Err(StoreError::Corrupt { path: told, .. }) if told == *path)
}

#[tokio::test]
async fn a_truncated_file_is_refused_or_read_right() {
    let (directory, path) = place();
    let content = make(&path).await;
    let whole = fs::read(&path).unwrap();
    let cut = directory.path().join("cut");
    let sizes = [0, 1, 63, 64, 100, 319, 320, 511, 512, 4_095, 4_096, 4_097].into_iter();
    let mut refused = 0;
    for size in sizes
        .chain((1..whole.len()).step_by(whole.len() / 60))
        .chain([whole.len() - 1])
    {
        fs::write(&cut, &whole[..size]).unwrap();
        match RedbStore::open(&cut) {
            Ok(store) => {
                assert_eq!(super::content(&store).await, content, "cut to {size} bytes");
                store.close().await;
            }
            Err(StoreError::Corrupt { path, .. }) if path == cut => refused += 1,
            Err(other) => panic!("cut to {size} bytes: {other:?}"),
        }
    }
    assert!(refused > 60, "only {refused} refused");
}

#[tokio::test]
async fn a_file_with_foreign_bytes_is_refused_or_read_right() {
    let (directory, path) = place();
    let content = make(&path).await;
    let whole = fs::read(&path).unwrap();
    let hurt = directory.path().join("hurt");
    let (mut refused, mut right) = (0, 0);
    for place in (0..400).chain((0..whole.len()).step_by(whole.len() / 200)) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        fs::write(&hurt, &bytes).unwrap();
        match RedbStore::open(&hurt) {
            Ok(store) => {
                assert_eq!(super::content(&store).await, content, "byte {place}");
                store.close().await;
                right += 1;
            }
            Err(StoreError::Corrupt { path, .. }) if path == hurt => refused += 1,
            Err(other) => panic!("byte {place}: {other:?}"),
        }
    }
    assert!(refused > 100 && right > 100, "refused {refused}, right {right}");
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let (_directory, path) = place();
    let noise: Vec<u8> = (0..100_000u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2])
        .collect();
    for bytes in [
        &b""[..],
        b"x",
        b"hello, I am a text\n",
        &[0; 4_096],
        &noise,
        b"redb\x1a\x0a\xa9\x0d\x0a",
    ] {
        fs::write(&path, bytes).unwrap();
        assert!(is_corrupt(&path), "{} bytes", bytes.len());
        assert_eq!(fs::read(&path).unwrap(), bytes, "it was changed");
    }
}

#[tokio::test]
async fn a_failure_to_open_tells_what_why_and_what_to_do() {
    let (_directory, path) = place();
    fs::write(&path, "no store").unwrap();
    let error = vbm_core::Error::from(RedbStore::open(&path).unwrap_err());
    assert_eq!(error.kind(), vbm_core::ErrorKind::Corrupt);
    assert_eq!(error.to_string().lines().count(), 3);
    assert!(error.what().contains(path.to_str().unwrap()));
}
