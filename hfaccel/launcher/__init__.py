"""hfaccel-run: choose an environment for a program and become it, or start several instances of it.

One instance replaces this process (the PID stays), so sys.argv, __main__, __file__, exit codes, signals
and tracebacks are plain Python's own. What the environment holds for this one process is taken out of it
again before the program starts (`hfaccel/_site`), so its children see the user's environment.
"""

from hfaccel.launcher.prepare import Launch, Settings, prepare
from hfaccel.launcher.start import become

# hfaccel.launcher.instances is not imported here: one instance must not wait for subprocess and threading.

__all__ = ["Launch", "Settings", "become", "prepare"]
