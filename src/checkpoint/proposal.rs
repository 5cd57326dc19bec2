//! What a configuration says of proposals: how many tokens to draft, and for which model.

use super::config::Settings;
use super::report::Report;
use crate::error::Result;
use serde_json::Value;

const SECTION: &str = "speculators_config";
const METHODS: &str = "proposal_methods";

/// What the verifier is called, if it is named.
pub(super) fn verifier_name<'a>(top: &mut Settings<'a>) -> Result<Option<&'a str>> {
    let Some(mut section) = top.section(SECTION)? else { return Ok(None) };
    let Some(mut verifier) = section.section("verifier")? else { return Ok(None) };
    verifier.text("name_or_path")
}

/// How many tokens to draft in a round, `unsaid` where the settings do not tell. Of several methods the
/// first is run, as engines do.
pub(super) fn read(top: &mut Settings, unsaid: usize, report: &mut Report) -> Result<usize> {
    let Some(mut section) = top.section(SECTION)? else {
        let key = format!("{SECTION}.{METHODS}[0].speculative_tokens");
        return Ok(top.assume(&key, unsaid));
    };
    if let Some(mut verifier) = section.section("verifier")? {
        verifier.text("name_or_path")?;
        verifier.finish(report);
    }
    let drafts = match first_method(&mut section)? {
        None => section.assume(&format!("{METHODS}[0].speculative_tokens"), unsaid),
        Some(method) => read_method(method, unsaid, report)?,
    };
    let default = section.text("default_proposal_method")?;
    let listed = section.list(METHODS)?.unwrap_or_default();
    for (index, method) in listed.iter().enumerate().skip(1) {
        let path = section.path_of(&format!("{METHODS}[{index}]"));
        if default.is_some_and(|default| method["proposal_type"] == default) {
            report.warn(format!("{path}: not run, though it is the default: the first method is"));
        }
        report.unknown_settings.insert(path, method.clone());
    }
    section.finish(report);
    Ok(drafts)
}

/// How many tokens the first method says to draft, if it says so. [`read`] accounts for the settings.
pub(super) fn stated_drafts(top: &mut Settings) -> Result<Option<usize>> {
    let Some(mut section) = top.section(SECTION)? else { return Ok(None) };
    let Some(mut method) = first_method(&mut section)? else { return Ok(None) };
    let key = drafts_key(proposal_type(&mut method)?);
    method.integer(key, DRAFTS)
}

const DRAFTS: std::ops::RangeInclusive<usize> = 1..=1024;

fn first_method<'a>(section: &mut Settings<'a>) -> Result<Option<Settings<'a>>> {
    match section.list(METHODS)? {
        None | Some([]) => Ok(None),
        Some([Value::Object(method), ..]) => {
            let path = section.path_of(&format!("{METHODS}[0]"));
            Ok(Some(Settings::at(section, &path, method)))
        }
        Some(_) => Err(section.unexpected(METHODS, "a list of objects")),
    }
}

fn proposal_type<'a>(method: &mut Settings<'a>) -> Result<&'a str> {
    Ok(method.text("proposal_type")?.unwrap_or("greedy"))
}

/// The setting that tells how many tokens a chain has. Of a tree, that is how deep it is.
fn drafts_key(kind: &str) -> &'static str {
    if kind.ends_with("_tree") { "depth" } else { "speculative_tokens" }
}

fn read_method(mut method: Settings, unsaid: usize, report: &mut Report) -> Result<usize> {
    let kind = proposal_type(&mut method)?;
    let drafts = method.integer_or(drafts_key(kind), DRAFTS, unsaid)?;
    if !["greedy", "sampling"].contains(&kind) {
        let path = method.path_of("proposal_type");
        report.warn(format!("{path}: {kind} is run as a chain of {drafts} tokens"));
    }
    if ["static_tree", "dynamic_tree"].contains(&kind) {
        method.unneeded(&[
            "branching_factor",
            "expansion_factor",
            "initial_branching_factor",
            "speculative_tokens",
        ]);
    }
    for (key, lossless) in
        [("verifier_accept_k", 1.0), ("accept_tolerance", 0.0), ("accept_lenience", 1.0)]
    {
        if method.number(key)?.is_some_and(|value| value != lossless) {
            let path = method.path_of(key);
            report.warn(format!("{path}: not applied: verification is lossless"));
        }
    }
    method.finish(report);
    Ok(drafts)
}
