"""Models exported for other engines: kept in build/peers/models, as an export is not what is measured."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "peers" / "models"


def exported(name: str, write: Callable[[Path], None]) -> Path:
    """The folder of that name in build/peers/models, filled by `write` unless it is there."""
    target = FOLDER / name
    if not target.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=FOLDER))
        write(temporary)
        try:
            temporary.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(temporary)
    return target
