// Checks of every access to device and shared memory, and the queue of asynchronous copies.
#pragma once

#include "counters.h"
#include "machine.h"

namespace emulator {

enum SharedState : u8 { NEVER_WRITTEN, WRITTEN, UNDER_WAY };

// ---- Device memory

inline bool holds(const Buffer& buffer, u64 address, int bytes) {
    const u64 offset = address - buffer.address;
    return offset < buffer.bytes && buffer.bytes - offset >= u64(bytes);
}

// Buffers may overlap: parts of one tensor, some of which may be written.
inline const Buffer* find_buffer(u64 address, int bytes, bool to_write) {
    Machine& m = *machine;
    const Buffer* last = m.last_buffer;
    if (last && (last->writable || !to_write) && holds(*last, address, bytes)) return last;
    for (u64 i = 0; i < m.launch->buffer_count; ++i) {
        const Buffer* buffer = m.launch->buffers + i;
        if ((buffer->writable || !to_write) && holds(*buffer, address, bytes)) return m.last_buffer = buffer;
    }
    return nullptr;
}

[[noreturn]] inline void global_out_of_bounds(u64 address, int bytes, Site site) {
    const Launch& launch = *machine->launch;
    const Buffer* nearest = nullptr;
    u64 best = ~u64(0);
    for (u64 i = 0; i < launch.buffer_count; ++i) {
        const Buffer* buffer = launch.buffers + i;
        const u64 end = buffer->address + buffer->bytes;
        const u64 distance = address < buffer->address ? buffer->address - address : address > end ? address - end : 0;
        if (distance < best) {
            best = distance;
            nearest = buffer;
        }
    }
    std::string where = "no buffer is registered";
    if (nearest)
        where = format("the nearest is %s, %llu bytes, and the access starts at its byte %lld", nearest->name,
                       nearest->bytes, i64(address - nearest->address));
    fail(OUT_OF_BOUNDS,
         place(site) + format(": %d bytes at device address 0x%llx lie in no buffer; ", bytes, address) + where);
}

inline void check_global(u64 address, int bytes, int alignment, bool to_write, Site site) {
    const Buffer* buffer = find_buffer(address, bytes, to_write);
    if (!buffer && to_write && (buffer = find_buffer(address, bytes, false)))
        fail(READ_ONLY, place(site) + format(": writes byte %llu of %s, which the kernel may only read",
                                             address - buffer->address, buffer->name));
    if (!buffer) global_out_of_bounds(address, bytes, site);
    if (address & u64(alignment - 1))
        fail(MISALIGNED, place(site) + format(": device address 0x%llx (byte %llu of %s) is not a multiple of %d",
                                              address, address - buffer->address, buffer->name, alignment));
}

void global_read(const void* address, int bytes, Site site) {
    const u64 start = reinterpret_cast<u64>(address);
    check_global(start, bytes, bytes, false, site);
    if (COUNTING) count_global(site, start, bytes, bytes, LOAD);
}

void global_write(const void* address, int bytes, Site site) {
    const u64 start = reinterpret_cast<u64>(address);
    check_global(start, bytes, bytes, true, site);
    if (COUNTING) count_global(site, start, bytes, bytes, STORE);
}

// ---- Shared memory

inline u8* check_shared(u32 address, int bytes, Site site) {
    Machine& m = *machine;
    const u32 offset = address - SHARED_BASE;
    const u32 size = m.launch->shared_bytes;
    if (offset >= size || size - offset < u32(bytes))
        fail(OUT_OF_BOUNDS,
             place(site) + format(": %d bytes at shared address %u, byte %lld of %u", bytes, address,
                                  i64(address) - i64(SHARED_BASE), size));
    if (address & u32(bytes - 1))
        fail(MISALIGNED,
             place(site) + format(": shared address %u (byte %u) is not a multiple of %d", address, offset, bytes));
    return m.shared + offset;
}

[[noreturn]] inline void shared_under_way(u32 address, const char* what, Site site) {
    Machine& m = *machine;
    std::string owner;
    for (const Fiber& fiber : m.fibers)
        for (size_t i = fiber.first_copy; fiber.copies && i < fiber.copies->size(); ++i) {
            const PendingCopy& copy = (*fiber.copies)[i];
            if (address - copy.shared < u32(copy.size))
                owner = format(" by thread %d, ", fiber.thread) + place(copy.site);
        }
    fail(IN_FLIGHT, place(site) + format(": %s byte %u of shared memory while an asynchronous copy to it%s is under way",
                                         what, address - SHARED_BASE, owner.c_str()));
}

u8* shared_read(u32 address, int bytes, Site site) {
    u8* data = check_shared(address, bytes, site);
    const u8* state = machine->shared_state.data() + (address - SHARED_BASE);
    for (int i = 0; i < bytes; ++i) {
        if (state[i] == WRITTEN) continue;
        if (state[i] == UNDER_WAY) shared_under_way(address + i, "reads", site);
        fail(UNINITIALISED, place(site) + format(": reads byte %u of shared memory, which this block never wrote",
                                                 address + i - SHARED_BASE));
    }
    if (COUNTING) count_shared(site, address, bytes);
    return data;
}

inline void mark(u32 address, int bytes, SharedState to, Site site) {
    u8* state = machine->shared_state.data() + (address - SHARED_BASE);
    for (int i = 0; i < bytes; ++i)
        if (state[i] == UNDER_WAY) shared_under_way(address + i, "writes", site);
    for (int i = 0; i < bytes; ++i) state[i] = to;
}

u8* shared_write(u32 address, int bytes, Site site) {
    u8* data = check_shared(address, bytes, site);
    mark(address, bytes, WRITTEN, site);
    if (COUNTING) count_shared(site, address, bytes);
    return data;
}

// ---- Asynchronous copies

u8* copy_check(u32 shared, const void* global, int size, int bytes, Site site) {
    if (bytes < 0 || bytes > size)
        fail(UNSUPPORTED, place(site) + format(": asks for %d bytes of %d", bytes, size));
    u8* destination = check_shared(shared, size, site);
    const u64 address = reinterpret_cast<u64>(global);
    if (bytes) check_global(address, bytes, size, false, site);
    mark(shared, size, UNDER_WAY, site);
    if (COUNTING) {
        count_shared(site, shared, size);
        count_global(site, address, bytes, size, COPY);
    }
    return destination;
}

void copy_queue(u32 shared, const u8* data, int size, Site site) {
    Fiber& self = *machine->current;
    PendingCopy copy{shared, size, self.groups, site, {}};
    __builtin_memcpy(copy.data, data, size);
    self.copies->push_back(copy);
}

void copy_commit() { ++machine->current->groups; }

bool copy_next(int pending, Delivery& delivery) {
    Machine& m = *machine;
    Fiber& self = *m.current;
    if (self.first_copy == self.copies->size()) {
        self.copies->clear();
        self.first_copy = 0;
        return false;
    }
    const PendingCopy& copy = (*self.copies)[self.first_copy];
    if (copy.group >= self.groups - pending) return false;
    delivery.destination = m.shared + (copy.shared - SHARED_BASE);
    delivery.size = copy.size;
    for (int i = 0; i < 16; ++i) delivery.data[i] = copy.data[i];
    u8* state = m.shared_state.data() + (copy.shared - SHARED_BASE);
    for (int i = 0; i < copy.size; ++i) state[i] = WRITTEN;
    ++self.first_copy;
    return true;
}

inline void check_copies_waited_for(const Fiber& self) {
    if (self.first_copy == self.copies->size()) return;
    const PendingCopy& copy = (*self.copies)[self.first_copy];
    fail(NEVER_WAITED, place(copy.site) + (copy.group < self.groups ? ": its group was never waited for"
                                                                     : ": the copy was never committed to a group"));
}

}  // namespace emulator
