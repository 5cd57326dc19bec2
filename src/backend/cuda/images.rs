//! The kernels in the form that the driver loads: from a directory of the host, from the build, or
//! compiled here and kept on disk.

use super::cache::{Cache, Key};
use super::compiler::Compiler;
use super::device::Device;
use super::driver::{self, Failure};
use super::{KernelCache, Options};
use crate::error::{Error, Result};
use cudarc::driver::sys::CUmodule;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the build embedded.
mod embedded {
    use super::*;
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// A file of `kernels/`.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// A header's file name; for a module, that without `.cu`.
    pub name: &'static str,
    /// What is in it.
    pub text: &'static str,
}

/// A module that the build compiled.
#[derive(Clone, Copy, Debug)]
struct Image {
    module: &'static str,
    bytes: &'static [u8],
}

/// Bytes that the driver reads words of.
#[allow(dead_code, reason = "a build without nvcc embeds no images")]
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// The extensions of images in a directory, the first found being taken.
const EXTENSIONS: [&str; 3] = ["fatbin", "cubin", "ptx"];

/// Where a module's image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Directory,
    Embedded,
    Cache,
    Compiled,
}

/// The places that images come from.
#[derive(Debug)]
pub struct Images {
    directory: Option<PathBuf>,
    cache: Option<Cache>,
}

impl Images {
    /// The places that the options name.
    pub fn new(options: &Options) -> Result<Self> {
        if let Some(directory) = &options.images {
            check_directory(directory)?;
        }
        let cache = match &options.cache {
            KernelCache::Default => Cache::of_user(),
            KernelCache::None => None,
            KernelCache::At(directory) => Some(Cache::at(directory.clone())),
        };
        Ok(Self { directory: options.images.clone(), cache })
    }

    /// Loads a module into the current context.
    pub fn load(&self, device: &Arc<Device>, name: &'static str) -> Result<Module> {
        if let Some((path, image)) = self.in_directory(name)? {
            return Module::load(device, name, Origin::Directory, &image)
                .map_err(|failure| Error::from(failure).within(path.display()));
        }
        let Some(image) = embedded::IMAGES.iter().find(|image| image.module == name) else {
            return self.compile(device, name);
        };
        let failure = match Module::load(device, name, Origin::Embedded, image.bytes) {
            Ok(module) => return Ok(module),
            Err(failure) if !is_unfit(failure) => return Err(failure.into()),
            Err(failure) => failure,
        };
        self.compile(device, name).map_err(|error| {
            let built = embedded::COMPILER;
            error.within(format!("kernels built by {built} do not fit the driver ({failure})"))
        })
    }

    /// The image of the directory, with its path.
    fn in_directory(&self, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>> {
        let Some(directory) = &self.directory else { return Ok(None) };
        let Some(path) = paths(directory, name).find(|path| path.exists()) else {
            return Ok(None);
        };
        let mut image = std::fs::read(&path).map_err(|error| Error::io(&path, &error))?;
        // PTX is text, and the driver looks for its end.
        image.push(0);
        Ok(Some((path, image)))
    }

    fn compile(&self, device: &Arc<Device>, name: &'static str) -> Result<Module> {
        let source = embedded::MODULES.iter().find(|source| source.name == name);
        let source = source.ok_or_else(|| Error::internal(format!("no kernels/{name}.cu")))?;
        let compiler = Compiler::find()
            .map_err(|error| error.within(format!("kernels/{name}.cu has to be compiled")))?;
        let target = compiler.target(device.facts().capability)?;
        let (compiler_name, headers) = (compiler.name(), embedded::HEADERS);
        let key = key(source, headers, &[target.name(), &compiler_name]);
        let (image, origin) =
            kept(self.cache.as_ref(), &key, || compiler.compile(source, headers, &target))?;
        Module::load(device, name, origin, &image).map_err(|failure| {
            Error::from(failure).within(format!("kernels/{name}.cu compiled by {compiler_name}"))
        })
    }
}

/// The key of what is compiled from a source and the headers, for a target by a compiler.
fn key(source: &Source, headers: &[Source], by: &[&str]) -> Key {
    let mut parts: Vec<&[u8]> = Compiler::options().collect();
    for file in headers.iter().chain([source]) {
        parts.extend([file.name.as_bytes(), file.text.as_bytes()]);
    }
    parts.extend(by.iter().map(|text| text.as_bytes()));
    Key::of(parts)
}

/// The image under a key, from the cache or made and kept there.
fn kept(
    cache: Option<&Cache>,
    key: &Key,
    make: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<(Vec<u8>, Origin)> {
    if let Some(image) = cache.and_then(|cache| cache.get(key)) {
        return Ok((image, Origin::Cache));
    }
    let image = make()?;
    if let Some(cache) = cache {
        cache.put(key, &image);
    }
    Ok((image, Origin::Compiled))
}

/// Whether the driver refused an image as one for other drivers or devices.
fn is_unfit(failure: Failure) -> bool {
    matches!(
        failure.code(),
        driver::INVALID_IMAGE
            | driver::NO_BINARY_FOR_DEVICE
            | driver::INVALID_PTX
            | driver::UNSUPPORTED_PTX_VERSION
    )
}

/// Where the image of a module may be in a directory.
fn paths(directory: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    EXTENSIONS.iter().map(move |extension| directory.join(format!("{name}.{extension}")))
}

/// Refuses a directory without any image: a host that names one does not want the library's own.
fn check_directory(directory: &Path) -> Result<()> {
    let entries = std::fs::read_dir(directory);
    drop(entries.map_err(|error| Error::io(directory, &error))?);
    let has_image = |source: &Source| paths(directory, source.name).any(|path| path.exists());
    if embedded::MODULES.iter().any(has_image) {
        return Ok(());
    }
    let names: Vec<&str> = embedded::MODULES.iter().map(|source| source.name).collect();
    Err(Error::new(
        crate::error::Status::Io,
        format!(
            "{}: expected an image NAME.{} of one of the kernels {}, found none",
            directory.display(),
            EXTENSIONS.join(", NAME."),
            names.join(", ")
        ),
    ))
}

/// A module that is loaded into a device's context.
#[derive(Debug)]
pub struct Module {
    device: Arc<Device>,
    name: &'static str,
    handle: CUmodule,
    origin: Origin,
}

// SAFETY: the handle is the name of an object of the driver, which any thread may use.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads an image into the current context, which is the device's.
    fn load(
        device: &Arc<Device>,
        name: &'static str,
        origin: Origin,
        image: &[u8],
    ) -> std::result::Result<Self, Failure> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: an image says itself how long it is, or ends with NUL; the driver copies it.
        unsafe { driver::cuModuleLoadData(&raw mut handle, image.as_ptr().cast())? };
        Ok(Self { device: Arc::clone(device), name, handle, origin })
    }

    /// The name of its source without `.cu`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn handle(&self) -> CUmodule {
        self.handle
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: loaded into this context, unloaded once.
            let _ = unsafe { driver::cuModuleUnload(self.handle) };
        }
    }
}

/// Where modules came from, in words: `embedded 7, directory 1 (rows)`.
pub fn origin(modules: &[Module]) -> String {
    let of = |origin: Origin| -> Vec<&str> {
        let modules = modules.iter().filter(|module| module.origin == origin);
        modules.map(|module| module.name).collect()
    };
    let mut text = String::new();
    for (origin, word) in [
        (Origin::Directory, "from the host's directory"),
        (Origin::Embedded, "embedded"),
        (Origin::Cache, "from the cache"),
        (Origin::Compiled, "compiled"),
    ] {
        let names = of(origin);
        if !names.is_empty() {
            let separator = if text.is_empty() { "" } else { "; " };
            let _ = write!(text, "{separator}{word}: {}", names.join(" "));
        }
    }
    text
}
