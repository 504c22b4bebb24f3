// Device memory at real addresses of this process, and the host memory that kernels may read.
//
// Kernels run in this process, so what they can reach the host can too: only with protect=1 is device memory out of the host's reach
// while nothing runs (every kernel and copy then changes the protection of every page). Fresh memory is filled with NaN; freed memory is
// unmapped, and its addresses are not given out again until all of the reserved range has been.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace emulator {

enum class Memory { done, out_of_memory, invalid, already_registered, not_registered, already_mapped };

// cuMemAlloc and cuMemFree. Addresses are multiples of 256; the last 256-byte line ends at a page that is not there.
Memory allocate(uint64_t bytes, uint64_t* address);
Memory release(uint64_t address);

// Virtual memory management: address ranges, physical memory, and the mapping of one onto the other, in multiples of the
// granularity that the settings say.
Memory reserve_range(uint64_t bytes, uint64_t alignment, uint64_t* address);
Memory free_range(uint64_t address, uint64_t bytes);
Memory create_physical(uint64_t bytes, uint64_t* handle);
Memory release_physical(uint64_t handle);
Memory map_physical(uint64_t address, uint64_t bytes, uint64_t offset, uint64_t handle);
Memory unmap_physical(uint64_t address, uint64_t bytes);
Memory set_access(uint64_t address, uint64_t bytes, bool read, bool write);

// Pinned and registered host memory.
Memory allocate_host(uint64_t bytes, void** address);
Memory release_host(void* address);
Memory register_host(void* address, uint64_t bytes, bool read_only);
Memory unregister_host(void* address);

enum class Place { nowhere, device, pinned_host, host };
// Where a range is: on the device (live allocations or accessible mappings, end to end), in pinned or registered host memory, in other
// host memory, or in the device's reserved range but not live (nowhere).
Place place_of(uint64_t address, uint64_t bytes);
// The allocation or reservation that holds an address.
bool range_of(uint64_t address, uint64_t* start, uint64_t* bytes);
bool is_device_address(const void* address);
// Says in words what a device address is, for a fault; false where it is none. Takes no lock.
bool describe_device_address(const void* address, char* text, size_t text_bytes);

uint64_t device_bytes_used();
// Gives back everything on the device: what destroying a context does.
void release_everything();

// While one of these lives, device memory can be touched (protect=1).
class Access {
public:
    Access();
    ~Access();
    Access(const Access&) = delete;
};

}  // namespace emulator
