/*
 * chunks.c - fuzz the parser of chunked bodies.
 *
 * The first byte says where the input is cut: the parser must find the same
 * data, the same end and the same verdict in two pieces as in one.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct result {
    enum why why; /* WHY_MORE: no end within the input */
    size_t used, n;
    char *body;
};

/* Feed raw[0..len) in pieces: up to `cut`, then all of it. */
static struct result
parse(const char *raw, size_t len, size_t cut)
{
    struct h1_chunks chunks = {0};
    struct fail f = {0};
    struct result r = {.why = WHY_MORE, .body = malloc(len + 1)};
    size_t end = cut < len ? cut : len;

    assert(r.body != NULL);
    for (;;) {
        struct span piece = {NULL, 0};
        size_t used = 0;

        r.why = h1_parse_chunks(&chunks, raw + r.used, end - r.used, &used,
                                &piece, &f);
        assert(used <= end - r.used && piece.len <= used);
        assert(r.n + piece.len <= len);
        if (piece.len > 0)
            memcpy(r.body + r.n, piece.at, piece.len);
        r.n += piece.len;
        r.used += used;
        if (r.why == WHY_MORE && end < len)
            end = len;
        else if (r.why != WHY_NONE)
            return r;
        else
            assert(used > 0); /* or this would go on for ever */
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct result whole, cut;

    if (len < 1)
        return 0;
    whole = parse((const char *)data + 1, len - 1, len);
    cut = parse((const char *)data + 1, len - 1, data[0]);
    assert(whole.why == cut.why);
    /* What led to an error may have been read in other steps. */
    if (whole.why == WHY_MORE || whole.why == WHY_EOF) {
        assert(whole.n == cut.n && whole.used == cut.used);
        assert(memcmp(whole.body, cut.body, whole.n) == 0);
    }
    free(whole.body);
    free(cut.body);
    return 0;
}
