"""The tutorial's workbench: `threegates` as a reader types it, on a pair of the lab that stands in."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from threegates.environment import for_child
from threegates.errors import NotebookError
from threegates.figures.published import PAGE_VARIABLE
from threegates.jobs.sources import StudyPair
from threegates.records.places import Places
from threegates.records.store import read_parquet
from threegates.study import Study

# A stand-in is copied and measured while the book is made.
_LARGEST = 64 * 2**20
_NOT_RUN = "(not run: this build has no small checkpoints with their weights)"


@dataclass(frozen=True)
class Shown:
    """A command and what it printed; what a notebook cell returns to show it."""

    command: str
    output: str

    def text(self) -> str:
        """As on a terminal."""
        return f"$ {self.command}\n{self.output}".rstrip()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/markdown": f"````console\n{self.text()}\n````\n", "text/plain": self.text()}


@dataclass(frozen=True)
class Workbench:
    """A folder that holds copies of a pair as ``base`` and ``tuned``, in which commands run.

    It vanishes with the object. Without a pair nothing runs, and what is shown says so.
    """

    scratch: tempfile.TemporaryDirectory | None

    @classmethod
    def of(cls, studies: Iterable[Study]) -> Workbench:
        """A workbench for the first small pair of these studies, one tuned by RL if there is any."""
        pair = stand_in(studies)
        if pair is None:
            return cls(None)
        scratch = tempfile.TemporaryDirectory(prefix="threegates-")
        for name, source in (("base", pair.base), ("tuned", pair.tuned)):
            shutil.copytree(source.checkpoint.folder, Path(scratch.name, name))
        return cls(scratch)

    @property
    def told(self) -> str:
        """Whether the page's commands were run, and on what; the first thing that it says of them."""
        if self.scratch is None:
            return (
                "This build has no small pair of checkpoints with their weights, so no block that begins "
                "with `$` was run: each shows its command alone, and `make book` trains a pair to run it on. "
                "In place of `base` and `tuned` may stand any folder"
            )
        return (
            "Every block that begins with `$` was run when this page was made; a small pair of the lab, in "
            "the folders `base` and `tuned`, stands in for yours. In their place may stand any folder"
        )

    def run(self, arguments: str) -> Shown:
        """Run `threegates` with these arguments.

        Raises
        ------
        NotebookError : the command failed.
        """
        command = f"threegates {arguments}"
        if self.scratch is None:
            return Shown(command, _NOT_RUN)
        done = subprocess.run(
            [sys.executable, "-m", "threegates.cli", *shlex.split(arguments)],
            cwd=self.scratch.name,
            env=for_child(self._places()),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            told = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise NotebookError("a command of the tutorial failed", where=command, found=told)
        return Shown(command, done.stdout)

    def table(self, name: str) -> pd.DataFrame | None:
        """A table of tensors that a command has written there; None where nothing ran."""
        return None if self.scratch is None else read_parquet(Path(self.scratch.name, name))

    def _places(self) -> dict[str, str]:
        """A build of its own, and no network: nothing here is fetched."""
        assert self.scratch is not None
        places = Places(Path(self.scratch.name, "build"))
        return {**places.variables(), PAGE_VARIABLE: "", "HF_HUB_OFFLINE": "1"}


def stand_in(studies: Iterable[Study]) -> StudyPair | None:
    """The first pair of the lab that is small and has its weights, of RL first; None where there is none."""
    pairs = [pair for study in studies for pair in study.pairs if _is_small(pair)]
    return min(pairs, key=lambda pair: pair.facts()["method"] != "rl", default=None)


def _is_small(pair: StudyPair) -> bool:
    sides = (pair.base, pair.tuned)
    if any(side.run_folder is None or side.checkpoint.kept_digest is not None for side in sides):
        return False
    return sum(path.stat().st_size for side in sides for path in side.checkpoint.files()) <= _LARGEST
