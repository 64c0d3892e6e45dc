/*
 * t/log.c - lines: their form, what cannot be forged, what does not fit, where
 * they go, and what happens when they cannot.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/tap.h"

enum { ALL_MAX = 4 << 20 };

static char path[1024], moved[1100];

/* ---- helpers ------------------------------------------------------------- */

static void
setup(enum level level, bool json, char *file)
{
    struct config conf = {.level = level, .json = json, .log_file = file};
    char err[256] = "";

    if (!log_setup(&conf, err, sizeof(err))) {
        ok(false, "log_setup: %s", err);
        exit(done_testing());
    }
}

/* All of a file; static memory, for the next call. */
static char *
slurp(const char *file)
{
    static char text[ALL_MAX];
    FILE *f = fopen(file, "re");
    size_t n = f != NULL ? fread(text, 1, sizeof(text) - 1, f) : 0;

    if (f != NULL)
        fclose(f);
    text[n] = '\0';
    return text;
}

/* The file's only line without its time and line end; the file is emptied. */
static const char *
line(void)
{
    char *text = slurp(path), *end = strchr(text, '\n');

    if (truncate(path, 0) != 0)
        diag("%s: %s", path, strerror(errno));
    if (end == NULL || end[1] != '\0')
        return "(not one line)";
    *end = '\0';
    if (text[0] == '{')
        return strlen(text) > 33 ? text + 33 : "(no time)";
    return strlen(text) > 25 ? text + 25 : "(no time)";
}

/* "dddd-dd-ddTdd:dd:dd.dddZ" */
static bool
is_time(const char *text)
{
    static const char form[] = "0000-00-00T00:00:00.000Z";

    for (size_t i = 0; form[i] != '\0'; i++) {
        if (form[i] == '0' ? !isdigit((unsigned char)text[i])
                           : text[i] != form[i])
            return false;
    }
    return true;
}

/* Goes over a JSON string (RFC 8259 section 7). */
static bool
json_string(const char **at)
{
    const char *c = *at;

    if (*c++ != '"')
        return false;
    for (; *c != '"'; c++) {
        if ((unsigned char)*c < 0x20)
            return false;
        if (*c != '\\')
            continue;
        c++;
        if (*c == 'u') {
            for (int i = 0; i < 4; i++) {
                if (!isxdigit((unsigned char)*++c))
                    return false;
            }
        } else if (*c == '\0' || strchr("\"\\/bfnrt", *c) == NULL) {
            return false;
        }
    }
    *at = c + 1;
    return true;
}

/* One flat object and a line end, in UTF-8? */
static bool
is_json(const char *text)
{
    char *end;

    if (mbstowcs(NULL, text, 0) == (size_t)-1 || *text++ != '{')
        return false;
    for (;; text++) {
        if (!json_string(&text) || *text++ != ':')
            return false;
        if (strncmp(text, "true", 4) == 0) {
            text += 4;
        } else if (*text != '"') {
            strtod(text, &end);
            if (end == text)
                return false;
            text = end;
        } else if (!json_string(&text)) {
            return false;
        }
        if (*text != ',')
            break;
    }
    return strcmp(text, "}\n") == 0;
}

static void
say_span(const char *at, size_t len)
{
    struct line l;

    log_begin(&l, LEVEL_INFO, "e", 0);
    log_span(&l, "v", (struct span){at, len});
    log_send(&l);
}

/* ---- form ------------------------------------------------------------------
 */

static void
all_fields(void)
{
    struct line l;

    log_begin(&l, LEVEL_INFO, "close", 41);
    log_str(&l, "plain", "http://a.test/");
    log_str(&l, "blank", "read request head");
    log_str(&l, "none", NULL);
    log_str(&l, "empty", "");
    log_str(&l, "equal", "a=b");
    log_str(&l, "quote", "a\"b\\c\n\r\t\x1b[2J\x7f");
    log_span(&l, "span", (struct span){"abcdef", 3});
    log_span(&l, "nothing", (struct span){NULL, 0});
    log_int(&l, "in", INT64_MAX);
    log_int(&l, "low", INT64_MIN);
    log_ms(&l, "ms", 1234567);
    log_ms(&l, "short", 7);
    log_ms(&l, "zero", 0);
    log_ms(&l, "never", -1);
    log_send(&l);
}

static void
test_form(void)
{
    char *text;

    setup(LEVEL_INFO, false, path);
    all_fields();
    text = slurp(path);
    ok(is_time(text) && text[24] == ' ', "a line begins with the time");
    is_str(line(),
           "info conn=41 close plain=http://a.test/ "
           "blank=\"read request head\" empty=\"\" equal=\"a=b\" "
           "quote=\"a\\\"b\\\\c\\n\\r\\t\\x1b[2J\\x7f\" span=abc nothing=\"\" "
           "in=9223372036854775807 low=-9223372036854775808 ms=1234.567 "
           "short=0.007 zero=0.000",
           "text");

    setup(LEVEL_INFO, true, path);
    all_fields();
    text = slurp(path);
    ok(is_json(text), "JSON is JSON");
    ok(strncmp(text, "{\"time\":\"", 9) == 0 && is_time(text + 9),
       "and begins with the time");
    is_str(line(),
           "\",\"level\":\"info\",\"conn\":41,\"event\":\"close\","
           "\"plain\":\"http://a.test/\",\"blank\":\"read request head\","
           "\"empty\":\"\",\"equal\":\"a=b\","
           "\"quote\":\"a\\\"b\\\\c\\n\\r\\t\\u001b[2J\\u007f\","
           "\"span\":\"abc\",\"nothing\":\"\",\"in\":9223372036854775807,"
           "\"low\":-9223372036854775808,\"ms\":1234.567,\"short\":0.007,"
           "\"zero\":0.000}",
           "JSON");
}

static void
test_say(void)
{
    setup(LEVEL_INFO, false, path);
    log_say(LEVEL_WARN, 0, "start", "listening on %s:%d", "[::1]", 80);
    is_str(line(), "warning start msg=\"listening on [::1]:80\"", "log_say");
    log_say(LEVEL_ERR, UINT64_C(1) << 40, "state", "tunnel");
    is_str(line(), "error conn=1099511627776 state msg=tunnel",
           "with a connection");
    setup(LEVEL_INFO, true, path);
    log_say(LEVEL_WARN, 0, "start", "x");
    is_str(line(),
           "\",\"level\":\"warning\",\"event\":\"start\",\"msg\":\"x\"}",
           "as JSON");
}

static void
test_fail(void)
{
    struct fail f = {.why = WHY_NONE};
    const char *got;
    struct line l;

    setup(LEVEL_INFO, false, path);
    log_begin(&l, LEVEL_INFO, "close", 1);
    log_fail(&l, &f);
    log_send(&l);
    is_str(line(), "info conn=1 close why=none", "nothing failed");

    fail_own(&f, SIDE_CLIENT, WHY_IDLE, "read request head");
    log_begin(&l, LEVEL_INFO, "close", 1);
    log_fail(&l, &f);
    log_send(&l);
    is_str(line(),
           "info conn=1 close why=idle by=client op=\"read request head\"",
           "our own reason");

    f = (struct fail){.why = WHY_NONE};
    fail_sys(&f, SIDE_ORIGIN, "connect", ECONNREFUSED);
    log_begin(&l, LEVEL_INFO, "close", 1);
    log_fail(&l, &f);
    log_send(&l);
    is_str(line(),
           "info conn=1 close why=refused by=origin op=connect "
           "error=\"Connection refused\"",
           "a system call's");

    for (int why = 0; why < WHY_COUNT; why++) {
        f = (struct fail){.why = (enum why)why};
        log_begin(&l, LEVEL_INFO, "close", 0);
        log_fail(&l, &f);
        log_send(&l);
        got = line();
        ok(strncmp(got, "info close why=", 15) == 0 &&
               got[strcspn(got, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")] == '\0',
           "why %d is written in lower case", why);
    }
}

static void
test_levels(void)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    struct line l;

    for (int set = LEVEL_ERR; set <= LEVEL_DEBUG; set++) {
        setup((enum level)set, false, path);
        for (int level = LEVEL_ERR; level <= LEVEL_DEBUG; level++) {
            char want[64];

            ok(log_on((enum level)level) == (level <= set), "at %s, %s is %s",
               names[set], names[level], level <= set ? "on" : "off");
            log_say((enum level)level, 0, "e", "x");
            snprintf(want, sizeof(want), "%s e msg=x", names[level]);
            is_str(line(), level <= set ? want : "(not one line)",
                   "  by log_say");
            log_begin(&l, (enum level)level, "e", 0);
            log_str(&l, "msg", "x");
            log_send(&l);
            is_str(line(), level <= set ? want : "(not one line)",
                   "  and by log_begin");
        }
    }
}

/* ---- what cannot be forged ----------------------------------------------- */

/* A text value back to what it was; the bytes, or SIZE_MAX: not well-formed. */
static size_t
unquote(const char *at, char *out)
{
    size_t n = 0;
    unsigned byte;

    if (*at != '"') {
        n = strlen(at);
        memcpy(out, at, n);
        return n;
    }
    for (at++; *at != '"'; at++) {
        static const char from[] = "nrt\"\\", to[] = "\n\r\t\"\\";
        const char *known;

        if (*at < ' ' || *at > '~')
            return SIZE_MAX;
        if (*at != '\\') {
            out[n++] = *at;
        } else if (*++at == 'x') {
            if (sscanf(at + 1, "%2x", &byte) != 1)
                return SIZE_MAX;
            out[n++] = (char)byte;
            at += 2;
        } else {
            known = *at != '\0' ? strchr(from, *at) : NULL;
            if (known == NULL)
                return SIZE_MAX;
            out[n++] = to[known - from];
        }
    }
    return at[1] == '\0' ? n : SIZE_MAX;
}

static void
test_bytes(void)
{
    char back[64];
    int n_wrong = 0;

    setup(LEVEL_INFO, false, path);
    for (int byte = 0; byte < 256; byte++) {
        char value[4] = {'a', (char)byte, 'b', (char)byte};
        const char *got;

        say_span(value, sizeof(value));
        got = line();
        for (const char *c = got; *c != '\0'; c++)
            n_wrong += *c < ' ' || *c > '~';
        if (strncmp(got, "info e v=", 9) != 0 ||
            unquote(got + 9, back) != sizeof(value) ||
            memcmp(back, value, sizeof(value)) != 0) {
            diag("byte %d: %s", byte, got);
            n_wrong++;
        }
    }
    is_int(n_wrong, 0, "text keeps each byte, and shows it in ASCII");
    setup(LEVEL_INFO, true, path);
    for (int byte = 0; byte < 256; byte++) {
        char value[4] = {'a', (char)byte, 'b', (char)byte};

        say_span(value, sizeof(value));
        n_wrong += !is_json(slurp(path));
        line();
    }
    is_int(n_wrong, 0, "JSON stays JSON with each byte");
}

static void
test_utf8(void)
{
    static const struct {
        const char *value, *json;
    } cases[] = {
        {"caf\xc3\xa9", "caf\xc3\xa9"},
        {"\xe2\x82\xac \xf0\x9f\x98\x80", "\xe2\x82\xac \xf0\x9f\x98\x80"},
        {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
        {"\xc2\x85", "\\u0085"},                   /* a C1 control */
        {"\xe2\x80\xae", "\\u202e"},               /* right to left */
        {"\xe2\x80\xa8", "\\u2028"},               /* a line separator */
        {"\xff", "\\ufffd"},                       /* never in UTF-8 */
        {"\xc3", "\\ufffd"},                       /* cut short */
        {"\xc3(", "\\ufffd("},                     /* not followed on */
        {"\xa9", "\\ufffd"},                       /* only followed on */
        {"\xc0\xaf", "\\ufffd\\ufffd"},            /* too long for "/" */
        {"\xe0\x80\xaf", "\\ufffd\\ufffd\\ufffd"}, /* likewise */
        {"\xf0\x80\x80\xaf", "\\ufffd\\ufffd\\ufffd\\ufffd"},
        {"\xed\xa0\x80", "\\ufffd\\ufffd\\ufffd"}, /* half a pair */
        {"\xf4\x90\x80\x80", "\\ufffd\\ufffd\\ufffd\\ufffd"},
    };

    setup(LEVEL_INFO, true, path);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char want[128];

        say_span(cases[i].value, strlen(cases[i].value));
        ok(is_json(slurp(path)), "UTF-8 case %zu is JSON", i);
        snprintf(want, sizeof(want),
                 "\",\"level\":\"info\",\"event\":\"e\",\"v\":\"%s\"}",
                 cases[i].json);
        is_str(line(), want, "  and as it should be");
    }
    setup(LEVEL_INFO, false, path);
    say_span("caf\xc3\xa9", 5);
    is_str(line(), "info e v=\"caf\\xc3\\xa9\"", "text is ASCII");
}

/* ---- what does not fit --------------------------------------------------- */

/* A line with values of these lengths, of characters that grow `fill`. */
static void
long_line(size_t n, size_t len, char fill)
{
    static char value[8192];
    struct line l;
    char key[32];

    memset(value, fill, sizeof(value));
    log_begin(&l, LEVEL_INFO, "e", 1);
    for (size_t i = 0; i < n; i++) {
        snprintf(key, sizeof(key), "k%zu", i);
        log_span(&l, key, (struct span){value, len});
    }
    log_int(&l, "last", 7);
    log_send(&l);
}

/* Is it a whole line, and cut if and only if it says so? */
static bool
fits(const char *text, bool json, size_t n, size_t len)
{
    size_t size = strlen(text);
    bool cut = strstr(text, json ? ",\"cut\":true}\n" : " cut=yes\n") != NULL;
    const char *quote = strrchr(text, '"');

    if (size == 0 || size > PIPE_BUF || strchr(text, '\n') != text + size - 1)
        return false;
    if (json && !is_json(text))
        return false;
    if (!json && quote != NULL && quote[1] != ' ' && quote[1] != '\n')
        return false;
    return cut || (n * len < PIPE_BUF && len <= 1024 &&
                   strstr(text, json ? ",\"last\":7}" : " last=7\n") != NULL);
}

static void
test_long(void)
{
    static const size_t lens[] = {0,    1,    500,  1000, 1018, 1019, 1020,
                                  1021, 1022, 1023, 1024, 1025, 8192};
    static const char fills[] = {'a', ' ', '"', '\n', '\x01', '\xff'};
    int n_wrong = 0;

    for (int json = 0; json < 2; json++) {
        setup(LEVEL_INFO, json, path);
        for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
            for (size_t f = 0; f < sizeof(fills); f++) {
                for (size_t n = 1; n < 12; n++) {
                    long_line(n, lens[i], fills[f]);
                    if (!fits(slurp(path), json, n, lens[i])) {
                        diag("%zu x %zu: %.80s", n, lens[i], slurp(path));
                        n_wrong++;
                    }
                    line();
                }
            }
        }
        for (size_t n = 1; n < 1000; n += 7) {
            long_line(n, 3, 'a');
            n_wrong += !fits(slurp(path), json, n, 9);
            line();
        }
    }
    is_int(n_wrong, 0, "long lines are cut, marked and well-formed");
    setup(LEVEL_INFO, false, path);
    long_line(1, 2000, 'a');
    ok(strstr(slurp(path), "aaa...\" last=7 cut=yes\n") != NULL,
       "one long value leaves room for the rest");
    line();
    long_line(1, 1024, 'a');
    ok(strstr(slurp(path), "cut=yes") == NULL, "1024 bytes are not cut");
    line();
    log_say(LEVEL_INFO, 0, "e", "%04000d", 0);
    ok(strstr(slurp(path), " cut=yes\n") != NULL, "nor is log_say silent");
    line();
}

/* ---- where it goes ------------------------------------------------------- */

/* The descriptor that has the log open; -1: none. */
static int
log_descriptor(void)
{
    char name[64], target[PATH_MAX];

    for (int fd = 3; fd < 64; fd++) {
        ssize_t n;

        snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
        n = readlink(name, target, sizeof(target) - 1);
        if (n > 0) {
            target[n] = '\0';
            if (strcmp(target, path) == 0)
                return fd;
        }
    }
    return -1;
}

static void
test_file(void)
{
    struct stat st;
    mode_t mask = umask(0);
    int fd;

    remove(path);
    setup(LEVEL_INFO, false, path);
    umask(mask);
    fd = log_descriptor();
    ok(fd > 2, "the file is open, and is no standard descriptor");
    ok(fstat(fd, &st) == 0 && (st.st_mode & 07777) == 0640, "mode 0640");
    ok((fcntl(fd, F_GETFL) & O_APPEND) != 0, "lines are appended");
    ok((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0, "nobody inherits it");

    log_say(LEVEL_INFO, 0, "one", "x");
    ok(rename(path, moved) == 0, "the file is moved away");
    log_say(LEVEL_INFO, 0, "two", "x");
    log_reopen();
    is_int(log_descriptor(), fd, "opened again under the same number");
    ok((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0, "nobody inherits that either");
    log_say(LEVEL_INFO, 0, "three", "x");
    is_str(line(), "info three msg=x", "the new file has the new line");
    ok(strstr(slurp(moved), "info one ") != NULL &&
           strstr(slurp(moved), "info two ") != NULL &&
           strstr(slurp(moved), "three") == NULL,
       "the old one has the others");
    remove(moved);
}

static void
test_no_file(void)
{
    struct config conf = {
        .level = LEVEL_DEBUG, .json = true, .log_file = (char *)"no/such/file"};
    char err[256], want[1200], *text;

    setup(LEVEL_INFO, false, path);
    ok(!log_setup(&conf, err, sizeof(err)), "a file that cannot be opened");
    is_str(err,
           "[log] file: cannot open no/such/file: No such file or directory",
           "says which and why");
    log_say(LEVEL_INFO, 0, "e", "x");
    log_say(LEVEL_DEBUG, 0, "e", "y");
    is_str(line(), "info e msg=x", "all stays as it was");

    /* a directory in its place */
    ok(rename(path, moved) == 0 && mkdir(path, 0700) == 0, "a directory");
    log_reopen();
    log_say(LEVEL_INFO, 0, "after", "x");
    text = slurp(moved);
    snprintf(want, sizeof(want),
             "error log msg=\"cannot reopen %s: Is a directory\"\n", path);
    ok(strstr(text, want) != NULL, "the old file tells");
    ok(strstr(text, "after") != NULL, "and goes on");
    rmdir(path);
    remove(moved);
    setup(LEVEL_INFO, false, path);
}

/* Standard error as a pipe, while it is not needed for notes. */
static void
test_stderr(void)
{
    char text[4096];
    int pipes[2], kept = dup(STDERR_FILENO);
    ssize_t n;

    if (kept < 0 || pipe(pipes) != 0 || dup2(pipes[1], STDERR_FILENO) < 0) {
        ok(false, "a pipe");
        return;
    }
    setup(LEVEL_INFO, false, NULL);
    dup2(kept, STDERR_FILENO);
    close(pipes[1]);
    log_say(LEVEL_INFO, 0, "e", "x");
    log_reopen();
    n = read(pipes[0], text, sizeof(text) - 1);
    text[n > 0 ? n : 0] = '\0';
    ok(strstr(text, "info e msg=x\n") != NULL, "standard error has the line");

    /* its reader leaves */
    close(pipes[0]);
    for (int i = 0; i < 5; i++)
        log_say(LEVEL_INFO, 0, "e", "lost");
    setup(LEVEL_INFO, false, path);
    log_say(LEVEL_INFO, 0, "e", "back");
    ok(strstr(slurp(path), "info e msg=back\n") != NULL, "lines are back");
    ok(strstr(slurp(path), "error log msg=\"lines could not be written\" "
                           "lost=5\n") != NULL,
       "and how many were lost");
    line();
    log_say(LEVEL_INFO, 0, "e", "x");
    is_str(line(), "info e msg=x", "which is told once");
    close(kept);
}

static void
test_closed_stderr(void)
{
    struct config conf = {.level = LEVEL_INFO};
    char err[256];
    int kept = dup(STDERR_FILENO);
    bool good;

    close(STDERR_FILENO);
    good = log_setup(&conf, err, sizeof(err));
    dup2(kept, STDERR_FILENO);
    close(kept);
    ok(!good, "standard error may be closed");
    is_str(err, "[log] file: cannot open standard error: Bad file descriptor",
           "which is said");
}

/* A file that may not grow takes half a line. */
static void
test_torn(void)
{
    struct rlimit old, now;
    char *text;

    setup(LEVEL_INFO, false, path);
    getrlimit(RLIMIT_FSIZE, &old);
    now = old;
    now.rlim_cur = 40;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &now);
    log_say(LEVEL_INFO, 0, "e", "torn in the middle");
    log_say(LEVEL_INFO, 0, "e", "not written at all");
    setrlimit(RLIMIT_FSIZE, &old);
    log_say(LEVEL_INFO, 0, "e", "whole");
    text = strchr(slurp(path), '\n');
    if (ok(text != NULL && is_time(text + 1), "a line after half a line")) {
        *strchr(text + 1, '\n') = '\0';
        is_str(text + 26, "info e msg=whole", "  stands on its own");
    }
    ok(strstr(slurp(path), "lost=2\n") != NULL, "  two were lost");
    line();
}

/* Before anybody sets the log up. */
static void
test_first(void)
{
    char text[4096];
    int pipes[2], kept = dup(STDERR_FILENO);
    ssize_t n;

    if (kept < 0 || pipe(pipes) != 0) {
        ok(false, "a pipe");
        return;
    }
    dup2(pipes[1], STDERR_FILENO);
    log_say(LEVEL_DEBUG, 0, "e", "quiet");
    log_say(LEVEL_INFO, 0, "e", "x");
    log_reopen();
    dup2(kept, STDERR_FILENO);
    n = read(pipes[0], text, sizeof(text) - 1);
    text[n > 0 ? n : 0] = '\0';
    ok(is_time(text) && strcmp(text + 24, " info e msg=x\n") == 0,
       "at first, info as text to standard error");
    close(pipes[0]);
    close(pipes[1]);
    close(kept);
}

/* ---- many threads -------------------------------------------------------- */

enum { N_WRITERS = 4, N_LINES = 400, N_REOPENS = 50 };

static void *
writer(void *arg)
{
    char long_text[900];

    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    for (int i = 0; i < N_LINES; i++)
        log_say(LEVEL_INFO, *(const uint64_t *)arg, "e", "%d %s", i,
                long_text + i % 800);
    return NULL;
}

/* Adds the file's whole lines; false: there is a line that is none. */
static bool
count_lines(const char *file, int *n)
{
    char *text = slurp(file), *end;

    for (; (end = strchr(text, '\n')) != NULL; text = end + 1) {
        if (!is_time(text) || end[-1] != '"' || end[-2] != 'x')
            return false;
        ++*n;
    }
    return *text == '\0';
}

static void
test_threads(void)
{
    pthread_t threads[N_WRITERS];
    uint64_t ids[N_WRITERS];
    char old[1200];
    int n = 0;
    bool whole = true;

    setup(LEVEL_INFO, false, path);
    for (int i = 0; i < N_WRITERS; i++) {
        ids[i] = (uint64_t)i + 1;
        pthread_create(&threads[i], NULL, writer, &ids[i]);
    }
    for (int i = 0; i < N_REOPENS; i++) {
        snprintf(old, sizeof(old), "%s.%d", path, i);
        rename(path, old);
        log_reopen();
    }
    for (int i = 0; i < N_WRITERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < N_REOPENS; i++) {
        snprintf(old, sizeof(old), "%s.%d", path, i);
        whole = whole && count_lines(old, &n);
    }
    whole = whole && count_lines(path, &n);
    ok(whole, "lines of several threads do not mix");
    is_int(n, N_WRITERS * N_LINES, "none is lost while the file changes");
}

int
main(void)
{
    const char *dir = dir_make();

    if (setlocale(LC_CTYPE, "C.UTF-8") == NULL)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    snprintf(path, sizeof(path), "%s/log", dir);
    snprintf(moved, sizeof(moved), "%s.old", path);
    test_first();
    test_form();
    test_say();
    test_fail();
    test_levels();
    test_bytes();
    test_utf8();
    test_long();
    test_file();
    test_no_file();
    test_stderr();
    test_closed_stderr();
    test_torn();
    test_threads();
    dir_remove();
    return done_testing();
}
