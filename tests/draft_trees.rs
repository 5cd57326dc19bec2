//! Drafting of trees: each path is what a chain would draft, trees have the shape that was asked for, and
//! nothing of them stays in the pages.

mod device;
mod host;

use device::buffer::Buffer;
use device::memory::Memory;
use host::checkpoint::{MlpShape, Shape};
use host::draft::{
    DraftCall, Drafts, Place, Sampling, SamplingColumns, Table, Text, Tree, TreeShape, Turn,
    distance, margin,
};
use host::golden;
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::target::Target;
use host::verify::{Distribution, VerifyCall};
use host::{Context, Failure, Model, Session, session_options};
use speculators::capi::*;
use speculators::sampling::{Purpose, uniform};
use std::collections::{BTreeMap, BTreeSet};

const DRAFTS: i32 = 45;
const PAGE_SIZE: i32 = 4;
const MAX_POSITION: i32 = 96;
const WIDTH: i32 = 12;
const DEPTH: i32 = 6;

/// Sizes that hold every call of these tests.
fn options() -> spec_session_options {
    spec_session_options {
        max_sequences: 8,
        max_rows: 8 * MAX_POSITION,
        max_drafts: DRAFTS,
        max_position: MAX_POSITION,
        page_size: PAGE_SIZE,
        max_tree_width: WIDTH,
        max_tree_depth: DEPTH,
        ..session_options()
    }
}

struct World {
    model: Model,
    /// Levels of its trees, and tokens of its chains.
    depth: usize,
    /// The target's id of each column of logits, if all have the same that are not the identity.
    ids: Vec<i32>,
}

impl World {
    fn of(model: Model) -> Self {
        let depth = model.info().most_drafts.min(DEPTH) as usize;
        let ids = model.draft_token_ids();
        Self { model, depth, ids }
    }

    /// The reference checkpoint that comes first of a kind.
    fn reference(context: &Context, kind: &str) -> Self {
        let mut cases = golden::supported_cases().into_iter().filter(|case| case.kind == kind);
        let case = cases.next().expect("a reference checkpoint");
        println!("{}", case.name);
        Self::of(case.load(context).expect("a model"))
    }

    /// The token of a column of the logits below a node.
    fn token_of(&self, drafts: &Drafts, node: usize, column: usize) -> i32 {
        let ids = drafts.candidates.get(node).unwrap_or(&self.ids);
        ids.get(column).copied().unwrap_or(column as i32)
    }

    /// The column of a token.
    fn column_of(&self, drafts: &Drafts, node: usize, token: i32) -> usize {
        let columns = 0..drafts.logits[node].len();
        columns
            .into_iter()
            .find(|&column| self.token_of(drafts, node, column) == token)
            .expect("a column")
    }

    fn random(context: &Context, name: &str, shape: &Shape) -> Self {
        let directory = shape.write(&format!("trees-{name}"), 11);
        Self::of(Model::load(context, &directory, None).expect("a model"))
    }

    fn session(&self) -> Session {
        Session::create(&self.model, &options()).expect("a session")
    }

    fn text(&self, random: &mut Random, len: usize) -> Text {
        Text::random(random, len, self.model.info().vocabulary, &self.model.widths())
    }

    /// The width of full trees of this depth with so many nodes at most that the session holds.
    fn full(&self, width: usize, depth: usize) -> Vec<i32> {
        full(width, depth.min(self.depth))
    }
}

/// The parents of the tree in which every node above a depth has so many children.
fn full(width: usize, depth: usize) -> Vec<i32> {
    let mut parents = vec![-1];
    let (mut first, mut len) = (0, 1);
    for _ in 0..depth {
        let level = first..first + len;
        parents.extend(level.flat_map(|node| vec![node as i32; width]));
        (first, len) = (first + len, len * width);
    }
    parents
}

/// The parents of a tree by level; children of one node need not be neighbours.
fn random_shape(random: &mut Random, depth: usize, children: usize) -> Vec<i32> {
    let mut parents = vec![-1];
    let mut above = vec![0];
    for _ in 0..1 + random.below(depth) {
        let mut level = Vec::new();
        let mut counts = BTreeMap::new();
        for _ in 0..1 + random.below(8) {
            let parent = above[random.below(above.len())];
            let count = counts.entry(parent).or_insert(0);
            if *count < children && parents.len() <= DRAFTS as usize {
                *count += 1;
                level.push(parents.len() as i32);
                parents.push(parent);
            }
        }
        above = if level.is_empty() { above } else { level };
    }
    parents
}

/// Whether trees are refused with a reference checkpoint.
fn is_refused(case: &golden::Case) -> bool {
    case.kind == "xpress"
}

/// Runs a test on all reference checkpoints that draft trees, and on random models with windows, other types,
/// own norms and own tokens.
fn for_each_model(run: impl Fn(&World)) {
    let context = Context::with_threads(1);
    let mut seen = BTreeSet::new();
    for case in golden::supported_cases() {
        let is_wanted = !device::is_shortened() || !seen.contains(&case.kind);
        if is_wanted && !is_refused(&case) {
            println!("{}", case.name);
            run(&World::of(case.load(&context).expect("a model")));
            seen.insert(case.kind.clone());
        }
    }
    assert!(seen.len() >= 7, "only {seen:?} among the reference checkpoints");
    for_each_random_model(&context, run);
}

fn for_each_random_model(context: &Context, run: impl Fn(&World)) {
    let half = Shape { dtype: Dtype::Bf16, norm_output: true, ..Shape::default() };
    let own_tokens = Shape { window: Some(7), ..Shape::language_model("qwen2") };
    let models = [("sliding", Shape::sliding()), ("bf16", half), ("own-tokens", own_tokens)];
    for (name, shape) in models.into_iter().skip(device::amount(0, 2)) {
        println!("{name}");
        run(&World::random(context, name, &shape));
    }
    for (name, is_tied) in
        [("tied-heads", true), ("heads", false)].into_iter().take(device::amount(2, 1))
    {
        println!("{name}");
        let shape = MlpShape { is_tied, steps: if is_tied { 5 } else { 3 }, ..MlpShape::default() };
        let directory = shape.write(&format!("trees-{name}"), 11);
        run(&World::of(Model::load(context, &directory, None).expect("a model")));
    }
}

fn run(session: &Session, call: &DraftCall) -> Vec<Drafts> {
    let drafts = call.run(session).expect("a drafting call");
    session.poll().expect("no fault");
    drafts
}

fn sampled(seed: u64, top_k: i32) -> Sampling {
    Sampling { temperature: 1.3, top_k, seed, ..Sampling::default() }
}

/// One sequence that commits rows and drafts a tree, or a chain of the same length.
fn draft(session: &Session, turn: &Turn<'_>, shape: Option<&TreeShape>) -> Drafts {
    let call = DraftCall::of(std::slice::from_ref(turn));
    let call = match shape {
        Some(shape) => {
            let is_dynamic = matches!(shape, TreeShape::Dynamic { .. });
            let logits = if is_dynamic { None } else { call.logits };
            DraftCall { logits, ..call.with_trees(shape) }
        }
        None => DraftCall { tree_stride: Some(turn.drafts as usize + 3), ..call },
    };
    // Proposals of trees are not rated; those of chains are what they are without it.
    Drafts { confidence: Vec::new(), ..run(session, &call).remove(0) }
}

fn turn<'a>(text: &'a Text, rows: usize, parents: &[i32]) -> Turn<'a> {
    Turn::new(text, 0..rows, parents.len() as i32 - 1, Place::Slot(1))
}

fn chain(drafts: usize) -> Vec<i32> {
    (-1..drafts as i32).collect()
}

#[test]
fn a_tree_that_is_a_chain_is_what_is_drafted_without_a_shape() {
    for_each_model(|world| {
        let mut random = Random::new(3);
        let session = world.session();
        for rows in [13, 1, 2, 40].into_iter().take(device::amount(4, 2)) {
            let text = world.text(&mut random, rows + 1);
            let parents = chain(world.depth);
            for seed in 0..device::amount(4, 2) {
                let sampling = if seed == 0 { Sampling::default() } else { sampled(seed, 0) };
                let turn = Turn { sampling, ..turn(&text, rows, &parents) };
                let expected = draft(&session, &turn, None);
                assert_eq!(expected.tokens.len(), world.depth);
                assert_eq!(expected.tree, Tree::of(&parents, rows as i32));
                let drawn = draft(&session, &turn, Some(&TreeShape::Stochastic(parents.clone())));
                assert_eq!(drawn, expected, "{rows} rows, seed {seed}");
                if seed > 0 {
                    continue;
                }
                let given = draft(&session, &turn, Some(&TreeShape::Static(parents.clone())));
                assert_eq!(given, expected, "{rows} rows");
                let (nodes, depth) = (parents.len() as i32, world.depth as i32);
                let best = TreeShape::Dynamic { nodes, depth, width: 1 };
                let best = draft(&session, &turn, Some(&best));
                assert_eq!((best.tokens, best.tree), (expected.tokens, expected.tree));
            }
        }
    });
}

/// The node below another one with this token.
fn child_with(tree: &Drafts, node: usize, token: i32) -> Option<usize> {
    let nodes = 1..tree.tree.parents.len();
    nodes
        .into_iter()
        .find(|&child| tree.tree.parents[child] == node as i32 && tree.tokens[child - 1] == token)
}

#[test]
fn every_path_of_a_tree_is_what_a_chain_drafts_that_draws_its_tokens() {
    for_each_model(|world| {
        let mut random = Random::new(4);
        let session = world.session();
        for (width, depth, rows) in [(3, 3, 17), (2, 4, 6)].into_iter().take(device::amount(2, 1)) {
            let parents = world.full(width, depth);
            let text = world.text(&mut random, rows + 1);
            let shape = TreeShape::Static(parents.clone());
            let tree = draft(&session, &turn(&text, rows, &parents), Some(&shape));
            assert_eq!(tree.tree, Tree::of(&parents, rows as i32));
            let mut ends = BTreeSet::new();
            for seed in 0..device::amount(30, 6) {
                let sampling = sampled(seed, width as i32);
                let turn = turn(&text, rows, &chain(depth.min(world.depth)));
                let path = draft(&session, &Turn { sampling, ..turn }, None);
                let mut node = 0;
                for (step, (&token, logits)) in path.tokens.iter().zip(&path.logits).enumerate() {
                    assert_eq!(&tree.logits[node], logits, "the logits below node {node}");
                    assert_eq!(tree.candidates.get(node), path.candidates.get(step), "node {node}");
                    node = child_with(&tree, node, token).expect("one of the most probable");
                }
                ends.insert(node);
            }
            assert!(ends.len() > device::amount(5, 1), "only {} paths", ends.len());
        }
    });
}

/// The node of a full tree that is reached by the same ranks as a node of another tree.
fn node_in_full(tree: &Tree, node: usize, full: &Tree) -> usize {
    tree.path(node).into_iter().fold(0, |above, node| {
        let rank = (1..node).filter(|&other| tree.parents[other] == tree.parents[node]).count();
        let children = (0..full.parents.len()).filter(|&child| full.parents[child] == above as i32);
        children.into_iter().nth(rank).expect("as many children")
    })
}

#[test]
fn children_are_the_most_probable_tokens_in_order_whatever_the_shape() {
    for_each_model(|world| {
        let mut random = Random::new(5);
        let session = world.session();
        let parents = world.full(3, 3);
        let text = world.text(&mut random, 12);
        let all =
            draft(&session, &turn(&text, 11, &parents), Some(&TreeShape::Static(parents.clone())));
        for _ in 0..device::amount(12, 2) {
            let parents = random_shape(&mut random, world.depth.min(3), 3);
            let shape = TreeShape::Static(parents.clone());
            let part = draft(&session, &turn(&text, 11, &parents), Some(&shape));
            assert_eq!(part.tree, Tree::of(&parents, 11));
            for node in 0..parents.len() {
                let same = node_in_full(&part.tree, node, &all.tree);
                if node > 0 {
                    assert_eq!(part.tokens[node - 1], all.tokens[same - 1], "{parents:?}, {node}");
                }
                if part.tree.first_child[node] == -1 {
                    continue;
                }
                let logits = &part.logits[node];
                assert_eq!(logits, &all.logits[same], "{parents:?}, {node}");
                let mut order: Vec<usize> = (0..logits.len()).collect();
                order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
                let children = (1..parents.len()).filter(|&child| parents[child] == node as i32);
                for (child, column) in children.zip(order) {
                    let id = world.token_of(&part, node, column);
                    assert_eq!(part.tokens[child - 1], id, "{parents:?}, {child}");
                }
            }
        }
    });
}

#[test]
fn trees_of_language_models_are_what_double_precision_says() {
    let context = Context::with_threads(2);
    for (name, shape) in [
        ("plain-llama", Shape { kv_heads: 4, ..Shape::language_model("llama") }),
        ("plain-sliding", Shape { layers: 3, window: Some(5), ..Shape::language_model("qwen2") }),
    ] {
        let directory = shape.write(name, 31);
        let world = World::of(Model::load(&context, &directory, None).expect("a model"));
        let session = world.session();
        let mut random = Random::new(6);
        let mut plain = Target::load(&directory);
        let text = world.text(&mut random, 20);
        for &token in &text.tokens[..19] {
            plain.advance(token);
        }
        let parents = random_shape(&mut random, 5, 4);
        let tree =
            draft(&session, &turn(&text, 19, &parents), Some(&TreeShape::Static(parents.clone())));
        for node in 0..parents.len() {
            if tree.tree.first_child[node] == -1 {
                continue;
            }
            let mut ahead = plain.clone();
            let mut logits = ahead.advance(text.tokens[19]).logits;
            for above in tree.tree.path(node) {
                logits = ahead.advance(tree.tokens[above - 1]).logits;
            }
            let apart = distance(&tree.logits[node], &logits[..tree.logits[node].len()]);
            assert!(apart < 2e-4, "{name}, {parents:?}, node {node}: {apart}");
        }
    }
}

// ---- Dynamic trees -------------------------------------------------------------------------------

/// A candidate of EAGLE-2, in double precision.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f64,
    parent: Option<usize>,
    /// Its node in the full tree.
    node: usize,
}

/// EAGLE-2 on the logits of a full tree, where a token may be missing: the parents and tokens of its tree, and
/// the smallest difference that decided.
fn eagle_2(
    world: &World,
    all: &Drafts,
    (nodes, depth, width): (usize, usize, usize),
) -> (Vec<i32>, Vec<i32>, f64) {
    let mut decided = f64::INFINITY;
    let mut pool: Vec<Candidate> = Vec::new();
    let mut frontier: Vec<Option<usize>> = vec![None];
    for level in 0..depth {
        let begin = pool.len();
        for &above in &frontier {
            let (node, score) =
                above.map_or((0, 0.0), |above| (pool[above].node, pool[above].score));
            let logits: Vec<f64> = all.logits[node].iter().copied().map(f64::from).collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            let children = (1..all.tree.parents.len())
                .filter(|&child| all.tree.parents[child] == node as i32)
                .take(width);
            for child in children.filter(|&child| all.tokens[child - 1] >= 0) {
                let column = world.column_of(all, node, all.tokens[child - 1]);
                let score = score + logits[column] - largest - total.ln();
                pool.push(Candidate { score, parent: above, node: child });
            }
        }
        if level + 1 < depth {
            let mut order: Vec<usize> = (begin..pool.len()).collect();
            order.sort_by(|&a, &b| pool[b].score.total_cmp(&pool[a].score));
            for pair in order.windows(2).take(width) {
                decided = decided.min(pool[pair[0]].score - pool[pair[1]].score);
            }
            frontier = order.into_iter().take(width).map(Some).collect();
        }
    }
    let mut order: Vec<usize> = (0..pool.len()).collect();
    order.sort_by(|&a, &b| pool[b].score.total_cmp(&pool[a].score));
    if nodes - 1 < order.len() {
        decided = decided.min(pool[order[nodes - 2]].score - pool[order[nodes - 1]].score);
    }
    order.truncate(nodes - 1);
    order.sort_unstable();
    let node_of = |candidate: usize| order.iter().position(|&other| other == candidate);
    let mut parents = vec![-1];
    for &candidate in &order {
        let above = pool[candidate].parent;
        let above = above.map(|above| node_of(above).expect("a parent before its child"));
        parents.push(above.map_or(0, |above| above as i32 + 1));
    }
    (
        parents,
        order.iter().map(|&candidate| all.tokens[pool[candidate].node - 1]).collect(),
        decided,
    )
}

#[test]
fn dynamic_trees_are_those_of_eagle_2() {
    for_each_model(|world| {
        let mut random = Random::new(7);
        let session = world.session();
        let (mut compared, mut shapes) = (0, BTreeSet::new());
        let sizes = [(3, 3), (2, 4), (6, 2), (9, 1)];
        for (width, depth) in sizes.into_iter().take(device::amount(4, 1)) {
            let depth = depth.min(world.depth);
            let parents = full(width, depth);
            for rows in [22, 3, 60].into_iter().take(device::amount(3, 1)) {
                let text = world.text(&mut random, rows + 1);
                let shape = TreeShape::Static(parents.clone());
                let all = draft(&session, &turn(&text, rows, &parents), Some(&shape));
                let most = width + (depth - 1) * width * width + 1;
                for nodes in [2, 1 + most / 3, most].map(|nodes| nodes.min(DRAFTS as usize)) {
                    let shape = TreeShape::Dynamic {
                        nodes: nodes as i32,
                        depth: depth as i32,
                        width: width as i32,
                    };
                    let turn = Turn { drafts: nodes as i32 - 1, ..turn(&text, rows, &parents) };
                    let found = draft(&session, &turn, Some(&shape));
                    let (parents, tokens, decided) = eagle_2(world, &all, (nodes, depth, width));
                    if decided < 1e-4 {
                        continue;
                    }
                    compared += 1;
                    assert_eq!(found.tokens, tokens, "{shape:?}, {rows} rows");
                    assert_eq!(found.tree, Tree::of(&parents, rows as i32), "{shape:?}");
                    shapes.insert(parents);
                }
            }
        }
        let enough = device::amount((20, 5), (1, 1));
        assert!(compared > enough.0 && shapes.len() > enough.1, "{compared} compared, {shapes:?}");
    });
}

#[test]
fn a_dynamic_tree_with_fewer_drafts_has_the_best_ones() {
    let context = Context::with_threads(1);
    for_each_random_model(&context, |world| {
        let mut random = Random::new(8);
        let session = world.session();
        let text = world.text(&mut random, 31);
        let wanted = |nodes: i32, drafts: i32| {
            let shape = TreeShape::Dynamic { nodes, depth: 4, width: 5 };
            let turn = Turn::new(&text, 0..30, nodes - 1, Place::Slot(1));
            let call = DraftCall::of(&[turn]).with_trees(&shape);
            let num_drafts = Some(vec![drafts]);
            run(&session, &DraftCall { num_drafts, logits: None, ..call }).remove(0)
        };
        for drafts in [0, 1, 7, 19] {
            assert_eq!(wanted(20, drafts).tokens, wanted(drafts + 1, drafts).tokens);
            assert_eq!(wanted(20, drafts).tree, wanted(drafts + 1, drafts).tree);
        }
    });
}

// ---- Stochastic trees ----------------------------------------------------------------------------

/// Siblings after logits, by real numbers; `None` where rounding could decide otherwise. -1 where no token is
/// left.
fn siblings(
    logits: &[f32],
    sampling: Sampling,
    position: i32,
    depth: u32,
    count: usize,
) -> Option<Vec<i32>> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let kept = if sampling.top_k > 0 { sampling.top_k as usize } else { logits.len() };
    let largest = f64::from(logits[order[0]]);
    let mut weights = vec![0.0; logits.len()];
    for &column in order.iter().take(kept) {
        let behind = f64::from(logits[column]) - largest;
        weights[column] = (behind / f64::from(sampling.temperature)).exp();
    }
    let mut drawn = Vec::new();
    for rank in 0..count as u32 {
        let total: f64 = weights.iter().sum();
        if total == 0.0 {
            drawn.push(-1);
            continue;
        }
        let lane = (depth - 1) << 16 | rank;
        let number = uniform(sampling.seed, position as u64, Purpose::Draft, lane);
        let target = number as f64 / 2.0_f64.powi(64) * total;
        let mut reached = 0.0;
        let mut column = None;
        for (place, weight) in weights.iter().enumerate() {
            reached += weight;
            if (reached - target).abs() < 1e-5 * total {
                return None;
            }
            column = column.or((target < reached).then_some(place));
        }
        let column = column?;
        weights[column] = 0.0;
        drawn.push(column as i32);
    }
    Some(drawn)
}

#[test]
fn siblings_are_drawn_without_replacement_by_numbers_of_their_own() {
    for_each_model(|world| {
        let mut random = Random::new(9);
        let session = world.session();
        let text = world.text(&mut random, 24);
        let mut compared = 0;
        for seed in 0..device::amount(12, 2) {
            let parents = random_shape(&mut random, world.depth.min(4), 5);
            let sampling = sampled(seed, [0, 5, 9][random.below(3)]);
            let turn = Turn { sampling, ..turn(&text, 23, &parents) };
            let shape = TreeShape::Stochastic(parents.clone());
            let tree = draft(&session, &turn, Some(&shape));
            assert_eq!(tree.tree, Tree::of(&parents, 23));
            for node in 0..parents.len() {
                let children: Vec<usize> =
                    (1..parents.len()).filter(|&child| parents[child] == node as i32).collect();
                let Some(&first) = children.first() else { continue };
                let (position, depth) = (tree.tree.position[first], tree.tree.depth[first]);
                let expected =
                    siblings(&tree.logits[node], sampling, position, depth as u32, children.len());
                let Some(expected) = expected else { continue };
                let tokens: Vec<i32> =
                    children.iter().map(|&child| tree.tokens[child - 1]).collect();
                let token = |column: i32| match usize::try_from(column) {
                    Ok(column) => world.token_of(&tree, node, column),
                    Err(_) => -1,
                };
                let expected: Vec<i32> = expected.into_iter().map(token).collect();
                assert_eq!(tokens, expected, "{parents:?}, {sampling:?}, node {node}");
                compared += 1;
            }
        }
        assert!(compared > device::amount(20, 2), "{compared} compared");
    });
}

#[test]
fn siblings_have_the_law_of_draws_without_replacement() {
    let context = Context::with_threads(2);
    let world = World::random(&context, "law", &Shape::default());
    let session = world.session();
    let text = world.text(&mut Random::new(10), 5);
    let ids = world.model.draft_token_ids();
    let shape = TreeShape::Stochastic(vec![-1, 0, 0]);
    let mut counts = BTreeMap::new();
    let draws = device::amount(3000, 8);
    let mut logits = Vec::new();
    for batch in 0..draws {
        let turns: Vec<Turn<'_>> = (0..8)
            .map(|slot| {
                let sampling = sampled(batch * 8 + slot as u64, 3);
                Turn { sampling, ..Turn::new(&text, 0..4, 2, Place::Slot(slot)) }
            })
            .collect();
        for drafts in run(&session, &DraftCall::of(&turns).with_trees(&shape)) {
            *counts.entry(drafts.tokens.clone()).or_insert(0_u32) += 1;
            logits.clone_from(&drafts.logits[0]);
        }
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let weight =
        |column: usize| (f64::from(logits[column] - logits[order[0]]) / f64::from(1.3_f32)).exp();
    let total: f64 = order[..3].iter().map(|&column| weight(column)).sum();
    let all = f64::from(counts.values().sum::<u32>());
    let (mut pairs, mut chi_square) = (0, 0.0);
    for &first in &order[..3] {
        for &second in order[..3].iter().filter(|&&second| second != first) {
            let p = weight(first) / total * weight(second) / (total - weight(first));
            let id = |column: usize| ids.get(column).copied().unwrap_or(column as i32);
            let found = counts.get(&vec![id(first), id(second)]).copied().unwrap_or(0);
            chi_square += (f64::from(found) - p * all).powi(2) / (p * all);
            pairs += usize::from(found > 0);
        }
    }
    assert!(pairs == counts.len() && pairs >= device::amount(6, 3), "{counts:?}");
    // 5 degrees of freedom: 1 in 10^6 exceeds this.
    assert!(chi_square < 35.9, "{chi_square}: {counts:?}");
}

/// Trees that are drafted with drawn siblings, and verified against a target whose rows depend on depth alone.
struct VerifiedTrees<'w> {
    world: &'w World,
    context: &'w Context,
    session: Session,
    text: Text,
    parents: Vec<i32>,
    depths: [usize; 7],
}

impl<'w> VerifiedTrees<'w> {
    const SEQUENCES: usize = 8;

    fn new(world: &'w World, context: &'w Context) -> Self {
        let (parents, depths) = (vec![-1, 0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2, 2]);
        let text = world.text(&mut Random::new(12), 5);
        Self { world, context, session: world.session(), text, parents, depths }
    }

    fn samplings(batch: u64) -> Vec<Sampling> {
        (0..Self::SEQUENCES as u64).map(|slot| sampled(batch * 8 + slot, 0)).collect()
    }

    fn draft(&self, batch: u64) -> Vec<Drafts> {
        let shape = TreeShape::Stochastic(self.parents.clone());
        let drafts = self.parents.len() as i32 - 1;
        let turn = |(slot, sampling)| Turn {
            sampling,
            ..Turn::new(&self.text, 0..4, drafts, Place::Slot(slot as i32))
        };
        let turns: Vec<Turn<'_>> =
            Self::samplings(batch).into_iter().enumerate().map(turn).collect();
        run(&self.session, &DraftCall::of(&turns).with_trees(&shape))
    }

    /// A row for each depth, near what the drafter says of a node of it, so that some drafts are accepted and
    /// some are not.
    fn target_rows(&self) -> [Vec<f32>; 3] {
        let drafts = self.draft(0).remove(0);
        let mut random = Random::new(13);
        [0, 1, 1].map(|node| {
            let mut row = random.normals(self.world.model.info().vocabulary as usize);
            for (column, logit) in drafts.logits[node].iter().enumerate() {
                row[self.world.token_of(&drafts, node, column) as usize] += logit;
            }
            row
        })
    }

    /// What is emitted for the sequences of a batch.
    fn emitted(&self, batch: u64, logits: &Matrix) -> Vec<Vec<i32>> {
        let drafts = self.draft(batch);
        let columns = drafts[0].logits[0].len();
        let tokens: Vec<&[i32]> = drafts.iter().map(|drafts| &drafts.tokens[..]).collect();
        let counts = tokens.iter().map(|tokens| tokens.len() as i32).collect();
        let (positions, samplings) = (vec![5; tokens.len()], Self::samplings(batch));
        let tokens = Table::ragged(&tokens);
        let mut call = VerifyCall::new(logits.clone(), tokens, counts, positions, &samplings);
        // Nothing was drawn from the rows of leaves.
        let row_of = |row: &Vec<f32>| match row.len() {
            0 => vec![f32::NAN; columns],
            _ => row.clone(),
        };
        let q: Vec<f32> =
            drafts.iter().flat_map(|one| one.logits.iter().flat_map(row_of)).collect();
        let ids_of = |row: &Vec<i32>| match row.len() {
            0 => vec![-1; columns],
            _ => row.clone(),
        };
        let row_ids: Vec<i32> =
            drafts.iter().flat_map(|one| one.candidates.iter().flat_map(ids_of)).collect();
        call.rule = SPEC_RULE_REJECTION_DISTINCT;
        call.parents = Some(self.parents.clone());
        call.draft = Some(Distribution {
            logits: Matrix::new(q.len() / columns, columns, &q),
            has_row_ids: !row_ids.is_empty(),
            token_ids: if row_ids.is_empty() { self.world.ids.clone() } else { row_ids },
        });
        let decisions = call.run(self.context).expect("a verification");
        (0..Self::SEQUENCES).map(|sequence| decisions.emitted(sequence).to_vec()).collect()
    }

    /// Compares what is emitted at each depth in so many batches with the law of its row.
    fn compare(&self, batches: u64) {
        let rows = self.target_rows();
        let of_nodes: Vec<f32> =
            self.depths.iter().flat_map(|&depth| rows[depth].clone()).collect();
        let nodes = Self::SEQUENCES * self.depths.len();
        let logits = Matrix::new(nodes, rows[0].len(), &of_nodes.repeat(Self::SEQUENCES));
        let mut counts = vec![vec![0.0; rows[0].len()]; rows.len()];
        let mut lengths = [0; 3];
        for emitted in (0..batches).flat_map(|batch| self.emitted(batch, &logits)) {
            lengths[emitted.len() - 1] += 1;
            for (counts, &token) in counts.iter_mut().zip(&emitted) {
                counts[token as usize] += 1.0;
            }
        }
        assert!(lengths[..device::amount(3, 1)].iter().all(|&count| count > 0), "{lengths:?}");
        for (depth, (counts, row)) in counts.iter().zip(&rows).enumerate() {
            let all: f64 = counts.iter().sum();
            let weights: Vec<f64> =
                row.iter().map(|&logit| (f64::from(logit) / f64::from(1.3_f32)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (token, (count, weight)) in counts.iter().zip(&weights).enumerate() {
                let share = weight / sum;
                let spread = (share * (1.0 - share) * all).sqrt();
                // Of rare tokens a few are no wonder.
                let is_lawful = (count - share * all).abs() <= 5.0 * spread + 3.0;
                assert!(is_lawful, "depth {depth}, {token}: {count} of {all} for {share}");
            }
        }
    }
}

#[test]
fn verified_trees_of_drawn_siblings_have_the_targets_law_at_every_depth() {
    let context = Context::with_threads(2);
    let world = World::random(&context, "verified", &Shape::default());
    VerifiedTrees::new(&world, &context).compare(device::amount(4000, 3));
    // One that runs a block for all levels, and those whose tokens know of those above them.
    for kind in ["dflash", "dflash2", "dspark"] {
        let world = World::reference(&context, kind);
        VerifiedTrees::new(&world, &context).compare(device::amount(1000, 2));
    }
}

#[test]
fn siblings_that_no_candidate_is_left_for_are_not_proposed_nor_is_what_is_below_them() {
    for_each_model(|world| {
        let session = world.session();
        let text = world.text(&mut Random::new(11), 8);
        let parents = match world.depth {
            1 => vec![-1, 0, 0, 0, 0],
            _ => vec![-1, 0, 0, 0, 0, 1, 3, 3, 1],
        };
        let turn = Turn { sampling: sampled(4, 2), ..turn(&text, 7, &parents) };
        let shape = TreeShape::Stochastic(parents.clone());
        let tree = draft(&session, &turn, Some(&shape));
        assert_eq!(tree.tree, Tree::of(&parents, 7));
        assert_eq!(tree.tokens.len(), parents.len() - 1);
        for node in 1..parents.len() {
            let is_missing = [3, 4].contains(tree.tree.path(node).first().expect("a path"));
            assert_eq!(tree.tokens[node - 1] == -1, is_missing, "node {node}: {:?}", tree.tokens);
        }
        assert_ne!(tree.tokens[0], tree.tokens[1]);
        // Padding does not stand for them.
        let call = DraftCall { padding: Some(7), ..DraftCall::of(&[turn]).with_trees(&shape) };
        assert_eq!(run(&session, &call).remove(0).tokens, tree.tokens);
    });
}

#[test]
fn greedy_sequences_have_static_trees_beside_sampled_ones() {
    for_each_model(|world| {
        let mut random = Random::new(12);
        let session = world.session();
        let parents = random_shape(&mut random, world.depth.min(4), 4);
        let texts = [world.text(&mut random, 9), world.text(&mut random, 15)];
        let turns: Vec<Turn<'_>> = (0..2)
            .map(|slot| {
                let rows = 0..texts[slot].tokens.len() - 1;
                let drafts = parents.len() as i32 - 1;
                let turn = Turn::new(&texts[slot], rows, drafts, Place::Slot(slot as i32));
                if slot == 0 { turn } else { Turn { sampling: sampled(5, 0), ..turn } }
            })
            .collect();
        let call = DraftCall::of(&turns).with_trees(&TreeShape::Stochastic(parents.clone()));
        let drawn = run(&session, &call);
        let given = draft(&session, &turns[0], Some(&TreeShape::Static(parents.clone())));
        assert_eq!(drawn[0], given);
        let alone = draft(&session, &turns[1], Some(&TreeShape::Stochastic(parents.clone())));
        assert_eq!(drawn[1], alone);
    });
}

// ---- Batches, cuts, pages ------------------------------------------------------------------------

/// All shapes of one kind each.
fn shapes(random: &mut Random, world: &World) -> [TreeShape; 3] {
    let depth = world.depth.min(4);
    let nodes = 18.min(1 + 4 + (depth as i32 - 1) * 16);
    [
        TreeShape::Static(random_shape(random, depth, 4)),
        TreeShape::Stochastic(random_shape(random, depth, 4)),
        TreeShape::Dynamic { nodes, depth: depth as i32, width: 4 },
    ]
}

fn drafts_of(shape: &TreeShape) -> i32 {
    match shape {
        TreeShape::Static(parents) | TreeShape::Stochastic(parents) => parents.len() as i32 - 1,
        TreeShape::Dynamic { nodes, .. } => nodes - 1,
    }
}

/// The same call with logits where the shape has them.
fn call_of(turns: &[Turn<'_>], shape: &TreeShape) -> DraftCall {
    let call = DraftCall::of(turns).with_trees(shape);
    let is_dynamic = matches!(shape, TreeShape::Dynamic { .. });
    DraftCall { logits: if is_dynamic { None } else { call.logits }, ..call }
}

#[test]
fn ragged_batches_draft_what_each_sequence_drafts_alone_with_any_threads() {
    for_each_model(|world| {
        let mut random = Random::new(13);
        for shape in shapes(&mut random, world) {
            let most = drafts_of(&shape);
            let texts: Vec<Text> = (0..device::amount(7, 4))
                .map(|index| world.text(&mut random, 3 + 7 * index))
                .collect();
            let turn = |slot: usize| Turn {
                sampling: if slot.is_multiple_of(3) {
                    Sampling::default()
                } else {
                    sampled(slot as u64, 0)
                },
                drafts: if slot == 3 { 0 } else { (most - (slot as i32 * 5) % 11).max(1) },
                ..Turn::new(&texts[slot], 0..2 + 7 * slot, most, Place::Slot(slot as i32))
            };
            let turns: Vec<Turn<'_>> = (0..texts.len()).map(turn).collect();
            let mut call = call_of(&turns, &shape);
            (call.max_drafts, call.draft_stride) = (most, most as usize);
            call.tree_stride = Some(most as usize + 4);
            let together = run(&world.session(), &call);
            for (slot, drafts) in together.iter().enumerate() {
                let mut alone = call_of(&turns[slot..=slot], &shape);
                (alone.max_drafts, alone.draft_stride) = (most, most as usize);
                alone.tree_stride = Some(most as usize + 1);
                assert_eq!(&run(&world.session(), &alone)[0], drafts, "{shape:?}, slot {slot}");
            }
        }
    });
    if device::is_cuda() {
        return;
    }
    let directory = Shape::default().write("trees-threads", 12);
    let drafts = |threads: i32| {
        let context = Context::with_threads(threads);
        let world = World::of(Model::load(&context, &directory, None).expect("a model"));
        let mut random = Random::new(14);
        let text = world.text(&mut random, 40);
        let session = world.session();
        shapes(&mut random, &world).map(|shape| {
            let turn = Turn::new(&text, 0..39, drafts_of(&shape), Place::Slot(0));
            draft(&session, &Turn { sampling: sampled(3, 0), ..turn }, Some(&shape))
        })
    };
    assert_eq!(drafts(1), drafts(4));
}

#[test]
fn a_tree_is_cut_to_its_first_nodes_and_to_the_depth_that_there_is_room_for() {
    for_each_model(|world| {
        let mut random = Random::new(15);
        let session = world.session();
        let own_tokens = i32::from(world.model.info().num_features == 0);
        for is_drawn in [false, true] {
            let parents = random_shape(&mut random, world.depth.min(4), 4);
            let shape = match is_drawn {
                false => TreeShape::Static(parents.clone()),
                true => TreeShape::Stochastic(parents.clone()),
            };
            let most = drafts_of(&shape);
            let len = MAX_POSITION as usize;
            let text = world.text(&mut random, len);
            let sampling = if is_drawn { sampled(8, 0) } else { Sampling::default() };
            let turn = Turn { sampling, ..turn(&text, 20, &parents) };
            let whole = draft(&session, &turn, Some(&shape));
            let check = |found: Drafts, nodes: usize, what: &str| {
                assert_eq!(found.tree, whole.tree.first(nodes), "{what}, {parents:?}");
                assert_eq!(found.tokens, whole.tokens[..nodes - 1], "{what}, {parents:?}");
                let has_children = |node: usize| parents[..nodes].contains(&(node as i32));
                for node in (0..most as usize).filter(|&node| has_children(node)) {
                    assert_eq!(found.logits[node], whole.logits[node], "{what}, {parents:?}");
                }
            };
            for drafts in (0..most).step_by(device::amount(1, 4)) {
                let call = call_of(std::slice::from_ref(&turn), &shape);
                let call = DraftCall { num_drafts: Some(vec![drafts]), ..call };
                check(run(&session, &call).remove(0), drafts as usize + 1, "num_drafts");
            }
            let deepest =
                |depth: i32| whole.tree.depth.iter().filter(|&&other| other <= depth).count();
            for limit in [2, 3, -3, 0, 1, 4, 90].into_iter().take(device::amount(7, 2)) {
                let call = call_of(std::slice::from_ref(&turn), &shape);
                let call = DraftCall { limit: Some(vec![limit]), ..call };
                let nodes = if limit < 1 { 1 } else { deepest(limit - 1) };
                check(run(&session, &call).remove(0), nodes, "limit");
            }
            for rows in len - device::amount(4, 2)..len {
                let turn = Turn { rows: 0..rows, ..turn.clone() };
                let found = draft(&session, &turn, Some(&shape));
                let depth = (len - rows) as i32 + 1 - own_tokens;
                let is_there = |&&other: &&i32| other <= depth;
                let nodes = whole.tree.depth.iter().filter(is_there).count();
                assert_eq!(found.tokens.len() + 1, nodes, "{rows} rows");
            }
        }
        // The depth of dynamic trees is bounded likewise.
        let depth = world.depth.min(4) as i32;
        let shape = TreeShape::Dynamic { nodes: 5, depth, width: 4 };
        let text = world.text(&mut random, 10);
        let turn = Turn::new(&text, 0..9, 4, Place::Slot(0));
        for limit in 0..4 {
            let call = call_of(std::slice::from_ref(&turn), &shape);
            let found = run(&session, &DraftCall { limit: Some(vec![limit]), ..call }).remove(0);
            let shallow =
                TreeShape::Dynamic { nodes: 5, depth: (limit - 1).clamp(1, depth), width: 4 };
            let expected =
                if limit < 2 { Vec::new() } else { draft(&session, &turn, Some(&shallow)).tokens };
            assert_eq!(found.tokens, expected, "limit {limit}");
        }
    });
}

#[test]
fn nothing_of_a_tree_stays_in_the_pages() {
    for_each_model(|world| {
        let needs = Session::requirements(&world.model, &options()).expect("requirements");
        let mut random = Random::new(16);
        let text = world.text(&mut random, 40);
        let own_tokens = world.model.info().num_features == 0;
        for shape in shapes(&mut random, world) {
            let pool = Memory::filled(needs.kv_pool_size, 0x5a);
            let pooled = spec_session_options {
                kv_pool: pool.address(),
                kv_pool_size: needs.kv_pool_size,
                ..options()
            };
            let session = Session::create(&world.model, &pooled).expect("a session");
            let turn = |rows: std::ops::Range<usize>, drafts: i32| {
                Turn::new(&text, rows, drafts, Place::Pages(&[9, 4, 7, 2]))
            };
            // A chain of one draft runs no row but that of the root, and nothing else is different.
            run(&session, &DraftCall::of(&[turn(0..15, 1)]));
            let before = pool.elements::<u8>();
            let drafts = drafts_of(&shape);
            let first = run(&session, &call_of(&[turn(0..15, drafts)], &shape)).remove(0);
            assert!(!first.tokens.is_empty());
            assert!(pool.elements::<u8>() == before, "{shape:?}: written to the pages");
            // Rollback, and the same again.
            let earlier = run(&session, &call_of(&[turn(10..11, drafts)], &shape)).remove(0);
            let alone = world.session();
            let fresh = Turn { place: Place::Slot(0), ..turn(0..11, drafts) };
            assert_eq!(earlier, draft(&alone, &fresh, Some(&shape)), "{shape:?}");
            let again = run(&session, &call_of(&[turn(11..15, drafts)], &shape)).remove(0);
            assert_eq!(again, first, "{shape:?}");
            // 16 rows fill four pages: a tree needs another one only where the root has a row.
            for (rows, has_room) in [(15, true), (16, !own_tokens)] {
                let call = call_of(&[turn(0..rows, drafts)], &shape);
                let found = call.run(&session).expect("a call").remove(0);
                assert_eq!(session.poll().is_ok(), has_room, "{rows} rows");
                assert_eq!(!found.tokens.is_empty(), has_room, "{rows} rows");
            }
        }
    });
}

#[test]
fn a_tree_of_a_root_alone_only_commits() {
    for_each_model(|world| {
        let session = world.session();
        let text = world.text(&mut Random::new(17), 12);
        let parents = vec![-1];
        for shape in [
            TreeShape::Static(parents.clone()),
            TreeShape::Stochastic(parents.clone()),
            TreeShape::Dynamic { nodes: 1, depth: 1, width: 2 },
        ] {
            let turns = [Turn::new(&text, 0..10, 3, Place::Slot(0))];
            let found = run(&session, &call_of(&turns, &shape)).remove(0);
            assert!(found.tokens.is_empty());
            assert_eq!(found.tree, Tree::of(&parents, 10));
        }
        let turn = Turn::new(&text, 10..11, 1, Place::Slot(0));
        let fresh = Turn { rows: 0..11, place: Place::Slot(1), ..turn.clone() };
        assert_eq!(draft(&session, &turn, None), draft(&session, &fresh, None));
    });
}

#[test]
fn a_session_without_trees_takes_no_memory_for_them() {
    let context = Context::with_threads(1);
    let world = World::random(&context, "memory", &Shape::default());
    let size = |max_tree_width: i32, max_tree_depth: i32| {
        let options = spec_session_options { max_tree_width, max_tree_depth, ..options() };
        Session::requirements(&world.model, &options).expect("requirements")
    };
    let (none, some, more) = (size(0, 0), size(4, 3), size(4, 4));
    assert!(none.workspace_size < some.workspace_size);
    let kv_of_level = 8 * 4 * some.kv_bytes_per_token;
    assert!(some.workspace_size + kv_of_level <= more.workspace_size);
    assert_eq!(size(4, 0).workspace_size, size(4, 8).workspace_size);
    assert_eq!([none.kv_pool_size, none.page_bytes], [some.kv_pool_size, some.page_bytes]);
}

// ---- Refusals ------------------------------------------------------------------------------------

#[test]
fn shapes_that_are_no_trees_or_too_large_are_refused_with_what_was_expected() {
    let context = Context::with_threads(1);
    let world = World::random(&context, "refused", &Shape::default());
    let session = world.session();
    let text = world.text(&mut Random::new(18), 9);
    let refusal = |change: &dyn Fn(&mut spec_draft_args, &mut spec_tree_shape)| -> Failure {
        let call = DraftCall::of(&[Turn::new(&text, 0..8, 10, Place::Slot(0))]);
        let parents = [-1, 0, 0, 1, 1, 2];
        let shape = TreeShape::Static(parents.to_vec());
        let call = call.with_trees(&shape);
        let mut prepared = call.prepare(session.outputs);
        let mut view = shape.view();
        prepared.args.tree_shape = &raw const view;
        change(&mut prepared.args, &mut view);
        let failure = session.draft(&prepared.args).expect_err("a refusal");
        assert!(prepared.is_untouched());
        failure
    };
    let invalid = SPEC_ERROR_INVALID_ARGUMENT;
    let check = |expected: &str, status: spec_status, change: &dyn Fn(&mut spec_tree_shape)| {
        let failure = refusal(&|_, shape| change(shape));
        assert!(failure.message.contains(expected), "{}", failure.message);
        assert_eq!(failure.status, status, "{}", failure.message);
    };
    let parents = |what: &str, parents: &[i32]| {
        check(what, invalid, &|shape| {
            shape.parents = parents.as_ptr();
            shape.num_nodes = parents.len() as i32;
        });
    };
    parents("node 0: expected the root", &[0, 0]);
    parents("node 2: expected a parent from 0 to 1, found 2", &[-1, 0, 2]);
    parents("node 1: expected a parent", &[-1, -1]);
    parents("found node 3 of depth 1 behind one of depth 2", &[-1, 0, 1, 0]);
    parents("at most 6 levels below the root", &chain(7));
    parents("num_nodes: expected 1 to 11, found 12", &chain(11));
    check("num_nodes: expected 1 to 11, found 0", invalid, &|shape| shape.num_nodes = 0);
    check("parents: expected 6 elements, found NULL", invalid, &|shape| {
        shape.parents = std::ptr::null();
    });
    check("tree_shape.kind: expected 1 to 3, found 4", invalid, &|shape| shape.kind = 4);
    check("tree_shape.kind: expected 1 to 3, found 0", invalid, &|shape| shape.kind = 0);
    check("depth: expected 0 to 0, found 2", invalid, &|shape| shape.depth = 2);
    check("width: expected 0 to 0, found 1", invalid, &|shape| shape.width = 1);
    check("reserved: expected 0", SPEC_ERROR_UNSUPPORTED, &|shape| shape.reserved = 1);
    check("struct_size", invalid, &|shape| shape.struct_size = 8);
    let dynamic = |what: &str, num_nodes: i32, depth: i32, width: i32| {
        check(what, invalid, &|shape| {
            let parents = std::ptr::null();
            let kind = SPEC_TREE_DYNAMIC;
            *shape = spec_tree_shape { kind, num_nodes, depth, width, parents, ..*shape };
        });
    };
    dynamic("depth: expected 1 to 6, found 0", 6, 0, 2);
    dynamic("depth: expected 1 to 6, found 7", 6, 7, 2);
    dynamic("width: expected 1 to 12, found 0", 6, 2, 0);
    dynamic("width: expected 1 to 12, found 13", 6, 2, 13);
    dynamic("num_nodes: expected 1 to 7, found 8", 8, 2, 2);
    check("parents: expected NULL", invalid, &|shape| {
        (shape.kind, shape.depth, shape.width) = (SPEC_TREE_DYNAMIC, 2, 3);
    });
    let failure = refusal(&|_, shape| {
        let parents = std::ptr::null();
        *shape = spec_tree_shape { kind: SPEC_TREE_DYNAMIC, depth: 2, width: 2, parents, ..*shape };
    });
    assert_eq!(failure.status, SPEC_ERROR_UNSUPPORTED);
    assert!(failure.message.contains("draft_logits: expected NULL"), "{}", failure.message);
    // Where the trees are told.
    let mut tree: spec_tree = host::Versioned::blank();
    tree.stride = 10;
    let failure = refusal(&|args, _| args.tree = &raw const tree);
    assert!(failure.message.contains("tree.stride: expected 11"), "{}", failure.message);
}

#[test]
fn levels_and_families_that_the_session_has_no_memory_for_are_refused() {
    let context = Context::with_threads(1);
    let world = World::random(&context, "narrow", &Shape::default());
    let text = world.text(&mut Random::new(19), 9);
    let refuse = |options: spec_session_options, parents: Vec<i32>| {
        let session = Session::create(&world.model, &options).expect("a session");
        let turn = Turn { place: Place::Slot(0), ..turn(&text, 8, &parents) };
        let call = DraftCall::of(&[turn]).with_trees(&TreeShape::Static(parents));
        call.run(&session).expect_err("a refusal").message
    };
    let narrow = spec_session_options { max_tree_width: 1, ..options() };
    let message = refuse(narrow, vec![-1, 0, 0, 1, 2]);
    assert!(message.contains("at most 1 nodes with children on a level"), "{message}");
    let none = spec_session_options { max_tree_width: 0, max_tree_depth: 0, ..options() };
    let message = refuse(none, vec![-1, 0]);
    assert!(message.contains("max_tree_width is 0"), "{message}");
    let wide = spec_session_options { max_drafts: 300, ..options() };
    let message = refuse(wide, full(257, 1));
    assert!(message.contains("at most 256 children of a node"), "{message}");
    let refused = |options: spec_session_options| {
        Session::create(&world.model, &options).expect_err("a refusal").message
    };
    let message = refused(spec_session_options { max_tree_width: 257, ..options() });
    assert!(message.contains("max_tree_width: expected 0 to 256"), "{message}");
    let message = refused(spec_session_options { max_tree_depth: 46, ..options() });
    assert!(message.contains("max_tree_depth: expected 0 to 45"), "{message}");
    let message = refused(spec_session_options { max_tree_width: 0, ..options() });
    assert!(message.contains("max_tree_depth: expected 0 to 0"), "{message}");
    let huge = spec_session_options {
        max_sequences: 65536,
        max_drafts: 1023,
        max_tree_width: 256,
        max_tree_depth: 1023,
        max_pages: 1000,
        ..options()
    };
    let message = refused(huge);
    assert!(message.contains("fewer than 2^31 candidates"), "{message}");
}

#[test]
fn kinds_whose_tokens_have_no_law_of_their_own_path_refuse_trees_by_name() {
    let context = Context::with_threads(1);
    let mut refused = BTreeSet::new();
    for case in golden::supported_cases() {
        if !is_refused(&case) {
            continue;
        }
        let model = case.load(&context).expect("a model");
        let failure = Session::create(&model, &options()).expect_err("a refusal");
        assert_eq!(failure.status, SPEC_ERROR_UNSUPPORTED);
        let expected = format!("trees are not drafted with {}", case.kind);
        assert!(failure.message.contains(&expected), "{}", failure.message);
        let chains = spec_session_options { max_tree_width: 0, max_tree_depth: 0, ..options() };
        let session = Session::create(&model, &chains).expect("a session");
        let text = Text::random(&mut Random::new(20), 9, model.info().vocabulary, &model.widths());
        let turn = Turn::new(&text, 0..8, 2, Place::Slot(0));
        let call = DraftCall::of(&[turn]);
        let trees = call.clone().with_trees(&TreeShape::Static(vec![-1, 0]));
        let failure = trees.run(&session).expect_err("a refusal");
        assert_eq!(failure.status, SPEC_ERROR_UNSUPPORTED);
        assert!(failure.message.contains(&expected), "{}", failure.message);
        // Their chains are told all the same.
        let told = DraftCall { tree_stride: Some(3), ..call };
        let drafts = run(&session, &told).remove(0);
        assert_eq!(drafts.tree, Tree::of(&chain(drafts.tokens.len()), 8));
        refused.insert(case.kind);
    }
    assert_eq!(refused, BTreeSet::from(["xpress".to_owned()]));
}

/// A reference checkpoint that drafts blocks, with a session.
fn for_each_block(mut run: impl FnMut(&World)) {
    let context = Context::with_threads(1);
    let mut seen = BTreeSet::new();
    for case in golden::supported_cases().into_iter().filter(|case| !is_refused(case)) {
        let model = case.load(&context).expect("a model");
        if model.info().mask_token < 0 || device::is_shortened() && seen.contains(&case.kind) {
            continue;
        }
        println!("{}", case.name);
        run(&World::of(model));
        seen.insert(case.kind.clone());
    }
    assert!(seen.len() >= 4, "only {seen:?} among the reference checkpoints");
}

#[test]
fn nodes_of_a_depth_have_the_logits_of_a_slot_unless_a_head_reads_their_tokens() {
    let context = Context::with_threads(1);
    let mut seen = [0, 0];
    for case in golden::supported_cases().into_iter().filter(|case| !is_refused(case)) {
        let model = case.load(&context).expect("a model");
        if model.info().mask_token < 0 {
            continue;
        }
        let world = World::of(model);
        let reads_tokens = match case.kind.as_str() {
            "dspark" => !case.name.contains("nomarkov"),
            kind => kind == "dflash2",
        };
        let parents = full(2, 3);
        let text = world.text(&mut Random::new(24), 14);
        let shape = TreeShape::Static(parents.clone());
        let tree = draft(&world.session(), &turn(&text, 13, &parents), Some(&shape));
        // Siblings have different tokens.
        for (first, second) in [(1, 2), (3, 4), (5, 6)] {
            let is_equal = tree.logits[first] == tree.logits[second];
            assert_eq!(is_equal, !reads_tokens, "{}, {first}, {second}", case.name);
        }
        assert!(reads_tokens || tree.logits[3] == tree.logits[6], "{}", case.name);
        // Candidates are those of a slot all the same.
        assert!(tree.candidates.get(3) == tree.candidates.get(6), "{}", case.name);
        seen[usize::from(reads_tokens)] += 1;
    }
    assert!(seen[0] >= 3 && seen[1] >= 4, "{seen:?}");
}

#[test]
fn trees_with_more_levels_than_a_block_has_slots_are_refused() {
    for_each_block(|world| {
        let most = world.model.info().most_drafts;
        if most >= DRAFTS {
            return;
        }
        let deep = spec_session_options { max_tree_depth: DRAFTS, ..options() };
        let session = Session::create(&world.model, &deep).expect("a session");
        let text = world.text(&mut Random::new(22), 9);
        let refuse = |shape: TreeShape| {
            let turn = Turn::new(&text, 0..8, drafts_of(&shape), Place::Slot(0));
            let failure = call_of(&[turn], &shape).run(&session).expect_err("a refusal");
            assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT);
            let expected = format!("at most {most} levels below the root");
            assert!(failure.message.contains(&expected), "{}", failure.message);
        };
        let levels = most as usize + 1;
        refuse(TreeShape::Static(chain(levels)));
        refuse(TreeShape::Stochastic(chain(levels)));
        refuse(TreeShape::Dynamic { nodes: 4, depth: levels as i32, width: 2 });
        let turn = Turn::new(&text, 0..8, most, Place::Slot(0));
        let found = draft(&session, &turn, Some(&TreeShape::Static(chain(most as usize))));
        assert_eq!(found.tokens, draft(&session, &turn, None).tokens);
    });
}

#[test]
fn proposals_of_trees_are_not_rated() {
    let mut refused = 0;
    for_each_block(|world| {
        if world.model.info().has_confidence == 0 {
            return;
        }
        let text = world.text(&mut Random::new(23), 9);
        let turn = Turn::new(&text, 0..8, 1, Place::Slot(0));
        let call = DraftCall::of(&[turn]).with_trees(&TreeShape::Static(vec![-1, 0]));
        let call = DraftCall { min_confidence: 0.5, ..call };
        let failure = call.run(&world.session()).expect_err("a refusal");
        assert_eq!(failure.status, SPEC_ERROR_UNSUPPORTED);
        assert!(failure.message.contains("0 with tree_shape"), "{}", failure.message);
        refused += 1;
    });
    assert!(refused > 0);
}

#[test]
fn a_node_has_no_more_children_than_its_slot_has_candidates() {
    let context = Context::with_threads(1);
    let world = World::reference(&context, "dflash2");
    let session = world.session();
    let text = world.text(&mut Random::new(25), 12);
    let count = world.model.info().draft_columns as usize;
    // Two children too many, and a child below the last of them.
    let mut parents = vec![-1];
    parents.extend(vec![0; count + 2]);
    parents.extend([1, count as i32 + 2]);
    let shapes = [TreeShape::Static(parents.clone()), TreeShape::Stochastic(parents.clone())];
    for (shape, sampling) in shapes.iter().zip([Sampling::default(), sampled(6, 0)]) {
        let turn = Turn { sampling, ..turn(&text, 11, &parents) };
        let tree = draft(&session, &turn, Some(shape));
        let children: BTreeSet<i32> = tree.tokens[..count].iter().copied().collect();
        assert_eq!(children, tree.candidates[0].iter().copied().collect(), "{shape:?}");
        assert_eq!(tree.tokens[count..count + 2], [-1, -1], "{shape:?}");
        assert!(tree.tokens[count + 2] >= 0 && tree.tokens[count + 3] == -1, "{shape:?}");
    }
    // Dynamic trees have no more either.
    let (width, depth) = (count as i32 + 2, 2);
    let shape = TreeShape::Dynamic { nodes: DRAFTS, depth, width };
    let turn = Turn::new(&text, 0..11, DRAFTS - 1, Place::Slot(2));
    let tree = draft(&session, &turn, Some(&shape));
    for node in 0..tree.tree.parents.len() {
        let children = tree.tree.parents.iter().filter(|&&parent| parent == node as i32);
        assert!(children.count() <= count, "{:?}", tree.tree);
    }
    assert!(tree.tokens.len() > count && tree.tokens.iter().all(|&token| token >= 0));
}

#[test]
fn candidates_of_given_trees_are_told_without_their_logits_too() {
    let context = Context::with_threads(1);
    let world = World::reference(&context, "dflash2");
    let session = world.session();
    let text = world.text(&mut Random::new(26), 10);
    let count = world.model.info().draft_columns as usize;
    let parents = full(2, 2);
    let shape = TreeShape::Static(parents.clone());
    let turn = turn(&text, 9, &parents);
    let expected = draft(&session, &turn, Some(&shape));
    let call = DraftCall::of(&[turn]);
    let told = |shape: &TreeShape| {
        let call = DraftCall { logits: None, ..call.clone().with_trees(shape) };
        let mut ids = Buffer::filled((parents.len() - 1) * count, -5);
        let mut prepared = call.prepare(session.outputs);
        prepared.args.draft_candidates = ids.as_mut_ptr();
        session.draft(&prepared.args).map(|()| ids.to_vec())
    };
    let ids = told(&shape).expect("a call");
    for (row, candidates) in ids.chunks_exact(count).zip(&expected.candidates) {
        match candidates.len() {
            0 => assert!(row.iter().all(|&id| id == -5), "{ids:?}"),
            _ => assert_eq!(row, candidates),
        }
    }
    assert!(expected.candidates.iter().filter(|row| !row.is_empty()).count() == 3);
    let failure =
        told(&TreeShape::Dynamic { nodes: 4, depth: 2, width: 2 }).expect_err("a refusal");
    assert_eq!(failure.status, SPEC_ERROR_UNSUPPORTED);
    assert!(failure.message.contains("draft_candidates: expected NULL"), "{}", failure.message);
}

/// Samplings differ from sequence to sequence; what is drawn is rounded to the type of the logits.
#[test]
fn logits_are_rounded_before_siblings_are_drawn_from_them() {
    let context = Context::with_threads(1);
    check_rounding(&World::random(&context, "rounded", &Shape::default()));
    check_rounding(&World::reference(&context, "dflash2"));
}

fn check_rounding(world: &World) {
    let session = world.session();
    let text = world.text(&mut Random::new(21), 17);
    let parents = full(3, 2);
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for shape in [TreeShape::Static(parents.clone()), TreeShape::Stochastic(parents.clone())] {
            let turn = Turn { sampling: sampled(2, 0), ..turn(&text, 16, &parents) };
            let sampling = SamplingColumns::of([turn.sampling]);
            let call = DraftCall::of(&[turn]).with_trees(&shape);
            let call = DraftCall { logits: Some(dtype), sampling: Some(sampling), ..call };
            let found = run(&session, &call).remove(0);
            for node in 0..4 {
                let logits = &found.logits[node];
                assert!(logits.iter().all(|&logit| dtype.round(logit) == logit));
                let is_static = matches!(shape, TreeShape::Static(_));
                if is_static && margin(logits) > 0.0 {
                    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let column = logits.iter().position(|&logit| logit == best).expect("a column");
                    let first = found.tree.first_child[node] as usize;
                    assert_eq!(found.tokens[first - 1], world.token_of(&found, node, column));
                }
            }
        }
    }
}
