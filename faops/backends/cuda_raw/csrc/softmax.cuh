// Online softmax: the sum of each row and its result so far, relative to a level that rises with the row's maximum.
#pragma once
#include "philox.cuh"
#include "scores.cuh"

constexpr int OUT_BLOCKS = WIDTH_V / 8;
constexpr bool LAZY = MMA_DEPTH == 16;
constexpr float GROWTH = 8;  // binary digits; 2^8 is far from what float16 holds, so probabilities keep all their digits

// The rows of one warp. Row sums stay split over the four lanes that share a row until the end.
struct Rows {
    float out[ROW_BLOCKS][OUT_BLOCKS][4];
    float level_of[ROW_BLOCKS][2];  // the logit that exponentials are relative to: the maximum so far or a little less
    float sum_of[ROW_BLOCKS][2];

    DEVICE Rows() {
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            UNROLL
            for (int n = 0; n < OUT_BLOCKS; ++n) {
                UNROLL
                for (int i = 0; i < 4; ++i) out[m][n][i] = 0;
            }
            UNROLL
            for (int half = 0; half < 2; ++half) {
                level_of[m][half] = -infinity();
                sum_of[m][half] = 0;
            }
        }
    }

    // Turns the logits of one more block of keys into probabilities, up to the row's final sum.
    DEVICE void absorb(Scores& scores, float factor) {
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            raise_levels(m, scores[m], factor);
            UNROLL
            for (int half = 0; half < 2; ++half) {
                float offset = -in_exponent(level_of[m][half], factor);
                float sum = 0;
                UNROLL
                for (int n = 0; n < KEY_BLOCKS; ++n) {
                    UNROLL
                    for (int e = 0; e < 2; ++e) {
                        float& score = scores[m][n][2 * half + e];
                        score = exp2_fast(fused_multiply_add(score, factor, offset));
                        sum += score;
                    }
                }
                sum_of[m][half] += sum;
            }
        }
    }

    // A row that has seen no key yet has level -inf: 0 instead keeps -inf - -inf out of the exponent.
    DEVICE static float in_exponent(float level, float factor) { return level == -infinity() ? 0.0f : level * factor; }

    // Rescaling costs a product for every element of the result, so levels rise only when some row of the 16 has
    // outgrown its own by a factor of 2^GROWTH; until then its exponentials are merely that much larger than 1.
    // Turing's matrix products leave time enough to rescale always, and the registers are better used there.
    DEVICE void raise_levels(int m, const float (&scores)[KEY_BLOCKS][4], float factor) {
        float highest[2];
        bool outgrown = false;
        UNROLL
        for (int half = 0; half < 2; ++half) {
            float most = level_of[m][half];
            UNROLL
            for (int n = 0; n < KEY_BLOCKS; ++n)
                most = maximum(most, maximum(scores[n][2 * half], scores[n][2 * half + 1]));
            most = maximum(most, shuffle_xor(most, 1));
            most = maximum(most, shuffle_xor(most, 2));
            highest[half] = most;
            outgrown |= (most - level_of[m][half]) * factor > GROWTH;  // no for -inf - -inf
        }
        if (LAZY && !any_in_warp(outgrown)) return;
        UNROLL
        for (int half = 0; half < 2; ++half) {
            float offset = -in_exponent(highest[half], factor);
            float shrink = exp2_fast(fused_multiply_add(level_of[m][half], factor, offset));
            level_of[m][half] = highest[half];
            sum_of[m][half] *= shrink;
            UNROLL
            for (int n = 0; n < OUT_BLOCKS; ++n) {
                out[m][n][2 * half] *= shrink;
                out[m][n][2 * half + 1] *= shrink;
            }
        }
    }

    // After the last block. Divides by the sum, with the sink as one more logit of the head, and gives each row's lse.
    template <typename Params, typename Work>
    DEVICE void finish(float (&lse)[ROW_BLOCKS][2], const Params& params, const Work& work, float factor) {
        float sink = 0;
        if constexpr (SINKS) sink = load_global(params.sinks + work.head) * LOG2_E;
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                float sum = sum_of[m][half];
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                float highest = level_of[m][half] * factor;
                bool dead = level_of[m][half] == -infinity();
                float shrink = 1;
                if constexpr (SINKS) {
                    float with_sink = maximum(highest, sink);
                    shrink = exp2_fast(highest - with_sink);
                    sum = fused_multiply_add(sum, shrink, exp2_fast(sink - with_sink));
                    highest = with_sink;
                }
                if constexpr (DROPOUT) shrink *= params.keep_scale;
                float scale = dead ? 0.0f : divide_fast(shrink, sum);
                lse[m][half] = dead ? -infinity() : (highest + log2_fast(sum)) * LN_2;
                UNROLL
                for (int n = 0; n < OUT_BLOCKS; ++n) {
                    out[m][n][2 * half] *= scale;
                    out[m][n][2 * half + 1] *= scale;
                }
            }
        }
    }
};

// Dropout on the probabilities of one block, after they were summed. The four lanes of a row's 8 keys need two groups of
// random words: each lane draws one group for one of its two rows and trades half of it with its neighbour.
template <typename Logits>
DEVICE void drop(Scores& probabilities, const Philox& philox, const Logits& logits, int block) {
    const auto& params = logits.params;
    bool odd = lane_index() & 1;
    u32 head = logits.work.batch * params.heads + logits.work.head;
    UNROLL
    for (int m = 0; m < ROW_BLOCKS; ++m) {
        UNROLL
        for (int n = 0; n < KEY_BLOCKS; ++n) {
            u32 words[4], mine[2], theirs[2];
            u32 key_group = (block * TILE_N + 8 * n) / 4 + lane_index() % 4 / 2;
            philox.words(words, key_group, logits.rows.row + 16 * m + (odd ? 8 : 0), head);
            UNROLL
            for (int e = 0; e < 2; ++e) {
                mine[e] = odd ? words[2 + e] : words[e];
                theirs[e] = shuffle_xor(odd ? words[e] : words[2 + e], 1);
            }
            UNROLL
            for (int e = 0; e < 2; ++e) {
                u32 upper = odd ? theirs[e] : mine[e], lower = odd ? mine[e] : theirs[e];
                if (upper < params.drop_below) probabilities[m][n][e] = 0;
                if (lower < params.drop_below) probabilities[m][n][2 + e] = 0;
            }
        }
    }
}
