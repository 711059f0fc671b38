"""Weights in the layout that the kernels read, and the linear layers that multiply them."""
