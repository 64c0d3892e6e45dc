/*
 * h1parse.c - HTTP/1 messages out of bytes: heads, trailer sections, chunks.
 *
 * A head is parsed when all of it is there, from one copy in its arena.  What
 * two readers could understand in two ways is refused, never repaired: that is
 * how requests are smuggled past a proxy.
 *
 * Follows  RFC 9112 sections 2 to 7; RFC 9110 section 5.
 * Owns     nothing.
 * Threads  any.
 * Blocks   never: it waits for nothing.
 */
#include <errno.h>
#include <string.h>

#include "proxy.h"

enum {
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
 * h1_section_end - find the empty line behind a head or a trailer section.
 *
 * scanned  bytes looked at before; kept up to date, so that a section which
 *          comes byte by byte is not looked at again and again
 * end      bytes up to and with the empty line; written only on WHY_NONE
 *
 * Returns WHY_NONE, WHY_MORE, or WHY_PROTO: a CR or LF that ends no line (RFC
 * 9112 section 2.2), seen at once, or its sender would wait for the deadline.
 * Pure.
 */
enum why
h1_section_end(const char *raw, size_t len, size_t *scanned, size_t *end)
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
size_t
h1_blank_line(const char *raw, size_t len, enum side from)
{
    return from == SIDE_CLIENT && len >= 2 && raw[0] == '\r' && raw[1] == '\n'
               ? 2
               : 0;
}

/* ---- a head's lines ------------------------------------------------------ */

/* The line at *at without its CRLF, which h1_section_end() has made sure of. */
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
enum why
h1_parse_fields(const char *at, enum side from, const struct h1_limits *limits,
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

enum h1_field
h1_field_of(struct span name)
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

        switch (h1_field_of(head->fields[i].name)) {
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
    if ((why = h1_parse_fields(at, from, limits, head, f)) != WHY_NONE)
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
enum why
h1_parse_more(const char *raw, size_t len, enum side from, bool to_connect,
              const struct h1_limits *limits, size_t *scanned,
              struct head *head, size_t *used, struct fail *f)
{
    size_t end = 0, least;
    enum why why = len > 0 ? h1_section_end(raw, len, scanned, &end) : WHY_MORE;

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
    size_t blank = h1_blank_line(raw, len, from), scanned = 0;
    enum why why = h1_parse_more(raw + blank, len - blank, from, false, limits,
                                 &scanned, head, used, f);

    if (why == WHY_NONE)
        *used += blank;
    return why;
}

/* ---- chunks -------------------------------------------------------------- */

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
