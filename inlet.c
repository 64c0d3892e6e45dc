/*
 * inlet.c - a client's unidirectional stream, on its way to the library.
 *
 * A PRIORITY_UPDATE has to reach the library whole: at one that comes in two
 * pieces nghttp3 1.8 ends the program by an assertion, and where a packet ends
 * is up to the client.  So on the control stream frames are told apart here,
 * and those few are held until they are complete.  All else passes as it comes.
 *
 * Follows  RFC 9114 sections 6.2 and 7.1, RFC 9218 section 7.2.
 * Owns     what is held, in the inlet itself.
 * Threads  the owner of the session.
 * Blocks   never.
 */
#include <string.h>

#include "proxy.h"

enum {
    CONTROL = 0,                /* a stream's type */
    PRIORITY_REQUEST = 0xf0700, /* frames' types */
    PRIORITY_PUSH = 0xf0701,
};

/* One byte more of a head, a varint or two.  Returns how many of them are
 * here. */
static int
add_byte(struct inlet *in, char byte, uint64_t value[2])
{
    size_t n;

    in->held[in->n++] = byte;
    if ((n = varint_parse(in->held, in->n, &value[0])) == 0)
        return 0;
    return varint_parse(in->held + n, in->n - n, &value[1]) > 0 ? 2 : 1;
}

static struct span
take_held(struct inlet *in)
{
    struct span all = {in->held, in->n};

    in->n = 0;
    return all;
}

/* The head of a frame is complete: what becomes of the frame? */
static struct span
begin_frame(struct inlet *in, uint64_t type, uint64_t len)
{
    in->left = len;
    in->state = len > 0 ? INLET_CONTENT : INLET_FRAME;
    if (len == 0 || (type != PRIORITY_REQUEST && type != PRIORITY_PUSH))
        return take_held(in);
    in->state = INLET_HOLD;
    if (len > sizeof in->held - in->n) { /* the library ignores them as well */
        in->state = INLET_DROP;
        in->n = 0;
    }
    return (struct span){NULL, 0};
}

/*
 * inlet_next - some of the bytes that have come on a stream.
 *
 * at, len  at least one
 * pass     what the library gets instead; it may be empty.  Good until the next
 *          call.
 *
 * Returns how many were taken; the others are for the next call.
 */
size_t
inlet_next(struct inlet *in, const char *at, size_t len, struct span *pass)
{
    size_t n = in->left < len ? (size_t)in->left : len;
    uint64_t value[2];

    *pass = (struct span){NULL, 0};
    switch (in->state) {
    case INLET_TYPE:
        if (add_byte(in, *at, value) > 0) {
            in->state = value[0] == CONTROL ? INLET_FRAME : INLET_OTHER;
            *pass = take_held(in);
        }
        return 1;
    case INLET_OTHER:
        *pass = (struct span){at, len};
        return len;
    case INLET_FRAME:
        if (add_byte(in, *at, value) == 2)
            *pass = begin_frame(in, value[0], value[1]);
        return 1;
    case INLET_CONTENT:
        *pass = (struct span){at, n};
        break;
    case INLET_HOLD:
        memcpy(in->held + in->n, at, n);
        in->n += n;
        if (n == in->left)
            *pass = take_held(in);
        break;
    case INLET_DROP:
        break;
    }
    if ((in->left -= n) == 0)
        in->state = INLET_FRAME;
    return n;
}

/* The stream ends here: what is held, if anything is. */
struct span
inlet_rest(struct inlet *in)
{
    return take_held(in);
}

/* Is it the control stream, as far as one can tell? */
bool
inlet_is_control(const struct inlet *in)
{
    return in->state != INLET_TYPE && in->state != INLET_OTHER;
}
