// Counts of one launch: requests and bank conflicts in shared memory, requests and sectors in device memory, matrix
// instructions. The accesses of a warp's lanes make one request where they are the n-th execution of one call since
// the warp's lanes last met.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <tuple>

#include "machine.h"

namespace emulator {

#ifdef EMULATOR_COUNTERS
constexpr bool COUNTING = true;
#else
constexpr bool COUNTING = false;
#endif

enum Access { SHARED, LOAD, STORE, COPY };

constexpr u32 SECTOR_BYTES = 32;
constexpr u32 BANKS = 32;

struct Request {
    u32 lanes = 0;
    u64 address[WARP];
    int bytes[WARP];
};

struct SiteCounts {
    Site site;
    Access access;
    int bytes;  // of one lane's access
    u64 requests = 0, wavefronts = 0, ideal = 0, sectors = 0, lane_bytes = 0, lane_accesses = 0;
    std::vector<std::vector<Request>> open;     // per warp, the requests since its lanes last met
    std::vector<std::array<u32, WARP>> passes;  // per warp and lane, how often it came here since then
};

using SiteKey = std::tuple<int, const char*, const char*, Access, int>;

struct Counters {
    std::map<SiteKey, SiteCounts> sites;
    u64 matrix[MATRIX_KINDS] = {};
    u64 barriers = 0;
    std::map<std::string, u64> collectives;
    std::string json;
};

inline void log_access(Site site, Access access, u64 address, int bytes, int access_bytes) {
    Machine& m = *machine;
    const Fiber& self = *m.current;
    auto [entry, created] =
        m.counters->sites.try_emplace(SiteKey{site.line, site.function, site.file, access, access_bytes});
    SiteCounts& counts = entry->second;
    if (created) {
        counts.site = site;
        counts.access = access;
        counts.bytes = access_bytes;
        counts.open.resize(m.warp_count);
        counts.passes.resize(m.warp_count);
    }
    const u32 pass = counts.passes[self.warp->index][self.lane]++;
    std::vector<Request>& open = counts.open[self.warp->index];
    if (pass >= open.size()) open.resize(pass + 1);
    open[pass].lanes |= 1u << self.lane;
    open[pass].address[self.lane] = address;
    open[pass].bytes[self.lane] = bytes;
}

inline void count_shared(Site site, u32 address, int bytes) { log_access(site, SHARED, address, bytes, bytes); }
inline void count_global(Site site, u64 address, int bytes, int access_bytes, Access access) {
    log_access(site, access, address, bytes, access_bytes);
}

// 4 bytes a lane and fewer go in one pass of 32 lanes, 8 bytes in two of 16, 16 bytes in four of 8. A pass takes as
// many wavefronts as the busiest bank has different words.
inline void settle_shared(SiteCounts& counts, const Request& request) {
    const int lanes_per_pass = WARP / std::max(1, counts.bytes / 4);
    for (int first = 0; first < WARP; first += lanes_per_pass) {
        std::vector<u32> words[BANKS];
        for (int lane = first; lane < first + lanes_per_pass; ++lane) {
            if (!(request.lanes >> lane & 1)) continue;
            for (int byte = 0; byte < counts.bytes; byte += 4) {
                const u32 word = static_cast<u32>(request.address[lane] + byte) / 4;
                words[word % BANKS].push_back(word);
            }
        }
        size_t busiest = 0;
        for (std::vector<u32>& bank : words) {
            std::sort(bank.begin(), bank.end());
            bank.erase(std::unique(bank.begin(), bank.end()), bank.end());
            busiest = std::max(busiest, bank.size());
        }
        counts.wavefronts += busiest;
        counts.ideal += busiest ? 1 : 0;
    }
}

inline void settle_global(SiteCounts& counts, const Request& request) {
    std::vector<u64> sectors;
    for (int lane = 0; lane < WARP; ++lane) {
        if (!(request.lanes >> lane & 1) || !request.bytes[lane]) continue;
        counts.lane_bytes += request.bytes[lane];
        const u64 last = (request.address[lane] + request.bytes[lane] - 1) / SECTOR_BYTES;
        for (u64 sector = request.address[lane] / SECTOR_BYTES; sector <= last; ++sector) sectors.push_back(sector);
    }
    std::sort(sectors.begin(), sectors.end());
    counts.sectors += std::unique(sectors.begin(), sectors.end()) - sectors.begin();
}

inline void flush_requests(int warp) {
    for (auto& [key, counts] : machine->counters->sites) {
        for (const Request& request : counts.open[warp]) {
            ++counts.requests;
            counts.lane_accesses += __builtin_popcount(request.lanes);
            if (counts.access == SHARED)
                settle_shared(counts, request);
            else
                settle_global(counts, request);
        }
        counts.open[warp].clear();
        counts.passes[warp].fill(0);
    }
}

inline void count_collective(int warp, Site site) {
    ++machine->counters->collectives[site.function];
    flush_requests(warp);
}
inline void count_barrier() { ++machine->counters->barriers; }
inline void count_matrix(Matrix kind) { ++machine->counters->matrix[kind]; }

inline std::string counters_json(const Counters& counters) {
    static const char* const ACCESS[] = {"shared", "load", "store", "copy"};
    static const char* const MATRIX[] = {"m16n8k16_f16", "m16n8k16_bf16", "m16n8k8_f16"};
    std::string text = "{\"sites\": [";
    const char* comma = "";
    for (const auto& [key, counts] : counters.sites) {
        text += comma;
        text += format(R"({"function": "%s", "file": "%s", "line": %d, "access": "%s", "access_bytes": %d, )",
                       counts.site.function, base_name(counts.site.file), counts.site.line, ACCESS[counts.access],
                       counts.bytes);
        text += format(R"("requests": %llu, "lane_accesses": %llu, "wavefronts": %llu, "ideal": %llu, )",
                       counts.requests, counts.lane_accesses, counts.wavefronts, counts.ideal);
        text += format(R"("sectors": %llu, "bytes": %llu})", counts.sectors, counts.lane_bytes);
        comma = ", ";
    }
    text += "], \"matrix\": {";
    comma = "";
    for (int kind = 0; kind < MATRIX_KINDS; ++kind) {
        text += format("%s\"%s\": %llu", comma, MATRIX[kind], counters.matrix[kind]);
        comma = ", ";
    }
    text += "}, \"collectives\": {";
    comma = "";
    for (const auto& [function, count] : counters.collectives) {
        text += format("%s\"%s\": %llu", comma, function.c_str(), count);
        comma = ", ";
    }
    return text + format("}, \"barriers\": %llu}", counters.barriers);
}

}  // namespace emulator
