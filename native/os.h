/* System calls of this folder, behind one table.
 *
 * Every function returns an error code: 0 is success, anything else is the errno value of the call
 * that failed. Nothing else in native/ talks to the kernel, so a test can make any single call fail by
 * replacing an entry of `os_calls`.
 *
 * Sizes are bytes; addresses belong to this process.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define OS_HUGE_PAGE_SIZE ((size_t)2 << 20) /* a PMD-mapped page with 4 KiB base pages, x86-64 */

struct os_calls {
  void *(*mmap)(void *address, size_t size, int protection, int flags, int file, long offset);
  int (*munmap)(void *address, size_t size);
  int (*madvise)(void *address, size_t size, int advice);
  int (*prctl)(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
  int (*mlock)(const void *address, size_t size);
  long (*mbind)(void *address, size_t size, int mode, const unsigned long *nodes, unsigned long max_node);
  long (*syscall)(long number, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
};

extern struct os_calls os_calls; /* the real calls; tests swap entries */

/* Page sizes of explicit huge pages (hugetlb). */
#define OS_HUGETLB_2M ((size_t)2 << 20)
#define OS_HUGETLB_1G ((size_t)1 << 30)

/* Reserve `size` bytes of private anonymous memory, aligned to OS_HUGE_PAGE_SIZE. `size` is a positive
 * multiple of OS_HUGE_PAGE_SIZE. No page is touched, so none is present yet. */
int os_reserve(size_t size, void **address);

/* Reserve `size` bytes, a multiple of `page_size`, from the system's pool of explicit huge pages. ENOMEM: the
 * pool does not have enough of them. */
int os_reserve_hugetlb(size_t size, size_t page_size, void **address);

/* Give the range back. It must be exactly one reservation. */
int os_release(void *address, size_t size);

/* Ask for transparent huge pages. Useful only before the first touch. EINVAL: the kernel has none. */
int os_advise_huge(void *address, size_t size);

/* Move memory that has already been touched onto huge pages; tries once more after EAGAIN. EINVAL: a kernel
 * before 6.1, or memory that cannot lie on huge pages. */
int os_collapse(void *address, size_t size);

/* Take pages that are touched from now on from these nodes first (mbind, MPOL_PREFERRED). `nodes` is a bit
 * mask of `max_node` - 1 bits. */
int os_prefer_nodes(void *address, size_t size, const unsigned long *nodes, unsigned long max_node);

/* Keep the range in memory. ENOMEM or EPERM: more than RLIMIT_MEMLOCK. */
int os_lock(void *address, size_t size);

/* Make every page of the range present and writable. On kernels before 5.14, which lack the advice
 * MADV_POPULATE_WRITE, the pages are touched one by one, which keeps their contents. */
int os_populate(void *address, size_t size);

/* Label the range in /proc/self/maps. Ranges of different names are never merged into one line, which
 * is what makes their smaps figures exact. Kernels without CONFIG_ANON_VMA_NAME answer EINVAL. */
int os_name(void *address, size_t size, const char *name);

/* Memory policy of the calling thread; `nodes` is a bit mask of `max_node` - 1 bits. libnuma, which wraps
 * these calls, is missing from most containers. */
int os_set_mempolicy(int mode, const unsigned long *nodes, unsigned long max_node);
int os_get_mempolicy(int *mode, unsigned long *nodes, unsigned long max_node);

/* arch_prctl with a pointer to 64 bits; ENOSYS on other processors than x86-64. */
int os_arch_prctl(int option, uint64_t *value);

/* Count an event (perf_event_open's type and config) in user space, for the calling thread and the threads
 * that it starts from now on. *file is a descriptor from which three 64-bit numbers can be read: the count,
 * and for how many nanoseconds the counter was enabled and ran. ENOENT: this system does not have the event
 * (most virtual machines have no hardware events); EACCES or EPERM: forbidden by perf_event_paranoid or by a
 * container's seccomp filter. */
int os_count_event(uint32_t type, uint64_t config, int *file);

/* Let the kernel send this process a signal when the thread that started the process ends. EINVAL: the signal
 * does not exist. */
int os_end_with_parent(int number);
