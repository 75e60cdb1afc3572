//! Ridge regression on sums of products that arrive batch by batch.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rayon::prelude::*;
use upgrayedd_nn::{Device, Result, Tensor, interrupt, ops};

use crate::reduce::Reduce;

/// `a bᵀ`, from host memory into host memory.
pub(crate) fn multiply(device: Device, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    interrupt::check()?;
    let product = ops::multiply(device, &device.upload(a.clone()), &device.upload(b.clone())).to_host();
    device.settle()?;
    Ok(product)
}

/// Sums over rows of `xᵀ x`, `xᵀ y` and `|y|²`. Columns lie one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    inputs: usize,
    /// `(inputs, inputs)`.
    gram: Vec<f64>,
    /// `(inputs, outputs)`.
    cross: Vec<f64>,
    /// |y|² over all rows.
    pub(crate) power: f64,
}

/// Outputs that are solved for at a time: what is cut so has the same bits at any number of threads.
const OUTPUTS: usize = 32;

impl Moments {
    pub(crate) fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, gram: vec![0.0; inputs * inputs], cross: vec![0.0; inputs * outputs], power: 0.0 }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Adds the rows of `x (N, inputs)` and `y (N, outputs)`.
    pub(crate) fn add(&mut self, device: Device, x: &Tensor, y: &Tensor) -> Result<()> {
        add_to(&mut self.gram, &ops::gram(device, &device.upload(x.clone())).to_host());
        add_to(&mut self.cross, &multiply(device, &y.transposed(), &x.transposed())?);
        self.power += y.data().iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        Ok(())
    }

    /// Adds what other processes have found.
    pub(crate) fn reduce(&mut self, reduce: &dyn Reduce) -> crate::Result<()> {
        reduce.sum(&mut self.gram)?;
        reduce.sum(&mut self.cross)?;
        reduce.sum(std::slice::from_mut(&mut self.power))
    }

    fn gram(&self) -> MatRef<'_, f64> {
        MatRef::from_column_major_slice(&self.gram, self.inputs, self.inputs)
    }

    /// How much less than `power` is left when `change (inputs, outputs)` predicts y from x.
    fn gain(&self, change: &[f64]) -> f64 {
        let pieces =
            change.par_chunks(self.inputs * OUTPUTS).zip(self.cross.par_chunks(self.inputs * OUTPUTS));
        let gains: Vec<f64> = pieces
            .map(|(change, cross)| {
                let columns =
                    MatRef::from_column_major_slice(change, self.inputs, change.len() / self.inputs);
                let mut predicted = Mat::zeros(columns.nrows(), columns.ncols());
                matmul(predicted.as_mut(), Accum::Replace, self.gram(), columns, 1.0, Par::Seq);
                let predicted: f64 = (0..columns.ncols())
                    .map(|c| {
                        columns.col(c).iter().zip(predicted.col(c).iter()).map(|(a, b)| a * b).sum::<f64>()
                    })
                    .sum();
                2.0 * change.iter().zip(cross).map(|(a, b)| a * b).sum::<f64>() - predicted
            })
            .collect();
        gains.into_iter().sum()
    }
}

/// Rows of a tensor are columns here, or it is symmetric.
fn add_to(sum: &mut [f64], rows: &Tensor) {
    sum.iter_mut().zip(rows.data()).for_each(|(sum, v)| *sum += f64::from(*v));
}

/// Ridges tried, as shares of the Gram matrix's mean diagonal.
const RIDGES: [f64; 5] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// A change of weights that predicts what was missing.
#[derive(Debug)]
pub(crate) struct Ridge {
    /// The ridge, as a share of the mean diagonal.
    pub(crate) ridge: f64,
    /// `(outputs, inputs)`.
    pub(crate) change: Tensor,
    /// Share of the held-out |y|² that it removes.
    pub(crate) repaired: f64,
}

/// The ridge solution on `fit` that removes most of `held_out`; `None` if none removes any.
pub(crate) fn ridge(fit: &Moments, held_out: &Moments) -> Result<Option<Ridge>> {
    let inputs = fit.inputs;
    let diagonal: f64 = (0..inputs).map(|i| fit.gram[i * (inputs + 1)]).sum();
    let mean = diagonal / inputs.max(1) as f64;
    if !(mean.is_finite() && mean > 0.0 && held_out.power > 0.0) {
        return Ok(None);
    }
    let mut best: Option<(f64, f64, Vec<f64>)> = None;
    for ridge in RIDGES {
        interrupt::check()?;
        let mut gram = fit.gram().to_owned();
        (0..inputs).for_each(|i| gram[(i, i)] += ridge * mean);
        // Not positive definite: too little data for so small a ridge.
        let Ok(factor) = gram.llt(Side::Lower) else { continue };
        let mut change = fit.cross.clone();
        change.par_chunks_mut(inputs * OUTPUTS).for_each(|columns| {
            let count = columns.len() / inputs;
            factor.solve_in_place(MatMut::from_column_major_slice_mut(columns, inputs, count));
        });
        let gain = held_out.gain(&change);
        if gain.is_finite() && best.as_ref().is_none_or(|(most, ..)| gain > *most) {
            best = Some((gain, ridge, change));
        }
    }
    let Some((gain, ridge, change)) = best.filter(|(gain, ..)| *gain > 0.0) else { return Ok(None) };
    // An (inputs, outputs) matrix by columns is our (outputs, inputs) by rows.
    let data: Vec<f32> = change.iter().map(|v| *v as f32).collect();
    let change = Tensor::from_vec(&[data.len() / inputs, inputs], data);
    Ok(Some(Ridge { ridge, change, repaired: gain / held_out.power }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    fn normals(seed: u64, rows: usize, cols: usize) -> Tensor {
        let mut random = rng::stream(seed, "linalg test");
        Tensor::from_vec(&[rows, cols], rng::normals(&mut random, rows * cols, 1.0))
    }

    fn moments(x: &Tensor, y: &Tensor) -> Moments {
        let mut moments = Moments::new(x.cols(), y.cols());
        moments.add(Device::cpu(), x, y).expect("not stopped");
        moments
    }

    #[test]
    fn a_linear_map_is_found_again() {
        let map = normals(1, 3, 5);
        let (x, held) = (normals(2, 200, 5), normals(3, 50, 5));
        let y = |x: &Tensor| multiply(Device::cpu(), x, &map).expect("not stopped");
        let found = ridge(&moments(&x, &y(&x)), &moments(&held, &y(&held)))
            .expect("not stopped")
            .expect("there is one");
        assert!(found.ridge == RIDGES[0] && found.repaired > 0.999_999);
        for (a, b) in found.change.data().iter().zip(map.data()) {
            assert!((a - b).abs() < 1e-3, "{a} {b}");
        }
    }

    #[test]
    fn noise_is_not_learned() {
        // Ten rows for eight inputs: any fit to noise makes new noise worse, unless the ridge is large.
        let fit = moments(&normals(4, 10, 8), &normals(5, 10, 4));
        let held_out = moments(&normals(6, 400, 8), &normals(7, 400, 4));
        assert!(
            ridge(&fit, &held_out).expect("not stopped").is_none_or(|r| r.ridge == 1.0 && r.repaired < 0.05)
        );
    }

    #[test]
    fn inputs_that_are_always_zero_do_no_harm() {
        let x = Tensor::zeros(&[20, 4]);
        assert!(
            ridge(&moments(&x, &normals(8, 20, 2)), &moments(&x, &normals(9, 20, 2)))
                .expect("not stopped")
                .is_none()
        );
    }
}
