//! What things cost with a real QEMU: printed, not judged. And what happens when a start is cut short anywhere.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::{QemuBench, left_out};
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    time::{Instant, timeout},
};
use vbm_core::PowerState;
use vbm_hyper::{Driver, OpCx, QemuDriver};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The same QEMU by hand: exec, greeting, capabilities, `cont`, over standard input and output.
async fn by_hand(args: &[String]) -> Duration {
    let begun = Instant::now();
    let mut qemu = tokio::process::Command::new("qemu-system-x86_64")
        .args(args)
        .args(["-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut to = qemu.stdin.take().unwrap();
    let mut from = BufReader::new(qemu.stdout.take().unwrap()).lines();
    from.next_line().await.unwrap().unwrap();
    to.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n")
        .await
        .unwrap();
    while !from.next_line().await.unwrap().unwrap().contains("RESUME") {}
    let took = begun.elapsed();
    qemu.kill().await.unwrap();
    took
}

/// Our command line without what needs sockets that we bind.
fn plain(argv: &[String]) -> Vec<String> {
    let pairs = argv.windows(2).enumerate();
    let dropped: Vec<usize> = pairs
        .filter(|(_, pair)| match pair[0].as_str() {
            "-chardev" | "-mon" | "-serial" => true,
            "-device" => pair[1].contains("chardev="),
            _ => false,
        })
        .flat_map(|(at, _)| [at, at + 1])
        .collect();
    argv.iter()
        .enumerate()
        .filter(|(at, _)| !dropped.contains(at))
        .map(|(_, arg)| arg.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_and_a_force_off_cost_little_more_than_qemu_itself() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = QemuDriver::open(bench.config()).await.unwrap();
    driver.probe().await;
    let (mut ours, mut theirs, mut kills) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..7 {
        let definition = bench.on_disk();
        let begun = Instant::now();
        driver.start(&OpCx::new(), &definition, vec![]).await.unwrap();
        ours.push(begun.elapsed());
        let manifest = bench
            .config()
            .root
            .join(definition.id.to_string())
            .join("manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        let argv: Vec<String> = serde_json::from_value(manifest["argv"].clone()).unwrap();
        let begun = Instant::now();
        driver.kill(definition.id).await.unwrap();
        kills.push(begun.elapsed());
        theirs.push(by_hand(&plain(&argv)).await);
    }
    let (ours, theirs, kills) = (median(ours), median(theirs), median(kills));
    println!(
        "MEASURED start to Running {ours:?}, by hand {theirs:?}, ratio {:.2}; force-off to Off {kills:?}",
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_cut_short_at_any_time_leaves_no_process_and_the_vm_off() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = QemuDriver::open(bench.config()).await.unwrap();
    driver.probe().await;
    let definition = bench.on_disk();
    let id = definition.id;
    for millis in [0, 1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128, 160] {
        let mut events = driver.events();
        let cut = timeout(
            Duration::from_millis(millis),
            driver.start(&OpCx::new(), &definition, vec![]),
        )
        .await;
        if cut.is_ok() {
            driver.kill(id).await.unwrap();
            continue;
        }
        // A force-off right after it waits for the end.
        if driver.inspect(id).await.is_ok() {
            driver.kill(id).await.unwrap();
            assert_eq!(
                driver.inspect(id).await.unwrap().power,
                PowerState::Off,
                "after {millis} ms"
            );
            let left = bench.config().root.join(id.to_string());
            assert!(
                !left.join("q0").exists()
                    && !left.join("starting").exists()
                    && !left.join("manifest").exists()
            );
        }
        drop(events.try_recv());
    }
    let run = bench.config().root;
    for entry in std::fs::read_dir("/proc").unwrap() {
        let cmdline = std::fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&cmdline).contains(run.to_str().unwrap()),
            "a process is left"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_run_directories_are_opened_adopted_and_listed_quickly() {
    if left_out("qemu") {
        return;
    }
    let bench = QemuBench::make().await;
    let driver = QemuDriver::open(bench.config()).await.unwrap();
    let definition = bench.on_disk();
    driver.start(&OpCx::new(), &definition, vec![]).await.unwrap();
    let manifest = bench
        .config()
        .root
        .join(definition.id.to_string())
        .join("manifest");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    driver.kill(definition.id).await.unwrap();
    driver.shutdown().await;
    for _ in 0..1000 {
        let id = uuid::Uuid::now_v7().to_string();
        let dir = bench.config().root.join(&id);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(
            dir.join("manifest"),
            manifest.replace(&definition.id.to_string(), &id),
        )
        .unwrap();
    }
    let begun = Instant::now();
    let driver = QemuDriver::open(bench.config()).await.unwrap();
    let opened = begun.elapsed();
    let begun = Instant::now();
    let adopted = driver.adopt().await.unwrap();
    let adopting = begun.elapsed();
    let begun = Instant::now();
    let inventory = driver.inventory().await.unwrap();
    println!(
        "MEASURED 1000 run directories: open {opened:?}, adopt (all ended) {adopting:?}, inventory {:?}",
        begun.elapsed()
    );
    assert_eq!((adopted.len(), inventory.len()), (1000, 1001));
    assert!(
        adopted
            .iter()
            .all(|vm| matches!(vm.seen.power, PowerState::Crashed(_)))
    );
}
