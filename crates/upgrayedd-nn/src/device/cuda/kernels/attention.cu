// Attention as it is defined, a warp a query or a key, in single precision: for every size of heads and whatever shapes scores.
#include "attention.h"

constexpr int WARPS = 4;

// x[at …] · row, which is in shared memory.
__device__ __forceinline__ float dot(const Any& x, size_t at, const float* row, int n) {
    float sum = 0;
    if (n % 4 == 0)
        for (int i = 0; i < n; i += 4) {
            const float4 v = load4(x, (at + i) / 4);
            sum += v.x * row[i] + v.y * row[i + 1] + v.z * row[i + 2] + v.w * row[i + 3];
        }
    else
        for (int i = 0; i < n; i++) sum += load(x, at + i) * row[i];
    return sum;
}
// One row into this warp's part of shared memory.
__device__ __forceinline__ float* keep(float* shared, const Any& x, size_t at, int n) {
    for (int i = threadIdx.x % 32; i < n; i += 32) shared[i] = load(x, at + i);
    __syncwarp();
    return shared;
}

// Columns of a head that a lane sums at once: 32 · COLUMNS of them.
constexpr int COLUMNS = 8;

// grid: ⌈queries / 4⌉, heads, batch. own: the result without the gate, where it is wanted. entropy: per sequence, head and query its
// normalised entropy, or −1 where it does not count.
KERNEL void __launch_bounds__(32 * WARPS) attention_plain(Attention a, Any out, Any own, float* lse, float* entropy) {
    DYNAMIC_SHARED(memory);
    const int query = blockIdx.x * WARPS + threadIdx.x / 32, head = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x % 32;
    if (query >= a.queries) return;
    const int kv = a.kv_of[head];
    const size_t at = query_at(a, batch, head, query);
    const float* q = keep((float*)memory + threadIdx.x / 32 * a.head_dim, a.q, at, a.head_dim);
    const int2 range = keys_of(a, query);
    for (int first = 0; first < a.head_dim; first += 32 * COLUMNS) {
        float o[COLUMNS] = {}, max = -INFINITE, sum = 0, weighted = 0;
        int seen = 0;
        for (int start = range.x; start < range.y; start += 32) {
            const int key = start + lane;
            float s = -INFINITE, slope;
            if (key < range.y && !is_masked(a, batch, key)) s = score(a, dot(a.k, key_at(a, batch, kv, key), q, a.head_dim), head, query, key, slope), seen++;
            const float larger = fmaxf(max, warp_max(s));
            if (larger == -INFINITE) continue;
            const float shrink = expf(max - larger), p = expf(s - larger);
            // Σ p (s − max), for the entropy.
            weighted = shrink > 0 ? shrink * (weighted + sum * (max - larger)) : 0.0f;
            weighted += p > 0 ? p * (s - larger) : 0.0f;
            sum = sum * shrink + p, max = larger;
            for (int c = 0; c < COLUMNS; c++) o[c] *= shrink;
            for (int j = 0; j < 32; j++) {
                const float share = __shfl_sync(0xffffffffu, p, j);
                if (share == 0) continue;
                const size_t row = key_at(a, batch, kv, start + j) + first;
                for (int c = 0; c < COLUMNS; c++)
                    if (first + c * 32 + lane < a.head_dim) o[c] += share * load(a.v, row + c * 32 + lane);
            }
        }
        sum = warp_sum(sum);
        const float inverse = sum > 0 ? 1 / sum : 0.0f, gate = gate_of(a, batch, head);
        for (int c = 0; c < COLUMNS; c++) {
            const int column = first + c * 32 + lane;
            if (column >= a.head_dim) continue;
            store(out, at + column, o[c] * inverse * gate);
            if (own.data) store(own, at + column, o[c] * inverse);
        }
        if (first) continue;
        weighted = warp_sum(weighted);
        seen = int(warp_sum(float(seen)));
        if (lane) continue;
        const size_t row = (size_t(batch) * a.heads + head) * a.queries + query;
        lse[row] = sum > 0 ? max + logf(sum) : -INFINITE;
        if (entropy) {
            const bool counts = seen > 1 && !is_masked(a, batch, query + a.keys - a.queries);
            entropy[row] = counts ? (logf(sum) - weighted * inverse) / logf(float(seen)) : -1.0f;
        }
    }
}

// A warp per query and head: Σ over columns of dout · the result without its gate. delta: (batch, heads, queries).
KERNEL void __launch_bounds__(128) attention_delta(Any dout, Any own, float* delta, int batch, int queries, int heads, int head_dim) {
    const size_t item = size_t(blockIdx.x) * 4 + threadIdx.x / 32;
    if (item >= size_t(batch) * queries * heads) return;
    float sum = 0;
    for (int i = threadIdx.x % 32; i < head_dim; i += 32) sum += load(dout, item * head_dim + i) * load(own, item * head_dim + i);
    sum = warp_sum(sum);
    const size_t row = item / heads, head = item % heads;
    if (threadIdx.x % 32 == 0) delta[(row / queries * heads + head) * queries + row % queries] = sum;
}

// A warp per gate: its gradient is the sum of its queries' deltas.
KERNEL void __launch_bounds__(32) attention_gate_grad(const float* delta, Out gates, int batch, int queries, int heads, int shared) {
    float sum = 0;
    for (int b = shared ? 0 : blockIdx.x / heads; b < (shared ? batch : int(blockIdx.x) / heads + 1); b++)
        for (int i = threadIdx.x; i < queries; i += 32) sum += delta[(size_t(b) * heads + blockIdx.x % heads) * queries + i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) write(gates, blockIdx.x, sum);
}

// The probability of a pair from its dot product, and the gradient of that from dout · v.
struct Pair {
    float p, ds;
};
__device__ __forceinline__ Pair pair(const Attention& a, float dot, float dp, float lse, float delta, float gate, int head, int query, int key) {
    if (lse == -INFINITE) return {0, 0};
    float slope;
    const float p = expf(score(a, dot, head, query, key, slope) - lse);
    return {p, gate * slope * p * (dp - delta)};
}

// grid: ⌈queries / 4⌉, heads, batch.
KERNEL void __launch_bounds__(32 * WARPS) attention_plain_dq(Attention a, Any dout, const float* lse, const float* delta, Out dq) {
    DYNAMIC_SHARED(memory);
    const int query = blockIdx.x * WARPS + threadIdx.x / 32, head = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x % 32;
    if (query >= a.queries) return;
    const int kv = a.kv_of[head];
    const size_t at = query_at(a, batch, head, query), row = (size_t(batch) * a.heads + head) * a.queries + query;
    float* own = (float*)memory + threadIdx.x / 32 * 2 * a.head_dim;
    const float *q = keep(own, a.q, at, a.head_dim), *d = keep(own + a.head_dim, dout, at, a.head_dim);
    const float gate = gate_of(a, batch, head);
    const int2 range = keys_of(a, query);
    for (int first = 0; first < a.head_dim; first += 32 * COLUMNS) {
        float sum[COLUMNS] = {};
        for (int start = range.x; start < range.y; start += 32) {
            const int key = start + lane;
            float ds = 0;
            if (key < range.y && !is_masked(a, batch, key)) {
                const size_t from = key_at(a, batch, kv, key);
                ds = pair(a, dot(a.k, from, q, a.head_dim), dot(a.v, from, d, a.head_dim), lse[row], delta[row], gate, head, query, key).ds;
            }
            for (int j = 0; j < 32; j++) {
                const float share = __shfl_sync(0xffffffffu, ds, j);
                if (start + j >= range.y) break;
                const size_t from = key_at(a, batch, kv, start + j) + first;
                for (int c = 0; c < COLUMNS; c++)
                    if (first + c * 32 + lane < a.head_dim) sum[c] += share * load(a.k, from + c * 32 + lane);
            }
        }
        for (int c = 0; c < COLUMNS; c++)
            if (first + c * 32 + lane < a.head_dim) write(dq, at + first + c * 32 + lane, sum[c]);
    }
}

// grid: ⌈keys / 4⌉, kv_heads, batch. dk, dv: either may be absent.
KERNEL void __launch_bounds__(32 * WARPS) attention_plain_dkv(Attention a, Any dout, const float* lse, const float* delta, Out dk, Out dv) {
    DYNAMIC_SHARED(memory);
    const int key = blockIdx.x * WARPS + threadIdx.x / 32, kv = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x % 32;
    if (key >= a.keys) return;
    const size_t at = key_at(a, batch, kv, key);
    float* own = (float*)memory + threadIdx.x / 32 * 2 * a.head_dim;
    const float *k = keep(own, a.k, at, a.head_dim), *v = keep(own + a.head_dim, a.v, at, a.head_dim);
    const int2 range = queries_of(a, key);
    const bool hidden = is_masked(a, batch, key);
    for (int first = 0; first < a.head_dim; first += 32 * COLUMNS) {
        float sum_k[COLUMNS] = {}, sum_v[COLUMNS] = {};
        for (int head = 0; head < a.heads; head++) {
            if (hidden || a.kv_of[head] != kv) continue;
            const float gate = gate_of(a, batch, head);
            for (int start = range.x; start < range.y; start += 32) {
                const int query = start + lane;
                Pair mine = {0, 0};
                if (query < range.y) {
                    const size_t from = query_at(a, batch, head, query), row = (size_t(batch) * a.heads + head) * a.queries + query;
                    mine = pair(a, dot(a.q, from, k, a.head_dim), dot(dout, from, v, a.head_dim), lse[row], delta[row], gate, head, query, key);
                }
                for (int j = 0; j < 32; j++) {
                    const float p = gate * __shfl_sync(0xffffffffu, mine.p, j), ds = __shfl_sync(0xffffffffu, mine.ds, j);
                    if (start + j >= range.y) break;
                    const size_t from = query_at(a, batch, head, start + j) + first;
                    for (int c = 0; c < COLUMNS; c++)
                        if (first + c * 32 + lane < a.head_dim) {
                            sum_k[c] += ds * load(a.q, from + c * 32 + lane);
                            sum_v[c] += p * load(dout, from + c * 32 + lane);
                        }
                }
            }
        }
        for (int c = 0; c < COLUMNS; c++) {
            const int column = first + c * 32 + lane;
            if (column >= a.head_dim) continue;
            if (dk.data) write(dk, at + column, sum_k[c]);
            if (dv.data) write(dv, at + column, sum_v[c]);
        }
    }
}

// A warp per distance and column of the bias. grid: distances, columns.
KERNEL void __launch_bounds__(32) attention_bias_grad(Attention a, Any dout, const float* lse, const float* delta, Out bias) {
    const int distance = blockIdx.x, column = blockIdx.y;
    float sum = 0;
    for (int batch = 0; batch < a.batch; batch++)
        for (int head = 0; head < a.heads; head++) {
            if (a.bias_columns[head] != column) continue;
            for (int query = threadIdx.x; query < a.queries; query += 32) {
                const int key = distance - (a.queries - 1 - query);
                const int2 range = keys_of(a, query);
                if (key < range.x || key >= range.y || is_masked(a, batch, key)) continue;
                const size_t at = query_at(a, batch, head, query), from = key_at(a, batch, a.kv_of[head], key);
                const size_t row = (size_t(batch) * a.heads + head) * a.queries + query;
                float with_key = 0, with_value = 0, slope;
                for (int i = 0; i < a.head_dim; i++) {
                    with_key += load(a.q, at + i) * load(a.k, from + i);
                    with_value += load(dout, at + i) * load(a.v, from + i);
                }
                if (lse[row] == -INFINITE) continue;
                const float p = expf(score(a, with_key, head, query, key, slope) - lse[row]);
                sum += gate_of(a, batch, head) * p * (with_value - delta[row]);
            }
        }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) write(bias, size_t(distance) * a.bias_width + column, sum);
}

// Per head: Σ of the entropies that count, and how many they are. grid: heads.
KERNEL void __launch_bounds__(256) attention_entropy(const float* entropy, double* sums, int batch, int queries, int heads) {
    double sum = 0, count = 0;
    for (int b = 0; b < batch; b++)
        for (int i = threadIdx.x; i < queries; i += blockDim.x) {
            const float e = entropy[(size_t(b) * heads + blockIdx.x) * queries + i];
            if (e >= 0) sum += e, count += 1;
        }
    sum = block_sum(sum), count = block_sum(count);
    if (threadIdx.x == 0) sums[blockIdx.x * 2] = sum, sums[blockIdx.x * 2 + 1] = count;
}
