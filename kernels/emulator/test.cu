// Kernels that the emulator's own tests run: some right, most wrong on purpose.
#include "prelude.cuh"

// y[i] += scale * x[i]
KERNEL(256) test_axpy(float* y, const float* x, u32 n, float scale) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += scale * x[i];
}
EXPORT(test_axpy)

// out[thread] = where the thread is, packed
KERNEL(1024) test_indices(u32* out, u32 n) {
    const u32 block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const u32 thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const u32 i = block * blockDim.x * blockDim.y * blockDim.z + thread;
    if (i < n) out[i] = i + blockDim.x * 1000000;
}
EXPORT(test_indices)

// sums[block] = Σ x[block, 256] by shuffles and shared memory
KERNEL(256) test_block_sum(float* sums, const float* x) {
    SHARED(float, partial, 32);
    const float sum = block_sum(x[blockIdx.x * 256 + threadIdx.x], partial);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
EXPORT(test_block_sum)

// out[lane, 6]: shuffles of every kind, a ballot
KERNEL(32) test_shuffles(u32* out) {
    const u32 lane = threadIdx.x;
    out[lane * 6 + 0] = __shfl_sync(ALL_LANES, lane * 10, 5);
    out[lane * 6 + 1] = __shfl_xor_sync(ALL_LANES, lane * 10, 3);
    out[lane * 6 + 2] = __shfl_down_sync(ALL_LANES, lane * 10, 4);
    out[lane * 6 + 3] = __shfl_up_sync(ALL_LANES, lane * 10, 4, 8);
    out[lane * 6 + 4] = __ballot_sync(ALL_LANES, lane % 3 == 0);
    out[lane * 6 + 5] = u32(__shfl_xor_sync(ALL_LANES, double(lane) + 0.5, 16) * 2);
}
EXPORT(test_shuffles)

// out[3]: bytes picked from two words; a * b + c of two f16, of two bf16
KERNEL(32) test_packed(u32* out) {
    if (threadIdx.x > 0) return;
    out[0] = __byte_perm(0x33221100u, 0x77665544u, 0x7142);
    out[1] = fma_f16x2(0x640764c8u, 0x3c003c00u, 0xe480e480u);
    out[2] = fma_bf16x2(0x430f4305u, 0x3f803f80u, 0xc300c300u);
}
EXPORT(test_packed)

// Adds the threads' numbers, in whatever order.
KERNEL(256) test_atomics(float* sum) { atomicAdd(sum, float(threadIdx.x)); }
EXPORT(test_atomics)

// c [16, 8] = a [16, 16] b [16, 8]; a and b of 16 bits in rows, by ldmatrix from shared memory
template <bool BF16> DEVICE void multiply_16(float* c, const u16* a, const u16* b) {
    SHARED(u16, sa, 16 * 16);
    SHARED(u16, sb, 16 * 16);
    const u32 lane = threadIdx.x;
    for (u32 i = lane; i < 256; i += 32) sa[i] = a[i];
    // B's rows have 8 numbers; the other half of each row of 16 is never used.
    for (u32 i = lane; i < 256; i += 32) sb[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : u16(0);
    __syncthreads();
    u32 ra[4], rb[4];
    // Matrices: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15.
    ldmatrix_x4(ra, &sa[(lane % 16) * 16 + lane / 16 * 8]);
    // B is stored by rows of k and wanted by columns: transposed.
    ldmatrix_x4_trans(rb, &sb[(lane % 16) * 16 + lane / 16 * 8]);
    const u32 b2[2] = {rb[0], rb[1]};
    float acc[4] = {0, 0, 0, 0};
    if (BF16) {
        mma_bf16(acc, ra, b2);
    } else {
        mma_f16(acc, ra, b2);
    }
    const u32 g = lane / 4, t = lane % 4;
    c[g * 8 + 2 * t] = acc[0];
    c[g * 8 + 2 * t + 1] = acc[1];
    c[(g + 8) * 8 + 2 * t] = acc[2];
    c[(g + 8) * 8 + 2 * t + 1] = acc[3];
}
KERNEL(32) test_multiply_f16(float* c, const u16* a, const u16* b) { multiply_16<false>(c, a, b); }
EXPORT(test_multiply_f16)
KERNEL(32) test_multiply_bf16(float* c, const u16* a, const u16* b) { multiply_16<true>(c, a, b); }
EXPORT(test_multiply_bf16)

// c [16, 8] = a [16, 8] b [8, 8] in tf32
KERNEL(32) test_multiply_tf32(float* c, const float* a, const float* b) {
    const u32 lane = threadIdx.x, g = lane / 4, t = lane % 4;
    const u32 ra[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]), to_tf32(a[(g + 8) * 8 + t + 4])};
    const u32 rb[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
    float acc[4] = {0, 0, 0, 0};
    mma_tf32(acc, ra, rb);
    c[g * 8 + 2 * t] = acc[0];
    c[g * 8 + 2 * t + 1] = acc[1];
    c[(g + 8) * 8 + 2 * t] = acc[2];
    c[(g + 8) * 8 + 2 * t + 1] = acc[3];
}
EXPORT(test_multiply_tf32)

// y[i] = x[i] through shared memory; waits for the copy or, wrongly, does not
KERNEL(32) test_copy(float* y, const float* x, u32 wait) {
    SHARED(float, tile, 128);
    cp_async_16(&tile[threadIdx.x * 4], &x[threadIdx.x * 4], threadIdx.x != 31);
    cp_async_commit();
    if (wait) cp_async_wait<0>();
    __syncthreads();
    for (u32 i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = tile[threadIdx.x * 4 + i];
}
EXPORT(test_copy)

// Two groups, of which the first is waited for: y[0] is new, y[1] is not there yet.
KERNEL(32) test_copy_groups(float* y, const float* x) {
    SHARED(float, tile, 256);
    cp_async_16(&tile[threadIdx.x * 4], x, true);
    cp_async_commit();
    cp_async_16(&tile[128 + threadIdx.x * 4], x, true);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    if (threadIdx.x == 0) {
        y[0] = tile[0];
        y[1] = tile[128];
    }
}
EXPORT(test_copy_groups)

// A missing barrier: y[i] = x[n - 1 - i] of the block through shared memory
KERNEL(64) test_no_barrier(float* y, const float* x) {
    SHARED(float, tile, 64);
    tile[threadIdx.x] = x[threadIdx.x];
    y[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x];
}
EXPORT(test_no_barrier)

KERNEL(64) test_leave_before_barrier(float* y) {
    if (threadIdx.x == 40) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}
EXPORT(test_leave_before_barrier)

KERNEL(64) test_two_barriers(float* y) {
    if (threadIdx.x < 32) {
        __syncthreads();
        y[0] = 1;
    } else {
        __syncthreads();
        y[1] = 1;
    }
}
EXPORT(test_two_barriers)

KERNEL(32) test_half_a_warp_shuffles(u32* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
}
EXPORT(test_half_a_warp_shuffles)

KERNEL(32) test_shared_overrun(float* y, u32 i) {
    SHARED(float, tile, 96);
    tile[threadIdx.x] = 1;
    tile[i] = 2;
    y[threadIdx.x] = tile[threadIdx.x];
}
EXPORT(test_shared_overrun)

KERNEL(32) test_dynamic_shared(float* y, i32 i) {
    DYNAMIC_SHARED(float, tile);
    tile[threadIdx.x] = float(threadIdx.x);
    tile[i] = 2;
    __syncthreads();
    y[threadIdx.x] = tile[31 - threadIdx.x];
}
EXPORT(test_dynamic_shared)

KERNEL(32) test_write(float* y, u64 i) {
    if (threadIdx.x == 3) y[i] = 1;
}
EXPORT(test_write)

KERNEL(32) test_endless(float* y, u32 barriers) {
    for (;;) {
        if (barriers) {
            __syncthreads();
        } else {
            __threadfence();
        }
        y[threadIdx.x] += 1;
    }
}
EXPORT(test_endless)

KERNEL(32) test_deep_stack(float* y, u32 n) {
    volatile float big[100000];
    big[n] = 1;
    big[0] = 2;
    y[0] = big[n];
}
EXPORT(test_deep_stack)
