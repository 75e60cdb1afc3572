//! Records ops forward, walks them backward.

use std::cell::RefCell;
use std::sync::Arc;

use crate::device::Device;
use crate::kernels::{Kernels, Sink};
use crate::params::Slot;
use crate::{Gradients, ParamId, ParamSet, Result, Tensor, interrupt};

/// Where a value's gradient goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Node(usize),
    Param(ParamId),
}

/// Computes a value once more, from what the backward pass keeps anyway.
type Recipe = Arc<dyn Fn(&dyn Kernels) -> Tensor + Send + Sync>;

/// A value on the tape. Dropping it frees the memory unless a backward step still needs it.
#[derive(Clone)]
pub struct Var {
    tensor: Tensor,
    source: Option<Source>,
    recipe: Option<Recipe>,
}

impl std::fmt::Debug for Var {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Var")
            .field("tensor", &self.tensor)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Var {
    /// The value.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Whether a gradient flows to this value.
    pub fn requires_grad(&self) -> bool {
        self.source.is_some()
    }

    pub(crate) fn source(&self) -> Option<Source> {
        self.source
    }

    /// Says how to compute the value again, which must be cheap and give the same bits: backward steps then
    /// need not keep it.
    pub(crate) fn made_by(self, recipe: impl Fn(&dyn Kernels) -> Tensor + Send + Sync + 'static) -> Self {
        let recipe = self.requires_grad().then(|| Arc::new(recipe) as Recipe);
        Self { recipe, ..self }
    }

    /// The value for a backward step: kept, or computed again when it is asked for.
    pub(crate) fn saved(&self) -> impl Fn(&dyn Kernels) -> Tensor + Send + use<> {
        let kept = self.recipe.is_none().then(|| self.tensor.clone());
        let recipe = self.recipe.clone();
        move |kernels| match (&kept, &recipe) {
            (Some(tensor), _) => tensor.clone(),
            (None, Some(recipe)) => made_once(recipe, kernels),
            (None, None) => unreachable!("a value without a recipe is kept"),
        }
    }
}

thread_local! {
    /// What a recipe has made, while others will ask for the same: the linears that read one norm.
    static MADE: RefCell<Option<(Recipe, Tensor)>> = const { RefCell::new(None) };
}

fn made_once(recipe: &Recipe, kernels: &dyn Kernels) -> Tensor {
    let made = MADE.take().filter(|(of, _)| Arc::ptr_eq(of, recipe));
    let (holders, tensor) = match made {
        Some((of, tensor)) => (Arc::strong_count(&of) - 1, tensor),
        None => (Arc::strong_count(recipe), recipe(kernels)),
    };
    if holders > 1 {
        MADE.set(Some((Arc::clone(recipe), tensor.clone())));
    }
    tensor
}

type Backward<'p> = Box<dyn FnOnce(&Tensor, &mut GradStore<'_>) -> Result<()> + Send + 'p>;

/// Runs ops and, when recording, remembers how to go back.
pub struct Tape<'p> {
    device: Device,
    params: &'p ParamSet,
    grads: Option<&'p mut Gradients>,
    /// `None` marks a leaf, whose gradient is kept.
    nodes: Vec<Option<Backward<'p>>>,
    segmented: bool,
}

impl<'p> Tape<'p> {
    /// A tape that only computes: nothing is kept for a backward pass.
    pub fn inference(device: Device, params: &'p ParamSet) -> Self {
        Self { device, params, grads: None, nodes: Vec::new(), segmented: false }
    }

    /// A tape whose [`Tape::backward`] adds into `grads` (of the trainable parameters).
    pub fn recording(device: Device, params: &'p ParamSet, grads: &'p mut Gradients) -> Self {
        Self { device, params, grads: Some(grads), nodes: Vec::new(), segmented: false }
    }

    /// The same, with `segmented` [`Tape::segment`]s: less memory for a second forward pass.
    pub fn with_segments(self, segmented: bool) -> Self {
        Self { segmented, ..self }
    }

    /// Whether what can be a [`Tape::segment`] should be.
    pub fn has_segments(&self) -> bool {
        self.segmented && self.is_recording()
    }

    /// Where its ops run.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether ops leave backward steps.
    pub fn is_recording(&self) -> bool {
        self.grads.is_some()
    }

    /// A value without gradient.
    pub fn constant(&self, tensor: Tensor) -> Var {
        Var { tensor: self.kernels().upload(tensor), source: None, recipe: None }
    }

    /// A value whose gradient [`Tape::backward`] returns (a head gate, say).
    pub fn leaf(&mut self, tensor: Tensor) -> Var {
        if !self.is_recording() {
            return self.constant(tensor);
        }
        self.nodes.push(None);
        Var {
            tensor: self.kernels().upload(tensor),
            source: Some(Source::Node(self.nodes.len() - 1)),
            recipe: None,
        }
    }

    /// A parameter; its gradient is computed if it is trainable and the tape records.
    pub fn param(&self, id: ParamId) -> Var {
        let wanted = self.is_recording() && self.params.is_trainable(id);
        Var { tensor: self.params.get(id).clone(), source: wanted.then_some(Source::Param(id)), recipe: None }
    }

    /// What `first` makes of `inputs`, on a tape that keeps nothing. The backward pass runs `again` on the
    /// same inputs, which must give the same bits (gradient checkpointing, Chen et al. 2016).
    ///
    /// # Errors
    /// Returns [`crate::Error::Interrupted`] if the work is stopped.
    pub fn segment(
        &mut self,
        inputs: &[Var],
        first: impl FnOnce(&mut Tape<'_>, &[Var]) -> Result<Var>,
        again: impl FnOnce(&mut Tape<'_>, &[Var]) -> Result<Var> + Send + 'p,
    ) -> Result<Var> {
        let (device, params) = (self.device, self.params);
        let mut once = Tape::inference(device, params);
        let constants: Vec<Var> = inputs.iter().map(|v| once.constant(v.tensor.clone())).collect();
        let result = first(&mut once, &constants)?.tensor;
        drop(constants);
        let kept: Vec<_> = inputs.iter().map(|v| (v.tensor.clone(), v.source)).collect();
        self.record(result, &inputs.iter().collect::<Vec<_>>(), move |gradient, store| {
            let mut tape = Tape::recording(device, params, store.params);
            let (tensors, sources): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
            let wanted = tensors.into_iter().zip(&sources);
            let inputs: Vec<Var> =
                wanted.map(|(t, s)| if s.is_some() { tape.leaf(t) } else { tape.constant(t) }).collect();
            let result = again(&mut tape, &inputs)?;
            let gradients = tape.backward(vec![(result, gradient.clone())])?;
            for (input, source) in inputs.iter().zip(sources) {
                if let Some(gradient) = gradients.get(input) {
                    store.add_to(source, gradient);
                }
            }
            Ok(())
        })
    }

    pub(crate) fn kernels(&self) -> &dyn Kernels {
        self.device.kernels()
    }

    /// Whether the work goes on: nobody has stopped it, and the device is well.
    pub(crate) fn check(&self) -> Result<()> {
        interrupt::check()?;
        self.kernels().check()
    }

    /// Puts an op's result on the tape. `backward` gets the result's gradient and is kept only if an input
    /// wants one.
    pub(crate) fn record(
        &mut self,
        result: Tensor,
        inputs: &[&Var],
        backward: impl FnOnce(&Tensor, &mut GradStore<'_>) -> Result<()> + Send + 'p,
    ) -> Result<Var> {
        self.check()?;
        if !self.is_recording() || !inputs.iter().any(|v| v.requires_grad()) {
            return Ok(self.constant(result));
        }
        self.nodes.push(Some(Box::new(backward)));
        Ok(Var { tensor: result, source: Some(Source::Node(self.nodes.len() - 1)), recipe: None })
    }

    /// Runs `f` with the gradient of a parameter, for ops that compute it while going forward (the fused LM
    /// head).
    pub(crate) fn with_param_grad(&mut self, var: &Var, f: impl FnOnce(&dyn Kernels, Sink<'_>)) {
        let Some(Source::Param(id)) = var.source else { return };
        if let Some(grads) = self.grads.as_deref_mut() {
            let kernels = self.device.kernels();
            sink_into(kernels, &mut grads.slots[id.0], var.tensor.shape(), |sink| f(kernels, sink));
        }
    }

    /// Walks the tape backward from `seeds` (values and their gradients), adding into the parameters'
    /// gradients.
    ///
    /// # Errors
    /// Returns [`crate::Error::Interrupted`] if the work is stopped.
    pub fn backward(self, seeds: Vec<(Var, Tensor)>) -> Result<LeafGradients> {
        let leaves = self.walk(seeds);
        // Stopped on its way, it may have left something for those that come no more.
        MADE.take();
        leaves
    }

    fn walk(self, seeds: Vec<(Var, Tensor)>) -> Result<LeafGradients> {
        let Some(grads) = self.grads else { return Ok(LeafGradients::default()) };
        let mut store = GradStore {
            kernels: self.device.kernels(),
            nodes: self.nodes.iter().map(|_| Slot::default()).collect(),
            params: grads,
        };
        for (var, seed) in seeds {
            store.add(&var, &seed);
        }
        let mut leaves = LeafGradients::default();
        for (index, node) in self.nodes.into_iter().enumerate().rev() {
            interrupt::check()?;
            store.kernels.check()?;
            let slot = std::mem::take(&mut store.nodes[index]);
            match (node, slot.tensor) {
                (Some(backward), Some(gradient)) => backward(&gradient, &mut store)?,
                (None, Some(gradient)) => leaves.grads.push((index, gradient)),
                (_, None) => {}
            }
        }
        Ok(leaves)
    }
}

/// Gradients of the tape's leaves.
#[derive(Debug, Default)]
pub struct LeafGradients {
    grads: Vec<(usize, Tensor)>,
}

impl LeafGradients {
    /// The gradient of `leaf`, unless nothing depended on it.
    pub fn get(&self, leaf: &Var) -> Option<&Tensor> {
        let Some(Source::Node(index)) = leaf.source else { return None };
        self.grads.iter().find(|(i, _)| *i == index).map(|(_, g)| g)
    }
}

/// Gradients in flight during the backward walk.
pub(crate) struct GradStore<'a> {
    pub(crate) kernels: &'a dyn Kernels,
    nodes: Vec<Slot>,
    params: &'a mut Gradients,
}

/// A gradient taken out of the store while kernels write to it.
pub(crate) struct Taken {
    source: Source,
    tensor: Tensor,
    accumulate: bool,
}

impl Taken {
    pub(crate) fn sink(&mut self) -> Sink<'_> {
        Sink { tensor: &mut self.tensor, accumulate: self.accumulate }
    }
}

impl GradStore<'_> {
    fn slot(&mut self, source: Source) -> &mut Slot {
        match source {
            Source::Node(index) => &mut self.nodes[index],
            Source::Param(id) => &mut self.params.slots[id.0],
        }
    }

    /// Takes the gradient of `source` out for a kernel, if one is wanted. Must be [`GradStore::put`] back.
    pub(crate) fn take(&mut self, source: Option<Source>, shape: &[usize]) -> Option<Taken> {
        let source = source?;
        let kernels = self.kernels;
        let slot = self.slot(source);
        let accumulate = std::mem::take(&mut slot.filled);
        let kept = slot.tensor.take().filter(|t| t.shape() == shape);
        debug_assert!(!accumulate || kept.is_some(), "a gradient changed its shape");
        let tensor = kept.unwrap_or_else(|| match source {
            Source::Node(_) => kernels.empty(shape),
            Source::Param(_) => kernels.zeros(shape),
        });
        Some(Taken { source, tensor, accumulate })
    }

    /// Puts a gradient back after a kernel has written it.
    pub(crate) fn put(&mut self, taken: Option<Taken>) {
        let Some(Taken { source, tensor, .. }) = taken else { return };
        let kernels = self.kernels;
        let slot = self.slot(source);
        match slot.tensor.as_mut().filter(|_| slot.filled) {
            // The same value was taken twice by one op, as in add(x, x).
            Some(present) => kernels.add_assign(present, &tensor),
            None => *slot = Slot { tensor: Some(tensor), filled: true },
        }
    }

    /// Adds `gradient` to the gradient of `var`.
    pub(crate) fn add(&mut self, var: &Var, gradient: &Tensor) {
        self.add_to(var.source, gradient);
    }

    /// Adds `gradient` to the gradient of `source`. The first arrival shares memory.
    pub(crate) fn add_to(&mut self, source: Option<Source>, gradient: &Tensor) {
        let Some(source) = source else { return };
        let kernels = self.kernels;
        let slot = self.slot(source);
        match slot.tensor.as_mut().filter(|_| slot.filled) {
            Some(present) => kernels.add_assign(present, gradient),
            None => *slot = Slot { tensor: Some(gradient.clone()), filled: true },
        }
    }
}

fn sink_into(kernels: &dyn Kernels, slot: &mut Slot, shape: &[usize], f: impl FnOnce(Sink<'_>)) {
    let accumulate = std::mem::replace(&mut slot.filled, true);
    let tensor = match slot.tensor.take() {
        Some(tensor) if tensor.shape() == shape => slot.tensor.insert(tensor),
        _ => slot.tensor.insert(kernels.zeros(shape)),
    };
    f(Sink { tensor, accumulate });
}
