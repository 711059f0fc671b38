#include "machine.h"

struct machine machine = {.block_bytes = 768 << 10};
