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

/* The numbers of a tile, for all panels in `distances`. */
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

/* numbers[16] at buckets that mostly follow one another: those of tokens that are near each other. */
INLINE __m512 take(const float *numbers, __m512i buckets, __mmask16 mask)
{
  const __m512i first = _mm512_broadcastd_epi32(_mm512_castsi512_si128(buckets));
  const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  if (_mm512_mask_cmpneq_epi32_mask(mask, buckets, _mm512_add_epi32(first, steps)) == 0)
    return _mm512_maskz_loadu_ps(mask, numbers + _mm_cvtsi128_si32(_mm512_castsi512_si128(buckets)));
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, buckets, numbers, sizeof(float));
}

void relative_add(const struct head *head, const struct distances *distances, const struct tiles *tiles,
                  const struct tile *tile, size_t first, float *scores, size_t width)
{
  const size_t last = first + (tile->end - tile->begin);
  const size_t columns = distances->panels * PANEL,
               row_bytes = head->stride * (sizeof(uint32_t) >> head->kind);
  const __m512i base = _mm512_set1_epi32((int)(distances->panel * PANEL));
  const __m512i rows =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32((int)columns));
  if (head->relative.keys != NULL)
    multiply(head, distances, tiles, tile, (const char *)head->query + first * row_bytes, head->relative.keys,
             distances->near);
  /* key by key, so that neighbouring queries find the far numbers in the first-level cache */
  for (size_t key = 0; key < head->length; key += 16) {
    const __mmask16 mask = lanes((long)(head->length - key));
    for (size_t query = first; query < last; query++) {
      float *place = scores + (query - first) * width + key;
      const __m512i buckets =
          _mm512_maskz_sub_epi32(mask, _mm512_maskz_loadu_epi32(mask, buckets_of(head, query) + key), base);
      __m512 score = _mm512_loadu_ps(place);
      if (head->relative.keys != NULL)
        score = _mm512_add_ps(score, take(distances->near + (query - first) * columns, buckets, mask));
      if (head->relative.queries != NULL)
        score = _mm512_add_ps(score, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask,
                                                              _mm512_add_epi32(buckets, rows),
                                                              distances->far + key * columns, sizeof(float)));
      _mm512_storeu_ps(place, score);
    }
  }
}
