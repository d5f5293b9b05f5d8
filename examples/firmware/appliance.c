/*
 * The main loop of an appliance that draws one image after another: appliance STATE_FOLDER WATCHDOG COUNT [MEMORY_MIB]
 *
 * - A fixed memory budget: the largest request is planned once at the start, or the program says that it does not fit.
 * - A watchdog (/dev/watchdog, or any file) is kicked from the callback, that is after each step, and between images. Its time must be
 *   longer than opening the model and the longest step together.
 * - After a power failure it goes on where the last snapshot was, to the same bytes: STATE_FOLDER/run has the number of the image and
 *   the snapshot of its run, and is replaced whole.
 * - Nothing is written outside of STATE_FOLDER, so that all else can be read-only.
 * - SIGTERM stops it after the step that runs, with a snapshot.
 */
#define _POSIX_C_SOURCE 200809L
#include <calotype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SNAPSHOT_EVERY = 2, MAX_STATE_BYTES = 64 << 20 };

static const char *const PROMPTS[] = { "a red apple on a blue background", "a green cat", "a rocket, 3d style" };

static volatile sig_atomic_t is_stopped;
static int state_folder, watchdog;
static unsigned long number;
static calotype_error error = { .size = sizeof error };

static void stop(int signal)
{
    (void)signal;
    is_stopped = 1;
}

static void kick(void)
{
    /* What keeps the device from resetting: a byte every few seconds. One that cannot be kicked resets it, as it should. */
    ssize_t written = write(watchdog, "k", 1);
    (void)written;
}

static int put(int file, const void *bytes, size_t length)
{
    for (const char *at = bytes; length > 0;) {
        ssize_t written = write(file, at, length);
        if (written < 0 && errno != EINTR)
            return -1;
        if (written > 0) {
            at += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

/* Replaces the state whole: written under another name, on the disk, then renamed, and the name on the disk as well. */
static int save(const void *snapshot, size_t snapshot_bytes)
{
    unsigned long header[2] = { number, (unsigned long)snapshot_bytes };
    int file = openat(state_folder, "run.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0)
        return -1;
    int failed = put(file, header, sizeof header) || put(file, snapshot, snapshot_bytes) || fsync(file);
    failed |= close(file);
    return failed || renameat(state_folder, "run.new", state_folder, "run") || fsync(state_folder) ? -1 : 0;
}

/* The state of before: the number of the image, and the snapshot of its run where it was begun; NULL where it was not, and where the
 * file is not one. The snapshot itself is checked by the library. */
static void *load(size_t *snapshot_bytes)
{
    unsigned long header[2];
    struct stat status;
    void *snapshot = NULL;
    int file = openat(state_folder, "run", O_RDONLY | O_CLOEXEC);
    *snapshot_bytes = 0;
    if (file < 0)
        return NULL;
    if (read(file, header, sizeof header) == (ssize_t)sizeof header && fstat(file, &status) == 0 && header[1] > 0 &&
        header[1] <= MAX_STATE_BYTES && (off_t)(header[1] + sizeof header) == status.st_size &&
        (snapshot = malloc(header[1])) != NULL) {
        size_t done = 0;
        ssize_t got;
        while (done < header[1] && (got = read(file, (char *)snapshot + done, header[1] - done)) > 0)
            done += (size_t)got;
        *snapshot_bytes = done;
    }
    if (lseek(file, 0, SEEK_SET) == 0 && read(file, header, sizeof header) == (ssize_t)sizeof header)
        number = header[0];
    close(file);
    return snapshot;
}

static int on_step(void *user, const calotype_progress *progress)
{
    (void)user;
    kick();
    if (progress->snapshot && save(progress->snapshot, progress->snapshot_bytes))
        fprintf(stderr, "the state was not saved: %s\n", strerror(errno)); /* The image is drawn anyway. */
    return is_stopped;
}

static void on_note(void *user, const char *text)
{
    (void)user;
    fprintf(stderr, "note: %s\n", text);
}

/* Draws an image, from a snapshot if there is one, and writes it. */
static int draw(calotype_pipeline *pipeline, const char *folder, const void *snapshot, size_t snapshot_bytes)
{
    calotype_callbacks callbacks = { .size = sizeof callbacks, .on_step = on_step, .snapshot_every = SNAPSHOT_EVERY };
    calotype_progress progress = { .size = sizeof progress };
    calotype_image *image = NULL;
    char recipe[256], path[4096];
    /* With a seed: a run with a random one cannot go on after a power failure. */
    snprintf(recipe, sizeof recipe, "{\"version\": 1, \"prompt\": \"%s\", \"seed\": %lu, \"steps\": 12}",
             PROMPTS[number % (sizeof PROMPTS / sizeof *PROMPTS)], number);
    snprintf(path, sizeof path, "%s/image-%lu.png", folder, number);

    int status = CALOTYPE_INPUT;
    if (snapshot) {
        status = calotype_pipeline_restore(pipeline, recipe, snapshot, snapshot_bytes, &error);
        if (status == CALOTYPE_INPUT)
            fprintf(stderr, "%s: the image starts over\n", error.message);
        else if (!status && !calotype_pipeline_progress(pipeline, &progress, &error))
            fprintf(stderr, "image %lu: resumed after step %u of %u\n", number, progress.done, progress.steps);
    }
    if (status == CALOTYPE_INPUT)
        status = calotype_pipeline_begin(pipeline, recipe, &error);
    if (!status)
        status = calotype_pipeline_run(pipeline, &callbacks, &image, &error);
    if (status == CALOTYPE_CANCELLED && !calotype_pipeline_snapshot(pipeline, (const uint8_t **)&snapshot, &snapshot_bytes, &error)) {
        if (save(snapshot, snapshot_bytes))
            fprintf(stderr, "the state was not saved: %s\n", strerror(errno));
        fprintf(stderr, "image %lu: stopped\n", number);
        return CALOTYPE_CANCELLED;
    }
    if (!status)
        status = calotype_image_write(image, path, &error);
    calotype_image_free(&image);
    if (!status) {
        fprintf(stderr, "image %lu: %s\n", number, path);
        number++;
        if (save(NULL, 0))
            fprintf(stderr, "the state was not saved: %s\n", strerror(errno));
    }
    return status;
}

int main(int argc, char **argv)
{
    /* First of all, while there is one thread: ONNX Runtime would note in the user's home that it was started. */
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);
    struct sigaction action = { .sa_handler = stop };
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (argc < 4) {
        fprintf(stderr, "usage: %s STATE_FOLDER WATCHDOG COUNT [MEMORY_MIB]\n", argv[0]);
        return CALOTYPE_USAGE;
    }
    unsigned long count = strtoul(argv[3], NULL, 10);
    state_folder = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    watchdog = open(argv[2], O_WRONLY | O_APPEND | O_CLOEXEC);
    if (state_folder < 0 || watchdog < 0) {
        fprintf(stderr, "%s: %s\n", state_folder < 0 ? argv[1] : argv[2], strerror(errno));
        return CALOTYPE_OUTPUT;
    }

    calotype_options options = { .size = sizeof options, .on_note = on_note };
    options.memory_bytes = (uint64_t)(argc > 4 ? strtoul(argv[4], NULL, 10) : 128) << 20;
    calotype_plan plan = { .size = sizeof plan };
    calotype_pipeline *pipeline = NULL;
    int status = calotype_pipeline_open(&options, &pipeline, &error);
    /* The prompt with the most tokens. */
    if (!status)
        status = calotype_pipeline_plan(pipeline, "{\"version\": 1, \"prompt\": \"a red apple on a blue background\"}", &plan, &error);
    if (!status)
        fprintf(stderr, "planned peak: %llu KiB of %llu KiB\n", (unsigned long long)plan.peak_bytes >> 10,
                (unsigned long long)plan.budget_bytes >> 10);

    size_t snapshot_bytes = 0;
    void *snapshot = load(&snapshot_bytes);
    while (!status && !is_stopped && number < count) {
        kick();
        status = draw(pipeline, argv[1], snapshot, snapshot_bytes);
        free(snapshot);
        snapshot = NULL;
    }
    free(snapshot);
    if (status && status != CALOTYPE_CANCELLED)
        fprintf(stderr, "%s\n", error.message);
    calotype_pipeline_free(&pipeline);
    return status == CALOTYPE_CANCELLED && is_stopped ? 0 : status;
}
