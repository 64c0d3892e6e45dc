/*
 * listen.c - listeners, the accept thread, and the connections parked there.
 *
 * A worker is for a connection that does something.  One that is silent, new
 * or between two requests, is parked: it waits in the accept thread's epoll
 * and costs a descriptor.  When it becomes readable it goes to the pool; when
 * it stays silent past its `until` it is closed here.
 *
 * The accept thread never waits for a peer or a worker.  When the pool's queue
 * is full or too slow it refuses (503); when descriptors or memory run out it
 * leaves new connections in the kernel's queue for a moment.
 *
 * Owns     the listening sockets, epoll, the list of all connections.  A
 *          connection is the accept thread's while parked and a worker's
 *          while it runs; whoever has it when it ends frees it.
 * Threads  the accept thread, started here; workers by listeners_serve(); the
 *          main thread starts, stops and waits.
 * Blocks   the accept thread, in epoll_wait(2); listeners_wait_idle().
 */
#include <assert.h>
#include <errno.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <unistd.h>

#include "proxy.h"

enum {
    BACKLOG = 4096, /* cut by the kernel to net.core.somaxconn */
    BATCH = 64,     /* accepted in a row before others get their turn */
    N_EVENTS = 128, /* looked at in a row */
    TICK_MS = 1000,
    TRIM_AGAIN = 3,      /* ticks after memory was given back: more of it */
    TRIES = 32,          /* to find a port that is free by TCP and UDP */
    SPELL_MS = 10000,    /* out of descriptors: one line for so long */
    GUEST_BUCKETS = 512, /* a power of two */
    PORTS_MAX = sizeof((struct weir *)0)->ports / sizeof(uint16_t),
};

struct listener {
    int fd;                 /* -1: closed */
    int udp_fd;             /* -1: none, or the port's */
    struct quic_port *port; /* NULL: no HTTP/3 */
    char text[ADDR_MAX];
};

struct guest {          /* an address that clients are connected from */
    struct in6_addr at; /* IPv4 mapped into IPv6 */
    size_t n;
    struct guest *next;
};

struct listeners {
    /* set before the thread starts, then only read */
    struct weir *weir;
    struct listener *at;
    size_t n;
    int epoll_fd, wake_fd;
    pthread_t thread;
    bool started;
    /* the accept thread's alone, as are at[].fd while it runs */
    bool paused;         /* no descriptor or memory for another connection */
    int64_t paused_last; /* ms, 0: never */
    int trim_in;         /* ticks; 0: no need */
    /* under lock */
    pthread_mutex_t lock;
    struct conn *live, *parked;
    size_t n_live;
    struct guest *guests[GUEST_BUCKETS];
    bool closing;          /* asked to close the listeners */
    bool closed;           /* and they are; nobody is parked any more */
    bool leave;            /* asked to end the thread */
    pthread_cond_t closes; /* closed is set now */
    pthread_cond_t idles;  /* n_live is 0 now */
};

/* ---- sockets ----------------------------------------------------------------
 */

static bool
set_int(int fd, int layer, int name, int value)
{
    return setsockopt(fd, layer, name, &value, sizeof value) == 0;
}

/* Limits for reading and writing.  On Linux an accepted socket has those of
 * the listener it came from, as it has TCP_NODELAY: two calls less for each. */
static bool
set_limits(int fd, int idle_ms)
{
    struct timeval tv = {.tv_sec = idle_ms / 1000,
                         .tv_usec = idle_ms % 1000 * 1000};

    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0 &&
           setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) == 0;
}

/* The same address by UDP.  Returns false with errno. */
static bool
listener_open_udp(struct listener *l, const struct sockaddr_storage *at,
                  socklen_t len)
{
    int code;

    l->udp_fd =
        socket(at->ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->udp_fd < 0)
        return false;
    if (quic_socket_set_up(l->udp_fd, at->ss_family) &&
        bind(l->udp_fd, (const struct sockaddr *)at, len) == 0)
        return true;
    code = errno;
    close(l->udp_fd);
    l->udp_fd = -1;
    errno = code;
    return false;
}

/* Open, bind, listen; *port is the one we got.  Returns false with errno. */
static bool
listener_open_tcp(struct listener *l, const struct listener_conf *conf,
                  int idle_ms, uint16_t *port)
{
    struct sockaddr_storage at = {0};
    socklen_t len = sizeof at;
    int family = conf->addr.ss_family;

    l->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || !set_int(l->fd, SOL_SOCKET, SO_REUSEADDR, 1) ||
        !set_int(l->fd, IPPROTO_TCP, TCP_NODELAY, 1) ||
        (family == AF_INET6 && !set_int(l->fd, IPPROTO_IPV6, IPV6_V6ONLY, 1)) ||
        !set_limits(l->fd, idle_ms) ||
        bind(l->fd, (const struct sockaddr *)&conf->addr, conf->len) != 0 ||
        listen(l->fd, BACKLOG) != 0 ||
        getsockname(l->fd, (struct sockaddr *)&at, &len) != 0)
        return false;
    address_text((struct sockaddr *)&at, l->text);
    *port = address_port(&at);
    return true;
}

/* Both sockets.  Where any port will do, it has to be free for both.  *udp:
 * what failed was the second one. */
static bool
listener_open(struct listener *l, const struct listener_conf *lc,
              const struct config *conf, uint16_t *port, bool *udp)
{
    bool any = address_port(&lc->addr) == 0;
    struct sockaddr_storage at;

    *udp = false;
    for (int i = 0; i < TRIES; i++) {
        int code;

        if (!listener_open_tcp(l, lc, conf->idle_s * 1000, port))
            return false;
        if (!conf->http3)
            return true;
        at = lc->addr;
        if (at.ss_family == AF_INET6)
            ((struct sockaddr_in6 *)&at)->sin6_port = htons(*port);
        else
            ((struct sockaddr_in *)&at)->sin_port = htons(*port);
        if (listener_open_udp(l, &at, lc->len))
            return true;
        code = errno;
        *udp = true;
        if (!any || code != EADDRINUSE) {
            errno = code;
            return false;
        }
        close(l->fd);
        l->fd = -1;
        errno = code;
    }
    return false;
}

static bool
watch_fd(const struct listeners *ls, int op, int fd, uint32_t events, void *arg)
{
    struct epoll_event event = {.events = events, .data.ptr = arg};

    return epoll_ctl(ls->epoll_fd, op, fd, &event) == 0;
}

/* Have the accept thread look at its flags. */
static void
wake(const struct listeners *ls)
{
    uint64_t one = 1;
    ssize_t put = write(ls->wake_fd, &one, sizeof one);

    /* EAGAIN: 2^64-2 wake-ups are pending, it will see one of them. */
    assert(put == (ssize_t)sizeof one || errno == EAGAIN);
    (void)put;
}

/* ---- the lists: all live connections, the parked among them -------------- */

/* Where in its bucket the client's address is, or would be.  Needs ls->lock. */
static struct guest **
guest_find(struct listeners *ls, const struct client *c, struct in6_addr *at)
{
    const struct sockaddr *sa = (const struct sockaddr *)&c->from;
    struct guest **g;
    uint32_t h = 2166136261u; /* FNV-1a */

    *at = (struct in6_addr){.s6_addr = {[10] = 0xff, [11] = 0xff}};
    if (sa->sa_family == AF_INET6)
        *at = ((const struct sockaddr_in6 *)sa)->sin6_addr;
    else
        memcpy(&at->s6_addr[12], &((const struct sockaddr_in *)sa)->sin_addr,
               4);
    for (size_t i = 0; i < sizeof at->s6_addr; i++)
        h = (h ^ at->s6_addr[i]) * 16777619u;
    g = &ls->guests[(h ^ h >> 16) & (GUEST_BUCKETS - 1)];
    while (*g != NULL && memcmp(&(*g)->at, at, sizeof *at) != 0)
        g = &(*g)->next;
    return g;
}

/* Count one more of this client's address.  Returns how many there are; without
 * memory for a new address it is not counted. */
static size_t
guest_come(struct listeners *ls, const struct client *c)
{
    struct in6_addr at;
    struct guest **g;
    size_t n = 0;

    pthread_mutex_lock(&ls->lock);
    g = guest_find(ls, c, &at);
    if (*g == NULL && (*g = calloc(1, sizeof **g)) != NULL)
        (*g)->at = at;
    if (*g != NULL)
        n = ++(*g)->n;
    pthread_mutex_unlock(&ls->lock);
    return n;
}

/* Needs ls->lock. */
static void
guest_leave(struct listeners *ls, const struct client *c)
{
    struct in6_addr at;
    struct guest **g, *gone;

    if (c->from.ss_family == AF_UNSPEC)
        return; /* it came by another connection, which is counted */
    g = guest_find(ls, c, &at);
    gone = *g;
    if (gone == NULL || --gone->n > 0)
        return;
    *g = gone->next;
    free(gone);
}

static void
live_add(struct listeners *ls, struct conn *c)
{
    pthread_mutex_lock(&ls->lock);
    c->prev = NULL;
    c->next = ls->live;
    if (c->next != NULL)
        c->next->prev = c;
    ls->live = c;
    ls->n_live++;
    pthread_mutex_unlock(&ls->lock);
}

/* The connection is over.  It leaves the list before its descriptor is closed:
 * listeners_end_all() must not shut down whoever gets the number next. */
static void
conn_over(struct listeners *ls, struct conn *c)
{
    pthread_mutex_lock(&ls->lock);
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        ls->live = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    guest_leave(ls, &c->client);
    pthread_mutex_unlock(&ls->lock);
    conn_free(c);
    pthread_mutex_lock(&ls->lock);
    if (--ls->n_live == 0)
        pthread_cond_broadcast(&ls->idles);
    pthread_mutex_unlock(&ls->lock);
}

/* Needs ls->lock. */
static void
parked_unlink(struct listeners *ls, struct conn *c)
{
    if (c->parked_prev != NULL)
        c->parked_prev->parked_next = c->parked_next;
    else
        ls->parked = c->parked_next;
    if (c->parked_next != NULL)
        c->parked_next->parked_prev = c->parked_prev;
    c->parked_next = c->parked_prev = NULL;
}

/* Needs ls->lock. */
static void
parked_link(struct listeners *ls, struct conn *c)
{
    c->parked_prev = NULL;
    c->parked_next = ls->parked;
    if (c->parked_next != NULL)
        c->parked_next->parked_prev = c;
    ls->parked = c;
}

/* What epoll looks at: a QUIC connection has no socket of its own. */
static int
fd_of(const struct conn *c)
{
    return c->wire != NULL ? c->wake_fd : c->end.fd;
}

/*
 * The accept thread shall wait for the connection.  From here on it is that
 * thread's.  False: it is still the caller's, and must end: we are closing, or
 * epoll has no room.
 *
 * The lock is held over epoll_ctl(): a reaper that meets c in the list may free
 * it, and close the descriptor, as soon as it is let in.
 */
static bool
park(struct listeners *ls, struct conn *c)
{
    int op = c->epoll_fd < 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    bool parked = false;

    pthread_mutex_lock(&ls->lock);
    if (!ls->closing) {
        c->epoll_fd = ls->epoll_fd;
        parked_link(ls, c);
        parked =
            watch_fd(ls, op, fd_of(c), EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, c);
        if (!parked)
            parked_unlink(ls, c);
    }
    pthread_mutex_unlock(&ls->lock);
    return parked;
}

/* ---- the accept thread --------------------------------------------------- */

/* No worker is free for this request. */
static void
refuse(struct listeners *ls, struct conn *c)
{
    conn_refuse(c, WHY_BUSY, "queue");
    conn_over(ls, c);
}

/* We are closing, and no request of this client is under way: it is told
 * nothing, as a client that is timed out. */
static void
dismiss(struct listeners *ls, struct conn *c)
{
    fail_own(&c->fail, SIDE_WEIR, WHY_DRAIN, "wait for a request");
    conn_timeout(c);
    conn_over(ls, c);
}

static void
hand_over(struct listeners *ls, struct conn *c)
{
    if (!pool_submit(ls->weir->conns, c))
        refuse(ls, c);
}

/* Is there something to read, an end or an error?  Does not wait. */
static bool
has_news(const struct conn *c)
{
    char byte;

    if (c->wire != NULL)
        return wire_news(c->wire) || (c->h3 != NULL && !h3_is_idle(c->h3));
    return recv(c->end.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 ||
           (errno != EAGAIN && errno != EINTR);
}

/* A client has connected.  Usually its first bytes are there by the time we
 * come here: looking costs less than going through epoll. */
static bool
conn_begin(struct listeners *ls, int fd, const struct sockaddr_storage *from,
           socklen_t len)
{
    struct conn *c = conn_new(ls->weir, fd, (const struct sockaddr *)from, len);

    if (c == NULL) {
        close(fd);
        return false;
    }
    live_add(ls, c);
    if (guest_come(ls, &c->client) > (size_t)c->client.conf->connections) {
        conn_refuse(c, WHY_BUSY, "connections of one client");
        conn_over(ls, c);
    } else if (has_news(c)) {
        hand_over(ls, c);
    } else if (!park(ls, c)) {
        dismiss(ls, c);
    }
    return true;
}

/* Leave connections in the kernel's queue until the next tick.  A listener
 * that stayed in epoll would wake us for nothing, without end. */
static void
accept_pause(struct listeners *ls, int code)
{
    bool memory = code == ENOMEM || code == ENOBUFS;
    int64_t now = now_ms();

    for (size_t i = 0; i < ls->n; i++)
        watch_fd(ls, EPOLL_CTL_MOD, ls->at[i].fd, 0, &ls->at[i]);
    ls->paused = true;
    if (ls->paused_last == 0 || now - ls->paused_last > SPELL_MS)
        log_say(LEVEL_WARN, 0, "accept",
                "out of %s (%s): new connections wait; %zu are open",
                memory ? "memory" : "descriptors", sys_text(code),
                listeners_live(ls));
    ls->paused_last = now;
}

static void
accept_resume(struct listeners *ls)
{
    for (size_t i = 0; i < ls->n; i++)
        watch_fd(ls, EPOLL_CTL_MOD, ls->at[i].fd, EPOLLIN, &ls->at[i]);
    ls->paused = false;
}

/* Take up to `max` connections.  False: there was none any more. */
static bool
accept_some(struct listeners *ls, const struct listener *l, int max)
{
    for (int i = 0; i < max && !ls->paused; i++) {
        struct sockaddr_storage from;
        socklen_t len = sizeof from;
        int fd = accept4(l->fd, (struct sockaddr *)&from, &len, SOCK_CLOEXEC);

        if (fd >= 0) {
            if (!conn_begin(ls, fd, &from, len))
                accept_pause(ls, ENOMEM);
            continue;
        }
        switch (errno) {
        case EAGAIN:
            return false;
        case EMFILE:
        case ENFILE:
        case ENOBUFS:
        case ENOMEM:
            accept_pause(ls, errno);
            break;
        default: /* accept(2): an error of the new connection, or EINTR */
            assert(errno != EBADF && errno != EINVAL && errno != ENOTSOCK);
            break;
        }
    }
    return !ls->paused;
}

/* A parked connection has something to say. */
static void
conn_wakes(struct listeners *ls, struct conn *c)
{
    pthread_mutex_lock(&ls->lock);
    parked_unlink(ls, c);
    pthread_mutex_unlock(&ls->lock);
    hand_over(ls, c);
}

/* Take those out that are parked until before `now`; linked by parked_next. */
static struct conn *
parked_take(struct listeners *ls, int64_t now)
{
    struct conn *taken = NULL, *c, *next;

    pthread_mutex_lock(&ls->lock);
    for (c = ls->parked; c != NULL; c = next) {
        next = c->parked_next;
        if (c->until >= now)
            continue;
        parked_unlink(ls, c);
        c->parked_next = taken;
        taken = c;
    }
    pthread_mutex_unlock(&ls->lock);
    return taken;
}

static void
reap_parked(struct listeners *ls, int64_t now)
{
    struct conn *c, *next;

    for (c = parked_take(ls, now); c != NULL; c = next) {
        next = c->parked_next;
        if (c->wire != NULL) { /* it has clocks of its own */
            epoll_ctl(ls->epoll_fd, EPOLL_CTL_DEL, fd_of(c), NULL);
            c->epoll_fd = -1;
            hand_over(ls, c);
            continue;
        }
        conn_timeout(c);
        conn_over(ls, c);
    }
}

/* malloc(3) keeps what it gets, or nearly.  Once more a little later: what came
 * free was not all free at once. */
static void
trim(struct listeners *ls)
{
    if (atomic_exchange(&ls->weir->trim, false)) {
        malloc_trim(0);
        ls->trim_in = TRIM_AGAIN;
    } else if (ls->trim_in > 0 && --ls->trim_in == 0) {
        malloc_trim(0);
    }
}

/* Once a second. */
static void
tick(struct listeners *ls, int64_t now)
{
    struct config *conf = config_take(ls->weir);
    int64_t waits_since = now - conf->queue_s * 1000LL;
    struct conn *c;
    struct task *job;

    if (ls->paused)
        accept_resume(ls);
    reap_parked(ls, now);
    while ((c = pool_expire(ls->weir->conns, waits_since)) != NULL)
        refuse(ls, c);
    while ((job = pool_expire(ls->weir->exchanges, waits_since)) != NULL)
        job->refuse(job);
    upstreams_reap(ls->weir->upstreams, conf);
    trim(ls);
    config_give(conf);
}

/* Close the listeners, and whoever is parked: nothing is under way there.
 * What has arrived before now was in time. */
static void
close_all(struct listeners *ls)
{
    struct conn *c, *next;

    for (size_t i = 0; i < ls->n; i++) {
        accept_some(ls, &ls->at[i], BACKLOG);
        close(ls->at[i].fd);
        ls->at[i].fd = -1;
    }
    ls->paused = false;
    for (c = parked_take(ls, INT64_MAX); c != NULL; c = next) {
        next = c->parked_next;
        if (has_news(c)) {
            /* Still armed: epoll would hand it over a second time. */
            epoll_ctl(ls->epoll_fd, EPOLL_CTL_DEL, fd_of(c), NULL);
            c->epoll_fd = -1;
            hand_over(ls, c);
        } else {
            dismiss(ls, c);
        }
    }
    pthread_mutex_lock(&ls->lock);
    ls->closed = true;
    pthread_cond_broadcast(&ls->closes);
    pthread_mutex_unlock(&ls->lock);
}

/* Somebody has set a flag.  False: the thread shall end. */
static bool
flags_look(struct listeners *ls)
{
    uint64_t count;
    bool close_now, leave;

    if (read(ls->wake_fd, &count, sizeof count) < 0)
        assert(errno == EAGAIN);
    pthread_mutex_lock(&ls->lock);
    close_now = ls->closing && !ls->closed;
    leave = ls->leave;
    pthread_mutex_unlock(&ls->lock);
    if (close_now)
        close_all(ls);
    return !leave;
}

/* What epoll reports is a listener, or else a parked connection. */
static void
event_look(struct listeners *ls, void *what)
{
    for (size_t i = 0; i < ls->n; i++) {
        if (what != &ls->at[i])
            continue;
        if (ls->at[i].fd >= 0)
            accept_some(ls, &ls->at[i], BATCH);
        return;
    }
    conn_wakes(ls, what);
}

static void *
accept_main(void *arg)
{
    struct listeners *ls = arg;
    struct epoll_event events[N_EVENTS];
    int64_t now = now_ms(), tick_at = now + TICK_MS;
    bool goes_on = true;

    pthread_setname_np(pthread_self(), "weir-accept");
    while (goes_on) {
        int wait_ms = tick_at > now ? (int)(tick_at - now) : 0;
        int n = epoll_wait(ls->epoll_fd, events, N_EVENTS, wait_ms);
        bool woken = false;

        assert(n >= 0 || errno == EINTR);
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr == ls)
                woken = true;
            else
                event_look(ls, events[i].data.ptr);
        /* Not before the last event: both end connections that are parked,
         * and the batch may hold one of them. */
        if (woken)
            goes_on = flags_look(ls);
        now = now_ms();
        if (now >= tick_at) {
            tick(ls, now);
            tick_at = now + TICK_MS;
        }
    }
    return NULL;
}

/* ---- public -------------------------------------------------------------- */

/*
 * listeners_new - open what conf->listen names; nobody is accepted yet.
 *
 * weir  gets `listeners` and, in the order of conf->listen, `ports`
 * err   on NULL: which address, why, and who has it
 *
 * Thread: main.  Blocks: never.
 */
struct listeners *
listeners_new(struct weir *weir, const struct config *conf, char *err,
              size_t cap)
{
    struct listeners *ls = calloc(1, sizeof *ls);
    bool udp;

    if (ls == NULL ||
        (ls->at = calloc(conf->n_listen, sizeof *ls->at)) == NULL) {
        snprintf(err, cap, "cannot listen: %s", sys_text(ENOMEM));
        free(ls);
        return NULL;
    }
    ls->weir = weir;
    pthread_mutex_init(&ls->lock, NULL);
    pthread_cond_init(&ls->closes, NULL);
    pthread_cond_init(&ls->idles, NULL);
    ls->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    ls->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ls->epoll_fd < 0 || ls->wake_fd < 0) {
        snprintf(err, cap, "cannot listen: %s", sys_text(errno));
        goto fail;
    }
    if (conf->n_listen > PORTS_MAX) {
        snprintf(err, cap, "cannot listen on %zu addresses: %d at most",
                 conf->n_listen, PORTS_MAX);
        goto fail;
    }
    weir->n_ports = 0;
    for (; ls->n < conf->n_listen; ls->n++) {
        const struct listener_conf *lc = &conf->listen[ls->n];

        ls->at[ls->n] = (struct listener){.fd = -1, .udp_fd = -1};
        if (!listener_open(&ls->at[ls->n], lc, conf, &weir->ports[ls->n],
                           &udp)) {
            if (udp)
                snprintf(err, cap,
                         "cannot listen on %s by UDP, for [proxy] http3: %s",
                         lc->text, sys_text(errno));
            else
                holder_explain(lc, errno, err, cap);
            ls->n++; /* its descriptor is to be closed as well */
            goto fail;
        }
        weir->n_ports++;
    }
    weir->listeners = ls;
    return ls;
fail:
    listeners_free(ls);
    return NULL;
}

/* The UDP sockets get their threads.  False: errno. */
static bool
ports_start(struct listeners *ls)
{
    for (size_t i = 0; i < ls->n; i++) {
        struct listener *l = &ls->at[i];

        if (l->udp_fd < 0)
            continue;
        if ((l->port = quic_port_new(ls->weir, l->udp_fd)) == NULL)
            return false;
        l->udp_fd = -1; /* it is the port's */
        if (!quic_port_start(l->port))
            return false;
    }
    return true;
}

/*
 * listeners_start - begin to accept.
 *
 * weir->conns, ->upstreams, ->mitm and ->config are set and stay until
 * listeners_free().  Returns false with the reason in err.  Thread: main.
 */
bool
listeners_start(struct listeners *ls, char *err, size_t cap)
{
    bool good = watch_fd(ls, EPOLL_CTL_ADD, ls->wake_fd, EPOLLIN, ls);
    int rc;

    for (size_t i = 0; i < ls->n && good; i++)
        good = watch_fd(ls, EPOLL_CTL_ADD, ls->at[i].fd, EPOLLIN, &ls->at[i]);
    if (!good || !ports_start(ls)) {
        snprintf(err, cap, "cannot listen: %s", sys_text(errno));
        return false;
    }
    rc = pthread_create(&ls->thread, NULL, accept_main, ls);
    if (rc != 0)
        snprintf(err, cap, "cannot start a thread: %s", sys_text(rc));
    ls->started = rc == 0;
    return ls->started;
}

/* The pool's serve(): run a connection until it ends or is silent. */
void
listeners_serve(void *job, struct worker *w)
{
    struct conn *c = job;
    struct listeners *ls = c->client.weir->listeners;

    if (conn_run(c, w) != ST_PARKED)
        conn_over(ls, c);
    else if (!park(ls, c))
        dismiss(ls, c);
}

/*
 * listeners_adopt - a connection that did not come by a listener.
 *
 * Returns false when no worker can take it; it is gone then, too.
 * Thread: any.  Blocks: never.
 */
bool
listeners_adopt(struct listeners *ls, struct conn *c)
{
    live_add(ls, c);
    if (pool_submit(ls->weir->conns, c))
        return true;
    refuse(ls, c);
    return false;
}

/*
 * listeners_welcome - a client's connection that did not come by TCP.
 *
 * Returns false when its address has too many, or no worker can take it; it is
 * gone then, too.  Thread: any.  Blocks: never.
 */
bool
listeners_welcome(struct listeners *ls, struct conn *c)
{
    live_add(ls, c);
    if (guest_come(ls, &c->client) > (size_t)c->client.conf->connections) {
        conn_refuse(c, WHY_BUSY, "connections of one client");
        conn_over(ls, c);
        return false;
    }
    if (pool_submit(ls->weir->conns, c))
        return true;
    refuse(ls, c);
    return false;
}

/* New connections get another limit for reads and writes.  Thread: main. */
void
listeners_retime(struct listeners *ls, int idle_ms)
{
    for (size_t i = 0; i < ls->n; i++)
        if (ls->at[i].fd >= 0 && !set_limits(ls->at[i].fd, idle_ms))
            log_say(LEVEL_WARN, 0, "listen", "idle_s of %s stays: %s",
                    ls->at[i].text, sys_text(errno));
}

/* The address of listener i as bound, "127.0.0.1:8080".  Thread: main. */
void
listeners_address(const struct listeners *ls, size_t i, char *out, size_t cap)
{
    assert(i < ls->n);
    snprintf(out, cap, "%s", ls->at[i].text);
}

/* How many listeners there are, open or not.  Any thread. */
size_t
listeners_count(const struct listeners *ls)
{
    return ls->n;
}

/* Close the listeners and the parked connections, once; on return they are.
 * Thread: main.  Blocks: for a moment, until the accept thread has done it. */
void
listeners_stop_accepting(struct listeners *ls)
{
    pthread_mutex_lock(&ls->lock);
    ls->closing = true;
    pthread_mutex_unlock(&ls->lock);
    wake(ls);
    pthread_mutex_lock(&ls->lock);
    while (!ls->closed)
        cond_until(&ls->closes, &ls->lock, 0);
    pthread_mutex_unlock(&ls->lock);
}

/* How many connections are open, parked or not.  Any thread. */
size_t
listeners_live(struct listeners *ls)
{
    size_t n;

    pthread_mutex_lock(&ls->lock);
    n = ls->n_live;
    pthread_mutex_unlock(&ls->lock);
    return n;
}

/* Wait up to ms until no connection is open; false: some are.  Any thread. */
bool
listeners_wait_idle(struct listeners *ls, int ms)
{
    int64_t until = now_ms() + ms;
    bool in_time = true, idle;

    pthread_mutex_lock(&ls->lock);
    while (ls->n_live > 0 && in_time)
        in_time = cond_until(&ls->idles, &ls->lock, until);
    idle = ls->n_live == 0;
    pthread_mutex_unlock(&ls->lock);
    return idle;
}

/* Wake every worker that waits for its client: it reads an end, may yet write.
 * Any thread.  Blocks: never. */
void
listeners_end_all(struct listeners *ls)
{
    pthread_mutex_lock(&ls->lock);
    for (struct conn *c = ls->live; c != NULL; c = c->next)
        if (c->wire != NULL)
            wire_stop(c->wire);
        else
            end_stop_reading(&c->end);
    pthread_mutex_unlock(&ls->lock);
}

/* Wake every worker that waits for its client to read, too.  A FIN may go out,
 * so not where that would make an answer look complete: whoever waits there is
 * left behind, and an RST is what his client gets.  Any thread. */
void
listeners_cut_all(struct listeners *ls)
{
    const struct linger now = {.l_onoff = 1, .l_linger = 0};

    pthread_mutex_lock(&ls->lock);
    for (struct conn *c = ls->live; c != NULL; c = c->next) {
        if (c->wire != NULL) /* nothing of ours waits for its client */
            continue;
        (void)setsockopt(c->end.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        if (!atomic_load(&c->h1.until_close))
            end_wake(&c->end);
    }
    pthread_mutex_unlock(&ls->lock);
}

/* End the accept thread and close what is open.  No connection may live any
 * more.  NULL: does nothing.  Thread: main. */
void
listeners_free(struct listeners *ls)
{
    if (ls == NULL)
        return;
    if (ls->started) {
        pthread_mutex_lock(&ls->lock);
        ls->leave = true;
        pthread_mutex_unlock(&ls->lock);
        wake(ls);
        pthread_join(ls->thread, NULL);
    }
    assert(ls->n_live == 0);
    for (size_t i = 0; i < ls->n; i++) {
        quic_port_free(ls->at[i].port);
        if (ls->at[i].udp_fd >= 0)
            close(ls->at[i].udp_fd);
        if (ls->at[i].fd >= 0)
            close(ls->at[i].fd);
    }
    if (ls->epoll_fd >= 0)
        close(ls->epoll_fd);
    if (ls->wake_fd >= 0)
        close(ls->wake_fd);
    pthread_mutex_destroy(&ls->lock);
    pthread_cond_destroy(&ls->closes);
    pthread_cond_destroy(&ls->idles);
    free(ls->at);
    free(ls);
}
