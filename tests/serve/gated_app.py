"""The example's app around a function that computes while the file GATE exists; no model.

Its batches are written to the file BATCHES, one JSON list of texts a line.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from serve_fastapi import create_app

from hfaccel.serve import Batcher


class Vector(list):
    def tolist(self):
        return list(self)


def vectors(texts):
    with Path(os.environ["BATCHES"]).open("a") as batches:
        batches.write(json.dumps(texts) + "\n")
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.005)
    return [Vector(map(float, text.encode())) for text in texts]


app = create_app(lambda: Batcher(vectors, max_batch=4, max_queue=8))
