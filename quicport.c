/*
 * quicport.c - the UDP sockets of the listeners.
 *
 * One thread for each socket reads what comes and puts it into a demux; the
 * owners of the connections send on the same socket.  A peer that sends much
 * has its datagrams handed over in lots, by one system call for many of them
 * (GRO), and ours go out in the same way (GSO); without the kernel's help they
 * go one by one.
 *
 * A socket bound to all addresses answers from the one that was asked: a
 * client, and RFC 9000 section 9, would not take it from another.
 *
 * Follows  udp(7), ip(7), ipv6(7).
 * Owns     the sockets, their threads, a buffer for each.
 * Threads  one for each port; quic_send() and quic_receive() from any.
 * Blocks   the ports' threads, in poll(2); quic_send() for SEND_MS at most,
 *          when the socket's buffer is full.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proxy.h"

enum {
    RECV_MAX = 65536,     /* a lot, RFC 768 */
    SOCKET_BUF = 4 << 20, /* asked for; the kernel has its own limit */
    BATCH = 64,           /* lots read before flags are looked at */
    SEND_MS = 20,         /* a datagram may be lost, but not for a moment */
};

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

struct quic_port {
    int fd, stop_fd;
    struct demux *demux;
    bool started;
    pthread_t thread;
    char *buf; /* the thread's */
};

/* Does the kernel cut a lot into datagrams?  Until it has refused to. */
static atomic_bool no_segments;

/* ---- sockets ------------------------------------------------------------- */

static bool
set_int(int fd, int layer, int name, int value)
{
    return setsockopt(fd, layer, name, &value, sizeof value) == 0;
}

/* Before bind(2).  False: errno.  Large buffers and GRO are welcome, not
 * needed. */
bool
quic_socket_set_up(int fd, int family)
{
    (void)set_int(fd, SOL_SOCKET, SO_RCVBUF, SOCKET_BUF);
    (void)set_int(fd, SOL_SOCKET, SO_SNDBUF, SOCKET_BUF);
    (void)set_int(fd, IPPROTO_UDP, UDP_GRO, 1);
    /* We find out the path's MTU ourselves (RFC 9000 section 14.3): fragments
     * would be no answer. */
    if (family == AF_INET6)
        return set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) &&
               set_int(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1) &&
               set_int(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER,
                       IPV6_PMTUDISC_PROBE);
    return set_int(fd, IPPROTO_IP, IP_PKTINFO, 1) &&
           set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
}

/* ---- receiving ----------------------------------------------------------- */

/* What the kernel says beside the bytes: to which of our addresses they came,
 * and how long each datagram is. */
static void
read_control(struct msghdr *m, struct quic_path *path, size_t *segment)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL;
         c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;

            memcpy(&info, CMSG_DATA(c), sizeof info);
            path->local.in.sin_family = AF_INET;
            path->local.in.sin_addr = info.ipi_addr;
        } else if (c->cmsg_level == IPPROTO_IPV6 &&
                   c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;

            memcpy(&info, CMSG_DATA(c), sizeof info);
            path->local.in6.sin6_family = AF_INET6;
            path->local.in6.sin6_addr = info.ipi6_addr;
            if (IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr))
                path->local.in6.sin6_scope_id = info.ipi6_ifindex;
        } else if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int size;

            memcpy(&size, CMSG_DATA(c), sizeof size);
            if (size > 0)
                *segment = (size_t)size;
        }
    }
}

/*
 * quic_receive - what a socket has, without waiting.
 *
 * at, len  gets one datagram, or several behind each other; len RECV_MAX holds
 *          any
 * path     filled in; our own port is not (nobody looks at it), nor our
 *          address on a socket that quic_socket_set_up() did not see
 * segment  bytes of each datagram but the last
 *
 * Returns the number of bytes; -1: errno.
 */
ssize_t
quic_receive(int fd, void *at, size_t len, struct quic_path *path,
             size_t *segment)
{
    union {
        struct cmsghdr align;
        char at[CMSG_SPACE(sizeof(struct in6_pktinfo)) +
                CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {at, len};
    struct msghdr m = {.msg_name = &path->remote,
                       .msg_namelen = sizeof path->remote,
                       .msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.at,
                       .msg_controllen = sizeof control.at};
    ssize_t n;

    memset(path, 0, sizeof *path);
    n = recvmsg(fd, &m, MSG_DONTWAIT);
    if (n < 0)
        return -1;
    *segment = (size_t)n;
    read_control(&m, path, segment);
    return n;
}

/* Read up to BATCH lots.  False: there was nothing more. */
static bool
read_some(struct quic_port *p)
{
    struct quic_path path;
    size_t segment;

    for (int i = 0; i < BATCH; i++) {
        ssize_t n = quic_receive(p->fd, p->buf, RECV_MAX, &path, &segment);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return false;
        /* Else an ICMP error of some client's, or an empty datagram. */
        if (n > 0)
            demux_put(p->demux, &path, p->buf, (size_t)n, segment);
    }
    return true;
}

static void *
port_main(void *arg)
{
    struct quic_port *p = arg;
    struct pollfd fds[2] = {{.fd = p->fd, .events = POLLIN},
                            {.fd = p->stop_fd, .events = POLLIN}};

    pthread_setname_np(pthread_self(), "weir-udp");
    while (fds[1].revents == 0) {
        if (!read_some(p))
            (void)poll(fds, 2, -1);
        else
            (void)poll(&fds[1], 1, 0);
    }
    return NULL;
}

/* ---- sending ------------------------------------------------------------- */

/* From which address, and in which pieces. */
static void
write_control(struct msghdr *m, const struct quic_path *path, bool from,
              uint16_t segment)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    size_t len = 0;

    if (from && path->local.sa.sa_family == AF_INET) {
        struct in_pktinfo info = {.ipi_spec_dst = path->local.in.sin_addr};

        c->cmsg_level = IPPROTO_IP;
        c->cmsg_type = IP_PKTINFO;
        c->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(c), &info, sizeof info);
        len += CMSG_SPACE(sizeof info);
        c = CMSG_NXTHDR(m, c);
    } else if (from && path->local.sa.sa_family == AF_INET6) {
        struct in6_pktinfo info = {.ipi6_addr = path->local.in6.sin6_addr,
                                   .ipi6_ifindex =
                                       path->local.in6.sin6_scope_id};

        c->cmsg_level = IPPROTO_IPV6;
        c->cmsg_type = IPV6_PKTINFO;
        c->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(c), &info, sizeof info);
        len += CMSG_SPACE(sizeof info);
        c = CMSG_NXTHDR(m, c);
    }
    if (segment > 0) {
        c->cmsg_level = IPPROTO_UDP;
        c->cmsg_type = UDP_SEGMENT;
        c->cmsg_len = CMSG_LEN(sizeof segment);
        memcpy(CMSG_DATA(c), &segment, sizeof segment);
        len += CMSG_SPACE(sizeof segment);
    }
    m->msg_controllen = len;
    if (len == 0)
        m->msg_control = NULL;
}

static socklen_t
address_len(const union quic_address *a)
{
    return a->sa.sa_family == AF_INET6 ? sizeof a->in6 : sizeof a->in;
}

/* One call; false: errno. */
static bool
send_once(int fd, const struct quic_path *path, bool connected, const void *at,
          size_t len, size_t segment)
{
    union {
        struct cmsghdr align;
        char at[CMSG_SPACE(sizeof(struct in6_pktinfo)) +
                CMSG_SPACE(sizeof(uint16_t))];
    } control = {.at = {0}};
    struct iovec iov = {(void *)at, len};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.at,
                       .msg_controllen = sizeof control.at};

    if (!connected) {
        m.msg_name = (void *)&path->remote;
        m.msg_namelen = address_len(&path->remote);
    }
    write_control(&m, path, !connected, segment < len ? (uint16_t)segment : 0);
    return sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

/* The same, with patience for a buffer that is full for a moment. */
static bool
send_patiently(int fd, const struct quic_path *path, bool connected,
               const void *at, size_t len, size_t segment)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};

    if (send_once(fd, path, connected, at, len, segment))
        return true;
    if (errno == EINTR)
        return send_once(fd, path, connected, at, len, segment);
    /* On a connected socket: what an ICMP message said of datagrams before. */
    if (connected && errno == ECONNREFUSED)
        return send_once(fd, path, connected, at, len, segment);
    if (errno != EAGAIN && errno != ENOBUFS)
        return false;
    if (poll(&p, 1, SEND_MS) <= 0)
        return false;
    return send_once(fd, path, connected, at, len, segment);
}

/*
 * quic_send - datagrams of `segment` bytes each, the last one shorter.
 *
 * connected  the socket is: the path's addresses are its own
 *
 * What cannot be sent is lost, as on the way; QUIC repeats it.  A probe for a
 * larger MTU is meant to be (EMSGSIZE).
 */
void
quic_send(int fd, const struct quic_path *path, bool connected, const void *at,
          size_t len, size_t segment)
{
    const char *from = at;

    if (segment < len && !atomic_load(&no_segments)) {
        if (send_patiently(fd, path, connected, at, len, segment))
            return;
        if (errno != EIO && errno != EINVAL && errno != EOPNOTSUPP)
            return;
        /* The device, or this kernel, cannot: udp(7).  EINVAL: not to this
         * peer, where the way out is narrower than a datagram. */
        if (errno != EINVAL)
            atomic_store(&no_segments, true);
    }
    while (len > 0) {
        size_t n = len < segment ? len : segment;

        (void)send_patiently(fd, path, connected, from, n, n);
        from += n;
        len -= n;
    }
}

static void
port_send(void *arg, const struct quic_path *path, const void *at, size_t len,
          size_t segment)
{
    struct quic_port *p = arg;

    quic_send(p->fd, path, false, at, len, segment);
}

/* ---- public -------------------------------------------------------------- */

/* fd: bound, quic_socket_set_up(); the port's if there is one.  NULL: errno.
 */
struct quic_port *
quic_port_new(struct weir *weir, int fd)
{
    struct quic_port *p = calloc(1, sizeof *p);
    struct demux_user user = {.weir = weir, .send = port_send, .arg = p};

    if (p == NULL)
        return NULL;
    p->fd = fd;
    p->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->stop_fd < 0) {
        free(p);
        return NULL;
    }
    p->buf = malloc(RECV_MAX);
    p->demux = demux_new(&user);
    if (p->buf != NULL && p->demux != NULL)
        return p;
    p->fd = -1;
    quic_port_free(p);
    errno = ENOMEM;
    return NULL;
}

/* Begin to read.  False: errno. */
bool
quic_port_start(struct quic_port *p)
{
    errno = pthread_create(&p->thread, NULL, port_main, p);
    p->started = errno == 0;
    return p->started;
}

/* Its connections have ended.  NULL: nothing. */
void
quic_port_free(struct quic_port *p)
{
    uint64_t one = 1;

    if (p == NULL)
        return;
    if (p->started) {
        while (write(p->stop_fd, &one, sizeof one) < 0 && errno == EINTR)
            ;
        pthread_join(p->thread, NULL);
    }
    if (p->demux != NULL)
        demux_end(p->demux);
    free(p->buf);
    close(p->stop_fd);
    if (p->fd >= 0)
        close(p->fd);
    free(p);
}
