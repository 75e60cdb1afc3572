//! The engine of Upgrayedd: a tape of fused transformer operations with hand-written backward passes.
//!
//! A model composes [`ops`] on a [`Tape`]; each op runs its forward kernel on the tape's [`Device`]
//! at once and, when gradients are wanted, leaves a backward step behind. [`Tape::backward`] walks
//! the steps in reverse and adds into the [`Gradients`] of the [`ParamSet`]; [`optim::AdamW`] updates it.
//!
//! ```
//! use upgrayedd_nn::{Device, Gradients, ParamSet, Tape, Tensor, ops};
//!
//! let mut params = ParamSet::default();
//! let weight = params.add("weight", Tensor::from_vec(&[2, 3], vec![1., 2., 3., 4., 5., 6.]));
//! let mut grads = Gradients::for_params(&params);
//!
//! let mut tape = Tape::recording(Device::cpu(), &params, &mut grads);
//! let x = tape.constant(Tensor::from_vec(&[1, 3], vec![1., 0., -1.]));
//! let w = tape.param(weight);
//! let y = ops::linear(&mut tape, &x, &w, None)?;
//! assert_eq!(y.tensor().data(), &[-2., -2.]);
//!
//! tape.backward(vec![(y, Tensor::from_vec(&[1, 2], vec![1., 1.]))])?;
//! assert_eq!(grads.get(weight).map(Tensor::data), Some(&[1., 0., -1., 1., 0., -1.][..]));
//! # Ok::<(), upgrayedd_nn::Error>(())
//! ```

#![cfg_attr(
    not(any(feature = "cuda", feature = "fake-device")),
    allow(dead_code, reason = "of devices with memory of their own")
)]

pub mod device;
mod error;
pub mod interrupt;
mod kernels;
pub mod ops;
pub mod optim;
mod params;
mod pool;
pub mod profile;
mod simd;
mod stored;
mod tape;
mod tensor;

pub use device::LOGITS;
pub use device::{Device, DeviceError, Precision};
pub use error::{Error, Result};
pub use params::{Gradients, ParamId, ParamSet};
pub use pool::trim as trim_buffers;
pub use simd::instruction_set;
pub use stored::{Bytes, Format, Source};
pub use tape::{LeafGradients, Tape, Var};
pub use tensor::Tensor;
