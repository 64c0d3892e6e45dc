/*
 * h2read.c - an HTTP/2 session: what comes from the peer.
 *
 * The library takes the bytes apart and calls back here, on the owner's thread.
 * A head becomes a stream or an answer on one, content and ends go into their
 * stream, and what costs us and asks for nothing is counted (calm.c).
 *
 * Follows  RFC 9113, above all sections 5.1, 8.1 and 10.5; RFC 8441; RFC 7541
 *          section 7.3.
 * Owns     the header block that is coming.
 * Threads  the session's owner.
 * Blocks   never.
 */
#include <nghttp2/nghttp2.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum { BOMB = 3 /* times head_bytes that a head may unpack to */ };

/* ---- frames that cost us ------------------------------------------------- */

/* RFC 9113 section 5.1.1: identifiers that were passed over are used up.  The
 * library cannot tell them from streams that were, and lets them pass. */
static bool
id_in_order(struct h2 *h, int32_t id)
{
    if (id > h->last_id) {
        if (id > h->last_id + 2)
            h->gaps[h->n_gaps++ % H2_GAPS] = (struct h2_gap){h->last_id, id};
        h->last_id = id;
        return true;
    }
    for (size_t i = 0; i < H2_GAPS; i++)
        if (id > h->gaps[i].after && id < h->gaps[i].before)
            return false;
    return true;
}

/* RFC 9113 section 10.5: frames that cost us and ask for nothing. */
static int
on_begin_frame(nghttp2_session *ng, const nghttp2_frame_hd *hd, void *arg)
{
    struct h2 *h = arg;
    bool ack = hd->flags & NGHTTP2_FLAG_ACK;

    (void)ng;
    switch (hd->type) {
    case NGHTTP2_HEADERS:
        h->n_continuations = 0;
        if (h->side == SIDE_CLIENT && !id_in_order(h, hd->stream_id))
            return h2_give_up(h, NGHTTP2_PROTOCOL_ERROR,
                              "stream identifier out of order");
        return hd->length > 0
                   ? 0
                   : h2_spend(h, CALM_EMPTY, "too many empty frames");
    case NGHTTP2_CONTINUATION:
        if (++h->n_continuations > H2_CONTINUATIONS)
            return h2_give_up(h, NGHTTP2_ENHANCE_YOUR_CALM,
                              "too many CONTINUATION frames");
        return hd->length > 0
                   ? 0
                   : h2_spend(h, CALM_EMPTY, "too many empty frames");
    case NGHTTP2_RST_STREAM: /* an origin's ends a stream that we opened */
        if (h->side == SIDE_ORIGIN && h2_stream_at(h, hd->stream_id) != NULL)
            return 0;
        return h2_spend(h, CALM_RESETS, "too many RST_STREAM frames");
    case NGHTTP2_SETTINGS:
        return ack ? 0 : h2_spend(h, CALM_SETTINGS, "too many SETTINGS frames");
    case NGHTTP2_PING:
        return ack ? 0 : h2_spend(h, CALM_PINGS, "too many PING frames");
    case NGHTTP2_WINDOW_UPDATE:
        return h2_spend(h, CALM_UPDATES, "too many WINDOW_UPDATE frames");
    case NGHTTP2_DATA: /* its padding is not known yet: on_frame_recv() */
    case NGHTTP2_GOAWAY:
        return 0;
    default: /* PRIORITY; what is unknown does not come here */
        return h2_spend(h, CALM_PRIORITIES, "too many PRIORITY frames");
    }
}

/* ---- heads --------------------------------------------------------------- */

static int
on_begin_headers(nghttp2_session *ng, const nghttp2_frame *frame, void *arg)
{
    struct h2 *h = arg;

    (void)ng;
    (void)frame;
    section_reset(&h->section);
    h->block_from = h->now;
    return 0;
}

static int
on_header(nghttp2_session *ng, const nghttp2_frame *frame, const uint8_t *name,
          size_t n_name, const uint8_t *value, size_t n_value, uint8_t flags,
          void *arg)
{
    struct h2 *h = arg;

    (void)ng;
    (void)frame;
    section_add(&h->section, (struct span){(const char *)name, n_name},
                (struct span){(const char *)value, n_value},
                flags & NGHTTP2_NV_FLAG_NO_INDEX);
    /* A few bytes can unpack to megabytes (RFC 7541 section 7.3). */
    if (h->section.bytes > BOMB * h->section.max_bytes)
        return h2_give_up(h, NGHTTP2_ENHANCE_YOUR_CALM,
                          "head unpacks to too much");
    return 0;
}

/* The library would pass a message on without its broken fields. */
static int
on_invalid_header(nghttp2_session *ng, const nghttp2_frame *frame,
                  const uint8_t *name, size_t n_name, const uint8_t *value,
                  size_t n_value, uint8_t flags, void *arg)
{
    (void)ng, (void)frame, (void)name, (void)n_name, (void)value;
    (void)n_value, (void)flags, (void)arg;
    return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

static void
log_refused(const struct h2 *h, int32_t id, const struct fail *f)
{
    if (log_on(LEVEL_DEBUG))
        log_say(LEVEL_DEBUG, h->user.id, "refused", "stream %d: %s", (int)id,
                f->op);
}

/* A request's head is complete: it becomes a stream, served once all that has
 * come in the same read is in it. */
static void
take_request(struct h2 *h, int32_t id, bool ends)
{
    struct stream *s;
    struct head head;
    struct fail f = {0};
    enum why why = section_request(&h->section, ends, &head, &f);

    s = why == WHY_PROTO || why == WHY_BUSY || h->said_goodbye ||
                hub_live(&h->hub) >= h->max_streams
            ? NULL
            : stream_new(&h->hub, SIDE_CLIENT, HTTP_2, h->idle_ms);
    if (s == NULL) {
        log_refused(h, id, &f);
        h2_refuse(h, id,
                  why == WHY_PROTO ? NGHTTP2_PROTOCOL_ERROR
                                   : NGHTTP2_REFUSED_STREAM);
        head_clear(&head);
        return;
    }
    s->id = id;
    s->refused = f;
    s->extended = head.upgrade.len > 0;
    s->connect = s->extended || head.method_id == METHOD_CONNECT;
    s->head_only = head.method_id == METHOD_HEAD;
    s->remote_end = s->in_end = s->saw_end = ends;
    h2_add(h, s);
    nghttp2_session_set_stream_user_data(h->ng, id, s);
    if (!stream_put_head(s, &head)) {
        head_clear(&head);
        fail_own(&s->refused, SIDE_WEIR, WHY_BUSY, "out of memory");
    }
    s->next_own = h->fresh;
    h->fresh = s;
}

/* 1xx, or the final one; what a 200 means depends on what was asked. */
static void
take_answer(struct h2 *h, struct stream *s, bool ends)
{
    struct head head;
    struct fail f = {0};

    if (section_answer(&h->section, ends, &head, &f) != WHY_NONE) {
        stream_break(s, f.why, f.op, 0, NULL);
        h2_refuse(h, (int32_t)s->id, NGHTTP2_PROTOCOL_ERROR);
        head_clear(&head);
        return;
    }
    stream_put_answer(s, &head, ends);
}

static void
take_tail(struct h2 *h, struct stream *s)
{
    struct head *tail = malloc(sizeof *tail);

    if (tail != NULL)
        section_tail(&h->section, tail);
    s->remote_end = true;
    stream_put_end(s, tail);
}

static void
take_headers(struct h2 *h, const nghttp2_frame *frame)
{
    int32_t id = frame->hd.stream_id;
    bool ends = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    struct stream *s;

    h->block_from = 0;
    if (frame->headers.cat == NGHTTP2_HCAT_REQUEST)
        take_request(h, id, ends);
    else if ((s = h2_stream_at(h, id)) == NULL)
        return;
    else if (h->section.status.at != NULL)
        take_answer(h, s, ends);
    else
        take_tail(h, s);
    section_reset(&h->section);
}

/* ---- other frames, content, and the end of a stream ---------------------- */

/* An origin's settings; whoever waits for the first ones wakes. */
static void
take_settings(struct h2 *h)
{
    uint32_t max = nghttp2_session_get_remote_settings(
        h->ng, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);

    pthread_mutex_lock(&h->hub.lock);
    h->settings_seen = true;
    h->peer_max = max;
    h->extended = nghttp2_session_get_remote_settings(
                      h->ng, NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL) == 1;
    pthread_cond_broadcast(&h->settled);
    pthread_mutex_unlock(&h->hub.lock);
}

/* RFC 7838 section 4; the library has seen to where the origin may be. */
static void
take_altsvc(struct h2 *h, const nghttp2_ext_altsvc *a)
{
    h->user.altsvc(
        h->user.arg, (struct span){(const char *)a->origin, a->origin_len},
        (struct span){(const char *)a->field_value, a->field_value_len});
}

static int
on_frame_recv(nghttp2_session *ng, const nghttp2_frame *frame, void *arg)
{
    struct h2 *h = arg;
    struct stream *s;

    (void)ng;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        take_headers(h, frame);
        break;
    case NGHTTP2_DATA:
        if (frame->hd.length <= frame->data.padlen &&
            !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
            return h2_spend(h, CALM_EMPTY, "too many empty frames");
        if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) &&
            (s = h2_stream_at(h, frame->hd.stream_id)) != NULL) {
            s->remote_end = true;
            stream_put_end(s, NULL);
        }
        break;
    case NGHTTP2_SETTINGS:
        if (h->side == SIDE_ORIGIN && !(frame->hd.flags & NGHTTP2_FLAG_ACK))
            take_settings(h);
        break;
    case NGHTTP2_GOAWAY:
        h2_leave(h);
        break;
    case NGHTTP2_ALTSVC:
        take_altsvc(h, frame->ext.payload);
        break;
    case NGHTTP2_PING:
        if (h->side == SIDE_CLIENT && (frame->hd.flags & NGHTTP2_FLAG_ACK))
            h2_take_ack(h, frame->ping.opaque_data);
        break;
    default:
        break;
    }
    return 0;
}

static int
on_data(nghttp2_session *ng, uint8_t flags, int32_t id, const uint8_t *at,
        size_t len, void *arg)
{
    struct h2 *h = arg;
    struct stream *s = h2_stream_at(h, id);

    (void)flags;
    if (s == NULL)
        nghttp2_session_consume(ng, id, len);
    else if (!stream_put_data(s, at, len))
        return h2_give_up(h, NGHTTP2_INTERNAL_ERROR, "out of memory");
    return 0;
}

/* What a stream's end means to its user. */
static int
on_stream_close(nghttp2_session *ng, int32_t id, uint32_t code, void *arg)
{
    struct h2 *h = arg;
    struct stream *s = h2_stream_at(h, id);
    bool whole;

    (void)ng;
    if (s == NULL)
        return 0;
    s->closed = true;
    whole = s->remote_end && (h->side == SIDE_CLIENT || s->answered);
    if (whole && (code == NGHTTP2_NO_ERROR || h->side == SIDE_ORIGIN))
        stream_deafen(s); /* all was said; our own content may be cut off */
    else if (h->side == SIDE_ORIGIN && code == NGHTTP2_REFUSED_STREAM)
        stream_break(s, WHY_UNPROCESSED, "stream refused", (int)code,
                     h2_code_text);
    else
        stream_break(s, WHY_CUT, "stream reset", (int)code, h2_code_text);
    if (s->seen_done)
        h2_let_go(h, s);
    return 0;
}

/* ---- public -------------------------------------------------------------- */

/* Have the library call us. */
void
h2read_callbacks(nghttp2_session_callbacks *c)
{
    nghttp2_session_callbacks_set_on_begin_frame_callback(c, on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(c,
                                                            on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(c, on_header);
    nghttp2_session_callbacks_set_on_invalid_header_callback(c,
                                                             on_invalid_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(c, on_frame_recv);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(c, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(c, on_stream_close);
}
