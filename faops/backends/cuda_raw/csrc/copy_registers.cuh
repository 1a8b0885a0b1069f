// Device to shared memory through registers, in two halves with work in between: Turing has no asynchronous copy.
#pragma once
#include "shape.cuh"
#include "tile.cuh"

// Reads the first `elements` elements of a chunk of 8; the others are 0.
DEVICE u32 load_pair(const u16* from, int elements) {
    if constexpr (COPY_BYTES == 4) return elements > 0 ? load_global(reinterpret_cast<const u32*>(from)) : 0;
    u32 low = elements > 0 ? load_global(from) : 0;
    u32 high = elements > 1 ? load_global(from + 1) : 0;
    return low | high << 16;
}
DEVICE Vec4 load_chunk(const u16* from, int elements) {
    if constexpr (COPY_BYTES == 16) {
        if (elements > 0) return load_global(reinterpret_cast<const Vec4*>(from));
        return Vec4{0, 0, 0, 0};
    } else if constexpr (COPY_BYTES == 8) {
        Vec2 low{0, 0}, high{0, 0};
        if (elements > 0) low = load_global(reinterpret_cast<const Vec2*>(from));
        if (elements > 4) high = load_global(reinterpret_cast<const Vec2*>(from + 4));
        return Vec4{low.x, low.y, high.x, high.y};
    } else {
        return Vec4{load_pair(from, elements), load_pair(from + 2, elements - 2), load_pair(from + 4, elements - 4),
                    load_pair(from + 6, elements - 6)};
    }
}

// This thread's part of a tile T on its way.
template <typename T, bool FULL_WIDTH>
struct RegisterCopy {
    using Chunks = ThreadChunks<T, THREADS>;
    Vec4 parts[Chunks::ROW_STEPS][Chunks::CHUNK_STEPS];

    // Reads the first `valid` rows of a matrix, `stride` elements apart; the others are zeros, and so is what the tile has
    // more of in width. COPY_BYTES is what every address is a multiple of.
    DEVICE void load(const u16* source, i64 stride, int valid, int width) {
        const Chunks mine;
        const u16* from = source + mine.row * stride + mine.chunk * 8;
        UNROLL
        for (int i = 0; i < Chunks::ROW_STEPS; ++i) {
            if (i > 0) from = computed_here(from + Chunks::ROW_STEP * stride);
            int in_row = mine.has(i) && mine.row + i * Chunks::ROW_STEP < valid ? 8 : 0;
            UNROLL
            for (int j = 0; j < Chunks::CHUNK_STEPS; ++j) {
                int elements = in_row, first = j * T::SPREAD * 8;
                if constexpr (!FULL_WIDTH) elements = smaller(elements, larger(0, width - first - mine.chunk * 8));
                parts[i][j] = load_chunk(from + first, elements);
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
