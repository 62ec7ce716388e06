"""A real browser, headless Chromium, driven through chromedriver's HTTP interface (W3C WebDriver)."""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of element references in WebDriver's JSON


class Browser:
    """One window. Made by :func:`open_browser`."""

    def __init__(self, address: str) -> None:
        self._session = address

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(f"{self._session}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that the JavaScript returns."""
        return self.call("POST", "/execute/sync", {"script": script, "args": arguments})

    def _find(self, selector: str) -> str:
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def click(self, selector: str) -> None:
        self.call("POST", f"/element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self.call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def move(self, selector: str, *path: tuple[int, int], drag: bool = False) -> None:
        """Move the mouse along offsets from the element's middle; ``drag``: with its button down after the first."""
        origin = {ELEMENT: self._find(selector)}
        steps: list[dict[str, Any]] = []
        for x, y in path:
            steps.append({"type": "pointerMove", "x": x, "y": y, "origin": origin, "duration": 50})
            if drag and len(steps) == 1:
                steps.append({"type": "pointerDown", "button": 0})
        if drag:
            steps.append({"type": "pointerUp", "button": 0})
        self.call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def emulate(self, command: str, **parameters: object) -> None:
        """A command of the DevTools protocol, such as ``Emulation.setEmulatedMedia``."""
        self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int) -> None:
        self.emulate(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def dark(self, *, on: bool) -> None:
        value = "dark" if on else "light"
        self.emulate("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """What the page wrote to the console as an error or a warning since the last call."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Skips the test if Chromium or chromedriver is missing (Debian's chromium and chromium-driver)."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, text=True, env={**os.environ, "HOME": profile}
        )
        assert process.stdout is not None
        try:
            port = next(
                found[1] for line in process.stdout if (found := re.search(r"successfully on port (\d+)", line))
            )
            options = {"binary": chromium, "args": [*OPTIONS, f"--user-data-dir={profile}/data"]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            root = f"http://127.0.0.1:{port}/session"
            opened = Browser(root).call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
            browser = Browser(f"{root}/{opened['sessionId']}")
            try:
                yield browser
            finally:
                browser.call("DELETE", "")
        finally:
            process.terminate()
            process.wait(10)
            process.stdout.close()
