//! What lies between two states of a namespace's rules: the programs that lead from one to the other, and what of it is read back.
//!
//! ```text
//!   nft -f      guard, marks, rules of nft        one transaction; with it the built-in chains of tables that do not stand yet
//!   ipset       sets that come or change
//!   iptables    chains that differ                the same run prints them as the kernel has them then
//!   ip6tables   the same
//!   ipset       sets that go
//!   nft -f      tables of nft that go
//!
//!   netlink     the guard of a port: its bytes, where nft has printed such before     (see blob)
//!   nft -i      else, and the rules of nft: as it prints them
//! ```
//!
//! Whatever is to judge packets comes before what judged them goes: in between both do, so it is at most too closed.

use super::{
    blob::{self, Forms},
    exec,
    netns::NetNs,
    rules::Wanted,
};
use crate::{
    NetError, names,
    plan::{
        dispatch::Nft,
        guard::{self, Guard},
        guard_back,
        nft_table::{self, NftTable},
        sets,
        tables::{self, Tables},
        verdict,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

/// Elements by the name of their map or set.
type Elements = BTreeMap<String, BTreeSet<String>>;

/// The most chains of the rules that are read back by name; beyond it one reading of all is faster.
const READ_SINGLY_MAX: usize = 64;
/// The same of the guard and of rules of nft: each is a question, and for each nft lists the names of all chains.
const NFT_READ_SINGLY_MAX: usize = 24;

/// What is done, each a program.
#[derive(Debug, Default)]
pub(super) struct Steps {
    guard: String,
    sets: sets::SetDiff,
    v4: String,
    v6: String,
    gone: String,
    pub(super) changes: Vec<String>,
}

impl Steps {
    pub(super) fn between(want: &Wanted, have: &Wanted) -> Self {
        let (mut guard, mut changes) = guard::diff(&want.guard, &have.guard);
        let mut gone = String::new();
        let pairs = [
            (&verdict::SLOTS, &want.nft.slots, &have.nft.slots),
            (&verdict::FILTER, &want.nft.filter, &have.nft.filter),
        ];
        for (shape, want, have) in pairs {
            let (script, told) = nft_table::diff(shape, want, have);
            if want.is_empty() {
                gone += &script;
            } else {
                guard += &script;
            }
            changes.extend(told);
        }
        let sets = sets::diff(&want.sets, &have.sets);
        let v4 = of_family("ip", &want.v4, &have.v4, &mut guard);
        let v6 = of_family("ip6", &want.v6, &have.v6, &mut guard);
        changes.extend(sets.changes.clone());
        changes.extend(v4.changes);
        changes.extend(v6.changes.into_iter().map(|c| format!("{c} (IPv6)")));
        Self {
            guard,
            sets,
            v4: v4.script,
            v6: v6.script,
            gone,
            changes,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.guard.is_empty()
            && self.sets.before.is_empty()
            && self.sets.after.is_empty()
            && self.v4.is_empty()
            && self.v6.is_empty()
            && self.gone.is_empty()
    }

    /// How many transactions of nf_tables it is.
    pub(super) fn transactions(&self) -> u32 {
        let tables = [&self.v4, &self.v6].into_iter().flat_map(|s| s.lines());
        let commits = tables.filter(|line| *line == "COMMIT").count();
        let nft = [&self.guard, &self.gone]
            .into_iter()
            .filter(|s| !s.is_empty())
            .count();
        u32::try_from(commits + nft).unwrap_or(u32::MAX)
    }

    /// Writes it. With `back`, what it asks of iptables is asked in the same runs.
    pub(super) async fn write(
        &self,
        ns: &NetNs,
        back: Option<&Back>,
        step: &(dyn Fn(&'static str) + Sync),
    ) -> Result<Told, NetError> {
        if !self.guard.is_empty() {
            exec::guard_write(ns, &self.guard).await?;
        }
        step("guard");
        if !self.sets.before.is_empty() {
            exec::ipset_write(ns, &self.sets.before).await?;
        }
        step("sets");
        let nothing = Tables::new();
        let (ask4, ask6) = back.map_or((&nothing, &nothing), |back| (&back.v4, &back.v6));
        let mut told = Told::default();
        if !self.v4.is_empty() || !ask4.is_empty() {
            let restore = exec::Program::IptablesRestore;
            told.v4 = exec::tables_write(ns, restore, &self.v4, ask4).await?;
        }
        if !self.v6.is_empty() || !ask6.is_empty() {
            let restore = exec::Program::Ip6tablesRestore;
            told.v6 = exec::tables_write(ns, restore, &self.v6, ask6).await?;
        }
        if !self.sets.after.is_empty() {
            exec::ipset_write(ns, &self.sets.after).await?;
        }
        if !self.gone.is_empty() {
            exec::guard_write(ns, &self.gone).await?;
        }
        Ok(told)
    }

    /// Fails with the first line that would still have to be written.
    pub(super) fn missing(&self) -> Result<(), NetError> {
        let nothing = |l: &&str| !l.starts_with('*') && !l.starts_with("table");
        let parts = [
            ("the guard, or a security rule", &self.guard),
            ("the members of a group", &self.sets.before),
            ("a security rule", &self.v4),
            ("a security rule of IPv6", &self.v6),
            ("the end of rules that are not wanted", &self.gone),
        ];
        match parts
            .iter()
            .find_map(|(what, script)| script.lines().find(nothing).map(|line| (what, line)))
        {
            None => Ok(()),
            Some((what, line)) => Err(NetError::NotVerified {
                what: (*what).to_owned(),
                detail: format!("missing: {line}"),
            }),
        }
    }
}

/// What is left for `iptables` when nft has begun the tables that do not stand.
fn of_family(family: &str, want: &Tables, have: &Tables, nft: &mut String) -> tables::Diff {
    let mut diff = tables::diff(want, have);
    let (begins, begun) = tables::beginning(family, want, have);
    if !begins.is_empty() {
        *nft += &begins;
        diff.script = tables::diff(want, &begun).script;
    }
    diff
}

/// What iptables said of the chains it was asked for, when it had written.
#[derive(Debug, Default)]
pub(super) struct Told {
    v4: Tables,
    v6: Tables,
}

/// What a change wrote, and is read back.
#[derive(Debug)]
pub(super) struct Back {
    guard: Guard,
    nft: Nft,
    v4: Tables,
    v6: Tables,
    sets: bool,
}

impl Back {
    pub(super) fn of(want: &Wanted, before: &Wanted, steps: &Steps) -> Self {
        Self {
            guard: guard_back::changed(&want.guard, &before.guard),
            nft: Nft {
                slots: nft_table::changed(&want.nft.slots, &before.nft.slots),
                filter: nft_table::changed(&want.nft.filter, &before.nft.filter),
            },
            v4: tables::changed(&want.v4, &before.v4),
            v6: tables::changed(&want.v6, &before.v6),
            sets: !steps.sets.filled.is_empty() || !steps.sets.after.is_empty(),
        }
    }

    /// Whether it is less than reading all of it.
    pub(super) fn is_little(&self) -> bool {
        let count = |of: &Tables| of.values().map(tables::Table::len).sum::<usize>();
        let questions = |t: &NftTable| t.questions();
        let nft = self.guard.chains.len() + questions(&self.nft.slots) + questions(&self.nft.filter);
        nft <= NFT_READ_SINGLY_MAX && count(&self.v4) + count(&self.v6) <= READ_SINGLY_MAX
    }

    /// Reads it back and compares.
    pub(super) async fn compare(
        &self,
        ns: &NetNs,
        told: &Told,
        want: &Wanted,
        forms: &Mutex<Forms>,
    ) -> Result<(), NetError> {
        if !self.known_forms(ns, forms).await? {
            self.nft(ns).await?;
            self.learn(ns, forms).await?;
        }
        differs("a security rule", tables::holds(&told.v4, &self.v4))?;
        differs("a security rule of IPv6", tables::holds(&told.v6, &self.v6))?;
        if self.sets {
            differs("the members of a group", exec::ipset_read(ns).await? == want.sets)?;
        }
        Ok(())
    }

    /// Whether all of it is of the guard, and stands in forms that nft has printed before.
    async fn known_forms(&self, ns: &NetNs, forms: &Mutex<Forms>) -> Result<bool, NetError> {
        let others = self.nft.slots.questions() + self.nft.filter.questions();
        if others > 0 || self.guard.sets.values().any(|e| !e.is_empty()) {
            return Ok(false);
        }
        let jumps = self.guard.maps.iter().flat_map(|(map, elements)| {
            elements.iter().map(|element| {
                let (link, chain) = element.split_once(" : jump ")?;
                Some((map.clone(), link.trim_matches('"').to_owned(), chain.to_owned()))
            })
        });
        let Some(jumps) = jumps.collect::<Option<Vec<_>>>() else {
            return Ok(false);
        };
        let Some(bytes) = self.guard_bytes(ns).await? else {
            return Ok(false);
        };
        let known = {
            let forms = forms.lock().unwrap_or_else(PoisonError::into_inner);
            self.guard
                .chains
                .iter()
                .all(|(name, lines)| bytes.get(name).is_some_and(|b| forms.know(lines, b)))
        };
        Ok(known && blob::lead(ns, names::GUARD_TABLE, jumps).await?)
    }

    /// Keeps the forms of what nft has just printed.
    async fn learn(&self, ns: &NetNs, forms: &Mutex<Forms>) -> Result<(), NetError> {
        if let Some(bytes) = self.guard_bytes(ns).await? {
            let mut forms = forms.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, bytes) in bytes {
                forms.learn(&self.guard.chains[&name], &bytes);
            }
        }
        Ok(())
    }

    /// `None` where the kernel does not tell.
    async fn guard_bytes(&self, ns: &NetNs) -> Result<Option<BTreeMap<String, Vec<u8>>>, NetError> {
        let names = self.guard.chains.keys().cloned().collect();
        blob::chains(ns, names::GUARD_TABLE, names).await
    }

    /// Guard and rules of nft, by one program that is asked one thing after the other. Where it is built without that, by one each.
    async fn nft(&self, ns: &NetNs) -> Result<(), NetError> {
        let mut questions = guard_back::asking(&self.guard);
        questions.extend(verdict::asking(&self.nft));
        if questions.is_empty() || self.nft_holds(&exec::nft_ask_in_turn(ns, &questions).await?) {
            return Ok(());
        }
        let said = exec::nft_ask_singly(ns, &questions).await?;
        differs("the guard, or a security rule", self.nft_holds(&said))
    }

    fn nft_holds(&self, said: &str) -> bool {
        let have = guard::parse(&of_table(said, "bridge", names::GUARD_TABLE));
        let chains = self
            .guard
            .chains
            .iter()
            .all(|(name, lines)| have.chains.get(name) == Some(lines));
        let all = |want: &Elements, have: &Elements| {
            let there =
                |name: &String, e: &BTreeSet<String>| have.get(name).is_some_and(|h| h.is_superset(e));
            want.iter().all(|(name, e)| e.is_empty() || there(name, e))
        };
        let table = |shape: &nft_table::Shape, some: &NftTable| {
            let have = nft_table::parse(&of_table(said, shape.family, shape.name));
            nft_table::holds(&have, some)
        };
        chains
            && all(&self.guard.maps, &have.maps)
            && all(&self.guard.sets, &have.sets)
            && table(&verdict::SLOTS, &self.nft.slots)
            && table(&verdict::FILTER, &self.nft.filter)
    }
}

/// Of what nft printed, the parts of one table.
fn of_table(said: &str, family: &str, name: &str) -> String {
    let header = format!("table {family} {name} {{");
    let mut inside = false;
    let mut out = String::new();
    for line in said.lines() {
        if line.starts_with("table ") {
            inside = line == header;
        }
        if inside {
            out += line;
            out.push('\n');
        }
    }
    out
}

fn differs(what: &str, same: bool) -> Result<(), NetError> {
    if same {
        return Ok(());
    }
    Err(NetError::NotVerified {
        what: what.to_owned(),
        detail: "it was written, and is not there as it was written".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::of_table;

    #[test]
    fn what_nft_prints_of_several_tables_is_told_apart() {
        let said = "table bridge vbm {\n\tchain a {\n\t}\n}\ntable inet vbm-filter {\n\tchain b {\n\t}\n}\ntable bridge vbm {\n\tchain c {\n\t}\n}\n";
        let ours = of_table(said, "bridge", "vbm");
        assert!(ours.contains("chain a") && ours.contains("chain c") && !ours.contains("chain b"));
        assert_eq!(of_table("Error: no", "bridge", "vbm"), "");
    }
}
