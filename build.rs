//! Gives the shared library the name under which programs find it at run time (the number in it is
//! the major number of the ABI), and embeds the CUDA kernels: compiled, if there is an nvcc, and in
//! any case their sources, which the library compiles where the compiled ones do not fit.
//!
//! Variables of the environment:
//! - `SPEC_NVCC`: the nvcc to use, or `none` to embed sources only. Otherwise it is the first one that
//!   will do of `NVCC`, the one that `make kernels` puts into the target directory, and those in
//!   `CUDA_HOME/bin` and `PATH`.
//! - `SPEC_CUDA_ARCHS`: what to compile for instead of [`ARCHITECTURES`]; fewer are faster.
//!
//! What was compiled is kept in `cuda/images` of the target directory, for all profiles: beside each
//! image what it was made from (`.inputs`) and what the compiler said (`.log`).

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The devices that kernels are compiled for, and the form that drivers translate for others.
const ARCHITECTURES: &str = "sm_80 sm_89 sm_90a sm_100a sm_120 compute_80";

/// The oldest nvcc whose images and language suffice.
const OLDEST_NVCC: (u32, u32) = (12, 0);

fn main() {
    // With it and the version among its features, cudarc would be built for two versions at once.
    assert!(env::var_os("CUDARC_CUDA_VERSION").is_none(), "CUDARC_CUDA_VERSION must not be set");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/capi/version.rs");
    name_library();
    embed_kernels();
}

fn name_library() {
    let major = abi_version() / 1000;
    let name = match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux" | "android" | "freebsd" | "netbsd" | "openbsd") => {
            format!("-Wl,-soname,libspeculators.so.{major}")
        }
        Ok("macos") => format!("-Wl,-install_name,@rpath/libspeculators.{major}.dylib"),
        _ => return,
    };
    println!("cargo:rustc-cdylib-link-arg={name}");
}

/// `SPEC_ABI_VERSION`, which is stated in one place only.
fn abi_version() -> u32 {
    let source = include_str!("src/capi/version.rs");
    let (_, value) = source.split_once("SPEC_ABI_VERSION: i32 = ").expect("the constant is there");
    let (value, _) = value.split_once(';').expect("the constant ends");
    value.parse().expect("the constant is a number")
}

/// Writes `kernels.rs`, which includes the sources and what was compiled from them.
fn embed_kernels() {
    println!("cargo:rerun-if-changed=kernels");
    for variable in ["SPEC_NVCC", "SPEC_CUDA_ARCHS", "NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names a directory"));
    let directory = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the package"))
        .join("kernels");
    let (modules, headers) = (files(&directory, "cu"), files(&directory, "cuh"));
    let local = local_directory(&output);
    let nvcc = Nvcc::find(&local);
    if let Some(nvcc) = &nvcc {
        nvcc.compile(&modules, &headers, &local.join("images"), &output);
    }

    let mut text = String::new();
    list(&mut text, "MODULES", "Source", &modules, |module| {
        format!("Source {{ name: {:?}, text: include_str!({module:?}) }}", stem(module))
    });
    list(&mut text, "HEADERS", "Source", &headers, |header| {
        let name = header.file_name().expect("a file");
        format!("Source {{ name: {name:?}, text: include_str!({header:?}) }}")
    });
    let compiled = if nvcc.is_some() { &modules[..] } else { &[] };
    list(&mut text, "IMAGES", "Image", compiled, |module| {
        let (name, image) = (stem(module), file_of(&output, module, "fatbin"));
        format!("Image {{ module: {name:?}, bytes: &Aligned(*include_bytes!({image:?})).0 }}")
    });
    let compiler = nvcc.map_or_else(String::new, |nvcc| nvcc.name());
    writeln!(text, "pub(super) const COMPILER: &str = {compiler:?};").expect("a string");
    fs::write(output.join("kernels.rs"), text).expect("OUT_DIR is writable");
}

/// `cuda` of the target directory, where `make kernels` installs an nvcc. The output lies in
/// `PROFILE/build/PACKAGE/out` of the target directory, or of one that is named after a target below
/// it. Cargo's own marks do not tell it, as they are absent where somebody else made the directory.
fn local_directory(output: &Path) -> PathBuf {
    let mut above = output.ancestors().skip(4).take(2).map(|directory| directory.join("cuda"));
    let nearest = above.next().unwrap_or_else(|| output.join("cuda"));
    let has_compiler = |directory: &PathBuf| nvcc_in(&directory.join("bin")).is_file();
    if has_compiler(&nearest) { nearest } else { above.find(has_compiler).unwrap_or(nearest) }
}

/// Writes a constant that is a list of what `item` makes of each file.
fn list(
    text: &mut String,
    name: &str,
    of: &str,
    files: &[PathBuf],
    item: impl Fn(&Path) -> String,
) {
    writeln!(text, "pub(super) const {name}: &[{of}] = &[").expect("a string");
    for file in files {
        writeln!(text, "    {},", item(file)).expect("a string");
    }
    writeln!(text, "];").expect("a string");
}

/// The files of a directory with this extension, by name.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the package has its kernels");
    let paths = entries.map(|entry| entry.expect("a readable directory").path());
    let wanted = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    let mut files: Vec<PathBuf> = paths.filter(wanted).collect();
    files.sort();
    files
}

fn stem(file: &Path) -> &str {
    file.file_stem().and_then(|stem| stem.to_str()).expect("a plain file name")
}

/// The file of a module in a directory.
fn file_of(directory: &Path, module: &Path, extension: &str) -> PathBuf {
    directory.join(stem(module)).with_extension(extension)
}

/// An nvcc that is new enough.
struct Nvcc {
    path: PathBuf,
    version: (u32, u32),
    flags: Vec<String>,
}

impl Nvcc {
    fn find(local: &Path) -> Option<Self> {
        match env::var("SPEC_NVCC").ok().filter(|value| !value.is_empty()).as_deref() {
            Some("none") => None,
            Some(path) => Some(
                Self::at(Path::new(path))
                    .unwrap_or_else(|problem| panic!("SPEC_NVCC={path}: {problem}")),
            ),
            None => candidates(local).into_iter().find_map(|path| match Self::at(&path) {
                Ok(nvcc) => Some(nvcc),
                Err(problem) => {
                    println!("cargo:warning={}: {problem}", path.display());
                    None
                }
            }),
        }
    }

    /// The nvcc at a path, or why it will not do.
    fn at(path: &Path) -> Result<Self, String> {
        let version = version(&run(path, &["--version"])?)?;
        if version < OLDEST_NVCC {
            return Err(format!("expected nvcc {OLDEST_NVCC:?} or newer, found {version:?}"));
        }
        println!("cargo:rerun-if-changed={}", path.display());
        let mut flags: Vec<String> =
            ["-std=c++17", "-fatbin", "-Xptxas=-v"].map(str::to_owned).into();
        if run(path, &["--help"])?.contains("--compress-mode") {
            flags.push("--compress-mode=size".to_owned());
        }
        let architectures = architectures(&run(path, &["--list-gpu-arch"])?);
        if architectures.is_empty() {
            return Err("knows none of the devices to compile for".to_owned());
        }
        flags.extend(architectures);
        Ok(Self { path: path.to_owned(), version, flags })
    }

    fn name(&self) -> String {
        format!("nvcc {}.{}", self.version.0, self.version.1)
    }

    /// Compiles each module into an image in `output`, unless there is one from the same inputs in
    /// `kept`, where all images stay.
    fn compile(&self, modules: &[PathBuf], headers: &[PathBuf], kept: &Path, output: &Path) {
        fs::create_dir_all(kept).expect("the target directory is writable");
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..modules.len().min(jobs) {
                scope.spawn(|| {
                    while let Some(module) = modules.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.compile_module(module, headers, kept);
                        let image = file_of(kept, module, "fatbin");
                        fs::copy(image, file_of(output, module, "fatbin"))
                            .expect("OUT_DIR is writable");
                    }
                });
            }
        });
    }

    fn compile_module(&self, module: &Path, headers: &[PathBuf], kept: &Path) {
        let mut inputs = format!("{} {}\n", self.name(), self.flags.join(" "));
        for file in headers.iter().map(PathBuf::as_path).chain([module]) {
            let text = fs::read_to_string(file).expect("the package has its kernels");
            write!(inputs, "// {:?}\n{text}", file.file_name()).expect("a string");
        }
        let record = file_of(kept, module, "inputs");
        if fs::read_to_string(&record).is_ok_and(|found| found == inputs) {
            return;
        }
        // Builds of other profiles may be at the same image: it appears whole or not at all, and its
        // record after it.
        let _ = fs::remove_file(&record);
        let image = file_of(kept, module, &format!("{}.fatbin", std::process::id()));
        let (from, to) = (module.to_str(), image.to_str());
        let (from, to) = (from.expect("a plain path"), to.expect("a plain path"));
        let flags = self.flags.iter().map(String::as_str);
        let arguments: Vec<&str> = flags.chain(["-o", to, from]).collect();
        let log = run(&self.path, &arguments)
            .unwrap_or_else(|problem| panic!("{problem}\nSPEC_NVCC=none builds without nvcc"));
        let finish = || {
            fs::write(file_of(kept, module, "log"), log)?;
            fs::rename(&image, file_of(kept, module, "fatbin"))?;
            fs::write(record, inputs)
        };
        finish().expect("the target directory is writable");
    }
}

fn nvcc_in(directory: &Path) -> PathBuf {
    directory.join("nvcc").with_extension(env::consts::EXE_EXTENSION)
}

/// Where an nvcc may be, the preferred one first.
fn candidates(local: &Path) -> Vec<PathBuf> {
    let named = env::var_os("NVCC").filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = [local.join("bin")].into_iter().chain(home).chain(env::split_paths(&path));
    let found = directories.map(|directory| nvcc_in(&directory)).filter(|path| path.is_file());
    named.into_iter().chain(found).collect()
}

/// The flags for the wanted devices, without those that the compiler does not know.
fn architectures(known: &str) -> Vec<String> {
    let wanted = env::var("SPEC_CUDA_ARCHS").ok().filter(|wanted| !wanted.trim().is_empty());
    let wanted = wanted.unwrap_or_else(|| ARCHITECTURES.to_owned());
    let mut flags = Vec::new();
    for code in wanted.split([' ', ',']).filter(|code| !code.is_empty()) {
        let virtual_code = code.replace("sm_", "compute_");
        // The compiler lists devices without the letter of the instructions that only they have.
        let listed = virtual_code.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
        if known.split_whitespace().any(|known| known == listed) {
            flags.push(format!("-gencode=arch={virtual_code},code={code}"));
        } else {
            println!("cargo:warning=kernels are not compiled for {code}, which nvcc does not know");
        }
    }
    flags
}

/// The release in what `nvcc --version` says.
fn version(text: &str) -> Result<(u32, u32), String> {
    let release = text.split_once("release ").and_then(|(_, rest)| rest.split_once(','));
    let parts = release.and_then(|(release, _)| release.split_once('.'));
    let version = parts.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    version.ok_or_else(|| format!("expected a release of nvcc, found {text:?}"))
}

/// What a command prints, or what went wrong.
fn run(command: &Path, arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new(command).args(arguments).output().map_err(|error| error.to_string())?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{} {}: {}\n{text}", command.display(), arguments.join(" "), output.status))
}
