//! Every key of the store. `{...}` is the hash tag: all of them lie in one slot, so that a script may touch them
//! in a cluster too.
//!
//! | key | type | what |
//! |---|---|---|
//! | `{ns:store:v1}:meta` | hash | `revision`, `oldest` of the log, `bytes` of the log, `lineage` |
//! | `{ns:store:v1}:index` | sorted set, all scores 0 | the keys of the records, in the order of their bytes |
//! | `{ns:store:v1}:values` | hash | value by key |
//! | `{ns:store:v1}:revisions` | hash | the revision that wrote it, by key |
//! | `{ns:store:v1}:log` | stream | one entry per revision, `<revision>-1`: the transaction's id, then its changes |
//! | `{ns:store:v1}:done:<id>` | string | the revision of a transaction that was done; lives [`TXN_KEPT`](super::TXN_KEPT) |

use std::fmt::Display;

/// The keys of one store.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            prefix: format!("{{{namespace}:store:v1}}"),
        }
    }

    fn at(&self, rest: impl Display) -> String {
        format!("{}:{rest}", self.prefix)
    }

    pub(super) fn meta(&self) -> String {
        self.at("meta")
    }
    pub(super) fn index(&self) -> String {
        self.at("index")
    }
    pub(super) fn values(&self) -> String {
        self.at("values")
    }
    pub(super) fn revisions(&self) -> String {
        self.at("revisions")
    }
    pub(super) fn log(&self) -> String {
        self.at("log")
    }
    pub(super) fn done(&self, txn: &str) -> String {
        self.at(format_args!("done:{txn}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_store_lie_in_one_slot() {
        let keys = Keys::new("vbm");
        let all = [
            keys.meta(),
            keys.index(),
            keys.values(),
            keys.revisions(),
            keys.log(),
            keys.done("x"),
        ];
        for key in &all {
            assert!(key.starts_with("{vbm:store:v1}:"), "{key}");
        }
        assert_ne!(Keys::new("other").meta(), keys.meta());
    }
}
