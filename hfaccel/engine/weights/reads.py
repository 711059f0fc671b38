"""Reads of a packed weight below torch's operators get the values of a dense copy, or an error, because the
bytes in memory are in the kernels' order."""

from __future__ import annotations

from typing import Any

import torch

NO_ADDRESS = (
    "raw memory must be in the ordinary layout, but this weight is packed for hfaccel's kernels; "
    "use weight.detach().clone(), or hfaccel.restore(model) first"
)


TIED = "_hfaccel_tied"  # attribute of a weight that an embedding has too


class ReadsDense(torch.Tensor):
    """Mixed into a tensor that has `unpack`."""

    memory: torch.Tensor

    def unpack(self) -> torch.Tensor:
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        """A copy in the ordinary layout that requires a gradient if this weight does."""
        return self.unpack().requires_grad_(self.requires_grad)

    def to_dense(self, *args: object, **kwargs: object) -> torch.Tensor:
        return self.dense()

    def numpy(self, *, force: bool = False) -> Any:
        return self.dense().numpy(force=force)

    def __array__(self, dtype: object = None) -> object:
        return self.dense().__array__(dtype)

    def tolist(self) -> list[Any]:
        return self.unpack().tolist()

    def __dlpack__(self, **kwargs: Any) -> object:
        return self.dense().__dlpack__(**kwargs)

    def data_ptr(self) -> int:
        """Only of a weight that an embedding has too: peft compares addresses to see what is tied."""
        if vars(self).get(TIED):
            return self.memory.data_ptr()
        raise RuntimeError(NO_ADDRESS)

    def untyped_storage(self) -> torch.UntypedStorage:
        raise RuntimeError(NO_ADDRESS)
