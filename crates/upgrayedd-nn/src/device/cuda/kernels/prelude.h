// What the kernels need beside CUDA C++ itself: numbers of 16 bits, arrays whose type is known at run time, and the few PTX
// instructions that have no function. No other header is included.
#pragma once
#ifdef __CUDACC__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]
#define KERNEL extern "C" __global__
#define INFINITE __int_as_float(0x7f800000)
#else
#include "../emulator/host.h"
#define DYNAMIC_SHARED(name) char* name = host::dynamic_shared()
#define KERNEL static
#define INFINITE __builtin_huge_valf()
#endif

struct bf16 {
    unsigned short bits;
};
__device__ __forceinline__ float to_float(bf16 x) {
#ifdef __CUDACC__
    return __uint_as_float(unsigned(x.bits) << 16);
#else
    return host::bf16(x.bits, 0);
#endif
}
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
#ifdef __CUDACC__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    unsigned u;
    memcpy(&u, &x, 4);
    y.bits = x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
#endif
    return y;
}
__device__ __forceinline__ unsigned pack(float low, float high) {
#ifdef __CUDACC__
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#else
    return to_bf16(low).bits | unsigned(to_bf16(high).bits) << 16;
#endif
}
__device__ __forceinline__ float low_half(unsigned pair) { return to_float(bf16{(unsigned short)(pair & 0xffff)}); }
__device__ __forceinline__ float high_half(unsigned pair) { return to_float(bf16{(unsigned short)(pair >> 16)}); }
__device__ __forceinline__ float half_to_float(unsigned short bits) {
#ifdef __CUDACC__
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
#else
    return host::half(bits);
#endif
}

// An array of floats or of bf16: the host says which.
struct Any {
    void* data;
    long type; // 0: float, 1: bf16
};
__device__ __forceinline__ float load(const Any& a, size_t i) {
    return a.type ? to_float(((const bf16*)a.data)[i]) : ((const float*)a.data)[i];
}
__device__ __forceinline__ void store(const Any& a, size_t i, float value) {
    if (a.type)
        ((bf16*)a.data)[i] = to_bf16(value);
    else
        ((float*)a.data)[i] = value;
}
// The i-th four. Allocations end on whole fours.
__device__ __forceinline__ float4 load4(const Any& a, size_t i) {
    if (!a.type) return ((const float4*)a.data)[i];
    const uint2 u = ((const uint2*)a.data)[i];
    return float4{low_half(u.x), high_half(u.x), low_half(u.y), high_half(u.y)};
}
__device__ __forceinline__ void store4(const Any& a, size_t i, float4 v) {
    if (a.type)
        ((uint2*)a.data)[i] = uint2{pack(v.x, v.y), pack(v.z, v.w)};
    else
        ((float4*)a.data)[i] = v;
}

// One or four neighbours.
template <int WIDTH> struct Some {
    float v[WIDTH];
};
template <int WIDTH> __device__ __forceinline__ Some<WIDTH> load_some(const Any& a, size_t i) {
    if (WIDTH == 1) return {load(a, i)};
    const float4 f = load4(a, i / 4);
    Some<WIDTH> some;
    some.v[0] = f.x, some.v[1 % WIDTH] = f.y, some.v[2 % WIDTH] = f.z, some.v[3 % WIDTH] = f.w;
    return some;
}
template <int WIDTH> __device__ __forceinline__ void store_some(const Any& a, size_t i, const Some<WIDTH>& some) {
    if (WIDTH == 1)
        store(a, i, some.v[0]);
    else
        store4(a, i / 4, float4{some.v[0], some.v[1 % WIDTH], some.v[2 % WIDTH], some.v[3 % WIDTH]});
}

// Where a gradient goes: data = base + value, or the value alone where there is no base.
struct Out {
    void* data;
    const void* base;
    long type;
};
__device__ __forceinline__ void write(const Out& o, size_t i, float value) {
    if (o.base) value += load(Any{(void*)o.base, o.type}, i);
    store(Any{o.data, o.type}, i, value);
}
__device__ __forceinline__ void write4(const Out& o, size_t i, float4 v) {
    if (o.base) {
        const float4 b = load4(Any{(void*)o.base, o.type}, i);
        v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
    }
    store4(Any{o.data, o.type}, i, v);
}

// This thread's number in a grid of one dimension.
__device__ __forceinline__ size_t index() { return size_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// d += a b, one warp: a 16 × 16, b 16 × 8, both bf16.
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    host::mma(d, a, b);
#endif
}
// Four 8 × 8 matrices of bf16 from shared memory; lane 8i + r points to row r of matrix i.
template <bool transposed> __device__ __forceinline__ void ldmatrix(unsigned (&r)[4], const void* row) {
#ifdef __CUDACC__
    unsigned at = unsigned(__cvta_generic_to_shared(row));
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
#else
    host::ldmatrix(r, row, transposed);
#endif
}
// 16 bytes to shared memory, in the background; zeros where there is no source.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool present) {
#ifdef __CUDACC__
    unsigned at = unsigned(__cvta_generic_to_shared(to)), size = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(size) : "memory");
#else
    host::copy_async(to, present ? from : nullptr);
#endif
}
__device__ __forceinline__ void copy_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    host::copy_commit();
#endif
}
template <int newest> __device__ __forceinline__ void copy_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
#else
    host::copy_wait(newest);
#endif
}
#ifdef __CUDACC__
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif
// To about 10⁻⁶ absolutely: good enough for what becomes 16 bits.
__device__ __forceinline__ float tanh_fast(float x) {
    const float e = exp2_fast(fminf(x, 15.0f) * 2.885390f) + 1;
#ifdef __CUDACC__
    return 1 - __fdividef(2.0f, e);
#else
    return 1 - 2 / e;
#endif
}
__device__ __forceinline__ float warp_sum(float x) {
    for (int flip = 16; flip; flip /= 2) x += __shfl_xor_sync(0xffffffffu, x, flip);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int flip = 16; flip; flip /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, flip));
    return x;
}
// The sum over a block of whole warps, in every thread.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0.0f;
    x = warp_sum(x);
    __syncthreads();
    return x;
}
__device__ __forceinline__ float block_max(float x) {
    __shared__ float parts[32];
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : -INFINITE;
    x = warp_max(x);
    __syncthreads();
    return x;
}
// The same for doubles, halves of the block upon halves: of as many threads as a power of two has.
__device__ __forceinline__ double block_sum(double x) {
    __shared__ double parts[1024];
    parts[threadIdx.x] = x;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    x = parts[0];
    __syncthreads();
    return x;
}
