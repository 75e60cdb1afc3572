//! Named parameters and their gradients.

use crate::kernels::Number;
use crate::{Device, Tensor};

/// A parameter of a [`ParamSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub(crate) usize);

impl ParamId {
    /// Position in the set, in order of addition.
    pub fn index(self) -> usize {
        self.0
    }
}

#[derive(Debug, Clone)]
struct Param {
    name: String,
    tensor: Tensor,
    trainable: bool,
}

/// The weights of a model, in a fixed order.
#[derive(Debug, Clone, Default)]
pub struct ParamSet {
    params: Vec<Param>,
}

impl ParamSet {
    /// Adds a trainable parameter.
    pub fn add(&mut self, name: impl Into<String>, tensor: Tensor) -> ParamId {
        self.params.push(Param { name: name.into(), tensor, trainable: true });
        ParamId(self.params.len() - 1)
    }

    /// All parameters in order.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.params.len()).map(ParamId)
    }

    /// How many parameters there are.
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// The parameter's name.
    pub fn name(&self, id: ParamId) -> &str {
        &self.params[id.0].name
    }

    /// The parameter called `name`.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.params.iter().position(|p| p.name == name).map(ParamId)
    }

    /// The parameter's value, which may be in a device's memory or as a file has it ([`Tensor::to_host`]).
    pub fn get(&self, id: ParamId) -> &Tensor {
        &self.params[id.0].tensor
    }

    /// The parameter's value for writing, which is not in its stored type any more.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Tensor {
        let tensor = &mut self.params[id.0].tensor;
        if tensor.format().is_some() {
            *tensor = tensor.widened();
        }
        tensor
    }

    /// Gives the parameter another value; its shape may change.
    pub fn set(&mut self, id: ParamId, value: Tensor) {
        self.params[id.0].tensor = value;
    }

    /// Changes a value on the host, wherever `device` keeps it.
    pub fn edit<T>(&mut self, device: Device, id: ParamId, f: impl FnOnce(&mut Tensor) -> T) -> T {
        let tensor = &mut self.params[id.0].tensor;
        if tensor.is_on_host() {
            return f(tensor);
        }
        let mut edited = tensor.to_host();
        let result = f(&mut edited);
        *tensor = device.upload(edited);
        result
    }

    /// Puts all values where `device` reads them, or back into host memory.
    pub fn move_to(&mut self, device: Device) {
        for param in &mut self.params {
            param.tensor = device.upload(param.tensor.clone());
        }
    }

    /// Whether gradients are computed for the parameter.
    pub fn is_trainable(&self, id: ParamId) -> bool {
        self.params[id.0].trainable
    }

    /// Keeps every value as `f32`, for what changes weights over and over.
    pub fn widen(&mut self) {
        self.params.iter_mut().for_each(|param| param.tensor = param.tensor.widened());
    }

    /// Freezes or thaws every parameter.
    pub fn set_trainable(&mut self, trainable: bool) {
        for param in &mut self.params {
            param.trainable = trainable;
        }
    }
}

/// One gradient: its memory outlives a step, its value does not.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) tensor: Option<Tensor>,
    pub(crate) filled: bool,
}

/// Gradients of a [`ParamSet`]; further backward passes add to them until [`Gradients::clear`].
#[derive(Debug, Default)]
pub struct Gradients {
    pub(crate) slots: Vec<Slot>,
}

impl Gradients {
    /// Empty gradients for `params`; memory is taken when a gradient first arrives.
    pub fn for_params(params: &ParamSet) -> Self {
        Self { slots: params.ids().map(|_| Slot::default()).collect() }
    }

    /// Forgets all values and keeps the memory.
    pub fn clear(&mut self) {
        for slot in &mut self.slots {
            slot.filled = false;
        }
    }

    /// The gradient of `id`, if one has arrived since the last [`Gradients::clear`].
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        let slot = self.slots.get(id.0)?;
        if slot.filled { slot.tensor.as_ref() } else { None }
    }

    /// The gradient of `id` to be changed; zeros if none has arrived.
    pub fn get_or_zero(&mut self, device: Device, params: &ParamSet, id: ParamId) -> &mut Tensor {
        let slot = &mut self.slots[id.0];
        if !std::mem::replace(&mut slot.filled, true) {
            slot.tensor = None;
        }
        slot.tensor.get_or_insert_with(|| device.kernels().zeros(params.get(id).shape()))
    }

    /// Σ g² over all gradients, the square of their global L2 norm; summed in a fixed order.
    pub fn sum_of_squares(&self, device: Device) -> Number {
        let arrived = self.slots.iter().filter(|slot| slot.filled).filter_map(|slot| slot.tensor.as_ref());
        device.kernels().sum_of_squares(&arrived.collect::<Vec<_>>())
    }
}
