/*
 * http.c - what all HTTP versions share: heads, fields, lists, targets.
 *
 * A head keeps its text in an arena and its fields in one array, and both are
 * kept from one message of a connection to the next, so that a warm connection
 * allocates nothing.
 *
 * Follows  RFC 9110 (semantics), RFC 9112 section 3.2 (request targets).
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

static unsigned char
lower(char c)
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
        if (a.at[i] != b.at[i] && lower(a.at[i]) != lower(b.at[i]))
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

/* ---- authorities --------------------------------------------------------- */

/* What follows a host: nothing, ":" or ":" and a port; 0: none given. */
static bool
port_parse(struct span rest, uint16_t *port)
{
    uint64_t n = 0;

    if (rest.len > 0 && rest.at[0] != ':')
        return false;
    if (rest.len > 1 &&
        (!span_number((struct span){rest.at + 1, rest.len - 1}, &n) || n == 0 ||
         n > UINT16_MAX))
        return false;
    *port = (uint16_t)n;
    return true;
}

/* A host name in lower case and without the dot of the root, which TLS does
 * not know (RFC 6066 section 3). */
static bool
name_parse(struct span s, char host[HOST_MAX + 1])
{
    char before = '.';

    if (s.len > 1 && s.at[s.len - 1] == '.')
        s.len--;
    if (s.len == 0 || s.len > HOST_MAX || !all_of(s, NAME) ||
        s.at[s.len - 1] == '.')
        return false;
    for (size_t i = 0; i < s.len; before = s.at[i++]) {
        if (s.at[i] == '.' && before == '.')
            return false; /* an empty label */
        host[i] = (char)lower(s.at[i]);
    }
    host[s.len] = '\0';
    return true;
}

/* An IPv6 address, in the one spelling of RFC 5952. */
static bool
address_parse(struct span s, char host[HOST_MAX + 1])
{
    char text[INET6_ADDRSTRLEN];
    struct in6_addr addr;

    if (s.len == 0 || s.len >= sizeof text)
        return false;
    memcpy(text, s.at, s.len);
    text[s.len] = '\0';
    return inet_pton(AF_INET6, text, &addr) == 1 &&
           inet_ntop(AF_INET6, &addr, host, HOST_MAX + 1) != NULL;
}

/*
 * authority_parse - split host[:port] (RFC 3986 section 3.2).
 *
 * host  lower case, no brackets, never empty; the spelling that a cache or a
 *       certificate is searched by
 * port  0: none given ("host" or "host:")
 *
 * Returns false for anything else: user information, an empty host or label,
 * bytes no DNS name has, port 0 or above 65535, an IPv6 zone.
 */
bool
authority_parse(struct span text, char host[HOST_MAX + 1], uint16_t *port)
{
    bool brackets = text.len > 0 && text.at[0] == '[';
    const char *stop =
        text.len == 0 ? NULL : memchr(text.at, brackets ? ']' : ':', text.len);
    size_t len = stop != NULL ? (size_t)(stop - text.at) : text.len;
    struct span rest = {text.at + len, text.len - len};

    if (!brackets)
        return name_parse((struct span){text.at, len}, host) &&
               port_parse(rest, port);
    if (stop == NULL)
        return false;
    rest.at++;
    rest.len--;
    return address_parse((struct span){text.at + 1, len - 1}, host) &&
           port_parse(rest, port);
}

/* Is it an address, not a name? */
bool
host_is_address(const char *host)
{
    struct in6_addr addr;

    return inet_pton(AF_INET, host, &addr) == 1 ||
           inet_pton(AF_INET6, host, &addr) == 1;
}

/* host[:port] as it belongs into a Host field; no port if it is the scheme's.
 */
void
origin_authority(const struct origin *origin, char *out, size_t cap)
{
    bool brackets = strchr(origin->host, ':') != NULL;
    int n = snprintf(out, cap, brackets ? "[%s]" : "%s", origin->host);

    if (origin->port != (origin->tls ? 443 : 80) && n > 0 && (size_t)n < cap)
        snprintf(out + n, cap - (size_t)n, ":%u", origin->port);
}

/* The value of a hexadecimal digit, -1: it is none. */
int
hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* ---- who is meant: ourselves? -------------------------------------------- */

/* As 16 bytes, an IPv4 address mapped into IPv6. */
static bool
address_bytes(const char *host, struct in6_addr *out)
{
    struct in_addr v4;

    if (inet_pton(AF_INET, host, &v4) != 1)
        return inet_pton(AF_INET6, host, out) == 1;
    *out = (struct in6_addr){.s6_addr = {[10] = 0xff, [11] = 0xff}};
    memcpy(&out->s6_addr[12], &v4, sizeof v4);
    return true;
}

/* An address of this machine that needs no look at its interfaces: loopback,
 * or "any", which connects to loopback. */
static bool
address_is_local(const struct in6_addr *a)
{
    if (IN6_IS_ADDR_V4MAPPED(a))
        return a->s6_addr[12] == 127 ||
               memcmp(&a->s6_addr[12], "\0\0\0", 4) == 0;
    return IN6_IS_ADDR_LOOPBACK(a) || IN6_IS_ADDR_UNSPECIFIED(a);
}

static bool
address_is_bound(const struct config *conf, const struct in6_addr *want)
{
    for (size_t i = 0; i < conf->n_listen; i++) {
        const struct sockaddr_storage *at = &conf->listen[i].addr;
        char text[INET6_ADDRSTRLEN];
        struct in6_addr bound;
        const void *raw =
            at->ss_family == AF_INET6
                ? (const void *)&((const struct sockaddr_in6 *)at)->sin6_addr
                : &((const struct sockaddr_in *)at)->sin_addr;

        if (inet_ntop(at->ss_family, raw, text, sizeof text) != NULL &&
            address_bytes(text, &bound) &&
            memcmp(&bound, want, sizeof bound) == 0)
            return true;
    }
    return false;
}

/* A name of this machine's loopback, or one that proxy.ini says is ours? */
bool
name_is_local(const struct config *conf, const char *host)
{
    size_t len = strlen(host);

    /* RFC 6761 section 6.3 gives all of .localhost to loopback. */
    if (strcmp(host, "localhost") == 0 ||
        (len > 10 && strcmp(host + len - 10, ".localhost") == 0))
        return true;
    for (size_t i = 0; i < conf->n_names; i++)
        if (strcasecmp(host, conf->names[i]) == 0)
            return true;
    return false;
}

/* Is this a name or an address by which clients call weir itself? */
bool
host_is_ours(const struct config *conf, const char *host)
{
    struct in6_addr addr;

    return strcmp(host, WEIR_HOST) == 0 || name_is_local(conf, host) ||
           (address_bytes(host, &addr) &&
            (address_is_local(&addr) || address_is_bound(conf, &addr)));
}

/* Would a request to host:port ask for our own pages? */
static bool
is_ourselves(const struct client *client, const char *host, uint16_t port)
{
    const struct weir *weir = client->weir;
    bool our_port = false;

    if (strcmp(host, WEIR_HOST) == 0)
        return true;
    if (client->inside != NULL)
        return false; /* whom it speaks to is known, whatever it says */
    for (size_t i = 0; i < weir->n_ports; i++)
        our_port = our_port || weir->ports[i] == port;
    return our_port && host_is_ours(client->conf, host);
}

/* ---- request targets ----------------------------------------------------- */

struct route { /* a request on its way to its origin */
    struct head *req;
    const struct client *client;
    struct origin *origin;
    bool *ourselves;
    struct span host;        /* of the Host field; empty: none, or empty */
    char name[HOST_MAX + 1]; /* its host in lower case; "": none */
};

static enum why
refuse(struct fail *f, const char *op)
{
    return fail_own(f, SIDE_CLIENT, WHY_PROTO, op);
}

/* RFC 9112 section 3.2: one Host in HTTP/1.1, never two, and it must be valid.
 * Whether it may be empty depends on the target. */
static enum why
route_host(struct route *r, struct fail *f)
{
    const struct field *host = head_find(r->req, "Host", NULL);
    uint16_t port;

    r->host = (struct span){"", 0};
    r->name[0] = '\0';
    if (host == NULL)
        return r->req->version == HTTP_11 ? refuse(f, "no Host field")
                                          : WHY_NONE;
    if (head_find(r->req, "Host", host) != NULL)
        return refuse(f, "more than one Host field");
    if (host->value.len > 0 && !authority_parse(host->value, r->name, &port))
        return refuse(f, "invalid Host field");
    r->host = host->value;
    return WHY_NONE;
}

/* The target is known, or it is us: the Host only says by which name. */
static enum why
route_here(struct route *r, struct span path, struct fail *f)
{
    const struct client *client = r->client;
    const struct origin *inside = client->inside;
    bool tls = inside != NULL ? inside->tls : client->tls;
    char own[HOST_MAX + 16];

    r->req->scheme = span_of(tls ? "https" : "http");
    r->req->path = path;
    r->req->authority = r->host;
    *r->ourselves =
        inside == NULL || client->own_name || strcmp(r->name, WEIR_HOST) == 0;
    if (inside == NULL)
        return WHY_NONE;
    *r->origin = *inside;
    if (r->host.len > 0)
        return WHY_NONE;
    origin_authority(inside, own, sizeof own);
    r->req->authority = head_text(r->req, own, strlen(own));
    if (r->req->authority.at == NULL)
        return fail_sys(f, SIDE_WEIR, "route", ENOMEM);
    return WHY_NONE;
}

/* RFC 9112 section 3.2.1: "/path?query". */
static enum why
route_origin_form(struct route *r, struct fail *f)
{
    /* RFC 9110 section 4.2.1: an http URI has a host. */
    if (r->req->version == HTTP_11 && r->host.len == 0)
        return refuse(f, "empty Host field");
    return route_here(r, r->req->target, f);
}

/* RFC 9112 section 3.2.4: "*". */
static enum why
route_asterisk_form(struct route *r, struct fail *f)
{
    if (r->req->method_id != METHOD_OPTIONS)
        return refuse(f, "target * with a method other than OPTIONS");
    return route_here(r, r->req->target, f);
}

/* RFC 9112 section 3.2.3: "host:port", and only with CONNECT. */
static enum why
route_authority_form(struct route *r, struct fail *f)
{
    struct origin *origin = r->origin;

    if (!authority_parse(r->req->target, origin->host, &origin->port) ||
        origin->port == 0)
        return refuse(f, "CONNECT target is not host:port");
    r->req->authority = r->req->target;
    r->req->scheme = r->req->path = (struct span){"", 0};
    return WHY_NONE;
}

/* The scheme of an absolute URI that we carry, as a literal; NULL: not one. */
static const char *
scheme_of(struct span target, size_t *len)
{
    static const char *const schemes[] = {"http", "https"};

    for (size_t i = 0; i < N_OF(schemes); i++) {
        *len = strlen(schemes[i]);
        if (target.len >= *len + 3 &&
            span_isi((struct span){target.at, *len}, schemes[i]) &&
            memcmp(target.at + *len, "://", 3) == 0)
            return schemes[i];
    }
    return NULL;
}

/* What follows the authority, made into a path that an origin understands. */
static enum why
route_path(struct head *req, struct span rest, struct fail *f)
{
    if (rest.len == 0) { /* RFC 9112 section 3.2.4: OPTIONS of the host */
        req->path = span_of(req->method_id == METHOD_OPTIONS ? "*" : "/");
        return WHY_NONE;
    }
    req->path = rest;
    if (rest.at[0] == '?') { /* copied with the byte before it, for the "/" */
        req->path = head_text(req, rest.at - 1, rest.len + 1);
        if (req->path.at == NULL)
            return fail_sys(f, SIDE_WEIR, "route", ENOMEM);
        ((char *)req->path.at)[0] = '/';
    }
    return WHY_NONE;
}

/* RFC 9112 section 3.2.2: "http://host:port/path?query".  The Host field is
 * ignored, as that section wants. */
static enum why
route_absolute_form(struct route *r, struct fail *f)
{
    struct head *req = r->req;
    struct origin to = {0};
    size_t len;
    const char *scheme = scheme_of(req->target, &len);
    struct span rest;

    if (scheme == NULL)
        return refuse(f, memmem(req->target.at, req->target.len, "://", 3)
                             ? "scheme of the target is not http or https"
                             : "target has none of the four forms");
    rest = (struct span){req->target.at + len + 3, req->target.len - len - 3};
    for (len = 0; len < rest.len && rest.at[len] != '/' && rest.at[len] != '?';)
        len++;
    req->authority = (struct span){rest.at, len};
    if (len > 0 && memchr(rest.at, '@', len) != NULL)
        return refuse(f, "user information in the target");
    if (!authority_parse(req->authority, to.host, &to.port))
        return refuse(f, "invalid host or port in the target");
    if (rest.at[len - 1] == ':') /* "host:" is "host" */
        req->authority.len--;
    to.tls = strcmp(scheme, "https") == 0;
    if (to.port == 0)
        to.port = to.tls ? 443 : 80;
    req->scheme = span_of(scheme);
    *r->ourselves = is_ourselves(r->client, to.host, to.port);
    *r->origin = r->client->inside != NULL ? *r->client->inside : to;
    if (r->client->inside != NULL && r->client->any_port)
        r->origin->port = to.port;
    return route_path(req, (struct span){rest.at + len, rest.len - len}, f);
}

/*
 * head_route - where a request wants to go (RFC 9112 sections 3.2 and 3.3).
 *
 * req        as an HTTP/1 codec has read it; scheme, authority and path are
 *            set: what the origin shall see
 * client     who asks.  `inside`: its target is known already, and no request
 *            changes where we connect to
 * origin     set, unless only we are meant
 * ourselves  our own pages are meant, not an origin.  A CONNECT never sets it.
 * f          noted on failure
 *
 * Returns WHY_NONE, WHY_PROTO (400), or WHY_SYS (no memory).
 */
enum why
head_route(struct head *req, const struct client *client, struct origin *origin,
           bool *ourselves, struct fail *f)
{
    struct route r = {
        .req = req, .client = client, .origin = origin, .ourselves = ourselves};
    enum why why;

    *origin = (struct origin){0};
    *ourselves = false;
    if (req->target.len == 0)
        return refuse(f, "empty target");
    if (memchr(req->target.at, '#', req->target.len) != NULL)
        return refuse(f, "fragment in the target");
    if ((why = route_host(&r, f)) != WHY_NONE)
        return why;
    if (req->method_id == METHOD_CONNECT)
        return route_authority_form(&r, f);
    if (req->target.at[0] == '/')
        return route_origin_form(&r, f);
    if (span_is(req->target, "*"))
        return route_asterisk_form(&r, f);
    return route_absolute_form(&r, f);
}
