/*
 * udp.c - the UDP associations of SOCKS 5.
 *
 * A client asks for one on a TCP connection and then sends datagrams to the
 * port it is told, each with its target in front; what comes back has its
 * source in front.  The association ends with its TCP connection, or when
 * nothing came for idle_s.
 *
 * What it sends to a target may be a QUIC connection that is ours to look into
 * (nested.c).
 *
 * Follows  RFC 1928 section 7.  Fragments are dropped, as it allows.  Only the
 *          address that the TCP connection comes from may send, and only the
 *          port that sent first, or that it named.
 * Owns     a socket towards the client, up to two towards targets, a buffer.
 * Threads  the worker that runs the connection.  Connections inside send to the
 *          client from their owners' threads.
 * Blocks   as long as the association lives; dns_s for a name.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

enum {
    DATAGRAM_MAX = 65536,
    HEAD_MAX = 22,     /* 2 + 1 + 1 + 16 + 2: our heads name addresses */
    KNOWN_MS = 10000,  /* how long a target is not looked up again */
    LOOK_MS = 1000,    /* how often the clocks are looked at */
    NESTED_MAX = 8,    /* targets whose datagrams are looked into */
    PACKET_MAX = 2048, /* of a connection inside */
};

struct target { /* the last one, with the head that names it */
    char head[262];
    size_t len; /* 0: none yet */
    bool granted;
    char host[HOST_MAX + 1];
    uint16_t port;
    struct address at;
    int64_t until; /* ms */
};

struct inside { /* a target whose datagrams are looked into */
    struct relay *relay;
    struct address at;
    char head[HEAD_MAX]; /* what stands before its answers */
    size_t head_len;
    struct nested *nested;
};

struct relay {
    const struct client *client;
    int inner, outer4, outer6;    /* -1: none */
    struct sockaddr_storage peer; /* the client's; port 0: not known yet */
    struct target target;
    bool denied_said;
    char *buf; /* HEAD_MAX + DATAGRAM_MAX */
    struct udp_result *r;
    struct inside insides[NESTED_MAX];
    size_t n_insides, next_inside;
    /* any thread */
    atomic_llong moved_at;
    atomic_ullong inner_down; /* bytes */
};

/* ---- addresses ----------------------------------------------------------- */

static uint16_t *
port_of(struct sockaddr_storage *sa)
{
    return sa->ss_family == AF_INET6 ? &((struct sockaddr_in6 *)sa)->sin6_port
                                     : &((struct sockaddr_in *)sa)->sin_port;
}

static socklen_t
length_of(const struct sockaddr_storage *sa)
{
    return sa->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                     : sizeof(struct sockaddr_in);
}

static bool
same_host(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    if (a->ss_family != b->ss_family)
        return false;
    if (a->ss_family == AF_INET6)
        return memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                      &((const struct sockaddr_in6 *)b)->sin6_addr, 16) == 0;
    return memcmp(&((const struct sockaddr_in *)a)->sin_addr,
                  &((const struct sockaddr_in *)b)->sin_addr, 4) == 0;
}

/* A socket of our own on any port of this address. */
static int
open_on(struct sockaddr_storage *sa)
{
    int fd =
        socket(sa->ss_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t len = length_of(sa);

    *port_of(sa) = 0;
    if (fd >= 0 && (bind(fd, (struct sockaddr *)sa, len) != 0 ||
                    getsockname(fd, (struct sockaddr *)sa, &len) != 0)) {
        int code = errno;

        close(fd);
        fd = -1;
        errno = code;
    }
    return fd;
}

/* The socket that reaches such an address, made when it is first needed. */
static int
outer_for(struct relay *y, int family)
{
    struct sockaddr_storage any = {.ss_family = (sa_family_t)family};
    int *fd = family == AF_INET6 ? &y->outer6 : &y->outer4;

    if (*fd < 0)
        *fd = open_on(&any);
    return *fd;
}

/* ---- upwards ------------------------------------------------------------- */

/* One log line an association, however many datagrams are denied. */
static bool
deny(struct relay *y, const char *host, uint16_t port, const char *rule)
{
    struct fail ignored = {0};

    if (!y->denied_said)
        access_denied(y->client, host, port, rule, &ignored);
    y->denied_said = true;
    return false;
}

/* May it be reached, and where is it?  We have no way through a parent. */
static bool
target_find(struct relay *y, const char *host, uint16_t port)
{
    const struct client *c = y->client;
    struct origin o = {.port = port, .tunnel = true};
    const char *name = host, *rule;
    uint16_t name_port = port;
    struct address at[8];
    enum access what;
    struct fail f = {0};
    size_t n;

    memcpy(o.host, host, strlen(host) + 1);
    if ((rule = access_rule(c->conf, host, port, &what)) != NULL)
        return deny(y, host, port, rule);
    if (!parent_is_direct(c->conf, &o))
        return deny(y, host, port, "parents carry no UDP");
    dial_override(c->conf, &name, &name_port);
    if (dns_lookup(name, name_port, c->conf->dns_s * 1000, at, 8, &n, &f) !=
        WHY_NONE)
        return false;
    rule = "no address";
    dial_udp_order(at, n);
    for (size_t i = 0; i < n; i++) /* HTTP/3 would take it for a client's */
        if (c->conf->http3 && dial_is_ours(c, &at[i]))
            return deny(y, host, port, "connect to ourselves");
    for (size_t i = 0; i < n; i++) {
        if (!access_address(c, (struct sockaddr *)&at[i].at, what, &rule) ||
            outer_for(y, at[i].at.ss_family) < 0)
            continue;
        y->target.at = at[i];
        return true;
    }
    return deny(y, host, port, rule);
}

/* The target that stands in front of the datagram buf[0..len); *head bytes name
 * it.  False: drop it. */
static bool
target_read(struct relay *y, const char *buf, size_t len, size_t *head)
{
    struct target *t = &y->target;
    char host[HOST_MAX + 1];
    uint16_t port;

    if (socks_parse_datagram(buf, len, host, &port, head) != WHY_NONE ||
        port == 0 || *head > sizeof t->head)
        return false;
    if (t->len == *head && memcmp(t->head, buf, *head) == 0 &&
        now_ms() < t->until)
        return t->granted;
    t->granted = target_find(y, host, port);
    memcpy(t->host, host, sizeof host);
    t->port = port;
    memcpy(t->head, buf, *head);
    t->len = *head;
    t->until = now_ms() + KNOWN_MS;
    return t->granted;
}

/* To the target.  UDP may lose what cannot be sent now. */
static void
send_up(struct relay *y, const void *at, size_t len)
{
    if (sendto(outer_for(y, y->target.at.at.ss_family), at, len,
               MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&y->target.at.at,
               y->target.at.len) >= 0)
        y->r->up += (uint64_t)len;
}

/* A connection inside has a packet for the client. */
static void
inside_send(void *arg, const void *at, size_t len)
{
    struct inside *i = arg;
    struct relay *y = i->relay;
    char packet[HEAD_MAX + PACKET_MAX];

    if (len > PACKET_MAX)
        return;
    memcpy(packet, i->head, i->head_len);
    memcpy(packet + i->head_len, at, len);
    atomic_store(&y->moved_at, now_ms());
    if (sendto(y->inner, packet, i->head_len + len, MSG_DONTWAIT | MSG_NOSIGNAL,
               (struct sockaddr *)&y->peer, length_of(&y->peer)) >= 0)
        atomic_fetch_add(&y->inner_down, len);
}

/* What was kept for a look, and is none of ours. */
static void
inside_pass(void *arg, const void *at, size_t len)
{
    send_up(((struct inside *)arg)->relay, at, len);
}

/* Room for one more: a target that turned out to be none of ours makes it. */
static struct inside *
inside_room(struct relay *y)
{
    if (y->n_insides < NESTED_MAX)
        return &y->insides[y->n_insides++];
    for (size_t n = 0; n < NESTED_MAX; n++) {
        struct inside *i = &y->insides[y->next_inside++ % NESTED_MAX];

        if (i->nested == NULL || !nested_taken(i->nested)) {
            nested_free(i->nested);
            return i;
        }
    }
    return NULL;
}

/* Who looks at what goes to the present target; NULL: nobody. */
static struct nested *
inside_of(struct relay *y)
{
    const struct target *t = &y->target;
    struct origin o = {.port = t->port, .tunnel = true};
    struct inside *i;

    for (size_t n = 0; n < y->n_insides; n++)
        if (y->insides[n].at.len == t->at.len &&
            memcmp(&y->insides[n].at.at, &t->at.at, t->at.len) == 0)
            return y->insides[n].nested;
    if ((i = inside_room(y)) == NULL)
        return NULL;
    memcpy(o.host, t->host, sizeof o.host);
    i->relay = y;
    i->at = t->at;
    i->head_len = socks_put_datagram(i->head, (struct sockaddr *)&i->at.at);
    i->nested = nested_new(y->client, &o,
                           &(struct nested_user){inside_send, inside_pass, i});
    return i->nested;
}

/* Is this the client?  The port that sends first is its port. */
static bool
is_client(struct relay *y, struct sockaddr_storage *from)
{
    if (!same_host(from, &y->peer))
        return false;
    if (*port_of(&y->peer) == 0)
        *port_of(&y->peer) = *port_of(from);
    return *port_of(&y->peer) == *port_of(from);
}

/* One datagram of the client.  False: there is none any more. */
static bool
carry_up(struct relay *y)
{
    struct sockaddr_storage from;
    socklen_t len = sizeof from;
    struct nested *nested;
    ssize_t got;
    size_t head;

    assert(y->buf != NULL);        /* there is a relay only with it */
    memset(&from, 0, sizeof from); /* all of it, whatever the family */
    got = recvfrom(y->inner, y->buf, DATAGRAM_MAX, 0, (struct sockaddr *)&from,
                   &len);
    if (got < 0)
        return errno == EINTR;
    if (!is_client(y, &from))
        return true;
    atomic_store(&y->moved_at, now_ms());
    if (!target_read(y, y->buf, (size_t)got, &head))
        return true;
    nested = inside_of(y);
    if (nested != NULL && nested_put(nested, y->buf + head, (size_t)got - head))
        y->r->up += (uint64_t)got - head;
    else
        send_up(y, y->buf + head, (size_t)got - head);
    return true;
}

/* ---- downwards ----------------------------------------------------------- */

/* One datagram for the client.  False: there is none any more. */
static bool
carry_down(struct relay *y, int fd)
{
    struct sockaddr_storage from = {0};
    socklen_t len = sizeof from;
    ssize_t got = recvfrom(fd, y->buf + HEAD_MAX, DATAGRAM_MAX, 0,
                           (struct sockaddr *)&from, &len);
    char head[HEAD_MAX];
    size_t n;

    if (got < 0)
        return errno == EINTR;
    if (*port_of(&y->peer) == 0)
        return true;
    atomic_store(&y->moved_at, now_ms());
    n = socks_put_datagram(head, (struct sockaddr *)&from);
    memcpy(y->buf + HEAD_MAX - n, head, n);
    if (sendto(y->inner, y->buf + HEAD_MAX - n, n + (size_t)got,
               MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&y->peer,
               length_of(&y->peer)) >= 0)
        y->r->down += (uint64_t)got;
    return true;
}

/* ---- an association ------------------------------------------------------ */

/* Something came on the TCP connection.  What it says does not matter; that it
 * has ended does. */
static bool
control_lives(struct end *control)
{
    struct fail ignored = {0};
    int idle_ms = control->idle_ms;
    enum why why;

    control->idle_ms = 1;
    why = end_fill(control, END_BUF, &ignored);
    control->idle_ms = idle_ms;
    end_consume(control, end_ahead(control).len);
    return why == WHY_NONE || why == WHY_IDLE;
}

/* Until the TCP connection ends, or nothing came for long. */
static enum why
relay_run(struct relay *y, struct end *control, struct fail *f)
{
    int idle_ms = y->client->conf->idle_s * 1000;

    for (;;) {
        struct pollfd p[4] = {{control->fd, POLLIN | POLLRDHUP, 0},
                              {y->inner, POLLIN, 0},
                              {y->outer4, POLLIN, 0},
                              {y->outer6, POLLIN, 0}};

        if (poll(p, 4, LOOK_MS) < 0 && errno != EINTR)
            return fail_sys(f, SIDE_WEIR, "poll", errno);
        if (atomic_load(&y->client->weir->stopping))
            return fail_own(f, SIDE_WEIR, WHY_DRAIN, "UDP association");
        if (p[0].revents != 0 && !control_lives(control))
            return WHY_NONE;
        for (int n = 0; p[1].revents != 0 && n < 64 && carry_up(y); n++)
            ;
        for (int i = 2; i < 4; i++)
            for (int n = 0;
                 p[i].revents != 0 && n < 64 && carry_down(y, p[i].fd); n++)
                ;
        if (now_ms() - atomic_load(&y->moved_at) >= idle_ms)
            return fail_own(f, SIDE_CLIENT, WHY_IDLE, "UDP association");
    }
}

static enum why
relay_open(struct relay *y, const struct end *control, const struct socks *s,
           struct sockaddr_storage *bound, struct fail *f)
{
    socklen_t len = sizeof *bound;

    y->peer = y->client->from;
    *port_of(&y->peer) = htons(s->port);
    if ((y->buf = malloc(HEAD_MAX + DATAGRAM_MAX)) == NULL)
        return fail_sys(f, SIDE_WEIR, "UDP association", ENOMEM);
    if (getsockname(control->fd, (struct sockaddr *)bound, &len) != 0 ||
        (y->inner = open_on(bound)) < 0)
        return fail_sys(f, SIDE_WEIR, "UDP association", errno);
    return WHY_NONE;
}

/*
 * udp_relay - one UDP association, from the answer to its request to its end.
 *
 * control  the TCP connection; stays the caller's
 * s        its request
 * r        bytes of content carried, filled in
 *
 * Returns WHY_NONE: the client ended it; WHY_IDLE; WHY_DRAIN; WHY_LIMIT: there
 * are too many, and the client was told, as with WHY_SYS.
 * Thread: a worker.  Blocks: as long as it lives.
 */
enum why
udp_relay(const struct client *c, struct end *control, const struct socks *s,
          struct udp_result *r, struct fail *f)
{
    struct relay y = {.client = c,
                      .inner = -1,
                      .outer4 = -1,
                      .outer6 = -1,
                      .moved_at = now_ms(),
                      .r = r};
    struct sockaddr_storage bound = {0};
    struct fail ignored = {0};
    enum why why = WHY_NONE;

    *r = (struct udp_result){0, 0};
    if (atomic_fetch_add(&c->weir->n_udp, 1) >= c->conf->udp_associations)
        why = fail_own(f, SIDE_WEIR, WHY_LIMIT, "number of UDP associations");
    else
        why = relay_open(&y, control, s, &bound, f);
    if (why != WHY_NONE)
        (void)socks_answer(s, control, SOCKS_FAILED, NULL, &ignored);
    else
        why = socks_answer(s, control, SOCKS_OK, (struct sockaddr *)&bound, f);
    if (why == WHY_NONE && y.inner >= 0)
        why = relay_run(&y, control, f);
    atomic_fetch_sub(&c->weir->n_udp, 1);
    for (size_t i = 0; i < y.n_insides; i++)
        nested_free(y.insides[i].nested);
    r->down += atomic_load(&y.inner_down);
    for (int i = 0; i < 3; i++) {
        int fd = (int[]){y.inner, y.outer4, y.outer6}[i];

        if (fd >= 0)
            close(fd);
    }
    free(y.buf);
    return why;
}
