/* Stands in for the instruction cpuid in libraries whose copies have ud2 in its place (masked.py): gives what
 * cpuid gives, but for AVX-512, AMX and what goes with them. Both instructions have two bytes. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

struct leaf {
  uint32_t eax, ebx, ecx, edx;
};

#define BIT(number) (UINT32_C(1) << (number))

/* What AVX2 alone does not have, by the bits of Intel's manual (volume 2A, CPUID): everything of AVX-512, AMX
 * and AVX10, and the VNNI, IFMA and conversions of newer CPUs in AVX2's own registers. */
static struct leaf hidden(uint32_t leaf, uint32_t subleaf)
{
  if (leaf == 7 && subleaf == 0)
    return (struct leaf){.ebx = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31),
                         .ecx = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14),
                         .edx = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)};
  if (leaf == 7 && subleaf == 1)
    return (struct leaf){.eax = BIT(4) | BIT(5) | BIT(21) | BIT(23),
                         .edx = BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)};
  if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) /* AMX' tiles, AVX10 */
    return (struct leaf){~UINT32_C(0), ~UINT32_C(0), ~UINT32_C(0), ~UINT32_C(0)};
  return (struct leaf){0};
}

static struct sigaction before;

static void answer(int number, siginfo_t *info, void *context)
{
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
  if (instruction[0] != 0x0f || instruction[1] != 0x0b) { /* another illegal one: as if we were not here */
    sigaction(SIGILL, &before, NULL);
    (void)number, (void)info;
    return;
  }
  const uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
  struct leaf told;
  __cpuid_count(leaf, subleaf, told.eax, told.ebx, told.ecx, told.edx);
  const struct leaf mask = hidden(leaf, subleaf);
  registers[REG_RAX] = told.eax & ~mask.eax;
  registers[REG_RBX] = told.ebx & ~mask.ebx;
  registers[REG_RCX] = told.ecx & ~mask.ecx;
  registers[REG_RDX] = told.edx & ~mask.edx;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void)
{
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigemptyset(&action.sa_mask);
  sigaction(SIGILL, &action, &before);
}
