/* Transformer layers, and a call of some of them. */
#include "seam.h"

static int is_shaped(const struct matrix *matrix, size_t columns, size_t inputs)
{
  return matrix->columns == columns && matrix->inputs == inputs;
}

/* Whether there is no attention over an encoder, or one with as many heads as self-attention. */
static int fits_encoder(const struct layer *layer)
{
  const size_t width = layer->heads * layer->head_size;
  return layer->cross_query.columns == 0 ||
         (layer->key_heads == layer->heads && !layer->parallel && layer->groups == 1 && layer->added == 1 &&
          layer->attention_end.kind == NORM_NONE && layer->sinks == NULL &&
          is_shaped(&layer->cross_query, width, layer->hidden) &&
          is_shaped(&layer->cross_output, layer->hidden, width) && layer->cross_query.exact == NULL);
}

/* Whether each part takes what the one before it gives. */
static int fits(const struct layer *layer)
{
  const size_t hidden = layer->hidden, width = layer->heads * layer->head_size, wide = layer->up.columns;
  const size_t keys = layer->key_heads * layer->head_size;
  const size_t first = layer->joint ? width + 2 * keys : width, apart = layer->joint ? 0 : keys;
  return layer->key_heads > 0 && layer->heads % layer->key_heads == 0 && layer->groups > 0 &&
         layer->key_heads % layer->groups == 0 &&
         (layer->joint || (layer->groups == 1 && !layer->values_first)) && layer->copies > 0 &&
         is_shaped(&layer->query, first, hidden) &&
         (apart == 0 || (is_shaped(&layer->key, keys, hidden) && is_shaped(&layer->value, keys, hidden))) &&
         is_shaped(&layer->output, hidden, width) &&
         (layer->gate.columns == 0 || is_shaped(&layer->gate, wide, hidden)) &&
         (is_mixture(&layer->mixture) ? layer->mixture.experts.hidden == hidden && layer->norm_first &&
                                            !layer->parallel && layer->output_end.kind == NORM_NONE
                                      : wide > 0) &&
         (wide == 0 || (is_shaped(&layer->up, wide, hidden) && is_shaped(&layer->down, hidden, wide))) &&
         layer->query.exact == NULL && layer->key.exact == NULL && layer->value.exact == NULL &&
         layer->gate.exact == NULL && layer->up.exact == NULL &&
         (apart == 0 || (layer->query.kind == layer->key.kind && layer->query.kind == layer->value.kind)) &&
         !(layer->joint && layer->wide_norms) &&
         (layer->gate.columns == 0 || layer->gate.kind == layer->up.kind) && fits_encoder(layer) &&
         layer->head_size % kind_numbers(layer->attention) == 0;
}

/* Whether there are as many experts as the router chooses in the groups that it chooses. */
static int can_choose(const struct router *router, size_t experts)
{
  const size_t groups = router->groups;
  return router->weight != NULL && groups > 0 && experts % groups == 0 && router->chosen > 0 &&
         router->chosen_groups <= groups && router->chosen <= router->chosen_groups * (experts / groups) &&
         router->counted <= experts / groups;
}

/* Layer(attention, feed_forward, norms, residual[, crossing, mixture]), tuples as hfaccel/native.py names
 * their items; None for any of the norms, for key and value where query multiplies for all three, for gate,
 * up and down of a mixture without an expert of all tokens, and for an encoder that there is not */
int read_layer(PyObject *args, void *content)
{
  struct layer *layer = content;
  struct mixture *mixture = &layer->mixture;
  struct router *router = &mixture->router;
  const struct norm none = {.kind = NORM_NONE};
  int attention;
  layer->attention_norm = layer->output_norm = layer->cross_norm = none;
  layer->query_norm = layer->key_norm = layer->attention_end = layer->output_end = none;
  if (!PyArg_ParseTuple(
          args, "(O&O&O&O&O&iffO&pO&ppppO&)(O&O&O&O&)(O&O&O&O&O&O&)(ppf)|(O&O&O&)(O&(O&pO&O&pO&O&O&O&pff)O&)",
          to_matrix, &layer->query, to_matrix_or_none, &layer->key, to_matrix_or_none, &layer->value,
          to_matrix, &layer->output, to_size, &layer->head_size, &attention, &layer->scale, &layer->softcap,
          to_size, &layer->groups, &layer->values_first, to_size, &layer->copies, &layer->pairs,
          &layer->unrotated, &layer->wide_norms, &layer->norms_rotated, to_address, &layer->sinks,
          to_matrix_or_none, &layer->gate, to_matrix_or_none, &layer->up, to_matrix_or_none, &layer->down,
          to_activation, &layer->activation, to_norm_or_none, &layer->attention_norm, to_norm_or_none,
          &layer->output_norm, to_norm_or_none, &layer->query_norm, to_norm_or_none, &layer->key_norm,
          to_norm_or_none, &layer->attention_end, to_norm_or_none, &layer->output_end, &layer->norm_first,
          &layer->parallel, &layer->added, to_matrix_or_none, &layer->cross_query, to_matrix_or_none,
          &layer->cross_output, to_norm_or_none, &layer->cross_norm, to_experts_or_none, &mixture->experts,
          to_address, &router->weight, &router->bf16, to_address, &router->bias, to_address,
          &router->correction, &router->sigmoid, to_size, &router->chosen, to_size, &router->groups, to_size,
          &router->chosen_groups, to_size, &router->counted, &router->normalised, &router->least,
          &router->scale, to_address, &mixture->shared_gate))
    return 0;
  if (layer->head_size == 0 || (attention != KIND_F32 && !operand_is_bf16((enum kind)attention))) {
    PyErr_Format(PyExc_ValueError, "head_size above 0 and attention in %s must hold, but got %zu and %d",
                 DOT_BF16 ? "0, 1" : "0", layer->head_size, attention);
    return 0;
  }
  if (!must_hold(!is_mixture(mixture) || can_choose(router, mixture->experts.count),
                 "a router that chooses some of the experts"))
    return 0;
  layer->attention = (enum kind)attention;
  layer->hidden = layer->output.columns;
  layer->joint = layer->key.columns == 0 && layer->value.columns == 0;
  layer->heads = layer->output.inputs / layer->head_size;
  const size_t keys = layer->query.columns / layer->head_size - layer->heads; /* and values */
  layer->key_heads = layer->joint ? keys / 2 : layer->key.columns / layer->head_size;
  return must_hold(
      fits(layer),
      "shapes and kinds of the matrices that fit each other and head_size, and whole words in a head,");
}

/* Whether sequences lie one after another within the rows, and attention sees rows of theirs. */
static int lie_in_order(const struct sequences *all)
{
  int64_t end = 0;
  for (size_t s = 0; s < all->count; s++) {
    const int64_t first = all->first[s], length = all->length[s];
    if (first < end || length < 0 || first + length > (int64_t)all->rows)
      return 0;
    if (all->seen != NULL &&
        (all->skipped[s] < 0 || all->seen[s] < 0 || (int64_t)all->skipped[s] + all->seen[s] > length))
      return 0;
    end = first + length;
  }
  return 1;
}

/* Sequences(rows, count, first, length, skipped, seen, window, padding_sees_all); a window below 0 is none */
int read_sequences(PyObject *args, void *content)
{
  struct sequences *all = content;
  Py_ssize_t window;
  if (!PyArg_ParseTuple(args, "O&O&O&O&O&O&ni", to_size, &all->rows, to_size, &all->count, to_address,
                        &all->first, to_address, &all->length, to_address, &all->skipped, to_address,
                        &all->seen, &window, &all->padding_sees_all))
    return 0;
  all->window = window < 0 ? SIZE_MAX : (size_t)window;
  return must_hold(all->count == 0 || (all->first != NULL && all->length != NULL),
                   "addresses of first and length that are not 0") &&
         must_hold((all->skipped == NULL) == (all->seen == NULL), "skipped and seen together") &&
         must_hold(lie_in_order(all),
                   "sequences one after another within the rows, which see rows of theirs,");
}

/* Bias(numbers, head, query[, batch]) */
int read_bias(PyObject *args, void *content)
{
  struct bias *bias = content;
  return PyArg_ParseTuple(args, "O&O&O&|O&", to_address, &bias->numbers, to_size, &bias->head, to_size,
                          &bias->query, to_size, &bias->batch) &&
         must_hold(bias->numbers != NULL, "an address that is not 0");
}

/* Rotary(cosines, sines, angles, size) */
int read_rotary(PyObject *args, void *content)
{
  struct rotary *rotary = content;
  return PyArg_ParseTuple(args, "O&O&O&O&", to_address, &rotary->cosines, to_address, &rotary->sines, to_size,
                          &rotary->angles, to_size, &rotary->size) &&
         must_hold(rotary->cosines != NULL && rotary->sines != NULL && rotary->angles > 0,
                   "addresses of cosines and sines that are not 0, and angles above 0,");
}

/* Past(columns, length, batch, head, token, number, seen[, places]) */
int read_past(PyObject *args, void *content)
{
  struct past *past = content;
  return PyArg_ParseTuple(args, "O&O&O&O&O&O&O&|O&", to_size, &past->columns, to_size, &past->length, to_size,
                          &past->batch, to_size, &past->head, to_size, &past->token, to_number, &past->number,
                          to_address, &past->seen, to_address, &past->places) &&
         must_hold(past->columns > 0, "columns above 0") &&
         must_hold(past->seen == NULL || past->places == NULL, "seen or places, not both,");
}

/* Relative(keys, queries, buckets, index, reach) */
int read_relative(PyObject *args, void *content)
{
  struct relative *relative = content;
  return PyArg_ParseTuple(args, "O&O&O&O&O&", to_address, &relative->keys, to_address, &relative->queries,
                          to_size, &relative->buckets, to_address, &relative->index, to_size,
                          &relative->reach) &&
         must_hold(is_relative(relative) && relative->index != NULL && relative->buckets > 0,
                   "addresses of keys or queries and of index that are not 0, and buckets above 0,");
}

enum { MOST_LAYERS = 1024 };

/* The layers of a tuple of Layer, which must be of one hidden size; their number, or -1 with an error set. */
static Py_ssize_t take_layers(PyObject *tuple, const struct layer **layers)
{
  const Py_ssize_t count = PyTuple_Size(tuple);
  if (count < 1 || count > MOST_LAYERS) {
    PyErr_Format(PyExc_ValueError, "from 1 to %d layers can run, but got %zd", MOST_LAYERS, count);
    return -1;
  }
  for (Py_ssize_t i = 0; i < count; i++) {
    layers[i] = content_of(PyTuple_GetItem(tuple, i), LAYER);
    if (layers[i] == NULL || !must_hold(layers[i]->hidden == layers[0]->hidden,
                                        "the same hidden size of layers that follow one another"))
      return -1;
  }
  return count;
}

/* The addresses of keys and values of `count` layers, one after another in a tuple. */
static int take_caches(PyObject *tuple, struct cache *caches, Py_ssize_t count)
{
  if (!must_hold(PyTuple_Size(tuple) == 2 * count, "two addresses in caches for each layer"))
    return 0;
  for (Py_ssize_t i = 0; i < count; i++)
    if (!to_address(PyTuple_GetItem(tuple, 2 * i), &caches[i].keys) ||
        !to_address(PyTuple_GetItem(tuple, 2 * i + 1), &caches[i].values) ||
        !must_hold(caches[i].keys != NULL && caches[i].values != NULL, "addresses that are not 0"))
      return 0;
  return 1;
}

/* Whether the tokens of a sequence follow one another in one sequence of the cache. */
static int has_places(const struct sequences *all, const struct past *past, size_t s)
{
  const int32_t first = all->first[s], length = all->length[s], (*places)[2] = past->places + first;
  if (length < 1 || (size_t)length > past->columns || places[0][0] < 0 || places[0][1] < 0 ||
      (size_t)places[0][1] > past->length)
    return 0;
  for (int32_t row = 1; row < length; row++)
    if (places[row][0] != places[0][0] || places[row][1] != places[0][1] + row)
      return 0;
  return 1;
}

/* Whether a sequence lies within its rows of the batch, and its last token sees one. */
static int follows_past(const struct sequences *all, const struct past *past, size_t s)
{
  if (past->places != NULL)
    return has_places(all, past, s);
  const size_t column = (size_t)all->first[s] % past->columns, length = (size_t)all->length[s];
  if (column + length > past->columns)
    return 0;
  if (past->seen == NULL)
    return 1;
  const int32_t first = past->seen[s][0], end = past->seen[s][1];
  return first >= 0 && first < end && (size_t)first < past->length + column + length;
}

static int follow_past(const struct sequences *all, const struct past *past)
{
  for (size_t s = 0; s < all->count; s++)
    if (!follows_past(all, past, s))
      return 0;
  return all->seen == NULL;
}

static int is_rotated(const struct layer *layer, const struct rotary *rotary)
{
  return rotary->cosines == NULL || (rotary->size % 2 == 0 && rotary->size <= layer->head_size);
}

static int are_rotated(const struct layer *const *layers, Py_ssize_t count, const struct call *call)
{
  for (Py_ssize_t i = 0; i < count; i++)
    if (!is_rotated(layers[i], call->rotaries == NULL ? &call->rotary : call->rotaries + i))
      return 0;
  return 1;
}

/* Rotary, None, or a tuple of these with one for each layer, which goes to `rotaries`. */
static int take_rotaries(PyObject *given, Py_ssize_t count, struct call *call, struct rotary *rotaries)
{
  if (!PyTuple_Check(given))
    return to_rotary_or_none(given, &call->rotary);
  if (!must_hold(PyTuple_Size(given) == count, "rotary positions for each layer"))
    return 0;
  for (Py_ssize_t i = 0; i < count; i++) {
    rotaries[i] = (struct rotary){0};
    if (!to_rotary_or_none(PyTuple_GetItem(given, i), rotaries + i))
      return 0;
  }
  call->rotaries = rotaries;
  return 1;
}

/* Whether keys and values are in bfloat16 or bytes, if the layers multiply in bfloat16. */
static int suit_cache(const struct layer *const *layers, Py_ssize_t count, const struct past *past)
{
  for (Py_ssize_t i = 0; i < count; i++)
    if (layers[i]->attention == KIND_BF16 && past->number == NUMBER_F32)
      return 0;
  return 1;
}

/* Whether all layers can attend to an encoder. */
static int can_cross(const struct layer *const *layers, Py_ssize_t count)
{
  for (Py_ssize_t i = 0; i < count; i++)
    if (!layer_crosses(layers[i]))
      return 0;
  return 1;
}

/* Whether each text of an encoder shows tokens of its own. `texts`: addresses of their spans are known for
 * as many. */
static int show_tokens(const struct past *encoded, size_t texts)
{
  for (size_t t = 0; encoded->seen != NULL && t < texts; t++)
    if (encoded->seen[t][0] < 0 || encoded->seen[t][0] >= encoded->seen[t][1] ||
        (size_t)encoded->seen[t][1] > encoded->length)
      return 0;
  return encoded->length > 0;
}

/* What layers attend to besides their own tokens, if they do. */
static int take_encoded(PyObject *addresses, const struct layer *const *layers, Py_ssize_t count,
                        struct call *call, struct cache *caches)
{
  if (call->encoded.columns == 0)
    return 1;
  if (!must_hold(can_cross(layers, count), "layers with weights for an encoder's keys") ||
      !must_hold(call->past.columns > 0 && call->past.columns == call->encoded.columns,
                 "as many columns of the past as beside an encoder") ||
      !must_hold(addresses != NULL, "caches beside an encoder") || !take_caches(addresses, caches, count) ||
      !must_hold(
          show_tokens(&call->encoded, (call->sequences.rows + call->past.columns - 1) / call->past.columns),
          "texts of an encoder that show tokens of theirs") ||
      !must_hold(suit_cache(layers, count, &call->encoded), "a cache in bfloat16 where attention is"))
    return 0;
  call->encoded.caches = caches;
  return 1;
}

/* run_layers(layers, threads, input, output, sequences, bias, rotary, relative[, past, caches[, encoded,
 * encoded's caches[, tail]]]) -> None; None for any of the objects after sequences. rotary may be a tuple
 * with one for each layer; tail is (norm, matrix, output, bf16) */
PyObject *run_layers(PyObject *module, PyObject *args)
{
  PyObject *tuple;
  unsigned threads;
  PyObject *addresses = NULL, *of_encoder = NULL, *rotary;
  struct call call = {0};
  if (!PyArg_ParseTuple(args, "O!O&O&O&O&O&OO&|O&O!O&O!(O&O&O&p)", &PyTuple_Type, &tuple, to_threads,
                        &threads, to_address, &call.input, to_address, &call.output, to_sequences,
                        &call.sequences, to_bias_or_none, &call.bias, &rotary, to_relative_or_none,
                        &call.relative, to_past_or_none, &call.past, &PyTuple_Type, &addresses,
                        to_past_or_none, &call.encoded, &PyTuple_Type, &of_encoder, to_norm, &call.tail.norm,
                        to_matrix, &call.tail.head, to_address, &call.tail.output, &call.tail.bf16))
    return NULL;
  const struct layer *layers[MOST_LAYERS];
  struct cache caches[MOST_LAYERS], encoded[MOST_LAYERS];
  struct rotary rotaries[MOST_LAYERS];
  const Py_ssize_t count = take_layers(tuple, layers);
  if (count < 0 || !must_hold(call.sequences.rows == 0 || (call.input != NULL && call.output != NULL),
                              "addresses that are not 0"))
    return NULL;
  if (!take_rotaries(rotary, count, &call, rotaries) ||
      !must_hold(are_rotated(layers, count, &call), "an even size of rotary positions within a head"))
    return NULL;
  if (call.past.columns > 0) {
    if (!must_hold(addresses != NULL, "caches beside the past") || !take_caches(addresses, caches, count) ||
        !must_hold(follow_past(&call.sequences, &call.past),
                   "sequences within their columns that see a token") ||
        !must_hold(suit_cache(layers, count, &call.past),
                   "no cache in float32 where attention is in bfloat16"))
      return NULL;
    call.past.caches = caches;
  }
  const struct matrix *head = &call.tail.head;
  if (!take_encoded(of_encoder, layers, count, &call, encoded) ||
      !must_hold(head->columns == 0 || (call.tail.output != NULL && head->inputs == layers[0]->hidden),
                 "a tail with an output, and inputs of the layers' hidden size,"))
    return NULL;
  int error;
  Py_BEGIN_ALLOW_THREADS;
  error = layers_run(layers, (size_t)count, &call, threads);
  Py_END_ALLOW_THREADS;
  return done(error);
}
