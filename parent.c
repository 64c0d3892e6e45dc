/*
 * parent.c - parents: the ways out that lead through another proxy.
 *
 * Reads their URLs, chooses who may serve a target and in what order, and
 * remembers who failed.  A parent that cannot be reached, or that does not
 * speak as it should, is left out for a while; one that answers, even with a
 * refusal, is in order.  through.c opens the ways.
 *
 * Follows  RFC 7617 (Basic); curl(1) for no_proxy.
 * Owns     the parents, until nobody refers to them.
 * Threads  any; a parent never changes but for its health.
 * Blocks   never.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "proxy.h"

enum {
    OUT_MS = 1000,      /* how long a parent is left out at first */
    OUT_MAX_MS = 60000, /* and in the end */
};

/* ---- a parent's URL ------------------------------------------------------ */

/* Percent-decode (RFC 3986 section 2.1) into out; false: malformed, too long,
 * or with control bytes, which no password needs and a header cannot carry. */
static bool
decode(struct span s, char out[HOST_MAX + 1])
{
    size_t n = 0;

    for (size_t i = 0; i < s.len; i++) {
        int c = (unsigned char)s.at[i];

        if (c == '%') {
            if (i + 2 >= s.len || hex_digit(s.at[i + 1]) < 0 ||
                hex_digit(s.at[i + 2]) < 0)
                return false;
            c = hex_digit(s.at[i + 1]) << 4 | hex_digit(s.at[i + 2]);
            i += 2;
        }
        if (c < ' ' || c == 0x7f || n == HOST_MAX)
            return false;
        out[n++] = (char)c;
    }
    out[n] = '\0';
    return true;
}

/* "user:password" */
static bool
read_user(struct parent *p, struct span s)
{
    const char *colon = memchr(s.at, ':', s.len);
    size_t len = colon != NULL ? (size_t)(colon - s.at) : s.len;

    if (!decode((struct span){s.at, len}, p->user) || p->user[0] == '\0' ||
        strchr(p->user, ':') != NULL)
        return false;
    return colon == NULL ||
           decode((struct span){colon + 1, s.len - len - 1}, p->password);
}

/* "Basic dXNlcjpwYXNz" of its user, if it has one; false: out of memory. */
static bool
make_basic(struct parent *p)
{
    char plain[2 * HOST_MAX + 2];
    gnutls_datum_t from = {(unsigned char *)plain, 0}, code;

    if (p->user[0] == '\0' || p->kind != PARENT_HTTP)
        return true;
    from.size =
        (unsigned)snprintf(plain, sizeof plain, "%s:%s", p->user, p->password);
    if (gnutls_base64_encode2(&from, &code) < 0)
        return false;
    if (asprintf(&p->basic, "Basic %.*s", (int)code.size, code.data) < 0)
        p->basic = NULL;
    gnutls_free(code.data);
    explicit_bzero(plain, sizeof plain);
    return p->basic != NULL;
}

static const struct scheme {
    const char *name;
    enum parent_kind kind;
    bool tls;
    uint16_t port;
} schemes[] = {
    {"http", PARENT_HTTP, false, 80},
    {"https", PARENT_HTTP, true, 443},
    {"socks5", PARENT_SOCKS, false, 1080},
    {"socks5h", PARENT_SOCKS, false, 1080}, /* curl's name for the same */
};

/* The scheme that the URL begins with, none: http; NULL: unknown. */
static const struct scheme *
find_scheme(struct span *url)
{
    const char *sep = memmem(url->at, url->len, "://", 3);
    size_t len = sep != NULL ? (size_t)(sep - url->at) : 0;
    struct span name = {url->at, len};

    if (sep == NULL)
        return &schemes[0];
    url->at += len + 3;
    url->len -= len + 3;
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        if (span_isi(name, schemes[i].name))
            return &schemes[i];
    return NULL;
}

static bool
read_url(struct parent *p, struct span url)
{
    const struct scheme *scheme = find_scheme(&url);
    const char *at;
    bool brackets;

    if (scheme == NULL)
        return false;
    if (url.len > 0 && url.at[url.len - 1] == '/')
        url.len--;
    if (memchr(url.at, '/', url.len) != NULL)
        return false;
    at = memrchr(url.at, '@', url.len);
    if (at != NULL) {
        size_t len = (size_t)(at - url.at);

        if (!read_user(p, (struct span){url.at, len}))
            return false;
        url.at += len + 1;
        url.len -= len + 1;
    }
    if (!authority_parse(url, p->host, &p->port))
        return false;
    p->kind = scheme->kind;
    p->tls = scheme->tls;
    if (p->port == 0)
        p->port = scheme->port;
    brackets = strchr(p->host, ':') != NULL;
    snprintf(p->text, sizeof p->text, "%s://%s%s%s:%u", scheme->name,
             brackets ? "[" : "", p->host, brackets ? "]" : "", p->port);
    return true;
}

/*
 * parent_parse - a parent from its text: a URL, "direct" or "env".
 *
 * Returns a reference for the caller to parent_give(); NULL: malformed, or out
 * of memory.  The text may hold a password and must not be repeated.
 */
struct parent *
parent_parse(const char *text)
{
    struct parent *p = calloc(1, sizeof *p);
    bool good = true;

    if (p == NULL)
        return NULL;
    atomic_init(&p->n_refs, 1);
    snprintf(p->text, sizeof p->text, "%.16s", text);
    if (strcasecmp(text, "direct") == 0)
        p->kind = PARENT_DIRECT;
    else if (strcasecmp(text, "env") == 0)
        p->kind = PARENT_ENV;
    else
        good = read_url(p, span_of(text)) && make_basic(p);
    if (good)
        return p;
    parent_give(p);
    return NULL;
}

/* A further reference; NULL stays NULL. */
struct parent *
parent_take(struct parent *p)
{
    if (p != NULL)
        atomic_fetch_add(&p->n_refs, 1);
    return p;
}

void
parent_give(struct parent *p)
{
    if (p == NULL || atomic_fetch_sub(&p->n_refs, 1) != 1)
        return;
    if (p->basic != NULL)
        explicit_bzero(p->basic, strlen(p->basic));
    free(p->basic);
    explicit_bzero(p->password, sizeof p->password);
    free(p);
}

/* Do both lead the same way, as the same user?  NULL is the direct way. */
bool
parent_same(const struct parent *a, const struct parent *b)
{
    if (a == b || a == NULL || b == NULL)
        return a == b;
    return a->kind == b->kind && a->tls == b->tls && a->port == b->port &&
           strcmp(a->host, b->host) == 0 && strcmp(a->user, b->user) == 0 &&
           strcmp(a->password, b->password) == 0;
}

/* ---- no_proxy, as curl reads it --------------------------------------------
 */

/*
 * no_proxy_add - further items of a no_proxy list.
 *
 * A name stands for itself and all below it, with or without a dot in front;
 * "*" is everything; addresses and blocks are themselves.  Each may have a
 * port.  Returns false with err as match_add() does.
 */
bool
no_proxy_add(struct match *m, const char *text, char *err, size_t cap)
{
    static const char between[] = ", \t";

    for (text += strspn(text, between); *text != '\0';
         text += strspn(text, between)) {
        size_t len = strcspn(text, between);
        char item[HOST_MAX + 32], host[HOST_MAX + 32], *name, *port;
        bool plain;

        while (len > 1 && text[0] == '.' && text[1] == '.') {
            text++;
            len--;
        }
        if (len >= sizeof host) {
            snprintf(err, cap, "an item is too long, allowed: %d bytes",
                     HOST_MAX);
            return false;
        }
        snprintf(host, sizeof host, "%.*s", (int)len, text);
        snprintf(item, sizeof item, "%s", host);
        plain = match_split(host, &name, &port) && name[0] != '.' &&
                strpbrk(name, "*?/:") == NULL && !host_is_address(name);
        if (plain)
            snprintf(item, sizeof item, ".%.*s", (int)len, text);
        if (!match_add(m, item, err, cap))
            return false;
        text += len;
    }
    return true;
}

/* ---- the environment ----------------------------------------------------- */

static const char *
env_get(const char *lower)
{
    const char *value = getenv(lower);
    char upper[32] = "";

    if (value != NULL && value[0] != '\0')
        return value;
    for (size_t i = 0; lower[i] != '\0' && i + 1 < sizeof upper; i++)
        upper[i] = (char)toupper((unsigned char)lower[i]);
    value = getenv(upper);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* One variable, or all_proxy in its stead. */
static bool
env_parent(const char *name, struct parent **out, char *err, size_t cap)
{
    const char *from = env_get(name) != NULL ? name : "all_proxy";
    const char *value = env_get(from);

    if (value == NULL)
        return true;
    *out = parent_parse(value);
    if (*out == NULL || (*out)->kind == PARENT_ENV) {
        parent_give(*out);
        *out = NULL;
        snprintf(err, cap,
                 "%s in the environment is no parent, " PARENT_ALLOWED, from);
        return false;
    }
    (*out)->from_env = true;
    return true;
}

/*
 * ways_env - what http_proxy and its kin say.
 *
 * Lower case goes first, all_proxy last.  An item of no_proxy that cannot be
 * understood is left out, as others do.  Returns false with err for a URL.
 */
bool
ways_env(struct env_ways *env, char *err, size_t cap)
{
    const char *no = env_get("no_proxy");
    char ignored[256], item[HOST_MAX + 32];

    if (!env_parent("http_proxy", &env->http, err, cap) ||
        !env_parent("https_proxy", &env->https, err, cap))
        return false;
    if ((env->no_proxy = match_parse(NULL, err, cap)) == NULL)
        return false;
    while (no != NULL && *(no += strspn(no, ", \t")) != '\0') {
        size_t len = strcspn(no, ", \t");

        snprintf(item, sizeof item, "%.*s", (int)len, no);
        (void)no_proxy_add(env->no_proxy, item, ignored, sizeof ignored);
        no += len;
    }
    return true;
}

/* ---- lists of ways ------------------------------------------------------- */

/* Puts p, whose reference it takes over, on the list; false: out of memory. */
bool
ways_add(struct ways *ways, struct parent *p)
{
    struct parent **at = realloc(ways->at, (ways->n + 1) * sizeof(void *));

    if (at == NULL) {
        parent_give(p);
        return false;
    }
    ways->at = at;
    ways->at[ways->n++] = p;
    return true;
}

void
ways_clear(struct ways *ways)
{
    for (size_t i = 0; i < ways->n; i++)
        parent_give(ways->at[i]);
    free(ways->at);
    *ways = (struct ways){NULL, 0};
}

/* ---- choosing ------------------------------------------------------------ */

/* What an item of a list means for this target; NULL: the direct way. */
static struct parent *
meant(const struct config *conf, struct parent *p, const struct origin *o)
{
    if (p->kind == PARENT_ENV) {
        p = o->tls || o->tunnel ? conf->env.https : conf->env.http;
        if (p == NULL || match_host(conf->env.no_proxy, o->host, o->port))
            return NULL;
    }
    if (p->kind == PARENT_DIRECT || atomic_load(&p->ourselves))
        return NULL;
    return p;
}

/* The list that the settings name for this target; NULL: direct. */
static const struct ways *
list_for(const struct config *conf, const struct origin *o)
{
    if (conf->n_rules == 0 && conf->ways.n == 0)
        return NULL;
    if (match_host(conf->no_proxy, o->host, o->port))
        return NULL;
    for (size_t i = 0; i < conf->n_rules; i++)
        if (match_host(conf->rules[i].hosts, o->host, o->port))
            return &conf->rules[i].ways;
    return conf->ways.n > 0 ? &conf->ways : NULL;
}

/*
 * parent_choose - the ways to a target, in the order to be tried.
 *
 * out  filled from the front; NULL is the direct way.  Those that failed lately
 *      are left out; if all did, the one that waits shortest is tried anyway
 *
 * Returns how many, >= 1.  The parents stay the configuration's.
 */
size_t
parent_choose(const struct config *conf, const struct origin *o,
              struct parent *out[WAYS_MAX])
{
    const struct ways *list = list_for(conf, o);
    struct parent *first = NULL;
    int64_t now = now_ms();
    size_t n = 0;

    for (size_t i = 0; list != NULL && i < list->n && n < WAYS_MAX; i++) {
        struct parent *p = meant(conf, list->at[i], o);

        if (p == NULL || atomic_load(&p->out_until) <= now)
            out[n++] = p;
        else if (first == NULL ||
                 atomic_load(&p->out_until) < atomic_load(&first->out_until))
            first = p;
    }
    if (n == 0)
        out[n++] = first; /* or NULL: without a list it is the direct way */
    return n;
}

/* Has this target a way of its own, or is it one that goes directly? */
bool
parent_is_direct(const struct config *conf, const struct origin *o)
{
    struct parent *ways[WAYS_MAX];

    return parent_choose(conf, o, ways) >= 1 && ways[0] == NULL;
}

/* It did not serve: leave it out for a while, twice as long each time.  Others
 * that tried at the same time do not count again. */
static void
parent_failed(struct parent *p, const struct fail *f, uint64_t conn)
{
    long long until = atomic_load(&p->out_until);
    int64_t now = now_ms(), out = OUT_MS;
    char reason[256];
    int n;

    if (until > now)
        return;
    n = atomic_load(&p->n_failed);
    while (n-- > 0 && out < OUT_MAX_MS)
        out *= 2;
    if (out > OUT_MAX_MS)
        out = OUT_MAX_MS;
    if (!atomic_compare_exchange_strong(&p->out_until, &until, now + out))
        return;
    atomic_fetch_add(&p->n_failed, 1);
    fail_text(f, reason, sizeof reason);
    log_say(LEVEL_WARN, conn, "parent", "%s is left out for %lld s: %s",
            p->text, (long long)out / 1000, reason);
}

static void
parent_good(struct parent *p)
{
    if (atomic_exchange(&p->n_failed, 0) > 0)
        atomic_store(&p->out_until, 0);
}

/* How a way through p went; f NULL: well. */
void
parent_judge(struct parent *p, const struct fail *f, uint64_t conn)
{
    if (f == NULL)
        parent_good(p);
    else
        parent_failed(p, f, conn);
}

/* ---- what it is asked, and shown ------------------------------------------
 */

/* Is it a plain request that the proxy itself takes, in absolute-form? */
bool
parent_absolute(const struct parent *p, const struct origin *o)
{
    return p != NULL && p->kind == PARENT_HTTP && !o->tls && !o->tunnel;
}

/* What to show to a parent: its own user, or the client's word if that is
 * wanted.  Empty: nothing. */
struct span
parent_credentials(const struct client *c, const struct parent *p)
{
    if (p != NULL && p->basic != NULL)
        return span_of(p->basic);
    if (p != NULL && c->conf->forward_proxy_auth && c->told != NULL)
        return span_of(c->told->proxy_auth);
    return (struct span){NULL, 0};
}
