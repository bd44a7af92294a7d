//! The answers of VBoxManage as values: pure. Tested on recordings of 7.2 (`golden/`) and with garbage.

use std::collections::BTreeMap;
use vbm_core::VmId;

/// The state that VirtualBox says a VM is in; its own words, long (`powered off`) or short (`poweroff`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Off,
    Saved,
    /// Its process ended without being asked to.
    Aborted,
    /// The same while it was being restored: its memory is still on disk.
    AbortedSaved,
    Running,
    Paused,
    /// The hypervisor gave up on it and waits for its end (a guru meditation).
    Stuck,
    /// Something is under way: starting, saving, a snapshot, ...
    Moving,
    /// A word that is not known. It never means "off".
    Strange,
}

impl Told {
    pub(super) fn parse(words: &str) -> Self {
        let word: String = words
            .chars()
            .filter(char::is_ascii_alphabetic)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        match word.as_str() {
            "poweroff" | "poweredoff" | "teleported" => Self::Off,
            "saved" => Self::Saved,
            "aborted" => Self::Aborted,
            "abortedsaved" => Self::AbortedSaved,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "gurumeditation" | "stuck" => Self::Stuck,
            "starting"
            | "stopping"
            | "saving"
            | "restoring"
            | "teleporting"
            | "teleportingpausedvm"
            | "teleportingin"
            | "teleportingincoming"
            | "livesnapshotting"
            | "onlinesnapshotting"
            | "restoringsnapshot"
            | "deletingsnapshot"
            | "deletingsnapshotlive"
            | "deletingsnapshotlivepaused"
            | "deletingsnapshotonline"
            | "deletingsnapshotpaused"
            | "settingup" => Self::Moving,
            _ => Self::Strange,
        }
    }
}

/// One VM of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: VmId,
    pub(super) name: String,
    pub(super) groups: String,
    /// `None`: its settings cannot be read.
    pub(super) told: Option<Told>,
    pub(super) config: String,
}

/// `list vms --long`: every VM, its state included, in one process.
pub(super) fn list_long(text: &str) -> Vec<Listed> {
    let mut found = Vec::new();
    let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        // Shared folders and snapshots have `Name:` too: with one space, or indented.
        if line.starts_with("Name:  ") {
            found.extend(listed(&fields));
            fields.clear();
        }
        if line.starts_with(|c: char| c.is_ascii_alphabetic())
            && let Some((key, value)) = line.split_once(':')
        {
            // The first counts: a description comes later and may say anything.
            fields.entry(key).or_insert(value.trim());
        }
    }
    found.extend(listed(&fields));
    found
}

fn listed(fields: &BTreeMap<&str, &str>) -> Option<Listed> {
    let field = |key| fields.get(key).copied().unwrap_or_default();
    Some(Listed {
        id: field("UUID").parse().ok()?,
        name: field("Name").to_owned(),
        groups: field("Groups").to_owned(),
        told: fields
            .get("State")
            .map(|state| Told::parse(state.split('(').next().unwrap_or_default())),
        config: field("Config file").to_owned(),
    })
}

/// `list vms`, `list runningvms`: `"name" {uuid}`. Names may hold quotes, braces and more.
pub(super) fn list_short(text: &str) -> Vec<VmId> {
    let id = |line: &str| line.strip_suffix('}')?.rsplit_once("\" {")?.1.parse().ok();
    text.lines().filter_map(|line| id(line.trim_end())).collect()
}

/// `--machinereadable`: `key=value`, `key="value"`, `"key"="value"`. Values may hold quotes.
pub(super) fn machine_readable(text: &str) -> BTreeMap<String, String> {
    let unquote = |word: &str| {
        word.strip_prefix('"')
            .and_then(|w| w.strip_suffix('"'))
            .unwrap_or(word)
            .to_owned()
    };
    let pair = |line: &str| {
        let at = match line.strip_prefix('"') {
            Some(rest) => rest.find("\"=")? + 2,
            None => line.find('=')?,
        };
        Some((unquote(&line[..at]), unquote(&line[at + 1..])))
    };
    let mut found = BTreeMap::new();
    for (key, value) in text.lines().filter_map(pair) {
        found.entry(key).or_insert(value);
    }
    found
}

/// One snapshot of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SnapshotNode {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) description: String,
    /// How many snapshots stand directly on it.
    pub(super) children: usize,
    /// The name of the one that it stands on.
    pub(super) parent: Option<String>,
}

/// `snapshot VM list --machinereadable`: keys are `SnapshotName`, `SnapshotName-1`, `SnapshotName-1-2`, ...
pub(super) fn snapshots(text: &str) -> Vec<SnapshotNode> {
    let fields = machine_readable(text);
    let get = |kind: &str, at: &str| fields.get(&format!("{kind}{at}")).cloned().unwrap_or_default();
    let places: Vec<&str> = fields
        .keys()
        .filter_map(|key| key.strip_prefix("SnapshotUUID"))
        .collect();
    let is_child = |of: &str, place: &str| {
        place
            .strip_prefix(of)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    places
        .iter()
        .map(|at| SnapshotNode {
            name: get("SnapshotName", at),
            uuid: get("SnapshotUUID", at),
            description: get("SnapshotDescription", at),
            children: places.iter().filter(|place| is_child(at, place)).count(),
            parent: places
                .iter()
                .find(|place| is_child(place, at))
                .map(|place| get("SnapshotName", place)),
        })
        .collect()
}

/// `list extpacks`: the names of those that can be used.
pub(super) fn usable_extpacks(text: &str) -> Vec<String> {
    let mut found: Vec<(String, bool)> = Vec::new();
    for line in text.lines() {
        if line.starts_with("Pack no.")
            && let Some((_, name)) = line.split_once(':')
        {
            found.push((name.trim().to_owned(), false));
        } else if let (Some(said), Some((_, usable))) = (line.strip_prefix("Usable:"), found.last_mut()) {
            *usable = said.trim() == "true";
        }
    }
    found
        .into_iter()
        .filter(|(_, usable)| *usable)
        .map(|(name, _)| name)
        .collect()
}

/// `--version`: the version and its first two numbers.
pub(super) fn version(text: &str) -> Option<(String, (u32, u32))> {
    let word = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let pair = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((word.to_owned(), pair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = include_str!("golden/list-vms-long.txt");
    const INFO: &str = include_str!("golden/showvminfo.txt");
    const TREE: &str = include_str!("golden/snapshot-list.txt");

    fn id(n: u128) -> VmId {
        VmId::from_uuid(uuid::Uuid::from_u128(
            0x0198_f000_0000_7000_8000_0000_0000_0000 + n,
        ))
    }

    #[test]
    fn a_recorded_list_has_every_vm_also_one_whose_settings_are_broken() {
        let list = list_long(LIST);
        let seen: Vec<_> = list
            .iter()
            .map(|vm| (vm.name.as_str(), vm.groups.as_str(), vm.told))
            .collect();
        assert_eq!(
            seen,
            [
                ("vm1", "/vbm", Some(Told::Off)),
                ("<inaccessible!>", "", None),
                ("hand \"made\" 中", "/", Some(Told::Off)),
            ]
        );
        assert_eq!((list[0].id, list[1].id), (id(1), id(2)));
    }

    #[test]
    fn a_description_cannot_speak_for_a_vm() {
        let text = "Name:                        a\nUUID:                        0198f000-0000-7000-8000-000000000001\nState:                       saved (since x)\nDescription:\nState: running\nUUID: 0198f000-0000-7000-8000-000000000002\n";
        let list = list_long(text);
        assert_eq!(
            (list.len(), list[0].id, list[0].told),
            (1, id(1), Some(Told::Saved))
        );
    }

    #[test]
    fn a_short_list_is_read_by_its_ends() {
        let text = "\"vm1\" {0198f000-0000-7000-8000-000000000001}\n\"<inaccessible>\" {0198f000-0000-7000-8000-000000000002}\n\
            \"hand \" {x} 中\" {0198f000-0000-7000-8000-000000000003}\nno line of a VM\n\"half {0198f000\n";
        assert_eq!(list_short(text), [id(1), id(2), id(3)]);
    }

    #[test]
    fn recorded_settings_are_read() {
        let info = machine_readable(INFO);
        for (key, value) in [
            ("VMState", "poweroff"),
            ("UUID", "0198f000-0000-7000-8000-000000000001"),
            ("bridgeadapter1", "vbp1"),
            ("disk-0-0", "/var/lib/vbm/d.vdi"),
            ("memory", "96"),
        ] {
            assert_eq!(info.get(key).map(String::as_str), Some(value), "{key}");
        }
    }

    #[test]
    fn a_recorded_tree_of_snapshots_tells_who_stands_on_whom() {
        let tree = snapshots(TREE);
        let told: Vec<_> = tree
            .iter()
            .map(|s| (s.name.as_str(), s.description.as_str(), s.children))
            .collect();
        assert_eq!(
            told,
            [
                ("vbm-0198f000-0000-7000-8000-0000000000aa", "disk", 2),
                ("vbm-0198f000-0000-7000-8000-0000000000bb", "disk and memory", 1),
                ("vbm-0198f000-0000-7000-8000-0000000000cc", "disk", 0),
                ("vbm-0198f000-0000-7000-8000-0000000000dd", "disk", 0),
            ]
        );
        assert_eq!(snapshots("This machine does not have any snapshots\n"), []);
    }

    #[test]
    fn every_word_for_a_state_is_known_and_a_new_one_is_not_off() {
        for (words, told) in [
            ("powered off", Told::Off),
            ("poweroff", Told::Off),
            ("aborted", Told::Aborted),
            ("aborted-saved", Told::AbortedSaved),
            ("guru meditation", Told::Stuck),
            ("gurumeditation", Told::Stuck),
            ("live snapshotting", Told::Moving),
            ("teleporting (incoming)", Told::Moving),
            ("deletingsnapshotlivepaused", Told::Moving),
            ("meditating", Told::Strange),
            ("", Told::Strange),
        ] {
            assert_eq!(Told::parse(words), told, "{words}");
        }
    }

    #[test]
    fn extension_packs_count_when_they_can_be_used() {
        let text = "Extension Packs: 2\nPack no. 0:   VNC\nVersion:        7.2.22\nUsable:         true\nWhy unusable:   \nPack no. 1:   Other\nUsable:         false\n";
        assert_eq!(usable_extpacks(text), ["VNC"]);
    }

    #[test]
    fn the_version_is_the_last_line() {
        assert_eq!(
            version("7.2.22_Debianr175245\n"),
            Some(("7.2.22_Debianr175245".into(), (7, 2)))
        );
        assert_eq!(version("no version"), None);
    }

    proptest! {
        #[test]
        fn garbage_is_read_without_a_panic(text in any::<String>(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
                list_long(&text);
                list_short(&text);
                machine_readable(&text);
                snapshots(&text);
                usable_extpacks(&text);
                version(&text);
                Told::parse(&text);
            }
        }

        #[test]
        fn a_recording_that_was_cut_or_mixed_up_gives_no_more_vms_than_it_had(
            cut in 0..LIST.len(), lines in proptest::collection::vec(0..LIST.lines().count(), 0..60)
        ) {
            let cut = (0..=cut).rev().find(|at| LIST.is_char_boundary(*at)).unwrap();
            prop_assert!(list_long(&LIST[..cut]).len() <= 3);
            let all: Vec<_> = LIST.lines().collect();
            let mixed: String = lines.iter().flat_map(|at| [all[*at], "\n"]).collect();
            let names = mixed.lines().filter(|line| line.starts_with("Name:  ")).count();
            prop_assert!(list_long(&mixed).len() <= names + 1);
        }

        #[test]
        fn a_value_comes_back_whatever_it_holds(value in "[^\r\n]*") {
            let text = format!("name=\"{value}\"\n\"a-0-0\"=\"{value}\"\n");
            let read = machine_readable(&text);
            prop_assert_eq!(read.get("name"), Some(&value));
            prop_assert_eq!(read.get("a-0-0"), Some(&value));
        }
    }
}
