"""What transformers collects during a call, by hooks of its own, because the call asked for it."""

from __future__ import annotations

import sys
from collections.abc import Collection

# Hooks that transformers itself installs for output_attentions; with sdpa there is nothing to capture.
HARMLESS_HOOKS = "transformers.utils.output_capturing"


def collected() -> Collection[str] | None:
    """Names of what is collected now, in this thread; None where nobody can tell."""
    collector = getattr(sys.modules.get(HARMLESS_HOOKS), "_active_collector", None)
    return None if collector is None else collector.get() or ()
