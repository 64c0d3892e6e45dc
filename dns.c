/*
 * dns.c - names to addresses.
 *
 * getaddrinfo(3) cannot be cancelled and may sleep for minutes.  So it runs
 * on helper threads, N_HELPERS at most, and whoever asks waits beside them for
 * as long as he wants: a stuck resolver costs a bounded number of threads,
 * and an answer that comes late still serves the next who asks.
 *
 * One name is asked for once at a time, however many want it.  Answers are
 * remembered for a while, bad ones briefly.  We do not see their TTLs, and a
 * developer changes /etc/hosts and reloads the page: hence seconds, not hours.
 *
 * Follows  RFC 6761 section 6.3 (localhost), RFC 3493 section 6.1
 *          (getaddrinfo); the order of its answer stays (RFC 6724).
 * Owns     the cache and the helpers.
 * Threads  any asks; helpers are started when needed and end when idle.
 * Blocks   an asker for dns_ms.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/queue.h>

#include "proxy.h"

enum {
    N_HELPERS = 16,         /* threads that may be stuck in a resolver */
    HELPER_IDLE_MS = 10000, /* then it ends */
    HELPER_STACK = 1 << 20, /* NSS modules are not ours: room for them */
    N_NAMES = 256,          /* remembered */
    GOOD_MS = 30000,        /* how long an answer is believed */
    BAD_MS = 1000,          /* and how long a failure */
    STOP_MS = 200,          /* dns_stop() waits for helpers */
};

enum name_state {
    NAME_QUEUED, /* for a helper */
    NAME_ASKED,  /* by a helper: the entry stays until it has answered */
    NAME_KNOWN,
};

struct name {
    char host[HOST_MAX + 1];
    enum name_state state;
    size_t n_askers; /* who wait for it, or copy from it */
    pthread_cond_t known;
    /* of NAME_KNOWN */
    int gai, sys; /* getaddrinfo's answer, errno if that is EAI_SYSTEM */
    struct address *at;
    size_t n_at;
    int64_t until; /* ms */
    TAILQ_ENTRY(name) age, queue;
};

enum helper_state {
    HELPER_NONE,
    HELPER_RUNS,
    HELPER_GONE, /* has ended, to be joined */
    HELPER_LOST, /* stuck when we stopped; it will find out by itself */
};

struct helper {
    enum helper_state state;
    pthread_t thread;
};

TAILQ_HEAD(name_list, name);

static struct {
    pthread_mutex_t lock;
    /* under lock */
    struct name_list by_age; /* all; oldest answer first */
    struct name_list queue;  /* of NAME_QUEUED */
    size_t n_names, n_queued;
    struct helper helpers[N_HELPERS];
    size_t n_idle; /* helpers that wait for a name */
    bool stop;
    pthread_cond_t more; /* to helpers: a name in the queue, or stop */
    pthread_cond_t gone; /* to dns_stop(): a helper has ended */
} dns = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .by_age = TAILQ_HEAD_INITIALIZER(dns.by_age),
    .queue = TAILQ_HEAD_INITIALIZER(dns.queue),
    .more = PTHREAD_COND_INITIALIZER,
    .gone = PTHREAD_COND_INITIALIZER,
};

struct resolver dns_resolver = {getaddrinfo, freeaddrinfo};

/* gai_strerror() as fail_note() wants it. */
static const char *
gai_text(int code)
{
    return gai_strerror(code);
}

/* ---- addresses -------------------------------------------------------------
 */

static void
address_set_port(struct address *a, uint16_t port)
{
    if (a->at.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&a->at)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)&a->at)->sin_port = htons(port);
}

static void
address_set_v4(struct address *a, const struct in_addr *v4)
{
    struct sockaddr_in *in = (struct sockaddr_in *)&a->at;

    *a = (struct address){.len = sizeof *in};
    in->sin_family = AF_INET;
    in->sin_addr = *v4;
}

static void
address_set_v6(struct address *a, const struct in6_addr *v6)
{
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&a->at;

    *a = (struct address){.len = sizeof *in6};
    in6->sin6_family = AF_INET6;
    in6->sin6_addr = *v6;
}

/* An address in text?  With a scope, "fe80::1%eth0", getaddrinfo() knows what
 * the number of the interface is; AI_NUMERICHOST keeps it from asking. */
static bool
literal_parse(const char *host, struct address *a)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST,
                             .ai_family = AF_INET6,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    struct in_addr v4;
    struct in6_addr v6;

    if (inet_pton(AF_INET, host, &v4) == 1) {
        address_set_v4(a, &v4);
        return true;
    }
    if (strchr(host, ':') == NULL)
        return false;
    if (inet_pton(AF_INET6, host, &v6) == 1) {
        address_set_v6(a, &v6);
        return true;
    }
    if (getaddrinfo(host, NULL, &hints, &list) != 0)
        return false;
    *a = (struct address){.len = list->ai_addrlen};
    memcpy(&a->at, list->ai_addr, list->ai_addrlen);
    freeaddrinfo(list);
    return true;
}

/* RFC 6761 section 6.3: "localhost" and all below it are the loopback. */
static bool
is_localhost(const char *host)
{
    static const char local[] = "localhost";
    size_t len = strlen(host), n = sizeof local - 1;

    if (len > 0 && host[len - 1] == '.')
        len--;
    return len >= n && strncasecmp(host + len - n, local, n) == 0 &&
           (len == n || host[len - n - 1] == '.');
}

/* Answers that need nobody: 0 if it is none of them. */
static size_t
known_by_heart(const char *host, struct address out[2])
{
    const struct in_addr v4 = {htonl(INADDR_LOOPBACK)};

    if (literal_parse(host, &out[0]))
        return 1;
    if (!is_localhost(host))
        return 0;
    address_set_v6(&out[0], &in6addr_loopback);
    address_set_v4(&out[1], &v4);
    return 2;
}

static bool
only_loopback(const struct addrinfo *list)
{
    for (; list != NULL; list = list->ai_next) {
        const struct sockaddr_in6 *in6 = (const void *)list->ai_addr;
        const struct sockaddr_in *in = (const void *)list->ai_addr;

        if (list->ai_family == AF_INET6
                ? !IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr)
                : ntohl(in->sin_addr.s_addr) >> 24 != IN_LOOPBACKNET)
            return false;
    }
    return true;
}

/*
 * Ask the resolver.  AI_ADDRCONFIG spares a machine without IPv6 the question
 * for it, which some servers never answer.  But RFC 3493 section 6.1 counts no
 * loopback address, so there "::1 app.test" in /etc/hosts would not be found:
 * a name that seems to be absent, or ours alone, is asked for once more.
 */
static int
resolver_ask(const char *host, struct addrinfo **list)
{
    struct addrinfo hints = {.ai_flags = AI_ADDRCONFIG,
                             .ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *more = NULL;
    int rc;

    *list = NULL;
    rc = dns_resolver.ask(host, NULL, &hints, list);
    if (rc == 0 ? !only_loopback(*list)
                : rc != EAI_NONAME && rc != EAI_NODATA && rc != EAI_ADDRFAMILY)
        return rc;
    hints.ai_flags = 0;
    if (dns_resolver.ask(host, NULL, &hints, &more) != 0)
        return rc;
    if (*list != NULL)
        dns_resolver.done(*list);
    *list = more;
    return 0;
}

/* ---- names; all of it needs dns.lock ------------------------------------- */

static struct name *
name_new(const char *host)
{
    struct name *nm = calloc(1, sizeof *nm);

    if (nm == NULL)
        return NULL;
    snprintf(nm->host, sizeof nm->host, "%s", host);
    nm->state = NAME_KNOWN; /* but not for any longer: until == 0 */
    pthread_cond_init(&nm->known, NULL);
    TAILQ_INSERT_TAIL(&dns.by_age, nm, age);
    dns.n_names++;
    return nm;
}

static void
name_free(struct name *nm)
{
    TAILQ_REMOVE(&dns.by_age, nm, age);
    dns.n_names--;
    pthread_cond_destroy(&nm->known);
    free(nm->at);
    free(nm);
}

static struct name *
name_find(const char *host)
{
    struct name *nm = TAILQ_LAST(&dns.by_age, name_list);

    while (nm != NULL && strcasecmp(nm->host, host) != 0)
        nm = TAILQ_PREV(nm, name_list, age);
    return nm;
}

/* Forget the oldest that nobody uses, until `keep` are left. */
static void
names_trim(size_t keep)
{
    struct name *nm = TAILQ_FIRST(&dns.by_age);

    while (nm != NULL && dns.n_names > keep) {
        struct name *next = TAILQ_NEXT(nm, age);

        if (nm->state == NAME_KNOWN && nm->n_askers == 0)
            name_free(nm);
        nm = next;
    }
}

/* The answer has come: remember it, tell those who wait. */
static void
name_answer(struct name *nm, int gai, int sys, const struct addrinfo *list)
{
    size_t n = 0;

    for (const struct addrinfo *a = list; a != NULL; a = a->ai_next)
        n++;
    free(nm->at);
    nm->n_at = 0;
    nm->at = n > 0 ? calloc(n, sizeof *nm->at) : NULL;
    if (gai == 0 && nm->at == NULL)
        gai = n > 0 ? EAI_MEMORY : EAI_NONAME;
    for (; nm->at != NULL && list != NULL; list = list->ai_next) {
        struct address *a = &nm->at[nm->n_at++];

        assert(list->ai_addrlen <= sizeof a->at);
        memcpy(&a->at, list->ai_addr, list->ai_addrlen);
        a->len = list->ai_addrlen;
    }
    nm->gai = gai;
    nm->sys = sys;
    nm->state = NAME_KNOWN;
    nm->until = now_ms() + (gai == 0 ? GOOD_MS : BAD_MS);
    TAILQ_REMOVE(&dns.by_age, nm, age);
    TAILQ_INSERT_TAIL(&dns.by_age, nm, age);
    pthread_cond_broadcast(&nm->known);
    names_trim(dns.stop ? 0 : N_NAMES);
}

/* ---- helpers ------------------------------------------------------------- */

/* The next name to ask for; NULL: the helper shall end.  Needs dns.lock. */
static struct name *
helper_next(const struct helper *h)
{
    int64_t until = now_ms() + HELPER_IDLE_MS;
    bool in_time = true;
    struct name *nm;

    while (dns.n_queued == 0 && in_time && !dns.stop &&
           h->state == HELPER_RUNS) {
        dns.n_idle++;
        in_time = cond_until(&dns.more, &dns.lock, until);
        dns.n_idle--;
    }
    if (dns.n_queued == 0 || dns.stop)
        return NULL;
    nm = TAILQ_FIRST(&dns.queue);
    TAILQ_REMOVE(&dns.queue, nm, queue);
    dns.n_queued--;
    nm->state = NAME_ASKED;
    return nm;
}

static void *
helper_main(void *arg)
{
    struct helper *h = arg;
    struct name *nm;

    pthread_setname_np(pthread_self(), "weir-dns");
    pthread_mutex_lock(&dns.lock);
    while ((nm = helper_next(h)) != NULL) {
        struct addrinfo *list;
        int gai, sys;

        pthread_mutex_unlock(&dns.lock);
        gai = resolver_ask(nm->host, &list);
        sys = errno;
        pthread_mutex_lock(&dns.lock);
        name_answer(nm, gai, sys, gai == 0 ? list : NULL);
        if (list != NULL)
            dns_resolver.done(list);
    }
    h->state = h->state == HELPER_LOST ? HELPER_NONE : HELPER_GONE;
    pthread_cond_signal(&dns.gone);
    pthread_mutex_unlock(&dns.lock);
    return NULL;
}

/* Needs dns.lock.  It has ended but for its last instructions. */
static void
helper_join(struct helper *h)
{
    pthread_join(h->thread, NULL);
    h->state = HELPER_NONE;
}

static int
thread_start(pthread_t *thread, size_t stack, void *(*main)(void *), void *arg)
{
    pthread_attr_t attr;
    int rc;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, stack);
    rc = pthread_create(thread, &attr, main, arg);
    pthread_attr_destroy(&attr);
    return rc;
}

/* See that somebody comes for the queue.  Returns an errno if nobody ever
 * will: no thread to be had, and none there.  Needs dns.lock. */
static int
helpers_call(void)
{
    struct helper *vacant = NULL;
    size_t n_run = 0;
    int rc;

    if (dns.n_queued <= dns.n_idle) {
        pthread_cond_signal(&dns.more);
        return 0;
    }
    for (size_t i = 0; i < N_HELPERS; i++) {
        struct helper *h = &dns.helpers[i];

        if (h->state == HELPER_GONE)
            helper_join(h);
        if (h->state == HELPER_NONE)
            vacant = h;
        else
            n_run++;
    }
    if (vacant == NULL)
        return 0;
    rc = thread_start(&vacant->thread, HELPER_STACK, helper_main, vacant);
    if (rc == 0)
        vacant->state = HELPER_RUNS;
    return n_run > 0 ? 0 : rc;
}

/* ---- asking -------------------------------------------------------------- */

/* Have a helper ask for nm, unless that is under way.  Needs dns.lock. */
static enum why
name_refresh(struct name *nm, struct fail *f)
{
    int rc;

    if (nm->state != NAME_KNOWN || now_ms() < nm->until)
        return WHY_NONE;
    nm->state = NAME_QUEUED;
    TAILQ_INSERT_TAIL(&dns.queue, nm, queue);
    dns.n_queued++;
    if ((rc = helpers_call()) == 0)
        return WHY_NONE;
    TAILQ_REMOVE(&dns.queue, nm, queue);
    dns.n_queued--;
    nm->state = NAME_KNOWN;
    return fail_sys(f, SIDE_WEIR, "start a resolver thread", rc);
}

/* Wait until nm is known.  Needs dns.lock. */
static enum why
name_wait(struct name *nm, int64_t until, struct fail *f)
{
    bool in_time = true;

    while (nm->state != NAME_KNOWN && in_time && !dns.stop)
        in_time = cond_until(&nm->known, &dns.lock, until);
    if (nm->state == NAME_KNOWN)
        return WHY_NONE;
    if (dns.stop)
        return fail_own(f, SIDE_WEIR, WHY_DRAIN, "look up the name");
    return fail_own(f, SIDE_ORIGIN, WHY_DNS_LATE, "look up the name");
}

/* What nm's answer means for this asker.  Needs dns.lock. */
static enum why
name_copy(const struct name *nm, struct address *out, size_t cap, size_t *n,
          struct fail *f)
{
    static const char op[] = "look up the name";

    if (nm->gai == EAI_SYSTEM)
        return fail_note(f, SIDE_ORIGIN, WHY_DNS, op, nm->sys, sys_text);
    if (nm->gai != 0)
        return fail_note(f, SIDE_ORIGIN, WHY_DNS, op, nm->gai, gai_text);
    *n = nm->n_at < cap ? nm->n_at : cap;
    memcpy(out, nm->at, *n * sizeof *out);
    return WHY_NONE;
}

/* This asker goes.  A name that nobody wants any more is not asked for, and
 * one that was never answered is no use.  Needs dns.lock. */
static void
name_leave(struct name *nm)
{
    if (--nm->n_askers > 0)
        return;
    if (nm->state == NAME_QUEUED) {
        TAILQ_REMOVE(&dns.queue, nm, queue);
        dns.n_queued--;
        nm->state = NAME_KNOWN;
        nm->until = 0;
    }
    if (nm->state == NAME_KNOWN && (nm->until == 0 || dns.stop))
        name_free(nm);
}

static enum why
name_lookup(const char *host, int dns_ms, struct address *out, size_t cap,
            size_t *n, struct fail *f)
{
    int64_t until = now_ms() + dns_ms;
    struct name *nm;
    enum why why;

    if (dns.stop)
        return fail_own(f, SIDE_WEIR, WHY_DRAIN, "look up the name");
    nm = name_find(host);
    if (nm == NULL && (nm = name_new(host)) == NULL)
        return fail_sys(f, SIDE_WEIR, "look up the name", ENOMEM);
    nm->n_askers++;
    why = name_refresh(nm, f);
    if (why == WHY_NONE)
        why = name_wait(nm, until, f);
    if (why == WHY_NONE)
        why = name_copy(nm, out, cap, n, f);
    name_leave(nm);
    return why;
}

/*
 * dns_lookup - the addresses of a host, in the order to be tried.
 *
 * host     a name, or an address in text without brackets; any length
 * port     put into every address
 * dns_ms   the longest wait, >= 1
 * out      [0..cap) filled from the front; cap >= 2; the rest of a longer
 *          answer is left out
 * n        how many, >= 1; written only on WHY_NONE
 *
 * Returns WHY_NONE; WHY_DNS with getaddrinfo's code or errno; WHY_DNS_LATE;
 * WHY_DRAIN after dns_stop(); WHY_SYS: no memory, no thread.
 * Thread: any.  Blocks: dns_ms; never for an address or localhost.
 */
enum why
dns_lookup(const char *host, uint16_t port, int dns_ms, struct address *out,
           size_t cap, size_t *n, struct fail *f)
{
    size_t found;
    enum why why = WHY_NONE;

    assert(cap >= 2 && dns_ms >= 1);
    found = known_by_heart(host, out);
    /* Neither is a name, and no resolver needs to be told. */
    if (found == 0 && (host[0] == '\0' || strlen(host) > HOST_MAX ||
                       strchr(host, ':') != NULL))
        return fail_note(f, SIDE_ORIGIN, WHY_DNS, "look up the name",
                         EAI_NONAME, gai_text);
    if (found == 0) {
        pthread_mutex_lock(&dns.lock);
        why = name_lookup(host, dns_ms, out, cap, &found, f);
        pthread_mutex_unlock(&dns.lock);
    }
    if (why != WHY_NONE)
        return why;
    for (size_t i = 0; i < found; i++)
        address_set_port(&out[i], port);
    *n = found;
    return WHY_NONE;
}

/* dns_forget - what was answered until now is not believed any more: the
 * settings, or /etc/hosts, have changed.  Thread: any.  Blocks: never. */
void
dns_forget(void)
{
    struct name *nm;

    pthread_mutex_lock(&dns.lock);
    for (nm = TAILQ_FIRST(&dns.by_age); nm != NULL; nm = TAILQ_NEXT(nm, age))
        nm->until = 0;
    names_trim(0);
    pthread_mutex_unlock(&dns.lock);
}

/* Needs dns.lock. */
static bool
helpers_run(void)
{
    for (size_t i = 0; i < N_HELPERS; i++)
        if (dns.helpers[i].state == HELPER_RUNS)
            return true;
    return false;
}

/*
 * dns_stop - at exit: askers come back with WHY_DRAIN, helpers end.
 *
 * A helper that is stuck in the resolver is left behind; it touches nothing
 * but this room's memory, which stays.
 * Thread: any; may run twice.  Blocks: STOP_MS.
 */
void
dns_stop(void)
{
    int64_t until = now_ms() + STOP_MS;
    bool in_time = true;
    struct name *nm;

    pthread_mutex_lock(&dns.lock);
    dns.stop = true;
    pthread_cond_broadcast(&dns.more);
    for (nm = TAILQ_FIRST(&dns.by_age); nm != NULL; nm = TAILQ_NEXT(nm, age))
        pthread_cond_broadcast(&nm->known);
    while (helpers_run() && in_time)
        in_time = cond_until(&dns.gone, &dns.lock, until);
    for (size_t i = 0; i < N_HELPERS; i++) {
        struct helper *h = &dns.helpers[i];

        if (h->state == HELPER_GONE) {
            helper_join(h);
        } else if (h->state == HELPER_RUNS) {
            pthread_detach(h->thread);
            h->state = HELPER_LOST;
        }
    }
    names_trim(0);
    pthread_mutex_unlock(&dns.lock);
}
