/*
 * upload.c - the content of a request on its way up, by the worker's twin.
 *
 * The twin reads what the client sends and writes it to the origin while the
 * worker reads the answers.  Between them is a gate: shut while the worker
 * writes a request's head, and as long as the request may have to be sent to
 * another way.
 *
 * Follows  RFC 9112 section 9.6 (an answer before the request is complete).
 * Owns     nothing: struct upload is exchange.c's.
 * Threads  the worker, and its twin in upload_run().
 * Blocks   on both sides, within their clocks.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

enum {
    SPLICE_FROM = 131072,  /* content left that is worth a pipe */
    SPLICE_BYTES = 262144, /* what the pipe shall hold */
    DISCARD_MS = 2000,     /* how long unwanted content is read */
    LOOK_MS = 100,         /* the same, until the origin refuses content */
    TICK_MS = 1000,        /* how often a wait for the twin looks around */
};

/* ---- bulk ---------------------------------------------------------------- */

/*
 * http_splice - bulk between two plain sockets does not come up to us.
 *
 * moved_at  set to the present whenever something has moved
 *
 * Moves all it can of `from`'s content.  What the codecs have buffered must
 * have been read, and flushed, before.  Content with a clock of its own is a
 * trickle of events, not bulk.
 *
 * Returns WHY_NONE: read on; WHY_MORE: not possible, or not worth it, here; or
 * what end_splice() noted.  Thread: the reader of `from`, who writes `to`.
 * Source: splice(2).
 */
enum why
http_splice(struct http *from, struct http *to, atomic_llong *moved_at,
            struct fail *f)
{
    uint64_t left = 0;
    struct end *in = from->ops->raw_in(from, &left);
    struct end *out = in != NULL ? to->ops->raw_out(to) : NULL;
    const struct watch *before;
    int fds[2];
    enum why why = WHY_NONE;

    if (out == NULL || left < SPLICE_FROM || from->idle_ms != 0 ||
        pipe2(fds, O_CLOEXEC) != 0)
        return WHY_MORE;
    (void)fcntl(fds[1], F_SETPIPE_SZ, SPLICE_BYTES); /* else its default */
    before = in->watch;
    if (from->watch != NULL) /* as the codec does when it reads */
        in->watch = from->watch;
    while (left > 0 && why == WHY_NONE) {
        size_t n = left < SPLICE_BYTES ? (size_t)left : SPLICE_BYTES;

        why = end_splice(in, out, fds, n, &n, f);
        if (why == WHY_NONE) {
            from->ops->raw_moved(from, n, 0);
            to->ops->raw_moved(to, 0, n);
            atomic_store(moved_at, now_ms());
            if (left != UINT64_MAX)
                left -= n;
        }
    }
    in->watch = before;
    close(fds[0]);
    close(fds[1]);
    /* The codec knows whether this end of input is the content's, too. */
    return why == WHY_EOF ? WHY_NONE : why;
}

/* ---- the request's content ----------------------------------------------- */

static struct http *
gate_pass(struct upload *u)
{
    struct http *to;

    pthread_mutex_lock(&u->lock);
    while (u->shut)
        pthread_cond_wait(&u->opened, &u->lock);
    u->begun = true;
    to = u->to;
    pthread_mutex_unlock(&u->lock);
    return to;
}

/* The request may have to be sent again, to another way: hold its content back.
 * False: some of it has passed already.  The worker's. */
bool
upload_hold(struct upload *u)
{
    bool shut;

    pthread_mutex_lock(&u->lock);
    shut = !u->begun;
    if (shut) {
        u->shut = true;
        u->to = NULL;
    }
    pthread_mutex_unlock(&u->lock);
    return shut;
}

static void
gate_open(struct upload *u, struct http *to)
{
    pthread_mutex_lock(&u->lock);
    u->shut = false;
    u->to = to;
    pthread_cond_broadcast(&u->opened);
    pthread_mutex_unlock(&u->lock);
}

/* Carry what the client sends until its content is complete. */
static enum why
upload_carry(struct upload *u, struct http **to)
{
    struct http *from = u->x->down;
    int idle_ms = u->x->client->conf->idle_s * 1000;
    enum why why;

    for (;;) {
        struct span got;

        why = WHY_MORE;
        if (*to != NULL && !from->ops->complete(from) &&
            !from->ops->pending(from)) {
            if ((why = (*to)->ops->flush(*to, &u->fail)) != WHY_NONE)
                return why;
            why = http_splice(from, *to, &u->moved_at, &u->fail);
        }
        if (why == WHY_MORE || why == WHY_NONE)
            why = from->ops->read_body(from, &got, &u->fail);
        if (why == WHY_IDLE && u->fail.side == SIDE_CLIENT &&
            now_ms() - atomic_load(&u->moved_at) < idle_ms) {
            u->fail = (struct fail){0}; /* the answer is moving meanwhile */
            continue;
        }
        if (*to == NULL && (*to = gate_pass(u)) == NULL)
            return WHY_OVER; /* nobody to send it to: the worker has given up */
        if (why != WHY_NONE)
            break;
        atomic_store(&u->moved_at, now_ms());
        if ((why = (*to)->ops->write_body(*to, got, &u->fail)) != WHY_NONE)
            return why;
    }
    if (why != WHY_EOF)
        return why;
    why = (*to)->ops->write_end(*to, from->ops->trailers(from), &u->fail);
    return why == WHY_NONE ? (*to)->ops->flush(*to, &u->fail) : why;
}

/* The origin takes no more, but the client is still sending and will not look
 * at our answer before it has been heard, or would be reset while reading it
 * (RFC 9112 section 9.6).  So read on for a while. */
static void
upload_discard(struct upload *u)
{
    struct http *from = u->x->down;
    int64_t until = now_ms() + DISCARD_MS;
    struct fail ignored = {0};
    struct span got;

    while (now_ms() < until &&
           from->ops->read_body(from, &got, &ignored) == WHY_NONE)
        ;
}

/* The twin's job. */
static void
upload_run(void *arg)
{
    struct upload *u = arg;
    struct http *to = NULL;
    enum why why = upload_carry(u, &to);

    atomic_store(&u->done, true); /* before abort() wakes the worker */
    if (why != WHY_NONE && u->fail.side == SIDE_CLIENT && to != NULL)
        to->ops->abort(to, WHY_CUT); /* the origin must see it cut, too */
    if (why != WHY_NONE && u->fail.side != SIDE_CLIENT &&
        !u->x->down->ops->unwanted(u->x->down)) {
        atomic_store(&u->discard, true);
        upload_discard(u);
    }
}

/* Nothing is carried yet; upload_join() has to follow.  The worker's. */
void
upload_init(struct upload *u, struct exchange *x)
{
    memset(u, 0, sizeof *u);
    u->x = x;
    pthread_mutex_init(&u->lock, NULL);
    pthread_cond_init(&u->opened, NULL);
}

/*
 * upload_start - let the content pass, to `to`; the twin carries it.
 *
 * The request's head has been written there.  Again after upload_hold(): to
 * another way.  Returns false: no thread is to be had.  Thread: the worker.
 */
bool
upload_start(struct upload *u, struct http *to)
{
    atomic_store(&u->moved_at, now_ms());
    gate_open(u, to);
    if (!u->started)
        u->started = twin_start(u->x->worker, upload_run, u);
    return u->started;
}

/* Did the client break its own request?  Only asked when things went wrong. */
bool
upload_client_failed(struct upload *u)
{
    return u->started && atomic_load(&u->done) && u->fail.why != WHY_NONE &&
           u->fail.side == SIDE_CLIENT;
}

/*
 * upload_join - wait for the twin, with our answer complete or given up.
 *
 * hopeless  nobody will read what it carries
 *
 * An upload that still moves may go on: the origin said it keeps the
 * connection.  One that is only being discarded, or that waits for a 100
 * (Continue) which will never come, ends here; as does one that the origin
 * refuses after its answer, while the client is silent and so would not learn
 * it.
 * Thread: the worker.  Blocks: as long as the upload moves.
 */
void
upload_join(struct upload *u, bool hopeless)
{
    struct exchange *x = u->x;
    int64_t until = now_ms() + DISCARD_MS;
    bool told = u->unheard;

    if (u->started) {
        gate_open(u, u->to);
        if (u->unheard)
            (void)x->down->ops->unwanted(x->down);
        while (!twin_wait(x->worker, hopeless ? DISCARD_MS
                                     : told   ? TICK_MS
                                              : LOOK_MS)) {
            if (!told && x->up != NULL && x->up->http->ops->gone(x->up->http)) {
                told = x->down->last = true;
                if (!x->down->ops->unwanted(x->down))
                    atomic_store(&u->discard, true);
                until = now_ms() + DISCARD_MS;
            }
            if (!hopeless && !atomic_load(&x->client->weir->stopping) &&
                !(atomic_load(&u->discard) && now_ms() >= until))
                continue;
            if (x->up != NULL)
                x->up->http->ops->abort(x->up->http, WHY_OVER);
            x->down->ops->abort(x->down, WHY_OVER);
            twin_wait(x->worker, -1);
            break;
        }
        u->started = false;
    }
    pthread_cond_destroy(&u->opened);
    pthread_mutex_destroy(&u->lock);
}
