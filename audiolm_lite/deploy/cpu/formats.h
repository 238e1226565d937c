// Weight formats: how a matrix is stored, how it is packed, and the product of sixteen rows with T tokens.
//
// A matrix [rows, inputs] is stored in blocks of sixteen rows. A line of 64 bytes has the sixteen rows side by side, so
// that one vector register accumulates sixteen outputs and nothing is added across a register:
//
//   f32      block | line per input:    r0 r1 ... r15                    sixteen float32
//   bf16     block | line per 2 inputs: r0[0..1] r1[0..1] ... r15[0..1]  sixteen pairs of bf16
//   int8     block | scales, then a line per 4 inputs:  r0[0..3] r1[0..3] ... r15[0..3]
//   int4     block | scales, then a line per 8 inputs:  low nibbles as int8's line for inputs 0..3, high ones for 4..7
//
// The scales of a block come first: for each group of 32 inputs sixteen bf16, one per row; weight = scale * integer.
// Rows are padded with zeros to sixteen, inputs to 64 (so that the scales fill whole lines, too).
//
// The activations of a token are prepared once for all rows (`prepare`), to the token's own buffer:
//
//   f32      inputs float32
//   bf16     inputs / 2 pairs of the upper bf16 parts, then as many of the lower parts: x = high + low
//   int8/4   inputs int8, then inputs / 32 float32 scales, then inputs / 32 int32: where sums start, see `add_quads`
//
// `product` adds up every output in the same order for any T, so a token's result has the same bits alone, in a batch
// and in a chunk. CHAINS are the independent sums per output that hide the latency of an addition. TILE is the largest
// T; if CHAINS * T sums do not fit the registers, the block is read several times, for TOGETHER sums each.
#pragma once
#include <algorithm>
#include <cmath>

#include "lanes.h"

namespace formats {

using namespace lanes;

constexpr int ROWS = 16;    // rows of a block
constexpr int GROUP = 32;   // inputs that share a scale
constexpr int INPUTS = 64;  // inputs are padded to a multiple of this
constexpr int LINE = 64;    // bytes

inline int64_t padded(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// Bytes of a token's prepared activations; the same for every format, so that one buffer serves all.
inline int64_t token_bytes(int64_t inputs) { return inputs * 4 + inputs / GROUP * 8; }

// With few tokens the products wait for memory, and the CPU's own prefetching stays too close.
inline void prefetch(const void* line) { __builtin_prefetch((const char*)line + 12288); }

struct F32 {
    static constexpr int TILE = PARTS == 1 ? 8 : 2, CHAINS = 4, TOGETHER = PARTS == 1 ? 16 : 4;

    static int64_t block_bytes(int64_t inputs) { return inputs * LINE; }

    // weights: sixteen rows of `inputs` floats.
    static void pack(const float* weights, int64_t inputs, char* to) {
        float* line = (float*)to;
        for (int64_t k = 0; k < inputs; ++k, line += ROWS)
            for (int r = 0; r < ROWS; ++r) line[r] = weights[r * inputs + k];
    }

    static void prepare(const float* x, int64_t inputs, char* to) { std::memcpy(to, x, inputs * 4); }

    template <int T>
    static void product(const char* block, int64_t inputs, const char* x, int64_t stride, Floats (&sum)[T]) {
        constexpr int AT_ONCE = std::min(CHAINS, TOGETHER / T);
        for (int first = 0; first < CHAINS; first += AT_ONCE) {
            Floats chain[AT_ONCE][T];
            for (auto& sums : chain)
                for (auto& s : sums) s = broadcast(0.0f);
            for (int64_t k = first; k < inputs; k += CHAINS)
                for (int c = 0; c < AT_ONCE; ++c) {
                    const char* line = block + (k + c) * LINE;
                    prefetch(line);
                    Floats w = load((const float*)line);
                    for (int t = 0; t < T; ++t)
                        add_product(chain[c][t], w, broadcast(((const float*)(x + t * stride))[k + c]));
                }
            for (int c = 0; c < AT_ONCE; ++c)
                for (int t = 0; t < T; ++t) sum[t] = first + c ? sum[t] + chain[c][t] : chain[c][t];
        }
    }
};

struct BF16 {
    static constexpr int TILE = PARTS == 1 ? 8 : 2, CHAINS = 4, TOGETHER = PARTS == 1 ? 8 : 2;

    static int64_t block_bytes(int64_t inputs) { return inputs / 2 * LINE; }

    static void pack(const float* weights, int64_t inputs, char* to) {
        uint16_t* line = (uint16_t*)to;
        for (int64_t k = 0; k < inputs; k += 2, line += 2 * ROWS)
            for (int r = 0; r < ROWS; ++r)
                for (int i = 0; i < 2; ++i) line[2 * r + i] = float_to_bf16(weights[r * inputs + k + i]);
    }

    static void prepare(const float* x, int64_t inputs, char* to) {
        uint16_t* high = (uint16_t*)to;
        uint16_t* low = high + inputs;
        for (int64_t k = 0; k < inputs; ++k) {
            high[k] = float_to_bf16(x[k]);
            low[k] = float_to_bf16(x[k] - bf16_to_float(high[k]));
        }
    }

    template <int T>
    static void product(const char* block, int64_t inputs, const char* x, int64_t stride, Floats (&sum)[T]) {
        constexpr int AT_ONCE = std::min(CHAINS, TOGETHER / T);
        const int64_t pairs = inputs / 2;
        for (int first = 0; first < CHAINS; first += AT_ONCE) {
            PairSum chain[AT_ONCE][T];
            for (auto& sums : chain)
                for (auto& s : sums) s = zero_pairs();
            for (int64_t k = first; k < pairs; k += CHAINS)
                for (int c = 0; c < AT_ONCE; ++c) {
                    const char* line = block + (k + c) * LINE;
                    prefetch(line);
                    Ints w = load_ints(line);
                    for (int t = 0; t < T; ++t) {
                        const uint32_t* high = (const uint32_t*)(x + t * stride) + k + c;
                        add_pairs(chain[c][t], w, high[0], high[pairs]);
                    }
                }
            for (int c = 0; c < AT_ONCE; ++c)
                for (int t = 0; t < T; ++t) {
                    Floats both = chain[c][t].high + chain[c][t].low;
                    sum[t] = first + c ? sum[t] + both : both;
                }
        }
    }
};

// The smallest bf16 number that is at least `largest / steps`: with it no weight exceeds the integers.
inline uint16_t weight_scale(float largest, float steps) {
    float exact = largest / steps;
    uint16_t scale = float_to_bf16(exact);
    return bf16_to_float(scale) < exact ? uint16_t(scale + 1) : scale;
}

inline int to_step(float weight, uint16_t scale) {
    float size = bf16_to_float(scale);
    return size == 0 ? 0 : int(std::nearbyint(weight / size));
}

// int8 and int4 differ in the bits of a weight only: activations and sums are the same.
template <int BITS>
struct Quantised {
    static constexpr int TILE = PARTS == 1 ? 8 : 4;
    static constexpr int STEPS = BITS == 8 ? 127 : 7;  // weights are in -STEPS..STEPS times their scale
    static constexpr int RAISED = STEPS + 1;             // added to make them unsigned

    static int64_t scale_bytes(int64_t inputs) { return inputs / GROUP * ROWS * 2; }
    static int64_t block_bytes(int64_t inputs) { return scale_bytes(inputs) + inputs * ROWS * BITS / 8; }

    static void pack(const float* weights, int64_t inputs, char* to) {
        uint16_t* scales = (uint16_t*)to;
        uint8_t* bytes = (uint8_t*)to + scale_bytes(inputs);
        for (int64_t g = 0; g < inputs / GROUP; ++g)
            for (int r = 0; r < ROWS; ++r) {
                const float* row = weights + r * inputs + g * GROUP;
                float largest = 0;
                for (int i = 0; i < GROUP; ++i) largest = std::max(largest, std::fabs(row[i]));
                uint16_t scale = scales[g * ROWS + r] = weight_scale(largest, STEPS);
                for (int i = 0; i < GROUP; ++i) {
                    int step = to_step(row[i], scale);
                    int64_t k = g * GROUP + i;
                    if (BITS == 8) {
                        bytes[k / 4 * LINE + 4 * r + k % 4] = uint8_t(UNSIGNED_WEIGHTS ? step + RAISED : step);
                    } else {
                        uint8_t& byte = bytes[k / 8 * LINE + 4 * r + k % 4];
                        byte = k % 8 < 4 ? uint8_t(step + RAISED) : uint8_t(byte | (step + RAISED) << 4);
                    }
                }
            }
    }

    static void prepare(const float* x, int64_t inputs, char* to) {
        constexpr float ROUND = 12582912.0f;  // see `exponential`
        int8_t* steps = (int8_t*)to;
        float* scales = (float*)(to + inputs);
        int32_t* starts = (int32_t*)(scales + inputs / GROUP);
        for (int64_t g = 0; g < inputs / GROUP; ++g, x += GROUP, steps += GROUP) {
            float largest = 0;
            for (int i = 0; i < GROUP; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
            float per_step = largest > 0 ? 127.0f / largest : 0.0f;
            int32_t sum = 0;
            for (int i = 0; i < GROUP; ++i) {
                float shifted = x[i] * per_step + ROUND;
                int32_t bits;
                std::memcpy(&bits, &shifted, 4);
                int32_t step = bits - 0x4B400000;
                steps[i] = int8_t(step);
                sum += step;
            }
            scales[g] = largest / 127.0f;
            starts[g] = UNSIGNED_WEIGHTS ? -RAISED * sum : 0;
        }
    }

    template <int T>
    static void product(const char* block, int64_t inputs, const char* x, int64_t stride, Floats (&sum)[T]) {
        // Sums of integers are exact in any order, so their number may depend on T.
        constexpr int CHAINS = T == 1 ? 8 / BITS : 1, LINES = GROUP * BITS / 32;
        const uint16_t* weight_scales = (const uint16_t*)block;
        const char* line = block + scale_bytes(inputs);
        const int64_t groups = inputs / GROUP;
        for (auto& s : sum) s = broadcast(0.0f);
        for (int64_t g = 0; g < groups; ++g) {
            Ints partial[T][CHAINS];
            for (int t = 0; t < T; ++t)
                for (int c = 0; c < CHAINS; ++c)
                    partial[t][c] = broadcast(c ? 0 : ((const int32_t*)(x + t * stride + inputs))[groups + g]);
            for (int l = 0; l < LINES; ++l, line += LINE) {
                prefetch(line);
                Ints stored = load_ints(line), low, high;
                if (BITS == 4) unpack_nibbles(stored, low, high);
                for (int t = 0; t < T; ++t) {
                    const int32_t* quads = (const int32_t*)(x + t * stride) + g * (GROUP / 4) + l * 8 / BITS;
                    if (BITS == 8) {
                        add_quads(partial[t][l % CHAINS], stored, quads[0]);
                    } else {
                        add_quads(partial[t][2 * l % CHAINS], low, quads[0]);
                        add_quads(partial[t][(2 * l + 1) % CHAINS], high, quads[1]);
                    }
                }
            }
            prefetch(weight_scales + g * ROWS);
            Floats scale = load_bf16(weight_scales + g * ROWS);
            for (int t = 0; t < T; ++t) {
                for (int c = 1; c < CHAINS; ++c) partial[t][0] = partial[t][0] + partial[t][c];
                float token_scale = ((const float*)(x + t * stride + inputs))[g];
                add_product(sum[t], scale * broadcast(token_scale), to_floats(partial[t][0]));
            }
        }
    }
};

// Calls `call(Format())` for the format of this number; the order is that of FORMATS in model.py.
template <class Call>
auto dispatch(int format, Call call) {
    switch (format) {
        case 0:
            return call(F32());
        case 1:
            return call(BF16());
        case 2:
            return call(Quantised<8>());
        default:
            return call(Quantised<4>());
    }
}

}  // namespace formats
