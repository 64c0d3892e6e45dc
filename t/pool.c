/*
 * t/pool.c - workers are started late, woken warm and bounded; so are twins.
 *
 * Jobs here stop at a gate, so that the test decides who is busy.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proxy.h"
#include "t/tap.h"

enum {
    STACK = 256 * 1024,
    LIMIT_MS = 20000, /* nothing here takes so long unless it is broken */
};

struct gate { /* a job that says it came and waits until it may go */
    bool come, open;
    pthread_t thread;
    char name[16];
    struct worker *worker;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static int n_served, n_order;
static void *order[64];

static void
serve(void *job, struct worker *w)
{
    struct gate *g = job;

    pthread_mutex_lock(&lock);
    g->thread = pthread_self();
    g->worker = w;
    pthread_getname_np(pthread_self(), g->name, sizeof g->name);
    g->come = true;
    order[n_order++ % 64] = g;
    pthread_cond_broadcast(&moved);
    while (!g->open)
        pthread_cond_wait(&moved, &lock);
    n_served++;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
}

static bool
gate_came(struct gate *g)
{
    int64_t until = now_ms() + LIMIT_MS;
    bool in_time = true;

    pthread_mutex_lock(&lock);
    while (!g->come && in_time)
        in_time = cond_until(&moved, &lock, until);
    pthread_mutex_unlock(&lock);
    return in_time;
}

static void
gate_open(struct gate *g)
{
    pthread_mutex_lock(&lock);
    g->open = true;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
}

/* A worker is idle only some time after serve() has returned. */
static bool
pool_settles(struct pool *p, size_t n_idle)
{
    int64_t until = now_ms() + LIMIT_MS;

    while (pool_idle(p) != n_idle && now_ms() < until)
        sched_yield();
    return pool_idle(p) == n_idle;
}

static struct pool *
make(size_t n_workers, size_t n_queue)
{
    return pool_new(&(struct pool_conf){.name = "weir-c",
                                        .n_workers = n_workers,
                                        .n_queue = n_queue,
                                        .stack_bytes = STACK,
                                        .serve = serve});
}

static void
test_lazy_and_warm(void)
{
    struct gate a = {0}, b = {0}, next[8] = {0};
    struct pool *p = make(4, 4);

    is_int(pool_idle(p), 4, "workers not started yet are idle");
    ok(pool_submit(p, &a) && gate_came(&a), "the first job starts a worker");
    is_str(a.name, "weir-c1", "which has a name");
    ok(pool_submit(p, &b) && gate_came(&b), "a second one, as that is busy");
    is_str(b.name, "weir-c2", "its name");
    is_int(pool_idle(p), 2, "two of four are busy");
    gate_open(&a);
    pool_settles(p, 3);
    gate_open(&b);
    ok(pool_settles(p, 4), "both come back");
    for (int i = 0; i < 8; i++) {
        next[i].open = true;
        pool_submit(p, &next[i]);
        pool_settles(p, 4);
    }
    for (int i = 0; i < 8; i++)
        ok(pthread_equal(next[i].thread, b.thread),
           "job %d goes to the worker that went idle last", i);
    pool_free(p);
}

static void
test_queue(void)
{
    struct gate busy[2] = {0}, queued[3] = {0}, over = {0};
    struct pool *p = make(2, 3);
    int64_t before, after;

    n_order = 0;
    for (int i = 0; i < 2; i++)
        pool_submit(p, &busy[i]);
    for (int i = 0; i < 2; i++)
        gate_came(&busy[i]);
    before = now_ms();
    for (int i = 0; i < 3; i++)
        ok(pool_submit(p, &queued[i]), "job %d waits in the queue", i);
    after = now_ms();
    ok(!pool_submit(p, &over), "the queue is full: refused");
    ok(pool_expire(p, before) == NULL, "none has waited since before then");
    ok(pool_expire(p, after + 1) == &queued[0], "the oldest is given back");
    ok(pool_submit(p, &over), "which makes room");
    ok(!queued[1].come, "nobody was free until now");
    for (int i = 0; i < 3; i++)
        gate_open(&queued[i]);
    gate_open(&over);
    gate_open(&busy[0]);
    gate_open(&busy[1]);
    ok(pool_settles(p, 2), "all is served");
    ok(!queued[0].come, "the one given back is not");
    ok(order[2] == &queued[1] && queued[2].come && over.come,
       "the others are, in the order they came");
    ok(pool_expire(p, after + 1) == NULL, "and the queue is empty");
    pool_free(p);
}

static void
test_free_serves(void)
{
    struct gate busy = {0}, queued = {.open = true};
    struct pool *p = make(1, 1);

    pool_submit(p, &busy);
    gate_came(&busy);
    pool_submit(p, &queued);
    gate_open(&busy);
    pool_free(p);
    ok(queued.come, "what is queued is served before the pool ends");
}

/* ---- many at once -------------------------------------------------------- */

static atomic_int n_quick, n_refused;

static void
serve_quick(void *job, struct worker *w)
{
    (void)w;
    (*(atomic_int *)job)++;
    n_quick++;
}

static void *
submit_many(void *arg)
{
    struct pool *p = arg;
    static atomic_int jobs[2000];

    for (int i = 0; i < 2000; i++)
        while (!pool_submit(p, &jobs[i])) {
            n_refused++;
            sched_yield();
        }
    return NULL;
}

static void
test_many(void)
{
    struct pool_conf conf = {.name = "weir-c",
                             .n_workers = 3,
                             .n_queue = 5,
                             .stack_bytes = STACK,
                             .serve = serve_quick};
    struct pool *p = pool_new(&conf);
    pthread_t threads[4];

    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, submit_many, p);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    pool_free(p);
    is_int(n_quick, 4 * 2000, "four submitters: each job is served once");
    diag("%d times the queue was full", n_refused);
}

/* ---- no thread to be had ---------------------------------------------------
 */

/* In a process of its own, for the limit stays.  Exit status: what failed. */
static int
starve(void)
{
    struct rlimit none = {1, 1};
    struct gate first = {0}, second = {.open = true};
    struct pool *p = make(2, 1);
    bool served;

    /* The limit does not hold for root. */
    if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0)
        return 1;
    if (!pool_submit(p, &first) || !gate_came(&first))
        return 2;
    if (setrlimit(RLIMIT_NPROC, &none) != 0)
        return 3;
    if (!pool_submit(p, &second)) /* no thread, but somebody will be free */
        return 4;
    if (twin_start(first.worker, (void (*)(void *))gate_open, &second))
        return 5;
    if (second.come)
        return 6;
    gate_open(&first);
    served = gate_came(&second) && pthread_equal(first.thread, second.thread);
    pool_free(p);
    if (!served)
        return 7;
    p = make(2, 1);
    if (pool_submit(p, &second)) /* nobody will ever come */
        return 8;
    pool_free(p);
    return 0;
}

static void
test_starved(void)
{
    int status = -1;
    pid_t pid = fork();

    if (pid == 0)
        _exit(starve());
    ok(pid > 0 && waitpid(pid, &status, 0) == pid, "a process without threads");
    is_int(status, 0, "a job waits if there is a worker, is refused if none");
}

static void
test_bad_stack(void)
{
    struct pool_conf conf = {.name = "weir-c",
                             .n_workers = 1,
                             .n_queue = 1,
                             .stack_bytes = 1,
                             .serve = serve};

    errno = 0;
    ok(pool_new(&conf) == NULL && errno == EINVAL, "a stack of one byte");
}

/* ---- bells --------------------------------------------------------------- */

enum { RINGS = 3000 };

struct ringer {
    struct bell bell, heard;
};

static void *
ring(void *arg)
{
    struct ringer *r = arg;

    for (int i = 0; i < RINGS; i++) {
        if (i % 3 == 0) /* about when the other one's patience ends */
            poll(NULL, 0, 1);
        bell_ring(&r->bell);
        bell_wait(&r->heard, 0);
    }
    return NULL;
}

static void
test_bell(void)
{
    struct ringer r = {0};
    int n = 0, in_vain = 0;
    pthread_t thread;

    ok(!bell_wait(&r.bell, now_ms() + 10), "a bell that nobody rings");
    bell_ring(&r.bell);
    bell_ring(&r.bell);
    ok(bell_wait(&r.bell, 0), "one that was rung, twice");
    ok(!bell_wait(&r.bell, 1), "is heard once; the time may be over before");
    pthread_create(&thread, NULL, ring, &r);
    while (n < RINGS) {
        if (bell_wait(&r.bell, now_ms() + 1)) {
            n++;
            bell_ring(&r.heard);
        } else {
            in_vain++;
        }
    }
    pthread_join(thread, NULL);
    ok(!bell_wait(&r.bell, 1), "each ring is heard once, %d waits in vain",
       in_vain);
}

/* ---- twins -----------------------------------------------------------------
 */

struct twin_seen {
    char name[16];
    int n;
    pthread_t by[3];
};

static void
twin_note(void *arg)
{
    struct twin_seen *seen = arg;

    seen->by[seen->n++ % 3] = pthread_self();
    pthread_getname_np(pthread_self(), seen->name, sizeof seen->name);
}

static void
twin_at_gate(void *arg)
{
    struct gate *g = arg;

    pthread_mutex_lock(&lock);
    g->come = true;
    pthread_cond_broadcast(&moved);
    while (!g->open)
        pthread_cond_wait(&moved, &lock);
    pthread_mutex_unlock(&lock);
}

static void
serve_twin(void *job, struct worker *w)
{
    struct twin_seen seen = {.n = 0};
    struct gate slow = {0};
    int rounds = 20000, early = 0;

    (void)job;
    ok(twin_wait(w, 0), "a twin that never ran is at rest");
    for (int i = 0; i < 3; i++) {
        ok(twin_start(w, twin_note, &seen), "start %d", i);
        ok(twin_wait(w, -1), "it ends");
    }
    is_int(seen.n, 3, "it ran each time");
    is_str(seen.name, "weir-c1t", "in a thread with a name");
    ok(pthread_equal(seen.by[0], seen.by[2]) &&
           !pthread_equal(seen.by[0], pthread_self()),
       "which is kept, and not ours");
    twin_start(w, twin_at_gate, &slow);
    gate_came(&slow);
    ok(!twin_wait(w, 0), "it runs: asked");
    ok(!twin_wait(w, 10), "it runs: waited for a while");
    gate_open(&slow);
    ok(twin_wait(w, LIMIT_MS), "it has ended in time");
    for (int i = 0; i < rounds; i++) {
        if (!twin_start(w, twin_note, &seen))
            early++;
        if (i % 2 == 0) /* with and without a wait before its end */
            sched_yield();
        if (!twin_wait(w, i % 3 == 0 ? -1 : LIMIT_MS))
            early++;
    }
    is_int(early, 0, "every hand-over came back");
    is_int(seen.n, 3 + rounds, "and ran once");
}

static void
test_twin(void)
{
    struct pool_conf conf = {.name = "weir-c",
                             .n_workers = 1,
                             .n_queue = 1,
                             .stack_bytes = STACK,
                             .serve = serve_twin};
    struct pool *p = pool_new(&conf);
    int job;

    ok(pool_submit(p, &job), "a worker for the twin");
    ok(pool_settles(p, 1), "comes back");
    pool_free(p);
}

/* ---- a stack at rest -------------------------------------------------------
 */

static __attribute__((noinline)) int
reach_deep(int seed)
{
    volatile char deep[STACK / 4]; /* ThreadSanitizer takes half */

    for (size_t i = 0; i < sizeof deep; i += 512)
        deep[i] = (char)seed;
    return deep[0] + deep[sizeof deep - 512];
}

static void
serve_rest(void *job, struct worker *w)
{
    int here = 1234;

    (void)w;
    *(int *)job = reach_deep(1);
    stack_rest();
    ok(here == 1234, "what is in use stays when the stack rests");
    is_int(reach_deep(2), 4, "and it grows again");
}

static void
test_rest(void)
{
    struct pool_conf conf = {.name = "weir-c",
                             .n_workers = 1,
                             .n_queue = 1,
                             .stack_bytes = STACK,
                             .serve = serve_rest};
    struct pool *p = pool_new(&conf);
    int job;

    ok(pool_submit(p, &job), "a worker with a deep stack");
    pool_settles(p, 1);
    pool_free(p);
    is_int(job, 2, "it reached down");
}

/* ---- a burst that is over -------------------------------------------------
 */

enum { BURST = 20, KEPT = 8 };

static int
n_threads(void)
{
    DIR *d = opendir("/proc/self/task");
    int n = -2; /* . and .. */

    while (d != NULL && readdir(d) != NULL)
        n++;
    if (d != NULL)
        closedir(d);
    return n;
}

static void
threads_settle(int n)
{
    int64_t until = now_ms() + LIMIT_MS;

    while (n_threads() > n && now_ms() < until)
        (void)poll(NULL, 0, 20);
}

static void
burst(struct pool *p, const char *when)
{
    struct gate g[BURST] = {0};
    int came = 0;

    for (int i = 0; i < BURST; i++)
        came += pool_submit(p, &g[i]) && gate_came(&g[i]);
    is_int(came, BURST, "%s: each job has its worker", when);
    is_int(pool_idle(p), 0, "  and all are busy");
    for (int i = 0; i < BURST; i++)
        gate_open(&g[i]);
    ok(pool_settles(p, BURST), "  and come back");
}

static void
test_burst(void)
{
    struct pool *p = make(BURST, 4);
    int before = n_threads();

    burst(p, "a burst");
    threads_settle(before + KEPT);
    is_int(n_threads() - before, KEPT, "after it most of the threads leave");
    burst(p, "another");
    pool_free(p);
    threads_settle(before); /* one that was joined is seen for a moment */
    is_int(n_threads(), before, "and none is left at the end");
}

int
main(void)
{
    alarm(120);     /* a lost wake-up shall fail, not hang */
    test_starved(); /* first: it forks while there is one thread */
    test_lazy_and_warm();
    test_queue();
    test_free_serves();
    test_many();
    test_bad_stack();
    test_bell();
    test_twin();
    test_rest();
    test_burst();
    pool_free(NULL);
    ok(true, "no pool to free is fine");
    return done_testing();
}
