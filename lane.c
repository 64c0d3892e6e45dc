/*
 * lane.c - what the owner of an HTTP/3 session keeps of each stream.
 *
 * While a head comes, its section: those of several streams may come at once.
 * And content that was given to the library, which keeps pointers to it until
 * the peer has acknowledged it: a buffer that a stream's user has filled is
 * taken from him as it is, and freed when the last of its bytes has arrived.
 *
 * Owns     the sections, the content.
 * Threads  the owner of the session.
 * Blocks   never.
 */
#include <stdlib.h>

#include "proxy.h"

struct chunk { /* content that the library has, until it is acknowledged */
    struct store bytes;
    struct chunk *next;
};

/* NULL: out of memory.  now: ms. */
struct lane *
lane_new(struct lanes *ls, int64_t id, int64_t now)
{
    struct lane *l = calloc(1, sizeof *l);

    if (l == NULL)
        return NULL;
    l->id = id;
    l->begun_at = now;
    l->next = ls->first;
    if (l->next != NULL)
        l->next->prev = l;
    ls->first = l;
    return l;
}

/* NULL: there is none.  Those that are used are near the front. */
struct lane *
lane_find(const struct lanes *ls, int64_t id)
{
    struct lane *l = ls->first;

    while (l != NULL && l->id != id)
        l = l->next;
    return l;
}

/* A section for a head that comes; the last one's memory, if it is at hand.
 * False: out of memory. */
bool
lane_begin(struct lanes *ls, struct lane *l)
{
    l->section = ls->spare;
    ls->spare = NULL;
    if (l->section != NULL)
        return true;
    if ((l->section = malloc(sizeof *l->section)) == NULL)
        return false;
    section_begin(l->section, HTTP_3, ls->max_bytes, ls->max_fields);
    return true;
}

/* It has come, or will not. */
void
lane_end(struct lanes *ls, struct lane *l)
{
    if (l->section == NULL)
        return;
    section_reset(l->section);
    if (ls->spare == NULL) {
        ls->spare = l->section;
    } else {
        section_clear(l->section);
        free(l->section);
    }
    l->section = NULL;
}

/* Memory for the next head goes back. */
void
lanes_rest(struct lanes *ls)
{
    if (ls->spare != NULL)
        section_clear(ls->spare);
    free(ls->spare);
    ls->spare = NULL;
}

static void
chunk_free(struct lane *l)
{
    struct chunk *c = l->sent;

    l->sent = c->next;
    if (l->sent == NULL)
        l->last_sent = NULL;
    store_clear(&c->bytes);
    free(c);
}

/* The library forgets the stream, too. */
void
lane_free(struct lanes *ls, struct lane *l)
{
    lane_end(ls, l);
    while (l->sent != NULL)
        chunk_free(l);
    if (l->tail != NULL)
        head_clear(l->tail);
    free(l->tail);
    if (l->prev != NULL)
        l->prev->next = l->next;
    else
        ls->first = l->next;
    if (l->next != NULL)
        l->next->prev = l->prev;
    free(l);
}

/* All that the stream's user has written, until it is acknowledged.  Needs
 * hub->lock.  False: there is nothing, or no memory. */
bool
lane_take(struct lane *l, struct span *out)
{
    struct stream *s = l->s;
    struct chunk *c;

    if (s->out.len == 0 || (c = malloc(sizeof *c)) == NULL)
        return false;
    *c = (struct chunk){.bytes = s->out};
    s->out = (struct store){0};
    if (l->last_sent != NULL)
        l->last_sent->next = c;
    else
        l->sent = c;
    l->last_sent = c;
    l->unacked += c->bytes.len;
    stream_tell(s); /* there is room again */
    *out = (struct span){c->bytes.at + c->bytes.start, c->bytes.len};
    return true;
}

/* So many bytes more have arrived. */
void
lane_acked(struct lane *l, size_t len)
{
    while (len > 0 && l->sent != NULL) {
        struct store *b = &l->sent->bytes;
        size_t n = b->len < len ? b->len : len;

        b->start += n;
        b->len -= n;
        l->unacked -= n;
        len -= n;
        if (b->len == 0)
            chunk_free(l);
    }
}
