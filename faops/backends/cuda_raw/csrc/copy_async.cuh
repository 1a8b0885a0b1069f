// Device to shared memory without passing through registers (sm_80 and newer).
#pragma once
#include "shape.cuh"
#include "tile.cuh"

// Copies the first `bytes` bytes of a chunk of 16 and fills it up with zeros.
DEVICE void copy_chunk(u32 to, const u16* from, int bytes) {
    if constexpr (COPY_BYTES == 16) {
        copy_async<16>(to, from, bytes);
    } else if constexpr (COPY_BYTES >= 4) {
        UNROLL
        for (int part = 0; part < 16; part += COPY_BYTES)
            copy_async<COPY_BYTES>(to + part, from + part / 2, larger(0, smaller(bytes - part, COPY_BYTES)));
    } else {
        UNROLL
        for (int part = 0; part < 16; part += 2)
            store_shared_u16(to + part, part < bytes ? load_global(from + part / 2) : u16(0));
    }
}

// Copies the first `valid` rows of a matrix into tile T and fills the rest with zeros, in width too. `source` is the
// first row, `stride` elements apart from the next. COPY_BYTES is what every address is a multiple of.
template <typename T, bool FULL_WIDTH>
DEVICE void copy_tile(u32 tile, const u16* source, i64 stride, int valid, int width) {
    using Chunks = ThreadChunks<T, THREADS>;
    const Chunks mine;
    const u16* from = source + mine.row * stride + mine.chunk * 8;
    UNROLL
    for (int i = 0; i < Chunks::ROW_STEPS; ++i) {
        if (i > 0) from = computed_here(from + Chunks::ROW_STEP * stride);
        if (!mine.has(i)) break;
        int row_bytes = mine.row + i * Chunks::ROW_STEP < valid ? 16 : 0;
        UNROLL
        for (int j = 0; j < Chunks::CHUNK_STEPS; ++j) {
            int bytes = row_bytes, element = j * T::SPREAD * 8;
            if constexpr (!FULL_WIDTH) bytes = smaller(bytes, larger(0, (width - element - mine.chunk * 8) * 2));
            copy_chunk(tile + mine.offset(i, j), from + element, bytes);
        }
    }
}
