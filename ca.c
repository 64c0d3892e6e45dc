/*
 * ca.c - our certificate authority: made once, kept on disk, read at start.
 *
 * Its directory (mode 0700, by default ~/.weir) holds
 *     ca.pem      the certificate
 *     ca-key.pem  its private key, mode 0600
 *     ca.cer      the certificate as DER, for phones and Windows
 *     bundle.pem  the system's roots and ours, for SSL_CERT_FILE and its kin
 *     lock        held with flock(2) while the others are read or made
 * A file appears whole or not at all: it is written beside its name, synced
 * and renamed.  The key is written before the certificate, so a start that was
 * interrupted between the two is finished by the next one.
 *
 * Follows  RFC 5280 sections 4.1 and 4.2.1.
 * Owns     struct ca; no descriptor stays open.
 * Threads  ca_new() before there are any.  A struct ca never changes after
 *          that: every thread may read it.
 * Blocks   on the disk, and for LOCK_MS on another weir that is starting.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/abstract.h>
#include <gnutls/crypto.h>
#include <gnutls/x509.h>

#include "proxy.h"

#define CA_PEM "ca.pem"
#define CA_KEY "ca-key.pem"
#define CA_DER "ca.cer"
#define CA_BUNDLE "bundle.pem"

enum {
    LOCK_MS = 10000,      /* making a CA takes some ms: far beyond that */
    LOCK_RETRY_MS = 10,   /* flock(2) has no limit of its own */
    FILE_MAX = 16 << 20,  /* no bundle of roots comes near */
    CN_MAX = 64,          /* ub-common-name, RFC 5280 appendix A.1 */
    DAY_S = 24 * 60 * 60, /* leap seconds do not matter here */
    CA_DAYS = 3650,
    BACK_DAYS = 2, /* clocks of phones and virtual machines are often late */
    SERIAL_LEN = 16,
};

/* Debian, Fedora (two eras), openSUSE, Alpine. */
static const char *const root_files[] = {
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
};

struct home { /* the directory, while we work in it */
    const char *dir;
    int fd, lock; /* -1: not open, not locked */
    char *err;    /* why we cannot go on, for a person */
    size_t cap;
};

/* Says why; false, so that a caller can say and return in one line. */
__attribute__((format(printf, 2, 3))) static bool
refuse(struct home *h, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(h->err, h->cap, fmt, ap);
    va_end(ap);
    return false;
}

static bool
refuse_sys(struct home *h, const char *what, const char *name, int code)
{
    return refuse(h, "cannot %s %s%s%s: %s", what, h->dir,
                  *name != '\0' ? "/" : "", name, sys_text(code));
}

static bool
refuse_tls(struct home *h, const char *name, int rc)
{
    return refuse(h, "%s/%s: %s", h->dir, name, gnutls_strerror(rc));
}

/* ---- the directory ------------------------------------------------------- */

/* Where the CA lives: dir, or ~/.weir. */
static bool
home_find(struct home *h, const char *dir, char room[PATH_MAX])
{
    const char *home = getenv("HOME");

    h->dir = dir != NULL ? dir : room;
    if (dir != NULL)
        return true;
    if (home == NULL || *home != '/')
        return refuse(h, "HOME is not set: say with [intercept] dir = "
                         "/some/directory where the CA is kept");
    if (snprintf(room, PATH_MAX, "%s/.weir", home) >= PATH_MAX)
        return refuse(h, "HOME is too long for a path");
    return true;
}

static bool
home_open(struct home *h)
{
    struct stat st;
    int made = mkdir(h->dir, 0700) == 0 || errno == EEXIST ? 0 : errno;

    h->fd = open(h->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (h->fd < 0)
        return refuse_sys(h, made != 0 ? "make" : "open", "",
                          made != 0 ? made : errno);
    if (fstat(h->fd, &st) != 0)
        return refuse_sys(h, "look at", "", errno);
    /* Who may write here may put a root of his own into bundle.pem. */
    if ((st.st_mode & 022) != 0)
        log_say(LEVEL_WARN, 0, "ca", "%s can be written by others (mode %04o)",
                h->dir, st.st_mode & 07777);
    return true;
}

/* One at a time: two weirs that start at once must end with one CA. */
static bool
home_lock(struct home *h)
{
    static const struct timespec nap = {.tv_nsec = LOCK_RETRY_MS * 1000000L};
    int64_t until = now_ms() + LOCK_MS;

    h->lock =
        openat(h->fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (h->lock < 0 && (errno == EROFS || errno == EACCES || errno == EPERM))
        return true; /* then nobody makes anything there: there is no race */
    if (h->lock < 0)
        return refuse_sys(h, "open", "lock", errno);
    while (flock(h->lock, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return refuse_sys(h, "lock", "lock", errno);
        if (now_ms() >= until)
            return refuse(h, "another process holds %s/lock", h->dir);
        nanosleep(&nap, NULL);
    }
    return true;
}

static void
home_close(struct home *h)
{
    if (h->lock >= 0)
        close(h->lock); /* which unlocks */
    if (h->fd >= 0)
        close(h->fd);
}

/* ---- files --------------------------------------------------------------- */

/* gnutls_malloc'ed, as what GnuTLS exports: one way to release both. */
static void
datum_free(gnutls_datum_t *d)
{
    if (d->data != NULL)
        gnutls_memset(d->data, 0, d->size); /* it may be a key */
    gnutls_free(d->data);
    *d = (gnutls_datum_t){NULL, 0};
}

/* All of an open file; 0 or an errno. */
static int
read_whole(int fd, const struct stat *st, gnutls_datum_t *out)
{
    size_t size = (size_t)st->st_size, have = 0;

    if (!S_ISREG(st->st_mode))
        return EINVAL;
    if (st->st_size > FILE_MAX)
        return EFBIG;
    if ((out->data = gnutls_malloc(size + 1)) == NULL)
        return ENOMEM;
    out->size = (unsigned)size;
    while (have < size) {
        ssize_t got = read(fd, out->data + have, size - have);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) /* shorter than a moment ago: somebody is writing it */
            return got < 0 ? errno : EBUSY;
        have += (size_t)got;
    }
    return 0;
}

static bool
key_is_private(struct home *h, const struct stat *st)
{
    if (st->st_uid != geteuid())
        return refuse(h, "%s/%s belongs to user %u, and weir runs as user %u",
                      h->dir, CA_KEY, (unsigned)st->st_uid,
                      (unsigned)geteuid());
    if ((st->st_mode & 077) != 0)
        return refuse(h,
                      "%s/%s is open to others (mode %04o).  If nobody read "
                      "it: chmod 600 it; else remove it and %s, and a new CA "
                      "is made",
                      h->dir, CA_KEY, st->st_mode & 07777, CA_PEM);
    return true;
}

/* out stays {NULL, 0} when there is no such file, which is no failure. */
static bool
home_read(struct home *h, const char *name, gnutls_datum_t *out)
{
    struct stat st;
    int fd = openat(h->fd, name, O_RDONLY | O_CLOEXEC), code;
    bool good = true;

    if (fd < 0 && errno == ENOENT)
        return true;
    if (fd < 0)
        return refuse_sys(h, "read", name, errno);
    code = fstat(fd, &st) != 0 ? errno : 0;
    if (code == 0 && strcmp(name, CA_KEY) == 0)
        good = key_is_private(h, &st);
    if (code == 0 && good)
        code = read_whole(fd, &st, out);
    close(fd);
    if (code != 0) {
        datum_free(out);
        return refuse_sys(h, "read", name, code);
    }
    return good;
}

/* 0 or an errno; the bytes are on the disk when it returns. */
static int
write_whole(int fd, const gnutls_datum_t *d)
{
    size_t done = 0;

    while (done < d->size) {
        ssize_t put = write(fd, d->data + done, d->size - done);

        if (put < 0 && errno != EINTR)
            return errno;
        if (put > 0)
            done += (size_t)put;
    }
    return fsync(fd) != 0 ? errno : 0;
}

/* Whole or not at all.  We have the lock, so one name beside the file is
 * enough, and what an interrupted start left of it goes away here. */
static bool
home_write(struct home *h, const char *name, const gnutls_datum_t *d,
           mode_t mode)
{
    char beside[NAME_MAX + 1];
    int fd, code = 0;

    snprintf(beside, sizeof beside, "%s.new", name);
    unlinkat(h->fd, beside, 0);
    fd = openat(h->fd, beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return refuse_sys(h, "write", beside, errno);
    if (fchmod(fd, mode) != 0) /* the umask has no say */
        code = errno;
    if (code == 0)
        code = write_whole(fd, d);
    if (close(fd) != 0 && code == 0)
        code = errno;
    if (code == 0 && renameat(h->fd, beside, h->fd, name) != 0)
        code = errno;
    if (code == 0 && fsync(h->fd) != 0)
        code = errno;
    if (code != 0) {
        unlinkat(h->fd, beside, 0);
        return refuse_sys(h, "write", name, code);
    }
    return true;
}

/* Files that follow from ca.pem.  Without them we can still work, so a
 * directory that may only be read is no reason to stop. */
static void
home_publish(struct home *h, const char *name, const gnutls_datum_t *d)
{
    char why[512] = "";
    struct home quiet = *h;
    gnutls_datum_t old = {NULL, 0};
    bool good;

    quiet.err = why;
    quiet.cap = sizeof why;
    good = home_read(&quiet, name, &old);
    if (!good || old.data == NULL || old.size != d->size ||
        memcmp(old.data, d->data, d->size) != 0)
        good = home_write(&quiet, name, d, 0644);
    if (!good)
        log_say(LEVEL_WARN, 0, "ca", "%s", why);
    datum_free(&old);
}

/* ---- making -------------------------------------------------------------- */

/*
 * ca_crt_begin - what every certificate of ours has: version 3, a random
 * serial number, a key, dates.
 *
 * public  of the key that is certified
 * until   not valid after, seconds since 1970
 *
 * Returns 0 or a GnuTLS code.  Thread: any.
 * Source: RFC 5280 section 4.1.2.2 (serial: positive, at most 20 octets).
 */
int
ca_crt_begin(gnutls_x509_crt_t crt, gnutls_pubkey_t public, time_t until)
{
    unsigned char serial[SERIAL_LEN];
    int rc = gnutls_rnd(GNUTLS_RND_NONCE, serial, sizeof serial);

    serial[0] = (serial[0] & 0x7f) | 0x40; /* positive, and never shorter */
    if (rc < 0 || (rc = gnutls_x509_crt_set_version(crt, 3)) < 0 ||
        (rc = gnutls_x509_crt_set_serial(crt, serial, sizeof serial)) < 0 ||
        (rc = gnutls_x509_crt_set_pubkey(crt, public)) < 0 ||
        (rc = gnutls_x509_crt_set_activation_time(
             crt, time(NULL) - BACK_DAYS * DAY_S)) < 0)
        return rc;
    return gnutls_x509_crt_set_expiration_time(crt, until);
}

/* "weir CA (laptop 2024-05-01)": people tell several apart in a trust store
 * by this alone. */
static void
ca_name(char cn[CN_MAX + 1])
{
    char host[41] = "", date[sizeof "2024-05-01"] = "";
    time_t now = time(NULL);
    struct tm tm;

    /* A longer one comes cut, and an error with it: glibc's gethostname(3). */
    if (gethostname(host, sizeof host - 1) != 0 && host[0] == '\0')
        strcpy(host, "localhost");
    for (char *c = host; *c != '\0'; c++)
        if (*c <= ' ' || *c > '~')
            *c = '-';
    strftime(date, sizeof date, "%Y-%m-%d", gmtime_r(&now, &tm));
    snprintf(cn, CN_MAX + 1, "weir CA (%s %s)", host, date);
}

/* Name and extensions; 0 or a GnuTLS code. */
static int
ca_crt_describe(gnutls_x509_crt_t crt)
{
    char cn[CN_MAX + 1];
    unsigned char id[64];
    size_t n = sizeof id;
    int rc;

    ca_name(cn);
    if ((rc = gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0,
                                            cn, (unsigned)strlen(cn))) < 0 ||
        (rc = gnutls_x509_crt_set_basic_constraints(crt, 1, 0)) < 0 ||
        (rc = gnutls_x509_crt_set_key_usage(
             crt, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN)) < 0 ||
        (rc = gnutls_x509_crt_get_key_id(crt, 0, id, &n)) < 0)
        return rc;
    return gnutls_x509_crt_set_subject_key_id(crt, id, n);
}

/* A new key, written as ca-key.pem and given back as PEM. */
static bool
key_make(struct home *h, gnutls_datum_t *pem)
{
    gnutls_x509_privkey_t key = NULL;
    int rc = gnutls_x509_privkey_init(&key);

    if (rc == 0)
        rc = gnutls_x509_privkey_generate(
            key, GNUTLS_PK_ECDSA,
            GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0);
    if (rc == 0)
        rc = gnutls_x509_privkey_export2_pkcs8(key, GNUTLS_X509_FMT_PEM, NULL,
                                               GNUTLS_PKCS_PLAIN, pem);
    if (key != NULL)
        gnutls_x509_privkey_deinit(key);
    if (rc != 0)
        return refuse_tls(h, CA_KEY, rc);
    return home_write(h, CA_KEY, pem, 0600);
}

/* A certificate for ca->key, written as ca.pem and given back as PEM. */
static bool
crt_make(struct home *h, const struct ca *ca, gnutls_datum_t *pem)
{
    gnutls_x509_crt_t crt = NULL;
    gnutls_pubkey_t public = NULL;
    time_t until = time(NULL) + (time_t)CA_DAYS * DAY_S;
    int rc;

    if ((rc = gnutls_pubkey_init(&public)) < 0 ||
        (rc = gnutls_pubkey_import_privkey(public, ca->key, 0, 0)) < 0 ||
        (rc = gnutls_x509_crt_init(&crt)) < 0 ||
        (rc = ca_crt_begin(crt, public, until)) < 0 ||
        (rc = ca_crt_describe(crt)) < 0 ||
        (rc = gnutls_x509_crt_privkey_sign(crt, crt, ca->key, GNUTLS_DIG_SHA256,
                                           0)) < 0)
        goto out;
    rc = gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, pem);
out:
    if (crt != NULL)
        gnutls_x509_crt_deinit(crt);
    if (public != NULL)
        gnutls_pubkey_deinit(public);
    if (rc < 0)
        return refuse_tls(h, CA_PEM, rc);
    if (!home_write(h, CA_PEM, pem, 0644))
        return false;
    log_say(LEVEL_INFO, 0, "ca", "made a new CA in %s", h->dir);
    return true;
}

/* ---- reading ------------------------------------------------------------- */

static bool
key_import(struct home *h, struct ca *ca, const gnutls_datum_t *pem)
{
    int rc = gnutls_privkey_init(&ca->key);

    if (rc == 0)
        rc = gnutls_privkey_import_x509_raw(ca->key, pem, GNUTLS_X509_FMT_PEM,
                                            NULL, 0);
    return rc == 0 || refuse_tls(h, CA_KEY, rc);
}

static bool
crt_import(struct home *h, struct ca *ca, const gnutls_datum_t *pem)
{
    int rc = gnutls_x509_crt_init(&ca->crt);

    if (rc == 0)
        rc = gnutls_x509_crt_import(ca->crt, pem, GNUTLS_X509_FMT_PEM);
    if (rc == 0)
        rc = gnutls_x509_crt_export2(ca->crt, GNUTLS_X509_FMT_PEM, &ca->pem);
    if (rc == 0)
        rc = gnutls_x509_crt_export2(ca->crt, GNUTLS_X509_FMT_DER, &ca->der);
    return rc == 0 || refuse_tls(h, CA_PEM, rc);
}

static bool
ca_check_dates(struct home *h, const struct ca *ca)
{
    time_t from = gnutls_x509_crt_get_activation_time(ca->crt);
    time_t until = gnutls_x509_crt_get_expiration_time(ca->crt);
    time_t now = time(NULL);
    struct tm tm;
    char date[16] = "?";

    if (from <= now && now < until)
        return true;
    if (gmtime_r(now < from ? &from : &until, &tm) != NULL)
        strftime(date, sizeof date, "%Y-%m-%d", &tm);
    if (now < from)
        return refuse(h, "%s/%s is not valid before %s: is the clock right?",
                      h->dir, CA_PEM, date);
    return refuse(h,
                  "%s/%s expired on %s: remove it and %s, and a new CA is "
                  "made",
                  h->dir, CA_PEM, date, CA_KEY);
}

/* Do certificate and key belong together?  0 or a GnuTLS code. */
static int
ca_match(const struct ca *ca, bool *same)
{
    unsigned char a[64], b[64];
    size_t n_a = sizeof a, n_b = sizeof b;
    gnutls_pubkey_t public = NULL;
    int rc;

    if ((rc = gnutls_pubkey_init(&public)) < 0 ||
        (rc = gnutls_pubkey_import_privkey(public, ca->key, 0, 0)) < 0 ||
        (rc = gnutls_pubkey_get_key_id(public, GNUTLS_KEYID_USE_SHA256, a,
                                       &n_a)) < 0)
        goto out;
    rc = gnutls_x509_crt_get_key_id(ca->crt, GNUTLS_KEYID_USE_SHA256, b, &n_b);
    *same = rc == 0 && n_a == n_b && memcmp(a, b, n_a) == 0;
out:
    if (public != NULL)
        gnutls_pubkey_deinit(public);
    return rc;
}

/* What people put there themselves may be anything. */
static bool
ca_check(struct home *h, const struct ca *ca)
{
    unsigned usage, critical;
    bool same = false;
    int rc = ca_match(ca, &same);

    if (rc < 0)
        return refuse_tls(h, CA_KEY, rc);
    if (!same)
        return refuse(h, "%s: %s and %s do not belong together", h->dir, CA_PEM,
                      CA_KEY);
    rc = gnutls_x509_crt_get_key_usage(ca->crt, &usage, &critical);
    if (gnutls_x509_crt_get_ca_status(ca->crt, &critical) <= 0 ||
        (rc == 0 && (usage & GNUTLS_KEY_KEY_CERT_SIGN) == 0))
        return refuse(h, "%s/%s is not a certificate of a CA", h->dir, CA_PEM);
    return ca_check_dates(h, ca);
}

/* Read what is there, make what is not. */
static bool
ca_obtain(struct home *h, struct ca *ca)
{
    gnutls_datum_t key = {NULL, 0}, crt = {NULL, 0};
    bool good = false;

    if (!home_read(h, CA_KEY, &key) || !home_read(h, CA_PEM, &crt))
        goto out;
    if (key.data == NULL && crt.data != NULL) {
        refuse(h,
               "%s/%s is there without its key %s: bring that back, or "
               "remove %s, and a new CA is made",
               h->dir, CA_PEM, CA_KEY, CA_PEM);
        goto out;
    }
    if (key.data == NULL && !key_make(h, &key))
        goto out;
    if (!key_import(h, ca, &key))
        goto out;
    if (crt.data == NULL && !crt_make(h, ca, &crt))
        goto out;
    good = crt_import(h, ca, &crt) && ca_check(h, ca);
out:
    datum_free(&crt);
    datum_free(&key);
    return good;
}

/* ---- the files that follow from it --------------------------------------- */

/* The system's roots; out stays {NULL, 0} if none were found. */
static void
roots_read(gnutls_datum_t *out)
{
    for (size_t i = 0; i < sizeof root_files / sizeof *root_files; i++) {
        struct stat st;
        int fd = open(root_files[i], O_RDONLY | O_CLOEXEC);
        bool good;

        if (fd < 0)
            continue;
        good = fstat(fd, &st) == 0 && read_whole(fd, &st, out) == 0;
        close(fd);
        if (good && out->size > 0)
            return;
        datum_free(out);
    }
}

static void
publish_bundle(struct home *h, const struct ca *ca)
{
    gnutls_datum_t roots = {NULL, 0}, all = {NULL, 0};

    roots_read(&roots);
    if (roots.data == NULL)
        log_say(LEVEL_WARN, 0, "ca",
                "no system roots found: %s/%s has our CA alone", h->dir,
                CA_BUNDLE);
    all.data = gnutls_malloc(roots.size + 1 + ca->pem.size);
    if (all.data == NULL) {
        log_say(LEVEL_WARN, 0, "ca", "no memory for %s", CA_BUNDLE);
        goto out;
    }
    if (roots.data != NULL) {
        memcpy(all.data, roots.data, roots.size);
        all.size = roots.size;
        if (all.data[all.size - 1] != '\n')
            all.data[all.size++] = '\n';
    }
    memcpy(all.data + all.size, ca->pem.data, ca->pem.size);
    all.size += ca->pem.size;
    home_publish(h, CA_BUNDLE, &all);
out:
    datum_free(&all);
    datum_free(&roots);
}

/* ---- public -------------------------------------------------------------- */

/*
 * ca_new - the CA that lives in dir, made there if there is none.
 *
 * dir  NULL: .weir in $HOME.  Made if missing; its parent is not
 * err  on NULL: one line for a person, with the way out where there is one
 *
 * Returns NULL if it cannot be made or read, or must not be used: key open to
 * others or not ours, expired, no CA, not a pair.  A directory that can only
 * be read is fine once ca.pem and ca-key.pem are in it.
 * Blocks: on the disk, and below LOCK_MS + that on another weir.
 */
struct ca *
ca_new(const char *dir, char *err, size_t cap)
{
    char path[PATH_MAX];
    struct home h = {.fd = -1, .lock = -1, .err = err, .cap = cap};
    struct ca *ca = NULL, *ready = NULL;

    if (!home_find(&h, dir, path) || !home_open(&h) || !home_lock(&h))
        goto out;
    if ((ca = calloc(1, sizeof *ca)) == NULL ||
        (ca->dir = strdup(h.dir)) == NULL) {
        refuse(&h, "%s", sys_text(ENOMEM));
        goto out;
    }
    if (!ca_obtain(&h, ca))
        goto out;
    home_publish(&h, CA_DER, &ca->der);
    publish_bundle(&h, ca);
    ready = ca;
    ca = NULL;
out:
    ca_free(ca);
    home_close(&h);
    return ready;
}

/* Nobody may use it or a leaf of it any more. */
void
ca_free(struct ca *ca)
{
    if (ca == NULL)
        return;
    datum_free(&ca->der);
    datum_free(&ca->pem);
    if (ca->crt != NULL)
        gnutls_x509_crt_deinit(ca->crt);
    if (ca->key != NULL)
        gnutls_privkey_deinit(ca->key);
    free(ca->dir);
    free(ca);
}
