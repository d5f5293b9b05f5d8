//! The page: its files, which are in the program.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::App;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

pub(super) fn routes() -> Router<Arc<App>> {
    let file = |kind: &'static str, text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text))
    };
    Router::new()
        .route("/", file(HTML, include_str!("kiosk/index.html")))
        .route("/kiosk/app.js", file(SCRIPT, include_str!("kiosk/app.js")))
        .route("/kiosk/texts.js", file(SCRIPT, include_str!("kiosk/texts.js")))
        .route("/kiosk/style.css", file(CSS, include_str!("kiosk/style.css")))
        .route("/kiosk/theme.css", get(theme))
}

/// The colours and letters of the page, which the server's owner may replace.
async fn theme(State(app): State<Arc<App>>) -> Response {
    let text = app.config.theme.clone().unwrap_or_else(|| include_str!("kiosk/theme.css").into());
    ([(header::CONTENT_TYPE, CSS), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}
