/*
 * t/secure.c - TLS to origins: whom to believe, and what is remembered.
 */
#include "proxy.h"
#include "t/dir.h"
#include "t/net.h"
#include "t/tap.h"
#include "t/tls.h"

enum { LIMIT_MS = NET_LIMIT_S * 1000, MEMORY = 512 /* as in secure.c */ };

static char err[512], ca_set[600];
static struct weir weir;
static struct cert ca, good;
static gnutls_datum_t ticket_key;

/* ---- settings ------------------------------------------------------------ */

static struct config *
settings(char *const *sets, size_t n)
{
    struct config *conf = config_read(NULL, sets, n, err, sizeof err);

    if (conf == NULL) {
        diag("%s", err);
        exit(2);
    }
    return conf;
}

static struct secure *
trusting(const struct config *conf)
{
    struct secure *s = secure_new(conf, err, sizeof err);

    if (s == NULL) {
        diag("%s", err);
        exit(2);
    }
    return s;
}

/* ---- an origin ----------------------------------------------------------- */

struct origin_side { /* one connection at an origin */
    const struct cert *cert;
    const char *prio, *alpn; /* NULL: whatever, none */
    int fd;
    /* found out */
    bool resumed;
    int rc; /* of the handshake, or of the first read after it */
    int alert;
    char sni[HOST_MAX + 1];
};

static void *
origin_run(void *arg)
{
    struct origin_side *o = arg;
    gnutls_certificate_credentials_t creds = cert_shown(o->cert);
    gnutls_session_t session = tls_session(GNUTLS_SERVER, creds, o->prio);
    size_t len = sizeof o->sni;
    unsigned type;
    char byte;

    NEED(gnutls_session_ticket_enable_server(session, &ticket_key) == 0);
    if (o->alpn != NULL) {
        gnutls_datum_t name = {(unsigned char *)o->alpn,
                               (unsigned)strlen(o->alpn)};

        NEED(gnutls_alpn_set_protocols(session, &name, 1, 0) == 0);
    }
    gnutls_transport_set_int(session, o->fd);
    gnutls_handshake_set_timeout(session, LIMIT_MS);
    o->rc = gnutls_handshake(session);
    o->resumed = gnutls_session_is_resumed(session) != 0;
    if (gnutls_server_name_get(session, o->sni, &len, &type, 0) != 0)
        o->sni[0] = '\0';
    if (o->rc == 0) {
        (void)gnutls_record_send(session, "x", 1); /* behind the tickets */
        o->rc = (int)gnutls_record_recv(session, &byte, 1);
    }
    if (o->rc == GNUTLS_E_FATAL_ALERT_RECEIVED)
        o->alert = (int)gnutls_alert_get(session);
    gnutls_deinit(session);
    gnutls_certificate_free_credentials(creds);
    close(o->fd);
    return NULL;
}

struct shake { /* one connection to an origin, both sides */
    struct upstream up;
    struct origin_side at;
    enum why why;
    struct fail fail;
};

/* Connect; what came of it.  save: read a byte and keep the ticket. */
static void
call(struct secure *s, const struct config *conf, struct shake *c,
     const char *host, bool save)
{
    struct client client = {.weir = &weir, .conf = conf};
    pthread_t origin;
    int fds[2];
    char byte;
    size_t n;

    net_pair(fds);
    snprintf(c->up.origin.host, sizeof c->up.origin.host, "%s", host);
    c->up.origin.tls = true;
    c->up.origin.port = 443;
    end_init(&c->up.end, fds[0], SIDE_ORIGIN, LIMIT_MS);
    c->at.fd = fds[1];
    if (c->at.cert == NULL)
        c->at.cert = &good;
    origin = net_thread(origin_run, &c->at);
    c->why = secure_connect(s, &client, &c->up, ALPN_HTTP1 | ALPN_H2, &c->fail);
    if (c->why == WHY_NONE && save) {
        struct iovec iov = {"y", 1};

        NEED(end_read(&c->up.end, &byte, 1, &n, &c->fail) == WHY_NONE);
        secure_save_ticket(s, &c->up);
        NEED(end_write(&c->up.end, &iov, 1, &c->fail) == WHY_NONE);
    }
    if (c->why != WHY_NONE) /* the origin reads on until our end */
        shutdown(c->up.end.fd, SHUT_WR);
    else if (!save)
        NEED(end_finish(&c->up.end, &c->fail) == WHY_NONE);
    pthread_join(origin, NULL);
    end_clear(&c->up.end);
}

/* ---- whom to believe ----------------------------------------------------- */

static const char *const good_names[] = {"good.test", "*.wild.test",
                                         "127.0.0.1", "::1", NULL};

static void
believed(struct secure *s, const struct config *conf, const char *host,
         const char *sni, bool good_host)
{
    struct shake c = {0};

    snprintf(c.up.origin.sni, sizeof c.up.origin.sni, "%s", sni);
    call(s, conf, &c, host, false);
    if (good_host) {
        is_int(c.why, WHY_NONE, "%s (SNI '%s') is believed", host, sni);
        ok(!c.up.insecure, "  because it was verified");
        ok(c.up.took.tls_us >= 0, "  it took a time");
    } else {
        is_int(c.why, WHY_CERT, "%s (SNI '%s') is not", host, sni);
        is_str(c.fail.text(c.fail.code),
               "the certificate is for another host name", "  it says why");
    }
}

static void
refused(struct secure *s, const struct config *conf, const struct cert *cert,
        const char *reason)
{
    struct shake c = {.at.cert = cert};

    call(s, conf, &c, "good.test", false);
    is_int(c.why, WHY_CERT, "refused: %s", reason);
    ok(c.fail.text != NULL && strcmp(c.fail.text(c.fail.code), reason) == 0,
       "  in these words");
    is_int(c.fail.side, SIDE_ORIGIN, "  the origin's doing");
    is_int(c.at.alert, GNUTLS_A_BAD_CERTIFICATE, "  the origin hears of it");
}

static void
verification(void)
{
    char *sets[] = {ca_set};
    struct config *conf = settings(sets, 1), *bare = settings(NULL, 0);
    struct secure *s = trusting(conf), *without = trusting(bare);
    struct cert self, expired, early;
    struct shake c = {0};

    believed(s, conf, "good.test", "", true);
    believed(s, conf, "a.wild.test", "", true);
    believed(s, conf, "a.b.wild.test", "", false);
    believed(s, conf, "other.test", "", false);
    believed(s, conf, "other.test", "good.test", true);
    believed(s, conf, "good.test", "other.test", false);
    believed(s, conf, "127.0.0.1", "", true);
    believed(s, conf, "::1", "", true);
    believed(s, conf, "127.0.0.2", "", false);

    call(s, conf, &c, "good.test", false);
    is_str(c.at.sni, "good.test", "SNI is the host");
    c = (struct shake){0};
    call(s, conf, &c, "127.0.0.1", false);
    is_str(c.at.sni, "", "but not an address");

    cert_make(&self, &(struct cert_conf){.names = good_names});
    cert_make(&expired,
              &(struct cert_conf){good_names, &ca, false, -7200, -3600});
    cert_make(&early, &(struct cert_conf){good_names, &ca, false, 3600, 7200});
    refused(s, conf, &self, "the certificate is self-signed");
    refused(s, conf, &expired, "the certificate has expired");
    refused(s, conf, &early, "the certificate is not valid yet");
    refused(without, bare, &good,
            "the certificate was issued by an unknown CA");
    cert_clear(&self);
    cert_clear(&expired);
    cert_clear(&early);
    is_str(cert_text(0), "the certificate is not trusted", "any other reason");
    secure_free(s);
    secure_free(without);
    config_give(conf);
    config_give(bare);
}

static void
insecure(void)
{
    char *sets[] = {"upstream.insecure=*.lab.test"};
    struct config *conf = settings(sets, 1), *strict = settings(NULL, 0);
    struct secure *s = trusting(conf);
    struct shake c = {0};

    call(s, conf, &c, "x.lab.test", true);
    is_int(c.why, WHY_NONE, "a host that is listed is not verified");
    ok(c.up.insecure, "and said to be so");
    c = (struct shake){0};
    call(s, conf, &c, "x.lab.test", true);
    ok(c.at.resumed, "its sessions are resumed");
    c = (struct shake){0};
    call(s, strict, &c, "x.lab.test", false);
    ok(!c.at.resumed, "but not by one that has to verify");
    is_int(c.why, WHY_CERT, "which refuses the certificate");
    c = (struct shake){0};
    call(s, conf, &c, "lab.example", false);
    is_int(c.why, WHY_CERT, "another host is verified");
    secure_free(s);
    config_give(conf);
    config_give(strict);
}

static void
trust_store(void)
{
    char path[600], set[700];
    char *sets[] = {set};
    struct config *conf;

    snprintf(path, sizeof path, "%s/empty.pem", dir_root);
    NEED(fclose(fopen(path, "w")) == 0);
    snprintf(set, sizeof set, "upstream.upstream_ca=%s", path);
    conf = settings(sets, 1);
    ok(secure_new(conf, err, sizeof err) == NULL, "a CA file without a CA");
    ok(strstr(err, path) != NULL, "is named: %s", err);
    NEED(unlink(path) == 0);
    ok(secure_new(conf, err, sizeof err) == NULL, "a CA file that is missing");
    ok(strstr(err, path) != NULL, "is named: %s", err);
    config_give(conf);
    secure_free(NULL);
}

/* ---- what is remembered -------------------------------------------------- */

static bool
has_name(const struct names *names, const char *name)
{
    for (size_t at = 0; at < names->len; at += strlen(names->at + at) + 1)
        if (strcmp(names->at + at, name) == 0)
            return true;
    return false;
}

static void
learning(void)
{
    char *sets[] = {ca_set};
    struct config *conf = settings(sets, 1);
    struct secure *s = trusting(conf);
    struct shake c = {.at.alpn = "http/1.1"};
    struct origin other;
    struct known known;

    call(s, conf, &c, "good.test", false);
    ok(secure_known(s, &c.up.origin, &known), "an origin is remembered");
    is_int(known.alpn, ALPN_HTTP1, "its protocol");
    for (size_t i = 0; good_names[i] != NULL; i++)
        ok(has_name(&known.names, good_names[i]), "its name %s", good_names[i]);
    other = c.up.origin;
    other.port = 8443;
    ok(!secure_known(s, &other, &known), "another port is another origin");
    other = c.up.origin;
    snprintf(other.sni, sizeof other.sni, "a.wild.test");
    ok(!secure_known(s, &other, &known), "another SNI, too");

    c = (struct shake){.at.alpn = "h2"};
    call(s, conf, &c, "good.test", false);
    ok(secure_known(s, &c.up.origin, &known) && known.alpn == ALPN_H2,
       "what it chose last counts");
    c = (struct shake){0};
    call(s, conf, &c, "good.test", false);
    ok(secure_known(s, &c.up.origin, &known) && known.alpn == 0,
       "also if that was nothing");

    c = (struct shake){.at = {.prio = "NORMAL:-VERS-ALL:+VERS-TLS1.1"}};
    call(s, conf, &c, "good.test", false);
    ok(c.why == WHY_TLS || c.why == WHY_ALERT, "TLS 1.1 is not spoken");
    ok(!secure_known(s, &c.up.origin, &known), "one that failed is forgotten");
    secure_free(s);
    config_give(conf);
}

static void
resumption(const char *prio)
{
    char *sets[] = {ca_set};
    struct config *conf = settings(sets, 1);
    struct secure *s = trusting(conf);
    struct shake c = {.at.prio = prio};

    call(s, conf, &c, "good.test", true);
    is_int(c.why, WHY_NONE, "%s: a full handshake", prio);
    ok(!c.at.resumed, "  at first");
    ok(c.up.ticket_saved, "  its ticket is kept");
    c = (struct shake){.at.prio = prio};
    call(s, conf, &c, "good.test", true);
    is_int(c.why, WHY_NONE, "  again");
    ok(c.at.resumed, "  resumed");
    c = (struct shake){.at.prio = prio};
    call(s, conf, &c, "a.wild.test", true);
    ok(!c.at.resumed, "  another host is not");
    secure_free(s);
    config_give(conf);
}

static void
bounds(void)
{
    char *sets[] = {"upstream.insecure=*"};
    struct config *conf = settings(sets, 1);
    struct secure *s = trusting(conf);
    struct origin o = {.tls = true, .port = 443};
    struct known known;
    int n = 0;

    for (int i = 0; i < MEMORY + 2; i++) {
        struct shake c = {0};
        char host[32];

        snprintf(host, sizeof host, "n%d.test", i);
        call(s, conf, &c, host, false);
        if (c.why != WHY_NONE)
            break;
        n++;
        snprintf(o.host, sizeof o.host, "n0.test");
        if (!secure_known(s, &o, &known)) /* asked for: so not the oldest */
            break;
    }
    is_int(n, MEMORY + 2, "many origins, one of them used again and again");
    snprintf(o.host, sizeof o.host, "n%d.test", MEMORY + 1);
    ok(secure_known(s, &o, &known), "the last one is remembered");
    snprintf(o.host, sizeof o.host, "n3.test");
    ok(secure_known(s, &o, &known), "and the 512 used last");
    snprintf(o.host, sizeof o.host, "n1.test");
    ok(!secure_known(s, &o, &known), "the oldest is forgotten");
    snprintf(o.host, sizeof o.host, "n2.test");
    ok(!secure_known(s, &o, &known), "and the next");
    secure_free(s);
    config_give(conf);
}

int
main(void)
{
    char path[550];

    snprintf(path, sizeof path, "%s/ca.pem", dir_make());
    snprintf(ca_set, sizeof ca_set, "upstream.upstream_ca=%s", path);
    cert_make(&ca, &(struct cert_conf){.ca = true});
    cert_make(&good, &(struct cert_conf){.names = good_names, .by = &ca});
    cert_write(&ca, path);
    NEED(gnutls_session_ticket_key_generate(&ticket_key) == 0);
    verification();
    insecure();
    trust_store();
    learning();
    resumption("NORMAL:-VERS-ALL:+VERS-TLS1.3");
    resumption("NORMAL:-VERS-ALL:+VERS-TLS1.2");
    bounds();
    gnutls_free(ticket_key.data);
    cert_clear(&ca);
    cert_clear(&good);
    dir_remove();
    return done_testing();
}
