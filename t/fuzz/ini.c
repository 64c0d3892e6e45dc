/*
 * ini.c - fuzz the reader of proxy.ini.
 *
 * A file is taken whole or refused with one line that says why.
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proxy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static int fd = -1;
    char path[32], err[512] = "";
    struct config *conf;

    if (fd < 0)
        fd = memfd_create("proxy.ini", 0);
    assert(fd >= 0 && ftruncate(fd, 0) == 0);
    assert(pwrite(fd, data, len, 0) == (ssize_t)len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    conf = config_read(path, NULL, 0, err, sizeof err);
    if (conf == NULL) {
        assert(err[0] != '\0' && strchr(err, '\n') == NULL);
        return 0;
    }
    assert(conf->workers >= 1 && conf->n_listen >= 1);
    (void)match_host(conf->only, "www.example.test", 443);
    (void)match_host(conf->except, "::1", 80);
    config_give(conf);
    return 0;
}
