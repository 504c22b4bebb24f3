// Tests of the emulator against plain loops, and of how it ends the process. scripts/emulator.sh --test runs them.
#include "test.hpp"

#include <math.h>
#include <string.h>

namespace {

template <class T>
std::vector<T> numbers(size_t n, unsigned seed) {
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
        const unsigned want[6] = {50,    (lane ^ 3) * 10,    (lane + 4 > 31 ? lane : lane + 4) * 10, (lane % 8 < 4 ? lane : lane - 4) * 10,
                                  votes, 2 * (lane ^ 16) + 1};
        for (unsigned i = 0; i < 6; i++)
            check(got[lane * 6 + i] == want[i], "lane %u, case %u: %u, expected %u", lane, i, got[lane * 6 + i], want[i]);
    }
}

void packed_numbers() {
    Device d;
    Array<unsigned> out(3);
    d.run("test_packed", {1}, {32}, 0, out.address());
    const auto got = out.read();
    // 1031 - 1152 and 1224 - 1152 in f16; 143 - 128 and 133 - 128 in bf16.
    const unsigned want[3] = {0x77114422, 0xd7905480, 0x417040a0};
    for (unsigned i = 0; i < 3; i++) check(got[i] == want[i], "case %u: %08x, expected %08x", i, got[i], want[i]);
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
                    bits.push_back(!half    ? u >> 16
                                   : v == 0 ? 0
                                            : (u >> 16 & 0x8000) | (((u >> 23 & 0xff) - 112) << 10 | (u >> 13 & 0x3ff)));
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

}  // namespace

int main() {
    // What ends the process is tried in children, which are made while there is one thread.
    std::vector<Test> tests = {TEST(divergence_is_fatal), TEST(overruns_are_fatal), TEST(endless_kernels_are_fatal)};
    const std::vector<Test> blocks = {
        TEST(indices_and_blocks),
        TEST(arithmetic_in_order),
        TEST(block_sums),
        TEST(shuffles),
        TEST(packed_numbers),
        TEST(atomics),
        TEST(tensor_core_products),
        TEST(copies_happen_at_their_wait),
        TEST(a_missing_barrier_shows),
    };
    for (const auto& more : {driver_tests_in_children, blocks, driver_tests}) tests.insert(tests.end(), more.begin(), more.end());
    return run_tests(tests);
}
