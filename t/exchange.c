/*
 * t/exchange.c - one request and its answer, with both peers scripted.
 *
 * A worker serves a client's connection as conn.c does; the test plays the
 * client and the origin, one line after the other, so the order of events is
 * the script's.
 */
#include <semaphore.h>

#include "proxy.h"
#include "t/net.h"
#include "t/tap.h"

enum { LIMIT_MS = NET_LIMIT_S * 1000 };

static struct weir weir;
static struct pool *pool;
/* each script's own */
static _Thread_local struct config *conf;
static _Thread_local uint16_t port; /* the origin's */
static _Thread_local int listener;

struct talk { /* one client connection */
    const struct config *conf;
    int client, origin; /* the peers' sockets; -1: none */
    struct end end;     /* the worker's from here on */
    sem_t served;       /* posted after each exchange */
    /* of the last exchange; read after `served` */
    enum exchange_end how;
    int n, status;
    bool reused;
    struct fail fail;
};

/* As conn.c: one exchange after the other. */
static void
serve(void *job, struct worker *w)
{
    struct talk *t = job;
    struct client client = {.weir = &weir, .conf = t->conf, .stream = -1};
    struct head req, res;
    struct h1 h1;
    struct upstream *up = NULL;
    struct fail f = {0};

    head_init(&req);
    head_init(&res);
    h1_init(&h1, &t->end, SIDE_CLIENT, t->conf);
    t->how = EXCHANGE_KEEP;
    while (t->how == EXCHANGE_KEEP &&
           h1.http.ops->read_head(&h1.http, &req, &f) == WHY_NONE) {
        struct exchange x = {.client = &client,
                             .worker = w,
                             .down = &h1.http,
                             .req = &req,
                             .res = &res,
                             .up = up,
                             .begun_us = now_us()};

        t->how = exchange_run(&x);
        t->n++;
        t->status = x.status;
        t->reused = x.reused;
        t->fail = x.fail;
        up = x.up;
        if (t->how != EXCHANGE_KEEP)
            break;
        sem_post(&t->served);
        head_reset(&req);
    }
    upstream_free(up);
    h1_clear(&h1);
    end_clear(&t->end);
    head_clear(&req);
    head_clear(&res);
    sem_post(&t->served);
}

static void
begin(struct talk *t)
{
    int fds[2];

    *t = (struct talk){.conf = conf, .origin = -1};
    sem_init(&t->served, 0, 0);
    net_pair(fds);
    t->client = fds[0];
    end_init(&t->end, fds[1], SIDE_CLIENT, LIMIT_MS);
    NEED(pool_submit(pool, t));
}

static void
served(struct talk *t)
{
    while (sem_wait(&t->served) != 0)
        NEED(errno == EINTR);
}

static void
finish(struct talk *t)
{
    if (t->how == EXCHANGE_KEEP) { /* it waits for another request */
        shutdown(t->client, SHUT_WR);
        served(t);
    }
    close(t->client);
    if (t->origin >= 0)
        close(t->origin);
    sem_destroy(&t->served);
}

/* The client says `text`, with %s as the origin's address. */
static void
ask(const struct talk *t, const char *text)
{
    char out[2048], at[32];

    snprintf(at, sizeof at, "127.0.0.1:%u", port);
    snprintf(out, sizeof out, text, at, at); /* NOLINT: a literal each time */
    net_say(t->client, out);
}

#define GET "GET http://%s/ HTTP/1.1\r\nHost: %s\r\n\r\n"

/* The next request head that the origin gets, NULL: none. */
static const char *
asked(struct talk *t)
{
    return net_until(t->origin, "\r\n\r\n");
}

static void
accept_new(struct talk *t)
{
    if (t->origin >= 0)
        close(t->origin);
    t->origin = net_accept(listener);
}

static bool
starts(const char *text, const char *with)
{
    if (text != NULL && strncmp(text, with, strlen(with)) == 0)
        return true;
    diag("got '%s'", text != NULL ? text : "(nothing)");
    return false;
}

static const char *
told(const struct talk *t) /* the next answer head */
{
    return net_until(t->client, "\r\n\r\n");
}

static const char ok_2[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/* A whole exchange, so that the way to the origin has been used once. */
static void
warm_up(struct talk *t)
{
    begin(t);
    ask(t, GET);
    accept_new(t);
    NEED(asked(t) != NULL);
    net_say(t->origin, ok_2);
    NEED(told(t) != NULL && net_hear(t->client, "ok"));
    served(t);
    NEED(t->how == EXCHANGE_KEEP);
}

/* ---- the usual way ------------------------------------------------------- */

static void
usual(void)
{
    struct talk t;
    const char *head;

    begin(&t);
    ask(&t, "GET http://%s/path?q HTTP/1.1\r\nHost: other\r\nX-One: 1\r\n"
            "Connection: x-hop\r\nX-Hop: 2\r\nProxy-Connection: x\r\n\r\n");
    accept_new(&t);
    head = asked(&t);
    ok(starts(head, "GET /path?q HTTP/1.1\r\n"), "the request arrives");
    ok(has(head, "\r\nX-One: 1\r\n"), "with its fields");
    ok(has(head, "\r\nVia: 1.1 weir-test\r\n"), "and Via");
    ok(strstr(head, "other") == NULL, "Host is the target");
    ok(strstr(head, "Hop") == NULL && strstr(head, "Proxy-") == NULL,
       "what is meant for one hop stays here");
    net_say(t.origin, ok_2);
    head = told(&t);
    ok(starts(head, "HTTP/1.1 200 OK\r\n"), "the answer, too");
    ok(has(head, "\r\nVia: 1.1 weir-test\r\n"), "with Via");
    ok(net_hear(t.client, "ok"), "and its content");
    served(&t);
    is_int(t.how, EXCHANGE_KEEP, "another may follow");
    is_int(t.fail.why, WHY_NONE, "nothing failed");
    ok(!t.reused, "the way was new");

    ask(&t, GET);
    ok(asked(&t) != NULL, "the next request comes the same way");
    net_say(t.origin, ok_2);
    ok(told(&t) != NULL && net_hear(t.client, "ok"), "its answer");
    served(&t);
    ok(t.reused, "the way was used before");
    is_int(t.n, 2, "two exchanges");
    finish(&t);
}

static void
interim(void)
{
    static const char hint[] = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    struct talk t;

    begin(&t);
    ask(&t, GET);
    accept_new(&t);
    ok(asked(&t) != NULL, "interim answers");
    net_say(t.origin, hint);
    ok(starts(told(&t), "HTTP/1.1 103 "), "  each goes down as it comes");
    net_say(t.origin, hint);
    ok(starts(told(&t), "HTTP/1.1 103 "), "  also the second");
    net_say(t.origin, ok_2);
    ok(starts(told(&t), "HTTP/1.1 200 "), "  before the final one");
    served(&t);
    is_int(t.status, 200, "  which is the one that counts");
    finish(&t);

    begin(&t);
    ask(&t, "GET http://%s/ HTTP/1.0\r\n\r\n");
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_say(t.origin, hint);
    net_say(t.origin, ok_2);
    ok(has(told(&t), " 200 "), "  HTTP/1.0 does not get them");
    served(&t);
    is_int(t.how, EXCHANGE_CLOSE, "  nor a kept connection");
    finish(&t);
}

static void
expectation(void)
{
    struct talk t;

    begin(&t);
    ask(&t, "PUT http://%s/ HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n"
            "Expect: 100-continue\r\n\r\n");
    accept_new(&t);
    ok(has(asked(&t), "Expect: 100-continue"), "Expect goes to the origin");
    net_say(t.origin, "HTTP/1.1 100 Continue\r\n\r\n");
    ok(starts(told(&t), "HTTP/1.1 100 "), "  its 100 to the client");
    net_say(t.client, "body");
    ok(net_hear(t.origin, "body"), "  then the content");
    net_say(t.origin, ok_2);
    ok(starts(told(&t), "HTTP/1.1 200 "), "  and the answer");
    served(&t);
    is_int(t.how, EXCHANGE_KEEP, "  another may follow");
    finish(&t);

    begin(&t);
    ask(&t, "PUT http://%s/ HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n"
            "Expect: 100-continue\r\n\r\n");
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_say(t.origin, "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n");
    ok(has(told(&t), " 417 "), "a refusal of it goes down");
    shutdown(t.client, SHUT_WR);
    served(&t);
    is_int(t.how, EXCHANGE_CLOSE,
           "  and closes: will the content come, or another request?");
    finish(&t);
}

/* ---- content ------------------------------------------------------------- */

#define POST_CHUNKED                           \
    "POST http://%s/ HTTP/1.1\r\nHost: %s\r\n" \
    "Transfer-Encoding: chunked\r\n\r\n"

/* Each piece is answered before the next one is sent. */
static void
both_ways(void)
{
    struct talk t;
    bool good = true;

    begin(&t);
    ask(&t, POST_CHUNKED);
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_say(t.origin, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    ok(has(told(&t), "Transfer-Encoding: chunked"), "an answer before the end");
    for (int i = 0; i < 20; i++) {
        net_say(t.client, "4\r\nping\r\n");
        good = good && net_hear(t.origin, "4\r\nping\r\n");
        net_say(t.origin, "4\r\npong\r\n");
        good = good && net_hear(t.client, "4\r\npong\r\n");
    }
    ok(good, "content moves both ways in turn");
    net_say(t.client, "0\r\n\r\n");
    ok(net_hear(t.origin, "0\r\n\r\n"), "one direction ends");
    net_say(t.origin, "0\r\n\r\n");
    ok(net_hear(t.client, "0\r\n\r\n"), "and the other");
    served(&t);
    is_int(t.how, EXCHANGE_KEEP, "another may follow");
    finish(&t);
}

static void
early_answer(void)
{
    struct talk t;

    begin(&t);
    ask(&t, POST_CHUNKED "4\r\nmore\r\n");
    accept_new(&t);
    NEED(asked(&t) != NULL);
    ok(net_hear(t.origin, "4\r\nmore\r\n"), "an upload begins");
    net_say(t.origin, "HTTP/1.1 413 Enough\r\nContent-Length: 2\r\n"
                      "Connection: close\r\n\r\nno");
    close(t.origin);
    t.origin = -1;
    ok(starts(told(&t), "HTTP/1.1 413 "), "an answer that ends it goes down");
    ok(net_hear(t.client, "no"), "whole");
    shutdown(t.client, SHUT_WR);
    served(&t);
    is_int(t.how, EXCHANGE_CLOSE, "and nothing can follow");
    is_int(t.status, 413, "it is what counts");
    finish(&t);

    begin(&t);
    ask(&t, POST_CHUNKED);
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_say(t.origin, ok_2);
    ok(told(&t) != NULL && net_hear(t.client, "ok"),
       "an origin that answers and reads on");
    net_say(t.client, "4\r\nmore\r\n0\r\n\r\n");
    ok(net_hear(t.origin, "4\r\nmore\r\n0\r\n\r\n"), "gets the rest");
    served(&t);
    is_int(t.how, EXCHANGE_KEEP, "and another may follow");
    finish(&t);
}

static void
cut_short(const char *answer, const char *heard, const char *what)
{
    struct talk t;
    const char *rest;
    int error;

    begin(&t);
    ask(&t, GET);
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_say(t.origin, answer);
    close(t.origin);
    t.origin = -1;
    ok(starts(told(&t), "HTTP/1.1 200 "), "%s", what);
    served(&t);
    rest = net_rest(t.client, &error);
    is_str(rest, heard, "  what came goes down, and no end is made up");
    is_int(t.how, EXCHANGE_CUT, "  the client's connection ends");
    is_int(t.fail.why, WHY_CUT, "  because of it");
    is_int(t.fail.side, SIDE_ORIGIN, "  by the origin");
    finish(&t);
}

static void
upload_cut(void)
{
    struct talk t;
    const char *rest;
    int error;

    begin(&t);
    ask(&t, POST_CHUNKED "4\r\nmore\r\n");
    accept_new(&t);
    NEED(asked(&t) != NULL);
    ok(net_hear(t.origin, "4\r\nmore\r\n"), "an upload begins");
    shutdown(t.client, SHUT_WR);
    rest = net_rest(t.origin, &error);
    is_str(rest, "", "a client that ends too soon: no end is made up");
    served(&t);
    ok(t.how != EXCHANGE_KEEP, "nothing can follow");
    is_int(t.fail.why, WHY_CUT, "because of it");
    is_int(t.fail.side, SIDE_CLIENT, "by the client");
    finish(&t);
}

/* ---- a kept way that is dead --------------------------------------------- */

/* The origin ends without a word once the request has come. */
static void
die(struct talk *t, bool reset)
{
    if (reset)
        net_reset(t->origin);
    else
        close(t->origin);
    t->origin = -1;
}

static void
stale(bool reset)
{
    struct talk t;
    const char *how = reset ? "a reset" : "an end";

    warm_up(&t);
    ask(&t, GET);
    NEED(asked(&t) != NULL);
    die(&t, reset);
    accept_new(&t);
    ok(starts(asked(&t), "GET / "), "%s of a kept way: GET comes again", how);
    net_say(t.origin, ok_2);
    ok(has(told(&t), " 200 "), "  and is answered");
    served(&t);
    ok(!t.reused, "  on a new way");
    is_int(t.fail.why, WHY_NONE, "  as if nothing had happened");
    finish(&t);

    warm_up(&t);
    ask(&t, GET);
    NEED(asked(&t) != NULL);
    die(&t, reset);
    accept_new(&t);
    NEED(asked(&t) != NULL);
    die(&t, reset);
    ok(starts(told(&t), "HTTP/1.1 502 "), "  but not a third time");
    served(&t);
    ok(!net_called(listener), "  nobody asks");
    finish(&t);

    warm_up(&t);
    ask(&t, "PUT http://%s/ HTTP/1.1\r\nHost: %s\r\n"
            "Content-Length: 4\r\n\r\nbody");
    NEED(asked(&t) != NULL && net_hear(t.origin, "body"));
    die(&t, reset);
    accept_new(&t);
    ok(starts(asked(&t), "PUT / ") && net_hear(t.origin, "body"),
       "  PUT with its content in hand comes again");
    net_say(t.origin, ok_2);
    ok(has(told(&t), " 200 "), "  and is answered");
    served(&t);
    finish(&t);

    warm_up(&t);
    ask(&t, "POST http://%s/ HTTP/1.1\r\nHost: %s\r\n"
            "Content-Length: 4\r\n\r\nbody");
    NEED(asked(&t) != NULL && net_hear(t.origin, "body"));
    die(&t, reset);
    ok(starts(told(&t), "HTTP/1.1 502 "), "  POST does not");
    served(&t);
    ok(!net_called(listener), "  nobody asks");
    finish(&t);

    warm_up(&t);
    ask(&t, "PUT http://%s/ HTTP/1.1\r\nHost: %s\r\n"
            "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n");
    NEED(asked(&t) != NULL && net_hear(t.origin, "4\r\nbody\r\n"));
    net_say(t.client, "1\r\nx\r\n"); /* so the twin carries it, after body */
    NEED(net_hear(t.origin, "1\r\nx\r\n"));
    die(&t, reset);
    ok(starts(told(&t), "HTTP/1.1 502 "), "  nor PUT whose content has gone");
    shutdown(t.client, SHUT_WR);
    served(&t);
    ok(!net_called(listener), "  nobody asks");
    finish(&t);

    warm_up(&t);
    ask(&t, GET);
    NEED(asked(&t) != NULL);
    net_say(t.origin, "HTTP/1.1 2");
    close(t.origin);
    t.origin = -1;
    ok(starts(told(&t), "HTTP/1.1 502 "), "  nor one whose answer had begun");
    served(&t);
    ok(!net_called(listener), "  nobody asks");
    finish(&t);
}

static void
fresh_is_final(void)
{
    struct talk t;

    begin(&t);
    ask(&t, GET);
    accept_new(&t);
    NEED(asked(&t) != NULL);
    die(&t, false);
    ok(starts(told(&t), "HTTP/1.1 502 "), "a new way that ends: no retry");
    served(&t);
    is_int(t.fail.why, WHY_EOF, "the origin finished");
    is_int(t.how, EXCHANGE_KEEP, "the client may ask again");
    ok(!net_called(listener), "nobody else does");
    finish(&t);
}

/* ---- what fails ---------------------------------------------------------- */

static void
bad_answers(void)
{
    static const struct {
        const char *what, *answer;
    } answers[] = {
        {"no HTTP", "nonsense\r\n\r\n"},
        {"two lengths",
         "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"},
        {"a bad name", "HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n"},
        {"101 that nobody asked for",
         "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"},
    };

    for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
        struct talk t;

        begin(&t);
        ask(&t, GET);
        accept_new(&t);
        NEED(asked(&t) != NULL);
        net_say(t.origin, answers[i].answer);
        ok(starts(told(&t), "HTTP/1.1 502 "), "a bad answer: %s",
           answers[i].what);
        ok(net_ended(t.origin), "  its connection is closed");
        served(&t);
        is_int(t.fail.why, WHY_PROTO, "  it broke the protocol");
        finish(&t);
    }
}

/* Bytes behind an answer that nobody asked for. */
static void
surplus(void)
{
    struct talk t;

    begin(&t);
    ask(&t, GET);
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_say(t.origin, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1");
    ok(told(&t) != NULL && net_hear(t.client, "ok"), "an answer, and more");
    served(&t);
    is_int(t.how, EXCHANGE_KEEP, "the client's connection is kept");
    ok(net_ended(t.origin) || errno == ECONNRESET, "the origin's is not");
    finish(&t);
}

static void
own_answers(void)
{
    struct talk t;
    const char *head;
    uint16_t was = port;
    int gone;

    gone = net_listen(AF_INET, &port);
    close(gone);
    begin(&t);
    ask(&t, GET);
    head = told(&t);
    ok(starts(head, "HTTP/1.1 502 "), "nobody listens");
    ok(has(head, "Proxy-Status: weir; error=connection_refused"), "  it says");
    served(&t);
    is_int(t.how, EXCHANGE_KEEP, "  the client may ask again");
    is_int(t.fail.why, WHY_REFUSED, "  refused");
    finish(&t);
    port = was;

    begin(&t);
    ask(&t, "GET http://%s/ HTTP/1.1\r\nHost: %s\r\n"
            "Via: 1.1 a, 1.1 WEIR-test (x)\r\n\r\n");
    head = told(&t);
    ok(starts(head, "HTTP/1.1 403 "), "our own name in Via");
    ok(has(head, "error=proxy_loop_detected"), "  is a loop");
    served(&t);
    finish(&t);

    begin(&t);
    ask(&t, "GET http://user:pass@%s/ HTTP/1.1\r\nHost: %s\r\n\r\n");
    ok(starts(told(&t), "HTTP/1.1 400 "), "userinfo in a target: 400");
    served(&t);
    is_int(t.how, EXCHANGE_CLOSE, "  and close");
    finish(&t);

    begin(&t);
    ask(&t, "TRACE http://%s/ HTTP/1.1\r\nHost: %s\r\n"
            "Cookie: secret\r\nX: y\r\nMax-Forwards: 0\r\n\r\n");
    ok(has(told(&t), "message/http"), "TRACE that ends here is echoed");
    head = net_until(t.client, "\r\n\r\n");
    ok(has(head, "X: y\r\n") && strstr(head, "secret") == NULL,
       "  without its secrets");
    served(&t);
    finish(&t);
    ok(!net_called(listener), "the origin saw none of them");
}

/* Events are not bulk: between them idle_s does not count. */
static void
event_stream(void)
{
    struct talk t;
    struct pollfd p = {.events = POLLIN};

    begin(&t);
    ask(&t, "GET http://%s/ HTTP/1.0\r\n\r\n");
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_say(t.origin, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                      "\r\ndata: 1\n\n");
    ok(told(&t) != NULL && net_hear(t.client, "data: 1\n\n"), "an event");
    p.fd = t.client;
    is_int(poll(&p, 1, conf->idle_s * 1000 + 200), 0,
           "none for longer than idle_s, and no end");
    net_say(t.origin, "data: 2\n\n");
    ok(net_hear(t.client, "data: 2\n\n"), "another event");
    close(t.origin);
    t.origin = -1;
    served(&t);
    is_int(t.fail.why, WHY_NONE, "its end is one");
    finish(&t);
}

/* A client that leaves is noticed while the origin thinks. */
static void
client_leaves(void)
{
    struct talk t;

    begin(&t);
    ask(&t, GET);
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_reset(t.client);
    ok(net_ended(t.origin), "a client that leaves: the origin is let go");
    served(&t);
    is_int(t.how, EXCHANGE_CUT, "nothing follows");
    is_int(t.fail.why, WHY_OVER, "nobody waits");
    is_int(t.fail.side, SIDE_CLIENT, "the client's doing");
    t.client = net_connect(port); /* for finish() to close */
    close(net_accept(listener));
    finish(&t);
}

/* The same in the middle of content that moves by splice(2). */
static void
client_leaves_bulk(void)
{
    enum { PART = 300000 };
    static char part[PART], got[PART];
    struct talk t;
    size_t n = 0;
    ssize_t more;

    begin(&t);
    ask(&t, GET);
    accept_new(&t);
    NEED(asked(&t) != NULL);
    net_say(t.origin, "HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n");
    NEED(told(&t) != NULL);
    net_put(t.origin, part, sizeof part);
    while (n < PART && (more = recv(t.client, got, PART - n, 0)) > 0)
        n += (size_t)more;
    is_int(n, PART, "a part of much content");
    net_reset(t.client);
    ok(net_ended(t.origin), "the client leaves: the origin is let go");
    served(&t);
    is_int(t.how, EXCHANGE_CUT, "nothing follows");
    is_int(t.fail.why, WHY_OVER, "nobody waits");
    t.client = net_connect(port); /* for finish() to close */
    close(net_accept(listener));
    finish(&t);
}

/* A thread for a script that takes its time. */
static void *
aside(void *arg)
{
    char *sets[] = {"proxy.idle_s=1"};
    char err[512];

    conf = config_read(NULL, sets, 1, err, sizeof err);
    NEED(conf != NULL);
    listener = net_listen(AF_INET, &port);
    (*(void (**)(void))arg)();
    close(listener);
    config_give(conf);
    return NULL;
}

int
main(void)
{
    static void (*slow[])(void) = {client_leaves, client_leaves_bulk,
                                   event_stream};
    enum { SLOW = sizeof slow / sizeof slow[0] };
    char *sets[] = {"log.level=error"};
    struct pool_conf workers = {"t", 1 + SLOW, 4, 256 * 1024, serve};
    pthread_t threads[SLOW];
    char err[512];

    conf = config_read(NULL, sets, 1, err, sizeof err);
    if (conf == NULL || !log_setup(conf, err, sizeof err) ||
        (weir.upstreams = upstreams_new(conf, err, sizeof err)) == NULL) {
        diag("%s", err);
        return 2;
    }
    snprintf(weir.via, sizeof weir.via, "weir-test");
    listener = net_listen(AF_INET, &port);
    NEED((pool = pool_new(&workers)) != NULL);
    for (int i = 0; i < SLOW; i++)
        threads[i] = net_thread(aside, &slow[i]);
    usual();
    interim();
    expectation();
    both_ways();
    early_answer();
    cut_short("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "short",
              "less than Content-Length");
    cut_short("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
              "5\r\nshort\r\n",
              "5\r\nshort\r\n", "no last chunk");
    upload_cut();
    stale(false);
    stale(true);
    fresh_is_final();
    bad_answers();
    surplus();
    own_answers();
    for (int i = 0; i < SLOW; i++)
        pthread_join(threads[i], NULL);
    pool_free(pool);
    upstreams_free(weir.upstreams);
    close(listener);
    dns_stop();
    config_give(conf);
    return done_testing();
}
