//! What loading did: every tensor, every assumed default, every correction.

use super::files::StoredTensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What loading a checkpoint found, assumed and corrected.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub(super) kind: String,
    pub(super) directory: PathBuf,
    pub(super) files: BTreeSet<String>,
    pub(super) used: Vec<Value>,
    pub(super) unused: Vec<(String, String)>,
    pub(super) absent: Vec<(String, String)>,
    pub(super) assumed_defaults: Vec<(String, Value)>,
    pub(super) unused_settings: Map<String, Value>,
    pub(super) unknown_settings: Map<String, Value>,
    pub(super) overrides: Option<Value>,
    /// What was made of another layout.
    pub(super) translation: Option<Value>,
    pub(super) verifier: Option<(PathBuf, Vec<Value>)>,
    corrected: Vec<String>,
    warnings: Vec<String>,
}

impl Report {
    /// The report of a checkpoint of `kind` in `directory`.
    pub(super) fn new(kind: &str, directory: &Path) -> Self {
        Self { kind: kind.into(), directory: directory.into(), ..Self::default() }
    }

    /// Whether this is told of something that was corrected.
    pub(super) fn is_corrected(&self, text: &str) -> bool {
        self.corrected.iter().any(|corrected| corrected == text)
    }

    /// What a host should show its user: assumptions that change results, corrected quirks.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The whole report.
    pub fn to_json(&self) -> Value {
        let pairs = |pairs: &[(String, String)], second: &str| {
            let objects = pairs.iter().map(|(name, text)| json!({"name": name, second: text}));
            objects.collect::<Vec<_>>()
        };
        let assumed = self.assumed_defaults.iter().cloned().collect::<Map<_, _>>();
        let verifier = self.verifier.as_ref().map(|(directory, tensors)| {
            json!({"directory": directory.to_string_lossy(), "tensors": tensors})
        });
        json!({
            "kind": self.kind,
            "directory": self.directory.to_string_lossy(),
            "files": self.files,
            "tensors": {
                "used": self.used,
                "unused": pairs(&self.unused, "reason"),
                "absent": pairs(&self.absent, "instead"),
            },
            "assumed_defaults": assumed,
            "corrected": self.corrected,
            "unused_settings": self.unused_settings,
            "unknown_settings": self.unknown_settings,
            "overrides": self.overrides,
            "translation": self.translation,
            "verifier": verifier,
            "warnings": self.warnings,
        })
    }

    /// Records a difference between what the files say and what is done.
    pub(super) fn correct(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.warnings.push(text.clone());
        self.corrected.push(text);
    }

    /// Records something that a host should show its user.
    pub(super) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// A stored tensor in a report.
pub(super) fn describe(tensor: &StoredTensor) -> Value {
    json!({
        "name": tensor.name,
        "dtype": tensor.element().name(),
        "shape": tensor.shape(),
        "file": tensor.file_name(),
    })
}
