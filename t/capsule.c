/*
 * t/capsule.c - integers and capsules: whole, byte by byte, cut anywhere, too
 * long, of types that nobody knows; and the targets of connect-udp.
 */
#include <stdlib.h>

#include "proxy.h"
#include "t/tap.h"

#define BYTES(text) text, sizeof(text) - 1

/* ---- integers ------------------------------------------------------------ */

static void
test_varint(void)
{
    /* RFC 9000 appendix A.1, and the edges of each form. */
    static const struct {
        const char *raw;
        size_t len;
        uint64_t n;
        bool shortest;
    } all[] = {
        {BYTES("\xc2\x19\x7c\x5e\xff\x14\xe8\x8c"), 151288809941952652, true},
        {BYTES("\x9d\x7f\x3e\x7d"), 494878333, true},
        {BYTES("\x7b\xbd"), 15293, true},
        {BYTES("\x25"), 37, true},
        {BYTES("\x40\x25"), 37, false},
        {BYTES("\0"), 0, true},
        {BYTES("\x3f"), 63, true},
        {BYTES("\x40\x40"), 64, true},
        {BYTES("\x7f\xff"), 16383, true},
        {BYTES("\x80\0\x40\0"), 16384, true},
        {BYTES("\xbf\xff\xff\xff"), (1 << 30) - 1, true},
        {BYTES("\xc0\0\0\0\x40\0\0\0"), 1 << 30, true},
        {BYTES("\xff\xff\xff\xff\xff\xff\xff\xff"), (1ULL << 62) - 1, true},
    };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char out[VARINT_MAX];
        uint64_t n = 0;

        for (size_t cut = 0; cut < all[i].len; cut++)
            is_int(varint_parse(all[i].raw, cut, &n), 0, "cut at %zu", cut);
        is_int(varint_parse(all[i].raw, all[i].len, &n), all[i].len, "whole");
        ok(n == all[i].n, "is %llu", (unsigned long long)all[i].n);
        if (all[i].shortest)
            ok(varint_put(out, n) == all[i].len &&
                   memcmp(out, all[i].raw, all[i].len) == 0,
               "is written the same");
    }
}

/* ---- capsules ------------------------------------------------------------ */

struct seen { /* what a stream brought: "[value]" each, "<begin>" if too long */
    char at[262144];
    size_t len;
    enum why why;
    bool between, used; /* all that was given */
};

static void
note(struct seen *s, char open, struct span value, char close)
{
    s->at[s->len++] = open;
    memcpy(s->at + s->len, value.at, value.len);
    s->len += value.len;
    s->at[s->len++] = close;
}

/* In pieces of at most `step`, each a copy of its own, so that a sanitizer
 * sees a read beyond it. */
static void
read_all(const char *raw, size_t len, size_t step, struct seen *s)
{
    struct capsules k = {0};

    s->len = 0;
    s->why = WHY_MORE;
    s->used = true;
    for (size_t at = 0; at < len && s->why != WHY_SYS; at += step) {
        size_t n = len - at < step ? len - at : step, done = 0, used;
        char *copy = malloc(n);
        struct span value;

        memcpy(copy, raw + at, n);
        while ((s->why = capsule_parse(&k, copy + done, n - done, &used,
                                       &value)) != WHY_MORE) {
            done += used;
            if (s->why == WHY_SYS)
                break;
            note(s, s->why == WHY_NONE ? '[' : '<', value,
                 s->why == WHY_NONE ? ']' : '>');
        }
        s->used = s->used && done + used == n;
        free(copy);
    }
    s->between = capsule_between(&k);
    capsules_clear(&k);
}

static void
check(const char *raw, size_t len, const char *want, bool between,
      const char *what)
{
    struct seen *s = malloc(sizeof *s);
    bool good = true;

    for (size_t step = 1; step <= len; step++) {
        read_all(raw, len, step, s);
        good = good && s->len == strlen(want) &&
               memcmp(s->at, want, s->len) == 0 && s->between == between &&
               s->used;
        if (!good) {
            diag("step %zu: got %.*s", step, (int)s->len, s->at);
            break;
        }
    }
    ok(good, "%s, in pieces of any size", what);
    free(s);
}

static void
test_capsules(void)
{
    check(BYTES("\0\3abc"), "[abc]", true, "one datagram");
    check(BYTES("\0\0"), "[]", true, "an empty one");
    check(BYTES("\0\0\0\1x\0\0"), "[][x][]", true, "three");
    check(BYTES("\x40\0\x40\3abc"), "[abc]", true, "integers written long");
    check(BYTES("\x05\3abc\0\1d"), "[d]", true, "an unknown type is skipped");
    check(BYTES("\x05\0\x29\0\0\1d"), "[d]", true, "and so are empty ones");
    check(BYTES("\xff\xff\xff\xff\xff\xff\xff\xff\x01"
                "a\0\1d"),
          "[d]", true, "of the largest type");
    check(BYTES("\0\3ab"), "", false, "the end in a datagram");
    check(BYTES("\0"), "", false, "the end in a head");
    check(BYTES("\x05\3ab"), "", false, "the end in another capsule");
    check(BYTES("\0\1a\x05"), "[a]", false, "the end in the next head");
}

/* The longest datagram there is, and one that is longer. */
static void
test_long(void)
{
    size_t len = CAPSULE_MAX + 3;
    char *raw = calloc(1, len + 64), head[CAPSULE_HEAD];
    struct seen *s = malloc(sizeof *s);
    static const size_t steps[] = {1, 7, 1000, 65535, 200000};

    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        size_t n = capsule_put_datagram(head, CAPSULE_MAX);

        memcpy(raw, head, n);
        memset(raw + n, 'x', CAPSULE_MAX);
        read_all(raw, n + CAPSULE_MAX, steps[i], s);
        ok(s->len == CAPSULE_MAX + 2 && s->between && s->used,
           "the longest datagram, by %zu", steps[i]);
        n = capsule_put_datagram(head, CAPSULE_MAX + 1);
        memcpy(raw, head, n);
        memset(raw + n, 'y', CAPSULE_MAX + 1);
        memcpy(raw + n + CAPSULE_MAX + 1, "\0\1z", 3);
        read_all(raw, n + CAPSULE_MAX + 4, steps[i], s);
        ok(s->len == 13 && memcmp(s->at, "<yyyyyyyy>[z]", 13) == 0,
           "a longer one shows how it begins, by %zu", steps[i]);
    }
    /* 2^62 - 1 bytes are to come: nobody keeps room for them. */
    read_all(BYTES("\0\xff\xff\xff\xff\xff\xff\xff\xff"
                   "abcdefghijk"),
             3, s);
    ok(s->len == 10 && memcmp(s->at, "<abcdefgh>", 10) == 0 && !s->between,
       "as does the longest capsule of all");
    free(raw);
    free(s);
}

/* ---- targets ------------------------------------------------------------- */

#define PATH "/.well-known/masque/udp/"

static void
test_target(void)
{
    static const struct {
        const char *path, *host;
        int port;
    } good[] = {
        {PATH "192.0.2.6/443/", "192.0.2.6", 443},
        {PATH "Example.COM/1/", "example.com", 1},
        {PATH "2001%3Adb8%3A%3a42/65535/", "2001:db8::42", 65535},
        {PATH "2001:db8::42/53/", "2001:db8::42", 53},
        {PATH "%65xample.com/080/", "example.com", 80},
    };
    static const char *const bad[] = {
        PATH,
        PATH "host",
        PATH "host/",
        PATH "host/1",
        PATH "host//",
        PATH "/443/",
        PATH "host/0/",
        PATH "host/65536/",
        PATH "host/99999999999999999999/",
        PATH "host/-1/",
        PATH "host/+1/",
        PATH "host/http/",
        PATH "host/443/more",
        PATH "host/443//",
        PATH "host/443/?x",
        PATH "host%/443/",
        PATH "host%4/443/",
        PATH "host%zz/443/",
        PATH "host%00/443/",
        PATH "host%2F/443/",
        PATH "host%3A443/443/",
        PATH "host%40other/443/",
        PATH "host%20/443/",
        PATH "host%0d%0a/443/",
        PATH "%5B%3A%3A1%5D/443/",
        PATH "fe80%3A%3A1%25eth0/443/",
        PATH "%3A%3A1%3A%3A/443/",
        "/.well-known/masque/ip/host/443/",
        "/",
        "",
    };
    char host[HOST_MAX + 1], path[600];
    uint16_t port;

    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        ok(masque_target(span_of(good[i].path), host, &port), "%s",
           good[i].path);
        is_str(host, good[i].host, "its host");
        is_int(port, good[i].port, "its port");
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ok(!masque_target(span_of(bad[i]), host, &port), "not %s", bad[i]);
    memcpy(path, PATH, sizeof PATH);
    memset(path + sizeof PATH - 1, 'a', HOST_MAX + 1);
    memcpy(path + sizeof PATH + HOST_MAX, "/1/", 4);
    ok(!masque_target(span_of(path), host, &port), "not a name that long");
}

int
main(void)
{
    test_varint();
    test_capsules();
    test_long();
    test_target();
    return done_testing();
}
