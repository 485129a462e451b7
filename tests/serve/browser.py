"""A headless Chromium, driven over its DevTools pipe: no driver and no package is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""), "Tab": (9, "")}
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")


class Browser:
    """One page of a browser.

    problems: exceptions of its scripts, and what its policy refused. events: all that DevTools told.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb", 0), os.fdopen(answers, "rb", 0)
        self._pending, self._number, self._session = b"", 0, ""
        self.problems: list[str] = []
        self.events: list[dict[str, Any]] = []

    def open(self) -> None:
        """Opens an empty page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._commands.close()
        self._answers.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._pending:
            data = os.read(self._answers.fileno(), 1 << 20)
            assert data, "the browser has ended"
            self._pending += data
        message, _, self._pending = self._pending.partition(b"\0")
        answer = json.loads(message)
        if "method" in answer:
            self.events.append(answer)
        if answer.get("method") == "Runtime.exceptionThrown":
            self.problems.append(answer["params"]["exceptionDetails"]["exception"].get("description", "?"))
        if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
            self.problems.append(answer["params"]["entry"]["text"])
        return answer

    def run(self, script: str) -> Any:
        """The value of an expression, awaited; one that computes for a minute is stopped."""
        options = {"awaitPromise": True, "returnByValue": True, "timeout": 60_000}
        result = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition: str) -> Any:
        """Waits until an expression is true."""
        script = f"""new Promise((done) => {{
            const look = () => {{ const is = !!({condition}); is ? done(is) : setTimeout(look, 10); }}; look();
            setTimeout(() => done(null), 10000);
        }})"""
        value = self.run(script)
        assert value, (condition, self.run("document.body?.innerText"), self.problems)
        return value

    def load(self, url: str) -> None:
        """Goes to a page."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def key(self, *names: str) -> None:
        """Presses keys."""
        for name in names:
            code, text = _KEYS[name]
            for kind in ("keyDown", "keyUp"):
                given: dict[str, Any] = {"text": text} if text and kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=code, **given)

    def write(self, text: str) -> None:
        """Types a text where the focus is."""
        self.call("Input.insertText", text=text)

    def middle(self, selector: str) -> dict[str, float]:
        """The middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        return self.run(f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))({box})")

    def click(self, selector: str) -> None:
        """Clicks with a mouse."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **self.middle(selector), **button)

    def tap(self, selector: str) -> None:
        """Taps with a finger."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[self.middle(selector)])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def resize(self, width: int, height: int, *, touch: bool = False) -> None:
        """Sets the window's size, and whether it is touched."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in a folder."""
    to_read, commands = os.pipe()
    answers, to_write = os.pipe()
    redirected = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
    arguments = [*_FLAGS, f"--user-data-dir={folder}", "--remote-debugging-pipe"]
    with subprocess.Popen(
        ["bash", "-c", redirected, PROGRAM, *arguments], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
    ) as process:
        os.close(to_read)
        os.close(to_write)
        browser = Browser(commands, answers)
        try:
            browser.open()
            yield browser
        finally:
            browser.close()
            process.kill()
