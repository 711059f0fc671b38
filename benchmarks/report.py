"""Results of the benchmarks: a table on the terminal, a dated JSON file in benchmarks/results."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

from hfaccel.tables import render

RESULTS = Path(__file__).with_name("results")


def check(title: str, rows: list[dict[str, Any]], *, at_most: bool = False) -> int:
    """Print the rows against their bars. 0 where all are reached, otherwise 1."""
    cells, missed = [], 0
    for row in rows:
        reached = row["measured"] <= row["bar"] if at_most else row["measured"] >= row["bar"]
        missed += not reached
        details = f"{row['base_ms']:.1f} -> {row['fast_ms']:.1f} ms" if "base_ms" in row else ""
        cells.append(
            [row["name"], f"{row['measured']:.3g}", f"{row['bar']:.3g}", "yes" if reached else "NO", details]
        )
    print(render(title, ["case", "measured", "bar", "reached", "medians"], cells))
    return int(missed > 0)


def save(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """The file that has them now. Rows of the same day that were not measured again are kept."""
    import torch
    import transformers

    from hfaccel.host import read_host

    folder.mkdir(exist_ok=True, parents=True)
    host = read_host()
    today = datetime.date.today().isoformat()
    file = folder / f"{today}-{name}.json"
    earlier = json.loads(file.read_text())["rows"] if file.exists() else []
    measured = set(map(_subject, rows))
    document = {
        "date": today,
        "python": platform.python_version(),
        "processor": host.processor.model_name,
        "instructions": host.processor.isa,
        "kernels": kernels_in_use(),
        "cpus": len(host.limits.affinity),
        "cores": len(host.topology.cores(host.limits.affinity)),
        "memory_gib": round(host.memory.total / 2**30),
        "kernel": platform.release(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "rows": [row for row in earlier if _subject(row) not in measured] + rows,
    }
    file.write_text(json.dumps(document, indent=1) + "\n")
    return file


def kernels_in_use() -> str:
    """The instruction set whose kernels hfaccel uses in this process; "none" where there are none."""
    from hfaccel.engine import set_in_use

    return set_in_use() or "none"


def _subject(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is about."""
    return tuple(row.get(name) for name in ("name", "case", "precision", "engine"))
