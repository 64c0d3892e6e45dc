/*
 * t/h3.c - HTTP/3 sessions: a whole weir in here, and clients of h3.c's own.
 *
 * Datagrams go through a relay, which can lose, delay, or have them come from
 * another address.  The origin is a small HTTP/1 server.
 */
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <unistd.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/net.h"
#include "t/tap.h"

enum { WORKERS = 32 };

static struct weir weir;
static uint16_t proxy_port, origin_port, echo_port;

/* ---- an origin, and somebody who sends back ------------------------------ */

/* GET /N: N bytes; POST: how many bytes came. */
static void *
origin_serve(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char head[4096], body[16384];
    size_t got = 0, n;
    ssize_t r;
    char *end;

    memset(body, 'x', sizeof body);
    while (got < sizeof head - 1 &&
           (r = recv(fd, head + got, sizeof head - 1 - got, 0)) > 0) {
        long length = 0;

        got += (size_t)r;
        head[got] = '\0';
        if ((end = strstr(head, "\r\n\r\n")) == NULL)
            continue;
        if (strcasestr(head, "content-length:") != NULL)
            length = atol(strcasestr(head, "content-length:") + 15);
        if (strncmp(head, "POST", 4) == 0) {
            long have = (long)(head + got - end - 4);

            while (have < length && (r = recv(fd, body, sizeof body, 0)) > 0)
                have += r;
            n = (size_t)snprintf(head, sizeof head, "%ld", have);
            snprintf(body, sizeof body,
                     "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n"
                     "Connection: close\r\n\r\n%s",
                     n, head);
            net_say(fd, body);
            break;
        }
        n = (size_t)atol(strchr(head, '/') + 1);
        r = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", n);
        if (send(fd, head, (size_t)r, MSG_NOSIGNAL) != r)
            break;
        while (n > 0) {
            r = send(fd, body, n < sizeof body ? n : sizeof body, MSG_NOSIGNAL);
            if (r <= 0)
                break;
            n -= (size_t)r;
        }
        if (n > 0)
            break;
        got = 0;
    }
    close(fd);
    return NULL;
}

static void *
echo_serve(void *arg)
{
    int fd = (int)(intptr_t)arg;
    char buf[16384];
    ssize_t n;

    while ((n = recv(fd, buf, sizeof buf, 0)) > 0)
        if (send(fd, buf, (size_t)n, MSG_NOSIGNAL) != n)
            break;
    shutdown(fd, SHUT_WR);
    close(fd);
    return NULL;
}

struct server {
    int listener;
    void *(*serve)(void *);
};

static void *
server_main(void *arg)
{
    struct server *s = arg;
    int fd;

    while ((fd = accept(s->listener, NULL, NULL)) >= 0) {
        pthread_t t;

        NEED(pthread_create(&t, NULL, s->serve, (void *)(intptr_t)fd) == 0);
        pthread_detach(t);
    }
    return NULL;
}

/* ---- the relay ----------------------------------------------------------- */

struct relay { /* between one client's socket and the proxy's port */
    int near, far;
    atomic_int loss, swap; /* per mille lost and delayed, each way */
    atomic_bool rebind, stop, blind;
    pthread_t thread;
    unsigned seed;
};

static int
udp_to(uint16_t port)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_addr = {htonl(INADDR_LOOPBACK)},
                             .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    NEED(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
    return fd;
}

/* One datagram from here to there.  False: there is none. */
static bool
relay_one(struct relay *r, int from, int to, struct sockaddr_in *note,
          const struct sockaddr_in *address, char kept[2048], size_t *n_kept)
{
    char buf[2048];
    struct sockaddr_in by;
    socklen_t len = sizeof by;
    ssize_t n = recvfrom(from, buf, sizeof buf, MSG_DONTWAIT,
                         (struct sockaddr *)&by, &len);

    if (n < 0)
        return false;
    if (note != NULL)
        *note = by;
    if ((int)(rand_r(&r->seed) % 1000) < atomic_load(&r->loss) ||
        atomic_load(&r->blind))
        return true;
    if (*n_kept == 0 &&
        (int)(rand_r(&r->seed) % 1000) < atomic_load(&r->swap)) {
        memcpy(kept, buf, (size_t)n);
        *n_kept = (size_t)n;
        return true;
    }
    (void)sendto(to, buf, (size_t)n, MSG_DONTWAIT,
                 (const struct sockaddr *)address,
                 address != NULL ? sizeof *address : 0);
    if (*n_kept > 0)
        (void)sendto(to, kept, *n_kept, MSG_DONTWAIT,
                     (const struct sockaddr *)address,
                     address != NULL ? sizeof *address : 0);
    *n_kept = 0;
    return true;
}

static void *
relay_main(void *arg)
{
    struct relay *r = arg;
    struct sockaddr_in client = {0};
    char up[2048], down[2048];
    size_t n_up = 0, n_down = 0;

    while (!atomic_load(&r->stop)) {
        struct pollfd p[2] = {{.fd = r->near, .events = POLLIN},
                              {.fd = r->far, .events = POLLIN}};

        (void)poll(p, 2, 20);
        if (atomic_exchange(&r->rebind, false)) {
            close(r->far);
            r->far = udp_to(proxy_port);
        }
        while (relay_one(r, r->near, r->far, &client, NULL, up, &n_up))
            ;
        while (client.sin_port != 0 &&
               relay_one(r, r->far, r->near, NULL, &client, down, &n_down))
            ;
    }
    return NULL;
}

static uint16_t
relay_begin(struct relay *r, int loss, int swap)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof at;

    *r = (struct relay){.seed = 4711};
    atomic_store(&r->loss, loss);
    atomic_store(&r->swap, swap);
    r->near = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    NEED(r->near >= 0 && bind(r->near, (struct sockaddr *)&at, len) == 0 &&
         getsockname(r->near, (struct sockaddr *)&at, &len) == 0);
    r->far = udp_to(proxy_port);
    NEED(pthread_create(&r->thread, NULL, relay_main, r) == 0);
    return ntohs(at.sin_port);
}

static void
relay_end(struct relay *r)
{
    atomic_store(&r->stop, true);
    pthread_join(r->thread, NULL);
    close(r->near);
    close(r->far);
}

/* ---- a client ------------------------------------------------------------ */

struct client_end {
    struct h3 *h3;
    pthread_t thread;
    enum why why;
    struct fail fail;
};

static gnutls_certificate_credentials_t nobody; /* verifies nothing */

static enum why
verify(void *arg, gnutls_session_t tls, struct fail *f)
{
    (void)tls;
    return arg == NULL ? WHY_NONE
                       : fail_own(f, SIDE_ORIGIN, WHY_CERT, "verify");
}

static gnutls_session_t
client_tls(const char *name)
{
    static const gnutls_datum_t h3 = {(unsigned char *)"h3", 2};
    gnutls_session_t s;

    NEED(gnutls_init(&s, GNUTLS_CLIENT | GNUTLS_NONBLOCK) == 0 &&
         gnutls_priority_set_direct(
             s,
             "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:"
             "%DISABLE_TLS13_COMPAT_MODE",
             NULL) == 0 &&
         gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, nobody) == 0 &&
         gnutls_alpn_set_protocols(s, &h3, 1, 0) == 0 &&
         (name == NULL ||
          gnutls_server_name_set(s, GNUTLS_NAME_DNS, name, strlen(name)) == 0));
    return s;
}

static void *
client_main(void *arg)
{
    struct client_end *c = arg;

    c->why = h3_run(c->h3, 60000, &c->fail);
    return NULL;
}

static void
client_begin(struct client_end *c, uint16_t port, const char *name,
             bool mistrusts)
{
    struct config *conf = config_take(&weir);
    struct h3_user user = {
        .weir = &weir, .verify = verify, .arg = mistrusts ? c : NULL};

    *c = (struct client_end){.why = WHY_NONE};
    c->h3 = h3_connect(udp_to(port), client_tls(name), conf, &user);
    NEED(c->h3 != NULL);
    config_give(conf);
    NEED(pthread_create(&c->thread, NULL, client_main, c) == 0);
}

static void
client_end(struct client_end *c)
{
    h3_stop(c->h3);
    pthread_join(c->thread, NULL);
    h3_free(c->h3);
}

/* A request on a stream of its own; its head is out, its end is not. */
static struct stream *
ask(struct client_end *c, const char *method, const char *authority,
    const char *path, size_t length)
{
    struct head req;
    struct fail f = {0};
    bool used;
    struct stream *s = h3_open(c->h3, &used);

    NEED(s != NULL);
    head_init(&req);
    req.version = HTTP_3;
    req.method = span_of(method);
    req.method_id = method_of(req.method);
    req.scheme = span_of("http");
    req.authority = span_of(authority);
    req.path = span_of(path);
    req.body = length > 0                        ? BODY_LENGTH
               : req.method_id == METHOD_CONNECT ? BODY_RAW
                                                 : BODY_NONE;
    req.length = length;
    if (s->http.ops->write_head(&s->http, &req, &f) != WHY_NONE)
        diag("write_head: %s", f.op);
    head_clear(&req);
    return s;
}

static bool
finish(struct stream *s)
{
    struct fail f = {0};

    return s->http.ops->write_end(&s->http, NULL, &f) == WHY_NONE &&
           s->http.ops->flush(&s->http, &f) == WHY_NONE;
}

/* The status of the final answer; 0: there is none, f says why. */
static int
answer(struct stream *s, struct fail *f)
{
    struct head res;
    int status = 0;

    head_init(&res);
    do {
        if (s->http.ops->read_head(&s->http, &res, f) != WHY_NONE) {
            diag("answer: %s: %s", f->op, why_text(f->why));
            break;
        }
        status = res.status;
    } while (status < 200);
    head_clear(&res);
    return status;
}

/* All of the content; -1: it was cut. */
static long
content(struct stream *s, char *first, size_t cap)
{
    struct span data;
    struct fail f = {0};
    long total = 0;
    enum why why;

    while ((why = s->http.ops->read_body(&s->http, &data, &f)) == WHY_NONE) {
        for (size_t i = 0; i < data.len && (size_t)total + i + 1 < cap; i++) {
            first[(size_t)total + i] = data.at[i];
            first[(size_t)total + i + 1] = '\0';
        }
        total += (long)data.len;
    }
    if (why != WHY_EOF)
        diag("content: %s", f.op);
    return why == WHY_EOF ? total : -1;
}

/* One GET of n bytes; what came of it. */
static long
get(struct client_end *c, size_t n)
{
    char authority[64], path[64];
    struct fail f = {0};
    struct stream *s;
    long got = -1;

    snprintf(authority, sizeof authority, "127.0.0.1:%u", origin_port);
    snprintf(path, sizeof path, "/%zu", n);
    s = ask(c, "GET", authority, path, 0);
    if (finish(s) && answer(s, &f) == 200)
        got = content(s, NULL, 0);
    stream_give(s);
    return got;
}

/* ---- tests --------------------------------------------------------------- */

static void
test_own_page(void)
{
    struct client_end c;
    struct stream *s;
    struct fail f = {0};
    char body[4096] = "";

    client_begin(&c, proxy_port, NULL, false);
    ok(h3_ready(c.h3, now_ms() + 10000, &f) == WHY_NONE, "handshake");
    ok(h3_extended(c.h3, now_ms() + 5000) == 1, "extended CONNECT is offered");
    s = ask(&c, "GET", WEIR_HOST, "/ca.pem", 0);
    ok(finish(s) && answer(s, &f) == 200, "our own page is answered");
    content(s, body, sizeof body);
    ok(strstr(body, "BEGIN CERTIFICATE") != NULL, "  with our CA");
    stream_give(s);
    client_end(&c);
}

static void
test_mistrust(void)
{
    struct client_end c;
    struct fail f = {0};

    client_begin(&c, proxy_port, NULL, true);
    is_int(h3_ready(c.h3, now_ms() + 10000, &f), WHY_CERT,
           "a certificate that is not wanted ends the handshake");
    client_end(&c);
}

static void
test_many(void)
{
    struct client_end c;
    struct stream *s[100];
    char authority[64];
    struct fail f = {0};
    int good = 0;

    client_begin(&c, proxy_port, NULL, false);
    snprintf(authority, sizeof authority, "127.0.0.1:%u", origin_port);
    for (int i = 0; i < 100; i++) {
        s[i] = ask(&c, "GET", authority, "/5000", 0);
        NEED(finish(s[i]));
    }
    for (int i = 0; i < 100; i++) {
        int status = answer(s[i], &f);

        if (status == 200 && content(s[i], NULL, 0) == 5000)
            good++;
        else
            diag("request %d: status %d, %s", i, status,
                 f.op != NULL ? f.op : "nothing failed");
        stream_give(s[i]);
    }
    is_int(good, 100, "a hundred requests at once");
    client_end(&c);
}

static void
test_large(void)
{
    struct client_end c;
    struct stream *s;
    struct fail f = {0};
    char authority[64], block[16384], body[64] = "";
    bool good = true;

    client_begin(&c, proxy_port, NULL, false);
    is_int(get(&c, 20000000), 20000000, "20 MB come down");
    snprintf(authority, sizeof authority, "127.0.0.1:%u", origin_port);
    memset(block, 'y', sizeof block);
    s = ask(&c, "POST", authority, "/", 640 * sizeof block);
    for (int i = 0; i < 640 && good; i++)
        good = s->http.ops->write_body(&s->http,
                                       (struct span){block, sizeof block},
                                       &f) == WHY_NONE &&
               s->http.ops->flush(&s->http, &f) == WHY_NONE;
    ok(good && finish(s), "10 MB go up");
    ok(answer(s, &f) == 200, "  and are answered");
    content(s, body, sizeof body);
    is_str(body, "10485760", "  all of them");
    stream_give(s);
    client_end(&c);
}

/* Nobody reads these bodies: the connection must not run out of window. */
static void
test_unread(void)
{
    struct client_end c;
    char block[60000];
    int good = 0, i;

    memset(block, 'z', sizeof block);
    client_begin(&c, proxy_port, NULL, false);
    for (i = 0; i < 300; i++) {
        struct fail f = {0}, ignored = {0};
        struct stream *s =
            ask(&c, "POST", WEIR_HOST, "/nothing-there", sizeof block);

        if (s->http.ops->write_body(&s->http,
                                    (struct span){block, sizeof block},
                                    &ignored) == WHY_NONE)
            (void)finish(s);
        good += answer(s, &f) >= 400;
        stream_give(s);
    }
    is_int(good, 300, "300 bodies that nobody reads");
    client_end(&c);
}

static void
test_connect(void)
{
    struct client_end c;
    struct stream *s;
    struct fail f = {0};
    struct span data;
    char authority[64];
    int n = 0;

    client_begin(&c, proxy_port, NULL, false);
    snprintf(authority, sizeof authority, "127.0.0.1:%u", echo_port);
    s = ask(&c, "CONNECT", authority, "/", 0);
    NEED(s->http.ops->flush(&s->http, &f) == WHY_NONE);
    is_int(answer(s, &f), 200, "CONNECT is answered");
    for (int i = 0; i < 20; i++) {
        NEED(s->http.ops->write_body(&s->http, span_of("ping\n"), &f) ==
                 WHY_NONE &&
             s->http.ops->flush(&s->http, &f) == WHY_NONE);
        n += s->http.ops->read_body(&s->http, &data, &f) == WHY_NONE &&
             span_is(data, "ping\n");
    }
    is_int(n, 20, "  and is a tunnel");
    NEED(s->http.ops->write_body(&s->http, span_of("last"), &f) == WHY_NONE);
    ok(finish(s), "  one side finishes");
    is_int(content(s, NULL, 0), 4, "  what it said last comes back");
    stream_give(s);
    s = ask(&c, "CONNECT", "127.0.0.1:1", "/", 0);
    NEED(s->http.ops->flush(&s->http, &f) == WHY_NONE);
    is_int(answer(s, &f), 502, "nobody is there: 502");
    stream_give(s);
    client_end(&c);
}

static void
test_loss(void)
{
    struct relay r;
    struct client_end c;
    uint16_t port = relay_begin(&r, 50, 50);
    int good = 0;

    client_begin(&c, port, NULL, false);
    for (int i = 0; i < 20; i++)
        good += get(&c, 20000) == 20000;
    is_int(good, 20, "requests with 5 %% lost and 5 %% out of order");
    is_int(get(&c, 2000000), 2000000, "  and 2 MB");
    client_end(&c);
    relay_end(&r);
}

static void
test_rebind(void)
{
    struct relay r;
    struct client_end c;
    uint16_t port = relay_begin(&r, 0, 0);

    client_begin(&c, port, NULL, false);
    is_int(get(&c, 1000), 1000, "a request");
    atomic_store(&r.rebind, true);
    is_int(get(&c, 3000000), 3000000, "  and one from another port");
    atomic_store(&r.rebind, true);
    is_int(get(&c, 1000), 1000, "  and one more");
    client_end(&c);
    relay_end(&r);
}

/* A client goes without a word, in the middle of an answer. */
static void
vanish(struct relay *r)
{
    struct client_end c;
    uint16_t port = relay_begin(r, 0, 0);
    struct stream *s;
    struct fail f = {0};
    struct span data;
    char authority[64];

    client_begin(&c, port, NULL, false);
    snprintf(authority, sizeof authority, "127.0.0.1:%u", origin_port);
    s = ask(&c, "GET", authority, "/50000000", 0);
    NEED(finish(s) && answer(s, &f) == 200);
    NEED(s->http.ops->read_body(&s->http, &data, &f) == WHY_NONE);
    atomic_store(&r->blind, true);
    stream_give(s);
    client_end(&c);
}

static void
test_gone(void)
{
    struct relay r;
    int64_t until = now_ms() + 20000;

    vanish(&r);
    while (listeners_live(weir.listeners) > 0 && now_ms() < until)
        (void)poll(NULL, 0, 50);
    is_int((long)listeners_live(weir.listeners), 0,
           "a client that vanished in the middle is forgotten");
    relay_end(&r);
}

/* The same, and weir ends while nobody owns what is left of the session. */
static void
test_gone_at_the_end(struct relay *r)
{
    int64_t until = now_ms() + 20000;

    vanish(r);
    while (pool_idle(weir.conns) < WORKERS && now_ms() < until)
        (void)poll(NULL, 0, 20);
    ok(pool_idle(weir.conns) == WORKERS, "one that vanished has no worker");
}

static void
test_refused(void)
{
    int fd = udp_to(1);
    struct client_end c = {.why = WHY_NONE};
    struct config *conf = config_take(&weir);
    struct h3_user user = {.weir = &weir, .verify = verify};
    struct fail f = {0};

    c.h3 = h3_connect(fd, client_tls(NULL), conf, &user);
    config_give(conf);
    NEED(c.h3 != NULL && pthread_create(&c.thread, NULL, client_main, &c) == 0);
    is_int(h3_ready(c.h3, now_ms() + 10000, &f), WHY_REFUSED,
           "nobody is there");
    client_end(&c);
}

/* ---- the world ----------------------------------------------------------- */

static void
world_begin(void)
{
    char home[600], err[512];
    char *sets[] = {home,
                    "log.level=error",
                    "proxy.listen=127.0.0.1:0",
                    "http3.idle_s=3",
                    "proxy.grace_s=1",
                    "http2.stall_s=2"};
    struct pool_conf pool = {.name = "conns",
                             .n_workers = WORKERS,
                             .n_queue = 256,
                             .stack_bytes = 1 << 20,
                             .serve = listeners_serve};
    struct config *conf;

    snprintf(home, sizeof home, "intercept.dir=%s", dir_make());
    conf = config_read(NULL, sets, sizeof sets / sizeof *sets, err, sizeof err);
    if (conf == NULL || !log_setup(conf, err, sizeof err)) {
        diag("%s", err);
        exit(2);
    }
    atomic_store(&weir.config, conf);
    snprintf(weir.via, sizeof weir.via, "test");
    if (listeners_new(&weir, conf, err, sizeof err) == NULL ||
        (weir.mitm = mitm_new(conf, err, sizeof err)) == NULL ||
        (weir.upstreams = upstreams_new(conf, err, sizeof err)) == NULL) {
        diag("%s", err);
        exit(2);
    }
    NEED((weir.conns = pool_new(&pool)) != NULL);
    pool.serve = serve_job;
    NEED((weir.exchanges = pool_new(&pool)) != NULL);
    NEED(listeners_start(weir.listeners, err, sizeof err));
    proxy_port = weir.ports[0];
}

static void
world_end(void)
{
    atomic_store(&weir.draining, true);
    listeners_stop_accepting(weir.listeners);
    if (!listeners_wait_idle(weir.listeners, 10000)) {
        diag("connections are left");
        exit(2);
    }
    listeners_free(weir.listeners);
    pool_free(weir.conns);
    pool_free(weir.exchanges);
    dns_stop();
    upstreams_free(weir.upstreams);
    mitm_free(weir.mitm);
    config_give(atomic_load(&weir.config));
    dir_remove();
}

int
main(void)
{
    struct server origin = {.serve = origin_serve},
                  echo = {.serve = echo_serve};
    pthread_t origin_thread, echo_thread;
    struct relay r;

    NEED(gnutls_certificate_allocate_credentials(&nobody) == 0);
    world_begin();
    origin.listener = net_listen(AF_INET, &origin_port);
    echo.listener = net_listen(AF_INET, &echo_port);
    NEED(pthread_create(&origin_thread, NULL, server_main, &origin) == 0 &&
         pthread_create(&echo_thread, NULL, server_main, &echo) == 0);
    test_own_page();
    test_mistrust();
    test_refused();
    test_many();
    test_large();
    test_unread();
    test_connect();
    test_loss();
    test_rebind();
    test_gone();
    test_gone_at_the_end(&r);
    world_end();
    relay_end(&r);
    shutdown(origin.listener, SHUT_RDWR);
    shutdown(echo.listener, SHUT_RDWR);
    pthread_join(origin_thread, NULL);
    pthread_join(echo_thread, NULL);
    close(origin.listener);
    close(echo.listener);
    gnutls_certificate_free_credentials(nobody);
    return done_testing();
}
