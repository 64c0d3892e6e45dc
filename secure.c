/*
 * secure.c - TLS to origins, and what is remembered of them.
 *
 * Every certificate is verified against the system's roots and [upstream]
 * upstream_ca, unless its host is listed as insecure.  For a while we
 * remember of each origin which ALPN protocol it chose, which names its
 * certificate has (mitm.c copies them into the leaf), and a ticket to resume
 * its session with, so that the next client need not wait for a full
 * handshake.
 *
 * Follows  RFC 8446, RFC 6066 section 3 (SNI), RFC 7301 (ALPN), RFC 6125.
 * Owns     the trust store and the memory, at most MEMORY_MAX origins.
 * Threads  any worker; one lock around the memory, never held while waiting.
 * Blocks   in secure_connect() for connect_s.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <gnutls/x509.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proxy.h"

enum {
    MEMORY_MAX = 512,        /* origins remembered; the oldest is forgotten */
    MEMORY_BUCKETS = 256,    /* a power of two */
    KNOWN_MS = 600 * 1000,   /* how long ALPN and names are believed */
    TICKET_MS = 3600 * 1000, /* and a ticket: origins end it earlier anyway */
    STATUS_SELF_SIGNED = 1 << 30, /* beside GnuTLS's own bits */
};

/* A ticket is for the transport that it came by: what else was agreed on with
 * it, ALPN above all, is another (RFC 9001 section 4.6). */
enum over { OVER_TCP, OVER_QUIC, OVERS };

struct ticket { /* data NULL: none */
    gnutls_datum_t data;
    int64_t at; /* ms */
};

struct memory { /* of one origin */
    struct origin origin;
    bool insecure; /* learned without verification */
    struct known known;
    int64_t known_at; /* ms; 0: nothing known */
    struct ticket tickets[OVERS];
    struct memory *next;          /* in its bucket */
    struct memory *newer, *older; /* by last use */
};

struct trust { /* in whom we trust; the system's roots come when first needed */
    gnutls_certificate_credentials_t store;
    char *file;           /* with CAs beside them; NULL: none */
    struct stat file_was; /* when it was read */
    bool has_roots;       /* needs the lock of struct secure */
    struct trust *older;  /* among those replaced */
};

struct secure {
    gnutls_priority_t priority, quic_priority;
    pthread_mutex_t lock;
    /* needs lock */
    struct trust *trust;    /* for origins */
    struct trust *parents;  /* for https:// parents; NULL: the same */
    struct trust *replaced; /* sessions may still have them */
    struct memory *buckets[MEMORY_BUCKETS], *newest, *oldest;
    size_t n;
};

/* ---- certificates in words ----------------------------------------------- */

/* Why a certificate was refused: gnutls_certificate_status_t bits, the most
 * telling one first.  A literal, never NULL. */
const char *
cert_text(int status)
{
    static const struct {
        int bit;
        const char *text;
    } reasons[] = {
        {GNUTLS_CERT_REVOKED, "the certificate is revoked"},
        {STATUS_SELF_SIGNED, "the certificate is self-signed"},
        {GNUTLS_CERT_SIGNER_NOT_FOUND,
         "the certificate was issued by an unknown CA"},
        {GNUTLS_CERT_SIGNER_NOT_CA, "the certificate's issuer is not a CA"},
        {GNUTLS_CERT_EXPIRED, "the certificate has expired"},
        {GNUTLS_CERT_NOT_ACTIVATED, "the certificate is not valid yet"},
        {GNUTLS_CERT_UNEXPECTED_OWNER,
         "the certificate is for another host name"},
        {GNUTLS_CERT_INSECURE_ALGORITHM,
         "the certificate uses an insecure algorithm"},
        {GNUTLS_CERT_SIGNATURE_FAILURE, "the certificate's signature is wrong"},
        {GNUTLS_CERT_PURPOSE_MISMATCH, "the certificate is not for a server"},
    };

    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        if (status & reasons[i].bit)
            return reasons[i].text;
    return "the certificate is not trusted";
}

/* The first certificate that the peer sent; NULL: none.  The caller's. */
static gnutls_x509_crt_t
peer_certificate(gnutls_session_t session)
{
    unsigned n = 0;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &n);
    gnutls_x509_crt_t crt;

    if (chain == NULL || n == 0 || gnutls_x509_crt_init(&crt) < 0)
        return NULL;
    if (gnutls_x509_crt_import(crt, &chain[0], GNUTLS_X509_FMT_DER) < 0) {
        gnutls_x509_crt_deinit(crt);
        return NULL;
    }
    return crt;
}

static void
names_add(struct names *names, const char *at, size_t len)
{
    if (names->len + len + 1 > sizeof names->at || memchr(at, '\0', len))
        return; /* over the bound, or not a name */
    memcpy(names->at + names->len, at, len);
    names->len += len;
    names->at[names->len++] = '\0';
}

/* DNS names and addresses of a certificate (RFC 5280 section 4.2.1.6). */
static void
names_of(gnutls_x509_crt_t crt, struct names *names)
{
    names->len = 0;
    for (unsigned i = 0;; i++) {
        char at[HOST_MAX + 1];
        size_t len = sizeof at;
        int type = gnutls_x509_crt_get_subject_alt_name(crt, i, at, &len, NULL);

        if (type == GNUTLS_E_SHORT_MEMORY_BUFFER)
            continue; /* longer than any DNS name */
        if (type < 0)
            return;
        if (type == GNUTLS_SAN_DNSNAME) {
            names_add(names, at, len);
        } else if (type == GNUTLS_SAN_IPADDRESS && (len == 4 || len == 16)) {
            char text[INET6_ADDRSTRLEN];

            inet_ntop(len == 4 ? AF_INET : AF_INET6, at, text, sizeof text);
            names_add(names, text, strlen(text));
        }
    }
}

/* Is the chain good for this host?  WHY_CERT says why not. */
static enum why
verify(gnutls_session_t session, const char *host, struct fail *f)
{
    unsigned status = 0;
    gnutls_x509_crt_t crt;
    int rc = gnutls_certificate_verify_peers3(session, host, &status);

    if (rc < 0)
        return fail_tls(f, SIDE_ORIGIN, "verify certificate", rc);
    if (status == 0)
        return WHY_NONE;
    if ((crt = peer_certificate(session)) != NULL) {
        if ((status & GNUTLS_CERT_SIGNER_NOT_FOUND) &&
            gnutls_x509_crt_check_issuer(crt, crt))
            status |= STATUS_SELF_SIGNED;
        gnutls_x509_crt_deinit(crt);
    }
    return fail_note(f, SIDE_ORIGIN, WHY_CERT, "verify certificate",
                     (int)status, cert_text);
}

/* ---- the memory ---------------------------------------------------------- */

static size_t
bucket_of(const struct origin *o)
{
    uint32_t h = 2166136261u; /* FNV-1a */

    for (const char *p = o->host; *p != '\0'; p++)
        h = (h ^ (unsigned char)*p) * 16777619u;
    for (const char *p = o->sni; *p != '\0'; p++)
        h = (h ^ (unsigned char)*p) * 16777619u;
    return (h ^ o->port) & (MEMORY_BUCKETS - 1);
}

/* Needs s->lock. */
static void
memory_unlink(struct secure *s, struct memory *m)
{
    *(m->newer != NULL ? &m->newer->older : &s->newest) = m->older;
    *(m->older != NULL ? &m->older->newer : &s->oldest) = m->newer;
    m->newer = m->older = NULL;
}

/* Needs s->lock. */
static void
memory_link(struct secure *s, struct memory *m)
{
    m->older = s->newest;
    *(s->newest != NULL ? &s->newest->newer : &s->oldest) = m;
    s->newest = m;
}

/* Needs s->lock. */
static void
memory_forget(struct secure *s, struct memory *m)
{
    struct memory **at = &s->buckets[bucket_of(&m->origin)];

    while (*at != m)
        at = &(*at)->next;
    *at = m->next;
    memory_unlink(s, m);
    s->n--;
    for (int over = 0; over < OVERS; over++)
        gnutls_free(m->tickets[over].data.data);
    free(m);
}

/* What is remembered of an origin, moved to the front; NULL: nothing.
 * Needs s->lock. */
static struct memory *
memory_find(struct secure *s, const struct origin *o)
{
    struct memory *m = s->buckets[bucket_of(o)];

    while (m != NULL && !origin_same(&m->origin, o))
        m = m->next;
    if (m != NULL && m != s->newest) {
        memory_unlink(s, m);
        memory_link(s, m);
    }
    return m;
}

/* The same, made if there is none; NULL: out of memory.  Needs s->lock. */
static struct memory *
memory_make(struct secure *s, const struct origin *o)
{
    struct memory *m = memory_find(s, o);

    if (m != NULL)
        return m;
    if ((m = calloc(1, sizeof *m)) == NULL)
        return NULL;
    if (s->n == MEMORY_MAX)
        memory_forget(s, s->oldest);
    m->origin = *o;
    m->next = s->buckets[bucket_of(o)];
    s->buckets[bucket_of(o)] = m;
    memory_link(s, m);
    s->n++;
    return m;
}

static unsigned
chosen_alpn(gnutls_session_t session)
{
    gnutls_datum_t name;

    if (gnutls_alpn_get_selected_protocol(session, &name) != 0)
        return 0;
    if (name.size == 2 && memcmp(name.data, "h2", 2) == 0)
        return ALPN_H2;
    if (name.size == 8 && memcmp(name.data, "http/1.1", 8) == 0)
        return ALPN_HTTP1;
    return ALPN_OTHER;
}

/* After a handshake: remember what the origin is like.  By QUIC it does not
 * say what it chooses over TCP: HTTP/2, most likely. */
static void
learn(struct secure *s, const struct upstream *up, gnutls_session_t session,
      enum over over)
{
    gnutls_x509_crt_t crt = peer_certificate(session);
    struct names names = {0};
    struct memory *m;

    if (crt != NULL) {
        names_of(crt, &names);
        gnutls_x509_crt_deinit(crt);
    }
    pthread_mutex_lock(&s->lock);
    if ((m = memory_make(s, &up->origin)) != NULL) {
        if (over == OVER_TCP)
            m->known.alpn = chosen_alpn(session);
        else if (m->known_at == 0)
            m->known.alpn = ALPN_H2;
        m->known.names = names;
        m->known_at = now_ms();
        m->insecure = up->insecure;
    }
    pthread_mutex_unlock(&s->lock);
}

/* Is it remembered, and not for too long?  NULL: no.  Needs s->lock. */
static struct memory *
memory_fresh(struct secure *s, const struct origin *o)
{
    struct memory *m = memory_find(s, o);

    return m != NULL && m->known_at != 0 && now_ms() - m->known_at < KNOWN_MS
               ? m
               : NULL;
}

/*
 * secure_known - what is remembered of an origin's TLS.
 *
 * Returns false if nothing is, or if it is too old; *out is then untouched.
 * Thread: any.
 */
bool
secure_known(struct secure *s, const struct origin *o, struct known *out)
{
    struct memory *m;

    pthread_mutex_lock(&s->lock);
    if ((m = memory_fresh(s, o)) != NULL)
        *out = m->known;
    pthread_mutex_unlock(&s->lock);
    return m != NULL;
}

/* Only its alpn; -1: nothing is known.  Thread: any. */
int
secure_alpn(struct secure *s, const struct origin *o)
{
    struct memory *m;
    int alpn;

    pthread_mutex_lock(&s->lock);
    m = memory_fresh(s, o);
    alpn = m != NULL ? (int)m->known.alpn : -1;
    pthread_mutex_unlock(&s->lock);
    return alpn;
}

/* An origin that failed is not what it was: forget it. */
static void
unlearn(struct secure *s, const struct origin *o)
{
    struct memory *m;

    pthread_mutex_lock(&s->lock);
    if ((m = memory_find(s, o)) != NULL)
        memory_forget(s, m);
    pthread_mutex_unlock(&s->lock);
}

/* Keep what a later session can resume with. */
static bool
save(struct secure *s, const struct upstream *up, gnutls_session_t session,
     enum over over)
{
    gnutls_datum_t data;
    struct memory *m;

    if (gnutls_protocol_get_version(session) == GNUTLS_TLS1_3 &&
        !(gnutls_session_get_flags(session) & GNUTLS_SFLAGS_SESSION_TICKET))
        return false;
    if (gnutls_session_get_data2(session, &data) < 0)
        return false; /* a full handshake next time */
    pthread_mutex_lock(&s->lock);
    if ((m = memory_find(s, &up->origin)) != NULL &&
        m->insecure == up->insecure) {
        gnutls_free(m->tickets[over].data.data);
        m->tickets[over] = (struct ticket){data, now_ms()};
        data.data = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    gnutls_free(data.data);
    return true;
}

/*
 * secure_save_ticket - keep what a later connection can resume with.
 *
 * TLS 1.3 sends tickets after the handshake (RFC 8446 section 4.6.1), so this
 * is called when a first answer has been read.  Once per connection.
 */
void
secure_save_ticket(struct secure *s, struct upstream *up)
{
    gnutls_session_t session = end_session(&up->end);

    if (up->origin.tls && session != NULL && !up->ticket_saved)
        up->ticket_saved = save(s, up, session, OVER_TCP);
}

/* The same of a QUIC connection that ends.  NULL: nothing. */
void
secure_quic_save(struct secure *s, struct upstream *up,
                 gnutls_session_t session)
{
    if (session != NULL)
        (void)save(s, up, session, OVER_QUIC);
}

/* Give a fresh session the ticket of its origin.  A session that was never
 * verified does not resume into one that has to be. */
static void
use_ticket(struct secure *s, gnutls_session_t session,
           const struct upstream *up, enum over over)
{
    const struct ticket *t;
    struct memory *m;

    pthread_mutex_lock(&s->lock);
    m = memory_find(s, &up->origin);
    t = m != NULL ? &m->tickets[over] : NULL;
    if (t != NULL && t->data.data != NULL && m->insecure == up->insecure &&
        now_ms() - t->at < TICKET_MS)
        (void)gnutls_session_set_data(session, t->data.data, t->data.size);
    pthread_mutex_unlock(&s->lock);
}

/* ---- connections --------------------------------------------------------- */

/* By what name an origin's certificate is to be verified. */
static const char *
name_of(const struct origin *o)
{
    return o->sni[0] != '\0' ? o->sni : o->host;
}

/* alpn 0: nothing, or what QUIC must have. */
static int
offer_alpn(gnutls_session_t session, unsigned alpn, enum over over)
{
    static const gnutls_datum_t h3 = {(unsigned char *)"h3", 2};
    gnutls_datum_t offer[2];
    unsigned n = 0;

    if (over == OVER_QUIC)
        return gnutls_alpn_set_protocols(session, &h3, 1,
                                         GNUTLS_ALPN_MANDATORY);
    if (alpn & ALPN_H2)
        offer[n++] = (gnutls_datum_t){(unsigned char *)"h2", 2};
    if (alpn & ALPN_HTTP1)
        offer[n++] = (gnutls_datum_t){(unsigned char *)"http/1.1", 8};
    return n == 0 ? 0 : gnutls_alpn_set_protocols(session, offer, n, 0);
}

/* The store for origins or for parents, with the system's roots in it.  Nobody
 * uses it before they are: a session takes it only from here. */
static gnutls_certificate_credentials_t
trust_store(struct secure *s, bool for_parent)
{
    struct trust *t;
    int rc = 0;

    pthread_mutex_lock(&s->lock);
    t = for_parent && s->parents != NULL ? s->parents : s->trust;
    if (!t->has_roots)
        rc = gnutls_certificate_set_x509_system_trust(t->store);
    t->has_roots = true;
    pthread_mutex_unlock(&s->lock);
    if (rc < 0)
        log_say(LEVEL_WARN, 0, "trust", "the system's roots: %s",
                gnutls_strerror(rc));
    return t->store;
}

/* A client session, ready for its handshake; NULL: noted. */
static gnutls_session_t
session_new(struct secure *s, gnutls_certificate_credentials_t trust,
            const char *name, unsigned alpn, enum over over, struct fail *f)
{
    gnutls_priority_t priority =
        over == OVER_QUIC ? s->quic_priority : s->priority;
    gnutls_session_t session;
    int rc = gnutls_init(&session, GNUTLS_CLIENT);

    if (rc < 0) {
        fail_tls(f, SIDE_WEIR, "TLS session", rc);
        return NULL;
    }
    if ((rc = gnutls_priority_set(session, priority)) < 0 ||
        (rc = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, trust)) <
            0 ||
        (rc = offer_alpn(session, alpn, over)) < 0 ||
        (!host_is_address(name) &&
         (rc = gnutls_server_name_set(session, GNUTLS_NAME_DNS, name,
                                      strlen(name))) < 0)) {
        fail_tls(f, SIDE_WEIR, "TLS session", rc);
        gnutls_deinit(session);
        return NULL;
    }
    return session;
}

/*
 * secure_connect - TLS on a bare way to an https origin.
 *
 * up    its end is connected and plain; afterwards TLS, or only fit to be
 *       closed.  took.tls_us and insecure are set
 * alpn  what to offer, a set of enum alpn; 0: nothing
 *
 * Returns WHY_NONE; WHY_CERT (text says what is wrong with the certificate);
 * what end_handshake() returns.  Thread: any.  Blocks: connect_s.
 */
enum why
secure_connect(struct secure *s, const struct client *c, struct upstream *up,
               unsigned alpn, struct fail *f)
{
    const struct origin *o = &up->origin;
    const char *name = name_of(o);
    int64_t from = now_us();
    gnutls_session_t session;
    enum why why;

    assert(o->tls && up->http == NULL); /* TLS to a parent may be below */
    up->insecure = match_host(c->conf->insecure, name, o->port);
    session = session_new(s, trust_store(s, false), name, alpn, OVER_TCP, f);
    if (session == NULL)
        return f->why;
    use_ticket(s, session, up, OVER_TCP);
    why = end_handshake(&up->end, session,
                        now_ms() + c->conf->connect_s * 1000LL, f);
    if (why == WHY_NONE && !up->insecure &&
        (why = verify(session, name, f)) != WHY_NONE)
        end_alert(&up->end, GNUTLS_A_BAD_CERTIFICATE);
    up->took.tls_us = now_us() - from;
    if (why == WHY_NONE)
        learn(s, up, session, OVER_TCP);
    else
        unlearn(s, o);
    return why;
}

/*
 * secure_parent - TLS to an https:// parent, verified against parent_ca.
 *
 * end  connected and plain
 *
 * Nothing is remembered of it: its connections are kept and used again.
 * Returns as secure_connect() does.  Blocks: connect_s.
 */
enum why
secure_parent(struct secure *s, const struct client *c, struct end *end,
              const struct parent *p, struct fail *f)
{
    gnutls_session_t session = session_new(s, trust_store(s, true), p->host,
                                           ALPN_HTTP1 | ALPN_H2, OVER_TCP, f);
    enum why why;

    if (session == NULL)
        return f->why;
    why =
        end_handshake(end, session, now_ms() + c->conf->connect_s * 1000LL, f);
    if (why == WHY_NONE && !match_host(c->conf->insecure, p->host, p->port) &&
        (why = verify(session, p->host, f)) != WHY_NONE)
        end_alert(end, GNUTLS_A_BAD_CERTIFICATE);
    return why;
}

/* ---- QUIC ---------------------------------------------------------------- */

/*
 * secure_quic - a client's session for QUIC, with a ticket if there is one.
 *
 * up   only origin is looked at; insecure is set
 * out  the caller's on WHY_NONE; quic.c adds what only QUIC knows
 */
enum why
secure_quic(struct secure *s, const struct client *c, struct upstream *up,
            gnutls_session_t *out, struct fail *f)
{
    const char *name = name_of(&up->origin);

    up->insecure = match_host(c->conf->insecure, name, up->origin.port);
    *out = session_new(s, trust_store(s, false), name, 0, OVER_QUIC, f);
    if (*out == NULL)
        return f->why;
    use_ticket(s, *out, up, OVER_QUIC);
    return WHY_NONE;
}

/*
 * secure_quic_verify - is the peer of a handshake that is complete the origin?
 *
 * Returns WHY_NONE, and the origin is remembered; WHY_CERT, WHY_TLS.
 */
enum why
secure_quic_verify(struct secure *s, struct upstream *up,
                   gnutls_session_t session, struct fail *f)
{
    if (!up->insecure && verify(session, name_of(&up->origin), f) != WHY_NONE)
        return f->why;
    learn(s, up, session, OVER_QUIC);
    return WHY_NONE;
}

/* ---- start and end ------------------------------------------------------- */

static void
trust_free(struct trust *t)
{
    if (t == NULL)
        return;
    if (t->store != NULL)
        gnutls_certificate_free_credentials(t->store);
    free(t->file);
    free(t);
}

/* With the CAs of a file if there is one.  NULL: err. */
static struct trust *
trust_new(const char *key, const char *file, char *err, size_t cap)
{
    struct trust *t = calloc(1, sizeof *t);
    int rc = t == NULL ? GNUTLS_E_MEMORY_ERROR
                       : gnutls_certificate_allocate_credentials(&t->store);

    if (rc == 0 && file != NULL && (t->file = strdup(file)) == NULL)
        rc = GNUTLS_E_MEMORY_ERROR;
    if (rc < 0) {
        snprintf(err, cap, "TLS: %s", gnutls_strerror(rc));
        trust_free(t);
        return NULL;
    }
    if (file == NULL)
        return t;
    /* Before it is read: what changes meanwhile is a change. */
    if (stat(file, &t->file_was) == 0)
        rc = gnutls_certificate_set_x509_trust_file(t->store, file,
                                                    GNUTLS_X509_FMT_PEM);
    else
        rc = GNUTLS_E_FILE_ERROR;
    if (rc > 0)
        return t;
    snprintf(err, cap, "%s %s: %s", key, file,
             rc == 0 ? "no certificate in it" : gnutls_strerror(rc));
    trust_free(t);
    return NULL;
}

/* Is it what trust_new() would make of this file?  NULL: there is none yet. */
static bool
trust_is(const struct trust *t, const char *file)
{
    struct stat now;

    if (t == NULL || (file == NULL) != (t->file == NULL))
        return false;
    return file == NULL ||
           (strcmp(file, t->file) == 0 && stat(file, &now) == 0 &&
            now.st_ino == t->file_was.st_ino &&
            now.st_size == t->file_was.st_size &&
            now.st_ctim.tv_sec == t->file_was.st_ctim.tv_sec &&
            now.st_ctim.tv_nsec == t->file_was.st_ctim.tv_nsec);
}

/* GnuTLS keeps a pointer to the store in each session, so it stays; a change of
 * CAs is rare.  Needs s->lock. */
static void
trust_replace(struct secure *s, struct trust **at, struct trust *next)
{
    if (*at != NULL) {
        (*at)->older = s->replaced;
        s->replaced = *at;
    }
    *at = next;
}

/*
 * secure_reload - trust whom the settings name now.
 *
 * conf  upstream_ca and parent_ca are read anew if they, or what is in them,
 *       have changed.  Parents need a trust of their own only if they have a CA
 *       of their own, or origins have
 * err   says what is wrong when false is returned; then nothing has changed
 *
 * Connections that are open stay.  Thread: main.  Blocks: for the files.
 */
bool
secure_reload(struct secure *s, const struct config *conf, char *err,
              size_t cap)
{
    bool apart = conf->parent_ca != NULL || conf->upstream_ca != NULL;
    bool same = trust_is(s->trust, conf->upstream_ca);
    bool same_parents =
        apart ? trust_is(s->parents, conf->parent_ca) : s->parents == NULL;
    struct trust *next = NULL, *parents = NULL;

    if (!same &&
        (next = trust_new("upstream_ca", conf->upstream_ca, err, cap)) == NULL)
        return false;
    if (!same_parents && apart &&
        (parents = trust_new("parent_ca", conf->parent_ca, err, cap)) == NULL) {
        trust_free(next);
        return false;
    }
    pthread_mutex_lock(&s->lock);
    if (!same)
        trust_replace(s, &s->trust, next);
    if (!same_parents)
        trust_replace(s, &s->parents, parents);
    pthread_mutex_unlock(&s->lock);
    return true;
}

/*
 * secure_new - begin the trust store.
 *
 * err  says what is wrong when NULL is returned
 *
 * The system's roots, some 10 ms and 4 MiB, come with the first TLS.
 */
struct secure *
secure_new(const struct config *conf, char *err, size_t cap)
{
    struct secure *s = calloc(1, sizeof *s);
    int rc;

    if (s == NULL) {
        snprintf(err, cap, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    rc = gnutls_priority_init(
        &s->priority, "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2", NULL);
    if (rc == 0)
        rc = gnutls_priority_init(
            &s->quic_priority,
            "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:"
            "+AES-256-GCM:+CHACHA20-POLY1305:%DISABLE_TLS13_COMPAT_MODE",
            NULL);
    if (rc < 0)
        snprintf(err, cap, "TLS: %s", gnutls_strerror(rc));
    if (rc < 0 || !secure_reload(s, conf, err, cap)) {
        secure_free(s);
        return NULL;
    }
    return s;
}

void
secure_free(struct secure *s)
{
    if (s == NULL)
        return;
    while (s->oldest != NULL)
        memory_forget(s, s->oldest);
    if (s->priority != NULL)
        gnutls_priority_deinit(s->priority);
    if (s->quic_priority != NULL)
        gnutls_priority_deinit(s->quic_priority);
    trust_replace(s, &s->parents, NULL);
    trust_replace(s, &s->trust, NULL);
    while (s->replaced != NULL) {
        struct trust *t = s->replaced;

        s->replaced = t->older;
        trust_free(t);
    }
    pthread_mutex_destroy(&s->lock);
    free(s);
}
