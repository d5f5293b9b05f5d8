//! The structures that callers of the C library fill in, and those that it fills in for them.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

/// How a pipeline is opened. `calotype_options options = { .size = sizeof options };` is the built-in model with all defaults: what is
/// 0 or NULL is a default. Texts are copied.
#[repr(C)]
pub struct calotype_options {
    /// sizeof(calotype_options).
    pub size: usize,
    /// A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint. NULL: the built-in model.
    pub model: *const c_char,
    /// A recipe, as JSON, with the fields that replace parts of the model or add to it: unet, vae, text_encoder, variant, prediction,
    /// clip_skip, lora, embedding, control_model. Fields of an image are refused here. NULL: none.
    pub recipe: *const c_char,
    /// The ONNX Runtime library. NULL: that of ORT_DYLIB_PATH, else libonnxruntime.so beside the executable, else the one that the
    /// build fetched, else the system's. A process has one.
    pub onnxruntime: *const c_char,
    /// Execution providers, as those of `calotype generate --provider`: "cuda,cpu". NULL: the CPU.
    pub provider: *const c_char,
    /// The folder in which providers keep what they compile. NULL: nothing is kept.
    pub cache: *const c_char,
    /// The most memory that the process may have, in bytes: what would not fit is refused before it is loaded. CPU only. 0: what is
    /// free when a run is planned.
    pub memory_bytes: u64,
    /// Threads of one operator. 0: one for each core.
    pub threads: u32,
    /// Called with each line on what of a file, a prompt or a setting is not used, on the thread that made the call. It must not
    /// unwind, jump out, or use the pipeline. NULL: no callback.
    pub on_note: Option<unsafe extern "C" fn(user: *mut c_void, text: *const c_char)>,
    /// Passed to on_note.
    pub user: *mut c_void,
}

/// What a run tells while it generates. What is 0 or NULL is left out.
#[repr(C)]
pub struct calotype_callbacks {
    /// sizeof(calotype_callbacks).
    pub size: usize,
    /// Called before the first step that is taken, and after each, on the thread that made the call. The call ends with
    /// CALOTYPE_CANCELLED where it returns another number than 0. It must not unwind, jump out, or use the pipeline, but for
    /// calotype_pipeline_cancel. NULL: no callback.
    pub on_step: Option<unsafe extern "C" fn(user: *mut c_void, progress: *const calotype_progress) -> c_int>,
    /// Passed to on_step.
    pub user: *mut c_void,
    /// The progress has a preview after each step whose number is a multiple of this: 1 is every step, 0 is none.
    pub preview_every: u32,
    /// The same for snapshots.
    pub snapshot_every: u32,
}

/// How far a run has come.
#[repr(C)]
pub struct calotype_progress {
    /// sizeof(calotype_progress): set by who has the structure.
    pub size: usize,
    /// Steps that are done.
    pub done: u32,
    /// Steps in all.
    pub steps: u32,
    /// What the image looks like so far, until the callback returns. NULL: no preview was asked for at this step, or the model has
    /// none.
    pub preview: *const calotype_pixels,
    /// The run as bytes, for calotype_pipeline_restore, until the callback returns. NULL: no snapshot was asked for at this step.
    pub snapshot: *const u8,
    /// How many.
    pub snapshot_bytes: usize,
}

/// An image in memory: rows of 3 bytes a pixel, red, green and blue, the top one first.
#[repr(C)]
pub struct calotype_pixels {
    /// sizeof(calotype_pixels): set by who has the structure.
    pub size: usize,
    /// The first row. It is the library's.
    pub rgb: *const u8,
    /// From one row to the next, in bytes.
    pub stride_bytes: usize,
    /// Its width in pixels.
    pub width_px: u32,
    /// Its height in pixels.
    pub height_px: u32,
}

/// Latents: `channels * height_cells * width_cells` numbers, in rows, a channel after another.
#[repr(C)]
pub struct calotype_latents {
    /// sizeof(calotype_latents).
    pub size: usize,
    /// The first number. It is the library's.
    pub values: *const f32,
    /// Numbers per cell.
    pub channels: u32,
    /// Rows.
    pub height_cells: u32,
    /// Columns.
    pub width_cells: u32,
}

/// How much memory a run will take.
#[repr(C)]
pub struct calotype_plan {
    /// sizeof(calotype_plan).
    pub size: usize,
    /// The most that the process will have, in bytes.
    pub peak_bytes: u64,
    /// The least memory_bytes with which the run could be planned; slower.
    pub least_bytes: u64,
    /// The most that it may have: memory_bytes, or what was free.
    pub budget_bytes: u64,
}

impl Default for calotype_options {
    fn default() -> Self {
        Self {
            size: size_of::<Self>(),
            model: ptr::null(),
            recipe: ptr::null(),
            onnxruntime: ptr::null(),
            provider: ptr::null(),
            cache: ptr::null(),
            memory_bytes: 0,
            threads: 0,
            on_note: None,
            user: ptr::null_mut(),
        }
    }
}

impl Default for calotype_callbacks {
    fn default() -> Self {
        Self {
            size: size_of::<Self>(),
            on_step: None,
            user: ptr::null_mut(),
            preview_every: 0,
            snapshot_every: 0,
        }
    }
}

impl calotype_pixels {
    /// Those of an image, for as long as it is there.
    pub(super) fn of(image: &image::RgbImage) -> Self {
        Self {
            size: size_of::<Self>(),
            rgb: image.as_raw().as_ptr(),
            stride_bytes: 3 * image.width() as usize,
            width_px: image.width(),
            height_px: image.height(),
        }
    }
}
