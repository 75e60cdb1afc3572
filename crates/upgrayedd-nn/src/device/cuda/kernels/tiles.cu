// Attention on tensor cores, tile by tile (FlashAttention-2, Dao 2023), in bf16 with sums in single precision. Gradients without
// atomics: a block of keys sums dK and dV, a block of queries dQ, each in a fixed order.
#include "attention.h"

// Rows of a block: four warps with 16 each.
constexpr int TILE = 64;
constexpr float LOG2E = 1.4426950408889634f;

// Elements from row to row in shared memory: neighbouring rows lie in other banks.
template <int DIM> constexpr int PITCH = DIM + 8;

// Rows from `first` on, of heads that may be narrower than DIM; zeros beyond.
template <int ROWS, int DIM> __device__ __forceinline__ void fetch(bf16* to, const bf16* from, int first, int rows, size_t stride, int head_dim) {
    for (int i = threadIdx.x; i < ROWS * DIM / 8; i += 128) {
        const int row = i / (DIM / 8), column = i % (DIM / 8) * 8;
        const bool present = first + row < rows && column < head_dim;
        copy_async(to + row * PITCH<DIM> + column, present ? from + (first + row) * stride + column : from, present);
    }
}

// This warp's 16 rows of a tile as left operands.
template <int DIM> __device__ __forceinline__ void left(unsigned (&f)[DIM / 16][4], const bf16* tile) {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
#pragma unroll
    for (int d = 0; d < DIM / 16; d++) ldmatrix<false>(f[d], tile + (row + lane % 16) * PITCH<DIM> + d * 16 + lane / 16 * 8);
}

// s = rows · tileᵀ
template <int COLUMNS, int DIM>
__device__ __forceinline__ void dots(float (&s)[COLUMNS / 8][4], const unsigned (&rows)[DIM / 16][4], const bf16* tile) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = 0;
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n += 2)
#pragma unroll
        for (int d = 0; d < DIM / 16; d++) {
            unsigned b[4]; // rows n · 8 … + 15 of the tile, columns d · 16 … + 15
            ldmatrix<false>(b, tile + (n * 8 + lane % 8 + lane / 16 * 8) * PITCH<DIM> + d * 16 + lane / 8 % 2 * 8);
            const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            mma(s[n], rows[d], first);
            mma(s[n + 1], rows[d], second);
        }
}

// sum += weights · tile
template <int COLUMNS, int DIM>
__device__ __forceinline__ void weigh(float (&sum)[DIM / 8][4], const float (&weights)[COLUMNS / 8][4], const bf16* tile) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < COLUMNS / 16; j++) {
        const unsigned p[4] = {pack(weights[2 * j][0], weights[2 * j][1]), pack(weights[2 * j][2], weights[2 * j][3]),
                               pack(weights[2 * j + 1][0], weights[2 * j + 1][1]), pack(weights[2 * j + 1][2], weights[2 * j + 1][3])};
#pragma unroll
        for (int n = 0; n < DIM / 8; n += 2) {
            unsigned b[4]; // rows j · 16 … + 15 of the tile, columns n · 8 … + 15
            ldmatrix<true>(b, tile + (j * 16 + lane % 16) * PITCH<DIM> + n * 8 + lane / 16 * 8);
            const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
            mma(sum[n], p, first);
            mma(sum[n + 1], p, second);
        }
    }
}

// What a row of a tile sees: the keys of a query, before the mask, or the queries of a key, after it.
__device__ __forceinline__ int2 seen_by_query(const Attention& a, int query) { return query < a.queries ? keys_of(a, query) : int2{0, 0}; }
__device__ __forceinline__ int2 seen_by_key(const Attention& a, int batch, int key) {
    return key < a.keys && !is_masked(a, batch, key) ? queries_of(a, key) : int2{0, 0};
}
// Whether every one of these queries sees every one of these keys.
__device__ __forceinline__ bool all_see(const Attention& a, int query, int queries, int key, int keys) {
    const int2 first = keys_of(a, query), last = keys_of(a, query + queries - 1);
    return !a.mask && query + queries <= a.queries && key >= last.x && key + keys <= first.y;
}
// Where this thread's numbers of a tile of products are.
__device__ __forceinline__ int row_of(int i) { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + i / 2 * 8; }
__device__ __forceinline__ int column_of(int n, int i) { return n * 8 + threadIdx.x % 4 * 2 + i % 2; }

// Over the four threads that share a row.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Writes this warp's 16 rows times what `factor` says of each.
template <int DIM>
__device__ __forceinline__ void put(const Out& out, const float (&sum)[DIM / 8][4], size_t at, size_t stride, int first, int rows, int head_dim, float low, float high) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const int row = first + row_of(i);
        if (row >= rows) continue;
        const float factor = i ? high : low;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            const int column = column_of(n, 0);
            if (column >= head_dim) continue;
            const size_t to = at + row * stride + column;
            float x = sum[n][i] * factor, y = sum[n][i + 1] * factor;
            if (out.base) x += load(Any{(void*)out.base, out.type}, to), y += load(Any{(void*)out.base, out.type}, to + 1);
            if (out.type)
                ((unsigned*)out.data)[to / 2] = pack(x, y);
            else
                ((float2*)out.data)[to / 2] = float2{x, y};
        }
    }
}

// grid: ⌈queries / 64⌉, heads, batch. MORE: soft caps, biases, entropies.
template <int DIM, bool MORE> __device__ __forceinline__ void tiles_forward(const Attention& a, const Any& out, const Any& own, float* lse, float* entropy) {
    DYNAMIC_SHARED(memory);
    constexpr int SIZE = TILE * PITCH<DIM>;
    bf16 *sq = (bf16*)memory, *sk = sq + SIZE, *sv = sk + 2 * SIZE; // keys and values twice
    // The longest blocks first.
    const int head = blockIdx.y, batch = blockIdx.z, first = int(gridDim.x - 1 - blockIdx.x) * TILE, kv = a.kv_of[head];
    const size_t stride = size_t(a.heads) * a.head_dim, kv_stride = size_t(a.kv_heads) * a.head_dim, at = query_at(a, batch, head, 0);
    const bf16 *q = (const bf16*)a.q.data + at, *k = (const bf16*)a.k.data + key_at(a, batch, kv, 0), *v = (const bf16*)a.v.data + key_at(a, batch, kv, 0);
    const int begin = keys_of(a, first).x / TILE, end = (keys_of(a, min(first + TILE, a.queries) - 1).y + TILE - 1) / TILE;
    fetch<TILE, DIM>(sq, q, first, a.queries, stride, a.head_dim);
    fetch<TILE, DIM>(sk, k, begin * TILE, a.keys, kv_stride, a.head_dim);
    fetch<TILE, DIM>(sv, v, begin * TILE, a.keys, kv_stride, a.head_dim);
    copy_commit();

    const unsigned char* mask = a.mask ? a.mask + size_t(batch) * a.keys : nullptr;
    const int2 range[2] = {seen_by_query(a, first + row_of(0)), seen_by_query(a, first + row_of(2))};
    const float to_log2 = MORE ? LOG2E : a.scale * LOG2E;
    unsigned fq[DIM / 16][4];
    float o[DIM / 8][4] = {}, top[2] = {-INFINITE, -INFINITE}, total[2] = {}, weighted[2] = {}, seen[2] = {};
    for (int step = begin; step < end; step++) {
        const int stage = (step - begin) % 2 * SIZE;
        copy_wait<0>();
        __syncthreads();
        if (step + 1 < end) {
            fetch<TILE, DIM>(sk + SIZE - stage, k, (step + 1) * TILE, a.keys, kv_stride, a.head_dim);
            fetch<TILE, DIM>(sv + SIZE - stage, v, (step + 1) * TILE, a.keys, kv_stride, a.head_dim);
            copy_commit();
        }
        if (step == begin) left<DIM>(fq, sq);
        float s[TILE / 8][4];
        dots<TILE, DIM>(s, fq, sk + stage);
        if (MORE)
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int query = first + row_of(i), key = step * TILE + column_of(n, i);
                    float slope;
                    if (query < a.queries && key < a.keys) s[n][i] = score<true>(a, s[n][i], head, query, key, slope);
                }
        if (!all_see(a, first, TILE, step * TILE, TILE))
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int key = step * TILE + column_of(n, i);
                    if (key < range[i / 2].x || key >= range[i / 2].y || (mask && !mask[key])) s[n][i] = -INFINITE;
                }
        float shift[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float best = top[h];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) best = fmaxf(best, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
            best = row_max(best);
            const float fell = (top[h] - best) * to_log2, keep = top[h] == -INFINITE ? 0.0f : exp2_fast(fell);
            if (MORE && keep > 0) weighted[h] = keep * (weighted[h] + total[h] * fell);
            top[h] = best;
            shift[h] = best == -INFINITE ? 0.0f : best * to_log2;
            total[h] *= keep;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) o[n][2 * h] *= keep, o[n][2 * h + 1] *= keep;
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float x = s[n][i] * to_log2 - shift[i / 2];
                if (MORE && s[n][i] > -INFINITE) seen[i / 2] += 1, weighted[i / 2] += exp2_fast(x) * x;
                s[n][i] = exp2_fast(x);
                total[i / 2] += s[n][i];
            }
        weigh<TILE, DIM>(o, s, sv + stage);
    }
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] = row_sum(total[h]);
        inverse[h] = total[h] > 0 ? 1 / total[h] : 0.0f;
        const int query = first + row_of(2 * h);
        if (MORE) weighted[h] = row_sum(weighted[h]), seen[h] = row_sum(seen[h]);
        if (query >= a.queries || threadIdx.x % 4) continue;
        const size_t row = (size_t(batch) * a.heads + head) * a.queries + query;
        const float log2_sum = total[h] > 0 ? log2f(total[h]) : 0.0f;
        lse[row] = total[h] > 0 ? (top[h] * to_log2 + log2_sum) / LOG2E : -INFINITE;
        if (MORE && entropy) {
            const bool counts = seen[h] > 1 && !is_masked(a, batch, query + a.keys - a.queries);
            entropy[row] = counts ? (log2_sum - weighted[h] * inverse[h]) / log2f(seen[h]) : -1.0f;
        }
    }
    const float gate = gate_of(a, batch, head);
    put<DIM>(Out{out.data, nullptr, out.type}, o, at, stride, first, a.queries, a.head_dim, inverse[0] * gate, inverse[1] * gate);
    if (own.data) put<DIM>(Out{own.data, nullptr, own.type}, o, at, stride, first, a.queries, a.head_dim, inverse[0], inverse[1]);
}

// Probabilities and score gradients of a pair of tiles, in place of scores and of dout · v. low, high: what is to be taken from the
// logarithms and from dp, per row or, where TURNED, per column.
struct Shifts {
    float lse, delta;
};
__device__ __forceinline__ Shifts shifts_of(const Attention& a, const float* lse, const float* delta, int batch, int head, int query) {
    if (query >= a.queries) return {0, 0};
    const size_t row = (size_t(batch) * a.heads + head) * a.queries + query;
    return {lse[row] == -INFINITE ? 0.0f : lse[row] * LOG2E, delta[row]};
}
template <bool MORE> __device__ __forceinline__ void both(const Attention& a, float& s, float& dp, Shifts shift, float gate, int head, int query, int key, bool seen) {
    float slope = 1; // the scale comes at the end
    if (MORE && query < a.queries && key < a.keys) s = score<true>(a, s, head, query, key, slope), slope /= a.scale;
    const float p = seen ? gate * exp2_fast((MORE ? s : s * a.scale) * LOG2E - shift.lse) : 0.0f;
    s = p, dp = p * (dp - shift.delta) * slope;
}

// grid: ⌈queries / 64⌉, heads, batch.
template <int DIM, bool MORE>
__device__ __forceinline__ void tiles_dq(const Attention& a, const Any& dout, const float* lse, const float* delta, const Out& dq) {
    DYNAMIC_SHARED(memory);
    constexpr int KEYS = DIM > 64 ? 32 : 64, SIZE = TILE * PITCH<DIM>, STAGE = KEYS * PITCH<DIM>;
    bf16 *sq = (bf16*)memory, *sd = sq + SIZE, *sk = sd + SIZE, *sv = sk + 2 * STAGE;
    const int head = blockIdx.y, batch = blockIdx.z, first = int(gridDim.x - 1 - blockIdx.x) * TILE, kv = a.kv_of[head];
    const size_t stride = size_t(a.heads) * a.head_dim, kv_stride = size_t(a.kv_heads) * a.head_dim, at = query_at(a, batch, head, 0);
    const bf16 *k = (const bf16*)a.k.data + key_at(a, batch, kv, 0), *v = (const bf16*)a.v.data + key_at(a, batch, kv, 0);
    const int begin = keys_of(a, first).x / KEYS, end = (keys_of(a, min(first + TILE, a.queries) - 1).y + KEYS - 1) / KEYS;
    fetch<TILE, DIM>(sq, (const bf16*)a.q.data + at, first, a.queries, stride, a.head_dim);
    fetch<TILE, DIM>(sd, (const bf16*)dout.data + at, first, a.queries, stride, a.head_dim);
    fetch<KEYS, DIM>(sk, k, begin * KEYS, a.keys, kv_stride, a.head_dim);
    fetch<KEYS, DIM>(sv, v, begin * KEYS, a.keys, kv_stride, a.head_dim);
    copy_commit();
    const float gate = gate_of(a, batch, head);
    const Shifts shift[2] = {shifts_of(a, lse, delta, batch, head, first + row_of(0)), shifts_of(a, lse, delta, batch, head, first + row_of(2))};
    const unsigned char* mask = a.mask ? a.mask + size_t(batch) * a.keys : nullptr;
    const int2 range[2] = {seen_by_query(a, first + row_of(0)), seen_by_query(a, first + row_of(2))};
    unsigned fq[DIM / 16][4], fd[DIM / 16][4];
    float sum[DIM / 8][4] = {};
    for (int step = begin; step < end; step++) {
        const int stage = (step - begin) % 2 * STAGE;
        copy_wait<0>();
        __syncthreads();
        if (step + 1 < end) {
            fetch<KEYS, DIM>(sk + STAGE - stage, k, (step + 1) * KEYS, a.keys, kv_stride, a.head_dim);
            fetch<KEYS, DIM>(sv + STAGE - stage, v, (step + 1) * KEYS, a.keys, kv_stride, a.head_dim);
            copy_commit();
        }
        if (step == begin) left<DIM>(fq, sq), left<DIM>(fd, sd);
        float s[KEYS / 8][4], dp[KEYS / 8][4];
        dots<KEYS, DIM>(s, fq, sk + stage);
        dots<KEYS, DIM>(dp, fd, sv + stage);
        const bool all = all_see(a, first, TILE, step * KEYS, KEYS);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int query = first + row_of(i), key = step * KEYS + column_of(n, i);
                const bool seen = all || (key >= range[i / 2].x && key < range[i / 2].y && !(mask && !mask[key]));
                both<MORE>(a, s[n][i], dp[n][i], shift[i / 2], gate, head, query, key, seen);
            }
        weigh<KEYS, DIM>(sum, dp, sk + stage);
    }
    put<DIM>(dq, sum, at, stride, first, a.queries, a.head_dim, a.scale, a.scale);
}

// grid: ⌈keys / 64⌉, kv_heads, batch. dk, dv: either may be absent.
template <int DIM, bool MORE>
__device__ __forceinline__ void tiles_dkv(const Attention& a, const Any& dout, const float* lse, const float* delta, const Out& dk, const Out& dv) {
    DYNAMIC_SHARED(memory);
    constexpr int QUERIES = DIM > 64 ? 16 : 64, SIZE = TILE * PITCH<DIM>, STAGE = QUERIES * PITCH<DIM>;
    bf16 *sk = (bf16*)memory, *sv = sk + SIZE, *sq = sv + SIZE, *sd = sq + 2 * STAGE;
    Shifts* shifts = (Shifts*)(sd + 2 * STAGE); // of two stages
    const int kv = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * TILE;
    const size_t stride = size_t(a.heads) * a.head_dim, kv_stride = size_t(a.kv_heads) * a.head_dim, at = key_at(a, batch, kv, 0);
    const int begin = queries_of(a, first).x / QUERIES;
    const int end = (queries_of(a, min(first + TILE, a.keys) - 1).y + QUERIES - 1) / QUERIES;
    fetch<TILE, DIM>(sk, (const bf16*)a.k.data + at, first, a.keys, kv_stride, a.head_dim);
    fetch<TILE, DIM>(sv, (const bf16*)a.v.data + at, first, a.keys, kv_stride, a.head_dim);
    copy_commit();
    unsigned fk[DIM / 16][4], fv[DIM / 16][4];
    copy_wait<0>();
    __syncthreads();
    left<DIM>(fk, sk), left<DIM>(fv, sv);
    const int2 range[2] = {seen_by_key(a, batch, first + row_of(0)), seen_by_key(a, batch, first + row_of(2))};
    float sum_k[DIM / 8][4] = {}, sum_v[DIM / 8][4] = {};
    for (int head = 0; head < a.heads; head++) {
        if (a.kv_of[head] != kv) continue;
        const float gate = gate_of(a, batch, head);
        const bf16 *q = (const bf16*)a.q.data + query_at(a, batch, head, 0), *d = (const bf16*)dout.data + query_at(a, batch, head, 0);
        const auto next = [&](int step, int to) {
            fetch<QUERIES, DIM>(sq + to * STAGE, q, step * QUERIES, a.queries, stride, a.head_dim);
            fetch<QUERIES, DIM>(sd + to * STAGE, d, step * QUERIES, a.queries, stride, a.head_dim);
            copy_commit();
            if (threadIdx.x < QUERIES) shifts[to * QUERIES + threadIdx.x] = shifts_of(a, lse, delta, batch, head, step * QUERIES + threadIdx.x);
        };
        __syncthreads(); // the last head's tiles have been read
        if (begin < end) next(begin, 0);
        for (int step = begin; step < end; step++) {
            const int stage = (step - begin) % 2;
            copy_wait<0>();
            __syncthreads();
            if (step + 1 < end) next(step + 1, 1 - stage);
            float s[QUERIES / 8][4], dp[QUERIES / 8][4];
            dots<QUERIES, DIM>(s, fk, sq + stage * STAGE);
            dots<QUERIES, DIM>(dp, fv, sd + stage * STAGE);
            const bool all = first + TILE <= a.keys && all_see(a, step * QUERIES, QUERIES, first, TILE);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int query = step * QUERIES + column_of(n, i), key = first + row_of(i);
                    const Shifts shift = shifts[stage * QUERIES + column_of(n, i)];
                    const bool seen = all || (query >= range[i / 2].x && query < range[i / 2].y);
                    both<MORE>(a, s[n][i], dp[n][i], shift, gate, head, query, key, seen);
                }
            weigh<QUERIES, DIM>(sum_v, s, sd + stage * STAGE);
            weigh<QUERIES, DIM>(sum_k, dp, sq + stage * STAGE);
        }
    }
    if (dk.data) put<DIM>(dk, sum_k, at, kv_stride, first, a.keys, a.head_dim, a.scale, a.scale);
    if (dv.data) put<DIM>(dv, sum_v, at, kv_stride, first, a.keys, a.head_dim, 1, 1);
}

#define TILES(DIM, MORE, name)                                                                                                          \
    KERNEL void __launch_bounds__(128) tiles_forward_##name(Attention a, Any out, Any own, float* lse, float* entropy) {                \
        tiles_forward<DIM, MORE>(a, out, own, lse, entropy);                                                                            \
    }                                                                                                                                   \
    KERNEL void __launch_bounds__(128) tiles_dq_##name(Attention a, Any dout, const float* lse, const float* delta, Out dq) {           \
        tiles_dq<DIM, MORE>(a, dout, lse, delta, dq);                                                                                   \
    }                                                                                                                                   \
    KERNEL void __launch_bounds__(128) tiles_dkv_##name(Attention a, Any dout, const float* lse, const float* delta, Out dk, Out dv) {  \
        tiles_dkv<DIM, MORE>(a, dout, lse, delta, dk, dv);                                                                              \
    }
// A module each, so that a driver translates what is used.
#if !defined(MODULE) || MODULE == 1
TILES(32, false, 32)
#endif
#if !defined(MODULE) || MODULE == 2
TILES(32, true, 32_more)
#endif
#if !defined(MODULE) || MODULE == 3
TILES(64, false, 64)
#endif
#if !defined(MODULE) || MODULE == 4
TILES(64, true, 64_more)
#endif
#if !defined(MODULE) || MODULE == 5
TILES(128, false, 128)
#endif
#if !defined(MODULE) || MODULE == 6
TILES(128, true, 128_more)
#endif
