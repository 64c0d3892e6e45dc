/*
 * value.c - one value of a setting, as written, into its field.
 *
 * A kind of setting is a line of kinds[], at the end: how its text is read
 * into struct config, and how its memory is given back.  Which settings there
 * are, where they were written and which of them wins is config.c's.
 *
 * Owns     nothing: the fields are those of the struct config it is given.
 * Threads  any; a struct config that is being read has one.
 * Blocks   for a file whose being there is checked.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proxy.h"

enum { LISTEN_MAX = sizeof(((struct weir *)NULL)->ports) / sizeof(uint16_t) };

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
row_field(struct config *conf, const struct setting *row)
{
    return (char *)conf + row->at;
}

static bool
int_set(struct given *g)
{
    const struct setting *row = g->row;
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

/* $HOME, or what the system knows of this user; false: nowhere, or it does not
 * fit. */
bool
user_home(char *out, size_t cap)
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
        if (!user_home(home, sizeof(home)))
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
path_clear(struct config *conf, const struct setting *row)
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
list_count(struct config *conf, const struct setting *row)
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
list_clear(struct config *conf, const struct setting *row)
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
users_clear(struct config *conf, const struct setting *row)
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
names_clear(struct config *conf, const struct setting *row)
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
match_clear(struct config *conf, const struct setting *row)
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
ways_reset(struct config *conf, const struct setting *row)
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
http3_clear(struct config *conf, const struct setting *row)
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
rules_clear(struct config *conf, const struct setting *row)
{
    for (size_t i = 0; i < conf->n_rules; i++) {
        ways_clear(&conf->rules[i].ways);
        match_free(conf->rules[i].hosts);
    }
    list_clear(conf, row);
}

/* ---- what there is for each kind ------------------------------------------
 */

static const struct {
    bool list; /* may be given again, which adds to it */
    bool (*set)(struct given *);
    void (*clear)(struct config *,
                  const struct setting *); /* NULL: no memory */
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

/* May it be given again, which adds to what is there? */
bool
value_adds(const struct setting *row)
{
    return kinds[row->kind].list;
}

/*
 * value_set - read g->value into the field of g->row.
 *
 * Returns false if it is not valid or memory is out: then g->wrong says what
 * is wrong and what is allowed, and the field has what was read before it.
 */
bool
value_set(struct given *g)
{
    return kinds[g->row->kind].set(g);
}

/* Gives back the field's memory; it is as if nothing had been given. */
void
value_clear(struct config *conf, const struct setting *row)
{
    if (kinds[row->kind].clear != NULL)
        kinds[row->kind].clear(conf, row);
}
