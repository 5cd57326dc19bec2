//! What to do about what the loader says. It speaks in sentences; those that are told apart here are
//! recognised by a piece of them, which tests hold.

use super::Severity::{self, Note, Suspicious};
use crate::checkpoint::report::Report;
use crate::error::{Error, Status};

pub(super) const GIVE_VERIFIER: &str =
    "give the verifier's directory to check that the two belong together";
pub(super) const LEND: &str =
    "lend the verifier's embedding and head to the library when the model is loaded";
pub(super) const OTHER_VERIFIER: &str =
    "check that this is the model that it was trained for, and that its files are whole";
pub(super) const FOREIGN_TENSOR: &str =
    "check the kind and the number of layers in config.json: what was trained is not run";
pub(super) const UNKNOWN_SETTINGS: &str = "nothing to do if they are of training alone; otherwise a newer version of the library is needed";
pub(super) const ASSUMED: &str = "set what differs from how the speculator was trained";

/// How the loader describes tensors that no model has.
pub(super) const FOREIGN: &str = "not part of the model";
pub(super) const LOST_LAYER: &str = "lost the weights of layer 0";

pub(super) const RECONVERT: &str =
    "convert the original again: what is lost cannot be told from this file";

/// Pieces of warnings, and what they mean.
const WARNINGS: [(&str, Severity, &str); 15] = [
    (LOST_LAYER, Suspicious, RECONVERT),
    (
        "converters lost the scaling",
        Suspicious,
        "copy rope_scaling of the verifier, or convert the original again",
    ),
    (
        "norm_before_residual is not set",
        Suspicious,
        "set it as it was in training: the wrong value only shows in fewer accepted drafts",
    ),
    ("is not stored: ones are used", Suspicious, RECONVERT),
    ("is not stored: nothing is added", Suspicious, RECONVERT),
    ("no bias is stored: none is added", Suspicious, RECONVERT),
    (
        "is false: its tensors are not used",
        Suspicious,
        "set it to true if the speculator was trained with these tensors",
    ),
    (
        "d2t holds target ids",
        Suspicious,
        "store offsets (target id less draft id): other engines would draft the wrong tokens",
    ),
    (
        "no effective sliding_window",
        Note,
        "nothing to do if it was trained so, as the library that trains such layers does",
    ),
    (
        "unscaled frequencies are used",
        Suspicious,
        "keep texts below that position, or expect fewer accepted drafts beyond it",
    ),
    (
        "verification is lossless",
        Note,
        "nothing to do: text is the target's own whatever is set here",
    ),
    ("is run as a chain", Note, "nothing to do: trees are asked for in each call of spec_draft"),
    ("not run, though it is the default", Note, "put the method that is meant first"),
    ("those that both have", Note, "nothing to do if the two share their tokenizer"),
    (
        "keys cached before keep",
        Note,
        "nothing to do: engines differ here, and only for long texts",
    ),
];

/// How bad a warning of the loader is and what to do; `None` for one of which the report says more.
pub(super) fn of_warning(text: &str, report: &Report) -> Option<(Severity, &'static str)> {
    let is_told =
        text.ends_with("is not part of the model") || text.contains(": not known, not used");
    if is_told {
        return None;
    }
    let known = WARNINGS.iter().find(|(piece, ..)| text.contains(piece));
    if let Some(&(_, severity, advice)) = known {
        return Some((severity, advice));
    }
    Some(match report.is_corrected(text) {
        true => (Note, "nothing to do here; other engines may take the file at its word"),
        false => (Suspicious, "compare with how the speculator was trained"),
    })
}

/// What to do about an error.
pub(super) fn of_error(error: &Error) -> &'static str {
    let text = error.to_string();
    let says = |pieces: &[&str]| pieces.iter().any(|piece| text.contains(piece));
    if error.status() == Status::Io {
        return if says(&["has to be converted"]) {
            "save the weights as safetensors: this library runs no code out of files"
        } else {
            "bring config.json and the weights, model.safetensors or all that its index lists"
        };
    }
    if says(&["header", "safetensors file, found", "rest of the file", "found it not there"]) {
        return "the file is cut short or altered: copy or download it again";
    }
    if says(&["unquantized", "F32, F16 or BF16"]) {
        return "save the speculator without quantization";
    }
    if says(&["\"d2t\"", "\"t2d\""]) {
        return "write the maps anew: d2t[i] is the i-th drafted target id less i, ascending; t2d is 1 \
                for each drafted target id";
    }
    if says(&["found no such tensor", "found only NaN"]) {
        return "check the kind and the number of layers in config.json; if they are right, save or \
                convert the speculator again with this tensor";
    }
    if error.status() == Status::Unsupported {
        return "convert it to a kind that this version loads, or take a version that knows this one";
    }
    "mend what is named, or save the speculator again"
}

/// What a message is about: a tensor, a setting, a file, or else the whole configuration.
pub(super) fn subject(text: &str) -> String {
    if let Some((_, rest)) = text.split_once("tensor \"")
        && let Some((name, _)) = rest.split_once('"')
    {
        return name.to_owned();
    }
    // After the path of the file that an error begins with.
    let (file, own) = match text.split_once("config.json: ") {
        Some((_, rest)) => (None, rest),
        None => (text.split_once(".safetensors: ").map(|(path, _)| path), text),
    };
    if let Some(file) = file {
        let name = file.rsplit('/').next().unwrap_or(file);
        return format!("{name}.safetensors");
    }
    let first = own.split([' ', ':']).next().unwrap_or_default();
    let is_name = |first: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._[]-".contains(c);
        first == "d2t" || (first.contains(['_', '.']) && first.chars().all(plain))
    };
    if is_name(first) { first.to_owned() } else { "config.json".to_owned() }
}
