"""The parts of torch and transformers that promise nobody to stay, each behind a probe of its own.

Every private name that hfaccel uses stands once in this package: `of_torch`, `of_transformers` and
`of_pipelines` say what each is, check once that it is as expected, and give it to the rest of the code. A
probe that fails raises nothing: whoever needs the part asks for the `problem` and leaves out what it does.
"""

from hfaccel.upstream.probe import PROBES, Need, Probe, outcomes, problem
from hfaccel.upstream.versions import TESTED, installed, untested

__all__ = ["PROBES", "TESTED", "Need", "Probe", "installed", "outcomes", "problem", "untested"]
