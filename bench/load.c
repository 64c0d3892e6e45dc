/*
 * load.c - a load on a proxy, or on origin.c directly, and what came of it.
 *
 *   load KIND -p PORT [-x ENTRY -t PORT] [options]
 *
 * KIND    bulk: bytes one way or both;  ping: a few bytes there and back;
 *         http: requests;  hold: connections that stay idle until standard
 *         input ends;  slow: request heads, a byte each half second.
 * ENTRY   how -p leads to the target on port -t of 127.0.0.1: direct (there
 *         is nothing between, or nothing that wants to be asked), connect
 *         (RFC 9110 section 9.3.6), socks (RFC 1928), absolute (the target
 *         is in each request, RFC 9112 section 3.2.2).
 * Options -c connections at once; -s ms for new work; -n units at most;
 *         -r units a connection (0: no limit); -T server name: TLS inside,
 *         "%" in it is replaced by a number that counts up from -f; -a that
 *         name in CONNECT, too, in place of the address; -b bytes
 *         of an answer or a ping; -u bytes of a request's body; -d direction
 *         of bulk: down, up, both or echo.
 *
 * Prints one line: units (requests, pings, blocks), errors, opened
 * connections, bytes that arrived, seconds, median and 99th percentile of a
 * unit's time in microseconds.  Exit status 1 if nothing succeeded.
 *
 * Owns     its connections.
 * Threads  one, around one level-triggered epoll.
 * Blocks   until -s is over and what was begun has ended, GRACE_NS at most.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "wire.h"

#define MS 1000000LL /* in nanoseconds */

enum {
    HEAD_MAX = 4096,
    BLOCK = 1 << 20,   /* of bulk */
    AHEAD = 4,         /* blocks asked for and not yet there */
    RAMP = 64,         /* connections of hold that are being opened at once */
    ERRORS_MAX = 2000, /* then it is no measurement any more */
    SLOW_MS = 500,
};
static const int64_t GRACE_NS = 10000 * MS;

enum kind { BULK, PING, HTTP, HOLD, SLOW };
enum entry { DIRECT, CONNECT, SOCKS, ABSOLUTE };
static const char *const kinds[] = {"bulk", "ping", "http", "hold", "slow", 0};
static const char *const entries[] = {"direct", "connect", "socks", "absolute",
                                      0};

static struct {
    enum kind kind;
    enum entry entry;
    unsigned port, target, n_conns;
    int64_t ns;
    uint64_t units, per_conn, first_name;
    uint64_t answer, upload;
    char direction;
    bool by_name;
    const char *name;
} opt = {.n_conns = 1,
         .ns = 1000 * MS,
         .units = UINT64_MAX,
         .per_conn = 0,
         .answer = 64,
         .direction = 'd'};

enum step { BEGIN, ASKED, GREETED, SOCKED, SHAKING, RUNNING, HELD };

struct conn {
    struct wire w;
    enum step step;
    bool wants_out, closing;
    struct debt debt;
    uint64_t want;     /* bytes still to come, of a unit or of bulk */
    uint64_t n_units;  /* done on this connection */
    uint64_t n_blocks; /* of bulk, asked for */
    uint64_t number;   /* in its server name */
    int64_t from;      /* when the unit began */
    size_t n_head;
    char head[HEAD_MAX];
};

static struct conn *conns;
static int poll_fd;
static bool stdin_over;
static int64_t began, over_at, last_at;
static size_t n_alive, n_ready;
static uint64_t n_begun, n_units, n_errors, n_opened, n_names, n_bytes;
static gnutls_certificate_credentials_t cred;

/* ---- what came of it ----------------------------------------------------- */

enum { SUB = 256, N_TIMES = 56 * SUB }; /* so many steps a power of two */
static uint64_t times[N_TIMES], n_times;

static void
time_note(int64_t ns)
{
    uint64_t v = ns > SUB ? (uint64_t)ns : SUB;
    int shift = 63 - __builtin_clzll(v) - 8;

    times[(size_t)shift * SUB + (v >> shift) - SUB]++;
    n_times++;
}

static double
time_at(double part)
{
    uint64_t seen = 0, goal = (uint64_t)((double)n_times * part);

    for (size_t i = 0; i < N_TIMES; i++)
        if ((seen += times[i]) > goal)
            return (double)((i % SUB + SUB) << (i / SUB)) / 1000.0;
    return 0;
}

static void
report(void)
{
    printf("units=%" PRIu64 " errors=%" PRIu64 " opened=%" PRIu64
           " bytes=%" PRIu64 " s=%.4f p50_us=%.1f p99_us=%.1f\n",
           n_units, n_errors, n_opened, n_bytes,
           (double)(last_at - began) / 1e9, time_at(0.5), time_at(0.99));
}

static void
die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* ---- a connection's begin and end ---------------------------------------- */

static void
conn_watch(struct conn *c, int op)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};

    if (c->wants_out)
        e.events |= EPOLLOUT;
    if (epoll_ctl(poll_fd, op, c->w.fd, &e) != 0)
        die("epoll_ctl");
}

static bool
more_work(void)
{
    return wire_now_ns() < over_at && n_begun < opt.units &&
           n_errors < ERRORS_MAX && !stdin_over;
}

static void
conn_open(struct conn *c)
{
    memset(c, 0, offsetof(struct conn, head));
    c->w.fd = -1;
    if (!more_work() || !wire_connect(&c->w, (uint16_t)opt.port)) {
        if (c->w.wrong != NULL) {
            fprintf(stderr, "load: %s\n", c->w.wrong);
            n_errors++;
        }
        return;
    }
    if (opt.kind != BULK && opt.kind != HOLD)
        n_begun++;
    n_opened++;
    n_alive++;
    c->from = wire_now_ns();
    c->wants_out = true;
    conn_watch(c, EPOLL_CTL_ADD);
}

static void
conn_close(struct conn *c)
{
    wire_close(&c->w);
    n_alive--;
    if (opt.kind != BULK && opt.kind != HOLD)
        conn_open(c);
}

static bool
conn_fail(struct conn *c, const char *text)
{
    static int said;

    if (c->w.wrong == NULL)
        c->w.wrong = "";
    if (said++ < 3)
        fprintf(stderr, "load: step %d, %" PRIu64 " units done: %s %s\n",
                c->step, c->n_units, text, c->w.wrong);
    n_errors++;
    return false;
}

static void
say(struct conn *c, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(c->debt.text + c->debt.len, sizeof c->debt.text - c->debt.len,
                  fmt, ap);
    va_end(ap);
    c->debt.len += (size_t)n;
}

static void
say_command(struct conn *c, char letter, uint64_t n)
{
    wire_command(c->debt.text + c->debt.len, letter, n);
    c->debt.len += RAW_CMD;
}

/* ---- units --------------------------------------------------------------- */

static void
block_begin(struct conn *c)
{
    if (opt.direction == 'd' || opt.direction == 'b') {
        say_command(c, 'D', BLOCK);
        c->want += BLOCK;
    }
    if (opt.direction == 'd')
        return;
    say_command(c, opt.direction == 'e' ? 'E' : 'U', BLOCK);
    c->debt.xs = BLOCK;
    c->want += opt.direction == 'e' ? BLOCK : RAW_ACK;
}

/* Bulk keeps some blocks on their way until the time is over. */
static void
bulk_refill(struct conn *c)
{
    uint64_t ahead = opt.direction == 'u' ? (uint64_t)AHEAD * RAW_ACK
                                          : (uint64_t)AHEAD * BLOCK;

    while (!wire_owes(&c->debt) && c->want < ahead && more_work()) {
        block_begin(c);
        c->n_blocks++;
    }
}

/* The server name of this connection; without one, the address. */
static const char *
name_of(const struct conn *c)
{
    static char name[256];
    const char *mark = opt.name != NULL ? strchr(opt.name, '%') : NULL;

    if (mark == NULL)
        return opt.name != NULL ? opt.name : "127.0.0.1";
    snprintf(name, sizeof name, "%.*s%" PRIu64 "%s", (int)(mark - opt.name),
             opt.name, c->number, mark + 1);
    return name;
}

static void
http_begin(struct conn *c)
{
    if (opt.upload > 0)
        say(c, "POST ");
    else
        say(c, "GET ");
    if (opt.entry == ABSOLUTE)
        say(c, "http://127.0.0.1:%u", opt.target);
    say(c, "/%" PRIu64 " HTTP/1.1\r\nHost: %s:%u\r\nUser-Agent: load\r\n",
        opt.answer, name_of(c), opt.target);
    if (opt.upload > 0)
        say(c, "Content-Length: %" PRIu64 "\r\n", opt.upload);
    say(c, opt.kind == SLOW ? "X-Slow: " : "Accept: */*\r\n\r\n");
    c->debt.xs = opt.upload;
    c->n_head = 0;
}

static void
unit_begin(struct conn *c)
{
    if (opt.kind == BULK) {
        bulk_refill(c);
    } else if (opt.kind == HTTP || opt.kind == SLOW) {
        http_begin(c);
    } else {
        say_command(c, 'E', opt.answer);
        c->debt.xs = c->want = opt.answer;
    }
}

/* False: the connection has done its part. */
static bool
unit_end(struct conn *c)
{
    int64_t now = wire_now_ns();

    n_units++;
    c->n_units++;
    n_bytes += opt.answer + opt.upload;
    time_note(now - c->from);
    last_at = now;
    if (opt.kind == HOLD && c->step == RUNNING) {
        c->step = HELD;
        n_ready++;
        return true;
    }
    if (opt.kind == HOLD || c->closing || c->n_units == opt.per_conn ||
        !more_work())
        return false;
    n_begun++;
    c->from = now;
    unit_begin(c);
    return true;
}

static bool
bulk_input(struct conn *c, size_t n)
{
    if (n > c->want)
        return conn_fail(c, "more bytes than asked for");
    c->want -= n;
    last_at = wire_now_ns();
    bulk_refill(c);
    if (c->want > 0 || wire_owes(&c->debt))
        return true;
    n_units += c->n_blocks;
    n_bytes += c->n_blocks * BLOCK *
               (opt.direction == 'b' || opt.direction == 'e' ? 2 : 1);
    return false;
}

static bool
ping_input(struct conn *c, size_t n)
{
    if (n > c->want)
        return conn_fail(c, "more bytes than asked for");
    c->want -= n;
    return c->want > 0 || unit_end(c);
}

/* Takes a head's bytes into c->head; *used of them.  0: not yet complete. */
static size_t
head_input(struct conn *c, const char *at, size_t n, size_t *used)
{
    size_t had = c->n_head, room = HEAD_MAX - 1 - had;
    char *end;

    *used = n < room ? n : room;
    memcpy(c->head + had, at, *used);
    c->n_head += *used;
    c->head[c->n_head] = '\0';
    if ((end = strstr(c->head, "\r\n\r\n")) == NULL)
        return 0;
    *used = (size_t)(end + 4 - c->head) - had;
    end[2] = '\0';
    c->n_head = 0;
    return (size_t)(end + 4 - c->head);
}

static int
head_status(const char *head)
{
    return strncmp(head, "HTTP/1.", 7) == 0 ? atoi(head + 8) : 0;
}

/* After the answer's head, c->want counts its body, plus one: 0 means that
 * the head is still to come. */
static bool
http_input(struct conn *c, const char *at, size_t n)
{
    const char *length;
    size_t used;

    while (n > 0) {
        if (c->want == 0) {
            bool whole = head_input(c, at, n, &used) > 0;

            at += used;
            n -= used;
            if (!whole)
                return c->n_head < HEAD_MAX - 1 || conn_fail(c, "long head");
            if (head_status(c->head) != 200)
                return conn_fail(c, c->head);
            length = strcasestr(c->head, "\r\ncontent-length:");
            if (length == NULL || strtoull(length + 17, 0, 10) != opt.answer)
                return conn_fail(c, "answer of another length");
            c->closing = strcasestr(c->head, "\r\nconnection: close") != NULL;
            c->want = opt.answer + 1;
        }
        used = n < c->want - 1 ? n : (size_t)c->want - 1;
        at += used;
        n -= used;
        c->want -= used;
        if (c->want > 1)
            continue;
        c->want = 0;
        if (n > 0)
            return conn_fail(c, "bytes behind the answer");
        return unit_end(c);
    }
    return true;
}

/* ---- the way to the target ----------------------------------------------- */

static bool
shake_begin(struct conn *c)
{
    c->number = opt.first_name + n_names++;
    c->step = SHAKING;
    return wire_client_tls(&c->w, cred, name_of(c)) ||
           conn_fail(c, "TLS set-up");
}

static bool
shake(struct conn *c)
{
    ssize_t rc = wire_handshake(&c->w);

    if (rc == WIRE_AGAIN)
        return true;
    if (rc == WIRE_DEAD)
        return conn_fail(c, "handshake");
    c->step = RUNNING;
    unit_begin(c);
    return true;
}

static bool
way_ready(struct conn *c)
{
    c->n_head = 0;
    if (opt.name != NULL)
        return shake_begin(c) && shake(c);
    c->step = RUNNING;
    unit_begin(c);
    return true;
}

static bool
way_begin(struct conn *c)
{
    c->wants_out = true; /* so that the first event is told from later ones */
    if (opt.entry == CONNECT) {
        const char *host = opt.by_name ? name_of(c) : "127.0.0.1";

        say(c, "CONNECT %s:%u HTTP/1.1\r\nHost: %s:%u\r\n\r\n", host,
            opt.target, host, opt.target);
        c->step = ASKED;
        return true;
    }
    if (opt.entry == SOCKS) {
        memcpy(c->debt.text, "\5\1", c->debt.len = 3);
        c->step = GREETED;
        return true;
    }
    return way_ready(c);
}

static bool
asked_input(struct conn *c, const char *at, size_t n)
{
    size_t used;

    if (head_input(c, at, n, &used) == 0)
        return true;
    if (head_status(c->head) != 200)
        return conn_fail(c, c->head);
    return used == n ? way_ready(c) : conn_fail(c, "bytes behind the 200");
}

static bool
socks_input(struct conn *c, const char *at, size_t n)
{
    size_t need = c->step == GREETED ? 2 : 10;

    if (c->n_head + n > need)
        return conn_fail(c, "bytes behind the SOCKS answer");
    memcpy(c->head + c->n_head, at, n);
    if ((c->n_head += n) < need)
        return true;
    if (c->head[0] != 5 || c->head[1] != 0)
        return conn_fail(c, "refused by SOCKS");
    if (c->step == SOCKED)
        return way_ready(c);
    memcpy(c->debt.text, "\5\1\0\1\177\0\0\1", 8);
    c->debt.text[8] = (char)(opt.target >> 8);
    c->debt.text[9] = (char)opt.target;
    c->debt.len = 10;
    c->n_head = 0;
    c->step = SOCKED;
    return true;
}

/* ---- the loop ------------------------------------------------------------ */

static bool
conn_input(struct conn *c)
{
    ssize_t n = wire_read(&c->w, wire_in, sizeof wire_in);

    if (n == WIRE_AGAIN)
        return true;
    if (n <= 0 && opt.kind == SLOW)
        return false; /* it had its time */
    if (n <= 0)
        return conn_fail(c, n == WIRE_EOF ? "closed" : "broken");
    if (c->step == ASKED)
        return asked_input(c, wire_in, (size_t)n);
    if (c->step == GREETED || c->step == SOCKED)
        return socks_input(c, wire_in, (size_t)n);
    if (opt.kind == BULK)
        return bulk_input(c, (size_t)n);
    if (opt.kind == HTTP)
        return http_input(c, wire_in, (size_t)n);
    if (opt.kind == SLOW)
        return true; /* an answer; the end follows */
    return ping_input(c, (size_t)n);
}

static bool
conn_step(struct conn *c, uint32_t events)
{
    if (c->step == BEGIN)
        return events & (EPOLLERR | EPOLLHUP) ? conn_fail(c, "connect")
                                              : way_begin(c);
    if (c->step == SHAKING)
        return shake(c);
    if (events & ~(uint32_t)EPOLLOUT)
        return conn_input(c);
    return true;
}

static void
conn_event(struct conn *c, uint32_t events)
{
    bool good = conn_step(c, events);

    /* Bulk goes on writing while the socket takes it. */
    while (good && wire_owes(&c->debt)) {
        uint64_t before = c->debt.xs + c->debt.len;

        if (!wire_pay(&c->w, &c->debt)) {
            good = conn_fail(c, "write");
            break;
        }
        if (opt.kind == BULK && c->step == RUNNING)
            bulk_refill(c);
        if (opt.kind == BULK || c->debt.xs + c->debt.len == before)
            break;
    }
    if (!good) {
        conn_close(c);
        return;
    }
    if (wire_owes(&c->debt) != c->wants_out) {
        c->wants_out = !c->wants_out;
        conn_watch(c, EPOLL_CTL_MOD);
    }
}

static void
loop_once(int ms)
{
    struct epoll_event ready[256];
    int n = epoll_wait(poll_fd, ready, 256, ms);

    for (int i = 0; i < n; i++) {
        if (ready[i].data.ptr == NULL) {
            stdin_over = true;
            epoll_ctl(poll_fd, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
        } else {
            conn_event(ready[i].data.ptr, ready[i].events);
        }
    }
}

static void
run_load(void)
{
    for (size_t i = 0; i < opt.n_conns; i++)
        conn_open(&conns[i]);
    while (n_alive > 0 && wire_now_ns() < over_at + GRACE_NS)
        loop_once(1000);
    n_errors += n_alive; /* what did not come to its end in time */
}

static void
watch_stdin(void)
{
    struct epoll_event e = {.events = EPOLLIN};

    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &e) != 0)
        die("standard input must be a pipe");
}

/* Opened a few at a time: what is measured is not the backlog. */
static void
run_hold(void)
{
    size_t n = 0;

    watch_stdin();
    while (n_ready < opt.n_conns && n_errors == 0 && more_work()) {
        while (n < opt.n_conns && n - n_ready < RAMP)
            conn_open(&conns[n++]);
        loop_once(1000);
    }
    printf("ready=%zu\n", n_ready);
    fflush(stdout);
    while (!stdin_over && wire_now_ns() < over_at)
        loop_once(1000);
    n_units = n_bytes = 0; /* now count those that still work */
    for (size_t i = 0; i < n; i++)
        if (conns[i].step == HELD) {
            unit_begin(&conns[i]);
            conn_event(&conns[i], 0);
        }
    while (n_alive > 0 && wire_now_ns() < over_at + GRACE_NS)
        loop_once(1000);
}

static void
run_slow(void)
{
    int64_t next = began + SLOW_MS * MS;

    watch_stdin();
    for (size_t i = 0; i < opt.n_conns; i++)
        conn_open(&conns[i]);
    printf("ready=%u\n", opt.n_conns);
    fflush(stdout);
    while (!stdin_over && wire_now_ns() < over_at) {
        int64_t left = next - wire_now_ns();

        loop_once(left > 0 ? (int)(left / MS) + 1 : 0);
        if (wire_now_ns() < next)
            continue;
        next += SLOW_MS * MS;
        for (size_t i = 0; i < opt.n_conns; i++)
            if (conns[i].step == RUNNING && !wire_owes(&conns[i].debt)) {
                say(&conns[i], "x");
                conn_event(&conns[i], 0);
            }
        n_units++;
    }
}

/* ---- command line -------------------------------------------------------- */

static int
choice(const char *const *from, const char *text)
{
    for (int i = 0; from[i] != NULL; i++)
        if (strcmp(from[i], text) == 0)
            return i;
    fprintf(stderr, "load: what is \"%s\"? (see load.c)\n", text);
    exit(2);
}

static void
options(int argc, char **argv)
{
    int o;

    opt.kind = (enum kind)choice(kinds, argc > 1 ? argv[1] : "nothing");
    while ((o = getopt(argc - 1, argv + 1, "p:x:t:c:s:n:r:T:f:b:u:d:a")) !=
           -1) {
        uint64_t n = strtoull(optarg != NULL ? optarg : "0", NULL, 10);

        switch (o) {
        case 'p':
            opt.port = (unsigned)n;
            break;
        case 'x':
            opt.entry = (enum entry)choice(entries, optarg);
            break;
        case 't':
            opt.target = (unsigned)n;
            break;
        case 'c':
            opt.n_conns = (unsigned)n;
            break;
        case 's':
            opt.ns = (int64_t)n * MS;
            break;
        case 'n':
            opt.units = n;
            break;
        case 'r':
            opt.per_conn = n;
            break;
        case 'T':
            opt.name = optarg;
            break;
        case 'f':
            opt.first_name = n;
            break;
        case 'b':
            opt.answer = n;
            break;
        case 'u':
            opt.upload = n;
            break;
        case 'a':
            opt.by_name = true;
            break;
        case 'd':
            opt.direction = optarg[0];
            break;
        default:
            exit(2);
        }
    }
}

int
main(int argc, char **argv)
{
    options(argc, argv);
    wire_setup();
    conns = calloc(opt.n_conns, sizeof *conns);
    if (conns == NULL || (poll_fd = epoll_create1(0)) < 0 ||
        gnutls_certificate_allocate_credentials(&cred) != 0)
        die("set-up");
    began = last_at = wire_now_ns();
    over_at = began + opt.ns;
    if (opt.kind == HOLD)
        run_hold();
    else if (opt.kind == SLOW)
        run_slow();
    else
        run_load();
    report();
    return n_units > 0 ? 0 : 1;
}
