/*
 * origin.c - the server behind every proxy that bench/run measures.
 *
 *   origin CA.pem CA-KEY.pem
 *
 * Listens on three loopback ports of its own choice and prints them as
 * "http=N tls=N raw=N": HTTP/1.1, the same over TLS, and the raw protocol of
 * wire.h.  Ends when standard input does, or on SIGTERM.
 *
 * HTTP (RFC 9112, as much as a measurement needs): "GET /N" is answered with N
 * bytes; a body of Content-Length is read and counted first; one request after
 * another on a connection.  TLS: a leaf is made for each server name asked for
 * (RFC 6066), all with one P-256 key, signed by the CA given; each names
 * 127.0.0.1 as well.
 *
 * Owns     all connections; the leaves, which live as long as the program.
 * Threads  one, around one level-triggered epoll.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/abstract.h>
#include <gnutls/x509.h>

#include "wire.h"

enum {
    HEAD_MAX = 8192,  /* of a request head */
    N_LEAVES = 16384, /* places in their table: a power of two */
    DAY = 24 * 60 * 60,
};

enum kind { KIND_HTTP, KIND_TLS, KIND_RAW, KIND_STDIN };

struct peer {
    enum kind kind;
    bool listens, shaking, echo;
    bool wants_out; /* what epoll was told last */
    bool wants_in;
    struct wire w;
    uint64_t left; /* of a body or an upload that comes in */
    struct debt debt;
    bool answering; /* a request waits for its body's end */
    size_t n_head;  /* bytes of an unfinished head or command */
    uint64_t size;  /* of the answer that waits */
    char head[HEAD_MAX];
};

struct leaf {
    char name[256];
    gnutls_pcert_st cert;
};

static int poll_fd;
static gnutls_x509_crt_t ca;
static gnutls_x509_privkey_t ca_key, leaf_x509;
static gnutls_privkey_t leaf_key;
static gnutls_certificate_credentials_t cred;
static gnutls_datum_t ticket_key;
static struct leaf *leaves[N_LEAVES];

static void
die(const char *what, int rc)
{
    fprintf(stderr, "origin: %s: %s\n", what,
            rc < 0 ? gnutls_strerror(rc) : strerror(errno));
    exit(1);
}

static void
must(const char *what, int rc)
{
    if (rc < 0)
        die(what, rc);
}

/* ---- certificates -------------------------------------------------------- */

static gnutls_datum_t
load_file(const char *path)
{
    gnutls_datum_t d;

    must(path, gnutls_load_file(path, &d));
    return d;
}

static void
load_ca(const char *pem, const char *key_pem)
{
    gnutls_datum_t crt = load_file(pem), key = load_file(key_pem);

    must("ca", gnutls_x509_crt_init(&ca));
    must("ca", gnutls_x509_crt_import(ca, &crt, GNUTLS_X509_FMT_PEM));
    must("ca key", gnutls_x509_privkey_init(&ca_key));
    must("ca key",
         gnutls_x509_privkey_import(ca_key, &key, GNUTLS_X509_FMT_PEM));
    must("key", gnutls_x509_privkey_init(&leaf_x509));
    must("key", gnutls_x509_privkey_generate(
                    leaf_x509, GNUTLS_PK_ECDSA,
                    GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0));
    must("key", gnutls_privkey_init(&leaf_key));
    must("key", gnutls_privkey_import_x509(leaf_key, leaf_x509, 0));
    gnutls_free(crt.data);
    gnutls_free(key.data);
}

static void
leaf_sign(gnutls_x509_crt_t crt, const char *name)
{
    static const unsigned char loopback[4] = {127, 0, 0, 1};
    static uint32_t serial;
    unsigned char number[5] = {1};

    serial++;
    memcpy(number + 1, &serial, sizeof serial);
    gnutls_x509_crt_set_version(crt, 3);
    gnutls_x509_crt_set_serial(crt, number, sizeof number);
    gnutls_x509_crt_set_activation_time(crt, time(NULL) - DAY);
    gnutls_x509_crt_set_expiration_time(crt, time(NULL) + 30 * DAY);
    gnutls_x509_crt_set_key(crt, leaf_x509);
    gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, name,
                                  (unsigned)strlen(name));
    gnutls_x509_crt_set_subject_alt_name(
        crt, GNUTLS_SAN_DNSNAME, name, (unsigned)strlen(name), GNUTLS_FSAN_SET);
    gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, loopback,
                                         sizeof loopback, GNUTLS_FSAN_APPEND);
    gnutls_x509_crt_set_basic_constraints(crt, 0, -1);
    gnutls_x509_crt_set_key_usage(crt, GNUTLS_KEY_DIGITAL_SIGNATURE);
    gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_TLS_WWW_SERVER, 0);
    must("sign", gnutls_x509_crt_sign2(crt, ca, ca_key, GNUTLS_DIG_SHA256, 0));
}

static struct leaf *
leaf_new(const char *name)
{
    struct leaf *l = calloc(1, sizeof *l);
    gnutls_x509_crt_t crt;

    if (l == NULL)
        die("leaf", 0);
    must("leaf", gnutls_x509_crt_init(&crt));
    leaf_sign(crt, name);
    snprintf(l->name, sizeof l->name, "%s", name);
    must("leaf", gnutls_pcert_import_x509(&l->cert, crt, 0));
    gnutls_x509_crt_deinit(crt);
    return l;
}

/* The table never fills: a run asks for some thousand names. */
static struct leaf *
leaf_find(const char *name)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    size_t i;

    for (const char *c = name; *c != '\0'; c++)
        h = (h ^ (unsigned char)*c) * 16777619u;
    for (i = h % N_LEAVES; leaves[i] != NULL; i = (i + 1) % N_LEAVES)
        if (strcmp(leaves[i]->name, name) == 0)
            return leaves[i];
    return leaves[i] = leaf_new(name);
}

static int
retrieve(gnutls_session_t tls, const gnutls_datum_t *rdn, int n_rdn,
         const gnutls_pk_algorithm_t *pk, int n_pk, gnutls_pcert_st **cert,
         unsigned *n_cert, gnutls_privkey_t *key)
{
    char name[256];
    size_t len = sizeof name - 1;
    unsigned type;

    (void)rdn, (void)n_rdn, (void)pk, (void)n_pk;
    if (gnutls_server_name_get(tls, name, &len, &type, 0) == 0)
        name[len] = '\0';
    else
        strcpy(name, "localhost");
    *cert = &leaf_find(name)->cert;
    *n_cert = 1;
    *key = leaf_key;
    return 0;
}

/* ---- connections --------------------------------------------------------- */

static void
peer_watch(struct peer *p, int op)
{
    struct epoll_event e = {.data.ptr = p};

    if (p->wants_in)
        e.events |= EPOLLIN;
    if (p->wants_out)
        e.events |= EPOLLOUT;
    if (epoll_ctl(poll_fd, op, p->w.fd, &e) != 0)
        die("epoll_ctl", 0);
}

static struct peer *
peer_new(enum kind kind, struct wire w)
{
    struct peer *p = malloc(sizeof *p);

    if (p == NULL)
        die("peer", 0);
    memset(p, 0, offsetof(struct peer, head));
    p->kind = kind;
    p->w = w;
    p->wants_in = true;
    p->shaking = kind == KIND_TLS;
    peer_watch(p, EPOLL_CTL_ADD);
    return p;
}

static void
peer_free(struct peer *p)
{
    wire_close(&p->w);
    free(p);
}

static uint16_t
listen_for(enum kind kind)
{
    uint16_t port = 0;
    struct wire w = {.fd = wire_listen(&port)};

    if (w.fd < 0)
        die("listen", 0);
    peer_new(kind, w)->listens = true;
    return port;
}

static void
accept_all(struct peer *listener)
{
    struct wire w;

    while (wire_accept(&w, listener->w.fd)) {
        if (listener->kind == KIND_TLS &&
            !wire_server_tls(&w, cred, &ticket_key))
            wire_close(&w);
        else
            peer_new(listener->kind, w);
    }
}

/* ---- HTTP ---------------------------------------------------------------- */

static uint64_t
field_number(const char *head, const char *name)
{
    const char *at = strcasestr(head, name);

    return at == NULL ? 0 : strtoull(at + strlen(name), NULL, 10);
}

/* The path's number, in origin-form or absolute-form. */
static uint64_t
target_number(const char *head)
{
    const char *at = strchr(head, ' ');

    if (at == NULL)
        return 0;
    if (strncasecmp(++at, "http://", 7) == 0)
        at += 7 + strcspn(at + 7, "/ ");
    return *at == '/' ? strtoull(at + 1, NULL, 10) : 0;
}

static void
http_answer(struct peer *p)
{
    p->answering = false;
    p->debt.len = (size_t)snprintf(
        p->debt.text, sizeof p->debt.text,
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        "Content-Length: %llu\r\n\r\n",
        (unsigned long long)p->size);
    p->debt.xs = p->size;
}

/* A whole head stands in p->head, NUL behind it. */
static bool
http_request(struct peer *p)
{
    if (strcasestr(p->head, "\r\ntransfer-encoding:") != NULL) {
        fprintf(stderr, "origin: a request body without a length\n");
        return false;
    }
    p->left = field_number(p->head, "\r\ncontent-length:");
    p->size = target_number(p->head);
    p->answering = true;
    return true;
}

static bool
http_input(struct peer *p, const char *at, size_t n)
{
    while (n > 0 || (p->answering && p->left == 0)) {
        if (p->answering) {
            size_t part = n < p->left ? n : (size_t)p->left;

            p->left -= part;
            at += part;
            n -= part;
            if (p->left > 0)
                return true;
            http_answer(p); /* what follows in n would be pipelined */
            return n == 0;
        }
        size_t had = p->n_head, room = HEAD_MAX - 1 - had;
        size_t part = n < room ? n : room;
        char *end;

        memcpy(p->head + had, at, part);
        p->head[had + part] = '\0';
        if ((end = strstr(p->head, "\r\n\r\n")) == NULL) {
            p->n_head = had + part;
            return p->n_head < HEAD_MAX - 1;
        }
        part = (size_t)(end + 4 - p->head) - had;
        at += part;
        n -= part;
        end[2] = '\0';
        p->n_head = 0;
        if (!http_request(p))
            return false;
    }
    return true;
}

/* ---- the raw protocol ---------------------------------------------------- */

static void
raw_command(struct peer *p)
{
    uint64_t n = wire_count(p->head);

    p->n_head = 0;
    p->echo = p->head[0] == 'E';
    if (p->head[0] == 'D')
        p->debt.xs += n;
    else
        p->left = n;
}

static bool
raw_input(struct peer *p, const char *at, size_t n)
{
    while (n > 0) {
        size_t part = n < p->left ? n : (size_t)p->left;

        if (part > 0) {
            at += part;
            n -= part;
            p->left -= part;
            if (p->echo)
                p->debt.xs += part;
            else if (p->left == 0)
                p->debt.xs += RAW_ACK;
            continue;
        }
        if (p->n_head == 0 && strchr("DUE", *at) == NULL)
            return false;
        p->head[p->n_head++] = *at++;
        n--;
        if (p->n_head == RAW_CMD)
            raw_command(p);
    }
    return true;
}

/* ---- the loop ------------------------------------------------------------ */

static bool
take(struct peer *p)
{
    ssize_t n = wire_read(&p->w, wire_in, sizeof wire_in);

    if (n == WIRE_AGAIN)
        return true;
    if (n <= 0)
        return false;
    return p->kind == KIND_RAW ? raw_input(p, wire_in, (size_t)n)
                               : http_input(p, wire_in, (size_t)n);
}

static bool
shake(struct peer *p)
{
    ssize_t rc = wire_handshake(&p->w);

    p->shaking = rc == WIRE_AGAIN;
    return rc != WIRE_DEAD;
}

static void
peer_event(struct peer *p, uint32_t events)
{
    bool out, in, good = true;

    if (p->shaking)
        good = shake(p);
    else if (events & ~(uint32_t)EPOLLOUT && p->wants_in)
        good = take(p);
    if (!good || !wire_pay(&p->w, &p->debt)) {
        peer_free(p);
        return;
    }
    out = wire_owes(&p->debt);
    in = !(out && (p->echo || p->kind != KIND_RAW)); /* answer, then read on */
    if (out == p->wants_out && in == p->wants_in)
        return;
    p->wants_out = out;
    p->wants_in = in;
    peer_watch(p, EPOLL_CTL_MOD);
}

int
main(int argc, char **argv)
{
    struct epoll_event ready[256];
    struct wire in = {.fd = STDIN_FILENO};
    unsigned http, tls, raw;

    if (argc != 3) {
        fprintf(stderr, "usage: origin CA.pem CA-KEY.pem\n");
        return 2;
    }
    wire_setup();
    load_ca(argv[1], argv[2]);
    must("credentials", gnutls_certificate_allocate_credentials(&cred));
    must("tickets", gnutls_session_ticket_key_generate(&ticket_key));
    gnutls_certificate_set_retrieve_function2(cred, retrieve);
    if ((poll_fd = epoll_create1(0)) < 0)
        die("epoll", 0);
    http = listen_for(KIND_HTTP);
    tls = listen_for(KIND_TLS);
    raw = listen_for(KIND_RAW);
    peer_new(KIND_STDIN, in);
    printf("http=%u tls=%u raw=%u\n", http, tls, raw);
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(poll_fd, ready, 256, -1);

        for (int i = 0; i < n; i++) {
            struct peer *p = ready[i].data.ptr;

            if (p->kind == KIND_STDIN)
                return 0;
            if (p->listens)
                accept_all(p);
            else
                peer_event(p, ready[i].events);
        }
    }
}
