// New keys and values on their way into a KV cache, in place. Keys are rotated first.
//
// A row is one token of one KV head: its key's chunks of 16 bytes, then its value's. A thread moves one chunk, and
// neighbours move neighbours. Every byte is read once and written once; a key that turns by halves is read twice, the
// second time as the partner of another chunk, from the cache of the multiprocessor.
#include "rotary.cuh"

constexpr int KEY_CHUNKS = (HEAD_DIM + CHUNK - 1) / CHUNK;
constexpr int VALUE_CHUNKS = (HEAD_DIM_V + CHUNK - 1) / CHUNK;
constexpr int ROW_CHUNKS = KEY_CHUNKS + VALUE_CHUNKS;
constexpr int ROWS = THREADS / ROW_CHUNKS;  // of a block
static_assert(ROWS > 0, "a block has room for a row");

// Where a row of the new keys and values comes from and goes to.
struct Place {
    int sequence, token, head;
    int position;  // in the sequence
    int page, slot;
    bool inside;  // nobody has looked at the lengths and page numbers: what the cache has no room for is dropped

    DEVICE Place(const Params& params, u32 row) {
        head = row % params.heads_kv;
        row /= params.heads_kv;
        token = row % params.new_keys;
        sequence = row / params.new_keys;
        int length = load_global(params.cache_seqlens + sequence);
        page = slot = position = 0;
        inside = length >= 0 && length < params.capacity - token;
        if (!inside) return;
        position = length + token;
        if constexpr (PAGE_SIZE > 0) {
            page = load_global(params.block_table + sequence * params.table_batch + position / PAGE_SIZE);
            slot = position % PAGE_SIZE;
        } else {
            page = BATCH_INDEX ? load_global(params.cache_batch_idx + sequence) : sequence;
            slot = position;
        }
        inside = static_cast<u32>(page) < static_cast<u32>(params.pages);
    }
};

KERNEL void LAUNCH_BOUNDS(THREADS, 1) decode_append(const GRID_CONSTANT Params params) {
    const u32 row = block_index() * ROWS + thread_index() / ROW_CHUNKS;
    if (thread_index() >= ROWS * ROW_CHUNKS || row >= params.rows) return;
    const Place place(params, row);
    if (!place.inside) return;
    const int chunk = thread_index() % ROW_CHUNKS;
    if (chunk < KEY_CHUNKS) {
        const u16* from = params.k + place.sequence * params.k_batch + place.token * params.k_row +
                          place.head * params.k_head;
        u16* to = params.k_cache + place.page * params.k_cache_page + place.slot * params.k_cache_row +
                  place.head * params.k_cache_head;
        const int first = chunk * CHUNK;
        const Rotary rotary(params, place.position);
        write_chunk<KEY_BYTES>(to + first, rotary.read<KEY_BYTES>(from, first, HEAD_DIM), HEAD_DIM - first);
    } else {
        const u16* from = params.v + place.sequence * params.v_batch + place.token * params.v_row +
                          place.head * params.v_head;
        u16* to = params.v_cache + place.page * params.v_cache_page + place.slot * params.v_cache_row +
                  place.head * params.v_cache_head;
        const int first = (chunk - KEY_CHUNKS) * CHUNK;
        const Vec4 values = read_chunk<VALUE_BYTES>(from + first, HEAD_DIM_V - first);
        write_chunk<VALUE_BYTES>(to + first, values, HEAD_DIM_V - first);
    }
}
