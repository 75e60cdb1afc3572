//! The kernels on the host, for tests: the same sources, compiled by g++ against a header that plays CUDA.
#![allow(unsafe_code, reason = "foreign functions, and memory that kernels find by its address")]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::driver::Driver;
use super::gemm::{Gemm, Shape};
use super::launch::{Kind, Launch};

unsafe extern "C" {
    fn upgrayedd_emulate(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared: usize,
        args: *mut *mut c_void,
        count: usize,
        order: u32,
    ) -> i32;
}

/// Memory that is given out.
pub(super) struct Emulator {
    blocks: Mutex<HashMap<u64, usize>>,
}

/// In which order the threads of a block run.
static ORDER: AtomicU32 = AtomicU32::new(0);

/// Runs the threads of a block in another order from now on: 0 is theirs, others are shuffled. Correct kernels
/// do not notice.
pub fn set_order(order: u32) {
    ORDER.store(order, Ordering::Relaxed);
}

/// How many bytes there are.
static LIMIT: AtomicUsize = AtomicUsize::new(8 << 30);

/// Lets the emulated device have so many bytes from now on.
pub fn set_limit(bytes: usize) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// One kernel at a time, whichever emulator it is on.
static ONE: Mutex<()> = Mutex::new(());

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 256).unwrap_or_else(|e| unreachable!("{e}"))
}

impl Emulator {
    pub(super) fn new() -> Self {
        Self { blocks: Mutex::default() }
    }
}

impl Driver for Emulator {
    fn alloc(&self, bytes: usize) -> Result<Option<u64>, String> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.values().sum::<usize>() + bytes > LIMIT.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // SAFETY: the size is not zero. Reading what nobody wrote gives NaN.
        let at = unsafe {
            let at = alloc(layout(bytes));
            at.write_bytes(0xff, bytes);
            at as u64
        };
        blocks.insert(at, bytes);
        Ok(Some(at))
    }
    fn free(&self, at: u64) {
        let bytes = self.blocks.lock().unwrap_or_else(PoisonError::into_inner).remove(&at);
        if let Some(bytes) = bytes {
            // SAFETY: it was made by `alloc` with this layout.
            unsafe { dealloc(at as *mut u8, layout(bytes)) };
        }
    }
    fn forget(&self, at: u64, bytes: usize) {
        // SAFETY: an allocation of so many bytes, which nobody reads any more: whoever does gets NaN.
        unsafe { (at as *mut u8).write_bytes(0xff, bytes) };
    }
    fn upload(&self, to: u64, from: &[u8]) -> Result<(), String> {
        // SAFETY: an allocation of at least so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), String> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), String> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }
    fn zero(&self, at: u64, bytes: usize) -> Result<(), String> {
        // SAFETY: as above.
        unsafe { (at as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }
    fn launch(&self, launch: &Launch) -> Result<(), String> {
        let name = CString::new(launch.kernel).map_err(|e| e.to_string())?;
        let mut arguments: Vec<*mut c_void> =
            launch.arguments().map(|word| std::ptr::from_ref(word).cast_mut().cast()).collect();
        let block = [launch.threads, 1, 1];
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the arguments are the kernel's; their number is checked there.
        let found = unsafe {
            upgrayedd_emulate(
                name.as_ptr(),
                launch.grid.as_ptr(),
                block.as_ptr(),
                launch.shared as usize,
                arguments.as_mut_ptr(),
                arguments.len(),
                ORDER.load(Ordering::Relaxed),
            )
        };
        if found == 1 { Ok(()) } else { Err(format!("no kernel {} with these arguments", launch.kernel)) }
    }
    fn gemm(&self, gemm: &Gemm) -> Result<(), String> {
        let s = gemm.shape;
        let matrix = |at, columns, ld, rows, kind| Matrix::read(at, columns, ld, rows, kind);
        let (a_rows, a_columns) = if s.transpose_a { (s.k, s.m) } else { (s.m, s.k) };
        let (b_rows, b_columns) = if s.transpose_b { (s.n, s.k) } else { (s.k, s.n) };
        let a = matrix(gemm.a, a_columns, s.lda, a_rows, s.inputs);
        let b = matrix(gemm.b, b_columns, s.ldb, b_rows, s.inputs);
        let mut d = if s.accumulate {
            matrix(gemm.d, s.n, s.ldd, s.m, s.output)
        } else {
            Matrix { rows: s.m, values: vec![0.0; s.m * s.n] }
        };
        let bias = if s.bias { matrix(gemm.bias, 1, s.m, s.m, s.output).values } else { vec![0.0; s.m] };
        let (a, b) = (a.rows_of(s.m, s.k, s.transpose_a), b.rows_of(s.n, s.k, !s.transpose_b));
        for column in 0..s.n {
            for row in 0..s.m {
                let pairs = a[row * s.k..][..s.k].iter().zip(&b[column * s.k..][..s.k]);
                d.values[column * s.m + row] += pairs.map(|(a, b)| a * b).sum::<f32>() + bias[row];
            }
        }
        d.write(gemm.d, &s);
        Ok(())
    }
    fn settle(&self) -> Result<(), String> {
        Ok(())
    }
    fn memory(&self) -> (usize, usize) {
        let limit = LIMIT.load(Ordering::Relaxed);
        let used: usize = self.blocks.lock().unwrap_or_else(PoisonError::into_inner).values().sum();
        (limit.saturating_sub(used), limit)
    }
    fn name(&self) -> String {
        "the emulated GPU".to_owned()
    }
}

/// A column-major matrix as cuBLAS reads it.
struct Matrix {
    rows: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn read(at: u64, columns: usize, ld: usize, rows: usize, kind: Kind) -> Self {
        let mut values = Vec::with_capacity(rows * columns);
        for column in 0..columns {
            for row in 0..rows {
                let i = column * ld + row;
                // SAFETY: layouts lie within their allocations.
                values.push(unsafe {
                    match kind {
                        Kind::F32 => *(at as *const f32).add(i),
                        Kind::Bf16 => f32::from_bits(u32::from(*(at as *const u16).add(i)) << 16),
                    }
                });
            }
        }
        Self { rows, values }
    }

    /// `count` rows of `k`, one after another, of this matrix or, if it is `turned`, of its transpose.
    fn rows_of(&self, count: usize, k: usize, turned: bool) -> Vec<f32> {
        if turned {
            return self.values.clone();
        }
        (0..count * k).map(|i| self.values[i % k * self.rows + i / k]).collect()
    }

    fn write(&self, at: u64, s: &Shape) {
        for column in 0..s.n {
            for row in 0..s.m {
                let (i, value) = (column * s.ldd + row, self.values[column * s.m + row]);
                // SAFETY: as above.
                unsafe {
                    match s.output {
                        Kind::F32 => *(at as *mut f32).add(i) = value,
                        Kind::Bf16 => *(at as *mut u16).add(i) = to_bf16(value),
                    }
                }
            }
        }
    }
}

/// To nearest, ties to even.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() { 0x7fff } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}
