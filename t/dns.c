/*
 * t/dns.c - names, with a resolver of our own that is slow, stuck or wrong.
 *
 * The name says how it behaves: "good...", "both...", "hosts...", "none...",
 * "again...", "broken...", and "gate..." waits until the gate is opened.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proxy.h"
#include "t/tap.h"

enum {
    LIMIT_MS = 20000, /* nothing here takes so long unless it is broken */
    CAP = 16,         /* threads that may be in the resolver */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static int n_asked; /* with AI_ADDRCONFIG, that is, once for each question */
static int n_inside, n_inside_max;
static bool gate_open;

/* ---- the resolver -------------------------------------------------------- */

struct reply { /* what ask() gives out, in one piece */
    struct addrinfo info;
    struct sockaddr_storage at;
};

static struct addrinfo *
reply_new(const char *text, struct addrinfo *next)
{
    struct reply *r = calloc(1, sizeof *r);
    struct sockaddr_in *in = (struct sockaddr_in *)&r->at;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&r->at;

    if (inet_pton(AF_INET, text, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        r->info.ai_addrlen = sizeof *in;
    } else if (inet_pton(AF_INET6, text, &in6->sin6_addr) == 1) {
        in6->sin6_family = AF_INET6;
        r->info.ai_addrlen = sizeof *in6;
    }
    r->info.ai_family = r->at.ss_family;
    r->info.ai_addr = (struct sockaddr *)&r->at;
    r->info.ai_next = next;
    return &r->info;
}

static void
done(struct addrinfo *list)
{
    while (list != NULL) {
        struct addrinfo *next = list->ai_next;

        free(list);
        list = next;
    }
}

static void
inside(int by)
{
    n_inside += by;
    if (n_inside > n_inside_max)
        n_inside_max = n_inside;
    pthread_cond_broadcast(&moved);
}

static bool
is(const char *name, const char *start)
{
    return strncmp(name, start, strlen(start)) == 0;
}

static int
ask(const char *name, const char *service, const struct addrinfo *hints,
    struct addrinfo **list)
{
    bool config = (hints->ai_flags & AI_ADDRCONFIG) != 0;

    (void)service;
    pthread_mutex_lock(&lock);
    n_asked += config;
    inside(1);
    while (is(name, "gate") && !gate_open)
        pthread_cond_wait(&moved, &lock);
    inside(-1);
    pthread_mutex_unlock(&lock);
    if (is(name, "none"))
        return EAI_NONAME;
    if (is(name, "again"))
        return EAI_AGAIN;
    if (is(name, "broken")) {
        errno = EMFILE;
        return EAI_SYSTEM;
    }
    if (is(name, "both"))
        *list = reply_new("2001:db8::1", reply_new("192.0.2.1", NULL));
    else if (is(name, "hosts") && config)
        *list = reply_new("127.0.0.1", NULL);
    else if (is(name, "hosts"))
        *list = reply_new("::1", reply_new("127.0.0.1", NULL));
    else
        *list = reply_new("192.0.2.1", NULL);
    return 0;
}

static int
asked(void)
{
    int n;

    pthread_mutex_lock(&lock);
    n = n_asked;
    pthread_mutex_unlock(&lock);
    return n;
}

static bool
inside_is(int n)
{
    int64_t until = now_ms() + LIMIT_MS;
    bool in_time = true;

    pthread_mutex_lock(&lock);
    while (n_inside != n && in_time)
        in_time = cond_until(&moved, &lock, until);
    pthread_mutex_unlock(&lock);
    return in_time;
}

static void
gate(bool open)
{
    pthread_mutex_lock(&lock);
    gate_open = open;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&lock);
}

/* ---- one question -------------------------------------------------------- */

struct look {
    enum why why;
    struct fail fail;
    struct address at[4];
    size_t n;
    char text[4][ADDR_MAX];
};

static struct look
look(const char *host, int dns_ms)
{
    struct look l = {.n = 99};

    l.why = dns_lookup(host, 443, dns_ms, l.at, 4, &l.n, &l.fail);
    if (l.why == WHY_NONE)
        for (size_t i = 0; i < l.n; i++)
            address_text((struct sockaddr *)&l.at[i].at, l.text[i]);
    return l;
}

static void
looks_like(const char *host, const char *first, const char *second)
{
    struct look l = look(host, LIMIT_MS);
    int before = asked();

    if (!is_int(l.why, WHY_NONE, "%s is found", host))
        return;
    is_int(l.n, second != NULL ? 2 : 1, "%s: addresses", host);
    is_str(l.text[0], first, "%s: first", host);
    if (second != NULL)
        is_str(l.text[1], second, "%s: second", host);
    is_int(asked(), before, "%s: known now", host);
}

static void
test_literals(void)
{
    static const char *const bad[] = {
        "", "1:2", "[::1]", "::1::", "fe80::1%no-such-interface",
    };
    char at_256[257];
    int before = asked();

    looks_like("192.0.2.7", "192.0.2.7:443", NULL);
    looks_like("2001:db8::7", "[2001:db8::7]:443", NULL);
    looks_like("localhost", "[::1]:443", "127.0.0.1:443");
    looks_like("LocalHost.", "[::1]:443", "127.0.0.1:443");
    looks_like("app.localhost", "[::1]:443", "127.0.0.1:443");
    is_int(look("fe80::1%lo", LIMIT_MS).why, WHY_NONE, "a scoped address");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct look l = look(bad[i], LIMIT_MS);

        is_int(l.why, WHY_DNS, "'%s' is nothing", bad[i]);
        is_int(l.fail.code, EAI_NONAME, "and says so");
    }
    memset(at_256, 'a', 256);
    at_256[256] = '\0';
    is_int(look(at_256, LIMIT_MS).why, WHY_DNS, "256 bytes are no name");
    is_int(asked(), before, "the resolver was never asked");
}

static void
test_answers(void)
{
    struct look l;
    int before = asked();

    looks_like("good.test", "192.0.2.1:443", NULL);
    looks_like("both.test", "[2001:db8::1]:443", "192.0.2.1:443");
    looks_like("hosts.test", "[::1]:443", "127.0.0.1:443");
    looks_like("notlocalhost", "192.0.2.1:443", NULL);
    is_int(asked(), before + 4, "one question for each");
    looks_like("GOOD.test", "192.0.2.1:443", NULL);
    is_int(asked(), before + 4, "case does not make another name");
    dns_forget();
    looks_like("good.test", "192.0.2.1:443", NULL);
    is_int(asked(), before + 5, "asked anew once forgotten");

    l = look("none.test", LIMIT_MS);
    is_int(l.why, WHY_DNS, "a name that does not exist");
    is_int(l.fail.code, EAI_NONAME, "its code");
    is_int(l.fail.side, SIDE_ORIGIN, "not the client's doing");
    is_str(l.fail.text(l.fail.code), gai_strerror(EAI_NONAME), "its text");
    is_int(l.n, 99, "n is not touched");
    l = look("again.test", LIMIT_MS);
    is_int(l.fail.code, EAI_AGAIN, "a resolver that cannot say");
    l = look("broken.test", LIMIT_MS);
    is_int(l.why, WHY_DNS, "a resolver that met errno");
    is_int(l.fail.code, EMFILE, "which is told");
    is_str(l.fail.text(l.fail.code), sys_text(EMFILE), "in words");
}

/* Failures are remembered for a second, not for longer. */
static void
test_negative(void)
{
    int before = asked();
    int64_t from = now_ms(), until = from + LIMIT_MS;

    look("none.negative.test", LIMIT_MS);
    look("none.negative.test", LIMIT_MS);
    ok(asked() == before + 1 || now_ms() - from >= 1000,
       "a failure is not asked for again at once");
    while (asked() == before + 1 && now_ms() < until) {
        look("none.negative.test", LIMIT_MS);
        poll(NULL, 0, 20);
    }
    is_int(asked(), before + 2, "but before long");
    ok(now_ms() - from >= 1000, "after a second at the earliest");
}

static void
test_bounded(void)
{
    char name[32];
    int before;

    dns_forget();
    before = asked();
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "good%d.test", i);
        if (look(name, LIMIT_MS).why != WHY_NONE)
            diag("%s not found", name);
    }
    is_int(asked(), before + 300, "300 names");
    look("good299.test", LIMIT_MS);
    look("good44.test", LIMIT_MS);
    is_int(asked(), before + 300, "256 of them are remembered");
    look("good43.test", LIMIT_MS);
    is_int(asked(), before + 301, "the oldest are not");
}

/* ---- many askers --------------------------------------------------------- */

struct asker {
    pthread_t thread;
    char host[32];
    int dns_ms;
    struct look look;
};

static void *
asker_main(void *arg)
{
    struct asker *a = arg;

    a->look = look(a->host, a->dns_ms);
    return NULL;
}

/* All for one name, or each for its own. */
static void
askers_start(struct asker *a, int n, const char *host, bool one, int dns_ms)
{
    for (int i = 0; i < n; i++) {
        snprintf(a[i].host, sizeof a[i].host, "%s%d", host, one ? 0 : i);
        a[i].dns_ms = dns_ms;
        pthread_create(&a[i].thread, NULL, asker_main, &a[i]);
    }
}

static int
askers_join(struct asker *a, int n, enum why why)
{
    int n_so = 0;

    for (int i = 0; i < n; i++) {
        pthread_join(a[i].thread, NULL);
        n_so += a[i].look.why == why;
    }
    return n_so;
}

static void
test_shared(void)
{
    struct asker a[8];
    int before = asked();

    gate(false);
    askers_start(a, 8, "gate.shared", true, LIMIT_MS);
    ok(inside_is(1), "the resolver has the question");
    gate(true);
    is_int(askers_join(a, 8, WHY_NONE), 8, "eight askers are answered");
    is_int(asked(), before + 1, "by one question");
}

static void
test_stuck(void)
{
    struct asker first, a[CAP + 3];
    int before = asked();
    int64_t from;
    struct look l;

    gate(false);
    from = now_ms();
    askers_start(&first, 1, "gate.first", false, 200);
    ok(inside_is(1),
       "the first is in the resolver"); /* it has a helper for sure, whoever of
                                           the others has none */
    askers_start(a, CAP + 3, "gate.stuck", false, 200);
    is_int(askers_join(&first, 1, WHY_DNS_LATE) +
               askers_join(a, CAP + 3, WHY_DNS_LATE),
           CAP + 4, "a stuck resolver: all give up");
    ok(now_ms() - from >= 200, "not before their time");
    is_int(asked(), before + CAP, "as many threads as may be");
    is_int(n_inside_max, CAP, "were in the resolver at once");
    l = look("good.behind", 50);
    is_int(l.why, WHY_DNS_LATE, "others must wait behind them");
    is_int(look("192.0.2.1", 50).why, WHY_NONE, "an address does not");
    gate(true);
    inside_is(0);
    l = look("good.behind", LIMIT_MS);
    is_int(l.why, WHY_NONE, "the helpers go on when it answers");
    is_int(look("gate.first0", LIMIT_MS).why, WHY_NONE, "a late answer");
    is_int(asked(), before + CAP + 1, "serves the next who asks");
}

/* ---- no thread, and the end ---------------------------------------------- */

/* In a process of its own, for the limit stays. */
static int
starve(void)
{
    struct rlimit none = {1, 1};
    struct look l;

    /* The limit does not hold for root. */
    if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0)
        return 1;
    if (setrlimit(RLIMIT_NPROC, &none) != 0)
        return 2;
    l = look("good.test", LIMIT_MS);
    if (l.why != WHY_SYS || l.fail.code != EAGAIN || l.fail.side != SIDE_WEIR)
        return 3;
    return look("192.0.2.1", LIMIT_MS).why == WHY_NONE ? 0 : 4;
}

static void
test_starved(void)
{
    int status = -1;
    pid_t pid = fork();

    if (pid == 0)
        _exit(starve());
    ok(pid > 0 && waitpid(pid, &status, 0) == pid, "a process without threads");
    is_int(status, 0, "says that it cannot ask, and still knows addresses");
}

/* The last: a helper stays stuck for good, and main() returns all the same. */
static void
test_stop(void)
{
    struct asker a[2];
    int64_t from;

    gate(false);
    askers_start(a, 2, "gate.stop", true, LIMIT_MS);
    inside_is(1);
    from = now_ms();
    dns_stop();
    ok(now_ms() - from < LIMIT_MS, "stopping does not wait for the resolver");
    is_int(askers_join(a, 2, WHY_DRAIN), 2, "nor do those who ask");
    is_int(look("good.test", LIMIT_MS).why, WHY_DRAIN, "nobody asks any more");
    is_int(look("localhost", LIMIT_MS).why, WHY_NONE, "it is known anyway");
}

int
main(void)
{
    alarm(120); /* a lost wake-up shall fail, not hang */
    dns_resolver = (struct resolver){ask, done};
    test_starved(); /* first: it forks while there is one thread */
    test_literals();
    test_answers();
    test_negative();
    test_bounded();
    test_shared();
    test_stuck();
    test_stop();
    return done_testing();
}
