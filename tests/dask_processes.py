"""Dask schedulers and workers as a user starts them, in processes that can be killed and can be strange."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120


class DaskProcesses:
    """Use as a context manager; what was started ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, []

    def __enter__(self) -> DaskProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
            process.wait()

    def scheduler(self) -> tuple[str, subprocess.Popen]:
        """Start a scheduler; its address and process."""
        file = self.folder / f"scheduler-{len(self.started)}.json"
        process = self._start("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file)
        wait_for(lambda: process.poll() is None and file.exists() and file.read_text().strip())
        return json.loads(file.read_text())["address"], process

    def worker(self, address: str, path: Path = ROOT / "src") -> subprocess.Popen:
        """Start a worker of one thread that imports from `path` first; nobody starts it again."""
        options = ["--nthreads", 1, "--no-nanny", "--memory-limit", 0, "--local-directory", self.folder]
        return self._start("worker", address, *options, path=path)

    def _start(self, what: str, *arguments: object, path: Path = ROOT / "src") -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", what, *map(str, arguments), "--no-dashboard"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (path, ROOT, ROOT / "tests")))}
        log = (self.folder / f"{what}-{len(self.started)}.log").open("w")
        process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
        self.started.append(process)
        return process


def wait_for(happened: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
