/*
 * h1.c - HTTP/1.0 and 1.1 on an end, as a server and as a client.
 *
 * What is read, and the connection: h1parse.c makes messages out of bytes,
 * h1write.c makes bytes of messages.  Content is handed out where it lies in
 * the end's buffer.
 *
 * Follows  RFC 9112; RFC 9110 sections 5, 6 and 7.6.1.
 * Owns     the buffer of what is not sent yet, and the trailer section.  The
 *          end stays the caller's.
 * Threads  one that reads and one that writes, or one for both; abort: any.
 * Blocks   in its end, within the end's clocks and head_ms for a head.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

static enum why
broken(struct fail *f, enum side side, const char *op)
{
    return fail_own(f, side, WHY_PROTO, op);
}

/* ---- reading heads ------------------------------------------------------- */

/* RFC 9112 section 9.3. */
static bool
is_persistent(const struct head *head)
{
    if (list_has(head->connection, "close"))
        return false;
    return head->version == HTTP_11 || list_has(head->connection, "keep-alive");
}

/* What the reader meets next. */
void
h1_content_begin(struct h1 *h, enum h1_state state, uint64_t left)
{
    h->rd = state == H1_FIXED && left == 0 ? H1_DONE : state;
    h->rd_left = left;
    h->chunks = (struct h1_chunks){0};
    h->has_tail = false;
    h->http.n_in = 0;
}

static void
request_begin(struct h1 *h, const struct head *head)
{
    h->peer = head->version;
    h->peer_last = !is_persistent(head);
    h->method_id = head->method_id;
    h->te_trailers = head->te_trailers;
    ws_note_key(h, head);
    h->wr = H1_HEAD;
    h->we_last = false;
    h->http.n_out = 0;
    h1_content_begin(h,
                     head->body == BODY_STREAM   ? H1_CHUNKED
                     : head->body == BODY_LENGTH ? H1_FIXED
                                                 : H1_DONE,
                     head->length);
}

/* RFC 9112 section 6.3, in its order, with what the request makes of it. */
static enum why
answer_begin(struct h1 *h, struct head *head, struct fail *f)
{
    bool tunnel = h->method_id == METHOD_CONNECT && head->status / 100 == 2;

    h->peer = head->version;
    if (head->status == 101 && (!h->asked_upgrade || head->upgrade.len == 0))
        return broken(f, h->end->side, "101 that nobody asked for");
    if (head->status == 101 && !ws_accepted(h, head))
        return broken(f, h->end->side, "wrong Sec-WebSocket-Accept");
    if (head->status < 200 && head->status != 101) {
        h1_content_begin(h, H1_HEAD, 0); /* another head follows */
        return WHY_NONE;
    }
    h->peer_last = !is_persistent(head);
    if (head->status == 101 || tunnel)
        head->body = BODY_RAW;
    else if (h->method_id == METHOD_HEAD)
        head->body = BODY_NONE;
    if (head->body == BODY_RAW) {
        h1_content_begin(h, H1_RAW, 0);
    } else if (head->body == BODY_NONE) {
        h1_content_begin(h, H1_DONE, 0);
    } else if (head->body == BODY_LENGTH) {
        h1_content_begin(h, H1_FIXED, head->length);
    } else if (head_find(head, "Transfer-Encoding", NULL) != NULL) {
        h1_content_begin(h, H1_CHUNKED, 0);
    } else {
        h1_content_begin(h, H1_CLOSE, 0);
        h->peer_last = true;
    }
    return WHY_NONE;
}

/* Nothing that follows can be trusted.  A refusal may still be written. */
static void
head_refused(struct h1 *h, const struct head *head)
{
    h1_content_begin(h, H1_DONE, 0);
    h->peer_last = true;
    if (h->http.side != SIDE_CLIENT)
        return;
    h->peer = head != NULL ? head->version : HTTP_11;
    h->method_id = head != NULL ? head->method_id : METHOD_OTHER;
    h->wr = H1_HEAD;
    h->we_last = false;
    h->http.n_out = 0;
}

/*
 * h1_try_head - read_head with what is buffered alone.
 *
 * Returns as read_head, or WHY_MORE: the head is not all there.  Then
 * h->head_from tells since when its first byte is (0: there is none), for
 * whoever lets a slow head wait elsewhere.  Thread: the reader.
 */
enum why
h1_try_head(struct h1 *h, struct head *head, struct fail *f)
{
    struct span ahead = end_ahead(h->end);
    size_t used = 0;
    enum why why;

    assert(h->rd == H1_HEAD || h->rd == H1_DONE);
    if (!h->blank && h->scanned == 0 &&
        h1_blank_line(ahead.at, ahead.len, h->http.side) > 0) {
        end_consume(h->end, 2);
        ahead = end_ahead(h->end);
        h->blank = true;
        h->head_from = 0;
    }
    why = h1_parse_more(ahead.at, ahead.len, h->http.side,
                        h->http.side == SIDE_ORIGIN &&
                            h->method_id == METHOD_CONNECT,
                        &h->limits, &h->scanned, head, &used, f);
    if (why == WHY_MORE) {
        if (ahead.len > 0 && h->head_from == 0)
            h->head_from = now_ms();
        return WHY_MORE;
    }
    h->scanned = 0;
    h->head_from = 0;
    h->blank = false;
    if (why == WHY_NONE) {
        end_consume(h->end, used);
        if (h->http.side == SIDE_CLIENT)
            request_begin(h, head);
        else
            why = answer_begin(h, head, f);
    }
    if (why != WHY_NONE)
        head_refused(h, head);
    return why;
}

/* end_fill() under the watch and the clock of whoever uses the codec.  The
 * clock is a deadline: the end's idle_ms is the writer's as well. */
static enum why
fill(struct h1 *h, size_t cap, struct fail *f)
{
    struct end *end = h->end;
    const struct watch *watch = end->watch;
    int64_t late = end->deadline, quiet = 0;
    struct fail met;
    enum why why;

    if (h->http.watch != NULL)
        end->watch = h->http.watch;
    if (h->http.idle_ms != 0)
        quiet = now_ms() + h->http.idle_ms;
    if (quiet != 0 && (late == 0 || quiet < late))
        end->deadline = quiet;
    do {
        met = (struct fail){0};
        why = end_fill(end, cap, &met);
    } while (why == WHY_IDLE && now_ms() < quiet);
    if (why == WHY_LATE && end->deadline != late)
        why = met.why = WHY_IDLE;
    end->watch = watch;
    end->deadline = late;
    if (met.why != WHY_NONE)
        fail_note(f, met.side, why, met.op, met.code, met.text);
    return why;
}

static size_t
head_cap(const struct h1 *h)
{
    return h->limits.head_bytes > END_BUF ? h->limits.head_bytes : END_BUF;
}

/* Reading a head was stopped by `met`.  Between two messages a peer may leave
 * as it likes, even without TLS's goodbye: nothing can be missing. */
static enum why
head_stopped(struct h1 *h, enum why why, struct fail *met, struct fail *f)
{
    bool begun = h->head_from != 0;

    if (!begun && (why == WHY_EOF || why == WHY_CUT))
        return WHY_EOF;
    if (!begun && why == WHY_SYS && h->http.side == SIDE_ORIGIN) {
        (void)fail_note(f, met->side, why, "read answer head", met->code,
                        met->text);
        return WHY_EOF; /* reset, with nothing said */
    }
    if (begun)
        head_refused(h, NULL);
    if (why == WHY_EOF) {
        why = WHY_CUT;
        fail_own(met, h->end->side, WHY_CUT, "read");
    }
    met->op =
        h->http.side == SIDE_CLIENT ? "read request head" : "read answer head";
    if (f->why == WHY_NONE)
        *f = *met;
    return why;
}

/*
 * The next head (ops.read_head).
 *
 * Returns WHY_NONE; WHY_EOF before its first byte (noted if it was a reset by
 * an origin: it may have heard us); WHY_IDLE, before the first byte or within;
 * WHY_LATE: head_ms after its first byte, or at the end's own deadline;
 * WHY_CUT: ended within; or what h1_parse_head() or end_fill() noted.
 */
static enum why
h1_read_head(struct http *http, struct head *head, struct fail *f)
{
    struct h1 *h = (struct h1 *)http;
    int64_t before = h->end->deadline;
    struct fail met = {0};
    enum why why;

    while ((why = h1_try_head(h, head, f)) == WHY_MORE) {
        int64_t late = h->head_from + h->limits.head_ms;

        if (h->head_from != 0 && (before == 0 || late < before))
            h->end->deadline = late;
        if ((why = fill(h, head_cap(h), &met)) == WHY_NONE)
            continue;
        why = head_stopped(h, why, &met, f);
        break;
    }
    h->end->deadline = before;
    return why;
}

/* ---- reading content ----------------------------------------------------- */

/* The trailer section (RFC 9112 section 7.1.2), parsed as fields are. */
static enum why
take_tail(struct h1 *h, struct fail *f)
{
    struct span ahead = end_ahead(h->end);
    const char *at;
    size_t end = 0;
    enum why why = ahead.len > 0
                       ? h1_section_end(ahead.at, ahead.len, &h->scanned, &end)
                       : WHY_MORE;

    if (why == WHY_PROTO)
        return broken(f, h->end->side, "CR or LF alone in trailers");
    if ((why == WHY_MORE ? ahead.len + 1 : end) > h->limits.head_bytes)
        return fail_own(f, h->end->side, WHY_LIMIT, "size of trailers");
    if (why != WHY_NONE)
        return why;
    h->scanned = 0;
    if (end > 2) {
        if (h->tail == NULL && (h->tail = calloc(1, sizeof *h->tail)) == NULL)
            return fail_sys(f, SIDE_WEIR, "parse trailers", ENOMEM);
        head_reset(h->tail);
        if ((at = head_text(h->tail, ahead.at, end).at) == NULL)
            return fail_sys(f, SIDE_WEIR, "parse trailers", ENOMEM);
        why = h1_parse_fields(at, h->end->side, &h->limits, h->tail, f);
        if (why != WHY_NONE)
            return why;
        h->has_tail = true;
    }
    end_consume(h->end, end);
    h->rd = H1_DONE;
    return WHY_EOF;
}

static enum why
take_chunked(struct h1 *h, struct span *data, struct fail *f)
{
    struct span ahead = end_ahead(h->end);
    struct fail met = {0};
    size_t used = 0;
    enum why why;

    why = h1_parse_chunks(&h->chunks, ahead.at, ahead.len, &used, data, &met);
    end_consume(h->end, used);
    if (why == WHY_EOF)
        return take_tail(h, f);
    if (met.why != WHY_NONE)
        fail_own(f, h->end->side, why, met.op);
    return why;
}

/* All that is here of content that ends by its length or by close. */
static enum why
take_plain(struct h1 *h, struct span *data)
{
    *data = end_ahead(h->end);
    if (data->len == 0)
        return WHY_MORE;
    if (h->rd == H1_FIXED) {
        if (data->len > h->rd_left)
            data->len = (size_t)h->rd_left;
        h->rd_left -= data->len;
        if (h->rd_left == 0)
            h->rd = H1_DONE;
    }
    end_consume(h->end, data->len);
    return WHY_NONE;
}

/* How much to read at once: no bulk buffer for a few bytes. */
static size_t
content_cap(const struct h1 *h)
{
    if (h->rd == H1_CHUNKED && h->chunks.state == CHUNK_LAST)
        return head_cap(h);
    if ((h->rd == H1_FIXED && h->rd_left <= END_BUF) ||
        (h->rd == H1_CHUNKED && h->chunks.left <= END_BUF))
        return END_BUF;
    return END_BUF_BULK;
}

/*
 * The next content (ops.read_body).
 *
 * data  in the end's buffer, which consumed it: valid until the next read_head,
 *       read_body or pending
 *
 * Returns WHY_NONE; WHY_EOF: complete; WHY_CUT: the peer ended before; after
 * WHY_IDLE it may be called again; or what the parsers or end_fill() noted.
 */
static enum why
h1_read_body(struct http *http, struct span *data, struct fail *f)
{
    struct h1 *h = (struct h1 *)http;
    enum why why;

    assert(h->rd != H1_HEAD && h->rd != H1_RAW);
    for (;;) {
        if (h->rd == H1_DONE)
            return WHY_EOF;
        if (h->rd == H1_BROKEN)
            return broken(f, h->end->side, "content framing");
        why = h->rd == H1_CHUNKED ? take_chunked(h, data, f)
                                  : take_plain(h, data);
        if (why == WHY_PROTO || why == WHY_LIMIT)
            h->rd = H1_BROKEN; /* nobody can tell any more what is content */
        if (why == WHY_NONE)
            http->n_in += data->len;
        if (why != WHY_MORE)
            return why;
        why = fill(h, content_cap(h), f);
        if (why == WHY_EOF && h->rd == H1_CLOSE)
            h->rd = H1_DONE;
        else if (why == WHY_EOF)
            return fail_own(f, h->end->side, WHY_CUT, "read content");
        else if (why != WHY_NONE)
            return why;
    }
}

static const struct head *
h1_trailers(struct http *http)
{
    struct h1 *h = (struct h1 *)http;

    return h->has_tail ? h->tail : NULL;
}

/* Would the chunks that are here give data, or the end?  If not, what was read
 * before must be flushed: the rest of a frame is no reason to wait. */
static bool
chunk_pending(const struct h1 *h, struct span ahead)
{
    struct h1_chunks scratch = h->chunks;
    size_t used = 0, scanned = 0, end;
    struct fail ignored = {0};
    struct span data;
    enum why why =
        h1_parse_chunks(&scratch, ahead.at, ahead.len, &used, &data, &ignored);

    if (why == WHY_EOF)
        why = h1_section_end(ahead.at + used, ahead.len - used, &scanned, &end);
    return why == WHY_NONE;
}

/*
 * Can something be read without waiting (ops.pending)?
 *
 * An error that is about to be met does not count, nor does the end of the
 * connection: so all content is flushed before it is found to be cut.
 */
static bool
h1_pending(struct http *http)
{
    struct h1 *h = (struct h1 *)http;
    struct span ahead;
    size_t scanned, end;

    if (h->rd == H1_BROKEN || !end_pending(h->end))
        return false;
    ahead = end_ahead(h->end);
    if (ahead.len == 0)
        return false; /* an end, or an error, waits to be read */
    if (h->rd == H1_CHUNKED)
        return chunk_pending(h, ahead);
    if (h->rd != H1_HEAD && h->rd != H1_DONE)
        return true;
    scanned = h->scanned;
    return ahead.len >= h->limits.head_bytes ||
           h1_section_end(ahead.at, ahead.len, &scanned, &end) != WHY_MORE;
}

static bool
h1_complete(struct http *http)
{
    return ((struct h1 *)http)->rd == H1_DONE;
}

/* ---- the connection ------------------------------------------------------ */

/* What comes has to be read past, or the answer may be lost with it (RFC 9112
 * section 9.6). */
static bool
h1_unwanted(struct http *http)
{
    (void)http;
    return false;
}

static bool
h1_gone(struct http *http)
{
    return end_gone(((struct h1 *)http)->end);
}

/* Another exchange may follow if both messages are complete and nobody said
 * that it is the last.  What an origin sent unasked belongs to no answer, and
 * must not become the next one's.  Thread: the reader, the writer at rest. */
static bool
h1_reusable(struct http *http)
{
    struct h1 *h = (struct h1 *)http;

    return h->rd == H1_DONE && h->wr == H1_DONE && !http->last &&
           !h->peer_last && !h->we_last && !atomic_load(&h->aborted) &&
           !(http->side == SIDE_ORIGIN && end_pending(h->end));
}

/*
 * The peer shall see that the message is cut short, and whoever waits here
 * wakes (ops.abort).
 *
 * Missing bytes or a missing last chunk tell it, once the connection ends.
 * Content that only its end ends would look complete after a FIN, so none may
 * be sent.  The caller must not end_finish() after it.
 */
static void
h1_abort(struct http *http, enum why why)
{
    struct h1 *h = (struct h1 *)http;

    (void)why; /* HTTP/1 has no way to tell the peer */
    atomic_store(&h->aborted, true);
    if (!atomic_load(&h->until_close)) {
        end_wake(h->end);
        return;
    }
    end_cut(h->end);
}

/* Content framed by its length or by close is on the socket as it is, but not
 * under TLS. */
static struct end *
h1_raw_in(struct http *http, uint64_t *left)
{
    struct h1 *h = (struct h1 *)http;

    if ((h->rd != H1_FIXED && h->rd != H1_CLOSE) || h->end->tls != NULL ||
        end_ahead(h->end).len > 0)
        return NULL;
    *left = h->rd == H1_FIXED ? h->rd_left : UINT64_MAX;
    return h->end;
}

static struct end *
h1_raw_out(struct http *http)
{
    struct h1 *h = (struct h1 *)http;

    if ((h->wr != H1_FIXED && h->wr != H1_CLOSE) || h->end->tls != NULL ||
        h->out_len > 0 || atomic_load(&h->aborted))
        return NULL;
    return h->end;
}

static void
h1_raw_moved(struct http *http, uint64_t in, uint64_t out)
{
    struct h1 *h = (struct h1 *)http;

    if (in > 0) {
        http->n_in += in;
        assert(h->rd == H1_CLOSE || (h->rd == H1_FIXED && in <= h->rd_left));
        if (h->rd == H1_FIXED && (h->rd_left -= in) == 0)
            h->rd = H1_DONE;
    }
    if (out > 0) {
        http->n_out += out;
        assert(h->wr == H1_CLOSE || (h->wr == H1_FIXED && out <= h->wr_left));
        if (h->wr == H1_FIXED && (h->wr_left -= out) == 0)
            h->wr = H1_DONE;
    }
}

static const struct http_ops ops = {
    .read_head = h1_read_head,
    .read_body = h1_read_body,
    .trailers = h1_trailers,
    .pending = h1_pending,
    .complete = h1_complete,
    .write_head = h1_write_head,
    .write_body = h1_write_body,
    .write_end = h1_write_end,
    .flush = h1_flush,
    .unwanted = h1_unwanted,
    .gone = h1_gone,
    .reusable = h1_reusable,
    .abort = h1_abort,
    .raw_in = h1_raw_in,
    .raw_out = h1_raw_out,
    .raw_moved = h1_raw_moved,
};

/*
 * h1_init - HTTP/1 on an end.
 *
 * h     the caller's memory, no matter what was in it
 * end   stays the caller's; what it has buffered is read first
 * side  whom we speak with: SIDE_CLIENT makes us the server
 * conf  for its limits; not kept
 */
void
h1_init(struct h1 *h, struct end *end, enum side side,
        const struct config *conf)
{
    memset(h, 0, sizeof *h);
    h->http.ops = &ops;
    h->http.side = side;
    h->http.version = HTTP_11;
    h->end = end;
    h->limits = (struct h1_limits){.head_bytes = (size_t)conf->head_bytes,
                                   .target_bytes = (size_t)conf->target_bytes,
                                   .n_fields = (size_t)conf->fields,
                                   .head_ms = conf->head_s * 1000};
    h->peer = HTTP_11;
}

/* Give back what the codec owns; not the end.  May run twice. */
void
h1_clear(struct h1 *h)
{
    free(h->out);
    h->out = NULL;
    h->out_len = h->out_cap = 0;
    if (h->tail != NULL)
        head_clear(h->tail);
    free(h->tail);
    h->tail = NULL;
    h->has_tail = false;
}

/*
 * h1_take_raw - HTTP is over here: behind a 2xx to CONNECT, or a 101.
 *
 * Returns the end, with the bytes that came behind the head still buffered in
 * it.  What was written must have been flushed.
 */
struct end *
h1_take_raw(struct h1 *h)
{
    assert(h->out_len == 0);
    h1_clear(h);
    h->rd = h->wr = H1_RAW;
    return h->end;
}
