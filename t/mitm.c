/*
 * t/mitm.c - TLS towards the client, with GnuTLS as the client.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/tap.h"

enum { LIMIT_MS = 20000 }; /* nothing here takes a second, unless it hangs */

static char err[512];
static struct mitm *mitm;
static gnutls_certificate_credentials_t trusting, distrusting;

struct shake { /* a handshake, both sides, and what came of it */
    /* set by the test */
    const char *name;          /* whom the server is */
    const struct names *names; /* of the origin */
    const char *priority;      /* of the client; NULL: NORMAL */
    const char *offer;         /* its ALPN; NULL: none */
    const char *verify;        /* the name it wants; NULL: as name */
    gnutls_datum_t ticket;     /* of an earlier call; kept for the next */
    unsigned alpn;             /* of the server */
    int limit_ms;              /* of the server; 0: LIMIT_MS */
    bool distrust;             /* the client does not know our CA */
    bool read_hello;           /* the server looks at the hello first */
    bool silent;               /* the client says nothing at all */
    /* found out */
    bool resumed;
    enum why why;
    struct fail fail;
    int fds[2]; /* server, client */
    int client_rc;
    unsigned n_chain;
    gnutls_protocol_t version;
    gnutls_cipher_algorithm_t cipher;
    gnutls_group_t group;
    char chosen[32];    /* ALPN, as the client sees it */
    struct hello hello; /* as the server read it */
};

/* ---- the server ---------------------------------------------------------- */

static enum why
server_talk(struct shake *c, struct end *e)
{
    char byte = 0;
    struct iovec iov = {"x", 1};
    size_t n;

    if (c->read_hello) {
        c->why = hello_read(e, now_ms() + LIMIT_MS, &c->hello, &c->fail);
        if (c->why != WHY_NONE)
            return c->why;
    }
    c->why = mitm_accept(mitm, e, c->name, c->names, c->alpn,
                         now_ms() + (c->limit_ms != 0 ? c->limit_ms : LIMIT_MS),
                         &c->fail);
    if (c->why != WHY_NONE)
        return c->why;
    /* One byte each way: the client gets its TLS 1.3 ticket before ours. */
    c->why = end_write(e, &iov, 1, &c->fail);
    if (c->why == WHY_NONE)
        c->why = end_read(e, &byte, 1, &n, &c->fail);
    return byte == 'y' ? c->why : WHY_PROTO;
}

static void *
server_run(void *arg)
{
    struct shake *c = arg;
    struct end e;

    end_init(&e, c->fds[0], SIDE_CLIENT, LIMIT_MS);
    c->why = server_talk(c, &e);
    end_clear(&e);
    return NULL;
}

/* ---- the client ---------------------------------------------------------- */

static gnutls_session_t
client_new(struct shake *c)
{
    gnutls_session_t s;
    const char *name = c->verify != NULL ? c->verify : c->name;

    gnutls_init(&s, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL);
    gnutls_priority_set_direct(s, c->priority != NULL ? c->priority : "NORMAL",
                               NULL);
    gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE,
                           c->distrust ? distrusting : trusting);
    if (!host_is_address(name))
        gnutls_server_name_set(s, GNUTLS_NAME_DNS, name, strlen(name));
    gnutls_session_set_verify_cert(s, name, 0);
    if (c->offer != NULL) {
        gnutls_datum_t names[4];
        char text[64], *save, *one;
        unsigned n = 0;

        snprintf(text, sizeof text, "%s", c->offer);
        for (one = strtok_r(text, " ", &save); one != NULL && n < 4;
             one = strtok_r(NULL, " ", &save))
            names[n++] =
                (gnutls_datum_t){(unsigned char *)one, (unsigned)strlen(one)};
        gnutls_alpn_set_protocols(s, names, n, 0);
    }
    if (c->ticket.data != NULL)
        gnutls_session_set_data(s, c->ticket.data, c->ticket.size);
    gnutls_transport_set_int(s, c->fds[1]);
    gnutls_handshake_set_timeout(s, LIMIT_MS);
    return s;
}

/* After the handshake: what was agreed on, and a byte each way. */
static void
client_look(struct shake *c, gnutls_session_t s)
{
    gnutls_datum_t chosen = {NULL, 0};
    char byte;

    c->version = gnutls_protocol_get_version(s);
    c->cipher = gnutls_cipher_get(s);
    c->group = gnutls_group_get(s);
    c->resumed = gnutls_session_is_resumed(s) != 0;
    gnutls_certificate_get_peers(s, &c->n_chain);
    if (gnutls_alpn_get_selected_protocol(s, &chosen) == 0)
        snprintf(c->chosen, sizeof c->chosen, "%.*s", (int)chosen.size,
                 chosen.data);
    while ((c->client_rc = (int)gnutls_record_recv(s, &byte, 1)) ==
           GNUTLS_E_AGAIN) /* a ticket came */
        ;
    gnutls_free(c->ticket.data);
    if (c->client_rc == 1)
        gnutls_session_get_data2(s, &c->ticket);
    gnutls_record_send(s, "y", 1);
}

static void
client_run(struct shake *c)
{
    gnutls_session_t s = client_new(c);

    do
        c->client_rc = gnutls_handshake(s);
    while (c->client_rc < 0 && gnutls_error_is_fatal(c->client_rc) == 0);
    if (c->client_rc == 0)
        client_look(c, s);
    else
        gnutls_alert_send_appropriate(s, c->client_rc);
    gnutls_deinit(s);
}

/* Both sides, one in a thread of its own.  True if it went well for both. */
static bool
call_run(struct shake *c)
{
    pthread_t thread;

    c->fail = (struct fail){0};
    c->chosen[0] = '\0';
    c->client_rc = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, c->fds) != 0 ||
        pthread_create(&thread, NULL, server_run, c) != 0)
        abort();
    if (!c->silent)
        client_run(c);
    if (!c->silent)
        close(c->fds[1]);
    pthread_join(thread, NULL);
    if (c->silent)
        close(c->fds[1]);
    return c->why == WHY_NONE && c->client_rc == 1;
}

static void
call_is(struct shake *c, bool want, const char *what)
{
    char text[256];

    if (ok(call_run(c) == want, "%s", what))
        return;
    fail_text(&c->fail, text, sizeof text);
    diag("  server %s (%s), client %s", why_name(c->why), text,
         c->client_rc < 0 ? gnutls_strerror(c->client_rc) : "fine");
}

static void
call_clear(struct shake *c)
{
    gnutls_free(c->ticket.data);
}

/* ---- tests --------------------------------------------------------------- */

static void
test_versions(void)
{
    static const struct {
        const char *priority;
        gnutls_protocol_t version; /* 0: refused */
    } all[] = {
        {"NORMAL", GNUTLS_TLS1_3},
        {"NORMAL:-VERS-ALL:+VERS-TLS1.3", GNUTLS_TLS1_3},
        {"NORMAL:-VERS-ALL:+VERS-TLS1.2", GNUTLS_TLS1_2},
        {"NORMAL:-VERS-ALL:+VERS-TLS1.1", 0},
        {"NORMAL:-VERS-ALL:+VERS-TLS1.0", 0},
        {"NORMAL:-GROUP-ALL:+GROUP-SECP256R1", GNUTLS_TLS1_3},
        {"NORMAL:-GROUP-ALL:+GROUP-SECP521R1", GNUTLS_TLS1_3},
        {"NORMAL:-VERS-ALL:+VERS-TLS1.2:-GROUP-ALL:+GROUP-X25519",
         GNUTLS_TLS1_2},
    };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct shake c = {.name = "a.test", .priority = all[i].priority};

        call_is(&c, all[i].version != 0, all[i].priority);
        if (all[i].version != 0) {
            is_int(c.version, all[i].version, "  its version");
            is_int(c.n_chain, 2, "  leaf and CA were shown");
        } else {
            ok(c.why == WHY_TLS && c.fail.why == WHY_TLS && c.client_rc < 0,
               "  refused by us: %s", gnutls_strerror(c.fail.code));
        }
        call_clear(&c);
    }
}

/* Whatever the client prefers, the cheapest that it can. */
static void
test_choice(void)
{
    static const struct {
        const char *priority;
        gnutls_cipher_algorithm_t cipher;
        gnutls_group_t group;
    } all[] = {
        {"NORMAL:-CIPHER-ALL:+CHACHA20-POLY1305:+AES-256-GCM:+AES-128-GCM",
         GNUTLS_CIPHER_AES_128_GCM, GNUTLS_GROUP_X25519},
        {"NORMAL:-CIPHER-ALL:+CHACHA20-POLY1305:+AES-256-GCM:"
         "-GROUP-ALL:+GROUP-SECP384R1:+GROUP-X25519",
         GNUTLS_CIPHER_AES_256_GCM, GNUTLS_GROUP_X25519},
        {"NORMAL:-CIPHER-ALL:+CHACHA20-POLY1305:-GROUP-ALL:+GROUP-SECP384R1",
         GNUTLS_CIPHER_CHACHA20_POLY1305, GNUTLS_GROUP_SECP384R1},
    };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct shake c = {.name = "a.test", .priority = all[i].priority};

        call_is(&c, true, all[i].priority);
        is_int(c.cipher, all[i].cipher, "  its cipher");
        is_int(c.group, all[i].group, "  its group");
        call_clear(&c);
    }
}

static void
test_alpn(void)
{
    static const struct {
        unsigned alpn;
        const char *offer, *want;
    } all[] = {
        {ALPN_HTTP1, "http/1.1", "http/1.1"},
        {ALPN_HTTP1, "h2 http/1.1", "http/1.1"},
        {ALPN_H2, "h2 http/1.1", "h2"},
        {ALPN_H2 | ALPN_HTTP1, "http/1.1 h2", "h2"},
        {ALPN_H2 | ALPN_HTTP1, "http/1.1", "http/1.1"},
        {ALPN_HTTP1, NULL, ""},
        {0, "h2 http/1.1", ""},
        {ALPN_HTTP1, "acme-tls/1", ""},
    };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct shake c = {
            .name = "a.test", .alpn = all[i].alpn, .offer = all[i].offer};

        call_is(&c, true, all[i].offer != NULL ? all[i].offer : "no offer");
        is_str(c.chosen, all[i].want, "  what was chosen with %u", all[i].alpn);
        call_clear(&c);
    }
}

static void
test_names(void)
{
    static const struct names names = {.len = sizeof "*.b.test\0"
                                                     "10.0.0.1",
                                       .at = "*.b.test\0"
                                             "10.0.0.1"};
    struct shake all[] = {
        {.name = "127.0.0.1"},
        {.name = "::1"},
        {.name = "xn--mnchen-3ya.test"},
        {.name = "a.test", .names = &names},
        {.name = "a.test", .names = &names, .verify = "www.b.test"},
        {.name = "a.test", .names = &names, .verify = "10.0.0.1"},
    };
    struct shake wrong = {.name = "a.test", .verify = "b.test"};
    struct shake none = {.name = "bad name"};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        call_is(&all[i], true,
                all[i].verify != NULL ? all[i].verify : all[i].name);
        call_clear(&all[i]);
    }
    call_is(&wrong, false, "the client wants another name");
    ok(wrong.why == WHY_ALERT && wrong.fail.side == SIDE_CLIENT,
       "  and says so");
    none.verify = "a.test";
    call_is(&none, false, "a name that cannot be");
    is_int(none.why, WHY_PROTO, "  is noticed before the handshake");
}

/* The client comes back with a ticket: no certificate, no signature. */
static void
test_resumption(void)
{
    static const char *const priorities[] = {"NORMAL:-VERS-ALL:+VERS-TLS1.3",
                                             "NORMAL:-VERS-ALL:+VERS-TLS1.2"};

    for (int i = 0; i < 2; i++) {
        struct shake c = {.name = "back.test",
                          .priority = priorities[i],
                          .alpn = ALPN_HTTP1,
                          .offer = "h2 http/1.1"};

        call_is(&c, true, "a first visit");
        ok(!c.resumed && c.ticket.size > 0, "  brings a ticket of %u bytes",
           c.ticket.size);
        for (int n = 0; n < 2; n++) {
            call_is(&c, true, "another one");
            ok(c.resumed, "  uses it");
            is_str(c.chosen, "http/1.1", "  and chooses as before");
        }
        call_clear(&c);
    }
}

static void
test_distrust(void)
{
    static const char *const priorities[] = {"NORMAL:-VERS-ALL:+VERS-TLS1.3",
                                             "NORMAL:-VERS-ALL:+VERS-TLS1.2"};

    for (int i = 0; i < 2; i++) {
        struct shake c = {
            .name = "a.test", .priority = priorities[i], .distrust = true};
        char text[256];

        call_is(&c, false, "a client that does not know our CA");
        fail_text(&c.fail, text, sizeof text);
        ok(c.why == WHY_ALERT && c.fail.why == WHY_ALERT &&
               c.fail.side == SIDE_CLIENT,
           "  tells us: %s", text);
        ok(c.fail.code == GNUTLS_A_BAD_CERTIFICATE ||
               c.fail.code == GNUTLS_A_UNKNOWN_CA,
           "  with alert %d", c.fail.code);
        call_clear(&c);
    }
}

static void
test_hello_first(void)
{
    struct shake c = {.name = "www.example.com",
                      .alpn = ALPN_HTTP1,
                      .offer = "h2 http/1.1",
                      .read_hello = true};

    call_is(&c, true, "the hello was looked at before");
    is_str(c.hello.sni, "www.example.com", "  and named the host");
    is_int(c.hello.alpn, ALPN_H2 | ALPN_HTTP1, "  and the offer");
    call_clear(&c);
}

static void
test_silence(void)
{
    struct shake c = {.name = "a.test", .silent = true, .limit_ms = 50};

    call_run(&c);
    is_int(c.why, WHY_LATE, "a client that says nothing is given up");
    is_int(c.fail.why, WHY_LATE, "  as it is noted");
}

/* ---- many at once -------------------------------------------------------- */

enum { N_THREADS = 6, N_CALLS = 5 };

static atomic_int n_good;

static void *
crowd_run(void *arg)
{
    (void)arg;
    for (int i = 0; i < N_CALLS; i++) {
        char name[32];
        struct shake c = {.name = name};

        snprintf(name, sizeof name, "crowd-%d.test", i);
        if (call_run(&c))
            atomic_fetch_add(&n_good, 1);
        call_clear(&c);
    }
    return NULL;
}

static void
test_crowd(void)
{
    pthread_t threads[N_THREADS];

    for (int i = 0; i < N_THREADS; i++)
        if (pthread_create(&threads[i], NULL, crowd_run, NULL) != 0)
            abort();
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    is_int(atomic_load(&n_good), N_THREADS * N_CALLS,
           "handshakes for the same names at the same time");
}

/* ---- who is intercepted -------------------------------------------------- */

static void
wants_is(const char *only, const char *except, const char *host, int port,
         bool want)
{
    struct config conf = {.intercept = true};

    conf.only = match_parse(only, err, sizeof err);
    conf.except = match_parse(except, err, sizeof err);
    ok(mitm_wants(&conf, host, (uint16_t)port) == want,
       "only '%s', except '%s': %s:%d is%s intercepted", only, except, host,
       port, want ? "" : " not");
    conf.intercept = false;
    ok(!mitm_wants(&conf, host, (uint16_t)port), "  and never when disabled");
    match_free(conf.only);
    match_free(conf.except);
}

static void
test_wants(void)
{
    wants_is("", "", "a.test", 443, true);
    wants_is("a.test", "", "a.test", 443, true);
    wants_is("a.test", "", "b.test", 443, false);
    wants_is("", "a.test", "a.test", 443, false);
    wants_is("", "a.test", "b.test", 443, true);
    wants_is("*.test", "a.test", "a.test", 443, false);
    wants_is("*.test", "a.test", "b.test", 443, true);
    wants_is("10.0.0.0/8", "10.1.0.0/16", "10.0.0.1", 8443, true);
    wants_is("10.0.0.0/8", "10.1.0.0/16", "10.1.0.1", 8443, false);
}

static void
test_new(const char *dir)
{
    struct config conf = {.dir = (char *)dir, .leaf_days = 45, .leaf_cache = 4};
    gnutls_datum_t pem, der;
    gnutls_x509_crt_t a, b;
    struct mitm *bad;
    char key[700];

    mitm = mitm_new(&conf, err, sizeof err);
    if (!ok(mitm != NULL, "a CA is made"))
        diag("  %s", err);
    is_str(mitm_dir(mitm), dir, "where it was said");
    pem = (gnutls_datum_t){(unsigned char *)mitm_ca_pem(mitm).at,
                           (unsigned)mitm_ca_pem(mitm).len};
    der = (gnutls_datum_t){(unsigned char *)mitm_ca_der(mitm).at,
                           (unsigned)mitm_ca_der(mitm).len};
    gnutls_x509_crt_init(&a);
    gnutls_x509_crt_init(&b);
    ok(gnutls_x509_crt_import(a, &pem, GNUTLS_X509_FMT_PEM) == 0 &&
           gnutls_x509_crt_import(b, &der, GNUTLS_X509_FMT_DER) == 0 &&
           gnutls_x509_crt_equals(a, b),
       "it is handed out as PEM and as DER");
    gnutls_x509_crt_deinit(a);
    gnutls_x509_crt_deinit(b);

    snprintf(key, sizeof key, "%s/ca-key.pem", dir);
    chmod(key, 0644);
    bad = mitm_new(&conf, err, sizeof err);
    ok(bad == NULL && strstr(err, "chmod 600") != NULL, "refused: %s", err);
    mitm_free(bad);
    chmod(key, 0600);
    mitm_free(NULL);

    gnutls_certificate_allocate_credentials(&trusting);
    gnutls_certificate_allocate_credentials(&distrusting);
    is_int(gnutls_certificate_set_x509_trust_mem(trusting, &pem,
                                                 GNUTLS_X509_FMT_PEM),
           1, "the client trusts it");
}

int
main(void)
{
    char dir[600];

    snprintf(dir, sizeof dir, "%s/ca", dir_make());
    test_new(dir);
    if (mitm != NULL) {
        test_versions();
        test_choice();
        test_alpn();
        test_names();
        test_resumption();
        test_distrust();
        test_hello_first();
        test_silence();
        test_crowd();
        test_wants();
    }
    mitm_free(mitm);
    gnutls_certificate_free_credentials(trusting);
    gnutls_certificate_free_credentials(distrusting);
    dir_remove();
    return done_testing();
}
