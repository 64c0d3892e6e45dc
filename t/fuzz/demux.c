/*
 * demux.c - fuzz what a datagram that belongs to nobody leads to.
 *
 * The input is cut into datagrams of the length that its first two bytes say.
 * No connection begins, for weir is draining; never is more than three times
 * as much answered as has come (RFC 9000 section 8).
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct weir weir;
static struct demux *demux;
static size_t answered;

static void
count(void *arg, const struct quic_path *path, const void *at, size_t len,
      size_t segment)
{
    (void)arg, (void)path, (void)at;
    assert(len == segment);
    answered += len;
}

static void
begin(void)
{
    struct demux_user user = {.weir = &weir, .send = count};
    char home[] = "/tmp/weir-fuzz-XXXXXX", set[64], err[512];
    char *sets[] = {set, "log.level=error"};

    assert(mkdtemp(home) != NULL);
    snprintf(set, sizeof set, "intercept.dir=%s", home);
    atomic_store(&weir.config, config_read(NULL, sets, 2, err, sizeof err));
    atomic_store(&weir.draining, true);
    weir.mitm = mitm_new(atomic_load(&weir.config), err, sizeof err);
    assert(weir.mitm != NULL);
    demux = demux_new(&user);
    assert(demux != NULL);
    for (int i = 0; i < 3; i++) { /* the CA is not needed any more */
        static const char *const files[] = {"ca.pem", "ca.key", "bundle.pem"};
        char path[128];

        snprintf(path, sizeof path, "%s/%s", home, files[i]);
        (void)unlink(path);
    }
    (void)rmdir(home);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct quic_path path = {0};
    size_t segment;
    uint8_t *copy;

    if (demux == NULL)
        begin();
    if (len < 3)
        return 0;
    segment = ((size_t)data[0] << 8 | data[1]) % 1500 + 1;
    path.remote.in.sin_family = AF_INET;
    copy = malloc(len - 2); /* so that a read beyond it is noticed */
    assert(copy != NULL);
    memcpy(copy, data + 2, len - 2);
    answered = 0;
    demux_put(demux, &path, copy, len - 2, segment);
    assert(answered <= 3 * (len - 2));
    assert(demux_live(demux) == 0);
    free(copy);
    return 0;
}
