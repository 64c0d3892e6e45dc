/*
 * wire.c - non-blocking sockets on loopback, plain or TLS, for the load tools.
 *
 * Kept as thin as it can be: what a load tool spends is taken from the proxy
 * it measures, because they share the processors.
 *
 * Threads  one; both tools are a single epoll loop.
 * Blocks   never.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

enum {
    PAGE = 16384, /* a text and what follows it go as one TLS record */
    BURST = 8,    /* writes before other connections have their turn */
};

char wire_in[WIRE_CHUNK];
static char xs[WIRE_CHUNK], page[PAGE]; /* all 'x' between calls */

void
wire_setup(void)
{
    struct rlimit r;

    memset(xs, 'x', sizeof xs);
    memset(page, 'x', sizeof page);
    signal(SIGPIPE, SIG_IGN);
    if (getrlimit(RLIMIT_NOFILE, &r) == 0) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

int64_t
wire_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static struct sockaddr_in
loopback(uint16_t port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static ssize_t
dead(struct wire *w, const char *wrong)
{
    w->wrong = wrong;
    return WIRE_DEAD;
}

int
wire_listen(uint16_t *port)
{
    struct sockaddr_in a = loopback(*port);
    socklen_t len = sizeof a;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&a, len) != 0 || listen(fd, 4096) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) != 0) {
        close(fd);
        return -1;
    }
    *port = ntohs(a.sin_port);
    return fd;
}

static void
no_delay(int fd)
{
    int on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

bool
wire_connect(struct wire *w, uint16_t port)
{
    struct sockaddr_in a = loopback(port);

    *w = (struct wire){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    if (w->fd < 0) {
        w->wrong = "socket";
        return false;
    }
    no_delay(w->fd);
    if (connect(w->fd, (struct sockaddr *)&a, sizeof a) == 0 ||
        errno == EINPROGRESS)
        return true;
    w->wrong = errno == EADDRNOTAVAIL ? "connect: out of ports" : "connect";
    close(w->fd);
    w->fd = -1;
    return false;
}

bool
wire_accept(struct wire *w, int listener)
{
    *w = (struct wire){.fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)};
    if (w->fd < 0)
        return false;
    no_delay(w->fd);
    return true;
}

static bool
start_tls(struct wire *w, unsigned role, gnutls_certificate_credentials_t cred)
{
    static const gnutls_datum_t http = {(unsigned char *)"http/1.1", 8};

    if (gnutls_init(&w->tls, role | GNUTLS_NONBLOCK) != 0) {
        w->tls = NULL;
        return false;
    }
    gnutls_transport_set_int(w->tls, w->fd);
    return gnutls_alpn_set_protocols(w->tls, &http, 1, 0) == 0 &&
           gnutls_set_default_priority(w->tls) == 0 &&
           gnutls_credentials_set(w->tls, GNUTLS_CRD_CERTIFICATE, cred) == 0;
}

/* Nothing is verified here: the load is to be cheap.  No session is kept, so
 * every handshake is a full one. */
bool
wire_client_tls(struct wire *w, gnutls_certificate_credentials_t cred,
                const char *sni)
{
    return start_tls(w, GNUTLS_CLIENT, cred) &&
           gnutls_server_name_set(w->tls, GNUTLS_NAME_DNS, sni, strlen(sni)) ==
               0;
}

bool
wire_server_tls(struct wire *w, gnutls_certificate_credentials_t cred,
                const gnutls_datum_t *ticket_key)
{
    return start_tls(w, GNUTLS_SERVER, cred) &&
           gnutls_session_ticket_enable_server(w->tls, ticket_key) == 0;
}

ssize_t
wire_handshake(struct wire *w)
{
    int rc;

    do
        rc = gnutls_handshake(w->tls);
    while (rc < 0 && rc != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(rc));
    if (rc == GNUTLS_E_AGAIN)
        return WIRE_AGAIN;
    return rc == 0 ? 1 : dead(w, gnutls_strerror(rc));
}

static ssize_t
tls_result(struct wire *w, ssize_t rc)
{
    if (rc >= 0)
        return rc;
    if (rc == GNUTLS_E_AGAIN)
        return WIRE_AGAIN;
    if (rc == GNUTLS_E_PREMATURE_TERMINATION)
        return WIRE_EOF; /* who counts bytes sees what is missing */
    return dead(w, gnutls_strerror((int)rc));
}

ssize_t
wire_read(struct wire *w, void *buf, size_t cap)
{
    ssize_t n;

    if (w->tls != NULL) {
        do
            n = gnutls_record_recv(w->tls, buf, cap);
        while (n == GNUTLS_E_INTERRUPTED);
        return tls_result(w, n);
    }
    n = recv(w->fd, buf, cap, 0);
    if (n >= 0)
        return n;
    return errno == EAGAIN ? WIRE_AGAIN : dead(w, strerror(errno));
}

static ssize_t
write_some(struct wire *w, const void *buf, size_t len)
{
    ssize_t n;

    if (w->tls != NULL) {
        do
            n = gnutls_record_send(w->tls, buf, len);
        while (n == GNUTLS_E_INTERRUPTED);
        return tls_result(w, n);
    }
    n = send(w->fd, buf, len, MSG_NOSIGNAL);
    if (n >= 0)
        return n;
    return errno == EAGAIN ? WIRE_AGAIN : dead(w, strerror(errno));
}

/* After WIRE_AGAIN this makes the same bytes again, as TLS demands
 * (gnutls_record_send(3)): they follow from the debt alone. */
static ssize_t
pay_once(struct wire *w, const struct debt *d)
{
    size_t cap = d->len > 0 ? PAGE - d->len : WIRE_CHUNK;
    size_t n_xs = d->xs < cap ? (size_t)d->xs : cap;
    ssize_t n;

    if (d->len == 0)
        return write_some(w, xs, n_xs);
    memcpy(page, d->text, d->len);
    n = write_some(w, page, d->len + n_xs);
    memset(page, 'x', d->len);
    return n;
}

bool
wire_owes(const struct debt *d)
{
    return d->len > 0 || d->xs > 0;
}

bool
wire_pay(struct wire *w, struct debt *d)
{
    for (int i = 0; i < BURST && wire_owes(d); i++) {
        ssize_t n = pay_once(w, d);

        if (n == WIRE_AGAIN)
            return true;
        if (n < 0)
            return false;
        if ((size_t)n < d->len) {
            d->len -= (size_t)n;
            memmove(d->text, d->text + n, d->len);
            continue;
        }
        d->xs -= (uint64_t)n - d->len;
        d->len = 0;
    }
    return true;
}

void
wire_close(struct wire *w)
{
    if (w->tls != NULL) {
        if (w->wrong == NULL)
            gnutls_bye(w->tls, GNUTLS_SHUT_WR); /* what does not fit is lost */
        gnutls_deinit(w->tls);
        w->tls = NULL;
    }
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

void
wire_command(char out[RAW_CMD], char letter, uint64_t n)
{
    out[0] = letter;
    for (int i = 0; i < 8; i++)
        out[1 + i] = (char)(n >> (56 - 8 * i));
}

uint64_t
wire_count(const char in[RAW_CMD])
{
    uint64_t n = 0;

    for (int i = 0; i < 8; i++)
        n = n << 8 | (unsigned char)in[1 + i];
    return n;
}
