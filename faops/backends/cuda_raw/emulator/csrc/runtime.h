// What the wrappers in ptx.cuh ask of the runtime. The runtime is compiled once per machine and mode, never with a
// sanitizer; the wrappers and the kernel are compiled with it, so every access to memory itself happens in ptx.cuh.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

struct alignas(8) Vec2 {
    u32 x, y;
};
struct alignas(16) Vec4 {
    u32 x, y, z, w;
};

namespace emulator {

// Where in the kernel sources a wrapper is called. `function` is the wrapper.
struct Site {
    const char* function;
    const char* file;
    int line;
};

enum Matrix { M16N8K16_F16, M16N8K16_BF16, M16N8K8_F16, MATRIX_KINDS };

// One asynchronous copy that has to be written to shared memory now.
struct Delivery {
    u8* destination;
    int size;
    alignas(16) u8 data[16];
};

constexpr u32 SHARED_BASE = 1024;  // not 0, so that an address somebody forgot to add the base to is out of bounds

// ---- Given by the kernel's object
extern const u64 params_bytes;
void enter(const void* params);

// ---- Given by the runtime
int thread_index();
u32 block_index();
u32 block_count();
void sync_block(Site site);
void sync_warp(Site site);
void converge(Site site);

// Check an access and say where its bytes are on the host.
u8* shared_read(u32 address, int bytes, Site site);
u8* shared_write(u32 address, int bytes, Site site);
void global_read(const void* address, int bytes, Site site);
void global_write(const void* address, int bytes, Site site);

u8* copy_check(u32 shared, const void* global, int size, int bytes, Site site);
void copy_queue(u32 shared, const u8* data, int size, Site site);
void copy_commit();
bool copy_next(int pending, Delivery& delivery);

u32 exchange(u32 value, int lanes, Site site);
bool any(bool value, Site site);
void ldmatrix(u32 (&result)[4], const Vec4& row, bool transposed, Site site);
void mma(Matrix kind, float (&c)[4], const u32* a, const u32* b, Site site);

[[noreturn]] void unsupported(Site site);
u16 narrow_f16(float value);
u16 narrow_bf16(float value);
float widen_f16(u16 bits);

// What .ftz does to operands and results: a subnormal number becomes a zero of its sign.
inline float flush_subnormal(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

}  // namespace emulator
