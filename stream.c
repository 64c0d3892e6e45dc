/*
 * stream.c - the pipe between the owner of a session and the thread that uses
 * one of its streams.
 *
 * The owner (h2.c, h3.c) speaks the protocol and never waits for a stream; a
 * user (exchange.c, tunnel.c) sees a struct http that blocks.  Heads, content
 * and ends lie between them in both directions, bounded: inwards by the window
 * that was advertised, outwards by OUT_MAX, so that one who does not read
 * stops nobody but his own stream.
 *
 * Who wants something of the owner queues his stream in hub->calls; the owner
 * is woken only if he sleeps, so a busy session costs no system call a
 * message.  Content is handed over by swapping buffers: the lock is held for
 * a moment, whatever the amount.
 *
 * Owns     what lies in a stream.  A stream has two references, its user's and
 *          the owner's; the last one frees it.
 * Threads  the owner; one that reads and one that writes a stream, or one for
 *          both; abort: any.  One lock for a session.
 * Blocks   users, within idle_ms; the owner only in hub_wait_left().
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "proxy.h"

enum {
    WATCH_MS = 1000,       /* how often one who waits asks his watch */
    WR_FIRST = 2048,       /* the writer's buffer at first */
    WR_MAX = 65536,        /* handed over when it is as full as this */
    OUT_MAX = 131072,      /* what may wait for the owner */
    KEEP_MAX = 4096,       /* a larger buffer is given back when it is empty */
    CREDIT_CALL = 65536,   /* credit of one stream that is worth a call */
    OWED_CALL = 1 << 20,   /* and of all */
    GRAMS_MAX = 1 << 19,   /* bytes of datagrams that wait to go out */
    UNHEARD_MAX = 1 << 15, /* and for somebody who hears them */
};

/* ---- a queue of bytes ---------------------------------------------------- */

/* Behind what is there; the buffer grows as needed.  False: out of memory. */
bool
store_add(struct store *s, const void *from, size_t n)
{
    if (n == 0)
        return true;
    if (s->start > 0 && s->start + s->len + n > s->cap) {
        memmove(s->at, s->at + s->start, s->len);
        s->start = 0;
    }
    if (s->start + s->len + n > s->cap) {
        size_t cap = s->cap < WR_FIRST ? WR_FIRST : s->cap;
        char *at;

        while (cap < s->len + n)
            cap *= 2;
        if ((at = realloc(s->at, cap)) == NULL)
            return false;
        s->at = at;
        s->cap = cap;
    }
    memcpy(s->at + s->start + s->len, from, n);
    s->len += n;
    return true;
}

void
store_clear(struct store *s)
{
    free(s->at);
    *s = (struct store){0};
}

static void
store_swap(struct store *a, struct store *b)
{
    struct store was = *a;

    *a = *b;
    *b = was;
}

/* ---- the hub ------------------------------------------------------------- */

/* False: out of descriptors; errno says so. */
bool
hub_init(struct hub *h)
{
    memset(h, 0, sizeof *h);
    h->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (h->wake_fd < 0)
        return false;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->left, NULL);
    return true;
}

/* Nobody uses a stream any more, and none is left. */
void
hub_clear(struct hub *h)
{
    if (h->wake_fd < 0)
        return;
    hub_rest(h, true);
    close(h->wake_fd);
    h->wake_fd = -1;
    store_clear(&h->grams);
    pthread_mutex_destroy(&h->lock);
    pthread_cond_destroy(&h->left);
}

static void
spare_free(struct stream *s)
{
    store_clear(&s->in);
    store_clear(&s->taken);
    store_clear(&s->out);
    store_clear(&s->wr);
    free(s);
}

/* Give back the streams that wait for use, if they are more than those in use,
 * or all of them.  The owner's. */
void
hub_rest(struct hub *h, bool all)
{
    struct stream *s = NULL, *next;

    pthread_mutex_lock(&h->lock);
    if (all || h->n_spare > h->n_live) {
        s = h->spare;
        h->spare = NULL;
        h->n_spare = 0;
    }
    pthread_mutex_unlock(&h->lock);
    for (; s != NULL; s = next) {
        next = s->next;
        spare_free(s);
    }
}

/* A stream's user is through.  Needs hub->lock. */
static void
one_left(struct hub *h)
{
    if (--h->n_live == 0)
        pthread_cond_broadcast(&h->left);
}

/* Have the owner look.  Needs hub->lock. */
void
hub_wake(struct hub *h)
{
    uint64_t one = 1;
    ssize_t put;

    if (!h->asleep)
        return;
    h->asleep = false;
    put = write(h->wake_fd, &one, sizeof one);
    assert(put == (ssize_t)sizeof one || errno == EAGAIN);
    (void)put;
}

/* The stream wants something of the owner.  Needs hub->lock. */
static void
call(struct stream *s)
{
    struct hub *h = s->hub;

    if (!s->called) {
        s->called = true;
        s->next_call = NULL;
        if (h->last_call != NULL)
            h->last_call->next_call = s;
        else
            h->calls = s;
        h->last_call = s;
    }
    if (h->over)
        pthread_cond_signal(&h->left);
    hub_wake(h);
}

/* Needs hub->lock. */
static struct stream *
next_call(struct hub *h)
{
    struct stream *s = h->calls;

    if (s == NULL)
        return NULL;
    s->called = false;
    h->calls = s->next_call;
    if (h->calls == NULL)
        h->last_call = NULL;
    return s;
}

/* The owner's: who calls?  He may call again from now on. */
struct stream *
hub_call(struct hub *h)
{
    struct stream *s;

    pthread_mutex_lock(&h->lock);
    s = next_call(h);
    pthread_mutex_unlock(&h->lock);
    return s;
}

/*
 * stream_put_answer - an answer's head, 1xx or the final one (client role).
 *
 * head  what is in it is taken
 * ends  no content follows
 *
 * What a 2xx means depends on what was asked: to a CONNECT, that its content
 * is a tunnel's, and to an extended one (RFC 8441, RFC 9220) what a 101 is in
 * HTTP/1.  Thread: the owner.
 */
void
stream_put_answer(struct stream *s, struct head *head, bool ends)
{
    if (s->connect && head->status / 100 == 2) {
        head->body = BODY_RAW;
        if (s->extended) {
            head->status = 101;
            head->upgrade = span_of("websocket");
        }
    }
    if (head->status >= 200 || head->status == 101)
        s->answered = true;
    if (!stream_put_head(s, head)) {
        head_clear(head);
        stream_break(s, WHY_SYS, "read head", ENOMEM, sys_text);
    }
    if (ends) {
        s->remote_end = true;
        stream_put_end(s, NULL);
    }
}

/* Bytes of which the peer was not told that they were read; they count as told
 * from now on.  Needs hub->lock. */
static size_t
take_unread(struct stream *s)
{
    size_t n = s->credit;

    s->credit = 0;
    s->hub->owed -= n < s->hub->owed ? n : s->hub->owed;
    if (s->done || s->aborted) {
        n += s->in.len;
        s->in.start = s->in.len = 0;
    }
    return n;
}

/* Something has come for the owner that is no call.  Any thread. */
void
hub_nudge(struct hub *h)
{
    pthread_mutex_lock(&h->lock);
    h->nudged = true;
    hub_wake(h);
    pthread_mutex_unlock(&h->lock);
}

/* What its user calls for; his heads become the owner's.  Needs hub->lock. */
static void
note_call(struct stream *s, struct call *c)
{
    struct packed **end = &s->sending;

    while (*end != NULL)
        end = &(*end)->next;
    *end = s->out_heads;
    s->out_heads = NULL;
    *c = (struct call){.content = s->out.len > 0,
                       .end = s->out_end,
                       .tail = s->out_tail != NULL,
                       .aborted = s->aborted,
                       .done = s->done,
                       .unwanted = s->unwanted,
                       .why = s->abort_why,
                       .serve = s->serve,
                       .serve_arg = s->serve_arg};
    s->serve = NULL;
    if (!s->unwanted || s->done)
        c->credit = take_unread(s);
}

/* hub_call(), and what for; the heads are in s->sending. */
struct stream *
hub_take(struct hub *h, struct call *c)
{
    struct stream *s;

    pthread_mutex_lock(&h->lock);
    if ((s = next_call(h)) != NULL)
        note_call(s, c);
    pthread_mutex_unlock(&h->lock);
    return s;
}

/* The same of a stream that has called before.  The owner's. */
void
stream_call(struct stream *s, struct call *c)
{
    pthread_mutex_lock(&s->hub->lock);
    note_call(s, c);
    pthread_mutex_unlock(&s->hub->lock);
}

/* The owner's: about to poll.  False: somebody calls, or has nudged him. */
bool
hub_sleep(struct hub *h)
{
    bool quiet;

    pthread_mutex_lock(&h->lock);
    quiet = h->calls == NULL && !h->nudged;
    h->asleep = quiet;
    h->nudged = false;
    pthread_mutex_unlock(&h->lock);
    return quiet;
}

/* The owner's: back from poll. */
void
hub_awake(struct hub *h)
{
    uint64_t count;

    pthread_mutex_lock(&h->lock);
    if (!h->asleep && read(h->wake_fd, &count, sizeof count) < 0)
        assert(errno == EAGAIN);
    h->asleep = false;
    pthread_mutex_unlock(&h->lock);
}

/* How many streams have a user.  Any thread. */
size_t
hub_live(struct hub *h)
{
    size_t n;

    pthread_mutex_lock(&h->lock);
    n = h->n_live;
    pthread_mutex_unlock(&h->lock);
    return n;
}

/* The owner serves nobody any more: no stream can be made or opened. */
void
hub_over(struct hub *h)
{
    pthread_mutex_lock(&h->lock);
    h->over = true;
    pthread_mutex_unlock(&h->lock);
}

/* The same, unless somebody uses a stream: then false. */
bool
hub_over_idle(struct hub *h)
{
    bool idle;

    pthread_mutex_lock(&h->lock);
    idle = h->n_live == 0;
    if (idle)
        h->over = true;
    pthread_mutex_unlock(&h->lock);
    return idle;
}

/* Wait until the users of all streams, each of which is broken, have noticed.
 * False: somebody calls meanwhile. */
bool
hub_wait_left(struct hub *h)
{
    bool left;

    pthread_mutex_lock(&h->lock);
    while (h->n_live > 0 && h->calls == NULL)
        cond_until(&h->left, &h->lock, 0);
    left = h->calls == NULL;
    pthread_mutex_unlock(&h->lock);
    return left;
}

/* ---- waiting and failing ------------------------------------------------- */

/* Its users shall look again.  Needs hub->lock. */
static void
tell(struct stream *s)
{
    if (s->n_waiting > 0)
        pthread_cond_broadcast(&s->news);
    for (int i = 0; i < 2; i++)
        if (s->fibers[i] != NULL) {
            fiber_wake(s->fibers[i]);
            s->fibers[i] = NULL; /* once is enough */
        }
}

/* For the owner, who has the lock. */
void
stream_tell(struct stream *s)
{
    tell(s);
}

/* Sleep until told, or until a point in time.  False: it has come.  Needs
 * hub->lock. */
static bool
sleep_until(struct stream *s, bool reads, int64_t now, int64_t until)
{
    bool told;

    if (!fiber_here()) {
        s->n_waiting++;
        told = cond_until(&s->news, &s->hub->lock, until);
        s->n_waiting--;
        return told;
    }
    s->fibers[reads] = fiber_self();
    pthread_mutex_unlock(&s->hub->lock);
    fiber_sleep(-1, 0, until > now ? (int)(until - now) : 0);
    pthread_mutex_lock(&s->hub->lock);
    told = s->fibers[reads] == NULL;
    s->fibers[reads] = NULL;
    return told;
}

static struct stream *
of(struct http *http)
{
    return (struct stream *)http;
}

/* One wait for news, in a read or a write whose first wait was at *from ms, or
 * is now (0).  The watch and http.idle_ms are the reader's.  Needs hub->lock.
 * WHY_NONE: look again. */
static enum why
wait_news(struct stream *s, bool reads, int64_t *from, const char *op,
          struct fail *f)
{
    const struct watch *watch = reads ? s->http.watch : NULL;
    int idle_ms = reads && s->http.idle_ms != 0 ? s->http.idle_ms : s->idle_ms;
    int64_t now = now_ms(), until, next;

    if (*from == 0)
        *from = now;
    next = until = *from + idle_ms;
    if (watch != NULL && now + WATCH_MS < next)
        next = now + WATCH_MS;
    if (sleep_until(s, reads, now, next))
        return WHY_NONE;
    if (watch != NULL) {
        bool over;

        pthread_mutex_unlock(&s->hub->lock); /* it may look at this stream */
        over = watch->over(watch->arg);
        pthread_mutex_lock(&s->hub->lock);
        if (over)
            return fail_own(f, SIDE_WEIR, WHY_OVER, op);
    }
    return now_ms() >= until ? fail_own(f, s->http.side, WHY_IDLE, op)
                             : WHY_NONE;
}

/* Needs hub->lock. */
static enum why
fail_broken(const struct stream *s, struct fail *f)
{
    return fail_note(f, s->broken.side, s->broken.why, s->broken.op,
                     s->broken.code, s->broken.text);
}

/* ---- reading ------------------------------------------------------------- */

/* What was handed out has been used: the peer may send as much again.  Needs
 * hub->lock. */
static void
give_credit(struct stream *s, bool will_wait)
{
    struct hub *h = s->hub;

    s->credit += s->taken.len;
    h->owed += s->taken.len;
    s->taken.start = s->taken.len = 0;
    if (s->credit >= CREDIT_CALL || h->owed >= OWED_CALL ||
        (will_wait && s->credit >= CREDIT_CALL / 4))
        call(s);
}

/*
 * The next head (ops.read_head).
 *
 * Returns WHY_NONE; WHY_UNPROCESSED: the peer did nothing with the request;
 * WHY_EOF: its session ended before a word of an answer; WHY_CUT: it reset the
 * stream; WHY_IDLE, WHY_OVER.
 */
static enum why
stream_read_head(struct http *http, struct head *head, struct fail *f)
{
    struct stream *s = of(http);
    int64_t from = 0;
    struct got *got = NULL;
    enum why why = WHY_NONE;

    pthread_mutex_lock(&s->hub->lock);
    while ((got = s->heads) == NULL && why == WHY_NONE) {
        if (s->broken.why != WHY_NONE)
            why = fail_broken(s, f);
        else if (s->aborted)
            why = fail_own(f, SIDE_WEIR, WHY_OVER, "read head");
        else
            why = wait_news(s, true, &from,
                            http->side == SIDE_CLIENT ? "read request head"
                                                      : "read answer head",
                            f);
    }
    if (got != NULL)
        s->heads = got->next;
    pthread_mutex_unlock(&s->hub->lock);
    if (got == NULL)
        return why;
    head_clear(head);
    *head = got->head;
    if (got != &s->first)
        free(got);
    http->n_in = 0;
    return WHY_NONE;
}

/* Is there no content to be read?  A request with an upgrade has none before
 * its 101.  Needs hub->lock. */
static bool
no_content(const struct stream *s)
{
    return s->extended && !s->switched && s->http.side == SIDE_CLIENT;
}

/*
 * Everything that is here (ops.read_body), at most a window.
 *
 * data  until the next call
 */
static enum why
stream_read_body(struct http *http, struct span *data, struct fail *f)
{
    struct stream *s = of(http);
    struct hub *h = s->hub;
    int64_t from = 0;
    enum why why = WHY_MORE;

    pthread_mutex_lock(&h->lock);
    give_credit(s, s->in.len == 0);
    while (why == WHY_MORE) {
        if (no_content(s)) {
            why = WHY_EOF;
        } else if (s->aborted || s->unwanted) {
            why = fail_own(f, SIDE_WEIR, WHY_OVER, "read content");
        } else if (s->in.len > 0) {
            if (s->taken.cap > KEEP_MAX && s->in.cap <= KEEP_MAX)
                store_clear(&s->taken);
            store_swap(&s->in, &s->taken);
            why = WHY_NONE;
        } else if (s->in_end) {
            s->saw_end = true;
            s->saw_tail = s->tail;
            why = WHY_EOF;
        } else if (s->broken.why != WHY_NONE) {
            why = fail_broken(s, f);
        } else {
            why = wait_news(s, true, &from, "read content", f);
            if (why == WHY_NONE)
                why = WHY_MORE;
        }
    }
    pthread_mutex_unlock(&h->lock);
    if (why != WHY_NONE)
        return why;
    *data = (struct span){s->taken.at + s->taken.start, s->taken.len};
    http->n_in += data->len;
    return WHY_NONE;
}

static const struct head *
stream_trailers(struct http *http)
{
    return of(http)->saw_tail;
}

static bool
stream_pending(struct http *http)
{
    struct stream *s = of(http);
    bool some;

    pthread_mutex_lock(&s->hub->lock);
    some = s->in.len > 0 || s->in_end || s->heads != NULL ||
           s->broken.why != WHY_NONE || s->aborted || s->unwanted;
    pthread_mutex_unlock(&s->hub->lock);
    return some;
}

static bool
stream_complete(struct http *http)
{
    struct stream *s = of(http);
    bool complete;

    if (s->saw_end)
        return true;
    pthread_mutex_lock(&s->hub->lock);
    complete = no_content(s) || (s->in_end && s->in.len == 0);
    if (complete && s->in_end) {
        s->saw_end = true;
        s->saw_tail = s->tail;
    }
    pthread_mutex_unlock(&s->hub->lock);
    return complete;
}

/* The owner resets the stream with NO_ERROR once our answer is complete
 * (RFC 9113 section 8.1); until then the window stops the peer. */
static bool
stream_unwanted(struct http *http)
{
    struct stream *s = of(http);

    pthread_mutex_lock(&s->hub->lock);
    s->unwanted = true;
    call(s);
    tell(s);
    pthread_mutex_unlock(&s->hub->lock);
    return true;
}

/* ---- writing ------------------------------------------------------------- */

static struct packed **
packed_end(struct packed **list)
{
    while (*list != NULL)
        list = &(*list)->next;
    return list;
}

/* Why nothing can be written; WHY_NONE: it can.  Needs hub->lock. */
static enum why
cannot_write(struct stream *s, struct fail *f)
{
    if (s->aborted)
        return fail_own(f, SIDE_WEIR, WHY_OVER, "write");
    if (s->broken.why != WHY_NONE || s->deaf) {
        /* WHY_SYS as of a socket: what was sent before may be answered. */
        if (s->http.side == SIDE_ORIGIN)
            return fail_own(f, SIDE_ORIGIN, WHY_SYS, "write to stream");
        return s->broken.why != WHY_NONE
                   ? fail_broken(s, f)
                   : fail_own(f, SIDE_CLIENT, WHY_CUT, "write to stream");
    }
    return WHY_NONE;
}

/* Hand over what was written, waiting for room. */
static enum why
hand_over(struct stream *s, struct fail *f)
{
    struct hub *h = s->hub;
    int64_t from = 0;
    enum why why;

    pthread_mutex_lock(&h->lock);
    while ((why = cannot_write(s, f)) == WHY_NONE && s->out.len > 0 &&
           s->out.len + s->wr.len > OUT_MAX) {
        if ((why = wait_news(s, false, &from, "write to stream", f)) !=
            WHY_NONE)
            break;
    }
    if (why == WHY_NONE) {
        *packed_end(&s->out_heads) = s->wr_heads;
        s->wr_heads = NULL;
        if (s->out.len == 0)
            store_swap(&s->out, &s->wr);
        else if (!store_add(&s->out, s->wr.at + s->wr.start, s->wr.len))
            why = fail_sys(f, SIDE_WEIR, "write to stream", ENOMEM);
        s->wr.start = s->wr.len = 0;
        if (s->wr_end) {
            s->out_end = true;
            s->out_tail = s->wr_tail;
            s->wr_tail = NULL;
            s->wr_end = false;
        }
        call(s);
    }
    pthread_mutex_unlock(&h->lock);
    return why;
}

/* A 101 makes the content of both directions bytes of a tunnel. */
static void
note_switch(struct stream *s)
{
    pthread_mutex_lock(&s->hub->lock);
    s->switched = true;
    pthread_mutex_unlock(&s->hub->lock);
}

/* A head in the fields of the version (ops.write_head). */
static enum why
stream_write_head(struct http *http, const struct head *head, struct fail *f)
{
    static const struct head no_upgrade = {.version = HTTP_2, .status = 502};
    struct stream *s = of(http);
    struct packed *p;

    assert((head->status == 0) == (http->side == SIDE_ORIGIN));
    if (head->status == 0) {
        s->head_only = head->method_id == METHOD_HEAD;
        s->extended = head->upgrade.len > 0;
        s->connect = s->extended || head->method_id == METHOD_CONNECT;
    } else if (s->extended && head->status / 100 == 2) {
        /* RFC 8441 section 5 would take it for a 101: the origin did not
         * switch, and what it says instead belongs to no WebSocket. */
        head = &no_upgrade;
        s->head_only = true;
    }
    if ((p = pack_head(head, s->head_only, http->credentials)) == NULL)
        return fail_sys(f, SIDE_WEIR, "write head", ENOMEM);
    *packed_end(&s->wr_heads) = p;
    if (head->status == 101)
        note_switch(s);
    http->n_out = 0;
    return WHY_NONE;
}

/* Content (ops.write_body); none goes out in answer to a HEAD. */
static enum why
stream_write_body(struct http *http, struct span data, struct fail *f)
{
    struct stream *s = of(http);
    enum why why;

    if (s->head_only && http->side == SIDE_CLIENT)
        return WHY_NONE;
    http->n_out += data.len;
    while (data.len > 0) {
        size_t room = s->wr.len < WR_MAX ? WR_MAX - s->wr.len : 0;
        size_t n = data.len < room ? data.len : room;

        if (n > 0 && !store_add(&s->wr, data.at, n))
            return fail_sys(f, SIDE_WEIR, "write content", ENOMEM);
        data.at += n;
        data.len -= n;
        if (s->wr.len >= WR_MAX && (why = hand_over(s, f)) != WHY_NONE)
            return why;
    }
    return WHY_NONE;
}

static enum why
stream_write_end(struct http *http, const struct head *trailers, struct fail *f)
{
    struct stream *s = of(http);

    if (http->side == SIDE_ORIGIN && s->extended) {
        bool early;

        pthread_mutex_lock(&s->hub->lock);
        early = !s->switched;
        pthread_mutex_unlock(&s->hub->lock);
        if (early)
            return WHY_NONE; /* the end of a GET that is a CONNECT here */
    }
    if (trailers != NULL && trailers->n_fields > 0 &&
        (s->wr_tail = pack_tail(trailers)) == NULL)
        return fail_sys(f, SIDE_WEIR, "write trailers", ENOMEM);
    s->wr_end = s->wrote_end = true;
    return WHY_NONE;
}

static enum why
stream_flush(struct http *http, struct fail *f)
{
    struct stream *s = of(http);

    if (s->wr_heads == NULL && s->wr.len == 0 && !s->wr_end)
        return WHY_NONE;
    return hand_over(s, f);
}

/* ---- the stream as a whole ----------------------------------------------- */

static bool
stream_gone(struct http *http)
{
    struct stream *s = of(http);
    bool gone;

    pthread_mutex_lock(&s->hub->lock);
    gone = s->broken.why != WHY_NONE || s->deaf;
    pthread_mutex_unlock(&s->hub->lock);
    return gone;
}

/* A stream carries one exchange; its session carries the next anyway. */
static bool
stream_reusable(struct http *http)
{
    return http->side == SIDE_CLIENT;
}

/* The peer sees the stream reset, unless all was said (ops.abort).  Any
 * thread. */
static void
stream_abort(struct http *http, enum why why)
{
    struct stream *s = of(http);

    pthread_mutex_lock(&s->hub->lock);
    if (!s->aborted) {
        s->aborted = true;
        s->abort_why = why;
        call(s);
    }
    tell(s);
    pthread_mutex_unlock(&s->hub->lock);
}

static struct end *
stream_raw_in(struct http *http, uint64_t *left)
{
    (void)http;
    (void)left;
    return NULL;
}

static struct end *
stream_raw_out(struct http *http)
{
    (void)http;
    return NULL;
}

static void
stream_raw_moved(struct http *http, uint64_t in, uint64_t out)
{
    (void)http;
    (void)in;
    (void)out;
    assert(!"bytes past a stream");
}

static const struct http_ops ops = {
    .read_head = stream_read_head,
    .read_body = stream_read_body,
    .trailers = stream_trailers,
    .pending = stream_pending,
    .complete = stream_complete,
    .write_head = stream_write_head,
    .write_body = stream_write_body,
    .write_end = stream_write_end,
    .flush = stream_flush,
    .unwanted = stream_unwanted,
    .gone = stream_gone,
    .reusable = stream_reusable,
    .abort = stream_abort,
    .raw_in = stream_raw_in,
    .raw_out = stream_raw_out,
    .raw_moved = stream_raw_moved,
};

/*
 * stream_new - a stream with two references: its user's and the owner's.
 *
 * side     whom we speak with on it
 * idle_ms  longest quiet in a read or write, unless http.idle_ms says another
 *
 * Returns NULL: the session is over, or no memory.
 * Thread: the owner in the server role, any in the client role.
 */
struct stream *
stream_new(struct hub *h, enum side side, enum version version, int idle_ms)
{
    struct stream *s = NULL;
    bool over;

    pthread_mutex_lock(&h->lock);
    if (!(over = h->over)) {
        h->n_live++;
        if ((s = h->spare) != NULL) {
            h->spare = s->next;
            h->n_spare--;
        }
    }
    pthread_mutex_unlock(&h->lock);
    if (over)
        return NULL;
    if (s == NULL && (s = calloc(1, sizeof *s)) == NULL) {
        pthread_mutex_lock(&h->lock);
        one_left(h);
        pthread_mutex_unlock(&h->lock);
        return NULL;
    }
    s->http.ops = &ops;
    s->http.side = side;
    s->http.version = version;
    s->hub = h;
    s->next = NULL;
    s->id = -1;
    s->idle_ms = idle_ms;
    s->n_refs = 2;
    pthread_cond_init(&s->news, NULL);
    pthread_mutex_init(&s->gram_lock, NULL);
    return s;
}

static void
packed_free(struct packed *p)
{
    while (p != NULL) {
        struct packed *next = p->next;

        free(p);
        p = next;
    }
}

/* All but the struct and its buffers. */
static void
stream_clear(struct stream *s)
{
    while (s->heads != NULL) {
        struct got *got = s->heads;

        s->heads = got->next;
        head_clear(&got->head);
        if (got != &s->first)
            free(got);
    }
    if (s->tail != NULL)
        head_clear(s->tail);
    free(s->tail);
    packed_free(s->sending);
    packed_free(s->out_heads);
    packed_free(s->out_tail);
    packed_free(s->wr_heads);
    packed_free(s->wr_tail);
    store_clear(&s->unheard);
    pthread_mutex_destroy(&s->gram_lock);
    pthread_cond_destroy(&s->news);
}

static void
stream_free(struct stream *s)
{
    stream_clear(s);
    spare_free(s);
}

/* Its buffer, for the next stream; a large one is none to be kept. */
static struct store
store_keep(struct store *s)
{
    if (s->cap > KEEP_MAX)
        store_clear(s);
    return (struct store){.at = s->at, .cap = s->cap};
}

/* The next stream of the hub may have it.  The owner's. */
static void
stream_recycle(struct stream *s)
{
    struct hub *h = s->hub;
    bool kept;

    stream_clear(s);
    *s = (struct stream){.hub = h,
                         .in = store_keep(&s->in),
                         .taken = store_keep(&s->taken),
                         .out = store_keep(&s->out),
                         .wr = store_keep(&s->wr)};
    pthread_mutex_lock(&h->lock);
    if ((kept = h->n_spare < h->max_spare)) {
        s->next = h->spare;
        h->spare = s;
        h->n_spare++;
    }
    pthread_mutex_unlock(&h->lock);
    if (!kept)
        spare_free(s);
}

/* The user is through with it.  What was flushed still goes out; a message
 * that is not complete is reset.  NULL: nothing. */
void
stream_give(struct stream *s)
{
    struct hub *h;
    bool last;

    if (s == NULL)
        return;
    h = s->hub;
    pthread_mutex_lock(&h->lock);
    s->credit += s->taken.len;
    s->taken.start = s->taken.len = 0;
    s->done = true;
    last = --s->n_refs == 0;
    if (!last)
        call(s);
    one_left(h);
    /* Behind the unlock the hub may be gone: its owner waits for n_live. */
    if (last && s->called)
        assert(!"an owner's call list holds what he has dropped");
    pthread_mutex_unlock(&h->lock);
    if (last)
        stream_free(s);
}

/*
 * stream_serve - have the owner begin serve(arg), which may start fibers that
 * use the stream from then on.
 *
 * Thread: the user, who does not touch the stream any more.  serve() runs in
 * any case, be it that the session is over.
 */
void
stream_serve(struct stream *s, void (*serve)(void *arg, struct fibers *),
             void *arg)
{
    struct hub *h = s->hub;

    pthread_mutex_lock(&h->lock);
    s->serve = serve;
    s->serve_arg = arg;
    call(s);
    pthread_mutex_unlock(&h->lock);
}

/* Out of the list of those who call.  Needs hub->lock. */
static void
call_off(struct stream *s)
{
    struct hub *h = s->hub;
    struct stream *before = NULL;

    for (struct stream *i = h->calls; i != s; i = i->next_call)
        before = i;
    *(before != NULL ? &before->next_call : &h->calls) = s->next_call;
    if (h->last_call == s)
        h->last_call = before;
    s->called = false;
}

/* The owner is through with it: closed, and nothing to be told.  Its user may
 * have called once more, to say that he is through with it, too. */
void
stream_drop(struct stream *s)
{
    struct hub *h = s->hub;
    bool last;

    pthread_mutex_lock(&h->lock);
    last = --s->n_refs == 0;
    if (last && s->called)
        call_off(s);
    pthread_mutex_unlock(&h->lock);
    if (last)
        stream_recycle(s);
}

/* ---- what the owner brings ----------------------------------------------- */

/* A head for read_head; what is in it is taken.  False: no memory. */
bool
stream_put_head(struct stream *s, struct head *head)
{
    struct got *got = s->had_first ? malloc(sizeof *got) : &s->first, **end;

    if (got == NULL)
        return false;
    s->had_first = true;
    *got = (struct got){.head = *head};
    head_init(head);
    pthread_mutex_lock(&s->hub->lock);
    if (s->extended && got->head.status == 101)
        s->switched = true;
    for (end = &s->heads; *end != NULL; end = &(*end)->next)
        ;
    *end = got;
    tell(s);
    pthread_mutex_unlock(&s->hub->lock);
    return true;
}

/* Content, which its window has bounded.  False: no memory. */
bool
stream_put_data(struct stream *s, const void *at, size_t len)
{
    bool good;

    pthread_mutex_lock(&s->hub->lock);
    if (s->done || s->unwanted || s->aborted) {
        s->credit += len; /* nobody reads it */
        if (s->credit >= CREDIT_CALL && !s->unwanted)
            call(s);
        good = true;
    } else {
        good = store_add(&s->in, at, len);
        tell(s);
    }
    pthread_mutex_unlock(&s->hub->lock);
    return good;
}

/* The content is complete.  tail: taken, the stream's; NULL: none. */
void
stream_put_end(struct stream *s, struct head *tail)
{
    pthread_mutex_lock(&s->hub->lock);
    s->in_end = true;
    s->tail = tail;
    tell(s);
    pthread_mutex_unlock(&s->hub->lock);
}

/* The peer has reset it, or the session is over: once what came before has
 * been read, this is what a reader gets; a writer gets it at once. */
void
stream_break(struct stream *s, enum why why, const char *op, int code,
             const char *(*text)(int))
{
    pthread_mutex_lock(&s->hub->lock);
    fail_note(&s->broken, s->http.side, why, op, code, text);
    s->out.start = s->out.len = 0;
    tell(s);
    pthread_mutex_unlock(&s->hub->lock);
}

/* The peer wants no more of our content; what it sends is unharmed. */
void
stream_deafen(struct stream *s)
{
    pthread_mutex_lock(&s->hub->lock);
    s->deaf = true;
    s->out.start = s->out.len = 0;
    tell(s);
    pthread_mutex_unlock(&s->hub->lock);
}

/* Bytes of which the peer was not told that they were read; they count as
 * told from now on.  The owner's. */
size_t
stream_unread(struct stream *s)
{
    size_t n;

    pthread_mutex_lock(&s->hub->lock);
    n = take_unread(s);
    pthread_mutex_unlock(&s->hub->lock);
    return n;
}

/* ---- datagrams ----------------------------------------------------------- */

/*
 * stream_say - have a datagram sent on the stream's behalf.
 *
 * at, len  its payload (RFC 9297 section 2.1), its context identifier included
 *
 * Returns false: it is lost, as any datagram may be: it does not fit, too many
 * wait, or the stream is over.  Thread: any.  Blocks: never.
 */
bool
stream_say(struct stream *s, const void *at, size_t len)
{
    struct gram_head head = {s->id, len};
    struct hub *h = s->hub;
    bool good;

    pthread_mutex_lock(&h->lock);
    good = len <= h->gram_max && s->broken.why == WHY_NONE && !h->over &&
           h->grams.len + sizeof head + len <= GRAMS_MAX &&
           store_add(&h->grams, &head, sizeof head);
    if (good && !store_add(&h->grams, at, len)) {
        h->grams.len -= sizeof head;
        good = false;
    }
    if (good) {
        h->nudged = true;
        hub_wake(h);
    } else {
        h->n_grams_lost++;
    }
    pthread_mutex_unlock(&h->lock);
    return good;
}

/* The longest that fits now; 0: the peer takes none.  Any thread. */
size_t
stream_say_max(struct stream *s)
{
    size_t max;

    pthread_mutex_lock(&s->hub->lock);
    max = s->hub->gram_max;
    pthread_mutex_unlock(&s->hub->lock);
    return max;
}

/*
 * stream_hear - whom its datagrams go to from now on.
 *
 * hearer  called by the session's owner for each, and at once for those that
 *         have come before; hear NULL: nobody, and nobody is being called on
 *         return
 */
void
stream_hear(struct stream *s, struct hearer hearer)
{
    size_t at = 0, len;

    pthread_mutex_lock(&s->gram_lock);
    s->hearer = hearer;
    while (hearer.hear != NULL && at < s->unheard.len) {
        memcpy(&len, s->unheard.at + at, sizeof len);
        at += sizeof len;
        hearer.hear(hearer.arg, s->unheard.at + at, len);
        at += len;
    }
    if (at > 0)
        store_clear(&s->unheard);
    if (hearer.heard != NULL)
        hearer.heard(hearer.arg);
    pthread_mutex_unlock(&s->gram_lock);
}

/* One has come.  The owner's. */
void
stream_put_gram(struct stream *s, const void *at, size_t len)
{
    pthread_mutex_lock(&s->gram_lock);
    if (s->hearer.hear != NULL) {
        s->hearer.hear(s->hearer.arg, at, len);
    } else if (s->connect && s->unheard.len + sizeof len + len <= UNHEARD_MAX &&
               store_add(&s->unheard, &len, sizeof len) &&
               !store_add(&s->unheard, at, len)) {
        s->unheard.len -= sizeof len;
    }
    pthread_mutex_unlock(&s->gram_lock);
}

/* Those that came together have been put.  The owner's. */
void
stream_end_grams(struct stream *s)
{
    pthread_mutex_lock(&s->gram_lock);
    if (s->hearer.heard != NULL)
        s->hearer.heard(s->hearer.arg);
    pthread_mutex_unlock(&s->gram_lock);
}
