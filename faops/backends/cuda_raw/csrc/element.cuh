// The element type of Q, K, V and the result, and the matrix product on it.
#pragma once
#include "ptx.cuh"
#include "specialization.cuh"

DEVICE u32 pack(float low, float high) {
    if constexpr (BFLOAT16)
        return pack_bf16(low, high);
    else
        return pack_f16(low, high);
}

// C (16 x 8) += A (16 x 16) B (16 x 8).
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (MMA_DEPTH == 8) {
        mma_m16n8k8_f16(c, a[0], a[1], b0);
        mma_m16n8k8_f16(c, a[2], a[3], b1);
    } else if constexpr (BFLOAT16) {
        mma_m16n8k16_bf16(c, a, b0, b1);
    } else {
        mma_m16n8k16_f16(c, a, b0, b1);
    }
}
