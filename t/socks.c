/*
 * t/socks.c - SOCKS messages: each kind, whole, cut at every length, wrong in
 * every way we know, and what comes behind them.
 */
#include <errno.h>
#include <stdlib.h>

#include "proxy.h"
#include "t/tap.h"

#define BYTES(text) text, sizeof(text) - 1

struct probe {
    enum why why;
    size_t used;
    struct socks_said said;
    struct socks next;
};

static const struct socks fresh;

/* A copy of its own, so that a sanitizer sees a read beyond it. */
static struct probe
parse(const struct socks *s, const char *raw, size_t len)
{
    struct probe p = {.used = 9999};
    char *copy = malloc(len > 0 ? len : 1);

    memcpy(copy, raw, len);
    p.why = socks_parse(s, copy, len, &p.used, &p.said, &p.next);
    free(copy);
    return p;
}

static struct socks
five(enum socks_wants wants)
{
    return (struct socks){.version = 5, .wants = wants};
}

/* Complete with its last byte, not before, and blind to what follows. */
static struct probe
good(struct socks s, const char *raw, size_t len, const char *what)
{
    char longer[1024];
    struct probe p;
    size_t cut = 0;

    while (cut < len && parse(&s, raw, cut).why == WHY_MORE)
        cut++;
    is_int(cut, len, "%s: cut anywhere it asks for more", what);
    memcpy(longer, raw, len);
    memset(longer + len, 5, sizeof longer - len);
    p = parse(&s, longer, sizeof longer);
    is_int(p.why, WHY_NONE, "%s: complete", what);
    is_int(p.used, len, "%s: and what follows is left", what);
    return parse(&s, raw, len);
}

/* Refused when all of it is there, whatever is missing before. */
static void
bad(struct socks s, const char *raw, size_t len, int code, const char *what)
{
    struct probe p = parse(&s, raw, len);

    is_int(p.why, WHY_PROTO, "%s: refused", what);
    is_int(p.said.refuse, code, "%s: with %d", what, code);
}

static void
test_v4(void)
{
    static char flood[600] = "\4\1\0\120\12\0\0\1";
    struct probe p = good(fresh, BYTES("\4\1\0\120\12\0\0\1ann\0"), "SOCKS 4");

    is_int(p.next.version, 4, "version 4");
    is_int(p.next.command, SOCKS_CONNECT, "CONNECT");
    is_str(p.next.host, "10.0.0.1", "its address");
    is_int(p.next.port, 80, "its port");
    p = good(fresh, BYTES("\4\2\1\273\177\0\0\1\0"), "without a user");
    is_int(p.next.command, SOCKS_BIND, "BIND");
    is_int(p.next.port, 443, "port 443");
    p = good(fresh, BYTES("\4\1\1\273\0\0\0\1me\0WWW.Example.com.\0"), "4a");
    is_str(p.next.host, "www.example.com", "a name, as all rooms spell it");
    p = good(fresh, BYTES("\4\1\1\273\0\0\0\0me\0"), "0.0.0.0");
    is_str(p.next.host, "0.0.0.0", "is an address, not 4a");
    bad(fresh, BYTES("\4\1\1\273\0\0\0\1\0\0"), SOCKS_FAILED, "4a, empty name");
    bad(fresh, BYTES("\4\1\1\273\0\0\0\1\0a b\0"), SOCKS_FAILED, "4a, blank");
    bad(fresh, BYTES("\4\1\1\273\0\0\0\1\0a:1\0"), SOCKS_FAILED, "4a, port");
    memset(flood + 8, 'x', sizeof flood - 8);
    bad(fresh, flood, 8 + 256, SOCKS_FAILED, "a user without an end");
    is_int(parse(&fresh, flood, 8 + 255).why, WHY_MORE, "255 bytes may be");
    flood[8] = 0;
    flood[4] = 0;
    bad(fresh, flood, 9 + 256, SOCKS_FAILED, "a name without an end");
}

static void
test_hello(void)
{
    struct probe p = good(fresh, BYTES("\5\1\0"), "hello");

    ok(p.said.none && !p.said.password, "no login");
    p = good(fresh, BYTES("\5\3\1\2\0"), "hello");
    ok(p.said.none && p.said.password, "both");
    p = good(fresh, BYTES("\5\2\1\177"), "hello");
    ok(!p.said.none && !p.said.password, "nothing that we know");
    bad(fresh, BYTES("\5\0"), SOCKS_FAILED, "no method at all");
    bad(fresh, BYTES("\6\1\0"), SOCKS_FAILED, "version 6");
    bad(fresh, BYTES("\0"), SOCKS_FAILED, "version 0");
    is_int(parse(&fresh, "", 0).why, WHY_MORE, "nothing yet");
}

static void
test_login(void)
{
    struct socks s = five(SOCKS_LOGIN);
    struct probe p;
    char text[600] = "\1\3ann\6secret";
    size_t used;

    good(s, text, 12, "login");
    p.why = socks_parse(&s, text, 12, &used, &p.said, &p.next);
    ok(span_is(p.said.user, "ann") && span_is(p.said.pass, "secret"),
       "name and password");
    good(s, BYTES("\1\1a\0"), "an empty password");
    bad(s, BYTES("\1\0\1x"), SOCKS_FAILED, "an empty name");
    bad(s, BYTES("\5\1a\1b"), SOCKS_FAILED, "another version");
    memset(text, 'x', sizeof text);
    text[0] = 1;
    text[1] = text[257] = (char)255;
    good(s, text, 513, "the longest");
}

static void
test_request(void)
{
    struct socks s = five(SOCKS_REQUEST);
    static char name[7 + 255] = "\5\1\0\3\377";
    struct probe p =
        good(s, BYTES("\5\1\0\1\177\0\0\1\37\220"), "an IPv4 address");

    is_str(p.next.host, "127.0.0.1", "its host");
    is_int(p.next.port, 8080, "its port");
    is_int(p.next.command, SOCKS_CONNECT, "CONNECT");
    p = good(s, BYTES("\5\1\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1\1\273"),
             "an IPv6 address");
    is_str(p.next.host, "::1", "its host");
    p = good(s, BYTES("\5\1\0\3\13Example.COM\0\120"), "a name");
    is_str(p.next.host, "example.com", "in lower case");
    p = good(s, BYTES("\5\3\0\1\0\0\0\0\0\0"), "UDP ASSOCIATE");
    is_int(p.next.command, SOCKS_UDP, "is command 3");
    p = good(s, BYTES("\5\1\0\3\3::1\0\120"), "an address as a name");
    is_str(p.next.host, "::1", "is that address");
    p = good(s, BYTES("\5\11\0\1\1\2\3\4\0\120"), "a command of no meaning");
    is_int(p.next.command, 9, "is handed on");
    memset(name + 5, 'a', 255);
    good(s, name, sizeof name, "255 bytes of name");
    bad(s, BYTES("\5\1\0\2"), SOCKS_NO_ADDRESS, "address type 2");
    bad(s, BYTES("\5\1\0\0"), SOCKS_NO_ADDRESS, "address type 0");
    bad(s, BYTES("\5\1\1\1"), SOCKS_FAILED, "something reserved");
    bad(s, BYTES("\4\1\0\1"), SOCKS_FAILED, "another version");
    bad(s, BYTES("\5\1\0\3\0\0\120"), SOCKS_FAILED, "an empty name");
    bad(s, BYTES("\5\1\0\3\3a\0b\0\120"), SOCKS_FAILED, "NUL in a name");
    bad(s, BYTES("\5\1\0\3\3a..\0\120"), SOCKS_FAILED, "an empty label");
    bad(s, BYTES("\5\1\0\3\4a:80\0\120"), SOCKS_FAILED, "a port in a name");
    bad(s, BYTES("\5\1\0\3\3a/b\0\120"), SOCKS_FAILED, "a slash in a name");
}

static void
test_code(void)
{
    static const struct {
        enum why why;
        int code;
        enum socks_code want;
    } codes[] = {
        {WHY_POLICY, 0, 2},
        {WHY_LOOP, 0, 2},
        {WHY_UNREACHABLE, ENETUNREACH, 3},
        {WHY_UNREACHABLE, EHOSTUNREACH, 4},
        {WHY_DNS, 0, 4},
        {WHY_DNS_LATE, 0, 4},
        {WHY_REFUSED, 0, 5},
        {WHY_CONNECT_LATE, 0, 6},
        {WHY_SYS, ECONNRESET, 1},
        {WHY_BUSY, 0, 1},
        {WHY_TLS, 0, 1},
    };

    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        struct fail f = {.why = codes[i].why, .code = codes[i].code};

        is_int(socks_code(&f), codes[i].want, "%s is answered with %d",
               why_name(f.why), codes[i].want);
    }
}

static void
test_users(void)
{
    char err[256];
    char *sets[] = {(char *)"proxy.users=ann:secret,bob:a:b"};
    struct config *conf = config_read(NULL, sets, 1, err, sizeof err);
    static const struct {
        const char *user, *pass;
        bool good;
    } logins[] = {
        {"ann", "secret", true},  {"bob", "a:b", true},
        {"ann", "a:b", false},    {"bob", "secret", false},
        {"ann", "", false},       {"", "", false},
        {"", "secret", false},    {"ann", "secre", false},
        {"an", "secret", false},  {"ann", "secrets", false},
        {"Ann", "secret", false},
    };

    if (!ok(conf != NULL, "two users"))
        return;
    for (size_t i = 0; i < sizeof logins / sizeof *logins; i++)
        is_int(access_login(conf, span_of(logins[i].user),
                            span_of(logins[i].pass)),
               logins[i].good, "%s:%s", logins[i].user, logins[i].pass);
    ok(!access_login(conf, (struct span){"ann\0x", 5}, span_of("secret")),
       "a name with a NUL in it");
    config_give(conf);
}

int
main(void)
{
    test_v4();
    test_hello();
    test_login();
    test_request();
    test_code();
    test_users();
    return done_testing();
}
