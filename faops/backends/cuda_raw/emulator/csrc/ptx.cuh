// The wrappers around PTX, written for a CPU: the same functions as the file of this name that the GPU compiler sees.
//
// Each wrapper lets the runtime check the access, then touches memory itself, in plain loads and stores of at most
// eight bytes, so that a sanitizer sees them with the kernel's source line. Every wrapper takes the place of its call
// as a last, defaulted argument.
#pragma once

#include "runtime.h"

#define DEVICE inline __attribute__((always_inline))
#define KERNEL extern "C"
#define GRID_CONSTANT
#define LAUNCH_BOUNDS(threads, blocks)
#define UNROLL

#define EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATOR_SITE \
    emulator::Site { __func__, file, line }

// ---- Where a thread is

DEVICE int thread_index() { return emulator::thread_index(); }
DEVICE int lane_index() { return emulator::thread_index() & 31; }
DEVICE int warp_index(EMULATOR_PLACE) {
    emulator::converge(EMULATOR_SITE);
    return emulator::thread_index() >> 5;
}
DEVICE u32 block_index() { return emulator::block_index(); }
DEVICE u32 block_count() { return emulator::block_count(); }

// ---- Waiting for each other

DEVICE void sync_block(EMULATOR_PLACE) { emulator::sync_block(EMULATOR_SITE); }
DEVICE void sync_warp(EMULATOR_PLACE) { emulator::sync_warp(EMULATOR_SITE); }

// ---- Device memory

template <typename T>
DEVICE T load_global(const T* address, EMULATOR_PLACE) {
    emulator::global_read(address, sizeof(T), EMULATOR_SITE);
    return *address;
}
template <typename T>
DEVICE void store_global(T* address, T value, EMULATOR_PLACE) {
    emulator::global_write(address, sizeof(T), EMULATOR_SITE);
    *address = value;
}

template <typename T>
DEVICE const T* computed_here(const T* address) {
    return address;
}
DEVICE u32 computed_here(u32 address) { return address; }

// ---- Shared memory

DEVICE u32 shared_base() { return emulator::SHARED_BASE; }
DEVICE u32 load_shared_u32(u32 address, EMULATOR_PLACE) {
    return *reinterpret_cast<const u32*>(emulator::shared_read(address, 4, EMULATOR_SITE));
}
DEVICE Vec4 load_shared_vec4(u32 address, EMULATOR_PLACE) {
    const u32* words = reinterpret_cast<const u32*>(emulator::shared_read(address, 16, EMULATOR_SITE));
    return Vec4{words[0], words[1], words[2], words[3]};
}
DEVICE void store_shared_u16(u32 address, u16 value, EMULATOR_PLACE) {
    *reinterpret_cast<u16*>(emulator::shared_write(address, 2, EMULATOR_SITE)) = value;
}
DEVICE void store_shared_u32(u32 address, u32 value, EMULATOR_PLACE) {
    *reinterpret_cast<u32*>(emulator::shared_write(address, 4, EMULATOR_SITE)) = value;
}
DEVICE void store_shared_vec4(u32 address, Vec4 value, EMULATOR_PLACE) {
    u32* words = reinterpret_cast<u32*>(emulator::shared_write(address, 16, EMULATOR_SITE));
    words[0] = value.x;
    words[1] = value.y;
    words[2] = value.z;
    words[3] = value.w;
}

// Every lane reads the row it gives the address of; the runtime hands the pieces round.
DEVICE void ldmatrix(u32 (&result)[4], u32 address, EMULATOR_PLACE) {
    const u32* words = reinterpret_cast<const u32*>(emulator::shared_read(address, 16, EMULATOR_SITE));
    emulator::ldmatrix(result, Vec4{words[0], words[1], words[2], words[3]}, false, EMULATOR_SITE);
}
DEVICE void ldmatrix_transposed(u32 (&result)[4], u32 address, EMULATOR_PLACE) {
    const u32* words = reinterpret_cast<const u32*>(emulator::shared_read(address, 16, EMULATOR_SITE));
    emulator::ldmatrix(result, Vec4{words[0], words[1], words[2], words[3]}, true, EMULATOR_SITE);
}

// ---- Asynchronous copies: late on purpose. The destination is poison from the issue until this thread's wait.

template <int SIZE>
DEVICE void copy_async(u32 shared, const void* global, int bytes, EMULATOR_PLACE) {
    static_assert(SIZE == 4 || SIZE == 8 || SIZE == 16, "copy_async copies 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
    u32* destination = reinterpret_cast<u32*>(emulator::copy_check(shared, global, SIZE, bytes, EMULATOR_SITE));
    u8 data[SIZE] = {};
    for (int i = 0; i < bytes; ++i) data[i] = static_cast<const u8*>(global)[i];
    for (int i = 0; i < SIZE / 4; ++i) destination[i] = 0xffffffffu;
    emulator::copy_queue(shared, data, SIZE, EMULATOR_SITE);
#else
    emulator::unsupported(EMULATOR_SITE);
#endif
}
DEVICE void copy_async_commit(EMULATOR_PLACE) {
#if __CUDA_ARCH__ >= 800
    emulator::copy_commit();
#else
    emulator::unsupported(EMULATOR_SITE);
#endif
}
template <int PENDING>
DEVICE void copy_async_wait(EMULATOR_PLACE) {
#if __CUDA_ARCH__ >= 800
    emulator::Delivery delivery;
    while (emulator::copy_next(PENDING, delivery)) {
        const u32* source = reinterpret_cast<const u32*>(delivery.data);
        u32* destination = reinterpret_cast<u32*>(delivery.destination);
        for (int i = 0; i < delivery.size / 4; ++i) destination[i] = source[i];
    }
#else
    emulator::unsupported(EMULATOR_SITE);
#endif
}

// ---- Within a warp

DEVICE u32 shuffle_xor(u32 value, int lanes, EMULATOR_PLACE) {
    return emulator::exchange(value, lanes, EMULATOR_SITE);
}
DEVICE float shuffle_xor(float value, int lanes, EMULATOR_PLACE) {
    u32 bits;
    __builtin_memcpy(&bits, &value, 4);
    bits = emulator::exchange(bits, lanes, EMULATOR_SITE);
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

DEVICE bool any_in_warp(bool value, EMULATOR_PLACE) {
    return emulator::any(value, EMULATOR_SITE);
}

// ---- Matrix products

DEVICE void mma_m16n8k16_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, EMULATOR_PLACE) {
#if __CUDA_ARCH__ >= 800
    const u32 b[2] = {b0, b1};
    emulator::mma(emulator::M16N8K16_F16, c, a, b, EMULATOR_SITE);
#else
    emulator::unsupported(EMULATOR_SITE);
#endif
}
DEVICE void mma_m16n8k16_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, EMULATOR_PLACE) {
#if __CUDA_ARCH__ >= 800
    const u32 b[2] = {b0, b1};
    emulator::mma(emulator::M16N8K16_BF16, c, a, b, EMULATOR_SITE);
#else
    emulator::unsupported(EMULATOR_SITE);
#endif
}
DEVICE void mma_m16n8k8_f16(float (&c)[4], u32 a0, u32 a1, u32 b0, EMULATOR_PLACE) {
    const u32 a[2] = {a0, a1};
    emulator::mma(emulator::M16N8K8_F16, c, a, &b0, EMULATOR_SITE);
}

// ---- Arithmetic

DEVICE float infinity() { return __builtin_inff(); }
DEVICE float magnitude(float x) { return __builtin_fabsf(x); }
DEVICE float fused_multiply_add(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
DEVICE float rounded_product(float x, float y) {
    volatile float result = x * y;  // keeps the compiler from fusing it into a sum
    return result;
}
DEVICE float maximum(float x, float y) {
    if (x != x) return y;
    return x < y ? y : x;
}
DEVICE float as_float(u32 bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
DEVICE u32 as_bits(float value) {
    u32 bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}
DEVICE u32 multiply_high(u32 x, u32 y) { return static_cast<u32>(static_cast<u64>(x) * y >> 32); }

DEVICE float exp2_fast(float x) { return emulator::flush_subnormal(__builtin_exp2f(emulator::flush_subnormal(x))); }
DEVICE float log2_fast(float x) { return emulator::flush_subnormal(__builtin_log2f(emulator::flush_subnormal(x))); }
// The quotient is x times the reciprocal of y, which is 0 for y above 2^126.
DEVICE float divide_fast(float x, float y) {
    x = emulator::flush_subnormal(x);
    y = emulator::flush_subnormal(y);
    if (magnitude(y) > 0x1p126f && magnitude(y) < infinity()) return x * __builtin_copysignf(0.0f, y);
    return emulator::flush_subnormal(x / y);
}

// ---- 16-bit floats

DEVICE u32 pack_f16(float low, float high) {
    return emulator::narrow_f16(low) | static_cast<u32>(emulator::narrow_f16(high)) << 16;
}
DEVICE u32 pack_bf16(float low, float high, EMULATOR_PLACE) {
#if __CUDA_ARCH__ >= 800
    return emulator::narrow_bf16(low) | static_cast<u32>(emulator::narrow_bf16(high)) << 16;
#else
    emulator::unsupported(EMULATOR_SITE);
#endif
}
DEVICE float widen_f16(u16 bits) { return emulator::widen_f16(bits); }
DEVICE float widen_bf16(u16 bits) { return as_float(static_cast<u32>(bits) << 16); }
