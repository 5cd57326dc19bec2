//! The target of the command: what it tells of a text is what the model computes, in double precision,
//! however the text is cut into passes, and in trees as in chains.

mod device;
mod host;

use host::draft::distance;
use host::files::project;
use host::golden;
use host::random::Random;
use host::target::{Position, Target as Plain};
use speculators::context::{Context, Threads};
use speculators::error::Result;
use speculators::model::target::{Pass, Target, TargetLimits};
use speculators::model::{Feature, FeatureStage, LoadOptions, Model};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How far single precision may lie from double precision.
const TOLERANCE: f32 = 2e-4;
const LIMITS: TargetLimits = TargetLimits { positions: 64, rows: 40 };

fn model(directory: &Path) -> Arc<Model> {
    let context = Context::cpu(Threads::Own(2), None, None).expect("a context");
    let options = LoadOptions { map_files: true, ..LoadOptions::default() };
    Arc::new(Model::load(&Arc::new(context), directory, options).expect("a language model"))
}

fn trained() -> PathBuf {
    project("examples/models/tiny-python/target")
}

fn target(directory: &Path) -> Target {
    Target::new(&model(directory), LIMITS).expect("a target")
}

fn tokens(target: &Target, len: usize) -> Vec<i32> {
    let mut random = Random::new(5);
    (0..len).map(|_| random.below(target.model().vocabulary()) as i32).collect()
}

/// What enters every layer, what leaves the last one, and the final norm.
fn all_features(target: &Target) -> Vec<Feature> {
    let width = target.model().hidden_size();
    let layers = 0..=target.model().num_layers() as i32;
    let inputs = layers.map(|layer| Feature { layer, stage: FeatureStage::LayerInput, width });
    let norm = Feature { layer: 0, stage: FeatureStage::FinalNorm, width };
    inputs.chain([norm]).collect()
}

/// All that a pass tells of its rows: logits, then features.
fn run(target: &mut Target, tokens: &[i32], parents: Option<&[i32]>) -> Vec<Vec<f32>> {
    let features = all_features(target);
    let pass = Pass { tokens, parents, features: &features, logits_from: 0 };
    target.run(&pass).expect("a pass");
    let outputs = [target.logits()].into_iter().chain(target.features());
    let rows: Vec<Vec<&[f32]>> = outputs
        .map(|output| output.elements().chunks(output.elements().len() / tokens.len()).collect())
        .collect();
    (0..tokens.len()).map(|row| rows.iter().flat_map(|all| all[row]).copied().collect()).collect()
}

fn told(position: Position) -> Vec<f32> {
    let Position { hidden, final_norm, logits } = position;
    logits.into_iter().chain(hidden.into_iter().flatten()).chain(final_norm).collect()
}

#[test]
fn logits_and_hidden_states_are_those_of_the_model() {
    let recorded = std::fs::read_dir(golden::root().join("targets")).expect("targets");
    let mut directories: Vec<_> = recorded.map(|entry| entry.expect("an entry").path()).collect();
    directories.push(trained());
    let mut compared = 0;
    for directory in directories.iter().filter(|path| path.join("model.safetensors").exists()) {
        let context = Context::cpu(Threads::Own(1), None, None).expect("a context");
        let loaded = Model::load(&Arc::new(context), directory, LoadOptions::default());
        let Ok(model) = loaded else { continue };
        let mut target = Target::new(&Arc::new(model), LIMITS).expect("a target");
        let text = tokens(&target, 40);
        let mut plain = Plain::load(directory);
        for (row, (found, &token)) in run(&mut target, &text, None).iter().zip(&text).enumerate() {
            let apart = distance(found, &told(plain.advance(token)));
            assert!(apart <= TOLERANCE, "{}, row {row}: {apart} apart", directory.display());
        }
        compared += 1;
    }
    assert!(compared > 1, "{compared} targets");
}

#[test]
fn a_text_may_be_cut_into_passes_anywhere() {
    let mut target = target(&trained());
    let text = tokens(&target, 40);
    let whole = run(&mut target, &text, None);
    for cuts in [vec![1; 40], vec![3, 36, 1], vec![20, 20]] {
        target.clear();
        let (mut rest, mut rows) = (&text[..], Vec::new());
        for cut in cuts {
            let (pass, others) = rest.split_at(cut);
            rows.extend(run(&mut target, pass, None));
            target.keep(0..cut);
            rest = others;
        }
        assert_eq!(target.len(), 40);
        assert!(rows == whole, "bit for bit");
    }
}

/// Trees of random shape behind a text, of which a random path is kept, again and again.
#[test]
fn rows_of_trees_are_those_of_their_paths_and_what_is_kept_goes_on() {
    let mut target = target(&trained());
    let mut chains = Target::new(&model(&trained()), LIMITS).expect("a target");
    let mut random = Random::new(9);
    let mut text = tokens(&target, 5);
    run(&mut target, &text, None);
    target.keep(0..5);
    while text.len() < 50 {
        let nodes = 1 + random.below(12);
        let tokens: Vec<i32> = (0..nodes).map(|_| random.below(100) as i32).collect();
        let parents: Vec<i32> =
            (0..nodes).map(|node| if node == 0 { -1 } else { random.below(node) as i32 }).collect();
        let rows = run(&mut target, &tokens, Some(&parents));
        let path_of = |node: usize| {
            let above = |&node: &usize| usize::try_from(parents[node]).ok();
            let mut path: Vec<usize> = std::iter::successors(Some(node), above).collect();
            path.reverse();
            path
        };
        for (node, row) in rows.iter().enumerate() {
            let path = path_of(node).into_iter().map(|node| tokens[node]);
            let chain: Vec<i32> = text.iter().copied().chain(path).collect();
            chains.clear();
            let mut last = Vec::new();
            for piece in chain.chunks(LIMITS.rows) {
                last = run(&mut chains, piece, None);
                chains.keep(0..piece.len());
            }
            assert!(last.last() == Some(row), "node {node} behind {} tokens", text.len());
        }
        let path = path_of(random.below(nodes));
        text.extend(path.iter().map(|&node| tokens[node]));
        target.keep(path);
        assert_eq!(target.len(), text.len());
    }
}

/// A pass has more rows than the device runs at a time.
#[test]
fn passes_of_any_length_are_those_of_short_ones() {
    let model = model(&trained());
    let limits = TargetLimits { positions: 320, rows: 300 };
    let mut target = Target::new(&model, limits).expect("a target");
    let text = tokens(&target, 300);
    let mut expected = Vec::new();
    for piece in text.chunks(40) {
        expected.extend(run(&mut target, piece, None));
        target.keep(0..piece.len());
    }
    target.clear();
    assert!(run(&mut target, &text, None) == expected, "a chain");
    let columns = target.model().vocabulary();
    for logits_from in [100, 200, 299] {
        let pass = Pass { tokens: &text, parents: None, features: &[], logits_from };
        target.run(&pass).expect("a pass");
        let rows = expected[logits_from..].iter().flat_map(|row| &row[..columns]);
        assert!(target.logits().elements().iter().eq(rows), "from row {logits_from}");
    }
    // Two branches that share nothing but the root: each is a chain.
    let parents: Vec<i32> =
        (0..299).map(|row| if row < 3 { row.min(1) - 1 } else { row - 2 }).collect();
    let rows = run(&mut target, &text[..299], Some(&parents));
    for branch in [1, 2] {
        let path: Vec<usize> = std::iter::once(0).chain((branch..299).step_by(2)).collect();
        let chain: Vec<i32> = path.iter().map(|&row| text[row]).collect();
        target.clear();
        let expected = run(&mut target, &chain, None);
        assert!(path.iter().zip(&expected).all(|(&row, expected)| rows[row] == *expected));
    }
}

#[test]
fn only_what_is_wanted_is_told() {
    let mut target = target(&trained());
    let text = tokens(&target, 40);
    let whole = run(&mut target, &text, None);
    let pass = Pass { tokens: &text, parents: None, features: &[], logits_from: 39 };
    target.run(&pass).expect("a pass");
    let columns = target.model().vocabulary();
    assert_eq!(target.logits().elements(), &whole[39][..columns]);
    assert!(target.features().is_empty());
}

#[test]
fn wrong_passes_are_refused_and_change_nothing() {
    let mut target = target(&trained());
    let text = tokens(&target, 40);
    run(&mut target, &text, None);
    target.keep(0..40);
    let features = all_features(&target);
    let expected = run(&mut target, &text[..3], None);
    let vocabulary = target.model().vocabulary() as i32;
    let narrow = [Feature { width: 3, ..features[0] }];
    let deep = [Feature { layer: 99, ..features[0] }];
    let good = Pass { tokens: &text[..3], parents: None, features: &features, logits_from: 0 };
    let far = [0, vocabulary];
    for (pass, expected) in [
        (Pass { tokens: &[], ..good }, "1 to 40 rows, found 0"),
        (Pass { tokens: &[0; 41], ..good }, "1 to 40 rows, found 41"),
        (Pass { logits_from: 3, ..good }, "rows"),
        (Pass { tokens: &far, ..good }, "expected tokens below"),
        (Pass { features: &narrow, ..good }, "3 wide"),
        (Pass { features: &deep, ..good }, "layer 99"),
        (Pass { parents: Some(&[-1, 0]), ..good }, "parents"),
        (Pass { parents: Some(&[-1, 2, 0]), ..good }, "parents"),
        (Pass { parents: Some(&[-1, -1, 0]), ..good }, "parents"),
    ] {
        let found = target.run(&pass).expect_err(expected).to_string();
        assert!(found.contains(expected), "{found}");
    }
    assert!(run(&mut target, &text[..3], None) == expected);
    run(&mut target, &text, None);
    target.keep(0..40);
    let found = target.run(&good).expect_err("no room").to_string();
    assert!(found.contains("at most 64 positions"), "{found}");
}

#[test]
fn speculators_are_no_targets() {
    let model = model(&project("examples/models/tiny-python/target"));
    assert!(Target::new(&model, TargetLimits { rows: 0, ..LIMITS }).is_err());
    let context = Arc::new(Context::cpu(Threads::Own(1), None, None).expect("a context"));
    let directory = project("examples/models/tiny-python/eagle3");
    let verifier_directory = Some(trained());
    let options = LoadOptions { verifier_directory, ..LoadOptions::default() };
    let speculator = Model::load(&context, &directory, options).expect("a speculator");
    let refused: Result<Target> = Target::new(&Arc::new(speculator), LIMITS);
    let text = refused.expect_err("no language model").to_string();
    assert!(text.contains("expected a language model") && text.contains("eagle3"), "{text}");
}
