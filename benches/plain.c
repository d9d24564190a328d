/* The yardstick of benches/kernels.rs: what a C compiler makes of a plain loop over floats. */
#include <stddef.h>

void sum2(const float *const *restrict in, float *restrict out, size_t count)
{
    const float *a = in[0], *b = in[1];
    for (size_t i = 0; i < count; i++)
        out[i] = a[i] + b[i];
}

void sum3(const float *const *restrict in, float *restrict out, size_t count)
{
    const float *a = in[0], *b = in[1], *c = in[2];
    for (size_t i = 0; i < count; i++)
        out[i] = a[i] + b[i] + c[i];
}

void sum4(const float *const *restrict in, float *restrict out, size_t count)
{
    const float *a = in[0], *b = in[1], *c = in[2], *d = in[3];
    for (size_t i = 0; i < count; i++)
        out[i] = (a[i] + b[i]) + (c[i] + d[i]);
}

void sum8(const float *const *restrict in, float *restrict out, size_t count)
{
    const float *a = in[0], *b = in[1], *c = in[2], *d = in[3];
    const float *e = in[4], *f = in[5], *g = in[6], *h = in[7];
    for (size_t i = 0; i < count; i++)
        out[i] = ((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + (g[i] + h[i]));
}
