//! `speculators bench`.

use crate::chart;
use crate::decoding::figures::Figures;
use crate::decoding::shape::{Shape, TreeArgument};
use crate::decoding::{Decoder, Drafter, Request, Sampling, TargetArguments, positions};
use crate::output::{Output, tell_warning, write_json};
use crate::progress::{Bar, Unit};
use crate::{Exit, Failure, Outcome};
use clap::Args;
use serde_json::{Value, json};
use speculators::error::{Error, Result, Status};
use speculators::model::Model;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Compare speculators, numbers of drafts and trees over the prompts of a file.
///
/// Every prompt is completed without a speculator and then in each way, so that all figures come
/// from the same time on the same machine. The target's passes over prompts are not counted; what
/// speculators take of them is.
///
/// A line of the file is a prompt: text with \n for line ends, a JSON string, or a JSON object with
/// a "prompt" or with "turns", of which the first is taken.
///
///   speculators bench --model ./llama --speculator ./eagle3-llama --speculator ./llama-small \
///       --prompts prompts.txt --drafts 1,3,5 --tree dynamic:16 --results bench.json --chart bench.svg
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Bench {
    #[command(flatten)]
    target: TargetArguments,
    /// Its speculator, or a smaller model with the same tokens; may be given several times.
    #[arg(long, value_name = "DIR", required = true)]
    speculator: Vec<PathBuf>,
    /// The prompts.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Numbers of tokens that are proposed in a round, one behind the other.
    #[arg(long, value_name = "K", value_delimiter = ',', default_value = "1,2,3,5", value_parser = clap::value_parser!(u32).range(1..1024))]
    drafts: Vec<u32>,
    /// Propose trees, too: static:NODES, stochastic:NODES or dynamic:NODES[:DEPTH[:WIDTH]].
    ///
    /// The root is one of the nodes. A static tree has always one shape, with the most probable tokens
    /// below each node; a stochastic one has the same shape, and its tokens are drawn. A dynamic tree
    /// takes whatever is the most probable, at most DEPTH levels (8) of WIDTH nodes that are gone on
    /// from (4).
    #[arg(long, value_name = "TREE", value_delimiter = ',')]
    tree: Vec<TreeArgument>,
    /// The most tokens of a text behind its prompt.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Go on behind tokens that end a text, so that all texts are of one length.
    #[arg(long)]
    ignore_eos: bool,
    /// Write all figures to a JSON file.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Draw an SVG chart: acceptance by position, tokens of a target pass, speed-up.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    #[command(flatten)]
    sampling: Sampling,
}

/// One way of decoding.
struct Way<'a> {
    directory: &'a Path,
    /// The speculator's name.
    speculator: String,
    model: &'a Arc<Model>,
    drafter: Drafter,
    figures: Figures,
    /// Texts that are the ones without a speculator.
    identical: usize,
}

impl Way<'_> {
    fn name(&self) -> String {
        format!("{}, {}", self.speculator, self.drafter.shape().name())
    }

    fn json(&self, without: &Figures) -> Value {
        json!({
            "speculator": self.directory.to_string_lossy(),
            "kind": self.model.kind(),
            "proposes": self.drafter.shape().json(),
            "figures": self.figures.json(),
            "speed_up": self.speed_up(without),
            "identical_texts": self.identical,
        })
    }

    fn speed_up(&self, without: &Figures) -> f64 {
        self.figures.tokens_per_second() / without.tokens_per_second()
    }
}

/// The last part of a path.
fn name(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or(directory.as_os_str());
    name.to_string_lossy().into_owned()
}

impl Bench {
    pub fn run(&self, output: &mut Output) -> Outcome {
        if let Some(obstacle) = self.sampling.obstacle() {
            return Err(Failure::Usage(obstacle));
        }
        let vocabulary = self.target.vocabulary()?;
        let target = self.target.load()?;
        let texts = prompts(&self.prompts)?;
        let texts: Vec<Vec<i32>> =
            texts.iter().map(|text| vocabulary.encode(text)).collect::<Result<_>>()?;
        let all: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
        let positions = positions(&all, self.tokens as usize, &target)
            .map_err(|error| error.within(self.prompts.display()))?;
        let load = |path: &PathBuf| self.target.load_speculator(&target, path);
        let models: Vec<_> = self.speculator.iter().map(load).collect::<Result<_>>()?;
        let mut ways = self.ways(&models, positions)?;
        let most = ways.iter().map(|way| way.drafter.shape().drafts()).max().unwrap_or(0);
        let mut decoder = Decoder::new(&target, positions, most)?;
        // What cannot be written is better known before all the work.
        let (mut results, mut chart) = (create(&self.results)?, create(&self.chart)?);
        let stop_tokens = if self.ignore_eos { &[] } else { vocabulary.stop_tokens() };
        let without = self.decode(&mut decoder, &mut ways, (&texts, stop_tokens))?;

        let document = self.document(&ways, &without, texts.len());
        if output.is_json() {
            output.json(&document)?;
        } else {
            tell(output, &ways, &without)?;
        }
        if let Some((file, path)) = &mut results {
            write_json(file, &document).map_err(|error| Error::io(path, &error))?;
        }
        if let Some((file, path)) = &mut chart {
            let title = format!("{}, {}", name(&self.target.directory), self.sampling.name());
            let text = chart::draw(&title, &shown(&ways, &without))?;
            file.write_all(text.as_bytes()).map_err(|error| Error::io(path, &error))?;
        }
        self.judge(&ways, texts.len())
    }

    /// All ways in which drafts are proposed: of each speculator first chains, then trees.
    fn ways<'a>(&'a self, models: &'a [Arc<Model>], positions: usize) -> Result<Vec<Way<'a>>> {
        let mut ways = Vec::new();
        for (directory, model) in self.speculator.iter().zip(models) {
            // Directories of one name are told apart by their paths.
            let alike = self.speculator.iter().filter(|other| name(other) == name(directory));
            let speculator = match alike.count() {
                1 => name(directory),
                _ => directory.to_string_lossy().into_owned(),
            };
            let mut drafts: Vec<usize> =
                self.drafts.iter().map(|&k| (k as usize).min(model.most_drafts())).collect();
            drafts.sort_unstable();
            drafts.dedup();
            let chains = drafts.into_iter().map(Shape::Chain);
            let trees = self.tree.iter().map(|&tree| Shape::of(tree, model));
            for shape in chains.chain(trees) {
                let drafter = match Drafter::new(model, shape, positions) {
                    // Not all kinds draft trees; the others are compared all the same.
                    Err(error) if error.status() == Status::Unsupported => {
                        tell_warning(&error.within(directory.display()).to_string());
                        continue;
                    }
                    other => other.map_err(|error| error.within(directory.display()))?,
                };
                let figures = Figures::default();
                let speculator = speculator.clone();
                ways.push(Way { directory, speculator, model, drafter, figures, identical: 0 });
            }
        }
        Ok(ways)
    }

    /// Decodes all texts in all ways; the figures without a speculator are returned.
    fn decode(
        &self,
        decoder: &mut Decoder,
        ways: &mut [Way<'_>],
        (prompts, stop_tokens): (&[Vec<i32>], &[i32]),
    ) -> Result<Figures> {
        let mut bar = Bar::new(Unit::Texts);
        let mut without = Figures::default();
        let all = (prompts.len() * (ways.len() + 1)) as u64;
        let mut done = 0;
        let mut advance = || {
            done += 1;
            bar.show(done, all);
        };
        for (index, prompt) in prompts.iter().enumerate() {
            let sampling = self.sampling.of_text(index);
            let tokens = self.tokens as usize;
            let request = Request { prompt, tokens, stop_tokens, sampling };
            let plain = decoder.decode::<Error>(None, &request, |_| Ok(()))?;
            without.add(&plain.figures);
            advance();
            for way in &mut *ways {
                let found =
                    decoder.decode::<Error>(Some(&mut way.drafter), &request, |_| Ok(()))?;
                way.figures.add(&found.figures);
                way.identical += usize::from(found.tokens == plain.tokens);
                advance();
            }
        }
        Ok(without)
    }

    fn document(&self, ways: &[Way<'_>], without: &Figures, prompts: usize) -> Value {
        json!({
            "model": self.target.directory.to_string_lossy(),
            "prompts": prompts,
            "tokens": self.tokens,
            "sampling": self.sampling.json(),
            "without_speculation": without.json(),
            "with_speculation": ways.iter().map(|way| way.json(without)).collect::<Vec<_>>(),
        })
    }

    /// Where texts have to be those without a speculator, anything else is a defect.
    fn judge(&self, ways: &[Way<'_>], texts: usize) -> Outcome {
        let differs =
            |way: &&Way<'_>| way.drafter.shape().follows(&self.sampling) && way.identical < texts;
        match ways.iter().find(differs) {
            None => Ok(Exit::Sound),
            Some(way) => Err(Failure::Library(Error::internal(format!(
                "{}: {} of {texts} texts differ from those without the speculator",
                way.name(),
                texts - way.identical
            )))),
        }
    }
}

/// Creates a file that is wanted.
fn create(path: &Option<PathBuf>) -> Result<Option<(File, &Path)>> {
    let Some(path) = path else { return Ok(None) };
    let file = File::create(path).map_err(|error| Error::io(path, &error))?;
    Ok(Some((file, path)))
}

/// The prompts of a file, one on each line.
fn prompts(file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file).map_err(|error| Error::io(file, &error))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<String> = lines
        .map(|(number, line)| {
            prompt(line).map_err(|text| Error::format(file, format!("line {}: {text}", number + 1)))
        })
        .collect::<Result<_>>()?;
    if prompts.is_empty() {
        return Err(Error::format(file, "expected a prompt on each line, found none"));
    }
    Ok(prompts)
}

fn prompt(line: &str) -> std::result::Result<String, String> {
    if !line.starts_with(['{', '"']) {
        return Ok(line.replace("\\n", "\n"));
    }
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let places = [&value, &value["prompt"], &value["turns"][0]];
    let text = places.iter().find_map(|place| place.as_str());
    let expected = "expected a string, or an object with a \"prompt\" or with \"turns\"";
    text.map(str::to_owned).ok_or(expected.into())
}

/// What the chart shows of each way.
fn shown(ways: &[Way<'_>], without: &Figures) -> Vec<chart::Way> {
    ways.iter()
        .map(|way| chart::Way {
            name: match way.drafter.shape() {
                Shape::Chain(_) => format!("{}, chains", way.speculator),
                _ => way.name(),
            },
            drafts: way.drafter.shape().drafts(),
            acceptance: way.figures.acceptance(),
            tokens_per_pass: way.figures.tokens_per_pass(),
            speed_up: way.speed_up(without),
        })
        .collect()
}

fn tell(output: &mut Output, ways: &[Way<'_>], without: &Figures) -> std::io::Result<()> {
    let names: Vec<String> = ways.iter().map(Way::name).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let (pass, speed) = (without.tokens_per_pass(), without.tokens_per_second());
    output.line(format_args!(
        "{:width$}  tokens/pass  tokens/s  speed-up  accepted by position, %",
        ""
    ))?;
    output.line(format_args!("{:width$}  {pass:11.3}  {speed:8.1}      1.00", "without"))?;
    for (way, name) in ways.iter().zip(&names) {
        let shares = way.figures.acceptance();
        let shares: Vec<String> =
            shares.iter().map(|share| format!("{:.0}", 100.0 * share)).collect();
        let (pass, speed) = (way.figures.tokens_per_pass(), way.figures.tokens_per_second());
        let speed_up = way.speed_up(without);
        let speed_up = if speed_up.is_finite() { format!("{speed_up:.2}") } else { "-".into() };
        output.line(format_args!(
            "{name:width$}  {pass:11.3}  {speed:8.1}  {speed_up:>8}  {}",
            shares.join(" ")
        ))?;
    }
    Ok(())
}
