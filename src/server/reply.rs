//! Replies: errors in the form that both kinds of clients read, images as base64, and JSON that takes a while.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::limit;
use super::queue::{Failure, Finished, Job, Queue, Refusal, State, Status};
use crate::image_file::{OutputFormat, RecipeText, encode};
use crate::{Error, ErrorKind};

/// A refusal or failure, as a reply.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// The field that it is about.
    pub(super) param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A field that is not what it must be.
    pub(super) fn field(name: &str, problem: impl std::fmt::Display) -> Self {
        let param = Some(name.to_owned());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, format!("{name}: {problem}")) }
    }

    /// The same of a part that stands at this place.
    pub(super) fn within(self, place: &str) -> Self {
        Self { message: format!("{place}: {}", self.message), param: Some(place.to_owned()), ..self }
    }

    /// What may work later.
    pub(super) fn busy(message: &str, after: Duration) -> Self {
        Self { retry_after: Some(after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// The same with another status.
    pub(super) fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what}: not found"))
    }

    /// OpenAI's form, with `detail` for clients of A1111's API.
    pub(super) fn json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 | 403 => "authentication_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let error = json!({ "message": self.message, "type": kind, "param": self.param, "code": self.code });
        json!({ "error": error, "detail": self.message })
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, json_body(&self.json())).into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { param: error.place().map(str::to_owned), ..Failure::from(&error).into() }
    }
}

impl From<Failure> for Problem {
    fn from(Failure { kind, message, is_late }: Failure) -> Self {
        let (status, code) = match kind {
            _ if is_late => (StatusCode::GATEWAY_TIMEOUT, Some("deadline")),
            ErrorKind::Usage | ErrorKind::Input => (StatusCode::BAD_REQUEST, None),
            // What was asked for is too large for this device.
            ErrorKind::Memory => (StatusCode::BAD_REQUEST, Some("memory")),
            ErrorKind::Cancelled => (StatusCode::CONFLICT, Some("cancelled")),
            ErrorKind::Numeric => (StatusCode::INTERNAL_SERVER_ERROR, Some("numeric")),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        let message = if is_late { format!("the server's deadline passed: {message}") } else { message };
        Self { code, ..Self::new(status, message) }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full(after) => Self {
                code: Some("queue_full"),
                retry_after: Some(after),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "queue: expected room for a job, got a full queue")
            },
            Refusal::Closed => Self::busy("the server is shutting down", Duration::from_secs(10)),
        }
    }
}

/// A request's whole body.
pub(super) struct Whole(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let read = Bytes::from_request(request, state).await;
        read.map(Self).map_err(|error| Problem::field("body", error.body_text()).status(error.status()))
    }
}

pub(super) fn json_body(value: &Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string())
}

/// The file of a finished image.
pub(super) fn file(finished: &Finished, format: OutputFormat) -> Result<Vec<u8>, Error> {
    let receipt = finished.receipt.as_ref().map(|receipt| receipt.to_json());
    let text = receipt.as_ref().map(|json| RecipeText { parameters: &finished.parameters, json });
    let mut bytes = Vec::new();
    encode(&finished.image, format, text, &mut bytes)
        .map_err(|error| Error::new(ErrorKind::Output, "expected an encoded image").source(error))?;
    Ok(bytes)
}

/// A small image, such as a preview, as PNG in base64.
pub(super) fn plain_base64(image: &image::RgbImage) -> String {
    let mut bytes = Vec::new();
    // A vector takes everything.
    let _ = encode(image, OutputFormat::Png, None, &mut bytes);
    STANDARD.encode(bytes)
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of an image in base64, with or without a `data:` prefix.
pub(super) fn from_base64(name: &str, text: &str) -> Result<Vec<u8>, Problem> {
    let text = text.trim();
    let data = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map(|(_, data)| data),
        None => Some(text),
    };
    let decoded = data.and_then(|data| {
        let data: String = data.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        STANDARD.decode(data).ok()
    });
    let bytes =
        decoded.ok_or_else(|| Problem::field(name, "expected an image in base64, got something else"))?;
    if bytes.len() > limit::IMAGE_BYTES {
        let got = format!("expected an image of at most {} bytes, got {}", limit::IMAGE_BYTES, bytes.len());
        return Err(Problem::field(name, got).status(StatusCode::PAYLOAD_TOO_LARGE));
    }
    Ok(bytes)
}

/// Cancels a job when whoever waits for it is gone.
pub(super) struct Waiting {
    queue: Arc<Queue>,
    job: Arc<Job>,
}

impl Waiting {
    pub(super) fn new(queue: &Arc<Queue>, job: &Arc<Job>) -> Self {
        Self { queue: queue.clone(), job: job.clone() }
    }

    /// Waits until it has ended.
    pub(super) async fn end(&self) -> State {
        let mut watch = self.job.watch();
        match watch.wait_for(|state| state.status.is_final()).await {
            Ok(state) => state.clone(),
            // The job lives as long as this.
            Err(_) => self.job.state(),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.job.state().status.is_final() {
            self.queue.cancel(&self.job);
        }
    }
}

/// The images of a job that has ended; an error for one that has none.
pub(super) fn images(state: State) -> Result<State, Problem> {
    match (state.status, state.error) {
        (Status::Done, _) => Ok(State { error: None, ..state }),
        (_, Some(failure)) => Err(failure.into()),
        (status, None) => {
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the job is {}", status.name())))
        }
    }
}

/// The JSON of a job that somebody waits for. When it takes longer than [`limit::EARLY_REPLY`], the reply begins with
/// spaces, which JSON permits before its value; an error is then in the body only.
pub(super) async fn when_done(
    waiting: Waiting,
    headers: HeaderMap,
    make: impl FnOnce(State) -> Result<Value, Problem> + Send + 'static,
) -> Response {
    let finish = async move |state: State| {
        let made = tokio::task::spawn_blocking(move || images(state).and_then(make)).await;
        made.unwrap_or_else(|_| Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")))
    };
    if let Ok(state) = tokio::time::timeout(limit::EARLY_REPLY, waiting.end()).await {
        return match finish(state).await {
            Ok(value) => (headers, json_body(&value)).into_response(),
            Err(problem) => problem.into_response(),
        };
    }
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    tokio::spawn(async move {
        let state = loop {
            tokio::select! {
                state = waiting.end() => break state,
                () = sender.closed() => return,
                () = tokio::time::sleep(limit::KEEP_ALIVE) => {
                    if sender.send(Ok(Bytes::from_static(b" "))).await.is_err() {
                        return;
                    }
                }
            }
        };
        let value = finish(state).await.unwrap_or_else(|problem| problem.json());
        let _ = sender.send(Ok(value.to_string().into())).await;
    });
    let mut response = Body::from_stream(ReceiverStream::new(receiver)).into_response();
    response.headers_mut().extend(headers);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Server-sent events: what `next` gives until it gives nothing, with comments in between so that proxies keep the
/// connection.
pub(super) struct Events(mpsc::Sender<io::Result<Bytes>>);

impl Events {
    /// A stream, and its reply.
    pub(super) fn new() -> (Self, Response) {
        let (sender, receiver) = mpsc::channel(4);
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-store"),
            // Proxies that collect replies would hold events back.
            (header::HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        (Self(sender), (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response())
    }

    /// Sends an event; false when the reader is gone.
    pub(super) async fn send(&self, name: &str, data: &Value) -> bool {
        self.0.send(Ok(format!("event: {name}\ndata: {data}\n\n").into())).await.is_ok()
    }

    /// Waits for a change, with comments while nothing changes; false when the reader is gone.
    pub(super) async fn changed(&self, watch: &mut tokio::sync::watch::Receiver<State>) -> bool {
        loop {
            tokio::select! {
                changed = watch.changed() => return changed.is_ok(),
                () = self.0.closed() => return false,
                () = tokio::time::sleep(limit::KEEP_ALIVE) => {
                    if self.0.send(Ok(Bytes::from_static(b": keepalive\n\n"))).await.is_err() {
                        return false;
                    }
                }
            }
        }
    }
}
