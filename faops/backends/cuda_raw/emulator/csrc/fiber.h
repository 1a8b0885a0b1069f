// Fibers: one stack per CUDA thread and a switch between them, told to the sanitizers where there is one.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "runtime.h"

#if !defined(__linux__) || (!defined(__x86_64__) && !defined(__aarch64__))
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

#ifdef EMULATOR_THREAD_SANITIZER
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_set_fiber_name(void* fiber, const char* name);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#ifdef EMULATOR_ADDRESS_SANITIZER
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom_old, size_t* size_old);
}
#endif

namespace emulator {

// What a memory fence is to the race detector: everything before one thread's release is before what follows another
// thread's acquire of the same object. A switch between fibers orders nothing.
#ifdef EMULATOR_THREAD_SANITIZER
inline void order_release(void* object) { __tsan_release(object); }
inline void order_acquire(void* object) { __tsan_acquire(object); }
#else
inline void order_release(void*) {}
inline void order_acquire(void*) {}
#endif

#if defined(EMULATOR_THREAD_SANITIZER) || defined(EMULATOR_ADDRESS_SANITIZER)
constexpr bool SANITIZED = true;
constexpr size_t STACK_BYTES = 512 << 10;
#else
constexpr bool SANITIZED = false;
constexpr size_t STACK_BYTES = 128 << 10;
#endif
constexpr size_t GUARD_BYTES = 16 << 10;

struct Context {
#ifdef EMULATOR_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer = nullptr;
#endif
#ifdef EMULATOR_THREAD_SANITIZER
    void* fiber = nullptr;
#endif
#ifdef EMULATOR_ADDRESS_SANITIZER
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    size_t size = 0;
#endif
};

// Keeps the callee-saved registers on the old stack and takes the new ones from the new stack.
#if defined(EMULATOR_UCONTEXT)
#elif defined(__x86_64__)
extern "C" void faops_emulator_switch(void** save, void* load);
asm(R"(
    .text
    .hidden faops_emulator_switch
    .globl faops_emulator_switch
    .type faops_emulator_switch, @function
faops_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size faops_emulator_switch, .-faops_emulator_switch
)");
#elif defined(__aarch64__)
extern "C" void faops_emulator_switch(void** save, void* load);
asm(R"(
    .text
    .hidden faops_emulator_switch
    .globl faops_emulator_switch
    .type faops_emulator_switch, %function
faops_emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size faops_emulator_switch, .-faops_emulator_switch
)");
#endif

// Called first thing on a stack that was switched to.
inline void switched(Context& self) {
#ifdef EMULATOR_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#endif
    (void)self;
}

inline void switch_context(Context& from, Context& to) {
#ifdef EMULATOR_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#ifdef EMULATOR_THREAD_SANITIZER
    constexpr unsigned NO_SYNC = 1;
    __tsan_switch_to_fiber(to.fiber, NO_SYNC);
#endif
#ifdef EMULATOR_UCONTEXT
    swapcontext(&from.context, &to.context);
#else
    faops_emulator_switch(&from.stack_pointer, to.stack_pointer);
#endif
    switched(from);
}

// Makes `context` start in `entry` on the stack that ends at `top` when it is first switched to.
inline void prepare_context(Context& context, u8* bottom, u8* top, void (*entry)()) {
#if defined(EMULATOR_UCONTEXT)
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = bottom;
    context.context.uc_stack.ss_size = top - bottom;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
#elif defined(__x86_64__)
    // Seven pops of the switch, the last being its return to `entry`; the ABI wants rsp + 8 on a multiple of 16 there.
    void** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15)) - 8;
    for (int i = 0; i < 6; ++i) stack[i] = nullptr;
    stack[6] = reinterpret_cast<void*>(entry);
    stack[7] = nullptr;
    context.stack_pointer = stack;
#elif defined(__aarch64__)
    void** stack = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15)) - 20;
    for (int i = 0; i < 20; ++i) stack[i] = nullptr;
    stack[11] = reinterpret_cast<void*>(entry);
    context.stack_pointer = stack;
#endif
#ifdef EMULATOR_ADDRESS_SANITIZER
    context.fake_stack = nullptr;
    context.bottom = bottom;
    context.size = top - bottom;
#endif
    (void)bottom;
}

}  // namespace emulator
