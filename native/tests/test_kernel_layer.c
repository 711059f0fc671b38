/* attention.h, team.h and layer.h. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "kernel_reference.h"
#include "kernels/attention.h"
#include "kernels/division.h"
#include "kernels/linear.h"
#include "kernels/scratch.h"
#include "kernels/team.h"

/* Attention */

/* Buckets of distances in a kind: packed for the kernels, and the numbers that they then stand for. */
struct buckets {
  struct relative relative;
  double *keys, *queries; /* [head][bucket][size], or NULL */
};

static uint32_t *make_panels(enum kind kind, size_t heads, size_t buckets, size_t size, double *numbers)
{
  const size_t words = kind_words(kind, size), panels = (buckets + PANEL - 1) / PANEL;
  uint32_t *packed = guarded(heads * panels * words * PANEL, sizeof *packed);
  const uint32_t *rows = numbers_of(kind, heads * buckets * size, numbers);
  memset(packed, 0, heads * panels * words * PANEL * sizeof *packed);
  for (size_t head = 0; head < heads; head++)
    for (size_t bucket = 0; bucket < buckets; bucket++)
      for (size_t word = 0; word < words; word++)
        packed[((head * panels + bucket / PANEL) * words + word) * PANEL + bucket % PANEL] =
            rows[(head * buckets + bucket) * words + word];
  return packed;
}

/* Neighbouring distances in neighbouring buckets, and far ones in any. which & 1: keys, & 2: queries. */
static struct buckets make_buckets(enum kind kind, size_t heads, size_t size, size_t reach, int which)
{
  struct buckets made = {{NULL, NULL, 1 + below(3 * PANEL), NULL, reach}, NULL, NULL};
  const size_t count = made.relative.buckets, numbers = heads * count * size;
  int32_t *index = guarded(2 * reach + 1, sizeof *index);
  for (size_t i = 0; i < 2 * reach + 1; i++)
    index[i] = (int32_t)(below(20) ? i % count : below(count));
  made.relative.index = index;
  double *tables = guarded(2 * numbers, sizeof *tables);
  for (size_t i = 0; i < 2 * numbers; i++)
    tables[i] = uniform(-1, 1);
  if (which & 1)
    made.relative.keys = make_panels(kind, heads, count, size, made.keys = tables);
  if (which & 2)
    made.relative.queries = make_panels(kind, heads, count, size, made.queries = tables + numbers);
  return made;
}

/* What is added to the score of one query and one key, of `size` numbers each, before it is scaled. */
static double distance_score(const struct buckets *buckets, size_t head, size_t size, size_t query,
                             size_t key, const double *q, const double *k)
{
  double sum = 0;
  if (!is_relative(&buckets->relative))
    return 0;
  const size_t bucket = (size_t)buckets->relative.index[buckets->relative.reach + key - query];
  const size_t row = (head * buckets->relative.buckets + bucket) * size;
  for (size_t i = 0; i < size; i++)
    sum += (buckets->keys ? q[i] * buckets->keys[row + i] : 0) +
           (buckets->queries ? k[i] * buckets->queries[row + i] : 0);
  return sum;
}

static const struct buckets no_buckets;

struct sight {
  size_t length, skipped, seen, window; /* of the sequence; keys that are not seen; keys; how far */
  int biased;
  int relative; /* 1: keys of distances, 2: queries, 3: both */
  float softcap;
  int sinks;
};

static int sees(const struct sight *sight, size_t query, size_t key)
{
  const size_t away = query > key ? query - key : key - query;
  return key >= sight->skipped && key < sight->skipped + sight->seen && away <= sight->window;
}

static void test_head(enum kind kind, size_t size, struct sight sight)
{
  const size_t length = sight.length, stride = 3 * size + 2, out_stride = size + 4,
               bytes = sizeof(uint32_t) >> kind;
  double *qkv = guarded(length * stride, sizeof *qkv), *expected = guarded(size, sizeof *expected);
  for (size_t i = 0; i < length * stride; i++)
    qkv[i] = uniform(-1, 1);
  const char *rows = numbers_of(kind, length * stride, qkv);
  const size_t bias_stride = length + 3;
  struct buckets buckets = no_buckets;
  if (sight.relative)
    buckets = make_buckets(kind, 1, size, length - 1 + below(4), sight.relative);
  float *bias = uniform_floats(length * bias_stride, -2, 2);
  const struct head head = {.kind = kind,
                            .number = kind == KIND_BF16 ? NUMBER_BF16 : NUMBER_F32,
                            .query = rows,
                            .key = rows + (sight.skipped * stride + size) * bytes,
                            .value = rows + (sight.skipped * stride + 2 * size) * bytes,
                            .stride = stride,
                            .key_stride = stride,
                            .length = sight.seen,
                            .size = size,
                            .skipped = sight.skipped,
                            .scale = .7f,
                            .softcap = sight.softcap,
                            .bias = sight.biased ? bias : NULL,
                            .bias_stride = bias_stride,
                            .sinks = sight.sinks ? uniform_floats(1, -3, 3) : NULL,
                            .window = sight.window,
                            .relative = buckets.relative};
  char *out = guarded((length - 1) * out_stride + size, bytes);
  const size_t words = sight.relative ? relative_scratch(&buckets.relative, sight.seen) : 0;
  uint32_t *scratch = guarded(attention_scratch(kind, sight.seen, size) + words, sizeof *scratch);
  const size_t middle = below(length + 1);
  attention_head(&head, 0, middle, out, out_stride, scratch);
  attention_head(&head, middle, length, out + middle * out_stride * bytes, out_stride, scratch);
  char *visible = guarded(length, 1);
  double *added = guarded(length, sizeof *added);
  for (size_t q = 0; q < length; q++) {
    for (size_t k = 0; k < length; k++)
      visible[k] = (char)sees(&sight, q, k),
      added[k] = (sight.biased ? bias[q * bias_stride + k] : 0) +
                 .7 * distance_score(&buckets, 0, size, q, k, qkv + q * stride, qkv + size + k * stride);
    reference_attention(qkv + q * stride, qkv + size, qkv + 2 * size, stride, length, size, .7f,
                        sight.softcap, visible, added, head.sinks, expected);
    for (size_t i = 0; i < size; i++) {
      const size_t at = q * out_stride + i;
      const double got = kind == KIND_F32 ? ((float *)out)[at] : bf16_to(((uint16_t *)out)[at]);
      CHECK(fabs(got - expected[i]) <= (kind == KIND_F32 ? 1e-5 : 1.5e-2));
    }
  }
  guarded_release();
}

/* What no query sees gets the mean of all values, and the rest stays. */
static void test_mean(enum kind kind, size_t size, size_t rows, size_t skipped, size_t seen)
{
  const size_t bytes = sizeof(uint32_t) >> kind, stride = size + 2;
  double *values = guarded(rows * stride, sizeof *values);
  for (size_t i = 0; i < rows * stride; i++)
    values[i] = uniform(-1, 1);
  const char *start = numbers_of(kind, rows * stride, values);
  const struct head head = {.kind = kind,
                            .number = kind == KIND_BF16 ? NUMBER_BF16 : NUMBER_F32,
                            .value = start + skipped * stride * bytes,
                            .key_stride = stride,
                            .length = seen,
                            .size = size,
                            .skipped = skipped};
  const size_t first = below(rows + 1);
  char *out = guarded((rows - first) * size, bytes);
  memset(out, 0, (rows - first) * size * bytes);
  attention_mean(&head, rows, first, rows, out, size);
  for (size_t row = first; row < rows; row++)
    for (size_t i = 0; i < size; i++) {
      const size_t at = (row - first) * size + i;
      double mean = 0;
      for (size_t k = 0; k < rows; k++)
        mean += values[k * stride + i] / (double)rows;
      if (row >= skipped && row < skipped + seen)
        mean = 0;
      const double got = kind == KIND_F32 ? ((float *)out)[at] : bf16_to(((uint16_t *)out)[at]);
      CHECK(fabs(got - mean) <= (kind == KIND_F32 ? 1e-6 : 4e-3));
    }
  guarded_release();
}

void test_attention(void)
{
  static const size_t sizes[] = {2, 6, 14, 16, 18, 32, 34, 64, 80, 128};
  for (enum kind kind = KIND_F32; kind <= KIND_BF16; kind++) {
    for (size_t i = 0; (kind == KIND_F32 || DOT_BF16) && i < sizeof sizes / sizeof *sizes; i++)
      for (size_t length = 1; length < 80; length += 1 + length / 3) {
        test_head(kind, sizes[i], (struct sight){length, 0, length, SIZE_MAX, 0, 0, 0, 0});
        test_head(kind, sizes[i], (struct sight){length, 0, length, SIZE_MAX, 0, 3, 0, 0});
        struct sight sight = {length,        below(length), 0, i % 2 ? below(length + 2) : SIZE_MAX,
                              (int)below(2), (int)below(4), 0, (int)below(2)};
        sight.seen = below(length - sight.skipped + 1);
        sight.softcap =
            sight.relative == 0 && below(2) ? .4f : 0; /* the reference adds distances afterwards */
        test_head(kind, sizes[i], sight);
        test_mean(kind, sizes[i], length, sight.skipped, sight.seen);
      }
  }
}

/* Threads: a stand-in for torch's function, which starts threads for each call, or fewer than are wanted. */

static unsigned available; /* threads that it has; 0: it fails */

struct part {
  int64_t begin, end;
  void (*body)(int64_t, int64_t, void *);
  void *context;
};

static void *run_part(void *argument)
{
  struct part *part = argument;
  part->body(part->begin, part->end, part->context);
  return NULL;
}

static int32_t stand_in(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void *),
                        void *context)
{
  (void)grain;
  pthread_t threads[16];
  struct part parts[16];
  const int64_t step = available ? (end - begin + available - 1) / available : 0; /* as torch divides */
  int count = 0;
  if (step == 0)
    return 1;
  for (int64_t from = begin; from < end; from += step, count++) {
    CHECK(count < 16);
    parts[count] = (struct part){from, from + step < end ? from + step : end, body, context};
  }
  for (int i = 1; i < count; i++)
    CHECK(pthread_create(&threads[i], NULL, run_part, &parts[i]) == 0);
  run_part(&parts[0]);
  for (int i = 1; i < count; i++)
    CHECK(pthread_join(threads[i], NULL) == 0);
  return 0;
}

enum { PHASES = 50 };

struct tally {
  atomic_uint came[PHASES], size;
  unsigned plain; /* written by one member of each phase: the barrier must order it */
};

static void count_phases(void *context, const struct member *member)
{
  struct tally *tally = context;
  atomic_store(&tally->size, member->size);
  for (unsigned phase = 0; phase < PHASES; phase++) {
    CHECK(tally->plain == phase);
    atomic_fetch_add(&tally->came[phase], 1);
    team_wait(member);
    CHECK(atomic_load(&tally->came[phase]) == member->size);
    if (member->rank == phase % member->size)
      tally->plain++;
    team_wait(member);
  }
}

static unsigned team_of(unsigned threads)
{
  struct tally tally = {0};
  team_run(threads, count_phases, &tally);
  CHECK(tally.plain == PHASES);
  return atomic_load(&tally.size);
}

static void test_shares_and_blocks(size_t rows, unsigned members)
{
  struct barrier barriers[16];
  atomic_size_t next = 0;
  size_t covered = 0, end = 0;
  for (unsigned rank = 0; rank < members; rank++) {
    const struct member member = {rank, members, barriers};
    size_t first, last;
    team_share(&member, rows, &first, &last);
    CHECK(first == end && last - first <= rows / members + 1);
    end = last;
    const struct crew crew = team_crew(&member, rows, 28, barriers);
    CHECK(crew.self.size * crew.count == members && crew.number < crew.count);
    struct blocks blocks = crew_blocks(&crew, rows, 28, &next);
    while (crew_next(&blocks, &first, &last)) {
      CHECK(last - first <= 28 && last <= rows);
      covered += crew.self.rank == 0 ? last - first : 0;
    }
  }
  CHECK(end == rows && covered == rows);
}

/* Every sequence is in one share; shares are even, and have enough rows. */
static void test_division(size_t count, unsigned threads, size_t least)
{
  int32_t lengths[64];
  size_t total = 0, met = 0;
  for (size_t i = 0; i < count; i++)
    total += (size_t)(lengths[i] = (int32_t)below(100));
  struct division division;
  CHECK(divide_sequences(&division, lengths, count, threads, least, 0));
  CHECK(division.shares >= 1 && threads % division.shares == 0);
  char seen[64] = {0};
  for (size_t number = 0; number < division.shares; number++) {
    const struct share share = share_of(&division, number);
    size_t rows = 0;
    for (size_t i = 0; i < share.count; i++, met++) {
      rows += (size_t)lengths[share.sequences[i]];
      CHECK(!seen[share.sequences[i]]++);
    }
    CHECK(division.shares == 1 || (double)(rows * division.shares) <= 1.051 * (double)total);
  }
  CHECK(met == count && (division.shares == 1 || total / division.shares >= least));
  division_free(&division);
}

/* Members are numbered within groups that follow one another, whatever number of them there is. */
static void test_groups(unsigned members, size_t shares)
{
  struct group before = {0};
  for (unsigned rank = 0; rank < members; rank++) {
    const struct member member = {.rank = rank, .size = members};
    const struct group group = group_of(&member, shares);
    CHECK(group.count == (shares < members ? shares : members) && group.rank < group.size);
    if (rank > 0 && group.number == before.number)
      CHECK(group.rank == before.rank + 1 && group.size == before.size);
    else
      CHECK(group.rank == 0 && (rank == 0 ? group.number == 0 : before.rank + 1 == before.size));
    before = group;
  }
  CHECK(before.number + 1 == before.count && before.rank + 1 == before.size);
}

void test_team(void)
{
  for (size_t count = 0; count <= 64; count += 1 + count / 2)
    for (unsigned threads = 1; threads <= 9; threads++)
      for (size_t least = 1; least < 300; least *= 4)
        test_division(count, threads, least);
  for (unsigned members = 1; members <= 9; members++)
    for (size_t shares = 1; shares <= 9; shares++)
      test_groups(members, shares);
  team_use(NULL);
  CHECK(team_of(4) == 1);
  team_use(stand_in);
  for (available = 0; available <= 5; available++)
    for (unsigned wanted = 1; wanted <= 6; wanted++) {
      const unsigned size = team_of(wanted);
      CHECK(size >= 1 && size <= wanted && (available == 0 ? size == 1 : size <= available));
      CHECK(available < wanted || size == wanted);
    }
  for (size_t rows = 0; rows < 300; rows += 1 + rows / 4)
    for (unsigned members = 1; members <= 7; members++)
      test_shares_and_blocks(rows, members);
}

/* Layers */

/* Memory that holds what other calls left there: what was not written must not be used. */
static void *used_memory(size_t alignment, size_t size)
{
  void *memory = aligned_alloc(alignment, size);
  return memory == NULL ? NULL : memset(memory, 0xff, size);
}

struct sizes {
  size_t hidden, heads, head_size, wide;
};

struct variant {
  enum kind kind, attention;
  struct sizes sizes;
  size_t sharing;                                /* heads of each key head; 0: one */
  int gated, norm_first, rotary, biased, partly; /* partly: attention does not see all rows */
  int head_norms, ends, parallel;                /* head_norms: 2: over all heads at once */
  size_t groups, copies; /* of a joint projection, 0 where it is none; of a key head, 0: one */
  int values_first, pairs, unrotated, norms_rotated, softcap, factor, sinks;
  int follows;  /* a decoder's, with a past; 2: padding sees everything; 3: each sequence has its own */
  int relative; /* as in struct sight */
  int crosses;  /* attends to an encoder; 2: some of its tokens are hidden */
  size_t window;
  enum activation activation;
};

struct test_layer {
  struct layer layer;
  struct weight query, key, value, output, gate, up, down; /* joint: query's columns are all three's */
  struct weight cross_query, cross_output;
};

static struct norm make_norm(size_t columns)
{
  return (struct norm){uniform_floats(columns, .5, 1.5), uniform_floats(columns, -.5, .5), 1e-5f, NORM_LAYER};
}

static struct test_layer make_layer(const struct variant *variant)
{
  const struct sizes s = variant->sizes;
  const enum kind kind = variant->kind;
  const size_t width = s.heads * s.head_size, sharing = variant->sharing ? variant->sharing : 1;
  const size_t normed = variant->head_norms == 2 ? width : s.head_size;
  const struct norm none = {.kind = NORM_NONE};
  struct test_layer made = {
      .query = make_weight(kind, variant->groups ? width + 2 * width / sharing : width, s.hidden, 1),
      .output = make_weight(kind, s.hidden, width, 1),
      .up = make_weight(kind, s.wide, s.hidden, 1),
      .down = make_weight(kind, s.hidden, s.wide, 1)};
  if (!variant->groups) {
    made.key = make_weight(kind, width / sharing, s.hidden, 0);
    made.value = make_weight(kind, width / sharing, s.hidden, 1);
  }
  if (variant->gated)
    made.gate = make_weight(kind, s.wide, s.hidden, 0);
  made.layer = (struct layer){.hidden = s.hidden,
                              .heads = s.heads,
                              .key_heads = s.heads / sharing,
                              .head_size = s.head_size,
                              .query = made.query.matrix,
                              .key = made.key.matrix,
                              .value = made.value.matrix,
                              .output = made.output.matrix,
                              .gate = made.gate.matrix,
                              .up = made.up.matrix,
                              .down = made.down.matrix,
                              .attention_norm = make_norm(s.hidden),
                              .output_norm = make_norm(s.hidden),
                              .query_norm = variant->head_norms ? make_norm(normed) : none,
                              .key_norm = variant->head_norms ? make_norm(normed) : none,
                              .wide_norms = variant->head_norms == 2,
                              .attention_end = variant->ends & 1 ? make_norm(s.hidden) : none,
                              .output_end = variant->ends & 2 ? make_norm(s.hidden) : none,
                              .norm_first = variant->norm_first,
                              .parallel = variant->parallel,
                              .activation = variant->activation,
                              .attention = variant->attention,
                              .scale = .3f,
                              .softcap = variant->softcap ? .5f : 0,
                              .added = variant->factor ? .3f : 1,
                              .joint = variant->groups > 0,
                              .groups = variant->groups ? variant->groups : 1,
                              .values_first = variant->values_first,
                              .copies = variant->copies ? variant->copies : 1,
                              .pairs = variant->pairs,
                              .unrotated = variant->unrotated,
                              .norms_rotated = variant->norms_rotated};
  /* where padding sees everything, it sees no sink: no model has both */
  if (variant->sinks && variant->follows != 2 && !(variant->partly && variant->relative))
    made.layer.sinks = uniform_floats(s.heads, -3, 3);
  if (variant->crosses) {
    made.cross_query = make_weight(kind, width, s.hidden, 1);
    made.cross_output = make_weight(kind, s.hidden, width, 1);
    made.layer.cross_query = made.cross_query.matrix;
    made.layer.cross_output = made.cross_output.matrix;
    made.layer.cross_norm = make_norm(s.hidden);
  }
  return made;
}

/* A batch of 5 sequences of up to `length` rows, in places `length` rows apart. */
enum { SEQUENCES = 5 };

static struct call make_call(const struct variant *variant, size_t length, const struct buckets *buckets)
{
  const struct sizes s = variant->sizes;
  int32_t *first = guarded(SEQUENCES, 4), *count = guarded(SEQUENCES, 4), *skipped = guarded(SEQUENCES, 4),
          *seen = guarded(SEQUENCES, 4);
  for (size_t i = 0; i < SEQUENCES; i++) {
    count[i] = (int32_t)(i == 2 ? length : i == 3 ? 0 : 1 + below(length));
    first[i] = (int32_t)(i * length + below(length - (size_t)count[i] + 1));
    skipped[i] = (int32_t)(count[i] ? below((size_t)count[i]) : 0);
    seen[i] = (int32_t)below((size_t)(count[i] - skipped[i] + 1));
  }
  const size_t rows = SEQUENCES * length, angles = length;
  return (struct call){.input = uniform_floats(rows * s.hidden, -2, 2),
                       .output = guarded(rows * s.hidden, sizeof(float)),
                       .sequences = {.rows = rows,
                                     .count = SEQUENCES,
                                     .first = first,
                                     .length = count,
                                     .skipped = variant->partly ? skipped : NULL,
                                     .seen = variant->partly ? seen : NULL,
                                     .window = variant->window,
                                     .padding_sees_all = variant->partly && variant->relative},
                       .bias = {variant->biased ? uniform_floats(s.heads * length * length, -1, 1) : NULL, 0,
                                length * length, length},
                       .rotary = {variant->rotary ? uniform_floats(angles * s.head_size, -1, 1) : NULL,
                                  variant->rotary ? uniform_floats(angles * s.head_size, -1, 1) : NULL,
                                  angles, variant->rotary == 2 ? s.head_size / 4 * 2 : s.head_size},
                       .relative = buckets->relative};
}

static struct buckets buckets_of(const struct variant *variant, size_t length)
{
  const struct sizes s = variant->sizes;
  if (variant->relative)
    return make_buckets(variant->attention, s.heads, s.head_size, length, variant->relative);
  return no_buckets;
}

/* Rows of a cache: of each `room` the first `past` with random numbers, and the others with none. */
static void *cache_of(size_t size, size_t rows, size_t room, size_t past, enum number number)
{
  double *values = guarded(rows * size, sizeof *values);
  for (size_t i = 0; i < rows * size; i++)
    values[i] = i / size % room < past ? uniform(-1, 1) : NAN;
  if (number != NUMBER_I8)
    return (void *)numbers_of(number == NUMBER_BF16 ? KIND_BF16 : KIND_F32, rows * size, values);
  const size_t bytes = size + sizeof(float);
  int8_t *made = guarded(rows, bytes);
  memset(made, 0xff, rows * bytes); /* factors that are no numbers */
  for (size_t row = 0; row < rows; row++) {
    float numbers[size];
    for (size_t i = 0; i < size; i++)
      numbers[i] = (float)values[row * size + i];
    if (row % room < past)
      copy_as_bytes(numbers, made + row * bytes, size);
  }
  return made;
}

/* Each sequence follows at most `past` tokens of another sequence of the cache. */
static const int32_t (*places_after(const struct sequences *all, size_t past))[2]
{
  int32_t (*places)[2] = guarded(all->rows + 1, sizeof *places);
  memset(places, 0, (all->rows + 1) * sizeof *places);
  for (size_t s = 0; s < all->count; s++) {
    const int32_t before = (int32_t)below(past + 1);
    for (int32_t row = 0; row < all->length[s]; row++) {
      places[all->first[s] + row][0] = (int32_t)((s + 1) % all->count);
      places[all->first[s] + row][1] = before + row;
    }
  }
  return (const int32_t (*)[2])places;
}

/* Which of the cache's is a sequence of the call. */
static size_t batch_of(const struct call *call, size_t s)
{
  const size_t first = (size_t)call->sequences.first[s];
  const int32_t (*places)[2] = call->past.places;
  return places ? (size_t)places[first][0] : call->past.columns ? first / call->past.columns : 0;
}

/* The first number in the cache of a sequence of the call, and the tokens before it. */
static size_t cached_at(const struct call *call, size_t s)
{
  return batch_of(call, s) * call->past.batch;
}

static size_t tokens_before(const struct call *call, size_t s)
{
  const size_t first = (size_t)call->sequences.first[s];
  const int32_t (*places)[2] = call->past.places;
  return places ? (size_t)places[first][1] : call->past.length + first % call->past.columns;
}

/* Keys and values of an encoder, of which nobody sees what is no number. */
static struct past encoded_of(const struct layer *layer, const struct variant *variant, size_t columns)
{
  const size_t length = 1 + below(below(2) ? 30 : 700), tail = variant->crosses == 2 ? below(length) : 0;
  const size_t rows = SEQUENCES * layer->heads * length, size = layer->head_size;
  const enum number number = variant->attention == KIND_BF16 ? NUMBER_BF16 : (enum number)below(2);
  struct cache *cache = guarded(1, sizeof *cache);
  int32_t (*seen)[2] = guarded(SEQUENCES, sizeof *seen);
  for (size_t s = 0; s < SEQUENCES; s++) {
    seen[s][1] = (int32_t)(length - tail);
    seen[s][0] = (int32_t)below(length - tail);
  }
  cache->keys = cache_of(size, rows, length, length - tail, number);
  cache->values = cache_of(size, rows, length, length - tail, number);
  return (struct past){.caches = cache,
                       .batch = layer->heads * length * size,
                       .head = length * size,
                       .token = size,
                       .number = number,
                       .columns = columns,
                       .length = length,
                       .seen = variant->crosses == 2 ? (const int32_t (*)[2])seen : NULL};
}

/* The same as a decoder's call after `past` tokens: caches with random numbers, and with none where those of
 * the call go. */
static struct call following(const struct test_layer *test, const struct variant *variant, size_t length,
                             size_t past)
{
  const struct layer *layer = &test->layer;
  const size_t total = past + length, room = total + below(3);
  struct call call = make_call(variant, length, &no_buckets);
  struct cache *cache = guarded(1, sizeof *cache);
  int32_t (*seen)[2] = guarded(SEQUENCES, sizeof *seen);
  call.sequences.skipped = call.sequences.seen = NULL;
  call.sequences.padding_sees_all = variant->partly && variant->follows == 2 ? 1 + (int)below(2) : 0;
  if (variant->biased) { /* of keys, or of queries and keys */
    const size_t queries = variant->crosses ? length : 1;
    call.bias = (struct bias){.numbers = uniform_floats(SEQUENCES * layer->heads * queries * total, -1, 1),
                              .batch = layer->heads * queries * total,
                              .head = queries * total,
                              .query = variant->crosses ? total : 0};
  }
  call.past = (struct past){.caches = cache,
                            .batch = layer->key_heads * layer->copies * room * layer->head_size,
                            .head = room * layer->head_size,
                            .token = layer->head_size,
                            .number = variant->attention == KIND_BF16 ? NUMBER_BF16 + below(2) : below(3),
                            .columns = length,
                            .length = past,
                            .seen = variant->partly ? (const int32_t (*)[2])seen : NULL};
  if (variant->follows == 3) {
    call.past.seen = NULL;
    call.past.places = places_after(&call.sequences, past);
  }
  for (size_t s = 0; s < SEQUENCES; s++) { /* nothing sees the padding before a sequence */
    if (variant->follows != 3 && (!variant->partly || variant->follows == 2))
      ((int32_t *)call.sequences.first)[s] = (int32_t)(s * length);
    const size_t padding = (size_t)call.sequences.first[s] % length;
    const size_t tokens = (size_t)call.sequences.length[s];
    seen[s][0] = (int32_t)(padding ? past + padding : below(past + (tokens ? tokens : 1)));
    seen[s][1] = seen[s][0] + 1 + (int32_t)below(2 * (past + tokens));
  }
  const size_t rows = SEQUENCES * layer->key_heads * layer->copies * room;
  for (int half = 0; half < 2; half++)
    *(half ? &cache->values : &cache->keys) = cache_of(layer->head_size, rows, room, past, call.past.number);
  if (call.past.number == NUMBER_I8) {
    call.past.token += sizeof(float);
    call.past.head = room * call.past.token;
    call.past.batch = layer->key_heads * layer->copies * call.past.head;
  }
  if (variant->crosses)
    call.encoded = encoded_of(layer, variant, length);
  return call;
}

/* Number `at` of a token. */
static double cached(const struct past *past, const void *numbers, size_t token, size_t at, size_t size)
{
  if (past->number == NUMBER_F32)
    return (double)((const float *)numbers)[token + at];
  if (past->number == NUMBER_BF16)
    return bf16_to(((const uint16_t *)numbers)[token + at]);
  const int8_t *bytes = (const int8_t *)numbers + token;
  return bytes[at] * (double)row_factor(bytes, size, NUMBER_I8);
}

static void reference_rotate(double *x, size_t size, const float *cosines, const float *sines, int pairs)
{
  for (size_t i = 0; i < size / 2; i++) {
    const size_t first = pairs ? 2 * i : i, second = pairs ? 2 * i + 1 : i + size / 2;
    const double low = x[first], high = x[second];
    x[first] = low * cosines[first] - high * sines[first];
    x[second] = high * cosines[second] + low * sines[second];
  }
}

/* Copies `count` numbers; returns what comes behind them. */
static double *take(double *from, size_t count, double *to)
{
  memcpy(to, from, count * sizeof *to);
  return from + count;
}

/* query, key and value of one row, beside each other. */
static void reference_project(const struct test_layer *test, const struct call *call, size_t row, double *out)
{
  const struct layer *layer = &test->layer;
  const size_t width = layer->heads * layer->head_size, keys = layer->key_heads * layer->head_size;
  const struct rotary *rotary = &call->rotary;
  double *x = malloc((layer->hidden + 3 * width) * sizeof *x), *apart = x + layer->hidden;
  CHECK(x != NULL);
  for (size_t i = 0; i < layer->hidden; i++)
    x[i] = call->input[row * layer->hidden + i];
  if (layer->norm_first)
    reference_norm(&layer->attention_norm, x, layer->hidden, x);
  if (layer->joint) {
    reference_linear(&test->query, x, apart);
    const size_t second = layer->values_first ? width + keys : width;
    for (size_t g = 0; g < layer->groups; g++) {
      apart = take(apart, width / layer->groups, out + g * (width / layer->groups));
      apart = take(apart, keys / layer->groups, out + second + g * (keys / layer->groups));
      apart = take(apart, keys / layer->groups, out + 2 * width + keys - second + g * (keys / layer->groups));
    }
  } else {
    reference_linear(&test->query, x, out);
    reference_linear(&test->key, x, out + width);
    reference_linear(&test->value, x, out + width + keys);
  }
  if (layer->wide_norms) {
    reference_norm(&layer->query_norm, out, width, out);
    reference_norm(&layer->key_norm, out + width, keys, out + width);
  }
  for (size_t head = 0; head < layer->heads + layer->key_heads; head++) {
    double *numbers = out + head * layer->head_size;
    const struct norm *norm = head < layer->heads ? &layer->query_norm : &layer->key_norm;
    const int normed = norm->kind != NORM_NONE && !layer->wide_norms;
    if (normed && !layer->norms_rotated)
      reference_norm(norm, numbers, layer->head_size, numbers);
    if (rotary->cosines != NULL && !layer->unrotated)
      reference_rotate(numbers, rotary->size, rotary->cosines + row % rotary->angles * rotary->size,
                       rotary->sines + row % rotary->angles * rotary->size, layer->pairs);
    if (normed && layer->norms_rotated)
      reference_norm(norm, numbers, layer->head_size, numbers);
  }
  free(x);
}

/* The attention over an encoder for one row, which becomes what it was, its norm and what is added. */
static void reference_cross(const struct test_layer *test, const struct call *call, size_t row, double *x)
{
  const struct layer *layer = &test->layer;
  const struct past *encoded = &call->encoded;
  const size_t text = row / encoded->columns, size = layer->head_size, width = layer->heads * size;
  const size_t begin = encoded->seen ? (size_t)encoded->seen[text][0] : 0,
               end = encoded->seen ? (size_t)encoded->seen[text][1] : encoded->length;
  double *y = malloc((layer->hidden + 2 * width) * sizeof *y), *query = y + layer->hidden,
         *context = query + width, *key = malloc(2 * (end - begin) * size * sizeof *key),
         *value = key + (end - begin) * size, *bias = calloc(end - begin, sizeof *bias);
  char *visible = malloc(end - begin);
  CHECK(y != NULL && key != NULL && bias != NULL && visible != NULL);
  memset(visible, 1, end - begin);
  if (layer->norm_first)
    reference_norm(&layer->cross_norm, x, layer->hidden, y);
  else
    memcpy(y, x, layer->hidden * sizeof *y);
  reference_linear(&test->cross_query, y, query);
  for (size_t head = 0; head < layer->heads; head++) {
    const size_t at = text * encoded->batch + head * encoded->head;
    for (size_t t = begin; t < end; t++)
      for (size_t i = 0; i < size; i++) {
        key[(t - begin) * size + i] =
            cached(encoded, encoded->caches->keys, at + t * encoded->token, i, size);
        value[(t - begin) * size + i] =
            cached(encoded, encoded->caches->values, at + t * encoded->token, i, size);
      }
    reference_attention(query + head * size, key, value, size, end - begin, size, layer->scale,
                        layer->softcap, visible, bias, NULL, context + head * size);
  }
  reference_linear(&test->cross_output, context, y);
  for (size_t i = 0; i < layer->hidden; i++)
    x[i] += y[i];
  if (!layer->norm_first)
    reference_norm(&layer->cross_norm, x, layer->hidden, x);
  free(y);
  free(key);
  free(bias);
  free(visible);
}

/* Everything after attention, for one row. */
static void reference_finish(const struct test_layer *test, const struct call *call, size_t row,
                             const double *context, double *out)
{
  const float *input = call->input + row * test->layer.hidden;
  const struct layer *layer = &test->layer;
  const size_t hidden = layer->hidden, wide = layer->up.columns;
  double *x = malloc((3 * hidden + 2 * wide) * sizeof *x), *y = x + hidden, *z = y + hidden, *up = z + hidden,
         *gate = up + wide;
  CHECK(x != NULL);
  reference_linear(&test->output, context, x);
  if (layer->attention_end.kind != NORM_NONE)
    reference_norm(&layer->attention_end, x, hidden, x);
  for (size_t i = 0; i < hidden; i++)
    x[i] = input[i] + layer->added * x[i], z[i] = layer->parallel ? input[i] : x[i];
  if (!layer->norm_first)
    reference_norm(&layer->attention_norm, x, hidden, x);
  if (call->encoded.caches != NULL)
    reference_cross(test, call, row, x);
  if (layer->norm_first)
    reference_norm(&layer->output_norm, layer->parallel ? z : x, hidden, y);
  else
    memcpy(y, x, hidden * sizeof *x);
  reference_linear(&test->up, y, up);
  if (layer->gate.columns)
    reference_linear(&test->gate, y, gate);
  for (size_t i = 0; i < wide; i++)
    up[i] = layer->gate.columns ? reference_activation(layer->activation, gate[i]) * up[i]
                                : reference_activation(layer->activation, up[i]);
  reference_linear(&test->down, up, z);
  if (layer->output_end.kind != NORM_NONE)
    reference_norm(&layer->output_end, z, hidden, z);
  for (size_t i = 0; i < hidden; i++)
    out[i] = x[i] + layer->added * z[i];
  if (!layer->norm_first)
    reference_norm(&layer->output_norm, out, hidden, out);
  free(x);
}

/* Keys or values of a sequence: those of its past, and behind them its own, which begin at `own`. */
static double *tokens_of(const struct test_layer *test, const struct call *call, size_t s, const void *cache,
                         size_t past, const double *own, size_t stride)
{
  const size_t size = test->layer.head_size, width = test->layer.key_heads * size,
               length = (size_t)call->sequences.length[s];
  double *tokens = malloc((past + length + 1) * width * sizeof *tokens);
  CHECK(tokens != NULL);
  for (size_t t = 0; t < past + length; t++)
    for (size_t i = 0; i < width; i++) {
      double *token = tokens + t * width + i;
      if (t >= past)
        *token = own[(t - past) * stride + i];
      else
        *token = cached(&call->past, cache,
                        cached_at(call, s) + i / size * test->layer.copies * call->past.head +
                            t * call->past.token,
                        i % size, size);
    }
  return tokens;
}

static void reference_sequence(const struct test_layer *test, const struct call *call,
                               const struct buckets *buckets, size_t s, double *out)
{
  const struct layer *layer = &test->layer;
  const size_t size = layer->head_size, width = layer->heads * size, keys = layer->key_heads * size,
               stride = width + 2 * keys, length = (size_t)call->sequences.length[s];
  const int follows = call->past.caches != NULL;
  /* padding before the sequence lies in the cache as well, where nothing sees it */
  const size_t past = follows ? tokens_before(call, s) : 0;
  const size_t column = follows ? (size_t)call->sequences.first[s] % call->past.columns : 0;
  const size_t total = past + length, begin = call->past.seen ? (size_t)call->past.seen[s][0] : 0,
               end = call->past.seen ? (size_t)call->past.seen[s][1] : total;
  const struct sight sight = {length,
                              call->sequences.skipped ? (size_t)call->sequences.skipped[s] : 0,
                              call->sequences.seen ? (size_t)call->sequences.seen[s] : length,
                              call->sequences.window,
                              call->bias.numbers != NULL,
                              0,
                              0,
                              0};
  double *qkv = malloc((length * stride + width) * sizeof *qkv), *context = qkv + length * stride;
  double *bias = malloc((total + 1) * sizeof *bias);
  char *visible = malloc(total + 1);
  CHECK(qkv != NULL && bias != NULL && visible != NULL);
  for (size_t i = 0; i < length; i++)
    reference_project(test, call, (size_t)call->sequences.first[s] + i, qkv + i * stride);
  double *key = tokens_of(test, call, s, follows ? call->past.caches->keys : NULL, past, qkv + width, stride);
  double *value =
      tokens_of(test, call, s, follows ? call->past.caches->values : NULL, past, qkv + width + keys, stride);
  for (size_t q = 0; q < length; q++) {
    const int all = call->sequences.padding_sees_all &&
                    (follows ? past + q < begin : q < sight.skipped || q >= sight.skipped + sight.seen);
    for (size_t head = 0; head < layer->heads; head++) {
      const double *query = qkv + q * stride + head * size;
      const size_t of_keys = head * layer->key_heads / layer->heads * size;
      for (size_t k = 0; k < total; k++) {
        const size_t place = past + q;
        const int near = k <= place && place - k <= sight.window;
        if (all)
          visible[k] = (char)(call->sequences.padding_sees_all == 1 || near);
        else
          visible[k] = (char)(follows ? k >= begin && k < end && near : sees(&sight, q, k));
        bias[k] = call->bias.numbers
                      ? call->bias.numbers[batch_of(call, s) * call->bias.batch + head * call->bias.head +
                                           (column + q) * call->bias.query + k]
                      : 0;
        bias[k] += layer->scale * distance_score(buckets, head, size, q, k, query, key + k * keys + of_keys);
        bias[k] = all ? 0 : bias[k];
      }
      for (size_t k = 0; k < past; k++) /* what nobody wrote may be no number */
        for (size_t i = 0; !visible[k] && i < size; i++)
          key[k * keys + of_keys + i] = value[k * keys + of_keys + i] = 0;
      reference_attention(query, key + of_keys, value + of_keys, keys, total, size, all ? 0 : layer->scale,
                          layer->softcap, visible, bias, layer->sinks == NULL ? NULL : layer->sinks + head,
                          context + head * size);
    }
    const size_t row = (size_t)call->sequences.first[s] + q;
    reference_finish(test, call, row, context, out + row * layer->hidden);
  }
  free(key);
  free(value);
  free(qkv);
  free(bias);
  free(visible);
}

/* |got - wanted| / |wanted|; both must be finite, and zero where no sequence is. */
static double difference(const struct test_layer *test, const struct call *call,
                         const struct buckets *buckets)
{
  const size_t count = call->sequences.rows * test->layer.hidden;
  double *wanted = calloc(count, sizeof *wanted), square = 0, size = 0;
  CHECK(wanted != NULL);
  for (size_t s = 0; s < call->sequences.count; s++)
    reference_sequence(test, call, buckets, s, wanted);
  for (size_t i = 0; i < count; i++) {
    CHECK(isfinite(call->output[i]) && (wanted[i] != 0 || call->output[i] == 0));
    square += (call->output[i] - wanted[i]) * (call->output[i] - wanted[i]);
    size += wanted[i] * wanted[i];
  }
  free(wanted);
  return sqrt(square / size);
}

/* Keys and values of the call are the same in all copies of a head. */
static void check_copies(const struct layer *layer, const struct call *call)
{
  const struct past *past = &call->past;
  for (size_t s = 0; s < call->sequences.count; s++)
    for (size_t row = 0; row < (size_t)call->sequences.length[s]; row++)
      for (size_t copy = 0; copy < layer->key_heads * layer->copies; copy++)
        for (size_t half = 0; half < 2; half++) {
          const void *numbers = half ? past->caches->values : past->caches->keys;
          const size_t token = cached_at(call, s) + (tokens_before(call, s) + row) * past->token;
          const size_t first = token + copy / layer->copies * layer->copies * past->head;
          for (size_t i = 0; i < layer->head_size; i++)
            CHECK(cached(past, numbers, token + copy * past->head, i, layer->head_size) ==
                  cached(past, numbers, first, i, layer->head_size));
        }
}

static int run_one(const struct layer *layer, const struct call *call, unsigned threads)
{
  return layers_run(&layer, 1, call, threads);
}

static double tolerance_of(const struct variant *variant, const struct call *call)
{
  if (variant->kind == KIND_F32 && call->past.number == NUMBER_I8)
    return 8e-3;
  const int bf16 = call->past.number == NUMBER_BF16 || call->encoded.number == NUMBER_BF16;
  if (variant->kind == KIND_F32 && bf16)
    return 2e-3; /* of keys and values */
  return variant->kind == KIND_F32 ? 1e-5 : variant->kind == KIND_BF16 ? 1e-2 : 3e-2;
}

static void test_layer(struct variant variant, size_t length, unsigned threads)
{
  const struct test_layer test = make_layer(&variant);
  const struct buckets buckets = buckets_of(&variant, length);
  struct call call = make_call(&variant, length, &buckets);
  if (variant.follows)
    call = following(&test, &variant, length, below(3) ? below(90) : below(1500));
  CHECK(run_one(&test.layer, &call, threads) == 0);
  if (variant.follows)
    check_copies(&test.layer, &call);
  const double far = difference(&test, &call, &buckets);
  if (far > tolerance_of(&variant, &call))
    fprintf(stderr, "kind %d, attention %d, length %zu: %g\n", (int)variant.kind, (int)variant.attention,
            length, far);
  CHECK(far <= tolerance_of(&variant, &call));
  guarded_release();
}

static const struct sizes odd[] = {
    {33, 1, 2, 65}, {64, 4, 16, 128}, {70, 3, 22, 131}, {96, 2, 6, 50}, {48, 4, 64, 97}};

static void test_variants(void)
{
  for (int i = 0; i < 60; i++) {
    const enum kind kind = (enum kind)(i % KINDS);
    const struct variant variant = {.kind = kind,
                                    .attention =
                                        kind == KIND_F32 || i % 4 == 0 || !DOT_BF16 ? KIND_F32 : KIND_BF16,
                                    .sizes = odd[below(5)],
                                    .gated = (int)below(2),
                                    .norm_first = (int)below(2),
                                    .rotary = (int)below(3),
                                    .biased = (int)below(2),
                                    .partly = (int)below(2),
                                    .relative = (int)below(6) - 2 > 0 ? (int)below(4) : 0,
                                    .sinks = (int)below(2),
                                    .window = below(2) ? SIZE_MAX : below(20),
                                    .activation = (enum activation)below(ACT_TANH)};
    available = 1 + (unsigned)below(4);
    test_layer(variant, 1 + below(40), 1 + (unsigned)below(4));
  }
}

/* Decoders: what a token sees lies in a cache, where keys and values of the call are added. */
static void test_with_past(void)
{
  for (int i = 0; i < 90; i++) {
    const enum kind kind = (enum kind)(i % KINDS);
    const struct sizes sizes = odd[below(5)];
    const size_t sharing = below(2) ? sizes.heads : sizes.heads % 2 || below(2) ? 1 : 2;
    const size_t key_heads = sizes.heads / sharing;
    const size_t groups = below(3) ? 0 : below(2) ? key_heads : key_heads % 2 ? 1 : key_heads / 2;
    const struct variant variant = {
        .kind = kind,
        .attention = kind == KIND_F32 || i % 4 == 0 || !DOT_BF16 ? KIND_F32 : KIND_BF16,
        .sizes = sizes,
        .sharing = sharing,
        .groups = groups,
        .copies = below(2) ? sharing : 1,
        .values_first = groups && below(2),
        .gated = (int)below(2),
        .norm_first = 1,
        .rotary = (int)below(3),
        .biased = (int)below(2),
        .partly = (int)below(2),
        .head_norms = (int)below(groups ? 2 : 3),
        .norms_rotated = (int)below(2),
        .ends = (int)below(4),
        .parallel = (int)below(2),
        .pairs = (int)below(2),
        .unrotated = below(8) == 0,
        .softcap = (int)below(2),
        .factor = (int)below(2),
        .sinks = (int)below(2),
        .follows = 1 + (int)below(3),
        .window = below(2) ? SIZE_MAX : below(40),
        .activation = below(8) ? (enum activation)below(ACT_TANH) : ACT_RELU_SQUARED};
    available = 1 + (unsigned)below(4);
    test_layer(variant, below(2) ? 1 : 1 + below(40), 1 + (unsigned)below(4));
  }
}

/* Decoders with an encoder, and with biases of their own tokens. */
static void test_with_encoder(void)
{
  for (int i = 0; i < 60; i++) {
    const enum kind kind = (enum kind)(i % KINDS);
    const struct variant variant = {.kind = kind,
                                    .attention =
                                        kind == KIND_F32 || i % 4 == 0 || !DOT_BF16 ? KIND_F32 : KIND_BF16,
                                    .sizes = odd[below(5)],
                                    .gated = (int)below(2),
                                    .norm_first = (int)below(2),
                                    .biased = (int)below(2),
                                    .partly = (int)below(2),
                                    .follows = 1 + (int)below(2),
                                    .crosses = (int)below(3),
                                    .window = SIZE_MAX,
                                    .activation = (enum activation)below(ACT_TANH)};
    available = 1 + (unsigned)below(4);
    test_layer(variant, below(2) ? 1 : 1 + below(40), 1 + (unsigned)below(4));
  }
}

static const struct variant plain = {
    .kind = KIND_F32, .sizes = {32, 2, 16, 64}, .window = SIZE_MAX, .activation = ACT_GELU};

/* More rows than a chunk has, more queries than a unit has, more rows than a block has. */
static void test_long_sequences(void)
{
  available = 2;
  test_layer(plain, 530, 2);
  test_layer(plain, 300, 1);
  for (int i = 0; i < 4; i++) { /* more rows than a chunk, in pieces that follow one another in the cache */
    struct variant variant = plain;
    variant.follows = 1;
    variant.partly = i % 2;
    variant.window = i < 2 ? SIZE_MAX : 700;
    test_layer(variant, 1200, 1);
  }
}

/* Attention wider than the layer, in int8: its rows are converted in the layer's memory. */
static void test_wide_attention(void)
{
  struct variant variant = plain;
  variant.kind = KIND_I8;
  variant.sizes = (struct sizes){16, 8, 64, 16};
  test_layer(variant, 100, 2);
}

static void test_nothing_to_do(void)
{
  const struct test_layer test = make_layer(&plain);
  struct call call = make_call(&plain, 4, &no_buckets);
  call.sequences.count = 0;
  CHECK(run_one(&test.layer, &call, 2) == 0);
  for (size_t i = 0; i < call.sequences.rows * 32; i++)
    CHECK(call.output[i] == 0);
  guarded_release();
}

/* Several layers at once give what they give one by one; kinds and widths may differ. */
static void test_stack(size_t count, unsigned threads)
{
  struct variant other = plain;
  other.kind = KIND_BF16;
  other.attention = DOT_BF16 ? KIND_BF16 : KIND_F32;
  other.sizes = (struct sizes){32, 4, 8, 96};
  const struct test_layer made[2] = {make_layer(&plain), make_layer(&other)};
  struct call call = make_call(&plain, 30, &no_buckets), single = call;
  const size_t numbers = call.sequences.rows * 32;
  const struct layer *layers[5];
  float *steps = guarded((count + 1) * numbers, sizeof *steps);
  memcpy(steps, call.input, numbers * sizeof *steps);
  for (size_t i = 0; i < count; i++) {
    layers[i] = &made[i % 2].layer;
    single.input = steps + i * numbers;
    single.output = steps + (i + 1) * numbers;
    CHECK(run_one(layers[i], &single, threads) == 0);
  }
  CHECK(layers_run(layers, count, &call, threads) == 0);
  CHECK(memcmp(call.output, steps + count * numbers, numbers * sizeof *steps) == 0);
  guarded_release();
}

static void test_stacks(void)
{
  available = 3;
  for (size_t count = 1; count <= 5; count++)
    for (unsigned threads = 1; threads <= 3; threads++)
      test_stack(count, threads);
}

/* A norm and a linear layer behind the layers give what they give when called on their own. */
static void test_tail(enum kind kind, int bf16, unsigned threads)
{
  const size_t hidden = 32, columns = 3 * PANEL - 5;
  const struct test_layer made = make_layer(&plain);
  const struct layer *layers[2] = {&made.layer, &made.layer};
  struct call call = make_call(&plain, 7, &no_buckets);
  const size_t rows = call.sequences.rows, size = bf16 ? sizeof(uint16_t) : sizeof(float);
  const struct matrix head = make_weight(kind, columns, hidden, 1).matrix;
  const struct norm norm = make_norm(hidden);
  char *expected = guarded(rows * columns, size), *got = guarded(rows * columns, size);
  CHECK(layers_run(layers, 2, &call, threads) == 0);
  for (size_t row = 0; row < rows; row++)
    norm_row(&norm, call.output + row * hidden, hidden, call.output + row * hidden);
  float *full = guarded(rows * columns, sizeof *full);
  CHECK(linear_run(&head, ACT_NONE, call.output, full, 0, rows, threads) == 0);
  for (size_t i = 0; i < rows * columns; i++)
    if (bf16)
      ((uint16_t *)expected)[i] = bf16_of(full[i]);
    else
      ((float *)expected)[i] = full[i];
  call.tail = (struct tail){norm, head, got, bf16};
  CHECK(layers_run(layers, 2, &call, threads) == 0);
  CHECK(memcmp(got, expected, rows * columns * size) == 0);
  guarded_release();
}

static void test_tails(void)
{
  available = 3;
  for (enum kind kind = 0; kind < KINDS; kind++)
    for (unsigned threads = 1; threads <= 3; threads++)
      for (int bf16 = 0; bf16 < 2; bf16++)
        test_tail(kind, bf16, threads);
}

static void *no_memory(size_t alignment, size_t size)
{
  (void)alignment, (void)size;
  return NULL;
}

static void test_no_memory(void)
{
  const struct test_layer test = make_layer(&plain);
  const struct call call = make_call(&plain, 4, &no_buckets);
  scratch_allocate = no_memory;
  CHECK(run_one(&test.layer, &call, 2) == ENOMEM);
  scratch_allocate = used_memory;
  guarded_release();
}

struct turn {
  const struct test_layer *test;
  struct call call;
};

static void *run_often(void *argument)
{
  const struct turn *turn = argument;
  for (int i = 0; i < 10; i++)
    CHECK(run_one(&turn->test->layer, &turn->call, 1 + (unsigned)i % 3) == 0);
  return NULL;
}

static void test_calls_at_once(void)
{
  const struct test_layer test = make_layer(&plain);
  struct turn turns[4];
  pthread_t threads[4];
  available = 2;
  for (int i = 0; i < 4; i++)
    turns[i] = (struct turn){&test, make_call(&plain, 20, &no_buckets)};
  for (int i = 0; i < 4; i++)
    CHECK(pthread_create(&threads[i], NULL, run_often, &turns[i]) == 0);
  for (int i = 0; i < 4; i++) {
    CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(difference(&test, &turns[i].call, &no_buckets) <= 1e-5);
  }
  guarded_release();
}

void test_layers(void)
{
  scratch_allocate = used_memory;
  test_variants();
  test_with_past();
  test_with_encoder();
  test_long_sequences();
  test_wide_attention();
  test_nothing_to_do();
  test_stacks();
  test_tails();
  test_no_memory();
  test_calls_at_once();
}
