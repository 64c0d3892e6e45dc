/*
 * h2.c - one HTTP/2 session, in either role, and the thread that owns it.
 *
 * The owner alone touches the protocol library, the socket and the list of
 * streams.  He never waits for a stream: he polls his socket and one eventfd,
 * reads what is there, looks who called, and sends what is to be sent, as
 * much as possible in one write.  What a stream carries goes through stream.c.
 *
 * This room is the session's life.  What the library makes of the bytes that
 * come is h2read.c, what is given to it to be sent h2write.c.
 *
 * Follows  RFC 9113, RFC 8441, RFC 7541.
 * Owns     the library's session, what is not sent yet, the owner's reference
 *          to each stream.  The end is the user's.
 * Threads  the owner in h2_run(); h2_open(), h2_extended() and h2_stop() from
 *          any.
 * Blocks   in poll(2), for a tick at most.
 */
#include <assert.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    TICK_MS = 500,      /* how often clocks and flags are looked at */
    READS = 4,          /* in a row before others get their turn */
    SEND_BATCH = 65536, /* gathered for one write */
    PING_MS = 3000,     /* and has so long to answer */
    TRIM_STREAMS = 50,  /* served: there may be memory to give back */
    UNHEARD_MS = 2000,  /* for a client that does not even answer a PING */
    SPARE = 128,        /* streams kept for the next ones */
};

/* ---- reasons to end ------------------------------------------------------ */

const char *
h2_code_text(int code)
{
    return nghttp2_http2_strerror((uint32_t)code);
}

/* The session shall end; the first reason counts. */
int
h2_give_up(struct h2 *h, uint32_t code, const char *cause)
{
    if (h->cause == NULL) {
        h->cause = cause;
        h->code = code;
    }
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

int
h2_spend(struct h2 *h, enum calm_kind kind, const char *cause)
{
    if (calm_spend(&h->calm, kind, h->now))
        return 0;
    return h2_give_up(h, NGHTTP2_ENHANCE_YOUR_CALM, cause);
}

/* ---- the owner's list of streams ----------------------------------------- */

void
h2_add(struct h2 *h, struct stream *s)
{
    s->session = h;
    s->moved_at = h->now;
    s->prev = NULL;
    s->next = h->all;
    if (s->next != NULL)
        s->next->prev = s;
    h->all = s;
}

/* The owner is through with a stream.  What nobody will read any more is
 * credited to the session, or its window would leak away. */
void
h2_let_go(struct h2 *h, struct stream *s)
{
    size_t unread = stream_unread(s);

    if (unread > 0)
        nghttp2_session_consume_connection(h->ng, unread);
    if (s->prev != NULL)
        s->prev->next = s->next;
    else
        h->all = s->next;
    if (s->next != NULL)
        s->next->prev = s->prev;
    h->n_served++;
    stream_drop(s);
}

void
h2_reset(struct h2 *h, struct stream *s, uint32_t code)
{
    if (!s->closed && s->id >= 0)
        nghttp2_submit_rst_stream(h->ng, NGHTTP2_FLAG_NONE, (int32_t)s->id,
                                  code);
}

struct stream *
h2_stream_at(struct h2 *h, int32_t id)
{
    return nghttp2_session_get_stream_user_data(h->ng, id);
}

/* A request that nobody shall see. */
void
h2_refuse(struct h2 *h, int32_t id, uint32_t code)
{
    if (code == NGHTTP2_REFUSED_STREAM)
        h->n_refused++;
    nghttp2_submit_rst_stream(h->ng, NGHTTP2_FLAG_NONE, id, code);
}

/* The requests that came in the last read, in their order, each with what is
 * here of its content. */
static void
begin_fresh(struct h2 *h)
{
    struct stream *s = NULL, *next;

    while (h->fresh != NULL) { /* it is newest first */
        next = h->fresh->next_own;
        h->fresh->next_own = s;
        s = h->fresh;
        h->fresh = next;
    }
    for (; s != NULL; s = next) {
        next = s->next_own;
        if (!h->user.begin(h->user.arg, s, &h->fibers))
            h2_refuse(h, (int32_t)s->id, NGHTTP2_REFUSED_STREAM);
    }
}

/* ---- the socket ---------------------------------------------------------- */

/* What ended the library's interest in more bytes, as a code of the protocol.
 */
static void
judge_library(struct h2 *h, int rc)
{
    switch (rc) {
    case NGHTTP2_ERR_FLOODED:
        h2_give_up(h, NGHTTP2_ENHANCE_YOUR_CALM, "flood of frames");
        break;
    case NGHTTP2_ERR_TOO_MANY_CONTINUATIONS:
        h2_give_up(h, NGHTTP2_ENHANCE_YOUR_CALM,
                   "too many CONTINUATION frames");
        break;
    case NGHTTP2_ERR_BAD_CLIENT_MAGIC:
        h2_give_up(h, NGHTTP2_PROTOCOL_ERROR, "bad connection preface");
        break;
    case NGHTTP2_ERR_NOMEM:
        h2_give_up(h, NGHTTP2_INTERNAL_ERROR, "out of memory");
        break;
    default:
        h2_give_up(h, NGHTTP2_PROTOCOL_ERROR, "protocol broken");
        break;
    }
}

/* Give the library what is buffered. */
static void
digest(struct h2 *h)
{
    struct span ahead = end_ahead(h->end);
    ssize_t n;

    if (ahead.len == 0)
        return;
    h->heard_at = h->now;
    n = nghttp2_session_mem_recv(h->ng, (const uint8_t *)ahead.at, ahead.len);
    end_consume(h->end, ahead.len);
    if (n < 0)
        judge_library(h, (int)n);
}

/* Read what is there.  WHY_NONE: something was; WHY_MORE: nothing. */
static enum why
receive(struct h2 *h, struct fail *f)
{
    enum why why = end_ahead(h->end).len > 0 ? WHY_NONE : WHY_MORE, last;

    if (h->quiet && why == WHY_MORE)
        return WHY_MORE;
    digest(h);
    for (int i = 0; i < READS && h->cause == NULL; i++) {
        last = end_fill(h->end, END_BUF_BULK, f);
        if (last == WHY_MORE)
            break;
        if (last != WHY_NONE) {
            begin_fresh(h);
            return last;
        }
        digest(h);
        why = WHY_NONE;
        if (h->end->drained && !end_pending(h->end))
            break;
    }
    begin_fresh(h);
    if (why == WHY_NONE && h->held != NULL)
        h2_let_held_go(h);
    return why;
}

/* Gather frames for one write. */
static bool
gather(struct h2 *h)
{
    const uint8_t *at;
    ssize_t n;

    while (h->out.len < SEND_BATCH) {
        n = nghttp2_session_mem_send(h->ng, &at);
        if (n == 0)
            break;
        if (n < 0 || !store_add(&h->out, at, (size_t)n)) {
            h2_give_up(h, NGHTTP2_INTERNAL_ERROR, "out of memory");
            return false;
        }
    }
    return h->out.len > 0;
}

/* Send what there is and the socket takes. */
static enum why
transmit(struct h2 *h, struct fail *f)
{
    enum why why = WHY_NONE;
    size_t n;

    while (why == WHY_NONE && (end_unsent(h->end) || gather(h))) {
        why =
            end_try_write(h->end, h->out.at + h->out.start, h->out.len, &n, f);
        if (why != WHY_NONE)
            break;
        h->out.start += n;
        h->out.len -= n;
        if (h->out.len == 0)
            h->out.start = 0;
        if (h->out.len > 0 || end_unsent(h->end)) {
            if (h->blocked_at == 0 || n > 0)
                h->blocked_at = h->now;
            return WHY_NONE;
        }
        h->blocked_at = 0;
    }
    return why;
}

/* ---- clocks -------------------------------------------------------------- */

/* A peer that opens no window holds our content for ever: not longer than
 * stall_ms. */
static void
end_stalled(struct h2 *h)
{
    for (struct stream *s = h->all; s != NULL; s = s->next) {
        bool waits;

        if (h2_is_early(h, s) && h->now - s->moved_at >= UNHEARD_MS)
            h2_reset(h, s, NGHTTP2_NO_ERROR);
        /* One that the library waits for is not held up by the peer. */
        if (s->closed || s->local_end || s->deferred ||
            h->now - s->moved_at < h->stall_ms)
            continue;
        pthread_mutex_lock(&h->hub.lock);
        waits = s->out.len > 0 || (s->out_end && s->answered);
        pthread_mutex_unlock(&h->hub.lock);
        if (waits)
            h2_reset(h, s, NGHTTP2_CANCEL);
    }
}

void
h2_leave(struct h2 *h)
{
    pthread_mutex_lock(&h->hub.lock);
    h->leaving = true;
    pthread_mutex_unlock(&h->hub.lock);
}

static bool
is_leaving(struct h2 *h)
{
    bool leaving;

    pthread_mutex_lock(&h->hub.lock);
    leaving = h->leaving;
    pthread_mutex_unlock(&h->hub.lock);
    return leaving;
}

/* Tell the peer that no more streams are welcome; those that are go on. */
static void
say_goodbye(struct h2 *h)
{
    if (h->said_goodbye)
        return;
    h->said_goodbye = true;
    h2_leave(h);
    if (h->side == SIDE_CLIENT)
        nghttp2_submit_goaway(h->ng, NGHTTP2_FLAG_NONE,
                              nghttp2_session_get_last_proc_stream_id(h->ng),
                              NGHTTP2_NO_ERROR, NULL, 0);
}

static bool
told_to_stop(struct h2 *h)
{
    bool stop;

    pthread_mutex_lock(&h->hub.lock);
    stop = h->stop;
    pthread_mutex_unlock(&h->hub.lock);
    return stop;
}

/* Many streams were served, and none is: their memory goes back to the system
 * (listen.c). */
static void
trim(struct h2 *h)
{
    if (h->all != NULL || h->n_served < h->trim_at)
        return;
    h->trim_at = h->n_served + TRIM_STREAMS;
    atomic_store(&h->user.weir->trim, true);
}

/* Buffers of a burst that is over. */
static void
give_back(struct h2 *h)
{
    end_drop_buffer(h->end);
    if (h->out.len == 0)
        store_clear(&h->out);
    if (h->fibers.n_free > h->fibers.n)
        fibers_rest(&h->fibers);
    hub_rest(&h->hub, false);
    trim(h);
}

/* Twice a second. */
static enum why
tick(struct h2 *h, struct fail *f)
{
    end_stalled(h);
    give_back(h);
    if (h->block_from != 0 && h->now - h->block_from >= h->head_ms)
        h2_give_up(h, NGHTTP2_ENHANCE_YOUR_CALM, "unfinished header block");
    if (h->blocked_at != 0 && h->now - h->blocked_at >= h->idle_ms)
        return fail_own(f, h->side, WHY_IDLE, "write");
    if (h->ping_at != 0 && h->now - h->ping_at >= PING_MS)
        return fail_own(f, h->side, WHY_LATE, "wait for a PING's answer");
    if (atomic_load(&h->user.weir->draining))
        say_goodbye(h);
    if (told_to_stop(h))
        return fail_own(f, SIDE_WEIR, WHY_OVER, "session");
    return WHY_NONE;
}

/* Since when has no stream been open?  0: one is. */
static int64_t
idle_since(struct h2 *h)
{
    if (h->all != NULL || h->held != NULL || h->block_from != 0 ||
        hub_live(&h->hub) > 0)
        h->idle_from = 0;
    else if (h->idle_from == 0)
        h->idle_from = h->now;
    return h->idle_from;
}

/* ---- the session's life -------------------------------------------------- */

/* Wait for the socket, for a stream's call, or for `ms`. */
static void
sleep_until_news(struct h2 *h, int ms)
{
    bool unsent = h->out.len > 0 || end_unsent(h->end);
    struct pollfd p[2] = {
        {.fd = h->end->fd, .events = (short)(POLLIN | (unsent ? POLLOUT : 0))},
        {.fd = h->hub.wake_fd, .events = POLLIN}};

    h->quiet = false;
    if (end_pending(h->end) || !hub_sleep(&h->hub))
        return;
    if (h->fibers.n > 0)
        fibers_poll(&h->fibers, p, 2, ms);
    else
        (void)poll(p, 2, ms);
    h->quiet = (p[0].revents & ~POLLOUT) == 0;
    hub_awake(&h->hub);
}

/* The peer shall know why; who reads it is not waited for. */
static void
say_why(struct h2 *h)
{
    struct fail ignored = {0};

    nghttp2_session_terminate_session(h->ng, h->code);
    (void)transmit(h, &ignored);
}

/* Fibers need this thread to notice anything.  True: some ran. */
static bool
fibers_leave(struct h2 *h)
{
    if (h->fibers.n == 0)
        return false;
    fibers_poll(&h->fibers, NULL, 0, TICK_MS);
    fibers_run(&h->fibers);
    return true;
}

/* Nobody serves the streams any more: their users shall notice, and leave. */
static void
break_all(struct h2 *h, const struct fail *f)
{
    struct stream *s, *next;
    struct call c;

    hub_over(&h->hub);
    pthread_mutex_lock(&h->hub.lock);
    h->settings_seen = true;
    pthread_cond_broadcast(&h->settled);
    pthread_mutex_unlock(&h->hub.lock);
    for (s = h->held; s != NULL; s = next) {
        next = s->next_own;
        s->held = s->submitted = s->closed = true;
        h2_add(h, s);
        stream_break(s, WHY_UNPROCESSED, "session ended", 0, NULL);
    }
    h->held = NULL;
    for (s = h->all; s != NULL; s = s->next) {
        bool said = s->closed || (h->side == SIDE_ORIGIN && s->answered);

        s->closed = true;
        stream_break(s, said || h->side == SIDE_CLIENT ? WHY_CUT : WHY_EOF,
                     "session ended", f->code, f->text);
    }
    do
        while ((s = hub_take(&h->hub, &c)) != NULL) {
            if (s->prev == NULL && h->all != s) { /* its first call */
                h2_add(h, s);
                s->submitted = s->closed = true;
                stream_break(s, WHY_UNPROCESSED, "session ended", 0, NULL);
            }
            h2_serve_call(h, s, &c);
        }
    while (fibers_leave(h) || !hub_wait_left(&h->hub));
    while (h->all != NULL)
        h2_let_go(h, h->all);
}

/* One turn.  WHY_NONE: another; WHY_MORE: idle for linger_ms. */
static enum why
turn(struct h2 *h, int linger_ms, struct fail *f)
{
    int64_t idle, left = TICK_MS;
    enum why why;

    h->now = now_ms();
    why = receive(h, f);
    if (why == WHY_CUT && idle_since(h) != 0) {
        *f = (struct fail){0};
        why = WHY_EOF; /* without TLS's goodbye, but nothing is missing */
    }
    if (why != WHY_NONE && why != WHY_MORE)
        return why;
    fibers_run(&h->fibers);
    h2_serve_calls(h);
    if (h->now >= h->tick_at) {
        enum why late = tick(h, f);

        h->tick_at = h->now + TICK_MS;
        if (late != WHY_NONE)
            return late;
    }
    if (h->cause == NULL) {
        enum why sent = transmit(h, f);

        if (sent == WHY_NONE && h->early) {
            h2_ask_early(h);
            sent = transmit(h, f);
        }
        if (sent != WHY_NONE)
            return sent;
    }
    if (h->cause != NULL) { /* transmit may have found it */
        say_why(h);
        return fail_note(f, h->side, WHY_PROTO, h->cause, (int)h->code,
                         h2_code_text);
    }
    if (!nghttp2_session_want_read(h->ng) &&
        !nghttp2_session_want_write(h->ng) && h->out.len == 0 &&
        !end_unsent(h->end))
        return WHY_EOF;
    if (why == WHY_NONE)
        return WHY_NONE;
    if ((idle = idle_since(h)) != 0) {
        left = idle + linger_ms - h->now;
        if (h->side == SIDE_ORIGIN && is_leaving(h))
            left = 0; /* nobody will come any more */
        if (left <= 0 && h->out.len == 0 && !end_unsent(h->end))
            return WHY_MORE;
    }
    sleep_until_news(h, left < 0 ? 0 : left < TICK_MS ? (int)left : TICK_MS);
    return WHY_NONE;
}

/* ---- public -------------------------------------------------------------- */

static nghttp2_session_callbacks *
callbacks_new(void)
{
    nghttp2_session_callbacks *c;

    if (nghttp2_session_callbacks_new(&c) != 0)
        return NULL;
    h2read_callbacks(c);
    h2write_callbacks(c);
    return c;
}

/* Resets and continuations are counted here, by limits of proxy.ini. */
static nghttp2_option *
option_new(const struct h2 *h)
{
    nghttp2_option *o;

    if (nghttp2_option_new(&o) != 0)
        return NULL;
    nghttp2_option_set_no_auto_window_update(o, 1);
    nghttp2_option_set_max_continuations(o, H2_CONTINUATIONS);
    nghttp2_option_set_stream_reset_rate_limit(o, 1 << 30, 1 << 30);
    if (h->side == SIDE_ORIGIN && h->user.altsvc != NULL)
        nghttp2_option_set_builtin_recv_extension_type(o, NGHTTP2_ALTSVC);
    return o;
}

static int
say_settings(struct h2 *h, const struct config *conf)
{
    uint32_t window = (uint32_t)conf->window_kib * 1024;
    uint32_t list = (uint32_t)conf->head_bytes;
    nghttp2_settings_entry server[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, (uint32_t)conf->streams},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, list},
        {NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL, 1}};
    nghttp2_settings_entry client[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, list}};
    int rc = h->side == SIDE_CLIENT
                 ? nghttp2_submit_settings(h->ng, NGHTTP2_FLAG_NONE, server, 4)
                 : nghttp2_submit_settings(h->ng, NGHTTP2_FLAG_NONE, client, 3);

    return rc != 0 ? rc
                   : nghttp2_session_set_local_window_size(
                         h->ng, NGHTTP2_FLAG_NONE, 0, conf->session_kib * 1024);
}

static bool
library_init(struct h2 *h, const struct config *conf)
{
    nghttp2_session_callbacks *c = callbacks_new();
    nghttp2_option *o = option_new(h);
    int rc = NGHTTP2_ERR_NOMEM;

    if (c != NULL && o != NULL)
        rc = h->side == SIDE_CLIENT
                 ? nghttp2_session_server_new2(&h->ng, c, h, o)
                 : nghttp2_session_client_new2(&h->ng, c, h, o);
    nghttp2_session_callbacks_del(c);
    nghttp2_option_del(o);
    return rc == 0 && say_settings(h, conf) == 0;
}

static void
limits_init(struct h2 *h, const struct config *conf)
{
    calm_init(&h->calm, conf, h->now);
    h->idle_ms = conf->idle_s * 1000;
    h->head_ms = conf->head_s * 1000;
    h->stall_ms = conf->stall_s * 1000;
    h->max_streams = (size_t)conf->streams;
    h->trim_at = TRIM_STREAMS;
    h->last_id = -1;
    h->peer_max = 100; /* until its SETTINGS say; RFC 9113 section 6.5.2 */
    section_init(&h->section, conf);
}

/*
 * h2_new - a session on an end; nothing is sent or read yet.
 *
 * end   stays the caller's; what it has buffered is read first
 * side  whom we speak with: SIDE_CLIENT makes us the server
 * conf  for its limits; not kept
 * user  copied
 *
 * Returns NULL: out of memory or descriptors.
 */
struct h2 *
h2_new(struct end *end, enum side side, const struct config *conf,
       const struct h2_user *user)
{
    struct h2 *h = calloc(1, sizeof *h);

    if (h == NULL)
        return NULL;
    h->end = end;
    h->hub.wake_fd = h->fibers.wake_fd = -1;
    h->side = side;
    h->user = *user;
    h->now = h->heard_at = now_ms();
    pthread_cond_init(&h->settled, NULL);
    limits_init(h, conf);
    if (hub_init(&h->hub) &&
        fibers_init(&h->fibers, (size_t)conf->stack_kib * 1024) &&
        library_init(h, conf)) {
        h->hub.max_spare = SPARE;
        return h;
    }
    h2_free(h);
    return NULL;
}

/* Nobody owns it, nobody uses a stream.  NULL: nothing. */
void
h2_free(struct h2 *h)
{
    if (h == NULL)
        return;
    assert(h->all == NULL && h->held == NULL);
    nghttp2_session_del(h->ng);
    section_clear(&h->section);
    store_clear(&h->out);
    fibers_clear(&h->fibers);
    hub_clear(&h->hub);
    pthread_cond_destroy(&h->settled);
    free(h);
}

/*
 * h2_run - own the session: serve its streams until it is over.
 *
 * linger_ms  how long no stream may be open.  In the server role the session
 *            then rests, in the client role it ends.
 *
 * Returns WHY_NONE: it rests, with nothing to send; h2_run() may be called
 * again when the peer has sent something.  Else it is over, and every stream's
 * user has left: WHY_EOF: in order; WHY_PROTO: the peer broke the protocol and
 * was told; or what the end's functions noted.
 * Thread: the owner.  Blocks: yes.
 */
enum why
h2_run(struct h2 *h, int linger_ms, struct fail *f)
{
    enum why why;

    h->end->no_wait = true;
    h->quiet = false;
    h->idle_from = 0;
    do {
        while ((why = turn(h, linger_ms, f)) == WHY_NONE)
            ;
        if (why == WHY_MORE && h->side == SIDE_ORIGIN &&
            hub_over_idle(&h->hub)) {
            say_why(h); /* NO_ERROR */
            why = WHY_EOF;
        }
    } while (why == WHY_MORE && h->side == SIDE_ORIGIN);
    if (why != WHY_MORE)
        break_all(h, f);
    h->end->no_wait = false;
    store_clear(&h->out);
    fibers_rest(&h->fibers);
    hub_rest(&h->hub, true);
    trim(h);
    return why == WHY_MORE ? WHY_NONE : why;
}

/* A session at rest ends: say so, if that needs no waiting.  Then h2_free(). */
void
h2_goodbye(struct h2 *h)
{
    h->end->no_wait = true;
    say_why(h);
    h->end->no_wait = false;
}

/* How many streams there have been.  Nobody owns it now. */
uint64_t
h2_served(const struct h2 *h)
{
    return h->n_served;
}

/*
 * h2_open - a stream for one request to an origin.
 *
 * used  whether the session carried another before
 *
 * Returns the caller's, to be given back by stream_give(); it is opened by the
 * first write.  NULL: as many are open as the origin allows, or the session
 * takes no more.  Thread: any.
 */
struct stream *
h2_open(struct h2 *h, bool *used)
{
    bool room;

    /* With many streams most sessions are full, and each request asks all. */
    if (atomic_load(&h->hub.n_live) >= atomic_load(&h->peer_max))
        return NULL;
    pthread_mutex_lock(&h->hub.lock);
    room = !h->leaving && !h->hub.over && h->hub.n_live < h->peer_max;
    *used = h->used;
    h->used = h->used || room;
    pthread_mutex_unlock(&h->hub.lock);
    return room ? stream_new(&h->hub, SIDE_ORIGIN, HTTP_2, h->idle_ms) : NULL;
}

/*
 * h2_extended - does the origin take extended CONNECT (RFC 8441)?
 *
 * until  ms: how long its SETTINGS are waited for
 *
 * Returns 1 or 0; 0 as well if they do not come.  -1: the session is over.
 */
int
h2_extended(struct h2 *h, int64_t until)
{
    int answer;

    pthread_mutex_lock(&h->hub.lock);
    while (!h->settings_seen && !h->hub.over && now_ms() < until)
        (void)cond_until(&h->settled, &h->hub.lock, until);
    answer = h->hub.over ? -1 : h->extended;
    pthread_mutex_unlock(&h->hub.lock);
    return answer;
}

/* End it soon, whatever it is doing.  Any thread. */
void
h2_stop(struct h2 *h)
{
    pthread_mutex_lock(&h->hub.lock);
    h->stop = true;
    hub_wake(&h->hub);
    pthread_mutex_unlock(&h->hub.lock);
}
