/*
 * breaker.c - origins that cannot be connected to are not tried all the time.
 *
 * After N_FAILED failed dials in a row an origin is refused at once, for a
 * pause that doubles with each failed trial.  When the pause is over one dial
 * is let through as a trial while others are still refused; if it connects all
 * is well again.  Only failures to connect count: a name that does not resolve
 * has a memory of its own in dns.c, and an origin that answers badly is there.
 *
 * Owns     a table of at most N_ENTRIES origins with failures behind them; the
 *          one that failed longest ago makes room.
 * Threads  any; one lock, never held while waiting.
 * Blocks   never.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    N_FAILED = 5,    /* in a row: the breaker opens */
    N_ENTRIES = 512, /* origins remembered */
    N_BUCKETS = 256, /* a power of two */
    PAUSE_MS = 1000, /* the first pause */
    PAUSE_MAX_MS = 30000,
};

struct entry {
    char host[HOST_MAX + 1]; /* "": not in use */
    uint16_t port;
    int n_failed;     /* in a row */
    int64_t pause;    /* ms, the last one */
    int64_t until;    /* ms: refused so long; 0: not at all */
    bool trial;       /* somebody is trying */
    int64_t at;       /* ms: its last failure */
    struct fail last; /* the last failure */
    struct entry *next;
};

struct breaker {
    pthread_mutex_t lock;
    /* needs lock */
    struct entry *buckets[N_BUCKETS];
    struct entry entries[N_ENTRIES];
    atomic_int n; /* in use; read without the lock: 0 is the usual case */
};

static struct entry **
bucket_of(struct breaker *b, const char *host, uint16_t port)
{
    uint32_t h = 2166136261u ^ port; /* FNV-1a */

    for (const char *p = host; *p != '\0'; p++)
        h = (h ^ (unsigned char)*p) * 16777619u;
    return &b->buckets[(h ^ h >> 16) & (N_BUCKETS - 1)];
}

/* Needs b->lock. */
static struct entry *
entry_find(struct breaker *b, const char *host, uint16_t port)
{
    struct entry *e = *bucket_of(b, host, port);

    while (e != NULL && (e->port != port || strcmp(e->host, host) != 0))
        e = e->next;
    return e;
}

/* Needs b->lock. */
static void
entry_drop(struct breaker *b, struct entry *e)
{
    struct entry **at = bucket_of(b, e->host, e->port);

    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    *e = (struct entry){.host = ""};
    atomic_fetch_sub(&b->n, 1);
}

/* A free entry, or that of whoever failed longest ago.  Needs b->lock. */
static struct entry *
entry_make(struct breaker *b, const char *host, uint16_t port)
{
    struct entry *e = &b->entries[0], **at = bucket_of(b, host, port);

    for (size_t i = 0; i < N_ENTRIES && e->host[0] != '\0'; i++)
        if (b->entries[i].host[0] == '\0' || b->entries[i].at < e->at)
            e = &b->entries[i];
    if (e->host[0] != '\0')
        entry_drop(b, e);
    snprintf(e->host, sizeof e->host, "%s", host);
    e->port = port;
    e->next = *at;
    *at = e;
    atomic_fetch_add(&b->n, 1);
    return e;
}

/* Needs b->lock. */
static enum why
broken(const struct entry *e, int64_t now, struct fail *f)
{
    if (f->why != WHY_NONE)
        return e->last.why;
    *f = e->last;
    snprintf(f->detail, sizeof f->detail,
             "breaker open (destination_unavailable): %d connects failed, "
             "tried again in %lld ms",
             e->n_failed, (long long)(e->until > now ? e->until - now : 0));
    return f->why;
}

/*
 * breaker_ask - may this origin be dialled now?
 *
 * trial  set if this dial is the one that is let through to find out
 *
 * Returns WHY_NONE, then breaker_tell() has to follow; else the last failure is
 * noted again, with the breaker in its detail: what was wrong still is.
 */
enum why
breaker_ask(struct breaker *b, const char *host, uint16_t port, bool *trial,
            struct fail *f)
{
    enum why why = WHY_NONE;
    struct entry *e;
    int64_t now;

    *trial = false;
    if (atomic_load(&b->n) == 0)
        return why;
    now = now_ms();
    pthread_mutex_lock(&b->lock);
    e = entry_find(b, host, port);
    if (e != NULL && e->until != 0) {
        if (now < e->until || e->trial)
            why = broken(e, now, f);
        else
            *trial = e->trial = true;
    }
    pthread_mutex_unlock(&b->lock);
    return why;
}

static bool
counts(enum why why)
{
    return why == WHY_REFUSED || why == WHY_UNREACHABLE ||
           why == WHY_CONNECT_LATE || why == WHY_SYS;
}

/* One more failure.  Returns the pause that begins with it; 0: none does.
 * Needs b->lock. */
static int64_t
entry_failed(struct entry *e, const struct fail *f, bool trial)
{
    int64_t now = now_ms();

    e->last = *f;
    e->at = now;
    e->n_failed++;
    if (e->n_failed < N_FAILED || (e->until != 0 && !trial))
        return 0; /* dialled before it opened: it has been counted */
    e->pause = e->pause == 0 ? PAUSE_MS : 2 * e->pause;
    if (e->pause > PAUSE_MAX_MS)
        e->pause = PAUSE_MAX_MS;
    e->until = now + e->pause;
    return e->pause;
}

/*
 * breaker_tell - how a dial that breaker_ask() let through has ended.
 *
 * trial  as that set it
 * f      why NONE: it is connected
 */
void
breaker_tell(struct breaker *b, const char *host, uint16_t port, bool trial,
             const struct fail *f, uint64_t conn)
{
    bool failed = counts(f->why), was_open = false;
    int64_t pause = 0;
    struct entry *e;

    if (!failed && atomic_load(&b->n) == 0)
        return;
    pthread_mutex_lock(&b->lock);
    e = entry_find(b, host, port);
    if (e != NULL && trial)
        e->trial = false;
    if (failed && e == NULL)
        e = entry_make(b, host, port);
    if (failed)
        pause = entry_failed(e, f, trial);
    else if (f->why == WHY_NONE && e != NULL) {
        was_open = e->until != 0;
        entry_drop(b, e);
    }
    pthread_mutex_unlock(&b->lock);
    if (pause != 0)
        log_say(LEVEL_WARN, conn, "breaker",
                "%s port %u cannot be reached: not tried for %lld s", host,
                port, (long long)pause / 1000);
    if (was_open)
        log_say(LEVEL_INFO, conn, "breaker", "%s port %u is reached again",
                host, port);
}

/* Nobody has failed yet; NULL: out of memory. */
struct breaker *
breaker_new(void)
{
    struct breaker *b = calloc(1, sizeof *b);

    if (b != NULL)
        pthread_mutex_init(&b->lock, NULL);
    return b;
}

void
breaker_free(struct breaker *b)
{
    if (b == NULL)
        return;
    pthread_mutex_destroy(&b->lock);
    free(b);
}
