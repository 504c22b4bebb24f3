// Fibres: functions that run on stacks of their own and hand the processor to each other by name.
#pragma once

#include <stddef.h>

namespace emulator {

// Where a fibre (or the OS thread that started the fibres) goes on: its stack pointer, with the saved registers below it.
using Context = void*;

// Saves where the caller is in `from` and goes on at `to`. Returns when someone switches to `from`.
extern "C" void emulator_switch(Context* from, Context to);

// Stacks of equal size, each between guard pages; kept and used again.
class Stacks {
public:
    static constexpr size_t bytes = 128 * 1024;

    // Makes sure that there are `count` stacks.
    void reserve(size_t count);
    // Lays out stack `index` such that the first switch to the context calls `start` on it. `start` never returns.
    Context prepare(size_t index, void (*start)());
    // The fibre whose stack (or the guard page below it) holds the address, or -1.
    long owner(const void* address) const;

private:
    char* base_ = nullptr;
    size_t count_ = 0;
};

}  // namespace emulator
