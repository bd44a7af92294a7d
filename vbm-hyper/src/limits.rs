//! Every limit of this crate, with its unit last.

use std::time::Duration;

/// The longest path of a unix socket: `sun_path` has 108 bytes, one is the final zero (unix(7)).
pub const SOCKET_PATH_MAX_BYTES: usize = 107;

/// How long a new hypervisor process may take until it answers. On a loaded host seconds pass before `main`.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a probe of the hypervisor may take.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(30);
/// How long the result of a probe that found no hardware acceleration is believed.
pub const PROBE_FALLBACK_TTL: Duration = Duration::from_secs(300);
/// How long a found process may take to greet when it is adopted; it goes on being tried after that.
pub const ADOPT_DEADLINE: Duration = Duration::from_secs(3);
/// How many processes are adopted at the same time.
pub const ADOPT_MAX_PARALLEL: usize = 16;
/// How long a QMP command may take.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
/// How long a screenshot may take.
pub const SCREENSHOT_DEADLINE: Duration = Duration::from_secs(15);
/// How long the kernel may take to end a killed process. Uninterruptible I/O can hold it.
pub const KILL_DEADLINE: Duration = Duration::from_secs(20);
/// How long, after a process ended, its last words are waited for.
pub const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(1);
/// How long a monitor may be gone, its process living, before the VM counts as unresponsive.
pub const MONITOR_LOST_GRACE: Duration = Duration::from_millis(500);
/// The pause between two attempts to reach a lost monitor.
pub const MONITOR_RETRY: Duration = Duration::from_secs(2);

/// The longest line that a monitor may send. `query-qmp-schema` has about 0.3 MiB.
pub const QMP_LINE_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Requests waiting to be sent to one monitor.
pub const QMP_REQUESTS_MAX: usize = 64;
/// Requests sent to one monitor whose replies did not come yet, late ones included.
pub const QMP_PENDING_MAX: usize = 256;
/// Events of one monitor that its keeper did not take yet. Only events that change the power state count.
pub const QMP_EVENTS_MAX: usize = 256;

/// Events of one monitor, as they came, that a listener may lag behind.
pub const QMP_RAW_EVENTS_MAX: usize = 64;
/// How long a job of QEMU that was cancelled may take to conclude.
pub const JOB_CANCEL_DEADLINE: Duration = Duration::from_secs(10);
/// The pause between two looks at a job of QEMU, at first.
pub const JOB_POLL_MIN: Duration = Duration::from_millis(1);
/// The longest pause between two looks at a job of QEMU.
pub const JOB_POLL_MAX: Duration = Duration::from_millis(50);

/// Events that a subscriber of a driver or of the machines may lag behind.
pub const EVENTS_MAX: usize = 4_096;
/// Commands that wait for one VM's actor.
pub const ACTOR_QUEUE_MAX: usize = 64;
/// How long a driver may take to look at a VM before it counts as unknown.
pub const INSPECT_DEADLINE: Duration = Duration::from_secs(5);
/// After how long the shutdown button is pressed again; doubles up to [`BUTTON_RESEND_MAX`]. A guest that still
/// boots loses it.
pub const BUTTON_RESEND_FIRST: Duration = Duration::from_secs(2);
/// The longest pause between two presses of the shutdown button.
pub const BUTTON_RESEND_MAX: Duration = Duration::from_secs(10);

/// The largest serial log. When it is reached the log becomes the old one, and the old one before is lost.
pub const SERIAL_LOG_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// What a new reader of a serial line gets to see of the past.
pub const SERIAL_SCROLLBACK_BYTES: usize = 64 * 1024;
/// The most scrollback that one call returns.
pub const SCROLLBACK_MAX_BYTES: usize = 8 * 1024 * 1024;
/// The largest piece of serial output or input.
pub const SERIAL_CHUNK_BYTES: usize = 4 * 1024;
/// Pieces of output that one reader may lag behind before it is cut off.
pub const SERIAL_READER_MAX_CHUNKS: usize = 512;
/// Pieces of input that wait for the guest.
pub const SERIAL_INPUT_MAX_CHUNKS: usize = 64;
/// Readers of one serial line.
pub const SERIAL_READERS_MAX: usize = 64;

/// How much of the hypervisor's log a failed start tells.
pub const LOG_TAIL_BYTES: u64 = 2 * 1024;
/// The largest screenshot.
pub const SCREENSHOT_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// The longest name of a CPU model.
pub const CPU_MODEL_MAX_BYTES: usize = 64;
/// The largest manifest.
pub const MANIFEST_MAX_BYTES: u64 = 1024 * 1024;

/// How long a guest may take to let go of a device. One that is busy, or emulated, takes seconds.
pub const UNPLUG_DEADLINE: Duration = Duration::from_secs(30);
/// What guests say of devices that a call waits for, and that it may lag behind.
pub const UNPLUGS_MAX: usize = 64;

/// The most snapshots that a disk is believed to have.
pub const DISK_SNAPSHOTS_MAX: u64 = 1_024;
/// The largest entry of a disk's table of snapshots that is read.
pub const SNAPSHOT_ENTRY_MAX_BYTES: u64 = 64 * 1024;

/// How long a guest may take to freeze its file systems. One with much to write needs seconds.
pub const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a guest may take to let its file systems go on.
pub const THAW_DEADLINE: Duration = Duration::from_secs(10);
/// How long a disk that another process still holds is waited for when half-done work with its snapshots is brought to its end.
pub const DISK_LOCK_DEADLINE: Duration = Duration::from_secs(20);
/// The pause between two attempts at such a disk.
pub const DISK_LOCK_RETRY: Duration = Duration::from_millis(100);
/// How long the export of one disk of a snapshot may take.
pub const EXPORT_DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// How often it is looked how far an export is.
pub const EXPORT_PROGRESS_PERIOD: Duration = Duration::from_millis(200);
/// The most that `qemu-img` is heard of how far it is and what went wrong.
pub const EXPORT_WORDS_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// How long writing or reading a VM's memory on disk may take.
pub const MEMORY_DEADLINE: Duration = Duration::from_secs(600);
/// How long `qemu-img` may take for a snapshot of a disk at rest.
pub const DISK_IMAGE_DEADLINE: Duration = Duration::from_secs(120);
/// How long a running VM may take to move to another host.
pub const MIGRATION_DEADLINE: Duration = Duration::from_secs(600);
/// How long a VM's guest may be halted at the end of a migration before QEMU sends one more round of its memory.
pub const MIGRATION_DOWNTIME_MAX: Duration = Duration::from_millis(300);
/// The shortest downtime that a migration may be asked for.
pub const MIGRATION_DOWNTIME_FLOOR: Duration = Duration::from_millis(1);
/// The longest.
pub const MIGRATION_DOWNTIME_CEILING: Duration = Duration::from_secs(60);
/// The least bandwidth that a migration may be held to.
pub const MIGRATION_BANDWIDTH_MIN_BYTES_PER_SECOND: u64 = 64 * 1024;
/// The most connections that one VM's memory is sent over.
pub const MIGRATION_CHANNELS_MAX: u8 = 16;
/// How long the copies of a running VM's disks may take until they are level with the disks.
pub const MIRROR_DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// How long such a copy may stand still before it is given up.
pub const MIRROR_STALL_MAX: Duration = Duration::from_secs(30);
/// How long a copy that is level may take to end, guest halted, and one that is called off to be gone.
pub const MIRROR_END_DEADLINE: Duration = Duration::from_secs(20);
/// The most that a file may take on the destination to count as one that nothing was written to.
pub const MIRROR_TARGET_MAX_BYTES: u64 = 1024 * 1024;
/// The most that a transfer of memory may send. No limit of ours: links and disks have their own.
pub const TRANSFER_MAX_BYTES_PER_SECOND: u64 = 1 << 40;
/// How long a VM that is to arrive waits when nothing comes and nobody says that it still will.
pub const ARRIVAL_DEADLINE: Duration = Duration::from_secs(60);
/// How long a transfer that is called off may take to end.
pub const CANCEL_DEADLINE: Duration = Duration::from_secs(10);
/// The pause between two looks at a transfer, at first.
pub const TRANSFER_POLL_MIN: Duration = Duration::from_millis(1);
/// The longest pause between two looks at a transfer.
pub const TRANSFER_POLL_MAX: Duration = Duration::from_millis(50);

/// The largest image that is imported.
pub const IMAGE_MAX_BYTES: u64 = vbm_core::limits::DISK_MAX_MIB * 1024 * 1024;
/// The size of the pieces that an import reads.
pub const IMPORT_CHUNK_BYTES: usize = 256 * 1024;
/// Pieces of an import between reader and writer.
pub const IMPORT_CHUNKS_MAX: usize = 4;

/// The largest table of a disk's file that is kept in memory: 32 MiB.
pub const DISK_TABLE_MAX_BYTES: u64 = 32 * 1024 * 1024;
/// The largest text that describes a VMDK.
pub const VMDK_DESCRIPTOR_MAX_BYTES: u64 = 1024 * 1024;
/// The most files that a disk may consist of, one upon the other. Longer chains get slow.
pub const CHAIN_MAX_LAYERS: usize = 16;
/// The size of the pieces that disks are copied in.
pub const COPY_CHUNK_BYTES: usize = 64 * 1024;
/// Pieces of an export between reader and writer.
pub const EXPORT_CHUNKS_MAX: usize = 16;
/// How long a source of an image may send nothing.
pub const IMPORT_STALL_DEADLINE: Duration = Duration::from_secs(30);
/// How often an import that broke goes on by itself before it fails; what came is kept for the next one.
pub const IMPORT_RETRIES_MAX: u32 = 5;
/// The pause before an import goes on; doubles with each time that nothing came.
pub const IMPORT_RETRY_FIRST: Duration = Duration::from_millis(200);
/// How long what came of an import that broke is kept.
pub const PARTIAL_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// VBoxManage processes of one driver at the same time.
pub const VBOX_COMMANDS_MAX_PARALLEL: usize = 8;
/// How long VBoxManage may take for a command on a VM. The first one also starts VBoxSVC.
pub const VBOX_COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// How long a list of all VMs may take.
pub const VBOX_LIST_DEADLINE: Duration = Duration::from_secs(30);
/// How long a VM may take from `startvm` until its processors run. Within another emulated machine it takes half a minute.
pub const VBOX_START_DEADLINE: Duration = Duration::from_secs(240);
/// How long VBoxManage may take to write or read memory and disks: saved state, snapshots.
pub const VBOX_BULK_DEADLINE: Duration = Duration::from_secs(600);
/// The most that VBoxManage may say on standard output.
pub const VBOX_OUTPUT_MAX_BYTES: usize = 16 * 1024 * 1024;
/// The most that is kept of its standard error.
pub const VBOX_ERRORS_MAX_BYTES: usize = 64 * 1024;
/// How long, after VBoxManage ended, its output is waited for: a daemon that it started may hold the pipe open.
pub const VBOX_OUTPUT_GRACE: Duration = Duration::from_millis(500);
/// How often it is looked which VMs run, while one of them lives.
pub const VBOX_WATCH_PERIOD: Duration = Duration::from_secs(1);
/// How often the states of all VMs are listed, which costs VirtualBox 35 ms for each. Finds what the shorter look cannot: a
/// pause that nobody here asked for.
pub const VBOX_WATCH_WHOLE_PERIOD: Duration = Duration::from_secs(15);
/// The same right after a VM's process has ended, until VirtualBox tells it too.
pub const VBOX_WATCH_SOON: Duration = Duration::from_millis(100);
/// Looks that may fail in a row before the VMs count as unresponsive.
pub const VBOX_WATCH_FAILURES_MAX: u32 = 3;
/// How long a VNC server may take to greet.
pub const VNC_GREETING_DEADLINE: Duration = Duration::from_secs(10);

/// How long the registry believes a probe.
pub const REGISTRY_PROBE_TTL: Duration = Duration::from_secs(300);
/// So many starts that fail one after the other make the registry probe a driver again.
pub const REGISTRY_FAILED_STARTS_MAX: u32 = 3;
