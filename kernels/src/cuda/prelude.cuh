// What every kernel file may use, and the only file that they include but for quantized.cuh.
//
// The same .cu files are compiled three ways: by nvcc, by NVRTC on a device that has only a driver (hence no headers at all), and by a
// C++20 compiler for the emulator. Whatever is not the same on all three stands here. On a device this file has everything. For the
// emulator it defines the types, the conversions and the reductions, and emulator.hpp, included in the middle, has the rest:
//
//   __global__ __device__ __forceinline__, threadIdx blockIdx blockDim gridDim, __syncthreads __syncwarp, __shfl_*_sync __ballot_sync,
//   atomicAdd, __threadfence, __ldg, __byte_perm, __expf, the C maths functions,
//   KERNEL EXPORT SHARED DYNAMIC_SHARED, cp_async_16 cp_async_commit cp_async_wait, ldmatrix_x4 ldmatrix_x4_trans,
//   mma_f16 mma_bf16 mma_tf32.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ON_DEVICE 1
#define VECTOR(BYTES) alignas(BYTES)
#else
#define ON_DEVICE 0
// Vectors are loaded from arrays of other types, which only nvcc allows without being told.
#define VECTOR(BYTES) __attribute__((aligned(BYTES), may_alias))
#endif

typedef unsigned char u8;
typedef unsigned short u16;  // also the bits of an f16 or a bf16
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef signed char i8;

// 8 and 16 bytes that one instruction loads or stores; the address must be a multiple of their size.
struct VECTOR(8) float2_ {
    float x, y;
};
struct VECTOR(16) float4_ {
    float x, y, z, w;
};
struct VECTOR(8) uint2_ {
    u32 x, y;
};
struct VECTOR(16) uint4_ {
    u32 x, y, z, w;
};

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

#if ON_DEVICE

#define DEVICE static __device__ __forceinline__

// A kernel of at most THREADS threads a block: KERNEL(256) name(float* y, u32 n) { ... } EXPORT(name)
//
// How many registers a thread gets is the compiler's choice, which may spill some to fit one more block into a multiprocessor. Kernels
// between `#define LEAST_BLOCKS , N` and `#define LEAST_BLOCKS` (each after an #undef) get what N blocks leave each.
#define KERNEL(THREADS) extern "C" __global__ __launch_bounds__(THREADS LEAST_BLOCKS) void
#define LEAST_BLOCKS
#define EXPORT(NAME)

// A static array in shared memory, and all dynamic shared memory; 128 bytes are a row of its 32 banks.
#define SHARED(T, NAME, COUNT) __shared__ __align__(128) T NAME[COUNT]
#define DYNAMIC_SHARED(T, NAME)                                 \
    extern __shared__ __align__(128) u8 dynamic_shared_bytes[]; \
    T* NAME = reinterpret_cast<T*>(dynamic_shared_bytes)

DEVICE u32 float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(u32 bits) { return __uint_as_float(bits); }

DEVICE u32 shared_address(const void* shared) { return static_cast<u32>(__cvta_generic_to_shared(shared)); }

// Starts to copy 16 bytes into shared memory past the registers and L1; where !valid, 16 zeros and nothing is read.
DEVICE void cp_async_16(void* shared, const void* global, bool valid) {
    const u32 bytes = valid ? 16u : 0u;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}
// Closes a group of copies.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are under way; a barrier must follow before other threads' copies are read.
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8x8 matrices of 16-bit numbers: lanes 8i..8i+7 name the rows of matrix i; lane t gets of row t/4 the numbers 2(t%4), 2(t%4)+1.
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// As ldmatrix_x4, each matrix transposed.
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// C [16, 8] += A [16, 16] B [16, 8] in f32. With g = lane / 4 and t = lane % 4:
// a0 = A[g][2t, 2t+1], a1 = A[g+8][2t..], a2 = A[g][2t+8..], a3 = A[g+8][2t+8..]; b0 = B[2t, 2t+1][g], b1 = B[2t+8, 2t+9][g];
// c0, c1 = C[g][2t, 2t+1], c2, c3 = C[g+8][2t, 2t+1]. The lower index is in the lower 16 bits.
DEVICE void mma_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// C [16, 8] += A [16, 8] B [8, 8]: a0 = A[g][t], a1 = A[g+8][t], a2 = A[g][t+4], a3 = A[g+8][t+4]; b0 = B[t][g], b1 = B[t+4][g].
DEVICE void mma_tf32(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 bytes that are read once: they need not push anything out of L1.
DEVICE uint4_ load_once_16(const void* global) {
    uint4_ v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
    return v;
}

// One or four numbers that another block of this launch has stored, past L1, which may hold what was there before.
DEVICE float load_stored(const float* global) {
    float x;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(global) : "memory");
    return x;
}
DEVICE float4_ load_stored_4(const float* global) {
    float4_ v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(global) : "memory");
    return v;
}

DEVICE float f16_to_f32(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
DEVICE u16 f32_to_f16(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
DEVICE u16 f32_to_bf16(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
// Two numbers as 16-bit ones, `low` in the lower half.
DEVICE u32 pack_f16(float low, float high) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
DEVICE u32 pack_bf16(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
// a * b + c of two numbers at once, rounded once.
DEVICE u32 fma_f16x2(u32 a, u32 b, u32 c) {
    u32 bits;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(bits) : "r"(a), "r"(b), "r"(c));
    return bits;
}
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 bits;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(bits) : "r"(a), "r"(b), "r"(c));
    return bits;
}
// The bits of the nearest number with 10 bits of mantissa, ties away from zero.
DEVICE u32 to_tf32(float x) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

#else

#define DEVICE static inline __attribute__((unused))

DEVICE u32 float_bits(float x) { return __builtin_bit_cast(u32, x); }
DEVICE float bits_float(u32 bits) { return __builtin_bit_cast(float, bits); }

#include "emulator.hpp"

DEVICE uint4_ load_once_16(const void* global) { return *static_cast<const uint4_*>(global); }
DEVICE float load_stored(const float* global) { return *global; }
DEVICE float4_ load_stored_4(const float* global) { return *reinterpret_cast<const float4_*>(global); }

DEVICE float f16_to_f32(u16 bits) {
    // Exponent and mantissa in an f32's place are the number over 2^112, subnormals included; only infinity and NaN need more.
    const float magnitude = bits_float(u32(bits & 0x7fffu) << 13) * bits_float((127u + 112u) << 23);
    const u32 all_ones = (bits & 0x7fffu) >= 0x7c00u ? 0x7f800000u : 0u;
    return bits_float(float_bits(magnitude) | all_ones | u32(bits & 0x8000u) << 16);
}
DEVICE u16 f32_to_f16(float x) {
    const u32 sign = (float_bits(x) >> 16) & 0x8000u, magnitude = float_bits(x) & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fffu;
    if (magnitude >= 0x47800000u) return u16(sign | 0x7c00u);  // 65536 and above
    if (magnitude < 0x38800000u) {                             // below 2^-14: subnormal, in units of 2^-24, rounded by the addition
        return u16(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u));
    }
    return u16(sign | ((magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}
DEVICE u16 f32_to_bf16(float x) {
    const u32 bits = float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return u16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
DEVICE u32 pack_f16(float low, float high) { return u32(f32_to_f16(low)) | u32(f32_to_f16(high)) << 16; }
DEVICE u32 pack_bf16(float low, float high) { return u32(f32_to_bf16(low)) | u32(f32_to_bf16(high)) << 16; }
// Rounded by way of f32, which changes nothing where the sum has at most 24 bits.
DEVICE u32 fma_f16x2(u32 a, u32 b, u32 c) {
    u16 bits[2];
    for (u32 i = 0; i < 2; i++) {
        const double product = double(f16_to_f32(u16(a >> 16 * i))) * f16_to_f32(u16(b >> 16 * i));
        bits[i] = f32_to_f16(float(product + f16_to_f32(u16(c >> 16 * i))));
    }
    return u32(bits[0]) | u32(bits[1]) << 16;
}
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u16 bits[2];
    for (u32 i = 0; i < 2; i++) {
        const double product = double(bits_float(a >> 16 * i << 16)) * bits_float(b >> 16 * i << 16);
        bits[i] = f32_to_bf16(float(product + bits_float(c >> 16 * i << 16)));
    }
    return u32(bits[0]) | u32(bits[1]) << 16;
}
DEVICE u32 to_tf32(float x) {
    const u32 bits = float_bits(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

#endif

DEVICE float bf16_to_f32(u16 bits) { return bits_float(u32(bits) << 16); }

DEVICE float infinity() { return bits_float(0x7f800000u); }

DEVICE u32 lane_index() { return threadIdx.x % WARP; }
DEVICE u32 warp_index() { return threadIdx.x / WARP; }

template <class T> DEVICE T minimum(T a, T b) { return b < a ? b : a; }
template <class T> DEVICE T maximum(T a, T b) { return a < b ? b : a; }
template <class T> DEVICE T ceil_div(T a, T b) { return (a + b - 1) / b; }

// The sum (the largest) of a warp's numbers, in every lane, always in the same order.
template <class T> DEVICE T warp_sum(T x) {
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}
template <class T> DEVICE T warp_max(T x) {
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) x = maximum(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// The sum (the largest) of a block's numbers in every thread. Blocks are one-dimensional and of whole warps; `shared [32]` may be used
// again at once. Every thread of the block must call it.
template <class T> DEVICE T block_sum(T x, T* shared) {
    const u32 warps = blockDim.x / WARP;
    x = warp_sum(x);
    if (lane_index() == 0) shared[warp_index()] = x;
    __syncthreads();
    T sum = shared[0];
    for (u32 i = 1; i < warps; i++) sum += shared[i];
    __syncthreads();
    return sum;
}
template <class T> DEVICE T block_max(T x, T* shared) {
    const u32 warps = blockDim.x / WARP;
    x = warp_max(x);
    if (lane_index() == 0) shared[warp_index()] = x;
    __syncthreads();
    T largest = shared[0];
    for (u32 i = 1; i < warps; i++) largest = maximum(largest, shared[i]);
    __syncthreads();
    return largest;
}

// Whether this block is the last of `blocks` that call this with the same counter, which is 0 before and afterwards. It may then read by
// load_stored what all of them have stored before: one launch is enough to make parts and to add them up, and the parts are added in their
// order, whichever block comes last. Every thread of the block must call it; `shared [1]` may be used again at once.
DEVICE bool is_last_block(u32* counter, u32 blocks, u32* shared) {
    __syncthreads();
    if (threadIdx.x == 0) {
        // For the whole block: its barriers carry over what these fences order.
        __threadfence();
        const bool last = atomicAdd(counter, 1u) == blocks - 1;
        if (last) {
            __threadfence();
            *counter = 0;
        }
        *shared = last;
    }
    __syncthreads();
    const bool last = *shared != 0;
    __syncthreads();
    return last;
}

// Tiles of matrices in shared memory, for the products.

// A tile of ROWS rows of CHUNKS chunks of 16 bytes. Swizzled: the eight rows of one chunk that ldmatrix reads at once lie in different
// banks. Padded by 8 words a row: so do the words that a quarter of a warp reads from four rows by 8- or 16-byte loads.
template <u32 ROWS_, u32 CHUNKS_, bool SWIZZLED> struct Tile {
    static constexpr u32 ROWS = ROWS_, CHUNKS = CHUNKS_, PITCH = SWIZZLED ? CHUNKS : CHUNKS + 2, BYTES = ROWS * PITCH * 16;
    static_assert(!SWIZZLED || CHUNKS == 4 || CHUNKS % 8 == 0, "only these turns are conflict-free");

    // Where a chunk stands, in chunks.
    DEVICE u32 at(u32 row, u32 chunk) {
        if (!SWIZZLED) return row * PITCH + chunk;
        return row * PITCH + (CHUNKS == 4 ? chunk ^ ((row >> 1) & 3) : chunk ^ (row & 7));
    }
};

// The four numbers of matrix [outers][inners] from [outer][inner] on; zeros outside. `vector`: inners % 4 == 0 and the matrix is aligned.
DEVICE float4_ load_4(const float* matrix, u32 outer, u32 inner, u32 outers, u32 inners, bool vector) {
    float4_ v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (outer >= outers || inner >= inners) return v;
    const float* from = matrix + u64(outer) * inners + inner;
    if (vector) return *reinterpret_cast<const float4_*>(from);
    v.x = from[0];
    if (inner + 1 < inners) v.y = from[1];
    if (inner + 2 < inners) v.z = from[2];
    if (inner + 3 < inners) v.w = from[3];
    return v;
}

// Starts to copy the tile that begins at [outer0][inner0] of `matrix` [outers][inners]; what lies outside becomes zero. `vector`: a row is
// whole chunks and the matrix is aligned, so that cp.async may be used; else the copy is done at once, number by number.
template <class TILE, u32 THREADS, class T>
DEVICE void load_tile(T* shared, const T* matrix, u32 outer0, u32 inner0, u32 outers, u32 inners, bool vector) {
    constexpr u32 NUMBERS = 16 / sizeof(T);
    constexpr u32 COUNT = TILE::ROWS * TILE::CHUNKS;
    static_assert(COUNT % THREADS == 0 || COUNT < THREADS, "every thread copies the same number of chunks, or at most one");
    if (vector) {
#pragma unroll
        for (u32 i = 0; i < (COUNT + THREADS - 1) / THREADS; i++) {
            const u32 index = threadIdx.x + i * THREADS;
            if (COUNT < THREADS && index >= COUNT) break;
            const u32 row = index / TILE::CHUNKS, chunk = index % TILE::CHUNKS;
            const u32 outer = outer0 + row, inner = inner0 + chunk * NUMBERS;
            const bool inside = outer < outers && inner < inners;
            cp_async_16(shared + TILE::at(row, chunk) * NUMBERS, inside ? matrix + u64(outer) * inners + inner : matrix, inside);
        }
    } else {
#pragma unroll 1
        for (u32 index = threadIdx.x; index < COUNT * NUMBERS; index += THREADS) {
            const u32 row = index / (TILE::CHUNKS * NUMBERS), column = index % (TILE::CHUNKS * NUMBERS);
            const u32 outer = outer0 + row, inner = inner0 + column;
            const bool inside = outer < outers && inner < inners;
            shared[TILE::at(row, column / NUMBERS) * NUMBERS + column % NUMBERS] = inside ? matrix[u64(outer) * inners + inner] : T(0);
        }
    }
}

// Bits of the argument `flags` of the products.
constexpr u32 ACCUMULATE = 1;  // add to what is there
constexpr u32 VECTOR_A = 2;    // 16-byte loads of A may be used
constexpr u32 VECTOR_B = 4;    // and of B, or of the weight
constexpr u32 VECTOR_C = 8;    // 16-byte stores of C may be used
constexpr u32 TRANSPOSE_A = 16;
constexpr u32 TRANSPOSE_B = 32;
constexpr u32 TRANSPOSE_SIDE = 64;  // an adapter's side is stored with its outputs as rows

// Stores four neighbours of a row of C [m, n], column a multiple of 4.
DEVICE void store_4(float* c, float4_ v, u32 row, u32 column, u32 m, u32 n, u32 flags) {
    if (row >= m || column >= n) return;
    float* to = c + u64(row) * n + column;
    if (flags & VECTOR_C) {
        float4_* at = reinterpret_cast<float4_*>(to);
        if (flags & ACCUMULATE) v = {v.x + at->x, v.y + at->y, v.z + at->z, v.w + at->w};
        *at = v;
    } else {
        const float numbers[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (column + i < n) to[i] = numbers[i] + (flags & ACCUMULATE ? to[i] : 0.0f);
        }
    }
}

// A warp's block of 32 x 32 numbers of C passes through shared memory, so that rows of 128 bytes are stored, whichever lane had them.
constexpr u32 BLOCK_PITCH = 36, BLOCK_NUMBERS = 32 * BLOCK_PITCH;
DEVICE void store_block(float* c, const float* block /* [32][BLOCK_PITCH] */, u32 row, u32 column, u32 m, u32 n, u32 flags) {
    __syncwarp();
#pragma unroll 1
    for (u32 r = lane_index() / 8; r < 32; r += 4) {
        const float4_ v = *reinterpret_cast<const float4_*>(block + r * BLOCK_PITCH + lane_index() % 8 * 4);
        store_4(c, v, row + r, column + lane_index() % 8 * 4, m, n, flags);
    }
    __syncwarp();
}
