//! The endpoints of snapshots, each a line of glue.

use super::{
    ApiState,
    problem::{Json, Query},
    routes::{Answer, Made, accepted},
};
use crate::api::{Accepted, CreateSnapshot, List, ListQuery, Problem, SnapshotView};
use axum::extract::{Path, State};

/// Lists the snapshots of a VM.
#[utoipa::path(get, path = "/vms/{vm}/snapshots", tag = "snapshots",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id"), ListQuery),
    responses((status = 200, body = List<SnapshotView>), (status = "default", body = Problem)))]
pub(super) async fn list_snapshots(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Query(query): Query<ListQuery>,
) -> Answer<List<SnapshotView>> {
    Ok(axum::Json(api.controller.list_snapshots(&vm, &query).await?))
}

/// Takes a snapshot of a VM: of its disk when it is off, of disk and memory when it runs.
#[utoipa::path(post, path = "/vms/{vm}/snapshots", tag = "snapshots", request_body = CreateSnapshot,
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<SnapshotView>), (status = "default", body = Problem)))]
pub(super) async fn create_snapshot(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Json(request): Json<CreateSnapshot>,
) -> Made<Accepted<SnapshotView>> {
    accepted(api.controller.create_snapshot(&vm, &request).await?)
}

/// Shows a snapshot.
#[utoipa::path(get, path = "/vms/{vm}/snapshots/{snapshot}", tag = "snapshots",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id"),
        ("snapshot" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 200, body = SnapshotView), (status = "default", body = Problem)))]
pub(super) async fn get_snapshot(
    State(api): State<ApiState>,
    Path((vm, snapshot)): Path<(String, String)>,
) -> Answer<SnapshotView> {
    Ok(axum::Json(api.controller.snapshot_view(&vm, &snapshot).await?))
}

/// Deletes a snapshot; the VM stays as it is, and may run.
#[utoipa::path(delete, path = "/vms/{vm}/snapshots/{snapshot}", tag = "snapshots",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id"),
        ("snapshot" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<SnapshotView>), (status = "default", body = Problem)))]
pub(super) async fn delete_snapshot(
    State(api): State<ApiState>,
    Path((vm, snapshot)): Path<(String, String)>,
) -> Made<Accepted<SnapshotView>> {
    accepted(api.controller.delete_snapshot(&vm, &snapshot).await?)
}

/// Goes back to a snapshot: what the VM had since then is lost. It runs afterwards when the snapshot holds its memory.
#[utoipa::path(post, path = "/vms/{vm}/snapshots/{snapshot}/revert", tag = "snapshots",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id"),
        ("snapshot" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<SnapshotView>), (status = "default", body = Problem)))]
pub(super) async fn revert_snapshot(
    State(api): State<ApiState>,
    Path((vm, snapshot)): Path<(String, String)>,
) -> Made<Accepted<SnapshotView>> {
    accepted(api.controller.revert_snapshot(&vm, &snapshot).await?)
}
