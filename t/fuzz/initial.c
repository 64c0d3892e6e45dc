/*
 * initial.c - fuzz what reads a QUIC client's first packets.
 *
 * The first byte chooses: the input is a datagram as it came, or the frames in
 * one or two packets, sealed as a client does, or nothing inside would ever be
 * seen.  The second one says where the frames are cut in two.
 */
#include <assert.h>
#include <stdlib.h>

#include "proxy.h"
#include "t/seal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum { FRAMES_MAX = WHOLE - 22 - 16 };

static void
put(struct initial *t, const void *at, size_t len)
{
    struct hello hello = {.sni = "?"};
    char *copy = malloc(len + 1);
    enum why why;

    assert(copy != NULL);
    memcpy(copy, at, len);
    why = initial_read(t, copy, len, &hello);
    assert(why == WHY_NONE || why == WHY_MORE || why == WHY_PROTO);
    assert((why == WHY_NONE) == (hello.sni[0] != '?'));
    free(copy);
}

static void
put_frames(struct initial *t, uint32_t version, const uint8_t *at, size_t len)
{
    struct made frames = {.len = 0}, m = {.len = 0};

    add(&frames, at, len < FRAMES_MAX ? len : FRAMES_MAX);
    seal(&m, version, &frames, WHOLE, 0);
    put(t, m.at, m.len);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct initial *t = initial_new();
    uint32_t version;
    size_t cut;

    assert(t != NULL);
    if (len >= 2 && (data[0] & 1) == 0) {
        put(t, data + 1, len - 1);
    } else if (len >= 2) {
        version = data[0] & 2 ? V2 : V1;
        cut = (size_t)data[1] * 4 < len - 2 ? (size_t)data[1] * 4 : len - 2;
        put_frames(t, version, data + 2, cut);
        put_frames(t, version, data + 2 + cut, len - 2 - cut);
    }
    initial_free(t);
    return 0;
}
