/*
 * h3in.c - what an HTTP/3 session gets: heads, content, datagrams, resets.
 *
 * A part of h3.c.  Datagrams go to the QUIC connection, which calls back with
 * pieces of streams; those go to the library for HTTP/3, which calls back with
 * fields and content; and those to the streams' users.
 *
 * A peer can make us work without asking for anything.  What nobody honest
 * does much of is counted (calm.c).
 *
 * Follows  RFC 9114 sections 4, 5 and 7, RFC 9220, RFC 9297; section 10.5 for
 *          the floods.
 * Owns     nothing.
 * Threads  the owner.
 * Blocks   never.
 */
#include <errno.h>
#include <nghttp3/nghttp3.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    READS = 16,       /* lots of datagrams read in a row from a socket */
    READ_MAX = 65536, /* bytes of a lot */
    BOMB = 3,         /* times head_bytes that a head may unpack to */
    REFUSALS = 3,     /* datagrams that found nobody: the origin is gone */
};

/* ---- heads --------------------------------------------------------------- */

static int
on_begin_headers(nghttp3_conn *ng, int64_t id, void *arg, void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;

    if (l == NULL) {
        if ((l = lane_new(&h->lanes, id, h->now)) == NULL)
            return h3_no_memory(h);
        nghttp3_conn_set_stream_user_data(ng, id, l);
    }
    h->useful = true;
    lane_end(&h->lanes, l);
    return lane_begin(&h->lanes, l) ? 0 : h3_no_memory(h);
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
        return h3_give_up(h, NGHTTP3_H3_EXCESSIVE_LOAD,
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

    lane_end(&h->lanes, l);
    s = why == WHY_PROTO || why == WHY_BUSY || h->said_goodbye ||
                hub_live(&h->hub) >= h->max_streams
            ? NULL
            : stream_new(&h->hub, SIDE_CLIENT, HTTP_3, h->idle_ms);
    if (s == NULL) {
        log_refused(h, l->id, &f);
        head_clear(&head);
        h3_reset(h, l->id,
                 why == WHY_PROTO ? NGHTTP3_H3_MESSAGE_ERROR
                                  : NGHTTP3_H3_REQUEST_REJECTED);
        return why == WHY_PROTO
                   ? h3_spend(h, CALM_RESETS, 1, "too many stream errors")
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
    h3_add(h, s);
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

    lane_end(&h->lanes, l);
    if (s == NULL || why != WHY_NONE) {
        head_clear(&head);
        if (s != NULL)
            stream_break(s, f.why, f.op, 0, NULL);
        h3_reset(h, l->id, NGHTTP3_H3_MESSAGE_ERROR);
        return;
    }
    stream_put_answer(s, &head, ends);
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
    struct h3 *h = arg;
    struct lane *l = lane;

    (void)ng, (void)id, (void)fin;
    if (l->tail == NULL && (l->tail = malloc(sizeof *l->tail)) != NULL)
        section_tail(l->section, l->tail);
    lane_end(&h->lanes, l);
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

/* ---- content, resets, settings ------------------------------------------- */

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
        return h3_no_memory(h);
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
                     h3_code_text);
    return h3_spend(h, CALM_RESETS, 1, "too many stream errors");
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
                     h3_code_text);
    else
        stream_break(s, WHY_CUT, "stream reset", (int)code, h3_code_text);
    if (s->seen_done)
        h3_let_go(h, s);
}

static int
on_stream_close(nghttp3_conn *ng, int64_t id, uint64_t code, void *arg,
                void *lane)
{
    struct h3 *h = arg;
    struct lane *l = lane;
    struct stream *s = l != NULL ? l->s : NULL;

    (void)ng, (void)id;
    if (h->resume == l)
        h->resume = NULL;
    if (l != NULL)
        lane_free(&h->lanes, l);
    if (s == NULL) {
        h3_stream_over(h);
        return 0;
    }
    s->session = NULL;
    tell_closed(h, s, code);
    return 0;
}

/* GOAWAY (RFC 9114 section 5.2): requests from `id` on were not looked at. */
static int
on_goaway(nghttp3_conn *ng, int64_t id, void *arg)
{
    struct h3 *h = arg;

    (void)ng;
    if (h->side == SIDE_CLIENT) /* it speaks of pushes, which there are not */
        return 0;
    h3_leave(h);
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

/* ---- pieces of streams --------------------------------------------------- */

static bool
is_request(int64_t id)
{
    return (id & 3) == 0; /* RFC 9000 section 2.1: a client's, both ways */
}

/* A message that is not as long as it said: the library would end the whole
 * connection, RFC 9114 section 4.1.2 the stream alone. */
static bool
end_malformed(struct h3 *h, int64_t id, size_t len)
{
    struct lane *l = lane_find(&h->lanes, id);

    if (l != NULL && l->s != NULL)
        stream_break(l->s, WHY_PROTO, "content is not as long as announced",
                     NGHTTP3_H3_MESSAGE_ERROR, h3_code_text);
    h3_reset(h, id, NGHTTP3_H3_MESSAGE_ERROR);
    quic_credit(h->quic, id, len);
    return h3_spend(h, CALM_RESETS, 1, "too many stream errors") == 0;
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
                      h->n_useless < BOMB * h->lanes.max_bytes))
        return true;
    return h3_spend(h, CALM_EMPTY, 1, "too many empty frames") == 0;
}

static bool
quic_data(void *arg, int64_t id, const void *at, size_t len, bool fin)
{
    struct h3 *h = arg;
    nghttp3_ssize n;

    if (!is_request(id))
        return h3_read_own(h, id, at, len, fin);
    h->useful = false;
    n = nghttp3_conn_read_stream(h->ng, id, at, len, fin);
    if (n == NGHTTP3_ERR_MALFORMED_HTTP_MESSAGING)
        return end_malformed(h, id, len);
    if (n < 0)
        return h3_judge(h, (int)n);
    if (n > 0)
        quic_credit(h->quic, id, (size_t)n);
    return n == 0 || fin || is_useful(h, at, (size_t)n);
}

/* The peer has cut off what it sends on a stream: whoever reads has to know. */
static bool
quic_cut_off(void *arg, int64_t id, uint64_t code)
{
    struct h3 *h = arg;
    struct lane *l = is_request(id) ? lane_find(&h->lanes, id) : NULL;

    (void)nghttp3_conn_shutdown_stream_read(h->ng, id);
    if (l != NULL && l->s != NULL && !l->s->remote_end)
        stream_break(l->s,
                     h->side == SIDE_ORIGIN &&
                             code == NGHTTP3_H3_REQUEST_REJECTED
                         ? WHY_UNPROCESSED
                         : WHY_CUT,
                     "stream reset", (int)code, h3_code_text);
    if (h->side == SIDE_ORIGIN || (l != NULL && l->stopped))
        return true; /* RFC 9000 section 3.5: what we have asked for */
    return h3_spend(h, CALM_RESETS, 1, "too many stream resets") == 0;
}

static void
quic_closed(void *arg, int64_t id, uint64_t code)
{
    struct h3 *h = arg;
    int rc = nghttp3_conn_close_stream(
        h->ng, id, code == UINT64_MAX ? NGHTTP3_H3_NO_ERROR : code);

    if (rc == NGHTTP3_ERR_STREAM_NOT_FOUND && is_request(id))
        h3_stream_over(h); /* it ended before it began */
    else if (rc != 0 && rc != NGHTTP3_ERR_STREAM_NOT_FOUND)
        h3_judge(h, rc);
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
        stream_break(s, WHY_PROTO, "datagram for a request", 0x33,
                     h3_code_text);
        h3_reset(h, s->id, 0x33);
    } else if (s != NULL) { /* else it came before its stream, or too late */
        stream_put_gram(s, (const char *)at + n, len - n);
    }
}

/* ---- datagrams ----------------------------------------------------------- */

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
            h3_reset(h, id, NGHTTP3_H3_REQUEST_REJECTED);
    }
}

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
enum why
h3_receive(struct h3 *h, struct fail *f)
{
    enum why why = h->wire != NULL ? receive_wire(h, f) : receive_socket(h, f);

    if (h->gram_to != NULL)
        stream_end_grams(h->gram_to);
    h->gram_to = NULL;
    begin_fresh(h);
    if (why == WHY_NONE && h->held != NULL)
        h3_let_held_go(h);
    return why;
}

/* The callbacks of this direction. */
void
h3_in(struct nghttp3_callbacks *c, struct quic_user *u)
{
    c->stream_close = on_stream_close;
    c->recv_data = on_data;
    c->deferred_consume = on_deferred;
    c->begin_headers = c->begin_trailers = on_begin_headers;
    c->recv_header = c->recv_trailer = on_header;
    c->end_headers = on_end_headers;
    c->end_trailers = on_end_trailers;
    c->stop_sending = on_malformed_read;
    c->reset_stream = on_malformed_write;
    c->end_stream = on_end_stream;
    c->shutdown = on_goaway;
    c->recv_settings = on_settings;
    u->data = quic_data;
    u->cut_off = quic_cut_off;
    u->closed = quic_closed;
    u->gram = quic_gram;
}
