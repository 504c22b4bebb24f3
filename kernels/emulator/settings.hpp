// What the emulated device is, which faults it has, and what has happened so far.
#pragma once

#include <stdint.h>

#include <atomic>

namespace emulator {

// Words of ESPALIER_EMULATOR and of espalier_emulator_configure: `name=value` with commas between; what is not named has its default.
struct Settings {
    // The device.
    int capability_major = 8, capability_minor = 7;  // capability=8.7
    int driver = 13000;                              // driver=13000: what cuDriverGetVersion says
    uint64_t devices = 1;                            // devices=0: a driver without a device
    uint64_t stub = 0;                               // stub=1: cuInit says CUDA_ERROR_STUB_LIBRARY
    uint64_t memory_bytes = uint64_t(2) << 30;       // memory=2147483648
    uint64_t integrated = 0;                         // integrated=1: the device shares the host's memory
    uint64_t pageable = 0;                           // pageable=1: kernels read pageable host memory through the host's page tables
    uint64_t register_host = 1;                      // register=0: no host registration
    uint64_t vmm = 1;                                // vmm=0: no virtual memory management
    uint64_t granularity_bytes = uint64_t(2) << 20;  // granularity=2097152: of virtual memory management, a power of two
    // What its context takes of the host while it is retained; 0 is nothing beside what the emulator is.
    uint64_t context_bytes = 0;  // context=BYTES: memory of the process
    uint64_t kernel_bytes = 0;   // kernel=BYTES: pages that are no process's, as a driver's module has them
    // How it runs.
    uint64_t threads = 2;               // threads=2: OS threads that run blocks
    uint64_t lazy = 0;                  // lazy=1: streams run only when someone waits for them
    uint64_t protect = 0;               // protect=1: device memory can be touched only while kernels and copies run
    uint64_t tell = 0;                  // tell=1: "espalier emulator: N bytes of device memory" on standard error whenever that changes
    uint64_t explain = 0;               // explain=1: a sentence on standard error for every call that is refused
    uint64_t step_limit = 100'000'000;  // steps=N: barriers and warp operations of one block before it is taken for endless
    uint64_t seconds_limit = 300;       // seconds=N: time of one kernel before it is taken for endless
    // Faults; counts start at 1, 0 is never.
    uint64_t fail_alloc = 0;     // fail_alloc=N: the N-th allocation of device memory has no memory left
    uint64_t fail_launch = 0;    // fail_launch=N: the N-th kernel is refused (CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES); the device lives on
    uint64_t fault_launch = 0;   // fault_launch=N: the N-th kernel faults: CUDA_ERROR_ILLEGAL_ADDRESS at the next wait and ever after
    uint64_t lose_device = 0;    // lose_device=N: the device is gone at the N-th kernel; a graph's kernels count one by one
    uint64_t lost_error = 46;    // lost_error=46: what every call says then (CUDA_ERROR_DEVICE_UNAVAILABLE)
    uint64_t reject_images = 0;  // reject_images=N: the first N images are refused
    uint64_t image_error = 209;  // image_error=209: with which error (CUDA_ERROR_NO_BINARY_FOR_GPU)
    uint64_t refuse_graphs = 0;  // refuse_graphs=N: for the first N graphs there is no memory left to prepare them
    uint64_t fail_register = 0;  // fail_register=N: the N-th registration of host memory has no memory left
};

const Settings& settings();
// Reads settings; a word that is not understood ends the process with a sentence. Counters start again at 0.
void configure(const char* text);

// Counters that tests read by name.
struct Counters {
    std::atomic<uint64_t> launches, kernels, refused_launches, blocks, graph_launches, graphs, captures, modules, images_refused;
    std::atomic<uint64_t> allocations, refused_allocations, frees, bytes_allocated, bytes_mapped, bytes_created, bytes_registered;
    std::atomic<uint64_t> mappings, registrations, copies_to_device, copies_to_host, copies_on_device, bytes_to_device, bytes_to_host;
    std::atomic<uint64_t> bytes_on_device, fills, synchronizations, events, highest_streams, lowest_streams, refused_graphs, streams;
};
Counters& counters();
// The counter's value, or UINT64_MAX where there is none of that name.
uint64_t counter(const char* name);

}  // namespace emulator
