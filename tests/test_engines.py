"""Page faults of other engines than torch: their buffers come from the same malloc. Counts, no times.

Runs where onnxruntime, OpenVINO and what exports a model for them are installed; they are heavy and optional.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = str(Path(sys.executable).with_name("hfaccel-run"))
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks/engines.py"))
ENGINES = BENCHMARK["ENGINES"]
PROGRAM = """
import json, runpy, sys
engine, file, configured = sys.argv[1:]
cases = runpy.run_path(CASES)
given = dict(engine=engine, file=file, batch=16, length=128, configured=bool(configured))
main = cases["engine_faults"](**given)()["faults"]
worker = cases["engine_faults"](**{**given, "configured": False}, worker=True)()["faults"]
print(json.dumps([main, worker]))
""".replace("CASES", repr(str(ROOT / "benchmarks/cases.py")))
missing = BENCHMARK["missing"]("onnx", "onnxscript", "onnxruntime", "openvino")
pytestmark = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One layer of BERT-base as an ONNX file."""
    file = str(tmp_path_factory.mktemp("model") / "bert.onnx")
    BENCHMARK["export"](file)
    return file


def faults(command, engine, file, configured=""):
    """Minor page faults of a warm run: [main thread, worker thread]."""
    arguments = [command, "-c", PROGRAM, engine, file, configured]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_onnxruntime_without_its_arena_faults_on_every_run_of_stock_python(model):
    """Should this fail, its rows below show nothing."""
    assert min(faults(sys.executable, "onnxruntime, its arena off", model)) > 5000


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("command", "configured"), [(RUN, ""), (sys.executable, "yes")], ids=["hfaccel-run", "configure"]
)
def test_no_engine_faults_once_it_is_warm(engine, command, configured, model):
    """OpenVINO used to abort under hfaccel-run: its oneTBB passed the preloaded malloc by."""
    main, worker = faults(command, engine, model, configured)
    assert main < 200 and worker < 200
