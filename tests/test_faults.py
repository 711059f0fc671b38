"""Page faults of a warm forward: the reason for the allocator. Counts, which a test may assert."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = str(Path(sys.executable).with_name("hfaccel-run"))
# One layer of BERT-base at (32,128) has every size of buffer that twelve have.
PROGRAM = """
import json, resource, statistics, sys, threading
import torch
from transformers import BertConfig, BertModel
if "configure" in sys.argv:
    import hfaccel
    hfaccel.configure()
model = BertModel(BertConfig(num_hidden_layers=1)).eval()
tokens = torch.randint(5, 1000, (32, 128))
counts = []
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(tokens)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def run():
    with torch.inference_mode():
        # A heap finds its size over the first forwards: each that leaves a new gap makes it grow once more.
        [faults() for _ in range(5)]
        counts.append(statistics.median(faults() for _ in range(7)))
run()
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(json.dumps(counts))
"""


def faults(command, *arguments):
    """Minor page faults of a warm forward, the median of seven: [main thread, worker thread]."""
    done = subprocess.run([command, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_stock_faults_on_every_forward():
    """Should this fail, the tests below show nothing."""
    assert min(faults(sys.executable)) > 5000


@pytest.mark.parametrize(
    ("command", "arguments"), [(RUN, ()), (sys.executable, ("configure",))], ids=["hfaccel-run", "configure"]
)
def test_no_thread_faults_once_it_is_warm(command, arguments):
    main, worker = faults(command, *arguments)
    assert main < 200 and worker < 200
