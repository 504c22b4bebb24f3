// Kernels by name, and grids of blocks over a few OS threads.
#pragma once

#include "block.hpp"

namespace emulator {

// The kernel that EXPORT registered under a name; null where there is none.
const Kernel* find_kernel(const char* name);
// Runs every block of a grid and returns when they have ended. One grid runs at a time.
void run_grid(const Launch& launch);

}  // namespace emulator
