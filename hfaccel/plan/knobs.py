"""Every knob is one row of KNOBS: its name, what it means, the variables by which a user may already
have set it, the rule that chooses a value from the facts, and the variables that carry it. All pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hfaccel.host import HostFacts
from hfaccel.plan import compute, libraries, memory
from hfaccel.plan.choice import Goal
from hfaccel.plan.compute import Decision, Values, Variables

LAUNCH, PROCESS = ("launch",), ("process",)
BOTH = ("launch", "process")


def _no_variables(value: Any, values: Values) -> Variables:
    return {}


class Knob(NamedTuple):
    name: str
    meaning: str  # one line for docs/knobs.md; says what the values are
    variables: tuple[str, ...]  # environment variables that set it already; the first that is not empty wins
    rule: Callable[[HostFacts, Goal], Decision]
    parse: Callable[[Any, HostFacts], Any]  # a user's value -> the knob's value, or UsageError
    export: Callable[[Any, Values], Variables] = _no_variables  # the variables that carry it to a program
    scopes: tuple[str, ...] = BOTH  # where it can take effect
    private: bool = False  # its variables concern the program alone, not its children


KNOBS = (
    Knob(
        "threads",
        "compute threads, 1 or more",
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS"),  # torch asks MKL, where it has one
        compute.threads,
        compute.parse_threads,
        compute.export_threads,
    ),
    Knob(
        "interop_threads",
        "threads for parallel branches of TorchScript graphs, 1 or more",
        (),
        compute.interop_threads,
        compute.parse_threads,
        scopes=PROCESS,  # torch reads no variable for it
    ),
    Knob(
        "affinity",
        "CPU numbers that the process is bound to; off: left as it is",
        ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES"),
        compute.affinity,
        compute.parse_affinity,
    ),
    Knob(
        "memory_policy",
        "NUMA nodes that memory comes from: preferred:0, bind:0, interleave:0-1; off: left as it is",
        (),
        compute.memory_policy,
        compute.parse_memory_policy,
    ),
    Knob(
        "omp_runtime",
        "the OpenMP library: default (torch's own), intel, or a path",
        (),
        compute.omp_runtime,
        compute.parse_omp_runtime,
        scopes=LAUNCH,
        private=True,
    ),
    Knob(
        "omp_wait_policy",
        "active or passive waiting of OpenMP threads; none: left as it is",
        ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"),
        compute.omp_wait_policy,
        compute.parse_omp_wait_policy,
        compute.export_omp_wait_policy,
        scopes=LAUNCH,
    ),
    Knob(
        "omp_placement",
        "close or spread: every OpenMP thread is bound to a core; off: the mask alone",
        ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"),
        compute.omp_placement,
        compute.parse_omp_placement,
        compute.export_omp_placement,
        scopes=LAUNCH,
    ),
    Knob(
        "allocator",
        "the library that serves malloc, or glibc with its thresholds raised; default: left as it is",
        ("LD_PRELOAD", "MALLOC_CONF", "GLIBC_TUNABLES"),
        memory.allocator,
        memory.parse_allocator,
        memory.export_allocator,
        private=True,
    ),
    Knob(
        "retained_memory",
        "bytes of freed memory that the allocator keeps, such as 512M",
        (),
        memory.retained_memory,
        memory.parse_retained_memory,
    ),
    Knob(
        "huge_pages",
        "thp: weights and activations ask for transparent huge pages; off",
        ("THP_MEM_ALLOC_ENABLE",),
        memory.huge_pages,
        memory.parse_huge_pages,
        memory.export_huge_pages,
    ),
    Knob(
        "primitive_cache",
        "shapes that oneDNN keeps compiled; none: its default",
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"),
        memory.primitive_cache,
        memory.parse_primitive_cache,
        memory.export_primitive_cache,
        scopes=LAUNCH,
    ),
    Knob(
        "tokenizer_threads",
        "threads of a fast tokenizer, 1 or more; none: left as it is",
        ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"),
        libraries.tokenizer_threads,
        compute.parse_threads,
        libraries.export_tokenizer_threads,
        scopes=LAUNCH,
    ),
    Knob(
        "hub_cache",
        "folder in which huggingface_hub keeps models; off: left as it is",
        ("HF_HUB_CACHE", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"),
        libraries.hub_cache,
        libraries.parse_hub_cache,
        libraries.export_hub_cache,
        scopes=LAUNCH,
    ),
    Knob(
        "tensorflow_threads",
        "compute threads of TensorFlow, 1 or more, with oneDNN switched on; none: left as it is",
        ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "TF_ENABLE_ONEDNN_OPTS"),
        libraries.tensorflow_threads,
        compute.parse_threads,
        libraries.export_tensorflow_threads,
        scopes=LAUNCH,
    ),
    Knob(
        "cuda_allocator",
        "settings of torch's CUDA allocator; off: left as they are",
        ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
        libraries.cuda_allocator,
        libraries.parse_cuda_allocator,
        libraries.export_cuda_allocator,
        scopes=LAUNCH,
    ),
)
