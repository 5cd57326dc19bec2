//! The files of a checkpoint directory, and reading from them.

use super::header::{self, ByTensor, ElementType, Place};
use super::mapped::Mapping;
use crate::error::{Error, Result, Status};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Files of weights that run code when they are read.
const PICKLED: [&str; 2] = ["pytorch_model.bin.index.json", "pytorch_model.bin"];

/// Far above any real file; they bound the memory that parsing can take.
const LONGEST_CONFIG: u64 = 4 << 20;
const LONGEST_INDEX: u64 = 100_000_000;

/// A file with tensors, open for reading.
#[derive(Debug)]
pub(super) struct DataFile {
    path: PathBuf,
    file: File,
    mapping: Option<Arc<Mapping>>,
}

impl DataFile {
    fn open(path: PathBuf, map: bool) -> Result<Self> {
        let file = open_regular(&path)?;
        let mapping = map.then(|| Mapping::of(&file)).transpose();
        let mapping = mapping.map_err(|error| Error::io(&path, &error))?.map(Arc::new);
        Ok(Self { path, file, mapping })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.mapping.as_ref()
    }

    /// Fills `out` with the bytes from `offset` on.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if let Some(mapping) = &self.mapping {
            let bytes = mapping.get(offset, out.len()).ok_or_else(|| {
                let text = format!("expected {} bytes at {offset}, found the end", out.len());
                Error::format(&self.path, text)
            })?;
            out.copy_from_slice(bytes);
            return Ok(());
        }
        self.file.read_exact_at(out, offset).map_err(|error| Error::io(&self.path, &error))
    }
}

/// A tensor of any element type, as its file's header describes it.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) file: Arc<DataFile>,
}

impl StoredTensor {
    pub(super) fn element(&self) -> &ElementType {
        &self.place.element
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.place.shape
    }

    pub(super) fn file_name(&self) -> String {
        file_name(self.file.path())
    }

    /// All bytes of the tensor.
    pub(super) fn read_all(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(self.place.bytes)
            .map_err(|_| Error::out_of_memory(&self.name, self.place.bytes))?;
        bytes.resize(self.place.bytes, 0);
        self.file.read(self.place.offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Calls `look` with the bytes, piece by piece, until it says stop or they end.
    pub(super) fn scan(&self, mut look: impl FnMut(&[u8]) -> bool) -> Result<()> {
        const PIECE: usize = 1 << 16;
        let mut buffer = vec![0; PIECE.min(self.place.bytes)];
        let mut done = 0;
        while done < self.place.bytes {
            let piece = &mut buffer[..PIECE.min(self.place.bytes - done)];
            self.file.read(self.place.offset + done as u64, piece)?;
            if !look(piece) {
                break;
            }
            done += piece.len();
        }
        Ok(())
    }

    /// An error about this tensor's file.
    pub(super) fn wrong(&self, text: impl std::fmt::Display) -> Error {
        Error::format(self.file.path(), format!("tensor {:?}: {text}", self.name))
    }
}

/// The weight files of a directory: one file, or shards that an index lists.
#[derive(Debug)]
pub(super) struct WeightFiles {
    directory: PathBuf,
    index: Option<BTreeMap<String, String>>,
    map: bool,
}

impl WeightFiles {
    /// Finds the weights of `directory`; where there is an index, it decides.
    pub(super) fn locate(directory: &Path, map: bool) -> Result<Self> {
        let directory = directory.to_path_buf();
        let index_path = directory.join(INDEX_FILE);
        if exists(&index_path)? {
            let index = Some(read_index(&index_path)?);
            return Ok(Self { directory, index, map });
        }
        if exists(&directory.join(SINGLE_FILE))? {
            return Ok(Self { directory, index: None, map });
        }
        let mut found = "neither".to_owned();
        for pickled in PICKLED {
            if exists(&directory.join(pickled))? {
                found = format!("only {pickled}, which has to be converted");
            }
        }
        let text = format!("expected {SINGLE_FILE} or {INDEX_FILE}, found {found}");
        Err(Error::new(Status::Io, format!("{}: {text}", directory.display())))
    }

    /// Opens every file; returns the tensors by name.
    pub(super) fn open_all(&self) -> Result<BTreeMap<String, StoredTensor>> {
        let Some(index) = &self.index else { return self.open(SINGLE_FILE) };
        let mut tensors = BTreeMap::<String, StoredTensor>::new();
        for file in index.values().collect::<BTreeSet<_>>() {
            for (name, tensor) in self.open(file)? {
                if let Some(other) = tensors.insert(name, tensor) {
                    let again = &tensors[&other.name];
                    return Err(again.wrong(format!("also stored in {}", other.file_name())));
                }
            }
        }
        for (name, file) in index {
            if tensors.get(name).is_none_or(|tensor| tensor.file_name() != *file) {
                return Err(self.not_in_shard(name, file));
            }
        }
        Ok(tensors)
    }

    /// The names of all tensors; only a single file is opened for it.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        match &self.index {
            Some(index) => Ok(index.keys().cloned().collect()),
            None => Ok(self.open(SINGLE_FILE)?.into_keys().collect()),
        }
    }

    /// Opens the one file that holds `name`, which [`Self::names`] listed.
    pub(super) fn find(&self, name: &str) -> Result<StoredTensor> {
        let file = match &self.index {
            Some(index) => index.get(name).map_or(SINGLE_FILE, String::as_str),
            None => SINGLE_FILE,
        };
        self.open(file)?.remove(name).ok_or_else(|| self.not_in_shard(name, file))
    }

    fn not_in_shard(&self, name: &str, file: &str) -> Error {
        let text = format!("expected tensor {name:?} in {file}, found it not there");
        Error::format(&self.directory.join(INDEX_FILE), text)
    }

    fn open(&self, file: &str) -> Result<BTreeMap<String, StoredTensor>> {
        let path = self.directory.join(file);
        let file = Arc::new(DataFile::open(path, self.map)?);
        let places = header::read(file.path(), &file.file)?;
        let tensors = places.into_iter().map(|(name, place)| {
            let tensor = StoredTensor { name: name.clone(), place, file: file.clone() };
            (name, tensor)
        });
        Ok(tensors.collect())
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: ByTensor<String>,
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = read_limited(path, LONGEST_INDEX)?;
    let Index { weight_map: ByTensor(files) } =
        serde_json::from_slice(&text).map_err(|error| Error::format(path, error))?;
    for (name, file) in &files {
        let mut parts = Path::new(file).components();
        let plain = matches!(parts.next(), Some(Component::Normal(part)) if part == file.as_str());
        if !plain || file.contains(['\\', '\0']) || !file.ends_with(".safetensors") {
            let text = format!(
                "weight_map.{name}: expected the name of a safetensors file beside the index, found {file:?}"
            );
            return Err(Error::format(path, text));
        }
    }
    Ok(files)
}

/// Reads the JSON object in `directory/config.json`.
pub(super) fn read_config(directory: &Path) -> Result<(PathBuf, Map<String, Value>)> {
    let kind = fs::metadata(directory).map_err(|error| Error::io(directory, &error))?;
    if !kind.is_dir() {
        let text = format!("{}: expected a directory, found a file", directory.display());
        return Err(Error::new(Status::Io, text));
    }
    let path = directory.join("config.json");
    let text = read_limited(&path, LONGEST_CONFIG)?;
    match serde_json::from_slice(&text).map_err(|error| Error::format(&path, error))? {
        Value::Object(object) => Ok((path, object)),
        other => {
            let text = format!("expected an object, found {}", super::config::found(&other));
            Err(Error::format(&path, text))
        }
    }
}

/// The last component of `path`, for messages.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|error| Error::io(path, &error))
}

/// Opens a file for reading, and nothing else: opening a pipe would block.
fn open_regular(path: &Path) -> Result<File> {
    let io = |error: std::io::Error| Error::io(path, &error);
    if !fs::metadata(path).map_err(io)?.is_file() {
        let text = format!("{}: expected a regular file, found something else", path.display());
        return Err(Error::new(Status::Io, text));
    }
    File::open(path).map_err(io)
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = open_regular(path)?.take(limit + 1);
    file.read_to_end(&mut bytes).map_err(|error| Error::io(path, &error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::format(path, format!("expected at most {limit} bytes, found more")));
    }
    Ok(bytes)
}
