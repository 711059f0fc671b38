/* The malloc of this process: which library provides it, and the settings of glibc's malloc. */
#pragma once
#include <stddef.h>

/* Write the path of the library that `malloc` resolves to. 0; ENOENT: not found (a static program);
 * ENAMETOOLONG: `size` bytes do not hold it. */
int heap_owner(char *path, size_t size);

/* mallopt(3). 0; EINVAL: refused, or this libc has none. Takes effect only where glibc serves malloc. */
int heap_set_option(int option, int value);

/* Grow the heap by `size` bytes that are advised for huge pages, and leave them to malloc as its free top,
 * from which it allocates next. Nothing is touched. First set glibc's trim and mmap thresholds above `size`,
 * or the heap shrinks again at once.
 *
 * 0, with the address where the reserve begins; ENOMEM; ENOTSUP: malloc is not glibc's, or the calling thread
 * does not use the program's main heap; or the errno of MADV_HUGEPAGE, although the heap has grown. */
int heap_reserve(size_t size, void **address);

/* malloc_trim(3): give free memory back to the system. 1 if there was any. Then reserve again what
 * heap_reserve has reserved, untouched. Neither this nor heap_reserve may run in two threads at once. */
int heap_trim(void);
