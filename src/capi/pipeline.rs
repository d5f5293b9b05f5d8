//! Pipelines of the C library: opened, planned, run as a whole or step by step, cancelled from any thread.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ops::ControlFlow;
use std::slice;
use std::sync::{Mutex, MutexGuard, TryLockError};

use image::RgbImage;

use super::handle::{Handle, borrow, check_out, expect, expect_mut, free, give, path, read, text, write};
use super::image::{Finished, calotype_image};
use super::option::{
    calotype_callbacks, calotype_latents, calotype_options, calotype_pixels, calotype_plan, calotype_progress,
};
use super::status::{calotype_error, guard, setting};
use crate::binding::{Binding, Settings, usage};
use crate::engine::Cancel;
use crate::error::{Error, ErrorKind, shortened};
use crate::pipeline::{Progress, Run};
use crate::plan::{Budget, Plan};
use crate::recipe::{Receipt, Recipe};
use crate::request::Request;
use crate::tensor::LatentShape;

/// An opened model, and one run at a time. Any thread may use it, one at a time: a second call, from another thread or a callback, is
/// answered with CALOTYPE_USAGE. calotype_pipeline_cancel alone may be called while another call runs.
pub struct calotype_pipeline(());

/// What is behind it.
struct Shared {
    cancel: Cancel,
    state: Mutex<State>,
}

impl Handle for Shared {
    type Opaque = calotype_pipeline;
    const MARK: u64 = u64::from_le_bytes(*b"calopip1");
    const NAME: &'static str = "pipeline";
}

struct State {
    binding: Binding,
    notes: Notes,
    lent: Lent,
}

/// What callers have pointers to.
#[derive(Default)]
struct Lent {
    snapshot: Vec<u8>,
    preview: Option<RgbImage>,
    recipe: CString,
}

/// Who is told what is not used.
#[derive(Clone, Copy)]
struct Notes {
    on_note: Option<unsafe extern "C" fn(user: *mut c_void, text: *const c_char)>,
    user: *mut c_void,
}

// SAFETY: the pointer is not read here, only passed back on the thread of a call, as the header says.
unsafe impl Send for Notes {}

impl Notes {
    fn say(self, line: &str) {
        let Some(on_note) = self.on_note else { return };
        let line = CString::new(shortened(line).replace('\0', "\\0")).unwrap_or_default();
        // SAFETY: the caller's function, with the pointer that was given for it.
        unsafe { on_note(self.user, line.as_ptr()) };
    }
}

/// Opens a model. Its files are checked and mapped; what computes is opened by the first run, or rather by the first that the
/// pipeline as it is then does not cover.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_open(
    options: *const calotype_options,
    pipeline: *mut *mut calotype_pipeline,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        let out = expect_mut("pipeline", pipeline)?;
        // SAFETY: the caller's structure, which begins with its size.
        let options = unsafe { read("options", options, calotype_options::default()) }?;
        // SAFETY: the texts in it are the caller's.
        let state = unsafe { State::open(&options) }?;
        let cancel = state.binding.cancel();
        // SAFETY: not NULL, and aligned.
        unsafe { *out = give(Shared { cancel, state: Mutex::new(state) }) };
        Ok(())
    })
}

/// Plans a run: how much memory it will take, before anything is loaded. CALOTYPE_MEMORY where it does not fit into memory_bytes. Ends
/// the run there is. Later runs that are no larger are run by this plan: plan the largest once, and they do not change what is in memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_plan(
    pipeline: *mut calotype_pipeline,
    recipe: *const c_char,
    plan: *mut calotype_plan,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let (out, recipe) = (check_out("plan", plan)?, text("recipe", recipe)?);
            let plan = state.plan(recipe)?;
            let size = size_of::<calotype_plan>();
            let (peak_bytes, least_bytes) = (plan.peak_bytes(), plan.least_bytes());
            write(out, &calotype_plan { size, peak_bytes, least_bytes, budget_bytes: plan.budget_bytes() });
        }
        Ok(())
    })
}

/// Generates an image from a recipe: JSON, as in {"version": 1, "prompt": "a red apple", "seed": 7}, or the receipt of an image. What it
/// leaves out gets the model's default; the seed is random then. `callbacks` may be NULL. The image is the caller's to free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_generate(
    pipeline: *mut calotype_pipeline,
    recipe: *const c_char,
    callbacks: *const calotype_callbacks,
    image: *mut *mut calotype_image,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let (out, recipe) = (expect_mut("image", image)?, text("recipe", recipe)?);
            let callbacks = callbacks_of(callbacks)?;
            state.begin(recipe, None)?;
            let finished = state.steps(&callbacks).and_then(|()| state.finish());
            state.end();
            *out = give(finished?);
        }
        Ok(())
    })
}

/// Takes all steps that are left of a run that was begun or restored, and ends it with its image, which is the caller's to free.
/// `callbacks` may be NULL. Where a callback stops it, the run stays as it is: it can be saved to a snapshot, or taken on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_run(
    pipeline: *mut calotype_pipeline,
    callbacks: *const calotype_callbacks,
    image: *mut *mut calotype_image,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = expect_mut("image", image)?;
            let callbacks = callbacks_of(callbacks)?;
            state.steps(&callbacks)?;
            *out = give(state.finish()?);
        }
        Ok(())
    })
}

/// Begins a run, which calotype_pipeline_step takes on; encodes its texts and images. A run that was begun before ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_begin(
    pipeline: *mut calotype_pipeline,
    recipe: *const c_char,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe { lock(pipeline)?.begin(text("recipe", recipe)?, None) }
    })
}

/// Begins a run where another one was when it gave this snapshot; both go on to the same bytes. The recipe must be the same, its seed
/// included (calotype_pipeline_recipe), and the model's files too: CALOTYPE_INPUT otherwise, and for a snapshot that is damaged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_restore(
    pipeline: *mut calotype_pipeline,
    recipe: *const c_char,
    snapshot: *const u8,
    snapshot_bytes: usize,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let (recipe, snapshot) = (text("recipe", recipe)?, expect("snapshot", snapshot)?);
            if snapshot_bytes > isize::MAX as usize {
                return Err(usage(format!("snapshot_bytes: expected a length, got {snapshot_bytes}")));
            }
            state.begin(recipe, Some(slice::from_raw_parts(snapshot, snapshot_bytes)))
        }
    })
}

/// Takes the next step. A run whose step failed can only be begun again. `progress` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_step(
    pipeline: *mut calotype_pipeline,
    progress: *mut calotype_progress,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = match progress.is_null() {
                true => None,
                false => Some(check_out("progress", progress)?),
            };
            let progress = state.run(|run| Run::step(run).map(progress_of))??;
            out.into_iter().for_each(|out| write(out, &progress));
        }
        Ok(())
    })
}

/// How far the run has come.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_progress(
    pipeline: *mut calotype_pipeline,
    progress: *mut calotype_progress,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = check_out("progress", progress)?;
            write(out, &progress_of(state.run(|run| run.progress())?));
        }
        Ok(())
    })
}

/// The recipe of the run, as JSON with nothing left to defaults and its seed. It is the pipeline's, until the next call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_recipe(
    pipeline: *mut calotype_pipeline,
    json: *mut *const c_char,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = expect_mut("json", json)?;
            let recipe = state.run(|run| run.request().recipe())?;
            state.lent.recipe = json_text(recipe.with_images_named()?.to_json())?;
            *out = state.lent.recipe.as_ptr();
        }
        Ok(())
    })
}

/// The latents after the last step, with noise of the next step's level. They are the pipeline's, until the next call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_latents(
    pipeline: *mut calotype_pipeline,
    latents: *mut calotype_latents,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = check_out("latents", latents)?;
            write(out, &state.run(|run| latents_of(run.request().shape, run.latents()))?);
        }
        Ok(())
    })
}

/// The last estimate of the clean latents; zeros before the first step. They are the pipeline's, until the next call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_denoised(
    pipeline: *mut calotype_pipeline,
    latents: *mut calotype_latents,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = check_out("latents", latents)?;
            write(out, &state.run(|run| latents_of(run.request().shape, run.denoised()))?);
        }
        Ok(())
    })
}

/// What the image looks like after the last step: small, one pixel for each latent cell, or of the image's size where the model has a
/// decoder of previews; `rgb` is NULL where it has neither. The pixels are the pipeline's, until the next call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_preview(
    pipeline: *mut calotype_pipeline,
    pixels: *mut calotype_pixels,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = check_out("pixels", pixels)?;
            state.lent.preview = state.run(|run| run.preview())??;
            let none = RgbImage::default();
            let mut preview = calotype_pixels::of(state.lent.preview.as_ref().unwrap_or(&none));
            if state.lent.preview.is_none() {
                preview.rgb = std::ptr::null();
            }
            write(out, &preview);
        }
        Ok(())
    })
}

/// The run as bytes, from which calotype_pipeline_restore continues it, in this process or after a power failure. They are the
/// pipeline's, until the next call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_snapshot(
    pipeline: *mut calotype_pipeline,
    snapshot: *mut *const u8,
    snapshot_bytes: *mut usize,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = expect_mut("snapshot", snapshot)?;
            let out_bytes = expect_mut("snapshot_bytes", snapshot_bytes)?;
            state.lent.snapshot = state.run(|run| run.snapshot())??;
            (*out, *out_bytes) = (state.lent.snapshot.as_ptr(), state.lent.snapshot.len());
        }
        Ok(())
    })
}

/// Ends a run whose steps are all done with its image, which is the caller's to free. Where steps are left, the run stays as it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_finish(
    pipeline: *mut calotype_pipeline,
    image: *mut *mut calotype_image,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointers, which are checked as far as can be.
        unsafe {
            let mut state = lock(pipeline)?;
            let out = expect_mut("image", image)?;
            *out = give(state.finish()?);
        }
        Ok(())
    })
}

/// Ends the run there is without an image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_end(
    pipeline: *mut calotype_pipeline,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointer, which is checked as far as can be.
        unsafe { lock(pipeline) }?.end();
        Ok(())
    })
}

/// Cancels the call that runs, also in the middle of a step, and those that come later, until calotype_pipeline_reset_cancel: each ends with
/// CALOTYPE_CANCELLED. From any thread, and from on_step; not from a signal handler. The pipeline must not be freed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_cancel(
    pipeline: *const calotype_pipeline,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointer, which is checked as far as can be.
        unsafe { borrow::<Shared>(pipeline) }?.cancel.cancel();
        Ok(())
    })
}

/// Lets what is begun from now on run; what was cancelled before stays cancelled. From any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_reset_cancel(
    pipeline: *const calotype_pipeline,
    error: *mut calotype_error,
) -> c_int {
    guard(error, || {
        // SAFETY: the caller's pointer, which is checked as far as can be.
        unsafe { borrow::<Shared>(pipeline) }?.cancel.reset();
        Ok(())
    })
}

/// Frees it with its run and its memory, and makes the variable NULL; nothing where it is NULL. Returns CALOTYPE_USAGE, and frees
/// nothing, for what is no pipeline, and while a call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calotype_pipeline_free(pipeline: *mut *mut calotype_pipeline) -> c_int {
    let is_unused = |shared: &Shared| match shared.state.try_lock() {
        Err(TryLockError::WouldBlock) => Err(in_use()),
        // One that had an internal error is freed, too.
        _ => Ok(()),
    };
    // SAFETY: the caller's pointer, which is checked as far as can be.
    guard(std::ptr::null_mut(), || unsafe { free::<Shared>(pipeline, is_unused) })
}

/// The state of a pipeline, for one call.
///
/// # Safety
/// As [`borrow`].
unsafe fn lock<'a>(pipeline: *mut calotype_pipeline) -> Result<MutexGuard<'a, State>, Error> {
    // SAFETY: as the caller promises.
    match unsafe { borrow::<Shared>(pipeline) }?.state.try_lock() {
        Ok(state) => Ok(state),
        Err(TryLockError::WouldBlock) => Err(in_use()),
        Err(TryLockError::Poisoned(_)) => {
            let problem = "pipeline: expected one without internal errors, got one that had one";
            Err(Error::new(ErrorKind::Internal, problem).help("free it, and open another"))
        }
    }
}

/// The functions that a run calls, if there are any.
///
/// # Safety
/// As [`read`].
unsafe fn callbacks_of(callbacks: *const calotype_callbacks) -> Result<calotype_callbacks, Error> {
    match callbacks.is_null() {
        true => Ok(calotype_callbacks::default()),
        // SAFETY: as the caller promises.
        false => unsafe { read("callbacks", callbacks, calotype_callbacks::default()) },
    }
}

fn in_use() -> Error {
    usage("pipeline: expected one call at a time, got a second one, from another thread or from a callback")
}

impl State {
    /// # Safety
    /// The texts of the options are NULL, or end with a zero byte.
    unsafe fn open(options: &calotype_options) -> Result<Self, Error> {
        let optional = |name, given: *const c_char| match given.is_null() {
            true => Ok(None),
            // SAFETY: as the caller promises.
            false => unsafe { path(name, given) }.map(Some),
        };
        let notes = Notes { on_note: options.on_note, user: options.user };
        let cache = optional("cache", options.cache)?;
        let provider = match options.provider.is_null() {
            true => None,
            // SAFETY: as the caller promises.
            false => Some(unsafe { text("provider", options.provider) }?.to_owned()),
        };
        let mut recipe = Recipe::default();
        if !options.recipe.is_null() {
            // SAFETY: as the caller promises.
            let json = unsafe { text("options: recipe", options.recipe) }?;
            recipe = Recipe::parse("options: recipe", json.as_bytes())?;
        }
        match optional("model", options.model)? {
            Some(_) if recipe.model.is_some() => {
                return Err(usage("model: expected one, got one in the options and one in their recipe"));
            }
            Some(model) => recipe.model = Some(model.into()),
            None => {}
        }
        let settings = Settings {
            recipe,
            library: optional("onnxruntime", options.onnxruntime)?,
            installed: None,
            provider,
            cache,
            budget: (options.memory_bytes > 0).then(|| Budget::of_bytes(options.memory_bytes)),
            threads: options.threads,
            name: setting,
        };
        let binding = Binding::open(settings, &mut |line| notes.say(line))?;
        Ok(Self { binding, notes, lent: Lent::default() })
    }

    /// What a recipe asks of this model.
    fn request(&self, json: &str) -> Result<Request, Error> {
        let asked = Receipt::parse("recipe", json.as_bytes())?.recipe;
        self.binding.request(asked, &mut |line| self.notes.say(line))
    }

    fn plan(&mut self, recipe: &str) -> Result<&Plan, Error> {
        let request = self.request(recipe)?;
        self.binding.plan(&request)
    }

    fn begin(&mut self, recipe: &str, snapshot: Option<&[u8]>) -> Result<(), Error> {
        let (request, notes) = (self.request(recipe)?, self.notes);
        self.binding.begin(&request, snapshot, &mut |line| notes.say(line))
    }

    /// What the run gives.
    fn run<T>(&mut self, call: impl for<'a> FnOnce(&mut Run<'a>) -> T) -> Result<T, Error> {
        self.binding.run(call)
    }

    fn steps(&mut self, callbacks: &calotype_callbacks) -> Result<(), Error> {
        let calotype_callbacks { on_step, user, preview_every, snapshot_every, .. } = *callbacks;
        let is_stopped = |run: &mut Run| {
            let Some(on_step) = on_step else { return false };
            let progress = run.progress();
            let is_due =
                |every: u32| progress.done > 0 && every > 0 && progress.done.is_multiple_of(every as usize);
            // An image is not lost for a preview or a snapshot of it.
            let preview = if is_due(preview_every) { run.preview().ok().flatten() } else { None };
            let snapshot = if is_due(snapshot_every) { run.snapshot().ok() } else { None };
            let pixels = preview.as_ref().map(calotype_pixels::of);
            let mut shown = progress_of(progress);
            if let Some(pixels) = &pixels {
                shown.preview = pixels;
            }
            if let Some(snapshot) = &snapshot {
                (shown.snapshot, shown.snapshot_bytes) = (snapshot.as_ptr(), snapshot.len());
            }
            // SAFETY: the caller's function, with the pointer that was given for it; what it is told is there until it returns.
            unsafe { on_step(user, &raw const shown) != 0 }
        };
        self.run(|run| {
            if is_stopped(run) {
                let done = run.progress().done;
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    format!("stopped after step {done} of {}", run.request().steps_taken()),
                ));
            }
            run.steps(|run| if is_stopped(run) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?
    }

    fn finish(&mut self) -> Result<Finished, Error> {
        let notes = self.notes;
        let finished = self.binding.finish(&mut |line| notes.say(line))?;
        let receipt = json_text(finished.receipt.clone())?;
        Ok(Finished { finished, receipt })
    }

    fn end(&mut self) {
        self.binding.end();
    }
}

fn json_text(json: String) -> Result<CString, Error> {
    CString::new(json)
        .map_err(|error| Error::new(ErrorKind::Internal, "internal error (a bug in calotype)").source(error))
}

fn progress_of(Progress { done, steps }: Progress) -> calotype_progress {
    calotype_progress {
        size: size_of::<calotype_progress>(),
        done: done as u32,
        steps: steps as u32,
        preview: std::ptr::null(),
        snapshot: std::ptr::null(),
        snapshot_bytes: 0,
    }
}

fn latents_of(shape: LatentShape, values: &[f32]) -> calotype_latents {
    calotype_latents {
        size: size_of::<calotype_latents>(),
        values: values.as_ptr(),
        channels: shape.channels as u32,
        height_cells: shape.height_cells as u32,
        width_cells: shape.width_cells as u32,
    }
}
