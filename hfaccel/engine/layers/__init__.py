"""Encoder layers that the kernels compute as one, with the embeddings before them and stacks of them."""
