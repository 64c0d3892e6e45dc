/*
 * holder.c - who listens at the address that we want.
 *
 * "Address in use" is the most frequent of all errors at the start, and the
 * kernel knows more than it says: /proc/net/tcp has the socket's inode, and
 * /proc/PID/fd of the process that holds it a link to that.
 *
 * Owns     nothing.
 * Threads  main, before it listens.
 * Blocks   for a moment, reading /proc.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proxy.h"

/* A socket address as /proc/net/tcp writes it: 32 bits at a time, each in the
 * order of this machine. */
static void
proc_address(const struct sockaddr_storage *sa, char out[33])
{
    const struct sockaddr_in6 *in6 = (const void *)sa;
    const struct sockaddr_in *in = (const void *)sa;
    uint32_t words[4];
    size_t n = sa->ss_family == AF_INET6 ? 4 : 1;

    if (n == 4)
        memcpy(words, &in6->sin6_addr, sizeof words);
    else
        memcpy(words, &in->sin_addr, sizeof *words);
    for (size_t i = 0; i < n; i++)
        snprintf(out + 8 * i, 9, "%08X", words[i]);
}

static bool
all_zeros(const char *hex)
{
    return hex[strspn(hex, "0")] == '\0';
}

/* The inode of a socket listed in `file` that keeps us from listening at
 * `own`:port; 0: none. */
static unsigned long
listening_inode(const char *file, const char *own, unsigned port)
{
    FILE *f = fopen(file, "re");
    unsigned long inode, found = 0;
    char line[512], at[33];
    unsigned at_port, state;

    if (f == NULL)
        return 0;
    while (found == 0 && fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line,
                   " %*d: %32[0-9A-F]:%x %*[0-9A-F]:%*x %x"
                   " %*s %*s %*s %*s %*s %lu",
                   at, &at_port, &state, &inode) != 4)
            continue;
        if (state == TCP_LISTEN && at_port == port &&
            (strcmp(at, own) == 0 || all_zeros(at) || all_zeros(own)))
            found = inode;
    }
    fclose(f);
    return found;
}

/* Has the process of /proc/`pid` a descriptor of this socket? */
static bool
process_has(const char *pid, unsigned long inode)
{
    char path[300], want[64], link[64];
    struct dirent *e;
    bool has = false;
    DIR *dir;

    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    snprintf(want, sizeof want, "socket:[%lu]", inode);
    if ((dir = opendir(path)) == NULL)
        return false;
    while (!has && (e = readdir(dir)) != NULL) {
        ssize_t len = readlinkat(dirfd(dir), e->d_name, link, sizeof link - 1);

        link[len > 0 ? len : 0] = '\0';
        has = strcmp(link, want) == 0;
    }
    closedir(dir);
    return has;
}

/* "another process, nginx (pid 123),"; false: we cannot see who. */
static bool
socket_holder(unsigned long inode, char *out, size_t cap)
{
    DIR *dir = opendir("/proc");
    struct dirent *e = NULL;
    char path[300], name[32] = "";
    FILE *f;

    if (dir == NULL)
        return false;
    while ((e = readdir(dir)) != NULL)
        if (isdigit((unsigned char)e->d_name[0]) &&
            process_has(e->d_name, inode))
            break;
    if (e != NULL) {
        snprintf(path, sizeof path, "/proc/%s/comm", e->d_name);
        if ((f = fopen(path, "re")) != NULL) {
            if (fgets(name, sizeof name, f) != NULL)
                name[strcspn(name, "\n")] = '\0';
            fclose(f);
        }
        if (strtol(e->d_name, NULL, 10) == getpid())
            snprintf(out, cap, "the same weir (it is listed twice)");
        else
            snprintf(out, cap, "another process, %s (pid %.12s),", name,
                     e->d_name);
    }
    closedir(dir);
    return e != NULL;
}

/*
 * holder_explain - why we cannot listen, and who does instead where it can be
 * found out.
 *
 * code  errno of the call that failed
 * err   filled in; cap >= 1
 */
void
holder_explain(const struct listener_conf *conf, int code, char *err,
               size_t cap)
{
    const struct sockaddr_in6 *in6 = (const void *)&conf->addr;
    const struct sockaddr_in *in = (const void *)&conf->addr;
    bool six = conf->addr.ss_family == AF_INET6;
    unsigned port = ntohs(six ? in6->sin6_port : in->sin_port);
    char own[33], who[128] = "another process";
    unsigned long inode;

    snprintf(err, cap, "cannot listen on %s: %s%s", conf->text, sys_text(code),
             code == EACCES ? "; ports below 1024 need root or "
                              "CAP_NET_BIND_SERVICE"
                            : "");
    if (code != EADDRINUSE)
        return;
    proc_address(&conf->addr, own);
    inode =
        listening_inode(six ? "/proc/net/tcp6" : "/proc/net/tcp", own, port);
    if (inode == 0 && !six) /* "::" that takes IPv4 as well */
        inode = listening_inode("/proc/net/tcp6", "-", port);
    if (inode != 0)
        socket_holder(inode, who, sizeof who);
    snprintf(err, cap,
             "cannot listen on %s: %s listens there.  Stop it, or choose "
             "another port with --set proxy.listen=ADDRESS:PORT",
             conf->text, who);
}
