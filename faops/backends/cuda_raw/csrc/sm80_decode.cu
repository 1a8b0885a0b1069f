// Attention over a KV cache for Ampere and newer: m16n8k16 products, keys and values brought by cp.async.
//
// A block computes TILE_M rows of one KV head over one split of the keys. Where the rows are few, all its warps have the same
// rows and each has keys of its own, which it copies itself: no warp waits for another before the end, where their results are
// added up. Where the rows are many each warp has its own, and they share the keys. Copies run ahead of the products
// in the order of use, K V K V ..., and each has a ring of STAGES slots, as in sm80_forward.cu.
#include "copy_async.cuh"
#include "decode_result.cuh"
#include "decode_cache.cuh"

constexpr int AHEAD = 2 * STAGES - 1;  // copies under way when a product starts

// Shared memory: the queries, then a ring for each team. The results pass through the same bytes.
constexpr int RING_START = QueryTile::BYTES;
constexpr int RING_BYTES = STAGES * (KeyTile::BYTES + ValueTile::BYTES);

template <typename T, bool FULL_WIDTH>
DEVICE void copy_slice(u32 tile, const Cache<T>& cache, const Pages<T>& pages, const Work& work, int slice, int width) {
    using Chunks = TeamChunks<T>;
    const Chunks mine;
    UNROLL
    for (int i = 0; i < Chunks::ROW_STEPS; ++i) {
        if (!mine.has(i)) break;
        const u16* from = cache.row(pages, slice, i);
        int row_bytes = cache.has(work, pages, slice, i) ? 16 : 0;
        UNROLL
        for (int j = 0; j < Chunks::CHUNK_STEPS; ++j) {
            int bytes = row_bytes, element = j * T::SPREAD * CHUNK;
            if constexpr (!FULL_WIDTH) bytes = smaller(bytes, larger(0, (width - element - mine.chunk * CHUNK) * 2));
            copy_chunk(tile + mine.offset(i, j), from + element, bytes);
        }
    }
}

struct Ring {
    const Params& params;
    const Work& work;
    const Cache<KeyTile> keys;
    const Cache<ValueTile> values;
    u32 shared;
    int first, count;  // of the team's slices, which lie KEY_WARPS apart
    SlicePages pages;

    DEVICE Ring(const Params& params_, const Work& work_, u32 shared_)
        : params(params_), work(work_), keys(keys_of(params_, work_)), values(values_of(params_, work_)),
          shared(shared_ + RING_START + team_number() * RING_BYTES),
          first(work_.first_block * KEY_WARPS + team_number()), count(work_.end_block - work_.first_block) {}

    DEVICE int slice(int i) const { return first + i * KEY_WARPS; }

    // What the block table says of the i-th slice, well before its keys and values are asked for.
    DEVICE void find_pages(int i) {
        if (i < count) pages.find(params, work, slice(i));
    }
    // The i-th slice; nothing where there is no such slice, which still counts as a group.
    DEVICE void fetch_keys(int i) const {
        if (i < count)
            copy_slice<KeyTile, FULL_WIDTH>(key_slot(i), keys, pages.keys, work, slice(i), params.head_dim);
        copy_async_commit();
    }
    DEVICE void fetch_values(int i) const {
        if (i < count)
            copy_slice<ValueTile, FULL_WIDTH_V>(value_slot(i), values, pages.values, work, slice(i), params.head_dim_v);
        copy_async_commit();
    }
    DEVICE u32 key_slot(int i) const { return shared + i % STAGES * KeyTile::BYTES; }
    DEVICE u32 value_slot(int i) const { return shared + STAGES * KeyTile::BYTES + i % STAGES * ValueTile::BYTES; }
};

KERNEL void LAUNCH_BOUNDS(THREADS, 1) attention_decode(const GRID_CONSTANT Params params) {
    const Work work(params);
    if constexpr (SPLIT) {
        if (work.first_block == work.end_block) return store_nothing(params, work);
    }
    const u32 shared = shared_base();
    Ring ring(params, work, shared);
    ring.find_pages(0);
    ring.fetch_keys(0);
    UNROLL
    for (int i = 1; i < STAGES; ++i) {
        ring.fetch_values(i - 1);
        ring.find_pages(i);
        ring.fetch_keys(i);
    }
    load_queries<QueryTile>(shared, params, work);
    const Logits logits(params, work);
    Rows rows;
    Queries queries(shared);
    const Keys keys;
    const Values values;
    sync_block();
    queries.keep();

    for (int i = 0; i < ring.count; ++i) {
        Scores scores;
        copy_async_wait<AHEAD - 1>();
        sync_team();
        ring.fetch_values(i + STAGES - 1);
        ring.find_pages(i + STAGES);
        keys.multiply(scores, queries, ring.key_slot(i));
        logits.apply(scores, ring.slice(i));
        rows.absorb(scores, logits.factor);

        copy_async_wait<AHEAD - 1>();
        sync_team();
        ring.fetch_keys(i + STAGES);
        values.multiply(rows, scores, ring.value_slot(i));
    }

    copy_async_wait<0>();
    store_rows(rows, logits.factor, params, Work(params), shared);  // the work anew, rather than kept in registers
}
