/*
 * t/dial.c - host and port to a connected socket.
 */
#include <fcntl.h>
#include <netdb.h>

#include "proxy.h"
#include "t/net.h"
#include "t/tap.h"

static struct weir weir;
static struct config *conf;
static struct client client;
static char err[512];

/* New settings for what follows. */
static void
settings(char *const *sets, size_t n)
{
    if (conf != NULL)
        config_give(conf);
    conf = config_read(NULL, sets, n, err, sizeof err);
    if (conf == NULL) {
        diag("%s", err);
        exit(2);
    }
    client = (struct client){.weir = &weir, .conf = conf};
}

struct
try { /* one dial, and what came of it */
    enum why why;
    int fd;
    char addr[ADDR_MAX];
    struct clock_marks took;
    struct fail fail;
};

static struct try
to(const char *host, uint16_t port)
{
    struct try t = {.fd = -1, .took = {-1, -1, -1}};

    t.why = dial(&client, host, port, ACCESS_GRANTED, &t.fd, t.addr, &t.took,
                 &t.fail);
    return t;
}

static const char *
addr_of(const char *host, uint16_t port)
{
    static char text[ADDR_MAX];

    snprintf(text, sizeof text, strchr(host, ':') ? "[%s]:%u" : "%s:%u", host,
             port);
    return text;
}

/* ---- a resolver of our own ------------------------------------------------
 */

/* What a name leads to: its addresses, one after the other. */
static const char *const *answer;

static int
ask(const char *name, const char *service, const struct addrinfo *hints,
    struct addrinfo **out)
{
    struct addrinfo **last = out;
    int rc = EAI_NONAME;

    (void)name;
    *out = NULL;
    for (const char *const *at = answer; *at != NULL; at++) {
        struct addrinfo numeric = *hints;

        numeric.ai_family = AF_UNSPEC;
        numeric.ai_flags = AI_NUMERICHOST;
        if ((rc = getaddrinfo(*at, service, &numeric, last)) != 0)
            return rc;
        last = &(*last)->ai_next;
    }
    return rc;
}

static void
done(struct addrinfo *list)
{
    while (list != NULL) {
        struct addrinfo *next = list->ai_next;

        list->ai_next = NULL;
        freeaddrinfo(list);
        list = next;
    }
}

static void
answers(const char *const *list)
{
    answer = list;
    dns_forget();
}

/* ---- one address ----------------------------------------------------------
 */

static void
plain(void)
{
    uint16_t port;
    int listener = net_listen(AF_INET, &port), peer;
    struct try t = to("127.0.0.1", port);

    is_int(t.why, WHY_NONE, "an IPv4 address");
    is_str(t.addr, addr_of("127.0.0.1", port), "where we got to");
    ok(t.took.dns_us >= 0 && t.took.connect_us >= 0, "the times it took");
    is_int(t.took.tls_us, -1, "of what was done");
    ok((fcntl(t.fd, F_GETFL) & O_NONBLOCK) == 0, "the socket blocks");
    ok((fcntl(t.fd, F_GETFD) & FD_CLOEXEC) != 0, "and is closed by exec");
    peer = net_accept(listener);
    net_say(t.fd, "hello");
    ok(net_hear(peer, "hello"), "it leads there");
    close(peer);
    close(t.fd);
    close(listener);

    t = to("127.0.0.1", port);
    is_int(t.why, WHY_REFUSED, "nobody listens: refused");
    is_int(t.fd, -1, "no socket");
    is_int(t.fail.side, SIDE_ORIGIN, "the origin's doing");
    is_str(t.addr, addr_of("127.0.0.1", port), "where it was tried is known");

    if ((listener = net_listen(AF_INET6, &port)) < 0) {
        diag("this machine has no IPv6");
        return;
    }
    t = to("::1", port);
    is_int(t.why, WHY_NONE, "an IPv6 address");
    is_str(t.addr, addr_of("::1", port), "in brackets");
    close(t.fd);
    close(listener);
}

static void
overrides(void)
{
    uint16_t port;
    char full[64];
    int listener = net_listen(AF_INET, &port);
    char *sets[] = {full, "resolve.same.test=127.0.0.1",
                    "resolve.Six.Test=[::1]"};
    struct try t;

    snprintf(full, sizeof full, "resolve.full.test=127.0.0.1:%u", port);
    settings(sets, 3);
    t = to("full.test", 1);
    is_int(t.why, WHY_NONE, "an override with a port");
    is_str(t.addr, addr_of("127.0.0.1", port), "leads to it");
    close(t.fd);
    t = to("same.test", port);
    is_int(t.why, WHY_NONE, "an override without one");
    is_str(t.addr, addr_of("127.0.0.1", port), "keeps the target's");
    close(t.fd);
    t = to("SAME.test", port);
    is_int(t.why, WHY_NONE, "names have no case");
    close(t.fd);
    close(listener);
    if ((listener = net_listen(AF_INET6, &port)) >= 0) {
        t = to("six.test", port);
        is_int(t.why, WHY_NONE, "an override to IPv6");
        is_str(t.addr, addr_of("::1", port), "leads to it");
        close(t.fd);
        close(listener);
    }
    settings(NULL, 0);
}

/* ---- a race ---------------------------------------------------------------
 */

/* A listener that answers no SYN: its queue is full. */
static int
deaf_listener(uint16_t port, int fillers[2])
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    at.sin_addr.s_addr = inet_addr("127.0.0.2");
    NEED(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    NEED(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    NEED(listen(fd, 0) == 0);
    for (int i = 0; i < 2; i++) {
        fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        NEED(connect(fillers[i], (struct sockaddr *)&at, sizeof at) == 0 ||
             errno == EINPROGRESS);
        if (i == 0) { /* the one that is let in */
            struct pollfd p = {.fd = fillers[0], .events = POLLOUT};

            NEED(poll(&p, 1, NET_LIMIT_S * 1000) == 1);
        }
    }
    return fd;
}

static void
race(void)
{
    static const char *const slow_first[] = {"127.0.0.2", "127.0.0.1", NULL};
    static const char *const fallen_first[] = {"127.0.0.3", "127.0.0.1", NULL};
    static const char *const all_fall[] = {"127.0.0.3", "127.0.0.4", NULL};
    static const char *const none[] = {NULL};
    uint16_t port;
    int listener = net_listen(AF_INET, &port), fillers[2];
    int deaf = deaf_listener(port, fillers);
    char *sets[] = {"upstream.connect_s=1"};
    int64_t from = now_ms(), took;
    struct try t;

    dns_resolver = (struct resolver){ask, done};
    answers(slow_first);
    t = to("slow.test", port);
    took = now_ms() - from;
    is_int(t.why, WHY_NONE, "the first address does not answer");
    is_str(t.addr, addr_of("127.0.0.1", port), "the second one wins");
    ok(took >= 250, "after a head start of 250 ms: %lld", (long long)took);
    close(t.fd);

    answers(fallen_first);
    from = now_ms();
    t = to("fallen.test", port);
    took = now_ms() - from;
    is_int(t.why, WHY_NONE, "the first address refuses");
    is_str(t.addr, addr_of("127.0.0.1", port), "the second one wins");
    ok(took < 250, "at once: %lld ms", (long long)took);
    close(t.fd);

    answers(all_fall);
    t = to("fall.test", port);
    is_int(t.why, WHY_REFUSED, "all fall");
    is_int(t.fd, -1, "no socket");

    answers(none);
    t = to("none.test", port);
    is_int(t.why, WHY_DNS, "a name without an address");

    settings(sets, 1);
    from = now_ms();
    t = to("127.0.0.2", port);
    is_int(t.why, WHY_CONNECT_LATE, "nobody answers within connect_s");
    ok(now_ms() - from >= 1000, "not before");

    atomic_store(&weir.stopping, true);
    t = to("127.0.0.2", port);
    is_int(t.why, WHY_OVER, "weir is stopping: over");
    atomic_store(&weir.stopping, false);
    settings(NULL, 0);
    for (int i = 0; i < 2; i++)
        close(fillers[i]);
    close(deaf);
    close(listener);
}

static void
families(void)
{
    static const char *const four_first[] = {"127.0.0.3", "127.0.0.4", "::1",
                                             NULL};
    uint16_t port;
    int listener = net_listen(AF_INET6, &port);
    struct try t;

    if (listener < 0) {
        diag("this machine has no IPv6");
        return;
    }
    answers(four_first);
    t = to("both.test", port);
    is_int(t.why, WHY_NONE, "IPv6 behind two of IPv4 that refuse");
    is_str(t.addr, addr_of("::1", port), "wins");
    close(t.fd);
    close(listener);
}

/* ---- ourselves ------------------------------------------------------------
 */

static void
ourselves(const char *listen_at, uint16_t port, const char *host, bool is_ours)
{
    char set[128];
    char *sets[] = {set};
    struct try t;

    snprintf(set, sizeof set, "proxy.listen=%s", addr_of(listen_at, port));
    settings(sets, 1);
    weir.ports[0] = port;
    weir.n_ports = 1;
    t = to(host, port);
    if (is_ours)
        is_int(t.why, WHY_LOOP, "we listen at %s; %s is ourselves", listen_at,
               host);
    else
        ok(t.why != WHY_LOOP, "we listen at %s; %s is not ourselves (%s)",
           listen_at, host, why_name(t.why));
    if (t.fd >= 0)
        close(t.fd);
    weir.n_ports = 0;
}

static void
loops(void)
{
    uint16_t port;
    int listener = net_listen(AF_INET, &port);
    static const char *const name[] = {"127.0.0.1", NULL};

    ourselves("127.0.0.1", port, "127.0.0.1", true);
    ourselves("127.0.0.1", port, "::ffff:127.0.0.1", true);
    ourselves("127.0.0.1", port, "0.0.0.0", true);
    ourselves("127.0.0.1", port, "::ffff:0.0.0.0", true);
    ourselves("127.0.0.1", port, "127.0.0.2", false);
    ourselves("0.0.0.0", port, "127.0.0.1", true);
    ourselves("0.0.0.0", port, "127.0.0.2", true);
    ourselves("0.0.0.0", port, "0.0.0.0", true);
    ourselves("0.0.0.0", port, "::ffff:127.0.0.1", true);
    ourselves("::1", port, "::1", true);
    ourselves("::1", port, "::", true);
    ourselves("::1", port, "127.0.0.1", false);
    ourselves("::", port, "::1", true);
    answers(name);
    ourselves("127.0.0.1", port, "loop.test", true);
    close(listener);
    ourselves("127.0.0.1", port, "127.0.0.1", true);
    settings(NULL, 0);
    weir.ports[0] = 1;
    weir.n_ports = 1;
    is_int(to("127.0.0.1", port).why, WHY_REFUSED, "another port is not ours");
    weir.n_ports = 0;
}

static void
texts(void)
{
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(80)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6,
                               .sin6_port = htons(65535)};
    struct sockaddr local = {.sa_family = AF_UNIX};
    char out[ADDR_MAX];

    four.sin_addr.s_addr = inet_addr("192.0.2.1");
    address_text((struct sockaddr *)&four, out);
    is_str(out, "192.0.2.1:80", "IPv4 in text");
    inet_pton(AF_INET6, "2001:db8::1", &six.sin6_addr);
    address_text((struct sockaddr *)&six, out);
    is_str(out, "[2001:db8::1]:65535", "IPv6 in text");
    address_text(&local, out);
    is_str(out, "local", "anything else");
}

int
main(void)
{
    settings(NULL, 0);
    texts();
    plain();
    overrides();
    race();
    families();
    loops();
    dns_stop();
    config_give(conf);
    return done_testing();
}
