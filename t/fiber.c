/*
 * t/fiber.c - fibers that sleep for sockets, for each other and for workers,
 * beside an owner who polls for them.
 */
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proxy.h"
#include "tap.h"

enum { MANY = 500, LIMIT_MS = 20000 };

static struct fibers fibers;
static struct pool *pool;

struct one {
    int fd;
    struct fiber *self;
    int steps;
    bool told, called;
    int64_t slept_ms;
    char got[8];
};

static void
owner_runs(int *left)
{
    int64_t until = now_ms() + LIMIT_MS;

    while (*left > 0 && now_ms() < until) {
        fibers_poll(&fibers, NULL, 0, 100);
        fibers_run(&fibers);
    }
    ok(*left == 0, "all fibers have ended");
}

static int n_left;

/* Two bytes from a socket, each waited for. */
static void
reads(void *arg)
{
    struct one *o = arg;

    while (o->steps < 2) {
        ssize_t n = recv(o->fd, o->got + o->steps, 1, MSG_DONTWAIT);

        if (n == 1)
            o->steps++;
        else
            fiber_sleep(o->fd, POLLIN, LIMIT_MS);
    }
    n_left--;
}

static void
test_sockets(void)
{
    struct one *o = calloc(MANY, sizeof *o);
    int fds[MANY][2], good = 0;

    n_left = MANY;
    for (int i = 0; i < MANY; i++) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds[i]) != 0)
            break;
        o[i].fd = fds[i][0];
        good += fibers_start(&fibers, reads, &o[i]);
    }
    is_int(good, MANY, "%d fibers wait for sockets", MANY);
    ok(!fiber_here(), "the owner is none");
    for (int round = 0; round < 2; round++)
        for (int i = MANY - 1; i >= 0; i--)
            if (write(fds[i][1], &"ab"[round], 1) != 1)
                good--;
    owner_runs(&n_left);
    for (int i = 0; i < MANY; i++) {
        good -= strcmp(o[i].got, "ab") != 0;
        close(fds[i][0]);
        close(fds[i][1]);
    }
    is_int(good, MANY, "each got its bytes");
    free(o);
}

static void
waits_for_clock(void *arg)
{
    struct one *o = arg;
    int64_t from = now_ms();

    while (now_ms() - from < 50)
        fiber_sleep(-1, 0, 50);
    o->slept_ms = now_ms() - from;
    n_left--;
}

static void
waits_for_word(void *arg)
{
    struct one *o = arg;

    o->self = fiber_self();
    while (!__atomic_load_n(&o->told, __ATOMIC_ACQUIRE))
        fiber_sleep(-1, 0, LIMIT_MS);
    n_left--;
}

static void *
tells(void *arg)
{
    struct one *o = arg;

    __atomic_store_n(&o->told, true, __ATOMIC_RELEASE);
    fiber_wake(o->self);
    return NULL;
}

static void
test_waking(void)
{
    struct one clock = {0}, word = {0};
    pthread_t thread;

    n_left = 2;
    ok(fibers_start(&fibers, waits_for_clock, &clock), "one for the clock");
    ok(fibers_start(&fibers, waits_for_word, &word), "one for a word");
    pthread_create(&thread, NULL, tells, &word);
    owner_runs(&n_left);
    pthread_join(thread, NULL);
    ok(clock.slept_ms >= 50 && clock.slept_ms < LIMIT_MS, "in time");
    ok(word.told, "told by another thread");
}

static void
blocks(void *arg)
{
    struct one *o = arg;

    o->called = !fiber_here();
}

static void
calls(void *arg)
{
    struct one *o = arg;

    o->told = fiber_call(pool, blocks, o);
    n_left--;
}

static void
test_calls(void)
{
    struct one o[20] = {{0}};
    int good = 0;

    n_left = 20;
    for (int i = 0; i < 20; i++)
        (void)fibers_start(&fibers, calls, &o[i]);
    owner_runs(&n_left);
    for (int i = 0; i < 20; i++)
        good += o[i].told && o[i].called;
    is_int(good, 20, "workers did what blocks");
}

int
main(void)
{
    struct pool_conf conf = {.name = "weir-t",
                             .n_workers = 3,
                             .n_queue = 100,
                             .stack_bytes = 1 << 18,
                             .serve = serve_job};

    pool = pool_new(&conf);
    ok(pool != NULL && fibers_init(&fibers, 1 << 18), "an owner's fibers");
    test_sockets();
    test_waking();
    test_calls();
    is_int((long long)fibers.n, 0, "none is left");
    fibers_clear(&fibers);
    pool_free(pool);
    return done_testing();
}
