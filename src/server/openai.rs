//! OpenAI's image API: generations, edits and variations, with streams of partial images.
//! <https://platform.openai.com/docs/api-reference/images>

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{FromRequest as _, Multipart, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use image::RgbImage;
use image::imageops::{FilterType, resize};
use serde_json::{Value, json};

use super::fields::Fields;
use super::queue::{Finished, Job, State as JobState, Status};
use super::reply::{
    Events, Problem, Waiting, Whole, base64, file, images, json_body, plain_base64, when_done,
};
use super::{App, Submission, blocking, limit};
use crate::image_file::{ImageFile, OutputFormat};
use crate::recipe::Image;

/// What was not done as asked, in a reply's header.
const WARNINGS: HeaderName = HeaderName::from_static("x-calotype-warnings");
/// The longest such header.
const MAX_WARNINGS: usize = 2000;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edits))
        .route("/v1/images/variations", post(variations))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
}

/// How a reply is made.
#[derive(Clone, Copy)]
struct Form {
    format: OutputFormat,
    is_url: bool,
    /// Partial images of a stream; none without one.
    partial: Option<u64>,
    /// What events begin with.
    event: &'static str,
}

async fn generations(State(app): State<Arc<App>>, Whole(body): Whole) -> Result<Response, Problem> {
    let (submission, form) = blocking({
        let app = app.clone();
        move || read(&app, Fields::of_json(&body)?, "image_generation")
    })
    .await?;
    reply(&app, submission, form).await
}

async fn edits(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    edit(app, request, true).await
}

async fn variations(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    edit(app, request, false).await
}

async fn edit(app: Arc<App>, request: Request, has_prompt: bool) -> Result<Response, Problem> {
    let fields = form_or_json(request).await?;
    let (submission, form) = blocking({
        let app = app.clone();
        move || {
            let mut fields = fields;
            let init = fields.image(&["image", "image[]", "images"])?;
            let init = init.ok_or_else(|| Problem::field("image", "expected an image, got none"))?;
            let mask = fields.image(&["mask"])?;
            let (mut submission, form) = read(&app, fields, "image_edit")?;
            if has_prompt && submission.recipe.prompt.is_empty() {
                return Err(Problem::field("prompt", "expected a prompt for the edited image, got none"));
            }
            if let Some(mask) = mask {
                submission.recipe.mask = Some(fitted(mask, &init)?.into());
            }
            submission.recipe.init = Some(Image::from(init));
            Ok((submission, form))
        }
    })
    .await?;
    reply(&app, submission, form).await
}

/// A mask of the image's size: clients draw masks on what they show.
fn fitted(mask: ImageFile, init: &ImageFile) -> Result<ImageFile, Problem> {
    if mask.dimensions() != init.dimensions() {
        let ((width, height), (got_width, got_height)) = (init.dimensions(), mask.dimensions());
        let problem = format!("expected the image's size {width}x{height}, got {got_width}x{got_height}");
        return Err(Problem::field("mask", problem));
    }
    Ok(mask)
}

/// The fields of a form, or of JSON, which some clients send to the same path.
pub(super) async fn form_or_json(request: Request) -> Result<Fields, Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("multipart/form-data")) {
        let Whole(body) = Whole::from_request(request, &()).await?;
        return Fields::of_json(&body);
    }
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|error| Problem::new(error.status(), format!("body: {error}")))?;
    let (mut texts, mut files) = (Vec::new(), Vec::new());
    while let Some(field) =
        form.next_field().await.map_err(|error| refused(error.status(), &error.body_text()))?
    {
        if texts.len() + files.len() == limit::FORM_FIELDS {
            return Err(Problem::field(
                "body",
                format!("expected at most {} fields, got more", limit::FORM_FIELDS),
            ));
        }
        let name = field.name().unwrap_or_default().to_owned();
        let is_file = field.file_name().is_some();
        let bytes = field.bytes().await.map_err(|error| refused(error.status(), &error.body_text()))?;
        if is_file {
            if bytes.len() > limit::IMAGE_BYTES {
                let got = format!("expected at most {} bytes, got {}", limit::IMAGE_BYTES, bytes.len());
                return Err(Problem::field(&name, got).status(StatusCode::PAYLOAD_TOO_LARGE));
            }
            files.push((name, bytes.to_vec()));
        } else {
            let text =
                (bytes.len() <= limit::FORM_TEXT_BYTES).then(|| String::from_utf8(bytes.to_vec()).ok());
            let text = text.flatten().ok_or_else(|| {
                let got = format!("expected a text in UTF-8 of at most {} bytes", limit::FORM_TEXT_BYTES);
                Problem::field(&name, got)
            })?;
            texts.push((name, text));
        }
    }
    Ok(Fields::of_form(texts, files))
}

fn refused(status: StatusCode, error: &impl std::fmt::Display) -> Problem {
    Problem::field("body", error).status(status)
}

/// What is asked for, and how the reply is made.
fn read(app: &App, mut fields: Fields, event: &'static str) -> Result<(Submission, Form), Problem> {
    let model = app.model(fields.text(&["model"])?.as_deref())?;
    let mut recipe = app.recipe(model);
    fields.fill(&mut recipe)?;
    let count = fields.number(&["n"])?.unwrap_or(1);
    let mut warnings = Vec::new();
    if let Some(size) = fields.text(&["size"])?.filter(|size| size != "auto" && !size.is_empty()) {
        let sides = size.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        let (width, height) = sides
            .ok_or_else(|| Problem::field("size", format!("expected WIDTHxHEIGHT or auto, got {size:?}")))?;
        recipe.size = Some(app.rounded(model, width, height, &mut warnings)?);
    }
    let format = match fields.text(&["output_format"])?.as_deref() {
        None | Some("png" | "") => OutputFormat::Png,
        Some("jpeg" | "jpg") => OutputFormat::Jpeg,
        Some("webp") => OutputFormat::WebP,
        Some(other) => {
            return Err(Problem::field(
                "output_format",
                format!("expected png, jpeg or webp, got {other:?}"),
            ));
        }
    };
    let is_url = match fields.text(&["response_format"])?.as_deref() {
        None | Some("b64_json" | "") => false,
        Some("url") => true,
        Some(other) => {
            return Err(Problem::field(
                "response_format",
                format!("expected b64_json or url, got {other:?}"),
            ));
        }
    };
    let is_stream = fields.flag(&["stream"])?;
    let partial = fields.number(&["partial_images"])?.unwrap_or(0);
    if partial > limit::PARTIAL_IMAGES {
        let got = format!("expected 0 to {}, got {partial}", limit::PARTIAL_IMAGES);
        return Err(Problem::field("partial_images", got));
    }
    // What says nothing to a model: who asks, and what the default is anyway.
    for (name, usual) in [("user", ""), ("quality", "auto"), ("background", "auto"), ("moderation", "auto")] {
        if let Some((_, value)) = fields.take(&[name])
            && !usual.is_empty()
            && value != usual
        {
            warnings.push(format!("fields that are not used: {name}"));
        }
    }
    warnings.extend(fields.rest());
    let submission = Submission { model, recipe, count, channel: None, warnings };
    Ok((submission, Form { format, is_url, partial: is_stream.then_some(partial), event }))
}

async fn reply(app: &Arc<App>, submission: Submission, form: Form) -> Result<Response, Problem> {
    let mut headers = HeaderMap::new();
    let told = submission.warnings.join("; ");
    let told: String = told.chars().filter(|c| (' '..='~').contains(c)).take(MAX_WARNINGS).collect();
    if let (false, Ok(value)) = (told.is_empty(), HeaderValue::from_str(&told)) {
        headers.insert(WARNINGS, value);
    }
    let job = app.submit(submission).await?;
    let waiting = Waiting::new(&app.queue, &job);
    match form.partial {
        Some(count) => Ok(stream(waiting, job, count, form)),
        None => Ok(when_done(waiting, headers, move |state| whole(&job, &state, form)).await),
    }
}

/// A reply with all images.
fn whole(job: &Job, state: &JobState, form: Form) -> Result<Value, Problem> {
    let data = state.images.iter().enumerate().map(|(index, finished)| {
        Ok(match form.is_url {
            true => json!({ "url": format!("/api/jobs/{}/{index}.{}", job.id, extension(form.format)) }),
            false => json!({ "b64_json": base64(&file(finished, form.format)?) }),
        })
    });
    let data = data.collect::<Result<Vec<_>, Problem>>()?;
    let mut value = about(job, state.images.last().map(|finished| &finished.image), form.format);
    value["created"] = seconds(job.created).into();
    value["data"] = data.into();
    value["usage"] = usage();
    Ok(value)
}

fn stream(waiting: Waiting, job: Arc<Job>, count: u64, form: Form) -> Response {
    let (events, response) = Events::new();
    job.wants_previews.store(count > 0, Ordering::Relaxed);
    tokio::spawn(async move {
        let mut watch = job.watch();
        let (mut sent, mut finished) = (0, 0);
        loop {
            let state = watch.borrow_and_update().clone();
            // Evenly over the steps of the first image, as far as there are steps enough.
            if sent < count
                && finished == 0
                && state.images.is_empty()
                && let Some(preview) = &state.preview
                && state.step as u64 * (count + 1) >= state.steps as u64 * (sent + 1)
            {
                let image = partial(&job, preview);
                let mut event = about(&job, Some(&image), OutputFormat::Png);
                event["type"] = format!("{}.partial_image", form.event).into();
                event["b64_json"] = plain_base64(&image).into();
                event["partial_image_index"] = sent.into();
                event["created_at"] = seconds(SystemTime::now()).into();
                if !events.send(&format!("{}.partial_image", form.event), &event).await {
                    return;
                }
                sent += 1;
            }
            while let Some(image) = state.images.get(finished).cloned() {
                if !completed(&events, &job, image, form).await {
                    return;
                }
                finished += 1;
            }
            if state.status.is_final() {
                if state.status != Status::Done {
                    let problem = images(state).err().map(|problem| problem.json()).unwrap_or_default();
                    events.send("error", &problem).await;
                }
                drop(waiting);
                return;
            }
            if !events.changed(&mut watch).await {
                return;
            }
        }
    });
    response
}

async fn completed(events: &Events, job: &Arc<Job>, finished: Arc<Finished>, form: Form) -> bool {
    let mut event = about(job, Some(&finished.image), form.format);
    let bytes = blocking(move || Ok(file(&finished, form.format)?)).await;
    match bytes {
        Ok(bytes) => event["b64_json"] = base64(&bytes).into(),
        Err(problem) => return events.send("error", &problem.json()).await,
    }
    event["type"] = format!("{}.completed", form.event).into();
    event["created_at"] = seconds(SystemTime::now()).into();
    event["usage"] = usage();
    events.send(&format!("{}.completed", form.event), &event).await
}

/// A preview as large as the image will be.
fn partial(job: &Job, preview: &RgbImage) -> RgbImage {
    let (width, height) = match job.recipe.size {
        Some(size) => (size.width_px(), size.height_px()),
        None => (preview.width() * 8, preview.height() * 8),
    };
    resize(preview, width, height, FilterType::Triangle)
}

fn about(job: &Job, image: Option<&RgbImage>, format: OutputFormat) -> Value {
    let size = image.map(|image| format!("{}x{}", image.width(), image.height()));
    let warnings = job.state().warnings;
    json!({
        "output_format": extension(format),
        "background": "opaque",
        "quality": "auto",
        "size": size,
        "warnings": warnings,
    })
}

/// Clients read these numbers; nothing is counted in tokens here.
fn usage() -> Value {
    json!({
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": { "text_tokens": 0, "image_tokens": 0 },
    })
}

pub(super) fn extension(format: OutputFormat) -> &'static str {
    match format {
        OutputFormat::Png => "png",
        OutputFormat::Jpeg => "jpeg",
        OutputFormat::WebP => "webp",
    }
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let data: Vec<Value> = app.models.iter().map(|served| model_json(&served.name)).collect();
    json_body(&json!({ "object": "list", "data": data })).into_response()
}

async fn model(
    State(app): State<Arc<App>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Response, Problem> {
    let found = app.models.iter().find(|served| served.name == name);
    let served = found.ok_or_else(|| Problem::not_found("model"))?;
    Ok(json_body(&model_json(&served.name)).into_response())
}

fn model_json(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "calotype" })
}
