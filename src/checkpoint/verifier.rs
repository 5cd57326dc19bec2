//! What a speculator borrows from the model that it drafts for: the embedding, the head, and how
//! many layers there are.

use super::config::{Settings, as_integer};
use super::decoder::MOST_TOKENS;
use super::files::{self, WeightFiles};
use super::report::{Report, describe};
use super::weights::{Tensor, is_quantized, never_filled};
use super::{LentShape, Options, RowSource};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Names of the token embedding in the wild, most usual first.
const EMBEDDING: &[&str] = &[
    "embed_tokens.weight",
    "tok_embeddings.weight",
    "llm.embed.weight",
    "backbone.embeddings.weight",
];

/// The same for the output head.
const HEAD: &[&str] = &["lm_head.weight", "output.weight", "llm.unembed.weight"];

/// The verifier, as far as the host made it known.
#[derive(Debug)]
pub(super) struct Verifier {
    directory: Option<PathBuf>,
    map_files: bool,
    lent_embedding: Option<LentShape>,
    lent_head: Option<LentShape>,
    /// For inspection: whatever is not known now will be given when the model is loaded.
    promised: bool,
    layers: Option<usize>,
    hidden_size: Option<usize>,
    vocabulary: Option<usize>,
    tied: Option<bool>,
    /// Its configuration, and the file that holds it.
    config: Option<(PathBuf, Map<String, Value>)>,
}

impl Verifier {
    /// A verifier about which nothing has to be known yet.
    pub(super) fn promised() -> Self {
        Self {
            directory: None,
            map_files: false,
            lent_embedding: None,
            lent_head: None,
            promised: true,
            layers: None,
            hidden_size: None,
            vocabulary: None,
            tied: None,
            config: None,
        }
    }

    /// A verifier in a directory, or none, whose configuration is known and whose tables will be given.
    pub(super) fn described(directory: Option<&Path>) -> Result<Self> {
        let Some(directory) = directory else { return Ok(Self::promised()) };
        let verifier_directory = Some(directory.to_path_buf());
        let options = Options { verifier_directory, ..Options::default() };
        let opened = Self::open(&options, None, directory, &mut Report::default())?;
        Ok(Self { promised: true, ..opened })
    }

    /// The verifier in the directory that the host gives, or else in the one that the checkpoint
    /// names, if there is one.
    pub(super) fn open(
        options: &Options,
        name: Option<&str>,
        checkpoint: &Path,
        report: &mut Report,
    ) -> Result<Self> {
        let mut verifier = Self {
            directory: options.verifier_directory.clone().or_else(|| named(name?, checkpoint)),
            map_files: options.map_files,
            lent_embedding: options.lent_embedding,
            lent_head: options.lent_head,
            promised: false,
            ..Self::promised()
        };
        let Some(directory) = verifier.directory.clone() else { return Ok(verifier) };
        let (file, config) = files::read_config(&directory)?;
        let mut outer = Settings::of_file(&file, &config);
        const TIED: &str = "tie_word_embeddings";
        verifier.tied = outer.flag(TIED)?;
        let mut text = outer.section("text_config")?;
        if let Some(text) = &mut text {
            // Models of several modalities often tell it only here.
            let inner = text.flag(TIED)?;
            verifier.tied = verifier.tied.max(inner);
        }
        let settings = text.as_mut().unwrap_or(&mut outer);
        verifier.layers = settings.integer("num_hidden_layers", 1..=100_000)?;
        verifier.hidden_size = settings.integer("hidden_size", 1..=1 << 24)?;
        verifier.vocabulary = settings.integer("vocab_size", 1..=MOST_TOKENS)?;
        verifier.config = Some((file, config));
        report.verifier = Some((directory, Vec::new()));
        Ok(verifier)
    }

    /// Where its files are.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The classes that have its network.
    pub(super) fn architectures(&self) -> Value {
        let listed = self.config.as_ref().and_then(|(_, config)| config.get("architectures"));
        listed.cloned().unwrap_or_else(|| Value::Array(Vec::new()))
    }

    /// How many positions it was made for, if its configuration says so outside of its parts.
    pub(super) fn max_position(&self) -> Option<usize> {
        let (_, config) = self.config.as_ref()?;
        usize::try_from(as_integer(config.get("max_position_embeddings")?)?).ok()
    }

    pub(super) fn is_promised(&self) -> bool {
        self.promised
    }

    /// The number of decoder layers.
    pub(super) fn layers(&self) -> Option<usize> {
        self.layers
    }

    /// The width of the hidden states.
    pub(super) fn hidden_size(&self) -> Option<usize> {
        self.hidden_size
    }

    /// The number of its tokens.
    pub(super) fn vocabulary(&self) -> Option<usize> {
        self.vocabulary
    }

    /// The settings of its decoder.
    pub(super) fn settings(&self) -> Option<Settings<'_>> {
        let (file, config) = self.config.as_ref()?;
        match config.get("text_config") {
            Some(Value::Object(text)) => Some(Settings::of_file(file, text)),
            _ => Some(Settings::of_file(file, config)),
        }
    }

    /// Says which lent tensors the checkpoint does not need.
    pub(super) fn report_unneeded(&self, embedding: bool, head: bool, report: &mut Report) {
        for (lent, needed, what) in
            [(self.lent_embedding, embedding, "embedding"), (self.lent_head, head, "head")]
        {
            if lent.is_some() && !needed {
                report.warn(format!("the lent {what} is not used: the checkpoint stores its own"));
            }
        }
    }

    /// The token embedding, at least `vocabulary` rows.
    pub(super) fn embedding(
        &self,
        vocabulary: usize,
        hidden_size: usize,
        report: &mut Report,
    ) -> Result<RowSource> {
        if let Some(lent) = self.lent_embedding {
            check_lent("embedding", lent, lent.rows >= vocabulary, vocabulary, hidden_size)?;
            return Ok(absent("embed_tokens.weight", "lent by the host", RowSource::Lent, report));
        }
        if let Some(directory) = self.tables() {
            let tensor = self.table(directory, EMBEDDING, report)?;
            let tensor = tensor.ok_or_else(|| not_found(directory, EMBEDDING))?;
            let tensor = checked(tensor, vocabulary, hidden_size)?;
            let source = RowSource::Tensor(tensor);
            return Ok(absent("embed_tokens.weight", "read from the verifier", source, report));
        }
        self.nothing("embed_tokens.weight", "embedding", report)
    }

    /// The output head: one row for each of `draft` ids, or all `vocabulary` rows to choose from.
    pub(super) fn head(
        &self,
        draft: usize,
        vocabulary: usize,
        hidden_size: usize,
        report: &mut Report,
    ) -> Result<RowSource> {
        const NAME: &str = "lm_head.weight";
        if let Some(lent) = self.lent_head {
            let reduced = lent.rows == draft && draft != vocabulary;
            let rows_fit = reduced || lent.rows >= vocabulary;
            check_lent("head", lent, rows_fit, vocabulary, hidden_size)?;
            let all = reduced || draft == vocabulary;
            let source = if all { RowSource::Lent } else { RowSource::LentRows };
            return Ok(absent(NAME, "lent by the host", source, report));
        }
        if let Some(directory) = self.tables() {
            let mut tensor = self.table(directory, HEAD, report)?;
            if tensor.is_none() {
                self.refuse_quantized_head(directory)?;
            }
            if tensor.is_none() && self.tied != Some(false) {
                tensor = self.table(directory, EMBEDDING, report)?;
            }
            let tensor = tensor.ok_or_else(|| not_found(directory, HEAD))?;
            let tensor = checked(tensor, vocabulary, hidden_size)?;
            let source = match draft == vocabulary {
                true => RowSource::Tensor(tensor),
                false => RowSource::TensorRows { tensor },
            };
            return Ok(absent(NAME, "read from the verifier", source, report));
        }
        self.nothing(NAME, "head", report)
    }

    /// Where its tables are read.
    fn tables(&self) -> Option<&Path> {
        self.directory.as_deref().filter(|_| !self.promised)
    }

    fn nothing(&self, name: &str, what: &str, report: &mut Report) -> Result<RowSource> {
        if self.promised {
            return Ok(absent(name, "has to come from the verifier", RowSource::Lent, report));
        }
        Err(Error::invalid(format!(
            "{}: tensor {name:?}: expected it in the checkpoint, or the verifier's directory, or \
             the verifier's {what} lent by the host, found none of them",
            report.directory.display()
        )))
    }

    /// A head that is stored in another form only is not one that is left out because it is tied.
    fn refuse_quantized_head(&self, directory: &Path) -> Result<()> {
        let stored = WeightFiles::locate(directory, self.map_files)?.names()?;
        let is_head = |name: &&String| {
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            is_quantized(name) && (module == "lm_head" || module.ends_with(".lm_head"))
        };
        let Some(name) = stored.iter().find(is_head) else { return Ok(()) };
        let text = format!("expected the head in F32, F16 or BF16, found {name:?}: it may be lent");
        Err(Error::unsupported(format!("{}: {text}", directory.display())))
    }

    /// The first of `names` that the verifier stores: under exactly that name, or as the last
    /// part of a name, of which the shortest is taken.
    fn table(
        &self,
        directory: &Path,
        names: &[&str],
        report: &mut Report,
    ) -> Result<Option<Tensor>> {
        let weights = WeightFiles::locate(directory, self.map_files)?;
        let stored = weights.names()?;
        for name in names {
            let part_of = |full: &&String| {
                full.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            let Some(full) = stored.iter().filter(part_of).min_by_key(|full| full.len()) else {
                continue;
            };
            let found = weights.find(full)?;
            let tensor = Tensor::of(&found)?;
            if never_filled(&found, tensor.dtype)? {
                continue;
            }
            if let Some((_, tensors)) = &mut report.verifier {
                let description: Value = describe(&found);
                if !tensors.contains(&description) {
                    tensors.push(description);
                }
            }
            return Ok(Some(tensor));
        }
        Ok(None)
    }
}

/// The directory that a checkpoint names, seen from the checkpoint or from where the host runs.
fn named(name: &str, checkpoint: &Path) -> Option<PathBuf> {
    let candidates = [checkpoint.join(name), PathBuf::from(name)];
    let holds_model = |directory: &PathBuf| {
        !name.is_empty() && directory != checkpoint && directory.join("config.json").is_file()
    };
    candidates.into_iter().find(holds_model)
}

fn absent(name: &str, instead: &str, source: RowSource, report: &mut Report) -> RowSource {
    report.absent.push((name.into(), instead.into()));
    source
}

fn not_found(directory: &Path, names: &[&str]) -> Error {
    Error::format(directory, format!("expected a tensor named …{}, found none", names[0]))
}

/// Tables may be padded: the rows from `vocabulary` on stand for no token.
fn checked(tensor: Tensor, vocabulary: usize, hidden_size: usize) -> Result<Tensor> {
    if tensor.columns != hidden_size || tensor.rows < vocabulary {
        return Err(Error::format(
            tensor.path(),
            format!(
                "tensor {:?}: expected at least {vocabulary} rows of {hidden_size}, found {} of {}",
                tensor.name(),
                tensor.rows,
                tensor.columns
            ),
        ));
    }
    Ok(tensor.first_rows(vocabulary))
}

fn check_lent(
    what: &str,
    lent: LentShape,
    rows_fit: bool,
    vocabulary: usize,
    hidden_size: usize,
) -> Result<()> {
    if rows_fit && lent.columns == hidden_size {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "lent {what}: expected {vocabulary} rows of {hidden_size}, found {} of {}",
        lent.rows, lent.columns
    )))
}
