// Where the keys and values of a sequence lie, and how they are shared out for copying.
//
// Those threads that use a slice of WARP_KEYS keys copy it themselves: a warp its own, or the block the one that all its warps
// share. A dense cache is read like a paged one whose sequences have a page each.
#pragma once
#include "decode_work.cuh"
#include "matrix.cuh"

constexpr int TEAM = KEY_WARPS == 1 ? THREADS : 32;  // threads that share a slice
constexpr bool PAGED = PAGE_SIZE > 0;

DEVICE int team_index() { return KEY_WARPS == 1 ? thread_index() : lane_index(); }
DEVICE int team_number() { return KEY_WARPS == 1 ? 0 : warp_index(); }
DEVICE void sync_team() {
    if constexpr (KEY_WARPS == 1)
        sync_block();
    else
        sync_warp();
}

// As ThreadChunks, for the threads of a team. The rows of a thread may be four apart, which moves its chunks inside their
// group of eight.
template <typename T>
struct TeamChunks {
    static constexpr int ROW_STEP = TEAM / T::SPREAD;
    static constexpr int ROW_STEPS = (T::ROWS + ROW_STEP - 1) / ROW_STEP;
    static constexpr int CHUNK_STEPS = T::CHUNKS / T::SPREAD;
    static constexpr int TWIST = ROW_STEP % 8 == 0 ? 0 : ROW_STEP;  // of every second row
    static_assert(ROW_STEP % 8 == 0 || (ROW_STEP == 4 && T::SPREAD == 8), "the twist of a thread's rows is known");
    int row, chunk;

    DEVICE TeamChunks() : row(team_index() / T::SPREAD), chunk(team_index() % T::SPREAD) {}

    DEVICE bool has(int i) const { return T::ROWS % ROW_STEP == 0 || row + i * ROW_STEP < T::ROWS; }
    DEVICE u32 offset(int i, int j) const {
        u32 first = T::offset(row, chunk) ^ (i % 2 * TWIST * 16);
        return first + i * ROW_STEP * T::ROW_BYTES + j * T::SPREAD * 16;
    }
};

// The pages of the rows that a thread copies of a slice of T; -1 where there is nothing to be read.
template <typename T>
struct Pages {
    using Chunks = TeamChunks<T>;
    static constexpr bool ONE = !PAGED || PAGE_SIZE % T::ROWS == 0;  // a slice lies in one page
    static constexpr int COUNT = ONE ? 1 : Chunks::ROW_STEPS;
    int numbers[COUNT];

    DEVICE void find(const Params& params, const Work& work, int slice) {
        if constexpr (!PAGED) {
            numbers[0] = work.page;
        } else if constexpr (ONE) {
            numbers[0] = look_up(params, work, slice * T::ROWS);
        } else {
            const Chunks mine;
            UNROLL
            for (int i = 0; i < Chunks::ROW_STEPS; ++i) {
                int row = mine.row + i * Chunks::ROW_STEP;
                numbers[i] = mine.has(i) ? look_up(params, work, slice * T::ROWS + row) : -1;
            }
        }
    }
    // No entry is read behind the last key's, and no page but the cache's own is believed.
    DEVICE static int look_up(const Params& params, const Work& work, int place) {
        if (place >= work.keys) return -1;
        int page = load_global(params.block_table + work.batch * params.table_batch + place / larger(1, PAGE_SIZE));
        return static_cast<u32>(page) < static_cast<u32>(params.pages) ? page : -1;
    }
    DEVICE int of(int i) const { return numbers[ONE ? 0 : i]; }
};

// The pages of a slice's keys and of its values, which are the same where threads copy the same rows of both.
struct SlicePages {
    Pages<KeyTile> keys;
    Pages<ValueTile> values;

    DEVICE void find(const Params& params, const Work& work, int slice) {
        keys.find(params, work, slice);
        if constexpr (KeyTile::SPREAD == ValueTile::SPREAD) {
            UNROLL
            for (int i = 0; i < Pages<KeyTile>::COUNT; ++i) values.numbers[i] = keys.numbers[i];
        } else {
            values.find(params, work, slice);
        }
    }
};

// The keys of a KV head, or its values.
template <typename T>
struct Cache {
    using Chunks = TeamChunks<T>;
    const u16* start;
    i64 page_stride, row_stride;

    // This thread's first chunk of row i of its rows of a slice, and whether there is such a row: others are not read.
    DEVICE const u16* row(const Pages<T>& pages, int slice, int i) const {
        const Chunks mine;
        u32 page = larger(0, pages.of(i)), place = slice * T::ROWS + mine.row;
        if constexpr (!Pages<T>::ONE) place += i * Chunks::ROW_STEP;
        u32 slot = PAGED ? place % larger(1, PAGE_SIZE) : place;
        const u16* from = start + page * page_stride + slot * row_stride + mine.chunk * CHUNK;
        return Pages<T>::ONE ? from + i * (Chunks::ROW_STEP * row_stride) : from;
    }
    DEVICE bool has(const Work& work, const Pages<T>& pages, int slice, int i) const {
        const Chunks mine;
        int place = slice * T::ROWS + mine.row + i * Chunks::ROW_STEP;
        bool found = place < work.keys && pages.of(i) >= 0;
        if constexpr (LEFTPAD) found &= place >= work.first_key;
        return found;
    }
};

DEVICE Cache<KeyTile> keys_of(const Params& params, const Work& work) {
    return {params.k_cache + work.head * params.k_cache_head, params.k_cache_page, params.k_cache_row};
}
DEVICE Cache<ValueTile> values_of(const Params& params, const Work& work) {
    return {params.v_cache + work.head * params.v_cache_head, params.v_cache_page, params.v_cache_row};
}
