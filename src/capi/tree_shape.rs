//! Which trees a drafting call makes.

use super::boundary::{self, reserved, within};
use super::tensors::span;
use super::types::{SPEC_TREE_DYNAMIC, SPEC_TREE_STATIC, SPEC_TREE_STOCHASTIC, spec_tree_shape};
use crate::error::{Error, Result};
use crate::session::{CHILDREN_MAX, Session, TreeLimits, TreeShape};
use crate::tree::{Inner, Limits, Topology};

/// The shape of a call's trees, checked.
#[expect(clippy::large_enum_variant, reason = "steps allocate nothing")]
pub enum Shape {
    Fixed { topology: Topology, is_drawn: bool },
    Dynamic { nodes: usize, depth: usize, width: usize },
}

impl Shape {
    pub fn view(&self) -> TreeShape<'_> {
        match *self {
            Self::Fixed { ref topology, is_drawn } => TreeShape::Fixed { topology, is_drawn },
            Self::Dynamic { nodes, depth, width } => TreeShape::Dynamic { nodes, depth, width },
        }
    }
}

/// Reads the shape of the trees of a call that proposes at most `drafts` tokens for a sequence.
///
/// # Safety
///
/// `shape` is NULL or points to a struct as documented.
pub unsafe fn read_shape(
    session: &Session,
    shape: *const spec_tree_shape,
    drafts: usize,
) -> Result<Option<Shape>> {
    // SAFETY: as this function's contract.
    let Some(shape) = (unsafe { boundary::read_optional(shape)? }) else { return Ok(None) };
    let in_shape = |failure: Error| failure.within("tree_shape");
    let limits = tree_limits(session)?;
    reserved("tree_shape.reserved", shape.reserved.into())?;
    let is_dynamic = match shape.kind {
        SPEC_TREE_DYNAMIC => true,
        SPEC_TREE_STATIC | SPEC_TREE_STOCHASTIC => false,
        found => {
            return Err(Error::invalid(format!("tree_shape.kind: expected 1 to 3, found {found}")));
        }
    };
    let nodes = within("num_nodes", shape.num_nodes.into(), 1, drafts as i64 + 1);
    let nodes = nodes.map_err(in_shape)?;
    let read = if is_dynamic {
        dynamic(&shape, &limits, nodes)
    } else {
        // SAFETY: as this function's contract.
        unsafe { fixed(&shape, &limits, nodes) }
    };
    let read = read.map_err(in_shape)?;
    check_levels(session, &read).map_err(in_shape)?;
    Ok(Some(read))
}

/// Refuses trees with more levels than the model tells of.
fn check_levels(session: &Session, shape: &Shape) -> Result<()> {
    let (what, levels) = match shape {
        Shape::Fixed { topology, .. } => ("parents", topology.levels()),
        Shape::Dynamic { depth, .. } => ("depth", *depth),
    };
    match session.model().most_levels() {
        Some(most) if levels > most => Err(Error::invalid(format!(
            "{what}: expected at most {most} levels below the root (the model's most_drafts), found {levels}"
        ))),
        _ => Ok(()),
    }
}

fn tree_limits(session: &Session) -> Result<TreeLimits> {
    let model = session.model();
    if let Err(obstacle) = model.network().branching() {
        return Err(Error::unsupported(format!(
            "tree_shape: expected NULL, as trees are not drafted with {}: {obstacle}",
            model.kind()
        )));
    }
    session.limits().tree.ok_or_else(|| {
        Error::invalid("tree_shape: expected NULL, as the session's max_tree_width is 0")
    })
}

/// What EAGLE-2 is asked for.
fn dynamic(shape: &spec_tree_shape, limits: &TreeLimits, nodes: usize) -> Result<Shape> {
    if !shape.parents.is_null() {
        return Err(Error::invalid(format!(
            "parents: expected NULL for SPEC_TREE_DYNAMIC, found {:p}",
            shape.parents
        )));
    }
    let depth = within("depth", shape.depth.into(), 1, limits.depth as i64)?;
    let width = within("width", shape.width.into(), 1, limits.width as i64)?;
    let most = TreeLimits { width, depth }.candidates() + 1;
    within("num_nodes", nodes as i64, 1, most as i64)?;
    Ok(Shape::Dynamic { nodes, depth, width })
}

/// # Safety
///
/// As for [`read_shape`].
unsafe fn fixed(shape: &spec_tree_shape, limits: &TreeLimits, nodes: usize) -> Result<Shape> {
    for (what, value) in [("depth", shape.depth), ("width", shape.width)] {
        within(what, value.into(), 0, 0)?;
    }
    span("parents", shape.parents, nodes)?;
    // SAFETY: num_nodes elements, by the documented contract; the pointer is aligned.
    let parents = unsafe { std::slice::from_raw_parts(shape.parents, nodes) };
    let in_parents = |failure: Error| failure.within("parents");
    let most = Limits { nodes, depth: limits.depth, children: CHILDREN_MAX };
    let topology =
        Topology::from_parents(parents, &most).map_err(|flaw| in_parents(flaw.into()))?;
    if !topology.is_by_level() {
        let depth = topology.depth();
        let node = (1..nodes).find(|&node| depth[node] < depth[node - 1]).unwrap_or(0);
        return Err(Error::invalid(format!(
            "parents: expected nodes in the order of their depths, found node {node} of depth {} behind one of depth {}",
            depth[node],
            depth[node - 1]
        )));
    }
    let widest = Inner::of(&topology).widest();
    if widest > limits.width {
        return Err(Error::invalid(format!(
            "parents: expected at most {} nodes with children on a level (the session's max_tree_width), found {widest}",
            limits.width
        )));
    }
    Ok(Shape::Fixed { topology, is_drawn: shape.kind == SPEC_TREE_STOCHASTIC })
}
