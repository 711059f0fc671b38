"""A real browser for tests: headless Chromium, driven by its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60.0  # seconds for an answer
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-extensions", "--disable-background-networking", "--disable-sync", "--hide-scrollbars"),
    *("--remote-debugging-pipe", "--force-color-profile=srgb", "--font-render-hinting=none"),
)


class Browser:
    """One tab. `problems` collects what the console, the page and the network complain of."""

    def __init__(self, profile: Path) -> None:
        reading, self.commands = os.pipe()
        self.answers, writing = os.pipe()
        command = [str(PROGRAM), *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        shell = ["bash", "-c", f'exec "$@" 3<&{reading} 4>&{writing}', "browser", *command]
        self.log = (profile.parent / "browser.log").open("wb")
        self.process = subprocess.Popen(
            shell, pass_fds=(reading, writing), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        os.close(reading)
        os.close(writing)
        self.buffer, self.number, self.session = b"", 0, ""
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.events: list[str] = []
        targets = self("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Network", "Log"):
            self(f"{part}.enable")

    def __call__(self, method, **arguments):
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": arguments}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self.number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _message(self):
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self.answers, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"the browser gave no answer (exit code {self.process.poll()})")
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def _note(self, event):
        name, said = event.get("method", ""), event.get("params", {})
        self.events.append(name)
        if name == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(said)[:500])

    def open(self, path: Path) -> None:
        """Load a file and wait until all of the page is there."""
        self.events.clear()
        self("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._note(self._message())

    def evaluate(self, script: str):
        """The value of an expression of JavaScript in the page."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def look(self, width: int, height: int = 800, scheme: str = "light", media: str = "") -> None:
        """The width of the window, the colour scheme, and "screen" or "print" where one is forced."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self("Emulation.setDeviceMetricsOverride", **size)
        self(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def screenshot(self, path: Path, **clip) -> None:
        """The whole page as PNG, or a part of it."""
        arguments = {"clip": {"scale": 1, **clip}} if clip else {}
        answer = self("Page.captureScreenshot", captureBeyondViewport=True, **arguments)
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        return base64.b64decode(self("Page.printToPDF", printBackground=False)["data"])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.commands)
        os.close(self.answers)
        self.log.close()
