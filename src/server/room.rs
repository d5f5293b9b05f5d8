//! Room for the bodies of requests: those that are read at a time take no more than one limit together.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::sync::Semaphore;

use super::reply::Problem;
use super::{App, limit};

/// The bytes that a permit stands for.
const UNIT: usize = 1 << 10;

/// As many permits as all bodies may have together.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(limit::BODIES_BYTES / UNIT))
}

/// Lets a request in whose body finds room, or soon does. It keeps the room until it is answered.
pub(super) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let bytes = body_bytes(request.headers());
    if bytes > limit::BODY_BYTES {
        let got = format!("expected at most {} bytes, got more", limit::BODY_BYTES);
        return Problem::field("body", got).status(StatusCode::PAYLOAD_TOO_LARGE).into_response();
    }
    if bytes <= limit::SMALL_BODY_BYTES {
        return next.run(request).await;
    }
    let permits = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
    let waited = tokio::time::timeout(limit::ROOM_TIME, app.room.clone().acquire_many_owned(permits)).await;
    match waited {
        Ok(Ok(_permit)) => next.run(request).await,
        _ => Problem::busy("too many large requests at once", Duration::from_secs(5)).into_response(),
    }
}

/// What a body may have, by the header.
fn body_bytes(headers: &HeaderMap) -> usize {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return limit::BODY_BYTES;
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}
