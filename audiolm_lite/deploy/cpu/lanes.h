// Sixteen numbers at a time, in as many registers as the CPU has them: one for AVX-512, two for AVX2, four for NEON
// and SSE. Everything except the two dot products at the end is written once, in the vector types of GCC and Clang.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define REGISTER_BYTES 64
#elif defined(__AVX2__)
#define REGISTER_BYTES 32
#else
#define REGISTER_BYTES 16
#endif

namespace lanes {

constexpr int WIDTH = REGISTER_BYTES / 4;  // floats in a register
constexpr int PARTS = 16 / WIDTH;          // registers of sixteen floats

typedef float FloatPart __attribute__((vector_size(REGISTER_BYTES)));
typedef int32_t IntPart __attribute__((vector_size(REGISTER_BYTES)));
typedef int8_t BytePart __attribute__((vector_size(REGISTER_BYTES)));

#define EACH_PART for (int p = 0; p < PARTS; ++p)

struct Ints {
    IntPart part[PARTS];
};

struct Floats {
    FloatPart part[PARTS];
};

inline Floats load(const float* from) {
    Floats result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

inline Ints load_ints(const void* from) {
    Ints result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

inline void store(float* to, const Floats& a) { std::memcpy(to, &a, sizeof a); }

inline Floats broadcast(float value) {
    Floats result;
    EACH_PART result.part[p] = value - FloatPart{};
    return result;
}

inline Ints broadcast(int32_t value) {
    Ints result;
    EACH_PART result.part[p] = value - IntPart{};
    return result;
}

inline Floats operator+(const Floats& a, const Floats& b) {
    Floats result;
    EACH_PART result.part[p] = a.part[p] + b.part[p];
    return result;
}

inline Ints operator+(const Ints& a, const Ints& b) {
    Ints result;
    EACH_PART result.part[p] = a.part[p] + b.part[p];
    return result;
}

inline Floats operator*(const Floats& a, const Floats& b) {
    Floats result;
    EACH_PART result.part[p] = a.part[p] * b.part[p];
    return result;
}

// sum += a * b; the compiler fuses the two operations where the CPU can (-ffp-contract=fast).
inline void add_product(Floats& sum, const Floats& a, const Floats& b) {
    EACH_PART sum.part[p] += a.part[p] * b.part[p];
}

inline float total(const Floats& a) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)a.part[0]);
#else
    FloatPart sum = a.part[0];
    for (int p = 1; p < PARTS; ++p) sum += a.part[p];
    float result = 0;
    for (int i = 0; i < WIDTH; ++i) result += sum[i];
    return result;
#endif
}

inline Floats to_floats(const Ints& a) {
    Floats result;
    EACH_PART result.part[p] = __builtin_convertvector(a.part[p], FloatPart);
    return result;
}

inline Floats as_floats(const Ints& bits) {
    Floats result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// Sixteen bf16 numbers are the upper halves of sixteen floats.
inline Floats load_bf16(const uint16_t* from) {
#if defined(__AVX512F__)
    __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
    Floats result;
    result.part[0] = (FloatPart)_mm512_castsi512_ps(bits);
    return result;
#else
    int32_t bits[16];
    for (int i = 0; i < 16; ++i) bits[i] = int32_t(uint32_t(from[i]) << 16);
    return as_floats(load_ints(bits));
#endif
}

inline float bf16_to_float(uint16_t value) {
    uint32_t bits = uint32_t(value) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

// Nearest bf16, ties to even, as torch rounds. Infinities stay; no NaN is expected.
inline uint16_t float_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// exp(a) to about 1e-7 of its value: 2^n times a polynomial of degree 6 in the rest (Cephes' expf).
inline Floats exponential(const Floats& a) {
    constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the lowest bits
    Floats result;
    EACH_PART {
        FloatPart x = a.part[p];
        x = x < -87.0f ? (FloatPart{} - 87.0f) : x;
        x = x > 88.0f ? (FloatPart{} + 88.0f) : x;
        FloatPart shifted = x * 1.44269504f + ROUND;
        FloatPart n = shifted - ROUND;
        FloatPart r = x - n * 0.693359375f + n * 2.12194440e-4f;
        FloatPart poly = FloatPart{} + 1.9875691500e-4f;
        poly = poly * r + 1.3981999507e-3f;
        poly = poly * r + 8.3334519073e-3f;
        poly = poly * r + 4.1665795894e-2f;
        poly = poly * r + 1.6666665459e-1f;
        poly = poly * r + 5.0000001201e-1f;
        poly = poly * r * r + r + 1.0f;
        IntPart exponent = ((IntPart)shifted - 0x4B400000 + 127) << 23;
        result.part[p] = poly * (FloatPart)exponent;
    }
    return result;
}

// sum += even * x_even + odd * x_odd for sixteen rows. A weight is a pair of bf16 (the even input in the lower half),
// and so is x, in two parts whose sum is the activation: high + low has 16 bits of precision, and the products of the
// two with a bf16 weight are exact in float32.
struct PairSum {
    Floats high, low;
};

inline PairSum zero_pairs() { return {broadcast(0.0f), broadcast(0.0f)}; }

inline void add_pairs(PairSum& sum, const Ints& weights, uint32_t high, uint32_t low) {
#if defined(__AVX512BF16__)
    __m512bh w = (__m512bh)weights.part[0];
    sum.high.part[0] = (FloatPart)_mm512_dpbf16_ps((__m512)sum.high.part[0], w, (__m512bh)_mm512_set1_epi32(high));
    sum.low.part[0] = (FloatPart)_mm512_dpbf16_ps((__m512)sum.low.part[0], w, (__m512bh)_mm512_set1_epi32(low));
#else
    float even = bf16_to_float(uint16_t(high)) + bf16_to_float(uint16_t(low));
    float odd = bf16_to_float(uint16_t(high >> 16)) + bf16_to_float(uint16_t(low >> 16));
    EACH_PART {
        sum.high.part[p] += (FloatPart)(weights.part[p] << 16) * even;
        sum.low.part[p] += (FloatPart)(weights.part[p] & int32_t(0xffff0000)) * odd;
    }
#endif
}

// sum += four weights times four signed activations, for sixteen rows. x holds the four activations in -127..127.
// AVX-512 multiplies unsigned by signed bytes: there the stored weights are raised to be unsigned, and the caller
// starts from -RAISED times the sum of the activations. Elsewhere the weights are signed.
#if defined(__AVX512VNNI__)
constexpr bool UNSIGNED_WEIGHTS = true;
#else
constexpr bool UNSIGNED_WEIGHTS = false;
#endif

inline void add_quads(Ints& sum, const Ints& weights, int32_t x) {
#if defined(__AVX512VNNI__)
    __m512i four = _mm512_set1_epi32(x);
    sum.part[0] = (IntPart)_mm512_dpbusd_epi32((__m512i)sum.part[0], (__m512i)weights.part[0], four);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    // |x| is unsigned; the sign of x moves to the weight. Two products stay below 2^15, so nothing saturates.
    __m256i four = _mm256_set1_epi32(x), size = _mm256_abs_epi8(four);
    EACH_PART {
        __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8((__m256i)weights.part[p], four));
        sum.part[p] += (IntPart)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
#elif defined(__ARM_FEATURE_DOTPROD)
    int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(x));
    EACH_PART sum.part[p] = (IntPart)vdotq_s32((int32x4_t)sum.part[p], (int8x16_t)weights.part[p], four);
#else
    // Shifting left and right again extends the sign of each byte of the weight.
    for (int j = 0; j < 4; ++j) {
        int32_t value = int8_t(x >> (8 * j));
        EACH_PART sum.part[p] += ((weights.part[p] << (24 - 8 * j)) >> 24) * value;
    }
#endif
}

// Two lines of bytes from one line of nibbles, which store weight + 8. Signed weights get the 8 subtracted.
inline void unpack_nibbles(const Ints& nibbles, Ints& low, Ints& high) {
    EACH_PART {
        low.part[p] = nibbles.part[p] & 0x0f0f0f0f;
        high.part[p] = (nibbles.part[p] >> 4) & 0x0f0f0f0f;
        if (!UNSIGNED_WEIGHTS) {
            low.part[p] = (IntPart)((BytePart)low.part[p] - 8);
            high.part[p] = (IntPart)((BytePart)high.part[p] - 8);
        }
    }
}

}  // namespace lanes
