"""Headless Chromium over its DevTools protocol: enough to look at a page and hear what it asks for."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Visit:
    """What a page did: addresses it asked for, what it wrote to the console, what a script found."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    found: Any = None
    picture: bytes = b""


class Browser:
    """One headless Chromium; a context manager that ends the process it began."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self._profile = Path(tempfile.mkdtemp(prefix="threegates-chromium-"))
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={self._profile}", "--hide-scrollbars"]
        flags += ["--disable-background-networking", "--disable-component-update", "--remote-allow-origins=*"]
        self._process = subprocess.Popen(
            [CHROMIUM, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._socket: Any = None
        self._count = 0

    def __enter__(self) -> Browser:
        import websocket

        try:
            self._socket = websocket.create_connection(self._address(), timeout=30)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._socket is not None:
            self._socket.close()
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _address(self) -> str:
        file, deadline = self._profile / "DevToolsActivePort", time.monotonic() + 30
        while not (file.is_file() and file.read_text().count("\n")):
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        with urlopen(f"http://127.0.0.1:{file.read_text().splitlines()[0]}/json/list") as answer:
            return next(t["webSocketDebuggerUrl"] for t in json.load(answer) if t["type"] == "page")

    def _call(self, method: str, visit: Visit | None = None, **params: Any) -> dict[str, Any]:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            _note(message, visit)

    def visit(
        self, page: Path, script: str, width: int = 1280, dark: bool = False, shot: bool = False
    ) -> Visit:
        """Open a file, wait until it is drawn, run a script, and give what happened."""
        visit = Visit()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self._size(width)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        still = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self._call("Network.emulateNetworkConditions", offline=True, **still)
        self._call("Page.navigate", visit, url=page.resolve().as_uri())
        # A page is ready when it is loaded, its theme is set and its formulas are typeset.
        ready = "document.readyState === 'complete' && !!document.documentElement.dataset.theme"
        ready += " && !(window.MathJax && MathJax.startup && !MathJax.startup.document)"
        deadline = time.monotonic() + 20
        while not self._evaluate(ready, visit):
            assert time.monotonic() < deadline, f"{page} did not finish loading"
            time.sleep(0.05)
        self._evaluate(
            "window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => true) : true", visit
        )
        return self._look(visit, script, width, shot)

    def resize(self, script: str, width: int, shot: bool = False) -> Visit:
        """Give the open page another width, run a script, and give what happened since."""
        self._size(width)
        return self._look(Visit(), script, width, shot)

    def _size(self, width: int) -> None:
        view = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **view)

    def _look(self, visit: Visit, script: str, width: int, shot: bool) -> Visit:
        time.sleep(0.15)
        visit.found = self._evaluate(script, visit)
        if shot:
            visit.picture = self._picture(width)
        return visit

    def _evaluate(self, script: str, visit: Visit) -> Any:
        answer = self._call(
            "Runtime.evaluate", visit, expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _picture(self, width: int) -> bytes:
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], 12000), "scale": 1}
        return base64.b64decode(
            self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        )


def _note(message: dict[str, Any], visit: Visit | None) -> None:
    """Keep what an event says of requests and complaints."""
    if visit is None:
        return
    params = message.get("params", {})
    match message.get("method"):
        case "Network.requestWillBeSent":
            visit.requests.append(params["request"]["url"])
        case "Network.loadingFailed" if not params.get("canceled"):
            visit.complaints.append(f"failed to load: {params.get('errorText')}")
        case "Runtime.exceptionThrown":
            visit.complaints.append(_told(params["exceptionDetails"]))
        case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
            visit.complaints.append(
                " ".join(str(a.get("value", a.get("description"))) for a in params["args"])
            )
        case "Log.entryAdded" if params["entry"]["level"] == "error":
            visit.complaints.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))


def _told(details: dict[str, Any]) -> str:
    """What an uncaught exception says and where it was thrown."""
    said = details.get("exception", {}).get("description", details.get("text", "exception"))
    return f"{said} ({details.get('url', '')}:{details.get('lineNumber')})"
