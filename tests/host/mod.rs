//! A host engine in miniature: safe Rust over the C functions. Every buffer that a call sees is
//! owned here, as an inference engine would own it. It runs on the device that `crate::device`
//! names; calls that enqueue work wait for it, unless their names say otherwise.
#![allow(dead_code)] // Each test program uses its own part of the host.

pub mod checkpoint;
pub mod draft;
pub mod files;
pub mod golden;
pub mod matrix;
pub mod random;
pub mod target;
pub mod verify;

use crate::device::stream::Stream;
use crate::device::{self, Device};
use speculators::capi::*;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::{Arc, OnceLock};

/// A struct of the API that begins with its size.
pub trait Versioned: Copy {
    /// The size that the first version had.
    const FIRST_SIZE: usize;
    /// All zero but the size.
    fn blank() -> Self;
}

macro_rules! first_size {
    ($name:ident) => {
        size_of::<$name>()
    };
    ($name:ident $first_new_field:ident) => {
        std::mem::offset_of!($name, $first_new_field)
    };
}

macro_rules! versioned {
    ($($name:ident $(grew by $grown:ident)?),* $(,)?) => {$(
        impl Versioned for $name {
            const FIRST_SIZE: usize = first_size!($name $($grown)?);
            fn blank() -> Self {
                // SAFETY: numbers, raw pointers and nullable function pointers only, so that all
                // zero is a value.
                let mut value: Self = unsafe { std::mem::zeroed() };
                value.struct_size = size_of::<Self>() as u32;
                value
            }
        }
    )*};
}

versioned!(
    spec_allocator,
    spec_context_options grew by cuda_context,
    spec_context_info,
    spec_model_options,
    spec_convert_options,
    spec_model_info grew by draft_columns,
    spec_session_options grew by max_tree_width,
    spec_session_requirements,
    spec_sampling,
    spec_distribution,
    spec_tree,
    spec_tree_shape,
    spec_draft_args grew by draft_candidates,
    spec_verify_args grew by leniency,
    spec_leniency,
    spec_logprobs,
    spec_processing,
    spec_tree_mask_args,
    spec_kv_compact_args,
);

/// What a failed call said.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub status: spec_status,
    pub message: String,
}

pub type Outcome<T> = Result<T, Failure>;

/// An error struct with marks in it, to see that the call fills it.
pub fn marked_error() -> spec_error {
    spec_error {
        struct_size: size_of::<spec_error>() as u32,
        status: -1,
        message: [b'#'.cast_signed(); 1016],
    }
}

/// Makes one call; its status and its error struct must agree.
pub fn attempt(call: impl FnOnce(*mut spec_error) -> spec_status) -> Outcome<()> {
    let mut error = marked_error();
    let status = call(&mut error);
    assert_eq!(error.status, status, "the struct and the status differ");
    let bytes = error.message.map(i8::cast_unsigned);
    let message = CStr::from_bytes_until_nul(&bytes).expect("a message that ends with NUL");
    let message = message.to_str().expect("UTF-8").to_owned();
    assert_eq!(message.is_empty(), status == SPEC_OK, "status {status}, message {message:?}");
    if status == SPEC_OK { Ok(()) } else { Err(Failure { status, message }) }
}

/// Refused with this status, by a message that begins with the function's name.
pub fn assert_refused(outcome: Outcome<()>, function: &str, status: spec_status, what: &str) {
    let failure = outcome.expect_err(what);
    assert_eq!(failure.status, status, "{what}: {}", failure.message);
    let prefix = format!("{function}: ");
    assert!(failure.message.starts_with(&prefix), "{what}: {}", failure.message);
    assert!(failure.message.len() > prefix.len() + 8, "{what}: {}", failure.message);
}

/// A path for the API.
pub fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().expect("a UTF-8 path")).expect("a path without NUL")
}

/// A context, released when dropped.
#[derive(Debug)]
pub struct Context {
    pub handle: *mut spec_context,
    pub device: Device,
    /// What the calls of this context and its sessions enqueue on.
    pub stream: Arc<Stream>,
}

// SAFETY: a context may be used from any thread, by its contract.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The options of a context on a device; all else is blank.
    pub fn options(device: Device) -> spec_context_options {
        let mut options =
            spec_context_options { device_type: device.context_type(), ..Versioned::blank() };
        if device == Device::Cuda {
            let [directory, cache] = kernel_paths();
            options.kernel_directory = directory.as_ref().map_or(null(), |path| path.as_ptr());
            options.kernel_cache = cache.as_ref().map_or(null(), |path| path.as_ptr());
        }
        options
    }

    /// A context on the device of this process, with the library's own threads on the CPU.
    pub fn with_threads(threads: i32) -> Self {
        let options = spec_context_options { threads, ..Self::options(Device::chosen()) };
        Self::create(&options).expect("a context")
    }

    /// A context on a device, which may be another than that of this process.
    pub fn on(device: Device) -> Self {
        let options = spec_context_options { threads: 1, ..Self::options(device) };
        Self::create(&options).expect("a context")
    }

    pub fn create(options: &spec_context_options) -> Outcome<Self> {
        let mut handle = null_mut();
        // SAFETY: the options and what they point to live during the call.
        attempt(|error| unsafe { spec_context_create(options, &mut handle, error) })
            .inspect_err(|_| assert!(handle.is_null(), "a failed call left a handle"))?;
        let device = Device::of(options);
        let stream = Arc::new(Stream::in_context(device, options.cuda_context));
        Ok(Self { handle, device, stream })
    }

    /// Makes a verification and waits for its work.
    pub fn verify(&self, args: &spec_verify_args) -> Outcome<()> {
        let stream = self.stream.handle();
        // SAFETY: a live handle and stream; the caller's arrays are as the struct says.
        attempt(|error| unsafe { spec_verify(self.handle, args, stream, error) })?;
        self.stream.synchronize();
        Ok(())
    }

    pub fn info(&self) -> spec_context_info {
        let mut info = spec_context_info::blank();
        // SAFETY: a live handle and a struct of its stated size.
        attempt(|error| unsafe { spec_context_get_info(self.handle, &mut info, error) })
            .expect("the context's info");
        info
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the handle is given up here and nowhere else.
        unsafe { spec_context_release(self.handle) };
    }
}

/// Where kernels are found and where compiled ones are kept, for all contexts of this process.
fn kernel_paths() -> &'static [Option<CString>; 2] {
    static PATHS: OnceLock<[Option<CString>; 2]> = OnceLock::new();
    PATHS.get_or_init(|| {
        let cache = files::scratch().join("kernels");
        [device::kernel_directory(), Some(cache)].map(|path| path.as_deref().map(c_path))
    })
}

/// A model, released when dropped.
#[derive(Debug)]
pub struct Model {
    pub handle: *mut spec_model,
    device: Device,
    stream: Arc<Stream>,
}

// SAFETY: a model never changes and may be used from any thread, by its contract.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// A checkpoint with its verifier's directory where it needs one.
    pub fn load(context: &Context, directory: &Path, verifier: Option<&Path>) -> Outcome<Self> {
        let verifier = verifier.map(c_path);
        let options = spec_model_options {
            verifier_directory: verifier.as_ref().map_or(null(), |path| path.as_ptr()),
            ..Versioned::blank()
        };
        Self::load_with(context, directory, &options)
    }

    pub fn load_with(
        context: &Context,
        directory: &Path,
        options: &spec_model_options,
    ) -> Outcome<Self> {
        let directory = c_path(directory);
        let mut handle = null_mut();
        // SAFETY: a live handle; strings, options and what they point to live during the call.
        attempt(|error| unsafe {
            spec_model_load(context.handle, directory.as_ptr(), options, &mut handle, error)
        })
        .inspect_err(|_| assert!(handle.is_null(), "a failed call left a handle"))?;
        Ok(Self { handle, device: context.device, stream: context.stream.clone() })
    }

    pub fn info(&self) -> spec_model_info {
        let mut info = spec_model_info::blank();
        // SAFETY: a live handle and a struct of its stated size.
        attempt(|error| unsafe { spec_model_get_info(self.handle, &mut info, error) })
            .expect("the model's info");
        info
    }

    /// The hidden states that the model reads.
    pub fn features(&self) -> Vec<spec_feature_layer> {
        let info = self.info();
        // SAFETY: the info names that many records, which live as long as the model.
        unsafe { std::slice::from_raw_parts(info.features, info.num_features as usize) }.to_vec()
    }

    /// The widths of the hidden states.
    pub fn widths(&self) -> Vec<usize> {
        self.features().iter().map(|feature| feature.width as usize).collect()
    }

    /// The target's id of each column of draft logits; empty is the identity.
    pub fn draft_token_ids(&self) -> Vec<i32> {
        let info = self.info();
        if info.draft_token_ids.is_null() {
            return Vec::new();
        }
        let len = info.draft_vocabulary as usize;
        // SAFETY: the info names that many ids, which live as long as the model.
        unsafe { std::slice::from_raw_parts(info.draft_token_ids, len) }.to_vec()
    }

    pub fn report(&self) -> serde_json::Value {
        // SAFETY: a live handle; the closure hands on what `read_text` gives.
        read_text(|json, capacity, length, error| unsafe {
            spec_model_get_report(self.handle, json, capacity, length, error)
        })
        .expect("a load report")
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the handle is given up here and nowhere else.
        unsafe { spec_model_release(self.handle) };
    }
}

/// What the library says of a checkpoint that it has not loaded.
pub fn inspect(directory: &Path) -> Outcome<serde_json::Value> {
    let directory = c_path(directory);
    // SAFETY: the path lives during the call; the closure hands on what `read_text` gives.
    read_text(|json, capacity, length, error| unsafe {
        spec_checkpoint_inspect(directory.as_ptr(), json, capacity, length, error)
    })
}

/// Asks for the length of a text, then for the text.
fn read_text(
    mut call: impl FnMut(*mut std::ffi::c_char, u64, *mut u64, *mut spec_error) -> spec_status,
) -> Outcome<serde_json::Value> {
    let mut length = 0;
    attempt(|error| call(null_mut(), 0, &mut length, error))?;
    let mut text = vec![0_u8; length as usize + 1];
    attempt(|error| call(text.as_mut_ptr().cast(), length + 1, &mut length, error))?;
    assert_eq!(text.pop(), Some(0), "a text that ends with NUL");
    Ok(serde_json::from_slice(&text).expect("JSON"))
}

/// Session options that are blank but for the type of keys and values: F32 on every device, so that
/// results can be compared.
pub fn session_options() -> spec_session_options {
    let (kv_dtype_code, kv_dtype_bits) = (SPEC_DTYPE_FLOAT, 32);
    spec_session_options { kv_dtype_code, kv_dtype_bits, ..Versioned::blank() }
}

/// A session, released when dropped.
#[derive(Debug)]
pub struct Session {
    pub handle: *mut spec_session,
    pub draft_vocabulary: usize,
    pub outputs: draft::Outputs,
    pub device: Device,
    pub stream: Arc<Stream>,
}

// SAFETY: a session may move between threads; two calls at a time are refused by the library.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

impl Session {
    pub fn create(model: &Model, options: &spec_session_options) -> Outcome<Self> {
        let mut handle = null_mut();
        // SAFETY: a live handle; the options live during the call, their memory as the host says.
        attempt(|error| unsafe { spec_session_create(model.handle, options, &mut handle, error) })
            .inspect_err(|_| assert!(handle.is_null(), "a failed call left a handle"))?;
        let info = model.info();
        let outputs = draft::Outputs {
            columns: info.draft_columns as usize,
            has_row_candidates: info.has_row_candidates != 0,
            has_confidence: info.has_confidence != 0,
        };
        Ok(Self {
            handle,
            draft_vocabulary: info.draft_vocabulary as usize,
            outputs,
            device: model.device,
            stream: model.stream.clone(),
        })
    }

    pub fn requirements(
        model: &Model,
        options: &spec_session_options,
    ) -> Outcome<spec_session_requirements> {
        let mut needs = spec_session_requirements::blank();
        // SAFETY: a live handle and structs of their stated sizes.
        attempt(|error| unsafe {
            spec_session_get_requirements(model.handle, options, &mut needs, error)
        })?;
        Ok(needs)
    }

    /// The same session, whose calls are enqueued on a stream that it shares with nobody.
    pub fn with_own_stream(mut self) -> Self {
        self.stream = Arc::new(Stream::on(self.device));
        self
    }

    /// Makes a call and waits for its work.
    pub fn draft(&self, args: &spec_draft_args) -> Outcome<()> {
        self.enqueue(args)?;
        self.stream.synchronize();
        Ok(())
    }

    /// Makes a call whose work may go on.
    pub fn enqueue(&self, args: &spec_draft_args) -> Outcome<()> {
        // SAFETY: a live handle and stream; the caller's arrays are as the struct says.
        attempt(|error| unsafe { spec_draft(self.handle, args, self.stream.handle(), error) })
    }

    pub fn poll(&self) -> Outcome<()> {
        // SAFETY: a live handle.
        attempt(|error| unsafe { spec_session_poll(self.handle, error) })
    }

    pub fn warm_up(&self) -> Outcome<()> {
        // SAFETY: a live handle and stream.
        attempt(|error| unsafe { spec_session_warm_up(self.handle, self.stream.handle(), error) })?;
        self.stream.synchronize();
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stream.settle();
        // SAFETY: the handle is given up here and nowhere else.
        unsafe { spec_session_release(self.handle) };
    }
}
