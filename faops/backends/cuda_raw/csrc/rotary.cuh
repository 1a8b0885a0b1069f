// Rotary position embedding of one row, a chunk of 8 elements at a time.
//
// The first ROTARY_DIM of a row's elements turn in pairs by the angles of the row's position: neighbours (0, 1), (2, 3),
// ... where INTERLEAVED, else element i with i + ROTARY_DIM / 2. Each is computed in float32, product by product as
// faops.rotary does, and rounded once, so that keys in a cache are the same bit for bit.
#pragma once
#include "chunk.cuh"
#include "params.cuh"
#include "specialization.cuh"

constexpr int PAIRS = ROTARY_DIM / 2;
constexpr int ANGLES = INTERLEAVED ? CHUNK / 2 : CHUNK;  // of a chunk, which are neighbours in the tables
// The partners of a chunk's elements are a chunk themselves. Elsewhere they are read one at a time.
constexpr bool WHOLE_PARTNERS = !INTERLEAVED && PAIRS % CHUNK == 0;

DEVICE float widen(u32 word, bool upper) {
    u16 bits = static_cast<u16>(upper ? word >> 16 : word);
    if constexpr (BFLOAT16)
        return widen_bf16(bits);
    else
        return widen_f16(bits);
}
DEVICE u32 narrow(float low, float high) {
    if constexpr (BFLOAT16)
        return pack_bf16(low, high);
    else
        return pack_f16(low, high);
}

struct Rotary {
    const void *cosines, *sines;
    i64 row;  // of the position, in both tables

    // A position outside the tables, which only a caller's mistake gives, counts as the nearest inside: nothing else is
    // ever read.
    DEVICE Rotary(const Params& params, int position) : cosines(params.rotary_cos), sines(params.rotary_sin) {
        int last = params.rotary_positions - 1;
        int inside = position < 0 ? 0 : position > last ? last : position;
        row = static_cast<i64>(inside) * PAIRS;
    }

    // Elements [first, first + 8) of a row of `width` elements, turned; zeros behind the width. BYTES as of read_chunk.
    template <int BYTES>
    DEVICE Vec4 read(const u16* elements, int first, int width) const {
        Vec4 chunk = read_chunk<BYTES>(elements + first, width - first);
        if (ROTARY_DIM == 0 || first >= ROTARY_DIM) return chunk;
        return turned(chunk, partners<BYTES>(chunk, elements, first), first);
    }

    // For each element of a chunk the other one of its pair; what does not turn has no partner.
    template <int BYTES>
    DEVICE static Vec4 partners(const Vec4& chunk, const u16* elements, int first) {
        if constexpr (INTERLEAVED) {
            return Vec4{chunk.x << 16 | chunk.x >> 16, chunk.y << 16 | chunk.y >> 16, chunk.z << 16 | chunk.z >> 16,
                        chunk.w << 16 | chunk.w >> 16};
        } else if constexpr (WHOLE_PARTNERS) {
            return read_chunk<BYTES>(elements + (first < PAIRS ? first + PAIRS : first - PAIRS), CHUNK);
        } else {
            u32 words[4] = {0, 0, 0, 0};
            UNROLL
            for (int i = 0; i < CHUNK; ++i) {
                int element = first + i;
                if (element >= ROTARY_DIM) break;
                int other = element < PAIRS ? element + PAIRS : element - PAIRS;
                words[i / 2] |= static_cast<u32>(load_global(elements + other)) << (i % 2 * 16);
            }
            return Vec4{words[0], words[1], words[2], words[3]};
        }
    }

    // Two elements to a word. ROTARY_DIM is even, so that both turn or neither does.
    DEVICE Vec4 turned(const Vec4& chunk, const Vec4& others, int first) const {
        const u32 mine[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
        const u32 theirs[4] = {others.x, others.y, others.z, others.w};
        float cosine[ANGLES], sine[ANGLES];
        read_angles(cosine, cosines, first);
        read_angles(sine, sines, first);
        u32 words[4];
        UNROLL
        for (int i = 0; i < 4; ++i) {
            float results[2];
            UNROLL
            for (int half = 0; half < 2; ++half) {
                int angle = INTERLEAVED ? i : 2 * i + half;
                bool leads = INTERLEAVED ? half == 0 : first + 2 * i + half < PAIRS;
                float across = rounded_product(widen(theirs[i], half), sine[angle]);
                results[half] = rounded_product(widen(mine[i], half), cosine[angle]) + (leads ? -across : across);
            }
            words[i] = first + 2 * i < ROTARY_DIM ? narrow(results[0], results[1]) : mine[i];
        }
        return Vec4{words[0], words[1], words[2], words[3]};
    }

    // The cosines or sines of a chunk's pairs; 0 for what does not turn. ROTARY_VECTORS says that the neighbours in a
    // table lie where they can be read together.
    DEVICE void read_angles(float (&values)[ANGLES], const void* table, int first) const {
        i64 start = row + (INTERLEAVED ? first / 2 : first < PAIRS ? first : first - PAIRS);
        if constexpr (ROTARY_VECTORS) {
            read_together(values, table, start);
        } else {
            UNROLL
            for (int i = 0; i < ANGLES; ++i) {
                int element = INTERLEAVED ? first + 2 * i : first + i;
                i64 index = INTERLEAVED || element < PAIRS || first >= PAIRS ? start + i : start + i - PAIRS;
                values[i] = element < ROTARY_DIM ? table_value(table, index) : 0.0f;
            }
        }
    }

    // ROTARY_TABLE tells what the tables hold: 1 float16, 2 bfloat16, 3 float32.
    DEVICE static float table_value(const void* table, i64 index) {
        if constexpr (ROTARY_TABLE == 3) return load_global(static_cast<const float*>(table) + index);
        u16 bits = load_global(static_cast<const u16*>(table) + index);
        return ROTARY_TABLE == 2 ? widen_bf16(bits) : widen_f16(bits);
    }
    DEVICE static void read_together(float (&values)[ANGLES], const void* table, i64 index) {
        constexpr int BYTES = ROTARY_TABLE == 3 ? 16 : 2 * ANGLES;
        constexpr int STEP = ROTARY_TABLE == 3 ? 4 : ANGLES;  // values of one read
        UNROLL
        for (int i = 0; i < ANGLES; i += STEP) {
            u32 words[4] = {0, 0, 0, 0};
            if constexpr (BYTES == 16) {
                i64 from = ROTARY_TABLE == 3 ? (index + i) / 4 : (index + i) / 8;
                Vec4 read = load_global(static_cast<const Vec4*>(table) + from);
                words[0] = read.x, words[1] = read.y, words[2] = read.z, words[3] = read.w;
            } else {
                Vec2 read = load_global(static_cast<const Vec2*>(table) + (index + i) / 4);
                words[0] = read.x, words[1] = read.y;
            }
            UNROLL
            for (int j = 0; j < STEP; ++j) {
                u16 bits = static_cast<u16>(words[j / 2] >> (j % 2 * 16));
                values[i + j] = ROTARY_TABLE == 3   ? as_float(words[j])
                                : ROTARY_TABLE == 2 ? widen_bf16(bits)
                                                    : widen_f16(bits);
            }
        }
    }
};
