"""Many requests at once: continuous batching, without threads.

`scheduler` decides which tokens the next calls of the model compute, `lanes` computes them, `choosing` picks
the next tokens. `hfaccel.serve.Generator` drives the scheduler in a thread, pipelines drive it in theirs.
"""
