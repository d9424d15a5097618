"""A headless Chromium, driven over a pipe by its DevTools protocol; no driver and no package beside the browser.

    with Browser(tmp_path) as browser:
        browser.open("http://127.0.0.1:5000")
        browser.wait_for("document.body.innerText.includes('ready')")
        (tmp_path / "page.png").write_bytes(browser.screenshot())
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EXECUTABLE = next((found for name in NAMES if (found := shutil.which(name))), "")
"""Empty where there is no Chromium."""


class Browser:
    """One page of a browser with a fresh profile."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 900) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        flags = [
            "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--no-first-run", f"--window-size={width},{height}", f"--user-data-dir={profile}",
        ]  # fmt: skip
        # The browser reads commands from descriptor 3 and writes to 4.
        redirect = f'exec "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", redirect, "bash", EXECUTABLE, *flags, "about:blank"],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._received, self._last_id, self._session = b"", 0, ""
        self.errors: list[str] = []
        """What the pages threw."""

    def __enter__(self) -> Self:
        try:
            # The first page appears a moment after the browser.
            deadline = time.monotonic() + 60
            while not (pages := [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]):
                assert time.monotonic() < deadline, "the browser opens no page"
                time.sleep(0.1)
            attach = {"targetId": pages[0]["targetId"], "flatten": True}
            self._session = self.call("Target.attachToTarget", **attach)["sessionId"]
            self.call("Page.enable")
            self.call("Runtime.enable")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = ""
            self.call("Browser.close")
            self._process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def on_every_page(self, script: str) -> None:
        """Run ``script`` in each page before its own ones."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")  # else a new fragment would only move within the page
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60) -> Any:
        """The value of a JavaScript expression, as soon as it is true; one that throws is not true yet."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(f"(() => {{ try {{ return {condition} }} catch {{ return false }} }})()")):
            if time.monotonic() > deadline:
                text = self.evaluate("document.body?.innerText ?? ''")
                raise AssertionError(f"{condition} did not become true; the page says:\n{text[:3000]}")
            time.sleep(0.2)
        return value

    def screenshot(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command; its result."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            answer = self._next_message(deadline)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"].get("text", ""))
            if answer.get("id") == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _next_message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._received += part
        message, self._received = self._received.split(b"\0", 1)
        return dict(json.loads(message))
