// The state of one host thread that runs blocks, and how its fibers take turns.
#pragma once

#include <atomic>
#include <cstdarg>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"

namespace emulator {

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// What went wrong, as the Python side numbers it.
enum Failure {
    NONE,
    OUT_OF_BOUNDS,
    MISALIGNED,
    UNINITIALISED,
    IN_FLIGHT,
    READ_ONLY,
    DEADLOCK,
    DIVERGENT,
    NEVER_WAITED,
    UNSUPPORTED,
    LAUNCH,
};

// One tensor the kernel may touch.
struct Buffer {
    u64 address;
    u64 bytes;
    u64 writable;
    const char* name;
};

struct Launch {
    const void* params;
    u64 params_bytes;
    u32 grid;
    u32 threads;
    u32 shared_bytes;
    u32 host_threads;
    const Buffer* buffers;
    u64 buffer_count;
};

struct PendingCopy {
    u32 shared;
    int size;
    i64 group;
    Site site;
    alignas(16) u8 data[16];
};

struct Warp;

struct Fiber {
    Context context;
    Warp* warp = nullptr;
    int thread = 0;
    int lane = 0;
    bool ended = false;
    Site waiting{};
    i64 groups = 0;                              // committed so far
    size_t first_copy = 0;                       // copies before it are delivered
    std::vector<PendingCopy>* copies = nullptr;  // oldest first; on the fiber's stack
};

// The lanes of a warp leave their operands here; the last one computes for all.
struct Warp {
    alignas(64) u32 a[4][WARP];
    alignas(64) u32 b[2][WARP];
    alignas(64) float c[2][WARP][2];
    alignas(64) Vec4 rows[WARP];
    alignas(64) u32 pieces[4][WARP];
    u32 ready;    // lanes that can go on
    u32 arrived;  // lanes that wait in the collective under way
    Site collective;
    Fiber* fibers;
    char order[2];  // the two fences of sync_warp, used in turn
    int generation;
    int index;
};

struct Counters;

struct Machine {
    const Launch* launch = nullptr;
    Context host;
    Fiber* current = nullptr;
    std::vector<Fiber> fibers;
    std::unique_ptr<Warp[]> warps;
    int warp_count = 0;
    u32 block = 0;
    u32 in_barrier = 0;  // threads that wait in it
    int barrier_generation = 0;
    char barrier_order[2] = {0, 0};
    u8* stacks = nullptr;
    u8* shared = nullptr;
    std::vector<u8> shared_state;        // per byte: NEVER_WRITTEN, WRITTEN or UNDER_WAY
    const Buffer* last_buffer = nullptr;
    Counters* counters = nullptr;
    Failure failure = NONE;
    std::string message;
};

inline char grid_order = 0;  // the fence at the end of a grid
inline thread_local Machine* machine = nullptr;

inline std::string format(const char* pattern, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, pattern);
    vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

inline const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

inline std::string place(Site site) {
    return format("%s at %s:%d", site.function, base_name(site.file), site.line);
}

// The compiler may keep equal strings twice.
inline bool same_site(const Site& x, const Site& y) {
    return x.line == y.line && (x.function == y.function || strcmp(x.function, y.function) == 0) &&
           (x.file == y.file || strcmp(x.file, y.file) == 0);
}

// Gives up the launch: the host's fiber takes over and this one is never resumed.
[[noreturn]] inline void fail(Failure failure, const std::string& message) {
    Machine& m = *machine;
    m.failure = failure;
    m.message = format("block %u, thread %d: ", m.block, m.current->thread) + message;
    order_release(&m.failure);
    switch_context(m.current->context, m.host);
    __builtin_unreachable();
}

// Lets the next lane of this warp run, else the next warp, else the host, who finds out whether all have ended.
inline void yield() {
    Machine& m = *machine;
    Fiber& self = *m.current;
    const int start = self.warp->index;
    for (int step = 0; step <= m.warp_count; ++step) {
        int index = start + step;
        if (index >= m.warp_count) index -= m.warp_count;
        Warp& warp = m.warps[index];
        if (!warp.ready) continue;
        const int after = step == 0 ? self.lane + 1 : 0;
        const u32 later = after < WARP ? warp.ready >> after << after : 0;
        Fiber& next = warp.fibers[__builtin_ctz(later ? later : warp.ready)];
        if (&next == &self) return;
        m.current = &next;
        switch_context(self.context, next.context);
        return;
    }
    switch_context(self.context, m.host);
}

// A barrier without memory order that all lanes of a warp reach with the same call. True for the last to arrive, who
// computes for all and then calls `go_on`; the others come back after that.
inline bool arrive(Warp& warp, Fiber& self, Site site) {
    if (!warp.arrived) {
        warp.collective = site;
    } else if (!same_site(warp.collective, site)) {
        fail(DIVERGENT, place(site) + format(" while other lanes of warp %d are in ", warp.index) +
                            place(warp.collective) + "; a warp's lanes must make such a call together");
    }
    warp.arrived |= 1u << self.lane;
    if (warp.arrived == ALL_LANES) return true;
    warp.ready &= ~(1u << self.lane);
    self.waiting = site;
    yield();
    return false;
}

inline void go_on(Warp& warp) {
    warp.ready = ALL_LANES;
    warp.arrived = 0;
}

}  // namespace emulator
