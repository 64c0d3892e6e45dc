/*
 * initial.c - the ClientHello in a QUIC client's first packets.
 *
 * They are encrypted with keys that everybody can make who sees them: they
 * are meant to be read by who carries them on, as long as he knows the version.
 * The ClientHello may be cut in pieces, in any order, over several packets; it
 * is put together here.  Nothing is answered and nothing else remembered, so
 * that a connection which is none of ours can go on as it is.
 *
 * Follows  RFC 9001 section 5 and appendix A, RFC 9000 sections 12.2, 17.2 and
 *          19, RFC 9369 section 3.
 * Owns     the pieces.
 * Threads  any; one at a time for a struct initial.
 * Blocks   never.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/crypto.h>

#include "proxy.h"

enum {
    DATAGRAM_MIN = 1200, /* RFC 9000 section 14.1 */
    CID_MAX = 20,        /* section 17.2 */
    SECRET = 32,
    KEY = 16,
    IV = 12,
    TAG = 16,
    SAMPLE = 16,
    PACKET_MAX = 65536,
    PACKETS = 8,         /* of one datagram */
    MESSAGE_MAX = 16384, /* what one TLS record holds */
    RECORD_HEAD = 5,
};

struct form { /* where versions differ (RFC 9369 section 3.3) */
    uint32_t number;
    unsigned initial; /* the type of these packets */
    unsigned char salt[20];
    const char *key, *iv, *hp;
};

static const struct form forms[] = {
    {1,
     0,
     {0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17,
      0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a},
     "quic key",
     "quic iv",
     "quic hp"},
    {0x6b3343cf,
     1,
     {0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93,
      0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9},
     "quicv2 key",
     "quicv2 iv",
     "quicv2 hp"},
};

struct keys {
    unsigned char key[KEY], iv[IV], hp[KEY];
};

struct initial {
    unsigned char record[RECORD_HEAD + MESSAGE_MAX]; /* as TLS would send it */
    unsigned char have[MESSAGE_MAX / 8];             /* a bit for each byte */
    size_t whole; /* bytes from the front without a gap */
};

/* ---- reading numbers ----------------------------------------------------- */

struct reader {
    const unsigned char *at;
    size_t left;
};

static bool
take(struct reader *r, size_t n, const unsigned char **at)
{
    if (r->left < n)
        return false;
    *at = r->at;
    r->at += n;
    r->left -= n;
    return true;
}

static bool
take_varint(struct reader *r, uint64_t *n)
{
    size_t len = varint_parse((const char *)r->at, r->left, n);

    r->at += len;
    r->left -= len;
    return len > 0;
}

/* Behind a length of one byte. */
static bool
take_id(struct reader *r, struct span *id)
{
    const unsigned char *len, *at;

    if (!take(r, 1, &len) || *len > CID_MAX || !take(r, *len, &at))
        return false;
    *id = (struct span){(const char *)at, *len};
    return true;
}

/* ---- keys ---------------------------------------------------------------- */

/* HKDF-Expand-Label of RFC 8446 section 7.1, without a context. */
static bool
expand(const unsigned char secret[SECRET], const char *label, void *out,
       size_t len)
{
    unsigned char info[64];
    size_t n = strlen(label);
    gnutls_datum_t from = {(unsigned char *)secret, SECRET}, with = {info, 0};

    info[0] = 0;
    info[1] = (unsigned char)len;
    info[2] = (unsigned char)(6 + n);
    memcpy(info + 3, "tls13 ", 6);
    memcpy(info + 9, label, n);
    info[9 + n] = 0;
    with.size = (unsigned)(10 + n);
    return gnutls_hkdf_expand(GNUTLS_MAC_SHA256, &from, &with, out, len) == 0;
}

/* The client's, RFC 9001 section 5.2. */
static bool
make_keys(const struct form *v, struct span dcid, struct keys *k)
{
    unsigned char first[SECRET], client[SECRET];
    gnutls_datum_t from = {(unsigned char *)dcid.at, (unsigned)dcid.len};
    gnutls_datum_t salt = {(unsigned char *)v->salt, sizeof v->salt};

    return gnutls_hkdf_extract(GNUTLS_MAC_SHA256, &from, &salt, first) == 0 &&
           expand(first, "client in", client, sizeof client) &&
           expand(client, v->key, k->key, sizeof k->key) &&
           expand(client, v->iv, k->iv, sizeof k->iv) &&
           expand(client, v->hp, k->hp, sizeof k->hp);
}

/* One block of AES, which is CBC's first with a zero before it. */
static bool
block(const unsigned char key[KEY], const unsigned char in[SAMPLE],
      unsigned char out[SAMPLE])
{
    static unsigned char zero[SAMPLE];
    gnutls_datum_t k = {(unsigned char *)key, KEY}, iv = {zero, sizeof zero};
    gnutls_cipher_hd_t h;
    bool good;

    if (gnutls_cipher_init(&h, GNUTLS_CIPHER_AES_128_CBC, &k, &iv) != 0)
        return false;
    good = gnutls_cipher_encrypt2(h, in, SAMPLE, out, SAMPLE) == 0;
    gnutls_cipher_deinit(h);
    return good;
}

/* The content of a packet whose head[0..n_head) is unprotected. */
static bool
decrypt(const struct keys *k, const unsigned char *head, size_t n_head,
        uint64_t number, const unsigned char *in, size_t len,
        unsigned char *out, size_t *n)
{
    unsigned char nonce[IV];
    gnutls_datum_t key = {(unsigned char *)k->key, KEY};
    gnutls_aead_cipher_hd_t h;
    bool good;

    memcpy(nonce, k->iv, IV);
    for (int i = 0; i < 8; i++)
        nonce[IV - 1 - i] ^= (unsigned char)(number >> 8 * i);
    if (gnutls_aead_cipher_init(&h, GNUTLS_CIPHER_AES_128_GCM, &key) != 0)
        return false;
    *n = PACKET_MAX;
    good = gnutls_aead_cipher_decrypt(h, nonce, IV, head, n_head, TAG, in, len,
                                      out, n) == 0;
    gnutls_aead_cipher_deinit(h);
    return good;
}

/* ---- packets ------------------------------------------------------------- */

struct packet { /* a protected one */
    const struct form *form;
    const unsigned char *at; /* its first byte */
    struct span dcid;
    size_t number_at;   /* where its number is, from `at` */
    struct reader rest; /* from there to its end */
};

/* The next packet of a datagram.  False: no Initial of a version we know. */
static bool
next_packet(struct reader *r, struct packet *p)
{
    const unsigned char *at = r->at, *bytes;
    struct span scid;
    uint64_t len, token;
    uint32_t number;

    if (!take(r, 5, &bytes) || (bytes[0] & 0xc0) != 0xc0)
        return false;
    number = (uint32_t)bytes[1] << 24 | (uint32_t)bytes[2] << 16 |
             (uint32_t)bytes[3] << 8 | bytes[4];
    p->form = NULL;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (forms[i].number == number)
            p->form = &forms[i];
    if (p->form == NULL || (bytes[0] >> 4 & 3) != p->form->initial ||
        !take_id(r, &p->dcid) || !take_id(r, &scid) ||
        !take_varint(r, &token) || token > r->left ||
        !take(r, (size_t)token, &bytes) || !take_varint(r, &len) ||
        len > r->left)
        return false;
    p->at = at;
    p->number_at = (size_t)(r->at - at);
    p->rest.at = r->at;
    p->rest.left = (size_t)len;
    return take(r, (size_t)len, &bytes);
}

/* Take the protection off, RFC 9001 sections 5.3 and 5.4.  out: PACKET_MAX
 * bytes. */
static bool
open_packet(const struct packet *p, unsigned char *out, size_t *n)
{
    unsigned char mask[SAMPLE], *head;
    struct keys k;
    size_t n_number, n_head;
    uint64_t number = 0;
    bool good;

    if (p->rest.left < 4 + SAMPLE || !make_keys(p->form, p->dcid, &k) ||
        !block(k.hp, p->rest.at + 4, mask))
        return false;
    n_number = ((p->at[0] ^ mask[0]) & 3) + 1u;
    n_head = p->number_at + n_number;
    if ((head = malloc(n_head)) == NULL)
        return false;
    memcpy(head, p->at, n_head);
    head[0] ^= mask[0] & 0x0f;
    for (size_t i = 0; i < n_number; i++) {
        head[p->number_at + i] ^= mask[1 + i];
        number = number << 8 | head[p->number_at + i];
    }
    good = decrypt(&k, head, n_head, number, p->rest.at + n_number,
                   p->rest.left - n_number, out, n);
    free(head);
    return good;
}

/* ---- frames -------------------------------------------------------------- */

/* A piece of the handshake, RFC 9000 section 19.6. */
static bool
crypto(struct initial *t, struct reader *r)
{
    const unsigned char *at;
    uint64_t from, len;

    if (!take_varint(r, &from) || !take_varint(r, &len) || len > r->left ||
        !take(r, (size_t)len, &at) || from > MESSAGE_MAX ||
        len > MESSAGE_MAX - from)
        return false;
    memcpy(t->record + RECORD_HEAD + from, at, (size_t)len);
    for (size_t i = (size_t)from; i < from + len; i++)
        t->have[i / 8] |= (unsigned char)(1 << i % 8);
    while (t->whole < MESSAGE_MAX &&
           (t->have[t->whole / 8] >> t->whole % 8 & 1) != 0)
        t->whole++;
    return true;
}

static bool
skip_varints(struct reader *r, uint64_t n)
{
    uint64_t ignored;

    while (n > 0 && take_varint(r, &ignored))
        n--;
    return n == 0;
}

/* Skipped, RFC 9000 section 19.3. */
static bool
ack(struct reader *r, bool ecn)
{
    uint64_t ranges; /* below 2^62 */

    return skip_varints(r, 2) && take_varint(r, &ranges) &&
           skip_varints(r, 1 + 2 * ranges) && (!ecn || skip_varints(r, 3));
}

/* What an Initial may have in it, RFC 9000 section 12.4, but for its end. */
static bool
frames(struct initial *t, const unsigned char *at, size_t len)
{
    struct reader r = {at, len};
    uint64_t type;

    while (r.left > 0) {
        if (!take_varint(&r, &type))
            return false;
        if (type == 6                ? !crypto(t, &r)
            : type == 2 || type == 3 ? !ack(&r, type == 3)
                                     : type > 1) /* neither PADDING nor PING */
            return false;
    }
    return true;
}

/* ---- public -------------------------------------------------------------- */

/* NULL: out of memory. */
struct initial *
initial_new(void)
{
    return calloc(1, sizeof(struct initial));
}

void
initial_free(struct initial *t)
{
    free(t);
}

/*
 * initial_read - one more datagram of a client.
 *
 * out  written only on WHY_NONE
 *
 * Returns WHY_NONE: the ClientHello is complete; WHY_MORE: it goes on in
 * another datagram; WHY_PROTO: this is nothing that a QUIC client begins with,
 * or of a version that we cannot read.
 */
enum why
initial_read(struct initial *t, const void *at, size_t len, struct hello *out)
{
    struct reader r = {at, len};
    struct packet p;
    unsigned char *plain;
    size_t n, some = 0;
    enum why why;

    if (len < DATAGRAM_MIN || (plain = malloc(PACKET_MAX)) == NULL)
        return WHY_PROTO;
    while (some < PACKETS && next_packet(&r, &p) &&
           open_packet(&p, plain, &n) && frames(t, plain, n))
        some++;
    free(plain);
    if (some == 0)
        return WHY_PROTO;
    if (t->whole == 0)
        return WHY_MORE;
    t->record[0] = 0x16; /* a handshake record, RFC 8446 section 5.1 */
    t->record[1] = 3;
    t->record[2] = 1;
    t->record[3] = (unsigned char)(t->whole >> 8);
    t->record[4] = (unsigned char)(t->whole & 0xff);
    why = hello_parse(t->record, RECORD_HEAD + t->whole, out);
    return why == WHY_LIMIT || (why == WHY_MORE && t->whole == MESSAGE_MAX)
               ? WHY_PROTO
               : why;
}
