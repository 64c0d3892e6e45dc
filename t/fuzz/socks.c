/*
 * socks.c - fuzz the SOCKS messages.
 *
 * The first byte says where the conversation is.  What is accepted is a C
 * string that fits; used stays within the input; every shorter beginning of a
 * good message asks for more.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static enum why
parse(const struct socks *s, const uint8_t *data, size_t len, size_t *used,
      struct socks *next)
{
    struct socks_said said;
    /* a copy of its own, so that a read beyond it is noticed */
    char *copy = malloc(len + 1);
    enum why why;

    assert(copy != NULL);
    memcpy(copy, data, len);
    why = socks_parse(s, copy, len, used, &said, next);
    if (why == WHY_NONE && s->wants == SOCKS_LOGIN && next->version == 5)
        assert(said.user.len > 0 &&
               said.user.at + said.user.len <= copy + len &&
               said.pass.at + said.pass.len <= copy + len);
    free(copy);
    return why;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const struct socks starts[] = {
        {0},
        {.version = 5, .wants = SOCKS_LOGIN},
        {.version = 5, .wants = SOCKS_REQUEST},
    };
    const struct socks *s;
    struct socks next;
    size_t used = 0, ignored;

    if (len == 0)
        return 0;
    s = &starts[data[0] % 3];
    data++;
    len--;
    if (parse(s, data, len, &used, &next) != WHY_NONE)
        return 0;
    assert(used >= 1 && used <= len && used <= 8 + 2 * 256);
    assert(memchr(next.host, '\0', sizeof next.host) != NULL);
    for (size_t cut = 0; cut < used; cut++)
        assert(parse(s, data, cut, &ignored, &next) == WHY_MORE);
    return 0;
}
