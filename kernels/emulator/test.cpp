// Tests of the emulator and of the stand-in driver, against the driver's manual and plain loops. scripts/emulator.sh --test runs them.
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "cuda_types.hpp"
#include "driver_api.hpp"
#include "test.hpp"

namespace {

template <class T> std::vector<T> numbers(size_t n, unsigned seed) {
    std::vector<T> values(n);
    for (T& value : values) {
        seed = seed * 1664525 + 1013904223;
        value = T(int(seed >> 24) - 128) / T(16);
    }
    return values;
}

void indices_and_blocks() {
    Device d;
    Array<unsigned> out(2 * 3 * 2 * 4 * 2 * 3);
    d.run("test_indices", {2, 3, 2}, {4, 2, 3}, 0, out.address(), unsigned(out.size()));
    const auto got = out.read();
    for (unsigned i = 0; i < got.size(); i++) check(got[i] == i + 4000000, "element %u is %u", i, got[i]);
}

void arithmetic_in_order() {
    Device d;
    const auto x = numbers<float>(1000, 1), y = numbers<float>(1000, 2);
    Array<float> dx(x), dy(y);
    for (int i = 0; i < 2; i++) d.run("test_axpy", {4}, {256}, 0, dy.address(), dx.address(), 1000u, 0.5f);
    const auto got = dy.read();
    for (size_t i = 0; i < got.size(); i++) check(got[i] == y[i] + 0.5f * x[i] + 0.5f * x[i], "element %zu is %g", i, double(got[i]));
}

void block_sums() {
    Device d;
    const auto x = numbers<float>(5 * 256, 3);
    Array<float> dx(x), sums(5);
    d.run("test_block_sum", {5}, {256}, 0, sums.address(), dx.address());
    const auto got = sums.read();
    for (size_t b = 0; b < 5; b++) {
        float want = 0;
        for (size_t i = 0; i < 256; i++) want += x[b * 256 + i];
        check(got[b] == want, "block %zu: %g, expected %g", b, double(got[b]), double(want));
    }
}

void shuffles() {
    Device d;
    Array<unsigned> out(32 * 6);
    d.run("test_shuffles", {1}, {32}, 0, out.address());
    const auto got = out.read();
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane += 3) votes |= 1u << lane;
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned want[6] = {50, (lane ^ 3) * 10, (lane + 4 > 31 ? lane : lane + 4) * 10, (lane % 8 < 4 ? lane : lane - 4) * 10, votes, 2 * (lane ^ 16) + 1};
        for (unsigned i = 0; i < 6; i++) check(got[lane * 6 + i] == want[i], "lane %u, case %u: %u, expected %u", lane, i, got[lane * 6 + i], want[i]);
    }
}

void atomics() {
    Device d;
    Array<float> sum(std::vector<float>{0});
    d.run("test_atomics", {40}, {256}, 0, sum.address());
    check(sum.read()[0] == 40 * 255 * 128, "the sum is %g", double(sum.read()[0]));
}

// Numbers that f16, bf16 and tf32 all hold exactly, so that products must be exact too.
void tensor_core_products() {
    const auto a = numbers<float>(256, 5), b = numbers<float>(128, 6);
    struct Kind {
        const char* kernel;
        unsigned k;
        int mantissa_bits;
    };
    for (const Kind& kind : {Kind{"test_multiply_f16", 16, 10}, Kind{"test_multiply_bf16", 16, 7}, Kind{"test_multiply_tf32", 8, 0}}) {
        Device d;
        Array<float> c(128);
        if (kind.mantissa_bits == 0) {
            Array<float> da(std::vector<float>(a.begin(), a.begin() + 128)), db(std::vector<float>(b.begin(), b.begin() + 64));
            d.run(kind.kernel, {1}, {32}, 0, c.address(), da.address(), db.address());
        } else {
            auto encode = [&](const std::vector<float>& values) {
                std::vector<unsigned short> bits;
                for (float v : values) {
                    unsigned u;
                    memcpy(&u, &v, 4);
                    const bool half = kind.mantissa_bits == 10;
                    bits.push_back(!half ? u >> 16 : v == 0 ? 0 : (u >> 16 & 0x8000) | (((u >> 23 & 0xff) - 112) << 10 | (u >> 13 & 0x3ff)));
                }
                return bits;
            };
            Array<unsigned short> da(encode(a)), db(encode(b));
            d.run(kind.kernel, {1}, {32}, 0, c.address(), da.address(), db.address());
        }
        const auto got = c.read();
        for (unsigned m = 0; m < 16; m++) {
            for (unsigned n = 0; n < 8; n++) {
                float want = 0;
                for (unsigned k = 0; k < kind.k; k++) want += a[m * kind.k + k] * b[k * 8 + n];
                check(got[m * 8 + n] == want, "%s: c[%u][%u] is %g, expected %g", kind.kernel, m, n, double(got[m * 8 + n]), double(want));
            }
        }
    }
}

void copies_happen_at_their_wait() {
    Device d;
    const auto x = numbers<float>(128, 7);
    Array<float> dx(x), y(128);
    d.run("test_copy", {1}, {32}, 0, y.address(), dx.address(), 1u);
    auto got = y.read();
    for (size_t i = 0; i < 128; i++) check(got[i] == (i < 124 ? x[i] : 0.0f), "waited for: element %zu is %g", i, double(got[i]));
    d.run("test_copy", {1}, {32}, 0, y.address(), dx.address(), 0u);
    got = y.read();
    for (size_t i = 0; i < 128; i++) check(isnan(got[i]), "not waited for: element %zu is %g", i, double(got[i]));
    d.run("test_copy_groups", {1}, {32}, 0, y.address(), dx.address());
    got = y.read();
    check(got[0] == x[0], "the older group was waited for, but is %g", double(got[0]));
    check(isnan(got[1]), "the younger group was not waited for, but is %g", double(got[1]));
}

void a_missing_barrier_shows() {
    Device d;
    Array<float> x(std::vector<float>(64, 1.0f)), y(128);
    d.run("test_no_barrier", {2}, {64}, 0, y.address(), x.address());
    const auto got = y.read();
    size_t missing = 0;
    for (float v : got) missing += isnan(v);
    check(missing >= 64, "only %zu of 128 elements are missing", missing);
}

void divergence_is_fatal() {
    dies("threads 0-39, 41-63 wait at __syncthreads", "have left the kernel", [] {
        Device d;
        Array<float> y(64);
        d.run("test_leave_before_barrier", {1}, {64}, 0, y.address());
    });
    dies("barrier divergence", "kernel test_two_barriers, block (0, 0, 0)", [] {
        Device d;
        Array<float> y(64);
        d.run("test_two_barriers", {1}, {64}, 0, y.address());
    });
    dies("threads 0-15 wait at a shuffle", "threads 16-31 have left", [] {
        Device d;
        Array<unsigned> y(32);
        d.run("test_half_a_warp_shuffles", {1}, {32}, 0, y.address());
    });
}

void overruns_are_fatal() {
    dies("kernel test_shared_overrun", "byte 384 of the shared array tile", [] {
        Device d;
        Array<float> y(32);
        d.run("test_shared_overrun", {1}, {32}, 0, y.address(), 96u);
    });
    dies("kernel test_dynamic_shared", "byte 128 of the shared array dynamic shared memory", [] {
        Device d;
        Array<float> y(32);
        d.run("test_dynamic_shared", {1}, {32}, 128, y.address(), 32);
    });
    dies("before the start", "dynamic shared memory", [] {
        Device d;
        Array<float> y(32);
        d.run("test_dynamic_shared", {1}, {32}, 128, y.address(), -1);
    });
    dies("kernel test_write", "of a device allocation of 128 bytes", [] {
        Device d;
        Array<float> y(32);
        d.run("test_write", {1}, {32}, 0, y.address(), 1024ull);
    });
    dies("kernel test_write, block (0, 0, 0), thread (3, 0, 0)", "device memory that were freed", [] {
        Device d;
        CUdeviceptr address = 0;
        cuMemAlloc_v2(&address, 4096);
        cuMemFree_v2(address);
        d.run("test_write", {1}, {32}, 0, address, 0ull);
    });
    dies("kernel test_deep_stack", "", [] {
        Device d;
        Array<float> y(32);
        d.run("test_deep_stack", {1}, {32}, 0, y.address(), 5u);
    });
}

void endless_kernels_are_fatal() {
    dies("does not seem to end", "kernel test_endless", [] {
        espalier_emulator_configure("steps=1000");
        Device d;
        Array<float> y(32);
        d.run("test_endless", {1}, {32}, 0, y.address(), 1u);
    });
    dies("does not seem to end", "kernel test_endless", [] {
        espalier_emulator_configure("seconds=1");
        Device d;
        Array<float> y(32);
        d.run("test_endless", {1}, {32}, 0, y.address(), 0u);
    });
}

void launch_limits() {
    Device d;
    Array<float> y(32);
    const CUdeviceptr a = y.address();
    expect(CUDA_ERROR_INVALID_VALUE, d.try_run("test_write", {1}, {64}, 0, a, 0ull), "more threads than the launch bounds");
    expect(CUDA_ERROR_INVALID_VALUE, d.try_run("test_write", {0}, {32}, 0, a, 0ull), "an empty grid");
    expect(CUDA_ERROR_INVALID_VALUE, d.try_run("test_write", {1, 65536}, {32}, 0, a, 0ull), "a grid too high");
    expect(CUDA_ERROR_INVALID_VALUE, d.try_run("test_dynamic_shared", {1}, {32}, 50000, a, 0), "50000 bytes of shared memory without asking");
    const CUfunction f = d.function("test_dynamic_shared");
    expect(CUDA_ERROR_INVALID_VALUE, cuFuncSetAttribute(f, 8, 300000), "more shared memory than the device has");
    expect(CUDA_SUCCESS, cuFuncSetAttribute(f, 8, 50000), "asking for 50000 bytes");
    expect(CUDA_SUCCESS, d.try_run("test_dynamic_shared", {1}, {32}, 50000, a, 0), "50000 bytes of shared memory");
    CUfunction none = nullptr;
    expect(CUDA_ERROR_NOT_FOUND, cuModuleGetFunction(&none, d.module, "no_such_kernel"), "a kernel that is not there");
    CUmodule module = nullptr;
    const char text[64] = "this is no image";
    expect(CUDA_ERROR_INVALID_IMAGE, cuModuleLoadData(&module, text), "an image without a magic number");
    expect(CUDA_SUCCESS, cuCtxSynchronize(), "the context after refused calls");
}

void allocation_and_copies() {
    espalier_emulator_configure("memory=1048576,fail_alloc=3");
    Device d;
    CUdeviceptr a = 0, b = 0;
    size_t free = 0, total = 0;
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAlloc_v2(&a, 0), "nothing");
    expect(CUDA_SUCCESS, cuMemAlloc_v2(&a, 1000), "1000 bytes");
    check(a % 256 == 0, "%llx is not a multiple of 256", a);
    expect(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&b, 1 << 20), "more than there is");
    expect(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&b, 1000), "the third allocation");
    expect(CUDA_SUCCESS, cuMemAlloc_v2(&b, 1000), "the fourth allocation");
    cuMemGetInfo_v2(&free, &total);
    check(total == 1048576 && free == total - 2048, "%zu of %zu bytes are free", free, total);
    std::vector<float> host(250, 1.0f), back(250);
    expect(CUDA_SUCCESS, cuMemcpyDtoH_v2(back.data(), a, 1000), "reading fresh memory");
    check(isnan(back[0]) && isnan(back[249]), "fresh memory is %g", double(back[0]));
    expect(CUDA_SUCCESS, cuMemcpyHtoD_v2(a, host.data(), 1000), "a copy to the device");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(a, host.data(), 1001), "a copy that is too long");
    expect(CUDA_SUCCESS, cuMemcpyDtoD_v2(b, a, 1000), "a copy on the device");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemsetD32_v2(b, 0, 251), "a fill that is too long");
    expect(CUDA_SUCCESS, cuMemsetD32_v2(b + 4, 0, 249), "a fill");
    expect(CUDA_SUCCESS, cuMemcpyDtoH_v2(back.data(), b, 1000), "a copy to the host");
    check(back[0] == 1 && back[1] == 0 && back[249] == 0, "%g %g %g", double(back[0]), double(back[1]), double(back[249]));
    expect(CUDA_SUCCESS, cuMemFree_v2(a), "a free");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(a), "a second free");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(back.data(), a, 4), "reading freed memory");
    cuMemFree_v2(b);
    dies("overlap", "", [] {
        Device d;
        CUdeviceptr a = 0;
        cuMemAlloc_v2(&a, 1000);
        cuMemcpyDtoD_v2(a, a + 4, 100);
    });
    espalier_emulator_configure("");
}

void host_registration() {
    Device d;
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    char* memory = static_cast<char*>(mmap(nullptr, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    float* numbers = reinterpret_cast<float*>(memory);
    for (int i = 0; i < 256; i++) numbers[i] = float(i);
    expect(CUDA_SUCCESS, cuMemHostRegister_v2(memory, 2 * page, 0), "two pages");
    expect(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, cuMemHostRegister_v2(memory + page, 2 * page, 0), "a page twice");
    CUdeviceptr address = 0;
    expect(CUDA_SUCCESS, cuMemHostGetDevicePointer_v2(&address, memory, 0), "its device address");
    Array<float> y(std::vector<float>(256, 1.0f));
    d.run("test_axpy", {1}, {256}, 0, y.address(), address, 256u, 1.0f);
    check(y.read()[255] == 256, "a kernel read %g", double(y.read()[255]));
    expect(CUDA_SUCCESS, cuMemHostUnregister(memory), "unregistering");
    expect(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, cuMemHostUnregister(memory), "unregistering twice");
    mprotect(memory, page, PROT_READ);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemHostRegister_v2(memory, page, 0), "a read-only page");
    expect(CUDA_SUCCESS, cuMemHostRegister_v2(memory, page, 8), "a read-only page, registered as such");
    expect(CUDA_SUCCESS, cuMemHostUnregister(memory), "unregistering it");
    // What is not registered, this device cannot read: the kernel fails, and everything after it.
    expect(CUDA_SUCCESS, d.try_run("test_axpy", {1}, {256}, 0, y.address(), reinterpret_cast<CUdeviceptr>(memory), 256u, 1.0f), "the launch");
    expect(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize(), "the wait");
    CUdeviceptr more = 0;
    expect(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemAlloc_v2(&more, 4), "an allocation after it");
    espalier_emulator_configure("pageable=1");
    d.run("test_axpy", {1}, {256}, 0, y.address(), reinterpret_cast<CUdeviceptr>(memory), 256u, 1.0f);
    check(y.read()[255] == 511, "a kernel read pageable memory: %g", double(y.read()[255]));
    espalier_emulator_configure("");
    munmap(memory, 4 * page);
}

void virtual_memory() {
    espalier_emulator_configure("memory=8388608");
    Device d;
    const CUmemAllocationProp properties{1, 0, {1, 0}, nullptr, 0, 0, 0, {}};
    const CUmemAccessDesc access{{1, 0}, 3};
    size_t granule = 0;
    expect(CUDA_SUCCESS, cuMemGetAllocationGranularity(&granule, &properties, 0), "the granularity");
    check(granule == 2 << 20, "it is %zu", granule);
    CUdeviceptr base = 0;
    CUmemGenericAllocationHandle first = 0, second = 0, third = 0;
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&base, granule + 4096, 0, 0, 0), "a range that is no multiple of it");
    expect(CUDA_SUCCESS, cuMemAddressReserve(&base, 4 * granule, 0, 0, 0), "a range");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&first, 4096, &properties, 0), "memory that is no multiple of it");
    expect(CUDA_SUCCESS, cuMemCreate(&first, granule, &properties, 0), "a granule");
    expect(CUDA_SUCCESS, cuMemCreate(&second, 2 * granule, &properties, 0), "two granules");
    expect(CUDA_ERROR_OUT_OF_MEMORY, cuMemCreate(&third, 2 * granule, &properties, 0), "two more than there are");
    expect(CUDA_SUCCESS, cuMemMap(base, granule, 0, first, 0), "the first");
    expect(CUDA_ERROR_ALREADY_MAPPED, cuMemMap(base, 2 * granule, 0, second, 0), "over the first");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemMap(base + granule, granule, 0, second, 0), "half of the second");
    expect(CUDA_SUCCESS, cuMemMap(base + granule, 2 * granule, 0, second, 0), "the second");
    unsigned value = 7;
    expect(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(base, &value, 4), "a copy before access was given");
    expect(CUDA_SUCCESS, cuMemSetAccess(base, 3 * granule, &access, 1), "access");
    expect(CUDA_SUCCESS, cuMemcpyHtoD_v2(base + 3 * granule - 4, &value, 4), "a copy to the last bytes");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(base + 3 * granule - 2, &value, 4), "a copy past them");
    Array<float> sums(1);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(base + granule, granule), "half a mapping");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressFree(base, 4 * granule), "a range with mappings");
    expect(CUDA_SUCCESS, cuMemRelease(second), "releasing what is mapped");
    expect(CUDA_SUCCESS, cuMemcpyDtoH_v2(&value, base + 3 * granule - 4, 4), "reading it");
    check(value == 7, "it is %u", value);
    expect(CUDA_SUCCESS, cuMemUnmap(base + granule, 2 * granule), "unmapping the second");
    check(espalier_emulator_counter("bytes_mapped") == granule, "mapped bytes are counted");
    expect(CUDA_SUCCESS, cuMemCreate(&third, 2 * granule, &properties, 0), "its memory again");
    expect(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(&value, base + 3 * granule - 4, 4), "reading what is unmapped");
    expect(CUDA_SUCCESS, cuMemUnmap(base, granule), "unmapping the first");
    expect(CUDA_SUCCESS, cuMemRelease(first), "releasing it");
    expect(CUDA_SUCCESS, cuMemRelease(third), "releasing the third");
    expect(CUDA_SUCCESS, cuMemAddressFree(base, 4 * granule), "the range");
    espalier_emulator_configure("vmm=0");
    expect(CUDA_ERROR_NOT_SUPPORTED, cuMemCreate(&first, granule, &properties, 0), "a device without it");
    espalier_emulator_configure("");
}

CUstream new_stream() {
    CUstream stream = nullptr;
    expect(CUDA_SUCCESS, cuStreamCreate(&stream, 1), "a stream");
    return stream;
}

void graphs() {
    Device d;
    d.stream = new_stream();
    Array<float> x(std::vector<float>(256, 1.0f)), y(std::vector<float>(256, 0.0f));
    float scale = 2;
    expect(CUDA_SUCCESS, cuStreamBeginCapture_v2(d.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "a capture");
    d.run("test_axpy", {1}, {256}, 0, y.address(), x.address(), 256u, scale);
    scale = 1000;  // arguments are copied at the capture
    d.run("test_axpy", {1}, {256}, 0, y.address(), x.address(), 256u, 0.5f);
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;
    expect(CUDA_SUCCESS, cuStreamEndCapture(d.stream, &graph), "its end");
    expect(CUDA_SUCCESS, cuGraphInstantiateWithFlags(&exec, graph, 0), "a graph");
    check(y.read()[0] == 0, "capturing ran the kernel: %g", double(y.read()[0]));
    for (int i = 0; i < 3; i++) expect(CUDA_SUCCESS, cuGraphLaunch(exec, d.stream), "a launch");
    expect(CUDA_SUCCESS, cuStreamSynchronize(d.stream), "the wait");
    check(y.read()[255] == 7.5f, "three launches make %g", double(y.read()[255]));
    // A graph of the same kind updates it; another does not.
    CUgraph other = nullptr;
    CUgraphExecUpdateResultInfo info{};
    cuStreamBeginCapture_v2(d.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    d.run("test_axpy", {1}, {256}, 0, y.address(), x.address(), 256u, 1.0f);
    cuStreamEndCapture(d.stream, &other);
    expect(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, cuGraphExecUpdate_v2(exec, other, &info), "an update with fewer nodes");
    expect(CUDA_SUCCESS, cuGraphExecUpdate_v2(exec, graph, &info), "an update");
    for (CUgraph g : {graph, other}) expect(CUDA_SUCCESS, cuGraphDestroy(g), "its end");
    expect(CUDA_SUCCESS, cuGraphExecDestroy(exec), "the graph's end");
    cuStreamDestroy_v2(d.stream);
    d.stream = nullptr;
}

void capture_refuses_what_waits() {
    Device d;
    d.stream = new_stream();
    Array<float> x(std::vector<float>(256, 1.0f));
    float host = 0;
    CUdeviceptr address = 0;
    CUevent outside = nullptr;
    cuEventCreate(&outside, 2);
    cuEventRecord(outside, nullptr);
    struct Refused {
        const char* name;
        CUresult error;
        std::function<CUresult()> call;
    };
    const std::vector<Refused> refused = {
        {"an allocation", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuMemAlloc_v2(&address, 256); }},
        {"a free", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuMemFree_v2(x.address()); }},
        {"a wait for the stream", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuStreamSynchronize(d.stream); }},
        {"a wait for the context", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuCtxSynchronize(); }},
        {"a blocking copy", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, [&] { return cuMemcpyDtoH_v2(&host, x.address(), 4); }},
        {"an event from outside", CUDA_ERROR_STREAM_CAPTURE_ISOLATION, [&] { return cuStreamWaitEvent(d.stream, outside, 0); }},
    };
    for (const Refused& r : refused) {
        expect(CUDA_SUCCESS, cuStreamBeginCapture_v2(d.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "a capture");
        expect(r.error, r.call(), r.name);
        expect(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, d.try_run("test_axpy", {1}, {256}, 0, x.address(), x.address(), 0u, 1.0f), "a launch after it");
        CUgraph graph = reinterpret_cast<CUgraph>(1);
        expect(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(d.stream, &graph), r.name);
        check(graph == nullptr, "%s: there is a graph", r.name);
    }
    // Another thread may allocate meanwhile, and may not end the capture.
    cuStreamBeginCapture_v2(d.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    std::thread([&] {
        cuCtxSetCurrent(d.context);
        expect(CUDA_SUCCESS, cuMemAlloc_v2(&address, 256), "an allocation by another thread");
        CUgraph graph = nullptr;
        expect(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, cuStreamEndCapture(d.stream, &graph), "the end by another thread");
    }).join();
    CUgraph graph = nullptr;
    expect(CUDA_SUCCESS, cuStreamEndCapture(d.stream, &graph), "the end");
    cuGraphDestroy(graph);
    // A fork that comes back is part of the graph; one that does not is refused.
    for (bool join : {true, false}) {
        CUstream side = new_stream();
        CUevent fork = nullptr, joined = nullptr;
        cuEventCreate(&fork, 2);
        cuEventCreate(&joined, 2);
        cuStreamBeginCapture_v2(d.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        expect(CUDA_SUCCESS, cuEventRecord(fork, d.stream), "a record");
        expect(CUDA_SUCCESS, cuStreamWaitEvent(side, fork, 0), "the fork");
        expect(CUDA_SUCCESS, cuMemsetD32Async(x.address(), 0, 256, side), "work on it");
        if (join) {
            expect(CUDA_SUCCESS, cuEventRecord(joined, side), "a record on it");
            expect(CUDA_SUCCESS, cuStreamWaitEvent(d.stream, joined, 0), "the join");
        }
        expect(join ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(d.stream, &graph), join ? "joined" : "not joined");
        if (join) {
            size_t nodes = 0;
            cuGraphGetNodes(graph, nullptr, &nodes);
            check(nodes == 1, "the graph has %zu nodes", nodes);
            expect(CUDA_ERROR_CAPTURED_EVENT, cuEventSynchronize(joined), "a wait for a captured event");
            cuGraphDestroy(graph);
        }
        for (CUevent event : {fork, joined}) cuEventDestroy_v2(event);
        cuStreamDestroy_v2(side);
    }
    cuEventDestroy_v2(outside);
    cuMemFree_v2(address);
    cuStreamDestroy_v2(d.stream);
    d.stream = nullptr;
}

void lazy_streams_run_when_waited_for() {
    espalier_emulator_configure("lazy=1");
    Device d;
    CUstream side = new_stream();
    d.stream = new_stream();
    Array<float> x(std::vector<float>(256, 1.0f)), y(std::vector<float>(256, 0.0f));
    void* pinned = nullptr;
    cuMemAllocHost_v2(&pinned, 1024);
    float* host = static_cast<float*>(pinned);
    for (int i = 0; i < 256; i++) host[i] = 3;
    // Pinned memory is read when the stream gets there: a change before that shows.
    expect(CUDA_SUCCESS, cuMemcpyHtoDAsync_v2(x.address(), host, 1024, side), "a copy");
    host[0] = 4;
    CUevent copied = nullptr;
    cuEventCreate(&copied, 2);
    cuEventRecord(copied, side);
    expect(CUDA_ERROR_NOT_READY, cuEventQuery(copied), "the copy's event");
    cuStreamWaitEvent(d.stream, copied, 0);
    d.run("test_axpy", {1}, {256}, 0, y.address(), x.address(), 256u, 1.0f);
    expect(CUDA_SUCCESS, cuStreamSynchronize(d.stream), "the wait");
    const auto got = y.read();
    check(got[0] == 4 && got[1] == 3, "the kernel read %g and %g", double(got[0]), double(got[1]));
    cuEventDestroy_v2(copied);
    cuMemFreeHost(pinned);
    cuStreamDestroy_v2(side);
    cuStreamDestroy_v2(d.stream);
    d.stream = nullptr;
    espalier_emulator_configure("");
}

void injected_faults() {
    Device d;
    Array<float> y(std::vector<float>(32, 0.0f));
    const CUdeviceptr a = y.address();
    espalier_emulator_configure("fail_launch=2");
    expect(CUDA_SUCCESS, d.try_run("test_write", {1}, {32}, 0, a, 0ull), "the first launch");
    expect(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, d.try_run("test_write", {1}, {32}, 0, a, 0ull), "the second");
    expect(CUDA_SUCCESS, d.try_run("test_write", {1}, {32}, 0, a, 0ull), "the third");
    espalier_emulator_configure("fault_launch=1");
    expect(CUDA_SUCCESS, d.try_run("test_write", {1}, {32}, 0, a, 0ull), "a launch that faults");
    expect(CUDA_SUCCESS, d.try_run("test_write", {1}, {32}, 0, a, 0ull), "a launch after it");
    for (int i = 0; i < 2; i++) expect(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize(), "the wait");
    expect(CUDA_ERROR_ILLEGAL_ADDRESS, d.try_run("test_write", {1}, {32}, 0, a, 0ull), "a launch after the wait");
    espalier_emulator_configure("lose_device=2");
    expect(CUDA_SUCCESS, d.try_run("test_write", {1}, {32}, 0, a, 0ull), "before the loss");
    expect(CUDA_ERROR_DEVICE_UNAVAILABLE, d.try_run("test_write", {1}, {32}, 0, a, 0ull), "the loss");
    size_t free = 0, total = 0;
    CUdeviceptr more = 0;
    CUcontext context = nullptr;
    expect(CUDA_ERROR_DEVICE_UNAVAILABLE, cuMemGetInfo_v2(&free, &total), "memory after it");
    expect(CUDA_ERROR_DEVICE_UNAVAILABLE, cuMemAlloc_v2(&more, 4), "an allocation after it");
    expect(CUDA_ERROR_DEVICE_UNAVAILABLE, cuCtxSynchronize(), "a wait after it");
    expect(CUDA_ERROR_DEVICE_UNAVAILABLE, cuDevicePrimaryCtxRetain(&context, 0), "a context after it");
    espalier_emulator_configure("reject_images=1");
    CUmodule module = nullptr;
    expect(CUDA_ERROR_NO_BINARY_FOR_GPU, cuModuleLoadData(&module, ptx), "the first image");
    espalier_emulator_configure("");
    expect(CUDA_SUCCESS, cuCtxSynchronize(), "the device is back");
}

void drivers_without_a_device() {
    struct Case {
        const char* settings;
        CUresult error;
    };
    for (const Case& c : {Case{"stub=1", CUDA_ERROR_STUB_LIBRARY}, Case{"devices=0", CUDA_ERROR_NO_DEVICE}}) {
        espalier_emulator_configure(c.settings);
        expect(c.error, cuInit(0), c.settings);
    }
    espalier_emulator_configure("driver=12020,capability=7.5,integrated=1,pageable=1");
    expect(CUDA_SUCCESS, cuInit(0), "an old driver");
    int driver = 0, major = 0, minor = 0, integrated = 0, pageable = 0;
    cuDriverGetVersion(&driver);
    cuDeviceGetAttribute(&major, 75, 0);
    cuDeviceGetAttribute(&minor, 76, 0);
    cuDeviceGetAttribute(&integrated, 18, 0);
    cuDeviceGetAttribute(&pageable, 88, 0);
    check(driver == 12020 && major == 7 && minor == 5 && integrated == 1 && pageable == 1, "%d %d.%d %d %d", driver, major, minor, integrated, pageable);
    char name[100];
    cuDeviceGetName(name, sizeof name, 0);
    check(strstr(name, "emulator") != nullptr, "the name `%s` does not say what it is", name);
    espalier_emulator_configure("");
}

void protected_memory() {
    dies("the host touched the", "of a device allocation", [] {
        espalier_emulator_configure("protect=1");
        Device d;
        Array<float> y(std::vector<float>(32, 0.0f));
        d.run("test_write", {1}, {32}, 0, y.address(), 0ull);
        if (y.read()[0] != 1) return;
        *reinterpret_cast<volatile float*>(y.address()) = 1;
    });
}

}  // namespace

int main() {
    // What ends the process is tried in children, which are made while there is one thread.
    const Test tests[] = {
        TEST(divergence_is_fatal), TEST(overruns_are_fatal), TEST(endless_kernels_are_fatal), TEST(protected_memory),
        TEST(allocation_and_copies), TEST(drivers_without_a_device), TEST(indices_and_blocks), TEST(arithmetic_in_order), TEST(block_sums),
        TEST(shuffles), TEST(atomics), TEST(tensor_core_products), TEST(copies_happen_at_their_wait), TEST(a_missing_barrier_shows),
        TEST(launch_limits), TEST(host_registration), TEST(virtual_memory), TEST(graphs), TEST(capture_refuses_what_waits),
        TEST(lazy_streams_run_when_waited_for), TEST(injected_faults),
    };
    return run_tests(tests);
}
