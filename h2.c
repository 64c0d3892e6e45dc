/*
 * h2.c - one HTTP/2 session, in either role, and the thread that owns it.
 *
 * The owner alone touches the protocol library, the socket and the list of
 * streams.  He never waits for a stream: he polls his socket and one eventfd,
 * reads what is there, looks who called, and sends what is to be sent, as
 * much as possible in one write.  What a stream carries goes through stream.c.
 *
 * Frames that make us work and ask for nothing are counted (calm.c); who sends
 * too many of them is told to calm down, and the session ends.
 *
 * Follows  RFC 9113, RFC 8441, RFC 7541.
 * Owns     the library's session, what is not sent yet, the owner's reference
 *          to each stream.  The end is the user's.
 * Threads  the owner in h2_run(); h2_open(), h2_extended(), h2_idle_ms() and
 *          h2_stop() from any.
 * Blocks   in poll(2), for a tick at most.
 */
#include <assert.h>
#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    TICK_MS = 500,      /* how often clocks and flags are looked at */
    CALLS = 256,        /* served in a row */
    READS = 4,          /* in a row before others get their turn */
    SEND_BATCH = 65536, /* gathered for one write */
    GAPS = 8,           /* in the clients' identifiers, remembered */
    CONTINUATIONS = 16, /* of one header block */
    NV_MAX = 64,        /* fields passed on without an allocation */
    SILENT_MS = 5000,   /* an origin that said nothing for so long is asked */
    PING_MS = 3000,     /* and has so long to answer */
    TRIM_STREAMS = 50,  /* served: there may be memory to give back */
    UNHEARD_MS = 2000,  /* for a client that does not even answer a PING */
    SPARE = 128,        /* streams kept for the next ones */
    BOMB = 3,           /* times head_bytes that a head may unpack to */
};

struct gap { /* identifiers that the client passed over */
    int32_t after, before;
};

struct h2 {
    struct hub hub;
    struct fibers fibers; /* server role: serve those streams that can be */
    /* set by h2_new(), then only read */
    struct end *end;
    enum side side; /* whom we speak with */
    struct h2_user user;
    int idle_ms, head_ms, stall_ms;
    size_t max_streams;
    /* the owner's alone */
    nghttp2_session *ng;
    struct section section; /* the header block that is coming */
    struct stream *all, *fresh, *held;
    struct store out; /* frames not yet sent */
    struct calm calm;
    int64_t now, tick_at, blocked_at, block_from, heard_at, ping_at, idle_from;
    uint64_t n_asked;  /* server role: PINGs behind answers that came early */
    bool early;        /* there may be such an answer that none was sent for */
    uint32_t code;     /* the session shall end with it */
    const char *cause; /* why; NULL: it goes on */
    bool said_goodbye;
    int n_continuations, n_refused;
    int32_t last_id;
    struct gap gaps[GAPS]; /* the last ones */
    size_t n_gaps;
    uint64_t n_served, trim_at;
    /* needs hub.lock */
    pthread_cond_t settled;
    bool settings_seen, extended, leaving, stop;
    size_t peer_max;
    bool used;
};

/* ---- reasons to end ------------------------------------------------------ */

static const char *
code_text(int code)
{
    return nghttp2_http2_strerror((uint32_t)code);
}

/* The session shall end; the first reason counts. */
static int
give_up(struct h2 *h, uint32_t code, const char *cause)
{
    if (h->cause == NULL) {
        h->cause = cause;
        h->code = code;
    }
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int
spend(struct h2 *h, enum calm_kind kind, const char *cause)
{
    if (calm_spend(&h->calm, kind, h->now))
        return 0;
    return give_up(h, NGHTTP2_ENHANCE_YOUR_CALM, cause);
}

/* ---- the owner's list of streams ----------------------------------------- */

static void
list_add(struct h2 *h, struct stream *s)
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
static void
let_go(struct h2 *h, struct stream *s)
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

static void
reset(struct h2 *h, struct stream *s, uint32_t code)
{
    if (!s->closed && s->id >= 0)
        nghttp2_submit_rst_stream(h->ng, NGHTTP2_FLAG_NONE, (int32_t)s->id,
                                  code);
}

static struct stream *
stream_at(struct h2 *h, int32_t id)
{
    return nghttp2_session_get_stream_user_data(h->ng, id);
}

/* ---- what comes: the library calls back ---------------------------------- */

/* RFC 9113 section 5.1.1: identifiers that were passed over are used up.  The
 * library cannot tell them from streams that were, and lets them pass. */
static bool
id_in_order(struct h2 *h, int32_t id)
{
    if (id > h->last_id) {
        if (id > h->last_id + 2)
            h->gaps[h->n_gaps++ % GAPS] = (struct gap){h->last_id, id};
        h->last_id = id;
        return true;
    }
    for (size_t i = 0; i < GAPS; i++)
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
            return give_up(h, NGHTTP2_PROTOCOL_ERROR,
                           "stream identifier out of order");
        return hd->length > 0 ? 0
                              : spend(h, CALM_EMPTY, "too many empty frames");
    case NGHTTP2_CONTINUATION:
        if (++h->n_continuations > CONTINUATIONS)
            return give_up(h, NGHTTP2_ENHANCE_YOUR_CALM,
                           "too many CONTINUATION frames");
        return hd->length > 0 ? 0
                              : spend(h, CALM_EMPTY, "too many empty frames");
    case NGHTTP2_RST_STREAM:
        return spend(h, CALM_RESETS, "too many RST_STREAM frames");
    case NGHTTP2_SETTINGS:
        return ack ? 0 : spend(h, CALM_SETTINGS, "too many SETTINGS frames");
    case NGHTTP2_PING:
        return ack ? 0 : spend(h, CALM_PINGS, "too many PING frames");
    case NGHTTP2_WINDOW_UPDATE:
        return spend(h, CALM_UPDATES, "too many WINDOW_UPDATE frames");
    case NGHTTP2_DATA: /* its padding is not known yet: on_frame_recv() */
    case NGHTTP2_GOAWAY:
        return 0;
    default: /* PRIORITY; what is unknown does not come here */
        return spend(h, CALM_PRIORITIES, "too many PRIORITY frames");
    }
}

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
        return give_up(h, NGHTTP2_ENHANCE_YOUR_CALM,
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

/* A request that nobody shall see. */
static void
refuse(struct h2 *h, int32_t id, uint32_t code)
{
    if (code == NGHTTP2_REFUSED_STREAM)
        h->n_refused++;
    nghttp2_submit_rst_stream(h->ng, NGHTTP2_FLAG_NONE, id, code);
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
        refuse(h, id,
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
    list_add(h, s);
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
        refuse(h, (int32_t)s->id, NGHTTP2_PROTOCOL_ERROR);
        head_clear(&head);
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
    else if ((s = stream_at(h, id)) == NULL)
        return;
    else if (h->section.status.at != NULL)
        take_answer(h, s, ends);
    else
        take_tail(h, s);
    section_reset(&h->section);
}

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

static void
leave(struct h2 *h)
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

/* Our answer is complete, the request is not, and nobody reads the rest. */
static bool
is_early(const struct h2 *h, const struct stream *s)
{
    return h->side == SIDE_CLIENT && s->local_end && !s->remote_end &&
           s->seen_over && !s->closed;
}

/* RFC 9113 section 8.1: a client whose request was answered early is told, by
 * a reset without an error, to leave out the rest.  One that has nearly
 * finished may do so: it has the whole answer before it is asked by a PING, and
 * what it sent before it answers that was all it wanted to. */
static void
ask_early(struct h2 *h)
{
    uint64_t number = h->n_asked + 1;
    bool any = false;

    if (!h->early)
        return;
    h->early = false;
    for (struct stream *s = h->all; s != NULL; s = s->next)
        if (is_early(h, s) && s->asked == 0) {
            s->asked = number;
            any = true;
        }
    if (!any)
        return;
    h->n_asked = number;
    nghttp2_submit_ping(h->ng, NGHTTP2_FLAG_NONE, (const uint8_t *)&number);
}

/* The client has answered such a PING, and those before. */
static void
take_ack(struct h2 *h, const uint8_t data[8])
{
    uint64_t number;

    memcpy(&number, data, sizeof number);
    for (struct stream *s = h->all; s != NULL; s = s->next)
        if (is_early(h, s) && s->asked != 0 && s->asked <= number)
            reset(h, s, NGHTTP2_NO_ERROR);
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
            return spend(h, CALM_EMPTY, "too many empty frames");
        if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) &&
            (s = stream_at(h, frame->hd.stream_id)) != NULL) {
            s->remote_end = true;
            stream_put_end(s, NULL);
        }
        break;
    case NGHTTP2_SETTINGS:
        if (h->side == SIDE_ORIGIN && !(frame->hd.flags & NGHTTP2_FLAG_ACK))
            take_settings(h);
        break;
    case NGHTTP2_GOAWAY:
        leave(h);
        break;
    case NGHTTP2_PING:
        if (h->side == SIDE_CLIENT && (frame->hd.flags & NGHTTP2_FLAG_ACK))
            take_ack(h, frame->ping.opaque_data);
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
    struct stream *s = stream_at(h, id);

    (void)flags;
    if (s == NULL)
        nghttp2_session_consume(ng, id, len);
    else if (!stream_put_data(s, at, len))
        return give_up(h, NGHTTP2_INTERNAL_ERROR, "out of memory");
    return 0;
}

/* What a stream's end means to its user. */
static int
on_stream_close(nghttp2_session *ng, int32_t id, uint32_t code, void *arg)
{
    struct h2 *h = arg;
    struct stream *s = stream_at(h, id);
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
                     code_text);
    else
        stream_break(s, WHY_CUT, "stream reset", (int)code, code_text);
    if (s->seen_done)
        let_go(h, s);
    return 0;
}

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
        (s = stream_at(h, frame->hd.stream_id)) != NULL) {
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
    (void)spend(h, CALM_RESETS, "too many stream errors");
    return 0;
}

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

/* ---- what goes: content, when the library asks for it -------------------- */

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

/* ---- what goes: heads, and all else that a user calls for ---------------- */

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
        reset(h, s, NGHTTP2_INTERNAL_ERROR);
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
    list_add(h, s);
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
        reset(h, s, NGHTTP2_CANCEL); /* over: it closes by itself */
    else if (h->side == SIDE_CLIENT && left && !(c->end && s->answered))
        reset(h, s, abort_code(h, s, c->aborted ? c->why : WHY_CUT));
}

/* Do what a stream's user called for.  The stream may be gone afterwards. */
static void
serve_call(struct h2 *h, struct stream *s, const struct call *c)
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
        let_go(h, s);
}

static void
serve_calls(struct h2 *h)
{
    struct stream *s;
    struct call c;

    for (int n = 0; n < CALLS && (s = hub_take(&h->hub, &c)) != NULL; n++)
        serve_call(h, s, &c);
}

/* What was held until the origin gave a sign of life. */
static void
let_held_go(struct h2 *h)
{
    struct stream *s = h->held, *next;

    h->held = NULL;
    h->ping_at = 0;
    for (; s != NULL; s = next) {
        struct call c;

        next = s->next_own;
        s->held = false;
        stream_call(s, &c);
        serve_call(h, s, &c);
    }
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
            refuse(h, (int32_t)s->id, NGHTTP2_REFUSED_STREAM);
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
        give_up(h, NGHTTP2_ENHANCE_YOUR_CALM, "flood of frames");
        break;
    case NGHTTP2_ERR_TOO_MANY_CONTINUATIONS:
        give_up(h, NGHTTP2_ENHANCE_YOUR_CALM, "too many CONTINUATION frames");
        break;
    case NGHTTP2_ERR_BAD_CLIENT_MAGIC:
        give_up(h, NGHTTP2_PROTOCOL_ERROR, "bad connection preface");
        break;
    case NGHTTP2_ERR_NOMEM:
        give_up(h, NGHTTP2_INTERNAL_ERROR, "out of memory");
        break;
    default:
        give_up(h, NGHTTP2_PROTOCOL_ERROR, "protocol broken");
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
    }
    begin_fresh(h);
    if (why == WHY_NONE && h->held != NULL)
        let_held_go(h);
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
            give_up(h, NGHTTP2_INTERNAL_ERROR, "out of memory");
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

        if (is_early(h, s) && h->now - s->moved_at >= UNHEARD_MS)
            reset(h, s, NGHTTP2_NO_ERROR);
        /* One that the library waits for is not held up by the peer. */
        if (s->closed || s->local_end || s->deferred ||
            h->now - s->moved_at < h->stall_ms)
            continue;
        pthread_mutex_lock(&h->hub.lock);
        waits = s->out.len > 0 || (s->out_end && s->answered);
        pthread_mutex_unlock(&h->hub.lock);
        if (waits)
            reset(h, s, NGHTTP2_CANCEL);
    }
}

/* Tell the peer that no more streams are welcome; those that are go on. */
static void
say_goodbye(struct h2 *h)
{
    if (h->said_goodbye)
        return;
    h->said_goodbye = true;
    leave(h);
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
}

/* Twice a second. */
static enum why
tick(struct h2 *h, struct fail *f)
{
    end_stalled(h);
    give_back(h);
    if (h->block_from != 0 && h->now - h->block_from >= h->head_ms)
        give_up(h, NGHTTP2_ENHANCE_YOUR_CALM, "unfinished header block");
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

    if (end_pending(h->end) || !hub_sleep(&h->hub))
        return;
    if (h->fibers.n > 0)
        fibers_poll(&h->fibers, p, 2, ms);
    else
        (void)poll(p, 2, ms);
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
        list_add(h, s);
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
                list_add(h, s);
                s->submitted = s->closed = true;
                stream_break(s, WHY_UNPROCESSED, "session ended", 0, NULL);
            }
            serve_call(h, s, &c);
        }
    while (fibers_leave(h) || !hub_wait_left(&h->hub));
    while (h->all != NULL)
        let_go(h, h->all);
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
    serve_calls(h);
    if (h->now >= h->tick_at) {
        enum why late = tick(h, f);

        h->tick_at = h->now + TICK_MS;
        if (late != WHY_NONE)
            return late;
    }
    if (h->cause == NULL) {
        enum why sent = transmit(h, f);

        if (sent == WHY_NONE && h->early) {
            ask_early(h);
            sent = transmit(h, f);
        }
        if (sent != WHY_NONE)
            return sent;
    }
    if (h->cause != NULL) { /* transmit may have found it */
        say_why(h);
        return fail_note(f, h->side, WHY_PROTO, h->cause, (int)h->code,
                         code_text);
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
    nghttp2_session_callbacks_set_on_begin_frame_callback(c, on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(c,
                                                            on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(c, on_header);
    nghttp2_session_callbacks_set_on_invalid_header_callback(c,
                                                             on_invalid_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(c, on_frame_recv);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(c, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(c, on_stream_close);
    nghttp2_session_callbacks_set_on_frame_send_callback(c, on_frame_send);
    nghttp2_session_callbacks_set_send_data_callback(c, send_content);
    return c;
}

/* Resets and continuations are counted here, by limits of proxy.ini. */
static nghttp2_option *
option_new(void)
{
    nghttp2_option *o;

    if (nghttp2_option_new(&o) != 0)
        return NULL;
    nghttp2_option_set_no_auto_window_update(o, 1);
    nghttp2_option_set_max_continuations(o, CONTINUATIONS);
    nghttp2_option_set_stream_reset_rate_limit(o, 1 << 30, 1 << 30);
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
    nghttp2_option *o = option_new();
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
    if (h->n_served >= h->trim_at) {
        h->trim_at = h->n_served + TRIM_STREAMS;
        atomic_store(&h->user.weir->trim, true);
    }
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
