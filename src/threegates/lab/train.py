"""Training a profile: the base first, then every other run over processes of one thread each."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import joblib
import torch
from tqdm import tqdm

from threegates.checkpoints.manifest import write_manifest
from threegates.errors import RecipeError
from threegates.lab.plan import Planned, manifest, plan
from threegates.lab.runs import Run, execute, is_finished

POLL_SECONDS = 1.0
# glibc's mallopt parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
_KEEP_FREED_MEMORY = ((-1, 2**31 - 1), (-3, 2**31 - 1))


def train(profile: str, build: Path, workers: int = 2, only: Sequence[str] = ()) -> Path:
    """Train every run of a profile that is not finished; returns the manifest of its checkpoints.

    Parameters
    ----------
    only : names of runs; the base is trained with them, and the manifest is left as it is.
    """
    lab = build / "lab"
    planned = plan(profile)
    runs = [item.run for item in _selected(planned, only)]
    missing = [run for run in runs if not is_finished(lab, run)]
    with _Display(lab, missing, len(runs)):
        _execute_all(lab, missing, workers)
    path = lab / "manifest.yaml"
    if not only:
        write_manifest(path, manifest(profile, planned))
    return path


def _selected(planned: list[Planned], only: Sequence[str]) -> list[Planned]:
    known = [item.run.name for item in planned]
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise RecipeError(
            "This profile has no such run.",
            expected=", ".join(known),
            found=", ".join(unknown),
            remedy="Choose among the expected runs.",
        )
    return [item for item in planned if not only or item.run.name in only or item.run.base_folder is None]


def _execute_all(lab: Path, missing: list[Run], workers: int) -> None:
    bases = [run for run in missing if run.base_folder is None]
    # Every tuned run needs its base.
    for wave in (bases, [run for run in missing if run.base_folder is not None]):
        # Long runs first, so that no long run starts when the others are done.
        ordered = sorted(wave, key=lambda run: (-run.recipe.steps, run.recipe.kind))
        joblib.Parallel(n_jobs=min(workers, max(1, len(ordered))), batch_size=1)(
            joblib.delayed(_work)(lab, run, os.getpid()) for run in ordered
        )


def _work(lab: Path, run: Run, parent: int) -> None:
    """One run in a worker process."""
    if os.getpid() != parent:
        _die_with(parent)
    torch.set_num_threads(1)
    keep_freed_memory()
    execute(lab, run)


def _die_with(parent: int) -> None:
    """End this process when the one that started it is gone: a killed build leaves no worker behind."""

    def watch() -> None:
        # An orphan gets another parent at once, while the dead one may stay a zombie that answers signals.
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    if not any(thread.name == "die-with-parent" for thread in threading.enumerate()):
        threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for reuse; fresh pages cost a forward pass half of its time."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in _KEEP_FREED_MEMORY:
                libc.mallopt(parameter, value)


class _Display:
    """Progress of the runs under way: bars on a terminal, plain lines elsewhere.

    Workers write progress.json beside their snapshots; this thread only reads, so a killed display
    harms no run and a second terminal could watch too.
    """

    def __init__(self, lab: Path, missing: Sequence[Run], planned: int) -> None:
        self.lab, self.missing, self.planned = lab, missing, planned
        self.bars: dict[str, tqdm] = {}
        self.finished: set[str] = set()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> _Display:
        trained = self.planned - len(self.missing)
        self._line(f"train: {len(self.missing)} of {self.planned} runs to do, {trained} finished before")
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
        for run in self.missing:
            if run.name in self.finished:
                continue
            if is_finished(self.lab, run):
                self._done(run)
            elif self.terminal:
                self._bar(run)

    def _bar(self, run: Run) -> None:
        progress = _read_progress(self.lab / "partial" / run.folder / "progress.json")
        if progress is None:
            return
        if run.name not in self.bars:
            self.bars[run.name] = tqdm(total=progress["steps"], desc=run.name, leave=False, unit="step")
        bar = self.bars[run.name]
        bar.n = progress["step"]
        bar.set_postfix({k: f"{progress[k]:.3g}" for k in ("reward", "kl") if progress[k] is not None})

    def _done(self, run: Run) -> None:
        self.finished.add(run.name)
        if run.name in self.bars:
            self.bars.pop(run.name).close()
        when = json.loads((self.lab / "runs" / run.folder / "when.json").read_text())
        left = len(self.missing) - len(self.finished)
        speed = run.recipe.steps / max(when["seconds"], 0.1)
        self._line(
            f"train: {run.name} done in {when['seconds']:.0f} s ({speed:.1f} steps/s), {left} runs left"
        )

    def _line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def _read_progress(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
