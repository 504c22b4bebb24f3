#include "shared.hpp"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

#include "block.hpp"
#include "faults.hpp"

namespace emulator {

// NaN in every number format that kernels use, and an index far out of range.
constexpr unsigned char poison = 0xff;
constexpr size_t region_bytes = size_t(64) << 20;
// So many bytes before an array are checked for writes.
constexpr size_t checked_before = 64;

static size_t page_size() {
    static const size_t page = size_t(sysconf(_SC_PAGESIZE));
    return page;
}
static size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

SharedMemory::Array SharedMemory::place(const char* name, int line, size_t bytes) {
    if (!region_) {
        void* memory = mmap(nullptr, region_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fatal("no address space for shared memory (%zu bytes)", region_bytes);
        region_ = static_cast<char*>(memory);
        region_used_ = page_size();
    }
    Array array;
    array.name = name;
    array.line = line;
    array.bytes = bytes;
    array.page_bytes = round_up(bytes + checked_before, page_size());
    if (region_used_ + array.page_bytes + page_size() > region_bytes) {
        fatal("the kernels declare more shared arrays than the emulator has room for (%zu bytes); raise region_bytes in shared.cpp", region_bytes);
    }
    array.pages = region_ + region_used_;
    region_used_ += array.page_bytes + page_size();
    if (mprotect(array.pages, array.page_bytes, PROT_READ | PROT_WRITE) != 0) fatal("no memory for the shared array %s", name);
    array.start = array.pages + array.page_bytes - round_up(bytes, 16);
    return array;
}

void SharedMemory::fill(Array& array) {
    char* from = array.start - checked_before;
    memset(from, poison, size_t(array.pages + array.page_bytes - from));
    array.block = block_;
}

void SharedMemory::start(size_t dynamic_bytes) {
    block_++;
    static_bytes_ = 0;
    if (!dynamic_.pages) dynamic_ = place("dynamic shared memory", 0, most_shared_bytes);
    dynamic_bytes_ = dynamic_bytes;
    dynamic_.start = dynamic_.pages + dynamic_.page_bytes - round_up(dynamic_bytes, 16);
    dynamic_.bytes = dynamic_bytes;
    dynamic_start_ = dynamic_.start;
    fill(dynamic_);
}

void* SharedMemory::array(SharedArray& declaration) {
    static std::atomic<int> next_id{0};
    int id = __atomic_load_n(&declaration.id, __ATOMIC_ACQUIRE);
    if (id < 0) {
        const int fresh = next_id.fetch_add(1);
        // Another OS thread may have numbered it meanwhile: its number stands.
        id = -1;
        if (__atomic_compare_exchange_n(&declaration.id, &id, fresh, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) id = fresh;
    }
    if (arrays_.size() <= size_t(id)) arrays_.resize(size_t(id) + 1);
    Array& array = arrays_[size_t(id)];
    if (array.block == block_) return array.start;
    if (!array.pages) array = place(declaration.name, declaration.line, declaration.bytes);
    fill(array);
    static_bytes_ += round_up(array.bytes, 16);
    if (static_bytes_ > static_shared_bytes) {
        fatal("its static shared arrays take %zu bytes with %s (line %d); at most %zu are allowed: use dynamic shared memory", static_bytes_,
              declaration.name, declaration.line, static_shared_bytes);
    }
    return array.start;
}

bool SharedMemory::holds(const void* address, size_t bytes) const {
    const char* p = static_cast<const char*>(address);
    if (p < region_ || p >= region_ + region_bytes) return false;
    auto inside = [&](const Array& array) { return p >= array.start && p + bytes <= array.start + array.bytes; };
    if (inside(dynamic_)) return true;
    for (const Array& array : arrays_) {
        if (array.pages && array.block == block_ && inside(array)) return true;
    }
    return false;
}

void SharedMemory::check(const Array& array) const {
    const char* end = array.pages + array.page_bytes;
    for (const char* p = array.start - checked_before; p < end; p++) {
        if (p == array.start) p += array.bytes;
        if (p < end && static_cast<unsigned char>(*p) != poison) {
            fatal("it wrote %s of the shared array %s (line %d, %zu bytes), at byte %td", p < array.start ? "before the start" : "past the end",
                  array.name, array.line, array.bytes, p - array.start);
        }
    }
}

void SharedMemory::finish() {
    check(dynamic_);
    for (const Array& array : arrays_) {
        if (array.pages && array.block == block_) check(array);
    }
}

const char* SharedMemory::describe(const void* address, char* text, size_t text_bytes) const {
    const char* p = static_cast<const char*>(address);
    if (!region_ || p < region_ || p >= region_ + region_bytes) return nullptr;
    auto belongs = [&](const Array& array) { return array.pages && p >= array.pages - page_size() / 2 && p < array.pages + array.page_bytes + page_size(); };
    auto say = [&](const Array& array) {
        snprintf(text, text_bytes, "byte %td of the shared array %s (line %d), which has %zu bytes", p - array.start, array.name, array.line,
                 array.bytes);
        return text;
    };
    if (belongs(dynamic_)) return say(dynamic_);
    for (const Array& array : arrays_) {
        if (belongs(array)) return say(array);
    }
    snprintf(text, text_bytes, "shared memory that belongs to no array");
    return text;
}

void* shared_array(SharedArray& declaration) { return running_block->shared.array(declaration); }
void* dynamic_shared() { return running_block->shared.dynamic(); }

}  // namespace emulator
