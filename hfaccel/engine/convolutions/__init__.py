"""Convolutions that are computed from prepared weights, and the parts of a model that they need."""
