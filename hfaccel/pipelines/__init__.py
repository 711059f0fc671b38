"""transformers' pipelines, run differently: near lengths together, all else beside the model.

`wrap` gives a pipeline this loop, `unwrap` takes it away, `profile` tells where the time of one goes.
Nothing here imports transformers before a pipeline is given.
"""
