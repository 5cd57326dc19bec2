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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A directory of one test, gone with it.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new(name: &str) -> Self {
            let directory = format!("libspeculators-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(directory);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn key(text: &str) -> Key {
        Key::of([text.as_bytes()])
    }

    #[test]
    fn an_image_is_found_under_its_key_and_no_other() {
        let scratch = Scratch::new("found");
        let cache = Cache::at(scratch.path().join("made/when/needed"));
        assert_eq!(cache.get(&key("a")), None);
        cache.put(&key("a"), b"image");
        cache.put(&key("empty"), b"");
        assert_eq!(cache.get(&key("a")).as_deref(), Some(&b"image"[..]));
        assert_eq!(cache.get(&key("empty")).as_deref(), Some(&b""[..]));
        assert_eq!(cache.get(&key("b")), None);
        // What is found is also what another process finds.
        assert_eq!(cache.clone().get(&key("a")).as_deref(), Some(&b"image"[..]));
    }

    #[test]
    fn lists_of_parts_have_the_same_key_only_if_they_are_the_same() {
        let of = |parts: &[&str]| Key::of(parts.iter().map(|part| part.as_bytes())).digest;
        let all =
            [of(&[]), of(&[""]), of(&["ab"]), of(&["a", "b"]), of(&["", "ab"]), of(&["ab", ""])];
        for (index, left) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|right| right != left), "{index}");
        }
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
    }

    #[test]
    fn an_entry_with_any_bit_changed_or_any_end_missing_is_none_and_can_be_written_anew() {
        let scratch = Scratch::new("damaged");
        let cache = Cache::at(scratch.path().to_owned());
        let path = scratch.path().join(key("a").file_name());
        cache.put(&key("a"), b"some image");
        let sound = fs::read(&path).unwrap();
        for place in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[place] ^= 1 << (place % 8);
            fs::write(&path, &damaged).unwrap();
            assert_eq!(cache.get(&key("a")), None, "byte {place}");
            fs::write(&path, &sound[..place]).unwrap();
            assert_eq!(cache.get(&key("a")), None, "{place} bytes");
        }
        fs::write(&path, [&sound[..], b"more"].concat()).unwrap();
        assert_eq!(cache.get(&key("a")), None, "more bytes");
        cache.put(&key("a"), b"some image");
        assert_eq!(fs::read(&path).unwrap(), sound);
    }

    #[test]
    fn an_entry_under_the_name_of_another_is_none() {
        let scratch = Scratch::new("renamed");
        let cache = Cache::at(scratch.path().to_owned());
        cache.put(&key("a"), b"image of a");
        let path = |text| scratch.path().join(key(text).file_name());
        fs::rename(path("a"), path("b")).unwrap();
        assert_eq!(cache.get(&key("b")), None);
    }

    #[test]
    fn readers_and_writers_at_the_same_time_see_whole_images_or_none() {
        let scratch = Scratch::new("concurrent");
        let image: Vec<u8> = (0..100_000_u32).map(|place| place as u8).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let cache = Cache::at(scratch.path().to_owned());
                    for _ in 0..20 {
                        assert!(cache.get(&key("a")).is_none_or(|found| found == image));
                        cache.put(&key("a"), &image);
                        assert_eq!(cache.get(&key("a")).as_deref(), Some(&image[..]));
                    }
                });
            }
        });
        let left = fs::read_dir(scratch.path()).unwrap().count();
        assert_eq!(left, 1, "drafts are left behind");
    }

    #[test]
    fn where_nothing_can_be_written_nothing_is_found_and_nothing_fails() {
        let scratch = Scratch::new("unwritable");
        let file = scratch.path().join("file");
        fs::write(&file, b"not a directory").unwrap();
        let cache = Cache::at(file.join("below"));
        cache.put(&key("a"), b"image");
        assert_eq!(cache.get(&key("a")), None);
        assert_eq!(fs::read(&file).unwrap(), b"not a directory");
        // A directory in the place of an entry: what was written beside it goes away again.
        let cache = Cache::at(scratch.path().join("cache"));
        let entry = scratch.path().join("cache").join(key("a").file_name());
        fs::create_dir_all(entry.join("occupied")).unwrap();
        cache.put(&key("a"), b"image");
        assert_eq!(cache.get(&key("a")), None);
        assert_eq!(fs::read_dir(scratch.path().join("cache")).unwrap().count(), 1);
    }

    #[test]
    fn the_cache_of_a_user_is_where_the_environment_says() {
        let of = |cache: Option<&str>, home: Option<&str>| {
            Cache::of_environment(cache.map(OsString::from), home.map(OsString::from))
                .map(|cache| cache.directory)
        };
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(of(Some("/c"), Some("/h")), path("/c/libspeculators"));
        assert_eq!(of(None, Some("/h")), path("/h/.cache/libspeculators"));
        assert_eq!(of(Some("relative"), Some("/h")), path("/h/.cache/libspeculators"));
        assert_eq!(of(Some(""), Some("relative")), None);
        assert_eq!(of(None, None), None);
    }
}
