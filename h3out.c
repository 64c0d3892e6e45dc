/*
 * h3out.c - what an HTTP/3 session sends: heads, content, resets, datagrams.
 *
 * A part of h3.c.  What the streams' users call for is done here; content is
 * fetched when there is room for it in a packet.  The library keeps pointers
 * to it until the peer has acknowledged it: lane.c has it so long.
 *
 * Follows  RFC 9114 sections 4 and 8.1, RFC 9297.
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
    CALLS = 256,           /* served in a row */
    NV_MAX = 64,           /* fields passed on without an allocation */
    IOV_HERE = 16,         /* pieces of a stream for one packet */
    UNACKED_MAX = 4 << 20, /* content of a stream that waits for its ACK */
};

/* ---- content, when the library asks for it ------------------------------- */

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

static nghttp3_ssize
read_content(nghttp3_conn *ng, int64_t id, nghttp3_vec *vec, size_t n_vec,
             uint32_t *flags, void *arg, void *lane)
{
    struct lane *l = lane;
    struct stream *s = l->s;
    struct packed *tail = NULL;
    struct span some;
    nghttp3_ssize n = 0;
    bool end;

    (void)arg, (void)n_vec;
    pthread_mutex_lock(&s->hub->lock);
    if (l->unacked >= UNACKED_MAX) {
        l->choked = true;
        n = NGHTTP3_ERR_WOULDBLOCK;
    } else if (lane_take(l, &some)) {
        vec[0] = (nghttp3_vec){(uint8_t *)some.at, some.len};
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
    if (l == NULL)
        return 0;
    lane_acked(l, (size_t)len);
    if (l->s != NULL)
        l->s->moved_at = h->now;
    if (l->choked && l->unacked < UNACKED_MAX / 2) {
        l->choked = false;
        h->resume = l;
    }
    return 0;
}

/* ---- heads, and all else that a user calls for --------------------------- */

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
        h3_reset(h, s->id, NGHTTP3_H3_INTERNAL_ERROR);
    }
    s->moved_at = h->now;
    if (nv != few)
        free(nv);
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
open_stream(struct h3 *h, struct stream *s, const struct call *c)
{
    bool over = c->done || c->aborted;
    struct lane *l = NULL;
    int64_t id = -1;

    if (s->held || (!over && s->sending == NULL))
        return false; /* it is looked at again when it is let go on */
    if (!over && (!quic_is_ready(h->quic) || !quic_open(h->quic, true, &id))) {
        s->held = true;
        s->moved_at = h->now;
        s->next_own = h->held;
        h->held = s;
        return false;
    }
    h3_add(h, s);
    s->submitted = true;
    if (id >= 0 && (l = lane_new(&h->lanes, id, h->now)) == NULL) {
        h3_reset(h, id, NGHTTP3_H3_REQUEST_CANCELLED);
        stream_break(s, WHY_UNPROCESSED, "open a stream", ENOMEM, sys_text);
    }
    if (l == NULL) {
        s->closed = true; /* it never was */
        return true;
    }
    s->id = id;
    s->session = l;
    l->s = s;
    return true;
}

static void
send_heads(struct h3 *h, struct stream *s, const struct call *c)
{
    struct packed *p;

    while ((p = s->sending) != NULL) {
        s->sending = p->next;
        if (!s->closed)
            send_head(h, s, p,
                      p->next == NULL && c->end && !c->content && !c->tail);
        free(p);
    }
}

/* The user wants no more of the stream, or none of what the peer sends. */
static void
end_stream(struct h3 *h, struct stream *s, const struct call *c)
{
    bool left = c->aborted || c->done;

    if (s->closed || s->seen_over || !(left || c->unwanted))
        return;
    if (h->side == SIDE_ORIGIN) {
        if (left && !(c->end && s->remote_end && !c->aborted))
            h3_reset(h, s->id, NGHTTP3_H3_REQUEST_CANCELLED);
    } else if (left && !(c->end && s->answered)) {
        h3_reset(h, s->id, abort_code(h, s, c->aborted ? c->why : WHY_CUT));
    } else if (!s->remote_end) { /* RFC 9114 section 4.1 */
        h3_stop_reading(h, s->id, NGHTTP3_H3_NO_ERROR);
    }
}

static void
serve(struct h3 *h, struct stream *s, const struct call *c)
{
    if (h->side == SIDE_ORIGIN && !s->submitted && !open_stream(h, s, c))
        return;
    s->seen_done = c->done;
    send_heads(h, s, c);
    if (s->deferred && (c->content || c->end) && !s->closed) {
        s->deferred = false;
        s->moved_at = h->now;
        (void)nghttp3_conn_resume_stream(h->ng, s->id);
    }
    if (c->credit > 0)
        quic_credit(h->quic, s->closed ? -1 : s->id, c->credit);
    end_stream(h, s, c);
    s->seen_over = c->done || c->aborted;
    if (c->serve != NULL)
        c->serve(c->serve_arg, &h->fibers);
    if (s->closed && c->done)
        h3_let_go(h, s);
}

/* Do what a stream's user has called for.  The stream may be gone afterwards.
 */
void
h3_serve(struct h3 *h, struct stream *s)
{
    struct call c;

    stream_call(s, &c);
    serve(h, s, &c);
}

/* Do what the users call for, for a while. */
void
h3_serve_calls(struct h3 *h)
{
    struct stream *s;
    struct call c;

    for (int n = 0; n < CALLS && (s = hub_take(&h->hub, &c)) != NULL; n++)
        serve(h, s, &c);
}

/* Client role: more streams may be opened now. */
void
h3_let_held_go(struct h3 *h)
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
        h3_serve(h, s);
    }
}

/* ---- packets ------------------------------------------------------------- */

static void
quic_acked(void *arg, int64_t id, size_t len)
{
    struct h3 *h = arg;

    (void)nghttp3_conn_add_ack_offset(h->ng, id, len);
    if (h->resume != NULL)
        (void)nghttp3_conn_resume_stream(h->ng, h->resume->id);
    h->resume = NULL;
}

static void
quic_room(void *arg, int64_t id)
{
    struct h3 *h = arg;

    (void)nghttp3_conn_unblock_stream(h->ng, id);
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
        h3_judge(h, (int)n);
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
    if (fin && (l = lane_find(&h->lanes, id)) != NULL && l->s != NULL) {
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
    struct lane *l = lane_find(&h->lanes, id);

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

/* The callbacks of this direction. */
void
h3_out(struct nghttp3_callbacks *c, struct quic_user *u)
{
    c->acked_stream_data = on_acked_content;
    u->acked = quic_acked;
    u->room = quic_room;
    u->next = quic_next;
    u->wrote = quic_wrote;
    u->blocked = quic_blocked;
    u->unwanted = quic_unwanted;
    u->next_gram = quic_next_gram;
    u->wrote_gram = quic_wrote_gram;
}
