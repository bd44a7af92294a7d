//! Who asks, login links, console tokens.

use super::{
    ApiState,
    doors::Visitor,
    problem::{Failed, Json},
};
use crate::api::{API_VERSION, ConsoleToken, CreateConsoleToken, LoginLink, Problem, SessionView};
use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
};
use vbm_core::{Error, ErrorKind};

/// Who asks, and whom. Over TCP without a session: 401.
#[utoipa::path(get, path = "/session", tag = "daemon",
    responses((status = 200, body = SessionView), (status = 401, description = "There is no session: log in", body = Problem),
        (status = "default", body = Problem)))]
pub(super) async fn session(
    State(api): State<ApiState>,
    visitor: Option<Extension<Visitor>>,
) -> axum::Json<SessionView> {
    axum::Json(SessionView {
        user: api.doors.user.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION.to_owned(),
        instance: api.instance,
        expires_at: visitor.map(|Extension(v)| v.session.expires_at),
    })
}

/// Makes a link that logs a browser in, once. On the unix socket only: a session cannot make another.
#[utoipa::path(post, path = "/web/links", tag = "daemon",
    responses((status = 201, body = LoginLink), (status = "default", body = Problem)))]
pub(super) async fn create_login_link(
    State(api): State<ApiState>,
    visitor: Option<Extension<Visitor>>,
) -> Result<(StatusCode, axum::Json<LoginLink>), Failed> {
    if visitor.is_some() {
        return Err(Failed(Error::new(
            ErrorKind::PermissionDenied,
            "a login link cannot be made from here",
            "links are made on the machine that vbmd runs on, through its unix socket",
            "run `vbm web login` there",
        )));
    }
    let link = api.doors.login_link(api.controller.now())?;
    Ok((StatusCode::CREATED, axum::Json(link)))
}

/// Gives a token for one connection to a console of a VM.
#[utoipa::path(post, path = "/vms/{vm}/console-tokens", tag = "vms", request_body = CreateConsoleToken,
    params(("vm" = String, Path, description = "A name, an id, or the beginning of an id")),
    responses((status = 201, body = ConsoleToken), (status = "default", body = Problem)))]
pub(super) async fn create_console_token(
    State(api): State<ApiState>,
    Path(vm): Path<String>,
    Json(request): Json<CreateConsoleToken>,
) -> Result<(StatusCode, axum::Json<ConsoleToken>), Failed> {
    let vm = api.controller.console_of(&vm).await?;
    let token = api.doors.console_token(vm, request.kind, api.controller.now())?;
    Ok((StatusCode::CREATED, axum::Json(token)))
}
