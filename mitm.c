/*
 * mitm.c - who is intercepted, and TLS towards him.
 *
 * We speak TLS as if we were the origin: with a leaf (leaf.c) of our own CA
 * (ca.c) for the name the client asked for (hello.c).  What every such
 * handshake needs is made once, here.
 *
 * Follows  RFC 8446, RFC 5246 (TLS 1.3, 1.2), RFC 7301 (ALPN), RFC 5077.
 * Owns     the CA, the leaves, the key of the session tickets.
 * Threads  any, after mitm_new(); all of it is only read, or locked by leaf.c.
 * Blocks   mitm_accept(), for at most its deadline.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

#include "proxy.h"

/* We choose, not the client: AES-GCM is ten times as fast as ChaCha20 in
 * GnuTLS where the processor helps, and X25519 half the price of P-384. */
#define PRIORITY                                                            \
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-CIPHER-ALL:+AES-128-GCM:"  \
    "+AES-256-GCM:+CHACHA20-POLY1305:+AES-128-CBC:+AES-256-CBC:-GROUP-ALL:" \
    "+GROUP-X25519:+GROUP-SECP256R1:+GROUP-SECP384R1:+GROUP-SECP521R1:"     \
    "%SERVER_PRECEDENCE"

/* QUIC has TLS 1.3 alone, and no need to look like 1.2 (RFC 9001 section 8.4).
 */
#define PRIORITY_QUIC                                                      \
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:" \
    "+CHACHA20-POLY1305:-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1:"        \
    "+GROUP-SECP384R1:+GROUP-SECP521R1:%SERVER_PRECEDENCE:"                \
    "%DISABLE_TLS13_COMPAT_MODE"

struct mitm {
    struct ca *ca;
    struct leaves *leaves;
    gnutls_certificate_credentials_t cred; /* shared: leaf_of_session() picks */
    gnutls_priority_t priority;
    gnutls_certificate_credentials_t quic_cred; /* leaf_of_quic() picks */
    gnutls_priority_t quic_priority;
    gnutls_datum_t ticket_key; /* GnuTLS derives keys that change from it */
};

/* Called back by GnuTLS in the middle of a handshake.  Not called when a
 * session is resumed: nothing may be decided here.  *flags stays 0: the leaf
 * is ours, GnuTLS frees nothing. */
static int
leaf_of_session(gnutls_session_t session,
                const struct gnutls_cert_retr_st *info, gnutls_pcert_st **certs,
                unsigned *n_certs, gnutls_ocsp_data_st **ocsp, unsigned *n_ocsp,
                gnutls_privkey_t *key, unsigned *flags)
{
    struct leaf *leaf = gnutls_session_get_ptr(session);

    (void)info;
    (void)flags;
    if (leaf == NULL) /* a TLS 1.2 client that negotiates once more */
        return GNUTLS_E_NO_CERTIFICATE_FOUND;
    leaf_show(leaf, certs, n_certs, key);
    *ocsp = NULL;
    *n_ocsp = 0;
    return 0;
}

/* The same for QUIC, where the session points to something else. */
static int
leaf_of_quic(gnutls_session_t session, const struct gnutls_cert_retr_st *info,
             gnutls_pcert_st **certs, unsigned *n_certs,
             gnutls_ocsp_data_st **ocsp, unsigned *n_ocsp,
             gnutls_privkey_t *key, unsigned *flags)
{
    struct leaf *leaf = quic_leaf(session);

    (void)info;
    (void)flags;
    if (leaf == NULL)
        return GNUTLS_E_NO_CERTIFICATE_FOUND;
    leaf_show(leaf, certs, n_certs, key);
    *ocsp = NULL;
    *n_ocsp = 0;
    return 0;
}

/* 0 or a GnuTLS code. */
static int
mitm_set_up_tls(struct mitm *m)
{
    int rc;

    if ((rc = gnutls_certificate_allocate_credentials(&m->cred)) < 0 ||
        (rc = gnutls_priority_init(&m->priority, PRIORITY, NULL)) < 0 ||
        (rc = gnutls_certificate_allocate_credentials(&m->quic_cred)) < 0 ||
        (rc = gnutls_priority_init(&m->quic_priority, PRIORITY_QUIC, NULL)) <
            0 ||
        (rc = gnutls_session_ticket_key_generate(&m->ticket_key)) < 0)
        return rc;
    gnutls_certificate_set_retrieve_function3(m->cred, leaf_of_session);
    gnutls_certificate_set_retrieve_function3(m->quic_cred, leaf_of_quic);
    return 0;
}

/*
 * mitm_new - the CA (made at the first start), and what handshakes share.
 *
 * conf  only looked at: a new one does not change what is made here
 * err   on NULL: one line for a person
 *
 * Thread: the main one.  Blocks: on the disk (ca_new).
 */
struct mitm *
mitm_new(const struct config *conf, char *err, size_t cap)
{
    struct mitm *m = calloc(1, sizeof *m), *ready = NULL;
    size_t max = conf->leaf_cache > 0 ? (size_t)conf->leaf_cache : 0;
    int rc;

    if (m == NULL) {
        snprintf(err, cap, "out of memory");
        goto out;
    }
    if ((m->ca = ca_new(conf->dir, err, cap)) == NULL)
        goto out;
    m->leaves = leaves_new(m->ca, conf->leaf_days, max, err, cap);
    if (m->leaves == NULL)
        goto out;
    if ((rc = mitm_set_up_tls(m)) < 0) {
        snprintf(err, cap, "cannot set up TLS: %s", gnutls_strerror(rc));
        goto out;
    }
    ready = m;
    m = NULL;
out:
    mitm_free(m);
    return ready;
}

/* Every handshake is over; sessions may still be open. */
void
mitm_free(struct mitm *m)
{
    if (m == NULL)
        return;
    if (m->ticket_key.data != NULL) {
        gnutls_memset(m->ticket_key.data, 0, m->ticket_key.size);
        gnutls_free(m->ticket_key.data);
    }
    if (m->priority != NULL)
        gnutls_priority_deinit(m->priority);
    if (m->cred != NULL)
        gnutls_certificate_free_credentials(m->cred);
    if (m->quic_priority != NULL)
        gnutls_priority_deinit(m->quic_priority);
    if (m->quic_cred != NULL)
        gnutls_certificate_free_credentials(m->quic_cred);
    leaves_free(m->leaves);
    ca_free(m->ca);
    free(m);
}

/* Where ca.pem and its kin are. */
const char *
mitm_dir(const struct mitm *m)
{
    return m->ca->dir;
}

/* The CA's certificate, for clients to install. */
struct span
mitm_ca_pem(const struct mitm *m)
{
    return (struct span){(char *)m->ca->pem.data, m->ca->pem.size};
}

/* The same as DER. */
struct span
mitm_ca_der(const struct mitm *m)
{
    return (struct span){(char *)m->ca->der.data, m->ca->der.size};
}

/* Is TLS to host:port to be opened?  `except` wins over `only`. */
bool
mitm_wants(const struct config *conf, const char *host, uint16_t port)
{
    return conf->intercept &&
           (match_empty(conf->only) || match_host(conf->only, host, port)) &&
           !match_host(conf->except, host, port);
}

/* alpn: a set; h2 goes first, whatever the client prefers. */
static int
session_set_alpn(gnutls_session_t session, unsigned alpn)
{
    gnutls_datum_t names[2];
    unsigned n = 0;

    if ((alpn & ALPN_H2) != 0)
        names[n++] = (gnutls_datum_t){(unsigned char *)"h2", 2};
    if ((alpn & ALPN_HTTP1) != 0)
        names[n++] = (gnutls_datum_t){(unsigned char *)"http/1.1", 8};
    if (n == 0)
        return 0;
    return gnutls_alpn_set_protocols(session, names, n,
                                     GNUTLS_ALPN_SERVER_PRECEDENCE);
}

/* A server's session that will show leaf; 0 or a GnuTLS code. */
static int
session_new(const struct mitm *m, struct leaf *leaf, unsigned alpn,
            gnutls_session_t *out)
{
    gnutls_session_t session = NULL;
    int rc;

    if ((rc = gnutls_init(&session, GNUTLS_SERVER)) < 0 ||
        (rc = gnutls_priority_set(session, m->priority)) < 0 ||
        (rc = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE,
                                     m->cred)) < 0 ||
        (rc = gnutls_session_ticket_enable_server(session, &m->ticket_key)) <
            0 ||
        (rc = session_set_alpn(session, alpn)) < 0) {
        if (session != NULL)
            gnutls_deinit(session);
        return rc;
    }
    gnutls_session_set_ptr(session, leaf);
    *out = session;
    return 0;
}

/*
 * mitm_accept - TLS as a server, on top of what the end is.
 *
 * name      whom to be: a host name or an address
 * names     what the origin's certificate names besides; NULL: not known
 * alpn      set of ALPN_HTTP1, ALPN_H2 that may be chosen; 0: no ALPN
 * deadline  point in ms at which the handshake fails
 *
 * Returns WHY_NONE; WHY_ALERT: the client ended it, f->code is the alert (48,
 * unknown_ca, and 42, bad_certificate: it does not trust our CA); what
 * leaf_take() and end_handshake() answer.  All but WHY_NONE noted; after a
 * failure only end_clear() may follow.
 * Thread: the one that reads the end.  Blocks: to the deadline.
 */
enum why
mitm_accept(struct mitm *m, struct end *end, const char *name,
            const struct names *names, unsigned alpn, int64_t deadline,
            struct fail *f)
{
    struct leaf *leaf = NULL;
    gnutls_session_t session;
    enum why why = leaf_take(m->leaves, name, names, deadline, &leaf, f);
    int rc;

    if (why != WHY_NONE)
        return why;
    rc = session_new(m, leaf, alpn, &session);
    if (rc < 0) {
        why = fail_tls(f, SIDE_WEIR, "TLS handshake", rc);
        goto out;
    }
    why = end_handshake(end, session, deadline, f);
    if (why == WHY_NONE) /* it is the end's; the leaf is not */
        gnutls_session_set_ptr(session, NULL);
out:
    leaf_give(m->leaves, leaf);
    return why;
}

/*
 * mitm_quic - a server's session for QUIC.
 *
 * Which leaf it shows, quic_leaf() says when the ClientHello has come.  There
 * is no early data: what a client sends before its handshake is complete could
 * be sent again by anybody (RFC 8446 section 8).
 *
 * Returns 0 or a GnuTLS code.
 */
int
mitm_quic(struct mitm *m, gnutls_session_t *out)
{
    static const gnutls_datum_t h3 = {(unsigned char *)"h3", 2};
    gnutls_session_t session = NULL;
    int rc;

    if ((rc = gnutls_init(&session, GNUTLS_SERVER | GNUTLS_NONBLOCK |
                                        GNUTLS_NO_AUTO_SEND_TICKET)) < 0 ||
        (rc = gnutls_priority_set(session, m->quic_priority)) < 0 ||
        (rc = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE,
                                     m->quic_cred)) < 0 ||
        (rc = gnutls_session_ticket_enable_server(session, &m->ticket_key)) <
            0 ||
        (rc = gnutls_alpn_set_protocols(session, &h3, 1,
                                        GNUTLS_ALPN_MANDATORY)) < 0) {
        if (session != NULL)
            gnutls_deinit(session);
        return rc;
    }
    *out = session;
    return 0;
}

/* For leaf_take() and leaf_give(). */
struct leaves *
mitm_leaves(struct mitm *m)
{
    return m->leaves;
}

/*
 * mitm_secret - bytes that only we know and that stay as long as the CA does.
 *
 * label  for what; others give other bytes
 *
 * Returns false: out of memory.  Source: HMAC as a PRF, keyed by the CA's key.
 */
bool
mitm_secret(const struct mitm *m, const char *label, uint8_t out[32])
{
    gnutls_x509_privkey_t key = NULL;
    gnutls_datum_t der = {NULL, 0};
    bool good = false;

    if (gnutls_privkey_export_x509(m->ca->key, &key) == 0 &&
        gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_DER, &der) == 0)
        good = gnutls_hmac_fast(GNUTLS_MAC_SHA256, der.data, der.size, label,
                                strlen(label), out) == 0;
    if (der.data != NULL)
        gnutls_memset(der.data, 0, der.size);
    gnutls_free(der.data);
    gnutls_x509_privkey_deinit(key);
    return good;
}
