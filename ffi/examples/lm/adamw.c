/* adamw.c: see adamw.h. */
#include "adamw.h"

#include <math.h>

#define BETA1 0.9
#define BETA2 0.99
#define EPSILON 1e-8f
#define WEIGHT_DECAY 0.01
#define WARM_UP_STEPS 20

void adamw_update(float *restrict weights, const float *restrict gradient,
                  float *restrict first_moment, float *restrict second_moment, size_t count,
                  float gradient_scale, double learning_rate, int64_t step)
{
    const float beta1 = (float)BETA1, beta2 = (float)BETA2;
    double updates = (double)(step + 1);
    double rate = learning_rate * (updates < WARM_UP_STEPS ? updates / WARM_UP_STEPS : 1.0);
    float correction1 = (float)(1.0 / (1.0 - pow(BETA1, updates)));
    float correction2 = (float)(1.0 / (1.0 - pow(BETA2, updates)));
    float keep = (float)(1.0 - rate * WEIGHT_DECAY), step_size = (float)rate;
    for (size_t i = 0; i < count; i++) {
        float g = gradient[i] * gradient_scale;
        float m = beta1 * first_moment[i] + (1.0f - beta1) * g;
        float v = beta2 * second_moment[i] + (1.0f - beta2) * g * g;
        first_moment[i] = m;
        second_moment[i] = v;
        weights[i] = keep * weights[i] -
                     step_size * (m * correction1) / (sqrtf(v * correction2) + EPSILON);
    }
}
