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
    /// What is told of trees: links, paths and masks.
    MaskTrees: "tree", "mask_trees", 256, Small;
    /// Accepted rows to the places behind their root.
    CompactRows: "compact", "compact_rows", 128, Small;
    /// The layout of a call's rows.
    PlanRows: "plan", "plan_rows", 1024, Small;
    /// The residual stream of the rows that go on drafting.
    GatherRows: "gather", "gather_rows", 256, Small;
    /// Attention over keys and values in F32, for groups of one head.
    AttendF32By1: "attention", "attend_f32_1", 256, Large;
    /// Attention over keys and values in F32, for groups of up to 2 heads.
    AttendF32By2: "attention", "attend_f32_2", 256, Large;
    /// Attention over keys and values in F32, for groups of up to 4 heads.
    AttendF32By4: "attention", "attend_f32_4", 256, Large;
    /// Attention over keys and values in F32, for groups of up to 8 heads.
    AttendF32By8: "attention", "attend_f32_8", 256, Large;
    /// Attention over keys and values in F16, for groups of one head.
    AttendF16By1: "attention", "attend_f16_1", 256, Large;
    /// Attention over keys and values in F16, for groups of up to 2 heads.
    AttendF16By2: "attention", "attend_f16_2", 256, Large;
    /// Attention over keys and values in F16, for groups of up to 4 heads.
    AttendF16By4: "attention", "attend_f16_4", 256, Large;
    /// Attention over keys and values in F16, for groups of up to 8 heads.
    AttendF16By8: "attention", "attend_f16_8", 256, Large;
    /// Attention over keys and values in BF16, for groups of one head.
    AttendBf16By1: "attention", "attend_bf16_1", 256, Large;
    /// Attention over keys and values in BF16, for groups of up to 2 heads.
    AttendBf16By2: "attention", "attend_bf16_2", 256, Large;
    /// Attention over keys and values in BF16, for groups of up to 4 heads.
    AttendBf16By4: "attention", "attend_bf16_4", 256, Large;
    /// Attention over keys and values in BF16, for groups of up to 8 heads.
    AttendBf16By8: "attention", "attend_bf16_8", 256, Large;
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
    /// The embedding of the token beside the hidden state.
    GatherToken: "token", "gather_token", 256, Small;
    /// The choice of each row's experts.
    ChooseExperts: "experts", "choose_experts", 256, Small;
    /// The first half of experts.
    ExpertsGateUp: "experts", "experts_gate_up", 256, Small;
    /// The second half of experts.
    ExpertsDown: "experts", "experts_down", 256, Small;
    /// What experts make, added up.
    AddExperts: "experts", "add_experts", 256, Small;
    /// The states that steps of MLP speculators go on from.
    ReadStates: "mlp", "read_states", 256, Small;
    /// What becomes of the states with the tokens.
    FinishMlp: "mlp", "finish_mlp", 256, Small;
    /// The gate of an attention.
    GateRows: "layer", "gate_rows", 256, Small;
    /// The norm of rows.
    NormRows: "layer", "norm_rows", 256, Small;
    /// The rows of blocks, and what enters the first layer with them.
    StartBlock: "block", "start_block", 256, Small;
    /// A convolution over the rows of each block.
    Convolve: "block_heads", "convolve", 256, Small;
    /// A step of a Markov head.
    StepMarkov: "block_heads", "step_markov", 256, Small;
    /// Confidence in proposals, and their truncation by it.
    RateDrafts: "block_heads", "rate_drafts", 256, Small;
    /// The tokens with the largest logits of each row.
    SelectCandidates: "block_heads", "select_candidates", 512, Small;
    /// A walk through the candidates of each block.
    WalkCandidates: "block_heads", "walk_candidates", 256, Small;
    /// The scores of candidates below the rows of a level of trees.
    ScoreCandidates: "block_heads", "score_candidates", 256, Small;
    /// What the input map of a refiner reads.
    RefinerInput: "block_heads", "refiner_input", 256, Small;
    /// What a refiner adds up over the rows of a block.
    RefinerMix: "block_heads", "refiner_mix", 256, Small;
    /// What follows from the shape of a call's trees.
    StoreShape: "draft_trees", "store_shape", 1024, Small;
    /// The logits of a level of given trees, for the host.
    TellLogits: "draft_trees", "tell_logits", 256, Small;
    /// Draws of siblings without replacement.
    DrawSiblings: "draft_trees", "draw_siblings", 256, Small;
    /// The children of a level of given trees, and the rows of the next.
    BranchRows: "draft_trees", "branch_rows", 256, Small;
    /// The candidates below a level of dynamic trees.
    ScoreChildren: "draft_trees", "score_children", 256, Small;
    /// The rows of the next level of dynamic trees.
    ExpandBest: "draft_trees", "expand_best", 256, Small;
    /// The best candidates of dynamic trees.
    RankCandidates: "draft_trees", "rank_candidates", 256, Small;
    /// What the host wants to know of the trees.
    DescribeTree: "draft_trees", "describe_tree", 256, Small;
    /// Reads and checks the arrays of a verification.
    VerifyPlan: "verify", "verify_plan", 256, Small;
    /// What is done to rows of logits before they are decided by.
    ProcessRows: "processing", "process_rows", 256, Small;
    /// Decides sequences that are all greedy.
    VerifyArgmax: "verify", "verify_argmax", 256, Small;
    /// Decides sequences of all kinds.
    VerifyRows: "verify", "verify_rows", 512, Large;
    /// Decides sequences by rules that test more than one draft at a row.
    VerifyPath: "verify_path", "verify_path", 512, Large;
    /// How probable emitted tokens were.
    TellLogprobs: "logprobs", "tell_logprobs", 512, Small;
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
    /// The size of the kernel's struct, where the driver tells.
    argument_bytes: Option<usize>,
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
        let mut names: Vec<&str> = KERNELS.iter().map(|entry| entry.module).collect();
        names.sort_unstable();
        names.dedup();
        let modules = images.load(device, &names)?;
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
    pub fn dynamic_shared(&self, kernel: Kernel) -> u32 {
        self.loaded[kernel as usize].shared
    }

    /// The most blocks of the kernel that run at the same time: the bound of cooperative grids.
    /// Not for steps.
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
        let Loaded { function, argument_bytes, .. } = self.loaded[kernel as usize];
        if argument_bytes.is_some_and(|bytes| bytes != size_of::<A>()) {
            return Err(Error::internal(format!(
                "{}: expected arguments of {argument_bytes:?} bytes, found {}",
                KERNELS[kernel as usize].function,
                size_of::<A>()
            )));
        }
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
    Ok(Loaded { function, shared, argument_bytes: driver::argument_bytes(function) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::device::tests::device;
    use crate::backend::cuda::{KernelCache, Options};

    fn kernels() -> Option<Kernels> {
        let device = device()?;
        let options = Options { cache: KernelCache::None, ..Options::default() };
        Some(Kernels::load(&device, &Images::new(&options).unwrap()).unwrap())
    }

    #[derive(Clone, Copy, NoUninit)]
    #[repr(C)]
    struct Short {
        word: u32,
    }

    // SAFETY: it is no kernel's struct, and never gets to one.
    unsafe impl Arguments for Short {}

    const SHAPE: Launch = Launch { grid: [1, 1, 1], threads: 32, shared: 0, cooperative: false };

    #[test]
    fn a_launch_with_an_empty_grid_is_none() {
        let Some(kernels) = kernels() else { return };
        for dimension in 0..3 {
            let mut shape = SHAPE;
            shape.grid[dimension] = 0;
            // SAFETY: nothing is launched.
            unsafe {
                kernels.launch(Kernel::CopyRows, Stream::NONE, &shape, &Short { word: 0 }).unwrap();
            }
        }
    }

    #[test]
    fn arguments_of_another_size_are_refused_where_the_driver_tells_the_size() {
        let Some(kernels) = kernels() else { return };
        if kernels.loaded[Kernel::CopyRows as usize].argument_bytes.is_none() {
            return;
        }
        // SAFETY: nothing is launched.
        let launched =
            unsafe { kernels.launch(Kernel::CopyRows, Stream::NONE, &SHAPE, &Short { word: 0 }) };
        let text = launched.unwrap_err().to_string();
        assert!(text.contains("copy_rows: expected arguments of"), "{text}");
    }

    #[test]
    fn as_many_blocks_are_resident_as_fit_on_the_device() {
        let Some(kernels) = kernels() else { return };
        let blocks = |shared| kernels.resident_blocks(Kernel::CopyRows, 256, shared).unwrap();
        let multiprocessors = kernels.device.facts().multiprocessors;
        assert!(blocks(0) >= multiprocessors);
        let most = kernels.dynamic_shared(Kernel::CopyRows);
        assert!(most >= 32 << 10 && blocks(most) >= multiprocessors && blocks(most) <= blocks(0));
    }

    #[test]
    fn every_kernel_of_the_table_is_in_its_module() {
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        for entry in KERNELS {
            let path = format!("{sources}/{}.cu", entry.module);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(
                text.contains(&format!(", {}, ", entry.function)),
                "{path}: {}",
                entry.function
            );
        }
    }
}
