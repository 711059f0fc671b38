"""Mixtures of experts whose weights are packed, an expert each."""
