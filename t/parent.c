/*
 * t/parent.c - parents: their URLs, no_proxy as curl reads it, the environment,
 * who serves which target, and who is left out for how long.
 */
#include <stdlib.h>
#include <unistd.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/tap.h"

static char err[512];

static void
test_urls(void)
{
    static const struct {
        const char *text, *host, *user, *password, *basic, *shown;
        enum parent_kind kind;
        bool tls;
        uint16_t port;
    } good[] = {
        {"http://proxy.test:3128", "proxy.test", "", "", NULL,
         "http://proxy.test:3128", PARENT_HTTP, false, 3128},
        {"Proxy.Test", "proxy.test", "", "", NULL, "http://proxy.test:80",
         PARENT_HTTP, false, 80},
        {"https://u:p@proxy.test/", "proxy.test", "u", "p", "Basic dTpw",
         "https://proxy.test:443", PARENT_HTTP, true, 443},
        {"SOCKS5://a%40b:c%3Ad%20e@[::1]:9", "::1", "a@b", "c:d e", NULL,
         "socks5://[::1]:9", PARENT_SOCKS, false, 9},
        {"socks5h://h", "h", "", "", NULL, "socks5h://h:1080", PARENT_SOCKS,
         false, 1080},
        {"http://u@h:1", "h", "u", "", "Basic dTo=", "http://h:1", PARENT_HTTP,
         false, 1},
        {"http://u:a@b:c@h:1", "h", "u", "a@b:c",
         "Basic dTphQGI6Yw==", "http://h:1", PARENT_HTTP, false, 1},
    };
    static const char *const bad[] = {
        "",
        "http://",
        "http://u:p@",
        "ftp://h",
        "http://h/p",
        "http://h:0",
        "http://h:x",
        "http://h:70000",
        "http://a b",
        "http://:p@h",
        "http://%00:p@h",
        "http://%zz:p@h",
        "http://%4@h",
        "http://a%3ab@h",
        "socks4://h",
        "http://[::1",
        "http://u:p%0d%0a@h",
    };

    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct parent *p = parent_parse(good[i].text);

        ok(p != NULL, "%s", good[i].text);
        if (p == NULL)
            continue;
        is_int(p->kind, good[i].kind, "  its kind");
        is_int(p->tls, good[i].tls, "  TLS");
        is_str(p->host, good[i].host, "  its host");
        is_int(p->port, good[i].port, "  its port");
        is_str(p->user, good[i].user, "  its user");
        is_str(p->password, good[i].password, "  its password");
        is_str(p->basic, good[i].basic, "  as Basic");
        is_str(p->text, good[i].shown, "  what is shown of it");
        parent_give(p);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct parent *p = parent_parse(bad[i]);

        ok(p == NULL, "\"%s\" is no parent", bad[i]);
        parent_give(p);
    }
}

static void
test_no_proxy(void)
{
    static const struct {
        const char *list, *host;
        uint16_t port;
        bool fits;
    } asks[] = {
        {"example.com", "example.com", 80, true},
        {"example.com", "www.example.com", 80, true},
        {"example.com", "notexample.com", 80, false},
        {".example.com", "example.com", 80, true},
        {".example.com", "a.b.example.com", 80, true},
        {"..example.com", "www.example.com", 80, true},
        {"EXAMPLE.com.", "www.Example.com", 80, true},
        {"example.com:81", "example.com", 80, false},
        {"example.com:81", "www.example.com", 81, true},
        {"*", "anything", 1, true},
        {"*", "192.0.2.1", 1, true},
        {"a.test,b.test c.test", "x.c.test", 1, true},
        {"127.0.0.1", "127.0.0.1", 1, true},
        {"127.0.0.1", "127.0.0.2", 1, false},
        {"10.0.0.0/8", "10.9.9.9", 1, true},
        {"10.0.0.0/8", "11.9.9.9", 1, false},
        {"10.0.0.0/8", "10.example.com", 1, false},
        {"::1", "::1", 1, true},
        {"[::1]:443", "::1", 443, true},
        {"fd00::/8", "fd01::2", 1, true},
        {"localhost", "localhost", 1, true},
        {"com", "example.com", 1, true},
        {"", "example.com", 1, false},
    };

    for (size_t i = 0; i < sizeof asks / sizeof *asks; i++) {
        struct match *m = match_parse(NULL, err, sizeof err);

        ok(no_proxy_add(m, asks[i].list, err, sizeof err), "no_proxy %s",
           asks[i].list);
        is_int(match_host(m, asks[i].host, asks[i].port), asks[i].fits,
               "  and %s:%d", asks[i].host, asks[i].port);
        match_free(m);
    }
}

/* The text of the first way to a target; "direct". */
static const char *
first(const struct config *conf, const char *host, uint16_t port, bool tls)
{
    struct origin o = {.tls = tls, .port = port};
    struct parent *ways[WAYS_MAX];

    snprintf(o.host, sizeof o.host, "%s", host);
    if (parent_choose(conf, &o, ways) == 0)
        return "nothing";
    return ways[0] != NULL ? ways[0]->text : "direct";
}

static struct config *
read_conf(const char *text)
{
    FILE *f = fopen("t.ini", "we");
    struct config *conf;

    fputs(text, f);
    fclose(f);
    conf = config_read("t.ini", NULL, 0, err, sizeof err);
    if (conf == NULL)
        diag("%s", err);
    return conf;
}

static void
test_choice(void)
{
    struct config *conf = read_conf(
        "[upstream]\nparent = http://a:1, direct\nno_proxy = local\n"
        "[parent one]\nurl = socks5://b:2\nhosts = .corp, 10.0.0.0/8, *:8443\n"
        "[parent two]\nurl = direct\nhosts = www.corp, x.test\n");

    if (!ok(conf != NULL, "rules"))
        return;
    is_str(first(conf, "any.test", 80, false), "http://a:1", "the default");
    is_str(first(conf, "www.corp", 80, false), "socks5://b:2", "first match");
    is_str(first(conf, "corp", 443, true), "socks5://b:2", "a suffix");
    is_str(first(conf, "10.1.1.1", 80, false), "socks5://b:2", "a block");
    is_str(first(conf, "any.test", 8443, true), "socks5://b:2", "a port");
    is_str(first(conf, "x.test", 80, false), "direct", "a rule says direct");
    is_str(first(conf, "local", 80, false), "direct", "no_proxy");
    is_str(first(conf, "a.local", 8443, false), "direct", "goes before rules");
    config_give(conf);
    conf = read_conf("");
    is_str(first(conf, "any.test", 80, false), "direct", "nothing set");
    config_give(conf);
}

static void
test_env(void)
{
    struct config *conf;

    setenv("http_proxy", "lower:1", 1);
    setenv("HTTP_PROXY", "upper:2", 1);
    setenv("ALL_PROXY", "socks5://all:3", 1);
    setenv("no_proxy", "skip.test,bad[item,10.0.0.0/8", 1);
    conf = read_conf("[upstream]\nparent = env\n");
    if (ok(conf != NULL, "parent = env")) {
        is_str(first(conf, "a.test", 80, false), "http://lower:1",
               "lower case goes first");
        is_str(first(conf, "a.test", 443, true), "socks5://all:3",
               "all_proxy for the rest, in upper case too");
        is_str(first(conf, "b.skip.test", 443, true), "direct", "no_proxy");
        is_str(first(conf, "10.1.1.1", 80, false), "direct", "with a block");
    }
    config_give(conf);
    setenv("https_proxy", "socks4://secret@x", 1);
    conf = read_conf("[upstream]\nparent = env\n");
    ok(conf == NULL, "a variable that is no parent");
    ok(strstr(err, "https_proxy in the environment is no parent") != NULL &&
           strstr(err, "secret") == NULL,
       "is told, without what it says");
    config_give(conf);
    unsetenv("http_proxy");
    unsetenv("HTTP_PROXY");
    unsetenv("https_proxy");
    unsetenv("ALL_PROXY");
    unsetenv("no_proxy");
}

/* Fails p once it is its turn again; returns for how long it is out then. */
static int64_t
fail_again(struct parent *p)
{
    struct fail f = {.why = WHY_REFUSED, .op = "connect"};

    if (atomic_load(&p->out_until) > now_ms())
        atomic_store(&p->out_until, now_ms());
    parent_judge(p, &f, 0);
    return atomic_load(&p->out_until) - now_ms();
}

static void
test_health(void)
{
    struct config *conf = read_conf("[upstream]\nparent = a:1, b:2\n"
                                    "[log]\nlevel = error\n");
    struct parent *a, *b;
    struct fail f = {.why = WHY_REFUSED, .op = "connect"};
    int64_t out = 0;

    if (!ok(conf != NULL, "two parents"))
        return;
    ok(log_setup(conf, err, sizeof err), "a quiet log");
    a = conf->ways.at[0];
    b = conf->ways.at[1];
    is_str(first(conf, "x", 80, false), "http://a:1", "the first, at first");
    parent_judge(a, &f, 0);
    is_str(first(conf, "x", 80, false), "http://b:2", "the second, then");
    out = atomic_load(&a->out_until);
    parent_judge(a, &f, 0);
    is_int(atomic_load(&a->out_until), out, "others at the time do not count");
    for (int64_t want = 2000; want <= 120000; want *= 2) {
        out = fail_again(a);
        is_int((out + 500) / 1000 * 1000, want > 60000 ? 60000 : want,
               "left out twice as long, up to a minute");
    }
    parent_judge(b, &f, 0);
    is_str(first(conf, "x", 80, false), "http://b:2",
           "all out: the one that waits shortest");
    parent_judge(a, NULL, 0);
    is_str(first(conf, "x", 80, false), "http://a:1", "one that serves is in");
    ok(fail_again(a) <= 1000, "and begins anew");
    config_give(conf);
}

int
main(void)
{
    if (chdir(dir_make()) != 0)
        return 2;
    test_urls();
    test_no_proxy();
    test_choice();
    test_env();
    test_health();
    dir_remove();
    return done_testing();
}
