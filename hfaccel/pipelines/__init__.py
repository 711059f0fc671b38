"""A faster loop for transformers' pipelines: similar lengths share batches, and inputs are prepared while the
model computes.

`wrap` gives a pipeline this loop, `unwrap` takes it away, `profile` shows where a pipeline spends its time.
Nothing here imports transformers before a pipeline is given.
"""
