"""What one side of a study varies: backend, precision, threads, instances, libraries. Pure.

None, "default" and "off" leave a thing as the stock program has it. `Setting()` is the baseline of every
study: plain transformers, started by plain python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from hfaccel.errors import UsageError, check_count

PRECISIONS = ("fp32", "bf16", "int8", "int8-weight-only", "int4-weight-only")
ALLOCATORS = ("default", "auto", "mimalloc", "jemalloc", "tcmalloc", "glibc")
OMP_RUNTIMES = ("default", "intel")
WAIT_POLICIES = (None, "active", "passive")
HUGE_PAGES = ("off", "auto")
OF_THE_LAUNCHER = ("allocator", "omp_runtime", "huge_pages")  # what only hfaccel-run can change
STOCK = "eager"  # the backend that leaves the model as it is


@dataclass(frozen=True)
class Setting:
    """One side. Raises UsageError for a value that breaks a rule.

    A side whose allocator, OpenMP runtime, huge pages or number of instances differ from the stock program's
    is started by hfaccel-run, which also binds its threads to cores; all others by plain python.
    """

    backend: str = STOCK  # a name of hfaccel.backends; whether that backend can run is asked where it runs
    precision: str = "fp32"
    threads: int | None = None  # of each instance
    instances: int = 1  # that compute at the same time, each on cores of its own
    interop_threads: int | None = None
    allocator: str = "default"
    omp_runtime: str = "default"
    wait_policy: str | None = None
    huge_pages: str = "off"  # auto: for weights and for what the allocator holds
    token_budget: int | None = None  # tokens of a batch, in texts and pipelines

    def __post_init__(self) -> None:
        if not isinstance(self.backend, str) or not self.backend:
            raise UsageError(f"backend must be a name such as torch or eager, but got {self.backend!r}")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(map(str, allowed))}, but got {value!r}")
        for name in ("threads", "interop_threads", "token_budget"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("instances", self.instances)

    @property
    def launched(self) -> bool:
        """Whether hfaccel-run starts the side."""
        return bool(self.instances > 1 or self._of_the_launcher())

    def _of_the_launcher(self) -> dict[str, object]:
        values = {name: getattr(self, name) for name in OF_THE_LAUNCHER}
        return {name: value for name, value in values.items() if value != _STOCK[name]}

    def launcher_options(self, instance: int | None = 0) -> tuple[str, ...]:
        """Options of hfaccel-run for one of the instances, or for all with None; () for plain python."""
        if not self.launched:
            return ()
        options = ["--memory-allocator", self.allocator, "--omp-runtime", self.omp_runtime]
        options += ["--huge-pages", self.huge_pages]
        if self.threads is not None:
            options += ["--threads", str(self.threads)]
        if self.instances > 1:
            options += ["--ninstances", str(self.instances)]
            options += ["--instance-idx", str(instance)] if instance is not None else []
        return tuple(options)

    def environment(self) -> dict[str, str]:
        """Variables of the side's process, under hfaccel-run as under plain python."""
        wanted = {
            "OMP_NUM_THREADS": self.threads,
            "MKL_NUM_THREADS": self.threads,
            "OMP_WAIT_POLICY": self.wait_policy,
        }
        return {name: str(value) for name, value in wanted.items() if value is not None}

    def knobs(self) -> dict[str, object]:
        """The knobs of hfaccel.plan that differ from the stock program's, as a profile holds them."""
        own: dict[str, object] = {
            "threads": self.threads,
            "interop_threads": self.interop_threads,
            "omp_wait_policy": self.wait_policy,
        }
        return {name: value for name, value in own.items() if value is not None} | self._of_the_launcher()

    def optimize_arguments(self) -> dict[str, str]:
        """Arguments of hfaccel.optimize(), the dtype by its name; {} for the stock program."""
        if self.backend == STOCK:
            return {}
        arguments = {"backend": self.backend, "huge_pages": self.huge_pages}
        if self.precision == "bf16":
            arguments["dtype"] = "bfloat16"
        elif self.precision != "fp32":
            arguments["quantization"] = self.precision
        return arguments

    def label(self) -> str:
        """A few words for tables: backend, precision, and what else differs from the stock program."""
        words = [self.backend, self.precision]
        words += [f"{self.threads} threads"] if self.threads is not None else []
        words += [f"{self.instances} instances"] if self.instances > 1 else []
        words += [f"{self.interop_threads} interop threads"] if self.interop_threads is not None else []
        words += {"default": [], "auto": ["hfaccel-run"]}.get(self.allocator, [self.allocator])
        words += [f"{self.omp_runtime} OpenMP"] if self.omp_runtime != "default" else []
        words += [f"{self.wait_policy} waits"] if self.wait_policy is not None else []
        words += ["huge pages"] if self.huge_pages != "off" else []
        words += [f"{self.token_budget} tokens"] if self.token_budget is not None else []
        return ", ".join([" ".join(words[:2]), *words[2:]])

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Setting:
        """The setting that `to_dict` described; fields that are not given are the stock program's."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(
                f"a setting has the fields {', '.join(sorted(known))}, but got {', '.join(unknown)}; "
                "the file may come from another version of hfaccel"
            )
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every value


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "precision": PRECISIONS,
    "allocator": ALLOCATORS,
    "omp_runtime": OMP_RUNTIMES,
    "wait_policy": WAIT_POLICIES,
    "huge_pages": HUGE_PAGES,
}
_STOCK = {field.name: field.default for field in fields(Setting)}
