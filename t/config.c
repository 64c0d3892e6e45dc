/*
 * t/config.c - settings: defaults, every kind of value, every kind of mistake,
 * the command line, and that proxy.ini and weir.ini(5) say what the table says.
 *
 * Runs at the top of the source tree.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <unistd.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/tap.h"

static char err[1024];

/* ---- helpers ------------------------------------------------------------- */

static char *
slurp(const char *path)
{
    FILE *f = fopen(path, "re");
    char *text = NULL;
    size_t len = 0, cap = 0;

    if (f == NULL || getdelim(&text, &cap, '\0', f) < 0) {
        ok(false, "%s can be read", path);
        exit(done_testing());
    }
    fclose(f);
    len = strlen(text);
    ok(len > 1000, "%s is there", path);
    return text;
}

static void
write_file(const char *path, const char *text, size_t len)
{
    FILE *f = fopen(path, "we");

    if (f == NULL || fwrite(text, 1, len, f) != len || fclose(f) != 0) {
        perror(path);
        exit(2);
    }
}

static void
write_ini(const char *text)
{
    write_file("t.ini", text, strlen(text));
}

/* err is empty then, or the mistake. */
static struct config *
read_text(const char *text)
{
    write_ini(text);
    err[0] = '\0';
    return config_read("t.ini", NULL, 0, err, sizeof(err));
}

static struct config *
read_set(const char *file, const char *set)
{
    char text[512], *sets[] = {text};

    snprintf(text, sizeof(text), "%s", set);
    err[0] = '\0';
    return config_read(file, sets, 1, err, sizeof(err));
}

static struct config *
defaults(void)
{
    struct config *conf = config_read(NULL, NULL, 0, err, sizeof(err));

    ok(conf != NULL, "the defaults are settings");
    if (conf == NULL) {
        diag("%s", err);
        exit(done_testing());
    }
    return conf;
}

static void
says(const char *text, const char *want)
{
    struct config *conf = read_text(text);

    is_str(conf == NULL ? err : "no mistake", want, "%s", want);
    config_give(conf);
}

static void
set_says(const char *set, const char *want)
{
    struct config *conf = read_set(NULL, set);

    is_str(conf == NULL ? err : "no mistake", want, "%s", want);
    config_give(conf);
}

/* ---- what the table says, three times ---------------------------------------
 */

/* Goes to the line that is `want`, over text alone; false: something else that
 * begins with `stop` is first. */
static bool
line_find(const char **at, const char *want, char stop)
{
    while (**at != '\0') {
        size_t len = strcspn(*at, "\n");
        bool same = len == strlen(want) && strncmp(*at, want, len) == 0;
        bool stops = **at == stop;

        if (same || stops) {
            if (same)
                *at += len + ((*at)[len] == '\n');
            return same;
        }
        *at += len + ((*at)[len] == '\n');
    }
    return false;
}

static void
test_proxy_ini(const char *ini)
{
    const struct config_key *key;
    const char *at = ini, *section = "";
    char want[512];

    for (size_t i = 0; (key = config_key(i)) != NULL; i++) {
        if (strcmp(section, key->section) != 0) {
            section = key->section;
            snprintf(want, sizeof(want), "[%s]", section);
            ok(line_find(&at, want, ';'), "proxy.ini has [%s]", section);
        }
        snprintf(want, sizeof(want), "# %s", key->what);
        ok(line_find(&at, want, ';'), "proxy.ini tells of %s.%s", section,
           key->name);
        if (key->preset == NULL)
            continue;
        snprintf(want, sizeof(want), ";%s =%s%s", key->name,
                 key->preset[0] != '\0' ? " " : "", key->preset);
        if (!ok(line_find(&at, want, ';'), "  as \"%s\"", want))
            diag("there is: %.40s", at);
    }
    ok(strstr(at, "\n;") == NULL && *at != ';',
       "proxy.ini has no other setting");
}

/* The range of a whole number is told by whoever gets none. */
static void
range_of(const struct config_key *key, char *out, size_t cap)
{
    char set[128], *range;

    snprintf(set, sizeof(set), "%s.%s=?", key->section, key->name);
    config_give(read_set(NULL, set));
    range = strstr(err, "is no whole number, allowed: ");
    snprintf(out, cap, "%s", range != NULL ? range + 29 : "");
}

static void
test_manual(const char *manual)
{
    const struct config_key *key;
    const char *at = manual, *section = "", *end, *found;
    char want[512], range[64];

    for (size_t i = 0; (key = config_key(i)) != NULL; i++) {
        if (strcmp(section, key->section) != 0) {
            section = key->section;
            snprintf(want, sizeof(want), ".SS [%s]", section);
            ok(line_find(&at, want, '\0'), "weir.ini(5) has [%s]", section);
        }
        if (key->preset == NULL)
            continue;
        if (key->preset[0] == '~')
            snprintf(want, sizeof(want), ".B %s = \\(ti%s", key->name,
                     key->preset + 1);
        else
            snprintf(want, sizeof(want), ".B %s =%s%s", key->name,
                     key->preset[0] != '\0' ? " " : "", key->preset);
        found = at;
        if (!ok(line_find(&found, want, '\0'), "weir.ini(5) has %s", want))
            continue;
        at = found;
        range_of(key, range, sizeof(range));
        if (range[0] == '\0')
            continue;
        end = strstr(at, "\n.TP");
        snprintf(want, sizeof(want), "(%s)", range);
        found = strstr(at, want);
        ok(found != NULL && (end == NULL || found < end), "  %s", want);
    }
}

/* All settings with their defaults taken for given ones. */
static void
test_uncommented(const char *ini)
{
    char text[32768];
    struct config *conf, *preset = defaults();
    int n = 0;

    ok((size_t)snprintf(text, sizeof(text), "%s", ini) < sizeof(text),
       "proxy.ini fits into what this test has for it");
    for (char *c = text; *c != '\0'; c += *c == '\n') {
        if (*c == ';') {
            *c = ' ';
            n++;
        }
        c += strcspn(c, "\n");
    }
    ok(n > 30, "proxy.ini has %d settings", n);
    conf = read_text(text);
    ok(conf != NULL, "all of them can be given");
    if (conf != NULL) {
        is_int(conf->workers, preset->workers, "the same workers");
        is_int(conf->sniff_ms, preset->sniff_ms, "the same sniff_ms");
        is_str(conf->dir, preset->dir, "the same dir");
        is_int(conf->n_listen, preset->n_listen, "the same listeners");
        ok(conf->upstream_ca == NULL && conf->log_file == NULL,
           "no path where none is named");
        ok(match_empty(conf->only) && match_empty(conf->except), "empty lists");
    } else {
        diag("%s", err);
    }
    config_give(conf);
    config_give(preset);
}

/* ---- values -------------------------------------------------------------- */

static void
test_defaults(void)
{
    struct config *conf = defaults();
    const struct sockaddr_in *in = (const void *)&conf->listen[0].addr;
    char dir[PATH_MAX];

    ok(conf->file == NULL, "from no file");
    is_int(conf->n_listen, 1, "one listener");
    is_str(conf->listen[0].text, "127.0.0.1:8080", "as written");
    ok(in->sin_family == AF_INET && ntohs(in->sin_port) == 8080 &&
           in->sin_addr.s_addr == htonl(INADDR_LOOPBACK) &&
           conf->listen[0].len == sizeof(*in),
       "as an address");
    ok(conf->names == NULL && conf->n_names == 0, "no further names");
    is_str(conf->via, "", "via is made at start");
    is_int(conf->workers, 256, "workers");
    is_int(conf->idle_s, 30, "idle_s");
    is_int(conf->half_closed_s, 30, "half_closed_s");
    ok(conf->intercept, "interception is on");
    ok(match_empty(conf->only) && match_empty(conf->except) &&
           match_empty(conf->insecure) && conf->only != NULL,
       "lists of hosts are empty, not missing");
    snprintf(dir, sizeof(dir), "%s/.weir", getenv("HOME"));
    is_str(conf->dir, dir, "the CA is in the home directory");
    ok(conf->resolve == NULL && conf->n_resolve == 0, "no name is resolved");
    ok(conf->level == LEVEL_INFO && !conf->json && conf->log_file == NULL,
       "info, as text, to standard error");
    config_give(conf);
    config_give(NULL);
}

static void
test_values(void)
{
    struct config *conf;
    char dir[PATH_MAX];

    conf = read_text("[proxy]\n"
                     "workers = 7\n"
                     "  idle_s=8   \n"
                     "\thead_s : 9 ; in a hurry\r\n"
                     "via = my-proxy ; mine\n"
                     "names = Proxy.Example.com. 192.0.2.1\n"
                     "names = [2001:DB8:0::1], ::2\n"
                     "[intercept]\n"
                     "enable = OFF\n"
                     "only = a.test\n"
                     "# between\n"
                     "only = .b.test, *.c.test\n"
                     "dir = ~/x\n"
                     "[upstream] ; comment\n"
                     "insecure = 10.0.0.0/8 [::1]:443\n"
                     "upstream_ca = ./t.ini\n"
                     "[log]\n"
                     "level = debug\n"
                     "format = json\n"
                     "file = x y.log\n"
                     "[proxy]\n"
                     "queue = 3");
    ok(conf != NULL, "a file with many values is read");
    if (conf == NULL) {
        diag("%s", err);
        return;
    }
    is_str(conf->file, "t.ini", "its name is kept");
    is_int(conf->workers, 7, "a number");
    is_int(conf->idle_s, 8, "an indented line");
    is_int(conf->head_s, 9, "colon, tab, comment and CR LF");
    is_int(conf->queue, 3, "a section again, a line without an end");
    is_int(conf->queue_s, 5, "what is not there has its default");
    is_str(conf->via, "my-proxy", "a token");
    is_int(conf->n_names, 4, "names add up");
    is_str(conf->names[0], "proxy.example.com", "a name");
    is_str(conf->names[1], "192.0.2.1", "an IPv4 address");
    is_str(conf->names[2], "2001:db8::1", "an IPv6 address in brackets");
    is_str(conf->names[3], "::2", "and without");
    ok(!conf->intercept, "a truth");
    ok(match_host(conf->only, "a.test", 443) &&
           match_host(conf->only, "b.test", 443) &&
           match_host(conf->only, "x.c.test", 443) &&
           !match_host(conf->only, "d.test", 443),
       "hosts of two lines");
    ok(match_host(conf->insecure, "10.1.2.3", 1) &&
           match_host(conf->insecure, "::1", 443),
       "addresses as hosts");
    snprintf(dir, sizeof(dir), "%s/x", getenv("HOME"));
    is_str(conf->dir, dir, "a path from home");
    is_str(conf->upstream_ca, "./t.ini", "a file that is there");
    ok(conf->level == LEVEL_DEBUG && conf->json, "words");
    is_str(conf->log_file, "x y.log", "a path with a blank");
    config_give(conf);
}

static void
test_truths(void)
{
    static const struct {
        const char *word;
        bool yes;
    } words[] = {{"yes", true},    {"no", false}, {"true", true},
                 {"false", false}, {"on", true},  {"off", false},
                 {"1", true},      {"0", false},  {"Yes", true},
                 {"NO", false}};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        char set[64];
        struct config *conf;

        snprintf(set, sizeof(set), "intercept.enable=%s", words[i].word);
        conf = read_set(NULL, set);
        ok(conf != NULL && conf->intercept == words[i].yes, "%s", set);
        config_give(conf);
    }
    set_says("intercept.enable=perhaps",
             "--set intercept.enable=perhaps: [intercept] enable: \"perhaps\" "
             "is unknown, allowed: yes, no, true, false, on, off, 1, 0");
}

/* Each whole number: its ends are allowed, what is behind them is not. */
static void
test_ranges(void)
{
    const struct config_key *key;
    int n = 0;

    for (size_t i = 0; (key = config_key(i)) != NULL; i++) {
        long low, high, values[4];
        char range[64], set[128], *to;

        if (key->preset == NULL)
            continue;
        range_of(key, range, sizeof(range));
        if (range[0] == '\0')
            continue;
        n++;
        low = strtol(range, &to, 10);
        high = strtol(to + 4, NULL, 10);
        values[0] = low;
        values[1] = high;
        values[2] = low - 1;
        values[3] = high + 1;
        for (int v = 0; v < 4; v++) {
            struct config *conf;

            snprintf(set, sizeof(set), "%s.%s=%ld", key->section, key->name,
                     values[v]);
            conf = read_set(NULL, set);
            ok((conf != NULL) == (v < 2), "%s is %s", set,
               v < 2 ? "allowed" : "not allowed");
            config_give(conf);
        }
        snprintf(set, sizeof(set), "out of range, allowed: %s", range);
        ok(strstr(err, set) != NULL, "  and why");
    }
    ok(n >= 20, "%d numbers were tried", n);
}

static void
test_numbers(void)
{
    says("[proxy]\nworkers = 0\n", "t.ini:2: [proxy] workers: 0 is out of "
                                   "range, allowed: 1 to 100000");
    says("[proxy]\nworkers = 99999999999999999999999\n",
         "t.ini:2: [proxy] workers: 99999999999999999999999 is out of range, "
         "allowed: 1 to 100000");
    says("[proxy]\n\nidle_s = 30s\n",
         "t.ini:3: [proxy] idle_s: \"30s\" is no whole number, allowed: 1 to "
         "604800");
    says("[proxy]\nidle_s = 1.5\n",
         "t.ini:2: [proxy] idle_s: \"1.5\" is no whole number, allowed: 1 to "
         "604800");
    says("[proxy]\nidle_s =\n", "t.ini:2: [proxy] idle_s: \"\" is no whole "
                                "number, allowed: 1 to 604800");
    says("[proxy]\nidle_s = -\n", "t.ini:2: [proxy] idle_s: \"-\" is no whole "
                                  "number, allowed: 1 to 604800");
    says("[proxy]\nidle_s = 0x10\n",
         "t.ini:2: [proxy] idle_s: \"0x10\" is no whole number, allowed: 1 to "
         "604800");
}

static void
test_words(void)
{
    says("[log]\nlevel = loud\n", "t.ini:2: [log] level: \"loud\" is unknown, "
                                  "allowed: error|warning|info|debug");
    says("[log]\nlevel = inf\n", "t.ini:2: [log] level: \"inf\" is unknown, "
                                 "allowed: error|warning|info|debug");
    says("[log]\nlevel =\n", "t.ini:2: [log] level: \"\" is unknown, allowed: "
                             "error|warning|info|debug");
    says("[log]\nformat = xml\n", "t.ini:2: [log] format: \"xml\" is unknown, "
                                  "allowed: text|json");
    says("[proxy]\nvia = a b\n",
         "t.ini:2: [proxy] via: \"a b\" is no token, allowed: letters, digits "
         "and !#$%&'*+-.^_`|~");
    /* a ; without a blank is part of the value */
    says("[proxy]\nvia = a;b\n",
         "t.ini:2: [proxy] via: \"a;b\" is no token, allowed: letters, digits "
         "and !#$%&'*+-.^_`|~");
    says(
        "[proxy]\nvia = aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeefffff"
        "fffffgggg\n",
        "t.ini:2: [proxy] via: too long, allowed: 63 characters");
}

static void
test_listen(void)
{
    struct config *conf =
        read_text("[proxy]\nlisten = 127.0.0.1:0, 127.0.0.1:0\n"
                  "listen = [::1]:8081 localhost:8082,192.0.2.1:65535\n");
    const struct sockaddr_in6 *in6;

    if (!ok(conf != NULL && conf->n_listen == 5, "five addresses"))
        return;
    in6 = (const void *)&conf->listen[2].addr;
    ok(in6->sin6_family == AF_INET6 && ntohs(in6->sin6_port) == 8081 &&
           IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) &&
           conf->listen[2].len == sizeof(*in6),
       "one of them IPv6");
    is_str(conf->listen[2].text, "[::1]:8081", "as written");
    ok(((const struct sockaddr_in *)(const void *)&conf->listen[3].addr)
               ->sin_addr.s_addr == htonl(INADDR_LOOPBACK),
       "localhost is 127.0.0.1");
    config_give(conf);

    for (int i = 0; i < 2; i++) {
        const char *all = i == 0 ? "proxy.listen=*:8080" : "proxy.listen=:8080";
        const struct sockaddr_in *in;

        conf = read_set(NULL, all);
        if (!ok(conf != NULL && conf->n_listen >= 1, "%s", all))
            continue;
        in = (const void *)&conf->listen[0].addr;
        ok(in->sin_family == AF_INET && in->sin_addr.s_addr == 0 &&
               ntohs(in->sin_port) == 8080,
           "  all of IPv4");
        ok(conf->n_listen == 1 || conf->listen[1].addr.ss_family == AF_INET6,
           "  and of IPv6 where it is");
        config_give(conf);
    }
}

static void
test_listen_mistakes(void)
{
    static const char *const wrong[] = {
        "8080",           "127.0.0.1",      "127.0.0.1:",   "127.0.0.1:65536",
        "127.0.0.1:-1",   "127.0.0.1:80x",  "[::1]",        "::1:8080",
        "[::1:8080",      "[127.0.0.1]:80", "256.0.0.1:80", "example.com:80",
        "http://[::1]:1", "127.0.0.1/8:80", "a:b:c"};
    char set[512], want[2048];

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        snprintf(set, sizeof(set), "proxy.listen=%s", wrong[i]);
        snprintf(want, sizeof(want),
                 "--set %s: [proxy] listen: \"%s\" is nothing to listen on, "
                 "allowed: address:port like 127.0.0.1:8080 or [::1]:8080; "
                 "*:8080 for all addresses; port 0 for a free one",
                 set, wrong[i]);
        set_says(set, want);
    }
    says("[proxy]\nlisten =\n", "t.ini:2: [proxy] listen: empty, allowed: "
                                "address:port like 127.0.0.1:8080");
    says("[proxy]\nlisten = 127.0.0.1:1\nlisten = [::1]:1, 127.0.0.1:1\n",
         "t.ini:3: [proxy] listen: 127.0.0.1:1 is there twice, allowed: once");
    says("[proxy]\nlisten = [::1]:0,[::1]:0,[::1]:0,[::1]:0,[::1]:0,[::1]:0\n"
         "listen = [::1]:0,[::1]:0,[::1]:0,[::1]:0,[::1]:0,[::1]:0,[::1]:0\n"
         "listen = [::1]:0,[::1]:0,[::1]:0\n"
         "listen = [::1]:0\n",
         "t.ini:5: [proxy] listen: too many addresses, allowed: 16");
    memset(set, 'x', sizeof(set) - 1);
    set[sizeof(set) - 1] = '\0';
    memcpy(set, "proxy.listen=", 13);
    config_give(read_set(NULL, set));
    ok(strstr(err, "is too long, allowed: 255 bytes") != NULL,
       "an item that is far too long");
}

static void
test_hosts(void)
{
    says("[proxy]\nnames = a.test:80\n",
         "t.ini:2: [proxy] names: \"a.test:80\" is no host, allowed: name or "
         "address");
    says("[proxy]\nnames = a.test b/c\n", "t.ini:2: [proxy] names: \"b/c\" is "
                                          "no host, allowed: name or address");
    says("[intercept]\nexcept = a.test\nexcept = https://b.test\n",
         "t.ini:3: [intercept] except: \"https://b.test\" is no host, allowed: "
         "name, glob like *.test, .suffix, address, address/bits, each with "
         ":port or :port-port");
}

static void
test_http3(void)
{
    struct config *conf = read_text("[upstream]\nhttp3 = *.a.test, auto\n"
                                    "http3 = b.test:8443\n");

    ok(conf != NULL && conf->http3_auto, "http3: the word auto");
    ok(conf != NULL && match_host(conf->http3_hosts, "x.a.test", 443) &&
           match_host(conf->http3_hosts, "b.test", 8443) &&
           !match_host(conf->http3_hosts, "auto", 443),
       "and hosts beside it");
    config_give(conf);
    write_ini("[upstream]\nhttp3 = auto, a.test\n");
    conf = read_set("t.ini", "upstream.http3=c.test");
    ok(conf != NULL && !conf->http3_auto &&
           match_host(conf->http3_hosts, "c.test", 443) &&
           !match_host(conf->http3_hosts, "a.test", 443),
       "--set replaces both");
    config_give(conf);
    conf = read_set("t.ini", "upstream.http3=");
    ok(conf != NULL && !conf->http3_auto && match_empty(conf->http3_hosts),
       "and can empty them");
    config_give(conf);
    conf = defaults();
    ok(!conf->http3_auto && match_empty(conf->http3_hosts) &&
           !conf->alt_svc_keep,
       "nobody is tried by default, and Alt-Svc is stripped");
    config_give(conf);
}

static void
test_paths(void)
{
    const char *home = getenv("HOME");
    char kept[PATH_MAX], dir[PATH_MAX + 16];
    struct config *conf;

    snprintf(kept, sizeof(kept), "%s", home);
    says("[upstream]\nupstream_ca = no/such.pem\n",
         "t.ini:2: [upstream] upstream_ca: no/such.pem: No such file or "
         "directory, allowed: a readable file");
    says("[upstream]\nupstream_ca = .\n",
         "t.ini:2: [upstream] upstream_ca: . is no file, allowed: a readable "
         "file");
    conf = read_text("[upstream]\nupstream_ca =\n[intercept]\ndir =\n");
    ok(conf != NULL && conf->upstream_ca == NULL && conf->dir == NULL,
       "an empty path is none");
    config_give(conf);

    conf = read_text("[intercept]\ndir = ~\n[log]\nfile = ~x/y\n");
    ok(conf != NULL, "a path that is home alone, and one of no home");
    if (conf != NULL) {
        is_str(conf->dir, home, "home");
        is_str(conf->log_file, "~x/y", "no home");
    }
    config_give(conf);

    /* without HOME the system knows where it is */
    setenv("HOME", "relative", 1);
    conf = read_text("");
    ok(conf != NULL && (conf->dir == NULL || conf->dir[0] == '/'),
       "HOME has to be absolute");
    config_give(conf);
    unsetenv("HOME");
    conf = read_text("");
    ok(conf != NULL && (conf->dir == NULL || conf->dir[0] == '/'),
       "HOME may be missing");
    config_give(conf);
    setenv("HOME", kept, 1);
    conf = read_text("");
    snprintf(dir, sizeof(dir), "%s/.weir", kept);
    ok(conf != NULL && strcmp(conf->dir, dir) == 0, "and is back");
    config_give(conf);
}

static void
test_resolve(void)
{
    struct config *conf = read_text("[resolve]\n"
                                    "api.test = 127.0.0.1:3000\n"
                                    "WWW.Test. = 192.0.2.1\n"
                                    "v6.test = 2001:DB8::1\n"
                                    "b6.test = [::1]\n"
                                    "p6.test = [::1]:81\n");

    if (ok(conf != NULL && conf->n_resolve == 5, "five names")) {
        is_str(conf->resolve[0].name, "api.test", "a name");
        is_str(conf->resolve[0].host, "127.0.0.1", "its address");
        is_int(conf->resolve[0].port, 3000, "its port");
        is_str(conf->resolve[1].name, "www.test", "as others compare it");
        is_int(conf->resolve[1].port, 0, "no port");
        is_str(conf->resolve[2].host, "2001:db8::1", "IPv6");
        is_int(conf->resolve[2].port, 0, "without a port");
        is_str(conf->resolve[3].host, "::1", "in brackets");
        is_str(conf->resolve[4].host, "::1", "with a port");
        is_int(conf->resolve[4].port, 81, "its port");
    } else {
        diag("%s", err);
    }
    config_give(conf);
    says("[resolve]\na.test = b.test\n",
         "t.ini:2: [resolve] a.test: \"b.test\" is no address, allowed: "
         "10.0.0.1, 10.0.0.1:8443, ::1 or [::1]:8443");
    says("[resolve]\na.test = 10.0.0.1:0\n",
         "t.ini:2: [resolve] a.test: \"10.0.0.1:0\" is no address, allowed: "
         "10.0.0.1, 10.0.0.1:8443, ::1 or [::1]:8443");
    says("[resolve]\na.test =\n",
         "t.ini:2: [resolve] a.test: \"\" is no address, allowed: 10.0.0.1, "
         "10.0.0.1:8443, ::1 or [::1]:8443");
    says("[resolve]\na/b = 10.0.0.1\n", "t.ini:2: [resolve] a/b: no host name, "
                                        "allowed: letters, digits, - _ and .");
    says("[resolve]\na.test = 10.0.0.1\nb.test = 10.0.0.1\nA.test = 10.0.0.2\n",
         "t.ini:4: [resolve] A.test: there already, allowed: one address a "
         "name");
}

/* ---- the file ------------------------------------------------------------ */

static void
test_unknown(void)
{
    says("[proxy]\nwokers = 1\n", "t.ini:2: [proxy] wokers: unknown key, did "
                                  "you mean workers?");
    says("[proxy]\nlinger = 1\n", "t.ini:2: [proxy] linger: unknown key, did "
                                  "you mean linger_ms?");
    says("[proxy]\nWorkers = 1\n", "t.ini:2: [proxy] Workers: unknown key, did "
                                   "you mean workers?");
    says("[proxy]\nconnect_s = 1\n",
         "t.ini:2: [proxy] connect_s: unknown key here, allowed: in "
         "[upstream]");
    says("[log]\ncolour = red\n", "t.ini:2: [log] colour: unknown key, "
                                  "allowed: level, format, file");
    says("[log]\n = red\n", "t.ini:2: [log] : unknown key, allowed: level, "
                            "format, file");
    says("[intercepts]\nenable = no\n",
         "t.ini:2: [intercepts] enable: unknown section, did you mean "
         "[intercept]? allowed: proxy, access, upstream, http2, http3, tunnel, "
         "intercept, parent NAME, resolve, log");
    says(
        "[h9]\n\nstreams = 1\n",
        "t.ini:3: [h9] streams: unknown section, allowed: proxy, access, "
        "upstream, http2, http3, tunnel, intercept, parent NAME, resolve, log");
    says("workers = 1\n[proxy]\n",
         "t.ini:1: [] workers: before any section, "
         "allowed: proxy, access, upstream, "
         "http2, http3, tunnel, intercept, parent NAME, resolve, "
         "log");
}

static void
test_syntax(void)
{
    says("[proxy]\nworkers = 1\n\nqueue = 3\nworkers = 2\n",
         "t.ini:5: [proxy] workers: given twice, first in line 2, allowed: "
         "once");
    says("[proxy]\nworkers\n",
         "t.ini:2: not understood, allowed: [section] or key = value");
    says("[proxy\nworkers = 1\n",
         "t.ini:1: not understood, allowed: [section] or key = value");
    says("[proxy]\nwhat\nworkers = 0\n",
         "t.ini:2: not understood, allowed: [section] or key = value");
    says("[proxy]\nworkers = 0\nwhat\n", "t.ini:2: [proxy] workers: 0 is out "
                                         "of range, allowed: 1 to 100000");
    says("[proxy] workers = 0\n", "t.ini:1: \"workers = 0\" behind a section, "
                                  "allowed: [section] alone");
    /* inih would take the third line for more of the second one's value */
    says("[log]\nfile = x\n  level = loud\n",
         "t.ini:3: [log] level: \"loud\" is unknown, allowed: "
         "error|warning|info|debug");
}

static void
test_lines(void)
{
    char text[2048] = "[log]\nfile = ";
    size_t len = strlen(text);
    struct config *conf;

    memset(text + len, 'x', 190);
    conf = read_text(text);
    ok(conf != NULL && strlen(conf->log_file) == 190, "a line of 197 bytes");
    config_give(conf);
    text[len + 190] = 'x';
    says(text, "t.ini:2: line too long, allowed: 197 bytes; a list may go on "
               "with the same key in the next line");

    len = (size_t)snprintf(text, sizeof(text), "# %01500d\n[proxy]\n", 0);
    snprintf(text + len, sizeof(text) - len, "workers = x\n");
    says(text, "t.ini:3: [proxy] workers: \"x\" is no whole number, allowed: 1 "
               "to 100000");
    says("\xef\xbb\xbf[proxy]\nworkers = x\n",
         "t.ini:2: [proxy] workers: \"x\" is no whole number, allowed: 1 to "
         "100000");
    write_file("t.ini", "[log]\nfile = a\0b\n", 17);
    conf = config_read("t.ini", NULL, 0, err, sizeof(err));
    ok(conf == NULL, "a NUL byte is a mistake");
    is_str(err, "t.ini:2: a NUL byte, allowed: text", "and where it is");
}

/* Wherever a file ends, it is read, or the mistake is in its last line. */
static void
test_cut(void)
{
    static const char text[] = "[proxy]\n"
                               "workers = 20\n"
                               "; a comment\n"
                               "listen = [::1]:80, 127.0.0.1:81\n"
                               "[intercept] ; of TLS\n"
                               "only = .a.test:80-90, 10.0.0.0/8\n"
                               "[resolve]\n"
                               "b.test = [::1]:8443\n";
    size_t n_wrong = 0;

    for (size_t cut = 0; cut < sizeof(text); cut++) {
        struct config *conf;
        char place[32];
        int line = 1;

        for (size_t i = 0; i + 1 < cut; i++)
            line += text[i] == '\n';
        write_file("t.ini", text, cut);
        conf = config_read("t.ini", NULL, 0, err, sizeof(err));
        snprintf(place, sizeof(place), "t.ini:%d: ", line);
        if (conf == NULL && strncmp(err, place, strlen(place)) != 0) {
            diag("cut at %zu: %s", cut, err);
            n_wrong++;
        }
        config_give(conf);
    }
    is_int(n_wrong, 0, "a cut file is read or refused with its last line");
}

static void
test_no_file(void)
{
    config_give(config_read("no/such.ini", NULL, 0, err, sizeof(err)));
    is_str(err, "no/such.ini: cannot be read: No such file or directory",
           "a file that is missing");
    config_give(config_read(".", NULL, 0, err, sizeof(err)));
    is_str(err, ".: cannot be read: Is a directory", "a directory");
    if (geteuid() != 0) {
        write_file("shut.ini", "", 0);
        chmod("shut.ini", 0);
        config_give(config_read("shut.ini", NULL, 0, err, sizeof(err)));
        is_str(err, "shut.ini: cannot be read: Permission denied",
               "a file that is not ours to read");
    }
    err[0] = 'x';
    config_give(config_read("no/such.ini", NULL, 0, err, 1));
    is_str(err, "", "a message fits into one byte");
}

/* ---- the command line ---------------------------------------------------- */

static void
test_sets(void)
{
    char *sets[] = {"proxy.workers=3",
                    "proxy.workers = 4",
                    "proxy.listen=[::1]:0",
                    "proxy.listen=127.0.0.1:0",
                    "resolve.a.test=192.0.2.1",
                    "resolve.c.test=192.0.2.3",
                    "intercept.only=",
                    "log.file=a=b;c",
                    "intercept.dir="};
    struct config *conf;

    write_ini("[proxy]\nworkers = 2\nqueue = 5\nlisten = 192.0.2.9:1\n"
              "[resolve]\na.test = 127.0.0.1\nb.test = 127.0.0.2\n"
              "[intercept]\nonly = a.test\nexcept = b.test\ndir = x\n");
    conf = config_read("t.ini", sets, sizeof(sets) / sizeof(sets[0]), err,
                       sizeof(err));
    ok(conf != NULL, "a file and a command line");
    if (conf == NULL) {
        diag("%s", err);
        return;
    }
    is_int(conf->workers, 4, "the last word counts");
    is_int(conf->queue, 5, "the file counts where nobody else speaks");
    is_int(conf->n_listen, 2, "a list replaces the file's and adds up");
    is_str(conf->listen[0].text, "[::1]:0", "  its first");
    is_int(conf->n_resolve, 3, "names are added");
    is_str(conf->resolve[0].host, "192.0.2.1", "or replaced");
    is_str(conf->resolve[1].host, "127.0.0.2", "or left alone");
    ok(match_empty(conf->only), "an empty list replaces one too");
    ok(match_host(conf->except, "b.test", 1), "and leaves the others");
    is_str(conf->log_file, "a=b;c", "all behind the first = is the value");
    ok(conf->dir == NULL, "an empty path is none");
    config_give(conf);
}

static void
test_set_mistakes(void)
{
    set_says("proxy.workers=0",
             "--set proxy.workers=0: [proxy] workers: 0 is out of range, "
             "allowed: 1 to 100000");
    set_says("workers=1",
             "--set workers=1: not understood, allowed: section.key=value");
    set_says("proxy.workers",
             "--set proxy.workers: not understood, allowed: section.key=value");
    set_says("workers=1.5",
             "--set workers=1.5: not understood, allowed: section.key=value");
    set_says("", "--set : not understood, allowed: section.key=value");
    set_says(
        "proxi.workers=1",
        "--set proxi.workers=1: [proxi] workers: unknown section, did you "
        "mean [proxy]? allowed: proxy, access, upstream, http2, http3, tunnel, "
        "intercept, parent NAME, resolve, log");
    set_says("proxy.worker=1", "--set proxy.worker=1: [proxy] worker: unknown "
                               "key, did you mean workers?");
    write_ini("[proxy]\nworkers = 0\n");
    config_give(read_set("t.ini", "proxy.workers=5"));
    is_str(err,
           "t.ini:2: [proxy] workers: 0 is out of range, allowed: 1 to 100000",
           "a mistake in the file stays one");
}

/* ---- which file ---------------------------------------------------------- */

static void
test_find(const char *dir)
{
    char out[PATH_MAX], path[PATH_MAX], cut[8];
    bool system_wide = access("/etc/weir/proxy.ini", F_OK) == 0;

    setenv("HOME", dir, 1);
    unsetenv("XDG_CONFIG_HOME");
    remove("proxy.ini");
    ok(system_wide == (config_find(out, sizeof(out)) != NULL),
       "nothing but what the system has");
    mkdir(".config", 0700);
    mkdir(".config/weir", 0700);
    write_file(".config/weir/proxy.ini", "", 0);
    snprintf(path, sizeof(path), "%s/.config/weir/proxy.ini", dir);
    is_str(config_find(out, sizeof(out)), path, "~/.config");

    snprintf(path, sizeof(path), "%s/xdg", dir);
    setenv("XDG_CONFIG_HOME", path, 1);
    ok(system_wide == (config_find(out, sizeof(out)) != NULL),
       "XDG_CONFIG_HOME takes its place");
    mkdir("xdg", 0700);
    mkdir("xdg/weir", 0700);
    write_file("xdg/weir/proxy.ini", "", 0);
    snprintf(path, sizeof(path), "%s/xdg/weir/proxy.ini", dir);
    is_str(config_find(out, sizeof(out)), path, "XDG_CONFIG_HOME");
    setenv("XDG_CONFIG_HOME", "xdg", 1);
    snprintf(path, sizeof(path), "%s/.config/weir/proxy.ini", dir);
    is_str(config_find(out, sizeof(out)), path, "unless it is relative");

    mkdir("proxy.ini", 0700);
    is_str(config_find(out, sizeof(out)), path, "a directory is no file");
    rmdir("proxy.ini");
    write_file("proxy.ini", "", 0);
    is_str(config_find(out, sizeof(out)), "./proxy.ini", "this directory");
    remove("proxy.ini");
    ok(system_wide == (config_find(cut, sizeof(cut)) != NULL),
       "a path that does not fit is not there");
}

/* ---- the current one ----------------------------------------------------- */

static struct weir weir;
static atomic_bool done;

static void *
taker(void *arg)
{
    size_t *n_wrong = arg;

    while (!atomic_load(&done)) {
        struct config *conf = config_take(&weir);

        if (conf->workers != conf->queue || conf->n_listen != 1)
            ++*n_wrong;
        config_give(conf);
    }
    return NULL;
}

static void
test_swap(void)
{
    enum { N_TAKERS = 3, N_SWAPS = 300 };
    pthread_t threads[N_TAKERS];
    size_t n_wrong[N_TAKERS] = {0};
    struct config *first, *held;

    for (int i = 0; i <= N_SWAPS; i++) {
        char workers[64], queue[64], *sets[] = {workers, queue};

        snprintf(workers, sizeof(workers), "proxy.workers=%d", i + 1);
        snprintf(queue, sizeof(queue), "proxy.queue=%d", i + 1);
        first =
            config_swap(&weir, config_read(NULL, sets, 2, err, sizeof(err)));
        config_give(first);
        if (i == 0) {
            ok(first == NULL, "there was none before the first");
            for (int t = 0; t < N_TAKERS; t++)
                pthread_create(&threads[t], NULL, taker, &n_wrong[t]);
        }
    }
    atomic_store(&done, true);
    for (int t = 0; t < N_TAKERS; t++) {
        pthread_join(threads[t], NULL);
        is_int(n_wrong[t], 0, "a taker saw whole settings only");
    }
    held = config_take(&weir);
    config_give(config_swap(&weir, NULL));
    is_int(held->workers, N_SWAPS + 1, "what is held outlives the swap");
    is_int(atomic_load(&held->n_refs), 1, "with one reference");
    config_give(held);
}

int
main(void)
{
    char *ini = slurp("proxy.ini"), *manual = slurp("doc/weir.ini.5");
    const char *dir = dir_make();

    if (chdir(dir) != 0)
        return 2;
    setenv("HOME", dir, 1);
    test_proxy_ini(ini);
    test_uncommented(ini);
    test_manual(manual);
    test_defaults();
    test_values();
    test_truths();
    test_ranges();
    test_numbers();
    test_words();
    test_listen();
    test_listen_mistakes();
    test_hosts();
    test_http3();
    test_paths();
    test_resolve();
    test_unknown();
    test_syntax();
    test_lines();
    test_cut();
    test_no_file();
    test_sets();
    test_set_mistakes();
    test_find(dir);
    test_swap();
    free(ini);
    free(manual);
    dir_remove();
    return done_testing();
}
