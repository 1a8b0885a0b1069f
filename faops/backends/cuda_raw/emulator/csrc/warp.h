// What the lanes of a warp do together: shuffles, ldmatrix and matrix products; and the barriers.
#pragma once

#if defined(__F16C__) && defined(__AVX__)
#include <immintrin.h>
#endif

#include "counters.h"
#include "machine.h"

namespace emulator {

int thread_index() { return machine->current->thread; }
u32 block_index() { return machine->block; }
u32 block_count() { return machine->launch->grid; }

[[noreturn]] void unsupported(Site site) {
    fail(UNSUPPORTED, place(site) + ": this architecture has no such instruction");
}

// ---- Barriers

void sync_block(Site site) {
    Machine& m = *machine;
    Fiber& self = *m.current;
    const int generation = m.barrier_generation;
    order_release(m.barrier_order + (generation & 1));
    if (++m.in_barrier == m.launch->threads) {
        m.in_barrier = 0;
        ++m.barrier_generation;
        if (COUNTING) count_barrier();
        for (int i = 0; i < m.warp_count; ++i) {
            m.warps[i].ready = ALL_LANES;
            if (COUNTING) flush_requests(i);
        }
    } else {
        self.waiting = site;
        self.warp->ready &= ~(1u << self.lane);
        yield();
    }
    order_acquire(m.barrier_order + (generation & 1));
}

void sync_warp(Site site) {
    Fiber& self = *machine->current;
    Warp& warp = *self.warp;
    char* order = warp.order + (warp.generation & 1);
    order_release(order);
    if (arrive(warp, self, site)) {
        ++warp.generation;
        if (COUNTING) count_collective(warp.index, site);
        go_on(warp);
    }
    order_acquire(order);
}

void converge(Site site) {
    Fiber& self = *machine->current;
    Warp& warp = *self.warp;
    if (arrive(warp, self, site)) {
        if (COUNTING) count_collective(warp.index, site);
        go_on(warp);
    }
}

// ---- Shuffle: `pieces[0]` holds operands, `pieces[1]` results

u32 exchange(u32 value, int lanes, Site site) {
    Fiber& self = *machine->current;
    Warp& warp = *self.warp;
    warp.pieces[0][self.lane] = value;
    warp.pieces[2][self.lane] = static_cast<u32>(lanes);
    if (arrive(warp, self, site)) {
        for (u32 lane = 0; lane < WARP; ++lane) {
            const u32 source = lane ^ warp.pieces[2][lane];
            warp.pieces[1][lane] = warp.pieces[0][source < WARP ? source : lane];
        }
        if (COUNTING) count_collective(warp.index, site);
        go_on(warp);
    }
    return warp.pieces[1][self.lane];
}

bool any(bool value, Site site) {
    Fiber& self = *machine->current;
    Warp& warp = *self.warp;
    warp.pieces[0][self.lane] = value;
    if (arrive(warp, self, site)) {
        u32 found = 0;
        for (u32 lane : warp.pieces[0]) found |= lane;
        for (u32& result : warp.pieces[1]) result = found;
        if (COUNTING) count_collective(warp.index, site);
        go_on(warp);
    }
    return warp.pieces[1][self.lane];
}

// ---- ldmatrix: row r of matrix m came from lane 8 m + r

void ldmatrix(u32 (&result)[4], const Vec4& row, bool transposed, Site site) {
    Fiber& self = *machine->current;
    Warp& warp = *self.warp;
    warp.rows[self.lane] = row;
    if (arrive(warp, self, site)) {
        const u16* elements = reinterpret_cast<const u16*>(warp.rows);
        for (int matrix = 0; matrix < 4; ++matrix)
            for (int lane = 0; lane < WARP; ++lane) {
                const u16* from = elements + 64 * matrix;
                const int row_index = lane / 4, column = 2 * (lane % 4);
                const u32 low = transposed ? from[8 * column + row_index] : from[8 * row_index + column];
                const u32 high = transposed ? from[8 * column + 8 + row_index] : from[8 * row_index + column + 1];
                warp.pieces[matrix][lane] = low | high << 16;
            }
        if (COUNTING) count_collective(warp.index, site);
        go_on(warp);
    }
    for (int matrix = 0; matrix < 4; ++matrix) result[matrix] = warp.pieces[matrix][self.lane];
}

// ---- 16-bit floats

float widen_f16(u16 bits) {
#if defined(__F16C__) && defined(__AVX__)
    return _cvtsh_ss(bits);
#else
    const u32 sign = u32(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -value : value;
    }
    const u32 word = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    memcpy(&value, &word, 4);
    return value;
#endif
}

u16 narrow_f16(float value) {
    if (value != value) return 0x7fff;
#if defined(__F16C__) && defined(__AVX__)
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    u32 word;
    memcpy(&word, &value, 4);
    const u16 sign = word >> 16 & 0x8000;
    const float size = __builtin_fabsf(value);
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | static_cast<u16>(__builtin_rintf(size * 0x1p24f));
    word &= 0x7fffffff;
    word += 0xfff + (word >> 13 & 1);
    return sign | static_cast<u16>((word - 0x38000000) >> 13);
#endif
}

u16 narrow_bf16(float value) {
    u32 word;
    memcpy(&word, &value, 4);
    if (value != value) return 0x7fff;
    return static_cast<u16>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

// 64 elements: an 8 x 8 matrix as it lies in one register of all lanes.
inline void widen_matrix(float* result, const u32* words, bool bfloat) {
    const u16* elements = reinterpret_cast<const u16*>(words);
    if (bfloat) {
        u32* bits = reinterpret_cast<u32*>(result);
        for (int i = 0; i < 64; ++i) bits[i] = u32(elements[i]) << 16;
        return;
    }
#if defined(__F16C__) && defined(__AVX__)
    for (int i = 0; i < 64; i += 8)
        _mm256_storeu_ps(result + i,
                         _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(elements + i))));
#else
    for (int i = 0; i < 64; ++i) result[i] = widen_f16(elements[i]);
#endif
}

// ---- Matrix products: exact products, added to float32 one after the other in the order of k, each sum rounded

template <int DEPTH>
inline void multiply(Warp& warp, bool bfloat) {
    constexpr int HALVES = DEPTH / 8;
    alignas(64) float a[2 * HALVES][8][8];   // [2 h + i]: rows 8 i.., columns 8 h..
    alignas(64) float transposed[8][8];      // [column][row] of one half of B
    alignas(64) float b[DEPTH][8];
    for (int i = 0; i < 2 * HALVES; ++i) widen_matrix(a[i][0], warp.a[i], bfloat);
    for (int half = 0; half < HALVES; ++half) {
        widen_matrix(transposed[0], warp.b[half], bfloat);
        for (int k = 0; k < 8; ++k)
            for (int column = 0; column < 8; ++column) b[8 * half + k][column] = transposed[column][k];
    }
    for (int i = 0; i < 2; ++i) {
        float(*c)[8] = reinterpret_cast<float(*)[8]>(warp.c[i]);
        for (int row = 0; row < 8; ++row) {
            float sum[8];
            for (int column = 0; column < 8; ++column) sum[column] = c[row][column];
            for (int k = 0; k < DEPTH; ++k)
                for (int column = 0; column < 8; ++column)
                    sum[column] += a[2 * (k / 8) + i][row][k % 8] * b[k][column];
            for (int column = 0; column < 8; ++column) c[row][column] = sum[column];
        }
    }
}

void mma(Matrix kind, float (&c)[4], const u32* a, const u32* b, Site site) {
    Fiber& self = *machine->current;
    Warp& warp = *self.warp;
    const int lane = self.lane;
    const int halves = kind == M16N8K8_F16 ? 1 : 2;
    for (int i = 0; i < 2 * halves; ++i) warp.a[i][lane] = a[i];
    for (int i = 0; i < halves; ++i) warp.b[i][lane] = b[i];
    for (int i = 0; i < 4; ++i) warp.c[i / 2][lane][i % 2] = c[i];
    if (arrive(warp, self, site)) {
        if (kind == M16N8K8_F16)
            multiply<8>(warp, false);
        else
            multiply<16>(warp, kind == M16N8K16_BF16);
        if (COUNTING) {
            count_collective(warp.index, site);
            count_matrix(kind);
        }
        go_on(warp);
    }
    for (int i = 0; i < 4; ++i) c[i] = warp.c[i / 2][lane][i % 2];
}

}  // namespace emulator
