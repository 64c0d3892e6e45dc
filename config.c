/*
 * config.c - proxy.ini, read into one struct config that never changes again.
 *
 * One table, rows[], says what can be set: section, key, kind, field, default
 * and what it is for.  Reading, checking, the defaults, --set, the messages
 * and the release of memory all go by it, so a new setting is one new row (and
 * its lines in proxy.ini and weir.ini(5), which t/config.c asks for).  How a
 * value of each kind gets into its field is value.c's.
 *
 * inih splits the lines.  It hands on no line numbers and silently cuts what
 * is longer than its buffer, so it reads through line_read() here, which
 * counts and complains.
 *
 * Owns     the current configuration's lock; each struct config until its last
 *          reference is given back.
 * Threads  config_read() any; config_take(), _swap() and _give() any.
 * Blocks   for the file.
 */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proxy.h"

enum {
    KEY_MAX = 64,           /* a section or key that we would suggest */
    SECTION_MAX = 48,       /* inih has 50 bytes for a section, with its NUL */
    WEEK_S = 7 * 24 * 3600, /* in ms it still is an int */
};

/* ---- what can be set ----------------------------------------------------- */

#define ROW(section, name, preset, what, k, field)          \
    .key = {section, name, preset, what}, .kind = KIND_##k, \
    .at = offsetof(struct config, field)
#define SIZE(field) .size = sizeof(((struct config *)NULL)->field)
#define ITEM(field) .size = sizeof(*((struct config *)NULL)->field)

#define INT(section, field, preset, lo, hi, what)                     \
    {                                                                 \
        ROW(section, #field, #preset, what, INT, field), SIZE(field), \
            .min = (lo), .max = (hi)                                  \
    }
#define NUMBER(section, name, field, preset, lo, hi, what)          \
    {                                                               \
        ROW(section, name, #preset, what, INT, field), SIZE(field), \
            .min = (lo), .max = (hi)                                \
    }
#define WORD(section, name, field, list, preset, what)              \
    {                                                               \
        ROW(section, name, preset, what, WORD, field), SIZE(field), \
            .words = (list)                                         \
    }
#define VALUE(section, name, k, field, preset, what) /* in struct config */ \
    {                                                                       \
        ROW(section, name, preset, what, k, field), SIZE(field)             \
    }
#define POINTER(section, name, k, field, preset, what) /* behind a pointer */ \
    {                                                                         \
        ROW(section, name, preset, what, k, field)                            \
    }
#define LIST(section, name, k, field, preset, what)              \
    {                                                            \
        ROW(section, name, preset, what, k, field), ITEM(field), \
            .n_at = offsetof(struct config, n_##field)           \
    }

static const struct setting rows[] = {
    LIST("proxy", "listen", LISTEN, listen, "127.0.0.1:8080",
         "addresses to listen on, each with its port"),
    LIST("proxy", "names", NAMES, names, "",
         "further names and addresses by which clients call weir itself"),
    LIST("proxy", "users", USERS, users, "",
         "name:password of those who may use weir; empty: nobody is asked"),
    VALUE("proxy", "via", TOKEN, via, "",
          "weir's name in Via fields; empty: made at start"),
    VALUE("proxy", "http3", BOOL, http3, "yes",
          "listen for HTTP/3 as well, by UDP on the same ports"),
    INT("proxy", workers, 256, 1, 100000,
        "connections that are worked on at the same time"),
    INT("proxy", exchanges, 256, 1, 100000,
        "uploads and tunnels on HTTP/2 and 3 streams at the same time"),
    INT("proxy", queue, 1024, 1, 1000000,
        "connections that may wait for a worker"),
    INT("proxy", stack_kib, 256, 128, 65536, "stack of each thread, in KiB"),
    INT("proxy", idle_s, 30, 1, WEEK_S,
        "longest quiet on a connection or in a tunnel, in seconds"),
    INT("proxy", head_s, 10, 1, WEEK_S,
        "longest time for a whole request head, in seconds"),
    INT("proxy", queue_s, 5, 1, WEEK_S,
        "longest wait for a worker, in seconds; then 503"),
    INT("proxy", grace_s, 10, 0, WEEK_S,
        "time that work in flight has to finish at shutdown, in seconds"),
    INT("proxy", linger_ms, 10, 0, 10000,
        "how long a worker waits for a client's next request, in ms"),
    INT("proxy", head_bytes, 65536, 256, 1048576,
        "largest head of a message, in bytes; then 431"),
    INT("proxy", fields, 200, 1, 10000, "most fields in a head; then 431"),
    INT("proxy", target_bytes, 16384, 16, 1048576,
        "longest request target, in bytes; then 414"),

    POINTER("access", "allow", MATCH, allow, "",
            "client addresses that may use weir; empty: this machine's alone"),
    POINTER("access", "deny", MATCH, deny, "",
            "client addresses that may not, whatever allow says"),
    POINTER("access", "target_allow", MATCH, target_allow, "",
            "hosts that clients may reach; empty: all"),
    POINTER("access", "target_deny", MATCH, target_deny, "",
            "hosts that they may not, whatever target_allow says"),
    INT("access", connections, 8192, 1, 1000000,
        "connections from one client address at the same time"),

    INT("upstream", connect_s, 10, 1, WEEK_S,
        "longest time to connect to a server, in seconds; then 504"),
    VALUE("upstream", "breaker", BOOL, breaker, "yes",
          "do not try a server all the time that failed 5 times in a row"),
    INT("upstream", response_s, 30, 1, WEEK_S,
        "longest wait for an answer's first byte, in seconds; then 504"),
    INT("upstream", dns_s, 10, 1, WEEK_S,
        "longest wait for a name to be resolved, in seconds; then 504"),
    INT("upstream", reuse_per_origin, 8, 0, 10000,
        "idle connections kept for each server"),
    INT("upstream", reuse_total, 128, 0, 100000,
        "idle connections kept for all servers together"),
    INT("upstream", reuse_s, 30, 0, WEEK_S,
        "how long an idle connection is kept, in seconds"),
    POINTER("upstream", "upstream_ca", FILE, upstream_ca, "",
            "PEM file with CAs to trust on top of the system's"),
    POINTER("upstream", "insecure", MATCH, insecure, "",
            "hosts whose certificates are not verified"),
    VALUE("upstream", "parent", WAYS, ways, "",
          "proxies to go out through, in the order to be tried"),
    POINTER("upstream", "no_proxy", NO_PROXY, no_proxy, "",
            "hosts that are reached without a parent"),
    POINTER("upstream", "parent_ca", FILE, parent_ca, "",
            "PEM file with CAs to trust for https:// parents"),
    VALUE("upstream", "forward_proxy_auth", BOOL, forward_proxy_auth, "no",
          "show a parent without a password the client's own"),
    POINTER("upstream", "h2c", MATCH, h2c, "",
            "servers without TLS that are spoken to in HTTP/2"),
    POINTER("upstream", "http3", HTTP3, http3_hosts, "",
            "servers tried in HTTP/3 first; auto: those that offer it"),

    INT("http2", streams, 256, 1, 10000,
        "streams that a client may have open on one connection"),
    INT("http2", streams_total, 16384, 1, 1000000,
        "streams that all clients together may have waiting for servers"),
    INT("http2", window_kib, 256, 64, 16384,
        "content that a stream may have on its way, in KiB"),
    INT("http2", session_kib, 4096, 64, 1048576,
        "content that a connection may have on its way, in KiB"),
    INT("http2", stall_s, 30, 1, WEEK_S,
        "longest wait for a peer that takes no content, in seconds"),
    INT("http2", resets, 500, 1, 1000000,
        "stream resets and errors of a peer in 10 seconds"),
    INT("http2", settings, 100, 1, 1000000,
        "SETTINGS frames of a peer in 10 seconds"),
    INT("http2", pings, 200, 1, 1000000, "PING frames of a peer in 10 seconds"),
    INT("http2", empty_frames, 100, 1, 1000000,
        "frames without content of a peer in 10 seconds"),
    INT("http2", priorities, 1000, 1, 1000000,
        "PRIORITY frames of a peer in 10 seconds"),
    INT("http2", updates, 2000, 1, 1000000,
        "WINDOW_UPDATE frames of a peer in 10 seconds that nothing called for"),

    NUMBER("http3", "connections", quic_connections, 4096, 1, 1000000,
           "HTTP/3 connections that may be open at the same time"),
    NUMBER("http3", "idle_s", quic_idle_s, 30, 1, WEEK_S,
           "longest quiet on a connection without streams, in seconds"),
    WORD("http3", "retry", retry, "auto|always|never", "auto",
         "have clients prove their address before a handshake"),
    NUMBER("http3", "half_open", quic_half_open, 64, 0, 1000000,
           "unfinished handshakes from which on retry = auto does so"),

    INT("tunnel", stream_idle_s, 600, 1, WEEK_S,
        "longest quiet in a WebSocket or event stream, in seconds"),
    INT("tunnel", udp_associations, 64, 0, 100000,
        "SOCKS 5 clients that may send UDP at the same time"),
    INT("tunnel", udp_tunnels, 128, 0, 100000,
        "connect-udp tunnels that may be open at the same time"),
    INT("tunnel", udp_idle_s, 120, 1, WEEK_S,
        "longest quiet in a connect-udp tunnel, in seconds"),
    INT("tunnel", half_closed_s, 30, 1, WEEK_S,
        "longest quiet once one side has finished, in seconds"),

    VALUE("intercept", "enable", BOOL, intercept, "yes",
          "look into TLS, with a certificate of weir's own CA"),
    POINTER("intercept", "only", MATCH, only, "",
            "hosts that are intercepted; empty: all"),
    POINTER("intercept", "except", MATCH, except, "",
            "hosts that are not intercepted"),
    POINTER("intercept", "dir", PATH, dir, "~/.weir",
            "directory of weir's CA, made at the first start"),
    WORD("intercept", "alpn", alpn, "mirror|h2|http/1.1", "mirror",
         "HTTP version offered to clients: the server's, or always this"),
    WORD("intercept", "alt_svc", alt_svc_keep, "strip|keep", "strip",
         "whether clients are told of other ways to intercepted servers"),
    INT("intercept", leaf_days, 45, 1, 825,
        "days that a certificate made for a host is valid"),
    INT("intercept", leaf_cache, 1024, 1, 1000000,
        "certificates kept in memory"),
    INT("intercept", sniff_ms, 300, 0, 60000,
        "silence after CONNECT that makes a plain tunnel, in ms"),

    LIST("parent NAME", "url", URL, rules, NULL,
         "proxies for some hosts, in the order to be tried"),
    LIST("parent NAME", "hosts", HOSTS, rules, NULL,
         "the hosts; the first section that names one decides"),

    LIST("resolve", "NAME", RESOLVE, resolve, NULL,
         "address, with port if it differs, to use for this name"),

    WORD("log", "level", level, "error|warning|info|debug", "info",
         "least important events that are logged"),
    WORD("log", "format", json, "text|json", "text",
         "key=value text, or one JSON object a line"),
    POINTER("log", "file", PATH, log_file, "",
            "file to append to; empty: standard error"),
};

enum { N_ROWS = sizeof(rows) / sizeof(rows[0]) };

/* The i-th setting in the order of proxy.ini, NULL past the last. */
const struct config_key *
config_key(size_t i)
{
    return i < N_ROWS ? &rows[i].key : NULL;
}

/* Is it a section of many, each with a name of its own? */
static bool
row_is_rule(const struct setting *row)
{
    return row->kind == KIND_URL || row->kind == KIND_HOSTS;
}

/* Does the row belong to this section? */
static bool
row_in(const struct setting *row, const char *section)
{
    static const char lead[] = "parent ";

    if (!row_is_rule(row))
        return strcmp(row->key.section, section) == 0;
    return strncmp(section, lead, sizeof(lead) - 1) == 0 &&
           section[sizeof(lead) - 1 +
                   strspn(section + sizeof(lead) - 1, " \t")] != '\0';
}

/* ---- reading ------------------------------------------------------------- */

struct reading { /* one config_read() */
    struct config *conf;
    const char *name; /* of the file, or a whole "--set ..." */
    FILE *file;
    int line;              /* 0: not in a file */
    int seen[N_ROWS];      /* the line that gave this key; 0: none */
    bool seen_set[N_ROWS]; /* --set gave it */
    int wrong_line;        /* where err was written; 0: nowhere */
    char *err;
    size_t cap;
};

/* Writes err: the place, then the text.  Always false. */
__attribute__((format(printf, 2, 3))) static bool
wrong(struct reading *r, const char *fmt, ...)
{
    char text[WRONG_MAX + 2 * KEY_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (r->line > 0)
        snprintf(r->err, r->cap, "%s:%d: %s", r->name, r->line, text);
    else
        snprintf(r->err, r->cap, "%s: %s", r->name, text);
    r->wrong_line = r->line;
    return false;
}

/* How many letters differ, are missing or are too many (Levenshtein). */
static size_t
distance(const char *a, const char *b)
{
    size_t row[KEY_MAX], diagonal, left, n = strlen(b);

    if (n >= KEY_MAX || strlen(a) >= KEY_MAX)
        return KEY_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            left = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = left < row[j - 1] + 1 ? left : row[j - 1] + 1;
            if (row[j] > diagonal + 1)
                row[j] = diagonal + 1;
        }
    }
    return row[n];
}

/* The known key (NULL section: section) most like `name`; NULL: none is. */
static const char *
nearest(const char *section, const char *name)
{
    const char *best = NULL;
    size_t least = 3, len = strlen(name);

    for (size_t i = 0; i < N_ROWS; i++) {
        const char *known = rows[i].key.section;
        size_t d;

        if (section != NULL && strcmp(section, known) != 0)
            continue;
        if (section != NULL)
            known = rows[i].key.name;
        d = distance(name, known);
        if (len >= 3 && strncmp(known, name, len) == 0)
            d = 1; /* linger for linger_ms */
        if (d < least && d < len) {
            least = d;
            best = known;
        }
    }
    return best;
}

/* The keys of a section, or (NULL) the sections, with commas between. */
static void
known_list(const char *section, char *out, size_t cap)
{
    const char *last = "";
    size_t len = 0;

    for (size_t i = 0; i < N_ROWS && len < cap; i++) {
        const struct config_key *key = &rows[i].key;
        const char *known = section != NULL ? key->name : key->section;

        if (section != NULL ? strcmp(section, key->section) != 0
                            : strcmp(last, known) == 0)
            continue;
        len += (size_t)snprintf(out + len, cap - len, "%s%s",
                                len > 0 ? ", " : "", known);
        last = known;
    }
}

static bool
section_unknown(struct reading *r, const char *section, const char *name)
{
    const char *near = nearest(NULL, section);
    char known[WRONG_MAX / 2];

    known_list(NULL, known, sizeof(known));
    if (section[0] == '\0')
        return wrong(r, "[] %.80s: before any section, allowed: %s", name,
                     known);
    if (near != NULL)
        return wrong(r,
                     "[%.80s] %.80s: unknown section, did you mean [%s]? "
                     "allowed: %s",
                     section, name, near, known);
    return wrong(r, "[%.80s] %.80s: unknown section, allowed: %s", section,
                 name, known);
}

static bool
key_unknown(struct reading *r, const char *section, const char *name)
{
    const char *near = nearest(section, name);
    char known[WRONG_MAX / 2];

    if (near != NULL)
        return wrong(r, "[%s] %.80s: unknown key, did you mean %s?", section,
                     name, near);
    for (size_t i = 0; i < N_ROWS; i++) {
        if (strcmp(rows[i].key.name, name) == 0)
            return wrong(r, "[%s] %s: unknown key here, allowed: in [%s]",
                         section, name, rows[i].key.section);
    }
    known_list(section, known, sizeof(known));
    return wrong(r, "[%s] %.80s: unknown key, allowed: %s", section, name,
                 known);
}

/* The section as it stands in the table. */
static const char *
row_section(const char *section)
{
    for (size_t i = 0; i < N_ROWS; i++)
        if (row_in(&rows[i], section))
            return rows[i].key.section;
    return section;
}

/* The row of a key; NULL: there is none, said so. */
static const struct setting *
row_find(struct reading *r, const char *section, const char *name)
{
    bool known = false;

    for (size_t i = 0; i < N_ROWS; i++) {
        if (!row_in(&rows[i], section))
            continue;
        known = true;
        if (rows[i].kind == KIND_RESOLVE || strcmp(rows[i].key.name, name) == 0)
            return &rows[i];
    }
    if (known)
        key_unknown(r, row_section(section), name);
    else
        section_unknown(r, section, name);
    return NULL;
}

/* One `key = value` of the file or (line 0) of the command line, which wins:
 * its first word on a key replaces what the file said. */
static bool
give(struct reading *r, const char *section, const char *name,
     const char *value)
{
    const struct setting *row = row_find(r, section, name);
    struct given g = {r->conf, row, section, name, value, r->line == 0, ""};
    size_t i;

    if (row == NULL)
        return false;
    i = (size_t)(row - rows);
    if (!g.by_set && r->seen[i] != 0 && !value_adds(row))
        return wrong(r, "[%s] %s: given twice, first in line %d, allowed: once",
                     section, name, r->seen[i]);
    if (g.by_set && row->kind != KIND_RESOLVE && !row_is_rule(row) &&
        !(r->seen_set[i] && value_adds(row)))
        value_clear(r->conf, row);
    if (!value_set(&g))
        return wrong(r, "[%s] %.80s: %s", section, name, g.wrong);
    if (g.by_set)
        r->seen_set[i] = true;
    else if (r->seen[i] == 0)
        r->seen[i] = r->line;
    return true;
}

/* inih's handler; how many arguments it has was decided when inih was built. */
static int
pair_read(void *arg, const char *section, const char *name, const char *value
#if INI_HANDLER_LINENO
          ,
          int line
#endif
)
{
    struct reading *r = arg;

#if INI_HANDLER_LINENO
    r->line = line;
#endif
    if (name == NULL) /* some builds of inih announce a section */
        return 1;
    if (value == NULL) /* and some take a key alone */
        return wrong(r, "[%s] %.80s: no value, allowed: key = value", section,
                     name);
    return give(r, section, name, value);
}

/* inih ignores what follows a section on its line: a lost setting. */
static bool
section_alone(struct reading *r, const char *line)
{
    const char *end = line[0] == '[' ? strchr(line, ']') : NULL;

    if (end == NULL)
        return true;
    if (end - line - 1 > SECTION_MAX) /* inih cuts it in silence */
        return wrong(r, "section name too long, allowed: %d bytes",
                     SECTION_MAX);
    end += 1 + strspn(end + 1, " \t\r");
    if (*end == '\0' || *end == ';' || *end == '#')
        return true;
    return wrong(r, "\"%.80s\" behind a section, allowed: [section] alone",
                 end);
}

/* inih's reader: one line a call, in the place of fgets().  Blanks in front go,
 * or inih would take an indented line for more of the value above it; so does
 * the text of a comment, which may be as long as it likes. */
static char *
line_read(char *line, int cap, void *arg)
{
    struct reading *r = arg;
    bool any = false;
    int c, n = 0;

    if (r->wrong_line != 0)
        return NULL;
    r->line++;
    while ((c = getc(r->file)) != EOF && c != '\n') {
        any = true;
        if ((n == 0 && isspace(c)) ||
            (n > 0 && (line[0] == ';' || line[0] == '#')))
            continue;
        if (c == '\0') {
            wrong(r, "a NUL byte, allowed: text");
            return NULL;
        }
        if (n == cap - 3) { /* ini.h: two line ends and a NUL */
            wrong(r,
                  "line too long, allowed: %d bytes; a list may go on with "
                  "the same key in the next line",
                  cap - 3);
            return NULL;
        }
        line[n++] = (char)c;
    }
    line[n] = '\0';
    return (c != EOF || any) && section_alone(r, line) ? line : NULL;
}

static bool
file_read(struct reading *r, const char *file)
{
    int rc, code;

    r->name = file;
    r->file = fopen(file, "re");
    if (r->file == NULL)
        return wrong(r, "cannot be read: %s", sys_text(errno));
    rc = ini_parse_stream(line_read, r, pair_read, r);
    code = ferror(r->file) ? errno : 0;
    fclose(r->file);
    /* Mistakes that inih finds itself show only now, as a line number. */
    if (rc > 0 && (r->wrong_line == 0 || rc < r->wrong_line)) {
        r->line = rc;
        return wrong(r, "not understood, allowed: [section] or key = value");
    }
    if (r->wrong_line != 0)
        return false;
    r->line = 0;
    if (code != 0)
        return wrong(r, "cannot be read: %s", sys_text(code));
    return rc == 0 || wrong(r, "out of memory");
}

/* Without blanks at either end, in place. */
static char *
trimmed(char *text)
{
    size_t len;

    text += strspn(text, " \t");
    len = strlen(text);
    while (len > 0 && (text[len - 1] == ' ' || text[len - 1] == '\t'))
        text[--len] = '\0';
    return text;
}

/* May the value be in a message? */
static bool
key_is_secret(const char *section, const char *name)
{
    for (size_t i = 0; i < N_ROWS; i++)
        if (row_in(&rows[i], section) && strcmp(rows[i].key.name, name) == 0)
            return rows[i].kind == KIND_USERS || rows[i].kind == KIND_WAYS ||
                   rows[i].kind == KIND_URL;
    return false;
}

/* "section.key=value" */
static bool
set_read(struct reading *r, const char *set)
{
    char *name = NULL, *text = strdup(set), *key, *value;
    bool good = false;

    if (text == NULL || asprintf(&name, "--set %.200s", set) < 0) {
        free(text);
        r->name = "--set";
        return wrong(r, "out of memory");
    }
    r->name = name;
    value = strchr(text, '=');
    if (value != NULL)
        *value++ = '\0';
    key = strchr(text, '.');
    if (key != NULL)
        *key++ = '\0';
    if (key != NULL && key_is_secret(trimmed(text), trimmed(key)))
        name[strcspn(name, "=")] = '\0';
    if (key == NULL || value == NULL)
        wrong(r, "not understood, allowed: section.key=value");
    else
        good = give(r, trimmed(text), trimmed(key), trimmed(value));
    free(text);
    free(name);
    return good;
}

/* Whatever nobody gave gets its default. */
static bool
presets_set(struct reading *r)
{
    r->name = "defaults";
    for (size_t i = 0; i < N_ROWS; i++) {
        const struct config_key *key = &rows[i].key;
        struct given g = {
            r->conf, &rows[i], key->section, key->name, key->preset, false, ""};

        if (r->seen[i] != 0 || r->seen_set[i] || key->preset == NULL)
            continue;
        /* A user without a home may never need the path; who does says so. */
        if (!value_set(&g) && rows[i].kind != KIND_PATH)
            return wrong(r, "[%s] %s: %s", key->section, key->name, g.wrong);
    }
    return true;
}

/* A rule with half of what it needs would be silent: say so. */
static bool
rules_check(struct reading *r)
{
    if (r->conf->file != NULL)
        r->name = r->conf->file;
    for (size_t i = 0; i < r->conf->n_rules; i++) {
        const struct parent_rule *rule = &r->conf->rules[i];
        const char *lacks = rule->ways.n == 0          ? "url"
                            : match_empty(rule->hosts) ? "hosts"
                                                       : NULL;

        if (lacks != NULL)
            return wrong(r,
                         "[parent %.80s] %s: missing, allowed: both url and "
                         "hosts",
                         rule->name, lacks);
    }
    return true;
}

static void
config_free(struct config *conf)
{
    if (conf == NULL)
        return;
    for (size_t i = 0; i < N_ROWS; i++)
        value_clear(conf, &rows[i]);
    free(conf->file);
    free(conf);
}

static atomic_ullong serial; /* the last one given */

/*
 * config_read - the settings of a file and a command line, all of them valid.
 *
 * file  NULL: none, all is default
 * sets  n_sets of "section.key=value"; they win over the file
 * err   on NULL: "file:line: [section] key: what is wrong, allowed: ...", the
 *       first mistake; cap >= 1
 *
 * A list that the file gives in several lines has the items of all; --set
 * replaces it.  Returns a reference for the caller to config_give().
 */
struct config *
config_read(const char *file, char *const *sets, size_t n_sets, char *err,
            size_t cap)
{
    struct reading r = {.err = err, .cap = cap, .name = "settings"};
    struct config *done = NULL;

    r.conf = calloc(1, sizeof(*r.conf));
    if (r.conf == NULL) {
        wrong(&r, "out of memory");
        goto out;
    }
    atomic_init(&r.conf->n_refs, 1);
    r.conf->serial = atomic_fetch_add(&serial, 1) + 1;
    if (file != NULL && (r.conf->file = strdup(file)) == NULL) {
        wrong(&r, "out of memory");
        goto out;
    }
    if (file != NULL && !file_read(&r, file))
        goto out;
    for (size_t i = 0; i < n_sets; i++) {
        if (!set_read(&r, sets[i]))
            goto out;
    }
    if (!presets_set(&r) || !rules_check(&r))
        goto out;
    done = r.conf;
    r.conf = NULL;
out:
    config_free(r.conf);
    return done;
}

/* ---- where the file is --------------------------------------------------- */

/* Is there something that is no directory?  Whether it can be read is for
 * config_read() to say: a file that is skipped in silence is a riddle. */
static bool
file_there(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && !S_ISDIR(st.st_mode);
}

/*
 * config_find - the file to read when nobody named one.
 *
 * Looks for ./proxy.ini, weir/proxy.ini in $XDG_CONFIG_HOME (or ~/.config),
 * /etc/weir/proxy.ini.  Returns out, or NULL if there is none.
 *
 * Source: XDG Base Directory Specification; a relative path there is void.
 */
const char *
config_find(char *out, size_t cap)
{
    const char *xdg = getenv("XDG_CONFIG_HOME");
    char home[4096];
    int len = -1;

    snprintf(out, cap, "./proxy.ini");
    if (file_there(out))
        return out;
    if (xdg != NULL && xdg[0] == '/')
        len = snprintf(out, cap, "%s/weir/proxy.ini", xdg);
    else if (user_home(home, sizeof(home)))
        len = snprintf(out, cap, "%s/.config/weir/proxy.ini", home);
    if (len > 0 && (size_t)len < cap && file_there(out))
        return out;
    snprintf(out, cap, "/etc/weir/proxy.ini");
    return file_there(out) ? out : NULL;
}

/* ---- the current one ----------------------------------------------------- */

/* Between reading weir->config and counting the reference nobody may swap and
 * give it back. */
static pthread_mutex_t current_lock = PTHREAD_MUTEX_INITIALIZER;

static void
current_locked(bool locked)
{
    int rc = locked ? pthread_mutex_lock(&current_lock)
                    : pthread_mutex_unlock(&current_lock);

    assert(rc == 0);
    (void)rc;
}

/* A reference to the current configuration, to config_give() back. */
struct config *
config_take(struct weir *weir)
{
    struct config *conf;

    current_locked(true);
    conf = atomic_load(&weir->config);
    atomic_fetch_add(&conf->n_refs, 1);
    current_locked(false);
    return conf;
}

/* Makes `next` the current one; takes over the caller's reference to it and
 * hands out that to the one before, NULL if there was none. */
struct config *
config_swap(struct weir *weir, struct config *next)
{
    struct config *before;

    current_locked(true);
    before = atomic_exchange(&weir->config, next);
    current_locked(false);
    return before;
}

/* Gives a reference back; the last one frees. */
void
config_give(const struct config *conf)
{
    struct config *mine = (struct config *)conf; /* const but for the count */

    if (mine != NULL && atomic_fetch_sub(&mine->n_refs, 1) == 1)
        config_free(mine);
}
