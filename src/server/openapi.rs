//! The document of all paths in OpenAPI 3.1, for programs that make clients of it.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;

use super::App;

const DOCUMENT: &str = include_str!("openapi.json");

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], DOCUMENT)))
}
