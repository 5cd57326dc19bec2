//! Checkpoints with random damage: whatever stands in a configuration or in the header of a weight file,
//! opening, describing and converting end with a result or with an error that says where it is.
//!
//! The damage follows from a seed. `SPEC_TEST_MUTATIONS` asks for another number of them, `SPEC_TEST_SEED` for
//! others.

#[path = "checkpoint/fixture.rs"]
#[allow(dead_code)]
mod fixture;
#[path = "host/random.rs"]
#[allow(dead_code)]
mod random;

use fixture::{Directory, golden};
use random::Random;
use serde_json::{Map, Value, json};
use speculators::checkpoint::{self, Conversion, Converted, Options, Stitched};
use speculators::error::{Error, Status};
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// A checkpoint in memory: its configuration, the header of its only weight file, and what follows that.
#[derive(Clone)]
struct Files {
    config: Vec<u8>,
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Files {
    fn read(directory: &Path) -> Option<Self> {
        let config = fs::read(directory.join("config.json")).ok()?;
        let weights = fs::read(directory.join("model.safetensors")).ok()?;
        let (len, rest) = weights.split_at(8);
        let len = u64::from_le_bytes(len.try_into().ok()?) as usize;
        let (header, data) = rest.split_at(len);
        Some(Self { config, header: header.to_vec(), data: data.to_vec() })
    }

    fn write(&self, directory: &Path) {
        fs::write(directory.join("config.json"), &self.config).expect("a configuration");
        let mut weights = (self.header.len() as u64).to_le_bytes().to_vec();
        weights.extend(&self.header);
        weights.extend(&self.data);
        fs::write(directory.join("model.safetensors"), weights).expect("a weight file");
    }
}

/// All reference checkpoints, and those in the layouts of others.
fn checkpoints() -> Vec<(PathBuf, Files)> {
    let below = |folder: PathBuf| {
        let entries = fs::read_dir(folder).expect("the reference data");
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let kinds = below(golden().join("speculators")).into_iter().flat_map(below);
    let inputs = below(golden().join("converters")).into_iter().map(|path| path.join("input"));
    let mut all: Vec<_> = kinds.chain(inputs).collect();
    all.push(golden().join("targets/llama_untied"));
    all.sort();
    all.into_iter().filter_map(|path| Files::read(&path).map(|files| (path, files))).collect()
}

/// A value that a reader might not think of.
fn odd(random: &mut Random) -> Value {
    let all = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(2),
        json!(3.5),
        json!(1e308),
        json!(-1e-320),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1_u64 << 31),
        json!(1_u64 << 40),
        json!(""),
        json!("7"),
        json!("1e9"),
        json!("nan"),
        json!("é\u{0}"),
        json!([]),
        json!({}),
        json!([[1]]),
        json!([-1, 1_u64 << 40]),
        json!([0, 0, 0]),
        json!({"a": {"b": []}}),
        json!("F32"),
        json!("BOOL"),
        json!("I64"),
        json!("llama"),
        json!("qwen3"),
        json!("sliding_attention"),
    ];
    all[random.below(all.len())].clone()
}

/// Changes one value somewhere in a document.
fn disturb(value: &mut Value, random: &mut Random) {
    let goes_on = random.below(6) > 0;
    match value {
        Value::Object(members) if goes_on && !members.is_empty() => {
            let key = members.keys().nth(random.below(members.len())).expect("a key").clone();
            match random.below(8) {
                0 => drop(members.remove(&key)),
                1 => {
                    let other =
                        members.keys().nth(random.below(members.len())).expect("a key").clone();
                    let swapped = members[&other].clone();
                    members.insert(key, swapped);
                }
                2 => {
                    let moved = members.remove(&key).expect("a member");
                    members.insert(renamed(&key, random), moved);
                }
                _ => disturb(&mut members[&key], random),
            }
        }
        Value::Array(elements) if goes_on && !elements.is_empty() => {
            let index = random.below(elements.len());
            match random.below(4) {
                0 => drop(elements.remove(index)),
                1 => elements.push(elements[index].clone()),
                _ => disturb(&mut elements[index], random),
            }
        }
        Value::Number(number) if goes_on && number.is_u64() => {
            let number = number.as_u64().expect("a number");
            let others = [
                number.wrapping_add(1),
                number.saturating_sub(1),
                number.wrapping_mul(2),
                number / 2,
                number << 32,
            ];
            *value = others[random.below(others.len())].into();
        }
        _ => *value = odd(random),
    }
}

/// A name that is nearly this one, or that others give it.
fn renamed(name: &str, random: &mut Random) -> String {
    let prefixes = [
        ("layers.0.", "midlayer."),
        ("layers.0.", "layers.7."),
        ("layers.", "mtp.layers."),
        ("transformer.", "layers.0."),
        ("refiner_head.", "xpress_head."),
        ("mtp.", "mtp_layers.0."),
        ("d2t", "t2d"),
        ("experts.0.", "experts.3."),
        ("q_proj", "qkv_proj"),
        ("", "x"),
    ];
    let (old, new) = prefixes[random.below(prefixes.len())];
    name.replacen(old, new, 1)
}

/// Changes some bytes of a text.
fn scramble(text: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let place = random.below(text.len().max(1));
        match random.below(5) {
            0 => text.truncate(place),
            1 if place < text.len() => drop(text.remove(place)),
            2 => text.insert(place.min(text.len()), random.below(256) as u8),
            3 => text.insert(place.min(text.len()), b"{}[],:\"0"[random.below(8)]),
            _ if place < text.len() => text[place] ^= 1 << random.below(8),
            _ => {}
        }
    }
}

fn damage(document: &mut Vec<u8>, random: &mut Random) {
    if random.below(3) == 0 {
        return scramble(document, random);
    }
    let Ok(mut value) = serde_json::from_slice(document) else { return scramble(document, random) };
    for _ in 0..1 + random.below(3) {
        disturb(&mut value, random);
    }
    *document = value.to_string().into_bytes();
}

/// What every error has to say.
fn check(what: &str, outcome: Result<(), Error>) -> bool {
    let Err(error) = outcome else { return false };
    assert_ne!(error.status(), Status::Internal, "{what}: {error}");
    assert!(!error.to_string().is_empty(), "{what}");
    true
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn damaged_checkpoints_are_refused_or_read_but_never_end_the_process() {
    let all = checkpoints();
    assert!(all.len() > 30, "{} checkpoints", all.len());
    let (directory, output) = (Directory::new(), Directory::new());
    let rounds = number("SPEC_TEST_MUTATIONS", 8_000);
    let (mut refused, mut read) = (0, 0);
    for round in 0..rounds {
        let mut random = Random::new(number("SPEC_TEST_SEED", 1) << 32 | round);
        let (path, sound) = &all[random.below(all.len())];
        let mut files = sound.clone();
        match random.below(3) {
            0 => damage(&mut files.header, &mut random),
            _ => damage(&mut files.config, &mut random),
        }
        files.write(directory.path());
        let what = format!("round {round}, {}", path.display());
        let target = golden().join("targets/llama_untied");
        let outcome = catch_unwind(|| {
            let options =
                Options { verifier_directory: Some(target.clone()), ..Options::default() };
            let opened = checkpoint::open(directory.path(), &options);
            let mut failed = [
                check(&what, opened.map(drop)),
                check(&what, checkpoint::inspect(directory.path()).map(drop)),
                check(&what, Stitched::prepare(directory.path(), &target).map(drop)),
                false,
            ];
            let wanted = Conversion {
                verifier_directory: Some(target.clone()),
                arguments: Map::new(),
                algorithm: None,
            };
            match Converted::prepare(directory.path(), &wanted) {
                Ok(ready) => {
                    let written = output.join("out");
                    assert!(!check(&what, ready.write(&written, &mut |_, _| true)));
                    // What is written can be read.
                    let described = checkpoint::inspect(&written).expect("a description");
                    fs::remove_dir_all(&written).expect("an output");
                    assert_eq!(described["supported"], true, "{what}: {}", described["reason"]);
                }
                Err(error) => failed[3] = check(&what, Err(error)),
            }
            failed
        });
        let failed = outcome.unwrap_or_else(|_| panic!("{what}: a panic"));
        refused += failed.iter().filter(|&&failed| failed).count();
        read += failed.iter().filter(|&&failed| !failed).count();
    }
    // Neither is the damage without effect nor all that is left.
    assert!(refused as u64 > rounds && read as u64 > rounds / 10, "{refused} refused, {read} read");
}
