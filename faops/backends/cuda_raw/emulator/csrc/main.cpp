// A kernel with a sanitizer is a program of its own: it reads a launch from one file and writes what came of it to
// another. Both are rows of 8-byte words and byte strings, see process.py.
#include "launch.h"

namespace {

using emulator::Buffer;

struct File {
    FILE* file;
    explicit File(const char* name, const char* how) : file(fopen(name, how)) {}
    ~File() {
        if (file) fclose(file);
    }
    bool read(void* data, u64 bytes) { return fread(data, 1, bytes, file) == bytes; }
    bool write(const void* data, u64 bytes) { return fwrite(data, 1, bytes, file) == bytes; }
    bool write(u64 word) { return write(&word, sizeof word); }
};

// A copy of a tensor, at an address that has the same remainder to ALIGNMENT and with nothing behind its last byte.
struct Copy {
    static constexpr u64 ALIGNMENT = 256;
    std::string name;
    u8* pages = nullptr;
    Buffer buffer{};

    bool read(File& file) {
        u64 header[4];  // original address, bytes, writable, bytes of the name
        if (!file.read(header, sizeof header)) return false;
        name.resize(header[3]);
        const u64 lead = header[0] % ALIGNMENT;
        void* memory = nullptr;
        if (!file.read(&name[0], name.size()) || posix_memalign(&memory, ALIGNMENT, lead + header[1])) return false;
        pages = static_cast<u8*>(memory);
        buffer = {reinterpret_cast<u64>(pages + lead), header[1], header[2], name.c_str()};
        return file.read(data(), buffer.bytes);
    }
    u8* data() const { return reinterpret_cast<u8*>(buffer.address); }
};

int fault(const char* text) {
    fprintf(stderr, "%s\n", text);
    return 3;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return fault("expected the names of two files: the launch and its result");
    File input(arguments[1], "rb");
    u64 header[6];  // grid, threads, shared bytes, buffers, pointers, bytes of the parameters
    if (!input.file || !input.read(header, sizeof header)) return fault("the launch cannot be read");
    std::vector<Copy> copies(header[3]);
    std::vector<Buffer> buffers;
    for (Copy& copy : copies) {
        if (!copy.read(input)) return fault("a buffer cannot be read");
        buffers.push_back(copy.buffer);
    }
    std::vector<u64> pointers(3 * header[4]);  // offset in the parameters, buffer, offset in the buffer
    std::vector<u64> params((header[5] + 7) / 8);
    if (!input.read(pointers.data(), 8 * pointers.size()) || !input.read(params.data(), header[5]))
        return fault("the parameters cannot be read");
    for (size_t i = 0; i < pointers.size(); i += 3) {
        const u64 address = buffers[pointers[i + 1]].address + pointers[i + 2];
        memcpy(reinterpret_cast<u8*>(params.data()) + pointers[i], &address, sizeof address);
    }
    const emulator::Launch launch{params.data(), header[5], static_cast<u32>(header[0]), static_cast<u32>(header[1]),
                                  static_cast<u32>(header[2]), 1, buffers.data(), buffers.size()};
    std::string message;
    const emulator::Failure failure = emulator::run_grid(launch, message, nullptr);
    File output(arguments[2], "wb");
    if (!output.file) return fault("the result cannot be written");
    bool written = output.write(failure) && output.write(message.size()) && output.write(message.data(), message.size());
    for (const Copy& copy : copies) {
        if (copy.buffer.writable) written = written && output.write(copy.data(), copy.buffer.bytes);
        free(copy.pages);
    }
    return written ? 0 : fault("the result cannot be written");
}
