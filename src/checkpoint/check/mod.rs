//! A check of a checkpoint: everything that is wrong with it or looks wrong, found without a device and
//! in little memory. What the loader says of settings and tensors is taken from its report; what is
//! added here is what only the values of the tensors, or a look at the verifier, can tell.

mod advice;
mod target;
mod values;
mod vocabulary;

use super::files::{self, WeightFiles};
use super::report::Report;
use super::speculator::why_unneeded;
use super::{Checkpoint, Options, kind_of, load, translated};
use crate::error::{Error, Result, Status};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use values::{Place, Values};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; drafts are as good as they can be.
    Note,
    /// The checkpoint runs, but may well draft worse than it should.
    Suspicious,
    /// The checkpoint does not run, or cannot draft anything useful.
    Broken,
}

impl Severity {
    /// What JSON and people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Suspicious => "suspicious",
            Self::Broken => "broken",
        }
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The tensor, setting or file that it is about.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: String,
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct Check {
    /// The kind of the speculator, if the configuration tells it.
    pub kind: Option<String>,
    /// The directory that was checked.
    pub directory: PathBuf,
    /// The verifier that it was checked with.
    pub verifier: Option<PathBuf>,
    /// How many tensors were read.
    pub tensors: usize,
    /// The worst ones first.
    pub findings: Vec<Finding>,
}

/// Checks the checkpoint in `directory`, with the verifier in `verifier` if that is given. An error says
/// that there was nothing to check: one of the directories is none, or the verifier's has no configuration.
pub fn check(directory: &Path, verifier: Option<&Path>) -> Result<Check> {
    require_directory(directory)?;
    if let Some(verifier) = verifier {
        files::read_config(verifier)?;
    }
    let mut check = Check {
        kind: None,
        directory: directory.into(),
        verifier: verifier.map(Path::to_owned),
        tensors: 0,
        findings: Vec::new(),
    };
    match files::read_config(directory) {
        Ok((file, config)) => check.examine(&file, &config),
        Err(error) => check.refuse(&error),
    }
    // The order in which things were found is kept among equals.
    check.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(check)
}

/// Opens the checkpoint in `directory` as if a verifier were there that gives all that it lacks: enough to
/// describe the speculator, not to run it. A feature's layer that only the verifier can tell is -1.
pub fn open_without_verifier(directory: &Path) -> Result<Checkpoint> {
    let (file, config) = files::read_config(directory)?;
    load(directory, &file, &config, None)
}

fn require_directory(directory: &Path) -> Result<()> {
    let kind = std::fs::metadata(directory).map_err(|error| Error::io(directory, &error))?;
    if kind.is_dir() {
        return Ok(());
    }
    let text = format!("{}: expected a directory, found a file", directory.display());
    Err(Error::new(Status::Io, text))
}

impl Check {
    /// The worst severity of any finding; a note does not count.
    pub fn worst(&self) -> Option<Severity> {
        let worst = self.findings.iter().map(|finding| finding.severity).max();
        worst.filter(|&severity| severity > Severity::Note)
    }

    /// `sound`, `suspicious` or `broken`.
    pub fn verdict(&self) -> &'static str {
        self.worst().map_or("sound", Severity::name)
    }

    /// The whole check.
    pub fn to_json(&self) -> Value {
        let finding = |finding: &Finding| {
            json!({
                "severity": finding.severity.name(),
                "subject": finding.subject,
                "found": finding.found,
                "advice": finding.advice,
            })
        };
        json!({
            "verdict": self.verdict(),
            "kind": self.kind,
            "directory": self.directory.to_string_lossy(),
            "verifier": self.verifier.as_ref().map(|directory| directory.to_string_lossy()),
            "tensors": self.tensors,
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
        })
    }

    fn add(
        &mut self,
        severity: Severity,
        subject: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let (subject, found, advice) = (subject.into(), found.into(), advice.into());
        self.findings.push(Finding { severity, subject, found, advice });
    }

    /// Records an error of the loader, once.
    fn refuse(&mut self, error: &Error) {
        let found = error.to_string();
        if self.findings.iter().all(|finding| finding.found != found) {
            self.add(Severity::Broken, advice::subject(&found), found, advice::of_error(error));
        }
    }

    fn examine(&mut self, file: &Path, config: &Map<String, Value>) {
        self.kind = kind_of(file, config).ok().map(str::to_owned);
        let loaded = self.load(file, config);
        if let Some(loaded) = &loaded {
            self.kind = Some(loaded.speculator.kind.to_owned());
            self.take_report(&loaded.report);
            self.compare_verifier(loaded, config);
        }
        self.read_tensors((file, config), loaded.as_ref());
    }

    /// Loads with the verifier that was given, or else with the one that the checkpoint names, or else as if
    /// there were one.
    fn load(&mut self, file: &Path, config: &Map<String, Value>) -> Option<Checkpoint> {
        let given = self.verifier.clone();
        let options = Options { verifier_directory: given.clone(), ..Options::default() };
        let directory = self.directory.clone();
        let error = match load(&directory, file, config, Some(&options)) {
            Ok(loaded) => {
                self.verifier = loaded.report.verifier.as_ref().map(|(at, _)| at.clone());
                return Some(loaded);
            }
            Err(error) => error,
        };
        let loaded = match load(&directory, file, config, None) {
            Ok(loaded) => loaded,
            Err(own) => {
                self.refuse(&own);
                return None;
            }
        };
        // So it is the verifier that is missing, or does not fit.
        let found = error.to_string();
        if given.is_none() && error.status() == Status::InvalidArgument {
            let found = format!("not checked: {found}");
            self.add(Severity::Note, "verifier", found, advice::GIVE_VERIFIER);
        } else if error.status() == Status::Unsupported {
            self.add(Severity::Suspicious, "verifier", found, advice::LEND);
        } else {
            let severity = if given.is_some() { Severity::Broken } else { Severity::Suspicious };
            self.add(severity, "verifier", found, advice::OTHER_VERIFIER);
        }
        Some(loaded)
    }

    /// What the loader found, assumed and corrected.
    fn take_report(&mut self, report: &Report) {
        for text in report.warnings() {
            // Of tensors that are not used there is a list.
            if let Some((severity, advice)) = advice::of_warning(text, report) {
                self.add(severity, advice::subject(text), text, advice);
            }
        }
        for (name, reason) in &report.unused {
            if reason == advice::FOREIGN {
                let found = "the speculator has no such tensor";
                self.add(Severity::Suspicious, name, found, advice::FOREIGN_TENSOR);
            }
        }
        let names = |object: &Map<String, Value>| {
            let settings = object
                .iter()
                .map(|(name, value)| format!("{name} = {}", super::config::found(value)));
            settings.collect::<Vec<_>>().join(", ")
        };
        if !report.unknown_settings.is_empty() {
            let found = format!("not known here: {}", names(&report.unknown_settings));
            self.add(Severity::Note, "config.json", found, advice::UNKNOWN_SETTINGS);
        }
        if !report.assumed_defaults.is_empty() {
            let assumed = report.assumed_defaults.iter().cloned().collect();
            let found = format!("not set, so assumed: {}", names(&assumed));
            self.add(Severity::Note, "config.json", found, advice::ASSUMED);
        }
    }

    /// Reads all tensors, piece by piece, and the vocabulary maps that the loader leaves alone.
    fn read_tensors(&mut self, config: (&Path, &Map<String, Value>), loaded: Option<&Checkpoint>) {
        let located = WeightFiles::locate(&self.directory, false);
        // Those of another layout as the loader names them.
        let stored = located.and_then(|files| files.open_all()).and_then(|stored| {
            let translation = translated(&self.directory, config, &stored, None)?;
            Ok(translation.map_or(stored, |translation| translation.tensors))
        });
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => return self.refuse(&error),
        };
        let used = loaded.map(|loaded| used_tensors(&loaded.report));
        let is_used = |name: &str| match &used {
            Some(used) => used.contains(name),
            None => why_unneeded(name).is_none(),
        };
        let centred = self.has_centred_norms();
        let mut layer_norms = Vec::new();
        for tensor in stored.values() {
            self.tensors += 1;
            let values = match Values::of(tensor) {
                Ok(Some(values)) => values,
                Ok(None) => continue,
                Err(error) => {
                    self.refuse(&error);
                    continue;
                }
            };
            let name = tensor.name.as_str();
            let place = Place {
                name,
                rank: tensor.shape().len(),
                is_used: is_used(name),
                is_loaded: used.is_some(),
                norms_are_centred: centred,
            };
            if let Some((severity, found, advice)) = values.judge(&place) {
                self.add(severity, name, found, advice);
            }
            if name.starts_with("layers.0.") && name.contains("norm") {
                layer_norms.push(values.are_ones());
            }
        }
        if !layer_norms.is_empty() && layer_norms.iter().all(|&ones| ones) {
            self.confirm_lost_layer();
        }
        if let Some(loaded) = loaded {
            self.check_maps(&stored, &loaded.speculator);
        }
    }

    /// Whether the kinds of layers of this checkpoint store norms as their distance from 1.
    fn has_centred_norms(&self) -> bool {
        let config = files::read_config(&self.directory).map(|(_, config)| config);
        let family = config
            .as_ref()
            .ok()
            .and_then(|config| config.get("transformer_layer_config")?.get("model_type")?.as_str());
        family.is_some_and(|family| family.starts_with("qwen3_5") || family == "qwen3_next")
    }

    /// Layer 0 is as random as some converters have left it: nothing has trained its norms.
    fn confirm_lost_layer(&mut self) {
        const FOUND: &str = "all norms of layer 0 are ones, as in a layer that nothing trained";
        let lost = |finding: &&mut Finding| finding.found.contains(advice::LOST_LAYER);
        if let Some(finding) = self.findings.iter_mut().find(lost) {
            finding.severity = Severity::Broken;
            finding.found.push_str(&format!("; {FOUND}"));
            return;
        }
        self.add(Severity::Suspicious, "layers.0", FOUND, advice::RECONVERT);
    }
}

/// The names of the tensors that the speculator is made of, as the files have them.
fn used_tensors(report: &Report) -> BTreeSet<String> {
    let names = report.used.iter().filter_map(|tensor| tensor["name"].as_str());
    names.map(str::to_owned).collect()
}
