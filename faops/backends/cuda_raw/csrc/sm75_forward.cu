// Attention forward for Turing: m16n8k8 products, keys and values brought through registers.
//
// A block computes TILE_M query rows of one head; a warp TILE_M / WARPS of them, all by itself. It walks over the keys
// from the last block to the first. There is one slot for keys and one for values: while the products of one are
// computed, the other's next block is on its way from device memory into registers, and goes into its slot afterwards.
#include "copy_registers.cuh"
#include "head_rows.cuh"
#include "store.cuh"

// Shared memory: the queries first where they stay there, then keys and values. Where the queries move to registers they
// pass through the same bytes before any key arrives. The result leaves through them as well.
constexpr int KEYS_START = Q_IN_REGISTERS ? 0 : QueryTile::BYTES;
constexpr int VALUES_START = KEYS_START + KeyTile::BYTES;

KERNEL void LAUNCH_BOUNDS(THREADS, 1) attention_forward(const GRID_CONSTANT Params params) {
    const Work work(params);
    if constexpr (VARLEN) {
        if (work.batch >= params.batch) return clear_padding(params, block_index() - block_count() + params.heads);
        if (work.first_row >= work.rows) return;
    }
    const u32 shared = shared_base();
    const u32 key_tile = shared + KEYS_START, value_tile = shared + VALUES_START;
    const Logits logits(params, work);
    Rows rows;
    Queries queries(shared);
    const Keys keys;
    const Values values;
    RegisterCopy<KeyTile, FULL_WIDTH> key_copy;
    RegisterCopy<ValueTile, FULL_WIDTH_V> value_copy;

    const int kv_head = work.head / params.group;
    const u16* k = params.k + work.batch * params.k_batch + work.key_start * params.k_row + kv_head * params.k_head;
    const u16* v = params.v + work.batch * params.v_batch + work.key_start * params.v_row + kv_head * params.v_head;
    auto load_keys = [&](int block) {
        i64 row = static_cast<i64>(block) * TILE_N;
        key_copy.load(k + row * params.k_row, params.k_row, work.keys - row, params.head_dim);
    };
    auto load_values = [&](int block) {
        i64 row = static_cast<i64>(block) * TILE_N;
        value_copy.load(v + row * params.v_row, params.v_row, work.keys - row, params.head_dim_v);
    };

    {
        RegisterCopy<QueryTile, FULL_WIDTH> query_copy;
        const u16* q = params.q + work.batch * params.q_batch + (work.row_start + work.first_row) * params.q_row +
                       work.head * params.q_head;
        query_copy.load(q, params.q_row, work.rows - work.first_row, params.head_dim);
        query_copy.store(shared);
    }
    if (work.end_block > work.first_block) load_keys(work.end_block - 1);
    sync_block();
    queries.keep();
    if constexpr (Q_IN_REGISTERS) sync_block();
    if (work.end_block > work.first_block) key_copy.store(key_tile);

    for (int block = work.end_block - 1; block >= work.first_block; --block) {
        Scores scores;
        sync_block();
        load_values(block);
        keys.multiply(scores, queries, key_tile);
        value_copy.store(value_tile);

        logits.apply(scores, block);
        rows.absorb(scores, logits.factor);
        if constexpr (DROPOUT) drop(scores, Philox(params.rng), logits, block);

        sync_block();
        if (block > work.first_block) load_keys(block - 1);
        values.multiply(rows, scores, value_tile);
        if (block > work.first_block) key_copy.store(key_tile);
    }

    const Work work_again(params);  // rather than held in registers throughout the loop
    float lse[ROW_BLOCKS][2];
    rows.finish(lse, params, work_again, logits.factor);
    sync_block();
    store_result(rows, lse, params, work_again, shared);
}
