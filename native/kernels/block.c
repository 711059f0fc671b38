#include "block.h"

#include "scratch.h"

enum {
  FEW_ROWS = 70 /* for each crew: one block, even if that leaves the cache, for each weight is read
                 * once then */
};

static size_t row_bytes(const struct layer *layer)
{
  const size_t wide = layer->up.columns, gate = layer->gate.columns ? sizeof(float) : 0;
  if (is_split(&layer->down, SIZE_MAX))
    return wide * (gate + SPLIT * sizeof(uint16_t));
  if (operand_is_f32(layer->down.kind))
    return wide * sizeof(float);
  if (operand_is_bf16(layer->down.kind))
    return wide * (gate + sizeof(uint16_t));
  return wide * (sizeof(float) + operand_bytes(KIND_I8));
}

static size_t most_rows(const struct layer *layer)
{
  const size_t tile = is_split(&layer->up, SIZE_MAX) ? AMX_ROWS : tile_rows(layer->up.kind);
  const size_t rows = block_bytes / larger(1, row_bytes(layer)) / tile * tile;
  return smaller(larger(rows, larger(2 * tile, crew_rows(&layer->up))), 8 * tile);
}

struct block block_divide(const struct layer *layer, char *base, size_t *used)
{
  const size_t rows = larger(most_rows(layer), FEW_ROWS);
  size_t narrow =
      larger(larger(operand_room(&layer->query), operand_room(&layer->output)), operand_room(&layer->up));
  if (layer_crosses(layer))
    narrow = larger(larger(operand_room(&layer->cross_query), operand_room(&layer->cross_output)), narrow);
  const size_t wide = operand_stride(layer->up.columns);
  struct block block;
  const size_t row = (layer->wide_norms ? layer->heads : 1) * layer->head_size;
  const int ends = has_end(layer, &layer->attention_end) || has_end(layer, &layer->output_end) ||
                   is_mixture(&layer->mixture);
  block.x = carve(base, used, rows * layer->hidden, sizeof(float));
  block.added = carve(base, used, ends ? rows * layer->hidden : 0, sizeof(float));
  block.narrow = carve(base, used, rows * narrow, sizeof(uint32_t));
  block.wide = carve(base, used, rows * wide, sizeof(uint32_t));
  block.down = carve(base, used, rows * operand_room(&layer->down), sizeof(uint32_t));
  block.scales = carve(base, used, rows, sizeof(float));
  block.shifts = carve(base, used, rows, sizeof(float));
  block.row = carve(base, used, larger(layer->hidden, row), sizeof(float));
  return block;
}

struct place place_of(const struct work *work, const struct member *member)
{
  const struct memory *memory = work->memory;
  struct place place = {
      .crew = team_crew(member, work->chunk->rows, crew_rows(&work->layer->up), memory->barriers)};
  const unsigned captain =
      place.crew.number * place.crew.self.size; /* whose scratch the crew's block is in */
  size_t used = 0;
  place.block = block_divide(work->layer, (char *)(memory->scratch + captain * memory->thread_words), &used);
  used = 0;
  place.row =
      block_divide(work->layer, (char *)(memory->scratch + member->rank * memory->thread_words), &used).row;
  return place;
}

struct blocks blocks_of(const struct work *work, const struct place *place, atomic_size_t *next)
{
  const int few = work->chunk->rows <= FEW_ROWS * place->crew.count;
  return crew_blocks(&place->crew, work->chunk->rows, few ? FEW_ROWS : most_rows(work->layer), next);
}
