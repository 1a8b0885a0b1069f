// Which part of the problem a block has: a tile of query rows of one head of one sequence, and the keys it sees.
#pragma once
#include "params.cuh"
#include "shape.cuh"

struct Work {
    int batch, head;
    int first_row;               // of the tile, within the sequence
    int rows, keys;              // of the sequence
    int shift;                   // row i and key i + shift lie on the diagonal
    i64 row_start, key_start;    // varlen: where the sequence starts in the packed tensors
    int first_block, end_block;  // blocks of TILE_N keys that some row of the tile sees

    DEVICE Work(const Params& params) {
        u32 index = block_index();
        int tile = index % params.row_tiles;
        index /= params.row_tiles;
        head = index % params.heads;
        batch = index / params.heads;
        // Under a right limit the last rows see most keys. Long tiles go first, so that short ones fill the end.
        if constexpr (WINDOW_RIGHT) tile = params.row_tiles - 1 - tile;
        first_row = tile * TILE_M;
        row_start = key_start = 0;
        rows = params.seqlen_q;
        keys = params.seqlen_k;
        if constexpr (VARLEN) {
            if (batch < params.batch) {
                row_start = load_global(params.cu_seqlens_q + batch);
                key_start = load_global(params.cu_seqlens_k + batch);
                rows = load_global(params.cu_seqlens_q + batch + 1) - static_cast<int>(row_start);
                keys = load_global(params.cu_seqlens_k + batch + 1) - static_cast<int>(key_start);
            }
        }
        shift = keys - rows;
        int last_row = smaller(first_row + TILE_M, rows) - 1;
        int first_key = 0, end_key = keys;
        if constexpr (WINDOW_LEFT) first_key = larger(0, first_row + shift - params.window_left);
        if constexpr (WINDOW_RIGHT) end_key = smaller(keys, last_row + shift + params.window_right + 1);
        first_block = first_key / TILE_N;
        end_block = end_key > first_key ? (end_key + TILE_N - 1) / TILE_N : first_block;
    }

    // Whether some pair of this tile's rows and the block's keys is hidden.
    DEVICE bool is_edge(const Params& params, int block) const {
        int first_key = block * TILE_N, end_key = first_key + TILE_N;
        bool edge = end_key > keys;
        if constexpr (WINDOW_RIGHT) edge |= end_key - 1 > first_row + shift + params.window_right;
        if constexpr (WINDOW_LEFT) edge |= first_key < first_row + TILE_M - 1 + shift - params.window_left;
        return edge;
    }
};

// Varlen: rows behind the last sequence belong to nobody. One block a head defines them: 0, and -inf for lse.
DEVICE void clear_padding(const Params& params, int head) {
    int first = load_global(params.cu_seqlens_q + params.batch);
    for (int row = first + warp_index(); row < params.total_q; row += WARPS) {
        u16* out = params.out + row * params.out_row + head * params.out_head;
        for (int element = lane_index(); element < params.head_dim_v; element += 32) store_global(out + element, u16(0));
        if constexpr (LSE) {
            if (lane_index() == 0) store_global(params.lse + head * params.lse_head + row, -infinity());
        }
    }
}
