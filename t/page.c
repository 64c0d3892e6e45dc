/*
 * t/page.c - what weir says itself, to a client that only writes it down.
 */
#include "proxy.h"
#include "t/dir.h"
#include "t/net.h"
#include "t/tap.h"

static struct weir weir;
static struct client client = {.weir = &weir, .id = 7, .stream = -1};

/* ---- a client's side that keeps what it gets ----------------------------- */

struct paper {
    struct http http;
    const struct head *head;
    char text[16384];
    size_t len;
    int n_ends, n_flushes;
    bool refuses; /* every write fails */
};

static enum why
paper_head(struct http *http, const struct head *h, struct fail *f)
{
    struct paper *p = (struct paper *)http;

    if (p->refuses)
        return fail_own(f, SIDE_CLIENT, WHY_SYS, "write");
    p->head = h;
    return WHY_NONE;
}

static enum why
paper_body(struct http *http, struct span s, struct fail *f)
{
    struct paper *p = (struct paper *)http;

    (void)f;
    assert(p->len + s.len < sizeof p->text);
    memcpy(p->text + p->len, s.at, s.len);
    p->len += s.len;
    return WHY_NONE;
}

static enum why
paper_end(struct http *http, const struct head *trailers, struct fail *f)
{
    (void)f;
    ((struct paper *)http)->n_ends += trailers == NULL;
    return WHY_NONE;
}

static enum why
paper_flush(struct http *http, struct fail *f)
{
    (void)f;
    ((struct paper *)http)->n_flushes++;
    return WHY_NONE;
}

static const struct http_ops paper_ops = {.write_head = paper_head,
                                          .write_body = paper_body,
                                          .write_end = paper_end,
                                          .flush = paper_flush};

struct visit { /* one request, and what came of it */
    struct exchange x;
    struct head req, res;
    struct paper paper;
};

static void
visit_init(struct visit *v, const char *method, const char *path,
           const char *accept)
{
    memset(v, 0, sizeof *v);
    head_init(&v->req);
    head_init(&v->res);
    v->paper.http.ops = &paper_ops;
    v->req.version = HTTP_11;
    v->req.method = span_of(method);
    v->req.method_id = method_of(v->req.method);
    v->req.scheme = span_of("http");
    v->req.authority = span_of("host.test");
    v->req.path = v->req.target = span_of(path);
    if (accept != NULL)
        NEED(head_put(&v->req, span_of("Accept"), span_of(accept)));
    v->x = (struct exchange){.client = &client,
                             .down = &v->paper.http,
                             .req = &v->req,
                             .res = &v->res,
                             .origin = {.host = "host.test", .port = 80}};
}

static void
visit_clear(struct visit *v)
{
    head_clear(&v->req);
    head_clear(&v->res);
}

/* A field's value; "": there is none.  Valid until the next call. */
static const char *
field(const struct visit *v, const char *name)
{
    static char text[512];
    const struct field *f =
        v->paper.head != NULL ? head_find(v->paper.head, name, NULL) : NULL;

    snprintf(text, sizeof text, "%.*s", f != NULL ? (int)f->value.len : 0,
             f != NULL ? f->value.at : "");
    return text;
}

static bool
says(const struct visit *v, const char *part)
{
    if (memmem(v->paper.text, v->paper.len, part, strlen(part)) != NULL)
        return true;
    diag("no '%s' in '%.*s'", part, (int)v->paper.len, v->paper.text);
    return false;
}

static bool
length_is_right(const struct visit *v)
{
    char text[24];

    snprintf(text, sizeof text, "%zu", v->paper.len);
    return strcmp(field(v, "Content-Length"), text) == 0 &&
           v->paper.head->length == v->paper.len &&
           v->paper.head->body == BODY_LENGTH;
}

/* ---- errors -------------------------------------------------------------- */

static void
an_error(void)
{
    struct visit v;
    struct fail why = {.why = WHY_REFUSED,
                       .side = SIDE_ORIGIN,
                       .op = "connect",
                       .code = ECONNREFUSED,
                       .text = sys_text};
    struct fail f = {0};

    visit_init(&v, "GET", "/a?b", NULL);
    snprintf(v.x.addr, sizeof v.x.addr, "192.0.2.1:80");
    is_int(page_error(&v.x, &why, &f), WHY_NONE, "an error is answered");
    is_int(v.paper.head->status, 502, "by its status");
    is_int(v.x.status, 502, "which the log gets, too");
    ok(v.x.own, "as an answer of our own");
    is_str(field(&v, "Proxy-Status"),
           "weir; error=connection_refused; "
           "details=\"connect: Connection refused\"",
           "Proxy-Status says it to programs");
    is_str(field(&v, "Content-Type"), "text/plain; charset=utf-8",
           "plain text unless HTML is asked for");
    is_str(field(&v, "Cache-Control"), "no-store", "not to be kept");
    ok(length_is_right(&v), "its length is right");
    ok(says(&v, "GET http://host.test/a?b"), "what was asked");
    ok(says(&v, "connect: Connection refused"), "what failed");
    ok(says(&v, "the server, 192.0.2.1:80"), "where");
    ok(says(&v, "Check that the server runs"), "what to do");
    ok(says(&v, "connection 7"), "and which line of the log");
    is_int(v.paper.n_ends, 1, "one end");
    is_int(v.paper.n_flushes, 1, "sent at once");
    visit_clear(&v);

    visit_init(&v, "HEAD", "/", NULL);
    is_int(page_error(&v.x, &why, &f), WHY_NONE, "the same to HEAD");
    is_int(v.paper.head->body, BODY_NONE, "has no content");
    is_int(v.paper.len, 0, "not a byte");
    ok(atoi(field(&v, "Content-Length")) > 100, "but its length");
    visit_clear(&v);

    visit_init(&v, "GET", "/", NULL);
    v.paper.refuses = true;
    is_int(page_error(&v.x, &why, &f), WHY_SYS, "a client that is gone");
    is_int(f.side, SIDE_CLIENT, "is noted");
    visit_clear(&v);
}

static void
statuses(void)
{
    static const struct {
        enum why why;
        enum side side;
        int status;
        const char *part;
    } cases[] = {
        {WHY_DNS, SIDE_ORIGIN, 502, "[resolve] HOST = ADDRESS"},
        {WHY_CONNECT_LATE, SIDE_ORIGIN, 504, "the network"},
        {WHY_TLS, SIDE_ORIGIN, 502, "TLS 1.2 or 1.3"},
        {WHY_IDLE, SIDE_ORIGIN, 504, "response_s"},
        {WHY_IDLE, SIDE_CLIENT, 408, "without long pauses"},
        {WHY_LIMIT, SIDE_CLIENT, 431, "head_bytes"},
        {WHY_URI, SIDE_CLIENT, 414, "target_bytes"},
        {WHY_LOOP, SIDE_WEIR, 403, "back to this proxy"},
        {WHY_BUSY, SIDE_WEIR, 503, "workers"},
        {WHY_PROTO, SIDE_CLIENT, 400, "the client's request"},
        {WHY_OVER, SIDE_WEIR, 502, "this proxy"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct visit v;
        struct fail why = {.why = cases[i].why, .side = cases[i].side};
        struct fail f = {0};

        visit_init(&v, "GET", "/", NULL);
        NEED(page_error(&v.x, &why, &f) == WHY_NONE);
        is_int(v.paper.head->status, cases[i].status, "%s by the %s",
               why_name(why.why), side_name(why.side));
        ok(says(&v, cases[i].part), "  helps");
        visit_clear(&v);
    }
}

static void
kinds(void)
{
    static const struct {
        const char *accept;
        bool html;
    } cases[] = {
        {"text/html", true},
        {"text/html,application/xhtml+xml,*/*;q=0.8", true},
        {"TEXT/HTML", true},
        {"*/*", false},
        {"text/plain", false},
        {"text/plain, text/html", true}, /* likes both */
        {"text/plain, text/html;q=0.9", false},
        {"text/plain;q=0.5, text/html ; q=0.6", true},
        {"text/html;q=0", false},
        {"text/html;q=0.000", false},
        {"text/html;q=0.001", true},
        {"application/json", false},
        {"", false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct visit v;
        struct fail why = {.why = WHY_DNS, .side = SIDE_ORIGIN}, f = {0};

        visit_init(&v, "GET", "/", cases[i].accept);
        NEED(page_error(&v.x, &why, &f) == WHY_NONE);
        is_str(field(&v, "Content-Type"),
               cases[i].html ? "text/html; charset=utf-8"
                             : "text/plain; charset=utf-8",
               "Accept: %s", cases[i].accept);
        ok(says(&v, cases[i].html ? "<!doctype html>" : "weir could not"),
           "  and so it is");
        visit_clear(&v);
    }
}

/* What came from outside must not become markup, or a second field. */
static void
escapes(void)
{
    struct visit v;
    struct fail why = {
        .why = WHY_DNS, .side = SIDE_ORIGIN, .op = "say \"hi\" \\ \r\nX: y"};
    struct fail f = {0};
    static char path[20000];

    visit_init(&v, "GET", "/<script>&'\"\001", "text/html");
    NEED(page_error(&v.x, &why, &f) == WHY_NONE);
    ok(says(&v, "/&#60;script&#62;&#38;&#39;&#34;?"), "a target in HTML");
    ok(memmem(v.paper.text, v.paper.len, "<script", 7) == NULL, "no markup");
    ok(strchr(field(&v, "Proxy-Status"), '\n') == NULL, "one field");
    ok(strstr(field(&v, "Proxy-Status"), "say \\\"hi\\\" \\\\ ") != NULL,
       "a string in quotes: %s", field(&v, "Proxy-Status"));
    visit_clear(&v);

    memset(path, '<', sizeof path - 1);
    visit_init(&v, "GET", path, "text/html");
    is_int(page_error(&v.x, &why, &f), WHY_NONE, "a target beyond all bounds");
    ok(length_is_right(&v), "is cut, and the length is of what is left");
    visit_clear(&v);
}

static void
certificates(void)
{
    struct visit v;
    struct fail why = {.why = WHY_CERT,
                       .side = SIDE_ORIGIN,
                       .op = "verify certificate",
                       .code =
                           GNUTLS_CERT_INVALID | GNUTLS_CERT_SIGNER_NOT_FOUND,
                       .text = cert_text};
    struct fail f = {0};

    visit_init(&v, "GET", "/", NULL);
    NEED(page_error(&v.x, &why, &f) == WHY_NONE);
    ok(says(&v, "the certificate was issued by an unknown CA"), "why");
    ok(says(&v, "[upstream]\nupstream_ca = FILE.pem"), "the CA to trust");
    ok(says(&v, "\ninsecure = host.test"), "or the host to let through");
    visit_clear(&v);

    why.code = GNUTLS_CERT_INVALID | GNUTLS_CERT_EXPIRED;
    visit_init(&v, "GET", "/", "text/html");
    snprintf(v.x.origin.sni, sizeof v.x.origin.sni, "sni.test");
    NEED(page_error(&v.x, &why, &f) == WHY_NONE);
    ok(says(&v, "the certificate has expired"), "expired");
    ok(memmem(v.paper.text, v.paper.len, "upstream_ca", 11) == NULL,
       "a CA is no help against that");
    ok(says(&v, "<pre>[upstream]\ninsecure = sni.test"), "by its SNI");
    visit_clear(&v);
}

/* ---- our own site -------------------------------------------------------- */

static void
own(const char *method, const char *path, int status, const char *type,
    const char *part)
{
    struct visit v;
    struct fail f = {0};

    visit_init(&v, method, path, NULL);
    is_int(page_own(&v.x, &f), WHY_NONE, "%s %s", method, path);
    is_int(v.paper.head->status, status, "  %d", status);
    is_str(field(&v, "Content-Type"), type, "  its type");
    ok(part == NULL ? v.paper.len == 0 : says(&v, part), "  its content");
    ok(part == NULL || length_is_right(&v), "  its length");
    is_int(v.paper.n_ends, 1, "  its end");
    if (status == 405 || strcmp(method, "OPTIONS") == 0)
        is_str(field(&v, "Allow"), "GET, HEAD, OPTIONS", "  what is allowed");
    visit_clear(&v);
}

static void
site(void)
{
    struct span pem = mitm_ca_pem(weir.mitm), der = mitm_ca_der(weir.mitm);
    const char *plain = "text/plain; charset=utf-8";
    struct visit v;
    struct fail f = {0};
    char text[64];

    snprintf(text, sizeof text, "http_proxy=http://127.0.0.1:%u",
             weir.ports[0]);
    own("GET", "/", 200, plain, text);
    own("GET", "/?x", 200, plain, dir_root);
    own("HEAD", "/", 200, plain, NULL);
    own("GET", "/ca.pem", 200, "application/x-pem-file",
        "-----BEGIN CERTIFICATE-----");
    own("HEAD", "/ca.cer", 200, "application/x-x509-ca-cert", NULL);
    own("OPTIONS", "/", 200, "", NULL);
    own("POST", "/", 405, plain, "only read");
    own("GET", "/favicon.ico", 404, plain, "/ca.pem");

    visit_init(&v, "GET", "/ca.pem", NULL);
    NEED(page_own(&v.x, &f) == WHY_NONE);
    ok(v.paper.len == pem.len && memcmp(v.paper.text, pem.at, pem.len) == 0,
       "the CA as PEM");
    visit_clear(&v);
    visit_init(&v, "GET", "/ca.cer", NULL);
    NEED(page_own(&v.x, &f) == WHY_NONE);
    ok(v.paper.len == der.len && memcmp(v.paper.text, der.at, der.len) == 0,
       "the CA as DER");
    visit_clear(&v);
    visit_init(&v, "GET", "/", "text/html");
    NEED(page_own(&v.x, &f) == WHY_NONE);
    ok(says(&v, "<a href=\"/ca.pem\">"), "HTML for a browser");
    visit_clear(&v);
}

static void
traces(void)
{
    struct visit v;
    struct fail f = {0};

    visit_init(&v, "TRACE", "http://host.test/x", NULL);
    NEED(head_put(&v.req, span_of("Host"), span_of("host.test")));
    NEED(head_put(&v.req, span_of("cookie"), span_of("secret")));
    NEED(head_put(&v.req, span_of("Authorization"), span_of("secret")));
    NEED(head_put(&v.req, span_of("Proxy-Authorization"), span_of("secret")));
    NEED(head_put(&v.req, span_of("X-Last"), span_of("1")));
    is_int(page_trace(&v.x, &f), WHY_NONE, "TRACE that ends here");
    is_str(field(&v, "Content-Type"), "message/http", "its type");
    v.paper.text[v.paper.len] = '\0';
    is_str(v.paper.text,
           "TRACE http://host.test/x HTTP/1.1\r\nHost: host.test\r\n"
           "X-Last: 1\r\n\r\n",
           "the request as it came, but for its secrets");
    visit_clear(&v);

    visit_init(&v, "OPTIONS", "/", NULL);
    is_int(page_trace(&v.x, &f), WHY_NONE, "OPTIONS that ends here");
    is_int(v.paper.len, 0, "has no content");
    ok(strstr(field(&v, "Allow"), "CONNECT") != NULL, "it says what is there");
    visit_clear(&v);
}

int
main(void)
{
    char set[600], err[512];
    char *sets[] = {set, "log.level=error"};
    struct config *conf;

    snprintf(set, sizeof set, "intercept.dir=%s", dir_make());
    conf = config_read(NULL, sets, 2, err, sizeof err);
    if (conf == NULL || !log_setup(conf, err, sizeof err) ||
        (weir.mitm = mitm_new(conf, err, sizeof err)) == NULL) {
        diag("%s", err);
        return 2;
    }
    client.conf = conf;
    weir.ports[0] = 3128;
    weir.n_ports = 1;
    an_error();
    statuses();
    kinds();
    escapes();
    certificates();
    site();
    traces();
    mitm_free(weir.mitm);
    config_give(conf);
    dir_remove();
    return done_testing();
}
