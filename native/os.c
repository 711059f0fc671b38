#define _GNU_SOURCE
#include "os.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; absent from older headers */
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif
#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif
#define MPOL_PREFERRED 1
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static int real_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
  return prctl(option, a, b, c, d);
}

static long real_syscall(long number, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
  return syscall(number, a, b, c, d, 0UL);
}

static long real_mbind(void *address, size_t size, int mode, const unsigned long *nodes,
                       unsigned long max_node)
{
  return syscall(SYS_mbind, address, size, mode, nodes, max_node, 0UL);
}

struct os_calls os_calls = {
    .mmap = mmap,
    .munmap = munmap,
    .madvise = madvise,
    .prctl = real_prctl,
    .mlock = mlock,
    .mbind = real_mbind,
    .syscall = real_syscall,
};

/* What most calls return: 0, or -1 with errno set. */
static int code_of(long result)
{
  return result == 0 ? 0 : errno;
}

int os_reserve(size_t size, void **address)
{
  const size_t slack = OS_HUGE_PAGE_SIZE;
  if (size == 0 || size % OS_HUGE_PAGE_SIZE != 0)
    return EINVAL;
  if (size > SIZE_MAX - slack)
    return ENOMEM;
  /* Some kernels align anonymous mappings, others do not (efa7df3e3bb5 in 6.7, narrowed by d4148aeab412 in
   * 6.12). Reserving one huge page more and cutting off both ends works with all of them. */
  /* Not MAP_NORESERVE: a request for more than this machine has must fail with ENOMEM now, instead of killing
   * the process at the first touch. */
  char *raw = os_calls.mmap(NULL, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED)
    return errno;
  const size_t head = (size_t)(-(uintptr_t)raw) % OS_HUGE_PAGE_SIZE;
  const size_t tail = slack - head;
  size_t trimmed = 0; /* bytes at the front that are no longer ours to unmap */
  int error = 0;
  if (head > 0 && os_calls.munmap(raw, head) != 0)
    error = errno;
  else
    trimmed = head;
  if (error == 0 && tail > 0 && os_calls.munmap(raw + head + size, tail) != 0)
    error = errno;
  if (error != 0) {
    os_calls.munmap(raw + trimmed, size + slack - trimmed);
    return error;
  }
  *address = raw + head;
  return 0;
}

int os_reserve_hugetlb(size_t size, size_t page_size, void **address)
{
  if (size == 0 || size % page_size != 0)
    return EINVAL;
  const int log2_size = __builtin_ctzl(page_size);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | log2_size << MAP_HUGE_SHIFT;
  void *memory = os_calls.mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED)
    return errno;
  *address = memory;
  return 0;
}

int os_release(void *address, size_t size)
{
  return code_of(os_calls.munmap(address, size));
}

int os_advise_huge(void *address, size_t size)
{
  return code_of(os_calls.madvise(address, size, MADV_HUGEPAGE));
}

int os_populate(void *address, size_t size)
{
  if (os_calls.madvise(address, size, MADV_POPULATE_WRITE) == 0)
    return 0;
  if (errno != EINVAL)
    return errno;
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  volatile char *bytes = address;
  for (size_t offset = 0; offset < size; offset += page)
    bytes[offset] = bytes[offset];
  return 0;
}

int os_collapse(void *address, size_t size)
{
  if (os_calls.madvise(address, size, MADV_COLLAPSE) == 0)
    return 0;
  if (errno != EAGAIN)
    return errno;
  return code_of(os_calls.madvise(address, size, MADV_COLLAPSE));
}

int os_prefer_nodes(void *address, size_t size, const unsigned long *nodes, unsigned long max_node)
{
  return code_of(os_calls.mbind(address, size, MPOL_PREFERRED, nodes, max_node));
}

int os_lock(void *address, size_t size)
{
  return code_of(os_calls.mlock(address, size));
}

int os_name(void *address, size_t size, const char *name)
{
  return code_of(os_calls.prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)address, (unsigned long)size,
                                (unsigned long)name));
}

int os_set_mempolicy(int mode, const unsigned long *nodes, unsigned long max_node)
{
  return code_of(os_calls.syscall(SYS_set_mempolicy, (unsigned long)mode, (unsigned long)nodes, max_node, 0));
}

int os_get_mempolicy(int *mode, unsigned long *nodes, unsigned long max_node)
{
  return code_of(os_calls.syscall(SYS_get_mempolicy, (unsigned long)mode, (unsigned long)nodes, max_node, 0));
}

int os_arch_prctl(int option, uint64_t *value)
{
#ifdef SYS_arch_prctl
  return code_of(os_calls.syscall(SYS_arch_prctl, (unsigned long)option, (unsigned long)value, 0, 0));
#else
  return ENOSYS;
#endif
}

int os_end_with_parent(int number)
{
  return code_of(os_calls.prctl(PR_SET_PDEATHSIG, (unsigned long)number, 0, 0, 0));
}

int os_count_event(uint32_t type, uint64_t config, int *file)
{
  struct perf_event_attr event = {
      .size = sizeof event,
      .type = type,
      .config = config,
      .inherit = 1,
      .exclude_kernel = 1, /* what perf_event_paranoid = 2, the usual value, allows */
      .exclude_hv = 1,
      .read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING,
  };
  const long any = -1; /* on any CPU; in no group */
  const long result =
      os_calls.syscall(SYS_perf_event_open, (unsigned long)&event, 0, (unsigned long)any, (unsigned long)any);
  if (result < 0)
    return errno;
  *file = (int)result;
  return 0;
}
