#include "relative.h"

#include "attention.h"

struct relative relative_of_head(const struct relative *relative, size_t head, size_t words)
{
  const size_t offset = head * ((relative->buckets + PANEL - 1) / PANEL) * words * PANEL;
  struct relative own = *relative;
  own.keys = own.keys == NULL ? NULL : own.keys + offset;
  own.queries = own.queries == NULL ? NULL : own.queries + offset;
  return own;
}

size_t relative_scratch(const struct relative *relative, size_t length)
{
  const size_t columns = (relative->buckets + PANEL - 1) / PANEL * PANEL;
  return (MOST_TILE_ROWS + length) * columns;
}

/* The buckets of the keys that a query sees, one after another. */
static const int32_t *buckets_of(const struct head *head, size_t query)
{
  return head->relative.index + head->relative.reach + head->skipped - query;
}

/* Multiplies a tile by all panels in `distances`. */
static void multiply(const struct head *head, const struct distances *distances, const struct tiles *tiles,
                     const struct tile *tile, const void *a, const uint32_t *panels, float *sums)
{
  const size_t words = kind_words(head->kind, head->size), stride = kind_words(head->kind, head->stride);
  for (size_t p = 0; p < distances->panels; p++)
    gemm_tile(tiles, tile, a, stride, panels + (distances->panel + p) * words * PANEL, words,
              sums + p * PANEL, distances->panels * PANEL);
}

struct distances relative_begin(const struct head *head, size_t first, size_t last, float *scratch)
{
  const size_t row_bytes = head->stride * (sizeof(uint32_t) >> head->kind);
  struct distances distances = {.near = scratch};
  int32_t lowest = INT32_MAX, highest = -1;
  if (first == last || head->length == 0)
    return distances;
  const int32_t *index = buckets_of(head, last - 1);
  for (size_t i = 0; i < head->length + (last - 1 - first); i++) {
    lowest = index[i] < lowest ? index[i] : lowest;
    highest = index[i] > highest ? index[i] : highest;
  }
  distances.panel = (size_t)lowest / PANEL;
  distances.panels = (size_t)highest / PANEL + 1 - distances.panel;
  distances.far = scratch + MOST_TILE_ROWS * distances.panels * PANEL;
  if (head->relative.queries == NULL)
    return distances;
  const struct tiles tiles = tiles_begin(head->kind, head->length);
  for (size_t t = 0; t < tiles.count; t++) {
    const struct tile tile = tile_at(&tiles, t);
    multiply(head, &distances, &tiles, &tile, (const char *)head->key + tile.begin * row_bytes,
             head->relative.queries, distances.far + tile.begin * distances.panels * PANEL);
  }
  tiles_end(&tiles);
  return distances;
}

/* The numbers of some buckets. Buckets of tokens near each other are mostly consecutive: one load then. */
INLINE vec take(const float *numbers, vec_ints buckets, vec_mask some)
{
  const int32_t first = ints_first(buckets);
  if (!ints_differ(buckets, ints_add(ints_of(first), ints_steps(1)), some))
    return vec_load_some(numbers + first, some);
  return vec_gather(numbers, buckets, some);
}

void relative_add(const struct head *head, const struct distances *distances, const struct tiles *tiles,
                  const struct tile *tile, size_t first, float *scores, size_t width)
{
  const size_t last = first + (tile->end - tile->begin);
  const size_t columns = distances->panels * PANEL,
               row_bytes = head->stride * (sizeof(uint32_t) >> head->kind);
  const vec_ints base = ints_of((int32_t)(distances->panel * PANEL)), rows = ints_steps((int32_t)columns);
  if (head->relative.keys != NULL)
    multiply(head, distances, tiles, tile, (const char *)head->query + first * row_bytes, head->relative.keys,
             distances->near);
  /* key by key, so that neighbouring queries find the far numbers in the first-level cache */
  for (size_t key = 0; key < head->length; key += LANES) {
    const vec_mask some = lanes((long)(head->length - key));
    for (size_t query = first; query < last; query++) {
      float *place = scores + (query - first) * width + key;
      const vec_ints buckets = ints_sub(ints_load_some(buckets_of(head, query) + key, some), base);
      vec score = vec_load(place);
      if (head->relative.keys != NULL)
        score = vec_add(score, take(distances->near + (query - first) * columns, buckets, some));
      if (head->relative.queries != NULL)
        score = vec_add(score, vec_gather(distances->far + key * columns, ints_add(buckets, rows), some));
      vec_store(place, score);
    }
  }
}
