"""What this machine can do at most: products per second in each precision, and bytes from memory.

Measured in a process of its own, with all usable cores; a report draws its roofline from these.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from hfaccel.bench.pairs import Sample
from hfaccel.optimization import optimize
from hfaccel.precision import Precision
from hfaccel.reporting import report

SIZE, ROWS = 2048, 512  # of a product
READ = 1 << 30  # bytes


def measure(size: int = SIZE, rows: int = ROWS, read: int = READ) -> Callable[[], Sample]:
    return lambda: {"seconds": 0.0, "limits": limits(size, rows, read)}


def limits(size: int, rows: int, read: int) -> Sample:
    rates = {kind: gemm_gflops(kind, size, rows) for kind in ("fp32", "bf16", "int8")}
    return {"gemm_gflops": rates, "bandwidth_gb_s": round(bandwidth(read), 2)}


def gemm_gflops(kind: str, size: int, rows: int) -> float | None:
    """The better of torch's product and hfaccel's; None where hfaccel chose another precision."""
    times = [seconds for seconds in (_of_torch(kind, size, rows), _of_hfaccel(kind, size, rows)) if seconds]
    return round(2e-9 * rows * size * size / min(times), 1) if times else None


def _of_torch(kind: str, size: int, rows: int) -> float | None:
    if kind == "int8":
        return None  # torch's integer product has no public name
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    one, two = torch.ones(rows, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    result = torch.empty(rows, size, dtype=dtype)
    return best_seconds(lambda: torch.mm(one, two, out=result))


def _of_hfaccel(kind: str, size: int, rows: int) -> float | None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size, bias=False)).eval()
    precision = next(one for one in Precision if one.short == kind)
    fast = optimize(model, backend="torch", inplace=True, **precision.arguments())
    packed = (one for one in report(fast).outcomes if one.applied and one.subject == "linear layer")
    if not any(f"in {precision.value}" in outcome.reason for outcome in packed):
        return None  # the weight stayed in another precision
    one = torch.randn(rows, size)
    return best_seconds(lambda: fast(one))


def bandwidth(size: int) -> float:
    """10^9 bytes per second that all threads read: the best of some sums over more than any cache holds."""
    values = torch.ones(size // 4)
    return size / best_seconds(values.sum) / 1e9


def best_seconds(call: Callable[[], object], budget: float = 0.5, least: int = 3) -> float:
    times: list[float] = []
    with torch.inference_mode():
        while len(times) < least + 1 or sum(times) < budget:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return min(times[1:])
