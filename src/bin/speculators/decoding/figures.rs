//! What decoding took and what came of it, over all texts of one way of decoding.

use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The parts of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The target's pass.
    Target,
    /// Verification.
    Verify,
    /// Drafting, rows to commit among it.
    Draft,
}

const PARTS: [(Part, &str); 3] =
    [(Part::Target, "target"), (Part::Verify, "verify"), (Part::Draft, "draft")];

/// Figures of one way of decoding. The target's passes over prompts are not counted, as they are the same in
/// all ways; what drafters take of prompts is.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Passes of the target.
    pub passes: u64,
    /// Tokens that they emitted.
    pub emitted: u64,
    /// Drafts that they looked at.
    pub drafted: u64,
    /// In how many passes so many drafts, one behind the other, could be accepted: at least 1, at least 2.
    tested: Vec<u64>,
    /// In how many they were.
    accepted: Vec<u64>,
    time: [Duration; PARTS.len()],
}

impl Figures {
    /// Counts a pass over drafts of so many levels. Those behind a draft that ends the text are not looked at.
    pub fn count(&mut self, (drafts, levels): (usize, usize), accepted: usize, emitted: usize) {
        let tested = if emitted > accepted { levels } else { accepted };
        self.passes += 1;
        self.emitted += emitted as u64;
        self.drafted += drafts as u64;
        let places = self.tested.len().max(tested);
        self.tested.resize(places, 0);
        self.accepted.resize(places, 0);
        self.tested[..tested].iter_mut().for_each(|count| *count += 1);
        self.accepted[..accepted].iter_mut().for_each(|count| *count += 1);
    }

    /// Adds what a part has taken since an instant, which becomes now.
    pub fn lap(&mut self, part: Part, since: &mut Instant) {
        let now = Instant::now();
        self.time[part as usize] += now - *since;
        *since = now;
    }

    /// Adds the figures of another text.
    pub fn add(&mut self, other: &Self) {
        self.passes += other.passes;
        self.emitted += other.emitted;
        self.drafted += other.drafted;
        for (own, other) in
            [(&mut self.tested, &other.tested), (&mut self.accepted, &other.accepted)]
        {
            own.resize(own.len().max(other.len()), 0);
            own.iter_mut().zip(other).for_each(|(own, other)| *own += other);
        }
        self.time.iter_mut().zip(other.time).for_each(|(own, other)| *own += other);
    }

    /// Tokens of a pass, on average.
    pub fn tokens_per_pass(&self) -> f64 {
        self.emitted as f64 / self.passes.max(1) as f64
    }

    /// Which part of the first drafts is accepted, of the second ones, and so on, wherever they were looked at.
    pub fn acceptance(&self) -> Vec<f64> {
        let both = self.accepted.iter().zip(&self.tested);
        both.map(|(&accepted, &tested)| accepted as f64 / tested as f64).collect()
    }

    /// Tokens of a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.emitted as f64 / self.seconds().max(f64::MIN_POSITIVE)
    }

    fn seconds(&self) -> f64 {
        self.time.iter().sum::<Duration>().as_secs_f64()
    }

    /// Each part's name and its share of the time.
    pub fn shares(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = self.seconds().max(f64::MIN_POSITIVE);
        PARTS.iter().map(move |&(part, name)| (name, self.time[part as usize].as_secs_f64() / all))
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let seconds: serde_json::Map<String, Value> = PARTS
            .iter()
            .map(|&(part, name)| (name.into(), self.time[part as usize].as_secs_f64().into()))
            .collect();
        json!({
            "target_passes": self.passes,
            "tokens": self.emitted,
            "drafts": self.drafted,
            "tokens_per_target_pass": self.tokens_per_pass(),
            "acceptance_by_position": self.acceptance(),
            "seconds": seconds,
            "tokens_per_second": self.tokens_per_second(),
        })
    }
}
