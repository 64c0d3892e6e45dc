/*
 * t/listen.c - listeners, parking, refusal and drain, in a whole weir but for
 * its main().
 *
 * linger_ms is long in some tests: then one client with half a request keeps
 * one worker busy for as long as the test wants.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/tap.h"

enum { LIMIT_MS = 20000 };

static const char request[] = "HEAD / HTTP/1.1\r\nHost: weir.invalid\r\n\r\n";

/* ---- a weir, and its clients --------------------------------------------- */

static const char *dir;

static struct config *
settings(const char *const *more, size_t n)
{
    char *sets[16], home[256], err[1024];
    struct config *conf;

    snprintf(home, sizeof home, "intercept.dir=%s", dir);
    sets[0] = home;
    sets[1] = "log.level=error";
    for (size_t i = 0; i < n; i++)
        sets[2 + i] = (char *)more[i];
    conf = config_read(NULL, sets, 2 + n, err, sizeof err);
    if (conf == NULL)
        diag("%s", err);
    return conf;
}

static bool
weir_open(struct weir *w, const char *const *more, size_t n)
{
    struct config *conf = settings(more, n);
    struct pool_conf pool = {.name = "weir-c", .serve = listeners_serve};
    struct pool_conf streams = {.name = "weir-x",
                                .serve = serve_job,
                                .n_workers = 4,
                                .n_queue = 4,
                                .stack_bytes = 262144};
    char err[1024] = "";

    memset(w, 0, sizeof *w);
    if (conf == NULL)
        return false;
    atomic_store(&w->config, conf);
    pool.n_workers = (size_t)conf->workers;
    pool.n_queue = (size_t)conf->queue;
    pool.stack_bytes = (size_t)conf->stack_kib * 1024;
    if (log_setup(conf, err, sizeof err) &&
        listeners_new(w, conf, err, sizeof err) != NULL &&
        (w->mitm = mitm_new(conf, err, sizeof err)) != NULL &&
        (w->upstreams = upstreams_new(conf, err, sizeof err)) != NULL &&
        (w->conns = pool_new(&pool)) != NULL &&
        (w->exchanges = pool_new(&streams)) != NULL &&
        listeners_start(w->listeners, err, sizeof err))
        return true;
    diag("%s", err);
    return false;
}

static void
weir_close(struct weir *w)
{
    ok(listeners_wait_idle(w->listeners, LIMIT_MS), "no connection is left");
    listeners_free(w->listeners);
    pool_free(w->conns);
    pool_free(w->exchanges);
    upstreams_free(w->upstreams);
    mitm_free(w->mitm);
    config_give(atomic_load(&w->config));
}

/* A client that says `text`; its reads have a limit. */
static int
client(uint16_t port, const char *text)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons(port),
                             .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct timeval limit = {LIMIT_MS / 1000, 0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t len = strlen(text);

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0 ||
        send(fd, text, len, MSG_NOSIGNAL) != (ssize_t)len) {
        diag("client: %s", strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

/* Read an answer's head: its status; 0: the end came; -1: neither in time. */
static int
status_of(int fd)
{
    char head[4096];
    size_t len = 0;
    ssize_t got = 1;

    while (len < sizeof head - 1 && got == 1) {
        got = recv(fd, head + len, 1, 0);
        len += got == 1;
        head[len] = '\0';
        if (len >= 4 && strcmp(head + len - 4, "\r\n\r\n") == 0)
            return atoi(head + 9);
    }
    return got == 0 && len == 0 ? 0 : -1;
}

/* Everything until the end; false: it did not come in time. */
static bool
reads_end(int fd)
{
    char buf[4096];
    ssize_t got;

    do
        got = recv(fd, buf, sizeof buf, 0);
    while (got > 0);
    return got == 0;
}

static bool
live_is(struct weir *w, size_t n)
{
    int64_t until = now_ms() + LIMIT_MS;

    while (listeners_live(w->listeners) != n && now_ms() < until)
        poll(NULL, 0, 5);
    return listeners_live(w->listeners) == n;
}

static bool
idle_is(struct weir *w, size_t n)
{
    int64_t until = now_ms() + LIMIT_MS;

    while (pool_idle(w->conns) != n && now_ms() < until)
        poll(NULL, 0, 5);
    return pool_idle(w->conns) == n;
}

/* ---- listening ----------------------------------------------------------- */

static void
test_addresses(void)
{
    static const char *const sets[] = {
        "proxy.listen=127.0.0.1:0 [::1]:0",
    };
    char at[ADDR_MAX], want[ADDR_MAX];
    struct weir w;

    if (!ok(weir_open(&w, sets, 1), "two listeners"))
        return;
    is_int(listeners_count(w.listeners), 2, "are two");
    is_int(w.n_ports, 2, "with two ports");
    snprintf(want, sizeof want, "127.0.0.1:%d", w.ports[0]);
    listeners_address(w.listeners, 0, at, sizeof at);
    is_str(at, want, "IPv4, as bound");
    snprintf(want, sizeof want, "[::1]:%d", w.ports[1]);
    listeners_address(w.listeners, 1, at, sizeof at);
    is_str(at, want, "IPv6, as bound");
    weir_close(&w);
}

/* Our descriptor of the connection whose other end is `client`. */
static int
accepted_fd(int client)
{
    struct sockaddr_in mine = {0}, peer = {0};
    socklen_t len = sizeof mine;
    DIR *fds = opendir("/proc/self/fd");
    struct dirent *e;
    int found = -1;

    getsockname(client, (struct sockaddr *)&mine, &len);
    while (found < 0 && (e = readdir(fds)) != NULL) {
        len = sizeof peer;
        if (getpeername(atoi(e->d_name), (struct sockaddr *)&peer, &len) == 0 &&
            peer.sin_family == AF_INET && peer.sin_port == mine.sin_port)
            found = atoi(e->d_name);
    }
    closedir(fds);
    return found;
}

static int
option_of(int fd, int layer, int name)
{
    int value[2] = {-1, -1}; /* a timeval's seconds come first */
    socklen_t len = sizeof(struct timeval);
    struct timeval tv = {-1, -1};

    if (layer == SOL_SOCKET) {
        getsockopt(fd, layer, name, &tv, &len);
        return (int)tv.tv_sec;
    }
    len = sizeof value;
    getsockopt(fd, layer, name, value, &len);
    return value[0];
}

/* What the rest of weir relies on: see set_limits() in listen.c. */
static void
test_inherited(void)
{
    static const char *const sets[] = {
        "proxy.listen=127.0.0.1:0",
        "proxy.idle_s=17",
    };
    struct weir w;
    int c, fd;

    if (!ok(weir_open(&w, sets, 2), "a listener"))
        return;
    c = client(w.ports[0], "");
    live_is(&w, 1);
    fd = accepted_fd(c);
    ok(fd >= 0, "the accepted socket");
    is_int(option_of(fd, SOL_SOCKET, SO_RCVTIMEO), 17, "reads have a limit");
    is_int(option_of(fd, SOL_SOCKET, SO_SNDTIMEO), 17, "writes have a limit");
    ok(option_of(fd, IPPROTO_TCP, TCP_NODELAY) != 0, "nothing is delayed");
    close(c);
    live_is(&w, 0);
    listeners_retime(w.listeners, 23000);
    c = client(w.ports[0], "");
    live_is(&w, 1);
    fd = accepted_fd(c);
    is_int(option_of(fd, SOL_SOCKET, SO_RCVTIMEO), 23, "after a reload: reads");
    is_int(option_of(fd, SOL_SOCKET, SO_SNDTIMEO), 23, "and writes");
    close(c);
    weir_close(&w);
}

static void
fails_to_listen(const char *listen, const char *why, const char *what)
{
    struct config *conf = settings(&listen, 1);
    struct weir w = {.n_ports = 0};
    char err[1024] = "";

    if (!ok(conf != NULL, "%s: settings", what))
        return;
    ok(listeners_new(&w, conf, err, sizeof err) == NULL, "%s: refused", what);
    if (!ok(strstr(err, why) != NULL, "%s: and says why", what))
        diag("got: %s", err);
    config_give(conf);
}

static void
test_taken(void)
{
    static const char *const sets[] = {"proxy.listen=127.0.0.1:0"};
    char listen[128], why[128];
    struct weir w;

    if (!ok(weir_open(&w, sets, 1), "a port"))
        return;
    snprintf(listen, sizeof listen, "proxy.listen=127.0.0.1:%d", w.ports[0]);
    snprintf(why, sizeof why, "cannot listen on 127.0.0.1:%d: the same weir",
             w.ports[0]);
    fails_to_listen(listen, why, "the same port");
    snprintf(listen, sizeof listen, "proxy.listen=*:%d", w.ports[0]);
    fails_to_listen(listen, "the same weir", "the same port of all addresses");
    weir_close(&w);
    fails_to_listen("proxy.listen=192.0.2.1:1", "cannot listen on 192.0.2.1:1",
                    "an address that is not ours");
}

/* ---- the life of a connection -------------------------------------------- */

static void
test_serve_and_drain(void)
{
    static const char *const sets[] = {"proxy.listen=127.0.0.1:0"};
    struct weir w;
    int c, silent;

    if (!ok(weir_open(&w, sets, 1), "a weir"))
        return;
    c = client(w.ports[0], request);
    is_int(status_of(c), 200, "a request is answered");
    ok(idle_is(&w, 256), "the connection is parked, no worker waits for it");
    ok(send(c, request, sizeof request - 1, MSG_NOSIGNAL) > 0, "another");
    is_int(status_of(c), 200, "is answered");
    ok(idle_is(&w, 256), "and parked again");
    silent = client(w.ports[0], "");
    ok(live_is(&w, 2), "so is one that never spoke");
    is_int(pool_idle(w.conns), 256, "without any worker");
    ok(!listeners_wait_idle(w.listeners, 0), "two are open");
    atomic_store(&w.draining, true);
    listeners_stop_accepting(w.listeners);
    ok(reads_end(c), "draining ends the one");
    is_int(status_of(silent), 0, "and the other, in silence");
    ok(listeners_wait_idle(w.listeners, LIMIT_MS), "none is left");
    is_int(client(w.ports[0], ""), -1, "and nobody listens");
    close(c);
    close(silent);
    weir_close(&w);
}

static void
test_given_up(void)
{
    static const char *const sets[] = {
        "proxy.listen=127.0.0.1:0",
        "proxy.idle_s=1",
        "proxy.head_s=1",
    };
    int64_t from = now_ms();
    struct weir w;
    int silent, half;

    if (!ok(weir_open(&w, sets, 3), "a weir that waits for a second"))
        return;
    silent = client(w.ports[0], "");
    half = client(w.ports[0], "GET / HT");
    is_int(status_of(silent), 0, "a silent client is given up");
    ok(now_ms() - from >= 1000, "not before its time");
    is_int(status_of(half), 408, "half a request is told so");
    close(silent);
    close(half);
    weir_close(&w);
}

static void
test_refused(void)
{
    static const char *const sets[] = {
        "proxy.listen=127.0.0.1:0", "proxy.workers=1", "proxy.queue=1",
        "proxy.linger_ms=10000",    "proxy.queue_s=1",
    };
    struct weir w;
    int busy, queued, over;

    if (!ok(weir_open(&w, sets, 5), "one worker"))
        return;
    busy = client(w.ports[0], "GET / HT");
    ok(idle_is(&w, 0), "is busy with half a request");
    queued = client(w.ports[0], request);
    live_is(&w, 2);
    over = client(w.ports[0], request);
    is_int(status_of(over), 503, "the queue is full: 503 at once");
    is_int(status_of(queued), 503, "it takes too long: 503 as well");
    ok(live_is(&w, 1), "both are gone");
    atomic_store(&w.stopping, true);
    listeners_end_all(w.listeners);
    ok(live_is(&w, 0), "the busy one can be ended from here");
    close(busy);
    close(queued);
    close(over);
    weir_close(&w);
}

/* ---- many at once -------------------------------------------------------- */

static void *
many_main(void *arg)
{
    const struct weir *w = arg;
    long n_good = 0;

    for (int i = 0; i < 200; i++) {
        /* every third one says nothing, or goes at once */
        int c = client(w->ports[0], i % 3 == 0 ? "" : request);

        n_good += i % 3 == 0 ? c >= 0 : i % 5 == 0 || status_of(c) == 200;
        close(c);
    }
    return (void *)n_good;
}

static void
test_many(void)
{
    static const char *const sets[] = {"proxy.listen=127.0.0.1:0",
                                       "proxy.workers=8"};
    pthread_t threads[4];
    struct weir w;
    long n_good = 0;
    void *good;

    if (!ok(weir_open(&w, sets, 2), "a weir for many"))
        return;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, many_main, &w);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &good);
        n_good += (long)good;
    }
    is_int(n_good, 800, "clients come and go");
    ok(live_is(&w, 0), "and all are gone");
    weir_close(&w);
}

int
main(void)
{
    alarm(120); /* a lost wake-up shall fail, not hang */
    dir = dir_make();
    test_addresses();
    test_inherited();
    test_taken();
    test_serve_and_drain();
    test_given_up();
    test_refused();
    test_many();
    dns_stop();
    dir_remove();
    return done_testing();
}
