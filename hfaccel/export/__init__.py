"""Models exported to other engines: what of a model is exported, where exports are kept, how they run."""

from hfaccel.export.attach import attach, detach
from hfaccel.export.engine import Engine, Job, Session
from hfaccel.export.exporting import ExportingEngine, unpacked
from hfaccel.export.fingerprint import fingerprint, key
from hfaccel.export.interface import Flat, Interface, Sample, export_problem
from hfaccel.export.quiet import quiet
from hfaccel.export.running import running
from hfaccel.export.trial import TOLERANCE, difference, trial

__all__ = [
    "TOLERANCE",
    "Engine",
    "ExportingEngine",
    "Flat",
    "Interface",
    "Job",
    "Sample",
    "Session",
    "attach",
    "detach",
    "difference",
    "export_problem",
    "fingerprint",
    "key",
    "quiet",
    "running",
    "trial",
    "unpacked",
]
