/*
 * h1.c - HTTP/1.0 and 1.1 on an end, as a server and as a client.
 *
 * A head is parsed when all of it is there, from one copy in its arena;
 * content is handed out where it lies in the end's buffer.  What two readers
 * could understand in two ways is refused, never repaired: that is how requests
 * are smuggled past a proxy.  What is written is framed anew; no field that
 * frames a message or belongs to one hop is copied.
 *
 * Follows  RFC 9112; RFC 9110 sections 5, 6 and 7.6.1.
 * Owns     the buffer of what is not sent yet, and the trailer section.  The
 *          end stays the caller's.
 * Threads  one that reads and one that writes, or one for both; abort: any.
 * Blocks   in its end, within the end's clocks and head_ms for a head.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>

#include "proxy.h"

enum {
    OUT_FIRST = 1024,    /* the first write buffer: a usual head */
    OUT_MAX = 16384,     /* kept at most, and joined before it is sent */
    OUT_JOIN = 4096,     /* content up to this is copied behind the head */
    OUT_SPARE = 384,     /* beside a head's own text: what we add to it */
    FRAME_MAX = 18,      /* a chunk's size in hex, CRLF */
    CHUNK_LINE = 4096,   /* a chunk's size line, with its extensions */
    CHUNK_EXCESS = 16384 /* bytes of such lines beyond a fair share */
};

/* ---- where a head ends --------------------------------------------------- */

static enum why
broken(struct fail *f, enum side side, const char *op)
{
    return fail_own(f, side, WHY_PROTO, op);
}

/*
 * Find the empty line behind a head or a trailer section.
 *
 * scanned  bytes looked at before; kept up to date, so that a section which
 *          comes byte by byte is not looked at again and again
 * end      bytes up to and with the empty line; written only on WHY_NONE
 *
 * Returns WHY_NONE, WHY_MORE, or WHY_PROTO: a CR or LF that ends no line (RFC
 * 9112 section 2.2), seen at once, or its sender would wait for the deadline.
 */
static enum why
section_end(const char *raw, size_t len, size_t *scanned, size_t *end)
{
    const char *at = raw + *scanned, *stop = raw + len, *lf, *cr;

    for (; at < stop && (lf = memchr(at, '\n', (size_t)(stop - at))) != NULL;
         at = lf + 1) {
        if (lf == raw || lf[-1] != '\r')
            return WHY_PROTO;
        if (lf == raw + 1 || lf[-2] == '\n') {
            *end = (size_t)(lf + 1 - raw);
            return WHY_NONE;
        }
    }
    cr = at < stop ? memchr(at, '\r', (size_t)(stop - at)) : NULL;
    if (cr != NULL && cr + 1 < stop)
        return WHY_PROTO;
    *scanned = (size_t)((cr != NULL ? cr : stop) - raw);
    return WHY_MORE;
}

/* Is the target, so far as it is here, over its limit?  Its own answer (414)
 * even when the line is over the limit of the head as well. */
static bool
target_over(const char *raw, size_t len, const struct h1_limits *limits)
{
    const char *lf, *from, *to;

    if (len <= limits->target_bytes)
        return false;
    lf = memchr(raw, '\n', len);
    len = lf != NULL ? (size_t)(lf - raw) : len;
    if ((from = memchr(raw, ' ', len)) == NULL)
        return false;
    len -= (size_t)(++from - raw);
    to = memchr(from, ' ', len);
    return (to != NULL ? (size_t)(to - from) : len) > limits->target_bytes;
}

/* RFC 9112 section 2.2: one empty line before a request is passed over. */
static size_t
blank_line(const char *raw, size_t len, enum side from)
{
    return from == SIDE_CLIENT && len >= 2 && raw[0] == '\r' && raw[1] == '\n'
               ? 2
               : 0;
}

/* ---- a head's lines ------------------------------------------------------ */

/* The line at *at without its CRLF, which section_end() has made sure of. */
static struct span
next_line(const char **at)
{
    const char *lf = rawmemchr(*at, '\n');
    struct span line = {*at, (size_t)(lf - 1 - *at)};

    *at = lf + 1;
    return line;
}

/* "HTTP/1.1".  A higher minor version is one we know (RFC 9110 section 2.5). */
static enum why
parse_version(struct span text, enum side from, struct head *head,
              struct fail *f)
{
    const char *v = text.at;

    if (text.len != 8 || memcmp(v, "HTTP/", 5) != 0 || v[5] < '0' ||
        v[5] > '9' || v[6] != '.' || v[7] < '0' || v[7] > '9')
        return broken(f, from, "malformed HTTP version");
    if (v[5] != '1')
        return fail_own(f, from, WHY_VERSION, "HTTP version");
    head->version = v[7] == '0' ? HTTP_10 : HTTP_11;
    return WHY_NONE;
}

/* Visible ASCII.  RFC 3986 has no `"<>\^`{|}` either, but browsers send some
 * of them as they are (WHATWG URL, query percent-encode set). */
static bool
is_target(struct span s)
{
    bool good = s.len > 0;

    for (size_t i = 0; i < s.len; i++)
        good &= s.at[i] > ' ' && s.at[i] < 0x7f;
    return good;
}

/* RFC 9112 section 3: method, one space, target, one space, version. */
static enum why
parse_request_line(struct span line, struct head *head, struct fail *f)
{
    const char *end = line.at + line.len, *target, *version;

    target = line.len > 0 ? memchr(line.at, ' ', line.len) : NULL;
    if (target == NULL)
        return broken(f, SIDE_CLIENT, "malformed request line");
    head->method = (struct span){line.at, (size_t)(target - line.at)};
    if (!is_token(head->method))
        return broken(f, SIDE_CLIENT, "malformed method");
    head->method_id = method_of(head->method);
    target++;
    version = memchr(target, ' ', (size_t)(end - target));
    if (version == NULL)
        return broken(f, SIDE_CLIENT, "request line without a version");
    head->target = (struct span){target, (size_t)(version - target)};
    if (!is_target(head->target))
        return broken(f, SIDE_CLIENT, "malformed request target");
    version++;
    return parse_version((struct span){version, (size_t)(end - version)},
                         SIDE_CLIENT, head, f);
}

/* RFC 9112 section 4: version, space, three digits, space, reason.  Without a
 * reason some servers leave the second space out, too. */
static enum why
parse_status_line(struct span line, struct head *head, struct fail *f)
{
    const char *s = line.at + 9;
    enum why why;

    if (line.len < 12 || line.at[8] != ' ')
        return broken(f, SIDE_ORIGIN, "malformed status line");
    why = parse_version((struct span){line.at, 8}, SIDE_ORIGIN, head, f);
    if (why != WHY_NONE)
        return why;
    if (s[0] < '1' || s[0] > '9' || s[1] < '0' || s[1] > '9' || s[2] < '0' ||
        s[2] > '9' || (line.len > 12 && s[3] != ' '))
        return broken(f, SIDE_ORIGIN, "malformed status");
    head->status = (s[0] - '0') * 100 + (s[1] - '0') * 10 + (s[2] - '0');
    head->reason = (struct span){s + 3, 0};
    if (line.len > 13)
        head->reason = (struct span){s + 4, line.len - 13};
    if (!is_field_value(span_trim(head->reason)))
        return broken(f, SIDE_ORIGIN, "malformed reason phrase");
    return WHY_NONE;
}

/* RFC 9112 section 5: name, colon, value.  Section 5.2 lets us refuse a folded
 * line, from a client and from an origin. */
static enum why
parse_field(struct span line, enum side from, struct head *head, struct fail *f)
{
    const char *colon = memchr(line.at, ':', line.len);
    struct span name, value;

    if (line.at[0] == ' ' || line.at[0] == '\t')
        return broken(f, from, "folded field line");
    if (colon == NULL)
        return broken(f, from, "field line without a colon");
    name = (struct span){line.at, (size_t)(colon - line.at)};
    value = span_trim((struct span){colon + 1, line.len - name.len - 1});
    if (!is_token(name))
        return broken(f, from,
                      span_trim(name).len < name.len
                          ? "space between field name and colon"
                          : "malformed field name");
    if (!is_field_value(value))
        return broken(f, from, "forbidden byte in a field value");
    if (!head_put(head, name, value))
        return fail_sys(f, SIDE_WEIR, "parse fields", ENOMEM);
    return WHY_NONE;
}

/* The lines up to the empty one. */
static enum why
parse_fields(const char *at, enum side from, const struct h1_limits *limits,
             struct head *head, struct fail *f)
{
    struct span line;
    enum why why;

    for (line = next_line(&at); line.len > 0; line = next_line(&at)) {
        if (head->n_fields == limits->n_fields)
            return fail_own(f, from, WHY_LIMIT, "number of fields");
        if ((why = parse_field(line, from, head, f)) != WHY_NONE)
            return why;
    }
    return WHY_NONE;
}

/* ---- what the fields mean ------------------------------------------------ */

enum kind { /* fields the codec acts upon */
            F_OTHER,
            F_CONNECTION,
            F_EXPECT,
            F_HOST,
            F_LENGTH,
            F_CODING,
            F_TE,
            F_TRAILER,
            F_UPGRADE,
};

static enum kind
field_kind(struct span name)
{
    switch (name.len) { /* most names end here */
    case 2:
        return span_isi(name, "TE") ? F_TE : F_OTHER;
    case 4:
        return span_isi(name, "Host") ? F_HOST : F_OTHER;
    case 6:
        return span_isi(name, "Expect") ? F_EXPECT : F_OTHER;
    case 7:
        return span_isi(name, "Upgrade")   ? F_UPGRADE
               : span_isi(name, "Trailer") ? F_TRAILER
                                           : F_OTHER;
    case 10:
        return span_isi(name, "Connection") ? F_CONNECTION : F_OTHER;
    case 14:
        return span_isi(name, "Content-Length") ? F_LENGTH : F_OTHER;
    case 17:
        return span_isi(name, "Transfer-Encoding") ? F_CODING : F_OTHER;
    default:
        return F_OTHER;
    }
}

struct facts { /* what the fields say about content and connection */
    int n_length, n_coding, n_upgrade, n_connection;
    struct span length;
    int n_chunked;     /* times the coding is listed */
    bool chunked_last; /* no coding behind it */
    bool other, bad;   /* another coding; no coding at all */
};

/* One Transfer-Encoding field.  Stricter than RFC 9110 section 5.6.1: an empty
 * element is no list of codings anybody writes by accident. */
static void
note_codings(struct facts *facts, struct span list)
{
    for (bool more = true; more;) {
        const char *comma =
            list.len > 0 ? memchr(list.at, ',', list.len) : NULL;
        size_t len = comma != NULL ? (size_t)(comma - list.at) : list.len;
        struct span item = span_trim((struct span){list.at, len});
        const char *semi = item.len > 0 ? memchr(item.at, ';', item.len) : NULL;
        struct span name = {item.at,
                            semi != NULL ? (size_t)(semi - item.at) : item.len};

        name = span_trim(name);
        facts->chunked_last = span_isi(name, "chunked");
        if (facts->chunked_last)
            facts->n_chunked++;
        else
            facts->other = true;
        /* RFC 9112 section 7.1: chunked has no parameters. */
        if (!is_token(name) || (facts->chunked_last && semi != NULL))
            facts->bad = true;
        more = comma != NULL;
        list.at += len + more;
        list.len -= len + more;
    }
}

/* RFC 9110 section 7.8.  We would not know what to do with HTTP/2 that begins
 * inside HTTP/1 (h2c, which RFC 9113 section 3.1 has given up). */
static struct span
without_h2c(struct head *head, struct span list)
{
    struct span rest = list, item, copy;
    size_t len = 0;

    if (!list_has(list, "h2c"))
        return list;
    copy = head_text(head, list.at, list.len);
    if (copy.at == NULL)
        return (struct span){"", 0};
    while (list_next(&rest, &item)) {
        char *to = (char *)copy.at + len; /* never ahead of where item was */

        if (span_isi(item, "h2c"))
            continue;
        memcpy(to, item.at, item.len);
        to[item.len] = ',';
        len += item.len + 1;
    }
    return (struct span){copy.at, len > 0 ? len - 1 : 0};
}

/* Collect the facts.  The options of a connection count in HTTP/1.1 alone. */
static struct facts
note_fields(struct head *head)
{
    struct facts facts = {0};

    head->upgrade = head->connection = (struct span){"", 0};
    for (size_t i = 0; i < head->n_fields; i++) {
        struct span value = head->fields[i].value;

        switch (field_kind(head->fields[i].name)) {
        case F_CONNECTION:
            facts.n_connection++;
            head->connection = value;
            break;
        case F_EXPECT:
            if (head->status == 0 && head->version == HTTP_11 &&
                span_isi(value, "100-continue"))
                head->expects_continue = true;
            break;
        case F_LENGTH:
            facts.n_length++;
            facts.length = value;
            break;
        case F_CODING:
            facts.n_coding++;
            note_codings(&facts, value);
            break;
        case F_TE:
            if (head->status == 0 && head->version == HTTP_11 &&
                list_has(value, "trailers"))
                head->te_trailers = true;
            break;
        case F_UPGRADE:
            facts.n_upgrade++;
            break;
        default:
            break;
        }
    }
    if (facts.n_connection > 1)
        head->connection = head_joined(head, "Connection");
    if (facts.n_upgrade > 0 && head->version == HTTP_11 &&
        list_has(head->connection, "upgrade"))
        head->upgrade = without_h2c(head, head_joined(head, "Upgrade"));
    return facts;
}

/* RFC 9112 section 6.1: chunked, alone and once, or nothing we understand. */
static enum why
judge_codings(const struct facts *facts, enum side from, struct head *head,
              struct fail *f)
{
    if (head->version == HTTP_10)
        return broken(f, from, "Transfer-Encoding in HTTP/1.0");
    if (facts->n_length > 0)
        return broken(f, from, "both Content-Length and Transfer-Encoding");
    if (facts->bad)
        return broken(f, from, "malformed Transfer-Encoding");
    if (facts->n_chunked > 1 || (facts->n_chunked > 0 && !facts->chunked_last))
        return broken(f, from, "chunked is not the last transfer coding");
    if (facts->other)
        return fail_own(f, from, WHY_UNKNOWN, "transfer coding");
    head->body = BODY_STREAM;
    return WHY_NONE;
}

/* RFC 9112 section 6.3 lets us take "5, 5" or two equal fields for one; no
 * sender needs that, and each hop that does it differently is a hole. */
static enum why
judge_length(const struct facts *facts, enum side from, struct head *head,
             struct fail *f)
{
    if (facts->n_length > 1)
        return broken(f, from, "more than one Content-Length");
    if (!span_number(facts->length, &head->length) || head->length > INT64_MAX)
        return broken(f, from, "malformed Content-Length");
    head->body = BODY_LENGTH;
    return WHY_NONE;
}

/* How the content is framed, so far as the head alone says it: for an answer
 * the request counts as well (answer_begin). */
static enum why
judge_framing(const struct facts *facts, enum side from, struct head *head,
              struct fail *f)
{
    int status = head->status;
    enum why why = WHY_NONE;

    head->body = status == 0 ? BODY_NONE : BODY_STREAM;
    if (facts->n_coding > 0)
        why = judge_codings(facts, from, head, f);
    else if (facts->n_length > 0)
        why = judge_length(facts, from, head, f);
    if (why != WHY_NONE)
        return why;
    /* RFC 9110 section 9.3.6: what follows a CONNECT belongs to the tunnel. */
    if (head->method_id == METHOD_CONNECT &&
        (head->body == BODY_STREAM || head->length > 0))
        return broken(f, from, "CONNECT with content");
    if (head->method_id == METHOD_CONNECT || (status >= 100 && status < 200) ||
        status == 204 || status == 304)
        head->body = BODY_NONE;
    return WHY_NONE;
}

/* A whole head: raw[0..end).  One copy of it, and spans into the copy.
 * to_connect: it answers a CONNECT. */
static enum why
parse_whole(const char *raw, size_t end, enum side from, bool to_connect,
            const struct h1_limits *limits, struct head *head, struct fail *f)
{
    const char *at = head_text(head, raw, end).at;
    struct facts facts;
    struct span line;
    enum why why;

    if (at == NULL)
        return fail_sys(f, SIDE_WEIR, "parse head", ENOMEM);
    line = next_line(&at);
    why = from == SIDE_CLIENT ? parse_request_line(line, head, f)
                              : parse_status_line(line, head, f);
    if (why != WHY_NONE)
        return why;
    if ((why = parse_fields(at, from, limits, head, f)) != WHY_NONE)
        return why;
    facts = note_fields(head);
    if (to_connect && head->status / 100 == 2) {
        head->body =
            BODY_NONE; /* RFC 9110 section 9.3.6: lengths are ignored */
        return WHY_NONE;
    }
    return judge_framing(&facts, from, head, f);
}

/* h1_parse_head() for bytes of which *scanned were looked at before, and no
 * empty line in front. */
static enum why
parse_head(const char *raw, size_t len, enum side from, bool to_connect,
           const struct h1_limits *limits, size_t *scanned, struct head *head,
           size_t *used, struct fail *f)
{
    size_t end = 0, least;
    enum why why = len > 0 ? section_end(raw, len, scanned, &end) : WHY_MORE;

    least = why == WHY_NONE ? end : len + (why == WHY_MORE);
    if (why == WHY_MORE && least <= limits->head_bytes &&
        !(from == SIDE_CLIENT && target_over(raw, len, limits)))
        return WHY_MORE;
    head_reset(head);
    head->version = HTTP_11; /* until we know: of whoever gets a refusal */
    if (from == SIDE_CLIENT && target_over(raw, len, limits))
        return fail_own(f, from, WHY_URI, "request target");
    if (least > limits->head_bytes)
        return fail_own(f, from, WHY_LIMIT, "size of a head");
    if (why == WHY_PROTO)
        return broken(f, from, "CR or LF alone in a head");
    *used = end;
    return parse_whole(raw, end, from, to_connect, limits, head, f);
}

/*
 * h1_parse_head - a request's head, or an answer's.
 *
 * raw   what has come so far; one empty line before a request is passed over
 * from  SIDE_CLIENT: a request; SIDE_ORIGIN: an answer
 * head  reset first, untouched on WHY_MORE.  After a refusal it holds what was
 *       understood before: method and target, if they were well-formed.
 *       The body of an answer is judged without knowing the request.
 * used  bytes of raw that the head took; written only on WHY_NONE
 *
 * Returns WHY_NONE, WHY_MORE, or what it noted: WHY_PROTO, WHY_LIMIT, WHY_URI,
 * WHY_VERSION, WHY_UNKNOWN, WHY_SYS (no memory).
 * Pure: waits for nothing.  Source: RFC 9112 sections 2 to 6.
 */
enum why
h1_parse_head(const char *raw, size_t len, enum side from,
              const struct h1_limits *limits, struct head *head, size_t *used,
              struct fail *f)
{
    size_t blank = blank_line(raw, len, from), scanned = 0;
    enum why why = parse_head(raw + blank, len - blank, from, false, limits,
                              &scanned, head, used, f);

    if (why == WHY_NONE)
        *used += blank;
    return why;
}

/* ---- chunks -------------------------------------------------------------- */

enum {
    CHUNK_SIZE, /* before the first digit */
    CHUNK_DIGITS,
    CHUNK_SPACE, /* behind the digits: an extension must follow */
    CHUNK_EXT,
    CHUNK_LF, /* of the size line */
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    CHUNK_LAST, /* the last chunk was read: trailers follow */
};

/* The size line is complete.  Extensions are dropped, so a sender could let us
 * read for ever and pass nothing on: lines may outweigh data only so far. */
static enum why
chunk_begin(struct h1_chunks *c, struct fail *f)
{
    uint64_t fair = 16 + (c->left < 65536 ? 2 * c->left : 131072);

    c->excess += c->n_line;
    c->excess -= c->excess < fair ? c->excess : fair;
    if (c->excess > CHUNK_EXCESS)
        return fail_own(f, SIDE_WEIR, WHY_LIMIT, "chunk extensions");
    c->n_line = 0;
    c->state = c->left > 0 ? CHUNK_DATA : CHUNK_LAST;
    return WHY_NONE;
}

/* One more byte of a size line (RFC 9112 sections 7.1 and 7.1.1). */
static enum why
chunk_line_byte(struct h1_chunks *c, char byte, struct fail *f)
{
    int digit = hex_digit(byte);

    if (++c->n_line > CHUNK_LINE)
        return fail_own(f, SIDE_WEIR, WHY_LIMIT, "chunk size line");
    if (c->state == CHUNK_LF)
        return byte == '\n' ? chunk_begin(c, f)
                            : broken(f, SIDE_WEIR, "CR alone in a chunk size");
    if (c->state <= CHUNK_DIGITS && digit >= 0) {
        if (c->n_line > 16 || c->left > (INT64_MAX >> 4))
            return broken(f, SIDE_WEIR, "chunk size too large");
        c->left = c->left << 4 | (uint64_t)digit;
        c->state = CHUNK_DIGITS;
        return WHY_NONE;
    }
    if (c->state == CHUNK_SIZE)
        return broken(f, SIDE_WEIR, "malformed chunk size");
    if (byte == '\r' && c->state != CHUNK_SPACE)
        c->state = CHUNK_LF;
    else if (byte == ';')
        c->state = CHUNK_EXT;
    else if (c->state != CHUNK_EXT && (byte == ' ' || byte == '\t'))
        c->state = CHUNK_SPACE;
    else if (c->state != CHUNK_EXT ||
             ((unsigned char)byte < ' ' && byte != '\t') || byte == 0x7f)
        return broken(f, SIDE_WEIR, "malformed chunk size");
    return WHY_NONE;
}

/*
 * h1_parse_chunks - the next piece of data in chunked content.
 *
 * c     all zero before the first byte; what is known between calls
 * used  bytes of raw done with, on every answer; they need not come again
 * data  in raw, not empty; written only on WHY_NONE
 * f     its side is left to the caller, who knows whose bytes they are
 *
 * Returns WHY_NONE; WHY_MORE: all of raw is used, no data; WHY_EOF: the last
 * chunk was read, the trailer section begins at raw + *used; or what it noted,
 * WHY_PROTO or WHY_LIMIT.  Pure.  Source: RFC 9112 section 7.1.
 */
enum why
h1_parse_chunks(struct h1_chunks *c, const char *raw, size_t len, size_t *used,
                struct span *data, struct fail *f)
{
    enum why why = WHY_NONE;
    size_t at = 0;

    while (why == WHY_NONE && c->state != CHUNK_LAST && at < len) {
        if (c->state == CHUNK_DATA) {
            size_t n = len - at < c->left ? len - at : (size_t)c->left;

            *data = (struct span){raw + at, n};
            *used = at + n;
            if ((c->left -= n) == 0)
                c->state = CHUNK_DATA_CR;
            return WHY_NONE;
        }
        if (c->state < CHUNK_DATA)
            why = chunk_line_byte(c, raw[at], f);
        else if (raw[at] != (c->state == CHUNK_DATA_CR ? '\r' : '\n'))
            why = broken(f, SIDE_WEIR, "no CRLF behind a chunk");
        else
            c->state = c->state == CHUNK_DATA_CR ? CHUNK_DATA_LF : CHUNK_SIZE;
        at++;
    }
    *used = at;
    if (why != WHY_NONE)
        return why;
    return c->state == CHUNK_LAST ? WHY_EOF : WHY_MORE;
}

/* ---- WebSocket across versions ------------------------------------------- */

/* HTTP/1 proves by a key that a server knows WebSocket (RFC 6455 section 4);
 * HTTP/2 and 3 do not (RFC 8441 section 5).  Where they meet, the HTTP/1 side
 * gets its key, or its answer, from here. */
enum { WS_KEY = 16, WS_ACCEPT = 20 /* bytes: a nonce, and a SHA-1 */ };

static bool
base64(const void *raw, size_t len, char out[32])
{
    gnutls_datum_t from = {(unsigned char *)raw, (unsigned)len}, text;
    bool fits;

    if (gnutls_base64_encode2(&from, &text) < 0)
        return false;
    if ((fits = text.size < 32)) {
        memcpy(out, text.data, text.size);
        out[text.size] = '\0';
    }
    gnutls_free(text.data);
    return fits;
}

/* What a server answers to a key: RFC 6455 section 4.2.2, step 5.4. */
static bool
ws_accept(const char *key, char out[32])
{
    char text[96];
    unsigned char sum[WS_ACCEPT];
    int n = snprintf(text, sizeof text,
                     "%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);

    return gnutls_hash_fast(GNUTLS_DIG_SHA1, text, (size_t)n, sum) == 0 &&
           base64(sum, sizeof sum, out);
}

static bool
is_websocket(const struct head *head)
{
    return head->upgrade.len > 0 && list_has(head->upgrade, "websocket");
}

/* Server role: remember the key, should the origin have no use for it. */
static void
ws_note_key(struct h1 *h, const struct head *head)
{
    const struct field *key =
        is_websocket(head) ? head_find(head, "Sec-WebSocket-Key", NULL) : NULL;

    h->ws_key[0] = '\0';
    if (key != NULL && key->value.len < sizeof h->ws_key) {
        memcpy(h->ws_key, key->value.at, key->value.len);
        h->ws_key[key->value.len] = '\0';
    }
}

/* Client role: a key of our own for a client whose version has none. */
static bool
ws_make_key(struct h1 *h, const struct head *head)
{
    unsigned char nonce[WS_KEY];

    h->ws_ours = false;
    if (head->version < HTTP_2 || !is_websocket(head) ||
        head_find(head, "Sec-WebSocket-Key", NULL) != NULL)
        return true;
    h->ws_ours = true;
    return gnutls_rnd(GNUTLS_RND_NONCE, nonce, sizeof nonce) == 0 &&
           base64(nonce, sizeof nonce, h->ws_key);
}

/* Client role: is this 101 the answer to our own key? */
static bool
ws_accepted(const struct h1 *h, const struct head *head)
{
    const struct field *got = head_find(head, "Sec-WebSocket-Accept", NULL);
    char want[32];

    return !h->ws_ours || (got != NULL && ws_accept(h->ws_key, want) &&
                           span_is(got->value, want));
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

static void
content_begin(struct h1 *h, enum h1_state state, uint64_t left)
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
    content_begin(h,
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
        content_begin(h, H1_HEAD, 0); /* another head follows */
        return WHY_NONE;
    }
    h->peer_last = !is_persistent(head);
    if (head->status == 101 || tunnel)
        head->body = BODY_RAW;
    else if (h->method_id == METHOD_HEAD)
        head->body = BODY_NONE;
    if (head->body == BODY_RAW) {
        content_begin(h, H1_RAW, 0);
    } else if (head->body == BODY_NONE) {
        content_begin(h, H1_DONE, 0);
    } else if (head->body == BODY_LENGTH) {
        content_begin(h, H1_FIXED, head->length);
    } else if (head_find(head, "Transfer-Encoding", NULL) != NULL) {
        content_begin(h, H1_CHUNKED, 0);
    } else {
        content_begin(h, H1_CLOSE, 0);
        h->peer_last = true;
    }
    return WHY_NONE;
}

/* Nothing that follows can be trusted.  A refusal may still be written. */
static void
head_refused(struct h1 *h, const struct head *head)
{
    content_begin(h, H1_DONE, 0);
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
        blank_line(ahead.at, ahead.len, h->http.side) > 0) {
        end_consume(h->end, 2);
        ahead = end_ahead(h->end);
        h->blank = true;
        h->head_from = 0;
    }
    why = parse_head(ahead.at, ahead.len, h->http.side,
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
                       ? section_end(ahead.at, ahead.len, &h->scanned, &end)
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
        why = parse_fields(at, h->end->side, &h->limits, h->tail, f);
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
        why = section_end(ahead.at + used, ahead.len - used, &scanned, &end);
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
           section_end(ahead.at, ahead.len, &scanned, &end) != WHY_MORE;
}

static bool
h1_complete(struct http *http)
{
    return ((struct h1 *)http)->rd == H1_DONE;
}

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
        enum kind kind = field_kind(field->name);

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
    content_begin(h, H1_HEAD, 0);
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
static enum why
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
        return broken(f, SIDE_WEIR, "more content than the head promised");
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
static enum why
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
static enum why
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

static enum why
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
