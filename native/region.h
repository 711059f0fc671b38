/* A region: one reservation of memory, on huge pages if possible.
 *
 * A region is created and released as a whole; the caller takes tensors from it. A region has no lock: only
 * one thread at a time may create or release it, any thread may read and write its memory.
 *
 * If the kernel refuses something that the memory works without, this is not a failure: the struct keeps the
 * refusal, so that a report can name it. After fork, the child has its own copy, as of any private memory.
 */
#pragma once
#include <stddef.h>

enum region_pages { REGION_PLAIN, REGION_THP, REGION_HUGETLB_2M, REGION_HUGETLB_1G };

struct region_wishes {
  enum region_pages pages;
  long node;  /* preferred NUMA node of the pages; -1: any */
  int locked; /* keep the pages in memory */
};

struct region {
  void *address;           /* first byte, aligned to OS_HUGE_PAGE_SIZE */
  size_t size;             /* bytes, a multiple of the page size */
  enum region_pages pages; /* granted; less than was wished for if there is an error below */
  int hugetlb_error;       /* errno of MAP_HUGETLB; 0: granted, or not asked for */
  int advise_error;        /* errno of MADV_HUGEPAGE; likewise */
  int node_error;          /* errno of mbind; likewise */
  int lock_error;          /* errno of mlock; likewise */
  int name_error;          /* errno of naming the range; 0: named, smaps figures are exact */
};

/* Reserve at least `size` bytes (size > 0; rounded up to whole pages). If the pool does not have explicit
 * huge pages, transparent ones are taken; if the kernel refuses these, plain ones. Returns 0, or an errno
 * value, and then *region is untouched. ERANGE: the node cannot exist. */
int region_create(struct region *region, size_t size, const struct region_wishes *wishes);

/* Touch [offset, offset + size), so that later accesses cause no page faults. ERANGE: outside the region. */
int region_populate(const struct region *region, size_t offset, size_t size);

/* Give the memory back. A second call does nothing. */
int region_release(struct region *region);
