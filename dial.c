/*
 * dial.c - host and port to a connected socket.
 *
 * Overrides of [resolve] first, then dns.c; the addresses of both families
 * are raced with a head start of 250 ms for each (RFC 8305, "Happy Eyeballs").
 * An address that is our own listener is refused: it would be a loop.
 *
 * Follows  RFC 8305 sections 4 and 5.
 * Owns     the sockets of a race until one has won.
 * Threads  any worker.
 * Blocks   in dns_lookup() for dns_s, in poll(2) for connect_s.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "proxy.h"

enum {
    HEAD_START = 250, /* ms, RFC 8305 section 5 */
    LOOK_MS = 1000,   /* how often a dial looks whether weir is stopping */
    WATCH_MS = 50,    /* and asks its watch, if it has one */
};

/* "127.0.0.1:80", "[::1]:80". */
void
address_text(const struct sockaddr *sa, char out[ADDR_MAX])
{
    char host[INET6_ADDRSTRLEN] = "?";

    if (sa->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)sa;

        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        snprintf(out, ADDR_MAX, "%s:%d", host, ntohs(in->sin_port));
    } else if (sa->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const void *)sa;

        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        snprintf(out, ADDR_MAX, "[%s]:%d", host, ntohs(in6->sin6_port));
    } else {
        snprintf(out, ADDR_MAX, "local");
    }
}

/* Of an IPv4 or IPv6 address. */
uint16_t
address_port(const struct sockaddr_storage *sa)
{
    return ntohs(sa->ss_family == AF_INET6
                     ? ((const struct sockaddr_in6 *)sa)->sin6_port
                     : ((const struct sockaddr_in *)sa)->sin_port);
}

/* Is this one of the machine's own addresses?  Only those can be bound. */
static bool
address_is_local(const struct sockaddr_storage *sa, socklen_t len)
{
    struct sockaddr_storage any = *sa;
    int fd = socket(sa->ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool local;

    if (fd < 0)
        return false;
    if (any.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&any)->sin6_port = 0;
    else
        ((struct sockaddr_in *)&any)->sin_port = 0;
    local = bind(fd, (struct sockaddr *)&any, len) == 0;
    close(fd);
    return local;
}

/* The four bytes of an IPv4 address, also of one mapped into IPv6. */
static bool
address_v4(const struct sockaddr_storage *sa, struct in_addr *v4)
{
    const struct in6_addr *six = &((const struct sockaddr_in6 *)sa)->sin6_addr;

    if (sa->ss_family == AF_INET) {
        *v4 = ((const struct sockaddr_in *)sa)->sin_addr;
        return true;
    }
    if (!IN6_IS_ADDR_V4MAPPED(six))
        return false;
    memcpy(v4, six->s6_addr + 12, sizeof *v4);
    return true;
}

static bool
address_is_any(const struct sockaddr_storage *sa)
{
    struct in_addr v4;

    if (address_v4(sa, &v4))
        return v4.s_addr == INADDR_ANY;
    return IN6_IS_ADDR_UNSPECIFIED(
        &((const struct sockaddr_in6 *)sa)->sin6_addr);
}

static bool
address_same_host(const struct sockaddr_storage *a,
                  const struct sockaddr_storage *b)
{
    struct in_addr a4, b4;
    bool a_is_4 = address_v4(a, &a4), b_is_4 = address_v4(b, &b4);

    if (a_is_4 || b_is_4)
        return a_is_4 && b_is_4 && a4.s_addr == b4.s_addr;
    return memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                  &((const struct sockaddr_in6 *)b)->sin6_addr,
                  sizeof(struct in6_addr)) == 0;
}

/* Would a connection to this address come back to one of our listeners? */
bool
dial_is_ours(const struct client *c, const struct address *a)
{
    const struct weir *w = c->weir;

    for (size_t i = 0; i < w->n_ports && i < c->conf->n_listen; i++) {
        const struct sockaddr_storage *own = &c->conf->listen[i].addr;

        if (address_port(&a->at) != w->ports[i])
            continue;
        /* Connecting to "any" reaches the loopback, hence ourselves. */
        if (address_same_host(own, &a->at) || address_is_any(&a->at) ||
            (address_is_any(own) && address_is_local(&a->at, a->len)))
            return true;
    }
    return false;
}

/* What to look up instead: the [resolve] line for this name, if there is. */
void
dial_override(const struct config *conf, const char **host, uint16_t *port)
{
    for (size_t i = 0; i < conf->n_resolve; i++) {
        const struct resolve_conf *r = &conf->resolve[i];

        if (strcasecmp(r->name, *host) == 0) {
            *host = r->host;
            if (r->port != 0)
                *port = r->port;
            return;
        }
    }
}

/* RFC 8305 section 4: families alternate, beginning with the first one. */
static void
interleave(struct address *a, size_t n)
{
    struct address out[DIAL_MAX];
    size_t first = 0, second = 0, used = 0;
    sa_family_t family = n > 0 ? a[0].at.ss_family : AF_UNSPEC;

    assert(n <= DIAL_MAX);
    while (used < n) {
        while (first < n && a[first].at.ss_family != family)
            first++;
        if (first < n)
            out[used++] = a[first++];
        while (second < n && a[second].at.ss_family == family)
            second++;
        if (second < n)
            out[used++] = a[second++];
    }
    memcpy(a, out, n * sizeof *a);
}

struct race {
    struct pollfd runs[DIAL_MAX];
    size_t which[DIAL_MAX]; /* index of the address of runs[i] */
    size_t n;
    int error; /* errno of the last that fell */
};

/* Start towards an address.  Returns its fd if it is connected at once. */
static int
race_start(struct race *r, const struct address *a, size_t index)
{
    int one = 1;
    int type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    int fd = socket(a->at.ss_family, type, 0);

    if (fd < 0) {
        r->error = errno;
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (const struct sockaddr *)&a->at, a->len) == 0)
        return fd;
    if (errno != EINPROGRESS) {
        r->error = errno;
        close(fd);
        return -1;
    }
    r->runs[r->n] = (struct pollfd){.fd = fd, .events = POLLOUT};
    r->which[r->n++] = index;
    return -1;
}

/* Look at those that poll() reported.  Returns the fd of a winner, taken out
 * of the race, with its address in *index; the fallen are closed. */
static int
race_look(struct race *r, size_t *index)
{
    for (size_t i = 0; i < r->n;) {
        int fd = r->runs[i].fd, error = 0;
        socklen_t len = sizeof error;

        if (r->runs[i].revents == 0) {
            i++;
            continue;
        }
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
        *index = r->which[i];
        r->n--;
        r->runs[i] = r->runs[r->n];
        r->which[i] = r->which[r->n];
        if (error == 0)
            return fd;
        r->error = error;
        close(fd);
    }
    return -1;
}

/* Shall a race end before anybody has won? */
static bool
race_is_over(const struct client *c, const struct watch *watch)
{
    return atomic_load(&c->weir->stopping) ||
           (watch != NULL && watch->over(watch->arg));
}

/* Connect to whichever address answers first. */
static enum why
race_run(const struct client *c, const struct address *a, size_t n,
         const struct watch *watch, int *won, size_t *index, struct fail *f)
{
    int look_ms = watch != NULL ? WATCH_MS : LOOK_MS;
    struct race r = {.n = 0};
    int64_t until = now_ms() + c->conf->connect_s * 1000LL;
    int64_t start_at = 0; /* when the next may start */
    size_t next = 0;
    enum why why = WHY_NONE;
    int fd = -1;

    while (fd < 0 && why == WHY_NONE) {
        int64_t now = now_ms(), wake = until;

        if (next < n && (r.n == 0 || now >= start_at)) {
            *index = next;
            fd = race_start(&r, &a[next], next);
            next++;
            start_at = now + HEAD_START;
            continue;
        }
        if (r.n == 0) /* all have fallen */
            why = fail_sys(f, SIDE_ORIGIN, "connect", r.error);
        else if (now >= until)
            why = fail_own(f, SIDE_ORIGIN, WHY_CONNECT_LATE, "connect");
        else if (race_is_over(c, watch))
            why = fail_own(f, SIDE_WEIR, WHY_OVER, "connect");
        if (why != WHY_NONE)
            break;
        if (next < n && start_at < wake)
            wake = start_at;
        if (wake > now + look_ms)
            wake = now + look_ms;
        if (poll(r.runs, r.n, (int)(wake - now)) > 0) {
            size_t running = r.n;

            fd = race_look(&r, index);
            if (r.n < running)
                start_at = 0; /* one fell: the next need not wait */
        }
    }
    while (r.n > 0)
        close(r.runs[--r.n].fd);
    *won = fd;
    return why;
}

/* Keep the addresses that may be reached; none: WHY_POLICY. */
static enum why
addresses_judge(const struct client *c, const char *host, uint16_t port,
                enum access what, struct address *a, size_t *n, struct fail *f)
{
    const char *rule = NULL;
    size_t kept = 0;

    for (size_t i = 0; i < *n; i++)
        if (access_address(c, (struct sockaddr *)&a[i].at, what, &rule))
            a[kept++] = a[i];
    *n = kept;
    return kept > 0 ? WHY_NONE : access_denied(c, host, port, rule, f);
}

/*
 * dial_addresses - where host:port is, as far as it may be reached.
 *
 * host  name or address in text, no brackets
 * what  how its addresses are judged; ACCESS_GRANTED: they are not
 * a, n  in the order to be tried; n >= 1 on WHY_NONE
 * took  dns_us is set
 *
 * Returns WHY_NONE; WHY_DNS, WHY_DNS_LATE; WHY_LOOP: an address is our own
 * listener; WHY_POLICY: none of them may be reached.
 * Thread: any.  Blocks: dns_s.
 */
enum why
dial_addresses(const struct client *c, const char *host, uint16_t port,
               enum access what, struct address a[DIAL_MAX], size_t *n,
               struct clock_marks *took, struct fail *f)
{
    const char *name = host;
    uint16_t name_port = port;
    int64_t from = now_us();
    enum why why;

    dial_override(c->conf, &host, &port);
    why = dns_lookup(host, port, c->conf->dns_s * 1000, a, DIAL_MAX, n, f);
    took->dns_us = now_us() - from;
    if (why != WHY_NONE)
        return why;
    for (size_t i = 0; i < *n; i++)
        if (dial_is_ours(c, &a[i]))
            return fail_own(f, SIDE_WEIR, WHY_LOOP, "connect to ourselves");
    if (what != ACCESS_GRANTED &&
        (why = addresses_judge(c, name, name_port, what, a, n, f)) != WHY_NONE)
        return why;
    if (*n > 1)
        interleave(a, *n);
    return WHY_NONE;
}

/*
 * dial_watched - a connected, blocking socket to host:port.
 *
 * host   name or address in text, no brackets
 * what   how its addresses are judged; ACCESS_GRANTED: they are not
 * watch  asked about twenty times a second; NULL: nobody
 * fd     the caller's on WHY_NONE
 * addr   the address that answered, in text
 * took   dns_us and connect_us are set
 *
 * Returns WHY_NONE; what dial_addresses() does; WHY_REFUSED, WHY_UNREACHABLE,
 * WHY_CONNECT_LATE, WHY_SYS; WHY_OVER: the watch said so.
 * Thread: any.  Blocks: dns_s + connect_s.
 */
enum why
dial_watched(const struct client *c, const char *host, uint16_t port,
             enum access what, const struct watch *watch, int *fd,
             char addr[ADDR_MAX], struct clock_marks *took, struct fail *f)
{
    struct address a[DIAL_MAX];
    size_t n, index = 0;
    int64_t resolved;
    enum why why = dial_addresses(c, host, port, what, a, &n, took, f);

    if (why != WHY_NONE)
        return why;
    resolved = now_us();
    address_text((struct sockaddr *)&a[0].at, addr);
    why = race_run(c, a, n, watch, fd, &index, f);
    took->connect_us = now_us() - resolved;
    if (why != WHY_NONE)
        return why;
    address_text((struct sockaddr *)&a[index].at, addr);
    if (fcntl(*fd, F_SETFL, 0) != 0) { /* blocking from here on */
        why = fail_sys(f, SIDE_WEIR, "connect", errno);
        close(*fd);
        *fd = -1;
    }
    return why;
}

/* The same, and nobody watches. */
enum why
dial(const struct client *c, const char *host, uint16_t port, enum access what,
     int *fd, char addr[ADDR_MAX], struct clock_marks *took, struct fail *f)
{
    return dial_watched(c, host, port, what, NULL, fd, addr, took, f);
}

/* RFC 9298 section 3.1: packets are never fragmented on their way. */
static void
forbid_fragments(int fd, int family)
{
    int how = IP_PMTUDISC_DO;

    if (family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &how, sizeof how);
    else
        (void)setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &how, sizeof how);
}

/*
 * dial_udp_at - a UDP socket, connected to an address, that does not block.
 *
 * quic  it is for a QUIC connection of ours
 * fd    the caller's on WHY_NONE
 * addr  the address in text
 *
 * Nothing is sent, so that nobody knows whether the target is there.  Returns
 * WHY_NONE, WHY_UNREACHABLE, WHY_SYS.
 */
enum why
dial_udp_at(const struct address *a, bool quic, int *fd, char addr[ADDR_MAX],
            struct fail *f)
{
    int family = a->at.ss_family;

    address_text((const struct sockaddr *)&a->at, addr);
    *fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd >= 0 && quic)
        (void)quic_socket_set_up(*fd, family); /* it works without, too */
    else if (*fd >= 0)
        forbid_fragments(*fd, family);
    if (*fd >= 0 && connect(*fd, (const struct sockaddr *)&a->at, a->len) == 0)
        return WHY_NONE;
    fail_sys(f, SIDE_ORIGIN, "connect", errno);
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return f->why;
}

/* Is this an address of this machine with nobody at its port?  Then we could be
 * there ourselves.  Of others nobody can tell. */
static bool
is_vacant(const struct address *a)
{
    int fd = socket(a->at.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool vacant;

    if (fd < 0)
        return false;
    vacant = bind(fd, (const struct sockaddr *)&a->at, a->len) == 0;
    close(fd);
    return vacant;
}

/*
 * dial_udp_order - put those behind where surely nobody is.
 *
 * There is no connection that could be raced for: "localhost" has two addresses
 * and most who listen have only one of them.
 */
void
dial_udp_order(struct address *a, size_t n)
{
    struct address out[DIAL_MAX];
    bool vacant[DIAL_MAX];
    size_t used = 0;

    assert(n <= DIAL_MAX);
    for (size_t i = 0; n > 1 && i < n; i++)
        if (!(vacant[i] = is_vacant(&a[i])))
            out[used++] = a[i];
    for (size_t i = 0; n > 1 && i < n; i++)
        if (vacant[i])
            out[used++] = a[i];
    memcpy(a, out, used * sizeof *a);
}

/*
 * dial_udp - a UDP socket, connected to host:port, that does not block.
 *
 * Arguments and answers are those of dial().  The first address with a route is
 * taken.
 * Thread: any.  Blocks: dns_s.
 */
enum why
dial_udp(const struct client *c, const char *host, uint16_t port,
         enum access what, int *fd, char addr[ADDR_MAX],
         struct clock_marks *took, struct fail *f)
{
    struct address a[DIAL_MAX];
    size_t n;
    enum why why = dial_addresses(c, host, port, what, a, &n, took, f);

    if (why != WHY_NONE)
        return why;
    dial_udp_order(a, n);
    for (size_t i = 0; i < n; i++) {
        *f = (struct fail){0}; /* of the address before this one */
        if ((why = dial_udp_at(&a[i], false, fd, addr, f)) == WHY_NONE)
            break;
    }
    return why;
}
