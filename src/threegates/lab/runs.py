"""One training run from its recipe to a finished folder, resumable at any moment.

A run works in ``lab/partial/<run>-<digest>/`` and moves, complete, to ``lab/runs/<run>-<digest>/``:
what lies under runs/ is finished, always. The digest covers the recipe, the base run's digest, the
code that the run reaches and the versions of the libraries that compute, so a changed sentence
retrains nothing and a changed line of code retrains what it touches.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import safe_open, save_file

from threegates.atomic import atomic_path, write_json
from threegates.checkpoints.writer import write_checkpoint
from threegates.digest import code_digest, runtime_versions, value_digest
from threegates.lab.recipe import AnyRecipe
from threegates.lab.trainer import Producer

# Modules are named, not imported, so that a change of one trainer leaves the other kinds' digests alone.
_TRAINERS = {
    "pretrain": ("threegates.lab.pretrain", "Pretrainer"),
    "rl": ("threegates.lab.rl", "PolicyTrainer"),
    "masked-rl": ("threegates.lab.masked", "MaskedPolicyTrainer"),
    "adapter-rl": ("threegates.lab.adapters.trainers", "AdapterPolicyTrainer"),
    "sft": ("threegates.lab.sft", "SupervisedTrainer"),
    "adapter-sft": ("threegates.lab.adapters.trainers", "AdapterSupervisedTrainer"),
    "rotated-base": ("threegates.lab.rotated", "RotatedBase"),
    "encoder-base": ("threegates.lab.encoder.base", "EncoderBase"),
    "encoder-rl": ("threegates.lab.encoder.rl", "EncoderPolicyTrainer"),
    "encoder-sft": ("threegates.lab.encoder.sft", "EncoderSupervisedTrainer"),
}
LOG_COLUMNS = (
    "step",
    "updates",
    "reward",
    "pass_at_1",
    "kl",
    "grad_norm",
    "entropy",
    "length",
    "delta_norm",
    "loss",
    "clip_fraction",
    "resampled_groups",
    "advantage_scale",
    "kl_k1",
    "kl_k2",
    "step_kl",
    "step_kl_response",
    "step_norm",
    "tilt_kl",
)
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


def make_run(recipe: AnyRecipe, base: Run | None) -> Run:
    """Attach the digest over recipe, base, code and versions."""
    code = code_digest(_TRAINERS[recipe.kind][0], "threegates.lab.runs")
    digest = value_digest(
        {
            "recipe": recipe.model_dump(mode="json"),
            "base": base.digest if base else None,
            "code": code,
            "versions": runtime_versions(),
        }
    )
    return Run(recipe, digest, code, base.checkpoint(base.recipe.steps) if base else None)


def is_finished(lab: Path, run: Run) -> bool:
    """Whether the run's folder is complete."""
    return (lab / "runs" / run.folder).is_dir()


def execute(lab: Path, run: Run) -> Path:
    """Train the run unless it is finished, continuing where a killed process stopped; returns its folder.

    Two processes never train the same run: the second waits and finds it finished.
    """
    finished = lab / "runs" / run.folder
    with _locked(lab / "partial" / f"{run.folder}.lock"):
        if not finished.is_dir():
            partial = lab / "partial" / run.folder
            partial.mkdir(parents=True, exist_ok=True)
            # A kill may have come after the last file and before the move.
            if not (partial / "when.json").is_file():
                _train(lab, run, partial)
            _tidy(partial)
            finished.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, finished)
    return finished


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)


def _train(lab: Path, run: Run, partial: Path) -> None:
    trainer = make_trainer(lab, run)
    session = _Session(partial, run, trainer)
    rows = session.resume()
    saved = run.recipe.saved_steps()
    # A run without steps has one row, that of its checkpoint 0.
    first = min(1, run.recipe.steps)
    for index in range(first + len(rows), run.recipe.steps + 1):
        rows.append({name: float(value) for name, value in trainer.logged_step(index).items()})
        session.report(rows)
        if index in saved:
            _save(partial / f"step-{index:06d}", trainer)
        session.snapshot(rows)
    _finish(run, trainer, partial, rows, session.seconds())


def make_trainer(lab: Path, run: Run) -> Producer:
    """The trainer of the run's kind, with the base's weights where there is a base."""
    module, name = _TRAINERS[run.recipe.kind]
    trainer: type[Producer] = getattr(importlib.import_module(module), name)
    return trainer.start(run.recipe, None if run.base_folder is None else lab / run.base_folder)


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
        """Training time, that of earlier processes included."""
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


def _finish(run: Run, trainer: Producer, partial: Path, rows: list[dict[str, float]], seconds: float) -> None:
    recipe = run.recipe
    log = pd.DataFrame(rows).reindex(columns=[*LOG_COLUMNS, *trainer.extra_columns])
    _write_parquet(partial / "log.parquet", log.astype({"step": "int64", "updates": "int64"}))
    evaluation = trainer.final_evaluation()
    if evaluation is not None:
        _write_parquet(partial / "evaluation.parquet", evaluation)
    facts = {
        "name": run.name,
        "digest": run.digest,
        "recipe": recipe.model_dump(mode="json"),
        "base": run.base_folder,
        "code": run.code,
        "versions": runtime_versions(),
        "threads": torch.get_num_threads(),
    }
    write_json(partial / "run.json", facts)
    # Time is no property of the result, so it lives beside the run's facts and never in them.
    write_json(
        partial / "when.json",
        {"seconds": round(seconds, 1), "finished": time.strftime("%FT%TZ", time.gmtime())},
    )


def _tidy(partial: Path) -> None:
    """Remove what only an unfinished run needs, and what a kill left half-written."""
    for path in [partial / "snapshot.safetensors", partial / "progress.json", *partial.glob(".*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_parquet(path: Path, frame: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")
