//! What the library makes of trees: parents out of published paths, links, paths and masks out of
//! parents, and the moves of accepted rows, each against a plain computation of all of it. On CUDA
//! every call runs on the CPU as well.

mod device;
mod host;

use device::buffer::Buffer;
use device::{Device, amount, is_cuda_or_skipped};
use half::{bf16, f16};
use host::random::Random;
use host::{Context, Outcome, Versioned, assert_refused, attempt};
use speculators::capi::*;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

const INVALID: spec_status = SPEC_ERROR_INVALID_ARGUMENT;
const UNSUPPORTED: spec_status = SPEC_ERROR_UNSUPPORTED;

/// What stands wherever nothing is written.
const UNTOUCHED: u8 = 0xA5;
const UNTOUCHED_I32: i32 = i32::from_ne_bytes([UNTOUCHED; 4]);

/// Contexts on the device of this process and, if that is another one, on the CPU.
fn contexts() -> Vec<Context> {
    let mut contexts = vec![Context::with_threads(3)];
    if device::is_cuda() {
        contexts.push(Context::on(Device::Cpu));
    }
    contexts
}

fn filled(device: Device, elements: usize) -> Buffer<i32> {
    Buffer::on(device, vec![UNTOUCHED_I32; elements])
}

fn chance_of<T>(random: &mut Random, probability: f64, value: T) -> Option<T> {
    random.chance(probability).then_some(value)
}

fn one_of<T: Copy, const COUNT: usize>(random: &mut Random, values: [T; COUNT]) -> T {
    values[random.below(COUNT)]
}

/// A number below one of these.
fn below_one_of<const COUNT: usize>(random: &mut Random, bounds: [usize; COUNT]) -> usize {
    let bound = one_of(random, bounds);
    random.below(bound)
}

// ---- Paths --------------------------------------------------------------------------------------

/// Parents and ranks of a list of paths of at most `length` ranks.
fn tree_of(paths: &[&[i32]], length: usize) -> Outcome<(Vec<i32>, Vec<i32>)> {
    let rows: Vec<i32> = paths
        .iter()
        .flat_map(|path| path.iter().copied().chain(std::iter::repeat(-1)).take(length))
        .collect();
    let mut count = -7;
    let mut call = |parents: *mut i32, ranks: *mut i32, capacity: usize| {
        let (num_paths, length) = (paths.len() as i32, length as i32);
        // SAFETY: arrays of the sizes that are given.
        attempt(|error| unsafe {
            spec_tree_from_paths(
                rows.as_ptr(),
                num_paths,
                length,
                parents,
                ranks,
                capacity as i32,
                &raw mut count,
                error,
            )
        })
        .map(|()| count)
    };
    let nodes = call(null_mut(), null_mut(), 0)? as usize;
    let (mut parents, mut ranks) = (vec![-7; nodes], vec![-7; nodes]);
    let again = call(parents.as_mut_ptr(), ranks.as_mut_ptr(), nodes)?;
    assert_eq!(again, nodes as i32);
    Ok((parents, ranks))
}

/// The static tree that EAGLE and HASS ship with.
const EAGLE: [&[i32]; 25] = [
    &[0],
    &[1],
    &[2],
    &[3],
    &[0, 0],
    &[0, 1],
    &[0, 2],
    &[1, 0],
    &[1, 1],
    &[2, 0],
    &[2, 1],
    &[3, 0],
    &[0, 0, 0],
    &[0, 0, 1],
    &[0, 0, 2],
    &[0, 1, 0],
    &[0, 1, 1],
    &[0, 2, 0],
    &[0, 2, 1],
    &[1, 0, 0],
    &[0, 0, 0, 0],
    &[0, 0, 0, 1],
    &[0, 0, 0, 2],
    &[0, 0, 0, 0, 0],
    &[0, 0, 0, 0, 1],
];

#[test]
fn published_paths_become_parents_and_ranks() {
    let (parents, ranks) = tree_of(&EAGLE, 5).expect("a tree");
    let expected =
        [-1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 5, 6, 6, 7, 7, 8, 13, 13, 13, 21, 21];
    assert_eq!(parents, expected);
    let last: Vec<i32> = EAGLE.iter().map(|path| path[path.len() - 1]).collect();
    assert_eq!(ranks, [&[0], &last[..]].concat());
    // Shuffled, without what others begin with, and padded further: the same tree.
    let mut leaves = EAGLE.to_vec();
    leaves.reverse();
    leaves.retain(|path| {
        !EAGLE.iter().any(|other| other.len() > path.len() && other.starts_with(path))
    });
    assert!(leaves.len() < 20);
    assert_eq!(tree_of(&leaves, 9).expect("a tree"), (parents, ranks));
    assert_eq!(tree_of(&[], 0).expect("a root"), (vec![-1], vec![0]));
}

#[test]
fn ranks_tell_of_gaps_and_have_to_where_there_are_any() {
    let paths: [&[i32]; 3] = [&[2], &[0, 7], &[2, 1]];
    let (parents, ranks) = tree_of(&paths, 2).expect("a tree");
    assert_eq!((parents, ranks), (vec![-1, 0, 0, 1, 2], vec![0, 0, 2, 7, 1]));
    let (rows, mut parents, mut nodes) = ([2, -1], [-7; 4], -7);
    let call = |rows: &[i32; 2], parents: &mut [i32; 4], nodes: &mut i32| {
        // SAFETY: arrays of the sizes that are given.
        attempt(|error| unsafe {
            let (rows, parents) = (rows.as_ptr(), parents.as_mut_ptr());
            spec_tree_from_paths(rows, 1, 2, parents, null_mut(), 4, nodes, error)
        })
    };
    let failure = call(&rows, &mut parents, &mut nodes).expect_err("a gap");
    assert_eq!((failure.status, parents, nodes), (INVALID, [-7; 4], 2), "{}", failure.message);
    call(&[0, -1], &mut parents, &mut nodes).expect("no gap");
    assert_eq!((parents, nodes), ([-1, 0, -7, -7], 2));
}

#[test]
fn paths_that_are_no_tree_are_refused_and_change_nothing() {
    let long = vec![0; 1024];
    let wide: Vec<[i32; 1]> = (0..1024).map(|rank| [rank]).collect();
    let wide: Vec<&[i32]> = wide.iter().map(<[i32; 1]>::as_slice).collect();
    let cases: [(&str, &[&[i32]], usize); 4] = [
        ("an entry below -1", &[&[0, -2]], 2),
        ("an entry behind padding", &[&[0], &[-1, 0]], 2),
        ("a path that is too long", &[&long], 1024),
        ("too many children", &wide, 1),
    ];
    for (what, paths, length) in cases {
        let outcome = tree_of(paths, length).map(drop);
        assert_refused(outcome, "spec_tree_from_paths", INVALID, what);
    }
    assert_eq!(tree_of(&wide[..1023], 1).expect("a star").0.len(), 1024);

    let (rows, mut parents, mut ranks, mut nodes) = ([0, -1, 0, 0], [-7; 3], [-7; 3], -7);
    let (rows, places) = (rows.as_ptr(), [parents.as_mut_ptr(), ranks.as_mut_ptr()]);
    let count = &raw mut nodes;
    type Arguments = (*const i32, i32, i32, *mut i32, *mut i32, i32, *mut i32);
    let good: Arguments = (rows, 2, 2, places[0], places[1], 3, count);
    let call = |(rows, paths, length, parents, ranks, capacity, nodes): Arguments| {
        // SAFETY: arrays of the sizes that are given, or what is to be refused.
        attempt(|error| unsafe {
            spec_tree_from_paths(rows, paths, length, parents, ranks, capacity, nodes, error)
        })
    };
    let spoils: [(&str, Arguments); 11] = [
        ("no paths", (null(), 2, 2, places[0], places[1], 3, count)),
        ("odd paths", (rows.wrapping_byte_add(2), 2, 2, places[0], places[1], 3, count)),
        ("negative num_paths", (rows, -1, 2, places[0], places[1], 3, count)),
        ("negative max_length", (rows, 2, -1, places[0], places[1], 3, count)),
        ("no parents", (rows, 2, 2, null_mut(), places[1], 3, count)),
        ("ranks alone", (rows, 2, 2, null_mut(), places[1], 0, count)),
        ("odd parents", (rows, 2, 2, places[0].wrapping_byte_add(1), places[1], 3, count)),
        ("odd ranks", (rows, 2, 2, places[0], places[1].wrapping_byte_add(1), 3, count)),
        ("negative capacity", (rows, 2, 2, places[0], places[1], -1, count)),
        ("too small a capacity", (rows, 2, 2, places[0], places[1], 2, count)),
        ("no place for the number", (rows, 2, 2, places[0], places[1], 3, null_mut())),
    ];
    for (what, arguments) in spoils {
        assert_refused(call(arguments), "spec_tree_from_paths", INVALID, what);
        // SAFETY: arrays of this test.
        let places = places.map(|place| unsafe { *place.cast::<[i32; 3]>() });
        assert_eq!(places, [[-7; 3]; 2], "{what}: written");
    }
    call(good).expect("the call as it should be");
    assert_eq!((parents, ranks, nodes), ([-1, 0, 1], [0; 3], 3));
}

// ---- Trees and masks ----------------------------------------------------------------------------

/// What the arrays of a call say of one sequence.
#[derive(Clone, Debug)]
struct Sequence {
    /// As many as a tree may have nodes.
    parents: Vec<i32>,
    nodes: i32,
    position: i32,
    prefix: i32,
}

/// Parents of `nodes` nodes, padded to `most`.
fn random_parents(random: &mut Random, nodes: usize, most: usize) -> Vec<i32> {
    let (kind, width) = (random.below(6), 1 + random.below(8));
    (0..most)
        .map(|node| match (kind, node) {
            _ if node >= nodes => UNTOUCHED_I32,
            (_, 0) => -1,
            (0, _) => node as i32 - 1,
            (1, _) => 0,
            // Level by level, each node with as many children.
            (2, _) => ((node - 1) / width) as i32,
            // Never far up, so that trees are deep.
            (3, _) => (node - 1 - random.below(node.min(width))) as i32,
            _ => random.below(node) as i32,
        })
        .collect()
}

impl Sequence {
    fn random(random: &mut Random, most: usize, longest_prefix: usize) -> Self {
        let nodes = if random.chance(0.3) { most } else { 1 + random.below(most) };
        Self {
            parents: random_parents(random, nodes, most),
            nodes: nodes as i32,
            position: random.below(longest_prefix + 1) as i32,
            prefix: random.below(longest_prefix + 1) as i32,
        }
    }

    /// Something out of range, or no part at all.
    fn spoil(&mut self, random: &mut Random) {
        let node = random.below(self.nodes.max(1) as usize);
        match random.below(8) {
            0 => self.nodes = one_of(random, [0, -1, i32::MIN]),
            1 => self.nodes = one_of(random, [self.parents.len() as i32 + 1, i32::MAX]),
            2 => self.position = one_of(random, [-1, i32::MIN, i32::MAX]),
            3 => self.prefix = one_of(random, [-1, i32::MIN, i32::MAX, i32::MAX - 1023]),
            4 => self.parents[node] = node as i32,
            5 => self.parents[node] = self.nodes.max(1) - 1,
            6 => self.parents[node] = one_of(random, [-2, i32::MIN, i32::MAX, 1024]),
            _ => self.parents[0] = random.below(3) as i32,
        }
    }

    fn is_tree(&self, nodes: usize) -> bool {
        nodes == 0
            || self.parents[0] == -1 && (1..nodes).all(|n| (0..n as i32).contains(&self.parents[n]))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Bool,
    F32,
    F16,
    Bf16,
    Bits(usize),
}

const FORMS: [Form; 8] = [
    Form::Bool,
    Form::F32,
    Form::F16,
    Form::Bf16,
    Form::Bits(8),
    Form::Bits(16),
    Form::Bits(32),
    Form::Bits(64),
];

impl Form {
    fn bytes(self) -> usize {
        match self {
            Self::Bool => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::Bits(bits) => bits / 8,
        }
    }

    fn elements(self, columns: usize) -> usize {
        if let Self::Bits(bits) = self { columns.div_ceil(bits) } else { columns }
    }

    fn numbers(self) -> (i32, u8, u8) {
        match self {
            Self::Bool => (SPEC_MASK_BOOL, 0, 0),
            Self::F32 => (SPEC_MASK_ADDITIVE, SPEC_DTYPE_FLOAT, 32),
            Self::F16 => (SPEC_MASK_ADDITIVE, SPEC_DTYPE_FLOAT, 16),
            Self::Bf16 => (SPEC_MASK_ADDITIVE, SPEC_DTYPE_BFLOAT, 16),
            Self::Bits(bits) => (SPEC_MASK_BITS, 0, bits as u8),
        }
    }

    /// The bytes of elements that show these columns.
    fn encode(self, columns: &[bool]) -> Vec<u8> {
        let number = |seen: &bool| if *seen { 0.0 } else { f32::NEG_INFINITY };
        match self {
            Self::Bool => columns.iter().map(|&seen| u8::from(seen)).collect(),
            Self::F32 => columns.iter().flat_map(|seen| number(seen).to_ne_bytes()).collect(),
            Self::F16 => {
                columns.iter().flat_map(|seen| f16::from_f32(number(seen)).to_ne_bytes()).collect()
            }
            Self::Bf16 => {
                columns.iter().flat_map(|seen| bf16::from_f32(number(seen)).to_ne_bytes()).collect()
            }
            Self::Bits(bits) => columns
                .chunks(bits)
                .flat_map(|word| {
                    let word =
                        word.iter().rev().fold(0_u64, |word, &seen| word << 1 | u64::from(seen));
                    word.to_le_bytes().into_iter().take(bits / 8)
                })
                .collect(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Rows {
    /// Columns, and what strides have beyond the least.
    Fixed { columns: usize, row_gap: usize, sequence_gap: usize },
    /// Elements.
    Ragged { size: usize },
}

#[derive(Clone, Copy, Debug)]
struct MaskShape {
    form: Form,
    rows: Rows,
    has_prefix: bool,
}

/// A call of `spec_tree_mask` with all that its arrays hold.
#[derive(Clone, Debug)]
struct MaskCall {
    most: usize,
    sequences: Vec<Sequence>,
    /// All sequences have the tree of the first.
    shares_tree: bool,
    has_counts: bool,
    has_prefix_length: bool,
    parents_gap: usize,
    position_stride: usize,
    links_gap: usize,
    wide_gap: usize,
    has_links: bool,
    paths: Option<(usize, usize)>,
    mask: Option<MaskShape>,
}

/// All that a call writes.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    links: [Vec<i32>; 5],
    wide: Vec<i64>,
    paths: Vec<i32>,
    num_paths: Vec<i32>,
    mask: Vec<u8>,
    begin: Vec<i32>,
    flags: Vec<i32>,
}

impl MaskCall {
    /// A call that wants everything, with a mask of this shape.
    fn of(most: usize, sequences: Vec<Sequence>, mask: Option<MaskShape>) -> Self {
        Self {
            most,
            sequences,
            shares_tree: false,
            has_counts: true,
            has_prefix_length: true,
            parents_gap: 0,
            position_stride: 1,
            links_gap: 0,
            wide_gap: 0,
            has_links: true,
            paths: Some((most, most)),
            mask,
        }
    }

    fn random(random: &mut Random, most: usize, hostility: f64) -> Self {
        let longest_prefix = one_of(random, [0, 9, 70]);
        let mut sequences: Vec<Sequence> = (0..1 + random.below(4))
            .map(|_| Sequence::random(random, most, longest_prefix))
            .collect();
        for sequence in &mut sequences {
            if random.chance(hostility) {
                sequence.spoil(random);
            }
        }
        let form = FORMS[random.below(FORMS.len())];
        let has_prefix = random.chance(0.5);
        let longest = most + if has_prefix { longest_prefix } else { 0 };
        let rows = if random.chance(0.5) {
            let columns = longest + random.below(5);
            Rows::Fixed { columns, row_gap: random.below(3), sequence_gap: random.below(3) }
        } else {
            let most: usize = sequences.len() * form.elements(most * longest);
            // Mostly all fit.
            let size = if random.chance(0.8) { most } else { random.below(most + 1) };
            Rows::Ragged { size }
        };
        let paths = (1 + random.below(most), 1 + random.below(most));
        let all_paths = chance_of(random, 0.6, (most, most));
        Self {
            shares_tree: random.chance(0.2),
            has_counts: random.chance(0.8),
            has_prefix_length: random.chance(0.7),
            parents_gap: random.below(3),
            position_stride: 1 + random.below(3),
            links_gap: random.below(3),
            wide_gap: random.below(3),
            has_links: random.chance(0.8),
            paths: all_paths.or(chance_of(random, 0.6, paths)),
            ..Self::of(
                most,
                sequences,
                chance_of(random, 0.9, MaskShape { form, rows, has_prefix }),
            )
        }
    }

    /// What a sequence's arrays come to: its tree, its nodes and its prefix, or the flag.
    fn sequence(&self, index: usize) -> Result<(&Sequence, usize, usize), i32> {
        let sequence = &self.sequences[index];
        let tree = if self.shares_tree { &self.sequences[0] } else { sequence };
        let nodes = if self.has_counts { sequence.nodes } else { self.most as i32 };
        if nodes <= 0 {
            return Ok((tree, 0, 0));
        }
        let last = i64::from(sequence.position) + i64::from(nodes) - 1;
        if nodes > self.most as i32 || sequence.position < 0 || last > i64::from(i32::MAX) {
            return Err(SPEC_TREE_FLAG_SIZE);
        }
        let Some(mask) = self.mask.filter(|mask| mask.has_prefix) else {
            return Ok((tree, nodes as usize, 0));
        };
        let prefix = if self.has_prefix_length { sequence.prefix } else { sequence.position };
        let prefix = usize::try_from(prefix).map_err(|_| SPEC_TREE_FLAG_SIZE)?;
        match mask.rows {
            Rows::Fixed { columns, .. } if prefix + self.most > columns => Err(SPEC_TREE_FLAG_SIZE),
            _ => Ok((tree, nodes as usize, prefix)),
        }
    }

    /// Elements of a row and from one to the next, from one sequence to the next, and of all.
    fn mask_sizes(&self, mask: &MaskShape) -> [usize; 4] {
        match mask.rows {
            Rows::Ragged { size } => [0, 0, 0, size],
            Rows::Fixed { columns, row_gap, sequence_gap } => {
                let row = mask.form.elements(columns);
                let sequence = self.most * (row + row_gap) + sequence_gap;
                let last = (self.most - 1) * (row + row_gap) + row;
                [row, row + row_gap, sequence, (self.sequences.len() - 1) * sequence + last]
            }
        }
    }

    fn run(&self, context: &Context) -> Told {
        let device = context.device;
        let (count, most) = (self.sequences.len(), self.most);
        let parents_stride = if self.shares_tree { 0 } else { most + self.parents_gap };
        let mut parents = vec![UNTOUCHED_I32; (count - 1) * parents_stride + most];
        for (index, sequence) in self.sequences.iter().enumerate().rev() {
            parents[index * parents_stride..][..most].copy_from_slice(&sequence.parents);
        }
        let column = |value: fn(&Sequence) -> i32, stride: usize| {
            let mut column = vec![UNTOUCHED_I32; (count - 1) * stride + 1];
            for (index, sequence) in self.sequences.iter().enumerate() {
                column[index * stride] = value(sequence);
            }
            Buffer::on(device, column)
        };
        let parents = Buffer::on(device, parents);
        let nodes = column(|sequence| sequence.nodes, 1);
        let position = column(|sequence| sequence.position, self.position_stride);
        let prefix = column(|sequence| sequence.prefix, 1);
        let links_stride = most + self.links_gap;
        let mut links: [Buffer<i32>; 5] =
            std::array::from_fn(|_| filled(device, count * links_stride));
        let [to_parents, first_child, next_sibling, depth, to_position] =
            links.each_mut().map(|array| array.as_mut_ptr());
        let tree = spec_tree {
            stride: links_stride as i32,
            parents: to_parents,
            first_child,
            next_sibling,
            depth,
            position: to_position,
            ..Versioned::blank()
        };
        let mut wide = Buffer::on(device, vec![-7_i64; count * (most + self.wide_gap)]);
        let (path_rows, path_length) = self.paths.unwrap_or((0, 0));
        let mut paths = filled(device, count * path_rows * path_length);
        let mut num_paths = filled(device, count);
        let mut flags = filled(device, count);
        let [_, row, sequence, elements] = self.mask.map_or([0; 4], |mask| self.mask_sizes(&mask));
        let element_bytes = self.mask.map_or(1, |mask| mask.form.bytes());
        // As words, so that elements are aligned.
        let mut mask =
            Buffer::on(device, vec![[UNTOUCHED; 8]; (elements * element_bytes).div_ceil(8).max(1)]);
        let mut begin = filled(device, count + 1);
        let mut args = spec_tree_mask_args {
            num_sequences: count as i32,
            max_nodes: most as i32,
            parents: parents.as_ptr(),
            parents_stride: parents_stride as i32,
            num_nodes: if self.has_counts { nodes.as_ptr() } else { null() },
            position: position.as_ptr(),
            position_stride: self.position_stride as i32,
            prefix_length: if self.has_prefix_length { prefix.as_ptr() } else { null() },
            tree: if self.has_links { &tree } else { null() },
            position64: wide.as_mut_ptr(),
            position64_stride: (most + self.wide_gap) as i32,
            num_paths: num_paths.as_mut_ptr(),
            sequence_flags: flags.as_mut_ptr(),
            ..Versioned::blank()
        };
        if self.paths.is_some() {
            args.paths = paths.as_mut_ptr();
            (args.max_paths, args.path_length) = (path_rows as i32, path_length as i32);
        }
        if let Some(shape) = self.mask {
            args.mask = mask.as_mut_ptr().cast();
            (args.mask_form, args.mask_dtype_code, args.mask_dtype_bits) = shape.form.numbers();
            args.flags = if shape.has_prefix { SPEC_TREE_MASK_PREFIX } else { 0 };
            match shape.rows {
                Rows::Fixed { columns, .. } => {
                    args.mask_columns = columns as i32;
                    args.mask_row_stride = row as i64;
                    args.mask_sequence_stride = sequence as i64;
                }
                Rows::Ragged { size } => {
                    args.flags |= SPEC_TREE_MASK_RAGGED;
                    (args.mask_size, args.mask_begin) = (size as i64, begin.as_mut_ptr());
                }
            }
        }
        tell(context, &args).expect("a call");
        let mask: Vec<u8> = mask.iter().flatten().copied().collect();
        Told {
            links: links.each_ref().map(|array| array.to_vec()),
            wide: wide.to_vec(),
            paths: paths.to_vec(),
            num_paths: num_paths.to_vec(),
            mask,
            begin: begin.to_vec(),
            flags: flags.to_vec(),
        }
    }

    /// What there is to be told, by looking at everything.
    fn expected(&self) -> Told {
        let (count, most) = (self.sequences.len(), self.most);
        let elements = self.mask.map_or(0, |mask| self.mask_sizes(&mask)[3]);
        let element_bytes = self.mask.map_or(1, |mask| mask.form.bytes());
        let (path_rows, path_length) = self.paths.unwrap_or((0, 0));
        let mut told = Told {
            links: std::array::from_fn(|_| vec![UNTOUCHED_I32; count * (most + self.links_gap)]),
            wide: vec![-7; count * (most + self.wide_gap)],
            paths: vec![-1; count * path_rows * path_length],
            num_paths: vec![0; count],
            mask: vec![UNTOUCHED; (elements * element_bytes).div_ceil(8).max(1) * 8],
            begin: vec![UNTOUCHED_I32; count + 1],
            flags: vec![0; count],
        };
        let mut ragged = 0;
        for index in 0..count {
            let found = self.sequence(index);
            told.flags[index] = found.err().unwrap_or(0);
            let (tree, mut nodes, mut prefix) = found.unwrap_or((&self.sequences[0], 0, 0));
            if let Some(MaskShape { form, rows: Rows::Ragged { size }, .. }) = self.mask {
                told.begin[index] = ragged.min(size) as i32;
                let own = form.elements(nodes * (prefix + nodes));
                if nodes > 0 && ragged + own > size {
                    told.flags[index] = SPEC_TREE_FLAG_SIZE;
                    (nodes, prefix) = (0, 0);
                }
                let rows = sights(tree, nodes, nodes, prefix, prefix + nodes).concat();
                let bytes = form.encode(&rows);
                if nodes > 0 {
                    told.mask[ragged * form.bytes()..][..bytes.len()].copy_from_slice(&bytes);
                }
                ragged += own;
                told.begin[index + 1] = ragged.min(size) as i32;
            }
            if let Some(MaskShape { form, rows: Rows::Fixed { columns, .. }, .. }) = self.mask {
                let [_, row_stride, sequence_stride, _] =
                    self.mask_sizes(&self.mask.expect("a mask"));
                for (row, seen) in sights(tree, nodes, most, prefix, columns).iter().enumerate() {
                    let first = (index * sequence_stride + row * row_stride) * form.bytes();
                    let bytes = form.encode(seen);
                    told.mask[first..][..bytes.len()].copy_from_slice(&bytes);
                }
            }
            if !tree.is_tree(nodes) {
                told.flags[index] |= SPEC_TREE_FLAG_PARENTS;
                nodes = 0;
            }
            self.expect_links(&mut told, index, tree, nodes);
            self.expect_paths(&mut told, index, tree, nodes);
        }
        if !matches!(self.mask, Some(MaskShape { rows: Rows::Ragged { .. }, .. })) {
            told.begin = vec![UNTOUCHED_I32; count + 1];
        }
        told
    }

    fn expect_links(&self, told: &mut Told, index: usize, tree: &Sequence, nodes: usize) {
        let parents = &tree.parents[..nodes];
        let find = |range: std::ops::Range<usize>, parent: i32| {
            range
                .into_iter()
                .find(|&other| parents[other] == parent)
                .map_or(-1, |other| other as i32)
        };
        for node in 0..self.most {
            let is_node = node < nodes;
            let depth = if is_node { way_up(parents, node).len() as i32 - 1 } else { 0 };
            let position = if is_node { self.sequences[index].position + depth } else { 0 };
            told.wide[index * (self.most + self.wide_gap) + node] = position.into();
            if !self.has_links {
                continue;
            }
            let values = [
                if is_node { parents[node] } else { -1 },
                if is_node { find(0..nodes, node as i32) } else { -1 },
                if is_node && node > 0 { find(node + 1..nodes, parents[node]) } else { -1 },
                depth,
                position,
            ];
            for (array, value) in told.links.iter_mut().zip(values) {
                array[index * (self.most + self.links_gap) + node] = value;
            }
        }
    }

    fn expect_paths(&self, told: &mut Told, index: usize, tree: &Sequence, nodes: usize) {
        let parents = &tree.parents[..nodes];
        let leaves = (0..nodes).filter(|&node| !parents.contains(&(node as i32)));
        let ways: Vec<Vec<usize>> = leaves.map(|leaf| way_up(parents, leaf)).collect();
        if let Some((rows, length)) = self.paths {
            if ways.len() > rows || ways.iter().any(|way| way.len() > length) {
                told.flags[index] |= SPEC_TREE_FLAG_PATHS;
                return;
            }
            for (row, way) in ways.iter().enumerate() {
                for (step, &node) in way.iter().rev().enumerate() {
                    told.paths[(index * rows + row) * length + step] = node as i32;
                }
            }
        }
        told.num_paths[index] = ways.len() as i32;
    }

    /// On every device all is told as it should be.
    fn check(&self, contexts: &[Context]) -> Told {
        let expected = self.expected();
        for context in contexts {
            let told = self.run(context);
            if told != expected {
                let place =
                    told.mask.iter().zip(&expected.mask).position(|(one, other)| one != other);
                panic!(
                    "on {:?}: {self:?}\nmask differs first at byte {place:?}\nfound    {told:?}\nexpected {expected:?}",
                    context.device
                );
            }
        }
        expected
    }
}

/// A node and all above it.
fn way_up(parents: &[i32], node: usize) -> Vec<usize> {
    let above = |&node: &usize| usize::try_from(parents[node]).ok();
    std::iter::successors(Some(node), above).collect()
}

/// Which columns each of `rows` rows sees: what its parent sees, and itself.
fn sights(
    tree: &Sequence,
    nodes: usize,
    rows: usize,
    prefix: usize,
    columns: usize,
) -> Vec<Vec<bool>> {
    let is_sound = tree.is_tree(nodes);
    let mut all: Vec<Vec<bool>> = Vec::new();
    for row in 0..rows {
        let mut seen = vec![false; columns];
        if is_sound && row < nodes {
            match usize::try_from(tree.parents[row]) {
                Ok(parent) => seen.clone_from(&all[parent]),
                Err(_) => seen[..prefix].fill(true),
            }
        }
        seen[prefix + row] = true;
        all.push(seen);
    }
    all
}

fn tell(context: &Context, args: &spec_tree_mask_args) -> Outcome<()> {
    let stream = context.stream.handle();
    // SAFETY: a live handle and stream; the caller's arrays are as the struct says.
    attempt(|error| unsafe { spec_tree_mask(context.handle, args, stream, error) })?;
    context.stream.synchronize();
    Ok(())
}

/// Root 0 with the children 1 and 2, and 3 below 1.
fn small_tree() -> Sequence {
    Sequence { parents: vec![-1, 0, 0, 1], nodes: 4, position: 2, prefix: 2 }
}

#[test]
fn a_small_tree_has_the_masks_that_engines_want() {
    let contexts = contexts();
    let fixed = |columns| Rows::Fixed { columns, row_gap: 0, sequence_gap: 0 };
    let ragged = |size| Rows::Ragged { size };
    let mask = |form, rows, has_prefix| {
        let shape = MaskShape { form, rows, has_prefix };
        let told = MaskCall::of(4, vec![small_tree(); 2], Some(shape)).check(&contexts);
        assert_eq!(told.flags, [0; 2]);
        told
    };
    // QLEN_ONLY of SGLang.
    let one = [1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 1];
    let told = mask(Form::Bool, fixed(4), false);
    assert_eq!(told.mask, [one, one].concat());
    // QLEN_ONLY_BITPACKING.
    let told = mask(Form::Bits(8), fixed(4), false);
    assert_eq!(told.mask, [0b0001, 0b0011, 0b0101, 0b1011, 0b0001, 0b0011, 0b0101, 0b1011]);
    // FULL_MASK.
    let with_prefix: Vec<u8> = one.chunks(4).flat_map(|row| [&[1, 1], row].concat()).collect();
    let told = mask(Form::Bool, ragged(48), true);
    assert_eq!(told.mask, [&with_prefix[..], &with_prefix].concat());
    assert_eq!(told.begin, [0, 24, 48]);
    // The packed mask of FlashInfer: the bits of all rows of a request in one run of bytes.
    let told = mask(Form::Bits(8), ragged(6), true);
    let packed: Vec<u8> =
        with_prefix.chunks(8).map(|byte| (0..8).map(|bit| byte[bit] << bit).sum()).collect();
    assert_eq!(told.mask[..6], [&packed[..], &packed].concat());
    assert_eq!(told.begin, [0, 3, 6]);
    // Links, positions and paths are told beside it.
    assert_eq!(told.links[0][..4], [-1, 0, 0, 1]);
    assert_eq!(told.links[1][..4], [1, 3, -1, -1]);
    assert_eq!(told.links[2][..4], [-1, 2, -1, -1]);
    assert_eq!(told.links[3][..4], [0, 1, 1, 2]);
    assert_eq!(told.links[4][..4], [2, 3, 3, 4]);
    assert_eq!(told.wide[..4], [2, 3, 3, 4]);
    assert_eq!(told.paths[..8], [0, 2, -1, -1, 0, 1, 3, -1]);
    assert_eq!(told.num_paths, [2, 2]);
}

#[test]
fn what_is_told_of_random_trees_is_what_looking_at_everything_tells() {
    let contexts = contexts();
    for number in 0..amount(600, 300) {
        let mut random = Random::new(number);
        let most = 1 + below_one_of(&mut random, [4, 20, 70]);
        MaskCall::random(&mut random, most, 0.0).check(&contexts);
    }
}

#[test]
fn sequences_out_of_range_are_padding_and_disturb_no_others() {
    let contexts = contexts();
    let mut seen = 0;
    for number in 0..amount(600, 300) {
        let mut random = Random::new(1000 + number);
        let most = 1 + below_one_of(&mut random, [4, 20, 70]);
        let told = MaskCall::random(&mut random, most, 0.5).check(&contexts);
        seen |= told.flags.iter().fold(0, |all, flags| all | flags);
    }
    let all = SPEC_TREE_FLAG_SIZE | SPEC_TREE_FLAG_PARENTS | SPEC_TREE_FLAG_PATHS;
    assert_eq!(seen, all, "what was found wrong");
}

#[test]
fn a_few_trees_of_every_form_and_layout_are_told_of() {
    let contexts = contexts();
    let mut random = Random::new(5);
    for form in [Form::Bool, Form::F32, Form::Bf16, Form::Bits(8), Form::Bits(64)] {
        for has_prefix in [false, true] {
            let columns = if has_prefix { 14 } else { 9 };
            let fixed = Rows::Fixed { columns, row_gap: 1, sequence_gap: 1 };
            for rows in [fixed, Rows::Ragged { size: 120 }] {
                let mut sequences: Vec<Sequence> =
                    (0..3).map(|_| Sequence::random(&mut random, 9, 5)).collect();
                sequences[1].spoil(&mut random);
                let mask = Some(MaskShape { form, rows, has_prefix });
                MaskCall::of(9, sequences, mask).check(&contexts);
            }
        }
    }
}

#[test]
fn trees_of_all_sizes_are_told_of() {
    let contexts = contexts();
    let mut random = Random::new(6);
    let sizes =
        amount(&[1, 2, 31, 32, 33, 255, 256, 257, 1000, 1023, 1024][..], &[1, 33, 257, 1023]);
    for &most in sizes {
        let sequences = vec![
            Sequence {
                parents: (-1..most as i32 - 1).collect(),
                nodes: most as i32,
                position: 3,
                prefix: 3,
            },
            Sequence {
                parents: (0..most).map(|node| if node == 0 { -1 } else { 0 }).collect(),
                nodes: most as i32,
                position: i32::MAX - most as i32 + 1,
                prefix: 0,
            },
            Sequence::random(&mut random, most, 3),
        ];
        for (form, has_prefix) in [(Form::Bool, true), (Form::Bits(32), false)] {
            let fixed = Rows::Fixed { columns: most + 3, row_gap: 0, sequence_gap: 0 };
            let size = 3 * form.elements(most * (most + 3));
            for rows in [fixed, Rows::Ragged { size }] {
                let mask = Some(MaskShape { form, rows, has_prefix });
                let told = MaskCall::of(most, sequences.clone(), mask).check(&contexts);
                assert_eq!(told.flags, [0; 3]);
            }
        }
    }
}

#[test]
fn nothing_is_written_that_is_not_wanted() {
    let sequence = small_tree();
    for context in contexts() {
        let parents = Buffer::on(context.device, sequence.parents.clone());
        let args = spec_tree_mask_args {
            num_sequences: 1,
            max_nodes: 4,
            parents: parents.as_ptr(),
            ..Versioned::blank()
        };
        tell(&context, &args).expect("a call for nothing");
        let mut depth = filled(context.device, 4);
        let tree = spec_tree { stride: 4, depth: depth.as_mut_ptr(), ..Versioned::blank() };
        tell(&context, &spec_tree_mask_args { tree: &tree, ..args }).expect("a call for depths");
        assert_eq!(depth[..], [0, 1, 1, 2]);
        let none = spec_tree_mask_args { max_nodes: 1, ..Versioned::blank() };
        tell(&context, &none).expect("a call for no sequences");
    }
}

#[test]
fn wrong_arguments_are_refused_for_trees() {
    type Spoil<'a> = (&'a str, spec_status, &'a dyn Fn(&mut spec_tree_mask_args));
    let context = Context::with_threads(1);
    let device = context.device;
    let parents = Buffer::on(device, [small_tree().parents, small_tree().parents].concat());
    let position = Buffer::on(device, vec![3, 4]);
    let mut outputs = filled(device, 64);
    let output = outputs.as_mut_ptr();
    let tree = spec_tree { stride: 4, depth: output, ..Versioned::blank() };
    let short = spec_tree { stride: 3, ..tree };
    let shared = spec_tree { stride: 0, ..tree };
    let odd = spec_tree { depth: output.wrapping_byte_add(2), ..tree };
    let small = spec_tree { struct_size: 8, ..tree };
    let places = spec_tree { position: output, ..tree };
    let good = spec_tree_mask_args {
        num_sequences: 2,
        max_nodes: 4,
        parents: parents.as_ptr(),
        parents_stride: 4,
        position: position.as_ptr(),
        tree: &tree,
        mask: output.wrapping_add(8).cast(),
        mask_form: SPEC_MASK_BITS,
        mask_dtype_bits: 32,
        ..Versioned::blank()
    };
    let ragged = |args: &mut spec_tree_mask_args| {
        (args.flags, args.mask_size) = (SPEC_TREE_MASK_RAGGED, 8);
    };
    let spoils: &[Spoil<'_>] = &[
        ("unknown flags", UNSUPPORTED, &|args| args.flags = 4),
        ("a reserved field", UNSUPPORTED, &|args| args.reserved = 1),
        ("negative num_sequences", INVALID, &|args| args.num_sequences = -1),
        ("no nodes", INVALID, &|args| args.max_nodes = 0),
        ("too many nodes", INVALID, &|args| args.max_nodes = 1025),
        ("no parents", INVALID, &|args| args.parents = null()),
        ("odd parents", INVALID, &|args| args.parents = args.parents.wrapping_byte_add(1)),
        ("parents_stride below N", INVALID, &|args| args.parents_stride = 3),
        ("negative parents_stride", INVALID, &|args| args.parents_stride = -4),
        ("odd num_nodes", INVALID, &|args| args.num_nodes = position.as_ptr().wrapping_byte_add(1)),
        ("negative position_stride", INVALID, &|args| args.position_stride = -1),
        ("no position for positions", INVALID, &|args| {
            (args.position, args.tree) = (null(), &raw const places);
        }),
        ("no position for wide positions", INVALID, &|args| {
            (args.position, args.position64) = (null(), output.cast());
        }),
        ("no position for prefixes", INVALID, &|args| {
            (args.position, args.flags, args.mask_columns) = (null(), SPEC_TREE_MASK_PREFIX, 9);
        }),
        ("links below N", INVALID, &|args| args.tree = &raw const short),
        ("links that share a row", INVALID, &|args| args.tree = &raw const shared),
        ("odd links", INVALID, &|args| args.tree = &raw const odd),
        ("a small struct of links", INVALID, &|args| args.tree = &raw const small),
        ("position64_stride below N", INVALID, &|args| args.position64_stride = 3),
        ("odd position64", INVALID, &|args| args.position64 = output.wrapping_add(1).cast()),
        ("negative max_paths", INVALID, &|args| args.max_paths = -1),
        ("max_paths above N", INVALID, &|args| args.max_paths = 5),
        ("negative path_length", INVALID, &|args| args.path_length = -1),
        ("path_length above N", INVALID, &|args| args.path_length = 5),
        ("an unknown form", UNSUPPORTED, &|args| args.mask_form = 4),
        ("no form", UNSUPPORTED, &|args| args.mask_form = 0),
        ("words of 24 bits", INVALID, &|args| args.mask_dtype_bits = 24),
        ("bits of a type", INVALID, &|args| args.mask_dtype_code = SPEC_DTYPE_FLOAT),
        ("bools of a type", INVALID, &|args| args.mask_form = SPEC_MASK_BOOL),
        ("additive integers", INVALID, &|args| args.mask_form = SPEC_MASK_ADDITIVE),
        ("an odd mask", INVALID, &|args| args.mask = args.mask.wrapping_byte_add(2)),
        ("mask_columns below N", INVALID, &|args| args.mask_columns = 3),
        ("prefixes without columns", INVALID, &|args| args.flags = SPEC_TREE_MASK_PREFIX),
        ("a negative row stride", INVALID, &|args| args.mask_row_stride = -1),
        ("rows that overlap", INVALID, &|args| {
            (args.mask_columns, args.mask_row_stride) = (33, 1);
        }),
        ("sequences that overlap", INVALID, &|args| args.mask_sequence_stride = 3),
        ("a mask beyond all memory", INVALID, &|args| {
            (args.num_sequences, args.mask_row_stride) = (i32::MAX, 1 << 40);
        }),
        ("a size of what is not ragged", INVALID, &|args| args.mask_size = 8),
        ("begins of what is not ragged", INVALID, &|args| args.mask_begin = output),
        ("a negative size", INVALID, &|args| {
            ragged(args);
            args.mask_size = -1;
        }),
        ("more than can be counted", INVALID, &|args| {
            ragged(args);
            args.mask_size = 1 << 31;
        }),
        ("columns of what is ragged", INVALID, &|args| {
            ragged(args);
            args.mask_columns = 4;
        }),
        ("row strides of what is ragged", INVALID, &|args| {
            ragged(args);
            args.mask_row_stride = 1;
        }),
        ("sequence strides of what is ragged", INVALID, &|args| {
            ragged(args);
            args.mask_sequence_stride = 4;
        }),
        ("odd begins", INVALID, &|args| {
            ragged(args);
            args.mask_begin = output.wrapping_byte_add(1);
        }),
        ("a form without a mask", INVALID, &|args| args.mask = null_mut()),
        ("flags without a mask", INVALID, &|args| {
            ragged(args);
            (args.mask, args.mask_form) = (null_mut(), 0);
        }),
        ("odd flags", INVALID, &|args| args.sequence_flags = output.wrapping_byte_add(1)),
        ("a small struct", INVALID, &|args| args.struct_size -= 1),
    ];
    for (what, status, spoil) in spoils {
        let mut args = good;
        spoil(&mut args);
        assert_refused(tell(&context, &args), "spec_tree_mask", *status, what);
    }
    if device == Device::Cpu {
        let stream = std::ptr::dangling_mut();
        // SAFETY: a stream that is not NULL is refused before it is used.
        let outcome =
            attempt(|error| unsafe { spec_tree_mask(context.handle, &good, stream, error) });
        assert_refused(outcome, "spec_tree_mask", INVALID, "a stream");
    }
    assert!(outputs.iter().all(|&element| element == UNTOUCHED_I32), "written");
    tell(&context, &good).expect("the call as it should be");
    assert_eq!(outputs[..16], [0, 1, 1, 2, 0, 1, 1, 2, 1, 3, 5, 11, 1, 3, 5, 11]);
}

// ---- Moves --------------------------------------------------------------------------------------

/// A call of `spec_kv_compact` with all that its arrays hold.
#[derive(Clone, Debug)]
struct CompactCall {
    most: usize,
    /// Position, row count, path.
    sequences: Vec<(i32, i32, Vec<i32>)>,
    decision_stride: usize,
    path_stride: usize,
    /// The pages of each sequence; `None`: each has the one of its number.
    table: Option<(Vec<i32>, usize)>,
    page_size: usize,
    num_pages: usize,
    layout: i32,
    heads: usize,
    head_bytes: usize,
    /// Of head, row and page, as they come to.
    strides: Strides,
    /// Whether they are given where they are what 0 stands for.
    names_strides: bool,
    /// Bytes before the first page.
    offset: usize,
    layers: usize,
    has_values: bool,
    list_gap: usize,
    /// What the planes hold: keys of all layers, then values.
    planes: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Strides {
    head: usize,
    row: usize,
    page: usize,
}

/// All that a call writes.
#[derive(Clone, PartialEq)]
struct Moved {
    planes: Vec<Vec<u8>>,
    source: Vec<i32>,
    destination: Vec<i32>,
    flags: Vec<i32>,
}

/// A path of `count` nodes below `most`.
fn random_path(random: &mut Random, count: usize, most: usize) -> Vec<i32> {
    let mut path = vec![0];
    // Which of the nodes that are left are on the path: each as likely as any other.
    for node in 1..most {
        let (wanted, left) = (count - path.len(), most - node);
        if random.below(left) < wanted {
            path.push(node as i32);
        }
    }
    path
}

impl CompactCall {
    fn random(random: &mut Random, hostility: f64) -> Self {
        let most = 1 + below_one_of(random, [4, 12, 40]);
        let count = 1 + random.below(4);
        let is_paged = random.chance(0.5);
        let page_size = if is_paged { one_of(random, [1, 3, 16]) } else { most + random.below(30) };
        let pages_each = if is_paged { (most + random.below(30)).div_ceil(page_size) } else { 1 };
        let num_pages = count * pages_each + random.below(3);
        let table = if is_paged || random.chance(0.5) {
            let mut pages: Vec<i32> = (0..num_pages as i32).collect();
            (1..pages.len()).rev().for_each(|last| pages.swap(last, random.below(last + 1)));
            let stride = pages_each;
            Some((pages[..count * stride].to_vec(), stride))
        } else {
            None
        };
        let (heads, head_bytes) = (
            1 + random.below(3),
            one_of(random, [1, 2, 3, 4, 7, 8, 16, 24, 32, 80]) * (1 + random.below(2)),
        );
        let layout = one_of(random, [SPEC_KV_NHD, SPEC_KV_HND]);
        let gap = |random: &mut Random| if random.chance(0.7) { 0 } else { 1 + random.below(9) };
        let gaps = [gap(random), gap(random), gap(random)];
        let strides = Strides::of(layout, heads, head_bytes, (page_size, num_pages), gaps);
        let (layers, has_values) = (random.below(4), random.chance(0.7));
        let mut call = Self {
            most,
            sequences: Vec::new(),
            decision_stride: 1 + random.below(3),
            path_stride: most + random.below(3),
            table,
            page_size,
            num_pages,
            layout,
            heads,
            head_bytes,
            strides,
            names_strides: random.chance(0.5),
            offset: one_of(random, [0, 0, 1, 2, 4, 8]),
            layers,
            has_values,
            list_gap: random.below(3),
            planes: Vec::new(),
        };
        for _ in 0..count {
            let sequence = call.random_sequence(random, pages_each, hostility);
            call.sequences.push(sequence);
        }
        call.fill_planes(random);
        call
    }

    fn random_sequence(
        &self,
        random: &mut Random,
        pages: usize,
        hostility: f64,
    ) -> (i32, i32, Vec<i32>) {
        let most = self.most;
        let count = random.below(most + 1);
        let root = random.below(pages * self.page_size - most + 1);
        let mut path = if random.chance(0.2) {
            (0..count as i32).collect()
        } else if count == 0 {
            Vec::new()
        } else {
            random_path(random, count, most)
        };
        path.resize(most, -1);
        let (mut position, mut count) = ((root + count) as i32, count as i32);
        if random.chance(hostility) {
            let place = random.below(most);
            match random.below(6) {
                0 => count = one_of(random, [-1, i32::MIN, i32::MAX, most as i32 + 1]),
                1 => position = one_of(random, [-1, i32::MIN, i32::MAX, count - 1]),
                2 => position = (pages * self.page_size) as i32 + random.below(3) as i32,
                3 => path[place] = one_of(random, [-1, i32::MIN, i32::MAX, most as i32]),
                4 => path[place] = random.below(most) as i32,
                _ => path[0] = 1,
            }
        }
        (position, count, path)
    }

    /// Bytes of a plane.
    fn plane_bytes(&self) -> usize {
        let Strides { head, row, page } = self.strides;
        let last = (self.num_pages - 1) * page + (self.page_size - 1) * row;
        self.offset + last + (self.heads - 1) * head + self.head_bytes
    }

    fn fill_planes(&mut self, random: &mut Random) {
        let planes = self.layers * if self.has_values { 2 } else { 1 };
        let bytes = self.plane_bytes();
        self.planes =
            (0..planes).map(|_| (0..bytes).map(|_| random.bits() as u8).collect()).collect();
    }

    /// The number of a row of a sequence.
    fn row(&self, index: usize, row: usize) -> Option<usize> {
        let page = match &self.table {
            None if row < self.page_size => index,
            None => return None,
            Some((table, stride)) => {
                let entry = row / self.page_size;
                let page = (entry < *stride).then(|| table[index * stride + entry])?;
                usize::try_from(page).ok().filter(|&page| page < self.num_pages)?
            }
        };
        Some(page * self.page_size + row % self.page_size)
    }

    /// Where the nodes of a sequence's path come from and go.
    fn moves(&self, index: usize) -> Option<Vec<(usize, usize)>> {
        let (position, count, path) = &self.sequences[index];
        if *count == 0 {
            return Some(Vec::new());
        }
        let nodes = usize::try_from(*count).ok().filter(|&nodes| nodes <= self.most)?;
        let root = usize::try_from(*position).ok()?.checked_sub(nodes)?;
        let path = &path[..nodes];
        let is_path = path[0] == 0
            && path.windows(2).all(|pair| pair[0] < pair[1])
            && path.iter().all(|&node| (0..self.most as i32).contains(&node));
        let row = |place: usize| self.row(index, root + place);
        let both = |(step, &node): (usize, &i32)| Some((row(node as usize)?, row(step)?));
        if is_path { path.iter().enumerate().map(both).collect() } else { None }
    }

    /// The bytes of a head of a row.
    fn place(&self, row: usize, head: usize) -> std::ops::Range<usize> {
        let Strides { head: head_stride, row: row_stride, page } = self.strides;
        let first = self.offset
            + row / self.page_size * page
            + row % self.page_size * row_stride
            + head * head_stride;
        first..first + self.head_bytes
    }

    /// Everything is read before anything is written.
    fn expected(&self) -> Moved {
        let count = self.sequences.len();
        let stride = self.most + self.list_gap;
        let mut moved = Moved {
            planes: self.planes.clone(),
            source: vec![UNTOUCHED_I32; count * stride],
            destination: vec![UNTOUCHED_I32; count * stride],
            flags: vec![0; count],
        };
        for index in 0..count {
            let moves = self.moves(index);
            if moves.is_none() {
                moved.flags[index] = SPEC_KV_COMPACT_FLAG_INVALID;
            }
            let moves = moves.unwrap_or_default();
            for step in 0..self.most {
                let (from, to) =
                    moves.get(step).map_or((-1, -1), |&(from, to)| (from as i32, to as i32));
                moved.source[index * stride + step] = from;
                moved.destination[index * stride + step] = to;
            }
            for (plane, before) in moved.planes.iter_mut().zip(&self.planes) {
                for head in 0..self.heads {
                    for &(from, to) in &moves {
                        plane[self.place(to, head)]
                            .copy_from_slice(&before[self.place(from, head)]);
                    }
                }
            }
        }
        moved
    }

    fn run(&self, context: &Context) -> Moved {
        let device = context.device;
        let count = self.sequences.len();
        let stride = self.decision_stride;
        let mut decisions = vec![UNTOUCHED_I32; count * stride];
        let (mut row_counts, mut paths) = (decisions.clone(), Vec::new());
        for (index, (position, rows, path)) in self.sequences.iter().enumerate() {
            (decisions[index * stride], row_counts[index * stride]) = (*position, *rows);
            paths.extend(path.iter().copied().chain([UNTOUCHED_I32; 3]).take(self.path_stride));
        }
        let [position, row_count, path] =
            [decisions, row_counts, paths].map(|array| Buffer::on(device, array));
        let table = self.table.as_ref().map(|(table, _)| Buffer::on(device, table.clone()));
        let mut planes: Vec<Buffer<u8>> =
            self.planes.iter().map(|plane| Buffer::on(device, plane.clone())).collect();
        let bases: Vec<*mut c_void> = planes
            .iter_mut()
            .map(|plane| plane.as_mut_ptr().wrapping_add(self.offset).cast())
            .collect();
        let lists = count * (self.most + self.list_gap);
        let (mut source, mut destination) = (filled(device, lists), filled(device, lists));
        let mut flags = filled(device, count);
        let given = |stride, least| {
            if stride == least && !self.names_strides { 0 } else { stride as i64 }
        };
        let least = self.strides.least(self);
        let args = spec_kv_compact_args {
            num_sequences: count as i32,
            max_nodes: self.most as i32,
            position: position.as_ptr(),
            row_count: row_count.as_ptr(),
            decision_stride: stride as i32,
            path: path.as_ptr(),
            path_stride: self.path_stride as i32,
            block_table: table.as_ref().map_or(null(), |table| table.as_ptr()),
            block_table_stride: self.table.as_ref().map_or(0, |(_, stride)| *stride as i32),
            page_size: self.page_size as i32,
            num_pages: self.num_pages as i32,
            layout: self.layout,
            num_layers: self.layers as i32,
            num_heads: self.heads as i32,
            head_bytes: self.head_bytes as i64,
            keys: bases.as_ptr(),
            values: if self.has_values { bases[self.layers..].as_ptr() } else { null() },
            page_stride: given(self.strides.page, least.page),
            row_stride: given(self.strides.row, least.row),
            head_stride: given(self.strides.head, least.head),
            source_rows: source.as_mut_ptr(),
            destination_rows: destination.as_mut_ptr(),
            row_list_stride: (self.most + self.list_gap) as i32,
            sequence_flags: flags.as_mut_ptr(),
            ..Versioned::blank()
        };
        compact(context, &args).expect("a call");
        Moved {
            planes: planes.iter().map(|plane| plane.to_vec()).collect(),
            source: source.to_vec(),
            destination: destination.to_vec(),
            flags: flags.to_vec(),
        }
    }

    /// On every device all is moved as it should be.
    fn check(&self, contexts: &[Context]) -> Moved {
        let expected = self.expected();
        for context in contexts {
            let moved = self.run(context);
            let what = format!(
                "on {:?}: {:?}",
                context.device,
                Self { planes: Vec::new(), ..self.clone() }
            );
            assert_eq!(moved.flags, expected.flags, "{what}");
            assert_eq!(moved.source, expected.source, "{what}");
            assert_eq!(moved.destination, expected.destination, "{what}");
            assert!(moved.planes == expected.planes, "{what}: rows");
        }
        expected
    }
}

impl Strides {
    /// With so many bytes between heads, rows and pages.
    fn of(
        layout: i32,
        heads: usize,
        head_bytes: usize,
        (page_size, num_pages): (usize, usize),
        [head_gap, row_gap, page_gap]: [usize; 3],
    ) -> Self {
        let extent = |count: usize, stride: usize, one: usize| (count - 1) * stride + one;
        assert!(num_pages > 0);
        if layout == SPEC_KV_NHD {
            let head = head_bytes + head_gap;
            let row = extent(heads, head, head_bytes) + row_gap;
            let page = extent(page_size, row, extent(heads, head, head_bytes)) + page_gap;
            Self { head, row, page }
        } else {
            let row = head_bytes + row_gap;
            let head = extent(page_size, row, head_bytes) + head_gap;
            let page = extent(heads, head, extent(page_size, row, head_bytes)) + page_gap;
            Self { head, row, page }
        }
    }

    /// The least that each of them can be, given those that lie inside of it.
    fn least(self, call: &CompactCall) -> Self {
        let Self { head, row, .. } = self;
        let (heads, page_size, bytes) = (call.heads, call.page_size, call.head_bytes);
        if call.layout == SPEC_KV_NHD {
            let of_row = (heads - 1) * head + bytes;
            Self { head: bytes, row: of_row, page: (page_size - 1) * row + of_row }
        } else {
            let of_head = (page_size - 1) * row + bytes;
            Self { head: of_head, row: bytes, page: (heads - 1) * head + of_head }
        }
    }
}

fn compact(context: &Context, args: &spec_kv_compact_args) -> Outcome<()> {
    let stream = context.stream.handle();
    // SAFETY: a live handle and stream; the caller's arrays are as the struct says.
    attempt(|error| unsafe { spec_kv_compact(context.handle, args, stream, error) })?;
    context.stream.synchronize();
    Ok(())
}

#[test]
fn accepted_rows_move_as_a_copy_moves_them() {
    let contexts = contexts();
    let mut moved = 0;
    for number in 0..amount(600, 300) {
        let call = CompactCall::random(&mut Random::new(number), 0.0);
        let after = call.check(&contexts);
        assert!(after.flags.iter().all(|&flags| flags == 0), "{number}");
        moved += usize::from(after.planes != call.planes);
    }
    assert!(moved > amount(100, 50), "rows moved in {moved} calls");
}

#[test]
fn paths_out_of_range_leave_their_rows_alone_and_disturb_no_others() {
    let contexts = contexts();
    let mut flagged = 0;
    for number in 0..amount(600, 300) {
        let mut random = Random::new(2000 + number);
        let mut call = CompactCall::random(&mut random, 0.4);
        if let Some((table, _)) = call.table.as_mut().filter(|_| random.chance(0.2)) {
            let place = random.below(table.len());
            table[place] = one_of(&mut random, [-1, i32::MIN, i32::MAX, call.num_pages as i32]);
        }
        let after = call.check(&contexts);
        flagged += after.flags.iter().filter(|&&flags| flags != 0).count();
    }
    assert!(flagged > amount(100, 50), "{flagged} paths were out of range");
}

/// One sequence of four nodes in rows of three heads.
fn small_call(layers: usize, head_bytes: usize, layout: i32) -> CompactCall {
    let mut call = CompactCall {
        most: 6,
        sequences: vec![(7, 3, vec![0, 2, 5, -1, -1, -1]), (3, 2, vec![0, 1, -1, -1, -1, -1])],
        decision_stride: 1,
        path_stride: 6,
        table: Some((vec![1, 4, 0, 2, 3, 5], 3)),
        page_size: 4,
        num_pages: 6,
        layout,
        heads: 3,
        head_bytes,
        strides: Strides::of(layout, 3, head_bytes, (4, 6), [0; 3]),
        names_strides: false,
        offset: 0,
        layers,
        has_values: true,
        list_gap: 0,
        planes: Vec::new(),
    };
    call.fill_planes(&mut Random::new(9));
    call
}

#[test]
fn rows_of_a_small_tree_move_where_they_should() {
    let contexts = contexts();
    for (layout, head_bytes) in
        [(SPEC_KV_NHD, 1), (SPEC_KV_HND, 2), (SPEC_KV_NHD, 5), (SPEC_KV_HND, 16)]
    {
        let after = small_call(2, head_bytes, layout).check(&contexts);
        // The root is at position 4: nodes 0, 2 and 5 are in page 4 from its beginning on, and in the
        // third page of the sequence.
        assert_eq!(after.source[..6], [16, 18, 1, -1, -1, -1]);
        assert_eq!(after.destination[..6], [16, 17, 18, -1, -1, -1]);
        assert_eq!(after.flags, [0; 2]);
    }
}

#[test]
fn each_thing_out_of_range_leaves_the_rows_of_its_sequence_alone() {
    type Spoil<'a> = (&'a str, &'a dyn Fn(&mut CompactCall));
    let contexts = contexts();
    let spoils: &[Spoil<'_>] = &[
        ("a negative count", &|call| call.sequences[0].1 = -1),
        ("more nodes than a tree has", &|call| call.sequences[0].1 = 7),
        ("a count above the position", &|call| call.sequences[0].0 = 2),
        ("a negative position", &|call| call.sequences[0].0 = -1),
        ("a path without root", &|call| call.sequences[0].2[0] = 1),
        ("a negative root", &|call| call.sequences[0].2[0] = -1),
        ("a path that stays", &|call| call.sequences[0].2[2] = 2),
        ("a path that goes back", &|call| call.sequences[0].2[2] = 1),
        ("a path that ends early", &|call| call.sequences[0].2[2] = -1),
        ("a node beyond the tree", &|call| {
            // Its row is there: rows 3 to 11 are those of the pages.
            (call.sequences[0].0, call.sequences[0].2[2]) = (6, 6);
        }),
        ("a row beyond the pages", &|call| call.sequences[0].0 = 10),
        ("no page of the source", &|call| table(call)[2] = -1),
        ("a page of the source beyond all", &|call| table(call)[2] = 6),
        ("no page of the destination", &|call| {
            // Nodes 0 and 5 are in the first and the third page, and go to the first and the second.
            call.sequences[0] = (5, 2, vec![0, 5, -1, -1, -1, -1]);
            table(call)[1] = -1;
        }),
        ("a page of the destination beyond all", &|call| {
            call.sequences[0] = (5, 2, vec![0, 5, -1, -1, -1, -1]);
            table(call)[1] = 6;
        }),
    ];
    fn table(call: &mut CompactCall) -> &mut [i32] {
        &mut call.table.as_mut().expect("a table").0
    }
    for (what, spoil) in spoils {
        let mut call = small_call(1, 4, SPEC_KV_NHD);
        call.sequences[1] = (3, 3, vec![0, 1, 3, -1, -1, -1]);
        let good = call.check(&contexts);
        assert_eq!(good.flags, [0, 0], "{what}, before");
        spoil(&mut call);
        let after = call.check(&contexts);
        assert_eq!(after.flags, [SPEC_KV_COMPACT_FLAG_INVALID, 0], "{what}");
        assert_eq!(after.source[..6], [-1; 6], "{what}");
        assert_eq!(after.source[6..], good.source[6..], "{what}: the neighbour");
    }
    // Without a table, too: a sequence has its page alone.
    let alone = |position| {
        let mut call = CompactCall {
            table: None,
            page_size: 12,
            num_pages: 2,
            strides: Strides::of(SPEC_KV_NHD, 3, 4, (12, 2), [0; 3]),
            ..small_call(1, 4, SPEC_KV_NHD)
        };
        call.sequences[0].0 = position;
        call.fill_planes(&mut Random::new(11));
        call.check(&contexts).flags
    };
    assert_eq!(alone(9), [0, 0]);
    assert_eq!(alone(10), [SPEC_KV_COMPACT_FLAG_INVALID, 0]);
}

#[test]
fn wide_rows_move_whole() {
    let contexts = contexts();
    for (heads, head_bytes) in [(1, 9001), (3, 3001), (2, 70_000)] {
        let mut call = CompactCall {
            heads,
            head_bytes,
            strides: Strides::of(SPEC_KV_HND, heads, head_bytes, (4, 6), [1, 0, 0]),
            has_values: false,
            ..small_call(1, 1, SPEC_KV_HND)
        };
        call.fill_planes(&mut Random::new(12));
        call.check(&contexts);
    }
}

#[test]
fn any_number_of_layers_moves_in_one_call() {
    let contexts = contexts();
    for layers in [31, 32, 33, 70] {
        small_call(layers, 4, SPEC_KV_NHD).check(&contexts);
    }
}

#[test]
fn the_deepest_path_moves_whole() {
    let contexts = contexts();
    let most = amount(1024, 130);
    // Every second node, and every node.
    for (count, step) in [(most / 2, 2), (most, 1), (most / 2 + 1, 1)] {
        let mut path: Vec<i32> = (0..count as i32).map(|node| node * step).collect();
        path.resize(most, -1);
        let mut call = CompactCall {
            most,
            sequences: vec![(count as i32 + 3, count as i32, path)],
            path_stride: most,
            table: None,
            page_size: most + 3,
            num_pages: 1,
            strides: Strides::of(SPEC_KV_NHD, 3, 8, (most + 3, 1), [0; 3]),
            ..small_call(1, 8, SPEC_KV_NHD)
        };
        call.fill_planes(&mut Random::new(10));
        assert_eq!(call.check(&contexts).flags, [0]);
    }
}

#[test]
fn lists_alone_move_nothing() {
    for context in contexts() {
        let device = context.device;
        let decision = Buffer::on(device, vec![9, 3]);
        let path = Buffer::on(device, vec![0, 2, 5]);
        let mut source = filled(device, 6);
        let args = spec_kv_compact_args {
            num_sequences: 1,
            max_nodes: 6,
            position: decision.as_ptr(),
            row_count: decision[1..].as_ptr(),
            path: path.as_ptr(),
            path_stride: 3,
            page_size: 20,
            num_pages: 1,
            source_rows: source.as_mut_ptr(),
            ..Versioned::blank()
        };
        compact(&context, &args).expect("a call");
        assert_eq!(source[..], [6, 8, 11, -1, -1, -1]);
        let none =
            spec_kv_compact_args { max_nodes: 1, page_size: 1, num_pages: 1, ..Versioned::blank() };
        compact(&context, &none).expect("a call for no sequences");
    }
}

#[test]
fn wrong_arguments_are_refused_for_moves() {
    type Spoil<'a> = (&'a str, spec_status, &'a dyn Fn(&mut spec_kv_compact_args));
    let context = Context::with_threads(1);
    let device = context.device;
    let decision = Buffer::on(device, vec![3, 2, 3, 2]);
    let path = Buffer::on(device, vec![0, 2, 0, 2]);
    let table = Buffer::on(device, vec![1, 0]);
    let mut rows = Buffer::on(device, (0..64).collect::<Vec<u8>>());
    let mut lists = filled(device, 8);
    let list = lists.as_mut_ptr();
    let bases: [*mut c_void; 2] = [rows.as_mut_ptr().cast(), null_mut()];
    let good = spec_kv_compact_args {
        num_sequences: 2,
        max_nodes: 4,
        position: decision.as_ptr(),
        row_count: decision[1..].as_ptr(),
        decision_stride: 2,
        path: path.as_ptr(),
        path_stride: 2,
        block_table: table.as_ptr(),
        block_table_stride: 1,
        page_size: 8,
        num_pages: 2,
        num_layers: 1,
        num_heads: 2,
        head_bytes: 2,
        keys: bases.as_ptr(),
        source_rows: list,
        ..Versioned::blank()
    };
    let spoils: &[Spoil<'_>] = &[
        ("unknown flags", UNSUPPORTED, &|args| args.flags = 1),
        ("a reserved field", UNSUPPORTED, &|args| args.reserved = 1),
        ("negative num_sequences", INVALID, &|args| args.num_sequences = -1),
        ("no nodes", INVALID, &|args| args.max_nodes = 0),
        ("too many nodes", INVALID, &|args| args.max_nodes = 1025),
        ("no position", INVALID, &|args| args.position = null()),
        ("no row_count", INVALID, &|args| args.row_count = null()),
        ("odd row_count", INVALID, &|args| args.row_count = args.row_count.wrapping_byte_add(1)),
        ("negative decision_stride", INVALID, &|args| args.decision_stride = -1),
        ("no path", INVALID, &|args| args.path = null()),
        ("no path_stride", INVALID, &|args| args.path_stride = 0),
        ("negative path_stride", INVALID, &|args| args.path_stride = -2),
        ("no block_table_stride", INVALID, &|args| args.block_table_stride = 0),
        ("odd block_table", INVALID, &|args| {
            args.block_table = args.block_table.wrapping_byte_add(1);
        }),
        ("fewer pages than sequences", INVALID, &|args| {
            (args.block_table, args.num_pages) = (null(), 1);
        }),
        ("no page_size", INVALID, &|args| args.page_size = 0),
        ("no pages", INVALID, &|args| args.num_pages = 0),
        ("more rows than can be counted", INVALID, &|args| args.num_pages = 1 << 28),
        ("an unknown layout", UNSUPPORTED, &|args| args.layout = 2),
        ("negative num_layers", INVALID, &|args| args.num_layers = -1),
        ("too many layers", INVALID, &|args| args.num_layers = 4097),
        ("no keys", INVALID, &|args| args.keys = null()),
        ("odd keys", INVALID, &|args| args.keys = args.keys.wrapping_byte_add(4)),
        ("keys without memory", INVALID, &|args| args.num_layers = 2),
        ("values without memory", INVALID, &|args| args.values = &raw const bases[1]),
        ("no heads", INVALID, &|args| args.num_heads = 0),
        ("no bytes", INVALID, &|args| args.head_bytes = 0),
        ("rows that are too wide", INVALID, &|args| args.head_bytes = 1 << 30),
        ("heads that overlap", INVALID, &|args| args.head_stride = 1),
        ("negative head_stride", INVALID, &|args| args.head_stride = -2),
        ("rows that overlap", INVALID, &|args| args.row_stride = 3),
        ("rows of a head that overlap", INVALID, &|args| {
            (args.layout, args.row_stride) = (SPEC_KV_HND, 1);
        }),
        ("heads inside of rows", INVALID, &|args| {
            (args.layout, args.head_stride) = (SPEC_KV_HND, 15);
        }),
        ("pages that overlap", INVALID, &|args| args.page_stride = 31),
        ("pages beyond all memory", INVALID, &|args| args.page_stride = i64::MAX),
        ("rows beyond all memory", INVALID, &|args| args.row_stride = 1 << 61),
        ("row_list_stride below N", INVALID, &|args| args.row_list_stride = 3),
        ("odd source_rows", INVALID, &|args| args.source_rows = list.wrapping_byte_add(1)),
        ("odd destination_rows", INVALID, &|args| {
            args.destination_rows = list.wrapping_byte_add(1);
        }),
        ("odd sequence_flags", INVALID, &|args| args.sequence_flags = list.wrapping_byte_add(1)),
        ("a small struct", INVALID, &|args| args.struct_size -= 1),
    ];
    for (what, status, spoil) in spoils {
        let mut args = good;
        spoil(&mut args);
        assert_refused(compact(&context, &args), "spec_kv_compact", *status, what);
    }
    if device == Device::Cpu {
        let stream = std::ptr::dangling_mut();
        // SAFETY: a stream that is not NULL is refused before it is used.
        let outcome =
            attempt(|error| unsafe { spec_kv_compact(context.handle, &good, stream, error) });
        assert_refused(outcome, "spec_kv_compact", INVALID, "a stream");
    }
    assert!(lists.iter().all(|&element| element == UNTOUCHED_I32), "written");
    assert!(rows.iter().zip(0..).all(|(&byte, place)| byte == place), "moved");
    compact(&context, &good).expect("the call as it should be");
    assert_eq!(lists[..], [9, 11, -1, -1, 1, 3, -1, -1]);
    // Row 2 of each page is what row 3 is.
    assert_eq!((&rows[8..12], &rows[40..44]), (&[12, 13, 14, 15][..], &[44, 45, 46, 47][..]));
}

// ---- Capture ------------------------------------------------------------------------------------

#[test]
fn captured_calls_read_their_arrays_when_they_are_launched() {
    if !is_cuda_or_skipped() {
        return;
    }
    let context = Context::with_threads(1);
    let device = context.device;
    let mut parents = Buffer::on(device, vec![-1, 0, 0, 1]);
    let mut mask = Buffer::on(device, vec![UNTOUCHED; 4]);
    let told = spec_tree_mask_args {
        num_sequences: 1,
        max_nodes: 4,
        parents: parents.as_ptr(),
        mask: mask.as_mut_ptr().cast(),
        mask_form: SPEC_MASK_BITS,
        mask_dtype_bits: 8,
        ..Versioned::blank()
    };
    let mut decision = Buffer::on(device, vec![2, 2]);
    let mut path = Buffer::on(device, vec![0, 2, -1, -1]);
    let mut rows = Buffer::on(device, vec![10_u8, 11, 12, 13]);
    let base: *mut c_void = rows.as_mut_ptr().cast();
    let moved = spec_kv_compact_args {
        num_sequences: 1,
        max_nodes: 4,
        position: decision.as_ptr(),
        row_count: decision[1..].as_ptr(),
        path: path.as_ptr(),
        path_stride: 4,
        page_size: 4,
        num_pages: 1,
        num_layers: 1,
        num_heads: 1,
        head_bytes: 1,
        keys: &raw const base,
        ..Versioned::blank()
    };
    let graph = context.stream.capture(|| {
        let stream = context.stream.handle();
        // SAFETY: a live handle and stream; all arrays outlive the graph's work.
        let statuses = unsafe {
            [
                spec_tree_mask(context.handle, &told, stream, null_mut()),
                spec_kv_compact(context.handle, &moved, stream, null_mut()),
            ]
        };
        assert_eq!(statuses, [SPEC_OK; 2]);
    });
    assert_eq!(graph.launches, 2);
    assert_eq!((&mask[..], &rows[..]), (&[UNTOUCHED; 4][..], &[10, 11, 12, 13][..]));
    graph.launch(&context.stream);
    context.stream.synchronize();
    assert_eq!(mask[..], [0b0001, 0b0011, 0b0101, 0b1011]);
    assert_eq!(rows[..], [10, 12, 12, 13]);
    parents.copy_from_slice(&[-1, 0, 1, 2]);
    decision.copy_from_slice(&[3, 3]);
    path.copy_from_slice(&[0, 2, 3, -1]);
    graph.launch(&context.stream);
    context.stream.synchronize();
    assert_eq!(mask[..], [0b0001, 0b0011, 0b0111, 0b1111]);
    assert_eq!(rows[..], [10, 12, 13, 13]);
}
