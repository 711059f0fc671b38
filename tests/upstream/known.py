"""Tests that fail with hfaccel by its design, and tests that are not run, each with its reason."""

# pattern of a test's name -> why its failure is no fault of hfaccel
REASONS: dict[str, str] = {}

# tests that are not run at all -> why
DESELECTED: dict[str, str] = {}
