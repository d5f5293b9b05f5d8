//! Jobs: a recipe is submitted, watched through events, cancelled, and its images and receipts are fetched.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use super::fields::{Fields, checked_prompt};
use super::openai::seconds;
use super::panel::Panel;
use super::queue::{Finished, Job, State as JobState};
use super::reply::{Events, Problem, Whole, file, json_body, plain_base64};
use super::{App, Submission, blocking, limit};
use crate::image_file::OutputFormat;
use crate::provenance::pixels_sha256;
use crate::recipe::{ControlImage, Image, Recipe};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/info", get(info))
        .route("/api/jobs", post(submit).get(list))
        .route("/api/jobs/{id}", get(show).delete(cancel))
        .route("/api/jobs/{id}/cancel", post(cancel))
        .route("/api/jobs/{id}/events", get(events))
        .route("/api/jobs/{id}/receipt.json", get(receipt))
        .route("/api/jobs/{id}/{file}", get(image))
        .route("/latest/{file}", get(latest))
}

async fn info(State(app): State<Arc<App>>) -> Response {
    let served = &app.models[app.model.load(Ordering::Relaxed)];
    let defaults = &served.model.manifest().defaults;
    json_body(&json!({
        "model": served.name,
        "models": app.models.iter().map(|served| &served.name).collect::<Vec<_>>(),
        "version": env!("CARGO_PKG_VERSION"),
        "width": defaults.size.width_px(),
        "height": defaults.size.height_px(),
        "steps": defaults.steps,
        "queue_length": app.queue.len(),
        "queue_limit": app.queue.limit(),
        "fixed_prompts": app.config.fixed_prompts,
        "presets": app.config.presets,
        "idle_s": app.config.idle.map(|idle| idle.as_secs()),
        "accepts_images": served.model.vae_encoder().is_some(),
    }))
    .into_response()
}

async fn submit(State(app): State<Arc<App>>, Whole(body): Whole) -> Result<Response, Problem> {
    let submission = blocking({
        let app = app.clone();
        move || read(&app, Fields::of_json(&body)?)
    })
    .await?;
    let job = app.submit(submission).await?;
    let location = [(header::LOCATION, format!("/api/jobs/{}", job.id))];
    Ok((StatusCode::ACCEPTED, location, json_body(&job_json(&app, &job))).into_response())
}

fn read(app: &App, mut fields: Fields) -> Result<Submission, Problem> {
    let model = app.model(fields.text(&["model"])?.as_deref())?;
    let (_, recipe) =
        fields.take(&["recipe"]).ok_or_else(|| Problem::field("recipe", "expected a recipe, got none"))?;
    let recipe = Recipe::parse("recipe", recipe.to_string().as_bytes())?;
    let mut recipe = without_files(recipe, &app.recipe(model))?;
    recipe.prompt = checked_prompt("recipe: prompt", recipe.prompt)?;
    recipe.negative = recipe.negative.map(|text| checked_prompt("recipe: negative", text)).transpose()?;
    if let Some(init) = fields.image(&["init"])? {
        recipe.init = Some(Image::from(init));
    }
    if let Some(mask) = fields.image(&["mask"])? {
        recipe.mask = Some(Image::from(mask));
    }
    recipe.control = controls(&mut fields)?;
    let channel = fields.text(&["channel"])?;
    if let Some(name) = &channel
        && !is_channel(name)
    {
        let expected = format!("expected at most {} letters, digits, - and _", limit::CHANNEL_CHARS);
        return Err(Problem::field("channel", format!("{expected}, got {name:?}")));
    }
    let count = fields.number(&["count"])?.unwrap_or(1);
    Ok(Submission { model, recipe, count, channel, warnings: fields.rest() })
}

/// Control images in base64, each with its kind and settings as in a recipe.
fn controls(fields: &mut Fields) -> Result<Vec<ControlImage>, Problem> {
    let Some((name, list)) = fields.take(&["control"]) else { return Ok(Vec::new()) };
    let Value::Array(list) = list else {
        return Err(Problem::field(&name, "expected a list of control images, got another value"));
    };
    let controls = list.into_iter().enumerate().map(|(index, control)| {
        let place = format!("{name}[{index}]");
        let Value::Object(mut control) = control else {
            return Err(Problem::field(&place, "expected an object, got another value"));
        };
        let mut own = Fields::of(Map::from_iter(control.remove_entry("image")));
        let image = own.image(&["image"]).map_err(|problem| problem.within(&place))?;
        let image =
            image.ok_or_else(|| Problem::field(&format!("{place}: image"), "expected an image, got none"))?;
        if let Some(file) = ["path", "sha256"].iter().find(|file| control.contains_key(**file)) {
            return Err(Problem::field(&format!("{place}: {file}"), "expected no value: the image is sent"));
        }
        // A kind and settings, without a file.
        let control: ControlImage =
            serde_json::from_value(Value::Object(control)).map_err(|error| Problem::field(&place, error))?;
        Ok(ControlImage { image: Image::from(image), ..control })
    });
    controls.collect()
}

/// A recipe of this server's model: what it names in files is refused, because no path of a request is ever opened.
fn without_files(recipe: Recipe, own: &Recipe) -> Result<Recipe, Problem> {
    let named = [
        ("model", recipe.model.is_some()),
        ("unet", recipe.unet.is_some()),
        ("vae", recipe.vae.is_some()),
        ("text_encoder", !recipe.text_encoder.is_empty()),
        ("lora", !recipe.lora.is_empty()),
        ("control_model", !recipe.control_model.is_empty()),
        ("control", !recipe.control.is_empty()),
        ("embedding", !recipe.embedding.is_empty()),
        ("init", is_named(&recipe.init)),
        ("mask", is_named(&recipe.mask)),
        ("variant", recipe.variant.is_some()),
        ("prediction", recipe.prediction.is_some()),
        ("clip_skip", recipe.clip_skip.is_some()),
    ];
    if let Some((field, _)) = named.into_iter().find(|(_, is_named)| *is_named) {
        let expected = "expected no value: the server chooses models and files";
        return Err(Problem::field(&format!("recipe: {field}"), expected));
    }
    Ok(recipe.with_model_of(own))
}

fn is_named<T>(image: &Option<Image<T>>) -> bool {
    image.as_ref().is_some_and(|image| image.named().is_some())
}

fn is_channel(name: &str) -> bool {
    (1..=limit::CHANNEL_CHARS).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

async fn list(State(app): State<Arc<App>>) -> Response {
    let jobs: Vec<Value> = app.queue.all().iter().map(|job| job_json(&app, job)).collect();
    json_body(&json!({ "jobs": jobs })).into_response()
}

fn find(app: &App, id: &str) -> Result<Arc<Job>, Problem> {
    app.queue.find(id).ok_or_else(|| Problem::not_found("job"))
}

async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let job = find(&app, &id)?;
    Ok(json_body(&job_json(&app, &job)).into_response())
}

async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let job = find(&app, &id)?;
    if job.state().status.is_final() {
        let message =
            format!("job: expected a queued or running job, got one that is {}", job.state().status.name());
        return Err(Problem::new(StatusCode::CONFLICT, message));
    }
    app.queue.cancel(&job);
    Ok(json_body(&job_json(&app, &job)).into_response())
}

/// A job as clients see it.
pub(super) fn job_json(app: &App, job: &Job) -> Value {
    let state = job.state();
    let finished = state.images.last();
    let files: Vec<String> =
        (0..state.images.len()).map(|index| format!("/api/jobs/{}/{index}.png", job.id)).collect();
    json!({
        "id": job.id,
        "status": state.status.name(),
        "position": app.queue.position(job),
        "step": state.step,
        "steps": state.steps,
        "seconds_left": seconds_left(job, &state),
        "prompt": job.recipe.prompt,
        "seed": finished.map(|finished| finished.seed).or(job.recipe.seed),
        "count": job.count,
        "created": seconds(job.created),
        "image": finished.map(|_| format!("/api/jobs/{}/image.png", job.id)),
        "images": files,
        "error": state.error.map(|error| json!({
            "kind": format!("{:?}", error.kind).to_lowercase(),
            "message": error.message,
        })),
        "warnings": state.warnings,
    })
}

/// From the time of the steps that are done, for all images that are left.
pub(super) fn seconds_left(job: &Job, state: &JobState) -> Option<f64> {
    let began = state.began.filter(|_| state.step > 0 && !state.status.is_final())?;
    let step_s = began.elapsed().as_secs_f64() / state.step as f64;
    let images_left = (job.count as usize).saturating_sub(state.images.len() + 1);
    let steps_left = state.steps.saturating_sub(state.step) + images_left * state.steps;
    Some(step_s * steps_left as f64)
}

async fn events(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let job = find(&app, &id)?;
    job.wants_previews.store(true, Ordering::Relaxed);
    let (events, response) = Events::new();
    tokio::spawn(async move {
        let mut watch = job.watch();
        let mut shown = 0;
        loop {
            let state = watch.borrow_and_update().clone();
            if let Some(preview) = state.preview.filter(|_| state.step != shown) {
                shown = state.step;
                let image = format!("data:image/png;base64,{}", plain_base64(&preview));
                if !events.send("preview", &json!({ "step": shown, "image": image })).await {
                    return;
                }
            }
            if !events.send("status", &job_json(&app, &job)).await || state.status.is_final() {
                return;
            }
            if !events.changed(&mut watch).await {
                return;
            }
        }
    });
    Ok(response)
}

async fn receipt(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let finished = find(&app, &id)?.state().images.last().cloned();
    let receipt = finished.and_then(|finished| finished.receipt.as_ref().map(|receipt| receipt.to_json()));
    let receipt = receipt.ok_or_else(|| Problem::not_found("receipt"))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], receipt).into_response())
}

/// `image.png` is the newest image, `0.png` the first.
async fn image(
    State(app): State<Arc<App>>,
    Path((id, name)): Path<(String, String)>,
    Query(panel): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let images = find(&app, &id)?.state().images;
    let (stem, format) = name_and_format(&name)?;
    let found = match stem {
        "image" => images.last(),
        number => number.parse::<usize>().ok().and_then(|index| images.get(index)),
    };
    send(found.ok_or_else(|| Problem::not_found("image"))?.clone(), format, panel, &headers).await
}

/// The newest image of a channel; `/latest/image.png` is the newest of all.
async fn latest(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(panel): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (stem, format) = name_and_format(&name)?;
    let channel = (stem != "image").then_some(stem);
    let found = app.queue.newest(channel).ok_or_else(|| Problem::not_found("image"))?;
    send(found, format, panel, &headers).await
}

fn name_and_format(name: &str) -> Result<(&str, OutputFormat), Problem> {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, "png"));
    let format = match extension {
        "png" => OutputFormat::Png,
        "jpeg" | "jpg" => OutputFormat::Jpeg,
        "webp" => OutputFormat::WebP,
        _ => return Err(Problem::not_found("image")),
    };
    Ok((stem, format))
}

/// An image's file, unless the client has it already.
async fn send(
    finished: Arc<Finished>,
    format: OutputFormat,
    panel: Vec<(String, String)>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let panel = Panel::parse(&panel)?;
    let modified = finished.time;
    let kind = match format {
        OutputFormat::Png => "image/png",
        OutputFormat::Jpeg => "image/jpeg",
        OutputFormat::WebP => "image/webp",
    };
    let (width, height) = finished.image.dimensions();
    let pixels = pixels_sha256(width, height, finished.image.as_raw());
    let etag = format!("\"{}-{kind}-{panel}\"", &pixels[..32]);
    let told = [
        (header::ETAG, etag.clone()),
        (header::LAST_MODIFIED, http_date(seconds(modified))),
        // It may be asked for again at any time, and is the same only with the same tag.
        (header::CACHE_CONTROL, "no-cache".into()),
        (header::CONTENT_TYPE, kind.into()),
    ];
    let known = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok()).unwrap_or_default();
    if known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag || tag.trim() == "*") {
        return Ok((StatusCode::NOT_MODIFIED, told).into_response());
    }
    let bytes = blocking(move || {
        if panel.is_whole() {
            return Ok(file(&finished, format)?);
        }
        let image = panel.draw(&finished.image);
        let Finished { parameters, seed, time, .. } = &*finished;
        // The receipt is of other pixels.
        let shown =
            Finished { image, receipt: None, parameters: parameters.clone(), seed: *seed, time: *time };
        Ok(file(&shown, format)?)
    })
    .await?;
    Ok((told, bytes).into_response())
}

/// A time as HTTP has it, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = seconds / 86_400;
    // Howard Hinnant's civil_from_days, for days from 1970 on.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize - 1],
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::NamedFile;

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        // date -u -d @1709164800
        assert_eq!(http_date(1_709_164_800), "Thu, 29 Feb 2024 00:00:00 GMT");
    }

    #[test]
    fn recipes_name_no_files() {
        let own =
            Recipe { model: Some(NamedFile { path: Some("own".into()), sha256: None }), ..Recipe::default() };
        for field in
            [r#""model": "x""#, r#""lora": ["x"]"#, r#""init": "/etc/passwd""#, r#""vae": {"path": "x"}"#]
        {
            let json = format!(r#"{{"version": 1, "prompt": "x", {field}}}"#);
            let recipe = Recipe::parse("recipe", json.as_bytes()).expect("a recipe");
            assert_eq!(without_files(recipe, &own).expect_err(field).status, StatusCode::BAD_REQUEST);
        }
        let recipe = without_files(Recipe { steps: Some(3), ..Recipe::default() }, &own).expect("a recipe");
        assert_eq!((recipe.model, recipe.steps), (own.model, Some(3)));
    }
}
