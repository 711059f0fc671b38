"""What a search has found: as a profile, as the table `tuning` of a result file, and as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hfaccel.bench.setting import Setting
from hfaccel.host import HostFacts
from hfaccel.plan.profile import Profile, kind_of, write_profile
from hfaccel.tables import render
from hfaccel.tune.leaders import Standing, winner
from hfaccel.tune.machines import arguments_of, profile_of
from hfaccel.tune.model import Candidates, Tried
from hfaccel.tune.objective import Objective
from hfaccel.tune.space import Space
from hfaccel.tune.trials import FAILED, Trial

SHOWN = 10  # trials in the table
LEAST_TRIED = 8  # trials from which the model's effects are shown


@dataclass(frozen=True)
class Outcome:
    """All that is known at the end, or where the search was stopped."""

    subject: str  # the model, or the script and its arguments
    work: str
    objective: Objective
    unit: str
    space: Space
    found: Sequence[Trial]
    standings: Sequence[Standing] = ()
    unverified: str = ""
    notes: Sequence[str] = ()  # what else happened on the machine

    @property
    def best(self) -> Standing | None:
        return winner(self.standings, self.objective)

    @property
    def default(self) -> Trial | None:
        return next((one for one in self.found if one.setting == self.space.default), None)

    def value(self, score: float | None) -> str:
        if score is None:
            return "-"
        unit = self.unit if self.objective.is_kept(score) else "times the limit"
        shown = self.objective.value(score) if self.objective.is_kept(score) else score / 1e6
        return f"{shown:.4g} {unit}".strip()

    @property
    def tried(self) -> list[Tried]:
        return [Tried(one.setting, one.score) for one in self.found]


# As a profile


def profile(outcome: Outcome, facts: HostFacts, date: str, versions: Mapping[str, str]) -> str:
    """The text of the profile's file. Where nothing beat the default, it leaves all knobs to the rules."""
    best = outcome.best
    chosen = profile_of(best.setting) if best else Profile()
    setting = best.setting if best else outcome.space.default
    told = "Settings that hfaccel tune found; docs/tune.md tells about them."
    if best is None:
        told = "hfaccel tune found nothing better than what hfaccel chooses by itself: no knob is set."
    comments = [told, "Use: hfaccel-run --profile FILE script.py"]
    asking = arguments_of(setting) if "engine" in outcome.space.default_point else ""
    comments += [f"Measured with {asking}"] if asking else []
    filled = chosen._replace(
        model=_model(setting) if asking else {},
        host=kind_of(facts)._asdict(),
        evidence=_evidence(outcome, best, date, versions),
    )
    return write_profile(filled, tuple(comments))


def _model(setting: Setting) -> dict[str, object]:
    budget = {} if setting.token_budget is None else {"token_budget": setting.token_budget}
    return {"backend": setting.backend, "precision": setting.precision, **budget}


def _evidence(
    outcome: Outcome, best: Standing | None, date: str, versions: Mapping[str, str]
) -> dict[str, object]:
    told: dict[str, object] = {
        "subject": outcome.subject,
        "work": outcome.work,
        "objective": str(outcome.objective),
        "date": date,
        "trials": len(outcome.found),
        "failed": sum(one.state == FAILED for one in outcome.found),
        **{f"version_{name}": version for name, version in versions.items()},
    }
    if best is not None and best.ratio is not None and best.score and best.base_score:
        told |= {
            "tuned": outcome.value(best.score),
            "default": outcome.value(best.base_score),
            "gain": round(best.gain, 3),
            "gain_low": round(best.ratio.low, 3),
            "gain_high": round(best.ratio.high, 3),
            "pairs": best.ratio.pairs,
        }
    if outcome.unverified:
        told["unverified"] = outcome.unverified
    return told | ({"notes": list(outcome.notes)} if outcome.notes else {})


# As data


def tuning(outcome: Outcome) -> dict[str, object]:
    """The table `tuning` of a result file."""
    best, default = outcome.best, outcome.default
    numbers = {one.setting: one.number for one in outcome.found}
    return {
        "objective": str(outcome.objective),
        "unit": outcome.unit,
        "trials": [_row(outcome, one) for one in outcome.found],
        "best": numbers.get(best.setting) if best else None if default is None else default.number,
        "default": None if default is None else default.number,
        "importances": _importances(outcome),
        "leaders": [_standing(outcome, one, numbers) for one in outcome.standings],
        "unverified": outcome.unverified,
        "notes": list(outcome.notes),
    }


def _row(outcome: Outcome, one: Trial) -> dict[str, object]:
    kept = one.score is not None and outcome.objective.is_kept(one.score)
    return {
        "number": one.number,
        "setting": one.setting.to_dict(),
        "value": outcome.objective.value(one.score) if kept and one.score is not None else None,
        "state": one.state,
        "reason": one.reason,
        "seconds": one.seconds,
        "figures": dict(one.figures),
    }


def _standing(outcome: Outcome, one: Standing, numbers: Mapping[Setting, int]) -> dict[str, object]:
    return {
        "number": numbers.get(one.setting),
        "ratio": None if one.ratio is None else {**one.ratio.to_dict(), "to": "default"},
        "reason": one.problem,
    }


def _importances(outcome: Outcome) -> dict[str, float]:
    if all(one.score is None for one in outcome.found):
        return {}
    shares = Candidates(outcome.space).importances(outcome.tried)
    return {name: round(share, 4) for name, share in sorted(shares.items(), key=lambda item: -item[1])}


# As text


def text(outcome: Outcome) -> str:
    ranked = sorted(outcome.found, key=lambda one: (one.score is None, one.score, one.number))
    rows = [
        [one.number, one.setting.label(), outcome.value(one.score), one.state, one.reason or "-"]
        for one in ranked[:SHOWN]
    ]
    title = f"{outcome.objective}: {len(rows)} of {len(outcome.found)} trials"
    parts = [render(title, ["trial", "setting", "value", "state", "reason"], rows).rstrip()]
    parts += _failures(outcome) + _why(outcome) + _ends(outcome)
    return "\n".join(parts)


def _failures(outcome: Outcome) -> list[str]:
    failed = [one for one in outcome.found if one.state == FAILED]
    reasons = dict.fromkeys(one.reason for one in failed)
    return [f"{sum(one.reason == reason for one in failed)} failed: {reason}" for reason in reasons]


def _why(outcome: Outcome) -> list[str]:
    if len(outcome.found) < LEAST_TRIED or all(one.score is None for one in outcome.found):
        return []
    shares = ", ".join(
        f"{name} {share:.0%}" for name, share in _importances(outcome).items() if share >= 0.01
    )
    lines = [f"what the differences come from, as modelled: {shares}"] if shares else []
    for axis, times in Candidates(outcome.space).effects(outcome.tried).items():
        ranked = sorted(times.items(), key=lambda item: item[1])
        if ranked[-1][1] > 1.01:
            others = ", ".join(f"{value} {factor:.2f}" for value, factor in ranked[1:])
            lines.append(f"  {axis}: {ranked[0][0]}, and in its place {others} times as much")
    return lines


def _ends(outcome: Outcome) -> list[str]:
    lines = [f"not verified: {outcome.unverified}"] if outcome.unverified else []
    lines += [f"meanwhile {note}: figures are less certain" for note in outcome.notes]
    for one in outcome.standings:
        if one.ratio is None:
            lines.append(f"{one.setting.label()}: not compared with the default: {one.problem}")
            continue
        verdict = "" if one.ratio.significant else ", which may be noise"
        lines.append(
            f"{one.setting.label()}: {one.gain:.3f} times as good as the default "
            f"({one.ratio.low:.3f} to {one.ratio.high:.3f}, {one.ratio.pairs} pairs){verdict}"
        )
    if not outcome.standings:
        return lines
    best = outcome.best
    if best is None:
        return [*lines, "the default stays: nothing was measured to be better"]
    asking = arguments_of(best.setting) if "engine" in outcome.space.default_point else ""
    return [*lines, f"best: {best.setting.label()}", *([f"in the program: {asking}"] if asking else [])]
