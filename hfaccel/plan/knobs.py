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
        "CPU numbers to which the process is bound; off: unchanged",
        ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES"),
        compute.affinity,
        compute.parse_affinity,
    ),
    Knob(
        "memory_policy",
        "NUMA nodes from which memory comes: preferred:0, bind:0, interleave:0-1; off: unchanged",
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
        "how OpenMP threads wait: active or passive; none: unchanged",
        ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"),
        compute.omp_wait_policy,
        compute.parse_omp_wait_policy,
        compute.export_omp_wait_policy,
        scopes=LAUNCH,
    ),
    Knob(
        "omp_placement",
        "close or spread: every OpenMP thread is bound to a core; off: only the affinity mask binds",
        ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"),
        compute.omp_placement,
        compute.parse_omp_placement,
        compute.export_omp_placement,
        scopes=LAUNCH,
    ),
    Knob(
        "allocator",
        "the library that serves malloc, or glibc with raised thresholds; default: unchanged",
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
        "thp: weights and activations ask for transparent huge pages; off: they do not",
        ("THP_MEM_ALLOC_ENABLE",),
        memory.huge_pages,
        memory.parse_huge_pages,
        memory.export_huge_pages,
    ),
    Knob(
        "primitive_cache",
        "number of shapes that oneDNN keeps compiled; none: its default",
        ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"),
        memory.primitive_cache,
        memory.parse_primitive_cache,
        memory.export_primitive_cache,
        scopes=LAUNCH,
    ),
    Knob(
        "tokenizer_threads",
        "threads of a fast tokenizer, 1 or more; none: unchanged",
        ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"),
        libraries.tokenizer_threads,
        compute.parse_threads,
        libraries.export_tokenizer_threads,
        scopes=LAUNCH,
    ),
    Knob(
        "hub_cache",
        "folder in which huggingface_hub keeps models; off: unchanged",
        ("HF_HUB_CACHE", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"),
        libraries.hub_cache,
        libraries.parse_hub_cache,
        libraries.export_hub_cache,
        scopes=LAUNCH,
    ),
    Knob(
        "tensorflow_threads",
        "compute threads of TensorFlow, 1 or more, with oneDNN switched on; none: unchanged",
        ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "TF_ENABLE_ONEDNN_OPTS"),
        libraries.tensorflow_threads,
        compute.parse_threads,
        libraries.export_tensorflow_threads,
        scopes=LAUNCH,
    ),
    Knob(
        "cuda_allocator",
        "settings of torch's CUDA allocator; off: unchanged",
        ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
        libraries.cuda_allocator,
        libraries.parse_cuda_allocator,
        libraries.export_cuda_allocator,
        scopes=LAUNCH,
    ),
)
