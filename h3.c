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
 * The library keeps pointers to content until the peer has acknowledged it.  So
 * a buffer that a stream's user has filled is taken from him as it is, and
 * freed when the last of its bytes has arrived (struct chunk).
 *
 * A session without streams and with nothing under way rests: nobody owns it,
 * and its eventfd says when somebody has to.
 *
 * Follows  RFC 9114, RFC 9204 (QPACK), RFC 9220 (extended CONNECT), RFC 9297
 *          (datagrams).
 * Owns     both libraries' connections, the owner's reference to each stream,
 *          what was sent and is not acknowledged.  The wire is the user's.
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
    TICK_MS = 500,         /* how often clocks and flags are looked at */
    CALLS = 256,           /* served in a row */
    READS = 16,            /* lots of datagrams read in a row from a socket */
    READ_MAX = 65536,      /* bytes of a lot */
    REST_MS = 200,         /* nothing is due for so long: a session may rest */
    NV_MAX = 64,           /* fields passed on without an allocation */
    IOV_HERE = 16,         /* pieces of a stream for one packet */
    UNACKED_MAX = 4 << 20, /* content of a stream that waits for its ACK */
    QPACK_TABLE = 4096,    /* bytes of the dynamic tables */
    QPACK_BLOCKED = 64,    /* streams that may wait for one */
    BOMB = 3,              /* times head_bytes that a head may unpack to */
    TRIM_STREAMS = 50,     /* served: there may be memory to give back */
    NEAR_RTT_MS = 10,      /* what to assume of a client, before it is known */
    FAR_RTT_MS = 60,       /* and of an origin */
    GRAM_MAX = 1500,       /* bytes of a datagram with its stream's number */
    REFUSALS = 3,          /* datagrams that found nobody: the origin is gone */
    SETTINGS_MAX = 256,    /* bytes of an origin's first frame */
    SETTING_CONNECT = 8,   /* RFC 9220 section 3 */
};

struct chunk { /* content that the library has, until it is acknowledged */
    struct store bytes;
    struct chunk *next;
};

struct lane { /* what the owner keeps of a request's stream */
    int64_t id;
    struct stream *s;        /* NULL: no complete head has come, or nobody
                                wants it */
    struct section *section; /* that is coming; NULL: none is */
    struct head *tail;       /* has come; the end has not */
    struct chunk *sent, *last_sent;
    size_t unacked;   /* bytes of sent */
    bool choked;      /* too many: the library shall not ask */
    bool stopped;     /* the peer was asked to send no more */
    int64_t begun_at; /* ms */
    struct lane *next, *prev;
};

struct h3 {
    struct hub hub;
    struct fibers fibers; /* server role: serve those streams that can be */
    /* set at the beginning, then only read */
    enum side side; /* whom we speak with */
    struct h3_user user;
    struct wire *wire; /* server role */
    int fd;            /* client role: quic's */
    int idle_ms, head_ms, stall_ms, alive_ms;
    size_t max_streams;
    struct config limits; /* those that a section wants */
    /* the owner's alone */
    struct quic *quic;
    nghttp3_conn *ng;
    struct stream *all, *fresh, *held;
    struct lane *lanes, *resume;
    struct section *spare;
    struct store in, grams;
    char *buf; /* client role: READ_MAX bytes of datagrams */
    char gram[GRAM_MAX];
    struct stream *gram_to;      /* who got the last one */
    char settings[SETTINGS_MAX]; /* client role: how the peer's control stream
                                    begins */
    size_t n_settings;
    bool takes_connect; /* what they say */
    struct calm calm;
    int64_t now, tick_at, idle_from, control_id;
    bool said_goodbye, shut, kept_alive, peer_grams;
    bool useful;      /* something came of what is being read */
    size_t n_useless; /* bytes in a row of which nothing came */
    int n_refusals;   /* in a row */
    size_t gram_max, n_credit;
    size_t n_open; /* of all */
    uint64_t n_served, trim_at;
    /* needs hub.lock */
    pthread_cond_t settled;
    bool settings_seen, extended, ready, leaving, used;
    struct fail failed; /* client role: before it was ready */
    size_t peer_max;
    /* any thread */
    atomic_bool stop;
};

/* ---- endings ------------------------------------------------------------- */

static const char *
code_text(int code)
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
static int
give_up(struct h3 *h, uint64_t code, const char *cause)
{
    quic_end(h->quic, code, cause);
    return NGHTTP3_ERR_CALLBACK_FAILURE;
}

static int
no_memory(struct h3 *h)
{
    return give_up(h, NGHTTP3_H3_INTERNAL_ERROR, "out of memory");
}

/* What the library refused, as a code of the protocol. */
static bool
judge_library(struct h3 *h, int rc)
{
    quic_end(h->quic, nghttp3_err_infer_quic_app_error_code(rc),
             rc == NGHTTP3_ERR_NOMEM ? "out of memory" : "protocol broken");
    return false;
}

static int
spend(struct h3 *h, enum calm_kind kind, int n, const char *cause)
{
    while (n-- > 0)
        if (!calm_spend(&h->calm, kind, h->now))
            return give_up(h, NGHTTP3_H3_EXCESSIVE_LOAD, cause);
    return 0;
}

/* ---- lanes and streams --------------------------------------------------- */

static struct lane *
lane_find(struct h3 *h, int64_t id)
{
    struct lane *l = h->lanes;

    while (l != NULL && l->id != id)
        l = l->next;
    return l;
}

static struct lane *
lane_new(struct h3 *h, int64_t id)
{
    struct lane *l = calloc(1, sizeof *l);

    if (l == NULL)
        return NULL;
    l->id = id;
    l->begun_at = h->now;
    l->next = h->lanes;
    if (l->next != NULL)
        l->next->prev = l;
    h->lanes = l;
    return l;
}

/* A section for a head; the last one's memory, if it is at hand. */
static bool
section_begin(struct h3 *h, struct lane *l)
{
    l->section = h->spare;
    h->spare = NULL;
    if (l->section != NULL)
        return true;
    if ((l->section = malloc(sizeof *l->section)) == NULL)
        return false;
    section_init(l->section, &h->limits);
    l->section->version = HTTP_3;
    return true;
}

static void
section_end(struct h3 *h, struct lane *l)
{
    if (l->section == NULL)
        return;
    section_reset(l->section);
    if (h->spare == NULL) {
        h->spare = l->section;
    } else {
        section_clear(l->section);
        free(l->section);
    }
    l->section = NULL;
}

static void
chunk_free(struct lane *l)
{
    struct chunk *c = l->sent;

    l->sent = c->next;
    if (l->sent == NULL)
        l->last_sent = NULL;
    store_clear(&c->bytes);
    free(c);
}

static void
lane_free(struct h3 *h, struct lane *l)
{
    section_end(h, l);
    while (l->sent != NULL)
        chunk_free(l);
    if (l->tail != NULL)
        head_clear(l->tail);
    free(l->tail);
    if (h->resume == l)
        h->resume = NULL;
    if (l->prev != NULL)
        l->prev->next = l->next;
    else
        h->lanes = l->next;
    if (l->next != NULL)
        l->next->prev = l->prev;
    free(l);
}

static void
list_add(struct h3 *h, struct stream *s)
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
static void
stream_over(struct h3 *h)
{
    if (h->side == SIDE_CLIENT)
        h->n_credit++;
}

/* The owner is through with a stream.  What nobody will read any more is
 * credited to the connection, or its window would leak away. */
static void
let_go(struct h3 *h, struct stream *s)
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
        stream_over(h);
    stream_drop(s);
}

/* No more of what the peer sends is wanted. */
static void
stop_reading(struct h3 *h, int64_t id, uint64_t code)
{
    struct lane *l = lane_find(h, id);

    if (l != NULL)
        l->stopped = true;
    quic_stop(h->quic, id, code);
    (void)nghttp3_conn_shutdown_stream_read(h->ng, id);
}

/* Both directions end here, incomplete. */
static void
reset(struct h3 *h, int64_t id, uint64_t code)
{
    quic_cut(h->quic, id, code);
    nghttp3_conn_shutdown_stream_write(h->ng, id);
    stop_reading(h, id, code);
}

/* ---- what comes: heads --------------------------------------------------- */

static int
on_begin_headers(nghttp3_conn *ng, int64_t id, void *arg, void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;

    if (l == NULL) {
        if ((l = lane_new(h, id)) == NULL)
            return no_memory(h);
        nghttp3_conn_set_stream_user_data(ng, id, l);
    }
    h->useful = true;
    section_end(h, l);
    return section_begin(h, l) ? 0 : no_memory(h);
}

static struct span
span_from(nghttp3_rcbuf *b)
{
    nghttp3_vec v = nghttp3_rcbuf_get_buf(b);

    return (struct span){(const char *)v.base, v.len};
}

static int
on_header(nghttp3_conn *ng, int64_t id, int32_t token, nghttp3_rcbuf *name,
          nghttp3_rcbuf *value, uint8_t flags, void *arg, void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;

    (void)ng, (void)id, (void)token;
    h->useful = true;
    section_add(l->section, span_from(name), span_from(value),
                flags & NGHTTP3_NV_FLAG_NEVER_INDEX);
    /* A few bytes can unpack to megabytes (RFC 9204 section 7.3). */
    if (l->section->bytes > BOMB * l->section->max_bytes)
        return give_up(h, NGHTTP3_H3_EXCESSIVE_LOAD,
                       "head unpacks to too much");
    return 0;
}

static void
log_refused(const struct h3 *h, int64_t id, const struct fail *f)
{
    if (log_on(LEVEL_DEBUG))
        log_say(LEVEL_DEBUG, h->user.id, "refused", "stream %lld: %s",
                (long long)id, f->op != NULL ? f->op : "no more are taken");
}

/* A request's head is complete: it becomes a stream, served once all that has
 * come with it is in it. */
static int
take_request(struct h3 *h, struct lane *l, bool ends)
{
    struct stream *s;
    struct head head;
    struct fail f = {0};
    enum why why = section_request(l->section, ends, &head, &f);

    section_end(h, l);
    s = why == WHY_PROTO || why == WHY_BUSY || h->said_goodbye ||
                hub_live(&h->hub) >= h->max_streams
            ? NULL
            : stream_new(&h->hub, SIDE_CLIENT, HTTP_3, h->idle_ms);
    if (s == NULL) {
        log_refused(h, l->id, &f);
        head_clear(&head);
        reset(h, l->id,
              why == WHY_PROTO ? NGHTTP3_H3_MESSAGE_ERROR
                               : NGHTTP3_H3_REQUEST_REJECTED);
        return why == WHY_PROTO
                   ? spend(h, CALM_RESETS, 1, "too many stream errors")
                   : 0;
    }
    l->s = s;
    s->session = l;
    s->id = l->id;
    s->refused = f;
    s->extended = head.upgrade.len > 0;
    s->connect = s->extended || head.method_id == METHOD_CONNECT;
    s->head_only = head.method_id == METHOD_HEAD;
    s->remote_end = s->in_end = ends;
    list_add(h, s);
    if (!stream_put_head(s, &head)) {
        head_clear(&head);
        fail_own(&s->refused, SIDE_WEIR, WHY_BUSY, "out of memory");
    }
    s->next_own = h->fresh;
    h->fresh = s;
    return 0;
}

/* 1xx, or the final one; what a 200 means depends on what was asked. */
static void
take_answer(struct h3 *h, struct lane *l, bool ends)
{
    struct stream *s = l->s;
    struct head head;
    struct fail f = {0};
    enum why why = section_answer(l->section, ends, &head, &f);

    section_end(h, l);
    if (s == NULL || why != WHY_NONE) {
        head_clear(&head);
        if (s != NULL)
            stream_break(s, f.why, f.op, 0, NULL);
        reset(h, l->id, NGHTTP3_H3_MESSAGE_ERROR);
        return;
    }
    if (s->connect && head.status / 100 == 2) {
        head.body = BODY_RAW;
        if (s->extended) {
            head.status = 101;
            head.upgrade = span_of("websocket");
        }
    }
    if (head.status >= 200 || head.status == 101)
        s->answered = true;
    if (!stream_put_head(s, &head)) {
        head_clear(&head);
        stream_break(s, WHY_SYS, "read head", ENOMEM, sys_text);
    }
    if (ends) {
        s->remote_end = true;
        stream_put_end(s, NULL);
    }
}

static int
on_end_headers(nghttp3_conn *ng, int64_t id, int fin, void *arg, void *lane)
{
    struct h3 *h = arg;

    (void)ng, (void)id;
    if (h->side == SIDE_CLIENT)
        return take_request(h, lane, fin);
    take_answer(h, lane, fin);
    return 0;
}

/* Trailers count once the stream has ended: on_end_stream(). */
static int
on_end_trailers(nghttp3_conn *ng, int64_t id, int fin, void *arg, void *lane)
{
    struct lane *l = lane;

    (void)ng, (void)id, (void)fin;
    if (l->tail == NULL && (l->tail = malloc(sizeof *l->tail)) != NULL)
        section_tail(l->section, l->tail);
    section_end(arg, l);
    return 0;
}

static int
on_end_stream(nghttp3_conn *ng, int64_t id, void *arg, void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;

    (void)ng, (void)id;
    if (l == NULL || l->s == NULL || l->s->remote_end)
        return 0;
    h->useful = true;
    l->s->remote_end = true;
    stream_put_end(l->s, l->tail);
    l->tail = NULL;
    return 0;
}

/* ---- what comes: content, resets, settings ------------------------------- */

static int
on_data(nghttp3_conn *ng, int64_t id, const uint8_t *at, size_t len, void *arg,
        void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;

    (void)ng;
    h->useful = true;
    if (l->s == NULL)
        quic_credit(h->quic, id, len);
    else if (!stream_put_data(l->s, at, len))
        return no_memory(h);
    return 0;
}

/* Data that waited for QPACK has been used. */
static int
on_deferred(nghttp3_conn *ng, int64_t id, size_t len, void *arg, void *lane)
{
    struct h3 *h = arg;

    (void)ng, (void)lane;
    quic_credit(h->quic, id, len);
    return 0;
}

/* The library found a message malformed.  It calls both of these. */
static int
on_malformed_read(nghttp3_conn *ng, int64_t id, uint64_t code, void *arg,
                  void *lane)
{
    struct h3 *h = arg;

    (void)ng, (void)lane;
    quic_stop(h->quic, id, code);
    return 0;
}

static int
on_malformed_write(nghttp3_conn *ng, int64_t id, uint64_t code, void *arg,
                   void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;

    (void)ng;
    quic_cut(h->quic, id, code);
    if (l != NULL && l->s != NULL)
        stream_break(l->s, WHY_PROTO, "malformed message", (int)code,
                     code_text);
    return spend(h, CALM_RESETS, 1, "too many stream errors");
}

/* What a stream's end means to its user. */
static void
tell_closed(struct h3 *h, struct stream *s, uint64_t code)
{
    bool whole = s->remote_end && (h->side == SIDE_CLIENT || s->answered);

    s->closed = true;
    if (whole && (code == NGHTTP3_H3_NO_ERROR || h->side == SIDE_ORIGIN))
        stream_deafen(s); /* all was said; our own content may be cut off */
    else if (h->side == SIDE_ORIGIN && code == NGHTTP3_H3_REQUEST_REJECTED)
        stream_break(s, WHY_UNPROCESSED, "stream refused", (int)code,
                     code_text);
    else
        stream_break(s, WHY_CUT, "stream reset", (int)code, code_text);
    if (s->seen_done)
        let_go(h, s);
}

static int
on_stream_close(nghttp3_conn *ng, int64_t id, uint64_t code, void *arg,
                void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;
    struct stream *s = l != NULL ? l->s : NULL;

    (void)ng, (void)id;
    if (l != NULL)
        lane_free(h, l);
    if (s == NULL) {
        stream_over(h);
        return 0;
    }
    s->session = NULL;
    tell_closed(h, s, code);
    return 0;
}

static void
leave(struct h3 *h)
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

/* GOAWAY (RFC 9114 section 5.2): requests from `id` on were not looked at. */
static int
on_goaway(nghttp3_conn *ng, int64_t id, void *arg)
{
    struct h3 *h = arg;

    (void)ng;
    if (h->side == SIDE_CLIENT) /* it speaks of pushes, which there are not */
        return 0;
    leave(h);
    for (struct stream *s = h->all; s != NULL; s = s->next)
        if (s->id >= id && !s->closed && !s->answered)
            stream_break(s, WHY_UNPROCESSED, "origin is going away", 0, NULL);
    return 0;
}

static int
on_settings(nghttp3_conn *ng, const nghttp3_settings *settings, void *arg)
{
    struct h3 *h = arg;

    (void)ng;
    h->peer_grams = settings->h3_datagram;
    pthread_mutex_lock(&h->hub.lock);
    h->settings_seen = true;
    h->extended = settings->enable_connect_protocol || h->takes_connect;
    pthread_cond_broadcast(&h->settled);
    pthread_mutex_unlock(&h->hub.lock);
    return 0;
}

/* ---- what goes: content, when the library asks for it -------------------- */

/* A head's fields as the library wants them; free() it unless it is `few`. */
static nghttp3_nv *
nv_of(const struct packed *p, nghttp3_nv few[NV_MAX])
{
    nghttp3_nv *nv = p->n <= NV_MAX ? few : calloc(p->n, sizeof *nv);

    for (size_t i = 0; nv != NULL && i < p->n; i++)
        nv[i] = (nghttp3_nv){(uint8_t *)p->at[i].name.at,
                             (uint8_t *)p->at[i].value.at, p->at[i].name.len,
                             p->at[i].value.len,
                             p->at[i].secret ? NGHTTP3_NV_FLAG_NEVER_INDEX
                                             : NGHTTP3_NV_FLAG_NONE};
    return nv;
}

/* All that the stream's user has written becomes a chunk.  Needs hub.lock.
 * False: there is nothing, or no memory. */
static bool
chunk_take(struct lane *l)
{
    struct stream *s = l->s;
    struct chunk *c;

    if (s->out.len == 0 || (c = malloc(sizeof *c)) == NULL)
        return false;
    c->bytes = s->out;
    c->next = NULL;
    s->out = (struct store){0};
    if (l->last_sent != NULL)
        l->last_sent->next = c;
    else
        l->sent = c;
    l->last_sent = c;
    l->unacked += c->bytes.len;
    stream_tell(s); /* there is room again */
    return true;
}

static nghttp3_ssize
read_content(nghttp3_conn *ng, int64_t id, nghttp3_vec *vec, size_t n_vec,
             uint32_t *flags, void *arg, void *lane)
{
    struct lane *l = lane;
    struct stream *s = l->s;
    struct packed *tail = NULL;
    nghttp3_ssize n = 0;
    bool end;

    (void)arg, (void)n_vec;
    pthread_mutex_lock(&s->hub->lock);
    if (l->unacked >= UNACKED_MAX) {
        l->choked = true;
        n = NGHTTP3_ERR_WOULDBLOCK;
    } else if (chunk_take(l)) {
        struct store *b = &l->last_sent->bytes;

        vec[0] = (nghttp3_vec){(uint8_t *)b->at + b->start, b->len};
        n = 1;
    } else if (s->out.len > 0 || !s->out_end) {
        s->deferred = true;
        n = NGHTTP3_ERR_WOULDBLOCK;
    }
    end = n >= 0 && s->out_end;
    if (end)
        tail = s->out_tail;
    pthread_mutex_unlock(&s->hub->lock);
    if (!end)
        return n;
    *flags |= NGHTTP3_DATA_FLAG_EOF;
    if (tail != NULL) {
        nghttp3_nv few[NV_MAX], *nv = nv_of(tail, few);

        if (nv != NULL &&
            nghttp3_conn_submit_trailers(ng, id, nv, tail->n) == 0)
            *flags |= NGHTTP3_DATA_FLAG_NO_END_STREAM;
        if (nv != few)
            free(nv);
    }
    return n;
}

/* So many bytes of content have arrived, and their chunks may go. */
static int
on_acked_content(nghttp3_conn *ng, int64_t id, uint64_t len, void *arg,
                 void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;

    (void)ng, (void)id;
    while (len > 0 && l != NULL && l->sent != NULL) {
        struct store *b = &l->sent->bytes;
        size_t n = b->len < len ? b->len : (size_t)len;

        b->start += n;
        b->len -= n;
        l->unacked -= n;
        len -= n;
        if (b->len == 0)
            chunk_free(l);
    }
    if (l != NULL && l->s != NULL)
        l->s->moved_at = h->now;
    if (l != NULL && l->choked && l->unacked < UNACKED_MAX / 2) {
        l->choked = false;
        h->resume = l;
    }
    return 0;
}

/* ---- what goes: heads, and all else that a user calls for ---------------- */

static void
send_head(struct h3 *h, struct stream *s, const struct packed *p, bool ends)
{
    static const nghttp3_data_reader content = {read_content};
    const nghttp3_data_reader *dr = ends ? NULL : &content;
    nghttp3_nv few[NV_MAX], *nv = nv_of(p, few);
    bool interim = p->status / 100 == 1 && p->status != 101;
    int rc = NGHTTP3_ERR_NOMEM;

    if (nv != NULL && p->status == 0) {
        rc =
            nghttp3_conn_submit_request(h->ng, s->id, nv, p->n, dr, s->session);
    } else if (nv != NULL && interim) {
        rc = nghttp3_conn_submit_info(h->ng, s->id, nv, p->n);
    } else if (nv != NULL) {
        s->answered = true;
        rc = nghttp3_conn_submit_response(h->ng, s->id, nv, p->n, dr);
    }
    if (rc < 0) {
        stream_break(s, WHY_SYS, "write head", rc, nghttp3_strerror);
        reset(h, s->id, NGHTTP3_H3_INTERNAL_ERROR);
    }
    s->moved_at = h->now;
    if (nv != few)
        free(nv);
}

struct wants { /* what a user wants, at this moment */
    struct packed *heads;
    bool content, end, tail, aborted, done, unwanted;
    enum why why;
};

static struct wants
wants_of(struct stream *s)
{
    struct wants w;

    pthread_mutex_lock(&s->hub->lock);
    w = (struct wants){s->out_heads,        s->out.len > 0, s->out_end,
                       s->out_tail != NULL, s->aborted,     s->done,
                       s->unwanted,         s->abort_why};
    s->out_heads = NULL;
    pthread_mutex_unlock(&s->hub->lock);
    return w;
}

/* RFC 9114 sections 4.1.1, 4.4 and 8.1. */
static uint64_t
abort_code(const struct h3 *h, const struct stream *s, enum why why)
{
    if (h->side == SIDE_ORIGIN)
        return NGHTTP3_H3_REQUEST_CANCELLED;
    if (s->connect && (s->answered || why == WHY_CUT))
        return NGHTTP3_H3_CONNECT_ERROR;
    if (why == WHY_BUSY && !s->answered)
        return NGHTTP3_H3_REQUEST_REJECTED;
    return why == WHY_OVER ? NGHTTP3_H3_REQUEST_CANCELLED
                           : NGHTTP3_H3_INTERNAL_ERROR;
}

/* Client role: a stream's first call is its request.  Until the peer allows
 * one more stream it is held.  False: that is all. */
static bool
open_stream(struct h3 *h, struct stream *s)
{
    struct lane *l = NULL;
    int64_t id = -1;
    bool done, some;

    pthread_mutex_lock(&s->hub->lock);
    done = s->done || s->aborted;
    some = s->out_heads != NULL;
    pthread_mutex_unlock(&s->hub->lock);
    if (s->held || (!done && !some))
        return false; /* it is looked at again when it is let go on */
    if (some && !done &&
        (!quic_is_ready(h->quic) || !quic_open(h->quic, true, &id))) {
        s->held = true;
        s->next_own = h->held;
        h->held = s;
        return false;
    }
    list_add(h, s);
    s->submitted = true;
    if (id >= 0 && (l = lane_new(h, id)) == NULL) {
        reset(h, id, NGHTTP3_H3_REQUEST_CANCELLED);
        stream_break(s, WHY_UNPROCESSED, "open a stream", ENOMEM, sys_text);
        s->closed = true;
        return true;
    }
    if (l == NULL) { /* it never was */
        s->closed = true;
        return true;
    }
    s->id = id;
    s->session = l;
    l->s = s;
    return true;
}

/* The user wants no more of the stream, or none of what the peer sends. */
static void
end_stream(struct h3 *h, struct stream *s, const struct wants *w)
{
    bool said = w->end && s->answered;

    if (h->side == SIDE_ORIGIN) {
        if (w->aborted || w->done)
            reset(h, s->id, NGHTTP3_H3_REQUEST_CANCELLED);
    } else if ((w->aborted || w->done) && !said) {
        reset(h, s->id, abort_code(h, s, w->aborted ? w->why : WHY_CUT));
    } else if (!s->remote_end) { /* RFC 9114 section 4.1 */
        stop_reading(h, s->id, NGHTTP3_H3_NO_ERROR);
    }
}

/* Do what a stream's user called for.  The stream may be gone afterwards. */
static void
serve_call(struct h3 *h, struct stream *s)
{
    struct wants w;
    size_t credit;

    if (h->side == SIDE_ORIGIN && !s->submitted && !open_stream(h, s))
        return;
    w = wants_of(s);
    s->seen_done = w.done;
    while (w.heads != NULL) {
        struct packed *p = w.heads;

        w.heads = p->next;
        if (!s->closed)
            send_head(h, s, p,
                      w.heads == NULL && w.end && !w.content && !w.tail);
        free(p);
    }
    if (s->deferred && (w.content || w.end) && !s->closed) {
        s->deferred = false;
        s->moved_at = h->now;
        (void)nghttp3_conn_resume_stream(h->ng, s->id);
    }
    if ((credit = w.unwanted && !w.done ? 0 : stream_unread(s)) > 0)
        quic_credit(h->quic, s->closed ? -1 : s->id, credit);
    if (!s->closed && !s->seen_over && (w.aborted || w.done || w.unwanted))
        end_stream(h, s, &w);
    s->seen_over = w.done || w.aborted;
    if (s->closed && w.done)
        let_go(h, s);
}

static void
serve_calls(struct h3 *h)
{
    struct stream *s;

    for (int n = 0; n < CALLS && (s = hub_call(&h->hub)) != NULL; n++)
        serve_call(h, s);
}

/* Client role: more streams may be opened now. */
static void
let_held_go(struct h3 *h)
{
    struct stream *s = NULL, *next;

    while (h->held != NULL) { /* it is newest first */
        next = h->held->next_own;
        h->held->next_own = s;
        s = h->held;
        h->held = next;
    }
    for (; s != NULL; s = next) {
        next = s->next_own;
        s->held = false;
        serve_call(h, s);
    }
}

/* The requests that came with the last datagrams, in their order. */
static void
begin_fresh(struct h3 *h)
{
    struct stream *s = NULL, *next;

    while (h->fresh != NULL) { /* it is newest first */
        next = h->fresh->next_own;
        h->fresh->next_own = s;
        s = h->fresh;
        h->fresh = next;
    }
    for (; s != NULL; s = next) {
        int64_t id = s->id;

        next = s->next_own;
        if (!h->user.begin(h->user.arg, s, &h->fibers))
            reset(h, id, NGHTTP3_H3_REQUEST_REJECTED);
    }
}

/* ---- what quic.c calls ----------------------------------------------------
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

    pthread_mutex_lock(&h->hub.lock);
    h->ready = true;
    pthread_cond_broadcast(&h->settled);
    pthread_mutex_unlock(&h->hub.lock);
}

static bool
is_request(int64_t id)
{
    return (id & 3) == 0; /* RFC 9000 section 2.1: a client's, both ways */
}

/* Frames that ask for nothing (RFC 9114 section 10.5). */
static bool
is_calm(struct h3 *h, int64_t id, const uint8_t *at, size_t len)
{
    if (is_request(id))
        return true;
    if (h->control_id < 0 && len > 0 && at[0] == 0) /* section 6.2.1 */
        h->control_id = id;
    return id != h->control_id || spend(h, CALM_PRIORITIES, 1 + (int)(len / 32),
                                        "too much on the control stream") == 0;
}

/* Is this setting in the frame that the control stream begins with (RFC 9114
 * section 6.2.1)?  False as long as the frame is not whole. */
static bool
settings_have(const char *at, size_t len, uint64_t wanted)
{
    uint64_t head[3], pair[2]; /* stream type, frame type, length */
    size_t n;

    for (int i = 0; i < 3; i++, at += n, len -= n)
        if ((n = varint_parse(at, len, &head[i])) == 0)
            return false;
    if (head[1] != 4 || head[2] > len)
        return false;
    len = (size_t)head[2];
    while (len > 0) {
        for (int i = 0; i < 2; i++, at += n, len -= n)
            if ((n = varint_parse(at, len, &pair[i])) == 0)
                return false;
        if (pair[0] == wanted)
            return pair[1] == 1;
    }
    return false;
}

/* The library keeps to itself that an origin takes extended CONNECT: only a
 * server has to be told, it holds.  So look at the bytes. */
static void
peek_settings(struct h3 *h, int64_t id, const void *at, size_t len)
{
    size_t room = SETTINGS_MAX - h->n_settings;

    if (h->side != SIDE_ORIGIN || id != h->control_id || room == 0)
        return;
    memcpy(h->settings + h->n_settings, at, len < room ? len : room);
    h->n_settings += len < room ? len : room;
    h->takes_connect =
        settings_have(h->settings, h->n_settings, SETTING_CONNECT);
}

/* A message that is not as long as it said: the library would end the whole
 * connection, RFC 9114 section 4.1.2 the stream alone. */
static bool
end_malformed(struct h3 *h, int64_t id, size_t len)
{
    struct lane *l = lane_find(h, id);

    if (l != NULL && l->s != NULL)
        stream_break(l->s, WHY_PROTO, "content is not as long as announced",
                     NGHTTP3_H3_MESSAGE_ERROR, code_text);
    reset(h, id, NGHTTP3_H3_MESSAGE_ERROR);
    quic_credit(h->quic, id, len);
    return spend(h, CALM_RESETS, 1, "too many stream errors") == 0;
}

/* Of n bytes nothing came.  They may be a part of a frame's head or of a large
 * section, of which honest peers send more than one can count; but empty DATA
 * frames, or a lot of bytes in a row, are a waste. */
static bool
is_useful(struct h3 *h, const uint8_t *at, size_t n)
{
    if (h->useful)
        h->n_useless = 0;
    else
        h->n_useless += n;
    if (h->useful || ((n < 2 || at[0] != 0 || at[1] != 0) &&
                      h->n_useless < BOMB * (size_t)h->limits.head_bytes))
        return true;
    return spend(h, CALM_EMPTY, 1, "too many empty frames") == 0;
}

static bool
quic_data(void *arg, int64_t id, const void *at, size_t len, bool fin)
{
    struct h3 *h = arg;
    nghttp3_ssize n;

    if (!is_calm(h, id, at, len))
        return false;
    peek_settings(h, id, at, len);
    h->useful = false;
    n = nghttp3_conn_read_stream(h->ng, id, at, len, fin);
    if (n == NGHTTP3_ERR_MALFORMED_HTTP_MESSAGING && is_request(id))
        return end_malformed(h, id, len);
    if (n < 0)
        return judge_library(h, (int)n);
    if (n > 0)
        quic_credit(h->quic, id, (size_t)n);
    return n == 0 || fin || !is_request(id) || is_useful(h, at, (size_t)n);
}

static void
quic_acked(void *arg, int64_t id, size_t len)
{
    struct h3 *h = arg;

    (void)nghttp3_conn_add_ack_offset(h->ng, id, len);
    if (h->resume != NULL)
        (void)nghttp3_conn_resume_stream(h->ng, h->resume->id);
    h->resume = NULL;
}

/* The peer has cut off what it sends on a stream: whoever reads has to know. */
static bool
quic_cut_off(void *arg, int64_t id, uint64_t code)
{
    struct h3 *h = arg;
    struct lane *l = is_request(id) ? lane_find(h, id) : NULL;

    (void)nghttp3_conn_shutdown_stream_read(h->ng, id);
    if (l != NULL && l->s != NULL && !l->s->remote_end)
        stream_break(l->s,
                     h->side == SIDE_ORIGIN &&
                             code == NGHTTP3_H3_REQUEST_REJECTED
                         ? WHY_UNPROCESSED
                         : WHY_CUT,
                     "stream reset", (int)code, code_text);
    if (h->side == SIDE_ORIGIN || (l != NULL && l->stopped))
        return true; /* RFC 9000 section 3.5: what we have asked for */
    return spend(h, CALM_RESETS, 1, "too many stream resets") == 0;
}

static void
quic_closed(void *arg, int64_t id, uint64_t code)
{
    struct h3 *h = arg;
    int rc = nghttp3_conn_close_stream(
        h->ng, id, code == UINT64_MAX ? NGHTTP3_H3_NO_ERROR : code);

    if (rc == NGHTTP3_ERR_STREAM_NOT_FOUND && is_request(id))
        stream_over(h); /* it ended before it began */
    else if (rc != 0 && rc != NGHTTP3_ERR_STREAM_NOT_FOUND)
        judge_library(h, rc);
}

static void
quic_room(void *arg, int64_t id)
{
    struct h3 *h = arg;

    (void)nghttp3_conn_unblock_stream(h->ng, id);
}

/* RFC 9297 section 2.1: a quarter of the stream's number goes first. */
static void
quic_gram(void *arg, const void *at, size_t len)
{
    struct h3 *h = arg;
    struct stream *s = h->gram_to;
    uint64_t id = 0;

    size_t n = varint_parse(at, len, &id);

    if (n == 0 || id >> 60 != 0) {
        quic_end(h->quic, 0x33, "malformed datagram"); /* H3_DATAGRAM_ERROR */
        return;
    }
    id *= 4;
    if (s == NULL || (uint64_t)s->id != id) {
        if (s != NULL)
            stream_end_grams(s);
        for (s = h->all; s != NULL && (uint64_t)s->id != id; s = s->next)
            ;
    }
    h->gram_to = s;
    if (s != NULL && !s->extended) { /* RFC 9297 section 2: it means nothing */
        stream_break(s, WHY_PROTO, "datagram for a request", 0x33, code_text);
        reset(h, s->id, 0x33);
    } else if (s != NULL) { /* else it came before its stream, or too late */
        stream_put_gram(s, (const char *)at + n, len - n);
    }
}

static int
quic_next(void *arg, int64_t *id, bool *fin, struct iovec *iov, int max)
{
    struct h3 *h = arg;
    nghttp3_vec vec[IOV_HERE];
    int ends = 0;
    nghttp3_ssize n = nghttp3_conn_writev_stream(
        h->ng, id, &ends, vec, (size_t)(max < IOV_HERE ? max : IOV_HERE));

    if (n < 0) {
        judge_library(h, (int)n);
        return -1;
    }
    for (nghttp3_ssize i = 0; i < n; i++)
        iov[i] = (struct iovec){vec[i].base, vec[i].len};
    *fin = ends;
    return (int)n;
}

static void
quic_wrote(void *arg, int64_t id, size_t len, bool fin)
{
    struct h3 *h = arg;
    struct lane *l;

    (void)nghttp3_conn_add_write_offset(h->ng, id, len);
    if (fin && (l = lane_find(h, id)) != NULL && l->s != NULL) {
        l->s->local_end = true;
        l->s->moved_at = h->now;
    }
}

static void
quic_blocked(void *arg, int64_t id)
{
    struct h3 *h = arg;

    nghttp3_conn_block_stream(h->ng, id);
}

/* The peer has sent STOP_SENDING, or the stream is over. */
static void
quic_unwanted(void *arg, int64_t id)
{
    struct h3 *h = arg;
    struct lane *l = lane_find(h, id);

    nghttp3_conn_shutdown_stream_write(h->ng, id);
    if (l != NULL && l->s != NULL)
        stream_deafen(l->s);
}

/* Datagrams of the streams, behind each other in h->grams. */
static bool
quic_next_gram(void *arg, struct span *out)
{
    struct h3 *h = arg;
    struct gram_head head;
    struct store *g = &h->grams;
    uint64_t id;
    size_t n;

    if (g->len == 0) {
        struct store was = *g;

        was.start = 0;
        pthread_mutex_lock(&h->hub.lock);
        *g = h->hub.grams;
        h->hub.grams = was;
        pthread_mutex_unlock(&h->hub.lock);
    }
    if (g->len == 0)
        return false;
    memcpy(&head, g->at + g->start, sizeof head);
    id = (uint64_t)head.stream / 4;
    n = id < 1 << 6 ? 1 : id < 1 << 14 ? 2 : 4;
    for (size_t i = n; i > 0; i--, id >>= 8)
        h->gram[i - 1] = (char)id;
    h->gram[0] |= (char)(n == 1 ? 0 : n == 2 ? 0x40 : 0x80);
    if (n + head.len > sizeof h->gram)
        head.len = sizeof h->gram - n; /* stream_say() saw to it */
    memcpy(h->gram + n, g->at + g->start + sizeof head, head.len);
    *out = (struct span){h->gram, n + head.len};
    return true;
}

static void
quic_wrote_gram(void *arg, bool sent)
{
    struct h3 *h = arg;
    struct gram_head head;

    memcpy(&head, h->grams.at + h->grams.start, sizeof head);
    h->grams.start += sizeof head + head.len;
    h->grams.len -= sizeof head + head.len;
    if (sent)
        return;
    pthread_mutex_lock(&h->hub.lock);
    h->hub.n_grams_lost++;
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

/* ---- datagrams ----------------------------------------------------------- */

/* A lot of datagrams, one by one. */
static enum why
feed(struct h3 *h, const struct quic_path *path, struct span lot,
     size_t segment, struct fail *f)
{
    enum why why = WHY_NONE;

    while (lot.len > 0 && why == WHY_NONE) {
        size_t n = lot.len < segment ? lot.len : segment;

        why = quic_feed(h->quic, path, lot.at, n, f);
        lot.at += n;
        lot.len -= n;
    }
    return why;
}

/* What the listener's thread has put there. */
static enum why
receive_wire(struct h3 *h, struct fail *f)
{
    enum why why = WHY_NONE;
    struct quic_path path;
    struct span lot;
    size_t segment;

    if (!wire_read(h->wire, &h->in))
        return WHY_MORE;
    while (why == WHY_NONE && wire_next(&h->in, &path, &lot, &segment))
        why = feed(h, &path, lot, segment, f);
    h->in.start = h->in.len = 0;
    return why;
}

/* What the socket has. */
static enum why
receive_socket(struct h3 *h, struct fail *f)
{
    enum why why = WHY_MORE;
    struct quic_path path;
    size_t segment;

    if (h->buf == NULL && (h->buf = malloc(READ_MAX)) == NULL)
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    for (int i = 0; i < READS; i++) {
        ssize_t n = quic_receive(h->fd, h->buf, READ_MAX, &path, &segment);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        /* ICMP: nobody is there, or not any more. */
        if (n < 0 && (!quic_is_ready(h->quic) || ++h->n_refusals >= REFUSALS)) {
            quic_hush(h->quic);
            return fail_sys(f, SIDE_ORIGIN, "QUIC connection", errno);
        }
        if (n <= 0)
            continue;
        h->n_refusals = 0;
        why = feed(h, NULL, (struct span){h->buf, (size_t)n}, segment, f);
        if (why != WHY_NONE)
            break;
    }
    return why;
}

/* WHY_NONE: something has come; WHY_MORE: nothing. */
static enum why
receive(struct h3 *h, struct fail *f)
{
    enum why why = h->wire != NULL ? receive_wire(h, f) : receive_socket(h, f);

    if (h->gram_to != NULL)
        stream_end_grams(h->gram_to);
    h->gram_to = NULL;
    begin_fresh(h);
    if (why == WHY_NONE && h->held != NULL)
        let_held_go(h);
    return why;
}

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
        h->hub.gram_max = max < GRAM_MAX - 4 ? max : GRAM_MAX - 4;
        pthread_mutex_unlock(&h->hub.lock);
    }
    if (h->side == SIDE_ORIGIN && quic_is_ready(h->quic)) {
        left = quic_streams_left(h->quic);
        pthread_mutex_lock(&h->hub.lock);
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
    for (struct lane *l = h->lanes; l != NULL; l = l->next) {
        struct stream *s = l->s;
        bool waits;

        if (l->section != NULL && h->side == SIDE_CLIENT &&
            h->now - l->begun_at >= h->head_ms && s == NULL) {
            section_end(h, l);
            reset(h, l->id, NGHTTP3_H3_REQUEST_INCOMPLETE);
        }
        if (s == NULL || s->closed || h->now - s->moved_at < h->stall_ms)
            continue;
        pthread_mutex_lock(&h->hub.lock);
        waits = !s->local_end && (s->out.len > 0 || l->unacked > 0 ||
                                  (s->out_end && s->answered));
        pthread_mutex_unlock(&h->hub.lock);
        if (waits) {
            reset(h, l->id, NGHTTP3_H3_REQUEST_CANCELLED);
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
    leave(h);
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
}

/* Twice a second. */
static void
tick(struct h3 *h)
{
    end_stalled(h);
    give_back(h);
    if (atomic_load(&h->user.weir->draining))
        say_goodbye(h);
    if (h->wire != NULL && wire_stopped(h->wire))
        atomic_store(&h->stop, true);
}

/* Since when has no stream been open?  0: one is. */
static int64_t
idle_since(struct h3 *h)
{
    if (h->all != NULL || h->held != NULL || h->lanes != NULL ||
        hub_live(&h->hub) > 0)
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
        list_add(h, s);
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
                list_add(h, s);
                break_stream(h, s, WHY_UNPROCESSED, f);
            }
            serve_call(h, s);
        }
    while (fibers_leave(h) || !hub_wait_left(&h->hub));
    while (h->all != NULL)
        let_go(h, h->all);
}

/* May nobody own it for a while?  WHY_MORE: yes, it is asleep; WHY_EOF: it may
 * end. */
static enum why
may_rest(struct h3 *h, int linger_ms)
{
    int64_t idle = idle_since(h);
    bool over = is_leaving(h);

    if (idle == 0)
        return WHY_NONE;
    if (over && (h->side == SIDE_ORIGIN || h->said_goodbye))
        return WHY_EOF;
    if (h->side == SIDE_ORIGIN)
        return h->now - idle >= linger_ms ? WHY_EOF : WHY_NONE;
    if (over || h->now - idle < linger_ms ||
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
    got = receive(h, f);
    if (got != WHY_NONE && got != WHY_MORE)
        return got;
    fibers_run(&h->fibers);
    serve_calls(h);
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

static const nghttp3_callbacks callbacks = {
    .acked_stream_data = on_acked_content,
    .stream_close = on_stream_close,
    .recv_data = on_data,
    .deferred_consume = on_deferred,
    .begin_headers = on_begin_headers,
    .recv_header = on_header,
    .end_headers = on_end_headers,
    .begin_trailers = on_begin_headers,
    .recv_trailer = on_header,
    .end_trailers = on_end_trailers,
    .stop_sending = on_malformed_read,
    .end_stream = on_end_stream,
    .reset_stream = on_malformed_write,
    .shutdown = on_goaway,
    .recv_settings = on_settings,
};

static bool
library_init(struct h3 *h, const struct config *conf)
{
    nghttp3_settings s;

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
    h->alive_ms = conf->quic_idle_s * 1000 / 2;
    h->max_streams = (size_t)conf->streams;
    h->trim_at = TRIM_STREAMS;
    h->peer_max = 100; /* until its parameters say */
    h->control_id = -1;
    h->limits.head_bytes = conf->head_bytes;
    h->limits.fields = conf->fields;
}

static struct quic_user
quic_user_of(struct h3 *h)
{
    return (struct quic_user){.arg = h,
                              .hello = quic_hello,
                              .verify = quic_verify,
                              .ready = quic_ready,
                              .confirmed = quic_confirmed,
                              .data = quic_data,
                              .acked = quic_acked,
                              .cut_off = quic_cut_off,
                              .closed = quic_closed,
                              .room = quic_room,
                              .gram = quic_gram,
                              .next = quic_next,
                              .wrote = quic_wrote,
                              .blocked = quic_blocked,
                              .unwanted = quic_unwanted,
                              .next_gram = quic_next_gram,
                              .wrote_gram = quic_wrote_gram};
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
    qu = quic_user_of(h);
    qc.tunnelled = wire_tunnelled(wire);
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
    assert(h->all == NULL && h->held == NULL);
    if (h->wire != NULL)
        wire_own(h->wire, NULL);
    if (h->quic != NULL && h->side == SIDE_CLIENT)
        leaf = quic_leaf(quic_session(h->quic));
    while (h->lanes != NULL)
        lane_free(h, h->lanes);
    quic_free(h->quic);
    if (leaf != NULL)
        leaf_give(mitm_leaves(h->user.weir->mitm), leaf);
    nghttp3_conn_del(h->ng);
    if (h->spare != NULL)
        section_clear(h->spare);
    free(h->spare);
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
    if (why != WHY_MORE) {
        quic_goodbye(h->quic);
        break_all(h, f);
    }
    store_clear(&h->in);
    store_clear(&h->grams);
    free(h->buf);
    h->buf = NULL;
    if (h->spare != NULL)
        section_clear(h->spare);
    free(h->spare);
    h->spare = NULL;
    quic_rest(h->quic);
    fibers_rest(&h->fibers);
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
    int64_t us = quic_until_us(h->quic);

    return us == INT64_MAX ? INT64_MAX : us / 1000 + 1;
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
