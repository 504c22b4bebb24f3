// Shared memory of one OS thread's blocks: every array ends at a page that is not there.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "emulator.hpp"

namespace emulator {

// What the hardware allows without asking, and the most that any device allows a block that asks.
constexpr size_t static_shared_bytes = 48 * 1024;
constexpr size_t most_shared_bytes = 227 * 1024;

class SharedMemory {
public:
    // Forgets the arrays of the last block and fills the dynamic memory of the next with NaN.
    void start(size_t dynamic_bytes);
    // The array of this block, filled with NaN at its first use.
    void* array(SharedArray& declaration);
    void* dynamic() const { return dynamic_start_; }
    // Whether the bytes are inside one array of this block.
    bool holds(const void* address, size_t bytes) const;
    // Checks what lies around the arrays: a write before an array's start, or in the few bytes before the guard page, shows here.
    void finish();
    // Describes an address in words, for a fault; null where it is not in shared memory.
    const char* describe(const void* address, char* text, size_t text_bytes) const;
    size_t static_bytes_in_use() const { return static_bytes_; }

private:
    struct Array {
        const char* name = nullptr;
        int line = 0;
        char* pages = nullptr;  // the first page of its own; a guard page follows the last one
        size_t page_bytes = 0;
        char* start = nullptr;
        size_t bytes = 0;
        uint64_t block = 0;
    };
    Array place(const char* name, int line, size_t bytes);
    void fill(Array&);
    void check(const Array&) const;

    char* region_ = nullptr;
    size_t region_used_ = 0;
    uint64_t block_ = 0;
    size_t static_bytes_ = 0;
    std::vector<Array> arrays_;
    Array dynamic_;
    char* dynamic_start_ = nullptr;
    size_t dynamic_bytes_ = 0;
};

}  // namespace emulator
