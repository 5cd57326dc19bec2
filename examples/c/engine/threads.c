/*
 * A pool of threads that spin for a moment after each job and then park.
 *
 * A job is taken apart through one 64-bit ticket: the upper half counts jobs, the lower half the
 * tasks that nobody has taken. A thread reads the job, then takes a task by comparing and swapping
 * the ticket. Success proves that what it read was the current job: the caller publishes the next
 * one only when every task of this one has returned. So a thread that wakes late finds nothing to
 * take, and nobody waits for it.
 */
#include "engine.h"
#include "json.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef void (*task_function)(void *argument, int32_t index);

struct engine_threads {
    _Atomic uint64_t ticket;
    _Atomic(task_function) task;
    _Atomic(void *) argument;
    atomic_int unfinished;
    atomic_int sleepers;
    atomic_bool stop;
    pthread_mutex_t busy; /* held by the caller whose job is running */
    pthread_mutex_t lock; /* with `wake`, for parked threads */
    pthread_cond_t wake;
    int num_workers;
    pthread_t workers[];
};

enum { MAX_THREADS = 256, SPINS = 4000 };

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static uint32_t tasks_left(uint64_t ticket)
{
    return (uint32_t)ticket;
}

/* Takes and runs tasks until none is left. They are taken from the last to the first. */
static void work(engine_threads *threads)
{
    uint64_t ticket = atomic_load(&threads->ticket);
    while (tasks_left(ticket) > 0) {
        task_function task = atomic_load(&threads->task);
        void *argument = atomic_load(&threads->argument);
        if (!atomic_compare_exchange_weak(&threads->ticket, &ticket, ticket - 1)) continue;
        task(argument, (int32_t)tasks_left(ticket) - 1);
        atomic_fetch_sub(&threads->unfinished, 1);
        ticket = atomic_load(&threads->ticket);
    }
}

static void park(engine_threads *threads)
{
    pthread_mutex_lock(&threads->lock);
    /* Announced before the last look at the ticket: the caller sets the ticket before it looks
     * for sleepers, so one of the two sees the other. */
    atomic_fetch_add(&threads->sleepers, 1);
    while (!tasks_left(atomic_load(&threads->ticket)) && !atomic_load(&threads->stop)) {
        pthread_cond_wait(&threads->wake, &threads->lock);
    }
    atomic_fetch_sub(&threads->sleepers, 1);
    pthread_mutex_unlock(&threads->lock);
}

static void *worker(void *pool)
{
    engine_threads *threads = pool;
    while (!atomic_load(&threads->stop)) {
        for (int spin = 0; spin < SPINS && !tasks_left(atomic_load(&threads->ticket)); spin++) {
            pause_briefly();
        }
        if (tasks_left(atomic_load(&threads->ticket))) {
            work(threads);
        } else {
            park(threads);
        }
    }
    return NULL;
}

void engine_parallel_for(void *pool, int32_t tasks, task_function task, void *argument)
{
    engine_threads *threads = pool;
    bool alone = !threads || threads->num_workers == 0 || tasks < 2;
    if (alone || pthread_mutex_trylock(&threads->busy) != 0) {
        for (int32_t index = 0; index < tasks; index++) task(argument, index);
        return;
    }
    atomic_store(&threads->task, task);
    atomic_store(&threads->argument, argument);
    atomic_store(&threads->unfinished, tasks);
    uint64_t job = (atomic_load(&threads->ticket) >> 32) + 1;
    atomic_store(&threads->ticket, job << 32 | (uint32_t)tasks);
    if (atomic_load(&threads->sleepers) > 0) {
        pthread_mutex_lock(&threads->lock);
        pthread_cond_broadcast(&threads->wake);
        pthread_mutex_unlock(&threads->lock);
    }
    work(threads);
    for (int spin = 0; atomic_load(&threads->unfinished) > 0; spin++) {
        if (spin < SPINS) {
            pause_briefly();
        } else {
            sched_yield();
        }
    }
    pthread_mutex_unlock(&threads->busy);
}

engine_threads *engine_threads_create(int count, engine_error *error)
{
    if (count < 1 || count > MAX_THREADS) {
        engine_fail(error, "threads: expected 1 to %d, found %d", MAX_THREADS, count);
        return NULL;
    }
    engine_threads *threads = calloc(1, sizeof *threads + (size_t)count * sizeof(pthread_t));
    if (!threads) {
        engine_fail(error, "threads: out of memory");
        return NULL;
    }
    pthread_mutex_init(&threads->busy, NULL);
    pthread_mutex_init(&threads->lock, NULL);
    pthread_cond_init(&threads->wake, NULL);
    while (threads->num_workers < count - 1) {
        if (pthread_create(&threads->workers[threads->num_workers], NULL, worker, threads) != 0) {
            engine_fail(error, "threads: thread %d did not start", threads->num_workers + 1);
            engine_threads_free(threads);
            return NULL;
        }
        threads->num_workers++;
    }
    return threads;
}

void engine_threads_free(engine_threads *threads)
{
    if (!threads) return;
    pthread_mutex_lock(&threads->lock);
    atomic_store(&threads->stop, true);
    pthread_cond_broadcast(&threads->wake);
    pthread_mutex_unlock(&threads->lock);
    for (int i = 0; i < threads->num_workers; i++) pthread_join(threads->workers[i], NULL);
    pthread_cond_destroy(&threads->wake);
    pthread_mutex_destroy(&threads->lock);
    pthread_mutex_destroy(&threads->busy);
    free(threads);
}
