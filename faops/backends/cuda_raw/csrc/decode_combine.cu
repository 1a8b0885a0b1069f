// One result from those of all splits of the keys. A block has one row of one head.
//
// `partial` holds a result of HEAD_DIM_V floats for each row and split, already divided by its sum of exponentials, then
// for each the logarithm to base 2 of that sum, -inf where the split saw no key: its result was not written, and is not
// read. Rows are numbered by sequence, KV head, position, and head of the group.
//
// A thread has a column of four elements, and with others that have the same column each a part of the splits. They
// read whole rows of results side by side, add up what is theirs in the order of the splits, and meet in shared memory.
#include "element.cuh"
#include "params.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

constexpr int COLUMN = 4;  // elements
constexpr int COLUMNS = (HEAD_DIM_V + COLUMN - 1) / COLUMN;
constexpr int TEAMS = THREADS / COLUMNS;  // that share out the splits
constexpr int AHEAD = 4;                   // results that a thread reads at a time
static_assert(TEAMS > 0, "a block has room for a row");

// Four floats of a row, as wide as its width allows; 0 behind its end.
DEVICE void read_column(float (&values)[COLUMN], const float* row, int first) {
    if constexpr (HEAD_DIM_V % 4 == 0) {
        Vec4 four = load_global(reinterpret_cast<const Vec4*>(row + first));
        values[0] = as_float(four.x), values[1] = as_float(four.y);
        values[2] = as_float(four.z), values[3] = as_float(four.w);
    } else {
        UNROLL
        for (int i = 0; i < COLUMN; ++i) values[i] = first + i < HEAD_DIM_V ? load_global(row + first + i) : 0.0f;
    }
}

// The exponentials' sum over all splits, relative to the greatest logarithm. Every warp computes it for itself.
struct Total {
    float highest, sum;

    DEVICE Total(const float* logs, int splits) : highest(-infinity()), sum(0) {
        const int rounded = (splits + 31) & ~31;  // so that all lanes meet in the shuffles
        for (int split = lane_index(); split < rounded; split += 32) {
            float log = split < splits ? load_global(logs + split) : -infinity();
            float higher = maximum(highest, log);
            UNROLL
            for (int lanes = 1; lanes < 32; lanes *= 2) higher = maximum(higher, shuffle_xor(higher, lanes));
            sum = sum * weight(highest, higher) + weight(log, higher);
            highest = higher;
        }
        UNROLL
        for (int lanes = 1; lanes < 32; lanes *= 2) sum += shuffle_xor(sum, lanes);
    }
    // One more logit joins the sum; what results are to be multiplied by.
    DEVICE float join(float logit) {
        float higher = maximum(highest, logit), shrink = weight(highest, higher);
        sum = fused_multiply_add(sum, shrink, weight(logit, higher));
        highest = higher;
        return shrink;
    }
    // 2 to the power of log - base; 0 for no keys at all, which keeps -inf - -inf out of the exponent.
    DEVICE static float weight(float log, float base) { return log == -infinity() ? 0.0f : exp2_fast(log - base); }
};

// The part of a thread's column that its team adds up.
DEVICE void add_up(float (&result)[COLUMN], const Params& params, const float* results, const float* logs, int team,
                   float highest) {
    const int first = thread_index() % COLUMNS * COLUMN;
    for (int split = team; split < params.splits; split += AHEAD * TEAMS) {
        float weights[AHEAD], values[AHEAD][COLUMN];
        UNROLL
        for (int i = 0; i < AHEAD; ++i) {
            int at = split + i * TEAMS;
            weights[i] = Total::weight(at < params.splits ? load_global(logs + at) : -infinity(), highest);
            UNROLL
            for (int j = 0; j < COLUMN; ++j) values[i][j] = 0;
            if (weights[i] > 0) read_column(values[i], results + at * HEAD_DIM_V, first);
        }
        UNROLL
        for (int i = 0; i < AHEAD; ++i) {
            UNROLL
            for (int j = 0; j < COLUMN; ++j) result[j] = fused_multiply_add(weights[i], values[i][j], result[j]);
        }
    }
}

// The sum of the teams' parts, in their order, for the first team's threads.
DEVICE void meet(float (&result)[COLUMN], int splits, int team) {
    const u32 mine = shared_base() + thread_index() * 16;
    if (team > 0 && team < TEAMS)
        store_shared_vec4(mine, Vec4{as_bits(result[0]), as_bits(result[1]), as_bits(result[2]), as_bits(result[3])});
    sync_block();
    if (team > 0) return;
    for (int other = 1; other < TEAMS && other < splits; ++other) {
        Vec4 part = load_shared_vec4(mine + other * COLUMNS * 16);
        result[0] += as_float(part.x);
        result[1] += as_float(part.y);
        result[2] += as_float(part.z);
        result[3] += as_float(part.w);
    }
}

DEVICE void write_column(u16* row, const float (&result)[COLUMN], int first) {
    const u32 low = pack(result[0], result[1]), high = pack(result[2], result[3]);
    if constexpr (OUT_VECTORS) {
        store_global(reinterpret_cast<Vec2*>(row + first), Vec2{low, high});
    } else {
        UNROLL
        for (int i = 0; i < COLUMN; ++i) {
            u32 word = i < 2 ? low : high;
            if (first + i < HEAD_DIM_V) store_global(row + first + i, static_cast<u16>(i % 2 ? word >> 16 : word));
        }
    }
}

KERNEL void LAUNCH_BOUNDS(THREADS, 1) decode_combine(const GRID_CONSTANT Params params) {
    const u32 row = block_index();
    const int row_of_head = row % params.rows_of_head, head_index = row / params.rows_of_head;
    const int sequence = head_index / params.heads_kv, head_kv = head_index % params.heads_kv;
    const int position = row_of_head / GROUP, head = head_kv * GROUP + row_of_head % GROUP;

    const i64 first_split = static_cast<i64>(row) * params.splits;
    const i64 all_splits = static_cast<i64>(block_count()) * params.splits;
    const float* results = params.partial + first_split * HEAD_DIM_V;
    const float* logs = params.partial + all_splits * HEAD_DIM_V + first_split;

    const int team = thread_index() / COLUMNS;
    Total total(logs, params.splits);
    float result[COLUMN] = {0, 0, 0, 0};
    if (team < TEAMS) add_up(result, params, results, logs, team, total.highest);
    meet(result, params.splits, team);
    if (team > 0) return;

    const bool alive = total.highest > -infinity();
    float shrink = 1;
    if constexpr (SINKS) shrink = total.join(load_global(params.sinks + head) * LOG2_E);
    const float scale = alive ? divide_fast(shrink, total.sum) : 0.0f;
    UNROLL
    for (int i = 0; i < COLUMN; ++i) result[i] *= scale;
    u16* out = params.out + sequence * params.out_batch + position * params.out_row + head * params.out_head;
    write_column(out, result, thread_index() * COLUMN);
    if constexpr (LSE) {
        float* lse = params.lse + sequence * params.lse_batch + head * params.lse_head + position;
        if (thread_index() == 0) store_global(lse, alive ? (total.highest + log2_fast(total.sum)) * LN_2 : -infinity());
    }
}
