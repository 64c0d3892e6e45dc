/*
 * config.c - proxy.ini, read into one struct config that never changes again.
 *
 * One table, rows[], says what can be set: section, key, kind, field, default
 * and what it is for.  Reading, checking, the defaults, --set, the messages
 * and the release of memory all go by it, so a new setting is one new row (and
 * its lines in proxy.ini and weir.ini(5), which t/config.c asks for).
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
#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proxy.h"

enum {
    WRONG_MAX = 512,  /* "what is wrong, what is allowed" */
    KEY_MAX = 64,     /* a section or key that we would suggest */
    SECTION_MAX = 48, /* inih has 50 bytes for a section, with its NUL */
    LISTEN_MAX = sizeof(((struct weir *)NULL)->ports) / sizeof(uint16_t),
    WEEK_S = 7 * 24 * 3600, /* in ms it still is an int */
};

/* ---- what can be set ----------------------------------------------------- */

enum kind {
    KIND_INT,      /* int: a whole number from min to max */
    KIND_BOOL,     /* bool */
    KIND_WORD,     /* enum or bool: the index of one of the words */
    KIND_TOKEN,    /* char[]: RFC 9110 section 5.6.2, or empty */
    KIND_PATH,     /* char *: NULL if empty */
    KIND_FILE,     /* the same, and it can be read */
    KIND_LISTEN,   /* list of struct listener_conf */
    KIND_USERS,    /* list of struct user_conf; secret */
    KIND_NAMES,    /* list of char *: names and addresses, no ports */
    KIND_MATCH,    /* struct match * */
    KIND_RESOLVE,  /* list of struct resolve_conf; the key is any name */
    KIND_NO_PROXY, /* struct match *, read as curl does */
    KIND_HTTP3,    /* struct match *, and "auto" */
    KIND_WAYS,     /* struct ways; secret */
    KIND_URL,      /* [parent NAME] url: struct ways of a rule; secret */
    KIND_HOSTS,    /* [parent NAME] hosts: struct match * of a rule */
};

struct row {
    struct config_key key;
    enum kind kind;
    size_t at, size;   /* the field in struct config; size: of a list's item */
    size_t n_at;       /* lists: the field that counts them */
    int min, max;      /* KIND_INT */
    const char *words; /* KIND_WORD: "error|warning", in the enum's order */
};

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

static const struct row rows[] = {
    LIST("proxy", "listen", LISTEN, listen, "127.0.0.1:8080",
         "addresses to listen on, each with its port"),
    LIST("proxy", "names", NAMES, names, "",
         "further names and addresses by which clients call weir itself"),
    LIST("proxy", "users", USERS, users, "",
         "name:password of those who may use weir; empty: nobody is asked"),
    VALUE("proxy", "via", TOKEN, via, "",
          "weir's name in Via fields; empty: made at start"),
    INT("proxy", workers, 256, 1, 100000,
        "connections that are worked on at the same time"),
    INT("proxy", exchanges, 256, 1, 100000,
        "uploads and tunnels on HTTP/2 streams at the same time"),
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
    POINTER("upstream", "http3", HTTP3, http3, "",
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

    INT("tunnel", stream_idle_s, 600, 1, WEEK_S,
        "longest quiet in a WebSocket or event stream, in seconds"),
    INT("tunnel", udp_associations, 64, 0, 100000,
        "SOCKS 5 clients that may send UDP at the same time"),
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

/* ---- one value into its field -------------------------------------------- */

struct given { /* one `key = value`, wherever it stands */
    struct config *conf;
    const struct row *row;
    const char *section, *name, *value;
    bool by_set; /* on the command line, where a later one wins */
    char wrong[WRONG_MAX];
};

/* Says what is wrong with it; always false. */
__attribute__((format(printf, 2, 3))) static bool
bad(struct given *g, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(g->wrong, sizeof(g->wrong), fmt, ap);
    va_end(ap);
    return false;
}

static void *
row_field(struct config *conf, const struct row *row)
{
    return (char *)conf + row->at;
}

static bool
int_set(struct given *g)
{
    const struct row *row = g->row;
    const char *digits = g->value + (g->value[0] == '-');
    long value;

    assert(row->size == sizeof(int));
    if (*digits == '\0' || digits[strspn(digits, "0123456789")] != '\0')
        return bad(g, "\"%.80s\" is no whole number, allowed: %d to %d",
                   g->value, row->min, row->max);
    errno = 0;
    value = strtol(g->value, NULL, 10);
    if (errno != 0 || value < row->min || value > row->max)
        return bad(g, "%.80s is out of range, allowed: %d to %d", g->value,
                   row->min, row->max);
    *(int *)row_field(g->conf, row) = (int)value;
    return true;
}

static bool
bool_set(struct given *g)
{
    static const char *const words[] = {"no",  "yes", "false", "true",
                                        "off", "on",  "0",     "1"};

    assert(g->row->size == sizeof(bool));
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcasecmp(g->value, words[i]) == 0) {
            *(bool *)row_field(g->conf, g->row) = i % 2 == 1;
            return true;
        }
    }
    return bad(g,
               "\"%.80s\" is unknown, allowed: yes, no, true, false, on, "
               "off, 1, 0",
               g->value);
}

static bool
word_set(struct given *g)
{
    void *field = row_field(g->conf, g->row);
    size_t len = strlen(g->value), n;
    unsigned index = 0;

    for (const char *word = g->row->words;; word += n + 1, index++) {
        n = strcspn(word, "|");
        if (n == len && memcmp(word, g->value, n) == 0)
            break;
        if (word[n] == '\0')
            return bad(g, "\"%.80s\" is unknown, allowed: %s", g->value,
                       g->row->words);
    }
    if (g->row->size == sizeof(bool)) {
        *(bool *)field = index != 0;
    } else {
        assert(g->row->size == sizeof(index));
        memcpy(field, &index, sizeof(index));
    }
    return true;
}

static bool
token_set(struct given *g)
{
    size_t len = strlen(g->value);

    if (len > 0 && !is_token(span_of(g->value)))
        return bad(g,
                   "\"%.80s\" is no token, allowed: letters, digits "
                   "and !#$%%&'*+-.^_`|~",
                   g->value);
    if (len >= g->row->size)
        return bad(g, "too long, allowed: %zu characters", g->row->size - 1);
    memcpy(row_field(g->conf, g->row), g->value, len + 1);
    return true;
}

/* $HOME, or what the system knows of this user; false: nowhere. */
static bool
home_find(char *out, size_t cap)
{
    const char *home = getenv("HOME");
    struct passwd user, *found = NULL;
    char text[4096];

    if (home == NULL || home[0] != '/') {
        if (getpwuid_r(getuid(), &user, text, sizeof(text), &found) != 0 ||
            found == NULL)
            return false;
        home = user.pw_dir;
    }
    return (size_t)snprintf(out, cap, "%s", home) < cap;
}

static bool
path_set(struct given *g)
{
    const char *value = g->value;
    char home[4096], *path = NULL;
    int len;

    if (value[0] == '\0')
        return true;
    if (value[0] == '~' && (value[1] == '/' || value[1] == '\0')) {
        if (!home_find(home, sizeof(home)))
            return bad(g,
                       "no home directory for \"%.80s\", allowed: "
                       "a path, or set HOME",
                       value);
        len = asprintf(&path, "%s%s", home, value + 1);
    } else {
        len = asprintf(&path, "%s", value);
    }
    if (len < 0)
        return bad(g, "out of memory");
    memcpy(row_field(g->conf, g->row), &path, sizeof(path));
    return true;
}

static void
path_clear(struct config *conf, const struct row *row)
{
    char **path = row_field(conf, row);

    free(*path);
    *path = NULL;
}

/* A file that is missing shows here and not at the first handshake. */
static bool
file_set(struct given *g)
{
    struct stat st = {.st_mode = 0};
    const char *path;
    int fd, code = 0;

    if (!path_set(g))
        return false;
    path = *(char **)row_field(g->conf, g->row);
    if (path == NULL)
        return true;
    /* O_NONBLOCK: opening a FIFO would wait for its writer. */
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0)
        code = errno;
    if (fd >= 0)
        close(fd);
    if (code != 0)
        return bad(g, "%.200s: %s, allowed: a readable file", path,
                   sys_text(code));
    if (!S_ISREG(st.st_mode))
        return bad(g, "%.200s is no file, allowed: a readable file", path);
    return true;
}

/* ---- lists --------------------------------------------------------------- */

static size_t *
list_count(struct config *conf, const struct row *row)
{
    return (size_t *)(void *)((char *)conf + row->n_at);
}

/* Room for one more item, zeroed; NULL: out of memory, said so. */
static void *
list_add(struct given *g)
{
    size_t *n = list_count(g->conf, g->row), size = g->row->size;
    char *list, *longer;

    memcpy(&list, row_field(g->conf, g->row), sizeof(list));
    longer = realloc(list, (*n + 1) * size);
    if (longer == NULL) {
        bad(g, "out of memory");
        return NULL;
    }
    memcpy(row_field(g->conf, g->row), &longer, sizeof(longer));
    return memset(longer + (*n)++ * size, 0, size);
}

static void
list_clear(struct config *conf, const struct row *row)
{
    void *list, *none = NULL;

    memcpy(&list, row_field(conf, row), sizeof(list));
    free(list);
    memcpy(row_field(conf, row), &none, sizeof(none));
    *list_count(conf, row) = 0;
}

/* Hands each item of a list with commas or blanks to add(). */
static bool
list_each(struct given *g, bool (*add)(struct given *, const char *item))
{
    static const char between[] = ", \t";
    char item[HOST_MAX + 1];
    size_t len;

    for (const char *at = g->value + strspn(g->value, between); *at != '\0';
         at += strspn(at, between)) {
        len = strcspn(at, between);
        if (len >= sizeof(item))
            return bad(g, "\"%.80s\" is too long, allowed: %d bytes", at,
                       HOST_MAX);
        memcpy(item, at, len);
        item[len] = '\0';
        if (!add(g, item))
            return false;
        at += len;
    }
    return true;
}

/* All digits, min to 65535. */
static bool
port_read(const char *text, unsigned min, uint16_t *port)
{
    struct span digits = {text, strlen(text)};
    uint64_t value;

    if (digits.len == 0 || !span_number(digits, &value) || value < min ||
        value > UINT16_MAX)
        return false;
    *port = (uint16_t)value;
    return true;
}

static bool
listen_bad(struct given *g, const char *item)
{
    return bad(g,
               "\"%.80s\" is nothing to listen on, allowed: address:port like "
               "127.0.0.1:8080 or [::1]:8080; *:8080 for all addresses; port 0 "
               "for a free one",
               item);
}

/* Port 0 is another one each time. */
static bool
listen_twice(const struct config *conf, const struct listener_conf *next,
             uint16_t port)
{
    for (size_t i = 0; i < conf->n_listen && port != 0; i++) {
        if (conf->listen[i].len == next->len &&
            memcmp(&conf->listen[i].addr, &next->addr, next->len) == 0)
            return true;
    }
    return false;
}

/* item is how it was written. */
static bool
listen_one(struct given *g, const char *item, const char *address,
           uint16_t port)
{
    static const struct addrinfo hints = {.ai_flags =
                                              AI_NUMERICHOST | AI_NUMERICSERV,
                                          .ai_socktype = SOCK_STREAM};
    struct listener_conf next = {.len = 0}, *to;
    struct addrinfo *found = NULL;
    char digits[8];

    snprintf(digits, sizeof(digits), "%u", port);
    if (strlen(item) >= sizeof(next.text) ||
        getaddrinfo(address, digits, &hints, &found) != 0)
        return listen_bad(g, item);
    snprintf(next.text, sizeof(next.text), "%s", item);
    memcpy(&next.addr, found->ai_addr, found->ai_addrlen);
    next.len = found->ai_addrlen;
    freeaddrinfo(found);
    if (listen_twice(g->conf, &next, port))
        return bad(g, "%s is there twice, allowed: once", item);
    if (g->conf->n_listen == LISTEN_MAX)
        return bad(g, "too many addresses, allowed: %d", LISTEN_MAX);
    if ((to = list_add(g)) == NULL)
        return false;
    *to = next;
    return true;
}

static bool
ipv6_there(void)
{
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static bool
listen_add(struct given *g, const char *item)
{
    char text[HOST_MAX + 1], *host, *digits;
    uint16_t port;

    snprintf(text, sizeof(text), "%s", item);
    if (!match_split(text, &host, &digits) || digits == NULL ||
        !port_read(digits, 0, &port))
        return listen_bad(g, item);
    /* Our IPv6 listeners take no IPv4, so that both kinds can be named. */
    if (*host == '\0' || strcmp(host, "*") == 0)
        return listen_one(g, item, "0.0.0.0", port) &&
               (!ipv6_there() || listen_one(g, item, "::", port));
    if (strcasecmp(host, "localhost") == 0)
        return listen_one(g, item, "127.0.0.1", port);
    return listen_one(g, item, host, port);
}

static bool
listen_set(struct given *g)
{
    if (!list_each(g, listen_add))
        return false;
    if (g->conf->n_listen == 0)
        return bad(g, "empty, allowed: address:port like 127.0.0.1:8080");
    return true;
}

/* A host name or an address as others compare it: lower case, no root's dot,
 * an address in its usual spelling (RFC 5952). */
static bool
host_read(const char *text, char host[HOST_MAX + 1])
{
    unsigned char address[16];
    size_t len = strlen(text);

    if (inet_pton(AF_INET6, text, address) == 1)
        return inet_ntop(AF_INET6, address, host, HOST_MAX + 1) != NULL;
    if (len > 1 && text[len - 1] == '.')
        len--;
    if (len == 0 || len > HOST_MAX)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (!isalnum((unsigned char)text[i]) && strchr("-_.", text[i]) == NULL)
            return false;
        host[i] = (char)tolower((unsigned char)text[i]);
    }
    host[len] = '\0';
    return true;
}

static bool
names_add(struct given *g, const char *item)
{
    char text[HOST_MAX + 1], name[HOST_MAX + 1], *host, *port, **to;

    snprintf(text, sizeof(text), "%s", item);
    if (!match_split(text, &host, &port) || port != NULL ||
        !host_read(host, name))
        return bad(g, "\"%.80s\" is no host, allowed: name or address", item);
    if ((to = list_add(g)) == NULL)
        return false;
    *to = strdup(name);
    return *to != NULL || bad(g, "out of memory");
}

/* No message repeats the item: it has a password. */
static bool
users_add(struct given *g, const char *item)
{
    const char *colon = strchr(item, ':');
    struct user_conf *to;

    if (colon == NULL || colon == item || colon[1] == '\0')
        return bad(g,
                   "an item is no user, allowed: name:password, at most "
                   "%d bytes together, no comma and no blank",
                   HOST_MAX);
    for (size_t i = 0; i < g->conf->n_users; i++)
        if (strncmp(g->conf->users[i].name, item, (size_t)(colon - item)) ==
                0 &&
            g->conf->users[i].name[colon - item] == '\0')
            return bad(g, "user %.*s is there twice, allowed: once",
                       (int)(colon - item), item);
    if ((to = list_add(g)) == NULL)
        return false;
    memcpy(to->name, item, (size_t)(colon - item));
    memcpy(to->password, colon + 1, strlen(colon + 1) + 1);
    return true;
}

static bool
users_set(struct given *g)
{
    if (list_each(g, users_add))
        return true;
    if (strstr(g->wrong, "too long") != NULL)
        bad(g, "an item is too long, allowed: %d bytes", HOST_MAX);
    return false;
}

static void
users_clear(struct config *conf, const struct row *row)
{
    if (conf->users != NULL)
        explicit_bzero(conf->users, conf->n_users * sizeof *conf->users);
    list_clear(conf, row);
}

static bool
names_set(struct given *g)
{
    return list_each(g, names_add);
}

static void
names_clear(struct config *conf, const struct row *row)
{
    char **names;

    memcpy(&names, row_field(conf, row), sizeof(names));
    for (size_t i = 0; i < *list_count(conf, row); i++)
        free(names[i]);
    list_clear(conf, row);
}

static bool
match_set(struct given *g)
{
    struct match **m = row_field(g->conf, g->row);

    if (*m == NULL)
        *m = match_parse(NULL, g->wrong, sizeof(g->wrong));
    return *m != NULL && match_add(*m, g->value, g->wrong, sizeof(g->wrong));
}

static void
match_clear(struct config *conf, const struct row *row)
{
    struct match **m = row_field(conf, row);

    match_free(*m);
    *m = NULL;
}

static bool
resolve_read(const char *value, struct resolve_conf *to)
{
    unsigned char address[16];
    char text[HOST_MAX + 1], *host, *port;
    int family;

    if ((size_t)snprintf(text, sizeof(text), "%s", value) >= sizeof(text) ||
        !match_split(text, &host, &port))
        return false;
    family = strchr(host, ':') != NULL ? AF_INET6 : AF_INET;
    if (inet_pton(family, host, address) != 1 ||
        inet_ntop(family, address, to->host, sizeof(to->host)) == NULL)
        return false;
    return port == NULL || port_read(port, 1, &to->port);
}

/* The key is the name, so a name is there at most once. */
static bool
resolve_set(struct given *g)
{
    struct resolve_conf next = {.port = 0}, *to = NULL;

    if (!host_read(g->name, next.name))
        return bad(g, "no host name, allowed: letters, digits, - _ and .");
    if (!resolve_read(g->value, &next))
        return bad(g,
                   "\"%.80s\" is no address, allowed: 10.0.0.1, "
                   "10.0.0.1:8443, ::1 or [::1]:8443",
                   g->value);
    for (size_t i = 0; i < g->conf->n_resolve; i++) {
        if (strcmp(g->conf->resolve[i].name, next.name) == 0)
            to = &g->conf->resolve[i];
    }
    if (to != NULL && !g->by_set)
        return bad(g, "there already, allowed: one address a name");
    if (to == NULL && (to = list_add(g)) == NULL)
        return false;
    *to = next;
    return true;
}

/* A parent that is there already is the same: what is learned of it in one
 * place counts in all.  Takes over p's reference; the result is a new one. */
static struct parent *
parent_shared(const struct config *conf, struct parent *p)
{
    struct parent *same = NULL;

    for (size_t r = 0; r <= conf->n_rules && same == NULL; r++) {
        const struct ways *w = r == 0 ? &conf->ways : &conf->rules[r - 1].ways;

        for (size_t i = 0; i < w->n && same == NULL; i++)
            if (parent_same(w->at[i], p))
                same = parent_take(w->at[i]);
    }
    if (same == NULL)
        return p;
    parent_give(p);
    return same;
}

/* What http_proxy and its kin say is read once, when it is asked for. */
static bool
env_read(struct given *g)
{
    return g->conf->env.no_proxy != NULL ||
           ways_env(&g->conf->env, g->wrong, sizeof(g->wrong));
}

/* Items of a list of parents.  No message repeats one: it may hold a password.
 */
static bool
ways_read(struct given *g, struct ways *ways)
{
    static const char between[] = ", \t";
    char item[4 * HOST_MAX];
    int n = 0;

    for (const char *at = g->value + strspn(g->value, between); *at != '\0';
         at += strspn(at, between)) {
        size_t len = strcspn(at, between);
        struct parent *p = NULL;

        n++;
        if (len < sizeof(item)) {
            memcpy(item, at, len);
            item[len] = '\0';
            p = parent_parse(item);
            explicit_bzero(item, sizeof(item));
        }
        if (p == NULL)
            return bad(g, "item %d is no parent, " PARENT_ALLOWED, n);
        if (p->kind == PARENT_ENV && !env_read(g)) {
            parent_give(p);
            return false;
        }
        if (ways->n == WAYS_MAX) {
            parent_give(p);
            return bad(g, "too many parents, allowed: %d", WAYS_MAX);
        }
        if (!ways_add(ways, parent_shared(g->conf, p)))
            return bad(g, "out of memory");
        at += len;
    }
    return true;
}

static bool
ways_set(struct given *g)
{
    return ways_read(g, row_field(g->conf, g->row));
}

static void
ways_reset(struct config *conf, const struct row *row)
{
    ways_clear(row_field(conf, row));
    parent_give(conf->env.http);
    parent_give(conf->env.https);
    match_free(conf->env.no_proxy);
    conf->env = (struct env_ways){NULL, NULL, NULL};
}

static bool
no_proxy_set(struct given *g)
{
    struct match **m = row_field(g->conf, g->row);

    if (*m == NULL)
        *m = match_parse(NULL, g->wrong, sizeof(g->wrong));
    return *m != NULL && no_proxy_add(*m, g->value, g->wrong, sizeof(g->wrong));
}

static bool
http3_add(struct given *g, const char *item)
{
    struct match **m = row_field(g->conf, g->row);

    if (strcmp(item, "auto") == 0)
        return g->conf->http3_auto = true;
    if (*m == NULL)
        *m = match_parse(NULL, g->wrong, sizeof(g->wrong));
    return *m != NULL && match_add(*m, item, g->wrong, sizeof(g->wrong));
}

static bool
http3_set(struct given *g)
{
    return list_each(g, http3_add);
}

static void
http3_clear(struct config *conf, const struct row *row)
{
    match_clear(conf, row);
    conf->http3_auto = false;
}

/* The rule that a section [parent NAME] is about, made if it is new. */
static struct parent_rule *
rule_find(struct given *g)
{
    const char *name = g->section + strlen("parent ");
    struct parent_rule *rule;

    name += strspn(name, " \t");
    for (size_t i = 0; i < g->conf->n_rules; i++)
        if (strcmp(g->conf->rules[i].name, name) == 0)
            return &g->conf->rules[i];
    if (strlen(name) >= sizeof(rule->name)) {
        bad(g, "the section's name is too long, allowed: %d bytes", HOST_MAX);
        return NULL;
    }
    if ((rule = list_add(g)) != NULL)
        memcpy(rule->name, name, strlen(name) + 1);
    return rule;
}

static bool
url_set(struct given *g)
{
    struct parent_rule *rule = rule_find(g);

    if (rule == NULL)
        return false;
    if (g->by_set)
        ways_clear(&rule->ways);
    return ways_read(g, &rule->ways);
}

static bool
hosts_set(struct given *g)
{
    struct parent_rule *rule = rule_find(g);

    if (rule == NULL)
        return false;
    if (g->by_set) {
        match_free(rule->hosts);
        rule->hosts = NULL;
    }
    if (rule->hosts == NULL)
        rule->hosts = match_parse(NULL, g->wrong, sizeof(g->wrong));
    return rule->hosts != NULL &&
           match_add(rule->hosts, g->value, g->wrong, sizeof(g->wrong));
}

static void
rules_clear(struct config *conf, const struct row *row)
{
    for (size_t i = 0; i < conf->n_rules; i++) {
        ways_clear(&conf->rules[i].ways);
        match_free(conf->rules[i].hosts);
    }
    list_clear(conf, row);
}

static const struct {
    bool list; /* may be given again, which adds to it */
    bool (*set)(struct given *);
    void (*clear)(struct config *, const struct row *); /* NULL: no memory */
} kinds[] = {
    [KIND_INT] = {false, int_set, NULL},
    [KIND_BOOL] = {false, bool_set, NULL},
    [KIND_WORD] = {false, word_set, NULL},
    [KIND_TOKEN] = {false, token_set, NULL},
    [KIND_PATH] = {false, path_set, path_clear},
    [KIND_FILE] = {false, file_set, path_clear},
    [KIND_LISTEN] = {true, listen_set, list_clear},
    [KIND_USERS] = {true, users_set, users_clear},
    [KIND_NAMES] = {true, names_set, names_clear},
    [KIND_MATCH] = {true, match_set, match_clear},
    [KIND_RESOLVE] = {true, resolve_set, list_clear},
    [KIND_NO_PROXY] = {true, no_proxy_set, match_clear},
    [KIND_HTTP3] = {true, http3_set, http3_clear},
    [KIND_WAYS] = {true, ways_set, ways_reset},
    [KIND_URL] = {true, url_set, rules_clear},
    [KIND_HOSTS] = {true, hosts_set, rules_clear},
};

/* Is it a section of many, each with a name of its own? */
static bool
row_is_rule(const struct row *row)
{
    return row->kind == KIND_URL || row->kind == KIND_HOSTS;
}

/* Does the row belong to this section? */
static bool
row_in(const struct row *row, const char *section)
{
    static const char lead[] = "parent ";

    if (!row_is_rule(row))
        return strcmp(row->key.section, section) == 0;
    return strncmp(section, lead, sizeof(lead) - 1) == 0 &&
           section[sizeof(lead) - 1 +
                   strspn(section + sizeof(lead) - 1, " \t")] != '\0';
}

static void
row_clear(struct config *conf, const struct row *row)
{
    if (kinds[row->kind].clear != NULL)
        kinds[row->kind].clear(conf, row);
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
static const struct row *
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
    const struct row *row = row_find(r, section, name);
    struct given g = {r->conf, row, section, name, value, r->line == 0, ""};
    size_t i;

    if (row == NULL)
        return false;
    i = (size_t)(row - rows);
    if (!g.by_set && r->seen[i] != 0 && !kinds[row->kind].list)
        return wrong(r, "[%s] %s: given twice, first in line %d, allowed: once",
                     section, name, r->seen[i]);
    if (g.by_set && row->kind != KIND_RESOLVE && !row_is_rule(row) &&
        !(r->seen_set[i] && kinds[row->kind].list))
        row_clear(r->conf, row);
    if (!kinds[row->kind].set(&g))
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
        if (!kinds[rows[i].kind].set(&g) && rows[i].kind != KIND_PATH)
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
        row_clear(conf, &rows[i]);
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
    else if (home_find(home, sizeof(home)))
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
