/*
 * t/http.c - spans, heads, lists, names, and where a request wants to go.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"
#include "tap.h"

#define N_OF(array) (sizeof(array) / sizeof((array)[0]))

static struct h1_limits limits = {65536, 8192, 200, 10000};

/* A span as text, for is_str(); a few are alive at once. */
static const char *
text(struct span s)
{
    static char out[4][8192];
    static int n;
    char *at = out[n++ % 4];

    snprintf(at, sizeof out[0], "%.*s", (int)s.len, s.len > 0 ? s.at : "");
    return at;
}

static void
test_spans(void)
{
    static const struct {
        const char *text;
        bool good;
        uint64_t n;
    } numbers[] = {
        {"0", true, 0},
        {"00042", true, 42},
        {"18446744073709551615", true, UINT64_MAX},
        {"18446744073709551616", false, 0},
        {"99999999999999999999999", false, 0},
        {"", false, 0},
        {"-1", false, 0},
        {"+1", false, 0},
        {"1 ", false, 0},
        {"0x10", false, 0},
        {"1,1", false, 0},
    };

    ok(span_is(span_of("Host"), "Host"), "span_is: same bytes");
    ok(!span_is(span_of("Host"), "host"), "span_is: case counts");
    ok(!span_is(span_of("Host"), "Hos"), "span_is: length counts");
    ok(span_is((struct span){NULL, 0}, ""), "span_is: nothing is nothing");
    ok(span_isi(span_of("HoSt"), "hOsT"), "span_isi: case does not count");
    ok(!span_isi(span_of("a@b"), "a`b"), "span_isi: letters alone have case");
    ok(!span_isi(span_of("K\xc3\x84"), "K\xc3\xa4"), "span_isi: ASCII only");
    is_str(text(span_trim(span_of(" \t a b\t "))), "a b", "span_trim");
    is_int(span_trim(span_of(" \t ")).len, 0, "span_trim: nothing is left");
    for (size_t i = 0; i < N_OF(numbers); i++) {
        uint64_t n = 7;
        bool good = span_number(span_of(numbers[i].text), &n);

        ok(good == numbers[i].good && n == (good ? numbers[i].n : 7),
           "span_number \"%s\"", numbers[i].text);
    }
}

static void
test_arena(void)
{
    struct head head;
    struct span pieces[400];
    char big[20000];
    int same = 0;

    head_init(&head);
    memset(big, 'x', sizeof big);
    for (int i = 0; i < 400; i++) {
        char name[64];
        int len = snprintf(name, sizeof name, "piece-%d-%0*d", i, i % 16, i);

        pieces[i] = head_text(&head, name, (size_t)len);
        if (i % 50 == 0)
            (void)head_text(&head, big, sizeof big);
    }
    for (int i = 0; i < 400; i++) {
        char name[64];

        snprintf(name, sizeof name, "piece-%d-%0*d", i, i % 16, i);
        same += span_is(pieces[i], name);
    }
    is_int(same, 400, "pieces stay as they are while the arena grows");
    head_reset(&head);
    ok(head.arena != NULL && head.fields == NULL, "a reset keeps a block");
    ok(head_text(&head, "", 0).at != NULL, "an empty text is not a failure");
    head_clear(&head);
    head_clear(&head);
    ok(head.arena == NULL && head.fields == NULL, "head_clear may run twice");
    (void)head_text(&head, big, sizeof big);
    head_reset(&head);
    ok(head.arena == NULL, "a huge first piece is not kept");
    head_clear(&head);
}

static void
test_fields(void)
{
    struct head head;
    const struct field *f, *fields;
    char value[8] = "one";
    int n = 0;

    head_init(&head);
    ok(head_find(&head, "Via", NULL) == NULL, "nothing in an empty head");
    is_int(head_joined(&head, "Via").len, 0, "and nothing to join");
    ok(head_add(&head, span_of("Via"), span_of(value)), "head_add");
    memcpy(value, "two", 4); /* it was copied */
    ok(head_add(&head, span_of("Date"), span_of("now")), "another");
    is_str(text(head_joined(&head, "via")), "one",
           "one field joined is itself");
    ok(head_add(&head, span_of("VIA"), span_of(value)), "and a second Via");
    is_str(text(head_joined(&head, "via")), "one, two", "two are a list");
    f = head_find(&head, "via", NULL);
    is_str(text(f->value), "one", "found whatever the case, its value copied");
    f = head_find(&head, "via", f);
    is_str(text(f->name), "VIA", "the next, in its own spelling");
    ok(head_find(&head, "via", f) == NULL, "and no more");
    ok(!head_add(&head, span_of("X"), span_of("a\r\nEvil: yes")) &&
           !head_add(&head, span_of("X"), span_of("a\nb")) &&
           !head_add(&head, span_of("X"), span_of(" a")) &&
           !head_add(&head, span_of("X Y"), span_of("a")) &&
           !head_add(&head, span_of(""), span_of("a")),
       "what breaks the grammar is not added");
    is_int(head.n_fields, 3, "nothing was");
    for (int i = 0; i < 300; i++)
        n += head_add(&head, span_of("Many"), span_of("yes"));
    is_int(n, 300, "many fields");
    fields = head.fields;
    head_reset(&head);
    ok(head.n_fields == 0 && head.fields == fields, "the array is kept");
    head_clear(&head);
}

static void
test_lists(void)
{
    struct span rest = span_of(" a, ,b c ,, \"x\t,"), item;
    char all[64] = "";

    while (list_next(&rest, &item))
        snprintf(all + strlen(all), sizeof all - strlen(all), "[%s]",
                 text(item));
    is_str(all, "[a][b c][\"x]", "list_next: trimmed, empty ones passed over");
    ok(list_has(span_of("close, Keep-Alive"), "keep-alive"), "list_has");
    ok(!list_has(span_of("closed, x-close"), "close"), "whole elements");
    ok(!list_has(span_of(""), "close"), "list_has: nothing in nothing");
    ok(list_has(span_of(",,close"), "CLOSE"), "list_has: after empty ones");
}

static void
test_grammar(void)
{
    static const char tchars[] = "!#$%&'*+-.^_`|~0123456789"
                                 "abcdefghijklmnopqrstuvwxyz"
                                 "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    int token = 0, value = 0;

    for (int c = 0; c < 256; c++) {
        char s[3] = {'a', (char)c, 'a'};
        struct span span = {s, 3};
        bool is_tchar = c != 0 && strchr(tchars, c) != NULL;
        bool is_vchar = c == '\t' || (c >= ' ' && c != 0x7f);

        token += is_token(span) == is_tchar;
        value += is_field_value(span) == is_vchar;
    }
    is_int(token, 256, "is_token agrees with RFC 9110 section 5.6.2");
    is_int(value, 256, "is_field_value agrees with section 5.5");
    ok(!is_token(span_of("")), "a token is not empty");
    ok(is_field_value(span_of("")), "a value may be");
    ok(!is_field_value(span_of(" a")) && !is_field_value(span_of("a\t")),
       "no space around a value");
    ok(method_of(span_of("GET")) == METHOD_GET &&
           method_of(span_of("get")) == METHOD_OTHER &&
           method_of(span_of("PATCH")) == METHOD_PATCH &&
           method_of(span_of("GETS")) == METHOD_OTHER &&
           method_of(span_of("")) == METHOD_OTHER,
       "methods");
    ok(method_idempotent(METHOD_PUT) && method_idempotent(METHOD_HEAD) &&
           !method_idempotent(METHOD_POST) &&
           !method_idempotent(METHOD_CONNECT) &&
           !method_idempotent(METHOD_OTHER),
       "idempotent methods");
    is_str(status_reason(404), "Not Found", "a reason phrase");
    is_str(status_reason(599), "", "no reason phrase");
    is_str(version_name(HTTP_11), "http/1.1", "a version's name");
}

static void
test_hop_by_hop(void)
{
    static const char *const hop[] = {
        "connection",
        "KEEP-ALIVE",
        "Proxy-Connection",
        "Transfer-Encoding",
        "te",
        "Upgrade",
        "HTTP2-Settings",
        "X-Mine",
        "Proxy-Authorization",
        "Proxy-Authenticate",
        "Proxy-Authentication-Info",
        "foo",
        "Cookie",
    };
    static const char *const not_hop[] = {
        "Host",           "Via",
        "Content-Length", "Content-Type",
        "X-Yours",        "Accept",
        "Max-Forwards",   "Trailer",
        "Connection-Foo", "Sec-WebSocket-Key",
        "Date",
    };
    static const char *const no_trailer[] = {
        "Content-Length", "transfer-encoding", "HOST",          "Trailer",
        "Authorization",  "Set-Cookie",        "Cache-Control", "TE",
        "Content-Type",   "Connection",        "Expect",        "Via",
        "If-None-Match",  "Content-Encoding",  "Range",         "Location",
    };
    struct head head = {
        .connection = span_of("x-mine, close, FOO, cookie, host, via, "
                              "content-length, content-type, max-forwards, "
                              "date")};
    struct head plain = {0};

    for (size_t i = 0; i < N_OF(hop); i++)
        ok(field_is_hop(&head, span_of(hop[i])), "%s is for one hop", hop[i]);
    for (size_t i = 0; i < N_OF(not_hop); i++)
        ok(!field_is_hop(&head, span_of(not_hop[i])), "%s is for all",
           not_hop[i]);
    ok(!field_is_hop(&plain, span_of("X-Mine")), "not named: for all");
    for (size_t i = 0; i < N_OF(no_trailer); i++)
        ok(!field_ok_in_trailer(span_of(no_trailer[i])),
           "%s cannot be a trailer", no_trailer[i]);
    ok(field_ok_in_trailer(span_of("Digest")) &&
           field_ok_in_trailer(span_of("Server-Timing")) &&
           field_ok_in_trailer(span_of("grpc-status")),
       "others can");
}

static void
test_authority(void)
{
    static const struct {
        const char *text, *host; /* NULL: refused */
        int port;
    } table[] = {
        {"example.com", "example.com", 0},
        {"EXAMPLE.Com:8080", "example.com", 8080},
        {"example.com.", "example.com", 0},
        {"example.com.:81", "example.com", 81},
        {"example.com:", "example.com", 0},
        {"a_b-c.d1", "a_b-c.d1", 0},
        {"127.0.0.1:65535", "127.0.0.1", 65535},
        {"h:00080", "h", 80},
        {"[::1]", "::1", 0},
        {"[2001:DB8:0:0::1]:443", "2001:db8::1", 443},
        {"[::ffff:1.2.3.4]:1", "::ffff:1.2.3.4", 1},
        {"", NULL, 0},
        {":80", NULL, 0},
        {"h:0", NULL, 0},
        {"h:65536", NULL, 0},
        {"h:99999999999999999999999", NULL, 0},
        {"h:-1", NULL, 0},
        {"h:80x", NULL, 0},
        {"h:80:81", NULL, 0},
        {"h 80", NULL, 0},
        {"h,i", NULL, 0},
        {"h/i", NULL, 0},
        {"h%20i", NULL, 0},
        {"h\\i", NULL, 0},
        {"user@h", NULL, 0},
        {"user:pw@h", NULL, 0},
        {".", NULL, 0},
        {"..", NULL, 0},
        {".h", NULL, 0},
        {"a..b", NULL, 0},
        {"h..", NULL, 0},
        {"::1", NULL, 0},
        {"[::1", NULL, 0},
        {"[]", NULL, 0},
        {"[1.2.3.4]", NULL, 0},
        {"[::1]80", NULL, 0},
        {"[fe80::1%25eth0]", NULL, 0},
        {"[v1.x]", NULL, 0},
        {"b\xc3\xbc"
         "cher.de",
         NULL, 0},
    };
    char host[HOST_MAX + 1], name[300];
    struct span longest;
    uint16_t port;

    for (size_t i = 0; i < N_OF(table); i++) {
        bool good = authority_parse(span_of(table[i].text), host, &port);

        ok(good == (table[i].host != NULL) &&
               (!good ||
                (strcmp(host, table[i].host) == 0 && port == table[i].port)),
           "authority \"%s\"", table[i].text);
    }
    for (int i = 0; i < 299; i++)
        name[i] = i % 50 == 49 ? '.' : 'a';
    longest = (struct span){name, HOST_MAX};
    ok(authority_parse(longest, host, &port) && strlen(host) == HOST_MAX,
       "the longest host");
    longest.len++;
    ok(!authority_parse(longest, host, &port), "and one byte more");
    ok(host_is_address("::1") && host_is_address("10.0.0.1") &&
           !host_is_address("10.0.0") && !host_is_address("h"),
       "host_is_address");
}

static void
test_origin_text(void)
{
    static const struct {
        struct origin origin;
        const char *want;
    } table[] = {
        {{.host = "h", .port = 80}, "h"},
        {{.host = "h", .port = 443}, "h:443"},
        {{.tls = true, .host = "h", .port = 443}, "h"},
        {{.tls = true, .host = "::1", .port = 8443}, "[::1]:8443"},
        {{.host = "::1", .port = 80}, "[::1]"},
    };
    char out[HOST_MAX + 16], small[3];

    for (size_t i = 0; i < N_OF(table); i++) {
        origin_authority(&table[i].origin, out, sizeof out);
        is_str(out, table[i].want, "origin %s", table[i].want);
    }
    origin_authority(&table[3].origin, small, sizeof small);
    is_str(small, "[:", "cut, with its NUL, when there is no room");
}

/* ---- head_route ---------------------------------------------------------- */

static struct weir weir;
static struct config conf;
static struct listener_conf listening[2];
static char *names[] = {"proxy.lan", "192.0.2.7"};
static const struct origin tls_target = {
    .tls = true, .host = "inside.test", .port = 8443, .sni = "sni.test"};
static const struct origin plain_target = {.host = "::1", .port = 80};

static void
set_up(void)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)&listening[0].addr;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&listening[1].addr;

    v4->sin_family = AF_INET;
    inet_pton(AF_INET, "198.51.100.3", &v4->sin_addr);
    v6->sin6_family = AF_INET6;
    inet_pton(AF_INET6, "2001:db8::9", &v6->sin6_addr);
    conf.listen = listening;
    conf.n_listen = 2;
    conf.names = names;
    conf.n_names = 2;
    weir.ports[0] = 8080;
    weir.ports[1] = 9090;
    weir.n_ports = 2;
}

enum inside { OUTSIDE, IN_TLS, IN_PLAIN };

struct routed { /* one request and where it goes */
    const char *line, *fields;
    enum inside inside;
    const char *why; /* "NONE": these count: */
    const char *scheme, *authority, *path;
    const char *origin; /* "tls host port us", "us": our own pages */
};

#define HOST "Host: h\r\n"

static const struct routed routes[] = {
    /* absolute-form */
    {"GET http://h/p?q HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h", "/p?q",
     "0 h 80"},
    {"GET HTTP://H.Test:8081/P HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "H.Test:8081", "/P", "0 h.test 8081"},
    {"GET https://h/ HTTP/1.1", HOST, OUTSIDE, "NONE", "https", "h", "/",
     "1 h 443"},
    {"GET http://h HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h", "/",
     "0 h 80"},
    {"GET http://h: HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h", "/",
     "0 h 80"},
    {"GET http://h:443/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h:443", "/",
     "0 h 443"},
    {"GET http://h?a=/b HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h", "/?a=/b",
     "0 h 80"},
    {"GET http://[2001:db8::1]:81/x HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "[2001:db8::1]:81", "/x", "0 2001:db8::1 81"},
    {"OPTIONS http://h HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h", "*",
     "0 h 80"},
    {"OPTIONS http://h/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h", "/",
     "0 h 80"},
    {"OPTIONS http://h?x HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h", "/?x",
     "0 h 80"},
    {"GET http://h//x//y HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h",
     "//x//y", "0 h 80"},
    {"GET http://other/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "other", "/",
     "0 other 80"},
    {"GET http://h/ HTTP/1.1", "Host:\r\n", OUTSIDE, "NONE", "http", "h", "/",
     "0 h 80"},
    {"GET http://h/ HTTP/1.0", "", OUTSIDE, "NONE", "http", "h", "/", "0 h 80"},
    {"GET http://h/http://u@i/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h",
     "/http://u@i/", "0 h 80"},
    {"GET http://h/ HTTP/1.1", "", OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h/ HTTP/1.1", HOST HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h/ HTTP/1.0", HOST HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h/ HTTP/1.1", "Host: a b\r\n", OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h/ HTTP/1.1", "Host: a,b\r\n", OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h/ HTTP/1.1", "Host: u@h\r\n", OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h/ HTTP/1.0", "Host: a/b\r\n", OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://u@h/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://u:p@h/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://@h/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h/#f HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h#f HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http:/// HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http:// HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://?q HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://:80/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h:0/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h:65536/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h:+8/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http://h\\@i/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET ftp://h/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET ws://h/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http:h HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET http:/h HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET h HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET h:80 HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET ?q HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    /* absolute-form that names ourselves */
    {"GET http://weir.invalid/ca.pem HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "weir.invalid", "/ca.pem", "0 weir.invalid 80 us"},
    {"GET http://WEIR.invalid.:99/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "WEIR.invalid.:99", "/", "0 weir.invalid 99 us"},
    {"GET http://localhost:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "localhost:8080", "/", "0 localhost 8080 us"},
    {"GET http://a.localhost:9090/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "a.localhost:9090", "/", "0 a.localhost 9090 us"},
    {"GET http://127.9.9.9:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "127.9.9.9:8080", "/", "0 127.9.9.9 8080 us"},
    {"GET http://0.0.0.0:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "0.0.0.0:8080", "/", "0 0.0.0.0 8080 us"},
    {"GET http://[::1]:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "[::1]:8080", "/", "0 ::1 8080 us"},
    {"GET http://[::]:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "[::]:8080", "/", "0 :: 8080 us"},
    {"GET http://[::ffff:127.0.0.1]:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE",
     "http", "[::ffff:127.0.0.1]:8080", "/", "0 ::ffff:127.0.0.1 8080 us"},
    {"GET http://proxy.lan:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "proxy.lan:8080", "/", "0 proxy.lan 8080 us"},
    {"GET http://192.0.2.7:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "192.0.2.7:8080", "/", "0 192.0.2.7 8080 us"},
    {"GET http://198.51.100.3:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "198.51.100.3:8080", "/", "0 198.51.100.3 8080 us"},
    {"GET http://[2001:DB8:0::9]:9090/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "[2001:DB8:0::9]:9090", "/", "0 2001:db8::9 9090 us"},
    {"GET http://localhost:8081/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "localhost:8081", "/", "0 localhost 8081"},
    {"GET http://proxy.lan/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "proxy.lan", "/", "0 proxy.lan 80"},
    {"GET http://notlocalhost:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "notlocalhost:8080", "/", "0 notlocalhost 8080"},
    {"GET http://198.51.100.4:8080/ HTTP/1.1", HOST, OUTSIDE, "NONE", "http",
     "198.51.100.4:8080", "/", "0 198.51.100.4 8080"},
    /* absolute-form inside: the way is known, the request says what it is */
    {"GET http://h:81/p HTTP/1.1", HOST, IN_TLS, "NONE", "http", "h:81", "/p",
     "1 inside.test 8443"},
    {"GET http://localhost:8080/ HTTP/1.1", HOST, IN_TLS, "NONE", "http",
     "localhost:8080", "/", "1 inside.test 8443"},
    {"GET https://weir.invalid/ HTTP/1.1", HOST, IN_TLS, "NONE", "https",
     "weir.invalid", "/", "1 inside.test 8443 us"},
    /* origin-form */
    {"GET /p?q HTTP/1.1", "Host: proxy.lan:8080\r\n", OUTSIDE, "NONE", "http",
     "proxy.lan:8080", "/p?q", "us"},
    {"GET / HTTP/1.1", "Host: anybody\r\n", OUTSIDE, "NONE", "http", "anybody",
     "/", "us"},
    {"GET / HTTP/1.0", "", OUTSIDE, "NONE", "http", "", "/", "us"},
    {"GET /p HTTP/1.1", "host: Name.test:8443\r\n", IN_TLS, "NONE", "https",
     "Name.test:8443", "/p", "1 inside.test 8443"},
    {"GET /p HTTP/1.1", HOST, IN_PLAIN, "NONE", "http", "h", "/p", "0 ::1 80"},
    {"GET //h/p HTTP/1.1", HOST, IN_PLAIN, "NONE", "http", "h", "//h/p",
     "0 ::1 80"},
    {"GET /p HTTP/1.0", "", IN_TLS, "NONE", "https", "inside.test:8443", "/p",
     "1 inside.test 8443"},
    {"GET /p HTTP/1.0", "Host:\r\n", IN_PLAIN, "NONE", "http", "[::1]", "/p",
     "0 ::1 80"},
    {"GET /ca.pem HTTP/1.1", "Host: weir.invalid\r\n", IN_TLS, "NONE", "https",
     "weir.invalid", "/ca.pem", "1 inside.test 8443 us"},
    {"GET / HTTP/1.1", "", IN_TLS, "PROTO", 0, 0, 0, 0},
    {"GET / HTTP/1.1", "Host:\r\n", IN_TLS, "PROTO", 0, 0, 0, 0},
    {"GET / HTTP/1.1", "Host:\r\n", OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET / HTTP/1.1", "", OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"GET / HTTP/1.1", HOST "host: i\r\n", IN_TLS, "PROTO", 0, 0, 0, 0},
    {"GET / HTTP/1.1", "Host: h:0\r\n", IN_TLS, "PROTO", 0, 0, 0, 0},
    {"GET / HTTP/1.1", "Host: http://h\r\n", IN_TLS, "PROTO", 0, 0, 0, 0},
    {"GET /#f HTTP/1.1", HOST, IN_TLS, "PROTO", 0, 0, 0, 0},
    /* asterisk-form */
    {"OPTIONS * HTTP/1.1", HOST, OUTSIDE, "NONE", "http", "h", "*", "us"},
    {"OPTIONS * HTTP/1.1", "Host:\r\n", OUTSIDE, "NONE", "http", "", "*", "us"},
    {"OPTIONS * HTTP/1.1", HOST, IN_TLS, "NONE", "https", "h", "*",
     "1 inside.test 8443"},
    {"OPTIONS * HTTP/1.1", "Host:\r\n", IN_TLS, "NONE", "https",
     "inside.test:8443", "*", "1 inside.test 8443"},
    {"GET * HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"OPTIONS *x HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"options * HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    /* authority-form */
    {"CONNECT H:443 HTTP/1.1", "Host: x\r\n", OUTSIDE, "NONE", "", "H:443", "",
     "0 h 443"},
    {"CONNECT [::1]:22 HTTP/1.1", "Host:\r\n", OUTSIDE, "NONE", "", "[::1]:22",
     "", "0 ::1 22"},
    {"CONNECT h:80 HTTP/1.0", "", OUTSIDE, "NONE", "", "h:80", "", "0 h 80"},
    {"CONNECT weir.invalid:443 HTTP/1.1", HOST, OUTSIDE, "NONE", "",
     "weir.invalid:443", "", "0 weir.invalid 443"},
    {"CONNECT h HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT h: HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT h:0 HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT :443 HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT ::1:443 HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT u@h:443 HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT h:443/ HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT http://h:443 HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT / HTTP/1.1", HOST, OUTSIDE, "PROTO", 0, 0, 0, 0},
    {"CONNECT h:443 HTTP/1.1", "", OUTSIDE, "PROTO", 0, 0, 0, 0},
};

static bool
routed_as(const struct routed *r, const struct head *head,
          const struct origin *origin, bool ourselves)
{
    char to[HOST_MAX + 32] = "";

    if (origin->host[0] != '\0')
        snprintf(to, sizeof to, "%d %s %u%s", origin->tls, origin->host,
                 origin->port, ourselves ? " us" : "");
    else if (ourselves)
        snprintf(to, sizeof to, "us");
    return span_is(head->scheme, r->scheme) &&
           span_is(head->authority, r->authority) &&
           span_is(head->path, r->path) && strcmp(to, r->origin) == 0;
}

static void
test_route(const struct routed *r)
{
    struct client client = {
        .weir = &weir,
        .conf = &conf,
        .inside = r->inside == IN_TLS     ? &tls_target
                  : r->inside == IN_PLAIN ? &plain_target
                                          : NULL,
    };
    struct origin origin;
    struct head head;
    struct fail f = {0};
    char raw[1024];
    bool ourselves;
    size_t used;
    enum why why;
    int len = snprintf(raw, sizeof raw, "%s\r\n%s\r\n", r->line, r->fields);

    head_init(&head);
    why =
        h1_parse_head(raw, (size_t)len, SIDE_CLIENT, &limits, &head, &used, &f);
    if (why != WHY_NONE)
        diag("not even parsed: %s", f.op);
    why = head_route(&head, &client, &origin, &ourselves, &f);
    is_str(why_name(why), r->why, "%s (%s%.*s): %s", r->line,
           r->inside == OUTSIDE ? "" : "inside, ",
           (int)strcspn(r->fields, "\r"), r->fields, r->why);
    if (why == WHY_NONE &&
        !ok(routed_as(r, &head, &origin, ourselves), "... goes there"))
        diag("%s | %s | %s | %d %s %u | ourselves %d", text(head.scheme),
             text(head.authority), text(head.path), origin.tls, origin.host,
             origin.port, ourselves);
    if (why != WHY_NONE)
        ok(f.side == SIDE_CLIENT && f.op != NULL &&
               why_status(f.why, f.side) == 400,
           "... the client's fault: %s", f.op);
    head_clear(&head);
}

/* What the table has no column for. */
static void
test_route_more(void)
{
    static const char raw[] = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    struct client client = {.weir = &weir, .conf = &conf, .tls = true};
    struct origin origin;
    struct head head;
    struct fail f = {0};
    bool ourselves = false;
    size_t used;

    head_init(&head);
    h1_parse_head(raw, sizeof raw - 1, SIDE_CLIENT, &limits, &head, &used, &f);
    head_route(&head, &client, &origin, &ourselves, &f);
    ok(ourselves && span_is(head.scheme, "https"),
       "our own pages over TLS are https");
    client.inside = &tls_target;
    client.own_name = true;
    head_route(&head, &client, &origin, &ourselves, &f);
    ok(ourselves, "TLS for our own name: our own pages");
    client.own_name = false;
    head_route(&head, &client, &origin, &ourselves, &f);
    ok(!ourselves && strcmp(origin.sni, "sni.test") == 0,
       "inside, the whole of the known origin is used");
    head_clear(&head);
}

int
main(void)
{
    set_up();
    test_spans();
    test_arena();
    test_fields();
    test_lists();
    test_grammar();
    test_hop_by_hop();
    test_authority();
    test_origin_text();
    for (size_t i = 0; i < N_OF(routes); i++)
        test_route(&routes[i]);
    test_route_more();
    return done_testing();
}
