//! The twins of kernels for the simulator: those of the kernels as they are, and of mutants.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

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

impl Workshop {
    /// The one for the kernels as they are. Builds the simulator if needed.
    pub fn of_project(root: &Path, target: &Path) -> Result<Self, String> {
        let output = target.join("simt");
        let mut make = Command::new("make");
        make.args(["--silent", "--directory"]).arg(root.join("tests/simt"));
        run(make.arg(format!("OUT={}", output.display())).arg("checked"))?;
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

    /// Where the simulator's own twins are, those of the kernels as they are.
    pub fn runtime_twins(&self) -> PathBuf {
        self.runtime.join("kernels")
    }

    /// Compiles a module anew, and returns its code without what debuggers read. If that fails, the error
    /// is what the compiler says.
    pub fn build(&self, module: &str) -> Result<Vec<u8>, String> {
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

        let bare = object.with_extension("bare");
        let mut strip = Command::new("objcopy");
        run(strip.arg("--strip-debug").arg(&object).arg(&bare))?;
        fs::read(&bare).map_err(|error| format!("{}: {error}", bare.display()))
    }

    /// Lets tests find the simulator's twin of a module here too, unless there is one already.
    pub fn borrow(&self, module: &str) -> Result<(), String> {
        let twin = format!("{module}.so");
        link(&self.runtime_twins().join(&twin), &self.twins().join(twin))
    }
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned())
}

/// Makes a symbolic link and its directory, unless there is one.
fn link(to: &Path, at: &Path) -> Result<(), String> {
    let directory = at.parent().unwrap_or(at);
    let made = fs::create_dir_all(directory).and_then(|()| std::os::unix::fs::symlink(to, at));
    match made {
        // Another thread may have made it just now.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("{}: {error}", at.display()))
        }
        _ => Ok(()),
    }
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
