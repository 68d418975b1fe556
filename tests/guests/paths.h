/*
 * A call path of its own for each number: its bits choose the functions, of which there are two. Whoever includes this says with
 * `at_path` what is done at the end of a path.
 */
#ifndef PATHS_H
#define PATHS_H

#include "ledger.h"

static void at_path(void);

static KEEP void through_zero(unsigned path, int bits);
static KEEP void through_one(unsigned path, int bits);

static void onwards(unsigned path, int bits)
{
    if (bits == 0)
        at_path();
    else if (path & 1)
        through_one(path >> 1, bits - 1);
    else
        through_zero(path >> 1, bits - 1);
}

/* What each writes after its call is volatile, so that neither the calls nor the two become one. */
static KEEP void through_zero(unsigned path, int bits)
{
    volatile int turn;
    onwards(path, bits);
    turn = 0;
    (void)turn;
}

static KEEP void through_one(unsigned path, int bits)
{
    volatile int turn;
    onwards(path, bits);
    turn = 1;
    (void)turn;
}

#endif
