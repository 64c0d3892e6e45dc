/*
 * hello.c - fuzz the ClientHello reader.
 *
 * What is accepted is a C string that fits, and it is not accepted before all
 * of it is there.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct hello hello;
    enum why why = hello_parse(data, len, &hello);
    size_t low = 0, high = len;

    if (why != WHY_NONE)
        return 0;
    assert(memchr(hello.sni, '\0', sizeof hello.sni) != NULL);
    assert((hello.alpn &
            ~(ALPN_HTTP1 | ALPN_H2 | ALPN_HTTP10 | ALPN_OTHER | ALPN_H3)) == 0);
    while (low < high) { /* the shortest beginning that is a ClientHello */
        size_t mid = low + (high - low) / 2;
        /* a copy of its own, so that a read beyond it is noticed */
        char *copy = malloc(mid + 1);

        assert(copy != NULL);
        memcpy(copy, data, mid);
        why = hello_parse(copy, mid, &hello);
        free(copy);
        assert(why == WHY_NONE || why == WHY_MORE);
        if (why == WHY_NONE)
            high = mid;
        else
            low = mid + 1;
    }
    return 0;
}
