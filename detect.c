/*
 * detect.c - what does the client speak?  A state of conn.c.
 *
 * It is found out from the first bytes: on the port itself, again inside of
 * TLS, and again behind a CONNECT.  Nothing is consumed.
 *
 * Follows  RFC 9112 section 2.2, RFC 9113 section 3.4, RFC 8446 section 5.1,
 *          RFC 1928 section 3.
 * Owns     nothing.
 * Threads  the worker that runs the connection.
 * Blocks   for linger_ms; behind a CONNECT for sniff_ms.
 */
#include <poll.h>
#include <string.h>

#include "proxy.h"

enum {
    PREFACE_SURE = 4,      /* bytes: "PRI " */
    BOTH_SPEAK_MS = 20,    /* how much later than a server a client may speak */
    FIRST_LINE_MAX = 8192, /* of what may be HTTP behind a CONNECT */
};

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
            return conn_goodbye(c, &f);
        /* A browser opens TLS connections in advance and stays silent on them:
         * no reason to look away, as long as the origin is silent, too. */
        if (c->up == NULL || upstream_alive(c->up))
            return conn_park(c, ST_DETECT, conn_idle_until(c));
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
enum conn_state
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
        return conn_park(c, ST_DETECT, conn_idle_until(c));
    if (why != WHY_NONE)
        return conn_goodbye(c, &f);
    if (end_ahead(&c->end).at[0] == 0x16) {
        if (c->client.denied != NULL) { /* it could not read our answer */
            access_denied(&c->client, NULL, 0, c->client.denied, &f);
            return conn_goodbye(c, &f);
        }
        if (!c->client.tls)
            return ST_HANDSHAKE;
        fail_own(&f, SIDE_CLIENT, WHY_PROTO, "TLS inside TLS to ourselves");
        return conn_goodbye(c, &f);
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
