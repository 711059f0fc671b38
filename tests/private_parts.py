"""A program that meets other versions of torch and transformers: in each of many forks one private part is
deleted, replaced or broken before hfaccel is imported, and results must be stock's.

Reads cases as JSON from its first argument, and prints for each one line of JSON.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHANGES = ("deleted", "of another type", "raising")
TEXTS = ["the cat sat", "a quick brown fox jumps over the lazy dog", "home"]


class Broken:
    """Any use raises."""

    def _fail(self, *arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("no longer supported")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._fail()

    __call__ = __bool__ = __len__ = __iter__ = __getitem__ = __eq__ = _fail
    __hash__ = None  # type: ignore[assignment]


STAND_INS = {"of another type": object(), "raising": Broken()}


def change_for_probe(place: str, change: str) -> None:
    """Only the probe sees another part, as where torch itself could not go on without it."""
    from hfaccel.upstream.probe import Probe

    look_up = Probe.look_up

    def changed(probe: Probe) -> Any:
        if probe.place != place:
            return look_up(probe)
        if change == "deleted":
            raise AttributeError(f"there is no {place}")
        return STAND_INS[change]

    Probe.look_up = changed  # type: ignore[method-assign]


def change_for_all(module: str, name: str, change: str, is_fine: Any) -> bool:
    """The part itself, where it is private and torch and transformers go on without it."""
    *path, leaf = name.split(".")
    if not leaf.startswith("_") or module.endswith(".so"):
        return False
    owner: Any = import_module(module)
    for each in path:
        owner = getattr(owner, each)
    before = vars(owner).get(leaf)
    try:
        if change == "deleted":
            delattr(owner, leaf)
        else:
            setattr(owner, leaf, STAND_INS[change])
    except (AttributeError, TypeError):
        return False
    is_back = change == "deleted" and hasattr(owner, leaf)  # torch.ops makes anew what is deleted
    if not is_back and is_fine():
        return True
    setattr(owner, leaf, before)
    return False


class Work:
    """What programs do, and what stock gives them."""

    def __init__(self, folder: Path) -> None:
        from tiny import tokenizer
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        sizes = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
        self.bert = BertModel(BertConfig(vocab_size=100, **sizes)).eval()
        self.convolutions = nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU()).eval()
        self.tokenizer, self.folder = tokenizer(), folder
        self.ids = self.tokenizer(TEXTS, padding=True, return_tensors="pt")
        self.image = torch.randn(1, 32, 9, 9)
        self.bert.save_pretrained(folder / "stock")
        self.tokenizer.save_pretrained(folder / "stock")

    def results(self, bert: Any, convolutions: Any, pipe: Any) -> list[torch.Tensor]:
        with torch.inference_mode():
            hidden = bert(**self.ids)[0] * self.ids["attention_mask"][..., None]
            alone = bert(self.ids["input_ids"][1:2])[0]
            again = copy.deepcopy(bert)(**self.ids, output_hidden_states=True).hidden_states[1]
            image = convolutions(self.image)
        texts = [torch.tensor(each)[:, :3] for each in pipe(TEXTS, batch_size=2)]
        return [hidden, alone, again * self.ids["attention_mask"][..., None], image, *texts]

    def pipe(self) -> Any:
        from transformers import pipeline

        return pipeline("feature-extraction", self.bert, tokenizer=self.tokenizer, device="cpu")

    def stock(self) -> list[torch.Tensor]:
        return self.results(self.bert, self.convolutions, self.pipe())


def found(work: Work, expected: list[torch.Tensor], whole: bool) -> dict[str, Any]:
    """What hfaccel does now. Raises where results are others. `whole`: saves and loads models, too."""
    import hfaccel
    from hfaccel.engine import PackedWeight
    from hfaccel.engine.calibration import speedups

    speedups.Times.is_slower = False  # type: ignore[assignment, method-assign]
    bert, convolutions = hfaccel.optimize(work.bert), hfaccel.optimize(work.convolutions)
    pipe = hfaccel.optimize(work.pipe())
    for _ in range(2):
        check(work.results(bert, convolutions, pipe), expected)
    kept = {"saved": saved(work, bert, expected), "loaded": loaded(work, expected)} if whole else {}
    return {
        **kept,
        "packed": any(isinstance(each, PackedWeight) for each in bert.parameters()),
        "fused": any(type(each).__name__.startswith("Fused") for each in bert.modules()),
        "loop": hasattr(pipe, "hfaccel_tokens"),
        "prepared": any(hasattr(each, "hfaccel_key") for each in convolutions.modules()),
        "report": [
            line.reason for each in (bert, convolutions, pipe) for line in hfaccel.report(each).outcomes
        ],
    }


def check(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for got, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def saved(work: Work, bert: Any, expected: list[torch.Tensor]) -> str:
    """Why the model cannot be saved; "" where it can."""
    import hfaccel

    try:
        hfaccel.save(bert, work.folder / f"saved-{os.getpid()}")
    except hfaccel.errors.HfaccelError as error:
        return str(error)
    again = hfaccel.load(work.folder / f"saved-{os.getpid()}")
    check(work.results(again, work.convolutions, work.pipe()), expected)
    return ""


def loaded(work: Work, expected: list[torch.Tensor]) -> bool:
    """Whether hfaccel.auto optimizes what is loaded."""
    from transformers import AutoModel, pipeline

    import hfaccel.auto  # noqa: F401
    from hfaccel.reporting import record_of

    bert = AutoModel.from_pretrained(work.folder / "stock")
    pipe = pipeline("feature-extraction", str(work.folder / "stock"), device="cpu")
    check(work.results(bert, work.convolutions, pipe), expected)
    return record_of(bert) is not None


def run(case: dict[str, Any], work: Work, expected: list[torch.Tensor]) -> dict[str, Any]:
    def is_fine() -> bool:
        try:
            check(work.stock(), expected)
        except Exception:  # noqa: BLE001 - torch or transformers do not get far without their part
            return False
        return True

    try:
        real = bool(case["change"]) and change_for_all(case["module"], case["name"], case["change"], is_fine)
        if case["change"] and not real:
            change_for_probe(f"{case['module']}.{case['name']}", case["change"])
        return {**case, "real": real, "error": "", **found(work, expected, case["whole"])}
    except BaseException:  # noqa: BLE001 - the test shows it
        return {**case, "error": traceback.format_exc()}


def main() -> None:
    import transformers.pipelines  # noqa: F401

    sys.path.insert(0, str(Path(__file__).parent / "pipelines"))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        expected = work.stock()
        for case in json.loads(sys.argv[1]):
            child = os.fork()
            if child == 0:
                print(json.dumps(run(case, work, expected)), flush=True)
                os._exit(0)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
