/*
 * h3control.c - the peer's own streams of an HTTP/3 session.
 *
 * What comes on them goes to the protocol library, but for two things.  The
 * library keeps from a client that an origin takes extended CONNECT: so its
 * SETTINGS are looked at here.  And it aborts the program when a
 * PRIORITY_UPDATE frame comes in two pieces, the first of which ends behind
 * the element's number (nghttp3 1.8): so these frames, which tell us nothing
 * that we act on, end here.
 *
 * Follows  RFC 9114 sections 6.2 and 7.2.4, RFC 9220, RFC 9218 section 7.2.
 * Owns     nothing.
 * Threads  the session's owner.
 * Blocks   never.
 */
#include <nghttp3/nghttp3.h>
#include <string.h>

#include "proxy.h"

enum {
    STREAM_CONTROL = 0,
    FRAME_SETTINGS = 4,
    FRAME_PRIORITY_REQUEST = 0xf0700,
    FRAME_PRIORITY_PUSH = 0xf0701,
    SETTING_CONNECT = 8, /* RFC 9220 section 3 */
    CALM_BYTES = 32,     /* of the control stream count as one frame more */
};

/* ---- an origin's SETTINGS ------------------------------------------------ */

/* Is this setting in the frame that the control stream begins with (RFC 9114
 * section 6.2.1)?  False as long as the frame is not whole. */
static bool
settings_have(const char *at, size_t len, uint64_t wanted)
{
    uint64_t head[3], pair[2]; /* stream type, frame type, length */
    size_t n;

    for (int i = 0; i < 3; i++, at += n, len -= n)
        if ((n = varint_parse(at, len, &head[i])) == 0)
            return false;
    if (head[1] != FRAME_SETTINGS || head[2] > len)
        return false;
    len = (size_t)head[2];
    while (len > 0) {
        for (int i = 0; i < 2; i++, at += n, len -= n)
            if ((n = varint_parse(at, len, &pair[i])) == 0)
                return false;
        if (pair[0] == wanted)
            return pair[1] == 1;
    }
    return false;
}

static void
peek_settings(struct h3 *h, const void *at, size_t len)
{
    size_t room = H3_SETTINGS_MAX - h->n_settings;

    if (h->side != SIDE_ORIGIN || room == 0)
        return;
    memcpy(h->settings + h->n_settings, at, len < room ? len : room);
    h->n_settings += len < room ? len : room;
    h->takes_connect =
        settings_have(h->settings, h->n_settings, SETTING_CONNECT);
}

/* ---- to the library ------------------------------------------------------ */

static bool
pass(struct h3 *h, int64_t id, const void *at, size_t len, bool fin)
{
    nghttp3_ssize n;

    if (id == h->control_id)
        peek_settings(h, at, len);
    n = nghttp3_conn_read_stream(h->ng, id, at, len, fin);
    return n >= 0 || h3_judge(h, (int)n);
}

/* ---- the control stream, frame by frame ---------------------------------- */

static bool
end_wrong(struct h3 *h, uint64_t code, const char *cause)
{
    quic_end(h->quic, code, cause);
    return false;
}

/* A frame's type and length are whole. */
static bool
begin_frame(struct h3 *h, uint64_t type, uint64_t length)
{
    struct h3_frame *f = &h->frame;
    bool first = !f->any;

    f->any = true;
    f->left = length;
    /* The library says what is wrong with one that comes first, or from an
     * origin. */
    f->dropped =
        h->side == SIDE_CLIENT && !first &&
        (type == FRAME_PRIORITY_REQUEST || type == FRAME_PRIORITY_PUSH);
    f->n_element = 0;
    if (!f->dropped)
        return pass(h, h->control_id, f->head, f->n_head, false);
    if (type == FRAME_PRIORITY_PUSH) /* nothing is ever pushed */
        return end_wrong(h, NGHTTP3_H3_ID_ERROR, "priority of a push");
    return length > 0 || end_wrong(h, NGHTTP3_H3_FRAME_ERROR,
                                   "PRIORITY_UPDATE without a stream");
}

/* n bytes of a PRIORITY_UPDATE: whose priority is it? */
static bool
check_element(struct h3 *h, const uint8_t *at, size_t n)
{
    struct h3_frame *f = &h->frame;
    bool last = n == f->left, known;
    uint64_t id;

    known = varint_parse((char *)f->element, f->n_element, &id) > 0;
    for (; !known && n > 0; n--) {
        f->element[f->n_element++] = *at++;
        known = varint_parse((char *)f->element, f->n_element, &id) > 0;
    }
    if (!known)
        return !last || end_wrong(h, NGHTTP3_H3_FRAME_ERROR,
                                  "PRIORITY_UPDATE cut short");
    return id % 4 == 0 ||
           end_wrong(h, NGHTTP3_H3_ID_ERROR, "priority of no request");
}

static bool
read_control(struct h3 *h, const uint8_t *at, size_t len, bool fin)
{
    struct h3_frame *f = &h->frame;

    while (len > 0) {
        size_t n = 1;

        if (f->left > 0) {
            n = len < f->left ? len : (size_t)f->left;
            if (!(f->dropped ? check_element(h, at, n)
                             : pass(h, h->control_id, at, n, false)))
                return false;
            f->left -= n;
        } else {
            uint64_t type, length;
            size_t used;

            f->head[f->n_head++] = *at;
            used = varint_parse((char *)f->head, f->n_head, &type);
            if (used > 0 && varint_parse((char *)f->head + used,
                                         f->n_head - used, &length) > 0) {
                if (!begin_frame(h, type, length))
                    return false;
                f->n_head = 0;
            }
        }
        at += n;
        len -= n;
    }
    return !fin || pass(h, h->control_id, at, 0, true);
}

/* ---- public -------------------------------------------------------------- */

/*
 * h3_read_own - bytes of a stream that is the peer's alone.
 *
 * id   of a unidirectional stream that the peer has opened
 * fin  they are the last ones
 *
 * Returns false: quic_end() was called.
 */
bool
h3_read_own(struct h3 *h, int64_t id, const uint8_t *at, size_t len, bool fin)
{
    struct h3_own *own = id >> 2 < QUIC_OWN_MAX ? &h->own[id >> 2] : NULL;

    quic_credit(h->quic, id, len);
    if (own == NULL) /* QUIC lets none be opened */
        return end_wrong(h, NGHTTP3_H3_STREAM_CREATION_ERROR,
                         "too many streams");
    for (; len > 0 && !own->known; len--) {
        uint64_t type;

        own->type[own->n++] = *at++;
        if (varint_parse((char *)own->type, own->n, &type) == 0)
            continue;
        own->known = true;
        if (type == STREAM_CONTROL && h->control_id < 0)
            h->control_id = id;
        if (!pass(h, id, own->type, own->n, false))
            return false;
    }
    if (!own->known)
        return !fin || pass(h, id, own->type, own->n, true);
    if (id != h->control_id)
        return pass(h, id, at, len, fin);
    return h3_spend(h, CALM_PRIORITIES, 1 + (int)(len / CALM_BYTES),
                    "too much on the control stream") == 0 &&
           read_control(h, at, len, fin);
}
