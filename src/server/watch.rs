//! Whether the server lives and takes jobs, and what it counted, for supervisors (`/healthz`, `/readyz`) and Prometheus
//! (`/metrics`).

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::App;
use crate::memory;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.queue.is_open() {
        false => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response(),
        true if app.queue.len() >= app.queue.limit() => {
            (StatusCode::SERVICE_UNAVAILABLE, "queue full\n").into_response()
        }
        true => "ready\n".into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let counts = &app.queue.counts;
    let mut text = String::new();
    let mut tell = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = writeln!(
            text,
            "# HELP calotype_{name} {help}\n# TYPE calotype_{name} {kind}\ncalotype_{name} {value}"
        );
    };
    for (name, help, count) in [
        ("jobs_accepted_total", "Jobs accepted into the queue.", &counts.accepted),
        ("jobs_refused_total", "Jobs refused because the queue was full.", &counts.refused),
        ("jobs_failed_total", "Jobs that ended with an error.", &counts.failed),
        ("jobs_cancelled_total", "Jobs that were cancelled.", &counts.cancelled),
        ("images_total", "Images generated.", &counts.images),
        ("steps_total", "Denoising steps.", &counts.steps),
    ] {
        tell(name, "counter", help, count.load(Ordering::Relaxed) as f64);
    }
    let busy_s = counts.busy_ms.load(Ordering::Relaxed) as f64 / 1e3;
    tell("busy_seconds_total", "counter", "Time spent running jobs.", busy_s);
    tell("queue_length", "gauge", "Jobs waiting in the queue.", app.queue.len() as f64);
    tell("queue_limit", "gauge", "Jobs that the queue has room for.", app.queue.limit() as f64);
    tell("running", "gauge", "Jobs running now.", f64::from(u8::from(app.queue.running().is_some())));
    tell("uptime_seconds", "gauge", "Time since the server started.", app.started.elapsed().as_secs_f64());
    if let Some(bytes) = memory::resident_bytes() {
        tell("resident_bytes", "gauge", "Resident memory of the process.", bytes as f64);
    }
    if let Some(bytes) = memory::peak_bytes() {
        tell("peak_resident_bytes", "gauge", "Peak resident memory of the process.", bytes as f64);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
