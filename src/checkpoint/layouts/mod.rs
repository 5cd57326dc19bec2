//! The layouts in which speculators are published besides the speculators format: those of research
//! repositories, and of verifiers that carry a speculator of their own. Each is translated to a configuration
//! and tensors of the format, for loading and for conversion alike; nothing is read of a tensor for it but
//! its place.

mod dflash;
mod dflash2;
mod dspark;
mod eagle;
mod eagle3;
mod mtp;
mod settings;
mod xpress;

use super::config::{Settings, as_integer, found};
use super::files::StoredTensor;
use super::report::Report;
use super::verifier::Verifier;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) use mtp::NAMES as MTP_NAMES;

/// The tensors of a checkpoint, by name.
pub(super) type Tensors = BTreeMap<String, StoredTensor>;

/// A layout: what it is called, how it is recognised, and how it is translated.
struct Layout {
    /// For people.
    name: &'static str,
    /// What the command line calls the algorithm.
    algorithm: &'static str,
    is_one: fn(&mut Evidence<'_>) -> bool,
    translate: fn(&mut Source<'_>) -> Result<Map<String, Value>>,
}

/// In the order in which they are tried: what is made of something else stands before it.
const LAYOUTS: [Layout; 9] = [
    Layout {
        name: "XPress",
        algorithm: "xpress",
        is_one: xpress::is_one,
        translate: xpress::translate,
    },
    Layout {
        name: "DeepSpec DSpark",
        algorithm: "dspark",
        is_one: dspark::is_one,
        translate: dspark::translate,
    },
    Layout {
        name: "z-lab DFlash2",
        algorithm: "dflash2",
        is_one: dflash2::is_one,
        translate: dflash2::translate,
    },
    Layout {
        name: "z-lab DFlash",
        algorithm: "dflash",
        is_one: dflash::is_one,
        translate: dflash::translate,
    },
    Layout {
        name: "P-EAGLE research",
        algorithm: "peagle",
        is_one: eagle3::is_parallel,
        translate: eagle3::translate_parallel,
    },
    Layout {
        name: "SpecForge EAGLE-3",
        algorithm: "eagle3",
        is_one: eagle3::is_specforge,
        translate: eagle3::translate,
    },
    Layout {
        name: "EAGLE-3 research",
        algorithm: "eagle3",
        is_one: eagle3::is_one,
        translate: eagle3::translate,
    },
    Layout {
        name: "EAGLE research",
        algorithm: "eagle",
        is_one: eagle::is_one,
        translate: eagle::translate,
    },
    Layout {
        name: "MTP inside of a verifier",
        algorithm: "mtp",
        is_one: mtp::is_one,
        translate: mtp::translate,
    },
];

/// The algorithms that a layout can be translated for.
pub(super) fn algorithms() -> impl Iterator<Item = &'static str> {
    let is_first = |&(index, layout): &(usize, &Layout)| {
        LAYOUTS[..index].iter().all(|other| other.algorithm != layout.algorithm)
    };
    LAYOUTS.iter().enumerate().filter(is_first).map(|(_, layout)| layout.algorithm)
}

/// What a layout is recognised by.
struct Evidence<'a> {
    top: Settings<'a>,
    tensors: &'a Tensors,
}

impl Evidence<'_> {
    /// Whether the class of the model has a name with this part.
    fn has_class(&mut self, part: &str) -> bool {
        let classes = self.top.list("architectures").ok().flatten().unwrap_or_default();
        classes.iter().any(|class| class.as_str().is_some_and(|class| class.contains(part)))
    }

    fn has_tensor(&self, begin: &str) -> bool {
        self.tensors
            .range(begin.to_owned()..)
            .next()
            .is_some_and(|(name, _)| name.starts_with(begin))
    }

    /// How many times as wide as high the matrix that projects features is.
    fn fused(&self) -> Option<usize> {
        let [rows, columns] = *self.tensors.get("fc.weight")?.shape() else { return None };
        (rows > 0 && columns.is_multiple_of(rows)).then(|| columns / rows)
    }
}

/// A checkpoint as the format would have it, and how it came to that.
#[derive(Debug)]
pub(super) struct Translation {
    pub(super) layout: &'static str,
    pub(super) config: Map<String, Value>,
    pub(super) tensors: Tensors,
    /// The checkpoint holds the verifier, too.
    pub(super) holds_verifier: bool,
    account: Account,
}

/// What became of the tensors of a checkpoint and what was decided on the way.
#[derive(Debug, Default)]
struct Account {
    renamed: Vec<(String, String)>,
    dropped: Vec<(String, String)>,
    notes: Vec<String>,
    /// Settings that nobody reads.
    unknown_settings: Map<String, Value>,
}

impl Translation {
    /// What a report says of it.
    pub(super) fn to_json(&self) -> Value {
        let pairs = |pairs: &[(String, String)], [first, second]: [&str; 2]| {
            pairs.iter().map(|(a, b)| json!({first: a, second: b})).collect::<Vec<_>>()
        };
        json!({
            "layout": self.layout,
            "renamed": pairs(&self.account.renamed, ["from", "to"]),
            "dropped": pairs(&self.account.dropped, ["name", "reason"]),
            "notes": self.account.notes,
        })
    }

    /// Tells a report what was translated and what was not understood.
    pub(super) fn tell(&self, report: &mut Report) {
        report.translation = Some(self.to_json());
        for (name, value) in &self.account.unknown_settings {
            report.warn(format!("{name}: not known, not used: {}", found(value)));
            report.unknown_settings.insert(name.clone(), value.clone());
        }
    }

    /// Drops a tensor after all.
    pub(super) fn drop_tensor(&mut self, name: &str, reason: &str) {
        if self.tensors.remove(name).is_none() {
            return;
        }
        let renamed = &mut self.account.renamed;
        let original = match renamed.iter().position(|(_, to)| to == name) {
            Some(index) => renamed.remove(index).0,
            None => name.to_owned(),
        };
        self.account.dropped.push((original, reason.into()));
    }
}

/// Translates a checkpoint that is not in the speculators format. `None` where no layout is recognised.
/// `algorithm` says what it is instead of what is found in it.
pub(super) fn translate(
    (file, config): (&Path, &Map<String, Value>),
    tensors: &Tensors,
    verifier: &Verifier,
    algorithm: Option<&str>,
) -> Result<Option<Translation>> {
    let is_one = |layout: &&Layout| {
        (layout.is_one)(&mut Evidence { top: Settings::of_file(file, config), tensors })
    };
    let mut wanted =
        LAYOUTS.iter().filter(|layout| algorithm.is_none_or(|a| a == layout.algorithm));
    let found = wanted.clone().find(is_one);
    // Someone who names the algorithm may know better.
    let Some(layout) = found.or_else(|| algorithm.and_then(|_| wanted.next_back())) else {
        return Ok(None);
    };
    let mut source = Source {
        top: Settings::of_file(file, config),
        file,
        tensors: tensors.clone(),
        translated: Tensors::new(),
        verifier,
        holds_verifier: false,
        account: Account::default(),
    };
    let config = (layout.translate)(&mut source)?;
    let holds_verifier = source.holds_verifier;
    let (tensors, account) = source.finish()?;
    Ok(Some(Translation { layout: layout.name, config, tensors, holds_verifier, account }))
}

/// A checkpoint on its way.
struct Source<'a> {
    top: Settings<'a>,
    file: &'a Path,
    /// Those that nothing was said of yet.
    tensors: Tensors,
    translated: Tensors,
    verifier: &'a Verifier,
    holds_verifier: bool,
    account: Account,
}

impl<'a> Source<'a> {
    /// Records something that was decided.
    fn note(&mut self, text: impl Into<String>) {
        self.account.notes.push(text.into());
    }

    /// Records the settings of the source that were not asked for, where they go nowhere.
    fn account_for_settings(&mut self) {
        let settings = Settings::of_file(self.file, self.top.all());
        let top = std::mem::replace(&mut self.top, settings);
        self.account_for(top);
    }

    /// Records which of `settings` were not asked for.
    fn account_for(&mut self, settings: Settings<'_>) {
        let mut report = Report::default();
        settings.finish(&mut report);
        self.account.unknown_settings.append(&mut report.unknown_settings);
    }

    /// A tensor that nothing was said of yet.
    fn peek(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// The shape of a matrix, if it is one.
    fn matrix(&self, name: &str) -> Option<[usize; 2]> {
        let shape = self.tensors.get(name)?.shape();
        <[usize; 2]>::try_from(shape).ok().filter(|sizes| !sizes.contains(&0))
    }

    /// Puts what was stored as `old` under the name `new`.
    fn rename(&mut self, old: &str, new: &str) -> Result<()> {
        let Some(stored) = self.tensors.remove(old) else { return Ok(()) };
        self.put(old, stored.named(new))
    }

    /// Puts a tensor that was made of `old`.
    fn put(&mut self, old: &str, tensor: StoredTensor) -> Result<()> {
        let new = tensor.name.clone();
        if let Some(other) = self.translated.insert(new.clone(), tensor) {
            return Err(other.wrong(format_args!("also stored as {old:?}")));
        }
        if old != new {
            self.account.renamed.push((old.to_owned(), new));
        }
        Ok(())
    }

    /// Renames all tensors whose names begin with `old`.
    fn rename_prefix(&mut self, old: &str, new: &str) -> Result<()> {
        for name in self.names(|name| name.starts_with(old)) {
            self.rename(&name, &format!("{new}{}", &name[old.len()..]))?;
        }
        Ok(())
    }

    /// Leaves tensors out.
    fn drop_all(&mut self, reason: &str, is_dropped: impl Fn(&str) -> bool) {
        for name in self.names(is_dropped) {
            self.tensors.remove(&name);
            self.account.dropped.push((name, reason.into()));
        }
    }

    /// The names of the tensors that nothing was said of yet.
    fn names(&self, accept: impl Fn(&str) -> bool) -> Vec<String> {
        self.tensors.keys().filter(|name| accept(name)).cloned().collect()
    }

    /// The layers that are stored under `begin` and a number.
    fn layers(&self, begin: &str) -> usize {
        let number = |name: &String| {
            let rest = name.strip_prefix(begin)?;
            rest.split_once('.')?.0.parse::<usize>().ok().filter(|&index| index < 1024)
        };
        self.tensors.keys().filter_map(number).max().map_or(0, |index| index + 1)
    }

    /// What is left keeps its name. The loader judges it.
    fn finish(mut self) -> Result<(Tensors, Account)> {
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            self.put(&name.clone(), tensor)?;
        }
        Ok((self.translated, self.account))
    }

    /// Layers that are counted by what leaves them, as the format counts: by what enters the next one.
    fn layers_by_output(&mut self, key: &str, listed: &[Value]) -> Result<Vec<i64>> {
        let ids: Option<Vec<i64>> = listed.iter().map(as_integer).collect();
        let in_range = |ids: &Vec<i64>| ids.iter().all(|id| (-1..100_000).contains(id));
        let Some(ids) = ids.filter(in_range) else {
            return Err(self.top.wrong(key, "expected a list of layers, from -1 on"));
        };
        let translated: Vec<i64> = ids.iter().map(|id| id + 1).collect();
        self.note(format!(
            "{key}: {ids:?} are layers whose output is read: {translated:?}, those that it enters"
        ));
        Ok(translated)
    }

    /// The first of some settings that is there.
    fn first_of(&mut self, keys: &[&'static str]) -> Option<&'static str> {
        keys.iter().copied().find(|key| self.top.has(key))
    }

    /// The part of the configuration that says what is drafted for whom.
    fn speculators_config(&self, algorithm: &str, drafts: usize) -> Value {
        json!({
            "algorithm": algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [{
                "accept_tolerance": 0.0,
                "proposal_type": "greedy",
                "speculative_tokens": drafts,
                "verifier_accept_k": 1,
            }],
            "verifier": {
                "architectures": self.verifier.architectures(),
                "name_or_path": self.verifier.directory().map(|path| path.to_string_lossy()),
            },
        })
    }

    /// The settings that all kinds have, with those that are the kind's own.
    fn config(
        &self,
        (kind, class): (&str, &str),
        drafts: usize,
        own: Value,
        layer: Option<Map<String, Value>>,
    ) -> Map<String, Value> {
        let mut config = json!({
            "architectures": [class],
            "dtype": self.dtype(),
            "speculators_config": self.speculators_config(kind, drafts),
            "speculators_model_type": kind,
            "speculators_version": settings::SPECULATORS_VERSION,
            "tie_word_embeddings": false,
            "transformers_version": settings::TRANSFORMERS_VERSION,
        });
        let config = config.as_object_mut().map(std::mem::take).unwrap_or_default();
        let own = own.as_object().cloned().unwrap_or_default();
        let layer = layer.map(|layer| ("transformer_layer_config".to_owned(), layer.into()));
        config.into_iter().chain(own).chain(layer).collect()
    }

    /// What transformers calls the type of the weights.
    fn dtype(&self) -> Value {
        let mut all = self.translated.values().chain(self.tensors.values());
        all.find_map(|tensor| settings::torch_dtype(tensor.element())).into()
    }

    /// An error about the file of the configuration.
    fn wrong(&self, text: impl std::fmt::Display) -> Error {
        Error::format(self.file, text)
    }
}
