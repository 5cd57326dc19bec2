//! The header of a safetensors file: which tensor lies where. All of it is checked against the
//! length of the file before any tensor is read, so that later reads cannot leave the file.

use crate::error::{Error, Result};
use crate::tensor::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The bytes before the header: its length, little-endian.
const PREFIX_BYTES: u64 = 8;

/// The longest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;

/// The type of a stored element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    /// A type that weights can have.
    Float(Dtype),
    /// One byte, 0 or 1.
    Bool,
    /// An unsigned byte.
    U8,
    /// A signed 32-bit integer.
    I32,
    /// A signed 64-bit integer.
    I64,
    /// Any other type of the format, by its name there.
    Other(String),
}

impl ElementType {
    fn named(name: String) -> Self {
        match name.as_str() {
            "F32" => Self::Float(Dtype::F32),
            "F16" => Self::Float(Dtype::F16),
            "BF16" => Self::Float(Dtype::Bf16),
            "BOOL" => Self::Bool,
            "U8" => Self::U8,
            "I32" => Self::I32,
            "I64" => Self::I64,
            _ => Self::Other(name),
        }
    }

    /// The name that the format uses.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Float(dtype) => dtype.name(),
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::Other(name) => name,
        }
    }

    /// Bits of one element; `None` for a type that this library has never heard of.
    pub(super) fn bits(&self) -> Option<u64> {
        Some(match self {
            Self::Float(dtype) => 8 * dtype.size() as u64,
            Self::Bool | Self::U8 => 8,
            Self::I32 => 32,
            Self::I64 => 64,
            Self::Other(name) => match name.as_str() {
                "F4" => 4,
                "F6_E2M3" | "F6_E3M2" => 6,
                "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
                "I16" | "U16" => 16,
                "U32" => 32,
                "U64" | "F64" | "C64" => 64,
                _ => return None,
            },
        })
    }
}

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) element: ElementType,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    pub(super) offset: u64,
    pub(super) bytes: usize,
}

/// A JSON object with one member for each tensor. A name that occurs twice is an error, because
/// JSON readers differ in which of the two they keep. `__metadata__` names no tensor.
#[derive(Debug)]
pub(super) struct ByTensor<T>(pub(super) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByTensor<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = ByTensor<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one member for each tensor")
            }

            fn visit_map<M: MapAccess<'de>>(
                self,
                mut members: M,
            ) -> std::result::Result<ByTensor<T>, M::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = members.next_key::<String>()? {
                    if name == "__metadata__" {
                        members.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    match tensors.entry(name) {
                        Slot::Vacant(slot) => slot.insert(members.next_value()?),
                        Slot::Occupied(slot) => {
                            let text = format!("tensor {:?} occurs twice", slot.key());
                            return Err(M::Error::custom(text));
                        }
                    };
                }
                Ok(ByTensor(tensors))
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

#[derive(serde::Deserialize)]
struct Member {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads and checks the header of `file`, whose path is `path`.
pub(super) fn read(path: &Path, file: &File) -> Result<BTreeMap<String, Place>> {
    let (header, length) = text_of(path, file)?;
    let ByTensor(members) = serde_json::from_slice::<ByTensor<Member>>(&header)
        .map_err(|error| Error::format(path, format!("header: {error}")))?;
    check(members, PREFIX_BYTES + header.len() as u64, length)
        .map_err(|text| Error::format(path, format!("header: {text}")))
}

/// What a file says of itself beside its tensors.
pub(super) fn metadata(path: &Path) -> Result<Map<String, Value>> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        #[serde(default)]
        __metadata__: Map<String, Value>,
    }
    let file = File::open(path).map_err(|error| Error::io(path, &error))?;
    let (header, _) = text_of(path, &file)?;
    let Metadata { __metadata__: metadata } = serde_json::from_slice(&header)
        .map_err(|error| Error::format(path, format!("header: {error}")))?;
    Ok(metadata)
}

/// The text of a file's header, and the length of the file.
fn text_of(path: &Path, file: &File) -> Result<(Vec<u8>, u64)> {
    let io = |error: std::io::Error| Error::io(path, &error);
    let length = file.metadata().map_err(io)?.len();
    if length < PREFIX_BYTES {
        let text = format!("expected a safetensors file, found {length} bytes");
        return Err(Error::format(path, text));
    }
    let mut prefix = [0; PREFIX_BYTES as usize];
    file.read_exact_at(&mut prefix, 0).map_err(io)?;
    let header_length = u64::from_le_bytes(prefix);
    let room = (length - PREFIX_BYTES).min(LONGEST_HEADER);
    if header_length > room {
        let text = format!("header length: expected at most {room}, found {header_length}");
        return Err(Error::format(path, text));
    }
    let mut header = Vec::new();
    let header_bytes = header_length as usize;
    header
        .try_reserve_exact(header_bytes)
        .map_err(|_| Error::out_of_memory("safetensors header", header_bytes))?;
    header.resize(header_bytes, 0);
    file.read_exact_at(&mut header, PREFIX_BYTES).map_err(io)?;
    Ok((header, length))
}

/// Turns offsets into places. `start` is where the data begin, `end` the length of the file.
fn check(
    members: BTreeMap<String, Member>,
    start: u64,
    end: u64,
) -> std::result::Result<BTreeMap<String, Place>, String> {
    let mut extents = Vec::with_capacity(members.len());
    let mut places = BTreeMap::new();
    for (name, Member { dtype, shape, data_offsets: (first, last) }) in members {
        let element = ElementType::named(dtype);
        let bytes = last.checked_sub(first).filter(|_| last <= end - start).ok_or_else(|| {
            let data = end - start;
            format!("tensor {name:?}: expected offsets within {data} bytes, found {first}..{last}")
        })?;
        if let Some(bits) = element.bits() {
            let needed = shape.iter().try_fold(bits, |product, &size| product.checked_mul(size));
            if needed.is_none_or(|needed| needed.div_ceil(8) != bytes) {
                return Err(format!(
                    "tensor {name:?}: expected offsets {} bytes apart for {} {shape:?}, found {bytes}",
                    needed.map_or("countless".into(), |needed| needed.div_ceil(8).to_string()),
                    element.name(),
                ));
            }
        }
        // Of other types as much is known: elements have a bit at least.
        let elements = shape.iter().try_fold(1, |product: u64, &size| product.checked_mul(size));
        if elements.is_none_or(|elements| elements.div_ceil(8) > bytes) {
            return Err(format!(
                "tensor {name:?}: expected bytes for {} {shape:?}, found {bytes}",
                element.name()
            ));
        }
        let shape: Option<Vec<_>> = shape.iter().map(|&size| usize::try_from(size).ok()).collect();
        let (Some(shape), Ok(bytes)) = (shape, usize::try_from(bytes)) else {
            return Err(format!("tensor {name:?}: too large for this machine"));
        };
        extents.push((first, last, name.clone()));
        places.insert(name, Place { element, shape, offset: start + first, bytes });
    }
    check_coverage(extents, end - start)?;
    Ok(places)
}

/// The format allows neither overlaps nor holes: both would be bytes that nobody checks.
fn check_coverage(
    mut extents: Vec<(u64, u64, String)>,
    data: u64,
) -> std::result::Result<(), String> {
    extents.sort();
    let mut covered = 0;
    for (first, last, name) in extents {
        if first != covered {
            let what = if first < covered { "overlaps another tensor" } else { "leaves a hole" };
            return Err(format!(
                "tensor {name:?} {what}: expected to start at {covered}, found {first}"
            ));
        }
        covered = last;
    }
    if covered != data {
        return Err(format!(
            "tensors: expected {data} bytes, the rest of the file, found {covered}"
        ));
    }
    Ok(())
}
