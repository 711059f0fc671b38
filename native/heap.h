/* The malloc of this process: who it is, and glibc's settings where it is glibc's. */
#ifndef HFACCEL_HEAP_H
#define HFACCEL_HEAP_H

#include <stddef.h>

/* Write the path of the library that `malloc` resolves to. 0; ENOENT: not found (a static program);
 * ENAMETOOLONG: `size` bytes do not hold it. */
int heap_owner(char *path, size_t size);

/* mallopt(3). 0; EINVAL: refused, or this libc has none. Takes effect only where glibc serves malloc. */
int heap_set_option(int option, int value);

#endif
