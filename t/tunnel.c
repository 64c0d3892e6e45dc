/*
 * t/tunnel.c - bytes both ways, until both directions have ended.
 */
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>

#include "proxy.h"
#include "t/net.h"
#include "t/tap.h"
#include "t/tls.h"

enum { LIMIT_MS = NET_LIMIT_S * 1000 };

static struct weir weir;
static struct pool *pool;
static gnutls_certificate_credentials_t shown, blind;

struct trip { /* one tunnel */
    struct end client, server;
    struct http *http; /* the server, if it is a stream */
    int idle_ms, half_closed_ms;
    struct tunnel_result r;
    sem_t done;
    int left, right; /* the peers: a client's socket, an origin's */
};

/* As a worker of conn.c does: run it, then close both. */
static void
serve(void *job, struct worker *w)
{
    struct trip *t = job;
    struct tunnel_side client = {.end = &t->client}, server = {0};

    if (t->http != NULL)
        server.http = t->http;
    else
        server.end = &t->server;
    tunnel_run(w, &weir, client, server, t->idle_ms, t->half_closed_ms, &t->r);
    end_clear(&t->client);
    end_clear(&t->server);
    sem_post(&t->done);
}

static void
trip_init(struct trip *t)
{
    int fds[2];

    memset(t, 0, sizeof *t);
    t->idle_ms = t->half_closed_ms = LIMIT_MS;
    sem_init(&t->done, 0, 0);
    net_pair(fds);
    t->left = fds[0];
    end_init(&t->client, fds[1], SIDE_CLIENT, LIMIT_MS);
    net_pair(fds);
    t->right = fds[0];
    end_init(&t->server, fds[1], SIDE_ORIGIN, LIMIT_MS);
}

static void
trip_start(struct trip *t)
{
    NEED(pool_submit(pool, t));
}

static void
trip_wait(struct trip *t)
{
    while (sem_wait(&t->done) != 0)
        NEED(errno == EINTR);
}

static void
trip_clear(struct trip *t)
{
    if (t->left >= 0)
        close(t->left);
    if (t->right >= 0)
        close(t->right);
    sem_destroy(&t->done);
}

/* ---- bulk ---------------------------------------------------------------- */

/* The bytes of a direction: each place has its own. */
static char
byte_at(size_t i, unsigned seed)
{
    return (char)((i ^ i >> 8 ^ i >> 16) * 31 + seed);
}

struct flow { /* one direction, at one peer */
    int fd;
    struct end *end; /* instead of fd: a peer that speaks TLS */
    unsigned seed;
    size_t from, until;
    bool good;
};

static void *
flow_send(void *arg)
{
    struct flow *f = arg;
    static _Thread_local char buf[50000];
    struct fail fail = {0};

    f->good = true;
    for (size_t at = f->from; at < f->until && f->good;) {
        size_t n = f->until - at < sizeof buf ? f->until - at : sizeof buf;
        struct iovec iov = {buf, n};

        for (size_t i = 0; i < n; i++)
            buf[i] = byte_at(at + i, f->seed);
        if (f->end != NULL)
            f->good = end_write(f->end, &iov, 1, &fail) == WHY_NONE;
        else
            net_put(f->fd, buf, n);
        at += n;
    }
    return NULL;
}

static void *
flow_check(void *arg)
{
    struct flow *f = arg;
    static _Thread_local char buf[70000];
    struct fail fail = {0};

    f->good = true;
    for (size_t at = f->from; at < f->until && f->good;) {
        size_t want = f->until - at < sizeof buf ? f->until - at : sizeof buf;
        size_t n = 0;
        ssize_t got;

        if (f->end == NULL && (got = recv(f->fd, buf, want, 0)) > 0)
            n = (size_t)got;
        else if (f->end != NULL &&
                 end_read(f->end, buf, want, &n, &fail) != WHY_NONE)
            n = 0;
        f->good = n > 0;
        for (size_t i = 0; i < n; i++)
            f->good = f->good && buf[i] == byte_at(at + i, f->seed);
        at += n;
    }
    return NULL;
}

/* Both directions at once, each place checked. */
static bool
bulk(struct trip *t, struct end *left, size_t from, size_t until)
{
    struct flow flows[4] = {
        {t->left, left, 1, from, until, false},
        {t->right, NULL, 1, from, until, false},
        {t->right, NULL, 2, from, until, false},
        {t->left, left, 2, from, until, false},
    };
    pthread_t threads[4];
    bool good = true;

    for (size_t i = 0; i < 4; i++)
        threads[i] = net_thread(i % 2 == 0 ? flow_send : flow_check, &flows[i]);
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        good = good && flows[i].good;
    }
    return good;
}

/* One byte each way, n times. */
static bool
ping_pong(struct trip *t, int n)
{
    bool good = true;

    while (good && n-- > 0) {
        net_say(t->left, "?");
        good = net_hear(t->right, "?");
        net_say(t->right, "!");
        good = good && net_hear(t->left, "!");
    }
    return good;
}

enum { MUCH = 3 << 20 };

static void
switching(void)
{
    struct trip t;
    int error;

    trip_init(&t);
    trip_start(&t);
    ok(ping_pong(&t, 10), "a chat");
    ok(bulk(&t, NULL, 0, MUCH), "bulk both ways at once: copy, then splice");
    ok(ping_pong(&t, 200), "a chat again: back to copying");
    ok(bulk(&t, NULL, MUCH, 2 * MUCH), "and bulk again");
    shutdown(t.left, SHUT_WR);
    shutdown(t.right, SHUT_WR);
    is_str(net_rest(t.left, &error), "", "nothing more comes down");
    is_str(net_rest(t.right, &error), "", "nor up");
    trip_wait(&t);
    is_int(t.r.up, 2 * MUCH + 210, "bytes up");
    is_int(t.r.down, 2 * MUCH + 210, "bytes down");
    is_int(t.r.fail.why, WHY_NONE, "it went through");
    trip_clear(&t);
}

/* ---- ends ---------------------------------------------------------------- */

static void
half_close(bool client_first)
{
    struct trip t;
    int first, second;
    const char *who = client_first ? "client" : "origin";

    trip_init(&t);
    first = client_first ? t.left : t.right;
    second = client_first ? t.right : t.left;
    trip_start(&t);
    net_say(first, "the last word");
    shutdown(first, SHUT_WR);
    ok(net_hear(second, "the last word"), "the %s finishes", who);
    ok(net_ended(second), "  its end is passed on");
    net_say(second, "and yet");
    ok(net_hear(first, "and yet"), "  the other direction goes on");
    shutdown(second, SHUT_WR);
    ok(net_ended(first), "  to its own end");
    trip_wait(&t);
    is_int(t.r.fail.why, WHY_NONE, "  it went through");
    is_int(t.r.ended_by, client_first ? SIDE_CLIENT : SIDE_ORIGIN,
           "  ended by the %s", who);
    is_int(t.r.up, client_first ? 13 : 7, "  bytes up");
    is_int(t.r.down, client_first ? 7 : 13, "  bytes down");
    trip_clear(&t);
}

static void
reset(bool by_client)
{
    struct trip t;
    int error, *first, *second;

    trip_init(&t);
    first = by_client ? &t.left : &t.right;
    second = by_client ? &t.right : &t.left;
    trip_start(&t);
    ok(ping_pong(&t, 1), "a tunnel that the %s resets",
       by_client ? "client" : "origin");
    net_reset(*first);
    *first = -1;
    trip_wait(&t);
    is_str(net_rest(*second, &error), "", "  nothing more comes");
    is_int(error, ECONNRESET, "  a reset is passed on as one");
    is_int(t.r.fail.why, WHY_SYS, "  noted");
    is_int(t.r.fail.code, ECONNRESET, "  by its errno");
    is_int(t.r.fail.side, by_client ? SIDE_CLIENT : SIDE_ORIGIN, "  and side");
    is_int(t.r.ended_by, t.r.fail.side, "  which has ended it");
    trip_clear(&t);
}

/* A side that sends its last words, closes, and takes no more: it answers what
 * comes by a reset, behind its FIN.  more: what it does not take. */
static void
last_words(bool by_client, const char *more)
{
    struct trip t;
    int error, *gone, *other;
    struct end *end;
    struct pollfd p = {.events = POLLRDHUP};

    trip_init(&t);
    gone = by_client ? &t.left : &t.right;
    other = by_client ? &t.right : &t.left;
    end = by_client ? &t.client : &t.server;
    net_say(*gone, "last words");
    close(*gone);
    *gone = -1;
    p.fd = end->fd;
    while (!(p.revents & POLLRDHUP))
        NEED(poll(&p, 1, LIMIT_MS) > 0);
    NEED(send(end->fd, "x", 1, 0) == 1);
    while (!(p.revents & POLLERR))
        NEED(poll(&p, 1, LIMIT_MS) > 0);
    net_say(*other, more);
    shutdown(*other, SHUT_WR);
    trip_start(&t);
    is_str(net_rest(*other, &error), "last words",
           "a %s that has left is heard to its end",
           by_client ? "client" : "origin");
    is_int(error, 0, "  which is a clean one");
    trip_wait(&t);
    is_int(t.r.fail.why, *more != '\0' ? WHY_SYS : WHY_NONE,
           "  what it does not take is %s",
           *more != '\0' ? "noted" : "nothing");
    is_int(t.r.lost, *more != '\0' && !by_client, "  and told");
    trip_clear(&t);
}

static void
ahead(void)
{
    struct trip t;
    struct fail f = {0};

    trip_init(&t);
    net_say(t.left, "sniffed");
    net_say(t.right, "banner");
    NEED(end_fill(&t.client, END_BUF, &f) == WHY_NONE);
    NEED(end_fill(&t.server, END_BUF, &f) == WHY_NONE);
    trip_start(&t);
    ok(net_hear(t.right, "sniffed"), "what was read ahead goes up");
    ok(net_hear(t.left, "banner"), "and down");
    ok(ping_pong(&t, 1), "and more follows");
    shutdown(t.left, SHUT_WR);
    shutdown(t.right, SHUT_WR);
    trip_wait(&t);
    is_int(t.r.up, 8, "all of it is counted");
    trip_clear(&t);
}

/* ---- clocks -------------------------------------------------------------- */

/* Longer than a busy machine takes for one byte. */
enum { QUIET_MS = 400, BUSY_MS = 600 };

/* One direction alone is busy for a time, then both are quiet. */
static void *
idle(void *arg)
{
    bool upwards = arg != NULL;
    struct trip t;
    int from, to, error;
    int64_t began, last;
    bool good = true;

    trip_init(&t);
    t.idle_ms = QUIET_MS;
    from = upwards ? t.left : t.right;
    to = upwards ? t.right : t.left;
    trip_start(&t);
    began = last = now_ms();
    while (good && last - began < BUSY_MS) {
        last = now_ms();
        net_say(from, "x");
        good = net_hear(to, "x");
    }
    ok(good, "traffic %s keeps both directions", upwards ? "up" : "down");
    trip_wait(&t);
    ok(now_ms() - last >= QUIET_MS, "  quiet: it ends, not before idle_ms");
    is_int(t.r.fail.why, WHY_IDLE, "  because of it");
    is_str(net_rest(t.left, &error), "", "  the client sees an end");
    is_int(error, 0, "  which is no reset");
    is_str(net_rest(t.right, &error), "", "  and so does the origin");
    is_int(error, 0, "  in the same way");
    trip_clear(&t);
    return NULL;
}

static void *
half_closed(void *arg)
{
    bool client_first = arg != NULL;
    struct trip t;
    int first, second;
    int64_t began, last;
    bool good = true;

    trip_init(&t);
    t.half_closed_ms = QUIET_MS; /* of idle_ms there is plenty */
    first = client_first ? t.left : t.right;
    second = client_first ? t.right : t.left;
    trip_start(&t);
    ok(ping_pong(&t, 1), "half-closed by the %s",
       client_first ? "client" : "origin");
    shutdown(first, SHUT_WR);
    ok(net_ended(second), "  one direction has ended");
    began = last = now_ms();
    while (good && last - began < BUSY_MS) {
        last = now_ms();
        net_say(second, "y");
        good = net_hear(first, "y");
    }
    ok(good, "  the other may go on while it moves");
    trip_wait(&t);
    ok(now_ms() - last >= QUIET_MS, "  but not be quiet for half_closed_ms");
    ok(now_ms() - last < LIMIT_MS / 4, "  however large idle_ms is");
    is_int(t.r.fail.why, WHY_IDLE, "  because of it");
    trip_clear(&t);
    return NULL;
}

/* All of them at once, because they take their time. */
static void
clocks(void)
{
    static int yes;
    pthread_t threads[] = {net_thread(idle, &yes), net_thread(idle, NULL),
                           net_thread(half_closed, &yes),
                           net_thread(half_closed, NULL)};

    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++)
        pthread_join(threads[i], NULL);
}

/* A peer that reads nothing: the tunnel is full, and nothing moves. */
static void
stuck(void)
{
    struct trip t;
    char *much = calloc(1, 1 << 20);
    ssize_t put;

    trip_init(&t);
    t.idle_ms = 100;
    trip_start(&t);
    do
        put = send(t.left, much, 1 << 20, MSG_NOSIGNAL);
    while (put > 0);
    trip_wait(&t);
    is_int(t.r.fail.why, WHY_IDLE, "an origin that takes nothing: idle");
    is_int(t.r.fail.side, SIDE_ORIGIN, "it is the origin's doing");
    free(much);
    trip_clear(&t);
}

static void
stopping(void)
{
    struct trip t;
    int fd; /* of t.client, which is the worker's */

    trip_init(&t);
    fd = t.client.fd;
    trip_start(&t);
    ok(ping_pong(&t, 1), "a tunnel while weir stops");
    atomic_store(&weir.stopping, true);
    shutdown(fd, SHUT_RDWR);
    trip_wait(&t);
    atomic_store(&weir.stopping, false);
    is_int(t.r.fail.why, WHY_DRAIN, "it ends, and says why");
    is_int(t.r.ended_by, SIDE_WEIR, "and who did it");
    trip_clear(&t);

    trip_init(&t);
    fd = t.client.fd;
    trip_start(&t);
    shutdown(t.left, SHUT_WR);
    ok(net_ended(t.right), "a half-closed one");
    shutdown(fd, SHUT_RDWR); /* nobody reads there any more */
    atomic_store(&weir.stopping, true);
    trip_wait(&t);
    atomic_store(&weir.stopping, false);
    is_int(t.r.fail.why, WHY_DRAIN, "ends as well");
    trip_clear(&t);
}

/* ---- TLS on the client's side -------------------------------------------- */

static void *
accept_tls(void *arg)
{
    struct fail f = {0};

    NEED(end_handshake(arg, tls_session(GNUTLS_SERVER, shown, NULL),
                       now_ms() + LIMIT_MS, &f) == WHY_NONE);
    return NULL;
}

/* t->left becomes an end with TLS. */
static void
tls_init(struct trip *t, struct end *left)
{
    struct fail f = {0};
    pthread_t server;

    trip_init(t);
    server = net_thread(accept_tls, &t->client);
    end_init(left, t->left, SIDE_ORIGIN, LIMIT_MS);
    t->left = -1;
    NEED(end_handshake(left, tls_session(GNUTLS_CLIENT, blind, NULL),
                       now_ms() + LIMIT_MS, &f) == WHY_NONE);
    pthread_join(server, NULL);
}

static void
through_tls(void)
{
    struct trip t;
    struct end left;
    struct fail f = {0};
    char byte;
    size_t n;
    int error;

    tls_init(&t, &left);
    trip_start(&t);
    ok(bulk(&t, &left, 0, MUCH), "TLS on one side: bulk both ways at once");
    is_int(end_finish(&left, &f), WHY_NONE, "the client says goodbye");
    ok(net_ended(t.right), "the origin sees its end");
    shutdown(t.right, SHUT_WR);
    is_int(end_read(&left, &byte, 1, &n, &f), WHY_EOF, "a goodbye for its own");
    trip_wait(&t);
    is_int(t.r.fail.why, WHY_NONE, "it went through");
    is_int(t.r.up, MUCH, "bytes up");
    end_clear(&left);
    trip_clear(&t);

    tls_init(&t, &left);
    trip_start(&t);
    shutdown(left.fd, SHUT_WR); /* no close_notify before it */
    trip_wait(&t);
    is_int(t.r.fail.why, WHY_CUT, "TLS that is cut short");
    is_str(net_rest(t.right, &error), "", "is no clean end");
    is_int(error, ECONNRESET, "but a reset");
    end_clear(&left);
    trip_clear(&t);
}

/* ---- a stream instead of an end ------------------------------------------ */

struct fake { /* stands in for one: its bytes go through a socket */
    struct http http;
    int fd;
    char buf[1000];
    int n_flushed, n_ended;
    atomic_int aborted;
};

static enum why
fake_read(struct http *http, struct span *got, struct fail *f)
{
    struct fake *s = (struct fake *)http;
    ssize_t n = recv(s->fd, s->buf, sizeof s->buf, 0);

    if (n == 0)
        return WHY_EOF;
    if (n < 0)
        return fail_sys(f, SIDE_ORIGIN, "read", errno);
    *got = (struct span){s->buf, (size_t)n};
    return WHY_NONE;
}

static enum why
fake_write(struct http *http, struct span s, struct fail *f)
{
    (void)f;
    net_put(((struct fake *)http)->fd, s.at, s.len);
    return WHY_NONE;
}

static enum why
fake_end(struct http *http, const struct head *trailers, struct fail *f)
{
    struct fake *s = (struct fake *)http;

    (void)f;
    s->n_ended += trailers == NULL;
    shutdown(s->fd, SHUT_WR);
    return WHY_NONE;
}

static enum why
fake_flush(struct http *http, struct fail *f)
{
    (void)f;
    ((struct fake *)http)->n_flushed++;
    return WHY_NONE;
}

static void
fake_abort(struct http *http, enum why why)
{
    struct fake *s = (struct fake *)http;

    atomic_store(&s->aborted, (int)why);
    shutdown(s->fd, SHUT_RDWR);
}

static void
through_stream(void)
{
    static const struct http_ops ops = {.read_body = fake_read,
                                        .write_body = fake_write,
                                        .write_end = fake_end,
                                        .flush = fake_flush,
                                        .abort = fake_abort};
    struct fake s = {.http = {.ops = &ops}};
    struct trip t;

    trip_init(&t);
    s.fd = t.server.fd;
    t.http = &s.http;
    trip_start(&t);
    ok(ping_pong(&t, 3), "a stream on one side");
    shutdown(t.left, SHUT_WR);
    ok(net_ended(t.right), "  an end goes up");
    shutdown(t.right, SHUT_WR);
    ok(net_ended(t.left), "  and down");
    trip_wait(&t);
    is_int(s.n_flushed, 4, "  every piece was flushed");
    is_int(s.n_ended, 1, "  the end was written once");
    is_int(atomic_load(&s.aborted), WHY_NONE, "  nothing was cut");
    is_int(t.r.up + t.r.down, 6, "  bytes are counted");
    trip_clear(&t);

    trip_init(&t);
    s = (struct fake){.http = {.ops = &ops}, .fd = t.server.fd};
    t.http = &s.http;
    trip_start(&t);
    ok(ping_pong(&t, 1), "a stream whose client resets");
    net_reset(t.left);
    t.left = -1;
    trip_wait(&t);
    is_int(atomic_load(&s.aborted), WHY_CUT, "  is cut, too");
    is_int(t.r.ended_by, SIDE_CLIENT, "  by the client");
    trip_clear(&t);
}

int
main(void)
{
    static const char *const names[] = {"tunnel.test", NULL};
    struct pool_conf conf = {"t", 4, 4, 256 * 1024, serve};
    struct cert cert;

    signal(SIGPIPE,
           SIG_IGN); /* as proxy.c does: splice(2) has no MSG_NOSIGNAL */
    cert_make(&cert, &(struct cert_conf){.names = names});
    shown = cert_shown(&cert);
    NEED(gnutls_certificate_allocate_credentials(&blind) == 0);
    NEED((pool = pool_new(&conf)) != NULL);
    switching();
    half_close(true);
    half_close(false);
    reset(true);
    reset(false);
    last_words(true, "");
    last_words(true, "more");
    last_words(false, "");
    last_words(false, "more");
    ahead();
    clocks();
    stuck();
    stopping();
    through_tls();
    through_stream();
    pool_free(pool);
    gnutls_certificate_free_credentials(shown);
    gnutls_certificate_free_credentials(blind);
    cert_clear(&cert);
    return done_testing();
}
