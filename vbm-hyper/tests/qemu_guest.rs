//! The tiny guest, really booted: what only a real guest can show.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::{PATIENCE, QemuBench, READY, converse, kill_9, left_out, read_until};
use std::{process::Stdio, sync::Arc, time::Duration};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use vbm_core::{CrashCause, PowerEvent, PowerState, VmId};
use vbm_hyper::{Consoles, Driver, Error, Machines, OpCx, QemuConfig, QemuDriver, StopOutcome, VmDefinition};

const MULTI: &str = "each test needs two threads: one for the bench, one for the driver";

async fn driver(bench: &QemuBench) -> QemuDriver {
    QemuDriver::open(bench.config()).await.expect(MULTI)
}

async fn booted(driver: &QemuDriver, definition: &VmDefinition) {
    driver.start(&OpCx::new(), definition, vec![]).await.unwrap();
    let mut serial = driver.serial(definition.id).await.unwrap();
    read_until(&mut serial, READY).await;
}

async fn event(
    events: &mut tokio::sync::broadcast::Receiver<vbm_hyper::DriverEvent>,
    id: VmId,
    wanted: PowerEvent,
) {
    let found = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.id == id && event.event == wanted {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found)
        .await
        .expect("the event comes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_boots_from_its_own_clone_talks_and_shuts_down_when_asked() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let machines = Machines::open(Arc::new(driver(&bench).await)).await.unwrap();
    let definition = bench.on_disk();
    let vm = machines.vm(definition.id);
    vm.start(definition.clone(), vec![]).await.unwrap();
    let consoles = machines.driver().consoles().unwrap();
    let mut serial = consoles.serial(definition.id).await.unwrap();
    read_until(&mut serial, READY).await;
    converse(&mut serial, "echo typed-$((20+3))", "typed-23").await;
    let outcome = vm.stop(PATIENCE).await.unwrap();
    assert!(
        matches!(outcome, StopOutcome::Off { pressed: 1.., .. }),
        "{outcome:?}"
    );
    assert_eq!(vm.inspect().await.unwrap().power(), PowerState::Off);
    let said = consoles.scrollback(definition.id, 64 * 1024).await.unwrap();
    assert!(
        String::from_utf8_lossy(&said).contains("vbm-guest down"),
        "it shut down in order"
    );
    vm.remove().await.unwrap();
    machines.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_screen_shows_something_and_vnc_shakes_hands_to_the_end() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = driver(&bench).await;
    let definition = bench.direct();
    booted(&driver, &definition).await;
    let png = driver.screenshot(definition.id).await.unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert!(info.width >= 640 && info.height >= 400, "{info:?}");
    assert!(
        pixels.iter().filter(|byte| **byte > 0x40).count() > 100,
        "there is text on it"
    );

    let mut vnc = driver.vnc(definition.id).await.unwrap();
    let mut version = [0; 12];
    vnc.read_exact(&mut version).await.unwrap();
    vnc.write_all(&version).await.unwrap();
    let types = vnc.read_u8().await.unwrap();
    let mut offered = vec![0; usize::from(types)];
    vnc.read_exact(&mut offered).await.unwrap();
    assert!(offered.contains(&1), "security type None is offered: {offered:?}");
    vnc.write_all(&[1]).await.unwrap();
    assert_eq!(vnc.read_u32().await.unwrap(), 0, "it lets us in");
    vnc.write_all(&[1]).await.unwrap();
    assert_eq!(u32::from(vnc.read_u16().await.unwrap()), info.width);
    driver.kill(definition.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_guests_from_one_base_do_not_see_each_others_disk() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = driver(&bench).await;
    let (a, b) = (bench.direct(), bench.direct());
    tokio::join!(booted(&driver, &a), booted(&driver, &b));
    for (vm, word) in [(&a, "apple"), (&b, "berry")] {
        let mut serial = driver.serial(vm.id).await.unwrap();
        let line = format!(
            "echo {word} | dd of=/dev/vda bs=512 seek=100 conv=notrunc 2>/dev/null; sync; echo wrote-$((1+1))"
        );
        converse(&mut serial, &line, "wrote-2").await;
    }
    for (vm, word) in [(&a, "apple"), (&b, "berry")] {
        let mut serial = driver.serial(vm.id).await.unwrap();
        let line = "echo got-$(dd if=/dev/vda bs=512 skip=100 count=1 2>/dev/null | head -c5)";
        converse(&mut serial, line, &format!("got-{word}")).await;
        driver.kill(vm.id).await.unwrap();
    }
    let [image] = &bench.images.list().await.unwrap()[..] else {
        panic!("one image")
    };
    let content = std::fs::read(bench.images.path(image.digest).unwrap()).unwrap();
    let original = std::fs::read(common::guest_dir().join("guest.qcow2")).unwrap();
    assert!(content == original, "the base was not written");
    assert_eq!(image.users, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hypervisor_that_hangs_is_unresponsive_and_not_failed_and_can_be_forced_off() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = driver(&bench).await;
    let definition = bench.on_disk();
    let id = definition.id;
    let pid = driver
        .start(&OpCx::new(), &definition, vec![])
        .await
        .unwrap()
        .pid
        .unwrap();
    signal(pid, rustix::process::Signal::STOP);
    let error = driver.pause(id).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(driver.inspect(id).await.unwrap().power, PowerState::Unresponsive);
    assert_eq!(
        driver.inventory().await.unwrap().len(),
        1,
        "the inventory does not hang with it"
    );
    let mut events = driver.events();
    signal(pid, rustix::process::Signal::CONT);
    // It comes back, and obeys the late command.
    event(&mut events, id, PowerEvent::Started).await;
    driver.inspect(id).await.unwrap();
    signal(pid, rustix::process::Signal::STOP);
    driver.kill(id).await.unwrap();
    assert_eq!(driver.inspect(id).await.unwrap().power, PowerState::Off);
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_tells_why_and_leaves_nothing() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = driver(&bench).await;
    let disk = bench.dir.path().join("not-a.qcow2");
    std::fs::write(&disk, b"nonsense").unwrap();
    let definition = common::definition(&disk);
    let error = vbm_core::Error::from(driver.start(&OpCx::new(), &definition, vec![]).await.unwrap_err());
    assert!(error.why().contains("qcow2"), "{error}");
    assert_eq!(
        driver.inspect(definition.id).await.unwrap().power,
        PowerState::Off
    );
    let left: Vec<_> = std::fs::read_dir(bench.dir.path().join("run").join(definition.id.to_string()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !matches!(name.as_str(), "machine.json" | "qemu.log" | "serial.log"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let missing = common::definition("/nonexistent.qcow2");
    assert_eq!(
        driver
            .start(&OpCx::new(), &missing, vec![])
            .await
            .unwrap_err()
            .kind(),
        vbm_core::ErrorKind::InvalidInput
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_probe_says_how_guests_are_run_and_why() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let config = QemuConfig {
        accelerator: None,
        ..bench.config()
    };
    let driver = QemuDriver::open(config).await.unwrap();
    let capability = driver.probe().await;
    let accelerator = capability.accelerator.unwrap();
    println!(
        "{}: {}: {}",
        capability.version, accelerator.name, accelerator.reason
    );
    assert!(capability.problem.is_none() && !capability.version.is_empty());
    match accelerator.name.as_str() {
        "kvm" => {}
        "tcg" => assert!(accelerator.reason.contains("emulated") && accelerator.reason.contains("/dev/kvm")),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_run_directory_has_one_driver() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let first = driver(&bench).await;
    assert!(matches!(
        QemuDriver::open(bench.config()).await.unwrap_err(),
        Error::InUse { .. }
    ));
    first.shutdown().await;
    driver(&bench).await;
}

/// Not a test: the daemon of the test after it. It starts a VM, says its pid, and waits to be killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helper_a_daemon_that_is_going_to_be_killed() {
    let Ok(run) = std::env::var("VBM_TEST_DAEMON_RUN") else {
        return;
    };
    let definition: VmDefinition =
        serde_json::from_str(&std::env::var("VBM_TEST_DAEMON_VM").unwrap()).unwrap();
    let config = QemuConfig::new(run).with_accelerator(vbm_hyper::AcceleratorChoice::Tcg);
    let driver = QemuDriver::open(config).await.unwrap();
    booted(&driver, &definition).await;
    // QEMU loses what it says in the very moment in which its reader dies, so the line is whole before that.
    let mut serial = driver.serial(definition.id).await.unwrap();
    converse(&mut serial, "echo up-$((1+1))", "up-2").await;
    println!(
        "\nRUNS {}",
        driver.inspect(definition.id).await.unwrap().pid.unwrap()
    );
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_survives_the_kill_of_its_daemon_and_is_adopted_with_all_that_works() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let definition = bench.direct();
    let id = definition.id;
    let mut daemon = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "helper_a_daemon_that_is_going_to_be_killed",
            "--nocapture",
        ])
        .env("VBM_TEST_DAEMON_RUN", &bench.config().root)
        .env("VBM_TEST_DAEMON_VM", serde_json::to_string(&definition).unwrap())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let pid: u32 = loop {
        let line = lines
            .next_line()
            .await
            .unwrap()
            .expect("the daemon starts the VM");
        if let Some(pid) = line.strip_prefix("RUNS ") {
            break pid.parse().unwrap();
        }
    };
    kill_9(daemon.id().unwrap());
    daemon.wait().await.unwrap();

    let driver = driver(&bench).await;
    let mut events = driver.events();
    let begun = tokio::time::Instant::now();
    let adopted = driver.adopt().await.unwrap();
    println!("MEASURED adopt after kill -9: {:?}", begun.elapsed());
    assert_eq!(adopted.len(), 1);
    assert_eq!(
        (adopted[0].seen.pid, adopted[0].seen.power),
        (Some(pid), PowerState::Running)
    );
    assert_eq!(adopted[0].definition, definition);
    let mut serial = driver.serial(id).await.unwrap();
    read_until(&mut serial, READY).await;
    converse(&mut serial, "echo again-$((5*5))", "again-25").await;
    let press = async {
        while driver.stop(id).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    tokio::join!(press, event(&mut events, id, PowerEvent::ShutDown));
    assert_eq!(driver.inspect(id).await.unwrap().power, PowerState::Off);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_qemu_is_a_crash_and_its_serial_text_stays() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = driver(&bench).await;
    let definition = bench.direct();
    let mut events = driver.events();
    booted(&driver, &definition).await;
    kill_9(driver.inspect(definition.id).await.unwrap().pid.unwrap());
    event(
        &mut events,
        definition.id,
        PowerEvent::Crash(CrashCause::Hypervisor),
    )
    .await;
    let said = driver.scrollback(definition.id, 1 << 20).await.unwrap();
    assert!(String::from_utf8_lossy(&said).contains(READY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_left_by_a_start_that_was_cut_short_is_ended_by_adoption() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let first = driver(&bench).await;
    let definition = bench.on_disk();
    let id = definition.id;
    let pid = first
        .start(&OpCx::new(), &definition, vec![])
        .await
        .unwrap()
        .pid
        .unwrap();
    first.shutdown().await;
    // As if the daemon had died between exec and manifest.
    let dir = bench.config().root.join(id.to_string());
    std::fs::remove_file(dir.join("manifest")).unwrap();
    let second = driver(&bench).await;
    assert_eq!(second.inspect(id).await.unwrap().power, PowerState::Unknown);
    assert!(second.adopt().await.unwrap().is_empty());
    assert_eq!(second.inspect(id).await.unwrap().power, PowerState::Off);
    let gone = async {
        while std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|text| text.contains(&id.to_string()))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is ended");
    second.start(&OpCx::new(), &definition, vec![]).await.unwrap();
    second.kill(id).await.unwrap();
}
