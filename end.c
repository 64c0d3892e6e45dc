/*
 * end.c - an endpoint: a socket, or TLS over a socket, or TLS over TLS.
 *
 * Reads and writes block, within two clocks: idle_ms between bytes and a
 * deadline.  A reader may look at bytes before it consumes them, which is how
 * conn.c finds out what a client speaks and mitm.c reads a ClientHello.
 *
 * GnuTLS never touches the socket here.  It reads from and writes to memory
 * (tls_pull, tls_push), under the session's lock; the socket is read and
 * written outside of it.  So nobody sleeps while holding the lock, two threads
 * may share a session through key updates, GNUTLS_E_AGAIN has one meaning
 * (more bytes are wanted), and one recv(2) may bring many records.
 *
 * Follows  RFC 8446 section 6.1 (closure alerts).
 * Owns     the socket, the TLS layers and the read buffer.
 * Threads  one that reads and one that writes; end_wake() from any.
 * Blocks   in recv(2), send(2), poll(2), splice(2), for at most idle_ms.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "proxy.h"

enum {
    WATCH_MS = 1000,         /* how often a waiting end asks its watch */
    RECORD_MAX = 16384,      /* content of one TLS record, RFC 8446 5.1 */
    TLS_IN = 16384 + 512,    /* raw bytes read ahead at first: one record */
    TLS_IN_BULK = 4 * 16896, /* and when they come in bulk */
    TLS_BATCH = 4,           /* records encrypted before one send(2) */
};

struct bytes { /* a queue in memory */
    char *at;
    size_t start, len, cap;
};

struct tls {
    gnutls_session_t session;
    struct tls *under;    /* NULL: the socket */
    pthread_mutex_t lock; /* around every GnuTLS call on the session */
    /* needs lock */
    struct bytes in;  /* raw bytes not yet decrypted */
    struct bytes out; /* records not yet sent */
    bool sending;     /* a thread sends from `out`, without the lock */
    /* the reader's alone */
    struct bytes raw; /* where the next raw bytes are received */
    int stash;        /* what end_pending() met, for the next read */
    bool stashed;
    struct { /* how the last raw bytes began: see plain_alert() */
        unsigned char at[16];
        size_t len;
    } last;
};

/* ---- a queue of bytes ---------------------------------------------------- */

/* Room for n more bytes behind what is there; false: out of memory. */
static bool
bytes_room(struct bytes *b, size_t n)
{
    if (b->start > 0 && b->start + b->len + n > b->cap) {
        memmove(b->at, b->at + b->start, b->len);
        b->start = 0;
    }
    if (b->start + b->len + n > b->cap) {
        size_t cap = b->start + b->len + n;
        char *at = realloc(b->at, cap);

        if (at == NULL)
            return false;
        b->at = at;
        b->cap = cap;
    }
    return true;
}

static bool
bytes_add(struct bytes *b, const void *from, size_t n)
{
    if (!bytes_room(b, n))
        return false;
    memcpy(b->at + b->start + b->len, from, n);
    b->len += n;
    return true;
}

static void
bytes_consume(struct bytes *b, size_t n)
{
    assert(n <= b->len);
    b->start += n;
    b->len -= n;
    if (b->len == 0)
        b->start = 0;
}

static void
bytes_clear(struct bytes *b)
{
    free(b->at);
    *b = (struct bytes){0};
}

/* ---- the socket ---------------------------------------------------------- */

static void
set_timeout(int fd, int which, int ms)
{
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};

    /* It fails only for a bad fd or value, and both would be our bug. */
    if (setsockopt(fd, SOL_SOCKET, which, &tv, sizeof tv) != 0)
        assert(errno == EINVAL || errno == ENOTCONN);
}

/* How long the next recv() may sleep: the nearest of the clocks. */
static int
recv_wait(const struct end *e, int quiet_ms)
{
    int wait = e->idle_ms - quiet_ms;

    if (e->watch != NULL && wait > WATCH_MS)
        wait = WATCH_MS;
    if (e->deadline != 0) {
        int64_t left = e->deadline - now_ms();

        /* Rounded up, so that a slow sender does not cost a setsockopt() for
         * every byte; the loop below looks at the real clock. */
        left = left <= 0 ? 1 : (left + 99) / 100 * 100;
        if (wait > left)
            wait = (int)left;
    }
    return wait < 1 ? 1 : wait;
}

/* What is there, or WHY_MORE. */
static enum why
sock_recv_now(struct end *e, void *buf, size_t cap, size_t *n, struct fail *f)
{
    ssize_t got;

    do
        got = recv(e->fd, buf, cap, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == EAGAIN ? WHY_MORE : fail_sys(f, e->side, "read", errno);
    e->n_in += (uint64_t)got;
    *n = (size_t)got;
    return got > 0 ? WHY_NONE : WHY_EOF;
}

static enum why
sock_recv(struct end *e, void *buf, size_t cap, int flags, size_t *n,
          struct fail *f)
{
    int quiet_ms = 0;

    if (e->no_wait)
        return sock_recv_now(e, buf, cap, n, f);
    for (;;) {
        int wait = recv_wait(e, quiet_ms);
        bool fiber = fiber_here(), now;
        ssize_t got;

        if (e->deadline != 0 && now_ms() >= e->deadline)
            return fail_own(f, e->side, WHY_LATE, "read");
        /* More often than not the bytes are there: then a clock that is wound
         * for other waits may stay as it is. */
        now = fiber || wait != e->rcv_ms;
        got = recv(e->fd, buf, cap, flags | (now ? MSG_DONTWAIT : 0));
        if (got < 0 && errno == EAGAIN && now && !fiber) {
            set_timeout(e->fd, SO_RCVTIMEO, wait);
            e->rcv_ms = wait;
            got = recv(e->fd, buf, cap, flags);
        }
        if (got < 0 && errno == EAGAIN && fiber) {
            int64_t from = now_ms();

            fiber_sleep(e->fd, POLLIN, wait);
            got = recv(e->fd, buf, cap, flags | MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN && now_ms() - from < wait)
                continue; /* woken, and it was not for this */
        }
        if (got > 0) {
            e->n_in += (flags & MSG_PEEK) ? 0 : (uint64_t)got;
            *n = (size_t)got;
            return WHY_NONE;
        }
        if (got == 0)
            return WHY_EOF;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return fail_sys(f, e->side, "read", errno);
        quiet_ms += wait;
        if (e->watch != NULL && e->watch->over(e->watch->arg))
            return fail_own(f, SIDE_WEIR, WHY_OVER, "read");
        if (quiet_ms >= e->idle_ms)
            return fail_own(f, e->side, WHY_IDLE, "read");
    }
}

/* Drop the first `done` bytes from the front of an iovec array. */
static void
iov_advance(struct iovec **iov, int *n, size_t done)
{
    while (*n > 0 && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        ++*iov;
        --*n;
    }
    if (*n > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + done;
        (*iov)->iov_len -= done;
    }
}

static enum why
sock_send(struct end *e, struct iovec *iov, int n, int flags, struct fail *f)
{
    int64_t from = 0;

    if (fiber_here()) {
        flags |= MSG_DONTWAIT;
        from = now_ms();
    } else if (e->snd_ms != e->idle_ms) {
        set_timeout(e->fd, SO_SNDTIMEO, e->idle_ms);
        e->snd_ms = e->idle_ms;
    }
    iov_advance(&iov, &n, 0);
    while (n > 0) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
        ssize_t put = sendmsg(e->fd, &msg, MSG_NOSIGNAL | flags);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EAGAIN && from != 0 &&
            now_ms() - from < e->idle_ms) {
            fiber_sleep(e->fd, POLLOUT, e->idle_ms);
            continue;
        }
        if (put < 0 && errno == EAGAIN)
            return fail_own(f, e->side, WHY_IDLE, "write");
        if (put < 0)
            return fail_sys(f, e->side, "write", errno);
        e->n_out += (uint64_t)put;
        if (from != 0)
            from = now_ms();
        iov_advance(&iov, &n, (size_t)put);
    }
    return WHY_NONE;
}

/* ---- TLS layers ---------------------------------------------------------- */

/* GnuTLS wants raw bytes: from memory alone.  Needs tls->lock. */
static ssize_t
tls_pull(gnutls_transport_ptr_t arg, void *buf, size_t cap)
{
    struct tls *t = arg;
    size_t n = t->in.len < cap ? t->in.len : cap;

    if (n == 0) {
        gnutls_transport_set_errno(t->session, EAGAIN);
        return -1;
    }
    memcpy(buf, t->in.at + t->in.start, n);
    bytes_consume(&t->in, n);
    return (ssize_t)n;
}

static int
tls_pull_ready(gnutls_transport_ptr_t arg, unsigned ms)
{
    (void)ms;
    return ((struct tls *)arg)->in.len > 0;
}

/* GnuTLS has a record for the peer: into memory.  Needs tls->lock. */
static ssize_t
tls_push(gnutls_transport_ptr_t arg, const giovec_t *iov, int n)
{
    struct tls *t = arg;
    size_t total = 0;

    for (int i = 0; i < n; i++) {
        if (!bytes_add(&t->out, iov[i].iov_base, iov[i].iov_len)) {
            gnutls_transport_set_errno(t->session, ENOMEM);
            return -1;
        }
        total += iov[i].iov_len;
    }
    return (ssize_t)total;
}

static enum why layer_read(struct end *, struct tls *, void *, size_t, size_t *,
                           struct fail *);
static enum why layer_write(struct end *, struct tls *, const void *, size_t,
                            struct fail *);

/* Wait for raw bytes below t and queue them for decryption.  The reader's. */
static enum why
tls_receive(struct end *e, struct tls *t, struct fail *f)
{
    size_t n = 0;
    enum why why;

    if (t->raw.cap == 0 && !bytes_room(&t->raw, TLS_IN))
        return fail_sys(f, SIDE_WEIR, "read TLS", ENOMEM);
    why = layer_read(e, t->under, t->raw.at, t->raw.cap, &n, f);
    if (why != WHY_NONE)
        return why;
    t->last.len = n < sizeof t->last.at ? n : sizeof t->last.at;
    memcpy(t->last.at, t->raw.at, t->last.len);
    pthread_mutex_lock(&t->lock);
    if (t->in.len == 0) { /* usual: hand the buffer over, copy nothing */
        struct bytes empty = t->in;

        t->in = t->raw;
        t->in.start = 0;
        t->in.len = n;
        t->raw = empty;
        t->raw.start = t->raw.len = 0;
    } else if (!bytes_add(&t->in, t->raw.at, n)) {
        why = fail_sys(f, SIDE_WEIR, "read TLS", ENOMEM);
    }
    pthread_mutex_unlock(&t->lock);
    if (n == TLS_IN && t->raw.cap < TLS_IN_BULK &&
        !bytes_room(&t->raw, TLS_IN_BULK))
        return fail_sys(f, SIDE_WEIR, "read TLS", ENOMEM);
    return why;
}

/*
 * Send what is in t->out, in order.  If another thread is sending it will find
 * our bytes behind its own, so there is nothing to do.
 */
static enum why
tls_flush(struct end *e, struct tls *t, struct fail *f)
{
    enum why why = WHY_NONE;

    pthread_mutex_lock(&t->lock);
    if (t->sending) {
        pthread_mutex_unlock(&t->lock);
        return WHY_NONE;
    }
    t->sending = true;
    while (why == WHY_NONE && t->out.len > 0) {
        struct bytes now = t->out;

        t->out = (struct bytes){0};
        pthread_mutex_unlock(&t->lock);
        why = layer_write(e, t->under, now.at + now.start, now.len, f);
        pthread_mutex_lock(&t->lock);
        if (t->out.cap == 0) { /* keep the memory for the next records */
            now.start = now.len = 0;
            t->out = now;
        } else {
            bytes_clear(&now);
        }
    }
    t->sending = false;
    pthread_mutex_unlock(&t->lock);
    return why;
}

/* The reader answered something by itself (a key update): it may not sleep
 * for a peer that does not read, so what does not fit now goes with the next
 * write. */
static void
tls_flush_some(struct end *e, struct tls *t)
{
    struct iovec iov;

    pthread_mutex_lock(&t->lock);
    if (t->out.len > 0 && !t->sending && t->under == NULL) {
        ssize_t put;

        iov.iov_base = t->out.at + t->out.start;
        iov.iov_len = t->out.len;
        put =
            send(e->fd, iov.iov_base, iov.iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put > 0)
            bytes_consume(&t->out, (size_t)put);
    }
    pthread_mutex_unlock(&t->lock);
}

/* A negative code of gnutls_record_recv() or gnutls_handshake(), as a why. */
static enum why
tls_failed(struct end *e, struct tls *t, const char *op, int rc, struct fail *f)
{
    if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED)
        return fail_alert(f, e->side, op, gnutls_alert_get(t->session));
    return fail_tls(f, e->side, op, rc);
}

/* One record's content from memory; AGAIN: bytes are missing.  0: the end. */
static ssize_t
tls_decrypt(struct tls *t, void *buf, size_t cap)
{
    ssize_t got;
    int again = 0;

    if (t->stashed) {
        t->stashed = false;
        return t->stash;
    }
    pthread_mutex_lock(&t->lock);
    do { /* AGAIN with bytes left: a ticket or a key update was consumed */
        got = gnutls_record_recv(t->session, buf, cap);
        if (got == GNUTLS_E_REHANDSHAKE) /* refused: RFC 7457 section 2.10 */
            gnutls_alert_send(t->session, GNUTLS_AL_WARNING,
                              GNUTLS_A_NO_RENEGOTIATION);
    } while ((got == GNUTLS_E_INTERRUPTED || got == GNUTLS_E_REHANDSHAKE ||
              got == GNUTLS_E_WARNING_ALERT_RECEIVED ||
              (got == GNUTLS_E_AGAIN && t->in.len > 0)) &&
             ++again < 64);
    pthread_mutex_unlock(&t->lock);
    return got;
}

/* Read from a layer: t, or the socket when t is NULL. */
static enum why
layer_read(struct end *e, struct tls *t, void *buf, size_t cap, size_t *n,
           struct fail *f)
{
    if (t == NULL)
        return sock_recv(e, buf, cap, 0, n, f);
    for (;;) {
        ssize_t got = tls_decrypt(t, buf, cap);
        enum why why;

        tls_flush_some(e, t);
        if (got > 0) {
            *n = (size_t)got;
            return WHY_NONE;
        }
        if (got == 0)
            return WHY_EOF;
        if (got != GNUTLS_E_AGAIN)
            return tls_failed(e, t, "read TLS", (int)got, f);
        why = tls_receive(e, t, f);
        if (why == WHY_EOF)
            return fail_tls(f, e->side, "read TLS",
                            GNUTLS_E_PREMATURE_TERMINATION);
        if (why != WHY_NONE)
            return why;
    }
}

static enum why
layer_write(struct end *e, struct tls *t, const void *buf, size_t len,
            struct fail *f)
{
    const char *at = buf;

    if (t == NULL) {
        struct iovec iov = {(void *)at, len};

        return sock_send(e, &iov, 1, 0, f);
    }
    while (len > 0) {
        enum why why;

        pthread_mutex_lock(&t->lock);
        for (int i = 0; i < TLS_BATCH && len > 0; i++) {
            size_t n = len < RECORD_MAX ? len : RECORD_MAX;
            ssize_t put = gnutls_record_send(t->session, at, n);

            if (put < 0) {
                pthread_mutex_unlock(&t->lock);
                return tls_failed(e, t, "write TLS", (int)put, f);
            }
            at += put;
            len -= (size_t)put;
        }
        pthread_mutex_unlock(&t->lock);
        if ((why = tls_flush(e, t, f)) != WHY_NONE)
            return why;
    }
    return WHY_NONE;
}

/* Encrypt into memory: `out` of t.  Needs t->lock. */
static enum why
tls_encrypt(struct end *e, struct tls *t, const char *at, size_t len,
            struct fail *f)
{
    while (len > 0) {
        size_t n = len < RECORD_MAX ? len : RECORD_MAX;
        ssize_t put = gnutls_record_send(t->session, at, n);

        if (put < 0)
            return tls_failed(e, t, "write TLS", (int)put, f);
        at += put;
        len -= (size_t)put;
    }
    return WHY_NONE;
}

/* Send what waits in t, or the layers below, as far as the socket takes it at
 * once.  The writer's, in no_wait mode: nobody else sends. */
static enum why
tls_send_now(struct end *e, struct tls *t, struct fail *f)
{
    enum why why = WHY_NONE;

    pthread_mutex_lock(&t->lock);
    if (t->under != NULL) {
        pthread_mutex_lock(&t->under->lock);
        why = tls_encrypt(e, t->under, t->out.at + t->out.start, t->out.len, f);
        pthread_mutex_unlock(&t->under->lock);
        t->out.start = t->out.len = 0;
    }
    while (why == WHY_NONE && t->out.len > 0) {
        ssize_t put = send(e->fd, t->out.at + t->out.start, t->out.len,
                           MSG_NOSIGNAL | MSG_DONTWAIT);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EAGAIN)
            break;
        if (put < 0) {
            why = fail_sys(f, e->side, "write", errno);
            break;
        }
        e->n_out += (uint64_t)put;
        bytes_consume(&t->out, (size_t)put);
    }
    pthread_mutex_unlock(&t->lock);
    if (why == WHY_NONE && t->under != NULL)
        return tls_send_now(e, t->under, f);
    return why;
}

static void
tls_free(struct tls *t)
{
    if (t == NULL)
        return;
    tls_free(t->under);
    gnutls_deinit(t->session);
    pthread_mutex_destroy(&t->lock);
    bytes_clear(&t->in);
    bytes_clear(&t->out);
    bytes_clear(&t->raw);
    free(t);
}

/* ---- public -------------------------------------------------------------- */

/*
 * end_init - an end on a connected, blocking socket, which it closes later.
 *
 * e        the caller's memory, no matter what was in it
 * fd       -1: an end that end_clear() may be called on, and nothing else
 * idle_ms  longest quiet within one read or write, >= 1
 */
void
end_init(struct end *e, int fd, enum side side, int idle_ms)
{
    *e = (struct end){.fd = fd, .side = side, .idle_ms = idle_ms};
}

/* Close the socket and release everything.  No other thread may use it. */
void
end_clear(struct end *e)
{
    tls_free(e->tls);
    e->tls = NULL;
    free(e->buf);
    e->buf = NULL;
    e->start = e->len = e->cap = 0;
    if (e->fd >= 0)
        close(e->fd);
    e->fd = -1;
}

/* The bytes read and not yet consumed; valid until the next end_fill(). */
struct span
end_ahead(const struct end *e)
{
    return e->len > 0 ? (struct span){e->buf + e->start, e->len}
                      : (struct span){"", 0};
}

/* The first n (<= end_ahead().len) buffered bytes are done with. */
void
end_consume(struct end *e, size_t n)
{
    assert(n <= e->len);
    e->start += n;
    e->len -= n;
    if (e->len == 0)
        e->start = 0;
}

/* Room behind the buffered bytes, growing towards cap when there is none, or
 * when the last read filled all there was: then more is waiting. */
static bool
buffer_room(struct end *e, size_t cap)
{
    if (e->filled && e->len == 0 && e->cap < cap) {
        free(e->buf);
        e->buf = malloc(cap);
        e->cap = e->buf != NULL ? cap : 0;
        e->start = 0;
    }
    e->filled = false;
    if (e->start > 0 && e->start + e->len == e->cap) {
        memmove(e->buf, e->buf + e->start, e->len);
        e->start = 0;
    }
    if (e->start + e->len == e->cap && e->cap < cap) {
        size_t more = e->cap == 0 ? END_BUF : e->cap * 2;
        char *buf = realloc(e->buf, more = more < cap ? more : cap);

        if (buf == NULL)
            return false;
        e->buf = buf;
        e->cap = more;
    }
    return e->start + e->len < e->cap;
}

/*
 * end_fill - read at least one more byte behind those already buffered.
 *
 * cap  the buffer may grow to this many bytes, when it is full; >= END_BUF
 * f    noted on every failure but WHY_EOF
 *
 * Returns WHY_NONE; WHY_EOF (a clean end); WHY_LIMIT: cap bytes are buffered;
 * WHY_IDLE, WHY_LATE, WHY_OVER: a clock or the watch; WHY_CUT: TLS ended
 * without close_notify; WHY_TLS, WHY_ALERT, WHY_SYS.
 * Thread: the reader.  Blocks: idle_ms, or to the deadline.
 */
enum why
end_fill(struct end *e, size_t cap, struct fail *f)
{
    size_t n;
    char byte;
    enum why why;

    /* Thousands of fibers may wait at once: a buffer each only when there is
     * something to put into it. */
    if (e->cap == 0 && e->tls == NULL && fiber_here() && !e->no_wait &&
        (why = sock_recv(e, &byte, 1, MSG_PEEK, &n, f)) != WHY_NONE)
        return why;
    if (!buffer_room(e, cap)) {
        if (e->len >= cap)
            return fail_own(f, e->side, WHY_LIMIT, "read");
        return fail_sys(f, SIDE_WEIR, "read", ENOMEM);
    }
    why = layer_read(e, e->tls, e->buf + e->start + e->len,
                     e->cap - e->start - e->len, &n, f);
    if (why == WHY_NONE) {
        e->len += n;
        e->filled = e->start == 0 && e->len == e->cap;
    }
    return why;
}

/*
 * end_read - up to cap (>= 1) bytes into buf, buffered ones first.
 *
 * n  bytes read, >= 1; written only on WHY_NONE
 *
 * Returns as end_fill() does.  Thread: the reader.
 */
enum why
end_read(struct end *e, void *buf, size_t cap, size_t *n, struct fail *f)
{
    assert(cap >= 1); /* a read of nothing would look like an end */
    if (e->len > 0) {
        *n = e->len < cap ? e->len : cap;
        memcpy(buf, e->buf + e->start, *n);
        end_consume(e, *n);
        return WHY_NONE;
    }
    return layer_read(e, e->tls, buf, cap, n, f);
}

/* Many pieces over TLS: small ones are joined, so that a head and its content
 * make one record. */
static enum why
tls_write_pieces(struct end *e, struct iovec *iov, int n, struct fail *f)
{
    char joined[RECORD_MAX];
    size_t len = 0;
    enum why why = WHY_NONE;

    for (int i = 0; i < n && why == WHY_NONE; i++) {
        const char *at = iov[i].iov_base;
        size_t left = iov[i].iov_len;

        if (len + left > sizeof joined) {
            why = layer_write(e, e->tls, joined, len, f);
            len = 0;
        }
        if (why == WHY_NONE && left > sizeof joined) {
            why = layer_write(e, e->tls, at, left, f);
        } else if (why == WHY_NONE && left > 0) {
            memcpy(joined + len, at, left);
            len += left;
        }
    }
    if (why == WHY_NONE && len > 0)
        why = layer_write(e, e->tls, joined, len, f);
    return why;
}

/*
 * end_write - all n pieces, or a failure.
 *
 * iov  the array is used up; the bytes are not changed
 *
 * Returns WHY_NONE; WHY_IDLE: the peer took nothing for idle_ms; WHY_TLS,
 * WHY_ALERT, WHY_SYS.  Thread: the writer.  Blocks: idle_ms without progress.
 */
enum why
end_write(struct end *e, struct iovec *iov, int n, struct fail *f)
{
    if (e->tls == NULL)
        return sock_send(e, iov, n, 0, f);
    return tls_write_pieces(e, iov, n, f);
}

/*
 * end_try_write - send what the socket takes without waiting.
 *
 * n  bytes taken, 0 to len; written only on WHY_NONE.  TLS takes all or, while
 *    end_unsent(), nothing: then call again when the socket can be written.
 *
 * Thread: the writer, who does all his writing by this.
 */
enum why
end_try_write(struct end *e, const void *at, size_t len, size_t *n,
              struct fail *f)
{
    struct tls *t = e->tls;
    ssize_t put;
    enum why why = WHY_NONE;

    *n = 0;
    if (t != NULL) {
        if (end_unsent(e) &&
            ((why = tls_send_now(e, t, f)) != WHY_NONE || end_unsent(e)))
            return why;
        pthread_mutex_lock(&t->lock);
        why = tls_encrypt(e, t, at, len, f);
        pthread_mutex_unlock(&t->lock);
        if (why != WHY_NONE)
            return why;
        *n = len;
        return tls_send_now(e, t, f);
    }
    if (len == 0)
        return WHY_NONE;
    do
        put = send(e->fd, at, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (put < 0 && errno == EINTR);
    if (put < 0)
        return errno == EAGAIN ? WHY_NONE
                               : fail_sys(f, e->side, "write", errno);
    e->n_out += (uint64_t)put;
    *n = (size_t)put;
    return WHY_NONE;
}

/* Does something that end_try_write() took wait for the socket? */
bool
end_unsent(struct end *e)
{
    struct tls *t = e->tls;
    bool unsent;

    if (t == NULL)
        return false;
    while (t->under != NULL)
        t = t->under;
    pthread_mutex_lock(&t->lock);
    unsent = t->out.len > 0;
    pthread_mutex_unlock(&t->lock);
    return unsent;
}

/*
 * end_finish - we shall write no more: close_notify (RFC 8446 section 6.1),
 * then FIN.  The other direction goes on.  Thread: the writer.
 */
enum why
end_finish(struct end *e, struct fail *f)
{
    enum why why = WHY_NONE;

    for (struct tls *t = e->tls; t != NULL && why == WHY_NONE; t = t->under) {
        pthread_mutex_lock(&t->lock);
        gnutls_bye(t->session, GNUTLS_SHUT_WR); /* into memory: cannot block */
        pthread_mutex_unlock(&t->lock);
        why = tls_flush(e, t, f);
    }
    if (shutdown(e->fd, SHUT_WR) != 0 && why == WHY_NONE)
        why = fail_sys(f, e->side, "finish", errno);
    return why;
}

/*
 * end_splice - move up to max bytes from one plain socket to another through
 * the kernel's pipe; no byte enters user space.
 *
 * from, to  ends without TLS; nothing is buffered in from
 * pipe_fds  an empty pipe; empty again on return, unless writing failed
 * n         bytes moved, >= 1; written only on WHY_NONE
 *
 * Returns as end_read() or end_write() do.  Source: splice(2).
 */
enum why
end_splice(struct end *from, struct end *to, const int pipe_fds[2], size_t max,
           size_t *n, struct fail *f)
{
    ssize_t got, left;
    int quiet_ms = 0;

    assert(from->tls == NULL && to->tls == NULL && from->len == 0);
    for (;;) {
        int wait = recv_wait(from, quiet_ms);

        if (from->deadline != 0 && now_ms() >= from->deadline)
            return fail_own(f, from->side, WHY_LATE, "splice in");
        if (wait != from->rcv_ms) {
            set_timeout(from->fd, SO_RCVTIMEO, wait);
            from->rcv_ms = wait;
        }
        got = splice(from->fd, NULL, pipe_fds[1], NULL, max, SPLICE_F_MOVE);
        if (got > 0)
            break;
        if (got == 0)
            return WHY_EOF;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return fail_sys(f, from->side, "splice in", errno);
        quiet_ms += wait;
        if (from->watch != NULL && from->watch->over(from->watch->arg))
            return fail_own(f, SIDE_WEIR, WHY_OVER, "splice in");
        if (quiet_ms >= from->idle_ms)
            return fail_own(f, from->side, WHY_IDLE, "splice in");
    }
    from->n_in += (uint64_t)got;
    if (to->snd_ms != to->idle_ms) {
        set_timeout(to->fd, SO_SNDTIMEO, to->idle_ms);
        to->snd_ms = to->idle_ms;
    }
    for (left = got; left > 0;) {
        ssize_t put = splice(pipe_fds[0], NULL, to->fd, NULL, (size_t)left,
                             SPLICE_F_MOVE);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EAGAIN)
            return fail_own(f, to->side, WHY_IDLE, "splice out");
        if (put <= 0)
            return fail_sys(f, to->side, "splice out", errno);
        to->n_out += (uint64_t)put;
        left -= put;
    }
    *n = (size_t)got;
    return WHY_NONE;
}

/* tls_decrypt() with what all layers have in memory: a record of ours may still
 * be wrapped in one of theirs.  AGAIN: bytes are missing. */
static ssize_t
decrypt_memory(struct tls *t, void *buf, size_t cap)
{
    for (;;) {
        ssize_t got = tls_decrypt(t, buf, cap), below;
        bool added;

        if (got != GNUTLS_E_AGAIN || t->under == NULL)
            return got;
        if (t->raw.cap == 0 && !bytes_room(&t->raw, TLS_IN))
            return got;
        below = decrypt_memory(t->under, t->raw.at, t->raw.cap);
        if (below <= 0) {
            if (below != GNUTLS_E_AGAIN) { /* for the next read to meet */
                t->under->stash = (int)below;
                t->under->stashed = true;
            }
            return got;
        }
        pthread_mutex_lock(&t->lock);
        added = bytes_add(&t->in, t->raw.at, (size_t)below);
        pthread_mutex_unlock(&t->lock);
        if (!added)
            return GNUTLS_E_MEMORY_ERROR;
    }
}

/*
 * end_pending - could end_fill() answer without waiting?
 *
 * Whole TLS records that are in memory are decrypted to find out; a part of
 * one does not count.  Thread: the reader.
 */
bool
end_pending(struct end *e)
{
    ssize_t got;

    if (e->len > 0 || e->tls == NULL || e->tls->stashed)
        return e->len > 0 || e->tls != NULL;
    if (!buffer_room(e, END_BUF))
        return false;
    got = decrypt_memory(e->tls, e->buf + e->start + e->len,
                         e->cap - e->start - e->len);
    if (got > 0) {
        e->len += (size_t)got;
        return true;
    }
    if (got == GNUTLS_E_AGAIN) { /* unless a layer below met its end */
        const struct tls *t = e->tls->under;

        while (t != NULL && !t->stashed)
            t = t->under;
        return t != NULL;
    }
    e->tls->stash = (int)got; /* an end or an error: for the next read */
    e->tls->stashed = true;
    return true;
}

/* Wait up to ms for something to read, or an end.  Thread: the reader. */
bool
end_wait(struct end *e, int ms)
{
    struct pollfd p = {.fd = e->fd, .events = POLLIN | POLLRDHUP};
    int rc;

    if (end_pending(e))
        return true;
    do
        rc = poll(&p, 1, ms);
    while (rc < 0 && errno == EINTR);
    return rc > 0;
}

/*
 * end_quiet - is an idle connection alive, with nothing unasked for to read?
 *
 * TLS 1.3 tickets that came meanwhile are taken in.  Does not wait.
 */
bool
end_quiet(struct end *e)
{
    char byte;
    struct tls *t = e->tls;
    struct fail scratch = {0};
    int64_t deadline = e->deadline;
    enum why why;
    ssize_t got;

    if (end_pending(e))
        return false;
    got = recv(e->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN;
    if (got == 0 || t == NULL)
        return false;
    if (t->under != NULL) /* what came may have been for the layer below */
        e->deadline = now_ms() + 1;
    why = tls_receive(e, t, &scratch);
    e->deadline = deadline;
    return (why == WHY_NONE || (why == WHY_LATE && t->under != NULL)) &&
           !end_pending(e);
}

/* Was the connection reset, or closed in both directions?  Does not wait.
 * A peer that only finished its own direction still reads: it is not gone. */
bool
end_gone(struct end *e)
{
    struct pollfd p = {.fd = e->fd};

    return poll(&p, 1, 0) > 0 && (p.revents & (POLLERR | POLLHUP)) != 0;
}

/* Wake whoever reads or writes; both fail from now on.  Any thread, as long
 * as the end is not cleared meanwhile. */
void
end_wake(struct end *e)
{
    if (e->fd >= 0)
        shutdown(e->fd, SHUT_RDWR);
}

/* Wake whoever reads, and nobody else: no FIN goes out, which an answer that
 * ends with its connection would take for its end.  Any thread. */
void
end_stop_reading(struct end *e)
{
    if (e->fd >= 0)
        shutdown(e->fd, SHUT_RD);
}

/* Give memory back while nothing is buffered: the end will be idle. */
void
end_drop_buffer(struct end *e)
{
    if (e->len == 0) {
        free(e->buf);
        e->buf = NULL;
        e->start = e->cap = 0;
    }
    for (struct tls *t = e->tls; t != NULL; t = t->under) {
        pthread_mutex_lock(&t->lock);
        if (t->in.len == 0)
            bytes_clear(&t->in);
        if (t->out.len == 0 && !t->sending)
            bytes_clear(&t->out);
        pthread_mutex_unlock(&t->lock);
        bytes_clear(&t->raw);
    }
}

/* A layer on top of those the end has; bytes already read are its input. */
static struct tls *
tls_push_layer(struct end *e, gnutls_session_t session)
{
    struct tls *t = calloc(1, sizeof *t);

    if (t == NULL)
        return NULL;
    t->session = session;
    t->under = e->tls;
    pthread_mutex_init(&t->lock, NULL);
    if (e->len > 0 && !bytes_add(&t->in, e->buf + e->start, e->len)) {
        pthread_mutex_destroy(&t->lock);
        free(t);
        return NULL;
    }
    end_consume(e, e->len);
    gnutls_transport_set_ptr(session, t);
    gnutls_transport_set_pull_function(session, tls_pull);
    gnutls_transport_set_pull_timeout_function(session, tls_pull_ready);
    gnutls_transport_set_vec_push_function(session, tls_push);
    e->tls = t;
    return t;
}

/* A TLS 1.3 client that refuses our certificate may not have switched its keys
 * yet: its alert comes in the clear, and GnuTLS cannot decrypt what is not
 * encrypted.  It may stand behind a change_cipher_spec record (RFC 8446
 * appendix D.4).  Returns the alert, -1: it was none. */
static int
plain_alert(const struct tls *t)
{
    static const unsigned char ccs[] = {20, 3, 3, 0, 1, 1};
    const unsigned char *at = t->last.at;
    size_t len = t->last.len;

    if (len >= sizeof ccs && memcmp(at, ccs, sizeof ccs) == 0) {
        at += sizeof ccs;
        len -= sizeof ccs;
    }
    if (len < 7 || at[0] != 21 || at[1] != 3 || at[3] != 0 || at[4] != 2)
        return -1;
    return at[6];
}

/*
 * end_handshake - TLS on top of what the end is now.
 *
 * session   made and configured by the caller, client or server; the end's
 *           from here on, on every outcome
 * deadline  point in ms at which the handshake fails
 *
 * Returns WHY_NONE, WHY_LATE, WHY_ALERT (code: the alert), WHY_TLS, WHY_CUT,
 * WHY_SYS.  After a failure an alert was sent and only end_clear() may follow.
 */
enum why
end_handshake(struct end *e, gnutls_session_t session, int64_t deadline,
              struct fail *f)
{
    struct tls *t = tls_push_layer(e, session);
    int64_t before = e->deadline;
    enum why why = WHY_NONE, sent;

    if (t == NULL) {
        gnutls_deinit(session);
        return fail_sys(f, SIDE_WEIR, "TLS handshake", ENOMEM);
    }
    e->deadline = deadline;
    for (;;) {
        struct fail ignored = {0};
        int rc;

        pthread_mutex_lock(&t->lock);
        rc = gnutls_handshake(session);
        if (rc < 0 && gnutls_error_is_fatal(rc) &&
            rc != GNUTLS_E_FATAL_ALERT_RECEIVED)
            gnutls_alert_send_appropriate(session, rc);
        pthread_mutex_unlock(&t->lock);
        if (rc == GNUTLS_E_DECRYPTION_FAILED && plain_alert(t) >= 0)
            why = fail_alert(f, e->side, "TLS handshake", plain_alert(t));
        else if (rc < 0 && gnutls_error_is_fatal(rc))
            why = tls_failed(e, t, "TLS handshake", rc, f);
        sent = tls_flush(e, t, why == WHY_NONE ? f : &ignored);
        if (why == WHY_NONE)
            why = sent;
        if (rc == GNUTLS_E_SUCCESS || why != WHY_NONE)
            break;
        if (rc != GNUTLS_E_AGAIN)
            continue; /* interrupted, or a warning alert */
        why = tls_receive(e, t, f);
        if (why == WHY_EOF)
            why = fail_tls(f, e->side, "TLS handshake",
                           GNUTLS_E_PREMATURE_TERMINATION);
        if (why != WHY_NONE)
            break;
    }
    e->deadline = before;
    return why;
}

/* Tell the peer why TLS ends here (RFC 8446 section 6.2), as far as that can
 * be done without waiting. */
void
end_alert(struct end *e, gnutls_alert_description_t alert)
{
    if (e->tls == NULL)
        return;
    pthread_mutex_lock(&e->tls->lock);
    gnutls_alert_send(e->tls->session, GNUTLS_AL_FATAL, alert);
    pthread_mutex_unlock(&e->tls->lock);
    tls_flush_some(e, e->tls);
}

/* The topmost TLS session, NULL for a plain end.  Stays the end's. */
gnutls_session_t
end_session(const struct end *e)
{
    return e->tls != NULL ? e->tls->session : NULL;
}
