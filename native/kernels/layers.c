/* Sequences are divided among groups of threads, each of which takes its own through all layers and waits for
 * no other group. Within a group, threads share every layer's work (layer.c). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "division.h"
#include "linear.h"
#include "scratch.h"
#include "work.h"

enum {
  CHUNK_ROWS = 1024, /* for each thread: what is computed before the next rows are begun */
  QUERIES = 256      /* of one head: the unit of work in attention */
};

/* What one group of threads computes. */
struct lot {
  struct chunk *chunks;
  size_t chunk_count;
  struct taken *taken; /* [chunk][layer] */
  struct memory memory;
  struct barrier barrier;
};

/* Layers of one size, each of which takes what the one before it gives. */
struct stack {
  const struct layer *const *layers;
  size_t count;
  const struct call *call;
  struct lot *lots;
  size_t lot_count;
  struct product head; /* of the tail */
};

static void clear_padding(const struct sequences *sequences, size_t hidden, float *output)
{
  size_t end = 0;
  for (size_t s = 0; s < sequences->count; s++) {
    const size_t first = (size_t)sequences->first[s];
    memset(output + end * hidden, 0, (first - end) * hidden * sizeof *output);
    end = first + (size_t)sequences->length[s];
  }
  memset(output + end * hidden, 0, (sequences->rows - end) * hidden * sizeof *output);
}

/* Layer i's turn on a chunk of a lot. */
static struct work turn(const struct stack *stack, const struct lot *lot, size_t c, size_t i)
{
  const struct call *call = stack->call;
  const int32_t *index = lot->chunks[c].index;
  const struct rows between = {lot->memory.between, NULL};
  return (struct work){.layer = stack->layers[i],
                       .call = call,
                       .cache = call->past.caches == NULL ? NULL : call->past.caches + i,
                       .encoded = call->encoded.caches == NULL ? NULL : call->encoded.caches + i,
                       .rotary = call->rotaries == NULL ? &call->rotary : call->rotaries + i,
                       .chunk = lot->chunks + c,
                       .taken = lot->taken + c * stack->count + i,
                       .input = i == 0 ? (struct rows){(float *)call->input, index} : between,
                       .output = i + 1 == stack->count ? (struct rows){call->output, index} : between,
                       .memory = &lot->memory};
}

/* What follows the layers, when all lots are done. */
static void finish(struct stack *stack, const struct member *member)
{
  const struct call *call = stack->call;
  const size_t hidden = stack->layers[0]->hidden;
  size_t first, last;
  team_wait(member);
  team_share(member, call->sequences.rows, &first, &last);
  for (float *row = call->output + first * hidden; first < last; first++, row += hidden)
    norm_row(&call->tail.norm, row, hidden, row);
  team_wait(member);
  product_share(&stack->head, member);
}

static void run(void *context, const struct member *member)
{
  struct stack *stack = context;
  if (member->rank == member->size - 1)
    clear_padding(&stack->call->sequences, stack->layers[0]->hidden, stack->call->output);
  const struct group group = group_of(member, stack->lot_count);
  for (size_t l = group.number; l < stack->lot_count; l += group.count) {
    struct lot *lot = stack->lots + l;
    const struct member self = {group.rank, group.size, &lot->barrier};
    for (size_t c = 0; c < lot->chunk_count; c++)
      for (size_t i = 0; i < stack->count; i++) {
        const struct work work = turn(stack, lot, c, i);
        if (i > 0)
          team_wait(&self);
        layer_turn(&work, &self);
      }
  }
  if (stack->call->tail.output != NULL)
    finish(stack, member);
}

/* Memory */

/* What the memory of a call depends on. */
struct sizes {
  unsigned threads;     /* of a group */
  size_t most;          /* rows of a chunk, unless one sequence has more and is not divided */
  size_t rows, longest; /* of all sequences */
  size_t qkv, context, parts, scratch;
  int mixed; /* whether a layer has a mixture */
};

static struct sizes sizes_of(const struct stack *stack, unsigned threads)
{
  const struct sequences *sequences = &stack->call->sequences;
  struct sizes sizes = {.threads = threads, .most = (size_t)CHUNK_ROWS * threads};
  for (size_t s = 0; s < sequences->count; s++) {
    sizes.rows += (size_t)sequences->length[s];
    sizes.longest = larger(sizes.longest, (size_t)sequences->length[s]);
  }
  for (size_t i = 0; i < stack->count; i++) { /* their kinds may differ */
    const struct layer *layer = stack->layers[i];
    sizes.qkv = larger(sizes.qkv, layer_qkv_bytes(layer));
    sizes.context = larger(sizes.context, layer_context_words(layer));
    sizes.mixed |= is_mixture(&layer->mixture);
    sizes.parts = larger(sizes.parts, attend_parts(layer, stack->call, threads));
    sizes.scratch = larger(sizes.scratch, layer_scratch(layer, sizes.longest, stack->call));
  }
  sizes.scratch = (sizes.scratch + 15) / 16 * 16;
  return sizes;
}

/* Where a chunk begins: in a share, and in the sequence there. */
struct cursor {
  size_t sequence, row;
};

/* Moves on by the rows that a chunk with `rows` others takes of one sequence. 0 where these go to the next
 * chunk. A sequence longer than a chunk is divided if its pieces find those before them in the cache. */
static int take_piece(const struct call *call, const struct share *share, size_t rows, size_t most,
                      struct cursor *at, size_t *taken)
{
  if (at->sequence == share->count)
    return 0;
  const size_t left = (size_t)call->sequences.length[share->sequences[at->sequence]] - at->row;
  const int divides = call->past.caches != NULL && !call->sequences.padding_sees_all;
  if (rows > 0 && rows + left > most)
    return 0;
  *taken = divides ? smaller(left, most) : left;
  *at =
      *taken < left ? (struct cursor){at->sequence, at->row + *taken} : (struct cursor){at->sequence + 1, 0};
  return 1;
}

/* Some queries of sequence s: `length` from row `before` on. */
static struct unit piece(const struct call *call, size_t s, size_t before, size_t length)
{
  const struct sequences *all = &call->sequences;
  const struct past *past = &call->past;
  const size_t row = (size_t)all->first[s] + before;
  struct unit unit = {.rows = length, .before = before, .seen = length};
  if (past->caches != NULL) {
    unit.batch = past->places == NULL ? row / past->columns : (size_t)past->places[row][0];
    unit.place = past->places == NULL ? past->length + row % past->columns : (size_t)past->places[row][1];
    unit.before = row % past->columns;
    const size_t total = unit.place + length;
    const size_t end = past->seen == NULL ? total : smaller((size_t)past->seen[s][1], total);
    unit.skipped = past->seen == NULL ? 0 : (size_t)past->seen[s][0];
    unit.seen = end > unit.skipped ? end - unit.skipped : 0;
  } else if (all->seen != NULL) {
    unit.skipped = (size_t)all->skipped[s];
    unit.seen = (size_t)all->seen[s];
  }
  return unit;
}

/* The chunk that begins at the cursor, which moves on to the next one; with `index` NULL its rows and units
 * are only counted. */
static struct chunk take_chunk(const struct call *call, const struct share *share, size_t most,
                               struct cursor *at, int32_t *index, struct unit *units)
{
  struct chunk chunk = {.index = index, .units = units};
  size_t length;
  for (struct cursor from = *at; take_piece(call, share, chunk.rows, most, at, &length); from = *at) {
    const size_t s = (size_t)share->sequences[from.sequence];
    struct unit unit = piece(call, s, from.row, length);
    unit.start = chunk.rows;
    for (size_t first = 0; first < length; first += QUERIES, chunk.unit_count++) {
      unit.first = first, unit.last = smaller(first + QUERIES, length);
      if (index != NULL)
        units[chunk.unit_count] = unit;
    }
    for (size_t row = 0; index != NULL && row < length; row++)
      index[chunk.rows + row] = call->sequences.first[s] + (int32_t)(from.row + row);
    chunk.rows += length;
  }
  return chunk;
}

/* Bytes of the largest mixture's memory. */
static size_t most_room(const struct stack *stack, size_t rows)
{
  size_t most = 0;
  for (size_t i = 0; i < stack->count; i++)
    if (is_mixture(&stack->layers[i]->mixture))
      most = larger(most, mixture_room(&stack->layers[i]->mixture, rows));
  return most;
}

/* Places in memory at `base` of everything in a lot, and its content; with base NULL only the size is
 * counted. */
static void lay_out_lot(const struct stack *stack, const struct share *share, const struct sizes *sizes,
                        struct lot *lot, char *base, size_t *used)
{
  size_t chunks = 0, highest = 0, units = 0, rows = 0;
  struct cursor at = {0};
  for (; at.sequence < share->count; chunks++) {
    const struct chunk chunk = take_chunk(stack->call, share, sizes->most, &at, NULL, NULL);
    highest = larger(highest, chunk.rows);
    rows += chunk.rows;
    units += chunk.unit_count;
  }
  struct memory memory = {.thread_words = sizes->scratch};
  struct chunk *chunk = carve(base, used, chunks, sizeof *chunk);
  struct taken *taken = carve(base, used, stack->count * chunks, sizeof *taken);
  int32_t *index = carve(base, used, rows, sizeof *index);
  struct unit *unit = carve(base, used, units, sizeof *unit);
  memory.barriers = carve(base, used, sizes->threads, sizeof *memory.barriers);
  memory.qkv = carve(base, used, highest, sizes->qkv);
  memory.context = carve(base, used, highest * sizes->context, sizeof *memory.context);
  const int between = stack->count > 1 || stack->call->encoded.caches != NULL;
  memory.between = carve(base, used, between ? highest * stack->layers[0]->hidden : 0, sizeof(float));
  memory.normed = carve(base, used, sizes->mixed ? highest * stack->layers[0]->hidden : 0, sizeof(float));
  memory.mixture = carve(base, used, sizes->mixed ? most_room(stack, highest) : 0, 1);
  memory.parts = carve(base, used, sizes->parts, sizeof *memory.parts);
  memory.scratch = carve(base, used, sizes->threads * sizes->scratch, sizeof *memory.scratch);
  if (base == NULL)
    return;
  *lot = (struct lot){.chunks = chunk, .chunk_count = chunks, .taken = taken, .memory = memory};
  memset(taken, 0, stack->count * chunks * sizeof *taken);
  memset(memory.barriers, 0, sizes->threads * sizeof *memory.barriers);
  for (at = (struct cursor){0}; at.sequence < share->count; chunk++) {
    *chunk = take_chunk(stack->call, share, sizes->most, &at, index, unit);
    index += chunk->rows;
    unit += chunk->unit_count;
  }
}

static size_t lay_out(struct stack *stack, const struct division *division, const struct sizes *sizes,
                      char *base)
{
  size_t used = 0;
  stack->lots = carve(base, &used, stack->lot_count, sizeof *stack->lots);
  for (size_t l = 0; l < stack->lot_count; l++) {
    const struct share share = share_of(division, l);
    lay_out_lot(stack, &share, sizes, base == NULL ? NULL : stack->lots + l, base, &used);
  }
  return used;
}

/* The whole */

/* Multiplications for one row, without attention. */
static double multiplications(const struct layer *layer)
{
  const double columns = (double)(layer->query.columns + layer->key.columns + layer->value.columns +
                                  layer->gate.columns + layer->up.columns + layer->cross_query.columns);
  const double outputs = (double)(layer->output.columns + layer->up.columns + layer->cross_output.columns);
  const double mixed = (double)(layer->mixture.router.chosen * 3 * layer->mixture.experts.inner);
  return (columns + outputs + mixed) * (double)layer->hidden;
}

/* Allocates what the tail needs. ENOMEM or 0. */
static int begin_tail(struct stack *stack, unsigned threads)
{
  const struct call *call = stack->call;
  if (call->tail.output == NULL)
    return 0;
  stack->head = (struct product){.matrix = &call->tail.head,
                                 .activation = ACT_NONE,
                                 .input = (const char *)call->output,
                                 .output = call->tail.output,
                                 .to_bf16 = call->tail.bf16,
                                 .rows = call->sequences.rows};
  return product_begin(&stack->head, threads);
}

static int divided_run(struct stack *stack, const struct division *division, unsigned threads)
{
  stack->lot_count = division->shares;
  const struct sizes sizes = sizes_of(stack, threads / (unsigned)division->shares);
  char *memory = scratch_allocate(64, lay_out(stack, division, &sizes, NULL));
  if (memory == NULL || begin_tail(stack, threads) != 0) {
    free(memory);
    return ENOMEM;
  }
  lay_out(stack, division, &sizes, memory);
  team_run(threads, run, stack);
  product_end(&stack->head);
  free(memory);
  return 0;
}

int layers_run(const struct layer *const *layers, size_t count, const struct call *call, unsigned threads)
{
  const struct layer *layer = layers[0];
  const double work = multiplications(layer), pairs = 2 * (double)(layer->heads * layer->head_size);
  threads = team_size(threads, (double)call->sequences.rows * work);
  struct stack stack = {.layers = layers, .count = count, .call = call};
  struct division division;
  if (!divide_sequences(&division, call->sequences.length, call->sequences.count, threads,
                        crew_rows(&layer->up), pairs / work))
    return ENOMEM;
  const int error = divided_run(&stack, &division, threads);
  division_free(&division);
  return error;
}
