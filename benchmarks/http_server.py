"""A uvicorn server in a process of its own, on a free port of the loopback interface."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

EXAMPLE = Path(__file__).parent.parent / "examples/serve_fastapi.py"
POLL = 0.05  # seconds


class Server:
    """`with Server(file, launcher=("hfaccel-run",), SERVE_DTYPE="bfloat16") as server: server.port`

    `file` holds `app`. Left, it is stopped as a service manager does it: by SIGTERM.
    """

    def __init__(
        self, file: Path = EXAMPLE, *, launcher: tuple[str, ...] = (sys.executable,), **variables: str
    ) -> None:
        self.log = tempfile.NamedTemporaryFile("r", prefix="hfaccel-serve-", suffix=".log")  # noqa: SIM115
        options = ["--host", "127.0.0.1", "--port", "0", "--no-access-log"]
        command = [*launcher, "-m", "uvicorn", "--app-dir", str(file.parent), f"{file.stem}:app", *options]
        environment: Mapping[str, str] = {**os.environ, **variables}
        with Path(self.log.name).open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            self.port = self._wait_for_port()
        except BaseException:
            self.kill()
            raise

    def _wait_for_port(self) -> int:
        while not (found := re.search(r"running on http://127\.0\.0\.1:(\d+)", self.said())):
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"{self.process.args} ended with {self.process.returncode}:\n{self.said()}"
                )
            time.sleep(POLL)
        return int(found[1])

    def said(self) -> str:
        return Path(self.log.name).read_text()

    def rss(self) -> int:
        """Resident memory, bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None, "a process that runs has a resident set"
        return int(found[1]) * 1024

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
