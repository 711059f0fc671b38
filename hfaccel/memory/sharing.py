"""One copy of a model's weights for many processes, in memory that nobody can change.

The weights are copied once into an anonymous file (memfd), which is then sealed: nobody, root included, can
write to the file, resize it or unseal it. Every process maps the file privately, so a change in place copies
the pages concerned, and no other process sees it. The memory is freed with the last process that uses it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from hfaccel import native
from hfaccel.memory.layout import Layout, Place, digest, lay_out, view
from hfaccel.memory.mapping import map_bytes
from hfaccel.memory.meeting import meet, meeting_folder
from hfaccel.memory.pack import held, module_of
from hfaccel.outcome import Outcome
from hfaccel.replacement import Replacement

T = TypeVar("T")
F_ADD_SEALS, F_GET_SEALS, SEALS = 1033, 1034, 0b1111  # of linux/fcntl.h; all four seals


@dataclass(frozen=True, eq=False)
class Shared:
    """What share() did to a model."""

    outcome: Outcome
    nbytes: int = 0
    descriptor: int = -1  # of the sealed memory, open while the model lives; -1 if there is none
    layout: Layout | None = None

    @property
    def address(self) -> int:
        """Where the memory is mapped in this process."""
        assert self.layout is not None
        place = self.layout.places[0]
        return place.held.data_ptr() - place.offset


_shared: weakref.WeakKeyDictionary[nn.Module, Shared] = weakref.WeakKeyDictionary()


def share(model_or_pipeline: T) -> T:
    """Put a model's parameters and buffers, packed weights included, into memory that processes share.

    Changes the model in place and returns it. Call this after hfaccel.optimize and before workers start.
    Forked workers then have the weights at once. Other processes get the weights when the model is sent to
    them: `Process(target=..., args=(model,))`, pools, queues and pipes of multiprocessing send the structure,
    and a descriptor in place of the weights. Instances of one hfaccel-run share their weights when each of
    them calls this on an equal model.

    Weights that a process changes afterwards belong to that process alone, and are sent by value. Where the
    system refuses, the model stays as it was and hfaccel.report has the reason. Raises ModelError for an
    object that is neither a torch.nn.Module nor a pipeline with one.
    """
    model = module_of(model_or_pipeline)
    try:
        _share(model)
    except OSError as error:
        reason = f"the system refuses shared memory: {error.strerror or error}"
        _shared[model] = Shared(Outcome("shared weights", False, reason))
    return model_or_pipeline


def shared(model: nn.Module) -> Shared | None:
    """What share() did to this model; None if share() was not called."""
    return _shared.get(model)


def _share(model: nn.Module) -> None:
    layout = lay_out(model)
    if layout.size == 0:
        reason = "the model has no weights in ordinary memory"
        _shared[model] = Shared(Outcome("shared weights", False, reason))
        return
    descriptor, whose = _sealed_or_met(layout)
    try:
        layout.put(map_bytes(descriptor, layout.size))
    except BaseException:
        os.close(descriptor)
        raise
    # Fused layers have noted the old addresses of the tensors.
    for module in model.modules():
        if isinstance(module, Replacement):
            module.hfaccel_forget_places()
    _remember(model, descriptor, replace(layout, pieces=()), whose)  # the pieces hold the old memory


def _remember(model: nn.Module, descriptor: int, layout: Layout, whose: str) -> None:
    outcome = Outcome("shared weights", True, f"{layout.size / 2**20:.0f} MiB in {whose}")
    _shared[model] = done = Shared(outcome, layout.size, descriptor, layout)
    weakref.finalize(done, os.close, descriptor)
    ForkingPickler.register(type(model), _reduce)


# The memory


def _sealed_or_met(layout: Layout) -> tuple[int, str]:
    """A descriptor of sealed memory with the layout's bytes, and whose memory that is."""
    folder = meeting_folder()
    descriptor = sealed(layout.size, layout.write)
    if not folder:
        return descriptor, "sealed memory of this process and those that it starts"
    name = _name(layout, descriptor)
    try:
        met, others = meet(folder, name, lambda: descriptor, lambda found: _is_it(found, layout, name))
    except OSError as error:
        return descriptor, f"sealed memory of its own: the instances cannot meet ({error.strerror})"
    if not others:
        return met, "sealed memory that other instances use"
    os.close(descriptor)
    return met, "sealed memory of another instance"


def sealed(size: int, write: Callable[[torch.Tensor], None]) -> int:
    """A descriptor of `size` bytes of memory, filled by `write` and then sealed against any change."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOTSUP, "this system has no memory that can be sealed (memfd_create)")
    import fcntl

    descriptor = os.memfd_create("hfaccel-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        _fill(descriptor, size, write)
        fcntl.fcntl(descriptor, F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _fill(descriptor: int, size: int, write: Callable[[torch.Tensor], None]) -> None:
    region = map_bytes(descriptor, size, shared=True)
    write(region)
    if native.arena is not None:
        native.arena.make_huge(region.data_ptr(), size, True)  # where the system allows that


def _name(layout: Layout, descriptor: int) -> str:
    """A name that is equal for models whose tensors have equal types, shapes, places and bytes."""
    table = [
        (type(p.tensor).__name__, str(p.held.dtype), tuple(p.held.shape), p.held.stride(), p.offset)
        for p in layout.places
    ]
    content = digest(map_bytes(descriptor, layout.size))
    return f"{hashlib.blake2b(repr(table).encode(), digest_size=8).hexdigest()}-{content}"


def _is_it(descriptor: int, layout: Layout, name: str) -> bool:
    """Whether a descriptor, which may be anybody's, is of sealed memory with these bytes."""
    import fcntl

    try:
        seals = fcntl.fcntl(descriptor, F_GET_SEALS)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a file of another kind
            return False
        raise
    size = os.fstat(descriptor).st_size
    return seals == SEALS and size == layout.size and _name(layout, descriptor) == name


# Sending a shared model to another process


def _reduce(model: nn.Module) -> Any:
    """For multiprocessing's pickler: the structure, and a descriptor in place of the weights."""
    known = _shared.get(model)
    if known is None or known.descriptor < 0:
        return model.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    from multiprocessing.reduction import DupFd

    buffer = io.BytesIO()
    _Sender(buffer, model, known).dump(model)
    return _attach, (DupFd(known.descriptor), known.nbytes, buffer.getvalue())


class _Sender(ForkingPickler):
    """Pickles a model. A tensor that is still shared is replaced by its place."""

    def __init__(self, file: io.BytesIO, model: nn.Module, known: Shared) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        assert known.layout is not None
        self.model = model
        pristine = map_bytes(known.descriptor, known.nbytes)
        self.places = {
            id(place.tensor): (number, place)
            for number, place in enumerate(known.layout.places)
            if _is_unchanged(place, pristine)
        }

    def reducer_override(self, value: object) -> Any:
        if value is self.model:
            return value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented

    def persistent_id(self, value: Any) -> tuple[object, ...] | None:
        number, place = self.places.get(id(value), (0, None))
        if place is None:
            return None
        bytes_of = place.held
        where = (place.offset, bytes_of.dtype, tuple(bytes_of.shape), bytes_of.stride())
        own = bytes_of is value
        packed = None if own else (value.kind, tuple(value.shape), value.dtype, value.packing.panel)
        anew = getattr(type(value), "made_anew", ())  # attributes that a packed weight gets when attached
        attached = {name: item for name, item in vars(value).items() if name not in anew}
        return number, where, type(value), packed, value.requires_grad, attached


def _is_unchanged(place: Place, pristine: torch.Tensor) -> bool:
    """Whether the tensor is still the one that was shared. Neither addresses nor version counters reliably
    show a change in place, so the bytes are compared."""
    expected = place.over(pristine)
    now = held(place.tensor)
    if (now.dtype, now.shape, now.stride()) != (expected.dtype, expected.shape, expected.stride()):
        return False
    return torch.equal(_bits(now), _bits(expected))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The values as integers: NaN equals itself."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


class _Handle(Protocol):
    """A descriptor on its way to another process (multiprocessing's DupFd)."""

    def detach(self) -> int: ...


class _Receiver(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, region: torch.Tensor) -> None:
        super().__init__(file)
        self.region = region
        self.places: dict[int, Place] = {}

    def persistent_load(self, identity: Any) -> torch.Tensor:
        number, (offset, dtype, shape, stride), kind_of_tensor, packed, requires_grad, attached = identity
        if number in self.places:  # tied
            return self.places[number].tensor
        found = view(self.region, offset, dtype, shape, stride)
        tensor: torch.Tensor
        if packed is not None:
            tensor = kind_of_tensor.attach(found, *packed, requires_grad)
        elif issubclass(kind_of_tensor, nn.Parameter):
            tensor = kind_of_tensor(found, requires_grad)
        else:
            tensor = found.requires_grad_(requires_grad)
        vars(tensor).update(attached)
        self.places[number] = Place(tensor, offset)
        return tensor


def _attach(handle: _Handle, nbytes: int, structure: bytes) -> nn.Module:
    """In the receiving process: an equal model over the same memory."""
    descriptor = handle.detach()
    receiver = _Receiver(io.BytesIO(structure), map_bytes(descriptor, nbytes))
    model: nn.Module = receiver.load()
    layout = Layout(tuple(receiver.places.values()), (), nbytes, 0)
    _remember(model, descriptor, layout, "sealed memory of another process")
    return model
