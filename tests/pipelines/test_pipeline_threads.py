"""A pipeline where no thread can work beside the model: at the end of the interpreter, among greenlets."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = """
import ctypes, json, sys
import torch
import hfaccel, tiny

stock = tiny.text_pipe("text-classification", "BertForSequenceClassification")
pipe = hfaccel.optimize(stock, num_threads=2)
texts = tiny.texts(40, 12)

def use():
    results = pipe(texts, batch_size=8)
    tiny.assert_same(results, stock(texts))
    reasons = [reason for reason in hfaccel.report(pipe).stock_calls if "not meanwhile" in reason]
    threads = [torch.get_num_threads(), ctypes.CDLL(None).omp_get_max_threads()]
    print(json.dumps([len(results), reasons, threads]), flush=True)
"""
WHEN = {
    "in a thread that outlives the main thread": """
import threading
ended = threading.main_thread().join  # what follows runs when that has come to its end
threading.Thread(target=lambda: (ended(), use())).start()
""",
    "at exit": """
import atexit
atexit.register(use)
""",
    "in a finalizer": """
import atexit
class Last:
    def __del__(self):
        use()
last = Last()
atexit.register(lambda: globals().pop("last") and None)  # later modules are gone, transformers' too
""",
}
ENDS = "cannot schedule new futures after interpreter shutdown"
GREEN = "greenlets"
PATCHED = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}


def run(script):
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, done.stderr  # what a finalizer or an atexit function raises is only printed
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("when", WHEN)
def test_at_the_end_of_the_interpreter_inputs_are_prepared_in_line(when):
    count, reasons, threads = run(COMMON + WHEN[when])
    assert (count, threads) == (40, [2, 2])
    assert [ENDS in reason for reason in reasons] == [True]


def test_a_stream_that_began_before_goes_on_there():
    script = """
import threading
texts *= 5
begun = iter(pipe((text for text in texts), batch_size=8))
first = [next(begun) for _ in range(20)]
def rest():
    threading.main_thread().join()
    results = [*first, *begun]
    tiny.assert_same(results, stock(texts))
    print(len(results), flush=True)
threading.Thread(target=rest).start()
"""
    assert run(COMMON + script) == 200


def test_a_saved_model_can_be_loaded_there(tmp_path):
    script = f"""
import threading
hfaccel.save(pipe.model, {str(tmp_path)!r})
def load():
    threading.main_thread().join()
    print(json.dumps(type(hfaccel.load({str(tmp_path)!r})).__name__), flush=True)
threading.Thread(target=load).start()
"""
    assert run(COMMON + script) == "BertForSequenceClassification"


@pytest.mark.parametrize("library", PATCHED)
@pytest.mark.parametrize("when", ["before", "after"])
def test_among_greenlets_inputs_are_prepared_in_line_and_the_threads_stay(library, when):
    """There a thread is a greenlet: what it would set for itself it would set for the whole program."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    script = PATCHED[library] + COMMON if when == "before" else f"{COMMON}use()\n{PATCHED[library]}\n"
    count, reasons, threads = run(f"{script}\nuse()\n")
    assert (count, threads) == (40, [2, 2])
    assert [GREEN in reason for reason in reasons] == [True]
