/*
 * t/lots.c - packets in lots: of one size and of many, empty ones, the largest,
 * more than there is room for, and nobody there.
 */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proxy.h"
#include "t/tap.h"

struct two { /* sockets, connected to each other */
    int a, b;
};

static int
udp(struct sockaddr_in *at)
{
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    *at = (struct sockaddr_in){.sin_family = AF_INET};
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)at, len) != 0 ||
        getsockname(fd, (struct sockaddr *)at, &len) != 0)
        abort();
    return fd;
}

static struct two
two_new(void)
{
    struct sockaddr_in a, b;
    struct two t = {udp(&a), udp(&b)};

    if (connect(t.a, (struct sockaddr *)&b, sizeof b) != 0 ||
        connect(t.b, (struct sockaddr *)&a, sizeof a) != 0)
        abort();
    lots_set_up(t.a);
    lots_set_up(t.b);
    return t;
}

static void
two_close(struct two *t)
{
    close(t->a);
    close(t->b);
}

static bool
comes(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 10000) == 1;
}

/* Packets of these sizes, each filled with its number: they come as they went.
 */
static void
check(struct two *t, const size_t *sizes, int n, bool one_by_one,
      const char *what)
{
    static char text[LOT_MAX][65536];
    struct iovec all[LOT_MAX];
    struct traffic up = {0}, down = {0};
    struct lots *l = lots_new();
    atomic_bool single = one_by_one;
    uint64_t sum = 0;
    bool same = true;
    int got = 0;

    for (int i = 0; i < n; i++) {
        memset(text[i], i + 1, sizes[i]);
        all[i] = (struct iovec){text[i], sizes[i]};
        sum += sizes[i];
    }
    is_int(lots_send(t->a, all, n, &single, &up), 0, "%s: sent", what);
    while (got < n && comes(t->b)) {
        char *at;
        size_t len;

        is_int(lots_receive(t->b, l, &down), 0, "%s: received", what);
        while (lots_next(l, &at, &len)) {
            at[-1] = 0; /* ours */
            same = same && got < n && len == sizes[got] &&
                   memcmp(at, text[got], len) == 0;
            got++;
        }
    }
    is_int(got, n, "%s: all of them", what);
    ok(same, "%s: as they were", what);
    ok(up.packets == (uint64_t)n && up.bytes == sum && up.dropped == 0 &&
           down.dropped == 0,
       "%s: counted", what);
    lots_free(l);
}

static void
test_sizes(void)
{
    static const size_t one[] = {5}, empty[] = {0}, large[] = {65507},
                        mixed[] = {1200, 1200, 1200, 7,    9,    9, 0, 0, 1200,
                                   1,    1300, 1300, 1300, 1299, 2, 0, 2};
    size_t same[LOT_MAX];
    struct two t = two_new();

    for (int i = 0; i < LOT_MAX; i++)
        same[i] = 900; /* 64 of them are just below a lot's bytes */
    check(&t, one, 1, false, "one");
    check(&t, empty, 1, false, "an empty one");
    check(&t, large, 1, false, "the largest");
    check(&t, mixed, 17, false, "of all sizes");
    check(&t, same, LOT_MAX, false, "a whole lot");
    for (int i = 0; i < LOT_MAX; i++)
        same[i] = 1400; /* more than one lot takes */
    check(&t, same, LOT_MAX, false, "more than a lot");
    check(&t, mixed, 17, true, "one by one");
    two_close(&t);
}

/* Nothing there is no failure. */
static void
test_nothing(void)
{
    struct two t = two_new();
    struct traffic count = {0};
    struct lots *l = lots_new();
    char *at;
    size_t len;

    is_int(lots_receive(t.b, l, &count), 0, "nothing has come");
    ok(!lots_next(l, &at, &len), "and nothing is handed out");
    lots_free(l);
    two_close(&t);
}

/* What is lost for want of room is told with what comes next. */
static void
test_loss(void)
{
    struct two t = two_new();
    struct traffic up = {0}, down = {0};
    struct lots *l = lots_new();
    atomic_bool single = true; /* else the kernel counts lots */
    int least = 1, n = 0;
    char text[1000] = {0}, *at;
    struct iovec one;
    size_t len;

    setsockopt(t.b, SOL_SOCKET, SO_RCVBUF, &least, sizeof least);
    for (int i = 0; i < 1000; i++) {
        one = (struct iovec){text, sizeof text};
        lots_send(t.a, &one, 1, &single, &up);
    }
    for (int round = 0; round < 2; round++) {
        while (lots_receive(t.b, l, &down) == 0 && lots_next(l, &at, &len))
            do
                n++;
            while (lots_next(l, &at, &len));
        if (round > 0)
            break;
        one = (struct iovec){text, sizeof text};
        lots_send(t.a, &one, 1, &single, &up);
        ok(comes(t.b), "one more comes");
    }
    is_int(up.packets, 1001, "sent");
    ok(n < 1001, "not all have come");
    is_int(n + (int)down.dropped, 1001, "the rest is counted");
    lots_free(l);
    two_close(&t);
}

static void
test_nobody(void)
{
    struct two t = two_new();
    struct traffic count = {0};
    struct lots *l = lots_new();
    atomic_bool single = false;
    struct iovec one = {(void *)"x", 1};

    close(t.b);
    is_int(lots_send(t.a, &one, 1, &single, &count), 0, "sent to nobody");
    ok(comes(t.a), "ICMP answers");
    is_int(lots_receive(t.a, l, &count), ECONNREFUSED, "nobody is there");
    lots_free(l);
    close(t.a);
}

int
main(void)
{
    test_sizes();
    test_nothing();
    test_loss();
    test_nobody();
    return done_testing();
}
