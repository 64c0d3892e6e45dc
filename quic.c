/*
 * quic.c - one QUIC connection, in either role.
 *
 * The library does the protocol; it is driven from memory, by one thread:
 * datagrams are fed to it, it is told when its time has come, and it writes
 * datagrams.  Nobody waits in here.  Packets are gathered and sent together,
 * as segments of one system call where the kernel can do that.
 *
 * What the streams carry is the user's, whom we call back (struct quic_user):
 * while packets are written he is asked for what comes next, so that nothing
 * is copied before it has its place in a packet.
 *
 * Follows  RFC 9000, RFC 9001, RFC 9002, RFC 9221 (DATAGRAM), RFC 9369.
 * Owns     the library's connection, the TLS session, the leaf it shows, the
 *          packets being gathered.  The wire (server) is the user's; a socket
 *          (client) is ours.
 * Threads  the owner of the session; quic_leaf() in a handshake of his.
 * Blocks   never, but for a leaf that is minted in quic_feed().
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <gnutls/crypto.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

#include "proxy.h"

enum {
    CID_LEN = 12,        /* of those we make */
    PEER_CIDS = 7,       /* that a peer may give us, to change its address */
    BURST = 65000,       /* bytes sent by one call; UDP has 16 bits for it */
    BURST_SEGMENTS = 64, /* and no more packets: udp(7), UDP_SEGMENT */
    IOV_MAX_HERE = 16,   /* pieces of a stream for one packet */
    SPARE_NAMES = 7,     /* connection IDs of the peer that we hold */
    PAYLOAD_MAX = 1452,  /* of a datagram: Ethernet, less IPv6 and UDP */
    GRAM_COST = 24,      /* of a packet around a DATAGRAM, less its DCID */
    STREAM_WINDOW_MAX = 16 << 20, /* to which the library may grow a window */
};

struct messages {    /* of TLS, one behind the other */
    unsigned n_head; /* bytes of the next one's head that have come */
    size_t len;      /* what they say of its length */
    size_t left;     /* bytes of a message that are yet to come */
};

struct quic {
    ngtcp2_conn *conn;
    ngtcp2_crypto_conn_ref ref; /* what the TLS session points to */
    gnutls_session_t tls;
    bool server, is_ready;
    uint8_t alert; /* what a callback wants to be said; 0: nothing */
    struct messages messages[4]; /* of each encryption level */
    struct wire *wire;           /* server */
    int fd;                      /* client; -1: none */
    struct quic_user user;
    struct leaf *leaf;       /* server: what the handshake shows */
    struct fail verified;    /* client: why the peer is not who he should be */
    struct quic_path path;   /* client: of its socket */
    ngtcp2_ccerr end;        /* how it shall end */
    const char *cause;       /* why; NULL: it goes on */
    bool silent;             /* it is over, and there is nobody to be told */
    struct quic_bytes bytes; /* of UDP payload */
    char *burst;             /* packets not sent yet */
    size_t burst_len, segment, n_segments;
    struct quic_path burst_path;
};

/* ---- small things -------------------------------------------------------- */

static ngtcp2_tstamp
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (ngtcp2_tstamp)ts.tv_sec * NGTCP2_SECONDS +
           (ngtcp2_tstamp)ts.tv_nsec;
}

static socklen_t
address_len(const union quic_address *a)
{
    return a->sa.sa_family == AF_INET6 ? sizeof a->in6 : sizeof a->in;
}

static ngtcp2_path
path_of(struct quic_path *p)
{
    return (ngtcp2_path){{&p->local.sa, address_len(&p->local)},
                         {&p->remote.sa, address_len(&p->remote)},
                         NULL};
}

static const char *
library_text(int code)
{
    return ngtcp2_strerror(code);
}

/* What the peer, or we, ended it with: a code of HTTP/3 or of QUIC. */
static const char *
code_text(int code)
{
    switch (code) {
    case 0x00:
        return "NO_ERROR";
    case 0x01:
        return "INTERNAL_ERROR";
    case 0x02:
        return "CONNECTION_REFUSED";
    case 0x03:
        return "FLOW_CONTROL_ERROR";
    case 0x04:
        return "STREAM_LIMIT_ERROR";
    case 0x05:
        return "STREAM_STATE_ERROR";
    case 0x0a:
        return "PROTOCOL_VIOLATION";
    case 0x0b:
        return "INVALID_TOKEN";
    case 0x100:
        return "H3_NO_ERROR";
    case 0x101:
        return "H3_GENERAL_PROTOCOL_ERROR";
    case 0x102:
        return "H3_INTERNAL_ERROR";
    case 0x103:
        return "H3_STREAM_CREATION_ERROR";
    case 0x104:
        return "H3_CLOSED_CRITICAL_STREAM";
    case 0x105:
        return "H3_FRAME_UNEXPECTED";
    case 0x106:
        return "H3_FRAME_ERROR";
    case 0x107:
        return "H3_EXCESSIVE_LOAD";
    case 0x108:
        return "H3_ID_ERROR";
    case 0x109:
        return "H3_SETTINGS_ERROR";
    case 0x10a:
        return "H3_MISSING_SETTINGS";
    case 0x110:
        return "H3_VERSION_FALLBACK";
    case 0x200:
        return "QPACK_DECOMPRESSION_FAILED";
    case 0x201:
        return "QPACK_ENCODER_STREAM_ERROR";
    case 0x202:
        return "QPACK_DECODER_STREAM_ERROR";
    default:
        return "QUIC error";
    }
}

/* ---- the library's callbacks: streams ------------------------------------ */

static int
told(bool good)
{
    return good ? 0 : NGTCP2_ERR_CALLBACK_FAILURE;
}

static int
on_stream_data(ngtcp2_conn *conn, uint32_t flags, int64_t id, uint64_t offset,
               const uint8_t *at, size_t len, void *arg, void *stream)
{
    struct quic *q = arg;

    (void)conn, (void)offset, (void)stream;
    return told(q->user.data(q->user.arg, id, at, len,
                             flags & NGTCP2_STREAM_DATA_FLAG_FIN));
}

static int
on_acked(ngtcp2_conn *conn, int64_t id, uint64_t offset, uint64_t len,
         void *arg, void *stream)
{
    struct quic *q = arg;

    (void)conn, (void)offset, (void)stream;
    q->user.acked(q->user.arg, id, (size_t)len);
    return 0;
}

static int
on_stream_close(ngtcp2_conn *conn, uint32_t flags, int64_t id, uint64_t code,
                void *arg, void *stream)
{
    struct quic *q = arg;

    (void)conn, (void)stream;
    q->user.closed(q->user.arg, id,
                   flags & NGTCP2_STREAM_CLOSE_FLAG_APP_ERROR_CODE_SET
                       ? code
                       : UINT64_MAX);
    return 0;
}

static int
on_stream_reset(ngtcp2_conn *conn, int64_t id, uint64_t size, uint64_t code,
                void *arg, void *stream)
{
    struct quic *q = arg;

    (void)conn, (void)size, (void)stream;
    return told(q->user.cut_off(q->user.arg, id, code));
}

static int
on_room(ngtcp2_conn *conn, int64_t id, uint64_t max, void *arg, void *stream)
{
    struct quic *q = arg;

    (void)conn, (void)max, (void)stream;
    q->user.room(q->user.arg, id);
    return 0;
}

static int
on_datagram(ngtcp2_conn *conn, uint32_t flags, const uint8_t *at, size_t len,
            void *arg)
{
    struct quic *q = arg;

    (void)conn, (void)flags;
    q->user.gram(q->user.arg, at, len);
    return 0;
}

/* ---- the library's callbacks: the handshake ------------------------------ */

/* Does a KeyUpdate begin in here? */
static bool
has_key_update(struct messages *m, const uint8_t *at, size_t len)
{
    for (size_t n; len > 0; at += n, len -= n) {
        n = m->left < len ? m->left : len;
        m->left -= n;
        if (n > 0)
            continue;
        if (m->n_head == 0 && *at == GNUTLS_HANDSHAKE_KEY_UPDATE)
            return true;
        m->len = m->n_head == 0 ? 0 : m->len << 8 | *at;
        if (++m->n_head == 4) { /* RFC 8446 section 4: type and length */
            m->n_head = 0;
            m->left = m->len;
        }
        n = 1;
    }
    return false;
}

/* Bytes of TLS.  QUIC has updates of keys of its own, and TLS's are forbidden
 * (RFC 9001 section 6): GnuTLS would make new keys, which the library does not
 * survive. */
static int
on_crypto(ngtcp2_conn *conn, ngtcp2_encryption_level level, uint64_t offset,
          const uint8_t *at, size_t len, void *arg)
{
    struct quic *q = arg;

    if ((size_t)level < sizeof q->messages / sizeof q->messages[0] &&
        !has_key_update(&q->messages[level], at, len))
        return ngtcp2_crypto_recv_crypto_data_cb(conn, level, offset, at, len,
                                                 arg);
    q->alert = GNUTLS_A_UNEXPECTED_MESSAGE;
    return NGTCP2_ERR_CRYPTO;
}

static int
on_key(struct quic *q, ngtcp2_encryption_level level)
{
    return level == NGTCP2_ENCRYPTION_LEVEL_1RTT
               ? told(q->user.ready(q->user.arg))
               : 0;
}

/* A server may write before the client's handshake is complete; a client has
 * its first keys to read with. */
static int
on_tx_key(ngtcp2_conn *conn, ngtcp2_encryption_level level, void *arg)
{
    struct quic *q = arg;

    (void)conn;
    return q->server ? on_key(q, level) : 0;
}

static int
on_rx_key(ngtcp2_conn *conn, ngtcp2_encryption_level level, void *arg)
{
    struct quic *q = arg;

    (void)conn;
    return q->server ? 0 : on_key(q, level);
}

/* Something for the client's next connection: a ticket, and a token that
 * proves its address. */
static void
give_farewell(struct quic *q)
{
    const ngtcp2_path *at = ngtcp2_conn_get_path(q->conn);
    uint8_t token[QUIC_TOKEN_MAX];
    struct quic_path path = {0};
    size_t len;

    (void)gnutls_session_ticket_send(q->tls, 1, 0);
    memcpy(&path.remote, at->remote.addr, at->remote.addrlen);
    if ((len = wire_token(q->wire, &path, token)) > 0)
        (void)ngtcp2_conn_submit_new_token(q->conn, token, len);
}

static int
on_handshake(ngtcp2_conn *conn, void *arg)
{
    struct quic *q = arg;

    (void)conn;
    if (q->server) {
        give_farewell(q);
        wire_settled(q->wire);
    } else if (q->user.verify(q->user.arg, q->tls, &q->verified) != WHY_NONE) {
        q->cause = "certificate not acceptable";
        ngtcp2_ccerr_set_tls_alert(&q->end, GNUTLS_A_BAD_CERTIFICATE, NULL, 0);
        return NGTCP2_ERR_CALLBACK_FAILURE;
    }
    q->is_ready = true;
    q->user.confirmed(q->user.arg);
    return 0;
}

static void
on_rand(uint8_t *to, size_t len, const ngtcp2_rand_ctx *ctx)
{
    int rc = gnutls_rnd(GNUTLS_RND_NONCE, to, len);

    (void)ctx;
    assert(rc == 0); /* GnuTLS has its own generator, seeded at start */
    (void)rc;
}

/* RFC 9000 section 5.1: a further name for this connection. */
static int
on_new_cid(ngtcp2_conn *conn, ngtcp2_cid *cid, uint8_t *token, size_t len,
           void *arg)
{
    struct quic *q = arg;
    struct quic_cid made = {.len = len};

    (void)conn;
    if (q->server) {
        if (!wire_name(q->wire, &made, token))
            return NGTCP2_ERR_CALLBACK_FAILURE;
    } else {
        on_rand(made.at, len, NULL);
        on_rand(token, NGTCP2_STATELESS_RESET_TOKENLEN, NULL);
    }
    ngtcp2_cid_init(cid, made.at, made.len);
    return 0;
}

static int
on_old_cid(ngtcp2_conn *conn, const ngtcp2_cid *cid, void *arg)
{
    struct quic *q = arg;
    struct quic_cid old = {.len = cid->datalen};

    (void)conn;
    memcpy(old.at, cid->data, cid->datalen);
    if (q->server)
        wire_unname(q->wire, &old);
    return 0;
}

static const ngtcp2_callbacks callbacks = {
    .client_initial = ngtcp2_crypto_client_initial_cb,
    .recv_client_initial = ngtcp2_crypto_recv_client_initial_cb,
    .recv_crypto_data = on_crypto,
    .handshake_completed = on_handshake,
    .encrypt = ngtcp2_crypto_encrypt_cb,
    .decrypt = ngtcp2_crypto_decrypt_cb,
    .hp_mask = ngtcp2_crypto_hp_mask_cb,
    .recv_stream_data = on_stream_data,
    .acked_stream_data_offset = on_acked,
    .stream_close = on_stream_close,
    .recv_retry = ngtcp2_crypto_recv_retry_cb,
    .rand = on_rand,
    .get_new_connection_id = on_new_cid,
    .remove_connection_id = on_old_cid,
    .update_key = ngtcp2_crypto_update_key_cb,
    .stream_reset = on_stream_reset,
    .extend_max_stream_data = on_room,
    .delete_crypto_aead_ctx = ngtcp2_crypto_delete_crypto_aead_ctx_cb,
    .delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb,
    .recv_datagram = on_datagram,
    .get_path_challenge_data = ngtcp2_crypto_get_path_challenge_data_cb,
    .version_negotiation = ngtcp2_crypto_version_negotiation_cb,
    .recv_rx_key = on_rx_key,
    .recv_tx_key = on_tx_key,
};

/* ---- TLS ----------------------------------------------------------------- */

static ngtcp2_conn *
conn_of(ngtcp2_crypto_conn_ref *ref)
{
    return ((struct quic *)ref->user_data)->conn;
}

static struct quic *
quic_of(gnutls_session_t tls)
{
    ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(tls);

    return ref->user_data;
}

/* One extension of a ClientHello, raw. */
static int
on_extension(void *arg, unsigned type, const unsigned char *at, unsigned len)
{
    struct hello *hello = arg;

    return hello_extension(hello, type, at, len) ? 0
                                                 : GNUTLS_E_ILLEGAL_PARAMETER;
}

/* The ClientHello is here and nothing has been made of it: whom does it want?
 * GnuTLS calls this for sessions that are resumed, too. */
static int
on_hello(gnutls_session_t tls, unsigned type, unsigned when, unsigned incoming,
         const gnutls_datum_t *raw)
{
    struct quic *q = quic_of(tls);
    struct hello hello = {.alpn = 0};
    int rc, alert;

    (void)type, (void)when, (void)incoming;
    rc = gnutls_ext_raw_parse(&hello, on_extension, raw,
                              GNUTLS_EXT_RAW_FLAG_TLS_CLIENT_HELLO);
    if (rc < 0)
        return rc;
    if (q->leaf != NULL) /* the second one, behind a HelloRetryRequest */
        return 0;
    alert = q->user.hello(q->user.arg, &hello, &q->leaf);
    if (alert == 0)
        return 0;
    q->alert = (uint8_t)alert;
    return GNUTLS_E_NO_CERTIFICATE_FOUND;
}

/* For mitm.c's certificate callback: what this handshake shows. */
struct leaf *
quic_leaf(gnutls_session_t tls)
{
    return quic_of(tls)->leaf;
}

/* Join the session and the connection.  False: one of them is NULL, or the
 * library will not. */
static bool
tls_join(struct quic *q)
{
    int rc;

    q->ref = (ngtcp2_crypto_conn_ref){conn_of, q};
    rc = q->server ? ngtcp2_crypto_gnutls_configure_server_session(q->tls)
                   : ngtcp2_crypto_gnutls_configure_client_session(q->tls);
    gnutls_session_set_ptr(q->tls, &q->ref);
    if (q->server)
        gnutls_handshake_set_hook_function(
            q->tls, GNUTLS_HANDSHAKE_CLIENT_HELLO, GNUTLS_HOOK_PRE, on_hello);
    ngtcp2_conn_set_tls_native_handle(q->conn, q->tls);
    return rc == 0;
}

/* ---- making one ---------------------------------------------------------- */

static void
settings_init(ngtcp2_settings *s, const struct quic_conf *conf)
{
    ngtcp2_settings_default(s);
    s->initial_ts = now_ns();
    s->initial_rtt = (ngtcp2_duration)conf->rtt_ms * NGTCP2_MILLISECONDS;
    s->handshake_timeout =
        (ngtcp2_duration)conf->handshake_ms * NGTCP2_MILLISECONDS;
    s->max_tx_udp_payload_size = PAYLOAD_MAX;
    /* A tunnelled client's first packets, 1200 bytes, have to fit into ours
     * before the path's size is known.  Our own inside of a tunnel have to
     * find out what that carries. */
    s->no_tx_udp_payload_size_shaping = !conf->tunnelled;
    s->max_stream_window = STREAM_WINDOW_MAX;
    s->max_window = STREAM_WINDOW_MAX;
}

static void
params_init(ngtcp2_transport_params *p, const struct quic_conf *conf)
{
    ngtcp2_transport_params_default(p);
    p->initial_max_stream_data_bidi_local = conf->stream_window;
    p->initial_max_stream_data_bidi_remote = conf->stream_window;
    p->initial_max_stream_data_uni = conf->stream_window;
    p->initial_max_data = conf->window;
    p->initial_max_streams_bidi = conf->streams;
    p->initial_max_streams_uni = QUIC_OWN_MAX;
    p->active_connection_id_limit = PEER_CIDS;
    p->max_idle_timeout = (ngtcp2_duration)conf->idle_ms * NGTCP2_MILLISECONDS;
    p->max_datagram_frame_size = 65535;
    p->active_connection_id_limit = SPARE_NAMES; /* one for each new path */
    p->grease_quic_bit = 1;
}

static struct quic *
quic_new(gnutls_session_t tls, const struct quic_user *user)
{
    struct quic *q = calloc(1, sizeof *q);

    if (q == NULL) {
        gnutls_deinit(tls);
        return NULL;
    }
    q->tls = tls;
    q->user = *user;
    q->fd = -1;
    ngtcp2_ccerr_default(&q->end);
    return q;
}

static ngtcp2_cid
cid_of(const struct quic_cid *c)
{
    ngtcp2_cid cid;

    ngtcp2_cid_init(&cid, c->at, c->len);
    return cid;
}

/*
 * quic_accept - a server's connection; its first datagram is yet to be fed.
 *
 * wire  the user's, and outlives it
 * tls   of mitm_quic(); taken, on failure as well
 *
 * Returns NULL: out of memory.  Thread: the owner.
 */
struct quic *
quic_accept(struct wire *wire, gnutls_session_t tls,
            const struct quic_conf *conf, const struct quic_user *user)
{
    const struct quic_birth *b = wire_birth(wire);
    struct quic *q = quic_new(tls, user);
    struct quic_path path = b->path;
    ngtcp2_path at = path_of(&path);
    struct quic_cid ours = {.len = CID_LEN};
    ngtcp2_cid client = cid_of(&b->client), scid;
    ngtcp2_transport_params params;
    ngtcp2_settings settings;

    if (q == NULL)
        return NULL;
    q->server = true;
    q->wire = wire;
    settings_init(&settings, conf);
    params_init(&params, conf);
    params.original_dcid_present = 1;
    params.original_dcid = cid_of(b->odcid.len > 0 ? &b->odcid : &b->first);
    params.stateless_reset_token_present = 1;
    if (b->odcid.len > 0) {
        params.retry_scid_present = 1;
        params.retry_scid = cid_of(&b->first);
    }
    if (b->token_len > 0) {
        settings.token = b->token;
        settings.tokenlen = b->token_len;
        settings.token_type =
            b->retried ? NGTCP2_TOKEN_TYPE_RETRY : NGTCP2_TOKEN_TYPE_NEW_TOKEN;
    }
    if (!wire_name(wire, &ours, params.stateless_reset_token))
        goto fail;
    scid = cid_of(&ours);
    if (ngtcp2_conn_server_new(&q->conn, &client, &scid, &at, b->version,
                               &callbacks, &settings, &params, NULL, q) != 0 ||
        !tls_join(q))
        goto fail;
    return q;
fail:
    quic_free(q);
    return NULL;
}

/* Both ends of a connected socket. */
static bool
socket_path(int fd, struct quic_path *path)
{
    socklen_t near = sizeof path->local, far = sizeof path->remote;

    return getsockname(fd, &path->local.sa, &near) == 0 &&
           getpeername(fd, &path->remote.sa, &far) == 0;
}

/*
 * quic_connect - a client's connection; quic_write() begins the handshake.
 *
 * fd   a connected UDP socket; taken, on failure as well
 * tls  of secure_quic(); taken, on failure as well
 *
 * Returns NULL: out of memory.  Thread: the owner, or whoever gives it to him.
 */
struct quic *
quic_connect(int fd, gnutls_session_t tls, const struct quic_conf *conf,
             const struct quic_user *user)
{
    struct quic *q = quic_new(tls, user);
    ngtcp2_transport_params params;
    ngtcp2_settings settings;
    ngtcp2_cid dcid, scid;
    ngtcp2_path at;

    if (q == NULL) {
        close(fd);
        return NULL;
    }
    q->fd = fd;
    settings_init(&settings, conf);
    params_init(&params, conf);
    params.initial_max_streams_bidi = 0; /* RFC 9114 section 6.1 */
    dcid.datalen = 16;
    on_rand(dcid.data, dcid.datalen, NULL);
    scid.datalen = CID_LEN;
    on_rand(scid.data, scid.datalen, NULL);
    if (!socket_path(fd, &q->path))
        goto fail;
    at = path_of(&q->path);
    if (ngtcp2_conn_client_new(&q->conn, &dcid, &scid, &at, NGTCP2_PROTO_VER_V1,
                               &callbacks, &settings, &params, NULL, q) != 0 ||
        !tls_join(q))
        goto fail;
    return q;
fail:
    quic_free(q);
    return NULL;
}

/* NULL: nothing.  Nobody is told: quic_goodbye() does that. */
void
quic_free(struct quic *q)
{
    if (q == NULL)
        return;
    ngtcp2_conn_del(q->conn);
    if (q->tls != NULL)
        gnutls_deinit(q->tls);
    if (q->fd >= 0)
        close(q->fd);
    free(q->burst);
    free(q);
}

/* ---- ending -------------------------------------------------------------- */

/* It shall end with an error of the application, of which the peer is told;
 * the first reason counts. */
void
quic_end(struct quic *q, uint64_t code, const char *cause)
{
    if (q->cause != NULL || q->silent)
        return;
    q->cause = cause;
    ngtcp2_ccerr_set_application_error(&q->end, code, NULL, 0);
}

/* It is over, and there is nobody to be told. */
void
quic_hush(struct quic *q)
{
    q->silent = true;
}

/* The peer has ended it: how? */
static enum why
peer_ended(struct quic *q, struct fail *f)
{
    const ngtcp2_ccerr *e = ngtcp2_conn_get_ccerr(q->conn);
    enum side side = q->server ? SIDE_CLIENT : SIDE_ORIGIN;

    q->silent = true;
    if (e->type == NGTCP2_CCERR_TYPE_TRANSPORT && e->error_code >= 0x100 &&
        e->error_code < 0x200) /* RFC 9001 section 4.8 */
        return fail_alert(f, side, "QUIC handshake",
                          (int)(e->error_code & 0xff));
    if (e->error_code == 0 ||
        (e->type == NGTCP2_CCERR_TYPE_APPLICATION && e->error_code == 0x100))
        return WHY_EOF;
    return fail_note(f, side, WHY_CUT, "QUIC connection", (int)e->error_code,
                     code_text);
}

/* TLS has failed, in this handshake or for ever. */
static enum why
tls_failed(struct quic *q, struct fail *f)
{
    uint8_t alert =
        q->alert != 0 ? q->alert : ngtcp2_conn_get_tls_alert(q->conn);

    ngtcp2_ccerr_set_tls_alert(&q->end, alert, NULL, 0);
    q->cause = "QUIC handshake";
    if (f->why != WHY_NONE) /* the user knows better, and said so */
        return f->why;
    return fail_say(f, q->server ? SIDE_CLIENT : SIDE_ORIGIN, WHY_TLS,
                    "QUIC handshake", "we ended it: %s",
                    gnutls_alert_get_name(alert));
}

/* The library gave up, or was told to. */
static enum why
judge(struct quic *q, int rc, struct fail *f)
{
    enum side side = q->server ? SIDE_CLIENT : SIDE_ORIGIN;

    if (q->verified.why != WHY_NONE) {
        *f = q->verified;
        return f->why;
    }
    if (q->cause != NULL)
        return fail_note(f, side, WHY_PROTO, q->cause, (int)q->end.error_code,
                         code_text);
    switch (rc) {
    case NGTCP2_ERR_DRAINING:
        return peer_ended(q, f);
    case NGTCP2_ERR_IDLE_CLOSE:
        q->silent = true;
        return fail_own(f, side, WHY_IDLE, "wait for a datagram");
    case NGTCP2_ERR_HANDSHAKE_TIMEOUT:
        q->silent = true;
        return fail_own(f, side, WHY_LATE, "QUIC handshake");
    case NGTCP2_ERR_DROP_CONN:
    case NGTCP2_ERR_RETRY:
    case NGTCP2_ERR_CLOSING:
        q->silent = true;
        return fail_note(f, side, WHY_PROTO, "QUIC connection", rc,
                         library_text);
    case NGTCP2_ERR_CRYPTO:
        return tls_failed(q, f);
    case NGTCP2_ERR_NOMEM:
    case NGTCP2_ERR_CALLBACK_FAILURE:
        ngtcp2_ccerr_set_transport_error(&q->end, NGTCP2_INTERNAL_ERROR, NULL,
                                         0);
        q->cause = "out of memory";
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    default:
        ngtcp2_ccerr_set_liberr(&q->end, rc, NULL, 0);
        q->cause = "QUIC connection";
        return fail_note(f, side, WHY_PROTO, "QUIC connection", rc,
                         library_text);
    }
}

/* ---- datagrams out ------------------------------------------------------- */

static void
send_bytes(struct quic *q, const struct quic_path *path, const void *at,
           size_t len, size_t segment)
{
    q->bytes.out += len;
    if (q->wire != NULL)
        wire_send(q->wire, path, at, len, segment);
    else
        quic_send(q->fd, path, true, at, len, segment);
}

static void
burst_send(struct quic *q)
{
    if (q->burst_len > 0)
        send_bytes(q, &q->burst_path, q->burst, q->burst_len, q->segment);
    q->burst_len = q->n_segments = 0;
}

/* The path that the library wrote into a storage. */
static struct quic_path
path_from(const ngtcp2_path *p)
{
    struct quic_path path = {0};

    memcpy(&path.local, p->local.addr, p->local.addrlen);
    memcpy(&path.remote, p->remote.addr, p->remote.addrlen);
    return path;
}

/* One more packet of n bytes stands behind those gathered.  All of a burst are
 * of one size, but the last, which may be shorter: a longer one goes alone. */
static void
burst_add(struct quic *q, const struct quic_path *path, size_t n)
{
    if (q->burst_len > 0 &&
        (n > q->segment || memcmp(path, &q->burst_path, sizeof *path) != 0)) {
        size_t at = q->burst_len;

        burst_send(q);
        memmove(q->burst, q->burst + at, n);
    }
    if (q->burst_len == 0) {
        q->burst_path = *path;
        q->segment = n;
    }
    q->burst_len += n;
    q->n_segments++;
    if (n < q->segment || q->n_segments == BURST_SEGMENTS)
        burst_send(q);
}

/* As much of the waiting datagrams as this packet takes.  Returns the length
 * of the packet if it is complete, 0: nothing may be sent now, WRITE_MORE:
 * others may go on with it, or a code that ends the connection. */
static ngtcp2_ssize
write_grams(struct quic *q, ngtcp2_path *path, uint8_t *to, size_t max,
            ngtcp2_tstamp now)
{
    size_t fits = quic_gram_max(q);
    struct span gram;

    while (q->user.next_gram(q->user.arg, &gram)) {
        ngtcp2_vec v = {(uint8_t *)gram.at, gram.len};
        int accepted = 0;
        ngtcp2_ssize n;

        if (gram.len > fits) { /* it would block all others for ever */
            q->user.wrote_gram(q->user.arg, false);
            continue;
        }
        n = ngtcp2_conn_writev_datagram(q->conn, path, NULL, to, max, &accepted,
                                        NGTCP2_WRITE_DATAGRAM_FLAG_MORE, 0, &v,
                                        1, now);
        if (accepted)
            q->user.wrote_gram(q->user.arg, true);
        if (n != NGTCP2_ERR_WRITE_MORE)
            return n;
    }
    return NGTCP2_ERR_WRITE_MORE;
}

/* One packet with what there is to be said.  Returns as write_grams(). */
static ngtcp2_ssize
write_packet(struct quic *q, ngtcp2_path *path, uint8_t *to, size_t max,
             ngtcp2_tstamp now)
{
    ngtcp2_ssize n = write_grams(q, path, to, max, now), taken;

    while (n == NGTCP2_ERR_WRITE_MORE) {
        struct iovec iov[IOV_MAX_HERE];
        ngtcp2_vec vec[IOV_MAX_HERE];
        uint32_t flags = NGTCP2_WRITE_STREAM_FLAG_MORE;
        int64_t id = -1;
        bool fin = false;
        size_t total = 0;
        int count = 0;

        if (ngtcp2_conn_get_max_data_left(q->conn) > 0)
            count = q->user.next(q->user.arg, &id, &fin, iov, IOV_MAX_HERE);
        if (count < 0)
            return NGTCP2_ERR_CALLBACK_FAILURE;
        for (int i = 0; i < count; i++) {
            vec[i] = (ngtcp2_vec){iov[i].iov_base, iov[i].iov_len};
            total += iov[i].iov_len;
        }
        if (fin)
            flags |= NGTCP2_WRITE_STREAM_FLAG_FIN;
        n = ngtcp2_conn_writev_stream(q->conn, path, NULL, to, max, &taken,
                                      flags, id, vec, (size_t)count, now);
        if (taken >= 0 && id >= 0)
            q->user.wrote(q->user.arg, id, (size_t)taken,
                          fin && (size_t)taken == total);
        if (n == NGTCP2_ERR_STREAM_DATA_BLOCKED) {
            q->user.blocked(q->user.arg, id);
            n = NGTCP2_ERR_WRITE_MORE;
        } else if (n == NGTCP2_ERR_STREAM_SHUT_WR ||
                   n == NGTCP2_ERR_STREAM_NOT_FOUND) {
            q->user.unwanted(q->user.arg, id);
            n = NGTCP2_ERR_WRITE_MORE;
        }
    }
    return n;
}

/* Room for the packets of a burst. */
static bool
burst_room(struct quic *q)
{
    return q->burst != NULL || (q->burst = malloc(BURST + PAYLOAD_MAX)) != NULL;
}

/*
 * quic_write - send what there is to be sent and may be sent now.
 *
 * Returns WHY_NONE; else it is over: quic_goodbye().
 */
enum why
quic_write(struct quic *q, struct fail *f)
{
    size_t max, quantum, total = 0;
    ngtcp2_path_storage ps;
    ngtcp2_tstamp now = now_ns();
    ngtcp2_ssize n = 0;

    if (q->cause != NULL)
        return judge(q, NGTCP2_ERR_CALLBACK_FAILURE, f);
    if (!burst_room(q))
        return judge(q, NGTCP2_ERR_NOMEM, f);
    ngtcp2_path_storage_zero(&ps);
    max = ngtcp2_conn_get_max_tx_udp_payload_size(q->conn);
    quantum = ngtcp2_conn_get_send_quantum(q->conn);
    if (max > PAYLOAD_MAX)
        max = PAYLOAD_MAX;
    while (total < quantum) {
        struct quic_path path;

        n = write_packet(q, &ps.path, (uint8_t *)q->burst + q->burst_len, max,
                         now);
        if (n <= 0)
            break;
        path = path_from(&ps.path);
        burst_add(q, &path, (size_t)n);
        if (q->burst_len + max > BURST)
            burst_send(q);
        total += (size_t)n;
    }
    burst_send(q);
    if (n < 0)
        return judge(q, (int)n, f);
    if (total > 0)
        ngtcp2_conn_update_pkt_tx_time(q->conn, now);
    return WHY_NONE;
}

/* The peer is told that it ends, and with what; once, in one datagram. */
void
quic_goodbye(struct quic *q)
{
    uint8_t packet[PAYLOAD_MAX];
    ngtcp2_path_storage ps;
    struct quic_path path;
    ngtcp2_ssize n;

    if (q->silent)
        return;
    q->silent = true;
    ngtcp2_path_storage_zero(&ps);
    n = ngtcp2_conn_write_connection_close(q->conn, &ps.path, NULL, packet,
                                           sizeof packet, &q->end, now_ns());
    if (n <= 0)
        return;
    path = path_from(&ps.path);
    send_bytes(q, &path, packet, (size_t)n, (size_t)n);
}

/* ---- datagrams in, and time ---------------------------------------------- */

/*
 * quic_feed - a datagram has come.
 *
 * path  which way; a client's is its socket's, and NULL will do
 *
 * Returns WHY_NONE; WHY_EOF: the peer ended it in order; else it is over, too:
 * quic_goodbye() says so if there is anybody to be told.
 */
enum why
quic_feed(struct quic *q, const struct quic_path *path, const void *at,
          size_t len, struct fail *f)
{
    struct quic_path copy = path != NULL ? *path : q->path;
    ngtcp2_path way = path_of(&copy);
    int rc;

    q->bytes.in += len;
    if (q->cause != NULL)
        return judge(q, NGTCP2_ERR_CALLBACK_FAILURE, f);
    rc = ngtcp2_conn_read_pkt(q->conn, &way, NULL, at, len, now_ns());
    if (rc == 0 && q->cause == NULL)
        return WHY_NONE;
    return judge(q, rc, f);
}

/* When quic_expire() is due, on the clock of now_us(); INT64_MAX: never. */
int64_t
quic_until_us(const struct quic *q)
{
    ngtcp2_tstamp at = ngtcp2_conn_get_expiry(q->conn);

    return at == UINT64_MAX ? INT64_MAX : (int64_t)(at / 1000) + 1;
}

/* Lost packets, acknowledgements that are due, the idle clock.  Returns as
 * quic_feed(). */
enum why
quic_expire(struct quic *q, struct fail *f)
{
    ngtcp2_tstamp now = now_ns();
    int rc;

    if (now < ngtcp2_conn_get_expiry(q->conn))
        return WHY_NONE;
    rc = ngtcp2_conn_handle_expiry(q->conn, now);
    return rc == 0 ? WHY_NONE : judge(q, rc, f);
}

/* Nothing will be written for a while. */
void
quic_rest(struct quic *q)
{
    assert(q->burst_len == 0);
    free(q->burst);
    q->burst = NULL;
}

/* ---- streams ------------------------------------------------------------- */

/* False: the peer allows no further one yet, or there is no memory. */
bool
quic_open(struct quic *q, bool both_ways, int64_t *id)
{
    return (both_ways ? ngtcp2_conn_open_bidi_stream(q->conn, id, NULL)
                      : ngtcp2_conn_open_uni_stream(q->conn, id, NULL)) == 0;
}

/* No more of the peer's content is wanted (STOP_SENDING). */
void
quic_stop(struct quic *q, int64_t id, uint64_t code)
{
    (void)ngtcp2_conn_shutdown_stream_read(q->conn, 0, id, code);
}

/* Our content ends here, and is not complete (RESET_STREAM). */
void
quic_cut(struct quic *q, int64_t id, uint64_t code)
{
    (void)ngtcp2_conn_shutdown_stream_write(q->conn, 0, id, code);
}

/* len bytes were used: the peer may send as many more, on the stream and on
 * the connection; id < 0: the stream is no more. */
void
quic_credit(struct quic *q, int64_t id, size_t len)
{
    if (id >= 0)
        (void)ngtcp2_conn_extend_max_stream_offset(q->conn, id, len);
    ngtcp2_conn_extend_max_offset(q->conn, len);
}

void
quic_credit_streams(struct quic *q, size_t n)
{
    ngtcp2_conn_extend_max_streams_bidi(q->conn, n);
}

/* How many more streams, both ways, the peer lets us open now. */
size_t
quic_streams_left(const struct quic *q)
{
    return (size_t)ngtcp2_conn_get_streams_bidi_left(q->conn);
}

/* Send something after so long a silence, that the idle clock does not end
 * what is only quiet. */
void
quic_keep_alive(struct quic *q, int ms)
{
    ngtcp2_conn_set_keep_alive_timeout(q->conn, ms > 0 ? (ngtcp2_duration)ms *
                                                             NGTCP2_MILLISECONDS
                                                       : UINT64_MAX);
}

/* The largest DATAGRAM that fits into a packet and that the peer takes. */
size_t
quic_gram_max(const struct quic *q)
{
    const ngtcp2_transport_params *p =
        ngtcp2_conn_get_remote_transport_params(q->conn);
    size_t max, cost;

    if (p == NULL || p->max_datagram_frame_size == 0)
        return 0;
    max = ngtcp2_conn_get_path_max_tx_udp_payload_size(q->conn);
    cost = GRAM_COST + ngtcp2_conn_get_dcid(q->conn)->datalen;
    max = max > cost ? max - cost : 0;
    if (p->max_datagram_frame_size < max + 3)
        max =
            p->max_datagram_frame_size > 3 ? p->max_datagram_frame_size - 3 : 0;
    return max;
}

bool
quic_is_ready(const struct quic *q)
{
    return q->is_ready;
}

gnutls_session_t
quic_session(const struct quic *q)
{
    return q->tls;
}

struct quic_bytes
quic_bytes(const struct quic *q)
{
    return q->bytes;
}
