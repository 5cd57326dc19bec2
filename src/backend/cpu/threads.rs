//! A pool of parked threads. Handing work out allocates nothing and takes no lock while the
//! workers are awake; how the work is split never changes a result.

use crate::error::{Error, Result};
use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The host's own threads: calls the task for every index and returns when all have returned.
pub type ParallelFor = unsafe extern "C" fn(
    user: *mut c_void,
    tasks: i32,
    task: Option<unsafe extern "C" fn(argument: *mut c_void, index: i32)>,
    argument: *mut c_void,
);

/// Whose threads a pool uses.
#[derive(Clone, Copy, Debug)]
pub enum Threads {
    /// This many of its own, the caller among them; 0 is one per available core.
    Own(usize),
    /// The host's.
    Host {
        /// The host's loop, callable from any thread.
        parallel_for: ParallelFor,
        /// Handed to it.
        user: *mut c_void,
        /// How many threads it uses.
        count: usize,
    },
}

/// Threads that wait for work.
pub struct Pool {
    threads: usize,
    workers: Workers,
}

enum Workers {
    None,
    Own { shared: Arc<Shared>, handles: Vec<JoinHandle<()>> },
    Host { parallel_for: ParallelFor, user: *mut c_void },
}

// SAFETY: the only member that is not thread-safe by itself is the host's user pointer, which the
// documented contract of parallel_for allows on any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// One `run`: lives on the caller's stack until no worker can touch it any more.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job<'_> {
    /// Runs tasks until none is left. A panic ends this loop and is kept for the caller.
    fn work(&self) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= self.tasks {
                    return;
                }
                (self.task)(index);
            }
        }));
        if let Err(panic) = result {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    fn finish(self) {
        if let Some(panic) = self.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

/// What the caller and the workers share. `gate` is the number of the current job (upper half),
/// whether it may be joined, and how many workers are in it (lower bits): a worker that joins
/// through the gate keeps the caller, and with it the job, from leaving.
struct Shared {
    gate: AtomicU64,
    job: Mutex<Option<NonNull<Job<'static>>>>,
    busy: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: the job pointer is only dereferenced by workers that joined through the gate, while the
// caller waits for them; the job itself is Sync.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

const OPEN: u64 = 1 << 31;
const JOB: u64 = 1 << 32;
const JOINED: u64 = OPEN - 1;

/// How long an idle worker looks for the next job before it sleeps: the phases of one step follow
/// each other within this.
const SPIN: Duration = Duration::from_micros(40);

impl Shared {
    /// Joins the current job if it is open and not the one numbered `last`.
    fn join(&self, last: u64) -> Option<u64> {
        let mut gate = self.gate.load(Ordering::Acquire);
        while gate / JOB != last && gate & OPEN != 0 {
            match self.gate.compare_exchange_weak(
                gate,
                gate + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(gate / JOB),
                Err(found) => gate = found,
            }
        }
        None
    }

    fn worker(&self) {
        let mut last = 0;
        let mut idle_since = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            if let Some(number) = self.join(last) {
                last = number;
                let job = *self.job.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(job) = job {
                    // SAFETY: joined through the gate, so the caller keeps the job alive until
                    // this worker leaves.
                    unsafe { job.as_ref() }.work();
                }
                self.gate.fetch_sub(1, Ordering::Release);
                idle_since = Instant::now();
            } else if idle_since.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                self.sleep(last);
                idle_since = Instant::now();
            }
        }
    }

    /// Sleeps until there is another job than `last`. The order of the two sides (count the
    /// sleeper, then look at the gate; open the gate, then look for sleepers) loses no wake-up.
    fn sleep(&self, last: u64) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            let job_waits = gate / JOB != last && gate & OPEN != 0;
            if job_waits || self.stop.load(Ordering::SeqCst) {
                break;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }

    fn run(&self, job: &Job<'_>) {
        // The pointer is typed 'static to be stored; the gate bounds its real use.
        let pointer = NonNull::from(job).cast::<Job<'static>>();
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(pointer);
        let number = self.gate.load(Ordering::Relaxed) / JOB + 1;
        // Numbers wrap after 2^32 jobs; 0 stays reserved for workers that have seen none.
        let number = if number >= 1 << 32 { 1 } else { number };
        self.gate.store(number * JOB + OPEN, Ordering::SeqCst);
        self.wake_sleepers();
        job.work();
        self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0_u32;
        while self.gate.load(Ordering::Acquire) & JOINED != 0 {
            turns += 1;
            if turns.is_multiple_of(256) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

impl Pool {
    /// Starts the threads, with all signals blocked in them.
    pub fn new(threads: Threads) -> Result<Self> {
        let count = match threads {
            Threads::Own(0) => std::thread::available_parallelism().map_or(1, usize::from),
            Threads::Own(count) => count,
            Threads::Host { parallel_for, user, count } => {
                let workers = Workers::Host { parallel_for, user };
                return Ok(Self { threads: count.max(1), workers });
            }
        };
        if count == 1 {
            return Ok(Self { threads: 1, workers: Workers::None });
        }
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: Mutex::new(None),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        // Dropped on failure, which ends the threads that did start.
        let mut pool =
            Self { threads: count, workers: Workers::Own { shared, handles: Vec::new() } };
        with_signals_blocked(|| pool.start(count - 1))?;
        Ok(pool)
    }

    fn start(&mut self, count: usize) -> Result<()> {
        let Workers::Own { shared, handles } = &mut self.workers else { return Ok(()) };
        for index in 1..=count {
            let shared = Arc::clone(shared);
            let handle = std::thread::Builder::new()
                .name(format!("speculators-{index}"))
                .stack_size(1 << 20)
                .spawn(move || shared.worker())
                .map_err(|failure| {
                    Error::new(
                        crate::error::Status::OutOfMemory,
                        format!("thread {index} of {count}: {failure}"),
                    )
                })?;
            handles.push(handle);
        }
        Ok(())
    }

    /// The threads that can work at the same time, the caller among them.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `task` for every index below `tasks` and returns when all calls have returned; a
    /// panic of a task is carried on. Runs on the calling thread alone while another caller uses the
    /// pool, and inside of a task.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.threads == 1 {
            return (0..tasks).for_each(task);
        }
        let job = Job { task, tasks, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        match &self.workers {
            Workers::None => job.work(),
            Workers::Own { shared, .. } => {
                if shared.busy.swap(true, Ordering::Acquire) {
                    job.work();
                } else {
                    shared.run(&job);
                    shared.busy.store(false, Ordering::Release);
                }
            }
            Workers::Host { parallel_for, user } => {
                let argument = (&raw const job).cast_mut().cast::<c_void>();
                let count = tasks.min(self.threads) as i32;
                // SAFETY: the host's function, called as documented; it returns when all calls
                // have returned, so that the job outlives them.
                unsafe { parallel_for(*user, count, Some(work_for_host), argument) };
                // A host that called nothing must not leave work undone.
                job.work();
            }
        }
        job.finish();
    }
}

unsafe extern "C" fn work_for_host(argument: *mut c_void, _index: i32) {
    // SAFETY: Pool::run hands the address of its job to the host's parallel_for, which calls this
    // before it returns.
    unsafe { &*argument.cast::<Job<'_>>() }.work();
}

impl Drop for Pool {
    fn drop(&mut self) {
        let Workers::Own { shared, handles } = &mut self.workers else { return };
        shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = shared.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        for handle in handles.drain(..) {
            // The workers catch all panics, so there is nothing to learn from the result.
            let _ = handle.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Pool({} threads)", self.threads)
    }
}

/// Threads started in `body` inherit a mask with all signals blocked, so that the host's handlers
/// never run on them.
fn with_signals_blocked<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: the sets are plain data that the calls fill; the old mask is put back.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        let masked = libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old) == 0;
        let result = body();
        if masked {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(pool: &Pool, tasks: usize) -> usize {
        let sum = AtomicUsize::new(0);
        pool.run(tasks, &|index| {
            sum.fetch_add(index + 1, Ordering::Relaxed);
        });
        sum.into_inner()
    }

    #[test]
    fn every_task_runs_once_for_any_number_of_threads() {
        for threads in 1..=5 {
            let pool = Pool::new(Threads::Own(threads)).unwrap();
            for tasks in [0, 1, 2, 7, 1000] {
                for _ in 0..50 {
                    assert_eq!(sum_of(&pool, tasks), tasks * (tasks + 1) / 2);
                }
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = Pool::new(Threads::Own(3)).unwrap();
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
            assert_eq!(sum_of(&pool, 100), 5050);
        }
    }

    #[test]
    fn many_callers_share_a_pool() {
        let pool = Pool::new(Threads::Own(3)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..300).for_each(|_| assert_eq!(sum_of(&pool, 20), 210)));
            }
        });
    }

    #[test]
    fn a_task_may_use_the_pool_itself() {
        let pool = Pool::new(Threads::Own(3)).unwrap();
        let sum = AtomicUsize::new(0);
        pool.run(10, &|_| {
            sum.fetch_add(sum_of(&pool, 10), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 550);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(Threads::Own(3)).unwrap();
        for _ in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, &|index| assert!(index != 13, "thirteen"));
            }));
            assert!(result.is_err());
            assert_eq!(sum_of(&pool, 100), 5050);
        }
    }

    unsafe extern "C" fn backwards(
        user: *mut c_void,
        tasks: i32,
        task: Option<unsafe extern "C" fn(*mut c_void, i32)>,
        argument: *mut c_void,
    ) {
        // SAFETY: the test hands its counter as user, and the task is called as documented.
        unsafe {
            *user.cast::<i32>() += tasks;
            (0..tasks).rev().for_each(|index| task.unwrap()(argument, index));
        }
    }

    #[test]
    fn the_hosts_threads_are_used_where_it_gives_them() {
        let mut calls = 0_i32;
        let user = (&raw mut calls).cast::<c_void>();
        let pool = Pool::new(Threads::Host { parallel_for: backwards, user, count: 4 }).unwrap();
        assert_eq!(sum_of(&pool, 100), 5050);
        assert_eq!(calls, 4);
    }
}
