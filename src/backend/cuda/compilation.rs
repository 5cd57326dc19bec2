//! Compiling several modules, each only if no earlier compilation has been kept.

use super::cache::{Cache, Key};
use super::compiler::Compiler;
use super::images::{Origin, Source};
use crate::error::Result;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The stack of a compiling thread, as large as that of a program's first one.
const STACK_BYTES: usize = 8 << 20;

/// The key of what is compiled from a source and the headers, for a target by a compiler.
pub fn key(source: &Source, headers: &[Source], by: &[&str]) -> Key {
    let mut parts: Vec<&[u8]> = Compiler::options().collect();
    for file in headers.iter().chain([source]) {
        parts.extend([file.name.as_bytes(), file.text.as_bytes()]);
    }
    parts.extend(by.iter().map(|text| text.as_bytes()));
    Key::of(parts)
}

/// What `load` makes of the images of the sources: those of the cache or, where there is none or it
/// will not load, those that are compiled, all at the same time, and kept.
pub fn made<T>(
    cache: Option<&Cache>,
    sources: &[Source],
    key: impl Fn(&Source) -> Key,
    compile: impl Fn(&Source) -> Result<Vec<u8>> + Sync,
    load: impl Fn(&Source, Origin, &[u8]) -> Result<T>,
) -> Result<Vec<T>> {
    let (mut loaded, mut missing) = (Vec::new(), Vec::new());
    for source in sources {
        let kept = cache.and_then(|cache| cache.get(&key(source)));
        match kept.and_then(|image| load(source, Origin::Cache, &image).ok()) {
            Some(made) => loaded.push(made),
            None => missing.push(*source),
        }
    }
    let images = in_parallel(&missing, compile);
    for (source, image) in missing.iter().zip(images) {
        let image = image?;
        loaded.push(load(source, Origin::Compiled, &image)?);
        if let Some(cache) = cache {
            cache.put(&key(source), &image);
        }
    }
    Ok(loaded)
}

/// What `work` makes of each item, in their order, on as many threads as there are processors.
pub fn in_parallel<I: Sync, O: Send>(items: &[I], work: impl Fn(&I) -> O + Sync) -> Vec<O> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<O>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let take_turns = || {
        while let Some(index) =
            Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < items.len())
        {
            let result = work(&items[index]);
            if let Ok(mut place) = results[index].lock() {
                *place = Some(result);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            // The thread that waits for the others does what they leave, if they could not be started.
            let _ = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, take_turns);
        }
    });
    take_turns();
    results.into_iter().filter_map(|place| place.into_inner().ok().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::cache::tests::Scratch;
    use super::*;
    use crate::error::Error;

    const SOURCES: [Source; 3] = [
        Source { name: "a", text: "1" },
        Source { name: "b", text: "2" },
        Source { name: "c", text: "3" },
    ];

    fn by_text(source: &Source) -> Key {
        key(source, &[], &[])
    }

    /// The origins of images that are their sources' text and load if they are, and how many were
    /// compiled.
    fn make(cache: Option<&Cache>) -> (Vec<Origin>, usize) {
        let compiled = AtomicUsize::new(0);
        let compile = |source: &Source| {
            compiled.fetch_add(1, Ordering::Relaxed);
            Ok(source.text.as_bytes().to_vec())
        };
        let load = |source: &Source, origin, image: &[u8]| {
            let sound = image == source.text.as_bytes();
            sound.then_some(origin).ok_or_else(|| Error::internal("does not load"))
        };
        let origins = made(cache, &SOURCES, by_text, compile, load).unwrap();
        (origins, compiled.into_inner())
    }

    #[test]
    fn kernels_are_compiled_once_for_each_cache() {
        let scratch = Scratch::new("once");
        let cache = Cache::at(scratch.path().to_owned());
        assert_eq!(make(Some(&cache)), (vec![Origin::Compiled; 3], 3));
        assert_eq!(make(Some(&cache)), (vec![Origin::Cache; 3], 0));
        assert_eq!(make(None), (vec![Origin::Compiled; 3], 3));
    }

    #[test]
    fn a_kept_image_that_does_not_load_is_compiled_and_kept_anew() {
        let scratch = Scratch::new("refused");
        let cache = Cache::at(scratch.path().to_owned());
        make(Some(&cache));
        cache.put(&by_text(&SOURCES[1]), b"bad");
        let (origins, compiled) = make(Some(&cache));
        assert_eq!(compiled, 1);
        assert_eq!(origins, [Origin::Cache, Origin::Cache, Origin::Compiled]);
        assert_eq!(make(Some(&cache)), (vec![Origin::Cache; 3], 0));
    }

    #[test]
    fn what_fails_to_compile_or_to_load_is_not_kept() {
        let scratch = Scratch::new("failed");
        let cache = Cache::at(scratch.path().to_owned());
        let compile = |source: &Source| match source.name {
            "b" => Err(Error::internal("does not compile")),
            _ => Ok(vec![1]),
        };
        let error = made(Some(&cache), &SOURCES, by_text, compile, |_, _, _| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "does not compile");
        let refuse = |_: &Source, _, _: &[u8]| Err::<(), _>(Error::internal("does not load"));
        made(Some(&cache), &SOURCES[2..], by_text, |_| Ok(vec![1]), refuse).unwrap_err();
        let kept = SOURCES.map(|source| cache.get(&by_text(&source)).is_some());
        assert_eq!(kept, [true, false, false]);
    }

    #[test]
    fn the_key_depends_on_every_file_and_on_what_it_is_compiled_by() {
        let source = |name, text| Source { name, text };
        let (a, header) = (source("a", "1"), source("h.cuh", "2"));
        let name = |key: Key| format!("{key:?}");
        let base = name(key(&a, &[header], &["sm_80", "NVRTC 12.0"]));
        for other in [
            key(&source("b", "1"), &[header], &["sm_80", "NVRTC 12.0"]),
            key(&source("a", "2"), &[header], &["sm_80", "NVRTC 12.0"]),
            key(&a, &[source("h.cuh", "3")], &["sm_80", "NVRTC 12.0"]),
            key(&a, &[], &["sm_80", "NVRTC 12.0"]),
            key(&a, &[header], &["sm_90a", "NVRTC 12.0"]),
            key(&a, &[header], &["sm_80", "NVRTC 12.1"]),
        ] {
            assert_ne!(name(other), base);
        }
        assert_eq!(name(key(&a, &[header], &["sm_80", "NVRTC 12.0"])), base);
    }

    #[test]
    fn results_are_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(in_parallel(&items, |item| item * 2), (0..200).step_by(2).collect::<Vec<_>>());
        assert!(in_parallel(&[], |item: &usize| *item).is_empty());
    }
}
