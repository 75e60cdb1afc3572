//! What needs a card: the driver's and cuBLASLt's functions, found at run time.
#![allow(unsafe_code, reason = "foreign functions; what is above this module is safe")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_int, c_void};
use std::io::Read;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::{result as cu, sys};

use super::gemm::{Gemm, Shape};
use super::launch::{Kind, Launch};

/// What a device can do. Addresses are those of its memory; all work is done in the order in which it is asked
/// for.
pub(super) trait Driver: Send + Sync {
    /// Memory, or `None` if there is not so much.
    fn alloc(&self, bytes: usize) -> Result<Option<u64>, String>;
    fn free(&self, at: u64);
    /// What is there will not be read again.
    fn forget(&self, _at: u64, _bytes: usize) {}
    fn upload(&self, to: u64, from: &[u8]) -> Result<(), String>;
    /// Waits for all that was asked before.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), String>;
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), String>;
    fn zero(&self, at: u64, bytes: usize) -> Result<(), String>;
    fn launch(&self, launch: &Launch) -> Result<(), String>;
    fn gemm(&self, gemm: &Gemm) -> Result<(), String>;
    /// Waits for all that was asked before.
    fn settle(&self) -> Result<(), String>;
    /// Bytes free and in all.
    fn memory(&self) -> (usize, usize);
    /// By kernel how often it ran and milliseconds in all, where that is measured.
    fn times(&self) -> Vec<(String, u64, f64)> {
        Vec::new()
    }
    /// What it is, for people.
    fn name(&self) -> String;
}

/// Deflated: PTX is long-winded.
const PTX: &[u8] = include_bytes!("kernels.ptx.zlib");

/// The modules. Each is translated for the card when one of its kernels is first used, which takes a second or
/// so the first time; drivers keep what they have translated.
fn modules() -> Result<Vec<Module>, String> {
    let mut text = Vec::new();
    flate2::read::ZlibDecoder::new(PTX).read_to_end(&mut text).map_err(|e| e.to_string())?;
    let texts = text.split_inclusive(|byte| *byte == 0);
    let module = |text: &[u8]| {
        let text = CString::from_vec_with_nul(text.to_vec()).map_err(|e| e.to_string())?;
        let lines = text.to_str().map_err(|e| e.to_string())?.lines();
        let names = lines
            .filter_map(|line| Some(line.strip_prefix(".visible .entry ")?.strip_suffix('(')?.to_owned()));
        Ok(Module { kernels: names.collect(), text, handle: None })
    };
    texts.map(module).collect()
}

struct Module {
    kernels: Vec<String>,
    text: CString,
    handle: Option<sys::CUmodule>,
}

// SAFETY: as for `Card`.
unsafe impl Send for Module {}

/// Bytes that cuBLASLt may use beside its operands; always as many, so that the choice of algorithms does not
/// depend on what is free.
const WORKSPACE: usize = 32 << 20;

/// A card.
pub(super) struct Card {
    name: String,
    context: sys::CUcontext,
    modules: Mutex<Vec<Module>>,
    stream: sys::CUstream,
    functions: Mutex<HashMap<&'static str, Function>>,
    blas: lt_sys::cublasLtHandle_t,
    workspace: u64,
    plans: Mutex<HashMap<Shape, Plan>>,
    /// By kernel, if that is to be measured.
    times: Option<Mutex<HashMap<String, (u64, f64)>>>,
}

// SAFETY: the driver's and cuBLASLt's handles may be used from any thread.
unsafe impl Send for Card {}
// SAFETY: as above; what changes is behind locks.
unsafe impl Sync for Card {}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Bytes of shared memory that it may be given.
    shared: u32,
}

// SAFETY: as for `Card`.
unsafe impl Send for Function {}

/// A product that an algorithm was chosen for.
struct Plan {
    operation: lt_sys::cublasLtMatmulDesc_t,
    a: lt_sys::cublasLtMatrixLayout_t,
    b: lt_sys::cublasLtMatrixLayout_t,
    d: lt_sys::cublasLtMatrixLayout_t,
    algorithm: lt_sys::cublasLtMatmulAlgo_t,
}

// SAFETY: as for `Card`.
unsafe impl Send for Plan {}

fn driver_error(error: cu::DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("error {error:?} of the driver"))
}

/// Where cuBLASLt is looked for first: folders in `UPGRAYEDD_CUDA_LIBRARIES`, separated by colons. What is
/// loaded from there is found by its name later.
fn preload() {
    let folders = std::env::var_os("UPGRAYEDD_CUDA_LIBRARIES").unwrap_or_default();
    for folder in std::env::split_paths(&folders) {
        for version in [13, 12] {
            let file = folder.join(format!("libcublasLt.so.{version}"));
            // SAFETY: the library's initialisers are those of cuBLASLt.
            if let Ok(library) = unsafe { libloading::Library::new(&file) } {
                std::mem::forget(library);
                return;
            }
        }
    }
}

impl Card {
    /// How many there are; `None` without a driver.
    pub(super) fn count() -> Option<usize> {
        // SAFETY: asks whether the library is there.
        if !unsafe { sys::is_culib_present() } || cu::init().is_err() {
            return None;
        }
        cu::device::get_count().ok().and_then(|count| usize::try_from(count).ok())
    }

    /// Opens a card.
    pub(super) fn open(index: usize) -> Result<Self, String> {
        let count = Self::count().unwrap_or(0);
        if count == 0 {
            return Err("there is no NVIDIA driver, or it finds no GPU".to_owned());
        }
        let device = c_int::try_from(index).ok().filter(|_| index < count);
        let device = device.ok_or_else(|| format!("there are {count} GPUs, numbered from 0"))?;
        preload();
        // SAFETY: asks whether the library is there.
        if !unsafe { lt_sys::is_culib_present() } {
            return Err(
                "the library cuBLASLt (libcublasLt.so.13 or .12) was not found: install CUDA's libraries, or pip \
                 install nvidia-cublas, and name the folder in UPGRAYEDD_CUDA_LIBRARIES"
                    .to_owned(),
            );
        }
        Self::set_up(device)
    }

    fn set_up(index: c_int) -> Result<Self, String> {
        let device = cu::device::get(index).map_err(driver_error)?;
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let name = cu::device::get_name(device).map_err(driver_error)?;
        let modules = Mutex::new(modules()?);
        // SAFETY: handles are used as the driver made them, in the order that it asks for.
        unsafe {
            let version =
                [MAJOR, MINOR].map(|part| cu::device::get_attribute(device, part).unwrap_or_default());
            if version[0] < 8 {
                return Err(format!(
                    "{name} has compute capability {}.{}; 8.0 (Ampere) or later is needed",
                    version[0], version[1]
                ));
            }
            let context = cu::primary_ctx::retain(device).map_err(driver_error)?;
            cu::ctx::set_current(context).map_err(driver_error)?;
            let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking).map_err(driver_error)?;
            let pool = cu::device::get_default_mem_pool(device).map_err(driver_error)?;
            let mut threshold = u64::MAX;
            cu::mem_pool::set_attribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            )
            .map_err(driver_error)?;
            let blas = lt::create_handle().map_err(|e| format!("cuBLASLt: {e:?}"))?;
            let workspace = cu::malloc_async(stream, WORKSPACE).map_err(driver_error)?;
            let (functions, plans) = (Mutex::default(), Mutex::default());
            let times = std::env::var_os("UPGRAYEDD_CUDA_TIMES").map(|_| Mutex::default());
            Ok(Self { name, context, modules, stream, functions, blas, workspace, plans, times })
        }
    }

    /// Every thread says which card it means.
    fn bind(&self) -> Result<(), String> {
        // SAFETY: the context lives as long as the process.
        unsafe { cu::ctx::set_current(self.context) }.map_err(driver_error)
    }

    /// Does it and, if that is to be measured, waits and notes how long it took.
    fn timed(
        &self,
        name: impl FnOnce() -> String,
        f: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let Some(times) = &self.times else { return f() };
        let event = || cu::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(driver_error);
        let (start, end) = (event()?, event()?);
        // SAFETY: events are destroyed after they have been waited for.
        unsafe {
            cu::event::record(start, self.stream).map_err(driver_error)?;
            f()?;
            cu::event::record(end, self.stream).map_err(driver_error)?;
            cu::event::synchronize(end).map_err(driver_error)?;
            let taken = cu::event::elapsed(start, end).map_err(driver_error)?;
            for event in [start, end] {
                cu::event::destroy(event).map_err(driver_error)?;
            }
            let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = times.entry(name()).or_default();
            *entry = (entry.0 + 1, entry.1 + f64::from(taken));
        }
        Ok(())
    }

    fn module_with(&self, kernel: &str) -> Result<(sys::CUmodule, CString), String> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |module: &&mut Module| module.kernels.iter().any(|name| name == kernel);
        let module = modules.iter_mut().find(is_it).ok_or_else(|| format!("there is no kernel {kernel}"))?;
        let handle = match module.handle {
            Some(handle) => handle,
            // SAFETY: the text ends on a zero.
            None => unsafe { cu::module::load_data(module.text.as_ptr().cast()) }.map_err(|e| {
                format!("the driver cannot load the kernels ({}): it may be too old", driver_error(e))
            })?,
        };
        module.handle = Some(handle);
        Ok((handle, CString::new(kernel).map_err(|e| e.to_string())?))
    }

    fn function(&self, launch: &Launch) -> Result<sys::CUfunction, String> {
        /// What may be used without asking.
        const USUAL: u32 = 48 << 10;
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = functions.get(launch.kernel).copied();
        let mut function = match known {
            Some(function) => function,
            None => {
                let (module, name) = self.module_with(launch.kernel)?;
                // SAFETY: the module lives as long as the process.
                let handle = unsafe { cu::module::get_function(module, name) }.map_err(driver_error)?;
                Function { handle, shared: USUAL }
            }
        };
        if launch.shared > function.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            unsafe {
                cu::function::set_function_attribute(function.handle, attribute, launch.shared as c_int)
            }
            .map_err(driver_error)?;
            function.shared = launch.shared;
        }
        functions.insert(launch.kernel, function);
        Ok(function.handle)
    }

    fn plan(&self, shape: &Shape) -> Result<Plan, lt::CublasError> {
        use lt_sys::cublasComputeType_t as Compute;
        use lt_sys::cublasLtMatmulDescAttributes_t as Attribute;
        use lt_sys::cudaDataType_t as Type;
        let of = |kind| match kind {
            Kind::F32 => Type::CUDA_R_32F,
            Kind::Bf16 => Type::CUDA_R_16BF,
        };
        let compute = match (shape.inputs, shape.tf32) {
            (Kind::F32, true) => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        let operation = lt::create_matmul_desc(compute, Type::CUDA_R_32F)?;
        // Rows and columns as they are stored, before op.
        let stored = |rows: usize, columns: usize, transposed| {
            if transposed { (columns, rows) } else { (rows, columns) }
        };
        let layout = |kind, (rows, columns): (usize, usize), ld: usize| {
            lt::create_matrix_layout(of(kind), rows as u64, columns as u64, ld as i64)
        };
        let a = layout(shape.inputs, stored(shape.m, shape.k, shape.transpose_a), shape.lda)?;
        let b = layout(shape.inputs, stored(shape.k, shape.n, shape.transpose_b), shape.ldb)?;
        let d = layout(shape.output, (shape.m, shape.n), shape.ldd)?;
        let (preference, workspace) = (lt::create_matmul_pref()?, WORKSPACE);
        // SAFETY: attributes have the types that the manual gives them; handles were made above.
        unsafe {
            let set = |attribute, value: *const c_void, size| {
                lt::set_matmul_desc_attribute(operation, attribute, value, size)
            };
            for (attribute, transposed) in [
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, shape.transpose_a),
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, shape.transpose_b),
            ] {
                let value = i32::from(transposed);
                set(attribute, (&raw const value).cast(), 4)?;
            }
            if shape.bias {
                let epilogue = lt_sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), 4)?;
            }
            lt::set_matmul_pref_attribute(
                preference,
                lt_sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                8,
            )?;
            let found = lt::get_matmul_algo_heuristic(self.blas, operation, a, b, d, d, preference)?;
            lt::destroy_matmul_pref(preference)?;
            Ok(Plan { operation, a, b, d, algorithm: found.algo })
        }
    }
}

impl Driver for Card {
    fn alloc(&self, bytes: usize) -> Result<Option<u64>, String> {
        self.bind()?;
        // SAFETY: the stream lives as long as the process.
        match unsafe { cu::malloc_async(self.stream, bytes) } {
            Ok(at) => Ok(Some(at)),
            Err(cu::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => Err(driver_error(error)),
        }
    }
    fn free(&self, at: u64) {
        if self.bind().is_ok() {
            // SAFETY: the address is one of `alloc`'s; an error of earlier work is told by whoever waits for it.
            let _ = unsafe { cu::free_async(at, self.stream) };
        }
    }
    fn upload(&self, to: u64, from: &[u8]) -> Result<(), String> {
        self.bind()?;
        // SAFETY: pageable memory is copied before the call returns.
        unsafe { cu::memcpy_htod_async(to, from, self.stream) }.map_err(driver_error)
    }
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), String> {
        self.bind()?;
        // SAFETY: the borrow lasts until the stream is done.
        unsafe { cu::memcpy_dtoh_async(to, from, self.stream) }.map_err(driver_error)?;
        // SAFETY: the stream lives as long as the process.
        unsafe { cu::stream::synchronize(self.stream) }.map_err(driver_error)
    }
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), String> {
        self.bind()?;
        // SAFETY: both are allocations of at least so many bytes.
        unsafe { cu::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(driver_error)
    }
    fn zero(&self, at: u64, bytes: usize) -> Result<(), String> {
        self.bind()?;
        // SAFETY: an allocation of at least so many bytes.
        unsafe { cu::memset_d8_async(at, 0, bytes, self.stream) }.map_err(driver_error)
    }
    fn launch(&self, launch: &Launch) -> Result<(), String> {
        self.bind()?;
        let function = self.function(launch)?;
        let [x, y, z] = launch.grid;
        let mut arguments: Vec<*mut c_void> =
            launch.arguments().map(|word| std::ptr::from_ref(word).cast_mut().cast()).collect();
        let threads = (launch.threads, 1, 1);
        self.timed(
            || launch.kernel.to_owned(),
            || {
                let arguments = &mut arguments;
                // SAFETY: the arguments are the kernel's, which the emulator's tests check; they are read at
                // once.
                unsafe {
                    cu::launch_kernel(function, (x, y, z), threads, launch.shared, self.stream, arguments)
                }
                .map_err(|error| format!("kernel {}: {}", launch.kernel, driver_error(error)))
            },
        )
    }
    fn gemm(&self, gemm: &Gemm) -> Result<(), String> {
        self.bind()?;
        let told = |e: lt::CublasError| format!("cuBLASLt: {:?} for {:?}", e.0, gemm.shape);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(gemm.shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.plan(&gemm.shape).map_err(told)?),
        };
        let (alpha, beta) = (1.0f32, if gemm.shape.accumulate { 1.0f32 } else { 0.0 });
        let d = gemm.d as *mut c_void;
        // SAFETY: pointers are allocations as large as the layouts say; α and β are read at once.
        unsafe {
            if gemm.shape.bias {
                let attribute = lt_sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                lt::set_matmul_desc_attribute(plan.operation, attribute, (&raw const gemm.bias).cast(), 8)
                    .map_err(told)?;
            }
            let multiply = || {
                lt::matmul(
                    self.blas,
                    plan.operation,
                    (&raw const alpha).cast(),
                    (&raw const beta).cast(),
                    gemm.a as *const c_void,
                    plan.a,
                    gemm.b as *const c_void,
                    plan.b,
                    d,
                    plan.d,
                    d,
                    plan.d,
                    &raw const plan.algorithm,
                    self.workspace as *mut c_void,
                    WORKSPACE,
                    self.stream.cast(),
                )
                .map_err(told)
            };
            let s = gemm.shape;
            let letter = |transposed| if transposed { 't' } else { 'n' };
            let (a, b) = (letter(s.transpose_a), letter(s.transpose_b));
            self.timed(|| format!("product {a}{b} {} × {} × {}", s.m, s.n, s.k), multiply)
        }
    }
    fn settle(&self) -> Result<(), String> {
        self.bind()?;
        // SAFETY: the stream lives as long as the process.
        unsafe { cu::stream::synchronize(self.stream) }.map_err(driver_error)
    }
    fn memory(&self) -> (usize, usize) {
        let _ = self.bind();
        cu::mem_get_info().unwrap_or_default()
    }
    fn times(&self) -> Vec<(String, u64, f64)> {
        let Some(times) = &self.times else { return Vec::new() };
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = times.drain().map(|(name, (count, ms))| (name, count, ms)).collect();
        all.sort_by(|a, b| b.2.total_cmp(&a.2));
        all
    }
    fn name(&self) -> String {
        self.name.clone()
    }
}
