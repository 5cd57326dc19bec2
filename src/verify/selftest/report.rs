//! What the self-test tells the host.

use super::cases::Case;
use super::rounds::Findings;
use super::{EXACT, PROMISED};
use crate::backend::{Description, DeviceType};
use crate::error::{Error, Result};
use crate::verify::{
    BLOCK, DEFAULT, DISTINCT, FOLLOW, REJECTION, RELAXED, RULES, SYNTHETIC, THRESHOLD, TYPICAL,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What was found out about a case.
#[derive(Clone, Debug)]
pub struct CaseReport {
    rule: i32,
    name: &'static str,
    is_lossy: bool,
    findings: Findings,
}

impl Case {
    /// Whether the rule does not promise the target's law.
    pub fn is_lossy(&self) -> bool {
        RULES.iter().any(|(number, rule)| *number == self.rule && rule.kind().is_lossy())
    }
}

impl CaseReport {
    /// What was found out about this case.
    pub fn new(case: &Case, findings: Findings) -> Self {
        Self { rule: case.rule, name: case.name, is_lossy: case.is_lossy(), findings }
    }

    /// What the deviation has to be below.
    fn tolerance(&self) -> f64 {
        if self.is_lossy { PROMISED } else { EXACT }
    }

    /// Whether the rule keeps its promise.
    pub fn holds(&self) -> bool {
        self.findings.defect.is_none() && self.findings.deviation < self.tolerance()
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "holds": self.holds(),
            "branches": self.findings.branches,
            "decisions": self.findings.decisions,
            "largest_deviation": self.findings.deviation,
            "defect": self.findings.defect,
        })
    }

    fn failure(&self) -> String {
        let promise = if self.is_lossy { "what it promises" } else { "the target's law" };
        let defect = self.findings.defect.map_or(String::new(), |defect| format!("; {defect}"));
        format!(
            "rule {}, {}: expected {promise} within {:e}, found a deviation of {:e}{defect}",
            rule_name(self.rule),
            self.name,
            self.tolerance(),
            self.findings.deviation
        )
    }
}

/// What was found out about all cases.
#[derive(Clone, Debug)]
pub struct Report {
    device: Description,
    is_quick: bool,
    cases: Vec<CaseReport>,
}

impl Report {
    /// Of these cases.
    pub fn new(device: Description, is_quick: bool, cases: Vec<CaseReport>) -> Self {
        Self { device, is_quick, cases }
    }

    /// An error that names the case with the largest deviation, if there is one that does not hold.
    pub fn outcome(&self) -> Result<()> {
        let failed = self.cases.iter().filter(|case| !case.holds());
        let worst = failed
            .clone()
            .max_by(|left, right| left.findings.deviation.total_cmp(&right.findings.deviation));
        match worst {
            None => Ok(()),
            Some(worst) => Err(Error::internal(format!(
                "{} of {} cases failed; {}",
                failed.count(),
                self.cases.len(),
                worst.failure()
            ))),
        }
    }

    /// The report for hosts. Equal for equal devices and libraries.
    pub fn json(&self) -> String {
        let rules: BTreeSet<i32> = self.cases.iter().map(|case| case.rule).collect();
        let rules: Vec<Value> = rules.into_iter().map(|rule| self.rule(rule)).collect();
        let report = json!({
            "holds": self.outcome().is_ok(),
            "device": match self.device.device_type {
                DeviceType::Cpu => "cpu",
                DeviceType::Cuda => "cuda",
            },
            "instruction_set": self.device.instruction_set.to_string_lossy(),
            "quick": self.is_quick,
            "rules": rules,
        });
        report.to_string()
    }

    fn rule(&self, rule: i32) -> Value {
        let cases: Vec<&CaseReport> = self.cases.iter().filter(|case| case.rule == rule).collect();
        let sum = |count: fn(&Findings) -> usize| -> usize {
            cases.iter().map(|case| count(&case.findings)).sum()
        };
        let holds = cases.iter().all(|case| case.holds());
        let is_lossy = cases.iter().any(|case| case.is_lossy);
        let deviations = cases.iter().map(|case| case.findings.deviation);
        json!({
            "rule": rule,
            "name": rule_name(rule),
            "holds": holds,
            "lossy": is_lossy,
            "exact": holds && !is_lossy,
            "branches": sum(|findings| findings.branches),
            "decisions": sum(|findings| findings.decisions),
            "largest_deviation": deviations.fold(0.0, f64::max),
            "tolerance": if is_lossy { PROMISED } else { EXACT },
            "cases": cases.iter().map(|case| case.json()).collect::<Vec<_>>(),
        })
    }
}

/// A rule's name, as in the header.
fn rule_name(rule: i32) -> &'static str {
    match rule {
        DEFAULT => "default",
        FOLLOW => "follow",
        REJECTION => "rejection",
        DISTINCT => "rejection_distinct",
        BLOCK => "block",
        TYPICAL => "typical",
        THRESHOLD => "threshold",
        RELAXED => "relaxed",
        SYNTHETIC => "synthetic",
        _ => "unknown",
    }
}
