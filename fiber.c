/*
 * fiber.c - many blocking jobs on the one thread of a session's owner.
 *
 * A thread for each stream costs two switches of threads a request, which is
 * more than all else that a request costs.  So an exchange whose request is
 * complete runs on a fiber: a stack of its own, on the owner's thread.  It is
 * written as if it blocked; where it would, it goes to sleep here and the owner
 * goes on.  Three places know: waiting for a socket (end.c), waiting for a
 * stream (stream.c), and what blocks by other means, which a worker does
 * meanwhile (fiber_call).
 *
 * Owns     the stacks.
 * Threads  the owner runs all his fibers; fiber_wake() from any.
 * Blocks   in fibers_poll(), which is the owner's poll(2).
 */
/* A jump to another stack is what we are here for; <setjmp.h> would take it for
 * a mistake. */
#undef _FORTIFY_SOURCE
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "proxy.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum {
    GUARD = 4096,   /* bytes below a stack that nobody may touch */
    LOOK_MS = 1000, /* fiber_call() looks so often; it is woken before */
    KEPT = 256,     /* stacks that wait for the next fiber */
};

struct place { /* where a stack goes on */
    ucontext_t context;
    jmp_buf jump;
    bool jumps; /* by jump; else context is where it begins */
};

struct fiber {
    struct fibers *all;
    struct place at;
    void (*run)(void *);
    void *arg;
    char *memory; /* guard and stack */
    bool ended;
    /* while it sleeps */
    int fd; /* -1: it waits for no socket */
    short events;
    int64_t until;
    TAILQ_ENTRY(fiber) sleeping;
    struct fiber *next_free;
    void *tsan;
    /* needs all->lock */
    bool woken;
    TAILQ_ENTRY(fiber) waking;
};

struct sleeper {
    struct fiber *fiber;
};

static _Thread_local struct fiber *here;

/* Is this code running on a fiber? */
bool
fiber_here(void)
{
    return here != NULL;
}

/* The fiber that runs; NULL: a thread. */
struct fiber *
fiber_self(void)
{
    return here;
}

/* ---- switching ------------------------------------------------------------
 */

/* ThreadSanitizer takes each stack for a thread, and has to be told. */
static void
tsan_switch(void *to)
{
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(to, 0);
#else
    (void)to;
#endif
}

static void
tsan_begin(struct fibers *fs, struct fiber *f)
{
#if defined(__SANITIZE_THREAD__)
    fs->tsan = __tsan_get_current_fiber();
    f->tsan = __tsan_create_fiber(0);
#else
    (void)fs;
    (void)f;
#endif
}

static void
tsan_end(struct fiber *f)
{
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(f->tsan);
#else
    (void)f;
#endif
}

/* Leave one stack for another, and return when somebody comes back.  A context
 * costs a system call, for a signal mask that is always the same; so it is used
 * to get onto a stack for the first time, and by sanitizers, which do not know
 * of the jumps. */
static void
change(struct place *from, struct place *to)
{
    if (SANITIZED) {
        swapcontext(&from->context, &to->context);
        return;
    }
    from->jumps = true;
    if (_setjmp(from->jump) != 0)
        return;
    if (to->jumps)
        _longjmp(to->jump, 1);
    setcontext(&to->context);
}

static void
to_owner(struct fiber *f)
{
    tsan_switch(f->all->tsan);
    change(&f->at, f->all->owner);
}

/* Where a fiber begins.  It never returns: nobody is below it.  Its stack goes
 * on from here with the next job. */
static void
fiber_main(void)
{
    struct fiber *f = here;

    for (;;) {
        f->run(f->arg);
        f->ended = true;
        to_owner(f);
    }
}

static void
stack_free(struct fibers *fs, struct fiber *f)
{
    munmap(f->memory, fs->stack_bytes + GUARD);
    free(f);
}

/* Nothing that came so far needs to wake it any more. */
static void
forget_wake(struct fibers *fs, struct fiber *f)
{
    pthread_mutex_lock(&fs->lock);
    if (f->woken)
        TAILQ_REMOVE(&fs->woken, f, waking);
    f->woken = false;
    pthread_mutex_unlock(&fs->lock);
}

/* Go on with a fiber until it sleeps or ends.  The owner's. */
static void
go_on(struct fibers *fs, struct fiber *f)
{
    here = f;
    tsan_switch(f->tsan);
    change(fs->owner, &f->at);
    here = NULL;
    if (!f->ended)
        return;
    forget_wake(fs, f); /* it was told what it had seen already */
    tsan_end(f);
    fs->n--;
    if (fs->n_free >= KEPT) {
        stack_free(fs, f);
        return;
    }
    f->next_free = fs->free;
    fs->free = f;
    fs->n_free++;
}

/* A stack, kept or new; NULL: no memory. */
static struct fiber *
stack_take(struct fibers *fs)
{
    struct fiber *f = fs->free;

    if (f != NULL) {
        fs->free = f->next_free;
        fs->n_free--;
        return f;
    }
    if ((f = calloc(1, sizeof *f)) == NULL)
        return NULL;
    f->memory = mmap(NULL, fs->stack_bytes + GUARD, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->memory == MAP_FAILED || mprotect(f->memory, GUARD, PROT_NONE) != 0) {
        if (f->memory != MAP_FAILED)
            munmap(f->memory, fs->stack_bytes + GUARD);
        free(f);
        return NULL;
    }
    f->all = fs;
    return f;
}

/* It shall begin at the top of its stack, unless it has begun before. */
static void
set_out(struct fiber *f)
{
    ucontext_t *c = &f->at.context;

    if (f->at.jumps)
        return;
    getcontext(c);
    c->uc_stack.ss_sp = f->memory + GUARD;
    c->uc_stack.ss_size = f->all->stack_bytes;
    c->uc_link = NULL;
    makecontext(c, fiber_main, 0);
}

/*
 * fibers_start - run(arg) on a fiber, at once and until it first sleeps.
 *
 * Returns false, and nothing ran: out of memory.  Thread: the owner.
 */
bool
fibers_start(struct fibers *fs, void (*run)(void *), void *arg)
{
    struct fiber *f = stack_take(fs);

    assert(here == NULL);
    if (f == NULL)
        return false;
    f->run = run;
    f->arg = arg;
    f->ended = false;
    set_out(f);
    tsan_begin(fs, f);
    fs->n++;
    go_on(fs, f);
    return true;
}

/* ---- sleeping and waking ----------------------------------------------------
 */

/*
 * fiber_sleep - let the owner go on until something wakes this fiber.
 *
 * fd, events  as for poll(2); fd -1: only fiber_wake() does
 * ms          not for longer
 *
 * May come back early: ask again for what is waited for.
 * Thread: the fiber, with no lock held.
 */
void
fiber_sleep(int fd, short events, int ms)
{
    struct fiber *f = here;
    struct fibers *fs = f->all;

    f->fd = fd;
    f->events = events;
    f->until = now_ms() + ms;
    if (f->until < fs->until)
        fs->until = f->until;
    if (fd >= 0)
        fs->n_fds++;
    TAILQ_INSERT_TAIL(&fs->sleeping, f, sleeping);
    to_owner(f);
    TAILQ_REMOVE(&fs->sleeping, f, sleeping);
    if (fd >= 0)
        fs->n_fds--;
}

/* Needs fs->lock. */
static void
wake_locked(struct fibers *fs, struct fiber *f)
{
    uint64_t one = 1;
    ssize_t put;

    if (f->woken)
        return;
    f->woken = true;
    TAILQ_INSERT_TAIL(&fs->woken, f, waking);
    if (!fs->asleep)
        return;
    fs->asleep = false;
    put = write(fs->wake_fd, &one, sizeof one);
    assert(put == (ssize_t)sizeof one || errno == EAGAIN);
    (void)put;
}

/* It shall look again.  Any thread that knows that it has not ended. */
void
fiber_wake(struct fiber *f)
{
    struct fibers *fs = f->all;

    pthread_mutex_lock(&fs->lock);
    wake_locked(fs, f);
    pthread_mutex_unlock(&fs->lock);
}

struct blocking { /* on the fiber's stack, until `done` */
    struct task task;
    void (*run)(void *);
    void *arg;
    struct fiber *fiber;
    bool ran;
    atomic_bool done;
};

static void
blocking_end(struct blocking *b)
{
    struct fibers *fs = b->fiber->all;

    /* With the lock: once `done` is seen, b and its fiber may be gone. */
    pthread_mutex_lock(&fs->lock);
    wake_locked(fs, b->fiber);
    atomic_store(&b->done, true);
    pthread_mutex_unlock(&fs->lock);
}

/* A worker's: what would have blocked the owner. */
static void
blocking_run(struct task *task, struct worker *w)
{
    struct blocking *b = (struct blocking *)task;

    (void)w;
    b->run(b->arg);
    b->ran = true;
    blocking_end(b);
}

static void
blocking_refuse(struct task *task)
{
    blocking_end((struct blocking *)task);
}

/*
 * fiber_call - have a worker do what blocks, and sleep meanwhile.
 *
 * Returns false, and nothing ran: no worker is free.  Thread: a fiber.
 */
bool
fiber_call(struct pool *p, void (*run)(void *), void *arg)
{
    struct blocking b = {.task = {blocking_run, blocking_refuse},
                         .run = run,
                         .arg = arg,
                         .fiber = here};

    if (!pool_submit(p, &b))
        return false;
    while (!atomic_load(&b.done))
        fiber_sleep(-1, 0, LOOK_MS);
    /* Whoever set it may still hold the lock. */
    pthread_mutex_lock(&b.fiber->all->lock);
    pthread_mutex_unlock(&b.fiber->all->lock);
    return b.ran;
}

/* ---- the owner ----------------------------------------------------------- */

/* False: out of descriptors or memory. */
bool
fibers_init(struct fibers *fs, size_t stack_bytes)
{
    memset(fs, 0, sizeof *fs);
    fs->stack_bytes = stack_bytes;
    fs->until = INT64_MAX;
    TAILQ_INIT(&fs->sleeping);
    TAILQ_INIT(&fs->woken);
    fs->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fs->wake_fd < 0)
        return false;
    if ((fs->owner = calloc(1, sizeof(struct place))) == NULL) {
        close(fs->wake_fd);
        fs->wake_fd = -1;
        return false;
    }
    pthread_mutex_init(&fs->lock, NULL);
    return true;
}

/* Give back what waits for further fibers. */
void
fibers_rest(struct fibers *fs)
{
    while (fs->free != NULL) {
        struct fiber *f = fs->free;

        fs->free = f->next_free;
        stack_free(fs, f);
    }
    fs->n_free = 0;
    free(fs->polls);
    free(fs->who);
    fs->polls = NULL;
    fs->who = NULL;
    fs->cap = 0;
}

/* No fiber lives any more. */
void
fibers_clear(struct fibers *fs)
{
    assert(fs->n == 0);
    if (fs->wake_fd < 0)
        return;
    fibers_rest(fs);
    free(fs->owner);
    close(fs->wake_fd);
    fs->wake_fd = -1;
    pthread_mutex_destroy(&fs->lock);
}

static struct fiber *
take_woken(struct fibers *fs)
{
    struct fiber *f;

    pthread_mutex_lock(&fs->lock);
    if ((f = TAILQ_FIRST(&fs->woken)) != NULL) {
        TAILQ_REMOVE(&fs->woken, f, waking);
        f->woken = false;
    }
    pthread_mutex_unlock(&fs->lock);
    return f;
}

/* Whose time is over?  Looked at only when the first can be. */
static void
wake_late(struct fibers *fs)
{
    int64_t now = now_ms();
    struct fiber *f;

    if (now < fs->until)
        return;
    fs->until = INT64_MAX;
    for (f = TAILQ_FIRST(&fs->sleeping); f != NULL;
         f = TAILQ_NEXT(f, sleeping)) {
        if (f->until <= now)
            fiber_wake(f);
        else if (f->until < fs->until)
            fs->until = f->until;
    }
}

/* Go on with all who were woken.  True: there were any. */
bool
fibers_run(struct fibers *fs)
{
    bool any = false;
    struct fiber *f;

    if (fs->n == 0)
        return false;
    wake_late(fs);
    for (size_t left = fs->n; left > 0 && (f = take_woken(fs)) != NULL;
         left--) {
        go_on(fs, f);
        any = true;
    }
    return any;
}

/* Room for what poll(2) is asked.  False: no memory. */
static bool
polls_room(struct fibers *fs, size_t n)
{
    struct pollfd *polls;
    struct sleeper *who;

    if (n <= fs->cap)
        return true;
    n *= 2;
    if ((polls = realloc(fs->polls, n * sizeof *polls)) == NULL)
        return false;
    fs->polls = polls;
    if ((who = realloc(fs->who, n * sizeof *who)) == NULL)
        return false;
    fs->who = who;
    fs->cap = n;
    return true;
}

/*
 * fibers_poll_us - poll(2) for the owner, and for the sockets of his fibers.
 *
 * own, n  what the owner waits for
 * us      the longest wait, in µs; shorter if a fiber's time is over before
 *
 * Fibers whose sockets are ready count as woken.
 */
void
fibers_poll_us(struct fibers *fs, struct pollfd *own, size_t n, int64_t us)
{
    struct timespec wait = {0, 0};
    struct fiber *f;
    size_t total = n;
    uint64_t count;
    int64_t left = fs->until == INT64_MAX ? us : fs->until * 1000 - now_us();
    bool quiet;

    if (left < us)
        us = left > 0 ? left : 0;
    pthread_mutex_lock(&fs->lock);
    quiet = TAILQ_EMPTY(&fs->woken);
    fs->asleep = quiet;
    pthread_mutex_unlock(&fs->lock);
    for (size_t i = 0; i < n; i++)
        own[i].revents = own[i].events; /* for all we know */
    if ((!quiet && fs->n_fds == 0) || !polls_room(fs, n + 1 + fs->n_fds))
        return; /* the owner will be back */
    for (size_t i = 0; i < n; i++)
        fs->polls[i] =
            (struct pollfd){.fd = own[i].fd, .events = own[i].events};
    fs->polls[total++] = (struct pollfd){.fd = fs->wake_fd, .events = POLLIN};
    if (fs->n_fds > 0)
        for (f = TAILQ_FIRST(&fs->sleeping); f != NULL;
             f = TAILQ_NEXT(f, sleeping)) {
            if (f->fd < 0)
                continue;
            fs->who[total].fiber = f;
            fs->polls[total++] =
                (struct pollfd){.fd = f->fd, .events = f->events};
        }
    if (quiet) {
        wait.tv_sec = us / 1000000;
        wait.tv_nsec = us % 1000000 * 1000;
    }
    (void)ppoll(fs->polls, total, &wait, NULL);
    for (size_t i = 0; i < n; i++)
        own[i].revents = fs->polls[i].revents;
    pthread_mutex_lock(&fs->lock);
    if (fs->polls[n].revents != 0 &&
        read(fs->wake_fd, &count, sizeof count) < 0)
        assert(errno == EAGAIN);
    fs->asleep = false;
    for (size_t i = n + 1; i < total; i++)
        if (fs->polls[i].revents != 0)
            wake_locked(fs, fs->who[i].fiber);
    pthread_mutex_unlock(&fs->lock);
}

/* The same for ms milliseconds. */
void
fibers_poll(struct fibers *fs, struct pollfd *own, size_t n, int ms)
{
    fibers_poll_us(fs, own, n, (int64_t)ms * 1000);
}
