// The kernels by name, called as a driver calls them: with pointers to their arguments.
#include "../kernels/attention.cu"
#include "../kernels/loss.cu"
#include "../kernels/norm.cu"
#include "../kernels/optim.cu"
#include "../kernels/pointwise.cu"
#include "../kernels/tiles.cu"
#include <utility>

template <class... A, size_t... I> static void apply(void (*f)(A...), void** args, std::index_sequence<I...>) { f(*(A*)args[I]...); }
template <class... A> static void call(void (*f)(A...), void** args) { apply(f, args, std::index_sequence_for<A...>{}); }

// 1 if there is such a kernel, with `count` arguments.
extern "C" int upgrayedd_emulate(const char* name, const unsigned* grid, const unsigned* block, size_t shared, void** args, size_t count, unsigned order) {
    auto run = [&]<class... A>(void (*kernel)(A...)) {
        if (sizeof...(A) != count) return 0;
        host::launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, [=] { call(kernel, args); }, order);
        return 1;
    };
#define TRY(kernel) if (!strcmp(name, #kernel)) return run(kernel);
    TRY(activation) TRY(activation_grad) TRY(adamw) TRY(add) TRY(attention_bias_grad) TRY(attention_delta) TRY(attention_entropy)
    TRY(attention_gate_grad) TRY(attention_plain) TRY(attention_plain_dkv) TRY(attention_plain_dq) TRY(collect) TRY(combine) TRY(convert)
    TRY(copy_elements) TRY(cross_entropy) TRY(distance) TRY(gate) TRY(gate_grad) TRY(gather) TRY(kl_divergence) TRY(mean_rows) TRY(mean_rows_grad) TRY(mirror)
    TRY(norm) TRY(norm_grad) TRY(norm_weight_grad) TRY(pick_columns) TRY(rope) TRY(scale) TRY(scatter_add) TRY(soft_cap)
    TRY(soft_cap_grad) TRY(sum_doubles) TRY(sum_of_squares) TRY(sum_parts) TRY(sum_rows) TRY(tiles_dkv_128) TRY(tiles_dkv_128_more) TRY(tiles_dkv_32)
    TRY(tiles_dkv_32_more) TRY(tiles_dkv_64) TRY(tiles_dkv_64_more) TRY(tiles_dq_128) TRY(tiles_dq_128_more) TRY(tiles_dq_32)
    TRY(tiles_dq_32_more) TRY(tiles_dq_64) TRY(tiles_dq_64_more) TRY(tiles_forward_128) TRY(tiles_forward_128_more) TRY(tiles_forward_32)
    TRY(tiles_forward_32_more) TRY(tiles_forward_64) TRY(tiles_forward_64_more) TRY(widen_half)
    return 0;
}
