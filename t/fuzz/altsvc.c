/*
 * altsvc.c - fuzz the Alt-Svc reader.
 *
 * What it finds is a place: a C string that fits, and a port.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    /* a copy of its own, so that a read beyond it is noticed */
    char *copy = malloc(len + 1);
    struct altsvc alt;

    assert(copy != NULL);
    memcpy(copy, data, len);
    if (altsvc_parse((struct span){copy, len}, &alt) == ALTSVC_H3) {
        assert(memchr(alt.host, '\0', sizeof alt.host) != NULL);
        assert(alt.port != 0 && alt.ma_s >= 0);
    }
    free(copy);
    return 0;
}
