"""Runs in a Python that hfaccel-run started, before the program.

Removes the variables that were meant for this process alone, so that the program and its children see the
user's environment, and then runs the user's own sitecustomize, if there is one. Everything is inside one
function, so that no name stays behind.
"""


def _start() -> None:
    import os
    import sys

    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (pathlib costs 10 ms)
    saved = "HFACCEL_SAVED_"
    for name in [name for name in os.environ if name.startswith(saved)]:
        value = os.environ.pop(name)
        if value:
            os.environ[name.removeprefix(saved)] = value.removeprefix("=")
        else:
            os.environ.pop(name.removeprefix(saved), None)
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]  # noqa: PTH100

    # Only the launcher's path may lead to hfaccel, and the program does not have that path.
    home = os.path.dirname(os.path.dirname(here))  # noqa: PTH120
    sys.path.append(home)
    try:
        from hfaccel.apply import hooks
    finally:
        sys.path.pop()
    hooks.keep_affinity_over_import()
    hooks.survive_forks()
    children = os.environ.pop("HFACCEL_CHILDREN_AFFINITY", "")
    if children:
        hooks.give_children_affinity(set(map(int, children.split(","))))

    this = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = this  # the import that runs this module expects it here


_start()
