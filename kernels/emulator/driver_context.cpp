// Start, devices, the primary context, limits, and what this library adds for tests.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <vector>

#include "driver.hpp"
#include "faults.hpp"

struct Context {
    int device = 0;
};

// What a context takes of the host.
class HostShare {
    std::vector<char> own;
    std::vector<int> pipes;

    // Fills a pipe: its pages are in no account of the process.
    bool fill_pipe(uint64_t bytes) {
        int ends[2];
        if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) return false;
        pipes.insert(pipes.end(), ends, ends + 2);
        const std::vector<char> content(bytes, 1);
        return fcntl(ends[1], F_SETPIPE_SZ, int(bytes)) >= int(bytes) && write(ends[1], content.data(), bytes) == ssize_t(bytes);
    }

public:
    bool take() {
        constexpr uint64_t PIPE = 1 << 20;
        own.assign(emulator::settings().context_bytes, 1);
        for (uint64_t left = emulator::settings().kernel_bytes; left > 0; left -= left < PIPE ? left : PIPE) {
            if (!fill_pipe(PIPE)) return false;
        }
        return true;
    }
    void give_back() {
        own = {};
        for (const int end : pipes) close(end);
        pipes.clear();
    }
};

namespace driver {

static Context& primary() {
    static Context context;
    return context;
}
static HostShare& host_share() {
    static HostShare share;
    return share;
}
static thread_local CUcontext current_context = nullptr;

State& state() {
    static State* const s = new State;
    return *s;
}

CUresult refuse(CUresult error, const char* format, ...) {
    if (settings().explain) {
        char text[1024];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        fprintf(stderr, "espalier emulator: refused with error %u: %s\n", unsigned(error), text);
    }
    return error;
}

CUresult from(emulator::Memory result, const char* call) {
    switch (result) {
        case emulator::Memory::done:
            return CUDA_SUCCESS;
        case emulator::Memory::out_of_memory:
            return refuse(CUDA_ERROR_OUT_OF_MEMORY, "%s: no memory left", call);
        case emulator::Memory::invalid:
            return refuse(CUDA_ERROR_INVALID_VALUE, "%s: not a valid range, size or handle", call);
        case emulator::Memory::already_registered:
            return refuse(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "%s: a page is registered already", call);
        case emulator::Memory::not_registered:
            return refuse(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "%s: not registered", call);
        case emulator::Memory::already_mapped:
            return refuse(CUDA_ERROR_ALREADY_MAPPED, "%s: something is mapped there already", call);
    }
    return CUDA_ERROR_UNKNOWN;
}

Call::Call(bool needs_context) : lock(state().mutex), result(CUDA_SUCCESS) {
    State& s = state();
    if (!s.initialized) {
        result = CUDA_ERROR_NOT_INITIALIZED;
    } else if (s.sticky != CUDA_SUCCESS) {
        result = s.sticky;
    } else if (needs_context && (current_context == nullptr || s.retained == 0)) {
        result = refuse(current_context ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_ERROR_INVALID_CONTEXT, "this thread has no context");
    }
}

CUresult waited() {
    State& s = state();
    emulator::counters().synchronizations++;
    if (s.pending != CUDA_SUCCESS) s.sticky = s.pending;
    return s.sticky;
}

void reset_errors() {
    State& s = state();
    s.pending = s.sticky = CUDA_SUCCESS;
    s.lost = false;
    s.images = 0;
}

// Destroying the context gives back all memory and ends what a kernel's fault did; a lost device stays lost.
static void destroy_primary() {
    State& s = state();
    drain_all();
    emulator::release_everything();
    if (!s.lost) s.pending = s.sticky = CUDA_SUCCESS;
}

}  // namespace driver

using namespace driver;

API cuInit(unsigned flags) {
    std::lock_guard lock(state().mutex);
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (settings().stub) return refuse(CUDA_ERROR_STUB_LIBRARY, "stub=1");
    if (settings().devices == 0) return refuse(CUDA_ERROR_NO_DEVICE, "devices=0");
    emulator::handle_memory_faults();
    state().initialized = true;
    return CUDA_SUCCESS;
}

// NVIDIA's libraries ask their driver for tables of functions that are nobody else's, and do without where there are none.
API cuGetExportTable(const void** table, const void*) {
    if (!table) return CUDA_ERROR_INVALID_VALUE;
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}

// Works without cuInit, as the driver's does.
API cuDriverGetVersion(int* version) {
    if (!version) return CUDA_ERROR_INVALID_VALUE;
    *version = settings().driver;
    return CUDA_SUCCESS;
}

static CUresult check_device(CUdevice device) {
    std::lock_guard lock(state().mutex);
    if (!state().initialized) return CUDA_ERROR_NOT_INITIALIZED;
    return device < 0 || uint64_t(device) >= settings().devices ? refuse(CUDA_ERROR_INVALID_DEVICE, "device %d", device) : CUDA_SUCCESS;
}

API cuDeviceGetCount(int* count) {
    if (!count) return CUDA_ERROR_INVALID_VALUE;
    std::lock_guard lock(state().mutex);
    if (!state().initialized) return CUDA_ERROR_NOT_INITIALIZED;
    *count = int(settings().devices);
    return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice* device, int ordinal) {
    if (!device) return CUDA_ERROR_INVALID_VALUE;
    const CUresult result = check_device(ordinal);
    if (result == CUDA_SUCCESS) *device = ordinal;
    return result;
}

API cuDeviceGetName(char* name, int bytes, CUdevice device) {
    if (!name || bytes < 1) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult result = check_device(device)) return result;
    snprintf(name, size_t(bytes), "Espalier emulator (sm_%d%d, no GPU)", settings().capability_major, settings().capability_minor);
    return CUDA_SUCCESS;
}

API cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
    if (!uuid) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult result = check_device(device)) return result;
    memcpy(uuid->bytes, "espalieremulato", 15);
    uuid->bytes[15] = char(device);
    return CUDA_SUCCESS;
}
API cuDeviceGetUuid(CUuuid* uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult result = check_device(device)) return result;
    *bytes = settings().memory_bytes;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    if (!context) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult result = check_device(device)) return result;
    std::lock_guard lock(state().mutex);
    if (state().lost) return state().sticky;
    if (state().retained == 0 && !host_share().take()) {
        host_share().give_back();
        return refuse(CUDA_ERROR_OUT_OF_MEMORY, "the host has no room for what the context takes of it");
    }
    state().retained++;
    *context = &primary();
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    if (const CUresult result = check_device(device)) return result;
    std::lock_guard lock(state().mutex);
    if (state().retained == 0) return refuse(CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained");
    if (--state().retained == 0) {
        destroy_primary();
        host_share().give_back();
    }
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRelease(CUdevice device) { return cuDevicePrimaryCtxRelease_v2(device); }

API cuDevicePrimaryCtxReset_v2(CUdevice device) {
    if (const CUresult result = check_device(device)) return result;
    std::lock_guard lock(state().mutex);
    destroy_primary();
    return state().sticky;
}

API cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    if (!flags || !active) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult result = check_device(device)) return result;
    *flags = 0;
    *active = state().retained > 0;
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned) { return check_device(device); }

API cuCtxGetCurrent(CUcontext* context) {
    ENTER(false);
    if (!context) return CUDA_ERROR_INVALID_VALUE;
    *context = current_context;
    return CUDA_SUCCESS;
}
API cuCtxSetCurrent(CUcontext context) {
    ENTER(false);
    if (context != nullptr && (context != &primary() || state().retained == 0))
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuCtxSetCurrent");
    current_context = context;
    return CUDA_SUCCESS;
}
API cuCtxPushCurrent_v2(CUcontext context) { return cuCtxSetCurrent(context); }
API cuCtxPopCurrent_v2(CUcontext* context) {
    ENTER();
    if (context) *context = current_context;
    current_context = nullptr;
    return CUDA_SUCCESS;
}
API cuCtxGetDevice(CUdevice* device) {
    ENTER();
    if (!device) return CUDA_ERROR_INVALID_VALUE;
    *device = primary().device;
    return CUDA_SUCCESS;
}
API cuCtxSynchronize() {
    ENTER();
    for (const auto& capture : state().captures) {
        capture->invalid = true;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "cuCtxSynchronize while a stream captures");
    }
    drain_all();
    return waited();
}
API cuCtxSetFlags(unsigned) {
    ENTER();
    return CUDA_SUCCESS;
}
API cuCtxGetFlags(unsigned* flags) {
    ENTER();
    if (!flags) return CUDA_ERROR_INVALID_VALUE;
    *flags = 0;
    return CUDA_SUCCESS;
}
API cuCtxGetApiVersion(CUcontext, unsigned* version) {
    ENTER();
    if (!version) return CUDA_ERROR_INVALID_VALUE;
    *version = unsigned(settings().driver);
    return CUDA_SUCCESS;
}
API cuCtxGetLimit(size_t* value, int limit) {
    ENTER();
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    if (limit != 0) return CUDA_ERROR_UNSUPPORTED_LIMIT;
    *value = 1024;
    return CUDA_SUCCESS;
}
API cuCtxSetLimit(int limit, size_t) {
    ENTER();
    return limit >= 0 && limit <= 6 ? CUDA_SUCCESS : CUDA_ERROR_UNSUPPORTED_LIMIT;
}
API cuCtxGetCacheConfig(int* config) {
    ENTER();
    if (!config) return CUDA_ERROR_INVALID_VALUE;
    *config = 0;
    return CUDA_SUCCESS;
}
API cuCtxSetCacheConfig(int) {
    ENTER();
    return CUDA_SUCCESS;
}
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER();
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}
API cuProfilerStart() {
    ENTER();
    return CUDA_SUCCESS;
}
API cuProfilerStop() {
    ENTER();
    return CUDA_SUCCESS;
}

// The newest version of a function that this library has.
API cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, unsigned* status) {
    if (!symbol || !function) return CUDA_ERROR_INVALID_VALUE;
    Dl_info info{};
    void* self = dladdr(reinterpret_cast<void*>(&cuInit), &info) ? dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD) : nullptr;
    *function = nullptr;
    for (const char* version : {"_v3", "_v2", ""}) {
        char name[256];
        snprintf(name, sizeof name, "%s%s", symbol, version);
        if (self && !*function) *function = dlsym(self, name);
    }
    if (self) dlclose(self);
    if (status) *status = *function ? 0 : 1;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
API cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}

// Settings as in ESPALIER_EMULATOR; counts restart, a lost device is there again. What is allocated stays.
extern "C" __attribute__((visibility("default"))) void espalier_emulator_configure(const char* text) {
    std::lock_guard lock(state().mutex);
    emulator::settings();
    emulator::configure(text);
    reset_errors();
}

// A counter of settings.hpp by its name; the largest number where there is none of that name.
extern "C" __attribute__((visibility("default"))) uint64_t espalier_emulator_counter(const char* name) {
    return name ? emulator::counter(name) : UINT64_MAX;
}
