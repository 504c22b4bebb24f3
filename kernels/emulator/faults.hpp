// How the emulator ends the process: with a sentence that names the kernel and the block, for mistakes that real hardware would let pass.
#pragma once

#include <stddef.h>

namespace emulator {

// Writes one sentence to standard error, preceded by the kernel and block that run on this OS thread, and aborts.
[[noreturn]] void fatal(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Installs the handler of memory faults once. It names kernel, block and thread, and what the address is, then the process dies of the
// signal as it would have. Faults outside kernels and outside device memory go to whoever handled them before.
void handle_memory_faults();
// Gives the calling OS thread a stack for that handler where it has none: fibres have their own, and one may be full.
void prepare_signal_stack();

}  // namespace emulator
