"""Tuning: which settings are best for one model or script on this machine (docs/tune.md).

A tuned script may say by `hfaccel.tune.report(value)` how good a run was; otherwise its run time counts.
"""

from hfaccel.tune.reporting import report

__all__ = ["report"]
