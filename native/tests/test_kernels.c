/* Tests of native/kernels: each function against plain C. This file is compiled for any CPU, and asks first.
 * Run by `make check` under AddressSanitizer with UBSan, and under ThreadSanitizer. */
#include "kernel_reference.h"

int main(void)
{
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    puts("kernels: skipped, the CPU has no AVX-512 (F, BW, DQ, VL)");
    return 0;
  }
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni"))
    puts("kernels: only in float32, the CPU has no AVX512_BF16 or no AVX512_VNNI");
  test_rows();
  test_embeddings();
  test_team();
  for (int amx = 0; amx < 2; amx++) {
    if (amx != (amx_use(amx) != 0)) {
      puts("kernels: without AMX, which the CPU does not have or the kernel refuses");
      break;
    }
    test_gemm();
    test_attention();
    test_layers();
  }
  puts("kernels: all tests passed");
  return 0;
}
