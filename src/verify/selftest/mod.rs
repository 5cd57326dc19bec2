//! A proof, by running the library, that each rule keeps its promise.
//!
//! A target and a drafter over few tokens are made up. All drafts that the drafter can propose are
//! verified, each in all cells of the random numbers in which the decision is the same; these are found by
//! halving, so that nothing is assumed of where they end. Together with how probable they are they
//! are the law of the emitted text, which has to be the target's: after one round, and after two of
//! a chain with those random numbers in common that a seed gives to both.

mod cases;
mod explore;
mod procedure;
mod promise;
mod report;
mod rounds;
mod seeds;
mod text;
mod world;

#[cfg(test)]
mod broken;

pub use report::Report;

use crate::backend::Stream;
use crate::context::Context;
use crate::error::{Error, Result};
use cases::{Case, Shape};
use procedure::{ByNumber, OnDevice, Procedure};
use report::CaseReport;
use rounds::Findings;
use world::World;

/// What a law may differ by from the target's: cells end at one of 2^53 steps, what rejected siblings
/// leave is rounded to 2^-62, and what block verification draws from to 2^-42 for each token.
const EXACT: f64 = 4e-12;

/// What a decision may differ by from what a rule that is not lossless says in real numbers.
const PROMISED: f64 = 1e-9;

/// What the target's law may differ by from the softmax in real numbers.
const ROUNDING: f64 = 1e-6;

/// Tries all rules on a context's device; fewer cases if it has to be `quick`. Blocks, and may not
/// be called while a stream is being captured.
pub fn selftest(context: &Context, stream: Stream, quick: bool) -> Result<Report> {
    let backend = context.backend();
    backend.check_stream(stream)?;
    let _scope = backend.enter()?;
    if backend.is_capturing(stream)? {
        return Err(Error::invalid(
            "stream: expected one whose work is done, found one that is being captured",
        ));
    }
    let procedure = OnDevice::new(context, stream, &ByNumber);
    let mut cases = cases::all();
    cases.retain(|case| case.is_quick || !quick);
    let results: Result<Vec<CaseReport>> =
        cases.iter().map(|case| report(&procedure, case)).collect();
    Ok(Report::new(context.description(), quick, results?))
}

/// What was found out about a case.
fn report(procedure: &dyn Procedure, case: &Case) -> Result<CaseReport> {
    let findings = examine(procedure, case);
    let findings =
        findings.map_err(|error| error.within(format!("rule {}, {}", case.rule, case.name)));
    Ok(CaseReport::new(case, findings?))
}

/// What there is to find out about a case.
fn examine(procedure: &dyn Procedure, case: &Case) -> Result<Findings> {
    let world = World::new(procedure, case)?;
    let mut findings = Findings { decisions: world.decisions, ..Findings::default() };
    if world.rounding > ROUNDING {
        findings.defect = Some("tokens are not drawn by the softmax of the logits");
    }
    if case.is_lossy() {
        rounds::tree_rounds(procedure, case, &world, &mut findings)?;
        return Ok(findings);
    }
    let Shape::Chain(drafts) = case.shape else {
        let rounds = rounds::tree_rounds(procedure, case, &world, &mut findings)?;
        let longest = rounds.iter().flatten().map(|branch| branch.text.len()).max().unwrap_or(0);
        findings.differ(text::deviation(&world.p, &rounds, longest, None));
        return Ok(findings);
    };
    let rounds = rounds::chain_rounds(procedure, case, &world, &mut findings)?;
    let names = seeds::names(procedure, case, drafts)?;
    findings.decisions += names.len() * names[0].len() * seeds::SEEDS as usize;
    let name = |after: usize, place: usize| names[after][place];
    findings.differ(text::deviation(&world.p, &rounds, drafts + 1, Some(&name)));
    Ok(findings)
}
