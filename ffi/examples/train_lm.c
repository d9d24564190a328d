/* train_lm.c: trains a small language model, data-parallel over the ranks of a job.
 *
 *   cc -std=c99 -O3 -march=native -I ffi/include ffi/examples/train_lm.c ffi/examples/lm/<all>.c \
 *      libunisono.a -lm -lpthread -ldl -o train_lm
 *   unisono run -n 2 -- ./train_lm --steps 600 --sample 200 README.md
 *
 * Any launcher does: mpirun, srun, torchrun; without one it is a job of one rank. What belongs to
 * the model lives in lm/; this file is what data parallelism adds to it:
 *
 *   --mode allreduce   every rank sums its sequences' gradients; buckets of the sum are all-reduced
 *                      as soon as the backward pass has finished them, while it goes on
 *   --mode sharded     each rank keeps the optimiser's state of 1/n of the weights: the gradient is
 *                      reduce-scattered, the updated weights are all-gathered
 *   --mode local       each rank trains alone; weights and optimiser state are averaged every few
 *                      steps (of the state too, so that a checkpoint needs no rank's own part)
 *
 * Where every rank has a GPU all of it goes by way of its memory (--device): the arithmetic is the
 * host's, what ranks exchange is copied there and back in one stream, and the calls have their
 * place between the copies. With --deterministic the bits are those of host memory.
 *
 * The bits. With --deterministic the final weights do not depend on the number of ranks (modes
 * allreduce and sharded, where batch / ranks is a power of two). The library adds the ranks'
 * gradients in the order of a balanced binary tree, ((0 + 1) + (2 + 3)) + ...; every rank adds its
 * own sequences' gradients in that order too, so the whole sum is one tree over the global batch,
 * cut at another height. The division by the batch follows the sum. Gradients are not clipped: the
 * norm would be one more sum over all weights, whose order shards would change.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <unisono.h>

#include "lm/adamw.h"
#include "lm/checkpoint.h"
#include "lm/data.h"
#include "lm/job.h"
#include "lm/model.h"
#include "lm/options.h"
#include "lm/report.h"
#include "lm/self_test.h"

#define LEVELS_MAX 21           /* partial sums of a tree over 2^20 sequences */
#define HELD_OUT_SEQUENCES 64   /* to validate with, about */
#define RECENT_STEPS 20         /* the training loss reported is their mean */

struct trainer {
    const struct options *options;
    const struct data *data;
    struct job job;
    struct lm_model *model;
    int64_t own_sequences; /* a step */
    size_t count;          /* of weights */
    size_t padded;         /* count, up to a multiple of the ranks */
    size_t own;            /* weights this rank has the optimiser state of */
    float *state;          /* weights [padded], first and second moments [own] */
    float *first_moment;
    float *second_moment;
    float *gradient;       /* [padded] */
    float *there;          /* on the GPU, where it has one: room for what ranks exchange */
    float *partial_sums[LEVELS_MAX]; /* level l: the gradients of 2^l sequences, added as a tree */
    uint64_t last_levels;  /* partial sums that the last sequence's gradient completes */
    double *losses;        /* one a sequence of this rank */
    size_t bucket;         /* elements in a bucket of gradients */
    size_t buckets;
    size_t buckets_ready;  /* of this step */
    unisono_request_t **requests; /* one a bucket */
    double recent_losses[RECENT_STEPS];
};

/* ---- the gradient of this rank's sequences ---- */

/* sum[begin .. end) = gradient + each partial sum whose bit is set in `levels`, the lowest first */
static void fold(const struct trainer *trainer, float *sum, uint64_t levels, size_t begin,
                 size_t end)
{
    const float *term = trainer->gradient;
    for (int level = 0; level < LEVELS_MAX; level++) {
        const float *partial = trainer->partial_sums[level];
        if (!(levels >> level & 1))
            continue;
        for (size_t i = begin; i < end; i++)
            sum[i] = term[i] + partial[i];
        term = sum;
    }
    if (term != sum)
        memcpy(sum + begin, term + begin, (end - begin) * sizeof *sum);
}

/* Where ranks exchange what is at `here`: on the GPU, or in place. What is on the GPU goes there by
 * gpu_copy_in and comes back by gpu_copy_out, which do nothing without one. */
static float *exchanged(const struct trainer *trainer, float *here)
{
    return trainer->there ? trainer->there : here;
}

/* Has a bucket of the gradient summed while the backward pass goes on. On a GPU the copy there, the
 * sum and the copy back follow each other in its stream, so the call needs no request. */
static void send_bucket(struct trainer *trainer, size_t index, size_t begin, size_t count)
{
    struct job *job = &trainer->job;
    float *bucket = trainer->gradient + begin;
    if (!job->gpu) {
        TIMED(job, unisono_iall_reduce(bucket, bucket, count, UNISONO_F32, UNISONO_SUM, job->comm,
                                       &trainer->requests[index]));
        return;
    }
    float *there = trainer->there + begin;
    gpu_copy_in(job->gpu, there, bucket, count);
    TIMED(job, unisono_all_reduce(there, there, count, UNISONO_F32, UNISONO_SUM, job->comm));
    gpu_copy_out(job->gpu, bucket, there, count);
}

/* Called by the last sequence's backward pass: gradient[0 .. end) is final. Completes the tree for
 * each bucket that lies in it and sends the bucket on its way. */
static void gradient_ready(void *context, size_t end)
{
    struct trainer *trainer = context;
    while (trainer->buckets_ready < trainer->buckets) {
        size_t index = trainer->buckets_ready, begin = index * trainer->bucket;
        size_t stop = index + 1 < trainer->buckets ? begin + trainer->bucket : trainer->count;
        if (stop > end)
            return;
        fold(trainer, trainer->gradient, trainer->last_levels, begin, stop);
        if (trainer->options->mode == MODE_ALLREDUCE)
            send_bucket(trainer, index, begin, stop - begin);
        trainer->buckets_ready++;
    }
}

/* The sum of this rank's gradients, as a binary counter adds: the bits of `i` say which partial
 * sums wait when sequence i comes; its lowest bits that are 1 are those it completes. */
static void compute_gradient(struct trainer *trainer, int64_t step)
{
    const struct options *options = trainer->options;
    int context = options->shape.context;
    int64_t first = trainer->job.rank * trainer->own_sequences, last = trainer->own_sequences - 1;
    trainer->buckets_ready = 0;
    trainer->last_levels = (uint64_t)last;
    for (int64_t i = 0; i <= last; i++) {
        const uint8_t *text =
            data_train(trainer->data, context, options->seed, step, first + i);
        trainer->losses[i] = lm_forward(trainer->model, trainer->state, text, context);
        lm_backward(trainer->model, trainer->state, text, context, trainer->gradient,
                    i == last ? gradient_ready : NULL, trainer);
        if (i < last) {
            int level = 0;
            while (i >> level & 1)
                level++;
            fold(trainer, trainer->partial_sums[level], ((uint64_t)1 << level) - 1, 0,
                 trainer->count);
        }
    }
}

/* ---- three ways to train ---- */

/* Updates `count` weights from `begin`, whose moments start at index 0. */
static void update(struct trainer *trainer, size_t begin, size_t count, int64_t sequences,
                   int64_t step)
{
    adamw_update(trainer->state + begin, trainer->gradient + begin, trainer->first_moment,
                 trainer->second_moment, count, 1.0f / (float)sequences,
                 trainer->options->learning_rate, step);
}

static void finish_allreduce(struct trainer *trainer, int64_t step)
{
    for (size_t i = 0; i < trainer->buckets; i++) /* NULL, and well, where a GPU has them */
        TIMED(&trainer->job, unisono_wait(&trainer->requests[i], -1));
    job_stream_wait(&trainer->job);
    update(trainer, 0, trainer->count, trainer->options->batch, step);
}

static void finish_sharded(struct trainer *trainer, int64_t step)
{
    struct job *job = &trainer->job;
    size_t begin = (size_t)job->rank * trainer->own;
    float *gradient = exchanged(trainer, trainer->gradient);
    float *weights = exchanged(trainer, trainer->state);
    gpu_copy_in(job->gpu, gradient, trainer->gradient, trainer->padded);
    TIMED(job, unisono_reduce_scatter(gradient, gradient + begin, trainer->own, UNISONO_F32,
                                      UNISONO_SUM, job->comm));
    gpu_copy_out(job->gpu, trainer->gradient + begin, gradient + begin, trainer->own);
    job_stream_wait(job);
    update(trainer, begin, trainer->own, trainer->options->batch, step);
    gpu_copy_in(job->gpu, weights + begin, trainer->state + begin, trainer->own);
    TIMED(job, unisono_all_gather(weights + begin, weights, trainer->own, UNISONO_F32, job->comm));
    gpu_copy_out(job->gpu, trainer->state, weights, trainer->padded);
    job_stream_wait(job);
}

/* The mean of all ranks' weights and optimiser state. */
static void average(struct trainer *trainer)
{
    struct job *job = &trainer->job;
    size_t count = 3 * trainer->padded;
    float *state = exchanged(trainer, trainer->state);
    gpu_copy_in(job->gpu, state, trainer->state, count);
    TIMED(job, unisono_all_reduce(state, state, count, UNISONO_F32, UNISONO_AVG, job->comm));
    gpu_copy_out(job->gpu, trainer->state, state, count);
    job_stream_wait(job);
}

static void finish_local(struct trainer *trainer, int64_t step)
{
    update(trainer, 0, trainer->count, trainer->own_sequences, step);
    if ((step + 1) % trainer->options->average_every == 0 || step + 1 == trainer->options->steps)
        average(trainer);
}

/* One step; returns the mean loss of the global batch. */
static double train_step(struct trainer *trainer, int64_t step)
{
    job_stream_begin(&trainer->job);
    compute_gradient(trainer, step);
    switch (trainer->options->mode) {
    case MODE_ALLREDUCE:
        finish_allreduce(trainer, step);
        break;
    case MODE_SHARDED:
        finish_sharded(trainer, step);
        break;
    case MODE_LOCAL:
        finish_local(trainer, step);
        break;
    }
    job_stream_end(&trainer->job);
    return job_tree_sum(&trainer->job, trainer->losses, (int)trainer->own_sequences) /
           (double)trainer->options->batch;
}

/* The mean loss over held-out sequences, shared among the ranks like a batch. */
static double validate(struct trainer *trainer)
{
    const struct options *options = trainer->options;
    int64_t batches = (HELD_OUT_SEQUENCES + options->batch - 1) / options->batch;
    int64_t own = batches * trainer->own_sequences, total = batches * options->batch;
    double *losses = allocate((size_t)own, sizeof *losses);
    for (int64_t i = 0; i < own; i++)
        losses[i] = lm_forward(trainer->model, trainer->state,
                               data_held_out(trainer->data, options->shape.context,
                                             trainer->job.rank * own + i, total),
                               options->shape.context);
    double mean = job_tree_sum(&trainer->job, losses, (int)own) / (double)total;
    free(losses);
    return mean;
}

/* ---- checkpoints: rank 0 has the file ---- */

static struct checkpoint describe(const struct trainer *trainer)
{
    const struct options *options = trainer->options;
    return checkpoint_describe(&options->shape, options->batch, options->seed, trainer->count);
}

/* Tells all ranks rank 0's value: steps done, or -1 where it failed, which ends the job. */
static int64_t heed_rank_0(struct trainer *trainer, int64_t value, const char *error)
{
    CHECK(&trainer->job,
          unisono_broadcast(&value, &value, 1, UNISONO_I64, 0, trainer->job.comm));
    if (value < 0 && trainer->job.rank == 0)
        job_fail(&trainer->job, "%s", error);
    if (value < 0)
        exit(1);
    return value;
}

static void save(struct trainer *trainer, int64_t steps_done)
{
    struct job *job = &trainer->job;
    char error[512] = "";
    int root = job->rank == 0, sharded = trainer->options->mode == MODE_SHARDED;
    const float *first = trainer->first_moment, *second = trainer->second_moment;
    float *gathered = allocate(sharded && root ? 2 * trainer->padded : 1, sizeof *gathered);
    if (sharded) {
        float *behind = root ? gathered + trainer->padded : gathered;
        CHECK(job, unisono_gather(first, gathered, trainer->own, UNISONO_F32, 0, job->comm));
        CHECK(job, unisono_gather(second, behind, trainer->own, UNISONO_F32, 0, job->comm));
        first = gathered;
        second = behind;
    }
    const float *const parts[3] = {trainer->state, first, second};
    int64_t outcome = steps_done;
    if (root && !checkpoint_write(trainer->options->checkpoint, describe(trainer), steps_done,
                                  parts, error, sizeof error))
        outcome = -1;
    heed_rank_0(trainer, outcome, error);
    free(gathered);
}

/* Sends moments [padded] at rank 0 to the ranks that own them. */
static void hand_out(struct trainer *trainer, const float *whole, float *moments)
{
    struct job *job = &trainer->job;
    if (trainer->options->mode == MODE_SHARDED)
        CHECK(job, unisono_scatter(whole, moments, trainer->own, UNISONO_F32, 0, job->comm));
    else
        CHECK(job, unisono_broadcast(whole, moments, trainer->padded, UNISONO_F32, 0, job->comm));
}

/* Returns the number of steps done. */
static int64_t load(struct trainer *trainer)
{
    struct job *job = &trainer->job;
    char error[512] = "";
    int64_t steps_done = 0;
    size_t padded = trainer->padded;
    float *whole = allocate(2 * padded, sizeof *whole);
    float *const parts[3] = {trainer->state, whole, whole + padded};
    if (job->rank == 0 && !checkpoint_read(trainer->options->checkpoint, describe(trainer),
                                           &steps_done, parts, error, sizeof error))
        steps_done = -1;
    if (steps_done > trainer->options->steps) {
        snprintf(error, sizeof error, "%s has %lld steps behind it, --steps is %lld",
                 trainer->options->checkpoint, (long long)steps_done,
                 (long long)trainer->options->steps);
        steps_done = -1;
    }
    steps_done = heed_rank_0(trainer, steps_done, error);
    CHECK(job, unisono_broadcast(parts[0], parts[0], padded, UNISONO_F32, 0, job->comm));
    hand_out(trainer, parts[1], trainer->first_moment);
    hand_out(trainer, parts[2], trainer->second_moment);
    free(whole);
    return steps_done;
}

/* ---- the run ---- */

/* Memory for what ranks exchange. */
static float *exchanged_floats(struct job *job, size_t count)
{
    if (job->gpu)
        return gpu_host_floats(job->gpu, count);
    void *memory = NULL; /* other ranks can map it, which saves copies */
    CHECK(job, unisono_mem_alloc(job->comm, count * sizeof(float), &memory));
    return memory;
}

static void free_exchanged(struct job *job, float *floats)
{
    if (job->gpu)
        gpu_host_free(job->gpu, floats);
    else
        CHECK(job, unisono_mem_free(job->comm, floats));
}

static void trainer_start(struct trainer *trainer)
{
    const struct options *options = trainer->options;
    struct job *job = &trainer->job;
    size_t world = (size_t)job->world;
    if (options->batch % job->world != 0)
        job_fail(job, "--batch %lld is no multiple of the %d ranks", (long long)options->batch,
                 job->world);
    trainer->model = lm_create(&options->shape);
    if (!trainer->model)
        job_fail(job, "no memory for a model of this size");
    trainer->own_sequences = options->batch / job->world;
    trainer->count = lm_weight_count(trainer->model);
    trainer->padded = (trainer->count + world - 1) / world * world;
    trainer->own = options->mode == MODE_SHARDED ? trainer->padded / world : trainer->padded;
    trainer->state = exchanged_floats(job, trainer->padded + 2 * trainer->own);
    trainer->first_moment = trainer->state + trainer->padded;
    trainer->second_moment = trainer->first_moment + trainer->own;
    trainer->gradient = exchanged_floats(job, trainer->padded);
    if (job->gpu)
        trainer->there =
            gpu_floats(job->gpu, (options->mode == MODE_LOCAL ? 3 : 1) * trainer->padded);
    for (int level = 0; (trainer->own_sequences - 1) >> level; level++)
        trainer->partial_sums[level] = allocate(trainer->count, sizeof(float));
    trainer->losses = allocate((size_t)trainer->own_sequences, sizeof *trainer->losses);
    trainer->bucket = (size_t)options->bucket_kib * 1024 / sizeof(float);
    trainer->buckets = (trainer->count + trainer->bucket - 1) / trainer->bucket;
    trainer->requests = allocate(trainer->buckets, sizeof *trainer->requests);
    lm_initialise(trainer->model, trainer->state, options->seed);
}

static void trainer_end(struct trainer *trainer)
{
    free_exchanged(&trainer->job, trainer->state);
    free_exchanged(&trainer->job, trainer->gradient);
    for (int level = 0; level < LEVELS_MAX; level++)
        free(trainer->partial_sums[level]);
    free(trainer->losses);
    free(trainer->requests);
    lm_destroy(trainer->model);
}

/* All ranks must have the same text and settings, or their weights would drift apart. */
static void check_same_work(struct trainer *trainer)
{
    const struct options *options = trainer->options;
    uint64_t settings = fnv1a(FNV_START, &options->shape, sizeof options->shape);
    settings = fnv1a(settings, &options->steps, sizeof options->steps);
    settings = fnv1a(settings, &options->batch, sizeof options->batch);
    settings = fnv1a(settings, &options->seed, sizeof options->seed);
    settings = fnv1a(settings, &options->learning_rate, sizeof options->learning_rate);
    settings = fnv1a(settings, &options->mode, sizeof options->mode);
    if (!job_agrees(&trainer->job, settings))
        job_fail(&trainer->job, "the ranks were started with different options");
    if (!job_agrees(&trainer->job, fnv1a(FNV_START, trainer->data->bytes, trainer->data->count)))
        job_fail(&trainer->job, "the ranks read different text");
}

/* Trains from step `first` on and fills in what training alone can tell. */
static void train(struct trainer *trainer, int64_t first, struct result *result)
{
    const struct options *options = trainer->options;
    struct job *job = &trainer->job;
    struct progress progress =
        progress_start(options->steps, options->quiet || job->rank != 0, options->progress);
    double seconds = 0.0, comm_seconds = 0.0;
    int64_t run = 0;
    for (int64_t step = first; step < options->steps; step++) {
        double start = now_seconds(), comm_start = job->comm_seconds;
        double loss = train_step(trainer, step);
        seconds += now_seconds() - start;
        comm_seconds += job->comm_seconds - comm_start;
        trainer->recent_losses[run++ % RECENT_STEPS] = loss;
        result->tokens_per_second =
            (double)(run * options->batch * options->shape.context) / seconds;
        result->comm_share = comm_seconds / seconds;
        progress_show(&progress, step + 1, loss, result->tokens_per_second, result->comm_share);
        if (options->checkpoint_every && (step + 1) % options->checkpoint_every == 0 &&
            step + 1 < options->steps)
            save(trainer, step + 1);
    }
    if (run)
        progress_end(&progress);
    int64_t recent = run < RECENT_STEPS ? run : RECENT_STEPS;
    for (int64_t i = 0; i < recent; i++)
        result->loss += trainer->recent_losses[(run - recent + i) % RECENT_STEPS] / (double)recent;
    result->trained = run > 0;
}

/* Continues the first held-out bytes, drawing each byte from the model's probabilities. */
static void write_sample(struct trainer *trainer)
{
    const struct options *options = trainer->options;
    size_t context = (size_t)options->shape.context, prompt = context / 2;
    size_t count = prompt + (size_t)options->sample;
    uint8_t *text = allocate(count, 1);
    memcpy(text, data_held_out(trainer->data, options->shape.context, 0, 1), prompt);
    for (size_t i = prompt; i < count; i++) {
        size_t seen = i < context ? i : context;
        const float *probabilities =
            lm_predict(trainer->model, trainer->state, text + i - seen, (int)seen);
        double left = lm_uniform(options->seed, 1, i);
        int byte = 0;
        while (byte < LM_VOCABULARY - 1 && (left -= probabilities[byte]) >= 0.0)
            byte++;
        text[i] = (uint8_t)byte;
    }
    report_sample(text, prompt, count, options->json);
    free(text);
}

static void run(struct trainer *trainer)
{
    const struct options *options = trainer->options;
    struct job *job = &trainer->job;
    struct result result = {.steps = options->steps, .mode = mode_name(options->mode)};
    result.job = job;
    check_same_work(trainer);
    if (job->rank == 0 && !options->quiet)
        report_place(job);
    int64_t first = options->resume ? load(trainer) : 0;
    train(trainer, first, &result);
    if (options->checkpoint)
        save(trainer, options->steps);
    result.val_loss = validate(trainer);
    result.checksum = fnv1a(FNV_START, trainer->state, trainer->count * sizeof(float));
    if (!job_agrees(job, result.checksum))
        job_fail(job, "the ranks ended with different weights; these have checksum %016llx",
                 (unsigned long long)result.checksum);
    if (job->rank == 0 && options->sample)
        write_sample(trainer);
    if (job->rank == 0)
        report_result(&result, options->json);
}

int main(int argc, char **argv)
{
    struct options options;
    struct data data;
    struct trainer trainer;
    char error[512];
    options_parse(&options, argc, argv);
    if (options.self_test)
        return self_test();
    if (!data_load(&data, options.files, options.file_count, options.shape.context, error,
                   sizeof error)) {
        fprintf(stderr, "train_lm: %s\n", error);
        return 1;
    }
    memset(&trainer, 0, sizeof trainer);
    trainer.options = &options;
    trainer.data = &data;
    job_start(&trainer.job, options.deterministic, options.timeout_ms, options.device);
    trainer_start(&trainer);
    run(&trainer);
    trainer_end(&trainer);
    job_end(&trainer.job);
    data_free(&data);
    return 0;
}
