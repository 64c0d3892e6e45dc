/*
 * acl.c - who may use weir, and where to.
 *
 * Follows  RFC 9110 section 11.7 (Proxy-Authorization), RFC 7617 (Basic).
 * Owns     nothing; the lists are the configuration's.
 * Threads  any.
 * Blocks   never.
 */
#include <string.h>

#include "proxy.h"

/* ---- users ---------------------------------------------------------------- */

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

        good = access_login(conf, (struct span){at, (size_t)(colon - at)},
                            (struct span){colon + 1, text.size - 1 -
                                                         (size_t)(colon - at)});
    }
    gnutls_memset(text.data, 0, text.size);
    gnutls_free(text.data);
    return good;
}

/*
 * access_request - may this client make this request?
 *
 * req  on the proxy itself; behind a CONNECT the question was asked before
 *
 * Returns WHY_NONE; WHY_LOGIN: a user's name and password are wanted.
 */
enum why
access_request(const struct client *c, const struct head *req, struct fail *f)
{
    const struct field *field;

    if (c->inside != NULL || c->conf->n_users == 0)
        return WHY_NONE;
    field = head_find(req, "Proxy-Authorization", NULL);
    if (field == NULL)
        return fail_own(f, SIDE_CLIENT, WHY_LOGIN, "no user given");
    if (head_find(req, "Proxy-Authorization", field) != NULL ||
        !basic_login(c->conf, field->value))
        return fail_own(f, SIDE_CLIENT, WHY_LOGIN, "user or password wrong");
    return WHY_NONE;
}
