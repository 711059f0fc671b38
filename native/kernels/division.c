#include "division.h"

#include <stdlib.h>
#include <string.h>

#include "scratch.h"

/* The largest share may cost this many times the mean. Without groups, all threads wait for each other three
 * times in each layer, which costs about as much. */
static const double SLACK = 1.05;

struct item {
  double cost;
  int32_t sequence;
};

static int by_cost(const void *a, const void *b)
{
  const struct item *left = a, *right = b;
  if (left->cost != right->cost)
    return left->cost < right->cost ? 1 : -1;
  return left->sequence - right->sequence;
}

/* Assigns the largest items first, each to the share with the lowest cost (Graham 1969): of[i] is item i's
 * share. Returns the cost of the largest share. */
static double assign(const struct item *items, size_t count, size_t shares, double *costs, int32_t *of)
{
  double largest = 0;
  memset(costs, 0, shares * sizeof *costs);
  for (size_t i = 0; i < count; i++) {
    size_t least = 0;
    for (size_t share = 1; share < shares; share++)
      if (costs[share] < costs[least])
        least = share;
    costs[least] += items[i].cost;
    largest = costs[least] > largest ? costs[least] : largest;
    of[i] = (int32_t)least;
  }
  return largest;
}

/* Collects the sequences of each share. */
static void collect(struct division *division, const struct item *items, size_t count, const int32_t *of)
{
  size_t end = 0;
  for (size_t share = 0; share < division->shares; share++) {
    for (size_t i = 0; i < count; i++)
      if (of[i] == (int32_t)share)
        division->sequences[end++] = items[i].sequence;
    division->ends[share] = end;
  }
}

static size_t shares_for(const struct item *items, size_t count, unsigned threads, size_t most, double *costs,
                         int32_t *of)
{
  double total = 0;
  for (size_t i = 0; i < count; i++)
    total += items[i].cost;
  for (unsigned size = 1; size < threads; size++) {
    const size_t shares = threads / size;
    if (threads % size == 0 && shares <= most &&
        assign(items, count, shares, costs, of) * (double)shares <= SLACK * total)
      return shares;
  }
  memset(of, 0, count * sizeof *of);
  return 1;
}

int divide_sequences(struct division *division, const int32_t *lengths, size_t count, unsigned threads,
                     size_t least, double pair)
{
  const size_t item_bytes = count * sizeof(struct item), costs_bytes = threads * sizeof(double);
  const size_t ends_bytes = threads * sizeof(size_t), numbers = count * sizeof(int32_t);
  char *memory = scratch_allocate(64, (item_bytes + costs_bytes + ends_bytes + 2 * numbers + 63) / 64 * 64);
  if (memory == NULL)
    return 0;
  struct item *items = (struct item *)memory;
  double *costs = (double *)(memory + item_bytes);
  *division = (struct division){.ends = (size_t *)(memory + item_bytes + costs_bytes), .memory = memory};
  division->sequences = (int32_t *)(memory + item_bytes + costs_bytes + ends_bytes);
  int32_t *of = division->sequences + count;
  size_t rows = 0;
  for (size_t i = 0; i < count; i++) {
    items[i] = (struct item){lengths[i] * (1 + pair * lengths[i]), (int32_t)i};
    rows += (size_t)lengths[i];
  }
  const size_t most = rows / least < count ? rows / least : count;
  if (threads > 1 && most > 1)
    qsort(items, count, sizeof *items, by_cost);
  division->shares = shares_for(items, count, threads, most, costs, of);
  collect(division, items, count, of);
  return 1;
}

void division_free(struct division *division)
{
  free(division->memory);
}

struct share share_of(const struct division *division, size_t number)
{
  const size_t begin = number == 0 ? 0 : division->ends[number - 1];
  return (struct share){division->sequences + begin, division->ends[number] - begin};
}

struct group group_of(const struct member *member, size_t shares)
{
  const size_t count = shares < member->size ? shares : member->size;
  const size_t number = member->rank * count / member->size;
  const size_t first = (number * member->size + count - 1) / count;
  const size_t end = ((number + 1) * member->size + count - 1) / count;
  return (struct group){member->rank - (unsigned)first, (unsigned)(end - first), number, count};
}
