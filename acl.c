/*
 * acl.c - who may use weir, and where to.
 *
 * Clients are judged by their address, targets by the name that the client gave
 * and again by the addresses it resolves to: a public name may lead to a
 * private net.  `deny` goes before `allow`, and that before the default:
 * clients of this machine (or users who log in), and every target.  What is
 * denied is told in one log line, with the rule.
 *
 * Follows  RFC 9110 section 11.7 (Proxy-Authorization), RFC 7617 (Basic).
 * Owns     nothing; the lists are the configuration's.
 * Threads  any.
 * Blocks   never.
 */
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "proxy.h"

/* ---- users ----------------------------------------------------------------
 */

/* 0 if both are the same.  The time it takes depends on the length of what was
 * sent alone, so it tells nothing of what would have been right. */
static unsigned
differs(struct span sent, const char *right)
{
    size_t len = strlen(right);
    unsigned diff = (unsigned)(sent.len ^ len) | (sent.len != len);

    for (size_t i = 0; i < sent.len; i++)
        diff |= (unsigned char)(sent.at[i] ^ right[i < len ? i : len]);
    return diff;
}

/*
 * access_login - is this one of the users?
 *
 * Every user is compared with, so that the time does not tell who exists.
 */
bool
access_login(const struct config *conf, struct span user, struct span pass)
{
    bool good = false;

    for (size_t i = 0; i < conf->n_users; i++)
        good |= (differs(user, conf->users[i].name) |
                 differs(pass, conf->users[i].password)) == 0;
    return good;
}

/* "Basic dXNlcjpwYXNz": RFC 7617 section 2.  The scheme has no case. */
static bool
basic_login(const struct config *conf, struct span value)
{
    gnutls_datum_t code, text;
    const char *colon;
    bool good = false;

    if (value.len < 7 || !span_isi((struct span){value.at, 6}, "Basic "))
        return false;
    value = span_trim((struct span){value.at + 6, value.len - 6});
    code = (gnutls_datum_t){(unsigned char *)value.at, (unsigned)value.len};
    if (gnutls_base64_decode2(&code, &text) < 0)
        return false;
    colon = memchr(text.data, ':', text.size);
    if (colon != NULL) {
        const char *at = (const char *)text.data;

        good = access_login(
            conf, (struct span){at, (size_t)(colon - at)},
            (struct span){colon + 1, text.size - 1 - (size_t)(colon - at)});
    }
    gnutls_memset(text.data, 0, text.size);
    gnutls_free(text.data);
    return good;
}

/*
 * access_request - may this client make this request?
 *
 * req        on the proxy itself; behind a CONNECT it was asked before
 * ourselves  it is for our own pages: nobody has to log in for them
 *
 * Returns WHY_NONE; WHY_POLICY: the client's address is denied; WHY_LOGIN: a
 * user's name and password are wanted.
 */
enum why
access_request(const struct client *c, const struct head *req, bool ourselves,
               struct fail *f)
{
    const struct field *field;

    if (c->denied != NULL)
        return access_denied(c, NULL, 0, c->denied, f);
    if (ourselves || c->inside != NULL || c->conf->n_users == 0)
        return WHY_NONE;
    field = head_find(req, "Proxy-Authorization", NULL);
    if (field == NULL)
        return fail_own(f, SIDE_CLIENT, WHY_LOGIN, "no user given");
    if (head_find(req, "Proxy-Authorization", field) != NULL ||
        !basic_login(c->conf, field->value))
        return fail_own(f, SIDE_CLIENT, WHY_LOGIN, "user or password wrong");
    return WHY_NONE;
}

/* ---- clients ----------------------------------------------------------------
 */

static bool
is_loopback(const struct sockaddr *sa)
{
    const struct in6_addr *six = &((const struct sockaddr_in6 *)sa)->sin6_addr;

    if (sa->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) >> 24 ==
               IN_LOOPBACKNET;
    return IN6_IS_ADDR_LOOPBACK(six) ||
           (IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == IN_LOOPBACKNET);
}

/*
 * access_client - the rule that keeps a client's address out.
 *
 * Returns NULL if it may come in; else the rule, for as long as conf lives.
 */
const char *
access_client(const struct config *conf, const struct sockaddr *sa)
{
    uint16_t port = 0;
    const char *rule;

    if (sa->sa_family != AF_INET && sa->sa_family != AF_INET6)
        return NULL; /* a socket of this machine */
    port = ntohs(sa->sa_family == AF_INET6
                     ? ((const struct sockaddr_in6 *)sa)->sin6_port
                     : ((const struct sockaddr_in *)sa)->sin_port);
    if ((rule = match_find_address(conf->deny, sa, port)) != NULL)
        return rule;
    if (match_find_address(conf->allow, sa, port) != NULL || is_loopback(sa))
        return NULL;
    if (match_empty(conf->allow) && conf->n_users > 0)
        return NULL; /* he has to say who he is */
    return "not in allow";
}

/* ---- targets ------------------------------------------------------------- */

/*
 * access_denied - say that something is not allowed, in one log line.
 *
 * target  NULL: it is the client who is not
 *
 * Returns WHY_POLICY, noted.
 */
enum why
access_denied(const struct client *c, const char *target, uint16_t port,
              const char *rule, struct fail *f)
{
    char text[HOST_MAX + 16];
    struct line l;

    if (log_on(LEVEL_WARN)) {
        log_begin(&l, LEVEL_WARN, "denied", c->id);
        log_str(&l, "client", c->addr);
        if (target != NULL) {
            snprintf(text, sizeof text,
                     strchr(target, ':') != NULL ? "[%s]:%u" : "%s:%u", target,
                     port);
            log_str(&l, "target", text);
        }
        log_str(&l, "rule", rule);
        log_send(&l);
    }
    return fail_own(f, SIDE_WEIR, WHY_POLICY,
                    target != NULL ? "target denied" : "client denied");
}

/*
 * access_rule - what keeps us from a target, as far as its name tells.
 *
 * host  as in struct origin
 * what  what its addresses will have to be asked; written only on NULL
 *
 * Returns NULL: nothing does; else the rule, for as long as conf lives.
 */
const char *
access_rule(const struct config *conf, const char *host, uint16_t port,
            enum access *what)
{
    const char *rule = match_find(conf->target_deny, host, port);

    if (rule != NULL)
        return rule;
    if (!match_empty(conf->target_allow))
        *what = match_find(conf->target_allow, host, port) != NULL
                    ? ACCESS_BY_NAME
                    : ACCESS_BY_ADDRESS;
    else
        *what =
            match_empty(conf->target_deny) ? ACCESS_GRANTED : ACCESS_BY_NAME;
    return NULL;
}

/* The same, with WHY_POLICY noted and logged. */
enum why
access_target(const struct client *c, const char *host, uint16_t port,
              enum access *what, struct fail *f)
{
    const char *rule = access_rule(c->conf, host, port, what);

    return rule == NULL ? WHY_NONE : access_denied(c, host, port, rule, f);
}

/*
 * access_address - may this address of a target be reached?
 *
 * what  of access_target()
 * rule  the one that keeps us from it; written only on false
 */
bool
access_address(const struct client *c, const struct sockaddr *sa,
               enum access what, const char **rule)
{
    uint16_t port = ntohs(sa->sa_family == AF_INET6
                              ? ((const struct sockaddr_in6 *)sa)->sin6_port
                              : ((const struct sockaddr_in *)sa)->sin_port);
    const char *no;

    if (what == ACCESS_GRANTED)
        return true;
    if ((no = match_find_address(c->conf->target_deny, sa, port)) == NULL &&
        what == ACCESS_BY_ADDRESS &&
        match_find_address(c->conf->target_allow, sa, port) == NULL)
        no = "not in target_allow";
    if (no != NULL)
        *rule = no;
    return no == NULL;
}
