"""Every knob is one row of KNOBS: its name, its meaning, the variables by which a user may have set it, the
rule that chooses a value from the facts, and the variables that carry the value. All pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hfaccel.host import HostFacts
from hfaccel.plan import compute, libraries, memory
from hfaccel.plan.choice import Goal, Value, Values
from hfaccel.plan.compute import Decision, Variables

LAUNCH, PROCESS = ("launch",), ("process",)
BOTH = ("launch", "process")


def _in(*variables: str) -> Callable[[Value, Values], Variables]:
    """The value as it is, in each of these variables."""
    return lambda value, values: dict.fromkeys(variables, str(value))


class Knob(NamedTuple):
    name: str
    meaning: str  # one line for docs/knobs.md, with the accepted values
    variables: tuple[str, ...]  # of a user's environment; the first that is not empty wins over the rule
    rule: Callable[[HostFacts, Goal], Decision]
    parse: Callable[[object, HostFacts], Value]  # a user's value -> the knob's value, or UsageError
    export: Callable[[Value, Values], Variables] = _in()  # the variables that carry the value to a program
    scopes: tuple[str, ...] = BOTH  # where the knob can take effect
    private: bool = False  # its variables are for the program alone, not for its children


KNOBS: list[Knob] = [
    Knob(
        "threads",
        "compute threads, 1 or more",
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS"),  # torch asks MKL where it is built with MKL
        compute.threads,
        compute.parse_threads,
        _in("OMP_NUM_THREADS"),
    ),
    Knob(
        "interop_threads",
        "threads for parallel branches of TorchScript graphs, 1 or more",
        (),
        compute.interop_threads,
        compute.parse_threads,
        scopes=PROCESS,  # torch reads no variable for this
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
        _in("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"),
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
        _in("HF_HUB_CACHE"),
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
        _in("PYTORCH_CUDA_ALLOC_CONF"),
        scopes=LAUNCH,
    ),
]


def register(knob: Knob) -> None:
    """Add a knob: plans, `configure`, `hfaccel-run` and the docs have a choice for it from now on."""
    KNOBS.append(knob)
