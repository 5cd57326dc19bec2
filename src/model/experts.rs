//! A mixture of experts in the place of a layer's MLP.

use super::decoder::Step;
use super::placement::Placement;
use crate::backend::experts::{ExpertScratch, ExpertWeights, MixExperts};
use crate::backend::phases::{Activation, Norm};
use crate::checkpoint;
use crate::error::Result;
use crate::tensor::{Carver, Matrix};

/// The experts and where their weights are.
#[derive(Debug)]
pub struct Experts {
    weights: ExpertWeights,
}

impl Experts {
    /// Gives the weights their place.
    pub(super) fn place(
        description: &checkpoint::Experts,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let shared = &description.shared;
        let weights = ExpertWeights {
            router: placement.tensor(&description.router)?,
            chosen: description.chosen,
            renormalizes: description.renormalizes,
            gate_up: placement.tensor(&description.gate_up)?,
            down: placement.tensor(&description.down)?,
            shared_gate: placement.tensor(&shared.gate.weight)?,
            shared_up: placement.tensor(&shared.up.weight)?,
            shared_down: placement.tensor(&shared.down.weight)?,
            shared_router: placement.tensor(&description.shared_gate)?,
        };
        Ok(Self { weights })
    }

    /// Cuts the memory for so many rows.
    pub(super) fn carve(&self, carver: &mut Carver, rows: usize) -> ExpertScratch {
        ExpertScratch::carve(carver, &self.weights, rows)
    }

    /// Adds what the experts make of the step's rows, normed, to their residual stream.
    pub(super) fn run(
        &self,
        step: &Step<'_>,
        (hidden, norm): (Matrix, Norm),
        activation: Activation,
        (shared_inner, scratch): (Matrix, ExpertScratch),
    ) -> Result<()> {
        let phase = MixExperts {
            rows: step.rows,
            hidden,
            norm,
            weights: self.weights,
            activation,
            input: step.scratch.input(hidden.columns),
            shared_inner,
            scratch,
        };
        step.backend.mix_experts(step.stream, &phase)
    }
}
