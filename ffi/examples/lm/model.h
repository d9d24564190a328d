/* model.h: a byte-level transformer language model with its forward and backward pass.
 *
 *   bytes + positions -> [ RMS norm -> attention -> + ; RMS norm -> MLP -> + ] x layers
 *                     -> RMS norm -> head -> softmax over 256 bytes
 *
 * No biases; the MLP is 4 times as wide and its activation is the squared ReLU. In the comments
 * T is the number of tokens (bytes) in a sequence, C the width, H the heads, D = C / H, V = 256.
 *
 * All weights are one flat vector of floats, their gradient another of the same layout. The order
 * is the order in which the backward pass finishes: the head first, the embeddings last. So the
 * gradient's front is final, and can travel to other ranks, while its rest is being computed.
 *
 * Thread rule: one thread at a time per model; a model owns its activations, not the weights.
 */
#ifndef LM_MODEL_H
#define LM_MODEL_H

#include <stddef.h>
#include <stdint.h>

#define LM_VOCABULARY 256
#define LM_LAYERS_MAX 64

struct lm_shape {
    int context; /* the longest sequence, in bytes */
    int layers;
    int heads;
    int width; /* a multiple of heads */
};

struct lm_model;

/* Told during the backward pass that gradient[0 .. end) has its final value. */
typedef void lm_ready(void *context, size_t end);

/* NULL where memory is short. */
struct lm_model *lm_create(const struct lm_shape *shape);
void lm_destroy(struct lm_model *model);

/* The length of the weight vector. */
size_t lm_weight_count(const struct lm_model *model);

/* Fills the weights; each depends on the seed and its own index alone. */
void lm_initialise(const struct lm_model *model, float *weights, uint64_t seed);

/* Reads text[0 .. tokens); returns the probabilities [V] of the byte that follows. */
const float *lm_predict(struct lm_model *model, const float *weights, const uint8_t *text,
                        int tokens);

/* Reads text[0 .. tokens]; returns the mean loss, in nats a byte, of predicting each byte from
 * those before it. */
double lm_forward(struct lm_model *model, const float *weights, const uint8_t *text, int tokens);

/* Overwrites `gradient` with that of the last lm_forward, which had the same arguments. `ready` is
 * called each time another tensor is complete; it may be NULL. */
void lm_backward(struct lm_model *model, const float *weights, const uint8_t *text, int tokens,
                 float *gradient, lm_ready *ready, void *context);

/* A well mixed function of its arguments: the source of all randomness here. */
uint64_t lm_random(uint64_t seed, uint64_t a, uint64_t b);

/* The same as a number in [0, 1). */
double lm_uniform(uint64_t seed, uint64_t a, uint64_t b);

#endif
