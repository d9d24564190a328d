/* tensor.h: the tensor functions of the model, each with its derivative.
 *
 * All tensors are row-major floats. A `_backward` function takes the gradient of the output (`d_`
 * and the output's name) and gives that of the inputs. T is the number of tokens, C a width.
 * `scratch` is working memory of the size that the matching `_scratch` function returns.
 */
#ifndef LM_TENSOR_H
#define LM_TENSOR_H

#include <stddef.h>

/* sum[i] += term[i] */
void add(float *sum, const float *term, size_t count);

/* out [T, outs] = in [T, ins] x weight [ins, outs]; linear_add adds to what is there. */
void linear(float *out, const float *in, const float *weight, size_t tokens, size_t ins,
            size_t outs);
void linear_add(float *out, const float *in, const float *weight, size_t tokens, size_t ins,
                size_t outs);
/* d_in [T, ins] is overwritten, d_weight [ins, outs] added to. */
void linear_backward(float *d_in, float *d_weight, const float *d_out, const float *in,
                     const float *weight, size_t tokens, size_t ins, size_t outs, float *scratch);
size_t linear_scratch(size_t tokens, size_t ins, size_t outs);

/* out [T, C] = in * reciprocal_rms [T] * (1 + gain [C]) */
void norm(float *out, float *reciprocal_rms, const float *in, const float *gain, size_t tokens,
          size_t width);
/* d_in [T, C] and d_gain [C] are added to. */
void norm_backward(float *d_in, float *d_gain, const float *d_out, const float *in,
                   const float *reciprocal_rms, const float *gain, size_t tokens, size_t width);

/* values [count]: the exponentials, scaled to a sum of 1 */
void softmax(float *values, size_t count);

/* relu = max(relu, 0) in place; out = relu * relu */
void squared_relu(float *out, float *relu, size_t count);
/* d: the gradient of `out` -> that of the input, in place */
void squared_relu_backward(float *d, const float *relu, size_t count);

/* Causal attention: qkv [T, 3C] -> out [T, C]; probabilities [heads, T, T] are kept. */
void attention(float *out, float *probabilities, const float *qkv, size_t tokens, size_t heads,
               size_t width, float *scratch);
/* d_qkv [T, 3C] is overwritten. */
void attention_backward(float *d_qkv, const float *d_out, const float *probabilities,
                        const float *qkv, size_t tokens, size_t heads, size_t width,
                        float *scratch);
size_t attention_scratch(size_t tokens, size_t head_width);

#endif
