/* Waveforms: the value at a time, and the integral between two times (energy, bytes over a link). */
#define _GNU_SOURCE
#include <math.h>
#include <string.h>

#include "state.h"

#define SECOND 1e9
#define READ_ATTEMPTS 1000 /* a writer that died inside a waveform leaves it odd for ever: then it is read as it is */

/* Even in [-1, 1), the same for the same device, series and bucket of time (splitmix64). */
static double hash_noise(uint32_t seed, int64_t bucket) {
    uint64_t x = ((uint64_t)seed << 40) ^ (uint64_t)bucket;
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    x ^= x >> 31;
    return (double)(x >> 11) / (double)(1ULL << 52) - 1.0;
}

/* The last point that is not after `at`; the first where all are. */
static uint32_t point_at(const SimPoint *points, uint32_t count, double at) {
    uint32_t low = 0, high = count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (points[middle].at <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static const SimPoint *trace_of(const SimState *state, const SimWave *wave) {
    if (wave->count == 0 || wave->first + wave->count > SIM_MAX_POINTS) return NULL;
    return &state->points[wave->first];
}

static double replay(const SimState *state, const SimWave *wave, double t) {
    const SimPoint *points = trace_of(state, wave);
    if (points == NULL) return NAN;
    return points[point_at(points, wave->count, wave->period > 0 ? fmod(t, wave->period) : t)].value;
}

static double step(const SimWave *wave, double t) {
    if (!wave->repeat) return t < wave->period ? wave->a : wave->b;
    return fmod(t, 2 * wave->period) < wave->period ? wave->a : wave->b;
}

static double base_value(const SimState *state, const SimWave *wave, double t) {
    switch (wave->kind) {
    case SIM_CONSTANT:
    case SIM_NOISE: return wave->a;
    case SIM_RAMP: return t >= wave->period ? wave->b : wave->a + (wave->b - wave->a) * t / wave->period;
    case SIM_STEP: return step(wave, t);
    case SIM_SINE: return wave->a + wave->b * sin(2 * M_PI * t / wave->period);
    case SIM_REPLAY: return replay(state, wave, t);
    default: return NAN;
    }
}

double sim_wave_value(const SimState *state, const SimWave *wave, uint32_t seed, int64_t now) {
    int64_t update = wave->update_ns > 0 ? wave->update_ns : 1;
    int64_t bucket = now / update;
    double t = (double)(bucket * update - wave->from_ns) / SECOND;
    double value = base_value(state, wave, t > 0 ? t : 0);
    double noise = wave->noise + (wave->kind == SIM_NOISE ? wave->b : 0);
    if (noise != 0) value += noise * hash_noise(seed, bucket);
    return value < wave->low ? wave->low : value > wave->high ? wave->high : value;
}

static double ramp_sum(const SimWave *wave, double t) {
    double rising = t < wave->period ? t : wave->period;
    double after = t > wave->period ? t - wave->period : 0;
    double slope = wave->period > 0 ? (wave->b - wave->a) / wave->period : 0;
    return wave->a * rising + slope * rising * rising / 2 + wave->b * after;
}

static double step_sum(const SimWave *wave, double t) {
    double whole = 0, rest = t;
    if (wave->repeat) {
        double rounds = floor(t / (2 * wave->period));
        whole = rounds * wave->period * (wave->a + wave->b);
        rest = t - rounds * 2 * wave->period;
    }
    double first = rest < wave->period ? rest : wave->period;
    return whole + wave->a * first + wave->b * (rest - first);
}

static double trace_sum(const SimPoint *points, uint32_t count, double t) {
    const SimPoint *last = &points[point_at(points, count, t)];
    return last->sum + last->value * (t - last->at);
}

static double replay_sum(const SimState *state, const SimWave *wave, double t) {
    const SimPoint *points = trace_of(state, wave);
    if (points == NULL) return 0;
    if (wave->period <= 0) return trace_sum(points, wave->count, t);
    double rounds = floor(t / wave->period);
    return rounds * trace_sum(points, wave->count, wave->period) +
           trace_sum(points, wave->count, t - rounds * wave->period);
}

/* From 0 to t seconds. Noise adds nothing: its mean is 0. Limits are not applied. */
static double sum_until(const SimState *state, const SimWave *wave, double t) {
    switch (wave->kind) {
    case SIM_CONSTANT:
    case SIM_NOISE: return wave->a * t;
    case SIM_RAMP: return ramp_sum(wave, t);
    case SIM_STEP: return step_sum(wave, t);
    case SIM_SINE: return wave->a * t + wave->b * wave->period / (2 * M_PI) * (1 - cos(2 * M_PI * t / wave->period));
    case SIM_REPLAY: return replay_sum(state, wave, t);
    default: return 0;
    }
}

double sim_wave_integral(const SimState *state, const SimWave *wave, int64_t from, int64_t until) {
    double a = (double)(from - wave->from_ns) / SECOND, b = (double)(until - wave->from_ns) / SECOND;
    return sum_until(state, wave, b > 0 ? b : 0) - sum_until(state, wave, a > 0 ? a : 0);
}

int sim_read_wave(const SimDevice *device, int series, SimWave *copy) {
    for (int attempt = 0; attempt < READ_ATTEMPTS; attempt++) {
        uint32_t before = atomic_load_explicit(&device->sequence, memory_order_acquire);
        memcpy(copy, &device->waves[series], sizeof(*copy));
        atomic_thread_fence(memory_order_acquire);
        if (!(before & 1) && atomic_load_explicit(&device->sequence, memory_order_relaxed) == before) return 0;
    }
    return -1;
}

double sim_series(const SimState *state, int device, int series, int64_t now) {
    SimWave wave;
    sim_read_wave(&state->devices[device], series, &wave);
    if (wave.kind == SIM_ABSENT) return NAN;
    return sim_wave_value(state, &wave, (uint32_t)(device * SIM_SERIES_COUNT + series), now);
}

double sim_series_total(const SimState *state, int device, int series, int64_t now) {
    const SimDevice *d = &state->devices[device];
    SimWave wave;
    sim_read_wave(d, series, &wave);
    if (wave.kind == SIM_ABSENT) return d->totals[series];
    double since = sim_wave_integral(state, &wave, d->total_ns[series], now);
    return d->totals[series] + (since > 0 ? since : 0);
}

/* Called with the lock held. What the old waveform summed up to stays counted. */
void sim_write_wave(SimState *state, int device, int series, const SimWave *wave, int64_t now) {
    SimDevice *d = &state->devices[device];
    double total = sim_series_total(state, device, series, now);
    atomic_fetch_add_explicit(&d->sequence, 1, memory_order_acq_rel);
    atomic_thread_fence(memory_order_release);
    d->totals[series] = total;
    d->total_ns[series] = now;
    d->waves[series] = *wave;
    atomic_fetch_add_explicit(&d->sequence, 1, memory_order_release);
}
