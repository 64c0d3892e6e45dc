/*
 * end.c - an endpoint: a socket, or TLS over a socket, or TLS over TLS.
 *
 * Reads and writes block, within two clocks: idle_ms between bytes and a
 * deadline.  A reader may look at bytes before it consumes them, which is how
 * detect.c finds out what a client speaks and hello.c reads a ClientHello.
 *
 * Underneath are sock.c, which waits, and layer.c, which has the TLS.
 *
 * Owns     the socket, its TLS layers and the read buffer.
 * Threads  one that reads and one that writes; end_wake() from any.
 * Blocks   in recv(2), send(2), poll(2), splice(2), for at most idle_ms.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

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
    layer_free(e->tls);
    e->tls = NULL;
    free(e->buf);
    e->buf = NULL;
    e->start = e->len = e->cap = 0;
    if (e->fd >= 0)
        close(e->fd);
    e->fd = -1;
    if (e->peers != NULL && atomic_fetch_sub(&e->peers->n_refs, 1) == 1)
        free(e->peers);
    e->peers = NULL;
}

/*
 * end_pair - the sockets of two ends are each other's peer: socketpair(2).
 *
 * From now on each can tell whether the other was cut.  Returns false: out of
 * memory.
 */
bool
end_pair(struct end *a, struct end *b)
{
    struct peers *peers = calloc(1, sizeof *peers);

    if (peers == NULL)
        return false;
    atomic_init(&peers->n_refs, 2);
    a->peers = b->peers = peers;
    a->which = 0;
    b->which = 1;
    return true;
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
    return layer_write(e, iov, n, f);
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
    ssize_t put;

    *n = 0;
    if (e->tls != NULL)
        return layer_try_write(e, at, len, n, f);
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

/*
 * end_finish - we shall write no more: close_notify (RFC 8446 section 6.1),
 * then FIN.  The other direction goes on.  Thread: the writer.
 */
enum why
end_finish(struct end *e, struct fail *f)
{
    enum why why = layer_finish(e, f);

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
    size_t got = 0;
    enum why why;

    assert(from->tls == NULL && to->tls == NULL && from->len == 0);
    why = sock_splice_in(from, pipe_fds[1], max, &got, f);
    if (why == WHY_NONE)
        why = sock_splice_out(to, pipe_fds[0], got, f);
    if (why == WHY_NONE)
        *n = got;
    return why;
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
    size_t n = 0;
    bool pending;

    if (e->len > 0 || e->tls == NULL)
        return e->len > 0;
    if (!buffer_room(e, END_BUF))
        return false;
    pending = layer_pending(e->tls, e->buf + e->start + e->len,
                            e->cap - e->start - e->len, &n);
    e->len += n;
    return pending;
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
    ssize_t got;

    if (end_pending(e))
        return false;
    got = recv(e->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN;
    return got > 0 && e->tls != NULL && layer_take_in(e) && !end_pending(e);
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

/* The peer shall see that bytes are missing: RST when the end is cleared, not
 * FIN.  SHUT_RD wakes the thread that reads here and tells a TCP peer nothing.
 * No end_finish() may follow.  Any thread. */
void
end_cut(struct end *e)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};

    if (e->peers != NULL)
        atomic_store(&e->peers->cut[e->which], true);
    setsockopt(e->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
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
    layer_drop_buffers(e->tls);
}
