//! The phase of layers that have a mixture of experts in the place of an MLP.

use super::phases::{Activation, Norm, Rows};
use crate::tensor::{Carver, Dtype, Matrix, Span};

/// A mixture of experts (Shazeer et al., 2017, "Outrageously Large Neural Networks"). The experts with the
/// highest scores of a row make of it what an MLP does; what they make is weighed by the softmax of their
/// scores among those of all experts, or of the chosen ones alone. What one expert more makes of every row
/// is weighed by the sigmoid of its own score. All of it is added to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct MixExperts {
    /// The rows.
    pub rows: Rows,
    /// The residual stream, added to.
    pub hidden: Matrix,
    /// Its norm.
    pub norm: Norm,
    /// The experts.
    pub weights: ExpertWeights,
    /// Applied to the gates.
    pub activation: Activation,
    /// Scratch for the normed rows.
    pub input: Matrix,
    /// Scratch for what is between the halves of the shared expert.
    pub shared_inner: Matrix,
    /// More scratch.
    pub scratch: ExpertScratch,
}

/// The weights of a mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct ExpertWeights {
    /// `[experts, H]`: from a row to the scores.
    pub router: Matrix,
    /// Experts that a row goes through.
    pub chosen: usize,
    /// Whether the softmax is that of the chosen ones alone.
    pub renormalizes: bool,
    /// `[experts * 2 * inner, H]`: of each expert the gate, then what it gates.
    pub gate_up: Matrix,
    /// `[experts * H, inner]`.
    pub down: Matrix,
    /// `[shared inner, H]`.
    pub shared_gate: Matrix,
    /// `[shared inner, H]`.
    pub shared_up: Matrix,
    /// `[H, shared inner]`.
    pub shared_down: Matrix,
    /// `[1, H]`: from a row to the score of the shared expert.
    pub shared_router: Matrix,
}

impl ExpertWeights {
    /// The gate of an expert, `[inner, H]`.
    pub fn gate(&self, expert: usize) -> Matrix {
        let inner = self.down.columns;
        self.gate_up.row_range(2 * expert * inner, inner)
    }

    /// What it gates, of the same shape.
    pub fn up(&self, expert: usize) -> Matrix {
        let inner = self.down.columns;
        self.gate_up.row_range((2 * expert + 1) * inner, inner)
    }

    /// The way back to the residual stream, `[H, inner]`.
    pub fn down(&self, expert: usize) -> Matrix {
        let hidden = self.router.columns;
        self.down.row_range(expert * hidden, hidden)
    }
}

/// The memory that a mixture of experts takes.
#[derive(Clone, Copy, Debug)]
pub struct ExpertScratch {
    /// `[rows, experts]`.
    pub scores: Matrix,
    /// The experts of each row, `[rows, chosen]`, best first.
    pub experts: Span<i32>,
    /// What they weigh, `[rows, chosen]`.
    pub weights: Matrix,
    /// Where they stand in what is sorted by expert, `[rows, chosen]`.
    pub places: Span<i32>,
    /// Where each expert's rows begin there, with the end of the last behind them, `[experts + 2]`.
    pub begins: Span<i32>,
    /// The experts that have rows, their number first, `[experts + 1]`.
    pub busy: Span<i32>,
    /// `[rows * chosen, H]`: what an expert reads, and then what it makes of it. Sorted by expert, unless a
    /// device goes without sorting and keeps the order of rows.
    pub sorted: Matrix,
    /// `[rows * chosen, inner]`, in the same order.
    pub inner: Matrix,
    /// `[rows, H]`: what the shared expert makes.
    pub shared: Matrix,
    /// `[rows, 1]`: its score.
    pub shared_score: Matrix,
}

impl ExpertScratch {
    /// Memory for `rows` rows.
    pub fn carve(carver: &mut Carver, weights: &ExpertWeights, rows: usize) -> Self {
        let (experts, hidden) = (weights.router.rows, weights.router.columns);
        let sorted = rows.saturating_mul(weights.chosen);
        let mut matrix = |rows, columns| carver.matrix(Dtype::F32, rows, columns);
        let scores = matrix(rows, experts);
        let (weighed, between) =
            (matrix(rows, weights.chosen), matrix(sorted, weights.down.columns));
        let (rows_by_expert, shared) = (matrix(sorted, hidden), matrix(rows, hidden));
        let shared_score = matrix(rows, 1);
        Self {
            scores,
            experts: carver.span(sorted),
            weights: weighed,
            places: carver.span(sorted),
            begins: carver.span(experts + 2),
            busy: carver.span(experts + 1),
            sorted: rows_by_expert,
            inner: between,
            shared,
            shared_score,
        }
    }
}
