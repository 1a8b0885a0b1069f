// From the accumulators to device memory, by way of shared memory so that whole rows are written at once.
#pragma once
#include "matrix.cuh"
#include "work.cuh"

// `shared` is free for OutTile::BYTES; every warp uses its own rows of it only.
DEVICE void store_result(const Rows& rows, const float (&lse)[ROW_BLOCKS][2], const Params& params, const Work& work,
                         u32 shared) {
    int lane = lane_index(), first = warp_index() * WARP_ROWS;
    UNROLL
    for (int m = 0; m < ROW_BLOCKS; ++m) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
            int row = first + 16 * m + 8 * half + lane / 4;
            UNROLL
            for (int n = 0; n < OUT_BLOCKS; ++n) {
                u32 two = pack(rows.out[m][n][2 * half], rows.out[m][n][2 * half + 1]);
                store_shared_u32(shared + OutTile::offset(row, n) + lane % 4 * 4, two);
            }
            if constexpr (LSE) {
                int at = work.first_row + row;
                if (lane % 4 == 0 && at < work.rows) {
                    i64 start = work.batch * params.lse_batch + work.head * params.lse_head + work.row_start;
                    store_global(params.lse + start + at, lse[m][half]);
                }
            }
        }
    }
    sync_warp();
    u16* out = params.out + work.batch * params.out_batch + (work.row_start + work.first_row) * params.out_row +
               work.head * params.out_head;
    constexpr int CHUNKS = WARP_ROWS * OutTile::CHUNKS;  // of this warp's rows
    UNROLL
    for (int i = 0; i < CHUNKS; i += 32) {
        int index = i + lane;
        if (CHUNKS % 32 != 0 && index >= CHUNKS) break;
        int row = first + index / OutTile::CHUNKS, chunk = index % OutTile::CHUNKS;
        if (work.first_row + row >= work.rows) continue;
        u16* to = out + row * params.out_row + chunk * 8;
        u32 from = shared + OutTile::offset(row, chunk);
        if constexpr (OUT_VECTORS) {
            if (chunk * 8 < params.head_dim_v) store_global(reinterpret_cast<Vec4*>(to), load_shared_vec4(from));
        } else {
            UNROLL
            for (int pair = 0; pair < 4; ++pair) {
                u32 two = load_shared_u32(from + 4 * pair);
                int element = chunk * 8 + 2 * pair;
                if (element < params.head_dim_v) store_global(to + 2 * pair, static_cast<u16>(two));
                if (element + 1 < params.head_dim_v) store_global(to + 2 * pair + 1, static_cast<u16>(two >> 16));
            }
        }
    }
}
