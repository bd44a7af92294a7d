//! Images that leave.

use super::{
    ApiState,
    problem::{Failed, Query},
};
use crate::api::{ExportQuery, Problem};
use axum::{
    body::Body,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use vbm_core::{Error, ErrorKind};
use vbm_hyper::ImageFormat;

/// Gives the disk of an image as a file. A body that is cut off is not whole.
#[utoipa::path(get, path = "/images/{image}/disk", tag = "images",
    params(("image" = String, Path, description = "A name, an id, or the beginning of an id"), ExportQuery),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = "default", body = Problem)))]
pub(super) async fn export_image(
    State(api): State<ApiState>,
    Path(image): Path<String>,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Failed> {
    let format = query.format.as_deref().map(str::parse::<ImageFormat>).transpose();
    let format = format.map_err(|why| {
        Failed(Error::new(
            ErrorKind::InvalidInput,
            "the format is not known",
            why,
            "ask for qcow2, raw or vdi",
        ))
    })?;
    let pieces = api.controller.export_image(&image, format).await?;
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(pieces)).into_response())
}
