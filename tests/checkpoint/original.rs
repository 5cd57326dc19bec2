//! What the original converter was given and what it made of it.

use crate::fixture::{Directory, Stored, Tensors, write_tensors};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

pub fn json_in(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

pub fn tensors_in(path: &Path) -> Tensors {
    let bytes = fs::read(path).expect("a file");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors").tensors();
    let tensors = tensors.into_iter().map(|(name, view)| {
        let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
        (name, Stored { dtype: view.dtype(), shape, bytes })
    });
    tensors.collect()
}

/// An input of the original converter with what it made of it.
pub struct Original {
    pub name: String,
    pub directory: PathBuf,
    pub about: Value,
    /// The reference data.
    root: PathBuf,
}

impl Original {
    /// All in the reference data.
    pub fn all(root: &Path) -> Vec<Self> {
        let entries = fs::read_dir(root.join("converters")).expect("the converters");
        let mut all: Vec<_> = entries
            .map(|entry| {
                let directory = entry.expect("an entry").path();
                let name = directory.file_name().expect("a name").to_string_lossy().into_owned();
                let about = json_in(&directory.join("about.json"));
                Self { name, about, directory, root: root.into() }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The tensors of the input: stored there, or those of another checkpoint under other names.
    pub fn tensors(&self) -> Option<Tensors> {
        let own = self.directory.join("input/model.safetensors");
        if own.exists() {
            return Some(tensors_in(&own));
        }
        let text = self.about["input_weights"].as_str().expect("where they come from");
        let words = text.split([' ', ',']);
        let path = words.into_iter().find(|word| word.ends_with("model.safetensors"))?;
        let path = self.root.join(path);
        let stored = match path.exists() {
            true => tensors_in(&path),
            false => Self::all(&self.root)
                .iter()
                .find(|other| path.starts_with(&other.directory))?
                .tensors()?,
        };
        let listed = self.about["input_tensors"].as_object().expect("the tensors");
        let renamed = stored.into_iter().map(|(name, stored)| {
            let research = name.replacen("layers.0.", "midlayer.", 1);
            (if listed.contains_key(&research) { research } else { name }, stored)
        });
        Some(renamed.filter(|(name, _)| listed.contains_key(name)).collect())
    }

    /// What followed an option on the command line.
    pub fn option(&self, name: &str) -> Option<&str> {
        let words = self.about["command"].as_array().expect("a command");
        let place = words.iter().position(|word| word == name)?;
        words[place + 1].as_str()
    }

    /// The whole input, if its tensors are in the reference data.
    pub fn write_input(&self) -> Option<Directory> {
        let tensors = self.tensors()?;
        let input = Directory::new();
        fs::copy(self.directory.join("input/config.json"), input.join("config.json"))
            .expect("a copy");
        write_tensors(&input.join("model.safetensors"), &tensors);
        Some(input)
    }
}
