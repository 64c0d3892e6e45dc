/*
 * lots.c - packets on a connected UDP socket, many by one system call.
 *
 * Packets of one size that are here together leave as a lot, which the kernel
 * cuts apart (GSO); those that came together it hands out as a lot (GRO).
 * Nothing waits for others to come, and nothing for room: what the socket does
 * not take is dropped and counted, and so is what the kernel had to drop.
 *
 * Source   udp(7), socket(7) SO_RXQ_OVFL.
 * Owns     the buffers of what was received.
 * Threads  one that sends, several if the counts differ; one that receives.
 * Blocks   never.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum {
    LOT_BYTES = 60000, /* that the kernel cuts apart; UDP has 16 bits */
    LOTS = 16,         /* received by one system call */
    FRONT = 16,        /* bytes before a packet that are its reader's */
    RECEIVE = 1 << 20, /* bytes: what a peer may send ahead of us */
};

/* Ask for what we can do without: room, lots, and to be told of loss. */
void
lots_set_up(int fd)
{
    int most = RECEIVE, one = 1;

    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &most, sizeof most);
    (void)setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof one);
    (void)setsockopt(fd, IPPROTO_UDP, UDP_GRO, &one, sizeof one);
}

/* Does this mean that no packet will pass any more?  ICMP says that nobody is
 * there, or our kernel that there is no way. */
static bool
is_final(int code)
{
    return code == ECONNREFUSED || code == EHOSTUNREACH ||
           code == ENETUNREACH || code == EPIPE || code == EBADF;
}

/* ---- sending ------------------------------------------------------------- */

/* How many of them, from the front, can be one lot: all of a size but the
 * last, which may be shorter. */
static int
lot_of(const struct iovec *all, int n)
{
    size_t sum = all[0].iov_len;
    int k = 1;

    if (sum == 0)
        return 1;
    while (k < n && k < LOT_MAX && all[k].iov_len <= all[0].iov_len &&
           all[k].iov_len > 0 && sum + all[k].iov_len <= LOT_BYTES) {
        sum += all[k].iov_len;
        if (all[k++].iov_len < all[0].iov_len)
            break;
    }
    return k;
}

/* The first n of them, as packets of their own.  False: errno. */
static bool
send_lot(int fd, struct iovec *all, int n)
{
    union {
        struct cmsghdr align;
        char at[CMSG_SPACE(sizeof(uint16_t))];
    } control = {.at = {0}};
    struct msghdr m = {.msg_iov = all, .msg_iovlen = (size_t)n};
    uint16_t size = (uint16_t)all[0].iov_len;

    if (n > 1) {
        m.msg_control = control.at;
        m.msg_controllen = sizeof control.at;
        *CMSG_FIRSTHDR(&m) =
            (struct cmsghdr){.cmsg_level = IPPROTO_UDP,
                             .cmsg_type = UDP_SEGMENT,
                             .cmsg_len = CMSG_LEN(sizeof size)};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &size, sizeof size);
    }
    return sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

/*
 * lots_send - n packets, each an element.
 *
 * single  set once the kernel has refused a lot: from then on one by one
 * t       counted up
 *
 * Returns 0, or the errno after which no packet will pass.
 */
int
lots_send(int fd, struct iovec *all, int n, atomic_bool *single,
          struct traffic *t)
{
    while (n > 0) {
        int k = atomic_load(single) ? 1 : lot_of(all, n);

        if (send_lot(fd, all, k)) {
            t->packets += (uint64_t)k;
            for (int i = 0; i < k; i++)
                t->bytes += all[i].iov_len;
        } else if (errno == EINTR) {
            continue;
        } else if (is_final(errno)) {
            return errno;
        } else if (k > 1 && errno != EAGAIN && errno != ENOBUFS) {
            atomic_store(single, true); /* not on this device */
            continue;
        } else {
            t->dropped += (uint64_t)k;
        }
        all += k;
        n -= k;
    }
    return 0;
}

/* ---- receiving ----------------------------------------------------------- */

struct lots {
    struct mmsghdr msgs[LOTS];
    struct iovec in[LOTS];
    union {
        struct cmsghdr align;
        char at[CMSG_SPACE(sizeof(uint32_t)) + CMSG_SPACE(sizeof(int))];
    } notes[LOTS];
    uint32_t lost; /* as the kernel counts */
    int n, i;      /* lots that are here; which of them is being handed out */
    size_t at;     /* how far */
    size_t sizes[LOTS];
    char buf[LOTS][FRONT + 65536];
};

/* Memory is taken as it is used.  NULL: none. */
struct lots *
lots_new(void)
{
    return calloc(1, sizeof(struct lots));
}

void
lots_free(struct lots *l)
{
    free(l);
}

/* What the kernel says beside the bytes: how long each packet of a lot is, and
 * how many lots it had no room for since the last time.  Those are taken to
 * have been as this one; most are single packets. */
static void
read_notes(struct lots *l, int i, struct traffic *t)
{
    size_t len = l->msgs[i].msg_len, size = len;
    struct msghdr *m = &l->msgs[i].msg_hdr;
    uint32_t total = l->lost;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL;
         c = CMSG_NXTHDR(m, c)) {
        int n;

        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL)
            memcpy(&total, CMSG_DATA(c), sizeof total);
        if (c->cmsg_level != IPPROTO_UDP || c->cmsg_type != UDP_GRO)
            continue;
        memcpy(&n, CMSG_DATA(c), sizeof n);
        if (n > 0)
            size = (size_t)n;
    }
    l->sizes[i] = size;
    t->dropped +=
        (uint64_t)(total - l->lost) * (len > 0 ? (len + size - 1) / size : 1);
    l->lost = total;
}

/*
 * lots_receive - what has come, for lots_next().
 *
 * t  what the kernel dropped is counted up
 *
 * Returns 0, also if nothing has, or the errno after which nothing will.
 */
int
lots_receive(int fd, struct lots *l, struct traffic *t)
{
    for (int i = 0; i < LOTS; i++) {
        l->in[i] = (struct iovec){l->buf[i] + FRONT, sizeof l->buf[i] - FRONT};
        l->msgs[i].msg_hdr =
            (struct msghdr){.msg_iov = &l->in[i],
                            .msg_iovlen = 1,
                            .msg_control = &l->notes[i],
                            .msg_controllen = sizeof l->notes[i]};
    }
    l->i = 0;
    l->at = 0;
    l->n = recvmmsg(fd, l->msgs, LOTS, MSG_DONTWAIT, NULL);
    if (l->n < 0) {
        l->n = 0;
        return is_final(errno) ? errno : 0;
    }
    for (int i = 0; i < l->n; i++)
        read_notes(l, i, t);
    return 0;
}

/*
 * lots_next - the next packet that has come.
 *
 * at  its content, until the next lots_receive(); the byte before it may be
 *     written, and belonged to the packet before
 *
 * Returns false: that was all.
 */
bool
lots_next(struct lots *l, char **at, size_t *len)
{
    size_t whole, left;

    if (l->i == l->n)
        return false;
    whole = l->msgs[l->i].msg_len;
    left = whole - l->at;
    *at = l->buf[l->i] + FRONT + l->at;
    *len = left < l->sizes[l->i] ? left : l->sizes[l->i];
    l->at += *len;
    if (l->at == whole) { /* also that of an empty packet */
        l->i++;
        l->at = 0;
    }
    return true;
}
