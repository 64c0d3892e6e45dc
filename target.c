/*
 * target.c - where a request leads: authorities, targets, and whether that is
 * ourselves.
 *
 * The four forms of a request target become a scheme, an authority, a path and
 * an origin; whatever could be read in two ways is refused.
 *
 * Follows  RFC 9112 section 3.2, RFC 9110 sections 4.2 and 7.1, RFC 3986.
 * Owns     nothing.
 * Threads  any; one at a time for a head.
 * Blocks   never.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "proxy.h"

/* ---- authorities --------------------------------------------------------- */

/* What follows a host: nothing, ":" or ":" and a port; 0: none given. */
static bool
port_parse(struct span rest, uint16_t *port)
{
    uint64_t n = 0;

    if (rest.len > 0 && rest.at[0] != ':')
        return false;
    if (rest.len > 1 &&
        (!span_number((struct span){rest.at + 1, rest.len - 1}, &n) || n == 0 ||
         n > UINT16_MAX))
        return false;
    *port = (uint16_t)n;
    return true;
}

/* A host name in lower case and without the dot of the root, which TLS does
 * not know (RFC 6066 section 3). */
static bool
name_parse(struct span s, char host[HOST_MAX + 1])
{
    char before = '.';

    if (s.len > 1 && s.at[s.len - 1] == '.')
        s.len--;
    if (s.len > HOST_MAX || !is_name(s) || s.at[s.len - 1] == '.')
        return false;
    for (size_t i = 0; i < s.len; before = s.at[i++]) {
        if (s.at[i] == '.' && before == '.')
            return false; /* an empty label */
        host[i] = (char)ascii_lower(s.at[i]);
    }
    host[s.len] = '\0';
    return true;
}

/* An IPv6 address, in the one spelling of RFC 5952. */
static bool
address_parse(struct span s, char host[HOST_MAX + 1])
{
    char text[INET6_ADDRSTRLEN];
    struct in6_addr addr;

    if (s.len == 0 || s.len >= sizeof text)
        return false;
    memcpy(text, s.at, s.len);
    text[s.len] = '\0';
    return inet_pton(AF_INET6, text, &addr) == 1 &&
           inet_ntop(AF_INET6, &addr, host, HOST_MAX + 1) != NULL;
}

/*
 * authority_parse - split host[:port] (RFC 3986 section 3.2).
 *
 * host  lower case, no brackets, never empty; the spelling that a cache or a
 *       certificate is searched by
 * port  0: none given ("host" or "host:")
 *
 * Returns false for anything else: user information, an empty host or label,
 * bytes no DNS name has, port 0 or above 65535, an IPv6 zone.
 */
bool
authority_parse(struct span text, char host[HOST_MAX + 1], uint16_t *port)
{
    bool brackets = text.len > 0 && text.at[0] == '[';
    const char *stop =
        text.len == 0 ? NULL : memchr(text.at, brackets ? ']' : ':', text.len);
    size_t len = stop != NULL ? (size_t)(stop - text.at) : text.len;
    struct span rest = {text.at + len, text.len - len};

    if (!brackets)
        return name_parse((struct span){text.at, len}, host) &&
               port_parse(rest, port);
    if (stop == NULL)
        return false;
    rest.at++;
    rest.len--;
    return address_parse((struct span){text.at + 1, len - 1}, host) &&
           port_parse(rest, port);
}

/* Is it an address, not a name? */
bool
host_is_address(const char *host)
{
    struct in6_addr addr;

    return inet_pton(AF_INET, host, &addr) == 1 ||
           inet_pton(AF_INET6, host, &addr) == 1;
}

/* host[:port] as it belongs into a Host field; no port if it is the scheme's.
 */
void
origin_authority(const struct origin *origin, char *out, size_t cap)
{
    bool brackets = strchr(origin->host, ':') != NULL;
    int n = snprintf(out, cap, brackets ? "[%s]" : "%s", origin->host);

    if (origin->port != (origin->tls ? 443 : 80) && n > 0 && (size_t)n < cap)
        snprintf(out + n, cap - (size_t)n, ":%u", origin->port);
}

/* ---- who is meant: ourselves? -------------------------------------------- */

/* As 16 bytes, an IPv4 address mapped into IPv6. */
static bool
address_bytes(const char *host, struct in6_addr *out)
{
    struct in_addr v4;

    if (inet_pton(AF_INET, host, &v4) != 1)
        return inet_pton(AF_INET6, host, out) == 1;
    *out = (struct in6_addr){.s6_addr = {[10] = 0xff, [11] = 0xff}};
    memcpy(&out->s6_addr[12], &v4, sizeof v4);
    return true;
}

/* An address of this machine that needs no look at its interfaces: loopback,
 * or "any", which connects to loopback. */
static bool
address_is_local(const struct in6_addr *a)
{
    if (IN6_IS_ADDR_V4MAPPED(a))
        return a->s6_addr[12] == 127 ||
               memcmp(&a->s6_addr[12], "\0\0\0", 4) == 0;
    return IN6_IS_ADDR_LOOPBACK(a) || IN6_IS_ADDR_UNSPECIFIED(a);
}

static bool
address_is_bound(const struct config *conf, const struct in6_addr *want)
{
    for (size_t i = 0; i < conf->n_listen; i++) {
        const struct sockaddr_storage *at = &conf->listen[i].addr;
        char text[INET6_ADDRSTRLEN];
        struct in6_addr bound;
        const void *raw =
            at->ss_family == AF_INET6
                ? (const void *)&((const struct sockaddr_in6 *)at)->sin6_addr
                : &((const struct sockaddr_in *)at)->sin_addr;

        if (inet_ntop(at->ss_family, raw, text, sizeof text) != NULL &&
            address_bytes(text, &bound) &&
            memcmp(&bound, want, sizeof bound) == 0)
            return true;
    }
    return false;
}

/* A name of this machine's loopback, or one that proxy.ini says is ours? */
bool
name_is_local(const struct config *conf, const char *host)
{
    size_t len = strlen(host);

    /* RFC 6761 section 6.3 gives all of .localhost to loopback. */
    if (strcmp(host, "localhost") == 0 ||
        (len > 10 && strcmp(host + len - 10, ".localhost") == 0))
        return true;
    for (size_t i = 0; i < conf->n_names; i++)
        if (strcasecmp(host, conf->names[i]) == 0)
            return true;
    return false;
}

/* Is this a name or an address by which clients call weir itself? */
bool
host_is_ours(const struct config *conf, const char *host)
{
    struct in6_addr addr;

    return strcmp(host, WEIR_HOST) == 0 || name_is_local(conf, host) ||
           (address_bytes(host, &addr) &&
            (address_is_local(&addr) || address_is_bound(conf, &addr)));
}

/* Would a request to host:port ask for our own pages? */
static bool
is_ourselves(const struct client *client, const char *host, uint16_t port)
{
    const struct weir *weir = client->weir;
    bool our_port = false;

    if (strcmp(host, WEIR_HOST) == 0)
        return true;
    if (client->inside != NULL)
        return false; /* whom it speaks to is known, whatever it says */
    for (size_t i = 0; i < weir->n_ports; i++)
        our_port = our_port || weir->ports[i] == port;
    return our_port && host_is_ours(client->conf, host);
}

/* ---- request targets ----------------------------------------------------- */

struct route { /* a request on its way to its origin */
    struct head *req;
    const struct client *client;
    struct origin *origin;
    bool *ourselves;
    struct span host;        /* of the Host field; empty: none, or empty */
    char name[HOST_MAX + 1]; /* its host in lower case; "": none */
};

static enum why
refuse(struct fail *f, const char *op)
{
    return fail_own(f, SIDE_CLIENT, WHY_PROTO, op);
}

/* RFC 9112 section 3.2: one Host in HTTP/1.1, never two, and it must be valid.
 * Whether it may be empty depends on the target. */
static enum why
route_host(struct route *r, struct fail *f)
{
    const struct field *host = head_find(r->req, "Host", NULL);
    uint16_t port;

    r->host = (struct span){"", 0};
    r->name[0] = '\0';
    if (host == NULL)
        return r->req->version == HTTP_11 ? refuse(f, "no Host field")
                                          : WHY_NONE;
    if (head_find(r->req, "Host", host) != NULL)
        return refuse(f, "more than one Host field");
    if (host->value.len > 0 && !authority_parse(host->value, r->name, &port))
        return refuse(f, "invalid Host field");
    r->host = host->value;
    return WHY_NONE;
}

/* The target is known, or it is us: the Host only says by which name. */
static enum why
route_here(struct route *r, struct span path, struct fail *f)
{
    const struct client *client = r->client;
    const struct origin *inside = client->inside;
    bool tls = inside != NULL ? inside->tls : client->tls;
    char own[HOST_MAX + 16];

    r->req->scheme = span_of(tls ? "https" : "http");
    r->req->path = path;
    r->req->authority = r->host;
    *r->ourselves =
        inside == NULL || client->own_name || strcmp(r->name, WEIR_HOST) == 0;
    if (inside == NULL)
        return WHY_NONE;
    *r->origin = *inside;
    if (r->host.len > 0)
        return WHY_NONE;
    origin_authority(inside, own, sizeof own);
    r->req->authority = head_text(r->req, own, strlen(own));
    if (r->req->authority.at == NULL)
        return fail_sys(f, SIDE_WEIR, "route", ENOMEM);
    return WHY_NONE;
}

/* RFC 9112 section 3.2.1: "/path?query". */
static enum why
route_origin_form(struct route *r, struct fail *f)
{
    /* RFC 9110 section 4.2.1: an http URI has a host. */
    if (r->req->version == HTTP_11 && r->host.len == 0)
        return refuse(f, "empty Host field");
    return route_here(r, r->req->target, f);
}

/* RFC 9112 section 3.2.4: "*". */
static enum why
route_asterisk_form(struct route *r, struct fail *f)
{
    if (r->req->method_id != METHOD_OPTIONS)
        return refuse(f, "target * with a method other than OPTIONS");
    return route_here(r, r->req->target, f);
}

/* RFC 9112 section 3.2.3: "host:port", and only with CONNECT. */
static enum why
route_authority_form(struct route *r, struct fail *f)
{
    struct origin *origin = r->origin;

    if (!authority_parse(r->req->target, origin->host, &origin->port) ||
        origin->port == 0)
        return refuse(f, "CONNECT target is not host:port");
    r->req->authority = r->req->target;
    r->req->scheme = r->req->path = (struct span){"", 0};
    return WHY_NONE;
}

/* The scheme of an absolute URI that we carry, as a literal; NULL: not one. */
static const char *
scheme_of(struct span target, size_t *len)
{
    static const char *const schemes[] = {"http", "https"};

    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        *len = strlen(schemes[i]);
        if (target.len >= *len + 3 &&
            span_isi((struct span){target.at, *len}, schemes[i]) &&
            memcmp(target.at + *len, "://", 3) == 0)
            return schemes[i];
    }
    return NULL;
}

/* What follows the authority, made into a path that an origin understands. */
static enum why
route_path(struct head *req, struct span rest, struct fail *f)
{
    if (rest.len == 0) { /* RFC 9112 section 3.2.4: OPTIONS of the host */
        req->path = span_of(req->method_id == METHOD_OPTIONS ? "*" : "/");
        return WHY_NONE;
    }
    req->path = rest;
    if (rest.at[0] == '?') { /* copied with the byte before it, for the "/" */
        req->path = head_text(req, rest.at - 1, rest.len + 1);
        if (req->path.at == NULL)
            return fail_sys(f, SIDE_WEIR, "route", ENOMEM);
        ((char *)req->path.at)[0] = '/';
    }
    return WHY_NONE;
}

/* RFC 9112 section 3.2.2: "http://host:port/path?query".  The Host field is
 * ignored, as that section wants. */
static enum why
route_absolute_form(struct route *r, struct fail *f)
{
    struct head *req = r->req;
    struct origin to = {0};
    size_t len;
    const char *scheme = scheme_of(req->target, &len);
    struct span rest;

    if (scheme == NULL)
        return refuse(f, memmem(req->target.at, req->target.len, "://", 3)
                             ? "scheme of the target is not http or https"
                             : "target has none of the four forms");
    rest = (struct span){req->target.at + len + 3, req->target.len - len - 3};
    for (len = 0; len < rest.len && rest.at[len] != '/' && rest.at[len] != '?';)
        len++;
    req->authority = (struct span){rest.at, len};
    if (len > 0 && memchr(rest.at, '@', len) != NULL)
        return refuse(f, "user information in the target");
    if (!authority_parse(req->authority, to.host, &to.port))
        return refuse(f, "invalid host or port in the target");
    if (rest.at[len - 1] == ':') /* "host:" is "host" */
        req->authority.len--;
    to.tls = strcmp(scheme, "https") == 0;
    if (to.port == 0)
        to.port = to.tls ? 443 : 80;
    req->scheme = span_of(scheme);
    *r->ourselves = is_ourselves(r->client, to.host, to.port);
    *r->origin = r->client->inside != NULL ? *r->client->inside : to;
    if (r->client->inside != NULL && r->client->any_port)
        r->origin->port = to.port;
    return route_path(req, (struct span){rest.at + len, rest.len - len}, f);
}

/*
 * head_route - where a request wants to go (RFC 9112 sections 3.2 and 3.3).
 *
 * req        as an HTTP/1 codec has read it; scheme, authority and path are
 *            set: what the origin shall see
 * client     who asks.  `inside`: its target is known already, and no request
 *            changes where we connect to
 * origin     set, unless only we are meant
 * ourselves  our own pages are meant, not an origin.  A CONNECT never sets it.
 * f          noted on failure
 *
 * Returns WHY_NONE, WHY_PROTO (400), or WHY_SYS (no memory).
 */
enum why
head_route(struct head *req, const struct client *client, struct origin *origin,
           bool *ourselves, struct fail *f)
{
    struct route r = {
        .req = req, .client = client, .origin = origin, .ourselves = ourselves};
    enum why why;

    *origin = (struct origin){0};
    *ourselves = false;
    if (req->target.len == 0)
        return refuse(f, "empty target");
    if (memchr(req->target.at, '#', req->target.len) != NULL)
        return refuse(f, "fragment in the target");
    if ((why = route_host(&r, f)) != WHY_NONE)
        return why;
    if (req->method_id == METHOD_CONNECT)
        return route_authority_form(&r, f);
    if (req->target.at[0] == '/')
        return route_origin_form(&r, f);
    if (span_is(req->target, "*"))
        return route_asterisk_form(&r, f);
    return route_absolute_form(&r, f);
}
