"""Checks of the environment, each with advice."""

from hfaccel.doctor.check import Check, Diagnosis, Finding, diagnose
from hfaccel.doctor.checks import CHECKS

__all__ = ["CHECKS", "Check", "Diagnosis", "Finding", "diagnose"]
