// Images, functions and launches.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <string>

#include "driver.hpp"
#include "faults.hpp"

struct Module {
    std::map<std::string, std::unique_ptr<Function>> functions;
};

namespace driver {

namespace {

// Fields of a fatbin: a header, then entries, each with a header and a payload. An entry's kind is PTX (1) or a cubin (2).
template <class T>
T field(const unsigned char* bytes, size_t at) {
    T value;
    memcpy(&value, bytes + at, sizeof value);
    return value;
}
constexpr uint32_t fatbin_magic = 0xba55ed50, fatbin_wrapper_magic = 0x466243b1;

// A cubin runs on devices of its major version and at least its minor one; PTX on its version and all later ones.
bool fits(uint16_t kind, uint32_t architecture) {
    const uint32_t major = architecture / 10, minor = architecture % 10;
    const auto mine_major = uint32_t(settings().capability_major), mine_minor = uint32_t(settings().capability_minor);
    if (kind == 2) return major == mine_major && minor <= mine_minor;
    return kind == 1 && architecture <= 10 * mine_major + mine_minor;
}

CUresult check_fatbin(const unsigned char* bytes) {
    const uint64_t header = field<uint16_t>(bytes, 6), body = field<uint64_t>(bytes, 8);
    std::string found;
    for (uint64_t at = header; at + 64 <= header + body;) {
        const auto kind = field<uint16_t>(bytes, at);
        const uint64_t entry_header = field<uint32_t>(bytes, at + 4), payload = field<uint64_t>(bytes, at + 8);
        const auto architecture = field<uint32_t>(bytes, at + 28);
        if (entry_header < 32 || payload > header + body - at) return refuse(CUDA_ERROR_INVALID_IMAGE, "a fatbin's entry is out of bounds");
        if (fits(kind, architecture)) return CUDA_SUCCESS;
        found += (found.empty() ? "" : ", ") + std::string(kind == 1 ? "compute_" : "sm_") + std::to_string(architecture);
        at += entry_header + payload;
    }
    return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "the fatbin holds %s, which does not fit sm_%d%d", found.c_str(),
                  settings().capability_major, settings().capability_minor);
}

CUresult check_image(const void* image) {
    const auto* bytes = static_cast<const unsigned char*>(image);
    if (state().images++ < settings().reject_images) {
        return refuse(CUresult(settings().image_error), "reject_images");
    }
    const auto magic = field<uint32_t>(bytes, 0);
    if (magic == fatbin_wrapper_magic) return check_image(field<const void*>(bytes, 8));
    if (magic == fatbin_magic) return check_fatbin(bytes);
    if (memcmp(bytes,
               "\x7f"
               "ELF",
               4) == 0)
        return CUDA_SUCCESS;
    // PTX is text that ends with a zero byte and has a .version line after its comments.
    const size_t length = strnlen(static_cast<const char*>(image), 4096);
    if (std::string(static_cast<const char*>(image), length).find(".version") != std::string::npos) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_INVALID_IMAGE, "the image begins with %08x: neither a fatbin nor a cubin nor PTX", magic);
}

}  // namespace

CUresult admit_kernels(uint64_t count, bool* faults) {
    State& s = state();
    auto& counters = emulator::counters();
    const uint64_t before = counters.kernels;
    auto falls_in = [&](uint64_t n) { return n != 0 && n > before && n <= before + count; };
    counters.kernels += count;
    *faults = falls_in(settings().fault_launch);
    if (falls_in(settings().lose_device)) {
        s.lost = true;
        s.sticky = s.pending = CUresult(settings().lost_error);
        return refuse(s.sticky, "lose_device");
    }
    if (falls_in(settings().fail_launch)) {
        counters.refused_launches++;
        return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "fail_launch");
    }
    return CUDA_SUCCESS;
}

static CUresult check_launch(const Function& function, emulator::Index grid, emulator::Index block, unsigned shared_bytes) {
    const char* name = function.kernel->name;
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: a grid of %u x %u x %u blocks", name, grid.x, grid.y, grid.z);
    }
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads < 1 || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > function.kernel->max_threads) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: a block of %u x %u x %u threads; its launch bounds are %u", name, block.x, block.y,
                      block.z, function.kernel->max_threads);
    }
    if (shared_bytes > function.dynamic_shared_limit) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %u bytes of dynamic shared memory; %u are allowed to it (cuFuncSetAttribute)", name,
                      shared_bytes, function.dynamic_shared_limit);
    }
    return CUDA_SUCCESS;
}

static std::shared_ptr<PackedLaunch> pack(Function* function, emulator::Index grid, emulator::Index block, unsigned shared_bytes,
                                          void* const* arguments) {
    const emulator::Kernel& kernel = *function->kernel;
    auto packed = std::make_shared<PackedLaunch>();
    *packed = {function, function->kernel, grid, block, shared_bytes, std::vector<uint64_t>(kernel.arguments), {}};
    for (size_t i = 0; i < kernel.arguments; i++) {
        memcpy(&packed->storage[i], arguments[i], kernel.argument_bytes[i]);
        packed->arguments.push_back(&packed->storage[i]);
    }
    return packed;
}

// Pointers into the host's memory are read through its page tables or not at all. Those that name no object (empty buffers) are harmless.
static CUresult check_pointers(const PackedLaunch& launch) {
    const emulator::Kernel& kernel = *launch.kernel;
    for (size_t i = 0; i < kernel.arguments; i++) {
        if (!kernel.argument_is_pointer[i] || launch.storage[i] < 65536) continue;
        if (emulator::place_of(launch.storage[i], 1) == emulator::Place::host && !settings().pageable) {
            fprintf(stderr, "espalier emulator: kernel %s: argument %zu, %p, is pageable host memory, which this device cannot read\n",
                    kernel.name, i, reinterpret_cast<void*>(launch.storage[i]));
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        }
    }
    return CUDA_SUCCESS;
}

static CUresult run(const PackedLaunch& packed) {
    if (const CUresult result = check_pointers(packed)) return result;
    emulator::Access access;
    emulator::run_grid(
        {packed.kernel, packed.grid, packed.block, packed.shared_bytes, size_t(shared_opt_in_bytes()), packed.arguments.data()});
    return CUDA_SUCCESS;
}

CUresult launch(CUfunction function, emulator::Index grid, emulator::Index block, unsigned shared_bytes, CUstream handle, void** arguments,
                void** extra) {
    State& s = state();
    Stream* const stream = stream_of(handle);
    const bool known = function && std::any_of(s.modules.begin(), s.modules.end(), [&](Module* module) {
                           return std::any_of(module->functions.begin(), module->functions.end(),
                                              [&](const auto& entry) { return entry.second.get() == function; });
                       });
    if (!stream || !known) return refuse(CUDA_ERROR_INVALID_HANDLE, "cuLaunchKernel: there is no such stream or function");
    if (extra) return refuse(CUDA_ERROR_NOT_SUPPORTED, "cuLaunchKernel with packed arguments (extra)");
    if (!arguments && function->kernel->arguments > 0) return refuse(CUDA_ERROR_INVALID_VALUE, "%s: no arguments", function->kernel->name);
    if (const CUresult result = check_launch(*function, grid, block, shared_bytes)) return result;
    const std::shared_ptr<PackedLaunch> packed = pack(function, grid, block, shared_bytes, arguments);
    bool faults = false;
    if (!stream->capture) {
        if (const CUresult result = admit_kernels(1, &faults)) return result;
        emulator::counters().launches++;
    }
    if (faults) return submit(stream, {NodeKind::kernel, [] { return CUDA_ERROR_ILLEGAL_ADDRESS; }, nullptr});
    return submit(stream, {NodeKind::kernel, [packed] { return run(*packed); }, packed});
}

}  // namespace driver

using namespace driver;

API cuModuleLoadData(CUmodule* module, const void* image) {
    ENTER();
    if (!module || !image) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult result = no_capture("cuModuleLoadData")) return result;
    if (const CUresult result = check_image(image)) {
        emulator::counters().images_refused++;
        return result;
    }
    *module = new Module;
    state().modules.insert(*module);
    emulator::counters().modules++;
    return CUDA_SUCCESS;
}
API cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, int*, void**) { return cuModuleLoadData(module, image); }
API cuModuleLoadFatBinary(CUmodule* module, const void* image) { return cuModuleLoadData(module, image); }

API cuModuleLoad(CUmodule* module, const char* path) {
    if (!path) return CUDA_ERROR_INVALID_VALUE;
    FILE* file = fopen(path, "rb");
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    std::string bytes;
    char piece[4096];
    for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;) bytes.append(piece, n);
    fclose(file);
    bytes.append(64, '\0');
    return cuModuleLoadData(module, bytes.data());
}

API cuModuleUnload(CUmodule module) {
    ENTER();
    if (!state().modules.count(module)) return refuse(CUDA_ERROR_INVALID_HANDLE, "cuModuleUnload: there is no such module");
    drain_all();
    state().modules.erase(module);
    delete module;
    return CUDA_SUCCESS;
}

API cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    ENTER();
    if (!function || !name) return CUDA_ERROR_INVALID_VALUE;
    if (!state().modules.count(module)) return refuse(CUDA_ERROR_INVALID_HANDLE, "cuModuleGetFunction: there is no such module");
    std::unique_ptr<Function>& entry = module->functions[name];
    if (!entry) {
        const emulator::Kernel* kernel = emulator::find_kernel(name);
        if (!kernel) {
            module->functions.erase(name);
            return refuse(CUDA_ERROR_NOT_FOUND, "there is no kernel %s", name);
        }
        entry = std::make_unique<Function>(Function{kernel, module});
    }
    *function = entry.get();
    return CUDA_SUCCESS;
}

API cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, CUmodule, const char*) {
    ENTER();
    return CUDA_ERROR_NOT_FOUND;
}

API cuModuleGetLoadingMode(unsigned* mode) {
    ENTER(false);
    if (!mode) return CUDA_ERROR_INVALID_VALUE;
    *mode = 1;
    return CUDA_SUCCESS;
}

API cuFuncGetName(const char** name, CUfunction function) {
    ENTER();
    if (!name || !function) return CUDA_ERROR_INVALID_VALUE;
    *name = function->kernel->name;
    return CUDA_SUCCESS;
}

API cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
    ENTER();
    if (!value || !function) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
        case 0:
            *value = int(function->kernel->max_threads);
            break;
        case 4:
            *value = 32;
            break;  // registers: the emulator has none to count
        case 5:
        case 6:
            *value = 10 * settings().capability_major + settings().capability_minor;
            break;
        case 8:
            *value = int(function->dynamic_shared_limit);
            break;
        case 1:
        case 2:
        case 3:
        case 7:
        case 9:
            *value = 0;
            break;
        default:
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

// Attribute 8 lets a block have more dynamic shared memory than every device has.
API cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    ENTER();
    if (!function) return CUDA_ERROR_INVALID_VALUE;
    if (attribute == 9) return value >= -1 && value <= 100 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (attribute != 8 || value < 0 || value > shared_opt_in_bytes()) {
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: attribute %d = %d; at most %d bytes of shared memory", function->kernel->name,
                      attribute, value, shared_opt_in_bytes());
    }
    function->dynamic_shared_limit = unsigned(value);
    return CUDA_SUCCESS;
}
API cuFuncSetCacheConfig(CUfunction, int) {
    ENTER();
    return CUDA_SUCCESS;
}

API cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, CUstream stream, void** arguments, void** extra) {
    ENTER();
    return launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, stream, arguments, extra);
}

// Launch attributes (clusters, programmatic order) are not there.
API cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments, void** extra) {
    ENTER();
    if (!config) return CUDA_ERROR_INVALID_VALUE;
    if (config->attribute_count != 0) return refuse(CUDA_ERROR_NOT_SUPPORTED, "cuLaunchKernelEx with attributes");
    return launch(function, {config->grid_x, config->grid_y, config->grid_z}, {config->block_x, config->block_y, config->block_z},
                  config->shared_bytes, config->stream, arguments, extra);
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int block_size, size_t shared_bytes) {
    ENTER();
    if (!blocks || !function || block_size < 1) return CUDA_ERROR_INVALID_VALUE;
    const int by_shared = shared_bytes > 0 ? int(size_t(shared_opt_in_bytes() + 1024) / (shared_bytes + 1024)) : 16;
    *blocks = std::min({16, 1536 / block_size, by_shared});
    return CUDA_SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function, int block_size, size_t shared_bytes, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_size, shared_bytes);
}
