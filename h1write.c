/*
 * h1write.c - HTTP/1 messages into bytes, and those to the end.
 *
 * What is written is framed anew; no field that frames a message or belongs to
 * one hop is copied.  Writes wait in a buffer, so that a head and a little
 * content are one segment, until somebody flushes it or it is full.
 *
 * Follows  RFC 9112 sections 3, 4, 6, 7 and 9; RFC 9110 section 7.6.1.
 * Owns     struct h1's buffer of what is not sent yet.
 * Threads  the one that writes.
 * Blocks   in its end, when it sends.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    OUT_FIRST = 1024, /* the first write buffer: a usual head */
    OUT_MAX = 16384,  /* kept at most, and joined before it is sent */
    OUT_JOIN = 4096,  /* content up to this is copied behind the head */
    OUT_SPARE = 384,  /* beside a head's own text: what we add to it */
    FRAME_MAX = 18,   /* a chunk's size in hex, CRLF */
};

/* ---- what waits to be sent ----------------------------------------------- */

/* Send it, and `n` pieces behind it in the same call. */
static enum why
out_send(struct h1 *h, const struct iovec *more, int n, struct fail *f)
{
    struct iovec iov[3] = {{h->out, h->out_len}};
    enum why why;

    assert(n <= 2);
    for (int i = 0; i < n; i++)
        iov[1 + i] = more[i];
    why = end_write(h->end, iov, 1 + n, f);
    if (why != WHY_NONE)
        h->we_last = true;
    h->out_len = 0;
    if (h->out_cap > OUT_MAX) { /* somebody's huge head; not for ever */
        free(h->out);
        h->out = NULL;
        h->out_cap = 0;
    }
    return why;
}

/* Room for n more bytes, sending what is there if that makes too many. */
static enum why
out_room(struct h1 *h, size_t n, struct fail *f)
{
    enum why why = WHY_NONE;
    size_t cap = h->out_cap > 0 ? h->out_cap : OUT_FIRST;
    char *out;

    if (atomic_load(&h->aborted))
        return fail_own(f, SIDE_WEIR, WHY_OVER, "write");
    if (h->out_len > 0 && h->out_len + n > OUT_MAX)
        why = out_send(h, NULL, 0, f);
    if (why != WHY_NONE || h->out_len + n <= h->out_cap)
        return why;
    while (cap < h->out_len + n)
        cap *= 2;
    if ((out = realloc(h->out, cap)) == NULL)
        return fail_sys(f, SIDE_WEIR, "write", ENOMEM);
    h->out = out;
    h->out_cap = cap;
    return WHY_NONE;
}

static void
put(struct h1 *h, const char *at, size_t len)
{
    assert(h->out_cap - h->out_len >= len); /* out_room() was asked for less */
    if (len > 0)
        memcpy(h->out + h->out_len, at, len);
    h->out_len += len;
}

static void
put_span(struct h1 *h, struct span s)
{
    put(h, s.at, s.len);
}

static void
put_text(struct h1 *h, const char *text)
{
    put(h, text, strlen(text));
}

static void
put_field(struct h1 *h, struct span name, struct span value)
{
    put_span(h, name);
    put(h, ": ", 2);
    put_span(h, value);
    put(h, "\r\n", 2);
}

static void
put_number(struct h1 *h, struct span name, uint64_t n)
{
    char text[24];
    int len = snprintf(text, sizeof text, "%llu", (unsigned long long)n);

    put_field(h, name, (struct span){text, (size_t)len});
}

/* ---- writing heads ------------------------------------------------------- */

enum length { /* what becomes of Content-Length */
              LENGTH_NONE,
              LENGTH_OWN,  /* plan.n */
              LENGTH_SENT, /* as it came: it says what a GET would have brought
                            */
              LENGTH_ZERO, /* as it came if that was 0 */
};

struct plan { /* how a message will be framed */
    enum h1_state state;
    enum length length;
    uint64_t n;
};

static struct plan
plan_request(const struct head *head)
{
    if (head->method_id == METHOD_CONNECT)
        return (struct plan){H1_DONE, LENGTH_NONE, 0};
    if (head->body == BODY_LENGTH)
        return (struct plan){H1_FIXED, LENGTH_OWN, head->length};
    if (head->body == BODY_STREAM)
        return (struct plan){H1_CHUNKED, LENGTH_NONE, 0};
    return (struct plan){H1_DONE, LENGTH_ZERO, 0};
}

/* RFC 9112 section 6.3 from the other side; RFC 9110 section 8.6. */
static struct plan
plan_answer(const struct h1 *h, const struct head *head)
{
    int status = head->status;

    if (status < 200 && status != 101)
        return (struct plan){H1_HEAD, LENGTH_NONE, 0};
    if (status == 101 || (h->method_id == METHOD_CONNECT && status / 100 == 2))
        return (struct plan){H1_RAW, LENGTH_NONE, 0};
    if (status == 204)
        return (struct plan){H1_DONE, LENGTH_NONE, 0};
    if (status == 304 || h->method_id == METHOD_HEAD)
        return (struct plan){
            H1_DONE, head->body == BODY_LENGTH ? LENGTH_OWN : LENGTH_SENT,
            head->length};
    if (head->body == BODY_NONE)
        return (struct plan){H1_DONE, LENGTH_OWN, 0};
    if (head->body == BODY_LENGTH)
        return (struct plan){H1_FIXED, LENGTH_OWN, head->length};
    return (struct plan){h->peer == HTTP_10 ? H1_CLOSE : H1_CHUNKED,
                         LENGTH_NONE, 0};
}

/* RFC 9112 section 3.2: origin-form, or what a parent or a method wants. */
static void
put_request_line(struct h1 *h, const struct head *head)
{
    bool asterisk = span_is(head->path, "*");

    put_span(h, head->method);
    put(h, " ", 1);
    if (head->method_id == METHOD_CONNECT) {
        put_span(h, head->authority);
    } else if (h->absolute) {
        put_span(h, head->scheme);
        put(h, "://", 3);
        put_span(h, head->authority);
        if (!asterisk) /* OPTIONS * is the URI without a path, 3.2.4 */
            put_span(h, head->path);
    } else {
        put_span(h, head->path);
    }
    put(h, " HTTP/1.1\r\n", 11);
}

/* The version is ours (RFC 9110 section 2.5), the phrase the origin's. */
static void
put_status_line(struct h1 *h, const struct head *head)
{
    char text[16];
    int len =
        snprintf(text, sizeof text, "HTTP/1.1 %03d ", head->status % 1000);

    put(h, text, (size_t)len);
    if (head->reason.at != NULL)
        put_span(h, head->reason);
    else
        put_text(h, status_reason(head->status));
    put(h, "\r\n", 2);
}

/* One Content-Length, in its place and spelling. */
static void
put_length(struct h1 *h, const struct field *field, const struct plan *plan)
{
    if (plan->length == LENGTH_OWN)
        put_number(h, field->name, plan->n);
    else if (plan->length == LENGTH_SENT ||
             (plan->length == LENGTH_ZERO && span_is(field->value, "0")))
        put_field(h, field->name, field->value);
}

/* RFC 9110 section 6.5.1: does the peer want to hear of trailers? */
static bool
trailers_pass(const struct h1 *h)
{
    return h->http.side == SIDE_ORIGIN || h->te_trailers;
}

/* What was sent, in its order and spelling, less what was for us alone. */
static void
put_fields(struct h1 *h, const struct head *head, const struct plan *plan)
{
    bool request = head->status == 0, length = false;

    if (request && head->authority.len > 0 &&
        head_find(head, "Host", NULL) == NULL)
        put_field(h, span_of("Host"), head->authority);
    for (size_t i = 0; i < head->n_fields; i++) {
        const struct field *field = &head->fields[i];
        enum h1_field kind = h1_field_of(field->name);

        if (kind == F_LENGTH) {
            if (!length)
                put_length(h, field, plan);
            length = true;
        } else if (kind == F_TRAILER) {
            if (plan->state == H1_CHUNKED && trailers_pass(h))
                put_field(h, field->name, field->value);
        } else if (kind == F_HOST && request && head->authority.len > 0) {
            put_field(h, field->name, head->authority);
        } else if (kind == F_EXPECT && request && head->version == HTTP_10) {
            /* It must not take effect (RFC 9110 section 10.1.1), but would:
             * we speak 1.1. */
        } else if (!field_is_hop(head, field->name)) {
            put_field(h, field->name, field->value);
        }
    }
    if (plan->length == LENGTH_OWN && !length)
        put_number(h, span_of("Content-Length"), plan->n);
    if (plan->state == H1_CHUNKED)
        put_text(h, "Transfer-Encoding: chunked\r\n");
}

/* Our own Connection (RFC 9110 section 7.6.1) and what it names.  `final`: it
 * goes with an answer behind which HTTP goes on, unless we `close`. */
static void
put_connection(struct h1 *h, const struct head *head, bool final, bool close)
{
    bool request = head->status == 0;
    bool upgrade = head->upgrade.len > 0 &&
                   (request || head->status == 101 || head->status == 426);
    bool te = request && head->te_trailers;
    /* Appendix C.2.2: an HTTP/1.0 client wants to hear that we stay. */
    bool stay = final && !close && h->peer == HTTP_10;
    const char *lead = "Connection: ";

    if (close) {
        put_text(h, lead);
        put_text(h, "close");
        lead = ", ";
    }
    if (stay) {
        put_text(h, lead);
        put_text(h, "keep-alive");
        lead = ", ";
    }
    if (upgrade) {
        put_text(h, lead);
        put_text(h, "Upgrade");
        lead = ", ";
    }
    if (te) {
        put_text(h, lead);
        put_text(h, "TE");
    }
    if (close || stay || upgrade || te)
        put(h, "\r\n", 2);
    if (upgrade)
        put_field(h, span_of("Upgrade"), head->upgrade);
    if (te)
        put_text(h, "TE: trailers\r\n");
}

/* At least as many bytes as writing the fields will take. */
static size_t
fields_size(const struct head *head)
{
    size_t n = 0;

    for (size_t i = 0; i < head->n_fields; i++)
        n += head->fields[i].name.len + head->fields[i].value.len + 4;
    return n;
}

static size_t
head_size(const struct head *head)
{
    return fields_size(head) + head->method.len + head->scheme.len +
           2 * head->authority.len + head->path.len + head->reason.len +
           head->upgrade.len + OUT_SPARE;
}

/* The writer's state behind the head it has just written. */
static void
message_begin(struct h1 *h, const struct plan *plan)
{
    h->wr = plan->state == H1_FIXED && plan->n == 0 ? H1_DONE : plan->state;
    h->wr_left = plan->n;
    atomic_store(&h->until_close, plan->state == H1_CLOSE);
    h->http.n_out = 0;
}

static enum why
write_request(struct h1 *h, const struct head *head, struct fail *f)
{
    struct plan plan = plan_request(head);
    enum why why = out_room(h, head_size(head) + h->http.credentials.len, f);

    if (why != WHY_NONE)
        return why;
    if (!ws_make_key(h, head))
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "make a WebSocket key");
    h->method_id = head->method_id;
    h->asked_upgrade = head->upgrade.len > 0;
    h->we_last = h->http.last;
    h->peer_last = false;
    h1_content_begin(h, H1_HEAD, 0);
    put_request_line(h, head);
    put_fields(h, head, &plan);
    if (h->http.credentials.len > 0)
        put_field(h, span_of("Proxy-Authorization"), h->http.credentials);
    if (h->ws_ours)
        put_field(h, span_of("Sec-WebSocket-Key"), span_of(h->ws_key));
    put_connection(h, head, false, h->we_last);
    put(h, "\r\n", 2);
    message_begin(h, &plan);
    return WHY_NONE;
}

static enum why
write_answer(struct h1 *h, const struct head *head, struct fail *f)
{
    struct plan plan = plan_answer(h, head);
    bool final = plan.state != H1_HEAD && plan.state != H1_RAW;
    char accept[32];
    enum why why;

    if (plan.state == H1_HEAD && h->peer == HTTP_10)
        return WHY_NONE; /* RFC 9110 section 15.2: it does not know them */
    if ((why = out_room(h, head_size(head), f)) != WHY_NONE)
        return why;
    if (final)
        h->we_last = h->http.last || h->peer_last || plan.state == H1_CLOSE;
    put_status_line(h, head);
    put_fields(h, head, &plan);
    if (head->status == 101 && h->ws_key[0] != '\0' &&
        head_find(head, "Sec-WebSocket-Accept", NULL) == NULL &&
        ws_accept(h->ws_key, accept))
        put_field(h, span_of("Sec-WebSocket-Accept"), span_of(accept));
    put_connection(h, head, final, final && h->we_last);
    put(h, "\r\n", 2);
    message_begin(h, &plan);
    return WHY_NONE;
}

/*
 * A head, framed anew for this connection (ops.write_head).
 *
 * head  a request in the client role, else an answer; any codec's, or our own
 *
 * Returns WHY_NONE; WHY_OVER: aborted; or what end_write() noted.
 */
enum why
h1_write_head(struct http *http, const struct head *head, struct fail *f)
{
    struct h1 *h = (struct h1 *)http;

    assert((head->status == 0) == (http->side == SIDE_ORIGIN));
    return head->status == 0 ? write_request(h, head, f)
                             : write_answer(h, head, f);
}

/* ---- writing content ----------------------------------------------------- */

/* A chunk's size line. */
static size_t
chunk_line(char out[FRAME_MAX + 1], size_t n)
{
    return (size_t)snprintf(out, FRAME_MAX + 1, "%zx\r\n", n);
}

/* Is there room for n bytes in the framing that the head has promised? */
static enum why
content_fits(struct h1 *h, size_t n, struct fail *f)
{
    bool counted = h->wr == H1_FIXED;

    if (h->wr == H1_CHUNKED || h->wr == H1_CLOSE)
        return WHY_NONE;
    if (!counted || n > h->wr_left) {
        h->we_last = true;
        return fail_own(f, SIDE_WEIR, WHY_PROTO,
                        "more content than the head promised");
    }
    if ((h->wr_left -= n) == 0)
        h->wr = H1_DONE;
    return WHY_NONE;
}

/*
 * Content (ops.write_body).  A little is copied behind what waits already; much
 * is sent at once, in one call with what waits.
 *
 * data  may be empty, which says nothing.  After the head of an answer to HEAD
 *       it is dropped: so a page need not know how it was asked for.
 *
 * Returns WHY_NONE; WHY_PROTO: more than was promised; WHY_OVER: aborted; or
 * what end_write() noted.
 */
enum why
h1_write_body(struct http *http, struct span data, struct fail *f)
{
    struct h1 *h = (struct h1 *)http;
    bool chunked = h->wr == H1_CHUNKED, join = data.len <= OUT_JOIN;
    char line[FRAME_MAX + 1];
    enum why why;

    if (data.len == 0 || (h->wr == H1_DONE && http->side == SIDE_CLIENT &&
                          h->method_id == METHOD_HEAD))
        return WHY_NONE;
    if ((why = content_fits(h, data.len, f)) != WHY_NONE ||
        (why = out_room(h, FRAME_MAX + 2 + (join ? data.len : 0), f)) !=
            WHY_NONE)
        return why;
    http->n_out += data.len;
    if (chunked)
        put(h, line, chunk_line(line, data.len));
    if (join) {
        put_span(h, data);
        put(h, "\r\n", chunked ? 2 : 0);
        return WHY_NONE;
    }
    return out_send(h,
                    (struct iovec[]){{(void *)data.at, data.len},
                                     {(void *)"\r\n", chunked ? 2 : 0}},
                    2, f);
}

/* The last chunk, and those trailers that may be in one. */
static enum why
write_tail(struct h1 *h, const struct head *tail, struct fail *f)
{
    bool pass = tail != NULL && trailers_pass(h);
    enum why why = out_room(h, (pass ? fields_size(tail) : 0) + FRAME_MAX, f);

    if (why != WHY_NONE)
        return why;
    put(h, "0\r\n", 3);
    for (size_t i = 0; pass && i < tail->n_fields; i++)
        if (field_ok_in_trailer(tail->fields[i].name))
            put_field(h, tail->fields[i].name, tail->fields[i].value);
    put(h, "\r\n", 2);
    return WHY_NONE;
}

/*
 * The content is complete (ops.write_end).  In until-close framing the close
 * itself says so.
 *
 * Returns WHY_NONE; WHY_CUT: less than Content-Length was written, so the
 * connection must be closed and the peer will see it cut; WHY_OVER.
 */
enum why
h1_write_end(struct http *http, const struct head *trailers, struct fail *f)
{
    struct h1 *h = (struct h1 *)http;
    enum why why = WHY_NONE;

    assert(h->wr != H1_HEAD); /* no final head was written */
    if (h->wr == H1_FIXED) {
        h->we_last = true;
        return fail_own(f, SIDE_WEIR, WHY_CUT, "less content than promised");
    }
    if (h->wr == H1_CHUNKED)
        why = write_tail(h, trailers, f);
    if (why != WHY_NONE || h->wr == H1_RAW)
        return why;
    h->wr = H1_DONE;
    return WHY_NONE;
}

enum why
h1_flush(struct http *http, struct fail *f)
{
    struct h1 *h = (struct h1 *)http;
    enum why why = WHY_NONE;

    if (h->out_len > 0 && atomic_load(&h->aborted))
        return fail_own(f, SIDE_WEIR, WHY_OVER, "write");
    if (h->out_len > 0)
        why = out_send(h, NULL, 0, f);
    if (why == WHY_NONE && h->wr == H1_DONE)
        atomic_store(&h->until_close, false); /* whole: a FIN may end it */
    return why;
}
