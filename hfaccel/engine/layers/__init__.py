"""Encoder layers that the kernels compute as one, and what is around them in a model."""
