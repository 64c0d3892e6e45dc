/*
 * session.c - HTTP/2 and HTTP/3 connections to origins, shared by all who ask
 * them.
 *
 * A way that speaks one of them becomes a session with an owner thread; whoever
 * wants to ask its origin gets a stream of it, as long as the origin allows
 * more.  When many want to reach an origin that may speak HTTP/2 or 3 at once,
 * one dials and the others wait for what comes of it.
 *
 * Owns     the sessions: their ends or UDP sockets, their threads.
 * Threads  any may ask; one owner a session; the accept thread reaps those
 *          that are over.
 * Blocks   sessions_turn(), for the one who dials.
 */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

enum { SETTLE_MS = 2000 /* how long an origin's SETTINGS are waited for */ };

struct session {
    /* set before its thread starts, then only read */
    struct sessions *all;
    struct weir *weir;
    struct upstream way; /* its end is the session's; http is NULL */
    struct h2 *h2;       /* HTTP/2, or NULL */
    struct h3 *h3;       /* HTTP/3, or NULL */
    int reuse_ms;
    pthread_t thread;
    /* needs all->lock */
    bool over, ready;
    struct session *next;
};

struct dialling { /* somebody finds out what an origin speaks */
    struct origin origin;
    struct parent *parent; /* the way it is tried by; NULL: directly */
    struct dialling *next;
    int n_waiting;
    bool ended;
};

struct sessions {
    struct secure *secure;
    struct altsvcs *altsvcs;
    pthread_mutex_t lock;
    pthread_cond_t turned; /* a dialling has ended */
    /* needs lock */
    struct session *first;
    struct dialling *dialling;
};

/* ---- one dials, others wait ---------------------------------------------- */

/* Needs lock. */
static struct dialling *
dialling_find(struct sessions *ss, const struct origin *o,
              const struct parent *parent)
{
    struct dialling *d = ss->dialling;

    while (d != NULL && (d->ended || !origin_same(&d->origin, o) ||
                         !parent_same(d->parent, parent)))
        d = d->next;
    return d;
}

/* Needs lock. */
static void
dialling_free(struct sessions *ss, struct dialling *d)
{
    struct dialling **at = &ss->dialling;

    while (*at != d)
        at = &(*at)->next;
    *at = d->next;
    parent_give(d->parent);
    free(d);
}

/*
 * sessions_turn - may the caller dial this origin, or does somebody already?
 *
 * until  ms: how long to wait for the other
 *
 * Returns what sessions_turned() wants afterwards; NULL: somebody dialled, and
 * there may be a session now.
 */
struct dialling *
sessions_turn(struct sessions *ss, const struct origin *o,
              const struct parent *parent, int64_t until)
{
    struct dialling *d, *mine = NULL;

    pthread_mutex_lock(&ss->lock);
    if ((d = dialling_find(ss, o, parent)) != NULL) {
        d->n_waiting++;
        while (!d->ended && now_ms() < until)
            (void)cond_until(&ss->turned, &ss->lock, until);
        if (--d->n_waiting == 0 && d->ended)
            dialling_free(ss, d);
    } else if ((mine = calloc(1, sizeof *mine)) != NULL) {
        mine->origin = *o;
        mine->parent = parent_take((struct parent *)parent);
        mine->next = ss->dialling;
        ss->dialling = mine;
    }
    pthread_mutex_unlock(&ss->lock);
    return mine;
}

/* It is known now, or has failed.  NULL: nothing. */
void
sessions_turned(struct sessions *ss, struct dialling *d)
{
    if (d == NULL)
        return;
    pthread_mutex_lock(&ss->lock);
    d->ended = true;
    if (d->n_waiting == 0)
        dialling_free(ss, d);
    pthread_cond_broadcast(&ss->turned);
    pthread_mutex_unlock(&ss->lock);
}

/* ---- sessions ------------------------------------------------------------ */

static void
log_session(const struct session *s, const struct fail *f)
{
    struct quic_bytes bytes = {s->way.end.n_in, s->way.end.n_out};
    struct line l;

    if (!log_on(LEVEL_DEBUG))
        return;
    if (s->h3 != NULL)
        bytes = h3_bytes(s->h3);
    log_begin(&l, LEVEL_DEBUG, "session", 0);
    log_str(&l, "origin", s->way.addr);
    log_str(&l, "version", version_name(s->h3 != NULL ? HTTP_3 : HTTP_2));
    log_int(&l, "streams",
            (int64_t)(s->h3 != NULL ? h3_served(s->h3) : h2_served(s->h2)));
    log_int(&l, "in", (int64_t)bytes.in);
    log_int(&l, "out", (int64_t)bytes.out);
    log_fail(&l, f);
    log_send(&l);
}

static void
run_h2(struct session *s, struct fail *f)
{
    enum why why = h2_run(s->h2, s->reuse_ms, f);

    secure_save_ticket(s->all->secure, &s->way);
    if (why == WHY_EOF && !end_unsent(&s->way.end)) {
        struct fail ignored = {0};

        (void)end_finish(&s->way.end, &ignored);
    }
}

/* One that broke off is not to be tried again at once. */
static void
run_h3(struct session *s, struct fail *f)
{
    enum why why = h3_run(s->h3, s->reuse_ms, f);

    secure_quic_save(s->all->secure, &s->way, h3_session(s->h3));
    if (why != WHY_NONE && why != WHY_EOF && f->side == SIDE_ORIGIN)
        session_failed(s->all, &s->way.origin, f);
}

static void *
session_main(void *arg)
{
    struct session *s = arg;
    struct fail f = {0};

    pthread_setname_np(pthread_self(), s->h3 != NULL ? "weir-h3" : "weir-h2");
    if (s->h3 != NULL)
        run_h3(s, &f);
    else
        run_h2(s, &f);
    log_session(s, &f);
    pthread_mutex_lock(&s->all->lock);
    s->over = true;
    pthread_mutex_unlock(&s->all->lock);
    return NULL;
}

static void
session_free(struct session *s)
{
    h2_free(s->h2);
    h3_free(s->h3);
    end_clear(&s->way.end);
    parent_give(s->way.parent);
    free(s);
}

/* Make a stream of the session the caller's way. */
static bool
session_lend(struct session *s, struct upstream *up)
{
    bool used;
    struct stream *stream =
        s->h3 != NULL ? h3_open(s->h3, &used) : h2_open(s->h2, &used);

    if (stream == NULL)
        return false;
    memcpy(up->addr, s->way.addr, sizeof up->addr);
    memcpy(up->alt_used, s->way.alt_used, sizeof up->alt_used);
    up->origin = s->way.origin;
    up->serial = s->way.serial;
    up->hop = s->way.hop;
    if (up->parent == NULL)
        up->parent = parent_take(s->way.parent);
    up->took = s->way.took;
    up->insecure = s->way.insecure;
    up->reused = used;
    up->stream = stream;
    up->http = &stream->http;
    up->session = s;
    end_init(&up->end, -1, SIDE_ORIGIN, 1);
    return true;
}

/* Its settings are those of `c`; the way is copied. */
static struct session *
session_new(struct sessions *ss, const struct client *c,
            const struct upstream *way)
{
    struct session *s = calloc(1, sizeof *s);

    if (s == NULL)
        return NULL;
    s->all = ss;
    s->weir = c->weir;
    s->way = *way;
    s->way.parent = parent_take(way->parent);
    s->reuse_ms = c->conf->reuse_s > 0 ? c->conf->reuse_s * 1000 : 1;
    return s;
}

/* Its first stream becomes `up`; then its thread begins.  On failure all but
 * its end is gone. */
static enum why
session_begin(struct session *s, struct upstream *up, struct fail *f)
{
    struct sessions *ss = s->all;

    if ((s->h2 == NULL && s->h3 == NULL) || !session_lend(s, up)) {
        fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    } else if (pthread_create(&s->thread, NULL, session_main, s) != 0) {
        stream_drop(up->stream); /* it has no owner */
        stream_give(up->stream);
        up->stream = NULL;
        up->http = NULL;
        fail_own(f, SIDE_WEIR, WHY_BUSY, "start a thread");
    } else {
        pthread_mutex_lock(&ss->lock);
        s->next = ss->first;
        ss->first = s;
        pthread_mutex_unlock(&ss->lock);
        return WHY_NONE;
    }
    up->end = s->way.end;
    s->way.end.fd = -1;
    end_init(&s->way.end, -1, SIDE_ORIGIN, 1);
    session_free(s);
    return f->why;
}

/* An origin says in a frame what others say in a field (RFC 7838 section 4). */
static void
session_altsvc(void *arg, struct span origin, struct span value)
{
    struct session *s = arg;
    char ours[HOST_MAX + 32] = "https://";

    origin_authority(&s->way.origin, ours + 8, sizeof ours - 8);
    if (origin.len == 0 || span_is(origin, ours))
        altsvc_learn(s->all->altsvcs, &s->way.origin, value, 0, now_ms());
}

/*
 * session_start - the way turned out to speak HTTP/2: it becomes a session.
 *
 * up  connected; afterwards a stream of the session.  On failure its end is
 *     still its own, and only fit to be closed
 */
enum why
session_start(struct sessions *ss, const struct client *c, struct upstream *up,
              struct fail *f)
{
    struct h2_user user = {.weir = c->weir};
    struct session *s = session_new(ss, c, up);

    if (s == NULL)
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    s->ready = true;
    user.arg = s;
    if (c->conf->http3_auto && up->origin.tls && up->parent == NULL)
        user.altsvc = session_altsvc;
    s->h2 = h2_new(&s->way.end, SIDE_ORIGIN, c->conf, &user);
    return session_begin(s, up, f);
}

/* In the handshake: is it the origin? */
static enum why
session_verify(void *arg, gnutls_session_t tls, struct fail *f)
{
    struct session *s = arg;

    return secure_quic_verify(s->all->secure, &s->way, tls, f);
}

/*
 * session_start_quic - a QUIC connection begins, as a session of HTTP/3.
 *
 * up  neither connected nor through a parent; afterwards a stream of the
 *     session, which waits for the handshake: see session_ready()
 * fd  a connected UDP socket, non-blocking; not the caller's any more
 */
enum why
session_start_quic(struct sessions *ss, const struct client *c,
                   struct upstream *up, int fd, struct fail *f)
{
    struct h3_user user = {.weir = c->weir, .verify = session_verify};
    struct session *s = NULL;
    gnutls_session_t tls;

    if (secure_quic(ss->secure, c, up, &tls, f) != WHY_NONE) {
        close(fd);
        return f->why;
    }
    if ((s = session_new(ss, c, up)) == NULL) {
        gnutls_deinit(tls);
        close(fd);
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    }
    user.arg = s;
    s->h3 = h3_connect(fd, tls, c->conf, &user);
    return session_begin(s, up, f);
}

/*
 * session_ready - is the handshake of session_start_quic() complete?
 *
 * until  ms: how long it is waited for
 *
 * Returns WHY_NONE; WHY_LATE: not yet, and f is not noted; else what was wrong.
 */
enum why
session_ready(const struct upstream *up, int64_t until, struct fail *f)
{
    struct session *s = up->session;
    struct fail why_not = {0};
    enum why why = h3_ready(s->h3, until, &why_not);

    if (why == WHY_NONE) {
        pthread_mutex_lock(&s->all->lock);
        s->ready = true;
        pthread_mutex_unlock(&s->all->lock);
    } else if (why != WHY_LATE) {
        *f = why_not;
    }
    return why;
}

/* HTTP/3 with an origin has failed: it is left alone in it for a while. */
void
session_failed(struct sessions *ss, const struct origin *o,
               const struct fail *f)
{
    int64_t pause = altsvc_failed(ss->altsvcs, o, f, now_ms());
    char text[256];

    if (pause == 0)
        return;
    fail_text(f, text, sizeof text);
    log_say(LEVEL_INFO, 0, "http3", "%s port %u: %s: not tried for %lld s",
            o->host, o->port, text, (long long)pause / 1000);
}

/* Is its handshake complete, which somebody may have stopped waiting for?
 * Needs ss->lock. */
static bool
session_is_ready(struct session *s)
{
    struct fail ignored = {0};

    if (!s->ready)
        s->ready = h3_ready(s->h3, now_ms(), &ignored) == WHY_NONE;
    return s->ready;
}

/* Does it lead there, under the settings of c?  Needs ss->lock. */
static bool
session_fits(struct session *s, const struct client *c, const struct origin *o,
             const struct parent *parent, enum version version)
{
    return !s->over && (s->h3 != NULL) == (version == HTTP_3) &&
           origin_same(&s->way.origin, o) &&
           parent_same(s->way.parent, parent) &&
           s->way.serial == c->conf->serial && session_is_ready(s);
}

/*
 * session_take - a stream of a session with the origin, if there is one with
 * room.
 *
 * c        whose settings must be those that the session was opened under
 * version  HTTP_2 or HTTP_3
 * up       a way that is nothing yet; filled in
 */
bool
session_take(struct sessions *ss, const struct client *c,
             const struct origin *o, const struct parent *parent,
             enum version version, struct upstream *up)
{
    bool taken = false;

    pthread_mutex_lock(&ss->lock);
    for (struct session *s = ss->first; s != NULL && !taken; s = s->next)
        taken = session_fits(s, c, o, parent, version) && session_lend(s, up);
    pthread_mutex_unlock(&ss->lock);
    return taken;
}

/* Is there one at all, full or not? */
bool
session_any(struct sessions *ss, const struct client *c, const struct origin *o,
            const struct parent *parent, enum version version)
{
    bool any = false;

    pthread_mutex_lock(&ss->lock);
    for (struct session *s = ss->first; s != NULL && !any; s = s->next)
        any = session_fits(s, c, o, parent, version);
    pthread_mutex_unlock(&ss->lock);
    return any;
}

/* Does the origin behind a stream take WebSockets (RFC 8441, RFC 9220)?
 * Blocks: until its SETTINGS have come. */
bool
session_extended(const struct upstream *up)
{
    const struct session *s = up->session;
    int64_t until = now_ms() + SETTLE_MS;

    return (s->h3 != NULL ? h3_extended(s->h3, until)
                          : h2_extended(s->h2, until)) == 1;
}

/* Does it speak HTTP/3? */
bool
session_is_quic(const struct upstream *up)
{
    return up->session != NULL && up->session->h3 != NULL;
}

/* ---- start, every second, end -------------------------------------------- */

/* secure: gets the tickets of sessions that end; altsvcs: learns where HTTP/3
 * fails.  NULL: out of memory. */
struct sessions *
sessions_new(struct secure *secure, struct altsvcs *altsvcs)
{
    struct sessions *ss = calloc(1, sizeof *ss);

    if (ss == NULL)
        return NULL;
    ss->secure = secure;
    ss->altsvcs = altsvcs;
    pthread_mutex_init(&ss->lock, NULL);
    pthread_cond_init(&ss->turned, NULL);
    return ss;
}

/* One that is over, taken out; NULL: none. */
static struct session *
take_over(struct sessions *ss)
{
    struct session **at = &ss->first, *s;

    pthread_mutex_lock(&ss->lock);
    while (*at != NULL && !(*at)->over)
        at = &(*at)->next;
    if ((s = *at) != NULL)
        *at = s->next;
    pthread_mutex_unlock(&ss->lock);
    return s;
}

/* Join and free the sessions that are over.  About once a second. */
void
sessions_reap(struct sessions *ss)
{
    struct session *s;

    while ((s = take_over(ss)) != NULL) {
        pthread_join(s->thread, NULL);
        session_free(s);
    }
}

/* At exit: end them all.  Nobody uses a stream any more. */
void
sessions_free(struct sessions *ss)
{
    if (ss == NULL)
        return;
    for (struct session *s = ss->first; s != NULL; s = s->next) {
        if (s->h3 != NULL)
            h3_stop(s->h3);
        else
            h2_stop(s->h2);
    }
    while (ss->first != NULL) {
        struct session *s = ss->first;

        pthread_join(s->thread, NULL);
        ss->first = s->next;
        session_free(s);
    }
    assert(ss->dialling == NULL);
    pthread_cond_destroy(&ss->turned);
    pthread_mutex_destroy(&ss->lock);
    free(ss);
}
