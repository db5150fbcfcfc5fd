"""Progress of the runs under way: bars on a terminal, plain lines elsewhere.

Workers write progress.json beside their snapshots and the display only reads, so that a display that
dies harms no run.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from threegates.lab.runs import Run, is_finished

POLL_SECONDS = 1.0
LINE_SECONDS = 20.0


class Display:
    """A context manager that shows the progress of the missing runs while they train."""

    def __init__(self, lab: Path, missing: Sequence[Run], planned: int) -> None:
        self.lab, self.missing, self.planned = lab, missing, planned
        self.bars: dict[str, tqdm] = {}
        self.finished: set[str] = set()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.terminal = sys.stderr.isatty()
        self.last_lines = time.monotonic()

    def __enter__(self) -> Display:
        trained = self.planned - len(self.missing)
        _line(f"train: {len(self.missing)} of {self.planned} runs to do, {trained} finished before")
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self._look()
        for bar in self.bars.values():
            bar.close()

    def _watch(self) -> None:
        while not self.stop.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        lines = not self.terminal and time.monotonic() - self.last_lines >= LINE_SECONDS
        for run in self.missing:
            if run.name in self.finished:
                continue
            if is_finished(self.lab, run):
                self._done(run)
                continue
            progress = read_progress(self.lab / "partial" / run.folder / "progress.json")
            if progress is not None and self.terminal:
                self._bar(run, progress)
            elif progress is not None and lines:
                _line(f"train: {run.name} {described(progress)}")
        if lines:
            self.last_lines = time.monotonic()

    def _bar(self, run: Run, progress: dict) -> None:
        if run.name not in self.bars:
            shown = "{desc} {percentage:3.0f}%|{bar}| {postfix}"
            self.bars[run.name] = tqdm(total=progress["steps"], desc=run.name, leave=False, bar_format=shown)
        bar = self.bars[run.name]
        bar.n = progress["step"]
        bar.set_postfix_str(described(progress))

    def _done(self, run: Run) -> None:
        self.finished.add(run.name)
        if run.name in self.bars:
            self.bars.pop(run.name).close()
        when = json.loads((self.lab / "runs" / run.folder / "when.json").read_text())
        left = len(self.missing) - len(self.finished)
        _line(f"train: {run.name} done in {when['seconds']:.0f} s, runs left: {left}")


def described(progress: dict) -> str:
    """Steps, reward, KL, speed and time left of a run, as far as they are known."""
    left = (progress["steps"] - progress["step"]) / max(progress["rate"], 1e-3)
    names = [name for name in ("reward", "kl", "loss") if progress[name] is not None]
    measured = [f"{name} {progress[name]:.3g}" for name in names]
    speed = f"{progress['rate']:.1f} steps/s, {left:.0f} s left"
    return ", ".join([f"{progress['step']}/{progress['steps']} steps", *measured, speed])


def read_progress(path: Path) -> dict | None:
    """What a run last wrote of itself; None before its first word."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _line(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
