/*
 * fail.c - what can stop us, in words, in status codes and in Proxy-Status.
 *
 * One table in proxy.h holds every reason.  Whoever meets a failure notes it
 * here; the first one counts, later ones are its consequences.
 *
 * Owns     nothing.
 * Threads  any; a struct fail belongs to one thread at a time.
 * Blocks   never.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "proxy.h"

static const struct {
    const char *name;
    int client, upstream;
    const char *error, *text;
} whys[] = {
#define W(name, client, upstream, error, text) \
    [WHY_##name] = {#name, client, upstream, error, text},
    WHY_TABLE(W)
#undef W
};

/* The failure is noted unless there is one already.  Returns `why`, so that a
 * caller can note and return in one line. */
enum why
fail_note(struct fail *f, enum side side, enum why why, const char *op,
          int code, const char *(*text)(int))
{
    if (f->why == WHY_NONE)
        *f = (struct fail){
            .why = why, .side = side, .op = op, .code = code, .text = text};
    return why;
}

/* fail_own() with further words; what is no text of ours comes cleaned. */
enum why
fail_say(struct fail *f, enum side side, enum why why, const char *op,
         const char *fmt, ...)
{
    va_list ap;

    if (f->why != WHY_NONE)
        return why;
    fail_own(f, side, why, op);
    va_start(ap, fmt);
    vsnprintf(f->detail, sizeof f->detail, fmt, ap);
    va_end(ap);
    for (char *p = f->detail; *p != '\0'; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    return why;
}

/* fail_note for what we found out ourselves: no foreign code. */
enum why
fail_own(struct fail *f, enum side side, enum why why, const char *op)
{
    return fail_note(f, side, why, op, 0, NULL);
}

/* strerror() without its buffer: any thread, literal text. */
const char *
sys_text(int code)
{
    const char *text = strerrordesc_np(code);

    return text != NULL ? text : "unknown error";
}

/* fail_note for errno `code`; returns the why it stands for. */
enum why
fail_sys(struct fail *f, enum side side, const char *op, int code)
{
    enum why why = WHY_SYS;

    if (code == ECONNREFUSED)
        why = WHY_REFUSED;
    else if (code == ENETUNREACH || code == EHOSTUNREACH ||
             code == EADDRNOTAVAIL || code == EAFNOSUPPORT)
        why = WHY_UNREACHABLE;
    else if (code == ETIMEDOUT)
        why = WHY_CONNECT_LATE;
    return fail_note(f, side, why, op, code, sys_text);
}

static const char *
alert_text(int alert)
{
    const char *name = gnutls_alert_get_name((gnutls_alert_description_t)alert);

    return name != NULL ? name : "unknown alert";
}

/*
 * fail_tls - fail_note for what a GnuTLS call gave back.
 *
 * rc  a negative GnuTLS code.  For GNUTLS_E_FATAL_ALERT_RECEIVED the caller
 *     uses fail_alert(), which knows the alert.
 *
 * A FIN without close_notify stays an error (RFC 8446 section 6.1): somebody
 * may have cut the message short.
 */
enum why
fail_tls(struct fail *f, enum side side, const char *op, int rc)
{
    enum why why = rc == GNUTLS_E_PREMATURE_TERMINATION ? WHY_CUT : WHY_TLS;

    return fail_note(f, side, why, op, rc, gnutls_strerror);
}

/* The peer ended TLS with alert `alert` (RFC 8446 section 6.2). */
enum why
fail_alert(struct fail *f, enum side side, const char *op, int alert)
{
    return fail_note(f, side, WHY_ALERT, op, alert, alert_text);
}

/* "IDLE": as in the table; log.c writes it in lower case. */
const char *
why_name(enum why why)
{
    assert(why < WHY_COUNT);
    return whys[why].name;
}

/* One short clause for a person; never NULL. */
const char *
why_text(enum why why)
{
    assert(why < WHY_COUNT);
    return whys[why].text;
}

/* "client", "origin", "weir". */
const char *
side_name(enum side side)
{
    static const char *const names[] = {[SIDE_WEIR] = "weir",
                                        [SIDE_CLIENT] = "client",
                                        [SIDE_ORIGIN] = "origin"};

    return names[side];
}

/* The status to answer with, 0 if no answer makes sense. */
int
why_status(enum why why, enum side side)
{
    assert(why < WHY_COUNT);
    return side == SIDE_ORIGIN ? whys[why].upstream : whys[why].client;
}

/* The Proxy-Status error (RFC 9209 section 2.3), NULL if there is none. */
const char *
why_proxy_error(enum why why, enum side side)
{
    assert(why < WHY_COUNT);
    if (side == SIDE_CLIENT && whys[why].client != 0 &&
        whys[why].client == whys[why].upstream)
        return whys[why].error; /* ours alone: busy, policy, loop, drain */
    if (side == SIDE_CLIENT)
        return "http_request_error";
    return whys[why].error;
}

/* "connect: Connection refused" for a page or a log line; out gets a NUL. */
void
fail_text(const struct fail *f, char *out, size_t cap)
{
    const char *text = f->text != NULL ? f->text(f->code) : why_text(f->why);

    const char *colon = f->detail[0] != '\0' ? ": " : "";

    if (f->op != NULL)
        snprintf(out, cap, "%s: %s%s%s", f->op, text, colon, f->detail);
    else
        snprintf(out, cap, "%s%s%s", text, colon, f->detail);
}

/* Microseconds on the monotonic clock. */
int64_t
now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* Milliseconds on the monotonic clock. */
int64_t
now_ms(void)
{
    return now_us() / 1000;
}
