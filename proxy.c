/*
 * proxy.c - the program: command line, start, signals, drain, end.
 *
 * main() reads the settings, opens everything in an order in which what is
 * likely to fail fails first, says where it listens, and then waits for
 * signals for the rest of its life:
 *
 *   TERM, INT  drain: listeners close at once, what is in flight has grace_s.
 *              A second one ends it now.
 *   HUP        read the settings again; a mistake leaves the old ones
 *   USR1       open the log file anew
 *
 * Exit codes: 0 ended by TERM or INT (or had only to print or check), 1 could
 * not start, 2 usage.
 *
 * Owns     struct weir and all that it names.
 * Threads  the main thread alone; it is the one that takes signals.
 * Blocks   while it waits for one.
 */
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "proxy.h"

enum {
    EXIT_FAIL = 1,
    EXIT_USAGE = 2,
    LOOK_MS = 50,   /* while draining: how often to look for a signal */
    WAKE_MS = 1200, /* whom the end wakes has so long: WATCH_MS and some */
    END_MS = 1300,  /* and those who had to be cut as well */
    ERR_MAX = 1024, /* a message about a start that failed */
    PATH_LEN = 4096,
};

struct program {
    struct weir weir;
    const char *file; /* of the settings; NULL: there is none */
    char **sets;      /* --set, and what -q and -v mean */
    size_t n_sets;
    bool check, quiet;
    sigset_t signals;
    char found[PATH_LEN];
};

/* ---- the command line ---------------------------------------------------- */

static void
usage(FILE *to)
{
    fputs(
        "usage: weir [-c FILE] [-t] [-q|-v] [-V] [-h] "
        "[--set section.key=value]...\n"
        "\n"
        "  -c, --config FILE  read the settings from FILE; else from "
        "./proxy.ini,\n"
        "                     ~/.config/weir/proxy.ini or "
        "/etc/weir/proxy.ini\n"
        "      --set S.K=V    [S] K = V, whatever the file says\n"
        "  -t, --check        check the settings and exit\n"
        "  -q, --quiet        print nothing, log errors alone\n"
        "  -v, --verbose      log everything\n"
        "  -V, --version      print the version and exit\n"
        "  -h, --help         print this and exit\n"
        "\n"
        "TERM and INT end weir when what is in flight is done, HUP reads the "
        "settings\n"
        "again, USR1 opens the log file anew.  See weir(8) and weir.ini(5).\n",
        to);
}

/* "section.key=value", as far as one can tell without knowing the keys. */
static bool
is_set(const char *text)
{
    const char *dot = strchr(text, '.'), *equals = strchr(text, '=');

    return dot != NULL && equals != NULL && dot > text && dot + 1 < equals;
}

static void
add_set(struct program *p, const char *set)
{
    p->sets[p->n_sets++] = (char *)set;
}

/* Read the command line.  Returns an exit code, or -1: go on.  p->sets has
 * room for argc. */
static int
options_read(struct program *p, int argc, char **argv)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"set", required_argument, NULL, 's'},
        {"check", no_argument, NULL, 't'},
        {"quiet", no_argument, NULL, 'q'},
        {"verbose", no_argument, NULL, 'v'},
        {"version", no_argument, NULL, 'V'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "c:tqvVh", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            p->file = optarg;
            break;
        case 's':
            if (!is_set(optarg)) {
                fprintf(stderr, "weir: --set %s: not section.key=value\n",
                        optarg);
                return EXIT_USAGE;
            }
            add_set(p, optarg);
            break;
        case 't':
            p->check = true;
            break;
        case 'q':
            p->quiet = true;
            add_set(p, "log.level=error");
            break;
        case 'v':
            add_set(p, "log.level=debug");
            break;
        case 'V':
            puts("weir " WEIR_VERSION);
            return EXIT_SUCCESS;
        case 'h':
            usage(stdout);
            return EXIT_SUCCESS;
        default:
            usage(stderr);
            return EXIT_USAGE;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "weir: what is '%s'?\n", argv[optind]);
        usage(stderr);
        return EXIT_USAGE;
    }
    return -1;
}

/* ---- systemd ------------------------------------------------------------- */

/*
 * Tell the service manager, if there is one, how we are.
 * Source: sd_notify(3), "Notes": a datagram to $NOTIFY_SOCKET, where '@' stands
 * for the NUL of an abstract address.
 */
static void
notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t len = path != NULL ? strlen(path) : 0;
    int fd;

    if (len == 0)
        return;
    if ((path[0] != '/' && path[0] != '@') || len >= sizeof to.sun_path) {
        log_say(LEVEL_WARN, 0, "notify", "NOTIFY_SOCKET is no address");
        return;
    }
    memcpy(to.sun_path, path, len);
    if (path[0] == '@')
        to.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 ||
        sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&to,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
        log_say(LEVEL_WARN, 0, "notify", "%s: %s", path, sys_text(errno));
    if (fd >= 0)
        close(fd);
}

/* ---- what is printed at the start ---------------------------------------- */

static bool
is_loopback(const struct listener_conf *l)
{
    const struct sockaddr_in6 *in6 = (const void *)&l->addr;
    const struct sockaddr_in *in = (const void *)&l->addr;

    if (l->addr.ss_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr);
    return ntohl(in->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

/* Listener i as a client on this machine can reach it: "any" is no address to
 * connect to. */
static void
client_address(const struct weir *w, size_t i, char *out, size_t cap)
{
    char text[ADDR_MAX];

    listeners_address(w->listeners, i, text, sizeof text);
    if (strncmp(text, "0.0.0.0:", 8) == 0)
        snprintf(out, cap, "127.0.0.1:%s", text + 8);
    else if (strncmp(text, "[::]:", 5) == 0)
        snprintf(out, cap, "[::1]:%s", text + 5);
    else
        snprintf(out, cap, "%s", text);
}

/* What a shell wants around a path; "" if it is plain. */
static const char *
quote(const char *path)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "0123456789/._-+,:@%";

    return path[strspn(path, plain)] == '\0' ? "" : "'";
}

static void
banner(const struct weir *w, const struct config *conf)
{
    const char *dir = mitm_dir(w->mitm), *q = quote(dir);
    char at[ADDR_MAX + 16];

    printf("weir " WEIR_VERSION " listens on ");
    for (size_t i = 0; i < listeners_count(w->listeners); i++) {
        listeners_address(w->listeners, i, at, sizeof at);
        printf("%s%s", i > 0 ? ", " : "", at);
    }
    client_address(w, 0, at, sizeof at);
    printf("\n  point a client here:  export http_proxy=http://%s "
           "https_proxy=http://%s\n",
           at, at);
    if (conf->intercept) {
        printf("  trust its CA:         %s/ca.pem\n"
               "                        (for SSL_CERT_FILE and the like: "
               "%s/bundle.pem)\n"
               "  try:\n"
               "    curl --proxy http://%s --cacert %s%s/ca.pem%s "
               "https://example.com/\n",
               dir, dir, at, q, dir, q);
    } else {
        printf("  its CA:               %s/ca.pem\n"
               "                        (not needed: [intercept] enable = no, "
               "TLS passes untouched)\n"
               "  try:\n"
               "    curl --proxy http://%s https://example.com/\n",
               dir, at);
    }
    fflush(stdout);
}

/* Listening for others, but nobody has been named who may come: he that did so
 * expects something else. */
static void
warn_open(const struct weir *w, const struct config *conf, bool quiet)
{
    char at[ADDR_MAX + 16];

    for (size_t i = 0; i < conf->n_listen; i++) {
        if (is_loopback(&conf->listen[i]) || conf->n_users > 0 ||
            !match_empty(conf->allow))
            continue;
        listeners_address(w->listeners, i, at, sizeof at);
        if (!quiet)
            printf("  warning:              others can reach %s, but only "
                   "clients of this machine may\n"
                   "                        use it: set [access] allow or "
                   "[proxy] users\n",
                   at);
        log_say(LEVEL_WARN, 0, "access",
                "%s is not the loopback, and neither [access] allow nor "
                "[proxy] users is set: only clients of this machine are served",
                at);
    }
    fflush(stdout);
}

/* ---- start and end ------------------------------------------------------- */

static void
via_make(struct weir *w, const struct config *conf)
{
    unsigned char r[3];

    if (conf->via[0] != '\0') {
        snprintf(w->via, sizeof w->via, "%s", conf->via);
        return;
    }
    /* Some number of its own is all a pseudonym needs (RFC 9110 section
     * 7.6.3), should there be no entropy yet. */
    if (getrandom(r, sizeof r, GRND_NONBLOCK) != sizeof r) {
        int64_t mix = now_us() ^ (int64_t)getpid() << 16;

        memcpy(r, &mix, sizeof r);
    }
    snprintf(w->via, sizeof w->via, "weir-%02x%02x%02x", r[0], r[1], r[2]);
}

/* A connection has two descriptors, a spliced tunnel six. */
static void
descriptors_raise(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        log_say(LEVEL_WARN, 0, "start", "cannot raise the descriptor limit: %s",
                sys_text(errno));
}

/* Everything, in order.  False, with a message: the caller clears what there
 * is.  The port comes first: that it is taken is the most likely failure, and
 * then nothing has been made on the disk. */
static bool
weir_start(struct weir *w, struct config *conf, char *err, size_t cap)
{
    struct pool_conf pool = {.name = "weir-c",
                             .n_workers = (size_t)conf->workers,
                             .n_queue = (size_t)conf->queue,
                             .stack_bytes = (size_t)conf->stack_kib * 1024,
                             .serve = listeners_serve};

    via_make(w, conf);
    if (listeners_new(w, conf, err, cap) == NULL ||
        (w->mitm = mitm_new(conf, err, cap)) == NULL ||
        (w->upstreams = upstreams_new(conf, err, cap)) == NULL)
        return false;
    if ((w->conns = pool_new(&pool)) == NULL) {
        snprintf(err, cap, "cannot make %d workers: %s", conf->workers,
                 sys_text(errno));
        return false;
    }
    pool.name = "weir-x";
    pool.n_workers = (size_t)conf->exchanges;
    pool.n_queue = (size_t)conf->streams_total; /* all may have to connect */
    pool.serve = serve_job;
    if ((w->exchanges = pool_new(&pool)) == NULL) {
        snprintf(err, cap, "cannot make %d workers: %s", conf->exchanges,
                 sys_text(errno));
        return false;
    }
    return listeners_start(w->listeners, err, cap);
}

/* In reverse.  No connection lives any more. */
static void
weir_clear(struct weir *w)
{
    listeners_free(w->listeners);
    pool_free(w->conns);
    pool_free(w->exchanges);
    dns_stop();
    upstreams_free(w->upstreams);
    mitm_free(w->mitm);
    config_give(atomic_load(&w->config));
}

/* ---- signals ------------------------------------------------------------- */

static void
signals_take(struct program *p)
{
    sigemptyset(&p->signals);
    sigaddset(&p->signals, SIGTERM);
    sigaddset(&p->signals, SIGINT);
    sigaddset(&p->signals, SIGHUP);
    sigaddset(&p->signals, SIGUSR1);
    /* All threads inherit it: signals wait for signal_next(). */
    pthread_sigmask(SIG_BLOCK, &p->signals, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* The next signal, waiting for it. */
static int
signal_next(const struct program *p)
{
    int signal;

    do
        signal = sigwaitinfo(&p->signals, NULL);
    while (signal < 0 && errno == EINTR);
    return signal;
}

/* Has another TERM or INT come? */
static bool
signal_again(const struct program *p)
{
    struct timespec now = {0, 0};
    int signal;

    while ((signal = sigtimedwait(&p->signals, NULL, &now)) > 0)
        if (signal == SIGTERM || signal == SIGINT)
            return true;
    return false;
}

/* ---- HUP ----------------------------------------------------------------- */

static bool
same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static bool
same_listen(const struct config *a, const struct config *b)
{
    if (a->n_listen != b->n_listen)
        return false;
    for (size_t i = 0; i < a->n_listen; i++)
        if (strcmp(a->listen[i].text, b->listen[i].text) != 0)
            return false;
    return true;
}

/* Name the keys that have changed and are looked at only at the start. */
static void
say_restart(const struct config *now, const struct config *next)
{
    const struct {
        const char *key;
        bool same;
    } keys[] = {
        {"proxy.listen", same_listen(now, next)},
        {"proxy.via", strcmp(now->via, next->via) == 0},
        {"proxy.http3", now->http3 == next->http3},
        {"proxy.workers", now->workers == next->workers},
        {"proxy.exchanges", now->exchanges == next->exchanges},
        {"proxy.queue", now->queue == next->queue},
        {"proxy.stack_kib", now->stack_kib == next->stack_kib},
        {"http2.streams_total", now->streams_total == next->streams_total},
        {"intercept.dir", same_text(now->dir, next->dir)},
        {"intercept.leaf_days", now->leaf_days == next->leaf_days},
        {"intercept.leaf_cache", now->leaf_cache == next->leaf_cache},
    };
    char list[256] = "";
    size_t len = 0;

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!keys[i].same)
            len += (size_t)snprintf(list + len, sizeof list - len, "%s%s",
                                    len > 0 ? ", " : "", keys[i].key);
    if (len > 0)
        log_say(LEVEL_WARN, 0, "reload", "changed, but needs a restart: %s",
                list);
}

/* The listeners stay, so what the settings say of them has to: who looks for a
 * loop compares addresses with it. */
static bool
keep_listen(const struct config *now, struct config *next)
{
    struct listener_conf *copy = calloc(now->n_listen, sizeof *copy);

    if (copy == NULL)
        return false;
    memcpy(copy, now->listen, now->n_listen * sizeof *copy);
    free(next->listen);
    next->listen = copy;
    next->n_listen = now->n_listen;
    return true;
}

/* Take the file's settings as they are now.  False, with a message: nothing
 * has changed. */
static bool
reload_try(struct program *p, char *err, size_t cap)
{
    struct config *next = config_read(p->file, p->sets, p->n_sets, err, cap);
    struct config *now = atomic_load(&p->weir.config);
    char ignored[256];

    if (next == NULL)
        return false;
    if (!upstreams_reload(p->weir.upstreams, next, err, cap))
        goto fail;
    if (!log_setup(next, err, cap))
        goto fail;
    say_restart(now, next);
    if (!keep_listen(now, next)) {
        snprintf(err, cap, "%s", sys_text(ENOMEM));
        goto fail;
    }
    listeners_retime(p->weir.listeners, next->idle_s * 1000);
    dns_forget();
    config_give(config_swap(&p->weir, next));
    return true;
fail:
    (void)upstreams_reload(p->weir.upstreams, now, ignored, sizeof ignored);
    config_give(next);
    return false;
}

static void
reload(struct program *p)
{
    char err[ERR_MAX], state[64];

    /* sd_notify(3): systemd tells this reload from others by the time. */
    snprintf(state, sizeof state, "RELOADING=1\nMONOTONIC_USEC=%lld",
             (long long)now_us());
    notify(state);
    if (reload_try(p, err, sizeof err))
        log_say(LEVEL_INFO, 0, "reload", "new settings from %s",
                p->file != NULL ? p->file : "the command line");
    else
        log_say(LEVEL_ERR, 0, "reload", "the settings stay: %s", err);
    notify("READY=1");
}

/* ---- drain --------------------------------------------------------------- */

/* Let what is in flight finish, within grace_s.  True: all did. */
static bool
drain(struct program *p)
{
    struct weir *w = &p->weir;
    int64_t until = now_ms() + atomic_load(&w->config)->grace_s * 1000LL;
    bool idle;

    atomic_store(&w->draining, true);
    notify("STOPPING=1");
    listeners_stop_accepting(w->listeners);
    idle = listeners_wait_idle(w->listeners, 0);
    if (!idle)
        log_say(LEVEL_INFO, 0, "drain",
                "%zu connections have %d s; a second signal ends them now",
                listeners_live(w->listeners), atomic_load(&w->config)->grace_s);
    while (!idle && now_ms() < until && !signal_again(p))
        idle = listeners_wait_idle(w->listeners, LOOK_MS);
    return idle;
}

/* End what has not finished.  False: some do not even notice. */
static bool
end_all(struct program *p)
{
    struct weir *w = &p->weir;

    log_say(LEVEL_WARN, 0, "drain", "%zu connections are cut",
            listeners_live(w->listeners));
    atomic_store(&w->stopping, true);
    listeners_end_all(w->listeners);
    dns_stop();
    if (listeners_wait_idle(w->listeners, WAKE_MS))
        return true;
    listeners_cut_all(w->listeners); /* clients that do not read */
    return listeners_wait_idle(w->listeners, END_MS);
}

/* Serve until a signal ends it. */
static void
serve(struct program *p)
{
    int signal;

    while ((signal = signal_next(p)) != SIGTERM && signal != SIGINT) {
        if (signal == SIGHUP) {
            reload(p);
        } else {
            log_reopen();
            log_say(LEVEL_INFO, 0, "log", "opened anew");
        }
    }
    if (drain(p) || end_all(p))
        return;
    log_say(LEVEL_ERR, 0, "stop", "%zu connections are stuck and left behind",
            listeners_live(p->weir.listeners));
    _exit(EXIT_SUCCESS); /* their threads still use what we would free */
}

/* ---- main ---------------------------------------------------------------- */

/* Start, serve, end.  Returns the exit code. */
static int
run(struct program *p, struct config *conf)
{
    struct weir *w = &p->weir;
    char err[ERR_MAX] = "", at[ADDR_MAX];
    bool good;

    atomic_store(&w->config, conf); /* weir_clear() gives it back */
    signals_take(p);
    good = log_setup(conf, err, sizeof err);
    if (good) {
        descriptors_raise();
        good = weir_start(w, conf, err, sizeof err);
    }
    if (good) {
        if (!p->quiet)
            banner(w, conf);
        warn_open(w, conf, p->quiet);
        listeners_address(w->listeners, 0, at, sizeof at);
        log_say(LEVEL_INFO, 0, "start", "weir " WEIR_VERSION " on %s, %s", at,
                p->file != NULL ? p->file : "default settings");
        notify("READY=1");
        serve(p);
        log_say(LEVEL_INFO, 0, "stop", "all connections are closed");
    } else {
        fprintf(stderr, "weir: %s\n", err);
    }
    weir_clear(w);
    return good ? EXIT_SUCCESS : EXIT_FAIL;
}

int
main(int argc, char **argv)
{
    struct program p = {.n_sets = 0};
    struct config *conf;
    char err[ERR_MAX];
    int code;

    umask(077); /* keys, logs, SSLKEYLOGFILE: for us alone */
    p.sets = calloc((size_t)argc + 1, sizeof *p.sets);
    if (p.sets == NULL) {
        fprintf(stderr, "weir: %s\n", sys_text(ENOMEM));
        return EXIT_FAIL;
    }
    code = options_read(&p, argc, argv);
    if (code >= 0)
        goto out;
    if (p.file == NULL)
        p.file = config_find(p.found, sizeof p.found);
    conf = config_read(p.file, p.sets, p.n_sets, err, sizeof err);
    if (conf == NULL) {
        fprintf(stderr, "%s\n", err);
        code = EXIT_FAIL;
    } else if (p.check) {
        if (!p.quiet)
            printf("%s: nothing wrong\n",
                   p.file != NULL ? p.file : "default settings");
        config_give(conf);
        code = EXIT_SUCCESS;
    } else {
        code = run(&p, conf);
    }
out:
    free(p.sets);
    return code;
}
