/*
 * http.c - what all HTTP versions share: heads, fields, lists.
 *
 * A head keeps its text in an arena and its fields in one array, and both are
 * kept from one message of a connection to the next, so that a warm connection
 * allocates nothing.
 *
 * Follows  RFC 9110 (semantics).
 * Owns     nothing; a head belongs to whoever initialised it.
 * Threads  any; one at a time for a head.
 * Blocks   never.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "proxy.h"

enum {
    FIRST = 1024, /* bytes of an arena's first block, its header included, */
    BLOCK = 4096, /* and of the others: most heads of HTTP/2 need no other */
    FIELDS = 24,  /* that a head has room for at first */
};

struct arena { /* a block; older ones stay where they are */
    struct arena *older;
    size_t len, cap;
    char at[];
};

#define N_OF(array) (sizeof(array) / sizeof((array)[0]))

/* ---- characters ---------------------------------------------------------- */

enum { TOKEN = 1, VALUE = 2, NAME = 4 };

/* NAME is what a host name may be made of.  RFC 3986 section 3.2.2 has more;
 * no DNS name needs them, and "," or "%" in a Host has only confused proxies.
 * Deviation: such names are refused. */
static const unsigned char kind[256] = {
    ['\t'] = VALUE,
    [' '] = VALUE,
    ['!'] = TOKEN | VALUE,
    ['"'] = VALUE,
    ['#' ... '\''] = TOKEN | VALUE,
    ['('] = VALUE,
    [')'] = VALUE,
    ['*'] = TOKEN | VALUE,
    ['+'] = TOKEN | VALUE,
    [','] = VALUE,
    ['-'] = TOKEN | VALUE | NAME,
    ['.'] = TOKEN | VALUE | NAME,
    ['/'] = VALUE,
    ['0' ... '9'] = TOKEN | VALUE | NAME,
    [':' ... '@'] = VALUE,
    ['A' ... 'Z'] = TOKEN | VALUE | NAME,
    ['['] = VALUE,
    ['\\'] = VALUE,
    [']'] = VALUE,
    ['^'] = TOKEN | VALUE,
    ['_'] = TOKEN | VALUE | NAME,
    ['`'] = TOKEN | VALUE,
    ['a' ... 'z'] = TOKEN | VALUE | NAME,
    ['{'] = VALUE,
    ['|'] = TOKEN | VALUE,
    ['}'] = VALUE,
    ['~'] = TOKEN | VALUE | NAME,
    [0x80 ... 0xff] = VALUE, /* obs-text */
};

static bool
all_of(struct span s, unsigned char want)
{
    unsigned char both = want;

    for (size_t i = 0; i < s.len; i++)
        both &= kind[(unsigned char)s.at[i]];
    return both == want;
}

static bool
is_blank(char c)
{
    return c == ' ' || c == '\t';
}

/* No locale has a say in it. */
unsigned char
ascii_lower(char c)
{
    return (unsigned char)(c >= 'A' && c <= 'Z' ? c | 0x20 : c);
}

/* ---- spans --------------------------------------------------------------- */

static bool
same_case_or_not(struct span a, struct span b)
{
    if (a.len != b.len)
        return false;
    for (size_t i = 0; i < a.len; i++)
        if (a.at[i] != b.at[i] && ascii_lower(a.at[i]) != ascii_lower(b.at[i]))
            return false;
    return true;
}

/* A literal, or other text with a NUL that lives long enough, as a span. */
struct span
span_of(const char *text)
{
    return (struct span){text, strlen(text)};
}

/* The same bytes? */
bool
span_is(struct span s, const char *text)
{
    size_t len = strlen(text);

    return s.len == len && (len == 0 || memcmp(s.at, text, len) == 0);
}

/* The same but for the case of ASCII letters? */
bool
span_isi(struct span s, const char *text)
{
    return same_case_or_not(s, span_of(text));
}

static bool
one_of(struct span s, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (span_isi(s, names[i]))
            return true;
    return false;
}

/* Without the spaces and tabs (OWS, RFC 9110 section 5.6.3) around it. */
struct span
span_trim(struct span s)
{
    while (s.len > 0 && is_blank(s.at[0])) {
        s.at++;
        s.len--;
    }
    while (s.len > 0 && is_blank(s.at[s.len - 1]))
        s.len--;
    return s;
}

/* 1*DIGIT into *n; false, and *n as it was: anything else, or over 64 bits. */
bool
span_number(struct span s, uint64_t *n)
{
    uint64_t sum = 0;

    if (s.len == 0)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        unsigned digit = (unsigned char)s.at[i] - (unsigned)'0';

        if (digit > 9 || __builtin_mul_overflow(sum, 10, &sum) ||
            __builtin_add_overflow(sum, digit, &sum))
            return false;
    }
    *n = sum;
    return true;
}

/* ---- arena --------------------------------------------------------------- */

/* Room for len bytes that never move; NULL: out of memory. */
static char *
arena_take(struct arena **arena, size_t len)
{
    struct arena *a = *arena;
    char *at;

    if (a == NULL || a->cap - a->len < len) {
        size_t cap = (a == NULL ? FIRST : BLOCK) - sizeof *a;

        if (cap < len)
            cap = BLOCK - sizeof *a > len ? BLOCK - sizeof *a : len;
        if ((a = malloc(sizeof *a + cap)) == NULL)
            return NULL;
        *a = (struct arena){.older = *arena, .cap = cap};
        *arena = a;
    }
    at = a->at + a->len;
    a->len += len;
    return at;
}

/* Empty; `keep` the largest block, unless somebody's huge head made it. */
static struct arena *
arena_drop(struct arena *a, bool keep)
{
    struct arena *kept = NULL, *older;

    for (; a != NULL; a = older) {
        struct arena *out = a;

        older = a->older;
        if (keep && a->cap <= BLOCK - sizeof *a &&
            (kept == NULL || a->cap > kept->cap)) {
            out = kept;
            kept = a;
        }
        free(out);
    }
    if (kept != NULL) {
        kept->len = 0;
        kept->older = NULL;
    }
    return kept;
}

/* ---- heads --------------------------------------------------------------- */

/* An empty head that owns nothing yet; head_clear() before it is forgotten. */
void
head_init(struct head *head)
{
    *head = (struct head){0};
}

/* Empty again, for the next message; spans into it are dead. */
void
head_reset(struct head *head)
{
    struct head empty = {.arena = arena_drop(head->arena, true),
                         .fields = head->fields,
                         .cap_fields = head->cap_fields};

    *head = empty;
}

/* Give everything back; the head is as after head_init(). */
void
head_clear(struct head *head)
{
    arena_drop(head->arena, false);
    free(head->fields);
    *head = (struct head){0};
}

/*
 * head_text - a copy of text[0..len) that lives as long as the head's message.
 *
 * Returns it; its `at` is NULL when there is no memory, never otherwise.
 */
struct span
head_text(struct head *head, const char *text, size_t len)
{
    char *at = arena_take(&head->arena, len);

    if (at == NULL)
        return (struct span){NULL, 0};
    if (len > 0)
        memcpy(at, text, len);
    return (struct span){at, len};
}

/* One more field, last, whose text lives as long as the head: a codec's, which
 * has checked it.  false: out of memory. */
bool
head_put(struct head *head, struct span name, struct span value)
{
    if (head->n_fields == head->cap_fields) {
        size_t cap = head->cap_fields > 0 ? head->cap_fields * 2 : FIELDS;
        struct field *fields = realloc(head->fields, cap * sizeof *fields);

        if (fields == NULL)
            return false;
        head->fields = fields;
        head->cap_fields = cap;
    }
    head->fields[head->n_fields++] = (struct field){name, value, false};
    return true;
}

/*
 * head_add - one more field, last; both texts are copied.
 *
 * Returns false, with nothing added, when the field would break the grammar
 * (a line end in a value would be a second field) or there is no memory.
 */
bool
head_add(struct head *head, struct span name, struct span value)
{
    if (!is_token(name) || !is_field_value(value))
        return false;
    name = head_text(head, name.at, name.len);
    value = head_text(head, value.at, value.len);
    return name.at != NULL && value.at != NULL && head_put(head, name, value);
}

/* The next field of that name (no case) behind `after`; NULL: none. */
const struct field *
head_find(const struct head *head, const char *name, const struct field *after)
{
    struct span want = span_of(name);
    size_t i = after != NULL ? (size_t)(after - head->fields) + 1 : 0;

    for (; i < head->n_fields; i++)
        if (same_case_or_not(head->fields[i].name, want))
            return &head->fields[i];
    return NULL;
}

/* Take out all fields of that name (no case).  Those behind move. */
void
head_remove(struct head *head, const char *name)
{
    struct span without = span_of(name);
    size_t n = 0;

    for (size_t i = 0; i < head->n_fields; i++)
        if (!same_case_or_not(head->fields[i].name, without))
            head->fields[n++] = head->fields[i];
    head->n_fields = n;
}

/*
 * head_joined - all fields of that name as one comma list (RFC 9110 section
 * 5.3), copied only if there are several.
 *
 * Returns an empty span if there is none, or no memory for the copy.
 */
struct span
head_joined(struct head *head, const char *name)
{
    const struct field *first = head_find(head, name, NULL), *field;
    size_t len = 0;
    char *at, *to;

    if (first == NULL)
        return (struct span){"", 0};
    if (head_find(head, name, first) == NULL)
        return first->value;
    for (field = first; field != NULL; field = head_find(head, name, field))
        len += field->value.len + 2;
    if ((at = to = arena_take(&head->arena, len)) == NULL)
        return (struct span){"", 0};
    for (field = first; field != NULL; field = head_find(head, name, field)) {
        memcpy(to, field->value.at, field->value.len);
        to += field->value.len;
        *to++ = ',';
        *to++ = ' ';
    }
    return (struct span){at, len - 2};
}

/* ---- lists --------------------------------------------------------------- */

/*
 * list_next - the next element of a comma list (RFC 9110 section 5.6.1).
 *
 * rest  what is left of the list; shortened
 * item  trimmed, never empty: empty elements are passed over
 *
 * For lists of tokens: a comma inside a quoted string is a comma here.
 */
bool
list_next(struct span *rest, struct span *item)
{
    while (rest->len > 0) {
        const char *comma = memchr(rest->at, ',', rest->len);
        size_t len = comma != NULL ? (size_t)(comma - rest->at) : rest->len;
        size_t step = len + (comma != NULL);

        *item = span_trim((struct span){rest->at, len});
        rest->at += step;
        rest->len -= step;
        if (item->len > 0)
            return true;
    }
    return false;
}

static bool
list_has_span(struct span list, struct span token)
{
    struct span item;

    while (list_next(&list, &item))
        if (same_case_or_not(item, token))
            return true;
    return false;
}

/* Is the token, whatever its case, an element of the list? */
bool
list_has(struct span list, const char *token)
{
    return list_has_span(list, span_of(token));
}

/* ---- grammar and semantics of fields, methods, statuses ------------------ */

/* The value of a hexadecimal digit, -1: it is none. */
int
hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Is it made of what a host name may be made of? */
bool
is_name(struct span s)
{
    return s.len > 0 && all_of(s, NAME);
}

/* RFC 9110 section 5.6.2. */
bool
is_token(struct span s)
{
    return s.len > 0 && all_of(s, TOKEN);
}

/* RFC 9110 section 5.5: no control bytes, no space at either end. */
bool
is_field_value(struct span s)
{
    return s.len == 0 || (all_of(s, VALUE) && !is_blank(s.at[0]) &&
                          !is_blank(s.at[s.len - 1]));
}

/* Methods are case-sensitive (RFC 9110 section 9.1). */
enum method
method_of(struct span s)
{
    static const char *const names[] = {
        [METHOD_GET] = "GET",         [METHOD_HEAD] = "HEAD",
        [METHOD_POST] = "POST",       [METHOD_PUT] = "PUT",
        [METHOD_DELETE] = "DELETE",   [METHOD_CONNECT] = "CONNECT",
        [METHOD_OPTIONS] = "OPTIONS", [METHOD_TRACE] = "TRACE",
        [METHOD_PATCH] = "PATCH",
    };

    for (size_t i = METHOD_GET; i < N_OF(names); i++)
        if (span_is(s, names[i]))
            return (enum method)i;
    return METHOD_OTHER;
}

/* May it be sent a second time when nobody knows what became of the first?
 * RFC 9110 section 9.2.2. */
bool
method_idempotent(enum method m)
{
    return m == METHOD_GET || m == METHOD_HEAD || m == METHOD_PUT ||
           m == METHOD_DELETE || m == METHOD_OPTIONS || m == METHOD_TRACE;
}

/* Every field of every message is asked for this: most go by their length. */
static bool
is_hop_name(struct span name)
{
    switch (name.len) {
    case 2:
        return span_isi(name, "TE");
    case 7:
        return span_isi(name, "Upgrade");
    case 10:
        return span_isi(name, "Connection") || span_isi(name, "Keep-Alive");
    case 14:
        return span_isi(name, "HTTP2-Settings");
    case 16:
        return span_isi(name, "Proxy-Connection");
    case 17:
        return span_isi(name, "Transfer-Encoding");
    case 18:
        return span_isi(name, "Proxy-Authenticate");
    case 19:
        return span_isi(name, "Proxy-Authorization");
    case 25:
        return span_isi(name, "Proxy-Authentication-Info");
    default:
        return false;
    }
}

/*
 * field_is_hop - is the field for the next hop alone?
 *
 * head  its `connection` names further ones
 *
 * Proxy-Authorization is for us, and Proxy-Authenticate of an origin would ask
 * the client for what it gives to us.  HTTP2-Settings belongs to h2c, which we
 * do not switch to.  A sender cannot take away by Connection what keeps the
 * message whole or finds loops, whatever it names (RFC 9110 section 7.6.1
 * forbids to name them).
 */
bool
field_is_hop(const struct head *head, struct span name)
{
    static const char *const kept[] = {
        "Host",          "Via",           "Content-Length",
        "Content-Type",  "Content-Range", "Content-Encoding",
        "Cache-Control", "Max-Forwards",  "Date",
    };

    if (is_hop_name(name)) /* what we want to hear from a client ourselves */
        return !(head->own && span_isi(name, "Proxy-Authenticate"));
    return head->connection.len > 0 && list_has_span(head->connection, name) &&
           !one_of(name, kept, N_OF(kept));
}

/* May the field be in a trailer section?  RFC 9110 section 6.5.1: not what
 * frames, routes, controls or authenticates a message, nor what one must know
 * to read its content. */
bool
field_ok_in_trailer(struct span name)
{
    static const char *const barred[] = {
        "Age",
        "Alt-Svc", /* it would route what comes later */
        "Authorization",
        "Cache-Control",
        "Content-Encoding",
        "Content-Length",
        "Content-Range",
        "Content-Type",
        "Cookie",
        "Date",
        "Expect",
        "Expires",
        "Host",
        "If-Match",
        "If-Modified-Since",
        "If-None-Match",
        "If-Range",
        "If-Unmodified-Since",
        "Location",
        "Max-Forwards",
        "Pragma",
        "Proxy-Status",
        "Range",
        "Retry-After",
        "Set-Cookie",
        "Trailer",
        "Vary",
        "Via",
        "WWW-Authenticate",
        "Warning",
    };

    return !is_hop_name(name) && !one_of(name, barred, N_OF(barred));
}

/* The reason phrase of RFC 9110 section 15 and friends; "": we know none. */
const char *
status_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {
        {100, "Continue"},
        {101, "Switching Protocols"},
        {103, "Early Hints"},
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {206, "Partial Content"},
        {301, "Moved Permanently"},
        {302, "Found"},
        {303, "See Other"},
        {304, "Not Modified"},
        {307, "Temporary Redirect"},
        {308, "Permanent Redirect"},
        {400, "Bad Request"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {407, "Proxy Authentication Required"},
        {408, "Request Timeout"},
        {411, "Length Required"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {417, "Expectation Failed"},
        {421, "Misdirected Request"},
        {426, "Upgrade Required"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
        {508, "Loop Detected"},
    };

    for (size_t i = 0; i < N_OF(reasons); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "";
}

/* For the log. */
const char *
version_name(enum version v)
{
    static const char *const names[] = {[HTTP_10] = "http/1.0",
                                        [HTTP_11] = "http/1.1",
                                        [HTTP_2] = "http/2",
                                        [HTTP_3] = "http/3"};

    return names[v];
}

/* RFC 9110 section 7.6.3: our own pseudonym in Via means a loop. */
bool
head_came_by(const struct head *req, const char *via)
{
    const struct field *f = NULL;

    while ((f = head_find(req, "Via", f)) != NULL) {
        struct span rest = f->value, item;

        while (list_next(&rest, &item)) {
            const char *space = memchr(item.at, ' ', item.len);
            size_t n = space != NULL ? (size_t)(space - item.at) + 1 : 0;
            struct span by = {item.at + n, item.len - n};
            const char *end = memchr(by.at, ' ', by.len);

            if (end != NULL) /* a comment follows */
                by.len = (size_t)(end - by.at);
            if (space != NULL && span_isi(by, via))
                return true;
        }
    }
    return false;
}
