//! Compiled kernels on disk. Any number of processes may use a directory at the same time: an entry
//! appears whole or not at all, and one that is damaged is no entry.

use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The folder below the user's cache directory.
const FOLDER: &str = "libspeculators";

/// What entries begin with, followed by the length of the image and by a checksum.
const MAGIC: [u8; 8] = *b"speckrn1";
const LENGTH_END: usize = MAGIC.len() + size_of::<u64>();
const HEADER_BYTES: usize = LENGTH_END + DIGEST_BYTES;
const DIGEST_BYTES: usize = 32;

/// What an image is made from: two of them are alike only if all of their parts are.
#[derive(Clone, Debug)]
pub struct Key {
    digest: [u8; DIGEST_BYTES],
}

impl Key {
    /// The key of an image made from these parts.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // With its length, so that no two lists of parts run together to the same bytes.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self { digest: hash.finalize().into() }
    }

    /// The name of the entry's file.
    fn file_name(&self) -> String {
        let hexadecimal: String = self.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hexadecimal}.image")
    }

    /// The checksum of an image under this key.
    fn checksum(&self, image: &[u8]) -> [u8; DIGEST_BYTES] {
        Sha256::new().chain_update(self.digest).chain_update(image).finalize().into()
    }
}

/// A directory of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The cache in a directory, which is made as soon as there is something to keep.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The cache in the user's own directory, if there is one.
    pub fn of_user() -> Option<Self> {
        Self::of_environment(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
    }

    fn of_environment(cache: Option<OsString>, home: Option<OsString>) -> Option<Self> {
        // Relative paths are to be ignored, as they would mean another place for every process.
        let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        let directory =
            cache.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
        Some(Self::at(directory.join(FOLDER)))
    }

    /// The image under a key, if there is a sound one.
    pub fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let mut entry = fs::read(self.directory.join(key.file_name())).ok()?;
        let (header, image) = entry.split_at_checked(HEADER_BYTES)?;
        let (magic, header) = header.split_at(MAGIC.len());
        let (length, checksum) = header.split_at(size_of::<u64>());
        let sound = magic == MAGIC
            && length == (image.len() as u64).to_le_bytes()
            && checksum == key.checksum(image);
        sound.then(|| entry.split_off(HEADER_BYTES))
    }

    /// Keeps an image under a key. Where that fails, the next process compiles again: it costs time
    /// and nothing else.
    pub fn put(&self, key: &Key, image: &[u8]) {
        let _ = self.write(&self.directory.join(key.file_name()), key, image);
    }

    /// Writes an entry beside its place and moves it there at once.
    fn write(&self, path: &Path, key: &Key, image: &[u8]) -> std::io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(&self.directory)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let draft = path.with_extension(format!("{}-{number}", std::process::id()));
        let written = (|| {
            let mut file = fs::File::create_new(&draft)?;
            file.write_all(&MAGIC)?;
            file.write_all(&(image.len() as u64).to_le_bytes())?;
            file.write_all(&key.checksum(image))?;
            file.write_all(image)?;
            file.flush()?;
            fs::rename(&draft, path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }
}
