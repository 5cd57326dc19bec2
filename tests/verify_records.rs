//! What decision records say, and that nothing but a sequence's own rows and numbers matters for
//! its record.

mod device;
mod verification;

use device::amount;
use device::backend::open_cuda;
use speculators::backend::cpu::{CpuBackend, Isa, Threads};
use speculators::backend::verify::record::{INVALID, LIMIT, NO_CANDIDATE, STOPPED};
use speculators::backend::{Backend, Stream};
use speculators::sampling::Parameters;
use speculators::tensor::Dtype;
use verification::{
    Call, DEFAULT, Decision, FOLLOW, Ids, PLAIN, REJECTION, Request, TYPICAL, almost_one,
    backend_with, decide, decide_counted,
};

fn backend() -> &'static dyn Backend {
    backend_with(2)
}

/// A row whose argmax is `token`.
fn row(token: usize) -> Vec<f32> {
    (0..6).map(|place| if place == token { 5.0 } else { 0.0 }).collect()
}

/// A greedy sequence whose text is 1, 2, 3, 4, 5, with three right drafts and one wrong one.
fn greedy() -> Request {
    let rows = (1..6).map(row).collect();
    let mut request = Request::new(rows, vec![1, 2, 3, 0], Parameters::GREEDY);
    request.position = 10;
    request
}

fn decide_one(call: &Call, request: Request) -> Decision {
    decide(backend(), call, &[request]).remove(0)
}

#[test]
fn a_record_holds_the_path_and_is_padded() {
    let call = Call { padding: 9, ..Call::by(DEFAULT) };
    let decision = decide_one(&call, greedy());
    let expected = Decision {
        accepted: 3,
        emitted: 4,
        next_token: 4,
        next_position: 14,
        flags: 0,
        dropped: 0,
        places: vec![1, 2, 3, 4, 9],
        path: vec![0, 1, 2, 3, -1],
    };
    assert_eq!(decision, expected);
}

#[test]
fn emission_ends_at_the_limit() {
    for (limit, accepted, emitted, flags) in
        [(1, 1, 1, LIMIT), (2, 2, 2, LIMIT), (3, 3, 3, LIMIT), (4, 3, 4, LIMIT), (5, 3, 4, 0)]
    {
        let decision = decide_one(&Call::by(DEFAULT), Request { limit, ..greedy() });
        assert_eq!((decision.accepted, decision.emitted), (accepted, emitted), "limit {limit}");
        assert_eq!(decision.flags, flags, "limit {limit}");
        assert_eq!(decision.next_token, emitted as i32);
        assert_eq!(decision.next_position, 10 + emitted as i32);
        let path: Vec<i32> =
            (0..5).map(|node| if node < emitted { node as i32 } else { -1 }).collect();
        assert_eq!(decision.path, path);
    }
    for limit in [0, -3] {
        let decision = decide_one(&Call::by(DEFAULT), Request { limit, ..greedy() });
        assert_eq!((decision.emitted, decision.flags), (0, LIMIT));
        assert_eq!((decision.next_token, decision.next_position), (77, 10));
    }
}

#[test]
fn emission_ends_after_a_stop_token_whether_it_was_a_draft_or_not() {
    for (stop, accepted, emitted, flags) in
        [(2, 2, 2, STOPPED), (4, 3, 4, STOPPED), (1, 1, 1, STOPPED), (0, 3, 4, 0)]
    {
        let call = Call { stop_tokens: vec![stop, 99], ..Call::by(DEFAULT) };
        let decision = decide_one(&call, greedy());
        assert_eq!((decision.accepted, decision.emitted), (accepted, emitted), "stop {stop}");
        assert_eq!(decision.flags, flags, "stop {stop}");
    }
    let call = Call { stop_tokens: vec![2], ..Call::by(DEFAULT) };
    let decision = decide_one(&call, Request { limit: 2, ..greedy() });
    assert_eq!((decision.emitted, decision.flags), (2, STOPPED | LIMIT));
}

#[test]
fn what_is_out_of_range_makes_its_own_sequence_invalid_and_no_other() {
    let sampled = Request {
        parameters: PLAIN,
        uniforms: [0.5; 10].to_vec(),
        draft_logits: vec![row(0); 4],
        ..greedy()
    };
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = sampled.clone();
        change(&mut request);
        request
    };
    let invalid = [
        with(&|request| request.row_begin = Some(-1)),
        with(&|request| request.row_begin = Some(1000)),
        with(&|request| request.row_begin = Some(i32::MAX)),
        with(&|request| request.num_drafts = Some(5)),
        with(&|request| request.num_drafts = Some(i32::MAX)),
        with(&|request| request.drafts[3] = 6),
        with(&|request| request.drafts[0] = -2),
        with(&|request| request.drafts[1] = i32::MAX),
        with(&|request| request.position = -1),
        with(&|request| request.position = i32::MAX - 4),
        with(&|request| request.parameters.temperature = f32::NAN),
        with(&|request| request.parameters.top_p = f32::NAN),
        with(&|request| request.draft_parameters.min_p = f32::NAN),
        with(&|request| request.uniforms[9] = 1.0),
        with(&|request| request.uniforms[2] = -0.1),
        with(&|request| request.uniforms[3] = f64::NAN),
    ];
    let backend = backend();
    let expected = decide(backend, &Call::by(REJECTION), std::slice::from_ref(&sampled)).remove(0);
    assert!(expected.emitted > 0);
    for (index, request) in invalid.iter().enumerate() {
        let batch = [sampled.clone(), request.clone(), sampled.clone()];
        let (decisions, counters) = decide_counted(backend, &Call::by(REJECTION), &batch);
        assert_eq!(decisions[0], expected, "before case {index}");
        assert_eq!(decisions[2], expected, "after case {index}");
        assert_eq!(
            decisions[1],
            Decision {
                accepted: 0,
                emitted: 0,
                next_token: 77,
                next_position: request.position,
                flags: INVALID,
                dropped: 0,
                places: vec![-1; 5],
                path: vec![-1; 5],
            },
            "case {index}"
        );
        assert_eq!(counters[0], 2);
    }
}

#[test]
fn draft_rows_that_are_not_there_make_a_sequence_invalid() {
    let mut request = greedy();
    request.draft_logits = vec![row(0); 3];
    assert_eq!(decide_one(&Call::by(REJECTION), request).flags, INVALID);
}

#[test]
fn a_sequence_that_takes_no_part_leaves_its_token_and_counts_nothing() {
    let absent = Request { num_drafts: Some(-1), row_begin: Some(-9), ..greedy() };
    let (decisions, counters) = decide_counted(backend(), &Call::by(DEFAULT), &[absent]);
    assert_eq!((decisions[0].emitted, decisions[0].flags), (0, 0));
    assert_eq!((decisions[0].next_token, decisions[0].next_position), (77, 10));
    assert_eq!(counters, [0; 7]);
}

#[test]
fn counters_add_up_over_sequences_with_different_numbers_of_drafts() {
    let none = Request { drafts: Vec::new(), ..greedy() };
    let two = Request { drafts: vec![1, 5], ..greedy() };
    let (decisions, counters) =
        decide_counted(backend(), &Call::by(DEFAULT), &[none, greedy(), two]);
    assert_eq!(decisions[0].tokens(), [1]);
    assert_eq!(decisions[1].tokens(), [1, 2, 3, 4]);
    assert_eq!(decisions[2].tokens(), [1, 2]);
    // Rounds, drafts, emitted tokens, acceptances of the first to the fourth draft.
    assert_eq!(counters, [3, 6, 7, 2, 1, 1, 0]);
}

#[test]
fn nothing_proposed_and_struck_out_are_told_apart() {
    // Here q is all on the target's likeliest token: nothing is proposed, and it is drawn.
    let mut request = Request::new(vec![row(2); 2], Vec::new(), PLAIN);
    request.uniforms = vec![0.0, 0.5];
    assert_eq!(decide_one(&Call::by(REJECTION), request.clone()).tokens(), [2]);
    // Struck out after it had been drawn: what replaces it is anything but that.
    request.drafts = vec![-1];
    request.draft_logits = vec![row(2).iter().map(|logit| logit * 9.0).collect()];
    request.uniforms = vec![0.0, 0.5, 0.0, 0.0];
    let replaced = decide_one(&Call::by(REJECTION), request.clone());
    assert_eq!(replaced.accepted, 0);
    assert_ne!(replaced.tokens(), [2]);
    // Without its distribution, and when following, the target's own law remains.
    assert_eq!(decide_one(&Call::by(FOLLOW), request.clone()).tokens(), [2]);
    request.draft_logits.clear();
    assert_eq!(decide_one(&Call::by(REJECTION), request.clone()).tokens(), [2]);
    request.parameters = Parameters::GREEDY;
    assert_eq!(decide_one(&Call::by(REJECTION), request).tokens(), [2]);
}

#[test]
fn rows_without_a_candidate_give_their_lowest_id_and_say_so() {
    for hopeless in [vec![f32::NAN; 6], vec![f32::NEG_INFINITY; 6]] {
        for (rule, parameters) in
            [(DEFAULT, Parameters::GREEDY), (FOLLOW, PLAIN), (REJECTION, PLAIN)]
        {
            let request = Request::new(vec![hopeless.clone(), row(3)], vec![4], parameters);
            let decision = decide_one(&Call::by(rule), request.clone());
            assert_eq!(decision.tokens(), [0]);
            assert_eq!(decision.flags, NO_CANDIDATE);
            let right = Request { drafts: vec![0], ..request };
            let decision = decide_one(&Call::by(rule), right);
            assert_eq!((decision.accepted, decision.flags), (1, NO_CANDIDATE));
        }
    }
    // A drafter's row without one: nothing is known of q, and the target's law remains.
    let mut request = Request::new(vec![row(3); 2], vec![4], PLAIN);
    request.draft_logits = vec![vec![f32::NAN; 6]];
    request.uniforms = vec![0.0, 0.5, 0.0, 0.0];
    let decision = decide_one(&Call::by(REJECTION), request);
    assert_eq!((decision.tokens(), decision.flags), (&[3][..], 0));
}

#[test]
fn rows_behind_the_decision_are_not_looked_at() {
    let mut request = greedy();
    request.drafts[1] = 5;
    for row in &mut request.logits[2..] {
        row.fill(f32::NAN);
    }
    let decision = decide_one(&Call::by(DEFAULT), request);
    assert_eq!((decision.tokens(), decision.flags), (&[1, 2][..], 0));
}

/// So many sequences of all kinds over `vocabulary` tokens, with `candidates` draft candidates, in
/// values that all element types hold.
fn mixed(sequences: usize, vocabulary: usize, candidates: usize, ids: &Ids) -> Vec<Request> {
    let mut state = 5_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut rows = |count: usize, len: usize| -> Vec<Vec<f32>> {
        let mut logit = || (next() % 256) as f32 / 16.0 - 8.0;
        (0..count).map(|_| (0..len).map(|_| logit()).collect()).collect()
    };
    let kinds = [
        PLAIN,
        Parameters { top_k: 40, ..PLAIN },
        Parameters { temperature: 0.7, top_p: 0.9, ..PLAIN },
        Parameters { top_k: 900, top_p: 0.8, min_p: 0.01, temperature: 1.3 },
        Parameters::GREEDY,
    ];
    let mut requests = Vec::new();
    for (index, &parameters) in kinds.iter().cycle().take(sequences).enumerate() {
        let drafts = index % 4;
        let logits = rows(drafts + 1, vocabulary);
        let place = |draft| (index * 31 + draft * 7) % candidates;
        let token = |draft| match ids {
            Ids::Shared(ids) => ids[place(draft)],
            _ => place(draft) as i32,
        };
        let tokens = (0..drafts).map(token);
        let mut request = Request::new(logits, tokens.collect(), parameters);
        request.draft_logits = rows(drafts, candidates);
        // Drafts that the drafter and the target think likely, so that some are accepted.
        for draft in 0..drafts {
            let likely = if (index + draft) % 2 == 0 { 16.0 } else { 12.0 };
            request.logits[draft][request.drafts[draft] as usize] = likely;
            request.draft_logits[draft][place(draft)] = 14.0;
        }
        request.draft_parameters = kinds[(index + index / 5) % kinds.len()];
        (request.seed, request.position) = (index as u64 * 77, index as i32 * 1000);
        requests.push(request);
    }
    requests
}

/// The device in all ways in which it may do its work.
fn all_backends() -> Vec<Box<dyn Backend>> {
    let mut all: Vec<Box<dyn Backend>> = Vec::new();
    if device::is_cuda() {
        let teams = [(5, true), (2, false), (1, true), (32, true)];
        for (blocks, keep_copies) in &teams[..amount(teams.len(), 2)] {
            all.push(Box::new(open_cuda().with_verify_teams(*blocks, *keep_copies)));
        }
        return all;
    }
    for isa in Isa::available() {
        for threads in [1, 3, 20] {
            let backend = CpuBackend::new(Threads::Own(threads)).unwrap();
            all.push(Box::new(backend.with_instructions(isa)));
        }
    }
    all
}

#[test]
fn instructions_threads_neighbours_and_element_types_change_nothing() {
    let long = amount(9000, 2300);
    for (vocabulary, candidates, ids) in [
        (17, 17, Ids::Identity),
        (long, long, Ids::Identity),
        (long, 700, Ids::Shared((0..700).map(|place| place * 577 % long as i32).collect())),
    ] {
        let requests = mixed(amount(15, 5), vocabulary, candidates, &ids);
        for rule in [FOLLOW, REJECTION] {
            let call = Call { ids: ids.clone(), ..Call::by(rule) };
            let expected = decide(backend(), &call, &requests);
            assert!(expected.iter().any(|decision| decision.accepted > 0));
            assert!(expected.iter().all(|decision| decision.emitted > 0));
            for backend in all_backends() {
                for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                    let call = Call { dtype, ..call.clone() };
                    assert_eq!(decide(&*backend, &call, &requests), expected);
                }
            }
            for (request, expected) in requests.iter().zip(&expected) {
                let alone = decide_one(&call, request.clone());
                assert_eq!(alone.tokens(), expected.tokens());
            }
        }
    }
}

#[test]
fn an_empty_batch_is_decided() {
    use speculators::backend::phases::Column;
    use speculators::backend::verify::VerifyBatch;
    use speculators::tensor::{Matrix, Span};
    let none = Column { span: Span::new(0, 0), stride: 1 };
    let logits = Matrix { address: 0, dtype: Dtype::F32, rows: 0, columns: 8, row_stride: 8 };
    let batch = VerifyBatch::new((0, 3), logits, none, none, none);
    let backend = backend();
    let bytes = speculators::verify::workspace_bytes(backend, &batch, DEFAULT).unwrap();
    assert_eq!(bytes, 0);
    let verify =
        |rule| speculators::verify::verify((backend, Stream::NONE), &batch, rule, Span::new(0, 0));
    verify((DEFAULT, false)).unwrap();
    let unknown = verify((5, false)).unwrap_err();
    assert!(unknown.to_string().contains("found 5"), "{unknown}");
    let lossy = verify((TYPICAL, false)).unwrap_err();
    assert!(lossy.to_string().contains("SPEC_LOSSY"), "{lossy}");
    verify((TYPICAL, true)).unwrap();
}

#[test]
fn the_highest_number_draws_a_token_that_can_be() {
    for rule in [FOLLOW, REJECTION] {
        let mut request = Request::new(vec![vec![1.0, 0.5, f32::NEG_INFINITY]; 2], vec![0], PLAIN);
        request.uniforms = vec![almost_one(); 4];
        let decision = decide_one(&Call::by(rule), request);
        assert_eq!(decision.tokens(), [1], "rule {rule}");
    }
}
