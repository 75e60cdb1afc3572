//! Everything that ops ask of a device, and the types that they ask with.

use std::ops::Range;
use std::sync::Arc;

use crate::tensor::DeviceMemory;
use crate::{Result, Tensor};

/// A target that does not count (transformers' convention).
pub const IGNORE: i64 = -100;

/// The numbers that a GPU computes with. Sums, statistics, weights that learn and their moments are `f32` in
/// all of them; the CPU computes in `f32` throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Products and activations in bfloat16.
    #[default]
    Bf16,
    /// Products of `f32` rounded to TensorFloat-32.
    Tf32,
    /// `f32` throughout.
    F32,
}

/// A gradient to be written: overwritten, or added to.
pub(crate) struct Sink<'a> {
    pub(crate) tensor: &'a mut Tensor,
    pub(crate) accumulate: bool,
}

/// A number that a device computes. Reading it waits for the device, so sums are made where they are and read
/// once.
#[derive(Debug, Clone)]
pub struct Number(pub(crate) Value);

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Host(f64),
    Device(Arc<dyn DeviceMemory>),
}

impl Default for Number {
    fn default() -> Self {
        Self(Value::Host(0.0))
    }
}

impl Number {
    /// The number. [`crate::Device::read`] reads several at once.
    pub fn read(&self) -> f64 {
        match &self.0 {
            Value::Host(value) => *value,
            Value::Device(memory) => memory.number(),
        }
    }
}

/// Elementwise non-linearities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Gaussian error linear unit, exact (`erf`).
    Gelu,
    /// GELU's tanh approximation, transformers' `gelu_new` and `gelu_pytorch_tanh`.
    GeluTanh,
    /// `x · sigmoid(x)`, also called swish.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
}

/// Geometry and masks of one attention call. A head is `head_dim` consecutive columns.
#[derive(Debug, Clone)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Query positions per sequence; they are the last of the `keys` positions.
    pub queries: usize,
    /// Key positions per sequence.
    pub keys: usize,
    /// Columns per head.
    pub head_dim: usize,
    /// For each query head the key/value head it reads.
    pub kv_of: Vec<usize>,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Multiplies the dot products, usually `1/√head_dim`.
    pub scale: f32,
    /// A query sees only its own and earlier positions.
    pub causal: bool,
    /// A query sees only positions less than this far away: as many latest ones, its own included, where it
    /// looks back only.
    pub window: Option<usize>,
    /// Scores s become `cap · tanh(s / cap)`.
    pub soft_cap: Option<f32>,
    /// `batch × keys`: 0 marks padding, which is never seen.
    pub key_mask: Option<Vec<u8>>,
    /// For each query head its column of what is added to scores by distance; empty where nothing is.
    pub bias_columns: Vec<usize>,
}

impl AttentionShape {
    /// Number of query heads.
    pub fn heads(&self) -> usize {
        self.kv_of.len()
    }

    /// The row of what is added by distance that belongs to a query and the first key.
    pub(crate) fn first_distance(&self, query: usize) -> usize {
        self.queries - 1 - query
    }

    /// The keys that `query` may see, before the padding mask.
    pub(crate) fn visible(&self, query: usize) -> std::ops::Range<usize> {
        let position = query + self.keys - self.queries;
        let ahead = if self.causal { 1 } else { self.window.unwrap_or(self.keys) };
        let end = (position + ahead).min(self.keys);
        let start = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        start..end
    }
}

/// Attention entropy per head, summed where more than one key was visible and the query is not padding.
#[derive(Debug, Clone, Default)]
pub struct EntropyProbe {
    /// Per query head: Σ over queries of entropy / ln(visible keys), each in `[0, 1]`.
    pub sums: Vec<f64>,
    /// Queries counted (the same for every head).
    pub queries: u64,
}

/// What attention reads.
#[derive(Clone, Copy)]
pub(crate) struct AttentionInputs<'a> {
    pub(crate) q: &'a Tensor,
    pub(crate) k: &'a Tensor,
    pub(crate) v: &'a Tensor,
    /// `batch × heads`, or `heads`.
    pub(crate) gates: Option<&'a Tensor>,
    /// `(queries + keys − 1) × columns`: added to scores by the distance from query to key, from that of the
    /// last query and the first key on.
    pub(crate) bias: Option<&'a Tensor>,
}

/// What an attention forward pass leaves behind.
pub(crate) struct AttentionOutput {
    pub(crate) out: Tensor,
    /// What the device's backward pass wants to see again: `batch × heads × queries` of log Σ exp of the
    /// scaled scores (−∞ where nothing is visible), then what it likes.
    pub(crate) left: Vec<Tensor>,
    pub(crate) entropy: Option<EntropyProbe>,
}

/// The gradients an attention backward pass writes.
pub(crate) struct AttentionGrads<'a> {
    pub(crate) q: Option<Sink<'a>>,
    pub(crate) k: Option<Sink<'a>>,
    pub(crate) v: Option<Sink<'a>>,
    /// `batch × heads`, or `heads` summed over the batch.
    pub(crate) gates: Option<Sink<'a>>,
    /// As the bias.
    pub(crate) bias: Option<Sink<'a>>,
}

/// One AdamW update (Loshchilov & Hutter 2019). Lanes are rows or columns of the parameter with a history of
/// their own.
pub(crate) struct AdamWStep<'a> {
    pub(crate) lanes: Lanes,
    /// Of all parameters; this one's are `3 · count` from `first` on: per lane learning rate / (1 − β₁ᵗ),
    /// then 1 / √(1 − β₂ᵗ), then 1 − learning rate · weight decay.
    pub(crate) vectors: &'a Tensor,
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) eps: f32,
    /// Multiplies the gradient (clipping).
    pub(crate) grad_scale: f32,
}

/// How a parameter splits into lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lanes {
    /// One lane: the whole tensor.
    Whole,
    /// A lane per row (output features).
    Rows,
    /// A lane per column (input features).
    Cols,
}

impl Lanes {
    /// How many lanes a parameter has.
    pub fn count(self, tensor: &Tensor) -> usize {
        match self {
            Self::Whole => 1,
            Self::Rows => tensor.rows(),
            Self::Cols => tensor.cols(),
        }
    }
}

/// Everything an op asks of a device. Tensors are row-major; `rows × cols` as [`Tensor::rows`] and
/// [`Tensor::cols`] say.
pub(crate) trait Kernels: Send + Sync {
    /// Says what has gone wrong since the last time it was asked: until then nothing more is done.
    fn check(&self) -> Result<()>;
    /// A tensor of unspecified contents, to be overwritten.
    fn empty(&self, shape: &[usize]) -> Tensor;
    /// Zeros that live as long as the weights.
    fn zeros(&self, shape: &[usize]) -> Tensor;
    /// A tensor as these kernels read it.
    fn upload(&self, tensor: Tensor) -> Tensor;
    /// A weight as several products read it, which would otherwise each make what they need of it.
    fn for_products(&self, weight: &Tensor) -> Tensor;
    /// Numbers, all at once.
    fn read(&self, numbers: &[&Number]) -> Vec<f64>;

    /// `a += b`.
    fn add_assign(&self, a: &mut Tensor, b: &Tensor);
    /// `out = a + b`.
    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor;

    /// `y = x wᵀ + bias`; `x (N, I)`, `w (O, I)`, `bias (O)`, `y (N, O)`.
    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor;
    /// [`Kernels::linear`] for scores over a vocabulary, as losses take them: of odd sizes too.
    fn logits(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
        self.linear(x, w, bias)
    }
    /// `dx = dy w`.
    fn linear_grad_input(&self, dy: &Tensor, w: &Tensor, dx: Sink<'_>);
    /// `dw = dyᵀ x`.
    fn linear_grad_weight(&self, dy: &Tensor, x: &Tensor, dw: Sink<'_>);
    /// `xᵀ x`, symmetric to the bit, for the work of half a product.
    fn gram(&self, x: &Tensor) -> Tensor;
    /// `a bᵀ` with `a (N, I)`, `b (O, I)`, in single precision whatever that of the device is.
    fn multiply(&self, a: &Tensor, b: &Tensor) -> Tensor;
    /// [`Kernels::linear_grad_input`] into the rows from `first` on of a larger gradient.
    fn linear_grad_input_rows(&self, dy: &Tensor, w: &Tensor, dx: &mut Tensor, first: usize);
    /// Column sums: the gradient of a bias.
    fn sum_rows(&self, dy: &Tensor, db: Sink<'_>);

    /// Layer norm over columns; returns the result and `(N, 2)` of mean and 1/σ.
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> (Tensor, Tensor);
    /// Gradients of [`Kernels::layer_norm`]: `[dx, dweight, dbias]`.
    fn layer_norm_grad(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        stats: &Tensor,
        grads: [Option<Sink<'_>>; 3],
    );
    /// Root-mean-square norm over every as many columns as there are weights, k times in a row, times offset +
    /// weight; returns the result and `(N · k, 1)` of 1/rms.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, offset: f32, eps: f32) -> (Tensor, Tensor);
    /// Gradients of [`Kernels::rms_norm`]: `[dx, dweight]`.
    fn rms_norm_grad(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        offset: f32,
        stats: &Tensor,
        grads: [Option<Sink<'_>>; 2],
    );

    /// Rotates the halves of the first columns of each head of `head_dim` by the angles of the rows' positions;
    /// `table (P, rotated columns)` holds cos then sin. `sign` −1 is the transposed.
    fn rope(&self, x: &Tensor, table: &Tensor, head_dim: usize, positions: &[u32], sign: f32, out: Sink<'_>);

    /// Scaled dot-product attention with a gate per head.
    fn attention(
        &self,
        inputs: &AttentionInputs<'_>,
        shape: &AttentionShape,
        entropy: bool,
    ) -> AttentionOutput;
    /// Gradients of [`Kernels::attention`], from those of its result and what it left behind.
    fn attention_grad(
        &self,
        dout: &Tensor,
        inputs: &AttentionInputs<'_>,
        left: &[Tensor],
        shape: &AttentionShape,
        grads: AttentionGrads<'_>,
    );

    /// `out = f(x)`, or `f(gate) · x` when `up` is given.
    fn activation(&self, kind: Activation, x: &Tensor, up: Option<&Tensor>) -> Tensor;
    /// Gradients of [`Kernels::activation`]: `[dx, dup]`.
    fn activation_grad(
        &self,
        kind: Activation,
        dy: &Tensor,
        x: &Tensor,
        up: Option<&Tensor>,
        grads: [Option<Sink<'_>>; 2],
    );

    /// `out = factor · x`.
    fn scale(&self, x: &Tensor, factor: f32, out: Sink<'_>);
    /// `out = x · gates`, column by column; `gates (S, C)` for as many sequences of equal length.
    fn gate(&self, x: &Tensor, gates: &Tensor, out: Sink<'_>);
    /// Gradient of [`Kernels::gate`] in the gates: the columns' sums of `x · dy`, sequence by sequence.
    fn gate_grad(&self, dy: &Tensor, x: &Tensor, dgates: Sink<'_>);
    /// Turns every x into `cap · tanh(x / cap)`.
    fn soft_cap(&self, x: &mut Tensor, cap: f32);
    /// Turns the gradient of what [`Kernels::soft_cap`] has made into that of what it was given.
    fn soft_cap_grad(&self, dy: &mut Tensor, capped: &Tensor, cap: f32);
    /// Rows of `table` picked by `ids`.
    fn gather(&self, table: &Tensor, ids: &[u32]) -> Tensor;
    /// Adds each row of `dy` to row `ids[i]` of the sink (which is zeroed first unless it accumulates).
    fn scatter_add(&self, dy: &Tensor, ids: &[u32], table: Sink<'_>);

    /// Means of `count` consecutive rows each, of those that `mask` (0 or 1 per row) counts: `(N / count, D)`.
    fn mean_rows(&self, x: &Tensor, count: usize, mask: Option<&[u8]>) -> Tensor;
    /// Gradient of [`Kernels::mean_rows`].
    fn mean_rows_grad(&self, dy: &Tensor, count: usize, mask: Option<&[u8]>, dx: Sink<'_>);
    /// Some consecutive rows.
    fn rows(&self, x: &Tensor, rows: Range<usize>) -> Tensor;
    /// Some ranges of columns, side by side.
    fn columns(&self, x: &Tensor, columns: &[Range<usize>]) -> Tensor;
    /// Puts `from` in the place of the rows from `first` on.
    fn write_rows(&self, to: &mut Tensor, first: usize, from: &Tensor);
    /// Σ factor · number, in this order.
    fn combine(&self, parts: &[(f64, &Number)]) -> Number;
    /// Σ x² over all of them.
    fn sum_of_squares(&self, tensors: &[&Tensor]) -> Number;
    /// How many rows of logits over so many entries should exist at once.
    fn rows_of_logits(&self, vocabulary: usize) -> usize;

    /// Σ of −log softmax(x wᵀ + bias) at the targets, which may be [`IGNORE`]; logits of all never exist at
    /// once.
    fn negative_log_likelihood(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        targets: &[i64],
    ) -> Number;
    /// Turns logits into `weight · (softmax − onehot)` in place and returns Σ of the negative
    /// log-likelihoods; `targets` may hold [`IGNORE`].
    fn cross_entropy(&self, logits: &mut Tensor, targets: &[i64], weight: f32, with_grad: bool) -> Number;
    /// Turns `student` logits into `weight · T · (softmax(s/T) − softmax(t/T))` in place and returns Σ of T²
    /// KL(t ‖ s).
    fn kl_divergence(
        &self,
        student: &mut Tensor,
        teacher: &Tensor,
        temperature: f32,
        weight: f32,
        with_grad: bool,
    ) -> Number;
    /// Turns rows of `x` into `weight · 2 (x − r) / |r|²` in place and returns Σ of |x − r|² / |r|²; rows
    /// with r = 0 do not count.
    fn relative_distance(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number;
    /// Turns `x` into `weight · 2 (x − r)` in place and returns Σ of (x − r)².
    fn squared_error(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number;

    /// Turns logits `x (N, L)` into `weight · (σ(x) − y) / L` in place and returns Σ of the rows' mean binary
    /// cross-entropies with the probabilities y.
    fn binary_cross_entropy(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number;

    /// Sees to it that a tensor can be changed in place without asking for memory, where that could fail.
    fn own(&self, _tensor: &mut Tensor) {}
    /// Updates a parameter and its moments.
    fn adamw(&self, w: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor, step: &AdamWStep<'_>);
}
