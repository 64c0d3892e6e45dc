/*
 * match.c - fuzz the lists of hosts.
 *
 * The first line of the input is a host, the rest the list.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = malloc(len + 1), *list, err[256] = "";
    struct match *m;

    assert(text != NULL);
    memcpy(text, data, len);
    text[len] = '\0';
    list = strchr(text, '\n');
    if (list != NULL) {
        *list++ = '\0';
        m = match_parse(list, err, sizeof err);
        if (m == NULL)
            assert(err[0] != '\0');
        else {
            assert(!match_empty(m) || !match_host(m, text, 443));
            (void)match_host(m, text, 1);
        }
        match_free(m);
    }
    free(text);
    return 0;
}
