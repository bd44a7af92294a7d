//! What the tests of this crate share: a ground with a real QEMU on it, and the tiny guest.
#![allow(dead_code, reason = "each test file uses a part of it")]

use async_trait::async_trait;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use vbm_core::{VmId, VolumeId};
use vbm_hyper::{
    AcceleratorChoice, BootSource, ContentKind, DiskDefinition, Driver, Hardware, ImageStore, Pool,
    QemuConfig, QemuDriver, Seen, VmDefinition,
    conformance::{Bench, GuestWords},
};

/// What the guest is told when it is booted directly; see the guest's own notes.
pub(crate) const CMDLINE: &str = "console=tty0 console=ttyS0 quiet loglevel=3 edd=off no_timer_check tsc=reliable random.trust_cpu=on mitigations=off nokaslr cryptomgr.notests";
/// What it says once it hears its power button.
pub(crate) const READY: &str = "vbm-guest ready";
/// How long a guest may take on a loaded host without KVM.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// A definition of a small VM.
pub(crate) fn definition(disk: impl Into<PathBuf>) -> VmDefinition {
    VmDefinition {
        id: VmId::from_uuid(uuid::Uuid::now_v7()),
        name: "probe-1".parse().unwrap(),
        vcpus: 1,
        memory_mib: 96,
        root_disk: disk.into(),
        boot: BootSource::Disk,
        disks: vec![],
        hardware: Hardware::default(),
        nics: Vec::new(),
    }
}

/// Whether a level is left out by `VBM_LEAVE_OUT`; says so if it is.
pub(crate) fn left_out(level: &str) -> bool {
    let all = std::env::var("VBM_LEAVE_OUT").unwrap_or_default();
    let out = all.split(',').any(|name| name.trim() == level);
    if out {
        println!("LEFT OUT: VBM_LEAVE_OUT names {level}");
    }
    out
}

/// The folder with the tiny guest.
pub(crate) fn guest_dir() -> PathBuf {
    let dir = std::env::var_os("VBM_GUEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest"),
        PathBuf::from,
    );
    let dir = std::path::absolute(dir).unwrap();
    assert!(
        dir.join("vmlinuz").is_file() && dir.join("guest.qcow2").is_file(),
        "the tiny guest is not in {}: make it with `cargo xtask guest`, or name it by VBM_GUEST_DIR, or leave these tests out with VBM_LEAVE_OUT=qemu",
        dir.display()
    );
    dir
}

/// A host: run directory, images, pool; and what runs there ends with it.
pub(crate) struct QemuBench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) images: ImageStore,
    pub(crate) pool: Pool,
    /// The second host's own.
    pub(crate) pool_beside: Pool,
    image: vbm_core::Digest,
    made: Mutex<Vec<VmId>>,
}

/// A plain client of a VM's second monitor.
pub(crate) struct QmpClient {
    lines: std::io::BufReader<std::os::unix::net::UnixStream>,
}

impl QmpClient {
    /// Connects; nobody else uses that monitor while the first one works.
    pub(crate) fn connect(bench: &QemuBench, id: VmId) -> Self {
        let socket = bench.dir.path().join("run").join(id.to_string()).join("q1");
        let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            lines: std::io::BufReader::new(stream),
        };
        client.next();
        client.run("qmp_capabilities", serde_json::json!({}));
        client
    }

    fn next(&mut self) -> serde_json::Value {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.lines, &mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Runs a command; events are passed over.
    pub(crate) fn run(&mut self, command: &str, arguments: serde_json::Value) -> serde_json::Value {
        let message = serde_json::json!({ "execute": command, "arguments": arguments });
        std::io::Write::write_all(self.lines.get_mut(), message.to_string().as_bytes()).unwrap();
        loop {
            let mut reply = self.next();
            assert!(reply["error"].is_null(), "{command}: {reply}");
            if !reply["return"].is_null() {
                return reply["return"].take();
            }
        }
    }
}

impl QemuBench {
    pub(crate) async fn boxed() -> Result<Box<dyn Bench>, String> {
        if left_out("qemu") {
            return Err("VBM_LEAVE_OUT names qemu".into());
        }
        Ok(Box::new(Self::make().await))
    }

    pub(crate) async fn make() -> Self {
        let dir = tempfile::Builder::new().prefix("vbm-hyper-").tempdir().unwrap();
        let images = ImageStore::open(dir.path().join("images")).await.unwrap();
        let disk = tokio::fs::File::open(guest_dir().join("guest.qcow2"))
            .await
            .unwrap();
        let image = images
            .import(disk, None, ContentKind::Disk(vbm_core::DiskFormat::Qcow2))
            .await
            .unwrap()
            .digest;
        let pool = Pool::open(dir.path().join("pool"), images.clone()).await.unwrap();
        let pool_beside = Pool::open(dir.path().join("pool-beside"), images.clone())
            .await
            .unwrap();
        Self {
            dir,
            images,
            pool,
            pool_beside,
            image,
            made: Mutex::default(),
        }
    }

    pub(crate) fn config(&self) -> QemuConfig {
        QemuConfig::new(self.dir.path().join("run")).with_accelerator(AcceleratorChoice::Tcg)
    }

    /// A second host with the same disks.
    pub(crate) fn config_beside(&self) -> QemuConfig {
        QemuConfig::new(self.dir.path().join("run-beside")).with_accelerator(AcceleratorChoice::Tcg)
    }

    /// A VM with a fresh clone of the guest's disk, booted by the firmware.
    pub(crate) fn on_disk(&self) -> VmDefinition {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        let clone = self.pool.clone_image(self.image, volume, 64 << 20);
        let path = futures_now(clone);
        let definition = definition(path);
        self.made.lock().unwrap().push(definition.id);
        definition
    }

    /// The same VM with a fresh clone of its own at the second host.
    pub(crate) async fn elsewhere(&self, definition: &VmDefinition) -> VmDefinition {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        let clone = self.pool_beside.clone_image(self.image, volume, 64 << 20);
        VmDefinition {
            root_disk: clone.await.unwrap(),
            ..definition.clone()
        }
    }

    /// A definition of a VM that ends with the bench.
    pub(crate) fn known(&self, definition: VmDefinition) -> VmDefinition {
        self.made.lock().unwrap().push(definition.id);
        definition
    }

    /// A data disk of so many bytes.
    pub(crate) fn data_disk(&self, bytes: u64, read_only: bool) -> DiskDefinition {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        let path = self.dir.path().join(format!("{volume}.qcow2"));
        make_qcow2(&path, bytes);
        DiskDefinition {
            volume,
            path,
            read_only,
        }
    }

    /// The same, booted directly.
    pub(crate) fn direct(&self) -> VmDefinition {
        let guest = guest_dir();
        VmDefinition {
            boot: BootSource::Kernel {
                kernel: guest.join("vmlinuz"),
                initrd: guest.join("initrd.cpio"),
                cmdline: CMDLINE.into(),
            },
            ..self.on_disk()
        }
    }
}

/// Makes an empty disk.
pub(crate) fn make_qcow2(path: &Path, bytes: u64) {
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(bytes.to_string())
        .status()
        .unwrap();
    assert!(made.success(), "qemu-img makes {}", path.display());
}

/// Waits for a short piece of work from a place that is not async.
fn futures_now<T: Send>(work: impl Future<Output = vbm_hyper::Result<T>> + Send) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work)).unwrap()
}

impl Drop for QemuBench {
    /// Ends what a failed test has left: only processes whose command line names a VM of this bench.
    fn drop(&mut self) {
        let made = self.made.lock().unwrap();
        let runs = ["run", "run-beside"].map(|run| self.dir.path().join(run));
        for (run, id) in runs.iter().flat_map(|run| made.iter().map(move |id| (run, id))) {
            let text = std::fs::read_to_string(run.join(id.to_string()).join("manifest")).unwrap_or_default();
            let pid = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("\"pid\": ")?.strip_suffix(','));
            if let Some(pid) = pid {
                let cmdline = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if cmdline.contains(&id.to_string()) {
                    kill_9(pid.parse().unwrap());
                }
            }
        }
    }
}

/// Processes that are a VM's, by their command line.
pub(crate) fn processes_of(id: VmId) -> Vec<u32> {
    let id = id.to_string();
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let args: Vec<_> = args.split(|byte| *byte == 0).collect();
        args.windows(2)
            .any(|pair| pair[0] == b"-uuid" && pair[1] == id.as_bytes())
    })
    .collect()
}

/// What is left of forgotten VMs below a directory: processes, run directories, sockets that anybody listens at, files that are open here.
pub(crate) fn leftovers(dir: &Path, ids: &[VmId]) -> Vec<String> {
    let mut left: Vec<String> = Vec::new();
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for id in ids {
        left.extend(processes_of(*id).iter().map(|pid| format!("process {pid}")));
        for run in ["run", "run-beside"].map(|run| dir.join(run).join(id.to_string())) {
            left.extend(run.exists().then(|| run.display().to_string()));
            let run = format!("{}/", run.display());
            left.extend(
                sockets
                    .lines()
                    .filter(|line| line.contains(&run))
                    .map(str::to_owned),
            );
            let open = std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            left.extend(
                open.filter(|file| file.starts_with(&run))
                    .map(|file| file.display().to_string()),
            );
        }
    }
    left
}

/// Kills a process that the test has started.
pub(crate) fn kill_9(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap_or_default();
}

/// Types a line until the answer comes: a shell that still starts throws away what was typed before.
pub(crate) async fn converse(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), line: &str, wanted: &str) {
    let mut text = Vec::new();
    let talk = async {
        loop {
            stream.write_all(format!("\n{line}\n").as_bytes()).await.unwrap();
            let until = tokio::time::Instant::now() + Duration::from_secs(3);
            while let Ok(read) = tokio::time::timeout_at(until, stream.read_buf(&mut text)).await {
                if read.unwrap() == 0 || String::from_utf8_lossy(&text).contains(wanted) {
                    return;
                }
            }
        }
    };
    let done = tokio::time::timeout(PATIENCE, talk).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        done.is_ok() && text.contains(wanted),
        "'{wanted}' did not come, but: {text}"
    );
}

/// Reads until `wanted` comes; panics with what came instead.
pub(crate) async fn read_until(stream: &mut (impl AsyncRead + Unpin), wanted: &str) -> String {
    let mut text = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&text).contains(wanted) {
            if stream.read_buf(&mut text).await.unwrap() == 0 {
                break;
            }
        }
    };
    let done = tokio::time::timeout(PATIENCE, reading).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        done.is_ok() && text.contains(wanted),
        "'{wanted}' did not come, but: {text}"
    );
    text
}

#[async_trait]
impl Bench for QemuBench {
    async fn open(&self) -> Arc<dyn Driver> {
        Arc::new(QemuDriver::open(self.config()).await.unwrap())
    }
    fn definition(&self) -> VmDefinition {
        self.on_disk()
    }
    fn obedient(&self) -> Result<VmDefinition, String> {
        Ok(self.direct())
    }
    async fn booted(&self, driver: &dyn Driver, id: VmId) {
        let mut serial = driver.consoles().unwrap().serial(id).await.unwrap();
        read_until(&mut serial, READY).await;
    }
    fn dialogue(&self) -> (&'static str, &'static str) {
        ("\necho twice-$((40+2))\n", "twice-42")
    }
    fn words(&self) -> Result<GuestWords, String> {
        Ok(GuestWords::of_shell("/dev/vda"))
    }
    fn data_disk(&self) -> Result<DiskDefinition, String> {
        let volume = VolumeId::from_uuid(uuid::Uuid::now_v7());
        let path = futures_now(self.pool.clone_image(self.image, volume, 64 << 20));
        Ok(DiskDefinition {
            volume,
            path,
            read_only: false,
        })
    }
    async fn open_beside(&self) -> Result<Arc<dyn Driver>, String> {
        Ok(Arc::new(QemuDriver::open(self.config_beside()).await.unwrap()))
    }
    async fn elsewhere(&self, definition: &VmDefinition) -> Result<VmDefinition, String> {
        Ok(self.elsewhere(definition).await)
    }
    fn volume(&self) -> Result<DiskDefinition, String> {
        Ok(self.data_disk(16 << 20, false))
    }
    fn medium(&self) -> Result<PathBuf, String> {
        let medium = self.dir.path().join("install.iso");
        std::fs::write(&medium, vec![7; 64 * 1024]).map_err(|error| error.to_string())?;
        Ok(medium)
    }
    async fn accident(&self, _: VmId, seen: &Seen) {
        kill_9(seen.pid.unwrap());
    }
    fn leftovers(&self, ids: &[VmId]) -> Vec<String> {
        leftovers(self.dir.path(), ids)
    }
    fn patience(&self) -> Duration {
        PATIENCE
    }
}
