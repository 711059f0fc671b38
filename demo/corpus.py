"""Real texts that every Python installation has. They come with hfaccel, which measures on them too."""

from hfaccel.bench.corpus import texts

__all__ = ["texts"]
