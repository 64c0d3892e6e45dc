/*
 * handshake.c - TLS that a client begins: whom does it mean, and as whom do we
 * answer?  A state of conn.c.
 *
 * The ClientHello is read before anything is said.  It may mean weir itself (an
 * "https://" proxy, our pages), or an origin: then that is asked first, so that
 * the client gets what it would have got there; or it is none of our business,
 * and goes through a tunnel as it is.
 *
 * Follows  RFC 8446, RFC 6066 section 3 (SNI), RFC 7301 (ALPN).
 * Owns     nothing.
 * Threads  the worker that runs the connection.
 * Blocks   for the origin (connect_s) and for the client (head_s); QUIC's
 *          handshake is quic.c's, and waits for no origin.
 */
#include <stdio.h>
#include <string.h>

#include "proxy.h"

/* A client refused our certificate: say how to leave its host alone. */
void
conn_log_refusal(const struct conn *c, const char *name, const struct fail *f)
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
        conn_log_refusal(c, c->hello.sni[0] != '\0' ? c->hello.sni : name, &f);
        c->cut = true;
        return conn_goodbye(c, &f);
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
        conn_log_refusal(c, name, &f);
        c->cut = true;
        return conn_goodbye(c, &f);
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
enum conn_state
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
        return conn_park(c, ST_HANDSHAKE, c->hello_until);
    c->hello_until = 0;
    if (why != WHY_NONE && c->target_known && !c->client.own_name &&
        c->end.len > 0) {
        c->opaque = true; /* it only looked like TLS */
        return ST_TUNNEL;
    }
    if (why != WHY_NONE)
        return conn_goodbye(c, &f);
    if (c->client.own_name ||
        (!c->target_known &&
         (c->hello.sni[0] == '\0' || strcmp(c->hello.sni, WEIR_HOST) == 0 ||
          name_is_local(c->client.conf, c->hello.sni))))
        return handshake_own(c);
    if (!c->target_known && c->client.conf->n_users > 0) {
        fail_own(&f, SIDE_CLIENT, WHY_LOGIN, "TLS cannot say who it is");
        return conn_goodbye(c, &f);
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

/*
 * handshake_quic - the ClientHello of a QUIC connection: whom does it want, and
 * may it have him?
 *
 * arg  its struct conn
 *
 * Returns 0 with the leaf to show, or the alert to end with.  Thread: the
 * connection's.  Blocks: only for a leaf that is minted.
 */
int
handshake_quic(void *arg, const struct hello *hello, struct leaf **leaf)
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
