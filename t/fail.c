/*
 * t/fail.c - reasons, in words and in status codes.
 */
#include <ctype.h>
#include <errno.h>

#include "proxy.h"
#include "t/tap.h"

/* RFC 9209 section 2.3: what may stand in Proxy-Status. */
static bool
is_registered(const char *error)
{
    static const char *const errors[] = {
        "dns_timeout",
        "dns_error",
        "destination_not_found",
        "destination_unavailable",
        "destination_ip_prohibited",
        "destination_ip_unroutable",
        "connection_refused",
        "connection_terminated",
        "connection_timeout",
        "connection_read_timeout",
        "connection_write_timeout",
        "connection_limit_reached",
        "tls_protocol_error",
        "tls_certificate_error",
        "tls_alert_received",
        "http_request_error",
        "http_request_denied",
        "http_response_incomplete",
        "http_response_header_section_size",
        "http_response_header_size",
        "http_response_body_size",
        "http_response_trailer_section_size",
        "http_response_trailer_size",
        "http_response_transfer_coding",
        "http_response_content_coding",
        "http_response_timeout",
        "http_upgrade_failed",
        "http_protocol_error",
        "proxy_internal_response",
        "proxy_internal_error",
        "proxy_configuration_error",
        "proxy_loop_detected",
    };

    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (strcmp(errors[i], error) == 0)
            return true;
    return false;
}

static void
table(void)
{
    static const int statuses[] = {0,   400, 403, 407, 408, 414,
                                   431, 501, 502, 503, 504, 505};

    for (int i = 0; i < WHY_COUNT; i++) {
        const char *name = why_name((enum why)i);
        bool upper = name != NULL && name[0] != '\0';

        for (const char *p = name; upper && *p != '\0'; p++)
            upper = isupper((unsigned char)*p) || *p == '_';
        ok(upper, "%d has a name: %s", i, name);
        ok(strlen(why_text((enum why)i)) > 5, "%s has words", name);
        for (int side = SIDE_WEIR; side <= SIDE_ORIGIN; side++) {
            int status = why_status((enum why)i, (enum side)side);
            const char *error = why_proxy_error((enum why)i, (enum side)side);
            bool known = false;

            for (size_t s = 0; s < sizeof statuses / sizeof statuses[0]; s++)
                known = known || statuses[s] == status;
            ok(known, "%s by the %s: status %d", name,
               side_name((enum side)side), status);
            ok(status == 0 || error != NULL, "%s: and an error with it", name);
            ok(error == NULL || is_registered(error), "%s: %s is registered",
               name, error != NULL ? error : "none");
        }
    }
    is_int(why_status(WHY_IDLE, SIDE_CLIENT), 408, "a slow client: 408");
    is_int(why_status(WHY_IDLE, SIDE_ORIGIN), 504, "a slow origin: 504");
    is_int(why_status(WHY_PROTO, SIDE_CLIENT), 400, "a bad request: 400");
    is_int(why_status(WHY_PROTO, SIDE_ORIGIN), 502, "a bad answer: 502");
    is_int(why_status(WHY_OVER, SIDE_CLIENT), 0, "nobody there: no answer");
    is_str(why_proxy_error(WHY_PROTO, SIDE_CLIENT), "http_request_error",
           "whatever a client breaks is a bad request");
    is_str(why_proxy_error(WHY_LOOP, SIDE_CLIENT), "proxy_loop_detected",
           "but for what is ours alone");
    is_str(side_name(SIDE_ORIGIN), "origin", "a side's name");
}

static void
notes(void)
{
    struct fail f = {0};
    char text[128], tiny[8];

    is_int(fail_own(&f, SIDE_CLIENT, WHY_LIMIT, "read"), WHY_LIMIT, "noted");
    is_int(fail_sys(&f, SIDE_ORIGIN, "write", EPIPE), WHY_SYS, "a second one");
    ok(f.why == WHY_LIMIT && f.side == SIDE_CLIENT, "the first one stays");
    fail_text(&f, text, sizeof text);
    is_str(text, "read: over one of our ceilings", "in words");
    fail_text(&f, tiny, sizeof tiny);
    is_str(tiny, "read: o", "cut to where they go");
    f = (struct fail){.why = WHY_EOF};
    fail_text(&f, text, sizeof text);
    is_str(text, "peer finished", "without an operation");
}

static void
errnos(void)
{
    static const struct {
        int code;
        enum why why;
    } cases[] = {
        {ECONNREFUSED, WHY_REFUSED},
        {ENETUNREACH, WHY_UNREACHABLE},
        {EHOSTUNREACH, WHY_UNREACHABLE},
        {EADDRNOTAVAIL, WHY_UNREACHABLE},
        {EAFNOSUPPORT, WHY_UNREACHABLE},
        {ETIMEDOUT, WHY_CONNECT_LATE},
        {ECONNRESET, WHY_SYS},
        {EPIPE, WHY_SYS},
        {EMFILE, WHY_SYS},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fail f = {0};

        is_int(fail_sys(&f, SIDE_ORIGIN, "connect", cases[i].code),
               cases[i].why, "%s", sys_text(cases[i].code));
        is_int(f.code, cases[i].code, "  its errno is kept");
        is_str(f.text(f.code), sys_text(cases[i].code), "  and its words");
    }
    is_str(sys_text(123456), "unknown error", "an errno that is none");
}

static void
tls(void)
{
    struct fail f = {0};

    is_int(fail_tls(&f, SIDE_ORIGIN, "read TLS", GNUTLS_E_DECRYPTION_FAILED),
           WHY_TLS, "TLS failed");
    is_str(f.text(f.code), gnutls_strerror(GNUTLS_E_DECRYPTION_FAILED),
           "in GnuTLS's words");
    f = (struct fail){0};
    is_int(
        fail_tls(&f, SIDE_ORIGIN, "read TLS", GNUTLS_E_PREMATURE_TERMINATION),
        WHY_CUT, "an end without close_notify: cut");
    f = (struct fail){0};
    is_int(fail_alert(&f, SIDE_CLIENT, "TLS handshake", GNUTLS_A_UNKNOWN_CA),
           WHY_ALERT, "an alert");
    ok(strcasestr(f.text(f.code), "CA") != NULL, "by its name: %s",
       f.text(f.code));
    is_str(f.text(255), "unknown alert", "an alert that is none");
}

int
main(void)
{
    int64_t ms = now_ms(), us = now_us();

    table();
    notes();
    errnos();
    tls();
    ok(now_ms() >= ms && now_us() >= us, "the clock does not go back");
    ok(us / 1000 - ms <= 1000, "ms and us are of one clock");
    return done_testing();
}
