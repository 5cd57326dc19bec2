//! Rotary position embeddings: from any spelling of the settings to one table of frequencies.
//!
//! Frequencies are computed in double precision and rounded once. They are inverse wavelengths:
//! position `p` rotates pair `i` by the angle `p * inverse_frequency[i]`.

use super::config::{Settings, as_number};
use super::report::Report;
use crate::error::{Error, Result};
use std::f64::consts::PI;

/// How positions rotate queries and keys. Pair `i` of a head is its elements `i` and
/// `i + inverse_frequency.len()`; elements from [`Rope::rotated`] on are not rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position, one for each pair.
    pub inverse_frequency: Vec<f32>,
    /// The same for positions from `long_from` on.
    pub long_inverse_frequency: Vec<f32>,
    /// The first position that uses `long_inverse_frequency`; `usize::MAX` if none does.
    pub long_from: usize,
    /// What sines and cosines are multiplied by.
    pub scale: f32,
}

impl Rope {
    /// How many leading elements of a head are rotated.
    pub fn rotated(&self) -> usize {
        2 * self.inverse_frequency.len()
    }

    fn plain(inverse_frequency: Vec<f64>) -> Self {
        Self::scaled(inverse_frequency, 1.0)
    }

    fn scaled(inverse_frequency: Vec<f64>, scale: f64) -> Self {
        let inverse_frequency: Vec<_> = inverse_frequency.iter().map(|&f| f as f32).collect();
        let long_inverse_frequency = inverse_frequency.clone();
        Self {
            inverse_frequency,
            long_inverse_frequency,
            long_from: usize::MAX,
            scale: scale as f32,
        }
    }
}

/// The numbers that every kind starts from.
struct Base {
    theta: f64,
    head_dim: usize,
    /// Elements of a head that rotate.
    rotated: usize,
    fraction: f64,
    max_position: usize,
    /// The length that the model was trained for before its context was extended.
    original: usize,
}

impl Base {
    /// `theta^(-2i/rotated)` for every pair.
    fn frequencies(&self) -> Vec<f64> {
        (0..self.rotated / 2)
            .map(|pair| self.theta.powf(-2.0 * pair as f64 / self.rotated as f64))
            .collect()
    }

    fn extension(&self) -> f64 {
        self.max_position as f64 / self.original as f64
    }
}

/// Reads the rotation of a decoder whose settings are `layer`.
pub(super) fn read(
    layer: &mut Settings,
    head_dim: usize,
    max_position: usize,
    report: &mut Report,
) -> Result<Rope> {
    let mut section = section(layer, report)?;
    let rope = match &mut section {
        Some(settings) => from_section(layer, settings, head_dim, max_position, report)?,
        None => {
            let base = base(layer, None, head_dim, max_position)?;
            Rope::plain(base.frequencies())
        }
    };
    if let Some(settings) = section {
        settings.finish(report);
    }
    let finite = |value: &f32| value.is_finite();
    let all = rope.inverse_frequency.iter().chain(&rope.long_inverse_frequency);
    if !all.chain([&rope.scale]).all(finite) {
        return Err(layer.wrong("rope_parameters", "expected finite frequencies, found overflow"));
    }
    Ok(rope)
}

/// The object that holds the rotation's own settings: today's name, then the old one.
fn section<'a>(layer: &mut Settings<'a>, report: &mut Report) -> Result<Option<Settings<'a>>> {
    let old = layer.section("rope_scaling")?;
    let Some(mut new) = layer.section("rope_parameters")? else { return Ok(old) };
    if old.is_some() {
        report.correct("rope_parameters and rope_scaling are both set: rope_parameters is used");
    }
    // One table for each kind of layer; drafters have a single rotation, and where there are two
    // tables the one of sliding layers is what their training code took.
    for key in ["sliding_attention", "full_attention"] {
        if let Some(table) = new.section(key)? {
            if key == "sliding_attention" && new.has("full_attention") {
                let path = new.path_of(key);
                report.correct(format!("{path}: used for layers of both kinds"));
            }
            return Ok(Some(table));
        }
    }
    Ok(Some(new))
}

fn base(
    layer: &mut Settings,
    section: Option<&mut Settings>,
    head_dim: usize,
    max_position: usize,
) -> Result<Base> {
    let (mut theta, mut fraction, mut original) = (None, None, None);
    let lengths = 1..=i32::MAX as usize;
    if let Some(section) = section {
        theta = section.positive("rope_theta")?;
        fraction = section.positive("partial_rotary_factor")?;
        original = section.integer("original_max_position_embeddings", lengths.clone())?;
    }
    let outer_theta = layer.positive("rope_theta")?;
    let outer_fraction = layer.positive("partial_rotary_factor")?;
    let outer_original = layer.integer("original_max_position_embeddings", lengths)?;
    let theta = theta.or(outer_theta).unwrap_or_else(|| layer.assume("rope_theta", 10_000.0));
    let fraction = fraction.or(outer_fraction).unwrap_or(1.0);
    let original = original.or(outer_original).unwrap_or(max_position);
    let rotated = (head_dim as f64 * fraction) as usize;
    if fraction > 1.0 || rotated == 0 || !rotated.is_multiple_of(2) {
        let text = format!("expected an even part of {head_dim} elements, found {fraction}");
        return Err(layer.wrong("partial_rotary_factor", text));
    }
    Ok(Base { theta, head_dim, rotated, fraction, max_position, original })
}

fn from_section(
    layer: &mut Settings,
    rope: &mut Settings,
    head_dim: usize,
    max_position: usize,
    report: &mut Report,
) -> Result<Rope> {
    let (kind, old_kind) = (rope.text("rope_type")?, rope.text("type")?);
    let kind = kind.or(old_kind).unwrap_or("default");
    // Text has equal positions in all sections, so that sections make no difference.
    rope.list("mrope_section")?;
    rope.flag("mrope_interleaved")?;
    let base = base(layer, Some(rope), head_dim, max_position)?;
    match kind {
        "default" | "mrope" => Ok(Rope::plain(base.frequencies())),
        "linear" => {
            let factor = factor(rope)?;
            Ok(Rope::plain(base.frequencies().iter().map(|f| f / factor).collect()))
        }
        "dynamic" => {
            factor(rope)?;
            report.correct(format!(
                "{}: dynamic scaling would depend on the length of a sequence beyond position \
                 {max_position}; the unscaled frequencies are used everywhere",
                rope.path_of("rope_type")
            ));
            Ok(Rope::plain(base.frequencies()))
        }
        "proportional" => proportional(rope, &base),
        "llama3" => llama3(rope, &base),
        "yarn" => yarn(rope, &base),
        "longrope" | "su" => longrope(rope, &base, report),
        other => Err(Error::unsupported(format!(
            "{}: {}: expected default, linear, dynamic, proportional, llama3, yarn or longrope, \
             found {other:?}",
            rope.file().display(),
            rope.path_of("rope_type")
        ))),
    }
}

fn factor(rope: &mut Settings) -> Result<f64> {
    needed(rope, "factor")
}

fn needed(rope: &mut Settings, key: &str) -> Result<f64> {
    rope.positive(key)?.ok_or_else(|| rope.unexpected(key, "a number above 0"))
}

/// A part of the pairs rotates, at the speed that it would have if all did.
fn proportional(rope: &mut Settings, base: &Base) -> Result<Rope> {
    let factor = rope.positive("factor")?.unwrap_or(1.0);
    let pairs = base.head_dim / 2;
    let rotating = (base.fraction * base.head_dim as f64 / 2.0) as usize;
    let frequencies = (0..pairs).map(|pair| {
        let exponent = -2.0 * pair as f64 / base.head_dim as f64;
        if pair < rotating { base.theta.powf(exponent) / factor } else { 0.0 }
    });
    Ok(Rope::plain(frequencies.collect()))
}

/// Long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
fn llama3(rope: &mut Settings, base: &Base) -> Result<Rope> {
    let factor = factor(rope)?;
    let low = needed(rope, "low_freq_factor")?;
    let high = needed(rope, "high_freq_factor")?;
    if high <= low {
        return Err(rope.unexpected("high_freq_factor", &format!("a number above {low}")));
    }
    let original = base.original as f64;
    let stretch = |frequency: &f64| {
        let turns = original * frequency / (2.0 * PI);
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * frequency / factor + kept * frequency
    };
    Ok(Rope::plain(base.frequencies().iter().map(stretch).collect()))
}

/// Pairs that turn rarely within the original length are stretched by `factor`, those that turn
/// often are kept; what is left of the difference goes into `scale`.
fn yarn(rope: &mut Settings, base: &Base) -> Result<Rope> {
    let factor = rope.positive("factor")?.unwrap_or_else(|| base.extension());
    let beta_fast = rope.positive("beta_fast")?.unwrap_or(32.0);
    let beta_slow = rope.positive("beta_slow")?.unwrap_or(1.0);
    let truncate = rope.flag("truncate")?.unwrap_or(true);
    let given = rope.positive("attention_factor")?;
    let mscale = rope.number("mscale")?.filter(|&value| value != 0.0);
    let mscale_all = rope.number("mscale_all_dim")?.filter(|&value| value != 0.0);
    if base.theta == 1.0 {
        return Err(rope.unexpected("rope_theta", "a number other than 1"));
    }
    let magnitude = |weight: f64| if factor > 1.0 { 0.1 * weight * factor.ln() + 1.0 } else { 1.0 };
    let scale = given.unwrap_or_else(|| match (mscale, mscale_all) {
        (Some(one), Some(all)) => magnitude(one) / magnitude(all),
        _ => magnitude(1.0),
    });
    let width = base.rotated as f64;
    // The pair, counted in fractions, that turns `turns` times within the original length.
    let pair_of = |turns: f64| {
        width * (base.original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * base.theta.ln())
    };
    let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
    if truncate {
        (first, last) = (first.floor(), last.ceil());
    }
    (first, last) = (first.max(0.0), last.min(width - 1.0));
    if first == last {
        last += 0.001;
    }
    let frequencies = base.frequencies();
    let blended = frequencies.iter().enumerate().map(|(pair, frequency)| {
        let stretched = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
        frequency / factor * stretched + frequency * (1.0 - stretched)
    });
    Ok(Rope::scaled(blended.collect(), scale))
}

/// A factor for each pair: one list up to the original length, another beyond.
fn longrope(rope: &mut Settings, base: &Base, report: &mut Report) -> Result<Rope> {
    let extension = rope.positive("factor")?.unwrap_or_else(|| base.extension());
    let scale = match rope.positive("attention_factor")? {
        Some(scale) => scale,
        None if extension <= 1.0 => 1.0,
        None if base.original == 1 => {
            let expected = "a length above 1";
            return Err(rope.unexpected("original_max_position_embeddings", expected));
        }
        None => (1.0 + extension.ln() / (base.original as f64).ln()).sqrt(),
    };
    let frequencies = base.frequencies();
    let mut stretched = |key: &str| -> Result<Vec<f64>> {
        let list = rope.list(key)?.unwrap_or_default();
        let factors: Vec<_> =
            list.iter().filter_map(as_number).filter(|&factor| factor > 0.0).collect();
        if list.len() != frequencies.len() || factors.len() != list.len() {
            let expected = format!("a list of {} numbers above 0", frequencies.len());
            return Err(rope.unexpected(key, &expected));
        }
        Ok(frequencies.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect())
    };
    let short = stretched("short_factor")?;
    let long = stretched("long_factor")?;
    let mut result = Rope::scaled(short, scale);
    if base.max_position > base.original {
        result.long_inverse_frequency = long.iter().map(|&frequency| frequency as f32).collect();
        result.long_from = base.original;
        report.warn(format!(
            "{}: positions from {} on use long_factor; keys cached before keep short_factor",
            rope.path_of("rope_type"),
            base.original
        ));
    }
    Ok(result)
}
