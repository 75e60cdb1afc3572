// AdamW.
#include "prelude.h"

enum { WHOLE, ROWS, COLS };

// vectors: per lane learning rate / (1 − β₁ᵗ), then 1 / √(1 − β₂ᵗ), then 1 − learning rate · weight decay. small: w in 16 bits, or none.
KERNEL void __launch_bounds__(256)
adamw(float* w, bf16* small, Any g, float* m, float* v, const float* vectors, int lanes, int kind, size_t count, int cols, float beta1,
      float beta2, float eps, float grad_scale) {
    const size_t i = index();
    if (i >= count) return;
    const int lane = kind == WHOLE ? 0 : kind == ROWS ? int(i / cols) : int(i % cols);
    const float grad = load(g, i) * grad_scale;
    const float first = beta1 * m[i] + (1 - beta1) * grad, second = beta2 * v[i] + (1 - beta2) * grad * grad;
    const float value = w[i] * vectors[2 * lanes + lane] - vectors[lane] * first / (sqrtf(second) * vectors[lanes + lane] + eps);
    m[i] = first, v[i] = second, w[i] = value;
    if (small) small[i] = to_bf16(value);
}
