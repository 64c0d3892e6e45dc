/*
 * proxy.h - the table of contents of weir.
 *
 * Shared types first, then the public functions of every room in reading
 * order.  A struct that only one room looks into is merely named here.  A
 * public function's full comment stands above its body; here is one line.
 *
 * The way of a request: proxy.c starts listen.c, whose accept thread hands a
 * readable connection to a worker of pool.c; conn.c runs its states; detect.c
 * finds out what it speaks and handshake.c ends its TLS; h1.c reads the head;
 * exchange.c finds the way with upstream.c and carries head, body and answer;
 * log.c writes the line.
 *
 * HTTP/2 and HTTP/3 have a session in the place of h1.c: h2.c, or quicport.c,
 * demux.c, quic.c and h3.c.  Each request is a stream of it (stream.c), which
 * serve.c brings to the same exchange.c.  doc/tour.md goes these ways on foot.
 */
#ifndef PROXY_H
#define PROXY_H

#include <netinet/in.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include <gnutls/gnutls.h>

#define WEIR_VERSION "0.1"
#define WEIR_HOST "weir.invalid" /* the magic host that is always ourselves */

enum {
    HOST_MAX = 255,       /* a DNS name in text, RFC 1035 section 2.3.4 */
    ADDR_MAX = 64,        /* "[v6 address%scope]:port" */
    END_BUF = 16384,      /* an end's read buffer at first */
    END_BUF_BULK = 65536, /* and once a body fills it */
    TUNNEL_BUF = 65536,   /* a tunnel direction that copies bulk */
};

/* ---- what can stop us ---------------------------------------------------- */

/* name, status if the client did it, if the upstream did (0: none),
 * Proxy-Status error (RFC 9209 section 2.3) if the upstream did, log text */
#define WHY_TABLE(W)                                                          \
    W(NONE, 0, 0, NULL, "went through")                                       \
    W(MORE, 0, 0, NULL, "needs more bytes")                                   \
    W(EOF, 400, 502, "connection_terminated", "peer finished")                \
    W(CUT, 400, 502, "http_response_incomplete", "message cut short")         \
    W(IDLE, 408, 504, "connection_read_timeout", "quiet for too long")        \
    W(LATE, 408, 504, "http_response_timeout", "deadline passed")             \
    W(PROTO, 400, 502, "http_protocol_error", "peer broke the protocol")      \
    W(LIMIT, 431, 502, "http_response_header_section_size",                   \
      "over one of our ceilings")                                             \
    W(URI, 414, 502, "http_protocol_error", "target too long")                \
    W(UNKNOWN, 501, 502, "http_response_transfer_coding",                     \
      "coding or method unknown to us")                                       \
    W(VERSION, 505, 502, "http_protocol_error", "HTTP version unknown to us") \
    W(TLS, 0, 502, "tls_protocol_error", "TLS failed")                        \
    W(ALERT, 0, 502, "tls_alert_received", "peer sent a TLS alert")           \
    W(CERT, 0, 502, "tls_certificate_error", "certificate not acceptable")    \
    W(DNS, 0, 502, "dns_error", "name not resolved")                          \
    W(DNS_LATE, 0, 504, "dns_timeout", "name not resolved in time")           \
    W(REFUSED, 0, 502, "connection_refused", "connection refused")            \
    W(UNREACHABLE, 0, 502, "destination_ip_unroutable", "no way to the host") \
    W(CONNECT_LATE, 0, 504, "connection_timeout", "not connected in time")    \
    W(SYS, 0, 502, "connection_terminated", "system call failed")             \
    W(BUSY, 503, 503, "connection_limit_reached", "no worker free in time")   \
    W(UNPROCESSED, 503, 502, "connection_terminated",                         \
      "peer did not begin with it")                                           \
    W(POLICY, 403, 403, "http_request_denied", "not allowed")                 \
    W(LOOP, 403, 403, "proxy_loop_detected", "request came back to us")       \
    W(LOGIN, 407, 407, "http_request_denied", "user and password wanted")     \
    W(PARENT_LOGIN, 0, 502, "proxy_configuration_error",                      \
      "parent proxy wants another user and password")                         \
    W(PARENT_NO, 0, 502, "destination_unavailable", "parent proxy refused")   \
    W(PARENT_BUSY, 0, 503, "destination_unavailable",                         \
      "parent proxy cannot serve now")                                        \
    W(PARENT_LATE, 0, 504, "connection_timeout",                              \
      "parent proxy was not answered in time")                                \
    W(OVER, 0, 0, NULL, "nobody waits for it any more")                       \
    W(DRAIN, 503, 503, "proxy_internal_error", "weir is shutting down")
#define W(name, client, upstream, error, text) WHY_##name,
enum why { WHY_TABLE(W) WHY_COUNT };
#undef W

enum side { SIDE_WEIR, SIDE_CLIENT, SIDE_ORIGIN };

struct fail { /* the first failure; later ones are its consequences */
    enum why why;
    enum side side;           /* who did it */
    const char *op;           /* literal: what was being done */
    int code;                 /* errno, GnuTLS, ...; 0 = ours alone */
    const char *(*text)(int); /* sys_text, gnutls_strerror, cert_text, ... */
    char detail[128];         /* further words, such as a rule; "": none */
    int received;             /* status that a parent answered; 0: none */
    bool challenged;          /* detail is its challenge, for the client */
};

/* ---- text ---------------------------------------------------------------- */

struct span { /* text in somebody's buffer: no NUL, dead when the buffer is */
    const char *at;
    size_t len;
};

struct arena; /* growing memory whose pieces never move (http.c) */

/* ---- settings ------------------------------------------------------------ */

struct match; /* a list of host globs, suffixes, CIDR blocks, ports (match.c) */

struct listener_conf {
    char text[ADDR_MAX]; /* as written */
    struct sockaddr_storage addr;
    socklen_t len;
};

struct user_conf { /* [proxy] users = name:password */
    char name[HOST_MAX + 1], password[HOST_MAX + 1];
};

struct resolve_conf { /* [resolve] name = address[:port] */
    char name[HOST_MAX + 1];
    char host[HOST_MAX + 1]; /* an address in text, no brackets */
    uint16_t port;           /* 0: keep the target's */
};

enum { WAYS_MAX = 16 }; /* tried for one target */
#define PARENT_ALLOWED                                                     \
    "allowed: http://, https:// or socks5://[user:password@]host[:port], " \
    "direct, env"

enum parent_kind { PARENT_DIRECT, PARENT_ENV, PARENT_HTTP, PARENT_SOCKS };

struct parent { /* a proxy that leads on; referred to by whoever uses it */
    atomic_int n_refs;
    enum parent_kind kind;
    bool tls; /* https:// */
    bool from_env;
    char host[HOST_MAX + 1]; /* as in struct origin */
    uint16_t port;
    char user[HOST_MAX + 1], password[HOST_MAX + 1]; /* user "": none */
    char *basic;              /* Proxy-Authorization of it; NULL: none */
    char text[HOST_MAX + 24]; /* scheme://host:port, for people */
    /* any thread */
    atomic_bool ourselves;  /* an environment that leads back to us */
    atomic_uint alpn;       /* what it last chose; 0: not known */
    atomic_int n_asking;    /* SOCKS: who wait for its answer */
    atomic_uint n_answers;  /* and how many of them have got one */
    atomic_int n_failed;    /* in a row */
    atomic_llong out_until; /* ms: left out so long */
};

struct ways { /* parents in the order to be tried */
    struct parent **at;
    size_t n;
};

struct env_ways {                /* what the environment says */
    struct parent *http, *https; /* NULL: direct */
    struct match *no_proxy;
};

struct parent_rule { /* [parent NAME] */
    char name[HOST_MAX + 1];
    struct ways ways;
    struct match *hosts;
};

enum level { LEVEL_ERR, LEVEL_WARN, LEVEL_INFO, LEVEL_DEBUG };

/* One proxy.ini, read; immutable while anybody holds a reference.  Spans of
 * time keep the unit of their key in the name. */
struct config {
    atomic_int n_refs;
    char *file;      /* where it came from; NULL: defaults alone */
    uint64_t serial; /* another for each that was read */

    /* [proxy] */
    struct listener_conf *listen;
    size_t n_listen;
    char **names; /* further names and addresses that are weir itself */
    size_t n_names;
    struct user_conf *users; /* none: nobody is asked who he is */
    size_t n_users;
    char via[64]; /* pseudonym in Via; empty: made at start */
    int workers, exchanges, queue, stack_kib;
    int idle_s, head_s, queue_s, grace_s, linger_ms;
    int head_bytes, fields, target_bytes;

    /* [access]; NULL and empty lists name nobody */
    struct match *allow, *deny;               /* clients */
    struct match *target_allow, *target_deny; /* where to */
    int connections;                          /* of one client address */

    /* [upstream] */
    int connect_s, response_s, dns_s;
    bool breaker;
    int reuse_per_origin, reuse_total, reuse_s;
    char *upstream_ca;      /* PEM file on top of the system's; NULL: none */
    struct match *insecure; /* hosts whose certificates are not verified */
    struct ways ways; /* out, unless a rule says otherwise; none: direct */
    struct match *no_proxy; /* hosts that are always reached directly */
    char *parent_ca;        /* PEM file for https:// parents; NULL: none */
    bool forward_proxy_auth;
    struct env_ways env;
    struct parent_rule *rules; /* [parent NAME], in their order */
    size_t n_rules;
    struct match *h2c;         /* plain hosts that are spoken to in HTTP/2 */
    struct match *http3_hosts; /* hosts that are tried in HTTP/3 */
    bool http3_auto; /* and all that say by Alt-Svc that they speak it */

    /* [http2] */
    int streams, streams_total, window_kib, session_kib, stall_s;
    int resets, settings, pings, empty_frames, priorities, updates;

    /* [http3] */
    bool http3; /* [proxy] http3 */
    int quic_connections, quic_half_open, quic_idle_s;
    enum retry_mode { RETRY_AUTO, RETRY_ALWAYS, RETRY_NEVER } retry;

    /* [tunnel] */
    int stream_idle_s, half_closed_s;
    int udp_associations, udp_tunnels, udp_idle_s;

    /* [intercept] */
    bool intercept;
    enum alpn_mode { ALPN_MIRROR, ALPN_ALWAYS_H2, ALPN_NEVER_H2 } alpn;
    bool alt_svc_keep; /* Alt-Svc of intercepted origins goes down, too */
    struct match *only, *except; /* empty only: everything */
    char *dir;                   /* the CA's home; NULL: ~/.weir */
    int leaf_days, leaf_cache, sniff_ms;

    /* [resolve] */
    struct resolve_conf *resolve;
    size_t n_resolve;

    /* [log] */
    enum level level;
    bool json;
    char *log_file; /* NULL: standard error */
};

/* ---- one side of a byte pipe --------------------------------------------- */

struct tls; /* a TLS layer over a socket, or over another TLS layer (end.c) */

/* Asked about once a second while an end waits; true: stop waiting. */
struct watch {
    bool (*over)(void *arg);
    void *arg;
};

struct peers { /* what two ends that are each other's peer know (end.c) */
    atomic_int n_refs;
    atomic_bool cut[2]; /* this one has been cut, not closed */
};

struct end {
    /* set by end_init() and end_handshake() */
    int fd; /* -1: none */
    enum side side;
    struct peers *peers; /* its peer is an end of ours; NULL: it is not */
    int which;           /* of the two */
    struct tls *tls;     /* the topmost layer; NULL: plain socket */
    /* set by whoever uses the end, between calls */
    int idle_ms;               /* longest quiet within one read or write */
    int64_t deadline;          /* point in ms at which reads fail; 0: none */
    const struct watch *watch; /* NULL: nobody */
    /* the reader's alone: bytes read and not yet consumed */
    char *buf;
    size_t start, len, cap;
    bool filled;  /* by the last read, from end to end */
    int rcv_ms;   /* what SO_RCVTIMEO is now */
    bool no_wait; /* set by its user: reads answer WHY_MORE, not wait */
    bool drained; /* by the last such read: there was less than asked for */
    uint64_t n_in;
    /* the writer's alone */
    int snd_ms; /* what SO_SNDTIMEO is now */
    uint64_t n_out;
};

/* ---- HTTP, whatever the version ------------------------------------------ */

enum version { HTTP_10, HTTP_11, HTTP_2, HTTP_3 };

/* Those whose semantics we act on. */
enum method {
    METHOD_OTHER,
    METHOD_GET,
    METHOD_HEAD,
    METHOD_POST,
    METHOD_PUT,
    METHOD_DELETE,
    METHOD_CONNECT,
    METHOD_OPTIONS,
    METHOD_TRACE,
    METHOD_PATCH,
};

enum body {
    BODY_NONE,   /* there is none */
    BODY_LENGTH, /* head.length bytes */
    BODY_STREAM, /* until its end: chunked, END_STREAM, or close */
    BODY_RAW,    /* what follows is no HTTP: 2xx to CONNECT, 101 */
};

struct field {
    struct span name, value; /* spelling as received; value trimmed */
    bool secret;             /* never to be indexed (RFC 7541 section 7.1.3) */
};

/* A request or an answer, or (fields only) a trailer section.  All spans
 * point into its arena.  The codec that reads it has checked every line
 * against the grammar; `body` and `length` say how its content is framed.
 * Framing and connection fields stay in `fields`, so that what was sent can be
 * shown; a codec that writes a head leaves them out and makes its own. */
struct head {
    struct arena *arena;
    enum version version; /* as received */
    /* request */
    enum method method_id;
    struct span method;
    struct span target; /* as sent: any of the four forms */
    struct span scheme, authority, path;
    /* answer */
    int status; /* 0: a request */
    struct span reason;
    /* both */
    struct field *fields;
    size_t n_fields, cap_fields;
    enum body body;
    uint64_t length;
    /* Protocols asked for, or switched to (101).  An extended CONNECT (RFC
     * 8441, RFC 9220) is a GET with an upgrade as well, its 200 a 101. */
    struct span upgrade;
    struct span connection; /* options of all Connection fields, joined */
    bool expects_continue, te_trailers;
    bool own; /* made by weir: what it says to the next hop is meant */
};

struct http;

/* What a codec does for exchange.c.  The side that reads is used by one
 * thread and the side that writes by one; they may be two.  Every read waits
 * for at most the limits of its end. */
struct http_ops {
    /* The next head: a request (server role) or an answer (client role; each
     * 1xx is one).  WHY_EOF: the peer ended before its first byte. */
    enum why (*read_head)(struct http *, struct head *, struct fail *);
    /* At least one byte of content, valid until the next read; WHY_EOF: the
     * content is complete; any other: it was cut. */
    enum why (*read_body)(struct http *, struct span *, struct fail *);
    /* After WHY_EOF: the trailer section, NULL if none.  Lives until the next
     * read_head. */
    const struct head *(*trailers)(struct http *);
    /* Would read_head, or read_body with content or its end, answer without
     * waiting?  If not, flush what was written, then read. */
    bool (*pending)(struct http *);
    /* Is the content read to its end? (true as well when there is none) */
    bool (*complete)(struct http *);
    /* Writes wait in a buffer until flush, or until it is full. */
    enum why (*write_head)(struct http *, const struct head *, struct fail *);
    enum why (*write_body)(struct http *, struct span, struct fail *);
    enum why (*write_end)(struct http *, const struct head *trailers,
                          struct fail *);
    enum why (*flush)(struct http *, struct fail *);
    /* The rest of the content is of no use.  True: the codec sees to it that
     * none comes, and who waits for it gets WHY_OVER; false: it has to be read
     * past.  Any thread. */
    bool (*unwanted)(struct http *);
    /* Is the peer gone for good, so that nobody waits for our answer? */
    bool (*gone)(struct http *);
    /* May the connection carry another exchange after this?  A client's
     * session: yes; a way that is a stream: no. */
    bool (*reusable)(struct http *);
    /* Make the message look cut short to the peer and wake whoever waits on
     * it.  Any thread. */
    void (*abort)(struct http *, enum why);
    /* The end whose bytes, as they are, are the rest of the content: until its
     * end, or *left more of them.  NULL: there is none (chunked, a stream). */
    struct end *(*raw_in)(struct http *, uint64_t *left);
    struct end *(*raw_out)(struct http *);
    /* Bytes were moved past the codec: `in` of raw_in's, by the reader, or
     * `out` of raw_out's, by the writer; the other is 0. */
    void (*raw_moved)(struct http *, uint64_t in, uint64_t out);
};

struct http {
    const struct http_ops *ops;
    enum side side;       /* whom we speak with: SIDE_CLIENT or SIDE_ORIGIN */
    enum version version; /* what is spoken here */
    bool last;            /* set by the user: no exchange after this one */
    struct span credentials; /* set by the user: Proxy-Authorization to add */
    /* for reads, set by the user: a watch; longest quiet, 0: the end's own */
    const struct watch *watch;
    int idle_ms;
    uint64_t n_in, n_out; /* content bytes of the current message */
};

/* HTTP/1 on an end, in either role (h1.c). */
struct h1_limits {
    size_t head_bytes, target_bytes;
    size_t n_fields;
    int head_ms;
};

enum h1_state {
    H1_HEAD,    /* of the next message */
    H1_FIXED,   /* content: as many bytes as Content-Length says */
    H1_CHUNKED, /* in chunks */
    H1_CLOSE,   /* until the connection ends */
    H1_RAW,     /* no HTTP any more */
    H1_BROKEN,  /* framing was violated: nothing that follows counts */
    H1_DONE,    /* the message is complete */
};

enum h1_chunk {
    CHUNK_SIZE, /* before the first digit */
    CHUNK_DIGITS,
    CHUNK_SPACE, /* behind the digits: an extension must follow */
    CHUNK_EXT,
    CHUNK_LF, /* of the size line */
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    CHUNK_LAST, /* the last chunk was read: trailers follow */
};

struct h1_chunks { /* where in a chunked body we are (RFC 9112 section 7.1) */
    enum h1_chunk state;
    uint64_t left;   /* of this chunk's data */
    size_t n_line;   /* bytes of this chunk's size line */
    uint64_t excess; /* bytes of size lines beyond a fair share */
};

struct h1 {
    struct http http; /* first: the codec casts */
    struct end *end;
    struct h1_limits limits;
    /* the reader's alone */
    enum h1_state rd;
    uint64_t rd_left; /* of H1_FIXED */
    struct h1_chunks chunks;
    size_t scanned;    /* bytes of an unfinished head already looked at */
    bool blank;        /* an empty line came before the head */
    int64_t head_from; /* ms: when its first byte was seen; 0: not yet */
    struct head *tail; /* the trailer section, made when one comes */
    bool has_tail;
    enum version peer; /* of the last head read */
    bool peer_last;    /* the peer will close after this exchange */
    /* set by whoever begins the exchange (in the server role the reader, in
     * the client role the writer) before the other starts, then only read */
    enum method method_id; /* of the exchange's request */
    bool te_trailers;      /* the request's sender wants trailers */
    bool asked_upgrade;    /* a 101 would be an answer */
    /* the writer's alone */
    bool absolute; /* set by the user: ask in absolute-form (a parent) */
    enum h1_state wr;
    uint64_t wr_left; /* of H1_FIXED */
    bool we_last;     /* we said that we close, or failed to write */
    char *out;        /* head and small content not yet sent */
    size_t out_len, out_cap;
    /* RFC 6455 section 4: the key of a request, where the peer of this
     * connection or the other version's has none of its own */
    char ws_key[32]; /* as text; "": none */
    bool ws_ours;    /* made here, so the answer is checked here */
    /* any thread */
    atomic_bool until_close; /* only our FIN ends the message being written */
    atomic_bool aborted;
};

/* ---- fibers of a session's owner ----------------------------------------- */

struct fiber; /* a stack, and where it goes on (fiber.c) */
struct sleeper;
struct pollfd;
TAILQ_HEAD(fiber_list, fiber);

struct fibers { /* all of one owner */
    /* the owner's alone */
    size_t stack_bytes;
    size_t n, n_free, n_fds; /* alive; stacks kept; waiting for sockets */
    struct fiber_list sleeping;
    struct fiber *free;
    int64_t until; /* when the first that sleeps may have to wake */
    void *owner;   /* where the owner goes on */
    void *tsan;
    struct pollfd *polls;
    struct sleeper *who; /* whose each of polls is */
    size_t cap;
    int wake_fd;
    /* needs lock */
    pthread_mutex_t lock;
    struct fiber_list woken;
    bool asleep;
};

/* What weir->exchanges does: a stream, or what a fiber may not wait for. */
struct worker;
struct task {
    void (*run)(struct task *, struct worker *);
    void (*refuse)(struct task *); /* no worker came in time */
};

/* ---- streams of a session ------------------------------------------------ */

struct store { /* a queue of bytes; at NULL: none were ever there */
    char *at;
    size_t start, len, cap;
};

/* A head or a trailer section on its way to a session's owner, in the fields
 * of HTTP/2 and 3: pseudo-fields first, names in lower case (fields.c). */
struct packed {
    struct packed *next;
    int status; /* 0: a request, or trailers */
    size_t n;
    struct field at[]; /* their text stands behind them */
};

struct got { /* a head on its way to a stream's user */
    struct head head;
    struct got *next;
};

/* Between the owner of a session and its streams (stream.c). */
struct hub {
    pthread_mutex_t lock;
    int wake_fd; /* an eventfd that the owner polls */
    /* needs lock */
    bool asleep; /* the owner polls, or is about to: it has to be woken */
    bool nudged; /* something else than a call came for him */
    bool over;   /* nobody serves the streams any more */
    struct stream *calls, *last_call; /* who wants something of the owner */
    atomic_size_t n_live;             /* streams whose user is not through */
    size_t owed;                      /* bytes read, no credit given yet */
    pthread_cond_t left;              /* n_live is 0 */
    struct stream *spare;             /* waiting for use, linked by next */
    size_t n_spare, max_spare;        /* 0: none are kept */
    /* HTTP/3: datagrams on their way out, each behind a struct gram_head */
    struct store grams;
    size_t gram_max; /* the largest that fits; 0: the peer takes none */
    uint64_t n_grams_lost;
};

/* Whom a stream's datagrams go to (RFC 9297 section 2.1): the payload of each,
 * its context identifier included.  Called by the session's owner: not to wait
 * in. */
struct hearer {
    void (*hear)(void *arg, const void *at, size_t len);
    void (*heard)(void *arg); /* those that came together; NULL: never mind */
    void *arg;
};

struct stream {
    struct http http; /* first: the codec casts */
    struct hub *hub;
    void *session; /* the owner's */
    /* set before a second thread looks, then only read */
    int64_t id;          /* -1: not opened yet */
    bool connect;        /* a CONNECT of any kind: its content is no HTTP's */
    bool extended;       /* one with a :protocol */
    bool head_only;      /* the answer to a HEAD */
    int idle_ms;         /* longest quiet in a read or write */
    struct fail refused; /* the request was read, and will not do */
    pthread_cond_t news; /* to its users: look again */
    /* needs hub->lock */
    struct fiber *fibers[2]; /* its users, who sleep as such: [1] reads */
    int n_waiting;           /* users who sleep as threads */
    bool called;             /* is in hub->calls */
    struct stream *next_call;
    struct got *heads;  /* in: read_head takes the first */
    struct head *tail;  /* in: trailers */
    struct store in;    /* in: content not yet taken by the reader */
    bool in_end;        /* in: its end has come */
    struct fail broken; /* the stream is over, by this */
    bool deaf;          /* the peer takes no more from us */
    size_t credit;      /* read, to be given back to the peer */
    struct packed *out_heads, *out_tail;
    struct store out;
    bool out_end;
    bool switched;      /* extended: its 101 has passed */
    bool unwanted;      /* no more content is wanted */
    bool aborted, done; /* by its user; done: he is through with it */
    enum why abort_why;
    void (*serve)(void *arg, struct fibers *); /* what the owner shall begin */
    void *serve_arg;
    int n_refs; /* the user, the owner */
    /* needs gram_lock */
    pthread_mutex_t gram_lock;
    struct hearer hearer; /* hear NULL: nobody yet */
    struct store unheard; /* datagrams that came before he did */
    /* the reader's */
    struct store taken; /* handed out by read_body */
    bool saw_end;
    struct head *saw_tail;
    /* the writer's: not yet handed over */
    struct packed *wr_heads, *wr_tail;
    struct store wr;
    bool wr_end;
    bool wrote_end;
    /* the owner's alone */
    struct stream *next, *prev, *next_own;
    bool seen_done; /* the user is through with it, and the owner knows */
    bool seen_over; /* nothing but the end of our message is to come */
    bool submitted; /* client role: the request was */
    bool answered;  /* server role: its final head was */
    struct packed *sending; /* heads, taken over from out_heads */
    struct got first;       /* in: room for a head */
    bool had_first;
    bool closed, local_end, remote_end, deferred, held;
    uint64_t asked;   /* server role: number of the PING behind our answer */
    int64_t moved_at; /* ms: when the peer last took content */
};

struct call { /* what a stream's user calls for */
    bool content, end, tail, aborted, done, unwanted;
    enum why why;                              /* aborted by it */
    size_t credit;                             /* bytes that he has read */
    void (*serve)(void *arg, struct fibers *); /* to be begun; NULL: nothing */
    void *serve_arg;
};

struct h2; /* one HTTP/2 session (h2.c) */
struct h3; /* one HTTP/3 session (h3.c) */

/* ---- QUIC ---------------------------------------------------------------- */

struct leaf; /* a certificate of ours (leaf.c) */
struct quic; /* one QUIC connection (quic.c) */

union quic_address {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};

struct quic_path { /* which way a datagram came, or shall go */
    union quic_address local, remote;
};

enum {
    QUIC_CID_MAX = 20,
    QUIC_TOKEN_MAX = 256,
    QUIC_OWN_MAX = 16, /* one-way streams that a peer may open, ever */
};

struct quic_cid {
    size_t len;
    uint8_t at[QUIC_CID_MAX];
};

/* What a server's connection begins with: the client's first datagram. */
struct quic_birth {
    uint32_t version;
    struct quic_path path;
    struct quic_cid client; /* how the client calls itself */
    struct quic_cid first;  /* how it calls us in this datagram */
    struct quic_cid odcid;  /* and did before a Retry; len 0: there was none */
    uint8_t token[QUIC_TOKEN_MAX]; /* of this datagram, if it proves anything */
    size_t token_len;
    bool retried; /* token is that of a Retry, not of a former connection */
};

/* A connection as the datagrams know it (demux.c): what came for it and was
 * not read yet, and the identifiers that lead there. */
struct wire;
struct demux; /* datagrams to connections, whatever brings them */

struct demux_user { /* whoever has the datagrams */
    struct weir *weir;
    /* Send len bytes as datagrams of `segment` bytes, the last one shorter.
     * Any thread, several at once. */
    void (*send)(void *arg, const struct quic_path *, const void *at,
                 size_t len, size_t segment);
    void (*gone)(void *arg); /* the last one who could send has left; or NULL */
    void *arg;
    /* Inside a tunnel: who asks, and for whom it is; else NULL.  Copied. */
    const struct client *from;
    const struct origin *inside;
};

enum calm_kind { /* frames that cost us and ask for nothing (calm.c) */
                 CALM_RESETS,
                 CALM_SETTINGS,
                 CALM_PINGS,
                 CALM_EMPTY,
                 CALM_PRIORITIES,
                 CALM_UPDATES,
                 CALM_KINDS
};

struct budget { /* in 1/CALM_MS of a frame */
    int64_t max, left;
    int64_t at; /* ms: when `left` was that */
};

struct calm { /* of one session, its owner's */
    struct budget budget[CALM_KINDS];
};

struct breaker; /* who failed to be connected to */

/* ---- where to, and a way to it ------------------------------------------- */

struct origin {
    bool tls;                /* https */
    char host[HOST_MAX + 1]; /* lower case, no brackets, never empty */
    uint16_t port;
    char sni[HOST_MAX + 1]; /* name for SNI and verification; "": host */
    bool tunnel; /* a parent must be asked for a tunnel, TLS or not */
};

/* A set; http/1.0 is HTTP, but nothing that a server would choose. */
enum alpn {
    ALPN_HTTP1 = 1,
    ALPN_H2 = 2,
    ALPN_HTTP10 = 4,
    ALPN_OTHER = 8,
    ALPN_H3 = 16
};

struct names { /* what a certificate names: "dns\0dns\0ip\0" */
    size_t len;
    char at[2048];
};

struct hello { /* what a ClientHello says (RFC 8446 section 4.1.2) */
    char sni[HOST_MAX + 1]; /* "": none */
    unsigned alpn;          /* set of enum alpn; 0: no offer */
};

struct known {     /* what we remember of an origin's TLS */
    unsigned alpn; /* what it chose: one of enum alpn, 0: none */
    struct names names;
};

struct clock_marks { /* µs each step took; -1: there was none */
    int64_t dns_us, connect_us, tls_us;
};

struct hop {                       /* a parent on the way, for the log */
    char parent[HOST_MAX + 24];    /* "": none */
    int64_t connect_us, answer_us; /* -1: there was none */
};

enum { ALT_USED_MAX = HOST_MAX + 16 };

struct upstream { /* a way to an origin; belongs to whoever took it */
    struct origin origin;
    struct parent *parent; /* that it leads through; NULL: none */
    bool absolute;         /* the parent itself takes the requests */
    uint64_t serial;       /* of the settings it was opened under */
    struct hop hop;
    struct end end; /* fd -1: a stream of a shared session */
    struct h1 h1;
    struct stream *stream;   /* set: http is its */
    struct session *session; /* whose stream it is (session.c) */
    struct http *http;       /* what to speak on; NULL: bare, TLS not begun */
    char addr[ADDR_MAX];     /* the peer's address */
    char alt_used[ALT_USED_MAX]; /* where Alt-Svc led to; "": not by it */
    struct clock_marks took;
    bool reused;       /* carried an exchange before this one */
    bool plain_only;   /* HTTP/1 was all we offered: for an upgrade */
    bool bound;        /* saw connection-bound authentication: never shared */
    bool ticket_saved; /* its TLS session can be resumed */
    bool insecure;     /* its certificate was not verified, by setting */
    int64_t given_at;  /* ms; upstream.c's cache */
    struct upstream *next, *prev, *newer, *older; /* upstream.c's cache */
};

struct upstreams; /* the shared cache, resumption data, remembered origins */
struct mitm;      /* the CA, leaf certificates, tickets */
struct pool;
struct worker; /* one thread of a pool, with its twin */

/* ---- the program, a connection, an exchange ------------------------------ */

struct weir { /* what all connections share; one, made by proxy.c */
    struct config *_Atomic config;
    struct listeners *listeners;
    struct pool *conns;
    struct pool *exchanges; /* serve streams of clients' sessions */
    struct mitm *mitm;
    struct upstreams *upstreams;
    char via[64];       /* our pseudonym, e.g. "weir-3f9a" */
    uint16_t ports[16]; /* that we listen on */
    size_t n_ports;
    atomic_ullong n_conns; /* the last connection id */
    atomic_int n_quic;     /* QUIC connections of clients */
    atomic_int n_fibers;   /* streams that are served by fibers */
    atomic_bool trim;      /* much memory may have come free */
    atomic_int n_udp;      /* UDP associations */
    atomic_int n_udp_tunnels;
    atomic_bool draining; /* finish what is in flight, start nothing */
    atomic_bool stopping; /* grace is over: end everything now */
};

enum { VIA_MAX = 256, PROXY_AUTH_MAX = 1024 };

struct told { /* what a parent has to be told of a request; "": nothing */
    char via[VIA_MAX];
    char proxy_auth[PROXY_AUTH_MAX]; /* only with forward_proxy_auth */
};

struct client { /* who asks: all that an exchange needs of its connection */
    struct weir *weir;
    const struct config *conf;
    uint64_t id;
    int64_t stream; /* of its session; -1: none */
    uint64_t n_exchanges;
    char addr[ADDR_MAX];
    bool tls;                    /* what it spoke to us */
    const struct origin *inside; /* the known target; NULL: a proxy request */
    bool own_name; /* TLS for our own name: origin-form means our pages */
    bool any_port; /* inside came by its name alone: requests say the port */
    struct sockaddr_storage from; /* its address; family 0: not known */
    const char *denied;           /* the rule of conf against it; NULL: none */
    struct told *told;            /* of its last proxy request; NULL: nothing */
};

/* A SOCKS conversation with a client: RFC 1928, RFC 1929, SOCKS 4 and 4a. */
enum socks_wants { SOCKS_HELLO, SOCKS_LOGIN, SOCKS_REQUEST };
enum socks_command { SOCKS_CONNECT = 1, SOCKS_BIND = 2, SOCKS_UDP = 3 };
enum socks_code { /* what to answer, in the numbers of RFC 1928 section 6 */
                  SOCKS_OK,
                  SOCKS_FAILED,
                  SOCKS_DENIED,
                  SOCKS_NET_UNREACHABLE,
                  SOCKS_HOST_UNREACHABLE,
                  SOCKS_REFUSED,
                  SOCKS_EXPIRED,
                  SOCKS_NO_COMMAND,
                  SOCKS_NO_ADDRESS,
};

struct socks {
    int version;            /* 4 or 5; 0: this is no SOCKS */
    enum socks_wants wants; /* the message that comes next */
    int64_t until;          /* ms: when all of it has to be here */
    /* of the request, once it is here */
    int command;
    char host[HOST_MAX + 1]; /* as in struct origin */
    uint16_t port;
};

struct socks_said { /* one message, in the buffer that it was parsed from */
    bool none, password; /* the methods that a hello offers */
    struct span user, pass;
    enum socks_code refuse; /* with WHY_PROTO: what to answer */
};

enum exchange_end {
    EXCHANGE_KEEP,  /* another may follow on the client's connection */
    EXCHANGE_CLOSE, /* none may; the answer is complete */
    EXCHANGE_CUT,   /* none may; the client must see that it is cut short */
    EXCHANGE_RAW,   /* 101 went down: x->up and the client are a tunnel now */
};

struct exchange {
    /* set by the caller */
    struct client *client;
    struct worker *worker; /* its twin carries the request's content */
    struct http *down;     /* the client's side */
    struct head *req;      /* already read */
    struct head *res;      /* for the answers */
    struct upstream *up;   /* a way that may serve, or NULL; afterwards one that
                              is idle (or raw: EXCHANGE_RAW), or NULL */
    int64_t begun_us;      /* when the request's head was complete */
    /* its own */
    bool alt_used; /* the request says so */
    /* for the log */
    struct origin origin;
    struct clock_marks took;
    struct hop hop;
    char addr[ADDR_MAX]; /* of the origin; "": none was reached */
    bool reused;
    enum version spoke;            /* with the origin; meant if addr is set */
    bool own;                      /* the answer was made by weir */
    int64_t first_us;              /* the first answer byte */
    int status;                    /* of the final answer; 0: none was sent */
    uint64_t up_bytes, down_bytes; /* of content */
    struct fail fail;              /* what ended it; why NONE: it completed */
};

/* The request's content on its way up.  The gate is shut while the worker
 * writes a request head: first bytes wait behind it, and once they have passed
 * the request cannot be sent a second time. */
struct upload {
    struct exchange *x;
    /* the worker's alone */
    bool started;
    bool unheard; /* nobody will hear the rest */
    pthread_mutex_t lock;
    pthread_cond_t opened;
    /* needs lock */
    bool shut, begun;
    struct http *to; /* NULL behind a shut gate */
    /* either thread */
    atomic_bool done, discard;
    atomic_llong moved_at;
    /* the twin's; read after twin_wait(), or once `done` is seen */
    struct fail fail;
};

struct tunnel_side { /* an end, or a stream of an h2/h3 session */
    struct end *end;
    struct http *http; /* used when end is NULL: its content is the bytes */
};

struct tunnel_result { /* how a tunnel went */
    uint64_t up, down; /* bytes */
    enum side ended_by;
    struct fail fail; /* why NONE: both directions finished */
    bool lost; /* the client got all, but the server did not want to hear all */
};

enum conn_state {
    ST_DETECT,
    ST_HANDSHAKE,
    ST_REQUEST,
    ST_DIAL,
    ST_EXCHANGE,
    ST_SESSION,
    ST_QUIC,
    ST_TUNNEL,
    ST_LINGER,
    ST_SOCKS,
    ST_UDP,
    ST_MASQUE,
    ST_CLOSE,
    ST_PARKED, /* the accept thread has it; conn_run() goes on when it wakes */
    ST_DONE,
};

struct conn {
    struct client client;
    struct end end;
    struct h1 h1;
    struct head req, res;
    enum conn_state state;
    enum conn_state resume; /* where to go on after ST_PARKED */
    struct worker *worker;  /* while one runs it */
    struct hello hello;     /* of the handshake to come */
    int64_t hello_until;    /* ms: when all of it has to be here; 0: none is */
    struct socks socks;     /* version 0: the client speaks something else */
    struct origin target;   /* of a CONNECT, of an interception */
    bool target_known;      /* target is set: this is no proxy request */
    bool opaque;            /* what comes next is no HTTP */
    bool alpn_h2;           /* HTTP/2 was agreed on in the handshake */
    bool switched;          /* up and the client are raw, behind a 101 */
    bool cut;               /* close without a clean end */
    struct upstream *up;    /* kept for the next exchange, or for the tunnel */
    struct h2 *h2;          /* NULL: it speaks HTTP/1 */
    struct wire *wire;      /* QUIC: it has no end */
    struct h3 *h3;          /* NULL: it has not begun, or there is no wire */
    int wake_fd;            /* h3's: readable when h3 has to be run again */
    int tunnel_idle_ms;
    struct tunnel_result tunnel;
    int64_t began_us;
    int64_t until;     /* ms: when a parked connection is given up */
    const char *spoke; /* "http/1", "tls", ... for the log */
    struct fail fail;
    /* the accept thread's: parked and live lists (listen.c) */
    int epoll_fd; /* where fd is registered; -1: nowhere */
    struct conn *next, *prev;
    struct conn *parked_next, *parked_prev;
};

/* ---- proxy.c: command line, start, signals, drain ------------------------ */
/* main() alone */

/* ---- listen.c: listeners, accept thread, parking ------------------------- */

struct listeners;
struct listeners *listeners_new(struct weir *, const struct config *, char *err,
                                size_t cap);
bool listeners_start(struct listeners *, char *err, size_t cap);
void listeners_serve(void *conn, struct worker *); /* the pool's serve() */
bool listeners_adopt(struct listeners *, struct conn *); /* false: no room */
/* The same, counted as a client's own; false: it has too many. */
bool listeners_welcome(struct listeners *, struct conn *);
void listeners_retime(struct listeners *, int idle_ms); /* after a reload */
void listeners_address(const struct listeners *, size_t i, char *out,
                       size_t cap); /* as bound, e.g. "127.0.0.1:8080" */
size_t listeners_count(const struct listeners *);
void listeners_stop_accepting(struct listeners *);    /* closes them at once */
size_t listeners_live(struct listeners *);            /* connections alive */
bool listeners_wait_idle(struct listeners *, int ms); /* until none lives */
void listeners_end_all(struct listeners *); /* wakes who reads a client */
void listeners_cut_all(struct listeners *); /* and who writes to one */
void listeners_free(struct listeners *);

/* ---- config.c: proxy.ini ------------------------------------------------- */

/* file NULL: defaults.  sets: n "section.key=value".  NULL on a mistake, with
 * err = "file:line: [section] key: what is wrong, what is allowed". */
struct config *config_read(const char *file, char *const *sets, size_t n_sets,
                           char *err, size_t cap);
const char *config_find(char *out, size_t cap); /* NULL: no file anywhere */
struct config *config_take(struct weir *);      /* the current one */
struct config *config_swap(struct weir *, struct config *next);
void config_give(const struct config *);

struct config_key { /* what a key is, for tests and manuals */
    const char *section, *name;
    const char *preset; /* as one would write it; NULL: any key, none given */
    const char *what;   /* one line */
};
const struct config_key *config_key(size_t i); /* NULL: there is no i-th */

/* ---- value.c: one value of a setting, into its field --------------------- */

enum { WRONG_MAX = 512 }; /* "what is wrong, what is allowed" */

enum setting_kind {
    KIND_INT,      /* int: a whole number from min to max */
    KIND_BOOL,     /* bool */
    KIND_WORD,     /* enum or bool: the index of one of the words */
    KIND_TOKEN,    /* char[]: RFC 9110 section 5.6.2, or empty */
    KIND_PATH,     /* char *: NULL if empty */
    KIND_FILE,     /* the same, and it can be read */
    KIND_LISTEN,   /* list of struct listener_conf */
    KIND_USERS,    /* list of struct user_conf; secret */
    KIND_NAMES,    /* list of char *: names and addresses, no ports */
    KIND_MATCH,    /* struct match * */
    KIND_RESOLVE,  /* list of struct resolve_conf; the key is any name */
    KIND_NO_PROXY, /* struct match *, read as curl does */
    KIND_HTTP3,    /* struct match *, and the word "auto" */
    KIND_WAYS,     /* struct ways; secret */
    KIND_URL,      /* [parent NAME] url: struct ways of a rule; secret */
    KIND_HOSTS,    /* [parent NAME] hosts: struct match * of a rule */
};

struct setting { /* one row of config.c's table */
    struct config_key key;
    enum setting_kind kind;
    size_t at, size;   /* the field in struct config; size: of a list's item */
    size_t n_at;       /* lists: the field that counts them */
    int min, max;      /* KIND_INT */
    const char *words; /* KIND_WORD: "error|warning", in the enum's order */
};

struct given { /* one `key = value`, wherever it stands */
    struct config *conf;
    const struct setting *row;
    const char *section, *name, *value;
    bool by_set; /* on the command line, where a later one wins */
    char wrong[WRONG_MAX];
};

bool value_set(struct given *); /* false: wrong says why */
void value_clear(struct config *, const struct setting *);
bool value_adds(const struct setting *); /* may it be given again? */
bool user_home(char *out, size_t cap);

/* ---- match.c: lists of hosts --------------------------------------------- */

struct match *match_parse(const char *text, char *err, size_t cap);
bool match_add(struct match *, const char *text, char *err, size_t cap);
bool match_split(char *text, char **host, char **port); /* "[::1]:80", "a" */
const char *match_find(const struct match *, const char *host, uint16_t port);
const char *match_find_address(const struct match *, const struct sockaddr *,
                               uint16_t port); /* the item; NULL: none */
bool match_host(const struct match *, const char *host, uint16_t port);
bool match_empty(const struct match *);
void match_free(struct match *);

/* ---- holder.c: who listens where we want to ------------------------------ */

void holder_explain(const struct listener_conf *, int code, char *err,
                    size_t cap);

/* ---- pool.c: workers and their twins ------------------------------------- */

struct pool_conf {
    const char *name; /* of its threads */
    size_t n_workers, n_queue, stack_bytes;
    void (*serve)(void *job, struct worker *);
};
struct pool *pool_new(const struct pool_conf *);
bool pool_submit(struct pool *, void *job);            /* false: full */
void *pool_expire(struct pool *, int64_t waits_since); /* NULL: none so old */
size_t pool_idle(struct pool *); /* workers without a job, started or not */
void pool_free(struct pool *);   /* joins; the queue must be empty */

bool twin_start(struct worker *, void (*run)(void *), void *arg);
bool twin_wait(struct worker *, int ms); /* -1: for ever; false: still runs */

struct bell { /* one thread waits until another rings; zeroed: not rung */
    atomic_int state; /* of the enum below; 32 bits for futex(2) */
};
enum { BELL_SILENT, BELL_AWAITED, BELL_RUNG };
bool bell_wait(struct bell *, int64_t until); /* false: it is over */
void bell_ring(struct bell *);
bool cond_until(pthread_cond_t *, pthread_mutex_t *, int64_t until);
void stack_rest(void); /* unused pages of this thread's stack go back */

/* ---- conn.c: the life of one connection ---------------------------------- */

struct conn *conn_new(struct weir *, int fd, const struct sockaddr *,
                      socklen_t);
enum conn_state conn_run(struct conn *, struct worker *); /* PARKED or DONE */
void conn_refuse(struct conn *, enum why,
                 const char *op); /* without waiting; then conn_free */
void conn_timeout(struct conn *); /* parked past its `until` */
void conn_free(struct conn *);
/* A CONNECT's target that a stream leads to; the other end of fd is pumped. */
struct conn *conn_new_inside(const struct client *, int fd,
                             const struct origin *, struct upstream *);
/* A QUIC connection; from and inside as in struct demux_user. */
struct conn *conn_new_quic(struct weir *, struct wire *,
                           const struct client *from, const struct origin *);
enum why connect_route(struct client *, struct head *req, struct origin *,
                       struct fail *); /* where a CONNECT leads */
/* May what follows a CONNECT to that origin be looked into? */
bool conn_wants(const struct config *, const struct origin *);
/* For the states that have rooms of their own. */
enum conn_state conn_park(struct conn *, enum conn_state resume,
                          int64_t until_ms);
int64_t conn_idle_until(const struct conn *);
enum conn_state conn_goodbye(struct conn *, const struct fail *);

/* ---- detect.c: what does a client speak? --------------------------------- */

enum conn_state conn_detect(struct conn *);

/* ---- handshake.c: TLS that a client begins ------------------------------- */

enum conn_state conn_handshake(struct conn *);
int handshake_quic(void *conn, const struct hello *, struct leaf **);
void conn_log_refusal(const struct conn *, const char *name,
                      const struct fail *);

/* ---- serve.c: one stream of a client's session --------------------------- */

struct served; /* a stream, and who asks */
struct served *served_new(struct stream *, struct client *);
void serve_job(void *job, struct worker *);         /* the pool's serve() */
bool serve_begin(struct served *, struct fibers *); /* false: nobody can */

/* ---- end.c: an endpoint -------------------------------------------------- */

void end_init(struct end *, int fd, enum side, int idle_ms);
void end_clear(struct end *);              /* closes; may run twice */
struct span end_ahead(const struct end *); /* what is buffered */
void end_consume(struct end *, size_t n);
enum why end_fill(struct end *, size_t cap, struct fail *); /* >= 1 more byte */
enum why end_read(struct end *, void *buf, size_t cap, size_t *n,
                  struct fail *);
enum why end_write(struct end *, struct iovec *, int n, struct fail *);
enum why end_try_write(struct end *, const void *at, size_t len, size_t *n,
                       struct fail *); /* without waiting */
bool end_unsent(struct end *);         /* does something wait in it? */
enum why end_finish(struct end *, struct fail *); /* our direction is over */
enum why end_splice(struct end *from, struct end *to, const int pipe_fds[2],
                    size_t max, size_t *n, struct fail *); /* plain sockets */
bool end_wait(struct end *, int ms); /* something to read, or an end? */
bool end_pending(struct end *);      /* could be read without waiting */
bool end_quiet(struct end *);        /* alive, and nothing unasked came */
bool end_gone(struct end *);         /* reset, or closed both ways */
void end_wake(struct end *);         /* any thread: shutdown(2) both ways */
void end_stop_reading(struct end *); /* any thread: the reader wakes */
void end_drop_buffer(struct end *);  /* while nothing is buffered */
/* Any thread: the peer shall see that bytes are missing. */
void end_cut(struct end *);
/* The two are each other's peer, by socketpair(2); false: no memory. */
bool end_pair(struct end *, struct end *);

/* ---- sock.c: an end's socket, for end.c and layer.c ---------------------- */

enum why sock_recv(struct end *, void *buf, size_t cap, int flags, size_t *n,
                   struct fail *);
enum why sock_send(struct end *, struct iovec *, int n, int flags,
                   struct fail *);
enum why sock_splice_in(struct end *, int pipe_fd, size_t max, size_t *n,
                        struct fail *);
enum why sock_splice_out(struct end *, int pipe_fd, size_t n, struct fail *);

/* ---- layer.c: TLS over an end's socket, or over TLS ---------------------- */

enum why end_handshake(struct end *, gnutls_session_t, int64_t deadline,
                       struct fail *); /* takes the session */
bool end_chose_h2(const struct end *); /* by ALPN */
void end_alert(struct end *, gnutls_alert_description_t);
gnutls_session_t end_session(const struct end *); /* NULL: plain */
/* For end.c. */
enum why layer_read(struct end *, struct tls *, void *buf, size_t cap,
                    size_t *n, struct fail *); /* NULL: the socket */
enum why layer_write(struct end *, struct iovec *, int n, struct fail *);
enum why layer_try_write(struct end *, const void *at, size_t len, size_t *n,
                         struct fail *);
enum why layer_finish(struct end *, struct fail *);
bool layer_pending(struct tls *, void *buf, size_t cap, size_t *n);
bool layer_take_in(struct end *);
void layer_drop_buffers(struct tls *);
void layer_free(struct tls *);

/* ---- fail.c: reasons, and the clock -------------------------------------- */

int64_t now_ms(void), now_us(void); /* monotonic */

enum why fail_note(struct fail *, enum side, enum why, const char *op, int code,
                   const char *(*text)(int));
enum why fail_own(struct fail *, enum side, enum why, const char *op);
enum why fail_say(struct fail *, enum side, enum why, const char *op,
                  const char *fmt, ...) __attribute__((format(printf, 5, 6)));
enum why fail_sys(struct fail *, enum side, const char *op, int code);
enum why fail_tls(struct fail *, enum side, const char *op, int rc);
enum why fail_alert(struct fail *, enum side, const char *op, int alert);
const char *sys_text(int code);
const char *why_name(enum why);   /* "idle" */
const char *why_text(enum why);   /* "quiet for too long" */
const char *side_name(enum side); /* "client" */
int why_status(enum why, enum side);
const char *why_proxy_error(enum why, enum side); /* RFC 9209 token or NULL */
void fail_text(const struct fail *, char *out, size_t cap);

/* ---- http.c: what all versions share ------------------------------------- */

bool span_is(struct span, const char *);  /* same bytes */
bool span_isi(struct span, const char *); /* same but for ASCII case */
struct span span_of(const char *);
bool span_number(struct span, uint64_t *); /* all digits, no overflow */
struct span span_trim(struct span);        /* no space or tab around it */

void head_init(struct head *);
void head_reset(struct head *); /* empty, memory kept for the next */
void head_clear(struct head *); /* memory too */
struct span head_text(struct head *, const char *, size_t); /* copied in */
bool head_add(struct head *, struct span name, struct span value); /* copies */
bool head_put(struct head *, struct span name, struct span value); /* lends */
void head_remove(struct head *, const char *name);        /* all of that name */
struct span head_joined(struct head *, const char *name); /* all, as one list */
const struct field *head_find(const struct head *, const char *name,
                              const struct field *after); /* NULL: first */
bool list_has(struct span list, const char *token); /* comma list, no case */
bool list_next(struct span *rest, struct span *item);

int hex_digit(char); /* -1: it is none */
unsigned char ascii_lower(char);
bool is_name(struct span);        /* of a host */
bool is_token(struct span);       /* RFC 9110 section 5.6.2 */
bool is_field_value(struct span); /* RFC 9110 section 5.5 */
enum method method_of(struct span);
bool method_idempotent(enum method);
bool field_is_hop(const struct head *, struct span name); /* 7.6.1, or named */
bool field_ok_in_trailer(struct span name);               /* 6.5.1 */
const char *status_reason(int status);
const char *version_name(enum version); /* "http/1.1" */

bool head_came_by(const struct head *, const char *via); /* our own Via? */

/* ---- target.c: where a request leads ------------------------------------- */

/* Split host[:port]; brackets removed, lower case; port 0: none given. */
bool authority_parse(struct span, char host[HOST_MAX + 1], uint16_t *port);
/* req's scheme, authority, path from its target (RFC 9112 section 3.2). */
enum why head_route(struct head *req, const struct client *, struct origin *,
                    bool *ourselves, struct fail *);
bool host_is_address(const char *host);
bool name_is_local(const struct config *, const char *host); /* ourselves */
bool host_is_ours(const struct config *, const char *host);  /* or address */
void origin_authority(const struct origin *, char *out, size_t cap);

/* ---- exchange.c: one request and its answer ------------------------------ */

enum exchange_end exchange_run(struct exchange *);
/* There is no proper request: answer with what x->fail says, and close. */
enum exchange_end exchange_refuse(struct exchange *);

/* ---- upload.c: a request's content, by the worker's twin ----------------- */

void upload_init(struct upload *, struct exchange *);
bool upload_start(struct upload *, struct http *to); /* or go on, to another */
bool upload_hold(struct upload *); /* false: something has passed already */
bool upload_client_failed(struct upload *);
void upload_join(struct upload *, bool hopeless);
enum why http_splice(struct http *from, struct http *to, atomic_llong *moved_at,
                     struct fail *); /* WHY_MORE: not here */

/* ---- page.c: what weir says itself --------------------------------------- */

enum why page_error(struct exchange *, const struct fail *, struct fail *);
enum why page_own(struct exchange *, struct fail *);   /* our own site */
enum why page_trace(struct exchange *, struct fail *); /* Max-Forwards: 0 */

/* ---- h1.c: HTTP/1, read and kept ----------------------------------------- */

void h1_init(struct h1 *, struct end *, enum side, const struct config *);
void h1_clear(struct h1 *);
enum why h1_try_head(struct h1 *, struct head *, struct fail *); /* no wait */
struct end *h1_take_raw(struct h1 *); /* the end, nothing left in the codec */
void h1_content_begin(struct h1 *, enum h1_state, uint64_t left);

/* ---- h1parse.c: HTTP/1 out of bytes -------------------------------------- */

enum h1_field { /* fields that a codec of HTTP/1 acts upon */
                F_OTHER,
                F_CONNECTION,
                F_EXPECT,
                F_HOST,
                F_LENGTH,
                F_CODING,
                F_TE,
                F_TRAILER,
                F_UPGRADE,
};
enum h1_field h1_field_of(struct span name);
enum why h1_section_end(const char *raw, size_t len, size_t *scanned,
                        size_t *end);
size_t h1_blank_line(const char *raw, size_t len, enum side from);
enum why h1_parse_head(const char *raw, size_t len, enum side from,
                       const struct h1_limits *, struct head *, size_t *used,
                       struct fail *);
enum why h1_parse_more(const char *raw, size_t len, enum side from,
                       bool to_connect, const struct h1_limits *,
                       size_t *scanned, struct head *, size_t *used,
                       struct fail *);
enum why h1_parse_fields(const char *at, enum side from,
                         const struct h1_limits *, struct head *,
                         struct fail *);
enum why h1_parse_chunks(struct h1_chunks *, const char *raw, size_t len,
                         size_t *used, struct span *data, struct fail *);

/* ---- h1write.c: HTTP/1 into bytes ---------------------------------------- */

enum why h1_write_head(struct http *, const struct head *, struct fail *);
enum why h1_write_body(struct http *, struct span, struct fail *);
enum why h1_write_end(struct http *, const struct head *trailers,
                      struct fail *);
enum why h1_flush(struct http *, struct fail *);

/* ---- websocket.c: its key, where versions meet --------------------------- */

void ws_note_key(struct h1 *, const struct head *);       /* as a server */
bool ws_accept(const char *key, char out[32]);            /* as a server */
bool ws_make_key(struct h1 *, const struct head *);       /* as a client */
bool ws_accepted(const struct h1 *, const struct head *); /* as a client */

/* ---- fields.c: heads in the fields of HTTP/2 and 3 ----------------------- */

struct section { /* one that is being received */
    struct head head;
    struct span method, scheme, authority, path, protocol, status;
    enum version version;
    size_t bytes; /* as RFC 9113 section 6.5.2 counts */
    size_t max_bytes, max_fields;
    bool over;   /* a ceiling was met: fields are dropped */
    bool failed; /* no memory */
};
void section_init(struct section *, const struct config *);
void section_begin(struct section *, enum version, size_t max_bytes,
                   size_t max_fields); /* the same, with limits of its own */
void section_reset(struct section *);
void section_clear(struct section *);
void section_add(struct section *, struct span name, struct span value,
                 bool secret);
/* The head that it makes; ends: no content follows.  The section is empty
 * afterwards.  WHY_PROTO: malformed. */
enum why section_request(struct section *, bool ends, struct head *,
                         struct fail *);
enum why section_answer(struct section *, bool ends, struct head *,
                        struct fail *);
void section_tail(struct section *, struct head *);
struct packed *pack_head(const struct head *, bool head_only,
                         struct span credentials); /* NULL: memory */
struct packed *pack_tail(const struct head *);

/* ---- fiber.c: blocking jobs on an owner's thread ------------------------- */

bool fibers_init(struct fibers *, size_t stack_bytes);
void fibers_clear(struct fibers *);
void fibers_rest(struct fibers *); /* gives back what is kept */
bool fibers_start(struct fibers *, void (*run)(void *), void *arg);
bool fibers_run(struct fibers *); /* those that were woken */
void fibers_poll_us(struct fibers *, struct pollfd *own, size_t n, int64_t us);
void fibers_poll(struct fibers *, struct pollfd *own, size_t n, int ms);
bool fiber_here(void); /* is this a fiber? */
struct fiber *fiber_self(void);
void fiber_sleep(int fd, short events, int ms);
void fiber_wake(struct fiber *);
bool fiber_call(struct pool *, void (*run)(void *), void *arg);

/* ---- stream.c: between a session's owner and a stream's user ------------- */

bool hub_init(struct hub *); /* false: no descriptor */
void hub_clear(struct hub *);
struct stream *hub_call(struct hub *); /* the next who calls; NULL: nobody */
struct stream *hub_take(struct hub *, struct call *); /* and for what */
void hub_wake(struct hub *);                          /* needs hub->lock */
bool hub_sleep(struct hub *); /* false: somebody calls, look again */
void hub_awake(struct hub *);
void hub_rest(struct hub *, bool all); /* spare streams go back */
void hub_nudge(struct hub *);     /* any thread: look again, it is no call */
void hub_over(struct hub *);      /* every stream is broken */
bool hub_over_idle(struct hub *); /* the same, if nobody uses one */
bool hub_wait_left(struct hub *); /* false: somebody calls */
size_t hub_live(struct hub *);

bool store_add(struct store *, const void *, size_t len); /* false: memory */
void store_clear(struct store *);
struct stream *stream_new(struct hub *, enum side, enum version, int idle_ms);
void stream_give(struct stream *); /* the user is through with it */
void stream_drop(struct stream *); /* the owner is */
void stream_serve(struct stream *, void (*serve)(void *arg, struct fibers *),
                  void *arg); /* by the owner, from now on */
bool stream_put_head(struct stream *, struct head *); /* takes what is in it */
void stream_put_answer(struct stream *, struct head *, bool ends);
bool stream_put_data(struct stream *, const void *, size_t len);
void stream_put_gram(struct stream *, const void *, size_t len);
void stream_end_grams(struct stream *); /* no more have come for now */
void stream_put_end(struct stream *, struct head *tail); /* tail may be NULL */
void stream_break(struct stream *, enum why, const char *op, int code,
                  const char *(*text)(int));
void stream_deafen(struct stream *);
void stream_tell(struct stream *);     /* needs hub->lock */
size_t stream_unread(struct stream *); /* no credit was given for it */
void stream_call(struct stream *, struct call *);

/* Datagrams of a stream, HTTP/3 alone; the user's, any thread.  They are lost
 * (false) where they do not fit or too many wait. */
struct gram_head { /* of one that waits in hub->grams */
    int64_t stream;
    size_t len;
};
bool stream_say(struct stream *, const void *, size_t len);
size_t stream_say_max(struct stream *); /* 0: the peer takes none */
/* From now on, what came before included; hear NULL: nobody, and on return
 * nobody is being called. */
void stream_hear(struct stream *, struct hearer);

/* ---- calm.c: how much useless work a peer may make ----------------------- */

void calm_init(struct calm *, const struct config *, int64_t now);
bool calm_spend(struct calm *, enum calm_kind, int64_t now); /* false: enough */
void calm_earn(struct calm *, size_t bytes);                 /* were sent */

/* ---- h2.c: HTTP/2 sessions ----------------------------------------------- */

struct h2_user { /* whoever has a session */
    struct weir *weir;
    /* Server role: a request has come on a stream; false: nobody can serve it.
     * He gives the stream back. */
    bool (*begin)(void *arg, struct stream *, struct fibers *);
    /* Client role: an ALTSVC frame; origin empty: that of a request.  NULL:
     * nobody wants to know. */
    void (*altsvc)(void *arg, struct span origin, struct span value);
    void *arg;
    uint64_t id; /* for the log; 0: none */
};
enum {
    H2_GAPS = 8,           /* in the clients' identifiers, remembered */
    H2_CONTINUATIONS = 16, /* of one header block */
};

struct h2_gap { /* identifiers that the client passed over */
    int32_t after, before;
};

struct h2 {
    struct hub hub;
    struct fibers fibers; /* server role: serve those streams that can be */
    /* set by h2_new(), then only read */
    struct end *end;
    enum side side; /* whom we speak with */
    struct h2_user user;
    int idle_ms, head_ms, stall_ms;
    size_t max_streams;
    /* the owner's alone */
    struct nghttp2_session *ng;
    struct section section; /* the header block that is coming */
    struct stream *all, *fresh, *held;
    struct store out; /* frames not yet sent */
    struct calm calm;
    int64_t now, tick_at, blocked_at, block_from, heard_at, ping_at, idle_from;
    uint64_t n_asked, n_acked; /* server role: PINGs behind early answers */
    bool early;        /* there may be such an answer that none was sent for */
    uint32_t code;     /* the session shall end with it */
    const char *cause; /* why; NULL: it goes on */
    bool said_goodbye;
    bool quiet; /* poll(2) has just said that there is nothing to read */
    int n_continuations, n_refused;
    int32_t last_id;
    struct h2_gap gaps[H2_GAPS]; /* the last ones */
    size_t n_gaps;
    uint64_t n_served, trim_at;
    /* needs hub.lock */
    pthread_cond_t settled;
    bool settings_seen, extended, leaving, stop;
    atomic_size_t peer_max;
    bool used;
};

struct h2 *h2_new(struct end *, enum side, const struct config *,
                  const struct h2_user *);
void h2_free(struct h2 *);
/* Own the session until it is over, or has been idle for linger_ms.
 * WHY_NONE: idle, may be called again; WHY_EOF: it ended well. */
enum why h2_run(struct h2 *, int linger_ms, struct fail *);
void h2_goodbye(struct h2 *); /* GOAWAY, if it can be sent without waiting */
uint64_t h2_served(const struct h2 *); /* streams that have been */
/* Client role; any thread.  A stream not yet opened; NULL: no room, or it
 * takes no more. */
struct stream *h2_open(struct h2 *, bool *used);
int h2_extended(struct h2 *, int64_t until); /* 1: yes, 0: no, -1: over */
void h2_stop(struct h2 *);                   /* end it, from any thread */
/* For its other rooms; the owner's. */
const char *h2_code_text(int code);
/* It shall end. */
int h2_give_up(struct h2 *, uint32_t code, const char *cause);
int h2_spend(struct h2 *, enum calm_kind, const char *cause);
void h2_add(struct h2 *, struct stream *);
void h2_let_go(struct h2 *, struct stream *);
void h2_reset(struct h2 *, struct stream *, uint32_t code);
struct stream *h2_stream_at(struct h2 *, int32_t id);
void h2_refuse(struct h2 *, int32_t id, uint32_t code);
void h2_leave(struct h2 *); /* no more streams are opened on it */

/* ---- h2read.c: what comes on a session ----------------------------------- */

struct nghttp2_session_callbacks;
void h2read_callbacks(struct nghttp2_session_callbacks *);

/* ---- h2write.c: what goes ------------------------------------------------ */

void h2write_callbacks(struct nghttp2_session_callbacks *);
void h2_serve_calls(struct h2 *);
void h2_serve_call(struct h2 *, struct stream *, const struct call *);
void h2_let_held_go(struct h2 *); /* the origin has given a sign of life */
/* Answers that are complete before their requests. */
bool h2_is_early(const struct h2 *, const struct stream *);
void h2_ask_early(struct h2 *);
void h2_take_ack(struct h2 *, const uint8_t data[8]);

/* ---- quic.c: one QUIC connection, in either role ------------------------- */

/* Its user.  Called back in quic_feed(), quic_expire() and quic_write(), by
 * their thread.  Those that answer may answer false, having called
 * quic_end(): the connection ends. */
struct quic_user {
    void *arg;
    /* Server: whom the client wants; the leaf is given back.  0, or an alert
     * (RFC 8446 section 6). */
    int (*hello)(void *arg, const struct hello *, struct leaf **);
    /* Client: is the peer who he should be? */
    enum why (*verify)(void *arg, gnutls_session_t, struct fail *);
    bool (*ready)(void *arg);     /* streams may be opened: now, or never */
    void (*confirmed)(void *arg); /* the handshake is complete */
    bool (*data)(void *arg, int64_t id, const void *at, size_t len, bool fin);
    void (*acked)(void *arg, int64_t id, size_t len);
    /* The peer sends no more of it, though it has not finished. */
    bool (*cut_off)(void *arg, int64_t id, uint64_t code);
    void (*closed)(void *arg, int64_t id, uint64_t code); /* forget it */
    void (*room)(void *arg, int64_t id); /* it may be written again */
    void (*gram)(void *arg, const void *at, size_t len);
    /* What next?  Fills in iov, *id and *fin; n < 0: quic_end() was called;
     * *id < 0: nothing. */
    int (*next)(void *arg, int64_t *id, bool *fin, struct iovec *, int max);
    /* len bytes of it went out (fin: and the end), or: it was not wanted, for
     * want of room, or for ever. */
    void (*wrote)(void *arg, int64_t id, size_t len, bool fin);
    void (*blocked)(void *arg, int64_t id);
    void (*unwanted)(void *arg, int64_t id);
    /* The next datagram that goes out, in the same way; false: none. */
    bool (*next_gram)(void *arg, struct span *);
    void (*wrote_gram)(void *arg, bool sent);
};
struct quic_conf {
    int idle_ms, handshake_ms, rtt_ms; /* rtt_ms: what to assume at first */
    size_t streams;                    /* that the peer may open */
    size_t stream_window, window;
    bool tunnelled; /* what fits is to be found out, not known */
};
struct quic *quic_accept(struct wire *, gnutls_session_t,
                         const struct quic_conf *, const struct quic_user *);
struct quic *quic_connect(int fd, gnutls_session_t, const struct quic_conf *,
                          const struct quic_user *);
void quic_free(struct quic *); /* takes the TLS session along */
enum why quic_feed(struct quic *, const struct quic_path *, const void *,
                   size_t len, struct fail *);
enum why quic_expire(struct quic *, struct fail *); /* if its time has come */
enum why quic_write(struct quic *, struct fail *);
int64_t quic_until_us(const struct quic *); /* when to quic_expire() */
void quic_rest(struct quic *);              /* buffers go back */
void quic_end(struct quic *, uint64_t code, const char *cause);
void quic_hush(struct quic *);
void quic_goodbye(struct quic *); /* the peer is told of quic_end(), once */
bool quic_open(struct quic *, bool both_ways, int64_t *id); /* false: wait */
void quic_stop(struct quic *, int64_t id, uint64_t code);   /* reading */
void quic_cut(struct quic *, int64_t id, uint64_t code);    /* writing */
void quic_credit(struct quic *, int64_t id, size_t len); /* id < 0: of none */
void quic_credit_streams(struct quic *, size_t n);
size_t quic_streams_left(const struct quic *); /* that we may open */
void quic_keep_alive(struct quic *, int ms);   /* 0: do not */
size_t quic_gram_max(const struct quic *);     /* 0: the peer takes none */
bool quic_is_ready(const struct quic *);       /* the handshake is complete */
gnutls_session_t quic_session(const struct quic *);
struct leaf *quic_leaf(gnutls_session_t); /* for mitm.c */
struct quic_bytes {                       /* of UDP payload */
    uint64_t in, out;
};
struct quic_bytes quic_bytes(const struct quic *);

/* ---- h3.c: HTTP/3 sessions ----------------------------------------------- */

struct h3_user { /* whoever has a session */
    struct weir *weir;
    void *arg;
    /* Server role, as in struct h2_user and struct quic_user. */
    bool (*begin)(void *arg, struct stream *, struct fibers *);
    int (*hello)(void *arg, const struct hello *, struct leaf **);
    /* Client role, as in struct quic_user. */
    enum why (*verify)(void *arg, gnutls_session_t, struct fail *);
    uint64_t id; /* for the log; 0: none */
};
struct lane { /* what the owner keeps of a request's stream */
    int64_t id;
    struct stream *s;        /* NULL: no complete head has come, or nobody
                                wants it */
    struct section *section; /* that is coming; NULL: none is */
    struct head *tail;       /* has come; the end has not */
    struct chunk *sent, *last_sent;
    size_t unacked;   /* bytes of sent */
    bool choked;      /* too many: the library shall not ask */
    bool stopped;     /* the peer was asked to send no more */
    int64_t begun_at; /* ms */
    struct lane *next, *prev;
};

struct lanes { /* all of a session */
    struct lane *first;
    struct section *spare; /* memory for the next head; NULL: none */
    size_t max_bytes, max_fields;
};

enum {
    H3_GRAM_MAX = 1500,    /* bytes of a datagram with its stream's number */
    H3_SETTINGS_MAX = 256, /* bytes of an origin's first frame */
};

struct nghttp3_conn;
struct nghttp3_callbacks;

struct h3_own {         /* a stream that is the peer's alone (h3control.c) */
    uint8_t type[8], n; /* how it begins */
    bool known;         /* its type is whole */
};

struct h3_frame {             /* the one of the control stream that is coming */
    uint8_t head[16], n_head; /* its type and length, until they are whole */
    uint64_t left;            /* of its payload */
    bool any;                 /* there was one before */
    bool dropped;             /* the library does not get it */
    uint8_t element[8], n_element;
};

struct h3 {
    struct hub hub;
    struct fibers fibers; /* server role: serve those streams that can be */
    /* set at the beginning, then only read */
    enum side side; /* whom we speak with */
    struct h3_user user;
    struct wire *wire; /* server role */
    int fd;            /* client role: quic's */
    int idle_ms, head_ms, stall_ms, alive_ms;
    size_t max_streams;
    /* the owner's alone */
    struct quic *quic;
    struct nghttp3_conn *ng;
    struct stream *all, *fresh, *held;
    struct lanes lanes;
    struct lane *resume; /* the library may ask it again */
    struct store in, grams;
    char *buf; /* client role: READ_MAX bytes of datagrams */
    char gram[H3_GRAM_MAX];
    struct stream *gram_to;         /* who got the last one */
    char settings[H3_SETTINGS_MAX]; /* client role: how the peer's control
                                    stream begins */
    size_t n_settings;
    bool takes_connect; /* what they say */
    struct h3_own own[QUIC_OWN_MAX];
    struct h3_frame frame;
    struct calm calm;
    int64_t now, tick_at, idle_from, control_id;
    bool said_goodbye, shut, kept_alive, peer_grams;
    bool useful;      /* something came of what is being read */
    size_t n_useless; /* bytes in a row of which nothing came */
    int n_refusals;   /* in a row */
    size_t gram_max, n_credit;
    size_t n_open; /* of all */
    uint64_t n_served, trim_at;
    /* needs hub.lock */
    pthread_cond_t settled;
    bool settings_seen, extended, ready, leaving, used;
    struct fail failed; /* client role: before it was ready */
    size_t peer_max;
    /* any thread */
    atomic_bool stop;
};
struct h3 *h3_accept(struct wire *, const struct config *,
                     const struct h3_user *);
/* fd: a connected UDP socket, non-blocking; it and the TLS session (of
 * secure_quic()) are the session's, also on failure. */
struct h3 *h3_connect(int fd, gnutls_session_t, const struct config *,
                      const struct h3_user *);
void h3_free(struct h3 *);
/* As h2_run(); WHY_NONE: it rests until h3_wake_fd() is readable or
 * h3_until() has come, then it has to be run again. */
enum why h3_run(struct h3 *, int linger_ms, struct fail *);
int h3_wake_fd(const struct h3 *);
int64_t h3_until(const struct h3 *); /* ms */
bool h3_is_idle(const struct h3 *);  /* at rest: no stream is open */
void h3_goodbye(struct h3 *);        /* at rest: tell the peer that it ends */
uint64_t h3_served(const struct h3 *);
struct quic_bytes h3_bytes(const struct h3 *);
gnutls_session_t h3_session(const struct h3 *); /* for its ticket */
/* Client role; any thread.  As for HTTP/2; h3_ready(): WHY_NONE once the
 * handshake is complete and the peer verified, WHY_LATE at `until`, or what
 * went wrong. */
enum why h3_ready(struct h3 *, int64_t until, struct fail *);
struct stream *h3_open(struct h3 *, bool *used);
int h3_extended(struct h3 *, int64_t until);
void h3_stop(struct h3 *);

/* For its other rooms; the owner's. */
int h3_give_up(struct h3 *, uint64_t code, const char *cause);
int h3_no_memory(struct h3 *);
bool h3_judge(struct h3 *, int rc);
int h3_spend(struct h3 *, enum calm_kind, int n, const char *cause);
const char *h3_code_text(int code);
void h3_add(struct h3 *, struct stream *);
void h3_let_go(struct h3 *, struct stream *);
void h3_stream_over(struct h3 *);
void h3_stop_reading(struct h3 *, int64_t id, uint64_t code);
void h3_reset(struct h3 *, int64_t id, uint64_t code);
void h3_leave(struct h3 *);

/* ---- h3in.c: what comes on a session ------------------------------------- */

void h3_in(struct nghttp3_callbacks *, struct quic_user *);
enum why h3_receive(struct h3 *, struct fail *);

/* ---- h3control.c: the streams that are the peer's alone ------------------ */

bool h3_read_own(struct h3 *, int64_t id, const uint8_t *, size_t len,
                 bool fin);

/* ---- h3out.c: what goes -------------------------------------------------- */

void h3_out(struct nghttp3_callbacks *, struct quic_user *);
void h3_serve(struct h3 *, struct stream *);
void h3_serve_calls(struct h3 *);
void h3_let_held_go(struct h3 *);

/* ---- lane.c: what the owner of an HTTP/3 session keeps of a stream ------- */

struct lane *lane_new(struct lanes *, int64_t id, int64_t now);
struct lane *lane_find(const struct lanes *, int64_t id);
void lane_free(struct lanes *, struct lane *);
bool lane_begin(struct lanes *, struct lane *);
void lane_end(struct lanes *, struct lane *);
void lanes_rest(struct lanes *);
bool lane_take(struct lane *, struct span *);
void lane_acked(struct lane *, size_t len);

/* ---- demux.c: datagrams to QUIC connections ------------------------------ */

struct demux *demux_new(const struct demux_user *);
/* What has come: len bytes, datagrams of `segment` bytes, the last one shorter.
 * One thread at a time. */
void demux_put(struct demux *, const struct quic_path *, const void *at,
               size_t len, size_t segment);
/* No more will come: the connections end, the caller's reference is gone. */
void demux_end(struct demux *);
size_t demux_live(struct demux *); /* connections */

/* A connection's side of it: its owner's. */
bool wire_tunnelled(const struct wire *);   /* are its datagrams in a tunnel? */
void wire_own(struct wire *, struct hub *); /* NULL: nobody owns it any more */
const struct quic_birth *wire_birth(const struct wire *);
bool wire_read(struct wire *, struct store *); /* swapped in; see wire_next() */
bool wire_next(struct store *, struct quic_path *, struct span *,
               size_t *segment);
void wire_send(struct wire *, const struct quic_path *, const void *,
               size_t len, size_t segment);
bool wire_name(struct wire *, struct quic_cid *, uint8_t reset[16]); /* a new */
void wire_unname(struct wire *, const struct quic_cid *);
size_t wire_token(struct wire *, const struct quic_path *,
                  uint8_t out[QUIC_TOKEN_MAX]); /* for its next connection */
void wire_settled(struct wire *);               /* the handshake is complete */
bool wire_news(struct wire *); /* is something to be read, or to end? */
void wire_stop(struct wire *); /* any thread: its owner shall end it */
bool wire_stopped(struct wire *);
void wire_refuse(struct wire *); /* nobody will own it: tell the peer */
void wire_free(struct wire *);

/* ---- quicport.c: the UDP sockets of the listeners ------------------------ */

struct quic_port;
/* fd: bound, non-blocking; the port's.  NULL: errno. */
struct quic_port *quic_port_new(struct weir *, int fd);
bool quic_port_start(struct quic_port *);
void quic_port_free(struct quic_port *);     /* no connection is left */
bool quic_socket_set_up(int fd, int family); /* before bind(2); false: errno */
/* What a socket has, without waiting: at most len bytes of datagrams that are
 * all `segment` long but the last.  -1: errno. */
ssize_t quic_receive(int fd, void *at, size_t len, struct quic_path *,
                     size_t *segment);
void quic_send(int fd, const struct quic_path *, bool connected, const void *,
               size_t len, size_t segment);

/* ---- acl.c: who may use weir, and where to ------------------------------- */

bool access_login(const struct config *, struct span user, struct span pass);
const char *access_client(const struct config *, const struct sockaddr *);
enum access {                 /* what is known of a target */
              ACCESS_GRANTED, /* nothing is left to be asked: a parent, say */
              ACCESS_BY_NAME, /* its name may be reached, its addresses not if
                                 denied */
              ACCESS_BY_ADDRESS, /* only the addresses that are allowed */
};
const char *access_rule(const struct config *, const char *host, uint16_t port,
                        enum access *); /* NULL: it may be reached */
enum why access_target(const struct client *, const char *host, uint16_t port,
                       enum access *, struct fail *);
bool access_address(const struct client *, const struct sockaddr *, enum access,
                    const char **rule);
enum why access_denied(const struct client *, const char *target, uint16_t port,
                       const char *rule, struct fail *);
/* May this request be made?  Its Proxy-Authorization is looked at. */
enum why access_request(const struct client *, const struct head *,
                        bool ourselves, struct fail *);

/* ---- socks.c: SOCKS 4, 4a and 5 ------------------------------------------ */

enum why socks_parse(const struct socks *, const char *raw, size_t len,
                     size_t *used, struct socks_said *, struct socks *next);
enum why socks_listen(struct socks *, struct end *, const struct client *,
                      struct fail *); /* WHY_MORE: read on, call again */
enum why socks_answer(const struct socks *, struct end *, enum socks_code,
                      const struct sockaddr *bound, struct fail *);
enum socks_code socks_code(const struct fail *);
enum why socks_parse_datagram(const char *raw, size_t len,
                              char host[HOST_MAX + 1], uint16_t *port,
                              size_t *used);
size_t socks_put_datagram(char out[22], const struct sockaddr *from);
enum why socks_ask(struct end *, const struct origin *, const struct parent *,
                   bool *spoke, struct fail *); /* as a client */

/* ---- capsule.c: the capsule protocol, and QUIC's integers ---------------- */

enum {
    VARINT_MAX = 8,    /* bytes of an integer (RFC 9000 section 16) */
    CAPSULE_HEAD = 16, /* bytes of a type and a length */
    CAPSULE_DATAGRAM = 0,
    UDP_MAX = 65527,                    /* bytes of content in a UDP packet */
    CAPSULE_MAX = UDP_MAX + VARINT_MAX, /* with its context in front */
};

struct capsules { /* a stream of them, being read */
    char head[CAPSULE_HEAD];
    size_t n_head;         /* of a type and length that are not complete */
    bool inside;           /* behind them */
    bool skip;             /* too long: its first bytes were handed out */
    uint64_t type, length; /* of the capsule that is coming */
    uint64_t left;         /* bytes of its value still to come */
    char *value;           /* of a datagram that comes in pieces */
    size_t n_value;
};
size_t varint_parse(const char *raw, size_t len, uint64_t *n); /* 0: more */
size_t varint_put(char out[VARINT_MAX], uint64_t n);
enum why capsule_parse(struct capsules *, const char *raw, size_t len,
                       size_t *used, struct span *value);
bool capsule_between(const struct capsules *); /* may the stream end here? */
size_t capsule_put_datagram(char out[CAPSULE_HEAD], size_t len);
void capsules_clear(struct capsules *);

/* ---- udp.c: the UDP associations of SOCKS 5 ------------------------------ */

struct udp_result { /* bytes */
    uint64_t up, down;
};
enum why udp_relay(const struct client *, struct end *control,
                   const struct socks *, struct udp_result *, struct fail *);

/* ---- initial.c: the ClientHello in a QUIC client's first packets --------- */

struct initial;
struct initial *initial_new(void); /* NULL: no memory */
void initial_free(struct initial *);
enum why initial_read(struct initial *, const void *datagram, size_t len,
                      struct hello *); /* WHY_MORE: another one is needed */

/* ---- nested.c: QUIC inside of a tunnel for datagrams --------------------- */

struct nested;
struct nested_user {
    void (*send)(void *arg, const void *, size_t len); /* to the client */
    void (*pass)(void *arg, const void *, size_t len); /* on to the target */
    void *arg;
};
struct nested *nested_new(const struct client *, const struct origin *target,
                          const struct nested_user *);      /* NULL: opaque */
bool nested_put(struct nested *, const void *, size_t len); /* false: opaque */
bool nested_taken(const struct nested *);
void nested_free(struct nested *);

/* ---- lots.c: packets on a connected UDP socket, many at once ------------- */

enum { LOT_MAX = 64 }; /* packets of a lot */
struct traffic {
    uint64_t bytes, packets, dropped;
};
struct lots; /* what was received */
struct lots *lots_new(void);
void lots_free(struct lots *);
void lots_set_up(int fd);
/* 0, or the errno after which no packet will pass. */
int lots_send(int fd, struct iovec *, int n, atomic_bool *single,
              struct traffic *);
int lots_receive(int fd, struct lots *, struct traffic *);
bool lots_next(struct lots *, char **at, size_t *len);

/* ---- masque.c: UDP through HTTP (connect-udp) ---------------------------- */

struct masque; /* a tunnel for datagrams */
bool masque_wanted(const struct client *, struct head *req); /* by this? */
bool masque_target(struct span path, char host[HOST_MAX + 1], uint16_t *port);
struct masque *masque_open(struct client *, struct head *req, struct fail *);
void masque_free(struct masque *);
enum why masque_answer(struct http *down, struct head *res, struct fail *);
void masque_run(struct masque *, struct worker *, struct tunnel_side client,
                struct stream *); /* HTTP/3's; else NULL */

/* ---- ca.c: our certificate authority, on disk ---------------------------- */

struct ca {    /* never changes once made */
    char *dir; /* where it lives */
    gnutls_x509_crt_t crt;
    gnutls_privkey_t key;
    gnutls_datum_t pem, der; /* of crt */
};
struct ca *ca_new(const char *dir, char *err, size_t cap); /* NULL: ~/.weir */
void ca_free(struct ca *);
int ca_crt_begin(gnutls_x509_crt_t, gnutls_pubkey_t, time_t until);

/* ---- leaf.c: certificates for the names we answer for -------------------- */

struct leaf;   /* one certificate with its chain */
struct leaves; /* all of them */
struct gnutls_pcert_st;
struct leaves *leaves_new(const struct ca *, int days, size_t max, char *err,
                          size_t cap);
void leaves_free(struct leaves *);
enum why leaf_take(struct leaves *, const char *name, const struct names *,
                   int64_t deadline, struct leaf **, struct fail *);
void leaf_give(struct leaves *, struct leaf *);
void leaf_show(struct leaf *, struct gnutls_pcert_st **chain, unsigned *n,
               gnutls_privkey_t *);
size_t leaves_count(struct leaves *);    /* kept now */
uint64_t leaves_minted(struct leaves *); /* made since the start */

/* ---- hello.c: what a ClientHello says ------------------------------------ */

enum why hello_parse(const void *raw, size_t len, struct hello *);
bool hello_extension(struct hello *, unsigned type, const void *, size_t len);
enum why hello_read(struct end *, int64_t deadline, struct hello *,
                    struct fail *); /* consumes nothing */

/* ---- mitm.c: who is intercepted, and TLS towards him --------------------- */

struct mitm *mitm_new(const struct config *, char *err, size_t cap);
void mitm_free(struct mitm *);
const char *mitm_dir(const struct mitm *);
struct span mitm_ca_pem(const struct mitm *), mitm_ca_der(const struct mitm *);
bool mitm_wants(const struct config *, const char *host, uint16_t port);
enum why mitm_accept(struct mitm *, struct end *, const char *name,
                     const struct names *, unsigned alpn, int64_t deadline,
                     struct fail *); /* TLS server on end as `name` */
/* A server's session for QUIC, which asks quic_leaf(); 0 or a GnuTLS code. */
int mitm_quic(struct mitm *, gnutls_session_t *);
struct leaves *mitm_leaves(struct mitm *);
/* Bytes that only we know and that stay the same as long as the CA does. */
bool mitm_secret(const struct mitm *, const char *label, uint8_t out[32]);

/* ---- dns.c: names to addresses ------------------------------------------- */

struct address {
    struct sockaddr_storage at;
    socklen_t len;
};
enum why dns_lookup(const char *host, uint16_t port, int dns_ms,
                    struct address *out, size_t cap, size_t *n, struct fail *);
void dns_forget(void); /* names are asked for anew */
void dns_stop(void);   /* at exit: nobody asks any more */

struct addrinfo;
struct resolver { /* the C library's, unless a test puts its own here */
    int (*ask)(const char *name, const char *service,
               const struct addrinfo *hints, struct addrinfo **);
    void (*done)(struct addrinfo *);
};
extern struct resolver dns_resolver; /* set before the first lookup */

/* ---- dial.c: host and port -> connected socket --------------------------- */

enum { DIAL_MAX = 8 }; /* addresses tried for one name */
enum why dial(const struct client *, const char *host, uint16_t port,
              enum access, int *fd, char addr[ADDR_MAX], struct clock_marks *,
              struct fail *);
enum why dial_watched(const struct client *, const char *host, uint16_t port,
                      enum access, const struct watch *, int *fd,
                      char addr[ADDR_MAX], struct clock_marks *, struct fail *);
enum why dial_addresses(const struct client *, const char *host, uint16_t port,
                        enum access, struct address[DIAL_MAX], size_t *n,
                        struct clock_marks *, struct fail *);
enum why dial_udp_at(const struct address *, bool quic, int *fd,
                     char addr[ADDR_MAX], struct fail *);
enum why dial_udp(const struct client *, const char *host, uint16_t port,
                  enum access, int *fd, char addr[ADDR_MAX],
                  struct clock_marks *, struct fail *);
void dial_udp_order(struct address *, size_t n); /* nobody's go last */
bool dial_is_ours(const struct client *, const struct address *);
void dial_override(const struct config *, const char **host, uint16_t *port);
void address_text(const struct sockaddr *, char out[ADDR_MAX]);
uint16_t address_port(const struct sockaddr_storage *);

/* ---- breaker.c: origins that cannot be connected to ---------------------- */

struct breaker *breaker_new(void);
void breaker_free(struct breaker *);
enum why breaker_ask(struct breaker *, const char *host, uint16_t port,
                     bool *trial, struct fail *);
void breaker_tell(struct breaker *, const char *host, uint16_t port, bool trial,
                  const struct fail *, uint64_t conn);

/* ---- altsvc.c: which origins speak HTTP/3 -------------------------------- */

struct altsvc {              /* where an origin says that it speaks HTTP/3 */
    char host[HOST_MAX + 1]; /* "": its own */
    uint16_t port;
    int64_t ma_s; /* for how long that is to be believed */
    bool persist; /* also behind another network */
};
enum altsvc_said { ALTSVC_WRONG, ALTSVC_NONE, ALTSVC_H3 };
enum altsvc_said altsvc_parse(struct span value, struct altsvc *);
struct altsvcs; /* what is remembered; now: ms */
struct altsvcs *altsvcs_new(void);
void altsvcs_free(struct altsvcs *);
void altsvc_learn(struct altsvcs *, const struct origin *, struct span value,
                  uint64_t age_s, int64_t now);
void altsvc_forget(struct altsvcs *, const struct origin *);
bool altsvc_find(struct altsvcs *, const struct origin *, int64_t now,
                 struct altsvc *);
bool altsvc_is_broken(struct altsvcs *, const struct origin *, int64_t now,
                      struct fail *last);
int64_t altsvc_failed(struct altsvcs *, const struct origin *,
                      const struct fail *, int64_t now);
void altsvc_worked(struct altsvcs *, const struct origin *);

/* ---- parent.c: ways out through other proxies ---------------------------- */

struct parent *parent_parse(const char *text); /* NULL: malformed */
struct parent *parent_take(struct parent *);
void parent_give(struct parent *);
bool parent_same(const struct parent *, const struct parent *);
bool ways_add(struct ways *, struct parent *);
void ways_clear(struct ways *);
bool ways_env(struct env_ways *, char *err, size_t cap);
bool no_proxy_add(struct match *, const char *text, char *err, size_t cap);
size_t parent_choose(const struct config *, const struct origin *,
                     struct parent *out[WAYS_MAX]); /* NULL: directly */
void parent_judge(struct parent *, const struct fail *, uint64_t conn);
bool parent_is_direct(const struct config *, const struct origin *);
bool parent_absolute(const struct parent *, const struct origin *);
struct span parent_credentials(const struct client *, const struct parent *);

/* ---- through.c: a way through a parent ----------------------------------- */

struct secure;
struct sessions;
extern const struct origin parent_itself; /* for sessions with it */
enum why through_open(const struct client *, struct secure *, struct sessions *,
                      struct upstream *, bool *again, struct fail *);

/* ---- bridge.c: a stream of a session, made an end ------------------------ */

enum why bridge_stream(struct stream *, struct end *, int idle_ms,
                       struct fail *);

/* ---- secure.c: TLS to origins, and what is remembered of them ------------ */

struct secure; /* trust, resumption data, remembered origins */
struct secure *secure_new(const struct config *, char *err, size_t cap);
void secure_free(struct secure *);
bool secure_reload(struct secure *, const struct config *, char *err,
                   size_t cap); /* the CAs */
enum why secure_connect(struct secure *, const struct client *,
                        struct upstream *, unsigned alpn, struct fail *);
enum why secure_parent(struct secure *, const struct client *, struct end *,
                       const struct parent *, struct fail *);
void secure_save_ticket(struct secure *, struct upstream *);
bool secure_known(struct secure *, const struct origin *, struct known *);
int secure_alpn(struct secure *, const struct origin *); /* -1: not known */
/* The same for QUIC: a client's session with a ticket, for quic_connect(); is
 * the peer who he should be; what may be remembered when it ends.  up: origin
 * set; insecure is set by the first. */
enum why secure_quic(struct secure *, const struct client *, struct upstream *,
                     gnutls_session_t *, struct fail *);
enum why secure_quic_verify(struct secure *, struct upstream *,
                            gnutls_session_t, struct fail *);
void secure_quic_save(struct secure *, struct upstream *, gnutls_session_t);
const char *cert_text(int status); /* why a certificate was refused */

/* ---- upstream.c: target -> connected, ready origin ----------------------- */

struct upstreams *upstreams_new(const struct config *, char *err, size_t cap);
void upstreams_free(struct upstreams *);
bool upstreams_reload(struct upstreams *, const struct config *, char *err,
                      size_t cap);
void upstreams_reap(struct upstreams *,
                    const struct config *); /* once a second: closes the old */

/* A connected way, bare: nothing was said on it yet. */
struct upstream *upstream_dial(const struct client *, const struct origin *,
                               struct fail *);
/* TLS on a bare way to an https origin, and the codec to speak on. */
enum why upstream_ready(const struct client *, struct upstream *, unsigned alpn,
                        struct fail *);
/* A way to speak HTTP on: reused (unless fresh), or dialled and made ready. */
struct upstream *upstream_take(const struct client *, const struct origin *,
                               struct span upgrade, bool fresh, struct fail *);
/* Can this way carry a request with that upgrade?  Empty: none. */
bool upstream_serves(const struct upstream *, struct span upgrade);
void upstream_give(const struct client *, struct upstream *); /* for reuse */
struct tunnel_side upstream_side(struct upstream *);          /* after a 101 */
bool upstream_alive(struct upstream *); /* idle, and fit for an exchange? */
void upstream_free(struct upstream *);  /* closes; NULL: nothing */
/* Is there an idle one, or another way than a new one over TCP? */
bool upstream_reaches(const struct client *, const struct origin *);
/* Is there an idle one? */
bool upstream_has(const struct client *, const struct origin *);
bool upstream_known(const struct client *, const struct origin *,
                    struct known *);
/* Shall upstream_take() be asked, even if a bare way over TCP is at hand? */
bool upstream_tries_quic(const struct client *, const struct origin *,
                         struct span upgrade);
void upstream_learn(const struct client *, const struct upstream *,
                    struct head *); /* of an answer: its Alt-Svc */
bool origin_same(const struct origin *, const struct origin *);
/* Can this way serve that origin, as the settings are now? */
bool upstream_fits(const struct client *, const struct upstream *,
                   const struct origin *);
/* A way's parent answered (f NULL), or broke off before it did. */
void upstream_judge(const struct client *, struct upstream *,
                    const struct fail *);
/* Keep of a proxy request, in c->told, what a parent has to be told. */
void upstream_note_request(struct client *, const struct head *);
struct told *told_copy(const struct told *); /* the caller's to free() */

/* ---- session.c: HTTP/2 and 3 connections that exchanges share ------------ */

struct sessions;
struct dialling;
struct sessions *sessions_new(struct secure *, struct altsvcs *);
void sessions_free(struct sessions *);
void sessions_reap(struct sessions *);
enum why session_start(struct sessions *, const struct client *,
                       struct upstream *, struct fail *);
enum why session_start_quic(struct sessions *, const struct client *,
                            struct upstream *, int fd, struct fail *);
enum why session_ready(const struct upstream *, int64_t until, struct fail *);
void session_failed(struct sessions *, const struct origin *,
                    const struct fail *); /* in HTTP/3 */
bool session_take(struct sessions *, const struct client *,
                  const struct origin *, const struct parent *, enum version,
                  struct upstream *);
bool session_any(struct sessions *, const struct client *,
                 const struct origin *, const struct parent *, enum version);
bool session_extended(const struct upstream *);
bool session_is_quic(const struct upstream *);
struct dialling *sessions_turn(struct sessions *, const struct origin *,
                               const struct parent *, int64_t until);
void sessions_turned(struct sessions *, struct dialling *);

/* ---- tunnel.c: bytes both ways ------------------------------------------- */

void tunnel_run(struct worker *, const struct weir *, struct tunnel_side client,
                struct tunnel_side server, int idle_ms, int half_closed_ms,
                struct tunnel_result *);
enum why side_write(struct tunnel_side *, struct iovec *, int n, struct fail *);
enum why side_finish(struct tunnel_side *, struct fail *);
void side_cut(struct tunnel_side *); /* the peer sees that bytes are missing */
void tunnel_log(const struct client *, const struct upstream *,
                const struct tunnel_result *, int64_t from_us);

/* ---- log.c: one event, one line, one write(2) ---------------------------- */

struct line { /* a line being written */
    char at[4096];
    size_t len;
    bool json;
    bool off; /* its level is not wanted: nothing is written */
    bool cut; /* something did not fit */
};
bool log_setup(const struct config *, char *err, size_t cap);
void log_reopen(void); /* SIGUSR1 */
bool log_on(enum level);
void log_begin(struct line *, enum level, const char *event, uint64_t conn);
void log_str(struct line *, const char *key, const char *value);
void log_span(struct line *, const char *key, struct span value);
void log_int(struct line *, const char *key, int64_t value);
/* As 1.234; a negative time is left out. */
void log_ms(struct line *, const char *key, int64_t us);
struct hop;
void log_hop(struct line *, const struct hop *);   /* parent= and its times */
void log_fail(struct line *, const struct fail *); /* why= by= op= error= */
void log_send(struct line *);
/* A whole line: event and free text; conn 0: none. */
void log_say(enum level, uint64_t conn, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
