//! What a program was asked to do, and the figures that it hands on.

use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// The command line.
#[derive(Debug, Default)]
pub struct Options {
    /// `--quick`: sizes that a simulator gets through. The times mean nothing.
    pub quick: bool,
    /// `--json FILE`: a line for each figure.
    pub json: Option<PathBuf>,
    /// `--torch FILE`: lines of `tools/gpu/torch_verify.py`, to set beside one's own.
    pub torch: Option<PathBuf>,
}

impl Options {
    pub fn read() -> Self {
        let mut options = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut file = || arguments.next().map(PathBuf::from);
            match argument.as_str() {
                "--bench" => {} // which cargo adds
                "--quick" => options.quick = true,
                "--json" => options.json = file(),
                "--torch" => options.torch = file(),
                other => panic!("expected --quick, --json FILE or --torch FILE, found {other}"),
            }
        }
        options
    }

    /// The lines of `--torch`.
    pub fn torch_figures(&self) -> Vec<Value> {
        let Some(path) = &self.torch else { return Vec::new() };
        let text = std::fs::read_to_string(path).expect("the figures of torch");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// Where figures go beside the table.
pub struct Figures {
    file: Option<File>,
}

impl Figures {
    pub fn new(options: &Options) -> Self {
        let file =
            options.json.as_ref().map(|path| File::create(path).expect("the file for figures"));
        Self { file }
    }

    pub fn add(&mut self, figure: &Value) {
        if let Some(file) = &mut self.file {
            writeln!(file, "{figure}").expect("writing a figure");
        }
    }
}
