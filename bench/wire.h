/*
 * wire.h - what the two load tools share: non-blocking sockets on loopback,
 * plain or with TLS on top, and the raw protocol they speak with each other.
 *
 * The raw protocol runs on one TCP connection, here or through a tunnel.  The
 * client sends commands of RAW_CMD bytes, a letter and a count of bytes n:
 *   D n  the origin owes the client n bytes
 *   U n  n bytes follow; the origin owes RAW_ACK bytes once it has them all
 *   E n  n bytes follow; the origin owes each of them as it comes
 * The origin pays in any order.  So either side can tell that everything has
 * arrived, without a half-close, which not every proxy passes on.
 */
#ifndef WIRE_H
#define WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <gnutls/gnutls.h>

enum {
    RAW_CMD = 9,         /* the letter and a big-endian 64-bit count */
    RAW_ACK = 8,         /* bytes owed for an upload */
    WIRE_CHUNK = 131072, /* of one read or write */
};

/* What wire_read() and wire_handshake() answer besides a positive number. */
enum { WIRE_EOF = 0, WIRE_AGAIN = -1, WIRE_DEAD = -2 };

struct wire {
    int fd;               /* -1: none */
    gnutls_session_t tls; /* NULL: plain */
    const char *wrong;    /* why WIRE_DEAD; static text */
};

struct debt { /* what is to be sent: a text, and 'x' times xs behind it */
    uint64_t xs;
    size_t len;
    char text[512];
};

extern char wire_in[WIRE_CHUNK]; /* where bytes are read to, by all */

void wire_setup(void); /* once: buffers, descriptor limit, no SIGPIPE */
int64_t wire_now_ns(void);
int wire_listen(uint16_t *port); /* 0: any, then set; -1: errno says why */
bool wire_connect(struct wire *, uint16_t port); /* begun, not done */
bool wire_accept(struct wire *, int listener);   /* false: nobody there */
bool wire_client_tls(struct wire *, gnutls_certificate_credentials_t,
                     const char *sni);
bool wire_server_tls(struct wire *, gnutls_certificate_credentials_t,
                     const gnutls_datum_t *ticket_key);
ssize_t wire_handshake(struct wire *); /* 1: done; WIRE_AGAIN; WIRE_DEAD */
ssize_t wire_read(struct wire *, void *buf, size_t cap);
bool wire_pay(struct wire *, struct debt *); /* some of it; false: dead */
bool wire_owes(const struct debt *);
void wire_close(struct wire *);
void wire_command(char out[RAW_CMD], char letter, uint64_t n);
uint64_t wire_count(const char in[RAW_CMD]);

#endif
