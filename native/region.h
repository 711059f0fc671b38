/* A region: one reservation of memory that wants huge pages.
 *
 * It is created whole and released whole; carving tensors out of it is the caller's business. A region
 * is not locked: create and release it from one thread at a time, read and write it from any.
 *
 * Advice that the kernel refuses is not a failure, because the memory works without it: the refusal is
 * kept in the struct so that a report can name it.
 */
#ifndef HFACCEL_REGION_H
#define HFACCEL_REGION_H

#include <stddef.h>

struct region {
  void *address;    /* first byte, aligned to OS_HUGE_PAGE_SIZE */
  size_t size;      /* bytes, a multiple of OS_HUGE_PAGE_SIZE */
  int advise_error; /* errno of MADV_HUGEPAGE; 0: granted, or not asked for */
  int name_error;   /* errno of naming the range; 0: named, smaps figures are exact */
};

/* Reserve at least `size` bytes (size > 0; rounded up to whole huge pages), with huge pages if
 * `huge` is not 0. On success 0, otherwise an errno value and *region is untouched. */
int region_create(struct region *region, size_t size, int huge);

/* Touch [offset, offset + size), so that no page fault is left in it. ERANGE: outside the region. */
int region_populate(const struct region *region, size_t offset, size_t size);

/* Give the memory back. A second call does nothing. */
int region_release(struct region *region);

#endif
