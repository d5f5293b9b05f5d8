//! A1111's API (`/sdapi/v1`) as its clients use it: txt2img, img2img, progress, interrupt, and the lists that they read.
//! What a field means was read in the clients; no code is A1111's.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use image::imageops::{self, FilterType};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::jobs::seconds_left;
use super::queue::{Job, State as JobState};
use super::reply::{Problem, Waiting, Whole, base64, file, json_body, plain_base64, when_done};
use super::{App, Served, Submission, blocking, units};
use crate::image_file::{Init, Mask, OutputFormat, Resize, Texts};
use crate::memory;
use crate::recipe::{Hires, HiresUpscaler, Image, Recipe, parameters};
use crate::sampler::SamplerKind;
use crate::schedule::ScheduleKind;

/// The scheduler that leaves the choice to the sampler.
const AUTOMATIC: &str = "Automatic";
/// Upscalers that need no model, by A1111's names.
const UPSCALERS: [(&str, Option<FilterType>); 3] =
    [("None", None), ("Lanczos", Some(FilterType::Lanczos3)), ("Nearest", Some(FilterType::Nearest))];
/// How large an image may become.
const MAX_UPSCALED_PX: u64 = 64 << 20;

pub(super) fn routes() -> Router<Arc<App>> {
    let list = |value: fn() -> Value| get(async move || json_body(&value()));
    let empty = || list(|| json!([]));
    Router::new()
        .route("/sdapi/v1/txt2img", post(txt2img))
        .route("/sdapi/v1/img2img", post(img2img))
        .route("/sdapi/v1/progress", get(progress))
        .route("/sdapi/v1/interrupt", post(interrupt))
        .route("/sdapi/v1/skip", post(interrupt))
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/sd-models", get(models))
        .route("/sdapi/v1/samplers", list(samplers))
        .route("/sdapi/v1/schedulers", list(schedulers))
        .route("/sdapi/v1/upscalers", list(upscalers))
        .route("/sdapi/v1/png-info", post(png_info))
        .route("/sdapi/v1/extra-single-image", post(extra_single_image))
        .route("/sdapi/v1/memory", get(async || json_body(&memory_json())))
        .route("/sdapi/v1/scripts", list(|| json!({ "txt2img": [], "img2img": [] })))
        .route("/sdapi/v1/script-info", empty())
        .route("/sdapi/v1/embeddings", list(|| json!({ "loaded": {}, "skipped": {} })))
        .route("/sdapi/v1/cmd-flags", list(|| json!({})))
        .route("/sdapi/v1/latent-upscale-modes", list(|| json!([{ "name": "Latent" }])))
        .route("/sdapi/v1/sd-vae", empty())
        .route("/sdapi/v1/sd-modules", empty())
        .route("/sdapi/v1/loras", get(loras))
        .route("/sdapi/v1/hypernetworks", empty())
        .route("/sdapi/v1/face-restorers", empty())
        .route("/sdapi/v1/prompt-styles", empty())
        .route("/sdapi/v1/extensions", empty())
        .route("/sdapi/v1/refresh-checkpoints", post(async || json_body(&Value::Null)))
        .route("/sdapi/v1/refresh-loras", post(async || json_body(&Value::Null)))
        .route("/sdapi/v1/refresh-vae", post(async || json_body(&Value::Null)))
        .route("/controlnet/model_list", get(control_models))
        .route("/controlnet/module_list", list(|| json!({ "module_list": units::MODULES })))
        .route("/controlnet/version", list(|| json!({ "version": 3 })))
}

async fn txt2img(State(app): State<Arc<App>>, Whole(body): Whole) -> Result<Response, Problem> {
    generate(app, body, false).await
}

async fn img2img(State(app): State<Arc<App>>, Whole(body): Whole) -> Result<Response, Problem> {
    generate(app, body, true).await
}

async fn generate(app: Arc<App>, body: Bytes, has_init: bool) -> Result<Response, Problem> {
    let asked = blocking({
        let app = app.clone();
        move || Asked::read(&app, &body, has_init)
    })
    .await?;
    let Asked { submission, echo, sends } = asked;
    let job = app.submit(submission).await?;
    let waiting = Waiting::new(&app.queue, &job);
    let reply = move |state: JobState| {
        let images = state.images.iter().map(|finished| Ok(base64(&file(finished, OutputFormat::Png)?)));
        let images = images.collect::<Result<Vec<_>, Problem>>()?;
        let info = info(&app.models[job.model], &job, &state).to_string();
        Ok(json!({ "images": if sends { images } else { Vec::new() }, "parameters": echo, "info": info }))
    };
    Ok(when_done(waiting, HeaderMap::new(), reply).await)
}

/// A request as it was read.
struct Asked {
    submission: Submission,
    /// The request, for the reply, without its images.
    echo: Value,
    /// Whether the reply has images.
    sends: bool,
}

impl Asked {
    fn read(app: &App, body: &[u8], has_init: bool) -> Result<Self, Problem> {
        let mut fields = Fields::of_json(body)?;
        let echo = echo(body);
        let overrides = match fields.take(&["override_settings"]) {
            Some((_, Value::Object(overrides))) => overrides,
            _ => Map::new(),
        };
        let set = app.options();
        let option = |name: &str| overrides.get(name).or_else(|| set.get(name));
        let checkpoint = option("sd_model_checkpoint").and_then(Value::as_str);
        let model = app.model(checkpoint)?;
        let mut recipe = app.recipe(model);
        let mut warnings = Vec::new();
        let skip = option("CLIP_stop_at_last_layers").and_then(Value::as_u64).filter(|skip| *skip > 1);
        if skip.is_some_and(|skip| recipe.clip_skip != usize::try_from(skip).ok()) {
            warnings.push("CLIP_stop_at_last_layers: not used; it is set where the server is started".into());
        }
        fields.fill(&mut recipe)?;
        let size = (fields.number(&["width"])?, fields.number(&["height"])?);
        let defaults = app.models[model].model.manifest().defaults.size;
        if let (Some(_), _) | (_, Some(_)) = size {
            let (width, height) =
                (size.0.unwrap_or(defaults.width_px()), size.1.unwrap_or(defaults.height_px()));
            recipe.size = Some(app.rounded(model, width, height, &mut warnings)?);
        }
        let each = fields.number::<u64>(&["batch_size"])?.unwrap_or(1).max(1);
        let count = each.saturating_mul(fields.number::<u64>(&["n_iter"])?.unwrap_or(1).max(1));
        let strength = fields.number::<f64>(&["subseed_strength"])?.filter(|strength| *strength > 0.0);
        let subseed = fields.number::<i64>(&["subseed"])?;
        if let Some(strength) = strength {
            recipe.variation_strength = Some(strength);
            recipe.variation_seed = subseed.and_then(|seed| u64::try_from(seed).ok()).or(recipe.seed);
        }
        let sends = fields.take(&["send_images"]).is_none_or(|(_, value)| value != false);
        match has_init {
            true => images(&mut fields, &mut recipe, &mut warnings)?,
            false => second_pass(&mut fields, &mut recipe, &mut warnings)?,
        }
        if let Some((_, Value::Object(scripts))) = fields.take(&["alwayson_scripts"]) {
            let kinds = kinds(app, model);
            read_scripts(&scripts, &kinds, &mut recipe, &mut warnings)?;
        }
        without_effect(&mut fields);
        warnings.extend(fields.rest());
        let submission = Submission { model, recipe, count, channel: None, warnings };
        Ok(Self { submission, echo, sends })
    }
}

/// The image and mask of img2img.
fn images(fields: &mut Fields, recipe: &mut Recipe, warnings: &mut Vec<String>) -> Result<(), Problem> {
    let init = fields.image(&["init_images"])?;
    let init = init.ok_or_else(|| Problem::field("init_images", "expected an image, got none"))?;
    // A1111's default.
    recipe.strength = Some(recipe.strength.unwrap_or(0.75));
    let mode = fields.number::<u8>(&["resize_mode"])?.unwrap_or(0);
    let (resize, is_known) = match mode {
        0 => (Resize::Stretch, true),
        1 => (Resize::Crop, true),
        2 => (Resize::Pad, true),
        _ => (Resize::Stretch, false),
    };
    if !is_known {
        warnings.push(format!("resize_mode: {mode} is not supported; the image is stretched"));
    }
    recipe.resize = Some(resize);
    let is_inverted = fields.flag(&["inpainting_mask_invert"])?;
    let is_only = fields.flag(&["inpaint_full_res"])?;
    let padding_px = fields.number::<u32>(&["inpaint_full_res_padding"])?.unwrap_or(0);
    let fill = fields.number::<u8>(&["inpainting_fill"])?;
    let both = fields.number::<f64>(&["mask_blur"])?;
    let (x, y) = (fields.number::<f64>(&["mask_blur_x"])?, fields.number::<f64>(&["mask_blur_y"])?);
    if let Some(mask) = fields.image(&["mask"])? {
        if mask.dimensions() != init.dimensions() {
            recipe.mask_fit = Some(Resize::Stretch);
        }
        recipe.mask_invert = is_inverted.then_some(true);
        if is_only {
            (recipe.mask_only, recipe.resize) = (Some(padding_px), None);
        }
        if both.is_none() && x != y {
            warnings.push("mask_blur_y: expected the value of mask_blur_x, which is used for both".into());
        }
        // There in pixels of the init image, here of the finished one.
        let width = recipe.size.filter(|_| !is_only).map_or(init.dimensions().0, |size| size.width_px());
        let scale = f64::from(width) / f64::from(init.dimensions().0);
        recipe.mask_blur = both.or(x).or(y).map(|blur_px| blur_px * scale);
        if let Some(fill) = fill.filter(|fill| *fill != 1) {
            warnings.push(format!(
                "inpainting_fill: {fill} is not supported; masked areas start from the image, and from noise at strength 1"
            ));
        }
        recipe.mask = Some(Image::Given(Mask::from(mask)));
    }
    recipe.init = Some(Image::Given(Init::from(init)));
    Ok(())
}

/// The second pass of txt2img, whose strength means nothing without one.
fn second_pass(fields: &mut Fields, recipe: &mut Recipe, warnings: &mut Vec<String>) -> Result<(), Problem> {
    // A1111's defaults.
    let strength = recipe.strength.take().unwrap_or(0.75);
    let scale = fields.number::<f64>(&["hr_scale"])?.unwrap_or(2.0);
    let name = fields.text(&["hr_upscaler"])?;
    let steps = fields.number::<u64>(&["hr_second_pass_steps"])?.unwrap_or(0);
    let sides =
        [fields.number::<u32>(&["hr_resize_x"])?, fields.number::<u32>(&["hr_resize_y"])?].into_iter();
    if !fields.flag(&["enable_hr"])? {
        return Ok(());
    }
    if sides.flatten().any(|side| side > 0) {
        warnings.push("hr_resize_x, hr_resize_y: not supported; hr_scale is used".into());
    }
    if steps > 0 {
        warnings.push("hr_second_pass_steps: not supported; denoising_strength decides".into());
    }
    let (upscaler, is_known) = HiresUpscaler::of_a1111(name.as_deref());
    if !is_known {
        let name = name.unwrap_or_default();
        warnings.push(format!("hr_upscaler: {name} is not supported; a {} is used", upscaler.about()));
    }
    recipe.hires = Some(Hires::new(scale, strength, upscaler)?);
    Ok(())
}

/// ControlNet units, and what other extensions were asked for, which are not there. One that is disabled, as ADetailer's `[false]`,
/// asks for nothing.
fn read_scripts(
    scripts: &Map<String, Value>,
    kinds: &[String],
    recipe: &mut Recipe,
    warnings: &mut Vec<String>,
) -> Result<(), Problem> {
    for (name, script) in scripts {
        let units = script.get("args").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if name.eq_ignore_ascii_case(units::NAME) {
            units::read(units, kinds, recipe, warnings)?;
            continue;
        }
        let asks = |unit: &Value| match unit {
            Value::Bool(is_on) => *is_on,
            Value::Object(unit) => unit.get("enabled") != Some(&Value::Bool(false)),
            _ => false,
        };
        if units.first().is_some_and(|first| *first != false) && units.iter().any(asks) {
            warnings.push(format!("alwayson_scripts: {name}: not supported; not used"));
        }
    }
    Ok(())
}

/// The kinds of a model's control networks.
fn kinds(app: &App, model: usize) -> Vec<String> {
    app.models[model].model.manifest().controls.iter().map(|network| network.name.clone()).collect()
}

/// The kinds of the control networks of the model that requests get.
async fn control_models(State(app): State<Arc<App>>) -> Response {
    let controls = app.model(None).map(|model| kinds(&app, model));
    json_body(&json!({ "model_list": controls.unwrap_or_default() })).into_response()
}

/// What clients always send and what changes nothing here, or is the default anyway.
fn without_effect(fields: &mut Fields) {
    const NAMES: [&str; 28] = [
        "do_not_save_samples",
        "do_not_save_grid",
        "save_images",
        "override_settings_restore_afterwards",
        "hr_checkpoint_name",
        "hr_sampler_name",
        "hr_scheduler",
        "hr_prompt",
        "hr_negative_prompt",
        "hr_additional_modules",
        "hr_cfg",
        "hr_distilled_cfg",
        "firstphase_width",
        "firstphase_height",
        "seed_resize_from_h",
        "seed_resize_from_w",
        "s_tmax",
        "s_noise",
        "include_init_images",
        "inpainting_fill",
        "inpaint_full_res_padding",
        "image_cfg_scale",
        "initial_noise_multiplier",
        "latent_mask",
        "mask_blur_x",
        "mask_blur_y",
        "mask_blur",
        "force_task_id",
    ];
    for name in NAMES {
        fields.take(&[name]);
    }
}

/// The request without its images, which the reply repeats.
fn echo(body: &[u8]) -> Value {
    let mut value: Value = serde_json::from_slice(body).unwrap_or_default();
    for name in ["init_images", "mask"] {
        if let Some(image) = value.get_mut(name) {
            *image = Value::Null;
        }
    }
    value
}

/// What A1111 says of the images, which clients parse.
fn info(served: &Served, job: &Job, state: &JobState) -> Value {
    let images = &state.images;
    let seeds: Vec<u64> = images.iter().map(|finished| finished.seed).collect();
    let first = images.first().and_then(|finished| finished.receipt.as_ref()).map(|receipt| &receipt.recipe);
    let recipe = first.unwrap_or(&job.recipe);
    let (width, height) = images.first().map(|finished| finished.image.dimensions()).unwrap_or_default();
    let negative = recipe.negative.clone().unwrap_or_default();
    let texts: Vec<&String> = images.iter().map(|finished| &finished.parameters).collect();
    let sampler = recipe.sampler.map(|method| {
        let about = method.kind().about();
        if about.a1111.is_empty() { about.name } else { about.a1111 }
    });
    let scale = recipe.guidance.as_ref().and_then(|scales| scales.for_steps(1).ok()).map(|scales| scales[0]);
    json!({
        "prompt": recipe.prompt,
        "all_prompts": vec![&recipe.prompt; images.len()],
        "negative_prompt": negative,
        "all_negative_prompts": vec![&negative; images.len()],
        "seed": seeds.first(),
        "all_seeds": seeds,
        "subseed": recipe.variation_seed.unwrap_or(0),
        "all_subseeds": vec![recipe.variation_seed.unwrap_or(0); images.len()],
        "subseed_strength": recipe.variation_strength.unwrap_or(0.0),
        "width": width,
        "height": height,
        "sampler_name": sampler,
        "cfg_scale": scale,
        "steps": recipe.steps,
        "batch_size": images.len(),
        "restore_faces": false,
        "face_restoration_model": null,
        "sd_model_name": served.name,
        "sd_model_hash": served.sha256.get().map(|hash| &hash[..10]),
        "sd_vae_name": null,
        "sd_vae_hash": null,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": recipe.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": "",
        "clip_skip": recipe.clip_skip.unwrap_or(1),
        "is_using_inpainting_conditioning": false,
        "version": concat!("calotype ", env!("CARGO_PKG_VERSION")),
        "warnings": state.warnings,
    })
}

async fn progress(State(app): State<Arc<App>>, Query(query): Query<Vec<(String, String)>>) -> Response {
    let skips =
        query.iter().any(|(name, value)| name == "skip_current_image" && value.eq_ignore_ascii_case("true"));
    let Some(job) = app.queue.running() else {
        let count = app.queue.len();
        return json_body(&progress_json(0.0, 0.0, count, &JobState::default(), None)).into_response();
    };
    job.wants_previews.store(!skips, Ordering::Relaxed);
    let state = job.state();
    let image = state.preview.as_ref().filter(|_| !skips).map(|preview| plain_base64(preview));
    let of_image = state.step as f64 / state.steps.max(1) as f64;
    let share = (state.images.len() as f64 + of_image) / job.count.max(1) as f64;
    // 0 means that nothing runs.
    let share = share.clamp(0.01, 1.0);
    let left = seconds_left(&job, &state).unwrap_or(0.0);
    json_body(&progress_json(share, left, 1 + app.queue.len(), &state, image)).into_response()
}

fn progress_json(share: f64, left_s: f64, jobs: usize, state: &JobState, image: Option<String>) -> Value {
    json!({
        "progress": share,
        "eta_relative": left_s,
        "state": {
            "skipped": false,
            "interrupted": false,
            "stopping_generation": false,
            "job": if jobs > 0 { "txt2img" } else { "" },
            "job_count": jobs,
            "job_timestamp": "",
            "job_no": state.images.len(),
            "sampling_step": state.step,
            "sampling_steps": state.steps,
        },
        "current_image": image,
        "textinfo": null,
    })
}

/// The request that runs replies with the image as it is after its step.
async fn interrupt(State(app): State<Arc<App>>) -> Response {
    app.queue.interrupt();
    json_body(&json!({})).into_response()
}

async fn options(State(app): State<Arc<App>>) -> Response {
    let served = &app.models[app.model.load(Ordering::Relaxed)];
    let mut options = json!({
        "sd_model_checkpoint": title(served),
        "sd_checkpoint_hash": served.sha256.get(),
        "samples_format": "png",
        "CLIP_stop_at_last_layers": served.recipe.clip_skip.unwrap_or(1),
        "sd_vae": AUTOMATIC,
    });
    for (name, value) in app.options() {
        options[name] = value;
    }
    json_body(&options).into_response()
}

async fn set_options(State(app): State<Arc<App>>, Whole(body): Whole) -> Result<Response, Problem> {
    let mut fields = Fields::of_json(&body)?;
    if let Some(name) = fields.text(&["sd_model_checkpoint"])? {
        app.model.store(app.model(Some(&name))?, Ordering::Relaxed);
    }
    if let Some(skip) = fields.number::<u64>(&["CLIP_stop_at_last_layers"])? {
        let mut options = app.options.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        options.insert("CLIP_stop_at_last_layers".into(), skip.into());
    }
    Ok(json_body(&Value::Null).into_response())
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let models = app.models.iter().map(|served| {
        json!({
            "title": title(served),
            "model_name": served.name,
            "hash": served.sha256.get().map(|hash| &hash[..10]),
            "sha256": served.sha256.get(),
            "filename": served.name,
            "config": null,
        })
    });
    json_body(&models.collect::<Vec<_>>().into()).into_response()
}

/// A model's name as A1111 shows it.
fn title(served: &Served) -> String {
    match served.sha256.get() {
        Some(hash) => format!("{} [{}]", served.name, &hash[..10]),
        None => served.name.clone(),
    }
}

fn samplers() -> Value {
    let samplers = SamplerKind::ALL.map(|kind| {
        let about = kind.about();
        let name = if about.a1111.is_empty() { about.name } else { about.a1111 };
        json!({ "name": name, "aliases": [about.name], "options": {} })
    });
    samplers.to_vec().into()
}

fn schedulers() -> Value {
    let automatic = json!({
        "name": "automatic", "label": AUTOMATIC, "aliases": null, "default_rho": -1, "need_inner_model": false,
    });
    let named = ScheduleKind::about().map(|(name, _, aliases)| {
        json!({ "name": name, "label": name, "aliases": aliases, "default_rho": -1, "need_inner_model": false })
    });
    std::iter::once(automatic).chain(named).collect::<Vec<_>>().into()
}

fn upscalers() -> Value {
    let upscaler = |(name, _)| json!({ "name": name, "model_name": null, "model_path": null, "model_url": null, "scale": 4 });
    UPSCALERS.map(upscaler).to_vec().into()
}

async fn loras(State(app): State<Arc<App>>) -> Response {
    let served = &app.models[app.model.load(Ordering::Relaxed)];
    let loras = served.additions.iter().filter(|addition| addition.is_lora);
    let loras =
        loras.map(|lora| json!({ "name": lora.name, "alias": lora.name, "path": "", "metadata": {} }));
    json_body(&loras.collect::<Vec<_>>().into()).into_response()
}

fn memory_json() -> Value {
    let used = memory::resident_bytes().unwrap_or(0);
    let free = memory::Memory::of_this_machine().map_or(0, |memory| memory.available_bytes);
    json!({ "ram": { "free": free, "used": used, "total": free + used }, "cuda": { "error": "unavailable" } })
}

async fn png_info(Whole(body): Whole) -> Result<Response, Problem> {
    let value = blocking(move || {
        let mut fields = Fields::of_json(&body)?;
        let (name, bytes) = fields
            .image_bytes(&["image"])?
            .ok_or_else(|| Problem::field("image", "expected an image, got none"))?;
        let texts = Texts::read(&name, &mut Cursor::new(bytes))?.unwrap_or_default();
        let text = texts.parameters.unwrap_or_default();
        let items = if text.is_empty() { json!({}) } else { json!({ "parameters": text }) };
        let read = parameters::read("image", &text).map(|imported| settings(&imported.recipe));
        Ok(json!({ "info": text, "items": items, "parameters": read.unwrap_or_else(|_| json!({})) }))
    })
    .await?;
    Ok(json_body(&value).into_response())
}

/// A recipe by the names that A1111 gives its settings in texts.
fn settings(recipe: &crate::recipe::Recipe) -> Value {
    json!({
        "Prompt": recipe.prompt,
        "Negative prompt": recipe.negative,
        "Steps": recipe.steps,
        "Sampler": recipe.sampler.map(|method| method.to_string()),
        "Schedule type": recipe.schedule.as_ref().map(|kind| kind.to_string()),
        "Seed": recipe.seed,
        "Size-1": recipe.size.map(|size| size.width_px()),
        "Size-2": recipe.size.map(|size| size.height_px()),
    })
}

async fn extra_single_image(Whole(body): Whole) -> Result<Response, Problem> {
    let value = blocking(move || {
        let mut fields = Fields::of_json(&body)?;
        let image = fields.image(&["image"])?;
        let image = image.ok_or_else(|| Problem::field("image", "expected an image, got none"))?;
        let name = fields.text(&["upscaler_1"])?.unwrap_or_else(|| "None".into());
        let known = UPSCALERS.iter().find(|(known, _)| *known == name);
        let Some((_, filter)) = known else {
            let names = UPSCALERS.map(|(name, _)| name).join(", ");
            return Err(Problem::field("upscaler_1", format!("expected one of {names}, got {name:?}")));
        };
        let (width, height) = image.dimensions();
        let is_exact = fields.number::<u8>(&["resize_mode"])?.unwrap_or(0) == 1;
        let (new_width, new_height) = if is_exact {
            (
                fields.number(&["upscaling_resize_w"])?.unwrap_or(512),
                fields.number(&["upscaling_resize_h"])?.unwrap_or(512),
            )
        } else {
            let factor = fields.number::<f64>(&["upscaling_resize"])?.unwrap_or(2.0).clamp(0.0, 64.0);
            let side = |side: u32| (f64::from(side) * factor).round() as u32;
            (side(width), side(height))
        };
        if new_width == 0 || new_height == 0 || u64::from(new_width) * u64::from(new_height) > MAX_UPSCALED_PX
        {
            let got = format!("expected at most {MAX_UPSCALED_PX} pixels, got {new_width}x{new_height}");
            return Err(Problem::field("upscaling_resize", got));
        }
        let pixels = image.decode()?;
        let scaled = match filter {
            Some(filter) => imageops::resize(&pixels, new_width, new_height, *filter),
            None => pixels,
        };
        Ok(json!({ "html_info": "", "image": plain_base64(&scaled) }))
    })
    .await?;
    Ok(json_body(&value).into_response())
}
