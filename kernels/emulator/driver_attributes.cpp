// Attributes of the device.
#include "driver.hpp"

using driver::settings;

namespace {

// Shared memory that one block may ask for, by capability (CUDA programming guide, table of compute capabilities).
int shared_opt_in(int major, int minor) {
    const int capability = 10 * major + minor;
    if (capability == 75) return 64 * 1024;
    if (capability == 80 || capability == 87) return 163 * 1024;
    if (capability == 90 || capability == 100 || capability == 103 || capability == 110) return 227 * 1024;
    if (capability >= 80) return 99 * 1024;
    return 48 * 1024;
}

}  // namespace

int driver::shared_opt_in_bytes() { return shared_opt_in(settings().capability_major, settings().capability_minor); }

API cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    std::lock_guard lock(driver::state().mutex);
    if (!driver::state().initialized) return CUDA_ERROR_NOT_INITIALIZED;
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    if (device < 0 || uint64_t(device) >= settings().devices) return CUDA_ERROR_INVALID_DEVICE;
    const auto& s = settings();
    switch (attribute) {
        case 1: *value = 1024; break;                       // threads of a block
        case 2: case 3: *value = 1024; break;               // block x, y
        case 4: *value = 64; break;                         // block z
        case 5: *value = 0x7fffffff; break;                 // grid x
        case 6: case 7: *value = 65535; break;              // grid y, z
        case 8: *value = 48 * 1024; break;                  // shared memory of a block
        case 9: *value = 65536; break;                      // constant memory
        case 10: *value = 32; break;                        // warp
        case 12: *value = 65536; break;                     // registers of a block
        case 13: *value = 1'000'000; break;                 // clock, kHz
        case 16: *value = 16; break;                        // multiprocessors
        case 18: *value = s.integrated != 0; break;         // integrated
        case 19: *value = 1; break;                         // can map host memory
        case 20: *value = 0; break;                         // compute mode: default
        case 31: *value = 1; break;                         // concurrent kernels
        case 32: *value = 0; break;                         // ECC
        case 36: *value = 3'200'000; break;                 // memory clock, kHz
        case 37: *value = 256; break;                       // bus width, bits
        case 38: *value = 4 << 20; break;                   // L2
        case 39: *value = 1536; break;                      // threads of a multiprocessor
        case 40: *value = 2; break;                         // copy engines
        case 41: *value = 1; break;                         // unified addressing
        case 75: *value = s.capability_major; break;
        case 76: *value = s.capability_minor; break;
        case 78: *value = 1; break;                         // stream priorities
        case 81: *value = driver::shared_opt_in_bytes() + 1024; break;  // shared memory of a multiprocessor
        case 82: *value = 65536; break;                     // registers of a multiprocessor
        case 83: *value = 0; break;                         // managed memory
        case 88: *value = s.pageable != 0; break;           // pageable memory access
        case 89: *value = s.pageable != 0; break;           // concurrent managed access
        case 91: *value = 1; break;                         // host pointer for registered memory
        case 95: *value = 0; break;                         // cooperative launch
        case 97: *value = driver::shared_opt_in_bytes(); break;
        case 99: *value = s.register_host != 0; break;      // host register
        case 100: *value = s.pageable != 0; break;          // through the host's page tables
        case 101: *value = 0; break;                        // direct managed access from the host
        case 102: *value = s.vmm != 0; break;               // virtual address management
        case 106: *value = 16; break;                       // blocks of a multiprocessor
        case 111: *value = 1024; break;                     // reserved shared memory of a block
        case 113: *value = s.register_host != 0; break;     // read-only host register
        case 115: *value = 0; break;                        // memory pools
        default:
            // What the emulator knows nothing of is not there; numbers beyond the manual's are an error.
            if (attribute < 1 || attribute > 170) return CUDA_ERROR_INVALID_VALUE;
            *value = 0;
    }
    return CUDA_SUCCESS;
}
