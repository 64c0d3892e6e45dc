/*
 * h3.c - one HTTP/3 session, in either role, and the thread that owns it.
 *
 * The counterpart of h2.c.  The owner alone touches the two libraries, the one
 * for QUIC (quic.c) and the one for HTTP/3.  He never waits for a stream: he
 * polls one eventfd, which the listener's thread and the users of his streams
 * write (a client's session has a socket beside it), takes what has come, looks
 * who called, and sends what may be sent.  What a stream carries goes through
 * stream.c.
 *
 * Here is its life; what comes is in h3in.c, what goes in h3out.c.
 *
 * A session without streams and with nothing under way rests: nobody owns it,
 * and its eventfd says when somebody has to.
 *
 * Follows  RFC 9114, RFC 9204 (QPACK), RFC 9220 (extended CONNECT), RFC 9297
 *          (datagrams).
 * Owns     both libraries' connections, the owner's reference to each stream,
 *          the lanes (lane.c).  The wire is the user's.
 * Threads  the owner in h3_run(); h3_open(), h3_ready(), h3_extended() and
 *          h3_stop() from any.
 * Blocks   in poll(2), for a tick at most.
 */
#include <assert.h>
#include <errno.h>
#include <nghttp3/nghttp3.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

enum {
    TICK_MS = 500,      /* how often clocks and flags are looked at */
    REST_MS = 200,      /* nothing is due for so long: a session may rest */
    QPACK_TABLE = 4096, /* bytes of the dynamic tables */
    QPACK_BLOCKED = 64, /* streams that may wait for one */
    TRIM_STREAMS = 50,  /* served: there may be memory to give back */
    NEAR_RTT_MS = 10,   /* what to assume of a client, before it is known */
    FAR_RTT_MS = 60,    /* and of an origin */
    LOOK_MS = 1000,     /* so often, at rest, while a stream is open */
    SILENT_MS = 3000,   /* an origin that owes an answer is asked then */
    HELD_MS = 1000,     /* how long a request may wait for a stream */
};

/* ---- endings ------------------------------------------------------------- */

const char *
h3_code_text(int code)
{
    switch (code) {
    case NGHTTP3_H3_NO_ERROR:
        return "H3_NO_ERROR";
    case NGHTTP3_H3_INTERNAL_ERROR:
        return "H3_INTERNAL_ERROR";
    case NGHTTP3_H3_EXCESSIVE_LOAD:
        return "H3_EXCESSIVE_LOAD";
    case NGHTTP3_H3_REQUEST_REJECTED:
        return "H3_REQUEST_REJECTED";
    case NGHTTP3_H3_REQUEST_CANCELLED:
        return "H3_REQUEST_CANCELLED";
    case NGHTTP3_H3_REQUEST_INCOMPLETE:
        return "H3_REQUEST_INCOMPLETE";
    case NGHTTP3_H3_MESSAGE_ERROR:
        return "H3_MESSAGE_ERROR";
    case NGHTTP3_H3_CONNECT_ERROR:
        return "H3_CONNECT_ERROR";
    default:
        return "HTTP/3 error";
    }
}

/* The session shall end; the first reason counts. */
int
h3_give_up(struct h3 *h, uint64_t code, const char *cause)
{
    quic_end(h->quic, code, cause);
    return NGHTTP3_ERR_CALLBACK_FAILURE;
}

int
h3_no_memory(struct h3 *h)
{
    return h3_give_up(h, NGHTTP3_H3_INTERNAL_ERROR, "out of memory");
}

/* What the library refused, as a code of the protocol. */
bool
h3_judge(struct h3 *h, int rc)
{
    if (rc == NGHTTP3_ERR_QPACK_HEADER_TOO_LARGE) /* a string of 64 KiB */
        quic_end(h->quic, NGHTTP3_H3_EXCESSIVE_LOAD, "field is too large");
    else
        quic_end(h->quic, nghttp3_err_infer_quic_app_error_code(rc),
                 rc == NGHTTP3_ERR_NOMEM ? "out of memory" : "protocol broken");
    return false;
}

int
h3_spend(struct h3 *h, enum calm_kind kind, int n, const char *cause)
{
    while (n-- > 0)
        if (!calm_spend(&h->calm, kind, h->now))
            return h3_give_up(h, NGHTTP3_H3_EXCESSIVE_LOAD, cause);
    return 0;
}

/* ---- lanes and streams --------------------------------------------------- */

void
h3_add(struct h3 *h, struct stream *s)
{
    s->moved_at = h->now;
    s->prev = NULL;
    s->next = h->all;
    if (s->next != NULL)
        s->next->prev = s;
    h->all = s;
    h->n_open++;
}

/* A client may open one stream more: one has ended, and so has the work that
 * it made. */
void
h3_stream_over(struct h3 *h)
{
    if (h->side == SIDE_CLIENT)
        h->n_credit++;
}

/* The owner is through with a stream.  What nobody will read any more is
 * credited to the connection, or its window would leak away. */
void
h3_let_go(struct h3 *h, struct stream *s)
{
    size_t unread = stream_unread(s);

    if (unread > 0)
        quic_credit(h->quic, -1, unread);
    if (h->gram_to == s)
        h->gram_to = NULL;
    if (s->prev != NULL)
        s->prev->next = s->next;
    else
        h->all = s->next;
    if (s->next != NULL)
        s->next->prev = s->prev;
    h->n_served++;
    h->n_open--;
    if (s->id >= 0)
        h3_stream_over(h);
    stream_drop(s);
}

/* No more of what the peer sends is wanted. */
void
h3_stop_reading(struct h3 *h, int64_t id, uint64_t code)
{
    struct lane *l = lane_find(&h->lanes, id);

    if (l != NULL)
        l->stopped = true;
    quic_stop(h->quic, id, code);
    (void)nghttp3_conn_shutdown_stream_read(h->ng, id);
}

/* Both directions end here, incomplete. */
void
h3_reset(struct h3 *h, int64_t id, uint64_t code)
{
    quic_cut(h->quic, id, code);
    nghttp3_conn_shutdown_stream_write(h->ng, id);
    h3_stop_reading(h, id, code);
}

/* ---- going -------------------------------------------------------------- */

void
h3_leave(struct h3 *h)
{
    pthread_mutex_lock(&h->hub.lock);
    h->leaving = true;
    pthread_mutex_unlock(&h->hub.lock);
}

static bool
is_leaving(struct h3 *h)
{
    bool leaving;

    pthread_mutex_lock(&h->hub.lock);
    leaving = h->leaving;
    pthread_mutex_unlock(&h->hub.lock);
    return leaving;
}

/* ---- the handshake --------------------------------------------------------
 */

static bool
quic_ready(void *arg)
{
    struct h3 *h = arg;
    int64_t control, encoder, decoder;

    /* RFC 9114 section 6.2: the peer has to allow three. */
    if (!quic_open(h->quic, false, &control) ||
        !quic_open(h->quic, false, &encoder) ||
        !quic_open(h->quic, false, &decoder) ||
        nghttp3_conn_bind_control_stream(h->ng, control) != 0 ||
        nghttp3_conn_bind_qpack_streams(h->ng, encoder, decoder) != 0) {
        quic_end(h->quic, NGHTTP3_H3_GENERAL_PROTOCOL_ERROR,
                 "no streams for control and QPACK");
        return false;
    }
    return true;
}

static void
quic_confirmed(void *arg)
{
    struct h3 *h = arg;
    size_t max = quic_streams_left(h->quic);

    pthread_mutex_lock(&h->hub.lock);
    h->ready = true;
    if (h->side == SIDE_ORIGIN)
        h->peer_max = max;
    pthread_cond_broadcast(&h->settled);
    pthread_mutex_unlock(&h->hub.lock);
}

static int
quic_hello(void *arg, const struct hello *hello, struct leaf **leaf)
{
    struct h3 *h = arg;

    return h->user.hello(h->user.arg, hello, leaf);
}

static enum why
quic_verify(void *arg, gnutls_session_t tls, struct fail *f)
{
    struct h3 *h = arg;

    return h->user.verify(h->user.arg, tls, f);
}

/* ---- limits -------------------------------------------------------------- */

/* What has changed in what may be sent. */
static void
look_at_limits(struct h3 *h)
{
    size_t max = h->peer_grams ? quic_gram_max(h->quic) : 0, left;
    bool alive = h->all != NULL;

    if (h->n_credit > 0)
        quic_credit_streams(h->quic, h->n_credit);
    h->n_credit = 0;
    max = max > 4 ? max - 4 : 0; /* the stream's number */
    if (max != h->gram_max) {
        h->gram_max = max;
        pthread_mutex_lock(&h->hub.lock);
        h->hub.gram_max = max < H3_GRAM_MAX - 4 ? max : H3_GRAM_MAX - 4;
        pthread_mutex_unlock(&h->hub.lock);
    }
    /* What has ended may be opened anew as soon as the peer says so: that is a
     * moment for which a request is held. */
    left = h->side == SIDE_ORIGIN && quic_is_ready(h->quic)
               ? quic_streams_left(h->quic)
               : 0;
    if (left > 0) {
        pthread_mutex_lock(&h->hub.lock);
        if (h->n_open + left > h->peer_max)
            h->peer_max = h->n_open + left;
        pthread_mutex_unlock(&h->hub.lock);
    }
    if (alive != h->kept_alive) {
        h->kept_alive = alive;
        quic_keep_alive(h->quic, alive ? h->alive_ms : 0);
    }
}

/* ---- clocks -------------------------------------------------------------- */

/* A peer that takes nothing holds our content for ever: not longer than
 * stall_ms.  One that never finishes a head holds a stream: not longer than
 * head_ms. */
static void
end_stalled(struct h3 *h)
{
    for (struct lane *l = h->lanes.first; l != NULL; l = l->next) {
        struct stream *s = l->s;
        bool waits;

        if (l->section != NULL && h->side == SIDE_CLIENT &&
            h->now - l->begun_at >= h->head_ms && s == NULL) {
            lane_end(&h->lanes, l);
            h3_reset(h, l->id, NGHTTP3_H3_REQUEST_INCOMPLETE);
        }
        if (s == NULL || s->closed || h->now - s->moved_at < h->stall_ms)
            continue;
        pthread_mutex_lock(&h->hub.lock);
        waits = !s->local_end && (s->out.len > 0 || l->unacked > 0 ||
                                  (s->out_end && s->answered));
        pthread_mutex_unlock(&h->hub.lock);
        if (waits) {
            h3_reset(h, l->id, NGHTTP3_H3_REQUEST_CANCELLED);
            stream_break(s, WHY_IDLE, "write to stream", 0, NULL);
        }
    }
}

/* Tell the peer that no more streams are welcome; those that are go on.  First
 * without a limit, so that what is on its way is still served (RFC 9114
 * section 5.2), a tick later with it. */
static void
say_goodbye(struct h3 *h)
{
    h3_leave(h);
    if (h->side == SIDE_ORIGIN || !quic_is_ready(h->quic))
        return;
    if (!h->shut) {
        h->shut = true;
        (void)nghttp3_conn_submit_shutdown_notice(h->ng);
    } else if (!h->said_goodbye) {
        h->said_goodbye = true;
        (void)nghttp3_conn_shutdown(h->ng);
    }
}

/* Buffers of a burst that is over. */
static void
give_back(struct h3 *h)
{
    if (h->in.len == 0)
        store_clear(&h->in);
    if (h->grams.len == 0)
        store_clear(&h->grams);
    if (h->fibers.n_free > h->fibers.n)
        fibers_rest(&h->fibers);
    hub_rest(&h->hub, false);
}

/* Client role: a request has waited long for a stream.  The peer lets us open
 * no more, and others shall not try. */
static void
end_held(struct h3 *h)
{
    struct stream *s = h->held, *next;

    if (s == NULL || !quic_is_ready(h->quic))
        return;
    while (s->next_own != NULL) /* it is newest first */
        s = s->next_own;
    if (h->now - s->moved_at < HELD_MS)
        return;
    h3_leave(h);
    s = h->held;
    h->held = NULL;
    for (; s != NULL; s = next) {
        next = s->next_own;
        s->held = false;
        s->submitted = s->closed = true;
        h3_add(h, s);
        stream_break(s, WHY_UNPROCESSED, "open a stream", 0, NULL);
        h3_serve(h, s);
    }
}

/* Twice a second. */
static void
tick(struct h3 *h)
{
    end_stalled(h);
    end_held(h);
    give_back(h);
    if (atomic_load(&h->user.weir->draining))
        say_goodbye(h);
    if (h->wire != NULL && wire_stopped(h->wire))
        atomic_store(&h->stop, true);
}

/* Has every stream ended, and does the peer know? */
static bool
is_done(const struct h3 *h)
{
    return h->all == NULL && h->held == NULL && h->lanes.first == NULL;
}

/* Since when has no stream had a user?  0: one has, or (client role) one is
 * open. */
static int64_t
idle_since(struct h3 *h)
{
    if (hub_live(&h->hub) > 0 || (h->side == SIDE_ORIGIN && !is_done(h)))
        h->idle_from = 0;
    else if (h->idle_from == 0)
        h->idle_from = h->now;
    return h->idle_from;
}

/* ---- the session's life -------------------------------------------------- */

/* Wait for a datagram, for a stream's call, or until a point in time. */
static void
sleep_until_news(struct h3 *h, int64_t until_us)
{
    struct pollfd p[2] = {{.fd = h->hub.wake_fd, .events = POLLIN},
                          {.fd = h->fd, .events = POLLIN}};
    int64_t us = until_us - now_us();
    struct timespec wait;

    if (us <= 0 || !hub_sleep(&h->hub))
        return;
    if (h->fibers.n > 0) {
        fibers_poll_us(&h->fibers, p, 2, us);
    } else {
        wait = (struct timespec){us / 1000000, us % 1000000 * 1000};
        (void)ppoll(p, 2, &wait, NULL);
    }
    hub_awake(&h->hub);
}

/* Fibers need this thread to notice anything.  True: some ran. */
static bool
fibers_leave(struct h3 *h)
{
    if (h->fibers.n == 0)
        return false;
    fibers_poll(&h->fibers, NULL, 0, TICK_MS);
    fibers_run(&h->fibers);
    return true;
}

/* A stream that has its end, for want of a session. */
static void
break_stream(struct h3 *h, struct stream *s, enum why why, const struct fail *f)
{
    struct lane *l = s->session;

    if (l != NULL)
        l->s = NULL;
    s->session = NULL;
    s->submitted = s->closed = true;
    stream_break(s, why, "session ended", f->code, f->text);
    (void)h;
}

/* Nobody serves the streams any more: their users shall notice, and leave. */
static void
break_all(struct h3 *h, const struct fail *f)
{
    struct stream *s, *next;

    hub_over(&h->hub);
    pthread_mutex_lock(&h->hub.lock);
    h->settings_seen = true;
    if (!h->ready)
        h->failed = *f;
    pthread_cond_broadcast(&h->settled);
    pthread_mutex_unlock(&h->hub.lock);
    for (s = h->held; s != NULL; s = next) {
        next = s->next_own;
        s->held = false;
        h3_add(h, s);
        break_stream(h, s, WHY_UNPROCESSED, f);
    }
    h->held = NULL;
    for (s = h->all; s != NULL; s = s->next) {
        bool said = s->closed || (h->side == SIDE_ORIGIN && s->answered);

        break_stream(h, s, said || h->side == SIDE_CLIENT ? WHY_CUT : WHY_EOF,
                     f);
    }
    do
        while ((s = hub_call(&h->hub)) != NULL) {
            if (s->prev == NULL && h->all != s) { /* its first call */
                h3_add(h, s);
                break_stream(h, s, WHY_UNPROCESSED, f);
            }
            h3_serve(h, s);
        }
    while (fibers_leave(h) || !hub_wait_left(&h->hub));
    while (h->all != NULL)
        h3_let_go(h, h->all);
}

/* May nobody own it for a while?  WHY_MORE: yes, it is asleep; WHY_EOF: it may
 * end.  A client that does not take the rest of an answer, or never finishes a
 * head, has no owner to wait for it. */
static enum why
may_rest(struct h3 *h, int linger_ms)
{
    int64_t idle = idle_since(h);
    bool over = is_leaving(h);

    if (idle == 0)
        return WHY_NONE;
    if (over && is_done(h) && (h->side == SIDE_ORIGIN || h->said_goodbye))
        return WHY_EOF;
    if (h->side == SIDE_ORIGIN)
        return h->now - idle >= linger_ms && hub_over_idle(&h->hub) ? WHY_EOF
                                                                    : WHY_NONE;
    if (over || atomic_load(&h->user.weir->draining) ||
        h->now - idle < linger_ms ||
        quic_until_us(h->quic) < (h->now + REST_MS) * 1000)
        return WHY_NONE;
    return hub_sleep(&h->hub) ? WHY_MORE : WHY_NONE;
}

/* When to look again at the latest, in µs. */
static int64_t
next_look(struct h3 *h, int linger_ms)
{
    int64_t until = h->tick_at, idle = idle_since(h), quic;

    if (idle != 0 && idle + linger_ms > h->now && idle + linger_ms < until)
        until = idle + linger_ms;
    quic = quic_until_us(h->quic);
    return quic < until * 1000 ? quic : until * 1000;
}

/* One turn.  WHY_NONE: another; WHY_MORE: it rests. */
static enum why
turn(struct h3 *h, int linger_ms, struct fail *f)
{
    enum why why, got;

    h->now = now_ms();
    got = h3_receive(h, f);
    if (got != WHY_NONE && got != WHY_MORE)
        return got;
    fibers_run(&h->fibers);
    h3_serve_calls(h);
    if (h->now >= h->tick_at) {
        h->tick_at = h->now + TICK_MS;
        tick(h);
    }
    if (atomic_load(&h->stop)) {
        quic_end(h->quic, NGHTTP3_H3_NO_ERROR, "session");
        return fail_own(f, SIDE_WEIR, WHY_OVER, "session");
    }
    if ((why = quic_expire(h->quic, f)) != WHY_NONE)
        return why;
    look_at_limits(h);
    if ((why = quic_write(h->quic, f)) != WHY_NONE)
        return why;
    if (got == WHY_NONE)
        return WHY_NONE;
    if ((why = may_rest(h, linger_ms)) != WHY_NONE) {
        if (why == WHY_EOF)
            quic_end(h->quic, NGHTTP3_H3_NO_ERROR, "session");
        return why;
    }
    sleep_until_news(h, next_look(h, linger_ms));
    return WHY_NONE;
}

/* ---- making one ---------------------------------------------------------- */

static bool
library_init(struct h3 *h, const struct config *conf)
{
    nghttp3_callbacks callbacks = {.acked_stream_data = NULL};
    struct quic_user unused;
    nghttp3_settings s;

    h3_in(&callbacks, &unused);
    h3_out(&callbacks, &unused);
    nghttp3_settings_default(&s);
    s.max_field_section_size = (uint64_t)conf->head_bytes;
    s.qpack_max_dtable_capacity = QPACK_TABLE;
    s.qpack_encoder_max_dtable_capacity = QPACK_TABLE;
    s.qpack_blocked_streams = QPACK_BLOCKED;
    s.h3_datagram = 1;
    if (h->side == SIDE_ORIGIN)
        return nghttp3_conn_client_new(&h->ng, &callbacks, &s, NULL, h) == 0;
    s.enable_connect_protocol = 1;
    if (nghttp3_conn_server_new(&h->ng, &callbacks, &s, NULL, h) != 0)
        return false;
    nghttp3_conn_set_max_client_streams_bidi(h->ng, (uint64_t)1 << 60);
    return true;
}

static void
limits_init(struct h3 *h, const struct config *conf)
{
    calm_init(&h->calm, conf, h->now);
    h->idle_ms = conf->idle_s * 1000;
    h->head_ms = conf->head_s * 1000;
    h->stall_ms = conf->stall_s * 1000;
    h->alive_ms =
        h->side == SIDE_ORIGIN ? SILENT_MS : conf->quic_idle_s * 1000 / 2;
    h->max_streams = (size_t)conf->streams;
    h->trim_at = TRIM_STREAMS;
    h->peer_max = 100; /* until its parameters say */
    h->control_id = -1;
    h->lanes.max_bytes = (size_t)conf->head_bytes;
    h->lanes.max_fields = (size_t)conf->fields;
}

static struct quic_user
quic_user_of(struct h3 *h)
{
    nghttp3_callbacks unused;
    struct quic_user u = {.arg = h,
                          .hello = quic_hello,
                          .verify = quic_verify,
                          .ready = quic_ready,
                          .confirmed = quic_confirmed};

    h3_in(&unused, &u);
    h3_out(&unused, &u);
    return u;
}

static struct quic_conf
quic_conf_of(const struct config *conf, enum side side)
{
    bool near = side == SIDE_CLIENT;

    return (struct quic_conf){
        .idle_ms = conf->quic_idle_s * 1000,
        .handshake_ms = (near ? conf->head_s : conf->connect_s) * 1000,
        .rtt_ms = near ? NEAR_RTT_MS : FAR_RTT_MS,
        .streams = (size_t)conf->streams,
        .stream_window = (size_t)conf->window_kib * 1024,
        .window = (size_t)conf->session_kib * 1024};
}

static struct h3 *
session_new(enum side side, const struct config *conf,
            const struct h3_user *user)
{
    struct h3 *h = calloc(1, sizeof *h);

    if (h == NULL)
        return NULL;
    h->hub.wake_fd = h->fibers.wake_fd = h->fd = -1;
    h->side = side;
    h->user = *user;
    h->now = now_ms();
    pthread_cond_init(&h->settled, NULL);
    limits_init(h, conf);
    if (hub_init(&h->hub) &&
        fibers_init(&h->fibers, (size_t)conf->stack_kib * 1024) &&
        library_init(h, conf))
        return h;
    h3_free(h);
    return NULL;
}

/*
 * h3_accept - a session with a client that has sent its first datagram.
 *
 * wire  the user's, and outlives it
 * conf  for its limits; not kept
 * user  copied
 *
 * Returns NULL: out of memory or descriptors.  Thread: any; nothing is read or
 * sent yet.
 */
struct h3 *
h3_accept(struct wire *wire, const struct config *conf,
          const struct h3_user *user)
{
    struct h3 *h = session_new(SIDE_CLIENT, conf, user);
    struct quic_conf qc = quic_conf_of(conf, SIDE_CLIENT);
    struct quic_user qu;
    gnutls_session_t tls;

    if (h == NULL)
        return NULL;
    qc.tunnelled = wire_tunnelled(wire);
    qu = quic_user_of(h);
    if (mitm_quic(user->weir->mitm, &tls) != 0 ||
        (h->quic = quic_accept(wire, tls, &qc, &qu)) == NULL) {
        h3_free(h);
        return NULL;
    }
    h->wire = wire;
    wire_own(wire, &h->hub);
    return h;
}

/*
 * h3_connect - a session with an origin; h3_run() begins the handshake.
 *
 * Streams may be opened at once; they wait for the handshake.
 *
 * Returns NULL: out of memory or descriptors; fd and tls are gone then, too.
 */
struct h3 *
h3_connect(int fd, gnutls_session_t tls, const struct config *conf,
           const struct h3_user *user)
{
    struct h3 *h = session_new(SIDE_ORIGIN, conf, user);
    struct quic_conf qc = quic_conf_of(conf, SIDE_ORIGIN);
    struct quic_user qu;

    if (h == NULL) {
        gnutls_deinit(tls);
        close(fd);
        return NULL;
    }
    qu = quic_user_of(h);
    h->fd = fd;
    if ((h->quic = quic_connect(fd, tls, &qc, &qu)) == NULL) {
        h->fd = -1;
        h3_free(h);
        return NULL;
    }
    return h;
}

/* Nobody owns it, nobody uses a stream.  NULL: nothing. */
void
h3_free(struct h3 *h)
{
    struct leaf *leaf = NULL;

    if (h == NULL)
        return;
    assert(h->held == NULL);
    while (h->all != NULL) { /* it ends at rest; their users have left */
        assert(h->all->seen_done);
        h3_let_go(h, h->all);
    }
    if (h->wire != NULL)
        wire_own(h->wire, NULL);
    if (h->quic != NULL && h->side == SIDE_CLIENT)
        leaf = quic_leaf(quic_session(h->quic));
    while (h->lanes.first != NULL)
        lane_free(&h->lanes, h->lanes.first);
    quic_free(h->quic);
    if (leaf != NULL)
        leaf_give(mitm_leaves(h->user.weir->mitm), leaf);
    nghttp3_conn_del(h->ng);
    lanes_rest(&h->lanes);
    store_clear(&h->in);
    store_clear(&h->grams);
    free(h->buf);
    fibers_clear(&h->fibers);
    hub_clear(&h->hub);
    pthread_cond_destroy(&h->settled);
    free(h);
}

/* ---- public -------------------------------------------------------------- */

/*
 * h3_run - own the session: serve its streams until it is over.
 *
 * linger_ms  how long no stream may be open.  In the server role the session
 *            then rests, in the client role it ends.
 *
 * Returns WHY_NONE: it rests; h3_run() has to be called again when h3_wake_fd()
 * is readable or h3_until() has come.  Else it is over, the peer was told, and
 * every stream's user has left: WHY_EOF: in order; WHY_PROTO: the peer broke
 * the protocol; or what quic_feed() noted.
 * Thread: the owner.  Blocks: yes.
 */
enum why
h3_run(struct h3 *h, int linger_ms, struct fail *f)
{
    enum why why;

    hub_awake(&h->hub);
    h->idle_from = 0;
    while ((why = turn(h, linger_ms, f)) == WHY_NONE)
        ;
    if (why == WHY_IDLE && h->side == SIDE_ORIGIN && idle_since(h) != 0) {
        *f = (struct fail){0}; /* an origin that was not asked is silent */
        why = WHY_EOF;
    }
    if (why != WHY_MORE) {
        quic_goodbye(h->quic);
        break_all(h, f);
    }
    store_clear(&h->in);
    store_clear(&h->grams);
    free(h->buf);
    h->buf = NULL;
    lanes_rest(&h->lanes);
    quic_rest(h->quic);
    fibers_rest(&h->fibers);
    hub_rest(&h->hub, true);
    if (h->n_served >= h->trim_at) {
        h->trim_at = h->n_served + TRIM_STREAMS;
        atomic_store(&h->user.weir->trim, true);
    }
    return why == WHY_MORE ? WHY_NONE : why;
}

/* Readable when a session at rest has to be run. */
int
h3_wake_fd(const struct h3 *h)
{
    return h->hub.wake_fd;
}

/* When a session at rest has to be run at the latest, in ms. */
int64_t
h3_until(const struct h3 *h)
{
    int64_t us = quic_until_us(h->quic), look = now_ms() + LOOK_MS;
    int64_t ms = us == INT64_MAX ? INT64_MAX : us / 1000 + 1;

    return is_done(h) || ms < look ? ms : look; /* clocks of streams run */
}

/* Is nothing under way in a session at rest? */
bool
h3_is_idle(const struct h3 *h)
{
    return is_done(h);
}

/* A session at rest ends: say so.  Then h3_free(). */
void
h3_goodbye(struct h3 *h)
{
    quic_end(h->quic, NGHTTP3_H3_NO_ERROR, "session");
    quic_goodbye(h->quic);
}

/* How many streams there have been.  Nobody owns it now. */
uint64_t
h3_served(const struct h3 *h)
{
    return h->n_served;
}

/* Nobody owns it now. */
struct quic_bytes
h3_bytes(const struct h3 *h)
{
    return quic_bytes(h->quic);
}

/* For what may be remembered of it.  Nobody owns it now. */
gnutls_session_t
h3_session(const struct h3 *h)
{
    return quic_session(h->quic);
}

/*
 * h3_ready - wait until the handshake with an origin is complete.
 *
 * until  ms
 *
 * Returns WHY_NONE; WHY_LATE: it may yet be; or what went wrong, noted.
 * Thread: any but the owner.
 */
enum why
h3_ready(struct h3 *h, int64_t until, struct fail *f)
{
    enum why why = WHY_NONE;

    pthread_mutex_lock(&h->hub.lock);
    while (!h->ready && !h->hub.over && now_ms() < until)
        (void)cond_until(&h->settled, &h->hub.lock, until);
    if (h->hub.over && !h->ready) {
        *f = h->failed;
        why = f->why != WHY_NONE
                  ? f->why
                  : fail_own(f, SIDE_ORIGIN, WHY_CUT, "QUIC handshake");
    } else if (!h->ready) {
        why = fail_own(f, SIDE_ORIGIN, WHY_LATE, "QUIC handshake");
    }
    pthread_mutex_unlock(&h->hub.lock);
    return why;
}

/*
 * h3_open - a stream for one request to an origin.
 *
 * used  whether the session carried another before
 *
 * Returns the caller's, to be given back by stream_give(); it is opened by the
 * first write.  NULL: as many are open as the origin allows, or the session
 * takes no more.  Thread: any.
 */
struct stream *
h3_open(struct h3 *h, bool *used)
{
    bool room;

    pthread_mutex_lock(&h->hub.lock);
    room = !h->leaving && !h->hub.over && h->hub.n_live < h->peer_max;
    *used = h->used;
    h->used = h->used || room;
    pthread_mutex_unlock(&h->hub.lock);
    return room ? stream_new(&h->hub, SIDE_ORIGIN, HTTP_3, h->idle_ms) : NULL;
}

/*
 * h3_extended - does the origin take extended CONNECT (RFC 9220)?
 *
 * until  ms: how long its SETTINGS are waited for
 *
 * Returns 1 or 0; 0 as well if they do not come.  -1: the session is over.
 */
int
h3_extended(struct h3 *h, int64_t until)
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
h3_stop(struct h3 *h)
{
    atomic_store(&h->stop, true);
    hub_nudge(&h->hub);
}
