/* The pages that the kernel really gave: /proc/self/smaps, summed over an address range.
 *
 * The kernel reports mappings, not pages. A mapping that lies partly in the range counts in proportion. A
 * region has a name of its own, so its mapping lies entirely in the region's range.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct smaps_sum {
  size_t resident;  /* bytes present in memory (Rss) */
  size_t anon_huge; /* bytes of anonymous memory on 2 MiB pages (AnonHugePages) */
  size_t file_huge; /* bytes of file and shared mappings on 2 MiB pages (FilePmdMapped, ShmemPmdMapped) */
};

/* Sum the figures of the smaps text at `path` over [address, address + size). 0, or an errno value. */
int smaps_sum(const char *path, uintptr_t address, size_t size, struct smaps_sum *sum);
