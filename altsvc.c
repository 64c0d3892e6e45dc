/*
 * altsvc.c - which origins speak HTTP/3, where, and who could not be reached.
 *
 * An origin may say in an answer that it is found elsewhere by another
 * protocol.  Here that is read, as far as it is about HTTP/3, and remembered
 * for as long as the origin says.  Saying so is no proof: between us and the
 * origin something may drop what is no TCP.  Who was tried in vain is left
 * alone for a while that doubles each time.
 *
 * Follows  RFC 7838 sections 2.2, 3 and 3.1; RFC 9114 section 3.1.1.
 * Owns     a table of at most N_ENTRIES origins; the one that was touched
 *          longest ago makes room.
 * Threads  any; one lock, never held while waiting.
 * Blocks   never.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    N_ENTRIES = 512,       /* origins remembered */
    N_BUCKETS = 256,       /* a power of two */
    MA_DEFAULT_S = 86400,  /* RFC 7838 section 3.1 */
    MA_MAX_S = 30 * 86400, /* nothing here lives longer than that */
    PAUSE_MS = 5000,       /* how long the first failure counts */
    PAUSE_MAX_MS = 300000, /* and the last one */
    PARAMETER_MAX = 64,    /* a value that we would understand */
};

/* ---- what is said -------------------------------------------------------- */

static void
skip(struct span *s, size_t n)
{
    s->at += n;
    s->len -= n;
}

static void
skip_blanks(struct span *s)
{
    while (s->len > 0 && (*s->at == ' ' || *s->at == '\t'))
        skip(s, 1);
}

static bool
take_char(struct span *s, char c)
{
    if (s->len == 0 || *s->at != c)
        return false;
    skip(s, 1);
    return true;
}

static bool
take_token(struct span *s, struct span *token)
{
    *token = (struct span){s->at, 0};
    while (token->len < s->len &&
           is_token((struct span){s->at + token->len, 1}))
        token->len++;
    skip(s, token->len);
    return token->len > 0;
}

/* A quoted string without its quotes and backslashes (RFC 9110 section 5.6.4).
 * One that is longer than cap is read, but *len says so: cap. */
static bool
take_quoted(struct span *s, char *out, size_t cap, size_t *len)
{
    *len = 0;
    if (!take_char(s, '"'))
        return false;
    while (s->len > 0 && *s->at != '"') {
        if (*s->at == '\\')
            skip(s, 1);
        if (s->len == 0)
            return false;
        if (*len < cap)
            out[(*len)++] = *s->at;
        skip(s, 1);
    }
    return take_char(s, '"');
}

/* The first parameter of its name counts; one that makes no sense is none. */
static bool
take_parameter(struct span *s, struct altsvc *alt)
{
    char text[PARAMETER_MAX];
    struct span name, value = {text, 0};
    uint64_t number;

    skip_blanks(s);
    if (!take_token(s, &name) || !take_char(s, '='))
        return false;
    if (s->len > 0 && *s->at == '"') {
        if (!take_quoted(s, text, sizeof text, &value.len))
            return false;
    } else if (!take_token(s, &value)) {
        return false;
    }
    if (!span_number(value, &number))
        return true;
    if (span_isi(name, "ma"))
        alt->ma_s = number > MA_MAX_S ? MA_MAX_S : (int64_t)number;
    else if (span_isi(name, "persist"))
        alt->persist = number == 1;
    return true;
}

/* "host:port" or ":port". */
static bool
authority_read(struct span text, struct altsvc *alt)
{
    alt->host[0] = '\0';
    if (text.len > 1 && text.at[0] == ':') {
        uint64_t port;

        skip(&text, 1);
        if (!span_number(text, &port) || port == 0 || port > UINT16_MAX)
            return false;
        alt->port = (uint16_t)port;
        return true;
    }
    return authority_parse(text, alt->host, &alt->port) && alt->port != 0;
}

/* One alternative with its parameters.  *h3: it is one of HTTP/3, and can be
 * understood. */
static bool
take_alternative(struct span *s, struct altsvc *alt, bool *h3)
{
    char text[HOST_MAX + 16];
    struct span protocol, authority = {text, 0};

    *alt = (struct altsvc){.ma_s = MA_DEFAULT_S};
    if (!take_token(s, &protocol) || !take_char(s, '=') ||
        !take_quoted(s, text, sizeof text, &authority.len))
        return false;
    *h3 = span_is(protocol, "h3") && authority.len < sizeof text &&
          authority_read(authority, alt);
    skip_blanks(s);
    while (take_char(s, ';')) {
        if (!take_parameter(s, alt))
            return false;
        skip_blanks(s);
    }
    return true;
}

/*
 * altsvc_parse - what an Alt-Svc field says of HTTP/3.
 *
 * value  of all its fields, as one list
 * out    written on ALTSVC_H3: the alternative that the origin likes best
 *
 * Returns ALTSVC_H3; ALTSVC_NONE: what was said before is void, by "clear" or
 * because no HTTP/3 is among the alternatives; ALTSVC_WRONG: this is malformed
 * and says nothing.
 */
enum altsvc_said
altsvc_parse(struct span value, struct altsvc *out)
{
    enum altsvc_said said = ALTSVC_NONE;
    struct altsvc alt;
    bool h3, some = false;

    value = span_trim(value);
    if (span_is(value, "clear"))
        return ALTSVC_NONE;
    while (value.len > 0) {
        skip_blanks(&value);
        if (take_char(&value, ',')) /* an empty element */
            continue;
        if (value.len == 0)
            break;
        if (!take_alternative(&value, &alt, &h3))
            return ALTSVC_WRONG;
        some = true;
        if (value.len > 0 && *value.at != ',')
            return ALTSVC_WRONG;
        if (h3 && said != ALTSVC_H3) {
            *out = alt;
            said = ALTSVC_H3;
        }
    }
    return some ? said : ALTSVC_WRONG;
}

/* ---- what is remembered -------------------------------------------------- */

struct entry {
    bool used;
    struct origin origin;
    struct altsvc alt;    /* alt.port 0: nothing was learned */
    int64_t until;        /* ms: and believed so long */
    int64_t pause;        /* ms: of its last failure; 0: none since it worked */
    int64_t broken_until; /* ms */
    struct fail last;     /* why */
    int64_t at;           /* ms: when it was touched */
    struct entry *next;
};

struct altsvcs {
    pthread_mutex_t lock;
    /* needs lock */
    struct entry *buckets[N_BUCKETS];
    struct entry entries[N_ENTRIES];
    atomic_int n; /* in use; read without the lock: 0 is the usual case */
};

static struct entry **
bucket_of(struct altsvcs *as, const struct origin *o)
{
    uint32_t h = 2166136261u ^ o->port; /* FNV-1a */

    for (const char *p = o->host; *p != '\0'; p++)
        h = (h ^ (unsigned char)*p) * 16777619u;
    return &as->buckets[(h ^ h >> 16) & (N_BUCKETS - 1)];
}

/* Needs as->lock. */
static struct entry *
entry_find(struct altsvcs *as, const struct origin *o)
{
    struct entry *e = *bucket_of(as, o);

    while (e != NULL && !origin_same(&e->origin, o))
        e = e->next;
    return e;
}

/* Needs as->lock. */
static void
entry_drop(struct altsvcs *as, struct entry *e)
{
    struct entry **at = bucket_of(as, &e->origin);

    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    *e = (struct entry){.used = false};
    atomic_fetch_sub(&as->n, 1);
}

/* The origin's, or a new one.  Needs as->lock. */
static struct entry *
entry_make(struct altsvcs *as, const struct origin *o, int64_t now)
{
    struct entry *e = entry_find(as, o), **at;

    if (e == NULL) {
        e = &as->entries[0];
        for (size_t i = 0; i < N_ENTRIES && e->used; i++)
            if (!as->entries[i].used || as->entries[i].at < e->at)
                e = &as->entries[i];
        if (e->used)
            entry_drop(as, e);
        e->used = true;
        e->origin = *o;
        at = bucket_of(as, o);
        e->next = *at;
        *at = e;
        atomic_fetch_add(&as->n, 1);
    }
    e->at = now;
    return e;
}

/*
 * altsvc_learn - an origin has sent an Alt-Svc field.
 *
 * value  of all its fields, as one list
 * age_s  how long ago the answer was made (RFC 9111 section 5.1)
 *
 * What it says replaces what it said before.  A place other than before has
 * not been tried yet.
 */
void
altsvc_learn(struct altsvcs *as, const struct origin *o, struct span value,
             uint64_t age_s, int64_t now)
{
    struct altsvc alt;
    enum altsvc_said said = altsvc_parse(value, &alt);
    struct entry *e;

    if (said == ALTSVC_WRONG ||
        (said == ALTSVC_NONE && atomic_load(&as->n) == 0))
        return;
    if (said == ALTSVC_H3 && (uint64_t)alt.ma_s <= age_s)
        said = ALTSVC_NONE;
    pthread_mutex_lock(&as->lock);
    e = said == ALTSVC_H3 ? entry_make(as, o, now) : entry_find(as, o);
    if (said == ALTSVC_H3) {
        if (e->alt.port != alt.port || strcmp(e->alt.host, alt.host) != 0)
            e->pause = e->broken_until = 0;
        e->alt = alt;
        e->until = now + (alt.ma_s - (int64_t)age_s) * 1000;
    } else if (e != NULL) {
        e->alt.port = 0;
        if (e->pause == 0)
            entry_drop(as, e);
    }
    pthread_mutex_unlock(&as->lock);
}

/* What an origin said is not so (RFC 7838 section 6). */
void
altsvc_forget(struct altsvcs *as, const struct origin *o)
{
    altsvc_learn(as, o, span_of("clear"), 0, 0);
}

/* Where an origin says that it speaks HTTP/3, if it still does. */
bool
altsvc_find(struct altsvcs *as, const struct origin *o, int64_t now,
            struct altsvc *out)
{
    struct entry *e;
    bool found;

    if (atomic_load(&as->n) == 0)
        return false;
    pthread_mutex_lock(&as->lock);
    e = entry_find(as, o);
    found = e != NULL && e->alt.port != 0 && now < e->until;
    if (found) {
        *out = e->alt;
        e->at = now;
    }
    pthread_mutex_unlock(&as->lock);
    return found;
}

/* Has HTTP/3 to this origin failed, so that it is not to be tried now?  Then
 * *last is why. */
bool
altsvc_is_broken(struct altsvcs *as, const struct origin *o, int64_t now,
                 struct fail *last)
{
    struct entry *e;
    bool broken;

    if (atomic_load(&as->n) == 0)
        return false;
    pthread_mutex_lock(&as->lock);
    e = entry_find(as, o);
    broken = e != NULL && now < e->broken_until;
    if (broken)
        *last = e->last;
    pthread_mutex_unlock(&as->lock);
    return broken;
}

/* HTTP/3 was tried in vain.  Returns the ms for which it is not tried again; 0:
 * that has been said already. */
int64_t
altsvc_failed(struct altsvcs *as, const struct origin *o, const struct fail *f,
              int64_t now)
{
    struct entry *e;
    int64_t pause = 0;

    pthread_mutex_lock(&as->lock);
    e = entry_make(as, o, now);
    if (now >= e->broken_until) {
        pause = e->pause == 0 ? PAUSE_MS : 2 * e->pause;
        e->pause = pause = pause > PAUSE_MAX_MS ? PAUSE_MAX_MS : pause;
        e->broken_until = now + pause;
        e->last = *f;
    }
    pthread_mutex_unlock(&as->lock);
    return pause;
}

/* HTTP/3 was spoken. */
void
altsvc_worked(struct altsvcs *as, const struct origin *o)
{
    struct entry *e;

    if (atomic_load(&as->n) == 0)
        return;
    pthread_mutex_lock(&as->lock);
    if ((e = entry_find(as, o)) != NULL) {
        e->pause = e->broken_until = 0;
        if (e->alt.port == 0)
            entry_drop(as, e);
    }
    pthread_mutex_unlock(&as->lock);
}

/* Nothing is known; NULL: out of memory. */
struct altsvcs *
altsvcs_new(void)
{
    struct altsvcs *as = calloc(1, sizeof *as);

    if (as != NULL)
        pthread_mutex_init(&as->lock, NULL);
    return as;
}

void
altsvcs_free(struct altsvcs *as)
{
    if (as == NULL)
        return;
    pthread_mutex_destroy(&as->lock);
    free(as);
}
