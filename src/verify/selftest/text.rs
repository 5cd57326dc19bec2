//! The law of the text after one round and after two, against the target's.

use super::procedure::STEPS;
use super::rounds::{Branch, Text};
use super::world::Laws;
use std::collections::BTreeMap;

/// Texts of one length at most: longer ones are compared as far as they reach.
const MOST_TEXTS: usize = 1 << 12;

/// How probable texts are, by their first tokens.
pub struct TextLaw<'a> {
    p: &'a Laws,
    root: usize,
    /// By the number of tokens and the text: how probable it is that at least these are emitted.
    begun: Vec<Vec<f64>>,
    /// The same, that exactly these are.
    ended: Vec<Vec<f64>>,
}

impl<'a> TextLaw<'a> {
    /// Nothing yet, of texts of at most so many tokens after a root.
    pub fn new(p: &'a Laws, root: usize, most: usize) -> Self {
        let texts = |len: usize| p.len().pow(len as u32);
        let lengths = 1 + (1..=most).take_while(|&len| texts(len) <= MOST_TEXTS).count();
        let begun: Vec<Vec<f64>> = (0..lengths).map(|len| vec![0.0; texts(len)]).collect();
        Self { p, root, ended: begun.clone(), begun }
    }

    /// Adds a text.
    pub fn add<'b>(&mut self, tokens: impl IntoIterator<Item = &'b u8>, probability: f64) {
        let (mut len, mut text) = (0, 0);
        for &token in tokens {
            if len + 1 == self.begun.len() {
                return;
            }
            len += 1;
            text = text * self.p.len() + usize::from(token);
            self.begun[len][text] += probability;
        }
        self.ended[len][text] += probability;
    }

    /// The largest difference from the target's law, of texts that the target itself goes on with
    /// once they have ended.
    pub fn deviation(&self) -> f64 {
        let vocabulary = self.p.len();
        let mut largest = 0.0_f64;
        let (mut before, mut expected) = (vec![0.0], vec![1.0]);
        for len in 1..self.begun.len() {
            let law = |text: usize| {
                let last = if len == 1 { self.root } else { text / vocabulary % vocabulary };
                self.p[last][text % vocabulary]
            };
            let texts = self.begun[len].len();
            let ended = &self.ended[len - 1];
            let gone_on: Vec<f64> = (0..texts)
                .map(|text| {
                    let start = text / vocabulary;
                    (before[start] + ended[start]) * law(text)
                })
                .collect();
            expected = (0..texts).map(|text| expected[text / vocabulary] * law(text)).collect();
            for text in 0..texts {
                let found = self.begun[len][text] + gone_on[text];
                largest = largest.max((found - expected[text]).abs());
            }
            before = gone_on;
        }
        largest
    }
}

/// What a seeded random number is: by the tokens that the first round emitted, 0 for that round
/// itself, and the place of the number. Equal names are the same number.
pub type Names<'a> = &'a dyn Fn(usize, usize) -> u64;

/// The largest difference from the target's law after one round, whatever its root, and after two.
/// Without names all random numbers are different ones.
pub fn deviation(
    p: &Laws,
    rounds: &[Vec<Branch>],
    tokens_per_round: usize,
    names: Option<Names<'_>>,
) -> f64 {
    let single = |branch: &Branch| match names {
        Some(names) => branch.drafted * joint(&numbers(branch, names, 0), &[]),
        None => branch.probability(),
    };
    let mut largest = 0.0_f64;
    for (root, round) in rounds.iter().enumerate() {
        let mut law = TextLaw::new(p, root, tokens_per_round);
        round.iter().for_each(|branch| law.add(&branch.text, single(branch)));
        largest = largest.max(law.deviation());
    }
    let mut law = TextLaw::new(p, 0, 2 * tokens_per_round);
    let summed: Vec<Vec<(&Text, f64)>> =
        rounds.iter().map(|round| summed(round, &single)).collect();
    for first in &rounds[0] {
        let Some(&last) = first.text.last() else { continue };
        let (len, second) = (first.text.len(), usize::from(last));
        let tokens = |next| first.text.iter().chain(next);
        match names.filter(|names| are_shared(first, &rounds[second], *names)) {
            Some(names) => {
                let known = numbers(first, names, 0);
                for next in &rounds[second] {
                    let joint = joint(&known, &numbers(next, names, len));
                    law.add(tokens(&next.text), first.drafted * next.drafted * joint);
                }
            }
            None => summed[second].iter().for_each(|&(text, probability)| {
                law.add(tokens(text), single(first) * probability);
            }),
        }
    }
    largest.max(law.deviation())
}

/// The texts of a round, each once.
fn summed<'a>(round: &'a [Branch], single: &dyn Fn(&Branch) -> f64) -> Vec<(&'a Text, f64)> {
    let mut texts = BTreeMap::new();
    for branch in round {
        *texts.entry(&branch.text).or_default() += single(branch);
    }
    texts.into_iter().collect()
}

/// A random number by its name, with its interval.
type Known = (u64, (u64, u64));

/// The random numbers that a branch depends on, in a round after so many tokens.
fn numbers(branch: &Branch, names: Names<'_>, after: usize) -> Vec<Known> {
    branch.ranges.iter().map(|&(place, range)| (names(after, place), range)).collect()
}

/// Whether a second round may depend on a random number that the first one depends on.
fn are_shared(first: &Branch, second: &[Branch], names: Names<'_>) -> bool {
    let places = second.iter().flat_map(|branch| &branch.ranges).map(|(place, _)| *place);
    let most = places.max().unwrap_or(0);
    let is_in_second = |name| (0..=most).any(|place| names(first.text.len(), place) == name);
    first.ranges.iter().any(|&(place, _)| is_in_second(names(0, place)))
}

/// How probable the intervals of two rounds are together.
fn joint(first: &[Known], second: &[Known]) -> f64 {
    let mut all: Vec<Known> = Vec::with_capacity(first.len() + second.len());
    for &(name, (low, high)) in first.iter().chain(second) {
        match all.iter_mut().find(|(other, _)| *other == name) {
            Some((_, range)) => *range = (range.0.max(low), range.1.min(high)),
            None => all.push((name, (low, high))),
        }
    }
    let share = |&(_, (low, high)): &Known| high.saturating_sub(low) as f64 / STEPS as f64;
    all.iter().map(share).product()
}
