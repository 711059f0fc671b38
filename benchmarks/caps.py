"""A cap on the instruction set of every engine, so that a machine with more can stand in for one with AVX2.

`python benchmarks/caps.py` shows what the cap does here: each engine with and without it, in turn. An engine
that is as fast with the cap as without was not capped, or did not use more before;
docs/performance.md tells which.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import masked
from environments import interpreter
from hfaccel.bench import Side, compare
from hfaccel.errors import HfaccelError
from hfaccel.host import Processor, read_host
from hfaccel.tables import render
from report import save
from turns import CASES, PEERS

CAPS: dict[str, dict[str, str]] = {
    "avx2": {
        "HFACCEL_MAX_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # of torch, OpenVINO and CTranslate2: each has a oneDNN of its own
        "ATEN_CPU_CAPABILITY": "avx2",  # inductor obeys it too
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",  # on Intel; on AMD MKL takes its AVX2 kernels anyway
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
}
# Engine and precision that stay above a cap of AVX2 all the same, and why.
UNHELD = {
    ("ipex", "fp32"): "not looked into",
    ("ipex", "bf16"): "not looked into",
}
BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # flags of CPUs that multiply bfloat16
SHOWN = (
    *(("fp32", engine) for engine in ("hfaccel", "eager", *PEERS["fp32"]) if engine != "ipex"),
    *(("int8", engine) for engine in ("hfaccel", *PEERS["int8"])),
)


def not_capped(engine: str, precision: str, isa: str | None, processor: Processor, kernels: str = "") -> str:
    """Why this engine uses more than `isa` on this processor; "" where it does not, or where none is asked.

    `kernels` is the kernel set that hfaccel told.
    """
    if isa is None or not _has_avx512(processor):
        return ""
    if engine == "hfaccel":
        return "" if kernels.startswith(isa) else f"its kernel set is {kernels or 'unknown'}"
    return UNHELD.get((engine, precision), "")


def _has_avx512(processor: Processor) -> bool:
    """Whether instructions above AVX2 are there, also where oneDNN's own cap in this process hides them."""
    return any(flag.startswith("avx512f") for flag in (*processor.isa, *processor.withheld))


def precisions_here(asked: Iterable[str], flags: Sequence[str], isa: str | None) -> tuple[list[str], str]:
    """The precisions to measure, and why one is left out: bf16 is emulated where the CPU cannot multiply it,
    up to 500 times slower than fp32, and nobody would use it."""
    if isa is None and any(flag in flags for flag in BF16):
        return list(asked), ""
    wanted = list(asked)
    kept = [precision for precision in wanted if precision != "bf16"]
    where = f"with instructions capped at {isa}" if isa else "on this processor"
    return kept, f"bf16 is left out: nothing multiplies it {where}" if kept != wanted else ""


def apply(isa: str | None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables to set for a cap. Raises where one of them is set to something else already."""
    wanted = CAPS[isa] if isa else {}
    for name, value in wanted.items():
        if environment.get(name, value).lower() != value.lower():
            raise HfaccelError(
                f"--isa {isa} sets {name}={value}, but it is {environment[name]!r} already; unset it"
            )
    return dict(wanted)


def enforce(isa: str | None, processor: Processor) -> None:
    """Cap this process and those that it starts from now on: by variables, and by copies of the libraries
    that read none (masked.py)."""
    os.environ.update(apply(isa))
    if isa and _has_avx512(processor):
        os.environ.update(masked.variables())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", choices=list(CAPS), default="avx2")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", default="", help="engines whose name contains this, e.g. 'openvino int8'")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision, engine in SHOWN:
            if options.only in f"{engine} {precision}":
                rows.append(measure(engine, precision, folder, options))
    cells = [
        [row["name"], row["fast_ms"], row["base_ms"], f"{row['ratio']:.2f}", row["not_capped"]]
        for row in rows
    ]
    columns = ["engine", "ms", "ms capped", "times slower", "why not capped"]
    print(render(f"MiniLM (8,128), one thread: capped at {options.isa}", columns, cells))
    save(f"caps-{options.isa}", rows)
    return 0


def measure(engine: str, precision: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    print(f"{engine} {precision} ...", file=sys.stderr, flush=True)
    output = str(Path(folder, f"{engine}-{precision}"))
    work = {"engine": engine, "precision": precision, "model": "minilm", "shapes": [(8, 128)]}
    capped, free = (
        Side(
            name,
            f"{CASES}:forward",
            {**work, "output": output},
            (interpreter(engine),),
            {"OMP_NUM_THREADS": "1", **variables},
        )
        for name, variables in (("capped", CAPS[options.isa] | masked.variables()), ("as it is", {}))
    )
    taken = compare(capped, free, pairs=options.pairs)
    kernels = str(taken.base_samples[0]["facts"].get("kernels", ""))
    reason = not_capped(engine, precision, options.isa, read_host().processor, kernels)
    return {"name": f"{engine} {precision}", "not_capped": reason, **taken.to_dict()}


if __name__ == "__main__":
    sys.exit(main())
