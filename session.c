/*
 * session.c - HTTP/2 connections to origins, shared by all who ask them.
 *
 * A way that speaks HTTP/2 becomes a session with an owner thread; whoever
 * wants to ask its origin gets a stream of it, as long as the origin allows
 * more.  When many want to reach an origin that may speak HTTP/2 at once, one
 * dials and the others wait for what comes of it.
 *
 * Owns     the sessions: their ends, their threads.
 * Threads  any may ask; one owner a session; the accept thread reaps those
 *          that are over.
 * Blocks   sessions_turn(), for the one who dials.
 */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum { SETTLE_MS = 2000 /* how long an origin's SETTINGS are waited for */ };

struct session {
    /* set before its thread starts, then only read */
    struct sessions *all;
    struct weir *weir;
    struct upstream way; /* its end is the session's; http is NULL */
    struct h2 *h2;
    int reuse_ms;
    pthread_t thread;
    /* needs all->lock */
    bool over;
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
 * there may be a session now (or dial at once: nobody waits twice).
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
    struct line l;

    if (!log_on(LEVEL_DEBUG))
        return;
    log_begin(&l, LEVEL_DEBUG, "session", 0);
    log_str(&l, "origin", s->way.addr);
    log_int(&l, "streams", (int64_t)h2_served(s->h2));
    log_int(&l, "in", (int64_t)s->way.end.n_in);
    log_int(&l, "out", (int64_t)s->way.end.n_out);
    log_fail(&l, f);
    log_send(&l);
}

static void *
session_main(void *arg)
{
    struct session *s = arg;
    struct fail f = {0};
    enum why why;

    pthread_setname_np(pthread_self(), "weir-h2");
    why = h2_run(s->h2, s->reuse_ms, &f);
    secure_save_ticket(s->all->secure, &s->way);
    if (why == WHY_EOF && !end_unsent(&s->way.end)) {
        struct fail ignored = {0};

        (void)end_finish(&s->way.end, &ignored);
    }
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
    end_clear(&s->way.end);
    parent_give(s->way.parent);
    free(s);
}

/* Make a stream of the session the caller's way. */
static bool
session_lend(struct session *s, struct upstream *up)
{
    bool used;
    struct stream *stream = h2_open(s->h2, &used);

    if (stream == NULL)
        return false;
    memcpy(up->addr, s->way.addr, sizeof up->addr);
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
    struct session *s = calloc(1, sizeof *s);

    if (s == NULL)
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    s->all = ss;
    s->weir = c->weir;
    s->way = *up;
    s->way.parent = parent_take(up->parent);
    s->reuse_ms = c->conf->reuse_s > 0 ? c->conf->reuse_s * 1000 : 1;
    s->h2 = h2_new(&s->way.end, SIDE_ORIGIN, c->conf, &user);
    if (s->h2 == NULL || !session_lend(s, up)) {
        h2_free(s->h2);
        parent_give(s->way.parent);
        free(s);
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    }
    if (pthread_create(&s->thread, NULL, session_main, s) != 0) {
        stream_drop(up->stream); /* it has no owner */
        stream_give(up->stream);
        up->stream = NULL;
        up->http = NULL;
        up->end = s->way.end;
        h2_free(s->h2);
        parent_give(s->way.parent);
        free(s);
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "start a thread");
    }
    pthread_mutex_lock(&ss->lock);
    s->next = ss->first;
    ss->first = s;
    pthread_mutex_unlock(&ss->lock);
    return WHY_NONE;
}

/*
 * session_take - a stream of a session with the origin, if there is one with
 * room.
 *
 * c   whose settings must be those that the session was opened under
 * up  a way that is nothing yet; filled in
 */
bool
session_take(struct sessions *ss, const struct client *c,
             const struct origin *o, const struct parent *parent,
             struct upstream *up)
{
    bool taken = false;

    pthread_mutex_lock(&ss->lock);
    for (struct session *s = ss->first; s != NULL && !taken; s = s->next)
        taken = !s->over && origin_same(&s->way.origin, o) &&
                parent_same(s->way.parent, parent) &&
                s->way.serial == c->conf->serial && session_lend(s, up);
    pthread_mutex_unlock(&ss->lock);
    return taken;
}

/* Does the origin behind a stream take WebSockets (RFC 8441)?  Blocks: until
 * its SETTINGS have come. */
bool
session_extended(const struct upstream *up)
{
    return h2_extended(up->session->h2, now_ms() + SETTLE_MS) == 1;
}

/* ---- start, every second, end -------------------------------------------- */

/* secure: gets the tickets of sessions that end.  NULL: out of memory. */
struct sessions *
sessions_new(struct secure *secure)
{
    struct sessions *ss = calloc(1, sizeof *ss);

    if (ss == NULL)
        return NULL;
    ss->secure = secure;
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
    for (struct session *s = ss->first; s != NULL; s = s->next)
        h2_stop(s->h2);
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
