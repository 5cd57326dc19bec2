//! Trees of drafts: which node stands below which, and what of that others are told. Node 0 is the
//! root, the known token; parents come before their children, and siblings are in the order of
//! their nodes.

mod paths;
mod topology;

pub use topology::{Flaw, Limits, NODES_MAX, Topology};
