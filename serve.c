/*
 * serve.c - serve one stream of a client's session: a request, or a CONNECT.
 *
 * To an exchange a stream is a struct http as any other.  A CONNECT leads to a
 * tunnel; if what is inside may be looked into, the tunnel leads to one end of
 * a socket pair, and the other end becomes a connection of its own whose
 * target is known: interception never learns where its bytes come from.
 *
 * Follows  RFC 9113 section 8.5 (CONNECT), RFC 8441 (extended CONNECT), RFC
 *          9298 (connect-udp).
 * Owns     the user's reference to the stream.
 * Threads  a worker of weir->exchanges and its twin.
 * Blocks   as exchange_run() and tunnel_run() do.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proxy.h"

struct served {
    struct task job; /* first: the pool's */
    struct stream *stream;
    struct client client; /* a copy: several streams are served at once */
    struct config *conf;  /* newer than the connection's; NULL: the same */
};

static void serve_stream(struct task *, struct worker *);
static void refuse(struct task *);

/*
 * served_new - a job for serve_begin().
 *
 * s     the user's reference becomes the job's
 * from  copied; what it points to outlives the stream.  This is one exchange
 *       more of its session
 *
 * Returns NULL: out of memory, the stream is still the caller's.
 */
struct served *
served_new(struct stream *s, struct client *from)
{
    struct served *v = malloc(sizeof *v);

    if (v == NULL)
        return NULL;
    *v = (struct served){
        .job = {serve_stream, refuse}, .stream = s, .client = *from};
    if (atomic_load(&from->weir->config) != from->conf)
        v->client.conf = v->conf = config_take(from->weir);
    v->client.stream = s->id;
    from->n_exchanges++; /* the copy's own counts itself */
    v->client.told = NULL;
    return v;
}

static void
served_free(struct served *v)
{
    stream_give(v->stream);
    config_give(v->conf);
    free(v->client.told);
    free(v);
}

/* No worker will take it: the client may ask again (RFC 9113 section 8.7). */
static void
refuse(struct task *job)
{
    struct served *v = (struct served *)job;

    v->stream->http.ops->abort(&v->stream->http, WHY_BUSY);
    served_free(v);
}

static void
say_state(const struct served *v, const char *state)
{
    if (log_on(LEVEL_DEBUG))
        log_say(LEVEL_DEBUG, v->client.id, "state", "stream %lld %s",
                (long long)v->stream->id, state);
}

/* ---- CONNECT ------------------------------------------------------------- */

/* Bytes both ways until both directions have ended. */
static void
tunnel(struct served *v, struct worker *w, struct tunnel_side to, int idle_ms,
       const struct upstream *up)
{
    struct tunnel_result r;
    int64_t from_us = now_us();

    say_state(v, "tunnel");
    tunnel_run(w, v->client.weir,
               (struct tunnel_side){.http = &v->stream->http}, to, idle_ms,
               v->client.conf->half_closed_s * 1000, &r);
    if (up != NULL)
        tunnel_log(&v->client, up, &r, from_us);
}

/* What is inside may be looked into: by a connection of its own. */
static void
hand_over(struct served *v, struct worker *w, const struct origin *to,
          struct upstream *up)
{
    struct conn *inner = NULL;
    struct end end;
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
        log_say(LEVEL_WARN, v->client.id, "connect", "socket pair: %s",
                sys_text(errno));
        upstream_free(up);
        return;
    }
    end_init(&end, fds[0], SIDE_ORIGIN, v->client.conf->idle_s * 1000);
    inner = conn_new_inside(&v->client, fds[1], to, up);
    if (inner == NULL) {
        close(fds[1]);
        upstream_free(up);
    } else if (!end_pair(&end, &inner->end)) {
        conn_free(inner);
    } else if (listeners_adopt(v->client.weir->listeners, inner)) {
        /* The inner connection has the clocks; ours only has to outlast
         * them. */
        tunnel(v, w, (struct tunnel_side){.end = &end},
               2 * v->client.conf->stream_idle_s * 1000, NULL);
    }
    end_clear(&end);
}

static enum why
answer_connect(struct http *down, struct head *res, struct fail *f)
{
    enum why why;

    res->version = down->version;
    res->status = 200;
    res->body = BODY_RAW;
    why = down->ops->write_head(down, res, f);
    return why == WHY_NONE ? down->ops->flush(down, f) : why;
}

/* Its frame is large: not below every request that waits for its answer. */
static void __attribute__((noinline))
serve_connect(struct served *v, struct exchange *x)
{
    struct client *c = &v->client;
    bool own, wanted;
    struct upstream *up = NULL;
    struct origin to, https;
    struct fail f = {0};

    if (connect_route(c, x->req, &to, &x->fail) != WHY_NONE) {
        exchange_refuse(x);
        return;
    }
    own = strcmp(to.host, WEIR_HOST) == 0;
    wanted = own || conn_wants(c->conf, &to);
    https = to;
    https.tls = true;
    say_state(v, "dial");
    /* An idle way to the same origin proves as much as a new one. */
    if (!own && !(wanted && upstream_reaches(c, &https)) &&
        (up = upstream_dial(c, &to, &x->fail)) == NULL) {
        exchange_refuse(x);
        return;
    }
    if (answer_connect(x->down, x->res, &f) != WHY_NONE) {
        upstream_free(up);
    } else if (wanted) {
        hand_over(v, x->worker, &to, up);
    } else {
        tunnel(v, x->worker, (struct tunnel_side){.end = &up->end},
               c->conf->idle_s * 1000, up);
        upstream_free(up);
    }
}

/* Datagrams: RFC 9298. */
static void
serve_masque(struct served *v, struct exchange *x)
{
    struct masque *m = masque_open(&v->client, x->req, &x->fail);
    struct fail f = {0};

    if (m == NULL) {
        exchange_refuse(x);
        return;
    }
    say_state(v, "masque");
    if (masque_answer(x->down, x->res, &f) == WHY_NONE)
        masque_run(m, x->worker, (struct tunnel_side){.http = x->down},
                   x->down->version == HTTP_3 ? v->stream : NULL);
    masque_free(m);
}

/* ---- requests ------------------------------------------------------------ */

static void
serve_request(struct served *v, struct exchange *x)
{
    say_state(v, "exchange");
    if (exchange_run(x) == EXCHANGE_RAW) {
        tunnel(v, x->worker, upstream_side(x->up),
               v->client.conf->stream_idle_s * 1000, x->up);
        upstream_free(x->up);
    } else {
        upstream_give(&v->client, x->up);
    }
}

/* One stream, from its request's head to its end.  w: NULL on a fiber. */
static void
serve_stream(struct task *job, struct worker *w)
{
    struct served *v = (struct served *)job;
    struct http *down = &v->stream->http;
    struct head req, res;
    struct exchange x = {.client = &v->client,
                         .worker = w,
                         .down = down,
                         .req = &req,
                         .res = &res,
                         .begun_us = now_us()};

    head_init(&req);
    head_init(&res);
    x.fail = v->stream->refused;
    if (down->ops->read_head(down, &req, &x.fail) == WHY_NONE) {
        if (x.fail.why != WHY_NONE)
            exchange_refuse(&x);
        else if (req.method_id == METHOD_CONNECT)
            serve_connect(v, &x);
        else if (masque_wanted(&v->client, &req))
            serve_masque(v, &x);
        else
            serve_request(v, &x);
    }
    head_clear(&req);
    head_clear(&res);
    served_free(v);
}

static void
fiber_run(void *job)
{
    struct weir *weir = ((struct served *)job)->client.weir;

    serve_stream(job, NULL);
    atomic_fetch_sub(&weir->n_fibers, 1);
}

/* The pool's serve(): a stream, or what a fiber may not wait for. */
void
serve_job(void *job, struct worker *w)
{
    struct task *j = job;

    j->run(j, w);
}

/* Can it do without a second thread, and without waiting by other means than
 * sockets and streams?  A request that is complete can. */
static bool
fits_fiber(const struct served *v)
{
    const struct stream *s = v->stream;

    return s->remote_end && !s->connect && s->refused.why == WHY_NONE;
}

/*
 * serve_begin - have the stream served, on one of the owner's fibers or by a
 * worker.
 *
 * v  of served_new(); whatever happens, not the caller's any more
 *
 * Returns true: the client was told if nobody could.
 * Thread: the owner of the stream's session.
 */
bool
serve_begin(struct served *v, struct fibers *fibers)
{
    if (fits_fiber(v)) {
        struct weir *weir = v->client.weir;

        if (atomic_fetch_add(&weir->n_fibers, 1) <
                v->client.conf->streams_total &&
            fibers_start(fibers, fiber_run, v))
            return true;
        atomic_fetch_sub(&weir->n_fibers, 1);
        refuse(&v->job);
        return true;
    }
    if (!pool_submit(v->client.weir->exchanges, v))
        refuse(&v->job);
    return true;
}
