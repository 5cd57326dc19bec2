//! The kernels in the form that the driver loads: from a directory of the host, from the build, or
//! compiled here and kept on disk.

use super::cache::Cache;
use super::compilation;
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
pub enum Origin {
    /// The host's directory.
    Directory,
    /// The build.
    Embedded,
    /// An earlier compilation.
    Cache,
    /// A compilation.
    Compiled,
}

/// The places that images come from.
#[derive(Debug)]
pub struct Images {
    directory: Option<PathBuf>,
    cache: Option<Cache>,
}

/// How many of the modules the build has embedded images of, how many there are, and what compiled the images.
pub fn embedded_images() -> (usize, usize, &'static str) {
    let has_image =
        |source: &&Source| embedded::IMAGES.iter().any(|image| image.module == source.name);
    let count = embedded::MODULES.iter().filter(has_image).count();
    (count, embedded::MODULES.len(), embedded::COMPILER)
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

    /// Loads modules into the current context, which is the device's. Blocks; compiles those that have
    /// no image for the device.
    pub fn load(&self, device: &Arc<Device>, names: &[&'static str]) -> Result<Vec<Module>> {
        let (mut modules, mut missing, mut refusal) = (Vec::new(), Vec::new(), None);
        for name in names {
            match self.ready(device, name)? {
                Ready::Loaded(module) => modules.push(module),
                Ready::Missing(failure) => {
                    missing.push(source(name)?);
                    refusal = refusal.or(failure);
                }
            }
        }
        if !missing.is_empty() {
            modules.extend(self.compile(device, &missing).map_err(|error| match refusal {
                None => error,
                Some(refusal) => error.within(format!(
                    "kernels built by {} do not fit the driver ({refusal})",
                    embedded::COMPILER
                )),
            })?);
        }
        Ok(modules)
    }

    /// Loads a module that is compiled already.
    fn ready(&self, device: &Arc<Device>, name: &'static str) -> Result<Ready> {
        if let Some((path, image)) = self.in_directory(name)? {
            let module = Module::load(device, name, Origin::Directory, &image);
            let module = module.map_err(|failure| Error::from(failure).within(path.display()))?;
            return Ok(Ready::Loaded(module));
        }
        let Some(image) = embedded::IMAGES.iter().find(|image| image.module == name) else {
            return Ok(Ready::Missing(None));
        };
        match Module::load(device, name, Origin::Embedded, image.bytes) {
            Ok(module) => Ok(Ready::Loaded(module)),
            Err(failure) if is_unfit(failure) => Ok(Ready::Missing(Some(failure))),
            Err(failure) => Err(failure.into()),
        }
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

    /// Compiles modules, unless the cache has them, and loads them.
    fn compile(&self, device: &Arc<Device>, sources: &[Source]) -> Result<Vec<Module>> {
        let compiler = Compiler::find().map_err(|error| {
            let names: Vec<&str> = sources.iter().map(|source| source.name).collect();
            error.within(format!("kernels ({}) have to be compiled", names.join(" ")))
        })?;
        let target = compiler.target(device.facts().capability)?;
        let (by, headers) = (compiler.name(), embedded::HEADERS);
        compilation::made(
            self.cache.as_ref(),
            sources,
            |source| compilation::key(source, headers, &[target.name(), &by]),
            |source| compiler.compile(source, headers, &target),
            |source, origin, image| {
                Module::load(device, source.name, origin, image).map_err(|failure| {
                    Error::from(failure).within(format!("kernels/{}.cu by {by}", source.name))
                })
            },
        )
    }
}

/// Whether a module could be loaded as it is.
enum Ready {
    Loaded(Module),
    /// It has to be compiled, because there is no image or the driver refused it.
    Missing(Option<Failure>),
}

/// The source of a module.
fn source(name: &str) -> Result<Source> {
    let source = embedded::MODULES.iter().find(|source| source.name == name);
    source.copied().ok_or_else(|| Error::internal(format!("no kernels/{name}.cu")))
}

/// Whether the driver refused an image as one for other drivers or devices.
fn is_unfit(failure: Failure) -> bool {
    matches!(
        failure.code(),
        driver::INVALID_IMAGE
            | driver::NO_BINARY_FOR_DEVICE
            | driver::INVALID_PTX
            | driver::NO_PTX_COMPILER
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

#[cfg(test)]
mod tests {
    use super::super::cache::tests::Scratch;
    use super::super::compiler::Target;
    use super::super::device::tests::device;
    use super::*;
    use crate::error::Status;
    use std::fs;

    fn options(images: Option<&Path>, cache: KernelCache) -> Options {
        Options { images: images.map(Path::to_owned), cache, ..Options::default() }
    }

    #[test]
    fn a_directory_without_images_is_refused() {
        let scratch = Scratch::new("no-images");
        let error = |path: &Path| Images::new(&options(Some(path), KernelCache::None)).unwrap_err();
        let missing = error(&scratch.path().join("missing"));
        assert_eq!(missing.status(), Status::Io);
        fs::write(scratch.path().join("other.fatbin"), b"").unwrap();
        let empty = error(scratch.path());
        assert_eq!(empty.status(), Status::Io);
        let text = empty.to_string();
        assert!(text.contains("expected an image NAME.fatbin, NAME.cubin, NAME.ptx"), "{text}");
        assert!(text.contains("rows"), "{text}");
    }

    #[test]
    fn images_of_the_hosts_directory_go_before_the_librarys_own() {
        let Some(device) = device() else { return };
        let scratch = Scratch::new("directory");
        let path = scratch.path().join("rows.cubin");
        let Ok(compiler) = Compiler::find() else { return };
        let target = compiler.target(device.facts().capability).unwrap();
        let image = compiler.compile(&source("rows").unwrap(), embedded::HEADERS, &target).unwrap();
        fs::write(&path, &image).unwrap();
        let images = Images::new(&options(Some(scratch.path()), KernelCache::None)).unwrap();
        let _entered = device.enter().unwrap();
        let modules = images.load(&device, &["rows"]).unwrap();
        assert_eq!(origin(&modules), "from the host's directory: rows");

        fs::write(&path, b"no image").unwrap();
        let error = images.load(&device, &["rows"]).unwrap_err();
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn sources_are_compiled_where_nothing_else_is_there_and_found_in_the_cache_then() {
        let Some(device) = device() else { return };
        if Compiler::find().is_err() {
            return;
        }
        let scratch = Scratch::new("sources");
        let cache = KernelCache::At(scratch.path().to_owned());
        let images = Images::new(&options(None, cache)).unwrap();
        let _entered = device.enter().unwrap();
        let sources = [source("rows").unwrap()];
        let origin = || origin(&images.compile(&device, &sources).unwrap());
        assert_eq!(origin(), "compiled: rows");
        assert_eq!(origin(), "from the cache: rows");
    }

    /// `make kernels` runs this with the compiler that it installs; no device is needed.
    #[test]
    fn nvrtc_compiles_every_kernel_without_a_path_to_include_from() {
        if std::env::var_os("SPEC_TEST_NVRTC").is_none() {
            return;
        }
        let compiler = Compiler::find().unwrap();
        let target = compiler.target((9, 0)).unwrap();
        let compile = |source: &Source| compiler.compile(source, embedded::HEADERS, &target);
        for image in compilation::in_parallel(embedded::MODULES, compile) {
            assert!(image.unwrap().starts_with(b"\x7fELF"));
        }
        let older = Target::Virtual("compute_80".to_owned());
        let rows = source("rows").unwrap();
        let image = compiler.compile(&rows, embedded::HEADERS, &older).unwrap();
        let text = String::from_utf8(image).unwrap();
        assert!(text.contains(".target sm_80") && text.ends_with('\0'), "{text}");
    }

    #[test]
    fn nvrtc_says_where_a_source_is_wrong() {
        if std::env::var_os("SPEC_TEST_NVRTC").is_none() {
            return;
        }
        let compiler = Compiler::find().unwrap();
        let wrong = Source { name: "wrong", text: "#include \"device.cuh\"\nnonsense" };
        let target = compiler.target((8, 0)).unwrap();
        let error = compiler.compile(&wrong, embedded::HEADERS, &target).unwrap_err();
        assert!(error.to_string().contains("kernels/wrong.cu: wrong.cu(2): error"), "{error}");
    }
}
