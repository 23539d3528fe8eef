"""A browser for tests: Debian's headless Chromium, driven by WebDriver's HTTP protocol (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from tests import loopback

START_S = 90.0
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--disable-background-networking", "--no-first-run", "--force-color-profile=srgb"),
]
ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"


def missing() -> str:
    """What is not installed here; empty if all is."""
    return " and ".join(p for p in ("chromium", "chromedriver") if not shutil.which(p))


class Browser:
    """One window."""

    def __init__(self, url: str) -> None:
        self._root = url
        options = {"args": FLAGS, "binary": shutil.which("chromium")}
        wish = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = ""
        found = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wish}})
        self._session = f"/session/{found['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + self._session + path, data, method=method)
        request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise AssertionError(json.load(e)["value"]["message"]) from None

    def go(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def texts(self, selector: str) -> list[str]:
        """What elements show."""
        found = self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)
        return list(found)

    def wait(self, script: str, what: str, within: float = 90.0) -> Any:
        """Wait until a script returns something true."""
        end = time.monotonic() + within
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"not within {within:g} s: {what}; {self.log()}"
            time.sleep(0.05)
        return found

    def type(self, keys: str) -> None:
        """Press keys, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def look(self, width: int, height: int, scheme: str, *, scale: float = 1) -> None:
        """The size of the window, and whether people want it dark or light."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.cdp("Emulation.setDeviceMetricsOverride", metrics)
        self.cdp("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self) -> list[str]:
        """What the page complained of since the last call."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._call("DELETE", "")


@contextlib.contextmanager
def browsers() -> Iterator[Callable[[], Browser]]:
    """Windows, closed at the end."""
    port = loopback.spare()
    opened: list[Browser] = []
    with tempfile.TemporaryFile() as out:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=out, stderr=out)
        try:
            end = time.monotonic() + START_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert driver.poll() is None and time.monotonic() < end, "chromedriver does not start"  # noqa: PT018
                time.sleep(0.05)

            def open_one() -> Browser:
                opened.append(Browser(f"http://127.0.0.1:{port}"))
                return opened[-1]

            yield open_one
        finally:
            for each in opened:
                with contextlib.suppress(AssertionError, OSError):
                    each.close()
            driver.terminate()
            driver.wait(90)
