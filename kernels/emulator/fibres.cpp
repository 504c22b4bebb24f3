#include "fibres.hpp"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "faults.hpp"

#if defined(__x86_64__)
// The System V ABI keeps rbx, rbp and r12 to r15 over a call; the return address is on the stack already. A fresh fibre's stack holds
// zeros for them and the address of its function.
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
.size emulator_switch, .-emulator_switch
)");
#elif defined(__aarch64__)
// AAPCS64 keeps x19 to x29, the link register (x30) and the low halves of v8 to v15 over a call.
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
#else
#include <ucontext.h>
// Elsewhere the C library's contexts do it, with a system call (for the signal mask) at every switch. A Context is then a ucontext_t on
// the stack of whoever switched away, or at the top of a fresh fibre's stack.
extern "C" void emulator_switch(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}
#endif

namespace emulator {

static size_t guard_bytes() {
    static const size_t page = size_t(sysconf(_SC_PAGESIZE));
    return page;
}

void Stacks::reserve(size_t count) {
    if (count <= count_) return;
    const size_t stride = bytes + guard_bytes();
    if (base_) munmap(base_, count_ * stride + guard_bytes());
    void* memory = mmap(nullptr, count * stride + guard_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fatal("no address space for the stacks of %zu threads of a block; lower the limit of another program", count);
    base_ = static_cast<char*>(memory);
    count_ = count;
    for (size_t i = 0; i < count; i++) {
        if (mprotect(base_ + guard_bytes() + i * stride, bytes, PROT_READ | PROT_WRITE) != 0) {
            fatal("no memory for the stack of thread %zu of a block; raise vm.max_map_count", i);
        }
    }
}

Context Stacks::prepare(size_t index, void (*start)()) {
    char* bottom = base_ + guard_bytes() + index * (bytes + guard_bytes());
    char* top = bottom + bytes;
#if defined(__x86_64__)
    // At a function's first instruction the stack pointer is 8 more than a multiple of 16.
    uintptr_t* frame = reinterpret_cast<uintptr_t*>(top) - 8;
    for (int i = 0; i < 6; i++) frame[i] = 0;
    frame[6] = reinterpret_cast<uintptr_t>(start);
    frame[7] = 0;
    return frame;
#elif defined(__aarch64__)
    uintptr_t* frame = reinterpret_cast<uintptr_t*>(top) - 20;
    for (int i = 0; i < 20; i++) frame[i] = 0;
    frame[11] = reinterpret_cast<uintptr_t>(start);
    return frame;
#else
    ucontext_t* context = reinterpret_cast<ucontext_t*>(top - sizeof(ucontext_t) - 64);
    getcontext(context);
    context->uc_stack.ss_sp = bottom;
    context->uc_stack.ss_size = bytes - sizeof(ucontext_t) - 64;
    context->uc_link = nullptr;
    makecontext(context, start, 0);
    return context;
#endif
}

long Stacks::owner(const void* address) const {
    const char* p = static_cast<const char*>(address);
    const size_t stride = bytes + guard_bytes();
    if (!base_ || p < base_ || p >= base_ + count_ * stride) return -1;
    return long(size_t(p - base_) / stride);
}

}  // namespace emulator
