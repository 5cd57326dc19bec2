//! The kernels by name, and their launch.

use super::device::{Device, raw};
use super::driver;
use super::images::{Images, Module};
use crate::backend::Stream;
use crate::error::{Error, Result};
use bytemuck::NoUninit;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute as Attribute};
use std::ffi::{CString, c_void};
use std::sync::Arc;

macro_rules! kernels {
    ($($(#[$documentation:meta])* $kernel:ident: $module:literal, $function:literal, $threads:literal, $shared:ident;)*) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kernel {
            $($(#[$documentation])* $kernel,)*
        }

        /// All of them, in the order of the enumeration.
        const KERNELS: &[Entry] = &[
            $(Entry {
                module: $module,
                function: $function,
                threads: $threads,
                shared: Shared::$shared,
            },)*
        ];
    };
}

// Name: module (kernels/MODULE.cu), function, threads of a block at most, dynamic shared memory.
kernels! {
    /// Rows of a matrix by their ids, into another matrix.
    CopyRows: "rows", "copy_rows", 256, Small;
    /// The host's features side by side.
    GatherFeatures: "features", "gather_features", 256, Small;
    /// The norm of all features together.
    NormFeatures: "features", "norm_features", 256, Small;
    /// A linear map, BF16 weights, 16 rows.
    LinearBf16Sixteen: "layer", "linear_bf16_16", 256, Small;
    /// A linear map, BF16 weights, 32 rows at a time.
    LinearBf16ThirtyTwo: "layer", "linear_bf16_32", 256, Small;
    /// A linear map, BF16 weights, many rows.
    LinearBf16Many: "layer", "linear_bf16_many", 256, Small;
    /// A linear map, F16 weights, 16 rows.
    LinearF16Sixteen: "layer", "linear_f16_16", 256, Small;
    /// A linear map, F16 weights, 32 rows at a time.
    LinearF16ThirtyTwo: "layer", "linear_f16_32", 256, Small;
    /// A linear map, F16 weights, many rows.
    LinearF16Many: "layer", "linear_f16_many", 256, Small;
    /// A linear map, other weights, 16 rows.
    LinearAnySixteen: "layer", "linear_any_16", 256, Small;
    /// A linear map, other weights, 32 rows at a time.
    LinearAnyThirtyTwo: "layer", "linear_any_32", 256, Small;
    /// A linear map, other weights, many rows.
    LinearAnyMany: "layer", "linear_any_many", 256, Small;
    /// The first half of a gated MLP, BF16 weights, 16 rows.
    GateUpBf16Sixteen: "layer", "gate_up_bf16_16", 256, Small;
    /// The first half of a gated MLP, BF16 weights, 32 rows at a time.
    GateUpBf16ThirtyTwo: "layer", "gate_up_bf16_32", 256, Small;
    /// The first half of a gated MLP, BF16 weights, many rows.
    GateUpBf16Many: "layer", "gate_up_bf16_many", 256, Small;
    /// The first half of a gated MLP, F16 weights, 16 rows.
    GateUpF16Sixteen: "layer", "gate_up_f16_16", 256, Small;
    /// The first half of a gated MLP, F16 weights, 32 rows at a time.
    GateUpF16ThirtyTwo: "layer", "gate_up_f16_32", 256, Small;
    /// The first half of a gated MLP, F16 weights, many rows.
    GateUpF16Many: "layer", "gate_up_f16_many", 256, Small;
    /// The first half of a gated MLP, other weights, 16 rows.
    GateUpAnySixteen: "layer", "gate_up_any_16", 256, Small;
    /// The first half of a gated MLP, other weights, 32 rows at a time.
    GateUpAnyThirtyTwo: "layer", "gate_up_any_32", 256, Small;
    /// The first half of a gated MLP, other weights, many rows.
    GateUpAnyMany: "layer", "gate_up_any_many", 256, Small;
    /// The maps into an attention, BF16 weights, 16 rows.
    ProjectBf16Sixteen: "project", "project_bf16_16", 256, Small;
    /// The maps into an attention, BF16 weights, 32 rows at a time.
    ProjectBf16ThirtyTwo: "project", "project_bf16_32", 256, Small;
    /// The maps into an attention, BF16 weights, many rows.
    ProjectBf16Many: "project", "project_bf16_many", 256, Small;
    /// The maps into an attention, F16 weights, 16 rows.
    ProjectF16Sixteen: "project", "project_f16_16", 256, Small;
    /// The maps into an attention, F16 weights, 32 rows at a time.
    ProjectF16ThirtyTwo: "project", "project_f16_32", 256, Small;
    /// The maps into an attention, F16 weights, many rows.
    ProjectF16Many: "project", "project_f16_many", 256, Small;
    /// The maps into an attention, other weights, 16 rows.
    ProjectAnySixteen: "project", "project_any_16", 256, Small;
    /// The maps into an attention, other weights, 32 rows at a time.
    ProjectAnyThirtyTwo: "project", "project_any_32", 256, Small;
    /// The maps into an attention, other weights, many rows.
    ProjectAnyMany: "project", "project_any_many", 256, Small;
    /// The rows of the embedding, side by side.
    EmbedRows: "project", "embed_rows", 256, Small;
    /// What follows the maps into an attention where there are many rows.
    FinishProjection: "project", "finish_projection", 256, Small;
    /// The head and the choice of draft tokens, BF16 weights, 16 rows.
    ProposeBf16Sixteen: "propose", "propose_bf16_16", 256, Small;
    /// The head and the choice of draft tokens, BF16 weights, 32 rows at a time.
    ProposeBf16ThirtyTwo: "propose", "propose_bf16_32", 256, Small;
    /// The head and the choice of draft tokens, F16 weights, 16 rows.
    ProposeF16Sixteen: "propose", "propose_f16_16", 256, Small;
    /// The head and the choice of draft tokens, F16 weights, 32 rows at a time.
    ProposeF16ThirtyTwo: "propose", "propose_f16_32", 256, Small;
    /// The head and the choice of draft tokens, other weights, 16 rows.
    ProposeAnySixteen: "propose", "propose_any_16", 256, Small;
    /// The head and the choice of draft tokens, other weights, 32 rows at a time.
    ProposeAnyThirtyTwo: "propose", "propose_any_32", 256, Small;
}

/// Which kernel a [`Kernel`] is.
struct Entry {
    module: &'static str,
    function: &'static str,
    threads: u32,
    shared: Shared,
}

/// How much dynamic shared memory a kernel may be launched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    /// What every device gives: 48 KiB, less the kernel's static shared memory.
    Small,
    /// As much as the device has, less the kernel's static shared memory.
    #[allow(dead_code, reason = "the table of kernels names it as soon as one needs it")]
    Large,
}

/// Bytes of shared memory that blocks have without asking.
const SMALL_SHARED: u32 = 48 << 10;

/// The shape of a launch. With an empty grid there is nothing to launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Whether blocks wait for each other, so that all of them have to run at the same time.
    pub cooperative: bool,
}

/// The arguments of a kernel, passed by value.
///
/// # Safety
///
/// The type is `repr(C)` and has the same fields in the same order as the kernel's struct.
pub unsafe trait Arguments: NoUninit {}

/// A kernel that is loaded.
#[derive(Debug)]
struct Loaded {
    function: CUfunction,
    /// The most dynamic shared memory of a launch.
    shared: u32,
}

/// The kernels, loaded for a device: nothing is loaded in a step.
#[derive(Debug)]
pub struct Kernels {
    device: Arc<Device>,
    loaded: Vec<Loaded>,
    origin: String,
    /// What the functions belong to.
    _modules: Vec<Module>,
}

// SAFETY: the handles are names of objects of the driver, which any thread may use.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Loads all kernels. Blocks; compiles them where there is no image for the device.
    pub fn load(device: &Arc<Device>, images: &Images) -> Result<Self> {
        let _entered = device.enter()?;
        let mut modules: Vec<Module> = Vec::new();
        for entry in KERNELS {
            if !modules.iter().any(|module| module.name() == entry.module) {
                modules.push(images.load(device, entry.module)?);
            }
        }
        let load = |entry: &Entry| -> Result<Loaded> {
            let module = modules.iter().find(|module| module.name() == entry.module);
            let module =
                module.ok_or_else(|| Error::internal(format!("no module {}", entry.module)))?;
            resolve(device, module, entry).map_err(|error| error.within(entry.function))
        };
        let loaded = KERNELS.iter().map(load).collect::<Result<_>>()?;
        let origin = super::images::origin(&modules);
        Ok(Self { device: Arc::clone(device), loaded, origin, _modules: modules })
    }

    /// The device that they are loaded for.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where the kernels came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The most bytes of dynamic shared memory that the kernel can be launched with.
    #[allow(dead_code, reason = "for kernels with dynamic shared memory")]
    pub fn dynamic_shared(&self, kernel: Kernel) -> u32 {
        self.loaded[kernel as usize].shared
    }

    /// The most blocks of the kernel that run at the same time: the bound of cooperative grids.
    /// Not for steps.
    #[allow(dead_code, reason = "for cooperative kernels")]
    pub fn resident_blocks(&self, kernel: Kernel, threads: u32, shared: u32) -> Result<u32> {
        let _entered = self.device.enter()?;
        let mut blocks = 0;
        // SAFETY: a loaded function; `blocks` is writable.
        unsafe {
            driver::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &raw mut blocks,
                self.loaded[kernel as usize].function,
                threads as i32,
                shared as usize,
            )?;
        }
        Ok(blocks as u32 * self.device.facts().multiprocessors)
    }

    /// Enqueues a kernel. Neither allocates nor waits.
    ///
    /// # Safety
    ///
    /// The arguments are of the kernel's own type, every address in them is valid on the device for
    /// what the kernel does with it until the launch is done, and the context is current.
    pub unsafe fn launch<A: Arguments>(
        &self,
        kernel: Kernel,
        stream: Stream,
        shape: &Launch,
        arguments: &A,
    ) -> Result<()> {
        let [x, y, z] = shape.grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let function = self.loaded[kernel as usize].function;
        let argument: *const A = arguments;
        let mut list: [*mut c_void; 1] = [argument.cast_mut().cast()];
        let (list, stream) = (list.as_mut_ptr(), raw(stream));
        // SAFETY: this function's contract; the driver copies the arguments before it returns, and
        // reads as many bytes as the kernel's struct has, which is the type's size.
        let launched = unsafe {
            if shape.cooperative {
                driver::cuLaunchCooperativeKernel(
                    function,
                    x,
                    y,
                    z,
                    shape.threads,
                    1,
                    1,
                    shape.shared,
                    stream,
                    list,
                )
            } else {
                driver::cuLaunchKernel(
                    function,
                    x,
                    y,
                    z,
                    shape.threads,
                    1,
                    1,
                    shape.shared,
                    stream,
                    list,
                    std::ptr::null_mut(),
                )
            }
        };
        launched.map_err(|failure| {
            Error::from(failure).within(format!("{} {shape:?}", KERNELS[kernel as usize].function))
        })
    }
}

/// Looks a kernel up, and prepares it for as much shared memory as it may be launched with.
fn resolve(device: &Device, module: &Module, entry: &Entry) -> Result<Loaded> {
    let name = CString::new(entry.function).map_err(|_| Error::internal("a name with NUL"))?;
    let mut function = std::ptr::null_mut();
    // SAFETY: a loaded module; the name ends with NUL; `function` is writable.
    unsafe { driver::cuModuleGetFunction(&raw mut function, module.handle(), name.as_ptr())? };
    let attribute = |attribute: Attribute| -> Result<u32> {
        let mut value = 0;
        // SAFETY: a loaded function.
        unsafe { driver::cuFuncGetAttribute(&raw mut value, attribute, function)? };
        Ok(value as u32)
    };
    let threads = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
    if threads < entry.threads {
        return Err(Error::internal(format!(
            "expected a kernel for {} threads, found one for {threads}",
            entry.threads
        )));
    }
    let fixed = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    let most = match entry.shared {
        Shared::Small => SMALL_SHARED,
        Shared::Large => device.facts().shared_per_block,
    };
    let shared = most.saturating_sub(fixed);
    if entry.shared == Shared::Large {
        // SAFETY: a loaded function.
        unsafe {
            driver::cuFuncSetAttribute(
                function,
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared as i32,
            )?;
        }
    }
    Ok(Loaded { function, shared })
}
