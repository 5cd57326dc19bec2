//! The way back of MTP: the weights of a checkpoint in the speculators format are put into a copy of the
//! verifier that they came from, for engines that read them there.

use super::files::{self, DataFile, StoredTensor, WeightFiles};
use super::header::{self, ElementType};
use super::layouts::{MTP_NAMES, Tensors};
use super::output::{Meter, Output, Progress, TensorFile};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What checkpoints hold beside the layer, and the verifier has.
const OF_THE_VERIFIER: [&str; 4] =
    ["embed_tokens.weight", "lm_head.weight", "verifier_lm_head.weight", "verifier_norm.weight"];

/// Verifiers have files beside their weights, and folders of such; no deeper than this.
const DEEPEST: usize = 8;

/// No layer has more.
const MOST_EXPERTS: usize = 1 << 16;

/// A verifier with other weights that is ready: all is known of what will be written, and nothing is
/// written.
pub struct Stitched {
    verifier: PathBuf,
    /// The files that are written anew, with all of their tensors.
    weights: BTreeMap<PathBuf, (Tensors, Map<String, Value>)>,
    /// The files that are copied.
    copied: Vec<PathBuf>,
    report: Value,
}

impl Stitched {
    /// Reads both, and makes sure that they fit.
    pub fn prepare(finetuned: &Path, verifier: &Path) -> Result<Self> {
        let (file, config) = files::read_config(finetuned)?;
        let kind = config.get("speculators_model_type").and_then(Value::as_str);
        if kind != Some("mtp") {
            let found = kind.map_or("nothing".into(), |kind| format!("{kind:?}"));
            let text = format!("speculators_model_type: expected \"mtp\", found {found}");
            return Err(Error::invalid(format!("{}: {text}", file.display())));
        }
        let located = WeightFiles::locate(verifier, false)?;
        let stored = located.open_all()?;
        let replaced = native(WeightFiles::locate(finetuned, false)?.open_all()?, &stored)?;
        let mut weights = BTreeMap::<PathBuf, (Tensors, Map<String, Value>)>::new();
        let mut tensors = Vec::new();
        for (name, tensor) in replaced {
            let path = place_of(&name, &tensor, &stored, &located)?;
            let (of_file, _) = match weights.entry(path) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let path = verifier.join(entry.key());
                    let all = stored.iter().filter(|(_, tensor)| tensor.path() == path);
                    let all = all.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
                    entry.insert((all, header::metadata(&path)?))
                }
            };
            tensors.push(json!({"name": name, "file": tensor.file_name()}));
            of_file.insert(name, tensor);
        }
        let mut copied = Vec::new();
        list_files(verifier, Path::new(""), 0, &mut copied)?;
        copied.retain(|file| !weights.contains_key(file));
        let report = json!({
            "finetuned": finetuned.to_string_lossy(),
            "verifier": verifier.to_string_lossy(),
            "replaced": tensors,
            "rewritten_files": names(weights.keys()),
            "copied_files": names(&copied),
        });
        Ok(Self { verifier: verifier.into(), weights, copied, report })
    }

    /// What is put where: `finetuned`, `verifier`, `replaced`, `rewritten_files`, `copied_files`.
    pub fn report(&self) -> &Value {
        &self.report
    }

    /// Writes the copy, which appears whole or not at all.
    pub fn write(&self, output: &Path, progress: Progress<'_>) -> Result<()> {
        let mut output = Output::new(output)?;
        let weights = self
            .weights
            .iter()
            .map(|(path, (tensors, metadata))| (path, TensorFile::new(tensors.values(), metadata)));
        let weights: Vec<_> = weights.collect();
        let mut total: u64 = weights.iter().map(|(_, file)| file.bytes()).sum();
        for path in &self.copied {
            total += DataFile::open(self.verifier.join(path), false)?.len()?;
        }
        let mut meter = Meter::new(progress, total);
        for (path, weights) in &weights {
            weights.write(&mut output.file(path)?, &mut meter)?;
        }
        for path in &self.copied {
            let from = DataFile::open(self.verifier.join(path), false)?;
            output.file(path)?.copy(&from, &mut meter)?;
        }
        output.commit()
    }
}

fn names<'p>(paths: impl IntoIterator<Item = &'p PathBuf>) -> Vec<String> {
    paths.into_iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

/// The tensors under the names that verifiers give them.
fn native(stored: Tensors, verifier: &Tensors) -> Result<Tensors> {
    let mut replaced = Tensors::new();
    let mut put = |tensor: StoredTensor| {
        replaced.insert(tensor.name.clone(), tensor);
    };
    for (name, tensor) in stored {
        if OF_THE_VERIFIER.contains(&name.as_str()) {
            continue;
        }
        let renamed = MTP_NAMES.iter().find_map(|(native, ours)| {
            name.strip_prefix(ours).map(|rest| format!("{native}{rest}"))
        });
        let Some(renamed) = renamed else {
            return Err(tensor.wrong("expected a tensor of mtp_layers.0, found another one"));
        };
        let joint = !verifier.contains_key(&renamed);
        match (joint, renamed.rsplit_once(".experts.")) {
            (true, Some((begin, "gate_up_proj"))) => {
                each_expert(&tensor, |index, expert| {
                    let half = expert.shape()[0] / 2;
                    for (map, first) in [("gate_proj", 0), ("up_proj", half)] {
                        let name = format!("{begin}.experts.{index}.{map}.weight");
                        put(expert.rows(first, half).named(&name));
                    }
                })?;
            }
            (true, Some((begin, "down_proj"))) => {
                each_expert(&tensor, |index, expert| {
                    put(expert.named(&format!("{begin}.experts.{index}.down_proj.weight")));
                })?;
            }
            _ => put(tensor.named(&renamed)),
        }
    }
    Ok(replaced)
}

/// Takes the experts of a layer apart.
fn each_expert(tensor: &StoredTensor, mut take: impl FnMut(usize, StoredTensor)) -> Result<()> {
    let [experts, rows, columns] = *tensor.shape() else {
        let found = tensor.shape();
        return Err(tensor.wrong(format_args!("expected three dimensions, found shape {found:?}")));
    };
    if experts > MOST_EXPERTS || rows == 0 || columns == 0 || !rows.is_multiple_of(2) {
        let found = tensor.shape();
        let text =
            format!("expected at most {MOST_EXPERTS} experts of an even size, found {found:?}");
        return Err(tensor.wrong(text));
    }
    for index in 0..experts {
        take(index, tensor.rows(index, 1).shaped(&[rows, columns]));
    }
    Ok(())
}

/// The file that a tensor goes to: the one that has it, or a single one. It must have the same shape.
fn place_of(
    name: &str,
    tensor: &StoredTensor,
    verifier: &Tensors,
    files: &WeightFiles,
) -> Result<PathBuf> {
    match (verifier.get(name), files.single()) {
        (Some(old), _) if old.shape() != tensor.shape() => {
            let (expected, found) = (old.shape(), tensor.shape());
            let text = format!("expected shape {expected:?}, as in the verifier, found {found:?}");
            Err(tensor.wrong(text))
        }
        (Some(old), _) if !matches!(old.element(), ElementType::Float(_)) => {
            let found = old.element().name();
            Err(Error::unsupported(
                old.wrong(format_args!("expected an unquantized tensor to replace, found {found}"))
                    .to_string(),
            ))
        }
        (Some(old), _) => Ok(old.file_name().into()),
        (None, Some(single)) => Ok(single.into()),
        (None, None) => Err(tensor
            .wrong(format_args!("expected {name:?} among the verifier's, found it not there"))),
    }
}

/// The files of a directory and of the folders in it.
fn list_files(root: &Path, folder: &Path, depth: usize, all: &mut Vec<PathBuf>) -> Result<()> {
    let directory = root.join(folder);
    let io = |error: std::io::Error| Error::io(&directory, &error);
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&directory).map_err(io)? {
        found.insert(entry.map_err(io)?.file_name());
    }
    for name in found {
        let path = folder.join(name);
        let full = root.join(&path);
        let kind = fs::metadata(&full).map_err(|error| Error::io(&full, &error))?;
        // Links to folders may lead anywhere, even back.
        let is_link = fs::symlink_metadata(&full).is_ok_and(|entry| entry.is_symlink());
        if kind.is_file() {
            all.push(path);
        } else if kind.is_dir() && is_link {
            let text = "expected files and folders, found a link to a folder";
            return Err(Error::invalid(format!("{}: {text}", full.display())));
        } else if kind.is_dir() && depth == DEEPEST {
            let text = format!("expected folders at most {DEEPEST} deep, found a deeper one");
            return Err(Error::invalid(format!("{}: {text}", full.display())));
        } else if kind.is_dir() {
            list_files(root, &path, depth + 1, all)?;
        }
    }
    Ok(())
}
