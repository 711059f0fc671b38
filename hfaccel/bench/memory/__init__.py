"""What the placement of memory costs: one workload under several allocators, each in fresh processes.

docs/memory.md tells what was claimed about placement and how to read the figures.
"""

from hfaccel.bench.memory.kernel import Alignment, probe_alignment
from hfaccel.bench.memory.rounds import Setting, measure
from hfaccel.bench.memory.ways import Way, find_ways
from hfaccel.bench.memory.workloads import Workload, workloads

__all__ = ["Alignment", "Setting", "Way", "Workload", "find_ways", "measure", "probe_alignment", "workloads"]
