//! Hot-plug through the actor, where the simulated guest refuses or says nothing.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests panic and print as tests do"
)]

mod common;

use common::definition;
use std::{fs, os::fd::AsRawFd, sync::Arc, time::Duration};
use tokio::time::Instant;
use vbm_core::{ErrorKind, Mac, Outcome, PortId, VolumeId};
use vbm_hyper::{
    DiskDefinition, Error, Fault, Job, Machines, NicBackend, NicDefinition, OpCx, SimDriver, SimWorld,
    VmHandle, limits::UNPLUG_DEADLINE,
};

async fn running() -> (SimWorld, Machines, VmHandle) {
    let world = SimWorld::default();
    let machines = Machines::open(Arc::new(SimDriver::open(world.clone()).unwrap()))
        .await
        .unwrap();
    let definition = definition("/nonexistent/root.qcow2");
    let vm = machines.vm(definition.id);
    vm.start(definition, vec![]).await.unwrap();
    (world, machines, vm)
}

fn disk() -> DiskDefinition {
    DiskDefinition {
        volume: VolumeId::from_uuid(uuid::Uuid::now_v7()),
        path: "/nonexistent/data.qcow2".into(),
        read_only: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_refuses_keeps_its_disk_and_lets_go_when_it_is_asked_again() {
    let (world, machines, vm) = running().await;
    let disk = disk();
    vm.attach_disk(disk.clone()).await.unwrap();
    world.add_fault(vm.id(), Fault::NextUnplugRefused("it is mounted".into()));
    let error = vm.detach_disk(disk.volume).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let told = vbm_core::Error::from(error);
    assert!(
        told.why().contains("it is mounted") && told.fix().contains("unmount"),
        "{told:?}"
    );
    assert_eq!(vm.devices().await.unwrap().disks, std::slice::from_ref(&disk));
    vm.detach_disk(disk.volume).await.unwrap();
    assert!(vm.devices().await.unwrap().disks.is_empty());
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_is_waited_for_as_long_as_the_limit_says_or_its_caller() {
    let (world, machines, vm) = running().await;
    let disk = disk();
    vm.attach_disk(disk.clone()).await.unwrap();
    world.add_fault(vm.id(), Fault::KeepsDevices);
    let begun = Instant::now();
    let error = vm.detach_disk(disk.volume).await.unwrap_err();
    assert!(begun.elapsed() >= UNPLUG_DEADLINE);
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::DeadlineExceeded, Outcome::Unknown)
    );
    let begun = Instant::now();
    let hurried = vm.under(OpCx::new().within(Duration::from_secs(1)));
    let error = hurried.detach_disk(disk.volume).await.unwrap_err();
    assert!(
        matches!(error, Error::OutOfTime { .. }) && begun.elapsed() < UNPLUG_DEADLINE,
        "{error}"
    );
    assert_eq!(vm.devices().await.unwrap().disks, [disk]);
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_force_off_ends_a_detachment_and_other_work_waits_for_it() {
    let (world, machines, vm) = running().await;
    let disk = disk();
    vm.attach_disk(disk.clone()).await.unwrap();
    world.add_fault(vm.id(), Fault::KeepsDevices);
    let detaching = {
        let vm = vm.clone();
        tokio::spawn(async move { vm.detach_disk(disk.volume).await })
    };
    vm.watch()
        .wait_for(|seen| seen.busy == Some(Job::DetachDisk))
        .await
        .unwrap();
    let error = vm.pause().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Busy {
                job: "detachment of a disk",
                ..
            }
        ),
        "{error}"
    );
    vm.force_off().await.unwrap();
    let ended = detaching.await.unwrap().unwrap_err();
    assert!(matches!(ended, Error::Preempted { .. }), "{ended}");
    machines.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_nic_is_plugged_into_is_let_go_with_it_and_not_before() {
    let (world, machines, vm) = running().await;
    let nic = NicDefinition {
        port: PortId::from_uuid(uuid::Uuid::now_v7()),
        mac: Mac::local(9),
        mtu: None,
    };
    let (held, ours) = std::io::pipe().unwrap();
    let number = ours.as_raw_fd();
    vm.attach_nic(nic.clone(), NicBackend::Tap(ours.into()))
        .await
        .unwrap();
    world.add_fault(vm.id(), Fault::NextUnplugRefused("it is used".into()));
    vm.detach_nic(nic.port).await.unwrap_err();
    assert!(
        fs::read_link(format!("/proc/self/fd/{number}")).is_ok(),
        "it is held"
    );
    vm.detach_nic(nic.port).await.unwrap();
    // The other end of a pipe whose writer is gone reads its end.
    assert_eq!(std::io::read_to_string(held).unwrap(), "");
    let error = vm
        .attach_nic(
            NicDefinition {
                mac: Mac::new([1, 0, 0x5e, 0, 0, 1]),
                ..nic
            },
            NicBackend::HostInterface("eth0".into()),
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    machines.shutdown().await;
}
