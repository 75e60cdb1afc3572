// What all kernels of attention are given, and what they ask of it.
#pragma once
#include "prelude.h"

struct Attention {
    Any q, k, v;
    const float *gates, *bias;
    const int *kv_of, *bias_columns;
    const unsigned char* mask;
    int batch, queries, keys, head_dim, heads, kv_heads, bias_width, causal, window, shared_gates;
    float scale, soft_cap;
};

// The keys that a query may see, before the mask: from .x to .y.
__device__ __forceinline__ int2 keys_of(const Attention& a, int query) {
    const int position = query + a.keys - a.queries, ahead = a.causal ? 1 : a.window ? a.window : a.keys;
    return int2{a.window ? max(0, position + 1 - a.window) : 0, min(position + ahead, a.keys)};
}
// The queries that may see a key.
__device__ __forceinline__ int2 queries_of(const Attention& a, int key) {
    const int behind = a.keys - a.queries, ahead = a.causal ? 1 : a.window ? a.window : a.keys;
    return int2{max(0, key - ahead + 1 - behind), a.window ? min(a.queries, key + a.window - behind) : a.queries};
}
__device__ __forceinline__ bool is_masked(const Attention& a, int batch, int key) { return a.mask && !a.mask[size_t(batch) * a.keys + key]; }
__device__ __forceinline__ float gate_of(const Attention& a, int batch, int head) {
    return a.gates ? a.gates[a.shared_gates ? head : batch * a.heads + head] : 1.0f;
}
__device__ __forceinline__ size_t query_at(const Attention& a, int batch, int head, int query) {
    return ((size_t(batch) * a.queries + query) * a.heads + head) * a.head_dim;
}
__device__ __forceinline__ size_t key_at(const Attention& a, int batch, int kv, int key) {
    return ((size_t(batch) * a.keys + key) * a.kv_heads + kv) * a.head_dim;
}
// A score from its dot product; slope: how it moves with that.
template <bool FAST = false> __device__ __forceinline__ float score(const Attention& a, float dot, int head, int query, int key, float& slope) {
    float s = dot * a.scale;
    slope = a.scale;
    if (a.soft_cap > 0) {
        const float share = FAST ? tanh_fast(s / a.soft_cap) : tanhf(s / a.soft_cap);
        s = a.soft_cap * share, slope *= 1 - share * share;
    }
    if (a.bias) s += a.bias[size_t(a.queries - 1 - query + key) * a.bias_width + a.bias_columns[head]];
    return s;
}
