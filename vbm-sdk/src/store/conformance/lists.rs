//! Lists and their pages.

use super::*;

/// A list is ordered by the bytes of the keys, and its pages join without gap or double.
pub async fn a_list_is_ordered_and_paged(make: impl Make) {
    let store = make().await;
    let mut names = ["b", "a", "ä", "Z", "a\0", "aa", "a/b", "z\u{10ffff}", "0"].to_vec();
    done(
        &*store,
        writes(
            names
                .iter()
                .map(|name| put(format!("p/{name}"), *name))
                .collect::<Vec<_>>(),
        ),
    )
    .await;
    names.sort_unstable();
    let wanted: Vec<String> = names.iter().map(|name| format!("p/{name}")).collect();
    for limit in 1..=names.len() + 1 {
        let (mut found, mut after) = (Vec::<String>::new(), None);
        loop {
            let page = page(&*store, "p/", after.as_deref(), limit).await;
            assert!(page.entries.len() <= limit);
            found.extend(page.entries.iter().map(|entry| entry.key.clone()));
            assert_eq!(
                page.more,
                found.len() < wanted.len(),
                "limit {limit} after {after:?}"
            );
            after = found.last().cloned();
            if !page.more {
                break;
            }
        }
        assert_eq!(found, wanted, "limit {limit}");
    }
    let none = page(&*store, "p/", None, 0).await;
    assert!(none.entries.is_empty() && none.more);
}

/// A prefix is no more than a prefix: neighbours that do not begin with it are not listed.
pub async fn a_prefix_is_no_more_than_a_prefix(make: impl Make) {
    let store = make().await;
    let all = [
        "vm",
        "vm.",
        "vm/",
        "vm/1",
        "vm/\u{10ffff}",
        "vm0",
        "vn",
        "vl",
        "v\u{10ffff}",
    ];
    done(&*store, writes(all.map(|key| put(key, "")).to_vec())).await;
    assert_eq!(
        keys(&page(&*store, "vm/", None, 99).await),
        ["vm/", "vm/1", "vm/\u{10ffff}"]
    );
    assert_eq!(keys(&page(&*store, "vm/1", None, 99).await), ["vm/1"]);
    assert_eq!(keys(&page(&*store, "vm/2", None, 99).await), [""; 0]);
    assert_eq!(
        keys(&page(&*store, "v\u{10ffff}", None, 99).await),
        ["v\u{10ffff}"]
    );
    assert_eq!(page(&*store, "", None, 99).await.entries.len(), all.len());
    assert_eq!(keys(&page(&*store, "w", None, 99).await), [""; 0]);
    let exact = page(&*store, "vm/", None, 3).await;
    assert!(!exact.more, "what follows has another prefix");
}

/// A list can begin before and after its prefix, and at keys that do not exist.
pub async fn a_list_can_begin_before_and_after_its_prefix(make: impl Make) {
    let store = make().await;
    done(
        &*store,
        writes(["a", "p/1", "p/2", "p/3", "q"].map(|key| put(key, "")).to_vec()),
    )
    .await;
    for (after, found) in [
        ("", &["p/1", "p/2", "p/3"][..]),
        ("a", &["p/1", "p/2", "p/3"]),
        ("p/", &["p/1", "p/2", "p/3"]),
        ("p/1", &["p/2", "p/3"]),
        ("p/15", &["p/2", "p/3"]),
        ("p/3", &[]),
        ("p0", &[]),
        ("z", &[]),
    ] {
        let page = page(&*store, "p/", Some(after), 99).await;
        assert_eq!(keys(&page), found, "after '{after}'");
        assert!(!page.more);
    }
}

/// A page has a largest size, whatever limit is asked for.
pub async fn a_page_has_a_largest_size(make: impl Make) {
    let store = make().await;
    let total = PAGE_MAX_ENTRIES + 1;
    for first in (0..total).step_by(TXN_MAX_ITEMS) {
        let some = first..total.min(first + TXN_MAX_ITEMS);
        done(
            &*store,
            writes(some.map(|n| put(format!("{n:06}"), "")).collect::<Vec<_>>()),
        )
        .await;
    }
    let first = page(&*store, "", None, usize::MAX).await;
    assert_eq!((first.entries.len(), first.more), (PAGE_MAX_ENTRIES, true));
    let after = first.entries.last().map(|entry| entry.key.as_str());
    let last = page(&*store, "", after, usize::MAX).await;
    assert_eq!((last.entries.len(), last.more), (1, false));
}
