//! Tensors and numbers in a device's memory.

use std::any::Any as Object;
use std::sync::{Arc, Mutex};

use super::gpu::{Block, Gpu, lock};
use super::launch::{Any, Kind, Launch, Out};
use crate::kernels::{Number, Sink, Value};
use crate::stored::Format;
use crate::tensor::DeviceMemory;
use crate::{Result, Tensor};

/// So many outputs in whole 64s, if tensor cores are to like them and it is worth while: of vocabularies.
fn whole(outputs: usize, kind: Kind) -> usize {
    let fits = kind == Kind::F32 || outputs.is_multiple_of(8) || outputs < 16;
    if fits { outputs } else { outputs.next_multiple_of(64) }
}

impl Gpu {
    pub(super) fn tensor(&'static self, shape: &[usize], kind: Kind) -> Tensor {
        let memory = Memory::new(self, shape.iter().product(), kind);
        Tensor::on_device(shape, Arc::new(memory))
    }

    /// A matrix whose rows begin where tensor cores like it, for those that ask [`Gpu::pitch`].
    pub(super) fn padded(&'static self, [rows, cols]: [usize; 2], kind: Kind) -> Tensor {
        let spare = whole(cols, kind) - cols;
        let block = Some(self.block((rows * (cols + spare)) * kind.size()));
        let memory =
            Memory { gpu: self, len: rows * cols, kind, cols, spare, block, narrow: Mutex::default() };
        Tensor::on_device(&[rows, cols], Arc::new(memory))
    }

    /// Elements from row to row.
    pub(super) fn pitch(&self, tensor: &Tensor) -> usize {
        tensor.cols() + memory_of(tensor).spare
    }

    /// Fours that hold all elements and what lies between them: memory ends on a whole one.
    pub(super) fn fours(&self, tensor: &Tensor) -> usize {
        memory_of(tensor).held().div_ceil(4)
    }

    /// A tensor that gets its memory from whoever writes it.
    pub(super) fn later(&'static self, shape: &[usize]) -> Tensor {
        let len = shape.iter().product();
        let narrow = Mutex::default();
        let memory = Memory { gpu: self, len, kind: Kind::F32, cols: 0, spare: 0, block: None, narrow };
        Tensor::on_device(shape, Arc::new(memory))
    }

    pub(super) fn upload_tensor(&'static self, tensor: Tensor) -> Tensor {
        let here = tensor.device_memory().and_then(|memory| memory.as_any().downcast_ref::<Memory>());
        if here.is_some_and(|memory| std::ptr::eq(memory.gpu, self)) {
            return tensor;
        }
        let tensor = tensor.from_device();
        let len = tensor.len();
        let memory = match (tensor.format(), tensor.stored_bytes()) {
            (Some(Format::BF16), Some(bytes)) => {
                let memory = Memory::new(self, len, Kind::Bf16);
                self.upload(memory.block_for_writing(), bytes);
                memory
            }
            (Some(Format::F16), Some(bytes)) => {
                let raw = self.block(bytes.len());
                self.upload(&raw, bytes);
                let memory = Memory::new(self, len, Kind::F32);
                let at = memory.any().at;
                self.launch(&Launch::each("widen_half", len).arg(raw.at).arg(at).arg(len));
                memory
            }
            _ => {
                let memory = Memory::new(self, len, Kind::F32);
                let host = tensor.to_host();
                self.upload(memory.block_for_writing(), bytemuck::cast_slice(host.data()));
                memory
            }
        };
        Tensor::on_device(tensor.shape(), Arc::new(memory))
    }

    pub(super) fn any(&self, tensor: &Tensor) -> Any {
        memory_of(tensor).any()
    }

    pub(super) fn maybe(&self, tensor: Option<&Tensor>) -> Any {
        tensor.map_or(Any::NONE, |tensor| self.any(tensor))
    }

    /// The elements in the type asked for: those that are there, or a copy. A copy in 16 bits is kept.
    pub(super) fn as_kind(&'static self, tensor: &Tensor, kind: Kind) -> Cast {
        let memory = memory_of(tensor);
        if memory.kind == kind {
            return Cast { any: memory.any(), _kept: None };
        }
        let mut narrow = lock(&memory.narrow);
        if kind == Kind::Bf16
            && let Some(block) = narrow.as_ref()
        {
            return Cast { any: Any { at: block.at, kind }, _kept: Some(Arc::clone(block)) };
        }
        let block = Arc::new(self.converted(tensor, kind));
        if kind == Kind::Bf16 && !self.has_failed() {
            *narrow = Some(Arc::clone(&block));
        }
        Cast { any: Any { at: block.at, kind }, _kept: Some(block) }
    }

    /// A weight or a bias in 16 bits, followed by as many zeros as make its rows whole 64s: what products of odd
    /// vocabularies read.
    pub(super) fn with_tail(&'static self, tensor: &Tensor) -> Cast {
        let memory = memory_of(tensor);
        let mut narrow = lock(&memory.narrow);
        let block = narrow.clone().unwrap_or_else(|| Arc::new(self.converted(tensor, Kind::Bf16)));
        *narrow = (!self.has_failed()).then(|| Arc::clone(&block));
        Cast { any: Any { at: block.at, kind: Kind::Bf16 }, _kept: Some(block) }
    }

    /// The elements in another type, with room for whole 64s of rows, which are zeros.
    fn converted(&'static self, tensor: &Tensor, kind: Kind) -> Block {
        let memory = memory_of(tensor);
        let rows = tensor.shape().first().copied().unwrap_or(1).max(1);
        let held = memory.len / rows * whole(rows, kind);
        let block = self.block(held * kind.size());
        if held > memory.len {
            self.zero(&block);
        }
        let (any, fours) = (Any { at: block.at, kind }, memory.len / 4);
        self.launch(&Launch::each("convert", fours).arg(memory.any()).arg(any).arg(fours));
        let rest = memory.len - fours * 4;
        let launch = Launch::each("copy_elements", rest).arg(memory.any()).arg(any);
        self.launch(&launch.arg(fours * 4).arg(fours * 4).arg(rest));
        block
    }

    /// Where a kernel writes all of a gradient: the memory that is there, if nobody shares it and, where it is
    /// overwritten, if it is what the kernel would make.
    pub(super) fn out(&'static self, sink: Sink<'_>, kind: Kind) -> Out {
        let memory = memory_of(sink.tensor);
        let alone = sink.tensor.is_alone();
        let base = if sink.accumulate { memory.any().at } else { 0 };
        let keeps = alone && memory.block.is_some();
        let kind = if memory.block.is_some() && (sink.accumulate || alone) { memory.kind } else { kind };
        if keeps {
            *lock(&memory.narrow) = None;
            return Out { at: memory.any().at, base, kind };
        }
        let fresh = self.tensor(sink.tensor.shape(), kind);
        // What was there is held by others until the kernel has been launched.
        let at = self.any(&fresh).at;
        *sink.tensor = fresh;
        Out { at, base, kind }
    }

    pub(super) fn maybe_out(&'static self, sink: Option<Sink<'_>>, kind: Kind) -> Out {
        sink.map_or(Out::NONE, |sink| self.out(sink, kind))
    }

    /// A parameter to be updated in place, with the copy in 16 bits that products have asked for, to be
    /// written along.
    pub(super) fn own_with_narrow(&'static self, tensor: &mut Tensor) -> (Any, u64) {
        let kept = if tensor.is_alone() { lock(&memory_of(tensor).narrow).take() } else { None };
        let any = self.own(tensor);
        let at = kept.as_ref().map_or(0, |block| block.at);
        *lock(&memory_of(tensor).narrow) = kept;
        (any, at)
    }

    pub(super) fn zeros(&'static self, shape: &[usize]) -> Tensor {
        let tensor = self.tensor(shape, Kind::F32);
        self.zero(memory_of(&tensor).block_for_writing());
        tensor
    }

    /// The tensor's elements as zeros, to be changed in place.
    pub(super) fn blank(&'static self, tensor: &mut Tensor) -> Any {
        if memory_of(tensor).block.is_none() || !tensor.is_alone() {
            *tensor = self.tensor(tensor.shape(), Kind::F32);
        }
        let any = self.own(tensor);
        self.zero(memory_of(tensor).block_for_writing());
        any
    }

    /// Makes sure that rows of a gradient can be written one after another.
    pub(super) fn begin(&'static self, tensor: &mut Tensor, kind: Kind) -> Any {
        if memory_of(tensor).block.is_none() {
            *tensor = self.tensor(tensor.shape(), kind);
        }
        self.own(tensor)
    }

    /// The elements, to be changed in place: a copy, if others share them.
    pub(super) fn own(&'static self, tensor: &mut Tensor) -> Any {
        let memory = memory_of(tensor);
        if tensor.is_alone() {
            *lock(&memory.narrow) = None;
            return memory.any();
        }
        let fresh = match memory.spare {
            0 => self.tensor(tensor.shape(), memory.kind),
            _ => self.padded([tensor.rows(), tensor.cols()], memory.kind),
        };
        let (from, to, bytes) = (memory.any().at, self.any(&fresh), memory.held() * memory.kind.size());
        if bytes > 0 {
            self.copy(from, to.at, bytes);
        }
        *tensor = fresh;
        to
    }

    // Numbers.

    pub(super) fn number(&'static self) -> OneNumber {
        OneNumber { block: self.block(8) }
    }
}

/// Elements in a type that they may not be kept in.
pub(super) struct Cast {
    pub(super) any: Any,
    _kept: Option<Arc<Block>>,
}

/// A tensor's elements.
pub(super) struct Memory {
    gpu: &'static Gpu,
    len: usize,
    kind: Kind,
    /// Elements of a row and those that nobody reads after them, where there are such.
    cols: usize,
    spare: usize,
    /// `None` until someone writes.
    block: Option<Block>,
    /// The elements in 16 bits, if products have asked.
    narrow: Mutex<Option<Arc<Block>>>,
}

impl Memory {
    fn new(gpu: &'static Gpu, len: usize, kind: Kind) -> Self {
        let block = Some(gpu.block(len * kind.size()));
        Self { gpu, len, kind, cols: 0, spare: 0, block, narrow: Mutex::default() }
    }

    /// Elements and what lies between them.
    fn held(&self) -> usize {
        if self.spare == 0 { self.len } else { self.len / self.cols * (self.cols + self.spare) }
    }

    fn any(&self) -> Any {
        let at = self.block_for_writing().at;
        if at == 0 {
            // Whoever has kept it cannot go on with it.
            self.gpu.fail("a tensor has no memory since the device has failed".to_owned());
        }
        Any { at, kind: self.kind }
    }

    fn block_for_writing(&self) -> &Block {
        self.block.as_ref().unwrap_or_else(|| unreachable!("nobody has written this tensor"))
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} elements as {:?}", self.len, self.kind)
    }
}

fn memory_of(tensor: &Tensor) -> &Memory {
    let memory = tensor.device_memory().unwrap_or_else(|| unreachable!("a kernel was handed host memory"));
    memory.as_any().downcast_ref().unwrap_or_else(|| unreachable!("another device's memory"))
}

impl DeviceMemory for Memory {
    fn len(&self) -> usize {
        self.len
    }
    fn to_host(&self) -> Vec<f32> {
        let mut values = vec![0.0f32; self.held()];
        match self.kind {
            Kind::F32 => self.gpu.download(self.any().at, bytemuck::cast_slice_mut(&mut values)),
            Kind::Bf16 => {
                let mut small = vec![0u16; self.held()];
                self.gpu.download(self.any().at, bytemuck::cast_slice_mut(&mut small));
                values.iter_mut().zip(small).for_each(|(v, s)| *v = f32::from_bits(u32::from(s) << 16));
            }
        }
        if self.spare > 0 {
            values =
                values.chunks(self.cols + self.spare).flat_map(|row| &row[..self.cols]).copied().collect();
        }
        values
    }
    fn number(&self) -> f64 {
        unreachable!("elements are no number")
    }
    fn settle(&self) -> Result<()> {
        self.gpu.settle();
        self.gpu.check()
    }
    fn widened(&self) -> Option<Arc<dyn DeviceMemory>> {
        if self.kind == Kind::F32 {
            return None;
        }
        let wide = Self::new(self.gpu, self.len, Kind::F32);
        let fours = self.len.div_ceil(4);
        self.gpu.launch(&Launch::each("convert", fours).arg(self.any()).arg(wide.any()).arg(fours));
        Some(Arc::new(wide))
    }
    fn as_any(&self) -> &dyn Object {
        self
    }
}

/// A double.
#[derive(Debug)]
pub(super) struct OneNumber {
    pub(super) block: Block,
}

impl OneNumber {
    pub(super) fn of(number: &Number) -> Option<&Self> {
        match &number.0 {
            Value::Host(_) => None,
            Value::Device(memory) => memory.as_any().downcast_ref(),
        }
    }

    pub(super) fn into_number(self) -> Number {
        Number(Value::Device(Arc::new(self)))
    }
}

impl DeviceMemory for OneNumber {
    fn len(&self) -> usize {
        1
    }
    fn to_host(&self) -> Vec<f32> {
        unreachable!("a number is no tensor")
    }
    fn number(&self) -> f64 {
        let mut bytes = [0; 8];
        self.block.gpu.download(self.block.at, &mut bytes);
        f64::from_le_bytes(bytes)
    }
    fn settle(&self) -> Result<()> {
        self.block.gpu.settle();
        self.block.gpu.check()
    }
    fn widened(&self) -> Option<Arc<dyn DeviceMemory>> {
        None
    }
    fn as_any(&self) -> &dyn Object {
        self
    }
}
