"""A kernel set of another package: its row for CMake, its row for Python, and its tiles, as somebody else
would write them. This one is AVX2 with tiles of four rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfaccel.host import KERNEL_SETS, read_host
from hfaccel.host.kernel_sets import KernelSet, register

SETS = Path(__file__).parents[2] / "native" / "kernels" / "sets"
ROW = 'kernel_set(small_tiles {folder} "" "-mavx2;-mfma;-mf16c")\n'
PROGRAM = """
import torch
from hfaccel.host.kernel_sets import KernelSet, register
register(KernelSet("small_tiles", "avx2", ("avx2",), package="theirs"))
import hfaccel
from hfaccel.engine.kernels import kernels, set_in_use
assert set_in_use() == "small_tiles" and kernels().__spec__.name == "theirs._kernels_small_tiles"
from transformers import BertConfig, BertModel
torch.manual_seed(0)
sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2)
model = BertModel(BertConfig(**sizes)).eval()
fast = hfaccel.optimize(model)
ids = torch.randint(1000, 2000, (3, 17))
with torch.inference_mode():
    torch.testing.assert_close(fast(ids).last_hidden_state, model(ids).last_hidden_state, rtol=0, atol=2e-5)
print(hfaccel.report(fast).stock_calls)
"""


def built(folder: Path) -> Path:
    """A package with the set's extension."""
    tiles = folder / "tiles"
    tiles.mkdir()
    for name in ("lanes.h", "tile.h"):
        (tiles / name).write_text((SETS / "avx2" / name).read_text())
    sizes = (SETS / "avx2" / "set.h").read_text()
    (tiles / "set.h").write_text(sizes.replace("VECTOR_ROWS = 6", "VECTOR_ROWS = 4"))
    (folder / "more.cmake").write_text(ROW.format(folder=tiles))
    cmake = [str(Path(sys.executable).with_name("cmake"))]
    options = [f"-DHFACCEL_MORE_SETS={folder}/more.cmake", f"-DPython_EXECUTABLE={sys.executable}"]
    build = ["--build", f"{folder}/build", "--target", "_kernels_small_tiles"]
    for arguments in (["-S", str(SETS.parents[1]), "-B", f"{folder}/build", *options], build):
        subprocess.run(cmake + arguments, check=True, capture_output=True)
    package = folder / "theirs"
    package.mkdir()
    (package / "__init__.py").touch()
    [extension] = (folder / "build").glob("_kernels_small_tiles*.so")
    extension.rename(package / extension.name)
    return folder


@pytest.mark.skipif("avx2" not in read_host().processor.isa, reason="the set of this test is for AVX2")
def test_a_set_of_another_package(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(built(tmp_path)), "HFACCEL_MAX_ISA": ""}
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
    )
    assert told.stdout == "{}\n"


def test_the_name_of_a_set_is_new():
    known = list(KERNEL_SETS)
    with pytest.raises(ValueError, match="'amx' is one; choose another"):
        register(KernelSet("amx", "amx", ()))
    assert known == KERNEL_SETS
