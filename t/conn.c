/*
 * t/conn.c - the life of one connection, from its first byte.
 *
 * A worker runs it; where the accept thread would park it, the test is told.
 * TLS from clients is in t/mitm.c and in the scripts.
 */
#include <semaphore.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/net.h"
#include "t/tap.h"

static struct weir weir;
static struct pool *pool;
static uint16_t port; /* an origin's */
static int listener;

struct life {           /* one connection, and its peers' sockets */
    int client, origin; /* -1: none */
    struct conn *conn;  /* the worker's until `done` */
    sem_t parked, done;
};

/* As listen.c: run it, park it until its client says something. */
static void
serve(void *job, struct worker *w)
{
    struct life *l = job;

    while (conn_run(l->conn, w) == ST_PARKED) {
        struct pollfd p = {.fd = l->conn->end.fd, .events = POLLIN};

        sem_post(&l->parked);
        NEED(poll(&p, 1, NET_LIMIT_S * 1000) == 1);
    }
    conn_free(l->conn);
    sem_post(&l->done);
}

static void
wait_for(sem_t *sem)
{
    while (sem_wait(sem) != 0)
        NEED(errno == EINTR);
}

static void
settings(const char *const *more, size_t n)
{
    char *sets[8], home[600], err[512];
    struct config *conf, *before;

    snprintf(home, sizeof home, "intercept.dir=%s", dir_root);
    sets[0] = home;
    sets[1] = "log.level=error";
    sets[2] = "proxy.linger_ms=1";
    for (size_t i = 0; i < n; i++)
        sets[3 + i] = (char *)more[i];
    if ((conf = config_read(NULL, sets, 3 + n, err, sizeof err)) == NULL) {
        diag("%s", err);
        exit(2);
    }
    if ((before = config_swap(&weir, conf)) != NULL)
        config_give(before);
}

/* A connection that nobody runs yet. */
static void
make(struct life *l)
{
    struct sockaddr_storage at = {0};
    socklen_t len = sizeof at;
    int fds[2];

    *l = (struct life){.origin = -1};
    net_pair(fds);
    l->client = fds[0];
    NEED(getpeername(fds[1], (struct sockaddr *)&at, &len) == 0);
    l->conn = conn_new(&weir, fds[1], (struct sockaddr *)&at, len);
    NEED(l->conn != NULL);
    sem_init(&l->parked, 0, 0);
    sem_init(&l->done, 0, 0);
}

static void
begin(struct life *l)
{
    make(l);
    NEED(pool_submit(pool, l));
}

/* The client leaves, if it has not, and the connection ends. */
static void
finish(struct life *l)
{
    shutdown(l->client, SHUT_WR);
    wait_for(&l->done);
    close(l->client);
    if (l->origin >= 0)
        close(l->origin);
    sem_destroy(&l->parked);
    sem_destroy(&l->done);
}

static const char *
told(const struct life *l) /* the next answer head */
{
    return net_until(l->client, "\r\n\r\n");
}

/* "CONNECT 127.0.0.1:port" and what follows it in the same breath. */
static void
ask_connect(const struct life *l, uint16_t to, const char *more)
{
    char text[512];

    snprintf(text, sizeof text,
             "CONNECT 127.0.0.1:%u HTTP/1.1\r\nHost: x\r\n\r\n%s", to, more);
    net_say(l->client, text);
}

#define HOME "HEAD / HTTP/1.1\r\nHost: weir.invalid\r\n\r\n"

/* ---- requests ------------------------------------------------------------ */

static void
requests(void)
{
    struct life l;
    int error;

    begin(&l);
    wait_for(&l.parked);
    ok(true, "a client that says nothing is parked");
    net_say(l.client, HOME);
    ok(has(told(&l), "HTTP/1.1 200 OK\r\n"), "a request wakes it");
    wait_for(&l.parked);
    ok(true, "it is parked again");
    net_say(l.client, "HEAD / HT");
    wait_for(&l.parked);
    ok(true, "half a request waits for nobody, either");
    net_say(l.client, "TP/1.1\r\nHost: weir.invalid\r\n\r\n");
    ok(has(told(&l), " 200 OK"), "until the other half comes");
    net_say(l.client,
            HOME HOME "HEAD /no HTTP/1.1\r\nHost: weir.invalid\r\n\r\n");
    ok(has(told(&l), " 200 OK"), "three at once: one");
    ok(has(told(&l), " 200 OK"), "two");
    ok(has(told(&l), " 404 "), "three, in order");
    shutdown(l.client, SHUT_WR);
    is_str(net_rest(l.client, &error), "", "a goodbye between requests");
    is_int(error, 0, "is answered by one");
    finish(&l);

    begin(&l);
    for (const char *p = HOME; *p != '\0'; p++)
        net_put(l.client, p, 1);
    ok(has(told(&l), " 200 OK"), "a request byte by byte");
    finish(&l);
}

static void
refusals(void)
{
    static const struct {
        const char *what, *text, *answer;
    } cases[] = {
        {"no HTTP at all", "\001\002\003\r\n\r\n", "HTTP/1.1 400 "},
        {"an unknown version", "GET / HTTP/3.7\r\n\r\n", "HTTP/1.1 505 "},
        {"half a request, and the end", "GET / HTTP/1.1\r\nHo",
         "HTTP/1.1 400 "},
        {"CONNECT without a port", "CONNECT a.test HTTP/1.1\r\nHost: a\r\n\r\n",
         "HTTP/1.1 400 "},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct life l;
        int error;

        begin(&l);
        net_say(l.client, cases[i].text);
        shutdown(l.client, SHUT_WR);
        ok(has(net_rest(l.client, &error), cases[i].answer), "%s",
           cases[i].what);
        is_int(error, 0, "  and a clean end");
        finish(&l);
    }
}

/* ---- CONNECT ------------------------------------------------------------- */

static void
tunnels(void)
{
    static const char *const off[] = {"intercept.enable=no"};
    struct life l;
    const char *head;

    settings(off, 1);
    begin(&l);
    ask_connect(&l, port, "early");
    l.origin = net_accept(listener);
    head = told(&l);
    ok(has(head, "HTTP/1.1 200 "), "CONNECT: 200");
    ok(strstr(head, "Content-Length") == NULL &&
           strstr(head, "Transfer-Encoding") == NULL,
       "without a length or a coding");
    ok(net_hear(l.origin, "early"), "bytes behind the head are delivered");
    net_say(l.origin, "late");
    ok(net_hear(l.client, "late"), "and those that come back");
    shutdown(l.client, SHUT_WR);
    ok(net_ended(l.origin), "an end goes up");
    net_say(l.origin, "more");
    shutdown(l.origin, SHUT_WR);
    ok(net_hear(l.client, "more") && net_ended(l.client), "and down");
    finish(&l);

    begin(&l);
    close(listener); /* nobody listens there for now */
    ask_connect(&l, port, "");
    head = told(&l);
    ok(has(head, "HTTP/1.1 502 "), "a target that refuses: no 200");
    ok(has(head, "error=connection_refused"), "the reason is given");
    listener = net_listen(AF_INET, &port);
    finish(&l);

    begin(&l);
    weir.ports[0] = port;
    weir.n_ports = 1;
    ask_connect(&l, port, "");
    ok(has(told(&l), "HTTP/1.1 403 "), "CONNECT to ourselves is a loop");
    finish(&l);
    weir.n_ports = 0;
    ok(!net_called(listener), "we did not call ourselves");
}

static void
sniffed(void)
{
    static const char *const on[] = {"intercept.sniff_ms=100"};
    struct life l;
    const char *head;

    settings(on, 1);
    begin(&l);
    ask_connect(&l, port, "");
    l.origin = net_accept(listener);
    ok(has(told(&l), "HTTP/1.1 200 "), "CONNECT to a host to look into");
    net_say(l.client, "GET /x HTTP/1.1\r\nHost: y\r\n\r\n");
    head = net_until(l.origin, "\r\n\r\n");
    ok(has(head, "GET /x HTTP/1.1\r\n"), "plain HTTP inside");
    ok(has(head, "\r\nVia: 1.1 weir-test\r\n"), "is proxied as HTTP");
    net_say(l.origin, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    ok(has(told(&l), "\r\nVia: "), "both ways");
    finish(&l);

    begin(&l);
    ask_connect(&l, port, "");
    l.origin = net_accept(listener);
    NEED(told(&l) != NULL);
    net_say(l.client, "\200opaque");
    ok(net_hear(l.origin, "\200opaque"), "anything else goes through as it is");
    shutdown(l.origin, SHUT_WR);
    finish(&l);

    begin(&l);
    ask_connect(&l, port, "");
    l.origin = net_accept(listener);
    NEED(told(&l) != NULL);
    net_say(l.origin, "220 banner\r\n");
    ok(net_hear(l.client, "220 banner\r\n"), "a server may speak first");
    net_say(l.client, "GET / HTTP/1.1\r\n\r\n");
    ok(net_hear(l.origin, "GET / HTTP/1.1\r\n\r\n"), "then all is opaque");
    shutdown(l.origin, SHUT_WR);
    finish(&l);
    settings(NULL, 0);
}

/* ---- without a worker ---------------------------------------------------- */

static bool
length_is_right(const char *answer)
{
    const char *length = strstr(answer, "Content-Length: ");
    const char *content = strstr(answer, "\r\n\r\n");

    return length != NULL && content != NULL &&
           (size_t)atoi(length + 16) == strlen(content + 4);
}

static void
without_worker(void)
{
    struct life l;
    const char *answer;
    int error;

    make(&l);
    net_say(l.client, HOME);
    NEED(end_wait(&l.conn->end, NET_LIMIT_S * 1000));
    conn_refuse(l.conn, WHY_BUSY, "queue");
    conn_free(l.conn);
    answer = net_rest(l.client, &error);
    ok(has(answer, "HTTP/1.1 503 "), "no worker in time: 503");
    ok(has(answer, "error=connection_limit_reached"), "the reason is given");
    ok(length_is_right(answer), "its length is right");
    close(l.client);

    make(&l);
    net_say(l.client, "\x16\x03\x01");
    NEED(end_wait(&l.conn->end, NET_LIMIT_S * 1000));
    conn_refuse(l.conn, WHY_BUSY, "queue");
    conn_free(l.conn);
    is_str(net_rest(l.client, &error), "", "but not to one that speaks TLS");
    close(l.client);

    make(&l);
    conn_timeout(l.conn);
    conn_free(l.conn);
    is_str(net_rest(l.client, &error), "", "idle for too long: a quiet end");
    is_int(error, 0, "a clean one");
    close(l.client);

    make(&l);
    net_say(l.client, "GET / HT");
    NEED(conn_run(l.conn, NULL) == ST_PARKED); /* it needs no worker so far */
    conn_timeout(l.conn);
    conn_free(l.conn);
    answer = net_rest(l.client, &error);
    ok(has(answer, "HTTP/1.1 408 "), "half a request for too long: 408");
    ok(length_is_right(answer), "its length is right");
    close(l.client);
}

int
main(void)
{
    struct pool_conf workers = {"t", 1, 4, 256 * 1024, serve};
    char err[512] = "";

    dir_make();
    settings(NULL, 0);
    snprintf(weir.via, sizeof weir.via, "weir-test");
    if (!log_setup(weir.config, err, sizeof err) ||
        (weir.mitm = mitm_new(weir.config, err, sizeof err)) == NULL ||
        (weir.upstreams = upstreams_new(weir.config, err, sizeof err)) ==
            NULL) {
        diag("%s", err);
        return 2;
    }
    listener = net_listen(AF_INET, &port);
    NEED((pool = pool_new(&workers)) != NULL);
    requests();
    refusals();
    tunnels();
    sniffed();
    without_worker();
    pool_free(pool);
    upstreams_free(weir.upstreams);
    mitm_free(weir.mitm);
    close(listener);
    dns_stop();
    config_give(weir.config);
    dir_remove();
    return done_testing();
}
