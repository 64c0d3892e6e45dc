/*
 * exchange.c - carry one request from its client to its origin, and the
 * answers back.
 *
 * Knows no HTTP version: both sides are a struct http.  The worker writes the
 * request's head and reads the answers; content that is not at hand at once is
 * carried up by the worker's twin, because bodies must be able to move both
 * ways at the same time (early answers, bidirectional streams): upload.c.
 *
 * Follows  RFC 9110, above all sections 7.6 (forwarding), 9.2.2 (retries),
 *          10.1.1 (Expect) and 15.2 (interim answers); RFC 9209.
 * Owns     the way to the origin while the exchange lasts.
 * Threads  a worker; its twin has the upload.
 * Blocks   on both sides, within their clocks; response_s for the first byte.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "proxy.h"

enum {
    INTERIM_MAX = 1000, /* 1xx answers of one exchange */
};

/* ---- going up ------------------------------------------------------------ */

/* Is the client gone, or weir told to stop?  Asked while the origin thinks. */
static bool
nobody_waits(void *arg)
{
    struct exchange *x = arg;

    return atomic_load(&x->client->weir->stopping) ||
           x->down->ops->gone(x->down);
}

static bool
add_via(struct head *h, const char *via)
{
    static const char *const versions[] = {"1.0 ", "1.1 ", "2 ", "3 "};
    char text[96];
    const char *end = stpcpy(stpcpy(text, versions[h->version]), via);
    struct span value = head_text(h, text, (size_t)(end - text));

    return value.at != NULL && head_put(h, span_of("Via"), value);
}

/* RFC 9110 section 7.6.2, for TRACE and OPTIONS alone.  False: it is 0, and
 * we are the final recipient. */
static bool
max_forwards(struct head *req)
{
    const struct field *f = head_find(req, "Max-Forwards", NULL);
    uint64_t left;
    char text[24];
    int n;

    if ((req->method_id != METHOD_TRACE && req->method_id != METHOD_OPTIONS) ||
        f == NULL || !span_number(f->value, &left))
        return true;
    if (left == 0)
        return false;
    n = snprintf(text, sizeof text, "%llu", (unsigned long long)left - 1);
    req->fields[f - req->fields].value = head_text(req, text, (size_t)n);
    return true;
}

static bool
is_connection_auth(struct span value)
{
    static const char *const schemes[] = {"NTLM", "Negotiate"};

    for (size_t i = 0; i < 2; i++) {
        size_t n = strlen(schemes[i]);

        if (value.len >= n && span_isi((struct span){value.at, n}, schemes[i]))
            return true;
    }
    return false;
}

/* NTLM and Negotiate log a *connection* in: it must never serve another
 * client (RFC 4559 section 6). */
static bool
binds_connection(const struct head *h, const char *name)
{
    const struct field *f = NULL;

    while ((f = head_find(h, name, f)) != NULL)
        if (is_connection_auth(f->value))
            return true;
    return false;
}

/* Would another way to this origin lead around us?  A client follows what an
 * origin said by TLS alone (RFC 7838 section 2.1). */
static bool
hides_alternatives(const struct exchange *x)
{
    return !x->client->conf->alt_svc_keep &&
           (x->client->inside != NULL || x->origin.tls);
}

/* The way that came with x if it serves, else another. */
static enum why
take_way(struct exchange *x, bool fresh)
{
    /* New settings may lead somewhere else by the same name. */
    bool stale =
        fresh || (x->up != NULL && x->up->serial != x->client->conf->serial);

    if (x->up != NULL &&
        (stale || !upstream_fits(x->client, x->up, &x->origin) ||
         !upstream_alive(x->up) || !upstream_serves(x->up, x->req->upgrade))) {
        if (stale || upstream_fits(x->client, x->up, &x->origin))
            upstream_free(x->up);
        else
            upstream_give(x->client, x->up);
        x->up = NULL;
    }
    if (x->up != NULL && x->up->http == NULL &&
        upstream_tries_quic(x->client, &x->origin, x->req->upgrade)) {
        upstream_give(x->client, x->up);
        x->up = NULL;
    }
    if (x->up == NULL) {
        x->up = upstream_take(x->client, &x->origin, x->req->upgrade, fresh,
                              &x->fail);
    } else if (x->up->http != NULL) {
        x->up->reused = true;
    } else if (upstream_ready(x->client, x->up, ALPN_HTTP1 | ALPN_H2,
                              &x->fail) != WHY_NONE) {
        upstream_free(x->up); /* dialled for a CONNECT, and no use */
        x->up = NULL;
    }
    if (x->up == NULL) {
        assert(x->fail.why != WHY_NONE);
        return x->fail.why;
    }
    memcpy(x->addr, x->up->addr, sizeof x->addr);
    x->hop = x->up->hop;
    x->reused = x->up->reused;
    if (x->reused)
        x->hop.connect_us = x->hop.answer_us = -1;
    if (x->up->absolute) /* each request of the connection shows them */
        x->up->http->credentials = parent_credentials(x->client, x->up->parent);
    x->took = x->reused ? (struct clock_marks){-1, -1, -1} : x->up->took;
    if (binds_connection(x->req, "Authorization"))
        x->up->bound = true;
    return WHY_NONE;
}

/* RFC 7838 section 5: an origin that was found by its Alt-Svc is told so.  What
 * the client says of its own way holds only where it was told of others. */
static bool
say_alternative(struct exchange *x)
{
    const char *alt = x->up->alt_used;

    if (alt[0] != '\0' || x->alt_used || hides_alternatives(x))
        head_remove(x->req, "Alt-Used");
    x->alt_used = alt[0] != '\0';
    return !x->alt_used || head_add(x->req, span_of("Alt-Used"), span_of(alt));
}

/* The head, and with it the content if all of it is at hand; *in_hand keeps
 * that for a second try.  Otherwise the twin is sent after the content. */
static enum why
send_request(struct exchange *x, struct upload *u, struct span *in_hand)
{
    struct http *up = x->up->http, *down = x->down;
    enum why why;

    if (!say_alternative(x))
        return fail_own(&x->fail, SIDE_WEIR, WHY_BUSY, "out of memory");
    why = up->ops->write_head(up, x->req, &x->fail);
    if (why == WHY_NONE && in_hand->len == 0 && !u->started &&
        !down->ops->complete(down) && down->ops->pending(down)) {
        why = down->ops->read_body(down, in_hand, &x->fail);
        if (why == WHY_EOF)
            why = WHY_NONE;
    }
    if (why == WHY_NONE && in_hand->len > 0)
        why = up->ops->write_body(up, *in_hand, &x->fail);
    if (why != WHY_NONE)
        return why;
    if (down->ops->complete(down) && !u->started) {
        why = up->ops->write_end(up, down->ops->trailers(down), &x->fail);
        return why == WHY_NONE ? up->ops->flush(up, &x->fail) : why;
    }
    if ((why = up->ops->flush(up, &x->fail)) != WHY_NONE)
        return why;
    if (in_hand->len > 0)
        u->begun = true; /* nobody else looks yet: the twin has not started */
    if (!upload_start(u, up))
        return fail_own(&x->fail, SIDE_WEIR, WHY_BUSY, "start a thread");
    return WHY_NONE;
}

/* ---- coming down --------------------------------------------------------- */

/* One head from the origin.  Silence is no failure while the client is still
 * sending: nobody answers what he has not heard. */
static enum why
read_answer(struct exchange *x, struct upload *u)
{
    struct http *up = x->up->http;
    int limit_ms = x->client->conf->response_s * 1000;
    enum why why;

    head_reset(x->res);
    up->idle_ms = limit_ms;
    for (;;) {
        why = up->ops->read_head(up, x->res, &x->fail);
        if (why != WHY_IDLE || !u->started || atomic_load(&u->done) ||
            now_ms() - atomic_load(&u->moved_at) >= limit_ms)
            break;
        x->fail = (struct fail){0};
    }
    up->idle_ms = 0;
    if (why == WHY_EOF)
        fail_own(&x->fail, SIDE_ORIGIN, WHY_EOF, "read answer");
    if (why == WHY_NONE)
        upstream_learn(x->client, x->up, x->res);
    if (why == WHY_NONE && hides_alternatives(x))
        head_remove(x->res, "Alt-Svc");
    return why;
}

/* May the request go out again, on another connection?  RFC 9110 section
 * 9.2.2: idempotent, and RFC 9112 section 9.3.1: nothing of an answer came. */
static bool
may_retry(struct exchange *x, struct upload *u, enum why why, bool in_hand)
{
    bool harmless =
        x->up->reused && why == WHY_EOF && method_idempotent(x->req->method_id);

    return (harmless || why == WHY_UNPROCESSED) &&
           x->fail.side == SIDE_ORIGIN &&
           (!u->started ? in_hand || x->down->ops->complete(x->down)
                        : upload_hold(u));
}

/* Send the request and read the first answer head, with one retry if a kept
 * connection turns out to be dead. */
static enum why
first_answer(struct exchange *x, struct upload *u)
{
    struct watch watch = {nobody_waits, x};
    struct span in_hand = {0};
    enum why why;

    for (bool again = false;; again = true) {
        if ((why = take_way(x, again)) != WHY_NONE)
            return why;
        x->up->http->watch = &watch;
        why = send_request(x, u, &in_hand);
        /* An origin that stops reading may have answered already. */
        if (why == WHY_NONE ||
            (why == WHY_SYS && x->fail.side == SIDE_ORIGIN)) {
            struct fail sending = x->fail;

            x->fail = (struct fail){0};
            why = read_answer(x, u);
            if (why != WHY_NONE && sending.why != WHY_NONE)
                x->fail = sending;
        }
        x->up->http->watch = NULL;
        if (why == WHY_NONE)
            break;
        if (again || !may_retry(x, u, why, in_hand.len > 0))
            return why;
        x->fail = (struct fail){0};
    }
    x->first_us = now_us();
    upstream_judge(x->client, x->up, NULL);
    x->spoke = x->res->version;
    return WHY_NONE;
}

/* A parent that wants to know who we are is not for the client to satisfy,
 * unless it shall. */
static enum why
parent_login(struct exchange *x)
{
    const struct field *challenge =
        head_find(x->res, "Proxy-Authenticate", NULL);
    const struct client *c = x->client;

    if (c->conf->forward_proxy_auth && challenge != NULL &&
        x->up->parent->basic == NULL) {
        fail_say(&x->fail, SIDE_CLIENT, WHY_LOGIN, "parent wants a login",
                 "%.*s", (int)challenge->value.len, challenge->value.at);
        x->fail.challenged = true;
    } else {
        fail_say(&x->fail, SIDE_ORIGIN, WHY_PARENT_LOGIN, "read answer",
                 "%s answered 407 %.*s", x->up->parent->text,
                 (int)x->res->reason.len, x->res->reason.at);
    }
    x->fail.received = 407;
    return x->fail.why;
}

/* Interim answers go down one by one (RFC 9110 section 15.2), but not to a
 * client that does not know them. */
static enum why
pass_interim(struct exchange *x, struct upload *u)
{
    struct watch watch = {nobody_waits, x};
    enum why why = WHY_NONE;

    for (int n = 0; x->res->status < 200 && x->res->status != 101; n++) {
        if (n == INTERIM_MAX)
            return fail_own(&x->fail, SIDE_ORIGIN, WHY_PROTO,
                            "too many interim answers");
        if (x->req->version != HTTP_10) {
            why = x->down->ops->write_head(x->down, x->res, &x->fail);
            if (why == WHY_NONE)
                why = x->down->ops->flush(x->down, &x->fail);
        }
        if (why != WHY_NONE)
            return why;
        x->up->http->watch = &watch;
        why = read_answer(x, u);
        x->up->http->watch = NULL;
        if (why != WHY_NONE)
            return why;
    }
    return WHY_NONE;
}

/* The origin is silent for longer than it may: still no failure while the
 * client goes on sending, as the origin may wait for all of it.  Forgets the
 * failure if so. */
static bool
upload_moves(struct exchange *x, struct upload *u, enum why why)
{
    int idle_ms = x->up->http->idle_ms != 0 ? x->up->http->idle_ms
                                            : x->client->conf->idle_s * 1000;

    if (why != WHY_IDLE || x->fail.side != SIDE_ORIGIN || !u->started ||
        atomic_load(&u->done) ||
        now_ms() - atomic_load(&u->moved_at) >= idle_ms)
        return false;
    x->fail = (struct fail){0};
    return true;
}

/* The content, as it comes: whatever is there goes on before we wait. */
static enum why
carry_content(struct exchange *x, struct upload *u)
{
    struct http *up = x->up->http, *down = x->down;
    enum why why;

    for (;;) {
        struct span got;

        if (!up->ops->complete(up) && !up->ops->pending(up)) {
            if ((why = down->ops->flush(down, &x->fail)) != WHY_NONE)
                return why;
            why = http_splice(up, down, &u->moved_at, &x->fail);
            if (upload_moves(x, u, why))
                continue;
            if (why != WHY_NONE && why != WHY_MORE)
                return why;
        }
        why = up->ops->read_body(up, &got, &x->fail);
        if (upload_moves(x, u, why))
            continue;
        if (why != WHY_NONE)
            break;
        if (u->started)
            atomic_store(&u->moved_at, now_ms());
        if ((why = down->ops->write_body(down, got, &x->fail)) != WHY_NONE)
            return why;
    }
    if (why != WHY_EOF) {
        struct fail ignored = {0};

        (void)down->ops->flush(down, &ignored); /* cut, but not before here */
        return why;
    }
    why = down->ops->write_end(down, up->ops->trailers(up), &x->fail);
    return why == WHY_NONE ? down->ops->flush(down, &x->fail) : why;
}

/* The final answer is here before the request's end.  Will the rest of that not
 * be heard?  An origin that closes hears no more; and a client that was not
 * told to continue may send its content or leave it (RFC 9110 section 10.1.1),
 * so that nobody could tell what comes next. */
static bool
upload_ends_here(const struct exchange *x, struct upload *u)
{
    return list_has(x->res->connection, "close") ||
           x->res->version == HTTP_10 ||
           (x->req->expects_continue && upload_hold(u));
}

/* The final answer: head, content, trailers. */
static enum why
pass_answer(struct exchange *x, struct upload *u)
{
    struct http *down = x->down;
    const struct field *type = head_find(x->res, "Content-Type", NULL);
    struct watch watch = {nobody_waits, x};
    enum why why;

    if (atomic_load(&x->client->weir->draining))
        down->last = true;
    if (u->started && !atomic_load(&u->done) && upload_ends_here(x, u))
        down->last = u->unheard = true;
    if (binds_connection(x->res, "WWW-Authenticate"))
        x->up->bound = true;
    if (type != NULL && type->value.len >= 17 &&
        span_isi((struct span){type->value.at, 17}, "text/event-stream"))
        x->up->http->idle_ms = x->client->conf->stream_idle_s * 1000;
    if (!add_via(x->res, x->client->weir->via))
        return fail_own(&x->fail, SIDE_WEIR, WHY_BUSY, "out of memory");
    x->status = x->res->status;
    if ((why = down->ops->write_head(down, x->res, &x->fail)) != WHY_NONE)
        return why;
    x->up->http->watch = &watch;
    why = carry_content(x, u);
    x->up->http->watch = NULL;
    x->up->http->idle_ms = 0;
    return why;
}

/* ---- the end ------------------------------------------------------------- */

/* Content that is here already is read past, so that the connection can be
 * kept; if there is more to come it cannot. */
static void
discard_request(struct exchange *x)
{
    struct http *down = x->down;
    struct fail ignored = {0};
    struct span got;

    while (!down->ops->complete(down) && down->ops->pending(down))
        if (down->ops->read_body(down, &got, &ignored) != WHY_NONE)
            break;
    if (!down->ops->complete(down))
        down->last = true;
}

/* No answer from the origin: say so, as long as nothing else was said.  False:
 * the client got nothing, or less than all. */
static bool
answer_failure(struct exchange *x)
{
    struct fail writing = {0};

    if (x->status != 0 || x->fail.why == WHY_OVER ||
        why_status(x->fail.why, x->fail.side) == 0) {
        x->down->ops->abort(x->down, WHY_CUT);
        return false;
    }
    return page_error(x, &x->fail, &writing) == WHY_NONE;
}

/* After an answer, with nobody else reading any more: may another follow? */
static enum exchange_end
kept(struct exchange *x, bool answered)
{
    if (!answered)
        return EXCHANGE_CUT;
    return x->down->ops->reusable(x->down) ? EXCHANGE_KEEP : EXCHANGE_CLOSE;
}

/* RFC 9110 section 7.8: a server switches only to what it was asked for. */
static bool
upgrade_was_asked(const struct head *req, const struct head *res)
{
    struct span chosen = res->upgrade, item, rest, asked;

    while (list_next(&chosen, &item)) {
        bool found = false;

        rest = req->upgrade;
        while (!found && list_next(&rest, &asked))
            found = asked.len == item.len &&
                    strncasecmp(asked.at, item.at, item.len) == 0;
        if (!found)
            return false;
    }
    return res->upgrade.len > 0;
}

/* 101: HTTP is over on both sides; the caller makes a tunnel of them. */
static enum exchange_end
switch_protocols(struct exchange *x)
{
    enum why why;

    x->status = 101;
    if (!add_via(x->res, x->client->weir->via))
        why = fail_own(&x->fail, SIDE_WEIR, WHY_BUSY, "out of memory");
    else if ((why = x->down->ops->write_head(x->down, x->res, &x->fail)) ==
             WHY_NONE)
        why = x->down->ops->flush(x->down, &x->fail);
    return why == WHY_NONE ? EXCHANGE_RAW : EXCHANGE_CUT;
}

/* Whose fault was it?  Both threads may have met a failure. */
static void
settle_blame(struct exchange *x, struct upload *u)
{
    if (upload_client_failed(u))
        x->fail = u->fail;
    else if (x->fail.why == WHY_OVER &&
             !atomic_load(&x->client->weir->stopping))
        x->fail = (struct fail){
            .why = WHY_OVER, .side = SIDE_CLIENT, .op = "client left"};
}

/* With an origin: request up, answers down. */
static enum exchange_end
carry(struct exchange *x)
{
    struct upload u;
    bool answered = true;
    enum why why;

    upload_init(&u, x);
    why = first_answer(x, &u);
    if (why == WHY_NONE)
        why = pass_interim(x, &u);
    if (why == WHY_NONE && x->res->status == 101 &&
        !upgrade_was_asked(x->req, x->res))
        why = fail_own(&x->fail, SIDE_ORIGIN, WHY_PROTO,
                       "101 to a protocol that nobody asked for");
    if (why == WHY_NONE && x->res->status == 101) {
        enum exchange_end how = switch_protocols(x);

        upload_join(&u, true);
        return how;
    }
    if (why == WHY_NONE && x->res->status == 407 && x->up->absolute)
        why = parent_login(x);
    if (why == WHY_NONE)
        why = pass_answer(x, &u);
    if (why != WHY_NONE) {
        u.unheard = true;
        if (x->up != NULL && x->status == 0)
            upstream_judge(x->client, x->up, &x->fail);
        settle_blame(x, &u);
        if (u.started || x->fail.side == SIDE_CLIENT)
            x->down->last = true;
        else
            discard_request(x);
        answered = answer_failure(x);
    }
    upload_join(&u, why != WHY_NONE || x->down->last);
    if (x->up != NULL &&
        (why != WHY_NONE || !x->up->http->ops->reusable(x->up->http))) {
        upstream_free(x->up);
        x->up = NULL;
    }
    return kept(x, answered);
}

/* A target as it was sent.  One that is refused may have a password in it,
 * before its last "@", wherever the authority was meant to be. */
static void
log_sent_target(struct line *l, struct span target)
{
    const char *at =
        target.len > 0 ? memrchr(target.at, '@', target.len) : NULL;
    char text[1024] = "***";
    size_t len = 3, left;

    if (at == NULL) {
        log_span(l, "target", target);
        return;
    }
    left = target.len - (size_t)(at - target.at);
    left = left < sizeof text - len ? left : sizeof text - len;
    memcpy(text + len, at, left);
    log_span(l, "target", (struct span){text, len + left});
}

static void
log_exchange(const struct exchange *x)
{
    struct line l;
    const struct client *c = x->client;
    struct span authority = x->req->authority;
    bool routed = authority.len > 0 &&
                  memchr(authority.at, '@', authority.len) == NULL &&
                  x->req->method_id != METHOD_CONNECT;

    if (!log_on(LEVEL_INFO))
        return;
    log_begin(&l, LEVEL_INFO, "exchange", c->id);
    log_int(&l, "n", (int64_t)c->n_exchanges);
    if (c->stream >= 0)
        log_int(&l, "stream", c->stream);
    log_str(&l, "client", c->addr);
    log_str(&l, "version", version_name(x->req->version));
    log_span(&l, "method", x->req->method);
    if (routed) {
        char target[2048];
        int n = snprintf(target, sizeof target, "%.*s://%.*s%.*s",
                         (int)x->req->scheme.len, x->req->scheme.at,
                         (int)x->req->authority.len, x->req->authority.at,
                         (int)x->req->path.len, x->req->path.at);

        if (n > (int)sizeof target - 1)
            n = (int)sizeof target - 1;
        log_span(&l, "target", (struct span){target, (size_t)n});
    } else {
        log_sent_target(&l, x->req->target);
    }
    log_int(&l, "status", x->status);
    log_int(&l, "up", (int64_t)x->up_bytes);
    log_int(&l, "down", (int64_t)x->down_bytes);
    if (x->own)
        log_str(&l, "upstream", "none");
    else
        log_str(&l, "upstream", x->reused ? "reused" : "new");
    if (x->addr[0] != '\0' && x->hop.parent[0] == '\0')
        log_str(&l, "origin", x->addr);
    if (x->first_us != 0)
        log_str(&l, "origin_version", version_name(x->spoke));
    log_ms(&l, "dns_ms", x->took.dns_us);
    log_ms(&l, "connect_ms", x->took.connect_us);
    log_ms(&l, "tls_ms", x->took.tls_us);
    log_hop(&l, &x->hop);
    log_ms(&l, "first_ms", x->first_us != 0 ? x->first_us - x->begun_us : -1);
    log_ms(&l, "ms", now_us() - x->begun_us);
    log_fail(&l, &x->fail);
    log_send(&l);
}

/* Decide what a request is for, and do it. */
static enum exchange_end
serve(struct exchange *x)
{
    struct client *c = x->client;
    bool ourselves = false, last_hop;
    struct fail writing = {0};
    enum why why;

    why = head_route(x->req, c, &x->origin, &ourselves, &x->fail);
    if (why == WHY_NONE)
        why = access_request(c, x->req, ourselves, &x->fail);
    if (why == WHY_NONE && head_came_by(x->req, c->weir->via))
        why = fail_own(&x->fail, SIDE_WEIR, WHY_LOOP, "Via names us");
    if (why != WHY_NONE) {
        if (x->fail.side == SIDE_CLIENT && why != WHY_LOGIN)
            x->down->last = true;
        else
            discard_request(x);
        return kept(x, answer_failure(x));
    }
    last_hop = !max_forwards(x->req);
    if (ourselves || last_hop) {
        discard_request(x);
        x->own = true;
        why = last_hop ? page_trace(x, &writing) : page_own(x, &writing);
        if (why != WHY_NONE)
            x->fail = writing;
        return kept(x, why == WHY_NONE);
    }
    upstream_note_request(c, x->req);
    x->origin.tunnel |= x->req->upgrade.len > 0;
    if (!add_via(x->req, c->weir->via)) {
        fail_own(&x->fail, SIDE_WEIR, WHY_BUSY, "out of memory");
        return kept(x, answer_failure(x));
    }
    return carry(x);
}

/*
 * exchange_run - serve one request, whatever it takes.
 *
 * x  as proxy.h says; x->up on return is an idle way that may serve the next
 *    exchange (the caller's to keep, give or free), or the raw way of a 101
 *
 * Returns whether the client's connection can go on.  Everything that can go
 * wrong has then been answered and logged.
 * Thread: a worker.  Blocks: within the clocks of both sides.
 */
enum exchange_end
exchange_run(struct exchange *x)
{
    enum exchange_end how;

    x->client->n_exchanges++;
    /* RFC 9112 section 9.3: a proxy keeps no connection of an HTTP/1.0 client,
     * which cannot tell whether its Connection field was understood. */
    if (atomic_load(&x->client->weir->draining) ||
        (x->req->version == HTTP_10 && x->client->inside == NULL))
        x->down->last = true;
    x->took = (struct clock_marks){-1, -1, -1};
    x->hop = (struct hop){.connect_us = -1, .answer_us = -1};
    how = serve(x);
    x->up_bytes = x->down->n_in;
    x->down_bytes = x->down->n_out;
    log_exchange(x);
    return how;
}

/*
 * exchange_refuse - answer what is not even a request.
 *
 * x  fail says what was wrong; req may be half filled
 *
 * Returns EXCHANGE_CLOSE or EXCHANGE_CUT: what follows on the connection
 * cannot be trusted.
 */
enum exchange_end
exchange_refuse(struct exchange *x)
{
    enum exchange_end how;

    x->client->n_exchanges++;
    x->took = (struct clock_marks){-1, -1, -1};
    x->down->last = true;
    how = kept(x, answer_failure(x));
    log_exchange(x);
    return how;
}
