/* Whether the processor and the kernel let a program use AVX-512 and AMX. The flags that the kernel lists do
 * not suffice: sandboxes and hypervisors show flags whose registers they do not save.
 *
 * Functions return 0 or an errno: ENOSYS on other processors, EINVAL from kernels or sandboxes that do not
 * know the request.
 */
#pragma once
#include <stdint.h>

/* Register sets that the operating system saves (XCR0): bits 5 to 7 AVX-512, 17 and 18 AMX tiles. */
int cpu_saved_state(uint64_t *mask);

/* Register sets that a program may request from the kernel (arch_prctl ARCH_GET_XCOMP_SUPP). Requests none.
 */
int cpu_requestable_state(uint64_t *mask);
