"""The checks, in the order in which one would look: what is installed, then the machine, then memory."""

from __future__ import annotations

import ctypes
import mmap

from hfaccel import native
from hfaccel.apply.verify import openmp_runtimes
from hfaccel.doctor.check import Check, Finding
from hfaccel.host import MAX_ISA, HostFacts, read_host
from hfaccel.plan import Goal, cpu_budget, make_plan
from hfaccel.upstream import TESTED, outcomes, untested


class NativePart(Check):
    name = "native part"

    def find(self, facts: HostFacts) -> Finding:
        if native.arena is None:
            return self.warning(native.MISSING, native.INSTALL)
        return self.ok("the arena extension is loaded")


class Kernels(Check):
    """Without the kernels, optimize() sets the process up and leaves the model to torch."""

    name = "kernels"

    def find(self, facts: HostFacts) -> Finding:
        from hfaccel.engine.kernels import Kind, kernels_problem, multiplies, set_in_use  # imports torch

        if kernels_problem():
            advice = "hfaccel.optimize(model, backend='openvino') or 'onnxruntime' has kernels for other CPUs"
            if facts.processor.kernel_cap:
                advice = f"unset {MAX_ISA}"
            elif facts.processor.kernel_sets:
                advice = native.INSTALL
            return self.warning(kernels_problem(), advice)
        fast = ", ".join(kind.label for kind in Kind if multiplies(kind))
        cap = (
            f", the most that {MAX_ISA}={facts.processor.kernel_cap} allows"
            if facts.processor.kernel_cap
            else ""
        )
        return self.ok(f"layers are computed by those for {set_in_use()}{cap}, which multiply {fast}")


class PrivateParts(Check):
    """hfaccel replaces what torch and transformers do, and uses parts of them that may change any day."""

    name = "torch, transformers"

    def find(self, facts: HostFacts) -> Finding:
        from hfaccel.upstream import PROBES, of_pipelines, of_torch, of_transformers  # noqa: F401 - imports torch

        problems = [outcome.reason for outcome in outcomes()]
        if problems:
            advice = ", ".join(f"{versions.package} {versions}" for versions in TESTED)
            return self.warning(
                "\n".join(problems), f"install versions that hfaccel was tested with: {advice}"
            )
        others = f"; not tested with {', '.join(untested())}" if untested() else ""
        return self.ok(f"all {len(PROBES)} private parts that hfaccel uses are as expected{others}")


class Threads(Check):
    """torch counts cores of the machine; a container may have fewer, and siblings are no cores."""

    name = "threads"

    def find(self, facts: HostFacts) -> Finding:
        import torch

        budget, threads = cpu_budget(facts), torch.get_num_threads()
        message = f"torch starts {threads} thread{'s' * (threads > 1)}; {budget.reason}"
        if threads > budget.threads:
            return self.warning(message, f"use hfaccel-run, or set OMP_NUM_THREADS={budget.threads}")
        if threads < budget.threads:
            advice = f"unset OMP_NUM_THREADS, or set it to {budget.threads}, if this process is alone here"
            return self.warning(message, advice)
        return self.ok(message)


class OpenMP(Check):
    """Two OpenMP runtimes in one process start twice the threads and may deadlock."""

    name = "OpenMP"

    def find(self, facts: HostFacts) -> Finding:
        import torch

        runtimes = openmp_runtimes(read_host().mapped)
        message = f"loaded with torch {torch.__version__}: {runtimes or 'none'}"
        if "," in runtimes:
            return self.error(message, "remove the package or LD_PRELOAD entry that brings the second")
        return self.ok(message)


class Allocator(Check):
    """glibc returns large buffers to the system at every free: a page fault for each of their pages."""

    name = "allocator"

    def find(self, facts: HostFacts) -> Finding:
        choice = make_plan(facts, Goal("process"))["allocator"]
        if choice.value is None:
            return self.ok(choice.reason)
        found = ", ".join(library.kind for library in facts.allocators)
        if not found:
            return self.warning(
                "the C library's allocator is the only one here; hfaccel.configure() can tune it",
                "pip install cmeel-mimalloc",
            )
        return self.ok(f"hfaccel-run will preload {facts.allocators[0].kind} (found: {found})")


class HugePages(Check):
    name = "huge pages"

    def find(self, facts: HostFacts) -> Finding:
        choice = make_plan(facts, Goal("process"))["huge_pages"]
        if choice.value == "thp":
            return self.ok(choice.reason)
        advice = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        if facts.memory.thp_disabled:
            advice = "start the program without the parent that calls prctl(PR_SET_THP_DISABLE)"
        return self.warning(choice.reason, advice)


class Alignment(Check):
    """Kernels differ: commit efa7df3e3bb5 (6.7) aligns every large anonymous mapping to 2 MiB, which
    leaves gaps between buffers of odd sizes; d4148aeab412 (6.12) aligns only multiples of 2 MiB. Vendor
    kernels carry either, so the behaviour is looked at and not the version."""

    name = "alignment"
    size = (2 << 20) + 4096
    count = 6

    def find(self, facts: HostFacts) -> Finding:
        try:
            aligned = sum(address % (2 << 20) == 0 for address in self.addresses())
        except OSError as error:
            return self.warning(f"six mappings of {self.size} bytes failed: {error}", "free some memory")
        behaviour = "aligns every large mapping (6.7 to 6.11)" if aligned >= 5 else "aligns no odd sizes"
        return self.ok(f"{aligned} of {self.count} mappings of odd size are aligned: this kernel {behaviour}")

    def addresses(self) -> list[int]:
        """Map all of them before looking, so that each gets a place of its own."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mappings = [mmap.mmap(-1, self.size, flags=flags) for _ in range(self.count)]
        addresses = [ctypes.addressof(ctypes.c_char.from_buffer(mapping)) for mapping in mappings]
        for mapping in mappings:
            mapping.close()
        return addresses


CHECKS: list[Check] = [
    NativePart(),
    Kernels(),
    PrivateParts(),
    Threads(),
    OpenMP(),
    Allocator(),
    HugePages(),
    Alignment(),
]
