//! NVRTC, which compiles kernels on machines whose library was built without nvcc, or for a driver
//! or device that the build did not know.

use super::driver::{missing, not_found, version_text};
use super::images::Source;
use crate::error::{Error, Result, Status};
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use std::ffi::{CStr, CString, c_char, c_int};

/// Options of every compilation, beside the one that names the device.
const OPTIONS: [&CStr; 2] = [c"--std=c++17", c"--device-int128"];

macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        const FUNCTIONS: &[&str] = &["nvrtcGetErrorString", $(stringify!($name)),*];

        $(
            /// The compiler's function of this name; only with a [`Compiler`], and as its
            /// documentation asks for.
            #[allow(non_snake_case)]
            unsafe fn $name($($argument: $kind),*) -> Result<()> {
                // SAFETY: this function's own contract.
                check(stringify!($name), unsafe { sys::$name($($argument),*) })
            }
        )*
    };
}

functions! {
    nvrtcVersion(major: *mut c_int, minor: *mut c_int);
    nvrtcGetNumSupportedArchs(count: *mut c_int);
    nvrtcGetSupportedArchs(architectures: *mut c_int);
    nvrtcCreateProgram(
        program: *mut nvrtcProgram, source: *const c_char, name: *const c_char, headers: c_int,
        texts: *const *const c_char, names: *const *const c_char
    );
    nvrtcDestroyProgram(program: *mut nvrtcProgram);
    nvrtcCompileProgram(program: nvrtcProgram, options: c_int, list: *const *const c_char);
    nvrtcGetProgramLogSize(program: nvrtcProgram, bytes: *mut usize);
    nvrtcGetProgramLog(program: nvrtcProgram, log: *mut c_char);
    nvrtcGetCUBINSize(program: nvrtcProgram, bytes: *mut usize);
    nvrtcGetCUBIN(program: nvrtcProgram, image: *mut c_char);
    nvrtcGetPTXSize(program: nvrtcProgram, bytes: *mut usize);
    nvrtcGetPTX(program: nvrtcProgram, text: *mut c_char);
}

fn check(function: &str, result: nvrtcResult) -> Result<()> {
    if result as u32 == 0 {
        return Ok(());
    }
    // SAFETY: the function is there; its strings are constants.
    let text = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) };
    let text = text.to_string_lossy();
    Err(Error::new(Status::Device, format!("{function}: {text}")))
}

/// The compiler that was found.
#[derive(Clone, Debug)]
pub struct Compiler {
    version: i32,
    /// The compute capabilities that it knows, 90 for 9.0.
    architectures: Vec<i32>,
}

/// What is compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The device itself.
    Device(String),
    /// An older device, in a form that the driver translates.
    Virtual(String),
}

impl Target {
    /// The best target of a compiler that knows these architectures for a device; `None` if the
    /// device is older than all of them.
    fn of((major, minor): (i32, i32), architectures: &[i32]) -> Option<Self> {
        let wanted = major * 10 + minor;
        if architectures.contains(&wanted) {
            // The instructions that only one generation has are behind a letter.
            let letter = if matches!(wanted, 90 | 100) { "a" } else { "" };
            return Some(Self::Device(format!("sm_{wanted}{letter}")));
        }
        let older = architectures.iter().filter(|&&known| known < wanted).max()?;
        Some(Self::Virtual(format!("compute_{older}")))
    }

    /// What the compiler calls it.
    pub fn name(&self) -> &str {
        match self {
            Self::Device(name) | Self::Virtual(name) => name,
        }
    }
}

impl Compiler {
    /// Finds NVRTC.
    pub fn find() -> Result<Self> {
        // SAFETY: the only effect is that of loading the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(not_found("NVRTC", &cudarc::get_lib_name_candidates("nvrtc")));
        }
        // SAFETY: the library is there.
        missing("NVRTC", unsafe { sys::culib() }, FUNCTIONS)?;
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: the functions are there, here and below; all that is written is writable.
        unsafe {
            nvrtcVersion(&raw mut major, &raw mut minor)?;
            nvrtcGetNumSupportedArchs(&raw mut count)?;
        }
        let mut architectures = vec![0; count as usize];
        // SAFETY: as above.
        unsafe { nvrtcGetSupportedArchs(architectures.as_mut_ptr())? };
        Ok(Self { version: major * 1000 + minor * 10, architectures })
    }

    /// `NVRTC 13.0`.
    pub fn name(&self) -> String {
        format!("NVRTC {}", version_text(self.version))
    }

    /// What to compile for a device.
    pub fn target(&self, capability: (i32, i32)) -> Result<Target> {
        Target::of(capability, &self.architectures).ok_or_else(|| {
            Error::new(
                Status::Device,
                format!(
                    "{}: expected a compiler for compute capability {}.{}, found one for newer devices",
                    self.name(),
                    capability.0,
                    capability.1
                ),
            )
        })
    }

    /// What else decides what is compiled.
    pub fn options() -> impl Iterator<Item = &'static [u8]> {
        OPTIONS.iter().map(|option| option.to_bytes())
    }

    /// Compiles a source with the headers that it includes.
    pub fn compile(&self, source: &Source, headers: &[Source], target: &Target) -> Result<Vec<u8>> {
        let text =
            |text: &str| CString::new(text).map_err(|_| Error::internal("a source with NUL"));
        let architecture = text(&format!("--gpu-architecture={}", target.name()))?;
        let options: Vec<*const c_char> =
            OPTIONS.iter().map(|option| option.as_ptr()).chain([architecture.as_ptr()]).collect();
        let program = Program::create(source, headers)?;
        // SAFETY: the strings of the options live as long as the call.
        let compiled = unsafe {
            nvrtcCompileProgram(program.handle, options.len() as c_int, options.as_ptr())
        };
        compiled.map_err(|error| {
            let log = program.log().unwrap_or_default();
            error.within(format!("{}: kernels/{}.cu: {log}", self.name(), source.name))
        })?;
        program.image(target)
    }
}

/// A source in the hands of the compiler.
struct Program {
    handle: nvrtcProgram,
}

impl Program {
    fn create(source: &Source, headers: &[Source]) -> Result<Self> {
        let text =
            |text: &str| CString::new(text).map_err(|_| Error::internal("a source with NUL"));
        let (body, name) = (text(source.text)?, text(&format!("{}.cu", source.name))?);
        let names = headers.iter().map(|header| text(header.name)).collect::<Result<Vec<_>>>()?;
        let texts = headers.iter().map(|header| text(header.text)).collect::<Result<Vec<_>>>()?;
        let addresses = |texts: &[CString]| -> Vec<*const c_char> {
            texts.iter().map(|text| text.as_ptr()).collect()
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: a compiler has been found; the strings live as long as the call, which copies them.
        unsafe {
            nvrtcCreateProgram(
                &raw mut handle,
                body.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                addresses(&texts).as_ptr(),
                addresses(&names).as_ptr(),
            )?;
        }
        Ok(Self { handle })
    }

    /// What the compiler has to say.
    fn log(&self) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: a program; `bytes` is writable.
        unsafe { nvrtcGetProgramLogSize(self.handle, &raw mut bytes)? };
        let mut log = vec![0_u8; bytes];
        // SAFETY: as many bytes are writable as the log has.
        unsafe { nvrtcGetProgramLog(self.handle, log.as_mut_ptr().cast())? };
        Ok(String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned())
    }

    /// What was compiled. PTX ends with NUL, as the driver expects.
    fn image(&self, target: &Target) -> Result<Vec<u8>> {
        type Size = unsafe fn(nvrtcProgram, *mut usize) -> Result<()>;
        type Get = unsafe fn(nvrtcProgram, *mut c_char) -> Result<()>;
        let (size, get): (Size, Get) = match target {
            Target::Device(_) => (nvrtcGetCUBINSize, nvrtcGetCUBIN),
            Target::Virtual(_) => (nvrtcGetPTXSize, nvrtcGetPTX),
        };
        let mut bytes = 0;
        // SAFETY: a compiled program; `bytes` is writable.
        unsafe { size(self.handle, &raw mut bytes)? };
        let mut image = vec![0_u8; bytes];
        // SAFETY: as many bytes are writable as the image has.
        unsafe { get(self.handle, image.as_mut_ptr().cast())? };
        Ok(image)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { nvrtcDestroyProgram(&raw mut self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_its_own_code_or_the_newest_that_drivers_translate_for_it() {
        let known = [75, 80, 86, 90, 100, 120];
        let target = |capability| Target::of(capability, &known);
        let device = |name: &str| Some(Target::Device(name.to_owned()));
        let older = |name: &str| Some(Target::Virtual(name.to_owned()));
        assert_eq!(target((8, 0)), device("sm_80"));
        assert_eq!(target((9, 0)), device("sm_90a"));
        assert_eq!(target((12, 0)), device("sm_120"));
        assert_eq!(target((8, 9)), older("compute_86"));
        assert_eq!(target((10, 3)), older("compute_100"));
        assert_eq!(target((13, 0)), older("compute_120"));
        assert_eq!(target((7, 0)), None);
    }
}
