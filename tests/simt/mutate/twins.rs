//! The twins of kernels for the simulator: those of the kernels as they are, and of mutants.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Less work for the compiler than the simulator's own flags: a mutant is compiled once and run for a
/// few seconds.
const OPTIMISATION: &str = "-O1 -g1";

/// Where twins are built.
#[derive(Clone, Debug)]
pub struct Workshop {
    /// The project.
    root: PathBuf,
    /// The simulator's build of the driver.
    pub runtime: PathBuf,
    /// The kernel files that twins are made from.
    pub kernels: PathBuf,
    /// What is built.
    output: PathBuf,
}

/// What became of a module.
#[derive(Clone, Debug)]
pub struct Built {
    pub library: PathBuf,
    /// The code without what debuggers read.
    pub code: Vec<u8>,
    pub time: Duration,
}

impl Workshop {
    /// The one for the kernels as they are. Builds the simulator if needed.
    pub fn of_project(root: &Path, target: &Path) -> Result<Self, String> {
        let output = target.join("simt");
        let libraries =
            ["libcuda.so.1", "libcuda.so", "libnvrtc.so", "libnvrtc.so.12", "libnvrtc.so.13"];
        let mut make = Command::new("make");
        make.args(["--silent", "--directory"]).arg(root.join("tests/simt"));
        make.arg(format!("OUT={}", output.display()));
        make.args(libraries.map(|library| output.join("checked").join(library)));
        run(make)?;
        Ok(Self {
            root: root.to_owned(),
            runtime: output.join("checked"),
            kernels: root.join("kernels"),
            output: target.join("mutate/unchanged"),
        })
    }

    /// Another one, whose kernel files begin as copies.
    pub fn of_worker(&self, number: usize) -> io::Result<Self> {
        let output = self.output.with_file_name(format!("worker-{number}"));
        if output.exists() {
            fs::remove_dir_all(&output)?;
        }
        let kernels = output.join("kernels");
        fs::create_dir_all(&kernels)?;
        for entry in fs::read_dir(&self.kernels)? {
            let path = entry?.path();
            fs::copy(&path, kernels.join(path.file_name().unwrap_or_default()))?;
        }
        Ok(Self { kernels, output, ..self.clone() })
    }

    /// Where tests find the twins.
    pub fn twins(&self) -> PathBuf {
        self.output.join("checked/kernels")
    }

    /// Compiles a module anew; if that fails, the error is what the compiler says.
    pub fn build(&self, module: &str) -> Result<Built, String> {
        let start = Instant::now();
        let library = self.twins().join(format!("{module}.so"));
        let object = self.output.join(format!("objects/checked/kernels/{module}.o"));
        let driver = self.output.join("checked/libcuda.so.1");
        for old in [&library, &object] {
            let _ = fs::remove_file(old);
        }
        link(&self.runtime.join("libcuda.so.1"), &driver)?;

        // With the same name for the directory of kernels, equal code has equal bytes.
        let kernels = self.kernels.display();
        let mut make = Command::new("make");
        make.args(["--silent", "--directory"]).arg(self.root.join("tests/simt"));
        make.arg(format!("OUT={}", self.output.display()));
        make.arg(format!("KERNELS={kernels}"));
        make.arg(format!("CXX={} -w -ffile-prefix-map={kernels}=kernels", compiler()));
        make.arg("--assume-old").arg(&driver).arg(format!("OPTIMISATION={OPTIMISATION}"));
        run(make.arg(&object).arg(&library))?;
        let time = start.elapsed();

        let bare = object.with_extension("bare");
        let mut strip = Command::new("objcopy");
        run(strip.arg("--strip-debug").arg(&object).arg(&bare))?;
        let code = fs::read(&bare).map_err(|error| format!("{}: {error}", bare.display()))?;
        Ok(Built { library, code, time })
    }

    /// Lets tests find another module's twin here too, unless there is one already.
    pub fn borrow(&self, module: &str, built: &Built) -> Result<(), String> {
        link(&built.library, &self.twins().join(format!("{module}.so")))
    }
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned())
}

/// Makes a symbolic link and its directory, unless there is one.
fn link(to: &Path, at: &Path) -> Result<(), String> {
    if at.symlink_metadata().is_ok() {
        return Ok(());
    }
    let directory = at.parent().unwrap_or(at);
    fs::create_dir_all(directory)
        .and_then(|()| std::os::unix::fs::symlink(to, at))
        .map_err(|error| format!("{}: {error}", at.display()))
}

/// Runs a command; an error is what it printed.
fn run(mut command: impl std::borrow::BorrowMut<Command>) -> Result<(), String> {
    let command = command.borrow_mut();
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}
