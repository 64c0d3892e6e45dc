/*
 * pool.c - a fixed pool of worker threads, and a twin for each.
 *
 * A thread is started when a job comes and nobody is free, and then kept for
 * the next one.  The worker that went idle last is woken first: its stack and
 * caches are warm, and those above it sleep on; after a burst, all of them that
 * are more than a few leave, with what malloc(3) keeps for each thread.  When
 * all are busy a job waits in a bounded queue with the time it came.
 *
 * A twin is the second thread of a worker: the other direction of a tunnel,
 * the body of a request that is still coming.  It belongs to its worker alone
 * and is kept as well, as making one costs more than a whole tunnel.
 *
 * Owns     the threads, the queue.  Jobs belong to whoever submits, then to
 *          serve(); the pool never looks into them.
 * Threads  any may submit; a worker alone enters by twin_start(), twin_wait().
 * Blocks   never in pool_submit(); twin_wait() and pool_free() do.
 */
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "proxy.h"

enum {
    REST_MS = 2000,    /* idle for so long: give back the pages of the stack */
    OWN_FRAME = 1024,  /* bytes: more than stack_rest() has on the stack */
    KEPT = 8,          /* workers that stay, idle or not */
    NAME_MAX_LEN = 16, /* pthread_setname_np(3), with its NUL */
};

struct twin {
    /* the worker's alone */
    pthread_t thread;
    bool started, busy;
    /* the worker's, until it rings `told`; the twin's, until it rings `ended`
     */
    void (*run)(void *); /* NULL: leave */
    void *arg;
    struct bell told, ended;
};

struct worker {
    /* set when it starts, then only read */
    struct pool *pool;
    pthread_t thread;
    size_t no;
    struct twin twin;
    /* needs pool->lock */
    struct worker *colder; /* idle for longer, or gone before; NULL: the last,
                              or busy */
    bool threaded;         /* its thread has to be joined */
    /* whoever takes it from the idle ones has it, until he rings `told` */
    void *job; /* NULL: leave */
    struct bell told;
};

struct job {
    void *job;
    int64_t at; /* ms */
};

struct pool {
    struct pool_conf conf;
    pthread_attr_t attr;
    pthread_mutex_t lock;
    /* under lock */
    struct worker *workers; /* [0..n_started) have, or had, a thread */
    size_t n_started;
    size_t n_busy;
    struct worker *warmest; /* of the idle; set: the queue is empty */
    struct worker *left;    /* their threads have ended, or are about to */
    struct job *queue;      /* a ring of conf.n_queue */
    size_t first, n_queued;
    bool leave;
};

/* ---- threads in general -------------------------------------------------- */

/*
 * cond_until - wait on cond, at most until a point in time.
 *
 * lock   held; released while waiting
 * until  ms of now_ms(); 0: without a limit
 *
 * Returns false once the time is over.  May come back early: ask again for
 * what is waited for.
 */
bool
cond_until(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t until)
{
    struct timespec at = {until / 1000, until % 1000 * 1000000};
    int rc;

    if (until == 0)
        rc = pthread_cond_wait(cond, lock);
    else
        rc = pthread_cond_clockwait(cond, lock, CLOCK_MONOTONIC, &at);
    assert(rc == 0 || rc == ETIMEDOUT);
    return rc == 0;
}

/*
 * bell_wait - sleep until the bell has been rung, at most until a point in
 * time.
 *
 * until  ms of now_ms(); 0: without a limit
 *
 * Returns false once the time is over.  One ring wakes once, whether it came
 * before or after; what was written before bell_ring() can be read then.
 * Thread: one waits at a time.
 * Source: futex(2).  A condition variable wakes its waiter to take the mutex,
 * which glibc then believes to be contended: two more system calls a wake-up,
 * and a tunnel has three.
 */
bool
bell_wait(struct bell *b, int64_t until)
{
    const struct timespec at = {until / 1000, until % 1000 * 1000000};

    for (;;) {
        int state = BELL_RUNG;
        long rc;

        if (atomic_compare_exchange_strong(&b->state, &state, BELL_SILENT))
            return true;
        if (state == BELL_SILENT &&
            !atomic_compare_exchange_strong(&b->state, &state, BELL_AWAITED))
            continue; /* rung just now */
        rc = syscall(SYS_futex, &b->state, FUTEX_WAIT_BITSET_PRIVATE,
                     BELL_AWAITED, until != 0 ? &at : NULL, NULL,
                     FUTEX_BITSET_MATCH_ANY);
        assert(rc == 0 || errno == EAGAIN || errno == EINTR ||
               errno == ETIMEDOUT);
        state = BELL_AWAITED;
        if (rc != 0 && errno == ETIMEDOUT &&
            atomic_compare_exchange_strong(&b->state, &state, BELL_SILENT))
            return false;
    }
}

/* Wake who waits, or will; once, however often it is rung before he does.  He
 * may have gone, with the bell, before the system call is through with its
 * address: it is not read there.  Any thread. */
void
bell_ring(struct bell *b)
{
    if (atomic_exchange(&b->state, BELL_RUNG) == BELL_AWAITED)
        syscall(SYS_futex, &b->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/*
 * stack_rest - give back the pages of this thread's stack below the caller.
 *
 * A TLS handshake reaches deep; without this its pages stay resident for as
 * long as the thread sleeps.  For threads of ours only: the main thread's
 * stack has no fixed lower end.
 * Costs a system call, and page faults when the stack grows again.
 */
void
stack_rest(void)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    uintptr_t end = (here - OWN_FRAME) & -page;
    pthread_attr_t attr;
    void *low;
    size_t size;

    if (pthread_getattr_np(pthread_self(), &attr) != 0)
        return;
    /* Refused, it is memory not given back, nothing else. */
    if (pthread_attr_getstack(&attr, &low, &size) == 0 && end > (uintptr_t)low)
        (void)madvise(low, end - (uintptr_t)low, MADV_DONTNEED);
    pthread_attr_destroy(&attr);
}

/* Wait to be told something, and rest the stack once it takes long. */
static void
wait_told(struct bell *told)
{
    if (bell_wait(told, now_ms() + REST_MS))
        return;
    stack_rest();
    bell_wait(told, 0);
}

static void
thread_name(const struct worker *w, const char *suffix)
{
    char name[NAME_MAX_LEN];

    snprintf(name, sizeof name, "%s%zu%s", w->pool->conf.name, w->no, suffix);
    pthread_setname_np(pthread_self(), name);
}

/* ---- the twin ------------------------------------------------------------ */

static void *
twin_main(void *arg)
{
    struct worker *w = arg;
    struct twin *t = &w->twin;

    thread_name(w, "t");
    for (wait_told(&t->told); t->run != NULL; wait_told(&t->told)) {
        t->run(t->arg);
        bell_ring(&t->ended);
    }
    return NULL;
}

/*
 * twin_start - have the worker's twin call run(arg).
 *
 * worker  the calling thread's own; its twin at rest, that is, twin_wait()
 *         has returned true since the last start
 *
 * Returns false, and nothing runs, when there is no thread to be had.
 * Thread: the worker.  Blocks: never; the first time a thread is made.
 */
bool
twin_start(struct worker *w, void (*run)(void *), void *arg)
{
    struct twin *t = &w->twin;

    assert(!t->busy);
    if (!t->started)
        t->started =
            pthread_create(&t->thread, &w->pool->attr, twin_main, w) == 0;
    if (!t->started)
        return false;
    t->run = run;
    t->arg = arg;
    t->busy = true;
    bell_ring(&t->told);
    return true;
}

/*
 * twin_wait - wait until what twin_start() began has returned.
 *
 * ms  the longest wait; -1: for ever; 0: only ask
 *
 * Returns true when nothing runs (any more): then all it wrote can be read
 * here.  False: it still runs.
 * Thread: the worker.  Blocks: up to ms.
 */
bool
twin_wait(struct worker *w, int ms)
{
    struct twin *t = &w->twin;

    if (t->busy)
        t->busy = !bell_wait(&t->ended, ms < 0 ? 0 : now_ms() + ms);
    return !t->busy;
}

static void
twin_leave(struct twin *t)
{
    if (!t->started)
        return;
    assert(!t->busy);
    t->run = NULL;
    bell_ring(&t->told);
    pthread_join(t->thread, NULL);
    t->started = false;
}

/* ---- the worker ---------------------------------------------------------- */

/* Needs pool->lock.  NULL: the queue is empty. */
static void *
queue_take(struct pool *p)
{
    void *job;

    if (p->n_queued == 0)
        return NULL;
    job = p->queue[p->first].job;
    p->first = (p->first + 1) % p->conf.n_queue;
    p->n_queued--;
    return job;
}

/* Idle for long, and one of many: leave?  False: it is one of the few, or has
 * just been taken for a job. */
static bool
worker_leaves(struct worker *w)
{
    struct pool *p = w->pool;
    struct worker **at = &p->warmest;
    int warmer = 0;

    pthread_mutex_lock(&p->lock);
    for (; *at != NULL && *at != w; at = &(*at)->colder)
        warmer++;
    if (*at == NULL || warmer < KEPT || p->leave) {
        pthread_mutex_unlock(&p->lock);
        return false;
    }
    *at = w->colder;
    w->colder = p->left;
    p->left = w;
    pthread_mutex_unlock(&p->lock);
    return true;
}

/* Sleep until told, and leave or rest the stack once it takes long. */
static void *
worker_told(struct worker *w)
{
    if (!bell_wait(&w->told, now_ms() + REST_MS)) {
        if (worker_leaves(w))
            return NULL;
        stack_rest();
        bell_wait(&w->told, 0);
    }
    return w->job;
}

/* The next job, waiting for it; NULL: the thread ends. */
static void *
worker_next(struct worker *w)
{
    struct pool *p = w->pool;
    void *job;

    pthread_mutex_lock(&p->lock);
    job = queue_take(p);
    if (job == NULL && !p->leave) {
        p->n_busy--;
        w->colder = p->warmest;
        p->warmest = w;
        pthread_mutex_unlock(&p->lock);
        return worker_told(w);
    }
    pthread_mutex_unlock(&p->lock);
    return job;
}

static void *
worker_main(void *arg)
{
    struct worker *w = arg;

    thread_name(w, "");
    for (void *job = w->job; job != NULL; job = worker_next(w))
        w->pool->conf.serve(job, w);
    twin_leave(&w->twin);
    return NULL;
}

/* One that has left, or has never been; NULL: all are there.  Needs
 * pool->lock. */
static struct worker *
worker_vacant(struct pool *p)
{
    struct worker *w = p->left;

    if (w == NULL && p->n_started < p->conf.n_workers) {
        w = &p->workers[p->n_started];
        w->pool = p;
        w->no = ++p->n_started;
        w->colder = NULL;
        p->left = w;
    }
    if (w != NULL && w->threaded) {
        pthread_join(w->thread, NULL); /* it has no more to do */
        w->threaded = false;
    }
    return w;
}

/* One more thread, with its first job.  Needs pool->lock; held while the
 * thread is made, which happens when there is more to do than for a while.
 * False: there is none to be had now; the next job asks again. */
static bool
worker_start(struct pool *p, void *job)
{
    struct worker *w = worker_vacant(p);

    if (w == NULL)
        return false;
    w->job = job;
    if (pthread_create(&w->thread, &p->attr, worker_main, w) != 0)
        return false;
    p->left = w->colder;
    w->colder = NULL;
    w->threaded = true;
    p->n_busy++;
    return true;
}

/* ---- the pool ------------------------------------------------------------ */

/*
 * pool_new - a pool without threads yet.
 *
 * conf  copied; n_workers >= 1, n_queue >= 1, stack_bytes of every worker and
 *       twin, at least PTHREAD_STACK_MIN; name a literal of up to 9 bytes
 *
 * Returns NULL with errno set: no memory, or no such stack.
 */
struct pool *
pool_new(const struct pool_conf *conf)
{
    struct pool *p = calloc(1, sizeof *p);
    int rc;

    assert(conf->n_workers >= 1 && conf->n_queue >= 1 && conf->serve != NULL);
    if (p == NULL)
        return NULL;
    p->conf = *conf;
    pthread_mutex_init(&p->lock, NULL);
    pthread_attr_init(&p->attr);
    p->workers = calloc(conf->n_workers, sizeof *p->workers);
    p->queue = calloc(conf->n_queue, sizeof *p->queue);
    rc = pthread_attr_setstacksize(&p->attr, conf->stack_bytes);
    if (p->workers != NULL && p->queue != NULL && rc == 0)
        return p;
    pool_free(p);
    errno = rc != 0 ? rc : ENOMEM;
    return NULL;
}

/*
 * pool_submit - have a worker call serve(job).
 *
 * job  not NULL; serve() may be through with it before this returns
 *
 * Returns false when nobody can: all are busy and the queue is full, or no
 * thread could be started at all.  Then the job stays the caller's.
 * Thread: any.  Blocks: never; may make a thread.
 */
bool
pool_submit(struct pool *p, void *job)
{
    struct worker *w = NULL;
    bool taken = true;

    pthread_mutex_lock(&p->lock);
    if ((w = p->warmest) != NULL) {
        p->warmest = w->colder;
        p->n_busy++;
    } else if (worker_start(p, job)) {
        /* it has the job already */
    } else if (p->n_busy > 0 && p->n_queued < p->conf.n_queue) {
        p->queue[(p->first + p->n_queued++) % p->conf.n_queue] =
            (struct job){job, now_ms()};
    } else {
        taken = false;
    }
    pthread_mutex_unlock(&p->lock);
    if (w != NULL) {
        w->job = job;
        bell_ring(&w->told);
    }
    return taken;
}

/*
 * pool_expire - take back the oldest job that waits for too long.
 *
 * waits_since  ms of now_ms(): jobs queued before this point
 *
 * Returns the job, the caller's again; NULL: none has waited so long.
 * Thread: any.  Blocks: never.
 */
void *
pool_expire(struct pool *p, int64_t waits_since)
{
    void *job = NULL;

    pthread_mutex_lock(&p->lock);
    if (p->n_queued > 0 && p->queue[p->first].at < waits_since)
        job = queue_take(p);
    pthread_mutex_unlock(&p->lock);
    return job;
}

/* pool_idle - how many workers have no job, started or not.  Any thread. */
size_t
pool_idle(struct pool *p)
{
    size_t n;

    pthread_mutex_lock(&p->lock);
    n = p->conf.n_workers - p->n_busy;
    pthread_mutex_unlock(&p->lock);
    return n;
}

/*
 * pool_free - end all threads and the pool.
 *
 * Nobody submits any more.  Jobs already queued are served first.  NULL: does
 * nothing.
 * Blocks: until the last job has been served.
 */
void
pool_free(struct pool *p)
{
    if (p == NULL)
        return;
    pthread_mutex_lock(&p->lock);
    p->leave = true;
    for (struct worker *w = p->warmest; w != NULL; w = w->colder) {
        w->job = NULL;
        bell_ring(&w->told);
    }
    pthread_mutex_unlock(&p->lock);
    for (size_t i = 0; i < p->n_started; i++)
        if (p->workers[i].threaded)
            pthread_join(p->workers[i].thread, NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_attr_destroy(&p->attr);
    free(p->workers);
    free(p->queue);
    free(p);
}
