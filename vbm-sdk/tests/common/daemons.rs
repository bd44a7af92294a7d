//! Daemons as processes of their own, on one Redis, with simulated hosts.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "helpers of tests")]

use crate::redis_server::Redis;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::{sleep, timeout};
use vbm_core::{DiskFormat, Operation, OperationState};
use vbm_sdk::{
    api::{CreateImage, CreateNetwork},
    client::{Client, Endpoint},
};

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A `vbmd`; it ends with this value, and is taken off the host's list.
pub(crate) struct Daemon {
    pub(crate) process: Child,
    pub(crate) dir: PathBuf,
}

impl Daemon {
    pub(crate) fn start(redis: &Redis, place: &Path, role: &str, called: &str) -> Self {
        let dir = place.join(called);
        fs::create_dir_all(&dir).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_vbmd"))
            .arg(role)
            .args(["--driver", "sim", "--network", "sim", "--ephemeral", "--redis"])
            .arg(redis.url())
            .args(["--name", called, "--node", &format!("lab/{called}"), "--data-dir"])
            .arg(dir.join("data"))
            .arg("--run-dir")
            .arg(dir.join("run"))
            .arg("--socket")
            .arg(dir.join("s"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(
                fs::File::options()
                    .create(true)
                    .append(true)
                    .open(dir.join("log"))
                    .unwrap(),
            )
            .spawn()
            .unwrap();
        Self { process, dir }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(Endpoint::unix(self.dir.join("s")))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}:\n{}", self.dir.display(), self.log());
        }
        drop(self.process.kill());
        drop(self.process.wait());
        let tag = fs::read_to_string(self.dir.join("data/instance")).unwrap_or_default();
        if !tag.trim().is_empty() {
            drop(fs::remove_file(format!("/run/vbm/instances/{}.json", tag.trim())));
        }
    }
}

/// Waits until the controller that is asked says that this one leads; gives its epoch.
pub(crate) async fn until_leader(asked: &Client, called: &str) -> u64 {
    let seen = async {
        loop {
            if let Ok(version) = asked.version().await
                && let Some(leader) = version.leader
                && leader.name == called
            {
                return leader.epoch.0;
            }
            sleep(LOOK_EVERY).await;
        }
    };
    timeout(PATIENCE, seen)
        .await
        .unwrap_or_else(|_| panic!("{called} does not lead"))
}

/// Waits for the end of an operation, past failures of the one that is asked.
pub(crate) async fn ended(client: &Client, operation: &Operation) -> Operation {
    let over = async {
        loop {
            match client.operations().get(operation.id.to_string()).await {
                Ok(now) if now.state.is_final() => return now,
                _ => sleep(5 * LOOK_EVERY).await,
            }
        }
    };
    timeout(PATIENCE, over)
        .await
        .unwrap_or_else(|_| panic!("{} does not end", operation.id))
}

/// An image and a network.
pub(crate) async fn furnish(client: &Client, place: &Path) {
    let disk = place.join("disk.raw");
    fs::write(&disk, vec![0; 3 << 20]).unwrap();
    let blob = client.images().upload(&disk).await.unwrap();
    client
        .images()
        .create(CreateImage {
            name: "tiny".parse().unwrap(),
            disk: blob.digest,
            format: DiskFormat::Raw,
            boot: vbm_core::Boot::Disk,
        })
        .await
        .unwrap();
    let made = client
        .networks()
        .create(CreateNetwork::new("lan".parse().unwrap(), "10.0.0.0/24"))
        .await
        .unwrap();
    assert_eq!(ended(client, &made.operation).await.state, OperationState::Done);
}
