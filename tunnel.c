/*
 * tunnel.c - carry bytes both ways until both directions have ended.
 *
 * Serves CONNECT (RFC 9110 section 9.3.6), upgraded connections such as
 * WebSocket (RFC 6455), and whatever else is opaque.  Looks at no byte.
 *
 * A direction starts by copying through a small buffer, which suits idle and
 * chatty tunnels.  When reads keep filling it there is bulk to move: between
 * two plain sockets the direction changes over to splice(2), where no byte
 * enters user space; otherwise to a larger buffer.
 *
 * Owns     the pipes and buffers of both directions.  The two sides stay the
 *          caller's: we finish them or mark them as cut, and never close.
 * Threads  a worker enters by tunnel_run() and becomes the upward pump; its
 *          twin is the downward one.
 * Blocks   for as long as the tunnel lives.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

enum {
    SMALL_BUF = 2048, /* on the stack, which idle tunnels are to keep small */
    PIPE_BYTES = 262144, /* asked for; the kernel may give less */
    FULL_READS = 4,      /* in a row: bulk */
    SHORT_READS = 64,    /* in a row below BULK_LEAST: no bulk any more */
    BULK_LEAST = 16384,
    LOOK_MS = 1000, /* how often a half-closed one looks whether weir stops */
};

struct pump { /* one direction */
    struct tunnel *tunnel;
    struct tunnel_side *from, *to;
    enum side from_side;
    uint64_t moved;
    struct fail fail;
    bool lost;   /* `to` had gone before it took everything */
    int pipe[2]; /* -1: none */
    char *bulk;  /* TUNNEL_BUF bytes; NULL: none */
    int full, shorts;
};

struct tunnel {
    /* set before the second thread starts, then only read */
    const struct weir *weir;
    struct worker *worker;
    struct tunnel_side client, server;
    int idle_ms, half_closed_ms;
    /* either pump, at any time */
    atomic_bool stop;
    struct bell up_done;   /* rung when the upward one has ended */
    atomic_int n_done;     /* directions that have ended */
    atomic_int first;      /* the side that ended first, -1: none yet */
    atomic_llong moved_at; /* idle means quiet BOTH ways, hence shared */
    /* whoever set `stop`; read after the join */
    const struct pump *stopper; /* its failure is the one that counts */
    /* one pump each; read after the join */
    struct pump up, down;
};

/* ---- a side: an end, or a stream ----------------------------------------- */

/* All n pieces; flushed. */
enum why
side_write(struct tunnel_side *s, struct iovec *iov, int n, struct fail *f)
{
    enum why why = WHY_NONE;

    if (s->end != NULL)
        return end_write(s->end, iov, n, f);
    for (int i = 0; i < n && why == WHY_NONE; i++)
        why = s->http->ops->write_body(
            s->http, (struct span){iov[i].iov_base, iov[i].iov_len}, f);
    return why == WHY_NONE ? s->http->ops->flush(s->http, f) : why;
}

static enum why
side_put(struct tunnel_side *s, const char *at, size_t len, struct fail *f)
{
    struct iovec iov = {(void *)at, len};

    return side_write(s, &iov, 1, f);
}

/* Our direction is over. */
enum why
side_finish(struct tunnel_side *s, struct fail *f)
{
    enum why why;

    if (s->end != NULL)
        return end_finish(s->end, f);
    why = s->http->ops->write_end(s->http, NULL, f);
    return why == WHY_NONE ? s->http->ops->flush(s->http, f) : why;
}

/* The peer shall see that bytes are missing, and who reads here wakes. */
void
side_cut(struct tunnel_side *s)
{
    if (s->end == NULL)
        s->http->ops->abort(s->http, WHY_CUT);
    else
        end_cut(s->end);
}

/* Nobody waits for it: FIN, and everybody wakes. */
static void
side_wake(struct tunnel_side *s)
{
    if (s->end != NULL)
        end_wake(s->end);
    else
        s->http->ops->abort(s->http, WHY_IDLE);
}

/* ---- one direction ------------------------------------------------------- */

/* Quiet both ways for longer than allowed?  If not, read on. */
static bool
tunnel_idle(struct tunnel *t)
{
    int limit = atomic_load(&t->n_done) > 0 ? t->half_closed_ms : t->idle_ms;

    return now_ms() - atomic_load(&t->moved_at) >= limit;
}

/* End both directions: cleanly when they were merely quiet.  The flag says why
 * to leave; the shutdowns wake the pump that sleeps in recv(). */
static void
tunnel_stop(struct tunnel *t, const struct pump *p, bool quiet)
{
    if (atomic_exchange(&t->stop, true))
        return;
    t->stopper = p;
    if (quiet) {
        side_wake(&t->client);
        side_wake(&t->server);
    } else {
        side_cut(&t->client);
        side_cut(&t->server);
    }
}

static void
pump_moved(struct pump *p, size_t n)
{
    p->moved += n;
    atomic_store_explicit(&p->tunnel->moved_at, now_ms(), memory_order_relaxed);
}

/* After a read of n bytes into a buffer of cap: bulk, or not any more? */
static void
pump_judge(struct pump *p, size_t n, size_t cap)
{
    p->full = n == cap ? p->full + 1 : 0;
    p->shorts = n < BULK_LEAST ? p->shorts + 1 : 0;
}

static bool
pump_is_plain(const struct pump *p)
{
    return p->from->end != NULL && p->to->end != NULL &&
           p->from->end->tls == NULL && p->to->end->tls == NULL;
}

/* Make what bulk needs.  Without it the small buffer goes on serving. */
static void
pump_start_bulk(struct pump *p)
{
    p->full = p->shorts = 0;
    if (!pump_is_plain(p)) {
        p->bulk = malloc(TUNNEL_BUF);
    } else if (pipe2(p->pipe, O_CLOEXEC) == 0) {
        /* More room, fewer calls; a refusal leaves the default. */
        (void)fcntl(p->pipe[1], F_SETPIPE_SZ, PIPE_BYTES);
    } else {
        p->pipe[0] = p->pipe[1] = -1;
        p->bulk = malloc(TUNNEL_BUF);
    }
}

static void
pump_end_bulk(struct pump *p)
{
    free(p->bulk);
    p->bulk = NULL;
    if (p->pipe[0] >= 0) {
        close(p->pipe[0]);
        close(p->pipe[1]);
    }
    p->pipe[0] = p->pipe[1] = -1;
    p->full = p->shorts = 0;
}

/* Read once, write all of it.  WHY_EOF: the peer has finished. */
static enum why
pump_once(struct pump *p, char *buf, size_t cap)
{
    size_t n;
    enum why why;

    if (p->from->end == NULL) {
        struct http *http = p->from->http;
        struct span got;

        if ((why = http->ops->read_body(http, &got, &p->fail)) != WHY_NONE)
            return why;
        n = got.len;
        why = side_put(p->to, got.at, got.len, &p->fail);
    } else if (p->pipe[0] >= 0) {
        why = end_splice(p->from->end, p->to->end, p->pipe, PIPE_BYTES, &n,
                         &p->fail);
    } else {
        why = end_read(p->from->end, buf, cap, &n, &p->fail);
        if (why == WHY_NONE)
            why = side_put(p->to, buf, n, &p->fail);
    }
    if (why == WHY_NONE) {
        pump_moved(p, n);
        pump_judge(p, n, cap);
    }
    return why;
}

/* Bytes that were read ahead (behind a head, or while sniffing) go first; then
 * the buffer goes, since a pump has its own. */
static enum why
pump_ahead(struct pump *p)
{
    struct end *from = p->from->end;
    struct span ahead;
    enum why why = WHY_NONE;

    if (from == NULL)
        return WHY_NONE;
    ahead = end_ahead(from);
    if (ahead.len > 0)
        why = side_put(p->to, ahead.at, ahead.len, &p->fail);
    if (why == WHY_NONE) {
        pump_moved(p, ahead.len);
        end_consume(from, ahead.len);
        end_drop_buffer(from);
    }
    return why;
}

static enum why
pump_carry(struct pump *p)
{
    struct tunnel *t = p->tunnel;
    char small[SMALL_BUF];
    enum why why = pump_ahead(p);

    while (why == WHY_NONE && !atomic_load(&t->stop)) {
        bool bulk = p->bulk != NULL || p->pipe[0] >= 0;

        if (!bulk && p->full >= FULL_READS)
            pump_start_bulk(p);
        else if (bulk && p->shorts >= SHORT_READS)
            pump_end_bulk(p);
        why = p->bulk != NULL ? pump_once(p, p->bulk, TUNNEL_BUF)
                              : pump_once(p, small, sizeof small);
        if (why == WHY_IDLE && p->fail.side == p->from_side &&
            !tunnel_idle(t)) {
            p->fail = (struct fail){0}; /* the other direction is busy */
            why = WHY_NONE;
        }
    }
    return why;
}

/* Wait up to ms (>= 1) for the other direction to end. */
static void
pump_wait(struct pump *p, int ms)
{
    struct tunnel *t = p->tunnel;

    if (p == &t->up)
        twin_wait(t->worker, ms);
    else
        bell_wait(&t->up_done, now_ms() + ms);
}

/* This direction has ended.  Reads of the other one may sleep for longer than
 * a half-closed tunnel may be quiet, so its thread, which has nothing else to
 * do, keeps the time until both have ended. */
static void
pump_done(struct pump *p)
{
    struct tunnel *t = p->tunnel;

    atomic_fetch_add(&t->n_done, 1);
    if (p == &t->up)
        bell_ring(&t->up_done);
    while (atomic_load(&t->n_done) < 2 && !atomic_load(&t->stop)) {
        int64_t now = now_ms();
        int64_t until = atomic_load(&t->moved_at) + t->half_closed_ms;

        if (atomic_load(&t->weir->stopping)) {
            fail_own(&p->fail, SIDE_WEIR, WHY_DRAIN, "tunnel");
            tunnel_stop(t, p, false);
        } else if (now >= until) {
            fail_own(&p->fail,
                     p->from_side == SIDE_CLIENT ? SIDE_ORIGIN : SIDE_CLIENT,
                     WHY_IDLE, "read from the side still open");
            tunnel_stop(t, p, true);
        } else {
            pump_wait(p, until - now < LOOK_MS ? (int)(until - now) : LOOK_MS);
        }
    }
}

/* Has the side that we write to finished, so that it takes no more?  What it
 * sent before is whole and may not all have been read: the direction that comes
 * from there finds its end, or that it was cut.  A socket says EPIPE only
 * behind the peer's FIN; a stream tells each of its users for himself. */
static bool
to_has_left(const struct pump *p)
{
    const struct fail *f = &p->fail;

    if (f->side == p->from_side || f->side == SIDE_WEIR || f->why == WHY_IDLE)
        return false;
    return p->to->end == NULL ||
           (f->why == WHY_SYS && (f->code == EPIPE || f->code == ENOTCONN));
}

/* One direction, to its end.  Runs in its own thread. */
static void
pump_run(void *arg)
{
    struct pump *p = arg;
    struct tunnel *t = p->tunnel;
    enum why why = pump_carry(p);
    int none = -1;

    if (why == WHY_EOF && atomic_load(&t->weir->stopping))
        why = fail_own(&p->fail, SIDE_WEIR, WHY_DRAIN, "tunnel");
    if (why != WHY_NONE)
        atomic_compare_exchange_strong(
            &t->first, &none,
            (int)(why == WHY_EOF ? p->from_side : p->fail.side));
    p->lost = why != WHY_NONE && why != WHY_EOF && to_has_left(p);
    if (why == WHY_EOF && !atomic_load(&t->stop)) {
        why = side_finish(p->to, &p->fail);
        if (why != WHY_NONE && to_has_left(p)) {
            p->fail = (struct fail){0}; /* it had everything */
            why = WHY_NONE;
        }
    }
    if (why != WHY_NONE && why != WHY_EOF &&
        !p->lost) /* IDLE by whom it reads: all is */
        tunnel_stop(t, p, why == WHY_IDLE && p->fail.side == p->from_side);
    pump_end_bulk(p);
    pump_done(p);
}

static void
pump_init(struct pump *p, struct tunnel *t, struct tunnel_side *from,
          struct tunnel_side *to, enum side from_side)
{
    *p = (struct pump){.tunnel = t,
                       .from = from,
                       .to = to,
                       .from_side = from_side,
                       .pipe = {-1, -1}};
}

/* Reads wake up once in idle_ms and look at the shared clock. */
static void
side_prepare(struct tunnel_side *s, int idle_ms)
{
    if (s->end != NULL) {
        s->end->idle_ms = idle_ms;
        s->end->deadline = 0;
        s->end->watch = NULL;
    } else {
        s->http->idle_ms = idle_ms;
        s->http->watch = NULL;
    }
}

/*
 * tunnel_run - carry bytes between client and server until both directions
 * have ended, or one failed, or both were quiet for idle_ms.
 *
 * w               the calling worker; its twin must be free
 * client, server  ends or streams, what is buffered in them goes first.  Still
 *                 the caller's afterwards; he closes them.
 * idle_ms         longest quiet in both directions at once
 * half_closed_ms  the same once one direction has ended
 * r               filled in
 *
 * Thread: a worker.  Blocks: as long as the tunnel lives.
 */
void
tunnel_run(struct worker *w, const struct weir *weir, struct tunnel_side client,
           struct tunnel_side server, int idle_ms, int half_closed_ms,
           struct tunnel_result *r)
{
    struct tunnel t = {.weir = weir,
                       .client = client,
                       .server = server,
                       .idle_ms = idle_ms,
                       .half_closed_ms = half_closed_ms,
                       .worker = w,
                       .first = -1};

    atomic_store(&t.moved_at, now_ms());
    pump_init(&t.up, &t, &t.client, &t.server, SIDE_CLIENT);
    pump_init(&t.down, &t, &t.server, &t.client, SIDE_ORIGIN);
    side_prepare(&t.client, idle_ms);
    side_prepare(&t.server, idle_ms);
    *r = (struct tunnel_result){.ended_by = SIDE_WEIR};
    if (!twin_start(w, pump_run, &t.down)) {
        fail_own(&r->fail, SIDE_WEIR, WHY_BUSY, "start a thread");
        return;
    }
    pump_run(&t.up);
    twin_wait(w, -1);
    r->up = t.up.moved;
    r->down = t.down.moved;
    r->ended_by = (enum side)atomic_load(&t.first);
    r->lost = t.stopper == NULL && t.up.lost;
    if (t.stopper != NULL || t.up.lost || t.down.lost) {
        r->fail = t.stopper != NULL ? t.stopper->fail
                  : t.up.lost       ? t.up.fail
                                    : t.down.fail;
        r->ended_by = r->fail.side;
    }
}

/* The one line of a tunnel that has ended. */
void
tunnel_log(const struct client *c, const struct upstream *up,
           const struct tunnel_result *r, int64_t from_us)
{
    char target[HOST_MAX + 16];
    struct line l;

    if (!log_on(LEVEL_INFO))
        return;
    origin_authority(&up->origin, target, sizeof target);
    log_begin(&l, LEVEL_INFO, "tunnel", c->id);
    if (c->stream >= 0)
        log_int(&l, "stream", c->stream);
    log_str(&l, "client", c->addr);
    log_str(&l, "target", target);
    if (up->hop.parent[0] == '\0')
        log_str(&l, "origin", up->addr);
    log_int(&l, "up", (int64_t)r->up);
    log_int(&l, "down", (int64_t)r->down);
    log_ms(&l, "dns_ms", up->took.dns_us);
    log_ms(&l, "connect_ms", up->took.connect_us);
    log_hop(&l, &up->hop);
    log_ms(&l, "ms", now_us() - from_us);
    log_str(&l, "ended_by", side_name(r->ended_by));
    log_fail(&l, &r->fail);
    log_send(&l);
}
