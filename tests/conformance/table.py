"""Runs every architecture and writes docs/conformance.md: `python tests/conformance/table.py [TYPE ...]`.

Each type runs in a process of its own, forked before torch has computed anything, with a limit of time.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from agreement import TOLERANCE, Verdict, judge
from small_models import architectures

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def in_child(kind: str, seconds: float) -> dict[str, Any]:
    """The verdict on one type; a crash or a timeout is one too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        answer(kind, writer)
    os.close(writer)
    said, deadline = b"", time.monotonic() + seconds
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                break
            part = pipe.read(65536)
            if not part:
                break
            said += part
    late = time.monotonic() >= deadline
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    lines = said.decode().splitlines()
    if lines and not (late and not json.loads(lines[-1])["not_built"]):
        return dict(json.loads(lines[-1]))
    task, cls = architectures()[kind]
    if late:
        return Verdict(kind, task, cls, not_built=f"takes more than {seconds:.0f} seconds").to_dict()
    return Verdict(kind, task, cls, **ended(status)).to_dict()


def ended(status: int) -> dict[str, str]:
    """What is said of a process that gave no verdict. No crash ends one by SIGKILL; the system does, of those
    that take too much memory."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return {"not_built": "takes more memory than there is"}
    return {"problem": f"the process ended with status {status}"}


def answer(kind: str, writer: int) -> None:
    """In the child: judge, write, and leave without running the parent's exit handlers."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not os.environ.get("CONFORMANCE_VERBOSE"):
        os.dup2(1, 2)
    try:
        verdict = judge(kind).to_dict()
        os.write(writer, json.dumps(verdict).encode() + b"\n")
        if verdict["not_built"]:
            again = judge(kind, level=1).to_dict()
            verdict = again if not again["not_built"] else verdict
    except BaseException:  # noqa: BLE001 (the parent shows it)
        verdict = Verdict(kind, problem=traceback.format_exc(limit=-4)).to_dict()
    os.write(writer, json.dumps(verdict).encode() + b"\n")
    os._exit(0)


HEAD = """# Conformance

The table compares transformers with `hfaccel.optimize` for every model type of transformers {transformers}
that is made for masked language modelling, classification of texts, tokens, images or sounds, question
answering or object detection. Each model is small and has random weights; its inputs have padding on either
side. `make conformance` writes this page.

{counts}

- packed: the number of linear layers whose weight is packed.
- padding-free: the family of the fused layers, and their number.
- float32, bfloat16, int8: the largest distance from transformers' float32 results at real tokens, relative
  to the length of the result vector. At most {tolerance} are allowed. Results of models that make choices
  (experts, queries) may differ by more if a rounded number changes a choice.
- why not: what prevented layers from being fused, or where the model's own forward ran.

| model type | class | packed | padding-free | float32 | bfloat16 | int8 | why not |
|---|---|---|---|---|---|---|---|
"""


def page(rows: list[dict[str, Any]]) -> str:
    import transformers

    built = [row for row in rows if not row["not_built"]]
    wrong = sum(bool(row["problem"]) for row in built)
    fused = sum(bool(row["fused"]) for row in built)
    counts = (
        f"{len(built)} of {len(rows)} types could be built and run; {fused} of them have fused layers, "
        f"{len(built) - wrong} agree with transformers in every precision."
    )
    tolerance = ", ".join(f"{value:g} ({name})" for name, value in TOLERANCE.items())
    head = HEAD.format(transformers=transformers.__version__, counts=counts, tolerance=tolerance)
    lines = "".join(line(row) for row in sorted(built, key=lambda row: row["kind"]))
    missing = sorted(row["kind"] for row in rows if row["not_built"])
    reasons = "".join(f"| {row['kind']} | {cell(row['not_built'])} |\n" for row in rows if row["not_built"])
    tail = f"\n## Not built\n\n| model type | why |\n|---|---|\n{reasons}" if missing else ""
    return head + lines + tail


def line(row: dict[str, Any]) -> str:
    far = [f"{row['distance'][name]:.0e}" if name in row["distance"] else "" for name in TOLERANCE]
    why = [reason for reason in row["reasons"] if "linear layer" not in reason and "huge pages" not in reason]
    why += [f"{count} calls: {reason}" for reason, count in row["stock"].items()]
    cells = [row["kind"], row["cls"], str(row["packed"]), ", ".join(row["fused"]), *far]
    return f"| {' | '.join(cells)} | {cell(row['problem'] + '; '.join(why))} |\n"


def cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="TYPE", help="model types; all when none is given")
    parser.add_argument("--seconds", type=float, default=60, help="limit for each type")
    parser.add_argument("--json", type=Path, help="keep the rows in this file, and use those that are there")
    parser.add_argument("--page", type=Path, help=f"write the table there, for example {PAGE}")
    chosen = parser.parse_args()
    known = json.loads(chosen.json.read_text()) if chosen.json and chosen.json.exists() else []
    rows = {row["kind"]: row for row in known}
    for kind in chosen.kinds or [kind for kind in architectures() if kind not in rows]:
        row = rows[kind] = in_child(kind, chosen.seconds)
        print(kind, row["problem"] or row["not_built"] or "agrees", *row["fused"], flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(list(rows.values()), indent=1))
    if chosen.page:
        chosen.page.write_text(page(list(rows.values())))
    return 1 if any(row["problem"] for row in rows.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
