#include "team.h"

#include <sched.h>

enum {
  WORTH = 1 << 18, /* multiplications: some 5 microseconds, as long as starting and joining threads takes */
  SPINS = 4000     /* some 50 microseconds; then yield to other threads, perhaps the one waited for */
};

static parallel_for run_parallel;

/* Tells the core that this thread waits, so that the core's other thread runs meanwhile. */
static inline void relax(void)
{
#ifdef __x86_64__
  __asm__ volatile("pause");
#else
  __asm__ volatile("yield");
#endif
}

unsigned team_size(unsigned threads, double multiplications)
{
  const double worth = multiplications / WORTH;
  return worth >= threads ? threads : worth < 1 ? 1 : (unsigned)worth;
}

void team_use(parallel_for function)
{
  run_parallel = function;
}

void team_wait(const struct member *member)
{
  if (member->size == 1)
    return;
  struct barrier *barrier = member->barrier;
  const unsigned passed = atomic_load_explicit(&barrier->passed, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == member->size - 1) {
    atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&barrier->passed, passed + 1, memory_order_release);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&barrier->passed, memory_order_acquire) == passed; spins++)
    if (spins < SPINS)
      relax();
    else
      sched_yield();
}

struct muster {
  void (*body)(void *, const struct member *);
  void *context;
  unsigned wanted;
  atomic_uint members, covered;
  struct barrier barrier;
};

/* Torch may give fewer threads than were requested; some of them then get several numbers. The members are
 * known when all numbers are covered. All threads run at the same time, so waiting for that ends. */
static void enlist(int64_t begin, int64_t end, void *context)
{
  struct muster *muster = context;
  struct member self = {.rank = atomic_fetch_add(&muster->members, 1), .barrier = &muster->barrier};
  atomic_fetch_add(&muster->covered, (unsigned)(end - begin));
  for (int spins = 0; atomic_load(&muster->covered) < muster->wanted; spins++)
    if (spins < SPINS)
      relax();
    else
      sched_yield();
  self.size = atomic_load(&muster->members);
  muster->body(muster->context, &self);
}

void team_run(unsigned threads, void (*body)(void *, const struct member *), void *context)
{
  struct muster muster = {.body = body, .context = context, .wanted = threads};
  if (run_parallel == NULL || threads <= 1 || run_parallel(0, threads, 1, enlist, &muster) != 0) {
    const struct member alone = {.rank = 0, .size = 1};
    body(context, &alone);
  }
}

void team_share(const struct member *member, size_t count, size_t *first, size_t *last)
{
  *first = count * member->rank / member->size;
  *last = count * (member->rank + 1) / member->size;
}

/* The largest number of crews that divides the members and leaves each enough rows. */
static unsigned crews_for(size_t rows, size_t least, unsigned members)
{
  unsigned crews = members;
  while (crews > 1 && (members % crews != 0 || rows < crews * least))
    crews--;
  return crews;
}

struct crew team_crew(const struct member *member, size_t rows, size_t least, struct barrier *barriers)
{
  const unsigned count = crews_for(rows, least, member->size), size = member->size / count;
  const unsigned number = member->rank / size;
  return (struct crew){{member->rank % size, size, barriers + number}, number, count};
}

struct blocks crew_blocks(const struct crew *crew, size_t rows, size_t most, atomic_size_t *next)
{
  const size_t count = (rows + most - 1) / most;
  return (struct blocks){crew, rows, (count + crew->count - 1) / crew->count * crew->count, next, 0};
}

int crew_next(struct blocks *blocks, size_t *first, size_t *last)
{
  const struct crew *crew = blocks->crew;
  const size_t block =
      crew->self.size == 1 ? atomic_fetch_add(blocks->next, 1) : crew->number + crew->count * blocks->turn++;
  if (block >= blocks->count) /* also if there are no rows, and so no blocks */
    return 0;
  *first = blocks->rows * block / blocks->count;
  *last = blocks->rows * (block + 1) / blocks->count;
  return 1;
}
