/*
 * match.c - lists of hosts, such as whom to intercept.
 *
 * An item is a name, a glob, a suffix, an address or a block of addresses
 * (RFC 4632 section 3.1, RFC 4291 section 2.3), each with an optional port or
 * range of ports:
 *
 *     example.com        this name          *.example.com   names below it
 *     .example.com       both               api-?.test      a glob
 *     10.0.0.0/8         a block            [::1]:8000-8999 with ports
 *     *:8443             any host, that port
 *
 * Names are compared as DNS compares them: without case (RFC 4343), without
 * the root's dot.  An IPv4 address in IPv6 clothes (RFC 4291 section 2.5.5.2)
 * is that IPv4 address.
 *
 * Owns     nothing beyond the lists it hands out.
 * Threads  any; a list does not change once it is built.
 * Blocks   never.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

#define ALLOWED                                                              \
    "allowed: name, glob like *.test, .suffix, address, address/bits, each " \
    "with :port or :port-port"

enum {
    ITEM_MAX = HOST_MAX + 32, /* a name, brackets, block length, two ports */
};

enum rule_kind { RULE_NAME, RULE_GLOB, RULE_BLOCK }; /* in the list's order */

struct block { /* the first `bits` of at; IPv4 has 4 bytes, IPv6 16 */
    unsigned char at[16];
    unsigned bits;
    bool v4;
};

struct rule {
    enum rule_kind kind;
    uint16_t from, to; /* ports, both included */
    char *text;        /* a name or a glob, lower case */
    char *written;     /* as it was written, for people */
    bool itself;       /* RULE_NAME: matches the name */
    bool below;        /* RULE_NAME: matches what ends in ".name" */
    struct block block;
};

struct group { /* blocks of one length, sorted by address */
    bool v4;
    unsigned bits;
    size_t first, end; /* among the rules */
};

struct match {
    struct rule *rules; /* names first and sorted, then globs, then blocks */
    size_t n, cap;
    size_t n_names, n_globs;
    struct group *groups; /* at most one for each length */
    size_t n_groups;
};

/* ---- building ------------------------------------------------------------ */

static bool
address_read(const char *text, struct block *b)
{
    static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};

    *b = (struct block){.bits = 32, .v4 = true};
    if (inet_pton(AF_INET, text, b->at) == 1)
        return true;
    if (inet_pton(AF_INET6, text, b->at) != 1)
        return false;
    b->v4 = memcmp(b->at, mapped, sizeof(mapped)) == 0;
    if (b->v4) {
        memmove(b->at, b->at + sizeof(mapped), 4);
        memset(b->at + 4, 0, sizeof(b->at) - 4);
    } else {
        b->bits = 128;
    }
    return true;
}

/* A whole number of decimal digits and nothing else; false: none, or > max. */
static bool
digits_read(const char *text, unsigned max, unsigned *value)
{
    unsigned v = 0;

    if (*text == '\0')
        return false;
    for (; *text != '\0'; text++) {
        if (!isdigit((unsigned char)*text))
            return false;
        v = v * 10 + (unsigned)(*text - '0');
        if (v > max)
            return false;
    }
    *value = v;
    return true;
}

/* The first `bits` of an address, and nothing behind them. */
static void
block_mask(struct block *b, unsigned bits)
{
    unsigned whole = bits / 8;

    b->bits = bits;
    if (bits % 8 != 0)
        b->at[whole++] &= (unsigned char)(0xff << (8 - bits % 8));
    memset(b->at + whole, 0, sizeof(b->at) - whole);
}

/* "address/bits"; text is cut at the slash. */
static bool
block_read(char *text, struct block *b)
{
    char *slash = strchr(text, '/');
    unsigned bits, clothes;

    *slash = '\0';
    if (!address_read(text, b))
        return false;
    /* ::ffff:10.0.0.0/104 is 10.0.0.0/8; a shorter one reaches past IPv4. */
    clothes = b->v4 && strchr(text, ':') != NULL ? 96 : 0;
    if (!digits_read(slash + 1, b->bits + clothes, &bits) || bits < clothes)
        return false;
    block_mask(b, bits - clothes);
    return true;
}

/* "443" or "8000-8999"; text is cut at the dash. */
static bool
ports_read(char *text, struct rule *rule)
{
    char *dash = strchr(text, '-');
    unsigned from, to;

    if (dash != NULL)
        *dash = '\0';
    if (!digits_read(text, UINT16_MAX, &from) || from == 0)
        return false;
    to = from;
    if (dash != NULL && (!digits_read(dash + 1, UINT16_MAX, &to) || to < from))
        return false;
    rule->from = (uint16_t)from;
    rule->to = (uint16_t)to;
    return true;
}

/*
 * match_split - cut a text in place into a host and what follows its colon.
 *
 * text  "host", "host:port", "[v6]", "[v6]:port" or bare "v6"; is changed
 * host  without brackets; may be empty
 * port  NULL: there is none; not looked at, a range is fine
 *
 * Two colons without brackets are an IPv6 address, so its port needs them.
 * False: brackets that do not pair or hold no IPv6 address.
 */
bool
match_split(char *text, char **host, char **port)
{
    char *end = strchr(text, ':');

    *host = text;
    *port = NULL;
    if (*text == '[') {
        char *close = strchr(text, ']');

        if (close == NULL || end == NULL || end > close)
            return false;
        *host = text + 1;
        *close = '\0';
        end = close + 1;
        if (*end == '\0')
            return true;
        if (*end != ':')
            return false;
    } else if (end == NULL || strchr(end + 1, ':') != NULL) {
        return true;
    }
    *end = '\0';
    *port = end + 1;
    return true;
}

/* Lower case, no root's dot; false: no host name is spelled so. */
static bool
name_normal(char *text)
{
    size_t len = strlen(text);

    if (len > 1 && text[len - 1] == '.')
        text[--len] = '\0';
    for (char *c = text; *c != '\0'; c++) {
        if (!isalnum((unsigned char)*c) && strchr("-_.*?", *c) == NULL)
            return false;
        *c = (char)tolower((unsigned char)*c);
    }
    return len > 0 && len <= HOST_MAX && text[0] != '.' &&
           strstr(text, "..") == NULL;
}

/* A name, a glob or a suffix.  "*." in front of a plain name is no glob but a
 * name to look up, which is what makes a long list quick. */
static bool
name_read(char *text, struct rule *rule)
{
    bool suffix = text[0] == '.', below = strncmp(text, "*.", 2) == 0;
    char *name = text + (suffix ? 1 : below ? 2 : 0);

    if (!name_normal(name))
        return false;
    rule->kind = RULE_NAME;
    rule->itself = !below;
    rule->below = suffix || below;
    rule->text = name;
    if (strpbrk(name, "*?") == NULL)
        return true;
    rule->kind = RULE_GLOB;
    rule->text = text;
    return !suffix; /* ".api-?.test" would have to be two globs */
}

/* rule's text stays a part of item. */
static bool
item_read(char *item, struct rule *rule)
{
    char *host, *ports;

    *rule = (struct rule){.kind = RULE_BLOCK, .from = 0, .to = UINT16_MAX};
    if (!match_split(item, &host, &ports))
        return false;
    if (ports != NULL && !ports_read(ports, rule))
        return false;
    if (strchr(host, '/') != NULL)
        return block_read(host, &rule->block);
    return address_read(host, &rule->block) || name_read(host, rule);
}

/* Adds a copy, written at[0..len); false: out of memory. */
static bool
rule_add(struct match *m, const struct rule *rule, const char *at, size_t len)
{
    char *text = NULL, *written;

    if (m->n == m->cap) {
        size_t cap = m->cap > 0 ? 2 * m->cap : 8;
        struct rule *rules = realloc(m->rules, cap * sizeof(*rules));

        if (rules == NULL)
            return false;
        m->rules = rules;
        m->cap = cap;
    }
    if (rule->text != NULL && (text = strdup(rule->text)) == NULL)
        return false;
    if ((written = strndup(at, len)) == NULL) {
        free(text);
        return false;
    }
    m->rules[m->n] = *rule;
    m->rules[m->n].written = written;
    m->rules[m->n++].text = text;
    return true;
}

/* at[0..len) is one item, without separators. */
static bool
item_add(struct match *m, const char *at, size_t len, char *err, size_t cap)
{
    char item[ITEM_MAX];
    struct rule rule;

    if (len < sizeof(item)) {
        memcpy(item, at, len);
        item[len] = '\0';
        if (item_read(item, &rule)) {
            if (rule_add(m, &rule, at, len))
                return true;
            snprintf(err, cap, "out of memory");
            return false;
        }
    }
    snprintf(err, cap, "\"%.*s\" is no host, " ALLOWED, (int)len, at);
    return false;
}

static int
rule_order(const void *a, const void *b)
{
    const struct rule *x = a, *y = b;

    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    if (x->kind == RULE_NAME)
        return strcmp(x->text, y->text);
    if (x->kind == RULE_GLOB)
        return 0;
    if (x->block.v4 != y->block.v4)
        return x->block.v4 ? -1 : 1;
    if (x->block.bits != y->block.bits)
        return x->block.bits > y->block.bits ? -1 : 1;
    return memcmp(x->block.at, y->block.at, sizeof(x->block.at));
}

/* Where each kind of rule, and each length of block, begins and ends.  False:
 * out of memory. */
static bool
index_make(struct match *m)
{
    struct group *groups;
    size_t i = 0;

    while (i < m->n && m->rules[i].kind == RULE_NAME)
        i++;
    m->n_names = i;
    while (i < m->n && m->rules[i].kind == RULE_GLOB)
        i++;
    m->n_globs = i - m->n_names;
    m->n_groups = 0;
    while (i < m->n) {
        const struct block *b = &m->rules[i].block;
        struct group g = {b->v4, b->bits, i, i};

        while (i < m->n && m->rules[i].block.v4 == g.v4 &&
               m->rules[i].block.bits == g.bits)
            i++;
        g.end = i;
        groups = realloc(m->groups, (m->n_groups + 1) * sizeof(g));
        if (groups == NULL)
            return false;
        m->groups = groups;
        m->groups[m->n_groups++] = g;
    }
    return true;
}

/*
 * match_add - put further items on a list that nobody else knows yet.
 *
 * text  items with commas or blanks between them; none is fine
 * err   on false: what is wrong, what is allowed; cap >= 1
 *
 * After false the list may hold some of the items.
 */
bool
match_add(struct match *m, const char *text, char *err, size_t cap)
{
    static const char between[] = ", \t\r\n";

    for (text += strspn(text, between); *text != '\0';
         text += strspn(text, between)) {
        size_t len = strcspn(text, between);

        if (!item_add(m, text, len, err, cap))
            return false;
        text += len;
    }
    if (m->n > 0)
        qsort(m->rules, m->n, sizeof(*m->rules), rule_order);
    if (index_make(m))
        return true;
    snprintf(err, cap, "out of memory");
    return false;
}

/*
 * match_parse - a list of hosts from text.
 *
 * text  as for match_add(); NULL and "" make an empty list
 * err   on NULL: what is wrong, what is allowed; cap >= 1
 *
 * The caller frees it with match_free().
 */
struct match *
match_parse(const char *text, char *err, size_t cap)
{
    struct match *m = calloc(1, sizeof(*m));

    if (m == NULL) {
        snprintf(err, cap, "out of memory");
        return NULL;
    }
    if (!match_add(m, text != NULL ? text : "", err, cap)) {
        match_free(m);
        return NULL;
    }
    return m;
}

void
match_free(struct match *m)
{
    if (m == NULL)
        return;
    for (size_t i = 0; i < m->n; i++) {
        free(m->rules[i].text);
        free(m->rules[i].written);
    }
    free(m->rules);
    free(m->groups);
    free(m);
}

bool
match_empty(const struct match *m)
{
    return m == NULL || m->n == 0;
}

/* ---- asking -------------------------------------------------------------- */

static bool
port_fits(const struct rule *rule, uint16_t port)
{
    return port >= rule->from && port <= rule->to;
}

/* The first of the names that is not before `name`. */
static size_t
name_find(const struct match *m, const char *name)
{
    size_t low = 0, high = m->n_names;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (strcmp(m->rules[mid].text, name) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Looks up the name, then what is left of it behind each dot. */
static const struct rule *
names_fit(const struct match *m, const char *host, uint16_t port)
{
    const char *name = host;

    while (name != NULL) {
        for (size_t i = name_find(m, name);
             i < m->n_names && strcmp(m->rules[i].text, name) == 0; i++) {
            const struct rule *rule = &m->rules[i];

            if ((name == host ? rule->itself : rule->below) &&
                port_fits(rule, port))
                return rule;
        }
        name = strchr(name, '.');
        if (name != NULL)
            name++;
    }
    return NULL;
}

/* `*` is any run of characters, dots too; `?` is one.  Only the last star is
 * gone back to, so the time is at most one length times the other. */
static bool
glob_fits(const char *glob, const char *host)
{
    const char *star = NULL, *from = NULL;

    while (*host != '\0') {
        if (*glob == '*') {
            star = ++glob;
            from = host;
        } else if (*glob == '?' || *glob == *host) {
            glob++;
            host++;
        } else if (star != NULL) {
            glob = star;
            host = ++from;
        } else {
            return false;
        }
    }
    return glob[strspn(glob, "*")] == '\0';
}

/* Blocks of one length are sorted: the one that has this address stands where
 * its first bits would stand. */
static const struct rule *
group_fits(const struct match *m, const struct group *g, struct block host,
           uint16_t port)
{
    size_t low = g->first, high = g->end;

    block_mask(&host, g->bits);
    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (memcmp(m->rules[mid].block.at, host.at, sizeof(host.at)) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < g->end; low++) {
        const struct rule *rule = &m->rules[low];

        if (memcmp(rule->block.at, host.at, sizeof(host.at)) != 0)
            break;
        if (port_fits(rule, port))
            return rule;
    }
    return NULL;
}

static const struct rule *
blocks_fit(const struct match *m, const struct block *host, uint16_t port)
{
    const struct rule *rule = NULL;

    for (size_t i = 0; i < m->n_groups && rule == NULL; i++)
        if (m->groups[i].v4 == host->v4)
            rule = group_fits(m, &m->groups[i], *host, port);
    return rule;
}

static const struct rule *
globs_fit(const struct match *m, const char *name, uint16_t port)
{
    for (size_t i = m->n_names; i < m->n_names + m->n_globs; i++)
        if (port_fits(&m->rules[i], port) && glob_fits(m->rules[i].text, name))
            return &m->rules[i];
    return NULL;
}

/* Lower case, without the root's dot and an IPv6 address's scope.  What is too
 * long for a name becomes the empty one, which only "*" matches. */
static void
host_normal(const char *host, char name[HOST_MAX + 1])
{
    size_t len = strchr(host, ':') != NULL ? strcspn(host, "%") : strlen(host);

    if (len > 1 && host[len - 1] == '.')
        len--;
    if (len > HOST_MAX)
        len = 0;
    for (size_t i = 0; i < len; i++)
        name[i] = (char)tolower((unsigned char)host[i]);
    name[len] = '\0';
}

/*
 * match_find - which item of the list is this host, at this port?
 *
 * m     NULL: an empty list
 * host  a name or an address in text, without brackets
 *
 * Returns the item as it was written, for as long as the list lives; NULL:
 * none. Names and blocks cost a few binary searches however many there are;
 * globs are tried one after the other.
 */
const char *
match_find(const struct match *m, const char *host, uint16_t port)
{
    char name[HOST_MAX + 1];
    const struct rule *rule;
    struct block address;
    bool is_address;

    if (match_empty(m))
        return NULL;
    host_normal(host, name);
    /* What names an address is a block: no name is one. */
    is_address = address_read(name, &address);
    rule =
        is_address ? blocks_fit(m, &address, port) : names_fit(m, name, port);
    if (rule == NULL)
        rule = globs_fit(m, name, port);
    return rule != NULL ? rule->written : NULL;
}

/* match_find() for a socket's address; `port` instead of the one in it. */
const char *
match_find_address(const struct match *m, const struct sockaddr *sa,
                   uint16_t port)
{
    static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};
    const struct sockaddr_in6 *in6 = (const void *)sa;
    const struct sockaddr_in *in = (const void *)sa;
    struct block host = {.bits = 32, .v4 = true};
    const struct rule *rule = NULL;
    char text[INET6_ADDRSTRLEN] = "";

    if (match_empty(m))
        return NULL;
    if (sa->sa_family == AF_INET)
        memcpy(host.at, &in->sin_addr, 4);
    else if (memcmp(&in6->sin6_addr, mapped, sizeof(mapped)) == 0)
        memcpy(host.at, in6->sin6_addr.s6_addr + 12, 4);
    else {
        host.v4 = false;
        memcpy(host.at, &in6->sin6_addr, 16);
    }
    if (m->n_globs > 0 &&
        inet_ntop(host.v4 ? AF_INET : AF_INET6, host.at, text, sizeof(text)))
        rule = globs_fit(m, text, port);
    if (rule == NULL)
        rule = blocks_fit(m, &host, port);
    return rule != NULL ? rule->written : NULL;
}

/* Is this host, at this port, on the list? */
bool
match_host(const struct match *m, const char *host, uint16_t port)
{
    return match_find(m, host, port) != NULL;
}
