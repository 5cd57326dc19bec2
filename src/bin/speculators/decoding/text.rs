//! Text and tokens of a target.

use serde_json::Value;
use speculators::error::{Error, Result, Status};
use std::fs;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// The tokenizer of a model, and the tokens that end its texts.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    file: PathBuf,
    stop_tokens: Vec<i32>,
    first_token: Option<i32>,
}

impl Vocabulary {
    /// Reads `tokenizer.json` and the stop tokens of a model's directory. Texts may have to begin with the
    /// token that the configuration names, whether the tokenizer puts it there or not.
    pub fn open(directory: &Path, has_first_token: bool) -> Result<Self> {
        let file = directory.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|error| {
            let text = format!("{}: expected a tokenizer, found {error}", file.display());
            Error::new(if file.exists() { Status::Format } else { Status::Io }, text)
        })?;
        // What training has cut and filled texts to is nothing that prompts are cut and filled to.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| Error::format(&file, error))?;
        let stop_tokens = listed(directory, "eos_token_id")?;
        let first_token = listed(directory, "bos_token_id")?.first().copied();
        if has_first_token && first_token.is_none() {
            return Err(Error::invalid(format!(
                "{}: expected a bos_token_id in config.json or generation_config.json, found none",
                directory.display()
            )));
        }
        let first_token = first_token.filter(|_| has_first_token);
        Ok(Self { tokenizer, file, stop_tokens, first_token })
    }

    /// The tokens that end texts.
    pub fn stop_tokens(&self) -> &[i32] {
        &self.stop_tokens
    }

    /// The tokens of a prompt, those that begin every text among them.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let encoding = self.tokenizer.encode(text, true).map_err(|error| self.wrong(&error))?;
        let tokens = encoding.get_ids().iter().map(|&token| token as i32);
        let is_missing = |first: &i32| tokens.clone().next() != Some(*first);
        let first = self.first_token.filter(is_missing);
        Ok(first.into_iter().chain(tokens.clone()).collect())
    }

    /// What tokens that come one after the other add to a text behind a prompt. A character may take several:
    /// it comes with the last of them.
    pub fn stream(&self, prompt: &[i32]) -> impl FnMut(&[i32]) -> Result<String> {
        let mut stream = self.tokenizer.decode_stream(true);
        let mut push = move |tokens: &[i32]| {
            let mut text = String::new();
            for token in tokens.iter().filter_map(|&token| u32::try_from(token).ok()) {
                let piece = stream.step(token).or_else(|_| {
                    // Bytes that are no character have changed how those before them read: it goes on with a
                    // new text.
                    stream = self.tokenizer.decode_stream(true);
                    stream.step(token).map_err(|error| self.wrong(&error))
                })?;
                text.push_str(&piece.unwrap_or_default());
            }
            Ok(text)
        };
        // How a token reads depends on whether it begins the text.
        let begun: Result<String> = push(prompt);
        let mut begun = begun.map(drop);
        move |tokens| {
            std::mem::replace(&mut begun, Ok(()))?;
            push(tokens)
        }
    }

    fn wrong(&self, error: &dyn std::fmt::Display) -> Error {
        Error::format(&self.file, error)
    }
}

/// The tokens that a setting of `generation_config.json` names, or else one of `config.json`.
fn listed(directory: &Path, key: &str) -> Result<Vec<i32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = directory.join(name);
        let Ok(text) = fs::read(&path) else { continue };
        let config: Value =
            serde_json::from_slice(&text).map_err(|error| Error::format(&path, error))?;
        let tokens = match &config[key] {
            Value::Null => continue,
            Value::Array(tokens) => tokens.clone(),
            token => vec![token.clone()],
        };
        let token = |token: &Value| token.as_i64().and_then(|token| i32::try_from(token).ok());
        return tokens.iter().map(token).collect::<Option<_>>().ok_or_else(|| {
            Error::format(&path, format!("{key}: expected tokens, found {}", config[key]))
        });
    }
    Ok(Vec::new())
}
