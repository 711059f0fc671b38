/* The whole test framework: what does not hold is printed, and ends the tests. */
#pragma once
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #condition);                          \
      exit(1);                                                                                               \
    }                                                                                                        \
  } while (0)
