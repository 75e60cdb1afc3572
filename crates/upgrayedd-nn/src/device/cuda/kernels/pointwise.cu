// One number after another: sums, activations, rotations, rows that are picked.
#include "prelude.h"

// out = x, in another type.
KERNEL void __launch_bounds__(256) convert(Any x, Any out, size_t fours) {
    if (index() < fours) store4(out, index(), load4(x, index()));
}

// The same for what does not begin or end on a whole four.
KERNEL void __launch_bounds__(256) copy_elements(Any x, Any out, size_t from, size_t to, size_t count) {
    if (index() < count) store(out, to + index(), load(x, from + index()));
}

KERNEL void __launch_bounds__(256) widen_half(const unsigned short* x, float* out, size_t count) {
    if (index() < count) out[index()] = half_to_float(x[index()]);
}

KERNEL void __launch_bounds__(256) add(Any a, Any b, Any out, size_t fours) {
    if (index() >= fours) return;
    const float4 x = load4(a, index()), y = load4(b, index());
    store4(out, index(), float4{x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w});
}

KERNEL void __launch_bounds__(256) scale(Any x, float factor, Out out, size_t fours) {
    if (index() >= fours) return;
    const float4 v = load4(x, index());
    write4(out, index(), float4{factor * v.x, factor * v.y, factor * v.z, factor * v.w});
}

// Rows of sequences of equal length, each column times its sequence's gate.
KERNEL void __launch_bounds__(256) gate(Any x, Any gates, Out out, size_t count, size_t length, size_t cols) {
    if (index() >= count) return;
    const size_t sequence = index() / cols / length;
    write(out, index(), load(x, index()) * load(gates, sequence * cols + index() % cols));
}

KERNEL void __launch_bounds__(256) gate_grad(Any dy, Any x, Out dgates, size_t count, size_t length, size_t cols) {
    if (index() >= count) return;
    const size_t first = index() / cols * length * cols + index() % cols;
    float sum = 0;
    for (size_t row = 0; row < length; row++) sum += load(dy, first + row * cols) * load(x, first + row * cols);
    write(dgates, index(), sum);
}

KERNEL void __launch_bounds__(256) soft_cap(Any x, Any out, float cap, size_t fours) {
    if (index() >= fours) return;
    const float4 v = load4(x, index());
    store4(out, index(), float4{cap * tanhf(v.x / cap), cap * tanhf(v.y / cap), cap * tanhf(v.z / cap), cap * tanhf(v.w / cap)});
}

KERNEL void __launch_bounds__(256) soft_cap_grad(Any dy, Any capped, Any out, float cap, size_t fours) {
    if (index() >= fours) return;
    float4 d = load4(dy, index());
    const float4 y = load4(capped, index());
    d.x *= 1 - y.x / cap * (y.x / cap), d.y *= 1 - y.y / cap * (y.y / cap);
    d.z *= 1 - y.z / cap * (y.z / cap), d.w *= 1 - y.w / cap * (y.w / cap);
    store4(out, index(), d);
}

enum { GELU, GELU_TANH, SILU, RELU, TANH };

__device__ __forceinline__ float value_of(int kind, float x) {
    switch (kind) {
    case GELU: return 0.5f * x * (1 + erff(x * 0.70710678f));
    case GELU_TANH: return 0.5f * x * (1 + tanhf(0.7978846f * (x + 0.044715f * x * x * x)));
    case SILU: return x / (1 + expf(-x));
    case RELU: return fmaxf(x, 0.0f);
    default: return tanhf(x);
    }
}

__device__ __forceinline__ float slope_of(int kind, float x) {
    switch (kind) {
    case GELU: return 0.5f * (1 + erff(x * 0.70710678f)) + x * 0.3989423f * expf(-0.5f * x * x);
    case GELU_TANH: {
        const float t = tanhf(0.7978846f * (x + 0.044715f * x * x * x));
        return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978846f * (1 + 3 * 0.044715f * x * x);
    }
    case SILU: {
        const float s = 1 / (1 + expf(-x));
        return s * (x * (1 - s) + 1);
    }
    case RELU: return x > 0 ? 1.0f : 0.0f;
    default: {
        const float t = tanhf(x);
        return 1 - t * t;
    }
    }
}

// out = f(x), or f(x) · up.
KERNEL void __launch_bounds__(256) activation(int kind, Any x, Any up, Any out, size_t fours) {
    if (index() >= fours) return;
    const float4 v = load4(x, index());
    float4 y = {value_of(kind, v.x), value_of(kind, v.y), value_of(kind, v.z), value_of(kind, v.w)};
    if (up.data) {
        const float4 u = load4(up, index());
        y.x *= u.x, y.y *= u.y, y.z *= u.z, y.w *= u.w;
    }
    store4(out, index(), y);
}

KERNEL void __launch_bounds__(256) activation_grad(int kind, Any dy, Any x, Any up, Out dx, Out dup, size_t fours) {
    if (index() >= fours) return;
    const float4 v = load4(x, index()), d = load4(dy, index());
    if (dx.data) {
        float4 g = {d.x * slope_of(kind, v.x), d.y * slope_of(kind, v.y), d.z * slope_of(kind, v.z), d.w * slope_of(kind, v.w)};
        if (up.data) {
            const float4 u = load4(up, index());
            g.x *= u.x, g.y *= u.y, g.z *= u.z, g.w *= u.w;
        }
        write4(dx, index(), g);
    }
    if (dup.data)
        write4(dup, index(), float4{d.x * value_of(kind, v.x), d.y * value_of(kind, v.y), d.z * value_of(kind, v.z), d.w * value_of(kind, v.w)});
}

// Rotates the halves of the first columns of each head. table: per position cos, then sin.
KERNEL void __launch_bounds__(256)
rope(Any x, const float* table, const int* positions, Out out, size_t rows, int cols, int head_dim, int rotated, float sign) {
    if (index() >= rows * cols) return;
    const size_t row = index() / cols;
    const int column = int(index() % cols) % head_dim, half = rotated / 2;
    float value = load(x, index());
    if (column < rotated) {
        const int j = column % half;
        const float* line = table + size_t(positions[row]) * rotated;
        const float other = load(x, column < half ? index() + half : index() - half);
        const float s = sign * line[half + j];
        value = column < half ? value * line[j] - other * s : value * line[j] + other * s;
    }
    write(out, index(), value);
}

// Rows of a table.
KERNEL void __launch_bounds__(256) gather(Any table, const int* ids, Any out, size_t rows, int cols) {
    if (index() < rows * cols) store(out, index(), load(table, size_t(ids[index() / cols]) * cols + index() % cols));
}

// Adds rows of dy to rows of a table. plan: the rows of dy in the order of their ids, where each id's begin (one more), the ids.
// grid: ids.
KERNEL void __launch_bounds__(256) scatter_add(Any dy, const int* plan, Out table, int rows, int ids, int cols) {
    const int *order = plan, *begin = plan + rows, *id = begin + ids + 1;
    for (int column = threadIdx.x; column < cols; column += blockDim.x) {
        float sum = 0;
        for (int i = begin[blockIdx.x]; i < begin[blockIdx.x + 1]; i++) sum += load(dy, size_t(order[i]) * cols + column);
        write(table, size_t(id[blockIdx.x]) * cols + column, sum);
    }
}

// Some columns side by side.
KERNEL void __launch_bounds__(256) pick_columns(Any x, const int* columns, Any out, size_t rows, int cols, int width) {
    if (index() < rows * width) store(out, index(), load(x, index() / width * cols + columns[index() % width]));
}

// How many of a group's rows count.
__device__ __forceinline__ float share(const unsigned char* mask, size_t group, int count) {
    int counted = mask ? 0 : count;
    if (mask)
        for (int i = 0; i < count; i++) counted += mask[group * count + i] != 0;
    return 1.0f / (counted > 0 ? counted : 1);
}

// Means of as many rows each.
KERNEL void __launch_bounds__(256) mean_rows(Any x, const unsigned char* mask, Any out, size_t groups, int count, int cols) {
    if (index() >= groups * cols) return;
    const size_t group = index() / cols;
    float sum = 0;
    for (int i = 0; i < count; i++)
        if (!mask || mask[group * count + i]) sum += load(x, (group * count + i) * cols + index() % cols);
    store(out, index(), sum * share(mask, group, count));
}

KERNEL void __launch_bounds__(256) mean_rows_grad(Any dy, const unsigned char* mask, Out dx, size_t groups, int count, int cols) {
    if (index() >= groups * count * cols) return;
    const size_t row = index() / cols, group = row / count;
    const bool counts = !mask || mask[row];
    write(dx, index(), counts ? share(mask, group, count) * load(dy, group * cols + index() % cols) : 0.0f);
}

// The upper half of a square becomes the lower's mirror image.
KERNEL void __launch_bounds__(256) mirror(float* x, int size) {
    const size_t row = index() / size, column = index() % size;
    if (row < size_t(size) && column > row) x[index()] = x[column * size + row];
}
