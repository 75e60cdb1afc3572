//! Attention.

use std::sync::Arc;

use super::gpu::Block;
use super::launch::{Argument, Kind, Launch, Words};
use super::linear::halves;
use super::memory::Cast;
use super::open::Cuda;
use crate::Tensor;
use crate::kernels::{AttentionGrads, AttentionInputs, AttentionOutput, AttentionShape, EntropyProbe};

/// `struct Attention` of the kernels, and what it points to.
struct Arguments {
    words: Vec<u64>,
    _lists: [Option<Arc<Block>>; 3],
    _wide: [Option<Cast>; 2],
}

/// Queries or keys that a block of the plain kernels has.
const WARPS: usize = 4;
/// Queries or keys that a block of the kernels by tiles has.
const TILE: usize = 64;

/// The kernels by tiles for one width of heads, and the bytes of shared memory that they take.
struct Tiles {
    forward: (&'static str, usize),
    dq: (&'static str, usize),
    dkv: (&'static str, usize),
}

/// Those for such heads, if there are any: `more` than scores as they are, or not.
fn tiles(head_dim: usize, more: bool) -> Option<Tiles> {
    let (width, [forward, dq, dkv]) = match (head_dim, more) {
        _ if !head_dim.is_multiple_of(8) => return None,
        (..=32, false) => (32, ["tiles_forward_32", "tiles_dq_32", "tiles_dkv_32"]),
        (..=32, true) => (32, ["tiles_forward_32_more", "tiles_dq_32_more", "tiles_dkv_32_more"]),
        (..=64, false) => (64, ["tiles_forward_64", "tiles_dq_64", "tiles_dkv_64"]),
        (..=64, true) => (64, ["tiles_forward_64_more", "tiles_dq_64_more", "tiles_dkv_64_more"]),
        (..=128, false) => (128, ["tiles_forward_128", "tiles_dq_128", "tiles_dkv_128"]),
        (..=128, true) => (128, ["tiles_forward_128_more", "tiles_dq_128_more", "tiles_dkv_128_more"]),
        _ => return None,
    };
    let row = 2 * (width + 8);
    // What comes by in two stages of two operands each: keys, or queries and what is taken from their scores.
    let (keys, queries) = if width > 64 { (32, 16) } else { (TILE, TILE) };
    Some(Tiles {
        forward: (forward, 5 * TILE * row),
        dq: (dq, (2 * TILE + 4 * keys) * row),
        dkv: (dkv, (2 * TILE + 4 * queries) * row + 2 * queries * 8),
    })
}

impl Cuda {
    fn arguments(&self, inputs: &AttentionInputs<'_>, s: &AttentionShape) -> Arguments {
        let numbers = |list: &[usize]| {
            let list: Vec<u32> = list.iter().map(|number| *number as u32).collect();
            self.gpu.list(bytemuck::cast_slice(&list))
        };
        let kv_of = Some(numbers(&s.kv_of));
        let columns = inputs.bias.map(|_| numbers(&s.bias_columns));
        let mask = s.key_mask.as_ref().map(|mask| self.gpu.list(mask));
        let at = |list: &Option<Arc<Block>>| list.as_ref().map_or(0, |block| block.at);
        let mut words = Vec::new();
        for tensor in [inputs.q, inputs.k, inputs.v] {
            self.gpu.any(tensor).words(&mut words);
        }
        // Kernels read these as `f32`.
        let wide = [inputs.gates, inputs.bias].map(|t| t.map(|t| self.gpu.as_kind(t, Kind::F32)));
        words.extend(wide.each_ref().map(|cast| cast.as_ref().map_or(0, |cast| cast.any.at)));
        words.extend([at(&kv_of), at(&columns), at(&mask)]);
        let heads = s.heads();
        let shared = inputs.gates.is_some_and(|gates| gates.len() == heads);
        let numbers = [
            s.batch,
            s.queries,
            s.keys,
            s.head_dim,
            heads,
            s.kv_heads,
            inputs.bias.map_or(0, Tensor::cols),
            usize::from(s.causal),
            s.window.unwrap_or(0).min(s.keys),
            usize::from(shared),
        ];
        let mut numbers: Vec<u32> = numbers.iter().map(|number| *number as u32).collect();
        numbers.extend([s.scale.to_bits(), s.soft_cap.unwrap_or(0.0).to_bits()]);
        halves(&numbers).words(&mut words);
        Arguments { words, _lists: [kv_of, columns, mask], _wide: wide }
    }

    pub(super) fn attention(
        &self,
        inputs: &AttentionInputs<'_>,
        s: &AttentionShape,
        entropy: bool,
    ) -> AttentionOutput {
        let heads = s.heads();
        let kind = self.gpu.any(inputs.q).kind;
        let shape = [s.batch * s.queries, heads * s.head_dim];
        let out = self.gpu.tensor(&shape, kind);
        // What the backward pass needs of the result is without gates.
        let own = inputs.gates.map_or_else(|| out.clone(), |_| self.gpu.tensor(&shape, kind));
        let lse = self.gpu.tensor(&[s.batch, heads, s.queries], Kind::F32);
        let entropies = entropy.then(|| self.gpu.block(lse.len() * 4));
        let arguments = self.arguments(inputs, s);
        let (kernel, rows, shared) = match self.tiles(inputs, s, entropy) {
            Some(Tiles { forward: (kernel, shared), .. }) => (kernel, TILE, shared),
            None => ("attention_plain", WARPS, WARPS * s.head_dim * 4),
        };
        let launch = Launch::new(kernel, [s.queries.div_ceil(rows), heads, s.batch], 128)
            .with_shared(shared)
            .arg(Words(arguments.words.clone()))
            .arg(self.gpu.any(&out))
            .arg(self.gpu.maybe(inputs.gates.map(|_| &own)))
            .arg(self.gpu.any(&lse).at)
            .arg(entropies.as_ref().map_or(0, |block| block.at));
        self.gpu.launch(&launch);
        let entropy = entropies.map(|entropies| self.entropy(entropies.at, s));
        AttentionOutput { out, left: vec![lse, own], entropy }
    }

    /// Tensor cores multiply 16 bits.
    fn tiles(&self, inputs: &AttentionInputs<'_>, s: &AttentionShape, entropy: bool) -> Option<Tiles> {
        let is_small = |tensor: &Tensor| self.gpu.any(tensor).kind == Kind::Bf16;
        let more = entropy || inputs.bias.is_some() || s.soft_cap.is_some();
        [inputs.q, inputs.k, inputs.v].into_iter().all(is_small).then(|| tiles(s.head_dim, more)).flatten()
    }

    fn entropy(&self, entropies: u64, s: &AttentionShape) -> EntropyProbe {
        let heads = s.heads();
        let sums = self.gpu.block(heads * 16);
        let launch = Launch::new("attention_entropy", [heads, 1, 1], 256).arg(entropies).arg(sums.at);
        self.gpu.launch(&launch.arg(s.batch as i32).arg(s.queries as i32).arg(heads as i32));
        let mut bytes = vec![0; heads * 16];
        self.gpu.download(sums.at, &mut bytes);
        let values: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        let sums = values.iter().step_by(2).copied().collect();
        // Every head sees the same mask, so one head's count serves all.
        EntropyProbe { sums, queries: values.get(1).map_or(0, |count| *count as u64) }
    }

    pub(super) fn attention_grad(
        &self,
        dout: &Tensor,
        inputs: &AttentionInputs<'_>,
        left: &[Tensor],
        s: &AttentionShape,
        grads: AttentionGrads<'_>,
    ) {
        let [lse, own] = left else { unreachable!("attention leaves two tensors") };
        let (heads, lse) = (s.heads(), self.gpu.any(lse).at);
        let tiles = self.tiles(inputs, s, false);
        let dout = self.gpu.as_kind(dout, if tiles.is_some() { Kind::Bf16 } else { self.gpu.any(dout).kind });
        let (batch, queries) = (s.batch as i32, s.queries as i32);
        let delta = self.gpu.block(s.batch * heads * s.queries * 4);
        let items = s.batch * s.queries * heads;
        let launch = Launch::new("attention_delta", [items.div_ceil(4), 1, 1], 128)
            .arg(dout.any)
            .arg(self.gpu.any(own))
            .arg(delta.at)
            .arg(batch)
            .arg(queries)
            .arg(heads as i32)
            .arg(s.head_dim as i32);
        self.gpu.launch(&launch);
        if let Some(gates) = grads.gates {
            let count = gates.tensor.len();
            let shared = i32::from(count == heads);
            let out = self.gpu.out(gates, Kind::F32);
            let launch = Launch::new("attention_gate_grad", [count, 1, 1], 32).arg(delta.at).arg(out);
            self.gpu.launch(&launch.arg(batch).arg(queries).arg(heads as i32).arg(shared));
        }
        let arguments = self.arguments(inputs, s);
        let launch = |(kernel, shared), grid| {
            let launch = Launch::new(kernel, grid, 128).with_shared(shared);
            launch.arg(Words(arguments.words.clone())).arg(dout.any).arg(lse).arg(delta.at)
        };
        let plain = 2 * WARPS * s.head_dim * 4;
        let (dq_kernel, dkv_kernel, rows) = match tiles {
            Some(Tiles { dq, dkv, .. }) => (dq, dkv, TILE),
            None => (("attention_plain_dq", plain), ("attention_plain_dkv", plain), WARPS),
        };
        if let Some(dq) = grads.q {
            let out = self.gpu.out(dq, self.gpu.any(inputs.q).kind);
            let grid = [s.queries.div_ceil(rows), heads, s.batch];
            self.gpu.launch(&launch(dq_kernel, grid).arg(out));
        }
        let kind = self.gpu.any(inputs.k).kind;
        let (dk, dv) = (self.gpu.maybe_out(grads.k, kind), self.gpu.maybe_out(grads.v, kind));
        if dk.at != 0 || dv.at != 0 {
            let grid = [s.keys.div_ceil(rows), s.kv_heads, s.batch];
            self.gpu.launch(&launch(dkv_kernel, grid).arg(dk).arg(dv));
        }
        if let Some(bias) = grads.bias {
            let (distances, columns) = (bias.tensor.rows(), bias.tensor.cols());
            let out = self.gpu.out(bias, Kind::F32);
            let launch = Launch::new("attention_bias_grad", [distances, columns, 1], 32);
            let launch = launch.arg(Words(arguments.words.clone())).arg(dout.any).arg(lse);
            self.gpu.launch(&launch.arg(delta.at).arg(out));
        }
    }
}
