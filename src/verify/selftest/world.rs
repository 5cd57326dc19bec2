//! Small language models: a target and a drafter whose next token depends on the last one alone.

use super::cases::{Case, Shape};
use super::explore::{Explorer, Job};
use super::procedure::{LAST, Procedure, Proposal, Scene};
use crate::backend::verify::{Leniency, record};
use crate::error::Result;
use crate::sampling::Parameters;
use crate::verify::FOLLOW;

/// Laws by the last token.
pub type Laws = Vec<Vec<f64>>;

/// A target and a drafter, seen as verification sees them.
#[derive(Debug)]
pub struct World {
    /// The scene of a case.
    pub scene: Scene,
    /// The target's laws, as tokens are drawn where nothing is proposed.
    pub p: Laws,
    /// The drafter's, as verification would draw from its rows.
    pub q: Laws,
    /// How far the laws are from those of real numbers.
    pub rounding: f64,
    /// Decisions that it took to know the laws.
    pub decisions: usize,
}

impl World {
    /// The world of a case.
    pub fn new(procedure: &dyn Procedure, case: &Case) -> Result<Self> {
        let target = table(case.vocabulary, 43, 3.0);
        let draft = table(case.vocabulary, 5, 2.5);
        let masks = case.has_masks.then(|| masks(case.vocabulary));
        let parents = case.parents();
        let scene = Scene {
            rule: case.rule,
            max_drafts: parents.len() - 1,
            draft: case.has_distribution().then(|| draft.clone()),
            parameters: case.parameters,
            draft_parameters: case.draft_parameters,
            parents: matches!(case.shape, Shape::Tree(_)).then_some(parents),
            leniency: case.leniency,
            acceptance: case.acceptance.to_vec(),
            target,
            masks,
        };
        let ours = rows(scene.target.clone(), case.parameters, scene.masks.clone());
        let theirs = rows(draft, case.draft_parameters, None);
        let (p, first) = laws(procedure, &ours)?;
        let (q, second) = laws(procedure, &theirs)?;
        let rounding = distance(&p, &ours).max(distance(&q, &theirs));
        Ok(Self { scene, p, q, rounding, decisions: first + second })
    }

    /// The tokens that a row of the target allows, as bits.
    pub fn allowed(&self, row: usize) -> u32 {
        self.scene.masks.as_ref().map_or(u32::MAX, |masks| masks[row])
    }

    /// A proposal below a root.
    pub fn proposal(&self, root: usize, drafts: Vec<i32>, num_drafts: usize) -> Proposal {
        let rows = drafts.iter().map(|&draft| draft.max(0) as usize);
        let rows = std::iter::once(root).chain(rows).collect();
        Proposal { drafts, num_drafts, rows }
    }
}

/// Logits without any order, none of them near another of its row, up to `width` apart.
fn table(vocabulary: usize, salt: usize, width: f32) -> Vec<Vec<f32>> {
    let logit = |row: usize, token: usize| {
        let mixed = (row * 17 + token * 29 + salt * 13).pow(2) * 7 % 101;
        width * mixed as f32 / 101.0
    };
    (0..vocabulary).map(|row| (0..vocabulary).map(|token| logit(row, token)).collect()).collect()
}

/// After each token another one is forbidden.
fn masks(vocabulary: usize) -> Vec<u32> {
    let all = (1 << vocabulary) - 1;
    (0..vocabulary).map(|row| all & !(1 << ((row + 1) % vocabulary))).collect()
}

/// A scene of rows where nothing is proposed.
fn rows(table: Vec<Vec<f32>>, parameters: Parameters, masks: Option<Vec<u32>>) -> Scene {
    Scene {
        rule: FOLLOW,
        max_drafts: 0,
        target: table,
        draft: None,
        parameters,
        draft_parameters: parameters,
        masks,
        parents: None,
        leniency: Leniency::NONE,
        acceptance: Vec::new(),
    }
}

/// The laws of the rows of a scene, and the decisions that it took to know them.
fn laws(procedure: &dyn Procedure, scene: &Scene) -> Result<(Laws, usize)> {
    let job = |row| {
        let proposal = Proposal { drafts: Vec::new(), num_drafts: 0, rows: vec![row] };
        let other = proposal.clone();
        Job { proposal, other, numbers: vec![LAST; 2], order: vec![1], free: vec![0] }
    };
    let jobs: Vec<Job> = (0..scene.target.len()).map(job).collect();
    let mut explorer = Explorer::new(procedure, scene);
    let cells = explorer.explore(&jobs, &|_, record| record[record::TOKENS] as u64)?;
    let mut laws = vec![vec![0.0; scene.vocabulary()]; jobs.len()];
    for cell in &cells {
        // What is no token is missed in the sum.
        if let Some(law) = laws[cell.job].get_mut(cell.outcome as usize) {
            *law += cell.probability();
        }
    }
    Ok((laws, explorer.decisions))
}

/// How far laws are from what real numbers make of the rows of a scene.
fn distance(laws: &Laws, scene: &Scene) -> f64 {
    let far = laws.iter().enumerate().map(|(row, law)| {
        let allowed = scene.masks.as_ref().map_or(u32::MAX, |masks| masks[row]);
        let real = softmax(&scene.target[row], &scene.parameters, allowed);
        law.iter().zip(real).map(|(law, real)| (law - real).abs()).fold(0.0, f64::max)
    });
    far.fold(0.0, f64::max)
}

/// The law of a row in real numbers. No two of its logits are equal.
fn softmax(row: &[f32], parameters: &Parameters, allowed: u32) -> Vec<f64> {
    let mut order: Vec<usize> = (0..row.len()).filter(|token| allowed >> token & 1 == 1).collect();
    order.sort_by(|&left, &right| row[right].total_cmp(&row[left]));
    let greedy = parameters.is_greedy();
    let temperature = if greedy { 1.0 } else { f64::from(parameters.temperature) };
    let weight = |token: usize| (f64::from(row[token] - row[order[0]]) / temperature).exp();
    let mut kept = order.clone();
    kept.retain(|&token| weight(token) >= f64::from(parameters.min_p));
    match parameters.top_k {
        _ if greedy => kept.truncate(1),
        1.. => kept.truncate(parameters.top_k as usize),
        _ => {}
    }
    let sum: f64 = kept.iter().map(|&token| weight(token)).sum();
    let (mut above, mut law) = (0.0, vec![0.0; row.len()]);
    for token in kept {
        if above < f64::from(parameters.top_p) * sum {
            law[token] = weight(token);
        }
        above += weight(token);
    }
    let sum: f64 = law.iter().sum();
    law.iter().map(|law| law / sum).collect()
}
