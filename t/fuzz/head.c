/*
 * head.c - fuzz the HTTP/1 head parser.
 *
 * The first byte of the input chooses request or answer, the rest is what was
 * received.  Beyond not crashing: a head that is accepted obeys the
 * grammar and the limits, is the same head when nothing follows it, and is not
 * there before its last byte is.
 */
#include <assert.h>
#include <string.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static const struct h1_limits limits = {
    .head_bytes = 4096, .target_bytes = 1024, .n_fields = 40};

static void
check_fields(const struct head *h, size_t used)
{
    assert(h->n_fields <= limits.n_fields);
    for (size_t i = 0; i < h->n_fields; i++) {
        const struct field *f = &h->fields[i];

        assert(is_token(f->name) && f->name.len <= used);
        assert(is_field_value(f->value) && f->value.len <= used);
    }
}

static bool
same(struct span a, struct span b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}

static void
check_accepted(const char *raw, size_t used, enum side from,
               const struct head *h)
{
    struct head again;
    struct fail f = {0};
    size_t used_again = 0;

    head_init(&again);
    assert(h1_parse_head(raw, used, from, &limits, &again, &used_again, &f) ==
           WHY_NONE);
    assert(used_again == used && again.n_fields == h->n_fields);
    assert(same(again.target, h->target) && again.status == h->status);
    assert(again.body == h->body && again.length == h->length);
    for (size_t cut = 1; cut <= 4 && cut < used; cut++) {
        head_reset(&again);
        assert(h1_parse_head(raw, used - cut, from, &limits, &again,
                             &used_again, &f) != WHY_NONE);
    }
    head_clear(&again);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    enum side from;
    const char *raw = (const char *)data + 1;
    struct head h;
    struct fail f = {0};
    size_t used = 0;

    if (len < 1)
        return 0;
    from = data[0] & 1 ? SIDE_ORIGIN : SIDE_CLIENT;
    head_init(&h);
    if (h1_parse_head(raw, len - 1, from, &limits, &h, &used, &f) == WHY_NONE) {
        assert(used >= 1 && used <= len - 1);
        check_fields(&h, used);
        check_accepted(raw, used, from, &h);
    }
    head_clear(&h);
    return 0;
}
