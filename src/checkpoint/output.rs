//! Directories that appear whole or not at all: their files are written without names, where the system can
//! do so, and the directory is given its own name when all is there. A process that is killed leaves nothing.

use super::files::{DataFile, StoredTensor};
use crate::error::{Error, Result, Status};
use serde_json::{Map, Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes that are read and written at a time: what a conversion needs of memory.
const PIECE: usize = 1 << 20;

/// Files without a name that are open at a time. Of more, which copies of whole models have, the others have names
/// in a directory beside the output.
const MOST_UNNAMED: usize = 128;

/// Tells the host how many bytes of all are written; `false` calls the work off.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64) -> bool;

/// What is still to be written, as far as the host wants to know it.
pub(super) struct Meter<'p> {
    progress: Progress<'p>,
    done: u64,
    total: u64,
}

impl<'p> Meter<'p> {
    pub(super) fn new(progress: Progress<'p>, total: u64) -> Self {
        Self { progress, done: 0, total }
    }

    fn add(&mut self, bytes: usize) -> Result<()> {
        self.done += bytes as u64;
        if (self.progress)(self.done, self.total) {
            return Ok(());
        }
        let text = format!("called off by the host after {} of {} bytes", self.done, self.total);
        Err(Error::new(Status::Cancelled, text))
    }
}

/// A directory that is being written.
pub(super) struct Output {
    /// What it is going to be called.
    path: PathBuf,
    /// The nearest directory above that is there already, and so on the same file system.
    above: PathBuf,
    /// Its files: those without a name are kept open until they get one.
    files: Vec<(PathBuf, Option<File>)>,
    /// Where files have names from the beginning, because they must: removed if nothing comes of them.
    staging: Option<Staging>,
}

/// A directory that is removed unless it is renamed.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        // Renamed or not, nothing can be done about an error.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Output {
    /// A directory that is not there yet, or empty.
    pub(super) fn new(path: &Path) -> Result<Self> {
        check_free(path)?;
        // Where a link leads is what is replaced.
        let path = fs::canonicalize(path).or_else(|_| std::path::absolute(path));
        let path = path.map_err(|error| Error::invalid(format!("output: {error}")))?;
        check_replaceable(&path)?;
        let mut above = path.parent();
        while let Some(directory) = above.filter(|directory| !directory.exists()) {
            above = directory.parent();
        }
        let above =
            above.ok_or_else(|| Error::invalid("output: expected a new directory, found /"))?;
        let io = |error: std::io::Error| Error::io(above, &error);
        if !fs::metadata(above).map_err(io)?.is_dir() {
            let text = format!("{}: expected a directory, found a file", above.display());
            return Err(Error::new(Status::Io, text));
        }
        let above = above.to_path_buf();
        Ok(Self { path, above, files: Vec::new(), staging: None })
    }

    /// A new file in the directory.
    pub(super) fn file(&mut self, name: &Path) -> Result<Writer> {
        // Only so many files can be open at a time.
        let has_room = self.staging.is_none() && self.files.len() < MOST_UNNAMED;
        let (file, kept) = match has_room.then(|| unnamed(&self.above)).flatten() {
            None => (self.named(name)?, None),
            Some(file) => {
                let io = |error: std::io::Error| Error::io(&self.path.join(name), &error);
                let kept = file.try_clone().map_err(io)?;
                (file, Some(kept))
            }
        };
        self.files.push((name.into(), kept));
        Ok(Writer { file, path: self.path.join(name) })
    }

    /// A file that has a name from the beginning.
    fn named(&mut self, name: &Path) -> Result<File> {
        let directory = self.staging()?.join(name);
        let parent = directory.parent().unwrap_or(&directory);
        let made = fs::create_dir_all(parent).and_then(|()| File::create_new(&directory));
        made.map_err(|error| Error::io(&directory, &error))
    }

    /// The directory that becomes the one that is wanted.
    fn staging(&mut self) -> Result<PathBuf> {
        if let Some(Staging(path)) = &self.staging {
            return Ok(path.clone());
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".partial-{}", std::process::id()));
        let path = self.above.join(name);
        fs::create_dir(&path).map_err(|error| Error::io(&path, &error))?;
        self.staging = Some(Staging(path.clone()));
        Ok(path)
    }

    /// Makes it appear. All files are on the disk before that.
    pub(super) fn commit(mut self) -> Result<()> {
        let staging = self.staging()?;
        for (name, file) in &self.files {
            let to = staging.join(name);
            let parent = to.parent().unwrap_or(&staging);
            let linked = match file {
                Some(file) => file
                    .sync_all()
                    .and_then(|()| fs::create_dir_all(parent))
                    .and_then(|()| give_name(file, &to)),
                None => File::open(&to).and_then(|file| file.sync_all()),
            };
            linked.map_err(|error| Error::io(&self.path.join(name), &error))?;
        }
        let parent = self.path.parent().unwrap_or(&self.above).to_path_buf();
        let made = fs::create_dir_all(&parent).and_then(|()| fs::rename(&staging, &self.path));
        made.map_err(|error| Error::io(&self.path, &error))?;
        // The rename is done; that it outlasts a loss of power is as much as can be tried.
        let _ = File::open(&parent).and_then(|directory| directory.sync_all());
        Ok(())
    }
}

fn check_free(path: &Path) -> Result<()> {
    let mut entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return match fs::symlink_metadata(path) {
                Err(_) => Ok(()),
                Ok(_) => Err(Error::invalid(format!(
                    "{}: expected a new or empty directory, found a link that leads nowhere",
                    path.display()
                ))),
            };
        }
        Err(error) => return Err(Error::io(path, &error)),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    let path = path.display();
    Err(Error::invalid(format!("{path}: expected a new or empty directory, found files in it")))
}

/// An empty directory is replaced by the one that is written, which is not possible where a file system begins.
/// It is better known before everything is written.
fn check_replaceable(path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    let (Some(own), Some(above)) = (device(path), path.parent().and_then(device)) else {
        return Ok(());
    };
    if own == above {
        return Ok(());
    }
    let path = path.display();
    Err(Error::invalid(format!(
        "{path}: expected a directory that can be replaced, found a mount point; name a new one in it"
    )))
}

/// A file without a name in a directory, where the system has such.
fn unnamed(directory: &Path) -> Option<File> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o666).custom_flags(libc::O_TMPFILE);
        options.open(directory).ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (directory, OpenOptions::new());
        None
    }
}

/// Gives an unnamed file a name.
fn give_name(file: &File, path: &Path) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let directory = rustix::fs::CWD;
    let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    Ok(rustix::fs::linkat(directory, open, directory, path, flags)?)
}

/// A file that is being written.
pub(super) struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    fn write(&mut self, bytes: &[u8], meter: &mut Meter<'_>) -> Result<()> {
        self.write_all(bytes)?;
        meter.add(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io(&self.path, &error))
    }

    /// Writes the bytes of a tensor, a piece at a time.
    fn tensor(&mut self, tensor: &StoredTensor, meter: &mut Meter<'_>) -> Result<()> {
        let mut buffer = vec![0; PIECE.min(tensor.bytes.len())];
        let mut done = 0;
        while done < tensor.bytes.len() {
            let piece = &mut buffer[..PIECE.min(tensor.bytes.len() - done)];
            tensor.bytes.read(done, piece)?;
            self.write(piece, meter)?;
            done += piece.len();
        }
        Ok(())
    }

    /// Copies a file.
    pub(super) fn copy(&mut self, from: &DataFile, meter: &mut Meter<'_>) -> Result<()> {
        let len = from.len()?;
        let mut buffer = vec![0; PIECE];
        let mut done = 0;
        while done < len {
            let piece = &mut buffer[..PIECE.min((len - done) as usize)];
            from.read(done, piece)?;
            self.write(piece, meter)?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes a JSON document as others write them.
    pub(super) fn json(&mut self, value: &Value) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value)
            .map_err(|error| Error::internal(format!("JSON: {error}")))?;
        text.push('\n');
        self.write_all(text.as_bytes())
    }
}

/// A safetensors file with some tensors, the widest elements first, as all writers of the format order them.
pub(super) struct TensorFile<'t> {
    header: Vec<u8>,
    tensors: Vec<&'t StoredTensor>,
}

impl<'t> TensorFile<'t> {
    pub(super) fn new(
        tensors: impl IntoIterator<Item = &'t StoredTensor>,
        metadata: &Map<String, Value>,
    ) -> Self {
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        let bits = |tensor: &StoredTensor| tensor.element().bits().unwrap_or(0);
        tensors.sort_by(|a, b| bits(b).cmp(&bits(a)).then_with(|| a.name.cmp(&b.name)));
        let mut members = Map::new();
        if !metadata.is_empty() {
            members.insert("__metadata__".into(), metadata.clone().into());
        }
        let mut end = 0;
        for tensor in &tensors {
            let first = end;
            end += tensor.bytes.len();
            let (dtype, shape) = (tensor.element().name(), tensor.shape());
            let member = json!({"dtype": dtype, "shape": shape, "data_offsets": [first, end]});
            members.insert(tensor.name.clone(), member);
        }
        let mut text = Value::from(members).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.append(&mut text);
        Self { header, tensors }
    }

    /// Its length.
    pub(super) fn bytes(&self) -> u64 {
        let tensors = self.tensors.iter().map(|tensor| tensor.bytes.len() as u64);
        self.header.len() as u64 + tensors.sum::<u64>()
    }

    pub(super) fn write(&self, to: &mut Writer, meter: &mut Meter<'_>) -> Result<()> {
        to.write(&self.header, meter)?;
        self.tensors.iter().try_for_each(|tensor| to.tensor(tensor, meter))
    }
}
