/*
 * tap.h - the Test Anything Protocol for the unit tests in C.
 *
 * Header only: each test is one program.  Lines go to standard output, notes
 * about failures to standard error; done_testing() prints the plan and is the
 * program's exit status.  ok() may be called by several threads.
 * Source: the TAP specification, version 12.
 */
#ifndef TAP_H
#define TAP_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t tap_lock = PTHREAD_MUTEX_INITIALIZER;
static int tap_run, tap_failed;

__attribute__((format(printf, 1, 2), unused)) static void
diag(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    pthread_mutex_lock(&tap_lock);
    fputs("# ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    pthread_mutex_unlock(&tap_lock);
    va_end(ap);
}

__attribute__((format(printf, 4, 0))) static bool
tap_line(bool good, const char *file, int line, const char *fmt, va_list ap)
{
    pthread_mutex_lock(&tap_lock);
    printf("%s %d - ", good ? "ok" : "not ok", ++tap_run);
    vprintf(fmt, ap);
    putchar('\n');
    fflush(stdout);
    if (!good) {
        tap_failed++;
        fprintf(stderr, "#   failed at %s:%d\n", file, line);
    }
    pthread_mutex_unlock(&tap_lock);
    return good;
}

__attribute__((format(printf, 4, 5), unused)) static bool
tap_ok(bool good, const char *file, int line, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    tap_line(good, file, line, fmt, ap);
    va_end(ap);
    return good;
}

__attribute__((format(printf, 5, 6), unused)) static bool
tap_int(long long got, long long want, const char *file, int line,
        const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (!tap_line(got == want, file, line, fmt, ap))
        diag("  got %lld, want %lld", got, want);
    va_end(ap);
    return got == want;
}

__attribute__((format(printf, 5, 6), unused)) static bool
tap_str(const char *got, const char *want, const char *file, int line,
        const char *fmt, ...)
{
    bool same =
        got != NULL && want != NULL ? strcmp(got, want) == 0 : got == want;
    va_list ap;

    va_start(ap, fmt);
    if (!tap_line(same, file, line, fmt, ap))
        diag("  got '%s', want '%s'", got ? got : "(null)",
             want ? want : "(null)");
    va_end(ap);
    return same;
}

#define ok(good, ...) tap_ok((good), __FILE__, __LINE__, __VA_ARGS__)
#define is_int(got, want, ...)                                       \
    tap_int((long long)(got), (long long)(want), __FILE__, __LINE__, \
            __VA_ARGS__)
#define is_str(got, want, ...) \
    tap_str((got), (want), __FILE__, __LINE__, __VA_ARGS__)

/* Is the part in the text? */
__attribute__((unused)) static bool
has(const char *text, const char *part)
{
    if (text != NULL && strstr(text, part) != NULL)
        return true;
    diag("no '%s' in '%s'", part, text != NULL ? text : "(nothing)");
    return false;
}

__attribute__((unused)) static int
done_testing(void)
{
    printf("1..%d\n", tap_run);
    if (tap_failed > 0)
        diag("%d of %d failed", tap_failed, tap_run);
    return tap_failed > 0 || tap_run == 0;
}

#endif
