// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011), the same function of seed and place as on every backend.
#pragma once
#include "ptx.cuh"

struct Philox {
    u32 key0, key1, offset;

    DEVICE Philox(const u64* rng) {
        u64 seed = load_global(rng);
        key0 = static_cast<u32>(seed);
        key1 = static_cast<u32>(seed >> 32);
        offset = static_cast<u32>(load_global(rng + 1));
    }

    // Random words of keys 4 * key_group to 4 * key_group + 3 in query row `row` of head `head` (batch * heads + head).
    DEVICE void words(u32 (&out)[4], u32 key_group, u32 row, u32 head) const {
        u32 c0 = key_group, c1 = row, c2 = head, c3 = offset, k0 = key0, k1 = key1;
        UNROLL
        for (int round = 0; round < 10; ++round) {
            u32 high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
            u32 high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
            c0 = high1 ^ c1 ^ k0;
            c1 = low1;
            c2 = high0 ^ c3 ^ k1;
            c3 = low0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        out[0] = c0;
        out[1] = c1;
        out[2] = c2;
        out[3] = c3;
    }
};
