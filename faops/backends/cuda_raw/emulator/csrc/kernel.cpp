// A kernel as the runtime calls it. KERNEL_FILE and KERNEL_ENTRY are given to the compiler.
#include KERNEL_FILE

namespace {

template <typename Params>
constexpr u64 bytes_of(void (*)(Params)) {
    return sizeof(Params);
}
template <typename Params>
inline void call(void (*kernel)(Params), const void* params) {
    kernel(*static_cast<const Params*>(params));
}

}  // namespace

namespace emulator {

extern const u64 params_bytes = bytes_of(KERNEL_ENTRY);
void enter(const void* params) { call(KERNEL_ENTRY, params); }

}  // namespace emulator
