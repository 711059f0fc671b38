"""Measurements on this machine and on these weights: speed-ups, and the error of rounding."""
