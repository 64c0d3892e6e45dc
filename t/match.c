/*
 * t/match.c - lists of hosts: each kind of item, ports, mistakes, long lists.
 */
#include <stdlib.h>

#include "proxy.h"
#include "t/tap.h"

static const struct {
    const char *list, *host;
    uint16_t port;
    bool fits;
} asks[] = {
    /* names */
    {"example.com", "example.com", 443, true},
    {"example.com", "EXAMPLE.Com", 443, true},
    {"Example.COM", "example.com", 443, true},
    {"example.com", "example.com.", 443, true},
    {"example.com.", "example.com", 443, true},
    {"example.com", "www.example.com", 443, false},
    {"example.com", "xexample.com", 443, false},
    {"example.com", "example.co", 443, false},
    {"localhost", "localhost", 80, true},
    /* suffixes: the domain and what is below */
    {".example.com", "example.com", 443, true},
    {".example.com", "www.example.com", 443, true},
    {".example.com", "a.b.example.com", 443, true},
    {".example.com", "xexample.com", 443, false},
    {".example.com", "example.com.evil", 443, false},
    {".test", "a.test", 443, true},
    {".test", "test", 443, true},
    /* globs */
    {"*.example.com", "www.example.com", 443, true},
    {"*.example.com", "a.b.example.com", 443, true},
    {"*.example.com", "example.com", 443, false},
    {"*.example.com", "xexample.com", 443, false},
    {"api-?.test", "api-1.test", 443, true},
    {"api-?.test", "api-12.test", 443, false},
    {"api-?.test", "api-.test", 443, false},
    {"*.a*b.test", "x.a12b.test", 443, true},
    {"*.a*b.test", "x.a12c.test", 443, false},
    {"a*a*b", "aaaaaaaaab", 443, true},
    {"a*a*b", "aaaaaaaaac", 443, false},
    {"*ab", "aab", 443, true},
    {"api*", "api", 443, true},
    {"api*", "API.example.com", 443, true},
    {"*", "anything.at.all", 1, true},
    {"*", "::1", 1, true},
    {"**", "a", 1, true},
    /* addresses and blocks */
    {"127.0.0.1", "127.0.0.1", 80, true},
    {"127.0.0.1", "127.0.0.2", 80, false},
    {"10.0.0.0/8", "10.255.0.1", 80, true},
    {"10.0.0.0/8", "11.0.0.1", 80, false},
    {"10.1.2.3/8", "10.9.9.9", 80, true}, /* the bits behind do not count */
    {"10.0.0.0/8", "10.example.com", 80, false},
    {"192.168.4.0/22", "192.168.7.255", 80, true},
    {"192.168.4.0/22", "192.168.8.0", 80, false},
    {"1.2.3.4/32", "1.2.3.4", 80, true},
    {"1.2.3.4/32", "1.2.3.5", 80, false},
    {"0.0.0.0/0", "8.8.8.8", 80, true},
    {"0.0.0.0/0", "::1", 80, false},
    {"0.0.0.0/0", "example.com", 80, false},
    {"::/0", "2001:db8::1", 80, true},
    {"::/0", "127.0.0.1", 80, false},
    {"2001:db8::/32", "2001:db8:1::1", 80, true},
    {"2001:db8::/32", "2001:DB8:0:0:0:0:0:1", 80, true},
    {"2001:db8::/32", "2001:db9::1", 80, false},
    {"2001:db8::/33", "2001:db8:8000::1", 80, false},
    {"::1", "0:0:0:0:0:0:0:1", 80, true},
    {"[::1]", "::1", 80, true},
    {"fe80::/10", "fe80::1%eth0", 80, true},
    /* IPv4 in IPv6 clothes is IPv4 */
    {"10.0.0.0/8", "::ffff:10.1.2.3", 80, true},
    {"::ffff:10.0.0.0/104", "10.1.2.3", 80, true},
    {"::ffff:10.0.0.0/104", "11.1.2.3", 80, false},
    {"::ffff:127.0.0.1", "127.0.0.1", 80, true},
    {"::/0", "::ffff:10.1.2.3", 80, false},
    /* ports */
    {"example.com:443", "example.com", 443, true},
    {"example.com:443", "example.com", 8443, false},
    {"example.com:8000-8999", "example.com", 7999, false},
    {"example.com:8000-8999", "example.com", 8000, true},
    {"example.com:8000-8999", "example.com", 8999, true},
    {"example.com:8000-8999", "example.com", 9000, false},
    {"example.com:1-65535", "example.com", 65535, true},
    {"*:8443", "whatever", 8443, true},
    {"*:8443", "whatever", 443, false},
    {".example.com:443", "www.example.com", 443, true},
    {".example.com:443", "www.example.com", 80, false},
    {"10.0.0.0/8:443", "10.1.1.1", 443, true},
    {"10.0.0.0/8:443", "10.1.1.1", 80, false},
    {"[::1]:8443", "::1", 8443, true},
    {"[::1]:8443", "::1", 443, false},
    {"[2001:db8::/32]:443-444", "2001:db8::5", 444, true},
    {"[2001:db8::/32]:443-444", "2001:db8::5", 445, false},
    /* several: any one is enough, whatever stands between */
    {"a.test, b.test c.test\td.test", "a.test", 1, true},
    {"a.test, b.test c.test\td.test", "b.test", 1, true},
    {"a.test, b.test c.test\td.test", "c.test", 1, true},
    {"a.test, b.test c.test\td.test", "d.test", 1, true},
    {"a.test, b.test c.test\td.test", "e.test", 1, false},
    {" ,, a.test ,", "a.test", 1, true},
    {"a.test:80 a.test:443 a.test:90", "a.test", 443, true},
    {"a.test:80 a.test:443 a.test:90", "a.test", 91, false},
    {"a.test:80 *.a.test .a.test:443", "a.test", 443, true},
    {"a.test:80 *.a.test .a.test:443", "a.test", 444, false},
    {"a.test:80 *.a.test .a.test:443", "x.a.test", 444, true},
    /* nothing */
    {"", "a.test", 1, false},
    {" , ", "a.test", 1, false},
    {"a.test", "", 1, false},
    {".test", ".", 1, false},
};

static void
test_asks(void)
{
    char err[512];

    for (size_t i = 0; i < sizeof(asks) / sizeof(asks[0]); i++) {
        struct match *m = match_parse(asks[i].list, err, sizeof(err));

        if (ok(m != NULL, "\"%s\" is a list", asks[i].list))
            ok(match_host(m, asks[i].host, asks[i].port) == asks[i].fits,
               "\"%s\" %s %s port %d", asks[i].list,
               asks[i].fits ? "has" : "has not", asks[i].host, asks[i].port);
        else
            diag("%s", err);
        match_free(m);
    }
}

static void
test_mistakes(void)
{
    static const char *const lists[] = {
        "https://example.com",
        "a b/c",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:x",
        "example.com:80-",
        "example.com:-80",
        "example.com:90-80",
        "example.com:80:81",
        ":443",
        "[::1",
        "[::1]443",
        "[]:443",
        "[example.com]:443",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/-1",
        "10.0.0.0/8x",
        "10.0.0/8",
        "/8",
        "::/129",
        "::ffff:10.0.0.0/95",
        ".",
        "*.",
        "..example.com",
        "a..b",
        ".api-?.test",
        "a_b!c",
        "caf\xc3\xa9.test",
        "user@host",
        "a=b",
    };
    char err[512], shortest[1];

    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        struct match *m;

        err[0] = '\0';
        m = match_parse(lists[i], err, sizeof(err));
        ok(m == NULL && strstr(err, " is no host, allowed: ") != NULL,
           "\"%s\" is refused with a reason", lists[i]);
        match_free(m);
    }
    ok(match_parse("good.test, a/b, fine.test", err, sizeof(err)) == NULL &&
           strncmp(err, "\"a/b\" is no host", 16) == 0,
       "the reason names the item alone");
    ok(match_parse("a/b", shortest, sizeof(shortest)) == NULL &&
           shortest[0] == '\0',
       "a reason fits into one byte");
}

static void
test_lengths(void)
{
    char name[HOST_MAX + 64], err[1024];
    struct match *m;

    memset(name, 'a', sizeof(name));
    for (size_t i = 32; i < sizeof(name); i += 32)
        name[i] = '.';
    name[HOST_MAX] = '\0';
    m = match_parse(name, err, sizeof(err));
    ok(m != NULL && match_host(m, name, 1), "a name of %d bytes", HOST_MAX);
    match_free(m);

    name[HOST_MAX] = 'a';
    name[HOST_MAX + 1] = '\0';
    ok(match_parse(name, err, sizeof(err)) == NULL, "one more is refused");
    name[HOST_MAX + 1] = 'a';
    name[sizeof(name) - 1] = '\0';
    ok(match_parse(name, err, sizeof(err)) == NULL, "so is a whole line");

    m = match_parse("aaaa*", err, sizeof(err));
    ok(m != NULL && !match_host(m, name, 1),
       "a host too long for a name is no name");
    match_free(m);
    m = match_parse("*", err, sizeof(err));
    ok(m != NULL && match_host(m, name, 1), "but * is everything");
    match_free(m);
}

static void
test_empty(void)
{
    char err[512] = "";
    struct match *m = match_parse(NULL, err, sizeof(err));

    ok(m != NULL && match_empty(m), "NULL makes an empty list");
    ok(!match_host(m, "a.test", 1), "which has nobody");
    ok(match_add(m, " ", err, sizeof(err)) && match_empty(m),
       "blanks add nothing");
    ok(match_add(m, "b.test *.c.test", err, sizeof(err)) && !match_empty(m),
       "items can be added");
    ok(match_add(m, "a.test 10.0.0.0/8", err, sizeof(err)), "and more");
    ok(match_host(m, "a.test", 1) && match_host(m, "b.test", 1) &&
           match_host(m, "x.c.test", 1) && match_host(m, "10.0.0.9", 1),
       "then all of them are on it");
    match_free(m);
    match_free(NULL);
    ok(match_empty(NULL) && !match_host(NULL, "a.test", 1),
       "no list is an empty list");
}

/* Of this thread, whoever else wants the processor. */
static int64_t
cpu_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/* Quick is told by how the time grows: a list a hundred times as long may not
 * take a hundred times as long. */
static int64_t
time_names(size_t n)
{
    struct match *m = match_parse(NULL, NULL, 0);
    int64_t best = INT64_MAX;
    size_t n_found = 0;
    char name[64], err[512];

    for (size_t i = 0; i < n; i += 10) {
        char ten[640] = "";

        for (size_t j = i; j < i + 10; j++)
            snprintf(ten + strlen(ten), sizeof(ten) - strlen(ten),
                     "host-%05zu.example.com, ", j * 7919 % n);
        if (!match_add(m, ten, err, sizeof(err)))
            diag("%s", err);
    }
    for (int round = 0; round < 5; round++) {
        int64_t from = cpu_us();

        for (size_t i = 0; i < 20000; i++) {
            snprintf(name, sizeof(name), "host-%05zu.example.com", i % (2 * n));
            n_found += match_host(m, name, 443);
        }
        from = cpu_us() - from;
        if (from < best)
            best = from;
    }
    is_int(n_found, (long long)n * 5 * (20000 / (2 * (long long)n)),
           "of %zu names each is found, and no other", n);
    match_free(m);
    return best;
}

static void
test_quick(void)
{
    int64_t few = time_names(10), many = time_names(1000);

    diag("20000 lookups: %lld us among 10, %lld us among 1000", (long long)few,
         (long long)many);
    ok(many < 10 * few, "a list 100 times as long takes not 10 times as long");
}

static void
test_split(void)
{
    static const struct {
        const char *text, *host, *port;
        bool good;
    } cases[] = {
        {"a.test", "a.test", NULL, true},
        {"a.test:80", "a.test", "80", true},
        {"a.test:", "a.test", "", true},
        {":80", "", "80", true},
        {"*:0", "*", "0", true},
        {"::1", "::1", NULL, true},
        {"::1:80", "::1:80", NULL, true},
        {"[::1]", "::1", NULL, true},
        {"[::1]:80", "::1", "80", true},
        {"[::1]:80-90", "::1", "80-90", true},
        {"", "", NULL, true},
        {"[::1", NULL, NULL, false},
        {"[a.test]:80", NULL, NULL, false},
        {"[]", NULL, NULL, false},
        {"[::1]80", NULL, NULL, false},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char text[64], *host, *port;

        snprintf(text, sizeof(text), "%s", cases[i].text);
        if (!ok(match_split(text, &host, &port) == cases[i].good, "\"%s\" %s",
                cases[i].text,
                cases[i].good ? "can be split" : "cannot be split") ||
            !cases[i].good)
            continue;
        is_str(host, cases[i].host, "  its host");
        is_str(port, cases[i].port, "  its port");
    }
}

int
main(void)
{
    test_asks();
    test_mistakes();
    test_lengths();
    test_empty();
    test_split();
    test_quick();
    return done_testing();
}
