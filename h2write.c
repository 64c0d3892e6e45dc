/*
 * h2write.c - an HTTP/2 session: what goes to the peer.
 *
 * Users of streams call for something (stream.c): heads, content, ends, resets,
 * credit.  Here the owner does it.  The library asks for content when there is
 * window for it; then it goes from its stream into what is to be sent, in one
 * copy.
 *
 * Follows  RFC 9113, above all sections 5.2, 7, 8.1 and 8.5.
 * Owns     nothing: what is to be sent is the session's.
 * Threads  the session's owner.
 * Blocks   never.
 */
#include <nghttp2/nghttp2.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    CALLS = 256,      /* served in a row */
    NV_MAX = 64,      /* fields passed on without an allocation */
    SILENT_MS = 5000, /* an origin that said nothing for so long is asked */
};

/* ---- answers that come early --------------------------------------------- */

/* Our answer is complete, the request is not, and nobody reads the rest. */
bool
h2_is_early(const struct h2 *h, const struct stream *s)
{
    return h->side == SIDE_CLIENT && s->local_end && !s->remote_end &&
           s->seen_over && !s->closed;
}

/* RFC 9113 section 8.1: a client whose request was answered early is told, by
 * a reset without an error, to leave out the rest.  One that has nearly
 * finished may do so: it has the whole answer before it is asked by a PING, and
 * what it sent before it answers that was all it wanted to. */
void
h2_ask_early(struct h2 *h)
{
    uint64_t number = h->n_asked + 1;
    bool any = false;

    if (!h->early)
        return;
    h->early = false;
    for (struct stream *s = h->all; s != NULL; s = s->next)
        if (h2_is_early(h, s) && s->asked == 0) {
            s->asked = number;
            any = true;
        }
    if (!any)
        return;
    h->n_asked = number;
    nghttp2_submit_ping(h->ng, NGHTTP2_FLAG_NONE, (const uint8_t *)&number);
}

/* The client has answered such a PING, and those before. */
void
h2_take_ack(struct h2 *h, const uint8_t data[8])
{
    uint64_t number;

    memcpy(&number, data, sizeof number);
    if (number <= h->n_acked || number > h->n_asked)
        return; /* nobody asked */
    h->n_acked = number;
    for (struct stream *s = h->all; s != NULL; s = s->next)
        if (h2_is_early(h, s) && s->asked != 0 && s->asked <= number)
            h2_reset(h, s, NGHTTP2_NO_ERROR);
}

/* ---- content, when the library asks for it ------------------------------- */

/* A head's fields as the library wants them; free() it unless it is `few`. */
static nghttp2_nv *
nv_of(const struct packed *p, nghttp2_nv few[NV_MAX])
{
    nghttp2_nv *nv = p->n <= NV_MAX ? few : calloc(p->n, sizeof *nv);

    for (size_t i = 0; nv != NULL && i < p->n; i++)
        nv[i] = (nghttp2_nv){
            (uint8_t *)p->at[i].name.at, (uint8_t *)p->at[i].value.at,
            p->at[i].name.len, p->at[i].value.len,
            p->at[i].secret ? NGHTTP2_NV_FLAG_NO_INDEX : NGHTTP2_NV_FLAG_NONE};
    return nv;
}

static ssize_t
read_content(nghttp2_session *ng, int32_t id, uint8_t *buf, size_t max,
             uint32_t *flags, nghttp2_data_source *source, void *arg)
{
    struct stream *s = source->ptr;
    struct packed *tail = NULL;
    ssize_t n;

    (void)buf, (void)arg;
    pthread_mutex_lock(&s->hub->lock);
    n = (ssize_t)(s->out.len < max ? s->out.len : max);
    if (n == 0 && !s->out_end) {
        s->deferred = true;
        n = NGHTTP2_ERR_DEFERRED;
    } else if ((size_t)n == s->out.len && s->out_end) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        tail = s->out_tail;
    }
    pthread_mutex_unlock(&s->hub->lock);
    if (n > 0)
        *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (tail != NULL) {
        nghttp2_nv few[NV_MAX], *nv = nv_of(tail, few);

        if (nv != NULL && nghttp2_submit_trailer(ng, id, nv, tail->n) == 0)
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
        if (nv != few)
            free(nv);
    }
    return n;
}

/* One DATA frame, from the stream into what is to be sent. */
static int
send_content(nghttp2_session *ng, nghttp2_frame *frame, const uint8_t *hd,
             size_t len, nghttp2_data_source *source, void *arg)
{
    struct h2 *h = arg;
    struct stream *s = source->ptr;
    bool good;

    (void)ng, (void)frame;
    pthread_mutex_lock(&s->hub->lock);
    /* Broken meanwhile: its bytes are gone, and so is its user. */
    good = s->out.len >= len && store_add(&h->out, hd, 9) &&
           store_add(&h->out, s->out.at + s->out.start, len);
    if (good) {
        s->out.start += len;
        s->out.len -= len;
        if (s->out.len == 0) {
            s->out.start = 0;
            stream_tell(s); /* there is room again */
        }
    }
    pthread_mutex_unlock(&s->hub->lock);
    s->moved_at = h->now;
    calm_earn(&h->calm, len);
    return good ? 0 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

/* ---- heads, and all else that a user calls for --------------------------- */

static void
send_head(struct h2 *h, struct stream *s, const struct packed *p, bool ends)
{
    nghttp2_data_provider content = {{.ptr = s}, read_content};
    nghttp2_nv few[NV_MAX], *nv = nv_of(p, few);
    bool interim = p->status / 100 == 1 && p->status != 101;
    int32_t rc = NGHTTP2_ERR_NOMEM;

    if (nv != NULL && p->status == 0) {
        rc = nghttp2_submit_request(h->ng, NULL, nv, p->n,
                                    ends ? NULL : &content, s);
        if (rc >= 0)
            s->id = rc;
        else
            stream_break(s, WHY_UNPROCESSED, "open a stream", rc,
                         nghttp2_strerror);
    } else if (nv != NULL && interim) {
        rc = nghttp2_submit_headers(h->ng, NGHTTP2_FLAG_NONE, (int32_t)s->id,
                                    NULL, nv, p->n, NULL);
    } else if (nv != NULL) {
        s->answered = true;
        rc = nghttp2_submit_response(h->ng, (int32_t)s->id, nv, p->n,
                                     ends ? NULL : &content);
    }
    if (rc < 0)
        h2_reset(h, s, NGHTTP2_INTERNAL_ERROR);
    s->moved_at = h->now;
    if (nv != few)
        free(nv);
}

/* RFC 9113 sections 7 and 8.5. */
static uint32_t
abort_code(const struct h2 *h, const struct stream *s, enum why why)
{
    if (h->side == SIDE_ORIGIN)
        return NGHTTP2_CANCEL;
    if (s->connect && (s->answered || why == WHY_CUT))
        return NGHTTP2_CONNECT_ERROR;
    return why == WHY_OVER ? NGHTTP2_CANCEL : NGHTTP2_INTERNAL_ERROR;
}

/* An origin that was silent for long may be gone without a word: ask first.
 * True: the stream waits for the answer. */
static bool
hold(struct h2 *h, struct stream *s)
{
    if (h->ping_at == 0 && h->now - h->heard_at < SILENT_MS)
        return false;
    if (h->ping_at == 0) {
        nghttp2_submit_ping(h->ng, NGHTTP2_FLAG_NONE, NULL);
        h->ping_at = h->now;
    }
    s->held = true;
    s->next_own = h->held;
    h->held = s;
    return true;
}

/* Client role: a stream's first call is its request.  False: that is all. */
static bool
open_stream(struct h2 *h, struct stream *s, const struct call *c)
{
    bool over = c->done || c->aborted;

    if (s->held)
        return false; /* it is looked at again when it is let go on */
    if (!over && (s->sending == NULL || hold(h, s)))
        return false;
    h2_add(h, s);
    s->submitted = true;
    if (over && s->sending == NULL)
        s->closed = true; /* it never was */
    return true;
}

static void
send_heads(struct h2 *h, struct stream *s, const struct call *c)
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

/* The user has read so much: the peer may send it again. */
static void
give_credit(struct h2 *h, struct stream *s, size_t credit)
{
    if (credit == 0)
        return;
    if (s->closed)
        nghttp2_session_consume_connection(h->ng, credit);
    else
        nghttp2_session_consume(h->ng, (int32_t)s->id, credit);
}

/* Does what its user did, or left, want a reset? */
static void
end_stream(struct h2 *h, struct stream *s, const struct call *c)
{
    bool left = c->aborted || c->done;
    bool over = s->connect && c->end && s->remote_end && !c->aborted;

    if (h->side == SIDE_ORIGIN && left && !c->unwanted && !over)
        h2_reset(h, s, NGHTTP2_CANCEL); /* over: it closes by itself */
    else if (h->side == SIDE_CLIENT && left && !(c->end && s->answered))
        h2_reset(h, s, abort_code(h, s, c->aborted ? c->why : WHY_CUT));
}

/* Do what a stream's user called for.  The stream may be gone afterwards. */
void
h2_serve_call(struct h2 *h, struct stream *s, const struct call *c)
{
    if (h->side == SIDE_ORIGIN && !s->submitted && !open_stream(h, s, c))
        return;
    s->seen_done = c->done;
    s->seen_over = c->done || c->aborted || c->unwanted;
    h->early |= s->seen_over && s->local_end && !s->remote_end;
    if (s->id < 0 && (c->aborted || c->done))
        s->closed = true; /* nothing of it was sent */
    send_heads(h, s, c);
    if (s->deferred && (c->content || c->end) && !s->closed) {
        s->deferred = false;
        s->moved_at = h->now;
        nghttp2_session_resume_data(h->ng, (int32_t)s->id);
    }
    give_credit(h, s, c->credit);
    if (!s->closed)
        end_stream(h, s, c);
    if (c->serve != NULL)
        c->serve(c->serve_arg, &h->fibers);
    if (s->closed && c->done)
        h2_let_go(h, s);
}

void
h2_serve_calls(struct h2 *h)
{
    struct stream *s;
    struct call c;

    for (int n = 0; n < CALLS && (s = hub_take(&h->hub, &c)) != NULL; n++)
        h2_serve_call(h, s, &c);
}

/* What was held until the origin gave a sign of life. */
void
h2_let_held_go(struct h2 *h)
{
    struct stream *s = h->held, *next;

    h->held = NULL;
    h->ping_at = 0;
    for (; s != NULL; s = next) {
        struct call c;

        next = s->next_own;
        s->held = false;
        stream_call(s, &c);
        h2_serve_call(h, s, &c);
    }
}

/* ---- what was sent ------------------------------------------------------- */

/* What we send ourselves: our own end, and the errors that a peer provokes to
 * have streams come and go (CVE-2025-8671). */
static int
on_frame_send(nghttp2_session *ng, const nghttp2_frame *frame, void *arg)
{
    struct h2 *h = arg;
    struct stream *s;

    (void)ng;
    if ((frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS) &&
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) &&
        (s = h2_stream_at(h, frame->hd.stream_id)) != NULL) {
        s->local_end = true;
        h->early |= !s->remote_end;
        s->moved_at = h->now;
    }
    if (frame->hd.type != NGHTTP2_RST_STREAM)
        return 0;
    switch (frame->rst_stream.error_code) {
    case NGHTTP2_NO_ERROR:
    case NGHTTP2_CANCEL:
    case NGHTTP2_INTERNAL_ERROR:
    case NGHTTP2_CONNECT_ERROR:
        return 0;
    case NGHTTP2_REFUSED_STREAM:
        if (h->n_refused > 0) { /* for want of a worker */
            h->n_refused--;
            return 0;
        }
        break;
    default:
        break;
    }
    (void)h2_spend(h, CALM_RESETS, "too many stream errors");
    return 0;
}

/* Have the library call us. */
void
h2write_callbacks(nghttp2_session_callbacks *c)
{
    nghttp2_session_callbacks_set_on_frame_send_callback(c, on_frame_send);
    nghttp2_session_callbacks_set_send_data_callback(c, send_content);
}
