/*
 * hello.c - what a ClientHello says, before anybody answers it.
 *
 * Two things are wanted: the name the client asks for (SNI) and the protocols
 * it offers (ALPN).  Both decide where to connect to and which certificate to
 * show, so they must be known before the handshake begins.  The bytes are only
 * looked at; they stay in the end's buffer, for GnuTLS to read them again.
 *
 * A ClientHello may be spread over several records, and over any number of
 * reads.  First the records are walked to see whether all of it is there; then
 * it is read in one go, by a cursor that steps over the record headers.  What
 * we do not know (GREASE, extensions to come) is skipped by its length.
 *
 * Follows  RFC 8446 sections 4.1.2 and 5.1 (TLS 1.2 looks the same here), RFC
 *          6066 section 3 (SNI), RFC 7301 (ALPN), RFC 8701 (GREASE).
 * Owns     nothing.
 * Threads  the one that reads the end.
 * Blocks   hello_read() alone, for at most its deadline.
 */
#include <string.h>

#include "proxy.h"

enum {
    HELLO_MAX = 65536,     /* raw bytes; post-quantum key shares need 2 KiB */
    RECORD_HEAD = 5,       /* type, version, length */
    RECORD_MAX = 16384,    /* RFC 8446 section 5.1 */
    RECORD_HANDSHAKE = 22, /* ContentType */
    MESSAGE_HEAD = 4,      /* msg_type, uint24 length */
    MESSAGE_CLIENT_HELLO = 1,
    EXT_SERVER_NAME = 0,
    EXT_ALPN = 16,
    NAME_HOST = 0,  /* NameType */
    LABEL_MAX = 63, /* RFC 1035 section 2.3.4 */
};

/* A vector inside the ClientHello.  hello_walk() has seen that every byte of
 * the message is there, so the only end to mind is `left`. */
struct cursor {
    const unsigned char *at;
    size_t in_record; /* bytes from `at` to the end of this record */
    size_t left;      /* bytes from `at` to the end of the vector */
};

/* ---- records ------------------------------------------------------------- */

/* The first min(len, RECORD_HEAD) bytes of a record: could they begin one that
 * carries a part of a handshake? */
static bool
record_ok(const unsigned char *at, size_t len)
{
    size_t n = len >= RECORD_HEAD ? (size_t)at[3] << 8 | at[4] : 1;

    /* The minor version says nothing (RFC 8446 section 5.1); an empty piece
     * of a handshake is forbidden there. */
    return (len < 1 || at[0] == RECORD_HANDSHAKE) && (len < 2 || at[1] == 3) &&
           n >= 1 && n <= RECORD_MAX;
}

/* Walk the records until they hold the whole message.  head gets the bytes of
 * its header that are there; n_head says how many. */
static enum why
hello_walk(const unsigned char *raw, size_t len,
           unsigned char head[MESSAGE_HEAD], size_t *n_head)
{
    size_t at = 0, have = 0, need = MESSAGE_HEAD;

    *n_head = 0;
    while (have < need) {
        size_t n, there;

        if (!record_ok(raw + at, len - at))
            return WHY_PROTO;
        if (len - at <= RECORD_HEAD)
            return WHY_MORE;
        n = (size_t)raw[at + 3] << 8 | raw[at + 4];
        at += RECORD_HEAD;
        there = n < len - at ? n : len - at;
        for (size_t i = 0; i < there && *n_head < MESSAGE_HEAD; i++)
            head[(*n_head)++] = raw[at + i];
        if (head[0] != MESSAGE_CLIENT_HELLO)
            return WHY_PROTO;
        if (*n_head == MESSAGE_HEAD)
            need = MESSAGE_HEAD +
                   ((size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3]);
        if (need > HELLO_MAX)
            return WHY_LIMIT;
        have += there;
        at += there;
        if (there < n && have < need)
            return WHY_MORE;
    }
    return WHY_NONE;
}

/* ---- the cursor ---------------------------------------------------------- */

/* The next n (<= c->left) bytes, into out unless it is NULL. */
static void
cursor_move(struct cursor *c, unsigned char *out, size_t n)
{
    c->left -= n;
    while (n > 0) {
        size_t step;

        if (c->in_record == 0) { /* the next record begins here */
            c->in_record = (size_t)c->at[3] << 8 | c->at[4];
            c->at += RECORD_HEAD;
        }
        step = n < c->in_record ? n : c->in_record;
        if (out != NULL) {
            memcpy(out, c->at, step);
            out += step;
        }
        c->at += step;
        c->in_record -= step;
        n -= step;
    }
}

static bool
cursor_skip(struct cursor *c, size_t n)
{
    if (n > c->left)
        return false;
    cursor_move(c, NULL, n);
    return true;
}

static bool
cursor_number(struct cursor *c, size_t width, size_t *out)
{
    unsigned char b[2];

    if (width > c->left)
        return false;
    cursor_move(c, b, width);
    *out = width == 1 ? b[0] : (size_t)b[0] << 8 | b[1];
    return true;
}

/* A vector of min..max bytes behind its length of `width` bytes. */
static bool
cursor_vector(struct cursor *c, size_t width, size_t min, size_t max,
              struct cursor *out)
{
    size_t n;

    if (!cursor_number(c, width, &n) || n < min || n > max || n > c->left)
        return false;
    *out = *c;
    out->left = n;
    cursor_move(c, NULL, n);
    return true;
}

/* ---- the extensions we read ---------------------------------------------- */

/* Letters, digits, hyphen, and the underscore that people use all the same;
 * labels of 1..63 bytes.  In place to lower case, without the last dot. */
static bool
name_tidy(char *name, size_t *len)
{
    size_t label = 0;

    if (*len > 1 && name[*len - 1] == '.') /* RFC 6066 has none; some send it */
        (*len)--;
    for (size_t i = 0; i < *len; i++) {
        char c = name[i];

        if (c >= 'A' && c <= 'Z')
            name[i] = c = (char)(c - 'A' + 'a');
        label = c == '.' ? 0 : label + 1;
        if ((c == '.' && (i == 0 || name[i - 1] == '.')) || label > LABEL_MAX)
            return false;
        if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '-' &&
            c != '_' && c != '.')
            return false;
    }
    return name[*len - 1] != '.';
}

/* RFC 6066 section 3: at most one name of a type; types to come have a length
 * of 16 bits as well. */
static bool
hello_server_name(struct cursor ext, struct hello *out)
{
    struct cursor list, name;

    if (!cursor_vector(&ext, 2, 1, UINT16_MAX, &list) || ext.left != 0)
        return false;
    while (list.left > 0) {
        size_t type, len;

        if (!cursor_number(&list, 1, &type) ||
            !cursor_vector(&list, 2, 0, UINT16_MAX, &name))
            return false;
        if (type != NAME_HOST)
            continue;
        len = name.left;
        if (out->sni[0] != '\0' || len < 1 || len > HOST_MAX)
            return false;
        cursor_move(&name, (unsigned char *)out->sni, len);
        if (!name_tidy(out->sni, &len))
            return false;
        out->sni[len] = '\0';
    }
    return true;
}

/* RFC 8701 section 2: {0x?A, 0x?A}, offered to be ignored. */
static bool
is_grease(const unsigned char *name, size_t len)
{
    return len == 2 && name[0] == name[1] && (name[0] & 0x0f) == 0x0a;
}

static unsigned
alpn_of(const unsigned char *name, size_t len)
{
    if (len == 8 && memcmp(name, "http/1.1", 8) == 0)
        return ALPN_HTTP1;
    if (len == 2 && memcmp(name, "h2", 2) == 0)
        return ALPN_H2;
    if (len == 8 && memcmp(name, "http/1.0", 8) == 0)
        return ALPN_HTTP10;
    if (len == 2 && memcmp(name, "h3", 2) == 0)
        return ALPN_H3;
    return is_grease(name, len) ? 0 : ALPN_OTHER;
}

/* RFC 7301 section 3.1. */
static bool
hello_alpn(struct cursor ext, struct hello *out)
{
    struct cursor list, name;
    unsigned char text[UINT8_MAX];

    if (!cursor_vector(&ext, 2, 2, UINT16_MAX, &list) || ext.left != 0)
        return false;
    while (list.left > 0) {
        size_t len;

        if (!cursor_vector(&list, 1, 1, UINT8_MAX, &name))
            return false;
        len = name.left;
        cursor_move(&name, text, len);
        out->alpn |= alpn_of(text, len);
    }
    return true;
}

/*
 * hello_extension - one extension of a ClientHello that somebody else takes
 * apart: GnuTLS, where it comes by QUIC.
 *
 * at[0..len)  its content
 *
 * Returns false: malformed.  What is not looked at is well-formed.
 */
bool
hello_extension(struct hello *out, unsigned type, const void *at, size_t len)
{
    struct cursor c = {.at = at, .in_record = len, .left = len};

    if (type == EXT_SERVER_NAME)
        return hello_server_name(c, out);
    return type != EXT_ALPN || hello_alpn(c, out);
}

static bool
hello_extensions(struct cursor list, struct hello *out)
{
    struct cursor ext;
    bool had_name = false, had_alpn = false;
    size_t type;

    while (list.left > 0) {
        if (!cursor_number(&list, 2, &type) ||
            !cursor_vector(&list, 2, 0, UINT16_MAX, &ext))
            return false;
        /* Twice the same is forbidden, RFC 8446 section 4.2: which one the
         * server would believe is anybody's guess. */
        if (type == EXT_SERVER_NAME) {
            if (had_name || !hello_server_name(ext, out))
                return false;
            had_name = true;
        } else if (type == EXT_ALPN) {
            if (had_alpn || !hello_alpn(ext, out))
                return false;
            had_alpn = true;
        }
    }
    return true;
}

/* The message behind its header, RFC 8446 section 4.1.2. */
static bool
hello_body(struct cursor c, struct hello *out)
{
    struct cursor id, suites, methods, extensions;
    size_t version;

    if (!cursor_number(&c, 2, &version) || version >> 8 != 3 ||
        !cursor_skip(&c, 32) || !cursor_vector(&c, 1, 0, 32, &id) ||
        !cursor_vector(&c, 2, 2, UINT16_MAX - 1, &suites) ||
        suites.left % 2 != 0 || !cursor_vector(&c, 1, 1, UINT8_MAX, &methods))
        return false;
    if (c.left == 0) /* TLS 1.2 may do without extensions */
        return true;
    return cursor_vector(&c, 2, 0, UINT16_MAX, &extensions) && c.left == 0 &&
           hello_extensions(extensions, out);
}

/* ---- public -------------------------------------------------------------- */

/*
 * hello_parse - the ClientHello at the front of what a client sent.
 *
 * raw[0..len)  TLS records as received; what follows the ClientHello is not
 *              looked at
 * out          written only on WHY_NONE
 *
 * Returns WHY_NONE; WHY_MORE: it is not complete; WHY_PROTO: it is none, or
 * SNI or ALPN are malformed; WHY_LIMIT: HELLO_MAX bytes do not hold it.
 * Thread: any.  Does not block; allocates nothing.
 */
enum why
hello_parse(const void *raw, size_t len, struct hello *out)
{
    unsigned char head[MESSAGE_HEAD];
    size_t n_head;
    struct cursor c = {.at = raw};
    struct hello hello = {.alpn = 0};
    enum why why;

    if (len == 0) /* raw may be NULL then */
        return WHY_MORE;
    if (len > HELLO_MAX)
        len = HELLO_MAX;
    why = hello_walk(raw, len, head, &n_head);
    if (why == WHY_MORE && len >= HELLO_MAX)
        return WHY_LIMIT;
    if (why != WHY_NONE)
        return why;
    c.left =
        MESSAGE_HEAD + ((size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3]);
    cursor_move(&c, NULL, MESSAGE_HEAD);
    if (!hello_body(c, &hello))
        return WHY_PROTO;
    *out = hello;
    return WHY_NONE;
}

/*
 * hello_read - wait for a whole ClientHello, and leave it where it is.
 *
 * end       its buffer grows to HELLO_MAX at most; nothing is consumed
 * deadline  point in ms at which it must be there; 0: only idle_ms counts
 * out       written only on WHY_NONE
 *
 * Returns WHY_NONE; WHY_EOF: the peer ended before its first byte (not
 * noted); WHY_CUT: in the middle; WHY_PROTO, WHY_LIMIT; or what end_fill()
 * answered.  Thread: the reader.  Blocks: to the deadline.
 */
enum why
hello_read(struct end *end, int64_t deadline, struct hello *out, struct fail *f)
{
    int64_t before = end->deadline;
    enum why why;

    end->deadline = deadline;
    for (;;) {
        struct span ahead = end_ahead(end);

        why = hello_parse(ahead.at, ahead.len, out);
        if (why == WHY_PROTO || why == WHY_LIMIT)
            fail_own(f, end->side, why, "read ClientHello");
        if (why != WHY_MORE)
            break;
        why = end_fill(end, HELLO_MAX, f);
        if (why == WHY_EOF && end_ahead(end).len > 0)
            why = fail_own(f, end->side, WHY_CUT, "read ClientHello");
        if (why != WHY_NONE)
            break;
    }
    end->deadline = before;
    return why;
}
