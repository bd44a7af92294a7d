//! The fake VBoxHeadless: a guest that says it is ready, answers `echo`, and obeys its power button.

use crate::world::{Vm, World};
use des::{
    Des,
    cipher::{Block, BlockCipherEncrypt, KeyInit},
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::{
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

const READY: &str = "vbm-guest ready\r\n/ # ";
const CHALLENGE: [u8; 16] = *b"a fake challenge";

/// Starts the process of a VM, in a session of its own: its parent is about to end.
pub(crate) fn spawn(vm: &Vm) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg0("VBoxHeadless")
        .args(["--comment", &vm.name, "--startvm", &vm.uuid, "--vrde", "config"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Not of the group that the driver kills when VBoxManage is late.
        .process_group(0);
    // Its parent ends first, and it is adopted by init.
    std::mem::forget(command.spawn().unwrap());
}

/// Sends a command to the process of a VM and waits until it has obeyed.
pub(crate) fn tell(world: &World, uuid: &str, word: &str) {
    let Ok(mut stream) = UnixStream::connect(world.dir.join(format!("{uuid}.ctl"))) else {
        return;
    };
    stream
        .write_all(format!("{word}\n").as_bytes())
        .unwrap_or_default();
    // The answer, or the end of the process.
    stream.read(&mut [0; 8]).unwrap_or_default();
}

type Line = Arc<Mutex<Option<UnixStream>>>;

/// The process of a VM.
pub(crate) fn run(uuid: &str) {
    let world = World::open();
    let control = world.dir.join(format!("{uuid}.ctl"));
    drop(std::fs::remove_file(&control));
    let control = UnixListener::bind(control).unwrap();
    let vm = world.find(uuid).ok().expect("it is registered");
    let line = Line::default();
    if let Some(path) = vm
        .settings
        .get("uartmode1")
        .and_then(|mode| mode.strip_prefix("server,"))
    {
        drop(std::fs::remove_file(path));
        let listener = UnixListener::bind(path).unwrap();
        let line = Arc::clone(&line);
        thread::spawn(move || serial(&listener, &line));
    }
    if vm.settings.get("vrde").is_some_and(|on| on == "on") {
        let port: u16 = vm.settings["vrdeports"].parse().unwrap();
        let password = vm.settings["vrdeproperty[VNCPassword]"].clone();
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            thread::spawn(move || display(&listener, &password));
        }
    }
    set(&world, uuid, "running");
    for stream in control.incoming() {
        let mut stream = BufReader::new(stream.unwrap());
        let mut word = String::new();
        stream.read_line(&mut word).unwrap();
        match word.trim() {
            "pause" => set(&world, uuid, "paused"),
            "resume" => set(&world, uuid, "running"),
            "reset" => say(&line, READY),
            "acpipowerbutton" => {
                let (world, uuid) = (World::open(), uuid.to_owned());
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(50));
                    set(&world, &uuid, "poweroff");
                    std::process::exit(0);
                });
            }
            "poweroff" => {
                set(&world, uuid, "poweroff");
                return;
            }
            "savestate" => {
                set(&world, uuid, "saved");
                return;
            }
            _ => {}
        }
        stream.get_mut().write_all(b"done").unwrap_or_default();
    }
}

fn set(world: &World, uuid: &str, state: &str) {
    let changed = world.change(uuid, |vm| {
        vm.pid = std::process::id();
        if matches!(state, "poweroff" | "saved") {
            vm.end(state);
        } else {
            vm.state = state.into();
        }
        Ok(String::new())
    });
    assert!(changed.is_ok(), "the VM is registered");
}

fn say(line: &Line, text: &str) {
    if let Some(stream) = &mut *line.lock().unwrap() {
        stream.write_all(text.as_bytes()).unwrap_or_default();
    }
}

/// One connection at a time, as VirtualBox has it.
fn serial(listener: &UnixListener, line: &Line) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        *line.lock().unwrap() = Some(stream.try_clone().unwrap());
        say(line, READY);
        let mut typed = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|read| read == 1) {
            say(line, &String::from_utf8_lossy(&byte));
            if byte[0] == b'\n' {
                let text = String::from_utf8_lossy(&typed).into_owned();
                if let Some(word) = text.trim().strip_prefix("echo ") {
                    say(line, &format!("{}\r\n/ # ", word.replace("$((40+2))", "42")));
                }
                typed.clear();
            } else {
                typed.push(byte[0]);
            }
        }
    }
}

/// RFB 3.8 with a password (RFC 6143, section 7); then it sends back what it is sent.
fn display(listener: &TcpListener, password: &str) {
    for stream in listener.incoming() {
        let (mut stream, password) = (stream.unwrap(), password.to_owned());
        thread::spawn(move || -> std::io::Result<()> {
            stream.write_all(b"RFB 003.008\n")?;
            stream.read_exact(&mut [0; 12])?;
            stream.write_all(&[1, 2])?;
            stream.read_exact(&mut [0; 1])?;
            stream.write_all(&CHALLENGE)?;
            let mut answer = [0; 16];
            stream.read_exact(&mut answer)?;
            let mut key = [0_u8; 8];
            key.iter_mut()
                .zip(password.bytes())
                .for_each(|(to, from)| *to = from.reverse_bits());
            let mut wanted = CHALLENGE;
            for half in wanted.chunks_exact_mut(8) {
                let mut block = Block::<Des>::try_from(&*half).unwrap();
                Des::new(&key.into()).encrypt_block(&mut block);
                half.copy_from_slice(&block);
            }
            if answer != wanted {
                return stream.write_all(&[0, 0, 0, 1, 0, 0, 0, 5, b'w', b'r', b'o', b'n', b'g']);
            }
            stream.write_all(&[0; 4])?;
            std::io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
        });
    }
}
