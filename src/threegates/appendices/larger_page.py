"""The page of the larger model: what profile `gpu` trains, and what its released records say."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import pandas as pd

from threegates.figures.numbers import interval, number
from threegates.jobs.released import FILE
from threegates.jobs.subjects import LAB
from threegates.lab.model import ModelShape
from threegates.lab.plans.larger import LARGER_DATA, LARGER_PRETRAINING, SHAPE
from threegates.lab.plans.plan import plan
from threegates.lab.plans.profiles import GPU
from threegates.lab.recipe import TrainingRecipe
from threegates.lab.subjects import LARGER
from threegates.records.places import Places
from threegates.register import WITH_JOBS
from threegates.releases.making import RESULTS
from threegates.releases.notes import freshness, release_note
from threegates.releases.packing import Release, read_release, unpack
from threegates.study import Study

PAGE = "larger-model"
_ABOUT = """\
# A larger model

The lab's language model is small because it is trained while one waits. Profile `{profile}` trains {runs} of
the lab's runs once more, with one seed, on a model of {size:.1f} million parameters ({layers} layers of width
{width}) and a harder task ({data}, pre-trained on {pretraining}), on a CUDA device: the same rates and
numbers of steps after pre-training, larger batches, sampling by a compiled step. One seed has no interval.
These runs ask whether the lab's effects are there at {ratio:.0f} times its size, not how large they are.
"""
_NOT_RUN = """\
```{admonition} Not run
:class: warning
No records of these runs have been released, so nothing is said of this model. With a CUDA device,
`threegates train --profile gpu --workers 1` trains them and `threegates release` packs what is measured of
them into `results/gpu`; this page then has a table of its own.
```
"""


def larger_page(root: Path, build: Path, verdicts: pd.DataFrame) -> str:
    """The page in MyST.

    Parameters
    ----------
    root, build : of the project. verdicts : of the book's pages, for the lab's numbers.
    """
    folder = root / RESULTS / GPU
    if not (folder / FILE).is_file():
        return "\n".join([_about(), _NOT_RUN, _runs()])
    release = read_release(folder)
    studies = _studies(release, build / GPU)
    note = release_note(release, freshness(studies, GPU))
    return "\n".join([_about(), note, _table(studies, verdicts), _runs()])


def _about() -> str:
    return _ABOUT.format(
        profile=GPU,
        runs=len(plan(GPU)),
        size=_parameters(SHAPE) / 1e6,
        layers=SHAPE.layers,
        width=SHAPE.width,
        data=f"`{LARGER_DATA}`",
        pretraining=f"`{LARGER_PRETRAINING}`",
        ratio=_parameters(SHAPE) / _parameters(ModelShape()),
    )


def _parameters(shape: ModelShape) -> int:
    return sum(math.prod(size) for size in shape.parameter_shapes().values())


def _runs() -> str:
    head = "| run | method | steps | learning rate |\n|---|---|---|---|\n"
    rows = []
    for item in plan(GPU):
        recipe = item.run.recipe
        rate = f"{recipe.learning_rate:g}" if isinstance(recipe, TrainingRecipe) else "–"
        rows.append(f"| `{recipe.name}` | {item.draft.algorithm} | {recipe.steps} | {rate} |\n")
    return "## The runs\n\n" + head + "".join(rows)


def _studies(release: Release, build: Path) -> list[Study]:
    """The larger model's study of every chapter that it has runs for, from its released records alone."""
    unpack(release, build)
    places = Places(build)
    opened = [Study.open(chapter, subject=LARGER, places=places, measure=False) for chapter in WITH_JOBS]
    return [study for study in opened if study.pairs]


def _table(studies: list[Study], verdicts: pd.DataFrame) -> str:
    """Every estimate of the lab's claims that the larger model gives, beside the lab's own."""
    lab = verdicts[verdicts["about"] == LAB].set_index(["claim", "estimate"])
    rows = []
    for study in studies:
        for row in study.verdicts().to_dict("records"):
            key = (row["claim"], row["estimate"])
            if key not in lab.index or pd.isna(row["value"]):
                continue
            own = lab.loc[[key]].iloc[0]
            rows.append(
                f"| {escape(str(row['title']))} | `{row['estimate']}` | {number(row['value'])} | "
                f"{number(own['value'])} {interval(own['low'], own['high'])} |\n"
            )
    head = "| claim | estimate | larger model, one seed | this build's lab |\n|---|---|---|---|\n"
    return "## Beside the lab\n\n" + head + "".join(rows)
