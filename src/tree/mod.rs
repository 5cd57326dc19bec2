//! Trees of drafts: which node stands below which, and what of that others are told. Node 0 is the
//! root, the known token; parents come before their children, and siblings are in the order of
//! their nodes.

mod compact;
mod inner;
mod mask;
mod paths;
mod topology;

pub use compact::{CompactRows, FLAG_INVALID, Placement, Planes, RowLists};
pub use inner::Inner;
pub use mask::{
    Extent, FLAG_PARENTS, FLAG_PATHS, FLAG_SIZE, LeafPaths, Links, Mask, MaskForm, MaskLayout,
    MaskTrees,
};
pub use topology::{Flaw, Limits, NODES_MAX, Topology};
