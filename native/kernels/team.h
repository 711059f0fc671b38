/* The threads that compute one call: torch's own, through its C interface, so that torch.set_num_threads
 * applies and there is no second pool of threads. */
#pragma once
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* torch_parallel_for of torch/csrc/stable/c/shim.h */
typedef int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain,
                                void (*body)(int64_t, int64_t, void *), void *context);

/* Without a function (NULL), one thread computes. Call once, before the first computation. */
void team_use(parallel_for function);

struct barrier {
  _Alignas(64) atomic_uint arrived;
  _Alignas(64) atomic_uint passed;
};

/* One thread of a group of `size` that wait for each other. */
struct member {
  unsigned rank, size;
  struct barrier *barrier;
};

/* Returns when all members of the group have called it. */
void team_wait(const struct member *member);

/* How many of `threads` are worth waking for this many multiplications. */
unsigned team_size(unsigned threads, double multiplications);

/* Runs body(context, member) on up to `threads` threads at once and returns when all are done. */
void team_run(unsigned threads, void (*body)(void *context, const struct member *member), void *context);

/* A member's part [*first, *last) of `count` items; the parts differ in size by at most one. */
void team_share(const struct member *member, size_t count, size_t *first, size_t *last);

/* Crews: groups of members of equal size, each of which works on its own blocks of rows. */
struct crew {
  struct member self;     /* within the crew */
  unsigned number, count; /* of this crew; of all crews */
};

/* Each crew has at least `least` rows, unless it is the only one. `barriers`: one for each member. */
struct crew team_crew(const struct member *member, size_t rows, size_t least, struct barrier *barriers);

/* Blocks of at most `most` rows out of `rows`, one after another. */
struct blocks {
  const struct crew *crew;
  size_t rows, count;  /* all rows; blocks, a multiple of the number of crews */
  atomic_size_t *next; /* shared by all crews: a crew of one thread takes the next free block */
  size_t turn;         /* of this crew: several threads must agree on their block without communication */
};

struct blocks crew_blocks(const struct crew *crew, size_t rows, size_t most, atomic_size_t *next);

/* The crew's next block [*first, *last). 0: there is none. */
int crew_next(struct blocks *blocks, size_t *first, size_t *last);
