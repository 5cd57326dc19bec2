//! What a host is told when the CUDA driver of the machine will not do. Drivers that lack something are
//! compiled here, with `CC` or `cc`, and found by a child process in place of the machine's own.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

use speculators::context::{Context, CudaOptions, KernelCache};
use speculators::error::Status;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set for the child processes.
const CHILD: &str = "SPEC_TEST_OPENS_DEVICE";

/// A driver in which all functions succeed, as far as it is not told otherwise.
struct Driver {
    version: i32,
    devices: i32,
    /// Ten times the compute capability.
    capability: i32,
    /// Functions that are missing.
    without: &'static [&'static str],
    /// Functions that fail, and how.
    failing: &'static [(&'static str, i32)],
}

const SOUND: Driver =
    Driver { version: 12_000, devices: 2, capability: 90, without: &[], failing: &[] };

impl Driver {
    /// The functions that the library looks up, from its table.
    fn functions() -> Vec<String> {
        let source = include_str!("../src/backend/cuda/driver.rs");
        let (_, table) = source.split_once("\nfunctions! {\n").unwrap();
        let (table, _) = table.split_once("\n}\n").unwrap();
        let names =
            table.lines().filter_map(|line| Some(line.strip_prefix("    cu")?.split_once('(')?.0));
        let names: Vec<String> = names.map(|name| format!("cu{name}")).collect();
        assert!(names.len() > 30, "{names:?}");
        names
    }

    fn source(&self) -> String {
        let Self { version, devices, capability, .. } = self;
        let mut text = format!(
            "#include <string.h>
            int cuGetErrorName(int code, const char **text) {{ *text = \"NAME\"; return code < 0; }}
            int cuGetErrorString(int code, const char **text) {{ *text = \"words\"; return code < 0; }}
            static int give(int *to, int value) {{ *to = value; return 0; }}
            static int call_cuDriverGetVersion(int *to) {{ return give(to, {version}); }}
            static int call_cuDeviceGetCount(int *to) {{ return give(to, {devices}); }}
            static int call_cuDeviceGet(int *to, int ordinal) {{ return give(to, ordinal); }}
            static int call_cuDeviceGetName(char *to, int len, int device) {{
              strncpy(to, \"Stub\", (size_t)len); return device < 0; }}
            static int call_cuDeviceGetAttribute(int *to, int which, int device) {{
              return give(to, which == 75 ? {capability} / 10 : which == 76 ? {capability} % 10 : device); }}
            "
        );
        for name in Self::functions() {
            if self.without.contains(&name.as_str()) {
                continue;
            }
            let failure = self.failing.iter().find(|(failing, _)| *failing == name);
            let code = failure.map_or(0, |&(_, code)| code);
            let call = format!("call_{name}");
            if code == 0 && text.contains(&format!("{call}(")) {
                writeln!(text, "__typeof__({call}) {name} __attribute__((alias(\"{call}\")));")
                    .unwrap();
            } else {
                writeln!(text, "int {name}(void) {{ return {code}; }}").unwrap();
            }
        }
        text
    }

    fn compile(&self, directory: &Path) {
        let source = directory.join("driver.c");
        fs::write(&source, self.source()).unwrap();
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut command = Command::new(compiler);
        command
            .args(["-shared", "-fPIC", "-w", "-o"])
            .arg(directory.join("libcuda.so"))
            .arg(source);
        assert!(command.status().unwrap().success());
    }

    /// What opening the first device ends with: status and message.
    fn outcome(&self, name: &str) -> (i32, String) {
        let directory: PathBuf =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_driver").join(name);
        fs::create_dir_all(&directory).unwrap();
        self.compile(&directory);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_child_opens_a_device", "--nocapture"])
            .env("LD_LIBRARY_PATH", &directory)
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let line = text.lines().find_map(|line| line.strip_prefix("outcome: ")).unwrap();
        let (status, message) = line.split_once(' ').unwrap();
        (status.parse().unwrap(), message.to_owned())
    }
}

/// Does nothing unless it is the child of another test.
#[test]
fn a_child_opens_a_device() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let options = CudaOptions { cache: KernelCache::None, ..CudaOptions::default() };
    let error = Context::cuda(&options, None, None).unwrap_err();
    println!("\noutcome: {} {error}", error.status() as i32);
}

#[test]
fn missing_functions_are_named() {
    let driver = Driver { without: &["cuStreamGetCtx", "cuLaunchKernel"], ..SOUND };
    assert_eq!(
        driver.outcome("missing"),
        (
            Status::Device as i32,
            "CUDA driver: expected the functions of CUDA 12.0, found no cuStreamGetCtx, cuLaunchKernel"
                .to_owned()
        )
    );
}

#[test]
fn an_old_driver_is_refused_by_its_version() {
    let driver = Driver { version: 11_080, ..SOUND };
    assert_eq!(
        driver.outcome("old"),
        (
            Status::Device as i32,
            "CUDA driver: expected one for CUDA 12.0 or newer, found one for 11.8".to_owned()
        )
    );
}

#[test]
fn a_driver_that_does_not_start_says_why() {
    let driver = Driver { failing: &[("cuInit", 803)], ..SOUND };
    assert_eq!(driver.outcome("start"), (Status::Device as i32, "cuInit: NAME: words".to_owned()));
}

#[test]
fn a_machine_without_devices_is_told_so() {
    let driver = Driver { devices: 0, ..SOUND };
    let (status, message) = driver.outcome("none");
    assert_eq!(status, Status::Device as i32);
    assert_eq!(message, "CUDA driver: expected a device, found none");
}

#[test]
fn a_device_that_is_too_old_is_refused_by_its_capability() {
    let driver = Driver { capability: 75, ..SOUND };
    let (status, message) = driver.outcome("capability");
    assert_eq!(status, Status::Unsupported as i32);
    assert_eq!(
        message,
        "CUDA device 0 (Stub): expected compute capability 8.0 or newer, found 7.5"
    );
}

#[test]
fn kernels_that_do_not_fit_the_driver_lead_to_nvrtc() {
    let driver = Driver { failing: &[("cuModuleLoadData", 209)], ..SOUND };
    let (status, message) = driver.outcome("images");
    assert_eq!(status, Status::Device as i32);
    assert!(message.starts_with("CUDA device 0: ") && message.contains("NVRTC"), "{message}");
}

#[test]
fn memory_that_runs_out_has_a_status_of_its_own() {
    let driver = Driver { failing: &[("cuDevicePrimaryCtxRetain", 2)], ..SOUND };
    let (status, message) = driver.outcome("memory");
    assert_eq!(status, Status::OutOfMemory as i32);
    assert_eq!(message, "cuDevicePrimaryCtxRetain: NAME: words");
}
