/* options.c: one table gives the parser its flags and --help its text. */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const mode_names[] = {"allreduce", "local", "sharded"};

const char *mode_name(enum mode mode)
{
    return mode_names[mode];
}

enum kind { INTEGER, SMALL_INTEGER, SEED, RATE, MODE, DEVICE, TEXT, SWITCH };

struct flag {
    const char *name;
    enum kind kind;
    size_t offset; /* of the field in struct options */
    int64_t low, high;
    const char *help;
};

#define AT(field) offsetof(struct options, field)

static const struct flag flags[] = {
    {"--steps", INTEGER, AT(steps), 0, 1000000000, "training steps in all (600)"},
    {"--batch", INTEGER, AT(batch), 1, 1 << 20, "sequences a step over all ranks (8)"},
    {"--context", SMALL_INTEGER, AT(shape.context), 2, 1 << 16, "bytes in a sequence (64)"},
    {"--layers", SMALL_INTEGER, AT(shape.layers), 1, LM_LAYERS_MAX, "transformer layers (2)"},
    {"--heads", SMALL_INTEGER, AT(shape.heads), 1, 1 << 10, "attention heads (4)"},
    {"--width", SMALL_INTEGER, AT(shape.width), 1, 1 << 14, "width, a multiple of heads (64)"},
    {"--lr", RATE, AT(learning_rate), 0, 0, "learning rate (0.004)"},
    {"--seed", SEED, AT(seed), 0, 0, "of the weights and the data's order (1)"},
    {"--mode", MODE, AT(mode), 0, 0, "allreduce, local or sharded (allreduce)"},
    {"--average-every", INTEGER, AT(average_every), 1, 1 << 30, "local mode: steps between (8)"},
    {"--bucket-kib", INTEGER, AT(bucket_kib), 1, 1 << 20, "size of a gradient bucket (128)"},
    {"--device", DEVICE, AT(device), 0, 1 << 10, "GPU to exchange through: auto, none, N (auto)"},
    {"--deterministic", SWITCH, AT(deterministic), 0, 0, "the same bits on any number of ranks"},
    {"--checkpoint", TEXT, AT(checkpoint), 0, 0, "FILE to write at the end and resume from"},
    {"--checkpoint-every", INTEGER, AT(checkpoint_every), 1, 1 << 30, "also every N steps"},
    {"--resume", SWITCH, AT(resume), 0, 0, "continue from the checkpoint"},
    {"--sample", INTEGER, AT(sample), 0, 1 << 20, "write N bytes with the trained model"},
    {"--timeout-ms", INTEGER, AT(timeout_ms), -1, INT64_MAX, "deadline of a collective call"},
    {"--progress", SWITCH, AT(progress), 0, 0, "a progress bar even without a terminal"},
    {"--quiet", SWITCH, AT(quiet), 0, 0, "no progress, only the result"},
    {"--json", SWITCH, AT(json), 0, 0, "the result as one line of JSON"},
    {"--self-test", SWITCH, AT(self_test), 0, 0, "check the gradients, train nothing"},
};

enum { FLAG_COUNT = sizeof flags / sizeof flags[0] };

static void print_help(void)
{
    static const char *const placeholders[] = {" N", " N", " N", " X", " M", " D", " FILE", ""};
    printf("usage: train_lm [OPTION]... FILE...\n\n"
           "Trains a small byte-level language model on the files, on as many ranks as the\n"
           "launcher starts: unisono run -n 2 -- train_lm --steps 600 README.md\n\n");
    for (int i = 0; i < FLAG_COUNT; i++) {
        char left[40];
        snprintf(left, sizeof left, "%s%s", flags[i].name, placeholders[flags[i].kind]);
        printf("  %-22s %s\n", left, flags[i].help);
    }
    printf("  %-22s %s\n", "--help", "this text");
}

static void usage_error(const char *problem, const char *name, const char *value)
{
    fprintf(stderr, "train_lm: %s%s%s%s%s (see --help)\n", problem, name ? " " : "",
            name ? name : "", value ? " " : "", value ? value : "");
    exit(2);
}

static void bad_value(const struct flag *flag, const char *value)
{
    char text[160];
    if (flag->kind == INTEGER || flag->kind == SMALL_INTEGER)
        snprintf(text, sizeof text, "%s takes an integer from %lld to %lld, not", flag->name,
                 (long long)flag->low, (long long)flag->high);
    else if (flag->kind == SEED)
        snprintf(text, sizeof text, "%s takes an integer from 0 to 2^64 - 1, not", flag->name);
    else if (flag->kind == RATE)
        snprintf(text, sizeof text, "%s takes a number above 0, not", flag->name);
    else if (flag->kind == DEVICE)
        snprintf(text, sizeof text, "%s takes auto, none or the number of a GPU, not", flag->name);
    else
        snprintf(text, sizeof text, "%s takes allreduce, local or sharded, not", flag->name);
    usage_error(text, *value ? value : "''", NULL);
}

/* Stores `value` in `field`; 0 where it is not of the flag's kind or range. */
static int store(const struct flag *flag, char *field, const char *value)
{
    char *end = NULL;
    errno = 0;
    if (flag->kind == TEXT) {
        memcpy(field, &value, sizeof value);
        return 1;
    }
    if (flag->kind == MODE) {
        for (int i = 0; i < 3; i++)
            if (strcmp(value, mode_names[i]) == 0) {
                enum mode mode = (enum mode)i;
                memcpy(field, &mode, sizeof mode);
                return 1;
            }
        return 0;
    }
    if (flag->kind == RATE) {
        double rate = strtod(value, &end);
        memcpy(field, &rate, sizeof rate);
        return end != value && *end == '\0' && rate > 0.0 && isfinite(rate);
    }
    if (flag->kind == SEED) {
        uint64_t seed = strtoull(value, &end, 10);
        memcpy(field, &seed, sizeof seed);
        return *value >= '0' && *value <= '9' && *end == '\0' && errno == 0;
    }
    if (flag->kind == DEVICE && (strcmp(value, "auto") == 0 || strcmp(value, "none") == 0)) {
        int device = *value == 'a' ? DEVICE_AUTO : DEVICE_NONE;
        memcpy(field, &device, sizeof device);
        return 1;
    }
    int64_t number = strtoll(value, &end, 10);
    int small = (int)number;
    if (flag->kind == SMALL_INTEGER || flag->kind == DEVICE)
        memcpy(field, &small, sizeof small);
    else
        memcpy(field, &number, sizeof number);
    return end != value && *end == '\0' && errno == 0 && number >= flag->low &&
           number <= flag->high;
}

static const struct flag *find_flag(const char *name, size_t length)
{
    for (int i = 0; i < FLAG_COUNT; i++)
        if (strlen(flags[i].name) == length && memcmp(flags[i].name, name, length) == 0)
            return &flags[i];
    return NULL;
}

/* Reads the flag at argv[i], as `--name value` or `--name=value`; returns the last index used. */
static int parse_flag(struct options *options, int argc, char **argv, int i)
{
    const char *equals = strchr(argv[i], '=');
    size_t length = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
    const struct flag *flag = find_flag(argv[i], length);
    if (!flag)
        usage_error("unknown option", argv[i], NULL);
    char *field = (char *)options + flag->offset;
    if (flag->kind == SWITCH) {
        const int on = 1;
        if (equals)
            usage_error("no value goes with", flag->name, NULL);
        memcpy(field, &on, sizeof on);
        return i;
    }
    if (!equals && i + 1 == argc)
        usage_error("a value is missing after", flag->name, NULL);
    const char *value = equals ? equals + 1 : argv[++i];
    if (!store(flag, field, value))
        bad_value(flag, value);
    return i;
}

static void check_together(const struct options *options)
{
    if (options->shape.width % options->shape.heads != 0)
        usage_error("--width must be a multiple of --heads", NULL, NULL);
    if (options->resume && !options->checkpoint)
        usage_error("--resume needs --checkpoint FILE", NULL, NULL);
    if (options->checkpoint_every && !options->checkpoint)
        usage_error("--checkpoint-every needs --checkpoint FILE", NULL, NULL);
    if (options->mode == MODE_LOCAL && options->checkpoint_every % options->average_every != 0)
        usage_error("in local mode --checkpoint-every must be a multiple of --average-every", NULL,
                    NULL);
    if (options->file_count == 0 && !options->self_test)
        usage_error("no text file given to train on", NULL, NULL);
}

void options_parse(struct options *options, int argc, char **argv)
{
    const struct options defaults = {
        .shape = {.context = 64, .layers = 2, .heads = 4, .width = 64},
        .steps = 600,
        .batch = 8,
        .average_every = 8,
        .bucket_kib = 128,
        .seed = 1,
        .learning_rate = 0.004,
        .mode = MODE_ALLREDUCE,
        .device = DEVICE_AUTO,
    };
    *options = defaults;
    const char *device = getenv("UNISONO_DEVICE"); /* as for the library; it refuses nonsense */
    if (device && !store(find_flag("--device", 8), (char *)&options->device, device))
        options->device = DEVICE_AUTO;
    int files = 1; /* the files are moved to the front of argv */
    for (int i = 1, only_files = 0; i < argc; i++) {
        if (!only_files && strcmp(argv[i], "--help") == 0) {
            print_help();
            exit(0);
        } else if (!only_files && strcmp(argv[i], "--") == 0) {
            only_files = 1;
        } else if (!only_files && argv[i][0] == '-' && argv[i][1] != '\0') {
            i = parse_flag(options, argc, argv, i);
        } else {
            argv[files++] = argv[i];
        }
    }
    options->files = argv + 1;
    options->file_count = files - 1;
    check_together(options);
}
