/*
 * masque.c - UDP through HTTP: connect-udp.
 *
 * A client asks for a host and a port with a path of ours; from the answer on,
 * the stream is a tunnel for datagrams.  Each of them is a capsule on it, with
 * a context in front: 0 means the content of a UDP packet, and there is no
 * other that we know.
 *
 * HTTP/3 has datagrams of its own; then capsules are for peers who want none.
 *
 * Nothing waits here for room.  What the socket to the target does not take is
 * dropped and counted; what the client's connection does not take makes the
 * kernel drop what comes next, and that is counted, too.
 *
 * What is inside may be a QUIC connection that is ours to look into (nested.c).
 *
 * Follows  RFC 9298, RFC 9297.
 * Owns     the socket to the target, the buffers of both directions.
 * Threads  a worker enters by masque_run() and carries up; its twin carries
 *          down.  Datagrams of HTTP/3 are carried up by their session's owner,
 *          and connections inside send down from their owners' threads.
 * Blocks   as long as the tunnel lives.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "proxy.h"

enum {
    LOOK_MS = 1000,      /* how often one who waits looks around */
    HEAD_MAX = 8,        /* of a capsule and the context */
    GRAM_MAX = 2048,     /* a datagram of HTTP/3 */
    INNER_MAX = 1 << 18, /* bytes that connections inside may send ahead */
};

static const char template[] = "/.well-known/masque/udp/";

struct way { /* what went one way */
    struct traffic t;
    struct fail fail;
};

struct batch { /* packets' contents, to be sent together */
    int n;
    struct iovec all[LOT_MAX];
};

struct masque {
    struct client *client;
    struct origin target;
    int fd;
    char addr[ADDR_MAX];
    struct clock_marks took;
    int64_t from_us;
    int idle_ms;
    struct tunnel_side side;
    struct stream *stream; /* HTTP/3, for its datagrams; else NULL */
    int wake_fd;           /* an eventfd: something is in `inner` */
    /* any thread */
    atomic_bool stop;
    atomic_llong moved_at;
    atomic_bool opaque; /* nested has nothing to say any more */
    struct way *first;  /* who set `stop`; read after the join */
    /* needs lock: what comes from the client, as long as it is not opaque */
    pthread_mutex_t lock;
    struct nested *nested; /* NULL: opaque from the start */
    struct traffic passed; /* up, after it had to wait there */
    /* needs down_lock: what connections inside send */
    pthread_mutex_t down_lock;
    struct store inner; /* capsules */
    struct traffic inner_down;
    /* the worker's, the session's owner's, the twin's */
    struct way up, heard, down;
    struct capsules capsules;  /* the worker's */
    struct batch batch, grams; /* the worker's, the session's owner's */
    char *gram_buf;            /* what lies in `grams` */
    atomic_bool single;        /* packets are sent one by one */
};

/* ---- what is asked for --------------------------------------------------- */

/* Is this connect-udp for ourselves, so that no origin shall see it?  Clients
 * name us with our port, or with none. */
bool
masque_wanted(const struct client *c, struct head *req)
{
    size_t n = sizeof template - 1;
    struct origin to;
    struct fail ignored = {0};
    bool ourselves;
    char host[HOST_MAX + 1];
    uint16_t port;

    if (c->inside != NULL || !list_has(req->upgrade, "connect-udp") ||
        head_route(req, c, &to, &ourselves, &ignored) != WHY_NONE ||
        req->path.len < n || memcmp(req->path.at, template, n) != 0)
        return false;
    return ourselves || (authority_parse(req->authority, host, &port) &&
                         port == 0 && host_is_ours(c->conf, host));
}

/* "%3A" and the like.  False: malformed, or too long. */
static bool
percent_decode(struct span from, char to[HOST_MAX + 1])
{
    size_t n = 0;

    for (size_t i = 0; i < from.len; i++) {
        int c = (unsigned char)from.at[i];

        if (c == '%') {
            if (i + 2 >= from.len || hex_digit(from.at[i + 1]) < 0 ||
                hex_digit(from.at[i + 2]) < 0)
                return false;
            c = hex_digit(from.at[i + 1]) << 4 | hex_digit(from.at[i + 2]);
            i += 2;
        }
        if (c == '\0' || n == HOST_MAX)
            return false;
        to[n++] = (char)c;
    }
    to[n] = '\0';
    return n > 0;
}

/* A name or an address, with no brackets around it (RFC 9298 section 2). */
static bool
host_of(struct span text, char out[HOST_MAX + 1])
{
    char plain[HOST_MAX + 1], whole[HOST_MAX + 3];
    uint16_t port;
    int n;

    if (!percent_decode(text, plain))
        return false;
    n = snprintf(whole, sizeof whole,
                 strchr(plain, ':') != NULL ? "[%s]" : "%s", plain);
    return authority_parse((struct span){whole, (size_t)n}, out, &port) &&
           port == 0 && out[0] != '\0';
}

/*
 * masque_target - host and port of a path of ours.
 *
 * path  TEMPLATE host "/" port "/"
 *
 * Returns false: malformed.
 */
bool
masque_target(struct span path, char host[HOST_MAX + 1], uint16_t *port)
{
    size_t n = sizeof template - 1;
    const char *slash;
    struct span name, number;
    uint64_t value;

    if (path.len < n || memcmp(path.at, template, n) != 0)
        return false;
    path = (struct span){path.at + n, path.len - n};
    if ((slash = memchr(path.at, '/', path.len)) == NULL)
        return false;
    name = (struct span){path.at, (size_t)(slash - path.at)};
    number = (struct span){slash + 1, path.len - name.len - 1};
    if (number.len < 2 || number.at[number.len - 1] != '/')
        return false;
    number.len--;
    if (!span_number(number, &value) || value < 1 || value > UINT16_MAX)
        return false;
    *port = (uint16_t)value;
    return host_of(name, host);
}

/* What the request says, and whether it may.  RFC 9298 section 3. */
static enum why
judge_request(struct masque *m, struct head *req, enum access *what,
              struct fail *f)
{
    struct client *c = m->client;
    struct origin *to = &m->target, here;
    enum why why = connect_route(c, req, &here, f);

    if (why != WHY_NONE)
        return why;
    if (req->method_id != METHOD_GET || req->body == BODY_STREAM ||
        (req->body == BODY_LENGTH && req->length > 0))
        return fail_own(f, SIDE_CLIENT, WHY_PROTO,
                        "connect-udp other than by GET without content");
    if (!masque_target(req->path, to->host, &to->port))
        return fail_own(f, SIDE_CLIENT, WHY_PROTO,
                        "malformed target of connect-udp");
    to->tunnel = true;
    if (strcmp(to->host, WEIR_HOST) == 0)
        return fail_own(f, SIDE_WEIR, WHY_LOOP, "connect-udp to ourselves");
    why = access_target(c, to->host, to->port, what, f);
    if (why == WHY_NONE && !parent_is_direct(c->conf, to))
        why = fail_own(f, SIDE_ORIGIN, WHY_UNREACHABLE,
                       "a parent proxy carries no UDP");
    return why;
}

/*
 * masque_open - the way to the target that a request names.
 *
 * c    stays the caller's, for as long as what is returned
 * req  for which masque_wanted() is true
 *
 * Returns NULL: f says how it is to be answered.  Blocks: dns_s.
 */
struct masque *
masque_open(struct client *c, struct head *req, struct fail *f)
{
    struct masque *m = calloc(1, sizeof *m);
    enum access what = ACCESS_BY_ADDRESS;
    enum why why;

    if (m == NULL) {
        fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
        return NULL;
    }
    m->client = c;
    m->fd = m->wake_fd = -1;
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->down_lock, NULL);
    m->from_us = now_us();
    m->took = (struct clock_marks){-1, -1, -1};
    m->idle_ms = c->conf->udp_idle_s * 1000;
    if (atomic_fetch_add(&c->weir->n_udp_tunnels, 1) >= c->conf->udp_tunnels)
        why = fail_own(f, SIDE_WEIR, WHY_BUSY, "number of UDP tunnels");
    else if ((why = judge_request(m, req, &what, f)) == WHY_NONE)
        why = dial_udp(c, m->target.host, m->target.port, what, &m->fd, m->addr,
                       &m->took, f);
    if (why == WHY_NONE &&
        (m->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        why = fail_sys(f, SIDE_WEIR, "UDP tunnel", errno);
    if (why != WHY_NONE) {
        masque_free(m);
        return NULL;
    }
    lots_set_up(m->fd);
    return m;
}

/* Give it back, in whatever state.  NULL: nothing. */
void
masque_free(struct masque *m)
{
    if (m == NULL)
        return;
    atomic_fetch_sub(&m->client->weir->n_udp_tunnels, 1);
    if (m->fd >= 0)
        close(m->fd);
    if (m->wake_fd >= 0)
        close(m->wake_fd);
    capsules_clear(&m->capsules);
    store_clear(&m->inner);
    free(m->gram_buf);
    pthread_mutex_destroy(&m->lock);
    pthread_mutex_destroy(&m->down_lock);
    free(m);
}

/*
 * masque_answer - yes: datagrams may come.
 *
 * res  for the answer, written and flushed
 */
enum why
masque_answer(struct http *down, struct head *res, struct fail *f)
{
    enum why why;

    head_reset(res);
    res->version = HTTP_11;
    res->status = 101;
    res->own = true;
    res->reason = span_of(status_reason(101));
    res->upgrade = span_of("connect-udp");
    res->body = BODY_RAW;
    if (!head_add(res, span_of("Capsule-Protocol"), span_of("?1")))
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    why = down->ops->write_head(down, res, f);
    return why == WHY_NONE ? down->ops->flush(down, f) : why;
}

/* ---- both directions ----------------------------------------------------- */

static void
moved(struct masque *m)
{
    atomic_store_explicit(&m->moved_at, now_ms(), memory_order_relaxed);
}

/* This direction has ended, by `why`: so has the tunnel. */
static void
finish(struct masque *m, struct way *way, enum why why)
{
    if (atomic_exchange(&m->stop, true))
        return;
    m->first = way;
    if (way != &m->down) /* the twin sleeps in poll(2) */
        shutdown(m->fd, SHUT_RDWR);
    if (way != &m->up && why != WHY_NONE) /* the worker waits for the client */
        side_cut(&m->side);
}

/* ---- up: datagrams to packets -------------------------------------------- */

/* What has come of the socket.  After the tunnel's end it is our doing. */
static enum why
judge(struct masque *m, struct way *way, int code, const char *op)
{
    if (atomic_load(&m->stop))
        return WHY_OVER;
    return code != 0 ? fail_sys(&way->fail, SIDE_ORIGIN, op, code) : WHY_NONE;
}

/* What nested.c had kept, and does not want.  Its sender gets the failure of
 * what comes next. */
static void
pass_on(void *arg, const void *at, size_t len)
{
    struct masque *m = arg;

    if (send(m->fd, at, len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        m->passed.dropped++;
        return;
    }
    m->passed.packets++;
    m->passed.bytes += len;
}

/* To whom they are for: the target, or a connection inside. */
static enum why
carry_packets(struct masque *m, struct way *way, struct batch *b)
{
    int i = 0, n = b->n;

    b->n = 0;
    if (!atomic_load(&m->opaque)) {
        pthread_mutex_lock(&m->lock);
        for (; i < n &&
               nested_put(m->nested, b->all[i].iov_base, b->all[i].iov_len);
             i++) {
            way->t.bytes += b->all[i].iov_len;
            way->t.packets++;
        }
        if (i < n)
            atomic_store(&m->opaque, true);
        pthread_mutex_unlock(&m->lock);
    }
    return judge(m, way,
                 lots_send(m->fd, b->all + i, n - i, &m->single, &way->t),
                 "send");
}

/* The content of a datagram, without its context.  WHY_MORE: it is in one that
 * we do not know (RFC 9298 section 4: dropped silently). */
static enum why
unwrap(struct way *way, struct span value, struct iovec *content)
{
    uint64_t context;
    size_t n = varint_parse(value.at, value.len, &context);

    if (n == 0)
        return fail_own(&way->fail, SIDE_CLIENT, WHY_PROTO,
                        "datagram without a context");
    if (context != 0)
        return WHY_MORE;
    if (value.len - n > UDP_MAX)
        return fail_own(&way->fail, SIDE_CLIENT, WHY_PROTO,
                        "datagram longer than UDP's");
    *content = (struct iovec){(void *)(value.at + n), value.len - n};
    return WHY_NONE;
}

/* Those that came together.  The session's owner calls. */
static void
heard(void *arg)
{
    struct masque *m = arg;
    enum why why = carry_packets(m, &m->heard, &m->grams);

    if (why != WHY_NONE && why != WHY_OVER)
        finish(m, &m->heard, why);
}

/* A datagram of HTTP/3.  The session's owner calls; it is gone when we return.
 */
static void
hear(void *arg, const void *at, size_t len)
{
    struct masque *m = arg;
    struct iovec *content = &m->grams.all[m->grams.n];
    char *buf = m->gram_buf + m->grams.n * GRAM_MAX;
    enum why why;

    if (atomic_load(&m->stop) || len > GRAM_MAX)
        return;
    moved(m);
    memcpy(buf, at, len);
    why = unwrap(&m->heard, (struct span){buf, len}, content);
    if (why == WHY_NONE && ++m->grams.n == LOT_MAX)
        heard(m);
    if (why != WHY_NONE && why != WHY_MORE)
        finish(m, &m->heard, why);
}

/* One as it lies in its capsule. */
static enum why
batch_add(struct masque *m, struct span value)
{
    enum why why = unwrap(&m->up, value, &m->batch.all[m->batch.n]);

    m->batch.n += why == WHY_NONE;
    return why == WHY_MORE ? WHY_NONE : why;
}

/* A datagram that is too long begins like this: nobody may send one in context
 * 0 (RFC 9298 section 5), of any other we know nothing. */
static enum why
judge_long(struct masque *m, struct span begins)
{
    uint64_t context;

    if (varint_parse(begins.at, begins.len, &context) == 0 || context == 0)
        return fail_own(&m->up.fail, SIDE_CLIENT, WHY_PROTO,
                        "datagram longer than UDP's");
    return WHY_NONE;
}

/* Some bytes of the client's. */
static enum why
carry_up(struct masque *m, struct span got)
{
    enum why why = WHY_NONE;

    while (why == WHY_NONE) {
        struct span value;
        size_t used;

        why = capsule_parse(&m->capsules, got.at, got.len, &used, &value);
        got.at += used;
        got.len -= used;
        if (why == WHY_MORE)
            break;
        if (why == WHY_SYS)
            return fail_sys(&m->up.fail, SIDE_WEIR, "read capsule", ENOMEM);
        why = why == WHY_LIMIT ? judge_long(m, value) : batch_add(m, value);
        /* One that was put together lies where the next one will. */
        if (why == WHY_NONE && m->batch.n > 0 &&
            (m->batch.n == LOT_MAX || value.at == m->capsules.value))
            why = carry_packets(m, &m->up, &m->batch);
    }
    return why == WHY_MORE ? carry_packets(m, &m->up, &m->batch) : why;
}

static bool
is_quiet(struct masque *m)
{
    return now_ms() - atomic_load(&m->moved_at) >= m->idle_ms;
}

/* Asked while nothing comes. */
static bool
is_over(void *arg)
{
    struct masque *m = arg;

    return atomic_load(&m->client->weir->stopping) || is_quiet(m);
}

/* What has come.  WHY_NONE: *got, until the next call; *taken of it was used.
 */
static enum why
read_up(struct masque *m, size_t *taken, struct span *got)
{
    struct end *end = m->side.end;
    struct http *http = m->side.http;
    enum why why = WHY_NONE;

    for (;;) {
        if (end != NULL) {
            end_consume(end, *taken);
            if (end_ahead(end).len == 0)
                why = end_fill(end, END_BUF_BULK, &m->up.fail);
            *got = end_ahead(end);
            *taken = got->len;
        } else {
            why = http->ops->read_body(http, got, &m->up.fail);
        }
        if (why != WHY_IDLE || m->up.fail.side != SIDE_CLIENT || is_quiet(m))
            return why;
        m->up.fail = (struct fail){0}; /* the other direction moves */
    }
}

static void
up_run(struct masque *m)
{
    size_t taken = 0;
    struct span got;
    enum why why;

    while ((why = read_up(m, &taken, &got)) == WHY_NONE) {
        moved(m);
        if ((why = carry_up(m, got)) != WHY_NONE)
            break;
    }
    if (atomic_load(&m->client->weir->stopping)) {
        m->up.fail = (struct fail){0};
        fail_own(&m->up.fail, SIDE_WEIR, WHY_DRAIN, "tunnel");
    } else if (why == WHY_OVER && is_quiet(m)) {
        m->up.fail = (struct fail){0};
        fail_own(&m->up.fail, SIDE_CLIENT, WHY_IDLE, "tunnel");
    } else if (why == WHY_EOF && !capsule_between(&m->capsules)) {
        fail_own(&m->up.fail, SIDE_CLIENT, WHY_CUT, "read capsule");
    }
    finish(m, &m->up, why);
}

/* ---- down: packets to capsules ------------------------------------------- */

struct capsule_lot { /* capsules to be written: a head and a packet, in turn */
    int n;
    struct iovec out[2 * LOT_MAX];
    char heads[LOT_MAX][HEAD_MAX];
};

/* What stands before a packet of len bytes: a capsule's head and the context.
 * Returns its length. */
static size_t
put_head(char out[HEAD_MAX], size_t len)
{
    char head[CAPSULE_HEAD + 1];
    size_t n = capsule_put_datagram(head, len + 1);

    head[n++] = 0;
    assert(n <= HEAD_MAX); /* UDP's lengths have two bytes */
    memcpy(out, head, n);
    return n;
}

/* Does the client take datagrams of HTTP/3?  It says so in its settings, which
 * may be later than its request. */
static bool
says(struct masque *m)
{
    return m->stream != NULL && stream_say_max(m->stream) > 0;
}

/* One packet.  The byte before it is ours: what was there has been sent. */
static enum why
put_packet(struct masque *m, struct capsule_lot *c, char *at, size_t len,
           bool say)
{
    struct traffic *t = &m->down.t;
    char *head = c->heads[c->n / 2];

    if (say) {
        at[-1] = 0; /* the context */
        /* RFC 9298 section 6.1: what does not fit must not come as a capsule,
         * or the peer would never find out. */
        if (!stream_say(m->stream, at - 1, len + 1)) {
            t->dropped++;
            return WHY_NONE;
        }
    } else {
        c->out[c->n++] = (struct iovec){head, put_head(head, len)};
        c->out[c->n++] = (struct iovec){at, len};
    }
    t->bytes += len;
    t->packets++;
    if (c->n < 2 * LOT_MAX)
        return WHY_NONE;
    c->n = 0;
    return side_write(&m->side, c->out, 2 * LOT_MAX, &m->down.fail);
}

/* Packets that are here, to the client. */
static enum why
carry_down(struct masque *m, struct lots *l)
{
    bool say = says(m);
    struct capsule_lot c;
    enum why why =
        judge(m, &m->down, lots_receive(m->fd, l, &m->down.t), "receive");
    char *at;
    size_t len;

    c.n = 0;
    while (why == WHY_NONE && lots_next(l, &at, &len)) {
        moved(m);
        why = put_packet(m, &c, at, len, say);
    }
    if (why == WHY_NONE && c.n > 0)
        why = side_write(&m->side, c.out, c.n, &m->down.fail);
    return why;
}

/* A connection inside has a packet for the client. */
static void
inner_send(void *arg, const void *at, size_t len)
{
    struct masque *m = arg;
    char packet[HEAD_MAX + GRAM_MAX];
    size_t n_head = put_head(packet, len);
    uint64_t one = 1;
    bool good;

    if (len > GRAM_MAX)
        return;
    memcpy(packet + n_head, at, len);
    pthread_mutex_lock(&m->down_lock);
    if (says(m))
        good = stream_say(m->stream, packet + n_head - 1, len + 1);
    else
        good = m->inner.len + n_head + len <= INNER_MAX &&
               store_add(&m->inner, packet, n_head + len);
    m->inner_down.bytes += good ? len : 0;
    m->inner_down.packets += good;
    m->inner_down.dropped += !good;
    pthread_mutex_unlock(&m->down_lock);
    moved(m);
    if (write(m->wake_fd, &one, sizeof one) < 0)
        assert(errno == EAGAIN);
}

/* What they have sent. */
static enum why
carry_inner(struct masque *m, struct store *buf)
{
    struct store was = *buf;
    struct iovec whole;
    uint64_t count;

    if (read(m->wake_fd, &count, sizeof count) < 0)
        return WHY_NONE;
    pthread_mutex_lock(&m->down_lock);
    *buf = m->inner;
    m->inner = was;
    m->inner.start = m->inner.len = 0;
    pthread_mutex_unlock(&m->down_lock);
    whole = (struct iovec){buf->at + buf->start, buf->len};
    return buf->len > 0 ? side_write(&m->side, &whole, 1, &m->down.fail)
                        : WHY_NONE;
}

/* The twin's job. */
static void
down_run(void *arg)
{
    struct masque *m = arg;
    struct lots *l = lots_new();
    struct store buf = {0};
    struct pollfd p[2] = {{.fd = m->fd, .events = POLLIN},
                          {.fd = m->wake_fd, .events = POLLIN}};
    enum why why = WHY_NONE;

    if (l == NULL)
        why = fail_sys(&m->down.fail, SIDE_WEIR, "receive", ENOMEM);
    while (why == WHY_NONE && !atomic_load(&m->stop)) {
        if (poll(p, 2, LOOK_MS) <= 0)
            continue;
        if (p[0].revents != 0)
            why = carry_down(m, l);
        if (why == WHY_NONE && p[1].revents != 0)
            why = carry_inner(m, &buf);
    }
    store_clear(&buf);
    lots_free(l);
    finish(m, &m->down, why);
}

/* ---- a tunnel ------------------------------------------------------------ */

static void
log_tunnel(const struct masque *m, bool inside)
{
    const struct client *c = m->client;
    const struct fail *f = &m->first->fail;
    char target[HOST_MAX + 16];
    struct line l;

    if (!log_on(LEVEL_INFO))
        return;
    origin_authority(&m->target, target, sizeof target);
    log_begin(&l, LEVEL_INFO, "tunnel", c->id);
    if (c->stream >= 0)
        log_int(&l, "stream", c->stream);
    log_str(&l, "client", c->addr);
    log_str(&l, "protocol", "connect-udp");
    log_str(&l, "target", target);
    log_str(&l, "origin", m->addr);
    log_int(&l, "up", (int64_t)m->up.t.bytes);
    log_int(&l, "down", (int64_t)m->down.t.bytes);
    log_int(&l, "up_datagrams", (int64_t)m->up.t.packets);
    log_int(&l, "down_datagrams", (int64_t)m->down.t.packets);
    log_int(&l, "up_dropped", (int64_t)m->up.t.dropped);
    log_int(&l, "down_dropped", (int64_t)m->down.t.dropped);
    if (inside)
        log_str(&l, "inside", "intercepted");
    log_ms(&l, "dns_ms", m->took.dns_us);
    log_ms(&l, "ms", now_us() - m->from_us);
    log_str(&l, "ended_by",
            side_name(f->why != WHY_NONE ? f->side : SIDE_CLIENT));
    log_fail(&l, f);
    log_send(&l);
}

/* What went another way than the usual one counts as well. */
static void
add(struct traffic *to, const struct traffic *from)
{
    to->bytes += from->bytes;
    to->packets += from->packets;
    to->dropped += from->dropped;
}

static void
watch_client(struct masque *m, const struct watch *watch)
{
    if (m->side.end != NULL) {
        m->side.end->deadline = 0;
        m->side.end->idle_ms = m->idle_ms;
        m->side.end->watch = watch;
    } else {
        m->side.http->idle_ms = m->idle_ms;
        m->side.http->watch = watch;
    }
}

/* Both directions, to their end. */
static void
run(struct masque *m, struct worker *w)
{
    if (!twin_start(w, down_run, m)) {
        fail_own(&m->up.fail, SIDE_WEIR, WHY_BUSY, "start a thread");
        return;
    }
    if (m->stream != NULL)
        stream_hear(m->stream, (struct hearer){hear, heard, m});
    up_run(m);
    if (m->stream != NULL)
        stream_hear(m->stream, (struct hearer){NULL, NULL, NULL});
    if (!twin_wait(w, LOOK_MS)) { /* it waits for one who does not read */
        side_cut(&m->side);
        if (m->side.end != NULL)
            end_wake(m->side.end);
        twin_wait(w, -1);
    }
}

/*
 * masque_run - carry datagrams until the client ends the tunnel, or nothing
 * came for udp_idle_s, or the target turns out to be unreachable.
 *
 * w       the calling worker; its twin must be free
 * client  behind the answer.  Still the caller's afterwards, finished or cut.
 * stream  client's, on HTTP/3; else NULL
 *
 * Thread: a worker.  Blocks: as long as the tunnel lives.
 */
void
masque_run(struct masque *m, struct worker *w, struct tunnel_side client,
           struct stream *stream)
{
    struct watch watch = {is_over, m};
    struct nested_user user = {inner_send, pass_on, m};
    struct fail ignored = {0};
    bool inside;

    if (stream != NULL)
        m->gram_buf = malloc((size_t)LOT_MAX * GRAM_MAX);
    m->side = client;
    m->stream = m->gram_buf != NULL ? stream : NULL;
    m->first = &m->up;
    m->nested = nested_new(m->client, &m->target, &user);
    atomic_store(&m->opaque, m->nested == NULL);
    moved(m);
    watch_client(m, &watch);
    run(m, w);
    watch_client(m, NULL);
    inside = m->nested != NULL && nested_taken(m->nested);
    nested_free(m->nested);
    add(&m->up.t, &m->heard.t);
    add(&m->up.t, &m->passed);
    add(&m->down.t, &m->inner_down);
    /* Quiet is no fault. */
    if (m->first->fail.why == WHY_NONE || m->first->fail.why == WHY_IDLE)
        (void)side_finish(&m->side, &ignored);
    else
        side_cut(&m->side);
    log_tunnel(m, inside);
}
