/* Tests of native/: one function a subject, each system call made to fail in turn. Run by `make check`
 * under AddressSanitizer with UBSan, and under ThreadSanitizer. */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "cpu.h"
#include "heap.h"
#include "os.h"
#include "policy.h"
#include "region.h"
#include "smaps.h"

/* --- failing system calls ------------------------------------------------------------------------ */

static const struct region_wishes thp = {.pages = REGION_THP, .node = -1};
static const struct region_wishes plain = {.pages = REGION_PLAIN, .node = -1};

static struct os_calls real;
static int fail_with;
static int fail_advice;    /* which advice fails; others pass */
static int fail_munmap_at; /* which munmap, counted from 1, fails */
static int munmap_count;

static void *failing_mmap(void *address, size_t size, int protection, int flags, int file, long offset)
{
  (void)address, (void)size, (void)protection, (void)flags, (void)file, (void)offset;
  errno = fail_with;
  return MAP_FAILED;
}

static int failing_munmap(void *address, size_t size)
{
  if (++munmap_count == fail_munmap_at) {
    errno = fail_with;
    return -1;
  }
  return real.munmap(address, size);
}

static int failing_madvise(void *address, size_t size, int advice)
{
  if (advice == fail_advice) {
    errno = fail_with;
    return -1;
  }
  return real.madvise(address, size, advice);
}

static int failing_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
  (void)option, (void)a, (void)b, (void)c, (void)d;
  errno = fail_with;
  return -1;
}

static int failing_mlock(const void *address, size_t size)
{
  (void)address, (void)size;
  errno = fail_with;
  return -1;
}

static long failing_mbind(void *address, size_t size, int mode, const unsigned long *nodes,
                          unsigned long max_node)
{
  (void)address, (void)size, (void)mode, (void)nodes, (void)max_node;
  errno = fail_with;
  return -1;
}

static long failing_syscall(long number, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
  (void)number, (void)a, (void)b, (void)c, (void)d;
  errno = fail_with;
  return -1;
}

static const int all_errors[] = {EPERM, ENOMEM, ENOSYS, EINVAL};
#define FOR_EACH_ERROR for (size_t i = 0; i < 4 && (fail_with = all_errors[i]); i++)

/* --- tests --------------------------------------------------------------------------------------- */

static void test_create_aligns_and_rounds_up(void)
{
  const size_t sizes[] = {1, 4096, OS_HUGE_PAGE_SIZE, OS_HUGE_PAGE_SIZE + 1, 7 * OS_HUGE_PAGE_SIZE};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    struct region region;
    CHECK(region_create(&region, sizes[i], &thp) == 0);
    CHECK((uintptr_t)region.address % OS_HUGE_PAGE_SIZE == 0);
    CHECK(region.size % OS_HUGE_PAGE_SIZE == 0 && region.size >= sizes[i]);
    CHECK(region.size - sizes[i] < OS_HUGE_PAGE_SIZE);
    memset(region.address, 0x5a, region.size);
    CHECK(region_release(&region) == 0);
    CHECK(region_release(&region) == 0);
  }
}

static void test_absurd_sizes_are_refused(void)
{
  struct region region;
  void *address;
  CHECK(region_create(&region, 0, &thp) == EINVAL);
  CHECK(region_create(&region, SIZE_MAX, &thp) == ENOMEM);
  CHECK(region_create(&region, SIZE_MAX / 2, &thp) == ENOMEM);
  CHECK(os_reserve(0, &address) == EINVAL);
  CHECK(os_reserve(4096, &address) == EINVAL);
  CHECK(os_reserve(SIZE_MAX / OS_HUGE_PAGE_SIZE * OS_HUGE_PAGE_SIZE, &address) == ENOMEM);
}

static void test_populate_makes_pages_present_and_keeps_content(void)
{
  struct region region;
  struct smaps_sum sum;
  CHECK(region_create(&region, 2 * OS_HUGE_PAGE_SIZE, &plain) == 0);
  ((char *)region.address)[5000] = 7;
  CHECK(region_populate(&region, 0, region.size) == 0);
  CHECK(((char *)region.address)[5000] == 7);
  CHECK(smaps_sum("/proc/self/smaps", (uintptr_t)region.address, region.size, &sum) == 0);
  CHECK(region.name_error != 0 || sum.resident == region.size);
  CHECK(region_populate(&region, 5000, 10) == 0);
  CHECK(region_populate(&region, region.size, 0) == 0);
  CHECK(region_populate(&region, region.size, 1) == ERANGE);
  CHECK(region_populate(&region, SIZE_MAX, 2) == ERANGE);
  CHECK(region_populate(&region, 1, SIZE_MAX) == ERANGE);
  CHECK(region_release(&region) == 0);
}

static void test_each_call_may_fail(void)
{
  FOR_EACH_ERROR
  {
    struct region region = {0};
    os_calls.mmap = failing_mmap;
    CHECK(region_create(&region, 1, &thp) == fail_with);
    CHECK(region.address == NULL);
    os_calls = real;

    os_calls.munmap = failing_munmap; /* trimming the reservation: what is left of it is given back */
    for (fail_munmap_at = 1; fail_munmap_at <= 2; fail_munmap_at++) {
      munmap_count = 0;
      const int error = region_create(&region, 1, &thp);
      if (error == 0) { /* an aligned reservation has one end to trim, not two */
        CHECK(fail_munmap_at == 2 && munmap_count == 1);
        CHECK(region_release(&region) == fail_with);
        CHECK(real.munmap(region.address, region.size) == 0);
        region.address = NULL;
        continue;
      }
      CHECK(error == fail_with && region.address == NULL);
      CHECK(munmap_count == fail_munmap_at + 1);
    }
    fail_munmap_at = 1;
    os_calls = real;

    os_calls.prctl = failing_prctl;
    CHECK(region_create(&region, 1, &thp) == 0);
    CHECK(region.name_error == fail_with && region.advise_error == 0);
    os_calls = real;
    CHECK(region_release(&region) == 0);

    os_calls.madvise = failing_madvise;
    fail_advice = MADV_HUGEPAGE;
    CHECK(region_create(&region, 1, &thp) == 0);
    CHECK(region.advise_error == fail_with);
    memset(region.address, 1, region.size);

    fail_advice = 23; /* MADV_POPULATE_WRITE: EINVAL is an old kernel, pages are touched instead */
    CHECK(region_populate(&region, 0, region.size) == (fail_with == EINVAL ? 0 : fail_with));
    CHECK(((char *)region.address)[4096] == 1);
    os_calls = real;

    os_calls.munmap = failing_munmap;
    munmap_count = 0;
    CHECK(region_release(&region) == fail_with);
    CHECK(region.address != NULL);
    os_calls = real;
    CHECK(region_release(&region) == 0);
  }
}

static void test_wishes_that_are_refused_leave_memory_that_works(void)
{
  const struct region_wishes all = {.pages = REGION_HUGETLB_2M, .node = 0, .locked = 1};
  FOR_EACH_ERROR
  {
    struct region region = {0};
    os_calls.mbind = failing_mbind;
    os_calls.mlock = failing_mlock;
    os_calls.madvise = failing_madvise;
    fail_advice = MADV_HUGEPAGE;
    CHECK(region_create(&region, 1, &all) == 0);
    CHECK(region.node_error == fail_with && region.lock_error == fail_with);
    if (region.pages != REGION_HUGETLB_2M) { /* the pool is empty, as on most machines */
      CHECK(region.pages == REGION_PLAIN && region.hugetlb_error != 0 && region.advise_error == fail_with);
    }
    memset(region.address, 1, region.size);
    os_calls = real;
    CHECK(region_release(&region) == 0);
  }
}

static int mmap_count;
static int hugetlb_flags;

/* Plain memory where explicit huge pages are asked for: what a machine with a pool does. */
static void *mmap_without_hugetlb(void *address, size_t size, int protection, int flags, int file,
                                  long offset)
{
  mmap_count++;
  if (flags & MAP_HUGETLB)
    hugetlb_flags = flags;
  return real.mmap(address, size, protection, flags & 0x3ffff, file, offset);
}

static void test_hugetlb_pages_are_touched_at_once_or_given_back(void)
{
  const struct region_wishes small = {.pages = REGION_HUGETLB_2M, .node = -1};
  const struct region_wishes large = {.pages = REGION_HUGETLB_1G, .node = -1};
  struct region region;
  struct smaps_sum sum;
  os_calls.mmap = mmap_without_hugetlb;
  CHECK(region_create(&region, 1, &small) == 0 && region.pages == REGION_HUGETLB_2M);
  CHECK(hugetlb_flags >> 26 == 21 && region.size == OS_HUGE_PAGE_SIZE);
  CHECK(smaps_sum("/proc/self/smaps", (uintptr_t)region.address, region.size, &sum) == 0);
  CHECK(region.name_error != 0 || sum.resident == region.size);
  CHECK(region_release(&region) == 0);

  os_calls.madvise = failing_madvise; /* the cgroup allows none: transparent pages instead */
  fail_advice = 23;
  fail_with = ENOMEM;
  mmap_count = 0;
  CHECK(region_create(&region, 1, &large) == 0 && region.pages == REGION_THP);
  CHECK(hugetlb_flags >> 26 == 30 && mmap_count == 2);
  CHECK(region.hugetlb_error == ENOMEM && region.advise_error == 0 && region.size == OS_HUGE_PAGE_SIZE);
  os_calls = real;
  CHECK(region_release(&region) == 0);
}

static void test_a_node_that_cannot_exist_is_refused(void)
{
  const struct region_wishes far = {.pages = REGION_THP, .node = POLICY_MAX_NODES};
  struct region region = {0};
  CHECK(region_create(&region, 1, &far) == ERANGE && region.address == NULL);
}

static int collapse_count, collapse_error;

static int counting_madvise(void *address, size_t size, int advice)
{
  (void)address, (void)size;
  CHECK(advice == 25); /* MADV_COLLAPSE */
  errno = collapse_error;
  return ++collapse_count == 1 ? -1 : 0;
}

static void test_collapse_is_tried_twice_when_the_kernel_is_busy(void)
{
  os_calls.madvise = counting_madvise;
  collapse_error = EAGAIN, collapse_count = 0;
  CHECK(os_collapse(NULL, 0) == 0 && collapse_count == 2);
  collapse_error = EINVAL, collapse_count = 0;
  CHECK(os_collapse(NULL, 0) == EINVAL && collapse_count == 1);
  os_calls = real;
}

static void test_smaps_sums_the_share_in_range(void)
{
  char path[] = "/tmp/hfaccel-smaps-XXXXXX";
  const int descriptor = mkstemp(path);
  FILE *file = fdopen(descriptor, "w");
  struct smaps_sum sum;
  CHECK(file != NULL);
  fputs("1000-3000 rw-p 00000000 00:00 0 [anon:hfaccel 0]\nSize: 8 kB\nRss: 8 kB\nAnonHugePages: 4 kB\n"
        "3000-5000 rw-p 00000000 00:00 0\nRss: 6 kB\nAnonHugePages: 2 kB\nShmemPmdMapped: 4 "
        "kB\nFilePmdMapped: 6 kB\n"
        "noise\nRss:\nRss: many kB\n",
        file);
  fclose(file);
  CHECK(smaps_sum(path, 0x1000, 0x2000, &sum) == 0);
  CHECK(sum.resident == 8192 && sum.anon_huge == 4096 && sum.file_huge == 0);
  CHECK(smaps_sum(path, 0x2000, 0x2000, &sum) == 0);
  CHECK(sum.resident == 4096 + 3072 && sum.anon_huge == 2048 + 1024 && sum.file_huge == 3072 + 2048);
  CHECK(smaps_sum(path, 0x9000, 0x1000, &sum) == 0);
  CHECK(sum.resident == 0);
  unlink(path);
  CHECK(smaps_sum(path, 0, 1, &sum) == ENOENT);
}

static void test_heap(void)
{
  char path[4096];
  CHECK(heap_owner(path, sizeof path) == 0 && path[0] != 0);
  CHECK(heap_owner(path, 1) == ENAMETOOLONG);
  void *address;
  CHECK(heap_reserve(1, &address) == EINVAL);
  CHECK(heap_reserve(SIZE_MAX, &address) == EINVAL);
  const int error = heap_reserve(4 * OS_HUGE_PAGE_SIZE, &address); /* the sanitizers' malloc is not glibc's */
  CHECK(error == 0 || error == ENOTSUP || error == EINVAL);
  heap_trim();
}

static void test_policy_is_set_and_read_back(void)
{
  struct policy node0 = {.mode = POLICY_PREFERRED}, none = {.mode = POLICY_DEFAULT}, seen;
  CHECK(policy_add_node(&node0, 0) == 0);
  CHECK(policy_add_node(&node0, POLICY_MAX_NODES) == ERANGE);
  CHECK(policy_has_node(&node0, 0) && !policy_has_node(&node0, 1));
  CHECK(!policy_has_node(&node0, POLICY_MAX_NODES));
  const int error = policy_set(&node0);
  if (error == EPERM || error == ENOSYS)
    return; /* forbidden in this container: what a container does is what is to be lived with */
  CHECK(error == 0);
  CHECK(policy_get(&seen) == 0 && seen.mode == POLICY_PREFERRED && policy_has_node(&seen, 0));
  CHECK(policy_set(&none) == 0);
  CHECK(policy_get(&seen) == 0 && seen.mode == POLICY_DEFAULT && !policy_has_node(&seen, 0));
  struct policy absent = {.mode = POLICY_PREFERRED};
  CHECK(policy_add_node(&absent, POLICY_MAX_NODES - 1) == 0);
  CHECK(policy_set(&absent) == EINVAL);
}

static void test_policy_and_processor_calls_may_fail(void)
{
  FOR_EACH_ERROR
  {
    struct policy policy = {.mode = POLICY_INTERLEAVE};
    uint64_t mask;
    os_calls.syscall = failing_syscall;
    CHECK(policy_set(&policy) == fail_with);
    CHECK(policy_get(&policy) == fail_with);
    int file;
    CHECK(os_count_event(1, 2, &file) == fail_with);
    os_calls.prctl = failing_prctl;
    CHECK(os_end_with_parent(0) == fail_with);
#ifdef __x86_64__
    CHECK(cpu_requestable_state(&mask) == fail_with);
#else
    CHECK(cpu_requestable_state(&mask) == ENOSYS);
#endif
    os_calls = real;
  }
}

static void test_page_faults_of_this_process_are_counted(void)
{
  int file;
  const int error = os_count_event(1, 2, &file); /* PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS */
  if (error != 0) {
    CHECK(error == EACCES || error == EPERM || error == ENOSYS); /* forbidden here */
    return;
  }
  void *memory = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  for (int page = 0; page < 64; page++)
    ((volatile char *)memory)[page * 4096] = 1;
  uint64_t reading[3]; /* count, time enabled, time running */
  CHECK(read(file, reading, sizeof reading) == sizeof reading);
  CHECK(reading[0] >= 64 && reading[1] >= reading[2] && reading[2] > 0);
  CHECK(munmap(memory, 64 * 4096) == 0 && close(file) == 0);
  CHECK(os_count_event(1, UINT64_MAX, &file) != 0); /* no such event */
}

static void test_signal_at_the_parents_end(void)
{
  CHECK(os_end_with_parent(0) == 0); /* none, the default */
  CHECK(os_end_with_parent(-1) == EINVAL);
}

static void test_saved_state_has_sse_wherever_there_is_avx(void)
{
  uint64_t mask = 0;
  const int error = cpu_saved_state(&mask);
  CHECK(error == ENOSYS || (error == 0 && (mask & 3) == 3));
}

static void *create_and_release(void *unused)
{
  for (int i = 0; i < 200; i++) {
    struct region region;
    CHECK(region_create(&region, 1, &thp) == 0);
    ((char *)region.address)[0] = 1;
    CHECK(region_release(&region) == 0);
  }
  return unused;
}

static void test_threads_create_their_own_regions(void)
{
  pthread_t threads[4];
  for (int i = 0; i < 4; i++)
    CHECK(pthread_create(&threads[i], NULL, create_and_release, NULL) == 0);
  for (int i = 0; i < 4; i++)
    CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void)
{
  real = os_calls;
  test_create_aligns_and_rounds_up();
  test_absurd_sizes_are_refused();
  test_populate_makes_pages_present_and_keeps_content();
  test_each_call_may_fail();
  test_wishes_that_are_refused_leave_memory_that_works();
  test_hugetlb_pages_are_touched_at_once_or_given_back();
  test_a_node_that_cannot_exist_is_refused();
  test_collapse_is_tried_twice_when_the_kernel_is_busy();
  test_smaps_sums_the_share_in_range();
  test_heap();
  test_policy_is_set_and_read_back();
  test_policy_and_processor_calls_may_fail();
  test_page_faults_of_this_process_are_counted();
  test_signal_at_the_parents_end();
  test_saved_state_has_sse_wherever_there_is_avx();
  test_threads_create_their_own_regions();
  puts("native: all tests passed");
  return 0;
}
