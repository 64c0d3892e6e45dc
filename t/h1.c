/*
 * t/h1.c - HTTP/1: heads and chunks in any pieces, what is refused, how
 * messages are framed in both roles, and how they end.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"
#include "tap.h"

#define N_OF(array) (sizeof(array) / sizeof((array)[0]))
#define RAW(text) (text), sizeof(text) - 1 /* there are NULs in some */

static const struct config conf = {
    .head_bytes = 4096, .target_bytes = 1024, .fields = 20, .head_s = 10};
static const struct h1_limits limits = {4096, 1024, 20, 10000};

/* ---- a codec, and the raw peer it speaks with ---------------------------- */

struct rig {
    int peer;
    struct end end;
    struct h1 h1;
    struct http *http;
    const struct http_ops *ops;
    struct head head;
    struct fail f;
};

static void
rig_on(struct rig *r, enum side side, int fd, int peer)
{
    memset(r, 0, sizeof *r);
    r->peer = peer;
    end_init(&r->end, fd, side, 20000);
    h1_init(&r->h1, &r->end, side, &conf);
    r->http = &r->h1.http;
    r->ops = r->http->ops;
    head_init(&r->head);
}

static void
rig_open(struct rig *r, enum side side)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
        exit(2);
    rig_on(r, side, fds[0], fds[1]);
}

/* A connection over loopback, for what only TCP can tell. */
static void
rig_open_tcp(struct rig *r, enum side side)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int l = socket(AF_INET, SOCK_STREAM, 0);
    int peer = socket(AF_INET, SOCK_STREAM, 0), fd;

    if (bind(l, (struct sockaddr *)&at, len) != 0 || listen(l, 1) != 0 ||
        getsockname(l, (struct sockaddr *)&at, &len) != 0 ||
        connect(peer, (struct sockaddr *)&at, len) != 0 ||
        (fd = accept(l, NULL, NULL)) < 0)
        exit(2);
    close(l);
    rig_on(r, side, fd, peer);
}

static void
rig_close(struct rig *r)
{
    head_clear(&r->head);
    h1_clear(&r->h1);
    end_clear(&r->end);
    if (r->peer >= 0)
        close(r->peer);
}

static void
say_bytes(struct rig *r, const char *at, size_t len)
{
    while (len > 0) {
        ssize_t n = send(r->peer, at, len, MSG_NOSIGNAL);

        if (n <= 0)
            exit(2);
        at += n;
        len -= (size_t)n;
    }
}

static void
say(struct rig *r, const char *text)
{
    say_bytes(r, text, strlen(text));
}

/* The peer is done; it still reads. */
static void
say_end(struct rig *r)
{
    shutdown(r->peer, SHUT_WR);
}

/* What the codec has sent so far; it is all there, for the socket is local. */
static const char *
hear(struct rig *r)
{
    static char out[70000];
    size_t len = 0;
    ssize_t n;

    while (len + 1 < sizeof out &&
           (n = recv(r->peer, out + len, sizeof out - 1 - len, MSG_DONTWAIT)) >
               0)
        len += (size_t)n;
    out[len] = '\0';
    return out;
}

static enum why
read_head(struct rig *r)
{
    r->f = (struct fail){0};
    return r->ops->read_head(r->http, &r->head, &r->f);
}

static enum why
write_body(struct rig *r, const char *text)
{
    r->f = (struct fail){0};
    return r->ops->write_body(r->http, span_of(text), &r->f);
}

static enum why
write_end(struct rig *r)
{
    r->f = (struct fail){0};
    return r->ops->write_end(r->http, NULL, &r->f);
}

static enum why
flush(struct rig *r)
{
    return r->ops->flush(r->http, &r->f);
}

/* All content, as text; *why says how it ended. */
static const char *
read_all(struct rig *r, enum why *why)
{
    static char out[70000];
    size_t len = 0;
    struct span got;

    r->f = (struct fail){0};
    while ((*why = r->ops->read_body(r->http, &got, &r->f)) == WHY_NONE) {
        if (got.len == 0 || len + got.len >= sizeof out)
            exit(2);
        memcpy(out + len, got.at, got.len);
        len += got.len;
    }
    out[len] = '\0';
    return out;
}

/* A head from text; a request gets what head_route() would give it. */
static void
head_from(struct head *head, const char *raw, enum side from)
{
    struct fail f = {0};
    size_t used;
    const struct field *host;

    head_init(head);
    if (h1_parse_head(raw, strlen(raw), from, &limits, head, &used, &f) !=
        WHY_NONE) {
        diag("bad test head: %s\n%s", f.op, raw);
        exit(2);
    }
    head->path = head->target;
    host = head_find(head, "Host", NULL);
    if (from == SIDE_CLIENT && host != NULL)
        head->authority = host->value;
}

/* The codec as a client asks; the peer hears it. */
static const char *
ask(struct rig *r, const char *raw)
{
    struct head head;

    head_from(&head, raw, SIDE_CLIENT);
    r->f = (struct fail){0};
    if (r->ops->write_head(r->http, &head, &r->f) != WHY_NONE ||
        flush(r) != WHY_NONE)
        exit(2);
    head_clear(&head);
    return hear(r);
}

/* The codec as a server answers with a head, in its buffer for now. */
static enum why
answer(struct rig *r, const char *raw)
{
    struct head head;
    enum why why;

    head_from(&head, raw, SIDE_ORIGIN);
    if (head.status == 101)
        head.body = BODY_RAW;
    r->f = (struct fail){0};
    why = r->ops->write_head(r->http, &head, &r->f);
    head_clear(&head);
    return why;
}

/* ---- heads, in any pieces ------------------------------------------------ */

/* "GET /x 1.1|Host=h|" or "200 OK 1.0|...|". */
static const char *
head_dump(const struct head *h)
{
    static char out[16384];
    int n;

    if (h->status == 0)
        n = snprintf(out, sizeof out, "%.*s %.*s 1.%d|", (int)h->method.len,
                     h->method.at, (int)h->target.len, h->target.at,
                     h->version == HTTP_11);
    else
        n = snprintf(out, sizeof out, "%d %.*s 1.%d|", h->status,
                     (int)h->reason.len, h->reason.at, h->version == HTTP_11);
    for (size_t i = 0; i < h->n_fields && n < (int)sizeof out; i++)
        n += snprintf(out + n, sizeof out - (size_t)n, "%.*s=%.*s|",
                      (int)h->fields[i].name.len, h->fields[i].name.at,
                      (int)h->fields[i].value.len, h->fields[i].value.at);
    return out;
}

/* The first prefix whose answer is not "more", and what it is. */
static size_t
first_answer(const char *raw, size_t len, enum side from, enum why *why)
{
    struct head head;
    size_t cut, used;

    head_init(&head);
    for (cut = 0; cut <= len; cut++) {
        /* A copy of exact size, so that a look past the end is seen. */
        char *piece = malloc(cut + 1);
        struct fail f = {0};

        memcpy(piece, raw, cut);
        *why = h1_parse_head(piece, cut, from, &limits, &head, &used, &f);
        free(piece);
        if (*why != WHY_MORE)
            break;
    }
    head_clear(&head);
    return cut;
}

/* Byte by byte through the codec: the same answer, at the same byte? */
static size_t
drip(struct rig *r, const char *raw, size_t len, enum why *why)
{
    size_t n = 0;

    r->f = (struct fail){0};
    while ((*why = h1_try_head(&r->h1, &r->head, &r->f)) == WHY_MORE &&
           n < len) {
        say_bytes(r, raw + n++, 1);
        if (end_fill(&r->end, 65536, &r->f) != WHY_NONE)
            exit(2);
    }
    return n;
}

static void
test_good_head(const char *raw, enum side from, const char *want)
{
    struct rig r;
    struct fail f = {0};
    size_t used = 0, len = strlen(raw);
    char more[8192];
    enum why why;

    rig_open(&r, from);
    snprintf(more, sizeof more, "%sGLUED", raw);
    why = h1_parse_head(more, len + 5, from, &limits, &r.head, &used, &f);
    ok(why == WHY_NONE && used == len, "parsed, and no byte more: %s", want);
    if (why != WHY_NONE)
        diag("%s: %s", why_name(why), f.op);
    else
        is_str(head_dump(&r.head), want, "... and understood");
    is_int(first_answer(raw, len, from, &why), len, "... not before its end");
    is_int(drip(&r, raw, len, &why), len, "... byte by byte");
    is_str(why == WHY_NONE ? head_dump(&r.head) : why_name(why), want,
           "... the same");
    rig_close(&r);
}

static void
test_good_heads(void)
{
    static const struct {
        enum side from;
        const char *raw, *want;
    } table[] = {
        {SIDE_CLIENT, "GET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET / 1.1|Host=h|"},
        {SIDE_CLIENT, "GET / HTTP/1.0\r\n\r\n", "GET / 1.0|"},
        {SIDE_CLIENT, "\r\nGET / HTTP/1.1\r\n\r\n", "GET / 1.1|"},
        {SIDE_CLIENT, "GET / HTTP/1.9\r\n\r\n", "GET / 1.1|"},
        {SIDE_CLIENT,
         "M!#$%&'*+-.^_`|~ http://h/?a=%zz[]|{}\"<>\\^` HTTP/1.1"
         "\r\n\r\n",
         "M!#$%&'*+-.^_`|~ http://h/?a=%zz[]|{}\"<>\\^` 1.1|"},
        {SIDE_CLIENT,
         "GET / HTTP/1.1\r\nA:\r\na: \t b\tc \t\r\nA:d:e\r\n"
         "X!#$%&'*+-.^_`|~: \xc3\xa4\xff\r\n\r\n",
         "GET / 1.1|A=|a=b\tc|A=d:e|X!#$%&'*+-.^_`|~=\xc3\xa4\xff|"},
        {SIDE_CLIENT, "POST / HTTP/1.1\r\nContent-Length: 007\r\n\r\n",
         "POST / 1.1|Content-Length=007|"},
        {SIDE_CLIENT,
         "POST / HTTP/1.1\r\ntRANSFER-eNCODING: \tChunKed \r\n"
         "\r\n",
         "POST / 1.1|tRANSFER-eNCODING=ChunKed|"},
        {SIDE_ORIGIN, "HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "200 OK 1.1|A=b|"},
        {SIDE_ORIGIN, "HTTP/1.0 404 Not \xc3\xa4 here \r\n\r\n",
         "404 Not \xc3\xa4 here  1.0|"},
        {SIDE_ORIGIN, "HTTP/1.1 200 \r\n\r\n", "200  1.1|"},
        {SIDE_ORIGIN, "HTTP/1.1 200\r\n\r\n", "200  1.1|"},
        {SIDE_ORIGIN, "HTTP/1.7 999 x\r\n\r\n", "999 x 1.1|"},
        {SIDE_ORIGIN, "HTTP/1.1 100 Continue\r\n\r\n", "100 Continue 1.1|"},
    };

    for (size_t i = 0; i < N_OF(table); i++)
        test_good_head(table[i].raw, table[i].from, table[i].want);
}

struct bad {
    enum why why;
    const char *raw;
    size_t len;
};

#define GET "GET / HTTP/1.1\r\nHost: h\r\n"
#define POST "POST / HTTP/1.1\r\nHost: h\r\n"
#define OK "HTTP/1.1 200 OK\r\n"

static const struct bad bad_requests[] = {
    /* two lengths, or none that can be trusted */
    {WHY_PROTO, RAW(POST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
                         "\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"
                         "\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: 5\r\nContent-Length: 6\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: 5\r\ncontent-length: 5\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: 5, 6\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: 5, 5\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: \r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: +5\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: -5\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: 0x5\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: 5 5\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: 9223372036854775808\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Content-Length: 18446744073709551616\r\n\r\n")},
    {WHY_PROTO, RAW("CONNECT h:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n")},
    {WHY_PROTO,
     RAW("CONNECT h:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")},
    /* transfer codings */
    {WHY_UNKNOWN, RAW(POST "Transfer-Encoding: gzip\r\n\r\n")},
    {WHY_UNKNOWN, RAW(POST "Transfer-Encoding: gzip, chunked\r\n\r\n")},
    {WHY_UNKNOWN, RAW(POST "Transfer-Encoding: identity\r\n\r\n")},
    {WHY_UNKNOWN, RAW(POST "Transfer-Encoding: xchunked\r\n\r\n")},
    {WHY_UNKNOWN, RAW(POST "Transfer-Encoding: cow;a=\"b\"\r\n\r\n")},
    {WHY_UNKNOWN, RAW(POST "Transfer-Encoding: cow\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: chunked, gzip\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: chunked, chunked\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: chunked\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: chunked\r\n"
                         "Transfer-Encoding: cow\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding:\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: ,chunked\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: chunked,\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: chunked;a=b\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: \"chunked\"\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: chunked cow\r\n\r\n")},
    {WHY_PROTO, RAW(POST "Transfer-Encoding: \x0b"
                         "chunked\r\n\r\n")},
    {WHY_PROTO, RAW("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")},
    /* lines */
    {WHY_PROTO, RAW("GET / HTTP/1.1\n")},
    {WHY_PROTO, RAW("\nGET / HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("\r\n\r\nGET / HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\nC: d\r\n\r\n")},
    {WHY_PROTO, RAW(GET "\n")},
    {WHY_PROTO, RAW(GET "A: b\r\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\rc\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\r\n\rc")},
    {WHY_PROTO, RAW("GET /\r HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("G\rET / HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\0c\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: \0\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A\0: b\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: \x01\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\x0b"
                        "c\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\x7f\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\r\n c\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\r\n\tc\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A: b\r\n \r\n\r\n")},
    {WHY_PROTO, RAW("GET / HTTP/1.1\r\n Host: h\r\n\r\n")},
    /* names */
    {WHY_PROTO, RAW(GET "A : b\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A\t: b\r\n\r\n")},
    {WHY_PROTO, RAW(GET ": b\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A b: c\r\n\r\n")},
    {WHY_PROTO, RAW(GET "A(b): c\r\n\r\n")},
    {WHY_PROTO, RAW(GET "\xc3\xa4: c\r\n\r\n")},
    {WHY_PROTO, RAW(GET "Content-Length\xa0: 5\r\n\r\n")},
    /* request line */
    {WHY_PROTO, RAW("GET\r\n\r\n")},
    {WHY_PROTO, RAW("GET /\r\n\r\n")},
    {WHY_PROTO, RAW(" GET / HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET  / HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET /  HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET / HTTP/1.1 \r\n\r\n")},
    {WHY_PROTO, RAW("GET\t/\tHTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET\t/ HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET /\tx HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET /a b HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("G@T / HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("G\0T / HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET(x) / HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET /\x01 HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET /\0 HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET /\x7f HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET /\xc3\xa4 HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET / HTTP/1\r\n\r\n")},
    {WHY_PROTO, RAW("GET / HTTP/1.\r\n\r\n")},
    {WHY_PROTO, RAW("GET / HTTP/1.10\r\n\r\n")},
    {WHY_PROTO, RAW("GET / HTTP/11\r\n\r\n")},
    {WHY_PROTO, RAW("GET / HTTP/a.b\r\n\r\n")},
    {WHY_PROTO, RAW("GET / http/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("GET / HTTQ/1.1\r\n\r\n")},
    {WHY_VERSION, RAW("GET / HTTP/2.0\r\n\r\n")},
    {WHY_VERSION, RAW("GET / HTTP/3.0\r\n\r\n")},
    {WHY_VERSION, RAW("GET / HTTP/0.9\r\n\r\n")},
    {WHY_VERSION, RAW("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")},
};

static const struct bad bad_answers[] = {
    {WHY_PROTO, RAW("SSH-2.0-OpenSSH\r\n\r\n")},
    {WHY_PROTO, RAW("\r\nHTTP/1.1 200 OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 20 OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 2000 OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 099 OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 abc OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 +20 OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1  200 OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1\t200 OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 200\tOK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 200 O\rK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 200 O\0K\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 \r\n\r\n")},
    {WHY_PROTO, RAW("http/1.1 200 OK\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 200 OK\nA: b\n\n")},
    {WHY_VERSION, RAW("HTTP/2.0 200 OK\r\n\r\n")},
    {WHY_VERSION, RAW("HTTP/0.9 200 OK\r\n\r\n")},
    {WHY_PROTO, RAW(OK "A: b\r\n c\r\n\r\n")},
    {WHY_PROTO, RAW(OK "A : b\r\n\r\n")},
    {WHY_PROTO, RAW(OK ": b\r\n\r\n")},
    {WHY_PROTO, RAW(OK "A\r\n\r\n")},
    {WHY_PROTO, RAW(OK "A: \0\r\n\r\n")},
    {WHY_PROTO, RAW(OK "A: b\rc\r\n\r\n")},
    {WHY_PROTO, RAW(OK "A: b\nc: d\r\n\r\n")},
    {WHY_PROTO, RAW(OK "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
                       "\r\n")},
    {WHY_PROTO, RAW(OK "Content-Length: 5\r\nContent-Length: 6\r\n\r\n")},
    {WHY_PROTO, RAW(OK "Content-Length: 5, 5\r\n\r\n")},
    {WHY_PROTO, RAW(OK "Content-Length: five\r\n\r\n")},
    {WHY_PROTO, RAW(OK "Transfer-Encoding: chunked, chunked\r\n\r\n")},
    {WHY_UNKNOWN, RAW(OK "Transfer-Encoding: gzip, chunked\r\n\r\n")},
    {WHY_UNKNOWN, RAW(OK "Transfer-Encoding: identity\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")},
    {WHY_PROTO, RAW("HTTP/1.1 204 No\r\nContent-Length: x\r\n\r\n")},
};

/* For a test's name: control bytes as dots. */
static const char *
visible(const char *raw, size_t len)
{
    static char outs[2][128]; /* two may be alive at once */
    static int turn;
    char *out = outs[turn++ % 2];
    size_t n = len < sizeof outs[0] ? len : sizeof outs[0] - 1;

    for (size_t i = 0; i < n; i++)
        out[i] = (char)(raw[i] >= ' ' && raw[i] < 0x7f && raw[i] != '#' ? raw[i]
                                                                        : '.');
    out[n] = '\0';
    return out;
}

/* Whole, cut, and byte by byte: the same refusal, and never a head. */
static void
test_bad_head(const struct bad *b, enum side from)
{
    struct rig r;
    struct fail f = {0};
    size_t used = 0;
    enum why whole, cut, dripped;
    const char *name = visible(b->raw, b->len);

    rig_open(&r, from);
    whole = h1_parse_head(b->raw, b->len, from, &limits, &r.head, &used, &f);
    is_str(why_name(whole), why_name(b->why), "%s", name);
    ok(f.why == whole && f.side == from && f.op != NULL,
       "... noted, and whose fault: %s", f.op);
    first_answer(b->raw, b->len, from, &cut);
    drip(&r, b->raw, b->len, &dripped);
    ok(cut == whole && dripped == whole, "... in any pieces");
    ok(!r.ops->reusable(r.http), "... and the connection is over");
    rig_close(&r);
}

static void
test_bad_heads(void)
{
    for (size_t i = 0; i < N_OF(bad_requests); i++)
        test_bad_head(&bad_requests[i], SIDE_CLIENT);
    for (size_t i = 0; i < N_OF(bad_answers); i++)
        test_bad_head(&bad_answers[i], SIDE_ORIGIN);
}

/* A refusal can still be answered, and says that it is the end. */
static void
test_refusal_answered(void)
{
    struct rig r;

    rig_open(&r, SIDE_CLIENT);
    say(&r, "HEAD /x HTTP/1.1\r\nA : b\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    is_int(read_head(&r), WHY_PROTO, "a bad request");
    ok(span_is(r.head.target, "/x") && r.head.method_id == METHOD_HEAD,
       "its target is known for the log");
    answer(&r, "HTTP/1.1 400 No\r\nContent-Length: 5\r\n\r\n");
    is_int(write_body(&r, "sorry"), WHY_NONE, "content for a HEAD is dropped");
    write_end(&r);
    flush(&r);
    is_str(hear(&r),
           "HTTP/1.1 400 No\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
           "answered as a HEAD, with close");
    rig_close(&r);
}

/* ---- limits -------------------------------------------------------------- */

/* A request whose target, head or fields have just this size. */
static size_t
sized(char *out, size_t cap, size_t target, size_t head, size_t n_fields)
{
    size_t len = (size_t)snprintf(out, cap, "GET /%0*d HTTP/1.1\r\n",
                                  (int)target - 1, 0);

    for (size_t i = 1; i < n_fields; i++)
        len += (size_t)snprintf(out + len, cap - len, "A: b\r\n");
    if (n_fields > 0) {
        int pad = head > len + 7 ? (int)(head - len - 7) : 1;

        len += (size_t)snprintf(out + len, cap - len, "X: %0*d\r\n", pad, 0);
    }
    return len + (size_t)snprintf(out + len, cap - len, "\r\n");
}

static void
test_limit(size_t target, size_t head, size_t n_fields, enum why want)
{
    static char raw[100000];
    struct rig r;
    struct fail f = {0};
    size_t used, len = sized(raw, sizeof raw, target, head, n_fields);
    enum why whole, dripped;

    rig_open(&r, SIDE_CLIENT);
    whole = h1_parse_head(raw, len, SIDE_CLIENT, &limits, &r.head, &used, &f);
    drip(&r, raw, len, &dripped);
    ok(whole == want && dripped == want, "target %zu, head %zu, fields %zu: %s",
       target, len, n_fields, why_name(want));
    rig_close(&r);
}

static void
test_limits(void)
{
    static char line[9000];
    struct head head;
    struct fail f = {0};
    size_t used;

    test_limit(1024, 0, 1, WHY_NONE);
    test_limit(1025, 0, 1, WHY_URI);
    test_limit(3000, 0, 1, WHY_URI);
    test_limit(6000, 0, 1, WHY_URI); /* over both limits: the target's */
    test_limit(1, 4096, 1, WHY_NONE);
    test_limit(1, 4097, 1, WHY_LIMIT);
    test_limit(1, 9000, 5, WHY_LIMIT);
    test_limit(1, 0, 20, WHY_NONE);
    test_limit(1, 0, 21, WHY_LIMIT);

    head_init(&head);
    memset(line, 'x', sizeof line);
    is_int(h1_parse_head(line, 4095, SIDE_CLIENT, &limits, &head, &used, &f),
           WHY_MORE, "a long line may still end");
    is_int(h1_parse_head(line, 4096, SIDE_CLIENT, &limits, &head, &used, &f),
           WHY_LIMIT, "until it cannot");
    for (int i = 0; i < 4; i++)
        line[i] = "GET "[i];
    is_int(h1_parse_head(line, 1028, SIDE_CLIENT, &limits, &head, &used, &f),
           WHY_MORE, "a long target may still end");
    is_int(h1_parse_head(line, 1029, SIDE_CLIENT, &limits, &head, &used, &f),
           WHY_URI, "until it cannot");
    is_int(h1_parse_head(line, sizeof line, SIDE_ORIGIN, &limits, &head, &used,
                         &f),
           WHY_LIMIT, "an answer has a head and no target");
    head_clear(&head);
}

/* ---- chunks -------------------------------------------------------------- */

/* Decode raw in pieces of `step` bytes, after a first one of `first`. */
static enum why
decode(const char *raw, size_t len, size_t first, size_t step, char *out,
       size_t *rest)
{
    struct h1_chunks c = {0};
    struct fail f = {0};
    size_t at = 0, n_out = 0;
    enum why why = WHY_MORE;

    for (size_t end = first; why == WHY_MORE && at < len; end += step) {
        size_t stop = end < len ? end : len;

        while (at < stop) {
            size_t used = 99999;
            struct span data = {NULL, 0};

            why = h1_parse_chunks(&c, raw + at, stop - at, &used, &data, &f);
            at += used;
            if (why != WHY_NONE)
                break;
            memcpy(out + n_out, data.at, data.len);
            n_out += data.len;
        }
        if (why == WHY_NONE)
            why = WHY_MORE;
    }
    out[n_out] = '\0';
    *rest = len - at;
    return why;
}

/* The same from any two pieces, and byte by byte? */
static bool
decodes_alike(const char *raw, size_t len, enum why want, const char *text,
              size_t want_rest)
{
    static char out[140000];
    size_t rest;
    bool alike = true;

    for (size_t first = 0; first <= len && alike; first++)
        alike =
            decode(raw, len, first, len, out, &rest) == want &&
            (want != WHY_EOF || (rest == want_rest && strcmp(out, text) == 0));
    return alike && decode(raw, len, 1, 1, out, &rest) == want &&
           (want != WHY_EOF || strcmp(out, text) == 0);
}

static void
test_chunks(void)
{
    static const struct {
        enum why why;
        const char *raw;
        size_t len;
        const char *text; /* of WHY_EOF */
        size_t rest;
    } table[] = {
        {WHY_EOF, RAW("5\r\nhello\r\n0\r\n\r\n"), "hello", 2},
        {WHY_EOF, RAW("0\r\nX: y\r\n\r\n"), "", 8},
        {WHY_EOF, RAW("3\r\nabc\r\n00a\r\n0123456789\r\n000\r\n\r\n"),
         "abc0123456789", 2},
        {WHY_EOF, RAW("A\r\n0123456789\r\nb\r\n0123456789x\r\n0\r\n\r\n"),
         "01234567890123456789x", 2},
        {WHY_EOF,
         RAW("1;a\r\nx\r\n1 ; a = \"b;\xff\\\"c\"\r\ny\r\n0;z\r\n\r\n"), "xy",
         2},
        {WHY_EOF, RAW("1\t;\tq\r\nx\r\n0\r\n\r\n"), "x", 2},
        {WHY_EOF, RAW("2\r\n\r\n\r\n0\r\n\r\n"), "\r\n", 2},
        {WHY_EOF, RAW("0000000000000001\r\nx\r\n0\r\n\r\n"), "x", 2},
        {WHY_MORE, RAW("5\r\nhello\r\n0\r"), "", 0},
        {WHY_MORE, RAW("7fffffffffffffff\r\nhello"), "", 0},
        {WHY_PROTO, RAW("g\r\n"), "", 0},
        {WHY_PROTO, RAW("\r\n"), "", 0},
        {WHY_PROTO, RAW(" 5\r\nhello"), "", 0},
        {WHY_PROTO, RAW(";x\r\n"), "", 0},
        {WHY_PROTO, RAW("-5\r\n"), "", 0},
        {WHY_PROTO, RAW("+5\r\n"), "", 0},
        {WHY_PROTO, RAW("0x5\r\n"), "", 0},
        {WHY_PROTO, RAW("5g\r\n"), "", 0},
        {WHY_PROTO, RAW("5 \r\n"), "", 0},
        {WHY_PROTO, RAW("5 5\r\n"), "", 0},
        {WHY_PROTO, RAW("5,5\r\n"), "", 0},
        {WHY_PROTO, RAW("5\n"), "", 0},
        {WHY_PROTO, RAW("5\rx"), "", 0},
        {WHY_PROTO, RAW("5;a\n"), "", 0},
        {WHY_PROTO, RAW("5;a\rb\r\n"), "", 0},
        {WHY_PROTO, RAW("5;a\0\r\n"), "", 0},
        {WHY_PROTO, RAW("5;a\x7f\r\n"), "", 0},
        {WHY_PROTO, RAW("5\r\nhello!\r\n"), "", 0},
        {WHY_PROTO, RAW("5\r\nhello\n"), "", 0},
        {WHY_PROTO, RAW("5\r\nhello\r0"), "", 0},
        {WHY_PROTO, RAW("5\r\nhelloX"), "", 0},
        {WHY_PROTO, RAW("8000000000000000\r\n"), "", 0},
        {WHY_PROTO, RAW("ffffffffffffffff\r\n"), "", 0},
        {WHY_PROTO, RAW("10000000000000005\r\n"), "", 0},
        {WHY_PROTO, RAW("00000000000000005\r\n"), "", 0},
    };

    for (size_t i = 0; i < N_OF(table); i++)
        ok(decodes_alike(table[i].raw, table[i].len, table[i].why,
                         table[i].text, table[i].rest),
           "chunks, in any pieces: %s: %s", visible(table[i].raw, table[i].len),
           why_name(table[i].why));
}

/* One extension may be long, many may not outweigh the data. */
static void
test_extensions(void)
{
    static char raw[300000], out[140000];
    size_t len = 0, rest;

    len = (size_t)snprintf(raw, sizeof raw, "1;%04000d\r\nx\r\n0\r\n", 0);
    is_int(decode(raw, len, len, 1, out, &rest), WHY_EOF, "a long extension");
    len = (size_t)snprintf(raw, sizeof raw, "1;%05000d\r\nx\r\n0\r\n", 0);
    is_int(decode(raw, len, len, 1, out, &rest), WHY_LIMIT, "too long a one");
    for (len = 0; len < 100000;)
        len += (size_t)snprintf(raw + len, sizeof raw - len,
                                "1;%0100d\r\nx\r\n", 0);
    is_int(decode(raw, len, len, 1, out, &rest), WHY_LIMIT,
           "much extension and little data");
    for (len = 0; len < 100000;)
        len += (size_t)snprintf(raw + len, sizeof raw - len,
                                "64;%050d\r\n%0100d\r\n", 0, 0);
    is_int(decode(raw, len, len, 1, out, &rest), WHY_MORE,
           "as much extension as it likes beside enough data");
    for (len = 0; len < 100000;)
        len += (size_t)snprintf(raw + len, sizeof raw - len, "1\r\nx\r\n");
    is_int(decode(raw, len, len, 1, out, &rest), WHY_MORE, "many tiny chunks");
}

/* ---- how content is framed ----------------------------------------------- */

static const char *
body_name(enum body body)
{
    static const char *const names[] = {[BODY_NONE] = "none",
                                        [BODY_LENGTH] = "length",
                                        [BODY_STREAM] = "stream",
                                        [BODY_RAW] = "raw"};

    return names[body];
}

struct framed { /* what is sent behind a head, and what of it is content */
    const char *ask, *head, *rest;
    const char *body;
    const char *content;
    enum why end;
    bool reusable;
};

#define ASK(method) method " /x HTTP/1.1\r\nHost: h\r\n\r\n"
#define UPGRADE                                             \
    "GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\n" \
    "Upgrade: websocket\r\n\r\n"

static const struct framed framed_answers[] = {
    {ASK("GET"), OK "Content-Length: 5\r\n\r\n", "hello", "length", "hello",
     WHY_EOF, true},
    {ASK("GET"), OK "Content-Length: 0\r\n\r\n", "", "length", "", WHY_EOF,
     true},
    {ASK("GET"), OK "Content-Length: 5\r\n\r\n", "hello!", "length", "hello",
     WHY_EOF, false},
    {ASK("GET"), OK "Content-Length: 5\r\n\r\n", "hell", "length", "hell",
     WHY_CUT, false},
    {ASK("GET"), OK "Content-Length: 5\r\nConnection: close\r\n\r\n", "hello",
     "length", "hello", WHY_EOF, false},
    {ASK("GET"), OK "Transfer-Encoding: chunked\r\n\r\n",
     "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "stream", "hello", WHY_EOF, true},
    {ASK("GET"), OK "Transfer-Encoding: chunked\r\n\r\n",
     "5\r\nhello\r\n0\r\n\r\nHTTP/1.1", "stream", "hello", WHY_EOF, false},
    {ASK("GET"), OK "Transfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n",
     "stream", "hello", WHY_CUT, false},
    {ASK("GET"), OK "Transfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n0\r\n",
     "stream", "hello", WHY_CUT, false},
    {ASK("GET"), OK "Transfer-Encoding: chunked\r\n\r\n",
     "5\r\nhello\r\n0\r\nX: y\r\n", "stream", "hello", WHY_CUT, false},
    {ASK("GET"), OK "Transfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\nz",
     "stream", "hello", WHY_PROTO, false},
    {ASK("GET"), OK "\r\n", "hello", "stream", "hello", WHY_EOF, false},
    {ASK("GET"), OK "Connection: keep-alive\r\n\r\n", "", "stream", "", WHY_EOF,
     false},
    {ASK("HEAD"), OK "Content-Length: 5\r\n\r\n", "", "none", "", WHY_EOF,
     true},
    {ASK("HEAD"), OK "Transfer-Encoding: chunked\r\n\r\n", "", "none", "",
     WHY_EOF, true},
    {ASK("HEAD"), OK "\r\n", "", "none", "", WHY_EOF, true},
    {ASK("HEAD"), OK "Content-Length: 5\r\n\r\n", "hello", "none", "", WHY_EOF,
     false},
    {ASK("GET"), "HTTP/1.1 204 No\r\n\r\n", "", "none", "", WHY_EOF, true},
    {ASK("GET"), "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", "hello",
     "none", "", WHY_EOF, false},
    {ASK("GET"), "HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", "", "none", "",
     WHY_EOF, true},
    {ASK("GET"), "HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", "",
     "none", "", WHY_EOF, true},
    {ASK("GET"), "HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n", "",
     "length", "", WHY_EOF, true},
    {ASK("GET"), "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "hello",
     "length", "hello", WHY_EOF, false},
    {ASK("GET"),
     "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\n",
     "hello", "length", "hello", WHY_EOF, true},
    {ASK("GET"), "HTTP/1.0 200 OK\r\n\r\n", "hello", "stream", "hello", WHY_EOF,
     false},
    {"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n",
     OK "Content-Length: 5\r\n\r\n", "hello", "raw", "", WHY_NONE, false},
    {"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", "HTTP/1.1 204 No\r\n\r\n",
     "hello", "raw", "", WHY_NONE, false},
    {"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n",
     "HTTP/1.1 407 No\r\nContent-Length: 5\r\n\r\n", "hello", "length", "hello",
     WHY_EOF, true},
    {UPGRADE,
     "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
     "hello", "raw", "", WHY_NONE, false},
    {UPGRADE, OK "Content-Length: 5\r\n\r\n", "hello", "length", "hello",
     WHY_EOF, true},
};

static void
test_framed_answer(const struct framed *t)
{
    struct rig r;
    enum why why;

    rig_open(&r, SIDE_ORIGIN);
    ask(&r, t->ask);
    write_end(&r); /* a request without content needs none, but may */
    say(&r, t->head);
    say(&r, t->rest);
    say_end(&r);
    why = read_head(&r);
    is_int(why, WHY_NONE, "%.*s, %s%s", (int)strcspn(t->ask, " "), t->ask,
           visible(t->head, strlen(t->head)),
           visible(t->rest, strlen(t->rest)));
    is_str(body_name(r.head.body), t->body, "... framed by");
    if (r.head.body == BODY_RAW) {
        ok(!r.ops->reusable(r.http), "... no more HTTP");
        ok(span_is(end_ahead(h1_take_raw(&r.h1)), t->rest),
           "... what is glued to the head stays");
    } else {
        is_str(read_all(&r, &why), t->content, "... the content");
        is_str(why_name(why), why_name(t->end), "... ends");
        ok(r.ops->complete(r.http) == (t->end == WHY_EOF), "... complete?");
        ok(r.ops->reusable(r.http) == t->reusable, "... %s",
           t->reusable ? "reusable" : "not reusable");
        is_int(r.http->n_in, strlen(t->content), "... counted");
    }
    rig_close(&r);
}

static void
test_unasked_upgrade(void)
{
    struct rig r;

    rig_open(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    say(&r, "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: cow\r\n\r\n");
    is_int(read_head(&r), WHY_PROTO, "a 101 that nobody asked for");
    rig_close(&r);
    rig_open(&r, SIDE_ORIGIN);
    ask(&r, UPGRADE);
    say(&r, "HTTP/1.1 101 Yes\r\nUpgrade: cow\r\n\r\n");
    is_int(read_head(&r), WHY_PROTO, "a 101 that switches to nothing");
    rig_close(&r);
}

static const struct framed framed_requests[] = {
    {NULL, POST "Content-Length: 5\r\n\r\n", "hello", "length", "hello",
     WHY_EOF, true},
    {NULL, POST "Content-Length: 5\r\n\r\n", "helloGET /", "length", "hello",
     WHY_EOF, true},
    {NULL, POST "Content-Length: 5\r\n\r\n", "hel", "length", "hel", WHY_CUT,
     false},
    {NULL, POST "Transfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n",
     "stream", "hello", WHY_EOF, true},
    {NULL, POST "Transfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n0\r\n",
     "stream", "hello", WHY_CUT, false},
    {NULL, POST "Transfer-Encoding: chunked\r\n\r\n",
     "5\r\nhello\r\n0\r\nA : b\r\n\r\n", "stream", "hello", WHY_PROTO, false},
    {NULL, POST "Transfer-Encoding: chunked\r\n\r\n",
     "5\r\nhello\r\n0\r\nA: b\n\r\n", "stream", "hello", WHY_PROTO, false},
    {NULL, POST "Transfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n0\r\n\n",
     "stream", "hello", WHY_PROTO, false},
    {NULL, POST "\r\n", "GET /", "none", "", WHY_EOF, true},
    {NULL, GET "Content-Length: 2\r\n\r\n", "hi", "length", "hi", WHY_EOF,
     true},
    {NULL, "POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\n", "hi", "length", "hi",
     WHY_EOF, false},
    {NULL, "CONNECT h:1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "\x16\x03",
     "none", "", WHY_EOF, false},
};

static void
test_framed_request(const struct framed *t)
{
    struct rig r;
    enum why why;

    rig_open(&r, SIDE_CLIENT);
    say(&r, t->head);
    say(&r, t->rest);
    say_end(&r);
    is_int(read_head(&r), WHY_NONE, "%s%s", visible(t->head, strlen(t->head)),
           visible(t->rest, strlen(t->rest)));
    is_str(body_name(r.head.body), t->body, "... framed by");
    is_str(read_all(&r, &why), t->content, "... the content");
    is_str(why_name(why), why_name(t->end), "... ends");
    if (r.head.method_id != METHOD_CONNECT) {
        answer(&r, OK "Content-Length: 0\r\n\r\n");
        write_end(&r);
        ok(r.ops->reusable(r.http) == t->reusable, "... %s",
           t->reusable ? "reusable" : "not reusable");
    }
    rig_close(&r);
}

static void
test_framing(void)
{
    for (size_t i = 0; i < N_OF(framed_answers); i++)
        test_framed_answer(&framed_answers[i]);
    for (size_t i = 0; i < N_OF(framed_requests); i++)
        test_framed_request(&framed_requests[i]);
    test_unasked_upgrade();
}

/* ---- what a head asks for ------------------------------------------------ */

static void
test_head_facts(void)
{
    static const struct {
        const char *raw;
        const char *upgrade, *connection;
        bool expects, trailers;
    } table[] = {
        {GET "\r\n", "", "", false, false},
        {GET "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", "websocket",
         "upgrade", false, false},
        {GET "Upgrade: websocket\r\n\r\n", "", "", false, false},
        {GET "Connection: a\r\nUpgrade: x\r\nConnection: Upgrade\r\n"
             "Upgrade: y\r\n\r\n",
         "x, y", "a, Upgrade", false, false},
        {GET "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", "",
         "Upgrade, HTTP2-Settings", false, false},
        {GET "Connection: upgrade\r\nUpgrade: a , H2C,b/1\r\n\r\n", "a,b/1",
         "upgrade", false, false},
        {"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n", "",
         "upgrade", false, false},
        {POST "Expect: 100-Continue\r\n\r\n", "", "", true, false},
        {POST "Expect: cow\r\n\r\n", "", "", false, false},
        {"POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n", "", "", false,
         false},
        {GET "TE: trailers\r\n\r\n", "", "", false, true},
        {GET "TE: gzip;q=0.5, Trailers\r\nConnection: TE\r\n\r\n", "", "TE",
         false, true},
        {GET "TE: gzip\r\n\r\n", "", "", false, false},
        {"GET / HTTP/1.0\r\nTE: trailers\r\n\r\n", "", "", false, false},
    };

    for (size_t i = 0; i < N_OF(table); i++) {
        struct head head;

        head_from(&head, table[i].raw, SIDE_CLIENT);
        ok(span_is(head.upgrade, table[i].upgrade) &&
               span_is(head.connection, table[i].connection) &&
               head.expects_continue == table[i].expects &&
               head.te_trailers == table[i].trailers,
           "facts of %s", visible(table[i].raw, strlen(table[i].raw)));
        head_clear(&head);
    }
}

/* ---- writing requests ---------------------------------------------------- */

static void
test_write_requests(void)
{
    static const struct {
        const char *in, *out;
    } table[] = {
        {GET "\r\n", GET "\r\n"},
        {"GET /a?b HTTP/1.0\r\n\r\n", "GET /a?b HTTP/1.1\r\n\r\n"},
        {"GET / HTTP/1.1\r\nX-b: 1\r\nhOST: h\r\nx-B: 2\r\nX-b: 1\r\n"
         "Empty:\r\n\r\n",
         "GET / HTTP/1.1\r\nX-b: 1\r\nhOST: h\r\nx-B: 2\r\nX-b: 1\r\n"
         "Empty: \r\n\r\n"},
        {POST "cONTENT-lENGTH: 005\r\nA: b\r\n\r\n",
         POST "cONTENT-lENGTH: 5\r\nA: b\r\n\r\n"},
        {POST "Content-Length: 0\r\n\r\n", POST "Content-Length: 0\r\n\r\n"},
        {POST "Transfer-Encoding: chunked\r\nA: b\r\n\r\n",
         POST "A: b\r\nTransfer-Encoding: chunked\r\n\r\n"},
        {POST "Trailer: X\r\nTransfer-Encoding: chunked\r\n\r\n",
         POST "Trailer: X\r\nTransfer-Encoding: chunked\r\n\r\n"},
        {POST "Trailer: X\r\nContent-Length: 5\r\n\r\n",
         POST "Content-Length: 5\r\n\r\n"},
        {GET "Connection: close, X\r\nX: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\n"
             "Proxy-Connection: close\r\nProxy-Authorization: Basic x\r\n"
             "Y: 2\r\n\r\n",
         GET "Y: 2\r\n\r\n"},
        {POST "Connection: content-length, host, via\r\nVia: 1.1 a\r\n"
              "Content-Length: 5\r\n\r\n",
         POST "Via: 1.1 a\r\nContent-Length: 5\r\n\r\n"},
        {GET "Connection: Upgrade\r\nUpgrade: websocket\r\n"
             "Sec-WebSocket-Key: x\r\n\r\n",
         GET "Sec-WebSocket-Key: x\r\nConnection: Upgrade\r\n"
             "Upgrade: websocket\r\n\r\n"},
        {GET "TE: trailers, gzip\r\nConnection: TE\r\n\r\n",
         GET "Connection: TE\r\nTE: trailers\r\n\r\n"},
        {POST "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
         POST "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"},
        {"POST / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\n"
         "Content-Length: 5\r\n\r\n",
         POST "Content-Length: 5\r\n\r\n"},
        {"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n",
         "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n"},
        {"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
         "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"},
    };
    struct rig r;

    for (size_t i = 0; i < N_OF(table); i++) {
        rig_open(&r, SIDE_ORIGIN);
        is_str(ask(&r, table[i].in), table[i].out, "request %s",
               visible(table[i].in, strlen(table[i].in)));
        rig_close(&r);
    }
}

/* What only fields of the head or of the codec ask for. */
static void
test_write_request_more(void)
{
    struct head head;
    struct rig r;

    rig_open(&r, SIDE_ORIGIN);
    head_from(&head, "GET http://o/ HTTP/1.1\r\nA: b\r\nHost: wrong\r\n\r\n",
              SIDE_CLIENT);
    head.authority = span_of("o:81");
    head.scheme = span_of("http");
    head.path = span_of("/p");
    r.ops->write_head(r.http, &head, &r.f);
    flush(&r);
    is_str(hear(&r), "GET /p HTTP/1.1\r\nA: b\r\nHost: o:81\r\n\r\n",
           "Host is the target's, where it stood");
    head.n_fields = 1;
    r.http->last = true;
    r.h1.absolute = true;
    r.ops->write_head(r.http, &head, &r.f);
    flush(&r);
    is_str(hear(&r),
           "GET http://o:81/p HTTP/1.1\r\nHost: o:81\r\nA: b\r\n"
           "Connection: close\r\n\r\n",
           "absolute-form, the missing Host first, the last request");
    head.method_id = METHOD_OPTIONS;
    head.path = span_of("*");
    r.ops->write_head(r.http, &head, &r.f);
    flush(&r);
    ok(strncmp(hear(&r), "GET http://o:81 HTTP/1.1\r\n", 26) == 0,
       "absolute-form of * has no path");
    head_clear(&head);
    rig_close(&r);
}

/* ---- writing answers ----------------------------------------------------- */

struct answered { /* a request, an answer to it, what the client gets */
    const char *ask, *answer, *content;
    const char *want;
    bool reusable;
};

#define OLD "GET / HTTP/1.0\r\n\r\n"
#define OLD_KEEP "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
#define HEAD_ASK "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"

static const struct answered answers[] = {
    {GET "\r\n", OK "A: b\r\nContent-Length: 005\r\na: B\r\n\r\n", "hello",
     OK "A: b\r\nContent-Length: 5\r\na: B\r\n\r\nhello", true},
    {GET "\r\n", "HTTP/1.0 299 My way\r\nContent-Length: 0\r\n\r\n", "",
     "HTTP/1.1 299 My way\r\nContent-Length: 0\r\n\r\n", true},
    {GET "\r\n", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "",
     "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", true},
    {GET "\r\n", OK "Transfer-Encoding: chunked\r\n\r\n", "hello",
     OK "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true},
    {GET "\r\n", OK "Connection: close\r\n\r\n", "hello",
     OK "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true},
    {GET "Connection: close\r\n\r\n", OK "Content-Length: 5\r\n\r\n", "hello",
     OK "Content-Length: 5\r\nConnection: close\r\n\r\nhello", false},
    {OLD, OK "\r\n", "hello", OK "Connection: close\r\n\r\nhello", false},
    {OLD, OK "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n", "hello",
     OK "Connection: close\r\n\r\nhello", false},
    {OLD, OK "Content-Length: 5\r\n\r\n", "hello",
     OK "Content-Length: 5\r\nConnection: close\r\n\r\nhello", false},
    {OLD_KEEP, OK "Content-Length: 5\r\n\r\n", "hello",
     OK "Content-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", true},
    {OLD_KEEP, OK "\r\n", "hello", OK "Connection: close\r\n\r\nhello", false},
    {HEAD_ASK, OK "content-length: 5\r\n\r\n", "",
     OK "content-length: 5\r\n\r\n", true},
    {HEAD_ASK, OK "Transfer-Encoding: chunked\r\n\r\n", "", OK "\r\n", true},
    {HEAD_ASK, OK "\r\n", "", OK "\r\n", true},
    {GET "\r\n", "HTTP/1.1 304 No\r\nContent-Length: 77\r\nETag: x\r\n\r\n", "",
     "HTTP/1.1 304 No\r\nContent-Length: 77\r\nETag: x\r\n\r\n", true},
    {GET "\r\n", "HTTP/1.1 204 No\r\nContent-Length: 5\r\nA: b\r\n\r\n", "",
     "HTTP/1.1 204 No\r\nA: b\r\n\r\n", true},
    {OLD_KEEP, "HTTP/1.1 204 No\r\n\r\n", "",
     "HTTP/1.1 204 No\r\nConnection: keep-alive\r\n\r\n", true},
    {GET "\r\n",
     OK "Connection: X, close\r\nX: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\n"
        "Proxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
     "", OK "Content-Length: 0\r\n\r\n", true},
    {GET "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
     "HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
     "Sec-WebSocket-Accept: x\r\n\r\n",
     NULL,
     "HTTP/1.1 101 Yes\r\nSec-WebSocket-Accept: x\r\n"
     "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
     false},
    {GET "\r\n",
     "HTTP/1.1 426 Upgrade\r\nConnection: upgrade\r\nUpgrade: TLS/1.0\r\n"
     "Content-Length: 0\r\n\r\n",
     "",
     "HTTP/1.1 426 Upgrade\r\nContent-Length: 0\r\nConnection: Upgrade\r\n"
     "Upgrade: TLS/1.0\r\n\r\n",
     true},
    {"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
     OK "Content-Length: 5\r\nVia: x\r\n\r\n", NULL, OK "Via: x\r\n\r\n",
     false},
    {"CONNECT h:1 HTTP/1.0\r\n\r\n", OK "\r\n", NULL, OK "\r\n", false},
    {"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
     "HTTP/1.1 502 No\r\nContent-Length: 2\r\n\r\n", "no",
     "HTTP/1.1 502 No\r\nContent-Length: 2\r\n\r\nno", true},
};

static void
test_write_answer(const struct answered *t)
{
    struct rig r;

    rig_open(&r, SIDE_CLIENT);
    say(&r, t->ask);
    is_int(read_head(&r), WHY_NONE, "%s", visible(t->ask, strlen(t->ask)));
    is_int(answer(&r, t->answer), WHY_NONE, "... %s",
           visible(t->answer, strlen(t->answer)));
    if (t->content != NULL) {
        is_int(write_body(&r, t->content), WHY_NONE, "... content");
        is_int(write_end(&r), WHY_NONE, "... its end");
    }
    is_str(hear(&r), "", "... nothing is sent before a flush");
    flush(&r);
    is_str(hear(&r), t->want, "... arrives as");
    ok(r.ops->reusable(r.http) == t->reusable, "... %s",
       t->reusable ? "reusable" : "not reusable");
    if (t->content != NULL)
        is_int(r.http->n_out, strlen(t->content), "... counted");
    rig_close(&r);
}

/* An answer of our own, that says nothing about content. */
static void
test_own_answer(void)
{
    struct head head;
    struct rig r;

    rig_open(&r, SIDE_CLIENT);
    say(&r, GET "\r\n");
    read_head(&r);
    head_init(&head);
    head.status = 404;
    head_add(&head, span_of("A"), span_of("b"));
    r.http->last = true;
    r.ops->write_head(r.http, &head, &r.f);
    write_end(&r);
    flush(&r);
    is_str(hear(&r),
           "HTTP/1.1 404 Not Found\r\nA: b\r\nContent-Length: 0\r\n"
           "Connection: close\r\n\r\n",
           "no content is a length of 0; the phrase is ours; the last one");
    head_clear(&head);
    rig_close(&r);
}

/* ---- interim answers, pipelines, glued bytes ----------------------------- */

static void
test_interim(void)
{
    struct rig r;
    enum why why;

    rig_open(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    say(&r, "HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 103 Early\r\n"
            "Link: b\r\nContent-Length: 9\r\n\r\nHTTP/1.1 100 Go\r\n\r\n" OK
            "Content-Length: 2\r\n\r\nok");
    ok(read_head(&r) == WHY_NONE && r.head.status == 103 &&
           span_is(r.head.fields[0].value, "a"),
       "103 is read");
    ok(!r.ops->complete(r.http) && r.ops->pending(r.http),
       "it completes nothing, and the next is there");
    ok(read_head(&r) == WHY_NONE && r.head.status == 103 &&
           span_is(r.head.fields[0].value, "b") && r.head.body == BODY_NONE,
       "another, whatever length it names");
    ok(read_head(&r) == WHY_NONE && r.head.status == 100, "100");
    ok(read_head(&r) == WHY_NONE && r.head.status == 200, "then the answer");
    is_str(read_all(&r, &why), "ok", "with its content");
    rig_close(&r);

    rig_open(&r, SIDE_CLIENT);
    say(&r, GET "\r\n");
    read_head(&r);
    answer(&r, "HTTP/1.1 103 Early\r\nLink: a\r\nContent-Length: 3\r\n\r\n");
    flush(&r);
    is_str(hear(&r), "HTTP/1.1 103 Early\r\nLink: a\r\n\r\n", "103 is written");
    answer(&r, "HTTP/1.1 100 Go\r\n\r\n");
    answer(&r, OK "Content-Length: 0\r\n\r\n");
    write_end(&r);
    flush(&r);
    is_str(hear(&r), "HTTP/1.1 100 Go\r\n\r\n" OK "Content-Length: 0\r\n\r\n",
           "and more, and the answer");
    say(&r, OLD);
    read_head(&r);
    answer(&r, "HTTP/1.1 103 Early\r\n\r\n");
    flush(&r);
    is_str(hear(&r), "", "but not to HTTP/1.0");
    rig_close(&r);
}

static void
test_pipeline(void)
{
    struct rig r;
    enum why why;
    char *out = NULL, *buf = NULL;
    struct arena *arena = NULL;
    struct field *fields = NULL;
    int same = 0, good = 0;

    rig_open(&r, SIDE_CLIENT);
    for (int i = 0; i < 10; i++)
        say(&r, "\r\n" GET "Content-Length: 3\r\n\r\nabc" POST
                "Transfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\n");
    say_end(&r);
    for (int i = 0; i < 20; i++) {
        good += read_head(&r) == WHY_NONE &&
                strcmp(read_all(&r, &why), i % 2 ? "def" : "abc") == 0 &&
                answer(&r, OK "Content-Length: 2\r\n\r\n") == WHY_NONE &&
                write_body(&r, "ok") == WHY_NONE && write_end(&r) == WHY_NONE &&
                flush(&r) == WHY_NONE && r.ops->reusable(r.http);
        same += r.h1.out == out && r.end.buf == buf && r.head.arena == arena &&
                r.head.fields == fields;
        out = r.h1.out;
        buf = r.end.buf;
        arena = r.head.arena;
        fields = r.head.fields;
    }
    is_int(good, 20, "20 pipelined requests, one after the other");
    is_int(same, 19, "a warm connection allocates nothing");
    is_int(read_head(&r), WHY_EOF, "then the end");
    rig_close(&r);
}

static void
test_glued(void)
{
    struct rig r;
    struct end *end;

    rig_open(&r, SIDE_CLIENT);
    say(&r, "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n\x16\x03\x01");
    ok(read_head(&r) == WHY_NONE && r.ops->complete(r.http), "CONNECT");
    answer(&r, OK "\r\n");
    flush(&r);
    end = h1_take_raw(&r.h1);
    ok(end == &r.end && span_is(end_ahead(end), "\x16\x03\x01"),
       "bytes glued to the head of a CONNECT are the tunnel's");
    ok(!r.ops->reusable(r.http), "and HTTP is over");
    rig_close(&r);
}

/* ---- trailers ------------------------------------------------------------ */

static void
test_trailers_in(void)
{
    static const char tail[] = "0\r\nX-Sum:  1 \r\nx-sum: 2\r\n\r\n";
    struct rig r;
    const struct head *got;
    enum why why;

    for (size_t cut = 0; cut < sizeof tail - 1; cut++) {
        rig_open(&r, SIDE_CLIENT);
        say(&r, POST "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
        say_bytes(&r, tail, cut);
        say_end(&r);
        read_head(&r);
        read_all(&r, &why);
        if (why != WHY_CUT || r.ops->trailers(r.http) != NULL)
            ok(false, "trailers cut after %zu bytes: %s", cut, why_name(why));
        rig_close(&r);
    }
    rig_open(&r, SIDE_CLIENT);
    say(&r, POST "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
    say(&r, tail);
    say(&r, POST "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    read_head(&r);
    is_str(read_all(&r, &why), "x", "content before trailers");
    got = r.ops->trailers(r.http);
    ok(why == WHY_EOF && got != NULL && got->n_fields == 2 &&
           span_is(got->fields[0].name, "X-Sum") &&
           span_is(got->fields[0].value, "1") &&
           span_is(got->fields[1].name, "x-sum"),
       "trailers, in their order and spelling");
    read_head(&r);
    read_all(&r, &why);
    ok(why == WHY_EOF && r.ops->trailers(r.http) == NULL,
       "the next message has none");
    rig_close(&r);

    rig_open(&r, SIDE_CLIENT);
    say(&r, POST "Transfer-Encoding: chunked\r\n\r\n0\r\n");
    for (int i = 0; i < 21; i++)
        say(&r, "A: b\r\n");
    say(&r, "\r\n");
    read_head(&r);
    read_all(&r, &why);
    is_int(why, WHY_LIMIT, "too many trailers");
    rig_close(&r);

    rig_open(&r, SIDE_CLIENT);
    say(&r, POST "Transfer-Encoding: chunked\r\n\r\n0\r\nA: ");
    for (int i = 0; i < 50; i++)
        say(&r, "0123456789012345678901234567890123456789012345678901234567890"
                "123456789012345678901234567890123456789");
    read_head(&r);
    read_all(&r, &why);
    is_int(why, WHY_LIMIT, "too long trailers");
    rig_close(&r);
}

static void
tail_fields(struct head *tail)
{
    head_init(tail);
    head_add(tail, span_of("X-Sum"), span_of("1"));
    head_add(tail, span_of("Content-Length"), span_of("9"));
    head_add(tail, span_of("transfer-encoding"), span_of("x"));
    head_add(tail, span_of("x-sum"), span_of("2"));
}

static void
test_trailers_out(void)
{
    static const char chunked[] =
        OK "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n";
    struct head tail;
    struct rig r;

    tail_fields(&tail);
    rig_open(&r, SIDE_CLIENT);
    say(&r, GET "TE: trailers\r\n\r\n" GET "\r\n" OLD);
    read_head(&r);
    answer(&r, chunked);
    r.ops->write_end(r.http, &tail, &r.f);
    flush(&r);
    is_str(hear(&r),
           OK "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"
              "0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n",
           "who wants trailers gets those that may be");
    read_head(&r);
    answer(&r, chunked);
    r.ops->write_end(r.http, &tail, &r.f);
    flush(&r);
    is_str(hear(&r), OK "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
           "who does not gets none");
    read_head(&r);
    answer(&r, chunked);
    r.ops->write_end(r.http, &tail, &r.f);
    flush(&r);
    is_str(hear(&r), OK "Connection: close\r\n\r\n", "nor does HTTP/1.0");
    rig_close(&r);

    rig_open(&r, SIDE_ORIGIN);
    ask(&r, POST "Transfer-Encoding: chunked\r\n\r\n");
    r.ops->write_end(r.http, &tail, &r.f);
    flush(&r);
    is_str(hear(&r), "0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n",
           "an origin gets those of a request");
    rig_close(&r);
    head_clear(&tail);
}

/* ---- what is pending ----------------------------------------------------- */

/* Each line: more bytes come, all that can be read is read, and then the rest
 * of a frame is no reason not to flush. */
static void
test_pending(void)
{
    static const char *const pieces[] = {"5\r\nhello", "\r\n", "1",   "\r",
                                         "\n",         "x",    "\r",  "\n0",
                                         "\r\n",       "A: b", "\r\n"};
    struct rig r;
    struct span got;
    size_t n = 0;

    rig_open(&r, SIDE_CLIENT);
    ok(!r.ops->pending(r.http), "nothing pending");
    say(&r, POST "Transfer-Enco");
    end_fill(&r.end, END_BUF, &r.f);
    ok(!r.ops->pending(r.http), "half a head is not pending");
    say(&r, "ding: chunked\r\n\r\n");
    end_fill(&r.end, END_BUF, &r.f);
    ok(r.ops->pending(r.http), "a whole one is");
    read_head(&r);
    for (size_t i = 0; i < N_OF(pieces); i++) {
        bool data = i == 0 || i == 5;

        say(&r, pieces[i]);
        end_fill(&r.end, END_BUF, &r.f);
        ok(r.ops->pending(r.http) == data, "piece %zu of a body: %spending", i,
           data ? "" : "not ");
        if (data && r.ops->read_body(r.http, &got, &r.f) == WHY_NONE)
            n += got.len;
        ok(!r.ops->pending(r.http), "... and not afterwards");
    }
    is_int(n, 6, "all the content");
    say(&r, "\r\n");
    end_fill(&r.end, END_BUF, &r.f);
    ok(r.ops->pending(r.http), "its end is pending");
    is_int(r.ops->read_body(r.http, &got, &r.f), WHY_EOF, "and is read");
    rig_close(&r);

    rig_open(&r, SIDE_CLIENT);
    say(&r, POST "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\nzz\r\n");
    read_head(&r);
    ok(r.ops->pending(r.http) &&
           r.ops->read_body(r.http, &got, &r.f) == WHY_NONE,
       "good content before bad");
    ok(!r.ops->pending(r.http), "what is bad is not pending");
    is_int(r.ops->read_body(r.http, &got, &r.f), WHY_PROTO, "it is met");
    say(&r, "1\r\nx\r\n0\r\n\r\n");
    end_fill(&r.end, END_BUF, &r.f);
    ok(!r.ops->pending(r.http) &&
           r.ops->read_body(r.http, &got, &r.f) == WHY_PROTO &&
           !r.ops->complete(r.http),
       "and nothing behind it is content");
    rig_close(&r);
}

/* ---- clocks and ends ----------------------------------------------------- */

static void
test_clocks(void)
{
    int64_t started;
    struct rig r;

    rig_open(&r, SIDE_CLIENT);
    r.end.idle_ms = 30;
    is_int(read_head(&r), WHY_IDLE, "silence before a head");
    is_int(r.h1.head_from, 0, "nothing has begun");
    say(&r, "GET / HTTP/1.1\r\nHo");
    is_int(read_head(&r), WHY_IDLE, "silence within a head");
    ok(r.h1.head_from != 0, "it has begun");
    r.end.idle_ms = 20000;
    r.h1.limits.head_ms = 60;
    is_int(read_head(&r), WHY_LATE, "a head has to end in time");
    ok(r.f.side == SIDE_CLIENT && why_status(r.f.why, r.f.side) == 408,
       "408: %s", r.f.op);
    is_int(r.end.deadline, 0, "the end's own deadline is as it was");
    answer(&r, "HTTP/1.1 408 Late\r\nContent-Length: 0\r\n\r\n");
    write_end(&r);
    flush(&r);
    is_str(hear(&r),
           "HTTP/1.1 408 Late\r\nContent-Length: 0\r\nConnection: close\r\n"
           "\r\n",
           "and can be told so");
    rig_close(&r);

    rig_open(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    r.end.idle_ms = 30;
    say(&r, "HTTP/1.1 200");
    is_int(read_head(&r), WHY_IDLE, "an answer that stops");
    say(&r, " OK\r\nContent-Length: 0\r\n\r\n");
    r.end.idle_ms = 20000;
    is_int(read_head(&r), WHY_NONE, "can go on if the caller waits again");
    ask(&r, ASK("GET"));
    r.http->idle_ms = 30;
    is_int(read_head(&r), WHY_IDLE, "the user's clock may be faster");
    ok(r.end.deadline == 0 && r.f.why == WHY_IDLE, "and leaves no trace");
    r.end.deadline = now_ms() + 10;
    is_int(read_head(&r), WHY_LATE, "the end's own deadline counts");
    r.end.deadline = 0;
    r.end.idle_ms = 20;
    r.http->idle_ms = 70;
    started = now_ms();
    is_int(read_head(&r), WHY_IDLE, "the user's clock may be slower");
    ok(now_ms() - started >= 70, "than the end's");
    rig_close(&r);
}

static void
test_ends(void)
{
    struct rig r;

    rig_open(&r, SIDE_CLIENT);
    say_end(&r);
    is_int(read_head(&r), WHY_EOF, "an end before a head");
    is_int(r.f.why, WHY_NONE, "is nothing to note");
    rig_close(&r);
    rig_open(&r, SIDE_CLIENT);
    say(&r, "\r\n");
    say_end(&r);
    is_int(read_head(&r), WHY_EOF, "an empty line begins no head");
    rig_close(&r);
    rig_open(&r, SIDE_CLIENT);
    say(&r, "G");
    say_end(&r);
    is_int(read_head(&r), WHY_CUT, "one byte does");
    ok(r.f.why == WHY_CUT && r.f.side == SIDE_CLIENT, "noted: %s", r.f.op);
    rig_close(&r);
    rig_open(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    say(&r, "HTTP/1.1 200 OK\r\n");
    say_end(&r);
    is_int(read_head(&r), WHY_CUT, "an answer's head is cut");
    is_int(why_status(r.f.why, r.f.side), 502, "502");
    rig_close(&r);
}

/* RST, which a peer sends that closes without having read all. */
static void
say_reset(struct rig *r)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};

    setsockopt(r->peer, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(r->peer);
    r->peer = -1;
}

static void
test_resets(void)
{
    struct rig r;
    struct span got;

    rig_open_tcp(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    say_reset(&r);
    is_int(read_head(&r), WHY_EOF, "a reset before an answer: none came");
    is_int(r.f.why, WHY_SYS, "but the reason is noted");
    rig_close(&r);

    rig_open_tcp(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    say(&r, OK "\r\n");
    is_int(read_head(&r), WHY_NONE, "an answer until close");
    say_reset(&r);
    is_int(r.ops->read_body(r.http, &got, &r.f), WHY_SYS,
           "a reset does not complete it");
    ok(!r.ops->complete(r.http), "nor does it look so");
    rig_close(&r);

    rig_open_tcp(&r, SIDE_CLIENT);
    say(&r, GET "\r\n");
    read_head(&r);
    say_reset(&r);
    ok(end_wait(&r.end, 10000) && r.ops->gone(r.http), "the client is gone");
    answer(&r, OK "Content-Length: 0\r\n\r\n");
    write_end(&r);
    ok(flush(&r) == WHY_SYS && r.f.side == SIDE_CLIENT &&
           !r.ops->reusable(r.http),
       "it cannot be answered");
    rig_close(&r);
}

static bool
always(void *arg)
{
    (void)arg;
    return true;
}

static void
test_watch(void)
{
    struct watch watch = {always, NULL};
    struct rig r;

    rig_open(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    r.http->watch = &watch;
    is_int(read_head(&r), WHY_OVER, "a watch ends the wait for an answer");
    ok(r.end.watch == NULL, "and is not left behind");
    rig_close(&r);
}

/* ---- messages that are cut ----------------------------------------------- */

static void
test_short_and_long(void)
{
    struct rig r;

    rig_open(&r, SIDE_CLIENT);
    say(&r, GET "\r\n" GET "\r\n");
    read_head(&r);
    answer(&r, OK "Content-Length: 5\r\n\r\n");
    write_body(&r, "hell");
    is_int(write_end(&r), WHY_CUT, "less content than promised");
    ok(!r.ops->reusable(r.http), "the connection cannot go on");
    rig_close(&r);

    rig_open(&r, SIDE_CLIENT);
    say(&r, GET "\r\n");
    read_head(&r);
    answer(&r, OK "Content-Length: 5\r\n\r\n");
    is_int(write_body(&r, "hello!"), WHY_PROTO, "more is refused");
    flush(&r);
    ok(strstr(hear(&r), "hello") == NULL, "and not sent");
    rig_close(&r);

    rig_open(&r, SIDE_CLIENT);
    say(&r, GET "\r\n");
    read_head(&r);
    answer(&r, "HTTP/1.1 204 No\r\n\r\n");
    is_int(write_body(&r, "x"), WHY_PROTO, "no content for a 204");
    ok(!r.ops->reusable(r.http), "the connection cannot go on");
    rig_close(&r);
}

static void
test_abort_chunked(void)
{
    struct rig r;
    const char *heard;

    rig_open(&r, SIDE_CLIENT);
    say(&r, GET "\r\n");
    read_head(&r);
    answer(&r, OK "\r\n");
    write_body(&r, "hello");
    flush(&r);
    r.ops->abort(r.http, WHY_CUT);
    is_int(write_body(&r, "more"), WHY_OVER, "no content after an abort");
    is_int(write_end(&r), WHY_OVER, "and no last chunk");
    ok(!r.ops->reusable(r.http), "not reusable");
    end_clear(&r.end);
    heard = hear(&r);
    ok(strstr(heard, "hello") != NULL && strstr(heard, "0\r\n\r\n") == NULL,
       "the peer got what was sent, and no end");
    rig_close(&r);
}

/* How the peer sees the end: 0, or an errno. */
static int
peer_end(struct rig *r)
{
    struct pollfd p = {.fd = r->peer, .events = POLLIN};
    char buf[4096];
    ssize_t n;

    do {
        if (poll(&p, 1, 10000) <= 0)
            return ETIMEDOUT;
        n = recv(r->peer, buf, sizeof buf, 0);
    } while (n > 0);
    return n == 0 ? 0 : errno;
}

static void
test_until_close(bool cut)
{
    struct rig r;

    rig_open_tcp(&r, SIDE_CLIENT);
    say(&r, OLD);
    read_head(&r);
    answer(&r, OK "\r\n");
    write_body(&r, "hello");
    flush(&r);
    if (cut) {
        r.ops->abort(r.http, WHY_CUT);
    } else {
        is_int(write_end(&r), WHY_NONE, "complete");
        flush(&r);
        r.ops->abort(r.http, WHY_OVER); /* too late to change anything */
    }
    end_clear(&r.end);
    is_int(peer_end(&r), cut ? ECONNRESET : 0, "content until close, %s",
           cut ? "cut: a reset" : "whole: an end");
    rig_close(&r);
}

static void
test_gone(void)
{
    struct rig r;

    rig_open_tcp(&r, SIDE_CLIENT);
    ok(!r.ops->gone(r.http), "a peer is there");
    say_end(&r);
    ok(end_wait(&r.end, 10000) && !r.ops->gone(r.http),
       "one that has finished still listens");
    close(r.peer);
    r.peer = -1;
    rig_close(&r);
}

/* ---- the write buffer */

/* Heads are kept back until a flush, but not without end; a huge one does not
 * stay in memory. */
static void
test_out_buffer(void)
{
    static char value[20001];
    struct rig r;
    struct head head;
    const char *heard;
    size_t len;

    rig_open(&r, SIDE_CLIENT);
    for (int i = 0; i < 100; i++)
        say(&r, GET "\r\n");
    head_init(&head);
    head.status = 200;
    memset(value, 'v', 1000);
    head_add(&head, span_of("A"), span_of(value));
    for (int i = 0; i < 20; i++) {
        read_head(&r);
        r.ops->write_head(r.http, &head, &r.f);
        write_end(&r);
    }
    len = strlen(hear(&r));
    ok(len > 15000 && r.h1.out_len > 0 && r.h1.out_len < 16384,
       "many small answers are sent before a flush");
    flush(&r);
    ok(len + strlen(hear(&r)) > 20000, "and the rest with it");
    memset(value, 'v', 20000);
    head_add(&head, span_of("B"), span_of(value));
    read_head(&r);
    r.ops->write_head(r.http, &head, &r.f);
    write_end(&r);
    flush(&r);
    heard = hear(&r);
    ok(strstr(heard, value) != NULL, "a huge head is sent");
    ok(r.h1.out == NULL, "and forgotten");
    read_head(&r);
    r.ops->abort(r.http, WHY_CUT);
    is_int(r.ops->write_head(r.http, &head, &r.f), WHY_OVER,
           "no head after an abort");
    head_clear(&head);
    rig_close(&r);

    rig_open(&r, SIDE_CLIENT);
    say(&r, GET "\r\n");
    read_head(&r);
    answer(&r, OK "Content-Length: 0\r\n\r\n");
    write_end(&r);
    r.ops->abort(r.http, WHY_CUT);
    is_int(flush(&r), WHY_OVER, "nor what was written before");
    is_str(hear(&r), "", "the peer hears nothing");
    rig_close(&r);
}

/* ---- past the codec ------------------------------------------------------ */

static void
test_raw(void)
{
    struct rig r;
    uint64_t left = 0;
    struct span got;

    rig_open(&r, SIDE_CLIENT);
    say(&r, POST "Content-Length: 10\r\n\r\nabc");
    read_head(&r);
    ok(r.ops->pending(r.http), "content is pending");
    ok(r.ops->raw_in(r.http, &left) == NULL, "buffered content comes first");
    r.ops->read_body(r.http, &got, &r.f);
    ok(r.ops->raw_in(r.http, &left) == &r.end && left == 7,
       "then the rest can pass by");
    r.ops->raw_moved(r.http, 6, 0);
    ok(!r.ops->complete(r.http), "most of it did");
    r.ops->raw_moved(r.http, 1, 0);
    ok(r.ops->complete(r.http) && r.http->n_in == 10, "all of it did");
    ok(r.ops->raw_in(r.http, &left) == NULL, "there is no more");
    ok(r.ops->raw_out(r.http) == NULL, "no answer has begun");
    answer(&r, OK "Content-Length: 5\r\n\r\n");
    ok(r.ops->raw_out(r.http) == NULL, "the head has to be sent first");
    flush(&r);
    ok(r.ops->raw_out(r.http) == &r.end, "now content can pass by");
    r.ops->raw_moved(r.http, 0, 5);
    is_int(write_end(&r), WHY_NONE, "and completes the answer");
    ok(r.ops->reusable(r.http) && r.http->n_out == 5, "on to the next");
    rig_close(&r);

    rig_open(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    say(&r, OK "\r\n");
    read_head(&r);
    ok(r.ops->raw_in(r.http, &left) == &r.end && left == UINT64_MAX,
       "content until close has no count");
    say_end(&r);
    r.ops->raw_moved(r.http, 1000, 0);
    ok(r.ops->read_body(r.http, &got, &r.f) == WHY_EOF &&
           r.ops->complete(r.http),
       "its end is the codec's to see");
    rig_close(&r);

    rig_open(&r, SIDE_ORIGIN);
    ask(&r, ASK("GET"));
    say(&r, OK "Transfer-Encoding: chunked\r\n\r\n");
    read_head(&r);
    ok(r.ops->raw_in(r.http, &left) == NULL, "chunks never pass by");
    rig_close(&r);
}

/* ---- both roles against each other, two threads each --------------------- */

enum { BULK = 3000000 };

struct way { /* one direction of one codec, on a thread of its own */
    struct rig *rig;
    const char *trailer;
    size_t n;
    bool good;
};

/* Pieces of every size, small ones and such as fill a buffer. */
static void *
write_way(void *arg)
{
    static char data[100000];
    struct way *w = arg;
    struct head tail;
    struct fail f = {0};
    size_t n = 1;
    enum why why = WHY_NONE;

    head_init(&tail);
    head_add(&tail, span_of("X-Way"), span_of(w->trailer));
    while (w->n < BULK && why == WHY_NONE) {
        struct span piece = {data, n < BULK - w->n ? n : BULK - w->n};

        why = w->rig->ops->write_body(w->rig->http, piece, &f);
        if (why == WHY_NONE && n % 3 == 0)
            why = w->rig->ops->flush(w->rig->http, &f);
        w->n += piece.len;
        n = n * 7 % 99991;
    }
    if (why == WHY_NONE)
        why = w->rig->ops->write_end(w->rig->http, &tail, &f);
    if (why == WHY_NONE)
        why = w->rig->ops->flush(w->rig->http, &f);
    w->good = why == WHY_NONE;
    head_clear(&tail);
    return NULL;
}

static void *
read_way(void *arg)
{
    struct way *w = arg;
    struct fail f = {0};
    const struct head *tail;
    struct span got;
    enum why why;

    while ((why = w->rig->ops->read_body(w->rig->http, &got, &f)) == WHY_NONE) {
        w->n += got.len;
        (void)w->rig->ops->pending(w->rig->http);
    }
    tail = w->rig->ops->trailers(w->rig->http);
    w->good = why == WHY_EOF && tail != NULL && tail->n_fields == 1 &&
              span_is(tail->fields[0].value, w->trailer);
    return NULL;
}

static void
test_both_roles(void)
{
    struct rig client, server;
    int fds[2];
    pthread_t threads[4];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
        exit(2);
    rig_on(&client, SIDE_ORIGIN, fds[0], -1);
    rig_on(&server, SIDE_CLIENT, fds[1], -1);
    for (int i = 0; i < 3; i++) {
        struct way ways[4] = {{&client, "up", 0, false},
                              {&server, "up", 0, false},
                              {&server, "down", 0, false},
                              {&client, "down", 0, false}};
        struct head req;

        head_from(&req,
                  POST "TE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n",
                  SIDE_CLIENT);
        client.ops->write_head(client.http, &req, &client.f);
        flush(&client);
        head_clear(&req);
        read_head(&server);
        answer(&server, OK "\r\n");
        flush(&server);
        read_head(&client);
        for (int t = 0; t < 4; t++)
            pthread_create(&threads[t], NULL, t % 2 == 0 ? write_way : read_way,
                           &ways[t]);
        for (int t = 0; t < 4; t++) {
            pthread_join(threads[t], NULL);
            ok(ways[t].good && ways[t].n == BULK, "round %d, way %d: whole", i,
               t);
        }
        ok(client.ops->reusable(client.http) &&
               server.ops->reusable(server.http),
           "round %d: both go on", i);
    }
    rig_close(&client);
    rig_close(&server);
}

/* ---- TLS: which ends count ----------------------------------------------- */

struct tls_peer {
    int fd;
    const char *says;
    bool goodbye;
    bool good;
};

static gnutls_anon_server_credentials_t anon_server;
static gnutls_anon_client_credentials_t anon_client;
static const char anon[] = "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ANON-ECDH";

/* An origin: handshake, text, and an end with or without close_notify. */
static void *
tls_peer_run(void *arg)
{
    struct tls_peer *p = arg;
    gnutls_session_t s;
    struct end e;
    struct fail f = {0};
    struct iovec iov = {(void *)p->says, strlen(p->says)};

    gnutls_init(&s, GNUTLS_SERVER);
    gnutls_priority_set_direct(s, anon, NULL);
    gnutls_credentials_set(s, GNUTLS_CRD_ANON, anon_server);
    end_init(&e, p->fd, SIDE_CLIENT, 20000);
    p->good = end_handshake(&e, s, now_ms() + 20000, &f) == WHY_NONE &&
              end_write(&e, &iov, 1, &f) == WHY_NONE &&
              (!p->goodbye || end_finish(&e, &f) == WHY_NONE);
    end_clear(&e);
    return NULL;
}

static void
test_tls_end(const char *says, bool goodbye, const char *content, enum why want)
{
    struct tls_peer peer = {.says = says, .goodbye = goodbye};
    gnutls_session_t s;
    pthread_t thread;
    uint64_t left;
    struct rig r;
    enum why why;

    rig_open(&r, SIDE_ORIGIN);
    peer.fd = r.peer;
    r.peer = -1;
    pthread_create(&thread, NULL, tls_peer_run, &peer);
    gnutls_init(&s, GNUTLS_CLIENT);
    gnutls_priority_set_direct(s, anon, NULL);
    gnutls_credentials_set(s, GNUTLS_CRD_ANON, anon_client);
    is_int(end_handshake(&r.end, s, now_ms() + 20000, &r.f), WHY_NONE,
           "a TLS handshake");
    pthread_join(thread, NULL);
    r.h1.method_id = METHOD_GET;
    why = read_head(&r);
    if (why == WHY_NONE) {
        ok(r.ops->raw_in(r.http, &left) == NULL, "TLS is not raw");
        is_str(read_all(&r, &why), content, "content over TLS");
    }
    is_str(why_name(why), why_name(want), "%s close_notify: %s",
           goodbye ? "with" : "without", visible(says, strlen(says)));
    ok(peer.good, "... as the peer meant it");
    if (r.head.status != 0)
        ok(r.ops->complete(r.http) == (want == WHY_EOF), "... complete?");
    rig_close(&r);
}

static void
test_tls(void)
{
    gnutls_anon_allocate_server_credentials(&anon_server);
    gnutls_anon_allocate_client_credentials(&anon_client);
    test_tls_end(OK "\r\nhello", true, "hello", WHY_EOF);
    test_tls_end(OK "\r\nhello", false, "hello", WHY_CUT);
    test_tls_end(OK "Content-Length: 6\r\n\r\nhello", true, "hello", WHY_CUT);
    test_tls_end(OK "Content-Length: 5\r\n\r\nhello", false, "hello", WHY_EOF);
    test_tls_end("", false, "", WHY_EOF);
    test_tls_end("HTTP/1.1 200", false, "", WHY_CUT);
    gnutls_anon_free_client_credentials(anon_client);
    gnutls_anon_free_server_credentials(anon_server);
}

int
main(void)
{
    test_good_heads();
    test_bad_heads();
    test_refusal_answered();
    test_limits();
    test_chunks();
    test_extensions();
    test_framing();
    test_head_facts();
    test_write_requests();
    test_write_request_more();
    for (size_t i = 0; i < N_OF(answers); i++)
        test_write_answer(&answers[i]);
    test_own_answer();
    test_interim();
    test_pipeline();
    test_glued();
    test_trailers_in();
    test_trailers_out();
    test_pending();
    test_clocks();
    test_ends();
    test_resets();
    test_watch();
    test_out_buffer();
    test_short_and_long();
    test_abort_chunked();
    test_until_close(true);
    test_until_close(false);
    test_gone();
    test_raw();
    test_both_roles();
    test_tls();
    return done_testing();
}
