// The two matrix products: queries with keys, and probabilities with values.
#pragma once
#include "softmax.cuh"
#include "tile.cuh"

using QueryTile = Tile<TILE_M, WIDTH>;
using KeyTile = Tile<WARP_KEYS, WIDTH>;
using ValueTile = Tile<WARP_KEYS, WIDTH_V>;
using OutTile = Tile<TILE_M, WIDTH_V>;

constexpr int DEPTHS = WIDTH / 16;  // steps of 16 over the head dim

// This warp's queries, as left operands: kept in registers, or read from shared memory at every step.
struct Queries {
    u32 fragments[Q_IN_REGISTERS ? DEPTHS : 1][ROW_BLOCKS][4];
    u32 tile;
    LaneBlocks<QueryTile> lane;

    DEVICE Queries(u32 tile_)
        : tile(tile_ + warp_row() * QueryTile::ROW_BYTES), lane(lane_index() % 16, lane_index() / 16) {}

    DEVICE void keep() {
        if constexpr (Q_IN_REGISTERS) {
            UNROLL
            for (int k = 0; k < DEPTHS; ++k) {
                UNROLL
                for (int m = 0; m < ROW_BLOCKS; ++m) ldmatrix(fragments[k][m], tile + lane.at(m, k));
            }
        }
    }
    DEVICE void read(u32 (&into)[ROW_BLOCKS][4], const LaneBlocks<QueryTile>& now, int k) const {
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            if constexpr (Q_IN_REGISTERS) {
                UNROLL
                for (int i = 0; i < 4; ++i) into[m][i] = fragments[k][m][i];
            } else {
                ldmatrix(into[m], tile + now.at(m, k));
            }
        }
    }
};

// scores = queries * transpose(keys). A block of 16 keys by 16 elements feeds two products for each 16 rows of the warp.
struct Keys {
    LaneBlocks<KeyTile> lane;

    DEVICE Keys() : lane(lane_index() % 8 + lane_index() / 16 * 8, lane_index() / 8 % 2) {}

    DEVICE void multiply(Scores& scores, const Queries& queries, u32 tile) const {
        UNROLL
        for (int m = 0; m < ROW_BLOCKS; ++m) {
            UNROLL
            for (int n = 0; n < KEY_BLOCKS; ++n) {
                UNROLL
                for (int i = 0; i < 4; ++i) scores[m][n][i] = 0;
            }
        }
        const auto now = lane.anew();
        const auto queries_now = queries.lane.anew();
        UNROLL
        for (int k = 0; k < DEPTHS; ++k) {
            u32 a[ROW_BLOCKS][4];
            queries.read(a, queries_now, k);
            UNROLL
            for (int n = 0; n < KEY_BLOCKS / 2; ++n) {
                u32 b[4];
                ldmatrix(b, tile + now.at(n, k));
                UNROLL
                for (int m = 0; m < ROW_BLOCKS; ++m) {
                    multiply_add(scores[m][2 * n], a[m], b[0], b[1]);
                    multiply_add(scores[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
};

// out += probabilities * values. What a lane holds of the scores is what it needs as left operand, rounded to 16 bits.
struct Values {
    LaneBlocks<ValueTile> lane;

    DEVICE Values() : lane(lane_index() % 16, lane_index() / 16) {}

    DEVICE void multiply(Rows& rows, const Scores& probabilities, u32 tile) const {
        const auto now = lane.anew();
        UNROLL
        for (int k = 0; k < KEY_BLOCKS / 2; ++k) {
            u32 a[ROW_BLOCKS][4];
            UNROLL
            for (int m = 0; m < ROW_BLOCKS; ++m) {
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    const float* pair = &probabilities[m][2 * k + i / 2][2 * (i % 2)];
                    a[m][i] = pack(pair[0], pair[1]);
                }
            }
            UNROLL
            for (int n = 0; n < OUT_BLOCKS / 2; ++n) {
                u32 b[4];
                ldmatrix_transposed(b, tile + now.at(k, n));
                UNROLL
                for (int m = 0; m < ROW_BLOCKS; ++m) {
                    multiply_add(rows.out[m][2 * n], a[m], b[0], b[1]);
                    multiply_add(rows.out[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
};
