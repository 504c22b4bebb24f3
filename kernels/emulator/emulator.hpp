// What kernels see when a C++20 compiler builds them for the emulator: CUDA's words for a thread, its block and its warp.
//
// prelude.cuh includes this file in its middle, after its own types (u8, u16, u32, u64). Every CUDA thread is a fibre (fibres.hpp); the
// threads of a block take turns on one OS thread and change only at barriers and warp operations, so that what a kernel forgets to wait
// for is not there yet. Whatever the hardware leaves undefined ends the process with a sentence (faults.hpp).
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// A place in a kernel's source. Barriers and warp operations must be met by all threads at the same one.
struct Site {
    const char* file;
    int line;
};
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// What a running fibre knows of itself.
struct Thread {
    Index thread, block, block_size, grid_size;
    unsigned lane;
};
// The fibre that runs on this OS thread; only valid inside a kernel.
extern thread_local Thread* current __attribute__((tls_model("initial-exec")));

void block_barrier(Site);
void warp_barrier(uint32_t mask, Site);
uint32_t warp_ballot(uint32_t mask, bool predicate, Site);
enum class Shuffle { from_lane, up, down, exclusive_or };
uint64_t warp_shuffle(Shuffle, uint32_t mask, uint64_t bits, int operand, int width, Site);

// 16 bytes, done at the wait; nothing is read where !valid.
void copy_async(void* shared, const void* global, bool valid, Site);
void copy_async_commit();
void copy_async_wait(unsigned groups_left);

void load_matrices(uint32_t* registers, const void* row, bool transposed, Site);
enum class Number { f16, bf16, tf32 };
void multiply(Number, float* c, const uint32_t* a, const uint32_t* b, Site);

// A declaration of a static shared array; every block has its own memory for it.
struct SharedArray {
    size_t bytes;
    const char* name;
    int line;
    int id = -1;
};
void* shared_array(SharedArray&);
void* dynamic_shared();
[[noreturn]] void trap(const char* message, Site);

// A kernel as EXPORT registers it.
struct Kernel {
    const char* name;
    void (*call)(void* const* arguments);
    const size_t* argument_bytes;
    const bool* argument_is_pointer;
    size_t arguments;
    unsigned max_threads;
};
// KERNEL notes the most threads of a block, EXPORT, which follows the kernel, takes the note.
int announce(unsigned max_threads, Site);
int add_kernel(const Kernel&, Site);

template <auto function>
struct Entry;
template <class... T, void (*function)(T...)>
struct Entry<function> {
    static constexpr size_t bytes[sizeof...(T) + 1] = {sizeof(T)..., 0};
    static constexpr bool is_pointer[sizeof...(T) + 1] = {std::is_pointer_v<T>..., false};
    template <size_t... I>
    static void call_with(void* const* arguments, std::index_sequence<I...>) {
        function(*static_cast<T*>(arguments[I])...);
    }
    static void call(void* const* arguments) { call_with(arguments, std::index_sequence_for<T...>{}); }
    static Kernel kernel(const char* name) { return {name, call, bytes, is_pointer, sizeof...(T), 0}; }
};

template <class T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8, "a warp exchanges values of at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <class T>
T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace emulator

#define EMULATOR_JOIN_(a, b) a##b
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_(a, b)

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline

#define KERNEL(THREADS)                                                                                                           \
    [[maybe_unused]] static const int EMULATOR_JOIN(announced_, __COUNTER__) = emulator::announce(THREADS, {__FILE__, __LINE__}); \
    extern "C" void
#define EXPORT(NAME)                                                          \
    [[maybe_unused]] static const int EMULATOR_JOIN(exported_, __COUNTER__) = \
        emulator::add_kernel(emulator::Entry<&NAME>::kernel(#NAME), {__FILE__, __LINE__});
#define SHARED(T, NAME, COUNT)                                                                       \
    constinit static emulator::SharedArray NAME##_declaration{sizeof(T) * (COUNT), #NAME, __LINE__}; \
    T(&NAME)[COUNT] = *static_cast<T(*)[COUNT]>(emulator::shared_array(NAME##_declaration))
#define DYNAMIC_SHARED(T, NAME) T* const NAME = static_cast<T*>(emulator::dynamic_shared())

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::current->block)
#define blockDim (emulator::current->block_size)
#define gridDim (emulator::current->grid_size)
constexpr int warpSize = 32;

static inline void __syncthreads(EMULATOR_SITE) { emulator::block_barrier({file, line}); }
static inline void __syncwarp(uint32_t mask = 0xffffffffu, EMULATOR_SITE) { emulator::warp_barrier(mask, {file, line}); }
static inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMULATOR_SITE) {
    return emulator::warp_ballot(mask, predicate != 0, {file, line});
}
static inline int __any_sync(uint32_t mask, int predicate, EMULATOR_SITE) {
    return emulator::warp_ballot(mask, predicate != 0, {file, line}) != 0;
}
static inline int __all_sync(uint32_t mask, int predicate, EMULATOR_SITE) {
    return emulator::warp_ballot(mask, predicate == 0, {file, line}) == 0;
}
template <class T>
static inline T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, EMULATOR_SITE) {
    using emulator::Shuffle;
    return emulator::from_bits<T>(emulator::warp_shuffle(Shuffle::from_lane, mask, emulator::to_bits(value), lane, width, {file, line}));
}
template <class T>
static inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
    using emulator::Shuffle;
    return emulator::from_bits<T>(emulator::warp_shuffle(Shuffle::up, mask, emulator::to_bits(value), int(delta), width, {file, line}));
}
template <class T>
static inline T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
    using emulator::Shuffle;
    return emulator::from_bits<T>(emulator::warp_shuffle(Shuffle::down, mask, emulator::to_bits(value), int(delta), width, {file, line}));
}
template <class T>
static inline T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, EMULATOR_SITE) {
    using emulator::Shuffle;
    return emulator::from_bits<T>(
        emulator::warp_shuffle(Shuffle::exclusive_or, mask, emulator::to_bits(value), lanes, width, {file, line}));
}

static inline void cp_async_16(void* shared, const void* global, bool valid, EMULATOR_SITE) {
    emulator::copy_async(shared, global, valid, {file, line});
}
static inline void cp_async_commit() { emulator::copy_async_commit(); }
template <int N>
static inline void cp_async_wait() {
    emulator::copy_async_wait(N);
}

static inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMULATOR_SITE) { emulator::load_matrices(r, row, false, {file, line}); }
static inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMULATOR_SITE) {
    emulator::load_matrices(r, row, true, {file, line});
}
static inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
    emulator::multiply(emulator::Number::f16, c, a, b, {file, line});
}
static inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
    emulator::multiply(emulator::Number::bf16, c, a, b, {file, line});
}
static inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_SITE) {
    emulator::multiply(emulator::Number::tf32, c, a, b, {file, line});
}

template <class T>
static inline T __ldg(const T* address) {
    return *address;
}
template <class T>
static inline T __ldcg(const T* address) {
    return *address;
}
template <class T>
static inline T __ldcs(const T* address) {
    return *address;
}
template <class T>
static inline void __stcs(T* address, T value) {
    *address = value;
}

// Blocks run on several OS threads, so that atomics are real ones.
template <class T>
static inline T atomicAdd(T* address, std::type_identity_t<T> value) {
    T before = *address;
    for (;;) {
        T after = before + value;
        if (__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return before;
    }
}
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}
#define __trap() emulator::trap("__trap was reached", {__FILE__, __LINE__})

static inline uint32_t __float_as_uint(float x) { return __builtin_bit_cast(uint32_t, x); }
static inline float __uint_as_float(uint32_t x) { return __builtin_bit_cast(float, x); }
static inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
static inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
// Byte i of the result is the byte of y:x, x the lower four, that the i-th four bits of the selector name.
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) result |= uint32_t(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}
static inline int __popc(uint32_t x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(uint32_t(x)); }
static inline int __ffs(int x) { return __builtin_ffs(x); }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// The C library has functions of these names of its own.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
template <class A, class B>
static inline std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
static inline std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}
