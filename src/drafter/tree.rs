//! Drafting of trees, level by level: the rows of a level of all trees are one run of a network that drafts
//! one token after the other; a block is run once, for all levels.

use super::Call;
use crate::backend::draft_trees::{
    BranchRows, DescribeTree, DrawSiblings, DynamicLevel, ExpandBest, FixedLevel, RankCandidates,
    ScoreChildren, TellLogits, TreeLevel, TreeShape,
};
use crate::error::Result;
use crate::model::trees::{Branching, LevelRun};
use crate::tree::{Inner, Topology};

/// Commits the call's rows, then proposes a tree of tokens per sequence.
pub fn draft(call: &Call<'_>, network: &Branching<'_>, shape: &TreeShape<'_>) -> Result<()> {
    call.commit(|step| network.commit(step))?;
    match *shape {
        TreeShape::Fixed { topology, is_drawn } => {
            if topology.levels() > 0 {
                draft_fixed(call, network, topology, is_drawn)?;
            }
            describe(call)
        }
        TreeShape::Dynamic { nodes, depth, width } => {
            describe(call)?;
            if nodes > 1 { draft_dynamic(call, network, depth, width) } else { Ok(()) }
        }
    }
}

/// Tells the host the trees of all sequences, if it wants to know them.
pub fn describe(call: &Call<'_>) -> Result<()> {
    if call.batch.links.is_none() {
        return Ok(());
    }
    let phase = DescribeTree { batch: *call.batch, plan: *call.plan };
    call.backend.describe_tree(call.stream, &phase)
}

/// Of a given tree only the nodes with children are run.
fn draft_fixed(
    call: &Call<'_>,
    network: &Branching<'_>,
    topology: &Topology,
    is_drawn: bool,
) -> Result<()> {
    let inner = Inner::of(topology);
    let mut run = network.start(call.step_of(0), topology.levels())?;
    loop {
        network.map_to_logits(&run)?;
        let depth = run.level.depth;
        let below = inner.level(depth + 1);
        // The root has no slot.
        let next = (!below.is_empty()).then(|| run.next(below.len(), below.start - 1));
        propose_children(call, network, &run, &inner, (is_drawn, next))?;
        let Some(next) = next else { return Ok(()) };
        run = network.advance(&run, next)?;
    }
}

/// Proposes the children of a level of a given tree, and lays out the next one.
fn propose_children(
    call: &Call<'_>,
    network: &Branching<'_>,
    run: &LevelRun<'_>,
    inner: &Inner<'_>,
    (is_drawn, next): (bool, Option<TreeLevel>),
) -> Result<()> {
    let Call { backend, stream, batch, plan, .. } = *call;
    let level = FixedLevel { level: run.level, inner, batch: *batch, plan: *plan };
    let logits = run.logits();
    if batch.draft_logits.is_some() || batch.draft_candidates.is_some() {
        let candidates = run.candidates();
        backend.tell_logits(stream, &TellLogits { level, logits, candidates })?;
    }
    let nodes = inner.level(run.level.depth).map(|number| inner.node(number));
    let most = nodes.map(|node| inner.topology().children(node).count()).max().unwrap_or(0);
    let children = network.select(run, most)?;
    if is_drawn && batch.sampling.temperature.is_some() {
        let scratch = run.proposal_scratch();
        let distance = network.distance();
        let draw = DrawSiblings { level, logits, children, distance, scratch };
        backend.draw_siblings(stream, &draw)?;
    }
    backend.branch_rows(stream, &BranchRows { level, children, next })
}

/// EAGLE-2: the best nodes of each level are run, and the best of all candidates become the tree.
fn draft_dynamic(
    call: &Call<'_>,
    network: &Branching<'_>,
    depth: usize,
    width: usize,
) -> Result<()> {
    let Call { backend, stream, batch, plan, .. } = *call;
    let mut run = network.start(call.step_of(0), depth)?;
    let pool = run.pool(width);
    loop {
        network.map_to_logits(&run)?;
        let level = DynamicLevel { level: run.level, pool, batch: *batch, plan: *plan };
        let children = network.select(&run, width)?;
        let (logits, scratch) = (run.logits(), run.proposal_scratch());
        backend.score_children(stream, &ScoreChildren { level, logits, children, scratch })?;
        let scored = run.level.depth + 1;
        if scored == depth {
            return backend.rank_candidates(stream, &RankCandidates { level });
        }
        let next = run.next(width, (scored - 1) * width);
        backend.expand_best(stream, &ExpandBest { level, next })?;
        run = network.advance(&run, next)?;
    }
}
