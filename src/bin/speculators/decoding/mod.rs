//! Decoding of one text, with and without a speculator: the round of a host, on the CPU.

pub mod figures;
pub mod shape;
pub mod text;

use crate::output::tell_warning;
use clap::Args;
use figures::{Figures, Part};
use serde_json::{Value, json};
use shape::Shape;
use speculators::context::{Block, Context, Log, LogLevel, MemoryKind, Threads};
use speculators::error::{Error, Result};
use speculators::model::target::{Pass, Target, TargetLimits};
use speculators::model::{Feature, LoadOptions, Model};
use speculators::session::{
    Column, DraftBatch, SamplingArrays, Session, SessionOptions, Stream, TreeLimits,
};
use speculators::tensor::{Matrix, Span};
use speculators::tree::Links;
use speculators::verify::{self, DraftDistribution, VerifyBatch, record};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use text::Vocabulary;

/// Positions of a page of the drafter's keys and values.
const PAGE_SIZE: usize = 16;

/// How tokens are drawn.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Draw from the K most probable tokens; 0 is all.
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: i32,
    /// Draw from the most probable tokens that have this probability together.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Draw from the tokens that are so many times as probable as the most probable one.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// The same seed draws the same text again.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Sampling {
    /// Whether texts depend on the prompt alone.
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-5
    }

    /// The same with a seed of its own for a text.
    pub fn of_text(&self, index: usize) -> Self {
        Self { seed: self.seed.wrapping_add(index as u64), ..*self }
    }

    /// For people.
    pub fn name(&self) -> String {
        let Self { temperature, top_k, top_p, min_p, .. } = self;
        let others = [
            (*top_k > 0, format!(", top-k {top_k}")),
            (*top_p < 1.0, format!(", top-p {top_p}")),
            (*min_p > 0.0, format!(", min-p {min_p}")),
        ];
        let others = others.iter().filter(|(is_set, _)| *is_set).map(|(_, text)| text.as_str());
        match self.is_greedy() {
            true => "greedy".into(),
            false => format!("temperature {temperature}") + &others.collect::<String>(),
        }
    }

    /// What is wrong with it.
    pub fn obstacle(&self) -> Option<String> {
        let numbers = [
            ("--temperature", self.temperature, f32::MAX),
            ("--top-p", self.top_p, 1.0),
            ("--min-p", self.min_p, 1.0),
        ];
        let wrong = numbers.into_iter().find(|(_, value, most)| !(0.0..=*most).contains(value));
        wrong.map(|(name, value, most)| format!("{name}: expected 0 to {most}, found {value}"))
    }

    fn arrays(&self) -> SamplingArrays {
        SamplingArrays {
            temperature: Some(Span::of(std::slice::from_ref(&self.temperature))),
            top_k: Some(Span::of(std::slice::from_ref(&self.top_k))),
            top_p: Some(Span::of(std::slice::from_ref(&self.top_p))),
            min_p: Some(Span::of(std::slice::from_ref(&self.min_p))),
            seed: Some(Span::of(std::slice::from_ref(&self.seed))),
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "seed": self.seed,
        })
    }
}

/// What is decoded.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The prompt's tokens, one at least.
    pub prompt: &'a [i32],
    /// The most tokens behind it.
    pub tokens: usize,
    /// Tokens that end the text.
    pub stop_tokens: &'a [i32],
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// Tells people what a model was loaded in spite of.
struct Warnings;

impl Log for Warnings {
    fn line(&self, level: LogLevel, text: &str) {
        if level == LogLevel::Warning {
            tell_warning(text);
        }
    }
}

/// Which target, and how it runs.
#[derive(Args, Clone, Debug)]
pub struct TargetArguments {
    /// The target model.
    #[arg(long = "model", value_name = "DIR")]
    pub directory: PathBuf,
    /// Let texts begin with the model's bos_token_id even if its tokenizer does not put it there.
    #[arg(long)]
    bos: bool,
    /// Threads; 0 is one for each core.
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
}

impl TargetArguments {
    /// The target's text and tokens.
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        Vocabulary::open(&self.directory, self.bos)
    }

    /// Loads the target.
    pub fn load(&self) -> Result<Arc<Model>> {
        let context = Context::cpu(Threads::Own(self.threads), None, Some(Box::new(Warnings)))?;
        let options = LoadOptions { map_files: true, ..LoadOptions::default() };
        Ok(Arc::new(Model::load(&Arc::new(context), &self.directory, options)?))
    }

    /// Loads a speculator of the target.
    pub fn load_speculator(&self, target: &Model, directory: &Path) -> Result<Arc<Model>> {
        let options = LoadOptions {
            map_files: true,
            verifier_directory: Some(self.directory.clone()),
            ..LoadOptions::default()
        };
        let model = Model::load(target.context(), directory, options)?;
        let (own, vocabulary) = (model.vocabulary(), target.vocabulary());
        if own != vocabulary {
            return Err(Error::invalid(format!(
                "{}: expected a speculator of a target with {vocabulary} tokens, found one of {own}",
                directory.display()
            )));
        }
        Ok(Arc::new(model))
    }
}

/// The positions that prompts and so many tokens take, of which the target has to have enough.
pub fn positions(prompts: &[&[i32]], tokens: usize, target: &Model) -> Result<usize> {
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
    let most = target.max_position();
    if prompts.iter().any(|prompt| prompt.is_empty()) {
        return Err(Error::invalid("prompt: expected one token at least, found none"));
    }
    if longest + tokens > most {
        return Err(Error::invalid(format!(
            "prompt: expected at most {} tokens, as the target has {most} positions, of which {tokens} are \
             for the text; found {longest}",
            most.saturating_sub(tokens)
        )));
    }
    Ok(longest + tokens)
}

/// One text that grows.
struct Text<'a> {
    request: &'a Request<'a>,
    /// All tokens that are decided, the prompt's among them; the last one is the root of drafts.
    tokens: Vec<i32>,
}

impl Text<'_> {
    fn position(&self) -> i32 {
        self.tokens.len() as i32 - 1
    }

    fn root(&self) -> i32 {
        self.tokens.last().copied().unwrap_or(0)
    }

    /// Tokens that may still be emitted.
    fn left(&self) -> i32 {
        (self.request.prompt.len() + self.request.tokens - self.tokens.len()) as i32
    }
}

/// What verification decided on a pass.
struct Decision {
    accepted: usize,
    emitted: Vec<i32>,
    /// The rows that belong to the text now: the root's, and those of accepted drafts.
    path: Vec<i32>,
    /// Whether the text ends.
    ends: bool,
}

/// A speculator that proposes drafts of a shape below one text.
pub struct Drafter {
    session: Session,
    shape: Shape,
    features: Vec<Feature>,
    drafts: Vec<i32>,
    num_proposed: Vec<i32>,
    parents: Vec<i32>,
    depth: Vec<i32>,
    /// What the drafts were drawn from, one row for each; none where they are taken as given.
    logits: Vec<f32>,
    /// The target's ids of the logits' columns: one table, or one for each row.
    token_ids: Vec<i32>,
}

impl Drafter {
    /// A drafter for texts of so many positions, prompts among them.
    pub fn new(model: &Arc<Model>, shape: Shape, positions: usize) -> Result<Self> {
        let drafts = shape.drafts();
        let options = SessionOptions {
            max_sequences: 1,
            max_rows: positions.max(drafts + 1),
            max_drafts: drafts,
            tree: shape.tree_size().map(|(depth, width)| TreeLimits { width, depth }),
            max_position: positions + drafts + 1,
            page_size: PAGE_SIZE,
            max_pages: 0,
            kv_dtype: None,
            kv_pool: None,
            workspace: None,
        };
        let session = Session::create(model, &options)
            .map_err(|error| error.within(format_args!("a {}", shape.name())))?;
        if positions > model.max_position() {
            tell_warning(&format!(
                "the {} was made for {} positions, and texts take {positions}",
                model.kind(),
                model.max_position()
            ));
        }
        session.warm_up(Stream::NONE)?;
        let columns = if shape.is_drawn() { model.draft_columns() } else { 0 };
        let token_ids = match model.draft_token_ids() {
            Some(ids) => ids.to_vec(),
            None => vec![-1; model.candidates().map_or(0, |_| drafts * columns)],
        };
        Ok(Self {
            session,
            features: model.features().to_vec(),
            drafts: vec![-1; drafts],
            num_proposed: vec![0],
            parents: vec![-1; drafts + 1],
            depth: vec![0; drafts + 1],
            logits: vec![0.0; drafts * columns],
            token_ids,
            shape,
        })
    }

    /// What it proposes in each round.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The drafts of the last round, and how many levels they have.
    fn proposed(&self) -> (&[i32], usize) {
        let count = self.num_proposed[0].max(0) as usize;
        // Nodes come level by level: the last one is on the deepest.
        let levels = if self.is_tree() { self.depth[count].max(0) as usize } else { count };
        (&self.drafts[..count], levels)
    }

    fn is_tree(&self) -> bool {
        self.shape.tree_size().is_some()
    }

    fn forget(&mut self) {
        self.num_proposed[0] = 0;
    }

    /// What the drafts were drawn from.
    fn distribution(&self) -> Option<DraftDistribution> {
        let model = self.session.model();
        let columns = model.draft_columns();
        (!self.logits.is_empty()).then(|| DraftDistribution {
            logits: Matrix::contiguous(self.logits.as_ptr() as u64, self.drafts.len(), columns),
            token_ids: (!self.token_ids.is_empty()).then(|| Span::of(&self.token_ids)),
            token_ids_stride: model.candidates().unwrap_or(0),
            row_begin: None,
            rows_per_sequence: self.drafts.len(),
            sampling: None,
        })
    }

    /// Commits rows of the target's last pass, those of a path or so many from the first one on, and
    /// proposes what may follow the text.
    fn draft(
        &mut self,
        text: &Text<'_>,
        (rows, path, count): Rows<'_>,
        target: &Target,
    ) -> Result<()> {
        let features: Vec<Matrix> = target.features().iter().map(|rows| rows.matrix()).collect();
        let model = self.session.model();
        let (columns, candidates) = (model.draft_columns(), model.candidates());
        let (position, next_token, row_count) = ([text.position()], [text.root()], [count as i32]);
        let (row_begin, limit) = ([0], [text.left()]);
        let has_logits = !self.logits.is_empty();
        let is_tree = self.is_tree();
        let logits =
            Matrix::contiguous(self.logits.as_mut_ptr() as u64, self.drafts.len(), columns);
        let batch = DraftBatch {
            num_rows: rows.len(),
            position: column(Span::of(&position)),
            row_count: column(Span::of(&row_count)),
            next_token: column(Span::of(&next_token)),
            row_begin: Some(Span::of(&row_begin)),
            row_index: path.map(|path| column(Span::of(path))),
            limit: Some(Span::of(&limit)),
            tokens: Span::of(rows),
            features: &features,
            sampling: text.request.sampling.arrays(),
            shape: self.shape.of_call(),
            links: is_tree.then(|| Links {
                stride: self.parents.len(),
                parents: Some(written(&mut self.parents)),
                depth: Some(written(&mut self.depth)),
                ..Links::default()
            }),
            draft_tokens: column(written(&mut self.drafts)),
            num_proposed: Some(written(&mut self.num_proposed)),
            draft_logits: has_logits.then_some(logits),
            draft_candidates: candidates
                .filter(|_| has_logits)
                .map(|_| written(&mut self.token_ids)),
            ..DraftBatch::new(1, self.shape.drafts())
        };
        self.session.draft(Stream::NONE, &batch)?;
        self.session.poll()
    }
}

/// The tokens of a pass' rows, the path of those that are committed, and how many these are.
type Rows<'a> = (&'a [i32], Option<&'a [i32]>, usize);

/// The memory of verification.
struct Verification {
    context: Arc<Context>,
    record: Vec<i32>,
    workspace: Option<Block>,
}

impl Verification {
    fn new(context: &Arc<Context>) -> Self {
        Self { context: Arc::clone(context), record: Vec::new(), workspace: None }
    }

    /// Decides on the root and the drafts that the target has just run over.
    fn decide(
        &mut self,
        text: &Text<'_>,
        target: &Target,
        drafter: Option<&Drafter>,
    ) -> Result<Decision> {
        let drafts = drafter.map_or(&[][..], |drafter| drafter.proposed().0);
        let (position, limit) = ([text.position()], [text.left()]);
        let (row_begin, num_drafts) = ([0], [drafts.len() as i32]);
        self.record.clear();
        self.record.resize(record::len(drafts.len()), 0);
        let tree = drafter.filter(|drafter| drafter.is_tree() && !drafts.is_empty());
        let batch = VerifyBatch {
            row_begin: Some(Span::of(&row_begin)),
            num_drafts: Some(Span::of(&num_drafts)),
            parents: tree.map(|drafter| column(Span::of(&drafter.parents[..drafts.len() + 1]))),
            limit: Some(Span::of(&limit)),
            sampling: text.request.sampling.arrays(),
            draft: drafter.filter(|_| !drafts.is_empty()).and_then(Drafter::distribution),
            stop_tokens: Span::of(text.request.stop_tokens),
            ..VerifyBatch::new(
                (1, drafts.len()),
                target.logits().matrix(),
                column(Span::of(drafts)),
                column(Span::of(&position)),
                column(written(&mut self.record)),
            )
        };
        let workspace = self.workspace(&batch)?;
        let backend = self.context.backend();
        verify::verify((backend, verify::Stream::NONE), &batch, (DEFAULT_RULE, false), workspace)?;
        self.decision(text, drafts.len())
    }

    fn decision(&self, text: &Text<'_>, drafts: usize) -> Result<Decision> {
        let record = &self.record;
        let flags = record[record::FLAGS];
        if flags & record::NO_CANDIDATE != 0 {
            return Err(Error::invalid(format!(
                "expected logits of the target that are numbers, found none behind {} tokens",
                text.tokens.len()
            )));
        }
        if flags & record::INVALID != 0 {
            return Err(Error::internal("a round was refused by verification"));
        }
        let emitted = record[record::EMITTED].max(0) as usize;
        let path = record::TOKENS + drafts + 1;
        Ok(Decision {
            accepted: record[record::ACCEPTED].max(0) as usize,
            emitted: record[record::TOKENS..][..emitted].to_vec(),
            path: record[path..][..emitted].to_vec(),
            ends: flags & (record::STOPPED | record::LIMIT) != 0,
        })
    }

    /// The workspace grows when a call needs more.
    fn workspace(&mut self, batch: &VerifyBatch) -> Result<Span<u8>> {
        let needed = verify::workspace_bytes(self.context.backend(), batch, DEFAULT_RULE)?;
        if self.workspace.as_ref().is_none_or(|block| block.bytes() < needed) {
            let what = "the workspace of verification";
            let block = self.context.allocate(MemoryKind::Workspace, what, needed)?;
            self.workspace = Some(block);
        }
        let address = self.workspace.as_ref().map_or(0, Block::address);
        Ok(Span::new(address, needed))
    }
}

/// Rejection sampling where the drafts were drawn from a law that is known; otherwise the target's own draws
/// are followed.
const DEFAULT_RULE: i32 = 0;

/// A target, and what decoding of its texts takes.
pub struct Decoder {
    target: Target,
    verification: Verification,
}

/// What came of a request.
pub struct Decoded {
    /// The tokens behind the prompt.
    pub tokens: Vec<i32>,
    /// What it took.
    pub figures: Figures,
}

impl Decoder {
    /// A decoder of texts of so many positions, with the most drafts of a round.
    pub fn new(model: &Arc<Model>, positions: usize, drafts: usize) -> Result<Self> {
        let limits = TargetLimits { positions, rows: positions.max(drafts + 1) };
        let verification = Verification::new(model.context());
        Ok(Self { target: Target::new(model, limits)?, verification })
    }

    /// Decodes a text; `emit` is given its tokens as they come.
    pub fn decode<E: From<Error>>(
        &mut self,
        mut drafter: Option<&mut Drafter>,
        request: &Request<'_>,
        mut emit: impl FnMut(&[i32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Decoded, E> {
        let features = drafter.as_ref().map_or(Vec::new(), |drafter| drafter.features.clone());
        let mut figures = Figures::default();
        let mut text = Text { request, tokens: request.prompt.to_vec() };
        self.target.clear();
        if let Some(drafter) = &mut drafter {
            drafter.forget();
        }
        loop {
            let mut clock = Instant::now();
            let is_prompt = self.target.is_empty();
            let (rows, drafts, levels) = rows_of(&text, is_prompt, drafter.as_deref());
            let tree = drafter.as_deref().filter(|drafter| drafter.is_tree() && drafts > 0);
            self.target.run(&Pass {
                tokens: &rows,
                parents: tree.map(|drafter| &drafter.parents[..rows.len()]),
                features: &features,
                logits_from: if is_prompt { rows.len() - 1 } else { 0 },
            })?;
            figures.lap(Part::Target, &mut clock);

            let decision = self.verification.decide(&text, &self.target, drafter.as_deref())?;
            figures.lap(Part::Verify, &mut clock);

            text.tokens.extend(&decision.emitted);
            emit(&decision.emitted)?;
            let path = (!is_prompt).then_some(&decision.path[..]);
            let kept = path.map_or(rows.len(), <[i32]>::len);
            if is_prompt {
                figures = Figures::default();
            } else {
                figures.count((drafts, levels), decision.accepted, decision.emitted.len());
            }
            if decision.ends {
                let tokens = text.tokens.split_off(request.prompt.len());
                return Ok(Decoded { tokens, figures });
            }
            match path {
                None => self.target.keep(0..kept),
                Some(path) => self.target.keep(path.iter().map(|&row| row as usize)),
            }
            clock = Instant::now();
            if let Some(drafter) = &mut drafter {
                drafter.draft(&text, (&rows, path, kept), &self.target)?;
            }
            figures.lap(Part::Draft, &mut clock);
        }
    }
}

/// The rows of the next pass: the prompt, or the root with its drafts, which have so many levels.
fn rows_of(
    text: &Text<'_>,
    is_prompt: bool,
    drafter: Option<&Drafter>,
) -> (Vec<i32>, usize, usize) {
    let Some(drafter) = drafter.filter(|_| !is_prompt) else {
        let rows = if is_prompt { text.tokens.clone() } else { vec![text.root()] };
        return (rows, 0, 0);
    };
    let (drafts, levels) = drafter.proposed();
    ([text.root()].iter().chain(drafts).copied().collect(), drafts.len(), levels)
}

/// Elements that are written.
fn written<T>(elements: &mut [T]) -> Span<T> {
    Span::new(elements.as_mut_ptr() as u64, elements.len())
}

/// The column of one sequence.
fn column(span: Span<i32>) -> Column {
    Column { span, stride: span.len() }
}
