//! Losses with gradients in place, and numbers that stay on the device until they are read.

use super::launch::{Argument, Launch, Words};
use super::memory::OneNumber;
use super::open::Cuda;
use crate::Tensor;
use crate::kernels::{IGNORE, Number, Value};

/// Differences that are summed over columns.
#[derive(Debug, Clone, Copy)]
pub(super) enum Distance {
    Relative,
    Squared,
    Binary,
}

/// Elements of logits that may exist at once: half a gigabyte in 16 bits.
const LOGITS: usize = 1 << 28;
/// Numbers that one launch takes.
const PARTS: usize = 32;

/// Elements that one block squares and adds.
const PIECE: usize = 1 << 15;

/// A power of two: every chunk of a gradient begins where products like it, and few are not whole.
pub(super) fn rows_of_logits(vocabulary: usize) -> usize {
    1 << (LOGITS / vocabulary.max(1)).max(2048).ilog2()
}

/// `struct Parts` of the kernels.
fn parts(constant: f64, numbers: &[(f64, &OneNumber)]) -> Words {
    let mut words = vec![0; 2 * PARTS];
    for (i, (factor, number)) in numbers.iter().enumerate() {
        (words[i], words[PARTS + i]) = (number.block.at, factor.to_bits());
    }
    words.extend([constant.to_bits(), numbers.len() as u64]);
    Words(words)
}

impl Cuda {
    /// Σ of as many doubles.
    fn sum(&self, doubles: u64, count: usize) -> Number {
        let number = self.gpu.number();
        let launch = Launch::new("sum_doubles", [1, 1, 1], 256).arg(doubles);
        self.gpu.launch(&launch.arg(number.block.at).arg(count as i32));
        number.into_number()
    }

    pub(super) fn cross_entropy(
        &self,
        logits: &mut Tensor,
        targets: &[i64],
        weight: f32,
        with_grad: bool,
    ) -> Number {
        let (rows, cols) = (logits.rows(), logits.cols());
        let targets: Vec<i32> = targets.iter().map(|&t| if t == IGNORE { -1 } else { t as i32 }).collect();
        let targets = self.gpu.list(bytemuck::cast_slice(&targets));
        let losses = self.gpu.block(rows * 8);
        let launch = Launch::new("cross_entropy", [rows, 1, 1], 256)
            .arg(self.gpu.own(logits))
            .arg(targets.at)
            .arg(losses.at)
            .arg(cols as i32)
            .arg(self.gpu.pitch(logits))
            .arg(weight)
            .arg(i32::from(with_grad));
        self.gpu.launch(&launch);
        self.sum(losses.at, rows)
    }

    pub(super) fn kl_divergence(
        &self,
        student: &mut Tensor,
        teacher: &Tensor,
        temperature: f32,
        weight: f32,
        with_grad: bool,
    ) -> Number {
        let (rows, cols) = (student.rows(), student.cols());
        let losses = self.gpu.block(rows * 8);
        let launch = Launch::new("kl_divergence", [rows, 1, 1], 256)
            .arg(self.gpu.own(student))
            .arg(self.gpu.any(teacher))
            .arg(losses.at)
            .arg(cols as i32)
            .arg(self.gpu.pitch(student))
            .arg(self.gpu.pitch(teacher))
            .arg(temperature)
            .arg(weight)
            .arg(i32::from(with_grad));
        self.gpu.launch(&launch);
        self.sum(losses.at, rows)
    }

    pub(super) fn distance(&self, kind: Distance, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        let (rows, cols) = (x.rows(), x.cols());
        let losses = self.gpu.block(rows * 8);
        let x = self.gpu.own(x);
        let launch = Launch::new("distance", [rows, 1, 1], 256)
            .arg(kind as i32)
            .arg(x)
            .arg(self.gpu.any(reference))
            .arg(x)
            .arg(losses.at)
            .arg(cols as i32)
            .arg(weight);
        self.gpu.launch(&launch);
        self.sum(losses.at, rows)
    }

    pub(super) fn sum_of_squares(&self, tensors: &[&Tensor]) -> Number {
        let mut pieces: Vec<u64> = Vec::new();
        for tensor in tensors {
            for first in (0..tensor.len()).step_by(PIECE) {
                self.gpu.any(tensor).words(&mut pieces);
                pieces.extend([first, PIECE.min(tensor.len() - first)].map(|n| n as u64));
            }
        }
        let count = pieces.len() / 4;
        let pieces = self.gpu.list(bytemuck::cast_slice(&pieces));
        let partial = self.gpu.block(count * 8);
        let launch = Launch::new("sum_of_squares", [count, 1, 1], 256).arg(pieces.at);
        self.gpu.launch(&launch.arg(partial.at));
        self.sum(partial.at, count)
    }

    pub(super) fn combine(&self, parts_of: &[(f64, &Number)]) -> Number {
        let on_host = |number: &Number| match &number.0 {
            Value::Host(value) => Some(*value),
            Value::Device(_) => None,
        };
        let constant = parts_of.iter().filter_map(|(factor, n)| Some(factor * on_host(n)?)).sum();
        let numbers: Vec<_> = parts_of.iter().filter_map(|(f, n)| Some((*f, OneNumber::of(n)?))).collect();
        if numbers.is_empty() {
            return Number(Value::Host(constant));
        }
        let mut sum: Option<OneNumber> = None;
        for some in numbers.chunks(PARTS - 1) {
            let mut some = some.to_vec();
            some.extend(sum.as_ref().map(|sum| (1.0, sum)));
            let constant = if sum.is_none() { constant } else { 0.0 };
            let next = self.gpu.number();
            let launch = Launch::new("combine", [1, 1, 1], 1).arg(parts(constant, &some));
            self.gpu.launch(&launch.arg(next.block.at));
            sum = Some(next);
        }
        sum.map_or_else(Number::default, OneNumber::into_number)
    }

    pub(super) fn read(&self, numbers: &[&Number]) -> Vec<f64> {
        let on_device: Vec<_> = numbers.iter().filter_map(|n| Some((1.0, OneNumber::of(n)?))).collect();
        let all = self.gpu.block(on_device.len() * 8);
        for (i, some) in on_device.chunks(PARTS).enumerate() {
            let launch = Launch::new("collect", [1, 1, 1], 1).arg(parts(0.0, some));
            self.gpu.launch(&launch.arg(all.at + (i * PARTS * 8) as u64));
        }
        let mut bytes = vec![0; on_device.len() * 8];
        self.gpu.download(all.at, &mut bytes);
        let mut values = bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b));
        let value = |number: &&Number| match &number.0 {
            Value::Host(value) => *value,
            Value::Device(_) => values.next().unwrap_or(f64::NAN),
        };
        numbers.iter().map(value).collect()
    }
}
