//! The fake's registry: one file per VM, one lock for all.

use crate::{Answer, NOT_FOUND, Refusal};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

const LIST: &str = include_str!("../../src/virtualbox/golden/list-vms-long.txt");
const INFO: &str = include_str!("../../src/virtualbox/golden/showvminfo.txt");
/// A PNG of one black pixel.
pub(crate) const PICTURE: &[u8] = b"\x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU\x00\x00\x00\x0aIDATx\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82";
/// How long a session is still being unlocked after its VM has ended.
const UNLOCK_MILLIS: u128 = 80;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) parent: String,
    pub(crate) online: bool,
    pub(crate) settings: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Vm {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) groups: String,
    pub(crate) config: String,
    pub(crate) state: String,
    /// Who runs it, or starts it.
    pub(crate) pid: u32,
    pub(crate) from_saved: bool,
    pub(crate) ended_millis: u128,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) current: String,
    pub(crate) taken: u64,
}

pub(crate) fn now_millis() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

impl Vm {
    pub(crate) fn new(uuid: &str, name: &str, groups: &str, config: &str) -> Self {
        Self {
            uuid: uuid.into(),
            name: name.into(),
            groups: groups.into(),
            config: config.into(),
            state: "poweroff".into(),
            pid: 0,
            from_saved: false,
            ended_millis: 0,
            settings: BTreeMap::new(),
            snapshots: Vec::new(),
            current: String::new(),
            taken: 0,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        !matches!(
            self.state.as_str(),
            "poweroff" | "saved" | "aborted" | "aborted-saved"
        )
    }

    pub(crate) fn still_locked(&self) -> bool {
        now_millis() < self.ended_millis + UNLOCK_MILLIS
    }

    pub(crate) fn end(&mut self, state: &str) {
        self.state = state.into();
        self.ended_millis = now_millis();
    }

    pub(crate) fn modify(&mut self, words: &[&str]) {
        for pair in words.windows(2) {
            let value = pair[1].to_owned();
            let Some(option) = pair[0].strip_prefix("--") else {
                continue;
            };
            let key = match option {
                "uart-mode1" => {
                    let path = words[words.iter().position(|w| *w == pair[0]).unwrap() + 2];
                    self.settings.insert("uartmode1".into(), format!("server,{path}"));
                    continue;
                }
                "vrde-port" => "vrdeports".to_owned(),
                "vrde-property" => {
                    let (key, value) = pair[1].split_once('=').unwrap();
                    self.settings.insert(format!("vrdeproperty[{key}]"), value.into());
                    continue;
                }
                option => option.replace('-', ""),
            };
            self.settings.insert(key, value);
        }
    }

    pub(crate) fn snapshot(&self, which: &str) -> Result<&Snapshot, Refusal> {
        self.snapshots
            .iter()
            .find(|held| held.uuid == which)
            .ok_or_else(|| {
                let why = if which.len() == 36 {
                    format!("Could not find a snapshot with UUID {{{which}}}")
                } else {
                    format!("Could not find a snapshot named '{which}'")
                };
                Refusal(why, NOT_FOUND)
            })
    }

    /// A block of `list vms --long`, as recorded, with what differs put in.
    pub(crate) fn long(&self) -> String {
        let block: Vec<&str> = LIST.split("\n\n").next().unwrap().lines().collect();
        let mut text = String::new();
        for line in block {
            let (key, _) = line.split_once(':').unwrap_or((line, ""));
            let value = match key {
                "Name" => &self.name,
                "Groups" => &self.groups,
                "UUID" | "Hardware UUID" => &self.uuid,
                "Config file" => &self.config,
                "State" => &format!("{} (since 2026-11-22T18:14:24.000000000)", spelled(&self.state)),
                _ => {
                    text.push_str(line);
                    text.push('\n');
                    continue;
                }
            };
            text.push_str(&format!("{:<29}{value}\n", format!("{key}:")));
        }
        text.push('\n');
        text
    }

    /// `showvminfo --machinereadable`, as recorded, with what differs put in.
    pub(crate) fn machine_readable(&self) -> String {
        let folder = self.config.rsplit_once('/').unwrap().0;
        let mut own = self.settings.clone();
        let live = self.is_live();
        for (key, value) in [
            ("name", &self.name),
            ("groups", &self.groups),
            ("UUID", &self.uuid),
            ("CfgFile", &self.config),
            ("LogFldr", &format!("{folder}/Logs")),
            ("VMState", &self.state),
        ] {
            own.insert(key.into(), value.clone());
        }
        let port = own
            .get("vrdeports")
            .filter(|_| live && own.get("vrde").is_some_and(|on| on == "on"));
        let port = port.cloned().unwrap_or_else(|| "-1".into());
        own.insert("vrdeport".into(), port);
        let mut text = String::new();
        for line in INFO.lines() {
            let (key, _) = line.split_once('=').unwrap_or((line, ""));
            let plain = key.trim_matches('"');
            // Recorded of a VM that has a controller and a disk; these are in its own settings if it has.
            if plain.starts_with("storagecontroller") || plain.starts_with("disk-") || own.contains_key(plain)
            {
                continue;
            }
            text.push_str(line);
            text.push('\n');
        }
        for (key, value) in &own {
            let quoted = if key.starts_with("disk-") {
                format!("\"{key}\"")
            } else {
                key.clone()
            };
            text.push_str(&format!("{quoted}=\"{value}\"\n"));
        }
        text
    }

    /// `snapshot list --machinereadable`.
    pub(crate) fn tree(&self) -> String {
        let mut text = String::new();
        self.branch("", "", &mut text);
        text
    }

    fn branch(&self, parent: &str, place: &str, text: &mut String) {
        for (at, held) in self
            .snapshots
            .iter()
            .filter(|held| held.parent == parent)
            .enumerate()
        {
            let place = if parent.is_empty() {
                String::new()
            } else {
                format!("{place}-{}", at + 1)
            };
            text.push_str(&format!(
                "SnapshotName{place}=\"{}\"\nSnapshotUUID{place}=\"{}\"\nSnapshotDescription{place}=\"{}\"\n",
                held.name, held.uuid, held.description
            ));
            self.branch(&held.uuid, &place, text);
        }
    }
}

/// As `list --long` spells states.
fn spelled(state: &str) -> &str {
    match state {
        "poweroff" => "powered off",
        other => other,
    }
}

pub(crate) struct World {
    pub(crate) dir: PathBuf,
}

impl World {
    pub(crate) fn open() -> Self {
        let dir = PathBuf::from(std::env::var_os("VBOX_USER_HOME").expect("the driver names a registry"))
            .join("fake");
        fs::create_dir_all(dir.join("knobs")).unwrap();
        Self { dir }
    }

    /// What a test wants to go wrong: `hang` (seconds), `list-fails`, `start-fails`, `start-takes` (milliseconds),
    /// `display-fails`, `poweroff-fails`, `snapshot-fails`, `state-word` (told instead of `running`).
    pub(crate) fn knob(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.join("knobs").join(name)).ok()
    }

    pub(crate) fn lock(&self) -> File {
        let file = File::create(self.dir.join("lock")).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        file
    }

    fn path(&self, uuid: &str) -> PathBuf {
        self.dir.join(format!("{uuid}.json"))
    }

    pub(crate) fn save(&self, vm: &Vm) {
        let temp = self.dir.join(format!(".{}", vm.uuid));
        fs::write(&temp, serde_json::to_vec(vm).unwrap()).unwrap();
        fs::rename(temp, self.path(&vm.uuid)).unwrap();
    }

    pub(crate) fn forget(&self, uuid: &str) {
        fs::remove_file(self.path(uuid)).unwrap();
    }

    fn load(&self, path: PathBuf) -> Option<Vm> {
        let mut vm: Vm = serde_json::from_slice(&fs::read(path).ok()?).unwrap();
        let gone = !PathBuf::from(format!("/proc/{}", vm.pid)).exists()
            || fs::read_to_string(format!("/proc/{}/stat", vm.pid)).is_ok_and(|stat| stat.contains(") Z "));
        if let Some(word) = self.knob("state-word").filter(|_| vm.state == "running" && !gone) {
            vm.state = word;
            return Some(vm);
        }
        if vm.is_live() && gone {
            // As VBoxSVC finds out: the process of the session died.
            vm.end(if vm.from_saved && vm.state == "restoring" {
                "aborted-saved"
            } else {
                "aborted"
            });
            self.save(&vm);
        }
        Some(vm)
    }

    pub(crate) fn all(&self) -> Vec<Vm> {
        let mut all: Vec<Vm> = fs::read_dir(&self.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "json"))
            .filter_map(|path| self.load(path))
            .collect();
        all.sort_by(|a, b| a.uuid.cmp(&b.uuid));
        all
    }

    /// By UUID or name.
    pub(crate) fn find(&self, which: &str) -> Result<Vm, Refusal> {
        let direct = self.load(self.path(which));
        let found = direct.or_else(|| self.all().into_iter().find(|vm| vm.name == which));
        found.ok_or_else(|| {
            Refusal(
                format!("Could not find a registered machine named '{which}'"),
                NOT_FOUND,
            )
        })
    }

    pub(crate) fn change(&self, which: &str, act: impl FnOnce(&mut Vm) -> Answer) -> Answer {
        let _lock = self.lock();
        let mut vm = self.find(which)?;
        let answer = act(&mut vm)?;
        self.save(&vm);
        Ok(answer)
    }

    pub(crate) fn at_rest(&self, which: &str, act: impl FnOnce(&mut Vm) -> Answer) -> Answer {
        self.change(which, |vm| {
            if vm.is_live() || vm.still_locked() {
                return Err(Refusal(
                    format!(
                        "The machine '{}' is already locked for a session (or being unlocked)",
                        vm.name
                    ),
                    crate::BAD_OBJECT,
                ));
            }
            act(vm)
        })
    }
}
