/*
 * t/initial.c - a QUIC client's first packets: in one datagram or in several,
 * in order or not, of both versions; and what is none.
 *
 * Packets are sealed here as a client does; that this is right is seen from
 * the example in RFC 9001 appendix A.2, which has to come out the same.
 */
#include <stdlib.h>

#include "proxy.h"
#include "t/seal.h"
#include "t/tap.h"

enum { HELLO_LEN = 241 };

/* RFC 9001 appendix A.2: the ClientHello, for example.com. */
static const char hello_hex[] =
    "010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47"
    "f06a2b69484c00000413011302010000c000000010000e00000b6578616d706c"
    "652e636f6dff01000100000a00080006001d0017001800100007000504616c70"
    "6e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559f"
    "edba753de171fa71f50f1ce15d43e994ec74d748002b0003020304000d001000"
    "0e0403050306030203080408050806002d00020101001c000240010039003204"
    "08ffffffffffffffff05048000ffff07048000ffff0801100104800075300901"
    "100f088394c8f03e51570806048000ffff";
static unsigned char hello[HELLO_LEN];

/* ---- a client ------------------------------------------------------------ */

static void
add_crypto(struct made *m, size_t from, size_t len)
{
    add_number(m, 6);
    add_number(m, from);
    add_number(m, len);
    add(m, hello + from, len);
}

/* ---- reading ------------------------------------------------------------- */

/* In memory of its own, so that a sanitizer sees a read beyond it. */
static enum why
put(struct initial *t, const struct made *m, size_t len, struct hello *h)
{
    unsigned char *copy = malloc(len > 0 ? len : 1);
    enum why why;

    memcpy(copy, m->at, len);
    why = initial_read(t, copy, len, h);
    free(copy);
    return why;
}

static enum why
alone(const struct made *m, size_t len, struct hello *h)
{
    struct initial *t = initial_new();
    enum why why = put(t, m, len, h);

    initial_free(t);
    return why;
}

static void
test_example(void)
{
    unsigned char want[64];
    struct made frames = {.len = 0}, m = {.len = 0}, two = {.len = 0};
    struct hello h;

    from_hex("c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11"
             "d242b123dc9bd8bab936b47d92ec356c0bab7df5976d27cd449f63300099f399",
             want);
    add_crypto(&frames, 0, HELLO_LEN);
    seal(&m, V1, &frames, WHOLE, 2);
    ok(memcmp(m.at, want, sizeof want) == 0, "the example of RFC 9001");
    is_int(alone(&m, m.len, &h), WHY_NONE, "is read");
    is_str(h.sni, "example.com", "its name");
    is_int(h.alpn, ALPN_OTHER, "its protocol, \"alpn\"");
    seal(&two, V2, &frames, WHOLE, 0);
    is_int(alone(&two, two.len, &h), WHY_NONE, "the same in version 2");
    is_str(h.sni, "example.com", "its name");
}

/* No cut and no flipped bit may pass, or be read beyond. */
static void
test_broken(void)
{
    struct made frames = {.len = 0}, m = {.len = 0}, bad;
    struct hello h;
    bool good = true;

    add_crypto(&frames, 0, HELLO_LEN);
    seal(&m, V1, &frames, WHOLE, 2);
    for (size_t cut = 0; cut < m.len; cut++)
        good = good && alone(&m, cut, &h) == WHY_PROTO;
    ok(good, "cut anywhere it is none");
    good = true;
    for (size_t i = 0; i < m.len; i++) {
        bad = m;
        bad.at[i] ^= 0x10;
        good = good && alone(&bad, bad.len, &h) == WHY_PROTO;
    }
    ok(good, "nor with a bit turned over");
    bad = m;
    memset(bad.at + m.len, 0, 100);
    is_int(alone(&bad, m.len + 100, &h), WHY_NONE,
           "what follows in the datagram does not matter");
    bad.at[4] = 3;
    is_int(alone(&bad, m.len, &h), WHY_PROTO, "another version");
}

static void
test_pieces(void)
{
    struct made frames = {.len = 0}, a = {.len = 0}, b = {.len = 0};
    struct made both = {.len = 0};
    struct initial *t = initial_new();
    struct hello h;

    add_crypto(&frames, 100, 100);
    add_number(&frames, 1); /* PING */
    add_crypto(&frames, 50, 70);
    add_number(&frames, 0);
    add_crypto(&frames, 0, 20);
    seal(&a, V1, &frames, WHOLE, 0);
    frames.len = 0;
    add(&frames, "\2\0\0\0\0\3\5\0\1\0\0\0\1\2\3", 15); /* two kinds of ACK */
    add_crypto(&frames, 200, HELLO_LEN - 200);
    add_crypto(&frames, 20, 30);
    seal(&b, V1, &frames, WHOLE, 1);
    is_int(put(t, &a, a.len, &h), WHY_MORE, "some of it");
    is_int(put(t, &a, a.len, &h), WHY_MORE, "the same again");
    is_int(put(t, &b, b.len, &h), WHY_NONE, "and the rest");
    is_str(h.sni, "example.com", "its name");
    initial_free(t);
    t = initial_new();
    is_int(put(t, &b, b.len, &h), WHY_MORE, "the other one first");
    is_int(put(t, &a, a.len, &h), WHY_NONE, "then the first");
    initial_free(t);
    frames.len = 0;
    add_crypto(&frames, 0, 100);
    seal(&both, V1, &frames, 600, 0);
    frames.len = 0;
    add_crypto(&frames, 100, HELLO_LEN - 100);
    seal(&both, V1, &frames, 600, 1);
    is_int(alone(&both, both.len, &h), WHY_NONE, "two packets in a datagram");
}

/* What is sealed as it should be, and says what it should not. */
static void
test_frames(void)
{
    static const struct {
        const char *hex, *what;
    } bad[] = {
        {"08", "a STREAM frame"},
        {"1c0000", "its end"},
        {"060044", "CRYPTO of zeros"},
        {"06c00000000000ffff0161", "CRYPTO too far on"},
        {"0600bfffffff", "CRYPTO longer than the packet"},
        {"020000c0ffffffffffffff00", "an ACK of ranges without end"},
        {"ffffffffffffffff", "a frame of the largest type"},
    };
    struct made frames, m;
    struct hello h;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        frames.len = m.len = 0;
        frames.len = from_hex(bad[i].hex, frames.at);
        seal(&m, V1, &frames, WHOLE, 0);
        is_int(alone(&m, m.len, &h), WHY_PROTO, "%s", bad[i].what);
    }
    frames.len = m.len = 0;
    seal(&m, V1, &frames, WHOLE, 0);
    is_int(alone(&m, m.len, &h), WHY_MORE, "nothing yet");
    memset(hello, 0xff, 4);
    frames.len = m.len = 0;
    add_crypto(&frames, 0, HELLO_LEN);
    seal(&m, V1, &frames, WHOLE, 0);
    is_int(alone(&m, m.len, &h), WHY_PROTO, "no ClientHello");
}

int
main(void)
{
    from_hex(hello_hex, hello);
    test_example();
    test_broken();
    test_pieces();
    test_frames();
    return done_testing();
}
