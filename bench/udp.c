/*
 * udp.c - datagrams through a proxy by connect-udp, and how many arrive.
 *
 *   udp -p PORT [options]
 *
 * -p  where the proxy listens, on 127.0.0.1
 * -e  how it is asked: h3 (datagrams of HTTP/3) or h1 (capsules on TCP)
 * -d  direction: up, down, or both at once
 * -b  bytes of a datagram (1200); -r datagrams a second each way (0: as many
 *     as go); -s ms (1000)
 *
 * The target is in here: a socket that counts what comes and sends what shall
 * come back.  Each datagram begins with its number, so that loss is known.
 *
 * Prints for each direction what was sent and what came a second, and the
 * loss.  Exit status 1 if nothing came.
 *
 * Owns     its sockets.
 * Threads  the client; the target's receiver and its sender.
 * Blocks   until -s is over and the last has come, QUIET_MS at most.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

#define MS 1000000LL /* in nanoseconds */
#define PRIORITY                                                          \
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM" \
    ":+CHACHA20-POLY1305:%DISABLE_TLS13_COMPAT_MODE"

enum {
    LOT = 60000, /* bytes given to the kernel at once */
    BUF = 65536,
    QUIET_MS = 200,    /* nothing came for so long: the rest is lost */
    PAYLOAD = 1452,    /* of our QUIC packets */
    SOCKET = 64 << 20, /* the target's buffer: it is not what is measured */
};

static struct {
    unsigned port;
    bool h1, up, down;
    size_t bytes;
    uint64_t rate;
    int64_t ns;
} opt = {.up = true, .bytes = 1200, .ns = 1000 * MS};

static int64_t began_at, ends_at;
static atomic_ullong up_sent, up_came, down_sent, down_came;
static atomic_llong came_at; /* ns: when the last one came, anywhere */

static void
die(const char *what)
{
    fprintf(stderr, "udp: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

/* How many of a direction may be on their way by now. */
static uint64_t
due(int64_t now)
{
    return opt.rate == 0
               ? UINT64_MAX
               : (uint64_t)((double)opt.rate * (double)(now - began_at) / 1e9);
}

/* ---- the target ---------------------------------------------------------- */

static int target_fd;
static struct sockaddr_in whom; /* to send to; set before `known` */
static atomic_bool known;

static void
set(int fd, int level, int name, int value)
{
    (void)setsockopt(fd, level, name, &value, sizeof value);
}

/* Datagrams in a lot that the kernel has put together. */
static size_t
count(struct msghdr *m, size_t len)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            int size;

            memcpy(&size, CMSG_DATA(c), sizeof size);
            return (len + (size_t)size - 1) / (size_t)size;
        }
    return 1;
}

static void *
target_receive(void *arg)
{
    static char buf[BUF];
    char control[64];

    (void)arg;
    for (;;) {
        struct sockaddr_in from;
        struct iovec iov = {buf, sizeof buf};
        struct msghdr m = {.msg_name = &from,
                           .msg_namelen = sizeof from,
                           .msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = control,
                           .msg_controllen = sizeof control};
        ssize_t n = recvmsg(target_fd, &m, 0);

        if (n < 0)
            continue;
        if (!atomic_load(&known)) {
            whom = from;
            atomic_store(&known, true);
            continue; /* the first one only makes us known */
        }
        atomic_fetch_add(&up_came, count(&m, (size_t)n));
        atomic_store(&came_at, now_ns());
    }
    return NULL;
}

/* n datagrams behind each other, cut by the kernel. */
static bool
send_lot(int fd, const struct sockaddr_in *to, const void *at, size_t len,
         size_t size)
{
    union {
        struct cmsghdr align;
        char at[CMSG_SPACE(sizeof(uint16_t))];
    } control = {.at = {0}};
    struct iovec iov = {(void *)at, len};
    struct msghdr m = {.msg_name = (void *)to,
                       .msg_namelen = to != NULL ? sizeof *to : 0,
                       .msg_iov = &iov,
                       .msg_iovlen = 1};
    uint16_t segment = (uint16_t)size;

    if (len > size) {
        struct cmsghdr *c = (struct cmsghdr *)control.at;

        c->cmsg_level = IPPROTO_UDP;
        c->cmsg_type = UDP_SEGMENT;
        c->cmsg_len = CMSG_LEN(sizeof segment);
        memcpy(CMSG_DATA(c), &segment, sizeof segment);
        m.msg_control = control.at;
        m.msg_controllen = sizeof control.at;
    }
    while (sendmsg(fd, &m, 0) < 0)
        if (errno != EINTR)
            return false;
    return true;
}

static void *
target_send(void *arg)
{
    static char buf[LOT];
    uint64_t n = 0, most = LOT / opt.bytes < 32 ? LOT / opt.bytes : 32;
    struct timespec nap = {0, 200000};

    (void)arg;
    for (int64_t now; (now = now_ns()) < ends_at;) {
        uint64_t may = due(now) - n;

        if (!atomic_load(&known) || due(now) < n + 1) {
            nanosleep(&nap, NULL);
            continue;
        }
        may = may < most ? may : most;
        if (send_lot(target_fd, &whom, buf, may * opt.bytes, opt.bytes))
            n += may;
        atomic_store(&down_sent, n);
    }
    return NULL;
}

static unsigned
target_start(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    pthread_t thread;

    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    target_fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (target_fd < 0 || bind(target_fd, (void *)&at, len) != 0 ||
        getsockname(target_fd, (void *)&at, &len) != 0)
        die("target");
    set(target_fd, SOL_SOCKET, SO_RCVBUFFORCE, SOCKET);
    set(target_fd, IPPROTO_UDP, UDP_GRO, 1);
    if (pthread_create(&thread, NULL, target_receive, NULL) != 0)
        die("thread");
    return ntohs(at.sin_port);
}

static void
begin(void)
{
    pthread_t thread;

    began_at = now_ns();
    ends_at = began_at + opt.ns;
    atomic_store(&came_at, began_at);
    if (opt.down && pthread_create(&thread, NULL, target_send, NULL) != 0)
        die("thread");
}

/* Has all come that will come? */
static bool
is_over(void)
{
    int64_t now = now_ns();

    return now >= ends_at && now - atomic_load(&came_at) > QUIET_MS * MS;
}

/* ---- a client of HTTP/3 ---------------------------------------------------
 */

static struct {
    int fd;
    ngtcp2_conn *conn;
    ngtcp2_crypto_conn_ref ref;
    gnutls_session_t tls;
    struct sockaddr_in local, remote;
    bool up, open;
    int64_t control, request;
    uint8_t head[512], settings[16];
    size_t head_len, head_sent, settings_len, settings_sent;
    uint8_t lot[LOT + PAYLOAD];
    size_t lot_len, segment;
    uint64_t n_up;
    bool blocked;
} c = {.control = -1, .request = -1};

static ngtcp2_conn *
conn_of(ngtcp2_crypto_conn_ref *ref)
{
    (void)ref;
    return c.conn;
}

static void
on_rand(uint8_t *at, size_t n, const ngtcp2_rand_ctx *ctx)
{
    (void)ctx;
    if (getrandom(at, n, 0) != (ssize_t)n)
        die("getrandom");
}

static int
on_new_cid(ngtcp2_conn *conn, ngtcp2_cid *cid, uint8_t *token, size_t n,
           void *arg)
{
    (void)conn, (void)arg;
    on_rand(cid->data, n, NULL);
    on_rand(token, NGTCP2_STATELESS_RESET_TOKENLEN, NULL);
    cid->datalen = n;
    return 0;
}

/* A header block as short as it may be (RFC 9204): literals. */
static void
put_field(const char *name, const char *value)
{
    size_t n = strlen(name), v = strlen(value);

    if (n < 7) {
        c.head[c.head_len++] = (uint8_t)(0x20 | n);
    } else {
        c.head[c.head_len++] = 0x27;
        c.head[c.head_len++] = (uint8_t)(n - 7);
    }
    memcpy(c.head + c.head_len, name, n);
    c.head_len += n;
    c.head[c.head_len++] = (uint8_t)v;
    memcpy(c.head + c.head_len, value, v);
    c.head_len += v;
}

static void
make_request(unsigned target)
{
    static const uint8_t settings[] = {0, 4, 4, 0x33, 1, 8, 1};
    char path[64];
    size_t n;

    memcpy(c.settings, settings, sizeof settings);
    c.settings_len = sizeof settings;
    snprintf(path, sizeof path, "/.well-known/masque/udp/127.0.0.1/%u/",
             target);
    c.head_len = 5; /* HEADERS, its length in two bytes, no dynamic table */
    put_field(":method", "CONNECT");
    put_field(":protocol", "connect-udp");
    put_field(":scheme", "https");
    put_field(":authority", "localhost");
    put_field(":path", path);
    n = c.head_len - 3;
    c.head[0] = 1;
    c.head[1] = (uint8_t)(0x40 | n >> 8);
    c.head[2] = (uint8_t)n;
}

static int
on_stream_data(ngtcp2_conn *conn, uint32_t flags, int64_t id, uint64_t offset,
               const uint8_t *at, size_t len, void *arg, void *stream)
{
    (void)flags, (void)offset, (void)arg, (void)stream;
    ngtcp2_conn_extend_max_stream_offset(conn, id, len);
    ngtcp2_conn_extend_max_offset(conn, len);
    /* 200 is 25 in the static table: what else comes is no tunnel. */
    if (id == c.request && !c.open && len > 4 && at[0] == 1) {
        if (memchr(at, 0xd9, len < 32 ? len : 32) == NULL) {
            fprintf(stderr, "udp: refused\n");
            exit(1);
        }
        c.open = true;
    }
    return 0;
}

static int
on_datagram(ngtcp2_conn *conn, uint32_t flags, const uint8_t *at, size_t len,
            void *arg)
{
    (void)conn, (void)flags, (void)at, (void)len, (void)arg;
    atomic_fetch_add_explicit(&down_came, 1, memory_order_relaxed);
    atomic_store_explicit(&came_at, now_ns(), memory_order_relaxed);
    return 0;
}

static int
on_up(ngtcp2_conn *conn, void *arg)
{
    (void)arg;
    c.up = true;
    return ngtcp2_conn_open_uni_stream(conn, &c.control, NULL) != 0 ||
                   ngtcp2_conn_open_bidi_stream(conn, &c.request, NULL) != 0
               ? NGTCP2_ERR_CALLBACK_FAILURE
               : 0;
}

static void
client_open(void)
{
    static const ngtcp2_callbacks callbacks = {
        .client_initial = ngtcp2_crypto_client_initial_cb,
        .recv_crypto_data = ngtcp2_crypto_recv_crypto_data_cb,
        .encrypt = ngtcp2_crypto_encrypt_cb,
        .decrypt = ngtcp2_crypto_decrypt_cb,
        .hp_mask = ngtcp2_crypto_hp_mask_cb,
        .recv_retry = ngtcp2_crypto_recv_retry_cb,
        .update_key = ngtcp2_crypto_update_key_cb,
        .delete_crypto_aead_ctx = ngtcp2_crypto_delete_crypto_aead_ctx_cb,
        .delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb,
        .get_path_challenge_data = ngtcp2_crypto_get_path_challenge_data_cb,
        .version_negotiation = ngtcp2_crypto_version_negotiation_cb,
        .rand = on_rand,
        .get_new_connection_id = on_new_cid,
        .recv_stream_data = on_stream_data,
        .recv_datagram = on_datagram,
        .handshake_completed = on_up,
    };
    gnutls_certificate_credentials_t cred;
    gnutls_datum_t alpn = {(void *)"h3", 2};
    ngtcp2_cid dcid = {.datalen = 18}, scid = {.datalen = 8};
    ngtcp2_path path = {{(void *)&c.local, sizeof c.local},
                        {(void *)&c.remote, sizeof c.remote},
                        NULL};
    ngtcp2_settings s;
    ngtcp2_transport_params p;
    socklen_t len = sizeof c.local;

    c.remote = (struct sockaddr_in){.sin_family = AF_INET,
                                    .sin_port = htons((uint16_t)opt.port)};
    c.remote.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c.fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (c.fd < 0 || connect(c.fd, (void *)&c.remote, sizeof c.remote) != 0 ||
        getsockname(c.fd, (void *)&c.local, &len) != 0)
        die("connect");
    set(c.fd, SOL_SOCKET, SO_RCVBUFFORCE, SOCKET);
    set(c.fd, SOL_SOCKET, SO_SNDBUFFORCE, SOCKET);
    set(c.fd, IPPROTO_UDP, UDP_GRO, 1);
    ngtcp2_settings_default(&s);
    s.initial_ts = (ngtcp2_tstamp)now_ns();
    s.initial_rtt = 10 * NGTCP2_MILLISECONDS;
    s.max_tx_udp_payload_size = PAYLOAD;
    s.no_tx_udp_payload_size_shaping = 1;
    ngtcp2_transport_params_default(&p);
    p.initial_max_stream_data_bidi_local = 1 << 20;
    p.initial_max_stream_data_uni = 1 << 20;
    p.initial_max_data = 1 << 24;
    p.initial_max_streams_uni = 8;
    p.max_idle_timeout = 30 * NGTCP2_SECONDS;
    p.max_datagram_frame_size = 65535;
    on_rand(dcid.data, dcid.datalen, NULL);
    on_rand(scid.data, scid.datalen, NULL);
    c.ref.get_conn = conn_of;
    if (ngtcp2_conn_client_new(&c.conn, &dcid, &scid, &path,
                               NGTCP2_PROTO_VER_V1, &callbacks, &s, &p, NULL,
                               NULL) != 0 ||
        gnutls_init(&c.tls, GNUTLS_CLIENT | GNUTLS_NO_END_OF_EARLY_DATA) != 0 ||
        gnutls_priority_set_direct(c.tls, PRIORITY, NULL) != 0 ||
        ngtcp2_crypto_gnutls_configure_client_session(c.tls) != 0)
        die("QUIC");
    gnutls_session_set_ptr(c.tls, &c.ref);
    gnutls_certificate_allocate_credentials(&cred);
    gnutls_credentials_set(c.tls, GNUTLS_CRD_CERTIFICATE, cred);
    gnutls_alpn_set_protocols(c.tls, &alpn, 1, GNUTLS_ALPN_MANDATORY);
    gnutls_server_name_set(c.tls, GNUTLS_NAME_DNS, "localhost", 9);
    ngtcp2_conn_set_tls_native_handle(c.conn, c.tls);
}

static void
lot_flush(void)
{
    if (c.lot_len > 0)
        (void)send_lot(c.fd, NULL, c.lot, c.lot_len, c.segment);
    c.lot_len = c.segment = 0;
}

/* A packet was written behind the others; a shorter one ends the lot. */
static void
lot_added(size_t n)
{
    if (c.lot_len > 0 && n > c.segment) { /* a probe: goes alone */
        size_t before = c.lot_len;

        if (before > 0)
            (void)send_lot(c.fd, NULL, c.lot, before, c.segment);
        (void)send_lot(c.fd, NULL, c.lot + before, n, n);
        c.lot_len = c.segment = 0;
        return;
    }
    if (c.lot_len == 0)
        c.segment = n;
    c.lot_len += n;
    if (n < c.segment || c.lot_len + c.segment > LOT ||
        c.lot_len / c.segment >= 48)
        lot_flush();
}

/* One packet; 0: nothing more to say now. */
static ngtcp2_ssize
write_packet(ngtcp2_tstamp now)
{
    static uint8_t gram[BUF];
    uint8_t *to = c.lot + c.lot_len;
    ngtcp2_ssize n = 0, taken;
    ngtcp2_pkt_info pi;

    if (began_at != 0 && opt.up && (int64_t)now < ends_at &&
        c.n_up < due((int64_t)now)) {
        ngtcp2_vec v = {gram, 2 + opt.bytes}; /* stream 0, context 0 */
        int accepted = 0;

        memcpy(gram + 2, &c.n_up, sizeof c.n_up);
        n = ngtcp2_conn_writev_datagram(c.conn, NULL, &pi, to, PAYLOAD,
                                        &accepted, 0, c.n_up, &v, 1, now);
        c.n_up += accepted != 0;
        return n;
    }
    if (c.control >= 0 && c.settings_sent < c.settings_len) {
        n = ngtcp2_conn_write_stream(c.conn, NULL, &pi, to, PAYLOAD, &taken, 0,
                                     c.control, c.settings + c.settings_sent,
                                     c.settings_len - c.settings_sent, now);
        c.settings_sent += taken > 0 ? (size_t)taken : 0;
        return n;
    }
    if (c.request >= 0 && c.head_sent < c.head_len) {
        n = ngtcp2_conn_write_stream(c.conn, NULL, &pi, to, PAYLOAD, &taken, 0,
                                     c.request, c.head + c.head_sent,
                                     c.head_len - c.head_sent, now);
        c.head_sent += taken > 0 ? (size_t)taken : 0;
        return n;
    }
    return ngtcp2_conn_write_pkt(c.conn, NULL, &pi, to, PAYLOAD, now);
}

static void
client_write(void)
{
    ngtcp2_tstamp now = (ngtcp2_tstamp)now_ns();
    ngtcp2_ssize n = 0;

    for (int i = 0; i < 256 && (n = write_packet(now)) > 0; i++)
        lot_added((size_t)n);
    if (n < 0) {
        fprintf(stderr, "udp: %s\n", ngtcp2_strerror((int)n));
        exit(1);
    }
    c.blocked = n == 0;
    lot_flush();
    ngtcp2_conn_update_pkt_tx_time(c.conn, now);
    atomic_store(&up_sent, c.n_up);
}

static void
client_read(void)
{
    static uint8_t buf[BUF];
    ngtcp2_path path = {{(void *)&c.local, sizeof c.local},
                        {(void *)&c.remote, sizeof c.remote},
                        NULL};

    for (int i = 0; i < 16; i++) {
        char control[64];
        struct iovec iov = {buf, sizeof buf};
        struct msghdr m = {.msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = control,
                           .msg_controllen = sizeof control};
        ssize_t n = recvmsg(c.fd, &m, 0);
        size_t lots, size;

        if (n <= 0)
            return;
        lots = count(&m, (size_t)n);
        size = lots == 1 ? (size_t)n : 0;
        for (struct cmsghdr *k = CMSG_FIRSTHDR(&m); k != NULL && size == 0;
             k = CMSG_NXTHDR(&m, k))
            if (k->cmsg_type == UDP_GRO)
                size = (size_t) * (int *)(void *)CMSG_DATA(k);
        for (size_t at = 0; at < (size_t)n; at += size) {
            size_t left = (size_t)n - at;
            int rc = ngtcp2_conn_read_pkt(c.conn, &path, NULL, buf + at,
                                          left < size ? left : size,
                                          (ngtcp2_tstamp)now_ns());

            if (rc != 0) {
                fprintf(stderr, "udp: %s\n", ngtcp2_strerror(rc));
                exit(1);
            }
        }
    }
}

static void
client_close(void)
{
    ngtcp2_ccerr err;
    ngtcp2_ssize n;

    ngtcp2_ccerr_default(&err);
    ngtcp2_ccerr_set_application_error(&err, 0x100, NULL, 0);
    n = ngtcp2_conn_write_connection_close(c.conn, NULL, NULL, c.lot, PAYLOAD,
                                           &err, (ngtcp2_tstamp)now_ns());
    if (n > 0)
        (void)send_lot(c.fd, NULL, c.lot, (size_t)n, (size_t)n);
}

static void
say_hello(void)
{
    uint8_t hello[3] = {0, 0, 'h'};
    ngtcp2_vec v = {hello, 3};
    ngtcp2_ssize n =
        ngtcp2_conn_writev_datagram(c.conn, NULL, NULL, c.lot, PAYLOAD, NULL, 0,
                                    0, &v, 1, (ngtcp2_tstamp)now_ns());

    if (n > 0)
        lot_added((size_t)n);
    lot_flush();
}

static void
run_h3(unsigned target)
{
    bool begun = false;

    client_open();
    make_request(target);
    for (;;) {
        struct pollfd p = {.fd = c.fd, .events = POLLIN};
        int64_t left;
        struct timespec wait;

        client_write();
        if (c.open && !begun) { /* until the target knows us */
            say_hello();
            if ((begun = atomic_load(&known)))
                begin();
        }
        if (begun && is_over()) {
            client_close();
            return;
        }
        left = (int64_t)ngtcp2_conn_get_expiry(c.conn) - now_ns();
        if (left > 1 * MS)
            left = 1 * MS;
        if (left < 0 || (!c.blocked && opt.rate == 0))
            left = 0;
        wait = (struct timespec){0, left};
        if (ppoll(&p, 1, &wait, NULL) > 0)
            client_read();
        if ((int64_t)ngtcp2_conn_get_expiry(c.conn) <= now_ns() &&
            ngtcp2_conn_handle_expiry(c.conn, (ngtcp2_tstamp)now_ns()) != 0) {
            fprintf(stderr, "udp: QUIC timed out\n");
            exit(1);
        }
    }
}

/* ---- a client of HTTP/1 ---------------------------------------------------
 */

static int h1_fd;

static void
write_all(const char *at, size_t len)
{
    while (len > 0) {
        ssize_t n = send(h1_fd, at, len, MSG_NOSIGNAL);

        if (n <= 0)
            die("send");
        at += n;
        len -= (size_t)n;
    }
}

/* Capsules of one size, so their number is known from the bytes. */
static void *
h1_receive(void *arg)
{
    static char buf[1 << 18];
    size_t whole = opt.bytes + 4, have = 0;
    ssize_t n;

    (void)arg;
    while ((n = recv(h1_fd, buf, sizeof buf, 0)) > 0) {
        have += (size_t)n;
        atomic_fetch_add(&down_came, have / whole);
        have %= whole;
        atomic_store(&came_at, now_ns());
    }
    return NULL;
}

static void
run_h1(unsigned target)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)opt.port)};
    char head[1024];
    size_t whole = opt.bytes + 4, n = 0, most = LOT / whole;
    char *lot = calloc(most, whole);
    struct timespec nap = {0, 200000};
    uint64_t sent = 0;
    pthread_t thread;
    int len = snprintf(head, sizeof head,
                       "GET /.well-known/masque/udp/127.0.0.1/%u/ HTTP/1.1\r\n"
                       "Host: 127.0.0.1:%u\r\nConnection: Upgrade\r\n"
                       "Upgrade: connect-udp\r\n\r\n%c%c%c%c",
                       target, opt.port, 0, 2, 0, 'h');

    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    h1_fd = socket(AF_INET, SOCK_STREAM, 0);
    if (lot == NULL || connect(h1_fd, (void *)&at, sizeof at) != 0)
        die("connect");
    write_all(head, (size_t)len);
    while (n < 4 || memcmp(head + n - 4, "\r\n\r\n", 4) != 0)
        if (n == sizeof head || recv(h1_fd, head + n++, 1, 0) != 1)
            die("answer");
    if (strncmp(head + 9, "101", 3) != 0) {
        fprintf(stderr, "udp: %.12s\n", head);
        exit(1);
    }
    for (size_t i = 0; i < most; i++) {
        lot[i * whole + 1] = (char)(0x40 | (opt.bytes + 1) >> 8);
        lot[i * whole + 2] = (char)(opt.bytes + 1);
    }
    begin();
    if (pthread_create(&thread, NULL, h1_receive, NULL) != 0)
        die("thread");
    while (!is_over()) {
        int64_t now = now_ns();
        uint64_t may = due(now) - sent;

        if (!opt.up || now >= ends_at || due(now) < sent + 1) {
            nanosleep(&nap, NULL);
            continue;
        }
        may = may < most ? may : most;
        write_all(lot, may * whole);
        sent += may;
        atomic_store(&up_sent, sent);
    }
    free(lot);
}

/* ---- the whole ------------------------------------------------------------
 */

static void
report(const char *what, uint64_t sent, uint64_t came)
{
    double s = (double)opt.ns / 1e9;

    printf("%s sent=%.0f/s came=%.0f/s MB/s=%.0f lost=%.2f%%\n", what,
           (double)sent / s, (double)came / s,
           (double)came * (double)opt.bytes / s / 1e6,
           sent > came ? 100.0 * (double)(sent - came) / (double)sent : 0.0);
}

int
main(int argc, char **argv)
{
    unsigned target;
    int o;

    while ((o = getopt(argc, argv, "p:e:d:b:r:s:")) != -1)
        switch (o) {
        case 'p':
            opt.port = (unsigned)atoi(optarg);
            break;
        case 'e':
            opt.h1 = strcmp(optarg, "h1") == 0;
            break;
        case 'd':
            opt.up = strcmp(optarg, "down") != 0;
            opt.down = strcmp(optarg, "up") != 0;
            break;
        case 'b':
            opt.bytes = (size_t)atoi(optarg);
            break;
        case 'r':
            opt.rate = strtoull(optarg, NULL, 10);
            break;
        case 's':
            opt.ns = atoi(optarg) * MS;
            break;
        default:
            return 1;
        }
    if (opt.port == 0 || opt.bytes < 64 || opt.bytes > 16000) {
        fprintf(stderr, "udp: see the head of udp.c\n");
        return 1;
    }
    target = target_start();
    if (opt.h1)
        run_h1(target);
    else
        run_h3(target);
    if (opt.up)
        report("up", atomic_load(&up_sent), atomic_load(&up_came));
    if (opt.down)
        report("down", atomic_load(&down_sent), atomic_load(&down_came));
    return (opt.up && atomic_load(&up_came) == 0) ||
           (opt.down && atomic_load(&down_came) == 0);
}
