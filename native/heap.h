/* The malloc of this process: who it is, and glibc's settings where it is glibc's. */
#pragma once
#include <stddef.h>

/* Write the path of the library that `malloc` resolves to. 0; ENOENT: not found (a static program);
 * ENAMETOOLONG: `size` bytes do not hold it. */
int heap_owner(char *path, size_t size);

/* mallopt(3). 0; EINVAL: refused, or this libc has none. Takes effect only where glibc serves malloc. */
int heap_set_option(int option, int value);

/* Let the heap grow by `size` bytes that ask for huge pages, and leave them to malloc as its free top: what
 * it gives out next lies there. Nothing is touched. Set glibc's trim and mmap thresholds above `size` before,
 * or the heap shrinks again at once.
 *
 * 0, with the address where the reserve begins; ENOMEM; ENOTSUP: malloc is not glibc's, or the calling thread
 * does not use the program's main heap; or the errno of MADV_HUGEPAGE, with the heap grown all the same. */
int heap_reserve(size_t size, void **address);

/* malloc_trim(3): give free memory back to the system. 1 if there was any. What was reserved is reserved
 * again, and is untouched then. Neither this nor heap_reserve may run in two threads at once. */
int heap_trim(void);
