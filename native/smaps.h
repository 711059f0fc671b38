/* What the kernel really gave: /proc/self/smaps, summed over an address range.
 *
 * The kernel reports per mapping, not per page. A mapping that lies only partly in the range counts by
 * the share that does; regions carry names of their own, so theirs lie wholly in it.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct smaps_sum {
  size_t resident;  /* bytes present in memory (Rss) */
  size_t anon_huge; /* bytes of anonymous memory on 2 MiB pages (AnonHugePages) */
  size_t file_huge; /* bytes of file and shared mappings on 2 MiB pages (FilePmdMapped, ShmemPmdMapped) */
};

/* Sum over [address, address + size) what the smaps text at `path` says. 0, or an errno value. */
int smaps_sum(const char *path, uintptr_t address, size_t size, struct smaps_sum *sum);
