//! A VBoxManage without VirtualBox: answers in the words of recordings of the real one, and keeps a state.
//!
//! ```text
//!   fake VBoxManage --startvm--> fake VBoxHeadless (this program again, in a session of its own)
//!        |                          | serial socket, VNC display, a guest that obeys its power button
//!        `----- $VBOX_USER_HOME/fake/<uuid>.json, one lock ----'
//! ```
//!
//! What a test wants to go wrong it writes into `$VBOX_USER_HOME/fake/knobs/`: see [`world::World::knob`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program of the tests: it panics, prints and sleeps as they do"
)]

mod guest;
mod world;

use std::{path::Path, process::ExitCode, time::Duration};
use world::{Snapshot, Vm, World};

/// A refusal: its words, and the name and number of its code.
pub(crate) struct Refusal(pub(crate) String, pub(crate) Option<(&'static str, u32)>);
pub(crate) type Answer = Result<String, Refusal>;

const NOT_FOUND: Option<(&str, u32)> = Some(("VBOX_E_OBJECT_NOT_FOUND", 0x80bb_0001));
const BAD_STATE: Option<(&str, u32)> = Some(("VBOX_E_INVALID_VM_STATE", 0x80bb_0002));
const BAD_OBJECT: Option<(&str, u32)> = Some(("VBOX_E_INVALID_OBJECT_STATE", 0x80bb_0007));
const FAILURE: Option<(&str, u32)> = Some(("NS_ERROR_FAILURE", 0x8000_4005));
const INVALID: Option<(&str, u32)> = Some(("NS_ERROR_INVALID_ARG", 0x8007_0057));
/// Recorded: progress stands on standard error.
const PROGRESS: &str = "0%...10%...20%...30%...40%...50%...60%...70%...80%...90%...100%";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "--startvm") {
        guest::run(&args[at + 1]);
        return ExitCode::SUCCESS;
    }
    let world = World::open();
    if let Some(seconds) = world.knob("hang") {
        std::thread::sleep(Duration::from_secs(seconds.parse().unwrap()));
    }
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match command(&world, &words) {
        Ok(said) => {
            print!("{said}");
            ExitCode::SUCCESS
        }
        Err(Refusal(why, code)) => {
            eprintln!("VBoxManage: error: {why}");
            if let Some((name, number)) = code {
                eprintln!(
                    "VBoxManage: error: Details: code {name} (0x{number:08x}), component SessionMachine, interface IMachine, callee nsISupports"
                );
            }
            // Recorded: this one fails with 0.
            ExitCode::from(u8::from(words[0] != "discardstate"))
        }
    }
}

fn command(world: &World, words: &[&str]) -> Answer {
    match words {
        ["--version"] => Ok("7.2.22_Debianr175245\n".into()),
        ["list", "extpacks"] => Ok("Extension Packs: 1\nPack no. 0:   VNC\nVersion:        7.2.22\nUsable:         true\nWhy unusable:   \n".into()),
        ["list", "vms", "--long"] => {
            if world.knob("list-fails").is_some() {
                return Err(Refusal("Failed to create the VirtualBox object!".into(), FAILURE));
            }
            let _lock = world.lock();
            Ok(world.all().iter().map(|vm| vm.long()).collect())
        }
        ["list", "runningvms"] => {
            if world.knob("list-fails").is_some() {
                return Err(Refusal(
                    "Failed to create the VirtualBox object!".into(),
                    FAILURE,
                ));
            }
            let _lock = world.lock();
            let all = world.all();
            let runs = all.iter().filter(|vm| matches!(vm.state.as_str(), "running" | "paused"));
            Ok(runs.map(|vm| format!("\"{}\" {{{}}}\n", vm.name, vm.uuid)).collect())
        }
        ["showvminfo", id, "--machinereadable"] => {
            let _lock = world.lock();
            Ok(world.find(id)?.machine_readable())
        }
        ["createvm", rest @ ..] => create(world, rest),
        ["modifyvm", id, rest @ ..] => world.at_rest(id, |vm| {
            vm.modify(rest);
            Ok(String::new())
        }),
        ["storagectl", id, ..] => world.at_rest(id, |vm| {
            vm.settings.insert("storagecontrollername0".into(), "disk".into());
            Ok(String::new())
        }),
        ["storageattach", id, rest @ ..] => attach(world, id, rest.last().unwrap()),
        ["unregistervm", id] => {
            let _lock = world.lock();
            let vm = world.find(id)?;
            if vm.is_live() {
                return Err(Refusal(format!("Cannot unregister the machine '{}' while it is locked", vm.name), BAD_OBJECT));
            }
            world.forget(&vm.uuid);
            Ok(String::new())
        }
        ["startvm", id, "--type", "headless"] => start(world, id),
        ["controlvm", id, word, rest @ ..] => control(world, id, word, rest),
        ["discardstate", id] => world.change(id, |vm| match vm.state.as_str() {
            "saved" | "aborted-saved" => {
                vm.state = "poweroff".into();
                Ok(String::new())
            }
            _ => Err(Refusal(
                "Cannot discard the saved state as the machine is not in the Saved or Aborted-Saved state (machine state: PoweredOff)".into(),
                BAD_STATE,
            )),
        }),
        ["snapshot", id, rest @ ..] => snapshot(world, id, rest),
        _ => Err(Refusal(format!("Invalid command '{}'", words.join(" ")), None)),
    }
}

/// The word after an option.
fn after<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == option)?;
    words.get(at + 1).copied()
}

fn create(world: &World, words: &[&str]) -> Answer {
    let _lock = world.lock();
    let name = after(words, "--name").unwrap();
    let uuid = after(words, "--uuid").map_or_else(
        || format!("{:08x}-0000-4000-8000-000000000000", std::process::id()),
        str::to_owned,
    );
    let groups = after(words, "--groups").unwrap_or("/");
    if let Ok(there) = world.find(&uuid) {
        return Err(Refusal(
            format!(
                "Registered machine with UUID {{{uuid}}} ('{}') already exists",
                there.config
            ),
            INVALID,
        ));
    }
    let folder = Path::new(after(words, "--basefolder").unwrap())
        .join(groups.trim_start_matches('/'))
        .join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join(format!("{name}.vbox")).display().to_string();
    std::fs::write(&config, "<fake/>").unwrap();
    world.save(&Vm::new(&uuid, name, groups, &config));
    Ok(format!(
        "Virtual machine '{name}' is created and registered.\nUUID: {uuid}\nSettings file: '{config}'\n"
    ))
}

fn attach(world: &World, id: &str, medium: &str) -> Answer {
    world.at_rest(id, |vm| {
        if medium == "none" {
            if !vm.snapshots.is_empty() {
                return Err(Refusal(
                    "Cannot detach a device from a machine which has snapshots".into(),
                    BAD_STATE,
                ));
            }
            vm.settings.insert("disk-0-0".into(), "none".into());
            return Ok(String::new());
        }
        let head = std::fs::read(medium).unwrap_or_default();
        if head.get(0x40..0x44) != Some(&[0x7f, 0x10, 0xda, 0xbe]) {
            return Err(Refusal(
                format!("Could not open the medium '{medium}'"),
                Some(("VBOX_E_IPRT_ERROR", 0x80bb_0005)),
            ));
        }
        vm.settings.insert("disk-0-0".into(), medium.into());
        Ok(String::new())
    })
}

fn start(world: &World, id: &str) -> Answer {
    let vm = {
        let _lock = world.lock();
        let mut vm = world.find(id)?;
        if vm.is_live() || vm.still_locked() {
            return Err(Refusal(
                format!(
                    "The machine '{}' is already locked by a session (or being locked or unlocked)",
                    vm.name
                ),
                BAD_OBJECT,
            ));
        }
        if world.knob("start-fails").is_some() {
            return Err(Refusal(
                format!(
                    "The virtual machine '{}' has terminated unexpectedly during startup with exit code 1 (0x1)",
                    vm.name
                ),
                FAILURE,
            ));
        }
        if world.knob("display-fails").is_some() && vm.settings.get("vrde").is_some_and(|on| on == "on") {
            return Err(Refusal(
                "Failed to launch the VRDE server (VERR_NET_ADDRESS_IN_USE)".into(),
                Some(("VBOX_E_VM_ERROR", 0x80bb_0003)),
            ));
        }
        vm.from_saved = vm.state.ends_with("saved");
        vm.state = if vm.from_saved { "restoring" } else { "starting" }.into();
        vm.pid = std::process::id();
        world.save(&vm);
        vm
    };
    if let Some(millis) = world.knob("start-takes") {
        std::thread::sleep(Duration::from_millis(millis.parse().unwrap()));
    }
    guest::spawn(&vm);
    loop {
        std::thread::sleep(Duration::from_millis(5));
        let _lock = world.lock();
        let now = world.find(id)?;
        match now.state.as_str() {
            "starting" | "restoring" => {}
            "running" => {
                return Ok(format!(
                    "Waiting for VM \"{id}\" to power on...\nVM \"{id}\" has been successfully started.\n"
                ));
            }
            _ => {
                return Err(Refusal(
                    format!(
                        "The virtual machine '{}' has terminated unexpectedly during startup",
                        now.name
                    ),
                    FAILURE,
                ));
            }
        }
    }
}

fn control(world: &World, id: &str, word: &str, rest: &[&str]) -> Answer {
    let vm = {
        let _lock = world.lock();
        world.find(id)?
    };
    if !vm.is_live() {
        return Err(Refusal(format!("Machine '{id}' is not currently running."), None));
    }
    if word == "poweroff" && world.knob("poweroff-fails").is_some() {
        return Err(Refusal("The VM does not obey".into(), FAILURE));
    }
    let refuse = |wanted: &str| {
        Refusal(
            format!("Invalid machine state: {} (must be {wanted})", vm.state),
            BAD_STATE,
        )
    };
    match (word, vm.state.as_str()) {
        ("pause" | "reset" | "acpipowerbutton", state) if state != "running" => {
            return Err(refuse("Running"));
        }
        ("resume", state) if state != "paused" => return Err(refuse("Paused")),
        ("screenshotpng", _) => {
            std::fs::write(rest[0], world::PICTURE).unwrap();
            return Ok(String::new());
        }
        _ => {}
    }
    guest::tell(world, &vm.uuid, word);
    eprintln!("{PROGRESS}");
    Ok(String::new())
}

fn snapshot(world: &World, id: &str, words: &[&str]) -> Answer {
    match words {
        ["list", "--machinereadable"] => {
            let _lock = world.lock();
            let vm = world.find(id)?;
            if vm.snapshots.is_empty() {
                println!("This machine does not have any snapshots");
                std::process::exit(1);
            }
            Ok(vm.tree())
        }
        ["take", name, rest @ ..] => {
            let (online, running) = {
                let _lock = world.lock();
                let vm = world.find(id)?;
                (vm.is_live(), vm.state == "running")
            };
            if rest.contains(&"--live") && !running {
                // Recorded.
                return Err(Refusal(
                    "Cannot take a live snapshot of a virtual machine unless it is running.".into(),
                    BAD_STATE,
                ));
            }
            if online && world.knob("snapshot-fails").is_some() {
                return Err(Refusal("Could not create the snapshot: no room".into(), Some(("VBOX_E_FILE_ERROR", 0x80bb_0004))));
            }
            world.change(id, |vm| {
                let uuid = format!("{:08x}-0000-4000-8000-{:012x}", vm.snapshots.len() + 1, vm.taken + 1);
                vm.taken += 1;
                let held = Snapshot {
                    uuid: uuid.clone(),
                    name: (*name).to_owned(),
                    description: after(rest, "--description").unwrap_or_default().to_owned(),
                    parent: vm.current.clone(),
                    online,
                    settings: vm.settings.clone(),
                };
                vm.current.clone_from(&uuid);
                vm.snapshots.push(held);
                eprintln!("{PROGRESS}");
                Ok(format!("Snapshot taken. UUID: {uuid}\n"))
            })
        }
        ["restore", which] => world.at_rest(id, |vm| {
            let held = vm.snapshot(which)?.clone();
            vm.current = held.uuid;
            vm.settings = held.settings;
            vm.state = if held.online { "saved" } else { "poweroff" }.into();
            Ok(format!("Restoring snapshot '{}' ({which})\n", held.name))
        }),
        ["delete", which] => world.change(id, |vm| {
            let held = vm.snapshot(which)?.clone();
            let children = vm.snapshots.iter().filter(|other| other.parent == held.uuid).count();
            if children > 1 {
                return Err(Refusal(
                    format!("Snapshot '{}' of the machine '{}' cannot be deleted, because it has {children} child snapshots, which is more than the one snapshot allowed for deletion", held.name, vm.name),
                    BAD_OBJECT,
                ));
            }
            vm.snapshots.retain(|other| other.uuid != held.uuid);
            for child in vm.snapshots.iter_mut().filter(|other| other.parent == held.uuid) {
                child.parent.clone_from(&held.parent);
            }
            if vm.current == held.uuid {
                vm.current = held.parent;
            }
            Ok(format!("Deleting snapshot '{}' ({which})\n", held.name))
        }),
        _ => Err(Refusal("Invalid snapshot command".into(), None)),
    }
}
