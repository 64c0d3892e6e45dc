/*
 * conn.c - the life of one connection, as a table of states.
 *
 * A worker runs a connection's states one after the other; each does one thing
 * and names the next.  Two of them have rooms of their own: detect.c finds out
 * what the client speaks, handshake.c has its TLS.  A connection that is
 * waiting for its client gives its worker back: it is parked with the accept
 * thread and goes on where it was.
 *
 * Follows  RFC 9112 section 9 (connections), RFC 9110 section 9.3.6 (CONNECT).
 * Owns     the client's end, and the way to the origin kept for it.
 * Threads  one worker at a time; the accept thread while it is parked.
 * Blocks   in every state, within the clocks of proxy.ini.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

enum { CLOSE_MS = 1000 }; /* how long a closing connection is drained */

/* ---- waiting and parking ------------------------------------------------- */

/* Give the worker back until the client sends something, or `until_ms`. */
enum conn_state
conn_park(struct conn *c, enum conn_state resume, int64_t until_ms)
{
    end_drop_buffer(&c->end);
    if (c->end.len == 0) { /* between requests: idle costs next to nothing */
        head_clear(&c->req);
        head_clear(&c->res);
        if (c->up != NULL && !c->up->bound && c->up->http != NULL) {
            upstream_give(&c->client, c->up);
            c->up = NULL;
        }
    }
    c->resume = resume;
    c->until = until_ms;
    return ST_PARKED;
}

/* When an idle connection that is parked now is given up. */
int64_t
conn_idle_until(const struct conn *c)
{
    return now_ms() + c->client.conf->idle_s * 1000LL;
}

/* Nothing more, and nothing left to say. */
enum conn_state
conn_goodbye(struct conn *c, const struct fail *f)
{
    c->fail = *f;
    return ST_CLOSE;
}

/* ---- request, linger ----------------------------------------------------- */

/* The settings may have been read anew since the last request. */
static void
refresh_config(struct conn *c)
{
    struct weir *w = c->client.weir;

    if (atomic_load(&w->config) != c->client.conf) {
        config_give(c->client.conf);
        c->client.conf = config_take(w);
        c->client.denied = access_client(
            c->client.conf, (const struct sockaddr *)&c->client.from);
    }
}

static void
exchange_begin(struct conn *c, struct exchange *x)
{
    *x = (struct exchange){.client = &c->client,
                           .worker = c->worker,
                           .down = &c->h1.http,
                           .req = &c->req,
                           .res = &c->res,
                           .up = c->up,
                           .begun_us = now_us()};
    c->up = NULL;
}

/* What came is no request, or a CONNECT that leads nowhere: answer, close. */
static enum conn_state
refuse(struct conn *c, const struct fail *f)
{
    struct exchange x;

    c->fail = *f;
    exchange_begin(c, &x);
    x.fail = *f;
    if (exchange_refuse(&x) == EXCHANGE_CUT)
        c->cut = true;
    c->up = x.up; /* idle since the request before */
    return ST_CLOSE;
}

/*
 * connect_route - where a CONNECT leads, and whether it may.
 *
 * c   what a parent has to be told of the request is kept in it
 * to  filled in
 *
 * Returns WHY_NONE; as head_route() and access_request(); WHY_LOOP.
 */
enum why
connect_route(struct client *c, struct head *req, struct origin *to,
              struct fail *f)
{
    bool ourselves = false;
    enum why why = head_route(req, c, to, &ourselves, f);

    if (why == WHY_NONE)
        why = access_request(c, req, false, f);
    if (why == WHY_NONE && head_came_by(req, c->weir->via))
        why = fail_own(f, SIDE_WEIR, WHY_LOOP, "Via names us");
    upstream_note_request(c, req);
    to->tunnel = true;
    return why;
}

/* CONNECT: where to?  RFC 9112 section 3.2.3. */
static enum conn_state
request_connect(struct conn *c)
{
    struct fail f = {0};

    if (connect_route(&c->client, &c->req, &c->target, &f) != WHY_NONE)
        return refuse(c, &f);
    c->client.own_name = strcmp(c->target.host, WEIR_HOST) == 0;
    c->spoke = "connect";
    return ST_DIAL;
}

/* One request head, complete. */
static enum conn_state
conn_request(struct conn *c)
{
    struct fail f = {0};
    enum why why;

    refresh_config(c);
    why = h1_try_head(&c->h1, &c->req, &f);
    if (why == WHY_MORE && c->h1.head_from != 0 &&
        now_ms() >= c->h1.head_from + c->h1.limits.head_ms)
        why = fail_own(&f, SIDE_CLIENT, WHY_LATE, "read request head");
    if (why == WHY_MORE)
        return ST_LINGER;
    if (why != WHY_NONE)
        return refuse(c, &f);
    if (c->req.method_id == METHOD_CONNECT && c->client.inside != NULL) {
        fail_own(&f, SIDE_CLIENT, WHY_UNKNOWN, "CONNECT behind other requests");
        return refuse(c, &f);
    }
    if (c->req.method_id == METHOD_CONNECT)
        return request_connect(c);
    return masque_wanted(&c->client, &c->req) ? ST_MASQUE : ST_EXCHANGE;
}

/* No complete request yet: wait a moment, then park. */
static enum conn_state
conn_linger(struct conn *c)
{
    const struct config *conf = c->client.conf;
    struct fail f = {0};
    enum why why;

    if (c->end.len == 0 && atomic_load(&c->client.weir->draining))
        return ST_CLOSE;
    c->end.idle_ms = conf->linger_ms;
    why = end_fill(&c->end, c->h1.limits.head_bytes + END_BUF, &f);
    c->end.idle_ms = conf->idle_s * 1000;
    if (why == WHY_NONE)
        return ST_REQUEST;
    if (why == WHY_IDLE)
        return conn_park(c, ST_REQUEST,
                         c->h1.head_from != 0
                             ? c->h1.head_from + c->h1.limits.head_ms
                             : conn_idle_until(c));
    if (c->end.len == 0) /* before the first byte: an ordinary goodbye */
        return ST_CLOSE;
    if (why == WHY_EOF)
        fail_own(&f, SIDE_CLIENT, WHY_CUT, "read request head");
    head_reset(&c->req); /* of the request before, perhaps */
    return refuse(c, &f);
}

/* ---- socks --------------------------------------------------------------- */

/* A request that is not granted leaves no exchange behind to be logged. */
static void
log_socks(const struct conn *c, enum socks_code code)
{
    char target[HOST_MAX + 16];
    struct line l;

    if (!log_on(LEVEL_INFO))
        return;
    snprintf(target, sizeof target,
             strchr(c->socks.host, ':') != NULL ? "[%s]:%u" : "%s:%u",
             c->socks.host, c->socks.port);
    log_begin(&l, LEVEL_INFO, "socks", c->client.id);
    log_str(&l, "client", c->client.addr);
    log_int(&l, "version", c->socks.version);
    log_int(&l, "command", c->socks.command);
    log_str(&l, "target", target);
    log_int(&l, "reply", code);
    log_fail(&l, &c->fail);
    log_send(&l);
}

/* No: RFC 1928 section 6 wants the connection closed after that. */
static enum conn_state
socks_refuse(struct conn *c, enum socks_code code, const struct fail *f)
{
    struct fail ignored = {0};

    c->fail = *f;
    log_socks(c, code);
    if (socks_answer(&c->socks, &c->end, code, NULL, &ignored) != WHY_NONE)
        c->cut = true;
    return ST_CLOSE;
}

/* The whole request is here. */
static enum conn_state
socks_request(struct conn *c)
{
    struct fail f = {0};

    if (c->client.denied != NULL) {
        access_denied(&c->client, NULL, 0, c->client.denied, &f);
        return socks_refuse(c, SOCKS_DENIED, &f);
    }
    switch (c->socks.command) {
    case SOCKS_CONNECT:
        if (c->socks.port == 0)
            break;
        c->target = (struct origin){.port = c->socks.port, .tunnel = true};
        memcpy(c->target.host, c->socks.host, sizeof c->target.host);
        c->client.own_name = strcmp(c->target.host, WEIR_HOST) == 0;
        return ST_DIAL;
    case SOCKS_UDP:
        if (c->socks.version == 5)
            return ST_UDP;
        /* fallthrough */
    default: /* BIND waits for a server that connects back: FTP's old way */
        fail_own(&f, SIDE_CLIENT, WHY_UNKNOWN, "SOCKS command");
        return socks_refuse(c, SOCKS_NO_COMMAND, &f);
    }
    fail_own(&f, SIDE_CLIENT, WHY_PROTO, "port 0");
    return socks_refuse(c, SOCKS_FAILED, &f);
}

/* Datagrams, for as long as the connection stands. */
static enum conn_state
conn_udp(struct conn *c)
{
    struct fail f = {0};
    struct udp_result r;
    struct line l;

    (void)udp_relay(&c->client, &c->end, &c->socks, &r, &f);
    c->fail = f;
    if (!log_on(LEVEL_INFO))
        return ST_CLOSE;
    log_begin(&l, LEVEL_INFO, "udp", c->client.id);
    log_str(&l, "client", c->client.addr);
    log_int(&l, "up", (int64_t)r.up);
    log_int(&l, "down", (int64_t)r.down);
    log_ms(&l, "ms", now_us() - c->began_us);
    log_fail(&l, &f);
    log_send(&l);
    return ST_CLOSE;
}

/* Datagrams behind an Upgrade, for as long as the connection stands. */
static enum conn_state
conn_masque(struct conn *c)
{
    struct fail f = {0};
    struct masque *m = masque_open(&c->client, &c->req, &f);

    if (m == NULL)
        return refuse(c, &f);
    c->spoke = c->client.tls ? "tls+connect-udp" : "connect-udp";
    c->client.n_exchanges++;
    c->cut = true; /* it is finished, or cut, when the tunnel is over */
    if (masque_answer(&c->h1.http, &c->res, &f) == WHY_NONE) {
        head_clear(&c->req);
        head_clear(&c->res);
        masque_run(m, c->worker,
                   (struct tunnel_side){.end = h1_take_raw(&c->h1)}, NULL);
    }
    masque_free(m);
    return conn_goodbye(c, &f);
}

/* One SOCKS conversation, up to its request. */
static enum conn_state
conn_socks(struct conn *c)
{
    struct fail f = {0};
    enum why why;

    while ((why = socks_listen(&c->socks, &c->end, &c->client, &f)) ==
           WHY_MORE) {
        if (now_ms() >= c->socks.until) {
            fail_own(&f, SIDE_CLIENT, WHY_LATE, "read SOCKS request");
            return conn_goodbye(c, &f);
        }
        c->end.idle_ms = c->client.conf->linger_ms;
        why = end_fill(&c->end, END_BUF, &f);
        c->end.idle_ms = c->client.conf->idle_s * 1000;
        if (why == WHY_IDLE)
            return conn_park(c, ST_SOCKS, c->socks.until);
        if (why == WHY_EOF)
            why = fail_own(&f, SIDE_CLIENT, WHY_CUT, "read SOCKS request");
        if (why != WHY_NONE)
            return conn_goodbye(c, &f);
    }
    return why == WHY_NONE ? socks_request(c) : conn_goodbye(c, &f);
}

/* ---- dial: the target of a CONNECT --------------------------------------- */

/* Success, in the words of RFC 9110 section 9.3.6: no length, no coding. */
static enum why
answer_connect(struct conn *c, struct fail *f)
{
    struct http *down = &c->h1.http;
    enum why why;

    head_reset(&c->res);
    c->res.version = HTTP_11;
    c->res.status = 200;
    c->res.reason = span_of("Connection established");
    c->res.body = BODY_RAW;
    why = down->ops->write_head(down, &c->res, f);
    return why == WHY_NONE ? down->ops->flush(down, f) : why;
}

/* May what follows be looked into?  If not there is no need to wait for it.  An
 * address can still turn out, by SNI, to be a name that is on the list. */
bool
conn_wants(const struct config *conf, const struct origin *o)
{
    if (host_is_address(o->host))
        return conf->intercept && !match_host(conf->except, o->host, o->port);
    return mitm_wants(conf, o->host, o->port);
}

/* The same to a SOCKS client, with our address on the way if there is one. */
static enum why
answer_socks(struct conn *c, struct fail *f)
{
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    bool known = c->up != NULL &&
                 getsockname(c->up->end.fd, (struct sockaddr *)&at, &len) == 0;

    return socks_answer(&c->socks, &c->end, SOCKS_OK,
                        known ? (struct sockaddr *)&at : NULL, f);
}

/* Reach the target, tell the client, and look at what it says next. */
static enum conn_state
conn_dial(struct conn *c)
{
    bool socks = c->socks.version != 0;
    bool wanted = conn_wants(c->client.conf, &c->target);
    struct origin https = c->target;
    struct fail f = {0};

    https.tls = true;
    if (c->up != NULL) {
        upstream_give(&c->client, c->up);
        c->up = NULL;
    }
    /* An idle connection to the same origin proves as much as a new one. */
    if (!c->client.own_name &&
        !(wanted && upstream_reaches(&c->client, &https)) &&
        (c->up = upstream_dial(&c->client, &c->target, &f)) == NULL)
        return socks ? socks_refuse(c, socks_code(&f), &f) : refuse(c, &f);
    if ((socks ? answer_socks(c, &f) : answer_connect(c, &f)) != WHY_NONE)
        return conn_goodbye(c, &f);
    if (!socks)
        h1_take_raw(&c->h1);
    c->socks.version = 0; /* what follows may be anything */
    h1_clear(&c->h1);
    h1_init(&c->h1, &c->end, SIDE_CLIENT, c->client.conf);
    c->target_known = true;
    c->client.inside = c->client.own_name ? NULL : &c->target;
    if (c->client.own_name) /* in here it may speak TLS once more */
        c->client.tls = false;
    c->opaque = !wanted && !c->client.own_name;
    return ST_DETECT;
}

/* ---- exchange ------------------------------------------------------------ */

/* One exchange; afterwards another may follow, or a tunnel. */
static enum conn_state
conn_exchange(struct conn *c)
{
    struct exchange x;
    enum exchange_end how;

    exchange_begin(c, &x);
    how = exchange_run(&x);
    c->up = x.up;
    if (how != EXCHANGE_KEEP)
        c->fail = x.fail; /* it ends the connection, too */
    switch (how) {
    case EXCHANGE_KEEP:
        return ST_REQUEST;
    case EXCHANGE_RAW:
        c->switched = true;
        h1_take_raw(&c->h1);
        c->tunnel_idle_ms = c->client.conf->stream_idle_s * 1000;
        return ST_TUNNEL;
    case EXCHANGE_CUT:
        c->cut = true;
        return ST_CLOSE;
    case EXCHANGE_CLOSE:
        break;
    }
    return ST_CLOSE;
}

/* ---- session ------------------------------------------------------------- */

/* A request has come on a stream: another pool serves it. */
static bool
session_begin(void *arg, struct stream *s, struct fibers *fibers)
{
    struct conn *c = arg;
    struct served *served = served_new(s, &c->client);

    if (served == NULL) {
        stream_give(s);
        return false;
    }
    return serve_begin(served, fibers);
}

/* Own an HTTP/2 session until it is over, or silent without a stream. */
static enum conn_state
conn_session(struct conn *c)
{
    const struct config *conf = c->client.conf;
    struct h2_user user = {.weir = c->client.weir,
                           .begin = session_begin,
                           .arg = c,
                           .id = c->client.id};
    struct fail f = {0};
    enum why why;

    if (c->h2 == NULL) {
        c->spoke = c->client.inside != NULL && c->client.inside->tls
                       ? "intercepted+http/2"
                   : c->client.tls ? "tls+http/2"
                                   : "http/2";
        upstream_give(&c->client, c->up); /* its streams take their own */
        c->up = NULL;
        h1_clear(&c->h1);
        c->h2 = h2_new(&c->end, SIDE_CLIENT, conf, &user);
    }
    if (c->h2 == NULL) {
        c->cut = true;
        fail_own(&f, SIDE_WEIR, WHY_BUSY, "out of memory");
        return conn_goodbye(c, &f);
    }
    why = h2_run(c->h2, conf->linger_ms, &f);
    if (why == WHY_NONE)
        return conn_park(c, ST_SESSION, conn_idle_until(c));
    h2_free(c->h2);
    c->h2 = NULL;
    c->cut = (why != WHY_EOF && why != WHY_PROTO) || end_unsent(&c->end);
    return conn_goodbye(c, &f);
}

/* ---- QUIC ---------------------------------------------------------------- */

/* Own an HTTP/3 session until it is over, or silent without a stream. */
static enum conn_state
conn_quic(struct conn *c)
{
    const struct config *conf = c->client.conf;
    struct h3_user user = {.weir = c->client.weir,
                           .arg = c,
                           .begin = session_begin,
                           .hello = handshake_quic,
                           .id = c->client.id};
    struct quic_bytes bytes;
    struct fail f = {0};
    enum why why;

    c->cut = true; /* there is no end to be drained */
    if (c->h3 == NULL && c->client.denied != NULL) {
        access_denied(&c->client, NULL, 0, c->client.denied, &f);
        wire_refuse(c->wire);
        return conn_goodbye(c, &f);
    }
    if (c->h3 == NULL) {
        c->spoke = "quic";
        c->h3 = h3_accept(c->wire, conf, &user);
    }
    if (c->h3 == NULL) {
        wire_refuse(c->wire);
        fail_own(&f, SIDE_WEIR, WHY_BUSY, "out of memory");
        return conn_goodbye(c, &f);
    }
    why = h3_run(c->h3, conf->linger_ms, &f);
    c->client.n_exchanges = h3_served(c->h3);
    bytes = h3_bytes(c->h3);
    c->end.n_in = bytes.in;
    c->end.n_out = bytes.out;
    c->wake_fd = h3_wake_fd(c->h3);
    if (why == WHY_NONE)
        return conn_park(c, ST_QUIC, h3_until(c->h3));
    if (c->fail.why != WHY_NONE) /* handshake_quic() knows better */
        f = c->fail;
    if (f.why == WHY_IDLE && c->client.n_exchanges > 0)
        f = (struct fail){0}; /* the ordinary end of a QUIC connection */
    conn_log_refusal(c, c->hello.sni[0] != '\0' ? c->hello.sni : "us", &f);
    return conn_goodbye(c, &f);
}

/* ---- tunnel -------------------------------------------------------------- */

/* The way that goes with what the client has: TLS if it was intercepted. */
static enum why
tunnel_way(struct conn *c, struct fail *f)
{
    if (c->switched)
        return WHY_NONE;
    if (c->up != NULL && c->up->stream != NULL) {
        upstream_free(c->up); /* it speaks HTTP/2: no way for other bytes */
        c->up = NULL;
    }
    if (c->up == NULL)
        c->up = upstream_dial(&c->client, &c->target, f);
    if (c->up == NULL)
        return f->why;
    if (c->up->http == NULL && c->target.tls)
        return upstream_ready(&c->client, c->up, ALPN_HTTP1, f);
    return WHY_NONE;
}

/* Opaque bytes both ways.  Never back to anything else. */
static enum conn_state
conn_tunnel(struct conn *c)
{
    const struct config *conf = c->client.conf;
    int64_t from_us = now_us();
    struct tunnel_side client = {.end = &c->end}, server;
    struct fail f = {0};

    if (tunnel_way(c, &f) != WHY_NONE) {
        c->cut = true;
        return conn_goodbye(c, &f);
    }
    head_clear(&c->req);
    head_clear(&c->res);
    h1_clear(&c->h1);
    server = c->switched ? upstream_side(c->up)
                         : (struct tunnel_side){.end = &c->up->end};
    tunnel_run(c->worker, c->client.weir, client, server,
               c->tunnel_idle_ms != 0 ? c->tunnel_idle_ms : conf->idle_s * 1000,
               conf->half_closed_s * 1000, &c->tunnel);
    tunnel_log(&c->client, c->up, &c->tunnel, from_us);
    c->fail = c->tunnel.fail;
    c->cut = !c->tunnel.lost; /* else both were finished, or cut, one by one */
    upstream_free(c->up);
    c->up = NULL;
    return ST_CLOSE;
}

/* ---- close --------------------------------------------------------------- */

/* Finish our direction and let the client finish its own: closing with bytes
 * unread would reset it while it still reads our answer (RFC 9112 section
 * 9.6). */
static void
drain(struct conn *c)
{
    struct fail ignored = {0};
    char buf[4096];
    size_t n;

    if (end_finish(&c->end, &ignored) != WHY_NONE)
        return;
    c->end.deadline = now_ms() + CLOSE_MS;
    while (end_read(&c->end, buf, sizeof buf, &n, &ignored) == WHY_NONE)
        ;
}

static void
log_close(const struct conn *c)
{
    struct line l;

    if (!log_on(LEVEL_INFO))
        return;
    log_begin(&l, LEVEL_INFO, "close", c->client.id);
    log_str(&l, "client", c->client.addr);
    log_str(&l, "spoke", c->spoke);
    log_int(&l, "exchanges", (int64_t)c->client.n_exchanges);
    log_int(&l, "in", (int64_t)c->end.n_in);
    log_int(&l, "out", (int64_t)c->end.n_out);
    log_ms(&l, "ms", now_us() - c->began_us);
    log_fail(&l, &c->fail);
    log_send(&l);
}

/* The only way to DONE: say goodbye, log the one line. */
static enum conn_state
conn_close(struct conn *c)
{
    upstream_give(&c->client, c->up);
    c->up = NULL;
    if (!c->cut)
        drain(c);
    log_close(c);
    return ST_DONE;
}

/* ---- the life ------------------------------------------------------------ */

static const struct step {
    const char *name;
    enum conn_state (*run)(struct conn *c);
} steps[] = {
    [ST_DETECT] = {"detect", conn_detect},          /* what does it speak? */
    [ST_HANDSHAKE] = {"handshake", conn_handshake}, /* TLS, as whom? */
    [ST_REQUEST] = {"request", conn_request},       /* one head, complete */
    [ST_DIAL] = {"dial", conn_dial},                /* a CONNECT's target */
    [ST_EXCHANGE] = {"exchange", conn_exchange},    /* request, answer */
    [ST_SESSION] = {"session", conn_session},       /* HTTP/2, its owner */
    [ST_QUIC] = {"quic", conn_quic},                /* HTTP/3, its owner */
    [ST_TUNNEL] = {"tunnel", conn_tunnel},          /* opaque, to the end */
    [ST_LINGER] = {"linger", conn_linger},          /* for more, or park */
    [ST_SOCKS] = {"socks", conn_socks},             /* up to its request */
    [ST_UDP] = {"udp", conn_udp},                   /* datagrams, to the end */
    [ST_MASQUE] = {"masque", conn_masque},          /* the same, by capsules */
    [ST_CLOSE] = {"close", conn_close},             /* the only way to DONE */
};

/*
 * conn_run - live on until the client has to be waited for, or it is over.
 *
 * Returns ST_PARKED: hand it to the accept thread, c->until says how long it
 * may wait; when the client sends, run it again.  ST_DONE: conn_free() it.
 * Thread: a worker.  Blocks: yes.
 */
enum conn_state
conn_run(struct conn *c, struct worker *w)
{
    c->worker = w;
    if (c->state == ST_PARKED)
        c->state = c->resume;
    while (c->state != ST_DONE && c->state != ST_PARKED) {
        if (log_on(LEVEL_DEBUG))
            log_say(LEVEL_DEBUG, c->client.id, "state", "%s",
                    steps[c->state].name);
        c->state = steps[c->state].run(c);
    }
    c->worker = NULL;
    return c->state;
}

/*
 * conn_new - a connection that was just accepted.
 *
 * fd    its socket, blocking; closed by conn_free()
 * sa    the client's address
 *
 * Returns NULL when out of memory; fd is then still the caller's.
 */
struct conn *
conn_new(struct weir *w, int fd, const struct sockaddr *sa, socklen_t len)
{
    struct conn *c = calloc(1, sizeof *c);

    if (c == NULL)
        return NULL;
    c->client.weir = w;
    c->client.conf = config_take(w);
    c->client.id = atomic_fetch_add(&w->n_conns, 1) + 1;
    c->client.stream = -1;
    address_text(sa, c->client.addr);
    memcpy(&c->client.from, sa, len);
    c->client.denied = access_client(c->client.conf, sa);
    end_init(&c->end, fd, SIDE_CLIENT, c->client.conf->idle_s * 1000);
    /* The listener's timeouts came with the socket: socket(7), listen.c. */
    c->end.rcv_ms = c->end.snd_ms = c->end.idle_ms;
    h1_init(&c->h1, &c->end, SIDE_CLIENT, c->client.conf);
    head_init(&c->req);
    head_init(&c->res);
    c->spoke = "nothing";
    c->epoll_fd = -1;
    c->began_us = now_us();
    c->state = ST_PARKED;
    c->resume = ST_DETECT;
    c->until = conn_idle_until(c);
    return c;
}

/*
 * conn_new_inside - a connection to a target that is known, which came another
 * way than by a listener.
 *
 * from    who asks
 * fd      a socket whose other end is his; closed by conn_free()
 * target  copied
 * up      a bare way to it, or NULL; the connection's
 *
 * Returns NULL: out of memory; fd and up are then still the caller's.
 */
struct conn *
conn_new_inside(const struct client *from, int fd, const struct origin *target,
                struct upstream *up)
{
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    struct conn *c = conn_new(from->weir, fd, &none, sizeof none);

    if (c == NULL)
        return NULL;
    memcpy(c->client.addr, from->addr, sizeof c->client.addr);
    c->client.told = told_copy(from->told);
    c->end.rcv_ms = c->end.snd_ms = 0;
    c->target = *target;
    c->target_known = true;
    c->client.own_name = strcmp(target->host, WEIR_HOST) == 0;
    c->client.inside = c->client.own_name ? NULL : &c->target;
    c->up = up;
    c->spoke = "connect";
    if (log_on(LEVEL_DEBUG))
        log_say(LEVEL_DEBUG, from->id, "connect",
                "stream %lld goes on as conn=%llu", (long long)from->stream,
                (unsigned long long)c->client.id);
    return c;
}

/*
 * conn_new_quic - a QUIC connection that has sent its first datagram.
 *
 * wire          the connection's, on success
 * from, inside  who asks and for whom, inside a tunnel; copied; else NULL
 *
 * Returns NULL: out of memory.
 */
struct conn *
conn_new_quic(struct weir *w, struct wire *wire, const struct client *from,
              const struct origin *inside)
{
    const union quic_address *at = &wire_birth(wire)->path.remote;
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    struct conn *c;

    c = from != NULL ? conn_new(w, -1, &none, sizeof none)
                     : conn_new(w, -1, &at->sa,
                                at->sa.sa_family == AF_INET6 ? sizeof at->in6
                                                             : sizeof at->in);
    if (c == NULL)
        return NULL;
    c->wire = wire;
    c->resume = ST_QUIC;
    c->spoke = "quic";
    if (from != NULL) {
        memcpy(c->client.addr, from->addr, sizeof c->client.addr);
        c->client.told = told_copy(from->told);
        c->client.denied = NULL; /* he was asked outside */
    }
    if (inside != NULL) {
        c->target = *inside;
        c->target_known = true;
    }
    return c;
}

/* A short answer without waiting, for a client that seems to speak HTTP. */
static void
answer_now(struct conn *c, const char *text)
{
    char unread[2048];
    ssize_t n;

    if (c->wire != NULL)
        return;
    n = recv(c->end.fd, unread, sizeof unread, MSG_DONTWAIT);
    if (c->h2 != NULL || c->end.tls != NULL || c->socks.version != 0 ||
        c->hello_until != 0 || (n > 0 && unread[0] == 0x16))
        return;
    if (n > 0 && (unread[0] == 4 || unread[0] == 5)) {
        /* The hello's answer and the request's, before it was made. */
        static const char no4[8] = {0, 91}, no5[12] = {5, 0, 5, 1, 0, 1};

        (void)send(c->end.fd, unread[0] == 4 ? no4 : no5,
                   unread[0] == 4 ? sizeof no4 : sizeof no5,
                   MSG_DONTWAIT | MSG_NOSIGNAL);
        shutdown(c->end.fd, SHUT_WR);
        return;
    }
    if (send(c->end.fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
        shutdown(c->end.fd, SHUT_WR);
}

/* Nobody will take it: say so, in one attempt.  The accept thread's. */
void
conn_refuse(struct conn *c, enum why why, const char *op)
{
    fail_own(&c->fail, SIDE_WEIR, why, op);
    if (c->h2 != NULL)
        h2_goodbye(c->h2);
    if (c->h3 != NULL)
        h3_goodbye(c->h3);
    else if (c->wire != NULL)
        wire_refuse(c->wire);
    answer_now(c, "HTTP/1.1 503 Service Unavailable\r\n"
                  "Proxy-Status: weir; error=connection_limit_reached\r\n"
                  "Content-Type: text/plain\r\nContent-Length: 46\r\n"
                  "Retry-After: 1\r\nConnection: close\r\n\r\n"
                  "weir: too much is under way here.  Try again.\n");
    log_close(c);
}

/* Parked for too long: an idle connection ends quietly, half a request with a
 * 408 (RFC 9110 section 15.5.9).  The accept thread's; does not wait. */
void
conn_timeout(struct conn *c)
{
    if (c->h2 != NULL)
        h2_goodbye(c->h2);
    if (c->h3 != NULL)
        h3_goodbye(c->h3);
    if (c->h1.head_from != 0) {
        fail_own(&c->fail, SIDE_CLIENT, WHY_LATE, "read request head");
        answer_now(c, "HTTP/1.1 408 Request Timeout\r\n"
                      "Proxy-Status: weir; error=http_request_error\r\n"
                      "Content-Type: text/plain\r\nContent-Length: 50\r\n"
                      "Connection: close\r\n\r\n"
                      "weir: the request's head took longer than it may.\n");
    } else if (c->hello_until != 0) {
        fail_own(&c->fail, SIDE_CLIENT, WHY_LATE, "read ClientHello");
    } else {
        fail_own(&c->fail, SIDE_CLIENT, WHY_IDLE, "wait for a request");
    }
    log_close(c);
}

/* Close and forget it, in any state; no thread may be running it. */
void
conn_free(struct conn *c)
{
    if (c == NULL)
        return;
    upstream_free(c->up);
    h2_free(c->h2);
    h3_free(c->h3);
    wire_free(c->wire);
    h1_clear(&c->h1);
    head_clear(&c->req);
    head_clear(&c->res);
    end_clear(&c->end);
    config_give(c->client.conf);
    free(c->client.told);
    free(c);
}
