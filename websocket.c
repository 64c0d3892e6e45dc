/*
 * websocket.c - the key of a WebSocket handshake, where HTTP versions meet.
 *
 * HTTP/1 proves by a key that a server knows WebSocket (RFC 6455 section 4);
 * HTTP/2 and 3 do not (RFC 8441 section 5).  Where they meet, the HTTP/1 side
 * gets its key, or its answer, from here.
 *
 * Owns     nothing: what is remembered is in struct h1.
 * Threads  the reader or the writer of that h1.
 * Blocks   never.
 */
#include <stdio.h>
#include <string.h>

#include <gnutls/crypto.h>

#include "proxy.h"

enum { WS_KEY = 16, WS_ACCEPT = 20 /* bytes: a nonce, and a SHA-1 */ };

static bool
base64(const void *raw, size_t len, char out[32])
{
    gnutls_datum_t from = {(unsigned char *)raw, (unsigned)len}, text;
    bool fits;

    if (gnutls_base64_encode2(&from, &text) < 0)
        return false;
    if ((fits = text.size < 32)) {
        memcpy(out, text.data, text.size);
        out[text.size] = '\0';
    }
    gnutls_free(text.data);
    return fits;
}

/* What a server answers to a key: RFC 6455 section 4.2.2, step 5.4. */
bool
ws_accept(const char *key, char out[32])
{
    char text[96];
    unsigned char sum[WS_ACCEPT];
    int n = snprintf(text, sizeof text,
                     "%s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);

    return gnutls_hash_fast(GNUTLS_DIG_SHA1, text, (size_t)n, sum) == 0 &&
           base64(sum, sizeof sum, out);
}

static bool
is_websocket(const struct head *head)
{
    return head->upgrade.len > 0 && list_has(head->upgrade, "websocket");
}

/* Server role: remember the key, should the origin have no use for it. */
void
ws_note_key(struct h1 *h, const struct head *head)
{
    const struct field *key =
        is_websocket(head) ? head_find(head, "Sec-WebSocket-Key", NULL) : NULL;

    h->ws_key[0] = '\0';
    if (key != NULL && key->value.len < sizeof h->ws_key) {
        memcpy(h->ws_key, key->value.at, key->value.len);
        h->ws_key[key->value.len] = '\0';
    }
}

/* Client role: a key of our own for a client whose version has none. */
bool
ws_make_key(struct h1 *h, const struct head *head)
{
    unsigned char nonce[WS_KEY];

    h->ws_ours = false;
    if (head->version < HTTP_2 || !is_websocket(head) ||
        head_find(head, "Sec-WebSocket-Key", NULL) != NULL)
        return true;
    h->ws_ours = true;
    return gnutls_rnd(GNUTLS_RND_NONCE, nonce, sizeof nonce) == 0 &&
           base64(nonce, sizeof nonce, h->ws_key);
}

/* Client role: is this 101 the answer to our own key? */
bool
ws_accepted(const struct h1 *h, const struct head *head)
{
    const struct field *got = head_find(head, "Sec-WebSocket-Accept", NULL);
    char want[32];

    return !h->ws_ours || (got != NULL && ws_accept(h->ws_key, want) &&
                           span_is(got->value, want));
}
