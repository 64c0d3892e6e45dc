/*
 * t/altsvc.c - Alt-Svc: every shape of the field, and what is remembered of
 * it and of those who could not be reached.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"
#include "t/tap.h"

enum { DAY = 86400 };

static const struct {
    const char *value;
    enum altsvc_said said;
    const char *host;
    uint16_t port;
    int64_t ma_s;
    bool persist;
} cases[] = {
    {"h3=\":443\"", ALTSVC_H3, "", 443, DAY, false},
    {"h3=\":443\"; ma=60", ALTSVC_H3, "", 443, 60, false},
    {"h3=\":443\";ma=60;persist=1", ALTSVC_H3, "", 443, 60, true},
    {"h3=\":443\" ; persist=1 ; ma=60", ALTSVC_H3, "", 443, 60, true},
    {"h3=\":443\"; MA=\"60\"", ALTSVC_H3, "", 443, 60, false},
    {"h3=\":443\"; persist=2", ALTSVC_H3, "", 443, DAY, false},
    {"h3=\":443\"; ma=99999999999", ALTSVC_H3, "", 443, 30 * DAY, false},
    {"h3=\":443\"; ma=soon", ALTSVC_H3, "", 443, DAY, false},
    {"h3=\":443\"; new=\"a,b;c\\\"\"; ma=1", ALTSVC_H3, "", 443, 1, false},
    {"h3=\"Alt.Example:8443\"", ALTSVC_H3, "alt.example", 8443, DAY, false},
    {"h3=\"[::1]:8443\"", ALTSVC_H3, "::1", 8443, DAY, false},
    {"h3=\"\\a.example:1\"", ALTSVC_H3, "a.example", 1, DAY, false},
    {"h2=\":1\", h3=\":2\", h3=\":3\"", ALTSVC_H3, "", 2, DAY, false},
    {",, h3=\":2\" ,,", ALTSVC_H3, "", 2, DAY, false},
    {"h3-29=\":1\", h3=\":2\"; ma=5", ALTSVC_H3, "", 2, 5, false},
    {"h3=\"a b:1\", h3=\":2\"", ALTSVC_H3, "", 2, DAY, false},
    {"h3=\":0\", h3=\":2\"", ALTSVC_H3, "", 2, DAY, false},
    {"h3=\":70000\", h3=\":2\"", ALTSVC_H3, "", 2, DAY, false},
    {"h3=\"a.example\", h3=\":2\"", ALTSVC_H3, "", 2, DAY, false},
    {"h3=\":443\"; ma=0", ALTSVC_H3, "", 443, 0, false},
    {"clear", ALTSVC_NONE, NULL, 0, 0, false},
    {"  clear ", ALTSVC_NONE, NULL, 0, 0, false},
    {"h2=\":443\"", ALTSVC_NONE, NULL, 0, 0, false},
    {"H3=\":443\"", ALTSVC_NONE, NULL, 0, 0, false}, /* ALPN has a case */
    {"h3=\"\"", ALTSVC_NONE, NULL, 0, 0, false},
    {"h3=\":\"", ALTSVC_NONE, NULL, 0, 0, false},
    {"w%3Dx%3Ay#z=\":80\"", ALTSVC_NONE, NULL, 0, 0, false},
    {"", ALTSVC_WRONG, NULL, 0, 0, false},
    {",", ALTSVC_WRONG, NULL, 0, 0, false},
    {"Clear", ALTSVC_WRONG, NULL, 0, 0, false},
    {"clear, h3=\":443\"", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=:443", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=\":443", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=\":443\\", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=\":443\" ma=1", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=\":443\"; ma", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=\":443\"; ma=", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=\":443\"; ma=\"1", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3=\":443\";", ALTSVC_WRONG, NULL, 0, 0, false},
    {"h3 =\":443\"", ALTSVC_WRONG, NULL, 0, 0, false},
    {"=\":443\"", ALTSVC_WRONG, NULL, 0, 0, false},
};

static void
test_parse(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct altsvc got = {.port = 7};
        enum altsvc_said said = altsvc_parse(span_of(cases[i].value), &got);
        bool good = said == cases[i].said;

        if (good && said == ALTSVC_H3)
            good = strcmp(got.host, cases[i].host) == 0 &&
                   got.port == cases[i].port && got.ma_s == cases[i].ma_s &&
                   got.persist == cases[i].persist;
        ok(good, "%s", cases[i].value);
    }
}

/* Nothing behind the end is looked at, wherever that is. */
static void
test_cut(void)
{
    static const char whole[] =
        "h2=\"a:1\"; ma=1, h3=\"[::1]:443\"; ma=\"6\\0\"; persist=1";
    int n_h3 = 0;

    for (size_t len = 0; len < sizeof whole; len++) {
        char *copy = malloc(len + 1);
        struct altsvc got;

        memcpy(copy, whole, len);
        n_h3 += altsvc_parse((struct span){copy, len}, &got) == ALTSVC_H3;
        free(copy);
    }
    ok(n_h3 >= 2, "cut at every length");
}

static struct origin
origin_named(const char *host)
{
    struct origin o = {.tls = true, .port = 443};

    snprintf(o.host, sizeof o.host, "%s", host);
    return o;
}

static void
test_learn(void)
{
    struct altsvcs *as = altsvcs_new();
    struct origin a = origin_named("a"), b = origin_named("b");
    struct altsvc alt;

    ok(!altsvc_find(as, &a, 1000, &alt), "nothing is known");
    altsvc_learn(as, &a, span_of("h3=\":444\"; ma=10"), 0, 1000);
    ok(altsvc_find(as, &a, 10999, &alt) && alt.port == 444, "learned");
    ok(!altsvc_find(as, &b, 1000, &alt), "of this origin alone");
    b = a;
    snprintf(b.sni, sizeof b.sni, "elsewhere");
    ok(!altsvc_find(as, &b, 1000, &alt), "by this name alone");
    ok(!altsvc_find(as, &a, 11000, &alt), "not for longer than ma");
    altsvc_learn(as, &a, span_of("h3=\":445\"; ma=10"), 4, 1000);
    ok(altsvc_find(as, &a, 6999, &alt) && alt.port == 445, "a new place");
    ok(!altsvc_find(as, &a, 7000, &alt), "Age counts");
    altsvc_learn(as, &a, span_of("nonsense"), 0, 1000);
    ok(altsvc_find(as, &a, 1000, &alt), "what is malformed changes nothing");
    altsvc_learn(as, &a, span_of("clear"), 0, 1000);
    ok(!altsvc_find(as, &a, 1000, &alt), "clear");
    altsvc_learn(as, &a, span_of("h3=\":445\""), 0, 1000);
    altsvc_learn(as, &a, span_of("h2=\":445\""), 0, 1000);
    ok(!altsvc_find(as, &a, 1000, &alt), "only others");
    altsvc_learn(as, &a, span_of("h3=\":445\""), 0, 1000);
    altsvc_learn(as, &a, span_of("h3=\":445\"; ma=0"), 0, 1000);
    ok(!altsvc_find(as, &a, 1000, &alt), "ma=0");
    altsvc_learn(as, &a, span_of("h3=\":445\""), 0, 1000);
    altsvc_forget(as, &a);
    ok(!altsvc_find(as, &a, 1000, &alt), "forgotten");
    altsvcs_free(as);
}

static void
test_broken(void)
{
    static const struct fail cert = {.why = WHY_CERT, .op = "verify"},
                             refused = {.why = WHY_REFUSED, .op = "connect"};
    struct fail last_fail = {0};
    struct altsvcs *as = altsvcs_new();
    struct origin a = origin_named("a");
    int64_t now = 1000, pause = 0, last = 0;
    struct altsvc alt;

    ok(!altsvc_is_broken(as, &a, now, &last_fail), "nobody has failed");
    is_int(pause = altsvc_failed(as, &a, &cert, now), 5000,
           "the first failure");
    is_int(altsvc_failed(as, &a, &refused, now + 1), 0, "counts once");
    ok(altsvc_is_broken(as, &a, now + 4999, &last_fail), "left alone");
    is_int(last_fail.why, WHY_CERT, "for the first reason");
    ok(!altsvc_is_broken(as, &a, now + 5000, &last_fail), "for a while");
    for (int i = 0; i < 20; i++) {
        now += pause;
        last = pause;
        pause = altsvc_failed(as, &a, &cert, now);
        if (pause != 2 * last)
            break;
    }
    is_int(pause, 300000, "which doubles, up to a limit");
    altsvc_learn(as, &a, span_of("h3=\":443\""), 0, now);
    altsvc_worked(as, &a);
    ok(!altsvc_is_broken(as, &a, now, &last_fail), "it works again");
    ok(altsvc_find(as, &a, now, &alt), "and what was learned stays");
    is_int(altsvc_failed(as, &a, &cert, now), 5000, "then it begins anew");
    altsvc_learn(as, &a, span_of("h3=\":443\""), 0, now);
    ok(altsvc_is_broken(as, &a, now, &last_fail), "said again: still broken");
    altsvc_learn(as, &a, span_of("clear"), 0, now);
    ok(altsvc_is_broken(as, &a, now, &last_fail), "void: still broken");
    altsvc_learn(as, &a, span_of("h3=\":444\""), 0, now);
    ok(!altsvc_is_broken(as, &a, now, &last_fail),
       "another place has not been tried");
    altsvcs_free(as);
    altsvcs_free(NULL);
}

static void
test_bound(void)
{
    struct altsvcs *as = altsvcs_new();
    struct origin o = origin_named("first");
    struct altsvc alt;
    char name[32];

    altsvc_learn(as, &o, span_of("h3=\":1\""), 0, 1);
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "h%d.test", i);
        o = origin_named(name);
        altsvc_learn(as, &o, span_of("h3=\":1\""), 0, 2 + i);
    }
    ok(altsvc_find(as, &o, 5000, &alt), "the last one is known");
    o = origin_named("first");
    ok(!altsvc_find(as, &o, 5000, &alt), "the oldest makes room");
    altsvcs_free(as);
}

int
main(void)
{
    test_parse();
    test_cut();
    test_learn();
    test_broken();
    test_bound();
    return done_testing();
}
