//! What a layer's attention and its MLP make, each in two steps: what its writer reads, and what that adds to the
//! residual stream.

use std::ops::Range;
use std::sync::Arc;

use upgrayedd_nn::ops::{self, AttentionInputs, AttentionShape, EntropyProbe};
use upgrayedd_nn::{Result, Tape, Tensor, Var};

use super::batch::{Batch, Hooks, KvCache, LayerVars};
use super::state::{LinearIds, Model};
use crate::spec::{Block, distance_bucket};
use crate::units::{LayerSite, Site};
use crate::weights::{Kind, Part, Writer};

impl Model {
    /// The residual stream after a layer's attention has read and made `context`, and what its MLP reads: the same
    /// but where the two work side by side.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If there is no such layer, or the shapes are not those of the batch and the model.
    pub fn after_attention(
        &self,
        tape: &mut Tape<'_>,
        index: usize,
        x: Var,
        context: Var,
        vars: &LayerVars,
    ) -> Result<(Var, Var)> {
        let read = self.spec.parallel.then(|| x.clone());
        let x = self.write(tape, index, Writer::Attention, &x, context, vars)?;
        let read = read.unwrap_or_else(|| x.clone());
        Ok((x, read))
    }

    /// The residual stream after a writer has read `inputs`.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If there is no such layer, or `inputs` are not as wide as the writer reads.
    pub fn write(
        &self,
        tape: &mut Tape<'_>,
        index: usize,
        writer: Writer,
        x: &Var,
        inputs: Var,
        vars: &LayerVars,
    ) -> Result<Var> {
        let mut written = self.project(tape, index, writer, inputs, vars.gates(writer))?;
        if let Some(offset) = vars.offset(writer) {
            written = ops::add(tape, &written, offset)?;
        }
        self.join(tape, index, writer, x, written)
    }

    /// What the output projection of attention reads, `(batch · len, heads · head_dim)`; `gates` overrule the
    /// layer's own.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If there is no such layer, or the shapes are not those of the batch and the model.
    #[expect(clippy::too_many_arguments, reason = "as for a layer")]
    pub fn attention_context(
        &self,
        tape: &mut Tape<'_>,
        index: usize,
        x: &Var,
        gates: Option<&Var>,
        batch: &Batch,
        positions: &Arc<Vec<u32>>,
        hooks: &mut Hooks<'_>,
    ) -> Result<Var> {
        if self.lacks(index, Site::Attention) {
            return Ok(self.no_context(tape, batch, hooks));
        }
        let ids = &self.layers[index];
        let x = match self.spec.layers[index].block {
            Block::PreNorm => self.normed(tape, x.clone(), ids.norm1)?,
            Block::PostNorm => x.clone(),
        };
        let [mut q, mut k, mut v] =
            [self.linear(tape, &x, ids.q)?, self.linear(tape, &x, ids.k)?, self.linear(tape, &x, ids.v)?];
        drop(x);
        (q, k) = (self.normed(tape, q, ids.q_norm)?, self.normed(tape, k, ids.k_norm)?);
        if let Some(rope) = self.spec.layers[index].rope {
            let length = positions.iter().max().map_or(0, |last| *last as usize + 1);
            let (table, width) = (self.ropes[rope].table(length), self.spec.head_dim);
            q = ops::rope(tape, &q, table, width, positions)?;
            k = ops::rope(tape, &k, table, width, positions)?;
        }
        let mut keys = batch.len;
        if let Some(cache) = hooks.cache.as_deref_mut() {
            keys += cache.len;
            (k, v) = cache.extend(tape, index, k.tensor(), v.tensor());
        }
        let heads = &self.units.layers()[index];
        let shape = Arc::new(AttentionShape {
            batch: batch.batch,
            queries: batch.len,
            keys,
            head_dim: self.spec.head_dim,
            kv_of: heads.kv_positions(),
            kv_heads: heads.kv_active().len(),
            scale: self.spec.attention_scale(),
            causal: self.spec.causal,
            window: self.spec.layers[index].window,
            key_mask: batch.mask.clone(),
            soft_cap: self.spec.score_cap,
            bias_columns: heads.active().to_vec(),
        });
        let bias = self.score_bias(tape, &shape)?;
        let own = self.gates(LayerSite::heads(index)).map(|g| tape.constant(g.clone()));
        let gates = gates.or(own.as_ref());
        let inputs = AttentionInputs { q: &q, k: &k, v: &v, gates, bias: bias.as_ref() };
        if let Some(maps) = hooks.maps.as_deref_mut() {
            maps.push(self.attention_map(tape, inputs, &shape)?);
        }
        let context = match &mut hooks.entropy {
            Some(probes) => {
                let (context, probe) = ops::attention_with_entropy(tape, inputs, &shape)?;
                probes.push(probe);
                context
            }
            None => ops::attention(tape, inputs, &shape)?,
        };
        if let Some(look) = &mut hooks.read {
            look((index, Writer::Attention), context.tensor())?;
        }
        Ok(context)
    }

    /// Whether a layer's attention or its MLP has gone whole. Its writer then adds its bias, if it has one.
    fn lacks(&self, index: usize, site: Site) -> bool {
        self.units.layers()[index].count(site) == 0
    }

    /// What attention without heads makes, for its writer and for the hooks.
    fn no_context(&self, tape: &Tape<'_>, batch: &Batch, hooks: &mut Hooks<'_>) -> Var {
        if let Some(maps) = hooks.maps.as_deref_mut() {
            let keys = batch.len + hooks.cache.as_ref().map_or(0, |cache| cache.len);
            maps.push(Tensor::zeros(&[batch.batch, 0, batch.len, keys]));
        }
        if let Some(probes) = &mut hooks.entropy {
            probes.push(EntropyProbe::default());
        }
        tape.constant(Tensor::zeros(&[batch.batch * batch.len, 0]))
    }

    /// What is added to attention scores by distance, if there is such a table.
    fn score_bias(&self, tape: &mut Tape<'_>, shape: &AttentionShape) -> Result<Option<Var>> {
        let Some(id) = self.find(None, Part::ScoreBias, Kind::Weight) else { return Ok(None) };
        let table = tape.param(id);
        let buckets = (0..shape.queries + shape.keys - 1).map(|row| {
            let distance = row as i64 + 1 - shape.keys as i64;
            distance_bucket(distance)
        });
        Ok(Some(ops::embedding(tape, &table, &Arc::new(buckets.collect()))?))
    }

    /// Whether what a writer makes is added to the residual stream as it is.
    pub fn adds_plainly(&self, index: usize, writer: Writer) -> bool {
        let ids = &self.layers[index];
        match writer {
            Writer::Attention => ids.post1.is_none(),
            Writer::Mlp => ids.post2.is_none(),
        }
    }

    /// What a writer makes of its inputs `(batch · len, in)`, to be joined with the residual stream.
    ///
    /// Heads whose gate is shut have no part in the sums, so that a dormant head changes no bit.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If there is no such layer, or `inputs` are not as wide as the writer reads.
    pub fn project(
        &self,
        tape: &mut Tape<'_>,
        index: usize,
        writer: Writer,
        inputs: Var,
        gates: Option<&Var>,
    ) -> Result<Var> {
        let LinearIds { weight, bias } = self.writer_ids(index, writer);
        let (weight, bias) = (tape.param(weight), bias.map(|b| tape.param(b)));
        if inputs.tensor().cols() == 0 {
            // A column of zeros stands for no column at all.
            let zeros = |rows| tape.constant(Tensor::zeros(&[rows, 1]));
            let (inputs, weight) = (zeros(inputs.tensor().rows()), zeros(weight.tensor().rows()));
            return ops::linear(tape, &inputs, &weight, bias.as_ref());
        }
        let gates = gates.map(Var::tensor).or(self.gates(LayerSite { layer: index, site: writer.site() }));
        let open = gates.and_then(|gates| open_features(gates, inputs.tensor().cols()));
        ops::linear_over(tape, &inputs, &weight, bias.as_ref(), open.as_deref())
    }

    /// The residual stream after what a writer has made.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If there is no such layer, or the two differ in shape.
    fn join(&self, tape: &mut Tape<'_>, index: usize, writer: Writer, x: &Var, written: Var) -> Result<Var> {
        let ids = &self.layers[index];
        let post = if writer == Writer::Attention { ids.post1 } else { ids.post2 };
        let written = self.normed(tape, written, post)?;
        let x = ops::add(tape, x, &written)?;
        drop(written);
        match (self.spec.layers[index].block, writer) {
            (Block::PreNorm, _) => Ok(x),
            (Block::PostNorm, Writer::Attention) => self.normed(tape, x, ids.norm1),
            (Block::PostNorm, Writer::Mlp) => self.normed(tape, x, ids.norm2),
        }
    }

    /// What the MLP's down projection reads, `(batch · len, channels)`; `gates` overrule the layer's own.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If there is no such layer, or `x` is not as wide as the model.
    pub fn mlp_hidden(
        &self,
        tape: &mut Tape<'_>,
        index: usize,
        x: &Var,
        gates: Option<&Var>,
        hooks: &mut Hooks<'_>,
    ) -> Result<Var> {
        if self.lacks(index, Site::Mlp) {
            return Ok(tape.constant(Tensor::zeros(&[x.tensor().rows(), 0])));
        }
        let ids = &self.layers[index];
        let x = match self.spec.layers[index].block {
            Block::PreNorm => self.normed(tape, x.clone(), ids.norm2)?,
            Block::PostNorm => x.clone(),
        };
        let up = self.linear(tape, &x, ids.up)?;
        let mut hidden = match ids.gate {
            Some(gate) => {
                let gate = self.linear(tape, &x, gate)?;
                ops::gated_activation(tape, self.spec.activation, &gate, &up)?
            }
            None => ops::activation(tape, self.spec.activation, &up)?,
        };
        drop((x, up));
        let own = self.gates(LayerSite::channels(index)).map(|g| tape.constant(g.clone()));
        if let Some(gates) = gates.or(own.as_ref()) {
            hidden = ops::gate(tape, &hidden, gates)?;
        }
        if let Some(look) = &mut hooks.read {
            look((index, Writer::Mlp), hidden.tensor())?;
        }
        Ok(hidden)
    }
}

/// The columns of what a writer of so many inputs reads that are not zero for shut gates, `(U)` or `(batch, U)`;
/// `None` if there are none of those.
fn open_features(gates: &Tensor, inputs: usize) -> Option<Vec<Range<usize>>> {
    let (units, gates) = (gates.cols(), gates.to_host());
    let width = inputs / units.max(1);
    let is_open = |unit: &usize| gates.data().iter().skip(*unit).step_by(units).any(|g| *g != 0.0);
    let open: Vec<usize> = (0..units).filter(is_open).collect();
    let runs = open.chunk_by(|a, b| a + 1 == *b).filter_map(|run| Some((run.first()?, run.last()?)));
    let features = runs.map(|(first, last)| first * width..(last + 1) * width).collect();
    (open.len() < units).then_some(features)
}

impl KvCache {
    /// Adds new keys and values and returns the whole buffers; rows beyond the filled ones are not read.
    fn extend(&mut self, tape: &Tape<'_>, layer: usize, k: &Tensor, v: &Tensor) -> (Var, Var) {
        let (keys, values) = &mut self.layers[layer];
        ops::write_rows(tape.device(), keys, self.len, k);
        ops::write_rows(tape.device(), values, self.len, v);
        (tape.constant(keys.clone()), tape.constant(values.clone()))
    }
}
