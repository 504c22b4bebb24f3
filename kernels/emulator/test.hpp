// What the emulator's tests are written with: checks that go on after a failure, children that must die, device arrays.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "driver_api.hpp"

struct Test {
    const char* name;
    void (*run)();
};
#define TEST(NAME) Test{#NAME, NAME}

inline size_t checks = 0, failures = 0;
inline const char* running = "";

inline void check(bool right, const char* format, ...) __attribute__((format(printf, 2, 3)));
inline void check(bool right, const char* format, ...) {
    checks++;
    if (right) return;
    failures++;
    printf("%s: ", running);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

inline void expect(CUresult want, CUresult got, const char* what) { check(got == want, "%s: error %u, expected %u", what, unsigned(got), unsigned(want)); }

// Runs `work` in a child, which must end by a signal after it wrote both texts to standard error.
inline void dies(const char* text, const char* and_text, const std::function<void()>& work) {
    int ends[2];
    if (pipe(ends) != 0) return check(false, "no pipe");
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        alarm(60);
        work();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char piece[4096];
    for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;) said.append(piece, size_t(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    check(WIFSIGNALED(status) && WTERMSIG(status) != SIGALRM, "`%s`: the process did not die (status %x)", text, unsigned(status));
    check(said.find(text) != std::string::npos, "`%s` was not said; this was: %s", text, said.c_str());
    check(said.find(and_text) != std::string::npos, "`%s` was not said; this was: %s", and_text, said.c_str());
}

// An image: the emulator looks at no more than that it is one.
inline const char ptx[] = "// stands for the kernels\n.version 8.0\n.target sm_80\n.address_size 64\n";

// A context of this thread, a module and a stream to run kernels on.
struct Device {
    CUcontext context = nullptr;
    CUmodule module = nullptr;
    CUstream stream = nullptr;

    Device() {
        expect(CUDA_SUCCESS, cuInit(0), "cuInit");
        expect(CUDA_SUCCESS, cuDevicePrimaryCtxRetain(&context, 0), "a context");
        expect(CUDA_SUCCESS, cuCtxSetCurrent(context), "the context");
        expect(CUDA_SUCCESS, cuModuleLoadData(&module, ptx), "a module");
    }
    ~Device() {
        cuModuleUnload(module);
        cuDevicePrimaryCtxRelease_v2(0);
    }
    // Found once: after a fault nothing can be looked up.
    std::map<std::string, CUfunction> functions;
    CUfunction function(const char* name) {
        CUfunction& f = functions[name];
        if (f) return f;
        expect(CUDA_SUCCESS, cuModuleGetFunction(&f, module, name), name);
        return f;
    }
    template <class... T> CUresult try_run(const char* name, std::vector<unsigned> grid, std::vector<unsigned> block, unsigned shared, T... arguments) {
        grid.resize(3, 1);
        block.resize(3, 1);
        void* pointers[] = {&arguments...};
        return cuLaunchKernel(function(name), grid[0], grid[1], grid[2], block[0], block[1], block[2], shared, stream, pointers, nullptr);
    }
    template <class... T> void run(const char* name, std::vector<unsigned> grid, std::vector<unsigned> block, unsigned shared, T... arguments) {
        expect(CUDA_SUCCESS, try_run(name, grid, block, shared, arguments...), name);
    }
};

// Numbers on the device.
template <class T> class Array {
public:
    explicit Array(size_t count) : count_(count) { expect(CUDA_SUCCESS, cuMemAlloc_v2(&address_, count * sizeof(T)), "an array"); }
    explicit Array(const std::vector<T>& values) : Array(values.size()) {
        expect(CUDA_SUCCESS, cuMemcpyHtoD_v2(address_, values.data(), values.size() * sizeof(T)), "its numbers");
    }
    ~Array() { cuMemFree_v2(address_); }
    Array(const Array&) = delete;
    CUdeviceptr address() const { return address_; }
    size_t size() const { return count_; }
    std::vector<T> read() const {
        std::vector<T> values(count_);
        expect(CUDA_SUCCESS, cuMemcpyDtoH_v2(values.data(), address_, count_ * sizeof(T)), "reading an array");
        return values;
    }

private:
    CUdeviceptr address_ = 0;
    size_t count_;
};

template <size_t N> int run_tests(const Test (&tests)[N]) {
    size_t failed = 0;
    for (const Test& test : tests) {
        const size_t before = failures;
        running = test.name;
        test.run();
        printf("%s %s\n", failures == before ? "ok    " : "FAILED", test.name);
        failed += failures != before;
    }
    printf("%zu tests, %zu checks, %zu tests failed\n", N, checks, failed);
    return failed > 0 || checks == 0;
}
