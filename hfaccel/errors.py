"""Errors of hfaccel: each states the rule, the value received and the remedy, and has an exit code."""


class HfaccelError(Exception):
    """An expected failure. Commands print it as one line, without a traceback, and exit with its code."""

    exit_code = 1


class UsageError(HfaccelError, ValueError):
    """An argument or option breaks a rule."""

    exit_code = 2


class ModelError(HfaccelError, TypeError):
    """The object given is not a model that hfaccel can work on."""

    exit_code = 2


class ScriptError(HfaccelError):
    """The program that `hfaccel-run` should start cannot be started."""

    exit_code = 2  # as Python itself ends then
