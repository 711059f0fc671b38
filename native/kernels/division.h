/* How sequences are divided among groups of threads. A group with its own sequences waits for no other group,
 * and keeps their rows in its own caches; but the call takes as long as the group with the most work. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "team.h"

struct division {
  size_t shares;
  int32_t *sequences; /* of all shares, one after another */
  size_t *ends;       /* of each share in `sequences` */
  void *memory;
};

struct share {
  const int32_t *sequences;
  size_t count;
};

/* Divides `count` sequences among as many groups of equal size as the threads allow. The number of groups is
 * reduced, down to one, until each has at least `least` rows and the largest has not much more than the mean.
 * A row costs 1, plus `pair` for each row of its sequence. 0: there is no memory. Free with division_free. */
int divide_sequences(struct division *division, const int32_t *lengths, size_t count, unsigned threads,
                     size_t least, double pair);
void division_free(struct division *division);
struct share share_of(const struct division *division, size_t number);

/* A thread's place among `shares` groups. If torch gives fewer threads than were requested, there are fewer
 * groups, or smaller ones. */
struct group {
  unsigned rank, size;  /* within the group */
  size_t number, count; /* of the group; of groups */
};

struct group group_of(const struct member *member, size_t shares);
