//! Files mapped into memory, so that weights are used where the page cache holds them.

use std::fs::File;
use std::io;

/// A whole file, mapped read-only.
#[derive(Debug)]
pub(super) struct Mapping {
    map: memmap2::Mmap,
}

impl Mapping {
    /// Maps `file` as long as it is now.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        // SAFETY: memmap2 asks that nobody changes or shortens the file while it is mapped. Hosts
        // that ask for mapped files promise this (`Options::map_files`); without that request no
        // file is mapped.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self { map })
    }

    /// The `bytes` bytes from `offset` on; `None` where they are not all inside.
    pub(super) fn get(&self, offset: u64, bytes: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.map.get(start..start.checked_add(bytes)?)
    }
}
