// Allocation, mapping, registration, copies and fills.
#include <string.h>

#include "driver.hpp"
#include "faults.hpp"

using namespace driver;
using emulator::Place;
using emulator::place_of;

#define NO_CAPTURE() \
    if (const CUresult result = no_capture(__func__)) return result

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER();
    if (!free || !total) return CUDA_ERROR_INVALID_VALUE;
    *total = settings().memory_bytes;
    const uint64_t used = emulator::device_bytes_used();
    *free = used < *total ? *total - used : 0;
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    ENTER();
    NO_CAPTURE();
    if (!address) return CUDA_ERROR_INVALID_VALUE;
    uint64_t at = 0;
    const CUresult result = from(emulator::allocate(bytes, &at), __func__);
    if (result == CUDA_SUCCESS) *address = at;
    return result;
}

// Waits for all work first, as the driver does.
API cuMemFree_v2(CUdeviceptr address) {
    ENTER();
    NO_CAPTURE();
    if (address == 0) return CUDA_SUCCESS;
    drain_all();
    return from(emulator::release(address), __func__);
}

// Without memory pools (the attribute says 0), allocation in stream order is allocation at once and release in order.
API cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream stream) {
    ENTER();
    if (!stream_of(stream)) return CUDA_ERROR_INVALID_HANDLE;
    if (const CUresult result = not_capturing(stream_of(stream), __func__)) return result;
    return cuMemAlloc_v2(address, bytes);
}
API cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
    ENTER();
    Stream* const stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (const CUresult result = not_capturing(stream, __func__)) return result;
    uint64_t start = 0, bytes = 0;
    if (!emulator::range_of(address, &start, &bytes) || start != address) return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemFreeAsync");
    return submit(stream, {NodeKind::empty, [address] { return from(emulator::release(address), "cuMemFreeAsync"); }, nullptr});
}

API cuMemGetAddressRange_v2(CUdeviceptr* start, size_t* bytes, CUdeviceptr address) {
    ENTER();
    uint64_t s = 0, b = 0;
    if (!emulator::range_of(address, &s, &b)) return refuse(CUDA_ERROR_NOT_FOUND, "cuMemGetAddressRange");
    if (start) *start = s;
    if (bytes) *bytes = b;
    return CUDA_SUCCESS;
}

static CUresult need_vmm() { return settings().vmm ? CUDA_SUCCESS : refuse(CUDA_ERROR_NOT_SUPPORTED, "vmm=0"); }

API cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* properties, unsigned) {
    ENTER(false);
    if (const CUresult result = need_vmm()) return result;
    if (!bytes || !properties || properties->type != 1 || properties->location.type != 1) return CUDA_ERROR_INVALID_VALUE;
    *bytes = settings().granularity_bytes;
    return CUDA_SUCCESS;
}

API cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t alignment, CUdeviceptr, unsigned long long flags) {
    ENTER();
    NO_CAPTURE();
    if (const CUresult result = need_vmm()) return result;
    if (!address || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    uint64_t at = 0;
    const CUresult result = from(emulator::reserve_range(bytes, alignment, &at), __func__);
    if (result == CUDA_SUCCESS) *address = at;
    return result;
}
API cuMemAddressFree(CUdeviceptr address, size_t bytes) {
    ENTER();
    NO_CAPTURE();
    return from(emulator::free_range(address, bytes), __func__);
}

API cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* properties, unsigned long long flags) {
    ENTER();
    NO_CAPTURE();
    if (const CUresult result = need_vmm()) return result;
    if (!handle || !properties || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (properties->type != 1 || properties->location.type != 1)
        return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemCreate: only pinned memory of a device");
    if (properties->location.id != 0) return refuse(CUDA_ERROR_INVALID_DEVICE, "cuMemCreate: device %d", properties->location.id);
    uint64_t fresh = 0;
    const CUresult result = from(emulator::create_physical(bytes, &fresh), __func__);
    if (result == CUDA_SUCCESS) *handle = fresh;
    return result;
}
API cuMemRelease(CUmemGenericAllocationHandle handle) {
    ENTER();
    NO_CAPTURE();
    return from(emulator::release_physical(handle), __func__);
}

API cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags) {
    ENTER();
    NO_CAPTURE();
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    return from(emulator::map_physical(address, bytes, offset, handle), __func__);
}
// Does not wait for work that uses the range: that work faults.
API cuMemUnmap(CUdeviceptr address, size_t bytes) {
    ENTER();
    NO_CAPTURE();
    return from(emulator::unmap_physical(address, bytes), __func__);
}
API cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access, size_t count) {
    ENTER();
    NO_CAPTURE();
    if (!access || count != 1 || access->location.type != 1 || access->location.id != 0) return CUDA_ERROR_INVALID_VALUE;
    if (access->flags != 0 && access->flags != 1 && access->flags != 3) return CUDA_ERROR_INVALID_VALUE;
    return from(emulator::set_access(address, bytes, access->flags != 0, access->flags == 3), __func__);
}

API cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    ENTER();
    NO_CAPTURE();
    if (!address || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    return from(emulator::allocate_host(bytes, address), __func__);
}
API cuMemAllocHost_v2(void** address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
API cuMemFreeHost(void* address) {
    ENTER();
    NO_CAPTURE();
    if (!address) return CUDA_SUCCESS;
    drain_all();
    return from(emulator::release_host(address), __func__);
}
API cuMemHostGetFlags(unsigned* flags, void* address) {
    ENTER();
    if (!flags || place_of(reinterpret_cast<uint64_t>(address), 1) != Place::pinned_host) return CUDA_ERROR_INVALID_VALUE;
    *flags = 3;
    return CUDA_SUCCESS;
}

// Flags: 1 portable, 2 device map, 4 I/O memory, 8 read only.
API cuMemHostRegister_v2(void* address, size_t bytes, unsigned flags) {
    ENTER();
    NO_CAPTURE();
    if (!settings().register_host) return refuse(CUDA_ERROR_NOT_SUPPORTED, "register=0");
    if (!address || flags > 15 || (flags & 4) != 0) return CUDA_ERROR_INVALID_VALUE;
    if (emulator::counters().registrations + 1 == settings().fail_register) return refuse(CUDA_ERROR_OUT_OF_MEMORY, "fail_register");
    return from(emulator::register_host(address, bytes, (flags & 8) != 0), __func__);
}
API cuMemHostUnregister(void* address) {
    ENTER();
    NO_CAPTURE();
    drain_all();
    return from(emulator::unregister_host(address), __func__);
}
API cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* address, unsigned flags) {
    ENTER();
    if (!device || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (place_of(reinterpret_cast<uint64_t>(address), 1) != Place::pinned_host)
        return refuse(CUDA_ERROR_INVALID_VALUE, "cuMemHostGetDevicePointer");
    *device = reinterpret_cast<uint64_t>(address);
    return CUDA_SUCCESS;
}

// Memory types: 1 host, 2 device.
API cuPointerGetAttribute(void* data, int attribute, CUdeviceptr address) {
    ENTER();
    const Place place = place_of(address, 1);
    if (!data || place == Place::nowhere || place == Place::host) return CUDA_ERROR_INVALID_VALUE;
    uint64_t start = address, bytes = 0;
    switch (attribute) {
        case 2:
            *static_cast<unsigned*>(data) = place == Place::device ? 2 : 1;
            break;
        case 3:
            *static_cast<CUdeviceptr*>(data) = address;
            break;
        case 9:
            *static_cast<int*>(data) = 0;
            break;
        case 11:
        case 12:
            if (!emulator::range_of(address, &start, &bytes)) return CUDA_ERROR_INVALID_VALUE;
            *static_cast<uint64_t*>(data) = attribute == 11 ? start : bytes;
            break;
        default:
            return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

namespace {

bool device_can_reach(CUdeviceptr address, size_t bytes) {
    const Place place = place_of(address, bytes);
    return place == Place::device || place == Place::pinned_host;
}
CUresult need_device(CUdeviceptr address, size_t bytes, const char* call) {
    if (device_can_reach(address, bytes)) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes at %p are not all live device memory", call, bytes,
                  reinterpret_cast<void*>(address));
}
bool is_pageable(const void* address, size_t bytes) { return place_of(reinterpret_cast<uint64_t>(address), bytes) == Place::host; }

GraphNode copy_node(void* to, const void* from, size_t bytes) {
    return {NodeKind::copy,
            [=] {
                // What was live when the copy was asked for may not be when it is done.
                for (const void* end : {static_cast<const void*>(to), from}) {
                    if (place_of(reinterpret_cast<uint64_t>(end), bytes) == Place::nowhere) {
                        emulator::fatal("a copy of %zu bytes from %p to %p touches device memory that was freed before the copy was done",
                                        bytes, from, to);
                    }
                }
                emulator::Access access;
                memcpy(to, from, bytes);
                return CUDA_SUCCESS;
            },
            nullptr};
}

CUresult to_device(CUdeviceptr to, const void* from, size_t bytes, CUstream handle, bool blocking, const char* call) {
    Stream* const stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (bytes == 0) return CUDA_SUCCESS;
    if (!from || emulator::is_device_address(from)) return refuse(CUDA_ERROR_INVALID_VALUE, "%s: the source is not host memory", call);
    if (const CUresult result = need_device(to, bytes, call)) return result;
    auto& counters = emulator::counters();
    counters.copies_to_device++;
    counters.bytes_to_device += bytes;
    auto* const target = reinterpret_cast<void*>(to);
    // Pageable memory is staged before the call returns; pinned memory is read when the stream gets there, and so is all memory by a graph.
    if (is_pageable(from, bytes) && !blocking && !stream->capture && settings().lazy) {
        const auto* first = static_cast<const unsigned char*>(from);
        auto staged = std::make_shared<std::vector<unsigned char>>(first, first + bytes);
        GraphNode node = copy_node(target, staged->data(), bytes);
        node.run = [staged, run = std::move(node.run)] { return run(); };
        return submit(stream, std::move(node));
    }
    if (const CUresult result = submit(stream, copy_node(target, from, bytes))) return result;
    if (!blocking) return CUDA_SUCCESS;
    drain(stream, stream->given);
    return waited();
}

CUresult to_host(void* to, CUdeviceptr from, size_t bytes, CUstream handle, bool blocking, const char* call) {
    Stream* const stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (bytes == 0) return CUDA_SUCCESS;
    if (!to || emulator::is_device_address(to)) return refuse(CUDA_ERROR_INVALID_VALUE, "%s: the target is not host memory", call);
    if (const CUresult result = need_device(from, bytes, call)) return result;
    auto& counters = emulator::counters();
    counters.copies_to_host++;
    counters.bytes_to_host += bytes;
    if (const CUresult result = submit(stream, copy_node(to, reinterpret_cast<const void*>(from), bytes))) return result;
    if (stream->capture || (!blocking && !is_pageable(to, bytes))) return CUDA_SUCCESS;
    // A copy to pageable memory has ended when the call returns.
    drain(stream, stream->given);
    return waited();
}

CUresult on_device(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle, bool blocking, const char* call) {
    Stream* const stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (bytes == 0) return CUDA_SUCCESS;
    if (const CUresult result = need_device(to, bytes, call)) return result;
    if (const CUresult result = need_device(from, bytes, call)) return result;
    if (to < from + bytes && from < to + bytes) {
        emulator::fatal("%s: %zu bytes from %p to %p overlap, which has no defined result on a device; copy in pieces", call, bytes,
                        reinterpret_cast<void*>(from), reinterpret_cast<void*>(to));
    }
    auto& counters = emulator::counters();
    counters.copies_on_device++;
    counters.bytes_on_device += bytes;
    if (const CUresult result = submit(stream, copy_node(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes)))
        return result;
    if (blocking) drain(stream, stream->given);
    return CUDA_SUCCESS;
}

template <class T>
CUresult fill(CUdeviceptr to, T value, size_t count, CUstream handle, const char* call) {
    Stream* const stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (count == 0) return CUDA_SUCCESS;
    if (to % sizeof(T) != 0 || count > SIZE_MAX / sizeof(T)) return refuse(CUDA_ERROR_INVALID_VALUE, "%s: not aligned", call);
    if (const CUresult result = need_device(to, count * sizeof(T), call)) return result;
    emulator::counters().fills++;
    return submit(stream, {NodeKind::fill,
                           [=] {
                               if (place_of(to, count * sizeof(T)) == Place::nowhere)
                                   emulator::fatal("a fill touches device memory that was freed before it was done");
                               emulator::Access access;
                               T* const target = reinterpret_cast<T*>(to);
                               for (size_t i = 0; i < count; i++) target[i] = value;
                               return CUDA_SUCCESS;
                           },
                           nullptr});
}

}  // namespace

// Copies that block use the default stream, which may not be used while anything captures.
API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    ENTER();
    NO_CAPTURE();
    return to_device(to, from, bytes, nullptr, true, __func__);
}
API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    ENTER();
    NO_CAPTURE();
    return to_host(to, from, bytes, nullptr, true, __func__);
}
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER();
    NO_CAPTURE();
    return on_device(to, from, bytes, nullptr, true, __func__);
}
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    ENTER();
    return to_device(to, from, bytes, stream, false, __func__);
}
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER();
    return to_host(to, from, bytes, stream, false, __func__);
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER();
    return on_device(to, from, bytes, stream, false, __func__);
}

API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    ENTER();
    NO_CAPTURE();
    return fill(to, value, count, nullptr, __func__);
}
API cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count) {
    ENTER();
    NO_CAPTURE();
    return fill(to, value, count, nullptr, __func__);
}
API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    ENTER();
    NO_CAPTURE();
    return fill(to, value, count, nullptr, __func__);
}
API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    ENTER();
    return fill(to, value, count, stream, __func__);
}
API cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, CUstream stream) {
    ENTER();
    return fill(to, value, count, stream, __func__);
}
API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    ENTER();
    return fill(to, value, count, stream, __func__);
}
