"""configure(): set this process up from inside, without restarting it; what optimize() may do unasked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from hfaccel.apply import hooks, process
from hfaccel.apply.program import settings_of_program
from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, read_host
from hfaccel.outcome import Outcome
from hfaccel.plan import Goal, Plan, Slot, make_plan, memory, rank_slot
from hfaccel.plan.make import within
from hfaccel.plan.placement import INSTANCES
from hfaccel.plan.profile import Profile, check_host, read_profile


class Reach(IntEnum):
    """How far into the process a configuration may reach."""

    ASKED = 0  # the knobs that were asked for, and nothing else
    HARMLESS = 1  # and what is harmless to the rest of the program
    ALL = 2


REACHES = {False: Reach.ASKED, "auto": Reach.HARMLESS, True: Reach.ALL}  # by the argument of optimize()


NO_PROFILE = Profile()


@dataclass(frozen=True)
class Configuration:
    """What was found, chosen and done in this process."""

    facts: HostFacts
    overrides: dict[str, object]  # of this call and those before it
    plan: Plan
    outcomes: tuple[Outcome, ...]
    slot: Slot | None = None  # its place among the ranks that were started on this machine
    program: Mapping[str, str] = field(default_factory=dict)  # knob -> how the program had set it before
    reach: Reach = Reach.ALL
    hooks: tuple[Outcome, ...] = ()  # on forks and on the starts of child processes
    profile: Profile = NO_PROFILE  # of this call or the last one that gave one

    def to_dict(self) -> dict[str, object]:
        return {
            "facts": self.facts.to_dict(),
            "plan": self.plan.to_dict(),
            "applied": [outcome.to_dict() for outcome in self.outcomes],
        }


_current: Configuration | None = None
_left: Mapping[str, str] = {}  # knob -> how undo() has left it: not the program's doing


def configure(*, profile: str | os.PathLike[str] | None = None, **overrides: object) -> Configuration:
    """Set the running process up: threads, affinity, memory policy, and glibc's malloc where that serves it.

    Without arguments, a second call changes nothing and returns the first's answer. `overrides` are
    added to those of earlier calls, and only what they change is applied: knobs by name (docs/knobs.md),
    for example `threads=4` or `allocator="default"`; they win over the environment and the rules, and so
    does what the program has set by itself before, such as torch.set_num_threads. Call it
    before threads are started: memory that they already hold keeps its old arenas.

    `profile`: a file that `hfaccel tune` wrote. Its knobs replace what the rules would choose; what only
    hfaccel-run can carry out is left to `hfaccel-run --profile`.

    Ranks that torchrun or mpirun started on one machine (LOCAL_RANK, LOCAL_WORLD_SIZE) share its cores
    between them. Child processes get the affinity mask that this process had before, unless you ask for
    `affinity` yourself; a forked child starts threads of its own instead of hanging in OpenMP.
    `hfaccel.configuration.undo()` puts back what can be put back.

    Raises UsageError for an unknown knob or value, and for a profile of another kind of host; what the system
    refuses is an Outcome with its reason.
    """
    return _set_up(Reach.ALL, overrides, None if profile is None else read_profile(profile))


def configure_for_model(wanted: bool | str = "auto", **overrides: object) -> Configuration:
    """Set the process up as far as a caller who asked for a fast model has asked for that, too.

    `wanted`: True does what configure() does, "auto" what is harmless to the rest of the program, False only
    `overrides`. What was done before stays. Raises UsageError for another value.
    """
    if wanted not in REACHES:
        raise UsageError(f"configure must be 'auto', True or False, but got {wanted!r}")
    return _set_up(REACHES[wanted], overrides)


def current() -> Configuration:
    """What was done in this process so far. Changes nothing."""
    return _current or _planned(Reach.ASKED, {})


def undo() -> tuple[Outcome, ...]:
    """Put this process back as it was before hfaccel configured it; says for each part how, or why not.

    The next configure() or optimize() configures it again; `optimize(model, configure=False)` does not.
    """
    global _current, _left
    before, _current = _current, None
    outcomes = (*process.undo(), *map(_undo_hook, before.hooks if before else ()))
    undone = {outcome.subject for outcome in outcomes if outcome.applied}
    found = settings_of_program(read_host())
    _left = {**_left, **{knob: how for knob, how in found.items() if knob in undone}}
    return outcomes


@contextlib.contextmanager
def weights_placed() -> Iterator[None]:
    """Place the weights that are made meanwhile on the NUMA nodes of the plan, also where configure() was
    not asked for: weights are ours, while other memory of this thread is the program's."""
    global _current
    now, knob = _current, "memory_policy"
    if now is None or now.reach is not Reach.HARMLESS or now.plan[knob].value is None:
        yield
        return
    with process.applied_meanwhile(knob, now.plan) as outcome:
        told = Outcome(knob, False, f"left to configure(), but while weights are placed: {outcome.reason}")
        _current = replace(now, outcomes=tuple(told if o.subject == knob else o for o in now.outcomes))
        yield


def _set_up(reach: Reach, overrides: dict[str, object], profile: Profile | None = None) -> Configuration:
    global _current
    before = _current
    if before is not None and not overrides and profile is None and reach <= before.reach:
        return before
    planned = _planned(max(reach, before.reach) if before else reach, overrides, profile)
    installed = _install_hooks(planned, before)
    kept = {outcome.subject: outcome for outcome in planned.outcomes}
    done = kept | (_done(before, planned.plan, overrides) if before else {})
    outcomes = process.apply_plan(planned.plan, done)
    _current = replace(planned, outcomes=tuple(outcomes), hooks=installed)
    return _current


def _planned(reach: Reach, overrides: dict[str, object], profile: Profile | None = None) -> Configuration:
    """What is to be done now; `outcomes` are those of knobs that are left as they are."""
    facts, before = read_host(), _current
    wanted = {**(before.overrides if before else {}), **overrides}
    # A rank keeps its place: later its own mask is smaller than its parent's.
    slot = before.slot if before else rank_slot(facts, os.environ)
    program = _of_program(facts, before)
    tuned = profile or (before.profile if before else NO_PROFILE)
    if profile is not None and (before is None or before.profile.host != profile.host):
        _check_profile(profile, facts, slot)
    goal = Goal("process", wanted, dict(os.environ), _of_process(tuned, facts), slot, program)
    plan = make_plan(facts, goal)
    left = [
        Outcome(knob, False, f"left to configure(): {step.why}")
        for knob, step in process.STEPS.items()
        if reach < (Reach.HARMLESS if step.harmless else Reach.ALL) and knob not in wanted
    ]
    return Configuration(facts, wanted, plan, tuple(left), slot, program, reach, profile=tuned)


def _check_profile(profile: Profile, facts: HostFacts, slot: Slot | None) -> None:
    """Raise UsageError for a profile of another kind of host, or of more processes than run here."""
    started, wanted = os.environ.get(INSTANCES, "1"), profile.request().instances or 1
    if started != "1":
        facts = within(facts, facts.limits.parent_affinity or facts.limits.affinity)
    elif slot is not None:
        facts = within(facts, slot.cpus)
    check_host(profile, facts)
    if str(wanted) not in ("1", started):
        raise UsageError(
            f"a profile of {wanted} instances must be given to hfaccel-run, which starts them, but "
            f"{profile.path!r} was given to configure() in one process; use hfaccel-run --profile"
        )


def _of_process(profile: Profile, facts: HostFacts) -> dict[str, object]:
    """The knobs of a profile, without an allocator that serves malloc already."""
    preloaded = memory.preloaded_allocator(facts)
    return {name: value for name, value in profile.knobs.items() if name != "allocator" or not preloaded}


def _of_program(facts: HostFacts, before: Configuration | None) -> dict[str, str]:
    """What the program has set, knob by knob: what was so when a knob was first applied, and is now for the
    others."""
    found = {knob: how for knob, how in settings_of_program(facts).items() if _left.get(knob) != how}
    if before is None:
        return found
    ours = {outcome.subject for outcome in before.outcomes if outcome.applied}
    return {knob: how for knob, how in {**found, **before.program}.items() if knob not in ours}


_TOGETHER = {"allocator": "retained_memory"}  # knob -> the one that is applied with it


def _done(before: Configuration, plan: Plan, overrides: dict[str, object]) -> dict[str, Outcome]:
    """What was applied already and is neither planned otherwise now nor asked for in this call: the program
    may have changed it since."""
    return {
        outcome.subject: outcome
        for outcome in before.outcomes
        if outcome.applied
        and all(
            knob not in overrides and plan[knob].value == before.plan[knob].value
            for knob in (outcome.subject, _TOGETHER.get(outcome.subject, outcome.subject))
        )
    }


# Hooks

FORKS, CHILDREN = "forks", "affinity of children"


def _install_hooks(planned: Configuration, before: Configuration | None) -> tuple[Outcome, ...]:
    """Those that `before` has not installed."""
    since = before.reach if before else Reach.ASKED
    if since is Reach.ALL and before:
        return before.hooks
    if planned.reach is Reach.ALL:
        hooks.keep_affinity_over_import()
    if since < Reach.HARMLESS <= planned.reach:
        hooks.survive_forks()
    return (_forks(planned.reach), _children(planned))


def _forks(reach: Reach) -> Outcome:
    if reach < Reach.HARMLESS:
        return Outcome(FORKS, False, "left to configure(): a forked child may wait for ever for threads")
    reason = "a forked child starts threads of its own: it has none of those that optimizing has started"
    return Outcome(FORKS, True, reason)


def _children(planned: Configuration) -> Outcome:
    choice = planned.plan["affinity"]
    ours = choice.value is not None and choice.source == "rule" and planned.slot is None
    if planned.reach < Reach.ALL or not ours:
        return Outcome(CHILDREN, False, "they inherit this process's, which is not changed")
    hooks.give_children_affinity(set(planned.facts.limits.affinity))
    return Outcome(CHILDREN, True, "they have the one that this process had")


def _undo_hook(installed: Outcome) -> Outcome:
    if not installed.applied:
        return installed
    if installed.subject == FORKS:
        return Outcome(FORKS, False, "libc keeps what runs at forks; it costs nothing else")
    hooks.give_children_affinity(None)
    return Outcome(CHILDREN, True, "they inherit this process's")
