/*
 * t/breaker.c - origins that fail: when they are left alone, the one trial,
 * what counts, and that the table is bounded.
 */
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "proxy.h"
#include "t/tap.h"

static struct breaker *b;

static bool
ask(const char *host, uint16_t port, bool *trial)
{
    struct fail f = {0};
    enum why why = breaker_ask(b, host, port, trial, &f);

    if (why != WHY_NONE)
        ok(strstr(f.detail, "breaker open") != NULL && f.why == why,
           "a refusal says why: %s", f.detail);
    return why == WHY_NONE;
}

static void
tell(const char *host, uint16_t port, bool trial, enum why why)
{
    struct fail f = {.why = why, .side = SIDE_ORIGIN, .op = "connect"};

    breaker_tell(b, host, port, trial, &f, 0);
}

static void
fail_times(const char *host, int n, enum why why)
{
    for (int i = 0; i < n; i++)
        tell(host, 80, false, why);
}

int
main(void)
{
    bool trial, second;
    int64_t failed_at;
    char name[32];

    alarm(60); /* a pause without end shall fail, not hang */
    b = breaker_new();
    ok(ask("a", 80, &trial) && !trial, "nobody has failed");
    fail_times("a", 4, WHY_REFUSED);
    ok(ask("a", 80, &trial) && !trial, "four failures");
    failed_at = now_ms();
    fail_times("a", 1, WHY_CONNECT_LATE);
    ok(!ask("a", 80, &trial), "five");
    ok(ask("a", 81, &trial), "another port");
    ok(ask("b", 80, &trial), "another host");
    while (!ask("a", 80, &trial))
        poll(NULL, 0, 20);
    ok(now_ms() - failed_at >= 1000 && trial, "after a second: one trial");
    ok(!ask("a", 80, &second), "others wait for it");
    tell("a", 80, trial, WHY_DNS);
    ok(ask("a", 80, &trial) && trial, "a trial that tells nothing: another");
    tell("a", 80, trial, WHY_NONE);
    ok(ask("a", 80, &trial) && !trial, "it connected: all is well");

    fail_times("c", 20, WHY_DNS);
    fail_times("c", 20, WHY_POLICY);
    fail_times("c", 20, WHY_LOOP);
    ok(ask("c", 80, &trial), "only failures to connect count");
    fail_times("c", 4, WHY_UNREACHABLE);
    tell("c", 80, false, WHY_NONE);
    fail_times("c", 4, WHY_SYS);
    ok(ask("c", 80, &trial), "in a row");

    fail_times("first", 5, WHY_REFUSED);
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "h%d.test", i);
        tell(name, 80, false, WHY_REFUSED);
    }
    ok(ask("first", 80, &trial), "the oldest makes room");
    fail_times("last", 5, WHY_REFUSED);
    ok(!ask("last", 80, &trial), "and the table still works");
    breaker_free(b);
    breaker_free(NULL);
    return done_testing();
}
