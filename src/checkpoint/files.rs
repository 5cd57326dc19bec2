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
    pub(super) fn open(path: PathBuf, map: bool) -> Result<Self> {
        let file = open_regular(&path)?;
        let mapping = map.then(|| Mapping::of(&file)).transpose();
        let mapping = mapping.map_err(|error| Error::io(&path, &error))?.map(Arc::new);
        Ok(Self { path, file, mapping })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> Result<u64> {
        let metadata = self.file.metadata().map_err(|error| Error::io(&self.path, &error))?;
        Ok(metadata.len())
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

/// The bytes of a tensor: pieces of files, one behind the other. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    pieces: Arc<[Piece]>,
    len: usize,
}

/// Bytes that lie together in a file.
#[derive(Clone, Debug)]
struct Piece {
    file: Arc<DataFile>,
    offset: u64,
    len: usize,
    /// Where they begin among the bytes of the tensor.
    first: usize,
}

impl Bytes {
    fn of(pieces: impl Iterator<Item = Piece>) -> Self {
        let mut len = 0;
        let pieces = pieces.map(|piece| {
            let first = len;
            len += piece.len;
            Piece { first, ..piece }
        });
        let pieces = pieces.collect();
        Self { pieces, len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The file that holds the first of them.
    pub(super) fn file(&self) -> &Arc<DataFile> {
        // Tensors come from files, also those without elements.
        &self.pieces[0].file
    }

    /// The file and the place there, where all bytes lie together.
    pub(super) fn together(&self) -> Option<(&DataFile, u64)> {
        match &*self.pieces {
            [piece] => Some((&piece.file, piece.offset)),
            _ => None,
        }
    }

    /// The bytes from `first` on, `len` of them, which must be there.
    pub(super) fn slice(&self, first: usize, len: usize) -> Self {
        assert!(first + len <= self.len, "bytes that are there");
        let from = self.piece_at(first);
        let pieces = self.pieces[from..].iter().enumerate().map_while(move |(index, piece)| {
            let begin = first.max(piece.first);
            let end = (first + len).min(piece.first + piece.len);
            // The first one stays, so that there is a file.
            let is_wanted = index == 0 || begin < end;
            let offset = piece.offset + (begin - piece.first) as u64;
            is_wanted.then(|| Piece { offset, len: end.saturating_sub(begin), ..piece.clone() })
        });
        Self::of(pieces)
    }

    /// These bytes and those of others, one behind the other.
    pub(super) fn joined<'b>(parts: impl IntoIterator<Item = &'b Self>) -> Self {
        Self::of(parts.into_iter().flat_map(|part| part.pieces.iter().cloned()))
    }

    /// Fills `out` with the bytes from `first` on.
    pub(super) fn read(&self, first: usize, mut out: &mut [u8]) -> Result<()> {
        let (mut index, mut place) = (self.piece_at(first), first);
        while !out.is_empty() {
            let piece = &self.pieces[index];
            let inside = place - piece.first;
            let (part, rest) = out.split_at_mut((piece.len - inside).min(out.len()));
            piece.file.read(piece.offset + inside as u64, part)?;
            (index, place, out) = (index + 1, place + part.len(), rest);
        }
        Ok(())
    }

    /// The piece that holds a byte.
    fn piece_at(&self, byte: usize) -> usize {
        self.pieces.partition_point(|piece| piece.first <= byte).saturating_sub(1)
    }
}

/// A tensor of any element type, as its file's header describes it.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    pub(super) bytes: Bytes,
    element: ElementType,
    shape: Vec<usize>,
}

impl StoredTensor {
    pub(super) fn element(&self) -> &ElementType {
        &self.element
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn file_name(&self) -> String {
        file_name(self.path())
    }

    /// The file that holds it, or the beginning of it.
    pub(super) fn path(&self) -> &Path {
        self.bytes.file().path()
    }

    /// The same tensor under another name.
    pub(super) fn named(&self, name: &str) -> Self {
        Self { name: name.into(), ..self.clone() }
    }

    /// As a tensor of these sizes, which must have as many elements.
    pub(super) fn shaped(self, shape: &[usize]) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            self.shape.iter().product::<usize>(),
            "as many elements"
        );
        Self { shape: shape.into(), ..self }
    }

    /// Some of the rows of a matrix or elements of a vector, which must be there.
    pub(super) fn rows(&self, first: usize, rows: usize) -> Self {
        let row_bytes = self.bytes.len() / self.shape[0].max(1);
        let bytes = self.bytes.slice(first * row_bytes, rows * row_bytes);
        let mut shape = self.shape.clone();
        shape[0] = rows;
        Self { bytes, shape, name: self.name.clone(), element: self.element.clone() }
    }

    /// The first columns of a matrix, which must be there.
    pub(super) fn first_columns(&self, columns: usize) -> Self {
        let [rows, all] = *self.shape else { panic!("a matrix") };
        let row_bytes = self.bytes.len() / rows.max(1);
        let len = row_bytes / all.max(1) * columns;
        let kept: Vec<_> = (0..rows).map(|row| self.bytes.slice(row * row_bytes, len)).collect();
        let shape = vec![rows, columns];
        Self {
            bytes: Bytes::joined(&kept),
            shape,
            name: self.name.clone(),
            element: self.element.clone(),
        }
    }

    /// Tensors one behind the other, as one with these sizes. They must have as many elements of one type.
    pub(super) fn joined(name: &str, shape: &[usize], parts: &[&Self]) -> Self {
        let bytes = Bytes::joined(parts.iter().map(|part| &part.bytes));
        Self { name: name.into(), bytes, element: parts[0].element.clone(), shape: shape.into() }
    }

    /// All bytes of the tensor.
    pub(super) fn read_all(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let len = self.bytes.len();
        bytes.try_reserve_exact(len).map_err(|_| Error::out_of_memory(&self.name, len))?;
        bytes.resize(len, 0);
        self.bytes.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Calls `look` with the bytes, piece by piece, until it says stop or they end.
    pub(super) fn scan(&self, mut look: impl FnMut(&[u8]) -> bool) -> Result<()> {
        const PIECE: usize = 1 << 16;
        let len = self.bytes.len();
        let mut buffer = vec![0; PIECE.min(len)];
        let mut done = 0;
        while done < len {
            let piece = &mut buffer[..PIECE.min(len - done)];
            self.bytes.read(done, piece)?;
            if !look(piece) {
                break;
            }
            done += piece.len();
        }
        Ok(())
    }

    /// An error about this tensor's file.
    pub(super) fn wrong(&self, text: impl std::fmt::Display) -> Error {
        Error::format(self.path(), format!("tensor {:?}: {text}", self.name))
    }
}

/// How the names of an MTP layer begin inside of its model.
pub(super) const CARRIED_LAYER: &str = "mtp.";

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
        self.open_those_with(|_| true)
    }

    /// Opens every file; of a model that carries an MTP layer only those that hold a part of it, as the others
    /// may be large and need not be there.
    pub(super) fn open_needed(&self) -> Result<BTreeMap<String, StoredTensor>> {
        let is_of_layer = |name: &str| name.starts_with(CARRIED_LAYER);
        match &self.index {
            Some(index) if index.keys().any(|name| is_of_layer(name)) => {
                self.open_those_with(is_of_layer)
            }
            _ => self.open_all(),
        }
    }

    /// Opens the files that hold a tensor that is wanted.
    fn open_those_with(
        &self,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, StoredTensor>> {
        let Some(index) = &self.index else { return self.open(SINGLE_FILE) };
        let wanted = index.iter().filter(|(name, _)| is_wanted(name));
        let files: BTreeSet<&String> = wanted.map(|(_, file)| file).collect();
        let mut tensors = BTreeMap::<String, StoredTensor>::new();
        for &file in &files {
            for (name, tensor) in self.open(file)? {
                if let Some(other) = tensors.insert(name, tensor) {
                    let again = &tensors[&other.name];
                    return Err(again.wrong(format!("also stored in {}", other.file_name())));
                }
            }
        }
        for (name, file) in index.iter().filter(|(_, file)| files.contains(file)) {
            if tensors.get(name).is_none_or(|tensor| tensor.file_name() != *file) {
                return Err(self.not_in_shard(name, file));
            }
        }
        Ok(tensors)
    }

    /// The name of the file, if it is a single one.
    pub(super) fn single(&self) -> Option<&'static str> {
        self.index.is_none().then_some(SINGLE_FILE)
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
            let Place { element, shape, offset, bytes: len } = place;
            let bytes =
                Bytes::of([Piece { file: file.clone(), offset, len, first: 0 }].into_iter());
            let tensor = StoredTensor { name: name.clone(), bytes, element, shape };
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
