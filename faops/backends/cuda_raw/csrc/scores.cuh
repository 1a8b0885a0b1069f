// From products of queries and keys to logits: softcap, ALiBi, bias, then the masks. Everything a kernel was not
// specialised for leaves no trace in it.
#pragma once
#include "element.cuh"
#include "params.cuh"
#include "shape.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

constexpr int ROW_BLOCKS = WARP_ROWS / 16;  // blocks of 16 rows that a warp has
constexpr int KEY_BLOCKS = WARP_KEYS / 8;     // blocks of 8 keys, the width of a matrix product
using Scores = float[ROW_BLOCKS][KEY_BLOCKS][4];

// Without these the raw product is the logit, up to a positive factor that the exponential takes in for free.
constexpr bool LOGITS_CHANGED = SOFTCAP || ALIBI || BIAS != 0 || !SCALE_POSITIVE;

// One value of a bias of 16-bit elements or float32, or two neighbouring ones where the layout allows.
DEVICE float bias_value(const Params& params, i64 index) {
    if constexpr (BIAS == 2) return load_global(static_cast<const float*>(params.bias) + index);
    u16 bits = load_global(static_cast<const u16*>(params.bias) + index);
    return BFLOAT16 ? widen_bf16(bits) : widen_f16(bits);
}
DEVICE void bias_pair(float (&value)[2], const Params& params, i64 index) {
    if constexpr (BIAS == 2) {
        Vec2 two = load_global(reinterpret_cast<const Vec2*>(static_cast<const float*>(params.bias) + index));
        value[0] = as_float(two.x);
        value[1] = as_float(two.y);
    } else {
        u32 two = load_global(reinterpret_cast<const u32*>(static_cast<const u16*>(params.bias) + index));
        u16 low = static_cast<u16>(two), high = static_cast<u16>(two >> 16);
        value[0] = BFLOAT16 ? widen_bf16(low) : widen_f16(low);
        value[1] = BFLOAT16 ? widen_bf16(high) : widen_f16(high);
    }
}

// The logits of one warp. LaneRows tells where a lane's rows lie: score [m][n][2 h + e] is in row (m, h) of the lane, whose
// position in the sequence, slope, bias and mask it knows; and, in the block of keys that starts at 0, at key + 8 n + e.
template <typename LaneRows>
struct LogitsOf {
    using Work = typename LaneRows::Work;
    const Params& params;
    const Work& work;
    const LaneRows rows;
    int key;
    float factor;  // exp2(factor * logit) is the exponential of the true logit

    DEVICE LogitsOf(const Params& params_, const Work& work_) : params(params_), work(work_), rows(params_, work_) {
        key = lane_index() % 4 * 2;
        factor = LOGITS_CHANGED ? 1.0f : params.scale * LOG2_E;
    }

    // Turns the products with the keys of `block` into logits; hidden pairs become -inf.
    DEVICE void apply(Scores& scores, int block) const {
        int first = block * WARP_KEYS + key;
        if constexpr (LOGITS_CHANGED) change(scores, first);
        if (work.is_edge(params, block)) hide(scores, first);
        if constexpr (MASK) hide_masked(scores, first);
    }

    DEVICE void change(Scores& scores, int first) const {
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                int at = rows.position(m, half);
                float distance = static_cast<float>(at + work.shift - first);
                UNROLL
                for (int n = 0; n < KEY_BLOCKS; ++n) {
                    float added[2] = {0, 0};
                    if constexpr (BIAS != 0) read_bias(added, rows.bias_start(m, half), at, first + 8 * n);
                    UNROLL
                    for (int e = 0; e < 2; ++e) {
                        float& score = scores[m][n][2 * half + e];
                        if constexpr (SOFTCAP) {
                            // tanh(x) = 1 - 2 / (1 + exp(2 x)): within 1e-7 everywhere and right at both ends
                            float power = exp2_fast(score * (params.scale / params.softcap * 2 * LOG2_E));
                            score = params.softcap * LOG2_E * (1 - divide_fast(2, 1 + power));
                        } else {
                            score *= params.scale * LOG2_E;
                        }
                        if constexpr (ALIBI) score -= rows.slope(m, half) * magnitude(distance - static_cast<float>(8 * n + e));
                        if constexpr (BIAS != 0) score = fused_multiply_add(added[e], LOG2_E, score);
                    }
                }
            }
        }
    }

    // Bias of keys `at_key` and `at_key` + 1; 0 outside the matrix.
    DEVICE void read_bias(float (&value)[2], i64 start, int at_row, int at_key) const {
        if (at_row >= work.rows) return;
        i64 index = start + at_row * params.bias_row + at_key * params.bias_key;
        if constexpr (BIAS_PAIRS) {
            if (at_key + 1 < work.keys) {
                bias_pair(value, params, index);
                return;
            }
        }
        UNROLL
        for (int e = 0; e < 2; ++e) {
            if (at_key + e < work.keys) value[e] = bias_value(params, index + e * params.bias_key);
        }
    }

    // Hides what lies outside the sequence or the band.
    DEVICE void hide(Scores& scores, int first) const {
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                int diagonal = rows.position(m, half) + work.shift;
                int end = work.keys, start = 0;
                if constexpr (WINDOW_RIGHT) end = smaller(end, diagonal + params.window_right + 1);
                if constexpr (WINDOW_LEFT) start = diagonal - params.window_left;
                if constexpr (LaneRows::PADDED) start = larger(start, work.first_key);
                UNROLL
                for (int n = 0; n < KEY_BLOCKS; ++n) {
                    UNROLL
                    for (int e = 0; e < 2; ++e) {
                        int at_key = first + 8 * n + e;
                        bool hidden = at_key >= end;
                        if constexpr (WINDOW_LEFT || LaneRows::PADDED) hidden |= at_key < start;
                        if (hidden) scores[m][n][2 * half + e] = -infinity();
                    }
                }
            }
        }
    }

    // Hides what the boolean mask hides. One byte a pair, read where it is needed.
    DEVICE void hide_masked(Scores& scores, int first) const {
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                int at_row = rows.position(m, half);
                if (at_row >= work.rows) continue;
                i64 start = rows.mask_start(m, half) + at_row * params.mask_row;
                UNROLL
                for (int n = 0; n < KEY_BLOCKS; ++n) {
                    UNROLL
                    for (int e = 0; e < 2; ++e) {
                        int at_key = first + 8 * n + e;
                        if (at_key < work.keys && !load_global(params.mask + start + at_key * params.mask_key))
                            scores[m][n][2 * half + e] = -infinity();
                    }
                }
            }
        }
    }
};
