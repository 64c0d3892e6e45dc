/*
 * t/leaf.c - leaves: what they say, who verifies them, how they are kept.
 *
 * The clock is ours (time() below), so that a leaf can grow old in a test.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include <gnutls/abstract.h>
#include <gnutls/x509-ext.h>
#include <gnutls/x509.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/tap.h"

enum { DAY = 24 * 60 * 60, DAYS = 45 };

#define NAMES(text) names_make((text), sizeof(text))

static struct ca *ca;
static char err[512];
static atomic_llong skew; /* seconds */

/* In place of libc's, for this program and for GnuTLS. */
time_t
time(time_t *out)
{
    struct timespec ts;
    time_t now;

    clock_gettime(CLOCK_REALTIME, &ts);
    now = ts.tv_sec + (time_t)atomic_load(&skew);
    if (out != NULL)
        *out = now;
    return now;
}

/* ---- helpers ------------------------------------------------------------- */

/* Valid until the next one. */
static const struct names *
names_make(const char *at, size_t len)
{
    static struct names names;

    names.len = len;
    memcpy(names.at, at, len);
    return &names;
}

static struct leaf *
take(struct leaves *ls, const char *name, const struct names *names)
{
    struct fail f = {0};
    struct leaf *l = NULL;
    char text[256];

    if (leaf_take(ls, name, names, now_ms() + 10000, &l, &f) != WHY_NONE) {
        fail_text(&f, text, sizeof text);
        diag("  %s: %s", name, text);
    }
    return l;
}

static struct leaves *
leaves_make(size_t max)
{
    struct leaves *ls = leaves_new(ca, DAYS, max, err, sizeof err);

    if (ls == NULL)
        diag("  %s", err);
    return ls;
}

/* The certificate of a taken leaf; the caller deinits. */
static gnutls_x509_crt_t
crt_of(struct leaf *l)
{
    gnutls_pcert_st *chain;
    gnutls_privkey_t key;
    gnutls_x509_crt_t crt;
    unsigned n;

    leaf_show(l, &chain, &n, &key);
    gnutls_x509_crt_init(&crt);
    if (gnutls_x509_crt_import(crt, &chain[0].cert, GNUTLS_X509_FMT_DER) != 0)
        diag("  the leaf is no certificate");
    return crt;
}

static gnutls_x509_crt_t
mint(struct leaves *ls, const char *name, const struct names *names)
{
    struct leaf *l = take(ls, name, names);
    gnutls_x509_crt_t crt = crt_of(l);

    leaf_give(ls, l);
    return crt;
}

/* Does it verify against our CA as a server's certificate for host? */
static bool
verifies(gnutls_x509_crt_t crt, const char *host)
{
    gnutls_x509_trust_list_t list;
    gnutls_typed_vdata_st data[] = {
        {GNUTLS_DT_DNS_HOSTNAME, (void *)host, 0},
        {GNUTLS_DT_KEY_PURPOSE_OID, (void *)GNUTLS_KP_TLS_WWW_SERVER, 0},
    };
    unsigned status = 1;
    int rc;

    if (host_is_address(host))
        data[0].type = GNUTLS_DT_IP_ADDRESS;
    if (data[0].type == GNUTLS_DT_IP_ADDRESS) {
        static unsigned char bytes[16];
        int v6 = strchr(host, ':') != NULL;

        inet_pton(v6 ? AF_INET6 : AF_INET, host, bytes);
        data[0].data = bytes;
        data[0].size = v6 ? 16 : 4;
    }
    gnutls_x509_trust_list_init(&list, 0);
    rc = gnutls_x509_trust_list_add_cas(list, &ca->crt, 1, 0) == 1
             ? gnutls_x509_trust_list_verify_crt2(list, &crt, 1, data, 2, 0,
                                                  &status, NULL)
             : -1;
    gnutls_x509_trust_list_deinit(list, 0);
    return rc == 0 && status == 0;
}

/* "DNS:a IP:1.2.3.4 ", in order. */
static void
sans_text(gnutls_x509_crt_t crt, char *out, size_t cap)
{
    size_t len = 0;

    out[0] = '\0';
    for (unsigned i = 0; len < cap; i++) {
        char name[512];
        size_t n = sizeof name - 1;
        int type = gnutls_x509_crt_get_subject_alt_name(crt, i, name, &n, NULL);

        if (type < 0)
            return;
        name[n] = '\0';
        if (type == GNUTLS_SAN_IPADDRESS) {
            char bytes[16];

            memcpy(bytes, name, n);
            inet_ntop(n == 4 ? AF_INET : AF_INET6, bytes, name, sizeof name);
        }
        len += (size_t)snprintf(out + len, cap - len, "%s:%s ",
                                type == GNUTLS_SAN_DNSNAME     ? "DNS"
                                : type == GNUTLS_SAN_IPADDRESS ? "IP"
                                                               : "?",
                                name);
    }
}

static void
sans_are(struct leaves *ls, const char *name, const struct names *names,
         const char *want)
{
    char text[4096];
    gnutls_x509_crt_t crt = mint(ls, name, names);

    sans_text(crt, text, sizeof text);
    is_str(text, want, "names of %s", name);
    gnutls_x509_crt_deinit(crt);
}

/* ---- what a leaf says ---------------------------------------------------- */

static void
test_contents(struct leaves *ls)
{
    gnutls_x509_crt_t crt = mint(ls, "www.example.com", NULL);
    unsigned char serial[64], id[64], ca_id[64];
    size_t n = sizeof serial, n_id = sizeof id, n_ca = sizeof ca_id;
    unsigned usage, critical, is_ca = 1;
    char text[128];
    size_t n_text = sizeof text;
    time_t now = time(NULL);

    is_int(gnutls_x509_crt_get_version(crt), 3, "version 3");
    ok(gnutls_x509_crt_get_serial(crt, serial, &n) == 0 && n == 16 &&
           (serial[0] & 0x80) == 0,
       "a positive serial number of 16 bytes");
    is_int(gnutls_x509_crt_get_signature_algorithm(crt),
           GNUTLS_SIGN_ECDSA_SHA256, "signed with ECDSA and SHA-256");
    ok(llabs(now - 2 * DAY - gnutls_x509_crt_get_activation_time(crt)) < 60,
       "valid since two days ago");
    ok(llabs(now + DAYS * DAY - gnutls_x509_crt_get_expiration_time(crt)) < 60,
       "valid for %d days", DAYS);
    ok(gnutls_x509_crt_get_basic_constraints(crt, &critical, &is_ca, NULL) ==
               0 &&
           is_ca == 0 && critical,
       "no CA, critically so");
    ok(gnutls_x509_crt_get_key_usage(crt, &usage, &critical) == 0 &&
           usage == GNUTLS_KEY_DIGITAL_SIGNATURE && critical,
       "its key makes signatures and nothing else");
    ok(gnutls_x509_crt_get_key_purpose_oid(crt, 0, text, &n_text, NULL) == 0 &&
           strcmp(text, GNUTLS_KP_TLS_WWW_SERVER) == 0,
       "for servers");
    n_text = sizeof text;
    is_int(gnutls_x509_crt_get_key_purpose_oid(crt, 1, text, &n_text, NULL),
           GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE, "and for nobody else");
    ok(gnutls_x509_crt_get_authority_key_id(crt, id, &n_id, NULL) == 0 &&
           gnutls_x509_crt_get_subject_key_id(ca->crt, ca_id, &n_ca, NULL) ==
               0 &&
           n_id == n_ca && memcmp(id, ca_id, n_ca) == 0,
       "it names its CA's key");
    n_id = sizeof id;
    n_ca = sizeof ca_id;
    ok(gnutls_x509_crt_get_subject_key_id(crt, id, &n_id, NULL) == 0 &&
           gnutls_x509_crt_get_key_id(crt, 0, ca_id, &n_ca) == 0 &&
           n_id == n_ca && memcmp(id, ca_id, n_id) == 0,
       "and its own");
    n_text = sizeof text;
    ok(gnutls_x509_crt_get_dn(crt, text, &n_text) == 0 &&
           strcmp(text, "CN=www.example.com") == 0,
       "its subject is %s", text);
    ok(verifies(crt, "www.example.com"), "it verifies for its name");
    ok(!verifies(crt, "example.com"), "and for no other");
    gnutls_x509_crt_deinit(crt);
}

static void
test_chain(struct leaves *ls)
{
    struct leaf *l = take(ls, "chain.test", NULL);
    gnutls_pcert_st *chain;
    gnutls_privkey_t key;
    unsigned n;
    gnutls_datum_t data = {(unsigned char *)"text", 4}, sign = {NULL, 0};

    leaf_show(l, &chain, &n, &key);
    is_int(n, 2, "the chain is the leaf and its CA");
    ok(n == 2 && chain[1].cert.size == ca->der.size &&
           memcmp(chain[1].cert.data, ca->der.data, ca->der.size) == 0,
       "the CA as it is on the disk");
    ok(gnutls_privkey_sign_data(key, GNUTLS_DIG_SHA256, 0, &data, &sign) == 0 &&
           gnutls_pubkey_verify_data2(chain[0].pubkey, GNUTLS_SIGN_ECDSA_SHA256,
                                      0, &data, &sign) >= 0,
       "the key belongs to the leaf");
    gnutls_free(sign.data);
    leaf_give(ls, l);
}

static void
test_names(struct leaves *ls)
{
    sans_are(ls, "a.test", NULL, "DNS:a.test ");
    sans_are(ls, "A.Test.", NULL, "DNS:a.test ");
    sans_are(ls, "127.0.0.1", NULL, "IP:127.0.0.1 ");
    sans_are(ls, "::1", NULL, "IP:::1 ");
    sans_are(ls, "fe80::1%lo", NULL, "IP:fe80::1 ");
    sans_are(ls, "xn--mnchen-3ya.test", NULL, "DNS:xn--mnchen-3ya.test ");
    sans_are(ls, "m\xc3\xbcnchen.test", NULL, "DNS:xn--mnchen-3ya.test ");
    sans_are(ls, "_dmarc.a.test", NULL, "DNS:_dmarc.a.test ");
    sans_are(ls, "www.a.test", NAMES("*.a.test\0a.test"),
             "DNS:www.a.test DNS:*.a.test DNS:a.test ");
    sans_are(ls, "a.test", NAMES("A.TEST\0a.test\0b.test\0b.test."),
             "DNS:a.test DNS:b.test ");
    sans_are(ls, "a.test",
             NAMES("10.0.0.1\0::1\0"
                   "0:0:0:0:0:0:0:1\0x.test"),
             "DNS:a.test IP:10.0.0.1 IP:::1 DNS:x.test ");
    sans_are(ls, "a.test", NAMES("with space\0\xff\xfe\0\0good.test"),
             "DNS:a.test DNS:good.test ");
}

static void
test_names_verify(struct leaves *ls)
{
    static const char *const names[] = {"127.0.0.1", "::1", "2001:db8::7",
                                        "xn--mnchen-3ya.test"};
    gnutls_x509_crt_t crt;

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        crt = mint(ls, names[i], NULL);
        ok(verifies(crt, names[i]), "%s verifies", names[i]);
        gnutls_x509_crt_deinit(crt);
    }
    crt = mint(ls, "www.a.test",
               NAMES("*.a.test\0b.test\0"
                     "10.0.0.1"));
    ok(verifies(crt, "www.a.test") && verifies(crt, "other.a.test") &&
           verifies(crt, "b.test") && verifies(crt, "10.0.0.1"),
       "so do the names of the origin, and what its wildcard covers");
    ok(!verifies(crt, "a.b.a.test") && !verifies(crt, "10.0.0.2"),
       "and nothing else");
    gnutls_x509_crt_deinit(crt);
}

/* openssl is another's mind, and with -x509_strict a strict one. */
static void
openssl_verifies(gnutls_x509_crt_t crt, const char *name)
{
    char file[600], command[2048];
    gnutls_datum_t pem = {NULL, 0};
    FILE *out;

    snprintf(file, sizeof file, "%s/leaf.pem", dir_root);
    out = fopen(file, "w");
    ok(out != NULL &&
           gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &pem) == 0 &&
           fwrite(pem.data, 1, pem.size, out) == pem.size && fclose(out) == 0,
       "the leaf goes into a file");
    gnutls_free(pem.data);
    snprintf(command, sizeof command,
             "openssl verify -x509_strict -purpose sslserver -CAfile "
             "%s/ca.pem -verify_%s '%s' %s >&2",
             ca->dir, host_is_address(name) ? "ip" : "hostname", name, file);
    is_int(system(command), 0, "openssl verifies it for %s", name);
}

static void
test_openssl(struct leaves *ls)
{
    char name[HOST_MAX + 1], label[51];
    const char *all[] = {"www.example.com", "192.0.2.1", "2001:db8::1", name};

    memset(label, 'x', sizeof label - 1);
    label[sizeof label - 1] = '\0';
    snprintf(name, sizeof name, "%s.%s.example.com", label, label);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        gnutls_x509_crt_t crt = mint(ls, all[i], NULL);

        openssl_verifies(crt, all[i]);
        gnutls_x509_crt_deinit(crt);
    }
}

/* A common name holds 64 bytes; a host name 253. */
static void
test_long(struct leaves *ls)
{
    static const size_t lens[] = {63, 64, 65, 128, 253};

    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        char name[HOST_MAX + 1], dn[512];
        size_t n = sizeof dn;
        unsigned critical = 2;
        gnutls_x509_crt_t crt;
        int rc;

        memset(name, 'a', lens[i]);
        name[lens[i]] = '\0';
        for (size_t dot = 50; dot < lens[i] - 1; dot += 50)
            name[dot] = '.';
        crt = mint(ls, name, NULL);
        rc = gnutls_x509_crt_get_dn(crt, dn, &n);
        ok(lens[i] <= 64 ? rc == 0 && strstr(dn, name) != NULL
                         : rc != 0 || dn[0] == '\0',
           "a name of %zu bytes is %s common name", lens[i],
           lens[i] <= 64 ? "a" : "no");
        n = sizeof dn;
        gnutls_x509_crt_get_extension_by_oid(crt, GNUTLS_X509EXT_OID_SAN, 0, dn,
                                             &n, &critical);
        is_int(critical, lens[i] > 64,
               "its alternative names are critical if there is no subject");
        ok(verifies(crt, name), "it verifies");
        gnutls_x509_crt_deinit(crt);
    }
}

static void
test_refused(struct leaves *ls)
{
    char longest[400];
    const char *bad[] = {"", ".", "a b.test", "a\nb", longest, "\xff.test"};

    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct fail f = {0};
        struct leaf *l = NULL;

        ok(leaf_take(ls, bad[i], NULL, 0, &l, &f) == WHY_PROTO && l == NULL &&
               f.why == WHY_PROTO,
           "no certificate names bad name %zu", i);
        leaf_give(ls, l);
    }
}

/* As much as fits into struct names. */
static void
test_many_names(struct leaves *ls)
{
    struct names names = {.len = 0};
    char text[4096], last[32] = "";
    gnutls_x509_crt_t crt;
    int n = 0;

    while (names.len + sizeof last <= sizeof names.at) {
        int len = snprintf(last, sizeof last, "n%d.many.test", n++);

        memcpy(names.at + names.len, last, (size_t)len + 1);
        names.len += (size_t)len + 1;
    }
    crt = mint(ls, "many.test", &names);
    ok(verifies(crt, "many.test") && verifies(crt, "n0.many.test") &&
           verifies(crt, last),
       "%d names in one leaf", n);
    sans_text(crt, text, sizeof text);
    gnutls_x509_crt_deinit(crt);
}

/* ---- how they are kept --------------------------------------------------- */

static void
test_cache(void)
{
    struct leaves *ls = leaves_make(8);
    struct leaf *a = take(ls, "a.test", NULL), *b;

    b = take(ls, "A.TEST", NULL);
    ok(a == b, "asked for twice, it is the same");
    leaf_give(ls, b);
    b = take(ls, "a.test", NAMES("*.test"));
    ok(a != b, "with other names it is another");
    leaf_give(ls, b);
    is_int(leaves_minted(ls), 2, "two were minted");
    is_int(leaves_count(ls), 2, "and both are kept");
    leaf_give(ls, a);
    leaf_give(ls, NULL);
    leaves_free(ls);
    leaves_free(NULL);
}

static void
test_lru(void)
{
    struct leaves *ls = leaves_make(3);
    static const char *const use[] = {"a", "b", "c", "a", "d", "a", "c", "b"};
    /* b was used longest ago when d came; d when b came back */
    static const int minted[] = {1, 2, 3, 3, 4, 4, 4, 5};
    struct leaf *held;

    for (size_t i = 0; i < sizeof use / sizeof *use; i++) {
        leaf_give(ls, take(ls, use[i], NULL));
        is_int(leaves_minted(ls), minted[i], "%s: minted so far", use[i]);
        ok(leaves_count(ls) <= 3, "no more are kept than was said");
    }
    held = take(ls, "held.test", NULL);
    for (int i = 0; i < 10; i++) {
        char name[32];

        snprintf(name, sizeof name, "n%d.test", i);
        leaf_give(ls, take(ls, name, NULL));
    }
    is_int(leaves_count(ls), 3, "many others came meanwhile");
    gnutls_x509_crt_t crt = crt_of(held);
    ok(verifies(crt, "held.test"), "a taken leaf is still whole");
    gnutls_x509_crt_deinit(crt);
    leaf_give(ls, held);
    leaves_free(ls);

    ls = leaves_make(0);
    leaf_give(ls, take(ls, "a.test", NULL));
    is_int(leaves_count(ls), 1, "one is always kept");
    leaves_free(ls);
}

static void
test_ageing(void)
{
    struct leaves *ls = leaves_make(8);
    time_t end = gnutls_x509_crt_get_expiration_time(ca->crt);
    struct leaf *old = take(ls, "old.test", NULL), *l;
    struct fail f = {0};
    gnutls_x509_crt_t crt;

    atomic_store(&skew, (DAYS - 1) * DAY - 60);
    l = take(ls, "old.test", NULL);
    ok(l == old, "a leaf with more than a day left is used");
    leaf_give(ls, l);
    atomic_store(&skew, (DAYS - 1) * DAY + 60);
    l = take(ls, "old.test", NULL);
    ok(l != old, "with less it is minted again");
    is_int(leaves_count(ls), 1, "the old one is not kept");
    crt = crt_of(old);
    ok(verifies(crt, "old.test"), "but whole for who has it");
    gnutls_x509_crt_deinit(crt);
    leaf_give(ls, l);
    leaf_give(ls, old);

    atomic_store(&skew, end - time(NULL) + atomic_load(&skew) - 10 * DAY);
    crt = mint(ls, "late.test", NULL);
    ok(gnutls_x509_crt_get_expiration_time(crt) == end &&
           verifies(crt, "late.test"),
       "no leaf outlives its CA");
    gnutls_x509_crt_deinit(crt);
    atomic_store(&skew, end - time(NULL) + atomic_load(&skew) - 600);
    leaf_give(ls, take(ls, "last.test", NULL));
    is_int(leaves_minted(ls), 4, "ten minutes before its end, one is minted");
    leaf_give(ls, take(ls, "last.test", NULL));
    is_int(leaves_minted(ls), 4, "once");
    atomic_store(&skew, end - time(NULL) + atomic_load(&skew) + 1);
    l = NULL;
    ok(leaf_take(ls, "dead.test", NULL, 0, &l, &f) == WHY_TLS && l == NULL &&
           f.side == SIDE_WEIR && f.code == GNUTLS_E_EXPIRED,
       "after it there are none");
    is_int(leaves_count(ls), 3, "and nothing is kept of the attempt");
    atomic_store(&skew, 0);
    leaves_free(ls);
}

/* ---- many at once -------------------------------------------------------- */

enum { N_THREADS = 12, N_ROUNDS = 40 };

struct crowd {
    struct leaves *ls;
    pthread_barrier_t barrier;
    atomic_int n_bad;
    struct leaf *_Atomic first[N_ROUNDS];
};

static void *
crowd_same(void *arg)
{
    struct crowd *c = arg;

    for (int i = 0; i < N_ROUNDS; i++) {
        char name[32];
        struct leaf *l, *none = NULL;

        snprintf(name, sizeof name, "same-%d.test", i);
        pthread_barrier_wait(&c->barrier);
        l = take(c->ls, name, NULL);
        if (l == NULL ||
            (!atomic_compare_exchange_strong(&c->first[i], &none, l) &&
             none != l))
            atomic_fetch_add(&c->n_bad, 1);
        leaf_give(c->ls, l);
    }
    return NULL;
}

/* More names than are kept: eviction meets use and minting. */
static void *
crowd_thrash(void *arg)
{
    struct crowd *c = arg;
    unsigned seed = (unsigned)(uintptr_t)&seed;

    pthread_barrier_wait(&c->barrier);
    for (int i = 0; i < 60; i++) {
        char name[32];
        struct leaf *l;
        gnutls_x509_crt_t crt;

        snprintf(name, sizeof name, "%d.thrash.test", rand_r(&seed) % 6);
        if ((l = take(c->ls, name, NULL)) == NULL) {
            atomic_fetch_add(&c->n_bad, 1);
            continue;
        }
        crt = crt_of(l);
        if (!gnutls_x509_crt_check_hostname(crt, name))
            atomic_fetch_add(&c->n_bad, 1);
        gnutls_x509_crt_deinit(crt);
        leaf_give(c->ls, l);
    }
    return NULL;
}

static bool
crowd_run(struct crowd *c, void *(*run)(void *))
{
    pthread_t threads[N_THREADS];
    bool good = pthread_barrier_init(&c->barrier, NULL, N_THREADS) == 0;

    for (int i = 0; i < N_THREADS; i++)
        if (pthread_create(&threads[i], NULL, run, c) != 0)
            abort(); /* the others would wait for ever */
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&c->barrier);
    return good;
}

static void
test_crowds(void)
{
    static struct crowd c;

    c.ls = leaves_make(N_ROUNDS);
    ok(crowd_run(&c, crowd_same), "%d threads ask for the same", N_THREADS);
    is_int(atomic_load(&c.n_bad), 0, "all get the same");
    is_int(leaves_minted(c.ls), N_ROUNDS, "each was minted once");
    leaves_free(c.ls);

    c.ls = leaves_make(2);
    ok(crowd_run(&c, crowd_thrash), "%d threads ask for too many", N_THREADS);
    is_int(atomic_load(&c.n_bad), 0, "each gets what it asked for");
    ok(leaves_count(c.ls) <= 2, "and no more are kept than was said");
    leaves_free(c.ls);
}

int
main(void)
{
    char home[600];
    struct leaves *ls;

    snprintf(home, sizeof home, "%s/ca", dir_make());
    ca = ca_new(home, err, sizeof err);
    if (ok(ca != NULL, "a CA") && (ls = leaves_make(100)) != NULL) {
        test_contents(ls);
        test_chain(ls);
        test_names(ls);
        test_names_verify(ls);
        test_openssl(ls);
        test_long(ls);
        test_refused(ls);
        test_many_names(ls);
        leaves_free(ls);
        test_cache();
        test_lru();
        test_ageing();
        test_crowds();
    }
    ca_free(ca);
    dir_remove();
    return done_testing();
}
