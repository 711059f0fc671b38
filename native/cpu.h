/* What the processor and the kernel let a program use of AVX-512 and AMX, beyond the flags that the kernel
 * lists: sandboxes and hypervisors show flags whose registers they do not save.
 *
 * 0 or an errno: ENOSYS on other processors, EINVAL from kernels or sandboxes that do not know the request.
 */
#pragma once
#include <stdint.h>

/* Register sets that the operating system saves (XCR0): bits 5 to 7 AVX-512, 17 and 18 AMX tiles. */
int cpu_saved_state(uint64_t *mask);

/* Register sets that a program may ask the kernel for (arch_prctl ARCH_GET_XCOMP_SUPP). Asks for none. */
int cpu_requestable_state(uint64_t *mask);
