/*
 * page.c - what weir says itself: error answers, and its own small site.
 *
 * A developer who gets an error shall read what failed, where, why, and what
 * to do about it; programs read the same in Proxy-Status.  The site says what
 * this is, how to use it, and offers the CA's certificate.
 *
 * Follows  RFC 9110 section 15, RFC 9209 (Proxy-Status).
 * Owns     nothing.
 * Threads  any worker.
 * Blocks   while the client takes the answer.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proxy.h"

enum { SHOWN_MAX = 1024 }; /* bytes of somebody's text in a page */

struct text { /* being put together; too much is cut off */
    char at[8192];
    size_t len;
};

__attribute__((format(printf, 2, 3))) static void
say(struct text *t, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(t->at + t->len, sizeof t->at - t->len, fmt, ap);
    va_end(ap);
    if (n > 0)
        t->len += (size_t)n < sizeof t->at - t->len ? (size_t)n
                                                    : sizeof t->at - t->len - 1;
}

/* Text that came from outside, into a page: RFC 9110 content may be HTML.  A
 * long one is cut, or it would push out what the page has to say. */
static void
say_escaped(struct text *t, struct span s, bool html)
{
    size_t len = s.len < SHOWN_MAX ? s.len : SHOWN_MAX;

    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s.at[i];

        if (html && (c == '<' || c == '>' || c == '&' || c == '"' || c == '\''))
            say(t, "&#%d;", c);
        else if (c < 0x20 || c == 0x7f)
            say(t, "?");
        else
            say(t, "%c", c);
    }
    if (len < s.len)
        say(t, "...");
}

/* ---- one answer ---------------------------------------------------------- */

static void
add(struct head *h, const char *name, const char *value)
{
    /* Out of memory here costs a field; the answer matters more. */
    (void)head_add(h, span_of(name), head_text(h, value, strlen(value)));
}

/* An empty answer in x->res, of this status. */
static struct head *
begin(struct exchange *x, int status)
{
    struct head *h = x->res;

    head_reset(h);
    h->version = HTTP_11;
    h->status = status;
    h->own = true;
    h->reason = span_of(status_reason(status));
    x->status = status;
    x->own = true;
    return h;
}

/* RFC 9110 section 6.6.1: who makes an answer and has a clock says when. */
static void
add_date(struct head *h)
{
    time_t now = time(NULL);
    char text[40];
    struct tm tm;

    if (gmtime_r(&now, &tm) != NULL &&
        strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm) > 0)
        add(h, "Date", text);
}

static enum why
finish(struct exchange *x, const char *type, struct span content,
       struct fail *f)
{
    struct http *down = x->down;
    struct head *h = x->res;
    char length[24];
    enum why why;

    add_date(h);
    if (type != NULL)
        add(h, "Content-Type", type);
    snprintf(length, sizeof length, "%zu", content.len);
    add(h, "Content-Length", length);
    h->body = x->req->method_id == METHOD_HEAD ? BODY_NONE : BODY_LENGTH;
    h->length = content.len;
    why = down->ops->write_head(down, h, f);
    if (why == WHY_NONE && h->body != BODY_NONE && content.len > 0)
        why = down->ops->write_body(down, content, f);
    if (why == WHY_NONE)
        why = down->ops->write_end(down, NULL, f);
    return why == WHY_NONE ? down->ops->flush(down, f) : why;
}

/* ";q=0.8" of a list item as 800; 1000 if there is none (RFC 9110 12.4.2). */
static int
weight_of(struct span item)
{
    const char *q = memmem(item.at, item.len, "q=", 2);
    const char *end = item.at + item.len;
    int weight = 0;

    if (q == NULL || q + 2 >= end || q[2] == '1')
        return 1000;
    for (int i = 4, part = 100; q + i < end && part > 0; i++, part /= 10)
        if (q[i] >= '0' && q[i] <= '9')
            weight += (q[i] - '0') * part;
    return weight;
}

/* How much the client likes a type, 0 to 1000; 0: not at all, or it does not
 * name it.  RFC 9110 section 12.5.1. */
static int
liking(const struct head *req, const char *type)
{
    const struct field *f = NULL;
    int best = 0;

    while ((f = head_find(req, "Accept", f)) != NULL) {
        struct span rest = f->value, item;

        while (list_next(&rest, &item)) {
            const char *end = memchr(item.at, ';', item.len);
            size_t len = end != NULL ? (size_t)(end - item.at) : item.len;

            if (span_isi(span_trim((struct span){item.at, len}), type) &&
                weight_of(item) > best)
                best = weight_of(item);
        }
    }
    return best;
}

/* Does the client name HTML, and like it no less than plain text? */
static bool
wants_html(const struct head *req)
{
    int html = liking(req, "text/html");

    return html > 0 && html >= liking(req, "text/plain");
}

/* ---- errors -------------------------------------------------------------- */

/* What a person can do about it; NULL: nothing that we know of. */
static const char *
advice(const struct fail *f)
{
    switch (f->why) {
    case WHY_DNS:
    case WHY_DNS_LATE:
        return "Check the host name, or give its address in proxy.ini: "
               "[resolve] HOST = ADDRESS.";
    case WHY_REFUSED:
        return "Check that the server runs and listens on this port.";
    case WHY_UNREACHABLE:
    case WHY_CONNECT_LATE:
        return "Check the address and the network between here and there.";
    case WHY_CERT: /* the lines to add follow: say_certificate_advice() */
        return "If you trust this server all the same, set in proxy.ini:";
    case WHY_TLS:
    case WHY_ALERT:
        return "Check that the server speaks TLS 1.2 or 1.3 on this port.";
    case WHY_IDLE:
    case WHY_LATE:
        return f->side == SIDE_CLIENT
                   ? "Send the whole request without long pauses."
                   : "The server took too long; see [upstream] response_s and "
                     "[proxy] idle_s in proxy.ini.";
    case WHY_LIMIT:
    case WHY_URI:
        return "See [proxy] head_bytes, fields and target_bytes in proxy.ini.";
    case WHY_LOGIN:
        return "Give the client a user name and a password for this proxy, as "
               "in http://USER:PASSWORD@HOST:PORT.";
    case WHY_PARENT_LOGIN:
        return "Give the parent proxy's user and password in proxy.ini: "
               "[upstream] parent = http://USER:PASSWORD@HOST:PORT.";
    case WHY_PARENT_NO:
    case WHY_PARENT_BUSY:
    case WHY_PARENT_LATE:
        return "That is what the parent proxy says; see [upstream] parent and "
               "no_proxy in proxy.ini.";
    case WHY_POLICY:
        return "See [access] in proxy.ini.";
    case WHY_LOOP:
        return "The request would come back to this proxy; check where the "
               "target leads.";
    case WHY_BUSY:
        return "Try again, or raise [proxy] workers in proxy.ini.";
    default:
        return NULL;
    }
}

/* The very lines of proxy.ini: a CA to trust helps against some reasons,
 * leaving the host unverified against all. */
static void
say_certificate_advice(struct text *t, const struct exchange *x, int status,
                       bool html)
{
    const char *host =
        x->origin.sni[0] != '\0' ? x->origin.sni : x->origin.host;

    say(t, html ? "</li>\n</ul>\n<pre>" : "\n\n");
    say(t, "[upstream]\n");
    if (status & GNUTLS_CERT_SIGNER_NOT_FOUND)
        say(t, "upstream_ca = FILE.pem  ; with the CA that issued it, or\n");
    say(t, "insecure = ");
    say_escaped(t, span_of(host), html);
    say(t, "  ; not verified at all\n");
    say(t, html ? "</pre>\n<ul>\n<li>" : "\n");
    say(t, status & GNUTLS_CERT_SIGNER_NOT_FOUND
               ? "Then restart weir; for the second alone a HUP is enough."
               : "Then send weir a HUP.");
}

/* A structured-field string (RFC 9651 section 3.3.3): printable ASCII. */
static void
say_quoted(struct text *t, const char *s)
{
    say(t, "\"");
    for (; *s != '\0'; s++) {
        if (*s == '"' || *s == '\\')
            say(t, "\\%c", *s);
        else if (*s >= 0x20 && *s < 0x7f)
            say(t, "%c", *s);
    }
    say(t, "\"");
}

static void
add_proxy_status(struct head *h, const struct fail *f, const char *reason)
{
    const char *error = why_proxy_error(f->why, f->side);
    struct text t = {.len = 0};

    say(&t, "weir");
    if (error != NULL)
        say(&t, "; error=%s", error);
    if (f->received != 0) /* RFC 9209 section 2.1.4 */
        say(&t, "; received-status=%d", f->received);
    say(&t, "; details=");
    say_quoted(&t, reason);
    add(h, "Proxy-Status", t.at);
}

static void
say_request(struct text *t, const struct head *req, bool html)
{
    say_escaped(t, req->method, html);
    say(t, " ");
    if (req->authority.len == 0 || req->method_id == METHOD_CONNECT) {
        say_escaped(t, req->target, html);
        return;
    }
    say_escaped(t, req->scheme, html);
    say(t, "://");
    say_escaped(t, req->authority, html);
    say_escaped(t, req->path, html);
}

/*
 * page_error - answer a request with what went wrong.
 *
 * why_  what went wrong; its status is why_status()
 * f     noted when the answer cannot be written
 *
 * x->status is set.  Nothing of another answer may have been written.
 */
enum why
page_error(struct exchange *x, const struct fail *why_, struct fail *f)
{
    int status = why_status(why_->why, why_->side);
    struct head *h = begin(x, status != 0 ? status : 502);
    bool html = wants_html(x->req);
    const char *what = advice(why_), *title = status_reason(h->status);
    const char *who = why_->side == SIDE_CLIENT   ? "the client's request"
                      : why_->side == SIDE_ORIGIN ? "the server"
                                                  : "this proxy";
    char reason[256];
    struct text t = {.len = 0};

    fail_text(why_, reason, sizeof reason);
    add(h, "Cache-Control", "no-store");
    add_proxy_status(h, why_, reason);
    if (why_->challenged)
        add(h, "Proxy-Authenticate", why_->detail);
    else if (why_->why == WHY_LOGIN) /* RFC 7617 section 2 */
        add(h, "Proxy-Authenticate", "Basic realm=\"weir\", charset=\"UTF-8\"");
    if (html)
        say(&t,
            "<!doctype html>\n<meta charset=utf-8>\n<title>%d %s</title>\n"
            "<h1>%d %s</h1>\n<p>weir could not serve <code>",
            h->status, title, h->status, title);
    else
        say(&t, "%d %s\n\nweir could not serve:  ", h->status, title);
    say_request(&t, x->req, html);
    say(&t, html ? "</code></p>\n<ul>\n<li>What failed: " : "\nWhat failed:  ");
    say_escaped(&t, span_of(reason), html);
    say(&t, " (%s)", why_text(why_->why));
    say(&t, html ? "</li>\n<li>Where: %s" : "\nWhere:  %s", who);
    if (x->addr[0] != '\0')
        say(&t, ", %s", x->addr);
    if (what != NULL)
        say(&t, html ? "</li>\n<li>What to do: %s" : "\nWhat to do:  %s", what);
    if (why_->why == WHY_CERT)
        say_certificate_advice(&t, x, why_->code, html);
    say(&t,
        html ? "</li>\n</ul>\n<p>weir %s, connection %llu</p>\n"
             : "\n(weir %s, connection %llu)\n",
        WEIR_VERSION, (unsigned long long)x->client->id);
    return finish(
        x, html ? "text/html; charset=utf-8" : "text/plain; charset=utf-8",
        (struct span){t.at, t.len}, f);
}

/* ---- our own site -------------------------------------------------------- */

static enum why
page_home(struct exchange *x, struct fail *f)
{
    const struct client *c = x->client;
    const char *dir = mitm_dir(c->weir->mitm);
    unsigned port = c->weir->n_ports > 0 ? c->weir->ports[0] : 0;
    bool html = wants_html(x->req);
    struct text t = {.len = 0};

    begin(x, 200);
    add(x->res, "Cache-Control", "no-store");
    if (html)
        say(&t,
            "<!doctype html>\n<meta charset=utf-8>\n<title>weir</title>\n"
            "<h1>This is weir %s, a developer proxy</h1>\n"
            "<p>Point a client here:</p>\n<pre>export http_proxy="
            "http://127.0.0.1:%u https_proxy=http://127.0.0.1:%u</pre>\n"
            "<p>To let it read https, the client must trust its CA: "
            "<a href=\"/ca.pem\">ca.pem</a> (most programs) or "
            "<a href=\"/ca.cer\">ca.cer</a> (browsers, phones).</p>\n"
            "<pre>curl --proxy http://127.0.0.1:%u --cacert %s/ca.pem "
            "https://example.com/</pre>\n"
            "<p>Behind the proxy this page is <a href=\"http://" WEIR_HOST
            "/\">http://" WEIR_HOST "/</a>.</p>\n",
            WEIR_VERSION, port, port, port, dir);
    else
        say(&t,
            "This is weir %s, a developer proxy.\n\n"
            "Point a client here:\n"
            "  export http_proxy=http://127.0.0.1:%u "
            "https_proxy=http://127.0.0.1:%u\n\n"
            "To let it read https, the client must trust its CA, which is "
            "here as /ca.pem and /ca.cer\nand in %s:\n"
            "  curl --proxy http://127.0.0.1:%u --cacert %s/ca.pem "
            "https://example.com/\n\n"
            "Behind the proxy this page is http://" WEIR_HOST "/\n",
            WEIR_VERSION, port, port, dir, port, dir);
    return finish(
        x, html ? "text/html; charset=utf-8" : "text/plain; charset=utf-8",
        (struct span){t.at, t.len}, f);
}

static enum why
page_plain(struct exchange *x, int status, const char *text, struct fail *f)
{
    begin(x, status);
    if (status == 405)
        add(x->res, "Allow", "GET, HEAD, OPTIONS");
    return finish(x, "text/plain; charset=utf-8", span_of(text), f);
}

/*
 * page_own - answer a request that is for weir itself.
 *
 * x  its req is routed; content, if any, has been read past
 */
enum why
page_own(struct exchange *x, struct fail *f)
{
    const struct mitm *m = x->client->weir->mitm;
    struct span path = x->req->path;
    const char *query = memchr(path.at, '?', path.len);

    if (query != NULL)
        path.len = (size_t)(query - path.at);
    if (x->req->method_id == METHOD_OPTIONS) {
        begin(x, 200);
        add(x->res, "Allow", "GET, HEAD, OPTIONS");
        return finish(x, NULL, (struct span){"", 0}, f);
    }
    if (x->req->method_id != METHOD_GET && x->req->method_id != METHOD_HEAD)
        return page_plain(x, 405, "This page is only read.\n", f);
    if (span_is(path, "/"))
        return page_home(x, f);
    if (span_is(path, "/ca.pem")) {
        begin(x, 200);
        return finish(x, "application/x-pem-file", mitm_ca_pem(m), f);
    }
    if (span_is(path, "/ca.cer")) {
        begin(x, 200);
        return finish(x, "application/x-x509-ca-cert", mitm_ca_der(m), f);
    }
    return page_plain(x, 404,
                      "weir itself has /, /ca.pem and /ca.cer.  A request for "
                      "another server needs its\nwhole address: point the "
                      "client's proxy setting here.\n",
                      f);
}

/* Fields that a TRACE must not echo (RFC 9110 section 9.3.8). */
static bool
is_secret(struct span name)
{
    return span_isi(name, "Cookie") || span_isi(name, "Authorization") ||
           span_isi(name, "Proxy-Authorization");
}

/* The request as it came, less its secrets.  text[0..cap) has room for all. */
static size_t
trace_text(const struct head *req, char *text, size_t cap)
{
    size_t len = (size_t)snprintf(text, cap, "%.*s %.*s HTTP/1.%d\r\n",
                                  (int)req->method.len, req->method.at,
                                  (int)req->target.len, req->target.at,
                                  req->version == HTTP_10 ? 0 : 1);

    for (size_t i = 0; i < req->n_fields; i++) {
        const struct field *fd = &req->fields[i];

        if (!is_secret(fd->name))
            len += (size_t)snprintf(text + len, cap - len, "%.*s: %.*s\r\n",
                                    (int)fd->name.len, fd->name.at,
                                    (int)fd->value.len, fd->value.at);
    }
    return len + (size_t)snprintf(text + len, cap - len, "\r\n");
}

/* page_trace - TRACE or OPTIONS that ends with us: Max-Forwards was 0
 * (RFC 9110 sections 7.6.2, 9.3.7, 9.3.8). */
enum why
page_trace(struct exchange *x, struct fail *f)
{
    const struct head *req = x->req;
    size_t cap = req->method.len + req->target.len + 32, len;
    enum why why;
    char *text;

    if (req->method_id == METHOD_OPTIONS) {
        begin(x, 200);
        add(x->res, "Allow",
            "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS, TRACE, CONNECT");
        return finish(x, NULL, (struct span){"", 0}, f);
    }
    for (size_t i = 0; i < req->n_fields; i++)
        cap += req->fields[i].name.len + req->fields[i].value.len + 4;
    if ((text = malloc(cap)) == NULL)
        return fail_sys(f, SIDE_WEIR, "answer a TRACE", ENOMEM);
    len = trace_text(req, text, cap);
    begin(x, 200);
    why = finish(x, "message/http", (struct span){text, len}, f);
    free(text);
    return why;
}
