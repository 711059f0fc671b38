"""Memory on huge pages for tensors: empty, pack_, share, coverage, release."""

from hfaccel.memory.arena import Arena, Pages, empty, padded
from hfaccel.memory.coverage import coverage
from hfaccel.memory.layout import Layout, digest, lay_out, view
from hfaccel.memory.mapping import map_bytes
from hfaccel.memory.pack import Packed, held, pack_
from hfaccel.memory.release import release
from hfaccel.memory.sharing import Shared, share, shared

__all__ = [
    "Arena",
    "Layout",
    "Packed",
    "Pages",
    "Shared",
    "coverage",
    "digest",
    "empty",
    "held",
    "lay_out",
    "map_bytes",
    "pack_",
    "padded",
    "release",
    "share",
    "shared",
    "view",
]
