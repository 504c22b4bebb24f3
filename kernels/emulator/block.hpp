// One block of threads, run by fibres on one OS thread.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "emulator.hpp"
#include "fibres.hpp"
#include "shared.hpp"

namespace emulator {

constexpr unsigned max_threads_per_block = 1024;
constexpr unsigned lanes_per_warp = 32;

// A kernel and how it was launched; `arguments` points to each argument's value.
struct Launch {
    const Kernel* kernel;
    Index grid, block;
    size_t dynamic_shared_bytes;
    void* const* arguments;
};

// 16 bytes on their way.
struct Copy {
    void* to;
    const void* from;
    bool valid;
};

// What a fibre waits for.
enum class Wait : uint8_t { nothing, block_barrier, warp_operation, for_ever };

// A thread of the block: a fibre.
struct Fibre : Thread {
    Context context;
    Wait wait;
    unsigned index;
    // Copies that were started, in order, and the number of them at the end of each closed group.
    std::vector<Copy> copies;
    std::vector<size_t> groups;
};

enum class Operation : uint8_t { barrier, ballot, shuffle, load_matrices, multiply_f16, multiply_bf16, multiply_tf32 };
const char* operation_name(Operation);

// What a lane brings to a warp operation: a value, or where its registers are.
struct Offer {
    uint64_t bits;
    void* out;
    const void *first, *second;
};

struct Warp {
    uint32_t lanes;    // that exist
    uint32_t ready;    // that may go on
    uint32_t arrived;  // at the operation under way
    Operation operation;
    Site site;
    // A lane may start the next operation while others still read the results of this one: they take turns.
    unsigned turn;
    Offer offers[2][lanes_per_warp];
};

class Block {
public:
    // Runs one block from start to end on the calling OS thread.
    void run(const Launch& launch, Index index, uint64_t number);

    Fibre& fibre() { return fibres_[running_]; }
    void at_barrier(Site site);
    // Waits until all lanes of the calling warp are at the operation with their offers; returns them. The last to arrive calls `complete`.
    const Offer* at_operation(Operation, uint32_t mask, Site, const Offer&, void (*complete)(Operation, Offer*, uint32_t lanes));
    void leave();

    const Launch* launch() const { return launch_; }
    Index index() const { return index_; }
    Index thread_at(const void* stack_address) const;
    bool on_stack(const void* address) const { return stacks_.owner(address) >= 0; }
    bool is_running() const { return launch_ != nullptr; }
    SharedMemory shared;

private:
    void wait(Wait);
    unsigned next();
    void step(Site);
    [[noreturn]] void diverged();

    const Launch* launch_ = nullptr;
    Index index_{};
    uint64_t steps_ = 0;
    unsigned threads_ = 0, warps_ = 0, left_ = 0, running_ = 0;
    bool descending_ = false;
    unsigned at_barrier_ = 0;
    Site barrier_site_{};
    uint32_t ready_warps_ = 0;
    Context outside_ = nullptr;
    Stacks stacks_;
    std::vector<Fibre> fibres_;
    Warp warp_[lanes_per_warp];
};

// The block that runs on this OS thread; null outside kernels.
extern thread_local Block* running_block __attribute__((tls_model("initial-exec")));

}  // namespace emulator
