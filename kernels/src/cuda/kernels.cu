// All kernels as one unit: what nvcc, NVRTC on a device and the emulator compile. A file's own helpers stand in a namespace of its name.
// The files that this one includes, and they include, are the sources whose hashes kernels/images/sources.sha256 has.
#include "prelude.cuh"
#include "products_f32.cu"
#include "products_tf32.cu"
#include "products_half.cu"
#include "gemv.cu"
#include "weights.cu"
