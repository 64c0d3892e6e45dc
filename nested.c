/*
 * nested.c - QUIC inside of a tunnel for datagrams.
 *
 * When the first thing that a client sends through the tunnel is a QUIC
 * connection to somebody who is intercepted, we are the other end of it: its
 * datagrams go to a demux of their own, and it is served as if it had come to
 * our port.  For that we have to know whom it is for, which takes one datagram
 * or two; they wait here.  If it is none of ours they go on as they are, and so
 * does all that follows.
 *
 * Follows  RFC 9298; RFC 9000 for what begins a connection.
 * Owns     what waits, and the demux.
 * Threads  nested_put(): one at a time.  What is sent to the client comes from
 *          the owners of the connections inside, several at once.
 * Blocks   never.
 */
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    WAIT_MAX = 65536, /* bytes of datagrams that wait for what is to follow */
    PATH_PORT = 443,  /* of an address that nobody looks at */
};

/* What the connections inside send: they may outlive the tunnel. */
struct outlet {
    pthread_mutex_t lock;
    /* needs lock */
    bool over;
    struct nested_user user;
};

struct nested {
    const struct client *client;
    struct origin target;
    struct nested_user user;
    /* while nothing is decided */
    struct initial *initial;
    struct store waiting; /* each behind its length */
    bool opaque;
    /* then, perhaps */
    struct demux *demux;
    struct outlet *outlet; /* the demux's */
};

/* ---- down ---------------------------------------------------------------- */

static void
outlet_send(void *arg, const struct quic_path *path, const void *at, size_t len,
            size_t segment)
{
    struct outlet *out = arg;
    const char *from = at;

    (void)path;
    pthread_mutex_lock(&out->lock);
    while (!out->over && len > 0) {
        size_t n = len < segment ? len : segment;

        out->user.send(out->user.arg, from, n);
        from += n;
        len -= n;
    }
    pthread_mutex_unlock(&out->lock);
}

/* The last connection inside has ended, and so has the tunnel. */
static void
outlet_gone(void *arg)
{
    struct outlet *out = arg;

    pthread_mutex_destroy(&out->lock);
    free(out);
}

/* ---- up ------------------------------------------------------------------ */

/* An address as good as any: inside, there are none. */
static const struct quic_path inside = {
    .local.in = {.sin_family = AF_INET},
    .remote.in = {.sin_family = AF_INET, .sin_port = PATH_PORT},
};

/* Is this QUIC ours to look into?  As of TLS behind a CONNECT: the name that
 * the client wants to see decides, but an exception for where it connects
 * counts as well. */
static bool
is_wanted(const struct nested *t, const struct hello *hello)
{
    const struct config *conf = t->client->conf;
    const char *name = hello->sni[0] != '\0' ? hello->sni : t->target.host;

    return mitm_wants(conf, name, t->target.port) &&
           !match_host(conf->except, t->target.host, t->target.port) &&
           (hello->alpn == 0 || (hello->alpn & ALPN_H3) != 0) &&
           strchr(hello->sni, '_') == NULL;
}

/* False: out of memory. */
static bool
begin(struct nested *t)
{
    struct outlet *out = calloc(1, sizeof *out);
    struct demux_user user = {.weir = t->client->weir,
                              .send = outlet_send,
                              .gone = outlet_gone,
                              .arg = out,
                              .from = t->client,
                              .inside = &t->target};

    if (out == NULL)
        return false;
    pthread_mutex_init(&out->lock, NULL);
    out->user = t->user;
    t->outlet = out;
    t->demux = demux_new(&user);
    if (t->demux == NULL)
        outlet_gone(out);
    return t->demux != NULL;
}

/* It is decided: what has waited goes its way. */
static void
decide(struct nested *t, bool ours)
{
    size_t len;

    t->opaque = !ours || !begin(t);
    initial_free(t->initial);
    t->initial = NULL;
    for (size_t at = 0; at < t->waiting.len; at += len) {
        memcpy(&len, t->waiting.at + at, sizeof len);
        at += sizeof len;
        if (t->opaque)
            t->user.pass(t->user.arg, t->waiting.at + at, len);
        else
            demux_put(t->demux, &inside, t->waiting.at + at, len, len);
    }
    store_clear(&t->waiting);
}

/* It has to wait.  False: no room. */
static bool
keep(struct nested *t, const void *at, size_t len)
{
    return t->waiting.len + sizeof len + len <= WAIT_MAX &&
           store_add(&t->waiting, &len, sizeof len) &&
           store_add(&t->waiting, at, len);
}

/*
 * nested_new - a look at a tunnel's first datagrams.
 *
 * c       outlives it
 * target  of the tunnel; copied
 * user    copied.  pass: called in nested_put(); send: by any thread, until
 *         nested_free() returns.  Neither may wait.
 *
 * Returns NULL: there is nothing to look for, or no memory: all of it passes.
 */
struct nested *
nested_new(const struct client *c, const struct origin *target,
           const struct nested_user *user)
{
    struct nested *t;

    if (!conn_wants(c->conf, target) || (t = calloc(1, sizeof *t)) == NULL)
        return NULL;
    t->client = c;
    t->target = *target;
    t->target.tls = true;
    t->user = *user;
    if ((t->initial = initial_new()) != NULL)
        return t;
    free(t);
    return NULL;
}

/*
 * nested_put - one more datagram of the client.
 *
 * Returns true: it is taken, or was passed on.  False: nothing in this tunnel
 * is for us, now or later; this one is the caller's to pass on.
 */
bool
nested_put(struct nested *t, const void *at, size_t len)
{
    struct hello hello;
    enum why why;

    if (t->opaque)
        return false;
    if (t->demux != NULL) {
        demux_put(t->demux, &inside, at, len, len);
        return true;
    }
    why = initial_read(t->initial, at, len, &hello);
    if (why == WHY_MORE && keep(t, at, len))
        return true;
    if (why != WHY_NONE || !is_wanted(t, &hello)) {
        decide(t, false);
        return false;
    }
    decide(t, true);
    return nested_put(t, at, len);
}

/* Has it become ours? */
bool
nested_taken(const struct nested *t)
{
    return t->demux != NULL;
}

/* The tunnel is over: nothing is sent any more on return.  NULL: nothing. */
void
nested_free(struct nested *t)
{
    if (t == NULL)
        return;
    if (t->demux != NULL) {
        pthread_mutex_lock(&t->outlet->lock);
        t->outlet->over = true;
        pthread_mutex_unlock(&t->outlet->lock);
        demux_end(t->demux); /* the outlet may be gone now */
    }
    initial_free(t->initial);
    store_clear(&t->waiting);
    free(t);
}
