//! What a sequence's decision depends on, measured: the cells of its random numbers in which it is
//! the same, found by halving.

use super::procedure::{Draws, LAST, Procedure, Proposal, STEPS, Scene};
use crate::backend::verify::record;
use crate::error::Result;

/// Sequences of one call at most.
const MOST_SEQUENCES: usize = 4096;

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
    /// What is decided there.
    pub outcome: Outcome,
    /// Whether the same is decided at the corners of the cell and at other points of it.
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

/// A number between two steps at which the outcomes differ.
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

    /// Whether a border is somewhere inside. One that is found is noted.
    fn is_open(&self, borders: &mut [Vec<u64>]) -> bool {
        if self.low.1 == self.high.1 {
            return false;
        }
        let is_found = self.high.0 - self.low.0 == 1;
        if is_found {
            borders[self.cell].push(self.high.0);
        }
        !is_found
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
        let proposals: Vec<Proposal> = jobs
            .iter()
            .map(|job| job.proposal.clone())
            .chain(jobs.iter().map(|job| job.other.clone()))
            .collect();
        let cell = |(job, numbers): (usize, &Job)| Cell {
            job,
            ranges: vec![(0, STEPS); numbers.numbers.len()],
            numbers: numbers.numbers.clone(),
            outcome: 0,
            is_constant: true,
        };
        let mut cells: Vec<Cell> = jobs.iter().enumerate().map(cell).collect();
        let levels = jobs.iter().map(|job| job.order.len()).max().unwrap_or(0);
        for level in 0..levels {
            cells = self.split(jobs, &proposals, cells, level, look)?;
        }
        self.check(jobs, &proposals, &mut cells, look)?;
        Ok(cells)
    }

    /// Splits cells where their next number makes a difference: some cells before others, which end
    /// where those did as often as not.
    fn split(
        &mut self,
        jobs: &[Job],
        proposals: &[Proposal],
        cells: Vec<Cell>,
        level: usize,
        look: &dyn Fn(usize, &[i32]) -> Outcome,
    ) -> Result<Vec<Cell>> {
        let place = |cell: &Cell| jobs[cell.job].order.get(level).copied();
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
            let ends: Vec<(usize, u64)> =
                wave.iter().flat_map(|&cell| [(cell, 0), (cell, LAST)]).collect();
            let outcomes = self.outcomes(proposals, ends.iter().map(at).collect(), look)?;
            let gap = |(&cell, ends): (&usize, &[Outcome])| Gap {
                cell,
                low: (0, ends[0]),
                high: (LAST, ends[1]),
            };
            let gaps = wave.iter().zip(outcomes.chunks(2)).map(gap);
            let mut gaps: Vec<Gap> = gaps.filter(|gap| gap.low.1 != gap.high.1).collect();
            while !gaps.is_empty() {
                let middles: Vec<(usize, u64)> =
                    gaps.iter().map(|gap| (gap.cell, gap.middle(&self.known))).collect();
                let found = self.outcomes(proposals, middles.iter().map(at).collect(), look)?;
                let halves = gaps.iter().zip(&middles).zip(found);
                gaps = halves
                    .flat_map(|((gap, &(_, middle)), outcome)| gap.halves((middle, outcome)))
                    .filter(|gap| gap.is_open(&mut borders))
                    .collect();
            }
            let ends = wave.iter().flat_map(|&cell| &borders[cell]);
            self.known.extend(ends.flat_map(|&end| [end - 1, end]));
            self.known.sort_unstable();
            self.known.dedup();
        }
        let parts = cells.iter().zip(&mut borders);
        Ok(parts.flat_map(|(cell, borders)| cut(cell, place(cell), borders)).collect())
    }

    /// Tells what is decided in the cells, and whether it is the same all over them.
    fn check(
        &mut self,
        jobs: &[Job],
        proposals: &[Proposal],
        cells: &mut [Cell],
        look: &dyn Fn(usize, &[i32]) -> Outcome,
    ) -> Result<()> {
        const POINTS: usize = 5;
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut points = Vec::with_capacity(POINTS * cells.len());
        for cell in &*cells {
            let job = &jobs[cell.job];
            let mut at = |choose: &mut dyn FnMut(usize, (u64, u64)) -> u64, other: bool| {
                let mut numbers = cell.numbers.clone();
                for &place in &job.order {
                    numbers[place] = choose(place, cell.ranges[place]);
                }
                if other {
                    for &place in &job.free {
                        numbers[place] = choose(place, (0, STEPS));
                    }
                }
                let proposal = if other { jobs.len() + cell.job } else { cell.job };
                points.push((proposal, cell.job, numbers));
            };
            let mut random = |_, (low, high): (u64, u64)| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                low + state % (high - low)
            };
            at(&mut |place, _| cell.numbers[place], false);
            at(&mut |_, (low, _)| low, false);
            at(&mut |_, (_, high)| high - 1, false);
            at(&mut random, true);
            at(&mut random, true);
        }
        let outcomes = self.outcomes(proposals, points, look)?;
        for (cell, outcomes) in cells.iter_mut().zip(outcomes.chunks(POINTS)) {
            cell.outcome = outcomes[0];
            cell.is_constant = outcomes.iter().all(|outcome| *outcome == cell.outcome);
        }
        Ok(())
    }

    /// What is decided for a proposal of a job with some numbers.
    fn outcomes(
        &mut self,
        proposals: &[Proposal],
        points: Vec<(usize, usize, Vec<u64>)>,
        look: &dyn Fn(usize, &[i32]) -> Outcome,
    ) -> Result<Vec<Outcome>> {
        self.decisions += points.len();
        let mut outcomes = Vec::with_capacity(points.len());
        for points in points.chunks(MOST_SEQUENCES) {
            let of: Vec<usize> = points.iter().map(|(proposal, ..)| *proposal).collect();
            let steps = points.iter().flat_map(|(.., numbers)| numbers.iter().copied()).collect();
            let records =
                self.procedure.decide(self.scene, proposals, &of, &Draws::Given(steps))?;
            let records = records.chunks(record::len(self.scene.max_drafts));
            let told = records.zip(points).map(|(record, (_, job, _))| look(*job, record));
            outcomes.extend(told);
        }
        Ok(outcomes)
    }
}

/// The parts of a cell between the borders of a number.
fn cut(cell: &Cell, place: Option<usize>, borders: &mut Vec<u64>) -> Vec<Cell> {
    let Some(place) = place.filter(|_| !borders.is_empty()) else { return vec![cell.clone()] };
    borders.sort_unstable();
    borders.push(STEPS);
    let mut low = 0;
    let part = |&high: &u64| {
        let mut part = cell.clone();
        part.ranges[place] = (low, high);
        part.numbers[place] = low + (high - low) / 2;
        low = high;
        part
    };
    borders.iter().map(part).collect()
}
