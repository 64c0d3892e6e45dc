/*
 * t/ca.c - the CA on disk: made, reused, refused, made once by many.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <gnutls/abstract.h>
#include <gnutls/x509.h>

#include "proxy.h"
#include "t/dir.h"
#include "t/tap.h"

enum { DAY = 24 * 60 * 60, NOBODY = 65534 };

static char err[1024];

/* ---- files ----------------------------------------------------------------
 */

/* "root/dir/name"; two may be in use at a time. */
static const char *
path(const char *dir, const char *name)
{
    static char text[2][PATH_MAX];
    static int i;

    i = !i;
    snprintf(text[i], PATH_MAX, "%s/%s%s%s", dir_root, dir,
             *name != '\0' ? "/" : "", name);
    return text[i];
}

static const char *
sub(const char *dir)
{
    return path(dir, "");
}

/* All of a file, with a NUL; the caller frees. */
static char *
slurp(const char *file, size_t *len)
{
    gnutls_datum_t d = {NULL, 0};
    char *text = NULL;

    if (gnutls_load_file(file, &d) == 0 &&
        (text = malloc(d.size + 1)) != NULL) {
        memcpy(text, d.data, d.size);
        text[d.size] = '\0';
        *len = d.size;
    }
    gnutls_free(d.data);
    return text;
}

static bool
spit(const char *file, const void *at, size_t len, mode_t mode)
{
    int fd;
    bool good;

    unlink(file);
    fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    good = write(fd, at, len) == (ssize_t)len && fchmod(fd, mode) == 0;
    return close(fd) == 0 && good;
}

static bool
copy(const char *from, const char *to, mode_t mode)
{
    size_t len;
    char *text = slurp(from, &len);
    bool good = text != NULL && spit(to, text, len, mode);

    free(text);
    return good;
}

static int
mode_of(const char *file)
{
    struct stat st;

    return stat(file, &st) == 0 ? (int)(st.st_mode & 07777) : -1;
}

static ino_t
inode_of(const char *file)
{
    struct stat st;

    return stat(file, &st) == 0 ? st.st_ino : 0;
}

static size_t
count(const char *text, const char *what)
{
    size_t n = 0;

    for (; text != NULL && (text = strstr(text, what)) != NULL; text++)
        n++;
    return n;
}

static bool
same_der(const struct ca *a, const struct ca *b)
{
    return a != NULL && b != NULL && a->der.size == b->der.size &&
           memcmp(a->der.data, b->der.data, a->der.size) == 0;
}

/* No CA comes out of dir, and the reason has `word` in it. */
static void
refused(const char *dir, const char *word, const char *what)
{
    struct ca *ca;

    err[0] = '\0';
    ca = ca_new(sub(dir), err, sizeof err);
    ok(ca == NULL && strstr(err, word) != NULL && strchr(err, '\n') == NULL,
       "%s: refused, \"%s\"", what, word);
    if (ca != NULL || strstr(err, word) == NULL)
        diag("  said: %s", err);
    ca_free(ca);
}

/* ---- the first start, and the second ---------------------------------------
 */

static void
test_contents(gnutls_x509_crt_t crt)
{
    unsigned critical, is_ca, usage, bits;
    int path_len;
    unsigned char id[64], serial[64];
    size_t n = sizeof id, n_serial = sizeof serial;
    char cn[128], dn[256];
    size_t n_cn = sizeof cn, n_dn = sizeof dn;
    gnutls_ecc_curve_t curve;
    gnutls_datum_t x = {NULL, 0}, y = {NULL, 0};
    time_t now = time(NULL);

    is_int(gnutls_x509_crt_get_version(crt), 3, "version 3");
    ok(gnutls_x509_crt_get_pk_algorithm(crt, &bits) == GNUTLS_PK_ECDSA &&
           gnutls_x509_crt_get_pk_ecc_raw(crt, &curve, &x, &y) == 0 &&
           curve == GNUTLS_ECC_CURVE_SECP256R1,
       "its key is P-256");
    gnutls_free(x.data);
    gnutls_free(y.data);
    is_int(gnutls_x509_crt_get_signature_algorithm(crt),
           GNUTLS_SIGN_ECDSA_SHA256, "signed with SHA-256");
    ok(gnutls_x509_crt_get_basic_constraints(crt, &critical, &is_ca,
                                             &path_len) > 0 &&
           critical && is_ca && path_len == 0,
       "a CA, critically so, for leaves alone");
    ok(gnutls_x509_crt_get_key_usage(crt, &usage, &critical) == 0 &&
           usage == (GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN),
       "its key signs certificates and CRLs");
    ok(gnutls_x509_crt_get_subject_key_id(crt, id, &n, &critical) == 0 &&
           n == 20,
       "it has a subject key identifier");
    ok(gnutls_x509_crt_get_serial(crt, serial, &n_serial) == 0 &&
           n_serial == 16 && (serial[0] & 0x80) == 0,
       "its serial number is positive and has 16 bytes");
    ok(llabs(now - 2 * DAY - gnutls_x509_crt_get_activation_time(crt)) < 60,
       "valid since two days ago");
    ok(llabs(now + 3650LL * DAY - gnutls_x509_crt_get_expiration_time(crt)) <
           60,
       "valid for ten years");
    ok(gnutls_x509_crt_get_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, 0, cn,
                                     &n_cn) == 0 &&
           strncmp(cn, "weir CA (", 9) == 0 && n_cn <= 64,
       "its name says whose it is: %s", cn);
    ok(gnutls_x509_crt_get_dn(crt, dn, &n_dn) == 0 &&
           gnutls_x509_crt_check_issuer(crt, crt) == 1,
       "it issued itself: %s", dn);
}

static void
test_first(void)
{
    size_t len, roots_len = 0;
    struct ca *ca;
    char *text, *bundle, *roots;
    mode_t before = umask(0);

    ca = ca_new(sub("first"), err, sizeof err);
    umask(before);
    ok(ca != NULL, "the first start makes a CA");
    if (ca == NULL) {
        diag("  said: %s", err);
        return;
    }
    is_str(ca->dir, sub("first"), "it knows where it lives");
    is_int(mode_of(sub("first")), 0700, "its directory is private");
    is_int(mode_of(path("first", "ca-key.pem")), 0600, "so is the key");
    is_int(mode_of(path("first", "ca.pem")), 0644, "the certificate is not");
    test_contents(ca->crt);

    text = slurp(path("first", "ca.pem"), &len);
    ok(text != NULL && len == ca->pem.size &&
           memcmp(text, ca->pem.data, len) == 0,
       "ca.pem is what we hand out");
    free(text);
    text = slurp(path("first", "ca.cer"), &len);
    ok(text != NULL && len == ca->der.size &&
           memcmp(text, ca->der.data, len) == 0,
       "ca.cer is the same as DER");
    free(text);

    bundle = slurp(path("first", "bundle.pem"), &len);
    roots = slurp("/etc/ssl/certs/ca-certificates.crt", &roots_len);
    text = strndup((char *)ca->pem.data, ca->pem.size);
    ok(bundle != NULL && text != NULL && strstr(bundle, text) != NULL,
       "bundle.pem has our CA");
    is_int(count(bundle, "-----BEGIN CERTIFICATE-----"),
           count(roots, "-----BEGIN CERTIFICATE-----") + 1,
           "and every root of the system");
    free(text);
    free(roots);
    free(bundle);
    ca_free(ca);
}

static void
test_second(void)
{
    static const char *const names[] = {"ca.pem", "ca-key.pem", "ca.cer",
                                        "bundle.pem"};
    enum { N = sizeof names / sizeof *names };
    ino_t inodes[N];
    struct ca *a = ca_new(sub("first"), err, sizeof err), *b;
    size_t len;
    char *text;

    for (int i = 0; i < N; i++)
        inodes[i] = inode_of(path("first", names[i]));
    b = ca_new(sub("first"), err, sizeof err);
    ok(same_der(a, b), "the second start has the same CA");
    for (int i = 0; i < N; i++)
        ok(inodes[i] != 0 && inode_of(path("first", names[i])) == inodes[i],
           "%s was not written again", names[i]);
    ca_free(b);

    ok(spit(path("first", "bundle.pem"), "old\n", 4, 0644) &&
           unlink(path("first", "ca.cer")) == 0,
       "somebody spoils what follows from the CA");
    b = ca_new(sub("first"), err, sizeof err);
    ok(same_der(a, b), "the CA is still the same");
    text = slurp(path("first", "bundle.pem"), &len);
    ok(count(text, "-----BEGIN CERTIFICATE-----") >= 1,
       "bundle.pem was built again");
    free(text);
    is_int(mode_of(path("first", "ca.cer")), 0644, "so was ca.cer");
    ca_free(b);
    ca_free(a);
}

static void
test_where(void)
{
    const char *home = getenv("HOME");
    char *before = home != NULL ? strdup(home) : NULL;
    struct ca *ca;

    setenv("HOME", dir_root, 1);
    ca = ca_new(NULL, err, sizeof err);
    ok(ca != NULL && strcmp(ca->dir, sub(".weir")) == 0 &&
           mode_of(sub(".weir")) == 0700,
       "without a directory it is ~/.weir");
    ca_free(ca);
    unsetenv("HOME");
    ca = ca_new(NULL, err, sizeof err);
    ok(ca == NULL && strstr(err, "[intercept] dir") != NULL,
       "without HOME the error says what to set: %s", err);
    ca_free(ca);
    ca = ca_new(sub("nohome"), err, sizeof err);
    ok(ca != NULL, "with a directory HOME does not matter");
    ca_free(ca);
    if (before != NULL)
        setenv("HOME", before, 1);
    free(before);

    refused("missing/dir", "cannot make", "no parent directory");
    ok(spit(sub("file"), "x", 1, 0600), "a file where a directory should be");
    refused("file", "Not a directory", "a file as directory");
}

/* ---- what must not be used ----------------------------------------------- */

static void
test_key_modes(void)
{
    static const mode_t open_modes[] = {0640, 0604, 0620, 0602, 0644, 0777};
    static const mode_t good_modes[] = {0600, 0400};
    struct ca *ca = ca_new(sub("modes"), err, sizeof err);

    ca_free(ca);
    for (size_t i = 0; i < sizeof open_modes / sizeof *open_modes; i++) {
        char what[64];

        snprintf(what, sizeof what, "key with mode %04o", open_modes[i]);
        chmod(path("modes", "ca-key.pem"), open_modes[i]);
        refused("modes", "chmod 600", what);
    }
    for (size_t i = 0; i < sizeof good_modes / sizeof *good_modes; i++) {
        chmod(path("modes", "ca-key.pem"), good_modes[i]);
        ca = ca_new(sub("modes"), err, sizeof err);
        ok(ca != NULL, "key with mode %04o: used", good_modes[i]);
        ca_free(ca);
    }
}

/* A key that belongs to somebody else: as root we can give ours away, as
 * anybody else we find one of root's. */
static void
test_key_owner(void)
{
    const char *key;

    ca_free(ca_new(sub("owner"), err, sizeof err));
    key = path("owner", "ca-key.pem");
    if (geteuid() == 0)
        ok(chown(key, NOBODY, NOBODY) == 0, "the key is given away");
    else
        ok(unlink(key) == 0 && symlink("/etc/hostname", key) == 0,
           "the key is one of root's");
    refused("owner", "belongs to user", "key of another user");
}

static void
test_pairs(void)
{
    struct ca *ca = ca_new(sub("pair-a"), err, sizeof err), *again;

    ca_free(ca_new(sub("pair-b"), err, sizeof err));
    ok(copy(path("pair-b", "ca.pem"), path("pair-a", "ca.pem"), 0644),
       "a certificate from elsewhere");
    refused("pair-a", "do not belong together", "not a pair");
    ok(unlink(path("pair-a", "ca.pem")) == 0, "the certificate is lost");
    again = ca_new(sub("pair-a"), err, sizeof err);
    ok(again != NULL && !same_der(ca, again),
       "a start that was cut off after the key is finished by the next one");
    ca_free(again);
    ca_free(ca);

    ok(unlink(path("pair-a", "ca-key.pem")) == 0, "the key is lost");
    refused("pair-a", "without its key", "no key");
    ok(spit(path("pair-b", "ca-key.pem"), "", 0, 0600), "the key is empty");
    refused("pair-b", "ca-key.pem", "an empty key");
    ok(spit(path("pair-b", "ca-key.pem"), "garbage", 7, 0600),
       "the key is garbage");
    refused("pair-b", "ca-key.pem", "a garbled key");
    ca_free(ca_new(sub("pair-c"), err, sizeof err));
    ok(spit(path("pair-c", "ca.pem"), "garbage", 7, 0644),
       "the certificate is garbage");
    refused("pair-c", "ca.pem", "a garbled certificate");
    ok(unlink(path("pair-c", "ca.pem")) == 0 &&
           mkdir(path("pair-c", "ca.pem"), 0700) == 0,
       "the certificate is a directory");
    refused("pair-c", "ca.pem", "a directory as certificate");
}

/* What a person may bring: dates, key usage and kind of key are his. */
struct brought {
    const char *what;
    gnutls_pk_algorithm_t pk;
    unsigned bits;
    bool ca;
    unsigned usage; /* 0: the extension is missing */
    int from_days, to_days;
    const char *word; /* of the refusal; NULL: used */
};

static bool
bring(const struct brought *b, const char *dir)
{
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t crt;
    gnutls_datum_t key_pem = {NULL, 0}, crt_pem = {NULL, 0};
    time_t now = time(NULL);
    bool good;

    gnutls_x509_privkey_init(&key);
    gnutls_x509_crt_init(&crt);
    good =
        mkdir(sub(dir), 0700) == 0 &&
        gnutls_x509_privkey_generate(key, b->pk, b->bits, 0) == 0 &&
        gnutls_x509_crt_set_version(crt, 3) == 0 &&
        gnutls_x509_crt_set_serial(crt, "\1", 1) == 0 &&
        gnutls_x509_crt_set_dn(crt, "CN=Own CA", NULL) == 0 &&
        gnutls_x509_crt_set_key(crt, key) == 0 &&
        gnutls_x509_crt_set_activation_time(crt, now + (time_t)b->from_days *
                                                           DAY) == 0 &&
        gnutls_x509_crt_set_expiration_time(crt, now + (time_t)b->to_days *
                                                           DAY) == 0 &&
        gnutls_x509_crt_set_ca_status(crt, b->ca) == 0 &&
        (b->usage == 0 || gnutls_x509_crt_set_key_usage(crt, b->usage) == 0) &&
        gnutls_x509_crt_sign2(crt, crt, key, GNUTLS_DIG_SHA256, 0) == 0 &&
        gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &key_pem) == 0 &&
        gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &crt_pem) == 0 &&
        spit(path(dir, "ca-key.pem"), key_pem.data, key_pem.size, 0600) &&
        spit(path(dir, "ca.pem"), crt_pem.data, crt_pem.size, 0644);
    gnutls_free(key_pem.data);
    gnutls_free(crt_pem.data);
    gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(key);
    return good;
}

static void
test_brought(void)
{
    static const unsigned p256 =
        GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1);
    static const struct brought all[] = {
        {"an EC CA", GNUTLS_PK_ECDSA, p256, true, GNUTLS_KEY_KEY_CERT_SIGN, -1,
         9, NULL},
        {"an RSA CA without key usage", GNUTLS_PK_RSA, 2048, true, 0, -1, 9,
         NULL},
        {"an expired CA", GNUTLS_PK_ECDSA, p256, true, 0, -9, -1, "expired on"},
        {"a CA of tomorrow", GNUTLS_PK_ECDSA, p256, true, 0, 1, 9,
         "not valid before"},
        {"a server's certificate", GNUTLS_PK_ECDSA, p256, false, 0, -1, 9,
         "not a certificate of a CA"},
        {"a CA that must not sign", GNUTLS_PK_ECDSA, p256, true,
         GNUTLS_KEY_CRL_SIGN, -1, 9, "not a certificate of a CA"},
    };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char dir[32];

        snprintf(dir, sizeof dir, "brought-%zu", i);
        ok(bring(&all[i], dir), "%s is brought", all[i].what);
        if (all[i].word != NULL) {
            refused(dir, all[i].word, all[i].what);
        } else {
            struct ca *ca = ca_new(sub(dir), err, sizeof err);

            ok(ca != NULL, "%s: used", all[i].what);
            ca_free(ca);
        }
    }
}

/* ---- read-only, interrupted, at once ------------------------------------- */

/* In a process of its own, as a user whom modes bind: the CA's hash, or
 * nothing. */
static pid_t
child_start(const char *dir, uid_t uid, int out)
{
    pid_t pid = fork();
    char id[20] = "";
    size_t n = sizeof id;
    struct ca *ca;

    if (pid != 0)
        return pid;
    if (uid != geteuid() &&
        (setgroups(0, NULL) != 0 || setgid(uid) != 0 || setuid(uid) != 0))
        _exit(3);
    ca = ca_new(dir, err, sizeof err);
    if (ca == NULL) {
        fprintf(stderr, "# child: %s\n", err);
        _exit(1);
    }
    if (gnutls_x509_crt_get_fingerprint(ca->crt, GNUTLS_DIG_SHA1, id, &n) !=
            0 ||
        write(out, id, sizeof id) != (ssize_t)sizeof id)
        _exit(2);
    _exit(0);
}

static int
child_end(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
test_read_only(void)
{
    static const char *const names[] = {"ca.pem", "ca-key.pem", "ca.cer",
                                        "bundle.pem", "lock"};
    uid_t uid = geteuid() == 0 ? NOBODY : geteuid();
    int fds[2];

    ca_free(ca_new(sub("ro"), err, sizeof err));
    ok(unlink(path("ro", "ca.cer")) == 0 && unlink(path("ro", "lock")) == 0 &&
           spit(path("ro", "bundle.pem"), "old\n", 4, 0644),
       "a directory in which some files are missing or old");
    chmod(dir_root, 0755); /* for the child, who may be somebody else */
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (chown(path("ro", names[i]), uid, (gid_t)-1) != 0 && errno != ENOENT)
            diag("chown %s: %s", names[i], strerror(errno));
    ok(chown(sub("ro"), uid, (gid_t)-1) == 0 && chmod(sub("ro"), 0500) == 0,
       "it may only be read");
    ok(pipe2(fds, O_CLOEXEC) == 0, "a pipe");
    is_int(child_end(child_start(sub("ro"), uid, fds[1])), 0,
           "its CA can be used all the same");
    ok(access(path("ro", "ca.cer"), F_OK) != 0, "nothing was written");

    ok(chmod(sub("ro"), 0700) == 0 && unlink(path("ro", "ca.pem")) == 0 &&
           chmod(sub("ro"), 0500) == 0,
       "its certificate is lost");
    is_int(child_end(child_start(sub("ro"), uid, fds[1])), 1,
           "where none can be made, that is an error");
    chmod(sub("ro"), 0700); /* or dir_remove() cannot */
    close(fds[0]);
    close(fds[1]);
}

static void
test_interrupted(void)
{
    struct ca *ca;

    ok(mkdir(sub("cut"), 0700) == 0 &&
           spit(path("cut", "ca-key.pem.new"), "half a k", 8, 0600) &&
           spit(path("cut", "ca.pem.new"), "half", 4, 0644),
       "a start was cut off while it wrote");
    ca = ca_new(sub("cut"), err, sizeof err);
    ok(ca != NULL, "the next one is not bothered");
    ok(access(path("cut", "ca-key.pem.new"), F_OK) != 0 &&
           access(path("cut", "ca.pem.new"), F_OK) != 0,
       "and leaves nothing half done");
    ca_free(ca);
}

static void
test_at_once(void)
{
    enum { N = 8, ROUNDS = 4 };

    for (int round = 0; round < ROUNDS; round++) {
        char dir[32], ids[N][20];
        pid_t pids[N];
        int fds[2], n_good = 0, n_same = 0;

        snprintf(dir, sizeof dir, "race-%d", round);
        if (!ok(pipe2(fds, O_CLOEXEC) == 0, "a pipe"))
            return;
        for (int i = 0; i < N; i++)
            pids[i] = child_start(sub(dir), geteuid(), fds[1]);
        for (int i = 0; i < N; i++)
            n_good += child_end(pids[i]) == 0;
        close(fds[1]);
        is_int(n_good, N, "%d processes start at once", N);
        for (int i = 0; i < n_good; i++)
            if (read(fds[0], ids[i], sizeof ids[i]) == (ssize_t)sizeof ids[i])
                n_same += memcmp(ids[i], ids[0], sizeof ids[i]) == 0;
        is_int(n_same, N, "and have one CA");
        close(fds[0]);
    }
}

int
main(void)
{
    dir_make();
    test_first();
    test_second();
    test_where();
    test_key_modes();
    test_key_owner();
    test_pairs();
    test_brought();
    test_read_only();
    test_interrupted();
    test_at_once();
    dir_remove();
    return done_testing();
}
