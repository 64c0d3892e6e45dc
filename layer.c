/*
 * layer.c - TLS over an end's socket, or over TLS.
 *
 * GnuTLS never touches the socket.  It reads from and writes to memory
 * (tls_pull, tls_push), under the session's lock; the socket is read and
 * written outside of it.  So nobody sleeps while holding the lock, two threads
 * may share a session through key updates, GNUTLS_E_AGAIN has one meaning
 * (more bytes are wanted), and one recv(2) may bring many records.
 *
 * Follows  RFC 8446 section 6 (alerts).
 * Owns     the sessions, and the bytes between them and the socket.
 * Threads  those of the end: one that reads and one that writes.
 * Blocks   in sock_recv() and sock_send() alone.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    RECORD_MAX = 16384,      /* content of one TLS record, RFC 8446 5.1 */
    TLS_IN = 16384 + 512,    /* raw bytes read ahead at first: one record */
    TLS_IN_BULK = 4 * 16896, /* and when they come in bulk */
    TLS_BATCH = 4,           /* records encrypted before one send(2) */
};

struct bytes { /* a queue in memory */
    char *at;
    size_t start, len, cap;
};

struct tls {
    gnutls_session_t session;
    struct tls *under;    /* NULL: the socket */
    pthread_mutex_t lock; /* around every GnuTLS call on the session */
    /* needs lock */
    struct bytes in;  /* raw bytes not yet decrypted */
    struct bytes out; /* records not yet sent */
    bool sending;     /* a thread sends from `out`, without the lock */
    /* the reader's alone */
    struct bytes raw; /* where the next raw bytes are received */
    int stash;        /* what end_pending() met, for the next read */
    bool stashed;
    struct { /* how the last raw bytes began: see plain_alert() */
        unsigned char at[16];
        size_t len;
    } last;
};

/* ---- a queue of bytes ---------------------------------------------------- */

/* Room for n more bytes behind what is there; false: out of memory. */
static bool
bytes_room(struct bytes *b, size_t n)
{
    if (b->start > 0 && b->start + b->len + n > b->cap) {
        memmove(b->at, b->at + b->start, b->len);
        b->start = 0;
    }
    if (b->start + b->len + n > b->cap) {
        size_t cap = b->start + b->len + n;
        char *at = realloc(b->at, cap);

        if (at == NULL)
            return false;
        b->at = at;
        b->cap = cap;
    }
    return true;
}

static bool
bytes_add(struct bytes *b, const void *from, size_t n)
{
    if (!bytes_room(b, n))
        return false;
    memcpy(b->at + b->start + b->len, from, n);
    b->len += n;
    return true;
}

static void
bytes_consume(struct bytes *b, size_t n)
{
    assert(n <= b->len);
    b->start += n;
    b->len -= n;
    if (b->len == 0)
        b->start = 0;
}

static void
bytes_clear(struct bytes *b)
{
    free(b->at);
    *b = (struct bytes){0};
}

/* ---- TLS layers ---------------------------------------------------------- */

/* GnuTLS wants raw bytes: from memory alone.  Needs tls->lock. */
static ssize_t
tls_pull(gnutls_transport_ptr_t arg, void *buf, size_t cap)
{
    struct tls *t = arg;
    size_t n = t->in.len < cap ? t->in.len : cap;

    if (n == 0) {
        gnutls_transport_set_errno(t->session, EAGAIN);
        return -1;
    }
    memcpy(buf, t->in.at + t->in.start, n);
    bytes_consume(&t->in, n);
    return (ssize_t)n;
}

static int
tls_pull_ready(gnutls_transport_ptr_t arg, unsigned ms)
{
    (void)ms;
    return ((struct tls *)arg)->in.len > 0;
}

/* GnuTLS has a record for the peer: into memory.  Needs tls->lock. */
static ssize_t
tls_push(gnutls_transport_ptr_t arg, const giovec_t *iov, int n)
{
    struct tls *t = arg;
    size_t total = 0;

    for (int i = 0; i < n; i++) {
        if (!bytes_add(&t->out, iov[i].iov_base, iov[i].iov_len)) {
            gnutls_transport_set_errno(t->session, ENOMEM);
            return -1;
        }
        total += iov[i].iov_len;
    }
    return (ssize_t)total;
}

static enum why layer_send(struct end *, struct tls *, const void *, size_t,
                           struct fail *);

/* Wait for raw bytes below t and queue them for decryption.  The reader's. */
static enum why
tls_receive(struct end *e, struct tls *t, struct fail *f)
{
    size_t n = 0;
    enum why why;

    if (t->raw.cap == 0 && !bytes_room(&t->raw, TLS_IN))
        return fail_sys(f, SIDE_WEIR, "read TLS", ENOMEM);
    why = layer_read(e, t->under, t->raw.at, t->raw.cap, &n, f);
    if (why != WHY_NONE)
        return why;
    t->last.len = n < sizeof t->last.at ? n : sizeof t->last.at;
    memcpy(t->last.at, t->raw.at, t->last.len);
    pthread_mutex_lock(&t->lock);
    if (t->in.len == 0) { /* usual: hand the buffer over, copy nothing */
        struct bytes empty = t->in;

        t->in = t->raw;
        t->in.start = 0;
        t->in.len = n;
        t->raw = empty;
        t->raw.start = t->raw.len = 0;
    } else if (!bytes_add(&t->in, t->raw.at, n)) {
        why = fail_sys(f, SIDE_WEIR, "read TLS", ENOMEM);
    }
    pthread_mutex_unlock(&t->lock);
    if (n == TLS_IN && t->raw.cap < TLS_IN_BULK &&
        !bytes_room(&t->raw, TLS_IN_BULK))
        return fail_sys(f, SIDE_WEIR, "read TLS", ENOMEM);
    return why;
}

/*
 * Send what is in t->out, in order.  If another thread is sending it will find
 * our bytes behind its own, so there is nothing to do.
 */
static enum why
tls_flush(struct end *e, struct tls *t, struct fail *f)
{
    enum why why = WHY_NONE;

    pthread_mutex_lock(&t->lock);
    if (t->sending) {
        pthread_mutex_unlock(&t->lock);
        return WHY_NONE;
    }
    t->sending = true;
    while (why == WHY_NONE && t->out.len > 0) {
        struct bytes now = t->out;

        t->out = (struct bytes){0};
        pthread_mutex_unlock(&t->lock);
        why = layer_send(e, t->under, now.at + now.start, now.len, f);
        pthread_mutex_lock(&t->lock);
        if (t->out.cap == 0) { /* keep the memory for the next records */
            now.start = now.len = 0;
            t->out = now;
        } else {
            bytes_clear(&now);
        }
    }
    t->sending = false;
    pthread_mutex_unlock(&t->lock);
    return why;
}

/* The reader answered something by itself (a key update): it may not sleep
 * for a peer that does not read, so what does not fit now goes with the next
 * write. */
static void
tls_flush_some(struct end *e, struct tls *t)
{
    struct iovec iov;

    pthread_mutex_lock(&t->lock);
    if (t->out.len > 0 && !t->sending && t->under == NULL) {
        ssize_t put;

        iov.iov_base = t->out.at + t->out.start;
        iov.iov_len = t->out.len;
        put =
            send(e->fd, iov.iov_base, iov.iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put > 0)
            bytes_consume(&t->out, (size_t)put);
    }
    pthread_mutex_unlock(&t->lock);
}

/* A negative code of gnutls_record_recv() or gnutls_handshake(), as a why. */
static enum why
tls_failed(struct end *e, struct tls *t, const char *op, int rc, struct fail *f)
{
    if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED)
        return fail_alert(f, e->side, op, gnutls_alert_get(t->session));
    return fail_tls(f, e->side, op, rc);
}

/* One record's content from memory; AGAIN: bytes are missing.  0: the end. */
static ssize_t
tls_decrypt(struct tls *t, void *buf, size_t cap)
{
    ssize_t got;
    int again = 0;

    if (t->stashed) {
        t->stashed = false;
        return t->stash;
    }
    pthread_mutex_lock(&t->lock);
    do { /* AGAIN with bytes left: a ticket or a key update was consumed */
        got = gnutls_record_recv(t->session, buf, cap);
        if (got == GNUTLS_E_REHANDSHAKE) /* refused: RFC 7457 section 2.10 */
            gnutls_alert_send(t->session, GNUTLS_AL_WARNING,
                              GNUTLS_A_NO_RENEGOTIATION);
    } while ((got == GNUTLS_E_INTERRUPTED || got == GNUTLS_E_REHANDSHAKE ||
              got == GNUTLS_E_WARNING_ALERT_RECEIVED ||
              (got == GNUTLS_E_AGAIN && t->in.len > 0)) &&
             ++again < 64);
    pthread_mutex_unlock(&t->lock);
    return got;
}

/*
 * layer_read - read from a layer: t, or the socket when t is NULL.
 *
 * Returns as end_fill() does.  Thread: the reader.  Blocks: as sock_recv().
 */
enum why
layer_read(struct end *e, struct tls *t, void *buf, size_t cap, size_t *n,
           struct fail *f)
{
    if (t == NULL)
        return sock_recv(e, buf, cap, 0, n, f);
    for (;;) {
        ssize_t got = tls_decrypt(t, buf, cap);
        enum why why;

        tls_flush_some(e, t);
        if (got > 0) {
            *n = (size_t)got;
            return WHY_NONE;
        }
        if (got == 0)
            return WHY_EOF;
        if (got != GNUTLS_E_AGAIN)
            return tls_failed(e, t, "read TLS", (int)got, f);
        why = tls_receive(e, t, f);
        if (why == WHY_EOF)
            return fail_tls(f, e->side, "read TLS",
                            GNUTLS_E_PREMATURE_TERMINATION);
        if (why != WHY_NONE)
            return why;
    }
}

static enum why
layer_send(struct end *e, struct tls *t, const void *buf, size_t len,
           struct fail *f)
{
    const char *at = buf;

    if (t == NULL) {
        struct iovec iov = {(void *)at, len};

        return sock_send(e, &iov, 1, 0, f);
    }
    while (len > 0) {
        enum why why;

        pthread_mutex_lock(&t->lock);
        for (int i = 0; i < TLS_BATCH && len > 0; i++) {
            size_t n = len < RECORD_MAX ? len : RECORD_MAX;
            ssize_t put = gnutls_record_send(t->session, at, n);

            if (put < 0) {
                pthread_mutex_unlock(&t->lock);
                return tls_failed(e, t, "write TLS", (int)put, f);
            }
            at += put;
            len -= (size_t)put;
        }
        pthread_mutex_unlock(&t->lock);
        if ((why = tls_flush(e, t, f)) != WHY_NONE)
            return why;
    }
    return WHY_NONE;
}

/* Encrypt into memory: `out` of t.  Needs t->lock. */
static enum why
tls_encrypt(struct end *e, struct tls *t, const char *at, size_t len,
            struct fail *f)
{
    while (len > 0) {
        size_t n = len < RECORD_MAX ? len : RECORD_MAX;
        ssize_t put = gnutls_record_send(t->session, at, n);

        if (put < 0)
            return tls_failed(e, t, "write TLS", (int)put, f);
        at += put;
        len -= (size_t)put;
    }
    return WHY_NONE;
}

/* Send what waits in t, or the layers below, as far as the socket takes it at
 * once.  The writer's, in no_wait mode: nobody else sends. */
static enum why
tls_send_now(struct end *e, struct tls *t, struct fail *f)
{
    enum why why = WHY_NONE;

    pthread_mutex_lock(&t->lock);
    if (t->under != NULL) {
        pthread_mutex_lock(&t->under->lock);
        why = tls_encrypt(e, t->under, t->out.at + t->out.start, t->out.len, f);
        pthread_mutex_unlock(&t->under->lock);
        t->out.start = t->out.len = 0;
    }
    while (why == WHY_NONE && t->out.len > 0) {
        ssize_t put = send(e->fd, t->out.at + t->out.start, t->out.len,
                           MSG_NOSIGNAL | MSG_DONTWAIT);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EAGAIN)
            break;
        if (put < 0) {
            why = fail_sys(f, e->side, "write", errno);
            break;
        }
        e->n_out += (uint64_t)put;
        bytes_consume(&t->out, (size_t)put);
    }
    pthread_mutex_unlock(&t->lock);
    if (why == WHY_NONE && t->under != NULL)
        return tls_send_now(e, t->under, f);
    return why;
}

/* ---- for end.c ------------------------------------------------------------
 */

/*
 * layer_write - many pieces over TLS.
 *
 * Small ones are joined, so that a head and its content make one record.
 * Returns as end_write() does.  Thread: the writer.
 */
enum why
layer_write(struct end *e, struct iovec *iov, int n, struct fail *f)
{
    char joined[RECORD_MAX];
    size_t len = 0;
    enum why why = WHY_NONE;

    for (int i = 0; i < n && why == WHY_NONE; i++) {
        const char *at = iov[i].iov_base;
        size_t left = iov[i].iov_len;

        if (len + left > sizeof joined) {
            why = layer_send(e, e->tls, joined, len, f);
            len = 0;
        }
        if (why == WHY_NONE && left > sizeof joined) {
            why = layer_send(e, e->tls, at, left, f);
        } else if (why == WHY_NONE && left > 0) {
            memcpy(joined + len, at, left);
            len += left;
        }
    }
    if (why == WHY_NONE && len > 0)
        why = layer_send(e, e->tls, joined, len, f);
    return why;
}

/* end_try_write() over TLS. */
enum why
layer_try_write(struct end *e, const void *at, size_t len, size_t *n,
                struct fail *f)
{
    struct tls *t = e->tls;
    enum why why;

    if (end_unsent(e) &&
        ((why = tls_send_now(e, t, f)) != WHY_NONE || end_unsent(e)))
        return why;
    pthread_mutex_lock(&t->lock);
    why = tls_encrypt(e, t, at, len, f);
    pthread_mutex_unlock(&t->lock);
    if (why != WHY_NONE)
        return why;
    *n = len;
    return tls_send_now(e, t, f);
}

/* Does something that end_try_write() took wait for the socket? */
bool
end_unsent(struct end *e)
{
    struct tls *t = e->tls;
    bool unsent;

    if (t == NULL)
        return false;
    while (t->under != NULL)
        t = t->under;
    pthread_mutex_lock(&t->lock);
    unsent = t->out.len > 0;
    pthread_mutex_unlock(&t->lock);
    return unsent;
}

/* close_notify (RFC 8446 section 6.1) on every layer; none: nothing. */
enum why
layer_finish(struct end *e, struct fail *f)
{
    enum why why = WHY_NONE;

    for (struct tls *t = e->tls; t != NULL && why == WHY_NONE; t = t->under) {
        pthread_mutex_lock(&t->lock);
        gnutls_bye(t->session, GNUTLS_SHUT_WR); /* into memory: cannot block */
        pthread_mutex_unlock(&t->lock);
        why = tls_flush(e, t, f);
    }
    return why;
}

/* tls_decrypt() with what all layers have in memory: a record of ours may still
 * be wrapped in one of theirs.  AGAIN: bytes are missing. */
static ssize_t
decrypt_memory(struct tls *t, void *buf, size_t cap)
{
    for (;;) {
        ssize_t got = tls_decrypt(t, buf, cap), below;
        bool added;

        if (got != GNUTLS_E_AGAIN || t->under == NULL)
            return got;
        if (t->raw.cap == 0 && !bytes_room(&t->raw, TLS_IN))
            return got;
        below = decrypt_memory(t->under, t->raw.at, t->raw.cap);
        if (below <= 0) {
            if (below != GNUTLS_E_AGAIN) { /* for the next read to meet */
                t->under->stash = (int)below;
                t->under->stashed = true;
            }
            return got;
        }
        pthread_mutex_lock(&t->lock);
        added = bytes_add(&t->in, t->raw.at, (size_t)below);
        pthread_mutex_unlock(&t->lock);
        if (!added)
            return GNUTLS_E_MEMORY_ERROR;
    }
}

/*
 * layer_pending - could layer_read() answer without waiting?
 *
 * n  content that was found out by it, now in buf; 0: none, an end, an error
 *
 * Thread: the reader.
 */
bool
layer_pending(struct tls *t, void *buf, size_t cap, size_t *n)
{
    ssize_t got;

    *n = 0;
    if (t->stashed)
        return true;
    got = decrypt_memory(t, buf, cap);
    if (got > 0) {
        *n = (size_t)got;
        return true;
    }
    if (got == GNUTLS_E_AGAIN) { /* unless a layer below met its end */
        const struct tls *below = t->under;

        while (below != NULL && !below->stashed)
            below = below->under;
        return below != NULL;
    }
    t->stash = (int)got; /* an end or an error: for the next read */
    t->stashed = true;
    return true;
}

/* Take in what the socket has, without waiting for more.  False: it ended, or
 * failed.  The reader's. */
bool
layer_take_in(struct end *e)
{
    struct tls *t = e->tls;
    struct fail scratch = {0};
    int64_t deadline = e->deadline;
    enum why why;

    if (t->under != NULL) /* what came may have been for the layer below */
        e->deadline = now_ms() + 1;
    why = tls_receive(e, t, &scratch);
    e->deadline = deadline;
    return why == WHY_NONE || (why == WHY_LATE && t->under != NULL);
}

/* Memory that holds nothing, of all layers.  NULL: there are none. */
void
layer_drop_buffers(struct tls *t)
{
    for (; t != NULL; t = t->under) {
        pthread_mutex_lock(&t->lock);
        if (t->in.len == 0)
            bytes_clear(&t->in);
        if (t->out.len == 0 && !t->sending)
            bytes_clear(&t->out);
        pthread_mutex_unlock(&t->lock);
        bytes_clear(&t->raw);
    }
}

/* NULL: nothing; the layers below as well. */
void
layer_free(struct tls *t)
{
    if (t == NULL)
        return;
    layer_free(t->under);
    gnutls_deinit(t->session);
    pthread_mutex_destroy(&t->lock);
    bytes_clear(&t->in);
    bytes_clear(&t->out);
    bytes_clear(&t->raw);
    free(t);
}

/* ---- handshakes -----------------------------------------------------------
 */

/* A layer on top of those the end has; bytes already read are its input. */
static struct tls *
tls_push_layer(struct end *e, gnutls_session_t session)
{
    struct tls *t = calloc(1, sizeof *t);

    if (t == NULL)
        return NULL;
    t->session = session;
    t->under = e->tls;
    pthread_mutex_init(&t->lock, NULL);
    if (e->len > 0 && !bytes_add(&t->in, e->buf + e->start, e->len)) {
        pthread_mutex_destroy(&t->lock);
        free(t);
        return NULL;
    }
    e->start = e->len = 0;
    gnutls_transport_set_ptr(session, t);
    gnutls_transport_set_pull_function(session, tls_pull);
    gnutls_transport_set_pull_timeout_function(session, tls_pull_ready);
    gnutls_transport_set_vec_push_function(session, tls_push);
    e->tls = t;
    return t;
}

/* A TLS 1.3 client that refuses our certificate may not have switched its keys
 * yet: its alert comes in the clear, and GnuTLS cannot decrypt what is not
 * encrypted.  It may stand behind a change_cipher_spec record (RFC 8446
 * appendix D.4).  Returns the alert, -1: it was none. */
static int
plain_alert(const struct tls *t)
{
    static const unsigned char ccs[] = {20, 3, 3, 0, 1, 1};
    const unsigned char *at = t->last.at;
    size_t len = t->last.len;

    if (len >= sizeof ccs && memcmp(at, ccs, sizeof ccs) == 0) {
        at += sizeof ccs;
        len -= sizeof ccs;
    }
    if (len < 7 || at[0] != 21 || at[1] != 3 || at[3] != 0 || at[4] != 2)
        return -1;
    return at[6];
}

/*
 * end_handshake - TLS on top of what the end is now.
 *
 * session   made and configured by the caller, client or server; the end's
 *           from here on, on every outcome
 * deadline  point in ms at which the handshake fails
 *
 * Returns WHY_NONE, WHY_LATE, WHY_ALERT (code: the alert), WHY_TLS, WHY_CUT,
 * WHY_SYS.  After a failure an alert was sent and only end_clear() may follow.
 */
enum why
end_handshake(struct end *e, gnutls_session_t session, int64_t deadline,
              struct fail *f)
{
    struct tls *t = tls_push_layer(e, session);
    int64_t before = e->deadline;
    enum why why = WHY_NONE, sent;

    if (t == NULL) {
        gnutls_deinit(session);
        return fail_sys(f, SIDE_WEIR, "TLS handshake", ENOMEM);
    }
    e->deadline = deadline;
    for (;;) {
        struct fail ignored = {0};
        int rc;

        pthread_mutex_lock(&t->lock);
        rc = gnutls_handshake(session);
        if (rc < 0 && gnutls_error_is_fatal(rc) &&
            rc != GNUTLS_E_FATAL_ALERT_RECEIVED)
            gnutls_alert_send_appropriate(session, rc);
        pthread_mutex_unlock(&t->lock);
        if (rc == GNUTLS_E_DECRYPTION_FAILED && plain_alert(t) >= 0)
            why = fail_alert(f, e->side, "TLS handshake", plain_alert(t));
        else if (rc < 0 && gnutls_error_is_fatal(rc))
            why = tls_failed(e, t, "TLS handshake", rc, f);
        sent = tls_flush(e, t, why == WHY_NONE ? f : &ignored);
        if (why == WHY_NONE)
            why = sent;
        if (rc == GNUTLS_E_SUCCESS || why != WHY_NONE)
            break;
        if (rc != GNUTLS_E_AGAIN)
            continue; /* interrupted, or a warning alert */
        why = tls_receive(e, t, f);
        if (why == WHY_EOF)
            why = fail_tls(f, e->side, "TLS handshake",
                           GNUTLS_E_PREMATURE_TERMINATION);
        if (why != WHY_NONE)
            break;
    }
    e->deadline = before;
    return why;
}

/* Tell the peer why TLS ends here (RFC 8446 section 6.2), as far as that can
 * be done without waiting. */
void
end_alert(struct end *e, gnutls_alert_description_t alert)
{
    if (e->tls == NULL)
        return;
    pthread_mutex_lock(&e->tls->lock);
    gnutls_alert_send(e->tls->session, GNUTLS_AL_FATAL, alert);
    pthread_mutex_unlock(&e->tls->lock);
    tls_flush_some(e, e->tls);
}

/* The topmost TLS session, NULL for a plain end.  Stays the end's. */
gnutls_session_t
end_session(const struct end *e)
{
    return e->tls != NULL ? e->tls->session : NULL;
}

/* Did the two agree on HTTP/2 in the topmost handshake? */
bool
end_chose_h2(const struct end *e)
{
    gnutls_datum_t name;

    return e->tls != NULL &&
           gnutls_alpn_get_selected_protocol(e->tls->session, &name) == 0 &&
           name.size == 2 && memcmp(name.data, "h2", 2) == 0;
}
