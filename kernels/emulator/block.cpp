#include "block.hpp"

#include <stdio.h>
#include <string.h>

#include <string>

#include "faults.hpp"
#include "settings.hpp"

namespace emulator {

thread_local Thread* current = nullptr;
thread_local Block* running_block = nullptr;

const char* operation_name(Operation operation) {
    switch (operation) {
        case Operation::barrier: return "__syncwarp";
        case Operation::ballot: return "a ballot";
        case Operation::shuffle: return "a shuffle";
        case Operation::load_matrices: return "ldmatrix";
        case Operation::multiply_f16: return "mma_f16";
        case Operation::multiply_bf16: return "mma_bf16";
        case Operation::multiply_tf32: return "mma_tf32";
    }
    return "an unknown operation";
}

static void enter_fibre() {
    Block* block = running_block;
    const Launch* launch = block->launch();
    launch->kernel->call(launch->arguments);
    block->leave();
    __builtin_unreachable();
}

void Block::run(const Launch& launch, Index index, uint64_t number) {
    launch_ = &launch;
    index_ = index;
    steps_ = 0;
    threads_ = launch.block.x * launch.block.y * launch.block.z;
    warps_ = (threads_ + lanes_per_warp - 1) / lanes_per_warp;
    left_ = at_barrier_ = 0;
    // Odd blocks run their threads from the last to the first, so that a missing barrier shows whichever way it points.
    descending_ = number % 2 == 1;
    stacks_.reserve(threads_);
    if (fibres_.size() < threads_) fibres_.resize(threads_);
    shared.start(launch.dynamic_shared_bytes);
    for (unsigned i = 0; i < threads_; i++) {
        Fibre& fibre = fibres_[i];
        fibre.thread = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
        fibre.block = index;
        fibre.block_size = launch.block;
        fibre.grid_size = launch.grid;
        fibre.lane = i % lanes_per_warp;
        fibre.index = i;
        fibre.wait = Wait::nothing;
        fibre.copies.clear();
        fibre.groups.clear();
        fibre.context = stacks_.prepare(i, enter_fibre);
    }
    ready_warps_ = 0;
    for (unsigned w = 0; w < warps_; w++) {
        const unsigned lanes = std::min(lanes_per_warp, threads_ - w * lanes_per_warp);
        Warp& warp = warp_[w];
        warp.lanes = warp.ready = lanes == lanes_per_warp ? 0xffffffffu : (1u << lanes) - 1;
        warp.arrived = warp.turn = 0;
        ready_warps_ |= 1u << w;
    }
    running_block = this;
    running_ = next();
    current = &fibres_[running_];
    emulator_switch(&outside_, fibres_[running_].context);
    shared.finish();
    running_block = nullptr;
    current = nullptr;
    launch_ = nullptr;
}

// Takes the next thread that may go on: of the running warp first, since its lanes wait for each other most often.
unsigned Block::next() {
    auto take = [&](unsigned w) {
        Warp& warp = warp_[w];
        const unsigned lane = descending_ ? 31 - unsigned(__builtin_clz(warp.ready)) : unsigned(__builtin_ctz(warp.ready));
        warp.ready &= ~(1u << lane);
        if (warp.ready == 0) ready_warps_ &= ~(1u << w);
        return w * lanes_per_warp + lane;
    };
    const unsigned w = running_ / lanes_per_warp;
    if (w < warps_ && warp_[w].ready != 0) return take(w);
    if (ready_warps_ == 0) diverged();
    return take(descending_ ? 31 - unsigned(__builtin_clz(ready_warps_)) : unsigned(__builtin_ctz(ready_warps_)));
}

void Block::wait(Wait what) {
    const unsigned from = running_;
    fibres_[from].wait = what;
    const unsigned to = next();
    running_ = to;
    current = &fibres_[to];
    emulator_switch(&fibres_[from].context, fibres_[to].context);
}

void Block::step(Site site) {
    if (++steps_ > settings().step_limit) {
        fatal("a block went through %llu barriers and warp operations, the last at %s:%d: it does not seem to end (raise steps= in "
              "ESPALIER_EMULATOR if it should)",
              static_cast<unsigned long long>(settings().step_limit), site.file, site.line);
    }
}

void Block::leave() {
    fibres_[running_].wait = Wait::for_ever;
    if (++left_ == threads_) {
        Context gone;
        emulator_switch(&gone, outside_);
    }
    wait(Wait::for_ever);
}

static bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0); }

void Block::at_barrier(Site site) {
    if (at_barrier_ == 0) {
        barrier_site_ = site;
    } else if (!same(site, barrier_site_)) {
        const Index t = fibres_[running_].thread;
        fatal("barrier divergence: %u threads wait at __syncthreads of %s:%d while thread (%u, %u, %u) is at the one of %s:%d", at_barrier_,
              barrier_site_.file, barrier_site_.line, t.x, t.y, t.z, site.file, site.line);
    }
    if (++at_barrier_ < threads_) return wait(Wait::block_barrier);
    step(site);
    at_barrier_ = 0;
    for (unsigned w = 0; w < warps_; w++) {
        warp_[w].ready = warp_[w].lanes;
        ready_warps_ |= 1u << w;
    }
    // The last to arrive goes on at once.
    Warp& mine = warp_[running_ / lanes_per_warp];
    mine.ready &= ~(1u << running_ % lanes_per_warp);
    if (mine.ready == 0) ready_warps_ &= ~(1u << running_ / lanes_per_warp);
}

const Offer* Block::at_operation(Operation operation, uint32_t mask, Site site, const Offer& offer,
                                 void (*complete)(Operation, Offer*, uint32_t lanes)) {
    const unsigned w = running_ / lanes_per_warp, lane = running_ % lanes_per_warp;
    Warp& warp = warp_[w];
    if ((mask & warp.lanes) != warp.lanes) {
        fatal("%s at %s:%d has the mask %08x, but the warp's threads are %08x; only whole warps are supported", operation_name(operation),
              site.file, site.line, mask, warp.lanes);
    }
    if (warp.arrived == 0) {
        warp.operation = operation;
        warp.site = site;
    } else if (warp.operation != operation || !same(warp.site, site)) {
        fatal("warp divergence: of warp %u, the lanes %08x are at %s of %s:%d while lane %u is at %s of %s:%d", w, warp.arrived,
              operation_name(warp.operation), warp.site.file, warp.site.line, lane, operation_name(operation), site.file, site.line);
    }
    Offer* offers = warp.offers[warp.turn];
    offers[lane] = offer;
    warp.arrived |= 1u << lane;
    if (warp.arrived != warp.lanes) {
        wait(Wait::warp_operation);
        return offers;
    }
    step(site);
    if (complete) complete(operation, offers, warp.lanes);
    warp.arrived = 0;
    warp.turn ^= 1;
    warp.ready = warp.lanes & ~(1u << lane);
    if (warp.ready != 0) ready_warps_ |= 1u << w;
    return offers;
}

// "0-31, 40": the threads of a list of flags.
static std::string ranges(const std::vector<bool>& threads) {
    std::string text;
    for (size_t i = 0; i < threads.size(); i++) {
        if (!threads[i]) continue;
        size_t end = i;
        while (end + 1 < threads.size() && threads[end + 1]) end++;
        text += (text.empty() ? "" : ", ") + std::to_string(i) + (end > i ? "-" + std::to_string(end) : "");
        i = end;
    }
    return text;
}

// No thread can go on: the ones that wait, wait for those that left or that wait for something else.
void Block::diverged() {
    std::vector<bool> gone(threads_), barrier(threads_);
    std::string text;
    for (unsigned i = 0; i < threads_; i++) {
        gone[i] = fibres_[i].wait == Wait::for_ever;
        barrier[i] = fibres_[i].wait == Wait::block_barrier;
    }
    auto add = [&](const std::vector<bool>& threads, const std::string& what) {
        const std::string list = ranges(threads);
        if (!list.empty()) text += (text.empty() ? "" : "; ") + ("threads " + list) + " " + what;
    };
    auto place = [](Site site) { return std::string(site.file) + ":" + std::to_string(site.line); };
    if (at_barrier_ > 0) add(barrier, "wait at __syncthreads of " + place(barrier_site_));
    for (unsigned w = 0; w < warps_; w++) {
        if (warp_[w].arrived == 0) continue;
        std::vector<bool> waiting(threads_);
        for (unsigned lane = 0; lane < lanes_per_warp; lane++) {
            if (warp_[w].arrived >> lane & 1) waiting[w * lanes_per_warp + lane] = true;
        }
        add(waiting, std::string("wait at ") + operation_name(warp_[w].operation) + " of " + place(warp_[w].site));
    }
    add(gone, "have left the kernel");
    fatal("divergence: %s", text.c_str());
}

Index Block::thread_at(const void* stack_address) const {
    const long owner = stacks_.owner(stack_address);
    return owner >= 0 && size_t(owner) < fibres_.size() ? fibres_[size_t(owner)].thread : fibres_[running_].thread;
}

void block_barrier(Site site) { running_block->at_barrier(site); }

}  // namespace emulator
