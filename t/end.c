/*
 * t/end.c - ends on TCP connections: plain, TLS, and TLS in TLS.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>

#include "proxy.h"
#include "t/net.h"
#include "t/tap.h"
#include "t/tls.h"

enum { LIMIT_MS = NET_LIMIT_S * 1000 };

static gnutls_certificate_credentials_t shown, blind; /* server's, client's */

/* An end and the bare socket of its peer. */
static void
half(struct end *e, int *peer)
{
    int fds[2];

    net_pair(fds);
    end_init(e, fds[0], SIDE_CLIENT, LIMIT_MS);
    *peer = fds[1];
}

static void
both(struct end *a, struct end *b)
{
    int peer;

    half(a, &peer);
    end_init(b, peer, SIDE_ORIGIN, LIMIT_MS);
}

static enum why
put(struct end *e, const char *text)
{
    struct iovec iov = {(void *)text, strlen(text)};
    struct fail f = {0};

    return end_write(e, &iov, 1, &f);
}

/* Reads until as many bytes as `text` has are there; are they the same? */
static bool
hear(struct end *e, const char *text)
{
    size_t len = strlen(text), n = 0, more;
    char got[256];
    struct fail f = {0};

    assert(len <= sizeof got);
    while (n < len && end_read(e, got + n, len - n, &more, &f) == WHY_NONE)
        n += more;
    return n == len && memcmp(got, text, len) == 0;
}

static enum why
read_why(struct end *e, struct fail *f)
{
    char byte;
    size_t n;

    *f = (struct fail){0};
    return end_read(e, &byte, 1, &n, f);
}

/* Until the peer's bytes are in the socket's buffer: nothing is consumed. */
static void
arrived(const struct end *e, int n)
{
    int there = 0;
    struct pollfd p = {.fd = e->fd, .events = POLLIN};

    while (there < n) {
        NEED(poll(&p, 1, LIMIT_MS) == 1);
        NEED(ioctl(e->fd, FIONREAD, &there) == 0);
    }
}

/* ---- plain --------------------------------------------------------------- */

static void
plain_bytes(void)
{
    struct end e;
    struct fail f = {0};
    struct iovec iov[4] = {{"a", 1}, {"", 0}, {NULL, 0}, {"bc", 2}};
    int peer, left = END_BUF * 3;
    char *much = calloc(1, (size_t)left);

    half(&e, &peer);
    is_int(end_ahead(&e).len, 0, "nothing is ahead of a new end");
    net_say(peer, "hello");
    is_int(end_fill(&e, END_BUF, &f), WHY_NONE, "fill");
    ok(span_is(end_ahead(&e), "hello"), "what was read can be looked at");
    end_consume(&e, 1);
    ok(span_is(end_ahead(&e), "ello"), "and consumed in part");
    net_say(peer, "!");
    is_int(end_fill(&e, END_BUF, &f), WHY_NONE, "fill behind it");
    ok(span_is(end_ahead(&e), "ello!"), "more stands behind what is there");
    ok(end_pending(&e), "pending while something is buffered");
    ok(hear(&e, "ello"), "read takes what is buffered first");
    ok(hear(&e, "!"), "to its end");
    ok(!end_pending(&e), "then nothing is pending");
    is_int(e.n_in, 6, "bytes in");

    is_int(end_write(&e, iov, 4, &f), WHY_NONE, "write pieces, some empty");
    ok(net_hear(peer, "abc"), "they arrive as one");
    is_int(e.n_out, 3, "bytes out");

    memset(much, 'x', (size_t)left);
    net_put(peer, much, (size_t)left);
    while (end_fill(&e, END_BUF, &f) == WHY_NONE)
        ;
    is_int(f.why, WHY_LIMIT, "a full buffer that may not grow: limit");
    is_int(end_ahead(&e).len, END_BUF, "with END_BUF bytes in it");
    f = (struct fail){0};
    while (end_ahead(&e).len < (size_t)left &&
           end_fill(&e, END_BUF_BULK, &f) == WHY_NONE)
        ;
    is_int(end_ahead(&e).len, left, "and one that may grows");
    ok(memcmp(end_ahead(&e).at, much, (size_t)left) == 0, "the same bytes");
    end_consume(&e, (size_t)left);
    end_drop_buffer(&e);
    is_int(e.cap, 0, "an empty buffer can be dropped");
    net_say(peer, "z");
    ok(hear(&e, "z"), "and reading goes on");

    net_say(peer, "last");
    shutdown(peer, SHUT_WR);
    ok(hear(&e, "last"), "what came before the end");
    is_int(read_why(&e, &f), WHY_EOF, "the end");
    is_int(f.why, WHY_NONE, "which is no failure");
    is_int(put(&e, "still"), WHY_NONE, "our direction goes on");
    ok(net_hear(peer, "still"), "and is heard");
    ok(!end_gone(&e), "a peer that only finished is not gone");
    is_int(end_finish(&e, &f), WHY_NONE, "finish");
    ok(net_ended(peer), "the peer sees our end");
    ok(end_gone(&e), "both ended: gone");
    close(peer);
    end_clear(&e);
    end_clear(&e);
    is_int(e.fd, -1, "cleared twice");
    free(much);
}

static bool
count_and_say(void *arg)
{
    return ++*(int *)arg == 1;
}

static void
plain_clocks(void)
{
    struct end e;
    struct fail f = {0};
    int peer, asked = 0;
    static char much[1 << 20];
    struct watch watch = {count_and_say, &asked};
    int64_t from = now_ms();
    enum why why;

    half(&e, &peer);
    e.idle_ms = 60;
    is_int(read_why(&e, &f), WHY_IDLE, "a quiet peer: idle");
    ok(now_ms() - from >= 60, "not before idle_ms");
    is_int(f.side, SIDE_CLIENT, "the peer did it");
    e.idle_ms = LIMIT_MS;
    from = now_ms();
    e.deadline = from + 50;
    is_int(read_why(&e, &f), WHY_LATE, "a deadline passes");
    ok(now_ms() - from >= 50, "not before");
    net_say(peer, "x");
    arrived(&e, 1);
    is_int(read_why(&e, &f), WHY_LATE, "and stays passed, whatever comes");
    e.deadline = now_ms() + LIMIT_MS;
    ok(hear(&e, "x"), "bytes before a deadline");
    e.deadline = 0;

    e.watch = &watch;
    is_int(read_why(&e, &f), WHY_OVER, "the watch says so: over");
    is_int(asked, 1, "asked once");
    is_int(f.side, SIDE_WEIR, "our own decision");
    e.watch = NULL;

    e.idle_ms = 60;
    do {
        struct iovec iov = {much, sizeof much};

        why = end_write(&e, &iov, 1, &f);
    } while (why == WHY_NONE);
    is_int(why, WHY_IDLE, "a peer that takes nothing: idle");
    close(peer);
    end_clear(&e);
}

static void *
read_to_end(void *arg)
{
    struct fail f;

    return read_why(arg, &f) == WHY_EOF ? arg : NULL;
}

static void
plain_wakes(void)
{
    struct end e;
    struct fail f;
    void *got;
    pthread_t reader;
    int peer;

    half(&e, &peer);
    reader = net_thread(read_to_end, &e);
    end_stop_reading(&e);
    pthread_join(reader, &got);
    ok(got != NULL, "end_stop_reading() wakes the reader");
    is_int(put(&e, "more"), WHY_NONE, "the writer goes on");
    ok(net_hear(peer, "more"), "the peer saw no end");
    close(peer);
    end_clear(&e);

    half(&e, &peer);
    reader = net_thread(read_to_end, &e);
    end_wake(&e);
    pthread_join(reader, &got);
    ok(got != NULL, "end_wake() wakes the reader");
    ok(net_ended(peer), "and ends our direction");
    ok(put(&e, "x") != WHY_NONE, "writing fails from then on");
    close(peer);
    end_clear(&e);
    end_wake(&e); /* no end any more: nothing happens */

    half(&e, &peer);
    net_reset(peer);
    is_int(read_why(&e, &f), WHY_SYS, "a reset");
    is_int(f.code, ECONNRESET, "told by its errno");
    ok(end_gone(&e), "gone");
    end_clear(&e);
}

static void
plain_quiet(void)
{
    struct end e;
    int peer;

    half(&e, &peer);
    ok(end_quiet(&e), "nothing came: quiet");
    ok(!end_wait(&e, 0), "nothing to wait for");
    net_say(peer, "x");
    ok(end_wait(&e, LIMIT_MS), "a byte ends a wait");
    ok(!end_quiet(&e), "a byte nobody asked for: not quiet");
    ok(hear(&e, "x"), "it was not consumed");
    ok(end_quiet(&e), "quiet again");
    shutdown(peer, SHUT_WR);
    ok(end_wait(&e, LIMIT_MS), "an end ends a wait");
    ok(!end_quiet(&e), "an end: not quiet");
    close(peer);
    end_clear(&e);

    half(&e, &peer);
    net_reset(peer);
    ok(end_wait(&e, LIMIT_MS), "a reset ends a wait");
    ok(!end_quiet(&e), "a reset: not quiet");
    end_clear(&e);
}

static void
plain_splice(void)
{
    struct end a, b;
    struct fail f = {0};
    int left, right, fds[2];
    size_t n = 0;

    half(&a, &left);
    half(&b, &right);
    NEED(pipe(fds) == 0);
    net_say(left, "through the kernel");
    is_int(end_splice(&a, &b, fds, 7, &n, &f), WHY_NONE, "splice");
    is_int(n, 7, "no more than asked for");
    is_int(end_splice(&a, &b, fds, 65536, &n, &f), WHY_NONE, "the rest");
    ok(net_hear(right, "through the kernel"), "the same bytes");
    is_int(a.n_in, 18, "counted in");
    is_int(b.n_out, 18, "and out");
    a.idle_ms = 50;
    is_int(end_splice(&a, &b, fds, 100, &n, &f), WHY_IDLE, "quiet: idle");
    f = (struct fail){0};
    a.deadline = now_ms() + 30;
    a.idle_ms = LIMIT_MS;
    is_int(end_splice(&a, &b, fds, 100, &n, &f), WHY_LATE, "a deadline");
    a.deadline = 0;
    shutdown(left, SHUT_WR);
    is_int(end_splice(&a, &b, fds, 100, &n, &f), WHY_EOF, "the end");
    close(left);
    end_clear(&a);

    half(&a, &left);
    net_say(left, "to nobody");
    net_reset(right);
    ok(end_wait(&b, LIMIT_MS), "the receiver is reset");
    f = (struct fail){0};
    while (end_splice(&a, &b, fds, 1, &n, &f) == WHY_NONE)
        ;
    is_int(f.why, WHY_SYS, "writing fails");
    is_int(f.side, SIDE_CLIENT, "on the writer's side");
    is_str(f.op, "splice out", "and says so");
    close(left);
    close(fds[0]);
    close(fds[1]);
    end_clear(&a);
    end_clear(&b);
}

/* ---- TLS ----------------------------------------------------------------- */

static const char *const versions[] = {
    "NORMAL:-VERS-ALL:+VERS-TLS1.3",
    "NORMAL:-VERS-ALL:+VERS-TLS1.2",
};

struct shake { /* the server's part of a handshake */
    struct end *end;
    const char *prio;
    enum why why;
    struct fail fail;
};

static void *
shake_run(void *arg)
{
    struct shake *s = arg;
    gnutls_session_t session = tls_session(GNUTLS_SERVER, shown, s->prio);

    s->why = end_handshake(s->end, session, now_ms() + LIMIT_MS, &s->fail);
    return NULL;
}

/* TLS on top of what both are. */
static bool
secured(struct end *client, struct end *server, const char *prio)
{
    struct shake s = {.end = server, .prio = prio};
    struct fail f = {0};
    pthread_t thread = net_thread(shake_run, &s);
    enum why why =
        end_handshake(client, tls_session(GNUTLS_CLIENT, blind, prio),
                      now_ms() + LIMIT_MS, &f);

    pthread_join(thread, NULL);
    return why == WHY_NONE && s.why == WHY_NONE;
}

static void
tls_bytes(const char *prio)
{
    struct end c, s;
    struct fail f = {0};
    char *much = malloc(100000), *got = malloc(100000);
    struct iovec iov[3] = {{"head ", 5}, {much, 30000}, {" tail", 5}};
    size_t n = 0, more;

    both(&c, &s);
    ok(secured(&c, &s, prio), "handshake: %s", prio);
    ok(end_session(&c) != NULL, "there is a session");
    for (size_t i = 0; i < 100000; i++)
        much[i] = (char)(i * 7 + i / 251);
    ok(end_quiet(&c), "tickets alone are quiet");
    is_int(put(&c, "up"), WHY_NONE, "write");
    ok(hear(&s, "up"), "read");
    is_int(end_write(&s, iov, 3, &f), WHY_NONE, "write pieces over a record");
    while (n < 30010 && end_read(&c, got + n, 100000 - n, &more, &f) == 0)
        n += more;
    ok(n == 30010 && memcmp(got, "head ", 5) == 0 &&
           memcmp(got + 5, much, 30000) == 0 &&
           memcmp(got + 30005, " tail", 5) == 0,
       "read them all");

    is_int(put(&s, "one"), WHY_NONE, "a record");
    is_int(put(&s, "two"), WHY_NONE, "another");
    arrived(&c, 2 * (3 + 5 + 16)); /* both are there at once */
    ok(hear(&c, "one"), "the first");
    ok(end_pending(&c), "the second is pending, in memory");
    ok(!end_quiet(&c), "nobody asked for it: not quiet");
    ok(hear(&c, "two"), "the second");
    ok(!end_pending(&c), "no third");
    ok(end_quiet(&c), "quiet");
    end_drop_buffer(&c);
    is_int(put(&s, "three"), WHY_NONE, "after memory was given back");
    ok(hear(&c, "three"), "reading goes on");

    is_int(end_finish(&s, &f), WHY_NONE, "the server finishes");
    is_int(read_why(&c, &f), WHY_EOF, "a clean end");
    is_int(put(&c, "still"), WHY_NONE, "the other direction goes on");
    ok(hear(&s, "still"), "and is heard");
    shutdown(c.fd, SHUT_WR);
    is_int(read_why(&s, &f), WHY_CUT, "a FIN without close_notify: cut");
    end_clear(&c);
    end_clear(&s);
    free(much);
    free(got);
}

static void
tls_quiet(void)
{
    struct end c, s;
    struct fail f = {0};

    both(&c, &s);
    NEED(secured(&c, &s, NULL));
    is_int(end_finish(&s, &f), WHY_NONE, "a server's goodbye");
    ok(end_wait(&c, LIMIT_MS), "ends a wait");
    while (end_quiet(&c)) /* tickets may come before it */
        NEED(poll(&(struct pollfd){.fd = c.fd, .events = POLLIN}, 1, LIMIT_MS));
    ok(end_pending(&c), "is not quiet, but pending");
    is_int(read_why(&c, &f), WHY_EOF, "and met by the next read");
    end_clear(&c);
    end_clear(&s);

    both(&c, &s);
    NEED(secured(&c, &s, NULL));
    end_alert(&s, GNUTLS_A_BAD_CERTIFICATE);
    is_int(read_why(&c, &f), WHY_ALERT, "an alert");
    is_int(f.code, GNUTLS_A_BAD_CERTIFICATE, "told by its number");
    end_clear(&c);
    end_clear(&s);
}

/* A client without an end of ours.  It hears nothing until it may. */
struct bare {
    gnutls_session_t session;
    int fd;
    bool deaf;
};

static ssize_t
bare_push(gnutls_transport_ptr_t arg, const void *at, size_t len)
{
    net_put(((struct bare *)arg)->fd, at, len);
    return (ssize_t)len;
}

static ssize_t
bare_pull(gnutls_transport_ptr_t arg, void *at, size_t cap)
{
    struct bare *b = arg;

    if (b->deaf) {
        gnutls_transport_set_errno(b->session, EAGAIN);
        return -1;
    }
    return recv(b->fd, at, cap, 0);
}

/* Says its ClientHello, no more. */
static void
bare_begin(struct bare *b, int fd)
{
    *b = (struct bare){.fd = fd, .deaf = true};
    b->session = tls_session(GNUTLS_CLIENT | GNUTLS_NONBLOCK, blind, NULL);
    gnutls_transport_set_ptr(b->session, b);
    gnutls_transport_set_push_function(b->session, bare_push);
    gnutls_transport_set_pull_function(b->session, bare_pull);
    NEED(gnutls_handshake(b->session) == GNUTLS_E_AGAIN);
    b->deaf = false;
}

/* A ClientHello, and then an alert that is not encrypted. */
static void
tls_plain_alert(const void *raw, size_t len, const char *what)
{
    struct end s;
    struct shake shake = {.end = &s};
    struct bare client;
    pthread_t thread;
    char byte;
    int peer;

    half(&s, &peer);
    thread = net_thread(shake_run, &shake);
    bare_begin(&client, peer);
    NEED(recv(peer, &byte, 1, MSG_PEEK) == 1); /* the server's answer */
    net_put(peer, raw, len);
    pthread_join(thread, NULL);
    is_int(shake.why, WHY_ALERT, "%s", what);
    is_int(shake.fail.code, GNUTLS_A_UNKNOWN_CA, "  told by its number");
    is_int(shake.fail.side, SIDE_CLIENT, "  the client did it");
    gnutls_deinit(client.session);
    close(peer);
    end_clear(&s);
}

static void
tls_refused(void)
{
    static const char ccs[] = "\x14\x03\x03\x00\x01\x01"
                              "\x15\x03\x03\x00\x02\x02\x30";
    struct end e;
    struct fail f = {0};
    int peer;
    int64_t from = now_ms();

    tls_plain_alert(ccs + 6, 7, "an alert in the clear");
    tls_plain_alert(ccs, 13, "behind a change_cipher_spec");

    half(&e, &peer);
    is_int(end_handshake(&e, tls_session(GNUTLS_SERVER, shown, NULL),
                         now_ms() + 50, &f),
           WHY_LATE, "a handshake with nobody: late");
    ok(now_ms() - from >= 50, "not before its deadline");
    is_int(e.deadline, 0, "the end's own deadline is back");
    close(peer);
    end_clear(&e);

    half(&e, &peer);
    shutdown(peer, SHUT_WR);
    f = (struct fail){0};
    is_int(end_handshake(&e, tls_session(GNUTLS_SERVER, shown, NULL),
                         now_ms() + LIMIT_MS, &f),
           WHY_CUT, "a peer that leaves at once: cut");
    close(peer);
    end_clear(&e);

    half(&e, &peer);
    net_say(peer, "GET / HTTP/1.1\r\n\r\n");
    f = (struct fail){0};
    is_int(end_handshake(&e, tls_session(GNUTLS_SERVER, shown, NULL),
                         now_ms() + LIMIT_MS, &f),
           WHY_TLS, "a peer that speaks no TLS");
    close(peer);
    end_clear(&e);
}

/* ---- TLS in TLS ---------------------------------------------------------- */

/* A client inside of an outer TLS end.  What GnuTLS sends is kept until it
 * wants to read, so that the test says which bytes travel together. */
struct inner {
    struct end *outer;
    gnutls_session_t session;
    char out[8192];
    size_t len;
};

static void
inner_flush(struct inner *in)
{
    struct iovec iov = {in->out, in->len};
    struct fail f = {0};

    if (in->len > 0)
        NEED(end_write(in->outer, &iov, 1, &f) == WHY_NONE);
    in->len = 0;
}

static ssize_t
inner_push(gnutls_transport_ptr_t arg, const void *at, size_t len)
{
    struct inner *in = arg;

    NEED(in->len + len <= sizeof in->out);
    memcpy(in->out + in->len, at, len);
    in->len += len;
    return (ssize_t)len;
}

static ssize_t
inner_pull(gnutls_transport_ptr_t arg, void *at, size_t cap)
{
    struct inner *in = arg;
    struct fail f = {0};
    size_t n;

    inner_flush(in);
    return end_read(in->outer, at, cap, &n, &f) == WHY_NONE ? (ssize_t)n : -1;
}

static int
inner_ready(gnutls_transport_ptr_t arg, unsigned ms)
{
    (void)arg;
    (void)ms;
    return 1;
}

static void
inner_init(struct inner *in, struct end *outer)
{
    *in = (struct inner){.outer = outer};
    in->session = tls_session(GNUTLS_CLIENT, blind, versions[0]);
    gnutls_transport_set_ptr(in->session, in);
    gnutls_transport_set_push_function(in->session, inner_push);
    gnutls_transport_set_pull_function(in->session, inner_pull);
    gnutls_transport_set_pull_timeout_function(in->session, inner_ready);
}

static void
cork(const struct end *e, int on)
{
    NEED(setsockopt(e->fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on) == 0);
}

/*
 * The end of the inner handshake and a request, at once: in one record of the
 * outer layer, or in two that arrive together.
 */
static void
nested(bool two_records)
{
    struct end c, s;
    struct shake shake = {.end = &s};
    struct inner in;
    struct fail f = {0};
    pthread_t thread;
    int there = 0;

    both(&c, &s);
    NEED(secured(&c, &s, versions[0]));
    inner_init(&in, &c);
    thread = net_thread(shake_run, &shake);
    NEED(gnutls_handshake(in.session) == 0); /* its last flight is with us */
    cork(&c, 1);
    if (two_records)
        inner_flush(&in);
    NEED(gnutls_record_send(in.session, "request", 7) == 7);
    inner_flush(&in);
    cork(&c, 0);
    pthread_join(thread, NULL);
    is_int(shake.why, WHY_NONE, "TLS in TLS");
    NEED(ioctl(s.fd, FIONREAD, &there) == 0);
    is_int(there, 0, "  the request has left the socket");
    ok(end_pending(&s), "  and is pending, in %s layer's memory",
       two_records ? "the outer" : "the inner");
    ok(hear(&s, "request"), "  to be read");
    ok(!end_pending(&s), "  then nothing is");

    /* A goodbye of the outer layer, right behind inner bytes. */
    cork(&c, 1);
    NEED(gnutls_record_send(in.session, "last", 4) == 4);
    inner_flush(&in);
    NEED(end_finish(&c, &f) == WHY_NONE);
    cork(&c, 0);
    ok(hear(&s, "last"), "  inner bytes before an outer goodbye");
    ok(end_pending(&s), "  that goodbye is pending, too");
    ok(end_pending(&s), "  whenever it is asked");
    is_int(read_why(&s, &f), WHY_CUT, "  and cuts the inner layer");
    gnutls_deinit(in.session);
    end_clear(&c);
    end_clear(&s);
}

/* Both sides are ends, both ways work, and each layer says goodbye. */
static void
nested_ends(void)
{
    struct end c, s;
    struct fail f = {0};

    both(&c, &s);
    NEED(secured(&c, &s, NULL));
    ok(secured(&c, &s, NULL), "a second layer");
    is_int(put(&c, "up"), WHY_NONE, "  write");
    ok(hear(&s, "up"), "  read");
    is_int(put(&s, "down"), WHY_NONE, "  write back");
    ok(hear(&c, "down"), "  read back");
    end_drop_buffer(&s);
    is_int(end_finish(&c, &f), WHY_NONE, "  finish");
    is_int(read_why(&s, &f), WHY_EOF, "  a clean end");
    is_int(put(&s, "still"), WHY_NONE, "  the other way goes on");
    ok(hear(&c, "still"), "  and is heard");
    end_clear(&c);
    end_clear(&s);
}

/* Bytes that were read before TLS began are its beginning. */
static void
tls_after_look(void)
{
    struct end s;
    struct shake shake = {.end = &s};
    struct bare client;
    struct fail f = {0};
    pthread_t thread;
    int peer;

    half(&s, &peer);
    bare_begin(&client, peer);
    is_int(end_fill(&s, END_BUF, &f), WHY_NONE, "a ClientHello is looked at");
    ok(end_ahead(&s).len > 5 && end_ahead(&s).at[0] == 0x16, "it is one");
    thread = net_thread(shake_run, &shake);
    is_int(gnutls_handshake(client.session), 0, "then the handshake goes on");
    pthread_join(thread, NULL);
    is_int(shake.why, WHY_NONE, "on both sides");
    NEED(gnutls_record_send(client.session, "x", 1) == 1);
    ok(hear(&s, "x"), "and bytes come");
    gnutls_deinit(client.session);
    close(peer);
    end_clear(&s);
}

/* ---- two threads on one session ------------------------------------------ */

enum { ECHO_BYTES = 4 << 20, ECHO_UPDATES = 4 };

/* The peer: echoes, and asks for new keys every now and then. */
static void *
echo_run(void *arg)
{
    int fd = *(int *)arg;
    gnutls_session_t session = tls_session(GNUTLS_SERVER, shown, versions[0]);
    static char buf[16384];
    size_t done = 0, updates = 0;

    gnutls_transport_set_int(session, fd);
    NEED(gnutls_handshake(session) == 0);
    while (done < ECHO_BYTES) {
        ssize_t n = gnutls_record_recv(session, buf, sizeof buf);

        if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED)
            continue;
        NEED(n > 0);
        for (ssize_t at = 0, put; at < n; at += put)
            NEED((put = gnutls_record_send(session, buf + at,
                                           (size_t)(n - at))) > 0);
        done += (size_t)n;
        if (done / (ECHO_BYTES / (ECHO_UPDATES + 1)) > updates) {
            updates++;
            NEED(gnutls_session_key_update(session, GNUTLS_KU_PEER) == 0);
        }
    }
    gnutls_deinit(session);
    return NULL;
}

static char
echo_byte(size_t i)
{
    return (char)(i ^ i >> 8 ^ i >> 16);
}

static void *
echo_write(void *arg)
{
    struct end *e = arg;
    static char buf[40000];
    struct fail f = {0};
    enum why why = WHY_NONE;

    for (size_t at = 0; at < ECHO_BYTES && why == WHY_NONE;) {
        size_t n = ECHO_BYTES - at;
        struct iovec iov = {buf, n = n < sizeof buf ? n : sizeof buf};

        for (size_t i = 0; i < n; i++)
            buf[i] = echo_byte(at + i);
        why = end_write(e, &iov, 1, &f);
        at += n;
    }
    return why == WHY_NONE ? e : NULL;
}

static void
tls_two_threads(void)
{
    struct end e;
    struct fail f = {0};
    pthread_t echo, writer;
    static char buf[30000];
    size_t done = 0, n, wrong = 0;
    void *wrote;
    int peer;

    half(&e, &peer);
    echo = net_thread(echo_run, &peer);
    NEED(end_handshake(&e, tls_session(GNUTLS_CLIENT, blind, versions[0]),
                       now_ms() + LIMIT_MS, &f) == WHY_NONE);
    writer = net_thread(echo_write, &e);
    while (done < ECHO_BYTES &&
           end_read(&e, buf, sizeof buf, &n, &f) == WHY_NONE) {
        for (size_t i = 0; i < n; i++)
            wrong += buf[i] != echo_byte(done + i);
        done += n;
    }
    is_int(done, ECHO_BYTES, "two threads, key updates both ways: all bytes");
    is_int(wrong, 0, "each of them right");
    end_wake(&e); /* if it failed, the other two shall not hang */
    pthread_join(writer, &wrote);
    ok(wrote != NULL, "the writer met no failure");
    pthread_join(echo, NULL);
    close(peer);
    end_clear(&e);
}

/* ---- two ends that are each other's peer ----------------------------------
 */

static void
pair(struct end *a, struct end *b)
{
    int fds[2];

    NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    end_init(a, fds[0], SIDE_ORIGIN, LIMIT_MS);
    end_init(b, fds[1], SIDE_CLIENT, LIMIT_MS);
    NEED(end_pair(a, b));
}

static void
say(struct end *e, const char *text)
{
    struct iovec iov = {(void *)text, strlen(text)};
    struct fail f = {0};

    NEED(end_write(e, &iov, 1, &f) == WHY_NONE);
}

static void
pairs(void)
{
    struct end a, b;
    struct fail f = {0};
    char buf[16];
    size_t n = 0;

    pair(&a, &b);
    say(&a, "all");
    is_int(end_finish(&a, &f), WHY_NONE, "one of a pair finishes");
    is_int(end_read(&b, buf, sizeof buf, &n, &f), WHY_NONE, "what it said");
    is_int(end_read(&b, buf, sizeof buf, &n, &f), WHY_EOF, "then its end");
    say(&b, "back");
    is_int(end_read(&a, buf, sizeof buf, &n, &f), WHY_NONE, "the other way");
    end_cut(&b);
    end_clear(&b);
    is_int(end_read(&a, buf, sizeof buf, &n, &f), WHY_CUT, "is cut by itself");
    is_int(f.side, SIDE_ORIGIN, "by whom it is read from");
    end_clear(&a);

    pair(&a, &b);
    f = (struct fail){0};
    end_clear(&a);
    is_int(end_read(&b, buf, sizeof buf, &n, &f), WHY_EOF,
           "to be closed is no cut");
    end_clear(&b);

    pair(&a, &b);
    say(&a, "part");
    end_cut(&a);
    end_clear(&a);
    b.no_wait = true;
    is_int(end_read(&b, buf, sizeof buf, &n, &f), WHY_NONE,
           "what was said before a cut");
    is_int(n, 4, "all of it");
    is_int(end_read(&b, buf, sizeof buf, &n, &f), WHY_CUT,
           "then the cut, without waiting");
    end_clear(&b);

    pair(&a, &b);
    f = (struct fail){0};
    end_cut(&b);
    is_int(end_read(&b, buf, sizeof buf, &n, &f), WHY_EOF,
           "who cuts reads no more");
    end_clear(&a);
    end_clear(&b);
}

int
main(void)
{
    static const char *const names[] = {"end.test", NULL};
    struct cert cert;

    signal(SIGPIPE,
           SIG_IGN); /* as proxy.c does: splice(2) has no MSG_NOSIGNAL */
    cert_make(&cert, &(struct cert_conf){.names = names});
    shown = cert_shown(&cert);
    NEED(gnutls_certificate_allocate_credentials(&blind) == 0);
    plain_bytes();
    plain_clocks();
    plain_wakes();
    plain_quiet();
    plain_splice();
    pairs();
    for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++)
        tls_bytes(versions[i]);
    tls_quiet();
    tls_refused();
    tls_after_look();
    nested(false);
    nested(true);
    nested_ends();
    tls_two_threads();
    gnutls_certificate_free_credentials(shown);
    gnutls_certificate_free_credentials(blind);
    cert_clear(&cert);
    return done_testing();
}
