/* AMX' instructions in plain C, for amx.c alone: tests of what is built on them run on CPUs without AMX. Sums
 * of bfloat16 are rounded after each product, which hardware does after pairs. */

static _Thread_local struct {
  struct shape shape;
  uint32_t words[REGISTERS][ROWS][ROW_BYTES / sizeof(uint32_t)];
} tile_state;

int amx_allowed(void)
{
  return 1;
}

static void emulate_load(size_t number, const void *base, size_t bytes)
{
  memset(tile_state.words[number], 0, sizeof tile_state.words[number]);
  for (size_t row = 0; row < tile_state.shape.rows[number]; row++)
    memcpy(tile_state.words[number][row], (const char *)base + row * bytes, ROW_BYTES);
}

static void emulate_store(size_t number, void *base, size_t bytes)
{
  for (size_t row = 0; row < tile_state.shape.rows[number]; row++)
    memcpy((char *)base + row * bytes, tile_state.words[number][row], ROW_BYTES);
}

static float half(uint32_t word, int upper)
{
  const uint32_t bits = upper ? word & 0xffff0000 : word << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static uint32_t tdpbf16ps(uint32_t sum, uint32_t a, uint32_t b)
{
  float x;
  memcpy(&x, &sum, sizeof x);
  x += half(a, 0) * half(b, 0);
  x += half(a, 1) * half(b, 1);
  memcpy(&sum, &x, sizeof x);
  return sum;
}

static uint32_t tdpbusd(uint32_t sum, uint32_t a, uint32_t b)
{
  for (unsigned shift = 0; shift < 32; shift += 8)
    sum += (uint32_t)((int32_t)(a >> shift & 0xff) * (int8_t)(b >> shift & 0xff));
  return sum;
}

static void emulate_multiply(uint32_t (*operation)(uint32_t, uint32_t, uint32_t), size_t sums, size_t a,
                             size_t b)
{
  for (size_t row = 0; row < tile_state.shape.rows[sums]; row++)
    for (size_t column = 0; column < ROWS; column++)
      for (size_t k = 0; k < ROWS; k++)
        tile_state.words[sums][row][column] = operation(
            tile_state.words[sums][row][column], tile_state.words[a][row][k], tile_state.words[b][k][column]);
}

#define LOAD(number, base, bytes) emulate_load(number, base, bytes)
#define STORE(number, base, bytes) emulate_store(number, base, bytes)
#define CLEAR(number) memset(tile_state.words[number], 0, sizeof tile_state.words[number])
#define MULTIPLY(operation, sums, a, b) emulate_multiply(operation, sums, a, b)
#define CONFIGURE(new_shape) (tile_state.shape = (new_shape))
#define RELEASE() memset(&tile_state, 0, sizeof tile_state)
