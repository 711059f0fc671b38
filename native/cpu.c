#include "cpu.h"

#include <errno.h>

#include "os.h"

#define ARCH_GET_XCOMP_SUPP 0x1021 /* Linux 5.16 */

#if defined(__x86_64__)
#include <cpuid.h>

int cpu_saved_state(uint64_t *mask)
{
  unsigned eax, ebx, ecx, edx, low, high;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
    return ENOSYS;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  *mask = (uint64_t)high << 32 | low;
  return 0;
}

int cpu_requestable_state(uint64_t *mask)
{
  return os_arch_prctl(ARCH_GET_XCOMP_SUPP, mask);
}

#else

int cpu_saved_state(uint64_t *mask)
{
  return ENOSYS;
}

int cpu_requestable_state(uint64_t *mask)
{
  return ENOSYS;
}

#endif
