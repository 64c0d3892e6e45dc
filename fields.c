/*
 * fields.c - heads in the fields of HTTP/2 and HTTP/3.
 *
 * Both versions send a head as a list of fields, pseudo-fields first.  Here
 * such a list becomes the struct head that all of weir works with, and back.
 * The library has checked the order and number of the fields; what it lets
 * pass and an HTTP/1 hop could misread is refused here.
 *
 * Follows  RFC 9113 section 8, RFC 9114 section 4, RFC 8441 (a CONNECT with a
 *          :protocol is a GET with an Upgrade to us, and its 200 a 101).
 * Owns     nothing.
 * Threads  any; one at a time for a section.
 * Blocks   never.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

enum {
    FIELD_COST = 32,    /* RFC 9113 section 6.5.2, beside name and value */
    SECRET_COOKIE = 20, /* shorter ones could be guessed: RFC 7541 7.1.3 */
};

/* ---- receiving ----------------------------------------------------------- */

void
section_begin(struct section *s, enum version version, size_t max_bytes,
              size_t max_fields)
{
    *s = (struct section){
        .max_bytes = max_bytes, .max_fields = max_fields, .version = version};
    head_init(&s->head);
}

/* For HTTP/2, with the settings' limits. */
void
section_init(struct section *s, const struct config *conf)
{
    section_begin(s, HTTP_2, (size_t)conf->head_bytes, (size_t)conf->fields);
}

/* Empty, for the next one. */
void
section_reset(struct section *s)
{
    head_reset(&s->head);
    s->method = s->scheme = s->authority = (struct span){NULL, 0};
    s->path = s->protocol = s->status = (struct span){NULL, 0};
    s->bytes = 0;
    s->over = s->failed = false;
}

void
section_clear(struct section *s)
{
    head_clear(&s->head);
}

static struct span *
pseudo_of(struct section *s, struct span name)
{
    switch (name.len) {
    case 5:
        return span_is(name, ":path") ? &s->path : NULL;
    case 7:
        return span_is(name, ":method")   ? &s->method
               : span_is(name, ":scheme") ? &s->scheme
               : span_is(name, ":status") ? &s->status
                                          : NULL;
    case 9:
        return span_is(name, ":protocol") ? &s->protocol : NULL;
    case 10:
        return span_is(name, ":authority") ? &s->authority : NULL;
    default:
        return NULL;
    }
}

/* One more field, copied.  Over a ceiling it is counted and dropped. */
void
section_add(struct section *s, struct span name, struct span value, bool secret)
{
    struct span *pseudo = NULL;

    s->bytes += name.len + value.len + FIELD_COST;
    if (s->bytes > s->max_bytes || s->head.n_fields >= s->max_fields)
        s->over = true;
    if (s->over)
        return;
    if (name.len > 0 && name.at[0] == ':') {
        if ((pseudo = pseudo_of(s, name)) == NULL)
            return; /* the library has refused it */
        *pseudo = head_text(&s->head, value.at, value.len);
        s->failed |= pseudo->at == NULL;
        return;
    }
    name = head_text(&s->head, name.at, name.len);
    value = head_text(&s->head, value.at, value.len);
    if (name.at == NULL || value.at == NULL ||
        !head_put(&s->head, name, value)) {
        s->failed = true;
        return;
    }
    s->head.fields[s->head.n_fields - 1].secret = secret;
}

static enum why
malformed(struct fail *f, enum side side, const char *op)
{
    return fail_own(f, side, WHY_PROTO, op);
}

/* What is in it goes to `head`; the section is empty. */
static void
section_take(struct section *s, struct head *head)
{
    *head = s->head;
    head_init(&s->head);
    section_reset(s);
}

static void
remove_field(struct head *head, size_t i)
{
    memmove(&head->fields[i], &head->fields[i + 1],
            (head->n_fields - i - 1) * sizeof *head->fields);
    head->n_fields--;
}

/* RFC 9113 section 8.2.3: crumbs are one Cookie to everybody else. */
static bool
join_cookies(struct head *head)
{
    size_t n = 0, len = 0, first = 0;
    char *to;

    for (size_t i = 0; i < head->n_fields; i++) {
        if (!span_is(head->fields[i].name, "cookie"))
            continue;
        if (n++ == 0)
            first = i;
        len += head->fields[i].value.len + 2;
    }
    if (n < 2)
        return true;
    if ((to = malloc(len)) == NULL)
        return false;
    len = 0;
    for (size_t i = first; i < head->n_fields;) {
        struct span value = head->fields[i].value;

        if (!span_is(head->fields[i].name, "cookie")) {
            i++;
            continue;
        }
        if (i > first)
            memcpy(to + len - 2, "; ", 2);
        memcpy(to + len, value.at, value.len);
        len += value.len + 2;
        if (i > first)
            remove_field(head, i);
        else
            i++;
    }
    head->fields[first].value = head_text(head, to, len - 2);
    free(to);
    return head->fields[first].value.at != NULL;
}

/* The names and values of all fields, and what they say about the content. */
static enum why
judge_fields(struct section *s, enum side from, bool ends, struct fail *f)
{
    struct head *head = &s->head;

    head->version = s->version;
    head->body = ends ? BODY_NONE : BODY_STREAM;
    head->upgrade = head->connection = (struct span){"", 0};
    for (size_t i = 0; i < head->n_fields; i++) {
        struct field *field = &head->fields[i];

        field->value = span_trim(field->value);
        if (!is_token(field->name) || !is_field_value(field->value))
            return malformed(f, from, "malformed field");
        if (span_is(field->name, "content-length")) {
            if (!span_number(field->value, &head->length) ||
                head->length > INT64_MAX)
                return malformed(f, from, "malformed content-length");
            if (!ends)
                head->body = BODY_LENGTH;
        } else if (span_is(field->name, "te")) {
            if (!span_isi(field->value, "trailers"))
                return malformed(f, from, "te other than trailers");
            head->te_trailers = true;
        } else if (span_is(field->name, "expect")) {
            head->expects_continue = span_isi(field->value, "100-continue");
        }
    }
    if (s->failed || !join_cookies(head))
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    return WHY_NONE;
}

/* Visible ASCII, and nothing that could end a request line or a host. */
static bool
is_visible(struct span s, const char *without)
{
    for (size_t i = 0; i < s.len; i++)
        if (s.at[i] <= ' ' || s.at[i] >= 0x7f ||
            strchr(without, s.at[i]) != NULL)
            return false;
    return s.len > 0;
}

/* RFC 9113 section 8.3.1: Host says the same as :authority, or nothing. */
static enum why
judge_host(struct section *s, struct fail *f)
{
    const struct field *host = head_find(&s->head, "host", NULL);

    if (host == NULL)
        return WHY_NONE;
    if (head_find(&s->head, "host", host) != NULL)
        return malformed(f, SIDE_CLIENT, "more than one Host field");
    if (s->authority.at == NULL)
        s->authority = host->value;
    else if (s->authority.len != host->value.len ||
             strncasecmp(s->authority.at, host->value.at, host->value.len) != 0)
        return malformed(f, SIDE_CLIENT, "Host is not :authority");
    remove_field(&s->head, (size_t)(host - s->head.fields));
    return WHY_NONE;
}

/* A plain CONNECT has an authority and nothing else (RFC 9113 section 8.5). */
static enum why
judge_connect(struct section *s, struct fail *f)
{
    if (s->scheme.at != NULL || s->path.at != NULL)
        return malformed(f, SIDE_CLIENT, "CONNECT with a path");
    s->head.target = s->head.authority = s->authority;
    s->head.body = BODY_RAW;
    return WHY_NONE;
}

/* The target, as an absolute URI: what every way of finding its origin knows.
 */
static enum why
judge_target(struct section *s, struct fail *f)
{
    struct head *head = &s->head;
    bool asterisk = span_is(s->path, "*");
    size_t len = s->scheme.len + 3 + s->authority.len + s->path.len;
    char *text;
    int n;

    if (s->scheme.at == NULL || s->path.at == NULL)
        return malformed(f, SIDE_CLIENT, "no :scheme or no :path");
    if (!is_visible(s->scheme, "/:?#@,;=\"\\"))
        return malformed(f, SIDE_CLIENT, "malformed :scheme");
    if (!is_visible(s->path, "#") ||
        (s->path.at[0] != '/' &&
         !(asterisk && head->method_id == METHOD_OPTIONS)))
        return malformed(f, SIDE_CLIENT, "malformed :path");
    if ((text = malloc(len + 1)) == NULL)
        return fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
    n = snprintf(text, len + 1, "%.*s://%.*s%.*s", (int)s->scheme.len,
                 s->scheme.at, (int)s->authority.len, s->authority.at,
                 asterisk ? 0 : (int)s->path.len, s->path.at);
    head->target = head_text(head, text, (size_t)n);
    free(text);
    head->scheme = s->scheme;
    head->authority = s->authority;
    head->path = s->path;
    return head->target.at != NULL
               ? WHY_NONE
               : fail_own(f, SIDE_WEIR, WHY_BUSY, "out of memory");
}

/*
 * section_request - the request that a section makes.
 *
 * ends  no content follows
 * head  what was in it is forgotten; on failure it holds what was understood
 *
 * Returns WHY_NONE; WHY_PROTO: malformed (RFC 9113 section 8.1.1); WHY_LIMIT;
 * WHY_BUSY: out of memory.
 */
enum why
section_request(struct section *s, bool ends, struct head *head, struct fail *f)
{
    enum why why = judge_fields(s, SIDE_CLIENT, ends, f);

    s->head.method = s->method;
    s->head.method_id = method_of(s->method);
    if (why == WHY_NONE && s->over)
        why = fail_own(f, SIDE_CLIENT, WHY_LIMIT, "size of a head");
    if (why == WHY_NONE && !is_token(s->method))
        why = malformed(f, SIDE_CLIENT, "malformed :method");
    if (why == WHY_NONE)
        why = judge_host(s, f);
    if (why == WHY_NONE && !is_visible(s->authority, "@/?#\\\""))
        why = malformed(f, SIDE_CLIENT, "malformed :authority");
    if (why == WHY_NONE && s->head.method_id == METHOD_CONNECT &&
        s->protocol.at == NULL) {
        why = judge_connect(s, f);
    } else if (why == WHY_NONE) {
        if (s->protocol.at != NULL) {
            if (s->head.method_id != METHOD_CONNECT || !is_token(s->protocol))
                why = malformed(f, SIDE_CLIENT, "malformed :protocol");
            s->head.method = span_of("GET");
            s->head.method_id = METHOD_GET;
            s->head.upgrade = s->protocol;
            s->head.body = BODY_NONE;
        }
        if (why == WHY_NONE)
            why = judge_target(s, f);
    }
    section_take(s, head);
    return why;
}

/*
 * section_answer - the answer that a section makes.
 *
 * ends  no content follows.  Whether an answer to HEAD has content, and what
 *       a 200 to an extended CONNECT is, the caller knows.
 */
enum why
section_answer(struct section *s, bool ends, struct head *head, struct fail *f)
{
    enum why why = judge_fields(s, SIDE_ORIGIN, ends, f);
    const char *digit = s->status.at;

    if (why == WHY_NONE && s->over)
        why = fail_own(f, SIDE_ORIGIN, WHY_LIMIT, "size of a head");
    if (why == WHY_NONE &&
        (s->status.len != 3 || digit[0] < '1' || digit[0] > '9' ||
         digit[1] < '0' || digit[1] > '9' || digit[2] < '0' || digit[2] > '9'))
        why = malformed(f, SIDE_ORIGIN, "malformed :status");
    if (why == WHY_NONE)
        s->head.status =
            (digit[0] - '0') * 100 + (digit[1] - '0') * 10 + digit[2] - '0';
    if (s->head.status == 101)
        why = malformed(f, SIDE_ORIGIN, "101 in HTTP/2 or 3");
    if (s->head.status < 200 || s->head.status == 204 || s->head.status == 304)
        s->head.body = BODY_NONE;
    section_take(s, head);
    return why;
}

/* A trailer section; what is over a ceiling is missing. */
void
section_tail(struct section *s, struct head *head)
{
    section_take(s, head);
    head->version = s->version;
}

/* ---- sending ------------------------------------------------------------- */

struct packing {
    struct packed *p;
    char *to; /* where the next text goes */
};

static struct span
pack_text(struct packing *k, struct span s)
{
    struct span at = {k->to, s.len};

    if (s.len > 0)
        memcpy(k->to, s.at, s.len);
    k->to += s.len;
    return at;
}

static void
pack_add(struct packing *k, const char *name, struct span value)
{
    k->p->at[k->p->n++] =
        (struct field){span_of(name), pack_text(k, value), false};
}

/* Names are lower case (RFC 9113 section 8.2). */
static void
pack_field(struct packing *k, struct span name, struct span value, bool secret)
{
    struct field *field = &k->p->at[k->p->n++];
    char *at = k->to;

    field->name = pack_text(k, name);
    for (size_t i = 0; i < name.len; i++)
        if (at[i] >= 'A' && at[i] <= 'Z')
            at[i] |= 0x20;
    field->value = pack_text(k, value);
    field->secret = secret || span_is(field->name, "authorization");
}

/* One field for each pair: those that stay the same are indexed. */
static void
pack_cookie(struct packing *k, struct field from)
{
    struct span rest = from.value;

    while (rest.len > 0) {
        const char *semi = memmem(rest.at, rest.len, "; ", 2);
        size_t n = semi != NULL ? (size_t)(semi - rest.at) : rest.len;
        size_t step = semi != NULL ? n + 2 : n;

        if (n > 0)
            pack_field(k, from.name, (struct span){rest.at, n},
                       from.secret || n < SECRET_COOKIE);
        rest.at += step;
        rest.len -= step;
    }
}

/* Memory for a head, its pseudo-fields included, and `more` bytes. */
static bool
pack_begin(struct packing *k, const struct head *head, size_t more)
{
    size_t n = head->n_fields + 8, len = 64 + more;

    len += head->method.len + head->scheme.len + head->authority.len +
           head->path.len + head->upgrade.len;
    for (size_t i = 0; i < head->n_fields; i++) {
        const struct field *f = &head->fields[i];
        size_t pieces = 1;

        if (span_isi(f->name, "cookie"))
            for (size_t j = 0; j + 1 < f->value.len; j++)
                pieces += f->value.at[j] == ';' && f->value.at[j + 1] == ' ';
        n += pieces - 1;
        len += pieces * f->name.len + f->value.len;
    }
    k->p = malloc(sizeof *k->p + n * sizeof k->p->at[0] + len);
    if (k->p == NULL)
        return false;
    *k->p = (struct packed){.status = head->status};
    k->to = (char *)&k->p->at[n];
    return true;
}

static void
pack_pseudo(struct packing *k, const struct head *head)
{
    bool extended = head->upgrade.len > 0;
    char status[8];

    if (head->status != 0) {
        int n = snprintf(status, sizeof status, "%03d",
                         head->status == 101 ? 200 : head->status % 1000);

        pack_add(k, ":status", (struct span){status, (size_t)n});
        return;
    }
    if (extended)
        pack_add(k, ":method", span_of("CONNECT"));
    else
        pack_add(k, ":method", head->method);
    if (extended)
        pack_add(k, ":protocol", head->upgrade);
    if (head->method_id != METHOD_CONNECT) {
        pack_add(k, ":scheme", head->scheme);
        pack_add(k, ":path", head->path);
    }
    pack_add(k, ":authority", head->authority);
}

/* What has no place in these versions, or is made anew. */
static bool
is_left_out(const struct head *head, const struct field *field)
{
    struct span name = field->name;

    if (field_is_hop(head, name) || span_isi(name, "content-length"))
        return true;
    if (head->status == 0 && span_isi(name, "host"))
        return true;
    if (head->status == 0 && head->version == HTTP_10 &&
        span_isi(name, "expect"))
        return true;
    /* RFC 8441 section 5: they are HTTP/1's alone. */
    return head->upgrade.len > 0 && (span_isi(name, "sec-websocket-key") ||
                                     span_isi(name, "sec-websocket-accept"));
}

/*
 * pack_head - a head for a session's owner to send.
 *
 * head       a request, or an answer (status), whatever version it came in
 * head_only  it answers a HEAD: a length says what a GET would have brought
 * credentials  Proxy-Authorization to add; empty: none
 *
 * Returns the caller's, one allocation; NULL: out of memory.
 */
struct packed *
pack_head(const struct head *head, bool head_only, struct span credentials)
{
    const struct field *length = head_find(head, "content-length", NULL);
    struct packing k;
    char text[24];

    if (!pack_begin(&k, head, credentials.len))
        return NULL;
    pack_pseudo(&k, head);
    for (size_t i = 0; i < head->n_fields; i++) {
        const struct field *field = &head->fields[i];

        if (is_left_out(head, field))
            continue;
        if (span_isi(field->name, "cookie"))
            pack_cookie(&k, *field);
        else
            pack_field(&k, field->name, field->value, field->secret);
    }
    if (head->body == BODY_LENGTH && head->upgrade.len == 0) {
        int n = snprintf(text, sizeof text, "%llu",
                         (unsigned long long)head->length);

        pack_add(&k, "content-length", (struct span){text, (size_t)n});
    } else if (length != NULL && (head_only || head->status == 304)) {
        pack_add(&k, "content-length", length->value);
    }
    if (head->status == 0 && head->te_trailers)
        pack_add(&k, "te", span_of("trailers"));
    if (credentials.len > 0) {
        pack_add(&k, "proxy-authorization", credentials);
        k.p->at[k.p->n - 1].secret = true;
    }
    return k.p;
}

/* A trailer section, less what may not be in one. */
struct packed *
pack_tail(const struct head *tail)
{
    struct packing k;

    if (!pack_begin(&k, tail, 0))
        return NULL;
    for (size_t i = 0; i < tail->n_fields; i++)
        if (field_ok_in_trailer(tail->fields[i].name))
            pack_field(&k, tail->fields[i].name, tail->fields[i].value,
                       tail->fields[i].secret);
    return k.p;
}
