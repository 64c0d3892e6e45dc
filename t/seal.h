/*
 * seal.h - Initial packets as a QUIC client makes them, for tests.
 *
 * Source: RFC 9001 section 5; appendix A.2 has an example that t/initial.c
 * checks this with.
 */
#ifndef SEAL_H
#define SEAL_H

#include <string.h>

#include <gnutls/crypto.h>

#include "proxy.h"

enum { V1 = 1, V2 = 0x6b3343cf, WHOLE = 1200 };

static const unsigned char dcid[] = {0x83, 0x94, 0xc8, 0xf0,
                                     0x3e, 0x51, 0x57, 0x08};

static size_t
from_hex(const char *hex, unsigned char *out)
{
    size_t n = strlen(hex) / 2;

    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)(hex_digit(hex[2 * i]) << 4 |
                                 hex_digit(hex[2 * i + 1]));
    return n;
}

struct made { /* being put together */
    unsigned char at[4096];
    size_t len;
};

static void
add(struct made *m, const void *at, size_t len)
{
    memcpy(m->at + m->len, at, len);
    m->len += len;
}

__attribute__((unused)) static void
add_number(struct made *m, uint64_t n)
{
    char out[VARINT_MAX];

    add(m, out, varint_put(out, n));
}

static void
expand(const unsigned char *secret, const char *label, void *out, size_t len)
{
    struct made info = {.len = 0};
    gnutls_datum_t from = {(unsigned char *)secret, 32}, with;
    unsigned char head[3] = {0, (unsigned char)len,
                             (unsigned char)(6 + strlen(label))};

    add(&info, head, 3);
    add(&info, "tls13 ", 6);
    add(&info, label, strlen(label) + 1); /* and an empty context */
    with = (gnutls_datum_t){info.at, (unsigned)info.len};
    gnutls_hkdf_expand(GNUTLS_MAC_SHA256, &from, &with, out, len);
}

/* One Initial at the end of a datagram: frames, PADDING so that it is `size`
 * long, protection.  A number of four bytes, as in the example. */
static void
seal(struct made *to, uint32_t version, const struct made *frames, size_t size,
     uint32_t number)
{
    static const char *const salts[] = {
        "38762cf7f55934b34d179ae6a4c80cadccbb7f0a",
        "0dede3def700a6db819381be6e269dcbf9bd2ed9"};
    bool two = version == V2;
    unsigned char salt[20], first[32], client[32], key[16], iv[12], hp[16];
    unsigned char plain[2048] = {0}, mask[16], *at = to->at + to->len;
    unsigned char zero[16] = {0};
    gnutls_datum_t id = {(unsigned char *)dcid, sizeof dcid};
    gnutls_datum_t with = {salt, sizeof salt}, k = {key, 16}, z = {zero, 16};
    gnutls_datum_t h = {hp, 16};
    gnutls_aead_cipher_hd_t aead;
    gnutls_cipher_hd_t cipher;
    size_t n_head = 22, n = size - n_head - 16, len = n + 16;
    unsigned char head[22] = {two ? 0xd3 : 0xc3};

    for (int i = 0; i < 4; i++)
        head[1 + i] = (unsigned char)(version >> (24 - 8 * i));
    head[5] = sizeof dcid;
    memcpy(head + 6, dcid, sizeof dcid);
    head[16] = (unsigned char)(0x40 | (len + 4) >> 8);
    head[17] = (unsigned char)(len + 4);
    for (int i = 0; i < 4; i++)
        head[18 + i] = (unsigned char)(number >> (24 - 8 * i));
    memcpy(plain, frames->at, frames->len);
    from_hex(salts[two], salt);
    gnutls_hkdf_extract(GNUTLS_MAC_SHA256, &id, &with, first);
    expand(first, "client in", client, 32);
    expand(client, two ? "quicv2 key" : "quic key", key, 16);
    expand(client, two ? "quicv2 iv" : "quic iv", iv, 12);
    expand(client, two ? "quicv2 hp" : "quic hp", hp, 16);
    for (int i = 0; i < 4; i++)
        iv[8 + i] ^= head[18 + i];
    memcpy(at, head, n_head);
    gnutls_aead_cipher_init(&aead, GNUTLS_CIPHER_AES_128_GCM, &k);
    gnutls_aead_cipher_encrypt(aead, iv, 12, head, n_head, 16, plain, n,
                               at + n_head, &len);
    gnutls_aead_cipher_deinit(aead);
    gnutls_cipher_init(&cipher, GNUTLS_CIPHER_AES_128_CBC, &h, &z);
    gnutls_cipher_encrypt2(cipher, at + n_head, 16, mask, 16);
    gnutls_cipher_deinit(cipher);
    at[0] ^= mask[0] & 0x0f;
    for (int i = 0; i < 4; i++)
        at[18 + i] ^= mask[1 + i];
    to->len += size;
}

#endif
