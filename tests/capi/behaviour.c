/*
 * What the header promises, tried from C: `run.sh` compiles it under the address and undefined-behaviour sanitizers.
 * The argument is a folder to write to.
 */
#define _POSIX_C_SOURCE 200809L
#include <calotype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: expected %s; the last message: %s\n", __FILE__, __LINE__, #condition, error.message); \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define APPLE "{\"version\": 1, \"prompt\": \"a red apple\", \"seed\": 7, \"size\": \"64x64\", \"steps\": 3}"
#define OTHER "{\"version\": 1, \"prompt\": \"a blue cat\", \"seed\": 7, \"size\": \"64x64\", \"steps\": 3}"
#define SMALL "{\"version\": 1, \"prompt\": \"a red apple\", \"seed\": 7, \"size\": \"64x64\", \"steps\": 1}"
#define LONG "{\"version\": 1, \"prompt\": \"a red apple\", \"seed\": 7, \"size\": \"64x64\", \"steps\": 1000}"
#define LARGE "{\"version\": 1, \"prompt\": \"a red apple\", \"seed\": 7, \"size\": \"128x128\", \"steps\": 1}"

#if UINTPTR_MAX == UINT64_MAX
/* What programs were compiled with. A structure may grow at its end: then its first size stays here, as what is still accepted. */
_Static_assert(sizeof(calotype_error) == 2320 && offsetof(calotype_error, help) == 1804, "calotype_error has changed");
_Static_assert(sizeof(calotype_options) == 80 && offsetof(calotype_options, user) == 72, "calotype_options has changed");
_Static_assert(sizeof(calotype_callbacks) == 32 && offsetof(calotype_callbacks, snapshot_every) == 28,
               "calotype_callbacks has changed");
_Static_assert(sizeof(calotype_progress) == 40 && sizeof(calotype_pixels) == 32 && sizeof(calotype_latents) == 32 &&
                   sizeof(calotype_plan) == 32,
               "a structure has changed");
#endif

static calotype_error error = { .size = sizeof error };

static int failed_with(int status, int expected, const char *text)
{
    int is_right = status == expected && error.kind == expected && strstr(error.message, text) != NULL;
    if (!is_right)
        fprintf(stderr, "expected status %d and \"%s\", got status %d\n", expected, text, status);
    return is_right;
}

static calotype_pixels pixels_of(const calotype_image *image)
{
    calotype_pixels pixels = { .size = sizeof pixels };
    CHECK(calotype_image_pixels(image, &pixels, &error) == CALOTYPE_OK);
    return pixels;
}

static int are_same(const calotype_image *one, const calotype_image *other)
{
    calotype_pixels a = pixels_of(one), b = pixels_of(other);
    return a.width_px == b.width_px && a.height_px == b.height_px && a.stride_bytes == b.stride_bytes &&
           memcmp(a.rgb, b.rgb, a.stride_bytes * a.height_px) == 0;
}

static calotype_pipeline *opened(calotype_options options)
{
    calotype_pipeline *pipeline = NULL;
    options.size = sizeof options;
    CHECK(calotype_pipeline_open(&options, &pipeline, &error) == CALOTYPE_OK && pipeline != NULL);
    return pipeline;
}

static calotype_image *generated(calotype_pipeline *pipeline, const char *recipe)
{
    calotype_image *image = NULL;
    CHECK(calotype_pipeline_generate(pipeline, recipe, NULL, &image, &error) == CALOTYPE_OK && image != NULL);
    return image;
}

/* Opening: what is wrong is refused, and the variable stays as it was. */
static void opening(void)
{
    calotype_pipeline *pipeline = NULL;
    calotype_options options = { .size = sizeof options };
    CHECK(failed_with(calotype_pipeline_open(NULL, &pipeline, &error), CALOTYPE_USAGE, "options: expected a pointer, got NULL"));
    CHECK(failed_with(calotype_pipeline_open(&options, NULL, &error), CALOTYPE_USAGE, "pipeline: expected a pointer"));
    CHECK(calotype_pipeline_open(NULL, NULL, NULL) == CALOTYPE_USAGE);
    options.size = 0;
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_USAGE, "options: size: expected"));
    CHECK(strcmp(error.place, "options: size") == 0 && strcmp(error.got, "0") == 0 && strstr(error.help, "sizeof"));
    options.size = (size_t)-1;
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_USAGE, "options: size: expected"));

    /* A newer header, with fields of which this library knows nothing. */
    struct {
        calotype_options known;
        uint64_t newer;
    } newer = { .known = { .size = sizeof newer }, .newer = 1 };
    CHECK(failed_with(calotype_pipeline_open(&newer.known, &pipeline, &error), CALOTYPE_USAGE, "fields that this version"));
    newer.newer = 0;
    CHECK(calotype_pipeline_open(&newer.known, &pipeline, &error) == CALOTYPE_OK);
    CHECK(calotype_pipeline_free(&pipeline) == CALOTYPE_OK && pipeline == NULL);

    options = (calotype_options){ .size = sizeof options, .model = "/no/such/model" };
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_MODEL, "/no/such/model"));
    options = (calotype_options){ .size = sizeof options, .model = "" };
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_USAGE, "model: expected a path"));
    options = (calotype_options){ .size = sizeof options, .recipe = "{" };
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_INPUT, "expected a recipe as JSON"));
    options = (calotype_options){ .size = sizeof options, .recipe = SMALL };
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_USAGE, "expected fields of a model"));
    options = (calotype_options){ .size = sizeof options, .recipe = "{\"version\": 1, \"lora\": [\"/no/lora\"]}" };
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_MODEL, "/no/lora"));
    options = (calotype_options){ .size = sizeof options, .threads = 1025 };
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_USAGE, "threads: expected 0 to 1024, got 1025"));
    options = (calotype_options){ .size = sizeof options, .provider = "abacus" };
    CHECK(failed_with(calotype_pipeline_open(&options, &pipeline, &error), CALOTYPE_USAGE, "abacus"));
    CHECK(pipeline == NULL);
}

/* Recipes that are wrong, each with its place. */
static void wrong_recipes(calotype_pipeline *pipeline)
{
    calotype_image *image = NULL;
    calotype_plan plan = { .size = sizeof plan, .peak_bytes = 5 };
    static const struct {
        const char *recipe, *text;
        int status;
    } WRONG[] = {
        { NULL, "recipe: expected a pointer, got NULL", CALOTYPE_USAGE },
        { "", "recipe: expected a recipe as JSON", CALOTYPE_INPUT },
        { "[]", "recipe: expected a recipe, an object, got a list", CALOTYPE_INPUT },
        { "{}", "recipe: version: expected 1, got none", CALOTYPE_INPUT },
        { "{\"version\": 1, \"sed\": 7}", "did you mean seed?", CALOTYPE_INPUT },
        { "{\"version\": 1, \"steps\": \"many\"}", "steps: expected a whole number", CALOTYPE_INPUT },
        { "{\"version\": 1, \"steps\": 0}", "steps: expected", CALOTYPE_USAGE },
        { "{\"version\": 1, \"prompt\": \"\xff\"}", "recipe: expected UTF-8", CALOTYPE_INPUT },
        { "{\"version\": 1, \"init\": \"/no/image.png\"}", "/no/image.png", CALOTYPE_INPUT },
        { "{\"version\": 1, \"model\": \"/other\"}", "recipe: expected the model's files", CALOTYPE_USAGE },
    };
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
        const char *recipe = WRONG[i].recipe, *text = WRONG[i].text;
        CHECK(failed_with(calotype_pipeline_generate(pipeline, recipe, NULL, &image, &error), WRONG[i].status, text));
        CHECK(failed_with(calotype_pipeline_begin(pipeline, recipe, &error), WRONG[i].status, text));
        CHECK(failed_with(calotype_pipeline_plan(pipeline, recipe, &plan, &error), WRONG[i].status, text));
    }
    CHECK(image == NULL && plan.peak_bytes == 5);
}

/* NULL and other handles are errors of every function. */
static void wrong_handles(calotype_pipeline *pipeline, calotype_image *image)
{
    calotype_image *none = NULL;
    calotype_plan plan = { .size = sizeof plan };
    calotype_progress progress = { .size = sizeof progress };
    calotype_latents latents = { .size = sizeof latents };
    calotype_pixels pixels = { .size = sizeof pixels };
    const uint8_t *bytes = NULL;
    const char *json = NULL;
    size_t length = 0;
    uint64_t memory[8] = { 0 };
    calotype_pipeline *wrong[] = { NULL, (calotype_pipeline *)image, (calotype_pipeline *)memory,
                                   (calotype_pipeline *)((char *)memory + 1) };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        calotype_pipeline *other = wrong[i];
        const char *text = i ? "pipeline: expected a handle, got another pointer" : "pipeline: expected a handle, got NULL";
        CHECK(failed_with(calotype_pipeline_plan(other, SMALL, &plan, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_generate(other, SMALL, NULL, &none, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_begin(other, SMALL, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_restore(other, SMALL, (const uint8_t *)"", 0, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_run(other, NULL, &none, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_step(other, &progress, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_progress(other, &progress, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_recipe(other, &json, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_latents(other, &latents, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_denoised(other, &latents, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_preview(other, &pixels, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_snapshot(other, &bytes, &length, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_finish(other, &none, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_end(other, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_cancel(other, &error), CALOTYPE_USAGE, text));
        CHECK(failed_with(calotype_pipeline_reset_cancel(other, &error), CALOTYPE_USAGE, text));
        CHECK(calotype_pipeline_free(&other) == (i ? CALOTYPE_USAGE : CALOTYPE_OK) && other == wrong[i]);
    }
    CHECK(calotype_pipeline_free(NULL) == CALOTYPE_USAGE && calotype_image_free(NULL) == CALOTYPE_USAGE);
    calotype_image *images[] = { NULL, (calotype_image *)pipeline, (calotype_image *)memory };
    for (size_t i = 0; i < sizeof images / sizeof *images; i++) {
        calotype_image *other = images[i];
        CHECK(failed_with(calotype_image_pixels(other, &pixels, &error), CALOTYPE_USAGE, "image: expected a handle"));
        CHECK(failed_with(calotype_image_receipt(other, &json, &error), CALOTYPE_USAGE, "image: expected a handle"));
        CHECK(failed_with(calotype_image_write(other, "x.png", &error), CALOTYPE_USAGE, "image: expected a handle"));
        CHECK(calotype_image_free(&other) == (i ? CALOTYPE_USAGE : CALOTYPE_OK) && other == images[i]);
    }
    CHECK(failed_with(calotype_image_pixels(image, NULL, &error), CALOTYPE_USAGE, "pixels: expected a pointer"));
    pixels.size = 8;
    CHECK(failed_with(calotype_image_pixels(image, &pixels, &error), CALOTYPE_USAGE, "pixels: size: expected"));
    CHECK(failed_with(calotype_image_receipt(image, NULL, &error), CALOTYPE_USAGE, "json: expected a pointer"));
    CHECK(failed_with(calotype_image_write(image, NULL, &error), CALOTYPE_USAGE, "file: expected a pointer"));
    CHECK(bytes == NULL && json == NULL && length == 0 && plan.peak_bytes == 0 && pixels.rgb == NULL);

    /* What needs a run says that there is none. */
    CHECK(calotype_pipeline_end(pipeline, &error) == CALOTYPE_OK);
    CHECK(failed_with(calotype_pipeline_step(pipeline, NULL, &error), CALOTYPE_USAGE, "run: expected one that was begun"));
    CHECK(failed_with(calotype_pipeline_run(pipeline, NULL, &none, &error), CALOTYPE_USAGE, "run: expected one"));
    CHECK(failed_with(calotype_pipeline_finish(pipeline, &none, &error), CALOTYPE_USAGE, "run: expected one"));
    CHECK(failed_with(calotype_pipeline_snapshot(pipeline, &bytes, &length, &error), CALOTYPE_USAGE, "run: expected one"));
    CHECK(none == NULL);
}

/* Budgets: counted before anything is loaded, and refused with what would do. */
static void planning(void)
{
    calotype_pipeline *tiny = opened((calotype_options){ .memory_bytes = 1 << 20 });
    calotype_plan plan = { .size = sizeof plan };
    calotype_image *image = NULL;
    CHECK(failed_with(calotype_pipeline_plan(tiny, SMALL, &plan, &error), CALOTYPE_MEMORY, "memory: expected at least"));
    CHECK(failed_with(calotype_pipeline_generate(tiny, SMALL, NULL, &image, &error), CALOTYPE_MEMORY, "memory: expected"));
    CHECK(plan.peak_bytes == 0 && image == NULL && calotype_pipeline_free(&tiny) == CALOTYPE_OK);

    calotype_pipeline *pipeline = opened((calotype_options){ .memory_bytes = (uint64_t)4 << 30, .threads = 1 });
    CHECK(calotype_pipeline_plan(pipeline, SMALL, &plan, &error) == CALOTYPE_OK);
    CHECK(plan.peak_bytes > 1 << 20 && plan.peak_bytes <= plan.budget_bytes && plan.budget_bytes == (uint64_t)4 << 30);
    CHECK(plan.least_bytes > 1 << 20 && plan.least_bytes <= plan.budget_bytes);
    calotype_plan large = { .size = sizeof large };
    CHECK(calotype_pipeline_plan(pipeline, LARGE, &large, &error) == CALOTYPE_OK && large.peak_bytes > plan.peak_bytes);
    image = generated(pipeline, SMALL);
    CHECK(calotype_image_free(&image) == CALOTYPE_OK && calotype_pipeline_free(&pipeline) == CALOTYPE_OK);
}

struct seen {
    calotype_pipeline *pipeline;
    unsigned calls, previews, snapshots, stop_at;
    int cancels;
    uint8_t *snapshot;
    size_t snapshot_bytes;
};

static int see(void *user, const calotype_progress *progress)
{
    struct seen *seen = user;
    CHECK(progress->size == sizeof *progress && progress->done == seen->calls && progress->steps >= progress->done);
    seen->calls++;
    if (progress->preview) {
        const calotype_pixels *preview = progress->preview;
        CHECK(preview->width_px == 4 && preview->height_px == 4 && preview->stride_bytes == 12);
        unsigned sum = 0;
        for (size_t i = 0; i < preview->stride_bytes * preview->height_px; i++)
            sum += preview->rgb[i];
        CHECK(sum > 0);
        seen->previews++;
    }
    if (progress->snapshot) {
        free(seen->snapshot);
        CHECK((seen->snapshot = malloc(progress->snapshot_bytes)) != NULL);
        memcpy(seen->snapshot, progress->snapshot, progress->snapshot_bytes);
        seen->snapshot_bytes = progress->snapshot_bytes;
        seen->snapshots++;
    }
    /* The pipeline is in use. */
    CHECK(failed_with(calotype_pipeline_step(seen->pipeline, NULL, &error), CALOTYPE_USAGE, "one call at a time"));
    calotype_pipeline *copy = seen->pipeline;
    CHECK(calotype_pipeline_free(&copy) == CALOTYPE_USAGE && copy == seen->pipeline);
    if (seen->cancels && progress->done == seen->stop_at)
        CHECK(calotype_pipeline_cancel(seen->pipeline, &error) == CALOTYPE_OK);
    return !seen->cancels && progress->done == seen->stop_at;
}

/* The callback sees every step, may stop the call, and gets what it asked for. */
static void callbacks(calotype_pipeline *pipeline, const calotype_image *apple)
{
    calotype_image *image = NULL;
    struct seen seen = { .pipeline = pipeline, .stop_at = 99 };
    calotype_callbacks told = { .size = sizeof told, .on_step = see, .user = &seen };
    CHECK(calotype_pipeline_generate(pipeline, APPLE, &told, &image, &error) == CALOTYPE_OK);
    CHECK(seen.calls == 4 && seen.previews == 0 && seen.snapshots == 0 && are_same(image, apple));
    CHECK(calotype_image_free(&image) == CALOTYPE_OK);

    seen = (struct seen){ .pipeline = pipeline, .stop_at = 99 };
    told.preview_every = 2;
    told.snapshot_every = 1;
    CHECK(calotype_pipeline_generate(pipeline, APPLE, &told, &image, &error) == CALOTYPE_OK);
    CHECK(seen.calls == 4 && seen.previews == 1 && seen.snapshots == 3 && are_same(image, apple));
    CHECK(calotype_image_free(&image) == CALOTYPE_OK);
    free(seen.snapshot);

    /* Stopped before the first step, after one, and after the last. */
    for (unsigned stop_at = 0; stop_at < 4; stop_at++) {
        seen = (struct seen){ .pipeline = pipeline, .stop_at = stop_at };
        told.preview_every = told.snapshot_every = 0;
        int status = calotype_pipeline_generate(pipeline, APPLE, &told, &image, &error);
        CHECK(failed_with(status, CALOTYPE_CANCELLED, "stopped after step"));
        CHECK(image == NULL && seen.calls == stop_at + 1);
        CHECK(failed_with(calotype_pipeline_step(pipeline, NULL, &error), CALOTYPE_USAGE, "run: expected one"));
    }

    /* A run that is stopped goes on, here or elsewhere. */
    seen = (struct seen){ .pipeline = pipeline, .stop_at = 1 };
    told.snapshot_every = 1;
    CHECK(calotype_pipeline_begin(pipeline, APPLE, &error) == CALOTYPE_OK);
    CHECK(failed_with(calotype_pipeline_run(pipeline, &told, &image, &error), CALOTYPE_CANCELLED, "after step 1 of 3"));
    CHECK(calotype_pipeline_run(pipeline, NULL, &image, &error) == CALOTYPE_OK && are_same(image, apple));
    CHECK(calotype_image_free(&image) == CALOTYPE_OK && seen.snapshots == 1);
    CHECK(calotype_pipeline_restore(pipeline, APPLE, seen.snapshot, seen.snapshot_bytes, &error) == CALOTYPE_OK);
    CHECK(calotype_pipeline_run(pipeline, NULL, &image, &error) == CALOTYPE_OK && are_same(image, apple));
    CHECK(calotype_image_free(&image) == CALOTYPE_OK);
    free(seen.snapshot);

    /* Cancelled from the callback: all that follows is, until it is reset. */
    seen = (struct seen){ .pipeline = pipeline, .stop_at = 1, .cancels = 1 };
    told.snapshot_every = 0;
    int status = calotype_pipeline_generate(pipeline, APPLE, &told, &image, &error);
    CHECK(failed_with(status, CALOTYPE_CANCELLED, "in step 2 of 3") && seen.calls == 2);
    CHECK(failed_with(calotype_pipeline_begin(pipeline, APPLE, &error), CALOTYPE_CANCELLED, "stopped before the first step"));
    CHECK(calotype_pipeline_reset_cancel(pipeline, &error) == CALOTYPE_OK);
    image = generated(pipeline, APPLE);
    CHECK(are_same(image, apple) && calotype_image_free(&image) == CALOTYPE_OK);
}

struct shared {
    calotype_pipeline *pipeline;
    pthread_mutex_t lock;
    pthread_cond_t begun;
    unsigned done;
    int second_call;
};

static int tell(void *user, const calotype_progress *progress)
{
    struct shared *shared = user;
    pthread_mutex_lock(&shared->lock);
    shared->done = progress->done;
    pthread_cond_signal(&shared->begun);
    pthread_mutex_unlock(&shared->lock);
    return 0;
}

static void *cancel(void *user)
{
    struct shared *shared = user;
    pthread_mutex_lock(&shared->lock);
    while (shared->done < 2)
        pthread_cond_wait(&shared->begun, &shared->lock);
    pthread_mutex_unlock(&shared->lock);
    /* Of its own: the other thread may have an error at the same time. */
    calotype_error own = { .size = sizeof own };
    shared->second_call = calotype_pipeline_begin(shared->pipeline, APPLE, &own);
    if (calotype_pipeline_cancel(shared->pipeline, &own) != CALOTYPE_OK)
        abort();
    return NULL;
}

/* Another thread cancels a run of a thousand steps, and may do nothing else meanwhile. */
static void threads(calotype_pipeline *pipeline)
{
    struct shared shared = { .pipeline = pipeline, .lock = PTHREAD_MUTEX_INITIALIZER, .begun = PTHREAD_COND_INITIALIZER };
    calotype_callbacks told = { .size = sizeof told, .on_step = tell, .user = &shared };
    calotype_image *image = NULL;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, cancel, &shared) == 0);
    CHECK(failed_with(calotype_pipeline_generate(pipeline, LONG, &told, &image, &error), CALOTYPE_CANCELLED, "stopped in step"));
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(shared.second_call == CALOTYPE_USAGE && shared.done >= 2 && shared.done < 1000 && image == NULL);
    CHECK(calotype_pipeline_reset_cancel(pipeline, &error) == CALOTYPE_OK);
}

/* Step by step to the same bytes; what a run shows on its way. */
static void step_by_step(calotype_pipeline *pipeline, const calotype_image *apple)
{
    calotype_progress progress = { .size = sizeof progress };
    calotype_latents latents = { .size = sizeof latents };
    calotype_pixels preview = { .size = sizeof preview };
    calotype_image *image = NULL;
    const char *json = NULL;
    CHECK(calotype_pipeline_begin(pipeline, APPLE, &error) == CALOTYPE_OK);
    CHECK(calotype_pipeline_recipe(pipeline, &json, &error) == CALOTYPE_OK);
    CHECK(strstr(json, "\"seed\":7") && strstr(json, "\"sampler\""));
    CHECK(calotype_pipeline_denoised(pipeline, &latents, &error) == CALOTYPE_OK && latents.values[0] == 0.0f);
    for (unsigned step = 1; step <= 3; step++) {
        CHECK(failed_with(calotype_pipeline_finish(pipeline, &image, &error), CALOTYPE_USAGE, "expected all 3 steps done"));
        CHECK(calotype_pipeline_step(pipeline, &progress, &error) == CALOTYPE_OK);
        CHECK(progress.done == step && progress.steps == 3 && progress.preview == NULL);
        CHECK(calotype_pipeline_latents(pipeline, &latents, &error) == CALOTYPE_OK);
        CHECK(latents.channels == 16 && latents.height_cells == 4 && latents.width_cells == 4);
        float first = latents.values[0], last = latents.values[16 * 4 * 4 - 1];
        CHECK(calotype_pipeline_denoised(pipeline, &latents, &error) == CALOTYPE_OK);
        /* Noise is in the one, but for the last step, and not in the other. */
        CHECK((step == 3) == (first == latents.values[0] && last == latents.values[16 * 4 * 4 - 1]));
        CHECK(calotype_pipeline_preview(pipeline, &preview, &error) == CALOTYPE_OK);
        CHECK(preview.rgb && preview.width_px == 4 && preview.height_px == 4);
    }
    CHECK(failed_with(calotype_pipeline_step(pipeline, NULL, &error), CALOTYPE_USAGE, "all 3 steps done"));
    progress.done = 0;
    CHECK(calotype_pipeline_progress(pipeline, &progress, &error) == CALOTYPE_OK && progress.done == 3);
    CHECK(calotype_pipeline_finish(pipeline, &image, &error) == CALOTYPE_OK && are_same(image, apple));
    CHECK(calotype_image_free(&image) == CALOTYPE_OK);
    CHECK(failed_with(calotype_pipeline_finish(pipeline, &image, &error), CALOTYPE_USAGE, "run: expected one"));
}

/* A snapshot continues in another pipeline to the same bytes, and others are refused. */
static void snapshots(calotype_pipeline *pipeline, const calotype_image *apple)
{
    const uint8_t *bytes = NULL;
    size_t length = 0;
    calotype_image *image = NULL;
    calotype_progress progress = { .size = sizeof progress };
    CHECK(calotype_pipeline_begin(pipeline, APPLE, &error) == CALOTYPE_OK);
    CHECK(calotype_pipeline_step(pipeline, NULL, &error) == CALOTYPE_OK);
    CHECK(calotype_pipeline_snapshot(pipeline, &bytes, &length, &error) == CALOTYPE_OK && length > 1024);
    uint8_t *copy = malloc(length);
    CHECK(copy != NULL);
    memcpy(copy, bytes, length);

    calotype_pipeline *other = opened((calotype_options){ 0 });
    CHECK(calotype_pipeline_restore(other, APPLE, copy, length, &error) == CALOTYPE_OK);
    CHECK(calotype_pipeline_progress(other, &progress, &error) == CALOTYPE_OK && progress.done == 1);
    CHECK(calotype_pipeline_run(other, NULL, &image, &error) == CALOTYPE_OK && are_same(image, apple));
    CHECK(calotype_image_free(&image) == CALOTYPE_OK && calotype_pipeline_free(&other) == CALOTYPE_OK);

    CHECK(failed_with(calotype_pipeline_restore(pipeline, OTHER, copy, length, &error), CALOTYPE_INPUT, "got one made for another"));
    CHECK(failed_with(calotype_pipeline_restore(pipeline, APPLE, NULL, length, &error), CALOTYPE_USAGE, "snapshot: expected a pointer"));
    size_t shorter[] = { 0, 1, 31, 32, length / 2, length - 1 };
    for (size_t i = 0; i < sizeof shorter / sizeof *shorter; i++)
        CHECK(failed_with(calotype_pipeline_restore(pipeline, APPLE, copy, shorter[i], &error), CALOTYPE_INPUT, "damaged"));
    copy[length / 2] ^= 1;
    CHECK(failed_with(calotype_pipeline_restore(pipeline, APPLE, copy, length, &error), CALOTYPE_INPUT, "damaged"));
    free(copy);
}

/* Images: receipts that draw them again, files that are there whole, and pixels that outlive the pipeline. */
static void images(calotype_pipeline *pipeline, const calotype_image *apple, const char *folder)
{
    char path[4096];
    const char *receipt = NULL;
    CHECK(calotype_image_receipt(apple, &receipt, &error) == CALOTYPE_OK && strstr(receipt, "\"pixels_sha256\""));
    calotype_image *again = generated(pipeline, receipt);
    CHECK(are_same(again, apple) && calotype_image_free(&again) == CALOTYPE_OK);

    snprintf(path, sizeof path, "%s/apple.png", folder);
    for (int times = 0; times < 2; times++) {
        CHECK(calotype_image_write(apple, path, &error) == CALOTYPE_OK);
        FILE *file = fopen(path, "rb");
        char start[16] = { 0 };
        CHECK(file && fread(start, 1, 8, file) == 8 && memcmp(start, "\x89PNG\r\n\x1a\n", 8) == 0);
        fclose(file);
    }
    snprintf(path, sizeof path, "%s/no/apple.png", folder);
    CHECK(failed_with(calotype_image_write(apple, path, &error), CALOTYPE_OUTPUT, "the image could not be written"));
    snprintf(path, sizeof path, "%s/apple.gif", folder);
    CHECK(failed_with(calotype_image_write(apple, path, &error), CALOTYPE_USAGE, "gif"));

    CHECK(failed_with(calotype_image_write(apple, folder, &error), CALOTYPE_OUTPUT, "expected a file, got a folder"));
    struct stat status;
    snprintf(path, sizeof path, "%s/device.png", folder);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK(failed_with(calotype_image_write(apple, path, &error), CALOTYPE_OUTPUT, "expected a file, got a folder or a device"));
    CHECK(stat(path, &status) == 0 && S_ISFIFO(status.st_mode));

    calotype_pipeline *other = opened((calotype_options){ 0 });
    calotype_image *image = generated(other, APPLE);
    CHECK(calotype_pipeline_free(&other) == CALOTYPE_OK && other == NULL);
    CHECK(calotype_pipeline_free(&other) == CALOTYPE_OK);
    CHECK(failed_with(calotype_pipeline_begin(other, SMALL, &error), CALOTYPE_USAGE, "got NULL"));
    CHECK(are_same(image, apple) && calotype_image_free(&image) == CALOTYPE_OK && image == NULL);
    CHECK(calotype_image_free(&image) == CALOTYPE_OK);

    image = generated(pipeline, OTHER);
    CHECK(!are_same(image, apple) && calotype_image_free(&image) == CALOTYPE_OK);
}

/* Errors fit into what the caller has, whatever its size. */
static void errors(calotype_pipeline *pipeline)
{
    struct {
        calotype_error error;
        char beyond[16];
    } small;
    for (size_t size = 0; size <= sizeof small.error; size += 4) {
        memset(&small, 0x55, sizeof small);
        small.error.size = size;
        CHECK(calotype_pipeline_begin(pipeline, "{}", &small.error) == CALOTYPE_INPUT);
        for (size_t at = size < sizeof(size_t) ? sizeof(size_t) : size; at < sizeof small; at++)
            CHECK(((unsigned char *)&small)[at] == 0x55);
        CHECK(small.error.size == size);
    }
    CHECK(strcmp(small.error.message, "recipe: version: expected 1, got none") == 0);
    CHECK(strcmp(small.error.place, "recipe: version") == 0 && strcmp(small.error.expected, "1") == 0);
    CHECK(strcmp(small.error.got, "none") == 0 && small.error.help[0] == 0);
}

static void note(void *user, const char *text)
{
    if (strstr(text, "xylophone"))
        ++*(unsigned *)user;
}

/* Words of which the model knows nothing are told. */
static void notes(void)
{
    unsigned told = 0;
    calotype_pipeline *pipeline = opened((calotype_options){ .on_note = note, .user = &told });
    calotype_image *image = generated(pipeline, "{\"version\": 1, \"prompt\": \"a red xylophone\", \"steps\": 1, \"size\": \"64x64\"}");
    CHECK(told == 1 && calotype_image_free(&image) == CALOTYPE_OK && calotype_pipeline_free(&pipeline) == CALOTYPE_OK);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2 && strchr(calotype_version(), '.') != NULL);
    opening();
    planning();
    calotype_pipeline *pipeline = opened((calotype_options){ 0 });
    calotype_image *apple = generated(pipeline, APPLE);
    calotype_pixels pixels = pixels_of(apple);
    CHECK(pixels.width_px == 64 && pixels.height_px == 64 && pixels.stride_bytes == 192);
    wrong_recipes(pipeline);
    wrong_handles(pipeline, apple);
    callbacks(pipeline, apple);
    threads(pipeline);
    step_by_step(pipeline, apple);
    snapshots(pipeline, apple);
    images(pipeline, apple, argv[1]);
    errors(pipeline);
    notes();
    CHECK(calotype_pipeline_free(&pipeline) == CALOTYPE_OK && calotype_image_free(&apple) == CALOTYPE_OK);
    puts("all that the header promises was kept");
    return 0;
}
