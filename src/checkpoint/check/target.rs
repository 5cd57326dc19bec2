//! Whether a checkpoint and its verifier belong together, beyond what the loader demands.

use super::{Check, Severity};
use crate::checkpoint::report::Report;
use crate::checkpoint::verifier::Verifier;
use crate::checkpoint::{Checkpoint, Method, Options, files};
use serde_json::{Map, Value};

const VERIFIER: &str = "speculators_config.verifier";

impl Check {
    /// Compares what the checkpoint says of its verifier with what the verifier says.
    pub(super) fn compare_verifier(&mut self, loaded: &Checkpoint, config: &Map<String, Value>) {
        let Some(directory) = self.verifier.clone() else { return };
        let options = Options { verifier_directory: Some(directory.clone()), ..Options::default() };
        let opened = Verifier::open(&options, None, &self.directory, &mut Report::default());
        let (Ok(verifier), Ok((_, theirs))) = (opened, files::read_config(&directory)) else {
            return; // The loader has said so.
        };
        self.compare_vocabularies(loaded, verifier.vocabulary());
        let named = config.get("speculators_config").and_then(|section| section.get("verifier"));
        let wanted = classes(named.and_then(|verifier| verifier.get("architectures")));
        let found = classes(theirs.get("architectures"));
        if !wanted.is_empty()
            && !found.is_empty()
            && wanted.iter().all(|name| !found.contains(name))
        {
            let found =
                format!("trained for {}, checked with {}", wanted.join(", "), found.join(", "));
            let advice = "check that this is the model that it was trained for";
            self.add(Severity::Suspicious, format!("{VERIFIER}.architectures"), found, advice);
        }
    }

    fn compare_vocabularies(&mut self, loaded: &Checkpoint, theirs: Option<usize>) {
        let own = match &loaded.speculator.method {
            Method::Heads(heads) => heads.embeddings.first().map_or(0, |table| table.rows),
            _ => loaded.speculator.decoder.sizes.vocabulary,
        };
        // Independent drafters may know other tokens: the loader tells which are drafted.
        let Some(theirs) =
            theirs.filter(|&size| size != own && loaded.speculator.kind != "independent")
        else {
            return;
        };
        let found = format!("{own} tokens, those of the verifier are {theirs}");
        let advice = if own > theirs {
            "nothing to do if the tables are padded: mask the logits of what is no token"
        } else {
            "check that this is the model that it was trained for: some of its tokens are unknown here"
        };
        let severity = if own > theirs { Severity::Note } else { Severity::Suspicious };
        self.add(severity, "vocab_size", found, advice);
    }
}

/// The names in a list of classes.
fn classes(list: Option<&Value>) -> Vec<&str> {
    let list = list.and_then(Value::as_array);
    list.map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).collect())
}
