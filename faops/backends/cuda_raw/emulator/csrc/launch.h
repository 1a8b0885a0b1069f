// Runs the blocks of a grid, one after the other on each host thread.
#pragma once

#include <pthread.h>

#include <mutex>
#include <thread>

#include "counters.h"
#include "machine.h"
#include "memory.h"
#include "warp.h"

namespace emulator {

inline void run_fiber() {
    Fiber& self = *machine->current;
    switched(self.context);
    {
        std::vector<PendingCopy> copies;
        self.copies = &copies;
        enter(machine->launch->params);
        check_copies_waited_for(self);
        self.copies = nullptr;
    }
    order_release(&grid_order);
    self.ended = true;
    self.warp->ready &= ~(1u << self.lane);
    yield();
    __builtin_unreachable();
}

// "threads 0-30, 32", from the fibers for which `chosen` holds.
template <typename Chosen>
inline std::string thread_list(const Machine& m, Chosen chosen) {
    std::string text;
    const int count = static_cast<int>(m.fibers.size());
    for (int first = 0; first < count; ++first) {
        if (!chosen(m.fibers[first])) continue;
        int last = first;
        while (last + 1 < count && chosen(m.fibers[last + 1])) ++last;
        text += text.empty() ? "" : ", ";
        text += first == last ? format("%d", first) : format("%d-%d", first, last);
        first = last;
    }
    return text;
}

inline std::string deadlock_report(const Machine& m) {
    std::string text = format("block %u: no thread can go on", m.block);
    std::vector<std::string> seen;
    for (const Fiber& fiber : m.fibers) {
        if (fiber.ended) continue;
        const std::string waiting = place(fiber.waiting);
        if (std::find(seen.begin(), seen.end(), waiting) != seen.end()) continue;
        seen.push_back(waiting);
        text += "; threads " + thread_list(m, [&](const Fiber& other) {
                    return !other.ended && place(other.waiting) == waiting;
                }) + " wait in " + waiting;
    }
    const std::string ended = thread_list(m, [](const Fiber& fiber) { return fiber.ended; });
    return ended.empty() ? text : text + "; threads " + ended + " have ended";
}

inline u8* map_pages(size_t bytes) {
    void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? nullptr : static_cast<u8*>(pages);
}

// Stacks and shared memory. With a sanitizer every block gets fresh pages: nothing then orders one block's accesses
// before another's, and none of them is mistaken for a race on memory used again.
class Pages {
public:
    explicit Pages(Machine& machine) : m(machine) {}
    ~Pages() { release(); }
    bool acquire() {
        if (m.stacks && !SANITIZED) return true;
        release();
        m.stacks = map_pages(stack_bytes());
        m.shared = map_pages(shared_bytes());
        if (!m.stacks || !m.shared) return false;
        for (u32 i = 0; i < m.launch->threads; ++i) mprotect(m.stacks + i * PITCH, GUARD_BYTES, PROT_NONE);
        return true;
    }
    // The lowest and the highest byte of a thread's stack. The tops are spread over the sets of the host's caches.
    u8* bottom(int thread) const { return m.stacks + thread * PITCH + GUARD_BYTES; }
    u8* top(int thread) const { return m.stacks + (thread + 1) * PITCH - (thread % 32) * 320; }

private:
    static constexpr size_t PITCH = STACK_BYTES + GUARD_BYTES + 4096;
    Machine& m;
    size_t stack_bytes() const { return m.launch->threads * PITCH; }
    size_t shared_bytes() const { return m.launch->shared_bytes + 4096; }
    void release() {
        if (m.stacks) munmap(m.stacks, stack_bytes());
        if (m.shared) munmap(m.shared, shared_bytes());
        m.stacks = m.shared = nullptr;
    }
};

inline void start_block(Machine& m, const Pages& pages) {
    memset(m.shared, 0xff, m.launch->shared_bytes);
    std::fill(m.shared_state.begin(), m.shared_state.end(), NEVER_WRITTEN);
    m.in_barrier = 0;
    for (int i = 0; i < m.warp_count; ++i) {
        Warp& warp = m.warps[i];
        warp.index = i;
        warp.fibers = m.fibers.data() + i * WARP;
        warp.ready = ALL_LANES;
        warp.arrived = 0;
    }
    for (size_t i = 0; i < m.fibers.size(); ++i) {
        Fiber& fiber = m.fibers[i];
        const int thread = static_cast<int>(i);
        fiber.thread = thread;
        fiber.lane = thread % WARP;
        fiber.warp = &m.warps[thread / WARP];
        fiber.ended = false;
        fiber.groups = 0;
        fiber.copies = nullptr;
        fiber.first_copy = 0;
        prepare_context(fiber.context, pages.bottom(thread), pages.top(thread), run_fiber);
#ifdef EMULATOR_THREAD_SANITIZER
        fiber.context.fiber = __tsan_create_fiber(0);
        __tsan_set_fiber_name(fiber.context.fiber, format("block %u, thread %d", m.block, thread).c_str());
#endif
    }
}

inline void end_block(Machine& m) {
#ifdef EMULATOR_THREAD_SANITIZER
    for (Fiber& fiber : m.fibers) __tsan_destroy_fiber(fiber.context.fiber);
#endif
    if (m.failure) {
        order_acquire(&m.failure);
        return;
    }
    for (const Fiber& fiber : m.fibers)
        if (!fiber.ended) {
            m.failure = DEADLOCK;
            m.message = deadlock_report(m);
            return;
        }
    if (COUNTING)
        for (int i = 0; i < m.warp_count; ++i) flush_requests(i);
}

inline void run_block(Machine& m, Pages& pages, u32 block) {
    m.block = block;
    if (!pages.acquire()) {
        m.failure = LAUNCH;
        m.message = "the host has no memory for the threads' stacks";
        return;
    }
    start_block(m, pages);
    m.current = m.fibers.data();
    switch_context(m.host, m.current->context);
    end_block(m);
}

inline void describe_host(Context& host) {
#ifdef EMULATOR_THREAD_SANITIZER
    host.fiber = __tsan_get_current_fiber();
#endif
#ifdef EMULATOR_ADDRESS_SANITIZER
    pthread_attr_t attributes;
    void* bottom;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &host.size);
    pthread_attr_destroy(&attributes);
    host.bottom = bottom;
#endif
    (void)host;
}

struct Outcome {
    std::mutex lock;
    Failure failure = NONE;
    std::string message;
    std::atomic<u64> next_block{0};
};

inline void run_blocks(const Launch& launch, Outcome& outcome, Counters* counters) {
    Machine m;
    m.launch = &launch;
    m.counters = counters;
    m.warp_count = launch.threads / WARP;
    m.warps.reset(new Warp[m.warp_count]());
    m.fibers.resize(launch.threads);
    m.shared_state.resize(launch.shared_bytes);
    describe_host(m.host);
    machine = &m;
    Pages pages(m);
    while (!m.failure) {
        const u64 block = outcome.next_block++;
        if (block >= launch.grid) break;
        run_block(m, pages, static_cast<u32>(block));
    }
    machine = nullptr;
    if (!m.failure) return;
    outcome.next_block = launch.grid;
    const std::lock_guard<std::mutex> guard(outcome.lock);
    if (outcome.failure) return;
    outcome.failure = m.failure;
    outcome.message = m.message;
}

inline Failure run_grid(const Launch& launch, std::string& message, Counters* counters) {
    if (launch.params_bytes != params_bytes) {
        message = format("the kernel's parameters take %llu bytes, got %llu", params_bytes, launch.params_bytes);
        return LAUNCH;
    }
    Outcome outcome;
    std::vector<std::thread> helpers;
    for (u32 i = 1; i < launch.host_threads; ++i)
        helpers.emplace_back([&] { run_blocks(launch, outcome, counters); });
    run_blocks(launch, outcome, counters);
    for (std::thread& helper : helpers) helper.join();
    order_acquire(&grid_order);
    message = outcome.message;
    return outcome.failure;
}

}  // namespace emulator

// Runs a grid. Returns a Failure; its text goes to `message`, and where counters are compiled in, their JSON text goes
// to `*counts`, which stands until this host thread's next launch.
extern "C" __attribute__((visibility("default"))) int faops_emulator_launch(const emulator::Launch* launch,
                                                                            char* message, u64 message_bytes,
                                                                            const char** counts) {
    static thread_local std::string json;
    emulator::Counters counters;
    std::string text;
    const emulator::Failure failure = emulator::run_grid(*launch, text, &counters);
    snprintf(message, message_bytes, "%s", text.c_str());
    json = emulator::COUNTING ? emulator::counters_json(counters) : std::string();
    *counts = json.c_str();
    return failure;
}
