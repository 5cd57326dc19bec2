//! `speculators generate`.

use crate::decoding::figures::Figures;
use crate::decoding::shape::{Shape, TreeArgument};
use crate::decoding::{Decoded, Decoder, Drafter, Request, Sampling, TargetArguments, positions};
use crate::output::Output;
use crate::{Exit, Failure, Outcome};
use clap::Args;
use serde_json::json;
use speculators::error::Error;
use std::io::Write;
use std::path::PathBuf;

/// Complete a prompt with a speculator, and say what it was good for.
///
/// The target is a model of Llama, Mistral, Qwen2 or Qwen3 layers with its tokenizer.json; it runs
/// on the CPU. The text is decoded a second time without the speculator, to compare both.
///
///   speculators generate --model ./llama --speculator ./eagle3-llama --prompt 'def main():'
///   speculators generate --model ./llama --speculator ./eagle3-llama --prompt 'def main():' \
///       --tree dynamic:16 --temperature 0.8
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Generate {
    #[command(flatten)]
    target: TargetArguments,
    /// Its speculator, or a smaller model with the same tokens.
    #[arg(long, value_name = "DIR")]
    speculator: PathBuf,
    /// What the text begins with.
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_file")]
    prompt: Option<String>,
    /// A file with what the text begins with.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// The most tokens of the text behind the prompt.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Tokens that are proposed in a round, one behind the other; by default what the speculator was
    /// made for.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..1024))]
    drafts: Option<u32>,
    /// Propose trees: static:NODES, stochastic:NODES or dynamic:NODES[:DEPTH[:WIDTH]].
    ///
    /// The root is one of the nodes. A static tree has always one shape, with the most probable tokens
    /// below each node; a stochastic one has the same shape, and its tokens are drawn. A dynamic tree
    /// takes whatever is the most probable, at most DEPTH levels (8) of WIDTH nodes that are gone on
    /// from (4).
    #[arg(long, value_name = "TREE", conflicts_with = "drafts")]
    tree: Option<TreeArgument>,
    /// Do not decode the text without the speculator.
    #[arg(long)]
    no_comparison: bool,
    #[command(flatten)]
    sampling: Sampling,
}

impl Generate {
    pub fn run(&self, output: &mut Output) -> Outcome {
        if let Some(obstacle) = self.sampling.obstacle() {
            return Err(Failure::Usage(obstacle));
        }
        let vocabulary = self.target.vocabulary()?;
        let target = self.target.load()?;
        let speculator = self.target.load_speculator(&target, &self.speculator)?;
        let shape = match self.tree {
            Some(tree) => Shape::of(tree, &speculator),
            None => {
                let drafts = self.drafts.map_or(speculator.default_num_drafts(), |k| k as usize);
                Shape::Chain(drafts.min(speculator.most_drafts()))
            }
        };
        let text = self.text()?;
        let prompt = vocabulary.encode(&text)?;
        let positions = positions(&[&prompt], self.tokens as usize, &target)?;
        let mut decoder = Decoder::new(&target, positions, shape.drafts())?;
        let mut drafter = Drafter::new(&speculator, shape, positions)
            .map_err(|error| error.within(self.speculator.display()))?;
        let request = Request {
            prompt: &prompt,
            tokens: self.tokens as usize,
            stop_tokens: vocabulary.stop_tokens(),
            sampling: self.sampling,
        };

        let mut stream = vocabulary.stream(&prompt);
        let mut told = String::new();
        let is_json = output.is_json();
        if !is_json {
            tell_piece(output, &text)?;
        }
        let with = decoder.decode::<Failure>(Some(&mut drafter), &request, |tokens| {
            let piece = stream(tokens)?;
            if !is_json {
                tell_piece(output, &piece)?;
            }
            told.push_str(&piece);
            Ok(())
        })?;
        let without = match self.no_comparison {
            true => None,
            false => Some(decoder.decode::<Failure>(None, &request, |_| Ok(()))?),
        };
        let identical = without.as_ref().map(|without| without.tokens == with.tokens);
        if is_json {
            output.json(&json!({
                "model": self.target.directory.to_string_lossy(),
                "speculator": self.speculator.to_string_lossy(),
                "kind": speculator.kind(),
                "proposes": drafter.shape().json(),
                "sampling": self.sampling.json(),
                "prompt": text,
                "text": told,
                "tokens": with.tokens,
                "with_speculation": with.figures.json(),
                "without_speculation": without.as_ref().map(|run| run.figures.json()),
                "identical": identical,
            }))?;
        } else {
            output.line("")?;
            output.line("----")?;
            tell(output, drafter.shape(), &with.figures, without.as_ref().map(|run| &run.figures))?;
        }
        self.judge(output, (&with, without.as_ref()), drafter.shape().follows(&self.sampling))
    }

    fn text(&self) -> Result<String, Error> {
        let Some(file) = &self.prompt_file else {
            return Ok(self.prompt.clone().unwrap_or_default());
        };
        std::fs::read_to_string(file).map_err(|error| Error::io(file, &error))
    }

    /// Tells whether both texts are the same; where they have to be, anything else is a defect.
    fn judge(
        &self,
        output: &mut Output,
        (with, without): (&Decoded, Option<&Decoded>),
        has_to_follow: bool,
    ) -> Outcome {
        let Some(without) = without.filter(|_| has_to_follow) else { return Ok(Exit::Sound) };
        let both = with.tokens.iter().zip(&without.tokens);
        let common = both.take_while(|(with, without)| with == without).count();
        if with.tokens != without.tokens {
            return Err(Failure::Library(Error::internal(format!(
                "the texts with and without the speculator differ at token {common}"
            ))));
        }
        if !output.is_json() {
            output.line("texts: identical")?;
        }
        Ok(Exit::Sound)
    }
}

fn tell_piece(output: &mut Output, text: &str) -> std::io::Result<()> {
    output.raw().write_all(text.as_bytes())?;
    output.finish()
}

/// The width of the bars that tell of acceptance.
const BAR: usize = 40;

fn tell(
    output: &mut Output,
    shape: &Shape,
    with: &Figures,
    without: Option<&Figures>,
) -> std::io::Result<()> {
    if with.passes == 0 {
        return output.line("no pass behind the prompt's, so that nothing was drafted");
    }
    let per_pass = with.tokens_per_pass();
    let name = shape.name();
    match without {
        None => output.line(format_args!("tokens per target pass: {per_pass:.3} with a {name}"))?,
        Some(without) => {
            let alone = without.tokens_per_pass();
            output.line(format_args!(
                "tokens per target pass: {per_pass:.3} with a {name}, {alone:.3} without"
            ))?;
        }
    }
    output.line(format_args!("acceptance by position, in {} passes:", with.passes))?;
    for (place, share) in with.acceptance().into_iter().enumerate() {
        let filled = (share * BAR as f64).round() as usize;
        let bar = format!("{}{}", "#".repeat(filled), ".".repeat(BAR - filled));
        output.line(format_args!("  {:2}  {bar}  {:5.1} %", place + 1, 100.0 * share))?;
    }
    let shares = with.shares().map(|(name, share)| format!("{:.1} % {name}", 100.0 * share));
    output.line(format_args!("time: {}", shares.collect::<Vec<_>>().join(", ")))?;
    let fast = with.tokens_per_second();
    let Some(without) = without else {
        return output.line(format_args!("tokens per second: {fast:.1}"));
    };
    let slow = without.tokens_per_second();
    output.line(format_args!(
        "tokens per second: {fast:.1} with speculation, {slow:.1} without: ratio {:.2}",
        fast / slow
    ))
}
