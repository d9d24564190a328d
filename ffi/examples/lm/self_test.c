/* self_test.c: see self_test.h.
 *
 * The weights are floats, so a difference quotient of a single weight drowns in rounding. Instead
 * each tensor is moved as a whole along directions: once along its own gradient, where the slope is
 * steepest, and along random signs. The slope predicted, gradient times direction, must match
 * (loss(w + h d) - loss(w - h d)) / 2 h to 1 % of the steepest slope.
 */
#include "self_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "job.h"
#include "model.h"

#define DIRECTIONS 4
#define STEP 4e-3 /* the length of h d */
#define TOLERANCE 0.01
#define TENSORS_MAX 32

static const struct lm_shape shape = {.context = 12, .layers = 2, .heads = 2, .width = 16};
static const uint8_t text[] = "The gradient"; /* 12 bytes and the one that follows */

struct check {
    struct lm_model *model;
    size_t count;
    float *weights, *moved, *gradient;
    float *early;              /* the gradient as it was when it was called ready */
    size_t ends[TENSORS_MAX];  /* where each tensor ends, in order of readiness */
    int tensors;
};

static void note_ready(void *context, size_t end)
{
    struct check *check = context;
    size_t begin = check->tensors ? check->ends[check->tensors - 1] : 0;
    memcpy(check->early + begin, check->gradient + begin, (end - begin) * sizeof(float));
    if (check->tensors < TENSORS_MAX)
        check->ends[check->tensors++] = end;
}

/* The loss with weights[begin .. end) moved by `length` along `direction`. */
static double moved_loss(struct check *check, const double *direction, size_t begin, size_t end,
                         double length)
{
    memcpy(check->moved, check->weights, check->count * sizeof(float));
    for (size_t i = begin; i < end; i++)
        check->moved[i] += (float)(length * direction[i - begin]);
    return lm_forward(check->model, check->moved, text, shape.context);
}

/* Direction `which` of unit length over the gradient's tensor [begin .. end). */
static void choose_direction(const struct check *check, double *direction, size_t begin, size_t end,
                             int which)
{
    double square = 0.0;
    for (size_t i = begin; i < end; i++) {
        double sign = lm_random(7, (uint64_t)which, i) & 1 ? 1.0 : -1.0;
        direction[i - begin] = which == 0 ? check->gradient[i] : sign;
        square += direction[i - begin] * direction[i - begin];
    }
    for (size_t i = begin; i < end; i++)
        direction[i - begin] /= sqrt(square > 0.0 ? square : 1.0);
}

/* The largest error of a tensor's slopes, as a share of the steepest one. */
static double tensor_error(struct check *check, size_t begin, size_t end)
{
    double *direction = allocate(end - begin, sizeof *direction);
    double steepest = 0.0, worst = 0.0;
    for (int which = 0; which < DIRECTIONS; which++) {
        double predicted = 0.0;
        choose_direction(check, direction, begin, end, which);
        for (size_t i = begin; i < end; i++)
            predicted += direction[i - begin] * check->gradient[i];
        double measured = (moved_loss(check, direction, begin, end, STEP) -
                           moved_loss(check, direction, begin, end, -STEP)) /
                          (2.0 * STEP);
        if (which == 0)
            steepest = fabs(predicted);
        worst = fmax(worst, fabs(predicted - measured));
    }
    free(direction);
    return steepest > 0.0 ? worst / steepest : INFINITY;
}

/* The tensor's name, from its place in the order of readiness. */
static void name_tensor(char *name, size_t bytes, int tensor)
{
    static const char *const parts[] = {"MLP down",      "MLP up",        "MLP norm",
                                        "attention out", "attention qkv", "attention norm"};
    int in_layers = tensor - 2;
    if (in_layers < 0)
        snprintf(name, bytes, "%s", tensor == 0 ? "head" : "final norm");
    else if (in_layers < 6 * shape.layers)
        snprintf(name, bytes, "layer %d %s", shape.layers - 1 - in_layers / 6,
                 parts[in_layers % 6]);
    else
        snprintf(name, bytes, "%s", in_layers == 6 * shape.layers ? "positions" : "bytes");
}

int self_test(void)
{
    struct check check;
    int failed = 0;
    memset(&check, 0, sizeof check);
    check.model = lm_create(&shape);
    if (!check.model)
        return 1;
    check.count = lm_weight_count(check.model);
    check.weights = allocate(check.count, sizeof(float));
    check.moved = allocate(check.count, sizeof(float));
    check.gradient = allocate(check.count, sizeof(float));
    check.early = allocate(check.count, sizeof(float));
    lm_initialise(check.model, check.weights, 1);
    for (size_t i = 0; i < check.count; i++) /* away from zero, so that norms and head matter */
        check.weights[i] += (float)(0.1 * (lm_uniform(2, 1, i) - 0.5));

    lm_forward(check.model, check.weights, text, shape.context);
    lm_backward(check.model, check.weights, text, shape.context, check.gradient, note_ready,
                &check);
    for (int i = 0; i < check.tensors; i++) {
        char name[40];
        size_t begin = i ? check.ends[i - 1] : 0;
        double error = tensor_error(&check, begin, check.ends[i]);
        failed += !(error <= TOLERANCE);
        name_tensor(name, sizeof name, i);
        printf("%-24s %6zu weights  error %.1e  %s\n", name, check.ends[i] - begin, error,
               error <= TOLERANCE ? "ok" : "WRONG");
    }
    if (check.tensors == 0 || check.ends[check.tensors - 1] != check.count ||
        memcmp(check.early, check.gradient, check.count * sizeof(float)) != 0) {
        printf("a part of the gradient changed after it was called ready\n");
        failed++;
    }
    printf("self-test: %s\n", failed ? "FAILED" : "passed");
    lm_destroy(check.model);
    free(check.weights);
    free(check.moved);
    free(check.gradient);
    free(check.early);
    return failed ? 1 : 0;
}
