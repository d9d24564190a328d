/* tensor.c: see tensor.h. One matrix product carries nearly all the work; its inner loop runs along
 * rows, so that a compiler vectorises it without reordering any sum. */
#include "tensor.h"

#include <math.h>
#include <string.h>

/* A fused multiply-add where the processor has one, the same on every element either way. */
#ifdef FP_FAST_FMAF
#define MULTIPLY_ADD(a, b, c) fmaf(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

#define NORM_EPSILON 1e-5f

void add(float *restrict sum, const float *restrict term, size_t count)
{
    for (size_t i = 0; i < count; i++)
        sum[i] += term[i];
}

/* The dot product of two vectors in eight interleaved partial sums. */
static float dot(const float *restrict a, const float *restrict b, size_t count)
{
    float lanes[8] = {0};
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (size_t lane = 0; lane < 8; lane++)
            lanes[lane] = MULTIPLY_ADD(a[i + lane], b[i + lane], lanes[lane]);
    for (; i < count; i++)
        lanes[i % 8] = MULTIPLY_ADD(a[i], b[i], lanes[i % 8]);
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
           ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

/* row [columns] += factors[0 .. 4) x rows [4, columns] */
static void add_four_rows(float *restrict row, const float *restrict factors,
                          const float *restrict rows, size_t columns)
{
    const float f0 = factors[0], f1 = factors[1], f2 = factors[2], f3 = factors[3];
    const float *restrict r0 = rows, *restrict r1 = rows + columns;
    const float *restrict r2 = rows + 2 * columns, *restrict r3 = rows + 3 * columns;
    for (size_t j = 0; j < columns; j++) {
        float sum = MULTIPLY_ADD(f0, r0[j], row[j]);
        sum = MULTIPLY_ADD(f1, r1[j], sum);
        sum = MULTIPLY_ADD(f2, r2[j], sum);
        row[j] = MULTIPLY_ADD(f3, r3[j], sum);
    }
}

/* out [rows, columns] += a [rows, inner] x b [inner, columns] */
static void product_add(float *restrict out, const float *restrict a, const float *restrict b,
                        size_t rows, size_t inner, size_t columns)
{
    for (size_t i = 0; i < rows; i++) {
        float *row = out + i * columns;
        const float *factors = a + i * inner;
        size_t k = 0;
        for (; k + 4 <= inner; k += 4)
            add_four_rows(row, factors + k, b + k * columns, columns);
        for (; k < inner; k++)
            for (size_t j = 0; j < columns; j++)
                row[j] = MULTIPLY_ADD(factors[k], b[k * columns + j], row[j]);
    }
}

/* The same, but `out` is overwritten. */
static void product(float *restrict out, const float *restrict a, const float *restrict b,
                    size_t rows, size_t inner, size_t columns)
{
    memset(out, 0, rows * columns * sizeof *out);
    product_add(out, a, b, rows, inner, columns);
}

/* out [columns, rows] = in [rows, columns] whose rows are `stride` apart, transposed */
static void transpose(float *restrict out, const float *restrict in, size_t stride, size_t rows,
                      size_t columns)
{
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            out[j * rows + i] = in[i * stride + j];
}

/* Copies [rows, columns] between matrices with different distances between rows. */
static void copy_block(float *restrict out, size_t out_stride, const float *restrict in,
                       size_t in_stride, size_t rows, size_t columns)
{
    for (size_t i = 0; i < rows; i++)
        memcpy(out + i * out_stride, in + i * in_stride, columns * sizeof *out);
}

/* ---- linear ---- */

void linear(float *out, const float *in, const float *weight, size_t tokens, size_t ins,
            size_t outs)
{
    product(out, in, weight, tokens, ins, outs);
}

void linear_add(float *out, const float *in, const float *weight, size_t tokens, size_t ins,
                size_t outs)
{
    product_add(out, in, weight, tokens, ins, outs);
}

size_t linear_scratch(size_t tokens, size_t ins, size_t outs)
{
    return ins * (outs > tokens ? outs : tokens);
}

void linear_backward(float *d_in, float *d_weight, const float *d_out, const float *in,
                     const float *weight, size_t tokens, size_t ins, size_t outs, float *scratch)
{
    transpose(scratch, weight, outs, ins, outs);
    product(d_in, d_out, scratch, tokens, outs, ins);
    transpose(scratch, in, ins, tokens, ins);
    product_add(d_weight, scratch, d_out, ins, tokens, outs);
}

/* ---- norm ---- */

void norm(float *out, float *reciprocal_rms, const float *in, const float *gain, size_t tokens,
          size_t width)
{
    for (size_t t = 0; t < tokens; t++) {
        const float *x = in + t * width;
        float mean_square = dot(x, x, width) / (float)width;
        reciprocal_rms[t] = 1.0f / sqrtf(mean_square + NORM_EPSILON);
        for (size_t c = 0; c < width; c++)
            out[t * width + c] = x[c] * reciprocal_rms[t] * (1.0f + gain[c]);
    }
}

void norm_backward(float *d_in, float *d_gain, const float *d_out, const float *in,
                   const float *reciprocal_rms, const float *gain, size_t tokens, size_t width)
{
    for (size_t t = 0; t < tokens; t++) {
        const float *x = in + t * width, *d = d_out + t * width;
        float r = reciprocal_rms[t], projection = 0.0f;
        for (size_t c = 0; c < width; c++) {
            d_gain[c] += d[c] * x[c] * r;
            projection += d[c] * (1.0f + gain[c]) * x[c];
        }
        projection *= r * r / (float)width;
        for (size_t c = 0; c < width; c++)
            d_in[t * width + c] += r * (d[c] * (1.0f + gain[c]) - x[c] * projection);
    }
}

/* ---- activations ---- */

void softmax(float *values, size_t count)
{
    float highest = values[0], sum = 0.0f;
    for (size_t i = 1; i < count; i++)
        highest = values[i] > highest ? values[i] : highest;
    for (size_t i = 0; i < count; i++) {
        values[i] = expf(values[i] - highest);
        sum += values[i];
    }
    for (size_t i = 0; i < count; i++)
        values[i] /= sum;
}

void squared_relu(float *out, float *relu, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        relu[i] = relu[i] > 0.0f ? relu[i] : 0.0f;
        out[i] = relu[i] * relu[i];
    }
}

void squared_relu_backward(float *d, const float *relu, size_t count)
{
    for (size_t i = 0; i < count; i++)
        d[i] *= 2.0f * relu[i];
}

/* ---- attention ---- */

size_t attention_scratch(size_t tokens, size_t head_width)
{
    return 4 * tokens * head_width + 2 * tokens * tokens;
}

void attention(float *out, float *probabilities, const float *qkv, size_t tokens, size_t heads,
               size_t width, float *scratch)
{
    size_t head_width = width / heads, block = tokens * head_width;
    float scale = 1.0f / sqrtf((float)head_width);
    float *q = scratch, *k_transposed = q + block, *v = k_transposed + block, *mix = v + block;
    for (size_t h = 0; h < heads; h++) {
        const float *head = qkv + h * head_width;
        float *p = probabilities + h * tokens * tokens;
        copy_block(q, head_width, head, 3 * width, tokens, head_width);
        transpose(k_transposed, head + width, 3 * width, tokens, head_width);
        copy_block(v, head_width, head + 2 * width, 3 * width, tokens, head_width);
        product(p, q, k_transposed, tokens, head_width, tokens);
        for (size_t t = 0; t < tokens; t++) {
            float *row = p + t * tokens;
            for (size_t s = 0; s <= t; s++)
                row[s] *= scale;
            softmax(row, t + 1);
            memset(row + t + 1, 0, (tokens - t - 1) * sizeof *row);
        }
        product(mix, p, v, tokens, tokens, head_width);
        copy_block(out + h * head_width, width, mix, head_width, tokens, head_width);
    }
}

/* d [T, T]: the gradient of the probabilities p -> that of the scores before scaling, in place */
static void softmax_backward(float *d, const float *p, size_t tokens, float scale)
{
    for (size_t t = 0; t < tokens; t++) {
        float mean = dot(d + t * tokens, p + t * tokens, t + 1);
        for (size_t s = 0; s < tokens; s++)
            d[t * tokens + s] = p[t * tokens + s] * (d[t * tokens + s] - mean) * scale;
    }
}

void attention_backward(float *d_qkv, const float *d_out, const float *probabilities,
                        const float *qkv, size_t tokens, size_t heads, size_t width,
                        float *scratch)
{
    size_t head_width = width / heads, block = tokens * head_width;
    float scale = 1.0f / sqrtf((float)head_width);
    float *operand = scratch, *d_mix = operand + block, *result = d_mix + block;
    float *d_scores = result + block, *transposed = d_scores + tokens * tokens;
    for (size_t h = 0; h < heads; h++) {
        const float *q = qkv + h * head_width, *k = q + width, *v = k + width;
        const float *p = probabilities + h * tokens * tokens;
        float *d_q = d_qkv + h * head_width, *d_k = d_q + width, *d_v = d_k + width;
        copy_block(d_mix, head_width, d_out + h * head_width, width, tokens, head_width);

        transpose(transposed, p, tokens, tokens, tokens);
        product(result, transposed, d_mix, tokens, tokens, head_width);
        copy_block(d_v, 3 * width, result, head_width, tokens, head_width);

        transpose(operand, v, 3 * width, tokens, head_width);
        product(d_scores, d_mix, operand, tokens, head_width, tokens);
        softmax_backward(d_scores, p, tokens, scale);

        copy_block(operand, head_width, k, 3 * width, tokens, head_width);
        product(result, d_scores, operand, tokens, tokens, head_width);
        copy_block(d_q, 3 * width, result, head_width, tokens, head_width);

        copy_block(operand, head_width, q, 3 * width, tokens, head_width);
        transpose(transposed, d_scores, tokens, tokens, tokens);
        product(result, transposed, operand, tokens, tokens, head_width);
        copy_block(d_k, 3 * width, result, head_width, tokens, head_width);
    }
}
