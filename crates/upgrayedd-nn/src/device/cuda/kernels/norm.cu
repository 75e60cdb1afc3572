// Layer norm and root-mean-square norm, a warp a row; sums over rows by parts.
#include "prelude.h"

// Where this warp's row is: four warps a block.
__device__ __forceinline__ size_t warp_row() { return size_t(blockIdx.x) * 4 + threadIdx.x / 32; }

// stats: per row mean and 1/σ where centred, else 1/rms. out = (x − mean) / σ · (offset + weight) + bias.
KERNEL void __launch_bounds__(128)
norm(Any x, Any weight, Any bias, Any out, float* stats, size_t rows, int cols, float offset, float eps, int centred) {
    const size_t row = warp_row(), at = row * cols;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    float mean = 0, squares = 0;
    if (centred) {
        for (int i = lane; i < cols; i += 32) mean += load(x, at + i);
        mean = warp_sum(mean) / cols;
    }
    for (int i = lane; i < cols; i += 32) {
        const float v = load(x, at + i) - mean;
        squares += v * v;
    }
    const float inverse = 1 / sqrtf(warp_sum(squares) / cols + eps);
    for (int i = lane; i < cols; i += 32) {
        const float y = (load(x, at + i) - mean) * inverse * (offset + load(weight, i));
        store(out, at + i, bias.data ? y + load(bias, i) : y);
    }
    if (lane == 0) {
        if (centred) stats[row * 2] = mean, stats[row * 2 + 1] = inverse;
        else stats[row] = inverse;
    }
}

KERNEL void __launch_bounds__(128)
norm_grad(Any dy, Any x, Any weight, const float* stats, Out dx, size_t rows, int cols, float offset, int centred) {
    const size_t row = warp_row(), at = row * cols;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const float mean = centred ? stats[row * 2] : 0.0f, inverse = centred ? stats[row * 2 + 1] : stats[row];
    float sum = 0, with_x = 0;
    for (int i = lane; i < cols; i += 32) {
        const float g = load(dy, at + i) * (offset + load(weight, i));
        sum += g;
        with_x += g * inverse * (load(x, at + i) - mean);
    }
    sum = centred ? warp_sum(sum) / cols : 0.0f;
    with_x = warp_sum(with_x) / cols;
    for (int i = lane; i < cols; i += 32) {
        const float g = load(dy, at + i) * (offset + load(weight, i));
        write(dx, at + i, inverse * (g - sum - (load(x, at + i) - mean) * inverse * with_x));
    }
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
KERNEL void __launch_bounds__(128) sum_rows(Any x, float* partial, size_t rows, int cols, int each) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= cols) return;
    const size_t first = size_t(blockIdx.y) * each, last = first + each < rows ? first + each : rows;
    float sum = 0;
    for (size_t row = first; row < last; row++) sum += load(x, row * cols + column);
    partial[size_t(blockIdx.y) * cols + column] = sum;
}

KERNEL void __launch_bounds__(128) sum_parts(const float* partial, Out out, int parts, int cols) {
    if (index() >= cols) return;
    float sum = 0;
    for (int i = 0; i < parts; i++) sum += partial[size_t(i) * cols + index()];
    write(out, index(), sum);
}
