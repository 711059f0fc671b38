"""save() and load(): an optimized model as files that a new process maps and uses as they are."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from hfaccel import engine, upstream
from hfaccel.configuration import configure_for_model, weights_placed
from hfaccel.errors import HfaccelError, ModelError, UsageError, check_path
from hfaccel.generators import kept_as_found
from hfaccel.memory import lay_out
from hfaccel.outcome import Outcome
from hfaccel.reporting import model_of, record_of
from hfaccel.saving import files, parts
from hfaccel.saving.files import Document, Unusable
from hfaccel.saving.source import find_source, make_again
from hfaccel.threads import Pool

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save(model_or_pipeline: object, directory: str | os.PathLike[str]) -> None:
    """Write an optimized model into a folder, in the layout in which it computes, for `load`.

    A model that is there already is replaced at once; processes that have it mapped keep it. Where the
    model equals a checkpoint (`config.name_or_path`), which is tried and takes as long as loading and
    optimizing, the folder can be repaired later; otherwise a RuntimeWarning says why not.

    Raises ModelError for a model that was not optimized, is not of one of transformers' classes or was
    changed in its parts; OSError where the folder cannot be written to.
    """
    folder = Path(check_path("the folder", directory))
    model = model_of(model_or_pipeline)
    record = record_of(model)
    if record is None or record.backend != "torch":
        raise ModelError(
            "save() takes a model whose weights are packed by hfaccel's engine, but this "
            f"{type(model).__name__} is not; call hfaccel.optimize(model) first"
        )
    if problem := upstream.problem(upstream.Need.SAVING):
        raise ModelError(f"save() needs more of transformers than there is: {problem}")
    parts.check_class(model)
    if problem := engine.plan_problem(model):
        raise ModelError(
            f"save() takes a model whose weights are packed, but {problem}; call model.eval() after "
            "training, or hfaccel.optimize(hfaccel.restore(model))"
        )
    with kept_as_found():
        source, problem = find_source(model, record)
    if source is None:
        warnings.warn(
            "what is saved cannot be made again where it is damaged, or of other versions or another CPU: "
            f"{problem}",
            RuntimeWarning,
            stacklevel=2,
        )
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder), kept_as_found():
        _write(folder, model, source)


def load(directory: str | os.PathLike[str]) -> PreTrainedModel:
    """The model that `save` wrote: optimized, its weights mapped, nothing copied or packed.

    Processes that load the same folder share the weights' memory. All bytes are checked first. Files that
    are damaged, or made for another CPU or by other versions, are never used: the model is then made again
    from its checkpoint and saved, with a RuntimeWarning that says why.

    Raises UsageError for a folder without a saved model, HfaccelError where one can neither be used nor be
    made again.
    """
    folder = Path(check_path("the folder", directory))
    if not any((folder / name).exists() for name in (files.MANIFEST, files.SOURCE)):
        raise UsageError(
            f"load() takes a folder that hfaccel.save(model, folder) wrote, but got {os.fspath(directory)!r}"
        )
    configure_for_model()
    try:
        return _mapped(folder)
    except Unusable:
        with files.locked(folder):
            try:
                return _mapped(folder)  # another process may have repaired it, or was just replacing it
            except Unusable as error:
                return _made_again(folder, str(error))


def _write(folder: Path, model: nn.Module, source: Document | None) -> None:
    layout = lay_out(model)
    record = record_of(model)
    assert record is not None
    manifest = parts.describe(model, record, layout)
    manifest["weights"] = files.write_weights(folder, layout)
    if source is None:
        (folder / files.SOURCE).unlink(missing_ok=True)
    else:
        files.write_document(folder / files.SOURCE, source)
    files.write_document(folder / files.MANIFEST, manifest)
    files.remove_others(folder, manifest["weights"]["file"])


def _mapped(folder: Path) -> PreTrainedModel:
    # Weights made in inference mode could not be prepared.
    with kept_as_found(), weights_placed(), torch.inference_mode(False):
        return _model_over(folder)


def _model_over(folder: Path) -> PreTrainedModel:
    manifest = files.read_document(folder / files.MANIFEST)
    parts.check_made_for(manifest)
    weights = manifest["weights"]
    region = files.map_weights(folder, weights)
    with Pool(1, "hfaccel-load") as thread:
        check = thread.submit(lambda: files.check_weights(region, weights))  # reads while modules are made
        model = parts.build(manifest, region)
        check.result()
    size = f"{weights['size'] / 2**20:.0f} MiB mapped from {folder} {parts.how_mapped(manifest)}"
    parts.annotate(model, manifest, Outcome("saved weights", True, size))
    return model


def _made_again(folder: Path, reason: str) -> PreTrainedModel:
    try:
        source = files.read_document(folder / files.SOURCE)
        with kept_as_found(), torch.inference_mode(False):
            model = make_again(source)
    except HfaccelError as error:
        raise HfaccelError(
            f"the model in {folder} cannot be used: {reason}; nor made again: {error}. "
            "Load and optimize the original, and save it here again"
        ) from None
    text = f"the model in {folder} was made again from {source['checkpoint']}: {reason}"
    record = record_of(model)
    if record is not None and record.backend == "torch":
        try:
            _write(folder, model, source)
        except OSError as error:
            text += f". It is not saved ({error.strerror})"
        parts.mark_made_again(model, text)
    warnings.warn(text, RuntimeWarning, stacklevel=3)
    return model
