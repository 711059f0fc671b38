/* Tests of native/kernels, for one instruction set: each function against plain C. This file is compiled for
 * any CPU, and asks first. Run by `make check` under AddressSanitizer with UBSan, and under ThreadSanitizer.
 */
#include <stdio.h>

#include "kernel_tests.h"
#include "set.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

int main(void)
{
  if (set_lacks() != NULL) {
    printf("kernels for %s: skipped, the CPU lacks %s\n", TEXT(SET), set_lacks());
    return 0;
  }
  test_rows();
  test_embeddings();
  test_team();
  test_gemm();
  test_attention();
  test_layers();
  test_experts();
  test_mixtures();
  printf("kernels for %s: all tests passed\n", TEXT(SET));
  return 0;
}
