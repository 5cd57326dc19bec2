//! What a sequence's decision depends on, measured: the cells of its random numbers in which it is
//! the same, found by halving.

use super::procedure::{Draws, LAST, Procedure, Proposal, STEPS, Scene};
use crate::backend::verify::record;
use crate::error::{Error, Result};

/// Sequences of one call at most.
const MOST_SEQUENCES: usize = 4096;

/// Ends of cells that are looked for at a time for each, at most: there are no more outcomes than
/// tokens and drafts, and what has more is no decision.
const MOST_GAPS: usize = 32;

/// What is known of a decision: equal numbers for equal decisions.
pub type Outcome = u64;

/// A proposal whose random numbers are explored.
#[derive(Clone, Debug)]
pub struct Job {
    /// The proposal.
    pub proposal: Proposal,
    /// The same with other drafts where that is to make no difference.
    pub other: Proposal,
    /// The numbers that led here, in steps; the others are [`LAST`].
    pub numbers: Vec<u64>,
    /// The numbers to explore: tests first. A number is explored with those after it at [`LAST`],
    /// at which tests fail: then it makes a difference if it ever does.
    pub order: Vec<usize>,
    /// Other numbers, which are to make no difference.
    pub free: Vec<usize>,
}

/// A cell of the random numbers of a job.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Which job.
    pub job: usize,
    /// The interval of each number, in steps.
    pub ranges: Vec<(u64, u64)>,
    /// A point inside.
    pub numbers: Vec<u64>,
    /// What is decided there, as long as the numbers that are still to explore are [`LAST`].
    pub outcome: Outcome,
    /// Whether the same is decided at the corners of the cell and at points of it.
    pub is_constant: bool,
}

impl Cell {
    /// How probable the cell is.
    pub fn probability(&self) -> f64 {
        self.ranges.iter().map(|&(low, high)| (high - low) as f64 / STEPS as f64).product()
    }
}

/// A way to look at decisions, and how many were made.
pub struct Explorer<'a> {
    procedure: &'a dyn Procedure,
    scene: &'a Scene,
    /// Decisions so far.
    pub decisions: usize,
    /// Where cells were found to end, and the steps before, in order: likely ends of others.
    known: Vec<u64>,
}

/// What is explored.
struct Task<'a> {
    jobs: &'a [Job],
    /// Those of all jobs, then the others of all jobs.
    proposals: Vec<Proposal>,
    look: &'a dyn Fn(usize, &[i32]) -> Outcome,
}

/// A number between two steps.
#[derive(Clone, Copy)]
struct Gap {
    cell: usize,
    low: (u64, Outcome),
    high: (u64, Outcome),
}

impl Gap {
    /// A step inside: of those where cells are known to end the one in the middle, or that in the
    /// middle of all.
    fn middle(&self, known: &[u64]) -> u64 {
        let first = known.partition_point(|&step| step <= self.low.0);
        let end = known.partition_point(|&step| step < self.high.0);
        match known.get(first + end.saturating_sub(first) / 2) {
            Some(&step) if first < end => step,
            _ => self.low.0 + (self.high.0 - self.low.0) / 2,
        }
    }

    /// The parts below and above a step.
    fn halves(&self, middle: (u64, Outcome)) -> [Self; 2] {
        let Self { cell, low, high } = *self;
        [Self { cell, low, high: middle }, Self { cell, low: middle, high }]
    }

    /// Whether a border is somewhere inside that is not found yet.
    fn is_open(&self) -> bool {
        self.low.1 != self.high.1 && self.high.0 - self.low.0 > 1
    }

    /// Whether this is a border, between one step and the next.
    fn is_border(&self) -> bool {
        self.low.1 != self.high.1 && self.high.0 - self.low.0 == 1
    }
}

/// Few cells, more, and the others.
fn waves(cells: &[usize]) -> [Vec<usize>; 3] {
    let mut waves = [const { Vec::new() }; 3];
    for (index, &cell) in cells.iter().enumerate() {
        let wave = match index {
            _ if index.is_multiple_of(16) => 0,
            _ if index.is_multiple_of(4) => 1,
            _ => 2,
        };
        waves[wave].push(cell);
    }
    waves
}

impl<'a> Explorer<'a> {
    /// Looks at what a procedure decides in a scene.
    pub fn new(procedure: &'a dyn Procedure, scene: &'a Scene) -> Self {
        Self { procedure, scene, decisions: 0, known: Vec::new() }
    }

    /// The cells of all jobs. `look` tells the outcome of a job from its record.
    pub fn explore(
        &mut self,
        jobs: &[Job],
        look: &dyn Fn(usize, &[i32]) -> Outcome,
    ) -> Result<Vec<Cell>> {
        let others = jobs.iter().map(|job| job.other.clone());
        let proposals = jobs.iter().map(|job| job.proposal.clone()).chain(others).collect();
        let task = Task { jobs, proposals, look };
        let start = jobs.iter().enumerate().map(|(index, job)| (index, index, job.numbers.clone()));
        let outcomes = self.outcomes(&task, start.collect())?;
        let cell = |((job, numbers), outcome): ((usize, &Job), Outcome)| Cell {
            job,
            ranges: vec![(0, STEPS); numbers.numbers.len()],
            numbers: numbers.numbers.clone(),
            outcome,
            is_constant: true,
        };
        let mut cells: Vec<Cell> = jobs.iter().enumerate().zip(outcomes).map(cell).collect();
        let levels = jobs.iter().map(|job| job.order.len()).max().unwrap_or(0);
        for level in 0..levels {
            cells = self.split(&task, &cells, level)?;
        }
        self.check(&task, &mut cells)?;
        Ok(cells)
    }

    /// Splits cells where their next number makes a difference: some cells before others, which end
    /// where those did as often as not.
    fn split(&mut self, task: &Task<'_>, cells: &[Cell], level: usize) -> Result<Vec<Cell>> {
        let place = |cell: &Cell| task.jobs[cell.job].order.get(level).copied();
        let at = |&(cell, step): &(usize, u64)| {
            let mut numbers = cells[cell].numbers.clone();
            if let Some(place) = place(&cells[cell]) {
                numbers[place] = step;
            }
            (cells[cell].job, cells[cell].job, numbers)
        };
        let open: Vec<usize> =
            (0..cells.len()).filter(|&cell| place(&cells[cell]).is_some()).collect();
        let mut borders = vec![Vec::new(); cells.len()];
        for wave in waves(&open) {
            let ends: Vec<(usize, u64)> = wave.iter().map(|&cell| (cell, 0)).collect();
            let outcomes = self.outcomes(task, ends.iter().map(at).collect())?;
            // The number is the last one as yet: what is decided there is known.
            let gap = |(&cell, outcome): (&usize, Outcome)| Gap {
                cell,
                low: (0, outcome),
                high: (LAST, cells[cell].outcome),
            };
            let gaps = wave.iter().zip(outcomes).map(gap);
            let mut gaps: Vec<Gap> = gaps.filter(Gap::is_open).collect();
            while !gaps.is_empty() {
                let middles: Vec<(usize, u64)> =
                    gaps.iter().map(|gap| (gap.cell, gap.middle(&self.known))).collect();
                let found = self.outcomes(task, middles.iter().map(at).collect())?;
                let halves = gaps.iter().zip(&middles).zip(found);
                let halves: Vec<Gap> = halves
                    .flat_map(|((gap, &(_, middle)), outcome)| gap.halves((middle, outcome)))
                    .collect();
                for border in halves.iter().filter(|gap| gap.is_border()) {
                    borders[border.cell].push(*border);
                }
                gaps = halves.into_iter().filter(Gap::is_open).collect();
                if gaps.len() > MOST_GAPS * wave.len() {
                    return Err(Error::internal(format!(
                        "expected at most {MOST_GAPS} outcomes of a random number, found more"
                    )));
                }
            }
            let found = wave.iter().flat_map(|&cell| &borders[cell]);
            self.known.extend(found.flat_map(|border| [border.low.0, border.high.0]));
            self.known.sort_unstable();
            self.known.dedup();
        }
        let parts = cells.iter().zip(&mut borders);
        Ok(parts.flat_map(|(cell, borders)| cut(cell, place(cell), borders)).collect())
    }

    /// Tells whether the same is decided all over the cells: at their corners and at points inside.
    fn check(&mut self, task: &Task<'_>, cells: &mut [Cell]) -> Result<()> {
        const POINTS: usize = 4;
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = |_, (low, high): (u64, u64)| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            low + state % (high - low)
        };
        let mut points = Vec::with_capacity(POINTS * cells.len());
        for cell in &*cells {
            let job = &task.jobs[cell.job];
            let mut at = |choose: &mut dyn FnMut(usize, (u64, u64)) -> u64, other: bool| {
                let mut numbers = cell.numbers.clone();
                for &place in &job.order {
                    numbers[place] = choose(place, cell.ranges[place]);
                }
                for &place in job.free.iter().filter(|_| other) {
                    numbers[place] = choose(place, (0, STEPS));
                }
                let proposal = if other { task.jobs.len() + cell.job } else { cell.job };
                points.push((proposal, cell.job, numbers));
            };
            at(&mut |_, (low, _)| low, false);
            at(&mut |_, (_, high)| high - 1, false);
            at(&mut random, true);
            at(&mut random, true);
        }
        let outcomes = self.outcomes(task, points)?;
        for (cell, outcomes) in cells.iter_mut().zip(outcomes.chunks(POINTS)) {
            cell.is_constant = outcomes.iter().all(|outcome| *outcome == cell.outcome);
        }
        Ok(())
    }

    /// What is decided for a proposal, as it looks to a job, with some numbers.
    fn outcomes(
        &mut self,
        task: &Task<'_>,
        points: Vec<(usize, usize, Vec<u64>)>,
    ) -> Result<Vec<Outcome>> {
        self.decisions += points.len();
        let mut outcomes = Vec::with_capacity(points.len());
        for points in points.chunks(MOST_SEQUENCES) {
            let of: Vec<usize> = points.iter().map(|(proposal, ..)| *proposal).collect();
            let steps = points.iter().flat_map(|(.., numbers)| numbers.iter().copied()).collect();
            let draws = Draws::Given(steps);
            let records = self.procedure.decide(self.scene, &task.proposals, &of, &draws)?;
            let records = records.chunks(record::len(self.scene.max_drafts));
            let told = records.zip(points).map(|(record, (_, job, _))| (task.look)(*job, record));
            outcomes.extend(told);
        }
        Ok(outcomes)
    }
}

/// The parts of a cell between the borders of a number.
fn cut(cell: &Cell, place: Option<usize>, borders: &mut [Gap]) -> Vec<Cell> {
    borders.sort_unstable_by_key(|border| border.high.0);
    let (Some(place), Some(first)) = (place, borders.first()) else { return vec![cell.clone()] };
    let begins = borders.iter().map(|border| border.high);
    let begins = std::iter::once((0, first.low.1)).chain(begins);
    let ends = borders.iter().map(|border| border.high.0).chain([STEPS]);
    let part = |((low, outcome), high): ((u64, Outcome), u64)| {
        let mut part = cell.clone();
        part.ranges[place] = (low, high);
        part.numbers[place] = low + (high - low) / 2;
        part.outcome = outcome;
        part
    };
    begins.zip(ends).map(part).collect()
}
