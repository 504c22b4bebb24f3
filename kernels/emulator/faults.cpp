#include "faults.hpp"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>

#include "block.hpp"
#include "memory.hpp"

namespace emulator {

// "kernel softmax, block (0, 3, 0), thread (17, 0, 0): " where a kernel runs on this OS thread, else nothing.
static int where(char* text, size_t bytes, const void* stack_address) {
    const Block* block = running_block;
    if (!block || !block->is_running()) {
        text[0] = 0;
        return 0;
    }
    const Index b = block->index(), t = block->thread_at(stack_address);
    return snprintf(text, bytes, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", block->launch()->kernel->name, b.x, b.y, b.z, t.x, t.y,
                    t.z);
}

static void say(const char* text) {
    const size_t bytes = strlen(text);
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = write(STDERR_FILENO, text + done, bytes - done);
        if (n <= 0) return;
        done += size_t(n);
    }
}

void fatal(const char* format, ...) {
    char text[4096];
    int used = snprintf(text, sizeof text, "espalier emulator: ");
    used += where(text + used, sizeof text - size_t(used), __builtin_frame_address(0));
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, sizeof text - size_t(used) - 1, format, arguments);
    va_end(arguments);
    strcat(text, "\n");
    say(text);
    abort();
}

static struct sigaction handler_before[2];

static void describe(const void* address, const Block* block, char* text, size_t bytes) {
    if (block && block->shared.describe(address, text, bytes)) return;
    if (describe_device_address(address, text, bytes)) return;
    if (block && block->on_stack(address)) {
        snprintf(text, bytes, "below the stack of a thread, which has %zu bytes", Stacks::bytes);
        return;
    }
    snprintf(text, bytes, "memory of the host, or none");
}

static void on_fault(int signal, siginfo_t* info, void* context) {
    const Block* block = running_block;
    const bool in_kernel = block && block->is_running();
    if (in_kernel || is_device_address(info->si_addr)) {
        static char text[1024], what[512];  // not on the stack for signals, which may be small
        int used = snprintf(text, sizeof text, "espalier emulator: ");
        used += where(text + used, sizeof text - size_t(used), __builtin_frame_address(0));
        describe(info->si_addr, block, what, sizeof what);
        snprintf(text + used, sizeof text - size_t(used), "%s address %p, which is %s\n",
                 in_kernel ? "touched the" : "the host touched the", info->si_addr, what);
        say(text);
        struct sigaction standard {};
        standard.sa_handler = SIG_DFL;
        sigaction(signal, &standard, nullptr);
        return;  // the instruction faults again, now for good
    }
    const struct sigaction& before = handler_before[signal == SIGBUS];
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(signal);
    } else {
        sigaction(signal, &before, nullptr);
    }
}

void handle_memory_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        sigaction(SIGSEGV, &action, &handler_before[0]);
        sigaction(SIGBUS, &action, &handler_before[1]);
    });
}

void prepare_signal_stack() {
    static thread_local bool prepared = false;
    if (prepared) return;
    prepared = true;
    stack_t now{};
    if (sigaltstack(nullptr, &now) == 0 && !(now.ss_flags & SS_DISABLE)) return;
    const size_t bytes = 64 * 1024;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return;
    stack_t stack{};
    stack.ss_sp = memory;
    stack.ss_size = bytes;
    sigaltstack(&stack, nullptr);
}

}  // namespace emulator
