// From the accumulators of a block's warps to its result: in shared memory, where warps that had keys of their own add up.
//
// Each warp leaves its rows in float32, relative to a level of its own, with level and sum; wide rows in rounds of 128
// columns. A row of the results is STRIDE floats, 8 banks on from the row before it, so that the 8 rows that a matrix
// product deals out meet in no bank.
#pragma once
#include "decode_work.cuh"
#include "matrix.cuh"

constexpr int COLUMNS = WIDTH_V < 128 ? WIDTH_V : 128;  // of a round
constexpr int ROUNDS = (WIDTH_V + COLUMNS - 1) / COLUMNS;
constexpr int STRIDE = COLUMNS + (COLUMNS % 32 == 0 ? 8 : 24);
constexpr int RESULTS = KEY_WARPS * TILE_M;  // rows of all warps
constexpr int LEVELS_START = RESULTS * STRIDE * 4;
constexpr int SUMS_START = LEVELS_START + RESULTS * 4;

// Leaves one round of a warp's rows in shared memory; levels in binary digits.
template <int ROUND>
DEVICE void leave_rows(const Rows& rows, float factor, u32 shared) {
    int lane = lane_index();
    bool odd = lane >= 16;  // such lanes store their second element first: their banks are one on
    int first = (KEY_WARPS == 1 ? 0 : warp_index() * TILE_M) + warp_row() + lane / 4;
    UNROLL
    for (int m = 0; m < ROW_BLOCKS; ++m) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            int row = first + 16 * m + 8 * half;
            float sum = rows.sum_of[m][half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            if (ROUND == 0 && lane % 4 == 0) {
                store_shared_u32(shared + LEVELS_START + row * 4, as_bits(rows.level_of[m][half] * factor));
                store_shared_u32(shared + SUMS_START + row * 4, as_bits(sum));
            }
            u32 to = shared + (row * STRIDE + lane % 4 * 2) * 4;
            UNROLL
            for (int n = 0; n < COLUMNS / 8; ++n) {
                int block = ROUND * (COLUMNS / 8) + n;
                if (block >= OUT_BLOCKS) break;
                u32 low = as_bits(rows.out[m][block][2 * half]), high = as_bits(rows.out[m][block][2 * half + 1]);
                store_shared_u32(to + n * 32 + (odd ? 4 : 0), odd ? high : low);
                store_shared_u32(to + n * 32 + (odd ? 0 : 4), odd ? low : high);
            }
        }
    }
}

// One row of the tile, all its warps together.
struct Together {
    float weights[KEY_WARPS];  // of the warps' results
    float highest, sum;        // level in binary digits, and the sum relative to it

    DEVICE Together(int row, u32 shared) {
        float levels[KEY_WARPS];
        highest = -infinity();
        UNROLL
        for (int warp = 0; warp < KEY_WARPS; ++warp) {
            levels[warp] = as_float(load_shared_u32(shared + LEVELS_START + (warp * TILE_M + row) * 4));
            highest = maximum(highest, levels[warp]);
        }
        sum = 0;
        float base = highest == -infinity() ? 0.0f : highest;
        UNROLL
        for (int warp = 0; warp < KEY_WARPS; ++warp) {
            weights[warp] = exp2_fast(levels[warp] - base);
            float part = as_float(load_shared_u32(shared + SUMS_START + (warp * TILE_M + row) * 4));
            sum = fused_multiply_add(part, weights[warp], sum);
        }
    }
    DEVICE bool dead() const { return highest == -infinity(); }

    // One more logit, in binary digits, whose value is 0. Returns what the results shrink by.
    DEVICE float join(float logit) {
        float higher = maximum(highest, logit), shrink = exp2_fast(highest - higher);
        sum = fused_multiply_add(sum, shrink, exp2_fast(logit - higher));
        highest = higher;
        return shrink;
    }

    // Four neighbouring columns, not yet divided by the sum.
    DEVICE void columns(float (&result)[4], int row, int column, u32 shared) const {
        UNROLL
        for (int e = 0; e < 4; ++e) result[e] = 0;
        UNROLL
        for (int warp = 0; warp < KEY_WARPS; ++warp) {
            Vec4 part = load_shared_vec4(shared + ((warp * TILE_M + row) * STRIDE + column) * 4);
            const u32 words[4] = {part.x, part.y, part.z, part.w};
            UNROLL
            for (int e = 0; e < 4; ++e) result[e] = fused_multiply_add(as_float(words[e]), weights[warp], result[e]);
        }
    }
};

// Four elements of a row of `width`, from `column` on, in float32; the rows begin at multiples of 16 bytes where VECTORS.
template <bool VECTORS>
DEVICE void store_floats(float* row, int column, int width, const float (&values)[4]) {
    if constexpr (VECTORS) {
        if (column < width)
            store_global(reinterpret_cast<Vec4*>(row + column),
                         Vec4{as_bits(values[0]), as_bits(values[1]), as_bits(values[2]), as_bits(values[3])});
    } else {
        UNROLL
        for (int e = 0; e < 4; ++e) {
            if (column + e < width) store_global(row + column + e, values[e]);
        }
    }
}

// The same, rounded to elements; the rows begin at multiples of 8 bytes where VECTORS.
template <bool VECTORS>
DEVICE void store_elements(u16* row, int column, int width, const float (&values)[4]) {
    const u32 words[2] = {pack(values[0], values[1]), pack(values[2], values[3])};
    if constexpr (VECTORS) {
        if (column < width) store_global(reinterpret_cast<Vec2*>(row + column), Vec2{words[0], words[1]});
    } else {
        UNROLL
        for (int e = 0; e < 4; ++e) {
            if (column + e < width) store_global(row + column + e, static_cast<u16>(words[e / 2] >> (e % 2 * 16)));
        }
    }
}

// A split's result of one row, divided by its sum, and the logarithm of that sum, which tells where there is none.
DEVICE void store_part(const Params& params, const Work& work, const Together& together, int row, int column,
                       float (&values)[4]) {
    i64 number = work.number(params, row) * params.splits + work.split;
    if (!together.dead()) {
        UNROLL
        for (int e = 0; e < 4; ++e) values[e] = divide_fast(values[e], together.sum);
        store_floats<PARTIAL_VECTORS>(params.partial + number * params.head_dim_v, column, params.head_dim_v, values);
    }
    if (column == 0) {
        float* logs = params.partial + params.partial_rows * params.splits * params.head_dim_v;
        store_global(logs + number, together.dead() ? -infinity() : together.highest + log2_fast(together.sum));
    }
}

// The result of one row of a call that is not split.
DEVICE void store_whole(const Params& params, const Work& work, Together& together, int row, int column,
                        float (&values)[4]) {
    int at = work.first_row + row, position = at / params.group, head = work.head * params.group + at % params.group;
    bool dead = together.dead();
    float scale = 1;
    if constexpr (SINKS) scale = together.join(load_global(params.sinks + head) * LOG2_E);
    scale = dead ? 0.0f : divide_fast(scale, together.sum);
    UNROLL
    for (int e = 0; e < 4; ++e) values[e] *= scale;
    u16* out = params.out + work.batch * params.out_batch + position * params.out_row + head * params.out_head;
    store_elements<OUT_VECTORS>(out, column, params.head_dim_v, values);
    if constexpr (LSE) {
        float* lse = params.lse + work.batch * params.lse_batch + head * params.lse_head + position;
        if (column == 0) store_global(lse, dead ? -infinity() : (together.highest + log2_fast(together.sum)) * LN_2);
    }
}

// Eight lanes take 32 columns of a row at a time.
DEVICE void store_round(int round, const Params& params, const Work& work, u32 shared) {
    constexpr int LANES = (COLUMNS + 31) / 32 * 8;  // of a row
    for (int i = thread_index(); i < TILE_M * LANES; i += THREADS) {
        int row = i / LANES, column = i % LANES * 4, first = round * COLUMNS;
        if ((work.first_row + row) / params.group >= work.rows || column >= smaller(COLUMNS, WIDTH_V - first)) continue;
        Together together(row, shared);
        float values[4];
        together.columns(values, row, column, shared);
        if constexpr (SPLIT)
            store_part(params, work, together, row, first + column, values);
        else
            store_whole(params, work, together, row, first + column, values);
    }
}

// Begins when nobody needs what lies in shared memory any more.
template <int ROUND = 0>
DEVICE void store_rows(const Rows& rows, float factor, const Params& params, const Work& work, u32 shared) {
    sync_block();
    leave_rows<ROUND>(rows, factor, shared);
    sync_block();
    store_round(ROUND, params, work, shared);
    if constexpr (ROUND + 1 < ROUNDS) store_rows<ROUND + 1>(rows, factor, params, work, shared);
}

// A split without keys.
DEVICE void store_nothing(const Params& params, const Work& work) {
    float* logs = params.partial + params.partial_rows * params.splits * params.head_dim_v;
    for (int row = thread_index(); row < TILE_M; row += THREADS) {
        if ((work.first_row + row) / params.group >= work.rows) continue;
        store_global(logs + work.number(params, row) * params.splits + work.split, -infinity());
    }
}
