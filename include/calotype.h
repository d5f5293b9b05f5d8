/*
 * calotype.h - images from prompts, on the local device.
 *
 * Generated from src/capi: change the comments there.
 *
 *     calotype_options options = { .size = sizeof options };
 *     calotype_error error = { .size = sizeof error };
 *     calotype_pipeline *pipeline = NULL;
 *     calotype_image *image = NULL;
 *     const char *recipe = "{\"version\": 1, \"prompt\": \"a red apple\", \"seed\": 7}";
 *     if (calotype_pipeline_open(&options, &pipeline, &error) ||
 *         calotype_pipeline_generate(pipeline, recipe, NULL, &image, &error) ||
 *         calotype_image_write(image, "apple.png", &error))
 *         fprintf(stderr, "%s\n", error.message);
 *     calotype_image_free(&image);
 *     calotype_pipeline_free(&pipeline);
 *
 * Results     Every function but calotype_version returns an int: 0, or the kind of an error, one of calotype_status.
 *             The last argument takes the error with its text; it may be NULL. Results are written only on success.
 *
 * Structures  begin with their size, which whoever has the structure sets: a program that was compiled with an older
 *             header goes on to work with a newer library. Set all else to 0 first.
 *
 * Texts       are UTF-8 and end with a zero byte; paths are as the system has them.
 *
 * Handles     calotype_pipeline and calotype_image. NULL and handles of another kind are answered with CALOTYPE_USAGE.
 *             A function that frees takes the address of the variable and makes it NULL, so that freeing it twice, and
 *             using it after that, is found. A copy of a handle that was freed cannot be distinguished from a valid one: using it
 *             is undefined behaviour, as with free().
 *
 * Memory      What "is the pipeline's" or "is the image's" is not freed by the caller, and is there for as long as it
 *             says. All other pointers are read during the call only.
 *
 * Threads     A pipeline may be used by any thread, one call at a time: a second one is answered with CALOTYPE_USAGE.
 *             calotype_pipeline_cancel and calotype_pipeline_reset_cancel may be called at any time, but not from a
 *             signal handler. An image may be used by several threads. Callbacks come on the thread of the call.
 *             After fork() the child must not use the library.
 *
 * Panics      of the library (bugs) are errors of kind CALOTYPE_INTERNAL; the pipeline can only be freed then.
 */


#ifndef CALOTYPE_H
#define CALOTYPE_H

#include <stddef.h>
#include <stdint.h>

/**
 * What functions return: 0, or the kind of an error. The numbers stay as they are; new ones may be added. They are the exit codes of
 * the program `calotype`.
 */
typedef enum calotype_status {
    /**
     * It was done.
     */
    CALOTYPE_OK = 0,
    /**
     * A request that cannot be fulfilled, or a wrong use of this library (NULL, a wrong handle, a call out of order).
     */
    CALOTYPE_USAGE = 2,
    /**
     * A recipe, a snapshot or an image file that cannot be used.
     */
    CALOTYPE_INPUT = 3,
    /**
     * The model's files are missing, damaged or not understood.
     */
    CALOTYPE_MODEL = 4,
    /**
     * The memory budget is too small for the request, or memory could not be had.
     */
    CALOTYPE_MEMORY = 5,
    /**
     * ONNX Runtime or one of its providers is missing or unfit.
     */
    CALOTYPE_RUNTIME = 6,
    /**
     * It was cancelled.
     */
    CALOTYPE_CANCELLED = 7,
    /**
     * A NaN or an infinity appeared while an image was generated.
     */
    CALOTYPE_NUMERIC = 8,
    /**
     * A file could not be written.
     */
    CALOTYPE_OUTPUT = 9,
    /**
     * An internal error: a bug in calotype.
     */
    CALOTYPE_INTERNAL = 70,
} calotype_status;

/**
 * A finished image, and its receipt. It belongs to the caller, does not change, may be used by several threads at once, and outlives its
 * pipeline.
 */
typedef struct calotype_image calotype_image;

/**
 * An opened model, and one run at a time. Any thread may use it, one at a time: a second call, from another thread or a callback, is
 * answered with CALOTYPE_USAGE. calotype_pipeline_cancel alone may be called while another call runs.
 */
typedef struct calotype_pipeline calotype_pipeline;

/**
 * An image in memory: rows of 3 bytes a pixel, red, green and blue, the top one first.
 */
typedef struct calotype_pixels {
    /**
     * sizeof(calotype_pixels): set by who has the structure.
     */
    size_t size;
    /**
     * The first row. It is the library's.
     */
    const uint8_t *rgb;
    /**
     * From one row to the next, in bytes.
     */
    size_t stride_bytes;
    /**
     * Its width in pixels.
     */
    uint32_t width_px;
    /**
     * Its height in pixels.
     */
    uint32_t height_px;
} calotype_pixels;

/**
 * An error, in the caller's memory. Set `size` before the call; the rest is written when the call fails, and left alone otherwise.
 * Texts are UTF-8, end with a zero byte, and are truncated where they do not fit.
 */
typedef struct calotype_error {
    /**
     * sizeof(calotype_error).
     */
    size_t size;
    /**
     * What the function returned: one of calotype_status.
     */
    int kind;
    /**
     * The whole message on one line: "place: expected X, got Y; way out".
     */
    char message[1024];
    /**
     * Where it is: a field of the recipe, a file, a component. Empty where not known, as are those below.
     */
    char place[256];
    /**
     * What would have been right.
     */
    char expected[256];
    /**
     * What was there instead.
     */
    char got[256];
    /**
     * The way out.
     */
    char help[512];
} calotype_error;

/**
 * How a pipeline is opened. `calotype_options options = { .size = sizeof options };` is the built-in model with all defaults: what is
 * 0 or NULL is a default. Texts are copied.
 */
typedef struct calotype_options {
    /**
     * sizeof(calotype_options).
     */
    size_t size;
    /**
     * A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint. NULL: the built-in model.
     */
    const char *model;
    /**
     * A recipe, as JSON, with the fields that replace parts of the model or add to it: unet, vae, text_encoder, variant, prediction,
     * clip_skip, lora, embedding, control_model. Fields of an image are refused here. NULL: none.
     */
    const char *recipe;
    /**
     * The ONNX Runtime library. NULL: that of ORT_DYLIB_PATH, else libonnxruntime.so beside the executable, else the one that the
     * build fetched, else the system's. A process has one.
     */
    const char *onnxruntime;
    /**
     * Execution providers, as those of `calotype generate --provider`: "cuda,cpu". NULL: the CPU.
     */
    const char *provider;
    /**
     * The folder in which providers keep what they compile. NULL: nothing is kept.
     */
    const char *cache;
    /**
     * The most memory that the process may have, in bytes: what would not fit is refused before it is loaded. CPU only. 0: what is
     * free when a run is planned.
     */
    uint64_t memory_bytes;
    /**
     * Threads of one operator. 0: one for each core.
     */
    uint32_t threads;
    /**
     * Called with each line on what of a file, a prompt or a setting is not used, on the thread that made the call. It must not
     * unwind, jump out, or use the pipeline. NULL: no callback.
     */
    void (*on_note)(void *user,
                    const char *text);
    /**
     * Passed to on_note.
     */
    void *user;
} calotype_options;

/**
 * How much memory a run will take.
 */
typedef struct calotype_plan {
    /**
     * sizeof(calotype_plan).
     */
    size_t size;
    /**
     * The most that the process will have, in bytes.
     */
    uint64_t peak_bytes;
    /**
     * The least memory_bytes with which the run could be planned; slower.
     */
    uint64_t least_bytes;
    /**
     * The most that it may have: memory_bytes, or what was free.
     */
    uint64_t budget_bytes;
} calotype_plan;

/**
 * How far a run has come.
 */
typedef struct calotype_progress {
    /**
     * sizeof(calotype_progress): set by who has the structure.
     */
    size_t size;
    /**
     * Steps that are done.
     */
    uint32_t done;
    /**
     * Steps in all.
     */
    uint32_t steps;
    /**
     * What the image looks like so far, until the callback returns. NULL: no preview was asked for at this step, or the model has
     * none.
     */
    const struct calotype_pixels *preview;
    /**
     * The run as bytes, for calotype_pipeline_restore, until the callback returns. NULL: no snapshot was asked for at this step.
     */
    const uint8_t *snapshot;
    /**
     * How many.
     */
    size_t snapshot_bytes;
} calotype_progress;

/**
 * What a run tells while it generates. What is 0 or NULL is left out.
 */
typedef struct calotype_callbacks {
    /**
     * sizeof(calotype_callbacks).
     */
    size_t size;
    /**
     * Called before the first step that is taken, and after each, on the thread that made the call. The call ends with
     * CALOTYPE_CANCELLED where it returns another number than 0. It must not unwind, jump out, or use the pipeline, but for
     * calotype_pipeline_cancel. NULL: no callback.
     */
    int (*on_step)(void *user,
                   const struct calotype_progress *progress);
    /**
     * Passed to on_step.
     */
    void *user;
    /**
     * The progress has a preview after each step whose number is a multiple of this: 1 is every step, 0 is none.
     */
    uint32_t preview_every;
    /**
     * The same for snapshots.
     */
    uint32_t snapshot_every;
} calotype_callbacks;

/**
 * Latents: `channels * height_cells * width_cells` numbers, in rows, a channel after another.
 */
typedef struct calotype_latents {
    /**
     * sizeof(calotype_latents).
     */
    size_t size;
    /**
     * The first number. It is the library's.
     */
    const float *values;
    /**
     * Numbers per cell.
     */
    uint32_t channels;
    /**
     * Rows.
     */
    uint32_t height_cells;
    /**
     * Columns.
     */
    uint32_t width_cells;
} calotype_latents;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, as in "0.1.0". A static string: it is not freed.
 */
const char *calotype_version(void);

/**
 * Its pixels. They are the image's: copy what is needed after it is freed.
 */
int calotype_image_pixels(const struct calotype_image *image,
                          struct calotype_pixels *pixels,
                          struct calotype_error *error);

/**
 * Its receipt, as JSON: the recipe with nothing left to defaults, and what made the image. It is the image's, and a recipe for
 * calotype_pipeline_generate, which makes the same image again.
 */
int calotype_image_receipt(const struct calotype_image *image,
                           const char **json,
                           struct calotype_error *error);

/**
 * Writes it with its receipt: PNG, JPEG (.jpg) or WebP (.webp) by the extension, PNG without one. The file is there whole or not at all,
 * whatever happens meanwhile; what was there before stays until then. A folder or a device is refused, and a receipt that is too long
 * for the format.
 */
int calotype_image_write(const struct calotype_image *image,
                         const char *file,
                         struct calotype_error *error);

/**
 * Frees it, and makes the variable NULL; nothing where it is NULL. Returns CALOTYPE_USAGE for what is no image.
 */
int calotype_image_free(struct calotype_image **image);

/**
 * Opens a model. Its files are checked and mapped; what computes is opened by the first run, or rather by the first that the
 * pipeline as it is then does not cover.
 */
int calotype_pipeline_open(const struct calotype_options *options,
                           struct calotype_pipeline **pipeline,
                           struct calotype_error *error);

/**
 * Plans a run: how much memory it will take, before anything is loaded. CALOTYPE_MEMORY where it does not fit into memory_bytes. Ends
 * the run there is. Later runs that are no larger are run by this plan: plan the largest once, and they do not change what is in memory.
 */
int calotype_pipeline_plan(struct calotype_pipeline *pipeline,
                           const char *recipe,
                           struct calotype_plan *plan,
                           struct calotype_error *error);

/**
 * Generates an image from a recipe: JSON, as in {"version": 1, "prompt": "a red apple", "seed": 7}, or the receipt of an image. What it
 * leaves out gets the model's default; the seed is random then. `callbacks` may be NULL. The image is the caller's to free.
 */
int calotype_pipeline_generate(struct calotype_pipeline *pipeline,
                               const char *recipe,
                               const struct calotype_callbacks *callbacks,
                               struct calotype_image **image,
                               struct calotype_error *error);

/**
 * Takes all steps that are left of a run that was begun or restored, and ends it with its image, which is the caller's to free.
 * `callbacks` may be NULL. Where a callback stops it, the run stays as it is: it can be saved to a snapshot, or taken on.
 */
int calotype_pipeline_run(struct calotype_pipeline *pipeline,
                          const struct calotype_callbacks *callbacks,
                          struct calotype_image **image,
                          struct calotype_error *error);

/**
 * Begins a run, which calotype_pipeline_step takes on; encodes its texts and images. A run that was begun before ends.
 */
int calotype_pipeline_begin(struct calotype_pipeline *pipeline,
                            const char *recipe,
                            struct calotype_error *error);

/**
 * Begins a run where another one was when it gave this snapshot; both go on to the same bytes. The recipe must be the same, its seed
 * included (calotype_pipeline_recipe), and the model's files too: CALOTYPE_INPUT otherwise, and for a snapshot that is damaged.
 */
int calotype_pipeline_restore(struct calotype_pipeline *pipeline,
                              const char *recipe,
                              const uint8_t *snapshot,
                              size_t snapshot_bytes,
                              struct calotype_error *error);

/**
 * Takes the next step. A run whose step failed can only be begun again. `progress` may be NULL.
 */
int calotype_pipeline_step(struct calotype_pipeline *pipeline,
                           struct calotype_progress *progress,
                           struct calotype_error *error);

/**
 * How far the run has come.
 */
int calotype_pipeline_progress(struct calotype_pipeline *pipeline,
                               struct calotype_progress *progress,
                               struct calotype_error *error);

/**
 * The recipe of the run, as JSON with nothing left to defaults and its seed. It is the pipeline's, until the next call.
 */
int calotype_pipeline_recipe(struct calotype_pipeline *pipeline,
                             const char **json,
                             struct calotype_error *error);

/**
 * The latents after the last step, with noise of the next step's level. They are the pipeline's, until the next call.
 */
int calotype_pipeline_latents(struct calotype_pipeline *pipeline,
                              struct calotype_latents *latents,
                              struct calotype_error *error);

/**
 * The last estimate of the clean latents; zeros before the first step. They are the pipeline's, until the next call.
 */
int calotype_pipeline_denoised(struct calotype_pipeline *pipeline,
                               struct calotype_latents *latents,
                               struct calotype_error *error);

/**
 * What the image looks like after the last step: small, one pixel for each latent cell, or of the image's size where the model has a
 * decoder of previews; `rgb` is NULL where it has neither. The pixels are the pipeline's, until the next call.
 */
int calotype_pipeline_preview(struct calotype_pipeline *pipeline,
                              struct calotype_pixels *pixels,
                              struct calotype_error *error);

/**
 * The run as bytes, from which calotype_pipeline_restore continues it, in this process or after a power failure. They are the
 * pipeline's, until the next call.
 */
int calotype_pipeline_snapshot(struct calotype_pipeline *pipeline,
                               const uint8_t **snapshot,
                               size_t *snapshot_bytes,
                               struct calotype_error *error);

/**
 * Ends a run whose steps are all done with its image, which is the caller's to free. Where steps are left, the run stays as it is.
 */
int calotype_pipeline_finish(struct calotype_pipeline *pipeline,
                             struct calotype_image **image,
                             struct calotype_error *error);

/**
 * Ends the run there is without an image.
 */
int calotype_pipeline_end(struct calotype_pipeline *pipeline,
                          struct calotype_error *error);

/**
 * Cancels the call that runs, also in the middle of a step, and those that come later, until calotype_pipeline_reset_cancel: each ends with
 * CALOTYPE_CANCELLED. From any thread, and from on_step; not from a signal handler. The pipeline must not be freed meanwhile.
 */
int calotype_pipeline_cancel(const struct calotype_pipeline *pipeline,
                             struct calotype_error *error);

/**
 * Lets what is begun from now on run; what was cancelled before stays cancelled. From any thread.
 */
int calotype_pipeline_reset_cancel(const struct calotype_pipeline *pipeline,
                                   struct calotype_error *error);

/**
 * Frees it with its run and its memory, and makes the variable NULL; nothing where it is NULL. Returns CALOTYPE_USAGE, and frees
 * nothing, for what is no pipeline, and while a call uses it.
 */
int calotype_pipeline_free(struct calotype_pipeline **pipeline);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* CALOTYPE_H */
