"""The loop of a run: its steps, its log, its checkpoints and its last evaluation, given a trainer.

All of it is part of every run's digest, so it holds nothing that a run can do without: which trainers there
are, the order of a log's columns and what is told of a run stand elsewhere.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from safetensors.torch import safe_open, save_file

from threegates.atomic import atomic_path, write_json
from threegates.checkpoints.writer import write_checkpoint
from threegates.lab.columns import log_columns
from threegates.lab.recipe import AnyRecipe
from threegates.lab.trainer import Producer

SNAPSHOT_SECONDS = 5.0
PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Run:
    """A recipe with its digest and the finished folder of its base, all relative to one lab folder.

    The code's digest is taken when the run is planned: code that changes while a run trains is not the run's.
    """

    recipe: AnyRecipe
    digest: str
    code: str
    base_folder: str | None

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return f"{self.name}-{self.digest[:12]}"

    def checkpoint(self, step: int) -> str:
        """Folder of the checkpoint after ``step`` steps, relative to the lab folder."""
        return f"runs/{self.folder}/step-{step:06d}"


def train(run: Run, trainer: Producer, partial: Path) -> float:
    """Train a run in its partial folder from where it stands; returns the seconds that all of it took."""
    session = _Session(partial, run, trainer)
    rows = session.resume()
    saved = run.recipe.saved_steps()
    # A run without steps has one row, for its checkpoint 0.
    first = min(1, run.recipe.steps)
    for index in range(first + len(rows), run.recipe.steps + 1):
        rows.append({name: float(value) for name, value in trainer.logged_step(index).items()})
        session.report(rows)
        if index in saved:
            _save(partial / f"step-{index:06d}", trainer)
        session.snapshot(rows)
    _finish(trainer, partial, rows)
    return session.seconds()


class _Session:
    """Progress, snapshots and elapsed time of one run in its partial folder."""

    def __init__(self, partial: Path, run: Run, trainer: Producer) -> None:
        self.partial, self.run, self.trainer = partial, run, trainer
        self.started = self.last_snapshot = time.monotonic()
        self.last_report, self.before, self.first = 0.0, 0.0, 0

    @property
    def _snapshot(self) -> Path:
        return self.partial / "snapshot.safetensors"

    def seconds(self) -> float:
        """Training time, earlier processes' time included."""
        return self.before + time.monotonic() - self.started

    def resume(self) -> list[dict[str, float]]:
        """Load the last snapshot, if there is one, and return the log rows up to it."""
        if not self._snapshot.is_file():
            return []
        with safe_open(self._snapshot, "pt") as file:
            metadata = json.loads(file.metadata()["run"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.trainer.load_state(state, metadata["updates"])
        self.before, self.first = metadata["seconds"], len(metadata["rows"])
        return metadata["rows"]

    def snapshot(self, rows: list[dict[str, float]]) -> None:
        """Every few seconds, save what a resumed run needs; one file, replaced in one step."""
        if time.monotonic() - self.last_snapshot < SNAPSHOT_SECONDS:
            return
        metadata = {"updates": self.trainer.updates, "rows": rows, "seconds": self.seconds()}
        with atomic_path(self._snapshot) as temporary:
            save_file(self.trainer.state(), temporary, {"run": json.dumps(metadata)})
        self.last_snapshot = time.monotonic()

    def _rate(self, step: int) -> float:
        """Steps a second of this process."""
        return (step - self.first) / max(time.monotonic() - self.started, 1e-3)

    def report(self, rows: list[dict[str, float]]) -> None:
        """At most twice a second, write what a progress bar shows."""
        now = time.monotonic()
        if now - self.last_report < PROGRESS_SECONDS and len(rows) < self.run.recipe.steps:
            return
        latest = {name: _last(rows, name) for name in ("reward", "kl", "loss")}
        step, steps, rate = len(rows), self.run.recipe.steps, self._rate(len(rows))
        progress = {"step": step, "steps": steps, "rate": rate, **latest}
        write_json(self.partial / "progress.json", progress)
        self.last_report = now


def _last(rows: list[dict[str, float]], name: str) -> float | None:
    measured = (row[name] for row in reversed(rows) if name in row and row[name] == row[name])
    return next(measured, None)


def _save(folder: Path, trainer: Producer) -> None:
    """A checkpoint in Hub format; a folder that exists is complete and, after a resume, the same."""
    if folder.is_dir():
        return
    parts = trainer.contents()
    write_checkpoint(folder, parts.tensors, parts.config, parts.files, parts.shard_bytes)


def _finish(trainer: Producer, partial: Path, rows: list[dict[str, float]]) -> None:
    log = pd.DataFrame(rows).reindex(columns=log_columns(rows, trainer.extra_columns))
    _write_parquet(partial / "log.parquet", log.astype({"step": "int64", "updates": "int64"}))
    evaluation = trainer.final_evaluation()
    if evaluation is not None:
        _write_parquet(partial / "evaluation.parquet", evaluation)


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")
