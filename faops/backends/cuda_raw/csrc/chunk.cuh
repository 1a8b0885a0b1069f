// Chunks of 8 elements between device memory and registers, one at a time. A row may end inside its last chunk.
#pragma once
#include "ptx.cuh"

constexpr int CHUNK = 8;  // elements

// Reads the first `elements` elements of a chunk; the others are 0. BYTES (2, 4, 8 or 16) is what the address of every
// chunk and the bytes of a row are multiples of. Nothing is read where `elements` is 0 or less.
template <int BYTES>
DEVICE Vec4 read_chunk(const u16* from, int elements) {
    Vec4 chunk{0, 0, 0, 0};
    if constexpr (BYTES == 16) {
        if (elements > 0) chunk = load_global(reinterpret_cast<const Vec4*>(from));
    } else if constexpr (BYTES == 8) {
        Vec2 low{0, 0}, high{0, 0};
        if (elements > 0) low = load_global(reinterpret_cast<const Vec2*>(from));
        if (elements > 4) high = load_global(reinterpret_cast<const Vec2*>(from + 4));
        chunk = Vec4{low.x, low.y, high.x, high.y};
    } else {
        u32 words[4] = {0, 0, 0, 0};
        UNROLL
        for (int i = 0; i < 4; ++i) {
            if constexpr (BYTES == 4) {
                if (elements > 2 * i) words[i] = load_global(reinterpret_cast<const u32*>(from) + i);
            } else {
                if (elements > 2 * i) words[i] = load_global(from + 2 * i);
                if (elements > 2 * i + 1) words[i] |= static_cast<u32>(load_global(from + 2 * i + 1)) << 16;
            }
        }
        chunk = Vec4{words[0], words[1], words[2], words[3]};
    }
    return chunk;
}

// Writes the first `elements` elements of a chunk, by the same rules.
template <int BYTES>
DEVICE void write_chunk(u16* to, const Vec4& chunk, int elements) {
    if constexpr (BYTES == 16) {
        if (elements > 0) store_global(reinterpret_cast<Vec4*>(to), chunk);
    } else if constexpr (BYTES == 8) {
        if (elements > 0) store_global(reinterpret_cast<Vec2*>(to), Vec2{chunk.x, chunk.y});
        if (elements > 4) store_global(reinterpret_cast<Vec2*>(to + 4), Vec2{chunk.z, chunk.w});
    } else {
        const u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
        UNROLL
        for (int i = 0; i < 4; ++i) {
            if constexpr (BYTES == 4) {
                if (elements > 2 * i) store_global(reinterpret_cast<u32*>(to) + i, words[i]);
            } else {
                if (elements > 2 * i) store_global(to + 2 * i, static_cast<u16>(words[i]));
                if (elements > 2 * i + 1) store_global(to + 2 * i + 1, static_cast<u16>(words[i] >> 16));
            }
        }
    }
}
