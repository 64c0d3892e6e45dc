/*
 * bridge.c - a stream of a session, made an end.
 *
 * A tunnel through a parent that speaks HTTP/2 is a stream.  But whoever uses
 * a tunnel puts TLS on it, polls it, splices from it, as if it were a socket;
 * so it gets one: one end of a socket pair.  Between the other end and the
 * stream two fibers carry bytes, one each way.  They run on the thread of the
 * session's owner, who has the bytes in his hands anyway: no thread waits for
 * another, and a tunnel costs two descriptors and two small stacks.
 *
 * An end of either direction, and a cut, go through as what they are.  The
 * clocks are those of whoever uses the end: here nothing is ever too late.
 *
 * Follows  RFC 9113 section 8.5.
 * Owns     the stream and its end of the pair.
 * Threads  the owner of the stream's session, but for bridge_stream().
 * Blocks   never, the fibers apart.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proxy.h"

enum { LOOK_MS = 60000 /* to be woken from is enough; this is for luck */ };

struct bridge { /* all of it the owner's */
    struct stream *stream;
    struct end end;
    int n_left;     /* fibers that live */
    bool down_over; /* nothing comes from the stream any more */
};

static void
leave(struct bridge *b)
{
    if (--b->n_left > 0)
        return;
    end_clear(&b->end);
    stream_give(b->stream);
    free(b);
}

/* From the stream to the end. */
static void
carry_down(void *arg)
{
    struct bridge *b = arg;
    struct http *http = &b->stream->http;
    struct fail f = {0};
    enum why why;

    do {
        struct span got;
        struct iovec iov;

        why = http->ops->read_body(http, &got, &f);
        if (why == WHY_NONE) {
            iov = (struct iovec){(void *)got.at, got.len};
            why = end_write(&b->end, &iov, 1, &f);
        }
    } while (why == WHY_NONE);
    if (why == WHY_EOF)
        why = end_finish(&b->end, &f);
    if (why != WHY_NONE) {
        http->ops->abort(http, WHY_CUT);
        end_cut(&b->end); /* carry_up() wakes, too */
    }
    b->down_over = true;
    leave(b);
}

/* Everything that the end's user writes, up to his end. */
static enum why
carry_all_up(struct bridge *b, struct fail *f)
{
    struct http *http = &b->stream->http;
    enum why why;

    while ((why = end_fill(&b->end, END_BUF_BULK, f)) == WHY_NONE) {
        struct span ahead = end_ahead(&b->end);

        why = http->ops->write_body(http, ahead, f);
        if (why == WHY_NONE)
            why = http->ops->flush(http, f);
        if (why != WHY_NONE)
            return why;
        end_consume(&b->end, ahead.len);
        if (ahead.len < END_BUF)
            end_drop_buffer(&b->end);
    }
    if (why == WHY_EOF)
        why = http->ops->write_end(http, NULL, f);
    return why == WHY_NONE ? http->ops->flush(http, f) : why;
}

/* From the end to the stream.  A user who has left, and not only finished, has
 * no use for what still comes down. */
static void
carry_up(void *arg)
{
    struct bridge *b = arg;
    struct http *http = &b->stream->http;
    struct fail f = {0};
    enum why why = carry_all_up(b, &f);

    while (why == WHY_NONE && !b->down_over && !end_gone(&b->end))
        fiber_sleep(b->end.fd, 0, LOOK_MS);
    if (!b->down_over || why != WHY_NONE)
        http->ops->abort(http, WHY_CUT);
    leave(b);
}

/* The owner begins. */
static void
begin(void *arg, struct fibers *fibers)
{
    struct bridge *b = arg;

    if (!fibers_start(fibers, carry_down, b)) {
        b->stream->http.ops->abort(&b->stream->http, WHY_BUSY);
        end_cut(&b->end);
        b->down_over = true;
        leave(b);
    }
    if (!fibers_start(fibers, carry_up, b)) {
        b->stream->http.ops->abort(&b->stream->http, WHY_BUSY);
        end_cut(&b->end);
        leave(b);
    }
}

/*
 * bridge_stream - an end whose bytes are the content of a stream.
 *
 * s        a CONNECT that was granted; its user's reference is the bridge's
 *          from here on.  On failure it is still the caller's
 * end      made, for the caller to clear
 * idle_ms  of it
 *
 * Returns WHY_NONE; WHY_SYS, WHY_BUSY.  Thread: the stream's user.
 */
enum why
bridge_stream(struct stream *s, struct end *end, int idle_ms, struct fail *f)
{
    struct bridge *b = calloc(1, sizeof *b);
    int fds[2];

    if (b == NULL)
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
        free(b);
        return fail_sys(f, SIDE_WEIR, "socket pair", errno);
    }
    end_init(&b->end, fds[0], SIDE_WEIR, INT_MAX);
    end_init(end, fds[1], SIDE_ORIGIN, idle_ms);
    if (!end_pair(&b->end, end)) {
        end_clear(&b->end);
        end_clear(end);
        free(b);
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    }
    b->stream = s;
    b->n_left = 2;
    s->http.idle_ms = INT_MAX;
    s->http.watch = NULL;
    s->idle_ms = INT_MAX; /* of writes */
    stream_serve(s, begin, b);
    return WHY_NONE;
}
