/*
 * dir.h - a directory for the files of one test program.
 *
 * Header only.  It is made under TMPDIR (or /tmp) by dir_make() and removed
 * with all that is in it by dir_remove().
 */
#ifndef DIR_H
#define DIR_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir_root[512];

/* Its path; ends the program if there is none to be had. */
__attribute__((unused)) static const char *
dir_make(void)
{
    const char *under = getenv("TMPDIR");

    snprintf(dir_root, sizeof dir_root, "%s/weir-t-XXXXXX",
             under != NULL ? under : "/tmp");
    if (mkdtemp(dir_root) == NULL) {
        perror(dir_root);
        exit(2);
    }
    return dir_root;
}

static int
dir_remove_one(const char *path, const struct stat *st, int flag,
               struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

__attribute__((unused)) static void
dir_remove(void)
{
    if (nftw(dir_root, dir_remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0)
        perror(dir_root);
}

#endif
