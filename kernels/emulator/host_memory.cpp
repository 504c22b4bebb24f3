// Host memory that the device may read: pinned allocations and registered ranges.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "memory.hpp"
#include "settings.hpp"

namespace emulator {

bool on_device(uint64_t address, uint64_t bytes);

namespace {

struct HostRange {
    uint64_t bytes;
    bool allocated;
};
struct Host {
    std::mutex mutex;
    std::map<uint64_t, HostRange> ranges;
};
Host& host() {
    static Host* const h = new Host;
    return *h;
}

uint64_t page_of(uint64_t address) { return address / uint64_t(sysconf(_SC_PAGESIZE)); }

// Whether the process has every page of the range, readable, and writable where asked; as /proc/self/maps says.
bool has_pages(uint64_t address, uint64_t bytes, bool writable) {
    FILE* maps = fopen("/proc/self/maps", "r");
    if (!maps) return false;
    char line[4352];
    uint64_t reached = address;
    const uint64_t end = address + bytes;
    while (reached < end && fgets(line, sizeof line, maps)) {
        unsigned long long from = 0, to = 0;
        char access[5] = "";
        if (sscanf(line, "%llx-%llx %4s", &from, &to, access) != 3) continue;
        if (from <= reached && reached < to && access[0] == 'r' && (!writable || access[1] == 'w')) reached = to;
    }
    fclose(maps);
    return reached >= end;
}

}  // namespace

Memory allocate_host(uint64_t bytes, void** address) {
    if (bytes == 0) return Memory::invalid;
    const uint64_t page = uint64_t(sysconf(_SC_PAGESIZE)), page_bytes = (bytes + page - 1) / page * page;
    void* memory = mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return Memory::out_of_memory;
    std::lock_guard lock(host().mutex);
    host().ranges[reinterpret_cast<uint64_t>(memory)] = {page_bytes, true};
    *address = memory;
    return Memory::done;
}

Memory release_host(void* address) {
    std::lock_guard lock(host().mutex);
    const auto it = host().ranges.find(reinterpret_cast<uint64_t>(address));
    if (it == host().ranges.end() || !it->second.allocated) return Memory::invalid;
    munmap(address, it->second.bytes);
    host().ranges.erase(it);
    return Memory::done;
}

// Pages are pinned whole, so two registrations may not share one.
Memory register_host(void* address, uint64_t bytes, bool read_only) {
    const uint64_t start = reinterpret_cast<uint64_t>(address);
    if (bytes == 0 || start + bytes < start || is_device_address(address) || !has_pages(start, bytes, !read_only)) return Memory::invalid;
    std::lock_guard lock(host().mutex);
    auto& ranges = host().ranges;
    auto next = ranges.lower_bound(start);
    if (next != ranges.end() && page_of(next->first) <= page_of(start + bytes - 1)) return Memory::already_registered;
    if (next != ranges.begin()) {
        --next;
        if (page_of(next->first + next->second.bytes - 1) >= page_of(start)) return Memory::already_registered;
    }
    ranges[start] = {bytes, false};
    counters().registrations++;
    counters().bytes_registered += bytes;
    return Memory::done;
}

Memory unregister_host(void* address) {
    std::lock_guard lock(host().mutex);
    const auto it = host().ranges.find(reinterpret_cast<uint64_t>(address));
    if (it == host().ranges.end() || it->second.allocated) return Memory::not_registered;
    counters().bytes_registered -= it->second.bytes;
    host().ranges.erase(it);
    return Memory::done;
}

Place place_of(uint64_t address, uint64_t bytes) {
    if (is_device_address(reinterpret_cast<void*>(address))) return on_device(address, bytes) ? Place::device : Place::nowhere;
    std::lock_guard lock(host().mutex);
    auto next = host().ranges.upper_bound(address);
    if (next != host().ranges.begin()) {
        --next;
        if (bytes <= next->second.bytes && address - next->first <= next->second.bytes - bytes) return Place::pinned_host;
    }
    return Place::host;
}

}  // namespace emulator
