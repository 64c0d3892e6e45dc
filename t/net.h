/*
 * net.h - sockets and threads for the unit tests.
 *
 * Header only.  Everything is on the loopback and fails after NET_LIMIT_S,
 * which nothing here comes near unless it hangs.
 */
#ifndef NET_H
#define NET_H

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { NET_LIMIT_S = 20 };

/* A call that a test cannot do without: the program ends if it failed. */
#define NEED(good)                                                          \
    do {                                                                    \
        if (!(good)) {                                                      \
            fprintf(stderr, "# %s:%d: %s: %s\n", __FILE__, __LINE__, #good, \
                    strerror(errno));                                       \
            exit(2);                                                        \
        }                                                                   \
    } while (0)

__attribute__((unused)) static void
net_limit(int fd)
{
    struct timeval tv = {.tv_sec = NET_LIMIT_S};

    NEED(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    NEED(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) == 0);
}

/* Listens on 127.0.0.1, or on ::1, at a free port; -1: there is no IPv6. */
__attribute__((unused)) static int
net_listen(int family, uint16_t *port)
{
    struct sockaddr_in6 six = {.sin6_family = AF_INET6,
                               .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in four = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr *at =
        family == AF_INET6 ? (struct sockaddr *)&six : (struct sockaddr *)&four;
    socklen_t len = family == AF_INET6 ? sizeof six : sizeof four;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || (family == AF_INET6 && bind(fd, at, len) != 0)) {
        NEED(family == AF_INET6);
        close(fd);
        return -1;
    }
    NEED(family == AF_INET6 || bind(fd, at, len) == 0);
    NEED(listen(fd, 64) == 0);
    NEED(getsockname(fd, at, &len) == 0);
    *port = ntohs(family == AF_INET6 ? six.sin6_port : four.sin_port);
    net_limit(fd);
    return fd;
}

__attribute__((unused)) static int
net_accept(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    NEED(fd >= 0);
    net_limit(fd);
    return fd;
}

/* Is there a connection to accept?  Does not wait. */
__attribute__((unused)) static bool
net_called(int listener)
{
    struct pollfd p = {.fd = listener, .events = POLLIN};

    return poll(&p, 1, 0) > 0;
}

__attribute__((unused)) static int
net_connect(uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons(port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    NEED(fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    NEED(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    net_limit(fd);
    return fd;
}

/* Two ends of one TCP connection. */
__attribute__((unused)) static void
net_pair(int fds[2])
{
    uint16_t port;
    int listener = net_listen(AF_INET, &port);

    fds[0] = net_connect(port);
    fds[1] = net_accept(listener);
    close(listener);
}

__attribute__((unused)) static void
net_put(int fd, const void *at, size_t len)
{
    const char *from = at;

    while (len > 0) {
        ssize_t put = send(fd, from, len, MSG_NOSIGNAL);

        NEED(put > 0);
        from += put;
        len -= (size_t)put;
    }
}

__attribute__((unused)) static void
net_say(int fd, const char *text)
{
    net_put(fd, text, strlen(text));
}

/* Exactly these bytes come next. */
__attribute__((unused)) static bool
net_hear(int fd, const char *text)
{
    size_t len = strlen(text), n = 0;
    char got[4096] = "";

    assert(len < sizeof got);
    while (n < len) {
        ssize_t more = recv(fd, got + n, len - n, 0);

        if (more <= 0)
            break;
        n += (size_t)more;
    }
    if (n == len && memcmp(got, text, len) == 0)
        return true;
    fprintf(stderr, "# heard '%s', not '%s'\n", got, text);
    return false;
}

/* What comes up to and with `end`; NULL: the connection ended first, or it is
 * too long.  Valid until this thread's next call. */
__attribute__((unused)) static const char *
net_until(int fd, const char *end)
{
    static _Thread_local char got[65536];
    size_t n = 0;

    for (got[0] = '\0'; strstr(got, end) == NULL; got[n] = '\0')
        if (n + 1 == sizeof got || recv(fd, got + n, 1, 0) != 1)
            return NULL;
        else
            n++;
    return got;
}

/* All that comes until the end; *error is 0, or the errno that ended it. */
__attribute__((unused)) static const char *
net_rest(int fd, int *error)
{
    static _Thread_local char got[65536];
    size_t n = 0;
    ssize_t more;

    while ((more = recv(fd, got + n, sizeof got - 1 - n, 0)) > 0)
        n += (size_t)more;
    got[n] = '\0';
    *error = more < 0 ? errno : 0;
    return got;
}

__attribute__((unused)) static bool
net_ended(int fd) /* by a FIN, with nothing before it */
{
    char byte;

    return recv(fd, &byte, 1, 0) == 0;
}

/* A RST goes out now, or when the last duplicate is closed. */
__attribute__((unused)) static void
net_reset(int fd)
{
    struct linger now = {.l_onoff = 1};

    NEED(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
    close(fd);
}

__attribute__((unused)) static pthread_t
net_thread(void *(*run)(void *), void *arg)
{
    pthread_t thread;

    NEED((errno = pthread_create(&thread, NULL, run, arg)) == 0);
    return thread;
}

#endif
