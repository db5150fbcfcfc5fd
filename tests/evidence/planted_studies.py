"""Studies with a planted truth, measured by the study's own code and judged by the rules of claims.yaml.

A draw is one base and every run that some kind of study needs; kinds share what does not differ between them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from unittest.mock import patch

import pandas as pd

from tests.evidence.planting import base_matrices, held, tuned
from threegates.atomic import write_text
from threegates.geometry.principal import HEADLINE_ALPHA
from threegates.jobs.nulls import founding_nulls
from threegates.judging import claims
from threegates.judging.verdicts import Judgement
from threegates.measures import agreement, changes, drift, overlap
from threegates.measures.agreement import measure_agreement
from threegates.measures.by_tensor import ByTensor, Shared, as_tables
from threegates.measures.changes import PairTensors
from threegates.measures.drift import PairDrift
from threegates.measures.overlap import PairOverlap
from threegates.workers import run_parallel

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3, 4)
RL = ("grpo", "dapo", "reinforce++")
#: Runs whose masks are compared, six in four seeds, as in the lab.
STRIPED_RUNS = {
    "grpo-mask-1": 1,
    "dapo-mask-1": 1,
    "reinforce++-mask-1": 1,
    "grpo-mask-2": 2,
    "grpo-mask-4": 4,
    "reinforce++-mask-5": 5,
}

_OF_RL = {(algorithm, "mask"): "noise" for algorithm in RL}
_NOTHING = _OF_RL | {
    ("sft-teacher", "own"): "noise",
    ("sft-teacher", "mask"): "noise",
    ("sft-same-style", "mask"): "noise",
    ("sft-same-style", "own"): "noise",
    ("rft", "mask"): "noise",
}


_OTHERS = tuple(set(_NOTHING) - set(_OF_RL))
_KEEPING = dict.fromkeys(_OF_RL, "keeping")
_TURNING = _KEEPING | dict.fromkeys(_OTHERS, "turning") | {("sft-teacher", "own"): "large turning"}


@dataclass(frozen=True)
class Kind:
    """A planted truth: the law of the updates of each (algorithm, rate), and the chapters judged on it."""

    plants: Mapping[tuple[str, str], str]
    chapters: tuple[str, ...]


ALL = ("update-sparsity", "stripe-masks", "spectral-drift", "principal-overlap")
KINDS = {
    # Storage noise of equal norm everywhere: nothing about RL, and no difference between RL and SFT.
    "nothing": Kind(_NOTHING, ALL),
    # The same, but for the norm of SFT's update.
    "norm": Kind(
        _NOTHING | {("sft-teacher", "own"): "large"},
        ("update-sparsity", "spectral-drift", "principal-overlap"),
    ),
    "avoidance": Kind(_NOTHING | dict.fromkeys(_OF_RL, "avoiding"), ("principal-overlap",)),
    "stripes": Kind(dict.fromkeys(_OF_RL, "striped"), ("stripe-masks",)),
    # RL keeps leading directions, whatever SFT is trained on, at whichever rate and norm SFT turns them.
    "turning": Kind(_TURNING, ("spectral-drift",)),
    # The same but for one: SFT in the base's own style keeps them, SFT at RL's rate keeps them, or SFT keeps
    # them as well and is larger.
    "data": Kind(
        _TURNING | {("sft-same-style", "mask"): "keeping", ("sft-same-style", "own"): "keeping"},
        ("spectral-drift",),
    ),
    "rate": Kind(_TURNING | {("sft-teacher", "mask"): "keeping"}, ("spectral-drift",)),
    "size": Kind(_KEEPING | dict.fromkeys(_OTHERS, "large keeping"), ("spectral-drift",)),
    # RL turns what SFT keeps.
    "reversed": Kind(
        dict.fromkeys(_OF_RL, "turning") | dict.fromkeys(_OTHERS, "keeping"), ("spectral-drift",)
    ),
}
#: Runs that a chapter's tables are made from. Two of RL's algorithms where measuring takes long: estimates
#: average over them, so that fewer only make them noisier.
_TWO = {("grpo", "mask"), ("dapo", "mask")}
_MEASURED = {
    "update-sparsity": set(_NOTHING),
    "spectral-drift": {*_TWO, *_OTHERS},
    "principal-overlap": {*_TWO, *_OTHERS},
}
_METHODS = dict.fromkeys(RL, "rl") | {"rft": "rft"}


@dataclass(frozen=True)
class Run:
    """One tuned checkpoint: whose it is, and the law of its update; SFT and RFT have a partner in norm."""

    algorithm: str
    rate: str
    seed: int
    plant: str
    partner: str

    @property
    def name(self) -> str:
        return f"{self.algorithm}-{self.rate}-{self.seed}"

    @property
    def partner_name(self) -> str:
        return f"grpo-mask-{self.seed}" if self.partner else ""

    @property
    def facts(self) -> dict:
        """The columns that a study joins to its tables."""
        method = _METHODS.get(self.algorithm, "sft")
        return {
            "pair": self.name,
            "base": "base",
            "method": method,
            "algorithm": self.algorithm,
            "run": self.name,
            "data": "planted",
            "seed": self.seed,
            "learning_rate": 1e-5,
            "rate": self.rate,
            "updates": 192,
        }


def runs_of(kind: Kind, chapter: str) -> list[Run]:
    """The runs of a kind of study that a chapter looks at."""
    own = kind.plants["grpo", "mask"]
    return [
        Run(algorithm, rate, seed, plant, "" if algorithm in RL else own)
        for (algorithm, rate), plant in kind.plants.items()
        if (algorithm, rate) in _MEASURED[chapter]
        for seed in SEEDS
    ]


@contextmanager
def without_sweeps() -> Iterator[None]:
    """Measure at the headline choices alone: nothing here is judged in the cells of a sweep."""
    nothing = {
        agreement: {"COARSE_ETAS": ()},
        drift: {"SWEEP_SHARES": ()},
        changes: {"COARSE_ETAS": ()},
        overlap: {"ETAS": (), "RANK_SHARES": (), "ALPHAS": (HEADLINE_ALPHA,)},
    }
    with ExitStack() as patches:
        for module, grids in nothing.items():
            patches.enter_context(patch.multiple(module, **grids))
        yield


class Draw:
    """A base and its runs; every run is made and measured once, whichever kinds of study look at it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tuned = cache(self._tuned)
        self.known: dict[tuple[str, Run], dict[str, pd.DataFrame]] = {}

    @cached_property
    def matrices(self) -> list:
        return base_matrices(self.number)

    @cached_property
    def base(self):
        return held("base", {matrix.name: matrix.weight for matrix in self.matrices})

    def _tuned(self, plant: str, run: str):
        return tuned(self.matrices, plant, run, self.number)

    def tables(self, kind: Kind, chapter: str) -> Given:
        """The tables of a chapter of one kind of study, joined with the runs' facts."""
        if chapter == "stripe-masks":
            return Given(self._stripes(kind.plants["grpo", "mask"]))
        runs = runs_of(kind, chapter)
        self._measure(chapter, [run for run in runs if (chapter, run) not in self.known])
        frames: dict[str, list[pd.DataFrame]] = {}
        for run in runs:
            for table, frame in self.known[chapter, run].items():
                facts = {key: value for key, value in run.facts.items() if key not in frame}
                frames.setdefault(table, []).append(frame.assign(**facts))
        return Given({table: pd.concat(parts, ignore_index=True) for table, parts in frames.items()})

    @without_sweeps()
    def _measure(self, chapter: str, runs: list[Run]) -> None:
        """Measure runs tensor by tensor, with one decomposition of each base matrix for all of them."""
        pairs = {run: self._pair(chapter, run) for run in runs}
        parts: dict[Run, list] = {run: [] for run in runs}
        for matrix in self.matrices:
            shared = Shared()
            for run, pair in pairs.items():
                parts[run].append(pair.rows(matrix.name, shared))
        for run, pair in pairs.items():
            self.known[chapter, run] = as_tables(pair, parts[run])

    def _pair(self, chapter: str, run: Run) -> ByTensor:
        own = self.tuned(run.plant, run.name)
        if chapter == "update-sparsity":
            return PairTensors(self.base, own, run.name)
        partner = self.tuned(run.partner, run.partner_name) if run.partner else None
        options = {"partner": partner, "partner_name": run.partner_name, "seed": self.number}
        if chapter == "spectral-drift":
            return PairDrift(self.base, own, run.name, **options)
        return PairOverlap(self.base, own, run.name, nulls=founding_nulls(), **options)

    @without_sweeps()
    def _stripes(self, plant: str) -> dict[str, pd.DataFrame]:
        runs = {name: self.tuned(plant, name) for name in STRIPED_RUNS}
        nulls, seed = founding_nulls(), self.number
        found = measure_agreement(self.base, runs, of_layer=0, nulls=nulls, seed=seed, maps=False)
        tables = {table: frame.assign(base="base", method="rl") for table, frame in found.items()}
        axis, agreeing = tables["axis"], tables["agreement"]
        axis["seed"] = axis["pair"].map(STRIPED_RUNS)
        for side in ("a", "b"):
            agreeing[f"seed_{side}"] = agreeing[f"run_{side}"].map(STRIPED_RUNS)
        # No run of the paper is among them.
        return {**tables, "tensor": pd.DataFrame()}


@dataclass(frozen=True)
class Given:
    """Tables by name."""

    tables: Mapping[str, pd.DataFrame]

    def table(self, name: str) -> pd.DataFrame:
        return self.tables[name]


@cache
def known_claims() -> claims.Claims:
    """The rules as they stand."""
    return claims.read_claims(ROOT / "claims.yaml")


def verdicts(number: int, kinds: Iterable[str] = tuple(KINDS)) -> list[dict]:
    """Every verdict on one draw: kind, claim, verdict, and the numbers it rests on."""
    draw, found = Draw(number), []
    for name in kinds:
        for chapter in KINDS[name].chapters:
            tables = draw.tables(KINDS[name], chapter)
            for claim in known_claims().of(chapter, "lab"):
                judged = claims.judge(claim, tables, "a planted study", known_claims().confidence)
                found.append({"draw": number, "kind": name, **_numbers(judged)})
    return found


def _numbers(judged: claims.Verdict) -> dict:
    estimates = [(judged.claim.rule, judged.estimate), *judged.controls]
    values = {rule.estimate: value.value for rule, value in estimates}
    return {"claim": judged.claim.id, "verdict": str(judged.judgement), "values": values}


def write_verdicts(number: int, folder: Path) -> None:
    """Judge one draw and write its verdicts to a file of their own."""
    write_text(folder / f"{number}.json", json.dumps(verdicts(number)))


def many_verdicts(draws: int, workers: int, folder: Path) -> list[dict]:
    """The verdicts on many draws, over processes of one thread each."""
    tasks = [(number, folder) for number in range(draws)]
    run_parallel(write_verdicts, tasks, workers, "planted studies")
    return [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())]


def counts(found: Iterable[dict]) -> pd.DataFrame:
    """How often each claim got each verdict: one row a kind and claim, one column a verdict."""
    number = Counter((row["kind"], row["claim"], row["verdict"]) for row in found)
    frame = pd.Series(number).rename_axis(["kind", "claim", "verdict"]).unstack(fill_value=0)
    order = [str(one) for one in Judgement if str(one) in frame]
    kinds = {name: place for place, name in enumerate(KINDS)}
    return frame[order].sort_index(key=lambda x: x.map(kinds) if x.name == "kind" else x)


def means(found: Iterable[dict]) -> dict[str, dict[str, float]]:
    """Mean of each estimate over the draws, by kind: the size of what was planted, as measured."""
    rows = [
        (row["kind"], name, value)
        for row in found
        for name, value in row["values"].items()
        if value is not None
    ]
    frame = pd.DataFrame(rows, columns=["kind", "estimate", "value"]).dropna()
    table = frame.groupby(["kind", "estimate"])["value"].mean()
    return {kind: table[kind].to_dict() for kind in KINDS if kind in table}
