//! Whether the whole guard stands just as it is wanted, by its bytes: what `nft` takes some milliseconds to print is compared in some
//! hundred microseconds, where nft has printed chains of that form before (see [`super::blob`]). Whatever is otherwise, nft is asked.

use super::{
    blob::{self, Forms, Whole},
    exec, generation,
    netns::NetNs,
};
use crate::{NetError, names, plan::guard::Guard};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

/// The most chains that are compared so: it pays where many networks are alike, and learning the forms of thousands of chains does not.
const CHAINS_MAX: usize = 256;

/// The guard as it stands; `want` itself where it stands just so.
pub(super) async fn read(ns: &NetNs, want: &Guard, forms: &Mutex<Forms>) -> Result<Guard, NetError> {
    let Some(jumps) = jumps(want).filter(|_| want.chains.len() <= CHAINS_MAX) else {
        return exec::guard_read(ns).await;
    };
    let lock = || forms.lock().unwrap_or_else(PoisonError::into_inner);
    let before = generation::of(ns).await?;
    let bytes = blob::whole(ns, names::GUARD_TABLE).await?;
    if bytes
        .as_ref()
        .is_some_and(|bytes| stands(want, &jumps, bytes, &lock()))
    {
        return Ok(want.clone());
    }
    let have = exec::guard_read(ns).await?;
    // What is learnt is of one moment: nobody wrote between the bytes and the print.
    let same = before.is_some() && before == generation::of(ns).await?;
    if let Some(bytes) = bytes.filter(|_| same && have == *want) {
        let mut forms = lock();
        for (name, bytes) in &bytes.chains {
            if let Some(lines) = want.chains.get(name) {
                forms.learn(lines, bytes);
            }
        }
    }
    Ok(have)
}

/// The chain of each link, by map; `None` where there is more than that to compare.
fn jumps(want: &Guard) -> Option<BTreeMap<String, BTreeSet<(String, String)>>> {
    if !want.sets.is_empty() {
        return None;
    }
    let of_map = |(map, elements): (&String, &BTreeSet<String>)| {
        let jump = |element: &String| {
            let (link, chain) = element.split_once(" : jump ")?;
            Some((link.trim_matches('"').to_owned(), chain.to_owned()))
        };
        Some((map.clone(), elements.iter().map(jump).collect::<Option<_>>()?))
    };
    want.maps.iter().map(of_map).collect()
}

fn stands(
    want: &Guard,
    jumps: &BTreeMap<String, BTreeSet<(String, String)>>,
    have: &Whole,
    forms: &Forms,
) -> bool {
    want.chains.keys().eq(have.chains.keys())
        && *jumps == have.maps
        && want
            .chains
            .iter()
            .all(|(name, lines)| forms.know(lines, &have.chains[name]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{fixture::lab, guard::render};
    use vbm_core::NetworkMode;

    /// As the kernel might hold it: chains of one form alike.
    fn held(guard: &Guard) -> Whole {
        let bytes = |(name, lines): (&String, &Vec<String>)| {
            let way = name.get(..2).unwrap_or_default();
            (name.clone(), format!("{way}{}", lines.len()).into_bytes())
        };
        Whole {
            chains: guard.chains.iter().map(bytes).collect(),
            maps: jumps(guard).unwrap(),
        }
    }

    #[test]
    fn it_stands_only_if_every_chain_and_every_element_does() {
        let want = render(&lab(NetworkMode::Nat));
        let (jumps, mut forms) = (jumps(&want).unwrap(), Forms::default());
        let have = held(&want);
        assert!(!stands(&want, &jumps, &have, &forms), "nothing is known yet");
        for (name, bytes) in &have.chains {
            forms.learn(&want.chains[name], bytes);
        }
        assert!(stands(&want, &jumps, &have, &forms));
        let mut other = held(&want);
        other.chains.insert("another".into(), Vec::new());
        assert!(!stands(&want, &jumps, &other, &forms), "a chain more");
        let mut other = held(&want);
        other.chains.pop_first();
        assert!(!stands(&want, &jumps, &other, &forms), "a chain less");
        let mut other = held(&want);
        other.chains.values_mut().next().unwrap().push(0);
        assert!(!stands(&want, &jumps, &other, &forms), "another rule");
        let mut other = held(&want);
        other.maps.get_mut("in").unwrap().pop_first();
        assert!(!stands(&want, &jumps, &other, &forms), "an element less");
        let mut other = held(&want);
        other.maps.insert("third".into(), BTreeSet::new());
        assert!(!stands(&want, &jumps, &other, &forms), "a map more");
    }

    #[test]
    fn what_has_sets_is_left_to_nft() {
        assert!(jumps(&render(&crate::plan::fixture::spanning())).is_none());
    }
}
