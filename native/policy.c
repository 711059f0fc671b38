#include "policy.h"

#include <errno.h>
#include <string.h>

#include "os.h"

#define BITS (8 * sizeof(unsigned long))

int policy_add_node(struct policy *policy, size_t node)
{
  if (node >= POLICY_MAX_NODES)
    return ERANGE;
  policy->nodes[node / BITS] |= 1UL << (node % BITS);
  return 0;
}

int policy_has_node(const struct policy *policy, size_t node)
{
  return node < POLICY_MAX_NODES && (policy->nodes[node / BITS] >> (node % BITS) & 1);
}

int policy_set(const struct policy *policy)
{
  const int none = policy->mode == POLICY_DEFAULT; /* the default refuses nodes with EINVAL */
  /* The kernel reads one bit less than it is told, hence the + 1. */
  return os_set_mempolicy(policy->mode, none ? NULL : policy->nodes, none ? 0 : POLICY_MAX_NODES + 1);
}

int policy_get(struct policy *policy)
{
  int mode = 0;
  memset(policy, 0, sizeof *policy);
  const int error = os_get_mempolicy(&mode, policy->nodes, POLICY_MAX_NODES + 1);
  policy->mode = (enum policy_mode)(mode & 0xff); /* higher bits: mode flags such as MPOL_F_STATIC_NODES */
  return error;
}
