//! The self-test holds on the device of this process, says what it tried, and refuses what it cannot
//! work with. That it finds rules that are wrong is tested beside it: `src/verify/selftest/broken.rs`.

mod device;
mod host;

use device::{Device, is_cuda_or_skipped, is_shortened};
use host::{Context, Outcome, Versioned, assert_refused, attempt};
use serde_json::Value;
use speculators::capi::*;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Enough for any report.
const CAPACITY: usize = 64 << 10;

/// The flags of a test that is short enough for this device.
fn flags() -> u32 {
    if is_shortened() { SPEC_SELFTEST_QUICK } else { 0 }
}

/// Runs the self-test with a buffer of this size. The report, if it was written, and its length.
fn run_with(
    context: &Context,
    flags: u32,
    capacity: usize,
) -> (Outcome<()>, Option<String>, Option<u64>) {
    let mut json = vec![b'#'.cast_signed(); capacity];
    let mut length = u64::MAX;
    let stream = context.stream.handle();
    // SAFETY: a live handle and stream, a buffer of the given size and a place for the length.
    let outcome = attempt(|error| unsafe {
        let (json, capacity) = (json.as_mut_ptr(), json.len() as u64);
        spec_selftest(context.handle, flags, json, capacity, &mut length, stream, error)
    });
    let is_written = json.first().is_some_and(|&byte| byte != b'#'.cast_signed());
    let report = is_written.then(|| {
        let bytes: Vec<u8> = json.iter().map(|byte| byte.cast_unsigned()).collect();
        CStr::from_bytes_until_nul(&bytes).expect("a NUL").to_str().expect("UTF-8").to_owned()
    });
    (outcome, report, (length != u64::MAX).then_some(length))
}

fn run(context: &Context, flags: u32) -> String {
    let (outcome, report, length) = run_with(context, flags, CAPACITY);
    outcome.expect("every rule keeps its promise");
    let report = report.expect("a report");
    assert_eq!(length, Some(report.len() as u64));
    report
}

fn assert_promises(report: &Value, numbers: &[i64]) {
    assert_eq!(report["holds"], true, "{report}");
    let rules = report["rules"].as_array().expect("rules");
    let found: Vec<i64> = rules.iter().map(|rule| rule["rule"].as_i64().unwrap()).collect();
    assert_eq!(found, numbers);
    for rule in rules {
        let is_lossy = rule["rule"].as_i64().unwrap() >= 16;
        assert_eq!(rule["holds"], true, "{rule}");
        assert_eq!((&rule["lossy"], &rule["exact"]), (&is_lossy.into(), &(!is_lossy).into()));
        let deviation = rule["largest_deviation"].as_f64().unwrap();
        assert!(deviation < rule["tolerance"].as_f64().unwrap() && deviation < 1e-8, "{rule}");
        let cases = rule["cases"].as_array().expect("cases");
        let sum = |member: &str| cases.iter().map(|case| case[member].as_u64().unwrap()).sum();
        for member in ["branches", "decisions"] {
            let all: u64 = sum(member);
            assert_eq!(rule[member], all);
            assert!(all > 10, "{rule}");
        }
        assert!(cases.iter().all(|case| case["holds"] == true && case["defect"].is_null()));
    }
}

#[test]
fn every_rule_keeps_its_promise_on_this_device() {
    let context = Context::with_threads(2);
    let report: Value = serde_json::from_str(&run(&context, flags())).expect("JSON");
    let device = if context.device == Device::Cuda { "cuda" } else { "cpu" };
    assert_eq!(report["device"], device);
    assert_eq!(report["quick"], is_shortened());
    if is_shortened() {
        assert_promises(&report, &[1, 2, 3, 4, 16, 17, 18, 19]);
    } else {
        assert_promises(&report, &[0, 1, 2, 3, 4, 16, 17, 18, 19]);
        let cases = report["rules"].as_array().unwrap().iter();
        let cases: usize = cases.map(|rule| rule["cases"].as_array().unwrap().len()).sum();
        assert!(cases >= 30, "{cases} cases");
    }
}

#[test]
fn the_quick_test_has_every_rule_and_its_report_is_the_same_whatever_the_threads() {
    if !device::is_cpu_or_skipped("on other devices every test of this program is the quick one") {
        return;
    }
    let report = run(&Context::with_threads(1), SPEC_SELFTEST_QUICK);
    assert_promises(&serde_json::from_str(&report).unwrap(), &[1, 2, 3, 4, 16, 17, 18, 19]);
    assert_eq!(report, run(&Context::with_threads(3), SPEC_SELFTEST_QUICK));
}

#[test]
fn reports_go_where_there_is_room_and_otherwise_say_how_much_it_takes() {
    if !device::is_cpu_or_skipped("what becomes of a report does not depend on the device") {
        return;
    }
    let context = Context::with_threads(2);
    let report = run(&context, SPEC_SELFTEST_QUICK);
    let (outcome, text, length) = run_with(&context, SPEC_SELFTEST_QUICK, report.len());
    let failure = outcome.expect_err("no room for the NUL");
    assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT);
    assert!(failure.message.starts_with("spec_selftest: capacity: "), "{}", failure.message);
    assert_eq!((text, length), (None, Some(report.len() as u64)));
    let (outcome, text, _) = run_with(&context, SPEC_SELFTEST_QUICK, report.len() + 1);
    outcome.expect("just enough room");
    assert_eq!(text.as_deref(), Some(&report[..]));
    let (mut length, stream) = (0, context.stream.handle());
    // SAFETY: a live handle and stream, and a place for the length.
    let status = unsafe {
        let flags = SPEC_SELFTEST_QUICK;
        spec_selftest(context.handle, flags, null_mut(), 0, &mut length, stream, null_mut())
    };
    assert_eq!((status, length), (SPEC_OK, report.len() as u64));
}

#[test]
fn what_it_cannot_work_with_is_refused_before_anything_is_tried() {
    let context = Context::with_threads(1);
    let (handle, stream) = (context.handle.cast_const(), context.stream.handle());
    let mut json = [b'#'.cast_signed(); 16];
    let place = json.as_mut_ptr();
    let mut length = 0_u64;
    let odd = (&raw mut length).cast::<u8>().wrapping_add(1).cast::<u64>();
    type Wrong = (&'static str, *const spec_context, u32, *mut c_char, u64, *mut u64, spec_status);
    let length = &raw mut length;
    let invalid = SPEC_ERROR_INVALID_ARGUMENT;
    let wrongs: [Wrong; 6] = [
        ("no context", null(), 0, place, 16, length, invalid),
        ("no context at all", place.cast::<spec_context>(), 0, place, 16, length, invalid),
        ("an unknown flag", handle, 2, place, 16, length, SPEC_ERROR_UNSUPPORTED),
        ("a capacity of nothing", handle, 0, null_mut(), 16, length, invalid),
        ("nowhere to write to", handle, 0, null_mut(), 0, null_mut(), invalid),
        ("an odd place", handle, 0, place, 16, odd, invalid),
    ];
    for (what, handle, flags, json, capacity, length, status) in wrongs {
        // SAFETY: what is not as documented is what the call has to find out.
        let outcome = attempt(|error| unsafe {
            spec_selftest(handle, flags, json, capacity, length, stream, error)
        });
        assert_refused(outcome, "spec_selftest", status, what);
    }
    assert!(json.iter().all(|&byte| byte == b'#'.cast_signed()), "something was written");
    if context.device == Device::Cpu {
        let stream = place.cast::<c_void>();
        // SAFETY: as above.
        let outcome =
            attempt(|error| unsafe { spec_selftest(handle, 0, place, 16, length, stream, error) });
        assert_refused(outcome, "spec_selftest", invalid, "a stream of the CPU");
    }
}

#[test]
fn a_stream_that_is_being_captured_is_refused_and_not_spoilt() {
    if !is_cuda_or_skipped() {
        return;
    }
    let context = Context::with_threads(1);
    let stream = &context.stream;
    let graph = stream.capture(|| {
        let mut length = 0;
        let (handle, place) = (context.handle, &raw mut length);
        // SAFETY: a live handle and stream, and a place for the length.
        let outcome = attempt(|error| unsafe {
            spec_selftest(handle, 1, null_mut(), 0, place, stream.handle(), error)
        });
        let failure = outcome.expect_err("a captured stream");
        assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT);
        assert!(failure.message.contains("captured"), "{}", failure.message);
        assert!(stream.is_capturing(), "the capture was spoilt");
    });
    assert_eq!(graph.launches, 0);
}

/// Memory that a host has given, by address; no more than so many blocks in all.
struct Ledger {
    live: Mutex<BTreeMap<u64, Vec<[u8; 64]>>>,
    left: AtomicUsize,
}

unsafe extern "C" fn allocate(user: *mut c_void, bytes: u64, _: u64, _: i32) -> *mut c_void {
    // SAFETY: the test's ledger, which outlives its context.
    let ledger = unsafe { &*user.cast::<Ledger>() };
    let take = |left: usize| left.checked_sub(1);
    if ledger.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
        return null_mut();
    }
    let mut block = vec![[0_u8; 64]; bytes as usize / 64 + 2];
    let address = (block.as_mut_ptr() as u64).next_multiple_of(64);
    ledger.live.lock().unwrap().insert(address, block);
    address as *mut c_void
}

unsafe extern "C" fn release(user: *mut c_void, memory: *mut c_void, _: u64, _: i32) {
    // SAFETY: as above.
    let ledger = unsafe { &*user.cast::<Ledger>() };
    assert!(ledger.live.lock().unwrap().remove(&(memory as u64)).is_some(), "never given");
}

#[test]
fn memory_goes_back_to_the_host_and_its_refusal_is_told() {
    if !device::is_cpu_or_skipped("a test of an allocator on the CPU") {
        return;
    }
    for (blocks, status) in
        [(100, SPEC_OK), (0, SPEC_ERROR_OUT_OF_MEMORY), (1, SPEC_ERROR_OUT_OF_MEMORY)]
    {
        let ledger = Ledger { live: Mutex::default(), left: AtomicUsize::new(blocks) };
        let allocator = spec_allocator {
            allocate: Some(allocate),
            release: Some(release),
            user: (&raw const ledger).cast_mut().cast(),
            ..Versioned::blank()
        };
        let options = spec_context_options {
            threads: 1,
            allocator: &allocator,
            ..Context::options(Device::Cpu)
        };
        let context = Context::create(&options).expect("a context");
        let (outcome, ..) = run_with(&context, SPEC_SELFTEST_QUICK, CAPACITY);
        assert_eq!(outcome.map_or_else(|failure| failure.status, |()| SPEC_OK), status);
        assert!(ledger.live.lock().unwrap().is_empty(), "memory was kept");
    }
}
