"""One training run from its recipe to a finished folder, resumable at any moment.

A run works in ``lab/partial/<run>-<digest>/`` and moves, complete, to ``lab/runs/<run>-<digest>/``:
what lies under runs/ is finished, always. The digest covers the recipe, the base run's digest, the
code that the run reaches and the versions of the libraries that compute, so a changed sentence
retrains nothing and a changed line of code retrains what it touches.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from threegates.atomic import write_json
from threegates.boundaries import FILES
from threegates.definitions import Reach
from threegates.digest import code_digest, digest_versions, runtime_versions, value_digest
from threegates.lab.recipe import AnyRecipe
from threegates.lab.trainer import Producer
from threegates.lab.trainers import place_of_trainer, sort_of, trainer_of
from threegates.lab.training import Run, train

_LOOP = "threegates.lab.training.train"
# A recipe's values are in the digest themselves, and the order of columns is no number.
_OUTSIDE = ("threegates.lab.columns", "threegates.lab.recipe")
# How tensors are laid out in files is part of a checkpoint, and so of its digest.
_INSIDE = ("threegates.checkpoints.writer",)


def reach(sort: str) -> Reach:
    """The code that decides what a run of that sort computes (`threegates.lab.trainers.sort_of`)."""
    roots = (".".join(place_of_trainer(sort)), _LOOP)
    return Reach(roots, (*FILES.outside, *_OUTSIDE), (*FILES.inside, *_INSIDE))


def make_run(recipe: AnyRecipe, base: Run | None) -> Run:
    """Attach the digest over recipe, base, code and versions."""
    reached = reach(sort_of(recipe))
    code = code_digest(*reached.roots, outside=reached.outside, inside=reached.inside)
    digest = value_digest(
        {
            "recipe": recipe.model_dump(mode="json"),
            "base": base.digest if base else None,
            "code": code,
            "versions": digest_versions(),
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
                seconds = train(run, make_trainer(lab, run), partial)
                _tell(run, partial, seconds)
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


def make_trainer(lab: Path, run: Run) -> Producer:
    """The trainer of the run's kind, with the base's weights where there is a base."""
    trainer = trainer_of(run.recipe)
    return trainer.start(run.recipe, None if run.base_folder is None else lab / run.base_folder)


def _tell(run: Run, partial: Path, seconds: float) -> None:
    """What made the run, and when: the last files of a finished one."""
    facts = {
        "name": run.name,
        "digest": run.digest,
        "recipe": run.recipe.model_dump(mode="json"),
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
