/*
 * demux.c - datagrams to QUIC connections, whatever brings them.
 *
 * A datagram names its connection by an identifier that we gave to it, or, as
 * long as the client has none of ours, by one that the client made up.  All of
 * them are in one table.  What comes for a connection waits in its wire, and
 * its owner is woken; what comes for nobody begins a connection, or is
 * answered here, without one: with the versions that we speak, with a Retry,
 * with a refusal, or with a stateless reset, which tells a peer that we have
 * forgotten the connection that it believes in.
 *
 * Nothing is remembered of a connection that has ended.  Its last words may be
 * lost; the peer's next datagram gets a reset.  The secret behind the resets
 * comes from the CA's key and is the same after a restart.
 *
 * Identifiers are random: an observer cannot tell which belong together (RFC
 * 9000 section 5.1), nor a client guess another's.
 *
 * Follows  RFC 9000 sections 5, 8 and 10.3, RFC 8999, RFC 9368 section 6.
 * Owns     the table, the wires and what waits in them.
 * Threads  one puts datagrams in; each wire has an owner; one lock for all,
 *          held for a copy at most.
 * Blocks   never.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>

#include "proxy.h"

enum {
    CID_LEN = 12,           /* of the identifiers that we make */
    INITIAL_MIN = 1200,     /* RFC 9000 section 14.1 */
    WIRE_MAX = 1 << 20,     /* bytes that wait for an owner */
    RESET_MIN = 43,         /* shorter datagrams get no reset: section 10.3 */
    RESET_CUT = 3,          /* a reset is so much shorter than its cause */
    RESETS = 1000,          /* a second; more are not answered */
    RETRY_S = 10,           /* how long the token of a Retry is good */
    TOKEN_S = 24 * 3600,    /* and one for the next connection */
    BUCKETS_FIRST = 256,    /* a power of two */
    CONNECTION_REFUSED = 2, /* RFC 9000 section 20.1 */
    INVALID_TOKEN = 0x0b,
    REPLY_MAX = 576, /* versions, for identifiers of 255 bytes */
};

struct name { /* an identifier, and where it leads */
    struct quic_cid cid;
    struct wire *wire;
    struct name *next;    /* in its bucket */
    struct name *of_wire; /* of the same wire */
};

struct wire {
    struct demux *demux;
    struct quic_birth birth; /* never changes */
    /* needs demux->lock */
    struct hub *hub; /* its owner's; NULL: nobody owns it */
    struct store in; /* datagrams, each behind a struct came */
    struct name *names;
    bool half_open, stop;
    struct wire *next, *prev;
};

struct came { /* before each lot of datagrams in a store */
    struct quic_path path;
    size_t len, segment;
};

struct demux {
    /* set by demux_new(), then only read */
    struct demux_user user;
    struct client from;   /* user.from, if there is one */
    struct origin inside; /* user.inside */
    uint8_t secret[32];   /* behind the resets */
    uint8_t seal[32];     /* of our tokens */
    uint8_t hash_key[16];
    /* whose thread puts datagrams in */
    int64_t resets_at;
    int n_resets;
    /* needs lock */
    pthread_mutex_t lock;
    struct name **buckets;
    size_t n_buckets, n_names;
    struct wire *wires;
    size_t n_wires, n_half_open;
    bool ended;
    int n_refs; /* the user, and each wire */
};

/* ---- the table ----------------------------------------------------------- */

static uint64_t
rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

/* SipHash-1-3 of an identifier: clients choose some of them, and shall not
 * choose the bucket. */
static uint64_t
hash(const struct demux *d, const uint8_t *at, size_t len)
{
    uint8_t block[24] = {0};
    uint64_t k[2], m[3], v[4];

    assert(len < sizeof block);
    memcpy(block, at, len);
    block[23] = (uint8_t)len;
    memcpy(k, d->hash_key, sizeof k);
    memcpy(m, block, sizeof m);
    v[0] = k[0] ^ 0x736f6d6570736575;
    v[1] = k[1] ^ 0x646f72616e646f6d;
    v[2] = k[0] ^ 0x6c7967656e657261;
    v[3] = k[1] ^ 0x7465646279746573;
    for (int i = 0; i < 6; i++) { /* three words, three rounds to finish */
        if (i < 3)
            v[3] ^= m[i];
        if (i == 3)
            v[2] ^= 0xff;
        v[0] += v[1];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[0] = rotate(v[0], 32);
        v[2] += v[3];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] += v[3];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] += v[1];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[2] = rotate(v[2], 32);
        if (i < 3)
            v[0] ^= m[i];
    }
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static bool
cid_is(const struct quic_cid *c, const uint8_t *at, size_t len)
{
    return c->len == len && memcmp(c->at, at, len) == 0;
}

/* Where in its bucket it is, or would be.  Needs d->lock. */
static struct name **
name_at(struct demux *d, const uint8_t *at, size_t len)
{
    struct name **n = &d->buckets[hash(d, at, len) & (d->n_buckets - 1)];

    while (*n != NULL && !cid_is(&(*n)->cid, at, len))
        n = &(*n)->next;
    return n;
}

/* Twice as many buckets, if there is memory for them.  Needs d->lock. */
static void
table_grow(struct demux *d)
{
    struct name **was = d->buckets;
    size_t n_was = d->n_buckets;
    struct name **now = calloc(2 * n_was, sizeof(struct name *));

    if (now == NULL)
        return;
    d->buckets = now;
    d->n_buckets = 2 * n_was;
    for (size_t i = 0; i < n_was; i++)
        for (struct name *n = was[i], *next; n != NULL; n = next) {
            struct name **to = name_at(d, n->cid.at, n->cid.len);

            next = n->next;
            n->next = NULL;
            *to = n;
        }
    free(was);
}

/* False: it is taken, or no memory.  Needs d->lock. */
static bool
name_add(struct demux *d, struct wire *w, const struct quic_cid *cid)
{
    struct name **at = name_at(d, cid->at, cid->len), *n;

    if (*at != NULL || (n = malloc(sizeof *n)) == NULL)
        return false;
    *n = (struct name){.cid = *cid, .wire = w, .of_wire = w->names};
    w->names = n;
    *at = n;
    if (++d->n_names > 2 * d->n_buckets)
        table_grow(d);
    return true;
}

/* Needs d->lock. */
static void
name_remove(struct demux *d, struct wire *w, const struct quic_cid *cid)
{
    struct name **at = name_at(d, cid->at, cid->len), *n = *at, **own;

    if (n == NULL || n->wire != w)
        return;
    *at = n->next;
    for (own = &w->names; *own != n; own = &(*own)->of_wire)
        ;
    *own = n->of_wire;
    free(n);
    d->n_names--;
}

/* ---- references ---------------------------------------------------------- */

/* The last one frees it. */
static void
demux_give(struct demux *d)
{
    bool last;

    pthread_mutex_lock(&d->lock);
    last = --d->n_refs == 0;
    pthread_mutex_unlock(&d->lock);
    if (!last)
        return;
    assert(d->n_names == 0 && d->wires == NULL);
    if (d->user.gone != NULL)
        d->user.gone(d->user.arg);
    gnutls_memset(d->secret, 0, sizeof d->secret);
    gnutls_memset(d->seal, 0, sizeof d->seal);
    free(d->from.told);
    pthread_mutex_destroy(&d->lock);
    free(d->buckets);
    free(d);
}

/* ---- answers without a connection ---------------------------------------- */

static void
reply(struct demux *d, const struct quic_path *path, const uint8_t *at,
      ngtcp2_ssize len)
{
    if (len > 0)
        d->user.send(d->user.arg, path, at, (size_t)len, (size_t)len);
}

static ngtcp2_cid
cid_of(const struct quic_cid *c)
{
    ngtcp2_cid cid;

    ngtcp2_cid_init(&cid, c->at, c->len);
    return cid;
}

static struct quic_cid
cid_from(const ngtcp2_cid *c)
{
    struct quic_cid cid = {.len = c->datalen};

    memcpy(cid.at, c->data, c->datalen);
    return cid;
}

static bool
random_bytes(void *to, size_t len)
{
    return gnutls_rnd(GNUTLS_RND_NONCE, to, len) == 0;
}

static ngtcp2_tstamp
wall_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (ngtcp2_tstamp)ts.tv_sec * NGTCP2_SECONDS +
           (ngtcp2_tstamp)ts.tv_nsec;
}

static socklen_t
address_len(const union quic_address *a)
{
    return a->sa.sa_family == AF_INET6 ? sizeof a->in6 : sizeof a->in;
}

/* RFC 9000 section 6: what we speak, and (section 15) something that nobody
 * does. */
static void
say_versions(struct demux *d, const struct quic_path *path,
             const ngtcp2_version_cid *vc)
{
    static const uint32_t ours[] = {NGTCP2_PROTO_VER_V1, NGTCP2_PROTO_VER_V2,
                                    0x1a2a3a4a};
    uint8_t out[REPLY_MAX], unused;

    if (vc->dcidlen > 255 || vc->scidlen > 255 || !random_bytes(&unused, 1))
        return;
    reply(d, path, out,
          ngtcp2_pkt_write_version_negotiation(
              out, sizeof out, unused, vc->scid, vc->scidlen, vc->dcid,
              vc->dcidlen, ours, sizeof ours / sizeof ours[0]));
}

/* RFC 9000 section 10.3: whatever this connection was, it is not ours. */
static void
say_reset(struct demux *d, const struct quic_path *path, const uint8_t *dcid,
          size_t len)
{
    uint8_t token[NGTCP2_STATELESS_RESET_TOKENLEN], noise[RESET_MIN];
    uint8_t out[RESET_MIN + NGTCP2_STATELESS_RESET_TOKENLEN];
    int64_t now = now_ms();
    size_t n_noise;
    ngtcp2_cid cid;

    if (len < RESET_MIN)
        return;
    if (now - d->resets_at >= 1000) {
        d->resets_at = now;
        d->n_resets = 0;
    }
    if (++d->n_resets > RESETS)
        return;
    n_noise = len - RESET_CUT - sizeof token;
    if (n_noise > sizeof noise)
        n_noise = sizeof noise;
    ngtcp2_cid_init(&cid, dcid, CID_LEN);
    if (!random_bytes(noise, n_noise) ||
        ngtcp2_crypto_generate_stateless_reset_token(
            token, d->secret, sizeof d->secret, &cid) != 0)
        return;
    reply(d, path, out,
          ngtcp2_pkt_write_stateless_reset(out, sizeof out, token, noise,
                                           n_noise));
}

/* The connection does not come about: a transport error code says why. */
static void
say_refused(struct demux *d, const struct quic_birth *b, uint64_t code)
{
    ngtcp2_cid client = cid_of(&b->client), first = cid_of(&b->first);
    uint8_t out[REPLY_MAX];

    reply(d, &b->path, out,
          ngtcp2_crypto_write_connection_close(out, sizeof out, b->version,
                                               &client, &first, code, NULL, 0));
}

/* RFC 9000 section 8.1.2: come again, with this token. */
static void
say_retry(struct demux *d, const struct quic_birth *b)
{
    ngtcp2_cid client = cid_of(&b->client), first = cid_of(&b->first), ours;
    uint8_t token[NGTCP2_CRYPTO_MAX_RETRY_TOKENLEN2], out[REPLY_MAX];
    ngtcp2_ssize n;

    ours.datalen = CID_LEN;
    if (!random_bytes(ours.data, ours.datalen))
        return;
    n = ngtcp2_crypto_generate_retry_token2(
        token, d->seal, sizeof d->seal, b->version, &b->path.remote.sa,
        address_len(&b->path.remote), &ours, &first, wall_ns());
    if (n > 0)
        reply(d, &b->path, out,
              ngtcp2_crypto_write_retry(out, sizeof out, b->version, &client,
                                        &ours, &first, token, (size_t)n));
}

/* ---- a connection begins ------------------------------------------------- */

enum proof {
    PROOF_NONE, /* the client may be anywhere */
    PROOF_GOOD, /* it is where it says it is */
    PROOF_BAD,  /* a Retry's token that is none of ours, or too old */
};

/* What the token of a first datagram proves. */
static enum proof
token_check(const struct demux *d, const ngtcp2_pkt_hd *hd,
            struct quic_birth *b)
{
    const struct sockaddr *from = &b->path.remote.sa;
    socklen_t len = address_len(&b->path.remote);
    ngtcp2_cid odcid;

    if (hd->tokenlen == 0 || hd->tokenlen > sizeof b->token)
        return PROOF_NONE;
    if (hd->token[0] == NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY2) {
        if (ngtcp2_crypto_verify_retry_token2(
                &odcid, hd->token, hd->tokenlen, d->seal, sizeof d->seal,
                hd->version, from, len, &hd->dcid, RETRY_S * NGTCP2_SECONDS,
                wall_ns()) != 0)
            return PROOF_BAD;
        b->odcid = cid_from(&odcid);
        b->retried = true;
    } else if (hd->token[0] != NGTCP2_CRYPTO_TOKEN_MAGIC_REGULAR ||
               ngtcp2_crypto_verify_regular_token(
                   hd->token, hd->tokenlen, d->seal, sizeof d->seal, from, len,
                   TOKEN_S * NGTCP2_SECONDS, wall_ns()) != 0) {
        return PROOF_NONE; /* of a server that was here before us, perhaps */
    }
    memcpy(b->token, hd->token, hd->tokenlen);
    b->token_len = hd->tokenlen;
    return PROOF_GOOD;
}

static bool
wants_proof(struct demux *d, const struct config *conf)
{
    bool many;

    if (conf->retry != RETRY_AUTO)
        return conf->retry == RETRY_ALWAYS;
    pthread_mutex_lock(&d->lock);
    many = d->n_half_open >= (size_t)conf->quic_half_open;
    pthread_mutex_unlock(&d->lock);
    return many;
}

/* Needs d->lock. */
static void
wire_link(struct demux *d, struct wire *w)
{
    w->next = d->wires;
    if (w->next != NULL)
        w->next->prev = w;
    d->wires = w;
    atomic_fetch_add(&d->user.weir->n_quic, 1);
    d->n_wires++;
    d->n_half_open++;
    d->n_refs++;
}

/* NULL: no memory, or somebody has this identifier. */
static struct wire *
wire_new(struct demux *d, const struct quic_birth *b)
{
    struct wire *w = calloc(1, sizeof *w);
    bool good;

    if (w == NULL)
        return NULL;
    w->demux = d;
    w->birth = *b;
    w->half_open = true;
    pthread_mutex_lock(&d->lock);
    good = name_add(d, w, &b->first);
    if (good)
        wire_link(d, w);
    pthread_mutex_unlock(&d->lock);
    if (good)
        return w;
    free(w);
    return NULL;
}

/* Needs d->lock. */
static void
wire_put(struct wire *w, const struct quic_path *path, const void *at,
         size_t len, size_t segment)
{
    struct came came = {*path, len, segment};

    if (w->in.len + sizeof came + len > WIRE_MAX)
        return; /* lost; the peer sends it again */
    if (!store_add(&w->in, &came, sizeof came))
        return;
    if (!store_add(&w->in, at, len)) {
        w->in.len -= sizeof came;
        return;
    }
    if (w->hub != NULL)
        hub_nudge(w->hub);
}

/* Is one more connection welcome? */
static bool
has_room(struct demux *d, const struct config *conf)
{
    return !atomic_load(&d->user.weir->draining) &&
           atomic_load(&d->user.weir->n_quic) < conf->quic_connections;
}

/* A client's first datagram: it becomes a connection, unless something is
 * against that. */
static void
begin(struct demux *d, const struct quic_path *path, const uint8_t *at,
      size_t len)
{
    struct weir *weir = d->user.weir;
    struct config *conf;
    struct quic_birth b = {.path = *path};
    struct conn *c = NULL;
    struct wire *w;
    enum proof proof;
    ngtcp2_pkt_hd hd;

    if (ngtcp2_accept(&hd, at, len) != 0)
        return;
    b.version = hd.version;
    b.client = cid_from(&hd.scid);
    b.first = cid_from(&hd.dcid);
    proof = token_check(d, &hd, &b);
    conf = config_take(weir);
    if (proof == PROOF_BAD) {
        say_refused(d, &b, INVALID_TOKEN);
    } else if (!has_room(d, conf)) {
        say_refused(d, &b, CONNECTION_REFUSED);
    } else if (proof == PROOF_NONE && wants_proof(d, conf)) {
        say_retry(d, &b);
    } else if ((w = wire_new(d, &b)) != NULL) {
        pthread_mutex_lock(&d->lock);
        wire_put(w, path, at, len, len);
        pthread_mutex_unlock(&d->lock);
        c = conn_new_quic(weir, w, d->user.from, d->user.inside);
        if (c == NULL) {
            wire_refuse(w);
            wire_free(w);
        } else if (d->user.from != NULL) {
            (void)listeners_adopt(weir->listeners, c);
        } else {
            (void)listeners_welcome(weir->listeners, c);
        }
    }
    config_give(conf);
}

/* ---- datagrams ----------------------------------------------------------- */

/* Datagrams of one connection, all of a size but the last: the first one says
 * whose they are.  Nobody's are looked at one by one. */
static void
route(struct demux *d, const struct quic_path *path, const uint8_t *at,
      size_t len, size_t segment)
{
    size_t first = len < segment ? len : segment;
    ngtcp2_version_cid vc;
    struct name *n = NULL;
    int rc = ngtcp2_pkt_decode_version_cid(&vc, at, first, CID_LEN);

    if (rc != 0 && rc != NGTCP2_ERR_VERSION_NEGOTIATION)
        return;
    if (rc == 0 && vc.dcidlen <= QUIC_CID_MAX) {
        pthread_mutex_lock(&d->lock);
        if ((n = *name_at(d, vc.dcid, vc.dcidlen)) != NULL)
            wire_put(n->wire, path, at, len, segment);
        pthread_mutex_unlock(&d->lock);
    }
    if (n != NULL)
        return;
    if (first < len)
        route(d, path, at + first, len - first, segment);
    if (rc == NGTCP2_ERR_VERSION_NEGOTIATION) {
        if (first >= INITIAL_MIN)
            say_versions(d, path, &vc);
    } else if (vc.version == 0) {
        if (vc.dcidlen == CID_LEN && !(at[0] & 0x80))
            say_reset(d, path, vc.dcid, first);
    } else {
        begin(d, path, at, first);
    }
}

/* Do two datagrams go to the same connection?  Those of a connection whose
 * client uses our identifier do: its place and length are known. */
static bool
same_short(const uint8_t *a, size_t n, const uint8_t *b, size_t m)
{
    return n > CID_LEN && m > CID_LEN && !((a[0] | b[0]) & 0x80) &&
           memcmp(a + 1, b + 1, CID_LEN) == 0;
}

/*
 * demux_put - datagrams have come.
 *
 * at, len  one or several behind each other
 * segment  bytes of each but the last, which may be shorter
 *
 * Thread: one at a time.  Blocks: never.
 */
void
demux_put(struct demux *d, const struct quic_path *path, const void *at,
          size_t len, size_t segment)
{
    const uint8_t *from = at, *end = from + len;

    while (from < end) {
        size_t left = (size_t)(end - from);
        size_t n = left < segment ? left : segment, lot = n;

        while (lot < left &&
               same_short(from, n, from + lot,
                          left - lot < segment ? left - lot : segment))
            lot += left - lot < segment ? left - lot : segment;
        route(d, path, from, lot, segment);
        from += lot;
    }
}

/*
 * demux_new - a table without connections.
 *
 * user  copied
 *
 * Returns NULL: out of memory.  demux_end() ends it; the last of its
 * connections frees it.
 */
struct demux *
demux_new(const struct demux_user *user)
{
    struct demux *d = calloc(1, sizeof *d);

    if (d == NULL)
        return NULL;
    d->user = *user;
    d->n_refs = 1;
    pthread_mutex_init(&d->lock, NULL);
    d->n_buckets = BUCKETS_FIRST;
    if (user->from != NULL) {
        d->from = *user->from;
        d->from.told = told_copy(user->from->told);
        d->user.from = &d->from;
        d->n_buckets = 8;
    }
    if (user->inside != NULL) {
        d->inside = *user->inside;
        d->user.inside = &d->inside;
    }
    d->buckets = calloc(d->n_buckets, sizeof(struct name *));
    if (d->buckets != NULL && random_bytes(d->hash_key, sizeof d->hash_key) &&
        random_bytes(d->seal, sizeof d->seal) &&
        mitm_secret(user->weir->mitm, "stateless reset", d->secret))
        return d;
    d->user.gone = NULL;
    demux_give(d);
    return NULL;
}

void
demux_end(struct demux *d)
{
    pthread_mutex_lock(&d->lock);
    d->ended = true;
    for (struct wire *w = d->wires; w != NULL; w = w->next)
        if (w->hub != NULL)
            hub_nudge(w->hub);
    pthread_mutex_unlock(&d->lock);
    demux_give(d);
}

/* How many connections it leads to.  Any thread. */
size_t
demux_live(struct demux *d)
{
    size_t n;

    pthread_mutex_lock(&d->lock);
    n = d->n_wires;
    pthread_mutex_unlock(&d->lock);
    return n;
}

/* ---- a connection's side ------------------------------------------------- */

/* What it began with; as long as the wire. */
const struct quic_birth *
wire_birth(const struct wire *w)
{
    return &w->birth;
}

/* Do its datagrams go through a tunnel, which may carry less than ours? */
bool
wire_tunnelled(const struct wire *w)
{
    return w->demux->user.inside != NULL;
}

/* Wake this one when something comes; NULL: nobody. */
void
wire_own(struct wire *w, struct hub *hub)
{
    pthread_mutex_lock(&w->demux->lock);
    w->hub = hub;
    if (hub != NULL && (w->in.len > 0 || w->stop || w->demux->ended))
        hub_nudge(hub);
    pthread_mutex_unlock(&w->demux->lock);
}

/* Everything that has come, in exchange for an empty store.  False: nothing
 * has. */
bool
wire_read(struct wire *w, struct store *to)
{
    struct store was = *to;
    bool some;

    assert(was.len == 0);
    was.start = 0;
    pthread_mutex_lock(&w->demux->lock);
    some = w->in.len > 0;
    if (some) {
        *to = w->in;
        w->in = was;
    }
    pthread_mutex_unlock(&w->demux->lock);
    return some;
}

/* The next lot of datagrams in what wire_read() gave, taken out of it.  False:
 * that was all. */
bool
wire_next(struct store *from, struct quic_path *path, struct span *lot,
          size_t *segment)
{
    struct came came;

    if (from->len == 0)
        return false;
    memcpy(&came, from->at + from->start, sizeof came);
    *path = came.path;
    *lot = (struct span){from->at + from->start + sizeof came, came.len};
    *segment = came.segment;
    from->start += sizeof came + came.len;
    from->len -= sizeof came + came.len;
    return true;
}

/* As struct demux_user's; the owner's. */
void
wire_send(struct wire *w, const struct quic_path *path, const void *at,
          size_t len, size_t segment)
{
    w->demux->user.send(w->demux->user.arg, path, at, len, segment);
}

/* A further identifier; cid->len is set.  reset: what a stateless reset will
 * prove to know of it.  False: out of memory. */
bool
wire_name(struct wire *w, struct quic_cid *cid, uint8_t reset[16])
{
    struct demux *d = w->demux;
    ngtcp2_cid id;
    bool good;

    assert(cid->len == CID_LEN);
    if (!random_bytes(cid->at, cid->len))
        return false;
    id = cid_of(cid);
    if (ngtcp2_crypto_generate_stateless_reset_token(
            reset, d->secret, sizeof d->secret, &id) != 0)
        return false;
    pthread_mutex_lock(&d->lock);
    good = name_add(d, w, cid);
    pthread_mutex_unlock(&d->lock);
    return good;
}

void
wire_unname(struct wire *w, const struct quic_cid *cid)
{
    pthread_mutex_lock(&w->demux->lock);
    name_remove(w->demux, w, cid);
    pthread_mutex_unlock(&w->demux->lock);
}

/* A token by which the client can prove its address next time.  Returns its
 * length; 0: none. */
size_t
wire_token(struct wire *w, const struct quic_path *path,
           uint8_t out[QUIC_TOKEN_MAX])
{
    ngtcp2_ssize n = ngtcp2_crypto_generate_regular_token(
        out, w->demux->seal, sizeof w->demux->seal, &path->remote.sa,
        address_len(&path->remote), wall_ns());

    return n > 0 ? (size_t)n : 0;
}

/* The client's handshake is complete: it is where it says it is, and has our
 * identifiers instead of its own. */
void
wire_settled(struct wire *w)
{
    struct demux *d = w->demux;

    pthread_mutex_lock(&d->lock);
    if (w->half_open)
        d->n_half_open--;
    w->half_open = false;
    pthread_mutex_unlock(&d->lock);
}

bool
wire_news(struct wire *w)
{
    bool news;

    pthread_mutex_lock(&w->demux->lock);
    news = w->in.len > 0 || w->stop || w->demux->ended;
    pthread_mutex_unlock(&w->demux->lock);
    return news;
}

void
wire_stop(struct wire *w)
{
    pthread_mutex_lock(&w->demux->lock);
    w->stop = true;
    if (w->hub != NULL)
        hub_nudge(w->hub);
    pthread_mutex_unlock(&w->demux->lock);
}

bool
wire_stopped(struct wire *w)
{
    bool stopped;

    pthread_mutex_lock(&w->demux->lock);
    stopped = w->stop || w->demux->ended;
    pthread_mutex_unlock(&w->demux->lock);
    return stopped;
}

/* Nobody takes it: the client is told, and not left to wait. */
void
wire_refuse(struct wire *w)
{
    say_refused(w->demux, &w->birth, CONNECTION_REFUSED);
}

/* It has no owner any more, and its identifiers lead nowhere.  NULL: nothing.
 */
void
wire_free(struct wire *w)
{
    struct demux *d;

    if (w == NULL)
        return;
    d = w->demux;
    pthread_mutex_lock(&d->lock);
    assert(w->hub == NULL);
    while (w->names != NULL)
        name_remove(d, w, &w->names->cid);
    if (w->half_open)
        d->n_half_open--;
    if (w->prev != NULL)
        w->prev->next = w->next;
    else
        d->wires = w->next;
    if (w->next != NULL)
        w->next->prev = w->prev;
    d->n_wires--;
    atomic_fetch_sub(&d->user.weir->n_quic, 1);
    pthread_mutex_unlock(&d->lock);
    store_clear(&w->in);
    free(w);
    demux_give(d);
}
