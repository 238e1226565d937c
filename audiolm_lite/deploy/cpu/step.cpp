// One step of a Llama-like language model for any tokens of any rows of a key/value cache, on the CPU.
//
// A decoding step, a chunk of a prompt and the verification of drafted tokens differ only in the lists `rows` and
// `positions`. All threads run `Step::run` together; `team.wait()` separates its phases, which read what other threads
// wrote in the phase before.
//
// The structures at the top are those of model.py, field by field.
#include <memory>

#include "attention.h"
#include "formats.h"
#include "team.h"

using namespace formats;

extern "C" {

struct Matrix {
    int32_t format;      // index in FORMATS of model.py
    int32_t rows;        // outputs, not padded
    int32_t inputs;      // padded to INPUTS
    const char* blocks;  // see formats.h
    const float* bias;   // [rows] or null
};

struct Layer {
    Matrix query_key_value, output, gate_up, down;
    const float* attention_norm;  // [hidden]
    const float* mlp_norm;        // [hidden]
    const float* query_norm;      // [head_dim] or null
    const float* key_norm;        // [head_dim] or null
    int32_t rotary;               // 0: a layer without positions
};

struct Model {
    int32_t layers, hidden, heads, kv_heads, head_dim, rotary_dim, intermediate;
    float epsilon, scaling;
    const Layer* layer;       // [layers]
    const float* final_norm;  // [hidden]
    Matrix head;
    const float* cosine;  // [positions, rotary_dim]
    const float* sine;
};

struct Tokens {
    int64_t count;
    const int64_t* rows;       // [count] row of the cache
    const int64_t* positions;  // [count] slot and rotary position; ascending within a row
    float* hidden;             // [count, hidden] embeddings; overwritten
    void* const* keys;         // [layers] caches [rows, kv_heads, capacity, head_dim]
    void* const* values;
    int32_t cache_is_bf16;
    int64_t capacity;
    int64_t outputs;        // tokens whose logits are wanted
    const int64_t* chosen;  // [outputs] their indices
    float* logits;          // [outputs, vocabulary]
};

}  // extern "C"

namespace {

float mean_square(const float* x, int size) {
    Floats sum = broadcast(0.0f);
    int i = 0;
    for (; i + 16 <= size; i += 16) add_product(sum, load(x + i), load(x + i));
    float result = total(sum);
    for (; i < size; ++i) result += x[i] * x[i];
    return result / size;
}

void rms_norm(const float* x, const float* weight, int size, float epsilon, float* out) {
    float scale = 1.0f / std::sqrt(mean_square(x, size) + epsilon);
    for (int i = 0; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

// Buffers of a step. Rows of floats are padded to INPUTS; nothing is ever written to the padding, which stays zero.
struct Buffers {
    std::vector<float> normed, query_key_value, attended, gate_up, inner;
    std::vector<char> prepared;
    std::vector<std::vector<float>> scores;  // one per thread
};

class Step {
   public:
    Step(const Model& model, const Tokens& tokens, Team& team, Buffers& buffers)
        : model(model), tokens(tokens), team(team), buffers(buffers) {
        hidden = padded(model.hidden, INPUTS);
        attention_size = padded(model.heads * model.head_dim, INPUTS);
        inner = padded(model.intermediate, INPUTS);
        qkv_size = (model.heads + 2 * model.kv_heads) * model.head_dim;
        prepared_stride = token_bytes(std::max({hidden, attention_size, inner}));
        auto reserve = [](auto& buffer, int64_t size) {
            if (int64_t(buffer.size()) < size) buffer.resize(size);
        };
        reserve(buffers.normed, tokens.count * hidden);
        reserve(buffers.query_key_value, tokens.count * qkv_size);
        reserve(buffers.attended, tokens.count * attention_size);
        reserve(buffers.gate_up, tokens.count * 2 * model.intermediate);
        reserve(buffers.inner, tokens.count * inner);
        reserve(buffers.prepared, tokens.count * prepared_stride + LINE);
        buffers.scores.resize(team.size);
        for (auto& scores : buffers.scores) reserve(scores, padded(tokens.capacity, 16));
        char* first = buffers.prepared.data();
        prepared = first + (LINE - intptr_t(first) % LINE) % LINE;
    }

    void run(int rank) {
        for (int l = 0; l < model.layers; ++l) {
            const Layer& layer = model.layer[l];
            norm_and_prepare(rank, layer.attention_norm, layer.query_key_value);
            product(rank, layer.query_key_value, tokens.count, buffers.query_key_value.data(), qkv_size, false);
            if (tokens.cache_is_bf16)
                attend<uint16_t>(rank, layer, l);
            else
                attend<float>(rank, layer, l);
            prepare(rank, buffers.attended.data(), attention_size, layer.output);
            product(rank, layer.output, tokens.count, tokens.hidden, model.hidden, true);
            norm_and_prepare(rank, layer.mlp_norm, layer.gate_up);
            product(rank, layer.gate_up, tokens.count, buffers.gate_up.data(), 2 * model.intermediate, false);
            activate(rank, layer.down);
            product(rank, layer.down, tokens.count, tokens.hidden, model.hidden, true);
        }
        for (Share own(tokens.outputs, rank, team.size); own.begin < own.end; ++own.begin) {
            float* normed = &buffers.normed[own.begin * hidden];
            const float* x = tokens.hidden + tokens.chosen[own.begin] * model.hidden;
            rms_norm(x, model.final_norm, model.hidden, model.epsilon, normed);
            prepare_token(normed, own.begin, model.head);
        }
        team.wait();
        product(rank, model.head, tokens.outputs, tokens.logits, model.head.rows, false);
    }

    void prepare_token(const float* x, int64_t token, const Matrix& matrix) {
        char* to = prepared + token * prepared_stride;
        dispatch(matrix.format, [&](auto format) { decltype(format)::prepare(x, matrix.inputs, to); });
    }

    // out[token][row] = (or +=) matrix * prepared activations
    void product(int rank, const Matrix& matrix, int64_t count, float* out, int64_t stride, bool add) {
        dispatch(matrix.format, [&](auto format) {
            using Format = decltype(format);
            const int64_t bytes = Format::block_bytes(matrix.inputs);
            for (Share own(padded(matrix.rows, ROWS) / ROWS, rank, team.size); own.begin < own.end; ++own.begin) {
                const char* block = matrix.blocks + own.begin * bytes;
                const int64_t row = own.begin * ROWS;
                int64_t token = 0;
                for (; token + Format::TILE <= count; token += Format::TILE)
                    tile<Format, Format::TILE>(matrix, block, row, token, out, stride, add);
                for (; token < count; ++token) tile<Format, 1>(matrix, block, row, token, out, stride, add);
            }
        });
        team.wait();
    }

   private:
    void norm_and_prepare(int rank, const float* weight, const Matrix& matrix) {
        for (Share own(tokens.count, rank, team.size); own.begin < own.end; ++own.begin) {
            float* normed = &buffers.normed[own.begin * hidden];
            rms_norm(tokens.hidden + own.begin * model.hidden, weight, model.hidden, model.epsilon, normed);
            prepare_token(normed, own.begin, matrix);
        }
        team.wait();
    }

    void prepare(int rank, const float* x, int64_t stride, const Matrix& matrix) {
        for (Share own(tokens.count, rank, team.size); own.begin < own.end; ++own.begin)
            prepare_token(x + own.begin * stride, own.begin, matrix);
        team.wait();
    }

    // inner = silu(gate) * up
    void activate(int rank, const Matrix& matrix) {
        const int size = model.intermediate;
        for (Share own(tokens.count, rank, team.size); own.begin < own.end; ++own.begin) {
            const float* gate = &buffers.gate_up[own.begin * 2 * size];
            const float* up = gate + size;
            float* out = &buffers.inner[own.begin * inner];
            for (int i = 0; i < size; i += 16) {
                const int count = std::min(16, size - i);
                float part[16] = {}, power[16];
                for (int j = 0; j < count; ++j) part[j] = -gate[i + j];
                store(power, exponential(load(part)));
                for (int j = 0; j < count; ++j) out[i + j] = gate[i + j] / (1.0f + power[j]) * up[i + j];
            }
            prepare_token(out, own.begin, matrix);
        }
        team.wait();
    }

    template <class Format, int T>
    void tile(const Matrix& matrix, const char* block, int64_t row, int64_t token, float* out, int64_t stride,
              bool add) {
        Floats sum[T];
        Format::product(block, matrix.inputs, prepared + token * prepared_stride, prepared_stride, sum);
        const int64_t rows = std::min<int64_t>(ROWS, matrix.rows - row);
        for (int t = 0; t < T; ++t) {
            float* to = out + (token + t) * stride + row;
            if (rows == ROWS) {
                if (matrix.bias) sum[t] = sum[t] + load(matrix.bias + row);
                store(to, add ? load(to) + sum[t] : sum[t]);
                continue;
            }
            float result[ROWS];
            store(result, sum[t]);
            for (int64_t r = 0; r < rows; ++r)
                to[r] = result[r] + (matrix.bias ? matrix.bias[row + r] : 0.0f) + (add ? to[r] : 0.0f);
        }
    }

    template <class Cached>
    void attend(int rank, const Layer& layer, int l) {
        const int size = model.head_dim, heads = model.heads, kv_heads = model.kv_heads;
        Cached *keys = (Cached*)tokens.keys[l], *values = (Cached*)tokens.values[l];
        auto slot = [&](int64_t token, int kv_head) {
            return ((tokens.rows[token] * kv_heads + kv_head) * tokens.capacity + tokens.positions[token]) * size;
        };
        // Norm and rotation of queries and keys; keys and values go to the cache.
        for (Share own(tokens.count, rank, team.size); own.begin < own.end; ++own.begin) {
            const int64_t token = own.begin;
            float* query = &buffers.query_key_value[token * qkv_size];
            const int64_t angles = tokens.positions[token] * model.rotary_dim;
            for (int h = 0; h < heads + kv_heads; ++h) {
                float* head = query + h * size;
                const float* norm = h < heads ? layer.query_norm : layer.key_norm;
                if (norm) rms_norm(head, norm, size, model.epsilon, head);
                if (layer.rotary) attention::rotate(head, model.rotary_dim, model.cosine + angles, model.sine + angles);
            }
            for (int h = 0; h < kv_heads; ++h) {
                const float *key = query + (heads + h) * size, *value = key + kv_heads * size;
                for (int i = 0; i < size; ++i) {
                    attention::write(keys[slot(token, h) + i], key[i]);
                    attention::write(values[slot(token, h) + i], value[i]);
                }
            }
        }
        team.wait();
        for (Share own(tokens.count * heads, rank, team.size); own.begin < own.end; ++own.begin) {
            const int64_t token = own.begin / heads, head = own.begin % heads;
            const int kv_head = int(head / (heads / kv_heads));
            const int64_t first = (tokens.rows[token] * kv_heads + kv_head) * tokens.capacity * size;
            attention::attend(&buffers.query_key_value[token * qkv_size + head * size], keys + first, values + first,
                              tokens.positions[token] + 1, size, model.scaling, buffers.scores[rank].data(),
                              &buffers.attended[token * attention_size + head * size]);
        }
        team.wait();
    }

    const Model& model;
    const Tokens& tokens;
    Team& team;
    Buffers& buffers;
    int64_t hidden, attention_size, inner, qkv_size, prepared_stride;
    char* prepared;
};

struct Engine {
    Team team;
    Buffers buffers;
};

}  // namespace

extern "C" {

int64_t packed_bytes(int32_t format, int64_t rows, int64_t inputs) {
    return dispatch(format, [&](auto f) {
        return padded(rows, ROWS) / ROWS * decltype(f)::block_bytes(padded(inputs, INPUTS));
    });
}

// weights [rows, inputs] float32 -> the blocks of a matrix
void pack(int32_t format, int64_t rows, int64_t inputs, const float* weights, char* blocks) {
    const int64_t width = padded(inputs, INPUTS);
    std::vector<float> sixteen(ROWS * width);
    dispatch(format, [&](auto f) {
        using Format = decltype(f);
        for (int64_t row = 0; row < rows; row += ROWS, blocks += Format::block_bytes(width)) {
            std::fill(sixteen.begin(), sixteen.end(), 0.0f);
            for (int64_t r = 0; r < std::min<int64_t>(ROWS, rows - row); ++r)
                std::copy_n(weights + (row + r) * inputs, inputs, &sixteen[r * width]);
            Format::pack(sixteen.data(), width, blocks);
        }
    });
}

Engine* make_engine(int32_t threads) { return new Engine{Team(threads), {}}; }

void free_engine(Engine* engine) { delete engine; }

void run_step(Engine* engine, const Model* model, const Tokens* tokens) {
    Step step(*model, *tokens, engine->team, engine->buffers);
    engine->team.run([&](int rank) { step.run(rank); });
}

// out [count, rows] = x [count, inputs] * matrix; for tests and measurements of single products.
void multiply(Engine* engine, const Matrix* matrix, int64_t count, const float* x, int64_t inputs, float* out) {
    Model model{};
    Matrix square = *matrix;
    model.hidden = model.intermediate = matrix->inputs;
    Tokens tokens{};
    tokens.count = count;
    Step step(model, tokens, engine->team, engine->buffers);
    std::vector<float> row(matrix->inputs);
    for (int64_t token = 0; token < count; ++token) {
        std::copy_n(x + token * inputs, inputs, row.data());
        step.prepare_token(row.data(), token, square);
    }
    engine->team.run([&](int rank) { step.product(rank, square, count, out, square.rows, false); });
}

// What the code was compiled for, for logs and benchmarks.
const char* instructions() {
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
    return "AVX-512 with BF16 and VNNI";
#elif defined(__AVX512F__)
    return "AVX-512";
#elif defined(__AVX2__)
    return "AVX2";
#elif defined(__ARM_FEATURE_DOTPROD)
    return "NEON with dot products";
#elif defined(__ARM_NEON)
    return "NEON";
#else
    return "plain C++";
#endif
}

}  // extern "C"
