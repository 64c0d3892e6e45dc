/*
 * conn.c - the life of one connection, as a table of states.
 *
 * A worker runs a connection's states one after the other; each does one thing
 * and names the next.  What a client speaks is found out from its first bytes:
 * on the port itself, again inside of TLS, and again behind a CONNECT.  A
 * connection that is waiting for its client gives its worker back: it is
 * parked with the accept thread and goes on where it was.
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

enum {
    PREFACE_SURE = 4,      /* bytes: "PRI " */
    CLOSE_MS = 1000,       /* how long a closing connection is drained */
    BOTH_SPEAK_MS = 20,    /* how much later than a server a client may speak */
    FIRST_LINE_MAX = 8192, /* of what may be HTTP behind a CONNECT */
};

/* ---- waiting and parking ------------------------------------------------- */

/* Give the worker back until the client sends something, or `until_ms`. */
static enum conn_state
park(struct conn *c, enum conn_state resume, int64_t until_ms)
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

static int64_t
idle_until(const struct conn *c)
{
    return now_ms() + c->client.conf->idle_s * 1000LL;
}

/* Nothing more, and nothing left to say. */
static enum conn_state
goodbye(struct conn *c, const struct fail *f)
{
    c->fail = *f;
    return ST_CLOSE;
}

/* ---- detect -------------------------------------------------------------- */

enum speaks {
    SPEAKS_UNCLEAR,
    SPEAKS_TLS,
    SPEAKS_HTTP,
    SPEAKS_H2,
    SPEAKS_OTHER
};

/* Does it begin as an HTTP/2 client does (RFC 9113 section 3.4)?  From
 * PREFACE_SURE bytes on it can be nothing else. */
static bool
is_preface(struct span s)
{
    static const char preface[] = "PRI * HTTP/2.0\r\n";
    size_t n = s.len < sizeof preface - 1 ? s.len : sizeof preface - 1;

    return n > 0 && memcmp(s.at, preface, n) == 0;
}

/* The first line of what may be HTTP/1.  A method that everybody knows is
 * enough; for any other the line has to end as a request line does.  A CONNECT
 * in here is for the proxy that the client has reached through us, not for us
 * (there are chains of them): opaque. */
static enum speaks
speaks_line(struct span s)
{
    const char *space, *eol = memchr(s.at, '\n', s.len);
    size_t line = eol != NULL ? (size_t)(eol - s.at) : s.len;
    struct span method = {s.at, line};

    if ((space = memchr(s.at, ' ', line)) != NULL)
        method.len = (size_t)(space - s.at);
    if (method.len > 0 && method.at[method.len - 1] == '\r')
        method.len--;
    if (is_preface(s))
        return s.len < PREFACE_SURE ? SPEAKS_UNCLEAR : SPEAKS_H2;
    if (!is_token(method) || (space != NULL && span_is(method, "CONNECT")))
        return SPEAKS_OTHER;
    if (space != NULL && method_of(method) != METHOD_OTHER)
        return SPEAKS_HTTP;
    if (eol == NULL)
        return s.len < FIRST_LINE_MAX ? SPEAKS_UNCLEAR : SPEAKS_OTHER;
    if (line > 0 && s.at[line - 1] == '\r')
        line--;
    return line > 9 && memcmp(s.at + line - 9, " HTTP/1.", 8) == 0
               ? SPEAKS_HTTP
               : SPEAKS_OTHER;
}

static enum speaks
speaks_what(struct span s)
{
    if (s.len == 0)
        return SPEAKS_UNCLEAR;
    if (s.at[0] == 0x16) /* a TLS handshake record, RFC 8446 section 5.1 */
        return s.len == 1     ? SPEAKS_UNCLEAR
               : s.at[1] == 3 ? SPEAKS_TLS
                              : SPEAKS_OTHER;
    return speaks_line(s);
}

/* Wait for the client's next bytes until *until_ms.  A server that speaks first
 * shortens the wait: it is for a client that had the same idea.  WHY_IDLE: it
 * is silent; else what end_fill() met. */
static enum why
sniff_more(struct conn *c, int64_t *until_ms, struct fail *f)
{
    struct end *server = c->up != NULL ? &c->up->end : NULL;
    struct pollfd p[2] = {
        {.fd = c->end.fd, .events = POLLIN},
        {.fd = server != NULL ? server->fd : -1, .events = POLLIN | POLLRDHUP}};
    int64_t now = now_ms(), deadline = c->end.deadline;
    enum why why;

    if (c->end.len == 0 && end_pending(&c->end) && c->end.len > 0)
        return WHY_NONE;
    if (server != NULL && end_pending(server)) /* behind a parent's answer */
        return WHY_IDLE;
    if (now >= *until_ms || poll(p, 2, (int)(*until_ms - now)) <= 0)
        return WHY_IDLE;
    if (p[0].revents == 0) {
        if (*until_ms > now + BOTH_SPEAK_MS)
            *until_ms = now + BOTH_SPEAK_MS;
        if (poll(p, 1, BOTH_SPEAK_MS) <= 0)
            return WHY_IDLE;
    }
    c->end.deadline = *until_ms; /* half a TLS record may be all there is */
    why = end_fill(&c->end, END_BUF, f);
    c->end.deadline = deadline;
    return why == WHY_LATE ? WHY_IDLE : why;
}

/* Behind a CONNECT, or inside an interception: HTTP is taken apart, anything
 * else goes through as it is. */
static enum conn_state
detect_inside(struct conn *c)
{
    int64_t until = now_ms() + c->client.conf->sniff_ms;
    enum speaks what = SPEAKS_UNCLEAR;
    enum why why = WHY_NONE;
    struct fail f = {0};

    if (c->opaque)
        return ST_TUNNEL;
    if (c->alpn_h2)
        return ST_SESSION;
    while (why == WHY_NONE &&
           (what = speaks_what(end_ahead(&c->end))) == SPEAKS_UNCLEAR)
        why = sniff_more(c, &until, &f);
    if (what == SPEAKS_TLS)
        return ST_HANDSHAKE;
    if ((what == SPEAKS_HTTP || what == SPEAKS_H2) &&
        (c->target.tls ||
         mitm_wants(c->client.conf, c->target.host, c->target.port)))
        return what == SPEAKS_H2 ? ST_SESSION : ST_REQUEST;
    if (c->end.len == 0 && c->target.tls) {
        if (why != WHY_IDLE)
            return goodbye(c, &f);
        /* A browser opens TLS connections in advance and stays silent on them:
         * no reason to look away, as long as the origin is silent, too. */
        if (c->up == NULL || upstream_alive(c->up))
            return park(c, ST_DETECT, idle_until(c));
    }
    c->opaque = true;
    return ST_TUNNEL;
}

/* It seems to be HTTP/2: so far "P" may also begin a POST. */
static enum conn_state
detect_session(struct conn *c)
{
    int64_t until = now_ms() + c->client.conf->head_s * 1000LL;

    struct fail f = {0};
    enum why why = WHY_NONE;

    while (why == WHY_NONE && c->end.len < PREFACE_SURE &&
           is_preface(end_ahead(&c->end)))
        why = sniff_more(c, &until, &f);
    if (c->end.len >= PREFACE_SURE && is_preface(end_ahead(&c->end)))
        return ST_SESSION;
    c->spoke = c->client.tls ? "tls+http/1" : "http/1";
    return ST_REQUEST;
}

/* The first bytes on our port, or inside TLS that was for ourselves. */
static enum conn_state
conn_detect(struct conn *c)
{
    struct fail f = {0};
    enum why why = WHY_NONE;

    if (c->target_known && !c->client.own_name)
        return detect_inside(c);
    if (c->alpn_h2)
        return ST_SESSION;
    if (c->end.len == 0) {
        c->end.idle_ms = c->client.conf->linger_ms;
        why = end_fill(&c->end, END_BUF, &f);
        c->end.idle_ms = c->client.conf->idle_s * 1000;
    }
    if (why == WHY_IDLE)
        return park(c, ST_DETECT, idle_until(c));
    if (why != WHY_NONE)
        return goodbye(c, &f);
    if (end_ahead(&c->end).at[0] == 0x16) {
        if (c->client.denied != NULL) { /* it could not read our answer */
            access_denied(&c->client, NULL, 0, c->client.denied, &f);
            return goodbye(c, &f);
        }
        if (!c->client.tls)
            return ST_HANDSHAKE;
        fail_own(&f, SIDE_CLIENT, WHY_PROTO, "TLS inside TLS to ourselves");
        return goodbye(c, &f);
    }
    if (end_ahead(&c->end).at[0] == 4 || end_ahead(&c->end).at[0] == 5) {
        c->spoke = end_ahead(&c->end).at[0] == 4 ? "socks4" : "socks5";
        c->socks.until = now_ms() + c->client.conf->head_s * 1000LL;
        return ST_SOCKS;
    }
    if (is_preface(end_ahead(&c->end)))
        return detect_session(c);
    /* Whatever else it is, HTTP/1 knows how to refuse it. */
    c->spoke = c->client.tls ? "tls+http/1" : "http/1";
    return ST_REQUEST;
}

/* ---- handshake ----------------------------------------------------------- */

/* A client refused our certificate: say how to leave its host alone. */
static void
log_refusal(const struct conn *c, const char *name, const struct fail *f)
{
    if (f->why != WHY_ALERT)
        return;
    log_say(LEVEL_WARN, c->client.id, "untrusted",
            "%s does not accept our certificate for %s (%s): let it trust "
            "%s/ca.pem, or leave the host alone with [intercept] except = %s",
            c->client.addr, name, f->text(f->code),
            mitm_dir(c->client.weir->mitm), name);
}

/* What we speak with clients that mean us. */
static unsigned
own_alpn(const struct conn *c)
{
    return c->hello.alpn &
           (c->client.conf->alpn == ALPN_NEVER_H2 ? ALPN_HTTP1
                                                  : ALPN_HTTP1 | ALPN_H2);
}

/* What is offered to a client that believes we are the origin: what that
 * speaks, unless the settings say another.  A client that knows HTTP/2 alone
 * gets it, whatever the origin speaks: we translate. */
static unsigned
mirrored_alpn(const struct conn *c, unsigned origin)
{
    unsigned client = c->hello.alpn & (ALPN_HTTP1 | ALPN_H2);

    switch (c->client.conf->alpn) {
    case ALPN_ALWAYS_H2:
        return client;
    case ALPN_NEVER_H2:
        return client & ALPN_HTTP1;
    case ALPN_MIRROR:
        break;
    }
    if ((origin & ALPN_H2) || client == ALPN_H2)
        return client;
    return client & origin;
}

static bool
chose_h2(const struct conn *c)
{
    gnutls_datum_t name;

    return gnutls_alpn_get_selected_protocol(end_session(&c->end), &name) ==
               0 &&
           name.size == 2 && memcmp(name.data, "h2", 2) == 0;
}

/* When the client has to be through with its part.  It begins now: what came
 * before was our time, or the origin's. */
static int64_t
handshake_until(const struct conn *c)
{
    return now_ms() + c->client.conf->head_s * 1000LL;
}

/* An address without port and brackets. */
static void
address_host(const struct sockaddr *sa, char out[ADDR_MAX])
{
    address_text(sa, out);
    *strrchr(out, ':') = '\0';
    if (out[0] == '[') {
        memmove(out, out + 1, strlen(out));
        out[strlen(out) - 1] = '\0';
    }
}

/* TLS for one of our own names: an "https://" proxy, or our pages. */
static enum conn_state
handshake_own(struct conn *c)
{
    struct sockaddr_storage at = {0};
    socklen_t len = sizeof at;
    char name[ADDR_MAX] = "localhost";
    struct fail f = {0};

    if (getsockname(c->end.fd, (struct sockaddr *)&at, &len) == 0 &&
        (at.ss_family == AF_INET || at.ss_family == AF_INET6))
        address_host((struct sockaddr *)&at, name);
    if (mitm_accept(c->client.weir->mitm, &c->end,
                    c->hello.sni[0] != '\0' ? c->hello.sni : name, NULL,
                    own_alpn(c), handshake_until(c), &f) != WHY_NONE) {
        log_refusal(c, c->hello.sni[0] != '\0' ? c->hello.sni : name, &f);
        c->cut = true;
        return goodbye(c, &f);
    }
    c->client.tls = true;
    c->alpn_h2 = chose_h2(c);
    c->spoke = "tls";
    return ST_DETECT;
}

/* Learn what the origin is like before the client gets our certificate.  If
 * that fails the client gets its handshake all the same, and then reads the
 * reason as an answer: the exchange will meet the same failure. */
static void
learn_origin(struct conn *c, struct known *known)
{
    static const struct span none = {"", 0};
    struct fail f = {0};

    *known = (struct known){.alpn = ALPN_HTTP1};
    /* A client that offers no protocol may speak one in which the server says
     * the first word, and only a ready connection can hear that. */
    if (c->hello.alpn != 0 && upstream_known(&c->client, &c->target, known))
        return;
    if (c->up == NULL || upstream_tries_quic(&c->client, &c->target, none)) {
        upstream_give(&c->client, c->up);
        c->up = upstream_take(&c->client, &c->target, none, false, &f);
    } else if (upstream_ready(&c->client, c->up, ALPN_HTTP1 | ALPN_H2, &f) !=
               WHY_NONE) {
        upstream_free(c->up);
        c->up = NULL;
    }
    if (c->up != NULL)
        (void)upstream_known(&c->client, &c->target, known);
}

/* TLS for somebody else: we are the origin to the client, and the client to
 * the origin. */
static enum conn_state
handshake_intercept(struct conn *c)
{
    const char *name;
    struct known known;
    struct fail f = {0};

    c->target.tls = true;
    if (strcmp(c->hello.sni, c->target.host) != 0)
        memcpy(c->target.sni, c->hello.sni, sizeof c->target.sni);
    if (c->up != NULL)
        c->up->origin = c->target;
    name = c->hello.sni[0] != '\0' ? c->hello.sni : c->target.host;
    learn_origin(c, &known);
    if (mitm_accept(c->client.weir->mitm, &c->end, name, &known.names,
                    mirrored_alpn(c, known.alpn), handshake_until(c),
                    &f) != WHY_NONE) {
        log_refusal(c, name, &f);
        c->cut = true;
        return goodbye(c, &f);
    }
    c->client.inside = &c->target;
    c->alpn_h2 = chose_h2(c);
    c->spoke = "intercepted";
    return ST_DETECT;
}

/* Is this TLS ours to look into?  The name that the client wants to see
 * decides, but an exception for where it connects counts as well.  A client
 * that offers protocols, none of them HTTP, has no use for a proxy of HTTP.
 * And GnuTLS ends a handshake for a name with "_", which is no host name (RFC
 * 952) but has addresses in some a network. */
static bool
handshake_wanted(const struct conn *c)
{
    const struct config *conf = c->client.conf;
    const char *name = c->hello.sni[0] != '\0' ? c->hello.sni : c->target.host;

    return mitm_wants(conf, name, c->target.port) &&
           !match_host(conf->except, c->target.host, c->target.port) &&
           (c->hello.alpn == 0 ||
            (c->hello.alpn & ~(unsigned)ALPN_OTHER) != 0) &&
           strchr(c->hello.sni, '_') == NULL;
}

/* A ClientHello is coming: read it, see for whom it is.  As with any other
 * head, a client that takes its time for it needs no worker meanwhile. */
static enum conn_state
conn_handshake(struct conn *c)
{
    const struct config *conf = c->client.conf;
    struct fail f = {0};
    enum why why;

    if (c->hello_until == 0)
        c->hello_until = now_ms() + conf->head_s * 1000LL;
    c->end.idle_ms = conf->linger_ms;
    why = hello_read(&c->end, c->hello_until, &c->hello, &f);
    c->end.idle_ms = conf->idle_s * 1000;
    if (why == WHY_IDLE)
        return park(c, ST_HANDSHAKE, c->hello_until);
    c->hello_until = 0;
    if (why != WHY_NONE && c->target_known && !c->client.own_name &&
        c->end.len > 0) {
        c->opaque = true; /* it only looked like TLS */
        return ST_TUNNEL;
    }
    if (why != WHY_NONE)
        return goodbye(c, &f);
    if (c->client.own_name ||
        (!c->target_known &&
         (c->hello.sni[0] == '\0' || strcmp(c->hello.sni, WEIR_HOST) == 0 ||
          name_is_local(c->client.conf, c->hello.sni))))
        return handshake_own(c);
    if (!c->target_known && c->client.conf->n_users > 0) {
        fail_own(&f, SIDE_CLIENT, WHY_LOGIN, "TLS cannot say who it is");
        return goodbye(c, &f);
    }
    if (!c->target_known) { /* DNS led the client here instead of there */
        c->target = (struct origin){.port = 443, .tunnel = true};
        memcpy(c->target.host, c->hello.sni, sizeof c->target.host);
        c->target_known = true;
    }
    if (handshake_wanted(c))
        return handshake_intercept(c);
    c->opaque = true;
    return ST_TUNNEL;
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
        return park(c, ST_REQUEST,
                    c->h1.head_from != 0
                        ? c->h1.head_from + c->h1.limits.head_ms
                        : idle_until(c));
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
    return goodbye(c, &f);
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
            return goodbye(c, &f);
        }
        c->end.idle_ms = c->client.conf->linger_ms;
        why = end_fill(&c->end, END_BUF, &f);
        c->end.idle_ms = c->client.conf->idle_s * 1000;
        if (why == WHY_IDLE)
            return park(c, ST_SOCKS, c->socks.until);
        if (why == WHY_EOF)
            why = fail_own(&f, SIDE_CLIENT, WHY_CUT, "read SOCKS request");
        if (why != WHY_NONE)
            return goodbye(c, &f);
    }
    return why == WHY_NONE ? socks_request(c) : goodbye(c, &f);
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
        return goodbye(c, &f);
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
        return goodbye(c, &f);
    }
    why = h2_run(c->h2, conf->linger_ms, &f);
    if (why == WHY_NONE)
        return park(c, ST_SESSION, idle_until(c));
    h2_free(c->h2);
    c->h2 = NULL;
    c->cut = (why != WHY_EOF && why != WHY_PROTO) || end_unsent(&c->end);
    return goodbye(c, &f);
}

/* ---- QUIC ---------------------------------------------------------------- */

/* What TLS behind a CONNECT leads to, a QUIC connection has from the start:
 * where it goes is what it asks for, by name. */
static int
quic_target(struct conn *c)
{
    struct origin *to = &c->target;

    if (!c->target_known && c->client.conf->n_users > 0) {
        fail_own(&c->fail, SIDE_CLIENT, WHY_LOGIN, "QUIC cannot say who it is");
        return GNUTLS_A_ACCESS_DENIED;
    }
    if (!c->target_known) { /* DNS led the client here instead of there */
        *to = (struct origin){.port = 443, .tunnel = true};
        memcpy(to->host, c->hello.sni, sizeof to->host);
        c->target_known = c->client.any_port = true;
    }
    to->tls = true;
    if (c->hello.sni[0] != '\0' && strcmp(c->hello.sni, to->host) != 0)
        memcpy(to->sni, c->hello.sni, sizeof to->sni);
    if (!handshake_wanted(c)) {
        fail_own(&c->fail, SIDE_CLIENT, WHY_POLICY, "host is not intercepted");
        return GNUTLS_A_UNRECOGNIZED_NAME;
    }
    c->client.inside = to;
    c->spoke = "intercepted+http/3";
    return 0;
}

/* The ClientHello has come: whom does it want, and may it?  Returns 0 with the
 * leaf to show, or an alert. */
static int
quic_hello(void *arg, const struct hello *hello, struct leaf **leaf)
{
    struct conn *c = arg;
    const char *name = hello->sni;
    char local[ADDR_MAX] = "localhost";
    struct known known = {.alpn = 0};
    int alert;

    c->hello = *hello;
    if (!c->target_known && (name[0] == '\0' || strcmp(name, WEIR_HOST) == 0 ||
                             name_is_local(c->client.conf, name))) {
        const struct quic_birth *b = wire_birth(c->wire);

        if (name[0] == '\0' && b->path.local.sa.sa_family != AF_UNSPEC)
            address_host(&b->path.local.sa, local);
        name = name[0] != '\0' ? name : local;
        c->client.tls = true;
        c->spoke = "http/3";
    } else if ((alert = quic_target(c)) != 0) {
        return alert;
    } else {
        name = name[0] != '\0' ? name : c->target.host;
        (void)upstream_known(&c->client, &c->target, &known);
    }
    if (leaf_take(mitm_leaves(c->client.weir->mitm), name,
                  known.names.len > 0 ? &known.names : NULL, 0, leaf,
                  &c->fail) != WHY_NONE)
        return GNUTLS_A_INTERNAL_ERROR;
    return 0;
}

/* Own an HTTP/3 session until it is over, or silent without a stream. */
static enum conn_state
conn_quic(struct conn *c)
{
    const struct config *conf = c->client.conf;
    struct h3_user user = {.weir = c->client.weir,
                           .arg = c,
                           .begin = session_begin,
                           .hello = quic_hello,
                           .id = c->client.id};
    struct quic_bytes bytes;
    struct fail f = {0};
    enum why why;

    c->cut = true; /* there is no end to be drained */
    if (c->h3 == NULL && c->client.denied != NULL) {
        access_denied(&c->client, NULL, 0, c->client.denied, &f);
        wire_refuse(c->wire);
        return goodbye(c, &f);
    }
    if (c->h3 == NULL) {
        c->spoke = "quic";
        c->h3 = h3_accept(c->wire, conf, &user);
    }
    if (c->h3 == NULL) {
        wire_refuse(c->wire);
        fail_own(&f, SIDE_WEIR, WHY_BUSY, "out of memory");
        return goodbye(c, &f);
    }
    why = h3_run(c->h3, conf->linger_ms, &f);
    c->client.n_exchanges = h3_served(c->h3);
    bytes = h3_bytes(c->h3);
    c->end.n_in = bytes.in;
    c->end.n_out = bytes.out;
    c->wake_fd = h3_wake_fd(c->h3);
    if (why == WHY_NONE)
        return park(c, ST_QUIC, h3_until(c->h3));
    if (c->fail.why != WHY_NONE) /* quic_hello() knows better */
        f = c->fail;
    if (f.why == WHY_IDLE && c->client.n_exchanges > 0)
        f = (struct fail){0}; /* the ordinary end of a QUIC connection */
    log_refusal(c, c->hello.sni[0] != '\0' ? c->hello.sni : "us", &f);
    return goodbye(c, &f);
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
        return goodbye(c, &f);
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
    c->until = idle_until(c);
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
