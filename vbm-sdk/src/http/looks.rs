//! The endpoints that ask the nodes of a network, each a line of glue.

use super::{ApiState, routes::Answer};
use crate::api::{List, NetworkCounts, NodeChanges, NodePaths, Problem};
use axum::extract::{Path, State};

/// Tells what each node would change of a network now; nothing is changed.
#[utoipa::path(get, path = "/networks/{network}/plan", tag = "networks",
    params(("network" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 200, body = List<NodeChanges>), (status = "default", body = Problem)))]
pub(super) async fn network_plan(
    State(api): State<ApiState>,
    Path(network): Path<String>,
) -> Answer<List<NodeChanges>> {
    Ok(axum::Json(api.controller.network_plan(&network).await?))
}

/// Tells what passed each port of a network, and what each rule let begin.
#[utoipa::path(get, path = "/networks/{network}/counters", tag = "networks",
    params(("network" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 200, body = NetworkCounts), (status = "default", body = Problem)))]
pub(super) async fn network_counters(
    State(api): State<ApiState>,
    Path(network): Path<String>,
) -> Answer<NetworkCounts> {
    Ok(axum::Json(api.controller.network_counters(&network).await?))
}

/// Lets each node try every path between its networks with real packets, and tells which are there.
#[utoipa::path(get, path = "/paths", tag = "networks",
    responses((status = 200, body = List<NodePaths>), (status = "default", body = Problem)))]
pub(super) async fn network_paths(State(api): State<ApiState>) -> Answer<List<NodePaths>> {
    Ok(axum::Json(api.controller.network_paths().await?))
}
