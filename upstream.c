/*
 * upstream.c - from a target to a connected, ready origin.
 *
 * Takes a way to an origin out of a cache of idle ones, or dials (dial.c) and
 * makes it ready: TLS (secure.c) and a codec to speak on.  Whoever takes a way
 * owns it until he gives it back or frees it.  The cache also holds ways that
 * are still bare: dialled for a CONNECT whose client then began TLS with us.
 *
 * Owns     the cache: per origin at most reuse_per_origin idle ways, in total
 *          reuse_total, none for longer than reuse_s.
 * Threads  any worker; one lock around the cache, never held while waiting.
 * Blocks   in dial() and secure_connect().
 */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum { BUCKETS = 256 }; /* a power of two */

struct upstreams {
    struct secure *secure;
    struct sessions *sessions; /* HTTP/2 ways, which are shared */
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

/* The oldest idle way to the same origin, if there are max of them already.
 * Needs us->lock. */
static struct upstream *
cache_surplus(struct upstreams *us, const struct origin *o, int max)
{
    struct upstream *last = NULL;
    int n = 0;

    for (struct upstream *up = us->buckets[bucket_of(o)]; up != NULL;
         up = up->next) {
        if (!origin_same(&up->origin, o))
            continue;
        last = up;
        n++;
    }
    return n >= max ? last : NULL;
}

/* Take the way to an origin that was used last out of the cache; NULL: none.
 * One that other settings led to is none: [resolve] or insecure may say
 * something else by now. */
static struct upstream *
cache_take(struct upstreams *us, const struct origin *o, unsigned serial)
{
    struct upstream *up;

    pthread_mutex_lock(&us->lock);
    up = us->buckets[bucket_of(o)];
    while (up != NULL && (up->serial != serial || !origin_same(&up->origin, o)))
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
cache_take_alive(const struct client *c, const struct origin *o)
{
    struct upstreams *us = c->weir->upstreams;
    int64_t since = now_ms() - c->conf->reuse_s * 1000LL;
    struct upstream *up;

    while ((up = cache_take(us, o, c->conf->serial)) != NULL) {
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
    free(up);
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
    struct upstream *up = calloc(1, sizeof *up);
    int fd = -1;

    if (up == NULL) {
        fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
        return NULL;
    }
    up->origin = *o;
    up->serial = c->conf->serial;
    up->took = (struct clock_marks){-1, -1, -1};
    if (dial(c, o->host, o->port, &fd, up->addr, &up->took, f) != WHY_NONE) {
        free(up);
        return NULL;
    }
    end_init(&up->end, fd, SIDE_ORIGIN, c->conf->idle_s * 1000);
    return up;
}

/* Did the origin choose HTTP/2, or do the settings say that it speaks it? */
static bool
speaks_h2(const struct client *c, const struct upstream *up, unsigned alpn)
{
    gnutls_datum_t name;

    if (!up->origin.tls)
        return (alpn & ALPN_H2) &&
               match_host(c->conf->h2c, up->origin.host, up->origin.port);
    return gnutls_alpn_get_selected_protocol(end_session(&up->end), &name) ==
               0 &&
           name.size == 2 && memcmp(name.data, "h2", 2) == 0;
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
    if (speaks_h2(c, up, alpn))
        return session_start(c->weir->upstreams->sessions, c, up, f);
    h1_init(&up->h1, &up->end, SIDE_ORIGIN, c->conf);
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

/* A stream of a session that is there already; NULL: there is none, or not for
 * this upgrade. */
static struct upstream *
take_shared(const struct client *c, const struct origin *o, struct span upgrade)
{
    struct upstream *up = calloc(1, sizeof *up);

    if (up == NULL)
        return NULL;
    up->serial = c->conf->serial;
    if (session_take(c->weir->upstreams->sessions, o, up) &&
        upstream_serves(up, upgrade))
        return up;
    if (up->stream == NULL) /* its end was never begun */
        up->end.fd = -1;
    upstream_free(up);
    return NULL;
}

/* Dial and make ready.  An origin that turns out to speak HTTP/2 and not to
 * take this upgrade is asked again, for HTTP/1 alone. */
static struct upstream *
take_new(const struct client *c, const struct origin *o, struct span upgrade,
         struct upstream *up, struct fail *f)
{
    unsigned alpn = ALPN_HTTP1 | ALPN_H2;

    for (;;) {
        if (up == NULL && (up = upstream_dial(c, o, f)) == NULL)
            return NULL;
        if (upstream_ready(c, up, alpn, f) != WHY_NONE) {
            upstream_free(up);
            return NULL;
        }
        if (alpn == ALPN_HTTP1 || upstream_serves(up, upgrade))
            return up;
        upstream_free(up);
        up = NULL;
        alpn = ALPN_HTTP1;
    }
}

/* May this origin speak HTTP/2, for all we know? */
static bool
may_share(const struct client *c, const struct origin *o)
{
    struct known known;

    if (!o->tls)
        return match_host(c->conf->h2c, o->host, o->port);
    return !upstream_known(c, o, &known) || (known.alpn & ALPN_H2);
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
 * finds out what the origin speaks.
 */
struct upstream *
upstream_take(const struct client *c, const struct origin *o,
              struct span upgrade, bool fresh, struct fail *f)
{
    struct sessions *ss = c->weir->upstreams->sessions;
    struct dialling *turn = NULL;
    struct upstream *up = fresh ? NULL : cache_take_alive(c, o);

    if (up != NULL && up->http != NULL) {
        up->reused = true;
        return up;
    }
    if (may_share(c, o)) {
        struct upstream *shared = take_shared(c, o, upgrade);

        if (shared == NULL) {
            turn = sessions_turn(
                ss, o,
                now_ms() + (c->conf->dns_s + 2 * c->conf->connect_s) * 1000LL);
            if (turn == NULL || !may_share(c, o))
                shared = take_shared(c, o, upgrade);
        }
        if (shared != NULL) {
            sessions_turned(ss, turn);
            upstream_give(c, up);
            return shared;
        }
    }
    up = take_new(c, o, upgrade, up, f);
    sessions_turned(ss, turn);
    return up;
}

/* Into the cache, as the one used last; the surplus one is closed. */
static void
cache_give(const struct client *c, struct upstream *up)
{
    struct upstreams *us = c->weir->upstreams;
    struct upstream *surplus;

    pthread_mutex_lock(&us->lock);
    surplus = cache_surplus(us, &up->origin, c->conf->reuse_per_origin);
    if (surplus == NULL && us->n >= (size_t)c->conf->reuse_total)
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
    struct upstream *up = cache_take_alive(c, o);

    if (up == NULL && may_share(c, o))
        up = take_shared(c, o, (struct span){"", 0});
    if (up == NULL)
        return false;
    if (up->stream != NULL)
        upstream_free(up);
    else
        cache_give(c, up); /* as old as it was: nobody has used it */
    return true;
}

/* secure_known() for whoever has only a client at hand. */
bool
upstream_known(const struct client *c, const struct origin *o,
               struct known *out)
{
    return secure_known(c->weir->upstreams->secure, o, out);
}

/* ---- start, every second, end -------------------------------------------- */

/* Load the trust store; NULL: err says why. */
struct upstreams *
upstreams_new(const struct config *conf, char *err, size_t cap)
{
    struct upstreams *us = calloc(1, sizeof *us);

    if (us == NULL) {
        snprintf(err, cap, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&us->lock, NULL);
    if ((us->secure = secure_new(conf, err, cap)) == NULL) {
        upstreams_free(us);
        return NULL;
    }
    if ((us->sessions = sessions_new(us->secure)) == NULL) {
        snprintf(err, cap, "out of memory");
        upstreams_free(us);
        return NULL;
    }
    return us;
}

/* Close what has been idle for reuse_s.  Called about once a second. */
void
upstreams_reap(struct upstreams *us, const struct config *conf)
{
    int64_t since = now_ms() - conf->reuse_s * 1000LL;

    sessions_reap(us->sessions);
    for (;;) {
        struct upstream *up;

        pthread_mutex_lock(&us->lock);
        up = us->oldest != NULL && us->oldest->given_at < since ? us->oldest
                                                                : NULL;
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
    secure_free(us->secure);
    pthread_mutex_destroy(&us->lock);
    free(us);
}
