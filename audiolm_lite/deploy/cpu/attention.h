// Rotary positions, the key/value cache, and attention of one head over the filled slots of its row.
#pragma once
#include <algorithm>
#include <cmath>

#include "lanes.h"

namespace attention {

using namespace lanes;

// The cache has float32 or bf16 numbers.
inline Floats load_cached(const float* from) { return load(from); }
inline Floats load_cached(const uint16_t* from) { return load_bf16(from); }
inline float read(float value) { return value; }
inline float read(uint16_t value) { return bf16_to_float(value); }
inline void write(float& to, float value) { to = value; }
inline void write(uint16_t& to, float value) { to = float_to_bf16(value); }

// Turns the first `size` numbers of a head by the angles of its position, halves against each other ("rotate_half").
inline void rotate(float* head, int size, const float* cosine, const float* sine) {
    const int half = size / 2;
    for (int i = 0; i < half; ++i) {
        float first = head[i], second = head[i + half];
        head[i] = first * cosine[i] - second * sine[i];
        head[i + half] = second * cosine[i + half] + first * sine[i + half];
    }
}

template <class Cached>
float dot(const float* a, const Cached* b, int size) {
    Floats sum = broadcast(0.0f);
    int i = 0;
    for (; i + 16 <= size; i += 16) add_product(sum, load(a + i), load_cached(b + i));
    float result = total(sum);
    for (; i < size; ++i) result += a[i] * read(b[i]);
    return result;
}

// out[0..16*L) = sum over slots of weight[slot] * values[slot][0..16*L)
template <int L, class Cached>
void mix(const float* weights, const Cached* values, int64_t slots, int size, float* out) {
    Floats sum[L];
    for (auto& s : sum) s = broadcast(0.0f);
    for (int64_t slot = 0; slot < slots; ++slot, values += size) {
        Floats weight = broadcast(weights[slot]);
        for (int l = 0; l < L; ++l) add_product(sum[l], weight, load_cached(values + 16 * l));
    }
    for (int l = 0; l < L; ++l) store(out + 16 * l, sum[l]);
}

// One query head over `slots` keys and values [slots, size]. scores: room for `slots`, rounded up to sixteen.
template <class Cached>
void attend(const float* query, const Cached* keys, const Cached* values, int64_t slots, int size, float scaling,
            float* scores, float* out) {
    float largest = -INFINITY;
    constexpr int PER_LINE = 64 / int(sizeof(Cached));
    for (int64_t slot = 0; slot < slots; ++slot) {
        // The values are read next; without this, memory would be idle here.
        for (int i = 0; i < size; i += PER_LINE) __builtin_prefetch(values + slot * size + i);
        scores[slot] = scaling * dot(query, keys + slot * size, size);
        largest = std::max(largest, scores[slot]);
    }
    const int64_t end = (slots + 15) / 16 * 16;
    std::fill(scores + slots, scores + end, -INFINITY);
    for (int64_t slot = 0; slot < end; slot += 16)
        store(scores + slot, exponential(load(scores + slot) + broadcast(-largest)));
    float sum = 0;
    for (int64_t slot = 0; slot < slots; ++slot) sum += scores[slot];
    for (int64_t slot = 0; slot < slots; ++slot) scores[slot] /= sum;
    int d = 0;
    for (; d + 64 <= size; d += 64) mix<4>(scores, values + d, slots, size, out + d);
    for (; d + 16 <= size; d += 16) mix<1>(scores, values + d, slots, size, out + d);
    for (; d < size; ++d) {
        out[d] = 0;
        for (int64_t slot = 0; slot < slots; ++slot) out[d] += scores[slot] * read(values[slot * size + d]);
    }
}

}  // namespace attention
