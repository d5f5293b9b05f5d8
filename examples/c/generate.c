/* Draws an image with the built-in model, or another: generate PROMPT OUT.png [MODEL] */
#include <calotype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int on_step(void *user, const calotype_progress *progress)
{
    (void)user;
    fprintf(stderr, "\rstep %u of %u", progress->done, progress->steps);
    return 0; /* Another number ends the run. */
}

static void on_note(void *user, const char *text)
{
    (void)user;
    fprintf(stderr, "note: %s\n", text);
}

/* A recipe with this prompt, which is quoted as JSON wants it. */
static char *recipe_of(const char *prompt)
{
    char *recipe = malloc(6 * strlen(prompt) + 64), *at = recipe;
    if (!recipe)
        return NULL;
    at += sprintf(at, "{\"version\": 1, \"seed\": 1, \"prompt\": \"");
    for (; *prompt; prompt++) {
        unsigned char byte = (unsigned char)*prompt;
        if (byte == '"' || byte == '\\' || byte < 0x20)
            at += sprintf(at, "\\u%04x", byte);
        else
            *at++ = *prompt;
    }
    strcpy(at, "\"}");
    return recipe;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s PROMPT OUT.png [MODEL]\n", argv[0]);
        return CALOTYPE_USAGE;
    }
    calotype_options options = { .size = sizeof options, .model = argc > 3 ? argv[3] : NULL, .on_note = on_note };
    calotype_callbacks callbacks = { .size = sizeof callbacks, .on_step = on_step };
    calotype_error error = { .size = sizeof error };
    calotype_pipeline *pipeline = NULL;
    calotype_image *image = NULL;
    char *recipe = recipe_of(argv[1]);

    int status = recipe ? calotype_pipeline_open(&options, &pipeline, &error) : CALOTYPE_MEMORY;
    if (!status)
        status = calotype_pipeline_generate(pipeline, recipe, &callbacks, &image, &error);
    if (!status)
        status = calotype_image_write(image, argv[2], &error);
    if (status)
        fprintf(stderr, "\n%s\n", error.message);
    else
        fprintf(stderr, "\n%s: calotype %s\n", argv[2], calotype_version());

    calotype_image_free(&image);
    calotype_pipeline_free(&pipeline);
    free(recipe);
    return status;
}
