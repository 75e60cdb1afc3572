//! What the units write, batch by batch: sums over what the writers read.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use upgrayedd_nn::{Tensor, ops};

use super::context::ScoreContext;
use crate::linalg::multiply;
use crate::model::{Batch, Model};
use crate::units::{LayerSite, Sites};
use crate::weights::Writer;
use crate::{Error, Result};

/// Adds `xᵀ x` to a place's sum, which is made when its first rows come by.
pub(super) fn add_products(
    model: &Model,
    sums: &mut BTreeMap<LayerSite, Tensor>,
    place: LayerSite,
    x: &Tensor,
) -> Result<()> {
    let device = model.device();
    let products = ops::gram(device, &device.upload(x.clone())).to_host();
    let sum = match sums.remove(&place) {
        Some(sum) => {
            let mut sum = sum.in_memory();
            sum.data_mut().iter_mut().zip(products.data()).for_each(|(s, p)| *s += p);
            sum
        }
        None => products,
    };
    sums.insert(place, model.kept(sum)?);
    Ok(())
}

/// What the units write, batch by batch.
pub(super) struct Outputs<'m> {
    model: &'m Model,
    units: Sites,
    pub(super) norms: Option<BTreeMap<LayerSite, Vec<f64>>>,
    pub(super) cosines: Option<Vec<Vec<f64>>>,
    pub(super) powers: Vec<Vec<f64>>,
    /// By place Σ x xᵀ of what its writer reads.
    pub(super) grams: Option<BTreeMap<LayerSite, Tensor>>,
    mask: Option<Vec<u8>>,
    /// This batch's rows that are not padding, and those of them at which heads are compared.
    rows: Vec<usize>,
    compared: Vec<usize>,
    /// How many there were of both in all.
    pub(super) positions: u64,
    pub(super) comparisons: u64,
    /// Why a sum could not be kept.
    failed: Option<Error>,
}

/// Positions of a sequence at which the heads' outputs are compared at most, evenly spread.
const COMPARED: usize = 64;
/// Rows whose heads' outputs are in memory at a time.
const ROWS: usize = 128;

impl<'m> Outputs<'m> {
    pub(super) fn new(context: &ScoreContext<'m>, norms: bool, cosines: bool, grams: bool) -> Self {
        let model = context.model;
        let heads = model.units().counts();
        Self {
            model,
            units: context.units,
            norms: norms.then(BTreeMap::new),
            cosines: cosines.then(|| heads.iter().map(|n| vec![0.0; n * n]).collect()),
            grams: grams.then(BTreeMap::new),
            powers: if cosines { heads.iter().map(|&n| vec![0.0; n]).collect() } else { Vec::new() },
            mask: None,
            rows: Vec::new(),
            compared: Vec::new(),
            positions: 0,
            comparisons: 0,
            failed: None,
        }
    }

    /// Says whether all that came by until now has been added.
    pub(super) fn check(&mut self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    pub(super) fn start(&mut self, batch: &Batch) {
        self.mask.clone_from(&batch.mask);
        let counts = |row: &usize| batch.mask.as_ref().is_none_or(|m| m[*row] != 0);
        self.rows = (0..batch.batch * batch.len).filter(counts).collect();
        let sequences = self.rows.chunk_by(|a, b| a / batch.len == b / batch.len);
        self.compared =
            sequences.flat_map(|rows| rows.iter().step_by(rows.len().div_ceil(COMPARED))).copied().collect();
        self.positions += self.rows.len() as u64;
        self.comparisons += self.compared.len() as u64;
    }

    pub(super) fn add(
        &mut self,
        (layer, writer): (usize, Writer),
        read: &Tensor,
    ) -> upgrayedd_nn::Result<()> {
        let place = LayerSite { layer, site: writer.site() };
        let nothing = self.grams.is_none() && self.norms.is_none() && self.cosines.is_none();
        if nothing || !self.units.contains(place.site) {
            return Ok(());
        }
        let context = &read.to_host();
        if let Some(grams) = &mut self.grams {
            let mut x = context.clone();
            if let Some(mask) = &self.mask {
                x.blank_rows(mask);
            }
            if let Err(error) = add_products(self.model, grams, place, &x) {
                self.failed.get_or_insert(error);
            }
        }
        let d = self.model.spec().head_dim;
        if let Some(norms) = &mut self.norms {
            let norms = norms.entry(place).or_insert_with(|| vec![0.0; context.cols()]);
            // Each task has features of its own, so that no sum depends on how many threads there are.
            norms.par_chunks_mut(d).enumerate().for_each(|(part, sums)| {
                for row in &self.rows {
                    let values = &context.data()[row * context.cols() + part * d..][..sums.len()];
                    sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
                }
            });
        }
        if let Some(cosines) = self.cosines.as_mut().filter(|_| writer == Writer::Attention) {
            let weight = &self.model.writer_weight(layer, Writer::Attention).to_host();
            let all: Vec<usize> = (0..weight.rows()).collect();
            let weights: Vec<Tensor> =
                (0..weight.cols() / d).map(|h| block(weight, &all, h * d..(h + 1) * d)).collect();
            for rows in self.compared.chunks(ROWS) {
                let output = |(h, weight): (usize, &Tensor)| {
                    multiply(self.model.device(), &block(context, rows, h * d..(h + 1) * d), weight)
                };
                let outputs: Vec<Tensor> =
                    weights.iter().enumerate().map(output).collect::<upgrayedd_nn::Result<_>>()?;
                add_cosines(&outputs, &mut cosines[layer], &mut self.powers[layer]);
            }
        }
        Ok(())
    }

    /// All the sums but those of products.
    pub(super) fn lists(&mut self) -> impl Iterator<Item = &mut Vec<f64>> {
        self.norms
            .iter_mut()
            .flat_map(BTreeMap::values_mut)
            .chain(self.cosines.iter_mut().flatten())
            .chain(&mut self.powers)
    }

    /// The sums as means and roots.
    pub(super) fn finish(mut self) -> Self {
        let mean = |sums: &mut [Vec<f64>], n: u64| {
            sums.iter_mut().flatten().for_each(|s| *s /= n.max(1) as f64);
        };
        let positions = self.positions.max(1) as f64;
        let norms = self.norms.iter_mut().flat_map(BTreeMap::values_mut).flatten();
        norms.for_each(|s| *s = (*s / positions).sqrt());
        mean(self.cosines.as_deref_mut().unwrap_or_default(), self.comparisons);
        mean(&mut self.powers, self.comparisons);
        self
    }
}

/// Some rows and columns of a matrix.
fn block(matrix: &Tensor, rows: &[usize], columns: Range<usize>) -> Tensor {
    let mut out = Tensor::zeros(&[rows.len(), columns.len()]);
    for (out, row) in out.data_mut().chunks_exact_mut(columns.len().max(1)).zip(rows) {
        out.copy_from_slice(&matrix.data()[row * matrix.cols()..][columns.clone()]);
    }
    out
}

/// Adds the cosines of the heads' outputs at every row, `(rows, d)` a head, and their squares' sums.
fn add_cosines(outputs: &[Tensor], cosines: &mut [f64], powers: &mut [f64]) {
    let heads = outputs.len();
    let rows = outputs.first().map_or(0, Tensor::rows);
    let products = |row: usize| -> Vec<f64> {
        let of = |h: usize| &outputs[h].data()[row * outputs[h].cols()..][..outputs[h].cols()];
        let mut inner = vec![0.0; heads * heads];
        for a in 0..heads {
            for b in a..heads {
                inner[a * heads + b] = f64::from(dot(of(a), of(b)));
            }
        }
        inner
    };
    for inner in (0..rows).into_par_iter().map(products).collect::<Vec<_>>() {
        powers.iter_mut().enumerate().for_each(|(h, sum)| *sum += inner[h * (heads + 1)]);
        for (i, sum) in cosines.iter_mut().enumerate() {
            let (a, b) = ((i / heads).min(i % heads), (i / heads).max(i % heads));
            let norm = inner[a * (heads + 1)].sqrt() * inner[b * (heads + 1)].sqrt();
            *sum += if norm > 0.0 { (inner[a * heads + b] / norm).clamp(-1.0, 1.0) } else { 0.0 };
        }
    }
}

/// Sixteen sums side by side, so that the compiler can use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a, b) = (a.chunks(LANES), b.chunks(LANES));
    a.zip(b).for_each(|(a, b)| sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b));
    sums.iter().sum()
}
