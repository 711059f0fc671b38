#include <math.h>
#include <string.h>

#include "attention.h"
#include "block.h"
#include "scratch.h"

/* Words of a row of attention's results. */
size_t layer_context_words(const struct layer *layer)
{
  return operand_stride(kind_words(layer->attention, layer->heads * layer->head_size));
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

static void project(const struct work *work, const struct place *place)
{
  const struct layer *layer = work->layer;
  const struct matrix *matrices[] = {&layer->query, &layer->key, &layer->value};
  const size_t numbers = layer_qkv_numbers(layer), bytes = number_bytes(layer->attention == KIND_BF16);
  const size_t count = layer->joint ? 1 : 3;
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
    char *rows = work->memory->qkv + first * numbers * bytes;
    for (size_t i = 0; i < count; rows += matrices[i]->columns * bytes, i++)
      results[i] = (struct result){.rows = rows, .stride = numbers, .bf16 = layer->attention == KIND_BF16};
    multiply(&place->crew.self, count, matrices, &operand, last - first, results);
    team_wait(&place->crew.self);
    for (size_t row = begin; row < end; row++)
      heads_finish(work, first + row, place->row);
  }
}

/* Phase 3 (attend.c is the second): everything after attention */

/* Norm where it is due, and the rows from `first` on as the operand of `matrix`. `after`, `before`: the norm
 * of what attention has given, and of what comes next; a layer has one of them. */
static struct operand norm_and_convert(const struct work *work, const struct place *place, size_t first,
                                       size_t rows, const struct norm *after, const struct norm *before,
                                       const struct matrix *matrix)
{
  const struct layer *layer = work->layer;
  const struct block *block = &place->block;
  const struct operand operand = operand_of(matrix, rows, block->narrow, block->scales, block->shifts);
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  for (size_t row = begin; row < end; row++) {
    float *x = block->x + row * layer->hidden, *y = layer->norm_first ? place->row : x;
    const float *from = layer->parallel ? row_of(work, &work->input, first + row) : x;
    norm_row(layer->norm_first ? before : after, from, layer->hidden, y);
    fill_row(matrix, &operand, row, y, 0, layer->hidden);
  }
  team_wait(&place->crew.self);
  return operand;
}

/* Of the attention that has given the context. */
static const struct matrix *output_of(const struct work *work)
{
  return work->crosses ? &work->layer->cross_output : &work->layer->output;
}

static struct operand operand_of_context(const struct work *work, const struct place *place, size_t first,
                                         size_t rows)
{
  const struct layer *layer = work->layer;
  const struct block *block = &place->block;
  const size_t width = layer->heads * layer->head_size, stride = layer_context_words(layer);
  uint32_t *context = work->memory->context + first * stride;
  const struct matrix *output = output_of(work);
  const struct operand operand = operand_of(output, rows, block->narrow, block->scales, block->shifts);
  const int as_it_is =
      layer->attention == KIND_F32 ? operand_is_f32(output->kind) : operand_is_bf16(output->kind);
  if (as_it_is && width % kind_numbers(output->kind) == 0 && !operand.part)
    return (struct operand){.words = context, .stride = stride};
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  for (size_t row = begin; row < end; row++)
    fill_row(output, &operand, row, context + row * stride, layer->attention == KIND_BF16, width);
  team_wait(&place->crew.self);
  return operand;
}

/* to += from factor */
static void add_row(const struct layer *layer, float factor, const float *from, float *to)
{
  for (size_t i = 0; i < layer->hidden; i += LANES) {
    const vec_mask some = lanes((long)(layer->hidden - i));
    const vec x = vec_load_some(from + i, some);
    vec_store_some(to + i, some, vec_fma(x, vec_of(factor), vec_load_some(to + i, some)));
  }
}

/* x += the crew's share of rows of what shall be added, after its norm, times its factor. */
static void add_normed(const struct layer *layer, const struct place *place, const struct norm *norm,
                       const float *added, size_t rows)
{
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  for (size_t row = begin; row < end; row++) {
    float *x = place->block.x + row * layer->hidden;
    norm_row(norm, added + row * layer->hidden, layer->hidden, place->row);
    add_row(layer, layer->added, place->row, x);
  }
}

/* The layer's input, as the rows to which everything is added. */
static void copy_input(const struct work *work, const struct place *place, size_t first, size_t rows)
{
  const size_t hidden = work->layer->hidden;
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  for (size_t row = begin; row < end; row++)
    memcpy(place->block.x + row * hidden, row_of(work, &work->input, first + row), hidden * sizeof(float));
}

/* x = attention's input + attention's output projection */
static void add_attention(const struct work *work, const struct place *place, size_t first, size_t rows)
{
  const struct layer *layer = work->layer;
  const struct matrix *output = output_of(work);
  const struct operand operand = operand_of_context(work, place, first, rows);
  struct result result = {.rows = place->block.x,
                          .stride = layer->hidden,
                          .addend = work->input.first,
                          .addend_stride = layer->hidden};
  if (work->input.index == NULL)
    result.addend += first * layer->hidden;
  else
    result.addend_index = work->input.index + first;
  if (has_end(layer, &layer->attention_end)) {
    result = (struct result){.rows = place->block.added, .stride = layer->hidden};
    copy_input(work, place, first, rows);
  }
  multiply(&place->crew.self, 1, &output, &operand, rows, &result);
  team_wait(&place->crew.self);
  if (has_end(layer, &layer->attention_end)) /* the same thread norms these rows for the feed-forward */
    add_normed(layer, place, &layer->attention_end, place->block.added, rows);
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

/* The residual stream after attention goes out, and its norm to the mixture. */
static void hand_over(const struct work *work, const struct place *place, size_t first, size_t rows)
{
  const struct layer *layer = work->layer;
  const size_t hidden = layer->hidden;
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  for (size_t row = begin; row < end; row++) {
    const float *x = place->block.x + row * hidden;
    norm_row(&layer->output_norm, x, hidden, work->memory->normed + (first + row) * hidden);
    memcpy(row_of(work, &work->output, first + row), x, hidden * sizeof *x);
  }
}

/* The factor of what the expert of all tokens gives for a row. */
static float shared_factor(const struct layer *layer, const float *row)
{
  const float *gate = layer->mixture.shared_gate;
  vec sum = vec_zero();
  for (size_t i = 0; gate != NULL && i < layer->hidden; i += LANES) {
    const vec_mask some = lanes((long)(layer->hidden - i));
    sum = vec_fma(vec_load_some(row + i, some), vec_load_some(gate + i, some), sum);
  }
  return layer->added * (gate == NULL ? 1 : 1 / (1 + expf(-vec_sum(sum))));
}

/* The expert of all tokens, for rows that have been handed over. */
static void share(const struct work *work, const struct place *place, size_t first, size_t rows)
{
  const struct layer *layer = work->layer;
  const struct matrix *down = &layer->down;
  const struct operand narrow =
      norm_and_convert(work, place, first, rows, &layer->attention_norm, &layer->output_norm, &layer->up);
  const struct operand operand = widen(layer, place, &narrow, rows);
  const struct result result = {.rows = place->block.added, .stride = layer->hidden};
  multiply(&place->crew.self, 1, &down, &operand, rows, &result);
  team_wait(&place->crew.self);
  size_t begin, end;
  team_share(&place->crew.self, rows, &begin, &end);
  for (size_t row = begin; row < end; row++)
    add_row(layer, shared_factor(layer, work->memory->normed + (first + row) * layer->hidden),
            place->block.added + row * layer->hidden, row_of(work, &work->output, first + row));
}

/* A mixture in the place of the feed-forward, for all rows together. */
static void mix(const struct work *work, const struct place *place, const struct member *member)
{
  const struct layer *layer = work->layer;
  const size_t hidden = layer->hidden, rows = work->chunk->rows;
  struct blocks blocks = blocks_of(work, place, &work->taken->blocks);
  size_t first, last, begin, end;
  while (crew_next(&blocks, &first, &last)) {
    add_attention(work, place, first, last - first);
    hand_over(work, place, first, last - first);
    if (layer->up.columns > 0)
      share(work, place, first, last - first);
    team_wait(&place->crew.self);
  }
  team_wait(member);
  mixture_run(&layer->mixture, work->memory->normed, rows, work->memory->mixture, member);
  team_wait(member);
  team_share(member, rows, &begin, &end);
  for (size_t row = begin; row < end; row++)
    add_row(layer, layer->added, work->memory->normed + row * hidden, row_of(work, &work->output, row));
}

/* Between the two attentions of a layer: what the first gives is added, and becomes queries of the second. */
static void cross(const struct work *work, const struct place *place)
{
  const struct layer *layer = work->layer;
  const struct matrix *query = &layer->cross_query;
  const size_t numbers = layer_qkv_numbers(layer), bytes = number_bytes(layer->attention == KIND_BF16);
  struct blocks blocks = blocks_of(work, place, &work->taken->crossings);
  size_t first, last, begin, end;
  while (crew_next(&blocks, &first, &last)) {
    const size_t rows = last - first;
    const struct result result = {.rows = work->memory->qkv + first * numbers * bytes,
                                  .stride = numbers,
                                  .bf16 = layer->attention == KIND_BF16};
    add_attention(work, place, first, rows);
    const struct operand operand =
        norm_and_convert(work, place, first, rows, &layer->attention_norm, &layer->cross_norm, query);
    multiply(&place->crew.self, 1, &query, &operand, rows, &result);
    team_share(&place->crew.self, rows, &begin, &end);
    memcpy(work->memory->between + (first + begin) * layer->hidden, place->block.x + begin * layer->hidden,
           (end - begin) * layer->hidden * sizeof(float));
    team_wait(&place->crew.self);
  }
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
    const struct operand narrow = norm_and_convert(
        work, place, first, rows, work->crosses ? &layer->cross_norm : &layer->attention_norm,
        &layer->output_norm, &layer->up);
    const struct operand operand = widen(layer, place, &narrow, rows);
    const int ends = has_end(layer, &layer->output_end);
    struct result result = {.rows = x, .stride = hidden, .addend = x, .addend_stride = hidden};
    if (ends)
      result = (struct result){.rows = place->block.added, .stride = hidden};
    multiply(&place->crew.self, 1, &down, &operand, rows, &result);
    team_wait(&place->crew.self);
    if (ends)
      add_normed(layer, place, &layer->output_end, place->block.added, rows);
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

size_t layer_scratch(const struct layer *layer, size_t longest, const struct call *call)
{
  size_t block = 0;
  block_divide(layer, NULL, &block);
  return larger(block / sizeof(uint32_t), attend_scratch(layer, longest, call));
}

void layer_turn(const struct work *work, const struct member *member)
{
  const struct place place = place_of(work, member);
  struct work last = *work;
  project(work, &place);
  team_wait(member);
  attend(work, member);
  team_wait(member);
  if (work->encoded != NULL) {
    cross(work, &place);
    team_wait(member);
    last.crosses = 1, last.input = (struct rows){work->memory->between, NULL};
    attend(&last, member);
    team_wait(member);
  }
  if (is_mixture(&work->layer->mixture))
    mix(&last, &place, member);
  else
    feed_forward(&last, &place);
}
