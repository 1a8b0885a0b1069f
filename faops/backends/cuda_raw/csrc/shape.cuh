// How the warps of a block share its tile of TILE_M query rows and TILE_N keys: each has rows of its own, or, where there are
// KEY_WARPS of them, all have the same rows and each has keys of its own.
#pragma once
#include "ptx.cuh"
#include "specialization.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int WARP_ROWS = TILE_M * KEY_WARPS / WARPS;  // query rows of a warp
constexpr int WARP_KEYS = TILE_N / KEY_WARPS;          // keys of a warp
static_assert(KEY_WARPS == 1 || KEY_WARPS == WARPS, "warps share rows or keys, not some of both");
static_assert(TILE_M * KEY_WARPS % (16 * WARPS) == 0 && TILE_N % (16 * KEY_WARPS) == 0,
              "a warp computes blocks of 16 x 16 scores");

DEVICE int smaller(int x, int y) { return x < y ? x : y; }
DEVICE int larger(int x, int y) { return x > y ? x : y; }

// First row of this warp within the tile.
DEVICE int warp_row() { return KEY_WARPS == 1 ? warp_index() * WARP_ROWS : 0; }
