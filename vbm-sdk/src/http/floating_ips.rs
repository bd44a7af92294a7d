//! The endpoints of floating IPs, each a line of glue.

use super::{
    ApiState,
    problem::{Json, Query},
    routes::{Answer, Made, accepted, made},
};
use crate::api::{Accepted, AttachFloatingIp, CreateFloatingIp, FloatingIpView, List, ListQuery, Problem};
use axum::extract::{Path, State};
use vbm_core::FloatingPool;

/// Lists the floating IPs that are kept.
#[utoipa::path(get, path = "/floating-ips", tag = "floating IPs", params(ListQuery),
    responses((status = 200, body = List<FloatingIpView>), (status = "default", body = Problem)))]
pub(super) async fn list_floating_ips(
    State(api): State<ApiState>,
    Query(query): Query<ListQuery>,
) -> Answer<List<FloatingIpView>> {
    Ok(axum::Json(api.controller.list_floating_ips(&query).await?))
}

/// Keeps an address of the world: the one that is named, or one of the pool.
#[utoipa::path(post, path = "/floating-ips", tag = "floating IPs", request_body = CreateFloatingIp,
    responses((status = 201, body = FloatingIpView), (status = "default", body = Problem)))]
pub(super) async fn create_floating_ip(
    State(api): State<ApiState>,
    Json(request): Json<CreateFloatingIp>,
) -> Made<FloatingIpView> {
    made(api.controller.create_floating_ip(&request).await?)
}

/// Shows a floating IP.
#[utoipa::path(get, path = "/floating-ips/{floating_ip}", tag = "floating IPs",
    params(("floating_ip" = String, Path, description = "A name, an id, the beginning of an id, or the address")),
    responses((status = 200, body = FloatingIpView), (status = "default", body = Problem)))]
pub(super) async fn get_floating_ip(
    State(api): State<ApiState>,
    Path(floating): Path<String>,
) -> Answer<FloatingIpView> {
    Ok(axum::Json(api.controller.floating_ip_view(&floating).await?))
}

/// Keeps an address no more. Refused while a port has it.
#[utoipa::path(delete, path = "/floating-ips/{floating_ip}", tag = "floating IPs",
    params(("floating_ip" = String, Path, description = "A name, an id, the beginning of an id, or the address")),
    responses((status = 200, body = FloatingIpView), (status = "default", body = Problem)))]
pub(super) async fn delete_floating_ip(
    State(api): State<ApiState>,
    Path(floating): Path<String>,
) -> Answer<FloatingIpView> {
    Ok(axum::Json(api.controller.delete_floating_ip(&floating).await?))
}

/// Lets a floating IP lead to a VM.
#[utoipa::path(put, path = "/floating-ips/{floating_ip}/target", tag = "floating IPs", request_body = AttachFloatingIp,
    params(("floating_ip" = String, Path, description = "A name, an id, the beginning of an id, or the address")),
    responses((status = 202, body = Accepted<FloatingIpView>), (status = "default", body = Problem)))]
pub(super) async fn attach_floating_ip(
    State(api): State<ApiState>,
    Path(floating): Path<String>,
    Json(request): Json<AttachFloatingIp>,
) -> Made<Accepted<FloatingIpView>> {
    accepted(api.controller.attach_floating_ip(&floating, &request).await?)
}

/// Lets a floating IP lead nowhere; it is kept.
#[utoipa::path(delete, path = "/floating-ips/{floating_ip}/target", tag = "floating IPs",
    params(("floating_ip" = String, Path, description = "A name, an id, the beginning of an id, or the address")),
    responses((status = 202, body = Accepted<FloatingIpView>), (status = "default", body = Problem)))]
pub(super) async fn detach_floating_ip(
    State(api): State<ApiState>,
    Path(floating): Path<String>,
) -> Made<Accepted<FloatingIpView>> {
    accepted(api.controller.detach_floating_ip(&floating).await?)
}

/// Shows from which addresses a floating IP is picked where none is named.
#[utoipa::path(get, path = "/floating-pool", tag = "floating IPs",
    responses((status = 200, body = FloatingPool), (status = "default", body = Problem)))]
pub(super) async fn get_floating_pool(State(api): State<ApiState>) -> Answer<FloatingPool> {
    Ok(axum::Json(api.controller.floating_pool().await?))
}

/// Says from which addresses a floating IP is picked from now on. What is kept stays.
#[utoipa::path(put, path = "/floating-pool", tag = "floating IPs", request_body = FloatingPool,
    responses((status = 200, body = FloatingPool), (status = "default", body = Problem)))]
pub(super) async fn set_floating_pool(
    State(api): State<ApiState>,
    Json(pool): Json<FloatingPool>,
) -> Answer<FloatingPool> {
    Ok(axum::Json(api.controller.set_floating_pool(&pool).await?))
}
