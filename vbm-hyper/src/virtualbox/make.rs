//! Makes a VM in the registry what its definition says, and takes it out again.

use super::{
    Shared,
    argv::{self, Display},
    locked,
    machine::Machine,
    parse::Told,
    record::Applied,
    runner::Call,
};
use crate::{Error, Result, VmDefinition, driver::not_off, limits::VBOX_COMMAND_DEADLINE};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};
use vbm_core::{ErrorKind, PowerState, VmId};

/// The characters of a VNC password; more than 8 of them do not count (RFC 6143, section 7.2.2).
const PASSWORD_ALPHABET: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.";
const PASSWORD_CHARS: usize = 8;

/// Brings the VM in line with its definition: what is right already is left alone.
pub(super) async fn make(
    shared: &Shared,
    machine: &Machine,
    definition: &VmDefinition,
    interfaces: &[String],
    with_display: bool,
) -> Result<()> {
    let id = definition.id;
    machine.dir.create()?;
    let mut applied = machine.dir.applied()?;
    let info = match shared.info(id).await? {
        Some(info) => info,
        None => {
            let create = argv::create(definition, &shared.places.machines());
            shared.runner.run(&Call::new(create).on_registry()).await?;
            applied = Applied::default();
            BTreeMap::new()
        }
    };
    check_ours(id, &info)?;
    applied.definition = Some(definition.clone());
    if !info.contains_key("storagecontrollername0") {
        shared.runner.run(&Call::new(argv::add_controller(id))).await?;
    }
    place_disk(shared, machine, definition, &info, &mut applied).await?;
    let display = if with_display {
        Some(display(applied.display.take())?)
    } else {
        None
    };
    applied.display.clone_from(&display);
    let settings = argv::settings(definition, interfaces, &machine.dir.tty(), display.as_ref());
    if settings != applied.settings {
        // Until it is done, what was there before counts no more.
        applied.settings.clear();
        machine.dir.set_applied(&applied)?;
        shared.runner.run(&Call::new(settings.clone())).await?;
        applied.settings = settings;
    }
    machine.dir.set_applied(&applied)
}

/// A VM with our id that is not in our group was made by somebody else.
fn check_ours(id: VmId, info: &BTreeMap<String, String>) -> Result<()> {
    match info.get("groups") {
        Some(groups) if groups != argv::GROUP => Err(Error::Refused(vbm_core::Error::new(
            ErrorKind::Conflict,
            format!("VM {id} cannot be made in VirtualBox"),
            format!(
                "its registry has a VM with that id, '{}', which is not VBM's",
                info.get("name").map_or("", String::as_str)
            ),
            "remove that VM by hand if nobody needs it; VBM never touches it",
        ))),
        _ => Ok(()),
    }
}

async fn place_disk(
    shared: &Shared,
    machine: &Machine,
    definition: &VmDefinition,
    info: &BTreeMap<String, String>,
    applied: &mut Applied,
) -> Result<()> {
    let id = definition.id;
    let there = info.get(&argv::disk_key()).filter(|medium| *medium != "none");
    if there.is_some() && applied.disk.as_ref() == Some(&definition.root_disk) {
        return Ok(());
    }
    applied.disk = None;
    machine.dir.set_applied(applied)?;
    if there.is_some() {
        shared
            .runner
            .run(&Call::new(argv::attach(id, None)).on_registry())
            .await?;
    }
    shared
        .runner
        .run(&Call::new(argv::attach(id, Some(&definition.root_disk))).on_registry())
        .await?;
    applied.disk = Some(definition.root_disk.clone());
    machine.dir.set_applied(applied)
}

/// Where the screen is going to be: where it was, if nobody else is there.
fn display(before: Option<Display>) -> Result<Display> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|socket| socket.local_addr());
    if let Some(before) = before.filter(|display| bind(display.port).is_ok()) {
        return Ok(before);
    }
    // Somebody else may take the port until VirtualBox binds it; then the VM is started without a display.
    let port = bind(0)
        .map_err(Error::io("bind", "a port for the screen"))?
        .port();
    Ok(Display {
        port,
        password: password()?,
    })
}

fn password() -> Result<String> {
    let source = "/dev/urandom";
    let mut bytes = [0; PASSWORD_CHARS];
    fs::File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::io("read", source))?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(PASSWORD_ALPHABET[usize::from(byte & 63)]))
        .collect())
}

/// Takes a VM that is off out of the registry and removes what VirtualBox kept of it: never its disk, and nothing that
/// lies outside our own folders.
pub(super) async fn undefine(shared: &Shared, id: VmId) -> Result<()> {
    let machine = match shared.machine(id) {
        Err(Error::NoSuchVm(_)) => return Ok(()),
        other => other?,
    };
    let refuse = |power| Err(not_off(power));
    let _turn = machine.turn().await;
    let power = machine.power();
    if !matches!(power, PowerState::Off | PowerState::Crashed(_)) {
        return refuse(power);
    }
    if let Some(info) = shared.info(id).await? {
        let told = Told::parse(info.get("VMState").map_or("", String::as_str));
        if !matches!(told, Told::Off | Told::Aborted) {
            return refuse(super::watch::power_of(told));
        }
        if check_ours(id, &info).is_ok() {
            unregister(shared, id, &info).await?;
        }
    }
    machine.dir.remove()?;
    locked(&shared.vms).remove(&id);
    Ok(())
}

async fn unregister(shared: &Shared, id: VmId, info: &BTreeMap<String, String>) -> Result<()> {
    // Without `--delete`: that would remove the disk, which is the pool's.
    let call = Call::new(["unregistervm".to_owned(), id.to_string()]);
    shared
        .runner
        .run(&call.within(VBOX_COMMAND_DEADLINE).on_registry())
        .await?;
    let config = info.get("CfgFile").map_or("", String::as_str);
    match shared.places.folder_of(Path::new(config)) {
        Some(folder) => fs::remove_dir_all(&folder).or_else(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                Ok(())
            } else {
                Err(Error::io("remove", &folder)(error))
            }
        }),
        None => {
            tracing::warn!(%id, config, "the folder of a VM is not below ours and stays");
            Ok(())
        }
    }
}
