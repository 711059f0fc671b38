#include <string.h>

#include "attention.h"
#include "scratch.h"
#include "work.h"

enum {
  FEW_ROWS = 70 /* for each crew: one block, even if that leaves the cache, for each weight is read
                 * once then */
};

/* A crew's memory for one block of rows. */
struct block {
  float *x;               /* [rows][hidden]: the residual stream */
  uint32_t *narrow;       /* [rows][room]: the operand of query, key and value, of output and of up in turn */
  uint32_t *wide;         /* [rows][operand_stride of intermediate]: float32 */
  uint32_t *down;         /* [rows][room]: the same as down's operand, where that is not float32 as it is */
  float *scales, *shifts; /* [rows]: int8 only */
  float *row;             /* [threads of the crew][hidden] */
};

/* Layout of memory */

/* Words of a row of attention's results. */
size_t layer_context_words(const struct layer *layer)
{
  return operand_stride(kind_words(layer->attention, layer->heads * layer->head_size));
}

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
  const size_t rows = block_bytes / row_bytes(layer) / tile * tile;
  return smaller(larger(rows, larger(2 * tile, crew_rows(&layer->up))), 8 * tile);
}

static struct block divide(const struct layer *layer, char *base, size_t *used)
{
  const size_t rows = larger(most_rows(layer), FEW_ROWS);
  const size_t narrow =
      larger(larger(operand_room(&layer->query), operand_room(&layer->output)), operand_room(&layer->up));
  const size_t wide = operand_stride(layer->up.columns);
  struct block block;
  block.x = carve(base, used, rows * layer->hidden, sizeof(float));
  block.narrow = carve(base, used, rows * narrow, sizeof(uint32_t));
  block.wide = carve(base, used, rows * wide, sizeof(uint32_t));
  block.down = carve(base, used, rows * operand_room(&layer->down), sizeof(uint32_t));
  block.scales = carve(base, used, rows, sizeof(float));
  block.shifts = carve(base, used, rows, sizeof(float));
  block.row = carve(base, used, layer->hidden, sizeof(float));
  return block;
}

/* A thread's place in a chunk. */
struct place {
  struct crew crew;
  struct block block;
  float *row; /* [hidden]: this thread's own */
};

static struct place place_of(const struct work *work, const struct member *member)
{
  const struct memory *memory = work->memory;
  struct place place = {
      .crew = team_crew(member, work->chunk->rows, crew_rows(&work->layer->up), memory->barriers)};
  const unsigned captain =
      place.crew.number * place.crew.self.size; /* whose scratch the crew's block is in */
  size_t used = 0;
  place.block = divide(work->layer, (char *)(memory->scratch + captain * memory->thread_words), &used);
  used = 0;
  place.row = divide(work->layer, (char *)(memory->scratch + member->rank * memory->thread_words), &used).row;
  return place;
}

static struct blocks blocks_of(const struct work *work, const struct place *place, atomic_size_t *next)
{
  const int few = work->chunk->rows <= FEW_ROWS * place->crew.count;
  return crew_blocks(&place->crew, work->chunk->rows, few ? FEW_ROWS : most_rows(work->layer), next);
}

/* The floats of a chunk's row. */
static float *row_of(const struct work *work, const struct rows *rows, size_t row)
{
  const size_t place = rows->index == NULL ? row : (size_t)rows->index[row];
  return rows->first + place * work->layer->hidden;
}

/* gemm on the crew's share of several matrices' panels; results[i] belongs to matrices[i]. */
static void multiply(const struct member *self, size_t count, const struct matrix *const *matrices,
                     const struct operand *operand, size_t rows, const struct result *results)
{
  size_t total = 0, first, last, before = 0;
  for (size_t i = 0; i < count; i++)
    total += matrix_panels(matrices[i]);
  team_share(self, total, &first, &last);
  for (size_t i = 0; i < count; i++) {
    const size_t panels = matrix_panels(matrices[i]), end = before + panels;
    if (first < end && last > before)
      gemm(matrices[i], operand, rows, larger(first, before) - before, smaller(last, end) - before,
           &results[i]);
    before = end;
  }
}

/* Phase 1: queries, keys and values of all rows */

static void rotate_half(void *row, int bf16, const float *cosines, const float *sines, size_t size)
{
  for (size_t i = 0; i < size / 2; i += LANES) {
    const vec_mask some = lanes((long)(size / 2 - i));
    const size_t j = i + size / 2;
    const vec low = load_floats(row, i, some, bf16), high = load_floats(row, j, some, bf16);
    const vec new_low = vec_sub(vec_mul(low, vec_load_some(cosines + i, some)),
                                vec_mul(high, vec_load_some(sines + i, some)));
    const vec new_high = vec_add(vec_mul(high, vec_load_some(cosines + j, some)),
                                 vec_mul(low, vec_load_some(sines + j, some)));
    store_floats(row, i, some, bf16, new_low);
    store_floats(row, j, some, bf16, new_high);
  }
}

/* Rotary positions: queries and keys of one row. */
static void rotate(const struct work *work, size_t row)
{
  const struct layer *layer = work->layer;
  const struct rotary *rotary = &work->call->rotary;
  const size_t bytes = sizeof(uint32_t) >> layer->attention;
  const size_t angle = (size_t)work->chunk->index[row] % rotary->angles * layer->head_size;
  char *queries = work->memory->qkv + row * 3 * layer->heads * layer->head_size * bytes;
  for (size_t head = 0; head < 2 * layer->heads; head++) /* queries, and behind them keys */
    rotate_half(queries + head * layer->head_size * bytes, layer->attention == KIND_BF16,
                rotary->cosines + angle, rotary->sines + angle, layer->head_size);
}

static void project(const struct work *work, const struct place *place)
{
  const struct layer *layer = work->layer;
  const struct matrix *matrices[] = {&layer->query, &layer->key, &layer->value};
  const size_t width = layer->heads * layer->head_size, bytes = sizeof(uint32_t) >> layer->attention;
  const struct block *block = &place->block;
  struct blocks blocks = blocks_of(work, place, &work->taken->projections);
  size_t first, last, begin, end;
  while (crew_next(&blocks, &first, &last)) {
    const struct operand operand =
        operand_of(&layer->query, last - first, block->narrow, block->scales, block->shifts);
    team_share(&place->crew.self, last - first, &begin, &end);
    for (size_t row = begin; row < end; row++) {
      const float *x = row_of(work, &work->input, first + row);
      if (layer->norm_first) {
        norm_row(&layer->attention_norm, x, layer->hidden, place->row);
        x = place->row;
      }
      fill_row(&layer->query, &operand, row, x, 0, layer->hidden);
    }
    team_wait(&place->crew.self);
    struct result results[3];
    for (size_t i = 0; i < 3; i++)
      results[i] = (struct result){.rows = work->memory->qkv + (first * 3 + i) * width * bytes,
                                   .stride = 3 * width,
                                   .bf16 = layer->attention == KIND_BF16};
    multiply(&place->crew.self, 3, matrices, &operand, last - first, results);
    team_wait(&place->crew.self);
    for (size_t row = begin; work->call->rotary.cosines != NULL && row < end; row++)
      rotate(work, first + row);
  }
}

/* Phase 2: attention, head by head */

static void attend(const struct work *work, const struct member *member)
{
  const struct layer *layer = work->layer;
  const struct call *call = work->call;
  const struct memory *memory = work->memory;
  const size_t width = layer->heads * layer->head_size, bytes = sizeof(uint32_t) >> layer->attention;
  const size_t stride = layer_context_words(layer);
  size_t task;
  while ((task = atomic_fetch_add(&work->taken->heads, 1)) < work->chunk->unit_count * layer->heads) {
    const struct unit *unit = work->chunk->units + task / layer->heads;
    const size_t number = task % layer->heads;
    const char *start = memory->qkv + (unit->start * 3 * width + number * layer->head_size) * bytes;
    const char *keys = start + unit->skipped * 3 * width * bytes;
    const struct head head = {
        .kind = layer->attention,
        .query = start,
        .key = keys + width * bytes,
        .value = keys + 2 * width * bytes,
        .stride = 3 * width,
        .length = unit->seen,
        .skipped = unit->skipped,
        .size = layer->head_size,
        .scale = layer->scale,
        .bias = call->bias.numbers == NULL ? NULL : call->bias.numbers + number * call->bias.head,
        .bias_stride = call->bias.query,
        .window = call->sequences.window,
        .relative =
            relative_of_head(&call->relative, number, kind_words(layer->attention, layer->head_size))};
    char *out =
        (char *)(memory->context + (unit->start + unit->first) * stride) + number * layer->head_size * bytes;
    attention_head(&head, unit->first, unit->last, out, stride << layer->attention,
                   memory->scratch + member->rank * memory->thread_words);
    if (call->sequences.padding_sees_all)
      attention_mean(&head, unit->rows, unit->first, unit->last, out, stride << layer->attention);
  }
}

/* Phase 3: everything after attention */

/* Norm where it is due, and the rows as the operand of gate and up. */
static struct operand norm_and_convert(const struct layer *layer, const struct place *place, size_t rows)
{
  const struct block *block = &place->block;
  const struct operand operand = operand_of(&layer->up, rows, block->narrow, block->scales, block->shifts);
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  for (size_t row = begin; row < end; row++) {
    float *x = block->x + row * layer->hidden, *y = layer->norm_first ? place->row : x;
    norm_row(layer->norm_first ? &layer->output_norm : &layer->attention_norm, x, layer->hidden, y);
    fill_row(&layer->up, &operand, row, y, 0, layer->hidden);
  }
  team_wait(&place->crew.self);
  return operand;
}

static struct operand operand_of_context(const struct work *work, const struct place *place, size_t first,
                                         size_t rows)
{
  const struct layer *layer = work->layer;
  const struct block *block = &place->block;
  const size_t width = layer->heads * layer->head_size, stride = layer_context_words(layer);
  uint32_t *context = work->memory->context + first * stride;
  const struct operand operand =
      operand_of(&layer->output, rows, block->narrow, block->scales, block->shifts);
  const int as_it_is =
      layer->attention == KIND_F32 ? operand_is_f32(layer->output.kind) : operand_is_bf16(layer->output.kind);
  if (as_it_is && width % kind_numbers(layer->output.kind) == 0 && !operand.part)
    return (struct operand){.words = context, .stride = stride};
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  for (size_t row = begin; row < end; row++)
    fill_row(&layer->output, &operand, row, context + row * stride, layer->attention == KIND_BF16, width);
  team_wait(&place->crew.self);
  return operand;
}

/* x += attention's output projection */
static void add_attention(const struct work *work, const struct place *place, size_t first, size_t rows)
{
  const struct layer *layer = work->layer;
  const struct matrix *output = &layer->output;
  const struct operand operand = operand_of_context(work, place, first, rows);
  struct result result = {.rows = place->block.x,
                          .stride = layer->hidden,
                          .addend = work->input.first,
                          .addend_stride = layer->hidden};
  if (work->input.index == NULL)
    result.addend += first * layer->hidden;
  else
    result.addend_index = work->input.index + first;
  multiply(&place->crew.self, 1, &output, &operand, rows, &result);
  team_wait(&place->crew.self);
}

/* Zeros behind the last column, up to a whole word or, where rows are split, a whole step of AMX: no NaN. */
static void clear_ends(const struct operand *operand, size_t columns, size_t begin, size_t end)
{
  const size_t step = operand->part ? 2 * AMX_WORDS : 2, ends = (columns + step - 1) / step * step;
  for (size_t row = begin; ends > columns && row < end; row++)
    for (size_t p = 0; p < (operand->part ? SPLIT : 1); p++) {
      uint16_t *numbers = (uint16_t *)(operand->words + row * operand->stride + p * operand->part);
      memset(numbers + columns, 0, (ends - columns) * sizeof *numbers);
    }
}

/* The wide rows between up and down, as an operand. */
static struct operand widen(const struct layer *layer, const struct place *place,
                            const struct operand *narrow, size_t rows)
{
  const struct block *block = &place->block;
  const struct matrix *gate = &layer->gate, *up = &layer->up;
  const struct operand operand = operand_of(&layer->down, rows, block->down, block->scales, block->shifts);
  const size_t wide = operand_stride(up->columns);
  struct result result = {.rows = block->wide, .stride = wide, .activation = layer->activation};
  if (gate->columns > 0) { /* in float32 first */
    multiply(&place->crew.self, 1, &gate, narrow, rows, &result);
    result = (struct result){
        .rows = block->wide, .stride = wide, .factor = (const float *)block->wide, .factor_stride = wide};
  }
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  const int direct = operand_is_bf16(layer->down.kind) || operand.part;
  if (direct) { /* beside the gate, where there is one, and not over it */
    result.rows = block->down, result.bf16 = 1, result.stride = operand.stride * 2;
    result.part = operand.part * 2;
    clear_ends(&operand, up->columns, begin, end);
  }
  multiply(&place->crew.self, 1, &up, narrow, rows, &result);
  team_wait(&place->crew.self);
  if (direct)
    return operand;
  if (operand_is_f32(layer->down.kind) && up->columns == operand_words(&layer->down))
    return (struct operand){.words = block->wide, .stride = wide};
  for (size_t row = begin; row < end; row++)
    fill_row(&layer->down, &operand, row, block->wide + row * wide, 0, up->columns);
  team_wait(&place->crew.self);
  return operand;
}

static void feed_forward(const struct work *work, const struct place *place)
{
  const struct layer *layer = work->layer;
  const struct matrix *down = &layer->down;
  const size_t hidden = layer->hidden;
  struct blocks blocks = blocks_of(work, place, &work->taken->blocks);
  size_t first, last, begin, end;
  while (crew_next(&blocks, &first, &last)) {
    const size_t rows = last - first;
    float *x = place->block.x;
    add_attention(work, place, first, rows);
    const struct operand narrow = norm_and_convert(layer, place, rows);
    const struct operand operand = widen(layer, place, &narrow, rows);
    const struct result result = {.rows = x, .stride = hidden, .addend = x, .addend_stride = hidden};
    multiply(&place->crew.self, 1, &down, &operand, rows, &result);
    team_wait(&place->crew.self);
    team_share(&place->crew.self, rows, &begin, &end);
    for (size_t row = begin; row < end; row++) {
      float *out = row_of(work, &work->output, first + row);
      if (layer->norm_first)
        memcpy(out, x + row * hidden, hidden * sizeof *out);
      else
        norm_row(&layer->output_norm, x + row * hidden, hidden, out);
    }
    team_wait(&place->crew.self);
  }
}

/* The whole */

size_t layer_qkv_bytes(const struct layer *layer)
{
  return 3 * layer->heads * layer->head_size * (sizeof(uint32_t) >> layer->attention);
}

size_t layer_scratch(const struct layer *layer, size_t longest, const struct relative *relative)
{
  const size_t distances = is_relative(relative) ? relative_scratch(relative, longest) : 0;
  const size_t head = attention_scratch(layer->attention, longest, layer->head_size) + distances;
  size_t block = 0;
  divide(layer, NULL, &block);
  return larger(block / sizeof(uint32_t), head);
}

void layer_turn(const struct work *work, const struct member *member)
{
  const struct place place = place_of(work, member);
  project(work, &place);
  team_wait(member);
  attend(work, member);
  team_wait(member);
  feed_forward(work, &place);
}
