//! What is done to the logits of a request: its arrays, and its definition, step by step.

use super::{Arrays, Request};
use half::{bf16, f16};
use speculators::backend::phases::Column;
use speculators::backend::processing::{
    BadWords, Biases, Bits, History, Masks, Penalties, Processing, Ranges,
};
use speculators::tensor::Dtype;

/// The steps of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    /// The tokens that are allowed at each node; empty, or not there: all.
    pub masks: Vec<Vec<bool>>,
    pub words: Vec<Vec<i32>>,
    /// The end of the text at the root.
    pub history: Vec<i32>,
    pub min_tokens: i32,
    pub biases: Vec<(i32, f32)>,
    pub repetition: f32,
    pub frequency: f32,
    pub presence: f32,
    /// Of each token in the text at the root; empty: 0.
    pub counts: Vec<i32>,
    /// Whether each token stands in the prompt; empty: it does not.
    pub prompt: Vec<bool>,
    /// Entries of the arrays that are other ones than they should be.
    pub spoilt: Vec<(Entry, i32)>,
}

/// An entry of the arrays of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The mask of its last node.
    MaskRow,
    WordsBegin,
    WordsLength,
    /// Of its first word.
    WordBegin,
    WordLength,
    HistoryLength,
    BiasesBegin,
    BiasesLength,
    CountRow,
}

/// All of them.
pub const ENTRIES: [Entry; 9] = [
    Entry::MaskRow,
    Entry::WordsBegin,
    Entry::WordsLength,
    Entry::WordBegin,
    Entry::WordLength,
    Entry::HistoryLength,
    Entry::BiasesBegin,
    Entry::BiasesLength,
    Entry::CountRow,
];

/// Nothing is done.
pub const NO_STEPS: Steps = Steps {
    masks: Vec::new(),
    words: Vec::new(),
    history: Vec::new(),
    min_tokens: 0,
    biases: Vec::new(),
    repetition: 1.0,
    frequency: 0.0,
    presence: 0.0,
    counts: Vec::new(),
    prompt: Vec::new(),
    spoilt: Vec::new(),
};

impl Steps {
    /// The logits of a node as they are after the steps, where `path` are the tokens below the root
    /// down to it.
    pub fn apply(&self, logits: &[f32], node: usize, path: &[i32], stops: &[i32]) -> Vec<f32> {
        let text = [&self.history[..], path].concat();
        let allowed = self.masks.get(node).filter(|mask| !mask.is_empty());
        let is_excluded = |token: usize| {
            let token = token as i32;
            let ends = |word: &Vec<i32>| {
                let (last, before) = word.split_last().unwrap();
                *last == token && text.ends_with(before)
            };
            allowed.is_some_and(|mask| !mask[token as usize])
                || self.words.iter().any(ends)
                || ((path.len() as i32) < self.min_tokens && stops.contains(&token))
        };
        let step = |(token, &logit): (usize, &f32)| {
            if is_excluded(token) {
                return f32::NEG_INFINITY;
            }
            let bias = self.biases.iter().find(|(of, _)| *of == token as i32);
            let mut logit = bias.map_or(logit, |(_, bias)| logit + bias);
            let before = self.counts.get(token).map_or(0, |&count| count.max(0));
            let on_path = path.iter().filter(|&&other| other == token as i32).count();
            let count = f64::from(before) + on_path as f64;
            if count > 0.0 || self.prompt.get(token) == Some(&true) {
                let factor = self.repetition;
                logit = if logit > 0.0 { logit / factor } else { logit * factor };
            }
            if count > 0.0 {
                logit -= self.frequency * count as f32;
                logit -= self.presence;
            }
            logit
        };
        logits.iter().enumerate().map(step).collect()
    }

    fn entry(&self, entry: Entry, sound: i32) -> i32 {
        let spoilt = self.spoilt.iter().find(|(of, _)| *of == entry);
        spoilt.map_or(sound, |(_, value)| *value)
    }
}

/// Steps of any kind for a request over so many tokens, each of them in half of the cases;
/// `below(n)` is a random number below n.
pub fn any_steps(below: &mut dyn FnMut(usize) -> usize, request: &Request) -> Steps {
    let vocabulary = request.logits[0].len();
    let nodes = request.logits.len();
    // Tokens that matter: drafts, and some more.
    let token = |below: &mut dyn FnMut(usize) -> usize| match request.drafts.len() {
        0 => below(vocabulary) as i32,
        drafts => match below(3) {
            0 => below(vocabulary) as i32,
            _ => request.drafts[below(drafts)].max(0),
        },
    };
    let mut steps = NO_STEPS;
    if below(2) == 0 {
        steps.masks = (0..nodes)
            .map(|_| match below(8) {
                0 => Vec::new(),
                1 => vec![true; vocabulary],
                2 => vec![false; vocabulary],
                density => (0..vocabulary).map(|_| below(8) < density).collect(),
            })
            .collect();
    }
    if below(2) == 0 {
        steps.words =
            (0..below(5)).map(|_| (0..1 + below(3)).map(|_| token(below)).collect()).collect();
        steps.history = (0..below(4)).map(|_| token(below)).collect();
    }
    if below(2) == 0 {
        steps.min_tokens = below(5) as i32 - 1;
    }
    if below(2) == 0 {
        let values = [0.5, -3.0, 7.5, -0.1, 1e30, f32::INFINITY, f32::NEG_INFINITY];
        for _ in 0..below(6) {
            let bias = (token(below), values[below(values.len())]);
            steps.biases.retain(|(token, _)| *token != bias.0);
            steps.biases.push(bias);
        }
    }
    if below(2) == 0 {
        steps.repetition = [1.0, 1.3, 0.5, 2.0, 1e-3][below(5)];
        steps.frequency = [0.0, 0.3, -0.7, 0.0][below(4)];
        steps.presence = [0.0, 0.6, -0.4, 0.0][below(4)];
        if below(3) > 0 {
            let count = |place| if below(4) == 0 { below(5) as i32 - 1 } else { place };
            steps.counts = vec![0; vocabulary].into_iter().map(count).collect();
        }
        if below(3) > 0 {
            steps.prompt = (0..vocabulary).map(|_| below(6) == 0).collect();
        }
    }
    steps
}

/// The same request with its logits, of this type, as the steps make them.
pub fn applied(request: &Request, dtype: Dtype, stops: &[i32]) -> Request {
    let rounded = |&logit: &f32| match dtype {
        Dtype::F32 => logit,
        Dtype::F16 => f16::from_f32(logit).to_f32(),
        Dtype::Bf16 => bf16::from_f32(logit).to_f32(),
    };
    let mut applied = Request { steps: None, ..request.clone() };
    for (node, logits) in applied.logits.iter_mut().enumerate() {
        *logits = logits.iter().map(rounded).collect();
        if let Some(steps) = &request.steps {
            *logits = steps.apply(logits, node, &path_of(request, node), stops);
        }
    }
    applied
}

/// The tokens below the root down to a node.
pub fn path_of(request: &Request, mut node: usize) -> Vec<i32> {
    let mut path = Vec::new();
    while node > 0 {
        path.push(request.drafts[node - 1]);
        node = request.parents.get(node).map_or(node - 1, |&parent| parent as usize);
    }
    path.reverse();
    path
}

/// What no array may hold where it is looked at.
const WRONG: i32 = i32::MIN + 5;

fn bits(tokens: &[bool], stride: usize, rest: u32) -> Vec<u32> {
    let mut words = vec![rest; stride];
    for (token, &is_set) in tokens.iter().enumerate() {
        let bit = 1 << (token % 32);
        let word = &mut words[token / 32];
        *word = if is_set { *word | bit } else { *word & !bit };
    }
    words
}

/// Ranges of a list, with an element before each that belongs to none.
#[derive(Default)]
struct Lists<T> {
    elements: Vec<T>,
    begin: Vec<i32>,
    length: Vec<i32>,
}

impl<T: Clone> Lists<T> {
    fn push(&mut self, list: &[T], unused: T) {
        self.elements.push(unused);
        self.begin.push(self.elements.len() as i32);
        self.length.push(list.len() as i32);
        self.elements.extend_from_slice(list);
    }

    fn ranges(&self, arrays: &mut Arrays) -> Ranges {
        Ranges { begin: arrays.span(self.begin.clone()), length: arrays.span(self.length.clone()) }
    }
}

impl Arrays {
    /// The steps of all requests, if there are any. `begins` are the rows of their roots among
    /// `rows`.
    pub(super) fn processing(
        &mut self,
        requests: &[Request],
        begins: &[i32],
        rows: usize,
    ) -> Option<Processing> {
        requests.iter().find(|request| request.steps.is_some())?;
        let steps: Vec<Steps> =
            requests.iter().map(|request| request.steps.clone().unwrap_or(NO_STEPS)).collect();
        let vocabulary = requests[0].logits[0].len();
        let min_tokens = steps.iter().map(|steps| steps.min_tokens);
        Some(Processing {
            masks: self.masks(requests, &steps, begins, rows),
            bad_words: self.bad_words(&steps),
            min_tokens: self.optional(min_tokens, 0),
            biases: self.biases(&steps),
            penalties: self.penalties(&steps, vocabulary),
        })
    }

    /// Rows of no node have a mask that is none, or by number one that excludes all.
    fn masks(
        &mut self,
        requests: &[Request],
        steps: &[Steps],
        begins: &[i32],
        rows: usize,
    ) -> Option<Masks> {
        let is_entry = |steps: &Steps| steps.spoilt.iter().any(|(of, _)| *of == Entry::MaskRow);
        if steps.iter().all(|steps| steps.masks.is_empty() && !is_entry(steps)) {
            return None;
        }
        let vocabulary = requests[0].logits[0].len();
        let stride = vocabulary.div_ceil(32) + usize::from(!self.are_implied);
        let mut by_row = vec![None; rows];
        let mut mask_row = vec![WRONG; rows];
        let mut masks = vec![bits(&vec![true; vocabulary], stride, 0x5555_5555)];
        for ((request, steps), &begin) in requests.iter().zip(steps).zip(begins) {
            for node in 0..request.logits.len() {
                let row = begin as usize + node;
                mask_row[row] = -1;
                if let Some(mask) = steps.masks.get(node).filter(|mask| !mask.is_empty()) {
                    mask_row[row] = masks.len() as i32;
                    masks.push(bits(mask, stride, 0xAAAA_AAAA));
                    by_row[row] = masks.last().cloned();
                } else {
                    by_row[row] = Some(masks[0].clone());
                }
            }
            let last = begin as usize + request.logits.len() - 1;
            mask_row[last] = steps.entry(Entry::MaskRow, mask_row[last]);
        }
        let (count, words, mask_row) = if self.are_implied && !steps.iter().any(is_entry) {
            let masks = by_row.into_iter().map(|mask| mask.unwrap_or_else(|| vec![0; stride]));
            (rows, masks.collect::<Vec<_>>().concat(), None)
        } else {
            (masks.len(), masks.concat(), Some(self.span(mask_row)))
        };
        Some(Masks { bits: Bits { words: self.span(words), stride }, count, mask_row })
    }

    fn bad_words(&mut self, steps: &[Steps]) -> Option<BadWords> {
        if steps.iter().all(|steps| steps.words.is_empty() && steps.spoilt.is_empty()) {
            return None;
        }
        let mut words = Lists::default();
        let mut of_sequence = Lists::<()>::default();
        for steps in steps {
            words.push(&[], WRONG);
            *words.begin.last_mut().unwrap() = WRONG;
            let begin = words.begin.len();
            for word in &steps.words {
                words.push(word, WRONG);
            }
            if !steps.words.is_empty() {
                words.begin[begin] = steps.entry(Entry::WordBegin, words.begin[begin]);
                words.length[begin] = steps.entry(Entry::WordLength, words.length[begin]);
            }
            of_sequence.begin.push(steps.entry(Entry::WordsBegin, begin as i32));
            of_sequence.length.push(steps.entry(Entry::WordsLength, steps.words.len() as i32));
        }
        Some(BadWords {
            tokens: self.span(words.elements.clone()),
            words: words.ranges(self),
            of_sequence: of_sequence.ranges(self),
            history: self.history(steps),
        })
    }

    fn history(&mut self, steps: &[Steps]) -> Option<History> {
        let most = steps.iter().map(|steps| steps.history.len()).max().unwrap_or(0);
        let is_spoilt = steps.iter().any(|steps| !steps.spoilt.is_empty());
        if most == 0 && self.are_implied && !is_spoilt {
            return None;
        }
        let stride = most.max(1);
        let mut tokens = vec![WRONG; stride * steps.len()];
        for (row, steps) in tokens.chunks_mut(stride).zip(steps) {
            row[..steps.history.len()].copy_from_slice(&steps.history);
        }
        let length = |steps: &Steps| steps.entry(Entry::HistoryLength, steps.history.len() as i32);
        let length = steps.iter().map(length).collect();
        let tokens = Column { span: self.span(tokens), stride };
        Some(History { tokens, length: self.span(length) })
    }

    fn biases(&mut self, steps: &[Steps]) -> Option<Biases> {
        if steps.iter().all(|steps| steps.biases.is_empty() && steps.spoilt.is_empty()) {
            return None;
        }
        let mut lists = Lists::default();
        for steps in steps {
            lists.push(&steps.biases, (WRONG, f32::NAN));
            let (begin, length) = (lists.begin.last_mut(), lists.length.last_mut());
            let (begin, length) = (begin.unwrap(), length.unwrap());
            *begin = steps.entry(Entry::BiasesBegin, *begin);
            *length = steps.entry(Entry::BiasesLength, *length);
        }
        Some(Biases {
            tokens: self.span(lists.elements.iter().map(|bias| bias.0).collect()),
            values: self.span(lists.elements.iter().map(|bias| bias.1).collect()),
            of_sequence: lists.ranges(self),
        })
    }

    /// The rows of counts are in the order of the sequences, or against it.
    fn penalties(&mut self, steps: &[Steps], vocabulary: usize) -> Option<Penalties> {
        let repetition = self.optional(steps.iter().map(|steps| steps.repetition), 1.0);
        let frequency = self.optional(steps.iter().map(|steps| steps.frequency), 0.0);
        let presence = self.optional(steps.iter().map(|steps| steps.presence), 0.0);
        if [repetition, frequency, presence].iter().all(Option::is_none) {
            return None;
        }
        let (gap, count_rows) = (usize::from(!self.are_implied), steps.len());
        let count_stride = vocabulary + 2 * gap;
        let prompt_stride = vocabulary.div_ceil(32) + gap;
        let mut counts = vec![WRONG; count_rows * count_stride];
        let mut prompts = vec![0; count_rows * prompt_stride];
        let mut count_row = Vec::new();
        for (index, steps) in steps.iter().enumerate() {
            let row = if self.are_implied { index } else { count_rows - 1 - index };
            let counts = &mut counts[row * count_stride..][..vocabulary];
            counts.fill(0);
            counts[..steps.counts.len()].copy_from_slice(&steps.counts);
            prompts[row * prompt_stride..][..prompt_stride].copy_from_slice(&bits(
                &steps.prompt,
                prompt_stride,
                0,
            ));
            count_row.push(steps.entry(Entry::CountRow, row as i32));
        }
        let has_counts = !self.are_implied || steps.iter().any(|steps| !steps.counts.is_empty());
        let has_prompt = !self.are_implied || steps.iter().any(|steps| !steps.prompt.is_empty());
        let is_spoilt = steps.iter().any(|steps| !steps.spoilt.is_empty());
        Some(Penalties {
            repetition,
            frequency,
            presence,
            output_counts: has_counts
                .then(|| Column { span: self.span(counts), stride: count_stride }),
            prompt: has_prompt.then(|| Bits { words: self.span(prompts), stride: prompt_stride }),
            count_row: (!self.are_implied || is_spoilt).then(|| self.span(count_row)),
            count_rows,
        })
    }
}
