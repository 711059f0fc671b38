"""What one request asks for, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hfaccel.errors import UsageError, check_count, whole_number
from hfaccel.generation.config import DONE


@dataclass(frozen=True)
class Settings:
    """Of one request. `top_k=0`, `top_p=1` and `min_p=0` keep every token."""

    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    eos: frozenset[int] = frozenset()
    logprobs: bool = False

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens)
        for name, least, most in BOUNDS:
            _check_number(name, getattr(self, name), least, most)
        for name in WHOLE:
            value = whole_number(getattr(self, name))
            if value is None or value < 0:
                raise UsageError(f"`{name} >= 0` must hold, but got {getattr(self, name)!r}")
        if self.seed is not None and not _is_seed(self.seed):
            raise UsageError(f"`seed` must be an integer of 64 bits or None, but got {self.seed!r}")
        if not all(isinstance(each, str) and each for each in self.stop):
            raise UsageError(f"`stop` must be texts that are not empty, but got {self.stop!r}")


# Least and most; None: above 0.
BOUNDS = (
    ("temperature", None, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", None, 100.0),
)
WHOLE = ("min_new_tokens", "top_k")
NAMES = (frozenset(field.name for field in fields(Settings)) | {"eos_token_id"}) - {"eos"}


def _is_seed(value: object) -> bool:
    number = whole_number(value)
    return number is not None and -(1 << 63) <= number < 1 << 64


def _check_number(name: str, value: object, least: float | None, most: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (value > 0 if least is None else least <= value) and value <= most:  # type: ignore[operator]
        return
    rule = f"0 < {name}" if least is None else f"{least:g} <= {name}"
    remedy = "; do_sample=False takes the likeliest token" if name == "temperature" else ""
    raise UsageError(f"`{rule} <= {most:g}` must hold, but got {value!r}{remedy}")


def make_settings(defaults: Mapping[str, object], asked: Mapping[str, object], most: int) -> Settings:
    """`defaults`: of a generation config. `most`: new tokens that there is room for. None in `asked` stands
    for the default."""
    if strange := sorted(asked.keys() - NAMES):
        raise UsageError(f"a setting must be one of {', '.join(sorted(NAMES))}, but got {', '.join(strange)}")
    known = {name: defaults[name] for name in sorted(DONE) if defaults.get(name) is not None}
    given: dict[str, Any] = {**known, **{name: value for name, value in asked.items() if value is not None}}
    wanted = check_count("max_new_tokens", given.pop("max_new_tokens", most))
    stop, eos = given.pop("stop", ()), given.pop("eos_token_id", ())
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    whole = {name: whole_number(given[name]) for name in WHOLE if whole_number(given.get(name)) is not None}
    return Settings(max_new_tokens=min(wanted, most), stop=stop, eos=ends(eos), **{**given, **whole})


def ends(eos: object) -> frozenset[int]:
    """Tokens that end a text, from one or several."""
    several = eos if isinstance(eos, Iterable) else (eos,)
    numbers = [whole_number(each) for each in several]
    if None in numbers:
        raise UsageError(f"`eos_token_id` must be a token or several, but got {eos!r}; () for none")
    return frozenset(number for number in numbers if number is not None)


def check_prompt(ids: Sequence[object], vocabulary: int, room: int) -> list[int]:
    """The prompt's tokens. Raises UsageError for a prompt that the model cannot continue."""
    if not ids:
        raise UsageError("a prompt must have a token, but got none; begin with the tokenizer's bos_token")
    if len(ids) >= room:
        raise UsageError(
            f"a prompt must be shorter than {room} tokens, but has {len(ids)}; cut it, or raise `tokens` "
            "if the model's own limit is higher"
        )
    return [_checked_token(each, vocabulary) for each in ids]


def _checked_token(token: object, vocabulary: int) -> int:
    number = whole_number(token)
    if number is None or not 0 <= number < vocabulary:
        raise UsageError(f"a token must be a number from 0 to {vocabulary - 1}, but got {token!r}")
    return number
