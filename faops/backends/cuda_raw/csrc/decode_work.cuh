// Which part of a decode call a block has: a tile of rows of one KV head, and one split of the keys of its sequence.
//
// The rows of a KV head are the query heads that share it, for one position after the other: row r is head r % group of
// position r / group. So a key is read once for all of them. Lengths are read here, on the device.
#pragma once
#include "params.cuh"
#include "rotary.cuh"
#include "scores.cuh"
#include "tile.cuh"

struct Work {
    int batch, head;    // sequence and KV head
    int split;
    int first_row;      // of the tile, among the rows of the KV head
    int rows;           // query positions
    int past, keys;     // keys before the new ones, and all
    int first_key;      // the keys before it are padding
    int page;           // dense: the sequence's entry of the cache, -1 where there is no such entry
    int shift;          // position i and key i + shift lie on the diagonal
    int first_position, last_position;  // of the tile
    int first_block, end_block;         // blocks of TILE_N keys of this split

    DEVICE Work(const Params& params) {
        u32 index = block_index();
        first_row = static_cast<int>(index % params.row_tiles) * TILE_M;
        index /= params.row_tiles;
        split = index % params.splits;
        index /= params.splits;
        head = index % params.heads_kv;
        batch = index / params.heads_kv;
        rows = params.seqlen_q;
        past = of_sequence(params.cache_seqlens, params.capacity, params.capacity);
        keys = smaller(past + params.new_keys, params.capacity);
        first_key = LEFTPAD ? of_sequence(params.cache_leftpad, 0, params.capacity) : 0;
        page = params.cache_batch_idx == nullptr ? batch : load_global(params.cache_batch_idx + batch);
        if (static_cast<u32>(page) >= static_cast<u32>(params.pages)) page = -1;
        shift = keys - rows;
        first_position = first_row / params.group;
        last_position = smaller((first_row + TILE_M - 1) / params.group, rows - 1);
        share_keys(params);
    }

    // This sequence's value, kept within [0, most]: on a GPU nobody has looked at it before.
    DEVICE int of_sequence(const int* values, int otherwise, int most) const {
        return values == nullptr ? otherwise : larger(0, smaller(load_global(values + batch), most));
    }

    // Splits share the blocks that some row of the tile sees evenly.
    DEVICE void share_keys(const Params& params) {
        int start = first_key, end = keys;
        if constexpr (WINDOW_LEFT) start = larger(start, first_position + shift - params.window_left);
        if constexpr (WINDOW_RIGHT) end = smaller(end, last_position + shift + params.window_right + 1);
        first_block = start / TILE_N;
        int blocks = end > start ? (end + TILE_N - 1) / TILE_N - first_block : 0;
        if constexpr (SPLIT) {
            int share = blocks / params.splits, left_over = blocks % params.splits;
            first_block += split * share + smaller(split, left_over);
            blocks = share + (split < left_over ? 1 : 0);
        }
        end_block = first_block + blocks;
    }

    // Whether some pair of this tile's rows and the keys of a warp's `slice` is hidden.
    DEVICE bool is_edge(const Params& params, int slice) const {
        int start = slice * WARP_KEYS, end = start + WARP_KEYS;
        bool edge = end > keys;
        if constexpr (LEFTPAD) edge |= start < first_key;
        if constexpr (WINDOW_RIGHT) edge |= end - 1 > first_position + shift + params.window_right;
        if constexpr (WINDOW_LEFT) edge |= start < last_position + shift - params.window_left;
        return edge;
    }

    // The number of a row of the tile among the rows of all KV heads and sequences.
    DEVICE i64 number(const Params& params, int row) const {
        i64 of_heads = static_cast<i64>(batch) * params.heads_kv + head;
        return of_heads * (static_cast<i64>(rows) * params.group) + first_row + row;
    }
};

// The rows of a lane.
struct GroupRows {
    using Work = ::Work;
    static constexpr bool PADDED = LEFTPAD;
    int positions[ROW_BLOCKS][2];
    float slopes[ROW_BLOCKS][2];
    i64 bias_starts[ROW_BLOCKS][2], mask_starts[ROW_BLOCKS][2];

    DEVICE GroupRows(const Params& params, const Work& work) {
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            UNROLL
            for (int half = 0; half < 2; ++half) {
                int row = work.first_row + warp_row() + 16 * m + 8 * half + lane_index() / 4;
                int head = work.head * params.group + row % params.group;
                positions[m][half] = row / params.group;
                slopes[m][half] = 0;
                bias_starts[m][half] = mask_starts[m][half] = 0;
                if constexpr (ALIBI)
                    slopes[m][half] = load_global(params.alibi_slopes + work.batch * params.alibi_batch + head) * LOG2_E;
                if constexpr (BIAS != 0)
                    bias_starts[m][half] = work.batch * params.bias_batch + head * params.bias_head;
                if constexpr (MASK) mask_starts[m][half] = work.batch * params.mask_batch + head * params.mask_head;
            }
        }
    }
    DEVICE int position(int m, int half) const { return positions[m][half]; }
    DEVICE float slope(int m, int half) const { return slopes[m][half]; }
    DEVICE i64 bias_start(int m, int half) const { return bias_starts[m][half]; }
    DEVICE i64 mask_start(int m, int half) const { return mask_starts[m][half]; }
};

using Logits = LogitsOf<GroupRows>;

// The tile's queries on their way to shared memory, rotated. Rows of no position are zeros.
template <typename QueryTile>
DEVICE void load_queries(u32 tile, const Params& params, const Work& work) {
    using Chunks = ThreadChunks<QueryTile, THREADS>;
    const Chunks mine;
    for (int i = 0; i < Chunks::ROW_STEPS; ++i) {
        if (!mine.has(i)) break;
        int row = work.first_row + mine.row + i * Chunks::ROW_STEP;
        int position = row / params.group, head = work.head * params.group + row % params.group;
        int width = position < work.rows ? params.head_dim : 0;
        const u16* from = params.q + work.batch * params.q_batch + position * params.q_row + head * params.q_head;
        const Rotary rotary(params, work.past + (ADVANCING ? position : 0));
        for (int j = 0; j < Chunks::CHUNK_STEPS; ++j) {
            int first = (mine.chunk + j * QueryTile::SPREAD) * CHUNK;
            Vec4 chunk{0, 0, 0, 0};
            if (first < width) chunk = rotary.read<COPY_BYTES>(from, first, width);
            store_shared_vec4(tile + mine.offset(i, j), chunk);
        }
    }
}
