// Attention over a KV cache for Turing: m16n8k8 products, keys and values brought through registers.
//
// Shares out rows and keys as sm80_decode.cu does. Each team has one slot for keys and one for values: while the products of
// one are computed, the other's next slice is on its way from device memory into registers, and goes into its slot
// afterwards.
#include "decode_result.cuh"
#include "decode_cache.cuh"

// Shared memory: the queries, then keys and values of each team. The results pass through the same bytes.
constexpr int SLOTS_START = QueryTile::BYTES;
constexpr int SLOTS_BYTES = KeyTile::BYTES + ValueTile::BYTES;

// This thread's part of a slice of T on its way.
template <typename T, bool FULL_WIDTH>
struct SliceCopy {
    using Chunks = TeamChunks<T>;
    Vec4 parts[Chunks::ROW_STEPS][Chunks::CHUNK_STEPS];

    DEVICE void load(const Cache<T>& cache, const Pages<T>& pages, const Work& work, int slice, int width) {
        const Chunks mine;
        UNROLL
        for (int i = 0; i < Chunks::ROW_STEPS; ++i) {
            const u16* from = cache.row(pages, slice, i);
            int in_row = mine.has(i) && cache.has(work, pages, slice, i) ? CHUNK : 0;
            UNROLL
            for (int j = 0; j < Chunks::CHUNK_STEPS; ++j) {
                int elements = in_row, element = j * T::SPREAD * CHUNK;
                if constexpr (!FULL_WIDTH) elements = smaller(elements, larger(0, width - element - mine.chunk * CHUNK));
                parts[i][j] = read_chunk<COPY_BYTES>(from + element, elements);
            }
        }
    }
    DEVICE void store(u32 tile) const {
        const Chunks mine;
        UNROLL
        for (int i = 0; i < Chunks::ROW_STEPS; ++i) {
            if (!mine.has(i)) break;
            UNROLL
            for (int j = 0; j < Chunks::CHUNK_STEPS; ++j) store_shared_vec4(tile + mine.offset(i, j), parts[i][j]);
        }
    }
};

KERNEL void LAUNCH_BOUNDS(THREADS, 1) attention_decode(const GRID_CONSTANT Params params) {
    const Work work(params);
    if constexpr (SPLIT) {
        if (work.first_block == work.end_block) return store_nothing(params, work);
    }
    const u32 shared = shared_base();
    const u32 key_tile = shared + SLOTS_START + team_number() * SLOTS_BYTES, value_tile = key_tile + KeyTile::BYTES;
    const Cache<KeyTile> key_cache = keys_of(params, work);
    const Cache<ValueTile> value_cache = values_of(params, work);
    SlicePages pages;
    SliceCopy<KeyTile, FULL_WIDTH> key_copy;
    SliceCopy<ValueTile, FULL_WIDTH_V> value_copy;
    const int end = work.end_block * KEY_WARPS;  // of the slices of all teams
    int slice = work.first_block * KEY_WARPS + team_number();
    auto find_pages = [&](int of) {
        if (of < end) pages.find(params, work, of);
    };

    find_pages(slice);
    if (slice < end) key_copy.load(key_cache, pages.keys, work, slice, params.head_dim);
    load_queries<QueryTile>(shared, params, work);
    const Logits logits(params, work);
    Rows rows;
    Queries queries(shared);
    const Keys keys;
    const Values values;
    sync_block();
    queries.keep();
    if (slice < end) key_copy.store(key_tile);

    for (; slice < end; slice += KEY_WARPS) {
        const int next = slice + KEY_WARPS;
        Scores scores;
        sync_team();
        value_copy.load(value_cache, pages.values, work, slice, params.head_dim_v);
        find_pages(next);
        keys.multiply(scores, queries, key_tile);
        value_copy.store(value_tile);
        logits.apply(scores, slice);
        rows.absorb(scores, logits.factor);

        sync_team();
        if (next < end) key_copy.load(key_cache, pages.keys, work, next, params.head_dim);
        values.multiply(rows, scores, value_tile);
        if (next < end) key_copy.store(key_tile);
    }

    store_rows(rows, logits.factor, params, Work(params), shared);  // the work anew, rather than kept in registers
}
