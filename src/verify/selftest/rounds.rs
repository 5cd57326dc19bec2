//! The law of the text that rounds of verification emit.

use super::cases::{Case, Cut};
use super::explore::{Cell, Explorer, Job, Outcome};
use super::procedure::{LAST, Procedure, Proposal, STEPS};
use super::promise::{Promise, promise};
use super::world::World;
use crate::backend::verify::record;
use crate::error::Result;
use std::collections::BTreeMap;

/// Tokens in order.
pub type Text = Vec<u8>;

/// No decision that there should be.
const LOST: Outcome = u64::MAX;

/// What can happen in a round.
#[derive(Clone, Debug)]
pub struct Branch {
    /// What is emitted.
    pub text: Text,
    /// How probable the drafts are.
    pub drafted: f64,
    /// The intervals of the random numbers, by their places, in steps; others have no say.
    pub ranges: Vec<(usize, (u64, u64))>,
}

impl Branch {
    /// How probable it is if no two random numbers are the same.
    pub fn probability(&self) -> f64 {
        let shares = self.ranges.iter().map(|&(_, (low, high))| (high - low) as f64 / STEPS as f64);
        self.drafted * shares.product::<f64>()
    }
}

/// What was found out about a case.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Branches that were looked at.
    pub branches: usize,
    /// Decisions that were made.
    pub decisions: usize,
    /// The largest difference from what is promised.
    pub deviation: f64,
    /// What is wrong, beside the deviation.
    pub defect: Option<&'static str>,
}

impl Findings {
    /// Counts cells, and whether there is something wrong with them.
    fn note(&mut self, cells: &[Cell]) {
        self.branches += cells.len();
        let found = if cells.iter().any(|cell| !cell.is_constant) {
            Some("a decision depends on what it must not depend on")
        } else if cells.iter().any(|cell| cell.outcome == LOST) {
            Some("a sequence was not decided")
        } else {
            None
        };
        self.defect = self.defect.or(found);
    }

    /// Notes a difference.
    pub fn differ(&mut self, difference: f64) {
        self.deviation = self.deviation.max(difference.abs());
    }
}

/// The number of the test of a node, and of the token below it.
const fn test(node: usize) -> usize {
    2 * (node - 1)
}

const fn emission(node: usize) -> usize {
    2 * node + 1
}

/// What can happen in a round of a chain, for each root: the chain is looked at as a whole.
pub fn chain_rounds(
    procedure: &dyn Procedure,
    case: &Case,
    world: &World,
    findings: &mut Findings,
) -> Result<Vec<Vec<Branch>>> {
    let drafts = world.scene.max_drafts;
    let (mut jobs, mut origins) = (Vec::new(), Vec::new());
    for root in 0..case.vocabulary {
        for (tokens, num_drafts, drafted) in chains(case, world, root) {
            let mut other = tokens.clone();
            other[num_drafts..].iter_mut().for_each(|token| *token = 1);
            let order = (1..=drafts).map(test).chain((0..=drafts).map(emission));
            jobs.push(Job {
                proposal: world.proposal(root, tokens, num_drafts),
                other: world.proposal(root, other, num_drafts),
                numbers: vec![LAST; world.scene.numbers()],
                order: order.collect(),
                free: vec![2 * drafts],
            });
            origins.push((root, drafted));
        }
    }
    let mut explorer = Explorer::new(procedure, &world.scene);
    let cells = explorer.explore(&jobs, &|_, record| whole(record))?;
    findings.decisions += explorer.decisions;
    findings.note(&cells);
    let mut rounds = vec![Vec::new(); case.vocabulary];
    for cell in cells.iter().filter(|cell| cell.outcome != LOST) {
        let (root, drafted) = origins[cell.job];
        let ranges = cell.ranges.iter().copied().enumerate();
        let ranges = ranges.filter(|(_, range)| *range != (0, STEPS)).collect();
        rounds[root].push(Branch { text: text(cell.outcome), drafted, ranges });
    }
    Ok(rounds)
}

/// The text of a record, as digits behind a 1.
fn whole(record: &[i32]) -> Outcome {
    let emitted = record[record::EMITTED] as usize;
    if emitted == 0 || record[record::EMITTED] != record[record::ACCEPTED] + 1 {
        return LOST;
    }
    let tokens = &record[record::TOKENS..record::TOKENS + emitted];
    tokens.iter().fold(1, |text, &token| text << 4 | token as u64 & 15)
}

fn text(outcome: Outcome) -> Text {
    let len = (u64::BITS - 1 - outcome.leading_zeros()) / 4;
    (0..len).rev().map(|place| (outcome >> (4 * place) & 15) as u8).collect()
}

/// The chains below a root: all places for drafts, how many there are, and how probable it is.
fn chains(case: &Case, world: &World, root: usize) -> Vec<(Vec<i32>, usize, f64)> {
    let most = world.scene.max_drafts;
    let (mut open, mut done) = (vec![(Vec::new(), 1.0)], Vec::new());
    while let Some((tokens, drafted)) = open.pop() {
        let tokens: Vec<i32> = tokens;
        let len = tokens.len();
        let mut end = |num_drafts, drafted| {
            let mut tokens = tokens.clone();
            tokens.resize(most, 0);
            done.push((tokens, num_drafts, drafted));
        };
        let row = tokens.last().map_or(root as i32, |&token| token);
        let Ok(row) = usize::try_from(row) else {
            // Nobody drafts behind what was struck out; the places stay.
            end(most, drafted);
            continue;
        };
        let q = &world.q[row];
        let is_unsure = |least: f64| q.iter().all(|&q| q < least);
        if len == most || matches!(case.cut, Cut::Unsure(least) if is_unsure(least)) {
            end(len, drafted);
            continue;
        }
        let mut removed = 0.0;
        for (drawn, probability) in case.siblings(q, world.allowed(row), 1) {
            let token = drawn[0];
            let is_removed = matches!(case.cut, Cut::Improbable(least) if token >= 0 && q[token as usize] < least);
            if is_removed {
                removed += probability;
            } else {
                open.push(([&tokens[..], &drawn].concat(), drafted * probability));
            }
        }
        if removed > 0.0 {
            end(len, drafted * removed);
        }
    }
    done
}

/// A node that can be reached, with drafts and random numbers that lead there.
#[derive(Clone, Debug)]
struct Place {
    root: usize,
    node: usize,
    depth: usize,
    /// The node's token.
    token: usize,
    /// Drafts so far; `None` is not drawn yet.
    drafts: Vec<Option<i32>>,
    numbers: Vec<u64>,
    /// The numbers that led here.
    fixed: Vec<usize>,
}

/// What happens at a node with a token: the path goes on at a child with one, or one is emitted.
type Kernel = BTreeMap<(Option<usize>, usize), f64>;

/// The law of a round's text for each root, looked at node by node: what is decided at a node depends
/// on its token and the drafts below it, which the cells check. Promises are compared at each
/// node, if there are any.
pub fn tree_rounds(
    procedure: &dyn Procedure,
    case: &Case,
    world: &World,
    findings: &mut Findings,
) -> Result<Vec<Vec<Branch>>> {
    let mut kernels: BTreeMap<(usize, usize), Kernel> = BTreeMap::new();
    let drafts = world.scene.max_drafts;
    let start = |root| Place {
        root,
        node: 0,
        depth: 0,
        token: root,
        drafts: vec![None; drafts],
        numbers: vec![LAST; world.scene.numbers()],
        fixed: Vec::new(),
    };
    let mut places: Vec<Place> = (0..case.vocabulary).map(start).collect();
    let mut explorer = Explorer::new(procedure, &world.scene);
    while !places.is_empty() {
        let level = Level::new(case, world, &places);
        let cells = explorer.explore(&level.jobs, &|job, record| {
            let place = &places[level.origins[job].place];
            at_node(record, place.node, place.depth)
        })?;
        findings.note(&cells);
        level.compare_promises(case, world, &places, &cells, findings);
        let mut next: BTreeMap<(usize, usize), Place> = BTreeMap::new();
        for cell in cells.iter().filter(|cell| cell.outcome != LOST) {
            let origin = &level.origins[cell.job];
            let place = &places[origin.place];
            let (child, token) = event(cell, &level.jobs[cell.job].proposal);
            let kernel = kernels.entry((place.node, place.token)).or_default();
            *kernel.entry((child, token)).or_default() += origin.drafted * cell.probability();
            if let Some(node) = child {
                next.entry((node, token))
                    .or_insert_with(|| place.below(node, token, &origin.children, cell));
            }
        }
        places = next.into_values().collect();
    }
    findings.decisions += explorer.decisions;
    Ok((0..case.vocabulary).map(|root| branches(&kernels, 0, root)).collect())
}

impl Place {
    /// A child of this node, reached with these siblings in a cell.
    fn below(&self, node: usize, token: usize, children: &[(usize, i32)], cell: &Cell) -> Self {
        let mut place = self.clone();
        place.node = node;
        place.depth += 1;
        place.token = token;
        for &(child, draft) in children {
            place.drafts[child - 1] = Some(draft);
            place.fixed.push(test(child));
        }
        place.fixed.push(emission(self.node));
        place.numbers.clone_from(&cell.numbers);
        place
    }
}

/// Where a job comes from.
struct Origin {
    place: usize,
    /// The children with their drafts.
    children: Vec<(usize, i32)>,
    /// How probable the drafts are.
    drafted: f64,
}

/// The nodes of a depth.
struct Level {
    jobs: Vec<Job>,
    origins: Vec<Origin>,
}

impl Level {
    fn new(case: &Case, world: &World, places: &[Place]) -> Self {
        let parents = case.parents();
        let mut level = Self { jobs: Vec::new(), origins: Vec::new() };
        for (index, place) in places.iter().enumerate() {
            let children: Vec<usize> =
                (1..parents.len()).filter(|&node| parents[node] == place.node as i32).collect();
            let (q, allowed) = (&world.q[place.token], world.allowed(place.token));
            for (siblings, drafted) in case.siblings(q, allowed, children.len()) {
                let children: Vec<(usize, i32)> = children.iter().copied().zip(siblings).collect();
                level.jobs.push(job(world, place, &children));
                level.origins.push(Origin { place: index, children, drafted });
            }
        }
        level
    }

    /// Compares what happens with what a lossy rule promises.
    fn compare_promises(
        &self,
        case: &Case,
        world: &World,
        places: &[Place],
        cells: &[Cell],
        findings: &mut Findings,
    ) {
        for (index, origin) in self.origins.iter().enumerate() {
            let place = &places[origin.place];
            let siblings: Vec<i32> = origin.children.iter().map(|(_, draft)| *draft).collect();
            let Promise { mut children, mut tokens } =
                promise(case, world, place.token, &siblings, place.depth);
            if tokens.is_empty() {
                return;
            }
            let first = cells.partition_point(|cell| cell.job < index);
            let own = cells[first..].iter().take_while(|cell| cell.job == index);
            for cell in own.filter(|cell| cell.outcome != LOST) {
                match event(cell, &self.jobs[index].proposal) {
                    (None, token) => tokens[token] -= cell.probability(),
                    (Some(node), _) => {
                        let rank = origin.children.iter().position(|&(child, _)| child == node);
                        children[rank.unwrap_or(0)] -= cell.probability();
                    }
                }
            }
            children.into_iter().chain(tokens).for_each(|missing| findings.differ(missing));
        }
    }
}

/// A job at a place, with these children.
fn job(world: &World, place: &Place, children: &[(usize, i32)]) -> Job {
    let mut drafts = place.drafts.clone();
    children.iter().for_each(|&(child, draft)| drafts[child - 1] = Some(draft));
    let filled = |token: i32| drafts.iter().map(|draft| draft.unwrap_or(token)).collect();
    let proposal = |token| world.proposal(place.root, filled(token), drafts.len());
    let order: Vec<usize> =
        children.iter().map(|&(child, _)| test(child)).chain([emission(place.node)]).collect();
    let is_free = |number: &usize| !order.contains(number) && !place.fixed.contains(number);
    Job {
        proposal: proposal(0),
        other: proposal(1),
        numbers: place.numbers.clone(),
        free: (0..place.numbers.len()).filter(is_free).collect(),
        order,
    }
}

/// What a record says of a node: the child at which the path goes on, or the token.
fn at_node(record: &[i32], node: usize, depth: usize) -> Outcome {
    let emitted = record[record::EMITTED] as usize;
    let (tokens, path) = record[record::TOKENS..].split_at((record.len() - record::TOKENS) / 2);
    if emitted <= depth || path[depth] != node as i32 {
        return LOST;
    }
    if record[record::ACCEPTED] as usize > depth {
        return 1 << 32 | path[depth + 1] as u32 as u64;
    }
    tokens[depth] as u32 as u64
}

/// What happened at a node: the child, if the path goes on, and the token.
fn event(cell: &Cell, proposal: &Proposal) -> (Option<usize>, usize) {
    let low = cell.outcome as u32 as usize;
    if cell.outcome >> 32 == 0 { (None, low) } else { (Some(low), proposal.rows[low]) }
}

/// What can happen from a node on.
fn branches(kernels: &BTreeMap<(usize, usize), Kernel>, node: usize, token: usize) -> Vec<Branch> {
    let Some(kernel) = kernels.get(&(node, token)) else { return Vec::new() };
    let mut all = Vec::new();
    for (&(child, token), &probability) in kernel {
        let below = match child {
            None => vec![Branch { text: Vec::new(), drafted: 1.0, ranges: Vec::new() }],
            Some(node) => branches(kernels, node, token),
        };
        all.extend(below.into_iter().map(|branch| Branch {
            text: [&[token as u8], &branch.text[..]].concat(),
            drafted: probability * branch.drafted,
            ranges: Vec::new(),
        }));
    }
    all
}
