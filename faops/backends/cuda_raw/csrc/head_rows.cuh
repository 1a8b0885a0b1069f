// The rows of a lane in a tile of one head's query rows.
#pragma once
#include "scores.cuh"
#include "work.cuh"

struct HeadRows {
    using Work = ::Work;
    static constexpr bool PADDED = false;  // keys begin at 0
    int row;                               // of the lane's first score, within the sequence
    float slope_of_head;
    i64 bias_of_head, mask_of_head;

    DEVICE HeadRows(const Params& params, const Work& work) {
        row = work.first_row + warp_row() + lane_index() / 4;
        slope_of_head = 0;
        bias_of_head = mask_of_head = 0;
        if constexpr (ALIBI)
            slope_of_head = load_global(params.alibi_slopes + work.batch * params.alibi_batch + work.head) * LOG2_E;
        if constexpr (BIAS != 0) bias_of_head = work.batch * params.bias_batch + work.head * params.bias_head;
        if constexpr (MASK) mask_of_head = work.batch * params.mask_batch + work.head * params.mask_head;
    }
    DEVICE int position(int m, int half) const { return row + 16 * m + 8 * half; }
    DEVICE float slope(int, int) const { return slope_of_head; }
    DEVICE i64 bias_start(int, int) const { return bias_of_head; }
    DEVICE i64 mask_start(int, int) const { return mask_of_head; }
};

using Logits = LogitsOf<HeadRows>;
