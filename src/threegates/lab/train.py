"""Training a profile: the base first, then every other run over processes of one thread each."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from threegates.checkpoints.manifests.manifest import Entry, Manifest, write_manifest
from threegates.checkpoints.tensors import WITHOUT_WEIGHTS
from threegates.errors import RecipeError
from threegates.lab.device import require_device
from threegates.lab.encoder.package import verified_folder
from threegates.lab.lm.package import verified_file
from threegates.lab.plans.plan import Planned, manifest, plan, seeds_of
from threegates.lab.progress import Display
from threegates.lab.runs import Run, execute, is_finished
from threegates.workers import run_parallel

# glibc's mallopt parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
_KEEP_FREED_MEMORY = ((-1, 2**31 - 1), (-3, 2**31 - 1))


def train(
    profile: str,
    build: Path,
    workers: int = 2,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    taken: Sequence[Entry] = (),
    released: Collection[str] = (),
) -> Path:
    """Train every run of a profile that is not finished; returns the manifest of its checkpoints.

    A run that was laid out without its weights is not finished; a subject that is taken from a release is not
    trained at all.

    Parameters
    ----------
    only : names of runs; the base is trained with them, and the manifest is left as it is.
    seeds : of the profile's seeds those to train now; the manifest lists what is finished then, so that a
        long profile can be trained, measured and released seed by seed.
    taken : entries of subjects that are shown as a release has them; the manifest lists these instead of what
        the plan would train now.
    released : names of runs that a release has, which this build needs neither to train nor to list.

    Raises
    ------
    RecipeError : there is no such profile, run or seed, or a run needs a device that is not here.
    """
    lab = build / "lab"
    planned = _without(plan(profile), taken)
    chosen = _of_seeds(planned, seeds_of(profile), seeds)
    runs = [item.run for item in _selected(chosen, only) if item.run.name not in released]
    missing = [run for run in runs if not is_trained(lab, run)]
    # A missing package is told before hours of training, not after them.
    for kind, verified in (("encoder-base", verified_folder), ("lm-base", verified_file)):
        if any(run.recipe.kind == kind for run in missing):
            verified()
    for run in missing:
        require_device(_device(run), run.name)
        if is_finished(lab, run):
            shutil.rmtree(lab / "runs" / run.folder)
    with Display(lab, missing, len(runs)):
        _execute_all(lab, missing, workers)
    path = lab / "manifest.yaml"
    if not only:
        finished = manifest(profile, [item for item in planned if is_finished(lab, item.run)])
        write_manifest(path, _with(finished, taken))
    return path


def _without(planned: list[Planned], taken: Sequence[Entry]) -> list[Planned]:
    """The plan without the runs of subjects that are taken from a release."""
    subjects = {entry.labels.get("subject") for entry in taken}
    return [item for item in planned if item.draft.subject not in subjects]


def _with(finished: Manifest, taken: Sequence[Entry]) -> Manifest:
    return finished.model_copy(update={"checkpoints": [*finished.checkpoints, *taken]})


def is_trained(lab: Path, run: Run) -> bool:
    """Whether a run is finished and its checkpoints have their weights."""
    folders = [lab / run.checkpoint(step) for step in run.recipe.saved_steps()]
    return is_finished(lab, run) and not any((folder / WITHOUT_WEIGHTS).is_file() for folder in folders)


def _of_seeds(planned: list[Planned], known: Sequence[int], seeds: Sequence[int]) -> list[Planned]:
    """Without runs of the profile's other seeds; bases, and runs with a seed of their own, always stay."""
    if unknown := sorted(set(seeds) - set(known)):
        raise RecipeError(
            "This profile has no such seed.",
            expected=", ".join(map(str, known)),
            found=", ".join(map(str, unknown)),
            remedy="Choose among the expected seeds.",
        )
    others = set(known) - set(seeds) if seeds else set()
    return [
        item
        for item in planned
        if item.draft.method == "pretrain" or getattr(item.run.recipe, "seed", None) not in others
    ]


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
    if not only:
        return planned
    needed = set(only)
    for item in reversed(planned):
        if item.run.name in needed and item.run.recipe.base:
            needed.add(item.run.recipe.base)
    return [item for item in planned if item.run.name in needed]


def _device(run: Run) -> str:
    return getattr(run.recipe, "device", "cpu")


def _execute_all(lab: Path, missing: list[Run], workers: int) -> None:
    if any(_device(run) == "cuda" for run in missing):
        # There is one device: runs beside each other would only take turns on it.
        workers = 1
    for wave in _waves(missing):
        # Long runs first, so that no long run starts when the others are done.
        ordered = sorted(wave, key=lambda run: (-run.recipe.steps, run.recipe.kind))
        run_parallel(_work, [(lab, run) for run in ordered], workers)


def _waves(missing: list[Run]) -> Iterator[list[Run]]:
    """Each run after its base; of those that can start, first the ones without steps: they cost nothing."""
    pending = list(missing)
    while pending:
        names = {run.name for run in pending}
        ready = [run for run in pending if run.recipe.base not in names]
        wave = [run for run in ready if not run.recipe.steps] or ready
        yield wave
        pending = [run for run in pending if run not in wave]


def _work(lab: Path, run: Run) -> None:
    keep_freed_memory()
    execute(lab, run)


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for reuse; fresh pages cost a forward pass half of its time."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in _KEEP_FREED_MEMORY:
                libc.mallopt(parameter, value)
