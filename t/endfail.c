/*
 * t/endfail.c - writes over TLS that fail half way.
 *
 * Both sides are ends of this process, over a socketpair, with keys that are
 * agreed on without certificates.
 */
#include <unistd.h>

#include "proxy.h"
#include "t/tap.h"

enum { LIMIT_MS = 20000 };

#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ANON-ECDH"

static gnutls_anon_client_credentials_t client_cred;
static gnutls_anon_server_credentials_t server_cred;

static gnutls_session_t
session_new(unsigned flags)
{
    gnutls_session_t s = NULL;
    bool client = flags == GNUTLS_CLIENT;

    if (gnutls_init(&s, flags) < 0 ||
        gnutls_priority_set_direct(s, PRIORITY, NULL) < 0 ||
        gnutls_credentials_set(s, GNUTLS_CRD_ANON,
                               client ? (void *)client_cred
                                      : (void *)server_cred) < 0)
        diag("cannot make a TLS session");
    return s;
}

static void *
serve(void *arg)
{
    struct fail f = {0};

    ok(end_handshake(arg, session_new(GNUTLS_SERVER), now_ms() + LIMIT_MS,
                     &f) == WHY_NONE,
       "the server's handshake");
    return NULL;
}

static void
ends_make(struct end *client, struct end *server)
{
    struct fail f = {0};
    pthread_t thread;
    int fd[2];

    ok(socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0, "a pair of sockets");
    end_init(client, fd[0], SIDE_ORIGIN, LIMIT_MS);
    end_init(server, fd[1], SIDE_CLIENT, LIMIT_MS);
    ok(pthread_create(&thread, NULL, serve, server) == 0, "a server");
    ok(end_handshake(client, session_new(GNUTLS_CLIENT), now_ms() + LIMIT_MS,
                     &f) == WHY_NONE,
       "the client's handshake");
    pthread_join(thread, NULL);
}

/* Small pieces are joined, large ones are not; nothing is touched any more
 * once a piece in front has failed. */
static void
test_pieces(void)
{
    static char large[4 * END_BUF_BULK];
    static const size_t sizes[] = {1, END_BUF, END_BUF + 1, END_BUF_BULK,
                                   sizeof large};
    struct end client, server;

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct iovec iov[] = {{large, 4}, {large, sizes[i]}, {large, 2}};
        struct fail f = {0};

        ends_make(&client, &server);
        shutdown(client.fd, SHUT_WR);
        ok(end_write(&client, iov, 3, &f) == WHY_SYS,
           "a piece of %zu bytes behind one that cannot be sent", sizes[i]);
        is_str(f.op, "write", "which is what failed");
        end_clear(&client);
        end_clear(&server);
    }
}

int
main(void)
{
    gnutls_anon_allocate_client_credentials(&client_cred);
    gnutls_anon_allocate_server_credentials(&server_cred);
    test_pieces();
    gnutls_anon_free_client_credentials(client_cred);
    gnutls_anon_free_server_credentials(server_cred);
    return done_testing();
}
