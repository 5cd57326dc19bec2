//! Models.

use super::boundary::{self, Handle, borrow, call, hand_out, write_text};
use super::context::spec_context;
use super::tensors::{self, Home};
use super::types::{
    SPEC_MODEL_MAP_FILES, SPEC_STAGE_FINAL_NORM, SPEC_STAGE_LAYER_INPUT, spec_error,
    spec_feature_layer, spec_model_info, spec_model_options, spec_status,
};
use crate::error::{Error, Result};
use crate::model::{FeatureStage, Lent, LoadOptions, Model};
use crate::session::DRAFTS_MAX;
use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::sync::Arc;

/// A loaded speculator: its weights and what it needs. Never changes, so any number of sessions
/// share it.
#[repr(C)]
pub struct spec_model {
    magic: u64,
    pub(super) model: Arc<Model>,
    kind: CString,
    features: Vec<spec_feature_layer>,
}

impl Handle for spec_model {
    const NAME: &'static str = "spec_model";
    const MAGIC: u64 = u64::from_le_bytes(*b"spec_mdl");
    fn magic(&mut self) -> &mut u64 {
        &mut self.magic
    }
}

/// Tells the host, when dropped, that its tensors are not used any more.
struct LentRelease {
    release: unsafe extern "C" fn(*mut c_void),
    user: *mut c_void,
}

// SAFETY: the documented contract of lent_release allows the call from any thread.
unsafe impl Send for LentRelease {}
// SAFETY: as above; the record is only dropped, never used through a shared reference.
unsafe impl Sync for LentRelease {}

impl Drop for LentRelease {
    fn drop(&mut self) {
        // SAFETY: called once, as documented.
        unsafe { (self.release)(self.user) };
    }
}

/// Loads a speculator.
///
/// `directory` is a UTF-8 path, ending with NUL, of a checkpoint in the speculators format, or of a
/// language model as transformers saves it, which is an `independent` drafter. Or of a checkpoint in
/// the layout of those who publish it: EAGLE-3, EAGLE and HASS of their authors, EAGLE-3 and P-EAGLE
/// of SpecForge, DFlash and DFlash2 of z-lab (also under the names of transformers' assistants),
/// DSpark of DeepSpec, XPress as it is released, or a model that carries an MTP layer, which is then
/// its own verifier. Those are read as `spec_checkpoint_convert` would write them; `translation` in
/// the report says what that came to: `layout`, `renamed`, `dropped`, and `notes`, such as on layers
/// that are counted otherwise.
/// `options` NULL means all defaults. `model` is not NULL; `*model`, owned by the host until
/// `spec_model_release`, is NULL if the call fails. Errors: IO, FORMAT (damaged, or a tensor or
/// setting is missing or wrong), UNSUPPORTED (a kind, or a variant of one, that this version cannot
/// run), OUT_OF_MEMORY, INVALID_ARGUMENT (the options; lent tensors of another shape; or neither
/// the checkpoint nor the host has the embedding, the head or the layers of the features).
///
/// Contract: any thread; blocks (reads files); allocates, the weights from the context's allocator;
/// no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_model_load(
    context: *const spec_context,
    directory: *const c_char,
    options: *const spec_model_options,
    model: *mut *mut spec_model,
    error: *mut spec_error,
) -> spec_status {
    call("spec_model_load", error, || {
        // SAFETY: the documented contract of the arguments.
        unsafe {
            hand_out(model, || {
                let context = borrow(context)?;
                let directory = boundary::path(directory, "directory")?;
                let options = boundary::read_optional(options)?;
                load(context, directory, options.as_ref())
            })
        }
    })
}

/// # Safety
///
/// The pointers in `options` are as documented.
unsafe fn load(
    context: &spec_context,
    directory: &Path,
    options: Option<&spec_model_options>,
) -> Result<spec_model> {
    let load_options = match options {
        None => LoadOptions::default(),
        // SAFETY: as this function's contract.
        Some(options) => unsafe { load_options(options, Home::of(&context.context))? },
    };
    let mut model = Model::load(&context.context, directory, load_options)?;
    let release =
        options.and_then(|options| options.lent_release.map(|release| (release, options)));
    if let Some((release, options)) = release {
        model.keep(Box::new(LentRelease { release, user: options.lent_user }));
    }
    let features = model.features().iter().map(|feature| spec_feature_layer {
        layer: feature.layer,
        stage: match feature.stage {
            FeatureStage::LayerInput => SPEC_STAGE_LAYER_INPUT,
            FeatureStage::FinalNorm => SPEC_STAGE_FINAL_NORM,
        },
        width: feature.width as i32,
        reserved: 0,
    });
    Ok(spec_model {
        magic: spec_model::MAGIC,
        features: features.collect(),
        kind: CString::new(model.kind()).unwrap_or_default(),
        model: Arc::new(model),
    })
}

/// # Safety
///
/// As for [`load`].
unsafe fn load_options(options: &spec_model_options, home: Home) -> Result<LoadOptions> {
    if options.flags & !SPEC_MODEL_MAP_FILES != 0 {
        return Err(Error::unsupported(format!("flags: found {:#x}", options.flags)));
    }
    // SAFETY: as this function's contract, here and below.
    let overrides = unsafe { boundary::string(options.config_overrides, "config_overrides")? };
    let overrides = overrides.map(serde_json::from_str).transpose().map_err(|failure| {
        Error::invalid(format!("config_overrides: expected a JSON object: {failure}"))
    })?;
    // SAFETY: as above.
    let (verifier_directory, embedding, head) = unsafe {
        (
            boundary::optional_path(options.verifier_directory, "verifier_directory")?,
            tensors::row_ranges("embedding", home, options.embedding, options.num_embedding)?,
            tensors::row_ranges("head", home, options.head, options.num_head)?,
        )
    };
    Ok(LoadOptions {
        map_files: options.flags & SPEC_MODEL_MAP_FILES != 0,
        verifier_directory,
        config_overrides: overrides,
        lent: Lent { embedding, head },
    })
}

/// Gives a model up. Its sessions keep it until they are released. NULL is ignored.
///
/// Contract: any thread, not while another call uses the handle; may release memory, call
/// `lent_release` and, with the last handle of its context, wait for threads to end; allocates
/// nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_model_release(model: *mut spec_model) {
    // SAFETY: the documented contract of the argument.
    unsafe { boundary::release(model) };
}

/// Says what a model is and needs.
///
/// `info.struct_size` is set by the host; as much as that is written. The pointers live as long as
/// the handle. Errors: INVALID_ARGUMENT.
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_model_get_info(
    model: *const spec_model,
    info: *mut spec_model_info,
    error: *mut spec_error,
) -> spec_status {
    call("spec_model_get_info", error, || {
        // SAFETY: the documented contract of the arguments.
        let handle = unsafe { borrow(model)? };
        let model = &handle.model;
        let value = spec_model_info {
            struct_size: 0,
            num_features: handle.features.len() as i32,
            features: handle.features.as_ptr(),
            kind: handle.kind.as_ptr(),
            vocabulary: model.vocabulary() as i32,
            draft_vocabulary: model.draft_vocabulary() as i32,
            draft_token_ids: model.draft_token_ids().map_or(std::ptr::null(), <[i32]>::as_ptr),
            hidden_size: model.hidden_size() as i32,
            num_layers: model.num_layers() as i32,
            prefix_margin: model.prefix_margin() as i32,
            default_num_drafts: model.default_num_drafts() as i32,
            max_position: model.max_position() as i64,
            weight_bytes: model.weight_bytes() as u64,
            draft_columns: model.draft_columns() as i32,
            has_row_candidates: i32::from(model.candidates().is_some()),
            has_confidence: i32::from(model.has_confidence()),
            most_drafts: model.most_drafts().min(DRAFTS_MAX) as i32,
            block_size: model.block_size().unwrap_or(0) as i32,
            mask_token: model.mask_token().unwrap_or(-1),
        };
        // SAFETY: as above.
        unsafe { boundary::write(info, &value) }
    })
}

/// Hands out the load report as JSON.
///
/// The members are `kind`, `directory`, `files`, `tensors` (`used`, `unused` with a reason,
/// `absent` with what is used instead), `assumed_defaults`, `corrected` (quirks),
/// `unused_settings` (those that say nothing about how the speculator runs), `unknown_settings`,
/// `overrides`, `verifier` (its directory and the tensors read from it) and `warnings`; later
/// versions may add some. `json`, `capacity`, `length` and errors as in
/// `spec_checkpoint_inspect`.
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_model_get_report(
    model: *const spec_model,
    json: *mut c_char,
    capacity: u64,
    length: *mut u64,
    error: *mut spec_error,
) -> spec_status {
    call("spec_model_get_report", error, || {
        // SAFETY: the documented contract of the arguments.
        unsafe { write_text(borrow(model)?.model.report(), json, capacity, length) }
    })
}
