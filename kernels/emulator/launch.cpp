#include "launch.hpp"

#include <string.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>

#include "faults.hpp"
#include "settings.hpp"

namespace emulator {

namespace {

// Filled before main (or dlopen) returns, by one thread; only read after that.
std::unordered_map<std::string, Kernel>& kernels() {
    static auto* const map = new std::unordered_map<std::string, Kernel>;
    return *map;
}
unsigned announced_threads = 0;
Site announced_at{};

// A block per OS thread, kept for its stacks and shared memory.
Block& block_of_this_thread() {
    static thread_local Block* block = nullptr;
    if (!block) block = new Block;
    return *block;
}

// Helpers wait for grids; whoever launches works too. Never freed: helpers live as long as the process.
struct Pool {
    std::mutex mutex;
    std::condition_variable start, done;
    size_t helpers = 0;
    uint64_t grid = 0;  // counts grids; helpers take each once
    const Launch* launch = nullptr;
    uint64_t blocks = 0;
    size_t wanted = 0, busy = 0;
    std::atomic<uint64_t> next{0};
};
Pool& pool() {
    static Pool* const p = new Pool;
    return *p;
}
std::mutex& grid_mutex() {
    static auto* const m = new std::mutex;
    return *m;
}

void work(const Launch& launch, uint64_t blocks, std::atomic<uint64_t>& next) {
    Block& block = block_of_this_thread();
    for (;;) {
        const uint64_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= blocks) return;
        const uint64_t x = launch.grid.x, y = launch.grid.y;
        block.run(launch, {unsigned(i % x), unsigned(i / x % y), unsigned(i / x / y)}, i);
    }
}

void helper() {
    prepare_signal_stack();
    Pool& p = pool();
    uint64_t seen = 0;
    std::unique_lock lock(p.mutex);
    for (;;) {
        p.start.wait(lock, [&] { return p.grid != seen && p.wanted > 0; });
        seen = p.grid;
        p.wanted--;
        p.busy++;
        const Launch& launch = *p.launch;
        const uint64_t blocks = p.blocks;
        lock.unlock();
        work(launch, blocks, p.next);
        lock.lock();
        if (--p.busy == 0) p.done.notify_one();
    }
}

// Ends the process when one kernel runs for longer than the settings allow: loops without barriers pass no other check.
struct Watchdog {
    std::atomic<const Kernel*> kernel{nullptr};
    std::atomic<uint64_t> started{0};
};
Watchdog& watchdog() {
    static Watchdog* const w = [] {
        auto* dog = new Watchdog;
        std::thread([dog] {
            uint64_t seen = 0, seconds = 0;
            for (;;) {
                sleep(1);
                const Kernel* kernel = dog->kernel;
                const uint64_t started = dog->started;
                seconds = kernel && started == seen ? seconds + 1 : 0;
                seen = started;
                if (kernel && seconds > settings().seconds_limit) {
                    fatal("kernel %s has run for %llu s: it does not seem to end (raise seconds= in ESPALIER_EMULATOR if it should)",
                          kernel->name, static_cast<unsigned long long>(seconds));
                }
            }
        }).detach();
        return dog;
    }();
    return *w;
}

}  // namespace

int announce(unsigned max_threads, Site site) {
    if (announced_at.file) fatal("the kernel at %s:%d has no EXPORT(name) after it", announced_at.file, announced_at.line);
    if (max_threads == 0 || max_threads > max_threads_per_block) {
        fatal("the kernel at %s:%d says at most %u threads; 1 to %u are possible", site.file, site.line, max_threads, max_threads_per_block);
    }
    announced_threads = max_threads;
    announced_at = site;
    return 0;
}

int add_kernel(const Kernel& kernel, Site site) {
    if (!announced_at.file) fatal("EXPORT(%s) at %s:%d does not follow a KERNEL", kernel.name, site.file, site.line);
    Kernel named = kernel;
    named.max_threads = announced_threads;
    announced_at = {};
    if (!kernels().emplace(kernel.name, named).second) fatal("there are two kernels called %s, one at %s:%d", kernel.name, site.file, site.line);
    return 0;
}

const Kernel* find_kernel(const char* name) {
    if (announced_at.file) fatal("the kernel at %s:%d has no EXPORT(name) after it", announced_at.file, announced_at.line);
    const auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

void run_grid(const Launch& launch) {
    std::lock_guard one_at_a_time(grid_mutex());
    handle_memory_faults();
    prepare_signal_stack();
    const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    counters().blocks += blocks;
    Watchdog& dog = watchdog();
    dog.started++;
    dog.kernel = launch.kernel;
    const size_t helpers = size_t(std::min(settings().threads, blocks)) - 1;
    std::atomic<uint64_t> alone{0};
    if (helpers == 0) {
        work(launch, blocks, alone);
    } else {
        Pool& p = pool();
        std::unique_lock lock(p.mutex);
        while (p.helpers < helpers) {
            std::thread(helper).detach();
            p.helpers++;
        }
        p.launch = &launch;
        p.blocks = blocks;
        p.next = 0;
        p.wanted = helpers;
        p.grid++;
        lock.unlock();
        p.start.notify_all();
        work(launch, blocks, p.next);
        lock.lock();
        p.wanted = 0;
        p.done.wait(lock, [&] { return p.busy == 0; });
        p.launch = nullptr;
    }
    dog.kernel = nullptr;
}

}  // namespace emulator
