/*
 * t/stream.c - both sides of a stream as threads: an owner that moves what
 * lies in it, and users who read and write as if it were a socket.
 */
#include <poll.h>
#include <stdlib.h>

#include "proxy.h"
#include "tap.h"

enum {
    STREAMS = 8,
    BYTES = 4000000, /* each way on each stream */
    WINDOW = 65536,
    PIECE = 7001,
};

struct echo { /* an owner who sends back what comes, by all his streams */
    struct hub hub;
    struct stream *s[STREAMS];
    atomic_bool stop;
    size_t unread[STREAMS]; /* what the users have not given credit for */
    size_t most;
    bool ended[STREAMS];
    pthread_t thread;
};

/* Take what a stream's user wrote and give it back to him, as far as a window
 * allows.  Returns false when there is nothing to do. */
static bool
echo_some(struct echo *e, size_t i)
{
    struct stream *s = e->s[i];
    char piece[PIECE];
    size_t n;
    bool end;

    e->unread[i] -= stream_unread(s);
    pthread_mutex_lock(&e->hub.lock);
    n = s->out.len < sizeof piece ? s->out.len : sizeof piece;
    if (n > WINDOW - e->unread[i])
        n = WINDOW - e->unread[i];
    if (n > 0)
        memcpy(piece, s->out.at + s->out.start, n);
    s->out.start += n;
    s->out.len -= n;
    if (s->out.len == 0)
        s->out.start = 0;
    end = s->out_end && s->out.len == 0 && !e->ended[i];
    if (n > 0)
        stream_tell(s);
    pthread_mutex_unlock(&e->hub.lock);
    if (n > 0 && !stream_put_data(s, piece, n))
        return false;
    e->unread[i] += n;
    if (e->unread[i] > e->most)
        e->most = e->unread[i];
    if (end) {
        e->ended[i] = true;
        stream_put_end(s, NULL);
    }
    return n > 0 || end;
}

static void *
echo_main(void *arg)
{
    struct echo *e = arg;

    while (!atomic_load(&e->stop)) {
        bool some = false;

        while (hub_call(&e->hub) != NULL)
            some = true;
        for (size_t i = 0; i < STREAMS; i++)
            some = echo_some(e, i) || some;
        if (!some && hub_sleep(&e->hub)) {
            struct pollfd p = {.fd = e->hub.wake_fd, .events = POLLIN};

            (void)poll(&p, 1, 1000);
            hub_awake(&e->hub);
        }
    }
    return NULL;
}

struct user {
    struct http *http;
    unsigned sum;
    size_t n;
    enum why why;
    pthread_t thread;
};

static unsigned
sum_of(unsigned sum, const char *at, size_t len)
{
    for (size_t i = 0; i < len; i++)
        sum = sum * 31 + (unsigned char)at[i];
    return sum;
}

static void *
writer_main(void *arg)
{
    struct user *u = arg;
    struct fail f = {0};
    char piece[PIECE];

    for (u->n = 0; u->n < BYTES && u->why == WHY_NONE;) {
        size_t n = 1 + u->n % sizeof piece;

        if (n > BYTES - u->n)
            n = BYTES - u->n;
        for (size_t i = 0; i < n; i++)
            piece[i] = (char)(u->n + i * 7);
        u->sum = sum_of(u->sum, piece, n);
        u->n += n;
        u->why = u->http->ops->write_body(u->http, (struct span){piece, n}, &f);
        if (u->why == WHY_NONE && u->n % 3 == 0)
            u->why = u->http->ops->flush(u->http, &f);
    }
    if (u->why == WHY_NONE)
        u->why = u->http->ops->write_end(u->http, NULL, &f);
    if (u->why == WHY_NONE)
        u->why = u->http->ops->flush(u->http, &f);
    return NULL;
}

static void *
reader_main(void *arg)
{
    struct user *u = arg;
    struct fail f = {0};
    struct span got;

    while ((u->why = u->http->ops->read_body(u->http, &got, &f)) == WHY_NONE) {
        u->sum = sum_of(u->sum, got.at, got.len);
        u->n += got.len;
    }
    return NULL;
}

static void
test_echo(void)
{
    struct echo e = {.most = 0};
    struct user in[STREAMS] = {{0}}, out[STREAMS] = {{0}};
    int same = 0;

    ok(hub_init(&e.hub), "a hub");
    for (size_t i = 0; i < STREAMS; i++) {
        e.s[i] = stream_new(&e.hub, SIDE_ORIGIN, HTTP_2, 20000);
        in[i].http = out[i].http = &e.s[i]->http;
    }
    pthread_create(&e.thread, NULL, echo_main, &e);
    for (size_t i = 0; i < STREAMS; i++) {
        pthread_create(&in[i].thread, NULL, reader_main, &in[i]);
        pthread_create(&out[i].thread, NULL, writer_main, &out[i]);
    }
    for (size_t i = 0; i < STREAMS; i++) {
        pthread_join(out[i].thread, NULL);
        pthread_join(in[i].thread, NULL);
        same += in[i].n == BYTES && in[i].sum == out[i].sum &&
                in[i].why == WHY_EOF && out[i].why == WHY_NONE;
    }
    is_int(same, STREAMS, "all bytes come back as they went, in order");
    ok(e.most <= WINDOW, "and never more than a window of them waits");
    for (size_t i = 0; i < STREAMS; i++)
        ok(in[i].http->ops->complete(in[i].http), "stream %zu is complete", i);
    is_int((long long)hub_live(&e.hub), STREAMS, "all have a user");
    for (size_t i = 0; i < STREAMS; i++)
        stream_give(e.s[i]);
    is_int((long long)hub_live(&e.hub), 0, "none has");
    atomic_store(&e.stop, true);
    pthread_join(e.thread, NULL);
    while (hub_call(&e.hub) != NULL)
        ;
    for (size_t i = 0; i < STREAMS; i++)
        stream_drop(e.s[i]);
    hub_clear(&e.hub);
}

/* ---- one thread: what is said when nothing moves ------------------------- */

struct pair {
    struct hub hub;
    struct stream *s;
};

static struct http *
pair_open(struct pair *p, enum side side, int idle_ms)
{
    ok(hub_init(&p->hub), "a hub");
    p->s = stream_new(&p->hub, side, HTTP_2, idle_ms);
    return &p->s->http;
}

static void
pair_close(struct pair *p)
{
    stream_give(p->s);
    while (hub_call(&p->hub) != NULL)
        ;
    stream_drop(p->s);
    hub_clear(&p->hub);
}

static bool
says_yes(void *arg)
{
    (*(int *)arg)++;
    return true;
}

static void
test_waits(void)
{
    struct pair p;
    struct http *http = pair_open(&p, SIDE_ORIGIN, 30);
    char big[200000];
    struct fail f = {0};
    struct span got;
    int asked = 0;
    struct watch watch = {says_yes, &asked};

    is_int(http->ops->read_body(http, &got, &f), WHY_IDLE, "a quiet peer");
    is_int(f.side, SIDE_ORIGIN, "is to blame");
    f = (struct fail){0};
    http->watch = &watch;
    http->idle_ms = 60000;
    is_int(http->ops->read_body(http, &got, &f), WHY_OVER,
           "the watch ends a wait");
    is_int(asked, 1, "asked once");
    http->watch = NULL;
    memset(big, 'x', sizeof big);
    f = (struct fail){0};
    is_int(http->ops->write_body(http, (struct span){big, sizeof big}, &f),
           WHY_IDLE, "an owner who takes nothing stops the writer in time");
    pair_close(&p);
}

static void
test_ends(void)
{
    struct pair p;
    struct http *http = pair_open(&p, SIDE_ORIGIN, 1000);
    struct fail f = {0};
    struct span got;
    struct head head;

    head_init(&head);
    head.status = 200;
    ok(!http->ops->pending(http), "nothing is there");
    ok(stream_put_head(p.s, &head), "a head");
    ok(stream_put_data(p.s, "abc", 3), "content");
    stream_break(p.s, WHY_CUT, "stream reset", 8, NULL);
    ok(http->ops->pending(http), "something is there");
    is_int(http->ops->read_head(http, &head, &f), WHY_NONE,
           "what came before a reset is read: the head");
    is_int(head.status, 200, "as it was");
    is_int(http->ops->read_body(http, &got, &f), WHY_NONE, "the content");
    ok(span_is(got, "abc"), "all of it");
    is_int(http->ops->read_body(http, &got, &f), WHY_CUT, "then the reset");
    is_int(f.code, 8, "with its code");
    ok(http->ops->gone(http), "the peer is gone");
    f = (struct fail){0};
    is_int(http->ops->write_body(http, (struct span){"x", 1}, &f), WHY_NONE,
           "a write waits in memory");
    is_int(http->ops->flush(http, &f), WHY_SYS, "and fails like a socket's");
    head_clear(&head);
    pair_close(&p);

    http = pair_open(&p, SIDE_CLIENT, 1000);
    f = (struct fail){0};
    http->ops->abort(http, WHY_OVER);
    is_int(http->ops->read_body(http, &got, &f), WHY_OVER, "after abort");
    ok(hub_call(&p.hub) == p.s, "the owner is called");
    ok(p.s->aborted && p.s->abort_why == WHY_OVER, "and told why");
    ok(http->ops->unwanted(http), "a stream needs no reading past");
    pair_close(&p);

    (void)pair_open(&p, SIDE_CLIENT, 1000);
    hub_over(&p.hub);
    ok(stream_new(&p.hub, SIDE_CLIENT, HTTP_2, 1) == NULL,
       "no stream of a session that is over");
    pair_close(&p);
}

int
main(void)
{
    test_echo();
    test_waits();
    test_ends();
    return done_testing();
}
