"""Whether the dynamic loader accepts a library in LD_PRELOAD, found out by trying."""

from __future__ import annotations

import os

TRIAL = "/bin/true"


def preload_trial(path: str) -> str:
    """Start a program that does nothing with the library preloaded; "" if all went well, else why not.

    The loader only warns about a library that it cannot use and goes on, so what it prints counts too.
    """
    if not os.access(TRIAL, os.X_OK):
        return ""  # nothing to try it with; the loader would warn and go on
    read_end, write_end = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, write_end, 1), (os.POSIX_SPAWN_DUP2, write_end, 2)]
        pid = os.posix_spawn(TRIAL, [TRIAL], {"LD_PRELOAD": path}, file_actions=actions)
    except OSError as error:
        os.close(read_end)
        return f"could not be tried ({error.strerror})"
    finally:
        os.close(write_end)
    with os.fdopen(read_end, errors="replace") as output:
        said = output.read().strip()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        return f"makes {TRIAL} end with code {code}"
    return f"is refused by the loader: {said.splitlines()[0]}" if said else ""
