"""How stripes emerge over one run's training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd

from threegates.errors import PairError
from threegates.jobs.jobs import STEP, Cut, Kind, opened_at
from threegates.jobs.sources import StudyPair
from threegates.measures import emergence


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job for every run, over all of its checkpoints.

    Raises
    ------
    PairError : a run has fewer than two steps.
    """

    def key(pair: StudyPair) -> str:
        return pair.facts()["run"]

    for run, members in groupby(sorted(pairs, key=key), key=key):
        snapshots = list(members)
        known = [pair.facts() for pair in snapshots]
        steps = [[facts["step"], facts.get("updates")] for facts in known if facts.get("step")]
        if len(steps) < max(2, len(snapshots)):
            raise _no_run(run, [facts["pair"] for facts in known if not facts.get("step")])
        sources = {f"{STEP}{number}": pair.tuned for number, pair in enumerate(snapshots)}
        own = {"seed": options["seed"], "run": run, "steps": steps}
        yield Cut(run, {"base": snapshots[0].base, **sources}, own)


def _measure(places: dict[str, str], run: str, seed: int, steps: list[list]) -> dict[str, pd.DataFrame]:
    snapshots = [
        emergence.Snapshot(step, updates, opened_at(places[f"{STEP}{number}"]))
        for number, (step, updates) in enumerate(steps)
    ]
    base = opened_at(places["base"])
    return emergence.measure_emergence(base, snapshots, run=run, seed=seed)


def _no_run(run: str, without: Sequence[str]) -> PairError:
    told = f"no number of a step above 0 in {', '.join(without[:5])}" if without else "one checkpoint"
    return PairError(
        "this chapter follows runs, and one has no checkpoints along its training",
        where=run,
        expected="two checkpoints or more, with the numbers of their steps",
        found=told,
        remedy="give --base, and a series as --tuned, such as RUN/checkpoint-* or ORG/REPO@step_{1..500..50}"
        "; or entries of one run by --pair; or take a chapter that looks at one pair",
    )


RUN = Kind(
    name="run",
    tables={
        "emergence": emergence.EMERGENCE_COLUMNS,
        "emergence_sweep": emergence.EMERGENCE_SWEEP_COLUMNS,
    },
    root="threegates.measures.emergence.measure_emergence",
    cut=_cut,
    measure=_measure,
)
