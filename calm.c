/*
 * calm.c - how much useless work a peer may make.
 *
 * A peer of a session can make us work without asking for anything.  Frames of
 * which nobody honest needs many are counted by kind, each kind against a
 * budget of proxy.ini that fills up again in CALM_MS.  Who spends more than
 * that is to be told to calm down; the session's owner does so.
 *
 * Follows  RFC 9113 section 10.5, RFC 9114 section 10.5; CVE-2023-44487 and
 *          CVE-2025-8671 for resets of both kinds, CVE-2019-9511 to 9518 for
 *          the other floods.
 * Owns     nothing: the budgets are the session's.
 * Threads  the session's owner.
 * Blocks   never.
 */
#include "proxy.h"

enum {
    CALM_MS = 10000,  /* the span that the limits of proxy.ini speak of */
    EARN_BYTES = 512, /* sent: the peer may send a WINDOW_UPDATE more */
};

/* Full budgets, as the settings say.  now: ms. */
void
calm_init(struct calm *c, const struct config *conf, int64_t now)
{
    const int max[CALM_KINDS] = {
        [CALM_RESETS] = conf->resets,         [CALM_SETTINGS] = conf->settings,
        [CALM_PINGS] = conf->pings,           [CALM_EMPTY] = conf->empty_frames,
        [CALM_PRIORITIES] = conf->priorities, [CALM_UPDATES] = conf->updates,
    };

    for (int i = 0; i < CALM_KINDS; i++) {
        int64_t full = (int64_t)max[i] * CALM_MS;

        c->budget[i] = (struct budget){full, full, now};
    }
}

/* One more of a kind; false: that was one too many. */
bool
calm_spend(struct calm *c, enum calm_kind kind, int64_t now)
{
    struct budget *b = &c->budget[kind];

    b->left += (now - b->at) * (b->max / CALM_MS);
    b->at = now;
    if (b->left > b->max)
        b->left = b->max;
    b->left -= CALM_MS;
    return b->left >= 0;
}

/* Content was sent to the peer, who will have to update its windows. */
void
calm_earn(struct calm *c, size_t bytes)
{
    c->budget[CALM_UPDATES].left += (int64_t)(bytes / EARN_BYTES + 1) * CALM_MS;
}
