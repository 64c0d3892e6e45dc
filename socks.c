/*
 * socks.c - SOCKS 4, 4a and 5 as a server, 5 as a client of a parent.
 *
 * A client says hello, logs in if it has to, and asks for a target; each
 * message is parsed when all of it is there.  The answer to its request is
 * given later, when the target is connected or is known not to be: conn.c
 * calls socks_answer() then.
 *
 * Follows  RFC 1928, RFC 1929 (user and password); SOCKS 4 and 4a as their
 *          memos of 1992 and 1996 say, for they have no RFC.
 * Owns     nothing.
 * Threads  the worker that runs the connection.
 * Blocks   while the client takes an answer of a few bytes.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "proxy.h"

enum {
    V4_HEAD = 8,     /* version, command, port, address */
    V4_TEXT = 255,   /* user and name are at most so long */
    V4_GRANTED = 90, /* codes of SOCKS 4 */
    V4_FAILED = 91,
    V4_NO_USER = 93,
    METHOD_NONE = 0, /* of RFC 1928 section 3 */
    METHOD_PASSWORD = 2,
    METHOD_NO_MATCH = 0xff,
    TYPE_V4 = 1, /* of RFC 1928 section 5 */
    TYPE_NAME = 3,
    TYPE_V6 = 4,
};

/* ---- parsing: pure ----------------------------------------------------------
 */

static enum why
malformed(struct socks_said *said, enum socks_code code)
{
    said->refuse = code;
    return WHY_PROTO;
}

static uint16_t
port_at(const char *raw)
{
    const unsigned char *p = (const unsigned char *)raw;

    return (uint16_t)(p[0] << 8 | p[1]);
}

/* A host as struct origin has it: a name or an address in text. */
static bool
host_text(const char *at, size_t len, char host[HOST_MAX + 1])
{
    char text[INET6_ADDRSTRLEN];
    struct in6_addr v6;
    uint16_t port;

    if (memchr(at, ':', len) == NULL)
        return authority_parse((struct span){at, len}, host, &port);
    if (len >= sizeof text || memchr(at, '\0', len) != NULL)
        return false;
    memcpy(text, at, len);
    text[len] = '\0';
    return inet_pton(AF_INET6, text, &v6) == 1 &&
           inet_ntop(AF_INET6, &v6, host, HOST_MAX + 1) != NULL;
}

/* A text up to its NUL; WHY_MORE, or WHY_LIMIT: there is none in V4_TEXT. */
static enum why
text_end(const char *raw, size_t len, size_t *used)
{
    const char *nul = memchr(raw, '\0', len);
    size_t n = nul != NULL ? (size_t)(nul - raw) : len;

    if (n > V4_TEXT)
        return WHY_LIMIT;
    *used += n + 1;
    return nul != NULL ? WHY_NONE : WHY_MORE;
}

/* SOCKS 4: version, command, port, address, user, NUL.  4a: an address
 * 0.0.0.x that is not 0.0.0.0 says that a name follows, with its NUL. */
static enum why
parse_v4(const char *raw, size_t len, size_t *used, struct socks_said *said,
         struct socks *next)
{
    size_t at = V4_HEAD, name;
    enum why why;

    if (len < V4_HEAD)
        return WHY_MORE;
    if ((why = text_end(raw + at, len - at, &at)) != WHY_NONE)
        return why == WHY_MORE ? why : malformed(said, SOCKS_FAILED);
    next->command = (unsigned char)raw[1];
    next->port = port_at(raw + 2);
    name = at;
    if (memcmp(raw + 4, "\0\0\0", 3) != 0 || raw[7] == 0) {
        inet_ntop(AF_INET, raw + 4, next->host, sizeof next->host);
    } else {
        if ((why = text_end(raw + at, len - at, &at)) != WHY_NONE)
            return why == WHY_MORE ? why : malformed(said, SOCKS_FAILED);
        if (!host_text(raw + name, at - name - 1, next->host))
            return malformed(said, SOCKS_FAILED);
    }
    *used = at;
    return WHY_NONE;
}

/* RFC 1928 section 3: version, number of methods, methods. */
static enum why
parse_hello(const char *raw, size_t len, size_t *used, struct socks_said *said)
{
    size_t n;

    if (len < 2)
        return WHY_MORE;
    n = (unsigned char)raw[1];
    if (n == 0)
        return malformed(said, SOCKS_FAILED);
    if (len < 2 + n)
        return WHY_MORE;
    said->none = memchr(raw + 2, METHOD_NONE, n) != NULL;
    said->password = memchr(raw + 2, METHOD_PASSWORD, n) != NULL;
    *used = 2 + n;
    return WHY_NONE;
}

/* RFC 1929: version 1, length, user, length, password. */
static enum why
parse_login(const char *raw, size_t len, size_t *used, struct socks_said *said)
{
    size_t user, pass;

    if (len >= 1 && raw[0] != 1)
        return malformed(said, SOCKS_FAILED);
    if (len < 2)
        return WHY_MORE;
    user = (unsigned char)raw[1];
    if (user == 0)
        return malformed(said, SOCKS_FAILED);
    if (len < 3 + user)
        return WHY_MORE;
    pass = (unsigned char)raw[2 + user];
    if (len < 3 + user + pass)
        return WHY_MORE;
    said->user = (struct span){raw + 2, user};
    said->pass = (struct span){raw + 3 + user, pass};
    *used = 3 + user + pass;
    return WHY_NONE;
}

/*
 * An address as RFC 1928 sections 4, 6 and 7 write it: type, address, port.
 *
 * Returns WHY_NONE, WHY_MORE, or WHY_PROTO with the code to refuse it.
 */
static enum why
parse_address(const char *raw, size_t len, size_t *used,
              struct socks_said *said, char host[HOST_MAX + 1], uint16_t *port)
{
    size_t n, lead = 1;
    unsigned char type;

    if (len < 1)
        return WHY_MORE;
    type = (unsigned char)raw[0];
    if (type != TYPE_V4 && type != TYPE_V6 && type != TYPE_NAME)
        return malformed(said, SOCKS_NO_ADDRESS);
    if (type == TYPE_NAME && len < 2)
        return WHY_MORE;
    n = type == TYPE_V4 ? 4 : type == TYPE_V6 ? 16 : (unsigned char)raw[1];
    lead = type == TYPE_NAME ? 2 : 1;
    if (n == 0)
        return malformed(said, SOCKS_FAILED);
    if (len < lead + n + 2)
        return WHY_MORE;
    if (type != TYPE_NAME)
        inet_ntop(type == TYPE_V4 ? AF_INET : AF_INET6, raw + 1, host,
                  HOST_MAX + 1);
    else if (!host_text(raw + 2, n, host))
        return malformed(said, SOCKS_FAILED);
    *port = port_at(raw + lead + n);
    *used = lead + n + 2;
    return WHY_NONE;
}

/* RFC 1928 section 4: version, command, 0, address. */
static enum why
parse_request(const char *raw, size_t len, size_t *used,
              struct socks_said *said, struct socks *next)
{
    enum why why;

    if (len >= 1 && raw[0] != 5)
        return malformed(said, SOCKS_FAILED);
    if (len >= 3 && raw[2] != 0)
        return malformed(said, SOCKS_FAILED);
    if (len < 3)
        return WHY_MORE;
    next->command = (unsigned char)raw[1];
    why = parse_address(raw + 3, len - 3, used, said, next->host, &next->port);
    if (why == WHY_NONE)
        *used += 3;
    return why;
}

/*
 * socks_parse - the next message of a client.
 *
 * s     where the conversation is; version 0: before its first byte
 * raw   what has come so far of the message
 * used  bytes that the message took; written only on WHY_NONE
 * said  what it says; its spans point into raw
 * next  *s with the version, and with the request if it was one; `wants` is
 *       left for whoever answers.  May not be s
 *
 * Returns WHY_NONE; WHY_MORE; WHY_PROTO: said->refuse is the answer to give.
 * Pure.  No message is longer than 8 + 2 x 256 bytes.
 */
enum why
socks_parse(const struct socks *s, const char *raw, size_t len, size_t *used,
            struct socks_said *said, struct socks *next)
{
    *said = (struct socks_said){.refuse = SOCKS_FAILED};
    *next = *s;
    if (s->version == 0 && len == 0)
        return WHY_MORE;
    if (s->version == 0)
        next->version = (unsigned char)raw[0];
    if (next->version == 4)
        return parse_v4(raw, len, used, said, next);
    if (next->version != 5)
        return malformed(said, SOCKS_FAILED);
    switch (s->wants) {
    case SOCKS_HELLO:
        return parse_hello(raw, len, used, said);
    case SOCKS_LOGIN:
        return parse_login(raw, len, used, said);
    case SOCKS_REQUEST:
        break;
    }
    return parse_request(raw, len, used, said, next);
}

/*
 * socks_parse_datagram - the head of a UDP datagram: RFC 1928 section 7.
 *
 * used  bytes of the head; what follows is content
 *
 * Returns WHY_NONE; WHY_UNKNOWN: a fragment; WHY_PROTO: malformed or cut short.
 * Pure.
 */
enum why
socks_parse_datagram(const char *raw, size_t len, char host[HOST_MAX + 1],
                     uint16_t *port, size_t *used)
{
    struct socks_said said;

    if (len < 4 || raw[0] != 0 || raw[1] != 0)
        return WHY_PROTO;
    if (raw[2] != 0)
        return WHY_UNKNOWN;
    if (parse_address(raw + 3, len - 3, used, &said, host, port) != WHY_NONE)
        return WHY_PROTO;
    *used += 3;
    return WHY_NONE;
}

/* The head of a datagram that came from there.  Returns its length. */
size_t
socks_put_datagram(char out[22], const struct sockaddr *from)
{
    const struct sockaddr_in6 *in6 = (const void *)from;
    const struct sockaddr_in *in = (const void *)from;
    size_t n = from->sa_family == AF_INET6 ? 16 : 4;

    memset(out, 0, 4);
    out[3] = n == 16 ? TYPE_V6 : TYPE_V4;
    if (n == 16) {
        memcpy(out + 4, &in6->sin6_addr, n);
        memcpy(out + 4 + n, &in6->sin6_port, 2);
    } else {
        memcpy(out + 4, &in->sin_addr, n);
        memcpy(out + 4 + n, &in->sin_port, 2);
    }
    return 4 + n + 2;
}

/* ---- answers ------------------------------------------------------------- */

static enum why
send_bytes(struct end *end, const void *at, size_t len, struct fail *f)
{
    struct iovec iov = {(void *)at, len};

    return end_write(end, &iov, 1, f);
}

/* What a failure is called in RFC 1928 section 6.  A number without a text is
 * what a SOCKS parent said. */
enum socks_code
socks_code(const struct fail *f)
{
    if (f->text == NULL && f->code > SOCKS_OK && f->code <= SOCKS_NO_ADDRESS)
        return (enum socks_code)f->code;
    switch (f->why) {
    case WHY_POLICY:
    case WHY_LOOP:
        return SOCKS_DENIED;
    case WHY_PARENT_NO:
        return f->received == 403 ? SOCKS_DENIED : SOCKS_FAILED;
    case WHY_UNREACHABLE:
        return f->code == ENETUNREACH ? SOCKS_NET_UNREACHABLE
                                      : SOCKS_HOST_UNREACHABLE;
    case WHY_DNS:
    case WHY_DNS_LATE:
        return SOCKS_HOST_UNREACHABLE;
    case WHY_REFUSED:
        return SOCKS_REFUSED;
    case WHY_CONNECT_LATE:
    case WHY_PARENT_LATE:
        return SOCKS_EXPIRED;
    default:
        return SOCKS_FAILED;
    }
}

/*
 * socks_answer - the answer to the client's request.
 *
 * bound  our address on the way to the target; NULL: not told
 *
 * Returns WHY_NONE or what end_write() noted.
 */
enum why
socks_answer(const struct socks *s, struct end *end, enum socks_code code,
             const struct sockaddr *bound, struct fail *f)
{
    const struct sockaddr_in6 *in6 = (const void *)bound;
    const struct sockaddr_in *in = (const void *)bound;
    unsigned char out[22] = {5, (unsigned char)code, 0, TYPE_V4};
    size_t n = 4;

    if (bound != NULL && bound->sa_family == AF_INET6 && s->version == 5) {
        out[3] = TYPE_V6;
        n = 16;
        memcpy(out + 4, &in6->sin6_addr, 16);
        memcpy(out + 20, &in6->sin6_port, 2);
    } else if (bound != NULL && bound->sa_family == AF_INET) {
        memcpy(out + 4, &in->sin_addr, 4);
        memcpy(out + 8, &in->sin_port, 2);
    }
    if (s->version == 5)
        return send_bytes(end, out, 4 + n + 2, f);
    out[0] = 0;
    out[1] = code == SOCKS_OK ? V4_GRANTED : V4_FAILED;
    memmove(out + 2, out + 8, 2); /* port, then address */
    return send_bytes(end, out, 8, f);
}

/* Choose a method, RFC 1928 section 3.  A client that can only log in may do
 * so even if nobody is asked: whatever it says is right then. */
static enum why
answer_hello(struct socks *s, struct end *end, const struct socks_said *said,
             const struct config *conf, struct fail *f)
{
    unsigned char out[2] = {5, METHOD_NO_MATCH};
    enum why why;

    if (said->none && conf->n_users == 0) {
        out[1] = METHOD_NONE;
        s->wants = SOCKS_REQUEST;
    } else if (said->password) {
        out[1] = METHOD_PASSWORD;
        s->wants = SOCKS_LOGIN;
    }
    why = send_bytes(end, out, sizeof out, f);
    if (why != WHY_NONE || out[1] != METHOD_NO_MATCH)
        return why;
    return conf->n_users > 0
               ? fail_own(f, SIDE_CLIENT, WHY_LOGIN, "no user given")
               : fail_own(f, SIDE_CLIENT, WHY_PROTO, "no SOCKS method we know");
}

/* RFC 1929 section 2: 0 is success, and anything else is followed by a close.
 */
static enum why
answer_login(struct socks *s, struct end *end, const struct socks_said *said,
             const struct config *conf, struct fail *f)
{
    bool good =
        conf->n_users == 0 || access_login(conf, said->user, said->pass);
    unsigned char out[2] = {1, !good};
    enum why why = send_bytes(end, out, sizeof out, f);

    s->wants = SOCKS_REQUEST;
    if (why != WHY_NONE || good)
        return why;
    return fail_own(f, SIDE_CLIENT, WHY_LOGIN, "user or password wrong");
}

/* SOCKS 4 knows no password. */
static enum why
refuse_v4(struct end *end, struct fail *f)
{
    static const unsigned char out[8] = {0, V4_NO_USER};
    enum why why = send_bytes(end, out, sizeof out, f);

    if (why != WHY_NONE)
        return why;
    return fail_own(f, SIDE_CLIENT, WHY_LOGIN, "SOCKS 4 has no password");
}

/* What came is no SOCKS: say so in the way of its version. */
static enum why
refuse_message(const struct socks *s, const struct socks *now, struct end *end,
               enum socks_code code, struct fail *f)
{
    static const unsigned char bad_hello[] = {5, METHOD_NO_MATCH},
                               bad_login[] = {1, 1};
    enum why why = WHY_NONE;

    if (now->version == 4 || s->wants == SOCKS_REQUEST)
        why = socks_answer(now, end, code, NULL, f);
    else if (s->wants == SOCKS_LOGIN)
        why = send_bytes(end, bad_login, sizeof bad_login, f);
    else
        why = send_bytes(end, bad_hello, sizeof bad_hello, f);
    return why != WHY_NONE
               ? why
               : fail_own(f, SIDE_CLIENT, WHY_PROTO, "malformed SOCKS message");
}

/*
 * socks_listen - go on with the conversation, with what the end has buffered.
 *
 * Returns WHY_NONE: the request is here, to be answered by socks_answer();
 * WHY_MORE: more bytes are needed; WHY_LOGIN, WHY_PROTO: refused, the client
 * has been told and nothing else follows; or what end_write() noted.
 */
enum why
socks_listen(struct socks *s, struct end *end, const struct client *c,
             struct fail *f)
{
    for (;;) {
        struct span ahead = end_ahead(end);
        enum socks_wants wanted = s->wants;
        struct socks_said said;
        struct socks next;
        size_t used = 0;
        enum why why = socks_parse(s, ahead.at, ahead.len, &used, &said, &next);

        if (why == WHY_MORE)
            return why;
        if (why != WHY_NONE)
            return refuse_message(s, &next, end, said.refuse, f);
        *s = next;
        if (s->version == 4)
            why = c->conf->n_users > 0 ? refuse_v4(end, f) : WHY_NONE;
        else if (wanted == SOCKS_HELLO)
            why = answer_hello(s, end, &said, c->conf, f);
        else if (wanted == SOCKS_LOGIN)
            why = answer_login(s, end, &said, c->conf, f);
        end_consume(end, used); /* not before: said points into it */
        if (why != WHY_NONE || s->version == 4 || wanted == SOCKS_REQUEST)
            return why;
    }
}

/* ---- as a client of a parent --------------------------------------------- */

static enum why
bad_answer(struct fail *f, const char *op)
{
    return fail_own(f, SIDE_ORIGIN, WHY_PROTO, op);
}

/* Have at least n bytes buffered.  Not one more is consumed: what stands behind
 * the answer belongs to the tunnel. */
static enum why
need(struct end *end, size_t n, struct fail *f)
{
    while (end_ahead(end).len < n) {
        enum why why = end_fill(end, END_BUF, f);

        if (why == WHY_EOF)
            return fail_own(f, SIDE_ORIGIN, WHY_EOF,
                            "read the parent's answer");
        if (why != WHY_NONE)
            return why;
    }
    return WHY_NONE;
}

/* Two bytes, the first of which is a version. */
static enum why
get_pair(struct end *end, unsigned char version, unsigned char *second,
         struct fail *f)
{
    enum why why = need(end, 2, f);
    const unsigned char *at = (const unsigned char *)end_ahead(end).at;

    if (why != WHY_NONE)
        return why;
    *second = at[1];
    if (at[0] != version)
        return bad_answer(f, "the parent speaks no SOCKS 5");
    end_consume(end, 2);
    return WHY_NONE;
}

/* RFC 1929. */
static enum why
ask_login(struct end *end, const struct parent *p, bool *spoke, struct fail *f)
{
    unsigned char out[3 + 2 * HOST_MAX] = {1}, status;
    size_t user = strlen(p->user), pass = strlen(p->password);
    enum why why;

    out[1] = (unsigned char)user;
    memcpy(out + 2, p->user, user);
    out[2 + user] = (unsigned char)pass;
    memcpy(out + 3 + user, p->password, pass);
    why = send_bytes(end, out, 3 + user + pass, f);
    explicit_bzero(out, sizeof out);
    if (why != WHY_NONE || (why = get_pair(end, 1, &status, f)) != WHY_NONE)
        return why;
    *spoke = true;
    if (status == 0)
        return WHY_NONE;
    return fail_say(f, SIDE_ORIGIN, WHY_PARENT_LOGIN, "SOCKS",
                    "%s does not know the user, or wants another password",
                    p->text);
}

/* Agree on a method, and log in if that is the one. */
static enum why
ask_method(struct end *end, const struct parent *p, bool *spoke, struct fail *f)
{
    static const unsigned char without[] = {5, 1, METHOD_NONE},
                               with[] = {5, 2, METHOD_NONE, METHOD_PASSWORD};
    bool user = p->user[0] != '\0';
    unsigned char method;
    enum why why = send_bytes(end, user ? with : without,
                              user ? sizeof with : sizeof without, f);

    if (why != WHY_NONE || (why = get_pair(end, 5, &method, f)) != WHY_NONE)
        return why;
    if (method == METHOD_NONE)
        return WHY_NONE;
    if (method == METHOD_PASSWORD && user)
        return ask_login(end, p, spoke, f);
    if (method != METHOD_NO_MATCH)
        return bad_answer(f, "the parent chose a method nobody offered");
    *spoke = true;
    return fail_say(f, SIDE_ORIGIN, WHY_PARENT_LOGIN, "SOCKS", "%s wants %s",
                    p->text,
                    user ? "no password but something else" : "a user");
}

static enum why
send_request(struct end *end, const struct origin *o, struct fail *f)
{
    unsigned char out[7 + HOST_MAX] = {5, SOCKS_CONNECT, 0};
    size_t len = strlen(o->host), at;

    if (inet_pton(AF_INET, o->host, out + 4) == 1) {
        out[3] = TYPE_V4;
        at = 8;
    } else if (inet_pton(AF_INET6, o->host, out + 4) == 1) {
        out[3] = TYPE_V6;
        at = 20;
    } else { /* the parent's resolver knows, not ours */
        out[3] = TYPE_NAME;
        out[4] = (unsigned char)len;
        memcpy(out + 5, o->host, len);
        at = 5 + len;
    }
    out[at] = (unsigned char)(o->port >> 8);
    out[at + 1] = (unsigned char)o->port;
    return send_bytes(end, out, at + 2, f);
}

/* The parent's word for a failure, as ours. */
static enum why
refused_with(struct fail *f, const struct parent *p, unsigned char code)
{
    static const struct {
        enum why why;
        const char *text;
    } codes[] = {
        {WHY_PARENT_NO, "general failure"},
        {WHY_PARENT_NO, "not allowed"},
        {WHY_UNREACHABLE, "network unreachable"},
        {WHY_UNREACHABLE, "host unreachable"},
        {WHY_REFUSED, "connection refused"},
        {WHY_CONNECT_LATE, "TTL expired"},
        {WHY_PARENT_NO, "command not supported"},
        {WHY_PARENT_NO, "address type not supported"},
    };
    size_t i = code - 1u;
    bool known = i < sizeof codes / sizeof *codes;

    fail_say(f, SIDE_ORIGIN, known ? codes[i].why : WHY_PARENT_NO, "SOCKS",
             known ? "%s answered %u, %s" : "%s answered %u", p->text, code,
             known ? codes[i].text : "");
    f->code = code; /* for socks_code(): a client of SOCKS hears the same */
    return f->why;
}

/* RFC 1928 section 6.  The address in it is of no use to us. */
static enum why
get_answer(struct end *end, const struct parent *p, bool *spoke, struct fail *f)
{
    enum why why = need(end, 5, f);
    unsigned char head[5];
    size_t len;

    if (why != WHY_NONE)
        return why;
    memcpy(head, end_ahead(end).at, sizeof head);
    if (head[0] != 5)
        return bad_answer(f, "the parent's answer is no SOCKS 5");
    *spoke = true;
    if (head[1] != 0)
        return refused_with(f, p, head[1]);
    len = head[3] == TYPE_V4     ? 4
          : head[3] == TYPE_V6   ? 16
          : head[3] == TYPE_NAME ? 1u + head[4]
                                 : 0;
    if (len == 0)
        return bad_answer(f, "the parent's answer has no address");
    if ((why = need(end, 4 + len + 2, f)) == WHY_NONE)
        end_consume(end, 4 + len + 2);
    return why;
}

/*
 * socks_ask - have a SOCKS 5 parent connect us to an origin.
 *
 * end    connected to the parent; its deadline is the caller's
 * spoke  set once the parent has shown that it is in order
 *
 * Returns WHY_NONE; WHY_PARENT_LOGIN, WHY_PARENT_NO, WHY_REFUSED,
 * WHY_UNREACHABLE, WHY_CONNECT_LATE: what the parent says; WHY_PROTO, WHY_EOF,
 * WHY_LATE and what else its end meets.
 * Source: RFC 1928, RFC 1929.
 */
enum why
socks_ask(struct end *end, const struct origin *o, const struct parent *p,
          bool *spoke, struct fail *f)
{
    enum why why = ask_method(end, p, spoke, f);

    if (why == WHY_NONE)
        why = send_request(end, o, f);
    return why == WHY_NONE ? get_answer(end, p, spoke, f) : why;
}
