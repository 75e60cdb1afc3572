// Losses, a block a row, with gradients in place; numbers of the device.
#include "prelude.h"

// What a thread knows of its part of a row of scores times `factor`, then what the block knows of the whole.
struct Softmax {
    float max, sum;
};
template <int WIDTH> __device__ __forceinline__ Softmax softmax_of(const Any& x, size_t at, int cols, float factor) {
    float max = -INFINITE, sum = 0;
    for (int i = threadIdx.x * WIDTH; i < cols; i += blockDim.x * WIDTH) {
        const Some<WIDTH> some = load_some<WIDTH>(x, at + i);
        float best = max;
        for (int j = 0; j < WIDTH; j++)
            if (i + j < cols) best = fmaxf(best, some.v[j] * factor);
        sum *= max == -INFINITE ? 0.0f : expf(max - best), max = best;
        for (int j = 0; j < WIDTH; j++)
            if (i + j < cols) sum += max == -INFINITE ? 0.0f : expf(some.v[j] * factor - max);
    }
    const float largest = block_max(max);
    return {largest, block_sum(max == -INFINITE ? 0.0f : sum * expf(max - largest))};
}

template <int WIDTH>
__device__ __forceinline__ void cross_entropy_row(const Any& logits, int target, double* losses, int cols, int pitch, size_t at, float weight, int with_grad) {
    if (target < 0) {
        if (threadIdx.x == 0) losses[blockIdx.x] = 0;
        if (with_grad)
            for (int i = threadIdx.x * WIDTH; i < pitch; i += blockDim.x * WIDTH) store_some<WIDTH>(logits, at + i, Some<WIDTH>{});
        return;
    }
    const float at_target = load(logits, at + target);
    const Softmax s = softmax_of<WIDTH>(logits, at, cols, 1);
    if (threadIdx.x == 0) losses[blockIdx.x] = double(s.max) + log(double(s.sum)) - double(at_target);
    const float factor = weight / s.sum;
    if (with_grad)
        for (int i = threadIdx.x * WIDTH; i < pitch; i += blockDim.x * WIDTH) {
            Some<WIDTH> some = load_some<WIDTH>(logits, at + i);
            for (int j = 0; j < WIDTH; j++) some.v[j] = i + j < cols ? expf(some.v[j] - s.max) * factor - (i + j == target ? weight : 0.0f) : 0.0f;
            store_some<WIDTH>(logits, at + i, some);
        }
}

// grid: rows, `pitch` apart. losses: per row −log softmax at the target; targets below 0 do not count. The logits become
// weight · (softmax − onehot), and zeros beyond.
KERNEL void __launch_bounds__(256)
cross_entropy(Any logits, const int* targets, double* losses, int cols, size_t pitch, float weight, int with_grad) {
    if (pitch % 4)
        cross_entropy_row<1>(logits, targets[blockIdx.x], losses, cols, int(pitch), blockIdx.x * pitch, weight, with_grad);
    else
        cross_entropy_row<4>(logits, targets[blockIdx.x], losses, cols, int(pitch), blockIdx.x * pitch, weight, with_grad);
}

// losses: T² KL(teacher ‖ student); the student becomes weight · T · (softmax(s/T) − softmax(t/T)).
KERNEL void __launch_bounds__(256)
kl_divergence(Any student, Any teacher, double* losses, int cols, size_t pitch, size_t teacher_pitch, float temperature, float weight, int with_grad) {
    const size_t at = blockIdx.x * pitch, theirs = blockIdx.x * teacher_pitch;
    const float inverse = 1 / temperature;
    const Softmax q = softmax_of<1>(student, at, cols, inverse), p = softmax_of<1>(teacher, theirs, cols, inverse);
    const double shift = double(q.max) + log(double(q.sum)) - double(p.max) - log(double(p.sum));
    double cross = 0;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        const float t = load(teacher, theirs + i) * inverse, s = load(student, at + i) * inverse;
        const float share = expf(t - p.max);
        cross += double(share) * double(t - s);
        if (with_grad) store(student, at + i, weight * temperature * (expf(s - q.max) / q.sum - share / p.sum));
    }
    cross = block_sum(cross);
    if (threadIdx.x == 0) losses[blockIdx.x] = (cross / double(p.sum) + shift) * double(temperature) * double(temperature);
}

enum { RELATIVE, SQUARED, BINARY };

// losses: |x − r|² / |r|², (x − r)², or the mean binary cross-entropy; x becomes weight · its gradient.
KERNEL void __launch_bounds__(256) distance(int kind, Any x, Any reference, Any out, double* losses, int cols, float weight) {
    const size_t at = size_t(blockIdx.x) * cols;
    double power = 0, sum = 0;
    if (kind == RELATIVE) {
        for (int i = threadIdx.x; i < cols; i += blockDim.x) {
            const double r = load(reference, at + i);
            power += r * r;
        }
        power = block_sum(power);
    }
    const double share = kind == RELATIVE ? (power > 0 ? 1 / power : 0.0) : kind == BINARY ? 1.0 / cols : 1.0;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        const float v = load(x, at + i), r = load(reference, at + i);
        if (kind == BINARY) {
            const float small = expf(-fabsf(v)); // of the smaller side, which cannot overflow
            const float probability = v >= 0 ? 1 / (1 + small) : small / (1 + small);
            sum += double(fmaxf(v, 0.0f) - v * r) + log1p(double(small));
            store(out, at + i, weight * (probability - r) * float(share));
        } else {
            const float difference = v - r;
            sum += double(difference) * double(difference);
            store(out, at + i, 2 * weight * float(share) * difference);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = sum * share;
}

// Consecutive elements of some array.
struct Piece {
    Any x;
    size_t first, count;
};
// Σ x² of pieces that begin at whole fours. grid: pieces.
KERNEL void __launch_bounds__(256) sum_of_squares(const Piece* pieces, double* partial) {
    const Piece piece = pieces[blockIdx.x];
    const size_t fours = piece.count / 4;
    float sum = 0;
    for (size_t i = threadIdx.x; i < fours; i += blockDim.x) {
        const float4 v = load4(piece.x, piece.first / 4 + i);
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    if (threadIdx.x < piece.count % 4) {
        const float v = load(piece.x, piece.first + fours * 4 + threadIdx.x);
        sum += v * v;
    }
    const double total = block_sum(double(sum));
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// One block: Σ of all.
KERNEL void __launch_bounds__(256) sum_doubles(const double* x, double* out, int count) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

struct Parts {
    const double* number[32];
    double factor[32];
    double constant;
    long count;
};
// One thread: constant + Σ factor · number.
KERNEL void combine(Parts parts, double* out) {
    double sum = parts.constant;
    for (int i = 0; i < parts.count; i++) sum += parts.factor[i] * *parts.number[i];
    *out = sum;
}

// One after another.
KERNEL void collect(Parts parts, double* out) {
    for (int i = 0; i < parts.count; i++) out[i] = *parts.number[i];
}
