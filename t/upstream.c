/*
 * t/upstream.c - ways to origins, and the cache of idle ones.
 */
#include "proxy.h"
#include "t/net.h"
#include "t/tap.h"

static struct weir weir;
static struct config *conf;
static struct client client;
static char err[512];
static const struct span no_upgrade = {"", 0};

/* New settings, and an empty cache. */
static void
begin(char *const *sets, size_t n)
{
    conf = config_read(NULL, sets, n, err, sizeof err);
    if (conf == NULL ||
        (weir.upstreams = upstreams_new(conf, err, sizeof err)) == NULL) {
        diag("%s", err);
        exit(2);
    }
    client = (struct client){.weir = &weir, .conf = conf, .stream = -1};
}

static void
finish(void)
{
    upstreams_free(weir.upstreams);
    config_give(conf);
}

struct place { /* an origin, and what it listens with */
    struct origin o;
    int listener;
};

static struct place
place(void)
{
    struct place p = {.o.host = "127.0.0.1"};

    p.listener = net_listen(AF_INET, &p.o.port);
    return p;
}

static struct upstream *
take(const struct place *p)
{
    struct fail f = {0};
    struct upstream *up = upstream_take(&client, &p->o, no_upgrade, false, &f);

    NEED(up != NULL);
    return up;
}

/* A new way, with the origin's socket of it. */
static struct upstream *
take_new(const struct place *p, int *peer)
{
    struct fail f = {0};
    struct upstream *up = upstream_take(&client, &p->o, no_upgrade, true, &f);

    NEED(up != NULL);
    *peer = net_accept(p->listener);
    return up;
}

/* Is it open still?  Does not wait, so ask only once what closes it is over. */
static bool
is_open(int peer)
{
    char byte;

    return recv(peer, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

/* ---- reuse --------------------------------------------------------------- */

static void
reuse(void)
{
    struct place p = place();
    struct upstream *up, *other;
    struct fail f = {0};
    int peer, second;
    char addr[ADDR_MAX];

    begin(NULL, 0);
    up = take(&p);
    ok(!up->reused && up->http != NULL, "a new way, ready to speak on");
    snprintf(addr, sizeof addr, "127.0.0.1:%u", p.o.port);
    is_str(up->addr, addr, "where it leads to");
    ok(up->took.dns_us >= 0 && up->took.connect_us >= 0, "what it took");
    is_int(up->took.tls_us, -1, "without TLS");
    peer = net_accept(p.listener);
    ok(!upstream_has(&client, &p.o), "none is idle");
    upstream_give(&client, up);
    ok(upstream_has(&client, &p.o), "one is idle");
    other = take(&p);
    ok(other == up && other->reused, "it is reused");
    ok(!net_called(p.listener), "the origin saw no second one");
    ok(!upstream_has(&client, &p.o), "none is idle any more");

    other = upstream_take(&client, &p.o, no_upgrade, true, &f);
    ok(other != NULL && !other->reused, "one that has to be new");
    second = net_accept(p.listener);
    upstream_give(&client, up);
    upstream_give(&client, other);
    up = take(&p);
    ok(up == other, "the one used last is reused first");
    upstream_free(up);
    ok(net_ended(second), "one that is freed is closed");
    ok(is_open(peer), "the other is not");
    upstream_give(&client, NULL);
    upstream_free(NULL);
    finish();
    ok(net_ended(peer), "at the end all are");
    close(peer);
    close(second);
    close(p.listener);
}

static void
dead_ones(void)
{
    struct place p = place();
    struct upstream *up;
    int peer, next;

    begin(NULL, 0);
    up = take_new(&p, &peer);
    upstream_give(&client, up);
    close(peer);
    NEED(end_wait(&up->end, NET_LIMIT_S * 1000));
    ok(!upstream_has(&client, &p.o), "one that the origin closed is none");
    up = take_new(&p, &peer);
    upstream_give(&client, up);
    net_reset(peer);
    NEED(end_wait(&up->end, NET_LIMIT_S * 1000));
    up = take(&p);
    ok(!up->reused, "nor is one that it reset");
    peer = net_accept(p.listener);

    upstream_give(&client, up);
    net_say(peer, "HTTP/1.1 408 Request Timeout\r\n\r\n");
    NEED(end_wait(&up->end, NET_LIMIT_S * 1000));
    up = take_new(&p, &next);
    ok(!up->reused, "bytes that nobody asked for: not reused");
    upstream_give(&client, up);
    up = take(&p);
    ok(up->reused, "another one is");
    ok(!upstream_has(&client, &p.o), "and that was the last");
    {
        int error;

        (void)net_rest(peer, &error);
        ok(error == 0 || error == ECONNRESET, "the first one was closed");
    }
    upstream_free(up);
    close(peer);
    close(next);
    close(p.listener);
    finish();
}

static void
old_ones(void)
{
    char *sets[] = {"upstream.reuse_s=60"};
    struct place p = place();
    struct upstream *up;
    int peer, other;
    int64_t then;

    begin(sets, 1);
    up = take_new(&p, &peer);
    upstream_give(&client, up);
    then = up->given_at -= 50 * 1000; /* the cache is ours alone: no lock */
    ok(upstream_has(&client, &p.o), "idle for 50 s of 60");
    is_int(up->given_at, then, "to ask for it makes it no younger");
    upstreams_reap(weir.upstreams, conf);
    ok(is_open(peer), "it stays open");
    up->given_at -= 11 * 1000;
    up = take(&p);
    ok(!up->reused, "after 61 s it is not reused");
    ok(net_ended(peer), "but closed");
    close(peer);
    peer = net_accept(p.listener);
    upstream_give(&client, up);
    up->given_at -= 61 * 1000;
    up = take_new(&p, &other);
    upstream_give(&client, up);
    upstreams_reap(weir.upstreams, conf);
    ok(net_ended(peer), "the reaper closes the old");
    ok(is_open(other), "and no other");
    close(peer);
    close(other);
    close(p.listener);
    finish();
}

/* ---- limits -------------------------------------------------------------- */

static void
per_origin(void)
{
    char *sets[] = {"upstream.reuse_per_origin=2"};
    struct place p = place(), q = place();
    struct upstream *up[3], *elsewhere;
    int peer[3], far;

    begin(sets, 1);
    elsewhere = take_new(&q, &far);
    upstream_give(&client, elsewhere);
    for (int i = 0; i < 3; i++)
        up[i] = take_new(&p, &peer[i]);
    for (int i = 0; i < 3; i++)
        upstream_give(&client, up[i]);
    ok(is_open(peer[0]), "two for an origin: a third may stay for a moment");
    elsewhere->given_at -= 5000; /* the list is in this order */
    up[0]->given_at -= 5000;
    upstreams_reap(weir.upstreams, conf);
    ok(net_ended(peer[0]), "then it is closed, being the oldest");
    ok(is_open(peer[1]) && is_open(peer[2]), "the other two stay");
    ok(is_open(far), "and those of other origins");
    for (int i = 0; i < 3; i++)
        close(peer[i]);
    close(far);
    close(p.listener);
    close(q.listener);
    finish();
}

static void
in_total(void)
{
    char *sets[] = {"upstream.reuse_total=2"};
    struct place p[3] = {place(), place(), place()};
    int peer[3];

    begin(sets, 1);
    for (int i = 0; i < 3; i++)
        upstream_give(&client, take_new(&p[i], &peer[i]));
    upstreams_reap(weir.upstreams, conf);
    ok(net_ended(peer[0]), "two in total: of three the oldest is closed");
    ok(is_open(peer[1]) && is_open(peer[2]), "the other two stay");
    for (int i = 0; i < 3; i++) {
        close(peer[i]);
        close(p[i].listener);
    }
    finish();
}

static void
not_kept(const char *why, char *set, bool bound, bool draining)
{
    struct place p = place();
    struct upstream *up;
    int peer;

    begin(&set, set != NULL);
    up = take_new(&p, &peer);
    up->bound = bound;
    atomic_store(&weir.draining, draining);
    upstream_give(&client, up);
    atomic_store(&weir.draining, false);
    ok(net_ended(peer), "closed when given: %s", why);
    ok(!upstream_has(&client, &p.o), "  and not kept");
    close(peer);
    close(p.listener);
    finish();
}

/* ---- bare ways ----------------------------------------------------------- */

static void
bare(void)
{
    struct place p = place();
    struct upstream *up, *other;
    struct fail f = {0};
    int peer;

    begin(NULL, 0);
    up = upstream_dial(&client, &p.o, &f);
    NEED(up != NULL);
    peer = net_accept(p.listener);
    ok(up->http == NULL, "dialled: nothing to speak on yet");
    ok(upstream_alive(up), "alive");
    upstream_give(&client, up);
    ok(upstream_has(&client, &p.o), "a bare way can be kept");
    other = take(&p);
    ok(other == up && other->http != NULL, "and is made ready when taken");
    ok(!other->reused, "it carried nothing before");
    upstream_free(other);
    close(peer);
    close(p.listener);

    up = upstream_take(&client, &p.o, no_upgrade, false, &f);
    ok(up == NULL, "nobody listens any more");
    is_int(f.why, WHY_REFUSED, "refused");
    finish();
}

static void
settings_change(void)
{
    struct place p = place();
    struct config *before, *after;
    struct upstream *up;
    int peer;

    begin(NULL, 0);
    before = conf;
    up = take_new(&p, &peer);
    upstream_give(&client, up);
    after = config_read(NULL, NULL, 0, err, sizeof err);
    NEED(after != NULL);
    client.conf = after;
    ok(!upstream_has(&client, &p.o), "other settings led to it: not reused");
    client.conf = before;
    ok(upstream_has(&client, &p.o), "by those that did it is");
    config_give(after);
    close(peer);
    close(p.listener);
    finish();
}

static void
sameness(void)
{
    struct origin a = {.host = "a.test", .port = 80}, b = a;

    ok(origin_same(&a, &b), "the same place");
    b.tls = true;
    ok(!origin_same(&a, &b), "but for TLS");
    b = a;
    b.port = 81;
    ok(!origin_same(&a, &b), "but for the port");
    b = a;
    b.host[0] = 'b';
    ok(!origin_same(&a, &b), "but for the host");
    b = a;
    b.sni[0] = 'c';
    ok(!origin_same(&a, &b), "but for the name in TLS");
}

/* ---- many at once -------------------------------------------------------- */

enum { CROWD = 4, ROUNDS = 100 };

static void *
crowd_run(void *arg)
{
    const struct place *p = arg;
    int reused = 0;

    for (int i = 0; i < ROUNDS; i++) {
        struct upstream *up = take(p);

        reused += up->reused;
        upstream_give(&client, up);
        (void)upstream_has(&client, &p->o);
    }
    return reused > 0 ? arg : NULL;
}

static void
crowd(void)
{
    struct place p = place();
    pthread_t threads[CROWD];
    int n_reusing = 0, n_ways = 0;

    begin(NULL, 0);
    for (int i = 0; i < CROWD; i++)
        threads[i] = net_thread(crowd_run, &p);
    for (int i = 0; i < CROWD; i++) {
        void *reused;

        pthread_join(threads[i], &reused);
        n_reusing += reused != NULL;
    }
    is_int(n_reusing, CROWD, "several threads, one origin: all reuse");
    while (net_called(p.listener)) {
        close(net_accept(p.listener));
        n_ways++;
    }
    ok(n_ways < CROWD * ROUNDS / 2, "a few ways served: %d", n_ways);
    close(p.listener);
    finish();
}

int
main(void)
{
    sameness();
    reuse();
    dead_ones();
    old_ones();
    per_origin();
    in_total();
    not_kept("none for an origin", "upstream.reuse_per_origin=0", false, false);
    not_kept("none at all", "upstream.reuse_total=0", false, false);
    not_kept("logged in", NULL, true, false);
    not_kept("weir drains", NULL, false, true);
    bare();
    settings_change();
    crowd();
    dns_stop();
    return done_testing();
}
