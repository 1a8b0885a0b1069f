// Attention forward for Ampere and newer: m16n8k16 products, keys and values brought by cp.async.
//
// A block computes TILE_M query rows of one head; a warp TILE_M / WARPS of them, all by itself. It walks over the keys
// from the last block to the first. Copies run ahead of the products in the order of use, K V K V ..., and each has a
// ring of STAGES slots: before the keys of a block are used the values of STAGES - 1 blocks later are asked for, and
// before its values are used the keys of STAGES blocks later, always into the slot that the barrier has just freed.
#include "copy_async.cuh"
#include "head_rows.cuh"
#include "store.cuh"

constexpr int AHEAD = 2 * STAGES - 1;  // copies under way when a product starts

// Shared memory: the queries first where they stay there, then the ring. Where they move to registers they are brought
// to the slots that are not yet in use, behind the first block of keys. The result leaves through the same bytes.
constexpr int RING_START = Q_IN_REGISTERS ? 0 : QueryTile::BYTES;
constexpr int VALUES_START = RING_START + STAGES * KeyTile::BYTES;
constexpr int QUERIES_START = Q_IN_REGISTERS ? KeyTile::BYTES : 0;

struct Ring {
    const u16 *keys, *values;
    u32 shared;
    const Params& params;
    const Work& work;

    DEVICE Ring(const Params& params_, const Work& work_, u32 shared_) : shared(shared_), params(params_), work(work_) {
        int head = work.head / params.group;
        keys = params.k + work.batch * params.k_batch + work.key_start * params.k_row + head * params.k_head;
        values = params.v + work.batch * params.v_batch + work.key_start * params.v_row + head * params.v_head;
    }
    // The i-th block in the order of use; nothing where there is no such block, which still counts as a group.
    DEVICE void fetch_keys(int i) const {
        int block = work.end_block - 1 - i;
        if (block >= work.first_block) {
            i64 row = static_cast<i64>(block) * TILE_N;
            copy_tile<KeyTile, FULL_WIDTH>(key_slot(i), keys + row * params.k_row, params.k_row, work.keys - row,
                                           params.head_dim);
        }
        copy_async_commit();
    }
    DEVICE void fetch_values(int i) const {
        int block = work.end_block - 1 - i;
        if (block >= work.first_block) {
            i64 row = static_cast<i64>(block) * TILE_N;
            copy_tile<ValueTile, FULL_WIDTH_V>(value_slot(i), values + row * params.v_row, params.v_row,
                                               work.keys - row, params.head_dim_v);
        }
        copy_async_commit();
    }
    DEVICE u32 key_slot(int i) const { return shared + RING_START + i % STAGES * KeyTile::BYTES; }
    DEVICE u32 value_slot(int i) const { return shared + VALUES_START + i % STAGES * ValueTile::BYTES; }
};

KERNEL void LAUNCH_BOUNDS(THREADS, 1) attention_forward(const GRID_CONSTANT Params params) {
    const Work work(params);
    if constexpr (VARLEN) {
        if (work.batch >= params.batch) return clear_padding(params, block_index() - block_count() + params.heads);
        if (work.first_row >= work.rows) return;
    }
    const u32 shared = shared_base();
    const Ring ring(params, work, shared);
    const Logits logits(params, work);
    Rows rows;
    Queries queries(shared + QUERIES_START);
    const Keys keys;
    const Values values;

    const u16* q = params.q + work.batch * params.q_batch + (work.row_start + work.first_row) * params.q_row +
                   work.head * params.q_head;
    copy_tile<QueryTile, FULL_WIDTH>(shared + QUERIES_START, q, params.q_row, work.rows - work.first_row,
                                     params.head_dim);
    if constexpr (Q_IN_REGISTERS) {
        copy_async_commit();
        ring.fetch_keys(0);
        copy_async_wait<1>();
        sync_block();
        queries.keep();
        sync_block();
    } else {
        ring.fetch_keys(0);
    }
    UNROLL
    for (int i = 1; i < STAGES; ++i) {
        ring.fetch_values(i - 1);
        ring.fetch_keys(i);
    }

    const int blocks = work.end_block - work.first_block;
    for (int i = 0; i < blocks; ++i) {
        Scores scores;
        copy_async_wait<AHEAD - 1>();
        sync_block();
        ring.fetch_values(i + STAGES - 1);
        keys.multiply(scores, queries, ring.key_slot(i));

        int block = work.end_block - 1 - i;
        logits.apply(scores, block);
        rows.absorb(scores, logits.factor);
        if constexpr (DROPOUT) drop(scores, Philox(params.rng), logits, block);

        copy_async_wait<AHEAD - 1>();
        sync_block();
        ring.fetch_keys(i + STAGES);
        values.multiply(rows, scores, ring.value_slot(i));
    }

    const Work work_again(params);  // rather than held in registers throughout the loop
    float lse[ROW_BLOCKS][2];
    rows.finish(lse, params, work_again, logits.factor);
    copy_async_wait<0>();
    sync_block();
    store_result(rows, lse, params, work_again, shared);
}
