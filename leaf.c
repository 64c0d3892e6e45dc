/*
 * leaf.c - certificates for the names we answer for.
 *
 * A client that we intercept gets a certificate for the name it asked for,
 * which also names what the origin's own certificate names: clients share one
 * connection among such hosts (RFC 9113 section 9.1.1).  A leaf is minted
 * when it is first wanted, by the thread that wants it; whoever wants the
 * same one meanwhile waits for it.  The most recently used ones are kept.
 * All share one key, which lives as long as the process.
 *
 * Follows  RFC 5280 section 4; RFC 6125 (names are compared without case).
 * Owns     the leaf key, the certificates and the table of them.
 * Threads  any.  A taken leaf stays whole until it is given back, even if it
 *          fell out of the table meanwhile.
 * Blocks   leaf_take(), for the time of one signature.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/x509-ext.h>
#include <gnutls/x509.h>

#include "proxy.h"

enum {
    CN_MAX = 64, /* ub-common-name, RFC 5280 appendix A.1 */
    DAY_S = 24 * 60 * 60,
    ID_MAX = 64,     /* room for a key identifier */
    WAIT_MS = 10000, /* for another thread's signature, without a deadline */
};

enum leaf_state { LEAF_MINTING, LEAF_READY, LEAF_FAILED };

struct key { /* what a leaf is found by: "name\0", then the names */
    uint64_t hash;
    size_t len;
    char at[HOST_MAX + 1 + sizeof((struct names *)0)->at];
};

struct leaf {
    /* set before others see it, then only read */
    struct key *key;
    gnutls_privkey_t private; /* the one of all leaves */
    /* the minting thread's while LEAF_MINTING, then only read */
    gnutls_pcert_st chain[2]; /* the leaf's own; the CA's, of all leaves */
    time_t renew_at;          /* seconds since 1970 */
    int rc;                   /* GnuTLS: why it failed */
    /* needs leaves->lock */
    enum leaf_state state;
    pthread_cond_t minted; /* it is LEAF_MINTING no more */
    unsigned n_refs;       /* who took it; the table does not count */
    bool listed;           /* in the table */
    struct leaf *next;     /* same bucket */
    struct leaf *newer, *older;
};

struct leaves {
    /* set by leaves_new(), then only read */
    const struct ca *ca;
    int days;
    size_t max, n_buckets;
    uint64_t seed; /* who chooses names shall not choose buckets */
    gnutls_privkey_t private;
    gnutls_pubkey_t public;
    gnutls_pcert_st ca_pcert;
    unsigned char key_id[ID_MAX], ca_id[ID_MAX];
    size_t n_key_id, n_ca_id;
    /* needs lock */
    pthread_mutex_t lock;
    struct leaf **buckets;
    struct leaf *newest, *oldest;
    size_t n;
    uint64_t n_minted;
};

/* ---- names --------------------------------------------------------------- */

/* The bytes of an address in text: 4, 16, or 0 if it is none. */
static unsigned
address_bytes(const char *text, unsigned char out[16])
{
    if (inet_pton(AF_INET, text, out) == 1)
        return 4;
    return inet_pton(AF_INET6, text, out) == 1 ? 16 : 0;
}

/* The one spelling of a name: A-labels, lower case, no dot at the end, no
 * scope behind an address.  Returns its length; 0: no certificate can name
 * that. */
static size_t
name_plain(const char *text, char out[HOST_MAX + 1])
{
    gnutls_datum_t ascii = {NULL, 0};
    const char *scope = strchr(text, ':') != NULL ? strchr(text, '%') : NULL;
    size_t len = scope != NULL ? (size_t)(scope - text) : strlen(text);

    for (size_t i = 0; i < len; i++) /* IDNA would drop some of these */
        if ((unsigned char)text[i] <= ' ' || text[i] == 0x7f)
            return 0;
    if (len == 0 || len > HOST_MAX ||
        gnutls_idna_map(text, (unsigned)len, &ascii, 0) < 0)
        return 0;
    len = ascii.size;
    if (len > 0 && ascii.data[len - 1] == '.')
        len--;
    if (len > HOST_MAX)
        len = 0;
    for (size_t i = 0; i < len; i++) {
        char c = (char)ascii.data[i];

        out[i] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    }
    out[len] = '\0';
    gnutls_free(ascii.data);
    return len;
}

static bool
sans_has(gnutls_subject_alt_names_t sans, unsigned type,
         const gnutls_datum_t *name)
{
    gnutls_datum_t has;
    unsigned has_type;

    for (unsigned i = 0;
         gnutls_subject_alt_names_get(sans, i, &has_type, &has, NULL) == 0; i++)
        if (has_type == type && has.size == name->size &&
            memcmp(has.data, name->data, has.size) == 0)
            return true;
    return false;
}

/* Once each.  What cannot be named is left out: an origin may have put
 * anything into its own certificate. */
static int
sans_add(gnutls_subject_alt_names_t sans, const char *text)
{
    char plain[HOST_MAX + 1];
    unsigned char address[16];
    gnutls_datum_t name;
    unsigned type = GNUTLS_SAN_DNSNAME;

    size_t len = name_plain(text, plain);

    if (len == 0)
        return 0;
    name.data = address;
    name.size = address_bytes(plain, address);
    if (name.size > 0)
        type = GNUTLS_SAN_IPADDRESS;
    else
        name = (gnutls_datum_t){(void *)plain, (unsigned)len};
    if (sans_has(sans, type, &name))
        return 0;
    return gnutls_subject_alt_names_set(sans, type, &name, NULL);
}

/* ---- minting ------------------------------------------------------------- */

/* critical: the subject is empty, RFC 5280 section 4.2.1.6; strict verifiers
 * look at it. */
static int
crt_set_sans(gnutls_x509_crt_t crt, const struct key *key, bool critical)
{
    gnutls_subject_alt_names_t sans = NULL;
    gnutls_datum_t ext = {NULL, 0};
    const char *at = key->at, *end = key->at + key->len;
    int rc = gnutls_subject_alt_names_init(&sans);

    for (; rc == 0 && at < end; at += strlen(at) + 1)
        rc = sans_add(sans, at);
    if (rc == 0)
        rc = gnutls_x509_ext_export_subject_alt_names(sans, &ext);
    if (rc == 0)
        rc = gnutls_x509_crt_set_extension_by_oid(crt, GNUTLS_X509EXT_OID_SAN,
                                                  ext.data, ext.size, critical);
    gnutls_free(ext.data);
    if (sans != NULL)
        gnutls_subject_alt_names_deinit(sans);
    return rc;
}

/* Subject and extensions; 0 or a GnuTLS code. */
static int
crt_describe(const struct leaves *ls, gnutls_x509_crt_t crt,
             const struct key *key)
{
    size_t len = strlen(key->at);
    int rc;

    if (len <= CN_MAX &&
        (rc = gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0,
                                            key->at, (unsigned)len)) < 0)
        return rc;
    if ((rc = crt_set_sans(crt, key, len > CN_MAX)) < 0 ||
        (rc = gnutls_x509_crt_set_basic_constraints(crt, 0, -1)) < 0 ||
        (rc = gnutls_x509_crt_set_key_usage(
             crt, GNUTLS_KEY_DIGITAL_SIGNATURE)) < 0 ||
        (rc = gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_TLS_WWW_SERVER,
                                                  0)) < 0 ||
        (rc = gnutls_x509_crt_set_subject_key_id(crt, ls->key_id,
                                                 ls->n_key_id)) < 0)
        return rc;
    return gnutls_x509_crt_set_authority_key_id(crt, ls->ca_id, ls->n_ca_id);
}

/* The certificate of leaf l; 0 or a GnuTLS code.  Without the lock. */
static int
leaf_mint(const struct leaves *ls, struct leaf *l)
{
    gnutls_x509_crt_t crt = NULL;
    time_t now = time(NULL), until = now + (time_t)ls->days * DAY_S;
    time_t ca_until = gnutls_x509_crt_get_expiration_time(ls->ca->crt);
    time_t margin;
    int rc;

    if (until > ca_until)
        until = ca_until; /* longer than its CA it is of no use */
    if (until <= now)
        return GNUTLS_E_EXPIRED;
    margin = (until - now) / 2 < DAY_S ? (until - now) / 2 : DAY_S;
    l->renew_at = until - margin;
    if ((rc = gnutls_x509_crt_init(&crt)) < 0 ||
        (rc = ca_crt_begin(crt, ls->public, until)) < 0 ||
        (rc = crt_describe(ls, crt, l->key)) < 0 ||
        (rc = gnutls_x509_crt_privkey_sign(crt, ls->ca->crt, ls->ca->key,
                                           GNUTLS_DIG_SHA256, 0)) < 0)
        goto out;
    rc = gnutls_pcert_import_x509(&l->chain[0], crt, 0);
    l->chain[1] = ls->ca_pcert; /* lent: leaf_free() leaves it alone */
out:
    if (crt != NULL)
        gnutls_x509_crt_deinit(crt);
    return rc;
}

/* ---- the table ----------------------------------------------------------- */

/* FNV-1a, started from a secret. */
static uint64_t
hash_of(const struct leaves *ls, const char *at, size_t len)
{
    uint64_t hash = 0xcbf29ce484222325u ^ ls->seed;

    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)at[i]) * 0x100000001b3u;
    return hash;
}

/* False: no certificate can name `name`. */
static bool
key_make(const struct leaves *ls, const char *name, const struct names *names,
         struct key *key)
{
    size_t len = name_plain(name, key->at);

    if (len == 0)
        return false;
    key->len = len + 1;
    if (names != NULL && names->len > 0) {
        assert(names->len <= sizeof names->at &&
               names->at[names->len - 1] == '\0');
        memcpy(key->at + key->len, names->at, names->len);
        key->len += names->len;
    }
    key->hash = hash_of(ls, key->at, key->len);
    return true;
}

static struct leaf **
bucket_of(struct leaves *ls, const struct key *key)
{
    return &ls->buckets[key->hash % ls->n_buckets];
}

static void
leaf_free(struct leaf *l)
{
    if (l->state == LEAF_READY)
        gnutls_pcert_deinit(&l->chain[0]);
    pthread_cond_destroy(&l->minted);
    free(l->key);
    free(l);
}

/* NULL: out of memory.  The caller has the only reference. */
static struct leaf *
leaf_new(const struct leaves *ls, const struct key *key)
{
    struct leaf *l = calloc(1, sizeof *l);
    size_t size = offsetof(struct key, at) + key->len;

    if (l == NULL || (l->key = malloc(size)) == NULL) {
        free(l);
        return NULL;
    }
    memcpy(l->key, key, size);
    l->private = ls->private;
    l->state = LEAF_MINTING;
    l->n_refs = 1;
    pthread_cond_init(&l->minted, NULL);
    return l;
}

/* Needs ls->lock. */
static void
leaf_age_remove(struct leaves *ls, struct leaf *l)
{
    *(l->newer != NULL ? &l->newer->older : &ls->newest) = l->older;
    *(l->older != NULL ? &l->older->newer : &ls->oldest) = l->newer;
}

/* Needs ls->lock. */
static void
leaf_age_add(struct leaves *ls, struct leaf *l)
{
    l->newer = NULL;
    l->older = ls->newest;
    *(ls->newest != NULL ? &ls->newest->newer : &ls->oldest) = l;
    ls->newest = l;
}

/* Out of the table; it lives on with those who took it.  Needs ls->lock. */
static void
leaf_unlist(struct leaves *ls, struct leaf *l)
{
    struct leaf **at = bucket_of(ls, l->key);

    assert(l->listed);
    while (*at != l)
        at = &(*at)->next;
    *at = l->next;
    leaf_age_remove(ls, l);
    l->listed = false;
    ls->n--;
    if (l->n_refs == 0)
        leaf_free(l);
}

/* Into the table; the one longest unused makes room.  Needs ls->lock. */
static void
leaf_list(struct leaves *ls, struct leaf *l)
{
    struct leaf **bucket = bucket_of(ls, l->key);

    if (ls->n >= ls->max)
        leaf_unlist(ls, ls->oldest);
    l->next = *bucket;
    *bucket = l;
    leaf_age_add(ls, l);
    l->listed = true;
    ls->n++;
}

/* A leaf that will soon expire is as good as none: it leaves the table.
 * Needs ls->lock. */
static struct leaf *
leaf_find(struct leaves *ls, const struct key *key)
{
    struct leaf *l = *bucket_of(ls, key);

    while (l != NULL && (l->key->hash != key->hash || l->key->len != key->len ||
                         memcmp(l->key->at, key->at, key->len) != 0))
        l = l->next;
    if (l != NULL && l->state == LEAF_READY && l->renew_at <= time(NULL)) {
        leaf_unlist(ls, l);
        l = NULL;
    }
    return l;
}

/* Needs ls->lock. */
static void
leaf_drop(struct leaf *l)
{
    assert(l->n_refs > 0);
    if (--l->n_refs == 0 && !l->listed)
        leaf_free(l);
}

/* Until another thread has minted it, or the deadline.  Needs ls->lock, which
 * is released meanwhile. */
static void
leaf_wait(struct leaves *ls, struct leaf *l, int64_t deadline)
{
    int64_t until = deadline != 0 ? deadline : now_ms() + WAIT_MS;

    while (l->state == LEAF_MINTING && cond_until(&l->minted, &ls->lock, until))
        ;
}

/* A new leaf, listed first, so that others wait for it instead of minting it
 * too.  NULL: out of memory.  Needs ls->lock, which is released meanwhile. */
static struct leaf *
leaf_make(struct leaves *ls, const struct key *key)
{
    struct leaf *l = leaf_new(ls, key);
    int rc;

    if (l == NULL)
        return NULL;
    leaf_list(ls, l);
    pthread_mutex_unlock(&ls->lock);
    rc = leaf_mint(ls, l);
    pthread_mutex_lock(&ls->lock);
    assert(l->n_refs > 0); /* ours: it may have left the table, but lives */
    l->rc = rc;
    l->state = rc == 0 ? LEAF_READY : LEAF_FAILED;
    if (rc == 0)
        ls->n_minted++;
    else if (l->listed) /* the next one may have more luck */
        leaf_unlist(ls, l);
    pthread_cond_broadcast(&l->minted);
    return l;
}

/* ---- public -------------------------------------------------------------- */

/*
 * leaf_take - the certificate for a name.
 *
 * name      a host name or an address, as it is asked for; not empty.  U-labels
 *           become A-labels
 * names     what the origin's certificate names; NULL: nothing is known of it.
 *           Wildcards stay wildcards; what no certificate can name is left out
 * deadline  point in ms, for waiting on another thread that mints the same
 *           one; 0: WAIT_MS
 * out       given back with leaf_give(); written only on WHY_NONE
 *
 * Returns WHY_NONE; WHY_PROTO: no certificate can name `name`; WHY_LATE;
 * WHY_TLS: minting failed; WHY_SYS: out of memory.  All but WHY_NONE noted.
 * Thread: any.  Blocks: for a signature (some 0.1 ms).
 */
enum why
leaf_take(struct leaves *ls, const char *name, const struct names *names,
          int64_t deadline, struct leaf **out, struct fail *f)
{
    struct key key;
    struct leaf *l;
    enum why why = WHY_NONE;

    if (!key_make(ls, name, names, &key))
        return fail_own(f, SIDE_CLIENT, WHY_PROTO, "name a certificate");
    pthread_mutex_lock(&ls->lock);
    if ((l = leaf_find(ls, &key)) != NULL) {
        l->n_refs++;
        leaf_age_remove(ls, l);
        leaf_age_add(ls, l);
        leaf_wait(ls, l, deadline);
    } else {
        l = leaf_make(ls, &key);
    }
    if (l == NULL)
        why = fail_sys(f, SIDE_WEIR, "mint a certificate", ENOMEM);
    else if (l->state == LEAF_FAILED)
        why = fail_tls(f, SIDE_WEIR, "mint a certificate", l->rc);
    else if (l->state == LEAF_MINTING)
        why = fail_own(f, SIDE_WEIR, WHY_LATE, "mint a certificate");
    if (why == WHY_NONE)
        *out = l;
    else if (l != NULL)
        leaf_drop(l);
    pthread_mutex_unlock(&ls->lock);
    return why;
}

/* The handshake that needed it is over.  NULL: nothing.  Thread: any. */
void
leaf_give(struct leaves *ls, struct leaf *l)
{
    if (l == NULL)
        return;
    pthread_mutex_lock(&ls->lock);
    leaf_drop(l);
    pthread_mutex_unlock(&ls->lock);
}

/* What GnuTLS wants of a taken leaf; all of it stays ours. */
void
leaf_show(struct leaf *l, gnutls_pcert_st **chain, unsigned *n,
          gnutls_privkey_t *private)
{
    *chain = l->chain;
    *n = sizeof l->chain / sizeof *l->chain;
    *private = l->private;
}

/* How many are kept; never more than leaves_new() was told.  Thread: any. */
size_t
leaves_count(struct leaves *ls)
{
    size_t n;

    pthread_mutex_lock(&ls->lock);
    n = ls->n;
    pthread_mutex_unlock(&ls->lock);
    return n;
}

/* How many were minted since leaves_new().  Thread: any. */
uint64_t
leaves_minted(struct leaves *ls)
{
    uint64_t n;

    pthread_mutex_lock(&ls->lock);
    n = ls->n_minted;
    pthread_mutex_unlock(&ls->lock);
    return n;
}

/* The key all leaves share; 0 or a GnuTLS code. */
static int
leaves_make_key(struct leaves *ls)
{
    unsigned bits = GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1);
    int rc;

    if ((rc = gnutls_privkey_init(&ls->private)) < 0 ||
        (rc = gnutls_privkey_generate(ls->private, GNUTLS_PK_ECDSA, bits, 0)) <
            0 ||
        (rc = gnutls_pubkey_init(&ls->public)) < 0 ||
        (rc = gnutls_pubkey_import_privkey(ls->public, ls->private, 0, 0)) < 0)
        return rc;
    return gnutls_pubkey_get_key_id(ls->public, 0, ls->key_id, &ls->n_key_id);
}

/* What every leaf says of its CA; 0 or a GnuTLS code. */
static int
leaves_know_ca(struct leaves *ls)
{
    unsigned critical;
    int rc = gnutls_x509_crt_get_subject_key_id(ls->ca->crt, ls->ca_id,
                                                &ls->n_ca_id, &critical);

    if (rc < 0) { /* a CA that somebody made elsewhere may have none */
        ls->n_ca_id = sizeof ls->ca_id;
        rc =
            gnutls_x509_crt_get_key_id(ls->ca->crt, 0, ls->ca_id, &ls->n_ca_id);
    }
    if (rc == 0)
        rc = gnutls_pcert_import_x509(&ls->ca_pcert, ls->ca->crt, 0);
    return rc;
}

/*
 * leaves_new - an empty table, and a key for all that will be in it.
 *
 * ca    stays the caller's, and must live until leaves_free()
 * days  a leaf is valid for that long from its making, >= 1
 * max   keep that many; 0 counts as 1
 * err   on NULL: one line for a person
 */
struct leaves *
leaves_new(const struct ca *ca, int days, size_t max, char *err, size_t cap)
{
    struct leaves *ls = calloc(1, sizeof *ls);
    int rc = GNUTLS_E_MEMORY_ERROR;

    if (ls == NULL)
        goto out;
    pthread_mutex_init(&ls->lock, NULL);
    ls->ca = ca;
    ls->days = days;
    ls->max = max > 0 ? max : 1;
    ls->n_buckets = ls->max;
    ls->n_key_id = ls->n_ca_id = ID_MAX;
    if ((ls->buckets = calloc(ls->n_buckets, sizeof(struct leaf *))) == NULL ||
        (rc = gnutls_rnd(GNUTLS_RND_NONCE, &ls->seed, sizeof ls->seed)) < 0 ||
        (rc = leaves_make_key(ls)) < 0)
        goto out;
    rc = leaves_know_ca(ls);
out:
    if (rc < 0) {
        snprintf(err, cap, "cannot set up certificates: %s",
                 gnutls_strerror(rc));
        leaves_free(ls);
        ls = NULL;
    }
    return ls;
}

/* All that were taken have been given back. */
void
leaves_free(struct leaves *ls)
{
    if (ls == NULL)
        return;
    for (struct leaf *l = ls->newest, *older; l != NULL; l = older) {
        older = l->older;
        assert(l->n_refs == 0);
        leaf_free(l);
    }
    free(ls->buckets);
    gnutls_pcert_deinit(&ls->ca_pcert);
    if (ls->public != NULL)
        gnutls_pubkey_deinit(ls->public);
    if (ls->private != NULL)
        gnutls_privkey_deinit(ls->private);
    pthread_mutex_destroy(&ls->lock);
    free(ls);
}
