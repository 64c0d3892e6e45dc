/*
 * quicwire.c - QUIC connections for a test, on its standard input and output.
 *
 * Knows no HTTP: Weir::H3 speaks that, right or wrong, over the streams and
 * datagrams that this program carries, as client and as server, on as many
 * connections as the test likes.  So nothing of HTTP/3 is shared with the
 * library that weir uses, and whatever no honest peer sends can be sent.
 *
 * A command is a line, an event is a line; one whose last word is a length is
 * followed by so many bytes.  C is the number of a connection (the test gives
 * it to those it dials, and listeners count on from 1000000), S of a stream.
 *
 *   listen PORT CERT KEY [OPTION=..]    -> listening PORT, later  accepted C
 *   dial C HOST PORT NAME [OPTION=..]   NAME: the SNI, "-": none
 *   open C bidi|uni                     -> opened C S
 *   send C S FIN LEN bytes              as flow control permits; -> acked C S N
 *   reset C S CODE, stop C S CODE       RESET_STREAM, STOP_SENDING
 *   hold C S, resume C S                give no more credit; give it again
 *   datagram C LEN bytes
 *   frames C LEN bytes                  a packet of these QUIC frames
 *   close C CODE, abandon C             say goodbye with CODE; say nothing
 *   migrate C, rebind C, update C       new path, new port unknown to us, keys
 *   lossy C TX RX                       drop so many of 100 packets
 *   keepalive C MS
 *
 *   up C VERSION ALPN RESUMED NAME      handshake done
 *   cert C LEN, token C LEN             peer's certificate (DER), NEW_TOKEN
 *   ticket C                            the file of session=FILE was written
 *   data C S FIN LEN, datagram C LEN    what came
 *   reset C S CODE, stopped C S CODE    what the peer did
 *   closed C S CODE                     a stream is over; -1: without a code
 *   allows C N                          it lets us open more (bidi)
 *   path C VALID, versions C V...       new path, version negotiation
 *   retried C                           a Retry came
 *   gone C KIND CODE REASON             the connection is over; KIND is
 *                                       transport, application, idle, reset...
 *
 * Owns     everything; one thread, one poll loop.
 * Blocks   in poll alone.  What it has to say waits in memory, and then nobody
 *          is read any more: the peers feel that the test does not read.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

enum {
    CID_LEN = 12,
    OUT_MAX = 8 << 20, /* unread by the test, and we read no more */
    BURST = 64,        /* datagrams taken from a socket in a row */
    FIRST_ACCEPTED = 1000000,
};

#define PRIORITY                                                           \
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:" \
    "+CHACHA20-POLY1305:%DISABLE_TLS13_COMPAT_MODE"

struct chunk { /* bytes of one `send`; they stay until acknowledged */
    STAILQ_ENTRY(chunk) next;
    size_t len;
    uint8_t bytes[];
};

struct stream {
    TAILQ_ENTRY(stream) next;
    int64_t id;
    STAILQ_HEAD(, chunk) chunks;
    uint64_t first;  /* offset of the first chunk */
    uint64_t sent;   /* offset of what has not been handed out */
    uint64_t queued; /* offset of what the test has not said yet */
    bool fin, fin_sent, blocked, held;
    uint64_t owed; /* credit held back */
};

struct option { /* what a test can choose, with its default */
    char ca[256], alpn[32], token[512], session[256];
    uint32_t version;
    uint64_t stream_window, window, streams, idle_ms, rtt_ms, payload, lossy_rx;
    bool datagrams, tickets;
};

struct socket_of {
    int fd;
    struct sockaddr_storage local;
    socklen_t local_len;
};

struct wire { /* a connection */
    TAILQ_ENTRY(wire) next;
    int id;
    bool server, up;
    ngtcp2_conn *conn;
    ngtcp2_crypto_conn_ref ref;
    gnutls_session_t tls;
    struct socket_of sock; /* a server's: its listener's */
    struct listener *listener;
    ngtcp2_cid first_dcid; /* until the client knows ours */
    TAILQ_HEAD(, stream) streams;
    STAILQ_HEAD(, chunk) datagrams;
    STAILQ_HEAD(, chunk) forged; /* frames */
    int lossy_tx, lossy_rx;
    bool was_reset;
    struct option o;
};

struct listener {
    TAILQ_ENTRY(listener) next;
    struct socket_of sock;
    gnutls_certificate_credentials_t cred;
    struct option o;
};

static TAILQ_HEAD(, wire) wires = TAILQ_HEAD_INITIALIZER(wires);
static TAILQ_HEAD(, listener) listeners = TAILQ_HEAD_INITIALIZER(listeners);
static gnutls_datum_t ticket_key;
static uint8_t secret[32];
static int n_accepted = FIRST_ACCEPTED;

/* ---- small things -------------------------------------------------------- */

__attribute__((format(printf, 1, 2), noreturn)) static void
die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static void *
must(void *p)
{
    if (p == NULL)
        die("no memory");
    return p;
}

static ngtcp2_tstamp
now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NGTCP2_SECONDS + (uint64_t)t.tv_nsec;
}

static bool
lost(int percent)
{
    return percent > 0 && random() % 100 < percent;
}

/* ---- what we say to the test --------------------------------------------- */

static struct {
    char *at;
    size_t start, len, cap;
} out;

static void
out_bytes(const void *bytes, size_t n)
{
    if (out.start + out.len + n > out.cap) {
        if (out.len > 0)
            memmove(out.at, out.at + out.start, out.len);
        out.start = 0;
        while (out.len + n > out.cap)
            out.cap = out.cap ? out.cap * 2 : 1 << 16;
        out.at = must(realloc(out.at, out.cap));
    }
    if (n > 0)
        memcpy(out.at + out.start + out.len, bytes, n);
    out.len += n;
}

__attribute__((format(printf, 1, 2))) static void
say(const char *format, ...)
{
    char line[1024];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (n > (int)sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n] = '\n';
    out_bytes(line, (size_t)n + 1);
}

static void
out_flush(void)
{
    ssize_t n = write(STDOUT_FILENO, out.at + out.start, out.len);

    if (n < 0 && errno != EAGAIN && errno != EINTR)
        exit(0); /* the test is gone */
    if (n > 0) {
        out.start += (size_t)n;
        out.len -= (size_t)n;
    }
}

/* ---- streams ------------------------------------------------------------- */

static struct stream *
stream_find(struct wire *w, int64_t id)
{
    struct stream *s;

    TAILQ_FOREACH(s, &w->streams, next)
    if (s->id == id)
        return s;
    return NULL;
}

static struct stream *
stream_new(struct wire *w, int64_t id)
{
    struct stream *s = must(calloc(1, sizeof *s));

    s->id = id;
    STAILQ_INIT(&s->chunks);
    TAILQ_INSERT_TAIL(&w->streams, s, next);
    ngtcp2_conn_set_stream_user_data(w->conn, id, s);
    return s;
}

static void
stream_free(struct wire *w, struct stream *s)
{
    struct chunk *c;

    while ((c = STAILQ_FIRST(&s->chunks)) != NULL) {
        STAILQ_REMOVE_HEAD(&s->chunks, next);
        free(c);
    }
    TAILQ_REMOVE(&w->streams, s, next);
    free(s);
}

/* The bytes to be sent next; an empty vec: none (a FIN, perhaps). */
static ngtcp2_vec
stream_next(const struct stream *s)
{
    uint64_t at = s->first;
    struct chunk *c;

    STAILQ_FOREACH(c, &s->chunks, next)
    {
        if (s->sent < at + c->len)
            return (ngtcp2_vec){c->bytes + (s->sent - at),
                                (size_t)(at + c->len - s->sent)};
        at += c->len;
    }
    return (ngtcp2_vec){NULL, 0};
}

static bool
stream_waits(const struct stream *s)
{
    return !s->blocked && (s->sent < s->queued || (s->fin && !s->fin_sent));
}

static void
stream_acked(struct stream *s, uint64_t upto)
{
    struct chunk *c;

    while ((c = STAILQ_FIRST(&s->chunks)) != NULL &&
           s->first + c->len <= upto) {
        STAILQ_REMOVE_HEAD(&s->chunks, next);
        s->first += c->len;
        free(c);
    }
}

static void
credit(struct wire *w, struct stream *s, uint64_t n)
{
    if (s != NULL && s->held) {
        s->owed += n;
        return;
    }
    if (s != NULL)
        ngtcp2_conn_extend_max_stream_offset(w->conn, s->id, n);
    ngtcp2_conn_extend_max_offset(w->conn, n);
}

/* ---- what ngtcp2 calls --------------------------------------------------- */

static int
on_stream_open(ngtcp2_conn *conn, int64_t id, void *arg)
{
    (void)conn;
    stream_new(arg, id);
    return 0;
}

static int
on_data(ngtcp2_conn *conn, uint32_t flags, int64_t id, uint64_t offset,
        const uint8_t *bytes, size_t n, void *arg, void *stream)
{
    struct wire *w = arg;

    (void)conn;
    (void)offset;
    say("data %d %" PRId64 " %d %zu", w->id, id,
        (flags & NGTCP2_STREAM_DATA_FLAG_FIN) != 0, n);
    out_bytes(bytes, n);
    credit(w, stream ? stream : stream_find(w, id), n);
    return 0;
}

static int
on_acked(ngtcp2_conn *conn, int64_t id, uint64_t offset, uint64_t n, void *arg,
         void *stream)
{
    struct wire *w = arg;

    (void)conn;
    if (stream != NULL)
        stream_acked(stream, offset + n);
    say("acked %d %" PRId64 " %" PRIu64, w->id, id, offset + n);
    return 0;
}

static int
on_reset(ngtcp2_conn *conn, int64_t id, uint64_t size, uint64_t code, void *arg,
         void *stream)
{
    struct wire *w = arg;

    (void)conn;
    (void)size;
    (void)stream;
    say("reset %d %" PRId64 " %" PRIu64, w->id, id, code);
    return 0;
}

static int
on_close(ngtcp2_conn *conn, uint32_t flags, int64_t id, uint64_t code,
         void *arg, void *stream)
{
    struct wire *w = arg;
    bool coded = flags & NGTCP2_STREAM_CLOSE_FLAG_APP_ERROR_CODE_SET;

    say("closed %d %" PRId64 " %lld", w->id, id,
        coded ? (long long)code : -1LL);
    if (ngtcp2_conn_is_server(conn) == !(id & 1)) {
        if (id & 2)
            ngtcp2_conn_extend_max_streams_uni(conn, 1);
        else
            ngtcp2_conn_extend_max_streams_bidi(conn, 1);
    }
    if (stream != NULL) {
        struct stream *s = stream;

        s->held = false;
        ngtcp2_conn_extend_max_offset(conn, s->owed);
        stream_free(w, s);
    }
    return 0;
}

static int
on_unblocked(ngtcp2_conn *conn, int64_t id, uint64_t max, void *arg,
             void *stream)
{
    (void)conn;
    (void)id;
    (void)max;
    (void)arg;
    if (stream != NULL)
        ((struct stream *)stream)->blocked = false;
    return 0;
}

static int
on_more_streams(ngtcp2_conn *conn, uint64_t max, void *arg)
{
    (void)conn;
    say("allows %d %" PRIu64, ((struct wire *)arg)->id, max);
    return 0;
}

static int
on_datagram(ngtcp2_conn *conn, uint32_t flags, const uint8_t *bytes, size_t n,
            void *arg)
{
    (void)conn;
    (void)flags;
    say("datagram %d %zu", ((struct wire *)arg)->id, n);
    out_bytes(bytes, n);
    return 0;
}

static int
on_token(ngtcp2_conn *conn, const uint8_t *token, size_t n, void *arg)
{
    (void)conn;
    say("token %d %zu", ((struct wire *)arg)->id, n);
    out_bytes(token, n);
    return 0;
}

static int
on_up(ngtcp2_conn *conn, void *arg)
{
    struct wire *w = arg;
    gnutls_datum_t alpn = {NULL, 0};
    const gnutls_datum_t *peer;
    unsigned n = 0, type;
    char name[256] = "-";
    size_t len = sizeof name;

    w->up = true;
    gnutls_alpn_get_selected_protocol(w->tls, &alpn);
    if (w->server) {
        gnutls_server_name_get(w->tls, name, &len, &type, 0);
        if (w->o.tickets)
            gnutls_session_ticket_send(w->tls, 1, 0);
    }
    peer = gnutls_certificate_get_peers(w->tls, &n);
    if (peer != NULL && n > 0) {
        say("cert %d %u", w->id, peer[0].size);
        out_bytes(peer[0].data, peer[0].size);
    }
    say("up %d %" PRIx32 " %.*s %d %s", w->id,
        ngtcp2_conn_get_negotiated_version(conn), (int)alpn.size, alpn.data,
        gnutls_session_is_resumed(w->tls), name);
    return 0;
}

static int
on_versions(ngtcp2_conn *conn, const ngtcp2_pkt_hd *hd, const uint32_t *v,
            size_t n, void *arg)
{
    char list[256] = "";
    size_t at = 0;

    (void)conn;
    (void)hd;
    for (size_t i = 0; i < n && at < sizeof list - 10; i++)
        at += (size_t)sprintf(list + at, " %" PRIx32, v[i]);
    say("versions %d%s", ((struct wire *)arg)->id, list);
    return 0;
}

static int
on_retry(ngtcp2_conn *conn, const ngtcp2_pkt_hd *hd, void *arg)
{
    say("retried %d", ((struct wire *)arg)->id);
    return ngtcp2_crypto_recv_retry_cb(conn, hd, arg);
}

/* A ticket has come: keep the session where the next one finds it. */
static int
on_ticket(gnutls_session_t tls, unsigned type, unsigned when, unsigned incoming,
          const gnutls_datum_t *message)
{
    ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(tls);
    struct wire *w = ref->user_data;
    gnutls_datum_t session;
    FILE *file;

    (void)type;
    (void)when;
    (void)incoming;
    (void)message;
    if (gnutls_session_get_data2(tls, &session) != 0)
        return 0;
    if ((file = fopen(w->o.session, "w")) == NULL ||
        fwrite(session.data, 1, session.size, file) != session.size ||
        fclose(file) != 0)
        die("%s: %s", w->o.session, strerror(errno));
    gnutls_free(session.data);
    say("ticket %d", w->id);
    return 0;
}

static int
on_stateless_reset(ngtcp2_conn *conn, const ngtcp2_pkt_stateless_reset *sr,
                   void *arg)
{
    (void)conn;
    (void)sr;
    ((struct wire *)arg)->was_reset = true;
    return 0;
}

static int
on_path(ngtcp2_conn *conn, uint32_t flags, const ngtcp2_path *path,
        const ngtcp2_path *old, ngtcp2_path_validation_result res, void *arg)
{
    (void)conn;
    (void)flags;
    (void)path;
    (void)old;
    say("path %d %d", ((struct wire *)arg)->id,
        res == NGTCP2_PATH_VALIDATION_RESULT_SUCCESS);
    return 0;
}

static void
on_rand(uint8_t *at, size_t n, const ngtcp2_rand_ctx *ctx)
{
    (void)ctx;
    if (getrandom(at, n, 0) != (ssize_t)n)
        die("getrandom: %s", strerror(errno));
}

static int
on_new_cid(ngtcp2_conn *conn, ngtcp2_cid *cid, uint8_t *token, size_t n,
           void *arg)
{
    (void)conn;
    (void)arg;
    on_rand(cid->data, n, NULL);
    cid->datalen = n;
    return ngtcp2_crypto_generate_stateless_reset_token(token, secret,
                                                        sizeof secret, cid) == 0
               ? 0
               : NGTCP2_ERR_CALLBACK_FAILURE;
}

/* A STOP_SENDING that came is told by nothing but the library's log. */
__attribute__((format(printf, 2, 3))) static void
on_log(void *arg, const char *format, ...)
{
    char line[512], *id, *code; /* ... id=0x4 app_error_code=NAME(0x10c) */
    va_list args;

    if (strstr(format, "STOP_SENDING") == NULL)
        return;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    id = strstr(line, "id=");
    code = strrchr(line, '(');
    if (strstr(line, " rx ") != NULL && id != NULL && code != NULL)
        say("stopped %d %llu %llu", ((struct wire *)arg)->id,
            strtoull(id + 3, NULL, 16), strtoull(code + 1, NULL, 16));
}

/* Frames that the next packet shall have instead of what the library put into
 * it. */
static const struct chunk *forged;

static int
on_encrypt(uint8_t *to, const ngtcp2_crypto_aead *aead,
           const ngtcp2_crypto_aead_ctx *ctx, const uint8_t *plain, size_t n,
           const uint8_t *nonce, size_t n_nonce, const uint8_t *head,
           size_t n_head)
{
    uint8_t frames[2048] = {0}; /* PADDING is 0 */

    if (forged != NULL && forged->len <= n && n <= sizeof frames)
        plain = memcpy(frames, forged->bytes, forged->len);
    return ngtcp2_crypto_encrypt_cb(to, aead, ctx, plain, n, nonce, n_nonce,
                                    head, n_head);
}

static const ngtcp2_callbacks callbacks = {
    .client_initial = ngtcp2_crypto_client_initial_cb,
    .recv_client_initial = ngtcp2_crypto_recv_client_initial_cb,
    .recv_crypto_data = ngtcp2_crypto_recv_crypto_data_cb,
    .handshake_completed = on_up,
    .recv_version_negotiation = on_versions,
    .encrypt = on_encrypt,
    .decrypt = ngtcp2_crypto_decrypt_cb,
    .hp_mask = ngtcp2_crypto_hp_mask_cb,
    .recv_stream_data = on_data,
    .acked_stream_data_offset = on_acked,
    .stream_open = on_stream_open,
    .stream_close = on_close,
    .stream_reset = on_reset,
    .recv_stateless_reset = on_stateless_reset,
    .recv_retry = on_retry,
    .extend_max_local_streams_bidi = on_more_streams,
    .extend_max_stream_data = on_unblocked,
    .rand = on_rand,
    .get_new_connection_id = on_new_cid,
    .update_key = ngtcp2_crypto_update_key_cb,
    .path_validation = on_path,
    .recv_new_token = on_token,
    .delete_crypto_aead_ctx = ngtcp2_crypto_delete_crypto_aead_ctx_cb,
    .delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb,
    .recv_datagram = on_datagram,
    .get_path_challenge_data = ngtcp2_crypto_get_path_challenge_data_cb,
    .version_negotiation = ngtcp2_crypto_version_negotiation_cb,
};

/* ---- sockets ------------------------------------------------------------- */

static struct socket_of
sock_open(const char *host, const char *port, bool server,
          struct sockaddr_storage *peer, socklen_t *peer_len)
{
    struct addrinfo hints = {.ai_socktype = SOCK_DGRAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *at;
    struct socket_of s = {.local_len = sizeof s.local};
    int size = 4 << 20;

    if (getaddrinfo(host, port, &hints, &at) != 0)
        die("no address: %s %s", host, port);
    s.fd = socket(at->ai_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(s.fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (server ? bind(s.fd, at->ai_addr, at->ai_addrlen) != 0
               : connect(s.fd, at->ai_addr, at->ai_addrlen) != 0)
        die("%s %s: %s", host, port, strerror(errno));
    getsockname(s.fd, (struct sockaddr *)&s.local, &s.local_len);
    if (peer != NULL) {
        memcpy(peer, at->ai_addr, at->ai_addrlen);
        *peer_len = at->ai_addrlen;
    }
    freeaddrinfo(at);
    return s;
}

/* Another socket to the same peer, from another port. */
static void
sock_again(struct wire *w)
{
    const ngtcp2_path *path = ngtcp2_conn_get_path(w->conn);
    char host[64], port[8];

    getnameinfo(path->remote.addr, path->remote.addrlen, host, sizeof host,
                port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    close(w->sock.fd);
    w->sock = sock_open(host, port, false, NULL, NULL);
}

/* ---- connections --------------------------------------------------------- */

static struct wire *
wire_find(int id)
{
    struct wire *w;

    TAILQ_FOREACH(w, &wires, next)
    if (w->id == id)
        return w;
    return NULL;
}

static ngtcp2_conn *
conn_of(ngtcp2_crypto_conn_ref *ref)
{
    return ((struct wire *)ref->user_data)->conn;
}

static struct wire *
wire_new(int id, const struct option *o)
{
    struct wire *w = must(calloc(1, sizeof *w));

    w->id = id;
    w->o = *o;
    w->lossy_rx = (int)o->lossy_rx;
    w->sock.fd = -1;
    TAILQ_INIT(&w->streams);
    STAILQ_INIT(&w->datagrams);
    STAILQ_INIT(&w->forged);
    w->ref = (ngtcp2_crypto_conn_ref){conn_of, w};
    TAILQ_INSERT_TAIL(&wires, w, next);
    return w;
}

static void
wire_free(struct wire *w)
{
    struct chunk *c;

    while (!TAILQ_EMPTY(&w->streams))
        stream_free(w, TAILQ_FIRST(&w->streams));
    while ((c = STAILQ_FIRST(&w->datagrams)) != NULL) {
        STAILQ_REMOVE_HEAD(&w->datagrams, next);
        free(c);
    }
    while ((c = STAILQ_FIRST(&w->forged)) != NULL) {
        STAILQ_REMOVE_HEAD(&w->forged, next);
        free(c);
    }
    ngtcp2_conn_del(w->conn);
    gnutls_deinit(w->tls);
    if (!w->server && w->sock.fd >= 0)
        close(w->sock.fd);
    TAILQ_REMOVE(&wires, w, next);
    free(w);
}

static void
settings_of(struct wire *w, ngtcp2_settings *settings,
            ngtcp2_transport_params *params)
{
    const struct option *o = &w->o;

    ngtcp2_settings_default(settings);
    settings->initial_ts = now_ns();
    settings->log_printf = on_log;
    settings->initial_rtt = o->rtt_ms * NGTCP2_MILLISECONDS;
    settings->handshake_timeout = 10 * NGTCP2_SECONDS;
    if (o->payload != 0) {
        settings->max_tx_udp_payload_size = o->payload;
        settings->no_tx_udp_payload_size_shaping = 1;
    }
    ngtcp2_transport_params_default(params);
    params->initial_max_stream_data_bidi_local = o->stream_window;
    params->initial_max_stream_data_bidi_remote = o->stream_window;
    params->initial_max_stream_data_uni = 1 << 20;
    params->initial_max_data = o->window;
    params->initial_max_streams_bidi = w->server ? o->streams : 0;
    params->initial_max_streams_uni = 8;
    params->max_idle_timeout = o->idle_ms * NGTCP2_MILLISECONDS;
    params->active_connection_id_limit = 7;
    params->max_datagram_frame_size = o->datagrams ? 65535 : 0;
}

static void
tls_start(struct wire *w, gnutls_certificate_credentials_t cred)
{
    unsigned role =
        w->server ? GNUTLS_SERVER | GNUTLS_NO_AUTO_SEND_TICKET : GNUTLS_CLIENT;
    gnutls_datum_t alpn = {(void *)w->o.alpn, (unsigned)strlen(w->o.alpn)};

    if (gnutls_init(&w->tls, role | GNUTLS_NO_END_OF_EARLY_DATA) != 0 ||
        gnutls_priority_set_direct(w->tls, PRIORITY, NULL) != 0)
        die("TLS does not start");
    if (w->server) {
        ngtcp2_crypto_gnutls_configure_server_session(w->tls);
        gnutls_session_ticket_enable_server(w->tls, &ticket_key);
    } else {
        ngtcp2_crypto_gnutls_configure_client_session(w->tls);
    }
    gnutls_session_set_ptr(w->tls, &w->ref);
    gnutls_credentials_set(w->tls, GNUTLS_CRD_CERTIFICATE, cred);
    gnutls_alpn_set_protocols(w->tls, &alpn, 1, GNUTLS_ALPN_MANDATORY);
    ngtcp2_conn_set_tls_native_handle(w->conn, w->tls);
}

/* Its end, told to the peer if that makes sense, and to the test. */
static void
wire_over(struct wire *w, int rv)
{
    const ngtcp2_ccerr *e = ngtcp2_conn_get_ccerr(w->conn);
    ngtcp2_ccerr ours;
    const char *kind = "error";

    if (rv == NGTCP2_ERR_DRAINING && w->was_reset) {
        say("gone %d reset 0 stateless reset", w->id);
    } else if (rv == NGTCP2_ERR_DRAINING) {
        kind = e->type == NGTCP2_CCERR_TYPE_APPLICATION ? "application"
                                                        : "transport";
        say("gone %d %s %" PRIu64 " %.*s", w->id, kind, e->error_code,
            (int)e->reasonlen, e->reason);
    } else if (rv == NGTCP2_ERR_IDLE_CLOSE) {
        say("gone %d idle 0 idle", w->id);
    } else {
        uint8_t buf[1500];
        ngtcp2_path_storage ps;
        ngtcp2_pkt_info pi;
        ngtcp2_ssize n;

        ngtcp2_ccerr_default(&ours);
        if (rv == NGTCP2_ERR_CRYPTO)
            ngtcp2_ccerr_set_tls_alert(
                &ours, ngtcp2_conn_get_tls_alert(w->conn), NULL, 0);
        else
            ngtcp2_ccerr_set_liberr(&ours, rv, NULL, 0);
        ngtcp2_path_storage_zero(&ps);
        n = ngtcp2_conn_write_connection_close(w->conn, &ps.path, &pi, buf,
                                               sizeof buf, &ours, now_ns());
        if (n > 0)
            sendto(w->sock.fd, buf, (size_t)n, 0,
                   w->server ? ps.path.remote.addr : NULL,
                   w->server ? ps.path.remote.addrlen : 0);
        say("gone %d error %" PRIu64 " %s", w->id, ours.error_code,
            ngtcp2_strerror(rv));
    }
    wire_free(w);
}

static ngtcp2_path
path_of(struct wire *w, void *remote, socklen_t len)
{
    return (ngtcp2_path){
        .local = {(void *)&w->sock.local, w->sock.local_len},
        .remote = {remote, len},
    };
}

/* ---- sending ------------------------------------------------------------- */

static bool
send_packet(struct wire *w, const ngtcp2_path *path, const uint8_t *buf,
            size_t n)
{
    if (lost(w->lossy_tx))
        return true;
    for (;;) {
        ssize_t done = w->server
                           ? sendto(w->sock.fd, buf, n, 0, path->remote.addr,
                                    path->remote.addrlen)
                           : send(w->sock.fd, buf, n, 0);

        if (done >= 0 || errno == ECONNREFUSED || errno == EMSGSIZE)
            return true;
        if (errno != EAGAIN && errno != ENOBUFS && errno != EINTR)
            return false;
        poll(&(struct pollfd){.fd = w->sock.fd, .events = POLLOUT}, 1, 100);
    }
}

/* The next datagram of the queue into a packet. */
static ngtcp2_ssize
write_datagram(struct wire *w, ngtcp2_path *path, uint8_t *buf, size_t cap,
               ngtcp2_tstamp ts)
{
    struct chunk *c = STAILQ_FIRST(&w->datagrams);
    ngtcp2_vec v = {c->bytes, c->len};
    ngtcp2_pkt_info pi;
    int accepted = 0;
    ngtcp2_ssize n = ngtcp2_conn_writev_datagram(
        w->conn, path, &pi, buf, cap, &accepted,
        NGTCP2_WRITE_DATAGRAM_FLAG_MORE, 0, &v, 1, ts);
    bool never =
        n == NGTCP2_ERR_INVALID_ARGUMENT || n == NGTCP2_ERR_INVALID_STATE ||
        c->len + 40 > ngtcp2_conn_get_path_max_tx_udp_payload_size(w->conn);

    if (accepted || (n <= 0 && n != NGTCP2_ERR_WRITE_MORE && never)) {
        STAILQ_REMOVE_HEAD(&w->datagrams, next);
        free(c);
        if (!accepted) { /* nothing was written: on with the next */
            say("dropped %d", w->id);
            n = NGTCP2_ERR_WRITE_MORE;
        }
    }
    return n;
}

/* A packet of somebody else's frames: the library takes it for one with a
 * datagram. */
static ngtcp2_ssize
write_forged(struct wire *w, ngtcp2_path *path, uint8_t *buf, size_t cap,
             ngtcp2_tstamp ts)
{
    struct chunk *c = STAILQ_FIRST(&w->forged);
    static uint8_t instead[2048];
    ngtcp2_vec v = {instead, c->len > 32 ? c->len : 32};
    ngtcp2_pkt_info pi;
    int accepted = 0;
    ngtcp2_ssize n;

    forged = c;
    n = ngtcp2_conn_writev_datagram(w->conn, path, &pi, buf, cap, &accepted,
                                    NGTCP2_WRITE_DATAGRAM_FLAG_NONE, 0, &v, 1,
                                    ts);
    forged = NULL;
    if (accepted) {
        STAILQ_REMOVE_HEAD(&w->forged, next);
        free(c);
    }
    return n;
}

/* A piece of this stream (NULL: only what QUIC itself has to say). */
static ngtcp2_ssize
write_stream(struct wire *w, struct stream *s, ngtcp2_path *path, uint8_t *buf,
             size_t cap, ngtcp2_tstamp ts)
{
    ngtcp2_vec v = s ? stream_next(s) : (ngtcp2_vec){NULL, 0};
    bool fin = s && s->fin && s->sent + v.len == s->queued;
    uint32_t flags =
        NGTCP2_WRITE_STREAM_FLAG_MORE |
        (fin ? NGTCP2_WRITE_STREAM_FLAG_FIN : NGTCP2_WRITE_STREAM_FLAG_NONE);
    ngtcp2_ssize used = -1, n;
    ngtcp2_pkt_info pi;

    n = ngtcp2_conn_writev_stream(w->conn, path, &pi, buf, cap, &used, flags,
                                  s ? s->id : -1, &v, s ? 1 : 0, ts);
    if (s == NULL)
        return n;
    if (used >= 0) {
        s->sent += (uint64_t)used;
        s->fin_sent = fin && s->sent == s->queued;
        TAILQ_REMOVE(&w->streams, s, next); /* the others' turn */
        TAILQ_INSERT_TAIL(&w->streams, s, next);
    }
    if (n == NGTCP2_ERR_STREAM_DATA_BLOCKED) {
        s->blocked = true;
    } else if (n == NGTCP2_ERR_STREAM_SHUT_WR ||
               n == NGTCP2_ERR_STREAM_NOT_FOUND) {
        s->sent = s->queued;
        s->fin_sent = true;
    } else {
        return n;
    }
    return NGTCP2_ERR_WRITE_MORE;
}

static struct stream *
next_to_send(struct wire *w)
{
    bool credit_left = ngtcp2_conn_get_max_data_left(w->conn) > 0;
    struct stream *s;

    TAILQ_FOREACH(s, &w->streams, next)
    if (stream_waits(s) && (credit_left || s->sent == s->queued))
        return s;
    return NULL;
}

/* Send what may be sent now; false: the connection is over, and freed. */
static bool
wire_write(struct wire *w)
{
    ngtcp2_tstamp ts = now_ns();
    size_t quantum = ngtcp2_conn_get_send_quantum(w->conn), total = 0;
    uint8_t buf[65536];

    while (total < quantum || total == 0) {
        ngtcp2_path_storage ps;
        ngtcp2_ssize n;

        ngtcp2_path_storage_zero(&ps);
        do {
            if (w->up && !STAILQ_EMPTY(&w->forged))
                n = write_forged(w, &ps.path, buf, sizeof buf, ts);
            else if (w->up && !STAILQ_EMPTY(&w->datagrams))
                n = write_datagram(w, &ps.path, buf, sizeof buf, ts);
            else
                n = write_stream(w, next_to_send(w), &ps.path, buf, sizeof buf,
                                 ts);
        } while (n == NGTCP2_ERR_WRITE_MORE);
        if (n < 0) {
            wire_over(w, (int)n);
            return false;
        }
        if (n == 0)
            break;
        total += (size_t)n;
        if (!send_packet(w, &ps.path, buf, (size_t)n))
            break;
    }
    ngtcp2_conn_update_pkt_tx_time(w->conn, ts);
    return true;
}

/* ---- receiving ----------------------------------------------------------- */

static struct wire *
wire_of_cid(struct listener *l, const ngtcp2_version_cid *vc)
{
    struct wire *w;
    ngtcp2_cid cids[16], dcid;

    ngtcp2_cid_init(&dcid, vc->dcid, vc->dcidlen);
    TAILQ_FOREACH(w, &wires, next)
    {
        size_t n;

        if (w->listener != l)
            continue;
        if (ngtcp2_cid_eq(&w->first_dcid, &dcid))
            return w;
        n = ngtcp2_conn_get_scid(w->conn, NULL);
        assert(n <= 16);
        ngtcp2_conn_get_scid(w->conn, cids);
        while (n-- > 0)
            if (ngtcp2_cid_eq(&cids[n], &dcid))
                return w;
    }
    return NULL;
}

static struct wire *
wire_accept(struct listener *l, const uint8_t *pkt, size_t n, void *peer,
            socklen_t peer_len)
{
    ngtcp2_settings settings;
    ngtcp2_transport_params params;
    ngtcp2_pkt_hd hd;
    ngtcp2_cid scid;
    ngtcp2_path path;
    struct wire *w;

    if (ngtcp2_accept(&hd, pkt, n) != 0)
        return NULL;
    w = wire_new(n_accepted++, &l->o);
    w->server = true;
    w->listener = l;
    w->sock = l->sock;
    w->first_dcid = hd.dcid;
    settings_of(w, &settings, &params);
    params.original_dcid = hd.dcid;
    params.original_dcid_present = 1;
    scid.datalen = CID_LEN;
    on_rand(scid.data, CID_LEN, NULL);
    params.stateless_reset_token_present = 1;
    ngtcp2_crypto_generate_stateless_reset_token(params.stateless_reset_token,
                                                 secret, sizeof secret, &scid);
    path = path_of(w, peer, peer_len);
    if (ngtcp2_conn_server_new(&w->conn, &hd.scid, &scid, &path, hd.version,
                               &callbacks, &settings, &params, NULL, w) != 0)
        die("no connection");
    tls_start(w, l->cred);
    say("accepted %d %d", w->id,
        ntohs(((struct sockaddr_in *)&l->sock.local)->sin_port));
    return w;
}

/* Feed what the socket has; false: the connection is over, and freed. */
static bool
wire_read(struct wire *w, uint8_t *pkt, size_t n, void *peer, socklen_t len)
{
    ngtcp2_path path = path_of(w, peer, len);
    ngtcp2_pkt_info pi = {0};
    int rv;

    if (lost(w->lossy_rx))
        return true;
    rv = ngtcp2_conn_read_pkt(w->conn, &path, &pi, pkt, n, now_ns());
    if (rv == 0)
        return true;
    wire_over(w, rv);
    return false;
}

static void
listener_read(struct listener *l)
{
    for (int i = 0; i < BURST; i++) {
        struct sockaddr_storage peer;
        socklen_t len = sizeof peer;
        uint8_t buf[65536];
        ssize_t n = recvfrom(l->sock.fd, buf, sizeof buf, 0,
                             (struct sockaddr *)&peer, &len);
        ngtcp2_version_cid vc;
        struct wire *w;

        if (n < 0)
            return;
        if (ngtcp2_pkt_decode_version_cid(&vc, buf, (size_t)n, CID_LEN) != 0)
            continue;
        w = wire_of_cid(l, &vc);
        if (w == NULL)
            w = wire_accept(l, buf, (size_t)n, &peer, len);
        if (w != NULL && wire_read(w, buf, (size_t)n, &peer, len))
            wire_write(w);
    }
}

static void
client_read(struct wire *w)
{
    for (int i = 0; i < BURST; i++) {
        struct sockaddr_storage peer;
        socklen_t len = sizeof peer;
        uint8_t buf[65536];
        ssize_t n = recv(w->sock.fd, buf, sizeof buf, 0);

        if (n < 0)
            break; /* also ECONNREFUSED: nobody there, which may change */
        getpeername(w->sock.fd, (struct sockaddr *)&peer, &len);
        if (!wire_read(w, buf, (size_t)n, &peer, len))
            return;
    }
    wire_write(w);
}

/* ---- commands ------------------------------------------------------------ */

static size_t
unhex(const char *text, uint8_t *to, size_t cap)
{
    size_t n = 0;
    unsigned byte;

    while (n < cap && sscanf(text + 2 * n, "%2x", &byte) == 1)
        to[n++] = (uint8_t)byte;
    return n;
}

static struct option
options(char **words, int n)
{
    struct option o = {.alpn = "h3",
                       .version = NGTCP2_PROTO_VER_V1,
                       .stream_window = 1 << 20,
                       .window = 16 << 20,
                       .streams = 100,
                       .idle_ms = 60000,
                       .rtt_ms = 10,
                       .datagrams = true,
                       .tickets = true};
    struct {
        const char *name;
        uint64_t *to;
    } numbers[] = {
        {"stream_window", &o.stream_window},
        {"window", &o.window},
        {"streams", &o.streams},
        {"idle_ms", &o.idle_ms},
        {"rtt_ms", &o.rtt_ms},
        {"payload", &o.payload},
        {"lossy_rx", &o.lossy_rx},
    };

    for (int i = 0; i < n; i++) {
        char *value = strchr(words[i], '=');
        bool known = false;

        if (value == NULL)
            die("option %s", words[i]);
        *value++ = '\0';
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            if (strcmp(words[i], numbers[k].name) == 0) {
                *numbers[k].to = strtoull(value, NULL, 0);
                known = true;
            }
        if (strcmp(words[i], "ca") == 0)
            snprintf(o.ca, sizeof o.ca, "%s", value);
        else if (strcmp(words[i], "alpn") == 0)
            snprintf(o.alpn, sizeof o.alpn, "%s", value);
        else if (strcmp(words[i], "token") == 0)
            snprintf(o.token, sizeof o.token, "%s", value);
        else if (strcmp(words[i], "session") == 0)
            snprintf(o.session, sizeof o.session, "%s", value);
        else if (strcmp(words[i], "version") == 0)
            o.version = (uint32_t)strtoul(value, NULL, 0);
        else if (strcmp(words[i], "datagrams") == 0)
            o.datagrams = atoi(value) != 0;
        else if (strcmp(words[i], "tickets") == 0)
            o.tickets = atoi(value) != 0;
        else if (!known)
            die("option %s", words[i]);
    }
    return o;
}

static void
do_listen(char **arg, int n)
{
    struct listener *l = must(calloc(1, sizeof *l));

    l->sock = sock_open("127.0.0.1", arg[0], true, NULL, NULL);
    l->o = options(arg + 3, n - 3);
    gnutls_certificate_allocate_credentials(&l->cred);
    if (gnutls_certificate_set_x509_key_file(l->cred, arg[1], arg[2],
                                             GNUTLS_X509_FMT_PEM) < 0)
        die("certificate %s %s", arg[1], arg[2]);
    TAILQ_INSERT_TAIL(&listeners, l, next);
    say("listening %d",
        ntohs(((struct sockaddr_in *)&l->sock.local)->sin_port));
}

/* With session=FILE: the one that was kept there, and what comes is kept. */
static void
resume_session(struct wire *w)
{
    gnutls_datum_t session;

    if (w->o.session[0] == '\0')
        return;
    gnutls_handshake_set_hook_function(w->tls,
                                       GNUTLS_HANDSHAKE_NEW_SESSION_TICKET,
                                       GNUTLS_HOOK_POST, on_ticket);
    if (gnutls_load_file(w->o.session, &session) != 0)
        return;
    if (gnutls_session_set_data(w->tls, session.data, session.size) != 0)
        die("session %s", w->o.session);
    gnutls_free(session.data);
}

static void
do_dial(char **arg, int n)
{
    struct option o = options(arg + 4, n - 4);
    struct wire *w = wire_new(atoi(arg[0]), &o);
    gnutls_certificate_credentials_t cred;
    struct sockaddr_storage peer;
    socklen_t peer_len;
    ngtcp2_settings settings;
    ngtcp2_transport_params params;
    ngtcp2_cid dcid = {.datalen = 18}, scid = {.datalen = CID_LEN};
    ngtcp2_path path;
    uint8_t token[256];

    w->sock = sock_open(arg[1], arg[2], false, &peer, &peer_len);
    settings_of(w, &settings, &params);
    settings.token = token;
    settings.tokenlen = unhex(o.token, token, sizeof token);
    on_rand(dcid.data, dcid.datalen, NULL);
    on_rand(scid.data, scid.datalen, NULL);
    path = path_of(w, &peer, peer_len);
    if (ngtcp2_conn_client_new(&w->conn, &dcid, &scid, &path, o.version,
                               &callbacks, &settings, &params, NULL, w) != 0)
        die("no connection");
    gnutls_certificate_allocate_credentials(&cred); /* they live as we do */
    if (o.ca[0] != '\0')
        gnutls_certificate_set_x509_trust_file(cred, o.ca, GNUTLS_X509_FMT_PEM);
    tls_start(w, cred);
    if (strcmp(arg[3], "-") != 0)
        gnutls_server_name_set(w->tls, GNUTLS_NAME_DNS, arg[3], strlen(arg[3]));
    if (o.ca[0] != '\0')
        gnutls_session_set_verify_cert(w->tls,
                                       strcmp(arg[3], "-") ? arg[3] : NULL, 0);
    resume_session(w);
    wire_write(w);
}

static void
do_open(struct wire *w, char **arg)
{
    int64_t id;
    int rv = arg[0][0] == 'b' ? ngtcp2_conn_open_bidi_stream(w->conn, &id, NULL)
                              : ngtcp2_conn_open_uni_stream(w->conn, &id, NULL);

    if (rv != 0) {
        say("opened %d -1", w->id);
        return;
    }
    stream_new(w, id);
    say("opened %d %" PRId64, w->id, id);
}

static void
do_send(struct wire *w, char **arg, struct chunk *c)
{
    struct stream *s = stream_find(w, atoll(arg[0]));

    if (s == NULL) { /* over: what the test says now nobody hears */
        free(c);
        return;
    }
    s->fin = s->fin || atoi(arg[1]);
    s->queued += c->len;
    if (c->len > 0)
        STAILQ_INSERT_TAIL(&s->chunks, c, next);
    else
        free(c);
}

static void
do_resume(struct wire *w, struct stream *s)
{
    s->held = false;
    credit(w, s, s->owed);
    s->owed = 0;
}

static void
do_close(struct wire *w, uint64_t code)
{
    uint8_t buf[1500];
    ngtcp2_path_storage ps;
    ngtcp2_pkt_info pi;
    ngtcp2_ccerr e;
    ngtcp2_ssize n;

    ngtcp2_ccerr_default(&e);
    ngtcp2_ccerr_set_application_error(&e, code, NULL, 0);
    ngtcp2_path_storage_zero(&ps);
    n = ngtcp2_conn_write_connection_close(w->conn, &ps.path, &pi, buf,
                                           sizeof buf, &e, now_ns());
    if (n > 0)
        send_packet(w, &ps.path, buf, (size_t)n);
    wire_free(w);
}

static void
do_migrate(struct wire *w, bool known)
{
    const ngtcp2_path *was = ngtcp2_conn_get_path(w->conn);
    struct sockaddr_storage peer;
    ngtcp2_path path;
    int rv = 0;

    memcpy(&peer, was->remote.addr, was->remote.addrlen);
    sock_again(w);
    path = path_of(w, &peer, was->remote.addrlen);
    if (known)
        rv = ngtcp2_conn_initiate_immediate_migration(w->conn, &path, now_ns());
    else
        ngtcp2_conn_set_local_addr(w->conn, &path.local);
    if (rv != 0)
        say("path %d %d", w->id, rv);
}

/* A command that names a connection; those that are over take none. */
static void
command(char **word, int n, struct chunk *payload)
{
    struct wire *w = n > 1 ? wire_find(atoi(word[1])) : NULL;
    struct stream *s =
        w != NULL && n > 2 ? stream_find(w, atoll(word[2])) : NULL;
    const char *what = word[0];

    if (w == NULL) {
        if (strcmp(what, "open") == 0)
            say("opened %s -1", word[1]);
        free(payload);
        return;
    }
    if (strcmp(what, "send") == 0) {
        do_send(w, word + 2, payload);
    } else if (strcmp(what, "datagram") == 0) {
        STAILQ_INSERT_TAIL(&w->datagrams, payload, next);
    } else if (strcmp(what, "frames") == 0) {
        STAILQ_INSERT_TAIL(&w->forged, payload, next);
    } else if (strcmp(what, "open") == 0) {
        do_open(w, word + 2);
    } else if (strcmp(what, "reset") == 0) {
        ngtcp2_conn_shutdown_stream_write(w->conn, 0, atoll(word[2]),
                                          strtoull(word[3], NULL, 0));
        if (s != NULL) { /* its bytes are no more */
            s->sent = s->queued;
            s->fin_sent = true;
        }
    } else if (strcmp(what, "stop") == 0) {
        ngtcp2_conn_shutdown_stream_read(w->conn, 0, atoll(word[2]),
                                         strtoull(word[3], NULL, 0));
    } else if (strcmp(what, "hold") == 0 && s != NULL) {
        s->held = true;
    } else if (strcmp(what, "resume") == 0 && s != NULL) {
        do_resume(w, s);
    } else if (strcmp(what, "close") == 0) {
        do_close(w, strtoull(word[2], NULL, 0));
        return;
    } else if (strcmp(what, "abandon") == 0) {
        wire_free(w);
        return;
    } else if (strcmp(what, "migrate") == 0 || strcmp(what, "rebind") == 0) {
        do_migrate(w, what[0] == 'm');
    } else if (strcmp(what, "update") == 0) {
        ngtcp2_conn_initiate_key_update(w->conn, now_ns());
    } else if (strcmp(what, "lossy") == 0) {
        w->lossy_tx = atoi(word[2]);
        w->lossy_rx = atoi(word[3]);
    } else if (strcmp(what, "keepalive") == 0) {
        ngtcp2_conn_set_keep_alive_timeout(w->conn, strtoull(word[2], NULL, 0) *
                                                        NGTCP2_MILLISECONDS);
    }
}

/* ---- the loop ------------------------------------------------------------ */

static struct {
    char *at;
    size_t start, len, cap;
} in;

/* One command off the front of what was read; false: it is not whole yet. */
static bool
in_command(void)
{
    char line[4096], *word[64], *save = NULL, *end;
    struct chunk *payload = NULL;
    size_t n_line, n_bytes = 0;
    int n = 0;

    end = in.len ? memchr(in.at + in.start, '\n', in.len) : NULL;
    if (end == NULL)
        return false;
    n_line = (size_t)(end - (in.at + in.start));
    if (n_line >= sizeof line)
        die("a line of %zu", n_line);
    memcpy(line, in.at + in.start, n_line);
    line[n_line] = '\0';
    for (char *w = strtok_r(line, " ", &save); w != NULL && n < 64;
         w = strtok_r(NULL, " ", &save))
        word[n++] = w;
    if (n == 0)
        die("an empty line");
    if (strcmp(word[0], "send") == 0 || strcmp(word[0], "datagram") == 0 ||
        strcmp(word[0], "frames") == 0) {
        n_bytes = strtoull(word[n - 1], NULL, 10);
        if (in.len < n_line + 1 + n_bytes)
            return false;
        payload = must(malloc(sizeof *payload + n_bytes));
        payload->len = n_bytes;
        memcpy(payload->bytes, end + 1, n_bytes);
    }
    in.start += n_line + 1 + n_bytes;
    in.len -= n_line + 1 + n_bytes;
    if (strcmp(word[0], "listen") == 0 && n >= 4)
        do_listen(word + 1, n - 1);
    else if (strcmp(word[0], "dial") == 0 && n >= 5)
        do_dial(word + 1, n - 1);
    else
        command(word, n, payload);
    return true;
}

static void
in_read(void)
{
    ssize_t n;

    if (in.start > 0 && in.len > 0)
        memmove(in.at, in.at + in.start, in.len);
    in.start = 0;
    if (in.cap - in.len < 1 << 16) {
        in.cap = in.cap ? in.cap * 2 : 1 << 18;
        in.at = must(realloc(in.at, in.cap));
    }
    n = read(STDIN_FILENO, in.at + in.len, in.cap - in.len);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        exit(0); /* the test is over */
    if (n > 0)
        in.len += (size_t)n;
    while (in_command())
        ;
}

/* Whatever is due now is done; ms until more will be, -1: nothing will. */
static int
timers(void)
{
    ngtcp2_tstamp now = now_ns(), first = UINT64_MAX;
    struct wire *w, *next;

    for (w = TAILQ_FIRST(&wires); w != NULL; w = next) {
        ngtcp2_tstamp at = ngtcp2_conn_get_expiry(w->conn);
        int rv;

        next = TAILQ_NEXT(w, next);
        if (at <= now && (rv = ngtcp2_conn_handle_expiry(w->conn, now)) != 0) {
            wire_over(w, rv);
            continue;
        }
        if (!wire_write(w))
            continue;
        at = ngtcp2_conn_get_expiry(w->conn);
        if (at < first)
            first = at;
    }
    if (first == UINT64_MAX)
        return -1;
    now = now_ns();
    return first <= now
               ? 0
               : (int)((first - now) / NGTCP2_MILLISECONDS % 1000000) + 1;
}

static void
loop(void)
{
    struct pollfd *set = NULL;

    for (;;) {
        int wait_ms = timers();
        struct listener *l;
        struct wire *w, *next;
        nfds_t n = 2, i = 2;
        bool full = out.len > OUT_MAX;

        TAILQ_FOREACH(l, &listeners, next)
        n++;
        TAILQ_FOREACH(w, &wires, next)
        n++;
        set = must(realloc(set, n * sizeof *set));
        set[0] = (struct pollfd){STDIN_FILENO, POLLIN, 0};
        set[1] = (struct pollfd){out.len ? STDOUT_FILENO : -1, POLLOUT, 0};
        TAILQ_FOREACH(l, &listeners, next)
        set[i++] = (struct pollfd){full ? -1 : l->sock.fd, POLLIN, 0};
        TAILQ_FOREACH(w, &wires, next)
        set[i++] =
            (struct pollfd){full || w->server ? -1 : w->sock.fd, POLLIN, 0};
        if (poll(set, n, wait_ms) < 0 && errno != EINTR)
            die("poll: %s", strerror(errno));
        i = 2;
        TAILQ_FOREACH(l, &listeners, next)
        if (set[i++].revents)
            listener_read(l);
        /* Those accepted by now stand behind: they had no place in the set. */
        for (w = TAILQ_FIRST(&wires); w != NULL && i < n; w = next) {
            next = TAILQ_NEXT(w, next);
            if (!w->server && w->sock.fd >= 0 && set[i].fd == w->sock.fd &&
                set[i].revents)
                client_read(w);
            i++;
        }
        if (set[0].revents)
            in_read();
        if (out.len)
            out_flush();
    }
}

int
main(void)
{
    on_rand(secret, sizeof secret, NULL);
    srandom(1);
    gnutls_session_ticket_key_generate(&ticket_key);
    fcntl(STDOUT_FILENO, F_SETFL, O_NONBLOCK);
    loop();
}
