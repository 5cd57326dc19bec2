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

/// A head as far as its rotation goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// Its elements.
    pub(super) dim: usize,
    /// The part of them that rotates where the settings do not tell.
    pub(super) rotated: f64,
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
    head: Head,
    max_position: usize,
    report: &mut Report,
) -> Result<Rope> {
    let mut section = section(layer, report)?;
    let rope = match &mut section {
        Some(settings) => from_section(layer, settings, head, max_position, report)?,
        None => {
            let base = base(layer, None, head, max_position)?;
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
            new.finish(report);
            return Ok(Some(table));
        }
    }
    Ok(Some(new))
}

/// The kind of rotation that settings name, where it is not the plain one.
pub(super) fn scaling<'a>(layer: &mut Settings<'a>) -> Result<Option<&'a str>> {
    let Some(mut section) = section(layer, &mut Report::default())? else { return Ok(None) };
    let kind = match section.text("rope_type")? {
        Some(kind) => Some(kind),
        None => section.text("type")?,
    };
    Ok(kind.filter(|kind| !["default", "mrope"].contains(kind)))
}

fn base(
    layer: &mut Settings,
    section: Option<&mut Settings>,
    head: Head,
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
    let fraction = match fraction.or(outer_fraction) {
        Some(fraction) => fraction,
        None if head.rotated == 1.0 => 1.0,
        None => layer.assume("partial_rotary_factor", head.rotated),
    };
    let original = original.or(outer_original).unwrap_or(max_position);
    let head_dim = head.dim;
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
    head: Head,
    max_position: usize,
    report: &mut Report,
) -> Result<Rope> {
    let (kind, old_kind) = (rope.text("rope_type")?, rope.text("type")?);
    let kind = kind.or(old_kind).unwrap_or("default");
    // Text has equal positions in all sections, so that sections make no difference.
    rope.unneeded(&["mrope_section", "mrope_interleaved"]);
    let base = base(layer, Some(rope), head, max_position)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use serde_json::{Value, json};
    use std::path::Path;

    fn rope_of(config: Value, head_dim: usize) -> Result<Rope> {
        let Value::Object(object) = config else { panic!("not an object") };
        let mut report = Report::default();
        let mut layer = Settings::of_file(Path::new("config.json"), &object);
        read(&mut layer, Head { dim: head_dim, rotated: 1.0 }, 512, &mut report)
    }

    #[track_caller]
    fn assert_table(table: &[f32], expected: &[f64]) {
        assert_eq!(table.len(), expected.len());
        for (&found, &expected) in table.iter().zip(expected) {
            let close = (f64::from(found) - expected).abs() <= 1e-7 * expected;
            assert!(close, "expected {expected}, found {found}");
        }
    }

    const YARN: [f64; 8] =
        [1.0, 0.25693506, 0.0625, 0.0138349648, 0.0025, 0.000790569415, 0.00025, 7.90569415e-05];

    #[test]
    fn every_spelling_of_the_default_rotation_gives_the_same_table() {
        for config in [
            json!({}),
            json!({"rope_theta": 10000}),
            json!({"rope_theta": "10000.0", "rope_scaling": null}),
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
            json!({"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 5.0}),
            json!({"rope_theta": 1e4, "rope_scaling": {"type": "default"}}),
            json!({"rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}),
            json!({"rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
            json!({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2}}),
            json!({"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2}}),
        ] {
            let rope = rope_of(config, 8).unwrap();
            assert_table(&rope.inverse_frequency, &[1.0, 0.1, 0.01, 0.001]);
            assert_eq!((rope.rotated(), rope.scale, rope.long_from), (8, 1.0, usize::MAX));
            assert_eq!(rope.inverse_frequency, rope.long_inverse_frequency);
        }
    }

    #[test]
    fn linear_scaling_divides_and_a_partial_rotation_leaves_the_tail() {
        let rope = rope_of(json!({"rope_scaling": {"type": "linear", "factor": 4}}), 8).unwrap();
        assert_table(&rope.inverse_frequency, &[0.25, 0.025, 0.0025, 0.00025]);
        let rope = rope_of(json!({"partial_rotary_factor": 0.5}), 8).unwrap();
        assert_table(&rope.inverse_frequency, &[1.0, 0.01]);
        assert_eq!(rope.rotated(), 4);
    }

    #[test]
    fn proportional_rotates_the_first_pairs_at_full_width_speed() {
        let rope = rope_of(
            json!({"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}}),
            8,
        );
        assert_table(&rope.unwrap().inverse_frequency, &[1.0, 0.1, 0.0, 0.0]);
    }

    #[test]
    fn llama3_matches_its_definition_by_wavelengths() {
        let config = json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0,
            "original_max_position_embeddings": 64}});
        let expected = [
            1.0,
            0.244384599,
            0.013042256,
            0.00395284708,
            0.00125,
            0.000395284708,
            0.000125,
            3.95284708e-05,
        ];
        assert_table(&rope_of(config, 16).unwrap().inverse_frequency, &expected);
    }

    #[test]
    fn yarn_blends_frequencies_and_scales_attention() {
        let yarn = |more: Value| {
            let mut rope = json!({"rope_type": "yarn", "factor": 4,
                "original_max_position_embeddings": 256});
            rope.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rope_of(json!({"rope_parameters": rope}), 16).unwrap()
        };
        let plain = yarn(json!({}));
        assert_table(&plain.inverse_frequency, &YARN);
        assert!((plain.scale - 1.138_629_4).abs() < 1e-6);
        let untruncated = yarn(json!({"beta_fast": 16, "beta_slow": 2, "truncate": false}));
        assert_table(
            &untruncated.inverse_frequency[..4],
            &[1.0, 0.29152562, 0.0506643944, 0.00790569415],
        );
        assert!(
            (yarn(json!({"mscale": 0.7, "mscale_all_dim": 0.4})).scale - 1.039_403_8).abs() < 1e-6
        );
        assert_eq!(yarn(json!({"attention_factor": 1.5})).scale, 1.5);
    }

    #[test]
    fn yarn_without_a_factor_takes_the_ratio_of_the_lengths() {
        // 512 positions in all, 128 originally.
        let config = json!({"rope_scaling": {"rope_type": "yarn"},
            "original_max_position_embeddings": 128});
        assert!((rope_of(config, 16).unwrap().scale - 1.138_629_4).abs() < 1e-6);
    }

    #[test]
    fn longrope_switches_tables_at_the_original_length() {
        let config = json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 2],
            "long_factor": [1, 2, 4, 8]}, "original_max_position_embeddings": 128});
        let rope = rope_of(config, 8).unwrap();
        assert_table(&rope.inverse_frequency, &[1.0, 0.1, 0.01, 0.0005]);
        assert_table(&rope.long_inverse_frequency, &[1.0, 0.05, 0.0025, 0.000125]);
        assert_eq!(rope.long_from, 128);
        assert!((rope.scale - 1.133_893_4).abs() < 1e-6);
    }

    #[test]
    fn settings_that_give_no_table_are_refused() {
        for (rope, piece) in [
            (json!({"rope_type": "linear"}), "factor: expected a number above 0, found nothing"),
            (json!({"rope_type": "linear", "factor": -1}), "found -1"),
            (json!({"rope_type": "linear", "factor": "fast"}), "found \"fast\""),
            (json!({"rope_type": 3}), "rope_type: expected a string"),
            (json!({"rope_theta": 0}), "rope_theta"),
            (json!({"rope_theta": 1e-300}), "expected finite frequencies"),
            (json!({"partial_rotary_factor": 0.1}), "partial_rotary_factor"),
            (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor"),
            (json!({"rope_type": "yarn", "factor": 2, "rope_theta": 1}), "rope_theta"),
            (
                json!({"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}),
                "list of 4",
            ),
            (json!({"rope_type": "longrope", "short_factor": [1, 1, 1, 0]}), "list of 4"),
            (
                json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}),
                "high_freq_factor: expected a number above 4",
            ),
        ] {
            let error = rope_of(json!({ "rope_parameters": rope }), 8).unwrap_err();
            assert_eq!(error.status(), Status::Format, "{error}");
            assert!(error.to_string().contains(piece), "{error}");
        }
        let error = rope_of(json!({"rope_scaling": {"type": "spiral"}}), 8).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported);
        assert!(error.to_string().contains("found \"spiral\""), "{error}");
    }
}
