//! Wrong versions of rules and of drafting, each of which some library shipped or is near to: the
//! self-test has to find every one, and to say which case it is.

use super::cases::{Case, Cut, Drafting, Shape};
use super::procedure::{ByNumber, Draws, OnDevice, Procedure, Proposal, STEPS, Scene, Verify};
use super::report::{CaseReport, Report};
use super::{cases, examine};
use crate::backend::verify::{
    ChainRule, Child, Decision, PrefixWeight, Rule, RuleKind, Siblings, TargetChain, TargetRow,
    VerifyBatch, record,
};
use crate::backend::{Backend, Stream};
use crate::context::{Context, Threads};
use crate::error::{Result, Status};
use crate::sampling::{Purpose, uniform};
use crate::tensor::Span;
use crate::verify::{BLOCK, Block, DISTINCT, FOLLOW, REJECTION, Rejection};

fn context() -> Context {
    Context::cpu(Threads::Own(1), None, None).unwrap()
}

/// A rule of the test's own; sequences without drafts are decided as they are, so that the target's law is
/// known.
#[derive(Debug)]
struct ByRule(&'static dyn Rule);

impl Verify for ByRule {
    fn workspace_bytes(
        &self,
        backend: &dyn Backend,
        scene: &Scene,
        batch: &VerifyBatch,
    ) -> Result<usize> {
        match scene.rule {
            FOLLOW => ByNumber.workspace_bytes(backend, scene, batch),
            _ => Ok(backend.verify_workspace(batch, self.0)),
        }
    }

    fn verify(
        &self,
        (backend, stream): (&dyn Backend, Stream),
        scene: &Scene,
        batch: &VerifyBatch,
        workspace: Span<u8>,
    ) -> Result<()> {
        match scene.rule {
            FOLLOW => ByNumber.verify((backend, stream), scene, batch, workspace),
            _ => backend.verify(stream, batch, self.0, workspace),
        }
    }
}

/// What the self-test says of a procedure in all cases of a rule that `of` chooses.
fn report(procedure: &dyn Procedure, of: impl Fn(&Case) -> bool) -> Report {
    let cases = cases::all();
    let reports = cases.iter().filter(|case| of(case));
    let reports = reports.map(|case| CaseReport::new(case, examine(procedure, case).unwrap()));
    Report::new(context().description(), false, reports.collect())
}

/// The self-test fails for the rule in the case, and its report and its error say so.
fn assert_found(report: &Report, rule: &str, case: &str, least: f64) {
    let error = report.outcome().expect_err("a wrong version that is not found");
    assert_eq!(error.status(), Status::Internal);
    assert!(error.to_string().contains(&format!("rule {rule}, ")), "{error}");
    assert!(error.to_string().contains("deviation of "), "{error}");
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!(json["holds"], false);
    let rules = json["rules"].as_array().unwrap();
    let found = rules.iter().find(|entry| entry["name"] == rule).expect("the rule");
    assert_eq!((&found["holds"], &found["exact"]), (&false.into(), &false.into()));
    let cases = found["cases"].as_array().unwrap();
    let found = cases.iter().find(|entry| entry["name"] == case).expect("the case");
    assert_eq!(found["holds"], false, "{case}: {found}");
    let deviation = found["largest_deviation"].as_f64().unwrap();
    assert!(deviation > least, "{case}: {deviation}");
}

fn assert_rule_found(rule: &'static dyn Rule, number: i32, name: &str, case: &str) {
    let context = context();
    let by = ByRule(rule);
    let procedure = OnDevice::new(&context, Stream::NONE, &by);
    assert_found(&report(&procedure, |case| case.rule == number), name, case, 1e-3);
}

/// What the self-test says of a case that is not one of its own.
fn report_of(case: &Case) -> Report {
    let context = context();
    let procedure = OnDevice::new(&context, Stream::NONE, &ByNumber);
    let found = CaseReport::new(case, examine(&procedure, case).unwrap());
    Report::new(context.description(), false, vec![found])
}

const SIBLINGS: Shape = Shape::Tree(&[-1, 0, 0, 1, 1]);

/// Every sibling is tested with p / q.
#[derive(Debug)]
struct IndependentTests;

impl Rule for IndependentTests {
    fn kind(&self) -> RuleKind {
        RuleKind::Rejection(Siblings::Independent)
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        for child in children.iter_mut() {
            if row.accepts(child) {
                child.is_followed = true;
                return Decision::Follow;
            }
        }
        for child in children {
            row.reject(child, Siblings::Independent);
        }
        Decision::Emit(row.draw_left())
    }
}

#[test]
fn siblings_that_are_each_tested_with_p_over_q_are_found() {
    assert_rule_found(&IndependentTests, REJECTION, "rejection", "tree");
}

/// How a version of block verification is wrong.
#[derive(Debug, PartialEq)]
enum WrongBlock {
    StopsAtFailure,
    ForgetsWeight,
}

impl Rule for WrongBlock {
    fn kind(&self) -> RuleKind {
        RuleKind::Block
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        Rule::decide(&Block, children, row)
    }

    fn chain_rule(&self) -> Option<&dyn ChainRule> {
        Some(self)
    }
}

impl ChainRule for WrongBlock {
    fn decide(&self, chain: &mut dyn TargetChain) -> (usize, usize) {
        let drafts = chain.num_drafts();
        let (mut accepted, mut kept) = (0, PrefixWeight::One);
        let mut weight = PrefixWeight::One;
        for draft in 1..=drafts {
            weight = chain.extend(draft - 1, weight);
            let passes = match draft == drafts {
                true => chain.passes_whole(weight),
                false => weight != PrefixWeight::Fraction(0) && chain.passes(draft, weight),
            };
            if passes {
                (accepted, kept) = (draft, weight);
            } else if *self == Self::StopsAtFailure {
                break;
            }
        }
        if *self == Self::ForgetsWeight {
            kept = PrefixWeight::One;
        }
        (accepted, chain.draw_above(accepted, kept))
    }
}

#[test]
fn block_verification_that_stops_at_the_first_failure_is_found() {
    assert_rule_found(&WrongBlock::StopsAtFailure, BLOCK, "block", "chain");
}

#[test]
fn block_verification_that_leaves_the_weight_out_of_the_residual_is_found() {
    assert_rule_found(&WrongBlock::ForgetsWeight, BLOCK, "block", "chain");
}

/// Seeded numbers of tests depend on the position of a draft alone.
struct KeyedByPosition<'a>(OnDevice<'a>);

impl Procedure for KeyedByPosition<'_> {
    fn decide(
        &self,
        scene: &Scene,
        proposals: &[Proposal],
        of: &[usize],
        draws: &Draws,
    ) -> Result<Vec<i32>> {
        let Draws::Seeded(seeds) = draws else { return self.0.decide(scene, proposals, of, draws) };
        let steps = seeds.iter().flat_map(|&(seed, position)| {
            (0..scene.numbers() as u64).map(move |place| {
                let position = position as u64 + place / 2 + 1;
                let purpose = if place % 2 == 0 { Purpose::AcceptBlock } else { Purpose::Emit };
                uniform(seed, position, purpose, 0) / ((1 << 11) * (STEPS >> 53))
            })
        });
        self.0.decide(scene, proposals, of, &Draws::Given(steps.collect()))
    }
}

#[test]
fn block_verification_that_keys_its_numbers_by_position_is_found_and_rejection_may_do_so() {
    let context = context();
    let procedure = KeyedByPosition(OnDevice::new(&context, Stream::NONE, &ByNumber));
    assert_found(&report(&procedure, |case| case.rule == BLOCK), "block", "chain", 1e-3);
    // What rejection has looked at it never looks at again.
    report(&procedure, |case| case.rule == REJECTION).outcome().unwrap();
}

#[test]
fn the_best_siblings_that_are_tested_as_if_drawn_are_found() {
    for (rule, name) in [(REJECTION, "rejection"), (DISTINCT, "rejection_distinct")] {
        let case = Case::new("best tokens tested with q", rule, SIBLINGS, Drafting::BestAsDrawn);
        assert_found(&report_of(&case), name, case.name, 1e-2);
    }
}

#[test]
fn truncation_by_the_token_that_it_removes_is_found() {
    for (rule, name) in [(REJECTION, "rejection"), (BLOCK, "block")] {
        let chain = Case::new("cut by the token", rule, Shape::Chain(3), Drafting::Independent);
        assert_found(&report_of(&chain.cut(Cut::Improbable(0.3))), name, "cut by the token", 1e-2);
    }
}

#[test]
fn distinct_siblings_that_are_tested_as_independent_ones_are_found_and_the_other_way_round() {
    for (rule, name, drafting) in [
        (REJECTION, "rejection", Drafting::Distinct),
        (DISTINCT, "rejection_distinct", Drafting::Independent),
    ] {
        let case = Case::new("siblings of another kind", rule, SIBLINGS, drafting);
        assert_found(&report_of(&case), name, case.name, 1e-3);
    }
}

/// A rule whose decision depends on the number of a node that is not on the path.
#[derive(Debug)]
struct Meddling;

impl Rule for Meddling {
    fn kind(&self) -> RuleKind {
        RuleKind::Rejection(Siblings::Distinct)
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        if let [first, ..] = *children
            && row.test_number(&Child { node: 4, ..first }) < 1 << 62
        {
            return Decision::Emit(row.draw());
        }
        Rejection(Siblings::Distinct).decide(children, row)
    }
}

#[test]
fn a_decision_by_the_numbers_of_others_is_found() {
    let context = context();
    let by = ByRule(&Meddling);
    let procedure = OnDevice::new(&context, Stream::NONE, &by);
    let shape = Shape::Tree(&[-1, 0, 1, 2, 3]);
    let case = Case::new("numbers of others", DISTINCT, shape, Drafting::Distinct);
    let found = CaseReport::new(&case, examine(&procedure, &case).unwrap());
    assert!(!found.holds());
    let error = Report::new(context.description(), false, vec![found]).outcome().unwrap_err();
    assert!(error.to_string().contains("must not depend on"), "{error}");
}

/// Decisions without rhyme or reason.
struct Noise;

impl Procedure for Noise {
    fn decide(
        &self,
        scene: &Scene,
        _: &[Proposal],
        of: &[usize],
        draws: &Draws,
    ) -> Result<Vec<i32>> {
        let Draws::Given(steps) = draws else { return Ok(vec![0; of.len() * 10]) };
        let record = |steps: &[u64]| {
            let mut record = vec![0; record::len(scene.max_drafts)];
            record[record::EMITTED] = 1;
            let mixed = steps.iter().fold(0, |mixed, step| uniform(mixed, *step, Purpose::Emit, 0));
            record[record::TOKENS] = (mixed % 3) as i32;
            record
        };
        Ok(steps.chunks(scene.numbers()).flat_map(record).collect())
    }
}

#[test]
fn a_device_that_decides_at_random_is_an_error_and_no_endless_search() {
    let case = Case::new("noise", REJECTION, Shape::Chain(2), Drafting::Independent);
    let error = super::report(&Noise, &case).unwrap_err();
    assert_eq!(error.status(), Status::Internal);
    assert!(error.to_string().contains("noise: expected at most"), "{error}");
}

#[test]
fn every_rule_keeps_its_promise() {
    let context = context();
    let report = super::selftest(&context, Stream::NONE, false).unwrap();
    report.outcome().unwrap();
}
