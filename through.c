/*
 * through.c - a way to a target that leads through a parent.
 *
 * A CONNECT to an HTTP proxy, a SOCKS 5 conversation, or nothing at all where a
 * plain request goes to the proxy itself in absolute-form.  An https:// parent
 * may choose HTTP/2: then there is one session with it, each tunnel is a stream
 * of that, which bridge.c makes an end of, and each plain request another.
 *
 * Follows  RFC 9110 section 9.3.6 (CONNECT), RFC 9112 section 3.2, RFC 9113
 *          section 8.5, RFC 1928, RFC 1929.
 * Owns     nothing: the way is the caller's, the sessions are session.c's.
 * Threads  any.
 * Blocks   dns_s, connect_s for TCP and again for TLS, response_s for the
 *          answer; as long again if a session proves to be at its end.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "proxy.h"

enum {
    HEAD_BYTES = 32768, /* of the answer to a CONNECT */
    HEAD_FIELDS = 200,
    INTERIM_MAX = 100,  /* 1xx answers before the real one */
    CONNECT_ERROR = 10, /* of a stream: its target's TCP (RFC 9113 7) */
    CIRCLE_MAX = 64,    /* who may wait for a SOCKS parent at once */
    CIRCLE_MS = 1000,   /* or more, if it answers one in so long */
};

/* ---- through an HTTP proxy ----------------------------------------------- */

/* The chain of proxies so far, and us: a loop of proxies sees itself in it. */
static bool
add_via(const struct client *c, struct head *req)
{
    const char *before = c->told != NULL ? c->told->via : "";
    char via[VIA_MAX + 96];
    int n = snprintf(via, sizeof via, "%s%s1.1 %s", before,
                     before[0] != '\0' ? ", " : "", c->weir->via);

    return head_add(req, span_of("Via"), head_text(req, via, (size_t)n));
}

static enum why
send_connect(const struct client *c, struct upstream *up, struct http *http,
             struct fail *f)
{
    const struct origin *o = &up->origin;
    char target[HOST_MAX + 16];
    struct head req;
    enum why why;

    head_init(&req);
    snprintf(target, sizeof target,
             strchr(o->host, ':') != NULL ? "[%s]:%u" : "%s:%u", o->host,
             o->port);
    req.version = http->version;
    req.method = span_of("CONNECT");
    req.method_id = METHOD_CONNECT;
    req.authority = req.target = span_of(target);
    http->credentials = parent_credentials(c, up->parent);
    if (!add_via(c, &req))
        why = fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    else if ((why = http->ops->write_head(http, &req, f)) == WHY_NONE)
        why = http->ops->flush(http, f);
    head_clear(&req);
    return why;
}

/* The parent said no.  RFC 9209 section 2.1.4 has a place for its status. */
static enum why
refused_by(const struct client *c, const struct parent *p,
           const struct head *res, struct fail *f)
{
    const struct field *challenge = head_find(res, "Proxy-Authenticate", NULL);
    enum why why = res->status == 407   ? WHY_PARENT_LOGIN
                   : res->status == 503 ? WHY_PARENT_BUSY
                   : res->status == 504 ? WHY_PARENT_LATE
                                        : WHY_PARENT_NO;

    if (why == WHY_PARENT_LOGIN && c->conf->forward_proxy_auth &&
        p->basic == NULL && challenge != NULL) {
        fail_say(f, SIDE_CLIENT, WHY_LOGIN, "parent wants a login", "%.*s",
                 (int)challenge->value.len, challenge->value.at);
        f->challenged = true;
    } else {
        struct span reason = res->reason.len > 0
                                 ? res->reason
                                 : span_of(status_reason(res->status));

        fail_say(f, SIDE_ORIGIN, why, "CONNECT", "%s answered %d %.*s", p->text,
                 res->status, (int)reason.len, reason.at);
    }
    f->received = res->status;
    return f->why;
}

/* A codec of ours keeps to these by itself, a session has others. */
static enum why
head_size(const struct head *res, struct fail *f)
{
    size_t n = 0;

    for (size_t i = 0; i < res->n_fields; i++)
        n += res->fields[i].name.len + res->fields[i].value.len + 4;
    if (n > HEAD_BYTES || res->n_fields > HEAD_FIELDS)
        return fail_own(f, SIDE_ORIGIN, WHY_LIMIT, "size of a head");
    return WHY_NONE;
}

/* The final answer, within response_s for all of them. */
static enum why
read_final(const struct client *c, struct http *http, struct head *res,
           struct fail *f)
{
    int64_t until = now_ms() + c->conf->response_s * 1000LL;
    enum why why = WHY_NONE;
    int n = 0;

    do {
        int64_t left = until - now_ms();

        if (left <= 0)
            return fail_own(f, SIDE_ORIGIN, WHY_LATE, "read answer head");
        if (n++ > INTERIM_MAX)
            return fail_own(f, SIDE_ORIGIN, WHY_PROTO,
                            "too many interim answers");
        head_reset(res);
        http->idle_ms = (int)left;
        why = http->ops->read_head(http, res, f);
        if (why == WHY_NONE)
            why = head_size(res, f);
    } while (why == WHY_NONE && res->status < 200);
    http->idle_ms = 0;
    if (why == WHY_EOF)
        fail_own(f, SIDE_ORIGIN, WHY_EOF, "read the parent's answer");
    return why;
}

/* Send a CONNECT, read up to the end of the answer's head. */
static enum why
ask_connect(const struct client *c, struct upstream *up, struct http *http,
            bool *spoke, struct fail *f)
{
    struct head res;
    enum why why;

    head_init(&res);
    why = send_connect(c, up, http, f);
    if (why == WHY_NONE)
        why = read_final(c, http, &res, f);
    *spoke = why == WHY_NONE ||
             (why == WHY_CUT && up->stream != NULL && f->code == CONNECT_ERROR);
    if (why == WHY_NONE && res.status / 100 != 2)
        why = refused_by(c, up->parent, &res, f);
    head_clear(&res);
    return why;
}

/* On a connection of its own.  What stands behind the answer's head stays
 * buffered in the end: it belongs to the tunnel. */
static enum why
connect_by_end(const struct client *c, struct upstream *up, bool *spoke,
               struct fail *f)
{
    struct h1 h;
    enum why why;

    h1_init(&h, &up->end, SIDE_ORIGIN, c->conf);
    h.limits.head_bytes = HEAD_BYTES;
    h.limits.n_fields = HEAD_FIELDS;
    h.limits.head_ms = c->conf->response_s * 1000;
    why = ask_connect(c, up, &h.http, spoke, f);
    h1_clear(&h);
    return why;
}

static void
forget_stream(struct upstream *up)
{
    up->stream = NULL;
    up->session = NULL;
    up->http = NULL;
    up->reused = false;
}

/* On a stream of a session, which becomes an end. */
static enum why
connect_by_stream(const struct client *c, struct upstream *up, bool *spoke,
                  struct fail *f)
{
    enum why why = ask_connect(c, up, up->http, spoke, f);

    if (why == WHY_NONE)
        why = bridge_stream(up->stream, &up->end, c->conf->idle_s * 1000, f);
    if (why == WHY_NONE)
        forget_stream(up);
    return why;
}

/* ---- through a SOCKS proxy ----------------------------------------------- */

static struct { /* somebody has an answer of his SOCKS parent */
    pthread_mutex_t lock;
    pthread_cond_t news;
} answers = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER};

/* Does the client come from where the parent is? */
static bool
comes_from(const struct client *c, const char *addr)
{
    const char *client = strrchr(c->addr, ':'), *parent = strrchr(addr, ':');

    return client != NULL && parent != NULL &&
           client - c->addr == parent - addr &&
           memcmp(c->addr, addr, (size_t)(parent - addr)) == 0;
}

/*
 * SOCKS has no Via: two proxies that are each other's parent cannot see that
 * they ask in a circle.  But then the parent asks us whatever we ask it, more
 * and more waits for it, and none of that is answered.  A crowd of honest
 * clients on the parent's machine gets its answers, sooner or later.
 */
static bool
goes_round(const struct client *c, const struct upstream *up)
{
    struct parent *p = up->parent;
    unsigned before = atomic_load(&p->n_answers);
    int64_t until = now_ms() + CIRCLE_MS;

    if (atomic_load(&p->n_asking) <= CIRCLE_MAX || !comes_from(c, up->addr))
        return false;
    pthread_mutex_lock(&answers.lock);
    while (atomic_load(&p->n_answers) == before && now_ms() < until)
        cond_until(&answers.news, &answers.lock, until);
    pthread_mutex_unlock(&answers.lock);
    return atomic_load(&p->n_answers) == before;
}

static enum why
ask_socks(const struct client *c, struct upstream *up, bool *spoke,
          struct fail *f)
{
    struct parent *p = up->parent;
    enum why why;

    atomic_fetch_add(&p->n_asking, 1);
    if (goes_round(c, up)) {
        *spoke = true; /* it is not to blame */
        why = fail_say(f, SIDE_WEIR, WHY_LOOP, "SOCKS",
                       "%s seems to ask us what we ask it", p->text);
    } else {
        why = socks_ask(&up->end, &up->origin, p, spoke, f);
    }
    atomic_fetch_sub(&p->n_asking, 1);
    pthread_mutex_lock(&answers.lock);
    atomic_fetch_add(&p->n_answers, 1);
    pthread_cond_broadcast(&answers.news);
    pthread_mutex_unlock(&answers.lock);
    return why;
}

/* ---- opening ------------------------------------------------------------- */

/* A connection to the parent; one that speaks HTTP/2 becomes a session that
 * others share. */
static enum why
reach_anew(const struct client *c, struct secure *s, struct sessions *ss,
           struct upstream *up, struct fail *f)
{
    struct parent *p = up->parent;
    struct clock_marks took = {-1, -1, -1};
    int64_t from = now_us();
    int fd = -1;
    enum why why =
        dial(c, p->host, p->port, ACCESS_GRANTED, &fd, up->addr, &took, f);

    if (why != WHY_NONE)
        return why;
    end_init(&up->end, fd, SIDE_ORIGIN, c->conf->idle_s * 1000);
    if (p->tls && (why = secure_parent(s, c, &up->end, p, f)) != WHY_NONE)
        return why;
    up->hop.connect_us = now_us() - from;
    atomic_store(&p->alpn, end_chose_h2(&up->end) ? ALPN_H2 : ALPN_HTTP1);
    if (atomic_load(&p->alpn) != ALPN_H2)
        return WHY_NONE;
    if ((why = session_start(ss, c, up, f)) == WHY_NONE)
        (void)session_extended(up); /* waits: how many streams may there be? */
    return why;
}

/* What a session leads to: the parent itself, whatever is asked of it. */
const struct origin parent_itself;

/* A way to the parent: a stream of a session that is there, unless `fresh`, or
 * a connection. */
static enum why
reach(const struct client *c, struct secure *s, struct sessions *ss,
      struct upstream *up, bool fresh, struct fail *f)
{
    struct origin to = up->origin;
    struct parent *p = up->parent;
    struct dialling *turn = NULL;
    int64_t from = now_us();
    bool taken = false;
    enum why why = WHY_NONE;

    up->origin = parent_itself;
    if (p->tls && atomic_load(&p->alpn) != ALPN_HTTP1 && !fresh) {
        taken = session_take(ss, c, &parent_itself, p, HTTP_2, up);
        if (!taken)
            turn = sessions_turn(
                ss, &parent_itself, p,
                now_ms() + (c->conf->dns_s + 2 * c->conf->connect_s) * 1000LL);
        if (!taken && turn == NULL)
            taken = session_take(ss, c, &parent_itself, p, HTTP_2, up);
        if (taken) /* next to nothing, or another's dialling */
            up->hop.connect_us = now_us() - from;
    }
    if (!taken)
        why = reach_anew(c, s, ss, up, f);
    sessions_turned(ss, turn);
    up->origin = to;
    return why;
}

/* Reach the parent, and have it reach the target.  *spoke: it answered. */
static enum why
open_through(const struct client *c, struct secure *s, struct sessions *ss,
             struct upstream *up, bool fresh, bool *spoke, struct fail *f)
{
    const struct parent *p = up->parent;
    int64_t from;
    enum why why = reach(c, s, ss, up, fresh, f);

    if (why != WHY_NONE)
        return why;
    if ((up->absolute = parent_absolute(p, &up->origin)))
        return WHY_NONE; /* what it is worth shows with its first answer */
    from = now_us();
    up->end.deadline = now_ms() + c->conf->response_s * 1000LL;
    if (p->kind == PARENT_SOCKS)
        why = ask_socks(c, up, spoke, f);
    else if (up->stream != NULL)
        why = connect_by_stream(c, up, spoke, f);
    else
        why = connect_by_end(c, up, spoke, f);
    up->end.deadline = 0;
    up->hop.answer_us = now_us() - from;
    return why;
}

/* A session that others have used may be at its end without our knowing, or
 * take no more: another connection may do better. */
static bool
was_stale(const struct upstream *up, enum why why)
{
    return up->stream != NULL && up->reused &&
           (why == WHY_UNPROCESSED || why == WHY_EOF || why == WHY_SYS);
}

/*
 * through_open - a way to up->origin through up->parent.
 *
 * up  its end is nothing yet.  On WHY_NONE it is connected, bare, and its
 *     `absolute` says what may be spoken on it; or it is a stream, on which the
 *     parent takes the request
 *
 * Returns WHY_NONE; what dial(), secure_parent() and the codecs return, with
 * the parent named; WHY_PARENT_NO, _LOGIN, _BUSY, _LATE: what the parent
 * answered; from SOCKS also WHY_REFUSED, WHY_UNREACHABLE, WHY_CONNECT_LATE, and
 * WHY_LOOP: it seems to ask us the same.
 * *again: it is no use asking this parent, but another may do.
 */
enum why
through_open(const struct client *c, struct secure *s, struct sessions *ss,
             struct upstream *up, bool *again, struct fail *f)
{
    struct parent *p = up->parent;
    bool spoke = false;
    enum why why;

    snprintf(up->hop.parent, sizeof up->hop.parent, "%s", p->text);
    why = open_through(c, s, ss, up, false, &spoke, f);
    if (!spoke && was_stale(up, why)) {
        stream_give(up->stream);
        forget_stream(up);
        *f = (struct fail){0};
        why = open_through(c, s, ss, up, true, &spoke, f);
    }
    *again = why != WHY_NONE && !spoke && why != WHY_OVER;
    if (why == WHY_LOOP && p->from_env) {
        atomic_store(&p->ourselves, true); /* the environment is for others */
        return why;
    }
    if (why != WHY_NONE && f->detail[0] == '\0')
        snprintf(f->detail, sizeof f->detail, "parent %.110s", p->text);
    if (spoke)
        parent_judge(p, NULL, c->id);
    else if (*again)
        parent_judge(p, f, c->id);
    return why;
}
