#include "memory.hpp"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "faults.hpp"
#include "settings.hpp"

namespace emulator {

namespace {

// NaN in every number format that kernels use.
constexpr int poison = 0xff;
constexpr uint64_t line_bytes = 256;

enum class Kind { allocation, reservation };
struct Range {
    Kind kind;
    uint64_t bytes;       // as asked for
    uint64_t pages;       // where its pages start
    uint64_t page_bytes;  // of all of them, without the guard page
};
struct Mapping {
    uint64_t bytes, handle;
    int protection;
};
struct Physical {
    uint64_t bytes, offset;
    uint64_t mappings;
    bool released;
};
struct Freed {
    uint64_t address, bytes;
};

// All of the device's memory. Never freed: the process may end while others still use it.
struct Device {
    std::recursive_mutex mutex;
    uint64_t base = 0, reserved_bytes = 0, next = 0;
    int file = -1;
    uint64_t file_used = 0;
    std::map<uint64_t, Range> ranges;
    std::map<uint64_t, Mapping> mappings;
    std::map<uint64_t, Physical> physical;
    uint64_t next_handle = 1;
    uint64_t used = 0;
    Freed freed[256] = {};
    size_t freed_count = 0;
    unsigned open = 0;
};
Device& device() {
    static Device* const d = new Device;
    return *d;
}

uint64_t page_size() {
    static const uint64_t page = uint64_t(sysconf(_SC_PAGESIZE));
    return page;
}
uint64_t round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }
void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

// Of the first address: the largest granularity that the settings allow.
constexpr uint64_t start_alignment = uint64_t(2) << 20;

void reserve_addresses(Device& d) {
    if (d.base != 0) return;
    for (uint64_t bytes = uint64_t(1) << 40; bytes >= uint64_t(4) << 30; bytes /= 4) {
        void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) continue;
        d.base = round_up(reinterpret_cast<uint64_t>(memory), start_alignment);
        d.reserved_bytes = bytes - start_alignment;
        d.next = d.base + start_alignment;
        handle_memory_faults();
        return;
    }
    fatal("no address space for device memory (4 GiB); raise the limit of address space (ulimit -v)");
}

// Free addresses for `bytes` and a guard page on either side; 0 where there are none. Goes round, so that freed addresses rest for long.
uint64_t find_addresses(Device& d, uint64_t bytes, uint64_t alignment) {
    const uint64_t end = d.base + d.reserved_bytes;
    if (bytes > d.reserved_bytes) return 0;
    for (int round = 0; round < 2; round++) {
        uint64_t at = round_up(round == 0 ? d.next : d.base + start_alignment, alignment);
        for (auto it = d.ranges.begin(); at + bytes + page_size() <= end;) {
            while (it != d.ranges.end() && it->second.pages + it->second.page_bytes + page_size() <= at) ++it;
            if (it == d.ranges.end() || at + bytes + page_size() <= it->second.pages) {
                d.next = at + bytes + page_size();
                return at;
            }
            at = round_up(it->second.pages + it->second.page_bytes + page_size(), alignment);
        }
    }
    return 0;
}

void hide(uint64_t pages, uint64_t bytes) {
    if (mmap(pointer(pages), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) {
        fatal("device memory could not be unmapped: %s", strerror(errno));
    }
}

void remember_freed(Device& d, uint64_t address, uint64_t bytes) { d.freed[d.freed_count++ % 256] = {address, bytes}; }

bool closed(const Device& d) { return settings().protect != 0 && d.open == 0; }

int file_of(Device& d) {
    if (d.file < 0) {
        d.file = memfd_create("espalier-emulator", MFD_CLOEXEC);
        if (d.file < 0) fatal("no file for physical device memory: %s", strerror(errno));
    }
    return d.file;
}

void used(Device& d, int64_t more) {
    d.used += uint64_t(more);
    if (settings().tell) fprintf(stderr, "espalier emulator: %llu bytes of device memory\n", (unsigned long long)d.used);
}

void drop_physical(Device& d, std::map<uint64_t, Physical>::iterator it) {
    if (!it->second.released || it->second.mappings > 0) return;
    fallocate(file_of(d), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(it->second.offset), off_t(it->second.bytes));
    used(d, -int64_t(it->second.bytes));
    counters().bytes_created -= it->second.bytes;
    d.physical.erase(it);
}

bool must_fail() {
    const uint64_t n = ++counters().allocations;
    if (settings().fail_alloc != 0 && n == settings().fail_alloc) {
        counters().refused_allocations++;
        return true;
    }
    return false;
}

bool fits(const Device& d, uint64_t bytes) {
    if (bytes <= settings().memory_bytes && d.used <= settings().memory_bytes - bytes) return true;
    counters().refused_allocations++;
    return false;
}

}  // namespace

Memory allocate(uint64_t bytes, uint64_t* address) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    if (bytes == 0) return Memory::invalid;
    reserve_addresses(d);
    if (must_fail() || bytes > d.reserved_bytes) return Memory::out_of_memory;
    const uint64_t lines = round_up(bytes, line_bytes), page_bytes = round_up(lines, page_size());
    if (!fits(d, lines)) return Memory::out_of_memory;
    const uint64_t pages = find_addresses(d, page_bytes, page_size());
    if (pages == 0) return Memory::out_of_memory;
    void* memory = mmap(pointer(pages), page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (memory == MAP_FAILED) return Memory::out_of_memory;
    memset(memory, poison, page_bytes);
    if (closed(d)) mprotect(memory, page_bytes, PROT_NONE);
    *address = pages + page_bytes - lines;
    d.ranges[*address] = {Kind::allocation, bytes, pages, page_bytes};
    used(d, int64_t(lines));
    counters().bytes_allocated += lines;
    return Memory::done;
}

Memory release(uint64_t address) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    const auto it = d.ranges.find(address);
    if (it == d.ranges.end() || it->second.kind != Kind::allocation) return Memory::invalid;
    const uint64_t lines = round_up(it->second.bytes, line_bytes);
    hide(it->second.pages, it->second.page_bytes);
    remember_freed(d, address, it->second.bytes);
    used(d, -int64_t(lines));
    counters().bytes_allocated -= lines;
    counters().frees++;
    d.ranges.erase(it);
    return Memory::done;
}

Memory reserve_range(uint64_t bytes, uint64_t alignment, uint64_t* address) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    if (bytes == 0 || bytes % settings().granularity_bytes != 0 || (alignment & (alignment - 1)) != 0) return Memory::invalid;
    reserve_addresses(d);
    const uint64_t at = find_addresses(d, bytes, std::max(alignment, settings().granularity_bytes));
    if (at == 0) return Memory::out_of_memory;
    d.ranges[at] = {Kind::reservation, bytes, at, bytes};
    *address = at;
    return Memory::done;
}

Memory free_range(uint64_t address, uint64_t bytes) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    const auto it = d.ranges.find(address);
    if (it == d.ranges.end() || it->second.kind != Kind::reservation || it->second.bytes != bytes) return Memory::invalid;
    const auto mapped = d.mappings.lower_bound(address);
    if (mapped != d.mappings.end() && mapped->first < address + bytes) return Memory::invalid;
    remember_freed(d, address, bytes);
    d.ranges.erase(it);
    return Memory::done;
}

Memory create_physical(uint64_t bytes, uint64_t* handle) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    if (bytes == 0 || bytes % settings().granularity_bytes != 0) return Memory::invalid;
    if (must_fail() || !fits(d, bytes)) return Memory::out_of_memory;
    const int file = file_of(d);
    const uint64_t offset = d.file_used;
    if (ftruncate(file, off_t(offset + bytes)) != 0) return Memory::out_of_memory;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, off_t(offset));
    if (memory == MAP_FAILED) return Memory::out_of_memory;
    memset(memory, poison, bytes);
    munmap(memory, bytes);
    d.file_used += bytes;
    *handle = d.next_handle++;
    d.physical[*handle] = {bytes, offset, 0, false};
    used(d, int64_t(bytes));
    counters().bytes_created += bytes;
    return Memory::done;
}

Memory release_physical(uint64_t handle) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    const auto it = d.physical.find(handle);
    if (it == d.physical.end() || it->second.released) return Memory::invalid;
    it->second.released = true;
    drop_physical(d, it);
    counters().frees++;
    return Memory::done;
}

// The driver maps a handle whole, from its start.
Memory map_physical(uint64_t address, uint64_t bytes, uint64_t offset, uint64_t handle) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    const auto physical = d.physical.find(handle);
    if (physical == d.physical.end() || physical->second.released || offset != 0 || bytes != physical->second.bytes) return Memory::invalid;
    if (address % settings().granularity_bytes != 0) return Memory::invalid;
    auto range = d.ranges.upper_bound(address);
    if (range == d.ranges.begin()) return Memory::invalid;
    --range;
    if (range->second.kind != Kind::reservation || address + bytes > range->first + range->second.bytes) return Memory::invalid;
    const auto after = d.mappings.lower_bound(address);
    if (after != d.mappings.end() && after->first < address + bytes) return Memory::already_mapped;
    if (after != d.mappings.begin()) {
        const auto before = std::prev(after);
        if (before->first + before->second.bytes > address) return Memory::already_mapped;
    }
    void* memory = mmap(pointer(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, file_of(d), off_t(physical->second.offset));
    if (memory == MAP_FAILED) return Memory::out_of_memory;
    d.mappings[address] = {bytes, handle, PROT_NONE};
    physical->second.mappings++;
    counters().mappings++;
    counters().bytes_mapped += bytes;
    return Memory::done;
}

// Only whole mappings can be taken away.
Memory unmap_physical(uint64_t address, uint64_t bytes) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    const auto first = d.mappings.find(address);
    if (first == d.mappings.end() || bytes == 0) return Memory::invalid;
    uint64_t end = address;
    auto last = first;
    while (last != d.mappings.end() && last->first == end && end < address + bytes) {
        end += last->second.bytes;
        ++last;
    }
    if (end != address + bytes) return Memory::invalid;
    hide(address, bytes);
    remember_freed(d, address, bytes);
    counters().bytes_mapped -= bytes;
    for (auto it = first; it != last; ++it) {
        const auto physical = d.physical.find(it->second.handle);
        physical->second.mappings--;
        drop_physical(d, physical);
    }
    d.mappings.erase(first, last);
    return Memory::done;
}

Memory set_access(uint64_t address, uint64_t bytes, bool read, bool write) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    const int protection = write ? PROT_READ | PROT_WRITE : read ? PROT_READ : PROT_NONE;
    uint64_t end = address;
    const auto first = d.mappings.find(address);
    auto last = first;
    while (last != d.mappings.end() && last->first == end && end < address + bytes) {
        end += last->second.bytes;
        ++last;
    }
    if (bytes == 0 || end != address + bytes) return Memory::invalid;
    for (auto it = first; it != last; ++it) it->second.protection = protection;
    if (!closed(d) && mprotect(pointer(address), bytes, protection) != 0) return Memory::invalid;
    return Memory::done;
}

bool is_device_address(const void* address) {
    const Device& d = device();
    const uint64_t a = reinterpret_cast<uint64_t>(address);
    return d.base != 0 && a >= d.base && a < d.base + d.reserved_bytes;
}

bool on_device(uint64_t address, uint64_t bytes) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    auto range = d.ranges.upper_bound(address);
    if (range == d.ranges.begin()) return false;
    --range;
    if (bytes > range->second.bytes || address - range->first > range->second.bytes - bytes) return false;
    if (range->second.kind == Kind::allocation) return true;
    auto mapping = d.mappings.upper_bound(address);
    if (mapping == d.mappings.begin()) return false;
    --mapping;
    uint64_t end = mapping->first;
    while (mapping != d.mappings.end() && mapping->first == end && mapping->second.protection != PROT_NONE) {
        end += mapping->second.bytes;
        if (address < end && address + bytes <= end) return true;
        ++mapping;
    }
    return false;
}

bool range_of(uint64_t address, uint64_t* start, uint64_t* bytes) {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    auto range = d.ranges.upper_bound(address);
    if (range == d.ranges.begin()) return false;
    --range;
    if (address - range->first >= range->second.bytes) return false;
    *start = range->first;
    *bytes = range->second.bytes;
    return true;
}

bool describe_device_address(const void* address, char* text, size_t text_bytes) {
    if (!is_device_address(address)) return false;
    const Device& d = device();
    const uint64_t a = reinterpret_cast<uint64_t>(address);
    for (const auto& [start, range] : d.ranges) {
        if (a < range.pages || a >= range.pages + range.page_bytes + page_size()) continue;
        const char* kind = range.kind == Kind::allocation ? "allocation" : "reserved address range";
        const char* state = range.kind == Kind::reservation && a < start + range.bytes ? ": nothing accessible is mapped there" : "";
        snprintf(text, text_bytes, "byte %lld of a device %s of %llu bytes%s", static_cast<long long>(a - start), kind,
                 static_cast<unsigned long long>(range.bytes), state);
        return true;
    }
    for (size_t i = d.freed_count; i > 0 && i + 256 > d.freed_count; i--) {
        const Freed& freed = d.freed[(i - 1) % 256];
        if (a < freed.address || a >= freed.address + freed.bytes) continue;
        snprintf(text, text_bytes, "byte %llu of %llu bytes of device memory that were freed",
                 static_cast<unsigned long long>(a - freed.address), static_cast<unsigned long long>(freed.bytes));
        return true;
    }
    snprintf(text, text_bytes, "device memory that is not allocated");
    return true;
}

uint64_t device_bytes_used() {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    return d.used;
}

void release_everything() {
    Device& d = device();
    std::lock_guard lock(d.mutex);
    for (const auto& [start, range] : d.ranges) hide(range.pages, range.page_bytes);
    d.ranges.clear();
    d.mappings.clear();
    for (const auto& [handle, physical] : d.physical) {
        fallocate(file_of(d), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(physical.offset), off_t(physical.bytes));
    }
    d.physical.clear();
    d.used = 0;
    counters().bytes_allocated = counters().bytes_mapped = counters().bytes_created = 0;
}

static void protect_everything(Device& d, bool open) {
    for (const auto& [start, range] : d.ranges) {
        if (range.kind == Kind::allocation) mprotect(pointer(range.pages), range.page_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
    for (const auto& [start, mapping] : d.mappings) mprotect(pointer(start), mapping.bytes, open ? mapping.protection : PROT_NONE);
}

Access::Access() {
    if (settings().protect == 0) return;
    Device& d = device();
    std::lock_guard lock(d.mutex);
    if (d.open++ == 0) protect_everything(d, true);
}

Access::~Access() {
    if (settings().protect == 0) return;
    Device& d = device();
    std::lock_guard lock(d.mutex);
    if (--d.open == 0) protect_everything(d, false);
}

}  // namespace emulator
