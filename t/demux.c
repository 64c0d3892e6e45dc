/*
 * t/demux.c - datagrams of nobody, and what they are answered.
 *
 * weir is draining here, so that no connection ever begins.
 */
#include <gnutls/crypto.h>
#include <stdlib.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/net.h"
#include "t/tap.h"

static struct weir weir;
static uint8_t sent[4096]; /* the last answer */
static size_t n_sent;
static int n_answers, n_gone;

static void
note(void *arg, const struct quic_path *path, const void *at, size_t len,
     size_t segment)
{
    (void)arg, (void)path;
    NEED(len <= sizeof sent && segment == len);
    memcpy(sent, at, len);
    n_sent = len;
    n_answers++;
}

static void
gone(void *arg)
{
    (void)arg;
    n_gone++;
}

static struct demux *
begin(void)
{
    struct demux_user user = {.weir = &weir, .send = note, .gone = gone};
    struct demux *d = demux_new(&user);

    NEED(d != NULL);
    return d;
}

static void
put(struct demux *d, const void *at, size_t len, size_t segment)
{
    struct quic_path path = {0};

    path.remote.in = (struct sockaddr_in){.sin_family = AF_INET,
                                          .sin_addr = {htonl(INADDR_LOOPBACK)},
                                          .sin_port = htons(4433)};
    n_answers = 0;
    n_sent = 0;
    demux_put(d, &path, at, len, segment);
}

static void
settings(const char *more)
{
    char home[600], err[512];
    char *sets[] = {home, "log.level=error", (char *)more};
    struct config *conf, *before;

    snprintf(home, sizeof home, "intercept.dir=%s", dir_root);
    conf = config_read(NULL, sets, more != NULL ? 3 : 2, err, sizeof err);
    NEED(conf != NULL);
    if ((before = config_swap(&weir, conf)) != NULL)
        config_give(before);
}

/* The front of an Initial; its payload is noise. */
static size_t
initial(uint8_t out[1200], uint32_t version)
{
    static const uint8_t head[] = {0xc3, 0, 0, 0, 0, 8, 1, 2, 3, 4,    5,
                                   6,    7, 8, 4, 9, 9, 9, 9, 0, 0x44, 0x80};

    memset(out, 0x5a, 1200);
    memcpy(out, head, sizeof head);
    for (int i = 0; i < 4; i++)
        out[1 + i] = (uint8_t)(version >> (24 - 8 * i));
    return 1200;
}

static void
test_versions(void)
{
    struct demux *d = begin();
    uint8_t raw[1200];

    put(d, raw, initial(raw, 0x0badcafe), 1200);
    is_int(n_answers, 1, "a version that we do not know is answered");
    ok(n_sent > 20 && (sent[0] & 0x80) != 0 &&
           memcmp(sent + 1, "\0\0\0\0", 4) == 0,
       "  with a list of versions");
    ok(memcmp(sent + 5, "\4\x9\x9\x9\x9\x8\1\2\3\4\5\6\7\x8", 14) == 0,
       "  and the identifiers turned round");
    ok(memmem(sent + 19, n_sent - 19, "\0\0\0\1", 4) != NULL &&
           memmem(sent + 19, n_sent - 19, "\x6b\x33\x43\xcf", 4) != NULL,
       "  1 and 2 among them");
    initial(raw, 0x0badcafe);
    put(d, raw, 1199, 1199);
    is_int(n_answers, 0, "  but not if it is short");
    initial(raw, 0);
    put(d, raw, 1200, 1200);
    is_int(n_answers, 0, "a version negotiation is not negotiated with");
    demux_end(d);
}

static void
test_refused(void)
{
    struct demux *d = begin();
    uint8_t raw[1200];

    put(d, raw, initial(raw, 1), 1200);
    is_int(n_answers, 1, "an Initial that is not welcome is answered");
    ok(n_sent > 0 && n_sent < 200 && (sent[0] & 0xf0) == 0xc0 &&
           memcmp(sent + 1, "\0\0\0\1", 4) == 0,
       "  by a short Initial");
    initial(raw, 1);
    put(d, raw, 1199, 1199);
    is_int(n_answers, 0, "  but not a short one");
    initial(raw, 1);
    raw[5] = 7; /* an identifier that is too short, RFC 9000 section 7.2 */
    put(d, raw, 1200, 1200);
    is_int(n_answers, 0, "  nor one with a short identifier");
    is_int((long)demux_live(d), 0, "nothing was begun");
    demux_end(d);
}

static void
test_retry(void)
{
    struct demux *d;
    uint8_t raw[1200];

    atomic_store(&weir.draining, false);
    settings("http3.retry=always");
    d = begin();
    put(d, raw, initial(raw, 1), 1200);
    ok(n_answers == 1 && (sent[0] & 0xf0) == 0xf0, "retry = always: a Retry");
    is_int((long)demux_live(d), 0, "  and nothing else");
    demux_end(d);
    settings(NULL);
    atomic_store(&weir.draining, true);
}

static void
test_reset(void)
{
    struct demux *d = begin();
    uint8_t raw[200], token[16];

    memset(raw, 0x77, sizeof raw);
    raw[0] = 0x40;
    for (size_t len = 1; len < sizeof raw; len++) {
        put(d, raw, len, len);
        if (len < 43 ? n_answers != 0
                     : n_answers != 1 || n_sent >= len || n_sent < 21 ||
                           (sent[0] & 0xc0) != 0x40)
            diag("length %zu: %d answers, %zu bytes", len, n_answers, n_sent);
        else
            continue;
        break;
    }
    is_int((long)n_sent, 59, "each is answered by a shorter one, or by none");
    memcpy(token, sent + n_sent - sizeof token, sizeof token);
    demux_end(d);
    d = begin();
    put(d, raw, 100, 100);
    ok(memcmp(token, sent + n_sent - sizeof token, sizeof token) == 0,
       "somebody with the same CA gives the same token");
    raw[5] ^= 1;
    put(d, raw, 100, 100);
    ok(memcmp(token, sent + n_sent - sizeof token, sizeof token) != 0,
       "  and another for another connection");
    n_answers = 0;
    for (int i = 0, n = 0; i < 5000; i++) {
        put(d, raw, 100, 100);
        n_answers = n += n_answers;
    }
    ok(n_answers < 3000, "not everything is answered");
    demux_end(d);
}

/* Several behind each other, as the kernel hands them over. */
static void
test_lots(void)
{
    struct demux *d = begin();
    uint8_t raw[3 * 1200];

    for (int i = 0; i < 3; i++)
        initial(raw + i * 1200, 0x0badcafe);
    put(d, raw, sizeof raw, 1200);
    is_int(n_answers, 3, "three datagrams at once");
    put(d, raw, 1200 + 100, 1200);
    is_int(n_answers, 1, "the last one shorter");
    memset(raw, 0x55, sizeof raw);
    put(d, raw, 500, 100);
    is_int(n_answers, 5, "five of a connection that is not known");
    demux_end(d);
}

static void
test_noise(void)
{
    struct demux *d = begin();
    uint8_t raw[1500];
    unsigned seed = 1;
    int answers = 0;

    for (int i = 0; i < 20000; i++) {
        size_t len = 1 + (size_t)rand_r(&seed) % sizeof raw;

        for (size_t j = 0; j < len; j++)
            raw[j] = (uint8_t)rand_r(&seed);
        if (i % 2)
            memcpy(raw, "\xc0\0\0\0\1", len < 5 ? len : 5);
        put(d, raw, len, len);
        answers += n_answers;
        if (n_sent > 3 * len)
            break;
    }
    ok(answers > 0, "noise: never three times as much is answered");
    demux_end(d);
}

int
main(void)
{
    char err[512];

    dir_make();
    settings(NULL);
    weir.mitm = mitm_new(atomic_load(&weir.config), err, sizeof err);
    NEED(weir.mitm != NULL);
    atomic_store(&weir.draining, true);
    test_versions();
    test_refused();
    test_retry();
    test_reset();
    test_lots();
    test_noise();
    is_int(n_gone, 7, "each of them has gone");
    mitm_free(weir.mitm);
    config_give(atomic_load(&weir.config));
    dir_remove();
    return done_testing();
}
