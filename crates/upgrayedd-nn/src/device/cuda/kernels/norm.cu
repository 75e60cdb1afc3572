// Layer norm and root-mean-square norm, a warp a row; sums over rows by parts.
#include "prelude.h"

// Where this warp's row is: four warps a block.
__device__ __forceinline__ size_t warp_row() { return size_t(blockIdx.x) * 4 + threadIdx.x / 32; }

template <int WIDTH>
__device__ __forceinline__ void norm_row(const Any& x, const Any& weight, const Any& bias, const Any& out, float* stats, size_t row, int cols, float offset, float eps, int centred) {
    const size_t at = row * cols;
    const int first = threadIdx.x % 32 * WIDTH, step = 32 * WIDTH;
    float mean = 0, squares = 0;
    if (centred) {
        for (int i = first; i < cols; i += step) {
            const Some<WIDTH> some = load_some<WIDTH>(x, at + i);
            for (int j = 0; j < WIDTH; j++) mean += some.v[j];
        }
        mean = warp_sum(mean) / cols;
    }
    for (int i = first; i < cols; i += step) {
        const Some<WIDTH> some = load_some<WIDTH>(x, at + i);
        for (int j = 0; j < WIDTH; j++) squares += (some.v[j] - mean) * (some.v[j] - mean);
    }
    const float inverse = 1 / sqrtf(warp_sum(squares) / cols + eps);
    for (int i = first; i < cols; i += step) {
        Some<WIDTH> some = load_some<WIDTH>(x, at + i);
        const Some<WIDTH> w = load_some<WIDTH>(weight, i);
        for (int j = 0; j < WIDTH; j++) some.v[j] = (some.v[j] - mean) * inverse * (offset + w.v[j]);
        if (bias.data) {
            const Some<WIDTH> b = load_some<WIDTH>(bias, i);
            for (int j = 0; j < WIDTH; j++) some.v[j] += b.v[j];
        }
        store_some<WIDTH>(out, at + i, some);
    }
    if (threadIdx.x % 32) return;
    if (centred)
        stats[row * 2] = mean, stats[row * 2 + 1] = inverse;
    else
        stats[row] = inverse;
}

// stats: per row mean and 1/σ where centred, else 1/rms. out = (x − mean) / σ · (offset + weight) + bias.
KERNEL void __launch_bounds__(128)
norm(Any x, Any weight, Any bias, Any out, float* stats, size_t rows, int cols, float offset, float eps, int centred) {
    if (warp_row() >= rows) return;
    if (cols % 4)
        norm_row<1>(x, weight, bias, out, stats, warp_row(), cols, offset, eps, centred);
    else
        norm_row<4>(x, weight, bias, out, stats, warp_row(), cols, offset, eps, centred);
}

template <int WIDTH>
__device__ __forceinline__ void norm_grad_row(const Any& dy, const Any& x, const Any& weight, const float* stats, const Out& dx, size_t row, int cols, float offset, int centred) {
    const size_t at = row * cols;
    const int first = threadIdx.x % 32 * WIDTH, step = 32 * WIDTH;
    const float mean = centred ? stats[row * 2] : 0.0f, inverse = centred ? stats[row * 2 + 1] : stats[row];
    float sum = 0, with_x = 0;
    for (int i = first; i < cols; i += step) {
        const Some<WIDTH> d = load_some<WIDTH>(dy, at + i), w = load_some<WIDTH>(weight, i), v = load_some<WIDTH>(x, at + i);
        for (int j = 0; j < WIDTH; j++) {
            const float g = d.v[j] * (offset + w.v[j]);
            sum += g, with_x += g * inverse * (v.v[j] - mean);
        }
    }
    sum = centred ? warp_sum(sum) / cols : 0.0f;
    with_x = warp_sum(with_x) / cols;
    for (int i = first; i < cols; i += step) {
        const Some<WIDTH> d = load_some<WIDTH>(dy, at + i), w = load_some<WIDTH>(weight, i);
        Some<WIDTH> v = load_some<WIDTH>(x, at + i);
        for (int j = 0; j < WIDTH; j++) v.v[j] = inverse * (d.v[j] * (offset + w.v[j]) - sum - (v.v[j] - mean) * inverse * with_x);
        if (dx.base) {
            const Some<WIDTH> b = load_some<WIDTH>(Any{(void*)dx.base, dx.type}, at + i);
            for (int j = 0; j < WIDTH; j++) v.v[j] += b.v[j];
        }
        store_some<WIDTH>(Any{dx.data, dx.type}, at + i, v);
    }
}

KERNEL void __launch_bounds__(128)
norm_grad(Any dy, Any x, Any weight, const float* stats, Out dx, size_t rows, int cols, float offset, int centred) {
    if (warp_row() >= rows) return;
    if (cols % 4)
        norm_grad_row<1>(dy, x, weight, stats, dx, warp_row(), cols, offset, centred);
    else
        norm_grad_row<4>(dy, x, weight, stats, dx, warp_row(), cols, offset, centred);
}

// Sums over `each` rows of dy · x̂, and of dy. grid: columns / 128, parts.
KERNEL void __launch_bounds__(128)
norm_weight_grad(Any dy, Any x, const float* stats, float* partial, size_t rows, int cols, int each, int centred) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= cols) return;
    const size_t first = size_t(blockIdx.y) * each, last = first + each < rows ? first + each : rows;
    float sum = 0;
    for (size_t row = first; row < last; row++) {
        const float mean = centred ? stats[row * 2] : 0.0f, inverse = centred ? stats[row * 2 + 1] : stats[row];
        sum += load(dy, row * cols + column) * inverse * (load(x, row * cols + column) - mean);
    }
    partial[size_t(blockIdx.y) * cols + column] = sum;
}

// Sums over `each` rows. grid: columns / 128, parts.
KERNEL void __launch_bounds__(128) sum_rows(Any x, float* partial, size_t rows, int cols, size_t pitch, int each) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= cols) return;
    const size_t first = size_t(blockIdx.y) * each, last = first + each < rows ? first + each : rows;
    float sum = 0;
    for (size_t row = first; row < last; row++) sum += load(x, row * pitch + column);
    partial[size_t(blockIdx.y) * cols + column] = sum;
}

KERNEL void __launch_bounds__(128) sum_parts(const float* partial, Out out, int parts, int cols) {
    if (index() >= size_t(cols)) return;
    float sum = 0;
    for (int i = 0; i < parts; i++) sum += partial[size_t(i) * cols + index()];
    write(out, index(), sum);
}
