//! Mutation test of the CUDA kernels: deletes or weakens one synchronisation, bound or index at a time,
//! and expects that a test fails in the simulator's checked build.
//!
//! `make mutate` runs it; `--help` lists the options. Mutants that change nothing that can be seen are
//! listed, with reasons, in `tests/simt/equivalent_mutants`.

mod listed;
mod mutations;
mod programs;
mod source;
mod trial;
mod twins;

use listed::Identity;
use mutations::{Mutation, mutations};
use source::Source;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};
use trial::{Outcome, Unchanged};
use twins::Workshop;

const HELP: &str = "\
Deletes or weakens one synchronisation, bound or index of the kernels at a time, and reports the
mutants that no test notices.
    --seed N      the order in which mutants are tried; otherwise it comes from the date
    --seconds N   begins no mutant after so many seconds
    --sample N    tries so many mutants at most
    --only A,B    tries only mutants with one of these texts in their descriptions, as they are printed
    --tests A,B   runs only tests with one of these texts in their names
    --jobs N      tries so many mutants at a time; otherwise as many as there are cores
    --report      succeeds even if mutants survive
    --list        prints the mutants without trying them
";

/// The test programs, which run kernels in short cases.
const PROGRAMS: [&str; 4] = ["cuda_products", "cuda_rows", "cuda_verify", "tree_topology"];

/// What the command line asks for.
#[derive(Clone, Debug)]
struct Options {
    seed: u64,
    seconds: u64,
    sample: usize,
    only: Vec<String>,
    tests: Vec<String>,
    jobs: usize,
    lists: bool,
    reports: bool,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let days = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs() / 86400);
        let mut options = Self {
            seed: days,
            seconds: u64::MAX,
            sample: usize::MAX,
            only: Vec::new(),
            tests: Vec::new(),
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            lists: false,
            reports: false,
        };
        while let Some(name) = arguments.next() {
            match &*name {
                "--list" => options.lists = true,
                "--report" => options.reports = true,
                _ => options.set(&name, arguments.next())?,
            }
        }
        Ok(options)
    }

    /// Sets an option that has a value.
    fn set(&mut self, name: &str, value: Option<String>) -> Result<(), String> {
        let value = value.ok_or_else(|| HELP.to_owned())?;
        let wrong = |_| format!("{name}: expected a number, found {value}");
        match name {
            "--seed" => self.seed = value.parse().map_err(wrong)?,
            "--seconds" => self.seconds = value.parse().map_err(wrong)?,
            "--sample" => self.sample = value.parse().map_err(wrong)?,
            "--jobs" => self.jobs = value.parse::<usize>().map_err(wrong)?.max(1),
            "--only" => self.only = value.split(',').map(str::to_owned).collect(),
            "--tests" => self.tests = value.split(',').map(str::to_owned).collect(),
            _ => return Err(HELP.to_owned()),
        }
        Ok(())
    }
}

/// A mutant of one of the sources.
#[derive(Clone, Debug)]
struct Mutant<'a> {
    source: &'a Source,
    mutation: Mutation,
}

impl Mutant<'_> {
    fn describe(&self) -> String {
        let line = self.source.line_number(self.mutation.range.start);
        format!("kernels/{}:{line}: {}", self.source.name, self.mutation.what)
    }

    fn identity(&self) -> Identity {
        Identity::of(self.source, &self.mutation)
    }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The kernel files, by name.
fn sources(root: &Path) -> Result<Vec<Source>, String> {
    let directory = root.join("kernels");
    let entries = fs::read_dir(&directory).map_err(|error| error.to_string())?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_kernel = |path: &PathBuf| path.extension().is_some_and(|e| e == "cu" || e == "cuh");
    let mut paths: Vec<PathBuf> = paths.filter(is_kernel).collect();
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(|path| Ok(Source::new(&name(path), &read(path)?))).collect()
}

/// Whether one of the texts stands in a name, or there are none.
fn is_asked_for(name: &str, texts: &[String]) -> bool {
    texts.is_empty() || texts.iter().any(|text| name.contains(text))
}

fn mutants(sources: &[Source]) -> Vec<Mutant<'_>> {
    let of =
        |source| mutations(source).into_iter().map(move |mutation| Mutant { source, mutation });
    sources.iter().flat_map(of).collect()
}

/// The mutants that are listed as equivalent, each of which has to exist.
fn listed(root: &Path, mutants: &[Mutant]) -> Result<HashSet<Identity>, String> {
    let path = root.join("tests/simt/equivalent_mutants");
    let problem = |problem: String| format!("{}: {problem}", path.display());
    let existing: HashSet<Identity> = mutants.iter().map(Mutant::identity).collect();
    let mut listed = HashSet::new();
    for entry in listed::read(&read(&path)?).map_err(problem)? {
        if !existing.contains(&entry) {
            return Err(problem(format!("there is no such mutant:\n{entry}")));
        }
        if !listed.insert(entry.clone()) {
            return Err(problem(format!("listed twice:\n{entry}")));
        }
    }
    Ok(listed)
}

/// Brings items into an order that the seed determines (Fisher and Yates, with numbers of SplitMix64).
fn shuffle<Item>(items: &mut [Item], mut seed: u64) {
    for last in (1..items.len()).rev() {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = seed;
        number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        items.swap(last, (number ^ number >> 31) as usize % (last + 1));
    }
}

/// Tries mutants, several at a time, and prints what becomes of each. Gives them back with their
/// outcomes, as far as there was time.
fn try_all<'a>(
    options: &Options,
    mutants: Vec<Mutant<'a>>,
    workshop: &Workshop,
    unchanged: &Unchanged,
) -> Result<Vec<(Mutant<'a>, Outcome)>, String> {
    let start = Instant::now();
    let limit = Duration::from_secs(options.seconds);
    let waiting = Mutex::new(mutants.into_iter());
    let done = Mutex::new(Vec::new());
    let work = |workshop: Workshop| {
        while start.elapsed() < limit {
            let Some(mutant) = waiting.lock().expect("no panic").next() else { break };
            let begin = Instant::now();
            let outcome = unchanged.try_mutant(&workshop, mutant.source, &mutant.mutation);
            let seconds = begin.elapsed().as_secs_f64();
            println!("{seconds:6.1} s  {}: {outcome}", mutant.describe());
            done.lock().expect("no panic").push((mutant, outcome));
        }
    };
    let workers = (0..options.jobs).map(|number| workshop.of_worker(number));
    let workers = workers.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    std::thread::scope(|scope| workers.into_iter().for_each(|own| drop(scope.spawn(|| work(own)))));
    Ok(done.into_inner().expect("no panic"))
}

/// Prints what came out in all; false if there are survivors.
fn summarise(tried: &[(Mutant, Outcome)]) -> bool {
    let count = |is: fn(&Outcome) -> bool| tried.iter().filter(|(_, outcome)| is(outcome)).count();
    let survivors = count(|outcome| matches!(outcome, Outcome::Survived { .. }));
    println!(
        "{} tried: {} killed, {} do not compile, {} make no other code, {survivors} survived",
        tried.len(),
        count(|outcome| matches!(outcome, Outcome::Killed(_))),
        count(|outcome| matches!(outcome, Outcome::DoesNotCompile)),
        count(|outcome| matches!(outcome, Outcome::SameCode)),
    );
    for (mutant, outcome) in tried {
        if let Outcome::Survived { .. } = outcome {
            println!("\nsurvivor {}\n{}", mutant.describe(), mutant.identity());
        }
    }
    survivors == 0
}

/// Whether all that was tried was noticed, as far as that is asked for.
fn run(options: &Options) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let sources = sources(root)?;
    let mut mutants = mutants(&sources);
    let listed = listed(root, &mutants)?;
    let all = mutants.len();
    mutants.retain(|mutant| !listed.contains(&mutant.identity()));
    shuffle(&mut mutants, options.seed);
    mutants.retain(|mutant| is_asked_for(&mutant.describe(), &options.only));
    mutants.truncate(options.sample);
    println!("{all} mutants, {} listed as equivalent; the seed is {}", listed.len(), options.seed);
    if options.lists {
        mutants.iter().for_each(|mutant| println!("{}", mutant.describe()));
        return Ok(true);
    }

    let workshop = Workshop::of_project(root, &target)?;
    let mut tests = programs::tests(root, &PROGRAMS)?;
    tests.retain(|test| is_asked_for(&test.name, &options.tests));
    let unchanged = Unchanged::measure(&workshop, &sources, &tests, options.jobs)?;
    print!("{}", unchanged.describe());
    let all_are_noticed = summarise(&try_all(options, mutants, &workshop, &unchanged)?);
    Ok(all_are_noticed || options.reports)
}

fn main() -> ExitCode {
    let options = Options::read(std::env::args().skip(1));
    match options.and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutants_listed_as_equivalent_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources = sources(root).unwrap();
        let mutants = mutants(&sources);
        assert!(mutants.len() > 100, "only {} mutants found", mutants.len());
        listed(root, &mutants).unwrap();
    }

    #[test]
    fn mutants_are_told_apart() {
        let sources = sources(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let mutants = mutants(&sources);
        let identities: HashSet<Identity> = mutants.iter().map(Mutant::identity).collect();
        assert_eq!(identities.len(), mutants.len());
    }

    #[test]
    fn a_seed_determines_the_order() {
        let shuffled = |seed| {
            let mut numbers: Vec<u32> = (0..100).collect();
            shuffle(&mut numbers, seed);
            numbers
        };
        assert_eq!(shuffled(7), shuffled(7));
        assert_ne!(shuffled(7), shuffled(8));
        let mut sorted = shuffled(7);
        sorted.sort();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
