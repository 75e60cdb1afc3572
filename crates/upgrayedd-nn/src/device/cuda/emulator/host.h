// The part of CUDA C++ that the kernels use, on a CPU. Tests only; see host.cpp. Accesses to memory happen in this header, so that
// -fsanitize=thread sees them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All shared variables lie in one section, which is poisoned before every block.
#define __shared__ static __attribute__((section("cuda_shared")))

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) float2 { float x, y; };

namespace host {
struct Copy { void* to; const void* from; int group; };
dim3 thread(), block(), threads(), blocks();
unsigned lane();
char* dynamic_shared();
void sync_block(const char* file, int line);
void sync_warp(const char* file, int line);
// Every lane shows `mine`, up to eight words; the result is what each lane showed.
const unsigned (*exchange(const unsigned* mine, int words, const char* file, int line))[8];
void remember(Copy);
bool next_copy(int newest, Copy&);
void copy_commit();
// Runs a grid, block after block. Order 0: threads in order; else shuffled by that seed.
void launch(dim3 grid, dim3 threads, size_t shared, std::function<void()> kernel, unsigned order = 0);

template <class T> T shuffle(T value, unsigned from, const char* file, int line) {
    static_assert(sizeof(T) == 4);
    unsigned mine;
    memcpy(&mine, &value, 4);
    memcpy(&value, exchange(&mine, 1, file, line)[from & 31], 4);
    return value;
}
inline float bf16(unsigned pair, int high) {
    unsigned bits = high ? pair & 0xffff0000u : pair << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline float half(unsigned short bits) {
    const int exponent = bits >> 10 & 31;
    const float fraction = float(bits & 1023), sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, d += a b
inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    auto all = exchange(mine, 6, "mma", 0);
    const unsigned row = lane() / 4, col = lane() % 4 * 2;
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 16; k++) {
            unsigned x = all[row * 4 + k % 8 / 2][i / 2 + k / 8 * 2], y = all[(col + i % 2) * 4 + k % 8 / 2][4 + k / 8];
            d[i] += bf16(x, k % 2) * bf16(y, k % 2);
        }
}
inline void ldmatrix(unsigned (&r)[4], const void* row, bool transposed) {
    if (uintptr_t(row) % 16) fprintf(stderr, "ldmatrix: not aligned\n"), abort();
    unsigned mine[2];
    memcpy(mine, &row, 8);
    auto all = exchange(mine, 2, "ldmatrix", 0);
    for (unsigned i = 0; i < 4; i++) {
        uint16_t half[2];
        for (unsigned j = 0; j < 2; j++) {
            unsigned at_row = lane() / 4, at_col = lane() % 4 * 2 + j;
            const uint16_t* source;
            memcpy(&source, all[i * 8 + (transposed ? at_col : at_row)], 8);
            half[j] = source[transposed ? at_row : at_col];
        }
        memcpy(&r[i], half, 4);
    }
    sync_warp("ldmatrix", 0); // nobody writes before all have read
}
// What is copied arrives only when it is waited for; until then there is rubbish.
inline void copy_async(void* to, const void* from) {
    memset(to, 0xff, 16);
    remember({to, from, 0});
}
inline void copy_wait(int newest) {
    for (Copy c; next_copy(newest, c);) c.from ? memcpy(c.to, c.from, 16) : memset(c.to, 0, 16);
}
} // namespace host

#define threadIdx host::thread()
#define blockIdx host::block()
#define blockDim host::threads()
#define gridDim host::blocks()
#define __syncthreads() host::sync_block(__FILE__, __LINE__)
#define __syncwarp() host::sync_warp(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, flip) host::shuffle(value, host::lane() ^ (flip), __FILE__, __LINE__)
#define __shfl_sync(mask, value, from) host::shuffle(value, from, __FILE__, __LINE__)
inline float exp2_fast(float x) { return std::exp2(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
