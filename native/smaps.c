#include "smaps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static uintptr_t overlap(uintptr_t a_start, uintptr_t a_end, uintptr_t b_start, uintptr_t b_end)
{
  const uintptr_t start = a_start > b_start ? a_start : b_start;
  const uintptr_t end = a_end < b_end ? a_end : b_end;
  return end > start ? end - start : 0;
}

/* If the line has this key, add its kilobytes to *total, multiplied by `share`. */
static void add(const char *line, const char *key, double share, size_t *total)
{
  size_t kilobytes;
  const size_t length = strlen(key);
  if (strncmp(line, key, length) == 0 && sscanf(line + length, " %zu", &kilobytes) == 1)
    *total += (size_t)((double)kilobytes * 1024 * share);
}

int smaps_sum(const char *path, uintptr_t address, size_t size, struct smaps_sum *sum)
{
  FILE *file = fopen(path, "re");
  if (file == NULL)
    return errno;
  char line[512]; /* a longer line, with a long file name, is read in pieces; no piece looks like a key */
  double share = 0;
  memset(sum, 0, sizeof *sum);
  while (fgets(line, sizeof line, file) != NULL) {
    uintptr_t start, end;
    if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) == 2 && end > start) {
      share = (double)overlap(start, end, address, address + size) / (double)(end - start);
      continue;
    }
    if (share == 0)
      continue;
    add(line, "Rss:", share, &sum->resident);
    add(line, "AnonHugePages:", share, &sum->anon_huge);
    add(line, "FilePmdMapped:", share, &sum->file_huge);
    add(line, "ShmemPmdMapped:", share, &sum->file_huge);
  }
  const int error = ferror(file) ? EIO : 0;
  fclose(file);
  return error;
}
