"""Where packed bytes keep what: the order in which the kernels read a weight (native/kernels/gemm.h)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from hfaccel.engine.kernels import GROUP, Kind, kernels, panel
from hfaccel.engine.weights.grid import find_grid
from hfaccel.engine.weights.groups import round_groups, table_of, values_of
from hfaccel.native import NativeMatrix

WORD = 4  # bytes
EXACT = 4  # inputs of an int8 weight that may be left unrounded (native/kernels/gemm.h)


@dataclass(frozen=True)
class Layout:
    """Where in its memory a packed (rows, columns) weight keeps what."""

    kind: Kind
    rows: int  # out_features: the kernels' columns
    columns: int  # in_features
    panel: int = field(default_factory=panel)  # rows that lie together: as the kernels in use read them

    @property
    def panels(self) -> int:
        return -(-self.rows // self.panel)

    @property
    def words(self) -> int:
        """Of one row: of groups, with the scales behind each."""
        if self.kind.is_grouped:
            return -(-self.columns // self.kind.group) * (self.kind.group // self.kind.numbers + 1)
        return -(-self.columns // self.kind.numbers)

    @property
    def panel_bytes(self) -> int:
        return self.panels * self.words * self.panel * WORD

    @property
    def nbytes(self) -> int:
        if self.kind is not Kind.INT8:
            return self.panel_bytes
        return self.panel_bytes + ((2 + EXACT) * self.panels * self.panel + self.columns + EXACT) * WORD

    def panels_of(self, memory: torch.Tensor) -> torch.Tensor:
        """(panels, panel, words) of int32: row by row, as a view of the memory."""
        words = memory[: self.panel_bytes].view(torch.int32)
        return words.view(self.panels, self.words, self.panel).transpose(1, 2)

    def numbers_of_rows(self, memory: torch.Tensor) -> torch.Tensor:
        """(2, rows) of float32, int8 only: the scale of each row, and the sum of its (rounded) values."""
        end = self.panel_bytes + 2 * self.panels * self.panel * WORD
        numbers = memory[self.panel_bytes : end].view(torch.float32)
        return numbers.view(2, self.panels * self.panel)[:, : self.rows]

    def factors(self, memory: torch.Tensor) -> torch.Tensor:
        """(columns,) of float32, int8 only: what activations are multiplied with, and weights divided by."""
        start = self.factors_start
        return memory[start : start + self.columns * WORD].view(torch.float32)

    @property
    def factors_start(self) -> int:
        """In bytes."""
        return self.panel_bytes + 2 * self.panels * self.panel * WORD

    def exact(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 only: inputs whose factor is 0, which are not rounded; (EXACT,) of int32, all -1 where there
        are none. And their weights, (EXACT, rows) of float32; 0 where there are fewer."""
        start = self.factors_start + self.columns * WORD
        weights = memory[start : self.nbytes - EXACT * WORD].view(torch.float32)
        inputs = memory[self.nbytes - EXACT * WORD : self.nbytes].view(torch.int32)
        return inputs, weights.view(EXACT, self.panels * self.panel)[:, : self.rows]

    def matrix(self, memory: torch.Tensor, bias: torch.Tensor | None, rows: slice) -> NativeMatrix:
        """Some rows of the weight, from a multiple of WIDEST_PANEL on."""
        start, stop = rows.start, rows.stop
        address = memory.data_ptr()
        panels = address + start * self.words * WORD
        added = 0 if bias is None else bias.data_ptr() + start * WORD
        if self.kind is not Kind.INT8:
            return kernels().Matrix(self.kind, stop - start, self.columns, panels, added)
        scales = address + self.panel_bytes + start * WORD
        sums = scales + self.panels * self.panel * WORD
        factors = address + self.factors_start
        exact = exact_inputs = 0
        if int(self.exact(memory)[0][0]) >= 0:
            exact, exact_inputs = factors + self.columns * WORD, address + self.nbytes - EXACT * WORD
            assert (start, stop) == (0, self.rows), "parts of a weight share their inputs, which are rounded"
        of_int8 = scales, sums, factors, exact, exact_inputs
        return kernels().Matrix(self.kind, stop - start, self.columns, panels, added, of_int8)


def write(
    layout: Layout,
    dense: torch.Tensor,
    memory: torch.Tensor,
    table: torch.Tensor | None = None,
    importance: torch.Tensor | None = None,
) -> None:
    """Pack the (rows, columns) weight into `memory`. `table`: of groups, the scales to round with
    (group_scales); None: those of the grid on which the values lie, or those with the least error.
    `importance`: of groups, how much the square of the error of each column counts."""
    if layout.kind.is_grouped:
        table = _table_of_grid(layout.kind, dense) if table is None else table
        words = round_groups(dense.detach(), layout.kind, table, importance)
    else:
        words = _words(layout, dense, memory)
    write_words(layout, words, memory)


def _table_of_grid(kind: Kind, dense: torch.Tensor) -> torch.Tensor | None:
    """Kinds in smaller groups are those of weights that lie on a grid, and of weights that must be of one
    kind with them: of more bits, perhaps, or of groups that are parts of the grid's."""
    grid = find_grid(dense, kind.bits) if kind.group < GROUP else None
    if grid is None or kind.group > grid.kind.group or (kind.bits == 4 and kind is not grid.kind):
        return None
    return grid.table.repeat_interleave(grid.kind.group // kind.group, 1)


def write_words(layout: Layout, words: torch.Tensor, memory: torch.Tensor) -> None:
    """Lay (rows, words) of int32 out in `memory`."""
    panels, size = layout.panels_of(memory), layout.panel
    whole = layout.rows // size
    panels[:whole].copy_(words[: whole * size].view(whole, size, layout.words))
    if whole < layout.panels:
        panels[whole].zero_()
        panels[whole, : layout.rows - whole * size].copy_(words[whole * size :])


def _read_words(layout: Layout, memory: torch.Tensor) -> torch.Tensor:
    """(rows, words) of int32."""
    rows = layout.panels_of(memory).reshape(layout.panels * layout.panel, layout.words)
    return rows[: layout.rows].contiguous()


def group_scales(layout: Layout, memory: torch.Tensor) -> torch.Tensor:
    """(rows, groups) of int32, of kinds in groups only."""
    return table_of(_read_words(layout, memory), layout.kind)


def laid_out_anew(layout: Layout, memory: torch.Tensor) -> torch.Tensor:
    """The same numbers, to the bit, in the layout of the kernels in use."""
    here = replace(layout, panel=panel())
    result = torch.zeros(here.nbytes, dtype=torch.uint8)
    write_words(here, _read_words(layout, memory), result)
    if layout.kind is Kind.INT8:
        here.numbers_of_rows(result).copy_(layout.numbers_of_rows(memory))
        here.factors(result).copy_(layout.factors(memory))
        for mine, theirs in zip(here.exact(result), layout.exact(memory), strict=True):
            mine.copy_(theirs)
    return result


def _words(layout: Layout, dense: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """(rows, words) of int32: the numbers in the layout's kind."""
    values = dense.detach()
    if layout.kind is Kind.INT8:
        values = _rounded_part(layout, values.float(), memory)
        scales = values.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny) / 127
        numbers = (values / scales[:, None]).round_().to(torch.int8)
        table = layout.numbers_of_rows(memory)
        table[0].copy_(scales)
        table[1].copy_(numbers.sum(1, dtype=torch.int32) * scales)
    else:
        numbers = values.to(torch.bfloat16 if layout.kind is Kind.BFLOAT16 else torch.float32)
    padding = layout.words * layout.kind.numbers - layout.columns
    if padding:
        numbers = nn.functional.pad(numbers, (0, padding))
    return numbers.contiguous().view(torch.int32)


def _rounded_part(layout: Layout, values: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """The values divided by the factors; without those that are kept as they are."""
    factors = layout.factors(memory)
    exact = (factors == 0).nonzero().flatten()
    if len(exact) > EXACT:
        raise ValueError(f"at most {EXACT} factors may be 0, but {len(exact)} are; use factors above 0")
    inputs, weights = layout.exact(memory)
    weights.zero_()
    inputs.fill_(0 if len(exact) else -1)
    inputs[: len(exact)] = exact.int()
    weights[: len(exact)] = values[:, exact].t()
    return torch.where(factors == 0, 0.0, values / factors)


def read(layout: Layout, memory: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight in the ordinary layout."""
    return _values(layout, memory, _read_words(layout, memory), slice(None), dtype)


def read_rows(layout: Layout, memory: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """These rows of the weight in the ordinary layout: (number of ids, columns)."""
    words = layout.panels_of(memory)[ids // layout.panel, ids % layout.panel]
    return _values(layout, memory, words, ids, dtype)


def _values(
    layout: Layout,
    memory: torch.Tensor,
    words: torch.Tensor,
    rows: torch.Tensor | slice,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What the words of these rows stand for."""
    if layout.kind.is_grouped:
        return values_of(words, layout.kind, layout.columns, dtype)
    types = {Kind.FLOAT32: torch.float32, Kind.BFLOAT16: torch.bfloat16, Kind.INT8: torch.int8}
    numbers = words.view(types[layout.kind])[:, : layout.columns]
    if layout.kind is Kind.INT8:
        scales = layout.numbers_of_rows(memory)[0][rows]
        values = numbers * scales[:, None] * layout.factors(memory)
        inputs, weights = layout.exact(memory)
        if int(inputs[0]) >= 0:
            values.index_add_(1, inputs, weights[:, rows].t())
        return values.to(dtype)
    return numbers.to(dtype).contiguous()
