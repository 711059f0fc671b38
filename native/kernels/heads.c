/* Queries, keys and values of one row: how their heads lie, and what is done to them before attention. */
#include <string.h>

#include "work.h"

/* How they lie in a row */

size_t layer_qkv_numbers(const struct layer *layer)
{
  return (layer->heads + 2 * layer->key_heads) * layer->head_size;
}

/* Heads of queries in a group, and of keys. */
static size_t group_queries(const struct layer *layer)
{
  return layer->heads / layer->groups;
}

static size_t group_keys(const struct layer *layer)
{
  return layer->key_heads / layer->groups;
}

/* The first number of a head of which a group has `of_group`, behind `before` heads of other kinds. */
static size_t place_in_group(const struct layer *layer, size_t head, size_t of_group, size_t before)
{
  const size_t width = group_queries(layer) + 2 * group_keys(layer);
  return (head / of_group * width + before + head % of_group) * layer->head_size;
}

size_t layer_query_at(const struct layer *layer, size_t head)
{
  return place_in_group(layer, head, group_queries(layer), 0);
}

size_t layer_key_at(const struct layer *layer, size_t head)
{
  const size_t keys = group_keys(layer);
  return place_in_group(layer, head, keys, group_queries(layer) + (layer->values_first ? keys : 0));
}

size_t layer_value_at(const struct layer *layer, size_t head)
{
  const size_t keys = group_keys(layer);
  return place_in_group(layer, head, keys, group_queries(layer) + (layer->values_first ? 0 : keys));
}

size_t layer_qkv_bytes(const struct layer *layer)
{
  return layer_qkv_numbers(layer) * number_bytes(layer->attention == KIND_BF16);
}

/* Norms and rotary positions */

/* The first `size` numbers of a head, of which each is rotated with its neighbour. */
static void rotate_pairs(float *row, const float *cosines, const float *sines, size_t size)
{
  for (size_t i = 0; i < size; i += 2) {
    const float low = row[i], high = row[i + 1];
    row[i] = low * cosines[i] - high * sines[i];
    row[i + 1] = high * cosines[i + 1] + low * sines[i + 1];
  }
}

/* The same with the one half of them away. */
static void rotate_half(float *row, const float *cosines, const float *sines, size_t size)
{
  for (size_t i = 0; i < size / 2; i += LANES) {
    const vec_mask some = lanes((long)(size / 2 - i));
    const size_t j = i + size / 2;
    const vec low = vec_load_some(row + i, some), high = vec_load_some(row + j, some);
    const vec new_low = vec_sub(vec_mul(low, vec_load_some(cosines + i, some)),
                                vec_mul(high, vec_load_some(sines + i, some)));
    const vec new_high = vec_add(vec_mul(high, vec_load_some(cosines + j, some)),
                                 vec_mul(low, vec_load_some(sines + j, some)));
    vec_store_some(row + i, some, new_low);
    vec_store_some(row + j, some, new_high);
  }
}

/* Norm of all heads that lie one after another in a row. */
static void norm_heads(const struct layer *layer, char *heads, size_t count, const struct norm *norm,
                       float *buffer)
{
  const int bf16 = layer->attention == KIND_BF16;
  copy_numbers(heads, bf16, buffer, 0, count * layer->head_size);
  norm_row(norm, buffer, count * layer->head_size, buffer);
  copy_numbers(buffer, 0, heads, bf16, count * layer->head_size);
}

/* Queries, or keys: where each head is in a row, their number, and their norm. */
struct heads {
  size_t (*at)(const struct layer *layer, size_t head);
  size_t count;
  const struct norm *norm;
};

/* Norm and rotary positions of a row's queries or keys. */
static void place_heads(const struct work *work, char *row, const struct heads *heads, const float *cosines,
                        const float *sines, float *buffer)
{
  const struct layer *layer = work->layer;
  const int bf16 = layer->attention == KIND_BF16, has_norm = heads->norm->kind != NORM_NONE;
  const int of_each = has_norm && !layer->wide_norms;
  const size_t size = layer->head_size;
  if (has_norm && layer->wide_norms)
    norm_heads(layer, row + heads->at(layer, 0) * number_bytes(bf16), heads->count, heads->norm, buffer);
  for (size_t head = 0; head < heads->count; head++) {
    char *numbers = row + heads->at(layer, head) * number_bytes(bf16);
    copy_numbers(numbers, bf16, buffer, 0, size);
    if (of_each && !layer->norms_rotated)
      norm_row(heads->norm, buffer, size, buffer);
    if (cosines != NULL && layer->pairs)
      rotate_pairs(buffer, cosines, sines, work->rotary->size);
    else if (cosines != NULL)
      rotate_half(buffer, cosines, sines, work->rotary->size);
    if (of_each && layer->norms_rotated)
      norm_row(heads->norm, buffer, size, buffer);
    copy_numbers(buffer, 0, numbers, bf16, size);
  }
}

/* The cache */

/* A key or value into the cache. */
static void remember_head(const struct work *work, const char *from, char *to, float *buffer)
{
  const int bf16 = work->layer->attention == KIND_BF16;
  const size_t size = work->layer->head_size;
  if (work->call->past.number != NUMBER_I8) {
    copy_numbers(from, bf16, to, work->call->past.number, size);
    return;
  }
  copy_numbers(from, bf16, buffer, 0, size);
  copy_as_bytes(buffer, to, size);
}

/* Where the cache has a row's first key or value: in numbers. */
static size_t place_in_cache(const struct past *past, size_t padded)
{
  const size_t batch = past->places == NULL ? padded / past->columns : (size_t)past->places[padded][0];
  const size_t token =
      past->places == NULL ? past->length + padded % past->columns : (size_t)past->places[padded][1];
  return batch * past->batch + token * past->token;
}

/* Keys and values of one row, into the cache. */
static void remember(const struct work *work, size_t row, const char *qkv, float *buffer)
{
  const struct layer *layer = work->layer;
  const struct past *past = &work->call->past;
  const int bf16 = layer->attention == KIND_BF16;
  const size_t bytes = number_bytes(bf16), to_bytes = number_bytes(past->number);
  const size_t first = place_in_cache(past, (size_t)work->chunk->index[row]);
  for (size_t copy = 0; copy < layer->key_heads * layer->copies; copy++) {
    const size_t head = copy / layer->copies, place = (first + copy * past->head) * to_bytes;
    remember_head(work, qkv + layer_key_at(layer, head) * bytes, (char *)work->cache->keys + place, buffer);
    remember_head(work, qkv + layer_value_at(layer, head) * bytes, (char *)work->cache->values + place,
                  buffer);
  }
}

void heads_finish(const struct work *work, size_t row, float *buffer)
{
  const struct layer *layer = work->layer;
  const struct rotary *rotary = work->rotary;
  const struct heads queries = {layer_query_at, layer->heads, &layer->query_norm};
  const struct heads keys = {layer_key_at, layer->key_heads, &layer->key_norm};
  char *qkv = work->memory->qkv + row * layer_qkv_bytes(layer);
  const float *cosines = layer->unrotated ? NULL : rotary->cosines, *sines = rotary->sines;
  if (cosines != NULL) {
    const size_t angle = (size_t)work->chunk->index[row] % rotary->angles * rotary->size;
    cosines += angle, sines += angle;
  }
  if (cosines != NULL || layer->query_norm.kind != NORM_NONE || layer->key_norm.kind != NORM_NONE) {
    place_heads(work, qkv, &queries, cosines, sines, buffer);
    place_heads(work, qkv, &keys, cosines, sines, buffer);
  }
  if (work->cache != NULL)
    remember(work, row, qkv, buffer);
}
