/* A region: one reservation of memory that wants huge pages.
 *
 * It is created whole and released whole; carving tensors out of it is the caller's business. A region
 * is not locked: create and release it from one thread at a time, read and write it from any.
 *
 * What the kernel refuses is not a failure as long as the memory works without it: the refusal is kept in the
 * struct so that a report can name it. After fork the child has its own copy, as of any private memory.
 */
#pragma once
#include <stddef.h>

enum region_pages { REGION_PLAIN, REGION_THP, REGION_HUGETLB_2M, REGION_HUGETLB_1G };

struct region_wishes {
  enum region_pages pages;
  long node;  /* NUMA node that pages shall come from; -1: any */
  int locked; /* keep it in memory */
};

struct region {
  void *address;           /* first byte, aligned to OS_HUGE_PAGE_SIZE */
  size_t size;             /* bytes, whole pages of its kind */
  enum region_pages pages; /* what it is made of: less than was wished for where there is an error below */
  int hugetlb_error;       /* errno of MAP_HUGETLB; 0: granted, or not asked for */
  int advise_error;        /* errno of MADV_HUGEPAGE; likewise */
  int node_error;          /* errno of mbind; likewise */
  int lock_error;          /* errno of mlock; likewise */
  int name_error;          /* errno of naming the range; 0: named, smaps figures are exact */
};

/* Reserve at least `size` bytes (size > 0; rounded up to whole pages). Explicit huge pages that the pool does
 * not have become transparent ones, those that the kernel refuses plain ones. On success 0, otherwise an
 * errno value and *region is untouched. ERANGE: no such node can exist. */
int region_create(struct region *region, size_t size, const struct region_wishes *wishes);

/* Touch [offset, offset + size), so that no page fault is left in it. ERANGE: outside the region. */
int region_populate(const struct region *region, size_t offset, size_t size);

/* Give the memory back. A second call does nothing. */
int region_release(struct region *region);
