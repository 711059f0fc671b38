"""hfaccel-run: choose an environment for a program, then become that program or start several instances.

A single instance replaces this process and keeps its PID, so sys.argv, __main__, __file__, exit codes,
signals and tracebacks are Python's own. Variables that are meant for this process alone are removed before
the program starts (`hfaccel/_site`), so its children see the user's environment.
"""

from hfaccel.launcher.prepare import Launch, Settings, prepare
from hfaccel.launcher.start import become

# hfaccel.launcher.instances is not imported here: a single instance needs no subprocess and threading.

__all__ = ["Launch", "Settings", "become", "prepare"]
