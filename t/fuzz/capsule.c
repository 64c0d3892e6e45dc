/*
 * capsule.c - fuzz the parser of capsules.
 *
 * The first byte says where the input is cut: the parser must find the same
 * datagrams, and the same place to stop, in two pieces as in one.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct result {
    size_t n, len;
    char *all;
    bool between;
};

/* raw[from..to), in memory of its own. */
static void
parse(struct capsules *k, const char *raw, size_t from, size_t to,
      struct result *r)
{
    size_t len = to - from, used, done = 0;
    char *copy = malloc(len + 1);
    struct span value;
    enum why why;

    assert(copy != NULL);
    memcpy(copy, raw + from, len);
    while ((why = capsule_parse(k, copy + done, len - done, &used, &value)) !=
           WHY_MORE) {
        assert(why == WHY_NONE || why == WHY_LIMIT);
        assert(used <= len - done && value.len <= CAPSULE_MAX);
        assert(why == WHY_NONE || value.len == VARINT_MAX);
        memcpy(r->all + r->len, value.at, value.len);
        r->len += value.len;
        r->n++;
        done += used;
    }
    assert(done + used == len);
    free(copy);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct result r[2];

    if (len < 1)
        return 0;
    for (int i = 0; i < 2; i++) {
        size_t cut = i == 0 || data[0] > len - 1 ? len - 1 : data[0];
        struct capsules k = {0};

        r[i] = (struct result){.all = malloc(len)};
        assert(r[i].all != NULL);
        parse(&k, (const char *)data + 1, 0, cut, &r[i]);
        parse(&k, (const char *)data + 1, cut, len - 1, &r[i]);
        r[i].between = capsule_between(&k);
        capsules_clear(&k);
    }
    assert(r[0].n == r[1].n && r[0].len == r[1].len);
    assert(r[0].between == r[1].between);
    assert(memcmp(r[0].all, r[1].all, r[0].len) == 0);
    free(r[0].all);
    free(r[1].all);
    return 0;
}
