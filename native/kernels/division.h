/* How sequences are divided among groups of threads. A group that has sequences of its own waits for nobody,
 * and keeps their rows in its own caches; but the whole waits for the group that has most. */
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

/* Divides `count` sequences among as many groups of equal size as the threads allow, if each has at least
 * `least` rows and none much more than another; otherwise fewer, down to one. A row costs 1, and `pair` more
 * for each row of its sequence. 0: there is no memory. Given back by division_free. */
int divide_sequences(struct division *division, const int32_t *lengths, size_t count, unsigned threads,
                     size_t least, double pair);
void division_free(struct division *division);
struct share share_of(const struct division *division, size_t number);

/* A thread's place among `shares` groups. Torch may give fewer threads than were asked for: then there are
 * fewer groups, or smaller ones. */
struct group {
  unsigned rank, size;  /* within the group */
  size_t number, count; /* of the group; of groups */
};

struct group group_of(const struct member *member, size_t shares);
