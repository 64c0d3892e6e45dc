/*
 * sock.c - an end's socket, and the two clocks of waiting for it.
 *
 * A thread waits in recv(2) and send(2), by SO_RCVTIMEO and SO_SNDTIMEO; a
 * fiber lets its thread wait.  Either waits for idle_ms at most without a byte,
 * and not beyond the deadline.
 *
 * Owns     nothing: the socket is the end's.
 * Threads  one that reads and one that writes.
 * Blocks   in recv(2), send(2), splice(2), for at most idle_ms.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/time.h>

#include "proxy.h"

enum { WATCH_MS = 1000 }; /* how often a waiting end asks its watch */

static void
set_timeout(int fd, int which, int ms)
{
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};

    /* It fails only for a bad fd or value, and both would be our bug. */
    if (setsockopt(fd, SOL_SOCKET, which, &tv, sizeof tv) != 0)
        assert(errno == EINVAL || errno == ENOTCONN);
}

/* The other side has finished.  Or it was cut: between ends of our own no RST
 * tells them apart. */
static enum why
peer_ended(const struct end *e, struct fail *f)
{
    if (e->peers != NULL && atomic_load(&e->peers->cut[!e->which]))
        return fail_own(f, e->side, WHY_CUT, "read");
    return WHY_EOF;
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
    e->drained = got > 0 && (size_t)got < cap;
    *n = (size_t)got;
    return got > 0 ? WHY_NONE : peer_ended(e, f);
}

/* A read waited for so long and brought nothing.  WHY_NONE: try again. */
static enum why
recv_nothing(struct end *e, ssize_t got, int waited_ms, int *quiet_ms,
             const char *op, struct fail *f)
{
    if (got == 0)
        return peer_ended(e, f);
    if (errno == EINTR)
        return WHY_NONE;
    if (errno != EAGAIN)
        return fail_sys(f, e->side, op, errno);
    *quiet_ms += waited_ms;
    if (e->watch != NULL && e->watch->over(e->watch->arg))
        return fail_own(f, SIDE_WEIR, WHY_OVER, op);
    if (*quiet_ms >= e->idle_ms)
        return fail_own(f, e->side, WHY_IDLE, op);
    return WHY_NONE;
}

/*
 * sock_recv - read what is there, or wait for it within the end's clocks.
 *
 * Returns as end_fill() does.  Thread: the reader.
 */
enum why
sock_recv(struct end *e, void *buf, size_t cap, int flags, size_t *n,
          struct fail *f)
{
    int quiet_ms = 0;
    enum why why = WHY_NONE;

    if (e->no_wait)
        return sock_recv_now(e, buf, cap, n, f);
    while (why == WHY_NONE) {
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
        why = recv_nothing(e, got, wait, &quiet_ms, "read", f);
    }
    return why;
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

/* All of it, or a failure; as end_write().  Thread: the writer. */
enum why
sock_send(struct end *e, struct iovec *iov, int n, int flags, struct fail *f)
{
    bool fiber = fiber_here();
    int64_t from = fiber ? now_ms() : 0;

    iov_advance(&iov, &n, 0);
    while (n > 0) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
        /* As with reads: most are done at once, and need no clock. */
        bool now = fiber || e->snd_ms != e->idle_ms;
        ssize_t put = sendmsg(e->fd, &msg,
                              MSG_NOSIGNAL | flags | (now ? MSG_DONTWAIT : 0));

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EAGAIN && now && !fiber) {
            set_timeout(e->fd, SO_SNDTIMEO, e->idle_ms);
            e->snd_ms = e->idle_ms;
            continue;
        }
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

/* Up to max bytes (*n, >= 1) from the socket into the pipe; as sock_recv(). */
enum why
sock_splice_in(struct end *e, int pipe_fd, size_t max, size_t *n,
               struct fail *f)
{
    int quiet_ms = 0;
    enum why why = WHY_NONE;

    while (why == WHY_NONE) {
        int wait = recv_wait(e, quiet_ms);
        ssize_t got;

        if (e->deadline != 0 && now_ms() >= e->deadline)
            return fail_own(f, e->side, WHY_LATE, "splice in");
        if (wait != e->rcv_ms) {
            set_timeout(e->fd, SO_RCVTIMEO, wait);
            e->rcv_ms = wait;
        }
        got = splice(e->fd, NULL, pipe_fd, NULL, max, SPLICE_F_MOVE);
        if (got > 0) {
            e->n_in += (uint64_t)got;
            *n = (size_t)got;
            return WHY_NONE;
        }
        why = recv_nothing(e, got, wait, &quiet_ms, "splice in", f);
    }
    return why;
}

/* The n bytes that are in the pipe to the socket; as sock_send(). */
enum why
sock_splice_out(struct end *e, int pipe_fd, size_t n, struct fail *f)
{
    if (e->snd_ms != e->idle_ms) {
        set_timeout(e->fd, SO_SNDTIMEO, e->idle_ms);
        e->snd_ms = e->idle_ms;
    }
    while (n > 0) {
        ssize_t put = splice(pipe_fd, NULL, e->fd, NULL, n, SPLICE_F_MOVE);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EAGAIN)
            return fail_own(f, e->side, WHY_IDLE, "splice out");
        if (put <= 0)
            return fail_sys(f, e->side, "splice out", errno);
        e->n_out += (uint64_t)put;
        n -= (size_t)put;
    }
    return WHY_NONE;
}
