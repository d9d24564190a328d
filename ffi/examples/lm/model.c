/* model.c: see model.h. Every sum runs in one fixed order, so equal inputs give equal bits. */
#include "model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor.h"

/* Where each tensor starts in the weight vector; [rows, columns] of a matrix beside it. */
struct layer_offsets {
    size_t down;           /* [4C, C] */
    size_t up;             /* [C, 4C] */
    size_t mlp_norm;       /* [C] */
    size_t out;            /* [C, C] */
    size_t qkv;            /* [C, 3C] */
    size_t attention_norm; /* [C] */
};

struct offsets {
    size_t head;       /* [C, V] */
    size_t final_norm; /* [C] */
    struct layer_offsets layer[LM_LAYERS_MAX];
    size_t positions; /* [context, C] */
    size_t bytes;     /* [V, C] */
    size_t count;
};

/* What the forward pass keeps for the backward pass. */
struct layer_state {
    float *input;          /* [T, C] the residual stream before the layer */
    float *attention_norm; /* [T, C] */
    float *attention_rms;  /* [T] reciprocal root mean squares */
    float *qkv;            /* [T, 3C] */
    float *attention;      /* [H, T, T] probabilities */
    float *mix;            /* [T, C] */
    float *middle;         /* [T, C] the residual stream between attention and MLP */
    float *mlp_norm;       /* [T, C] */
    float *mlp_rms;        /* [T] */
    float *relu;           /* [T, 4C] */
    float *squared;        /* [T, 4C] */
};

struct lm_model {
    struct lm_shape shape;
    struct offsets at;
    struct layer_state layer[LM_LAYERS_MAX];
    float *output;        /* [T, C] the residual stream after the last layer */
    float *final_norm;    /* [T, C] */
    float *final_rms;     /* [T] */
    float *probabilities; /* [T, V] */
    float *d_residual;    /* [T, C] */
    float *d_norm;        /* [T, C] */
    float *d_mix;         /* [T, C] */
    float *d_qkv;         /* [T, 3C] */
    float *d_wide;        /* [T, max(4C, V)] */
    float *scratch;       /* of tensor.c: transposed operands, one head's matrices */
    float *arena;         /* all of the above */
};

/* ---- layout ---- */

static size_t take(size_t *next, size_t rows, size_t columns)
{
    size_t start = *next;
    *next += rows * columns;
    return start;
}

static void lay_out(struct offsets *at, const struct lm_shape *shape)
{
    size_t width = (size_t)shape->width, next = 0;
    at->head = take(&next, width, LM_VOCABULARY);
    at->final_norm = take(&next, 1, width);
    for (int l = shape->layers - 1; l >= 0; l--) {
        at->layer[l].down = take(&next, 4 * width, width);
        at->layer[l].up = take(&next, width, 4 * width);
        at->layer[l].mlp_norm = take(&next, 1, width);
        at->layer[l].out = take(&next, width, width);
        at->layer[l].qkv = take(&next, width, 3 * width);
        at->layer[l].attention_norm = take(&next, 1, width);
    }
    at->positions = take(&next, (size_t)shape->context, width);
    at->bytes = take(&next, LM_VOCABULARY, width);
    at->count = next;
}

/* Carves `count` floats out of the arena; with a NULL arena only counts. */
static float *carve(float *arena, size_t *used, size_t count)
{
    float *piece = arena ? arena + *used : NULL;
    *used += (count + 15) / 16 * 16;
    return piece;
}

/* Points every activation into `arena`; returns the number of floats needed. */
static size_t place(struct lm_model *model, float *arena)
{
    size_t tokens = (size_t)model->shape.context, width = (size_t)model->shape.width;
    size_t heads = (size_t)model->shape.heads, plane = tokens * width, used = 0;
    size_t wide = 4 * width > LM_VOCABULARY ? 4 * width : LM_VOCABULARY;
    for (int l = 0; l < model->shape.layers; l++) {
        struct layer_state *layer = &model->layer[l];
        layer->input = carve(arena, &used, plane);
        layer->attention_norm = carve(arena, &used, plane);
        layer->attention_rms = carve(arena, &used, tokens);
        layer->qkv = carve(arena, &used, 3 * plane);
        layer->attention = carve(arena, &used, heads * tokens * tokens);
        layer->mix = carve(arena, &used, plane);
        layer->middle = carve(arena, &used, plane);
        layer->mlp_norm = carve(arena, &used, plane);
        layer->mlp_rms = carve(arena, &used, tokens);
        layer->relu = carve(arena, &used, 4 * plane);
        layer->squared = carve(arena, &used, 4 * plane);
    }
    model->output = carve(arena, &used, plane);
    model->final_norm = carve(arena, &used, plane);
    model->final_rms = carve(arena, &used, tokens);
    model->probabilities = carve(arena, &used, tokens * LM_VOCABULARY);
    model->d_residual = carve(arena, &used, plane);
    model->d_norm = carve(arena, &used, plane);
    model->d_mix = carve(arena, &used, plane);
    model->d_qkv = carve(arena, &used, 3 * plane);
    model->d_wide = carve(arena, &used, tokens * wide);
    size_t linear = linear_scratch(tokens, width, wide);
    size_t linear_down = linear_scratch(tokens, 4 * width, width);
    size_t attention = attention_scratch(tokens, width / heads);
    linear = linear > linear_down ? linear : linear_down;
    model->scratch = carve(arena, &used, linear > attention ? linear : attention);
    return used;
}

struct lm_model *lm_create(const struct lm_shape *shape)
{
    struct lm_model *model = calloc(1, sizeof *model);
    if (!model)
        return NULL;
    model->shape = *shape;
    lay_out(&model->at, shape);
    model->arena = calloc(place(model, NULL), sizeof(float));
    if (!model->arena) {
        free(model);
        return NULL;
    }
    place(model, model->arena);
    return model;
}

void lm_destroy(struct lm_model *model)
{
    if (model)
        free(model->arena);
    free(model);
}

size_t lm_weight_count(const struct lm_model *model)
{
    return model->at.count;
}

/* ---- randomness and initial weights ---- */

/* The finaliser of SplitMix64. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t lm_random(uint64_t seed, uint64_t a, uint64_t b)
{
    return mix(mix(mix(seed) ^ a) ^ b);
}

double lm_uniform(uint64_t seed, uint64_t a, uint64_t b)
{
    return (double)(lm_random(seed, a, b) >> 11) / 9007199254740992.0; /* 2^53 */
}

/* Uniform with the given standard deviation. */
static void fill(float *weights, size_t start, size_t count, double deviation, uint64_t seed)
{
    double half_range = deviation * sqrt(3.0);
    for (size_t i = start; i < start + count; i++)
        weights[i] = (float)(half_range * (2.0 * lm_uniform(seed, 0, i) - 1.0));
}

void lm_initialise(const struct lm_model *model, float *weights, uint64_t seed)
{
    const struct offsets *at = &model->at;
    size_t width = (size_t)model->shape.width, square = width * width;
    double narrow = 1.0 / sqrt((double)width);
    double residual = 1.0 / sqrt(2.0 * model->shape.layers);
    /* Norm gains are stored as their distance from 1, so zero, which weight decay pulls them to. */
    memset(weights, 0, at->count * sizeof *weights);
    fill(weights, at->head, width * LM_VOCABULARY, 0.1 * narrow, seed);
    for (int l = 0; l < model->shape.layers; l++) {
        const struct layer_offsets *layer = &at->layer[l];
        fill(weights, layer->down, 4 * square, 0.5 * narrow * residual, seed);
        fill(weights, layer->up, 4 * square, narrow, seed);
        fill(weights, layer->out, square, narrow * residual, seed);
        fill(weights, layer->qkv, 3 * square, narrow, seed);
    }
    fill(weights, at->positions, (size_t)model->shape.context * width, 0.1, seed);
    fill(weights, at->bytes, LM_VOCABULARY * width, 0.3, seed);
}

/* ---- forward ---- */

/* layer->input [T, C] -> output [T, C] */
static void layer_forward(struct lm_model *model, int l, const float *weights, float *output,
                          size_t tokens)
{
    const struct layer_offsets *at = &model->at.layer[l];
    struct layer_state *layer = &model->layer[l];
    size_t width = (size_t)model->shape.width, plane = tokens * width;

    norm(layer->attention_norm, layer->attention_rms, layer->input, weights + at->attention_norm,
         tokens, width);
    linear(layer->qkv, layer->attention_norm, weights + at->qkv, tokens, width, 3 * width);
    attention(layer->mix, layer->attention, layer->qkv, tokens, (size_t)model->shape.heads, width,
              model->scratch);
    memcpy(layer->middle, layer->input, plane * sizeof(float));
    linear_add(layer->middle, layer->mix, weights + at->out, tokens, width, width);

    norm(layer->mlp_norm, layer->mlp_rms, layer->middle, weights + at->mlp_norm, tokens, width);
    linear(layer->relu, layer->mlp_norm, weights + at->up, tokens, width, 4 * width);
    squared_relu(layer->squared, layer->relu, 4 * plane);
    memcpy(output, layer->middle, plane * sizeof(float));
    linear_add(output, layer->squared, weights + at->down, tokens, 4 * width, width);
}

/* text [T] -> probabilities [T, V] of each next byte */
static void forward(struct lm_model *model, const float *weights, const uint8_t *text,
                    size_t tokens)
{
    const struct offsets *at = &model->at;
    size_t width = (size_t)model->shape.width;
    int layers = model->shape.layers;
    for (size_t t = 0; t < tokens; t++) {
        const float *byte = weights + at->bytes + text[t] * width;
        const float *position = weights + at->positions + t * width;
        for (size_t c = 0; c < width; c++)
            model->layer[0].input[t * width + c] = byte[c] + position[c];
    }
    for (int l = 0; l < layers; l++) {
        float *output = l + 1 < layers ? model->layer[l + 1].input : model->output;
        layer_forward(model, l, weights, output, tokens);
    }
    norm(model->final_norm, model->final_rms, model->output, weights + at->final_norm, tokens,
         width);
    linear(model->probabilities, model->final_norm, weights + at->head, tokens, width,
           LM_VOCABULARY);
    for (size_t t = 0; t < tokens; t++)
        softmax(model->probabilities + t * LM_VOCABULARY, LM_VOCABULARY);
}

const float *lm_predict(struct lm_model *model, const float *weights, const uint8_t *text,
                        int tokens)
{
    forward(model, weights, text, (size_t)tokens);
    return model->probabilities + (size_t)(tokens - 1) * LM_VOCABULARY;
}

double lm_forward(struct lm_model *model, const float *weights, const uint8_t *text, int tokens)
{
    double loss = 0.0;
    forward(model, weights, text, (size_t)tokens);
    for (size_t t = 0; t < (size_t)tokens; t++) {
        double probability = model->probabilities[t * LM_VOCABULARY + text[t + 1]];
        loss -= log(probability > 1e-30 ? probability : 1e-30);
    }
    return loss / tokens;
}

/* ---- backward ---- */

struct notice {
    lm_ready *ready;
    void *context;
};

static void tell(struct notice notice, size_t end)
{
    if (notice.ready)
        notice.ready(notice.context, end);
}

/* model->d_residual [T, C]: the gradient of the layer's output -> that of its input */
static void layer_backward(struct lm_model *model, int l, const float *weights, float *gradient,
                           size_t tokens, struct notice notice)
{
    const struct layer_offsets *at = &model->at.layer[l];
    struct layer_state *layer = &model->layer[l];
    size_t width = (size_t)model->shape.width;

    linear_backward(model->d_wide, gradient + at->down, model->d_residual, layer->squared,
                    weights + at->down, tokens, 4 * width, width, model->scratch);
    tell(notice, at->up);
    squared_relu_backward(model->d_wide, layer->relu, 4 * tokens * width);
    linear_backward(model->d_norm, gradient + at->up, model->d_wide, layer->mlp_norm,
                    weights + at->up, tokens, width, 4 * width, model->scratch);
    tell(notice, at->mlp_norm);
    norm_backward(model->d_residual, gradient + at->mlp_norm, model->d_norm, layer->middle,
                  layer->mlp_rms, weights + at->mlp_norm, tokens, width);
    tell(notice, at->out);

    linear_backward(model->d_mix, gradient + at->out, model->d_residual, layer->mix,
                    weights + at->out, tokens, width, width, model->scratch);
    tell(notice, at->qkv);
    attention_backward(model->d_qkv, model->d_mix, layer->attention, layer->qkv, tokens,
                       (size_t)model->shape.heads, width, model->scratch);
    linear_backward(model->d_norm, gradient + at->qkv, model->d_qkv, layer->attention_norm,
                    weights + at->qkv, tokens, width, 3 * width, model->scratch);
    tell(notice, at->attention_norm);
    norm_backward(model->d_residual, gradient + at->attention_norm, model->d_norm, layer->input,
                  layer->attention_rms, weights + at->attention_norm, tokens, width);
    tell(notice, at->attention_norm + width);
}

void lm_backward(struct lm_model *model, const float *weights, const uint8_t *text, int tokens,
                 float *gradient, lm_ready *ready, void *context)
{
    const struct offsets *at = &model->at;
    struct notice notice = {ready, context};
    size_t length = (size_t)tokens, width = (size_t)model->shape.width;
    memset(gradient, 0, at->count * sizeof *gradient);

    /* Of the mean cross-entropy by the logits: (probability - [this byte followed]) / T. */
    for (size_t t = 0; t < length; t++) {
        float *d_logits = model->d_wide + t * LM_VOCABULARY;
        for (size_t v = 0; v < LM_VOCABULARY; v++)
            d_logits[v] = model->probabilities[t * LM_VOCABULARY + v] / (float)tokens;
        d_logits[text[t + 1]] -= 1.0f / (float)tokens;
    }
    linear_backward(model->d_norm, gradient + at->head, model->d_wide, model->final_norm,
                    weights + at->head, length, width, LM_VOCABULARY, model->scratch);
    tell(notice, at->final_norm);
    memset(model->d_residual, 0, length * width * sizeof(float));
    norm_backward(model->d_residual, gradient + at->final_norm, model->d_norm, model->output,
                  model->final_rms, weights + at->final_norm, length, width);
    tell(notice, at->final_norm + width);
    for (int l = model->shape.layers - 1; l >= 0; l--)
        layer_backward(model, l, weights, gradient, length, notice);
    for (size_t t = 0; t < length; t++) {
        add(gradient + at->positions + t * width, model->d_residual + t * width, width);
        add(gradient + at->bytes + text[t] * width, model->d_residual + t * width, width);
    }
    tell(notice, at->bytes);
    tell(notice, at->count);
}
