//! Ridge regression on sums of products that arrive batch by batch.

use nalgebra::{DMatrix, DMatrixView};
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

/// Sums over rows of `xᵀ x`, `xᵀ y` and `|y|²`.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    /// `(inputs, inputs)`.
    gram: DMatrix<f64>,
    /// `(inputs, outputs)`.
    cross: DMatrix<f64>,
    /// |y|² over all rows.
    pub(crate) power: f64,
}

impl Moments {
    pub(crate) fn new(inputs: usize, outputs: usize) -> Self {
        Self { gram: DMatrix::zeros(inputs, inputs), cross: DMatrix::zeros(inputs, outputs), power: 0.0 }
    }

    /// Adds the rows of `x (N, inputs)` and `y (N, outputs)`.
    pub(crate) fn add(&mut self, device: Device, x: &Tensor, y: &Tensor) -> Result<()> {
        add_to(&mut self.gram, &ops::gram(device, &device.upload(x.clone())).to_host());
        add_to(&mut self.cross, &multiply(device, &x.transposed(), &y.transposed())?);
        self.power += y.data().iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        Ok(())
    }

    /// Adds what other processes have found.
    pub(crate) fn reduce(&mut self, reduce: &dyn Reduce) -> crate::Result<()> {
        reduce.sum(self.gram.as_mut_slice())?;
        reduce.sum(self.cross.as_mut_slice())?;
        reduce.sum(std::slice::from_mut(&mut self.power))
    }

    /// How much less than `power` is left when `change (outputs, inputs)` predicts y from x.
    fn gain(&self, change: &DMatrix<f64>) -> f64 {
        let predicted: f64 = change
            .as_slice()
            .par_chunks(change.nrows() * 16)
            .map(|columns| {
                let columns =
                    DMatrixView::from_slice(columns, change.nrows(), columns.len() / change.nrows());
                columns.dot(&(&self.gram * columns))
            })
            .collect::<Vec<f64>>()
            .into_iter()
            .sum();
        2.0 * change.dot(&self.cross) - predicted
    }
}

fn add_to(sum: &mut DMatrix<f64>, rows: &Tensor) {
    let cols = rows.cols();
    for (r, row) in rows.data().chunks_exact(cols.max(1)).enumerate() {
        row.iter().enumerate().for_each(|(c, v)| sum[(r, c)] += f64::from(*v));
    }
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
    let inputs = fit.gram.nrows();
    let mean = fit.gram.diagonal().sum() / inputs.max(1) as f64;
    if !(mean.is_finite() && mean > 0.0 && held_out.power > 0.0) {
        return Ok(None);
    }
    let mut best: Option<(f64, f64, DMatrix<f64>)> = None;
    for ridge in RIDGES {
        interrupt::check()?;
        let mut gram = fit.gram.clone();
        (0..inputs).for_each(|i| gram[(i, i)] += ridge * mean);
        // Not positive definite: too little data for so small a ridge.
        let Some(factor) = gram.cholesky() else { continue };
        let mut change = fit.cross.clone();
        change.as_mut_slice().par_chunks_mut(inputs * 16).for_each(|columns| {
            let count = columns.len() / inputs;
            factor.solve_mut(&mut nalgebra::DMatrixViewMut::from_slice(columns, inputs, count));
        });
        let gain = held_out.gain(&change);
        if gain.is_finite() && best.as_ref().is_none_or(|(most, ..)| gain > *most) {
            best = Some((gain, ridge, change));
        }
    }
    let Some((gain, ridge, change)) = best.filter(|(gain, ..)| *gain > 0.0) else { return Ok(None) };
    // nalgebra stores columns one after the other: an (inputs, outputs) matrix is our (outputs, inputs) by
    // rows.
    let data = change.as_slice().iter().map(|v| *v as f32).collect();
    Ok(Some(Ridge {
        ridge,
        change: Tensor::from_vec(&[change.ncols(), inputs], data),
        repaired: gain / held_out.power,
    }))
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
