/*
 * upstream.c - from a target to a connected, ready origin.
 *
 * The one room that opens ways to targets: directly by dial.c, or through a
 * parent by through.c.
 *
 * Takes a way to an origin out of a cache of idle ones, or a stream of a shared
 * session (session.c), or dials and makes it ready: TLS (secure.c) and a codec
 * to speak on.  To an origin that is to be tried in HTTP/3, QUIC gets a head
 * start, then TCP runs beside it; what is ready first is used, and QUIC that
 * was late or failed is left alone for a while (altsvc.c).  Whoever takes a way
 * owns it until he gives it back or frees it.  The cache also holds ways that
 * are still bare: dialled for a CONNECT whose client then began TLS with us.
 *
 * Owns     the cache: per origin at most reuse_per_origin idle ways, in total
 *          reuse_total (both more for a moment), none longer than reuse_s.
 * Threads  any worker; one lock around the cache, never held while waiting.
 * Blocks   in dial() and secure_connect().
 */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    BUCKETS = 256,    /* a power of two */
    BURST = 8,        /* times reuse_total that may be idle for a moment */
    MOMENT_MS = 500,  /* that long */
    HEAD_START = 250, /* ms that QUIC has before TCP (RFC 8305 section 5) */
    ALONE_MS = 3000,  /* and where TCP failed */
    LOOK_MS = 1000,   /* how often who waits looks whether weir is stopping */
};

struct upstreams {
    struct secure *secure;
    struct breaker *breaker;
    struct altsvcs *altsvcs;
    struct sessions *sessions; /* HTTP/2 and 3 ways, which are shared */
    pthread_mutex_t lock;
    /* needs lock */
    struct upstream *buckets[BUCKETS]; /* next/prev, the newest first */
    struct upstream *newest, *oldest;  /* newer/older, of all */
    size_t n;
};

/* Do both mean the same place, by the same name? */
bool
origin_same(const struct origin *a, const struct origin *b)
{
    return a->tls == b->tls && a->port == b->port &&
           strcmp(a->host, b->host) == 0 && strcmp(a->sni, b->sni) == 0;
}

/* Does this way lead to that origin through that parent?  Through an HTTP
 * parent a tunnel and its own requests are two different things. */
static bool
way_same(const struct upstream *up, const struct origin *o,
         const struct parent *parent)
{
    return origin_same(&up->origin, o) && parent_same(up->parent, parent) &&
           up->absolute == parent_absolute(parent, o);
}

static size_t
bucket_of(const struct origin *o)
{
    uint32_t h = 2166136261u ^ o->port ^ (uint32_t)o->tls << 16; /* FNV-1a */

    for (const char *p = o->host; *p != '\0'; p++)
        h = (h ^ (unsigned char)*p) * 16777619u;
    return h & (BUCKETS - 1);
}

/* ---- the cache ----------------------------------------------------------- */

/* Needs us->lock. */
static void
cache_unlink(struct upstreams *us, struct upstream *up)
{
    *(up->prev != NULL ? &up->prev->next
                       : &us->buckets[bucket_of(&up->origin)]) = up->next;
    if (up->next != NULL)
        up->next->prev = up->prev;
    *(up->newer != NULL ? &up->newer->older : &us->newest) = up->older;
    *(up->older != NULL ? &up->older->newer : &us->oldest) = up->newer;
    up->next = up->prev = up->newer = up->older = NULL;
    us->n--;
}

/* Needs us->lock. */
static void
cache_link(struct upstreams *us, struct upstream *up)
{
    struct upstream **bucket = &us->buckets[bucket_of(&up->origin)];

    up->next = *bucket;
    if (*bucket != NULL)
        (*bucket)->prev = up;
    *bucket = up;
    up->older = us->newest;
    *(us->newest != NULL ? &us->newest->newer : &us->oldest) = up;
    us->newest = up;
    us->n++;
}

/* An idle way that is one more than its origin shall have, and was not needed
 * for a moment; NULL: there is none.  A burst of requests, as a session brings
 * them, may use more, or it would dial anew for each.  Needs us->lock. */
static struct upstream *
cache_surplus(struct upstreams *us, int max, int64_t since)
{
    for (struct upstream *up = us->oldest; up != NULL && up->given_at < since;
         up = up->newer) {
        int n = 0;

        for (struct upstream *other = us->buckets[bucket_of(&up->origin)];
             other != NULL; other = other->next)
            n += way_same(other, &up->origin, up->parent);
        if (n > max)
            return up;
    }
    return NULL;
}

/* Take the way to an origin that was used last out of the cache; NULL: none.
 * One that other settings led to is none: [resolve] or insecure may say
 * something else by now. */
static struct upstream *
cache_take(struct upstreams *us, const struct origin *o,
           const struct parent *parent, uint64_t serial)
{
    struct upstream *up;

    pthread_mutex_lock(&us->lock);
    up = us->buckets[bucket_of(o)];
    while (up != NULL && (up->serial != serial || !way_same(up, o, parent)))
        up = up->next;
    if (up != NULL)
        cache_unlink(us, up);
    pthread_mutex_unlock(&us->lock);
    return up;
}

/* Is a way that is idle, bare or ready, alive, with nothing unasked for to
 * read?  Does not wait. */
bool
upstream_alive(struct upstream *up)
{
    if (up->stream != NULL)
        return !up->http->ops->gone(up->http);
    return end_quiet(&up->end);
}

/* Take one that is alive; the dead ones met on the way are closed. */
static struct upstream *
cache_take_alive(const struct client *c, const struct origin *o,
                 const struct parent *parent)
{
    struct upstreams *us = c->weir->upstreams;
    int64_t since = now_ms() - c->conf->reuse_s * 1000LL;
    struct upstream *up;

    while ((up = cache_take(us, o, parent, c->conf->serial)) != NULL) {
        if (up->given_at >= since && upstream_alive(up))
            return up;
        upstream_free(up);
    }
    return NULL;
}

/* ---- ways ---------------------------------------------------------------- */

/* Close and forget a way, wherever it is in its life. */
void
upstream_free(struct upstream *up)
{
    if (up == NULL)
        return;
    if (up->stream != NULL)
        stream_give(up->stream);
    else if (up->http != NULL)
        h1_clear(&up->h1);
    end_clear(&up->end);
    parent_give(up->parent);
    free(up);
}

/* Directly, unless that has failed too often. */
static enum why
dial_direct(const struct client *c, struct upstream *up, enum access what,
            const struct watch *watch, struct fail *f)
{
    const struct origin *o = &up->origin;
    struct breaker *b = c->conf->breaker ? c->weir->upstreams->breaker : NULL;
    bool trial = false;
    int fd = -1;
    enum why why = WHY_NONE;

    if (b != NULL)
        why = breaker_ask(b, o->host, o->port, &trial, f);
    if (why != WHY_NONE)
        return why;
    why = dial_watched(c, o->host, o->port, what, watch, &fd, up->addr,
                       &up->took, f);
    if (b != NULL)
        breaker_tell(b, o->host, o->port, trial, f, c->id);
    end_init(&up->end, fd, SIDE_ORIGIN, c->conf->idle_s * 1000);
    up->end.watch = watch;
    return why;
}

struct wish { /* what a way is wanted for */
    const struct origin *origin;
    struct span upgrade;
    enum access what;
    const struct watch *watch; /* says when it is not any more; NULL: nobody */
};

/* A way that leads nowhere yet.  NULL: noted. */
static struct upstream *
way_new(const struct client *c, const struct origin *o, struct parent *parent,
        struct fail *f)
{
    struct upstream *up = calloc(1, sizeof *up);

    if (up == NULL) {
        fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
        return NULL;
    }
    up->origin = *o;
    up->serial = c->conf->serial;
    up->parent = parent_take(parent);
    up->took = (struct clock_marks){-1, -1, -1};
    up->hop.connect_us = up->hop.answer_us = -1;
    end_init(&up->end, -1, SIDE_ORIGIN, c->conf->idle_s * 1000);
    return up;
}

/* A new way through one parent (NULL: directly), connected and bare.  NULL: f
 * is noted; *again tells whether the next parent may have better luck. */
static struct upstream *
way_open(const struct client *c, const struct wish *w, struct parent *parent,
         bool *again, struct fail *f)
{
    const struct origin *o = w->origin;
    struct upstream *up = way_new(c, o, parent, f);
    enum why why;

    *again = false;
    if (up == NULL)
        return NULL;
    if (parent != NULL && w->what == ACCESS_BY_ADDRESS) {
        why = access_denied(c, o->host, o->port, "not in target_allow", f);
    } else if (parent != NULL) {
        why = through_open(c, c->weir->upstreams->secure,
                           c->weir->upstreams->sessions, up, again, f);
    } else {
        why = dial_direct(c, up, w->what, w->watch, f);
    }
    if (why == WHY_NONE)
        return up;
    upstream_free(up);
    return NULL;
}

/* way_open(), but an environment that leads back to ourselves is none. */
static struct upstream *
way_dial(const struct client *c, const struct wish *w, struct parent *parent,
         bool *again, struct fail *f)
{
    struct upstream *up;

    *f = (struct fail){0}; /* of the parent before this one */
    up = way_open(c, w, parent, again, f);
    if (up != NULL || f->why != WHY_LOOP || parent == NULL ||
        !atomic_load(&parent->ourselves))
        return up;
    *f = (struct fail){0};
    return way_open(c, w, NULL, again, f);
}

/*
 * upstream_dial - a connected way on which nothing was said yet.
 *
 * o  copied
 *
 * Returns the caller's, to be readied, tunnelled through, given or freed; NULL
 * as dial() failed.  Thread: any.  Blocks: dns_s + connect_s.
 */
struct upstream *
upstream_dial(const struct client *c, const struct origin *o, struct fail *f)
{
    struct parent *ways[WAYS_MAX];
    struct origin through = *o;
    struct wish w = {.origin = &through};
    struct upstream *up = NULL;
    bool again = true;
    size_t n;

    through.tunnel = true;
    if (access_target(c, o->host, o->port, &w.what, f) != WHY_NONE)
        return NULL;
    n = parent_choose(c->conf, &through, ways);
    for (size_t i = 0; i < n && up == NULL && again; i++)
        up = way_dial(c, &w, ways[i], &again, f);
    return up;
}

/* Did the origin choose HTTP/2, or do the settings say that it speaks it? */
static bool
speaks_h2(const struct client *c, const struct upstream *up, unsigned alpn)
{
    if (!up->origin.tls) /* a parent that takes the request speaks its own */
        return (alpn & ALPN_H2) && !up->absolute &&
               match_host(c->conf->h2c, up->origin.host, up->origin.port);
    return end_chose_h2(&up->end);
}

/*
 * upstream_ready - TLS if the origin is https, and the codec to speak on.
 *
 * up    bare; on failure only fit to be freed.  An origin that speaks HTTP/2
 *       makes it a stream of a session that others share
 * alpn  what may be spoken: a set of ALPN_HTTP1 and ALPN_H2
 *
 * Returns WHY_NONE or what secure_connect() returned.  Blocks: connect_s.
 */
enum why
upstream_ready(const struct client *c, struct upstream *up, unsigned alpn,
               struct fail *f)
{
    enum why why;

    assert(up->http == NULL);
    if (up->origin.tls) {
        why = secure_connect(c->weir->upstreams->secure, c, up, alpn, f);
        if (why != WHY_NONE)
            return why;
    }
    up->end.watch = NULL; /* it was for the way to here */
    if (speaks_h2(c, up, alpn))
        return session_start(c->weir->upstreams->sessions, c, up, f);
    h1_init(&up->h1, &up->end, SIDE_ORIGIN, c->conf);
    up->h1.absolute = up->absolute;
    up->http = &up->h1.http;
    return WHY_NONE;
}

/* HTTP/1 takes any upgrade.  HTTP/2 takes WebSocket, where the origin has said
 * so (RFC 8441).  Blocks: until it has said anything. */
bool
upstream_serves(const struct upstream *up, struct span upgrade)
{
    if (upgrade.len == 0 || up->stream == NULL)
        return true;
    return span_isi(upgrade, "websocket") && session_extended(up);
}

/* What carries the bytes of both directions once HTTP is over on a way. */
struct tunnel_side
upstream_side(struct upstream *up)
{
    if (up->stream != NULL)
        return (struct tunnel_side){.http = up->http};
    return (struct tunnel_side){.end = h1_take_raw(&up->h1)};
}

/* A stream of a session that is there already, with the origin, or with the
 * parent if that takes the request; NULL: there is none, or not for this
 * upgrade. */
static struct upstream *
take_shared(const struct client *c, const struct origin *o,
            const struct parent *parent, enum version version,
            struct span upgrade)
{
    struct upstream *up = calloc(1, sizeof *up);
    bool absolute = parent_absolute(parent, o);

    if (up == NULL)
        return NULL;
    if (session_take(c->weir->upstreams->sessions, c,
                     absolute ? &parent_itself : o, parent, version, up) &&
        upstream_serves(up, upgrade)) {
        up->origin = *o;
        up->absolute = absolute;
        return up;
    }
    if (up->stream == NULL) /* its end was never begun */
        up->end.fd = -1;
    upstream_free(up);
    return NULL;
}

/* Dial and make ready.  An origin that turns out to speak HTTP/2 and not to
 * take this upgrade is asked again, for HTTP/1 alone. */
static struct upstream *
take_new(const struct client *c, const struct wish *w, struct parent *parent,
         struct upstream *up, bool *again, struct fail *f)
{
    unsigned alpn = ALPN_HTTP1 | ALPN_H2;

    for (;;) {
        if (up == NULL && (up = way_dial(c, w, parent, again, f)) == NULL)
            return NULL;
        *again = false;
        if (up->http != NULL) /* a parent that speaks HTTP/2 takes it */
            return up;
        if (upstream_ready(c, up, alpn, f) != WHY_NONE) {
            upstream_free(up);
            return NULL;
        }
        if (alpn == ALPN_HTTP1 || upstream_serves(up, w->upgrade))
            return up;
        upstream_free(up);
        up = NULL;
        alpn = ALPN_HTTP1;
    }
}

/* May this origin, or the parent in its place, speak HTTP/2, for all we know?
 */
static bool
may_share(const struct client *c, const struct origin *o,
          const struct parent *parent)
{
    if (parent_absolute(parent, o))
        return atomic_load(&parent->alpn) == ALPN_H2;
    if (!o->tls)
        return match_host(c->conf->h2c, o->host, o->port);
    return secure_alpn(c->weir->upstreams->secure, o) & ALPN_H2; /* so is -1 */
}

/* How long a turn may last that somebody else has. */
static int64_t
turn_ends(const struct client *c)
{
    return now_ms() + (c->conf->dns_s + 2 * c->conf->connect_s) * 1000LL;
}

/* Nobody has a stream for us: find out what the origin speaks, or wait for who
 * does.  As long as it is HTTP/2 that comes of it, one after the other dials,
 * and all that wait share what he got; else all dial at once.  *mine: the turn
 * that was ours, for sessions_turned(). */
static struct upstream *
take_turn(const struct client *c, const struct wish *w, struct parent *parent,
          struct dialling **mine)
{
    const struct origin *o = w->origin;
    struct sessions *ss = c->weir->upstreams->sessions;
    struct upstream *shared;
    int64_t until = turn_ends(c);

    do {
        *mine = sessions_turn(ss, o, parent, until);
        shared = take_shared(c, o, parent, HTTP_2, w->upgrade);
    } while (*mine == NULL && shared == NULL && now_ms() < until &&
             session_any(ss, c, o, parent, HTTP_2));
    return shared;
}

/* A way over TCP.  turn: the caller has it; NULL: he may have to wait for it.
 */
static struct upstream *
take_tcp(const struct client *c, const struct wish *w, struct parent *parent,
         bool fresh, struct dialling *turn, bool *again, struct fail *f)
{
    const struct origin *o = w->origin;
    struct sessions *ss = c->weir->upstreams->sessions;
    struct upstream *up = fresh ? NULL : cache_take_alive(c, o, parent);
    struct dialling *mine = NULL;

    *again = false;
    if (up != NULL && up->http != NULL) {
        up->reused = true;
        return up;
    }
    if (may_share(c, o, parent)) {
        struct upstream *shared = take_shared(c, o, parent, HTTP_2, w->upgrade);

        if (shared == NULL && turn == NULL && !parent_absolute(parent, o))
            shared = take_turn(c, w, parent, &mine);
        if (shared != NULL) {
            sessions_turned(ss, mine);
            upstream_give(c, up);
            return shared;
        }
    }
    up = take_new(c, w, parent, up, again, f);
    sessions_turned(ss, mine);
    return up;
}

/* ---- HTTP/3 -------------------------------------------------------------- */

/* May HTTP/3 be spoken with this origin?  at: where, then.  Never through a
 * parent; and of all upgrades only WebSocket has a place in it (RFC 9220). */
static bool
quic_wanted(const struct client *c, const struct origin *o,
            const struct parent *parent, struct span upgrade, struct altsvc *at)
{
    const char *name = o->sni[0] != '\0' ? o->sni : o->host;

    if (!o->tls || parent != NULL ||
        (upgrade.len > 0 && !span_isi(upgrade, "websocket")))
        return false;
    *at = (struct altsvc){.port = o->port};
    if (match_host(c->conf->http3_hosts, name, o->port))
        return true;
    return c->conf->http3_auto &&
           altsvc_find(c->weir->upstreams->altsvcs, o, now_ms(), at);
}

/* A stream of a session of HTTP/3; NULL: there is none that serves. */
static struct upstream *
take_quic(const struct client *c, const struct origin *o, struct span upgrade)
{
    struct upstream *up = take_shared(c, o, NULL, HTTP_3, upgrade);

    if (up != NULL)
        altsvc_worked(c->weir->upstreams->altsvcs, o);
    return up;
}

/* Did it not fail lately (*last), and is there no session that takes no
 * WebSocket? */
static bool
quic_may_try(const struct client *c, const struct wish *w, struct fail *last)
{
    struct upstream *up;

    if (altsvc_is_broken(c->weir->upstreams->altsvcs, w->origin, now_ms(),
                         last))
        return false;
    if (w->upgrade.len == 0)
        return true;
    up = take_shared(c, w->origin, NULL, HTTP_3, (struct span){"", 0});
    upstream_free(up);
    return up == NULL;
}

struct quic_try { /* the addresses of an origin, tried one after the other */
    const struct client *client;
    const struct origin *origin;
    const struct altsvc *at;
    struct address a[DIAL_MAX];
    size_t n, next;
    struct clock_marks took;
    int64_t from_us;
    struct upstream *up; /* the one that is being tried; NULL: none is */
    struct fail fail;
};

/* Where to?  Whether an origin may be reached elsewhere is asked again. */
static enum why
try_begin(struct quic_try *t)
{
    const struct client *c = t->client;
    const char *host = t->at->host[0] != '\0' ? t->at->host : t->origin->host;
    enum access what;
    enum why why = access_target(c, host, t->at->port, &what, &t->fail);

    t->took = (struct clock_marks){-1, -1, -1};
    if (why == WHY_NONE)
        why = dial_addresses(c, host, t->at->port, what, t->a, &t->n, &t->took,
                             &t->fail);
    t->from_us = now_us();
    return why;
}

/* RFC 7838 section 5. */
static void
note_alternative(struct upstream *up, const struct altsvc *at)
{
    struct origin place = {.tls = true, .port = at->port};

    if (at->ma_s == 0) /* nobody said so but the settings */
        return;
    memcpy(place.host, at->host[0] != '\0' ? at->host : up->origin.host,
           sizeof place.host);
    origin_authority(&place, up->alt_used, sizeof up->alt_used);
}

static enum why
try_next(struct quic_try *t)
{
    const struct client *c = t->client;
    const struct address *a = &t->a[t->next++];
    struct upstream *up = way_new(c, t->origin, NULL, &t->fail);
    int fd;

    t->fail = (struct fail){0}; /* of the address before this one */
    if (up == NULL)
        return fail_own(&t->fail, SIDE_WEIR, WHY_BUSY, "out of memory");
    note_alternative(up, t->at);
    if (dial_udp_at(a, true, &fd, up->addr, &t->fail) == WHY_NONE &&
        session_start_quic(c->weir->upstreams->sessions, c, up, fd, &t->fail) ==
            WHY_NONE) {
        t->up = up;
        return WHY_NONE;
    }
    upstream_free(up);
    return t->fail.why;
}

/* Wait for a handshake to be complete; on to the next address where it fails
 * for want of somebody there.  WHY_LATE: not yet. */
static enum why
try_until(struct quic_try *t, int64_t until)
{
    enum why why = t->fail.why;

    while (t->up != NULL || t->next < t->n) {
        if (t->up == NULL && (why = try_next(t)) != WHY_NONE)
            continue;
        why = session_ready(t->up, until, &t->fail);
        if (why == WHY_NONE || why == WHY_LATE)
            break;
        upstream_free(t->up);
        t->up = NULL;
        if (why != WHY_REFUSED && why != WHY_UNREACHABLE)
            t->next = t->n; /* the others are of the same server */
    }
    if (why == WHY_NONE) {
        assert(t->up != NULL); /* there is an address, and it was tried */
        t->took.connect_us = now_us() - t->from_us;
        t->up->took = t->took;
    }
    return why;
}

/* It is late, and left to itself: its session may still become one. */
static void
try_leave(struct quic_try *t)
{
    struct fail late = {
        .why = WHY_CONNECT_LATE, .side = SIDE_ORIGIN, .op = "QUIC handshake"};

    session_failed(t->client->weir->upstreams->sessions, t->origin, &late);
    upstream_free(t->up);
    t->up = NULL;
}

/* There is no TCP: wait some more, but not for ever for who may not be there
 * at all. */
static void
try_alone(struct quic_try *t)
{
    const struct client *c = t->client;
    int64_t until = t->from_us / 1000 + ALONE_MS;
    enum why why = WHY_LATE;

    while (why == WHY_LATE && now_ms() < until &&
           !atomic_load(&c->weir->stopping)) {
        int64_t next = now_ms() + LOOK_MS;

        why = try_until(t, next < until ? next : until);
    }
    if (t->up != NULL && why == WHY_LATE)
        try_leave(t);
}

/* While TCP is being tried: is QUIC ready by now? */
static bool
try_is_ready(void *arg)
{
    struct quic_try *t = arg;

    return t->up != NULL && try_until(t, now_ms()) == WHY_NONE;
}

static bool
found_nobody(const struct fail *f)
{
    return f->why == WHY_REFUSED || f->why == WHY_UNREACHABLE ||
           f->why == WHY_CONNECT_LATE;
}

/* Both have failed.  A server that was there, and not who it should be, tells
 * more than nobody at the other door; and TCP that was given up for QUIC says
 * nothing at all. */
static void
choose_failure(struct fail *tcp, const struct fail *quic)
{
    bool was_there =
        quic->why == WHY_CERT || quic->why == WHY_ALERT || quic->why == WHY_TLS;

    if ((was_there && found_nobody(tcp)) ||
        (tcp->why == WHY_OVER && quic->why != WHY_NONE))
        *tcp = *quic;
}

/* TCP beside QUIC that has not answered yet. */
static struct upstream *
race_both(struct quic_try *t, const struct wish *w, struct dialling *turn,
          struct fail *f)
{
    const struct client *c = t->client;
    struct watch watch = {try_is_ready, t};
    struct wish watched = *w;
    struct upstream *tcp;
    bool again;

    watched.watch = &watch;
    tcp = take_tcp(c, &watched, NULL, false, turn, &again, f);
    if (tcp == NULL)
        try_alone(t);
    else if (t->up != NULL && try_until(t, now_ms()) == WHY_LATE)
        try_leave(t);
    if (t->up == NULL)
        return tcp;
    upstream_give(c, tcp);
    *f = (struct fail){0};
    return t->up;
}

/*
 * QUIC first, TCP as well where that has not answered in time, or TCP alone
 * where it failed.  Nothing was sent yet that could be lost.
 *
 * turn  the caller's, for this origin
 */
static struct upstream *
race(const struct client *c, const struct wish *w, const struct altsvc *at,
     struct dialling *turn, struct fail *f)
{
    struct quic_try t = {.client = c, .origin = w->origin, .at = at};
    struct upstream *up = NULL;
    enum why why = try_begin(&t);
    bool again;

    if (why == WHY_NONE)
        why = try_until(&t, now_ms() + HEAD_START);
    if (why == WHY_NONE)
        up = t.up;
    else if (why == WHY_LATE)
        up = race_both(&t, w, turn, f);
    if (up != NULL && up == t.up) {
        altsvc_worked(c->weir->upstreams->altsvcs, w->origin);
        if (upstream_serves(up, w->upgrade))
            return up;
        upstream_free(up);
        up = NULL;
        why = WHY_NONE;
    }
    if (up == NULL && why != WHY_LATE)
        up = take_tcp(c, w, NULL, false, turn, &again, f);
    if (up == NULL)
        choose_failure(f, &t.fail);
    return up;
}

/* ---- taking -------------------------------------------------------------- */

/* A way of HTTP/3, or of TCP that was faster.  One tries while others wait for
 * what comes of it, and again for as many as found no room in that. */
static struct upstream *
take_raced(const struct client *c, const struct wish *w,
           const struct altsvc *at, struct fail *f)
{
    struct sessions *ss = c->weir->upstreams->sessions;
    int64_t until = turn_ends(c);
    struct dialling *turn = NULL;
    struct fail last = {0};
    struct upstream *up;
    bool again;

    while (turn == NULL) {
        if ((up = take_quic(c, w->origin, w->upgrade)) != NULL)
            return up;
        if (!quic_may_try(c, w, &last) || now_ms() >= until) {
            up = take_tcp(c, w, NULL, false, NULL, &again, f);
            if (up == NULL)
                choose_failure(f, &last);
            return up;
        }
        turn = sessions_turn(ss, w->origin, NULL, until);
    }
    up = race(c, w, at, turn, f);
    sessions_turned(ss, turn);
    return up;
}

/* A way by one parent (NULL: directly).  *again: the next one may do better.
 * One that is to be fresh is asked for because another did not do. */
static struct upstream *
take_by(const struct client *c, const struct wish *w, struct parent *parent,
        bool fresh, bool *again, struct fail *f)
{
    struct upstream *up = NULL;
    struct altsvc at;

    *again = false;
    if (!quic_wanted(c, w->origin, parent, w->upgrade, &at))
        return take_tcp(c, w, parent, fresh, NULL, again, f);
    if (fresh && (up = take_tcp(c, w, parent, true, NULL, again, f)) == NULL &&
        !found_nobody(f))
        return NULL;
    if (up == NULL) {
        *f = (struct fail){0}; /* it may have no TCP at all */
        up = take_raced(c, w, &at, f);
    }
    return up;
}

/* What is there, or what can be made; waits for as long as that takes. */
static struct upstream *
take_waiting(const struct client *c, const struct origin *o,
             struct span upgrade, bool fresh, struct fail *f)
{
    struct wish w = {.origin = o, .upgrade = upgrade};
    struct parent *ways[WAYS_MAX];
    struct upstream *up = NULL;
    bool again = true;
    size_t n;

    if (access_target(c, o->host, o->port, &w.what, f) != WHY_NONE)
        return NULL;
    n = parent_choose(c->conf, o, ways);
    for (size_t i = 0; i < n && up == NULL && again; i++)
        up = take_by(c, &w, ways[i], fresh, &again, f);
    return up;
}

/* Is a way of HTTP/3 at hand (*up), or worth trying (*up NULL)? */
static bool
tries_quic(const struct client *c, const struct origin *o,
           const struct parent *parent, struct span upgrade,
           struct upstream **up)
{
    struct wish w = {.origin = o, .upgrade = upgrade};
    struct fail last;
    struct altsvc at;

    *up = NULL;
    if (!quic_wanted(c, o, parent, upgrade, &at))
        return false;
    *up = take_quic(c, o, upgrade);
    return *up != NULL || quic_may_try(c, &w, &last);
}

/* Is there something better for this origin than a way over TCP that is still
 * bare?  Then that is for the cache, and upstream_take() for the caller. */
bool
upstream_tries_quic(const struct client *c, const struct origin *o,
                    struct span upgrade)
{
    struct parent *ways[WAYS_MAX];
    struct upstream *up;
    bool tries;

    if (match_find(c->conf->target_deny, o->host, o->port) != NULL)
        return false;
    (void)parent_choose(c->conf, o, ways);
    tries = tries_quic(c, o, ways[0], upgrade, &up);
    upstream_free(up);
    return tries;
}

/* A way that is there already; NULL: there is none.  Does not wait, unless for
 * an upgrade.  Only the first choice counts: others are for when that fails. */
static struct upstream *
take_at_hand(const struct client *c, const struct origin *o,
             struct span upgrade, bool fresh)
{
    struct parent *ways[WAYS_MAX];
    struct upstream *up;

    (void)parent_choose(c->conf, o, ways);
    if (!fresh && tries_quic(c, o, ways[0], upgrade, &up))
        return up;
    up = fresh ? NULL : cache_take_alive(c, o, ways[0]);
    if (up != NULL && up->http != NULL) {
        up->reused = true;
        return up;
    }
    upstream_give(c, up); /* bare: somebody has to make it ready */
    return may_share(c, o, ways[0])
               ? take_shared(c, o, ways[0], HTTP_2, upgrade)
               : NULL;
}

struct taking { /* upstream_take() by a worker, for a fiber */
    const struct client *client;
    const struct origin *origin;
    struct span upgrade;
    bool fresh;
    struct fail *fail;
    struct upstream *up;
};

static void
taking_run(void *arg)
{
    struct taking *t = arg;

    t->up = take_waiting(t->client, t->origin, t->upgrade, t->fresh, t->fail);
}

/*
 * upstream_take - a way to speak HTTP with an origin.
 *
 * upgrade  what the request wants to switch to; empty: nothing
 * fresh    not a connection that has been used before.  A session that is
 *          shared knows by itself whether it is alive.
 *
 * Returns the caller's, to be given or freed; NULL: f is noted.
 * Thread: any.  Blocks: dns_s + 2 x connect_s, and as long for another who
 * finds out what the origin speaks; for each parent that is tried.  A fiber
 * sleeps meanwhile.
 */
struct upstream *
upstream_take(const struct client *c, const struct origin *o,
              struct span upgrade, bool fresh, struct fail *f)
{
    struct taking t = {c, o, upgrade, fresh, f, NULL};
    enum access what;

    if (!fiber_here())
        return take_waiting(c, o, upgrade, fresh, f);
    if (access_target(c, o->host, o->port, &what, f) != WHY_NONE)
        return NULL;
    if ((t.up = take_at_hand(c, o, upgrade, fresh)) != NULL)
        return t.up;
    if (!fiber_call(c->weir->exchanges, taking_run, &t))
        fail_own(f, SIDE_WEIR, WHY_BUSY, "no worker is free");
    return t.up;
}

/* Into the cache, as the one used last; the surplus one is closed. */
static void
cache_give(const struct client *c, struct upstream *up)
{
    struct upstreams *us = c->weir->upstreams;
    struct upstream *surplus = NULL;

    pthread_mutex_lock(&us->lock);
    if (us->n >= (size_t)c->conf->reuse_total * BURST)
        surplus = us->oldest;
    if (surplus != NULL)
        cache_unlink(us, surplus);
    cache_link(us, up);
    pthread_mutex_unlock(&us->lock);
    upstream_free(surplus);
}

/*
 * upstream_give - hand a way back, for somebody else to use.
 *
 * up  the cache's from here on: idle, its last exchange complete and nothing
 *     unread, or still bare.  NULL: nothing happens
 */
void
upstream_give(const struct client *c, struct upstream *up)
{
    if (up == NULL)
        return;
    if (up->stream != NULL || up->bound || c->conf->reuse_per_origin == 0 ||
        c->conf->reuse_total == 0 || atomic_load(&c->weir->draining)) {
        upstream_free(up);
        return;
    }
    if (up->http != NULL)
        secure_save_ticket(c->weir->upstreams->secure, up);
    end_drop_buffer(&up->end);
    up->given_at = now_ms();
    cache_give(c, up);
}

/* Is an idle, living way to this origin at hand?  (It may be gone again when
 * it is asked for.)  Does not wait. */
bool
upstream_has(const struct client *c, const struct origin *o)
{
    static const struct span none = {"", 0};
    struct parent *ways[WAYS_MAX];
    struct upstream *up;
    struct altsvc at;

    if (match_find(c->conf->target_deny, o->host, o->port) != NULL)
        return false;
    (void)parent_choose(c->conf, o, ways);
    up = cache_take_alive(c, o, ways[0]);
    if (up == NULL && may_share(c, o, ways[0]))
        up = take_shared(c, o, ways[0], HTTP_2, none);
    if (up == NULL && quic_wanted(c, o, ways[0], none, &at))
        up = take_quic(c, o, none);
    if (up == NULL)
        return false;
    if (up->stream != NULL)
        upstream_free(up);
    else
        cache_give(c, up); /* as old as it was: nobody has used it */
    return true;
}

/* Before a tunnel to a target that will be looked into: is a connection over
 * TCP needed, to know that it is there?  Whoever is tried in HTTP/3 may have
 * none. */
bool
upstream_reaches(const struct client *c, const struct origin *o)
{
    return upstream_has(c, o) ||
           upstream_tries_quic(c, o, (struct span){"", 0});
}

/* Can this way serve that origin, as the settings are now? */
bool
upstream_fits(const struct client *c, const struct upstream *up,
              const struct origin *o)
{
    struct parent *ways[WAYS_MAX];
    size_t n = parent_choose(c->conf, o, ways);

    if (up->serial != c->conf->serial)
        return false;
    for (size_t i = 0; i < n; i++)
        if (way_same(up, o, ways[i]))
            return true;
    return false;
}

/*
 * upstream_judge - how a parent that takes the requests itself has done.
 *
 * f  NULL: it answered; else why it did not.  Silence may be the origin's, and
 *    is not held against the parent
 */
void
upstream_judge(const struct client *c, struct upstream *up,
               const struct fail *f)
{
    if (!up->absolute ||
        (f != NULL && (f->side != SIDE_ORIGIN || f->why == WHY_IDLE ||
                       f->why == WHY_LATE || f->received != 0)))
        return;
    parent_judge(up->parent, f, c->id);
}

/*
 * upstream_learn - an answer has come by this way: what does it say of others?
 *
 * Who is to be believed is an origin that has proved its name, at no parent's
 * word, and with http3 = auto alone.
 */
void
upstream_learn(const struct client *c, const struct upstream *up,
               struct head *res)
{
    struct altsvcs *as = c->weir->upstreams->altsvcs;
    const struct field *age = head_find(res, "Age", NULL);
    struct span said = head_joined(res, "Alt-Svc");
    uint64_t age_s = 0;

    if (!c->conf->http3_auto || !up->origin.tls || up->parent != NULL)
        return;
    if (age != NULL && !span_number(age->value, &age_s))
        age_s = 0;
    if (res->status == 421 && up->alt_used[0] != '\0')
        altsvc_forget(as, &up->origin); /* RFC 7838 section 6 */
    else if (said.len > 0)
        altsvc_learn(as, &up->origin, said, age_s, now_ms());
}

/* The Via so far.  It keeps its end if it is long: a loop of proxies still
 * finds itself there. */
static void
note_via(struct told *told, const struct head *req)
{
    const struct field *f = NULL;
    size_t len = 0;

    told->via[0] = '\0';
    while ((f = head_find(req, "Via", f)) != NULL) {
        struct span rest = f->value, item;

        while (list_next(&rest, &item)) {
            if (item.len + 3 > VIA_MAX)
                continue;
            if (len + item.len + 3 > VIA_MAX)
                len = 0;
            len +=
                (size_t)snprintf(told->via + len, VIA_MAX - len, "%s%.*s",
                                 len > 0 ? ", " : "", (int)item.len, item.at);
        }
    }
}

/*
 * upstream_note_request - keep of a proxy request what a parent will be told.
 *
 * Behind a CONNECT that is what was kept of the CONNECT.  Without memory it is
 * nothing.
 */
void
upstream_note_request(struct client *c, const struct head *req)
{
    const struct field *f = head_find(req, "Proxy-Authorization", NULL);

    if (c->inside != NULL || (c->conf->ways.n == 0 && c->conf->n_rules == 0))
        return;
    if (c->told == NULL && (c->told = malloc(sizeof *c->told)) == NULL)
        return;
    note_via(c->told, req);
    c->told->proxy_auth[0] = '\0';
    if (!c->conf->forward_proxy_auth || f == NULL ||
        f->value.len >= PROXY_AUTH_MAX)
        return;
    memcpy(c->told->proxy_auth, f->value.at, f->value.len);
    c->told->proxy_auth[f->value.len] = '\0';
}

/* NULL: there is nothing to copy, or no memory. */
struct told *
told_copy(const struct told *from)
{
    struct told *to = from != NULL ? malloc(sizeof *to) : NULL;

    if (to != NULL)
        *to = *from;
    return to;
}

/* secure_known() for whoever has only a client at hand. */
bool
upstream_known(const struct client *c, const struct origin *o,
               struct known *out)
{
    return secure_known(c->weir->upstreams->secure, o, out);
}

/* ---- start, every second, end -------------------------------------------- */

/* No ways yet; upstream_ca is read.  NULL: err says why. */
struct upstreams *
upstreams_new(const struct config *conf, char *err, size_t cap)
{
    struct upstreams *us = calloc(1, sizeof *us);

    if (us == NULL) {
        snprintf(err, cap, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&us->lock, NULL);
    if ((us->breaker = breaker_new()) == NULL) {
        snprintf(err, cap, "out of memory");
        upstreams_free(us);
        return NULL;
    }
    if ((us->secure = secure_new(conf, err, cap)) == NULL) {
        upstreams_free(us);
        return NULL;
    }
    if ((us->altsvcs = altsvcs_new()) == NULL ||
        (us->sessions = sessions_new(us->secure, us->altsvcs)) == NULL) {
        snprintf(err, cap, "out of memory");
        upstreams_free(us);
        return NULL;
    }
    return us;
}

/* The settings have been read anew: whom they trust counts from now on.  False:
 * err says why not; all stays as it was.  Thread: main. */
bool
upstreams_reload(struct upstreams *us, const struct config *conf, char *err,
                 size_t cap)
{
    return secure_reload(us->secure, conf, err, cap);
}

/* Close what has been idle for reuse_s, and what is too many.  Called about
 * once a second. */
void
upstreams_reap(struct upstreams *us, const struct config *conf)
{
    int64_t since = now_ms() - conf->reuse_s * 1000LL;
    int64_t moment = now_ms() - MOMENT_MS;

    sessions_reap(us->sessions);
    for (;;) {
        struct upstream *up;

        pthread_mutex_lock(&us->lock);
        up = us->oldest;
        if (up != NULL && up->given_at >= since &&
            us->n <= (size_t)conf->reuse_total)
            up = cache_surplus(us, conf->reuse_per_origin, moment);
        if (up != NULL)
            cache_unlink(us, up);
        pthread_mutex_unlock(&us->lock);
        if (up == NULL)
            return;
        upstream_free(up);
    }
}

/* At exit; nobody uses it any more. */
void
upstreams_free(struct upstreams *us)
{
    if (us == NULL)
        return;
    while (us->oldest != NULL) {
        struct upstream *up = us->oldest;

        cache_unlink(us, up);
        upstream_free(up);
    }
    sessions_free(us->sessions);
    altsvcs_free(us->altsvcs);
    secure_free(us->secure);
    breaker_free(us->breaker);
    pthread_mutex_destroy(&us->lock);
    free(us);
}
