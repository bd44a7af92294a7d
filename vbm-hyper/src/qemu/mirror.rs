//! Copies of a running VM's disks at another host, kept level until it is there.
//!
//! ```text
//!   destination                                   source
//!   open: NBD server, one export a disk <-------- begin: one mirror a disk, which passes on what the guest writes
//!                                                 level: what was there before has gone over too
//!                                                        (memory is sent; the guest is halted)
//!                                                 end:   the copies are whole; the mirrors let go of them
//!   finish ends the server                        undo:  as if nothing had been
//! ```
//!
//! - Where the destination's disk is a thin clone of the same content as ours, only our own layer is copied. Which content
//!   that is, the name of the base tells: bases are named by their digest.
//! - A guest's write is done when both sides have it. A destination that stands still would hold the guest up, so a copy
//!   that makes no progress for [`MIRROR_STALL_MAX`] is called off, with the writes that wait for it.
//! - Only the virtual content travels. Snapshots within a file would stay behind, so a disk that has some is not copied.
//! - The stream is not encrypted: see [`migration`](super::migration).

use super::{keeper::Machine, qmp::Qmp, slots};
use crate::{
    DiskFacts, Error, LandingDisks, MoveOptions, OpCx, Result, VmDefinition,
    limits::{
        COMMAND_DEADLINE, MIRROR_DEADLINE, MIRROR_END_DEADLINE, MIRROR_STALL_MAX, MIRROR_TARGET_MAX_BYTES,
        TRANSFER_MAX_BYTES_PER_SECOND, TRANSFER_POLL_MAX,
    },
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};
use tokio::time::{Instant, sleep};

/// Before the number of each of our jobs.
const JOB: &str = "move-disk";
/// Before the number of each node that stands for a copy.
const COPY: &str = "moved-disk";
/// How long the destination may take to let a mirror in, in seconds.
const NBD_OPEN_TIMEOUT_SECS: u64 = 5;
/// The unit of `st_blocks`, in bytes (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
/// Hexadecimal digits of a SHA-256.
const DIGEST_DIGITS: usize = 64;

/// The nodes of the disks that travel, with their files: the root disk first. A disk that is only read is not copied.
pub(super) fn nodes(definition: &VmDefinition) -> Vec<(String, &Path)> {
    let data = definition.disks.iter().filter(|disk| !disk.read_only);
    let data = data.map(|disk| (slots::disk_node(disk.volume), disk.path.as_path()));
    std::iter::once(("root".to_owned(), definition.root_disk.as_path()))
        .chain(data)
        .collect()
}

/// What QEMU says of the VM's disks.
pub(super) async fn facts(qmp: &Qmp, definition: &VmDefinition) -> Result<Vec<DiskFacts>> {
    let reply = qmp
        .execute("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    nodes(definition)
        .iter()
        .map(|(node, _)| {
            fact(&reply, node).ok_or_else(|| Error::Hypervisor {
                command: "query-named-block-nodes".into(),
                why: format!("it says nothing of {node}"),
            })
        })
        .collect()
}

fn fact(reply: &Value, node: &str) -> Option<DiskFacts> {
    let found = reply
        .as_array()?
        .iter()
        .find(|found| found["node-name"] == node)?;
    let image = &found["image"];
    let base = image["backing-filename"].as_str().and_then(|file| {
        let name = Path::new(file).file_name()?.to_str()?;
        let digest = name.len() == DIGEST_DIGITS && name.chars().all(|c| c.is_ascii_hexdigit());
        digest.then(|| name.to_owned())
    });
    Some(DiskFacts {
        name: node.to_owned(),
        virtual_bytes: image["virtual-size"].as_u64()?,
        used_bytes: image["actual-size"].as_u64().unwrap_or(0),
        base,
        snapshots: image["snapshots"].as_array().map_or(0, Vec::len),
    })
}

/// How much of a disk is to be copied, where the copy begins as `theirs`.
fn sync(ours: &DiskFacts, theirs: &DiskFacts) -> &'static str {
    match (&ours.base, &theirs.base) {
        (Some(ours), Some(theirs)) if ours == theirs => "top",
        _ => "full",
    }
}

/// Whether the copies can begin: pure.
fn fit(ours: &[DiskFacts], theirs: &[DiskFacts]) -> Result<()> {
    let refuse = |why: String| {
        Err(Error::invalid(
            "the disks cannot be copied",
            why,
            "make disks of the same sizes at the destination, and delete the snapshots, or move the VM while it is off",
        ))
    };
    if ours.len() != theirs.len() {
        return refuse(format!(
            "the VM has {} disks, the destination has {}",
            ours.len(),
            theirs.len()
        ));
    }
    for (our, their) in ours.iter().zip(theirs) {
        if our.virtual_bytes != their.virtual_bytes {
            return refuse(format!(
                "{} has {} bytes here and {} there",
                our.name, our.virtual_bytes, their.virtual_bytes
            ));
        }
        if our.snapshots > 0 {
            return refuse(format!(
                "{} has {} snapshots, which a copy would leave behind",
                our.name, our.snapshots
            ));
        }
    }
    Ok(())
}

/// Refuses to copy to a file that something was written to.
pub(super) fn check_targets(definition: &VmDefinition) -> Result<()> {
    for (_, path) in nodes(definition) {
        let found = std::fs::metadata(path).map_err(Error::io("look at", path))?;
        let bytes = found.blocks() * STAT_BLOCK_BYTES;
        if bytes > MIRROR_TARGET_MAX_BYTES {
            return Err(Error::invalid(
                format!("a disk cannot be copied to {}", path.display()),
                format!("the file takes {bytes} bytes: something was written to it"),
                "give a new disk: a thin clone, or an empty one",
            ));
        }
    }
    Ok(())
}

/// Lets copies be written from another host, at an address of ours.
pub(super) async fn open(qmp: &Qmp, definition: &VmDefinition, listen: Ipv4Addr) -> Result<LandingDisks> {
    const DOOR: &str = "nbd0";
    let door = TcpListener::bind((listen, 0)).map_err(Error::io("listen on", listen.to_string()))?;
    let at = door
        .local_addr()
        .map_err(Error::io("listen on", listen.to_string()))?;
    let disks = facts(qmp, definition).await?;
    qmp.execute_within(
        COMMAND_DEADLINE,
        "getfd",
        json!({ "fdname": DOOR }),
        Some(OwnedFd::from(door)),
    )
    .await?;
    // Two for each: a source that lost its connection comes again before the old one is gone.
    let server = json!({
        "addr": { "type": "fd", "data": { "str": DOOR } }, "max-connections": disks.len() * 2,
    });
    qmp.execute("nbd-server-start", server).await?;
    for (at, disk) in disks.iter().enumerate() {
        let export = json!({
            "type": "nbd", "id": format!("in{at}"), "node-name": disk.name, "name": disk.name, "writable": true,
        });
        qmp.execute("block-export-add", export).await?;
    }
    Ok(LandingDisks { at, disks })
}

/// Lets nobody write to the copies any more.
pub(super) async fn close(qmp: &Qmp) -> Result<()> {
    match qmp.execute("nbd-server-stop", Value::Null).await {
        Ok(_) => Ok(()),
        Err(Error::Hypervisor { why, .. }) if why.contains("not running") => Ok(()),
        Err(error) => Err(error),
    }
}

/// Begins to copy each disk.
pub(super) async fn begin(
    qmp: &Qmp,
    definition: &VmDefinition,
    to: &LandingDisks,
    options: &MoveOptions,
) -> Result<()> {
    let ours = facts(qmp, definition).await?;
    fit(&ours, &to.disks)?;
    let speed = options
        .bandwidth_max_bytes
        .unwrap_or(TRANSFER_MAX_BYTES_PER_SECOND);
    for (at, (our, their)) in ours.iter().zip(&to.disks).enumerate() {
        let copy = json!({
            "driver": "nbd", "node-name": format!("{COPY}{at}"), "export": their.name, "open-timeout": NBD_OPEN_TIMEOUT_SECS,
            "server": server(to.at),
        });
        qmp.execute("blockdev-add", copy).await?;
        let mirror = json!({
            "job-id": format!("{JOB}{at}"), "device": our.name, "target": format!("{COPY}{at}"), "sync": sync(our, their),
            "copy-mode": "write-blocking", "speed": speed, "auto-dismiss": false,
        });
        qmp.execute("blockdev-mirror", mirror).await?;
    }
    Ok(())
}

fn server(at: SocketAddr) -> Value {
    json!({ "type": "inet", "host": at.ip().to_string(), "port": at.port().to_string() })
}

/// One of our jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mirror {
    id: String,
    /// It has gone over the whole disk, and passes on what is written.
    level: bool,
    /// It is over, well or not.
    over: bool,
    done: u64,
    total: u64,
    error: Option<String>,
}

fn mirrors(reply: &Value) -> Vec<Mirror> {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let jobs = reply.as_array().into_iter().flatten();
    jobs.filter_map(|job| {
        let id = job["id"].as_str().filter(|id| id.starts_with(JOB))?;
        Some(Mirror {
            id: id.to_owned(),
            level: job["status"] == "ready",
            over: job["status"] == "concluded",
            done: number(&job["current-progress"]),
            total: number(&job["total-progress"]),
            error: job["error"].as_str().map(str::to_owned),
        })
    })
    .collect()
}

async fn look(qmp: &Qmp) -> Result<Vec<Mirror>> {
    Ok(mirrors(&qmp.execute("query-jobs", Value::Null).await?))
}

fn failed(why: impl Into<String>) -> Error {
    Error::Hypervisor {
        command: "blockdev-mirror".into(),
        why: why.into(),
    }
}

/// Refuses a copy that is over before its time.
fn check(all: &[Mirror], disks: usize) -> Result<()> {
    match all.iter().find(|mirror| mirror.over) {
        Some(over) => Err(failed(
            over.error.clone().unwrap_or_else(|| "it ended early".into()),
        )),
        None if all.len() < disks => Err(failed("a copy is gone")),
        None => Ok(()),
    }
}

/// Waits until all copies are level, and says how much was copied.
pub(super) async fn level(machine: &Machine, cx: &OpCx, disks: usize) -> Result<u64> {
    let begun = Instant::now();
    let (mut moved_at, mut before) = (begun, None);
    loop {
        let all = look(&machine.qmp("query-jobs")?).await?;
        check(&all, disks)?;
        let (done, total) = sums(&all);
        cx.report("disks", done, total);
        if all.iter().all(|mirror| mirror.level) {
            return Ok(done);
        }
        if before != Some((done, total)) {
            (moved_at, before) = (Instant::now(), Some((done, total)));
        }
        if moved_at.elapsed() >= MIRROR_STALL_MAX {
            return Err(failed(format!("the copy stood still for {MIRROR_STALL_MAX:?}")));
        }
        if begun.elapsed() >= MIRROR_DEADLINE {
            return Err(Error::Timeout {
                command: "blockdev-mirror".into(),
                after: MIRROR_DEADLINE,
            });
        }
        sleep(TRANSFER_POLL_MAX).await;
    }
}

fn sums(all: &[Mirror]) -> (u64, u64) {
    let sum = |of: fn(&Mirror) -> u64| all.iter().map(of).sum();
    (sum(|mirror| mirror.done), sum(|mirror| mirror.total))
}

/// The guest is halted: the copies are finished and let go of. Says how much was copied.
pub(super) async fn end(qmp: &Qmp, disks: usize) -> Result<u64> {
    let all = look(qmp).await?;
    check(&all, disks)?;
    for mirror in &all {
        // A mirror that is level ends well by this: the copy is whole, and the VM stays on its own disk.
        qmp.execute("block-job-cancel", json!({ "device": mirror.id }))
            .await?;
    }
    let all = over(qmp).await?;
    if let Some(why) = all.iter().find_map(|mirror| mirror.error.clone()) {
        return Err(failed(why));
    }
    let copied = sums(&all).0;
    clear(qmp, &all).await?;
    Ok(copied)
}

/// Waits until all of them are over.
async fn over(qmp: &Qmp) -> Result<Vec<Mirror>> {
    let until = Instant::now() + MIRROR_END_DEADLINE;
    loop {
        let all = look(qmp).await?;
        if all.iter().all(|mirror| mirror.over) {
            return Ok(all);
        }
        if Instant::now() >= until {
            return Err(Error::Timeout {
                command: "block-job-cancel".into(),
                after: MIRROR_END_DEADLINE,
            });
        }
        sleep(crate::limits::TRANSFER_POLL_MIN).await;
    }
}

async fn clear(qmp: &Qmp, all: &[Mirror]) -> Result<()> {
    cut(qmp).await?;
    for mirror in all {
        qmp.execute("job-dismiss", json!({ "id": mirror.id })).await?;
    }
    let nodes = qmp
        .execute("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    for name in copies(&nodes) {
        qmp.execute("blockdev-del", json!({ "node-name": name })).await?;
    }
    Ok(())
}

/// Cuts the connections to the copies. QEMU 10.0 hangs, guest and all, when a node is deleted whose other side stands still.
async fn cut(qmp: &Qmp) -> Result<()> {
    let nodes = qmp
        .execute("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    let instances: Vec<Value> = copies(&nodes)
        .map(|name| json!({ "type": "block-node", "node-name": name }))
        .collect();
    if !instances.is_empty()
        && let Err(error) = qmp.execute("yank", json!({ "instances": instances })).await
    {
        tracing::debug!(%error, "a connection to a copy cannot be cut; it may be gone");
    }
    Ok(())
}

/// The same without a look at what is there, which a QEMU that hangs cannot give: past its main loop.
pub(super) async fn cut_all(qmp: &Qmp, disks: usize) {
    for at in 0..disks {
        let instance = json!({ "type": "block-node", "node-name": format!("{COPY}{at}") });
        if let Err(error) = qmp.execute("yank", json!({ "instances": [instance] })).await {
            tracing::debug!(%error, "a connection to a copy cannot be cut; there may be none");
        }
    }
}

/// The names of the nodes that stand for copies.
fn copies(nodes: &Value) -> impl Iterator<Item = &str> {
    let names = nodes.as_array().into_iter().flatten();
    let names = names.filter_map(|node| node["node-name"].as_str());
    names.filter(|name| name.starts_with(COPY))
}

/// Takes all of it back, however far it was. The VM's own disks were never anything but its own.
pub(super) async fn undo(qmp: &Qmp) -> Result<()> {
    cut(qmp).await?;
    for mirror in look(qmp).await?.iter().filter(|mirror| !mirror.over) {
        // With force, a write that hangs on the way is given up.
        let cancel = json!({ "device": mirror.id, "force": true });
        if let Err(error) = qmp.execute("block-job-cancel", cancel).await {
            tracing::debug!(job = mirror.id, %error, "a copy cannot be called off; it may be over");
        }
    }
    let all = over(qmp).await?;
    clear(qmp, &all).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn disk(base: Option<&str>) -> DiskFacts {
        DiskFacts {
            name: "root".into(),
            virtual_bytes: 64,
            used_bytes: 1,
            base: base.map(str::to_owned),
            snapshots: 0,
        }
    }

    #[test]
    fn what_qemu_says_of_a_disk_is_understood_and_only_a_digest_names_content() {
        let of = |file: &str| {
            json!([{ "node-name": "#block1" }, { "node-name": "root", "image": {
                "virtual-size": 64, "actual-size": 7, "backing-filename": file, "snapshots": [{}, {}],
            }}])
        };
        let found = fact(&of(&format!("/images/sha256/{DIGEST}")), "root").unwrap();
        assert_eq!(found.base.as_deref(), Some(DIGEST));
        assert_eq!(
            (found.virtual_bytes, found.used_bytes, found.snapshots),
            (64, 7, 2)
        );
        assert_eq!(fact(&of("/images/debian.qcow2"), "root").unwrap().base, None);
        assert_eq!(fact(&of("x"), "other"), None);
    }

    #[test]
    fn only_our_layer_is_copied_over_the_same_content_and_everything_else() {
        let (a, b) = (disk(Some("a")), disk(Some("b")));
        assert_eq!(sync(&a, &a), "top");
        assert_eq!(sync(&a, &b), "full");
        assert_eq!(
            sync(&disk(None), &disk(None)),
            "full",
            "two unknown bases may differ"
        );
    }

    #[test]
    fn disks_that_differ_or_have_snapshots_are_refused() {
        let ours = disk(None);
        fit(std::slice::from_ref(&ours), std::slice::from_ref(&ours)).unwrap();
        let larger = DiskFacts {
            virtual_bytes: 65,
            ..ours.clone()
        };
        let with_snapshots = DiskFacts {
            snapshots: 1,
            ..ours.clone()
        };
        for (ours, theirs) in [
            (vec![ours.clone()], vec![]),
            (vec![ours.clone()], vec![larger]),
            (vec![with_snapshots], vec![ours]),
        ] {
            assert!(matches!(fit(&ours, &theirs), Err(Error::Invalid { .. })));
        }
    }

    #[test]
    fn a_copy_that_is_over_before_its_time_has_failed() {
        let job = |status: &str| json!([{ "id": "move-disk0", "status": status, "current-progress": 3, "total-progress": 4 }, { "id": "other" }]);
        let running = mirrors(&job("running"));
        assert_eq!((running.len(), sums(&running)), (1, (3, 4)));
        check(&running, 1).unwrap();
        check(&running, 2).unwrap_err();
        check(&mirrors(&job("concluded")), 1).unwrap_err();
        assert!(mirrors(&job("ready"))[0].level);
    }
}
