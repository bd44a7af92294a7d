//! The endpoints, each a line of glue.

use super::{
    ApiState, BODY_MAX_BYTES, access, console, floating_ips, images, looks,
    problem::{Failed, Json, Query},
    snapshots, watch,
};
use crate::api::{
    API_VERSION, Accepted, Blob, CreateForward, CreateGroup, CreateImage, CreateNetwork, EventQuery,
    EventView, ForwardView, LaunchRequest, List, ListQuery, MigrateRequest, MoveCheckView, NetworkView,
    Placement, PortView, PowerRequest, Problem, SetGroups, SetPort, SetRules, UpdateNetwork, Version, VmView,
    WaitQuery,
};
use crate::store::Revision;
use axum::{
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use std::io;
use utoipa_axum::{router::OpenApiRouter, routes};
use vbm_core::{Group, Image, Node, Operation, Volume};

pub(super) type Answer<T> = Result<axum::Json<T>, Failed>;
pub(super) type Made<T> = Result<(StatusCode, axum::Json<T>), Failed>;

pub(super) fn made<T>(value: T) -> Made<T> {
    Ok((StatusCode::CREATED, axum::Json(value)))
}

pub(super) fn accepted<T>(value: T) -> Made<T> {
    Ok((StatusCode::ACCEPTED, axum::Json(value)))
}

pub(super) fn all() -> OpenApiRouter<ApiState> {
    let limited = OpenApiRouter::new()
        .routes(routes!(version))
        .routes(routes!(list_vms, launch))
        .routes(routes!(get_vm, delete_vm))
        .routes(routes!(power))
        .routes(routes!(migrate))
        .routes(routes!(migrate_check))
        .routes(routes!(placement))
        .routes(routes!(snapshots::list_snapshots, snapshots::create_snapshot))
        .routes(routes!(snapshots::get_snapshot, snapshots::delete_snapshot))
        .routes(routes!(snapshots::revert_snapshot))
        .routes(routes!(set_groups))
        .routes(routes!(set_port))
        .routes(routes!(console::console))
        .routes(routes!(console_log))
        .routes(routes!(screenshot))
        .routes(routes!(list_networks, create_network))
        .routes(routes!(get_network, update_network, delete_network))
        .routes(routes!(looks::network_plan))
        .routes(routes!(looks::network_counters))
        .routes(routes!(looks::network_paths))
        .routes(routes!(list_ports))
        .routes(routes!(list_volumes))
        .routes(routes!(list_groups, create_group))
        .routes(routes!(get_group, delete_group))
        .routes(routes!(set_rules))
        .routes(routes!(list_forwards, create_forward))
        .routes(routes!(get_forward, delete_forward))
        .routes(routes!(
            floating_ips::list_floating_ips,
            floating_ips::create_floating_ip
        ))
        .routes(routes!(
            floating_ips::get_floating_ip,
            floating_ips::delete_floating_ip
        ))
        .routes(routes!(
            floating_ips::attach_floating_ip,
            floating_ips::detach_floating_ip
        ))
        .routes(routes!(
            floating_ips::get_floating_pool,
            floating_ips::set_floating_pool
        ))
        .routes(routes!(list_images, create_image))
        .routes(routes!(get_image, delete_image))
        .routes(routes!(images::export_image))
        .routes(routes!(list_nodes))
        .routes(routes!(get_node))
        .routes(routes!(list_operations))
        .routes(routes!(get_operation))
        .routes(routes!(events))
        .routes(routes!(watch::watch))
        .routes(routes!(access::session))
        .routes(routes!(access::create_login_link))
        .routes(routes!(access::create_console_token))
        .routes(routes!(console::console_by_token))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES));
    let uploads = OpenApiRouter::new()
        .routes(routes!(upload))
        .layer(DefaultBodyLimit::disable());
    limited.merge(uploads)
}

/// Declares an endpoint whose path has one name in it.
macro_rules! endpoint {
    ($(#[$doc:meta])* $verb:ident $path:literal $tag:literal [$param:ident $text:literal] fn $name:ident($($arg:ident : $type:ty),*) -> ($status:literal, $body:ty) => |$api:ident| $do:expr) => {
        $(#[$doc])*
        #[utoipa::path($verb, path = $path, tag = $tag,
            params(($text = String, Path, description = "A name, an id, or the beginning of an id")),
            responses((status = $status, body = $body), (status = "default", body = Problem)))]
        async fn $name(State($api): State<ApiState>, Path($param): Path<String>) -> Made<$body> {
            let done = $do;
            Ok((StatusCode::from_u16($status).unwrap_or(StatusCode::OK), axum::Json(done)))
        }
    };
}

/// Who answers.
#[utoipa::path(get, path = "/version", tag = "daemon", responses((status = 200, body = Version)))]
async fn version(State(api): State<ApiState>) -> axum::Json<Version> {
    axum::Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION.to_owned(),
        instance: api.instance,
        controller: api.controller.name().to_owned(),
        leader: api.controller.leader(),
    })
}

/// Lists VMs.
#[utoipa::path(get, path = "/vms", tag = "vms", params(ListQuery), responses((status = 200, body = List<VmView>), (status = "default", body = Problem)))]
async fn list_vms(State(api): State<ApiState>, Query(query): Query<ListQuery>) -> Answer<List<VmView>> {
    Ok(axum::Json(api.controller.list_vms(&query).await?))
}

/// Makes a VM and starts it.
#[utoipa::path(post, path = "/vms", tag = "vms", request_body = LaunchRequest,
    responses((status = 202, body = Accepted<VmView>), (status = "default", body = Problem)))]
async fn launch(State(api): State<ApiState>, Json(request): Json<LaunchRequest>) -> Made<Accepted<VmView>> {
    accepted(api.controller.launch(&request).await?)
}

endpoint! {
    /// Shows a VM.
    get "/vms/{vm}" "vms" [vm "vm"] fn get_vm() -> (200, VmView) => |api| api.controller.vm_view(&vm).await?
}

/// How to delete a VM.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeleteQuery {
    /// Also when it runs: it is ended first, without asking the guest.
    #[serde(default)]
    force: bool,
}

/// Deletes a VM with its disk, ports and forwards.
#[utoipa::path(delete, path = "/vms/{vm}", tag = "vms",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id"), DeleteQuery),
    responses((status = 202, body = Accepted<VmView>), (status = "default", body = Problem)))]
async fn delete_vm(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Made<Accepted<VmView>> {
    accepted(api.controller.delete_vm(&vm, query.force).await?)
}

/// Starts, stops, restarts, pauses, resumes or saves a VM, or discards what was saved.
#[utoipa::path(post, path = "/vms/{vm}/power", tag = "vms", request_body = PowerRequest,
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<VmView>), (status = "default", body = Problem)))]
async fn power(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Json(request): Json<PowerRequest>,
) -> Made<Accepted<VmView>> {
    accepted(api.controller.power(&vm, request.action).await?)
}

/// Moves a VM to another node, while it runs or while it is off.
#[utoipa::path(post, path = "/vms/{vm}/migrate", tag = "vms", request_body = MigrateRequest,
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<VmView>), (status = "default", body = Problem)))]
async fn migrate(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Json(request): Json<MigrateRequest>,
) -> Made<Accepted<VmView>> {
    accepted(api.controller.migrate(&vm, &request).await?)
}

/// Tells whether a VM could be moved like that: everything that is looked at before, and what was found. Nothing is changed.
#[utoipa::path(post, path = "/vms/{vm}/migrate/check", tag = "vms", request_body = MigrateRequest,
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 200, body = List<MoveCheckView>), (status = "default", body = Problem)))]
async fn migrate_check(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Json(request): Json<MigrateRequest>,
) -> Answer<List<MoveCheckView>> {
    Ok(axum::Json(api.controller.check_migrate(&vm, &request).await?))
}

/// Tells what the scheduler thinks of each node for a VM, the best first.
#[utoipa::path(get, path = "/vms/{vm}/placement", tag = "vms",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 200, body = List<Placement>), (status = "default", body = Problem)))]
async fn placement(State(api): State<ApiState>, Path(vm): Path<String>) -> Answer<List<Placement>> {
    Ok(axum::Json(api.controller.placement(&vm).await?))
}

/// Replaces the security groups of a VM's ports.
#[utoipa::path(put, path = "/vms/{vm}/groups", tag = "vms", request_body = SetGroups,
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<VmView>), (status = "default", body = Problem)))]
async fn set_groups(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Json(request): Json<SetGroups>,
) -> Made<Accepted<VmView>> {
    accepted(api.controller.set_groups(&vm, &request).await?)
}

/// Changes the limits or the floating IP of a VM's port.
#[utoipa::path(patch, path = "/vms/{vm}/port", tag = "vms", request_body = SetPort,
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<VmView>), (status = "default", body = Problem)))]
async fn set_port(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Json(request): Json<SetPort>,
) -> Made<Accepted<VmView>> {
    accepted(api.controller.set_port(&vm, &request).await?)
}

/// How much of a console's log.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LogQuery {
    /// The newest so many bytes; as many as are given at once when absent.
    #[serde(default)]
    bytes: Option<u32>,
}

/// The newest part of what the serial console said.
#[utoipa::path(get, path = "/vms/{vm}/console/log", tag = "vms",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id"), LogQuery),
    responses((status = 200, description = "The bytes as the guest wrote them", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = Problem)))]
async fn console_log(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Failed> {
    let log = api.controller.console_log(&vm, query.bytes).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], log).into_response())
}

/// A picture of the screen.
#[utoipa::path(get, path = "/vms/{vm}/screenshot", tag = "vms",
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 200, description = "A PNG", body = Vec<u8>, content_type = "image/png"), (status = "default", body = Problem)))]
async fn screenshot(State(api): State<ApiState>, Path(vm): Path<String>) -> Result<Response, Failed> {
    let png = api.controller.screenshot(&vm).await?;
    Ok(([(header::CONTENT_TYPE, "image/png")], png).into_response())
}

/// Lists networks.
#[utoipa::path(get, path = "/networks", tag = "networks", params(ListQuery), responses((status = 200, body = List<NetworkView>), (status = "default", body = Problem)))]
async fn list_networks(
    State(api): State<ApiState>,
    Query(query): Query<ListQuery>,
) -> Answer<List<NetworkView>> {
    Ok(axum::Json(api.controller.list_networks(&query).await?))
}

/// Makes a network.
#[utoipa::path(post, path = "/networks", tag = "networks", request_body = CreateNetwork,
    responses((status = 202, body = Accepted<NetworkView>), (status = "default", body = Problem)))]
async fn create_network(
    State(api): State<ApiState>,
    Json(request): Json<CreateNetwork>,
) -> Made<Accepted<NetworkView>> {
    accepted(api.controller.create_network(&request).await?)
}

endpoint! {
    /// Shows a network.
    get "/networks/{network}" "networks" [network "network"] fn get_network() -> (200, NetworkView) => |api| api.controller.network_view(&network).await?
}

/// Changes who gets which address of a network from now on.
#[utoipa::path(patch, path = "/networks/{network}", tag = "networks", request_body = UpdateNetwork,
    params(("network" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<NetworkView>), (status = "default", body = Problem)))]
async fn update_network(
    State(api): State<ApiState>,
    Path(network): Path<String>,
    Json(request): Json<UpdateNetwork>,
) -> Made<Accepted<NetworkView>> {
    accepted(api.controller.update_network(&network, &request).await?)
}

endpoint! {
    /// Deletes a network that has no ports.
    delete "/networks/{network}" "networks" [network "network"] fn delete_network() -> (202, Accepted<NetworkView>) => |api| api.controller.delete_network(&network).await?
}

/// Lists ports: who has which address.
#[utoipa::path(get, path = "/ports", tag = "networks", params(ListQuery), responses((status = 200, body = List<PortView>), (status = "default", body = Problem)))]
async fn list_ports(State(api): State<ApiState>, Query(query): Query<ListQuery>) -> Answer<List<PortView>> {
    Ok(axum::Json(api.controller.list_ports(&query).await?))
}

/// Lists volumes.
#[utoipa::path(get, path = "/volumes", tag = "volumes", params(ListQuery), responses((status = 200, body = List<Volume>), (status = "default", body = Problem)))]
async fn list_volumes(State(api): State<ApiState>, Query(query): Query<ListQuery>) -> Answer<List<Volume>> {
    Ok(axum::Json(api.controller.list_volumes(&query).await?))
}

/// Lists security groups.
#[utoipa::path(get, path = "/groups", tag = "groups", params(ListQuery), responses((status = 200, body = List<Group>), (status = "default", body = Problem)))]
async fn list_groups(State(api): State<ApiState>, Query(query): Query<ListQuery>) -> Answer<List<Group>> {
    Ok(axum::Json(api.controller.list_groups(&query).await?))
}

/// Makes a security group.
#[utoipa::path(post, path = "/groups", tag = "groups", request_body = CreateGroup,
    responses((status = 201, body = Group), (status = "default", body = Problem)))]
async fn create_group(State(api): State<ApiState>, Json(request): Json<CreateGroup>) -> Made<Group> {
    made(api.controller.create_group(&request).await?)
}

endpoint! {
    /// Shows a security group.
    get "/groups/{group}" "groups" [group "group"] fn get_group() -> (200, Group) => |api| api.controller.group(&group).await?
}
endpoint! {
    /// Deletes a security group that no port has.
    delete "/groups/{group}" "groups" [group "group"] fn delete_group() -> (200, Group) => |api| api.controller.delete_group(&group).await?
}

/// Replaces the rules of a security group.
#[utoipa::path(put, path = "/groups/{group}/rules", tag = "groups", request_body = SetRules,
    params(("group" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 202, body = Accepted<Group>), (status = "default", body = Problem)))]
async fn set_rules(
    State(api): State<ApiState>,
    Path(group): Path<String>,
    Json(request): Json<SetRules>,
) -> Made<Accepted<Group>> {
    accepted(api.controller.set_rules(&group, &request).await?)
}

/// Lists forwards.
#[utoipa::path(get, path = "/forwards", tag = "forwards", params(ListQuery), responses((status = 200, body = List<ForwardView>), (status = "default", body = Problem)))]
async fn list_forwards(
    State(api): State<ApiState>,
    Query(query): Query<ListQuery>,
) -> Answer<List<ForwardView>> {
    Ok(axum::Json(api.controller.list_forwards(&query).await?))
}

/// Makes a forward.
#[utoipa::path(post, path = "/forwards", tag = "forwards", request_body = CreateForward,
    responses((status = 202, body = Accepted<ForwardView>), (status = "default", body = Problem)))]
async fn create_forward(
    State(api): State<ApiState>,
    Json(request): Json<CreateForward>,
) -> Made<Accepted<ForwardView>> {
    accepted(api.controller.create_forward(&request).await?)
}

endpoint! {
    /// Shows a forward.
    get "/forwards/{forward}" "forwards" [forward "forward"] fn get_forward() -> (200, ForwardView) => |api| api.controller.forward_view(&forward).await?
}
endpoint! {
    /// Deletes a forward.
    delete "/forwards/{forward}" "forwards" [forward "forward"] fn delete_forward() -> (202, Accepted<ForwardView>) => |api| api.controller.delete_forward(&forward).await?
}

/// Takes a file in, under the name of its content.
#[utoipa::path(post, path = "/blobs", tag = "images", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = Blob), (status = "default", body = Problem)))]
async fn upload(State(api): State<ApiState>, body: Body) -> Made<Blob> {
    let reader = tokio_util::io::StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    made(api.controller.upload(reader).await?)
}

/// Lists images.
#[utoipa::path(get, path = "/images", tag = "images", params(ListQuery), responses((status = 200, body = List<Image>), (status = "default", body = Problem)))]
async fn list_images(State(api): State<ApiState>, Query(query): Query<ListQuery>) -> Answer<List<Image>> {
    Ok(axum::Json(api.controller.list_images(&query).await?))
}

/// Makes an image of files that were uploaded.
#[utoipa::path(post, path = "/images", tag = "images", request_body = CreateImage,
    responses((status = 201, body = Image), (status = "default", body = Problem)))]
async fn create_image(State(api): State<ApiState>, Json(request): Json<CreateImage>) -> Made<Image> {
    made(api.controller.create_image(&request).await?)
}

endpoint! {
    /// Shows an image.
    get "/images/{image}" "images" [image "image"] fn get_image() -> (200, Image) => |api| api.controller.image(&image).await?
}
endpoint! {
    /// Deletes an image that no VM rests on.
    delete "/images/{image}" "images" [image "image"] fn delete_image() -> (200, Image) => |api| api.controller.delete_image(&image).await?
}

/// Lists nodes.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(ListQuery), responses((status = 200, body = List<Node>), (status = "default", body = Problem)))]
async fn list_nodes(State(api): State<ApiState>, Query(query): Query<ListQuery>) -> Answer<List<Node>> {
    Ok(axum::Json(api.controller.list_nodes(&query).await?))
}

endpoint! {
    /// Shows a node; the slashes of its path are written %2F.
    get "/nodes/{node}" "nodes" [node "node"] fn get_node() -> (200, Node) => |api| api.controller.node(&node).await?
}

/// Lists operations.
#[utoipa::path(get, path = "/operations", tag = "operations", params(ListQuery), responses((status = 200, body = List<Operation>), (status = "default", body = Problem)))]
async fn list_operations(
    State(api): State<ApiState>,
    Query(query): Query<ListQuery>,
) -> Answer<List<Operation>> {
    Ok(axum::Json(api.controller.list_operations(&query).await?))
}

/// Shows an operation; can wait until it is over.
#[utoipa::path(get, path = "/operations/{operation}", tag = "operations",
    params(("operation" = String, Path, description = "An id, or the beginning of one"), WaitQuery),
    responses((status = 200, body = Operation), (status = "default", body = Problem)))]
async fn get_operation(
    State(api): State<ApiState>,
    Path(operation): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Answer<Operation> {
    Ok(axum::Json(
        api.controller
            .operation_when(&operation, query.wait_seconds, query.seen_steps)
            .await?,
    ))
}

/// Reads events, as newline-delimited JSON. A blank line is a sign of life.
#[utoipa::path(get, path = "/events", tag = "events", params(EventQuery),
    responses((status = 200, body = EventView, content_type = "application/x-ndjson"), (status = "default", body = Problem)))]
async fn events(State(api): State<ApiState>, Query(query): Query<EventQuery>) -> Result<Response, Failed> {
    let events = api
        .controller
        .events(Revision(query.from.unwrap_or(0)), query.follow)
        .await?;
    let lines = events.map(|event| -> Result<Vec<u8>, io::Error> {
        let event = event.map_err(|e| io::Error::other(e.inline()))?;
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        Ok(line)
    });
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response())
}
