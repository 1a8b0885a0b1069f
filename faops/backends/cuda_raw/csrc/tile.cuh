// A tile of 16-bit elements in shared memory, laid out so that reading it by columns of 8 x 8 matrices, or by rows, never
// makes two lanes wait for the same bank.
#pragma once
#include "ptx.cuh"

// ROWS rows of WIDTH elements, WIDTH a multiple of 16. A row is cut into chunks of 16 bytes. Chunk c of row r lies at
// place c ^ x(r) of its row, where x(r) makes eight neighbouring rows of one column start at eight different groups of
// four banks: a row of 8 n chunks needs x = r % 8; an odd multiple of 4 moves every second row by half the banks itself, so
// x = (r / 2) % 4 is enough; an odd multiple of 2 moves four rows apart, and x = (r / 4) % 2.
template <int ROWS_, int WIDTH_>
struct Tile {
    static constexpr int ROWS = ROWS_;
    static constexpr int WIDTH = WIDTH_;
    static constexpr int CHUNKS = WIDTH / 8;
    static constexpr int SPREAD = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    static constexpr int ROW_BYTES = WIDTH * 2;
    static constexpr int BYTES = ROWS * ROW_BYTES;
    static_assert(WIDTH % 16 == 0, "rows are read in pairs of chunks");

    DEVICE static int twist(int row) { return (row / (8 / SPREAD)) & (SPREAD - 1); }
    DEVICE static u32 offset(int row, int chunk) { return row * ROW_BYTES + ((chunk ^ twist(row)) * 16); }
};

// Where this lane reads 16 x 16 blocks of a tile with ldmatrix, as addresses relative to the tile. Blocks start at rows
// that are multiples of 16, whose twist is that of the lane's own row; and going to block column k moves the lane inside
// its group of eight chunks by an exclusive or. So one word tells all that depends on the lane, where rows are multiples
// of 128 bytes, and two elsewhere.
template <typename T>
struct LaneBlocks {
    u32 row_start, place;

    // The lane reads chunk `chunk` (0 or 1) of row `row` of each block.
    DEVICE LaneBlocks(int row, int chunk) : row_start(row * T::ROW_BYTES), place((chunk ^ T::twist(row)) * 16) {
        if constexpr (T::SPREAD == 8) place += row_start;
    }
    // The same, with nothing of what `at` computes kept from an earlier product.
    DEVICE LaneBlocks anew() const {
        LaneBlocks copy = *this;
        copy.place = computed_here(copy.place);
        return copy;
    }
    // Block column k (of 16 elements) of the block row that starts at row 16 * block.
    DEVICE u32 at(int block, int k) const {
        u32 address = place ^ ((k & 3) * 32);
        if constexpr (T::SPREAD != 8) address += row_start;
        return address + block * 16 * T::ROW_BYTES + (k >> 2) * 128;
    }
};

// How the threads of a block share the copying of a tile: SPREAD neighbours take a row, each every SPREAD-th chunk of
// it, so that they read whole sectors of device memory and write to different banks.
template <typename T, int THREADS>
struct ThreadChunks {
    static constexpr int ROW_STEP = THREADS / T::SPREAD;  // rows copied at once
    static constexpr int ROW_STEPS = (T::ROWS + ROW_STEP - 1) / ROW_STEP;
    static constexpr int CHUNK_STEPS = T::CHUNKS / T::SPREAD;
    static_assert(ROW_STEP % 8 == 0, "the twist of a thread's rows is the same");
    int row, chunk;

    DEVICE ThreadChunks() : row(thread_index() / T::SPREAD), chunk(thread_index() % T::SPREAD) {}

    DEVICE bool has(int i) const { return T::ROWS % ROW_STEP == 0 || row + i * ROW_STEP < T::ROWS; }
    DEVICE u32 offset(int i, int j) const {
        return T::offset(row, chunk) + i * ROW_STEP * T::ROW_BYTES + j * T::SPREAD * 16;
    }
};
