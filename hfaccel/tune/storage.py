"""Where trials are kept: a study of Optuna's in a file of SQLite, so that an interrupted search goes on."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hfaccel.errors import HfaccelError, UsageError

if TYPE_CHECKING:
    import optuna

NAME = "hfaccel"  # of the study in its file
IDENTITY = "identity"
HEADER = b"SQLite format 3\0"
STARTUP = 5  # trials before Optuna's sampler has a model of its own


@contextlib.contextmanager
def open_study(path: Path | None, identity: Mapping[str, object], seed: int) -> Iterator[optuna.Study]:
    """The study in this file, a new one where there is none; in memory without a path.

    Raises UsageError for a file that is no study, or one of something else than `identity` tells,
    HfaccelError where the file cannot be written.
    """
    check_installed()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with guarded(path):
        study = _load(path, seed)
        _check_identity(study, identity, path)
        yield study


def check_installed() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            f"hfaccel tune needs optuna, but {error.name} is not installed; pip install 'hfaccel[tune]'"
        ) from None


def _load(path: Path | None, seed: int) -> optuna.Study:
    import optuna

    if path is not None and not path.resolve().parent.is_dir():
        raise UsageError(f"a storage must be in a folder that exists, but got {str(path)!r}")
    if path is not None and path.exists():
        _check_header(path)
    storage = None if path is None else f"sqlite:///{path.resolve()}"
    study = optuna.create_study(storage=storage, study_name=NAME, load_if_exists=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of multivariate
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(study.get_trials(deepcopy=False)), multivariate=True, n_startup_trials=STARTUP
        )
    return study


def _check_header(path: Path) -> None:
    """SQLite would write over a short file of something else."""
    try:
        with path.open("rb") as file:
            start = file.read(len(HEADER))
    except OSError as error:
        raise UsageError(f"a storage must be readable, but {str(path)!r} is not ({error.strerror})") from None
    if start not in (b"", HEADER):
        raise UsageError(
            f"a storage must be a file of SQLite, but {str(path)!r} is not; give another --storage"
        )


def _check_identity(study: optuna.Study, identity: Mapping[str, object], path: Path | None) -> None:
    """A new study gets the identity; another one must have it."""
    wanted = json.loads(json.dumps(identity))
    found = study.user_attrs.get(IDENTITY)
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, wanted)
        return
    found = found if isinstance(found, dict) else {}
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        shown = "; ".join(f"its {name} is {found.get(name)}, not {wanted[name]}" for name in differing)
        raise UsageError(
            f"a storage must hold the same search, but in {str(path)!r} {shown}; "
            "give another --storage, or remove the file"
        )


@contextlib.contextmanager
def guarded(path: Path | None) -> Iterator[None]:
    """Errors of the database as one line."""
    import optuna
    import sqlalchemy

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        text = str(error.__cause__ or error).strip().splitlines()[0]
        raise HfaccelError(
            f"a storage must be a writable file of SQLite, but {str(path)!r} is not: {text}; "
            "make room, or give another --storage"
        ) from None
    except RuntimeError as error:
        if "table schema" not in str(error):
            raise
        raise UsageError(
            f"a storage must be of the installed version of optuna, but {str(path)!r} is not; "
            "give another --storage, or remove the file"
        ) from None
