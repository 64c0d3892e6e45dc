/*
 * capsule.c - the capsule protocol, and the integers that QUIC writes.
 *
 * A capsule is a type, a length and a value.  The only type that is known here
 * carries a datagram, on streams whose connection has no datagrams of its own;
 * all others are skipped, as their receivers must.
 *
 * Follows  RFC 9297 section 3, RFC 9000 section 16.
 * Owns     the value of a datagram that came in pieces.
 * Threads  any; one at a time for a struct capsules.
 * Blocks   never.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

/* ---- integers ------------------------------------------------------------ */

/*
 * varint_parse - a variable-length integer at the front of raw[0..len).
 *
 * Returns its length in bytes, 1 to 8; 0: it is not complete.  A small number
 * may be written long, RFC 9000 section 16.
 */
size_t
varint_parse(const char *raw, size_t len, uint64_t *n)
{
    const unsigned char *at = (const unsigned char *)raw;
    size_t bytes;

    if (len == 0 || len < (bytes = (size_t)1 << (at[0] >> 6)))
        return 0;
    *n = at[0] & 0x3f;
    for (size_t i = 1; i < bytes; i++)
        *n = *n << 8 | at[i];
    return bytes;
}

/* The shortest form of n < 2^62.  Returns its length. */
size_t
varint_put(char out[VARINT_MAX], uint64_t n)
{
    unsigned form = n < 1 << 6 ? 0 : n < 1 << 14 ? 1 : n < 1 << 30 ? 2 : 3;
    size_t bytes = (size_t)1 << form;

    assert(n >> 62 == 0);
    for (size_t i = bytes; i-- > 0; n >>= 8)
        out[i] = (char)(n & 0xff);
    out[0] = (char)((unsigned char)out[0] | form << 6);
    return bytes;
}

/* ---- capsules ------------------------------------------------------------ */

/* One more byte of a head.  True: it is complete. */
static bool
head_byte(struct capsules *k, char byte)
{
    size_t n;

    assert(k->n_head < sizeof k->head);
    k->head[k->n_head++] = byte;
    n = varint_parse(k->head, k->n_head, &k->type);
    if (n == 0 || varint_parse(k->head + n, k->n_head - n, &k->left) == 0)
        return false;
    k->n_head = 0;
    k->length = k->left;
    return true;
}

/* Some of a datagram's value.  It lies in raw if all of it is there, else it
 * is gathered.  False: it goes on. */
static bool
gather(struct capsules *k, const char *raw, size_t n, size_t want,
       struct span *value, bool *good)
{
    if (k->n_value == 0 && n == want) {
        *value = (struct span){raw, n};
        return true;
    }
    if (k->value == NULL && (k->value = malloc(CAPSULE_MAX)) == NULL) {
        *good = false;
        return false;
    }
    memcpy(k->value + k->n_value, raw, n);
    k->n_value += n;
    if (k->n_value < want)
        return false;
    *value = (struct span){k->value, want};
    k->n_value = 0;
    return true;
}

/*
 * capsule_parse - go on in a stream of capsules, up to the next datagram.
 *
 * raw[0..len)  what follows what was used before
 * used         how much of it is
 * value        the datagram's: in raw, or until the next call
 *
 * Returns WHY_NONE: a datagram; WHY_MORE: raw was used up; WHY_LIMIT: the first
 * bytes of a datagram that is longer than CAPSULE_MAX, the rest of which will
 * be skipped; WHY_SYS: out of memory.  Thread: any.
 */
enum why
capsule_parse(struct capsules *k, const char *raw, size_t len, size_t *used,
              struct span *value)
{
    bool good = true;

    *used = 0;
    for (;;) {
        size_t left = len - *used, n, want;
        bool whole;

        if (!k->inside) {
            if (left == 0)
                return WHY_MORE;
            k->inside = head_byte(k, raw[(*used)++]);
            continue;
        }
        if (left == 0 && k->left > 0)
            return WHY_MORE;
        if (k->type != CAPSULE_DATAGRAM || k->skip) {
            n = k->left < left ? (size_t)k->left : left;
            *used += n;
            k->inside = (k->left -= n) > 0;
            k->skip = k->skip && k->inside;
            if (k->inside)
                return WHY_MORE;
            continue;
        }
        k->skip = k->length > CAPSULE_MAX;
        want = k->skip ? VARINT_MAX : (size_t)k->length;
        n = want - k->n_value < left ? want - k->n_value : left;
        whole = gather(k, raw + *used, n, want, value, &good);
        if (!good)
            return WHY_SYS;
        *used += n;
        k->inside = (k->left -= n) > 0;
        k->skip = k->skip && whole;
        if (!whole)
            return WHY_MORE;
        return k->skip ? WHY_LIMIT : WHY_NONE;
    }
}

/* Is this a place where the stream may end?  Not in the middle of a capsule,
 * RFC 9297 section 3.3. */
bool
capsule_between(const struct capsules *k)
{
    return !k->inside && k->n_head == 0;
}

/* What stands in front of a datagram capsule's value of len bytes.  Returns
 * its length. */
size_t
capsule_put_datagram(char out[CAPSULE_HEAD], size_t len)
{
    size_t n = varint_put(out, CAPSULE_DATAGRAM);

    return n + varint_put(out + n, len);
}

/* Give back what it holds; the stream is over. */
void
capsules_clear(struct capsules *k)
{
    free(k->value);
    *k = (struct capsules){0};
}
