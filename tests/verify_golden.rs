//! Verification against recorded decisions and exact laws: all cases under the folder that
//! `SPECULATORS_GOLDEN` names (default: the project's own copy), found from its files.
//!
//! To measure a law takes thousands of calls. A simulated device compares the recorded decisions and
//! measures the filters of one case; its other laws are those of the CPU, whose decisions it makes bit
//! for bit: `tests/cuda_verify.rs`.

mod device;
mod verification;

use safetensors::SafeTensors;
use serde_json::Value;
use speculators::backend::Backend;
use speculators::backend::verify::Leniency;
use speculators::sampling::Parameters;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use verification::{
    Call, DEFAULT, DISTINCT, FOLLOW, Ids, PLAIN, REJECTION, Request, TYPICAL, backend_with, decide,
    follow_law, round_law, row_law, tree_law,
};

/// Recorded probabilities are in single precision.
const CLOSE: f64 = 1e-5;

fn root() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("SPECULATORS_GOLDEN").map_or_else(own, PathBuf::from).join("verify")
}

fn backend() -> &'static dyn Backend {
    backend_with(1)
}

/// The JSON files of the folder.
fn files() -> Vec<(String, Value)> {
    let entries = std::fs::read_dir(root()).expect("the folder of the reference data");
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<(String, Value)> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (stem, serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap())
        })
        .collect();
    files.sort_by(|left, right| left.0.cmp(&right.0));
    files
}

fn cases(file: &Value) -> &Vec<Value> {
    file["cases"].as_array().expect("the cases of a file")
}

/// Which kind of case this is.
fn kind(case: &Value) -> Kind {
    let text = |name: &str| case[name].as_str().unwrap_or_default();
    match (text("structure"), text("rule"), text("kind")) {
        ("chain", rule, _) if rule.starts_with("standard rejection") => Kind::ChainLaw,
        ("chain", rule, _) if rule.starts_with("typical acceptance") => Kind::Typical,
        ("one tree node, k ordered candidates", ..) => Kind::Siblings,
        ("tree", "onehot", _) => Kind::TreeLaw,
        ("", "", "greedy" | "draft_probs" | "no_draft_probs" | "reduced_vocab") => Kind::Chain,
        ("", "", "") if case.get("temperature").is_some() => Kind::Filters,
        ("", "", "") if case.get("parents").is_some() => Kind::GreedyTree,
        other => panic!("a case of no known kind: {other:?}"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Chain,
    Filters,
    ChainLaw,
    Siblings,
    TreeLaw,
    GreedyTree,
    Typical,
}

/// The tensors beside a JSON file.
struct Tensors(Vec<u8>);

impl Tensors {
    fn beside(stem: &str) -> Self {
        Self(std::fs::read(root().join(stem).with_extension("safetensors")).unwrap())
    }

    fn rows<T>(&self, name: &str, parse: impl Fn(&[u8]) -> T, size: usize) -> Vec<Vec<T>> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|_| panic!("tensor {name}"));
        let width = *tensor.shape().last().unwrap();
        let elements: Vec<T> = tensor.data().chunks(size).map(parse).collect();
        let mut elements = elements.into_iter();
        let rows = tensor.shape().iter().product::<usize>() / width.max(1);
        (0..rows).map(|_| elements.by_ref().take(width).collect()).collect()
    }

    fn floats(&self, name: &str) -> Vec<Vec<f32>> {
        self.rows(name, |bytes| f32::from_le_bytes(bytes.try_into().unwrap()), 4)
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        self.rows(name, |bytes| f64::from_le_bytes(bytes.try_into().unwrap()), 8).concat()
    }

    fn tokens(&self, name: &str) -> Vec<i32> {
        self.rows(name, |bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as i32, 8).concat()
    }
}

fn integers(value: &Value) -> Vec<i32> {
    let values = value.as_array().expect("an array").iter();
    values.map(|value| value.as_i64().expect("an integer") as i32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().expect("an array").iter();
    values.map(|value| value.as_f64().expect("a number")).collect()
}

#[test]
fn every_recorded_case_comes_out() {
    let mut done: BTreeMap<Kind, usize> = BTreeMap::new();
    let mut skipped: BTreeMap<Kind, usize> = BTreeMap::new();
    for (stem, file) in files() {
        for case in cases(&file) {
            let kind = kind(case);
            let is_left_to_the_cpu = device::is_simulated()
                && match kind {
                    Kind::ChainLaw | Kind::Siblings | Kind::TreeLaw => true,
                    Kind::Filters => done.contains_key(&kind),
                    Kind::GreedyTree => done.get(&kind).is_some_and(|&done| done >= 20),
                    Kind::Chain | Kind::Typical => false,
                };
            if is_left_to_the_cpu {
                *skipped.entry(kind).or_default() += 1;
                continue;
            }
            match kind {
                Kind::Chain => check_chain(case, &Tensors::beside(&stem)),
                Kind::Filters => check_filters(case, &Tensors::beside(&stem)),
                Kind::ChainLaw => check_law(case),
                Kind::Siblings => check_siblings(case),
                Kind::TreeLaw => check_tree_law(case),
                Kind::GreedyTree => check_greedy_tree(case, &Tensors::beside(&stem)),
                Kind::Typical => check_typical(case),
            }
            *done.entry(kind).or_default() += 1;
        }
    }
    println!("done {done:?}, left to the CPU {skipped:?}");
    assert_eq!(done.len() + if device::is_simulated() { 3 } else { 0 }, 7, "found {done:?}");
}

/// Recorded decisions of greedy trees.
fn check_greedy_tree(case: &Value, tensors: &Tensors) {
    let id = case["id"].as_str().unwrap();
    let rows = tensors.floats(&format!("{id}.logits"));
    let tokens = integers(&case["tokens"]);
    let mut request = Request::new(rows, tokens[1..].to_vec(), Parameters::GREEDY);
    request.parents = integers(&case["parents"]);
    let decision = decide(backend(), &Call::by(DEFAULT), &[request]).remove(0);
    assert_eq!(decision.tokens(), integers(&case["emitted"]), "case {id}");
    if case["has_duplicate_siblings"] == false {
        let path = &decision.path[1..decision.emitted];
        assert_eq!(path, integers(&case["accepted_nodes"]), "case {id}");
    }
}

/// The logits of recorded probabilities.
fn logits_of(probabilities: &Value) -> Vec<f32> {
    numbers(probabilities).into_iter().map(|p| p.ln() as f32).collect()
}

/// The exact law of one node's siblings, for given candidates and over all of them.
fn check_siblings(case: &Value) {
    let id = case["id"].as_str().unwrap();
    let (target, drafter) = (logits_of(&case["p"]), logits_of(&case["q"]));
    let rule = match case["rule"].as_str().unwrap() {
        "with_replacement" => REJECTION,
        "without_replacement" => DISTINCT,
        "onehot" => FOLLOW,
        other => panic!("rule of {id}: {other}"),
    };
    for given in case["given_candidates"].as_array().unwrap() {
        let candidates = integers(&given["candidates"]);
        let rows = vec![target.clone(); candidates.len() + 1];
        let mut request = Request::new(rows, candidates.clone(), PLAIN);
        request.parents = [vec![-1], vec![0; candidates.len()]].concat();
        if rule != FOLLOW {
            request.draft_logits = vec![drafter.clone(); candidates.len()];
        }
        let mut first = vec![0.0; target.len()];
        let mut none = 0.0;
        let outcomes = match rule {
            FOLLOW => follow_law(backend(), &request),
            rule => tree_law(backend(), &Call::by(rule), &request),
        };
        for (tokens, probability) in outcomes {
            first[tokens[0] as usize] += probability;
            none += if tokens.len() == 1 { probability } else { 0.0 };
        }
        let expected = numbers(&given["token_distribution_given_candidates"]);
        for (token, (found, expected)) in first.iter().zip(&expected).enumerate() {
            let context = format!("token {token} after {candidates:?} of {id}");
            assert!((found - expected).abs() < CLOSE, "{context}: {found}, {expected}");
        }
        let expected = given["prob_none"].as_f64().unwrap();
        assert!((none - expected).abs() < CLOSE, "{candidates:?} of {id}: {none}, {expected}");
    }
}

/// The exact law of what follows the target's own draws down a tree.
fn check_tree_law(case: &Value) {
    let id = case["id"].as_str().unwrap();
    let rows = case["p_after_node"].as_array().unwrap().iter().map(logits_of).collect();
    let mut request = Request::new(rows, integers(&case["tokens"])[1..].to_vec(), PLAIN);
    request.parents = integers(&case["parents"]);
    let mut found: BTreeMap<String, f64> = BTreeMap::new();
    for (tokens, probability) in follow_law(backend(), &request) {
        let key: Vec<String> = tokens.iter().map(i32::to_string).collect();
        *found.entry(key.join(",")).or_default() += probability;
    }
    let expected = case["expected_output_sequences"].as_object().unwrap();
    assert_eq!(found.len(), expected.len(), "outcomes of {id}");
    for (tokens, probability) in expected {
        let (found, expected) = (found[tokens], probability.as_f64().unwrap());
        assert!((found - expected).abs() < CLOSE, "{tokens} of {id}: {found}, {expected}");
    }
}

/// Recorded decisions by typical acceptance.
fn check_typical(case: &Value) {
    let id = case["id"].as_str().unwrap();
    let mut rows: Vec<_> = case["p"].as_array().unwrap().iter().map(logits_of).collect();
    let drafts = integers(&case["draft"]);
    rows.resize(drafts.len() + 1, vec![0.0; rows[0].len()]);
    let alpha = case["delta"].as_f64().unwrap();
    let leniency = Leniency {
        epsilon: case["eps"].as_f64().unwrap() as f32,
        log2_alpha: (alpha.log2() * 2.0_f64.powi(32)) as i64,
        ..Leniency::default()
    };
    let call = Call { leniency, ..Call::by(TYPICAL) };
    let request = Request::new(rows, drafts, PLAIN);
    let decision = decide(backend(), &call, &[request]).remove(0);
    let expected = case["accepted_length"].as_u64().unwrap() as usize;
    assert_eq!(decision.accepted, expected, "case {id}");
}

/// Recorded decisions of a batch of chains.
fn check_chain(case: &Value, tensors: &Tensors) {
    let id = case["id"].as_str().unwrap();
    let name = |tensor: &str| format!("{id}.{tensor}");
    let counts = integers(&case["num_draft_tokens"]);
    let vocabulary = case["vocab"].as_u64().unwrap() as usize;
    let kind = case["kind"].as_str().unwrap();
    let is_greedy: Vec<bool> = case["is_greedy"]
        .as_array()
        .unwrap()
        .iter()
        .map(|greedy| greedy.as_bool().unwrap())
        .collect();
    let drafts = tensors.tokens(&name("draft_tokens"));
    let bonus = tensors.tokens(&name("bonus_tokens"));
    let target = tensors.floats(&name("target_logits"));
    let are_random = is_greedy.iter().any(|greedy| !greedy);
    let uniforms = if are_random { tensors.doubles(&name("uniform")) } else { Vec::new() };
    let has_draft = are_random && matches!(kind, "draft_probs" | "reduced_vocab");
    let draft = if has_draft { tensors.floats(&name("draft_probs")) } else { Vec::new() };
    let mut first = 0;
    let mut requests = Vec::new();
    for (index, &count) in counts.iter().enumerate() {
        let range = first..first + count as usize;
        first = range.end;
        let mut rows = target[range.clone()].to_vec();
        // The bonus token is an input of the record: a row that gives nothing else.
        rows.push(
            (0..vocabulary as i32)
                .map(|token| if token == bonus[index] { 0.0 } else { f32::NEG_INFINITY })
                .collect(),
        );
        let parameters = if is_greedy[index] { Parameters::GREEDY } else { PLAIN };
        let mut request = Request::new(rows, drafts[range.clone()].to_vec(), parameters);
        if has_draft {
            request.draft_logits = draft[range.clone()]
                .iter()
                .map(|row| row.iter().map(|q| q.ln()).collect())
                .collect();
            request.draft_parameters = PLAIN;
        }
        if are_random {
            request.uniforms = range.flat_map(|row| [uniforms[row], 0.5]).collect();
            request.uniforms.extend([0.5, 0.5]);
        }
        requests.push(request);
    }
    let ids = if kind == "reduced_vocab" { reduce(&mut requests) } else { Ids::Identity };
    let call = Call { ids, ..Call::by(if are_random { REJECTION } else { DEFAULT }) };
    let decisions = decide(backend(), &call, &requests);
    for (index, output) in case["output"].as_array().unwrap().iter().enumerate() {
        let expected: Vec<i32> =
            integers(output).into_iter().take_while(|&token| token >= 0).collect();
        let context = format!("case {id}, request {index}");
        let request = &requests[index];
        let accepted = expected.len() - 1;
        assert_eq!(decisions[index].accepted, accepted, "accepted in {context}");
        assert_eq!(decisions[index].tokens()[..accepted], expected[..accepted], "{context}");
        if is_greedy[index] || accepted == request.drafts.len() {
            assert_eq!(decisions[index].tokens(), expected, "{context}");
        } else {
            let found = decisions[index].tokens()[accepted];
            check_replacement(&call, request, accepted, [found, expected[accepted]], &context);
        }
    }
}

/// Leaves out the columns in which no row has any probability.
fn reduce(requests: &mut [Request]) -> Ids {
    let rows = || requests.iter().flat_map(|request| &request.draft_logits);
    let width = rows().next().map_or(0, Vec::len);
    let is_used = |column: &usize| rows().any(|row| row[*column] > f32::NEG_INFINITY);
    let used: Vec<usize> = (0..width).filter(is_used).collect();
    for row in requests.iter_mut().flat_map(|request| &mut request.draft_logits) {
        *row = used.iter().map(|&column| row[column]).collect();
    }
    Ids::Shared(used.iter().map(|&column| column as i32).collect())
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|&logit| (f64::from(logit) - f64::from(largest)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// The recorded replacement came from other noise: it must be possible here, as the one that is found
/// must be there, and the law of the replacement must be the one that it was drawn from.
fn check_replacement(
    call: &Call,
    request: &Request,
    node: usize,
    [found, recorded]: [i32; 2],
    context: &str,
) {
    let p = softmax(&request.logits[node]);
    let mut q = vec![0.0; p.len()];
    match (request.draft_logits.get(node), &call.ids) {
        (None, _) => q[request.drafts[node] as usize] = 1.0,
        (Some(row), Ids::Shared(ids)) => {
            for (&id, probability) in ids.iter().zip(softmax(row)) {
                q[id as usize] = probability;
            }
        }
        (Some(row), _) => q = softmax(row),
    }
    let above: Vec<f64> = p.iter().zip(&q).map(|(p, q)| (p - q).max(0.0)).collect();
    let sum: f64 = above.iter().sum();
    assert!(above[found as usize] > 0.0, "{found} in {context}");
    if device::is_simulated() {
        return;
    }
    // The one node by itself.
    let mut alone = request.clone();
    alone.logits = vec![request.logits[node].clone(); 2];
    alone.drafts = vec![request.drafts[node]];
    alone.draft_logits = request.draft_logits.get(node).cloned().into_iter().collect();
    let mut law = vec![0.0; p.len()];
    let mut rejected = 0.0;
    for (tokens, probability) in round_law(backend(), call, &alone) {
        if tokens.len() == 1 {
            law[tokens[0] as usize] += probability;
            rejected += probability;
        }
    }
    assert!(law[recorded as usize] > 0.0, "{recorded} in {context}");
    for (token, (found, above)) in law.iter().zip(&above).enumerate() {
        let error = (found / rejected - above / sum).abs();
        assert!(error < CLOSE / sum.min(1.0), "token {token} in {context}: off by {error:e}");
    }
}

/// Recorded probabilities after temperature, top-k and top-p.
fn check_filters(case: &Value, tensors: &Tensors) {
    let id = case["id"].as_str().unwrap();
    let logits = tensors.floats(&format!("{id}.logits"));
    let expected = tensors.floats(&format!("{id}.probs"));
    let mut row = 0;
    for (request, count) in integers(&case["num_draft_tokens"]).into_iter().enumerate() {
        let of = |name: &str| case[name].as_array().map(|values| values[request].as_f64().unwrap());
        let temperature = of("temperature").unwrap() as f32;
        let parameters = Parameters {
            temperature: if temperature == 0.0 { 1.0 } else { temperature },
            top_k: of("top_k").unwrap_or(0.0) as i32,
            top_p: of("top_p").unwrap_or(1.0) as f32,
            min_p: 0.0,
        };
        for row in row..row + count as usize {
            let found = row_law(backend(), &logits[row], parameters);
            check_filtered(&logits[row], &found, &expected[row], &format!("{id}, row {row}"));
        }
        row += count as usize;
    }
    assert_eq!(row, logits.len(), "rows of {id}");
}

/// Equals of the last token that top-p keeps are kept here, and dropped by chance there: beside
/// those, the same tokens with the same shares.
fn check_filtered(logits: &[f32], found: &[f64], expected: &[f32], context: &str) {
    let kept = |token: &usize| expected[*token] > 0.0;
    let last = (0..logits.len()).filter(kept).map(|token| logits[token]).fold(f32::MAX, f32::min);
    let is_equal_of_last = |token: &usize| !kept(token) && logits[*token] == last;
    let equals: f64 = (0..logits.len()).filter(is_equal_of_last).map(|token| found[token]).sum();
    for token in 0..logits.len() {
        if is_equal_of_last(&token) {
            continue;
        }
        let share = f64::from(expected[token]) * (1.0 - equals);
        assert!((found[token] - share).abs() < CLOSE, "token {token} of {context}");
        assert_eq!(found[token] > 0.0, kept(&token), "token {token} of {context}");
    }
}

/// The exact law of a chain's output, over the draws of the drafts and the tests.
fn check_law(case: &Value) {
    let id = case["id"].as_str().unwrap();
    let drafts = case["K"].as_u64().unwrap() as usize;
    let logits = |table: &str, prefix: &[i32]| -> Vec<f32> {
        let key: Vec<String> = prefix.iter().map(i32::to_string).collect();
        numbers(&case[table][key.join(",")]).into_iter().map(|p| p.ln() as f32).collect()
    };
    let backend = backend();
    let is_one_hot = match case["draft"].as_str() {
        Some("one-hot argmax") => true,
        Some("sampled from q") => false,
        other => panic!("draft of {id}: {other:?}"),
    };
    // All chains of drafts with their probabilities.
    let mut chains = vec![(Vec::new(), 1.0)];
    for _ in 0..drafts {
        chains = chains
            .into_iter()
            .flat_map(|(chain, probability)| {
                let mut q = row_law(backend, &logits("q", &chain), PLAIN);
                if is_one_hot {
                    let largest = (0..q.len()).max_by(|&l, &r| q[l].total_cmp(&q[r])).unwrap();
                    q = (0..q.len()).map(|token| f64::from(token == largest)).collect();
                }
                let extend = move |(token, q): (usize, f64)| {
                    (q > 0.0).then(|| ([&chain[..], &[token as i32]].concat(), probability * q))
                };
                q.into_iter().enumerate().filter_map(extend).collect::<Vec<_>>()
            })
            .collect();
    }
    let mut found: BTreeMap<String, f64> = BTreeMap::new();
    for (chain, drawn) in chains {
        let prefixes = || (0..=drafts).map(|len| &chain[..len]);
        let rows = prefixes().map(|prefix| logits("p", prefix)).collect();
        let mut request = Request::new(rows, chain.clone(), PLAIN);
        if !is_one_hot {
            request.draft_logits =
                prefixes().take(drafts).map(|prefix| logits("q", prefix)).collect();
        }
        for (tokens, probability) in round_law(backend, &Call::by(REJECTION), &request) {
            let key: Vec<String> = tokens.iter().map(i32::to_string).collect();
            *found.entry(key.join(",")).or_default() += drawn * probability;
        }
    }
    let expected = case["expected_output_sequences"].as_object().expect("the law");
    let mut mass = 0.0;
    for (tokens, probability) in expected {
        let probability = probability.as_f64().unwrap();
        let found = found.get(tokens).copied().unwrap_or(0.0);
        assert!((found - probability).abs() < CLOSE, "{tokens} of {id}: {found}, {probability}");
        mass += found;
    }
    assert!(mass > 1.0 - CLOSE, "{id}: outcomes beside the recorded ones");
    let mean: f64 =
        found.iter().map(|(tokens, p)| p * (tokens.matches(',').count() + 1) as f64).sum();
    assert!((mean - case["mean_emitted"].as_f64().unwrap()).abs() < CLOSE, "length of {id}");
}
