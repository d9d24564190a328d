/* adamw.h: Adam with decoupled weight decay (Loshchilov and Hutter, 2019). */
#ifndef LM_ADAMW_H
#define LM_ADAMW_H

#include <stddef.h>
#include <stdint.h>

/* One update of `count` weights and their two moments; every element stands alone, so any part of
 * the weights can be updated by any rank. `gradient` is multiplied by `gradient_scale` first. The
 * learning rate rises over the first steps; `step` counts from 0. */
void adamw_update(float *weights, const float *gradient, float *first_moment, float *second_moment,
                  size_t count, float gradient_scale, double learning_rate, int64_t step);

#endif
