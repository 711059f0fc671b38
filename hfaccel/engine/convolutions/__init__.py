"""Convolutions that compute from prepared weights, and the parts of a model that run channels last."""
