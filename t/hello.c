/*
 * t/hello.c - the ClientHello reader: what GnuTLS sends, what nobody should.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include <gnutls/gnutls.h>

#include "proxy.h"
#include "t/tap.h"

struct bytes {
    size_t len;
    unsigned char at[80000];
};

/* ---- what GnuTLS sends --------------------------------------------------- */

static ssize_t
hello_push(gnutls_transport_ptr_t to, const void *at, size_t len)
{
    struct bytes *b = to;

    if (len > sizeof b->at - b->len)
        return -1;
    memcpy(b->at + b->len, at, len);
    b->len += len;
    return (ssize_t)len;
}

static ssize_t
hello_pull(gnutls_transport_ptr_t from, void *at, size_t cap)
{
    (void)from;
    (void)at;
    (void)cap;
    errno = EAGAIN;
    return -1;
}

static int
hello_pull_ready(gnutls_transport_ptr_t from, unsigned ms)
{
    (void)from;
    (void)ms;
    return 0;
}

/* The first flight of a client; sni, alpn (one space between): NULL: none. */
static void
hello_make(struct bytes *out, const char *priority, const char *sni,
           const char *alpn)
{
    gnutls_session_t s;
    gnutls_certificate_credentials_t cred;
    gnutls_datum_t names[8];
    char text[256];
    unsigned n = 0;
    char *save, *one;

    out->len = 0;
    gnutls_init(&s, GNUTLS_CLIENT | GNUTLS_NONBLOCK);
    gnutls_certificate_allocate_credentials(&cred);
    gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, cred);
    if (gnutls_priority_set_direct(s, priority, NULL) != 0)
        diag("  bad priority %s", priority);
    if (sni != NULL)
        gnutls_server_name_set(s, GNUTLS_NAME_DNS, sni, strlen(sni));
    snprintf(text, sizeof text, "%s", alpn != NULL ? alpn : "");
    for (one = strtok_r(text, " ", &save); one != NULL && n < 8;
         one = strtok_r(NULL, " ", &save))
        names[n++] =
            (gnutls_datum_t){(unsigned char *)one, (unsigned)strlen(one)};
    if (n > 0)
        gnutls_alpn_set_protocols(s, names, n, 0);
    gnutls_transport_set_ptr(s, out);
    gnutls_transport_set_push_function(s, hello_push);
    gnutls_transport_set_pull_function(s, hello_pull);
    gnutls_transport_set_pull_timeout_function(s, hello_pull_ready);
    if (gnutls_handshake(s) != GNUTLS_E_AGAIN)
        diag("  no ClientHello");
    gnutls_deinit(s);
    gnutls_certificate_free_credentials(cred);
}

/* ---- what we make ourselves ---------------------------------------------- */

static void
put(struct bytes *b, const void *at, size_t len)
{
    if (len > sizeof b->at - b->len)
        abort();
    if (len > 0)
        memcpy(b->at + b->len, at, len);
    b->len += len;
}

static void
put_number(struct bytes *b, size_t width, size_t n)
{
    unsigned char at[3] = {(unsigned char)(n >> 16), (unsigned char)(n >> 8),
                           (unsigned char)n};

    put(b, at + 3 - width, width);
}

/* A vector with its length in front. */
static void
put_vector(struct bytes *b, size_t width, const void *at, size_t len)
{
    put_number(b, width, len);
    put(b, at, len);
}

static void
put_extension(struct bytes *b, size_t type, const void *at, size_t len)
{
    put_number(b, 2, type);
    put_vector(b, 2, at, len);
}

/* server_name with one name of the given type. */
static void
put_name(struct bytes *b, size_t type, const void *name, size_t len)
{
    static struct bytes list, ext;

    list.len = ext.len = 0;
    put_number(&list, 1, type);
    put_vector(&list, 2, name, len);
    put_vector(&ext, 2, list.at, list.len);
    put_extension(b, 0, ext.at, ext.len);
}

/* ALPN; names as on the wire: length, name, length, name. */
static void
put_alpn(struct bytes *b, const void *names, size_t len)
{
    static struct bytes ext;

    ext.len = 0;
    put_vector(&ext, 2, names, len);
    put_extension(b, 16, ext.at, ext.len);
}

struct shape { /* of a ClientHello; all 0: an ordinary one */
    size_t record_type, version, message, body_version; /* 0: as it should be */
    size_t id_len;
    size_t suites_len, methods_len; /* 0: 2 and 1 */
    size_t trailing;                /* bytes behind the extensions */
    bool bare;                      /* no extensions at all */
    size_t cut;                     /* record length; 0: 16384 */
};

/* Cut a message into records of at most `cut` bytes. */
static void
put_records(struct bytes *b, const struct shape *shape,
            const struct bytes *message)
{
    size_t cut = shape->cut != 0 ? shape->cut : 16384;

    for (size_t at = 0; at < message->len; at += cut) {
        size_t n = message->len - at < cut ? message->len - at : cut;

        put_number(b, 1, shape->record_type != 0 ? shape->record_type : 22);
        put_number(b, 2, shape->version != 0 ? shape->version : 0x0301);
        put_vector(b, 2, message->at + at, n);
    }
}

static void
hello_build(struct bytes *out, const struct shape *s, const struct bytes *ext)
{
    static const unsigned char zero[300];
    static struct bytes body, message;

    body.len = message.len = out->len = 0;
    put_number(&body, 2, s->body_version != 0 ? s->body_version : 0x0303);
    put(&body, zero, 32);
    put_vector(&body, 1, zero, s->id_len);
    put_vector(&body, 2, zero, s->suites_len != 0 ? s->suites_len : 2);
    put_vector(&body, 1, zero, s->methods_len != 0 ? s->methods_len : 1);
    if (!s->bare)
        put_vector(&body, 2, ext->at, ext->len);
    put(&body, zero, s->trailing);
    put_number(&message, 1, s->message != 0 ? s->message : 1);
    put_vector(&message, 3, body.at, body.len);
    put_records(out, s, &message);
}

/* A copy of exactly len bytes, so that a sanitizer sees one too many read. */
static enum why
parse(const void *at, size_t len, struct hello *h)
{
    void *exact = malloc(len > 0 ? len : 1);
    enum why why;

    if (exact == NULL)
        abort();
    if (len > 0)
        memcpy(exact, at, len);
    why = hello_parse(exact, len, h);
    free(exact);
    return why;
}

/* Every shorter piece asks for more, and writes nothing. */
static bool
cut_everywhere(const struct bytes *b)
{
    struct hello h = {.sni = "untouched", .alpn = 77};

    for (size_t cut = 0; cut < b->len; cut++)
        if (parse(b->at, cut, &h) != WHY_MORE ||
            strcmp(h.sni, "untouched") != 0 || h.alpn != 77) {
            diag("  cut at %zu of %zu", cut, b->len);
            return false;
        }
    return true;
}

/* The same message in records of `size` bytes. */
static void
refragment(struct bytes *out, const struct bytes *in, size_t size)
{
    static struct bytes message;
    const struct shape s = {.cut = size};

    message.len = out->len = 0;
    for (size_t at = 0; at + 5 <= in->len;) {
        size_t n = (size_t)in->at[at + 3] << 8 | in->at[at + 4];

        put(&message, in->at + at + 5, n);
        at += 5 + n;
    }
    put_records(out, &s, &message);
}

/* ---- tests --------------------------------------------------------------- */

static void
test_gnutls(void)
{
    static const struct {
        const char *priority, *sni, *alpn, *want_sni;
        unsigned want_alpn;
    } all[] = {
        {"NORMAL", NULL, NULL, "", 0},
        {"NORMAL", "www.example.com", NULL, "www.example.com", 0},
        {"NORMAL", "WWW.Example.COM", "http/1.1", "www.example.com",
         ALPN_HTTP1},
        {"NORMAL", "a.test", "h2 http/1.1", "a.test", ALPN_H2 | ALPN_HTTP1},
        {"NORMAL", "a.test", "h2", "a.test", ALPN_H2},
        {"NORMAL", NULL, "http/1.0", "", ALPN_HTTP10},
        {"NORMAL", "a.test", "acme-tls/1 http/1.1", "a.test",
         ALPN_OTHER | ALPN_HTTP1},
        {"NORMAL", "m\xc3\xbcnchen.test", NULL, "xn--mnchen-3ya.test", 0},
        {"NORMAL:-VERS-ALL:+VERS-TLS1.2", "a.test", "http/1.1", "a.test",
         ALPN_HTTP1},
        {"NORMAL:-VERS-ALL:+VERS-TLS1.3", "a.test", "h2", "a.test", ALPN_H2},
        {"NORMAL:-VERS-ALL:+VERS-TLS1.1:+VERS-TLS1.0", "a.test", NULL, "a.test",
         0},
    };
    static struct bytes raw, cut;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct hello h = {.alpn = 77};

        hello_make(&raw, all[i].priority, all[i].sni, all[i].alpn);
        is_int(parse(raw.at, raw.len, &h), WHY_NONE, "a ClientHello of %zu",
               raw.len);
        is_str(h.sni, all[i].want_sni, "its name");
        is_int(h.alpn, all[i].want_alpn, "its offer");
        ok(cut_everywhere(&raw), "unfinished, it asks for more");
        put(&raw, "GET / HTTP/1.1\r\n", 16);
        is_int(parse(raw.at, raw.len, &h), WHY_NONE,
               "what follows is not looked at");
        raw.len -= 16;
        for (size_t size = 1; size <= 600; size += size < 50 ? 1 : 97) {
            struct hello again = {.alpn = 77};

            refragment(&cut, &raw, size);
            if (parse(cut.at, cut.len, &again) != WHY_NONE ||
                strcmp(again.sni, h.sni) != 0 || again.alpn != h.alpn ||
                !cut_everywhere(&cut)) {
                ok(false, "in records of %zu it reads the same", size);
                break;
            }
            if (size >= 500)
                ok(true, "in records of 1 to %zu it reads the same", size);
        }
    }
}

static void
shape_is(const struct shape *s, const struct bytes *ext, enum why want,
         const char *what)
{
    static struct bytes raw;
    struct hello h = {.sni = "untouched"};

    hello_build(&raw, s, ext);
    if (!is_int(parse(raw.at, raw.len, &h), want, "%s", what))
        diag("  %zu bytes, sni %s", raw.len, h.sni);
    if (want != WHY_NONE)
        is_str(h.sni, "untouched", "  and nothing is written");
}

static void
test_shapes(void)
{
    static const struct bytes none;
    static const struct {
        const char *what;
        struct shape shape;
        enum why want;
    } all[] = {
        {"an ordinary one", {.id_len = 32}, WHY_NONE},
        {"without a session id", {.id_len = 0}, WHY_NONE},
        {"without extensions", {.bare = true}, WHY_NONE},
        {"record version 3.3", {.version = 0x0303}, WHY_NONE},
        {"record version 3.0", {.version = 0x0300}, WHY_NONE},
        {"record version 2.0", {.version = 0x0200}, WHY_PROTO},
        {"record version 4.0", {.version = 0x0400}, WHY_PROTO},
        {"an alert", {.record_type = 21}, WHY_PROTO},
        {"application data", {.record_type = 23}, WHY_PROTO},
        {"a ServerHello", {.message = 2}, WHY_PROTO},
        {"hello version 2.0", {.body_version = 0x0200}, WHY_PROTO},
        {"session id of 33", {.id_len = 33}, WHY_PROTO},
        {"odd cipher suites", {.suites_len = 3}, WHY_PROTO},
        {"many cipher suites", {.suites_len = 300}, WHY_NONE},
        {"many methods", {.methods_len = 255}, WHY_NONE},
        {"bytes behind the extensions", {.trailing = 1}, WHY_PROTO},
        {"bytes without extensions", {.bare = true, .trailing = 1}, WHY_PROTO},
    };
    static struct bytes ext;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        shape_is(&all[i].shape, &none, all[i].want, all[i].what);

    ext.len = 0;
    put_extension(&ext, 0x0a0a, "", 0);
    put_extension(&ext, 0xfefe, "whatever", 8);
    put_name(&ext, 0, "a.test", 6);
    put_extension(&ext, 0x1a1a, "\0", 1);
    shape_is(&all[0].shape, &ext, WHY_NONE, "GREASE and extensions to come");
    ext.len -= 1;
    shape_is(&all[0].shape, &ext, WHY_PROTO, "an extension beyond its list");
    put(&ext, "\0", 1);
    put(&ext, "\1", 1);
    shape_is(&all[0].shape, &ext, WHY_PROTO, "half an extension");
}

static void
name_is(const void *name, size_t len, const char *want)
{
    static const struct shape ordinary;
    static struct bytes ext, raw;
    struct hello h = {.sni = "untouched"};
    enum why why;

    ext.len = 0;
    put_name(&ext, 0, name, len);
    hello_build(&raw, &ordinary, &ext);
    why = parse(raw.at, raw.len, &h);
    if (want != NULL)
        ok(why == WHY_NONE && strcmp(h.sni, want) == 0, "name %s is %s",
           (const char *)name, want);
    else
        ok(why == WHY_PROTO && strcmp(h.sni, "untouched") == 0,
           "a bad name of %zu is refused", len);
    if (strcmp(h.sni, want != NULL ? want : "untouched") != 0)
        diag("  why %s, name %s", why_name(why), h.sni);
}

static void
test_names(void)
{
    static const char *const bad[] = {"",
                                      ".",
                                      "..",
                                      ".a.test",
                                      "a..test",
                                      "a b",
                                      "a/b",
                                      "a:1",
                                      "::1",
                                      "[::1]",
                                      "a\nb",
                                      "\x7f",
                                      "m\xc3\xbc.test",
                                      "a@b",
                                      "*.test",
                                      "a.test..",
                                      "a%2e"};
    char text[300];

    name_is("a.test", 6, "a.test");
    name_is("A.TEST", 6, "a.test");
    name_is("a.test.", 7, "a.test");
    name_is("_x-1.test", 9, "_x-1.test");
    name_is("127.0.0.1", 9, "127.0.0.1");
    name_is("a", 1, "a");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        name_is(bad[i], strlen(bad[i]), NULL);
    name_is("a.test\0", 7, NULL);
    name_is("\0a.test", 7, NULL);
    name_is("a\0.test", 7, NULL);

    memset(text, 'a', sizeof text);
    name_is(text, 64, NULL);
    for (size_t i = 63; i < sizeof text; i += 64)
        text[i] = '.';
    text[255] = '\0';
    name_is(text, 255, text);
    text[255] = 'a';
    name_is(text, 256, NULL);
    name_is(text, 299, NULL);
}

static void
test_name_lists(void)
{
    static const struct shape ordinary;
    static struct bytes ext, list, raw;
    struct hello h = {.alpn = 0};

    ext.len = 0;
    put_extension(&ext, 0, "", 0);
    shape_is(&ordinary, &ext, WHY_PROTO, "an empty server_name");
    ext.len = 0;
    put_extension(&ext, 0, "\0\0", 2);
    shape_is(&ordinary, &ext, WHY_PROTO, "an empty list of names");
    ext.len = 0;
    put_name(&ext, 0, "a.test", 6);
    put_name(&ext, 0, "a.test", 6);
    shape_is(&ordinary, &ext, WHY_PROTO, "server_name twice");

    ext.len = list.len = 0;
    put(&list, "\0\12\0\0\3a.b\0\0\1c", 12);
    put_extension(&ext, 0, list.at, list.len);
    shape_is(&ordinary, &ext, WHY_PROTO, "two host names");
    ext.len = list.len = 0;
    put(&list, "\0\13\7\0\2xy\0\0\3a.b", 13);
    put_extension(&ext, 0, list.at, list.len);
    hello_build(&raw, &ordinary, &ext);
    ok(parse(raw.at, raw.len, &h) == WHY_NONE && strcmp(h.sni, "a.b") == 0,
       "a name of a type to come is skipped");
    ext.len = 0;
    put_extension(&ext, 0, "\0\5\0\0\3a.bX", 9);
    shape_is(&ordinary, &ext, WHY_PROTO, "a list longer than it holds");
    ext.len = 0;
    put_extension(&ext, 0, "\0\6\0\0\3a.bX", 9);
    shape_is(&ordinary, &ext, WHY_PROTO, "bytes behind the list");
    ext.len = 0;
    put_extension(&ext, 0, "\0\6\0\0\4a.b", 8);
    shape_is(&ordinary, &ext, WHY_PROTO, "a name longer than its list");
}

static void
alpn_is(const void *names, size_t len, int want)
{
    static const struct shape ordinary;
    static struct bytes ext, raw;
    struct hello h = {.alpn = 77};
    enum why why;

    ext.len = 0;
    put_alpn(&ext, names, len);
    hello_build(&raw, &ordinary, &ext);
    why = parse(raw.at, raw.len, &h);
    if (want < 0)
        is_int(why, WHY_PROTO, "a bad offer of %zu is refused", len);
    else
        ok(why == WHY_NONE && (int)h.alpn == want, "an offer of %zu is %d", len,
           want);
}

static void
test_alpn(void)
{
    static const struct shape ordinary;
    static struct bytes ext;
    char all[3 * 16], name[256];

    alpn_is("\x08http/1.1", 9, ALPN_HTTP1);
    alpn_is("\2h2", 3, ALPN_H2);
    alpn_is("\2h2\x08http/1.1", 12, ALPN_H2 | ALPN_HTTP1);
    alpn_is("\x08http/1.0", 9, ALPN_HTTP10);
    alpn_is("\x08http/0.9", 9, ALPN_OTHER);
    alpn_is("\2H2", 3, ALPN_OTHER);
    alpn_is("\3h2c", 4, ALPN_OTHER);
    alpn_is("\2\x0a\x0a\2h2", 6, ALPN_H2);
    alpn_is("\2\x0a\x1a", 3, ALPN_OTHER);
    for (int i = 0; i < 16; i++) {
        all[3 * i] = 2;
        all[3 * i + 1] = all[3 * i + 2] = (char)(i << 4 | 0x0a);
    }
    alpn_is(all, sizeof all, 0);
    memset(name, 'x', sizeof name);
    name[0] = (char)255;
    alpn_is(name, sizeof name, ALPN_OTHER);
    alpn_is("", 0, -1);
    alpn_is("\0", 1, -1);
    alpn_is("\2h2\0", 4, -1);
    alpn_is("\3h2", 3, -1);
    ext.len = 0;
    put_alpn(&ext, "\2h2", 3);
    put_alpn(&ext, "\2h2", 3);
    shape_is(&ordinary, &ext, WHY_PROTO, "ALPN twice");
}

static void
test_large(void)
{
    static const struct shape small_records = {.cut = 1000}, ordinary;
    static struct bytes ext, raw;
    static unsigned char padding[65535];
    struct hello h = {.alpn = 0};

    ext.len = 0;
    put_extension(&ext, 21, padding, 40000);
    put_name(&ext, 0, "late.test", 9);
    hello_build(&raw, &ordinary, &ext);
    ok(parse(raw.at, raw.len, &h) == WHY_NONE &&
           strcmp(h.sni, "late.test") == 0,
       "%zu bytes over three records", raw.len);
    hello_build(&raw, &small_records, &ext);
    ok(parse(raw.at, raw.len, &h) == WHY_NONE &&
           strcmp(h.sni, "late.test") == 0,
       "%zu bytes over many", raw.len);
    is_int(parse(raw.at, raw.len - 1, &h), WHY_MORE, "one less is too few");

    ext.len = 0;
    put_extension(&ext, 21, padding, 65535 - 4);
    hello_build(&raw, &ordinary, &ext);
    is_int(parse(raw.at, 9, &h), WHY_LIMIT,
           "one that says it will be too large is refused at once");

    ext.len = 0;
    put_extension(&ext, 21, padding, 20000);
    hello_build(&raw, &(const struct shape){.cut = 2}, &ext);
    is_int(parse(raw.at, 65535, &h), WHY_MORE, "64 KiB of tiny records");
    is_int(parse(raw.at, 65536, &h), WHY_LIMIT, "and not a byte more");
    is_int(parse(raw.at, raw.len, &h), WHY_LIMIT, "not even when all is there");
}

static void
raw_is(const void *at, size_t len, enum why want, const char *what)
{
    struct hello h;

    is_int(parse(at, len, &h), want, "%s", what);
}

static void
test_records(void)
{
    struct hello h;

    is_int(hello_parse(NULL, 0, &h), WHY_MORE, "nothing yet");
    raw_is("G", 1, WHY_PROTO, "an HTTP request, by its first byte");
    raw_is("\x80\x2e\1\3\1", 5, WHY_PROTO, "an SSL 2 hello");
    raw_is("\x16\2", 2, WHY_PROTO, "major version 2, by the second byte");
    raw_is("\x16\3\1\0\0", 5, WHY_PROTO, "an empty record");
    raw_is("\x16\3\1\x40\1", 5, WHY_PROTO, "a record over 16384");
    raw_is("\x16\3\1\x40\0", 5, WHY_MORE, "a record of 16384");
    raw_is("\x16\3\1\0\4\1\0\0\0", 9, WHY_PROTO, "an empty ClientHello");
    raw_is("\x16\3\1\0\4\2", 6, WHY_PROTO, "a ServerHello, by its first byte");
    raw_is("\x16\3\1\0\1\1\x17\3\1\0\1", 11, WHY_PROTO,
           "another type of record in the middle");
    raw_is("\x16\3\1\0\1\1\x16\3\1\0\0", 11, WHY_PROTO,
           "an empty record in the middle");
}

/* Every byte another, and many at random: never a crash, never a bad name. */
static bool
answer_fits(const void *at, size_t len)
{
    struct hello h = {.alpn = 0};
    enum why why = parse(at, len, &h);

    if (why != WHY_NONE)
        return why == WHY_MORE || why == WHY_PROTO || why == WHY_LIMIT;
    for (const char *c = h.sni; *c != '\0'; c++)
        if (strchr("abcdefghijklmnopqrstuvwxyz0123456789-_.", *c) == NULL)
            return false;
    return (h.alpn &
            ~(ALPN_HTTP1 | ALPN_H2 | ALPN_HTTP10 | ALPN_OTHER | ALPN_H3)) == 0;
}

static void
test_mutations(void)
{
    static const unsigned char masks[] = {0x01, 0x02, 0x10, 0x80, 0xff};
    static struct bytes raw, cut;
    unsigned seed = 12345;
    int n_bad = 0;

    hello_make(&raw, "NORMAL", "www.example.com", "h2 http/1.1");
    refragment(&cut, &raw, 100);
    ok(raw.len > 0 && cut.len > raw.len, "a ClientHello to spoil");
    if (raw.len == 0 || cut.len == 0)
        return;
    for (size_t i = 0; i < cut.len; i++)
        for (size_t m = 0; m < sizeof masks; m++) {
            cut.at[i] ^= masks[m];
            n_bad += !answer_fits(cut.at, cut.len);
            cut.at[i] ^= masks[m];
        }
    is_int(n_bad, 0, "every byte changed on its own");
    n_bad = 0;
    for (int i = 0; i < 20000; i++) {
        static struct bytes bent;

        bent = i % 2 == 0 ? raw : cut;
        for (int n = rand_r(&seed) % 6; n >= 0; n--)
            bent.at[(size_t)rand_r(&seed) % bent.len] =
                (unsigned char)rand_r(&seed);
        n_bad += !answer_fits(bent.at, bent.len);
    }
    is_int(n_bad, 0, "several bytes changed at random");
}

/* ---- from an end --------------------------------------------------------- */

struct sender {
    int fd;
    const struct bytes *raw;
    size_t step;
};

static void *
sender_run(void *arg)
{
    struct sender *s = arg;

    for (size_t at = 0; at < s->raw->len; at += s->step) {
        size_t n = s->raw->len - at < s->step ? s->raw->len - at : s->step;

        if (send(s->fd, s->raw->at + at, n, MSG_NOSIGNAL) != (ssize_t)n)
            break;
    }
    return NULL;
}

static void
test_read(size_t step)
{
    static struct bytes raw;
    struct sender s = {.raw = &raw, .step = step};
    struct hello h = {.alpn = 0};
    struct fail f = {0};
    struct end e;
    pthread_t thread;
    int fds[2];

    hello_make(&raw, "NORMAL", "www.example.com", "http/1.1");
    if (!ok(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "two sockets"))
        return;
    s.fd = fds[1];
    end_init(&e, fds[0], SIDE_CLIENT, 5000);
    e.deadline = 4711;
    pthread_create(&thread, NULL, sender_run, &s);
    is_int(hello_read(&e, now_ms() + 5000, &h, &f), WHY_NONE,
           "a ClientHello that comes %zu bytes at a time", step);
    pthread_join(thread, NULL);
    is_str(h.sni, "www.example.com", "its name");
    is_int(e.deadline, 4711, "the end's deadline is what it was");
    ok(end_ahead(&e).len == raw.len &&
           memcmp(end_ahead(&e).at, raw.at, raw.len) == 0,
       "all of it is still there");
    end_clear(&e);
    close(fds[1]);
}

/* What ends before it is whole. */
static void
read_is(const void *at, size_t len, bool closed, int64_t limit_ms,
        enum why want, const char *what)
{
    struct hello h;
    struct fail f = {0};
    struct end e;
    int fds[2];

    if (!ok(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0 &&
                send(fds[1], at, len, 0) == (ssize_t)len &&
                (!closed || shutdown(fds[1], SHUT_WR) == 0),
            "two sockets"))
        return;
    end_init(&e, fds[0], SIDE_CLIENT, 5000);
    is_int(hello_read(&e, now_ms() + limit_ms, &h, &f), want, "%s", what);
    is_int(f.why, want == WHY_EOF ? WHY_NONE : want, "  as it is noted");
    end_clear(&e);
    close(fds[1]);
}

static void
test_read_fails(void)
{
    static struct bytes raw, cut, ext;
    static unsigned char padding[20000];

    hello_make(&raw, "NORMAL", "www.example.com", NULL);
    read_is("", 0, true, 5000, WHY_EOF, "the peer goes without a word");
    read_is(raw.at, raw.len - 1, true, 5000, WHY_CUT, "in the middle");
    read_is(raw.at, 3, true, 5000, WHY_CUT, "or at the start");
    read_is(raw.at, raw.len - 1, false, 50, WHY_LATE, "or it sleeps");
    read_is("GET / HTTP/1.1\r\n\r\n", 18, false, 5000, WHY_PROTO,
            "or says something else");
    put_extension(&ext, 21, padding, sizeof padding);
    hello_build(&cut, &(const struct shape){.cut = 2}, &ext);
    read_is(cut.at, 66000, false, 5000, WHY_LIMIT, "or too much");
}

int
main(void)
{
    test_gnutls();
    test_shapes();
    test_names();
    test_name_lists();
    test_alpn();
    test_large();
    test_records();
    test_mutations();
    test_read(100000);
    test_read(100);
    test_read(1);
    test_read_fails();
    return done_testing();
}
