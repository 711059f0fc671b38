/* NUMA memory policy of the calling thread, which `execve` and new threads inherit.
 *
 * Every function returns 0 or the errno of the call: ENOSYS without NUMA in the kernel, EPERM under many
 * containers' seccomp filters, EINVAL for a node that is not allowed or does not exist.
 */
#pragma once
#include <stddef.h>

#define POLICY_MAX_NODES 1024 /* the most that Linux can be built for (CONFIG_NODES_SHIFT 10) */

enum policy_mode { POLICY_DEFAULT = 0, POLICY_PREFERRED = 1, POLICY_BIND = 2, POLICY_INTERLEAVE = 3 };

struct policy {
  enum policy_mode mode;
  unsigned long nodes[POLICY_MAX_NODES / (8 * sizeof(unsigned long))]; /* bit n: node n */
};

/* Add a node to the set. ERANGE: the node is POLICY_MAX_NODES or more. */
int policy_add_node(struct policy *policy, size_t node);
int policy_has_node(const struct policy *policy, size_t node);

int policy_set(const struct policy *policy);
int policy_get(struct policy *policy);
