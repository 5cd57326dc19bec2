//! Memory of CUDA devices: where it comes from, who owns it, and what happens when there is none.
//! `misuse.rs` has the host's allocator, which all devices share.

mod device;
mod host;

use device::memory::Memory;
use device::stream::Stream;
use device::{Device, child, driver, simulator};
use host::checkpoint::Shape;
use host::draft::{DraftCall, Drafts, Place, Text, Turn};
use host::matrix::{DeviceMatrix, Dtype, Matrix};
use host::random::Random;
use host::{Context, Failure, Model, Session, session_options};
use speculators::capi::*;
use std::ops::Range;
use std::path::Path;

const DRAFTS: i32 = 3;
const MAX_POSITION: usize = 64;
const PAGE_SIZE: usize = 8;

fn options() -> spec_session_options {
    spec_session_options {
        max_sequences: 4,
        max_rows: 2 * MAX_POSITION as i32,
        max_drafts: DRAFTS,
        max_position: MAX_POSITION as i32,
        page_size: PAGE_SIZE as i32,
        ..session_options()
    }
}

fn texts(count: usize, widths: &[usize]) -> Vec<Text> {
    let mut random = Random::new(41);
    (0..count).map(|_| Text::random(&mut random, MAX_POSITION, 96, widths)).collect()
}

/// Each text commits the same positions in a slot of its own.
fn call(texts: &[Text], rows: Range<usize>) -> DraftCall {
    let turns = (0..)
        .zip(texts)
        .map(|(slot, text)| Turn::new(text, rows.clone(), DRAFTS, Place::Slot(slot)));
    DraftCall::of(&turns.collect::<Vec<_>>())
}

fn run(session: &Session, call: &DraftCall) -> Vec<Drafts> {
    let drafts = call.run(session).expect("a drafting call");
    session.poll().expect("no fault");
    drafts
}

/// Runs the rest of a test in a process of its own, where nothing else takes memory of the device:
/// true there.
fn is_alone(test: &str) -> bool {
    if child::part().is_none() && device::is_cuda_or_skipped() {
        print!("{}", child::run(test, "all", &[]));
    }
    child::part().is_some() && device::is_cuda_or_skipped()
}

/// Opens everything with allocations that may fail, then drafts with those that may not.
fn lifecycle(directory: &Path, failing: usize) -> Result<Vec<Drafts>, Failure> {
    simulator::configure("SIMT_FAIL_ALLOCATION", &failing.to_string());
    let opened = (|| {
        let context = Context::create(&Context::options(Device::Cuda))?;
        let model = Model::load(&context, directory, None)?;
        let session = Session::create(&model, &options())?;
        Ok((context, model, session))
    })();
    simulator::configure("SIMT_FAIL_ALLOCATION", "0");
    let (_context, model, session) = opened?;
    Ok(run(&session, &call(&texts(2, &model.widths()), 0..20)))
}

#[test]
fn every_failed_allocation_of_the_driver_is_a_clean_error() {
    if !is_alone("every_failed_allocation_of_the_driver_is_a_clean_error")
        || !simulator::is_present_or_skipped("only the simulator's allocations can be made to fail")
    {
        return;
    }
    for (name, shape) in [("llama", Shape::default()), ("sliding", Shape::sliding())] {
        let directory = shape.write(&format!("failing-{name}"), 5);
        let expected = lifecycle(&directory, 0).expect("nothing fails");
        let free = driver::free_bytes();
        let (mut failures, mut successes) = (0, 0);
        // A failure that the library can do without is none; several in a row mean that there are no
        // more allocations.
        for failing in 1.. {
            match lifecycle(&directory, failing) {
                Ok(drafts) => {
                    assert_eq!(drafts, expected, "{name}: allocation {failing}");
                    successes += 1;
                }
                Err(failure) => {
                    assert_eq!(failure.status, SPEC_ERROR_OUT_OF_MEMORY, "{}", failure.message);
                    (failures, successes) = (failures + 1, 0);
                }
            }
            assert_eq!(driver::free_bytes(), free, "{name}: allocation {failing} leaks");
            assert_eq!(lifecycle(&directory, 0).expect("nothing fails"), expected);
            if successes == 3 {
                break;
            }
        }
        println!("{name}: {failures} allocations failed");
        assert!(failures >= 3, "{name}: {failures} allocations failed");
    }
}

#[test]
fn whatever_is_released_last_gives_all_memory_back() {
    if !is_alone("whatever_is_released_last_gives_all_memory_back") {
        return;
    }
    let directory = Shape::default().write("order", 6);
    let open = || {
        let context = Context::on(Device::Cuda);
        let model = Model::load(&context, &directory, None).expect("a model");
        let session = Session::create(&model, &options()).expect("a session");
        (context, model, session)
    };
    drop(open());
    let free = driver::free_bytes();
    let mut expected = None;
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (context, model, session) = open();
        assert!(driver::free_bytes() < free, "weights and pages take memory");
        let texts = texts(2, &model.widths());
        let (mut context, mut model, mut session) = (Some(context), Some(model), Some(session));
        for handle in order {
            match handle {
                0 => drop(context.take()),
                1 => drop(model.take()),
                _ => drop(session.take()),
            }
            if let Some(session) = &session {
                let drafts = run(session, &call(&texts, 0..20));
                assert_eq!(*expected.get_or_insert(drafts.clone()), drafts, "{order:?}");
            }
        }
        assert_eq!(driver::free_bytes(), free, "{order:?}: memory is lost");
    }
}

#[test]
fn arenas_of_the_host_serve_and_what_lies_around_them_is_left_alone() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    const WALL: usize = 1024;
    for (name, shape) in [("llama", Shape::default()), ("sliding", Shape::sliding())] {
        let context = Context::on(Device::Cuda);
        let directory = shape.write(&format!("arena-{name}"), 7);
        let model = Model::load(&context, &directory, None).expect("a model");
        let needs = Session::requirements(&model, &options()).expect("the requirements");
        assert_eq!(needs.alignment, 64);
        let (kv, scratch) = (needs.kv_pool_size as usize, needs.workspace_size as usize);
        let texts = texts(3, &model.widths());
        let own = Session::create(&model, &options()).expect("a session");
        let expected = [0..20, 20..23].map(|rows| run(&own, &call(&texts, rows)));
        // Two sessions in one arena, at the least alignment that is promised.
        let size = (WALL + kv + 64 + WALL + scratch + 64).next_multiple_of(64);
        let arena = Memory::filled(2 * size as u64 + WALL as u64, 0xFF);
        let place = |session: usize| {
            let kv_pool = session * size + WALL + 64 * session;
            (kv_pool, (kv_pool + kv + WALL).next_multiple_of(64))
        };
        let sessions = [0, 1].map(|session| {
            let (kv_pool, workspace) = place(session);
            let at = |offset| arena.address().wrapping_byte_add(offset);
            let options = spec_session_options {
                kv_pool: at(kv_pool),
                kv_pool_size: needs.kv_pool_size,
                workspace: at(workspace),
                workspace_size: needs.workspace_size,
                ..options()
            };
            Session::create(&model, &options).expect("a session").with_own_stream()
        });
        sessions[1].warm_up().expect("a warm-up");
        for (step, rows) in [0..20, 20..23].into_iter().enumerate() {
            for session in &sessions {
                assert_eq!(run(session, &call(&texts, rows.clone())), expected[step], "{name}");
            }
        }
        drop(sessions);
        let mut end = 0;
        for session in [0, 1] {
            let (kv_pool, workspace) = place(session);
            for gap in [end..kv_pool, kv_pool + kv..workspace] {
                let bytes = arena.read(gap.clone());
                assert!(bytes.iter().all(|&byte| byte == 0xFF), "{name}: {gap:?} was written");
            }
            end = workspace + scratch;
        }
        let rest = arena.read(end..2 * size + WALL);
        assert!(rest.iter().all(|&byte| byte == 0xFF), "{name}: what lies behind was written");
    }
}

#[test]
fn arenas_that_are_too_small_or_not_aligned_are_refused() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let context = Context::on(Device::Cuda);
    let model = Model::load(&context, &Shape::default().write("small", 8), None).expect("a model");
    let needs = Session::requirements(&model, &options()).expect("the requirements");
    let arena = Memory::filled(needs.kv_pool_size.max(needs.workspace_size) + 64, 0);
    let odd = arena.address().wrapping_byte_add(32);
    let (kv, scratch) = (needs.kv_pool_size, needs.workspace_size);
    let good = options();
    let wrong = [
        spec_session_options { kv_pool: arena.address(), kv_pool_size: kv - 1, ..good },
        spec_session_options { workspace: arena.address(), workspace_size: scratch - 1, ..good },
        spec_session_options { kv_pool: odd, kv_pool_size: kv, ..good },
        spec_session_options { workspace: odd, workspace_size: scratch, ..good },
    ];
    for (index, options) in wrong.iter().enumerate() {
        let failure = Session::create(&model, options).expect_err("a refusal");
        assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT, "{index}: {}", failure.message);
    }
}

#[test]
fn sequences_read_the_same_pages_in_one_call() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    for (name, shape) in [("llama", Shape::default()), ("sliding", Shape::sliding())] {
        let context = Context::on(Device::Cuda);
        let directory = shape.write(&format!("shared-{name}"), 9);
        let model = Model::load(&context, &directory, None).expect("a model");
        let session = || Session::create(&model, &options()).expect("a session");
        let margin = model.info().prefix_margin as usize;
        // Texts that part after two whole pages and what has to be committed again.
        let shared = 2 * PAGE_SIZE + margin;
        let mut texts = texts(3, &model.widths());
        let (first, others) = texts.split_at_mut(1);
        for text in others {
            text.tokens[..shared].copy_from_slice(&first[0].tokens[..shared]);
            for (feature, from) in text.features.iter_mut().zip(&first[0].features) {
                (0..shared).for_each(|row| feature.set_row(row, &from.row(row)));
            }
        }
        let ends = [30, 27, 38];
        let alone: Vec<Drafts> = texts
            .iter()
            .zip(ends)
            .map(|(text, end)| {
                let turn = Turn::new(text, 0..end, DRAFTS, Place::Slot(0));
                run(&session(), &DraftCall::of(&[turn])).remove(0)
            })
            .collect();
        let together = session();
        let tables = [[3, 9, 4, 5, 6, 7], [3, 9, 20, 21, 22, 23], [3, 9, 12, 13, 14, 15]];
        let prefix = Turn::new(&texts[0], 0..shared, 0, Place::Pages(&tables[0]));
        run(&together, &DraftCall::of(&[prefix]));
        let turns: Vec<Turn<'_>> = (0..3)
            .map(|index| {
                let rows = 2 * PAGE_SIZE..ends[index];
                Turn::new(&texts[index], rows, DRAFTS, Place::Pages(&tables[index]))
            })
            .collect();
        assert_eq!(run(&together, &DraftCall::of(&turns)), alone, "{name}");
    }
}

#[test]
fn sessions_on_one_model_do_not_touch_each_other() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let context = Context::on(Device::Cuda);
    let model = Model::load(&context, &Shape::sliding().write("two", 10), None).expect("a model");
    let texts = texts(4, &model.widths());
    let rounds = [0..18, 18..19, 19..23, 23..25];
    let session = || Session::create(&model, &options()).expect("a session");
    let alone: Vec<Vec<Vec<Drafts>>> = texts
        .chunks(2)
        .map(|texts| {
            let session = session();
            rounds.iter().map(|rows| run(&session, &call(texts, rows.clone()))).collect()
        })
        .collect();
    let sessions = [session(), session().with_own_stream()];
    for (round, rows) in rounds.iter().enumerate() {
        let calls = [call(&texts[..2], rows.clone()), call(&texts[2..], rows.clone())];
        let prepared =
            calls.each_ref().map(|call| call.prepare(model.info().draft_vocabulary as usize));
        for (session, prepared) in sessions.iter().zip(&prepared) {
            session.enqueue(&prepared.args).expect("a call");
        }
        device::synchronize();
        for (index, prepared) in prepared.iter().enumerate() {
            assert_eq!(prepared.drafts(), alone[index][round], "session {index}, round {round}");
        }
    }
}

/// An array in memory of the device.
fn array<T: bytemuck::NoUninit>(elements: &[T]) -> Memory {
    Memory::of(bytemuck::cast_slice(elements))
}

#[test]
fn everything_may_lie_in_memory_of_the_device() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    for (name, shape) in [("llama", Shape::default()), ("sliding", Shape::sliding())] {
        let context = Context::on(Device::Cuda);
        let directory = shape.write(&format!("resident-{name}"), 11);
        let model = Model::load(&context, &directory, None).expect("a model");
        let session = Session::create(&model, &options()).expect("a session");
        let texts = texts(3, &model.widths());
        let mut call = call(&texts, 0..20);
        call.embeddings = Some(Matrix::filled(60, 48, Dtype::Bf16, 0.25));
        (call.tokens[4], call.tokens[25]) = (-1, -1);
        call.rope_position = Some((0..60).map(|row| row % 20).collect());
        let expected = run(&session, &call);

        let prepared = call.prepare(session.draft_vocabulary);
        let mut args = prepared.args;
        let features: Vec<DeviceMatrix> = call.features.iter().map(Matrix::on_device).collect();
        let features: (Vec<DeviceMatrix>, Vec<spec_tensor>) = features
            .into_iter()
            .map(|feature| {
                let tensor = feature.tensor();
                (feature, tensor)
            })
            .unzip();
        let embeddings = call.embeddings.as_ref().expect("embeddings").on_device();
        let embeddings_tensor = embeddings.tensor();
        let mut logits = Matrix::filled(9, session.draft_vocabulary, Dtype::F32, f32::NAN);
        let logits_copy = logits.on_device();
        let logits_tensor = logits_copy.tensor();
        let columns = [
            array(&call.position),
            array(&call.row_count),
            array(&call.next_token),
            array(call.row_begin.as_ref().expect("row_begin")),
            array(call.num_drafts.as_ref().expect("num_drafts")),
            array(call.context_begin.as_ref().expect("context_begin")),
            array(call.slot.as_ref().expect("slots")),
            array(&call.tokens),
            array(call.rope_position.as_ref().expect("rope positions")),
        ];
        let places = columns.each_ref().map(|column| column.address().cast_const().cast::<i32>());
        [
            args.position,
            args.row_count,
            args.next_token,
            args.row_begin,
            args.num_drafts,
            args.context_begin,
            args.slot,
            args.tokens,
            args.rope_position,
        ] = places;
        let (drafts, proposed) = (array(&[-7_i32; 9]), array(&[-7_i32; 3]));
        (args.draft_tokens, args.num_proposed) =
            (drafts.address().cast(), proposed.address().cast());
        (args.features, args.embeddings) = (features.1.as_ptr(), &embeddings_tensor);
        args.draft_logits = &logits_tensor;
        session.draft(&args).expect("a call");
        session.poll().expect("no fault");

        logits.read(&logits_copy);
        let tokens: Vec<i32> = drafts.elements();
        let counts: Vec<i32> = proposed.elements();
        for (sequence, expected) in expected.iter().enumerate() {
            let count = counts[sequence] as usize;
            let first = sequence * DRAFTS as usize;
            let found = Drafts {
                tokens: tokens[first..first + count].to_vec(),
                logits: (first..first + count).map(|row| logits.row(row)).collect(),
                ..Drafts::default()
            };
            assert_eq!(found, *expected, "{name}, sequence {sequence}");
        }
    }
}

#[test]
fn a_session_may_move_to_another_stream_between_calls() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let context = Context::on(Device::Cuda);
    let model = Model::load(&context, &Shape::default().write("moves", 12), None).expect("a model");
    let texts = texts(2, &model.widths());
    let session = || Session::create(&model, &options()).expect("a session");
    let (fixed, mut moving) = (session(), session());
    for rows in [0..9, 9..10, 10..14, 14..15] {
        let call = call(&texts, rows);
        let expected = run(&fixed, &call);
        let next = Stream::on(Device::Cuda);
        next.wait_for(&moving.stream);
        moving.stream = next.into();
        assert_eq!(run(&moving, &call), expected);
    }
}
