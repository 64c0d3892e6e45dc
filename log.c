/*
 * log.c - one event, one line, one write(2).
 *
 * Text:  2026-01-02T03:04:05.678Z info conn=41 close why=idle op="read head"
 * JSON:  {"time":"2026-...","level":"info","conn":41,"event":"close",...}
 *
 * What a peer sent may stand in a value.  It can neither end the line nor the
 * value, nor reach a terminal: text keeps printable ASCII and writes the rest
 * as \xNN, JSON keeps valid UTF-8 but for control characters.  A line that
 * grows too long loses the end of its longest values, or whole fields, says
 * `cut=yes` and is as well-formed as any.
 *
 * A line has at most PIPE_BUF bytes, so that lines of several threads, or
 * processes, do not mix in a pipe either (pipe(7)).  SIGPIPE is ignored by
 * whoever owns the process.
 *
 * Owns     the log's descriptor.  Its number never changes: another file is
 *          put in its place by dup3(2), so nobody locks to write.
 * Threads  any; log_setup() and log_reopen() take turns.
 * Blocks   as write(2) to that file does.
 */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proxy.h"

enum {
    LINE_BYTES = sizeof(((struct line *)NULL)->at),
    LINE_ROOM =
        LINE_BYTES - 32, /* the rest is for cut=yes and the line's end */
    VALUE_MAX = 1024,    /* bytes of a line that one value may take */
    VALUE_MIN = 32,      /* left when a field begins: a number, a cut value */
    ESCAPE_MAX = 8,      /* "\u00ff" and a NUL */
};
_Static_assert(LINE_BYTES <= PIPE_BUF, "lines would mix in a pipe");

static const char *const levels[] = {[LEVEL_ERR] = "error",
                                     [LEVEL_WARN] = "warning",
                                     [LEVEL_INFO] = "info",
                                     [LEVEL_DEBUG] = "debug"};

static atomic_int log_level = LEVEL_INFO;
static atomic_bool log_json;
static atomic_int log_fd = STDERR_FILENO; /* our own after log_setup() */
static atomic_ullong log_lost;            /* lines not written since the last */
static atomic_bool log_torn;              /* half a line was written */

static pthread_mutex_t setup_lock = PTHREAD_MUTEX_INITIALIZER;
static char *log_path; /* needs setup_lock; NULL: standard error */

/* ---- characters ---------------------------------------------------------- */

/* The length of the UTF-8 character at `at`, 0 if it is none (RFC 3629). */
static size_t
utf8_read(const unsigned char *at, size_t len, uint32_t *code)
{
    static const uint32_t least[] = {[2] = 0x80, [3] = 0x800, [4] = 0x10000};
    size_t n = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;

    if (at[0] < 0xc2 || at[0] > 0xf4 || n > len)
        return 0;
    *code = at[0] & (0xffU >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        *code = *code << 6 | (at[i] & 0x3f);
    }
    if (*code < least[n] || *code > 0x10ffff ||
        (*code >= 0xd800 && *code <= 0xdfff))
        return 0;
    return n;
}

/* C1 controls, zero widths, line separators, and what turns the direction of
 * text (Unicode UAX 9): a reader would not see what is there. */
static bool
code_hides(uint32_t code)
{
    return (code >= 0x80 && code <= 0x9f) || code == 0x61c ||
           (code >= 0x200b && code <= 0x200f) ||
           (code >= 0x2028 && code <= 0x202e) ||
           (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
}

/*
 * char_write - one character of a quoted value, escaped where it must be.
 *
 * out   ESCAPE_MAX bytes
 * used  how many of at[0..len) it was; len >= 1
 *
 * Returns how many bytes of out are filled.  Source: RFC 8259 section 7.
 */
static size_t
char_write(char *out, const char *at, size_t len, bool json, size_t *used)
{
    static const char plain[] = "\"\\\n\r\t", escape[] = "\"\\nrt";
    const unsigned char *c = (const unsigned char *)at;
    const char *known = memchr(plain, *c, sizeof(plain) - 1);
    uint32_t code = *c;
    size_t n = 0;

    *used = 1;
    if (known != NULL) {
        out[0] = '\\';
        out[1] = escape[known - plain];
        return 2;
    }
    if (*c >= 0x20 && *c < 0x7f) {
        out[0] = at[0];
        return 1;
    }
    if (!json)
        return (size_t)snprintf(out, ESCAPE_MAX, "\\x%02x", *c);
    if (*c >= 0x80 && (n = utf8_read(c, len, &code)) == 0)
        code = 0xfffd; /* the sign for what is no character */
    if (n > 0)
        *used = n;
    if (n > 0 && !code_hides(code)) {
        memcpy(out, at, n);
        return n;
    }
    return (size_t)snprintf(out, ESCAPE_MAX, "\\u%04" PRIx32, code);
}

/* May it stand in a text line without quotes? */
static bool
value_bare(const char *at, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (at[i] <= ' ' || at[i] > '~' || strchr("\"\\=", at[i]) != NULL)
            return false;
    }
    return len > 0;
}

/* ---- a line ----------------------------------------------------------------
 */

static void
line_put(struct line *l, const char *at, size_t len)
{
    memcpy(l->at + l->len, at, len);
    l->len += len;
}

/* Begins a field; false: nobody wants the line, or it is full. */
static bool
key_put(struct line *l, const char *key)
{
    size_t len = strlen(key);

    if (l->off)
        return false;
    if (l->len + len + 4 + VALUE_MIN > LINE_ROOM) {
        l->cut = true;
        return false;
    }
    line_put(l, l->json ? ",\"" : " ", l->json ? 2 : 1);
    line_put(l, key, len);
    line_put(l, l->json ? "\":" : "=", l->json ? 2 : 1);
    return true;
}

static void
value_put(struct line *l, const char *at, size_t len)
{
    size_t end = l->len + VALUE_MAX, used, n;
    char c[ESCAPE_MAX];

    if (end > LINE_ROOM)
        end = LINE_ROOM;
    if (!l->json && l->len + len <= end && value_bare(at, len)) {
        line_put(l, at, len);
        return;
    }
    line_put(l, "\"", 1);
    for (size_t i = 0; i < len; i += used) {
        n = char_write(c, at + i, len - i, l->json, &used);
        if (l->len + n + sizeof("...\"") - 1 > end) {
            line_put(l, "...", 3);
            l->cut = true;
            break;
        }
        line_put(l, c, n);
    }
    line_put(l, "\"", 1);
}

/* "2026-01-02T03:04:05.678Z" (RFC 3339).  The calendar is asked once a second
 * and thread; it costs more than the rest of a line. */
static void
time_write(char out[40])
{
    static _Thread_local char text[24];
    static _Thread_local time_t second = -1;
    struct timespec now;
    struct tm utc;

    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec != second) {
        gmtime_r(&now.tv_sec, &utc);
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &utc);
        second = now.tv_sec;
    }
    snprintf(out, 40, "%s.%03dZ", text, (int)(now.tv_nsec / 1000000));
}

/* Is this level wanted?  Cheap, for whoever would gather much for a line. */
bool
log_on(enum level level)
{
    return (int)level <= atomic_load_explicit(&log_level, memory_order_relaxed);
}

/*
 * log_begin - start a line; fields follow, then log_send().
 *
 * event  a literal: letters, digits, - and _
 * conn   0: it belongs to no connection
 *
 * If the level is not wanted, the other functions do nothing with the line.
 */
void
log_begin(struct line *l, enum level level, const char *event, uint64_t conn)
{
    char now[40];
    int len;

    l->len = 0;
    l->cut = false;
    l->json = atomic_load_explicit(&log_json, memory_order_relaxed);
    l->off = !log_on(level);
    if (l->off)
        return;
    time_write(now);
    len = snprintf(l->at, sizeof(l->at),
                   l->json ? "{\"time\":\"%s\",\"level\":\"%s\"" : "%s %s", now,
                   levels[level]);
    l->len = (size_t)len;
    if (conn > 0)
        log_int(l, "conn", (int64_t)conn);
    if (l->json) {
        log_str(l, "event", event);
    } else {
        line_put(l, " ", 1);
        line_put(l, event, strlen(event));
    }
}

/* key is a literal here and below.  NULL value: the field is left out. */
void
log_str(struct line *l, const char *key, const char *value)
{
    if (value != NULL && key_put(l, key))
        value_put(l, value, strlen(value));
}

/* Any bytes. */
void
log_span(struct line *l, const char *key, struct span value)
{
    if (key_put(l, key))
        value_put(l, value.at, value.len);
}

void
log_int(struct line *l, const char *key, int64_t value)
{
    if (key_put(l, key))
        l->len += (size_t)snprintf(l->at + l->len, sizeof(l->at) - l->len,
                                   "%" PRId64, value);
}

/* us, in milliseconds with three decimals; < 0: the field is left out. */
void
log_ms(struct line *l, const char *key, int64_t us)
{
    if (us >= 0 && key_put(l, key))
        l->len +=
            (size_t)snprintf(l->at + l->len, sizeof(l->at) - l->len,
                             "%" PRId64 ".%03d", us / 1000, (int)(us % 1000));
}

/* parent=, and how long it took to reach it and to have its answer; nothing if
 * there is none. */
void
log_hop(struct line *l, const struct hop *hop)
{
    if (hop->parent[0] == '\0')
        return;
    log_str(l, "parent", hop->parent);
    log_ms(l, "parent_connect_ms", hop->connect_us);
    log_ms(l, "parent_answer_ms", hop->answer_us);
}

/* why=, and unless it went through: by=, op=, error= (of a foreign code) and
 * detail=. */
void
log_fail(struct line *l, const struct fail *f)
{
    const char *name = why_name(f->why);
    char lower[32];
    size_t i;

    for (i = 0; i < sizeof(lower) - 1 && name[i] != '\0'; i++)
        lower[i] = (char)tolower((unsigned char)name[i]);
    lower[i] = '\0';
    log_str(l, "why", lower);
    if (f->why == WHY_NONE)
        return;
    log_str(l, "by", side_name(f->side));
    log_str(l, "op", f->op);
    if (f->text != NULL)
        log_str(l, "error", f->text(f->code));
    if (f->detail[0] != '\0')
        log_str(l, "detail", f->detail);
    if (f->received != 0)
        log_int(l, "received", f->received);
}

/* ---- out -------------------------------------------------------------------
 */

/* A part that a full disk takes leaves half a line: the next one is told. */
static bool
bytes_write(const char *at, size_t len)
{
    ssize_t n;

    do
        n = write(atomic_load(&log_fd), at, len);
    while (n < 0 && errno == EINTR);
    if (n > 0 && (size_t)n < len)
        atomic_store(&log_torn, true);
    return n == (ssize_t)len;
}

/* Ends the line and writes it; false: it is lost. */
static bool
line_write(struct line *l)
{
    if (l->cut && l->json)
        line_put(l, ",\"cut\":true", 11);
    else if (l->cut)
        line_put(l, " cut=yes", 8);
    if (l->json)
        line_put(l, "}", 1);
    line_put(l, "\n", 1);
    if (atomic_exchange(&log_torn, false) && !bytes_write("\n", 1)) {
        atomic_store(&log_torn, true);
        return false;
    }
    return bytes_write(l->at, l->len);
}

/* Once lines can be written again: how many could not. */
static void
lost_tell(void)
{
    unsigned long long n = atomic_exchange(&log_lost, 0);
    struct line l;

    if (n == 0)
        return;
    log_begin(&l, LEVEL_ERR, "log", 0);
    log_str(&l, "msg", "lines could not be written");
    log_int(&l, "lost", (int64_t)n);
    if (!line_write(&l))
        atomic_fetch_add(&log_lost, n);
}

/* The line is written and done with.  One that cannot be written is counted;
 * whoever logs has better to do than to wait for a disk. */
void
log_send(struct line *l)
{
    if (l->off)
        return;
    if (!line_write(l))
        atomic_fetch_add(&log_lost, 1);
    else if (atomic_load_explicit(&log_lost, memory_order_relaxed) > 0)
        lost_tell();
    l->off = true;
}

/* A line at once, its text as msg=; conn 0: none. */
void
log_say(enum level level, uint64_t conn, const char *event, const char *fmt,
        ...)
{
    char text[VALUE_MAX + 1];
    struct line l;
    va_list ap;

    log_begin(&l, level, event, conn);
    if (l.off)
        return;
    va_start(ap, fmt);
    l.cut = vsnprintf(text, sizeof(text), fmt, ap) >= (int)sizeof(text);
    va_end(ap);
    log_str(&l, "msg", text);
    log_send(&l);
}

/* ---- where to --------------------------------------------------------------
 */

/* Puts a file (NULL: standard error) behind log_fd; 0, or errno.  Needs
 * setup_lock. */
static int
log_open(const char *path)
{
    int from = STDERR_FILENO, fd = atomic_load(&log_fd), code = 0;

    if (path != NULL)
        from = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY,
                    0640);
    if (from < 0)
        return errno;
    /* Our own number, so that standard error stays what it is. */
    if (fd == STDERR_FILENO)
        fd = fcntl(from, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    else
        fd = dup3(from, fd, O_CLOEXEC);
    if (fd < 0)
        code = errno;
    else
        atomic_store(&log_fd, fd);
    if (path != NULL)
        close(from);
    if (code == 0)
        atomic_store(&log_torn, false);
    return code;
}

static void
setup_locked(bool locked)
{
    int rc = locked ? pthread_mutex_lock(&setup_lock)
                    : pthread_mutex_unlock(&setup_lock);

    assert(rc == 0);
    (void)rc;
}

/*
 * log_setup - log as conf says from now on: file, level, format.
 *
 * err  on false: why not, cap >= 1; everything stays as it was
 *
 * Before the first call, lines at "info" go to standard error as text.
 */
bool
log_setup(const struct config *conf, char *err, size_t cap)
{
    char *path = NULL;
    int code;

    if (conf->log_file != NULL && (path = strdup(conf->log_file)) == NULL) {
        snprintf(err, cap, "[log] file: out of memory");
        return false;
    }
    setup_locked(true);
    code = log_open(path);
    if (code == 0) {
        char *before = log_path;

        log_path = path;
        path = before;
        atomic_store(&log_level, (int)conf->level);
        atomic_store(&log_json, conf->json);
    }
    setup_locked(false);
    free(path);
    if (code != 0)
        snprintf(err, cap, "[log] file: cannot open %.200s: %s",
                 conf->log_file != NULL ? conf->log_file : "standard error",
                 sys_text(code));
    return code == 0;
}

/* The file of that name anew, after somebody has moved the old one away.  If
 * it cannot be opened, the old one goes on and says so. */
void
log_reopen(void)
{
    int code;

    setup_locked(true);
    code = log_path != NULL ? log_open(log_path) : 0;
    if (code != 0)
        log_say(LEVEL_ERR, 0, "log", "cannot reopen %s: %s", log_path,
                sys_text(code));
    setup_locked(false);
}
