/*
 * tls.h - certificates and TLS sessions for the unit tests.
 *
 * Header only.  The certificates are made anew in each run (P-256: a tenth of
 * a millisecond each), so none of them can expire.
 */
#ifndef TLS_H
#define TLS_H

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include "t/net.h"

struct cert {
    gnutls_x509_crt_t crt;
    gnutls_x509_privkey_t key;
};

struct cert_conf {
    const char *const *names; /* DNS names, or addresses; ends with NULL */
    const struct cert *by;    /* the CA; NULL: itself */
    bool ca;
    int from_s, until_s; /* from now; both 0: from yesterday to tomorrow */
};

__attribute__((unused)) static void
cert_make(struct cert *c, const struct cert_conf *conf)
{
    static unsigned char serial;
    time_t now = time(NULL);
    bool usual = conf->from_s == 0 && conf->until_s == 0;
    const struct cert *by = conf->by != NULL ? conf->by : c;
    const char *const *name = conf->names;
    unsigned usage =
        conf->ca ? GNUTLS_KEY_KEY_CERT_SIGN : GNUTLS_KEY_DIGITAL_SIGNATURE;
    const char *first = name != NULL && *name != NULL ? *name : "weir test";

    serial++;
    NEED(gnutls_x509_privkey_init(&c->key) == 0);
    NEED(gnutls_x509_privkey_generate(
             c->key, GNUTLS_PK_EC,
             GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0) == 0);
    NEED(gnutls_x509_crt_init(&c->crt) == 0);
    NEED(gnutls_x509_crt_set_version(c->crt, 3) == 0);
    NEED(gnutls_x509_crt_set_serial(c->crt, &serial, 1) == 0);
    NEED(gnutls_x509_crt_set_dn_by_oid(c->crt, GNUTLS_OID_X520_COMMON_NAME, 0,
                                       first, (unsigned)strlen(first)) == 0);
    NEED(gnutls_x509_crt_set_activation_time(
             c->crt, now + (usual ? -86400 : conf->from_s)) == 0);
    NEED(gnutls_x509_crt_set_expiration_time(
             c->crt, now + (usual ? 86400 : conf->until_s)) == 0);
    NEED(gnutls_x509_crt_set_key(c->crt, c->key) == 0);
    NEED(gnutls_x509_crt_set_key_usage(c->crt, usage) == 0);
    NEED(gnutls_x509_crt_set_basic_constraints(c->crt, conf->ca, -1) == 0);
    for (; name != NULL && *name != NULL; name++) {
        unsigned char ip[16];
        size_t len = inet_pton(AF_INET, *name, ip) == 1    ? 4
                     : inet_pton(AF_INET6, *name, ip) == 1 ? 16
                                                           : 0;

        NEED(gnutls_x509_crt_set_subject_alt_name(
                 c->crt, len > 0 ? GNUTLS_SAN_IPADDRESS : GNUTLS_SAN_DNSNAME,
                 len > 0 ? (const void *)ip : *name,
                 (unsigned)(len > 0 ? len : strlen(*name)),
                 GNUTLS_FSAN_APPEND) == 0);
    }
    NEED(gnutls_x509_crt_sign2(c->crt, by->crt, by->key, GNUTLS_DIG_SHA256,
                               0) == 0);
}

__attribute__((unused)) static void
cert_clear(struct cert *c)
{
    gnutls_x509_crt_deinit(c->crt);
    gnutls_x509_privkey_deinit(c->key);
}

/* A certificate that a server shows.  The caller's. */
__attribute__((unused)) static gnutls_certificate_credentials_t
cert_shown(const struct cert *c)
{
    gnutls_certificate_credentials_t creds;
    gnutls_x509_crt_t chain[1] = {c->crt};

    NEED(gnutls_certificate_allocate_credentials(&creds) == 0);
    NEED(gnutls_certificate_set_x509_key(creds, chain, 1, c->key) >= 0);
    return creds;
}

/* As PEM into a file. */
__attribute__((unused)) static void
cert_write(const struct cert *c, const char *path)
{
    gnutls_datum_t pem;
    FILE *file = fopen(path, "w");

    NEED(file != NULL);
    NEED(gnutls_x509_crt_export2(c->crt, GNUTLS_X509_FMT_PEM, &pem) == 0);
    NEED(fwrite(pem.data, 1, pem.size, file) == pem.size);
    NEED(fclose(file) == 0);
    gnutls_free(pem.data);
}

/* side  GNUTLS_CLIENT or GNUTLS_SERVER, and further flags of gnutls_init()
 * prio  NULL: NORMAL */
__attribute__((unused)) static gnutls_session_t
tls_session(unsigned side, gnutls_certificate_credentials_t creds,
            const char *prio)
{
    gnutls_session_t session;

    NEED(gnutls_init(&session, side) == 0);
    NEED(gnutls_priority_set_direct(session, prio != NULL ? prio : "NORMAL",
                                    NULL) == 0);
    NEED(gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, creds) == 0);
    return session;
}

#endif
