/* The second phase of a layer: attention, which threads share by heads; of few queries with a long past, by
 * parts of the keys as well. */
#include "attention.h"
#include "decode.h"
#include "scratch.h"
#include "work.h"

enum {
  FEW_QUERIES = 8,  /* of a sequence with a past: each reads the keys as they lie */
  FEWEST_KEYS = 256 /* that are worth a thread of their own */
};

static int has_few_queries(const struct call *call)
{
  return call->past.caches != NULL && call->past.columns <= FEW_QUERIES && !call->sequences.padding_sees_all;
}

/* Into how many parts the keys of each head are divided. */
static size_t parts_of_keys(const struct work *work, unsigned threads)
{
  const struct call *call = work->call;
  const size_t heads = work->chunk->unit_count * work->layer->key_heads;
  const size_t keys = work->crosses ? call->encoded.length : call->past.length + call->past.columns;
  const size_t wanted = heads == 0 ? 1 : (threads + heads - 1) / heads, most = keys / FEWEST_KEYS;
  return larger(smaller(wanted, most), 1);
}

/* Floats of one head's part of the keys. */
static size_t part_floats(const struct layer *layer)
{
  const size_t queries = layer->heads / layer->key_heads;
  return queries * (decode_stride(layer->head_size) + LANES); /* LANES: the highest and the sum */
}

static struct part part_at(const struct layer *layer, float *floats)
{
  const size_t queries = layer->heads / layer->key_heads;
  float *numbers = floats + queries * decode_stride(layer->head_size);
  return (struct part){.highest = numbers, .sum = numbers + queries, .values = floats};
}

/* Keys are divided where there are fewer heads than threads: into less than one part more for each. */
size_t attend_parts(const struct layer *layer, const struct call *call, unsigned threads)
{
  return has_few_queries(call) ? 2 * (size_t)threads * FEW_QUERIES * part_floats(layer) : 0;
}

size_t attend_scratch(const struct layer *layer, size_t longest, const struct call *call)
{
  if (has_few_queries(call))
    return part_floats(layer) + decode_scratch(layer->heads / layer->key_heads, layer->head_size);
  const size_t keys = larger(longest + call->past.length, call->encoded.length),
               words = attention_scratch(layer->attention, keys, layer->head_size);
  if (call->past.number == NUMBER_I8)
    return words + widened_scratch(layer->attention, keys, layer->head_size);
  return words + (is_relative(&call->relative) ? relative_scratch(&call->relative, longest) : 0);
}

static const float *bias_of(const struct call *call, const struct unit *unit, size_t number)
{
  const struct bias *bias = &call->bias;
  return bias->numbers == NULL ? NULL : bias->numbers + number * bias->head + unit->before * bias->query;
}

/* Head `number` over a unit's sequence; keys and values as the layer has just made them. */
static struct head head_of_rows(const struct work *work, const struct unit *unit, size_t number)
{
  const struct layer *layer = work->layer;
  const struct call *call = work->call;
  const int bf16 = layer->attention == KIND_BF16;
  const size_t numbers = layer_qkv_numbers(layer), bytes = number_bytes(bf16);
  const size_t key_head = number * layer->key_heads / layer->heads;
  const char *rows = work->memory->qkv + unit->start * numbers * bytes;
  const char *of_keys = rows + unit->skipped * numbers * bytes;
  return (struct head){
      .kind = layer->attention,
      .number = bf16,
      .query = rows + layer_query_at(layer, number) * bytes,
      .key = of_keys + layer_key_at(layer, key_head) * bytes,
      .value = of_keys + layer_value_at(layer, key_head) * bytes,
      .stride = numbers,
      .key_stride = numbers,
      .length = unit->seen,
      .skipped = unit->skipped,
      .size = layer->head_size,
      .scale = layer->scale,
      .softcap = layer->softcap,
      .bias = bias_of(call, unit, number),
      .bias_head = call->bias.head,
      .bias_stride = call->bias.query,
      .sinks = layer->sinks == NULL ? NULL : layer->sinks + number,
      .window = call->sequences.window,
      .relative = relative_of_head(&call->relative, number, kind_words(layer->attention, layer->head_size))};
}

/* The same with keys and values of the cache. */
static struct head head_of_cache(const struct work *work, const struct unit *unit, size_t number)
{
  const struct past *past = &work->call->past;
  struct head head = head_of_rows(work, unit, number);
  const size_t key_head = number * work->layer->key_heads / work->layer->heads;
  const size_t place = (unit->batch * past->batch + key_head * work->layer->copies * past->head +
                        unit->skipped * past->token) *
                       number_bytes(past->number);
  if (head.bias != NULL)
    head.bias += unit->batch * work->call->bias.batch;
  head.number = past->number;
  head.key = (const char *)work->cache->keys + place;
  head.value = (const char *)work->cache->values + place;
  head.key_stride = past->token;
  head.causal = 1;
  head.past = unit->place;
  return head;
}

/* The same with keys and values of an encoder, of which each query sees the same. */
static struct head head_of_encoder(const struct work *work, const struct unit *unit, size_t number)
{
  const struct past *encoded = &work->call->encoded;
  const int32_t *seen = encoded->seen == NULL ? NULL : encoded->seen[unit->batch];
  const size_t begin = seen == NULL ? 0 : (size_t)seen[0],
               end = seen == NULL ? encoded->length : (size_t)seen[1];
  const size_t place = (unit->batch * encoded->batch + number * encoded->head + begin * encoded->token) *
                       number_bytes(encoded->number);
  struct head head = head_of_rows(work, unit, number);
  head.number = encoded->number;
  head.key = (const char *)work->encoded->keys + place;
  head.value = (const char *)work->encoded->values + place;
  head.key_stride = encoded->token;
  head.length = end - begin;
  head.skipped = 0;
  head.window = SIZE_MAX;
  head.bias = head.sinks = NULL;
  return head;
}

static struct head head_of(const struct work *work, const struct unit *unit, size_t number)
{
  if (work->crosses)
    return head_of_encoder(work, unit, number);
  return work->cache == NULL ? head_of_rows(work, unit, number) : head_of_cache(work, unit, number);
}

static atomic_size_t *taken_heads(const struct work *work)
{
  return work->crosses ? &work->taken->cross_heads : &work->taken->heads;
}

static atomic_size_t *taken_merges(const struct work *work)
{
  return work->crosses ? &work->taken->cross_merges : &work->taken->merges;
}

static char *context_of(const struct work *work, size_t row, size_t number)
{
  const struct layer *layer = work->layer;
  return (char *)(work->memory->context + row * layer_context_words(layer)) +
         number * layer->head_size * number_bytes(layer->attention == KIND_BF16);
}

static void attend_many(const struct work *work, const struct member *member)
{
  const struct layer *layer = work->layer;
  const size_t stride = layer_context_words(layer) << layer->attention;
  size_t task;
  while ((task = atomic_fetch_add(taken_heads(work), 1)) < work->chunk->unit_count * layer->heads) {
    const struct unit *unit = work->chunk->units + task / layer->heads;
    const size_t number = task % layer->heads;
    struct head head = head_of(work, unit, number);
    const size_t end = unit->place + unit->last; /* none of these queries sees keys behind their own */
    if (head.causal)
      head.length = end > unit->skipped ? smaller(head.length, end - unit->skipped) : 0;
    char *out = context_of(work, unit->start + unit->first, number);
    attention_head(&head, unit->first, unit->last, out, stride,
                   work->memory->scratch + member->rank * work->memory->thread_words);
    const size_t rows = work->cache == NULL ? unit->rows : unit->place + unit->rows;
    if (work->call->sequences.padding_sees_all && !work->crosses)
      attention_mean(&head, work->call->sequences.padding_sees_all == 2 ? 0 : rows, unit->first, unit->last,
                     out, stride);
  }
}

/* The heads that share keys and values, as one query's. */
static struct head heads_of_query(const struct work *work, const struct unit *unit, size_t key_head,
                                  size_t query)
{
  const struct layer *layer = work->layer;
  struct head head = head_of(work, unit, key_head * (layer->heads / layer->key_heads));
  head.query = (const char *)head.query + query * head.stride * number_bytes(layer->attention == KIND_BF16);
  if (head.bias != NULL)
    head.bias += query * head.bias_stride;
  return head;
}

/* The keys that a query sees: from the first of its window, or of all, up to its own; of padding, none. */
static void keys_of_query(const struct head *head, size_t query, size_t *first, size_t *last)
{
  const size_t place = head->past + query, end = head->causal ? place + 1 : head->length;
  const size_t begin = place > head->window ? place - head->window : 0;
  *last = end > head->skipped ? smaller(end - head->skipped, head->length) : 0;
  *first = begin > head->skipped ? smaller(begin - head->skipped, *last) : 0;
}

static void attend_few(const struct work *work, const struct member *member)
{
  const struct layer *layer = work->layer;
  const size_t queries = layer->heads / layer->key_heads;
  const size_t parts = parts_of_keys(work, member->size);
  const size_t tasks = work->chunk->unit_count * layer->key_heads, floats = part_floats(layer);
  float *scratch = (float *)(work->memory->scratch + member->rank * work->memory->thread_words);
  size_t task, first, last, begin, end;
  while ((task = atomic_fetch_add(taken_heads(work), 1)) < tasks * parts) {
    const size_t number = task / parts, key_head = number % layer->key_heads;
    const struct unit *unit = work->chunk->units + number / layer->key_heads;
    for (size_t query = unit->first; query < unit->last; query++) {
      const struct head head = heads_of_query(work, unit, key_head, query);
      const struct member share = {.rank = (unsigned)(task % parts), .size = (unsigned)parts};
      float *place = parts == 1 ? scratch
                                : work->memory->parts + (number * FEW_QUERIES + query) * parts * floats +
                                      task % parts * floats;
      const struct part part = part_at(layer, place);
      keys_of_query(&head, query, &first, &last);
      team_share(&share, last - first, &begin, &end);
      decode_keys(&head, queries, first + begin, first + end, &part, scratch + floats);
      if (parts == 1)
        decode_merge(&head, queries, &part, 1, context_of(work, unit->start + query, key_head * queries));
    }
  }
}

/* Where the keys of a head were divided: its parts become one. */
static void merge_parts(const struct work *work, const struct member *member)
{
  const struct layer *layer = work->layer;
  const size_t queries = layer->heads / layer->key_heads;
  const size_t parts = parts_of_keys(work, member->size);
  const size_t tasks = work->chunk->unit_count * layer->key_heads, floats = part_floats(layer);
  struct part each[parts];
  size_t task;
  if (parts == 1)
    return;
  team_wait(member);
  while ((task = atomic_fetch_add(taken_merges(work), 1)) < tasks) {
    const size_t key_head = task % layer->key_heads;
    const struct unit *unit = work->chunk->units + task / layer->key_heads;
    for (size_t query = unit->first; query < unit->last; query++) {
      const struct head head = heads_of_query(work, unit, key_head, query);
      for (size_t p = 0; p < parts; p++)
        each[p] = part_at(layer, work->memory->parts + ((task * FEW_QUERIES + query) * parts + p) * floats);
      decode_merge(&head, queries, each, parts, context_of(work, unit->start + query, key_head * queries));
    }
  }
}

void attend(const struct work *work, const struct member *member)
{
  if (!has_few_queries(work->call)) {
    attend_many(work, member);
    return;
  }
  attend_few(work, member);
  merge_parts(work, member);
}
