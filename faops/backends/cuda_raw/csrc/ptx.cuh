// The hardware as the kernels see it: thin wrappers around PTX, and nothing else touches a thread, a barrier or memory.
//
// No header is included, so NVRTC needs no toolkit. The emulator has a file of the same name with the same functions
// written for a CPU, which is how the kernel sources run there unchanged.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
#define GRID_CONSTANT __grid_constant__
#define LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define UNROLL _Pragma("unroll")

struct alignas(8) Vec2 {
    u32 x, y;
};
struct alignas(16) Vec4 {
    u32 x, y, z, w;
};

// ---- Where a thread is

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int lane_index() { return threadIdx.x & 31; }
// The same for all lanes of a warp; read through a shuffle so that the compiler knows it.
DEVICE int warp_index() { return __shfl_sync(0xffffffffu, threadIdx.x >> 5, 0); }
// Read anew at every call, so that what follows from it can be computed twice instead of kept.
DEVICE u32 block_index() {
    u32 index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
}
DEVICE u32 block_count() { return gridDim.x; }

// ---- Waiting for each other

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }

// ---- Device memory: T is 1, 2, 4, 8 or 16 bytes and aligned to its size

// Reads what nobody writes while the kernel runs.
template <typename T>
DEVICE T load_global(const T* address) {
    if constexpr (sizeof(T) == 16) {
        Vec4 words;
        asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
            : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
            : "l"(address));
        return reinterpret_cast<const T&>(words);
    } else if constexpr (sizeof(T) == 8) {
        Vec2 words;
        asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(words.x), "=r"(words.y) : "l"(address));
        return reinterpret_cast<const T&>(words);
    } else if constexpr (sizeof(T) == 4) {
        u32 word;
        asm("ld.global.nc.u32 %0, [%1];" : "=r"(word) : "l"(address));
        return reinterpret_cast<const T&>(word);
    } else if constexpr (sizeof(T) == 2) {
        u16 half;
        asm("ld.global.nc.u16 %0, [%1];" : "=h"(half) : "l"(address));
        return reinterpret_cast<const T&>(half);
    } else {
        u32 byte;
        asm("ld.global.nc.u8 %0, [%1];" : "=r"(byte) : "l"(address));
        return static_cast<T>(byte);
    }
}
template <typename T>
DEVICE void store_global(T* address, T value) {
    // Said in PTX, since the compiler takes a struct apart into words.
    if constexpr (sizeof(T) == 16) {
        const Vec4& words = reinterpret_cast<const Vec4&>(value);
        asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(words.x), "r"(words.y),
                     "r"(words.z), "r"(words.w)
                     : "memory");
    } else if constexpr (sizeof(T) == 8) {
        const Vec2& words = reinterpret_cast<const Vec2&>(value);
        asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(words.x), "r"(words.y) : "memory");
    } else {
        *address = value;
    }
}

// The same address, computed here and now: kept from the compiler's eyes, which would otherwise carry every address of an
// unrolled loop in registers of its own.
template <typename T>
DEVICE const T* computed_here(const T* address) {
    asm volatile("" : "+l"(address));
    return address;
}
DEVICE u32 computed_here(u32 address) {
    asm volatile("" : "+r"(address));
    return address;
}

// ---- Shared memory, by 32-bit address

// First byte of the block's dynamic shared memory; a multiple of 128.
DEVICE u32 shared_base() {
    extern __shared__ __align__(128) u8 dynamic_shared[];
    return static_cast<u32>(__cvta_generic_to_shared(dynamic_shared));
}
DEVICE u32 load_shared_u32(u32 address) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}
DEVICE Vec4 load_shared_vec4(u32 address) {
    Vec4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}
DEVICE void store_shared_u16(u32 address, u16 value) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(value) : "memory");
}
DEVICE void store_shared_u32(u32 address, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
DEVICE void store_shared_vec4(u32 address, Vec4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane 8m + r gives the address of row r of matrix m, 16 bytes, aligned to 16.
// Lane l receives elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix m in result[m].
DEVICE void ldmatrix(u32 (&result)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(address)
                 : "memory");
}
// The same with every matrix transposed.
DEVICE void ldmatrix_transposed(u32 (&result)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(address)
                 : "memory");
}

// ---- Asynchronous copies from device to shared memory (sm_80 and newer)

// Copies the first `bytes` (0 to SIZE) bytes and fills the rest of SIZE with zeros. SIZE is 4, 8 or 16; both addresses
// are aligned to it. Nothing is read from `global` where `bytes` is 0. The data is there after copy_async_wait.
template <int SIZE>
DEVICE void copy_async(u32 shared, const void* global, int bytes) {
#if __CUDA_ARCH__ >= 800
    if constexpr (SIZE == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared), "l"(global), "r"(bytes), "n"(SIZE)
                     : "memory");
#endif
}
// Closes the group of this thread's copies since the last commit.
DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most PENDING of this thread's groups, the youngest, are under way. Other threads need a barrier too.
template <int PENDING>
DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- Within a warp (all 32 lanes take part)

DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }
DEVICE u32 shuffle_xor(u32 value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }

DEVICE bool any_in_warp(bool value) { return __any_sync(0xffffffffu, value); }

// ---- Matrix products, accumulated in float32
//
// With g = lane / 4 and t = lane % 4 a lane holds, of A (16 x 16, row major): a[0] row g, columns 2t and 2t + 1; a[1]
// row g + 8; a[2], a[3] the same rows, columns + 8. Of B (16 x 8): b[0] rows 2t and 2t + 1 of column g; b[1] rows + 8.
// Of C (16 x 8): c[0], c[1] row g, columns 2t and 2t + 1; c[2], c[3] row g + 8. Lower column or row in the lower half.

DEVICE void mma_m16n8k16_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
DEVICE void mma_m16n8k16_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
// Half the depth, and all that Turing has: A is a0, a1 and B is b0 above.
DEVICE void mma_m16n8k8_f16(float (&c)[4], u32 a0, u32 a1, u32 b0) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

// ---- Arithmetic

// 2 to the power of x, 2 ulp, subnormal results are 0; exp2 of -inf is 0.
DEVICE float exp2_fast(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
DEVICE float log2_fast(float x) {
    float result;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
DEVICE float divide_fast(float x, float y) {
    float result;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
    return result;
}
DEVICE float fused_multiply_add(float x, float y, float z) { return __fmaf_rn(x, y, z); }
// A product rounded by itself: the compiler may fuse x * y into a sum that follows, and never this.
DEVICE float rounded_product(float x, float y) {
    float result;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
    return result;
}
DEVICE float maximum(float x, float y) { return fmaxf(x, y); }
DEVICE float magnitude(float x) { return fabsf(x); }
DEVICE u32 multiply_high(u32 x, u32 y) { return __umulhi(x, y); }
DEVICE float infinity() { return __int_as_float(0x7f800000); }
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 as_bits(float value) { return __float_as_uint(value); }

// ---- 16-bit floats, two in a word, `low` in the lower half; round to nearest even

DEVICE u32 pack_f16(float low, float high) {
    u32 result;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
#else
    asm("{.reg .f16 lo, hi; cvt.rn.f16.f32 lo, %1; cvt.rn.f16.f32 hi, %2; mov.b32 %0, {lo, hi};}"
        : "=r"(result)
        : "f"(low), "f"(high));
#endif
    return result;
}
DEVICE u32 pack_bf16(float low, float high) {
    u32 result = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
#endif
    return result;
}
DEVICE float widen_f16(u16 bits) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
}
DEVICE float widen_bf16(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }
