//! What becomes of a mutant: which modules it changes, and whether a test notices.

use crate::mutations::Mutation;
use crate::programs::Test;
use crate::source::Source;
use crate::twins::Workshop;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Tests that take longer on the kernels as they are, are left out: quicker ones launch the same kernels.
const LONGEST_TEST: Duration = Duration::from_secs(30);
/// What each test has at first. Most mutants are noticed at once, though rarely by all tests.
const FIRST_ROUND: Duration = Duration::from_secs(3);

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By a test, for a reason.
    Killed(String),
    DoesNotCompile,
    /// The compiler makes the same of it.
    SameCode,
    /// The tests passed.
    Survived {
        tests: usize,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(reason) => write!(text, "killed by {reason}"),
            Self::DoesNotCompile => write!(text, "does not compile"),
            Self::SameCode => write!(text, "makes no other code"),
            Self::Survived { tests } => write!(text, "SURVIVED {tests} tests"),
        }
    }
}

/// A module of kernels, unchanged.
#[derive(Clone, Debug)]
struct Module {
    /// Its files, the headers too.
    files: BTreeSet<String>,
    /// The bytes of its twin, which tell how long it takes to compile.
    size: u64,
    /// Its code, compiled as that of mutants is, when it is first needed.
    code: OnceLock<Vec<u8>>,
    /// The tests that launch a kernel of it, the quickest first, and what they take.
    tests: Vec<(Test, Duration)>,
}

impl Module {
    /// The first test that fails on what is built in the workshop, and why.
    fn killer(&self, workshop: &Workshop) -> Option<String> {
        let run = |test: &Test, limit| test.run(&workshop.runtime, &workshop.twins(), limit, false);
        let killer = |test: &Test, failure| format!("{}: {failure}", test.name);
        let mut unfinished = Vec::new();
        for (test, time) in &self.tests {
            let run = run(test, FIRST_ROUND);
            match run.failure {
                Some(_) if run.took_too_long => unfinished.push((test, time)),
                Some(failure) => return Some(killer(test, failure)),
                None => {}
            }
        }
        unfinished.into_iter().find_map(|(test, time)| {
            let limit = Duration::from_secs(20) + 10 * *time;
            run(test, limit).failure.map(|failure| killer(test, failure))
        })
    }
}

/// All modules as they are.
#[derive(Clone, Debug)]
pub struct Unchanged {
    workshop: Workshop,
    modules: BTreeMap<String, Module>,
}

impl Unchanged {
    /// Runs all tests, which have to pass.
    pub fn measure(
        workshop: &Workshop,
        sources: &[Source],
        tests: &[Test],
        jobs: usize,
    ) -> Result<Self, String> {
        let twins = workshop.runtime_twins();
        let mut modules = BTreeMap::new();
        for name in sources.iter().filter_map(|source| source.name.strip_suffix(".cu")) {
            let files = files_of(sources, &format!("{name}.cu"));
            let size = fs::metadata(twins.join(format!("{name}.so"))).map_or(0, |twin| twin.len());
            let module = Module { files, size, code: OnceLock::new(), tests: Vec::new() };
            modules.insert(name.to_owned(), module);
        }

        let runs = in_parallel(tests, jobs, |test| {
            test.run(&workshop.runtime, &twins, LONGEST_TEST, true)
        });
        let mut failures = String::new();
        for (test, run) in tests.iter().zip(runs) {
            if run.took_too_long {
                println!("left out, as it takes too long: {}", test.name);
                continue;
            }
            if let Some(failure) = run.failure {
                failures += &format!("\n{}: {failure}", test.name);
            }
            for (name, module) in &mut modules {
                let source = sources.iter().find(|source| source.name == format!("{name}.cu"));
                let launches = |kernel: &str| run.kernels.contains(kernel);
                if source.is_some_and(|source| source.kernels().any(launches)) {
                    module.tests.push((test.clone(), run.time));
                }
            }
        }
        if !failures.is_empty() {
            return Err(format!("tests fail on the unchanged kernels:{failures}"));
        }
        for module in modules.values_mut() {
            module.tests.sort_by_key(|(_, time)| *time);
        }
        Ok(Self { workshop: workshop.clone(), modules })
    }

    /// How many tests launch kernels of each module.
    pub fn describe(&self) -> String {
        let modules = self.modules.iter().map(|(name, module)| {
            let time: Duration = module.tests.iter().map(|(_, time)| *time).sum();
            format!("{name}: {} tests in {:.1} s\n", module.tests.len(), time.as_secs_f64())
        });
        modules.collect()
    }

    /// Tries a mutant in a workshop that no one else uses meanwhile.
    pub fn try_mutant(&self, workshop: &Workshop, source: &Source, mutation: &Mutation) -> Outcome {
        let path = workshop.kernels.join(&source.name);
        fs::write(&path, mutation.apply(source)).expect("the copy of a kernel file can be written");
        let outcome = self.try_text(workshop, source).unwrap_or(Outcome::DoesNotCompile);
        fs::write(&path, &source.text).expect("the copy of a kernel file can be written");
        outcome
    }

    /// Tries the modules with a file, whose text in the workshop is another.
    fn try_text(&self, workshop: &Workshop, source: &Source) -> Result<Outcome, String> {
        let _ = fs::remove_dir_all(workshop.twins());
        let affected =
            self.modules.iter().filter(|(_, module)| module.files.contains(&source.name));
        let mut affected: Vec<(&String, &Module)> = affected.collect();
        affected.sort_by_key(|(_, module)| module.size);
        let mut outcome = Outcome::SameCode;
        for (name, module) in affected {
            let unchanged = || self.workshop.build(name).expect("unchanged kernels compile");
            if workshop.build(name)? == *module.code.get_or_init(unchanged) {
                continue;
            }
            for other in self.modules.keys() {
                workshop.borrow(other)?;
            }
            if let Some(killer) = module.killer(workshop) {
                return Ok(Outcome::Killed(killer));
            }
            let before = if let Outcome::Survived { tests } = outcome { tests } else { 0 };
            outcome = Outcome::Survived { tests: before + module.tests.len() };
        }
        Ok(outcome)
    }
}

/// A file and all that it includes, directly or not.
fn files_of(sources: &[Source], name: &str) -> BTreeSet<String> {
    let mut files = BTreeSet::from([name.to_owned()]);
    let mut waiting = vec![name.to_owned()];
    while let Some(name) = waiting.pop() {
        let source = sources.iter().find(|source| source.name == name);
        for include in source.into_iter().flat_map(Source::includes) {
            if files.insert(include.to_owned()) {
                waiting.push(include.to_owned());
            }
        }
    }
    files
}

/// What `work` makes of each item, by so many threads.
fn in_parallel<Item: Sync, Made: Send>(
    items: &[Item],
    jobs: usize,
    work: impl Fn(&Item) -> Made + Sync,
) -> Vec<Made> {
    let next = AtomicUsize::new(0);
    let mut results: Vec<(usize, Made)> = std::thread::scope(|scope| {
        let worker = || {
            let mut results = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else { return results };
                results.push((index, work(item)));
            }
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
